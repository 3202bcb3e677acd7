"""States between the parts of a layer, against hooks on the modules of whole sequences."""

import numpy as np
import pytest
import torch

from depthsys import lm
from depthsys.lm.frozen import FrozenBlock
from tests.conftest import tiny_gpt2, tiny_llama
from tests.lm import families
from tests.lm.conftest import labelled_ids, no_block_runs

# the last is how close: Gemma 2 and GPT-NeoX compute in float32 inside
# the module that reads the state before the MLP; of parallel blocks the attention, that writes
READERS = {
    "llama": (tiny_llama, "post_attention_layernorm", 1e-9),
    "gpt2": (tiny_gpt2, "ln_2", 1e-9),
    "gemma2": (lambda: families.make("gemma2"), "pre_feedforward_layernorm", 1e-5),
    "gpt_neox": (lambda: families.make("gpt_neox"), None, 1e-5),
}


def truth(hf, ids: list[int], reader: str | None) -> np.ndarray:
    """(sublayer, feature): what enters each block, and what enters the norm of its MLP."""
    seen, handles = [], []

    def first(output):
        return (output[0] if isinstance(output, tuple) else output)[0, -1]

    def entering(module, args, kwargs):
        seen.append((args[0] if args else kwargs["hidden_states"])[0, -1])

    for block in families.blocks(hf):
        handles.append(block.register_forward_pre_hook(entering, with_kwargs=True))
        if reader is None:
            add = lambda m, _, out: seen.append(seen[-1] + first(out))  # noqa: E731
            handles.append(block.attention.register_forward_hook(add))
        else:
            module = getattr(block, reader)
            handles.append(module.register_forward_pre_hook(entering, with_kwargs=True))
    with torch.no_grad():
        hf(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(seen).numpy()


@pytest.mark.parametrize("name", READERS)
def test_states_are_those_that_the_modules_read(name):
    make, reader, near = READERS[name]
    model, texts = lm.DepthModel(make().double()), labelled_ids(5, 3)
    states = lm.sublayer_states(model, texts)
    assert states.attrs["arrangement"] == ("sequential" if reader else "parallel")
    for number, ids in enumerate(texts.ids):
        expected = truth(model.hf, ids, reader)
        np.testing.assert_allclose(states[:, number], expected, rtol=near, atol=near)
    assert states["layer"].values.tolist() == np.repeat(np.arange(model.n_layers), 2).tolist()
    assert states["before"].values.tolist() == ["attention", "mlp"] * model.n_layers
    blocks = families.blocks(model.hf)
    assert not any(m._forward_hooks for block in blocks for m in block.modules())


def test_shards_give_the_same(tiny, tokens):
    whole = lm.sublayer_states(tiny, tokens)
    parts = lm.sublayer_states(lm.ShardedRun(tiny, tokens, shard=3))
    np.testing.assert_allclose(parts, whole, rtol=1e-12, atol=1e-13)


def test_one_row_per_prompt_and_layer(tiny, tokens, monkeypatch):
    lm.sublayer_states(tiny, tokens)  # the arrangement of the parts is known from now on
    rows, call = [], FrozenBlock.__call__

    def counted(block, x):
        rows.append(x.shape[0] * x.shape[1])
        return call(block, x)

    monkeypatch.setattr(FrozenBlock, "__call__", counted)
    lm.sublayer_states(tiny, tokens)
    assert sum(rows) == len(tokens) * tiny.n_layers


def test_parts_that_write_more_than_they_add_are_refused(monkeypatch, tokens):
    """A norm with a bias behind the MLP writes something where the MLP writes nothing."""
    hf = tiny_gpt2().double()
    mlp = hf.transformer.h[1].mlp
    original = hf.transformer.h[1].forward

    def forward(*args, **kwargs):
        return original(*args, **kwargs) + 1.0

    hf.transformer.h[1].forward = forward
    model = lm.DepthModel(hf)
    with pytest.raises(ValueError, match="layer 1 does neither"):
        lm.sublayer_states(model, tokens)
    assert not mlp._forward_hooks


def test_a_family_without_parts_is_refused_before_the_prompts_run(monkeypatch):
    model = lm.DepthModel(families.make("bloom"))
    with pytest.raises(ValueError, match="each by itself; BloomBlock of layer 0 has not"):
        lm.sublayer_states(model, labelled_ids(3, 1))


def test_what_is_refused_runs_no_prompt(tiny, tokens, monkeypatch):
    lm.sublayer_states(tiny, tokens)
    no_block_runs(monkeypatch)
    for options, words in {
        ("n_units", -1): "`n_units` must be a whole number >= 0; got -1",
        ("n_units", True): "`n_units` must be a whole number",
        ("n_trajectories", 0): "`n_trajectories` must be a whole number >= 1; got 0",
        ("n_components", 1): "`n_components` must be a whole number in 2..16; got 1",
        ("seed", -1): "`seed` must be a whole number in 0..4294967295; got -1",
        ("n_shuffles", 0.5): "`n_shuffles` must be a whole number >= 0; got 0.5",
    }.items():
        with pytest.raises(ValueError, match=words.replace("+", r"\+")):
            lm.residual_dynamics(tiny, tokens, **dict([options]))
    with pytest.raises(ValueError, match="`run` must have 4 prompts at least; got 3"):
        lm.residual_dynamics(tiny, labelled_ids(3, 0))


@pytest.mark.parametrize("double", [False, True])
def test_units_that_vary_by_rounding_alone_have_no_correlation(double):
    """The same prompt again: rows of a batch differ in their last digits."""
    hf = families.make("llama", "sdpa")
    model = lm.DepthModel(hf.double() if double else hf.float())
    found = lm.residual_dynamics(model, [[5, 6, 7]] * 6, n_units=16)
    assert np.isnan(found["correlation"]).all()
    assert np.isnan(found["mutual_information"]).all()
