"""The examples of SLICOT's own documentation, values with their source in slicot.json."""

import json
from pathlib import Path

import control
import numpy as np
import pytest
import scipy.linalg
import xarray as xr

from depthsys import ltv
from tests.ltv.test_lti import EPS, FREQUENCIES, response

SLICOT = json.loads((Path(__file__).parent / "slicot.json").read_text())


def arrays(name, *keys):
    return [np.array(SLICOT[name][key]) for key in keys]


def printed(name):
    """Half a unit of the last printed digit, and a little for a tie."""
    return 0.51 * 10.0 ** -SLICOT[name]["decimals"]


def bilinear(A, B, C, D=None, *, alpha):
    """s = alpha (z - 1) / (z + 1) put into C (s I - A)^-1 B + D; both Gramians are kept.

    With M = (alpha I - A)^-1: A_d = M (alpha I + A), B_d = sqrt(2 alpha) M B,
    C_d = sqrt(2 alpha) C M, D_d = D + C M B. Then
    A_d P A_d' - P + B_d B_d' = M [(alpha I + A) P (alpha I + A)' - (alpha I - A) P (alpha I - A)'
    + 2 alpha B B'] M' = 2 alpha M [A P + P A' + B B'] M', and likewise for Q.
    """
    eye = np.eye(len(A))
    M = np.linalg.inv(alpha * eye - A)
    root = np.sqrt(2 * alpha)
    D = np.zeros((len(C), B.shape[1])) if D is None else D
    return control.ss(M @ (alpha * eye + A), root * M @ B, root * C @ M, D + C @ M @ B, 1)


def test_the_bilinear_map_of_these_tests_maps_the_transfer_function():
    A, B, C = arrays("AB09AD", "A", "B", "C")
    lti = bilinear(A, B, C, alpha=3.0)
    s = 3.0 * (FREQUENCIES - 1) / (FREQUENCIES + 1)
    continuous = C @ np.linalg.solve(s[:, None, None] * np.eye(7) - A, B[None].astype(complex))
    # s is infinite at z = -1, and large near it
    np.testing.assert_allclose(response(lti)[:-1], continuous[:-1], atol=1e-12)


def test_slicot_ab09ad_seven_hankel_values(use_slycot):
    (expected,) = arrays("AB09AD", "hankel_singular_values")
    lti = bilinear(*arrays("AB09AD", "A", "B", "C"), alpha=3.0)
    values = ltv.lti_hankel_singular_values(lti, use_slycot=use_slycot)
    np.testing.assert_allclose(values, expected, rtol=0, atol=printed("AB09AD"))
    norm = SLICOT["AB13AD"]["hankel_norm"]
    np.testing.assert_allclose(values[0], norm, rtol=0, atol=printed("AB13AD"))


def test_slicot_ab09ad_in_the_middle_of_a_long_time_varying_system(use_slycot):
    (expected,) = arrays("AB09AD", "hankel_singular_values")
    lti = bilinear(*arrays("AB09AD", "A", "B", "C"), alpha=3.0)
    system = ltv.constant(lti, horizon=200)
    values = ltv.hankel_singular_values(system).sel(depth=100)
    np.testing.assert_allclose(values, expected, rtol=0, atol=printed("AB09AD"))
    # spectral radius 0.85: 0.85^100 is 1e-7, and it enters squared
    exact = ltv.lti_hankel_singular_values(lti, use_slycot=use_slycot)
    np.testing.assert_allclose(values, exact, rtol=1e-11)
    norm = SLICOT["AB13AD"]["hankel_norm"]
    np.testing.assert_allclose(ltv.hankel_norm(system), norm, rtol=0, atol=printed("AB13AD"))


def test_slicot_sb03md_discrete_lyapunov_equation(use_slycot):
    """A' X A - X = C with A antistable: X = F' X F + F' C F with F = A^-1 stable."""
    A, C, X = arrays("SB03MD", "A", "C", "X")
    F, root = np.linalg.inv(A), np.linalg.cholesky(C).T
    observed = control.ss(F, np.ones((3, 1)), root @ F, np.zeros((3, 1)), 1)
    np.testing.assert_allclose(
        ltv.lti_gramians(observed, use_slycot=use_slycot).Q, X, atol=1000 * EPS
    )
    reached = control.ss(F.T, (root @ F).T, np.ones((1, 3)), np.zeros((1, 3)), 1)
    np.testing.assert_allclose(
        ltv.lti_gramians(reached, use_slycot=use_slycot).P, X, atol=1000 * EPS
    )
    layers = ltv.observability_gramian(ltv.constant(observed, horizon=60))
    np.testing.assert_allclose(layers.sel(depth=0), X, atol=1000 * EPS)
    layers = ltv.reachability_gramian(ltv.constant(reached, horizon=60))
    np.testing.assert_allclose(layers.sel(depth=60), X, atol=1000 * EPS)


@pytest.mark.parametrize("horizon", [1, 2, 7])
def test_slicot_sb03md_as_it_stands_over_a_finite_horizon(horizon):
    """The sum of A'^j C A^j over j < h telescopes to A'^h X A^h - X, stable or not."""
    A, C, X = arrays("SB03MD", "A", "C", "X")
    root = np.linalg.cholesky(C).T
    lti = control.ss(A, np.ones((3, 1)), root, np.zeros((3, 1)), 1)
    power = np.linalg.matrix_power(A, horizon)
    np.testing.assert_allclose(
        ltv.lti_gramians(lti, horizon).Q, power.T @ X @ power - X, rtol=1e4 * EPS
    )


def test_slicot_sb03od_cholesky_factor_of_a_continuous_equation(use_slycot):
    A, B, X, factor = arrays("SB03OD", "A", "B", "X", "U_transposed")
    lti = bilinear(A, np.ones((4, 1)), B, alpha=5.0)
    Q = ltv.lti_gramians(lti, use_slycot=use_slycot).Q
    np.testing.assert_allclose(Q, X, atol=1e-11)
    np.testing.assert_allclose(np.linalg.cholesky(Q.values), factor, atol=printed("SB03OD"))
    system = ltv.constant(lti, horizon=200)
    np.testing.assert_allclose(ltv.observability_gramian(system).sel(depth=0), X, atol=1e-11)
    S = ltv.observability_factors(system).sel(depth=0).values
    triangular = np.linalg.qr(S.T, mode="r").T
    triangular *= np.sign(np.diag(triangular))
    np.testing.assert_allclose(triangular, factor, atol=printed("SB03OD"))


def stable_parts(A, B, C):
    """The stable part, and the antistable one mirrored: G_u(-s) = -C_u (s I + A_u)^-1 B_u.

    Mirroring keeps the gains on the imaginary axis, on which the two parts are orthogonal.
    """
    T, Z, n = scipy.linalg.schur(A, sort="lhp")
    X = scipy.linalg.solve_sylvester(T[:n, :n], -T[n:, n:], -T[:n, n:])
    to_blocks = np.block([[np.eye(n), X], [np.zeros((len(A) - n, n)), np.eye(len(A) - n)]])
    B, C = np.linalg.solve(to_blocks, Z.T @ B), C @ Z @ to_blocks
    yield T[:n, :n], B[:n], C[:, :n]
    yield -T[n:, n:], B[n:], -C[:, n:]


def test_slicot_ab13bd_l2_norm(use_slycot):
    """A bilinear map does not keep the H2 norm; sampling every tau seconds does.

    With A_d = exp(A tau) and B_d B_d' the integral of exp(A t) B B' exp(A' t) over one interval,
    the sum over intervals is the continuous Gramian P, and the H2 norm sqrt(trace(C P C')).
    """
    tau, horizon = 0.3, 600
    by_gramian, by_layers = 0.0, 0.0
    for A, B, C in stable_parts(*arrays("AB13BD", "A", "B", "C")):
        n, p = len(A), len(C)
        # Van Loan (1978): exp([[-A, B B'], [0, A']] tau) holds both
        block = scipy.linalg.expm(tau * np.block([[-A, B @ B.T], [np.zeros((n, n)), A.T]]))
        Ad = block[n:, n:].T
        values, vectors = np.linalg.eigh(Ad @ block[:n, n:])
        Bd = vectors * np.sqrt(np.maximum(values, 0))
        lti = control.ss(Ad, Bd, C, np.zeros((p, n)), 1)
        P = ltv.lti_gramians(lti, use_slycot=use_slycot).P.values
        by_gramian += np.trace(C @ P @ C.T)
        system = ltv.constant(lti, horizon=horizon)
        terminal = system.assign(C=system.C.where(system.depth == horizon, 0.0))
        by_layers += float(ltv.h2_norm(terminal)) ** 2
    expected = SLICOT["AB13BD"]["l2_norm"]
    for squared in (by_gramian, by_layers):
        np.testing.assert_allclose(np.sqrt(squared), expected, rtol=0, atol=printed("AB13BD"))


def test_slicot_tf01md_output_sequence():
    A, B, C, D, x0, u, y = arrays("TF01MD", "A", "B", "C", "D", "x0", "u", "y")
    run = ltv.simulate(
        ltv.constant(A, B, C, D, horizon=10),
        xr.DataArray(u, dims=["layer", "input"]),
        xr.DataArray(x0, dims=["state"]),
    )
    np.testing.assert_allclose(run.y[:10], y, rtol=0, atol=printed("TF01MD"))
