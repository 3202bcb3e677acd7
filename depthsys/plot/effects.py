"""Figures of texts that are written under plans: what steering does, against what it costs."""

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from depthsys.plot.style import GREY, STYLES

# Names of means in a Dataset of `lm.generation_effects`, and what they are called.
EFFECTS = {
    "log_odds_mean": "log-odds of good over bad words, next token",
    "readout_new_shift": "shift of the new text's readout (unit of the readout)",
}
PRICES = {
    "kl_mean": "KL from the unsteered model per new token (nats)",
    "perplexity_mean": "perplexity of the new text, unsteered model",
    "repetition_mean": "share of repeated triples of tokens",
}


def effect_against_price(
    ax: Axes,
    effects: xr.Dataset,
    effect: str = "log_odds_mean",
    price: str = "kl_mean",
    *,
    legend: bool = True,
) -> None:
    """Curves over strength, one of each plan, with 95 % intervals over prompts.

    Up and to the left is better. The open circle is the model as it is; strengths grow along the
    curves.

    Parameters
    ----------
    ax
        The Axes.
    effects
        From `lm.generation_effects`.
    effect, price
        Names of `EFFECTS` and `PRICES` (plan, strength, bound).
    legend
        Draw one.

    Raises
    ------
    ValueError
        If the effect was not measured: log-odds need words.
    """
    if not bool(effects[effect].notnull().any()):
        others = ", ".join(repr(name) for name in EFFECTS if name != effect)
        raise ValueError(
            f"`effect` must be one that was measured; got {effect!r}, which is nowhere known. Give "
            f"words to `lm.generation_effects`, or choose {others}."
        )
    for row, plan in enumerate(effects["plan"].values):
        style = STYLES[row % len(STYLES)]
        y, x = (effects[name].sel(plan=plan) for name in (effect, price))
        middle = [values.sel(bound="estimate").values for values in (x, y)]
        off = [
            abs(values.sel(bound=["low", "high"]) - values.sel(bound="estimate")).values.T
            for values in (x, y)
        ]
        bars: dict = {"xerr": off[0], "yerr": off[1], "ecolor": style["color"], "elinewidth": 0.6}
        ax.errorbar(middle[0], middle[1], **bars, capsize=0, label=str(plan), **style)
        for strength, at_x, at_y in zip(effects["strength"].values, *middle, strict=True):
            if strength == 0:
                ax.plot(at_x, at_y, "o", ms=11, mfc="none", mec=GREY)
    if "perplexity" in price:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(PRICES[price])
    ax.set_ylabel(EFFECTS[effect])
    if legend:
        ax.legend(frameon=False, fontsize="small")
