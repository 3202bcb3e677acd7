"""What all figures share: size, saving, colours, axes, and reading Datasets by dim name."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator
from matplotlib.transforms import Bbox

# Okabe and Ito's palette: distinct for colour-blind readers, and in lightness.
BLACK, BLUE, ORANGE, GREY, SKY = "#000000", "#0072B2", "#E69F00", "#8C8C8C", "#56B4E9"
GREEN, RED, PURPLE, DARK = "#009E73", "#D55E00", "#CC79A7", "#555555"
# All markers have an inside, as an open one means 0 to rounding.
STYLES: list[dict] = [
    # those with arms look smaller than they are
    {"color": color, "marker": marker, "ls": line, "ms": 6.5 if marker in "PX*" else 5, "lw": 1.3}
    for color, marker, line in (
        (BLACK, "o", "-"),
        (BLUE, "s", "--"),
        (ORANGE, "^", "-."),
        (RED, "v", "-"),
        (SKY, "D", ":"),
        (GREEN, "P", (0, (4, 1.5))),
        (PURPLE, "X", (0, (5, 1, 1, 1, 1, 1))),
        (DARK, "*", ":"),
    )
]
# The two balanced bases are what the others are compared with, and chance is the least of them.
_BASES: dict[str, dict] = {
    "ensemble": STYLES[0] | {"ms": 6.5, "lw": 2.2},
    "balanced": STYLES[1] | {"ms": 5.5, "lw": 1.9},
    "two_sided": STYLES[2],
    "krylov": STYLES[3],
    "arnoldi": STYLES[4],
    "pod": STYLES[5],
    "adjoint": STYLES[6],
    "random": STYLES[7] | {"color": GREY, "lw": 0.9},
}
STRIP = 0.15  # height of the strip for errors of 0, in heights of the Axes
MARKS = 16  # of a line: more of them would hide each other and the other lines
DWARFS = 4.0  # one layer this many times larger than all others would take the whole scale


def figure(
    width: float = 6.4, height: float = 3.8, columns: int = 1, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of Axes, row by row, outside pyplot's global state."""
    fig = Figure(figsize=(width, height), layout="constrained")
    axes = list(np.asarray(fig.subplots(rows, columns, squeeze=False)).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes


def save(fig: Figure, path: str | os.PathLike, kind: str) -> Path:
    """Write a figure, and say where.

    Parameters
    ----------
    fig
        The figure.
    path
        The file; ``.png`` or ``.svg`` is added where the name does not end so.
    kind
        "png" or "svg" (text stays text, and runs are reproducible).

    Returns
    -------
    Path
        What was written.
    """
    place = Path(path)
    if place.suffix.lower() != f".{kind}":
        place = place.with_name(f"{place.name}.{kind}")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "depthsys"}):
        metadata = {"Date": None} if kind == "svg" else None
        fig.savefig(place, format=kind, dpi=150, metadata=metadata)
    return place


def basis_styles(names: Sequence[str]) -> list[dict]:
    """A style per name: that of the basis it names, or else the first one still free."""
    styles: dict[int, dict] = {}
    free = dict(enumerate(_BASES))
    for row in sorted(range(len(names)), key=lambda row: names[row] not in _BASES):
        known = set(re.findall(r"\w+", names[row])) & set(_BASES)
        place = list(_BASES).index(known.pop()) if len(known) == 1 else None
        if place in free:
            styles[row] = _BASES[free.pop(place)]
    for row in range(len(names)):
        if row not in styles:
            place = next(iter(free), row % len(STYLES))
            free.pop(place, None)
            styles[row] = STYLES[place]
    return [styles[row] for row in range(len(names))]


def layer_axis(ax: Axes) -> None:
    """Layers along x, as whole numbers."""
    ax.set_xlabel("layer of the injection")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def mark_undefined(ax: Axes, known: xr.DataArray) -> None:
    """Hatch the layers at which there is no direction, neighbours as one; ``known`` (layer)."""
    layers = known["layer"].values[~known.values]
    for run in np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1) if len(layers) else ():
        first, last = run[0] - 0.4, run[-1] + 0.4
        ax.axvspan(first, last, facecolor="none", edgecolor=GREY, hatch="//", lw=0)
        ax.text(
            (first + last) / 2,
            0.5,
            "no direction",
            transform=ax.get_xaxis_transform(),
            rotation=90,
            ha="center",
            va="center",
            fontsize="small",
            bbox={"facecolor": "w", "edgecolor": "none", "pad": 2},
        )


def depth_axis(ax: Axes, depths: np.ndarray) -> None:
    """Depths along x, as whole numbers."""
    ax.set_xlabel("depth $k$ (layers passed)")
    count_axis(ax, depths)


def count_axis(ax: Axes, counts: np.ndarray) -> None:
    """Whole numbers along x, from the first to the last."""
    ax.set_xlim(counts[0] - 0.5, counts[-1] + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


class _TwoAndFive(LogFormatterSciNotation):
    """Labels at 2 and 5 alone, as others would write over each other; all within half a decade."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        low, high = self.axis.get_view_interval() if self.axis else (x, x)
        if high > 10**0.5 * low and f"{x:e}"[0] not in "25":
            return ""
        return super().__call__(x, pos)


def log_axis(ax: Axes) -> None:
    """Log y axis with labels even within two decades."""
    ax.set_yscale("log")
    # less than two decades hold one power of ten or none: label steps between them too
    ax.yaxis.set_minor_formatter(_TwoAndFive(minor_thresholds=(2, 2)))


def order_axis(ax: Axes, orders: np.ndarray) -> None:
    """Numbers of states along x, rising; in powers of 2 where they span a factor of 16."""
    ax.set_xlabel("order (number of states)")
    at = np.asarray(orders, float)
    if by_powers(orders):
        ax.set_xscale("log", base=2)
        ax.set_xlim(orders[0] / 2**0.5, orders[-1] * 2**0.5)
        at = np.log(at)
    else:
        ax.set_xlim(orders[0] - 0.5, orders[-1] + 0.5)
    shown = [len(at) - 1]
    for row in range(len(at) - 2, -1, -1):
        # closer ones would write over each other
        if at[shown[-1]] - at[row] >= (at[-1] - at[0]) / 20:
            shown.append(row)
    ax.set_xticks([orders[i] for i in shown[::-1]], [str(orders[i]) for i in shown[::-1]])
    ax.set_xticks([], minor=True)


def by_powers(orders: np.ndarray) -> bool:
    """Whether `order_axis` is logarithmic."""
    return bool(0 < 16 * orders[0] <= orders[-1])


def percent_axis(ax: Axes) -> None:
    """Plain numbers along a log y axis, once its limits are set."""
    low, high = ax.get_ylim()
    if low < 1e-4:
        return
    plain_log(ax.yaxis, low, high)


def plain_log(axis: Axis, low: float, high: float) -> None:
    """Plain numbers along a log axis from low to high: at 2 and 5 too, within two decades."""
    close = high / low < 100
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(
        lambda value, _: f"{value:g}" if close and f"{value:e}"[0] in "25" else ""
    )


def log_range(*values: np.ndarray, tiny: float) -> tuple[float, float]:
    """Ends of a log axis that holds every finite value above ``tiny``."""
    flat = np.concatenate([np.ravel(part) for part in values])
    drawn = flat[np.isfinite(flat) & (flat > tiny)]
    drawn = drawn if len(drawn) else np.ones(1)
    return drawn.min() / 2, drawn.max() * 2


def zero_markers(ax: Axes, at: np.ndarray, row: int, n_rows: int, style: dict) -> None:
    """Open markers in the strip of zeros; each row has its height, so that none hides another."""
    height = np.full(len(at), STRIP * (row + 1) / (n_rows + 1))
    style = {**style, "ls": "none", "mfc": "w"}
    ax.plot(at, height, transform=ax.get_xaxis_transform(), **style)


def log_axis_with_zeros(
    ax: Axes, bottom: float, top: float, *, zeros: bool, note: str = "0 to rounding"
) -> None:
    """Log y axis from bottom to top and, where there are zeros, their strip under it."""
    log_axis(ax)
    ax.set_ylim(bottom, top)
    if not zeros:
        return
    shift = (bottom / top) ** (STRIP / (1 - STRIP))
    for minor in (False, True):
        ticks = [tick for tick in ax.get_yticks(minor=minor) if bottom <= tick <= top]
        ax.set_yticks(ticks, minor=minor)
    ax.set_ylim(bottom * shift, top)
    ax.plot([0, 1], [STRIP, STRIP], color=GREY, lw=0.8, transform=ax.transAxes)
    ax.annotate(
        note,
        (1, STRIP / 2),
        (6, 0),
        xycoords="axes fraction",
        textcoords="offset points",
        va="center",
        fontsize="small",
    )


def thinned(values: np.ndarray, row: int = 0, n_rows: int = 1, most: int = MARKS) -> list[int]:
    """Which points of a line get a marker: all where they are few, else every n-th.

    Rows start at different points, so that the markers of lines that coincide can all be seen. A
    point without neighbours always has its marker: no line leads to it.
    """
    known = np.isfinite(np.asarray(values, dtype=float))
    at = np.flatnonzero(known)
    step = -(-len(at) // most) or 1
    beside = np.pad(known, 1)
    alone = np.flatnonzero(known & ~beside[:-2] & ~beside[2:])
    return sorted({*at[row * step // n_rows :: step].tolist(), *alone.tolist()})


def dwarfing(values: np.ndarray) -> tuple[int, float] | None:
    """The one place whose size is `DWARFS` times that of all others, and the size of these.

    ``values`` (place, ...); NaN counts as nothing. None where there is no such place.
    """
    sizes = np.nan_to_num(abs(np.asarray(values, dtype=float))).reshape(len(values), -1)
    sizes = sizes.max(axis=1, initial=0.0)
    if len(sizes) < 2:
        return None
    place = int(sizes.argmax())
    rest = float(np.delete(sizes, place).max())
    return (place, rest) if rest > 0 and sizes[place] > DWARFS * rest else None


def symlog_axis(ax: Axes, linear: float) -> float:
    """Y axis that is linear up to a round number above ``linear``, and logarithmic beyond it.

    The data must be drawn. Dotted lines stand where the scale changes; returns that number.
    """
    power = 10 ** np.floor(np.log10(linear))
    edge = float(power * next(step for step in (1, 2, 5, 10) if linear <= step * power * 1.0001))
    ax.set_yscale("symlog", linthresh=edge, linscale=1.5)
    bottom, top = ax.get_ylim()
    largest = max(top, -bottom)
    decades = [edge * 10.0**k for k in range(1, 16) if edge * 10.0**k <= largest]
    sizes = [edge / 2, edge, *(decades or [edge * k for k in (2, 5) if edge * k <= largest][-1:])]
    ticks = sorted([0.0, *sizes, *(-size for size in sizes)])
    ax.set_yticks([tick for tick in ticks if bottom <= tick <= top])
    ax.set_yticks([], minor=True)
    ax.yaxis.set_major_formatter("{x:g}")
    for border in (-edge, edge):
        if bottom < border < top:
            ax.axhline(border, color=GREY, lw=0.8, ls=":", zorder=0)
    ax.set_ylim(bottom, top)
    return edge


def colour_bar(ax: Axes, drawn: ScalarMappable, label: str, extend: str = "neither") -> None:
    """A colour bar that stays at the map, whatever else stands beside it in the figure."""
    beside = ax.inset_axes((1.03, 0, 0.045, 1))
    ax.figure.colorbar(drawn, cax=beside, label=label, extend=extend)


def key_above(ax: Axes, ncols: int = 2, **options: object) -> Legend:
    """A legend above the Axes, of as many columns up to ``ncols`` as there is room for.

    A title that is set later stands above the legend.
    """
    given: Any = options.get("handles")
    texts = [h.get_label() for h in given] if given else ax.get_legend_handles_labels()[1]
    # some 14 small letters an inch; labels beside the Axes take a quarter of their place
    cell = ax.get_subplotspec()
    share = 0.75 if cell is None else 0.75 / cell.get_gridspec().ncols
    letters = 14 * share * ax.figure.get_figure(root=True).get_figwidth()
    fitting = int(letters / (8 + max(map(len, texts), default=1)))
    settings: dict = {"frameon": False, "fontsize": "small", **options}
    settings["ncols"] = max(1, min(ncols, fitting))
    legend = ax.legend(
        loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3, borderpad=0, **settings
    )
    # titles know the children of their Axes, but not its legend: an empty child takes its place
    place = ax.inset_axes((0, 1, 1, 0.1))
    place.set_axis_off()

    def room(_: object, renderer: object) -> Bbox:
        box, fig = ax.get_position(), ax.get_figure()
        taken = legend.get_window_extent(renderer)  # type: ignore[arg-type]
        high = taken.transformed(fig.transSubfigure.inverted()).y1  # type: ignore[union-attr]
        return Bbox([[box.x0, box.y1], [box.x1, max(high, box.y1)]])

    place.set_axes_locator(room)  # type: ignore[arg-type]
    return legend


def legend_beside(ax: Axes, title: str | None = None) -> None:
    """A legend that hides no data: to the right of the Axes."""
    ax.legend(frameon=False, fontsize="small", title=title, loc="upper left", bbox_to_anchor=(1, 1))


def shared_legend(axes: Sequence[Axes]) -> None:
    """One legend for several Axes of a figure, drawn with ``legend=False``: to their right."""
    entries: dict = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    axes[0].figure.legend(
        list(entries.values()),
        list(entries),
        frameon=False,
        fontsize="small",
        loc="outside right upper",
    )


def check_dims(
    values: xr.DataArray, name: str, *allowed: tuple[str, ...], finite: bool = True
) -> tuple[str, ...]:
    """The one of the allowed dims that the array has, in that order."""
    if not isinstance(values, xr.DataArray):
        raise TypeError(
            f"`{name}` must be a DataArray with dims {' or '.join(map(str, allowed))}; got "
            f"{type(values).__name__}. Plots read dims by name."
        )
    for dims in allowed:
        if set(dims) == set(values.dims):
            if finite and not np.isfinite(values.values).all():
                raise ValueError(
                    f"`{name}` must be finite; got nan or inf. Look at where it comes from."
                )
            return dims
    extra = [d for d in values.dims if not any(d in dims for dims in allowed)]
    cure = f"Select one, as in `.isel({extra[0]}=0)`." if extra else "Rename or select dims."
    raise ValueError(
        f"`{name}` must have dims {' or '.join(map(str, allowed))}; got {values.dims}. {cure}"
    )


def coordinate(values: xr.DataArray | xr.Dataset, dim: str, first: int = 0) -> np.ndarray:
    """Labels of a dim, or positions where it has none."""
    known = dim in values.coords
    return values[dim].values if known else np.arange(first, first + values.sizes[dim])
