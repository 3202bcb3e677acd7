"""Figures of gains by token: over layers and lags, and how much a map over lags explains."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from depthsys.plot.style import (
    BLACK,
    STYLES,
    check_dims,
    colour_bar,
    coordinate,
    key_above,
    layer_axis,
    log_axis,
    thinned,
)
from depthsys.plot.table import held

SHOWN = 6  # layers whose curves are drawn where none are named
_CURE = "Use `lm.lag_map`."


def token_gains(ax: Axes, found: xr.Dataset) -> None:
    """Root mean square gain of a push at every layer and token, as a map.

    Parameters
    ----------
    ax
        Axes; a colour bar is put beside them. Colours are of the logarithm; white is no gain, or no
        direction. Lags that less than half of the prompts have are left out.
    found
        From `lm.lag_map`.

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
    >>> rms = (("layer", "lag"), 0.5 ** np.arange(6.0).reshape(2, 3))
    >>> found = xr.Dataset({"rms": rms, "n_prompts": ("lag", [4, 4, 1])})
    >>> fig, (ax,) = plot.figure()
    >>> plot.token_gains(ax, found)
    >>> [round(float(end), 1) for end in ax.get_ylim()]
    [-0.5, 1.5]
    """
    lags, layers, rms = _usual(found)
    drawn = ax.pcolormesh(
        np.append(layers - 0.5, layers[-1] + 0.5),
        np.append(lags - 0.5, lags[-1] + 0.5),
        np.ma.masked_invalid(np.where(rms > 0, rms, np.nan)).T,
        norm="log",
        cmap="viridis",
        rasterized=True,
    )
    colour_bar(ax, drawn, f"root mean square {_what(found)}")
    layer_axis(ax)
    ax.set_ylabel("lag (tokens before the last one)")


def lag_curves(ax: Axes, found: xr.Dataset, layers: Sequence[int] | None = None) -> None:
    """Root mean square gain over the lag, a line for each of some layers.

    Parameters
    ----------
    ax
        Axes; the legend is put above them.
    found
        From `lm.lag_map`.
    layers
        Which layers; by default some that are spread over all that have gains.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, there is another dim, or no such layer.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from depthsys import plot
    >>> rms = (("layer", "lag"), 0.5 ** np.arange(6.0).reshape(2, 3))
    >>> found = xr.Dataset({"rms": rms, "n_prompts": ("lag", [4, 4, 1])})
    >>> fig, (ax,) = plot.figure()
    >>> plot.lag_curves(ax, found, [1])
    >>> ax.lines[0].get_ydata()
    array([0.125 , 0.0625])
    """
    lags, known, rms = _usual(found)
    drawn = np.flatnonzero(np.isfinite(rms).any(1))
    if layers is None:
        places = np.unique(np.linspace(0, len(drawn) - 1, SHOWN).round().astype(int))
        chosen = [int(known[drawn[place]]) for place in places] if len(drawn) else []
    else:
        chosen = list(layers)
        if not chosen or not set(chosen) <= set(known.tolist()) or len(chosen) > len(STYLES):
            raise ValueError(
                f"`layers` must be up to {len(STYLES)} out of {known[0]}..{known[-1]}; got "
                f"{layers!r}. Name some of them."
            )
    for row, layer in enumerate(chosen):
        values = np.where(rms[known == layer][0] > 0, rms[known == layer][0], np.nan)
        marks = thinned(values, row, len(chosen))
        ax.plot(lags, values, markevery=marks, label=f"layer {layer}", **STYLES[row])
    log_axis(ax)
    ax.set_xlabel("lag (tokens before the last one)")
    ax.set_ylabel(f"root mean square {_what(found)}")
    key_above(ax, ncols=3)


def lag_shares(ax: Axes, found: xr.Dataset) -> None:
    """How much of the gains of earlier tokens a map over lags explains, layer by layer.

    Parameters
    ----------
    ax
        Axes; the legend is put above them. What is below zero is chance, or gains that are opposed.
    found
        From `lm.lag_map`.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, or there is another dim.

    Examples
    --------
    >>> import xarray as xr
    >>> from depthsys import plot
    >>> shares = (("layer", "by"), [[0.1, 0.5, 0.2], [0.2, 0.6, 0.1]])
    >>> found = xr.Dataset({"explained": shares}, coords={"by": ["layer", "lag", "position"]})
    >>> fig, (ax,) = plot.figure()
    >>> plot.lag_shares(ax, found)
    >>> ax.lines[1].get_ydata()
    array([0.5, 0.6])
    """
    shares = held(found, "explained", name="found", cure=_CURE)["explained"]
    check_dims(shares, "explained", ("layer", "by"), finite=False)
    layers = coordinate(shares, "layer")
    lines = {
        "mean of the layer": shares.sel(by="layer").values,
        "by the lag": shares.sel(by="lag").values,
        "by the position": shares.sel(by="position").values,
    }
    for row, (label, values) in enumerate(lines.items()):
        ax.plot(
            layers, values, markevery=thinned(values, row, len(lines)), label=label, **STYLES[row]
        )
    ax.axhline(0, color=BLACK, lw=0.8)
    low = min(np.nanmin(values, initial=0.0) for values in lines.values())
    ax.set_ylim(max(-1.0, low) - 0.03, 1.03)
    layer_axis(ax)
    ax.set_xlabel("layer")
    ax.set_ylabel("share of the mean square")
    key_above(ax, ncols=2)


def earlier_shares(ax: Axes, found: xr.Dataset) -> None:
    """How much of the readout's squared gradient lies at earlier tokens, layer by layer.

    Parameters
    ----------
    ax
        Axes.
    found
        From `lm.lag_map`.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If there is no ``earlier_share`` (layer), or another dim.

    Examples
    --------
    >>> import xarray as xr
    >>> from depthsys import plot
    >>> fig, (ax,) = plot.figure()
    >>> plot.earlier_shares(ax, xr.Dataset({"earlier_share": ("layer", [0.9, 0.1])}))
    >>> ax.lines[0].get_ydata()
    array([0.9, 0.1])
    """
    share = held(found, "earlier_share", name="found", cure=_CURE)["earlier_share"]
    check_dims(share, "earlier_share", ("layer",), finite=False)
    values = share.values
    ax.plot(coordinate(share, "layer"), values, markevery=thinned(values), **STYLES[3])
    ax.set_ylim(-0.03, 1.03)
    layer_axis(ax)
    ax.set_xlabel("layer")
    ax.set_ylabel("share of the squared gradient at earlier tokens")


def _usual(found: xr.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lags that half of the prompts have, layers, and root mean squares (layer, lag)."""
    found = held(found, "rms", "n_prompts", name="found", cure=_CURE)
    check_dims(found["rms"], "rms", ("layer", "lag"), finite=False)
    check_dims(found["n_prompts"], "n_prompts", ("lag",))
    usual = 2 * found["n_prompts"].values >= found["n_prompts"].values.max()
    lags, layers = (coordinate(found["rms"], dim) for dim in ("lag", "layer"))
    return lags[usual], layers, found["rms"].transpose("layer", "lag").values[:, usual]


def _what(found: xr.Dataset) -> str:
    """What the gains are, from the attrs."""
    of = "gradient" if found.attrs.get("of") == "gradient" else "gain"
    return f"{of}, by the state's norm" if found.attrs.get("relative") else of
