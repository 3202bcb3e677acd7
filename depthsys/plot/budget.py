"""Figure of where the errors of many methods come from."""

from collections.abc import Iterable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from depthsys.plot.style import BLACK, BLUE, GREY, ORANGE, SKY, key_above
from depthsys.plot.table import MAKE, TINY, bounds, chosen, held, number, one_of, percent, words

_PARTS: dict[str, dict] = {
    "nonlinearity": {"facecolor": BLUE},
    "averaging": {"facecolor": ORANGE, "hatch": "/////"},
    "sampling": {"facecolor": "w", "hatch": "....."},
    "truncation": {"facecolor": SKY, "hatch": "xxx"},
}
_TOTAL: dict = {"facecolor": "#D9D9D9"}


def budget_bars(
    ax: Axes,
    table: xr.Dataset,
    order: int,
    layers: str = "all",
    *,
    limit: float | None = None,
    legend: bool = True,
) -> None:
    """Total error of every basis with its interval, and under it its parts, a bar each.

    The total is no sum: parts may cancel. A bar that is longer than the limit is cut, and the text
    beside its row says how long it is.

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
    parts = bounds(budget.sel(part=list(_PARTS)), "basis", "part")[0]
    total, low, high = bounds(budget.sel(part="total"), "basis")
    rows, thick = np.arange(len(names)), 0.8 / (len(_PARTS) + 1)
    bars = {"total, with interval": (total, _TOTAL)}
    bars |= {name: (parts[:, i], style) for i, (name, style) in enumerate(_PARTS.items())}
    for place, (label, (values, style)) in enumerate(bars.items()):
        at = rows + thick * (place - len(_PARTS) / 2)
        shown = np.where(np.isfinite(values), values, 0)  # the text says which are not known
        ax.barh(at, shown, 0.9 * thick, label=label, edgecolor=BLACK, lw=0.6, **style)
    above = rows - thick * len(_PARTS) / 2
    ax.hlines(above, low, high, color=BLACK, lw=1)
    ax.plot([*low, *high], [*above] * 2, "|", color=BLACK, ms=5)
    for row, values in enumerate(parts):
        text = percent(total[row], low[row], high[row])
        notes = [text, *_notes(values, np.fmax(total[row], high[row]), limit)]
        at, side = (1, row - 0.46), ax.get_yaxis_transform()
        ax.annotate("\n".join(notes), at, (6, 0), side, "offset points", va="top", fontsize="small")
    for border in rows[1:] - 0.5:
        ax.axhline(border, color=GREY, lw=0.5, alpha=0.5, zorder=0)
    ax.annotate("total", (1, 1), (6, 4), "axes fraction", "offset points", fontsize="small")
    ax.set_yticks(rows, names)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(-0.012 * limit, 1.05 * limit)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel(f"relative L2 error of the gains (%) at order {order}, {words(layers)}")
    if legend:
        title = "parts may cancel: they do not add up to the total"
        key_above(ax, ncols=3, title=title, title_fontsize="small", alignment="left")


def budget_limit(table: xr.Dataset, orders: Iterable[int], layers: str = "all") -> float:
    """Length in percent that holds every bar of `budget_bars` at those orders.

    A row that is more than five times as long as the middle one, and twice as long as the next
    shorter one, is left out, as are those that are longer.

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
    parts = bounds(budget.sel(part=list(_PARTS)), "basis", "order", "part")[0]
    total, _, high = bounds(budget.sel(part="total"), "basis", "order")
    every = np.concatenate([parts, total[..., None], high[..., None]], axis=-1)
    extent = np.sort(np.where(np.isfinite(every), every, 0.0).max(axis=-1).ravel())
    far = (extent[1:] > 5 * np.median(extent)) & (extent[1:] > 2 * extent[:-1])
    kept = extent[: 1 + int(far.argmax())] if far.any() else extent
    limit = float(kept.max(initial=0))
    return limit if limit > TINY else 1.0


def _notes(parts: np.ndarray, total: float, limit: float) -> list[str]:
    """Lines of text on what is not known of a row, and on what is cut."""
    known = dict(zip(_PARTS, np.isfinite(parts).tolist(), strict=True))
    unknown = [part for part, is_known in known.items() if not is_known]
    notes = []
    if unknown:
        some = f"not known: {', '.join(unknown)}"
        notes.append(some if any(known.values()) else "no part is known")
    cut = {part: value for part, value in zip(_PARTS, parts, strict=True) if value > limit}
    if cut:
        which = next(iter(cut)) if len(cut) == 1 else f"{len(cut)} parts, up to"
        notes.append(f"cut: {which} {number(max(cut.values()))} %")
    if total > limit:
        notes.append("cut: the total")
    return notes


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
