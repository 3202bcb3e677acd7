"""States of all tokens: those of Hugging Face, kept where the budget says, and only when asked."""

import re

import numpy as np
import pytest
import torch

from depthsys import lm
from depthsys.lm.token_states import real_tokens
from tests.conftest import tiny_gpt2, tiny_llama
from tests.lm import families
from tests.lm.conftest import (
    batches_of_32,
    counted_block_calls,
    labelled_ids,
    no_block_runs,
    spoil_states,
)

NOWHERE = lm.Budget(device=0, host=0, file=0)
PLACES = {"host": lm.Budget(), "file": lm.Budget(device=0, host=0), "again": NOWHERE}
MAKERS = {
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "gpt_neox": lambda: families.make("gpt_neox"),
    "mistral": lambda: families.make("mistral", window=3),
}


@pytest.fixture(scope="module")
def ids():
    return labelled_ids(11, 3).ids  # of 1 to 6 tokens


@pytest.fixture(scope="module", params=MAKERS)
def model(request):
    return lm.DepthModel(MAKERS[request.param]().double(), left_padding=True)


def of_hugging_face(model, row) -> np.ndarray:
    """(depth, token, feature) before the final norm: the last one is what enters that norm."""
    norms = [m for n, m in model.hf.named_modules() if n.endswith((".ln_f", ".final_layer_norm"))]
    norm = norms[-1] if norms else model.hf.model.norm
    last = []
    handle = norm.register_forward_pre_hook(lambda m, a: last.append(a[0]))
    with torch.no_grad():
        found = model.hf(torch.tensor([row]), output_hidden_states=True, use_cache=False)
    handle.remove()
    # the last of their hidden states is behind the norm
    return torch.stack([*found.hidden_states[:-1], last[0]])[:, 0].numpy()


@pytest.mark.parametrize("place", PLACES)
def test_they_are_those_of_hugging_face(model, ids, place):
    run = model.run(ids, budget=PLACES[place], tokens="all")
    assert run.tokens_place == run.place == place
    seen = []
    for batch in run.token_states_by_batch():
        assert batch.x.shape[1:3] == batch.real.shape
        for row, i in enumerate(batch.prompts):
            seen.append(i)
            own = batch.real[row].numpy()
            assert own.sum() == len(ids[i])
            assert own[-len(ids[i]) :].all()
            expected = of_hugging_face(model, ids[i])
            found = batch.x[:, row][:, batch.real[row]].numpy()
            # norms and rotary tables compute in float32
            np.testing.assert_allclose(found, expected, atol=2e-6 * abs(expected).max())
    assert sorted(seen) == list(range(len(ids)))
    assert any(not batch.real.all() for batch in run.token_states_by_batch())  # there is padding


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("contexts", [True, False])
def test_they_are_the_bits_of_the_prefill(gpt2, ids, place, contexts):
    plain = gpt2.run(ids)
    run = gpt2.run(ids, budget=PLACES[place], tokens="all", contexts=contexts)
    assert run.tokens_place == place
    assert run.place == (place if contexts else "again")
    for batch, one in zip(run.token_states_by_batch(), plain.batches, strict=True):
        assert torch.equal(batch.x[:, :, -1], one.x)
    for depth in range(4):
        found = run.token_states(depth)
        assert found.dims == ("prompt", "token", "feature")
        assert found["lag"].values.tolist() == [5, 4, 3, 2, 1, 0]
        np.testing.assert_array_equal(found[:, -1], plain.states[depth])
        real = np.isfinite(found.values).all(-1)
        assert real.sum(1).tolist() == [len(row) for row in ids]


def test_bytes_and_passes_are_those_that_are_said(gpt2, ids, monkeypatch):
    calls = counted_block_calls(gpt2, monkeypatch)
    plain = gpt2.run(ids)
    cost = list(calls)
    calls.clear()
    run = gpt2.run(ids, tokens="all")
    assert sorted(calls) == sorted(cost)  # kept on the way, not by a second pass
    assert run.tokens_nbytes == 4 * 16 * 8 * run.n_padded_tokens
    assert (plain.tokens_nbytes, plain.tokens_place) == (0, "again")
    calls.clear()
    list(run.token_states_by_batch())
    run.token_states(2)
    assert not calls
    again = gpt2.run(ids, budget=NOWHERE, tokens="all")
    assert not calls  # nothing to be kept: nothing is run
    list(again.token_states_by_batch())
    assert sorted(calls) == sorted(cost)
    # contexts that come later do not pass the prompts for tokens again, nor the reverse
    calls.clear()
    states_only = gpt2.run(ids, tokens="all", contexts=False)
    assert sorted(calls) == sorted(cost)
    assert states_only.place == "again"
    kept = states_only._token_states
    states_only.prefill()
    assert states_only.place == "host"
    assert states_only._token_states is kept
    calls.clear()
    states_only.prefill()
    assert not calls


def test_nothing_is_kept_unless_asked(gpt2, ids, live_bytes, monkeypatch):
    runs = [gpt2.run(ids)]  # what is made once is there
    sizes = []
    for tokens in ("last", "all"):
        before = live_bytes()
        runs.append(gpt2.run(ids, tokens=tokens))
        sizes.append(live_bytes() - before)
    assert sizes[0] < runs[1].nbytes + 20_000 < sizes[1]
    more = sizes[1] - sizes[0]
    assert more == pytest.approx(runs[2].tokens_nbytes, abs=200)

    def note(*_):
        raise AssertionError("states of all tokens were kept")

    monkeypatch.setattr("depthsys.lm.token_states.KeptTokens.put", note)
    gpt2.run(ids)


def test_they_share_the_budget_with_contexts_to_the_byte(ids):
    model = lm.DepthModel(tiny_gpt2().double(), left_padding=False)
    run = model.run(ids, tokens="all")
    tokens = run.tokens_nbytes
    others = run.nbytes + len(ids) * 4 * 16 * 8  # with the states of the last tokens
    for budget, places in (
        (lm.Budget(host=tokens + others, file=0), ("host", "host")),
        (lm.Budget(host=tokens + others - 1, file=0), ("host", "again")),
        (lm.Budget(host=tokens - 1, file=tokens + others), ("file", "file")),
        (lm.Budget(host=tokens, file=others), ("host", "file")),
        (lm.Budget(host=tokens - 1, file=0), ("again", "again")),
        (lm.Budget(host=tokens, file=0), ("host", "again")),
    ):
        found = model.run(ids, budget=budget, tokens="all")
        assert (found.tokens_place, found.place) == places, budget
    assert model.run(ids, budget=lm.Budget(host=others, file=0)).place == "host"


@pytest.mark.parametrize("place", ["file", "again"])
def test_memory_is_that_of_a_batch_where_it_is_not_kept_there(gpt2, live_bytes, monkeypatch, place):
    batches_of_32(monkeypatch)
    peaks = []
    for count in (64, 256):
        rows = [[i % 50, 7, 3, 4, 5, 6] for i in range(count)]
        before = live_bytes()
        run = gpt2.run(rows, budget=PLACES[place], tokens="all", contexts=False)
        assert len(run.numbers) == count // 32
        peaks.append(0)
        for _ in run.token_states_by_batch():
            peaks[-1] = max(peaks[-1], live_bytes() - before)
    states = 4 * 16 * 8 * 192  # of the last tokens of the prompts that one has more
    assert peaks[1] - peaks[0] < states + 32 * 6 * 16 * 8


@pytest.mark.parametrize("budget", PLACES.values(), ids=PLACES)
def test_a_run_in_shards_has_them(gpt2, ids, budget):
    whole = gpt2.run(ids, tokens="all")
    sharded = lm.ShardedRun(gpt2, ids, shard=4, tokens="all", budget=budget)
    for depth in (0, 3):
        np.testing.assert_allclose(
            sharded.token_states(depth), whole.token_states(depth), atol=1e-12
        )
    rows = [i for batch in sharded.token_states_by_batch() for i in batch.prompts]
    assert sorted(rows) == list(range(len(ids)))
    for batch in sharded.token_states_by_batch():
        for row, i in enumerate(batch.prompts):
            found = batch.x[2, row][batch.real[row]]
            expected = whole.token_states(2).values[i][-len(ids[i]) :]
            np.testing.assert_allclose(found, expected, atol=1e-12)
    assert "states of all tokens" in repr(sharded)


def test_shards_count_them_within_the_budget(gpt2, ids):
    from depthsys.lm.bench import Bench

    def made(tokens, **budget):
        given = lm.Budget(**budget) if budget else None
        run = lm.ShardedRun(gpt2, ids, shard=6, tokens=tokens, budget=given)
        bench = Bench()
        return [bench.run(gpt2, run.sharding, shard) for shard in run.shards]

    first, second = made("all")
    plain = made("last")[0]
    assert sum(first.taken.values()) == sum(plain.taken.values()) + first.tokens_nbytes
    room = sum(first.taken.values()) + second.tokens_nbytes
    first, second = made("all", host=room, file=0)
    assert (first.tokens_place, first.place) == ("host", "host")
    assert (second.tokens_place, second.place, second.lacks_room) == ("host", "again", True)


def test_it_is_said(gpt2, ids):
    run = gpt2.run(ids, tokens="all")
    assert "context: host; states of all tokens: host" in repr(run)
    assert re.search(r"states of all tokens</td><td>host, \d+(\.\d)? k?B", run._repr_html_())
    again = gpt2.run(ids, tokens="all", budget=NOWHERE)
    assert "states of all tokens: again" in repr(again)
    assert "states of all tokens</td><td>computed again when needed" in again._repr_html_()
    plain = gpt2.run(ids)
    assert "all tokens" not in repr(plain) + plain._repr_html_()
    batch = next(run.token_states_by_batch())
    assert repr(batch).startswith(f"TokenStates({len(batch.prompts)} prompts, ")


def test_what_is_not_there_is_refused(gpt2, ids, monkeypatch):
    plain, sharded = gpt2.run(ids), lm.ShardedRun(gpt2, ids, shard=4)
    run = gpt2.run(ids, tokens="all")
    no_block_runs(monkeypatch)
    message = r"`run` must be one with the states of all tokens; got .*11 prompts.*tokens='all'"
    for one in (plain, sharded):
        with pytest.raises(ValueError, match=message):
            one.token_states_by_batch()
        with pytest.raises(ValueError, match=message):
            one.token_states(0)
    every = lm.ShardedRun(gpt2, ids, shard=4, tokens="all")
    for one in (run, every):
        for depth in (-1, 4, 1.5, True, "1"):
            with pytest.raises(ValueError, match=r"`depth` must be a whole number in 0\.\.3; got"):
                one.token_states(depth)
    for tokens in ("every", None, 3):
        with pytest.raises(ValueError, match=r"`tokens` must be one of .'last', 'all'.; got"):
            gpt2.run(ids, tokens=tokens)
        with pytest.raises(ValueError, match="`tokens` must be one of"):
            lm.ShardedRun(gpt2, ids, tokens=tokens)


def test_states_that_are_not_finite_are_refused(gpt2, ids, monkeypatch):
    spoil_states(monkeypatch, 1, (2,))
    with pytest.raises(FloatingPointError, match="non-finite one after layer 1"):
        gpt2.run(ids, tokens="all")
    again = gpt2.run(ids, tokens="all", budget=NOWHERE)
    with pytest.raises(FloatingPointError, match="non-finite one after layer 1"):
        list(again.token_states_by_batch())


def test_weights_that_have_changed_are_noticed(ids):
    model = lm.DepthModel(tiny_gpt2().double())
    run = model.run(ids, tokens="all")
    with torch.no_grad():
        model.hf.transformer.h[0].mlp.c_fc.bias.add_(1.0)
    with pytest.raises(ValueError, match="weights"):
        next(run.token_states_by_batch())
    with pytest.raises(ValueError, match="weights"):
        run.token_states(1)


def test_which_tokens_are_real():
    found = real_tokens([3, 1, 2], torch.device("cpu"))
    assert found.int().tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
