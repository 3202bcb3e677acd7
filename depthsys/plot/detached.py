"""Figures of detached maps: singular values, stable rank, low-rank errors, gains beside others."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from depthsys.plot.style import (
    BLACK,
    GREY,
    STYLES,
    check_dims,
    coordinate,
    dwarfing,
    key_above,
    layer_axis,
    log_axis,
    mark_undefined,
    symlog_axis,
    thinned,
)
from depthsys.plot.table import held

_CURE = "Use `lm.detached_spectra`."
_MAPS = {"layer": "of one layer, $A_l$", "from_start": r"from the start, $\Phi_l = A_l \cdots A_0$"}
_AT_ONCE = 5  # layers that are drawn in one figure
_GAINS = {"measured_gain": "measured", "exact_gain": "exact, by Jacobians",
          "detached_gain": "by detached maps"}  # fmt: skip


def singular_values(ax: Axes, found: xr.Dataset) -> None:
    """Singular values of some detached maps, over those of the first, the median of prompts.

    Parameters
    ----------
    ax
        Axes; both are logarithmic, and the legend is put above them.
    found
        From `lm.detached_spectra`, of one map: ``singular_value`` (prompt, layer, index). Five
        layers are drawn, the first and the last among them.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If the variable is missing or there is another dim.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from depthsys import plot
    >>> values = (("prompt", "layer", "index"), np.array([[[4.0, 2.0, 1.0]]]))
    >>> fig, (ax,) = plot.figure()
    >>> plot.singular_values(ax, xr.Dataset({"singular_value": values}))
    >>> ax.lines[0].get_ydata()
    array([1.  , 0.5 , 0.25])
    """
    values = held(found, "singular_value", name="found", cure=_CURE)["singular_value"]
    check_dims(values, "singular_value", ("prompt", "layer", "index"))
    relative = (values / values.isel(index=0)).transpose("prompt", "layer", "index")
    _some_layers(ax, relative.median("prompt"), np.arange(1, values.sizes["index"] + 1))
    log_axis(ax)
    _doubling_axis(ax, values.sizes["index"])
    ax.set_xlabel("number of the singular value")
    ax.set_ylabel("singular value over the largest")


def _some_layers(ax: Axes, curves: xr.DataArray, at: np.ndarray) -> None:
    """Curves (layer, ...) of some layers."""
    layers = coordinate(curves, "layer")
    places = np.unique(np.linspace(0, len(layers) - 1, min(_AT_ONCE, len(layers))).round())
    for row, place in enumerate(places.astype(int)):
        values = curves.isel(layer=place).values
        marks = thinned(values, row, len(places), most=8)
        ax.plot(at, values, markevery=marks, label=f"layer {layers[place]}", **STYLES[row])
    key_above(ax, ncols=3)


def _doubling_axis(ax: Axes, most: int) -> None:
    """Whole numbers from 1 on, with a tick wherever they double twice."""
    ax.set_xscale("log", base=2)
    ticks = [4**i for i in range(most.bit_length()) if 4**i <= most]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set_xticks([], minor=True)


def stable_rank(ax: Axes, found: xr.Dataset) -> None:
    """Stable rank of the detached maps of layers, and of their products from the start.

    Parameters
    ----------
    ax
        Axes; y is logarithmic. Lines are medians over prompts, the bands hold the middle 80 %.
    found
        From `lm.detached_spectra`: ``stable_rank`` (map, prompt, layer).

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If the variable is missing or there is another dim.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from depthsys import plot
    >>> ranks = xr.DataArray(
    ...     [[[2.0, 3.0]], [[2.0, 1.0]]],
    ...     {"map": ["layer", "from_start"]},
    ...     ("map", "prompt", "layer"),
    ... )
    >>> fig, (ax,) = plot.figure()
    >>> plot.stable_rank(ax, xr.Dataset({"stable_rank": ranks}))
    >>> ax.lines[1].get_ydata()
    array([2., 1.])
    """
    ranks = held(found, "stable_rank", "map", name="found", cure=_CURE)["stable_rank"]
    check_dims(ranks, "stable_rank", ("map", "prompt", "layer"))
    layers = coordinate(ranks, "layer")
    for row, (name, label) in enumerate(_MAPS.items()):
        here = ranks.sel(map=name)
        low, middle, high = here.quantile([0.1, 0.5, 0.9], dim="prompt").values
        style = STYLES[row]
        ax.fill_between(layers, low, high, color=style["color"], alpha=0.15, lw=0)
        ax.plot(layers, middle, markevery=thinned(middle, row, 2), label=label, **style)
    log_axis(ax)
    layer_axis(ax)
    ax.set_xlabel("layer")
    ax.set_ylabel("stable rank of the map")
    key_above(ax, ncols=1)


def low_rank_errors(ax: Axes, found: xr.Dataset) -> None:
    """How much of a value is missed where few singular directions of its map are kept.

    Parameters
    ----------
    ax
        Axes; the number of directions is logarithmic. Lines are medians over prompts.
    found
        From `lm.detached_spectra`, of one map: ``low_rank_error`` (prompt, layer, kept). Five
        layers are drawn, the first and the last among them.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If the variable is missing or there is another dim.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from depthsys import plot
    >>> errors = xr.DataArray([[[0.5, 0.0]]], {"kept": [1, 2]}, ("prompt", "layer", "kept"))
    >>> fig, (ax,) = plot.figure()
    >>> plot.low_rank_errors(ax, xr.Dataset({"low_rank_error": errors}))
    >>> ax.lines[0].get_ydata()
    array([0.5, 0. ])
    """
    errors = held(found, "low_rank_error", "kept", name="found", cure=_CURE)["low_rank_error"]
    check_dims(errors, "low_rank_error", ("prompt", "layer", "kept"))
    kept = errors["kept"].values
    _some_layers(ax, errors.transpose("prompt", "layer", "kept").median("prompt"), kept)
    _doubling_axis(ax, int(kept[-1]))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("singular directions that are kept")
    ax.set_ylabel("relative error of $A x$")


def detached_gains(ax: Axes, found: xr.Dataset) -> None:
    """Gains of the detached maps beside measured ones and those of Jacobians.

    Parameters
    ----------
    ax
        Axes; the legend is put above them. Where layer 0 is more than four times all others, y is
        linear up to these and logarithmic beyond. Lines are means over prompts, the band holds the
        middle 80 % of measured gains.
    found
        ``measured_gain``, ``exact_gain`` and ``detached_gain`` (prompt, layer), as from
        `lm.measure_gains` and `lm.linear_gains`.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing or there is another dim.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from depthsys import plot
    >>> gains = (("prompt", "layer"), np.array([[1.0, 2.0], [3.0, 2.0]]))
    >>> names = ("measured_gain", "exact_gain", "detached_gain")
    >>> fig, (ax,) = plot.figure()
    >>> plot.detached_gains(ax, xr.Dataset(dict.fromkeys(names, gains)))
    >>> ax.lines[2].get_ydata()
    array([2., 2.])
    """
    found = held(found, *_GAINS, name="found", cure="See docs/dynamics/detached.md.")
    for name in _GAINS:
        check_dims(found[name], name, ("prompt", "layer"), finite=False)
    layers, measured = coordinate(found["measured_gain"], "layer"), found["measured_gain"]
    low, high = measured.quantile([0.1, 0.9], dim="prompt", skipna=False).values
    ax.fill_between(layers, low, high, color=GREY, alpha=0.3, lw=0, label="80 % of prompts")
    curves = [found[name].mean("prompt").values for name in _GAINS]
    for row, (values, label) in enumerate(zip(curves, _GAINS.values(), strict=True)):
        ax.plot(layers, values, markevery=thinned(values, row, 3), label=label, **STYLES[row])
    ax.axhline(0, color=BLACK, lw=0.8)
    layer_axis(ax)
    ax.set_xlabel("layer")
    ax.set_ylabel("gain: readout per unit injection")
    mark_undefined(ax, measured.notnull().any("prompt"))
    alone = dwarfing(np.stack([low, high, *curves], axis=1))
    if alone is not None:
        edge = symlog_axis(ax, alone[1])
        ax.set_ylabel(f"gain per unit injection (log beyond ±{edge:g})")
    key_above(ax, ncols=2)
