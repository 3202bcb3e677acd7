import functools
import itertools

import numpy as np
import pytest
import scipy.linalg
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

from depthsys import ltv
from tests.ltv.kinds import KINDS, random_system
from tests.ltv.test_system import random_arrays

BASES = [
    ltv.balanced_basis,
    ltv.krylov_basis,
    ltv.arnoldi_basis,
    ltv.pod_basis,
    ltv.adjoint_basis,
    ltv.two_sided_basis,
    ltv.random_basis,
]
every_basis = pytest.mark.parametrize("method", BASES, ids=lambda f: f.__name__)


def rank_of(system, method):
    with pytest.raises(ltv.RankError) as caught:
        method(system, order=10_000)
    assert f"at most the rank, {caught.value.rank}" in str(caught.value)
    return caught.value.rank


def relative_error(system, reduced):
    difference = ltv.io_matrix(system) - ltv.io_matrix(reduced)
    dims = ["depth", "output", "layer", "input"]
    return (np.sqrt((difference**2).sum(dims)) / ltv.h2_norm(system)).values


@every_basis
@pytest.mark.parametrize(
    "kind", [*KINDS[:2], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[2:])]
)
@settings(derandomize=True, max_examples=4, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 2),
    st.integers(1, 2),
)
def test_biorthogonal_and_exact_at_full_rank(method, kind, seed, L, n, m, p):
    system = ltv.system(*random_system(kind, seed, 3, L, n, m, p), batch_dims=["case"])
    rank = rank_of(system, method)
    for order in {1, rank}:
        basis = method(system, order=order)
        product = np.einsum("...kfi,...kfj->...kij", basis.W, basis.V)
        used = np.arange(order) < basis.order.values[..., None]
        identity = np.eye(order) * used[..., None, :]
        np.testing.assert_allclose(product, identity, atol=1e-7)
        assert basis.order.max() == order
        assert basis.attrs["method"] == method.__name__.removesuffix("_basis")
    assert (relative_error(system, ltv.project(system, basis)) < 1e-9).all()


def subspace_gap(X, Y):
    """Sine of the largest angle between two spans of the same size."""
    return np.sin(scipy.linalg.subspace_angles(X, Y)[0])


def used_columns(basis, name, k):
    return basis[name].values[k][:, : int(basis.order[k])]


def test_krylov_holds_the_most_recent_injections_first():
    """The defining property: V_k spans [start, B_{k-1}, A_{k-1} B_{k-2}, ...], in that order."""
    A, B, C, _ = random_arrays(1, 6, 8, 2, 1)
    start = np.random.default_rng(0).standard_normal((7, 8))
    system = ltv.system(A, B, C)
    for given_start in (None, xr.DataArray(start, dims=["depth", "state"])):
        for order in (1, 3, 8):
            basis = ltv.krylov_basis(system, order=order, start=given_start)
            for k in range(7):
                columns, phi = [] if given_start is None else [start[k][:, None]], np.eye(8)
                for j in reversed(range(k)):
                    columns.append(phi @ B[j])
                    phi = phi @ A[j]
                found = used_columns(basis, "V", k)
                if not columns:
                    assert found.shape[1] == 0
                    continue
                expected = np.hstack(columns)[:, :order]
                assert found.shape[1] == expected.shape[1]
                for r in range(1, found.shape[1] + 1):
                    assert subspace_gap(found[:, :r], expected[:, :r]) < 1e-7


def test_arnoldi_holds_powers_of_the_frozen_layer():
    A, B, C, _ = random_arrays(2, 4, 6, 1, 1)
    start = np.random.default_rng(0).standard_normal((5, 6))
    system = ltv.system(A, B, C)
    for given_start in (None, xr.DataArray(start, dims=["depth", "state"])):
        basis = ltv.arnoldi_basis(system, order=4, start=given_start)
        for k in range(5):
            if given_start is None and k == 0:
                assert basis.order[0] == 0
                continue
            first = B[k - 1][:, 0] if given_start is None else start[k]
            a = A[min(k, 3)]
            powers = np.stack([np.linalg.matrix_power(a, i) @ first for i in range(4)], axis=1)
            found = used_columns(basis, "V", k)
            for r in range(1, 5):
                assert subspace_gap(found[:, :r], powers[:, :r]) < 1e-8


def test_arnoldi_of_several_inputs_is_the_block_krylov_space():
    A, B, C, _ = random_arrays(2, 3, 7, 2, 1)
    basis = ltv.arnoldi_basis(ltv.system(A, B, C), order=6)
    for k in (1, 2, 3):
        a, b = A[min(k, 2)], B[k - 1]
        assert subspace_gap(used_columns(basis, "V", k), np.hstack([b, a @ b, a @ a @ b])) < 1e-8


def test_pod_of_impulses_is_the_eigenbasis_of_the_gramian_and_of_snapshots_their_svd():
    A, B, C, _ = random_arrays(3, 6, 5, 2, 1)
    system = ltv.system(A, B, C)
    basis = ltv.pod_basis(system, order=2)
    P = ltv.reachability_gramian(system).values
    for k in range(2, 7):
        assert subspace_gap(used_columns(basis, "V", k), np.linalg.eigh(P[k])[1][:, -2:]) < 1e-7
    u = xr.DataArray(
        np.random.default_rng(0).standard_normal((9, 6, 2)), dims=["sample", "layer", "input"]
    )
    x = ltv.simulate(system, u).x
    recorded = ltv.pod_basis(system, order=2, snapshots=x)
    for k in range(2, 7):
        left = np.linalg.svd(x.isel(depth=k).transpose("state", "sample").values)[0][:, :2]
        assert subspace_gap(used_columns(recorded, "V", k), left) < 1e-7


def test_adjoint_sees_what_the_outputs_see():
    A, B, C, _ = random_arrays(4, 5, 6, 1, 2)
    system = ltv.system(A, B, C)
    Q = ltv.observability_gramian(system).values
    basis = ltv.adjoint_basis(system, order=3)
    first = xr.DataArray(np.eye(6)[:2].T[None].repeat(6, 0), dims=["depth", "state", "column"])
    with_start = ltv.adjoint_basis(system, order=4, start=first)
    for k in range(4):
        leading = np.linalg.eigh(Q[k])[1][:, ::-1]
        assert subspace_gap(used_columns(basis, "V", k), leading[:, :3]) < 1e-7
        together = np.hstack([np.eye(6)[:, :2], leading[:, :2]])
        assert subspace_gap(used_columns(with_start, "V", k), together) < 1e-7


def test_two_sided_spans_the_dominant_reachable_and_observable_parts():
    A, B, C, _ = random_arrays(5, 7, 6, 2, 2)
    system = ltv.system(A, B, C)
    P, Q = ltv.reachability_gramian(system).values, ltv.observability_gramian(system).values
    basis = ltv.two_sided_basis(system, order=2)
    for k in range(2, 6):
        for name, G in (("V", P), ("W", Q)):
            leading = np.linalg.eigh(G[k])[1][:, -2:]
            assert subspace_gap(used_columns(basis, name, k), leading) < 1e-7


def test_balanced_states_have_equal_and_diagonal_gramians():
    """The defining property: both Gramians of the balanced system are the Hankel values."""
    A, B, C, _ = random_arrays(6, 8, 4, 2, 2)
    system = ltv.system(A, B, C)
    values = ltv.hankel_singular_values(system)
    small = ltv.project(system, ltv.balanced_basis(system, order=4))
    for gramian in (ltv.reachability_gramian(small), ltv.observability_gramian(small)):
        for k in range(2, 7):
            np.testing.assert_allclose(gramian[k], np.diag(values[k]), atol=1e-10 * values.max())


def test_random_is_reproducible_nested_and_stays_in_the_states_that_exist():
    system = ltv.system(*random_arrays(0, 4, 5))
    first, again = (ltv.random_basis(system, order=3, seed=1) for _ in range(2))
    xr.testing.assert_identical(first, again)
    assert not np.allclose(first.V, ltv.random_basis(system, order=3, seed=2).V)
    smaller = ltv.random_basis(system, order=2, seed=1)
    np.testing.assert_allclose(smaller.V, first.V[..., :2], atol=1e-14)
    sizes = [1, 3, 2, 1]
    rng = np.random.default_rng(0)
    ragged = ltv.system(
        [rng.standard_normal((sizes[k + 1], sizes[k])) for k in range(3)],
        [rng.standard_normal((sizes[k + 1], 2)) for k in range(3)],
        [rng.standard_normal((2, n)) for n in sizes],
    )
    basis = ltv.random_basis(ragged, order=3)
    assert basis.order.values.tolist() == sizes
    assert relative_error(ragged, ltv.project(ragged, basis)) < 1e-12


@every_basis
def test_a_batch_is_its_members(method):
    arrays = random_system("independent", 0, 4, L=6, n=4, m=1, p=2)
    arrays[1][2, 0] = 0.0  # one member with a lower rank at the first depths
    batch = ltv.system(*arrays, batch_dims=["case"])
    basis = method(batch, order=3)
    together = relative_error(batch, ltv.project(batch, basis))
    for i in range(4):
        one = batch.isel(case=i)
        alone = method(one, order=3)
        np.testing.assert_array_equal(basis.order[i], alone.order)
        np.testing.assert_allclose(
            together[i], relative_error(one, ltv.project(one, alone)), rtol=1e-6
        )


@every_basis
def test_a_large_batch_runs_in_parts_and_is_the_same(method, monkeypatch):
    arrays = random_system("slowly varying", 0, 23, L=6, n=3, m=1, p=1)
    arrays[1][15:, 1:] = 0.0  # the last parts have a lower rank than the first
    system = ltv.system(*(a[None] for a in arrays), batch_dims=["task", "case"])
    system = system.assign(C=system.C.isel(task=0, case=0))  # C is shared by the batch
    whole = ltv.project(system, method(system, order=3))
    monkeypatch.setattr("depthsys.ltv.matrix_free.PART", 5)
    parts = ltv.project(system, method(system, order=3))
    np.testing.assert_allclose(ltv.io_matrix(parts), ltv.io_matrix(whole), atol=1e-10)
    np.testing.assert_array_equal(parts.order, whole.order)
    assert parts.A.dims == whole.A.dims
    for function in (ltv.io_matrix, ltv.hankel_singular_values, ltv.h2_norm, ltv.gains):
        found = function(system)
        monkeypatch.setattr("depthsys.ltv.matrix_free.PART", 5000)
        xr.testing.assert_allclose(found, function(system))
        monkeypatch.setattr("depthsys.ltv.matrix_free.PART", 5)


@every_basis
def test_tolerance_gives_the_smallest_order_that_meets_it(method):
    system = ltv.system(
        *random_system("slowly varying", 3, 2, L=8, n=6, m=2, p=2)[:3], batch_dims=["case"]
    )
    exact = ltv.io_matrix(system)
    norm = ltv.induced_norm(system).values

    def error(order):
        small = ltv.project(system, method(system, order=order))
        difference = (exact - ltv.io_matrix(small)).values.reshape(2, 18, 16)
        return np.linalg.norm(difference, 2, axis=(1, 2)) / norm

    rank = rank_of(system, method)
    errors = np.array([error(r).max() for r in range(1, rank + 1)])
    for tolerance in (0.5, 0.05, 1e-9):
        basis = method(system, tolerance=tolerance)
        expected = int(np.argmax(errors <= tolerance)) + 1
        assert basis.sizes["state"] == expected
        assert basis.attrs["order"] == expected
        assert basis.attrs["tolerance"] == tolerance
        np.testing.assert_allclose(basis.V, method(system, order=expected).V, atol=1e-12)
    with pytest.raises(ValueError, match=r"`tolerance` must be reachable; got 1\.0e-25"):
        method(system, tolerance=1e-25)


@every_basis
def test_matrix_free_is_the_same_without_matrices(method):
    A, B, C, D = random_arrays(1, 5, 6, 2, 2)
    operators = ltv.MatrixFree(A=[aslinearoperator(a) for a in A], B=B, C=C, D=D)
    system = ltv.system(A, B, C, D)
    small = ltv.project(operators, method(operators, order=3))
    dense = ltv.project(system, method(system, order=3))
    np.testing.assert_allclose(ltv.io_matrix(small), ltv.io_matrix(dense), atol=1e-9)
    assert small.sizes["state"] == 3
    assert small.attrs["schema_version"] == ltv.SCHEMA_VERSION


def test_dependent_columns_are_left_out_member_by_member():
    """In one member the second input repeats the first: it has one direction fewer."""
    A, B, C, _ = random_arrays(0, 3, 5, 2, 1, batch=(2,))
    B[1, :, :, 1] = 2 * B[1, :, :, 0]
    system = ltv.system(A, B, C, batch_dims=["case"])
    assert ltv.krylov_basis(system, order=5).order.values.tolist() == [[0, 2, 4, 5], [0, 1, 2, 3]]
    basis = ltv.krylov_basis(system, order=5)
    assert (relative_error(system, ltv.project(system, basis)) < 1e-12).all()
    one = ltv.krylov_basis(system.isel(case=1), order=3)
    np.testing.assert_allclose(abs(basis.V[1, ..., :3]), abs(one.V), atol=1e-10)


def test_a_terminal_readout_needs_one_state():
    A, B, C, _ = random_arrays(0, m=1, p=1)
    C[:-1] = 0
    system = ltv.system(A, B, C)
    assert rank_of(system, ltv.balanced_basis) == 1
    small = ltv.project(system, ltv.balanced_basis(system, order=1))
    np.testing.assert_allclose(ltv.gains(small), ltv.gains(system), rtol=1e-10)


def test_projecting_twice_composes_the_bases_and_keeps_what_is_known():
    A, B, C, D = random_arrays(1, 4, 6, 1, 2)
    system = ltv.system(A, B, C, D, attrs={"model": "none"})
    system["x_ref"] = (("depth", "state"), np.arange(30.0).reshape(5, 6))
    system["y_ref"] = (("depth", "output"), np.ones((5, 2)))
    system["v"] = (("depth", "feature", "input"), np.ones((5, 6, 1)))
    system["gain_full"] = ("layer", np.ones(4))
    first_basis = ltv.pod_basis(system, order=4)
    first = ltv.project(system, first_basis)
    second = ltv.project(first, ltv.balanced_basis(first, order=2))
    directly = system.drop_vars(["v", "x_ref"])
    product = np.einsum("kfi,kfj->kij", second.W, second.V)
    used = np.arange(2) < second.order.values[:, None]
    np.testing.assert_allclose(product, np.eye(2) * used[:, None], atol=1e-10)
    basis = xr.Dataset({"V": second.V, "W": second.W}).assign_coords(order=second.order)
    np.testing.assert_allclose(
        ltv.io_matrix(ltv.project(directly, basis)), ltv.io_matrix(second), atol=1e-10
    )
    np.testing.assert_allclose(
        second.x_ref, np.einsum("kfi,kf->ki", second.W, system.x_ref), atol=1e-10
    )
    for name in ("y_ref", "v", "gain_full"):
        np.testing.assert_array_equal(second[name], system[name])
    assert second.attrs["model"] == "none"
    assert second.attrs["method"] == "balanced"
    assert second.attrs["order"] == 2


def test_one_basis_serves_a_batch_and_many_bases_one_system():
    arrays = random_arrays(0, 4, 5, 1, 2, batch=(3,))
    batch = ltv.system(*arrays, batch_dims=["prompt"])
    shared = ltv.pod_basis(batch.isel(prompt=0), order=2)
    small = ltv.project(batch, shared)
    expected = ltv.project(batch.isel(prompt=2), shared)
    np.testing.assert_allclose(small.A.isel(prompt=2), expected.A, atol=1e-12)
    many = ltv.project(batch.isel(prompt=0), ltv.pod_basis(batch, order=2))
    assert many.A.dims == ("prompt", "layer", "state_next", "state")
    np.testing.assert_allclose(
        ltv.io_matrix(many).isel(prompt=0), ltv.io_matrix(expected_of(batch)), atol=1e-10
    )


def expected_of(batch):
    one = batch.isel(prompt=0)
    return ltv.project(one, ltv.pod_basis(one, order=2))


@every_basis
def test_bad_orders_and_tolerances_are_refused(method):
    system = ltv.system(*random_arrays(0))
    for order in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="`order` must be a whole number >= 1"):
            method(system, order=order)
    for tolerance in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="`tolerance` must be a number > 0"):
            method(system, tolerance=tolerance)
    for arguments in ({}, {"order": 1, "tolerance": 0.1}):
        with pytest.raises(TypeError, match="exactly one of `order` and `tolerance`"):
            method(system, **arguments)
    for rtol in (0.0, 1.0, -1e-3):
        with pytest.raises(ValueError, match="`rtol` must be between 0 and 1"):
            method(system, order=1, rtol=rtol)
    with pytest.raises(ltv.RankError, match=r"`order` must be at most the rank, 3 .*got 4"):
        method(system, order=4)


def test_bad_starts_snapshots_and_bases_are_refused():
    system = ltv.system(*random_arrays(0))
    bad = xr.DataArray(np.ones((4, 3)), dims=["depth", "state"])
    for method in (ltv.krylov_basis, ltv.arnoldi_basis, ltv.adjoint_basis, ltv.random_basis):
        with pytest.raises(
            ValueError, match=r"`start` must have dims .*'depth': 5.* got .*'depth': 4"
        ):
            method(system, order=1, start=bad)
    runs = xr.DataArray(np.ones((2, 5, 3)), dims=["run", "depth", "state"])
    with pytest.raises(ValueError, match=r"`snapshots` must have dims .*'sample'.*got .*'run'"):
        ltv.pod_basis(system, order=1, snapshots=runs)
    later = xr.DataArray(np.ones((5, 3)), dims=["depth", "state"], coords={"depth": range(1, 6)})
    with pytest.raises(
        ValueError, match=r"`start` must have the labels of the system along .depth., \[0 1 2 3 4\]"
    ):
        ltv.krylov_basis(system, order=1, start=later)
    with pytest.raises(TypeError, match="`start` must be real"):
        ltv.krylov_basis(system, order=1, start=1j * np.ones((5, 3)))
    nan = xr.DataArray(np.full((5, 3, 2), np.nan), dims=["depth", "state", "sample"])
    with pytest.raises(ValueError, match="`snapshots` must be finite"):
        ltv.pod_basis(system, order=1, snapshots=nan)
    ragged = ltv.system([np.ones((2, 1))], [np.ones((2, 1))], [np.ones((1, 1)), np.ones((1, 2))])
    with pytest.raises(ValueError, match="one state size to take powers"):
        ltv.arnoldi_basis(ragged, order=1)
    basis = ltv.balanced_basis(system, order=2)
    with pytest.raises(ValueError, match="`basis` must be a Dataset with V and W; got ndarray"):
        ltv.project(system, np.ones(3))
    with pytest.raises(ValueError, match=r"`basis` must have V with dims .*'depth': 5"):
        ltv.project(system, basis.isel(depth=slice(4)))
    with pytest.raises(
        ValueError, match=r"`basis` must satisfy W_k' V_k = I; got a deviation of 1\.0e"
    ):
        ltv.project(system, basis.assign(W=2 * basis.W))
    with pytest.raises(ValueError, match="`basis` must be finite"):
        ltv.project(system, basis.assign(V=basis.V * np.nan))


def test_compare_says_what_it_measured():
    A, B, C, D = random_arrays(0, 10, 6, 1, 2, batch=(2,))
    system = ltv.system(0.5 * A, B, C, D, batch_dims=["task"])
    table = ltv.compare(system, [1, 2, 9], [ltv.balanced_basis, ltv.krylov_basis])
    assert table.error.dims == ("task", "basis", "order")
    assert table.basis.values.tolist() == ["balanced", "krylov"]
    full = ltv.io_matrix(system).values.reshape(2, 22, 10)
    for method, name in ((ltv.balanced_basis, "balanced"), (ltv.krylov_basis, "krylov")):
        small = ltv.project(system, method(system, order=2))
        E = full - ltv.io_matrix(small).values.reshape(2, 22, 10)
        row = table.sel(basis=name, order=2)
        np.testing.assert_allclose(row.error, np.linalg.norm(E, 2, axis=(1, 2)))
        np.testing.assert_allclose(row.h2_error, np.sqrt((E**2).sum((1, 2))))
        np.testing.assert_allclose(row.terminal_error, np.sqrt((E[:, -2:] ** 2).sum((1, 2))))
        np.testing.assert_allclose(row.ratio, row.error / row.lower)
    bounds = ltv.error_bounds(system, [1, 2, 9])
    np.testing.assert_allclose(table.lower, bounds.lower.T)
    np.testing.assert_allclose(table.upper.sel(basis="balanced"), bounds.upper.T)
    assert table.upper.sel(basis="krylov").isnull().all()
    np.testing.assert_allclose(table.norm, ltv.induced_norm(system))
    np.testing.assert_allclose(table.h2_norm, ltv.h2_norm(system))
    np.testing.assert_allclose(
        table.terminal_norm, np.sqrt((ltv.gains(system) ** 2).sum(["layer", "output", "input"]))
    )
    # beyond the rank nothing changes, and a ratio to a bound of zero means nothing
    assert table.states.sel(order=9).values.tolist() == [6, 6]
    assert (table.error.sel(order=9) < 1e-12 * table.norm).all()
    assert table.ratio.sel(order=9).isnull().all()
    assert (table.seconds > 0).all()


def test_compare_takes_settings_by_name_and_refuses_nonsense():
    system = ltv.system(*random_arrays(0))
    seeded = {f"random {i}": functools.partial(ltv.random_basis, seed=i) for i in range(2)}
    table = ltv.compare(system, [1], seeded)
    assert table.basis.values.tolist() == ["random 0", "random 1"]
    assert table.error[0] != table.error[1]
    for orders in ([], [0], [2, 1], [1, 1], [1.5]):
        with pytest.raises(ValueError, match="`orders` must be rising whole numbers"):
            ltv.compare(system, orders, [ltv.pod_basis])
    with pytest.raises(ValueError, match="`methods` must have different names"):
        ltv.compare(system, [1], [ltv.pod_basis, ltv.pod_basis])
    for methods in ([], ["balanced"]):
        with pytest.raises(TypeError, match="`methods` must hold functions"):
            ltv.compare(system, [1], methods)


def test_compare_certifies_what_was_kept_and_nothing_else():
    """A coarse rtol keeps fewer states than the order: the bound is that of those kept."""
    system = ltv.system(*random_system("slowly varying", 1, 20, L=10, n=5), batch_dims=["case"])
    coarse = functools.partial(ltv.balanced_basis, rtol=0.3)
    elsewhere = ltv.system(*random_system("independent", 2, 20, L=10, n=5), batch_dims=["case"])
    methods = {
        "balanced": ltv.balanced_basis,
        "coarse": coarse,
        "of another system": lambda _, order: ltv.balanced_basis(elsewhere, order=order),
    }
    table = ltv.compare(system, [3], methods).isel(order=0)
    assert (table.states <= 3).all()
    for name in ("balanced", "coarse"):
        row = table.sel(basis=name)
        assert (row.error <= row.upper + row.resolution).all()
    # the bound of order 3 would be violated
    bounds = ltv.error_bounds(system, 3)
    assert (table.error.sel(basis="coarse") > bounds.upper).any()
    np.testing.assert_allclose(table.upper.sel(basis="balanced"), bounds.upper, rtol=1e-9)
    assert table.upper.sel(basis="of another system").isnull().all()


def heat(n):
    """Implicit Euler for the heat equation: Hankel values fall to rounding within a few states."""
    lap = -2 * np.eye(n) + np.eye(n, k=1) + np.eye(n, k=-1)
    A = np.linalg.inv(np.eye(n) - 0.5 * lap)
    return ltv.constant(A, np.eye(n)[:, [3]], np.eye(n)[[6]], horizon=30)


@pytest.mark.parametrize("n", [10, *(pytest.param(n, marks=pytest.mark.slow) for n in (20, 30))])
def test_fast_decay_is_reduced_at_every_order_and_tolerance(n):
    system = heat(n)
    rank = rank_of(system, ltv.balanced_basis)
    table = ltv.compare(system, [*range(1, rank + 3)], [ltv.balanced_basis, ltv.two_sided_basis])
    row = table.sel(basis="balanced")
    assert (row.error <= row.upper + row.resolution).all()
    assert (row.lower <= row.error + row.resolution).all()
    for tolerance in (0.5, 1e-3, 1e-8, 1e-11):
        basis = ltv.balanced_basis(system, tolerance=tolerance)
        assert float(basis.order.max()) == basis.attrs["order"] <= rank
    for k in range(31):
        V, W = (used_columns(basis, name, k) for name in "VW")
        np.testing.assert_allclose(W.T @ V, np.eye(V.shape[1]), atol=1e-9)


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_certificates_hold_to_the_stated_rounding_beside_large_unseen_states(count):
    """One state that is reached and not seen, one that is seen and not reached, both huge."""
    rng = np.random.default_rng(0)
    for size in (1e2, 1e4, 1e6):
        for _ in range(count):
            A, b, c = np.diag([0.5, 0.9, 0.8]), np.array([[1], [size], [0]]), np.array([1, 0, size])
            Q = np.linalg.qr(rng.standard_normal((3, 3)))[0]
            system = ltv.constant(Q @ A @ Q.T, Q @ b, c[None] @ Q.T, horizon=6)
            row = ltv.compare(system, [1, 2, 3], [ltv.balanced_basis]).isel(basis=0)
            # double precision alone would be off by 1e-16 size^2
            assert row.resolution < 1e-9 * row.norm
            assert (row.lower <= row.error + row.resolution_of_error).all()
            # V and W of 1e6 cannot be multiplied to more than 1e-4: nothing is claimed of the model
            if size < 1e6 or row.upper.notnull().any():
                assert (row.error <= row.upper + row.resolution_of_error).all()
            else:
                assert "rounding explains" in ltv.balanced_basis(system, 1).attrs["certified"]
            assert (row.error[0] < row.resolution) or row.lower[0] > 0


@every_basis
@pytest.mark.parametrize("sizes", [[2, 5, 3, 6, 4], [1, 4, 1, 4, 1]])
def test_matrix_free_systems_whose_state_size_varies(method, sizes):
    if method is ltv.arnoldi_basis:
        return  # needs one size
    rng = np.random.default_rng(0)
    A = [rng.standard_normal((b, a)) for a, b in itertools.pairwise(sizes)]
    B = [rng.standard_normal((n, 2)) for n in sizes[1:]]
    C = [rng.standard_normal((2, n)) for n in sizes]
    free = ltv.MatrixFree([aslinearoperator(a) for a in A], B, C)
    ragged = ltv.system(A, B, C)
    table = ltv.compare(free, [1, 2], [method])
    xr.testing.assert_allclose(
        table.drop_vars("seconds"),
        ltv.compare(ragged, [1, 2], [method]).drop_vars("seconds"),
        rtol=1e-6,
    )
    assert (
        relative_error(ragged, ltv.project(free, method(free, order=table.states.item(1)))) < 9
    ).all()


def test_systems_that_connect_nothing_say_so():
    A, B, C, D = random_arrays(0)
    system = ltv.system(A, 0 * B, C, D)
    with pytest.raises(ValueError, match=r"must connect some input to some output; got rank 0"):
        ltv.compare(system, [1], [ltv.balanced_basis])
    with pytest.raises(ValueError, match=r"must connect some input to some output; got rank 0"):
        ltv.balanced_basis(system, tolerance=0.1)
    with pytest.raises(TypeError, match="`methods` must be a list of functions or a mapping"):
        ltv.compare(system, [1], ltv.balanced_basis)


def test_a_basis_needs_v_and_w_only_and_must_be_biorthogonal():
    system = ltv.system(*random_arrays(0, n=5))
    basis = ltv.balanced_basis(system, order=3)
    bare = ltv.project(system, basis[["V", "W"]].drop_vars("order"))
    np.testing.assert_array_equal(bare.order, basis.order)
    skewed = basis.assign(W=basis.W * (1 + 1e-4))
    with pytest.raises(ValueError, match=r"deviation of 1\.0e-04"):
        ltv.project(system, skewed)
    cut = ltv.balanced_basis(system, tolerance=0.3)
    assert cut.order.max() == cut.sizes["state"] == cut.attrs["order"]


def test_integers_and_single_precision_are_computed_in_double():
    A, B, C, D = random_arrays(0, 40, 2, 1, 1)
    system = ltv.system(np.full((40, 2, 2), 3), np.ones((40, 2, 1)), np.ones((41, 1, 2)))
    whole = ltv.io_matrix(system.astype("int64"))
    np.testing.assert_allclose(whole, ltv.io_matrix(system))
    single = ltv.system(A, B, C, D).astype(np.float32)
    for function in (ltv.io_matrix, ltv.gains, ltv.hankel_singular_values):
        np.testing.assert_array_equal(function(single), function(single.astype(np.float64)))


def test_results_do_not_share_memory_with_the_system():
    system = ltv.system(*random_arrays(0))
    for made in (ltv.window(system, 1, 4), ltv.concatenate([system])):
        assert not any(np.shares_memory(made[name], system[name]) for name in "ABCD")
    bounds = ltv.error_bounds(system, 9)
    before = float(bounds.upper)
    bounds.lower[...] = 7.0
    assert bounds.upper == before != 7.0
    ltv.transition(system, 1, 1)[0, 0] = 5.0
    ltv.minimum_energy(system, [1.0, 0.0]).gain_rank[...] = 5


def test_arnoldi_goes_on_until_every_member_has_its_order():
    """In one member the second input repeats the first, so its block starts with one column."""
    A, B, C, _ = random_arrays(0, 3, 6, 2, 1, batch=(2,))
    B[0, :, :, 1] = 2 * B[0, :, :, 0]
    basis = ltv.arnoldi_basis(ltv.system(A, B, C, batch_dims=["case"]), order=4)
    assert basis.order.values.tolist() == [[0, 4, 4, 4]] * 2
