"""The programs that plans are, against scipy's optimisers, plain linear algebra and each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, lsq_linear, minimize

from depthsys.ltv import convex
from depthsys.ltv.convex import quadratic_program

NONE = np.zeros((0, 4)), np.zeros(0)


def problem(seed, n=4, rows=2):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((n, n))
    A = rng.standard_normal((rows, n))
    inside = rng.uniform(-0.5, 0.5, n)  # keeps bounds of 1 and balls around 0
    return root @ root.T + 0.1 * np.eye(n), rng.standard_normal(n), A, A @ inside


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_without_inequalities_it_is_a_linear_system(seed):
    P, q, A, b = problem(seed)
    found = quadratic_program(P, q, A, b)
    kkt = np.block([[P, A.T], [A, np.zeros((2, 2))]])
    z, y = np.split(np.linalg.solve(kkt, np.concatenate([-q, b])), [4])
    np.testing.assert_allclose(found.z, z, atol=1e-8)
    np.testing.assert_allclose(found.equal, -y, atol=1e-6)
    assert found.found
    assert max(found.stationarity, found.gap) < 1e-8


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_a_box_is_that_of_bounded_least_squares(seed):
    rng = np.random.default_rng(seed)
    M, c = rng.standard_normal((6, 4)), rng.standard_normal(6)
    lower, upper = -rng.uniform(0.01, 0.5, 4), rng.uniform(0.01, 0.5, 4)
    found = quadratic_program(M.T @ M, -M.T @ c, *NONE, lower=lower, upper=upper)
    expected = lsq_linear(M, c, (lower, upper), method="bvls", tol=1e-14)
    np.testing.assert_allclose(found.z, expected.x, atol=1e-8)


@settings(derandomize=True, max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_balls_and_half_spaces_are_those_of_slsqp(seed, linear):
    P, q, A, b = problem(seed)
    rng = np.random.default_rng(seed)
    M, F = rng.standard_normal((3, 4)), rng.standard_normal((2, 4))
    inside = np.linalg.lstsq(A, b, rcond=None)[0]
    radius, f = 1.1 * np.linalg.norm(M @ inside), F @ inside + 0.05
    below = (F, f) if linear else None
    found = quadratic_program(P, q, A, b, balls=[(M, radius)], below=below)
    rules = [
        {"type": "eq", "fun": lambda z: A @ z - b},
        {"type": "ineq", "fun": lambda z: radius**2 - (M @ z) @ (M @ z)},
        *([{"type": "ineq", "fun": lambda z: f - F @ z}] if linear else []),
    ]
    options = {"ftol": 1e-14, "maxiter": 500}
    expected = minimize(
        lambda z: z @ P @ z / 2 + q @ z, inside, constraints=rules, method="SLSQP", options=options
    )
    np.testing.assert_allclose(found.z, expected.x, atol=1e-5)
    assert (M @ found.z) @ (M @ found.z) <= radius**2 * (1 + 1e-8)
    assert max(found.stationarity, found.gap) < 1e-7
    # a ball is a cone with a constant first entry
    cone = np.vstack([np.zeros(4), M]), np.array([radius, 0.0, 0.0, 0.0])
    same = quadratic_program(P, q, A, b, cones=[cone], below=below)
    np.testing.assert_allclose(same.z, found.z, atol=1e-7)


def test_a_linear_cost_is_that_of_linprog():
    rng = np.random.default_rng(0)
    c, A, inside = rng.standard_normal(5), rng.standard_normal((2, 5)), rng.uniform(-0.5, 0.5, 5)
    found = quadratic_program(
        np.zeros((5, 5)), c, A, A @ inside, lower=-np.ones(5), upper=np.r_[np.ones(4), np.inf]
    )
    expected = linprog(c, A_eq=A, b_eq=A @ inside, bounds=[*[(-1, 1)] * 4, (-1, None)])
    np.testing.assert_allclose(found.z, expected.x, atol=1e-7)
    np.testing.assert_allclose(found.equal, expected.eqlin.marginals, atol=1e-6)


def test_rotated_cones_are_fractions():
    """Least sum of z^2 / s with sum z = 1 and s given: z is proportional to s."""
    s = np.array([0.2, 0.5, 0.3])
    # variables z, tau: (tau + s) >= |(tau - s, 2 z)| is z^2 <= tau s
    cones = []
    for i in range(3):
        z, tau = np.zeros(6), np.zeros(6)
        z[i], tau[3 + i] = 2.0, 1.0
        cones.append((np.stack([tau, tau, z]), np.array([s[i], -s[i], 0.0])))
    cost = np.r_[np.zeros(3), np.ones(3)]
    sums = np.r_[np.ones(3), np.zeros(3)][None]
    found = quadratic_program(np.zeros((6, 6)), cost, sums, np.ones(1), cones=cones)
    np.testing.assert_allclose(found.z[3:].sum(), 1.0, atol=1e-9)
    np.testing.assert_allclose(found.z, np.r_[s, s], atol=1e-5)  # flat at the least
    np.testing.assert_allclose(found.equal, 2.0, rtol=1e-5)  # the cost is (sum z)^2


def test_the_multipliers_are_what_the_cost_rises_by():
    P, q, A, b = problem(3)
    bounds = {"lower": -0.55 * np.ones(4), "upper": 0.55 * np.ones(4)}

    def cost(b):
        z = quadratic_program(P, q, A, b, **bounds).z
        return z @ P @ z / 2 + q @ z

    steps = 1e-4 * np.eye(2)
    slopes = [(cost(b + h) - cost(b - h)) / 2e-4 for h in steps]
    np.testing.assert_allclose(quadratic_program(P, q, A, b, **bounds).equal, slopes, rtol=1e-4)


def test_what_no_point_satisfies_is_not_found():
    found = quadratic_program(np.eye(2), np.zeros(2), np.ones((1, 2)), [3.0], upper=np.ones(2))
    assert not found.found
    assert np.isnan(found.z).all()


def test_what_has_no_least_value_is_an_error():
    with pytest.raises(np.linalg.LinAlgError, match=r"must be solvable; got 'DualInfeasible' of"):
        quadratic_program(np.zeros((2, 2)), np.ones(2), np.zeros((0, 2)), np.zeros(0))


def test_where_rounding_stops_the_solver_it_is_asked_for_less(monkeypatch):
    P, q, A, b = problem(0)
    fine = quadratic_program(P, q, A, b, upper=0.6 * np.ones(4))
    monkeypatch.setattr(convex, "TOLERANCE", 1e-40)
    coarse = quadratic_program(P, q, A, b, upper=0.6 * np.ones(4))
    np.testing.assert_allclose(coarse.z, fine.z, atol=1e-6)
