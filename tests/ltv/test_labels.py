"""Two labelled arrays are aligned by label or refused, never matched by position."""

import numpy as np
import pytest
import xarray as xr

from depthsys import ltv
from depthsys.ltv.plan import plan_energy, schedule, simple_schedules
from tests.ltv.test_system import random_arrays

STATES, OTHER = ["pos", "vel"], ["vel", "pos"]


def cart(**labels):
    """A cart with position and velocity as states and outputs."""
    A, B = [[1.0, 0.1], [0.0, 0.95]], [[0.005], [0.1]]
    system = ltv.constant(A, B, np.eye(2), horizon=20)
    named = {"state": STATES, "state_next": STATES, "output": STATES} | labels
    return system.assign_coords({k: v for k, v in named.items() if v is not None})


def cost(diagonal, names, dims=("state", "state_2")):
    return xr.DataArray(np.diag(diagonal), dims=dims, coords=dict.fromkeys(dims, names))


def vector(values, names, dim):
    return xr.DataArray(np.asarray(values, dtype=float), dims=[dim], coords={dim: names})


def test_the_cost_of_the_field_case_in_both_orders():
    """Its numbers: 39.55, and 2.99 where labels are ignored."""
    named = {"state": STATES, "state_next": STATES}
    system = ltv.constant([[1.0, 0.2], [0.0, 0.9]], [[0.0], [1.0]], np.eye(2), horizon=2)
    for given in (cost([100.0, 1.0], STATES), cost([1.0, 100.0], OTHER)):
        law = ltv.lqr(system.assign_coords(named), np.eye(2), [[1.0]], given)
        assert round(float(law.P[0, 0, 0]), 2) == 39.55
    # of positions alone the second one is another cost
    bare = ltv.lqr(system, np.eye(2), [[1.0]], np.diag([1.0, 100.0]))
    assert round(float(bare.P[0, 0, 0]), 2) == 2.99


def test_a_terminal_cost_in_another_order():
    plain, eye = np.diag([100.0, 1.0]), 0.01 * np.eye(2)
    right = ltv.lqr(cart(state=None, state_next=None, output=None), eye, [[1.0]], plain)
    for terminal in (cost([100.0, 1.0], STATES), cost([1.0, 100.0], OTHER), plain):
        law = ltv.lqr(cart(), eye, [[1.0]], terminal)
        np.testing.assert_allclose(law.P, right.P, rtol=1e-12)
        assert law.state.values.tolist() == law.state_2.values.tolist() == STATES
    # rows and columns are labelled each for itself
    twisted = cost([1.0, 100.0], OTHER).sel(state=STATES)
    np.testing.assert_allclose(ltv.lqr(cart(), eye, [[1.0]], twisted).P, right.P, rtol=1e-12)


def test_every_cost_and_target_of_the_regulator():
    system = cart().assign_coords(input=["force"])
    Q, N = np.diag([2.0, 1.0]), np.array([[0.1], [0.3]])
    targets = np.linspace(0, 1, 42).reshape(21, 2)
    drift = np.array([0.5, -0.2])
    right = ltv.lqr(system, Q, [[1.0]], N=N, x_target=targets, drift=drift)
    turned = ltv.lqr(
        system,
        cost([1.0, 2.0], OTHER),
        xr.DataArray([[1.0]], dims=["input", "input_2"], coords={"input": ["force"]}),
        N=xr.DataArray(N, dims=["state", "input"], coords={"state": STATES}).isel(state=[1, 0]),
        x_target=xr.DataArray(
            targets, dims=["depth", "state"], coords={"depth": range(21), "state": STATES}
        ).isel(depth=slice(None, None, -1), state=[1, 0]),
        drift=vector(drift[::-1], OTHER, "state_next"),
    )
    xr.testing.assert_allclose(turned, right, rtol=1e-12)
    over_layers = xr.DataArray(
        np.stack([k * np.eye(2) for k in range(20)]), dims=["layer", "state", "state_2"]
    ).assign_coords(layer=range(20))
    backwards = over_layers.isel(layer=slice(None, None, -1))
    xr.testing.assert_identical(
        ltv.lqr(system, backwards, [[1.0]]), ltv.lqr(system, over_layers, [[1.0]])
    )
    y = cost([2.0, 1.0], STATES, ("output", "output_2")).isel(output=[1, 0])
    np.testing.assert_allclose(
        ltv.lqry(system, y, [[1.0]]).P[0], ltv.lqr(system, Q, [[1.0]]).P[0], rtol=1e-10
    )


def test_feedback_keeps_and_wants_labels():
    system = cart()
    law = ltv.lqr(system, np.eye(2), [[1.0]])
    loop = ltv.closed_loop(system, law.K)
    turned = ltv.closed_loop(system, law.K.isel(state=[1, 0]))
    xr.testing.assert_identical(loop, turned)
    assert loop.state.values.tolist() == STATES


def test_targets_weights_and_initial_states_of_plans():
    system = cart().assign_coords(input=["force"])
    right = ltv.minimum_energy(system, [1.0, 2.0], x0=[0.5, -1.0])
    for order in ([0, 1], [1, 0]):
        names = [STATES[i] for i in order]
        target = vector([1.0, 2.0], STATES, "output").isel(output=order)
        plan = ltv.minimum_energy(
            system, target, x0=vector([0.5, -1.0], STATES, "state").isel(state=order)
        )
        xr.testing.assert_allclose(plan, right, rtol=1e-9)
        assert plan.output.values.tolist() == STATES
        # outputs by name, in any order of target
        plan = ltv.minimum_energy(system, target, outputs=names, x0=[0.5, -1.0])
        np.testing.assert_allclose(plan.u, right.u, rtol=1e-7)
        assert plan.output.values.tolist() == names
    one = ltv.minimum_energy(system, 1.0, outputs="vel", hold="pos")
    same = ltv.minimum_energy(system, 1.0, outputs=1, hold=0)
    xr.testing.assert_identical(one, same)
    state = vector([2.0, 1.0], OTHER, "state")
    plan = ltv.minimum_energy(system, state)
    np.testing.assert_allclose(ltv.simulate(system, plan.u).x[-1], [1.0, 2.0], atol=1e-9)
    assert plan.predicted.state.values.tolist() == STATES
    weights = xr.DataArray(np.arange(1.0, 21.0), dims=["layer"], coords={"layer": range(20)})
    backwards = weights.isel(layer=slice(None, None, -1))
    xr.testing.assert_identical(
        ltv.minimum_energy(system, [1.0, 2.0], weights=backwards),
        ltv.minimum_energy(system, [1.0, 2.0], weights=weights),
    )


def test_names_beside_the_outputs_count_as_labels():
    system = cart(output=None).assign_coords(output_name=("output", STATES))
    right = ltv.minimum_energy(system, [1.0, 2.0])
    turned = ltv.minimum_energy(system, vector([2.0, 1.0], OTHER, "output"))
    np.testing.assert_allclose(turned.u, right.u, rtol=1e-9)
    assert right.output_name.values.tolist() == STATES
    same = ltv.minimum_energy(system, 1.0, outputs="vel")
    np.testing.assert_allclose(same.u, ltv.minimum_energy(system, 1.0, outputs=1).u)
    with pytest.raises(ValueError, match=r"`outputs` must name outputs of the system, \['pos', "):
        ltv.minimum_energy(system, 1.0, outputs="speed")


def test_positions_are_the_labels_of_outputs_without_any():
    system = cart(output=None)
    right = ltv.minimum_energy(system, [1.0, 2.0])
    turned = ltv.minimum_energy(system, vector([2.0, 1.0], [1, 0], "output"))
    np.testing.assert_allclose(turned.u, right.u, rtol=1e-9)
    again = ltv.minimum_energy(system, right.target.isel(output=[1, 0]))
    np.testing.assert_allclose(again.u, right.u, rtol=1e-9)
    with pytest.raises(ValueError, match=r"`target` must have the labels of the system along 'out"):
        ltv.minimum_energy(system, vector([2.0, 1.0], [3, 4], "output"))


def test_inputs_and_initial_states_of_a_simulation():
    A, B, C, D = random_arrays(0, batch=(2,))
    system = ltv.system(A, B, C, D, batch_dims=["prompt"]).assign_coords(
        input=["a", "b"], prompt=["x", "y"], state=list("pqr"), state_next=list("pqr")
    )
    rng = np.random.default_rng(0)
    u = xr.DataArray(
        rng.standard_normal((2, 4, 2)),
        dims=["prompt", "layer", "input"],
        coords={"prompt": ["x", "y"], "layer": range(4), "input": ["a", "b"]},
    )
    x0 = xr.DataArray(
        rng.standard_normal((2, 3)),
        dims=["prompt", "state"],
        coords={"prompt": ["x", "y"], "state": list("pqr")},
    )
    right = ltv.simulate(system, u, x0)
    turned = ltv.simulate(
        system,
        u.isel(prompt=[1, 0], layer=[2, 0, 1, 3], input=[1, 0]),
        x0.isel(prompt=[1, 0], state=[2, 1, 0]),
    )
    xr.testing.assert_allclose(turned, right, rtol=1e-12)
    assert right.x.state.values.tolist() == list("pqr")
    other = u.assign_coords(prompt=["x", "z"])
    with pytest.raises(ValueError, match=r"`u` must have the labels of the system along 'prompt'"):
        ltv.simulate(system, other)
    three = xr.concat([u, u.isel(prompt=[0])], dim="prompt")
    with pytest.raises(ValueError, match=r"`u` must have as many prompts as the system, 2; got 3"):
        ltv.simulate(system, three)
    one = system.isel(prompt=0, drop=True)
    with pytest.raises(ValueError, match=r"`x0` must have the labels of the u along 'prompt'"):
        ltv.simulate(one, u, x0.assign_coords(prompt=["x", "z"]))
    assert ltv.simulate(one, u, x0.isel(prompt=[1, 0])).x.prompt.values.tolist() == ["x", "y"]


def test_the_energy_of_a_set_of_layers():
    system = cart()
    right = ltv.actuator_layers(system, 2, ltv.Energy(target=[1.0, 0.2]))
    turned = ltv.actuator_layers(system, 2, ltv.Energy(target=vector([0.2, 1], OTHER, "output")))
    np.testing.assert_array_equal(turned.layers, right.layers)
    np.testing.assert_allclose(turned.value, right.value, rtol=1e-12)
    with pytest.raises(ValueError, match="`target` must have the labels of the system along 'outp"):
        ltv.actuator_layers(system, 2, ltv.Energy(target=vector([1, 2], ["a", "b"], "output")))


@pytest.mark.parametrize("unit", [1e-10, 1e10])
def test_no_unit_of_an_output_chooses_layers(unit):
    A, B, C, _ = random_arrays(3, p=2)
    right = ltv.actuator_layers(ltv.system(A, B, C), 2, ltv.Energy(target=[1.0, 1.0]))
    scaled = ltv.system(A, B, C * np.array([[1.0], [unit]]))
    found = ltv.actuator_layers(scaled, 2, ltv.Energy(target=[1.0, unit]))
    for name in ("layers", "kept_layers", "optimal_layers"):
        np.testing.assert_array_equal(found[name], right[name])
    np.testing.assert_allclose(found.value, right.value, rtol=1e-6)


def test_given_directions_states_and_bases():
    system = cart()
    first = xr.DataArray(
        np.stack([np.arange(1.0, 3.0)] * 21), dims=["depth", "state"], coords={"state": STATES}
    )
    right = ltv.krylov_basis(system, order=1, start=first)
    turned = ltv.krylov_basis(system, order=1, start=first.isel(state=[1, 0]))
    xr.testing.assert_identical(turned, right)
    basis = ltv.balanced_basis(system, order=1).assign_coords(feature=STATES)
    small, same = (ltv.project(system, b) for b in (basis, basis.isel(feature=[1, 0])))
    xr.testing.assert_identical(small, same)
    with pytest.raises(ValueError, match=r"`basis\.V` must have the labels of the system along"):
        ltv.project(system, basis.assign_coords(feature=["a", "b"]))
    with pytest.raises(ValueError, match=r"`basis` must have the depths of the system"):
        ltv.project(system, basis.assign_coords(depth=range(1, 22)))
    direction = vector([1.0, 3.0], STATES, "state")
    np.testing.assert_allclose(
        ltv.reachable_fraction(system, direction.isel(state=[1, 0])),
        ltv.reachable_fraction(system, [1.0, 3.0]),
    )
    start = xr.DataArray([[1.0], [2.0]], dims=["state", "column"], coords={"state": STATES})
    np.testing.assert_array_equal(
        ltv.reachability_factors(system, start.isel(state=[1, 0])),
        ltv.reachability_factors(system, start.values),
    )


def test_orders_per_depth_and_maps():
    system = cart()
    kept = ltv.balanced_basis(system, order=1).order
    right = ltv.error_bounds(system, kept)
    xr.testing.assert_identical(ltv.error_bounds(system, kept[::-1]), right)
    with pytest.raises(
        ValueError, match="`order` must have the labels of the system along 'depth'"
    ):
        ltv.error_bounds(system, kept.assign_coords(depth=range(5, 26)))
    io = ltv.io_matrix(system)
    with pytest.raises(ValueError, match="`io` must have its depths in order"):
        ltv.realization(io.isel(depth=slice(None, None, -1)))


def test_a_system_whose_two_labels_of_the_state_disagree_is_refused():
    ltv.check(cart())
    ltv.check(cart(state_next=None))
    with pytest.raises(ValueError, match=r"`state_next` must have the labels of `state`, \['pos'"):
        ltv.check(cart(state_next=OTHER))
    with pytest.raises(ValueError, match="`state_next` must have the labels of `state`"):
        ltv.simulate(cart().isel(state=[1, 0]))
    turned = cart().isel(state=[1, 0], state_next=[1, 0])  # both: the same system
    np.testing.assert_allclose(ltv.gains(turned), ltv.gains(cart()))


def test_joints_of_systems_with_other_labels_are_refused():
    with pytest.raises(ValueError, match=r"`systems\[1\]` must have the labels .* along 'state'"):
        ltv.concatenate([cart(), cart(state=OTHER, state_next=OTHER)])
    with pytest.raises(ValueError, match=r"`systems\[1\]` must have the labels .* along 'output'"):
        ltv.concatenate([cart(), cart(output=OTHER)])


def test_other_labels_are_refused_and_what_has_none_goes_by_position():
    system, eye = cart(), np.eye(2)
    with pytest.raises(ValueError, match=r"`Q` must have the labels of the system along 'state', "):
        ltv.lqr(system, cost([1, 1], ["a", "b"]), [[1.0]])
    with pytest.raises(ValueError, match=r"`Q` must have the labels of the system along 'state'"):
        ltv.lqr(system, cost([1, 1], ["pos", "pos"]), [[1.0]])
    bare = cart(state=None, state_next=None, output=None)
    with pytest.raises(ValueError, match="`Q` must have no labels along 'state', since the system"):
        ltv.lqr(bare, cost([1, 1], STATES), [[1.0]])
    plain = xr.DataArray(np.diag([3.0, 1.0]), dims=["state", "state_2"])
    np.testing.assert_array_equal(
        ltv.lqr(system, plain, [[1.0]]).K, ltv.lqr(system, plain.values, [[1.0]]).K
    )
    per_task = xr.DataArray(np.stack([eye, 2 * eye]), dims=["task", "state", "state_2"])
    R = xr.DataArray([[[1.0]], [[2.0]]], dims=["task", "input", "input_2"])
    with pytest.raises(ValueError, match=r"`R` must have the labels of the Q along 'task'"):
        ltv.lqr(system, per_task.assign_coords(task=[0, 1]), R.assign_coords(task=[0, 2]))
    turned = R.assign_coords(task=[1, 0])
    law = ltv.lqr(system, per_task.assign_coords(task=[0, 1]), turned)
    np.testing.assert_allclose(law.K[1], ltv.lqr(system, 2 * eye, [[1.0]]).K)


def test_schedules_by_layer():
    u = xr.DataArray([1.0, 2.0, 3.0], dims=["layer"], coords={"layer": range(3)})
    turned = u.isel(layer=[2, 0, 1])
    assert schedule(xr.Dataset({"u": turned}), 3, 1).values.ravel().tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match=r"`plan\.u` must have the labels of the system along 'la"):
        schedule(xr.Dataset({"u": u.assign_coords(layer=[1, 2, 3])}), 3, 1)
    weights = xr.DataArray([1.0, 10.0, 100.0], dims=["layer"], coords={"layer": range(3)})
    assert float(plan_energy(turned, weights)) == 1 + 40 + 900
    system = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=3)
    gains = ltv.gains(system)
    xr.testing.assert_identical(
        simple_schedules(gains, np.ones(1), weights.isel(layer=[1, 2, 0])),
        simple_schedules(gains, np.ones(1), weights),
    )


def test_names_of_states_survive_in_increments_and_results():
    system = cart(state=None, state_next=None, output=None).assign_coords(
        state_name=("state", STATES), input_name=("input", ["force"])
    )
    more = ltv.input_increments(system)
    assert more.state_name.values.tolist() == ["previous force", "pos", "vel"]
    assert more.input_name.values.tolist() == ["force"]
    law = ltv.lqr(system, np.eye(2), [[1.0]])
    assert law.state_name.values.tolist() == STATES
    assert law.input_name.values.tolist() == ["force"]
    turned = xr.DataArray(
        np.diag([1.0, 100.0]), dims=["state", "state_2"], coords={"state": OTHER, "state_2": OTHER}
    )
    right = ltv.lqr(system, np.eye(2), [[1.0]], np.diag([100.0, 1.0]))
    xr.testing.assert_identical(ltv.lqr(system, np.eye(2), [[1.0]], turned), right)


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_no_unit_of_another_output_hides_what_a_layer_can_do(unit):
    A, B, C, _ = random_arrays(0, p=2)
    right = ltv.controllability(ltv.system(A, B, C)).energy_from_layer
    found = ltv.controllability(ltv.system(A, B, C * [[1.0], [unit]])).energy_from_layer
    np.testing.assert_allclose(found * np.array([1.0, unit**2]), right, rtol=1e-9)


# sums and joints of systems with names


def plant(names=("y", "z"), inputs=("f", "g"), **labels):
    system = ltv.constant(np.diag([0.5, 0.2]), [[1.0, 0.5], [0.0, 1.0]], np.eye(2), horizon=4)
    named = {"output_name": ("output", list(names)), "input_name": ("input", list(inputs))}
    return system.assign_coords({k: v for k, v in named.items() if v[1]} | labels)


def negative(system):
    return system.assign(C=-system.C, D=-system.D)


@pytest.mark.parametrize("dim", ["input", "output"])
@pytest.mark.parametrize("labelled", [False, True])
def test_sums_go_by_the_names_of_signals(dim, labelled):
    one = plant()
    if labelled:  # labels in place of names, or names beside labels, mean the same
        one = one.assign_coords({dim: one[f"{dim}_name"].values}).drop_vars(f"{dim}_name")
    turned = negative(one.isel({dim: [1, 0]}))
    for other in (turned, negative(plant().isel({dim: [1, 0]}))):
        nothing = ltv.parallel(one, other)
        assert float(ltv.induced_norm(nothing)) == 0.0
        kept = nothing[dim if labelled else f"{dim}_name"].values.tolist()
        assert kept == one[dim if labelled else f"{dim}_name"].values.tolist()


def test_a_sum_of_systems_with_other_names_is_refused():
    with pytest.raises(ValueError, match=r"`second` must have the labels of the first along 'out"):
        ltv.parallel(plant(), plant(names=("y", "w")))
    with pytest.raises(ValueError, match=r"`second` must have the labels of the first along 'inp"):
        ltv.parallel(plant(), plant(inputs=("g", "h")))
    # names in another order, labels in the same: which one is meant?
    twisted = plant(names=("z", "y"), output=[0, 1])
    with pytest.raises(ValueError, match="in the order of its names; got"):
        ltv.parallel(plant(output=[0, 1]), twisted)


def test_names_on_one_side_only_go_by_position():
    named, plain = plant(), plant(names=(), inputs=())
    for pair in ((named, negative(plain)), (plain, negative(named))):
        assert float(ltv.induced_norm(ltv.parallel(*pair))) == 0.0


def test_a_sum_keeps_the_names_of_states():
    one = plant().assign_coords(state_name=("state", ["a", "b"]))
    two = plant().assign_coords(state_name=("state", ["b", "c"]))
    assert ltv.parallel(one, two).state_name.values.tolist() == ["a", "b", "b_2", "c"]
    assert "state_name" not in ltv.parallel(one, plant()).coords
