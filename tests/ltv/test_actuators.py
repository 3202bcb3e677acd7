from itertools import combinations
from math import comb

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

from depthsys import ltv
from tests.ltv.test_system import dense_io_matrix, random_arrays


def blocks_of(arrays):
    """Maps of every layer to x_L and to y_L, from the dense sum over paths."""
    A, B, C, D = arrays
    eye = np.broadcast_to(np.eye(A.shape[-1]), (len(C), *A.shape[-2:]))
    to_state = dense_io_matrix(A, B, eye, np.zeros((len(C), A.shape[-1], B.shape[-1])))[-1]
    to_output = dense_io_matrix(A, B, C, D)[-1]
    return np.moveaxis(to_state, 1, 0), np.moveaxis(to_output, 1, 0)


def trace_of(blocks, layers):
    return sum(np.trace(blocks[layer] @ blocks[layer].T) for layer in layers)


def volume_of(floor):
    def value(blocks, layers):
        P = sum(blocks[layer] @ blocks[layer].T for layer in layers)
        return np.linalg.slogdet(np.eye(blocks.shape[1]) + P / floor**2)[1]

    return value


def inverse_energy_of(target):
    target = np.atleast_1d(np.asarray(target, dtype=float))

    def value(blocks, layers):
        G = np.hstack([blocks[layer] for layer in layers])
        u, *_ = np.linalg.lstsq(G, target, rcond=1e-10)
        miss = np.linalg.norm(G @ u - target) / np.linalg.norm(target)
        return 1 / (u @ u) if miss < 1e-8 else -miss

    return value


def by_hand(blocks, count, value):
    """Greedy picks, their values, the best subset and its value, one set at a time."""
    picks, values = [], []
    for _ in range(count):
        left = [layer for layer in range(len(blocks)) if layer not in picks]
        scores = [value(blocks, [*picks, layer]) for layer in left]
        picks.append(left[int(np.argmax(scores))])
        values.append(max(scores))
    scores = {s: value(blocks, s) for s in combinations(range(len(blocks)), count)}
    best = max(scores, key=scores.get)
    return picks, values, list(best), scores[best]


OBJECTIVES = {
    "trace": (ltv.Trace(), trace_of, "state"),
    "volume": (ltv.Volume(floor=0.3), volume_of(0.3), "state"),
    "energy": (ltv.Energy(target=[1.0, -0.5]), inverse_energy_of([1.0, -0.5]), "output"),
}


@pytest.mark.parametrize("which", OBJECTIVES)
@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4), st.integers(1, 2))
def test_greedy_and_optimum_against_one_set_at_a_time(which, seed, L, n, m):
    arrays = random_arrays(seed, L, n, m, p=2)
    objective, value, of = OBJECTIVES[which]
    blocks = blocks_of(arrays)[of == "output"]
    for count in {1, (L + 1) // 2, L}:
        found = ltv.actuator_layers(ltv.system(*arrays), count, objective)
        picks, values, best, optimum = by_hand(blocks, count, value)
        np.testing.assert_allclose(found.value, values, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found.optimum, optimum, rtol=1e-6, atol=1e-9)
        if which != "energy":  # equal residuals are ties
            assert found.layers.values.tolist() == picks
            assert found.optimal_layers.values.tolist() == best
        # the layers named are worth what is said
        for name, worth in (("layers", found.value[-1]), ("optimal_layers", found.optimum)):
            layers = found[name].values.tolist()
            assert len(set(layers)) == count
            np.testing.assert_allclose(value(blocks, layers), worth, rtol=1e-6, atol=1e-9)
        assert found.optimum >= found.value[-1] - 1e-9
        if which == "volume":
            assert found.value[-1] >= (1 - 1 / np.e) * found.optimum
        if which == "trace":
            np.testing.assert_allclose(found.value[-1], found.optimum, rtol=1e-12)


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 2))
def test_with_one_output_the_greedy_energy_is_the_least(seed, L, m):
    arrays = random_arrays(seed, L, m=m, p=1)
    found = ltv.actuator_layers(ltv.system(*arrays), 2, ltv.Energy(target=3.0))
    np.testing.assert_allclose(found.value[-1], found.optimum, rtol=1e-10)
    norms = (blocks_of(arrays)[1] ** 2).sum((1, 2))
    np.testing.assert_allclose(found.value, np.sort(norms)[::-1][:2].cumsum() / 9, rtol=1e-8)
    assert found.layers.values.tolist() == np.argsort(-norms)[:2].tolist()
    assert found.attrs["guarantee"] == "optimal: with one output the gains add up"


def test_energy_where_no_layer_reaches_both_outputs():
    """One input per layer, two outputs: a first pick leaves a residual, a second one none."""
    arrays = random_arrays(1, n_layers=4, n=3, m=1, p=2)
    target = [1.0, 2.0]
    found = ltv.actuator_layers(ltv.system(*arrays), 3, ltv.Energy(target))
    blocks = blocks_of(arrays)[1]
    misses = []
    for b in blocks[:, :, 0]:
        cosine = b @ target / np.linalg.norm(b) / np.linalg.norm(target)
        misses.append(np.sqrt(1 - cosine**2))
    np.testing.assert_allclose(found.value[0], -min(misses), rtol=1e-9)
    assert int(found.layers[0]) == int(np.argmin(misses))
    pair = found.layers.values[:2]
    u = np.linalg.solve(np.hstack(blocks[pair]), target)
    np.testing.assert_allclose(found.value[1], 1 / (u @ u), rtol=1e-9)
    # what the objective says is what minimum_energy needs with those layers only
    weights = np.where(np.isin(np.arange(4), found.layers), 1.0, 1e24)
    plan = ltv.minimum_energy(ltv.system(*arrays), target, weights=weights)
    np.testing.assert_allclose(1 / found.value[2], plan.energy, rtol=1e-6)
    assert found.attrs["guarantee"] == "none is proved"


def test_energy_of_the_greedy_choice_can_be_worse():
    # layer 0 alone comes nearest the target, but then needs much to close the gap
    gain = [[[1.0], [0.02]], [[1.0], [1.0]], [[1.0], [-1.0]]]
    system = ltv.system([np.eye(2)] * 3, gain, [np.eye(2)] * 4)
    found = ltv.actuator_layers(system, 2, ltv.Energy([1.0, 0.0]))
    assert int(found.layers[0]) == 0
    assert found.optimal_layers.values.tolist() == [1, 2]
    np.testing.assert_allclose(found.optimum, 2.0)  # u = (1/2, 1/2)
    _, values, _, _ = by_hand(np.array(gain), 2, inverse_energy_of([1.0, 0.0]))
    np.testing.assert_allclose(found.value, values)
    assert found.value[-1] < found.optimum - 0.5


def test_a_target_that_no_set_reaches():
    arrays = random_arrays(2, n_layers=4, m=1, p=1)
    doubled = (*arrays[:2], np.concatenate([arrays[2]] * 2, axis=1), None)
    found = ltv.actuator_layers(ltv.system(*doubled), 2, ltv.Energy([1.0, 0.0]))
    np.testing.assert_allclose(found.value, [-np.sqrt(0.5)] * 2)
    np.testing.assert_allclose(found.optimum, -np.sqrt(0.5))


def masks(rng, n_sets, L):
    return rng.random((n_sets, L)) < 0.5


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 2), st.sampled_from([2, 12]))
def test_volume_of_any_set_on_both_code_paths(seed, L, m, n):
    rng = np.random.default_rng(seed)
    blocks = rng.standard_normal((L, n, m))
    chosen = masks(rng, 12, L)
    chosen[0], chosen[1] = False, True
    got = ltv.Volume(floor=0.5).value(blocks, chosen)
    eye = np.eye(n)
    for mask, value in zip(chosen, got, strict=True):
        P = sum((blocks[layer] @ blocks[layer].T for layer in np.flatnonzero(mask)), 0 * eye)
        np.testing.assert_allclose(value, np.linalg.slogdet(eye + P / 0.25)[1], atol=1e-9)
    assert got[0] == 0


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([3, 20]))
def test_volume_is_monotone_and_submodular(seed, n):
    rng = np.random.default_rng(seed)
    L = 6
    blocks = rng.standard_normal((L, n, 2)) * rng.uniform(0.1, 3, (L, 1, 1))
    small = masks(rng, 20, L)
    large = small | masks(rng, 20, L)
    value = ltv.Volume(floor=0.4).value
    for extra in range(L):
        outside = ~large[:, extra]
        add = np.arange(L) == extra
        gain = [value(blocks, s | add) - value(blocks, s) for s in (small, large)]
        assert (gain[0] >= -1e-9).all()
        assert (gain[1] >= -1e-9).all()
        assert (gain[0] >= gain[1] - 1e-9)[outside].all()
    assert (value(blocks, large) >= value(blocks, small) - 1e-9).all()


@pytest.mark.parametrize(("n", "m"), [(3, 2), (9, 1)])
@pytest.mark.parametrize("which", OBJECTIVES)
def test_batch_dims_give_the_choice_of_each_member(which, n, m):
    arrays = random_arrays(3, n_layers=5, n=n, m=m, batch=(2, 3))
    objective = OBJECTIVES[which][0]
    many = ltv.actuator_layers(ltv.system(*arrays, batch_dims=["task", "prompt"]), 3, objective)
    assert set(many.layers.dims) == {"task", "prompt", "pick"}
    for at in np.ndindex(2, 3):
        one = ltv.actuator_layers(ltv.system(*(a[at] for a in arrays)), 3, objective)
        xr.testing.assert_allclose(many.isel(task=at[0], prompt=at[1]), one)
    assert len(np.unique(many.layers.values.reshape(6, 3), axis=0)) > 1


@pytest.mark.parametrize("which", OBJECTIVES)
def test_layers_of_a_window_are_labels(which):
    A, B, C, D = random_arrays(4, n_layers=8, m=2)
    part = ltv.window(ltv.system(A, B, C, D), 3, 7)
    objective, value, of = OBJECTIVES[which]
    found = ltv.actuator_layers(part, 2, objective)
    cut = (A[3:7], B[3:7], C[3:8], 0 * D[3:8])
    picks, _, best, _ = by_hand(blocks_of(cut)[of == "output"], 2, value)
    assert found.layers.values.tolist() == [3 + layer for layer in picks]
    assert found.optimal_layers.values.tolist() == [3 + layer for layer in best]


def test_subsets_are_counted_and_left_out_when_too_many():
    system = ltv.system(*random_arrays(5, n_layers=5))
    tried = ltv.actuator_layers(system, 2, ltv.Trace(), max_subsets=10)
    assert tried.attrs["subsets"] == "10, all tried"
    left_out = ltv.actuator_layers(system, np.int64(2), ltv.Trace(), max_subsets=9)
    assert left_out.attrs["subsets"] == "10, not tried: more than 9"
    assert set(tried) - set(left_out) == {"optimal_layers", "optimum"}
    xr.testing.assert_equal(left_out, tried[list(left_out)])
    assert tried.attrs["objective"] == "Trace()"
    assert tried.attrs["guarantee"].startswith("optimal")
    volume = ltv.actuator_layers(system, 2, ltv.Volume(floor=1.0))
    assert volume.attrs["guarantee"].startswith("at least 1 - 1/e")
    assert volume.attrs["objective"] == "Volume(floor=1.0)"


def test_subsets_beyond_the_first_part_are_tried():
    """924 subsets are tried 500 at a time: one optimum is the first of them, one the last."""
    rng = np.random.default_rng(6)
    B = rng.standard_normal((12, 2, 1))
    A = np.stack([np.stack([factor * np.eye(2)] * 12) for factor in (2.0, 0.5)])
    assert comb(12, 6) > 500
    B = np.stack([B / np.linalg.norm(B, axis=1, keepdims=True)] * 2)
    system = ltv.system(A, B, np.ones((2, 13, 1, 2)), batch_dims=["prompt"])
    found = ltv.actuator_layers(system, 6, ltv.Trace())
    assert found.optimal_layers.values.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert found.layers.values.tolist() == [[0, 1, 2, 3, 4, 5], [11, 10, 9, 8, 7, 6]]
    np.testing.assert_allclose(found.optimum, found.value[:, -1], rtol=1e-12)


@pytest.mark.parametrize("which", OBJECTIVES)
def test_matrix_free_systems_choose_the_same_layers(which):
    A, B, C, D = random_arrays(7, n_layers=5)
    free = ltv.MatrixFree([aslinearoperator(a) for a in A], list(B), list(C), list(D))
    objective = OBJECTIVES[which][0]
    one = ltv.actuator_layers(ltv.system(A, B, C, D), 2, objective)
    xr.testing.assert_allclose(ltv.actuator_layers(free, 2, objective), one)


class WorstOutput:
    """An objective from outside: the least squared gain of an output."""

    of = "output"

    def guarantee(self, n_rows):
        return f"none, {n_rows} rows"

    def value(self, blocks, chosen):
        squares = (blocks**2).sum(-1)
        return (chosen.astype(float) @ squares).min(-1)


def test_an_objective_of_ones_own():
    arrays = random_arrays(8, n_layers=5, p=3)
    found = ltv.actuator_layers(ltv.system(*arrays), 3, WorstOutput())

    def value(blocks, layers):
        return min((blocks[list(layers), i] ** 2).sum() for i in range(3))

    picks, values, best, optimum = by_hand(blocks_of(arrays)[1], 3, value)
    assert found.layers.values.tolist() == picks
    assert found.optimal_layers.values.tolist() == best
    np.testing.assert_allclose(found.value, values)
    np.testing.assert_allclose(found.optimum, optimum)
    assert found.attrs["guarantee"] == "none, 3 rows"


@pytest.mark.parametrize("floor", [0, -1.0, np.inf, np.nan])
def test_bad_floor(floor):
    with pytest.raises(ValueError, match="`floor` must be a number > 0; got"):
        ltv.Volume(floor=floor)


@pytest.mark.parametrize("target", [1.0, [1.0, 2.0, 3.0], [np.nan, 1.0], [0.0, 0.0]])
def test_bad_target(target):
    system = ltv.system(*random_arrays(0))
    with pytest.raises(ValueError, match="`target` must be 2 finite numbers, one per output"):
        ltv.actuator_layers(system, 1, ltv.Energy(target))


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (True, "`count` must be a whole number; got True"),
        (2.0, r"`count` must be a whole number; got 2\.0"),
        (0, r"`count` must be in 1\.\.4, the layers; got 0"),
        (5, r"`count` must be in 1\.\.4, the layers; got 5"),
    ],
)
def test_bad_count(count, message):
    with pytest.raises(ValueError, match=message):
        ltv.actuator_layers(ltv.system(*random_arrays(0)), count, ltv.Trace())


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 2))
def test_elimination_removes_the_least_useful_layer_each_time(seed, L, m):
    arrays = random_arrays(seed, L, m=m, p=2, batch=(2,))
    target = [1.0, -0.5]
    count = (L + 1) // 2
    system = ltv.system(*arrays, batch_dims=["prompt"])
    found = ltv.actuator_layers(system, count, ltv.Energy(target))
    for i in range(2):
        blocks = blocks_of([a[i] for a in arrays])[1]
        value, left = inverse_energy_of(target), list(range(L))
        while len(left) > count:
            worths = [value(blocks, [j for j in left if j != drop]) for drop in left]
            if max(worths) < 0:
                break  # equal residuals are ties
            left.pop(int(np.argmax(worths)))
        else:
            assert found.kept_layers[i].values.tolist() == left
        kept = value(blocks, found.kept_layers[i].values.tolist())
        np.testing.assert_allclose(found.kept_value[i], kept, rtol=1e-6)
        assert found.kept_value[i] <= found.optimum[i] + 1e-9 * abs(found.optimum[i])


def test_a_near_miss_is_a_miss():
    """Layers whose gains differ by 1e-4 of an angle from the target do not reach it."""
    gain = [[[1.0], [1e-4]], [[1.0], [1e-4]]]
    system = ltv.system([np.eye(2)] * 2, gain, [np.eye(2)] * 3)
    found = ltv.actuator_layers(system, 1, ltv.Energy([1.0, 0.0]))
    np.testing.assert_allclose(found.value, -1e-4, rtol=1e-6)


def test_the_objective_must_be_one():
    system = ltv.system(*random_arrays(0))
    for wrong in ("trace", ltv.Trace, None):
        with pytest.raises(TypeError, match=r"`objective` must be `Trace\(\)`"):
            ltv.actuator_layers(system, 1, wrong)
