import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from depthsys import ltv
from depthsys.ltv.norms import bounds_of
from tests.ltv.kinds import KINDS, random_system
from tests.ltv.test_system import dense_io_matrix, random_arrays


def dense_map(arrays):
    G = dense_io_matrix(*arrays)
    return G.reshape(G.shape[0] * G.shape[1], -1)


@settings(derandomize=True, max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_norms_are_those_of_the_dense_map(seed, L, n, m, p):
    arrays = random_arrays(seed, L, n, m, p)
    system, T = ltv.system(*arrays), dense_map(arrays)
    np.testing.assert_allclose(ltv.induced_norm(system), np.linalg.svd(T)[1][0], rtol=1e-12)
    np.testing.assert_allclose(ltv.h2_norm(system), np.sqrt((T**2).sum()), rtol=1e-12)
    blocks = [T[k * p :, : k * m] for k in range(1, L + 1)]
    expected = max(np.linalg.svd(b)[1][0] for b in blocks)
    np.testing.assert_allclose(ltv.hankel_norm(system), expected, rtol=1e-11)


def test_norms_broadcast_and_keep_the_dims_of_the_batch():
    batch = ltv.system(*random_arrays(0, batch=(2, 3)), batch_dims=["task", "prompt"])
    for norm in (ltv.induced_norm, ltv.h2_norm, ltv.hankel_norm):
        assert norm(batch).dims == ("task", "prompt")
        one = norm(batch.isel(task=1, prompt=2))
        np.testing.assert_allclose(norm(batch)[1, 2], one, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(2, 14),
    st.integers(2, 6),
    st.integers(1, 2),
    st.integers(1, 2),
)
def test_the_bounds_hold_in_3000_systems(kind, seed, L, n, m, p):
    """4 kinds x 25 shapes x 30 systems x all orders: no violation."""
    check_bounds(kind, seed, L, n, m, p)


@settings(derandomize=True, max_examples=8, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 10_000),
    st.integers(2, 9),
    st.integers(2, 5),
    st.integers(1, 2),
    st.integers(1, 2),
)
def test_the_bounds_hold_the_exact_error_of_balanced_truncation(kind, seed, L, n, m, p):
    check_bounds(kind, seed, L, n, m, p)


def check_bounds(kind, seed, L, n, m, p):
    system = ltv.system(*random_system(kind, seed, 30, L, n, m, p), batch_dims=["case"])
    exact, norm = ltv.io_matrix(system), ltv.induced_norm(system)
    rank = min(n, max(min(k * m, (L + 1 - k) * p) for k in range(L + 1)))
    for r in range(1, rank + 1):
        basis = ltv.balanced_basis(system, order=r)
        difference = exact - ltv.io_matrix(ltv.project(system, basis))
        error = np.linalg.norm(difference.values.reshape(30, (L + 1) * p, L * m), 2, axis=(1, 2))
        bounds = ltv.error_bounds(system, r)
        # no slack for rounding: the bounds carry their own
        kept = ltv.error_bounds(system, basis.order)
        for proved in (bounds, kept):
            assert (proved.lower <= error).all()
            assert (error <= proved.upper_distinct).all()
            assert (error <= proved.upper_segment).all()
            assert proved.upper_is_certified.all()
            assert (error <= proved.simple)[proved.simple_is_proved].all()
            assert (proved.upper_segment <= proved.simple)[proved.simple_is_proved].all()
        np.testing.assert_array_equal(
            bounds.upper, np.minimum(bounds.upper_distinct, bounds.upper_segment)
        )
        assert (bounds.resolution <= 1e-10 * norm).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_basis_of_any_kind_is_better_than_the_lower_bound(kind):
    system = ltv.system(*random_system(kind, 5, 20, L=9, n=5, m=2, p=2), batch_dims=["case"])
    methods = [
        ltv.balanced_basis,
        ltv.krylov_basis,
        ltv.arnoldi_basis,
        ltv.pod_basis,
        ltv.adjoint_basis,
        ltv.two_sided_basis,
        ltv.random_basis,
    ]
    table = ltv.compare(system, [1, 2, 3, 4], methods)
    assert (table.error >= table.lower * (1 - 1e-9)).all()


def test_the_bounds_are_attained():
    """A slow scalar lag over a long horizon, nothing kept: the error is 2 sigma but for 4 %."""
    system = ltv.constant([[0.97]], [[1.0]], [[1.0]], horizon=800)
    bounds = ltv.error_bounds(system, 0)
    error = ltv.induced_norm(system)
    assert 0.96 * bounds.upper_segment < error <= bounds.upper_segment
    assert bool(bounds.simple_is_proved)
    # one state at one depth only: a single gain, met by the lower bound
    once = ltv.system([[[1.0]], [[1.0]]], [[[3.0]], [[0.0]]], [[[0.0]], [[2.0]], [[0.0]]])
    bounds = ltv.error_bounds(once, 0)
    np.testing.assert_allclose([ltv.induced_norm(once), bounds.lower], 6.0)


def brute_force_segments(sequence):
    """The cheapest way to cut one sequence of positive values into segments, all 2^(M-1) tried."""
    if not sequence:
        return 0.0
    best = np.inf
    for cuts in itertools.product([False, True], repeat=len(sequence) - 1):
        cost, pieces = 0.0, [[sequence[0]]]
        for value, cut in zip(sequence[1:], cuts, strict=True):
            if cut:
                pieces.append([])
            pieces[-1].append(value)
        for piece in pieces:
            rises = [b / a for a, b in itertools.pairwise(piece) if b > a]
            cost += 2 * piece[0] * np.prod(rises)
        best = min(best, cost)
    return best


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.3, 4.0]), min_size=1, max_size=10))
def test_the_segment_bound_is_the_best_of_all_splits(sequence):
    values = xr.DataArray(np.array(sequence)[:, None], dims=["depth", "index"])
    pieces = "".join("x" if v == 0 else "." for v in sequence).split("x")
    runs, at = [], 0
    for piece in pieces:
        runs.append(sequence[at : at + len(piece)])
        at += len(piece) + 1
    expected = sum(brute_force_segments(run) for run in runs)
    bounds = bounds_of(values, 0)
    np.testing.assert_allclose(bounds.upper_segment, expected, rtol=1e-12)
    np.testing.assert_allclose(bounds.upper_distinct, 2 * sum(set(sequence)), rtol=1e-12)
    np.testing.assert_allclose(bounds.simple, 2 * max(sequence))
    np.testing.assert_allclose(bounds.lower, max(sequence))


@pytest.mark.parametrize(
    ("sequence", "proved"),
    [
        ([1, 2, 3], True),
        ([3, 2, 1], True),
        ([0, 1, 3, 2, 0], True),
        ([2, 2, 2], True),
        ([2, 1, 2], False),
        ([0, 1, 0, 1], False),
        ([1, 3, 2, 3], False),
    ],
)
def test_the_simple_bound_is_flagged_unless_it_is_proved(sequence, proved):
    values = xr.DataArray(np.array(sequence, dtype=float)[:, None], dims=["depth", "index"])
    bounds = bounds_of(values, 0)
    assert bool(bounds.simple_is_proved) is proved
    if proved:
        np.testing.assert_allclose(bounds.upper_segment, bounds.simple)


def test_several_orders_are_one_dim_and_above_the_rank_nothing_is_left():
    system = ltv.system(*random_arrays(3, 5, 3, 1, 1, batch=(2,)), batch_dims=["prompt"])
    bounds = ltv.error_bounds(system, [0, 1, 9])
    assert bounds.lower.dims == ("order", "prompt")
    assert bounds.order.values.tolist() == [0, 1, 9]
    assert (bounds.lower.sel(order=9) == 0).all()
    assert (bounds.upper.sel(order=9) <= 1e-10 * ltv.induced_norm(system)).all()
    np.testing.assert_allclose(bounds.lower.sel(order=0), ltv.hankel_norm(system))
    xr.testing.assert_allclose(bounds.sel(order=1, drop=True), ltv.error_bounds(system, 1))


@pytest.mark.parametrize("order", [-1, 1.5, "2", [[1]], True])
def test_bad_orders_are_refused(order):
    system = ltv.system(*random_arrays(0))
    with pytest.raises(ValueError, match="`order` must be whole numbers >= 0"):
        ltv.error_bounds(system, order)


def test_values_that_differ_a_little_are_distinct():
    values = xr.DataArray(np.array([[1.0], [1.0 + 1e-9], [1.0]]), dims=["depth", "index"])
    np.testing.assert_allclose(bounds_of(values, 0).upper_distinct, 4.0)


def test_states_kept_per_depth_are_counted_per_depth():
    values = xr.DataArray([[3.0, 1.0], [5.0, 2.0], [4.0, 0.5]], dims=["depth", "index"])
    kept = xr.DataArray([1, 2, 0], dims=["depth"])
    bounds = bounds_of(values, kept)
    assert bounds.lower == 4.0
    assert bounds.upper_distinct == 2 * (1 + 4 + 0.5)
    assert bounds.upper_segment == 2 * (1 + 4 + 0.5)
    with pytest.raises(ValueError, match="`order` must have the dim depth=3"):
        bounds_of(values, kept[:2])


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_norms_of_tiny_and_huge_systems(scale):
    A, B, C, D = random_arrays(0)
    system, scaled = ltv.system(A, B, C, D), ltv.system(A, scale * B, C, scale * D)
    for norm in (ltv.h2_norm, ltv.induced_norm, ltv.hankel_norm):
        np.testing.assert_allclose(norm(scaled), scale * norm(system), rtol=1e-12)


def test_overflow_is_an_error_and_not_a_certificate():
    A, B, C, D = random_arrays(0)
    system = ltv.system(A, 1e200 * B, 1e200 * C, D)
    for function in (ltv.hankel_singular_values, ltv.induced_norm, ltv.h2_norm, ltv.io_matrix):
        with pytest.raises(np.linalg.LinAlgError, match="`A` must keep all products finite"):
            function(system)
    for function in (lambda s: ltv.error_bounds(s, 1), lambda s: ltv.balanced_basis(s, 1)):
        with pytest.raises(np.linalg.LinAlgError, match="`A` must keep all products finite"):
            function(system)
    grows = ltv.constant(1e10 * np.eye(2), np.ones((2, 1)), np.ones((1, 2)), horizon=60)
    with pytest.raises(np.linalg.LinAlgError, match="reachability factor 32 steps on"):
        ltv.reachability_factors(grows)
