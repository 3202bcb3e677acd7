"""The search for the energy that schedules need, against dense scans and known readouts."""

import numpy as np
import pytest
import scipy.optimize
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm import amplitude_search, energies
from depthsys.ltv.plan import layer_weights, simple_schedules, to_unit_energy
from tests.conftest import TINY
from tests.lm import one_family, whole_sequence
from tests.lm.conftest import labelled_ids

tiny = one_family.tiny


@pytest.fixture(scope="module")
def system(tiny, tokens, concept):
    return lm.identify(tiny, tokens, concept)


def test_random_single_layer_counts_unreached_layers_as_infinite(
    monkeypatch, system, tiny, tokens, concept
):
    def one_layer_works(run, concept, pushes, readout, title):
        reach = pushes[:, 0]
        return np.broadcast_to(reach, (len(run), *reach.shape))

    monkeypatch.setattr(energies, "shifts", one_layer_works)
    result = lm.compare_energies(tiny, tokens, concept, system, 0.1).sel(
        schedule="random_single_layer"
    )
    assert not bool(result.reached)
    assert np.isnan(result.energy)


def test_baselines_push_where_the_system_predicts_progress(
    monkeypatch, system, tiny, tokens, concept
):
    seen = []

    def record(run, concept, pushes, readout, title):
        seen.append(pushes[..., 0])
        return np.ones((len(run), len(pushes), 1))

    monkeypatch.setattr(energies, "shifts", record)
    for sign in (1, -1):
        flipped = system.assign(B=sign * system.B)
        h = ltv.gains(flipped).values.ravel()
        for target in (0.1, -0.1):
            seen.clear()
            lm.compare_energies(tiny, tokens, concept, flipped, target)
            assert (seen[0] @ h * target > 0).all()


def test_required_energy_is_the_first_crossing_on_the_full_model(tiny, tokens, concept, system):
    plan = ltv.minimum_energy(system, target=0.3, energy="absolute")
    schedules = plan.u.rename(input="schedule").assign_coords(schedule=["plan"])
    amplitude = float(np.sqrt(plan.energy))
    found = lm.required_energy(tiny, tokens, concept, schedules, 0.3, amplitude=amplitude)
    v, unit = concept.direction.values, plan.u.values[:, 0] / amplitude
    alpha = float(found.alpha[0])

    def shift(a):
        return np.mean([whole_sequence.played(tiny.hf, i, v, a * unit) for i in tokens.ids])

    np.testing.assert_allclose(shift(alpha), 0.3, rtol=1e-4)
    np.testing.assert_allclose(found.response.mean(), 0.3, rtol=1e-4)
    grid = np.linspace(0, 0.98 * alpha, 12)
    assert max(shift(a) for a in grid) < 0.3
    np.testing.assert_allclose(found.energy, alpha**2)


def known_shifts(run, concept, pushes, readout, title):
    """A readout that is a known function of the pushes, to test the search alone."""
    y = np.tanh(pushes[:, 0]) + 0.5 * pushes[:, 1] + np.sin(pushes[:, 2])
    return np.broadcast_to(y, (len(run), *y.shape))


def test_search_reports_what_is_never_reached_and_what_is_not_monotone(monkeypatch, tiny, concept):
    monkeypatch.setattr(energies, "shifts", known_shifts)
    run = tiny.run(labelled_ids(4, 0))
    names = ["saturates", "linear", "oscillates", "backwards"]
    schedules = xr.DataArray(
        [[1.0, 0, 0], [0, 2.0, 0], [0.0, 0.2, 0.2], [0, -1.0, 0]],
        dims=["schedule", "layer"],
        coords={"schedule": names},
    )
    found = lm.required_energy(run, concept, schedules, 2.0, amplitude=1.0)
    assert found.reached.values.tolist() == [False, True, True, False]
    np.testing.assert_allclose(found.energy.sel(schedule="linear"), 16, rtol=1e-6)
    assert np.isnan(found.energy.sel(schedule="saturates"))
    assert found.monotone.values.tolist() == [True, True, False, False]
    # weights change the unit: the same crossing costs four times as much
    weighted = lm.required_energy(
        run, concept, schedules[1:2], 2.0, amplitude=1.0, weights=np.array([1, 4.0, 1])
    )
    np.testing.assert_allclose(weighted.energy, 64, rtol=1e-6)
    # a negative target is reached from the other side
    down = lm.required_energy(run, concept, schedules[3:], -2.0, amplitude=1.0)
    np.testing.assert_allclose(down.energy, 16, rtol=1e-6)
    np.testing.assert_allclose(down.response, -2.0, rtol=1e-6)


def test_compare_energies_ranks_the_baselines(tiny, tokens, concept, system):
    target = 1e-3  # small: the model is nearly linear there
    held_out = tokens
    result = lm.compare_energies(tiny, held_out, concept, system, target, energy="absolute")
    h = ltv.gains(system).values.ravel()
    single = (target / h) ** 2
    energy = result.energy.to_series()
    v = concept.direction.values
    for layer, spent in enumerate(result.single_energy.values):
        push = np.zeros(3)
        push[layer] = np.sign(h[layer]) * np.sqrt(spent)
        reached = np.mean([whole_sequence.played(tiny.hf, i, v, push) for i in tokens.ids])
        np.testing.assert_allclose(reached, target, rtol=5e-3)
    assert energy["best_single_layer"] == result.single_energy.min()
    assert energy["random_single_layer"] == np.median(result.single_energy)
    assert energy["middle_layer"] == float(result.single_energy[1])
    assert energy["last_layer"] == float(result.single_energy[2])
    np.testing.assert_allclose(result.predicted_energy, 1 / (1 / single).sum())
    np.testing.assert_allclose(result.multiple, result.energy / energy["minimum_energy"])
    np.testing.assert_allclose(result.u, h * target / (h @ h))
    negative = lm.compare_energies(tiny, held_out, concept, system, -target, energy="absolute")
    np.testing.assert_allclose(negative.energy[0], energy["minimum_energy"], rtol=0.02)


def test_relative_energy_counts_pushes_by_the_size_of_the_state(tiny, tokens, concept, system):
    result = lm.compare_energies(tiny, tokens, concept, system, 1e-3)
    assert result.attrs["energy"] == "relative"
    h, norm = ltv.gains(system).values.ravel(), system.state_norm.values[:-1]
    scaled = h * norm
    np.testing.assert_allclose(result.predicted_energy, 1e-6 / (scaled @ scaled))
    np.testing.assert_allclose(result.u, 1e-3 * h * norm**2 / (scaled @ scaled))
    absolute = lm.compare_energies(tiny, tokens, concept, system, 1e-3, energy="absolute")
    ratio = result.single_energy / absolute.single_energy
    np.testing.assert_allclose(ratio, 1 / norm**2, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t, c, s: lm.compare_energies(m, t, c, s, 0.0), "`target` must be finite"),
        (lambda m, t, c, s: lm.compare_energies(m, t, c, s, 1.0, energy="x"), "`energy` must be"),
        (
            lambda m, t, c, s: lm.required_energy(
                m, t, c, xr.zeros_like(s.gain_full).expand_dims("schedule"), 1.0, amplitude=1.0
            ),
            "`schedules` must not be zero",
        ),
    ],
)
def test_bad_arguments(tiny, tokens, concept, system, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny, tokens, concept, system)


def test_a_response_that_turns_back_just_beyond_the_target_is_found():
    """It is 1.005 at 5.6, and below 1 at 4 and at 8, where the search looks first."""

    def play(rows, alphas):
        progress = 1.005 - 0.02 * np.log2(alphas / 5.6) ** 2
        return progress[None, :, None]

    search = amplitude_search.Search(play, np.array([1.0]), np.array([4.0]))
    search.bracket()
    search.refine()
    expected = 5.6 * 2 ** -np.sqrt(0.005 / 0.02)
    np.testing.assert_allclose(search.alpha, expected, rtol=0.02)
    assert abs(search.points[0][search.alpha[0]] - 1) <= amplitude_search.TOLERANCE
    assert search.monotone() == [True]


@pytest.mark.parametrize(
    ("curve", "crossing"),
    [
        (lambda a: np.where(a < 1.93, 0.2, 5.0), 1.93),
        (lambda a: a**6, 1.0),
        (lambda a: 1e-8 * np.expm1(a), np.log1p(1e8)),
    ],
    ids=["step", "sixth power", "exponential"],
)
@pytest.mark.parametrize("predicted", [0.3, 1.0, 20.0])
def test_what_is_called_reached_reaches_the_target(curve, crossing, predicted):
    """However steep the response, and however wrong the prediction."""

    def play(rows, alphas):
        return curve(alphas)[None, :, None]

    search = amplitude_search.Search(play, np.array([1.0]), np.array([predicted]))
    search.bracket()
    search.refine()
    if crossing > amplitude_search.LARGEST * predicted:
        assert np.isnan(search.alpha).all()
        return
    np.testing.assert_allclose(search.alpha, crossing, rtol=2e-4)
    assert curve(search.alpha)[0] >= 1 - amplitude_search.TOLERANCE
    np.testing.assert_array_equal(search.response[0, 0], curve(search.alpha))


@pytest.mark.parametrize("amplitude", [0.0, -1.0, np.nan, np.inf])
def test_an_amplitude_that_is_none(tiny, tokens, concept, amplitude):
    schedules = xr.DataArray(np.eye(3), dims=("schedule", "layer"))
    with pytest.raises(ValueError, match="`amplitude` must be positive and finite"):
        lm.required_energy(tiny, tokens, concept, schedules, 0.1, amplitude=amplitude)


# ------------------------------------------------------------- against a dense scan and brentq


def simple(system, target, energy="absolute"):
    """The schedules that a plan is compared with, and the plan, of unit energy."""
    weights = layer_weights(system, energy)
    plan = ltv.minimum_energy(system, target, weights=weights.values)
    others = simple_schedules(ltv.gains(system), np.atleast_1d(target), weights)
    mine = plan["u"].expand_dims(schedule=["plan"]).drop_vars("layer", errors="ignore")
    unit = to_unit_energy(xr.concat([mine, others], dim="schedule"), weights)
    return unit, float(np.sqrt(plan["energy"]))


def progress(run, concept, unit, target, alphas, readout="concept"):
    """Component of the mean shift along the target, by `lm.play`: 1 is the target."""
    plan = xr.Dataset({"u": unit})
    y = lm.play(run, concept, plan, scale=alphas, readout=readout).response.mean("prompt")
    y = (y if "output" in y.dims else y.expand_dims("output", -1)).transpose("scale", "output")
    wanted = np.atleast_1d(target)
    return y.values @ wanted / (wanted @ wanted)


def first_crossing(run, concept, unit, target, largest, readout="concept"):
    """The slow oracle: 400 amplitudes, then brentq in the first interval that crosses."""
    grid = np.concatenate([[0.0], np.geomspace(largest / 2**14, largest, 400)])
    crossed = progress(run, concept, unit, target, grid, readout) >= 1
    if not crossed.any():
        return np.nan
    end = int(crossed.argmax())

    def miss(alpha):
        return progress(run, concept, unit, target, [alpha], readout)[0] - 1

    return scipy.optimize.brentq(miss, grid[end - 1], grid[end], rtol=1e-10)


@pytest.fixture(scope="module")
def gpt2_system(gpt2, tokens, concept):
    return lm.identify(gpt2, tokens, concept)


@pytest.mark.parametrize(
    "share",
    [1e-3, 0.1, -1.0, 30.0, *(pytest.param(s, marks=pytest.mark.slow) for s in (-0.1, 0.5, 3.0))],
)
def test_energies_are_those_of_a_dense_scan(gpt2_system, held_out, concept, share):
    """Targets as a share of what the linear model reaches with a push of size 1 at all layers."""
    target = share * float(abs(ltv.gains(gpt2_system)).sum())
    unit, amplitude = simple(gpt2_system, target)
    found = lm.required_energy(held_out, concept, unit, target, amplitude=amplitude)
    for name in unit["schedule"].values:
        one, u = found.sel(schedule=name), unit.sel(schedule=name, drop=True)
        expected = first_crossing(
            held_out, concept, u, target, amplitude_search.LARGEST * amplitude
        )
        assert bool(one.reached) == np.isfinite(expected), name
        np.testing.assert_allclose(one.alpha, expected, rtol=2e-3)
        np.testing.assert_allclose(one.energy, expected**2, rtol=4e-3)
        if one.reached:
            np.testing.assert_allclose(one.response.mean(), target, rtol=1.01e-4)
            played = lm.play(held_out, concept, xr.Dataset({"u": u}), scale=[float(one.alpha)])
            np.testing.assert_allclose(one.response, played.response[:, 0], rtol=1e-8)
        else:
            assert np.isnan(one.energy)
            assert one.response.isnull().all()


def test_few_evaluations(gpt2_system, held_out, concept):
    """Three around the prediction and three more as a rule; 14 at most here."""
    counts = []
    for share in (1e-3, 0.03, 0.1, -0.1, 0.5, -1.0):
        target = share * float(abs(ltv.gains(gpt2_system)).sum())
        unit, amplitude = simple(gpt2_system, target)
        found = lm.required_energy(held_out, concept, unit, target, amplitude=amplitude)
        counts += found.evaluations.values.tolist()
    assert max(counts) <= 14
    assert np.median(counts) <= 6
    assert np.mean(counts) <= 7


@pytest.mark.parametrize("energy", ["absolute", "relative"])
def test_compared_energies_are_those_of_a_dense_scan(gpt2_system, held_out, concept, energy):
    target = 0.3 * float(abs(ltv.gains(gpt2_system)).sum())
    table = lm.compare_energies(held_out, concept, gpt2_system, target, energy=energy)
    unit, amplitude = simple(gpt2_system, target, energy)
    spent = {
        name: first_crossing(
            held_out, concept, unit.sel(schedule=name, drop=True), target, 128 * amplitude
        )
        ** 2
        for name in unit["schedule"].values
    }
    single = [spent[f"layer_{layer}"] for layer in range(3)]
    expected = {
        "minimum_energy": spent["plan"],
        "uniform" if energy == "absolute" else "uniform_absolute": spent["uniform"],
        "first_layer": single[0],
        "middle_layer": single[1],
        "last_layer": single[2],
        "best_single_layer": np.nanmin(single),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(table.energy.sel(schedule=name), value, rtol=4e-3)
    ranked = np.median(np.where(np.isnan(single), np.inf, single))
    random = table.sel(schedule="random_single_layer")
    assert bool(random.reached) == np.isfinite(ranked)
    np.testing.assert_allclose(random.energy, ranked if np.isfinite(ranked) else np.nan, rtol=4e-3)
    assert table.attrs["best_layer"] == int(np.nanargmin(single))
    assert table.attrs["energy"] == energy
    best = table.attrs["best_layer"]
    assert table.layer_pushed.values.tolist() == [-1, -1, -1, 0, 1, 2, best, -1]


# --------------------------------------------------------- several inputs, outputs, other readouts


@pytest.fixture(scope="module")
def two_inputs():
    v = np.random.default_rng(4).standard_normal((4, 2, 16))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return xr.Dataset({"direction": (("depth", "input", "feature"), v)})


READOUTS = {
    "matrix": np.random.default_rng(5).standard_normal((2, 16)),
    "logit difference": lm.LogitDifference(3, 7),
    "profile": "profile",
}


@pytest.mark.parametrize("name", list(READOUTS))
def test_any_readout_and_several_inputs_against_a_dense_scan(
    gpt2, tokens, held_out, two_inputs, name
):
    readout = READOUTS[name]
    system = lm.identify(gpt2, tokens, two_inputs, lm.Ensemble(order=4), readout=readout)
    gains = ltv.gains(system)
    reach = 0.2 * abs(gains).sum(["layer", "input"]).values
    target = reach * np.array([1.0, -0.5])[: len(reach)]
    unit, amplitude = simple(system, target)
    found = lm.required_energy(
        held_out, two_inputs, unit, target, amplitude=amplitude, readout=readout
    )
    assert found.response.sizes.get("output", 1) == len(target)
    assert found.attrs["target"] == (target.tolist() if len(target) > 1 else float(target[0]))
    for schedule in unit["schedule"].values:
        one, u = found.sel(schedule=schedule), unit.sel(schedule=schedule, drop=True)
        expected = first_crossing(
            held_out, two_inputs, u, target, amplitude_search.LARGEST * amplitude, readout
        )
        assert bool(one.reached) == np.isfinite(expected), schedule
        np.testing.assert_allclose(one.alpha, expected, rtol=2e-3)
    assert found.reached.sel(schedule="plan")
    table = lm.compare_energies(
        held_out, two_inputs, system, target, energy="absolute", readout=readout
    )
    np.testing.assert_allclose(
        table.energy.sel(schedule="minimum_energy"), found.energy.sel(schedule="plan"), rtol=1e-3
    )
    assert table.u.dims == ("layer", "input")
    np.testing.assert_allclose(table.single_energy, found.energy[2:], rtol=1e-3)


def test_targets_that_do_not_fit_are_refused(gpt2, tokens, held_out, two_inputs, concept):
    readout = READOUTS["matrix"]
    system = lm.identify(gpt2, tokens, two_inputs, lm.Ensemble(order=4), readout=readout)
    unit, _ = simple(system, np.ones(2))
    for target in (1.0, np.ones(3)):
        with pytest.raises(ValueError, match="one value for each of the 2 outputs; got"):
            lm.required_energy(held_out, two_inputs, unit, target, amplitude=1.0, readout=readout)
    for target in (np.array([1.0, np.nan]), np.zeros(2), np.inf):
        with pytest.raises(ValueError, match="`target` must be finite and not zero"):
            lm.required_energy(held_out, two_inputs, unit, target, amplitude=1.0, readout=readout)
    with pytest.raises(ValueError, match="well above the rounding of the readout; got"):
        lm.compare_energies(held_out, two_inputs, system, np.array([1e-18, 1e-17]), readout=readout)
    one = lm.identify(gpt2, tokens, concept)
    with pytest.raises(ValueError, match="well above the rounding of the readout; got 1e-18 where"):
        lm.compare_energies(held_out, concept, one, 1e-18)


def test_a_search_that_overflows_is_an_error(tokens, concept):
    model = lm.DepthModel(TINY["gpt2"]())
    system = lm.identify(model, tokens, concept)
    unit, _ = simple(system, 1.0)
    with pytest.raises(FloatingPointError, match="overflows"):
        lm.required_energy(model, tokens, concept, unit, 1e30, amplitude=1e38)


def test_predicted_amplitudes_may_differ_by_schedule(monkeypatch, gpt2, concept):
    """Each search begins where it is told; one that is right at once needs the fewest."""
    monkeypatch.setattr(energies, "shifts", known_shifts)
    run = gpt2.run(labelled_ids(4, 0))
    schedules = xr.DataArray([[0.0, 1, 0]] * 3, dims=["schedule", "layer"])
    found = lm.required_energy(run, concept, schedules, 2.0, amplitude=np.array([4.0, 0.5, 60.0]))
    np.testing.assert_allclose(found.energy, 16, rtol=3e-4)
    assert found.evaluations[0] == 3
    assert (found.evaluations[1:] > 3).all()


def test_the_miss_of_a_plan_is_split_into_its_causes(tiny, tokens, concept):
    """Every stage by hand: dense Jacobians, exact gains of both kinds of prompts, a played plan."""
    held_out = labelled_ids(6, 9)
    small = lm.identify(tiny, tokens, concept, lm.Krylov(order=1))
    target = 0.3 * float(small.y_std)
    energies = lm.compare_energies(tiny, held_out, concept, small, target)
    linear = [lm.linear_gains(tiny, texts, concept) for texts in (tokens, held_out)]
    miss = lm.miss_of_plan(small, energies, *linear)
    A = [whole_sequence.jacobians(tiny.hf, row) for row in tokens.ids]
    v, u = concept.direction.values, energies.u.values
    gains = [
        ltv.gains(small).values.ravel(),
        whole_sequence.chain_gains(np.mean(A, axis=0), v),
        np.mean([whole_sequence.chain_gains(a, v) for a in A], axis=0),
        np.mean(
            [
                whole_sequence.chain_gains(whole_sequence.jacobians(tiny.hf, row), v)
                for row in held_out.ids
            ],
            axis=0,
        ),
    ]
    way = [float(g @ u) / target for g in gains]
    played = lm.play(tiny, held_out, concept, energies).response.mean()
    way.append(float(played) / target)
    np.testing.assert_allclose(miss[:4], np.diff(way), rtol=1e-3, atol=1e-5)
    assert float(miss.sel(cause="total")) == pytest.approx(way[-1] - 1, abs=1e-5)
    assert float(energies.progress) == pytest.approx(way[-1], rel=1e-4)
    assert (abs(miss[:4]) > 1e-4).all()  # all causes are really there
