"""Figures of gains by token: what is drawn is what was found."""

import numpy as np
import pytest
import xarray as xr

from depthsys import lm, plot
from depthsys.plot import dynamics as sheets

DIMS = ("prompt", "layer", "lag")


@pytest.fixture
def found():
    return lm.lag_map(found_of())


def found_of():
    """Of twelve prompts of which five reach back more than six tokens; no direction at layer 0."""
    rng = np.random.default_rng(3)
    n_tokens = np.array([7] * 7 + [11] * 5)
    gain = rng.standard_normal((12, 8, 11)) * 0.7 ** np.arange(11)
    gain[np.broadcast_to(np.arange(11) >= n_tokens[:, None, None], gain.shape)] = np.nan
    gradient = abs(gain)
    gain[:, 0] = np.nan
    return xr.Dataset(
        {
            "gain": (DIMS, gain),
            "gradient_norm": (DIMS, gradient),
            "state_norm": (DIMS, gradient * 2),
            "n_tokens": ("prompt", n_tokens),
        }
    )


def test_a_map_has_the_gains_of_lags_that_half_of_the_prompts_have(found):
    _, (ax,) = plot.figure()
    plot.token_gains(ax, found)
    drawn = ax.collections[0].get_array().reshape(7, 8)
    expected = found["rms"].values[:, :7].T
    np.testing.assert_array_equal(drawn.mask[:, 0], True)
    np.testing.assert_allclose(drawn[:, 1:], expected[:, 1:])
    assert ax.collections[0].norm.__class__.__name__ == "LogNorm"
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "layer of the injection", "lag (tokens before the last one)",
    )  # fmt: skip


def test_curves_are_those_of_the_layers(found):
    _, (ax,) = plot.figure()
    plot.lag_curves(ax, found)
    labels = [line.get_label() for line in ax.lines]
    assert labels == [f"layer {n}" for n in (1, 2, 3, 5, 6, 7)]  # none of layer 0
    for line, layer in zip(ax.lines, (1, 2, 3, 5, 6, 7), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), found["rms"][layer, :7])
    _, (ax,) = plot.figure()
    plot.lag_curves(ax, found.assign_attrs(relative=1), [4])
    assert [line.get_label() for line in ax.lines] == ["layer 4"]
    assert ax.get_ylabel() == "root mean square gain, by the state's norm"
    _, (ax,) = plot.figure()
    plot.lag_curves(ax, found.assign_attrs(of="gradient"))
    assert ax.get_ylabel() == "root mean square gradient"


def test_shares_are_those_of_the_table(found):
    _, (ax,) = plot.figure()
    plot.lag_shares(ax, found)
    lines = [line.get_ydata() for line in ax.lines]
    for line, by in zip(lines, ("layer", "lag", "position"), strict=False):
        np.testing.assert_array_equal(line, found["explained"].sel(by=by))
    assert len(lines) == 4  # and the axis
    low, high = ax.get_ylim()
    assert high == 1.03
    assert low == pytest.approx(max(-1, np.nanmin(found["explained"])) - 0.03)


def test_where_earlier_tokens_count_has_a_panel_of_its_own(found):
    _, (ax,) = plot.figure()
    plot.earlier_shares(ax, found)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), found["earlier_share"])
    relative = lm.lag_map(found_of(), relative=True)["explained"]
    fig = sheets.lag_shares(found.assign(explained_relative=relative))
    left, middle, right = fig.axes
    assert [len(ax.lines) for ax in fig.axes] == [4, 4, 1]
    for ax, shares in ((left, found["explained"]), (middle, relative)):
        np.testing.assert_array_equal(ax.lines[2].get_ydata(), shares.sel(by="position"))
    np.testing.assert_array_equal(right.lines[0].get_ydata(), found["earlier_share"])


def test_what_cannot_be_drawn_is_refused(found):
    _, (ax,) = plot.figure()
    for draw in (plot.token_gains, plot.lag_curves, plot.lag_shares, plot.earlier_shares):
        with pytest.raises(TypeError, match="`found` must be a Dataset"):
            draw(ax, np.zeros(3))
        with pytest.raises(ValueError, match="prompt"):
            draw(ax, found.expand_dims(prompt=2))
    with pytest.raises(ValueError, match="rms"):
        plot.token_gains(ax, found.drop_vars("rms"))
    with pytest.raises(ValueError, match="earlier_share"):
        plot.earlier_shares(ax, found.drop_vars("earlier_share"))
    for layers in ([], [8], list(range(9))):
        with pytest.raises(ValueError, match=r"`layers` must be up to 8 out of 0\.\.7; got"):
            plot.lag_curves(ax, found, layers)
