"""Datasets -> matplotlib Axes, for every wing. Imports none of them.

Each function draws into given Axes and returns nothing; `save` writes a figure as PNG and SVG.
Curves differ in marker and line style as well as in colour, so that they survive greyscale.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette: distinct for colour-blind readers, and in lightness.
BLACK, BLUE, ORANGE, GREY, SKY = "#000000", "#0072B2", "#E69F00", "#8C8C8C", "#56B4E9"


def gain_curves(axes: tuple[Axes, Axes], gains: xr.Dataset) -> None:
    """Measured, exact linear and surrogate gain per layer: all layers, and without layer 0.

    Parameters
    ----------
    axes
        Two Axes. The second leaves out layer 0, whose gain often dwarfs the others (the
        embedding is short, so a unit injection is a large change).
    gains
        ``measured_gain`` and ``linear_gain`` (prompt, layer), ``surrogate_gain`` (layer). The band
        holds the middle 80 % of prompts.
    """
    for skip, ax in enumerate(axes):
        part = gains.isel(layer=slice(skip, None))
        layers = part["layer"].values
        measured = part["measured_gain"]
        low, high = measured.quantile([0.1, 0.9], dim="prompt").values
        ax.fill_between(layers, low, high, color=GREY, alpha=0.3, lw=0, label="80 % of prompts")
        mean = measured.mean("prompt")
        ax.plot(layers, mean, "o-", color=BLACK, ms=7, label="measured, mean")
        linear = part["linear_gain"].mean("prompt")
        ax.plot(layers, linear, "x--", color=ORANGE, ms=7, mew=2, label="exact linear, mean")
        ax.plot(layers, part["surrogate_gain"], "s:", color=BLUE, ms=5, mfc="w", label="surrogate")
        ax.axhline(0, color=GREY, lw=0.8)
        _layer_axis(ax)
        ax.set_ylabel("gain: readout per unit injection")
        ax.set_title("all layers" if skip == 0 else "without layer 0")
    axes[0].legend(frameon=False, fontsize="small")


def error_budget(ax: Axes, gains: xr.Dataset) -> None:
    """Where the error of the surrogate comes from: ``error_budget`` (part, layers, bound)."""
    budget = 100 * gains["error_budget"]
    parts = list(budget["part"].values)
    offset = {"all": -0.2, "without_layer_0": 0.2}
    styles: dict[str, dict] = {
        "all": {"color": BLUE},
        "without_layer_0": {"facecolor": "w", "edgecolor": BLUE, "hatch": "///"},
    }
    rows = np.arange(len(parts))
    top = float(budget.max())
    for layers, shift in offset.items():
        table = budget.sel(layers=layers)
        value = table.sel(bound="estimate").values
        low, high = (table.sel(bound=b).values for b in ("low", "high"))
        ax.barh(rows + shift, value, height=0.38, label=layers.replace("_", " "), **styles[layers])
        known = np.isfinite(low)
        error = np.clip([value - low, high - value], 0, None)[:, known]
        ax.errorbar(
            value[known], rows[known] + shift, xerr=error, fmt="none", ecolor="k", capsize=2
        )
        for row, number, end in zip(rows, value, np.where(known, high, value), strict=True):
            text = "0 (to rounding)" if number < 1e-8 else f"{number:.2g} %"
            at = (max(number, end), row + shift)
            ax.annotate(text, at, (4, 0), textcoords="offset points", va="center", fontsize="small")
    ax.set_yticks(rows, parts)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.2 * max(top, 1e-3))
    ax.set_xlabel("relative L2 error over layers (%)")
    # above the bars: inside, it would cover one of them for some data
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def schedule(ax: Axes, energies: xr.Dataset) -> None:
    """The minimum-energy injection per layer: ``u`` (layer)."""
    u = energies["u"]
    ax.bar(u["layer"], u, color=BLUE, width=0.7)
    ax.axhline(0, color=BLACK, lw=0.8)
    _layer_axis(ax)
    ax.set_ylabel("injection $u_l$ (unit of the state)")
    ax.set_title(f"minimum-energy schedule for a shift of {float(energies.attrs['target']):.3g}")


def energies(ax: Axes, energies: xr.Dataset) -> None:
    """Energy of every schedule as a multiple of the minimum-energy schedule's, log scale.

    Uses ``multiple``, ``monotone``, ``layer_pushed`` (schedule) and attrs ``target``, ``energy``.
    """
    multiple = energies["multiple"].values
    names = [
        str(name).replace("_", " ") + (f" ({layer})" if layer >= 0 else "")
        for name, layer in zip(
            energies["schedule"].values, energies["layer_pushed"].values, strict=True
        )
    ]
    rows = np.arange(len(names))
    finite = np.isfinite(multiple)
    # bars on a log axis start at 1: shorter than the reference points left, longer points right
    known = multiple[finite]
    ax.barh(rows[finite], known - 1, left=1, color=BLUE, height=0.6)
    ax.plot(known, rows[finite], "o", color=BLACK, ms=5)
    ax.set_xscale("log")
    low, high = (known.min(), known.max()) if len(known) else (1.0, 1.0)
    ax.set_xlim(min(0.5, low / 3), max(10.0, high * 30))
    for row, value, smooth in zip(rows, multiple, energies["monotone"].values, strict=True):
        text = f"{value:.3g} x" if np.isfinite(value) else "not reached"
        text += "" if smooth else " (not monotone)"
        at = max(value, 1.0) if np.isfinite(value) else 1.0
        ax.annotate(text, (at, row), (6, 0), textcoords="offset points", va="center", fontsize=9)
    ax.axvline(1, color=BLACK, lw=1)
    ax.set_yticks(rows, names)
    ax.invert_yaxis()
    ax.set_xlabel("energy on the full model / that of the minimum-energy schedule")
    ax.set_title(f"shift of {energies.attrs['target']:.3g}, {energies.attrs['energy']} energy")


def _layer_axis(ax: Axes) -> None:
    ax.set_xlabel("layer of the injection")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def figure(width: float = 6.4, height: float = 3.8, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with ``columns`` Axes side by side, outside pyplot's global state."""
    fig = Figure(figsize=(width, height), layout="constrained")
    axes = list(np.atleast_1d(np.asarray(fig.subplots(1, columns))))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes


def save(fig: Figure, path: Path, kind: str) -> None:
    """Write a figure; ``kind`` is "png" or "svg" (text stays text, and runs are reproducible)."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "depthsys"}):
        metadata = {"Date": None} if kind == "svg" else None
        fig.savefig(path, format=kind, dpi=150, metadata=metadata)
