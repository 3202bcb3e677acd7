"""Figure of where the errors of many methods come from."""

from collections.abc import Iterable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from depthsys.plot.style import BLACK, BLUE, ORANGE, SKY
from depthsys.plot.table import MAKE, TINY, bounds, chosen, held, number, one_of, percent, words

_PARTS: dict[str, dict] = {
    "nonlinearity": {"facecolor": BLUE},
    "averaging": {"facecolor": ORANGE, "hatch": "///"},
    "sampling": {"facecolor": "w", "hatch": "..."},
    "truncation": {"facecolor": SKY, "hatch": "xx"},
}


def budget_bars(
    ax: Axes,
    table: xr.Dataset,
    order: int,
    layers: str = "all",
    *,
    limit: float | None = None,
    legend: bool = True,
) -> None:
    """Parts of the error of every basis, stacked, and under them the total with its interval.

    The total is no sum: parts may cancel. A row that is longer than the limit is cut, and says so.

    Parameters
    ----------
    ax
        Axes; the legend is put above it, the totals to its right.
    table
        ``error_budget`` (basis, order, part, layers, bound), a fraction; drawn in percent.
    order, layers
        Which of those of the table.
    limit
        End of the axis, in percent. The default is `budget_limit` of that order; figures of
        several orders compare with one limit for all of them.
    legend
        Whether there is one.

    Raises
    ------
    TypeError
        If ``table`` is not a Dataset.
    ValueError
        If the variable or a label is missing, there are batch dims, or the limit is not positive.
    """
    if limit is None:
        limit = budget_limit(table, [order], layers)
    elif not 0 < limit < np.inf:
        raise ValueError(f"`limit` must be positive; got {limit}. Use `plot.budget_limit`.")
    budget = _percentages(table, [order], layers).isel(order=0)
    names = [str(name) for name in budget["basis"].values]
    values = bounds(budget.sel(part=list(_PARTS)), "basis", "part")[0]
    total, low, high = bounds(budget.sel(part="total"), "basis")
    known = np.isfinite(values)
    values = np.where(known, values, 0)  # the text beside the row says which are not known
    rows, sums = np.arange(len(values)), values.sum(axis=1)
    left = np.zeros(len(rows))
    for column, part in enumerate(_PARTS):
        width = values[:, column]
        ax.barh(rows - 0.12, width, 0.46, left, label=part, edgecolor=BLACK, lw=0.6, **_PARTS[part])
        left = left + width
    ax.hlines(rows + 0.28, low, high, color=BLACK, lw=1)
    ax.plot([*low, *high], [*rows + 0.28] * 2, "|", color=BLACK, ms=5)
    ax.plot(total, rows + 0.28, "D", color=BLACK, mfc="w", ms=4.5, label="total, with interval")
    for row, width in enumerate(sums):
        lines = [percent(total[row], low[row], high[row])]
        unknown = ", ".join(
            part for part, is_known in zip(_PARTS, known[row], strict=True) if not is_known
        )
        if unknown:
            lines.append(f"not known: {unknown}" if known[row].any() else "no part is known")
        if width > limit:
            lines.append(f"cut: the parts add up to {number(width)} %")
        elif np.fmax(total[row], high[row]) > limit:
            lines.append("cut: the total lies to the right")
        at, side = (1, row + 0.08), ax.get_yaxis_transform()
        ax.annotate(
            "\n".join(lines), at, (6, 0), side, "offset points", va="center", fontsize="small"
        )
    ax.annotate("total", (1, 1), (6, 4), "axes fraction", "offset points", fontsize="small")
    ax.set_yticks(rows, names)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(-0.012 * limit, 1.05 * limit)  # room for a marker at 0
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel(f"relative L2 error of the gains (%) at order {order}, {words(layers)}")
    if not legend:
        return
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


def budget_limit(table: xr.Dataset, orders: Iterable[int], layers: str = "all") -> float:
    """Length in percent that holds every row of `budget_bars` at those orders.

    Rows more than five times as long as the middle one are left out.

    Parameters
    ----------
    table, layers
        See `budget_bars`.
    orders
        Orders of the table.

    Raises
    ------
    TypeError, ValueError
        See `budget_bars`.
    """
    budget = _percentages(table, orders, layers)
    sums = np.nansum(bounds(budget.sel(part=list(_PARTS)), "basis", "order", "part")[0], axis=-1)
    total, _, high = bounds(budget.sel(part="total"), "basis", "order")
    extent = np.fmax.reduce([sums, np.where(np.isfinite(total), np.fmax(total, high), 0)])
    limit = float(extent[extent <= 5 * np.median(extent)].max(initial=0))
    return limit if limit > TINY else 1.0


def _percentages(table: xr.Dataset, orders: Iterable[int], layers: str) -> xr.DataArray:
    part = chosen(held(table, "error_budget"), layers=layers)
    if not {*_PARTS, "total"} <= set(part["part"].values):
        raise ValueError(
            f"`part` must hold {[*_PARTS, 'total']}; got {part['part'].values.tolist()}. {MAKE}"
        )
    orders = list(orders)
    for order in orders:
        one_of("order", order, part["order"].values.tolist())
    return 100 * part["error_budget"].sel(order=orders)
