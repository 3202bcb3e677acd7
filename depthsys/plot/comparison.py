"""Figures that compare methods of reduction: by order, by part of the error, by prompt, by model.

All but `agreement_by_size` read the table that ``depthsys compare`` writes, of one model and one
task. A basis has the same colour and marker in every figure of a table. A value that is not known
is said in words; one that is 0 to rounding is an open marker in a strip under a log axis.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

from depthsys.plot.ltv import error_lines
from depthsys.plot.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    SKY,
    STYLES,
    by_powers,
    check_dims,
    legend_beside,
    log_axis_with_zeros,
    log_range,
    order_axis,
    zero_markers,
)

_TINY = 1e-12  # a relative error of float64 results below this is rounding
_LABELS = {
    "spearman": "Spearman correlation of the gains",
    "pearson": "Pearson correlation of the gains",
    "relative_l2": "relative L2 error (fraction)",
    "max_relative_error": "largest relative error (fraction)",
}
_CORRELATIONS = ("spearman", "pearson")
_BOUNDS = ("estimate", "low", "high")
_PARTS: dict[str, dict] = {
    "nonlinearity": {"facecolor": BLUE},
    "averaging": {"facecolor": ORANGE, "hatch": "///"},
    "sampling": {"facecolor": "w", "hatch": "..."},
    "truncation": {"facecolor": SKY, "hatch": "xx"},
}
_MAKE = "Make it with `depthsys compare`."


def agreement_by_order(
    ax: Axes,
    table: xr.Dataset,
    metric: str = "relative_l2",
    layers: str = "all",
    injection: str = "absolute",
) -> None:
    """Agreement with measured gains against order, a line per basis with its interval.

    Bases are moved sideways, so that their intervals can be told apart. Errors have a log axis and
    correlations a linear one. Under the noise floor of ``relative_l2``, what a perfect prediction
    would show on so many prompts, differences are sampling noise.

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

    Raises
    ------
    TypeError
        If ``table`` is not a Dataset.
    ValueError
        If a variable or a label is missing, or there are batch dims.
    """
    _one_of("metric", metric, _LABELS)
    table = _held(table, metric, *["noise_floor"] * (metric == "relative_l2"))
    chosen = _chosen(table, layers=layers, injection=injection).sortby("order")
    estimate, low, high = _bounds(chosen[metric], "basis", "order")
    orders, names = chosen["order"].values, [str(name) for name in chosen["basis"].values]
    log_x = by_powers(orders)
    at = _dodged(orders, len(names), 0.5 * _least_gap(orders, log=log_x), log=log_x)
    log = metric not in _CORRELATIONS
    floor = float(chosen["noise_floor"]) if metric == "relative_l2" else np.nan
    bottom, top = log_range(estimate, low, high, np.array([floor]), tiny=_TINY)
    for row, name in enumerate(names):
        style = STYLES[row % len(STYLES)]
        zero = log & (estimate[row] <= _TINY)
        _intervals(ax, at[row], low[row], high[row], bottom if log else None, style["color"])
        label = _said(name, estimate[row])
        ax.plot(at[row], np.where(zero, np.nan, estimate[row]), label=label, **style)
        if zero.any():
            zero_markers(ax, at[row][zero], row, len(names), style)
    if log:
        log_axis_with_zeros(ax, bottom, top, zeros=bool((estimate <= _TINY).any()))
    else:
        _correlation_axis(ax, estimate, low, high)
    if metric == "relative_l2":
        _noise_floor(ax, floor, bottom)
    order_axis(ax, orders)
    ax.set_ylabel(_LABELS[metric])
    ax.set_title(f"{_words(layers)}, {injection} injection")
    legend_beside(ax)


def certified_errors(ax: Axes, table: xr.Dataset, reference: str = "mean_system") -> None:
    """Relative error of reduced models against order, beside what is proved about it, log axis.

    No model of an order, or of a smaller one, has an error in the shaded region. A basis with a
    proved bound has its error below the dashed line.

    Parameters
    ----------
    ax
        Axes; the legend is put to its right.
    table
        ``error`` and ``upper`` (basis, order, reference), ``lower`` (order, reference), ``norm``
        and ``resolution`` (reference), in output/input. NaN is not drawn.
    reference
        What the errors are measured against.

    Raises
    ------
    TypeError
        If ``table`` is not a Dataset.
    ValueError
        If a variable or the reference is missing, there are batch dims, or the norm is not
        positive.
    """
    table = _held(table, "error", "upper", "lower", "norm", "resolution")
    error_lines(ax, _chosen(table, reference=reference).sortby("order"), _excluded)
    ax.set_title(f"against the {_words(reference)}")


def budget_bars(ax: Axes, table: xr.Dataset, order: int, layers: str = "all") -> None:
    """Parts of the error of every basis, stacked, and under them the total with its interval.

    The total is no sum: parts may cancel. A row more than five times as long as the middle one is
    cut, and says so.

    Parameters
    ----------
    ax
        Axes; the legend is put above it, the totals to its right.
    table
        ``error_budget`` (basis, order, part, layers, bound), a fraction; drawn in percent.
    order, layers
        Which of those of the table.

    Raises
    ------
    TypeError
        If ``table`` is not a Dataset.
    ValueError
        If the variable or a label is missing, or there are batch dims.
    """
    chosen = _chosen(_held(table, "error_budget"), order=order, layers=layers)
    parts = list(_PARTS)
    if not {*parts, "total"} <= set(chosen["part"].values):
        raise ValueError(
            f"`part` must hold {[*parts, 'total']}; got {chosen['part'].values.tolist()}. {_MAKE}"
        )
    budget = 100 * chosen["error_budget"]
    values = _bounds(budget.sel(part=parts), "basis", "part")[0]
    total, low, high = _bounds(budget.sel(part="total"), "basis")
    known = np.isfinite(values)
    values = np.where(known, values, 0)  # the text beside the row says which are not known
    rows, sums = np.arange(len(values)), values.sum(axis=1)
    extent = np.fmax.reduce([sums, np.where(np.isfinite(total), np.fmax(total, high), 0)])
    limit = float(extent[extent <= 5 * np.median(extent)].max(initial=0))
    limit = limit if limit > 100 * _TINY else 1.0
    left = np.zeros(len(rows))
    for column, part in enumerate(parts):
        width = values[:, column]
        ax.barh(rows - 0.12, width, 0.46, left, label=part, edgecolor=BLACK, lw=0.6, **_PARTS[part])
        left = left + width
    ax.hlines(rows + 0.28, low, high, color=BLACK, lw=1)
    ax.plot([*low, *high], [*rows + 0.28] * 2, "|", color=BLACK, ms=5)
    ax.plot(total, rows + 0.28, "D", color=BLACK, mfc="w", ms=4.5, label="total, with interval")
    for row, width in enumerate(sums):
        lines = [_percent(total[row], low[row], high[row])]
        unknown = ", ".join(
            part for part, is_known in zip(parts, known[row], strict=True) if not is_known
        )
        if unknown:
            lines.append(f"not known: {unknown}" if known[row].any() else "no part is known")
        if width > limit:
            lines.append(f"cut: the parts add up to {_number(width)} %")
        elif extent[row] > limit:
            lines.append("cut: the total lies to the right")
        at, side = (1, row + 0.08), ax.get_yaxis_transform()
        ax.annotate(
            "\n".join(lines), at, (6, 0), side, "offset points", va="center", fontsize="small"
        )
    ax.annotate("total", (1, 1), (6, 4), "axes fraction", "offset points", fontsize="small")
    ax.set_yticks(rows, [str(name) for name in chosen["basis"].values])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(-0.012 * limit, 1.05 * limit)  # room for a marker at 0
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel(f"relative L2 error over layers (%), order {order}, {_words(layers)}")
    handles, texts = ax.get_legend_handles_labels()
    ax.legend(
        handles[1:] + handles[:1],  # matplotlib puts the total, a line, before the bars
        texts[1:] + texts[:1],
        frameon=False,
        fontsize="small",
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
    )


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
    table = _held(table, "step_error", "step_limit").sortby("step")
    steps = table["step"].values
    if not (steps > 0).all():
        raise ValueError(
            f"`step` must be positive; got {steps.min():.3g}. Its axis is logarithmic."
        )
    estimate, low, high = _bounds(100 * table["step_error"], "layers", "step")
    check_dims(table["step_limit"], "step_limit", ("layers",), finite=False)
    tiny = 100 * _TINY
    bottom, top = log_range(estimate, low, high, np.array([5.0]), tiny=tiny)
    ax.axhline(5, color=GREY, lw=1, label="5 %")
    at = _dodged(steps, table.sizes["layers"], 0.15 * _least_gap(steps, log=True), log=True)
    for row, name in enumerate(table["layers"].values):
        style = STYLES[row % len(STYLES)]
        zero = estimate[row] <= tiny
        limit = float(table["step_limit"][row])
        _intervals(ax, at[row], low[row], high[row], bottom, style["color"])
        label = f"{_said(_words(name), estimate[row])}: {_limit_in_words(limit, estimate[row])}"
        ax.plot(at[row], np.where(zero, np.nan, estimate[row]), label=label, **style)
        if zero.any():
            zero_markers(ax, at[row][zero], row, table.sizes["layers"], style)
        if np.isfinite(limit):
            ax.vlines(limit, bottom / 1e3, 5, color=style["color"], ls=":", lw=1)
            ax.plot(limit, 5, marker=style["marker"], ms=11, mfc="none", mec=style["color"])
    _log_x(ax, steps[0] / 1.5, steps[-1] * 1.5)
    log_axis_with_zeros(ax, bottom, top, zeros=bool((estimate <= tiny).any()))
    ax.set_xlabel(r"injection $\epsilon$ (unit of the state)")
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
        ``prompt_relative_l2`` (basis_each, order, prompt), a fraction.
    order
        Which of those of the table.

    Raises
    ------
    TypeError
        If ``table`` is not a Dataset.
    ValueError
        If the variable or the order is missing, or there are batch dims.
    """
    chosen = _chosen(_held(table, "prompt_relative_l2"), order=order)["prompt_relative_l2"]
    dims = check_dims(chosen, "table", ("basis_each", "prompt"), finite=False)
    values = chosen.transpose(*dims).values
    names = [str(name) for name in chosen["basis_each"].values]
    ranks = {
        str(name): rank for rank, name in enumerate(table.get("basis", chosen["basis_each"]).values)
    }
    bottom, top = log_range(values, tiny=_TINY)
    texts = []
    for row, name in enumerate(names):
        style = STYLES[ranks.get(name, row) % len(STYLES)]
        style = {**style, "ms": 3, "ls": "none", "alpha": 0.6}
        known = values[row][np.isfinite(values[row])]
        # multiples of the golden section, modulo 1, spread evenly however many there are
        side = row + 0.5 * ((np.arange(len(known)) * 0.618034) % 1 - 0.5)
        zero = known <= _TINY
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
    log_axis_with_zeros(ax, bottom, top, zeros=bool((values <= _TINY).any()))
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
    ax.set_ylabel(_LABELS["relative_l2"])


def agreement_by_size(axes: Sequence[Axes], rows: xr.Dataset) -> None:
    """Agreement against the size of the model, over many models and tasks, a colour per form.

    A small marker per model and task, with its interval; a line joins the medians per model.

    Parameters
    ----------
    axes
        One Axes per metric, of a figure made by `figure`; the legend is put under all of them.
    rows
        ``value`` (pair, form, metric, bound); on ``pair`` the coordinates ``model`` and
        ``n_parameters``.

    Raises
    ------
    TypeError
        If ``rows`` is not a Dataset.
    ValueError
        If a variable is missing, there are other dims, the number of Axes is not that of metrics,
        or a number of parameters is not positive.
    """
    rows = _held(rows, "value", "model", "n_parameters", name="rows", cure="See its docstring.")
    metrics = [str(metric) for metric in rows["metric"].values]
    if len(axes) != len(metrics):
        raise ValueError(
            f"`axes` must be one per metric, {len(metrics)}; got {len(axes)}. Select metrics, or "
            f"make a figure with {len(metrics)} Axes."
        )
    sizes, models = rows["n_parameters"].values.astype(float), rows["model"].values
    if not len(sizes) or not (sizes > 0).all():
        got = f"{sizes.min():.3g}" if len(sizes) else "no pair"
        raise ValueError(f"`n_parameters` must be positive; got {got}. Its axis is logarithmic.")
    forms = [str(form) for form in rows["form"].values]
    decades = max(1.0, float(np.log10(sizes.max() / sizes.min())))
    room = 0.4 * _least_gap(np.unique(sizes), log=True)
    at = _dodged(sizes, len(forms), min(max(room, 0.06 * decades), 0.3), log=True)
    for ax, metric in zip(axes, metrics, strict=True):
        values = _bounds(rows["value"].sel(metric=metric), "form", "pair", name="rows")
        _by_size(ax, metric, at, models, *values)
    # a pair counts as missing where any metric is
    estimates = rows["value"].sel(bound="estimate").transpose("form", "pair", "metric").values
    known = np.where(np.isfinite(estimates).all(axis=-1), 1.0, np.nan)
    handles = [
        Line2D([], [], label=_said(form, known[i]), **STYLES[i % len(STYLES)])
        for i, form in enumerate(forms)
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


def _by_size(ax: Axes, metric: str, at, models, estimate, low, high) -> None:
    log = metric not in _CORRELATIONS
    bottom, top = log_range(estimate, low, high, tiny=_TINY)
    for row, values in enumerate(estimate):
        style = STYLES[row % len(STYLES)]
        zero = log & (values <= _TINY)
        floor = bottom if log else None
        _intervals(ax, at[row], low[row], high[row], floor, style["color"], cap=0, alpha=0.4)
        shown = np.where(zero, np.nan, values)
        ax.plot(at[row], shown, **{**style, "ls": "none", "ms": 3.5, "alpha": 0.5})
        if zero.any():
            zero_markers(ax, at[row][zero], row, len(estimate), {**style, "ms": 3.5})
        points = []
        for model in np.unique(models):
            own = values[(models == model) & np.isfinite(values)]
            if len(own):
                points.append((at[row][models == model][0], np.median(own)))
        x, y = np.array(sorted(points)).reshape(-1, 2).T
        y = np.where(log & (y <= _TINY), np.nan, y)
        # a model on its own has no line: a bar in its place
        mark = "_" if len(x) == 1 else ""
        ax.plot(x, y, **{**style, "marker": mark, "ms": 9})
    _log_x(ax, at.min() / 1.2, at.max() * 1.2)
    if log:
        log_axis_with_zeros(ax, bottom, top, zeros=bool((estimate <= _TINY).any()))
    else:
        _correlation_axis(ax, estimate, low, high)
    ax.set_xlabel("number of parameters")
    ax.set_ylabel(_LABELS.get(metric, metric))


def _excluded(ax: Axes, names, orders, lower, upper, bottom: float) -> None:
    """Region under the lower bound, and the upper bound of every basis that has one."""
    edge = np.where(lower >= bottom, lower, np.nan)
    # what no model of order r attains, none of a smaller order does: steps up to each order
    x, y = np.array([orders[0] / 2, *orders]), np.array([edge[0], *edge])
    if np.isfinite(edge).any():
        label = "no model can be here"
        ax.fill_between(x, bottom / 1e3, y, step="pre", color=GREY, alpha=0.3, lw=0, label=label)
        ax.plot(x, y, drawstyle="steps-pre", color=GREY, lw=1, label="_lower bound")
    dashes = ["--", (0, (6, 2, 1, 2)), (0, (2, 2))]
    proved = [row for row, values in enumerate(upper) if np.isfinite(values).any()]
    for i, row in enumerate(proved):
        edge = np.where(upper[row] >= bottom, upper[row], np.nan)
        tick = "_" if len(orders) == 1 else ""
        style: dict = {"color": GREY, "ls": dashes[i % len(dashes)], "marker": tick, "ms": 9}
        ax.plot(orders, edge, label=f"upper bound, {names[row]}", **style)


def _noise_floor(ax: Axes, floor: float, bottom: float) -> None:
    if floor > _TINY:
        ax.axhspan(bottom / 1e3, floor, color=GREY, alpha=0.25, lw=0, label="sampling noise alone")
        ax.axhline(floor, color=GREY, lw=1, zorder=0)
    else:
        text = "0 to rounding" if floor <= _TINY else "not known"
        ax.plot([], [], " ", label=f"sampling noise: {text}")


def _intervals(
    ax: Axes, at, low, high, bottom: float | None, color: str, *, cap: float = 4, alpha: float = 1
) -> None:
    """Bars from low to high, wherever the estimate lies, cut at the bottom of a log axis."""
    if bottom is not None:
        high = np.where(high >= bottom, high, np.nan)
        capped = np.where(low >= bottom, low, np.nan)
        low = np.maximum(low, bottom)
    else:
        capped = low
    ax.vlines(at, low, high, color=color, lw=0.8, alpha=alpha)
    if cap:
        ax.plot([*at, *at], [*capped, *high], "_", color=color, ms=cap, mew=0.8)


def _log_x(ax: Axes, low: float, high: float) -> None:
    """Log x axis from low to high, both outside the data, at least a decade wide."""
    wider = max(1, 10 / (high / low)) ** 0.5
    ax.set_xscale("log")
    ax.set_xlim(low / wider, high * wider)
    if high / low < 100:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _correlation_axis(ax: Axes, *values: np.ndarray) -> None:
    flat = np.concatenate([np.ravel(part) for part in values])
    lowest = float(np.nanmin(flat)) if np.isfinite(flat).any() else 0.0
    room = 0.05 * max(1 - lowest, 1e-3)
    ax.set_ylim(lowest - room, 1 + room)
    if lowest < 0:
        ax.axhline(0, color=GREY, lw=0.8, zorder=0)


def _least_gap(positions: np.ndarray, *, log: bool) -> float:
    """Distance of the closest two, in decades on a log axis."""
    gaps = np.diff(np.log10(positions) if log else positions)
    return float(gaps.min()) if len(gaps) else (0.3 if log else 1.0)


def _dodged(positions: np.ndarray, n: int, width: float, *, log: bool) -> np.ndarray:
    """Places (n, position) side by side around each position, over a width in its scale."""
    shift = width * ((np.arange(n)[:, None] + 0.5) / n - 0.5)
    return positions * 10**shift if log else positions + shift


def _said(name: str, values: np.ndarray) -> str:
    """The name, and how many of its values are missing."""
    missing = int((~np.isfinite(values)).sum())
    if missing == len(values):
        return f"{name} (no value)"
    return f"{name} ({missing} of {len(values)} missing)" if missing else name


def _limit_in_words(limit: float, estimate: np.ndarray) -> str:
    if np.isfinite(limit):
        return rf"5 % at $\epsilon$ = {limit:.2g}"
    known = estimate[np.isfinite(estimate)]
    if len(known) and (known < 5).all():
        return "below 5 % throughout"
    return "above 5 % throughout" if len(known) and (known > 5).all() else "limit not known"


def _percent(value: float, low: float, high: float) -> str:
    if not np.isfinite(value):
        return "not known"
    if value <= 100 * _TINY:
        return "0 (to rounding)"
    known = np.isfinite([low, high]).all()
    return f"{_number(value)} %" + (f" ({_number(low)} to {_number(high)})" if known else "")


def _number(value: float) -> str:
    """Two digits, or all before the decimal point."""
    return f"{value:.0f}" if 99.5 <= value < 1e7 else f"{value:.2g}"


def _words(label: str) -> str:
    return "all layers" if label == "all" else str(label).replace("_", " ")


def _held(table: xr.Dataset, *names: str, name: str = "table", cure: str = _MAKE) -> xr.Dataset:
    if not isinstance(table, xr.Dataset):
        raise TypeError(f"`{name}` must be a Dataset; got {type(table).__name__}. {cure}")
    missing = [wanted for wanted in names if wanted not in table.variables]
    if missing:
        raise ValueError(
            f"`{name}` must hold {list(names)}; got {sorted(map(str, table.variables))} without "
            f"{missing}. {cure}"
        )
    return table


def _chosen(table: xr.Dataset, **wanted: object) -> xr.Dataset:
    for dim, label in wanted.items():
        _one_of(dim, label, table[dim].values.tolist() if dim in table.coords else [])
    return table.sel(wanted)


def _one_of(argument: str, value: object, allowed: Iterable) -> None:
    if value not in list(allowed):
        raise ValueError(f"`{argument}` must be one of {list(allowed)}; got {value!r}. Pick one.")


def _bounds(values: xr.DataArray, *dims: str, name: str = "table") -> list[np.ndarray]:
    """Estimate, low and high, each (dims)."""
    check_dims(values, name, (*dims, "bound"), finite=False)
    if not set(_BOUNDS) <= set(values["bound"].values.tolist()):
        raise ValueError(
            f"`bound` must hold {list(_BOUNDS)}; got {values['bound'].values.tolist()}. {_MAKE}"
        )
    return [values.sel(bound=bound).transpose(*dims).values for bound in _BOUNDS]
