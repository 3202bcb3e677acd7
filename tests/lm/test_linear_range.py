"""The search for the step where linearity ends, on error curves that are known in advance."""

from importlib import import_module

import numpy as np
import pytest
import xarray as xr

from depthsys import lm
from depthsys.lm import measure
from depthsys.lm.stamp import which
from depthsys.lm.step import SmallStepError
from tests.conftest import TINY
from tests.lm.conftest import labelled_ids

FIRST = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]


@pytest.fixture(scope="module")
def model():
    return lm.DepthModel(TINY["gpt2"]().double())


@pytest.fixture(scope="module")
def texts():
    return labelled_ids(3, 7)


@pytest.fixture
def found(model, texts, concept, monkeypatch):
    """`linear_range` where the error is known: a function of the step, or one per layer set."""

    def search(
        curve, without_layer_0=None, *, n_layers=3, spoil=None, seen=None, relative=False, **options
    ):
        # layer 0 is so much larger than the others that it alone makes the error of all layers
        linear = np.array([1e9, 1.0, 1.0])[:n_layers]
        run = model.run(texts)
        about = {**which(run), "readout": options.get("readout", "concept"), "relative": relative}

        def known(gain):
            rows = np.tile(gain, (len(texts), 1))
            layers = np.arange(n_layers)
            return xr.Dataset({"gain": (("prompt", "layer"), rows)}, {"layer": layers}, about)

        def linear_gains(*arguments, **settings):
            if seen is not None:
                seen.append(("linear", arguments, settings))
            return known(linear)

        def at(step):
            if step.relative != relative or step.difference != "central":
                raise AssertionError(step)
            if spoil is not None and (error := spoil(step.eps)):
                return error
            error = np.full(n_layers, (without_layer_0 or curve)(step.eps))
            error[0] = curve(step.eps)
            return known(linear / (1 + error))

        def measured(*arguments):
            run, concept, steps, readout = arguments
            if seen is not None:
                seen.append(("measured", (run, concept), {"readout": readout}))
            return [at(step) for step in steps]

        module = import_module("depthsys.lm.linear_range")  # its name in lm is the function
        monkeypatch.setattr(module, "linear_gains", linear_gains)
        monkeypatch.setattr(measure, "measured", measured)
        return lm.linear_range(run, concept, relative=relative, n_bootstrap=3, **options)

    return search


def square(scale):
    return lambda step: (step / scale) ** 2


def steps_of(values):
    return lambda step: values[FIRST.index(step)]


@pytest.mark.parametrize("limit", [0.002, 0.05, 0.3])
def test_a_power_law_crosses_where_it_does(found, limit):
    table = found(square(0.3), limit=limit)
    np.testing.assert_allclose(table.step_limit, 0.3 * np.sqrt(limit), rtol=1e-6)
    np.testing.assert_allclose(table.step, FIRST)
    expected = np.broadcast_to(square(0.3)(np.array(FIRST))[:, None, None], (6, 2, 3))
    np.testing.assert_allclose(table.step_error.transpose("step", "layers", "bound"), expected)
    assert table.attrs["limit"] == limit
    assert "step_note" not in table.attrs


def test_the_limit_is_five_per_cent_unless_given(found):
    np.testing.assert_allclose(found(square(0.3)).step_limit, 0.3 * np.sqrt(0.05), rtol=1e-6)


def test_the_first_rise_counts_where_the_error_dips_again(found):
    table = found(steps_of([0.01, 0.02, 0.08, 0.01, 0.02, 0.5]))
    share = np.log(0.05 / 0.02) / np.log(0.08 / 0.02)
    expected = 0.02 * (0.05 / 0.02) ** share
    np.testing.assert_allclose(table.step_limit, expected, rtol=1e-6)


def test_a_fall_is_no_rise(found):
    """Rounding makes small steps look nonlinear: the crossing is where the error comes back."""
    table = found(steps_of([0.2, 0.06, 0.01, 0.01, 0.04, 0.16]))
    share = np.log(0.05 / 0.04) / np.log(0.16 / 0.04)
    np.testing.assert_allclose(table.step_limit, 0.2 * 2.5**share, rtol=1e-6)


@pytest.mark.parametrize("scales", [(0.3, 30.0), (30.0, 0.3), (7.0, 7.0)])
def test_it_goes_on_until_both_layer_sets_have_passed(found, scales):
    table = found(*(square(s) for s in scales))
    limits = np.sqrt(0.05) * np.array(scales)
    np.testing.assert_allclose(table.step_limit, limits, rtol=1e-6)
    assert table.layers.values.tolist() == ["all", "without_layer_0"]
    np.testing.assert_allclose(table.step[:6], FIRST)
    series = [m * 10.0**e for e in range(5) for m in (1, 2, 5)]
    np.testing.assert_allclose(table.step[6:], series[: table.sizes["step"] - 6])
    assert limits.max() < float(table.step[-1]) <= 10 * limits.max()


def test_it_gives_up_at_ten_thousand(found):
    table = found(lambda step: 1e-3)
    assert float(table.step[-1]) == 1e4
    assert table.step_limit.isnull().all()
    assert table.step_error.notnull().all()


def test_there_is_no_crossing_where_the_error_is_always_above(found):
    table = found(lambda step: 0.2)
    np.testing.assert_allclose(table.step, FIRST)
    assert table.step_limit.isnull().all()


@pytest.mark.parametrize("spoilt", [0.2, 2.0])
def test_a_step_that_overflows_ends_the_search(found, spoilt):
    def spoil(step):
        return FloatingPointError("it overflows") if step >= spoilt else None

    table = found(square(0.1 if spoilt < 1 else 50.0), spoil=spoil)
    assert float(table.step[-1]) == spoilt
    assert table.step_error[-1].isnull().all()
    assert table.step_error[:-1].notnull().all()
    assert table.attrs["step_note"] == f"{spoilt:g}: it overflows"
    crossed = [0.1 * np.sqrt(0.05)] * 2 if spoilt < 1 else [np.nan] * 2
    np.testing.assert_allclose(table.step_limit, crossed, rtol=1e-6)


def test_steps_that_rounding_spoils_are_skipped(found):
    def spoil(step):
        return SmallStepError("rounding spoils it") if step < 0.05 else None

    table = found(square(0.3), spoil=spoil)
    np.testing.assert_allclose(table.step, FIRST)
    assert table.step_error[:2].isnull().all()
    assert table.step_error[2:].notnull().all()
    np.testing.assert_allclose(table.step_limit, 0.3 * np.sqrt(0.05), rtol=1e-6)
    assert table.attrs["step_note"] == "0.01: rounding spoils it; 0.02: rounding spoils it"


def test_it_goes_on_where_rounding_spoils_all_steps_that_are_always_tried(found):
    """States of a large norm in float32: only large pushes are above their rounding."""

    def spoil(step):
        return SmallStepError("rounding spoils it") if step < 1 else None

    table = found(square(30.0), spoil=spoil)
    np.testing.assert_allclose(table.step_limit, 30.0 * np.sqrt(0.05), rtol=1e-6)


def test_relative_steps_end_at_ten_times_the_state(found):
    table = found(square(1e6), relative=True)
    assert float(table.step[-1]) == 10
    assert table.attrs["relative"] == 1
    assert float(found(square(1e6)).step[-1]) == 1e4


def test_other_errors_are_not_hidden(found):
    def spoil(step):
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        found(square(0.3), spoil=spoil)


def test_a_model_of_one_layer_stops_when_all_its_layers_have_passed(found):
    table = found(square(0.3), n_layers=1)
    np.testing.assert_allclose(table.step, FIRST)
    np.testing.assert_allclose(table.step_limit.sel(layers="all"), 0.3 * np.sqrt(0.05), rtol=1e-6)
    assert table.step_limit.sel(layers="without_layer_0").isnull()
    assert table.step_error.sel(layers="without_layer_0").isnull().all()


def test_readout_texts_and_concept_are_passed_on(found, model, texts, concept):
    seen: list = []
    found(square(0.3), readout="profile", seen=seen)
    # the steps that are always tried go together
    assert [name for name, *_ in seen] == ["linear", "measured"]
    for _, arguments, settings in seen:
        assert arguments[0].model is model
        assert arguments[0].texts is texts
        assert arguments[1] is concept
        assert settings == {"readout": "profile"}
    seen.clear()
    found(square(30.0), seen=seen)  # two more decades
    assert [name for name, *_ in seen] == ["linear", *["measured"] * 3]


def test_known_linear_gains_are_used_and_must_be_of_the_same_prompts(model, texts, concept):
    linear = lm.linear_gains(model, texts, concept)
    alone = lm.linear_range(model, texts, concept, n_bootstrap=5, seed=3)
    given = lm.linear_range(model, texts, concept, linear=linear, n_bootstrap=5, seed=3)
    xr.testing.assert_identical(given.drop_attrs(), alone.drop_attrs())
    doubled = linear.assign(gain=2 * linear["gain"])
    double = lm.linear_range(model, texts, concept, linear=doubled, n_bootstrap=5)
    assert float(double.step_error.sel(layers="all", bound="estimate")[0]) > 0.9
    other = lm.linear_gains(model, labelled_ids(3, 8), concept)
    with pytest.raises(ValueError, match="`linear` must come from"):
        lm.linear_range(model, texts, concept, linear=other)


def test_the_seed_moves_the_intervals_alone(model, texts, concept):
    one, two = (lm.linear_range(model, texts, concept, n_bootstrap=20, seed=s) for s in (0, 1))
    estimates = (t.step_error.sel(bound="estimate") for t in (one, two))
    np.testing.assert_array_equal(*estimates)
    assert bool((one.step_error != two.step_error).sel(bound=["low", "high"]).any())
