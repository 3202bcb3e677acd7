"""Figure of how well methods agree with measured gains, over many models and tasks."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from depthsys.plot.intervals import correlation_axis, cut_marks, dodged, error_range, intervals
from depthsys.plot.style import (
    GREY,
    basis_styles,
    log_axis_with_zeros,
    percent_axis,
    zero_markers,
)
from depthsys.plot.table import CORRELATIONS, ERRORS, TINY, bounds, held, one_of, said

_BAND = 0.84  # share of a model's place that holds its forms


def agreement_by_size(axes: Sequence[Axes], rows: xr.Dataset) -> None:
    """Agreement for models of rising size, over many models and tasks, a colour per form.

    Models stand side by side, the smallest first, each with its number of parameters. A small
    marker per task, with its interval; a bar at the median of the tasks, and a line that joins
    those of a form. Errors are in percent; those far above the others are cut, see
    `agreement_by_order`. A form that is named for a basis has the colour of that basis.

    Parameters
    ----------
    axes
        One Axes per metric, of a figure made by `figure`; the legend is put under all of them, and
        the names of models under the last row of Axes.
    rows
        ``value`` (pair, form, metric, bound); on ``pair`` the coordinates ``model`` and
        ``n_parameters``.

    Raises
    ------
    TypeError
        If ``rows`` is not a Dataset.
    ValueError
        If a variable is missing, there are other dims, a metric is not one of
        `agreement_by_order`, the number of Axes is not that of metrics, or a number of parameters
        is not positive.
    """
    rows = held(rows, "value", "model", "n_parameters", name="rows", cure="See its docstring.")
    metrics = [str(metric) for metric in rows["metric"].values]
    for metric in metrics:
        one_of("metric", metric, [*CORRELATIONS, *ERRORS])
    if len(axes) != len(metrics):
        raise ValueError(
            f"`axes` must be one per metric, {len(metrics)}; got {len(axes)}. Select metrics, or "
            f"make a figure with {len(metrics)} Axes."
        )
    sizes, models = rows["n_parameters"].values, rows["model"].values.astype(str)
    if not len(sizes) or not (sizes > 0).all():
        got = f"{sizes.min():.3g}" if len(sizes) else "no pair"
        raise ValueError(f"`n_parameters` must be positive; got {got}. It orders the models.")
    smallest = {str(name): sizes[models == name].min() for name in np.unique(models)}
    names = sorted(smallest, key=lambda name: (smallest[name], name))
    place = np.array([names.index(name) for name in models])
    forms = [str(form) for form in rows["form"].values]
    styles = basis_styles(forms)
    at = _places(place, len(forms))
    for ax, metric in zip(axes, metrics, strict=True):
        scale = 100 if metric in ERRORS else 1
        values = bounds(scale * rows["value"].sel(metric=metric), "form", "pair", name="rows")
        _model_axis(ax, names, [smallest[name] for name in names])
        _by_size(ax, metric, at, place, styles, *values)
    # a pair counts as missing where any metric is
    estimates = rows["value"].sel(bound="estimate").transpose("form", "pair", "metric").values
    known = np.where(np.isfinite(estimates).all(axis=-1), 1.0, np.nan)
    handles = [
        Line2D([], [], label=said(form, known[i]), **styles[i]) for i, form in enumerate(forms)
    ]
    figure = axes[0].figure
    # in a row under the figure as many as fit: some 12 small letters an inch
    letters = 8 + max(len(str(handle.get_label())) for handle in handles)
    columns = int(12 * figure.get_figure(root=True).get_figwidth() / letters)
    figure.legend(
        handles=handles,
        frameon=False,
        fontsize="small",
        loc="outside lower center",
        ncols=min(max(columns, 1), len(handles)),
    )


def _places(place: np.ndarray, n_forms: int) -> np.ndarray:
    """Where the pairs stand (form, pair): a strip per form, in it the tasks of the model."""
    beside = np.zeros(len(place))
    for model in np.unique(place):
        own = np.flatnonzero(place == model)
        beside[own] = (np.arange(len(own)) + 0.5) / len(own) - 0.5
    return dodged(place, n_forms, _BAND, log=False) + 0.75 * _BAND / n_forms * beside


def _by_size(ax: Axes, metric: str, at, place, styles: list[dict], estimate, low, high) -> None:
    log = metric in ERRORS
    bottom, top = error_range(estimate, low, high)
    strips = dodged(np.arange(place.max() + 1), len(styles), _BAND, log=False)
    half = 0.45 * _BAND / len(styles)
    for row, (style, values) in enumerate(zip(styles, estimate, strict=True)):
        zero = log & (values <= TINY)
        floor = bottom if log else None
        intervals(ax, at[row], low[row], high[row], floor, style["color"], cap=0, alpha=0.3)
        shown = np.where(zero, np.nan, values)
        ax.plot(at[row], shown, **{**style, "ls": "none", "ms": 3, "alpha": 0.6}, label="_pairs")
        if zero.any():
            zero_markers(ax, at[row][zero], row, len(styles), {**style, "ms": 3.5})
        points = []
        for model, x in enumerate(strips[row]):
            own = values[(place == model) & np.isfinite(values)]
            if len(own):
                points.append((x, np.median(own)))
        x, y = np.array(points).reshape(-1, 2).T
        y = np.where(log & (y <= TINY), np.nan, y)
        ax.plot(
            x, y, **{**style, "marker": "", "lw": 0.7 * style["lw"], "alpha": 0.8}, label="_joined"
        )
        ax.hlines(y, x - half, x + half, color=style["color"], lw=2.5, label="_medians")
    if log:
        log_axis_with_zeros(ax, bottom, top, zeros=bool((estimate <= TINY).any()))
        percent_axis(ax)
        cut_marks(ax, at, estimate, high, styles)
    else:
        correlation_axis(ax, estimate, low, high)
    ax.set_ylabel({**ERRORS, **CORRELATIONS}[metric])


def _model_axis(ax: Axes, names: list[str], sizes: list) -> None:
    for border in np.arange(1, len(names)) - 0.5:
        ax.axvline(border, color=GREY, lw=0.5, alpha=0.5, zorder=0)
    ax.set_xlim(-0.5, len(names) - 0.5)
    cell = ax.get_subplotspec()
    if cell is not None and not cell.is_last_row():
        ax.set_xticks(range(len(names)), [])
        return
    texts = [f"{name}\n{counted_parameters(size)}" for name, size in zip(names, sizes, strict=True)]
    # some twelve small letters an inch fit side by side
    columns = 1 if cell is None else cell.get_gridspec().ncols
    room = 12 * ax.figure.get_figure(root=True).get_figwidth() / columns / len(names)
    turned: dict = {}
    if any((len(a) + len(b)) / 2 + 1 > room for a, b in pairwise(names)):
        texts = [text.replace("\n", ", ") for text in texts]
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(names)), texts, fontsize="small", **turned)
    ax.set_xlabel("model, number of parameters")


def counted_parameters(size: float) -> str:
    """Three digits and a unit: 168 k, 2.53 M."""
    power = min(int(np.log10(size) // 3), 4) if size >= 1 else 0
    return f"{size / 1000**power:.3g}{['', ' k', ' M', ' G', ' T'][power]}"
