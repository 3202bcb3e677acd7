"""Figures of schedules and of the energy they take."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from depthsys.plot.style import BLACK, BLUE, GREY, STYLES, layer_axis, mark_undefined
from depthsys.wording import asked_for

LARGE = 0.3  # ltv.plan.LARGE_PUSH: plots import no wing


def schedule(ax: Axes, energies: xr.Dataset) -> None:
    """The minimum-energy injection per layer: ``u`` (layer) or (layer, input)."""
    u = energies["u"]
    if "input" not in u.dims:
        u = u.expand_dims(input=1)
    n_inputs = u.sizes["input"]
    hatches = ["", "///", "...", "xxx"]
    for i in range(n_inputs):
        shift = 0.7 * ((i + 0.5) / n_inputs - 0.5)
        style: dict = {"color": BLUE} if i == 0 else {"facecolor": "w", "edgecolor": BLUE}
        values = u.isel(input=i)
        hatch = hatches[i % len(hatches)]
        label = f"input {i}"
        ax.bar(u["layer"] + shift, values, width=0.7 / n_inputs, hatch=hatch, label=label, **style)
    if n_inputs > 1:
        ax.legend(frameon=False, fontsize="small")
    ax.axhline(0, color=BLACK, lw=0.8)
    if "single_energy" in energies and "direction_note" in energies.attrs:
        zero = (u == 0).all("input")
        mark_undefined(ax, ~(energies["single_energy"].isnull() & zero))
    layer_axis(ax)
    ax.set_ylabel("injection $u_l$ (unit of the state)")
    if "target" in energies.attrs:
        shift = float(energies.attrs["target"])
        ax.set_title(f"minimum-energy schedule for a shift of {shift:.3g}")


def pushes(ax: Axes, plan: xr.Dataset) -> None:
    """Push of every layer over the norm of its state, with the sign of u where there is one input.

    Uses ``push``, ``u`` and, for the plan of the linear system beside them, ``linear_push`` and
    ``linear_u``. A line marks 0.3, above which nothing linear can be expected, where it is near.
    """
    rows: list[tuple[str, str, str, dict]] = [("push", "u", "plan", {"color": BLUE})]
    if "linear_push" in plan:
        other = {"facecolor": "w", "edgecolor": BLACK, "hatch": "///"}
        rows[0] = ("push", "u", "optimum of the full model", {"color": BLUE})
        rows.append(("linear_push", "linear_u", "plan of the linear system", other))
    width, most = 0.8 / len(rows), 0.0
    for i, (name, of, label, style) in enumerate(rows):
        u = plan[of]
        single = "input" not in u.dims or u.sizes["input"] == 1
        sign = np.sign(u.values.reshape(-1)) if single else 1.0
        at = plan["layer"].values + width * (i - (len(rows) - 1) / 2)
        ax.bar(at, sign * plan[name].values, width=width, label=label, **style)
        most = max(most, float(plan[name].max()))
    ax.axhline(0, color=BLACK, lw=0.8)
    if most > 0.5 * LARGE:
        ax.axhline(LARGE, color=GREY, lw=0.8, ls="--")
        ax.text(1, LARGE, " 0.3", transform=ax.get_yaxis_transform(), va="center", fontsize="small")
    layer_axis(ax)
    ax.set_ylabel("push / norm of the state")
    if len(rows) > 1:
        ax.legend(frameon=False, fontsize="small")
    target = float(plan["target"].values.ravel()[0])
    ax.set_title(f"shift of {target:.3g}{asked_for(plan.attrs)}, {plan.attrs['energy']} energy")


def energies(ax: Axes, energies: xr.Dataset) -> None:
    """Energy of every schedule as a multiple of the reference's, log scale, with intervals.

    Uses ``multiple`` and its ``_low`` and ``_high``, ``monotone``, ``layer_pushed`` (schedule) and
    attrs ``target``, ``energy``, ``reference``.
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
    ax.barh(rows[finite], known - 1, left=1, color=BLUE, height=0.6)
    ends = [energies[f"multiple_{end}"].values for end in ("low", "high")]
    wide = np.isfinite(multiple) & np.isfinite(ends[0]) & np.isfinite(ends[1])
    off = np.abs([multiple[wide] - ends[0][wide], ends[1][wide] - multiple[wide]])
    style = {"fmt": "o", "color": BLACK, "ms": 5, "capsize": 3, "lw": 1.2}
    ax.errorbar(multiple[wide], rows[wide], xerr=off, **style)
    ax.plot(multiple[finite & ~wide], rows[finite & ~wide], "o", color=BLACK, ms=5)
    ax.set_xscale("log")
    low, high = (known.min(), known.max()) if len(known) else (1.0, 1.0)
    ax.set_xlim(min(0.5, low / 3), max(10.0, high * 30))
    for row, value, smooth in zip(rows, multiple, energies["monotone"].values, strict=True):
        text = f"{value:.3g} x" if np.isfinite(value) else "not reached"
        text += "" if smooth else " (not monotone)"
        end = ends[1][row] if wide[row] else value
        at = max(end, 1.0) if np.isfinite(value) else 1.0
        ax.annotate(text, (at, row), (8, 0), textcoords="offset points", va="center", fontsize=9)
    ax.axvline(1, color=BLACK, lw=1)
    ax.set_yticks(rows, names)
    ax.invert_yaxis()
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
