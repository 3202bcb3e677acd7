"""Tables of energies: both kinds, intervals, saturation, further plans, splits; amplitudes."""

import numpy as np
import pytest
import scipy.optimize
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm import amplitude_search, energies
from tests.lm.conftest import labelled_ids


@pytest.fixture(scope="module")
def system(gpt2, tokens, concept):
    return lm.identify(gpt2, tokens, concept)


@pytest.fixture(scope="module")
def target(system):
    return 0.3 * float(abs(ltv.gains(system)).sum())


def norms(system):
    return system.state_norm.values[:-1]


def reaching(run, concept, shape, target, start, **options):
    """The schedule of that shape that reaches the target, by `lm.play` and brentq."""

    def miss(alpha):
        plan = xr.Dataset({"u": (("layer", "input"), np.atleast_2d(alpha * shape.T).T)})
        shift = np.atleast_1d(lm.play(run, concept, plan, **options).response.mean("prompt")[0])
        wanted = np.atleast_1d(target)
        return float(shift @ wanted / (wanted @ wanted)) - 1

    return shape * scipy.optimize.brentq(miss, 0.1 * start, 10 * start, rtol=1e-9)


# ------------------------------------------------------------------------------- both energies


@pytest.mark.parametrize("energy", ["relative", "absolute"])
def test_both_energies_of_both_uniform_schedules(held_out, concept, system, target, energy):
    table = lm.compare_energies(held_out, concept, system, target, energy=energy)
    norm, h = norms(system), ltv.gains(system).values.ravel()
    other = {"relative": "uniform_absolute", "absolute": "uniform_relative"}[energy]
    equal, alike = np.sign(h.sum()) * np.ones(3), np.sign(h @ norm) * norm
    shapes = [alike, equal] if energy == "relative" else [equal, alike]
    for name, shape in zip(["uniform", other], shapes, strict=True):
        row = table.sel(schedule=name)
        u = reaching(held_out, concept, shape, target, abs(target / (h @ shape)))
        np.testing.assert_allclose(row.energy_absolute, u @ u, rtol=1e-3)
        np.testing.assert_allclose(row.energy_relative, ((u / norm) ** 2).sum(), rtol=1e-3)
        np.testing.assert_allclose(row.largest_push, abs(u / norm).max(), rtol=1e-3)
        planned = (target / (h @ shape)) ** 2 * shape @ (shape / norm**2)
        if energy == "relative":
            np.testing.assert_allclose(row.planned_energy, planned, rtol=1e-6)
    kinds = [f"{name}_{energy}" for name in ("energy", "multiple")]
    for name, kind in zip(("energy", "multiple"), kinds, strict=True):
        np.testing.assert_allclose(table[name], table[kind], rtol=1e-12)
    for kind in ("relative", "absolute"):
        mine = table[f"energy_{kind}"].sel(schedule="minimum_energy", drop=True)
        np.testing.assert_allclose(table[f"multiple_{kind}"], table[f"energy_{kind}"] / mine)
    assert table.attrs["reference"] == "minimum_energy"


def test_relative_is_the_default_and_is_what_the_plan_minimises(held_out, concept, system, target):
    table = lm.compare_energies(held_out, concept, system, target)
    plan = ltv.minimum_energy(system, target, weights=1 / norms(system) ** 2)
    np.testing.assert_allclose(table.u, plan.u[:, 0])
    np.testing.assert_allclose(table.predicted_energy, plan.energy)
    np.testing.assert_allclose(table.planned_energy[0], plan.energy)


# -------------------------------------------------------------------------------- further plans


def test_further_plans_are_played_beside_the_others(held_out, concept, system, target):
    """A plan that is one of the others, of any size, needs what that one needs."""
    norm, h = norms(system), ltv.gains(system).values.ravel()
    same = xr.Dataset({"u": ("layer", 7 * np.sign(h @ norm) * norm)})
    last = xr.Dataset({"u": (("layer", "input"), [[0.0], [0.0], [np.sign(h[2]) / 9]])})
    table = lm.compare_energies(
        held_out, concept, system, target, plans={"same": same, "last": last}, reference="same"
    )
    names = table.schedule.values.tolist()
    assert names[:4] == ["minimum_energy", "same", "last", "uniform"]
    for mine, theirs in {"same": "uniform", "last": "last_layer"}.items():
        for name in ("energy", "energy_low", "energy_high", "multiple_high", "largest_push"):
            one, other = (table[name].sel(schedule=n) for n in (mine, theirs))
            np.testing.assert_allclose(one, other, rtol=1e-4)
    np.testing.assert_allclose(
        table.multiple, table.energy / float(table.energy.sel(schedule="uniform")), rtol=1e-4
    )
    np.testing.assert_allclose(table.multiple_low.sel(schedule="same"), 1)
    assert table.attrs["reference"] == "same"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plans": {"uniform": None}}, "`plans` must be named otherwise .* got 'uniform'"),
        ({"plans": {"layer_0": None}}, "`plans` must be named otherwise .* got 'layer_0'"),
        (
            {"plans": {"mine": xr.Dataset({"u": ("layer", [1.0])})}},
            r"`plans\['mine'\]` must hold u",
        ),
        ({"reference": "layer_0"}, "`reference` must be a schedule of the table, .* 'layer_0'"),
    ],
)
def test_plans_that_do_not_fit(held_out, concept, system, options, message):
    with pytest.raises(ValueError, match=message):
        lm.compare_energies(held_out, concept, system, 0.1, **options)


def test_plans_that_are_no_mapping(held_out, concept, system):
    with pytest.raises(TypeError, match="`plans` must be a mapping from names to plans; got"):
        lm.compare_energies(held_out, concept, system, 0.1, plans=xr.Dataset())


# ------------------------------------------------------------------------------------ intervals


def draws(n, count, seed=0):
    """The samples that the package draws: how often each prompt is in each."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=count)


SLOPES = np.array([0.4, 0.7, 1.0, 1.1, 1.6, 2.2])


def known(curve):
    """A model of which every prompt answers the push at the first layer by a known curve."""

    def shifts(run, concept, pushes, readout, title):
        return SLOPES[:, None, None] * curve(pushes[:, 0])[None]

    return shifts


@pytest.mark.parametrize(
    ("curve", "inverse"),
    [(lambda a: a, lambda y: y), (lambda a: np.tanh(a / 3), lambda y: 3 * np.arctanh(y))],
    ids=["linear", "tanh"],
)
@pytest.mark.parametrize("last", [False, True], ids=["", "the crossing is the last point"])
def test_intervals_of_energies_are_those_of_resampled_prompts(
    monkeypatch, held_out, concept, curve, inverse, last
):
    monkeypatch.setattr(energies, "shifts", known(curve))
    shape = xr.DataArray([[1.0, 0, 0]], dims=("schedule", "layer"))
    amplitude = inverse(0.5 / SLOPES.mean()) / 2 if last else 0.9
    found = lm.required_energy(
        held_out, concept, shape, 0.5, amplitude=amplitude, n_bootstrap=400, level=0.9, seed=3
    )
    means = draws(6, 400, seed=3) @ SLOPES / 6
    expected = np.quantile(inverse(0.5 / means) ** 2, [0.05, 0.95])
    rtol = 1e-9 if curve(3.0) == 3.0 else 1e-2
    np.testing.assert_allclose(found.energy_low[0], expected[0], rtol=rtol)
    np.testing.assert_allclose(found.energy_high[0], expected[1], rtol=rtol)
    np.testing.assert_allclose(found.energy, inverse(0.5 / SLOPES.mean()) ** 2, rtol=1e-3)


def test_an_upper_end_that_is_never_reached_is_unknown(monkeypatch, held_out, concept):
    """The mean slope must be 1.1 at least: many samples have less, at any amplitude."""
    monkeypatch.setattr(energies, "shifts", known(np.tanh))
    shape = xr.DataArray([[1.0, 0, 0]], dims=("schedule", "layer"))
    found = lm.required_energy(held_out, concept, shape, 1.1, amplitude=1.0)
    assert found.reached.all()
    assert np.isfinite(found.energy_low).all()
    assert np.isnan(found.energy_high).all()


def test_one_prompt_has_no_interval(gpt2, concept):
    run = gpt2.run(labelled_ids(2, 9).ids[:1])
    shape = xr.DataArray(np.eye(3)[:1], dims=("schedule", "layer"))
    found = lm.required_energy(run, concept, shape, 1e-3, amplitude=0.01)
    assert np.isnan(found[["energy_low", "energy_high"]].to_array()).all()


def test_ratios_are_of_the_same_samples(monkeypatch, held_out, concept, system):
    """What all prompts share cancels: here every schedule needs the same, whatever the sample."""

    def shifts(run, concept, pushes, readout, title):
        return SLOPES[:, None, None] * np.abs(pushes).sum((1, 2))[None, :, None]

    monkeypatch.setattr(energies, "shifts", shifts)
    table = lm.compare_energies(held_out, concept, system, 0.2)
    assert (table.energy_high > 1.5 * table.energy_low).all()
    for bound in ("multiple_low", "multiple_high"):
        np.testing.assert_allclose(table[bound], table.multiple, rtol=1e-4)


# ----------------------------------------------------------------------------------- saturation


@pytest.mark.parametrize(
    ("curve", "target", "expected"),
    [
        (lambda a: a, 2.0, (True, True, False)),
        (np.tanh, 0.5, (True, True, False)),
        (np.tanh, 0.999, (True, True, True)),
        (np.tanh, 1.1, (False, True, True)),
        (np.sin, 1.2, (False, False, True)),
        (lambda a: -a, 1.0, (False, False, False)),
        (lambda a: a**2, 1.0, (True, True, False)),
        # it rests at 0.5 and rises again
        (lambda a: np.minimum(a, 0.5) + np.maximum(a - 3, 0), 1.0, (True, True, True)),
    ],
)
def test_saturation_and_turning_are_said(monkeypatch, held_out, concept, curve, target, expected):
    monkeypatch.setattr(
        energies, "shifts", lambda run, c, p, r, t: np.repeat(curve(p[None, :, 0]), len(run), 0)
    )
    shape = xr.DataArray(np.eye(3)[:1], dims=("schedule", "layer"))
    found = lm.required_energy(held_out, concept, shape, target, amplitude=target)
    said = tuple(bool(found[name][0]) for name in ("reached", "monotone", "saturates"))
    assert said == expected


def test_a_table_says_what_saturates(monkeypatch, held_out, concept, system):
    def shifts(run, concept, pushes, readout, title):
        parts = abs(pushes[:, :, 0]) * [1.0, 1.0, 0.0] + np.tanh(abs(pushes[:, :, 0])) * [0, 0, 1.0]
        return np.repeat(parts.sum(1)[None, :, None], len(run), 0)

    monkeypatch.setattr(energies, "shifts", shifts)
    table = lm.compare_energies(held_out, concept, system, 2.0).set_index(schedule="schedule")
    said = table.saturates.to_series()
    assert said[["last_layer", "random_single_layer"]].all()
    assert not said[["first_layer", "middle_layer", "minimum_energy"]].any()
    assert not bool(table.reached.sel(schedule="last_layer"))


# ------------------------------------------------------------------------- a layer drawn at random


def test_the_range_of_a_layer_drawn_at_random(monkeypatch, held_out, concept, system):
    """Layers reach the target at 1, 2 and never: the median is there, the upper quarter is not."""

    def shifts(run, concept, pushes, readout, title):
        y = np.abs(pushes[:, 0]) + np.abs(pushes[:, 1]) / 2
        return np.repeat(y[None], len(run), 0)

    monkeypatch.setattr(energies, "shifts", shifts)
    table = lm.compare_energies(held_out, concept, system, 1.0, energy="absolute")
    np.testing.assert_allclose(table.single_energy, [1, 4, np.nan], rtol=3e-4)
    np.testing.assert_allclose(table.random_energy, [1, 2.5, 4, np.nan, np.nan], rtol=3e-4)
    np.testing.assert_allclose(
        table.random_multiple, table.random_energy / float(table.energy[0]), rtol=1e-12
    )
    np.testing.assert_allclose(table.energy.sel(schedule="random_single_layer"), 4, rtol=3e-4)
    assert table["quantile"].values.tolist() == [0, 0.25, 0.5, 0.75, 1]


# ---------------------------------------------------------------- several inputs, other readouts


@pytest.fixture(scope="module")
def two(concept):
    v = np.random.default_rng(4).standard_normal((4, 16))
    other = xr.Dataset({"direction": (("depth", "feature"), v)})
    other["direction"] /= np.sqrt((other.direction**2).sum("feature"))
    return lm.several({"one": concept, "two": other})


@pytest.mark.parametrize("readout", ["concept", lm.LogitDifference(3, 7)])
def test_several_concepts_and_readouts(gpt2, tokens, held_out, two, readout):
    system = lm.identify(gpt2, tokens, two, lm.Ensemble(order=4), readout=readout)
    reach = 0.2 * abs(ltv.gains(system)).sum(["layer", "input"]).values
    target = reach * np.array([1.0, -0.5])[: len(reach)]
    norm = norms(system)
    plan = ltv.minimum_energy(system, target, weights=1 / norm**2)
    table = lm.compare_energies(held_out, two, system, target, readout=readout)
    row = table.sel(schedule="minimum_energy")
    u = reaching(held_out, two, plan.u.values, target, 1.0, readout=readout)
    np.testing.assert_allclose(row.energy_relative, ((u / norm[:, None]) ** 2).sum(), rtol=1e-3)
    np.testing.assert_allclose(row.energy_absolute, (u**2).sum(), rtol=1e-3)
    v = two.direction.values[:-1]
    push = np.linalg.norm(np.einsum("li,lif->lf", u, v), axis=1) / norm
    np.testing.assert_allclose(row.largest_push, push.max(), rtol=1e-3)
    assert (row.energy_low < row.energy) & (row.energy < row.energy_high)
    assert table.response.sizes.get("output", 1) == len(target)
    with pytest.raises(ValueError, match="`target` must"):
        lm.compare_energies(held_out, two, system, np.ones(3), readout=readout)


def test_plans_with_their_inputs_in_another_order_are_the_same(gpt2, tokens, held_out, two):
    system = lm.identify(gpt2, tokens, two, lm.Ensemble(order=4))
    target = 0.1 * abs(ltv.gains(system)).sum(["layer", "input"]).values * [1.0, -0.5]
    plan = ltv.minimum_energy(system, target)
    other = plan.isel(input=[1, 0])
    table = lm.compare_energies(
        held_out, two, system, target, plans={"as_it_is": plan, "turned": other}, n_bootstrap=5
    )
    mine = table["energy"].sel(schedule="minimum_energy")
    for name in ("as_it_is", "turned"):
        np.testing.assert_allclose(table["energy"].sel(schedule=name), mine, rtol=1e-12)


# -------------------------------------------------------------------------------------- splits


def table_of(energy, planned=2.0, **attrs):
    """A table of two schedules; NaN where one does not reach the target."""
    energy = np.array(energy)
    flags = {"reached": np.isfinite(energy), "monotone": energy < 5, "saturates": energy > 3}
    values = {"largest_push": energy / 10, "energy": energy, "multiple": energy / energy[0]}
    for kind in ("relative", "absolute"):
        values |= {f"{n}_{kind}": values[n] * len(kind) for n in ("energy", "multiple")}
    data = {name: ("schedule", value) for name, value in {**values, **flags}.items()}
    table = xr.Dataset(data, {"schedule": ["minimum_energy", "uniform"]})
    table["predicted_energy"] = planned
    return table.assign_attrs({"energy": "relative", "reference": "minimum_energy"} | attrs)


def test_tables_of_splits_are_joined_in_median_and_range():
    parts = [
        table_of([1.0, 4.0], target=0.1, seed=1),
        table_of([2.0, 3.0], target=0.1, seed=2),
        table_of([4.0, np.nan], 4.0, target=0.1, seed=3).isel(schedule=[1, 0]),
    ]
    found = lm.energies_over_splits(parts)
    assert found.over_splits.values.tolist() == ["median", "least", "largest"]
    np.testing.assert_array_equal(found.energy, [[2, 1, 4], [4, 3, np.nan]])
    np.testing.assert_array_equal(found.multiple, [[1, 1, 1], [4, 1.5, np.nan]])
    np.testing.assert_array_equal(found.energy_absolute, 8 * found.energy)
    np.testing.assert_array_equal(found.largest_push, found.energy / 10)
    np.testing.assert_array_equal(found.ratio, [1.0, 0.5, 1.0])
    assert found.reached.values.tolist() == [3, 2]
    assert found.saturates.values.tolist() == [1, 1]
    assert found.not_monotone.values.tolist() == [0, 1]
    assert found.attrs["n_splits"] == 3
    assert found.attrs["target"] == 0.1
    assert "seed" not in found.attrs
    joined = xr.concat(parts[:2], "split", combine_attrs="drop_conflicts")
    xr.testing.assert_equal(lm.energies_over_splits(joined), lm.energies_over_splits(parts[:2]))


def test_tables_that_do_not_belong_together():
    one = table_of([1.0, 2.0])
    with pytest.raises(ValueError, match="`tables` must have the dim 'split'; got"):
        lm.energies_over_splits(one)
    with pytest.raises(ValueError, match="`tables` must hold a table at least; got none"):
        lm.energies_over_splits([])
    with pytest.raises(ValueError, match="`tables` must hold the same schedules; got"):
        lm.energies_over_splits([one, one.isel(schedule=[0])])
    with pytest.raises(ValueError, match="must have one energy; got 'absolute' in number 1"):
        lm.energies_over_splits([one, one.assign_attrs(energy="absolute")])
    with pytest.raises(TypeError, match="`tables` must be tables of `compare_energies`; got"):
        lm.energies_over_splits({"a": one})


# ------------------------------------------------------------------------------------ amplitudes


def test_amplitudes_against_plays_one_by_one(held_out, concept, system, target):
    plan = ltv.minimum_energy(system, target, weights=1 / norms(system) ** 2).u[:, 0]
    u = xr.concat([plan, plan * [1.0, 0, 0]], "schedule").assign_coords(schedule=["plan", "first"])
    found = lm.amplitude_response(
        held_out, concept, system, u, amplitudes=[0.0, 0.5, 2.0], n_bootstrap=50, level=0.8, seed=5
    )
    h = ltv.gains(system).values.ravel()
    assert found.achieved.dims == ("schedule", "amplitude", "bound")
    for name in ("plan", "first"):
        for amplitude in (0.0, 0.5, 2.0):
            one = found.sel(schedule=name, amplitude=amplitude)
            pushes = amplitude * u.sel(schedule=name).values
            played = lm.play(held_out, concept, xr.Dataset({"u": ("layer", pushes)})).response[:, 0]
            np.testing.assert_allclose(one.predicted, h @ pushes, atol=1e-12)
            np.testing.assert_allclose(one.achieved.sel(bound="estimate"), played.mean(), atol=1e-9)
            means = draws(6, 50, seed=5) @ played.values / 6
            ends = np.quantile(means, [0.1, 0.9])
            np.testing.assert_allclose(one.achieved.sel(bound=["low", "high"]), ends, atol=1e-9)
            np.testing.assert_allclose(one.spread, played.std(), atol=1e-9)
    assert float(found.predicted.sel(schedule="plan", amplitude=0.5)) == pytest.approx(target / 2)


def test_amplitudes_of_several_outputs(gpt2, tokens, held_out, two):
    system = lm.identify(gpt2, tokens, two, lm.Ensemble(order=4))
    plan = ltv.minimum_energy(system, [0.1, -0.1])
    u = plan.u.expand_dims(schedule=["plan"])
    found = lm.amplitude_response(held_out, two, system, u, amplitudes=[1.0])
    np.testing.assert_allclose(found.predicted[0, 0], [0.1, -0.1])
    expected = lm.play(held_out, two, plan).response.mean("prompt")[0]
    np.testing.assert_allclose(found.achieved[0, 0].sel(bound="estimate"), expected, atol=1e-9)


def test_amplitudes_that_are_none(gpt2, tokens, held_out, concept, system):
    u = xr.DataArray(np.eye(3)[:1], dims=("schedule", "layer"))
    for wrong in ([], [[1.0]], [np.nan]):
        with pytest.raises(ValueError, match="`amplitudes` must be a list of finite factors"):
            lm.amplitude_response(held_out, concept, system, u, amplitudes=wrong)
    each = lm.identify(gpt2, tokens, concept, per_prompt=True)
    with pytest.raises(ValueError, match="`system` must be one system; got 8 along 'prompt'"):
        lm.amplitude_response(held_out, concept, each, u)


def test_a_resampled_crossing_lies_on_the_way_to_the_target():
    """Two of three points are below 1: it crosses between the second and the third."""
    found = amplitude_search._first_crossings(
        np.array([1.0, 2.0]), np.array([[0.5, 1.0], [0, 0.9]])
    )
    assert found.tolist() == [2.0, np.inf]
