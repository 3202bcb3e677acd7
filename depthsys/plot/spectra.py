"""Figures of the spectra of layers and of their products, and of layers left out."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from depthsys.plot.style import (
    BLACK,
    GREY,
    STYLES,
    check_dims,
    colour_bar,
    coordinate,
    depth_axis,
    key_above,
    layer_axis,
    log_axis,
    percent_axis,
    thinned,
)
from depthsys.plot.table import held

BINS = 36  # of angles, five degrees each
RADII = (0.05, 0.25, 0.5, 0.75, 0.95, 1)  # quantiles of moduli
_CURE = "Use `ltv.spectra`."
_SKIP = "Use `lm.layer_skip`."


def spectra(axes: Sequence[Axes], found: xr.Dataset) -> None:
    """Normality of the layers, effective ranks and growth of their products.

    Parameters
    ----------
    axes
        Three Axes. The first has the departure from normality and the symmetric share of every
        layer; the second the effective ranks of products from the start and to the end; the third
        their largest singular values on a log axis, with what the eigenvalues alone would give.
    found
        From `ltv.spectra`, of one system.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, there are batch dims, or there are not three Axes.

    Examples
    --------
    >>> from depthsys import ltv, plot
    >>> s = ltv.constant([[0.0, -0.5], [0.5, 0.0]], [[1.0], [0.0]], [[1.0, 0.0]], horizon=3)
    >>> fig, axes = plot.figure(12, 4, columns=3)
    >>> plot.spectra(axes, ltv.spectra(s))
    >>> axes[0].lines[1].get_ydata()
    array([0., 0., 0.])
    """
    if len(axes) != 3:
        raise ValueError(f"`axes` must be three; got {len(axes)}. Make them with `columns=3`.")
    layers = {"departure": "departure from normality", "symmetric_share": "symmetric share"}
    ranks = {"rank_from_start": r"from the start, $\Phi(k, 0)$",
             "rank_to_end": r"to the end, $\Phi(L, k)$"}  # fmt: skip
    growth = {"growth_from_start": r"$\|\Phi(k, 0)\|_2$", "growth_to_end": r"$\|\Phi(L, k)\|_2$",
              "modal_growth": "eigenvalues alone"}  # fmt: skip
    found = held(found, *layers, *ranks, *growth, name="found", cure=_CURE)
    _curves(axes[0], found, layers, "layer")
    of = "update $A_l - I$" if found.attrs.get("of") == "update" else "layer $A_l$"
    axes[0].set_ylabel(f"share, of the {of}")
    axes[0].set_ylim(-0.03, 1.03)
    layer_axis(axes[0])
    axes[0].set_xlabel("layer")
    _curves(axes[1], found, ranks, "depth")
    axes[1].set_ylabel("effective rank of the product")
    axes[1].set_ylim(bottom=0)
    _curves(axes[2], found, growth, "depth")
    log_axis(axes[2])
    axes[2].set_ylabel("growth")
    for ax in axes[1:]:
        depth_axis(ax, coordinate(found["rank_to_end"], "depth"))


def _curves(ax: Axes, found: xr.Dataset, names: dict[str, str], dim: str) -> None:
    for row, (name, label) in enumerate(names.items()):
        check_dims(found[name], name, (dim,))
        values = found[name].values
        at = coordinate(found[name], dim)
        marks = thinned(values, row, len(names))
        ax.plot(at, values, markevery=marks, label=label, **STYLES[row])
    key_above(ax, ncols=2)


def eigenvalue_angles(ax: Axes, found: xr.Dataset) -> None:
    """How eigenvalues turn: the share of them at every angle, layer by layer, as a map.

    Parameters
    ----------
    ax
        Axes; a colour bar is put beside them. Angles are without sign, from 0 (no rotation) to 180
        degrees (a reflection). Colours are of the logarithm of the share, from one eigenvalue to
        all of them in every map of as many, so that maps can be compared; white is none.
    found
        From `ltv.spectra`, of one system: ``angle`` (layer, mode).

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, or there are batch dims.

    Examples
    --------
    >>> from depthsys import ltv, plot
    >>> s = ltv.constant([[0.0, -0.5], [0.5, 0.0]], [[1.0], [0.0]], [[1.0, 0.0]], horizon=3)
    >>> fig, (ax,) = plot.figure()
    >>> plot.eigenvalue_angles(ax, ltv.spectra(s))
    >>> ax.get_ylabel()
    'angle of the eigenvalue (degrees)'
    """
    angle = held(found, "angle", name="found", cure=_CURE)["angle"]
    check_dims(angle, "angle", ("layer", "mode"))
    degrees = np.degrees(np.abs(angle.transpose("layer", "mode").values))
    edges = np.linspace(0, 180, BINS + 1)
    share = np.array([np.histogram(row, edges)[0] / row.size for row in degrees])
    layers = coordinate(angle, "layer")
    drawn = ax.pcolormesh(
        np.append(layers - 0.5, layers[-1] + 0.5),
        edges,
        np.ma.masked_equal(share.T, 0),
        norm=LogNorm(1 / degrees.shape[1], 1) if degrees.shape[1] > 1 else None,
        cmap="viridis",
        rasterized=True,
    )
    colour_bar(ax, drawn, "share of the layer's eigenvalues")
    layer_axis(ax)
    ax.set_xlabel("layer")
    ax.set_yticks(range(0, 181, 45))
    of = "update's eigenvalue" if found.attrs.get("of") == "update" else "eigenvalue"
    ax.set_ylabel(f"angle of the {of} (degrees)")


def eigenvalue_radii(ax: Axes, found: xr.Dataset) -> None:
    """How long eigenvalues are, layer by layer: the median and quantiles of their moduli.

    Parameters
    ----------
    ax
        Axes, with a log axis; the legend is put above them. The line is the median, the dark band
        holds the middle half of a layer's eigenvalues, the pale one all but the smallest and the
        largest 5 %; dotted is the largest, the spectral radius. Below 1 is shrinking.
    found
        From `ltv.spectra`, of one system: ``modulus`` (layer, mode).

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, or there are batch dims.

    Examples
    --------
    >>> from depthsys import ltv, plot
    >>> s = ltv.constant([[0.0, -0.5], [0.5, 0.0]], [[1.0], [0.0]], [[1.0, 0.0]], horizon=3)
    >>> fig, (ax,) = plot.figure()
    >>> plot.eigenvalue_radii(ax, ltv.spectra(s))
    >>> ax.lines[0].get_ydata()
    array([0.5, 0.5, 0.5])
    """
    modulus = held(found, "modulus", name="found", cure=_CURE)["modulus"]
    check_dims(modulus, "modulus", ("layer", "mode"))
    layers = coordinate(modulus, "layer")
    values = modulus.transpose("layer", "mode").values
    low, quarter, middle, more, high, largest = np.quantile(values, RADII, axis=1)
    of = "update" if found.attrs.get("of") == "update" else "layer"
    for bottom, top, alpha in ((low, high, 0.25), (quarter, more, 0.5)):
        ax.fill_between(layers, bottom, top, color=GREY, alpha=alpha, lw=0)
    log_axis(ax)
    ax.plot(layers, middle, markevery=thinned(middle, 0, 2), label="median", **STYLES[0])
    style: dict = STYLES[1] | {"ls": ":"}
    ax.plot(layers, largest, markevery=thinned(largest, 1, 2), label="largest", **style)
    ax.axhline(1, color=BLACK, lw=0.8)
    percent_axis(ax)
    layer_axis(ax)
    ax.set_xlabel("layer")
    ax.set_ylabel(f"modulus of the {of}'s eigenvalues")
    key_above(ax, ncols=2)


def layer_skip(ax: Axes, found: xr.Dataset) -> None:
    """What leaving out each layer does to the readout: really, and by the linear system.

    Parameters
    ----------
    ax
        Axes; the legend is put above them. The band holds the middle 80 % of prompts.
    found
        From `lm.layer_skip`, of one output: ``shift`` and ``predicted`` (prompt, layer).

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, or there is another dim.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from depthsys import plot
    >>> shifts = (("prompt", "layer"), np.array([[1.0, -2.0], [2.0, -1.0]]))
    >>> fig, (ax,) = plot.figure()
    >>> plot.layer_skip(ax, xr.Dataset({"shift": shifts, "predicted": shifts}))
    >>> ax.lines[0].get_ydata()
    array([ 1.5, -1.5])
    """
    found = held(found, "shift", "predicted", name="found", cure=_SKIP)
    for name in ("shift", "predicted"):
        check_dims(found[name], name, ("prompt", "layer"))
    layers = coordinate(found["shift"], "layer")
    low, high = found["shift"].quantile([0.1, 0.9], dim="prompt").values
    ax.fill_between(layers, low, high, color=GREY, alpha=0.3, lw=0, label="80 % of prompts")
    for row, (name, label) in enumerate(
        {"shift": "really left out", "predicted": "by the linear system"}.items()
    ):
        values = found[name].mean("prompt").values
        ax.plot(layers, values, markevery=thinned(values, row, 2), label=label, **STYLES[row])
    ax.axhline(0, color=BLACK, lw=0.8)
    layer_axis(ax)
    ax.set_xlabel("layer left out")
    ax.set_ylabel("shift of the readout")
    key_above(ax, ncols=3)
