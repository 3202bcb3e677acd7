"""Energies of schedules on the full model, and what they say."""

import json

import xarray as xr

from depthsys.report.table import Report, Table
from depthsys.wording import asked_for, percent


def control(energies: xr.Dataset) -> Report:
    """What `study.control` or `study.verify_plan` found."""
    return Report([_schedules(energies)], verdicts(energies))


def verdicts(energies: xr.Dataset) -> list[str]:
    """What the energies say."""
    found = [_verdict(energies)]
    if "miss" in energies:
        found.append(miss(energies))
    if "achieved" in energies:
        found += _linearity(energies)
    return found


def schedule_name(energies: xr.Dataset, name: str) -> str:
    """A schedule in words, with the layer of a single one."""
    layer = int(energies["layer_pushed"].sel(schedule=name))
    single = f" ({layer})" if layer >= 0 and "random" not in name else ""
    return name.replace("_", " ") + single


def _schedules(energies: xr.Dataset) -> Table:
    rows = []
    for name in map(str, energies["schedule"].values):
        row = energies.sel(schedule=name)
        reached = bool(row["reached"])
        remark = "" if bool(row["monotone"]) else "  (not monotone)"
        rows.append(
            (
                schedule_name(energies, name),
                with_interval(row, "energy", 4) if reached else "not reached",
                f"{with_interval(row, 'multiple', 3)}{_range(energies, name)}{remark}"
                if reached
                else f"-{remark}",
                percent([float(row["largest_push"])]) if reached else "-",
            )
        )
    header = ("schedule", "energy", "multiple", "largest push")
    return Table(header, rows, left=header)


def _range(energies: xr.Dataset, name: str) -> str:
    """Least and largest multiple of a layer that is drawn at random."""
    if name != "random_single_layer" or "random_multiple" not in energies:
        return ""
    ends = energies["random_multiple"].values[[0, -1]]
    least, most = ("not reached" if not end < float("inf") else f"{end:.3g}" for end in ends)
    return f", of all {least} to {most}"


def with_interval(row: xr.Dataset, name: str, digits: int) -> str:
    """A number and, where it has one, its interval."""
    value, low, high = (float(row[n]) for n in (name, f"{name}_low", f"{name}_high"))
    shown = f"{value:.{digits}g}"
    # a schedule has no interval against itself, and infinity is no end of one
    if not (low < value < high < float("inf")):
        return shown
    return f"{shown} [{low:.{digits}g}, {high:.{digits}g}]"


def _verdict(energies: xr.Dataset) -> str:
    target = f"{float(energies.attrs['target']):.3g}{asked_for(energies.attrs)}"
    mine = energies.sel(schedule=energies.attrs["reference"])
    planned = float(energies.attrs.get("plan_energy", energies["predicted_energy"]))
    found = float(mine["energy"])
    if found != found:
        return f"the planned schedule does not reach a shift of {target} on the full model"
    factor = found / planned
    off = "" if 1 / 1.1 < factor < 1.1 else f" ({factor:.2g} times that)"
    return (
        f"a shift of {target} takes {energies.attrs['energy']} energy "
        f"{with_interval(mine, 'energy', 4)} on the full model, planned {planned:.4g}{off}; "
        f"{_cheaper(energies)}"
    )


def _cheaper(energies: xr.Dataset) -> str:
    """Which schedules need less energy, and whether that is more than chance."""
    below = energies["multiple"] < 1
    surely = below & (energies["multiple_high"] < 1)
    parts = []
    for chosen, how in (
        (surely, "cheaper on the full model"),
        (below & ~surely, "cheaper by less than its interval"),
    ):
        names = energies["schedule"].values[chosen.values]
        if len(names):
            parts.append(f"{how}: {', '.join(schedule_name(energies, str(n)) for n in names)}")
    return "; ".join(parts) or "no schedule of those compared is cheaper"


def _linearity(energies: xr.Dataset) -> list[str]:
    """How far what was achieved is from what was predicted; where the plan may not push."""
    first = energies["played"].values[0]
    rows = energies.sel(played=first)
    parts = [
        f"{float(achieved / rows['predicted'].sel(amplitude=a)):.3g} at {a:g}"
        for a in (1.0, 3.0)
        for achieved in [rows["achieved"].sel(amplitude=a, bound="estimate")]
    ]
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


def miss(energies: xr.Dataset) -> str:
    """Why the plan misses its target on held-out prompts, in numbers."""
    parts = energies["miss"].drop_sel(cause="total")
    rounded = [value if abs(value) >= 1e-6 else 0.0 for value in parts.values.tolist()]
    sizes = [
        f"{cause} {part:+.3g}" for cause, part in zip(parts["cause"].values, rounded, strict=True)
    ]
    largest = str(parts["cause"].values[int(abs(parts.values).argmax())])
    return (
        f"played as planned it reaches {float(energies['progress']):.3g} of the target on held-out "
        f"prompts; of the miss, in parts of the target: {', '.join(sizes)}; the largest is "
        f"{largest}"
    )
