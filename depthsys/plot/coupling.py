"""Figures of the coupling of layers, and of the shape of trajectories."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from depthsys.plot.style import (
    GREY,
    STYLES,
    check_dims,
    colour_bar,
    coordinate,
    depth_axis,
    key_above,
    layer_axis,
    log_axis,
    thinned,
)
from depthsys.plot.table import held

_CURE = "Use `lm.coupling` or `ltv.coupling`."
_SHAPE = "Use `lm.trajectory_shape`."
SPREAD = (0.1, 0.9)


def coupling(ax: Axes, found: xr.Dataset, *, span: float | None = None) -> None:
    """Whether the directions of one layer diagonalise another, as a map over all pairs.

    Parameters
    ----------
    ax
        Axes; a colour bar is put beside them. White is 1, where the directions of the one layer
        see nothing of the other; blue is below it, that is coupled, red above. The diagonal, 0 by
        definition, is grey.
    found
        From `lm.coupling`, whose mean over prompts is drawn, or `ltv.coupling`.
    span
        How far from 1 the colours go; by default to the value that is farthest from it. Give maps
        that are to be compared the same one.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If there is no ``coupling`` (layer, layer_2), or another dim, or ``span`` is not above 0.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from depthsys import plot
    >>> m = (("layer", "layer_2"), np.array([[0.0, 1.0], [0.8, 0.0]]))
    >>> fig, (ax,) = plot.figure()
    >>> plot.coupling(ax, xr.Dataset({"coupling": m}, attrs={"top": 3}))
    >>> ax.get_xlabel()
    "directions of layer $l'$"
    """
    values = held(found, "coupling", name="found", cure=_CURE)["coupling"]
    check_dims(values, "coupling", ("layer", "layer_2"), ("prompt", "layer", "layer_2"))
    values = values.mean([dim for dim in values.dims if dim == "prompt"])
    values = values.transpose("layer", "layer_2")
    edges = [_edges(coordinate(values, dim)) for dim in ("layer_2", "layer")]
    rows, columns = (coordinate(values, dim) for dim in ("layer", "layer_2"))
    m = np.ma.masked_where(rows[:, None] == columns, values.values)
    if span is None:
        span = float(np.abs(m - 1).max()) if m.count() else 0.0
        span = span or 1.0  # all are 1: any colours show it
    elif not (np.isfinite(span) and span > 0):
        raise ValueError(f"`span` must be above 0; got {span!r}. Write 0.25 for 0.75 to 1.25.")
    low, high = 1 - span, 1 + span
    beyond = bool(m.min() < low), bool(m.max() > high)
    ax.set_facecolor(GREY)
    drawn = ax.pcolormesh(*edges, m, vmin=low, vmax=high, cmap="RdBu_r", rasterized=True)
    top = f", K = {found.attrs['top']}" if "top" in found.attrs else ""
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
    colour_bar(ax, drawn, f"$m(l, l')${top} (0: coupled)", extend.get(beyond, "neither"))
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.set_xlabel("directions of layer $l'$")
    ax.set_ylabel("layer $l$ that is looked at")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _edges(at: np.ndarray) -> np.ndarray:
    return np.append(at - 0.5, at[-1] + 0.5)


def trajectory_shape(axes: Sequence[Axes], found: xr.Dataset) -> None:
    """How long the steps and the states are along depth, with the best exponential of each.

    Parameters
    ----------
    axes
        Two Axes, with log axes: steps over layers, norms of states over depth. The band holds the
        middle 80 % of prompts, the line is their geometric mean, which the exponential is fitted
        to.
    found
        From `lm.trajectory_shape`.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, or there are not two Axes.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from depthsys import plot
    >>> found = xr.Dataset({
    ...     "step": (("prompt", "layer"), np.array([[1.0, 2.0, 4.0]])),
    ...     "norm": (("prompt", "depth"), np.array([[1.0, 2.0, 4.0, 8.0]])),
    ... })
    >>> fig, axes = plot.figure(10, 4, columns=2)
    >>> plot.trajectory_shape(axes, found)
    >>> axes[0].lines[1].get_ydata()
    array([1., 2., 4.])
    """
    if len(axes) != 2:
        raise ValueError(f"`axes` must be two; got {len(axes)}. Make them with `columns=2`.")
    found = held(found, "step", "norm", name="found", cure=_SHAPE)
    panels = {"step": ("layer", r"step $\|x_{l+1} - x_l\|$"), "norm": ("depth", r"norm $\|x_k\|$")}
    for ax, (name, (dim, label)) in zip(axes, panels.items(), strict=True):
        check_dims(found[name], name, ("prompt", dim))
        values = found[name].transpose("prompt", dim)
        at = coordinate(values, dim)
        low, high = values.quantile(SPREAD, dim="prompt").values
        ax.fill_between(at, low, high, color=GREY, alpha=0.3, lw=0, label="80 % of prompts")
        with np.errstate(divide="ignore"):
            logs = np.log(values.values).mean(axis=0)
        ax.plot(at, np.exp(logs), markevery=thinned(logs), label="geometric mean", **STYLES[0])
        if np.isfinite(logs).all():
            slope, start = np.polyfit(at, logs, 1)
            style: dict = STYLES[1] | {"marker": ""}
            fit = np.exp(start + slope * at)
            ax.plot(at, fit, label=f"{np.exp(slope):.3f} per layer", **style)
        log_axis(ax)
        ax.set_ylabel(f"{label}, unit of the state")
        key_above(ax, ncols=3)
    layer_axis(axes[0])
    axes[0].set_xlabel("layer")
    depth_axis(axes[1], coordinate(found["norm"], "depth"))
