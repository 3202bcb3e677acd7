from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm import verify
from tests.conftest import TINY
from tests.lm import whole_sequence
from tests.lm.conftest import counted_block_calls, labelled_ids

# the search needs none: `known_shifts` says what a schedule does
NO_MODEL = SimpleNamespace(provenance=lambda action: {}, which=lambda prompts: {})


@pytest.fixture(scope="module")
def system(tiny, tokens, concept):
    return lm.identify(tiny, tokens, concept)


@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_measured_gains_equal_one_hooked_forward_per_layer_and_sign(tiny, tokens, concept, eps):
    ours = lm.measure_gains(tiny, tokens, concept, eps=eps).gain
    v = concept.direction.values
    for prompt, ids in enumerate(tokens.ids):
        expected = whole_sequence.measured_gains(tiny.hf, ids, v, eps)
        np.testing.assert_allclose(ours[prompt], expected, rtol=1e-5, atol=1e-6)


def test_relative_and_forward_gains(tiny, tokens, concept):
    v = concept.direction.values
    relative = lm.measure_gains(tiny, tokens, concept, eps=0.05, relative=True).gain
    forward = lm.measure_gains(tiny, tokens, concept, eps=0.2, difference="forward").gain
    for prompt in (0, 3):
        ids = tokens.ids[prompt]
        norm = np.linalg.norm(whole_sequence.states(tiny.hf, ids)[:-1], axis=1)
        for layer in range(3):
            step = np.zeros(3)
            step[layer] = 0.05 * norm[layer]
            ends = [whole_sequence.played(tiny.hf, ids, v, s * step) for s in (1, -1)]
            expected = (ends[0] - ends[1]) / 0.1
            np.testing.assert_allclose(relative[prompt, layer], expected, rtol=1e-5, atol=1e-6)
            step[layer] = 0.2
            expected = whole_sequence.played(tiny.hf, ids, v, step) / 0.2
            np.testing.assert_allclose(forward[prompt, layer], expected, rtol=1e-5, atol=1e-6)


def test_measured_gains_tend_to_linear_gains(tiny, tokens, concept):
    linear = lm.linear_gains(tiny, tokens, concept).gain
    errors = [
        float(abs(lm.measure_gains(tiny, tokens, concept, eps=e).gain - linear).max())
        for e in (0.02, 0.01)
    ]
    # central differences: the error falls with the square of the step
    assert errors[1] < 0.35 * errors[0] < 0.1


def test_an_injection_joins_at_its_layer(tokens, concept, monkeypatch):
    """Cost as a count: layer l sees 2 (l + 1) copies of each prompt, not 2 L."""
    model = lm.DepthModel(TINY["gpt2"]())
    rows = counted_block_calls(model, monkeypatch)
    lm.measure_gains(model, tokens, concept)
    prefill = sum(len(ids) for ids in tokens.ids)
    for layer in range(3):
        assert sum(n for at, n in rows if at == layer) == prefill + len(tokens) * 2 * (layer + 1)


def test_copies_in_chunks_give_the_same(tiny, tokens, concept, monkeypatch):
    whole = lm.measure_gains(tiny, tokens, concept).gain
    monkeypatch.setattr(verify, "ROWS", 4)
    np.testing.assert_allclose(lm.measure_gains(tiny, tokens, concept).gain, whole, rtol=1e-6)


def gains_dataset(values, **attrs):
    return xr.Dataset(
        {"gain": (("prompt", "layer"), values)}, attrs={"prompts_sha256": "p"} | attrs
    )


def test_agreement_equals_scipy_and_covers():
    rng = np.random.default_rng(0)
    gain = rng.standard_normal((50, 6)) * 0.3 + np.arange(6)
    curve = xr.DataArray([0.1, 0.8, 2.3, 2.2, 4.5, 5.0], dims=["layer"])
    result = lm.agreement(curve, gains_dataset(gain), n_bootstrap=400)
    for skip, layers in enumerate(["all", "without_layer_0"]):
        a, b = curve.values[skip:], gain.mean(0)[skip:]
        expected = {
            "spearman": scipy.stats.spearmanr(a, b).statistic,
            "pearson": scipy.stats.pearsonr(a, b).statistic,
            "relative_l2": np.linalg.norm(a - b) / np.linalg.norm(b),
            "max_relative_error": max(abs(a - b) / abs(b)),
        }
        for name, value in expected.items():
            row = result[name].sel(layers=layers)
            np.testing.assert_allclose(row.sel(bound="estimate"), value, rtol=1e-12)
            assert float(row.sel(bound="low")) <= value + 1e-9
            assert float(row.sel(bound="high")) >= value - 1e-9
    again = lm.agreement(curve, gains_dataset(gain), n_bootstrap=400)
    xr.testing.assert_identical(result, again)


def test_bootstrap_interval_has_the_width_of_the_sampling_error():
    """The relative L2 of a one-layer curve is |mean - h| / |mean|: its spread is known."""
    rng = np.random.default_rng(1)
    gain = 10 + rng.standard_normal((400, 1))
    curve = xr.DataArray([9.0], dims=["layer"])
    row = lm.agreement(curve, gains_dataset(gain), n_bootstrap=4000).relative_l2.sel(layers="all")
    width = float(row.sel(bound="high") - row.sel(bound="low"))
    sd_of_mean = gain.std() / np.sqrt(400)
    np.testing.assert_allclose(width, 2 * 1.96 * sd_of_mean * 9.0 / 100, rtol=0.1)


def test_noise_floor_is_what_a_perfect_prediction_shows():
    rng = np.random.default_rng(2)
    truth = np.arange(1.0, 7.0)
    errors, floors = [], []
    for _ in range(200):
        gain = truth + rng.standard_normal((60, 6))
        result = lm.agreement(
            xr.DataArray(truth, dims=["layer"]), gains_dataset(gain), n_bootstrap=10
        )
        errors.append(float(result.relative_l2.sel(layers="all", bound="estimate")))
        floors.append(float(result.noise_floor.sel(layers="all")))
    np.testing.assert_allclose(np.mean(floors), np.sqrt(np.mean(np.square(errors))), rtol=0.1)


def test_the_level_sets_the_width_of_the_intervals():
    gain = np.random.default_rng(0).standard_normal((50, 6)) + 3
    curve = xr.DataArray(np.ones(6), dims=["layer"])
    rows = [lm.agreement(curve, gains_dataset(gain), level=p).relative_l2[0] for p in (0.5, 0.99)]
    widths = [float(row.sel(bound="high") - row.sel(bound="low")) for row in rows]
    assert 2.5 < widths[1] / widths[0] < 6  # 3.8 for a normal distribution


def test_random_single_layer_counts_unreached_layers_as_infinite(monkeypatch, system, tiny, tokens):
    def one_layer_works(model, texts, concept, schedules, scales, title):
        reach = (schedules[:, None, :] * scales[:, :, None])[..., 0]
        return np.broadcast_to(reach, (len(texts), *reach.shape))

    monkeypatch.setattr(verify, "_shifts", one_layer_works)
    result = lm.compare_energies(tiny, tokens, None, system, 0.1).sel(
        schedule="random_single_layer"
    )
    assert not bool(result.reached)
    assert np.isnan(result.energy)


def test_correlation_of_a_constant_curve_is_not_a_number():
    curve = xr.DataArray([1.0, 1.0, 1.0], dims=["layer"])
    result = lm.agreement(curve, gains_dataset(np.random.default_rng(0).standard_normal((9, 3))))
    assert np.isnan(result.pearson).all()
    assert np.isnan(result.spearman).all()
    assert np.isfinite(result.relative_l2).all()


def test_relative_gains_are_compared_in_their_own_unit(tiny, tokens, concept, system):
    relative = lm.measure_gains(tiny, tokens, concept, eps=1e-3, relative=True)
    h = ltv.gains(system).values.ravel() * system.state_norm.values[:-1]
    direct = lm.agreement(xr.DataArray(h, dims=["layer"]), relative)
    xr.testing.assert_allclose(lm.agreement(system, relative), direct)


def test_a_single_layer_has_nothing_without_layer_0():
    curve = xr.DataArray([1.0], dims=["layer"])
    result = lm.agreement(curve, gains_dataset(np.ones((9, 1))))
    assert np.isnan(result.relative_l2.sel(layers="without_layer_0")).all()
    assert float(result.relative_l2.sel(layers="all", bound="estimate")) == 0


def test_agreement_needs_the_same_layers():
    with pytest.raises(ValueError, match=r"`predicted` must have the layers, .* got \{.layer.: 4"):
        lm.agreement(xr.DataArray(np.ones(4), dims=["layer"]), gains_dataset(np.ones((5, 3))))


def test_budget_parts_are_the_distances_of_the_theory(tiny, tokens, concept):
    held_out = labelled_ids(6, 9)
    small = lm.identify(tiny, tokens, concept, lm.Krylov(order=2))
    v = concept.direction.values
    A = {name: [whole_sequence.jacobians(tiny.hf, i) for i in t.ids] for name, t in
         (("operating", tokens), ("held_out", held_out))}  # fmt: skip
    linear = {k: np.mean([whole_sequence.chain_gains(a, v) for a in m], 0) for k, m in A.items()}
    measured = np.mean([whole_sequence.measured_gains(tiny.hf, i, v, 0.5) for i in held_out.ids], 0)
    mean = np.mean(A["operating"], 0)
    full, reduced = whole_sequence.chain_gains(mean, v), whole_sequence.krylov_gains(mean, v, 2)
    expected = {
        "nonlinearity": (linear["held_out"], measured),
        "averaging": (full, linear["operating"]),
        "sampling": (linear["operating"], linear["held_out"]),
        "truncation": (reduced, full),
        "total": (reduced, measured),
    }
    budget = lm.error_budget(
        small,
        lm.measure_gains(tiny, held_out, concept, eps=0.5),
        lm.linear_gains(tiny, held_out, concept),
        lm.linear_gains(tiny, tokens, concept),
    ).error.sel(bound="estimate")
    for part, (a, b) in expected.items():
        for skip, layers in enumerate(["all", "without_layer_0"]):
            distance = np.linalg.norm((a - b)[skip:]) / np.linalg.norm(b[skip:])
            value = float(budget.sel(part=part, layers=layers))
            np.testing.assert_allclose(value, distance, rtol=2e-4, atol=1e-6)
            assert layers != "all" or distance > 1e-4  # every part is really there


def test_budget_resamples_held_out_curves_together_and_operating_ones_apart(system):
    gain = 1 + np.random.default_rng(0).standard_normal((40, 3))
    held_out = gains_dataset(gain)
    operating = gains_dataset(gain, prompts_sha256=system.attrs["prompts_sha256"])
    error = lm.error_budget(system, held_out, held_out, operating).error.sel(layers="all")
    np.testing.assert_array_equal(error.sel(part="nonlinearity"), 0)
    assert float(error.sel(part="sampling", bound="estimate")) == 0
    assert float(error.sel(part="sampling", bound="high")) > 0.1
    assert np.isnan(error.sel(part="averaging", bound="high"))


def test_baselines_push_where_the_system_predicts_progress(monkeypatch, system, tiny, tokens):
    seen = []

    def record(model, texts, concept, schedules, scales, title):
        seen.append(schedules)
        return np.ones((len(texts), *scales.shape))

    monkeypatch.setattr(verify, "_shifts", record)
    for sign in (1, -1):
        flipped = system.assign(B=sign * system.B)
        h = ltv.gains(flipped).values.ravel()
        for target in (0.1, -0.1):
            seen.clear()
            lm.compare_energies(tiny, tokens, None, flipped, target)
            assert (seen[0] @ h * target > 0).all()


def test_budget_refuses_mixed_up_prompts(tiny, tokens, concept, system):
    held_out = labelled_ids(6, 9)
    measured = lm.measure_gains(tiny, held_out, concept)
    linear = [lm.linear_gains(tiny, t, concept) for t in (held_out, tokens)]
    with pytest.raises(ValueError, match="`linear_held_out` must come from the prompts of"):
        lm.error_budget(system, measured, linear[1], linear[0])
    with pytest.raises(ValueError, match="`linear_operating` must come from the prompts of"):
        lm.error_budget(system, measured, linear[0], linear[0])
    relative = lm.measure_gains(tiny, held_out, concept, relative=True)
    with pytest.raises(ValueError, match="`measured` must hold absolute gains"):
        lm.error_budget(system, relative, *linear)


def test_play_equals_hooks_at_every_layer_at_once(tiny, tokens, concept, system):
    plan = ltv.minimum_energy(system, target=0.7)
    shift = lm.play(tiny, tokens, concept, plan, scale=[1.0, -0.5, 0.0]).response
    v, u = concept.direction.values, plan.u.values[:, 0]
    for prompt, ids in enumerate(tokens.ids):
        for i, factor in enumerate([1.0, -0.5, 0.0]):
            expected = whole_sequence.played(tiny.hf, ids, v, factor * u)
            np.testing.assert_allclose(shift[prompt, i], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"`plan` must hold u \(layer=3, input=1\)"):
        lm.play(tiny, tokens, concept, plan.isel(layer=slice(2)))


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


def known_shifts(model, texts, concept, schedules, scales, title):
    """A readout that is a known function of the pushes, to test the search alone."""
    reach = schedules[:, None, :] * scales[:, :, None]
    y = np.tanh(reach[..., 0]) + 0.5 * reach[..., 1] + np.sin(reach[..., 2])
    return np.broadcast_to(y, (len(texts), *y.shape))


def test_search_reports_what_is_never_reached_and_what_is_not_monotone(monkeypatch):
    monkeypatch.setattr(verify, "_shifts", known_shifts)
    texts = labelled_ids(4, 0)
    names = ["saturates", "linear", "oscillates", "backwards"]
    schedules = xr.DataArray(
        [[1.0, 0, 0], [0, 2.0, 0], [0.0, 0.2, 0.2], [0, -1.0, 0]],
        dims=["schedule", "layer"],
        coords={"schedule": names},
    )
    found = lm.required_energy(NO_MODEL, texts, None, schedules, 2.0, amplitude=1.0)
    assert found.reached.values.tolist() == [False, True, True, False]
    np.testing.assert_allclose(found.energy.sel(schedule="linear"), 16, rtol=1e-6)
    assert np.isnan(found.energy.sel(schedule="saturates"))
    assert found.monotone.values.tolist() == [True, True, False, False]
    # weights change the unit: the same crossing costs four times as much
    weighted = lm.required_energy(
        NO_MODEL, texts, None, schedules[1:2], 2.0, amplitude=1.0, weights=np.array([1, 4.0, 1])
    )
    np.testing.assert_allclose(weighted.energy, 64, rtol=1e-6)
    # a negative target is reached from the other side
    down = lm.required_energy(NO_MODEL, texts, None, schedules[3:], -2.0, amplitude=1.0)
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


def test_gain_report_holds_curves_metrics_and_budget(tiny, tokens, concept, system):
    held_out = labelled_ids(6, 9)
    parts = {
        "measured": lm.measure_gains(tiny, held_out, concept),
        "measured_relative": lm.measure_gains(tiny, held_out, concept, relative=True),
        "linear_held_out": lm.linear_gains(tiny, held_out, concept),
        "linear_operating": lm.linear_gains(tiny, tokens, concept),
    }
    report = lm.gain_report(system, **parts)
    np.testing.assert_array_equal(report.measured_gain, parts["measured"].gain)
    np.testing.assert_array_equal(report.surrogate_gain, ltv.gains(system).values.ravel())
    for name in ("absolute", "relative"):
        key = "measured" if name == "absolute" else "measured_relative"
        expected = lm.agreement(system, parts[key]).relative_l2
        np.testing.assert_array_equal(report.relative_l2.sel(injection=name), expected)
    assert report.linear_gain_operating.dims == ("prompt_operating", "layer")
    assert report.attrs["prompts_sha256"] == "ids 9"
    assert report.attrs["system_prompts_sha256"] == tokens.sha256
    assert report.attrs["history"].endswith("measure_gains")
    assert report.attrs["model_fingerprint"] == tiny.fingerprint


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t, c, s: lm.measure_gains(m, t, c, eps=0), "`eps` must be positive"),
        (lambda m, t, c, s: lm.measure_gains(m, t, c, eps=np.nan), "`eps` must be positive"),
        (lambda m, t, c, s: lm.measure_gains(m, t, c, difference="x"), "`difference` must be"),
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
