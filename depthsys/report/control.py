"""Energies of schedules on the full model, and what they say."""

import json

import xarray as xr

from depthsys.report.stage import Stage, names_of
from depthsys.report.table import Report, Table
from depthsys.wording import asked_for, percent


def control(energies: xr.Dataset) -> Report:
    """What `study.control` or `study.verify_plan` found."""
    found = Stage.of(energies)
    return Report([_schedules(found)], verdicts(found))


def verdicts(energies: Stage) -> list[str]:
    """What the energies say."""
    found = [_verdict(energies)]
    if "miss" in energies:
        found.append(miss(energies))
    if "achieved" in energies:
        found += _linearity(energies)
    return found


def schedule_name(energies: Stage, name: str) -> str:
    """A schedule in words, with the layer of a single one."""
    layer = int(energies.value("layer_pushed", schedule=name))
    single = f" ({layer})" if layer >= 0 and "random" not in name else ""
    return name.replace("_", " ") + single


def _schedules(energies: Stage) -> Table:
    rows = []
    for name in names_of(energies, "schedule"):
        reached = bool(energies.value("reached", schedule=name))
        remark = "" if energies.value("monotone", schedule=name) else "  (not monotone)"
        largest = float(energies.value("largest_push", schedule=name))
        rows.append(
            (
                schedule_name(energies, name),
                with_interval(energies, name, "energy", 4) if reached else "not reached",
                f"{with_interval(energies, name, 'multiple', 3)}{_range(energies, name)}{remark}"
                if reached
                else f"-{remark}",
                percent([largest]) if reached else "-",
            )
        )
    header = ("schedule", "energy", "multiple", "largest push")
    return Table(header, rows, left=header)


def _range(energies: Stage, name: str) -> str:
    """Least and largest multiple of a layer that is drawn at random."""
    if name != "random_single_layer" or "random_multiple" not in energies:
        return ""
    ends = energies.value("random_multiple")[[0, -1]]
    least, most = ("not reached" if not end < float("inf") else f"{end:.3g}" for end in ends)
    return f", of all {least} to {most}"


def with_interval(energies: Stage, schedule: str, name: str, digits: int) -> str:
    """A number of a schedule and, where it has one, its interval."""
    value, low, high = (
        float(energies.value(n, schedule=schedule)) for n in (name, f"{name}_low", f"{name}_high")
    )
    shown = f"{value:.{digits}g}"
    # a schedule has no interval against itself, and infinity is no end of one
    if not (low < value < high < float("inf")):
        return shown
    return f"{shown} [{low:.{digits}g}, {high:.{digits}g}]"


def _verdict(energies: Stage) -> str:
    target = f"{float(energies.attrs['target']):.3g}{asked_for(energies.attrs)}"
    mine = str(energies.attrs["reference"])
    planned = float(energies.attrs.get("plan_energy", energies.value("predicted_energy")))
    found = float(energies.value("energy", schedule=mine))
    if found != found:
        return f"the planned schedule does not reach a shift of {target} on the full model"
    factor = found / planned
    off = "" if 1 / 1.1 < factor < 1.1 else f" ({factor:.2g} times that)"
    takes = with_interval(energies, mine, "energy", 4)
    return (
        f"a shift of {target} takes {energies.attrs['energy']} energy "
        f"{takes} on the full model, planned {planned:.4g}{off}; "
        f"{_cheaper(energies)}"
    )


def _cheaper(energies: Stage) -> str:
    """Which schedules need less energy, and whether that is more than chance."""
    below = energies.value("multiple") < 1
    surely = below & (energies.value("multiple_high") < 1)
    parts = []
    for chosen, how in (
        (surely, "cheaper on the full model"),
        (below & ~surely, "cheaper by less than its interval"),
    ):
        names = energies.value("schedule")[chosen]
        if len(names):
            parts.append(f"{how}: {', '.join(schedule_name(energies, str(n)) for n in names)}")
    return "; ".join(parts) or "no schedule of those compared is cheaper"


def _linearity(energies: Stage) -> list[str]:
    """How far what was achieved is from what was predicted; where the plan may not push."""
    first = energies.value("played").tolist()[0]
    parts = []
    for amplitude in (1.0, 3.0):
        at = {"played": first, "amplitude": amplitude}
        achieved = energies.value("achieved", **at, bound="estimate")
        where = {n: at[n] for n in at if n in energies.variables["predicted"][0]}
        parts.append(
            f"{float(achieved / energies.value('predicted', **where)):.3g} at {amplitude:g}"
        )
    said = [
        "achieved over linearly predicted shift of the plan, by how many times it is played: "
        f"{', '.join(parts)}"
    ]
    allowed = json.loads(str(energies.attrs.get("layers", "[]")))
    if allowed and len(allowed) < energies.sizes["layer"]:
        said.append(
            f"the plan may push at {len(allowed)} of {energies.sizes['layer']} layers; those that "
            "it is compared with may push anywhere"
        )
    if "warning" in energies.attrs:
        said.append(f"WARNING, of the plan: {energies.attrs['warning']}")
    return said


def miss(energies: Stage) -> str:
    """Why the plan misses its target on held-out prompts, in numbers."""
    parts = dict(zip(names_of(energies, "cause"), energies.value("miss").tolist(), strict=True))
    del parts["total"]
    rounded = {cause: part if abs(part) >= 1e-6 else 0.0 for cause, part in parts.items()}
    sizes = [f"{cause} {part:+.3g}" for cause, part in rounded.items()]
    largest = max(parts, key=lambda cause: abs(parts[cause]))
    reached = float(energies.value("progress"))
    return (
        f"played as planned it reaches {reached:.3g} of the target on held-out "
        f"prompts; of the miss, in parts of the target: {', '.join(sizes)}; the largest is "
        f"{largest}"
    )
