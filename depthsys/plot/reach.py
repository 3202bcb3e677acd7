"""Figures of how well layers control the states and outputs, and of which layers to act on."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from depthsys.plot.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    STYLES,
    check_dims,
    coordinate,
    depth_axis,
    key_above,
    layer_axis,
    log_axis,
    log_range,
    thinned,
)
from depthsys.plot.table import held, number, percent

WIDE = 30  # more layers than that leave no room for numbers in their marks
_CURE = "Use `ltv.controllability`."
_SETS = {
    "layers": ("greedy, added one by one", "value"),
    "kept_layers": ("removed one by one", "kept_value"),
    "optimal_layers": ("optimum, all sets tried", "optimum"),
}


def controllability(axes: Sequence[Axes], measures: xr.Dataset) -> None:
    """How many directions are reached at every depth, and what every layer alone needs.

    Parameters
    ----------
    axes
        Two Axes; the legends are put above them. The first has the ranks of states and outputs as
        stairs over depth, with an open marker where rounding leaves a rank in doubt. The second has
        the least energy by which a layer alone shifts each output by one, on a log axis; a layer
        that does not reach an output has an open marker at the upper edge.
    measures
        From ``ltv.controllability``: ``state_rank``, ``output_rank`` (depth), with
        ``_is_certified``, and ``energy_from_layer`` (layer, output), (input/output)^2.

    Raises
    ------
    TypeError
        If ``measures`` is not a Dataset.
    ValueError
        If a variable is missing, there are batch dims, or there are not two Axes.

    Examples
    --------
    >>> from depthsys import ltv, plot
    >>> s = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=3)
    >>> fig, axes = plot.figure(columns=2)
    >>> plot.controllability(axes, ltv.controllability(s))
    >>> axes[1].lines[0].get_ydata()
    array([16.,  4.,  1.])
    """
    if len(axes) != 2:
        raise ValueError(f"`axes` must be two; got {len(axes)}. Make a figure with `columns=2`.")
    names = [f"{kind}_rank{what}" for kind in ("state", "output") for what in ("", "_is_certified")]
    measures = held(measures, *names, "energy_from_layer", name="measures", cure=_CURE)
    _ranks(axes[0], measures)
    _energies(axes[1], measures["energy_from_layer"])


def _ranks(ax: Axes, measures: xr.Dataset) -> None:
    depths = coordinate(measures, "depth")
    for row, (kind, style) in enumerate((("state", STYLES[0]), ("output", STYLES[1]))):
        rank = measures[f"{kind}_rank"]
        check_dims(rank, f"{kind}_rank", ("depth",))
        values = rank.values.astype(float)
        marks = thinned(values, row, 2)
        label = f"{kind}s reached (rank)"
        ax.plot(depths, values, drawstyle="steps-mid", markevery=marks, label=label, **style)
        doubt = ~measures[f"{kind}_rank_is_certified"].values.astype(bool)
        if doubt.any():
            look = {**style, "ls": "none", "mfc": "w", "ms": 8}
            ax.plot(depths[doubt], values[doubt], label=f"{kind} rank in doubt: rounding", **look)
    depth_axis(ax, depths)
    ax.set_ylim(bottom=min(-0.5, ax.get_ylim()[0]))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_ylabel("number of directions")
    key_above(ax, ncols=2)


def _energies(ax: Axes, energy: xr.DataArray) -> None:
    dims = check_dims(energy, "energy_from_layer", ("layer", "output"), finite=False)
    values = energy.transpose(*dims).values
    layers = coordinate(energy, "layer")
    named = "output_name" in energy.coords
    names = energy["output_name"].values if named else coordinate(energy, "output")
    count = values.shape[1]
    for row, name in enumerate(np.atleast_1d(names).tolist()):
        known = np.where(np.isfinite(values[:, row]), values[:, row], np.nan)
        style = STYLES[row % len(STYLES)]
        label = f"output {name}"
        ax.plot(layers, known, markevery=thinned(known, row, count), label=label, **style)
        lost = ~np.isfinite(values[:, row])
        if lost.any():
            # each row has its height, so that none hides another
            tips = np.full(lost.sum(), 1 - 0.04 * (row + 0.5))
            look = {**style, "ls": "none", "mfc": "w", "transform": ax.get_xaxis_transform()}
            ax.plot(layers[lost], tips, label="_lost", **look)
    bottom, top = log_range(values, tiny=0.0)
    log_axis(ax)
    # room above for the layers that reach nothing
    ax.set_ylim(bottom, top * (top / bottom) ** 0.15 if np.isinf(values).any() else top)
    if not np.isfinite(values).all():
        key: dict = {"color": GREY, "marker": "o", "mfc": "w", "ls": "none"}
        ax.plot([], [], label="not reached", **key)
    layer_axis(ax)
    ax.set_ylabel("energy to shift the last output\nby one, that layer alone ((input/output)$^2$)")
    key_above(ax, ncols=4)


def actuator_layers(ax: Axes, found: xr.Dataset, n_layers: int | None = None) -> None:
    """Which layers to act on: a row per way of choosing, a mark per layer chosen.

    The numbers in the marks of the greedy row, or beside it where there are more than 30 layers,
    say in which order they were added. To the right stands the value of each set and, where all
    sets were tried, its part of the optimum.

    Parameters
    ----------
    ax
        The Axes.
    found
        From ``ltv.actuator_layers``: ``layers``, ``value``, ``kept_layers`` (pick), ``kept_value``
        and, if all sets were tried, ``optimal_layers`` (pick), ``optimum``.
    n_layers
        How many layers the system has; by default up to the last that was chosen.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, there are batch dims, or there are fewer layers than were chosen.

    Examples
    --------
    >>> from depthsys import ltv, plot
    >>> s = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=5)
    >>> fig, (ax,) = plot.figure()
    >>> plot.actuator_layers(ax, ltv.actuator_layers(s, 2, ltv.Trace()), n_layers=5)
    >>> ax.texts[-1].get_text()
    'value 1.2'
    """
    needed = ["layers", "value", "kept_layers", "kept_value"]
    found = held(found, *needed, name="found", cure="Use `ltv.actuator_layers`.")
    rows = {name: about for name, about in _SETS.items() if name in found}
    for name in rows:
        check_dims(found[name], name, ("pick",))
    last = max(int(found[name].max()) for name in rows)
    if n_layers is not None and n_layers <= last:
        raise ValueError(
            f"`n_layers` must be more than the last layer chosen, {last}; got {n_layers}. Count "
            "those of the system."
        )
    count = last + 1 if n_layers is None else n_layers
    optimum = float(found["optimum"]) if "optimum" in found else np.nan
    for row, (name, (_, of)) in enumerate(rows.items()):
        chosen = found[name].values
        ax.plot([-0.5, count - 0.5], [row, row], color=GREY, lw=0.5, zorder=0)
        color, marker = ((BLUE, "o"), (ORANGE, "s"), (BLACK, "D"))[row]
        inside = "w" if name == "layers" else color
        mark: dict = {
            "color": color,
            "mfc": inside,
            "ls": "none",
            "marker": marker,
            "clip_on": False,
        }
        ax.plot(
            chosen,
            np.full(len(chosen), row),
            ms=13 if name == "layers" and count <= WIDE else 8,
            **mark,
        )
        if name == "layers" and count <= WIDE:
            _order(ax, chosen)
        value = float(np.atleast_1d(found[of].values)[-1])
        text = _value(value, optimum if name != "optimal_layers" else np.nan)
        if name == "layers" and count > WIDE:
            text += "\norder: " + ", ".join(map(str, chosen[:6])) + ", ..." * (len(chosen) > 6)
        side = ax.get_yaxis_transform()
        style_of: dict = {"va": "center", "fontsize": "small"}
        ax.annotate(text, (1, row), (6, 0), side, "offset points", **style_of)
    ax.set_yticks(range(len(rows)), [label for label, _ in rows.values()])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(-0.5, count - 0.5)
    layer_axis(ax)
    objective = str(found.attrs.get("objective", ""))
    if len(objective) > 30:
        objective = objective.split("(")[0]
    picks = found.sizes["pick"]
    ax.set_title(
        f"{picks} layer{'s' * (picks != 1)} to act on" + f", {objective}" * bool(objective)
    )


def _order(ax: Axes, chosen: np.ndarray) -> None:
    """In which order layers were added, a number in each mark of row 0."""
    for place, layer in enumerate(chosen, start=1):
        ax.annotate(str(place), (layer, 0), ha="center", va="center", fontsize="x-small")


def _value(value: float, optimum: float) -> str:
    """The value of a set, and what part of the optimum it is; a negative one is a residual."""
    if value < 0:
        return f"target not reached:\nresidual {percent(-100 * value)}"
    part = f",\n{percent(100 * value / optimum)} of the optimum" if optimum > 0 else ""
    return f"value {number(value)}{part}"
