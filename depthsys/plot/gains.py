"""Figures of measured and predicted gains, and of where their difference comes from."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from depthsys.plot.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    RED,
    SKY,
    dwarfing,
    key_above,
    layer_axis,
    mark_undefined,
    symlog_axis,
    thinned,
)
from depthsys.plot.table import percent


def gain_curves(axes: tuple[Axes, Axes], gains: xr.Dataset) -> None:
    """Measured, exact linear and surrogate gain per layer: all layers, and without layer 0.

    Parameters
    ----------
    axes
        Two Axes. The second leaves out layer 0, whose gain often dwarfs the others (the
        embedding is short, so a unit injection is a large change). Where it is more than four
        times all others, the first is linear up to these and logarithmic beyond, and says so.
    gains
        ``measured_gain`` and ``linear_gain`` (prompt, layer), ``surrogate_gain`` (layer). The band
        holds the middle 80 % of prompts.
    """
    for skip, ax in enumerate(axes):
        part = gains.isel(layer=slice(skip, None))
        layers = part["layer"].values
        layer_axis(ax)
        ax.set_ylabel("gain: readout per unit injection")
        ax.set_title("all layers" if skip == 0 else "without layer 0")
        if not len(layers):
            ax.annotate(
                "there is no other layer", (0.5, 0.5), xycoords="axes fraction", ha="center"
            )
            ax.set_xticks([])
            ax.set_yticks([])
            continue
        measured = part["measured_gain"]
        low, high = measured.quantile([0.1, 0.9], dim="prompt", skipna=False).values
        ax.fill_between(layers, low, high, color=GREY, alpha=0.3, lw=0, label="80 % of prompts")
        means = [part[name].mean("prompt") for name in ("measured_gain", "linear_gain")]
        curves = [*means, part["surrogate_gain"]]
        for row, (values, style) in enumerate(zip(curves, _CURVES, strict=True)):
            ax.plot(layers, values, markevery=thinned(values.values, row, 3, most=12), **style)
        ax.axhline(0, color=GREY, lw=0.8)
        mark_undefined(ax, measured.notnull().any("prompt"))
        alone = dwarfing(np.stack([low, high, *curves], axis=1))
        if alone is not None and alone[0] == 0 and skip == 0:
            edge = symlog_axis(ax, alone[1])
            ax.set_title(f"all layers (log scale beyond ±{edge:g})")
    key_above(axes[0], ncols=2)


# sizes that show one through the other where curves coincide
_CURVES: tuple[dict, ...] = (
    {"color": BLACK, "marker": "o", "ls": "-", "ms": 4.5, "label": "measured, mean"},
    {"color": ORANGE, "marker": "x", "ls": "--", "ms": 7, "mew": 2, "label": "exact linear, mean"},
    {"color": BLUE, "marker": "s", "ls": ":", "ms": 9, "mfc": "none", "label": "surrogate"},
)
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
    ax.plot(layers, mean, "o", color=BLACK, mfc="none", ms=4, label="measured, mean")
    for (basis, order), style in _SURROGATES.items():
        gain = table["surrogate_gain"].sel(basis=basis, order=order)
        ax.plot(layers, gain, lw=1.6, **style, label=f"{basis} {order}")
    ax.axhline(0, color=GREY, lw=0.8, zorder=0)
    layer_axis(ax)


def error_budget(ax: Axes, gains: xr.Dataset) -> None:
    """Where the error of the surrogate comes from: ``error_budget`` (part, layers, bound).

    Parts may cancel: they are no shares of the total, which stands under them.
    """
    budget = 100 * gains["error_budget"]
    parts = list(budget["part"].values)
    offset = {"all": -0.2, "without_layer_0": 0.2}
    styles: dict[str, dict] = {
        "all": {"color": SKY},
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
        # the interval in the lower half of its bar, the number beside the bar in the upper half
        under = rows[known] + shift + 0.12
        ax.errorbar(value[known], under, xerr=error, fmt="none", ecolor="k", capsize=2, lw=1)
        for row, number in zip(rows, value, strict=True):
            ax.annotate(
                percent(number, least=1e-8),
                (number if np.isfinite(number) else 0.0, row + shift - 0.06),
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
    title = "parts may cancel: they do not add up to the total"
    key_above(ax, ncols=2, title=title, title_fontsize="small", alignment="left")
