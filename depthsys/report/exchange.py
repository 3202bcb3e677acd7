"""Systems and plans that go to other tools, in a line each."""

import numpy as np
import xarray as xr

from depthsys.files.strangers.limits import one_line
from depthsys.ltv.system import batch_sizes
from depthsys.wording import counted, percent


def system_line(system: xr.Dataset) -> str:
    """Sizes, names and origin of a system."""
    parts = [counted(system.sizes["layer"], "layer")]
    parts += [f"up to {counted(int(system['order'].max()), 'state')}"]
    for dim in ("input", "output"):
        names = [one_line(name, 40) for name in system[f"{dim}_name"].values]
        shown = ", ".join(names[:4] + ["..."] * (len(names) > 4))
        parts.append(f"{counted(len(names), dim)} ({shown})")
    parts += [counted(n, dim) for dim, n in batch_sizes(system).items()]
    origin = [one_line(system.attrs[k], 200) for k in ("model", "method") if k in system.attrs]
    return ", ".join(parts) + (f"; {', '.join(origin)}" if origin else "")


def plan_line(plan: xr.Dataset) -> str:
    """Target and energy of a steering plan, as far as it says."""
    told = [f"target {float(plan.attrs['target']):.4g}"] if "target" in plan.attrs else []
    told += [f"sum of u^2 {float((plan['u'] ** 2).sum()):.4g}"]
    if {"energy", "predicted_energy"} <= set(plan) and "schedule" in plan["energy"].dims:
        needed = float(plan["energy"].sel(schedule="minimum_energy") / plan["predicted_energy"])
        if np.isfinite(needed):
            told += [f"the full model needs {needed**0.5:.3g} times these vectors for its target"]
    return ", ".join(told)


def unexpressed_line(lost: float) -> str:
    """What a control vector leaves out, a fraction of the energy of its plan."""
    return f"LEFT OUT: {percent([lost])} of its energy, the pushes at layers 0 and 1"


def difference_line(found: xr.Dataset, path: object) -> str:
    """What `study.exchange.difference` found against the system at that path."""
    induced, h2 = float(found["induced"]), float(found["h2"])
    if not np.isfinite(induced):
        return f"- against {path}: its input-output map is zero, there is nothing to compare with"
    renamed = " and ".join(f"{dim}s" for dim in found.attrs["renamed"].split())
    note = f"; the names of its {renamed} differ" if renamed else ""
    before, after = found["states"].values
    return (
        f"- against {path} its input-output map differs by {induced:.3g} (induced norm) and "
        f"{h2:.3g} (H2), relative; states: {before} -> {after}{note}"
    )


def next_step_line(
    out: object, *, single: bool, known: bool, lacking: set[str], compared: bool
) -> str:
    """How to check a system on the language model, or why that cannot be done.

    Parameters
    ----------
    out
        Where it is.
    single
        Whether it is of single prompts.
    known, lacking
        Whether it says of which model and texts it is, and what it lacks to go on from it.
    compared
        Whether the system that was sent was given.
    """
    if single:
        return (
            "It is of single prompts: `depthsys gains` takes systems of a task; in Python use "
            "`lm.agreement`."
        )
    if not lacking:
        return f"Check it on the language model: `depthsys gains {out} --out ...`."
    hint = "" if compared else " Give the system that was sent: --original SYSTEM.nc."
    if not known:
        return f"It does not say of which model and texts it is.{hint}"
    return f"It lacks what `depthsys gains` needs: {', '.join(sorted(lacking))}.{hint}"
