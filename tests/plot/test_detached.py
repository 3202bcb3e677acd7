"""Figures of detached maps: what is drawn is what was found."""

import numpy as np
import pytest
import xarray as xr

from depthsys import plot

RNG = np.random.default_rng(3)
KEPT = [1, 2, 4, 8]
FOUND = xr.Dataset(
    {
        "singular_value": (
            ("map", "prompt", "layer", "index"),
            -np.sort(-RNG.uniform(1, 9, (2, 5, 12, 8)), axis=-1),
        ),
        "stable_rank": (("map", "prompt", "layer"), RNG.uniform(1, 8, (2, 5, 12))),
        "low_rank_error": (("map", "prompt", "layer", "kept"), RNG.uniform(size=(2, 5, 12, 4))),
    },
    {"map": ["layer", "from_start"], "kept": KEPT, "layer": np.arange(12)},
)
GAINS = xr.Dataset(
    {
        name: (("prompt", "layer"), RNG.normal(size=(9, 6)))
        for name in ("measured_gain", "exact_gain", "detached_gain")
    }
)
START = FOUND.sel(map="from_start")


def test_singular_values_are_medians_over_the_largest():
    _, (ax,) = plot.figure()
    plot.singular_values(ax, START)
    values = START["singular_value"].values
    expected = np.median(values / values[..., :1], axis=0)
    layers = [0, 3, 6, 8, 11]
    assert len(ax.lines) == len(layers)
    for line, layer in zip(ax.lines, layers, strict=True):
        np.testing.assert_allclose(line.get_ydata(), expected[layer])
        assert line.get_label() == f"layer {layer}"
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_stable_ranks_of_both_maps():
    _, (ax,) = plot.figure()
    plot.stable_rank(ax, FOUND)
    for line, name in zip(ax.lines, ("layer", "from_start"), strict=True):
        np.testing.assert_allclose(
            line.get_ydata(), FOUND["stable_rank"].sel(map=name).median("prompt")
        )


def test_errors_are_over_what_is_kept():
    _, (ax,) = plot.figure()
    plot.low_rank_errors(ax, START.isel(layer=[4]))
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), KEPT)
    np.testing.assert_allclose(
        line.get_ydata(), START["low_rank_error"].isel(layer=4).median("prompt")
    )
    assert line.get_label() == "layer 4"


def test_gains_of_three_kinds():
    _, (ax,) = plot.figure()
    plot.detached_gains(ax, GAINS)
    for line, name in zip(ax.lines, GAINS.data_vars, strict=False):
        np.testing.assert_allclose(line.get_ydata(), GAINS[name].mean("prompt"))
    assert ax.get_yscale() == "linear"
    dwarfed = GAINS.copy(deep=True)
    dwarfed["measured_gain"][:, 0] = 500.0
    _, (ax,) = plot.figure()
    plot.detached_gains(ax, dwarfed)
    assert ax.get_yscale() == "symlog"
    assert "log beyond" in ax.get_ylabel()


@pytest.mark.parametrize(
    ("draw", "found", "name"),
    [
        (plot.singular_values, START, "singular_value"),
        (plot.stable_rank, FOUND, "stable_rank"),
        (plot.low_rank_errors, START, "low_rank_error"),
        (plot.detached_gains, GAINS, "exact_gain"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, found, name):
    _, (ax,) = plot.figure()
    with pytest.raises(TypeError, match="`found` must be a Dataset"):
        draw(ax, found[name])
    with pytest.raises(ValueError, match=name):
        draw(ax, found.drop_vars(name))
    with pytest.raises(ValueError, match=r"must have dims .* got .*batch"):
        draw(ax, found.expand_dims(batch=2))
