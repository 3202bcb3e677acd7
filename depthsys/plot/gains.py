"""Figures of measured and predicted gains, and of where their difference comes from."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from depthsys.plot.style import BLACK, BLUE, GREY, ORANGE, RED, SKY, layer_axis, mark_undefined
from depthsys.plot.table import percent


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
        low, high = measured.quantile([0.1, 0.9], dim="prompt", skipna=False).values
        ax.fill_between(layers, low, high, color=GREY, alpha=0.3, lw=0, label="80 % of prompts")
        mean = measured.mean("prompt")
        ax.plot(layers, mean, "o-", color=BLACK, ms=7, label="measured, mean")
        linear = part["linear_gain"].mean("prompt")
        ax.plot(layers, linear, "x--", color=ORANGE, ms=7, mew=2, label="exact linear, mean")
        ax.plot(layers, part["surrogate_gain"], "s:", color=BLUE, ms=5, mfc="w", label="surrogate")
        ax.axhline(0, color=GREY, lw=0.8)
        mark_undefined(ax, measured.notnull().any("prompt"))
        layer_axis(ax)
        ax.set_ylabel("gain: readout per unit injection")
        ax.set_title("all layers" if skip == 0 else "without layer 0")
    axes[0].legend(frameon=False, fontsize="small")


# bases and orders whose gains are drawn beside the measured ones, and how
_SURROGATES: dict[tuple[str, int], dict] = {
    ("ensemble", 4): {"color": ORANGE, "ls": "-"},  # the measured gains are black
    ("krylov", 32): {"color": RED, "ls": "--"},
    ("arnoldi", 32): {"color": SKY, "ls": ":"},
}


def gains_of_surrogates(ax: Axes, table: xr.Dataset) -> None:
    """Measured gains per layer, and those of three surrogates.

    Parameters
    ----------
    ax
        Axes; a legend is not put there.
    table
        ``measured_gain`` (prompt, layer) and ``surrogate_gain`` (basis, order, layer). The band
        holds the middle 80 % of prompts.
    """
    layers, measured = table["layer"].values, table["measured_gain"]
    low, high = measured.quantile([0.1, 0.9], "prompt", skipna=False).values
    ax.fill_between(layers, low, high, color=GREY, alpha=0.3, lw=0, label="80 % of prompts")
    mean = measured.mean("prompt")
    ax.plot(layers, mean, "o", color=BLACK, mfc="none", ms=6, label="measured, mean")
    for (basis, order), style in _SURROGATES.items():
        gain = table["surrogate_gain"].sel(basis=basis, order=order)
        ax.plot(layers, gain, lw=1.6, **style, label=f"{basis} {order}")
    ax.axhline(0, color=GREY, lw=0.8, zorder=0)
    layer_axis(ax)


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
            ax.annotate(
                percent(number, least=1e-8),
                (max(number, end), row + shift),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize="small",
            )
    ax.set_yticks(rows, parts)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.2 * max(top, 1e-3))
    ax.set_xlabel("relative L2 error over layers (%)")
    # above the bars: inside, it would cover one of them for some data
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
