import numpy as np
import pytest
import xarray as xr

from depthsys import plot
from depthsys.plot import sheets


@pytest.fixture
def gains():
    rng = np.random.default_rng(0)
    bounds = {"layers": ["all", "without_layer_0"], "bound": ["estimate", "low", "high"]}
    error = np.tile([0.02, 0.01, 0.03], (5, 2, 1))
    error[1, :, 1:] = np.nan
    error[3, :] = [1e-17, np.nan, np.nan]
    return xr.Dataset(
        {
            "measured_gain": (("prompt", "layer"), 1 + rng.random((9, 4))),
            "linear_gain": (("prompt", "layer"), 1 + rng.random((9, 4))),
            "surrogate_gain": ("layer", [4.0, 3.0, 2.0, 1.0]),
            "error_budget": (("part", "layers", "bound"), error),
        },
        coords={"layer": range(4), "part": list("abcde"), **bounds},
    )


def test_gain_curves_show_the_means_with_and_without_layer_0(gains):
    _, axes = plot.figure(columns=2)
    plot.gain_curves(tuple(axes), gains)
    for skip, ax in enumerate(axes):
        lines = {line.get_label(): line for line in ax.lines}
        mean = gains.measured_gain.mean("prompt")[skip:]
        np.testing.assert_allclose(lines["measured, mean"].get_ydata(), mean)
        np.testing.assert_allclose(lines["surrogate"].get_ydata(), gains.surrogate_gain[skip:])
        np.testing.assert_allclose(lines["surrogate"].get_xdata(), gains.layer[skip:])
        assert ax.get_xlabel()
        assert ax.get_ylabel()


def test_error_budget_bars_are_percentages_and_zero_is_said(gains):
    _, (ax,) = plot.figure()
    plot.error_budget(ax, gains)
    widths = [bar.get_width() for bar in ax.patches[:5]]
    np.testing.assert_allclose(widths, [2, 2, 2, 1e-15, 2])
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("0 (to rounding)") == 2
    assert texts.count("2 %") == 8


def test_a_layer_without_a_direction_is_marked_and_nothing_is_drawn_there(gains):
    known = gains.copy(deep=True)
    for name in ("measured_gain", "linear_gain"):
        known[name][:, 0] = np.nan
    known["surrogate_gain"][0] = np.nan
    axes = sheets.gain_curves(known).axes
    assert [text.get_text() for text in axes[0].texts] == ["no direction"]
    assert axes[0].texts[0].get_position()[0] == known["layer"].values[0]
    assert not axes[1].texts
    assert all(np.isnan(line.get_ydata()[0]) for line in axes[0].lines[:3])
    assert not sheets.gain_curves(gains).axes[0].texts
