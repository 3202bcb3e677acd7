"""Estimates with intervals: side by side, and cut where one of them would squeeze the rest."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.markers import CARETUP

from depthsys.plot.style import GREY, log_range
from depthsys.plot.table import TINY, number

_ARROW = 0.055  # height of an arrow with its text, in heights of the Axes
_TEXT = 0.14  # width of that text, in widths of the Axes


def intervals(
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


def correlation_axis(ax: Axes, *values: np.ndarray) -> None:
    """Linear axis from the lowest value to 1."""
    flat = np.concatenate([np.ravel(part) for part in values])
    lowest = float(np.nanmin(flat)) if np.isfinite(flat).any() else 0.0
    room = 0.05 * max(1 - lowest, 1e-3)
    ax.set_ylim(lowest - room, 1 + room)
    if lowest < 0:
        ax.axhline(0, color=GREY, lw=0.8, zorder=0)


def least_gap(positions: np.ndarray, *, log: bool) -> float:
    """Distance of the closest two, in decades on a log axis."""
    gaps = np.diff(np.log10(positions) if log else positions)
    return float(gaps.min()) if len(gaps) else (0.3 if log else 1.0)


def dodged(positions: np.ndarray, n: int, width: float, *, log: bool) -> np.ndarray:
    """Places (n, position) side by side around each position, over a width in its scale."""
    shift = width * ((np.arange(n)[:, None] + 0.5) / n - 0.5)
    return positions * 10**shift if log else positions + shift


def error_range(estimate, low, high, *others: np.ndarray) -> tuple[float, float]:
    """Ends of a log axis in percent, without what is far above the rest.

    That is what is above ten times the middle estimate, but errors up to 200 % are always shown:
    100 % is the error of predicting 0.
    """
    known = estimate[np.isfinite(estimate)]
    limit = max(200.0, 10 * float(np.median(known))) if len(known) else np.inf
    shown = [np.where(values <= limit, values, np.nan) for values in (estimate, low, high)]
    bottom, top = log_range(*shown, *others, tiny=TINY)
    # room for the arrows of `cut_marks`
    return bottom, top * (top / bottom) ** 0.1 if (known > top).any() else top


def cut_marks(ax: Axes, at, estimate, high, styles: list[dict]) -> None:
    """An arrow and the value for every estimate above the axis, a small arrow for every interval.

    ``at``, ``estimate`` and ``high`` are (row, position), with a style per row. The limits of the
    Axes must be final.
    """
    aside, top = ax.get_xaxis_transform(), ax.get_ylim()[1]
    across = ax.transData + ax.transAxes.inverted()
    taken: list[list[tuple[float, float]]] = []
    for row, style in enumerate(styles):
        beyond = (high[row] > top) & ~(estimate[row] > top)
        if beyond.any():
            tips = np.ones(beyond.sum())
            ax.plot(at[row][beyond], tips, **_arrow(style, CARETUP, 4), transform=aside)
        for column in np.flatnonzero(estimate[row] > top):
            x = at[row, column]
            share = across.transform((x, top))[0]
            left = share > 1 - _TEXT
            ends = (share - _TEXT, share + 0.02) if left else (share - 0.02, share + _TEXT)
            y = 1 - _ARROW * (_level(taken, ends) + 0.6)
            ax.plot(x, y, **_arrow(style, r"$\uparrow$", 8), transform=aside)
            ax.annotate(
                f"{number(estimate[row, column])} %",
                (x, y),
                (-5 if left else 5, 0),
                aside,
                "offset points",
                va="center",
                ha="right" if left else "left",
                fontsize="small",
                color=style["color"],
                bbox={"fc": "w", "ec": "none", "alpha": 0.8, "pad": 0.5},
            )


def _level(taken: list[list[tuple[float, float]]], ends: tuple[float, float]) -> int:
    """The first level with room between those ends, which are then taken."""
    for level, others in enumerate(taken):
        if all(ends[1] <= low or high <= ends[0] for low, high in others):
            others.append(ends)
            return level
    taken.append([ends])
    return len(taken) - 1


def _arrow(style: dict, marker: object, size: float) -> dict:
    return {"color": style["color"], "marker": marker, "ms": size, "ls": "none", "clip_on": False}
