"""Plans with bounds, against scipy's optimisers, the optimality conditions and each other."""

import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from scipy.sparse.linalg import aslinearoperator

from depthsys import ltv
from depthsys.ltv import bounded
from depthsys.ltv.plan import WHAT_IT_DOES
from tests.ltv.models import model_system, push_lengths, stacked_gains
from tests.ltv.test_system import random_arrays


def slsqp(weights, G, d, start, inequality):
    """Least u'diag(w)u with G u = d and f(u) >= 0, in variables of size one."""
    unit = np.sqrt(weights @ start**2 / weights)
    rules = [
        {"type": "eq", "fun": lambda z: (G @ (unit * z) - d) / np.linalg.norm(d)},
        {"type": "ineq", "fun": lambda z: inequality(unit * z)},
    ]
    found = minimize(
        lambda z: z @ z,
        start / unit,
        jac=lambda z: 2 * z,
        constraints=rules,
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500},
    )
    assert found.success or found.status == 8  # no descent is left, to rounding
    return unit * found.x


# ------------------------------------------------------------------------------- energy


def test_the_energy_is_relative_where_the_states_have_a_norm():
    system = model_system(0)
    norm = system.state_norm.values[:-1]
    h = stacked_gains(system)[0]
    plan = ltv.minimum_energy(system, 2.0)
    expected = h * norm**2 / (h**2 @ norm**2) * 2.0
    np.testing.assert_allclose(plan.u[:, 0], expected, rtol=1e-8)
    np.testing.assert_allclose(plan.energy, (expected**2 / norm**2).sum())
    assert plan.attrs["energy"] == "relative"
    for same in ({"energy": "relative"}, {"weights": 1 / norm**2}):
        np.testing.assert_allclose(ltv.minimum_energy(system, 2.0, **same).u, plan.u, rtol=1e-10)
    absolute = ltv.minimum_energy(system, 2.0, energy="absolute")
    np.testing.assert_allclose(absolute.u[:, 0], 2 * h / (h @ h), rtol=1e-8)
    assert absolute.attrs["energy"] == "absolute"
    assert ltv.minimum_energy(system, 2.0, weights=norm).attrs["energy"] == "weights"
    without = ltv.minimum_energy(system.drop_vars("state_norm"), 2.0)
    np.testing.assert_allclose(without.u, absolute.u, rtol=1e-10)
    assert without.attrs["energy"] == "absolute"
    assert "push" not in without


def test_an_energy_that_cannot_be_is_refused():
    system = model_system(0)
    with pytest.raises(ValueError, match="`energy` must be left out beside `weights`; got 'abs"):
        ltv.minimum_energy(system, 1.0, energy="absolute", weights=np.ones(6))
    with pytest.raises(ValueError, match=r"`energy` must be one of \('relative', 'absolute'\)"):
        ltv.minimum_energy(system, 1.0, energy="both")
    bare = system.drop_vars("state_norm")
    free = ltv.MatrixFree(*([*system[x].values] for x in "ABC"))
    for unknown in (bare, free):
        with pytest.raises(ValueError, match=r"`energy` must be 'absolute' .* Identify it with"):
            ltv.minimum_energy(unknown, 1.0, energy="relative")
    nowhere = system.assign(state_norm=system.state_norm * (system.depth != 2))
    with pytest.raises(ValueError, match="`system` must have a positive 'state_norm' at the input"):
        ltv.minimum_energy(nowhere, 1.0)


def test_each_prompt_has_its_own_norms():
    members = [model_system(seed) for seed in range(3)]
    parts = ["A", "B", "C", "D", "state_norm"]
    many = xr.concat([s[parts] for s in members], dim="prompt").assign(v=members[0].v)
    plan = ltv.minimum_energy(many, 1.0, max_relative_push=10.0)
    for i, one in enumerate(members):
        alone = ltv.minimum_energy(one.assign(v=members[0].v), 1.0)
        for name in ("u", "push", "energy"):
            np.testing.assert_allclose(plan[name].isel(prompt=i), alone[name], rtol=1e-9)


# ------------------------------------------------------------------------------- as data


@pytest.mark.parametrize("m", [1, 2])
def test_a_plan_says_what_it_does_to_which_model(m):
    system = model_system(1, m=m)
    plan = ltv.minimum_energy(system, 1.0)
    np.testing.assert_allclose(plan.push, push_lengths(system, plan.u.values), rtol=1e-12)
    assert WHAT_IT_DOES.items() <= plan.attrs.items()
    assert plan.attrs["model"] == "tiny"
    assert plan.attrs["model_fingerprint"] == "abc"
    assert plan.attrs["target_unit"] == "readout"
    assert json.loads(plan.attrs["layers"]) == [0, 1, 2, 3, 4, 5]
    sign = "u > 0 pushes towards 'glad', u < 0 towards 'sad'"
    assert plan.attrs.get("sign") == (sign if m == 1 else None)
    for classes in ("sad, glad", "[]"):
        assert "sign" not in ltv.minimum_energy(system.assign_attrs(classes=classes), 1.0).attrs
    assert "warning" not in plan.attrs
    assert all(isinstance(value, (str, int, float)) for value in plan.attrs.values())
    large = ltv.minimum_energy(system, 1.0 * 0.31 / float(plan.push.max()))
    layer = int(large.push.argmax("layer"))
    assert large.attrs["warning"].startswith("pushes of more than 0.3 of the state's norm at layer")
    assert f"(largest 0.31 at layer {layer})" in large.attrs["warning"]


def test_a_window_keeps_its_labels():
    system = model_system(2)
    part = ltv.window(system, 2, 6)
    plan = ltv.minimum_energy(part, 100.0, layers=[3, 5])
    assert plan.push.layer.values.tolist() == [2, 3, 4, 5]
    np.testing.assert_allclose(plan.push, push_lengths(part, plan.u.values), rtol=1e-12)
    assert json.loads(plan.attrs["layers"]) == [3, 5]
    assert np.flatnonzero(plan.u.any("input")).tolist() == [1, 3]
    named = plan.attrs["warning"].split(" at layer")[1].split(" (largest")[0].strip("s ")
    assert named == ", ".join(str(k) for k in (3, 5) if plan.push.sel(layer=k) > 0.3)


def test_free_inputs_push_by_their_length():
    system = model_system(3, m=2).drop_vars("v").assign_attrs(inputs="free")
    plan = ltv.minimum_energy(system, 1.0)
    norm = system.state_norm.values[:-1]
    expected = np.linalg.norm(plan.u.values, axis=1) / norm
    np.testing.assert_allclose(plan.push, expected, rtol=1e-12)
    half = 0.9 * float(plan.push.max())
    bounded = ltv.minimum_energy(system, 1.0, max_relative_push=half)
    sizes = np.linalg.norm(bounded.u.values, axis=1) / norm
    assert sizes.max() <= half * (1 + 1e-9)
    np.testing.assert_allclose(bounded.predicted, 1.0)
    other = system.assign_attrs(inputs="other")
    assert "push" not in ltv.minimum_energy(other, 1.0)
    with pytest.raises(ValueError, match="left out for a system of several inputs without their"):
        ltv.minimum_energy(other, 1.0, max_relative_push=0.3)


# ------------------------------------------------------------------------------- layers


@settings(derandomize=True, max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 2), st.sets(st.integers(0, 5), min_size=2))
def test_layers_that_are_left_out_are_not_there(seed, p, layers):
    system = model_system(seed, m=2, p=p)
    d = np.random.default_rng(seed).standard_normal(p)
    plan = ltv.minimum_energy(system, d, layers=sorted(layers))
    out = [k for k in range(6) if k not in layers]
    assert not plan.u.values[out].any()
    cut = system.copy(deep=True)
    cut.B[out] = 0
    np.testing.assert_allclose(plan.u, ltv.minimum_energy(cut, d).u, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(plan.predicted, d, rtol=1e-8)


def test_layers_that_do_not_suffice_are_said():
    system = model_system(0, p=2)
    with pytest.raises(
        np.linalg.LinAlgError,
        match=r"\(rank 1 of 2 outputs, rtol 1e-10\)\. Add input layers, let more `layers` push or "
        "pass `allow_residual=True`",
    ):
        ltv.minimum_energy(system, [1.0, 2.0], layers=3)
    with pytest.raises(np.linalg.LinAlgError, match=r"rank 1 of 2 .*, raise `max_layers` or"):
        ltv.minimum_energy(system, [1.0, 2.0], max_layers=1)
    for wrong in ([True, False, True], np.array([True] * 6), True, [1.0], "2", ["a"], [[1]], 1.7):
        with pytest.raises(ValueError, match="`layers` must be whole numbers, the labels of la"):
            ltv.minimum_energy(system, [1.0, 2.0], layers=wrong)
    for wrong in (6, [], [0, 7]):
        with pytest.raises(ValueError, match=r"`layers` must be labels of layers .* 0\.\.5"):
            ltv.minimum_energy(system, [1.0, 2.0], layers=wrong)


# ------------------------------------------------------------------------------- bounds


@settings(derandomize=True, max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 2)]))
def test_relative_pushes_are_bounded_as_by_slsqp(seed, sizes):
    m, p = sizes
    system = model_system(seed, m=m, p=p)
    norm, v, G = system.state_norm.values[:-1], system.v.values, stacked_gains(system)
    d = np.random.default_rng(seed).standard_normal(p)
    free = ltv.minimum_energy(system, d)
    rho = 0.85 * float(free.push.max())
    plan = ltv.minimum_energy(system, d, max_relative_push=rho, allow_residual=True)
    assert (push_lengths(system, plan.u.values) <= rho * (1 + 1e-9)).all()
    np.testing.assert_allclose(plan.predicted, G @ plan.u.values.ravel(), rtol=1e-8, atol=1e-12)
    if plan.residual > 1e-7:
        return
    assert plan.energy > free.energy
    assert plan.at_limit.any()
    assert plan.kkt_residual < 1e-6

    def room(u):
        sizes = [v[k] @ each / (rho * norm[k]) for k, each in enumerate(u.reshape(6, m))]
        return 1 - np.array([size @ size for size in sizes])

    weights = np.repeat(1 / norm**2, m)
    best = slsqp(weights, G, d, plan.u.values.ravel() * 0.9, room)
    np.testing.assert_allclose(plan.energy, weights @ best**2, rtol=1e-6)
    np.testing.assert_allclose(plan.u.values.ravel(), best, atol=2e-4 * np.abs(best).max())


@settings(derandomize=True, max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 2))
def test_a_box_meets_the_optimality_conditions(seed, p):
    """w u = G' y / 2 inside; where it is more than that allows, u lies on its bound."""
    rng = np.random.default_rng(seed)
    A, B, C, D = random_arrays(seed, 5, n=4, m=2, p=p)
    system = ltv.system(A, B, C, D)
    G, d = stacked_gains(system), rng.standard_normal(p)
    weights = rng.uniform(0.5, 2.0, (5, 2))
    free = ltv.minimum_energy(system, d, weights=weights).u.values
    upper = 0.8 * np.abs(free).max() * rng.uniform(0.9, 1.5, (5, 2))
    lower = -0.7 * upper
    bounds = {"lower": lower, "upper": upper, "weights": weights}
    plan = ltv.minimum_energy(system, d, **bounds, allow_residual=True)
    u = plan.u.values
    assert (u <= upper).all()
    assert (u >= lower).all()
    if plan.residual > 1e-7:
        most = np.r_[np.zeros(10), -1.0]
        rows = np.column_stack([G, -d])
        box = [*zip(lower.ravel(), upper.ravel(), strict=True), (0, None)]
        far = linprog(most, A_eq=rows, b_eq=np.zeros(p), bounds=box).x[-1]
        np.testing.assert_allclose(plan.residual, 1 - far, atol=1e-6)
        np.testing.assert_allclose(G @ u.ravel(), far * d, atol=1e-6 * np.abs(d).max())
        return
    np.testing.assert_allclose(G @ u.ravel(), d, atol=1e-8 * np.abs(d).max())
    gradient = 2 * weights * u - (plan.multipliers.values @ G).reshape(5, 2)
    size = np.abs(2 * weights * u).max()
    inside = (u < upper * (1 - 1e-5)) & (u > lower * (1 - 1e-5))
    np.testing.assert_allclose(gradient[inside] / size, 0, atol=1e-5)
    assert (gradient[(u >= upper * (1 - 1e-5))] <= 1e-5 * size).all()
    assert (gradient[(u <= lower * (1 - 1e-5))] >= -1e-5 * size).all()
    np.testing.assert_array_equal(plan.at_limit, (~inside).any(1))


def test_bounds_that_do_not_bind_change_nothing():
    system = model_system(4, m=2, p=2)
    free = ltv.minimum_energy(system, [1.0, -1.0])
    loose = ltv.minimum_energy(system, [1.0, -1.0], max_relative_push=1.01 * float(free.push.max()))
    for name in ("u", "energy", "multipliers", "push"):
        np.testing.assert_allclose(loose[name], free[name], rtol=1e-12)
    assert not loose.at_limit.any()
    assert loose.kkt_residual < 1e-10


def test_bounds_come_as_a_number_per_input_or_per_layer_and_input():
    A, B, C, D = random_arrays(2, 4, n=3, m=2, p=1)
    system = ltv.system(A, B, C, D)
    largest = np.abs(ltv.minimum_energy(system, 1.0).u.values).max()
    grid = 0.8 * largest * np.ones((4, 2))
    same = [
        ltv.minimum_energy(system, 1.0, lower=-b, upper=b)
        for b in (0.8 * largest, grid[0], grid, xr.DataArray(grid.T, dims=["input", "layer"]))
    ]
    assert np.abs(same[0].u).max() <= 0.8 * largest
    for other in same[1:]:
        np.testing.assert_allclose(other.u.transpose("layer", "input"), same[0].u, rtol=1e-9)
    free = ltv.MatrixFree([aslinearoperator(a) for a in A], B, C)
    other = ltv.minimum_energy(free, 1.0, lower=-grid, upper=grid)
    np.testing.assert_allclose(other.u, same[0].u, rtol=1e-8)
    few = {"max_layers": 2, "layers": [0, 2, 3]}
    of_two = [ltv.minimum_energy(s, 1.0, **few).u for s in (free, system)]
    np.testing.assert_allclose(*of_two, rtol=1e-10)


@pytest.mark.parametrize("m", [1, 2])
def test_a_target_beyond_the_bounds_says_how_far_one_gets(m):
    system = model_system(5, m=m)
    norm, v, G = system.state_norm.values[:-1], system.v.values, stacked_gains(system)[0]
    # of one output: every push goes as far as it can, |g' u| <= rho |x| |R^-T g|
    metric = [np.linalg.inv(v[k].T @ v[k]) for k in range(6)]
    most = 0.3 * sum(norm[k] * np.sqrt(g @ metric[k] @ g) for k, g in enumerate(G.reshape(6, m)))
    with pytest.raises(
        np.linalg.LinAlgError,
        match=r"relative residual 6\.0e-01 at depth 6 \(within the bounds 40 % of the way at most\)"
        r"\. Widen the bounds, ask for that part or pass `allow_residual=True`",
    ):
        ltv.minimum_energy(system, -2.5 * most, max_relative_push=0.3)
    plan = ltv.minimum_energy(system, -2.5 * most, max_relative_push=0.3, allow_residual=True)
    np.testing.assert_allclose(plan.residual, 0.6, rtol=1e-6)
    np.testing.assert_allclose(plan.predicted, -most, rtol=1e-6)
    np.testing.assert_allclose(plan.push, 0.3, rtol=1e-3)
    assert "warning" not in plan.attrs  # on the bound, not above it
    with pytest.raises(np.linalg.LinAlgError, match="bounds, let more `layers` push, raise `max_"):
        ltv.minimum_energy(system, 2.5 * most, max_relative_push=0.3, layers=[0, 1], max_layers=1)


def test_the_edge_of_what_bounds_allow_is_reached():
    system = ltv.constant([[1.0]], [[1.0]], [[1.0]], horizon=4)
    plan = ltv.minimum_energy(system, 4.0, upper=1.0)
    np.testing.assert_allclose(plan.u, 1.0, rtol=1e-6)
    with pytest.raises(np.linalg.LinAlgError, match="within the bounds 99"):
        ltv.minimum_energy(system, 4.001, upper=1.0)
    nothing = ltv.minimum_energy(system, 4.0, upper=0.0, allow_residual=True)
    assert not nothing.u.any()
    assert nothing.residual == 1.0


def test_held_outputs_stay_held_within_bounds():
    system = model_system(6, m=2, p=3)
    system = system.assign_coords(output_name=("output", ["joy", "hate", "fear"]))
    free = ltv.minimum_energy(system, 1.0, outputs="joy", hold="hate")
    plan = ltv.minimum_energy(
        system, 1.0, outputs="joy", hold="hate", max_relative_push=0.8 * float(free.push.max())
    )
    assert plan.output_name.values.tolist() == ["joy", "hate"]
    ends = stacked_gains(system) @ plan.u.values.ravel()
    np.testing.assert_allclose(ends[:2], [1.0, 0.0], atol=1e-8)
    far = 100 * plan.target[0].item()
    part = ltv.minimum_energy(
        system, far, outputs="joy", hold="hate", max_relative_push=0.1, allow_residual=True
    )
    ends = stacked_gains(system) @ part.u.values.ravel()
    np.testing.assert_allclose(ends[1], 0.0, atol=1e-8)
    np.testing.assert_allclose(ends[0], (1 - part.residual) * far, rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-7, 1e8])
def test_no_unit_changes_a_bounded_plan(unit):
    system = model_system(7, m=2, p=2)
    rho = 0.8 * float(ltv.minimum_energy(system, [1.0, 2.0]).push.max())
    plan = ltv.minimum_energy(system, [1.0, 2.0], max_relative_push=rho)
    read = system.assign(C=system.C * unit, D=system.D * unit)
    same = ltv.minimum_energy(read, [unit, 2.0 * unit], max_relative_push=rho)
    rounding = 1e-8 * float(abs(plan.u).max())
    np.testing.assert_allclose(same.u, plan.u, rtol=1e-6, atol=rounding)
    pushed = system.assign(
        B=system.B / unit, D=system.D / unit, state_norm=system.state_norm * unit
    )
    same = ltv.minimum_energy(pushed, [1.0, 2.0], max_relative_push=rho)
    np.testing.assert_allclose(
        same.u / unit, plan.u, rtol=1e-6, atol=1e-8 * float(abs(plan.u).max())
    )
    np.testing.assert_allclose(same.energy, plan.energy, rtol=1e-8)


def test_batches_are_planned_one_by_one():
    members = [model_system(seed, m=2) for seed in range(3)]
    parts = ["A", "B", "C", "D", "state_norm"]
    many = xr.concat([s[parts] for s in members], dim="prompt").assign(v=members[0].v)
    targets = xr.DataArray(
        [[1.0, 2.0, 500.0], [1.0, -1.0, 0.0]], dims=["task", "prompt"]
    ).expand_dims(output=1)
    options = {"max_relative_push": 0.05, "max_layers": 3, "allow_residual": True}
    plan = ltv.minimum_energy(many, targets, **options)
    assert plan.attrs["search"] == "exact"
    for i, one in enumerate(members):
        for k in range(2):
            d = targets.isel(prompt=i, task=k).values
            alone = ltv.minimum_energy(one.assign(v=members[0].v), d, **options)
            for name in alone:
                got = plan[name].isel({"prompt": i, "task": k}, missing_dims="ignore")
                np.testing.assert_allclose(
                    got.transpose(*alone[name].dims),
                    alone[name],
                    rtol=1e-6,
                    atol=1e-9,
                    err_msg=name,
                )
    assert float(plan.residual.max()) > 0.5  # one of them is beyond its bounds


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"lower": 0.1}, "`lower` must be at most 0 and `upper` at least 0.*got lower up to 0.1"),
        ({"upper": -1.0}, "upper down to -1. Turn the sign, or choose which `layers` push"),
        ({"upper": np.nan}, "`upper` must be finite"),
        ({"lower": np.ones(3)}, "`lower` must have"),
        ({"max_relative_push": 0.0}, "`max_relative_push` must be positive; got 0"),
        ({"max_relative_push": np.ones(4)}, "`max_relative_push` must have"),
        ({"max_layers": 0}, "`max_layers` must be a whole number >= 1; got 0"),
    ],
)
def test_bounds_that_mean_nothing_are_refused(bounds, message):
    with pytest.raises(ValueError, match=message):
        ltv.minimum_energy(model_system(0), 1.0, **bounds)


def test_a_relative_bound_needs_norms():
    bare = model_system(0).drop_vars("state_norm")
    free = ltv.MatrixFree(*([*bare[x].values] for x in "ABC"))
    for system in (bare, free):
        with pytest.raises(ValueError, match=r"`max_relative_push` must be left out .* 'state_n"):
            ltv.minimum_energy(system, 1.0, max_relative_push=0.3)


# ------------------------------------------------------------------------------- holding


def test_holding_has_a_price_and_spares_a_side_effect():
    system = model_system(8, m=2, p=3)
    x0 = np.random.default_rng(0).standard_normal(5)
    for options in ({}, {"x0": x0}, {"layers": [0, 2, 3, 5]}, {"max_relative_push": 0.9}):
        target = 1.0
        plan = ltv.minimum_energy(system, target, outputs=2, hold=[0, 1], **options)
        without = ltv.minimum_energy(system, target, outputs=2, **options)
        np.testing.assert_allclose(plan.hold_price, plan.energy / without.energy, rtol=1e-9)
        assert plan.hold_price > 1
        start = xr.DataArray(options.get("x0", np.zeros(5)), dims=["state"])
        ends = ltv.simulate(system, without.u, start).y[-1].values
        np.testing.assert_allclose(plan.side_effect, [np.nan, *ends[:2]], rtol=1e-7)
    assert "hold_price" not in without
    nothing = ltv.minimum_energy(system, 0.0, outputs=2, hold=0)
    assert nothing.hold_price == 1
    far = {"max_relative_push": 1e-3, "allow_residual": True}
    assert np.isnan(ltv.minimum_energy(system, 1.0, outputs=2, hold=0, **far).hold_price)


@pytest.mark.parametrize("spread", [1.0, 1e4])
@pytest.mark.parametrize("part", [1e-6, 1e-3, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_sizes_many_decades_apart_do_not_stop_the_solver(seed, part, spread):
    """Targets a million times beyond the bounds, states and gains that differ by four decades."""
    system = model_system(seed, 12, m=1 + seed % 3, p=1 + seed % 2, spread=spread)
    rng = np.random.default_rng(seed)
    system["B"] = system.B * 10 ** rng.uniform(-4, 2, (12, 1, 1))
    d = 10.0 ** rng.uniform(-6, 6) * rng.standard_normal(system.sizes["output"])
    free = ltv.minimum_energy(system, d)
    rho, most = part * float(free.push.max()), 2 * float(abs(free.u).max())
    plan = ltv.minimum_energy(system, d, max_relative_push=rho, upper=most, allow_residual=True)
    assert plan.kkt_residual < 1e-6
    assert plan.push.max() <= rho * (1 + 1e-9)
    # on the way to the target, or there
    reached = (1 - plan.residual.item()) * d
    np.testing.assert_allclose(plan.predicted, reached, rtol=1e-6, atol=1e-9 * abs(reached).max())


def test_a_solver_that_contradicts_itself_is_an_error(monkeypatch):
    monkeypatch.setattr(bounded, "_largest_part", lambda *_: 2.0)
    with pytest.raises(np.linalg.LinAlgError, match="got no solution where one was found before"):
        ltv.minimum_energy(model_system(0), 100.0, max_relative_push=0.01)
