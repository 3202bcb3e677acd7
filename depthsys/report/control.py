"""Energies of schedules on the full model, and what they say."""

import xarray as xr

from depthsys.report.table import Report, Table


def control(energies: xr.Dataset) -> Report:
    """What `study.control` found."""
    verdicts = [_verdict(energies)]
    if "miss" in energies:
        verdicts.append(miss(energies))
    return Report([_schedules(energies)], verdicts)


def _schedules(energies: xr.Dataset) -> Table:
    rows = []
    for name in energies["schedule"].values:
        row = energies.sel(schedule=name)
        reached = bool(row["reached"])
        remark = "" if bool(row["monotone"]) else "  (not monotone)"
        layer = int(row["layer_pushed"])
        single = f" ({layer})" if layer >= 0 and "random" not in str(name) else ""
        rows.append(
            (
                str(name).replace("_", " ") + single,
                f"{float(row['energy']):.4g}" if reached else "not reached",
                f"{float(row['multiple']):.3g}{remark}" if reached else f"-{remark}",
            )
        )
    header = ("schedule", "energy", "multiple")
    return Table(header, rows, left=header)


def _verdict(energies: xr.Dataset) -> str:
    target = float(energies.attrs["target"])
    planned, found = float(energies["predicted_energy"]), float(energies["energy"][0])
    if found != found:
        return f"the planned schedule does not reach a shift of {target:.3g} on the full model"
    cheaper = energies["schedule"].values[energies["multiple"].values < 1]
    verdict = (
        f"cheaper on the full model: {', '.join(map(str, cheaper)).replace('_', ' ')}"
        if len(cheaper)
        else "no schedule of those compared is cheaper"
    )
    factor = max(found / planned, planned / found)
    off = "" if factor < 1.5 else f", {factor:.1f} times off"
    return (
        f"a shift of {target:.3g} takes {energies.attrs['energy']} energy {found:.4g} on the full "
        f"model, planned {planned:.4g}{off}; {verdict}"
    )


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
