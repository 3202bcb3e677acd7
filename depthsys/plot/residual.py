"""Figures of the residual stream over sublayers: continuity, speed, rotations, planes, flow."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from depthsys.plot.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    STYLES,
    check_dims,
    colour_bar,
    coordinate,
    count_axis,
    key_above,
    log_axis,
    thinned,
)
from depthsys.plot.table import held

_CURE = "Use `lm.residual_dynamics`."
_COMPRESS = "Use `lm.compress`."
_FLOWN = "Use `lm.teleport`."
WRITERS = {"attention": "written by attention", "mlp": "written by the MLP"}
BAND = (0.05, 0.95)
SHOWN = 30  # single trajectories in a plane
BINS = 30
FAR = 50  # distances that differ more are on a log axis
_PALE = ListedColormap(colormaps["Greys"](np.linspace(0, 0.62, 256)))  # arrows are seen on it


def unit_correlations(ax: Axes, found: xr.Dataset) -> None:
    """How alike a unit is to itself one sublayer later: correlation over prompts, by who writes.

    Parameters
    ----------
    ax
        Axes; the legend is put above them. Lines are medians over units, the bands hold the middle
        90 % of units.
    found
        From `lm.residual_dynamics`: ``correlation`` (step, feature), coord ``written_by``.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, or there is another dim.
    """
    found = held(found, "correlation", "written_by", name="found", cure=_CURE)
    check_dims(found["correlation"], "correlation", ("step", "feature"), finite=False)
    at = coordinate(found["correlation"], "step")
    _by_writer(ax, at, found["correlation"].median("feature").values, found)
    _bands(ax, at, found["correlation"], "feature", found)
    ax.set_ylabel("correlation of a unit with itself")
    ax.set_ylim(top=1.02)


def successive_cosines(ax: Axes, found: xr.Dataset) -> None:
    """Cosines of successive states, by who writes between them, and of successive updates.

    Parameters
    ----------
    ax
        Axes; the legend is put above them. Lines are means over prompts.
    found
        From `lm.residual_dynamics`: ``cosine`` (prompt, step), ``update_cosine`` (prompt, pair),
        coord ``written_by``.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, or there is another dim.
    """
    found = held(found, "cosine", "update_cosine", "written_by", name="found", cure=_CURE)
    check_dims(found["cosine"], "cosine", ("prompt", "step"), finite=False)
    check_dims(found["update_cosine"], "update_cosine", ("prompt", "pair"), finite=False)
    at = coordinate(found["cosine"], "step")
    _by_writer(ax, at, found["cosine"].mean("prompt").values, found)
    updates = found["update_cosine"].mean("prompt").values
    ax.plot(at[:-1] + 0.5, updates, color=GREY, lw=1.0, ls=":", label="of successive updates")
    ax.axhline(0, color=BLACK, lw=0.8)
    ax.set_ylabel("cosine")
    ax.set_ylim(top=1.02)
    key_above(ax, ncols=2)


def velocity(ax: Axes, found: xr.Dataset) -> None:
    """How far the state moves at each step, on a log axis, by who writes.

    Parameters
    ----------
    ax
        Axes; the legend is put above them. Lines are medians over prompts, the bands hold the
        middle 90 % of prompts; dotted is the norm of the state before the step.
    found
        From `lm.residual_dynamics`: ``velocity`` (prompt, step), ``norm`` (prompt, sublayer), coord
        ``written_by``.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, or there is another dim.
    """
    found = held(found, "velocity", "norm", "written_by", name="found", cure=_CURE)
    check_dims(found["velocity"], "velocity", ("prompt", "step"))
    check_dims(found["norm"], "norm", ("prompt", "sublayer"))
    at = coordinate(found["velocity"], "step")
    log_axis(ax)
    norm = found["norm"].median("prompt").values
    ax.plot(at, norm[: len(at)], color=GREY, lw=1.0, ls=":", label="norm of the state")
    _by_writer(ax, at, found["velocity"].median("prompt").values, found)
    _bands(ax, at, found["velocity"], "prompt", found)
    ax.set_ylabel(r"velocity $\|x_{s+1} - x_s\|$")


def mutual_information(ax: Axes, found: xr.Dataset) -> None:
    """Mutual information of units with themselves one sublayer later, by who writes.

    Parameters
    ----------
    ax
        Axes; the legend is put above them. Lines are medians over units, the bands hold the middle
        90 % of them; dotted is what the estimator says where prompts are exchanged. Units that do
        not vary are left out.
    found
        From `lm.residual_dynamics`: ``mutual_information`` and ``mutual_information_shuffled``
        (step, unit), coord ``written_by``.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, there is another dim, or there are no units.
    """
    names = ("mutual_information", "mutual_information_shuffled")
    found = held(found, *names, "written_by", name="found", cure=_CURE)
    for name in names:
        check_dims(found[name], name, ("step", "unit"), finite=False)
    if not found.sizes["unit"]:
        raise ValueError("`found` must have units; got none. Estimate some, as in `n_units=32`.")
    at = coordinate(found[names[0]], "step")
    shuffled = found[names[1]].mean("unit").values
    ax.plot(at, shuffled, color=GREY, lw=1.0, ls=":", label="prompts exchanged")
    _by_writer(ax, at, found[names[0]].median("unit").values, found)
    _bands(ax, at, found[names[0]], "unit", found)
    ax.set_ylabel("mutual information (nats)")
    ax.set_ylim(bottom=-0.05)


def _by_writer(ax: Axes, at: np.ndarray, values: np.ndarray, found: xr.Dataset) -> None:
    """A line for the steps that each part writes."""
    writers = found["written_by"].values
    for row, (writer, label) in enumerate(WRITERS.items()):
        here = writers == writer
        line = values[here]
        ax.plot(at[here], line, markevery=thinned(line, row, 2), label=label, **STYLES[row])
    count_axis(ax, at)
    ax.set_xlabel("step $s$, from sublayer $s$ to $s + 1$")
    key_above(ax, ncols=2)


def _bands(ax: Axes, at: np.ndarray, values: xr.DataArray, dim: str, found: xr.Dataset) -> None:
    """The middle 90 % along a dim, for the steps that each part writes."""
    known = values.notnull().any(dim)  # a quantile of nothing would warn
    bands = values.where(known, 0.0).quantile(BAND, dim=dim).where(known)
    low, high = bands.transpose("quantile", "step").values
    for row, writer in enumerate(WRITERS):
        here = found["written_by"].values == writer
        color = STYLES[row]["color"]
        ax.fill_between(at[here], low[here], high[here], color=color, alpha=0.15, lw=0)


# -------------------------------------------------------------------------------- rotations


def phase_plane(ax: Axes, found: xr.Dataset, units: Sequence[int] | None = None) -> None:
    """Mean trajectories of some units in the plane of activation and gradient over sublayers.

    Parameters
    ----------
    ax
        Axes; the legend is put above them. Both axes are in standard deviations over sublayers; a
        filled mark is the first sublayer, an open one the last.
    found
        From `lm.residual_dynamics`: ``mean`` (sublayer, feature), ``turns`` (feature).
    units
        Features; by default those at the 5 %, 50 % and 95 % quantile of turns.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, or there is another dim.
    """
    found = held(found, "mean", "turns", name="found", cure=_CURE)
    check_dims(found["mean"], "mean", ("sublayer", "feature"))
    turns = found["turns"].values
    mean = found["mean"].transpose("feature", "sublayer").values
    if units is None:
        known = np.flatnonzero(np.isfinite(turns))
        order = known[np.argsort(turns[known])]
        units = [int(order[int(share * (len(order) - 1))]) for share in (0.05, 0.5, 0.95)]
    for row, unit in enumerate(units):
        x, y = (_standard(v) for v in (mean[unit], np.gradient(mean[unit])))
        style = {**STYLES[row], "marker": None}
        ax.plot(x, y, label=f"unit {unit}: {turns[unit]:.1f} turns", **style)
        ends = {"color": style["color"], "ls": "none", "ms": 6, "zorder": 4}
        ax.plot(x[0], y[0], marker=STYLES[row]["marker"], **ends)
        ax.plot(x[-1], y[-1], marker=STYLES[row]["marker"], mfc="w", **ends)
    ax.set_xlabel("activation (standard deviations)")
    ax.set_ylabel("gradient over sublayers\n(standard deviations)")
    key_above(ax, ncols=1)


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() or 1.0)


def turns(ax: Axes, found: xr.Dataset) -> None:
    """How often units turn, beside the mean of the same units in shuffled orders of sublayers.

    Parameters
    ----------
    ax
        Axes; the legend is put above them.
    found
        From `lm.residual_dynamics`: ``turns`` and ``turns_shuffled`` (feature).

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, or there is another dim.
    """
    found = held(found, "turns", "turns_shuffled", name="found", cure=_CURE)
    real, shuffled = (
        _finite(found[name], name, ("feature",)) for name in ("turns", "turns_shuffled")
    )
    edges = np.histogram_bin_edges(np.concatenate([real, shuffled]), BINS).tolist()
    ax.hist(real, edges, color=BLUE, alpha=0.8, label="in the order of depth")
    ax.hist(shuffled, edges, histtype="step", color=BLACK, lw=1.4, label="shuffled orders, mean")
    ax.set_xlabel("turns of a unit over all sublayers, clockwise")
    ax.set_ylabel("units")
    key_above(ax, ncols=2)


def rotation_p_values(ax: Axes, found: xr.Dataset) -> None:
    """P-values of the units' turns against shuffled orders.

    Parameters
    ----------
    ax
        Axes; the legend is put above them. The line is what chance would give.
    found
        From `lm.residual_dynamics`: ``p_value`` and ``q_value`` (feature).

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, or there is another dim.
    """
    found = held(found, "p_value", "q_value", name="found", cure=_CURE)
    p, q = (_finite(found[name], name, ("feature",)) for name in ("p_value", "q_value"))
    low = float((q < 0.05).mean())
    label = f"units; {100 * low:.0f} % with $q < 0.05$"
    ax.hist(p, np.linspace(0, 1, 21).tolist(), color=ORANGE, edgecolor=BLACK, lw=0.5, label=label)
    ax.axhline(len(p) / 20, color=BLACK, ls="--", lw=1.0, label="by chance")
    ax.set_xlabel("p-value of a unit's turns")
    ax.set_ylabel("units")
    key_above(ax, ncols=2)


def _finite(values: xr.DataArray, name: str, dims: tuple[str, ...]) -> np.ndarray:
    check_dims(values, name, dims, finite=False)
    known = values.values[np.isfinite(values.values)]
    if not len(known):
        raise ValueError(f"`found.{name}` must have numbers; got none. {_CURE}")
    return known


# ----------------------------------------------------------------------------------- planes


def plane_trajectories(ax: Axes, found: xr.Dataset) -> None:
    """Trajectories in the plane of the first two principal components of all sublayers.

    Parameters
    ----------
    ax
        Axes; a colour bar of the sublayer is put beside them.
    found
        From `lm.residual_dynamics`: ``score`` (sublayer, trajectory, component), ``mean_score``
        (sublayer, component) and ``explained`` (component).

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, or there is another dim.
    """
    found = held(found, "score", "mean_score", "explained", name="found", cure=_CURE)
    check_dims(found["score"], "score", ("sublayer", "trajectory", "component"))
    check_dims(found["mean_score"], "mean_score", ("sublayer", "component"))
    score = found["score"].transpose("sublayer", "trajectory", "component").values
    _trajectories(ax, score, found["mean_score"].transpose("sublayer", "component").values)
    for name, share, number in zip("xy", found["explained"].values, (1, 2), strict=False):
        ax.set(**{f"{name}label": f"component {number} ({100 * share:.0f} % of the variance)"})


def code_trajectories(ax: Axes, found: xr.Dataset) -> None:
    """Trajectories in the plane of a compressing autoencoder.

    Parameters
    ----------
    ax
        Axes; a colour bar of the sublayer is put beside them.
    found
        From `lm.compress`, to two numbers: ``code`` (sublayer, prompt, dim), ``explained``
        (compressor).

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing, or there is another dim.
    """
    found = held(found, "code", "explained", name="found", cure=_COMPRESS)
    check_dims(found["code"], "code", ("sublayer", "prompt", "dim"))
    code = found["code"].transpose("sublayer", "prompt", "dim").values
    _trajectories(ax, code, code.mean(axis=1))
    share = {name: 100 * float(found["explained"].sel(compressor=name))
             for name in ("autoencoder", "pca")}  # fmt: skip
    ax.set_xlabel("first number of the code")
    ax.set_ylabel("second number of the code")
    ax.set_title(
        f"variance given back: {share['autoencoder']:.0f} % (PCA {share['pca']:.0f} %)",
        fontsize="medium",
    )


def _trajectories(ax: Axes, each: np.ndarray, mean: np.ndarray) -> None:
    """Single ones in grey, the mean with the sublayer as its colour."""
    for number in range(min(SHOWN, each.shape[1])):
        ax.plot(each[:, number, 0], each[:, number, 1], color=GREY, alpha=0.35, lw=0.6)
    ax.plot(mean[:, 0], mean[:, 1], color=BLACK, lw=1.2)
    drawn = ax.scatter(
        mean[:, 0], mean[:, 1], c=np.arange(len(mean)), s=26, cmap="viridis",
        edgecolors=BLACK, linewidths=0.5, zorder=3,
    )  # fmt: skip
    colour_bar(ax, drawn, "sublayer")


def teleportation(axes: Sequence[Axes], flown: xr.Dataset, *, moving: bool = False) -> None:
    """Where states that are put on a grid are carried: an arrow for each point, mean over prompts.

    Parameters
    ----------
    axes
        One Axes for each start; a colour bar is put below them. The ground is the share of prompts
        for which the point is inward; the circle and the cross are the prompts' own mean place at
        the start and the end.
    flown
        From `lm.teleport`.
    moving
        Whether arrows are of what is left without the prompts' own move: then they lead towards
        the circle where distances shrink, and the cross is left out.

    Raises
    ------
    TypeError
        If ``flown`` is not a Dataset.
    ValueError
        If a variable is missing, or there are not as many Axes as starts.
    """
    names = ("begin", "end", "own_begin", "own_end", "inward", "inward_share")
    flown = held(flown, *names, name="flown", cure=_FLOWN)
    check_dims(flown["begin"], "begin", ("start", "row", "column", "component"))
    if len(axes) != flown.sizes["start"]:
        raise ValueError(
            f"`axes` must be {flown.sizes['start']}, one for each start; got {len(axes)}. Make "
            f"them with `columns={flown.sizes['start']}`."
        )
    steps, drawn = flown.attrs.get("n_sublayers", ""), None
    for number, ax in enumerate(axes):
        one = flown.isel(start=number)
        begin = one["begin"].transpose("row", "column", "component").values
        end = one["end"].mean("prompt").transpose("row", "column", "component").values
        share = one["inward"].mean("prompt").transpose("row", "column").values
        drawn = ax.pcolormesh(
            begin[..., 0], begin[..., 1], share, cmap=_PALE, vmin=0, vmax=1, shading="nearest",
            rasterized=True,
        )  # fmt: skip
        move = end - begin
        if moving:
            move = move - (one["own_end"] - one["own_begin"]).mean("prompt").values
        ax.quiver(
            begin[..., 0], begin[..., 1], move[..., 0], move[..., 1], angles="xy",
            scale_units="xy", scale=1, color=BLUE, width=0.005,
        )  # fmt: skip
        places = (("own_begin", "o"), ("own_end", "X"))
        for name, marker in places[: 1 if moving else 2]:
            x, y = one[name].mean("prompt").values
            ax.plot(x, y, marker=marker, ms=9, color=ORANGE, mec=BLACK, ls="none", zorder=4)
        title = f"sublayer {int(one['start'])}, {steps} on"
        ax.set_title(f"{title}\n{100 * float(one['inward_share']):.0f} % inward", fontsize="medium")
        ax.set_xlabel("component 1")
        ax.set_ylabel("component 2")
    if drawn is not None:
        label = "share of prompts that end nearer to their own way"
        axes[0].figure.colorbar(
            drawn, ax=list(axes), location="bottom", shrink=0.4, aspect=40, label=label
        )


def inward_fractions(ax: Axes, flown: xr.Dataset) -> None:
    """The share of points that end nearer to the prompt's own way, by how far off they begin.

    Parameters
    ----------
    ax
        Axes; the legend is put above them.
    flown
        From `lm.teleport`: ``inward_fraction`` and ``radius`` (start, ring).

    Raises
    ------
    TypeError
        If ``flown`` is not a Dataset.
    ValueError
        If a variable is missing, or there is another dim.
    """
    flown = held(flown, "inward_fraction", "radius", name="flown", cure=_FLOWN)
    for name in ("inward_fraction", "radius"):
        check_dims(flown[name], name, ("start", "ring"), finite=False)
    for row in range(flown.sizes["start"]):
        one = flown.isel(start=row)
        style = STYLES[row % len(STYLES)]
        label = f"from sublayer {int(one['start'])}"
        known = one["inward_fraction"].notnull().values
        ax.plot(one["radius"][known], one["inward_fraction"][known], label=label, **style)
    ax.axhline(0.5, color=BLACK, lw=0.8, ls="--")
    ax.set_ylim(-0.03, 1.03)
    known = flown["radius"].values[np.isfinite(flown["radius"].values)]
    if len(known) and known.max() > FAR * known.min():
        ax.set_xscale("log")
    ax.set_xlabel("distance from their own place")
    ax.set_ylabel("share that ends nearer")
    key_above(ax, ncols=2)
