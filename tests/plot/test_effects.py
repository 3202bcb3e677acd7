import numpy as np
import pytest
import xarray as xr

from depthsys import plot


@pytest.fixture
def effects():
    bound = ["estimate", "low", "high"]
    mean = np.array([[0.0, 1.0], [0.0, 2.0]])
    values = np.stack([mean, mean - 0.5, mean + 1.0], axis=-1)
    dims = ("plan", "strength", "bound")
    return xr.Dataset(
        {
            "log_odds_mean": (dims, values),
            "kl_mean": (dims, 10 * values),
            "readout_new_shift": (dims, values),
            "perplexity_mean": (dims, 5 + values),
        },
        coords={"plan": ["a", "b"], "strength": [0.0, 1.0], "bound": bound},
    )


def test_curves_over_strength_with_intervals_of_both(effects):
    _, (ax,) = plot.figure()
    plot.effect_against_price(ax, effects)
    curves = [one for one in ax.containers]
    np.testing.assert_allclose(curves[1][0].get_xydata(), [[0, 0], [20, 2]])
    horizontal, vertical = (c.get_segments() for c in curves[0][2])
    np.testing.assert_allclose(horizontal[1], [[5, 1], [20, 1]])
    np.testing.assert_allclose(vertical[1], [[10, 0.5], [10, 2]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert "KL" in ax.get_xlabel()


def test_perplexity_is_drawn_on_a_log_axis(effects):
    _, (ax,) = plot.figure()
    plot.effect_against_price(ax, effects, "readout_new_shift", "perplexity_mean", legend=False)
    assert ax.get_xscale() == "log"
    assert ax.get_legend() is None


def test_an_effect_that_was_not_measured_is_refused(effects):
    unknown = effects.assign(log_odds_mean=effects["log_odds_mean"] * np.nan)
    _, (ax,) = plot.figure()
    with pytest.raises(ValueError, match="`effect` must be one that was measured; got 'log_odds_"):
        plot.effect_against_price(ax, unknown)
