"""Periodic systems: published multipliers, a 60-digit product, and simulation over many periods."""

import mpmath
import numpy as np
import pytest
import xarray as xr

from depthsys import ltv
from tests.ltv.test_system import random_arrays


def periodic(seed=0, N=5, n=3, scale=1.0):
    """One period: the last readout is the first one."""
    A, B, C, D = random_arrays(seed, n_layers=N, n=n)
    C[-1] = C[0]
    return ltv.system(scale * A, B, C, D)


def exact(A):
    """Eigenvalues of the product, in 60 digits, by falling modulus."""
    with mpmath.workdps(60):
        product = mpmath.eye(A.shape[-1])
        for matrix in A:
            product = mpmath.matrix(matrix.tolist()) * product
        if len(product) == 1:
            return [complex(product[0])]
        values = mpmath.eig(product, left=False, right=False)
        return sorted((complex(v) for v in values), key=lambda v: (-round(abs(v), 280), -v.imag))


def turns(angle, radius, N):
    rotation = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return np.stack([radius * np.array(rotation)] * N)


rng = np.random.default_rng(0)
CASES = {
    "random": rng.standard_normal((10, 4, 4)),
    "long": rng.standard_normal((40, 4, 4)),
    "graded columns": rng.standard_normal((5, 3, 3)) * np.array([1, 1e-3, 1e-6]),
    "graded rows": rng.standard_normal((8, 4, 4)) * np.array([1, 0.1, 0.01, 1e-3])[:, None],
    "rotation": turns(0.3, 0.9, 5),
    "half turn": turns(np.pi / 4, 1.0, 4),
    "opposite signs": np.stack([np.diag([1.0, -1.0, 1.0, -1.0])] * 3),
    "identity": np.stack([np.eye(3)] * 4),
    "one layer": rng.standard_normal((1, 4, 4)),
    "one state": rng.standard_normal((6, 1, 1)),
}


@pytest.mark.parametrize("A", CASES.values(), ids=CASES)
def test_multipliers_are_those_of_the_exact_product(A):
    """Each to 1e-11 of itself, down to 1e-27 of the largest, which the product does not give."""
    N, n = A.shape[:2]
    system = ltv.system(A, np.ones((N, n, 1)), np.ones((N + 1, 1, n)))
    found = ltv.floquet_multipliers(system)
    left = list(found.multiplier.values)
    for value in exact(A):
        nearest = min(left, key=lambda v, value=value: abs(v - value))
        left.remove(nearest)  # each is found once
        assert abs(nearest - value) <= 1e-11 * abs(value)
    assert not left
    np.testing.assert_allclose(found.modulus, np.abs(found.multiplier))
    np.testing.assert_allclose(found.angle, np.angle(found.multiplier))
    assert (np.diff(found.modulus) <= 1e-10).all()
    assert found.attrs == {"period": N, "blocks": N}


def test_multipliers_published_by_slicot():
    """The example of MB03WD, a product of two equal matrices."""
    M = [[1.5, -0.7, 3.5, -0.7], [1.0, 0.0, 2.0, 3.0], [1.5, -0.7, 2.5, -0.3], [1.0, 0.0, 2.0, 1.0]]
    found = ltv.floquet_multipliers(ltv.constant(M, np.ones((4, 1)), np.ones((1, 4)), horizon=2))
    wanted = [6.449861 + 7.817717j, 6.449861 - 7.817717j, 0.208964, 0.091315]
    got = sorted(found.multiplier.values, key=lambda v: (-round(abs(v), 6), -v.imag))
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_a_singular_layer_has_a_multiplier_of_zero():
    A = CASES["random"][:5, :3, :3] @ np.diag([1.0, 1.0, 0.0])
    system = ltv.system(A, np.ones((5, 3, 1)), np.ones((6, 1, 3)))
    modulus = ltv.floquet_multipliers(system).modulus.values
    np.testing.assert_allclose(modulus[:2], np.abs(exact(A)[:2]), rtol=1e-11)
    assert modulus[2] < 1e-12 * modulus[0]


def test_large_periods_are_multiplied_in_blocks():
    rng = np.random.default_rng(3)
    A = rng.standard_normal((60, 20, 20)) / np.sqrt(20)
    system = ltv.system(A, np.ones((60, 20, 1)), np.ones((61, 1, 20)))
    found = ltv.floquet_multipliers(system)
    assert found.attrs["blocks"] == 25
    product = np.abs(np.linalg.eigvals(np.linalg.multi_dot(A[::-1])))
    np.testing.assert_allclose(np.sort(found.modulus)[-5:], np.sort(product)[-5:], rtol=1e-9)


def test_states_may_come_and_go_within_a_period():
    """Three states in the middle of the period, two at its ends: two multipliers."""
    rng = np.random.default_rng(1)
    sizes = [2, 3, 2]
    A = [rng.standard_normal((sizes[k + 1], sizes[k])) for k in range(2)]
    B = [rng.standard_normal((n, 1)) for n in sizes[1:]]
    C = [rng.standard_normal((1, n)) for n in (2, 3)]
    system = ltv.system(A, B, [*C, C[0]])
    found = np.sort(ltv.floquet_multipliers(system).modulus)
    np.testing.assert_allclose(found, np.sort(np.abs(np.linalg.eigvals(A[1] @ A[0]))), rtol=1e-10)
    assert ltv.lift(system).sizes["state"] == 2


def test_repeated_periods_are_the_lifted_system_step_by_step():
    period = periodic(scale=0.5)
    whole, step = ltv.repeat(period, 4), ltv.lift(period)
    assert whole.layer.values.tolist() == list(range(20))
    u = np.random.default_rng(2).standard_normal((20, 2))
    x0 = np.array([1.0, -2.0, 0.5])
    run = ltv.simulate(whole, u, x0)
    x = x0
    for n in range(4):
        stacked = u[5 * n : 5 * n + 5].ravel()
        y = step.C.values @ x + step.D.values @ stacked
        np.testing.assert_allclose(y.reshape(5, 2), run.y[5 * n : 5 * n + 5], rtol=1e-9, atol=1e-12)
        x = step.A.values @ x + step.B.values @ stacked
        np.testing.assert_allclose(x, run.x[5 * n + 5], rtol=1e-9, atol=1e-12)
    assert step.attrs["form"] == "lifted"
    assert step.attrs["period"] == 5


def test_the_cyclic_system_runs_the_same_when_its_input_goes_around():
    period = periodic(scale=0.5)
    whole, big = ltv.repeat(period, 3), ltv.cyclic(period)
    u = np.random.default_rng(2).standard_normal((15, 2))
    run = ltv.simulate(whole, u, [1.0, -2.0, 0.5])
    x = np.zeros(15)
    x[:3] = [1.0, -2.0, 0.5]
    for k in range(15):
        at = k % 5
        v = np.zeros(10)
        v[2 * at : 2 * at + 2] = u[k]
        y = (big.C.values @ x + big.D.values @ v).reshape(5, 2)
        np.testing.assert_allclose(y[at], run.y[k], rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(np.delete(y, at, axis=0), 0)
        x = big.A.values @ x + big.B.values @ v
    roots = np.sort(np.abs(np.linalg.eigvals(big.A)) ** 5)
    np.testing.assert_allclose(
        roots, np.sort(np.repeat(ltv.floquet_multipliers(period).modulus, 5)), rtol=1e-9
    )


def test_the_norm_of_a_stable_periodic_system_tends_to_that_of_its_lifted_form():
    """H-infinity norms agree: python-control's of the lifted system, and ours over many periods."""
    import control

    period = periodic(seed=4, N=3, n=2, scale=0.3)
    e = ltv.lift(period)
    lti = control.ss(e.A, e.B, e.C, e.D, 3)
    peak = control.linfnorm(lti)[0]
    assert float(ltv.induced_norm(ltv.repeat(period, 60))) == pytest.approx(peak, rel=1e-3)


def test_a_readout_that_is_only_zero_at_the_end_is_kept_so():
    period = periodic()
    period["C"][{"depth": -1}] = 0.0
    whole = ltv.repeat(period, 2)
    np.testing.assert_array_equal(whole.C[5], period.C[0])
    np.testing.assert_array_equal(whole.C[10], 0)
    xr.testing.assert_identical(ltv.repeat(period, 1).A, period.A)


def test_what_is_no_period_is_refused():
    A, B, C, D = random_arrays(0)
    other = ltv.system(A, B, C, D)
    for function in (ltv.lift, ltv.cyclic, lambda s: ltv.repeat(s, 2)):
        with pytest.raises(ValueError, match="must read its last state as its first one"):
            function(other)
    ends = ltv.system([np.ones((2, 1))], [np.ones((2, 1))], [np.ones((1, 1)), np.ones((1, 2))])
    for function in (ltv.lift, ltv.floquet_multipliers):
        with pytest.raises(ValueError, match=r"as many states as it starts with; got 1 and 2"):
            function(ends)
    with pytest.raises(ValueError, match="`count` must be a whole number >= 1"):
        ltv.repeat(periodic(), 0)
