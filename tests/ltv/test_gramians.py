import mpmath
import numpy as np
import pytest
import scipy.linalg
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from depthsys import ltv
from tests.ltv.test_system import random_arrays


def gramian_recursions(A, B, C):
    """P_k and Q_k by their definitions, dense."""
    L, n = len(A), A.shape[1]
    P, Q = [np.zeros((n, n))], [C[L].T @ C[L]]
    for k in range(L):
        P.append(A[k] @ P[-1] @ A[k].T + B[k] @ B[k].T)
    for k in reversed(range(L)):
        Q.insert(0, A[k].T @ Q[0] @ A[k] + C[k].T @ C[k])
    return np.array(P), np.array(Q)


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 5), st.integers(1, 3))
def test_gramians_follow_their_recursions(seed, L, n, m):
    A, B, C, D = random_arrays(seed, L, n, m, p=2)
    P, Q = gramian_recursions(A, B, C)
    system = ltv.system(A, B, C, D)
    np.testing.assert_allclose(ltv.reachability_gramian(system), P, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ltv.observability_gramian(system), Q, rtol=1e-9, atol=1e-9)


def hankel_blocks(system):
    """Inputs before depth k to outputs from depth k on, cut out of the dense io matrix."""
    G = ltv.io_matrix(system).values
    for k in range(1, G.shape[0]):
        yield k, G[k:, :, :k].reshape(G[k:].shape[0] * G.shape[1], -1)


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5), st.integers(1, 3))
def test_hankel_values_are_the_singular_values_of_the_hankel_blocks(seed, L, n, m):
    A, B, C, _ = random_arrays(seed, L, n, m, p=2)
    system = ltv.system(A, B, C)
    values = ltv.hankel_singular_values(system)
    np.testing.assert_array_equal(values[0], 0)
    for k, block in hankel_blocks(system):
        expected = np.zeros(values.sizes["index"])
        singular = np.linalg.svd(block, compute_uv=False)[: len(expected)]
        expected[: len(singular)] = singular
        np.testing.assert_allclose(values[k], expected, rtol=1e-8, atol=1e-10 * singular[0])


def test_small_values_survive_where_dense_gramians_lose_them():
    """16 states, 32 layers, fast decay, against 60-digit arithmetic: 16 of 16 right to 1e-6."""
    rng = np.random.default_rng(0)
    L, n = 32, 16
    grade = 10.0 ** (-0.3 * np.arange(n))
    coupling = 0.3 * 10.0 ** -abs(np.subtract.outer(np.arange(n), np.arange(n)))
    A = coupling * rng.standard_normal((L, n, n)) + 0.6 * np.eye(n)
    B = grade[:, None] * rng.standard_normal((L, n, 4))
    C = grade * rng.standard_normal((L + 1, 4, n))
    T = np.linalg.qr(rng.standard_normal((n, n)))[0]  # hides the grading from dense algebra
    A, B, C = T @ A @ T.T, T @ B, C @ T.T
    values = ltv.hankel_singular_values(ltv.system(A, B, C))
    depth = 16
    with mpmath.workdps(60):
        P, Q = mpmath.zeros(n), mpmath.matrix(C[L].T) * mpmath.matrix(C[L])
        for k in range(depth):
            a, b = mpmath.matrix(A[k]), mpmath.matrix(B[k])
            P = a * P * a.T + b * b.T
        for k in reversed(range(depth, L)):
            a, c = mpmath.matrix(A[k]), mpmath.matrix(C[k])
            Q = a.T * Q * a + c.T * c
        # Cholesky keeps the product symmetric: eigenvalues of R' Q R are the squares
        R = mpmath.cholesky(P)
        squares = mpmath.eigsy(R.T * Q * R, eigvals_only=True)
        exact = np.array([float(mpmath.sqrt(x)) for x in squares])[::-1]
    np.testing.assert_allclose(values[depth], exact, rtol=1e-6)
    assert exact[-1] < 1e-9 * exact[0]
    dense = [g[depth] for g in gramian_recursions(A, B, C)]
    lost = np.sqrt(np.abs(scipy.linalg.eigvals(dense[0] @ dense[1])))
    assert (abs(np.sort(lost)[::-1] / exact - 1) > 0.01).any()


def test_hankel_values_broadcast_and_ignore_padding():
    arrays = random_arrays(1, batch=(3,))
    many = ltv.hankel_singular_values(ltv.system(*arrays, batch_dims=["prompt"]))
    one = ltv.hankel_singular_values(ltv.system(*(a[2] for a in arrays)))
    np.testing.assert_allclose(many.isel(prompt=2), one, rtol=1e-9, atol=1e-12)
    rng = np.random.default_rng(0)
    sizes = [1, 3, 2, 1]
    A = [rng.standard_normal((sizes[k + 1], sizes[k])) for k in range(3)]
    B = [rng.standard_normal((sizes[k + 1], 2)) for k in range(3)]
    C = [rng.standard_normal((2, n)) for n in sizes]
    ragged = ltv.system(A, B, C)
    for k, block in hankel_blocks(ragged):
        singular = np.linalg.svd(block, compute_uv=False)
        values = ltv.hankel_singular_values(ragged)[k].values
        size = min(len(values), len(singular))
        np.testing.assert_allclose(values[:size], singular[:size], atol=1e-10)


def test_terminal_readout_has_rank_one():
    """The fact to keep in view: sigma(k) is the norm of the gains before depth k."""
    A, B, C, _ = random_arrays(0, m=1, p=1)
    C[:-1] = 0
    system = ltv.system(A, B, C)
    values = ltv.hankel_singular_values(system)
    g = ltv.gains(system).values.ravel()
    for k in range(1, 5):
        np.testing.assert_allclose(values[k, 0], np.linalg.norm(g[:k]))
        np.testing.assert_allclose(values[k, 1:], 0, atol=1e-12)


def test_an_initial_factor_is_propagated():
    A, B, C, _ = random_arrays(0)
    X = np.random.default_rng(1).standard_normal((3, 2))
    R = ltv.reachability_factors(ltv.system(A, B, C), xr.DataArray(X, dims=["state", "column"]))
    P = X @ X.T
    for k in range(5):
        np.testing.assert_allclose(R[k].values @ R[k].values.T, P, atol=1e-9)
        if k < 4:
            P = A[k] @ P @ A[k].T + B[k] @ B[k].T
    with pytest.raises(ValueError, match=r"`initial` must have dims {'state': 3, 'column': 'any'}"):
        ltv.reachability_factors(ltv.system(A, B, C), xr.DataArray(X, dims=["column", "state"]))


def test_matrix_free_factors_use_products_only():
    A, B, C, D = random_arrays(1, 4, 5, 2, 2)
    calls = []

    def operator(a, layer):
        def product(kind, matrix):
            def apply(X):
                calls.append((kind, layer, X.shape[1]))
                return matrix @ X

            return apply

        return LinearOperator(
            a.shape, matvec=lambda x: a @ x, rmatvec=lambda x: a.T @ x, dtype=float,
            matmat=product("A", a), rmatmat=product("A'", a.T),
        )  # fmt: skip

    operators = ltv.MatrixFree(A=[operator(a, k) for k, a in enumerate(A)], B=B, C=C, D=D)
    system = ltv.system(A, B, C, D)
    R, S = ltv.reachability_factors(operators), ltv.observability_factors(operators)
    np.testing.assert_allclose(R, ltv.reachability_factors(system), atol=1e-12)
    np.testing.assert_allclose(S, ltv.observability_factors(system), atol=1e-12)
    # one product per layer and direction, never more columns than states
    forwards = [("A", 1, 2), ("A", 2, 4), ("A", 3, 5)]
    backwards = [("A'", 3, 2), ("A'", 2, 4), ("A'", 1, 5), ("A'", 0, 5)]
    assert calls == forwards + backwards
    np.testing.assert_allclose(
        ltv.hankel_singular_values(operators), ltv.hankel_singular_values(system), atol=1e-11
    )
    for function in (ltv.io_matrix, ltv.gains, ltv.h2_norm, ltv.induced_norm, ltv.hankel_norm):
        np.testing.assert_allclose(function(operators), function(system), atol=1e-11)
    np.testing.assert_allclose(
        ltv.error_bounds(operators, 2).upper, ltv.error_bounds(system, 2).upper
    )


def test_matrix_free_sizes_may_vary():
    sizes = [2, 4, 3]
    rng = np.random.default_rng(0)
    A = [rng.standard_normal((sizes[k + 1], sizes[k])) for k in range(2)]
    B = [rng.standard_normal((n, 2)) for n in sizes[1:]]
    C = [rng.standard_normal((2, n)) for n in sizes]
    operators = ltv.MatrixFree([aslinearoperator(a) for a in A], B, C)
    assert operators.order.tolist() == sizes
    ragged = ltv.system(A, B, C)
    np.testing.assert_allclose(
        ltv.hankel_singular_values(operators), ltv.hankel_singular_values(ragged), atol=1e-12
    )
    np.testing.assert_allclose(ltv.io_matrix(operators), ltv.io_matrix(ragged), atol=1e-12)


def test_bad_matrix_free_systems_are_refused():
    A, B, C, D = random_arrays(0)
    with pytest.raises(TypeError, match=r"`A\[1\]` must be a scipy LinearOperator or a matrix"):
        ltv.MatrixFree([A[0], "no"], B, C)
    with pytest.raises(TypeError, match=r"`A\[0\]` must be real"):
        ltv.MatrixFree(list(A * 1j), B, C)
    with pytest.raises(ValueError, match="`A` must hold at least one operator"):
        ltv.MatrixFree([], [], C[:1])
    with pytest.raises(ValueError, match=r"`B` must hold L and `C` L \+ 1 matrices"):
        ltv.MatrixFree(list(A), B, C[:-1])
    with pytest.raises(ValueError, match=r"`B\[2\]` must have shape \(3, 2\); got \(2, 2\)"):
        ltv.MatrixFree(list(A), [B[0], B[1], B[2][:2], B[3]], C)
    with pytest.raises(ValueError, match=r"`C\[0\]` must be a real matrix"):
        ltv.MatrixFree(list(A), B, C[..., 0])
    with pytest.raises(ValueError, match=r"`C\[0\]` must be finite"):
        ltv.MatrixFree(list(A), B, C * np.nan)
    with pytest.raises(ValueError, match="`D` must hold 5 matrices; got 4"):
        ltv.MatrixFree(list(A), B, C, D[:-1])
    with pytest.raises(ValueError, match="`D` must be zero at the last depth"):
        ltv.MatrixFree(list(A), B, C, D + 1)
    endless = LinearOperator((3, 3), matvec=lambda x: np.full(x.shape, np.inf), dtype=float)
    overflow = ltv.MatrixFree([endless] * 4, B, C)
    with pytest.raises(
        np.linalg.LinAlgError, match=r"`A` must keep all products finite; got .* 2 steps on"
    ):
        ltv.reachability_factors(overflow)


def test_invalid_systems_are_refused():
    broken = ltv.system(*random_arrays(0)).drop_vars("C")
    for function in (ltv.reachability_factors, ltv.observability_factors):
        with pytest.raises(ValueError, match="must hold the variable 'C'"):
            function(broken)
