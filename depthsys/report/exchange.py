"""Systems and plans that go to other tools, in a line each."""

import numpy as np
import xarray as xr

from depthsys.export.control_vectors import written_blocks
from depthsys.files.strangers.limits import one_line
from depthsys.ltv.system import batch_sizes
from depthsys.report.table import Report, Table
from depthsys.wording import counted, number, percent


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


def vector_line(vector: xr.Dataset) -> str:
    """Sizes and pushes of a control vector."""
    pushes = np.append(vector["u"].values, vector["u_end"].values if "u_end" in vector else 0.0)
    pushed = np.flatnonzero(pushes).tolist()
    n_layers = len(pushes) - 1
    hint = one_line(vector.attrs.get("model_hint", ""), 100)
    told = "" if vector.attrs.get("n_layers_told", 1) else " or more (give --model)"
    where = "no pushes"
    if pushed:
        row = len(pushed) > 1 and pushed == [*range(pushed[0], pushed[-1] + 1)]
        depths = f"{pushed[0]} to {pushed[-1]}" if row else ", ".join(map(str, pushed))
        behind = f", of which {n_layers} is behind the last block" if pushes[-1] else ""
        sizes = abs(pushes[pushed])
        where = (
            f"pushes at depth{'s' * (len(pushed) > 1)} {depths}{behind}; sizes {sizes.min():.3g} "
            f"to {sizes.max():.3g}"
        )
    return (
        f"a control vector{f' for {hint}' if hint else ''}, {counted(n_layers, 'layer')}{told}, "
        f"{vector.sizes['feature']} features; {where}"
    )


def first_block_line(vector: xr.Dataset, path: object) -> str:
    """That llama.cpp does not take the vector as the GGUF at that path, and the cure; or nothing.

    It refuses a file with ``direction.0``, which repeng reads.
    """
    blocks = written_blocks(vector)
    if 0 not in blocks:
        return ""
    said = "llama.cpp refuses a file with direction.0"
    if not any(blocks):
        return f"{said}, which is all that this one has"
    last = vector.sizes["layer"] - 1
    return (
        f"{said}, as this one has. `depthsys import {path} --layer-range 1:{last} --out ...` and "
        "`depthsys export` leave it out"
    )


def effect(result: xr.Dataset) -> Report:
    """What `study.verify` found: shifts of readouts, and how large the pushes are."""
    verdicts = [_effect_verdict(result)]
    if "warning" in result.attrs:
        verdicts.append(f"WARNING: {result.attrs['warning']}")
    return Report([_shifts(result), _push_sizes(result)], verdicts)


_READ = {"concept": "the concept of TEXTS", "own": "its own last direction"}


def _shifts(result: xr.Dataset) -> Table:
    rows = []
    for output in result["output"].values:
        mean = result["response_mean"].sel(output=output)
        rows.append(
            (
                _READ[str(output)],
                *(_interval(mean.sel(tokens=tokens).values) for tokens in ("last", "every")),
                _interval(result["predicted_mean"].sel(output=output).values),
                number(float(result["readout_std"].sel(output=output))),
            )
        )
    header = ("shift of", "last token", "every token", "linear, last token", "std of prompts")
    return Table(header, rows, left=header)


def _interval(values: np.ndarray) -> str:
    """Estimate, low and high, with as many digits as tell them apart."""
    estimate, *bounds = map(float, values)
    shown = ", ".join(number(bound) for bound in bounds)
    return number(estimate) + (f" [{shown}]" if np.isfinite(bounds).all() else "")


def _push_sizes(result: xr.Dataset) -> Table:
    mean, most = result["push_mean"].values, result["push_max"].values
    rows = [
        (str(depth), percent([mean[at]]), percent([most[at]]))
        for at, depth in enumerate(result["depth"].values)
        if most[at]
    ]
    header = ("depth", "push / norm of the state, mean", "largest")
    return Table(header, rows, left=header)


def _effect_verdict(result: xr.Dataset) -> str:
    mean = result["response_mean"].sel(output="concept")
    last, every = (mean.sel(tokens=tokens).values for tokens in ("last", "every"))
    predicted = float(result["predicted_mean"].sel(output="concept", bound="estimate"))
    std = float(result["readout_std"].sel(output="concept"))
    text = f"at every token it moves the concept by {_interval(every)}"
    if std > 0:
        text += f", {number(every[0] / std, 2)} standard deviations of the prompts"
    text += f"; at the last token alone by {_interval(last)}, where linear systems say "
    text += number(predicted)
    if np.isfinite(every[1:]).all() and every[1] <= 0 <= every[2]:
        return f"{text}. Its effect on the concept cannot be told from none"
    if every[0] < 0:
        return f"{text}. It moves the concept backwards: `--strength -1` turns it around"
    return text


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
