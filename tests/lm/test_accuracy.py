"""Agreement of gain curves, intervals, and where an error comes from."""

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from depthsys import lm, ltv
from tests.lm import whole_sequence
from tests.lm.conftest import labelled_ids


@pytest.fixture(scope="module")
def system(tiny, tokens, concept):
    return lm.identify(tiny, tokens, concept)


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


def test_correlation_of_a_constant_curve_is_not_a_number():
    curve = xr.DataArray([1.0, 1.0, 1.0], dims=["layer"])
    result = lm.agreement(curve, gains_dataset(np.random.default_rng(0).standard_normal((9, 3))))
    assert np.isnan(result.pearson).all()
    assert np.isnan(result.spearman).all()
    assert np.isfinite(result.relative_l2).all()


def test_relative_gains_are_compared_in_their_own_unit(tiny, tokens, concept, system):
    measured = lm.measure_gains(tiny, tokens, concept)
    h = ltv.gains(system).values.ravel() * system.state_norm.values[:-1]
    times = measured.assign(gain=measured.gain * measured.state_norm)
    direct = lm.agreement(xr.DataArray(h, dims=["layer"]), times)
    xr.testing.assert_allclose(lm.agreement(system, measured, injection="relative"), direct)
    with pytest.raises(ValueError, match="`injection` must be one of"):
        lm.agreement(system, measured, injection="other")


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
        lm.measure_gains(tiny, held_out, concept, eps=0.5, relative=False),
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


def test_budget_refuses_mixed_up_prompts(tiny, tokens, concept, system):
    held_out = labelled_ids(6, 9)
    measured = lm.measure_gains(tiny, held_out, concept)
    linear = [lm.linear_gains(tiny, t, concept) for t in (held_out, tokens)]
    with pytest.raises(ValueError, match="`linear_held_out` must come from the prompts of"):
        lm.error_budget(system, measured, linear[1], linear[0])
    with pytest.raises(ValueError, match="`linear_operating` must come from the prompts of"):
        lm.error_budget(system, measured, linear[0], linear[0])


def test_gain_report_holds_curves_metrics_and_budget(tiny, tokens, concept, system):
    held_out = labelled_ids(6, 9)
    parts = {
        "measured": lm.measure_gains(tiny, held_out, concept),
        "linear_held_out": lm.linear_gains(tiny, held_out, concept),
        "linear_operating": lm.linear_gains(tiny, tokens, concept),
    }
    report = lm.gain_report(system, **parts)
    np.testing.assert_array_equal(report.measured_gain, parts["measured"].gain)
    np.testing.assert_array_equal(report.surrogate_gain, ltv.gains(system).values.ravel())
    relative = parts["measured"].gain * parts["measured"].state_norm
    np.testing.assert_array_equal(report.measured_gain_relative, relative)
    for name in ("absolute", "relative"):
        expected = lm.agreement(system, parts["measured"], injection=name).relative_l2
        np.testing.assert_array_equal(report.relative_l2.sel(injection=name), expected)
    assert report.linear_gain_operating.dims == ("prompt_operating", "layer")
    assert report.attrs["prompts_sha256"] == "ids 9"
    assert report.attrs["system_prompts_sha256"] == tokens.sha256
    assert report.attrs["history"].endswith("measure_gains")
    assert report.attrs["model_fingerprint"] == tiny.fingerprint


def test_paired_intervals_resample_both_curves_together():
    rng = np.random.default_rng(0)
    common = rng.standard_normal((40, 6)) + np.arange(6)  # prompts differ much, gains little
    truth, found = gains_dataset(common), gains_dataset(common + 1e-3 * rng.random((40, 6)))
    paired = lm.agreement(found, truth, paired=True)
    row = paired["relative_l2"].sel(layers="all")
    a, b = found["gain"].values.mean(0), common.mean(0)
    assert float(row[0]) == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b))
    assert row[1] <= row[0] <= row[2] < 1e-3
    alone = lm.agreement(found["gain"].mean("prompt"), truth)["relative_l2"].sel(layers="all")
    assert float(alone[1]) > 10 * float(row[2])
    # the same draws of prompts for both, by hand
    weights = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=1000) / 40
    drawn = [np.linalg.norm(w @ (found["gain"].values - common)) / np.linalg.norm(w @ common)
             for w in weights]  # fmt: skip
    np.testing.assert_allclose(row[1:], np.quantile(drawn, [0.025, 0.975]))
    for wrong in (found["gain"], found.isel(layer=[0])):
        with pytest.raises(ValueError, match="`paired` must be False unless `predicted` are gains"):
            lm.agreement(wrong, truth, paired=True)
    with pytest.raises(ValueError, match="must come from the prompts of `measured`"):
        lm.agreement(found.assign_attrs(prompts_sha256="q"), truth, paired=True)
