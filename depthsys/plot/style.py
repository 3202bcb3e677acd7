"""What all figures share: size, saving, colours, axes, and reading Datasets by dim name."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator

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
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def mark_undefined(ax: Axes, known: xr.DataArray) -> None:
    """Hatch the layers at which there is no direction; ``known`` (layer)."""
    for layer in known["layer"].values[~known.values]:
        ax.axvspan(layer - 0.4, layer + 0.4, facecolor="none", edgecolor=GREY, hatch="//", lw=0)
        ax.text(
            layer,
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


def log_axis(ax: Axes) -> None:
    """Log y axis with labels even within two decades."""
    ax.set_yscale("log")
    # less than two decades hold one power of ten or none: label steps between them too
    ax.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(2, 0.5)))


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
    close = high / low < 100
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter(
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


def log_axis_with_zeros(ax: Axes, bottom: float, top: float, *, zeros: bool) -> None:
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
        "0 to rounding",
        (1, STRIP / 2),
        (6, 0),
        xycoords="axes fraction",
        textcoords="offset points",
        va="center",
        fontsize="small",
    )


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
