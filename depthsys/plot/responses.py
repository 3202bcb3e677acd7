"""Responses of a system to one impulse or one step, output by output."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from depthsys.plot.style import (
    BLACK,
    GREY,
    STYLES,
    check_dims,
    coordinate,
    depth_axis,
    legend_beside,
    thinned,
)

_UNITS = {"impulse": "unit impulse", "step": "unit step"}


def responses(ax: Axes, response: xr.Dataset) -> None:
    """The outputs against depth, a line per output and input.

    A step response is drawn as stairs, since the input is one from its layer on; an impulse
    response as points joined by thin lines, since it holds at the depths only. The first eight
    pairs have a style and a label of their own, the others are thin and grey. A dotted line stands
    at the layer at which the input comes.

    Parameters
    ----------
    ax
        Axes; the legend is put to its right.
    response
        From ``ltv.impulse_response`` or ``ltv.step_response``: ``y`` (depth, output, input) and
        attrs ``response`` and ``at``.

    Raises
    ------
    ValueError
        If it is none of these, or has batch dims.
    """
    kind = response.attrs.get("response") if isinstance(response, xr.Dataset) else None
    if kind not in _UNITS or "y" not in response:
        got = type(response).__name__ if kind is None else kind
        raise ValueError(
            f"`response` must be an impulse or step response; got {got!r}. Use "
            "`ltv.impulse_response` or `ltv.step_response`."
        )
    y = response["y"]
    dims = check_dims(y, "response", ("depth", "output", "input"))
    values, depths = y.transpose(*dims).values, coordinate(y, "depth")
    outputs, inputs = (_names(response, dim) for dim in ("output", "input"))
    pairs = [(i, j) for j in range(len(inputs)) for i in range(len(outputs))]
    drawing: dict = {"drawstyle": "steps-post"} if kind == "step" else {}
    for row, ((i, j), style) in enumerate(zip(pairs, STYLES, strict=False)):
        label = outputs[i] if len(inputs) == 1 else f"{outputs[i]} from {inputs[j]}"
        # a single line is as clear with a marker at every depth of a small model
        marks = thinned(values[:, i, j], row, len(pairs), most=32 if len(pairs) == 1 else 16)
        ax.plot(depths, values[:, i, j], label=label, markevery=marks, **style, **drawing)
    for number, (i, j) in enumerate(pairs[len(STYLES) :]):
        label = f"{len(pairs) - len(STYLES)} more" if number == 0 else None
        ax.plot(depths, values[:, i, j], color=GREY, lw=0.6, label=label, zorder=1, **drawing)
    ax.axhline(0, color=BLACK, lw=0.8, zorder=0)
    ax.axvline(response.attrs["at"], color=GREY, ls=":", lw=1, zorder=0)
    depth_axis(ax, depths)
    ax.set_ylabel("output (output/input)")
    ax.set_title(f"{_UNITS[kind]} at layer {response.attrs['at']}")
    if len(pairs) > 1:
        legend_beside(ax)


def _names(response: xr.Dataset, dim: str) -> list[str]:
    if f"{dim}_name" in response.coords:
        return [str(name) for name in response[f"{dim}_name"].values]
    if dim in response.coords:
        return [str(name) for name in response[dim].values]
    return [f"{'y' if dim == 'output' else 'u'}{i}" for i in np.arange(response.sizes[dim])]
