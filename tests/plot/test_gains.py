import numpy as np
import pytest
import xarray as xr

from depthsys import plot
from depthsys.plot import sheets
from tests.plot.drawing import marks_of


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


@pytest.mark.parametrize("sign", [1, -1])
def test_a_layer_0_that_dwarfs_the_others_does_not_take_the_scale(gains, sign):
    factor = xr.DataArray([50.0 * sign, 1.0, 1.0, 1.0], dims="layer")
    names = ["measured_gain", "linear_gain", "surrogate_gain"]
    large = gains.assign({name: gains[name] * factor for name in names})
    first, second = (ax for ax in sheets.gain_curves(large).axes if ax.get_title())
    assert first.get_yscale() == "symlog"
    assert first.get_title() == "all layers (log scale beyond ±5)"
    assert (second.get_yscale(), second.get_title()) == ("linear", "without layer 0")
    # the others keep at least a quarter of the height
    ends = first.transAxes.inverted().transform(first.transData.transform([[0, 0], [0, 5]]))
    assert ends[1, 1] - ends[0, 1] > 0.25
    ticks = first.get_yticks()
    assert 0 in ticks
    assert max(abs(ticks)) >= 25
    plain = sheets.gain_curves(gains).axes[0]
    assert (plain.get_yscale(), plain.get_title()) == ("linear", "all layers")


def test_curves_that_coincide_show_all_their_markers_and_no_more_than_fit(gains):
    wide = xr.Dataset(
        {
            "measured_gain": (("prompt", "layer"), np.ones((5, 80))),
            "linear_gain": (("prompt", "layer"), np.ones((5, 80))),
            "surrogate_gain": ("layer", np.ones(80)),
        },
        coords={"layer": range(80)},
    )
    for ax in (ax for ax in sheets.gain_curves(wide).axes if ax.get_title()):
        marked = [set(line.get_markevery()) for line in ax.lines[:3]]
        assert all(6 <= len(marks) <= 12 for marks in marked)
        assert not marked[0] & marked[1] | marked[0] & marked[2] | marked[1] & marked[2]
    few = [marks_of(line) for line in sheets.gain_curves(gains).axes[0].lines[:3]]
    assert few == [4, 4, 4]


def test_gains_of_a_single_layer_say_that_there_is_no_other(gains):
    axes = [ax for ax in sheets.gain_curves(gains.isel(layer=[0])).axes if ax.get_title()]
    assert [text.get_text() for text in axes[1].texts] == ["there is no other layer"]
    assert axes[0].lines[0].get_ydata().shape == (1,)


def test_neighbours_without_a_direction_are_marked_as_one(gains):
    gone = gains.copy(deep=True)
    for name in ("measured_gain", "linear_gain"):
        gone[name][:, [0, 1, 3]] = np.nan
    ax = sheets.gain_curves(gone).axes[0]
    assert [text.get_position()[0] for text in ax.texts] == pytest.approx([0.5, 3.0])


def test_numbers_of_the_budget_stand_at_their_bars_above_the_whiskers(gains):
    _, (ax,) = plot.figure()
    plot.error_budget(ax, gains)
    bars, texts = list(ax.patches), list(ax.texts)
    assert len(bars) == len(texts) == 10
    for bar, text in zip(bars, texts, strict=True):
        assert text.xy[0] == bar.get_width()
        assert bar.get_y() < text.xy[1] < bar.get_y() + bar.get_height() / 2
    whiskers = [segment[0, 1] for c in ax.collections for segment in c.get_segments()]
    inside = [
        any(b.get_y() + b.get_height() / 2 < y < b.get_y() + b.get_height() for b in bars)
        for y in whiskers
    ]
    assert len(inside) == 6
    assert all(inside)
