"""What wrapping a model asks of a card, as upper bounds: nothing waits for a block or a weight."""

import pytest
import torch

from depthsys import lm
from depthsys.lm import contract
from depthsys.lm.hf import blocks as replay
from tests import card
from tests.conftest import TINY
from tests.lm import families

DEVICE = card.setup()
LAYERS = {"gpt2": "n_layer", "llama": "num_hidden_layers"}
# operations of one layer, weights looked at included, of some 19 calls of a block
LAUNCHES = {"gpt2": 800, "llama": 1050}


def loaded(family, n_layers):
    hf = TINY[family](**{LAYERS[family]: n_layers}).to(DEVICE)
    with card.counted() as counts:
        lm.DepthModel(hf)
    return counts


def of(counts, *files):
    """Waits and copies at lines of these files."""
    found = {"wait": 0, "to_host": 0, "to_device": 0}
    for place, number in counts.places.items():
        kind, where = place.split(maxsplit=1)
        found[kind] += number * any(file in where for file in files)
    return found


@pytest.mark.parametrize("family", TINY)
def test_waits_of_a_wrapped_model_do_not_grow_with_its_layers(family):
    loaded(family, 1)  # what goes to the card once for a process
    few, many = loaded(family, 3), loaded(family, 6)
    own = "lm/contract.py", "lm/hf/fingerprint.py"
    assert of(few, *own) == of(many, *own)
    # one for each batch of the contract, and one for all the weights
    assert of(many, *own)["to_host"] == 4
    assert (many.n_launches - few.n_launches) / 3 < LAUNCHES[family]


def test_a_batch_of_the_contract_is_read_once():
    model = lm.DepthModel(TINY["llama"]().to(DEVICE))
    with card.counted() as counts:
        contract.check(model)
    # 9 tokens, 1 token, and 5 to 7 with padding
    assert of(counts, "lm/contract.py")["to_host"] == 3


def test_the_model_does_not_keep_keys_and_values_for_the_contract(monkeypatch):
    """It is asked for whole sequences without a cache, in one pass whatever their lengths."""
    hf, passes = TINY["gpt2"](), []
    own = hf.forward

    def forward(ids, **kwargs):
        passes.append((tuple(ids.shape), kwargs.get("use_cache")))
        return own(ids, **kwargs)

    monkeypatch.setattr(hf, "forward", forward)
    model = lm.DepthModel(hf)
    # once by itself; the heads of three batches see a token of each prompt
    wholes = [shape for shape, cache in passes if cache is False]
    assert wholes == [(1, 3), (8, 9), (8, 1), (12, 7)]
    assert model.left_padding


def test_blocks_are_called_once_for_chains_and_differences(monkeypatch):
    model, calls = lm.DepthModel(TINY["gpt2"]()), []
    own = replay.Blocks.call

    def counting(self, layer, *args):
        calls.append(layer)
        return own(self, layer, *args)

    monkeypatch.setattr(replay.Blocks, "call", counting)
    contract.check(model)
    # of each layer: prefill, replay with differences, and the linearisation; prefill and replay;
    # with padding the same two
    assert all(calls.count(layer) == 7 for layer in range(3))
    calls.clear()
    contract.allows_padding(model)
    assert all(calls.count(layer) == 2 for layer in range(3))


def test_the_rules_of_all_routers_are_tried_with_one_wait():
    hf = families.make("mixtral").to(DEVICE)
    blocks = replay.Blocks(hf)
    routers = [router for each in blocks._routers for router in each]
    assert len(routers) > 1
    with card.counted() as counts:
        assert replay.rules_are_known(routers, hf.config.hidden_size)
    assert (counts.waits, counts.to_device) == (1, 1)


def test_errors_that_are_not_finite_are_refused(monkeypatch):
    own = contract._row_errors

    def one(value, reference):
        found = own(value, reference).clone()
        found[0] = torch.nan
        return found

    monkeypatch.setattr(contract, "_row_errors", one)
    with pytest.raises(ValueError, match="has relative error nan"):
        lm.DepthModel(TINY["gpt2"]())
