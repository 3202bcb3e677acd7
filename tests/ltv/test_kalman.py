import control
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from depthsys import ltv
from tests.ltv.test_lqr import ragged
from tests.ltv.test_system import random_arrays


def noises(rng, L, q, p):
    """QN (layer), RN (depth), NN (layer) of a semidefinite joint covariance, and P0 (3 x 3)."""
    F = rng.standard_normal((L + 1, q + p, q + p))
    J = F @ F.swapaxes(1, 2) + 0.05 * np.eye(q + p)
    t = rng.standard_normal((3, 3))
    return J[:-1, :q, :q], J[:, q:, q:], J[:-1, :q, q:], t @ t.T


def joint_gaussian(A, C, G, QN, RN, NN, P0):
    """Covariance of (x_0..x_L, y_0..y_L), from the noises that they are linear maps of."""
    L, n, p, q = len(A), len(P0), C.shape[1], G.shape[-1]
    size = n + L * q + (L + 1) * p  # of (x_0, w_0.., v_0..)
    sigma = np.zeros((size, size))
    sigma[:n, :n] = P0
    for k in range(L + 1):
        v = slice(n + L * q + k * p, n + L * q + (k + 1) * p)
        sigma[v, v] = RN[k]
        if k < L:
            w = slice(n + k * q, n + (k + 1) * q)
            sigma[w, w], sigma[w, v], sigma[v, w] = QN[k], NN[k], NN[k].T
    x, xs, ys = np.eye(n, size), [], []
    for k in range(L + 1):
        y = C[k] @ x
        y[:, n + L * q + k * p : n + L * q + (k + 1) * p] += np.eye(p)
        xs.append(x)
        ys.append(y)
        if k < L:
            x = A[k] @ x
            x[:, n + k * q : n + (k + 1) * q] += G[k]
    maps = np.vstack([*xs, *ys])
    return maps @ sigma @ maps.T


def conditional(sigma, of, on, values):
    """Mean and covariance of some entries of a Gaussian, given others."""
    if not on:
        return np.zeros(len(of)), sigma[np.ix_(of, of)]
    gain = np.linalg.solve(sigma[np.ix_(on, on)], sigma[np.ix_(on, of)]).T
    return gain @ values, sigma[np.ix_(of, of)] - gain @ sigma[np.ix_(on, of)]


@settings(derandomize=True, max_examples=13, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.booleans())
def test_against_conditional_expectations(seed, L, cross):
    n, m, p, q = 3, 2, 2, 2
    A, B, C, D = random_arrays(seed, L, n, m, p)
    rng = np.random.default_rng(seed)
    QN, RN, NN, P0 = noises(rng, L, q, p)
    NN = NN if cross else 0 * NN
    G = rng.standard_normal((L, n, q))
    system = ltv.system(A, B, C, D)
    gains = ltv.lqe(system, QN, RN, P0, G=G, NN=NN if cross else None)
    sigma = joint_gaussian(A, C, G, QN, RN, NN, P0)
    u, x0, noise = (
        rng.standard_normal((L, m)),
        rng.standard_normal(n),
        rng.standard_normal((L + 1, p)),
    )
    known = ltv.simulate(system, u, x0)
    y = known.y.values + noise
    seen = ltv.kalman_filter(system, gains, y, u, x0)
    for k in range(L + 1):
        of = list(range(k * n, (k + 1) * n))
        for last, mean, P in (
            (k, seen.x_predicted, gains.P),
            (k + 1, seen.x_filtered, gains.P_filtered),
        ):
            on = [(L + 1) * n + i for i in range(last * p)]
            shift, covariance = conditional(sigma, of, on, noise[:last].ravel())
            np.testing.assert_allclose(
                mean[k], known.x[k] + shift, rtol=1e-6, atol=1e-6 * (1 + np.abs(shift).max())
            )
            np.testing.assert_allclose(
                P[k], covariance, rtol=1e-6, atol=1e-6 * np.abs(covariance).max()
            )
    np.testing.assert_array_equal(gains.P[0], P0)
    np.testing.assert_allclose(
        seen.innovation[0], y[0] - C[0] @ x0 - D[0] @ u[0], rtol=1e-9, atol=1e-9
    )


def test_a_long_constant_horizon_is_dlqe():
    rng = np.random.default_rng(0)
    A, C, G = (rng.standard_normal(s) for s in [(4, 4), (2, 4), (4, 3)])
    assert np.abs(np.linalg.eigvals(A)).max() > 1
    QN, RN = np.diag([1.0, 2.0, 0.5]), np.array([[2.0, 0.5], [0.5, 1.0]])
    system = ltv.constant(A, np.zeros((4, 1)), C, horizon=120)
    gains = ltv.lqe(system, QN, RN, G=G)
    L, P, _ = control.dlqe(A, G, C, QN, RN)
    np.testing.assert_allclose(gains.L[-1], L, rtol=1e-8)
    np.testing.assert_allclose(gains.P[-1], P, rtol=1e-8)
    # without correlation the predictor is the filter, one layer on
    np.testing.assert_allclose(gains.L[5], A @ gains.M[5].values, rtol=1e-9)


def test_it_is_the_regulator_of_the_transposed_system_run_backwards():
    A, _, C, _ = random_arrays(3, n_layers=5)
    rng = np.random.default_rng(0)
    F, H, T = (rng.standard_normal(s) for s in [(3, 3), (2, 2), (3, 3)])
    QN, RN, P0 = F @ F.T, H @ H.T, T @ T.T
    gains = ltv.lqe(ltv.system(A, np.zeros((5, 3, 1)), C), QN, RN, P0)
    dual = ltv.system([a.T for a in A[::-1]], [c.T for c in C[-2::-1]], np.zeros((6, 1, 3)))
    law = ltv.lqr(dual, QN, RN, P0)
    np.testing.assert_allclose(gains.L.values, law.K.values[::-1].swapaxes(1, 2), rtol=1e-9)
    np.testing.assert_allclose(gains.P.values, law.P.values[::-1], rtol=1e-9)


def test_noise_on_the_inputs_and_batches_and_labels():
    arrays = random_arrays(4, batch=(2,))
    names = {"state": list("pqr"), "state_next": list("pqr"), "output": ["t", "h"]}
    system = ltv.system(*arrays, batch_dims=["prompt"]).assign_coords(
        prompt=["x", "y"], input=["a", "b"], **names
    )
    QN = xr.DataArray(
        np.diag([1.0, 3.0]),
        dims=["input", "input_2"],
        coords={key: ["a", "b"] for key in ["input", "input_2"]},
    )
    RN = xr.DataArray(
        np.diag([1.0, 2.0]),
        dims=["output", "output_2"],
        coords={key: ["t", "h"] for key in ["output", "output_2"]},
    )
    P0 = xr.DataArray(
        np.diag([1.0, 2.0, 3.0]),
        dims=["state", "state_2"],
        coords={key: list("pqr") for key in ["state", "state_2"]},
    )
    right = ltv.lqe(system, QN, RN, P0, G=system.B)
    turned = ltv.lqe(
        system,
        QN.isel(input=[1, 0]),
        RN.isel(output_2=[1, 0]),
        P0.isel(state=[2, 0, 1]),
        G=system.B,
    )
    xr.testing.assert_allclose(turned, right, rtol=1e-10)
    assert right.L.dims == ("prompt", "layer", "state_next", "output")
    assert right.M.state.values.tolist() == right.P.state_2.values.tolist() == list("pqr")
    for i in range(2):
        one = ltv.lqe(
            ltv.system(*(a[i] for a in arrays)), QN.values, RN.values, P0.values, G=arrays[1][i]
        )
        for name in one:
            np.testing.assert_allclose(right[name][i], one[name], rtol=1e-9, atol=1e-12)
    y = xr.DataArray(
        np.random.default_rng(0).standard_normal((5, 2)),
        dims=["depth", "output"],
        coords={"output": ["t", "h"]},
    )
    seen = ltv.kalman_filter(system, right, y)
    same = ltv.kalman_filter(system, right.isel(state=[1, 0, 2]), y.isel(output=[1, 0]))
    xr.testing.assert_allclose(seen, same, rtol=1e-12)
    assert seen.x_filtered.state.values.tolist() == list("pqr")
    with pytest.raises(ValueError, match="`RN` must have the labels of the system along 'output'"):
        ltv.lqe(system, QN, RN.assign_coords(output=["t", "z"]), G=system.B)
    with pytest.raises(ValueError, match=r"`QN` must have the labels of the system along 'noise'"):
        ltv.lqe(system, QN.assign_coords(input=["a", "c"]), RN, G=system.B)


def test_noise_of_the_states_goes_by_their_labels():
    names = {key: list("pqr") for key in ["state", "state_next"]}
    system = ltv.system(*random_arrays(5)).assign_coords(names)
    QN = xr.DataArray(
        np.diag([1.0, 2.0, 3.0]),
        dims=["state", "state_2"],
        coords={key: list("pqr") for key in ["state", "state_2"]},
    )
    right = ltv.lqe(system, QN.values, np.eye(2))
    xr.testing.assert_identical(ltv.lqe(system, QN.isel(state=[2, 1, 0]), np.eye(2)), right)


def test_state_sizes_that_vary():
    rng = np.random.default_rng(1)
    A, B, C, D = ragged(rng, [2, 3, 1, 2], m=1)
    system = ltv.system(A, B, C, D)
    gains = ltv.lqe(system, np.eye(3), np.eye(2), np.eye(3))
    P = np.eye(2)
    for k in range(3):
        S = C[k] @ P @ C[k].T + np.eye(2)
        L = A[k] @ P @ C[k].T @ np.linalg.inv(S)
        n = len(A[k])
        np.testing.assert_allclose(gains.L[k, :n], L, rtol=1e-9)
        assert not gains.L[k, n:].any()
        P = A[k] @ P @ A[k].T + np.eye(n) - L @ S @ L.T
        np.testing.assert_allclose(gains.P[k + 1, :n, :n], P, rtol=1e-9)
        assert not gains.P[k + 1, n:].any()


def test_perfect_outputs_are_allowed_where_they_are_not_known_beforehand():
    A, B, C, _ = random_arrays(6)
    system = ltv.system(A, B, C)
    gains = ltv.lqe(system, np.eye(3), np.zeros((2, 2)), np.eye(3))
    for k in range(5):  # what is read exactly is known exactly
        np.testing.assert_allclose(C[k] @ gains.P_filtered[k].values, 0, atol=1e-10)
    with pytest.raises(np.linalg.LinAlgError, match=r"`RN` must leave C P C' \+ RN .* at depth 0,"):
        ltv.lqe(system, np.eye(3), np.zeros((2, 2)))
    last = np.stack([np.eye(2)] * 4 + [np.diag([1.0, 0.0])])
    C[-1, 1] = 0.0
    with pytest.raises(np.linalg.LinAlgError, match="at depth 4,"):
        ltv.lqe(ltv.system(A, B, C), np.eye(3), last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.eye(2), np.eye(2)), r"`QN` must have dims \{'noise': 3, 'noise_2': 3\}"),
        ((np.eye(3), np.eye(3)), r"`RN` must have dims \{'output': 2, 'output_2': 2\}"),
        ((-np.eye(3), np.eye(2)), "`QN` must be positive semidefinite"),
        ((np.eye(3), np.eye(2), -np.eye(3)), "`P0` must be positive semidefinite"),
        ((np.eye(3), np.array([[1.0, 0.5], [0.0, 1.0]])), "`RN` must be symmetric to 1e-10"),
        ((np.eye(3), np.eye(2) * np.nan), "`RN` must be finite"),
    ],
)
def test_bad_covariances(arguments, message):
    with pytest.raises(ValueError, match=message):
        ltv.lqe(ltv.system(*random_arrays(0)), *arguments)


def test_other_bad_arguments():
    system = ltv.system(*random_arrays(0))
    with pytest.raises(ValueError, match=r"`\[QN NN; NN' RN\]` must be positive semidefinite"):
        ltv.lqe(system, np.eye(3), np.eye(2), NN=2 * np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"`G` must have dims \{'state_next': 3, 'noise': 'any'\}"):
        ltv.lqe(system, np.eye(3), np.eye(2), G=np.eye(4))
    with pytest.raises(ValueError, match="`rtol` must be between 0 and 1"):
        ltv.lqe(system, np.eye(3), np.eye(2), rtol=0.0)
    with pytest.raises(ValueError, match=r"`gains` must hold L and M; got \['A', 'B', 'C', 'D'\]"):
        ltv.kalman_filter(system, system, np.zeros((5, 2)))
    with pytest.raises(ValueError, match=r"`y` must have dims \{'depth': 5, 'output': 2\}"):
        ltv.kalman_filter(system, ltv.lqe(system, np.eye(3), np.eye(2)), np.zeros((4, 2)))
