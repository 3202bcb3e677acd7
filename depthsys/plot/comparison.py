"""Figures that compare methods of reduction on one model and one task.

All read the table that ``depthsys compare`` writes. A basis has the same colour and marker in every
figure. A value that is not known is said in words; one that is 0 to rounding is an open marker in a
strip under a log axis.
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

from depthsys.plot.intervals import (
    correlation_axis,
    cut_marks,
    dodged,
    error_range,
    intervals,
    least_gap,
)
from depthsys.plot.ltv import error_lines
from depthsys.plot.style import (
    BLACK,
    GREY,
    STYLES,
    basis_styles,
    by_powers,
    check_dims,
    legend_beside,
    log_axis_with_zeros,
    log_range,
    order_axis,
    percent_axis,
    zero_markers,
)
from depthsys.plot.table import (
    CORRELATIONS,
    ERRORS,
    TINY,
    bounds,
    chosen,
    held,
    one_of,
    said,
    words,
)


def agreement_by_order(
    ax: Axes,
    table: xr.Dataset,
    metric: str = "relative_l2",
    layers: str = "all",
    injection: str = "absolute",
    *,
    legend: bool = True,
) -> None:
    """Agreement with measured gains against order, a line per basis with its interval.

    Bases are moved sideways, so that their intervals can be told apart. Errors have a log axis, in
    percent, and correlations a linear one. An error that is above 200 % and far above the others is
    cut: an arrow with its value stands in its place, as a small arrow does for an interval that is
    cut. Under the noise floor of ``relative_l2``, what a perfect prediction would show on so many
    prompts, differences are sampling noise.

    Parameters
    ----------
    ax
        Axes; the legend is put to its right.
    table
        The metric (basis, order, injection, layers, bound) and, for ``relative_l2``,
        ``noise_floor`` (injection, layers).
    metric
        "spearman", "pearson", "relative_l2" or "max_relative_error".
    layers, injection
        Which of those of the table.
    legend
        Whether there is one; see `shared_legend`.

    Raises
    ------
    TypeError
        If ``table`` is not a Dataset.
    ValueError
        If a variable or a label is missing, or there are batch dims.
    """
    one_of("metric", metric, [*CORRELATIONS, *ERRORS])
    table = held(table, metric, *["noise_floor"] * (metric == "relative_l2"))
    part = chosen(table, layers=layers, injection=injection).sortby("order")
    log = metric in ERRORS
    estimate, low, high = bounds((100 if log else 1) * part[metric], "basis", "order")
    orders, names = part["order"].values, [str(name) for name in part["basis"].values]
    log_x = by_powers(orders)
    width = min(0.8, 0.2 * len(names)) * least_gap(orders, log=log_x)
    at = dodged(orders, len(names), width, log=log_x)
    floor = 100 * float(part["noise_floor"]) if metric == "relative_l2" else np.nan
    bottom, top = error_range(estimate, low, high, np.array([floor]))
    styles: list[dict] = [style | {"ms": _size(style, len(names))} for style in basis_styles(names)]
    for row, (name, style) in enumerate(zip(names, styles, strict=True)):
        zero = log & (estimate[row] <= TINY)
        intervals(ax, at[row], low[row], high[row], bottom if log else None, style["color"])
        ax.plot(
            at[row], np.where(zero, np.nan, estimate[row]), label=said(name, estimate[row]), **style
        )
        if zero.any():
            zero_markers(ax, at[row][zero], row, len(names), style)
    if log:
        log_axis_with_zeros(ax, bottom, top, zeros=bool((estimate <= TINY).any()))
        percent_axis(ax)
    else:
        correlation_axis(ax, estimate, low, high)
    if metric == "relative_l2":
        _noise_floor(ax, floor, bottom)
    order_axis(ax, orders)
    for border in _between(orders, log=log_x) if len(names) > 1 else ():
        ax.axvline(border, color=GREY, lw=0.5, alpha=0.5, zorder=0)
    left, right = ax.get_xlim()
    ends = (at.min() / 1.1, at.max() * 1.1) if log_x else (at.min() - 0.1, at.max() + 0.1)
    ax.set_xlim(min(left, ends[0]), max(right, ends[1]))
    if log:
        cut_marks(ax, at, estimate, high, styles)
    ax.set_ylabel({**ERRORS, **CORRELATIONS}[metric])
    ax.set_title(f"{words(layers)}, {injection} injection")
    if legend:
        legend_beside(ax)


def certified_errors(
    ax: Axes, table: xr.Dataset, reference: str = "mean_system", *, legend: bool = True
) -> None:
    """Relative error of reduced models against order, beside what is proved about it, log axis.

    In percent of the norm of the full system. No model of an order, or of a smaller one, has an
    error in the shaded region. A basis with a proved bound has its error below the dashed line of
    its colour.

    Parameters
    ----------
    ax
        Axes; the legend is put to its right.
    table
        ``error`` and ``upper`` (basis, order, reference), ``lower`` (order, reference), ``norm``
        and ``resolution`` (reference), in output/input. NaN is not drawn.
    reference
        What the errors are measured against.
    legend
        Whether there is one; see `shared_legend`.

    Raises
    ------
    TypeError
        If ``table`` is not a Dataset.
    ValueError
        If a variable or the reference is missing, there are batch dims, or the norm is not
        positive.
    """
    table = held(table, "error", "upper", "lower", "norm", "resolution")
    error_lines(ax, chosen(table, reference=reference).sortby("order"), _excluded, scale=100)
    percent_axis(ax)
    ax.set_ylabel("error / norm of the full system (%)")
    ax.set_title(f"against the {words(reference)}")
    if legend:
        legend_beside(ax)


def linear_range(ax: Axes, table: xr.Dataset) -> None:
    """Error of the linear prediction against the size of the injection, both axes log.

    Parameters
    ----------
    ax
        Axes; the legend, with the steps at which 5 % is passed, is put to its right.
    table
        ``step_error`` (step, layers, bound), a fraction, drawn in percent; ``step_limit``
        (layers), NaN where the error does not pass 5 % within the range.

    Raises
    ------
    TypeError
        If ``table`` is not a Dataset.
    ValueError
        If a variable is missing, there are batch dims, or a step is not positive.
    """
    table = held(table, "step_error", "step_limit").sortby("step")
    steps = table["step"].values
    if not (steps > 0).all():
        raise ValueError(
            f"`step` must be positive; got {steps.min():.3g}. Its axis is logarithmic."
        )
    estimate, low, high = bounds(100 * table["step_error"], "layers", "step")
    check_dims(table["step_limit"], "step_limit", ("layers",), finite=False)
    bottom, top = log_range(estimate, low, high, np.array([5.0]), tiny=TINY)
    ax.axhline(5, color=GREY, lw=1, label="5 %")
    at = dodged(steps, table.sizes["layers"], 0.15 * least_gap(steps, log=True), log=True)
    for row, name in enumerate(table["layers"].values):
        style = STYLES[row % len(STYLES)]
        zero = estimate[row] <= TINY
        limit = float(table["step_limit"][row])
        intervals(ax, at[row], low[row], high[row], bottom, style["color"])
        label = f"{said(words(name), estimate[row])}: {_limit_in_words(limit, estimate[row])}"
        ax.plot(at[row], np.where(zero, np.nan, estimate[row]), label=label, **style)
        if zero.any():
            zero_markers(ax, at[row][zero], row, table.sizes["layers"], style)
        if np.isfinite(limit):
            ax.vlines(limit, bottom / 1e3, 5, color=style["color"], ls=":", lw=1)
            ax.plot(limit, 5, marker=style["marker"], ms=11, mfc="none", mec=style["color"])
    _log_x(ax, steps[0] / 1.5, steps[-1] * 1.5)
    log_axis_with_zeros(ax, bottom, top, zeros=bool((estimate <= TINY).any()))
    percent_axis(ax)
    unit = "fraction of the state's norm" if table.attrs.get("relative", 0) else "unit of the state"
    ax.set_xlabel(rf"push $\epsilon$ ({unit})")
    ax.set_ylabel("relative L2 error over layers (%)")
    legend_beside(ax)


def prompt_spread(ax: Axes, table: xr.Dataset, order: int) -> None:
    """Error on every single prompt, a dot per prompt and a box per basis, log axis.

    The box holds the middle half of prompts with the median, its whiskers the middle 90 %.

    Parameters
    ----------
    ax
        Axes.
    table
        ``prompt_relative_l2`` (basis_each, order, prompt_each), a fraction; drawn in percent.
    order
        Which of those of the table.

    Raises
    ------
    TypeError
        If ``table`` is not a Dataset.
    ValueError
        If the variable or the order is missing, or there are batch dims.
    """
    part = chosen(held(table, "prompt_relative_l2"), order=order)["prompt_relative_l2"]
    dims = check_dims(part, "table", ("basis_each", "prompt_each"), finite=False)
    values = 100 * part.transpose(*dims).values
    names = [str(name) for name in part["basis_each"].values]
    # as in the figures of all bases of the table
    ranked = list(dict.fromkeys([*map(str, table.get("basis", part["basis_each"]).values), *names]))
    styles = dict(zip(ranked, basis_styles(ranked), strict=True))
    bottom, top = log_range(values, tiny=TINY)
    texts = []
    for row, name in enumerate(names):
        style = {**styles[name], "ms": 3, "ls": "none", "alpha": 0.6}
        known = values[row][np.isfinite(values[row])]
        # multiples of the golden section, modulo 1, spread evenly however many there are
        side = row + 0.5 * ((np.arange(len(known)) * 0.618034) % 1 - 0.5)
        zero = known <= TINY
        ax.plot(side[~zero], known[~zero], **style)
        if zero.any():
            zero_markers(ax, side[zero], 0, 1, style)
        if not zero.all():
            ax.boxplot(
                np.maximum(known, bottom / 1e3),
                positions=[row],
                widths=0.62,
                whis=(5, 95),
                showfliers=False,
                manage_ticks=False,
                medianprops={"color": BLACK, "lw": 2},
            )
        missing = values.shape[1] - len(known)
        note = f"({missing} missing)" if len(known) else "(no value)"
        texts.append(f"{name}\n{note}" if missing else name)
    log_axis_with_zeros(ax, bottom, top, zeros=bool((values <= TINY).any()))
    percent_axis(ax)
    # some nine letters an inch fit side by side
    widest = max((len(line) for text in texts for line in text.split("\n")), default=0)
    turned: dict = {}
    if widest * len(names) > 9 * ax.figure.get_figure(root=True).get_figwidth():
        texts = [text.replace("\n", " ") for text in texts]
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(names)), texts, **turned)
    room = 0.5 + max(0, 3 - len(names)) / 2  # one box alone would be as wide as the Axes
    ax.set_xlim(-room, len(names) - 1 + room)
    ax.set_xlabel(f"basis, one system per prompt ({values.shape[1]} prompts), order {order}")
    ax.set_ylabel(ERRORS["relative_l2"])


def _excluded(ax: Axes, names, orders, lower, upper, bottom: float) -> None:
    """Region under the lower bound, and the upper bound of every basis that has one."""
    edge = np.where(lower >= bottom, lower, np.nan)
    # what no model of order r attains, none of a smaller order does: steps up to each order
    x, y = np.array([orders[0] / 2, *orders]), np.array([edge[0], *edge])
    if np.isfinite(edge).any():
        label = "no model can be here"
        ax.fill_between(x, bottom / 1e3, y, step="pre", color=GREY, alpha=0.3, lw=0, label=label)
        ax.plot(x, y, drawstyle="steps-pre", color=GREY, lw=1, label="_lower bound")
    for name, style, values in zip(names, basis_styles([*map(str, names)]), upper, strict=True):
        edge = np.where(values >= bottom, values, np.nan)
        if np.isfinite(values).any():
            # a tick at every order: a line through a single one would not be seen
            bound: dict = {"color": style["color"], "ls": (0, (2, 2)), "lw": 1}
            bound |= {"marker": "_", "ms": 10, "mew": 1.5}
            ax.plot(orders, edge, label=f"upper bound, {name}", **bound)


def _noise_floor(ax: Axes, floor: float, bottom: float) -> None:
    if floor > TINY:
        ax.axhspan(bottom / 1e3, floor, color=GREY, alpha=0.25, lw=0, label="sampling noise alone")
        ax.axhline(floor, color=GREY, lw=1, zorder=0)
    else:
        text = "0 to rounding" if floor <= TINY else "not known"
        ax.plot([], [], " ", label=f"sampling noise: {text}")


def _between(orders: np.ndarray, *, log: bool) -> np.ndarray:
    """Half way from each order to the next, on its scale."""
    if log:
        return np.sqrt(orders[1:] * orders[:-1])
    return (orders[1:] + orders[:-1]) / 2


def _size(style: dict, n_rows: int) -> float:
    """Size of a marker that leaves room for the others of its order."""
    return style["ms"] * (1 if n_rows <= 4 else 0.8)


def _log_x(ax: Axes, low: float, high: float) -> None:
    """Log x axis from low to high, both outside the data, at least a decade wide."""
    wider = max(1, 10 / (high / low)) ** 0.5
    ax.set_xscale("log")
    ax.set_xlim(low / wider, high * wider)
    if high / low < 100:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _limit_in_words(limit: float, estimate: np.ndarray) -> str:
    if np.isfinite(limit):
        return rf"5 % at $\epsilon$ = {limit:.2g}"
    known = estimate[np.isfinite(estimate)]
    if len(known) and (known < 5).all():
        return "below 5 % throughout"
    return "above 5 % throughout" if len(known) and (known > 5).all() else "limit not known"
