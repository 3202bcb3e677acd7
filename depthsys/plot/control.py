"""Figures of schedules and of the energy they take."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from depthsys.plot.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    SKY,
    STYLES,
    key_above,
    layer_axis,
    log_axis,
    log_range,
    mark_undefined,
    percent_axis,
    plain_log,
    thinned,
)
from depthsys.plot.table import held, times
from depthsys.wording import asked_for

LARGE = 0.3  # ltv.plan.LARGE_PUSH: plots import no wing
BARS = 60  # more bars than that are too thin for hatches: outlines stand for them
_FILLS: list[dict] = [
    {"color": BLUE},
    {"facecolor": "w", "edgecolor": BLACK, "hatch": "///"},
    {"facecolor": ORANGE, "edgecolor": BLACK},
    {"facecolor": "w", "edgecolor": BLACK, "hatch": "..."},
]
_OUTLINES: list[dict] = [
    {"color": style["color"], "ls": style["ls"], "lw": 1.2} for style in (STYLES[0], *STYLES[2:])
]


def schedule(ax: Axes, energies: xr.Dataset) -> None:
    """The minimum-energy injection per layer: ``u`` (layer) or (layer, input)."""
    u = energies["u"]
    if "input" not in u.dims:
        u = u.expand_dims(input=1)
    rows = [(f"input {i}", u.isel(input=i).values) for i in range(u.sizes["input"])]
    _bars(ax, u["layer"].values, rows)
    if "single_energy" in energies and "direction_note" in energies.attrs:
        zero = (u == 0).all("input")
        mark_undefined(ax, ~(energies["single_energy"].isnull() & zero))
    ax.set_ylabel("injection $u_l$ (unit of the state)")
    if "target" in energies.attrs:
        shift = float(energies.attrs["target"])
        ax.set_title(f"minimum-energy schedule for a shift of {shift:.3g}")


def pushes(ax: Axes, plan: xr.Dataset) -> None:
    """Push of every layer over the norm of its state, with the sign of u where there is one input.

    Uses ``push``, ``u`` and, for the plan of the linear system beside them, ``linear_push`` and
    ``linear_u``. A line marks 0.3, above which nothing linear can be expected, where it is near.
    """
    named = [("push", "u", "plan")]
    if "linear_push" in plan:
        named = [
            ("push", "u", "optimum of the full model"),
            ("linear_push", "linear_u", "plan of the linear system"),
        ]
    rows = []
    for name, of, label in named:
        u = plan[of]
        single = "input" not in u.dims or u.sizes["input"] == 1
        sign = np.sign(u.values.reshape(-1)) if single else 1.0
        rows.append((label, sign * plan[name].values))
    _bars(ax, plan["layer"].values, rows)
    lowest, highest = (end(0.0, *(end(values) for _, values in rows)) for end in (min, max))
    for mark in (-LARGE, LARGE):
        if 0.5 * LARGE < np.sign(mark) * (highest if mark > 0 else lowest):
            ax.axhline(mark, color=GREY, lw=0.8, ls="--")
            side = ax.get_yaxis_transform()
            ax.text(1, mark, f" {mark:g}", transform=side, va="center", fontsize="small")
    ax.set_ylabel("push / norm of the state")
    target = float(plan["target"].values.ravel()[0])
    ax.set_title(f"shift of {target:.3g}{asked_for(plan.attrs)}, {plan.attrs['energy']} energy")


def _bars(ax: Axes, layers: np.ndarray, rows: list[tuple[str, np.ndarray]]) -> None:
    """Bars side by side at every layer, or outlines over the layers where these are many."""
    many = len(rows) * len(layers) > BARS
    width = (0.8 if len(rows) > 1 else 0.7) / len(rows)
    edges = np.append(layers - 0.5, layers[-1:] + 0.5)
    for i, (label, values) in enumerate(rows):
        if many:
            filled = {"color": BLUE, "fill": True, "alpha": 0.5}
            style = filled if i == 0 else _OUTLINES[(i - 1) % len(_OUTLINES)]
            ax.stairs(values, edges, label=label, **style)
        else:
            at = layers + width * (i - (len(rows) - 1) / 2)
            ax.bar(at, values, width=width, label=label, **_FILLS[i % len(_FILLS)])
    ax.axhline(0, color=BLACK, lw=0.8)
    layer_axis(ax)
    if len(rows) > 1:
        key_above(ax, ncols=min(len(rows), 4))


def layer_energies(ax: Axes, plan: xr.Dataset, weights: xr.DataArray | None = None) -> None:
    r"""Energy of a schedule layer by layer, in percent of the whole.

    The energy of layer l is :math:`w_l \sum_i u_{l,i}^2`. A dashed line stands at the layer with
    which the sum from the first layer on reaches half of the energy.

    Parameters
    ----------
    ax
        Axes; the legend is put above it.
    plan
        A schedule: ``u`` (layer) or (layer, input).
    weights
        :math:`w_l` (layer). By default 1, or for a plan of relative energy what its ``push`` (and
        ``direction``) say, 1 over the squared norm of the state.

    Raises
    ------
    TypeError
        If ``plan`` is not a Dataset.
    ValueError
        If there is no ``u``, there are other dims, its relative energy is asked for without
        ``push`` or weights, or the weights are not positive, one per layer.

    Examples
    --------
    >>> from depthsys import ltv, plot
    >>> s = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=3)
    >>> fig, (ax,) = plot.figure()
    >>> plot.layer_energies(ax, ltv.minimum_energy(s, [1.0]))
    >>> [f"{bar.get_height():.1f} %" for bar in ax.patches]
    ['4.8 %', '19.0 %', '76.2 %']
    """
    cure = "Give a plan, as from `ltv.minimum_energy`."
    u = held(plan, "u", name="plan", cure=cure)["u"]
    if not {"layer"} <= set(u.dims) <= {"layer", "input"}:
        raise ValueError(
            f"`plan` must hold u with dims ('layer',) or ('layer', 'input'); got {u.dims}. "
            "Select one schedule."
        )
    layers = np.arange(u.sizes["layer"]) if "layer" not in u.coords else u["layer"].values
    each = _weights(plan, weights) * (u**2).sum([dim for dim in u.dims if dim != "layer"]).values
    whole = float(each.sum())
    shares = 100 * each / (whole if whole > 0 else 1.0)
    kind = "" if weights is not None else f"{plan.attrs.get('energy', 'absolute')} "
    _bars(ax, layers, [("energy of the layer", shares)])
    if whole > 0:
        half = layers[int(np.searchsorted(np.cumsum(shares), 50.0 * (1 - 1e-12)))]
        text = f"half of the energy: layers up to {half}"
        ax.axvline(half, color=BLACK, lw=1, ls="--", label=text)
        key_above(ax, ncols=2)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("share of the energy (%)")
    ax.set_title(f"{kind}energy {whole:.3g}" if whole > 0 else "no energy: nothing is pushed")


def _weights(plan: xr.Dataset, weights: xr.DataArray | None) -> np.ndarray:
    """Cost of a squared push at every layer."""
    u = plan["u"] if "input" in plan["u"].dims else plan["u"].expand_dims(input=1)
    if weights is not None:
        given = np.asarray(weights, dtype=float)
        if given.shape != (u.sizes["layer"],) or not ((given > 0) & np.isfinite(given)).all():
            raise ValueError(
                f"`weights` must be {u.sizes['layer']} positive numbers, one per layer; got shape "
                f"{given.shape}, least {given.min(initial=np.inf):.3g}. Take "
                "`1 / system.state_norm[:-1] ** 2`."
            )
        return given
    if plan.attrs.get("energy", "absolute") == "absolute":
        return np.ones(u.sizes["layer"])
    if "push" not in plan or (u.sizes["input"] > 1 and "direction" not in plan):
        raise ValueError(
            "`weights` must be given for relative energy where the plan has no 'push' (layer) and "
            "'direction'; got None. Take `1 / system.state_norm[:-1] ** 2`."
        )
    length = abs(u).sum("input")
    if "direction" in plan:
        there = plan["direction"].isel(depth=slice(u.sizes["layer"])).fillna(0.0).values
        moved = np.einsum("li,lif->lf", u.transpose("layer", "input").values, there)
        length = length.copy(data=np.linalg.norm(moved, axis=-1))
    norm = length.values
    return np.where(norm > 0, plan["push"].values / np.where(norm > 0, norm, 1.0), 0.0) ** 2


def single_layer_energies(ax: Axes, energies: xr.Dataset) -> None:
    """Energy that each layer alone needs on the full model, log axis, beside the best schedule's.

    Parameters
    ----------
    ax
        Axes; the legend is put above it.
    energies
        From `lm.compare_energies`: ``single_energy`` (layer), NaN where that layer alone does not
        reach the target, ``energy`` (schedule) and attrs ``energy``, ``target``.

    Raises
    ------
    TypeError
        If ``energies`` is not a Dataset.
    ValueError
        If a variable is missing.

    Examples
    --------
    >>> import xarray as xr
    >>> from depthsys import plot
    >>> found = xr.Dataset(
    ...     {"single_energy": ("layer", [float("nan"), 9.0, 4.0]), "energy": ("schedule", [1.5])},
    ...     coords={"layer": range(3), "schedule": ["minimum_energy"]},
    ...     attrs={"energy": "relative", "target": 2.0},
    ... )
    >>> fig, (ax,) = plot.figure()
    >>> plot.single_layer_energies(ax, found)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['the layer alone', 'minimum energy', 'not reached by the layer alone']
    """
    cure = "Make it with `depthsys control`."
    held(energies, "single_energy", "energy", name="energies", cure=cure)
    single = energies["single_energy"].values
    layers = energies["layer"].values
    known = np.isfinite(single)
    style = {"color": BLUE, "marker": "o", "ms": 5, "lw": 1.0}
    marks = thinned(single, most=40)
    ax.plot(layers, single, label="the layer alone", markevery=marks, **style)
    best = str(energies.attrs.get("reference", "minimum_energy"))
    names = energies["schedule"].values.tolist()
    least = float(energies["energy"][names.index(best)]) if best in names else np.nan
    bottom, top = log_range(single, np.array([least]), tiny=0.0)
    log_axis(ax)
    ax.set_ylim(bottom, top)
    percent_axis(ax)
    if np.isfinite(least):
        ax.axhline(least, color=BLACK, ls="--", lw=1, label=best.replace("_", " "))
    if not known.all():
        # against the upper edge: more than any number of this axis
        tips = np.full((~known).sum(), 0.97)
        aside = ax.get_xaxis_transform()
        mark: dict = {"ls": "none", "marker": "^", "mfc": "w", "color": BLUE, "transform": aside}
        ax.plot(layers[~known], tips, label="not reached by the layer alone", **mark)
    layer_axis(ax)
    key_above(ax, ncols=3)
    kind = str(energies.attrs["energy"])
    ax.set_ylabel(f"{kind} energy on the full model")
    ax.set_title(f"shift of {energies.attrs['target']:.3g} by one layer alone")


def energies(ax: Axes, energies: xr.Dataset) -> None:
    """Energy of every schedule as a multiple of the reference's, log scale, with intervals.

    Uses ``multiple`` and, where they are known, its ``_low`` and ``_high``; ``monotone`` and
    ``layer_pushed`` (schedule) and attrs ``target``, ``energy``, ``reference``. An interval that
    ends in "not reached" runs to the edge, with an arrow.
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
    ax.barh(rows[finite], known - 1, left=1, color=SKY, height=0.6)
    unknown = np.full_like(multiple, np.nan)
    low, high = (
        energies[name].values if name in energies else unknown
        for name in ("multiple_low", "multiple_high")
    )
    ax.set_xscale("log")
    ends = [values[finite & np.isfinite(values)] for values in (low, high)]
    every = np.concatenate([known, *ends, np.ones(1)])
    left, right = every.min() / 1.5, max(every.max(), 2.0)
    right *= (right / left) ** 0.6  # room for the numbers beside the bars
    ax.set_xlim(left, right)
    # the interval in the lower half of its bar, the number beside the bar in the upper half
    for row in rows[finite & np.isfinite(low)]:
        closed = np.isfinite(high[row])
        end = high[row] if closed else right
        ax.hlines(row + 0.18, low[row], end, color=BLACK, lw=1.2)
        tips = [low[row], end] if closed else [low[row]]
        ax.plot(tips, [row + 0.18] * len(tips), "|", color=BLACK, ms=6)
        if not closed:
            ax.plot(right, row + 0.18, ">", color=BLACK, ms=5, clip_on=False)
    ax.plot(multiple[finite], rows[finite] + 0.18, "o", color=BLACK, ms=4)
    for row, value, smooth in zip(rows, multiple, energies["monotone"].values, strict=True):
        text = times(value) if np.isfinite(value) else "not reached"
        text += "" if smooth else " (not monotone)"
        at = max(value, 1.0) if np.isfinite(value) else 1.0
        offset: dict = {"textcoords": "offset points", "va": "center", "fontsize": "small"}
        ax.annotate(text, (at, row - 0.14 * np.isfinite(value)), (5, 0), **offset)
    ax.axvline(1, color=BLACK, lw=1)
    ax.set_yticks(rows, names)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    if right / left < 1e6:
        plain_log(ax.xaxis, left, right)
    reference = str(energies.attrs["reference"]).replace("_", " ")
    ax.set_xlabel(f'energy on the full model / that of the schedule "{reference}"')
    ax.set_title(f"shift of {energies.attrs['target']:.3g}, {energies.attrs['energy']} energy")


def achieved(ax: Axes, energies: xr.Dataset) -> None:
    """Achieved against wanted shift, in units of the target, with 95 % bands over prompts.

    Uses ``achieved`` (played, amplitude, bound), ``predicted`` (played, amplitude), attrs
    ``target``. The line is what a linear model would do.
    """
    target = float(energies.attrs["target"])
    most = 0.0
    for row, name in enumerate(energies["played"].values):
        one, style = energies.sel(played=name), STYLES[row]
        wanted = one["predicted"].values / target
        mean, low, high = (
            one["achieved"].sel(bound=b) / target for b in ("estimate", "low", "high")
        )
        ax.fill_between(wanted, low, high, color=style["color"], alpha=0.15, lw=0)
        ax.plot(wanted, mean, label=str(name).replace("_", " "), **style)
        most = max(most, float(wanted.max()))
    ax.plot([0, most], [0, most], color=GREY, lw=0.8, ls="--", label="as predicted")
    ax.legend(frameon=False, fontsize="small")
    ax.set_xlabel("shift predicted by the linear system / target")
    ax.set_ylabel("mean shift on held-out prompts / target")
    ax.set_title(f"target {target:.3g}")
