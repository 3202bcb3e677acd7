"""The algebra of schedules, by hand and by loops."""

import numpy as np
import pytest
import xarray as xr

from depthsys import ltv
from depthsys.ltv.plan import (
    layer_weights,
    plan_energy,
    schedule,
    simple_schedules,
    to_unit_energy,
)

L, M, P = 4, 2, 3


def array(seed, **sizes):
    values = np.random.default_rng(seed).standard_normal(tuple(sizes.values()))
    return xr.DataArray(values, dims=tuple(sizes))


@pytest.fixture
def system():
    rng = np.random.default_rng(0)
    found = ltv.system(
        rng.standard_normal((L, 5, 5)), rng.standard_normal((L, 5, M)), np.ones((L + 1, P, 5))
    )
    return found.assign(state_norm=("depth", [1.0, 2.0, 4.0, 5.0, 7.0]))


# ------------------------------------------------------------------------------- schedule


def test_a_schedule_is_taken_in_any_order_of_its_dims():
    u = array(1, layer=L, input=M)
    for given in (u, u.transpose("input", "layer"), u.assign_coords(layer=np.arange(L))):
        found = schedule(xr.Dataset({"u": given}), L, M)
        assert found.dims == ("layer", "input")
        np.testing.assert_array_equal(found, u)


def test_a_single_input_needs_no_dim():
    u = array(1, layer=L)
    found = schedule(xr.Dataset({"u": u}), L, 1)
    assert found.dims == ("layer", "input")
    np.testing.assert_array_equal(found[:, 0], u)
    with_dim = schedule(xr.Dataset({"u": u.expand_dims("input")}), L, 1)
    np.testing.assert_array_equal(with_dim, found)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (array(0, layer=L), r"`plan` must be a Dataset with the variable 'u'; got DataArray"),
        (xr.Dataset({"v": array(0, layer=L)}), r"variable 'u'; got \['v'\]\. Make one with"),
        (xr.Dataset({"u": array(0, layer=3, input=M)}), r"u \(layer=4, input=2\); got .*layer.: 3"),
        (xr.Dataset({"u": array(0, layer=L, input=3)}), r"u \(layer=4, input=2\); got .*input.: 3"),
        (xr.Dataset({"u": array(0, layer=L)}), r"u \(layer=4, input=2\); got \{.layer.: 4\}"),
        (
            xr.Dataset({"u": array(0, prompt=2, layer=L, input=M)}),
            r"got \{.prompt.: 2, .*\. Select one schedule of a batch first",
        ),
        (
            xr.Dataset({"u": array(0, layer=L, input=M) * 1j}),
            r"`plan` must hold real numbers as u; got complex128\. Take the real part",
        ),
    ],
)
def test_what_is_no_schedule_is_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        schedule(plan, L, M)


def test_the_argument_is_named_as_the_caller_names_it():
    with pytest.raises(ValueError, match="`push` must be a Dataset"):
        schedule(xr.Dataset(), L, M, name="push")


# ------------------------------------------------------------------------------- energy


def test_weights_are_one_or_one_over_the_square_of_the_norm(system):
    np.testing.assert_array_equal(layer_weights(system, "absolute"), np.ones(L))
    relative = layer_weights(system, "relative")
    assert relative.dims == ("layer",)
    np.testing.assert_allclose(relative, [1, 1 / 4, 1 / 16, 1 / 25])
    with pytest.raises(
        ValueError, match=r"`energy` must be one of \('relative', 'absolute'\); got"
    ):
        layer_weights(system, "total")


def test_energy_is_the_weighted_sum_of_squares():
    u, w = array(1, schedule=5, layer=L, input=M), xr.DataArray([1.0, 2, 3, 4], dims="layer")
    by_hand = [
        sum(float(w[k]) * sum(float(u[s, k, i]) ** 2 for i in range(M)) for k in range(L))
        for s in range(5)
    ]
    found = plan_energy(u, w)
    assert found.dims == ("schedule",)
    np.testing.assert_allclose(found, by_hand)
    np.testing.assert_allclose(plan_energy(u), (u.values**2).sum((1, 2)))
    # one input without a dim; layers that are numbered, or numbered otherwise
    np.testing.assert_allclose(plan_energy(u[0, :, 0]), (u[0, :, 0].values ** 2).sum())
    numbered = u.assign_coords(layer=np.arange(L)), w.assign_coords(layer=np.arange(L))
    np.testing.assert_allclose(plan_energy(*numbered), by_hand)


def test_unit_energy_keeps_shapes_and_signs():
    u, w = array(1, schedule=5, layer=L, input=M), xr.DataArray([1.0, 2, 3, 4], dims="layer")
    for weights in (None, w):
        unit = to_unit_energy(u, weights)
        np.testing.assert_allclose(plan_energy(unit, weights), 1)
        ratio = (unit / u).values
        assert (ratio > 0).all()
        np.testing.assert_allclose(ratio, ratio[:, :1, :1] * np.ones((1, L, M)))
    with pytest.raises(ValueError, match=r"`schedules` must not be zero; got an all-zero row"):
        to_unit_energy(xr.concat([u, 0 * u[:1]], dim="schedule"))
    for value in (np.nan, np.inf):
        spoilt = u.copy()
        spoilt[2, 1, 0] = value
        with pytest.raises(ValueError, match="`schedules` must be finite; got NaN or infinity"):
            to_unit_energy(spoilt)


# ------------------------------------------------------------------------------- simple ones


@pytest.mark.parametrize("weights", [None, xr.DataArray([1.0, 2.0, 0.5, 4.0], dims="layer")])
def test_single_layers_push_where_the_energy_does_most(weights):
    """Against every direction of a grid: none of the same energy makes more progress."""
    gains, d = array(2, layer=L, output=P, input=M), np.array([1.0, -0.5, 2.0])
    found = simple_schedules(gains, d, weights)
    assert found.dims == ("schedule", "layer", "input")
    assert found.schedule.values.tolist() == ["uniform", *(f"layer_{k}" for k in range(L))]
    angles = np.linspace(0, 2 * np.pi, 721)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for layer in range(L):
        row = found.sel(schedule=f"layer_{layer}").values
        assert not np.delete(row, layer, axis=0).any()
        np.testing.assert_allclose(np.linalg.norm(row[layer]), 1)
        progress = circle @ gains[layer].values.T @ d
        mine = d @ gains[layer].values @ row[layer]
        assert mine >= progress.max() - 1e-9
        assert mine <= progress.max() * 1.001


def test_the_uniform_one_has_one_size_and_a_sign_per_input():
    gains, d = array(2, layer=L, output=P, input=M), np.array([1.0, -0.5, 2.0])
    uniform = simple_schedules(gains, d).sel(schedule="uniform").values
    for i in range(M):
        along = sum(float(d @ gains[k, :, i].values) for k in range(L))
        np.testing.assert_array_equal(uniform[:, i], np.sign(along))


def test_one_input_and_one_output_push_by_the_sign_of_the_gain():
    gains = xr.DataArray(
        np.array([2.0, -1.0, 0.5])[:, None, None], dims=("layer", "output", "input")
    )
    for target in (3.0, np.array([3.0])):
        found = simple_schedules(gains, target).values[..., 0]
        np.testing.assert_array_equal(found[0], [1, 1, 1])
        np.testing.assert_array_equal(found[1:], np.diag([1, -1, 1]))
    down = simple_schedules(gains, -3.0).values[..., 0]
    np.testing.assert_array_equal(down[0], [-1, -1, -1])
    np.testing.assert_array_equal(down[1:], np.diag([-1, 1, -1]))


def test_a_layer_without_a_gain_is_pushed_along_its_first_input():
    gains = array(2, layer=L, output=P, input=M)
    gains[1] = 0
    found = simple_schedules(gains, np.ones(P))
    np.testing.assert_array_equal(found.sel(schedule="layer_1")[1], [1, 0])
    assert (plan_energy(found) > 0).all()


def test_weights_of_other_layers_are_refused():
    gains = array(2, layer=L, output=P, input=M)
    with pytest.raises(ValueError, match="`weights` must"):
        simple_schedules(gains, np.ones(P), xr.DataArray(np.ones(3), dims="layer"))


def test_the_minimum_energy_plan_needs_least_of_all(system):
    """Schedules scaled so that the linear model reaches the target along their own progress."""
    gains, d = ltv.gains(system), np.array([0.5, 0.5, 0.5])  # all outputs read the same
    weights = layer_weights(system, "relative")
    plan = ltv.minimum_energy(system, d, weights=weights.values)
    np.testing.assert_allclose(plan_energy(plan["u"], weights), plan["energy"])
    unit = to_unit_energy(simple_schedules(gains, d, weights), weights)
    reach = np.einsum("loi,sli,o->s", gains.transpose("layer", "output", "input"), unit, d)
    least = (d @ d / reach) ** 2
    assert (least >= float(plan["energy"]) * (1 - 1e-9)).all()
