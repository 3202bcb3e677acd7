import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from depthsys import ltv
from tests.ltv.test_system import random_arrays


def simulated_output(system, u):
    return ltv.simulate(system, u).y.isel(depth=-1).values


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 2))
def test_plan_reaches_the_target_with_the_least_energy(seed, L, p):
    system = ltv.system(*random_arrays(seed, L, n=4, m=2, p=p))
    target = np.random.default_rng(seed).standard_normal(p)
    plan = ltv.minimum_energy(system, target)
    np.testing.assert_allclose(simulated_output(system, plan.u), target, atol=1e-8)
    # lstsq on the simulated (not the computed) map is the oracle
    units = np.eye(2 * L).reshape(-1, L, 2)
    G = np.stack(
        [simulated_output(system, xr.DataArray(e, dims=["layer", "input"])) for e in units], 1
    )
    best = np.linalg.lstsq(G, target, rcond=None)[0]
    np.testing.assert_allclose(plan.u.values.ravel(), best, atol=1e-7)
    np.testing.assert_allclose(plan.energy, (plan.u**2).sum())
    # anything added in the null space reaches the same target with more energy
    null = np.linalg.svd(G)[2][p:]
    other = plan.u.values.ravel() + 0.1 * null[0]
    assert (other**2).sum() > float(plan.energy)


def test_weights_make_a_layer_expensive():
    system = ltv.system(*random_arrays(3, p=1))
    weights = np.array([1.0, 100.0, 1.0, 4.0])
    plan = ltv.minimum_energy(system, 1.0, weights=weights)
    h = ltv.gains(system).values[:, 0]
    # Lagrange: w_l u_l is proportional to h_l
    expected = h / weights[:, None]
    np.testing.assert_allclose(plan.u, expected / (h * expected).sum(), rtol=1e-9)
    np.testing.assert_allclose(plan.energy, (weights[:, None] * plan.u**2).sum())


def test_unreachable_target():
    A, B, C, _ = random_arrays(0, p=1)
    doubled = ltv.system(A, B, np.concatenate([C, C], axis=1))
    with pytest.raises(np.linalg.LinAlgError, match=r"must be reachable; got relative residual"):
        ltv.minimum_energy(doubled, [1.0, -1.0])
    plan = ltv.minimum_energy(doubled, [1.0, 0.0], allow_residual=True)
    np.testing.assert_allclose(plan.residual, np.sqrt(0.5))
    np.testing.assert_allclose(plan.predicted, [0.5, 0.5])


def test_zero_target_needs_no_energy():
    plan = ltv.minimum_energy(ltv.system(*random_arrays(0, p=1)), 0.0)
    assert float(plan.energy) == float(plan.residual) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": [1.0, 2.0]}, "`target` must hold 1 value"),
        ({"target": np.nan}, "`target` must be finite"),
        ({"target": 1.0, "weights": [1, 1, 1, 0]}, "`weights` must be 4 positive"),
        ({"target": 1.0, "weights": [1, 1]}, "`weights` must be 4 positive"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ltv.minimum_energy(ltv.system(*random_arrays(0, p=1)), **arguments)
