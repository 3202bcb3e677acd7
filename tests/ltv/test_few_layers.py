"""Plans that push few layers: against all sets of layers, and a bound that no plan is below."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthsys import ltv
from depthsys.ltv import few_layers
from tests.ltv.models import model_system, stacked_gains


def energy_of(system, G, d, layers):
    """Least relative energy through some layers, by least squares; infinite where it is none."""
    n, m = system.sizes["layer"], system.sizes["input"]
    cost = np.sqrt(np.repeat(1 / system.state_norm.values[:-1] ** 2, m))
    some = np.isin(np.repeat(np.arange(n), m), layers)
    z, *_ = np.linalg.lstsq(G[:, some] / cost[some], d, rcond=None)
    miss = np.linalg.norm(G[:, some] / cost[some] @ z - d)
    return z @ z if miss < 1e-9 * np.linalg.norm(d) else np.inf


def tried(system, d, most):
    G, n = stacked_gains(system), system.sizes["layer"]
    sets = list(combinations(range(n), most))
    energies = [energy_of(system, G, d, layers) for layers in sets]
    return sets[int(np.argmin(energies))], min(energies)


@pytest.fixture
def greedy(monkeypatch):
    """As if there were too many sets to try."""
    for name in ("SMALL", "MANY", "MANY_BOUNDED"):
        monkeypatch.setattr(few_layers, name, 1)


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(1, 1), (3, 1), (1, 2), (2, 2)]), st.integers(2, 4))
def test_every_set_of_layers_is_tried(seed, sizes, most):
    m, p = sizes
    system = model_system(seed, 7, m=m, p=p)
    d = np.random.default_rng(seed).standard_normal(p)
    plan = ltv.minimum_energy(system, d, max_layers=most)
    layers, energy = tried(system, d, most)
    assert np.flatnonzero(plan.chosen).tolist() == list(layers)
    np.testing.assert_allclose(plan.energy, energy, rtol=1e-7)
    assert np.flatnonzero(plan.u.any("input")).tolist() == list(layers)
    np.testing.assert_allclose(stacked_gains(system) @ plan.u.values.ravel(), d, atol=1e-8)
    assert plan.attrs["search"] == "exact"
    assert plan.attrs["max_layers"] == most
    assert plan.optimality_gap == 0
    assert plan.lower_bound == plan.energy


def test_one_output_needs_no_search_at_any_depth():
    system = model_system(0, 40, m=2)
    G = stacked_gains(system)[0].reshape(40, 2)
    gain = (G**2).sum(1) * system.state_norm.values[:-1] ** 2
    plan = ltv.minimum_energy(system, 1.0, max_layers=7)
    assert np.flatnonzero(plan.chosen).tolist() == sorted(np.argsort(gain)[-7:].tolist())
    np.testing.assert_allclose(plan.energy, 1 / np.sort(gain)[-7:].sum(), rtol=1e-9)
    assert plan.attrs["search"] == "exact"


@pytest.mark.parametrize(
    ("part", "m", "p"),
    [
        *((0.9, 1, 1), (0.9, 2, 2), (0.4, 2, 2)),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in ((0.9, 2, 1), (0.4, 1, 1), (0.4, 2, 1))
        ),
    ],
)
def test_every_set_within_bounds(m, p, part):
    system = model_system(m + p, 6, m=m, p=p)
    d = np.random.default_rng(0).standard_normal(p)
    rho = part * float(ltv.minimum_energy(system, d, max_layers=2).push.max())
    options = {"max_relative_push": rho, "allow_residual": True}
    plan = ltv.minimum_energy(system, d, max_layers=2, **options)
    every = [
        ltv.minimum_energy(system, d, layers=layers, **options)
        for layers in combinations(range(6), 2)
    ]
    reached = [float(each.energy) for each in every if each.residual < 1e-7]
    if reached:
        np.testing.assert_allclose(plan.energy, min(reached), rtol=1e-7)
        assert plan.optimality_gap == 0
    else:
        least = min(float(each.residual) for each in every)
        np.testing.assert_allclose(plan.residual, least, rtol=1e-6)
        assert np.isnan(plan.optimality_gap)
        assert np.isnan(plan.lower_bound)


@settings(derandomize=True, max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 2), st.integers(2, 4))
def test_a_greedy_choice_knows_how_far_it_is_from_the_best(seed, m, most):
    system = model_system(seed, 8, m=m, p=2)
    d = np.random.default_rng(seed).standard_normal(2)
    _, best = tried(system, d, most)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SMALL", "MANY", "MANY_BOUNDED"):
            patch.setattr(few_layers, name, 1)
        plan = ltv.minimum_energy(system, d, max_layers=most)
    assert plan.attrs["search"] == "greedy"
    assert plan.chosen.sum() <= most
    np.testing.assert_allclose(stacked_gains(system) @ plan.u.values.ravel(), d, atol=1e-8)
    assert plan.lower_bound <= best * (1 + 1e-9)
    assert best <= plan.energy * (1 + 1e-9)
    np.testing.assert_allclose(plan.optimality_gap, plan.energy / plan.lower_bound - 1)
    # the bound is that of the perspective relaxation, not merely that of all layers
    assert plan.lower_bound > float(ltv.minimum_energy(system, d).energy)
    assert plan.energy <= 1.3 * best


@pytest.mark.parametrize("m", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_greedy_choice_within_bounds(greedy, m):
    system = model_system(3, 8, m=m, p=2)
    d = np.array([1.0, -0.5])
    rho = 0.8 * float(ltv.minimum_energy(system, d, max_layers=3).push.max())
    plan = ltv.minimum_energy(system, d, max_layers=4, max_relative_push=rho)
    every = [
        ltv.minimum_energy(system, d, layers=s, max_relative_push=rho, allow_residual=True)
        for s in combinations(range(8), 4)
    ]
    best = min(float(each.energy) for each in every if each.residual < 1e-7)
    assert plan.attrs["search"] == "greedy"
    assert plan.lower_bound <= best * (1 + 1e-9)
    assert best <= plan.energy * (1 + 1e-7)
    assert 0 <= plan.optimality_gap < 0.2
    assert plan.push.max() <= rho * (1 + 1e-9)
    far = ltv.minimum_energy(
        system, 100 * d, max_layers=4, max_relative_push=rho, allow_residual=True
    )
    assert far.residual > 0.5
    assert np.isnan(far.optimality_gap)


def test_deep_systems_are_searched_greedily():
    system = model_system(4, 30, m=2, p=2)
    plan = ltv.minimum_energy(system, [1.0, -1.0], max_layers=6)
    assert plan.attrs["search"] == "greedy"
    assert 0 <= plan.optimality_gap < 0.05
    one = ltv.minimum_energy(system, [1.0, -1.0], max_layers=2)
    assert one.attrs["search"] == "exact"
    np.testing.assert_allclose(one.energy, tried(system, [1.0, -1.0], 2)[1], rtol=1e-8)


def test_more_layers_than_help_are_not_pushed():
    system = model_system(5, 6, m=1)
    cut = system.copy(deep=True)
    cut.B[[0, 1, 4]] = 0
    plan = ltv.minimum_energy(cut, 1.0, max_layers=4)
    np.testing.assert_allclose(plan.u, ltv.minimum_energy(cut, 1.0).u)
    assert np.flatnonzero(plan.chosen).tolist() == [2, 3, 5]
    some = ltv.minimum_energy(system, 1.0, max_layers=2, layers=[0, 1, 2])
    assert not some.chosen[3:].any()
    nothing = ltv.minimum_energy(system, 0.0, max_layers=2)
    assert not nothing.u.any()
    assert nothing.energy == nothing.optimality_gap == 0
    unmoved = ltv.minimum_energy(cut.assign(B=0 * cut.B), 1.0, max_layers=2, allow_residual=True)
    assert unmoved.residual == 1
    assert not unmoved.chosen.any()


def test_holding_with_few_layers():
    system = model_system(6, 6, m=2, p=2)
    plan = ltv.minimum_energy(system, 1.0, outputs=0, hold=1, max_layers=2)
    without = ltv.minimum_energy(system, 1.0, outputs=0, max_layers=2)
    np.testing.assert_allclose(plan.hold_price, plan.energy / without.energy)
    np.testing.assert_allclose(plan.energy, tried(system, [1.0, 0.0], 2)[1], rtol=1e-8)
