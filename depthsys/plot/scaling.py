"""Figure of how agreement and its error budget change with the size of the model."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from depthsys.plot.intervals import correlation_axis, cut_marks, error_range, intervals
from depthsys.plot.sizes import counted_parameters
from depthsys.plot.style import (
    GREY,
    STYLES,
    check_dims,
    log_axis_with_zeros,
    percent_axis,
    zero_markers,
)
from depthsys.plot.table import CORRELATIONS, ERRORS, TINY, bounds, held, one_of, said

_CURE = "See its docstring."
_AGREEMENT = {"relative_l2": ERRORS["relative_l2"], "spearman": CORRELATIONS["spearman"]}
_DECADES = 5  # of the error axis: what is below is as good as nothing
_WIDTH = 0.18  # of the tasks of a model side by side, in decades


def scaling(
    ax: Axes,
    table: xr.Dataset,
    quantity: str = "relative_l2",
    *,
    names: bool = True,
    alike: Sequence[xr.Dataset] = (),
) -> None:
    """Agreement, or a part of its error budget, against the number of parameters.

    A colour and marker per task; tasks of a model stand side by side around its size. Every seed is
    a small mark with its interval, and a line joins the medians over seeds. Errors have a log axis
    in percent, the same for all quantities of a table; those far above the others are cut, see
    `agreement_by_order`, and those below 1e-5 of its upper end are open marks in a strip under it.
    Beside the error of a table that has them, grey bars show the median noise floors.

    Parameters
    ----------
    ax
        Axes; for a legend see `shared_legend`.
    table
        ``n_parameters`` (model), ``relative_l2`` and ``spearman`` (model, task, seed, bound),
        ``budget`` (model, task, seed, part, bound), fractions; NaN where a cell is missing.
        ``noise_floor`` (model, task, seed), optional.
    quantity
        "relative_l2", "spearman" or a part of the budget.
    names
        Whether the models are named above the Axes.
    alike
        Tables whose errors are drawn on an axis with the same ends.

    Raises
    ------
    TypeError
        If ``table`` is not a Dataset.
    ValueError
        If a variable or the quantity is missing, there are other dims, or a number of parameters is
        not positive.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from depthsys import plot
    >>> dims = ("model", "task", "seed", "bound")
    >>> error = np.array([0.04, 0.02])[:, None, None, None] * [1.0, 0.5, 2.0]
    >>> table = xr.Dataset(
    ...     {"n_parameters": ("model", [10**6, 10**8]), "relative_l2": (dims, error)},
    ...     coords={"model": ["a", "b"], "task": ["sst2"], "bound": ["estimate", "low", "high"]},
    ... )
    >>> fig, (ax,) = plot.figure()
    >>> plot.scaling(ax, table)
    >>> ax.get_legend_handles_labels()[1], ax.get_ylabel()
    (['sst2'], 'relative L2 error (%)')
    """
    values, label = _chosen(table, quantity)
    is_error = quantity != "spearman"
    sizes = table["n_parameters"].values
    tasks = [str(task) for task in table["task"].values]
    estimate, low, high = (
        (100 if is_error else 1) * part.reshape(len(tasks), -1)
        for part in bounds(values, "task", "model", "seed")
    )
    at = _places(sizes, len(tasks), values.sizes["seed"])
    styles = [STYLES[row % len(STYLES)] for row in range(len(tasks))]
    none = (np.nan, np.nan, None)
    bottom, top, below = _error_axis([table, *alike]) if is_error else none
    for row, (task, style) in enumerate(zip(tasks, styles, strict=True)):
        floor = bottom if is_error else None
        small = is_error & (estimate[row] < bottom)
        intervals(ax, at[row], low[row], high[row], floor, style["color"], cap=0, alpha=0.5)
        shown = np.where(small, np.nan, estimate[row])
        seeds = {**style, "ls": "none", "ms": 3.5, "alpha": 0.7}
        ax.plot(at[row], shown, label="_seeds", **seeds)
        if small.any():
            zero_markers(ax, at[row][small], row, len(tasks), {**style, "ms": 4})
        x, y = _medians(sizes, at[row], estimate[row])
        y = np.where(is_error & (y < bottom), np.nan, y)
        ax.plot(x, y, label=said(task, estimate[row]), **{**style, "lw": 1.2, "ms": 6})
    if quantity == "relative_l2" and "noise_floor" in table:
        _floors(ax, at, table["noise_floor"], bottom)
    _size_axis(ax, sizes, table["model"].values.astype(str) if names else None)
    if is_error:
        log_axis_with_zeros(ax, bottom, top, zeros=below is not None, note=below or "")
        percent_axis(ax)
        cut_marks(ax, at, estimate, high, styles)
    else:
        correlation_axis(ax, estimate, low, high)
    ax.set_ylabel(label)


def _chosen(table: xr.Dataset, quantity: str) -> tuple[xr.DataArray, str]:
    """The quantity (model, task, seed, bound), and what its axis is called."""
    held(table, "n_parameters", cure=_CURE)
    parts = [str(part) for part in table["part"].values] if "budget" in table else []
    one_of("quantity", quantity, [*(name for name in _AGREEMENT if name in table), *parts])
    sizes = table["n_parameters"].values
    if not len(sizes) or not (sizes > 0).all():
        got = f"{sizes.min():.3g}" if len(sizes) else "no model"
        raise ValueError(f"`n_parameters` must be positive; got {got}. Its axis is logarithmic.")
    if quantity in _AGREEMENT:
        return table[quantity], _AGREEMENT[quantity]
    return table["budget"].sel(part=quantity, drop=True), f"{quantity}: part of the error (%)"


def _floors(ax: Axes, at: np.ndarray, floors: xr.DataArray, bottom: float) -> None:
    """A bar over the marks of every model and task, at the median floor of its seeds."""
    check_dims(floors, "noise_floor", ("task", "model", "seed"), finite=False)
    every = 100 * floors.transpose("task", "model", "seed").values
    drawn = [
        (places.min(), places.max(), np.nanmedian(values))
        for own, marks in zip(every, at.reshape(every.shape), strict=True)
        for values, places in zip(own, marks, strict=True)
        if np.isfinite(values).any()
    ]
    first, last, y = np.array(drawn).reshape(-1, 3).T
    apart = 10 ** (0.15 * _WIDTH / len(every))
    bars: dict = {"color": GREY, "lw": 3, "alpha": 0.8, "zorder": 0, "label": "noise floor"}
    ax.hlines(np.where(y < bottom, np.nan, y), first / apart, last * apart, **bars)


def _error_axis(tables: Sequence[xr.Dataset]) -> tuple[float, float, str | None]:
    """Ends of the error axis of all quantities, and what the errors below it are, if any."""
    errors = [
        table[name] for table in tables for name in ("relative_l2", "budget") if name in table
    ]
    every = [
        np.concatenate([100 * part.sel(bound=bound).values.ravel() for part in errors])
        for bound in ("estimate", "low", "high")
    ]
    least = error_range(*every)[1] / 10**_DECADES
    bottom, top = error_range(*(np.where(values < least, np.nan, values) for values in every))
    below = every[0][every[0] < least]
    if not len(below):
        return bottom, top, None
    return bottom, top, "0 to rounding" if (below <= TINY).all() else f"below {least:.1g} %"


def _places(sizes: np.ndarray, n_tasks: int, n_seeds: int) -> np.ndarray:
    """Where the marks stand (task, model and seed): tasks around the size, seeds in their strip."""
    task = (np.arange(n_tasks) + 0.5) / n_tasks - 0.5
    seed = ((np.arange(n_seeds) + 0.5) / n_seeds - 0.5) / n_tasks
    shift = 0.8 * _WIDTH * (task[:, None, None] + 0.7 * seed[None, None, :])
    return (sizes[None, :, None] * 10**shift).reshape(n_tasks, -1)


def _medians(sizes: np.ndarray, at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Places and medians over the seeds of every model that has a value, by rising size."""
    each, places = values.reshape(len(sizes), -1), at.reshape(len(sizes), -1)
    points = [
        (places[model].mean(), np.nanmedian(each[model]))
        for model in np.argsort(sizes, kind="stable")
        if np.isfinite(each[model]).any()
    ]
    return np.array(points).reshape(-1, 2).T


def _size_axis(ax: Axes, sizes: np.ndarray, names: np.ndarray | None) -> None:
    """Number of parameters along a log x axis, a line at every model, and its name above."""
    ax.set_xscale("log")
    wide = max(10.0, float(sizes.max() / sizes.min()))
    middle = float(np.sqrt(sizes.max() * sizes.min()))
    half = np.sqrt(wide) * max(10**_WIDTH, wide**0.06)
    ax.set_xlim(middle / half, middle * half)
    ax.xaxis.set_major_formatter(lambda value, _: counted_parameters(value))
    ax.set_xticks([], minor=True)
    ax.set_xlabel("number of parameters")
    for size in np.unique(sizes):
        ax.axvline(size, color=GREY, lw=0.5, alpha=0.5, zorder=0)
    if names is None:
        return
    order = np.argsort(sizes, kind="stable")
    share = np.log(sizes[order] / (middle / half)) / np.log(half**2)
    # turned names need some 13 points each, and labels beside the Axes take half of the figure
    gap = 13 / 72 / max(0.5 * ax.figure.get_figure(root=True).get_figwidth(), 1.0)
    spec = ax.get_subplotspec()
    gap *= 1 if spec is None else spec.get_gridspec().ncols
    style: dict = {"rotation": 60, "ha": "left", "va": "bottom", "fontsize": "small"}
    style |= {"rotation_mode": "anchor", "annotation_clip": False}
    for model, at, aside in zip(order, share, _spread(share, gap), strict=True):
        ax.plot([at, aside], [1, 1.04], color=GREY, lw=0.6, clip_on=False, transform=ax.transAxes)
        ax.annotate(str(names[model]), (aside, 1.05), xycoords="axes fraction", **style)


def _spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Rising places, moved as little as a sweep to the right and one back must, a gap apart."""
    moved = places.copy()
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    moved -= max(0.0, moved[-1] - 1.0) / 2
    return moved
