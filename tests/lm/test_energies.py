"""The search for the energy that schedules need, against dense scans and known readouts."""

import numpy as np
import pytest
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm import energies
from tests.lm import whole_sequence
from tests.lm.conftest import labelled_ids


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
    plan = ltv.minimum_energy(system, target=0.3)
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
    result = lm.compare_energies(tiny, held_out, concept, system, target)
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
    negative = lm.compare_energies(tiny, held_out, concept, system, -target)
    np.testing.assert_allclose(negative.energy[0], energy["minimum_energy"], rtol=0.02)


def test_relative_energy_counts_pushes_by_the_size_of_the_state(tiny, tokens, concept, system):
    result = lm.compare_energies(tiny, tokens, concept, system, 1e-3, energy="relative")
    h, norm = ltv.gains(system).values.ravel(), system.state_norm.values[:-1]
    scaled = h * norm
    np.testing.assert_allclose(result.predicted_energy, 1e-6 / (scaled @ scaled))
    np.testing.assert_allclose(result.u, 1e-3 * h * norm**2 / (scaled @ scaled))
    absolute = lm.compare_energies(tiny, tokens, concept, system, 1e-3)
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

    search = energies._Search(play, np.array([1.0]), np.array([4.0]))
    search.bracket()
    search.refine()
    expected = 5.6 * 2 ** -np.sqrt(0.005 / 0.02)
    np.testing.assert_allclose(search.alpha, expected, rtol=0.02)
    assert abs(search.points[0][search.alpha[0]] - 1) <= energies.TOLERANCE
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

    search = energies._Search(play, np.array([1.0]), np.array([predicted]))
    search.bracket()
    search.refine()
    if crossing > energies.LARGEST * predicted:
        assert np.isnan(search.alpha).all()
        return
    np.testing.assert_allclose(search.alpha, crossing, rtol=2e-4)
    assert curve(search.alpha)[0] >= 1 - energies.TOLERANCE
    np.testing.assert_array_equal(search.response[0, 0], curve(search.alpha))


@pytest.mark.parametrize("amplitude", [0.0, -1.0, np.nan, np.inf])
def test_an_amplitude_that_is_none(tiny, tokens, concept, amplitude):
    schedules = xr.DataArray(np.eye(3), dims=("schedule", "layer"))
    with pytest.raises(ValueError, match="`amplitude` must be positive and finite"):
        lm.required_energy(tiny, tokens, concept, schedules, 0.1, amplitude=amplitude)
