"""Figure of how well concept directions separate the classes, depth by depth."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from depthsys.plot.style import GREY, STYLES, depth_axis, thinned
from depthsys.plot.table import held


def auc_by_depth(ax: Axes, concepts: Mapping[str, xr.Dataset], *, bands: bool = True) -> None:
    """AUC on held-out texts against depth, a line per concept; chance is 0.5.

    Parameters
    ----------
    ax
        Axes.
    concepts
        Names, and Datasets with ``auc``, ``auc_low``, ``auc_high`` (depth): a concept, a system, a
        comparison. A depth without a direction has no point. The best depth of each is ringed.
    bands
        Whether the 95 % intervals are drawn.

    Raises
    ------
    TypeError, ValueError
        If a variable is missing.
    """
    depths = np.zeros(0, dtype=int)
    for row, (name, given) in enumerate(concepts.items()):
        concept = held(
            given, "auc", "auc_low", "auc_high", name="concepts", cure="Give `held_out` texts."
        )
        style = STYLES[row % len(STYLES)]
        auc = concept["auc"].values
        at = np.arange(len(auc))
        depths = max(depths, at, key=len)
        if bands:
            low, high = concept["auc_low"].values, concept["auc_high"].values
            ax.fill_between(at, low, high, color=style["color"], alpha=0.15, lw=0)
        marks = thinned(auc, row, len(concepts))
        ax.plot(at, auc, **{**style, "ms": 4}, markevery=marks, label=name)
        if np.isfinite(auc).any():
            best = int(np.nanargmax(auc))
            ring = {"mfc": "none", "mec": style["color"], "mew": 1.5, "ms": 11}
            ax.plot(at[[best]], auc[[best]], "o", **ring, label="_best")
    ax.axhline(0.5, color=GREY, lw=0.8, zorder=0)
    ax.set_ylabel("AUC on held-out texts")
    if len(depths):
        depth_axis(ax, depths)
