"""A run in shards: the numbers of the whole run, and who computes does not matter."""

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm
from depthsys.lm.bench import Bench, RunOfShard
from depthsys.lm.shards import SHARD, along, in_shards
from tests.conftest import tiny_llama
from tests.lm import every_function, families
from tests.lm.conftest import LabelledIds, counted_block_calls, labelled_ids

# nothing is kept of contexts: they are computed again, layer by layer
NOTHING = lm.Budget(device=0, host=0, file=0)
IN_ONE_PLACE = {"jacobians"}


@pytest.fixture(scope="module")
def llama():
    return lm.DepthModel(tiny_llama().double(), name="llama")


@pytest.fixture(scope="module")
def texts():
    return labelled_ids(11, 3)


@pytest.fixture(scope="module")
def whole(gpt2, texts):
    return gpt2.run(texts)


@pytest.fixture(scope="module")
def concept(gpt2, texts):
    return lm.mean_difference(gpt2.run(texts))


@pytest.fixture(scope="module")
def works(whole, concept):
    return every_function.works(concept, lm.identify(whole, concept, lm.Krylov(order=3)))


def assert_near(found, expected, rtol: float) -> None:
    """Numbers close to each other, on the scale of each variable."""
    if isinstance(found, list):
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other, rtol)
        return
    for name in expected.data_vars if isinstance(expected, xr.Dataset) else [...]:
        one, other = (np.asarray(d[name]) for d in (found, expected))
        if other.dtype.kind == "U":
            np.testing.assert_array_equal(one, other, err_msg=str(name))
            continue
        scale = 0.0
        if other.dtype.kind == "f":
            scale = abs(other[np.isfinite(other)]).max(initial=1e-3)
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * scale, err_msg=str(name))


QUICK = every_function.ONE_METHOD


@pytest.mark.parametrize("name", QUICK)
def test_of_one_shard_everything_is_that_of_the_run_to_the_bit(gpt2, texts, whole, works, name):
    function = name.split(",")[0]
    if function in IN_ONE_PLACE:
        pytest.skip("needs all prompts in one place")
    of_one = lm.ShardedRun(gpt2, texts, shard=100)
    every_function.assert_same(works[name](of_one), works[name](whole))


@pytest.mark.parametrize("size", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", QUICK)
def test_of_many_shards_everything_is_that_of_the_run_to_rounding(
    gpt2, texts, whole, works, name, size
):
    function = name.split(",")[0]
    sharded = lm.ShardedRun(gpt2, texts, shard=size)
    assert len(sharded.shards[-1]) == (3 if size == 4 else 1)
    if function in IN_ONE_PLACE:
        with pytest.raises(TypeError, match=f"`{function}` must get a run with all prompts in one"):
            works[name](sharded)
        return
    assert_near(works[name](sharded), works[name](whole), TOLERANCE.get(function, 1e-12))


# a search ends within its own tolerance; a fit by L-BFGS, and differences of steps, magnify
TOLERANCE = {"optimal_plan": 1e-6, "logistic": 1e-6}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(lm.Arnoldi(order=3), marks=pytest.mark.slow),
        pytest.param(lm.Balanced(order=3), marks=pytest.mark.slow),
        lm.Ensemble(),
    ],
)
def test_whether_there_is_room_for_contexts_changes_no_bit(gpt2, texts, concept, method):
    kept = lm.ShardedRun(gpt2, texts, shard=4)
    again = lm.ShardedRun(gpt2, texts, shard=4, budget=NOTHING)
    one, other = (lm.identify(run, concept, method) for run in (kept, again))
    every_function.assert_same(one, other)


@pytest.mark.slow
def test_a_comparison_of_runs_in_shards_is_that_of_the_runs(gpt2, texts, concept):
    held_out = labelled_ids(7, 9)
    options = {"orders": [1, 3], "concept": concept, "n_each": 5, "n_bootstrap": 5}

    def compared(run_of):
        splits = lm.Splits(*(run_of(part) for part in (texts, texts, held_out)))
        return lm.compare(gpt2, splits, **options).drop_vars(["seconds", "prompt_seconds"])

    found = [
        compared(lambda part, size=size, **more: lm.ShardedRun(gpt2, part, shard=size, **more))
        for size in (4, 100)
    ]
    expected = compared(gpt2.run)
    assert_near(found[0], expected, 1e-11)
    every_function.assert_same(found[1], expected)
    again = compared(lambda part: lm.ShardedRun(gpt2, part, shard=4, budget=NOTHING))
    every_function.assert_same(again, found[0])
    assert found[0].attrs["shard"] == found[0].attrs["operating_shard"] == 4


def test_the_cost_of_a_comparison_is_foretold(gpt2, texts, concept):
    def cost(run_of):
        splits = lm.Splits(*(run_of(part) for part in (texts, texts, labelled_ids(7, 9))))
        return lm.comparison_cost(gpt2, splits, orders=[1, 3], concept=concept)

    found, expected = cost(lambda part: lm.ShardedRun(gpt2, part, shard=4)), cost(lambda part: part)
    for name in ("stage", "passes", "rows", "kept"):
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("find", [lm.mean_difference, lm.whitened])
def test_concepts_and_their_separation(gpt2, texts, find):
    held_out = labelled_ids(7, 9)
    sharded = lm.ShardedRun(gpt2, texts, shard=4, contexts=False)
    found = find(sharded, held_out=lm.ShardedRun(gpt2, held_out, shard=3))
    expected = find(gpt2.run(texts), held_out=held_out)
    assert_near(found, expected, 1e-12)
    assert found.attrs["prompts_sha256"] == expected.attrs["prompts_sha256"]


def test_texts_in_the_same_state_are_counted_over_all_shards(llama):
    # without position embeddings the state at depth 0 is that of the last token
    ids = [[i, 3] for i in range(4, 23)] + [[5, 2]]
    texts = LabelledIds(ids, np.arange(20) % 2)
    found = lm.mean_difference(lm.ShardedRun(llama, texts, shard=3))
    note = "no direction at depth 0: 19 of 20 texts are in the same state there"
    assert found.attrs["direction_note"] == note


def test_states_and_router_margins(gpt2, texts, whole):
    sharded = lm.ShardedRun(gpt2, texts, shard=4)
    xr.testing.assert_allclose(sharded.states, whole.states, rtol=1e-12)
    assert sharded.states.dims == whole.states.dims
    assert sharded.router_margin is None


def test_router_margins_of_all_shards(texts):
    model = lm.DepthModel(families.make("mixtral"))
    whole, sharded = model.run(texts), lm.ShardedRun(model, texts, shard=4)
    xr.testing.assert_allclose(sharded.router_margin, whole.router_margin, rtol=1e-12)


def test_it_says_what_a_run_says(gpt2, texts, whole):
    sharded = lm.ShardedRun(gpt2, texts, shard=4)
    for name in ("n_prompts", "n_layers", "rows", "tokens_sha256", "sha256", "all_the_same"):
        assert getattr(sharded, name) == getattr(whole, name)
    assert len(sharded) == 11
    assert (sharded.n_cut, sharded.token_note) == (whole.n_cut, whole.token_note)
    assert sorted(np.concatenate(sharded.numbers)) == list(range(11))
    assert sharded.n_padded_tokens >= sum(map(len, texts.ids))
    assert "11 prompts, 0 of them cut, in 3 shards of up to 4" in repr(sharded)
    assert lm.ShardedRun(gpt2, texts).shard_size == SHARD
    assert (sharded.waits, (sharded.states, sharded.waits)[1]) == (True, False)


def test_each_prompt_is_prefilled_once(gpt2, texts, concept, monkeypatch):
    calls = counted_block_calls(gpt2, monkeypatch)
    sharded = lm.ShardedRun(gpt2, texts, shard=4)
    assert not calls
    lm.identify(sharded, concept)
    passes = [rows for layer, rows in calls if layer == 0]
    lm.identify(sharded, concept, lm.Balanced(order=2))
    lm.linear_gains(sharded, concept)
    # whole sequences go through a block once; derivatives call it with the last tokens alone
    longest = sum(rows for rows in passes if rows > 11)
    assert sum(rows for layer, rows in calls if layer == 0 and rows > 11) == longest > 0


# ------------------------------------------------------------------------------- bad input


def test_a_state_that_is_not_finite_is_named_by_its_number_in_the_whole(
    gpt2, texts, concept, monkeypatch
):
    spoilt = texts.ids[6]
    original = lm.Run.block_of

    def block_of(self, at, rows, hidden, calls):
        block, after = original(self, at, rows, hidden, calls)
        for place, row in enumerate(rows):
            if at == 1 and self.rows[row] == spoilt:
                block.x_next[place] = after[place, -1] = torch.inf
        return block, after

    monkeypatch.setattr(lm.Run, "block_of", block_of)
    message = r"non-finite one after layer 1, of the prompts number 6\. "
    for budget in (None, NOTHING):
        for method in (lm.Ensemble(), lm.Balanced(order=2)):
            sharded = lm.ShardedRun(gpt2, texts, shard=4, budget=budget)
            with pytest.raises(FloatingPointError, match=message):
                lm.identify(sharded, concept, method)


def test_a_push_that_overflows_and_a_step_that_drowns(gpt2, texts, concept):
    sharded = lm.ShardedRun(gpt2, texts, shard=4)
    plan = xr.Dataset({"u": ("layer", [1e200, 0.0, 0.0])})
    with pytest.raises(FloatingPointError, match=r"a push of size 1\.0e\+200 overflows"):
        lm.play(sharded, concept, plan)
    with pytest.raises(ValueError, match="`eps` must be well above the rounding"):
        lm.measure_gains(sharded, concept, eps=1e-15)


@pytest.mark.parametrize("shard", [0, -1, 1.5, True, "4"])
def test_a_size_that_is_none(gpt2, texts, shard):
    with pytest.raises(ValueError, match="`shard` must be a whole number >= 1; got"):
        lm.ShardedRun(gpt2, texts, shard=shard)


def test_what_is_no_texts_and_no_budget(gpt2, texts, whole):
    sharded = lm.ShardedRun(gpt2, texts, shard=4)
    for given in (whole, sharded):
        with pytest.raises(TypeError, match=r"`texts` must be texts or token ids; got a (Sha|Run)"):
            lm.ShardedRun(gpt2, given)
    with pytest.raises(TypeError, match=r"`budget` must be an lm.Budget; got 5"):
        lm.ShardedRun(gpt2, texts, budget=5)
    with pytest.raises(ValueError, match="`prompts` must hold at least one text"):
        lm.ShardedRun(gpt2, [])


def test_a_run_in_shards_of_another_model(gpt2, texts):
    other = lm.DepthModel(gpt2.hf, name="other")
    sharded = lm.ShardedRun(other, texts, shard=4)
    with pytest.raises(ValueError, match=r"`texts` must be a run of `model`; got one of another"):
        lm.mean_difference(gpt2.run(texts), held_out=sharded)
    with pytest.raises(TypeError, match=r"`jacobians` must get a run with all prompts in one"):
        lm.jacobians(other, sharded)


def test_without_keep_a_sweep_does_not_go_back(gpt2, texts):
    with pytest.raises(RuntimeError, match="goes backwards only over states that it keeps"):
        next(lm.ShardedRun(gpt2, texts).sweep().backward())


# ------------------------------------------------------------------------- runs that are kept


def test_a_layer_of_a_sweep_can_be_asked_of_one_who_has_not_swept(gpt2, texts):
    """So it is where a worker is lost: another one passes the prompts through what was before."""
    sharded = lm.ShardedRun(gpt2, texts, shard=100, budget=NOTHING)
    shard, budget = sharded.shards[0], NOTHING
    for keep in (False, True):
        steady = RunOfShard(gpt2, shard, budget=budget, contexts=True)
        for layer in range(3):
            expected = [block.x_next for block in steady.layer_of("a", keep, layer)]
            fresh = RunOfShard(gpt2, shard, budget=budget, contexts=True)
            found = [block.x_next for block in fresh.layer_of("a", keep, layer)]
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        # and a layer that is past, where its states are gone
        back = [block.x_next for block in steady.layer_of("a", keep, 0)]
        first = [block.x_next for block in fresh.layer_of("b", keep, 0)]
        assert all(torch.equal(*pair) for pair in zip(back, first, strict=True))
        steady.end_sweep()
        fresh.end_sweep()


def test_shards_share_the_budget_and_those_not_used_for_longest_go(gpt2, texts):
    def run_of(seed, **budget):
        given = lm.Budget(**budget) if budget else None
        return lm.ShardedRun(gpt2, labelled_ids(11, seed), shard=4, budget=given)

    first = run_of(3)
    sizes = [sum(Bench().run(gpt2, first.sharding, s).taken.values()) for s in first.shards]
    room = {"host": sizes[0] + sizes[1] // 2, "file": 0}
    bench = Bench()
    places = [bench.run(gpt2, run_of(3, **room).sharding, s).place for s in run_of(3).shards]
    assert places[:2] == ["host", "again"]  # those of one run stay, whatever is left
    other = run_of(4, **room)
    assert bench.run(gpt2, other.sharding, other.shards[0]).place == "host"
    kept = run_of(3, **room)
    made = bench.run(gpt2, kept.sharding, kept.shards[0])  # which had gone
    assert made is bench.run(gpt2, kept.sharding, kept.shards[0])
    assert made.place == "host"


def test_what_a_budget_leaves():
    cpu = torch.device("cpu")
    left = lm.Budget(host=100, file=10).left({"host": 30, "file": 20}, cpu)
    assert (left.device, left.host, left.file) == (0, 70, 0)
    free = lm.Budget().left({}, cpu, 0.5).host
    assert free == pytest.approx(lm.Budget().left({}, cpu).host / 2, rel=0.2)


@in_shards(along(0))
def lengths(run, extra, *, own):
    """For the test below: it has its name in its module, as leaves have."""
    return np.array([len(row) for row in run.rows]) + extra + own


def test_arguments_by_name_are_those_of_the_prompts_of_a_shard(gpt2, texts, whole):
    own = np.arange(11) * 100
    expected = np.array([len(row) for row in texts.ids]) + 5 + own
    for run in (whole, lm.ShardedRun(gpt2, texts, shard=4)):
        np.testing.assert_array_equal(lengths(run, 5, own=own), expected)
