"""A plan of pushes: where it pushes how hard, what it takes and what it reaches."""

import xarray as xr

from depthsys.report.stage import Stage
from depthsys.report.table import Report, Table
from depthsys.wording import asked_for, counted, percent


def plan(found: xr.Dataset) -> Report:
    """What `study.plan` found."""
    return Report([_layers(found)], verdicts(Stage.of(found)))


def verdicts(found: Stage) -> list[str]:
    """What the plan takes and reaches, and what speaks against it."""
    said = [_asked(found)]
    if "kkt_residual" in found:
        said.append(_optimum(found))
    if "not_met" in found.attrs:
        said.append(f"NOT MET: {found.attrs['not_met']}")
    said += [*_held_out(found), _largest(found)]
    if "warning" in found.attrs:
        said.append(f"WARNING: {found.attrs['warning']}")
    return said


def _layers(found: xr.Dataset) -> Table:
    """Push of every layer over the norm of the state, with its sign."""
    columns = {"push": "u"} | ({"linear_push": "linear_u"} if "linear_push" in found else {})
    names = {"push": "push", "linear_push": "linear plan"}
    header = ("layer", *(names[name] for name in columns))
    rows = []
    for layer in range(found.sizes["layer"]):
        row = found.isel(layer=layer)
        shown = []
        for name, u in columns.items():
            size, signs = float(row[name]), row[u].values
            backwards = signs.size == 1 and float(signs.ravel()[0]) < 0
            shown.append("-" if not size else f"{'-' * backwards}{percent([size])}")
        rows.append((str(layer), *shown))
    caption = "push over the norm of the state it is added to; - is none"
    return Table(header, rows, caption=caption)


def _asked(found: Stage) -> str:
    target, kind = float(found.value("target").ravel()[0]), found.attrs["energy"]
    energy = float(found.value("energy"))
    asked = asked_for(found.attrs)
    return f"a shift of {target:.4g}{asked} is planned at {kind} energy {energy:.4g}"


def _optimum(found: Stage) -> str:
    target = float(found.value("target").ravel()[0])
    reached = float(found.value("predicted").ravel()[0]) / target
    off = abs(reached - 1)
    if "not_met" in found.attrs:
        return f"on the operating prompts it moves the readout by {reached:.3g} of that"
    steps, residual = int(found.value("steps")), float(found.value("kkt_residual"))
    said = (
        f"the full model reaches it on the operating prompts within {percent([off])} after "
        f"{counted(steps, 'step')} (KKT residual {residual:.1e})"
    )
    saved = float(found.value("saved"))
    if saved == saved:
        said += f"; {percent([saved])} less energy than the plan of the linear system needs there"
    return said


def _held_out(found: Stage) -> list[str]:
    if "held_out_shift" not in found:
        return []
    target = float(found.value("target").ravel()[0])
    mean, low, high = (
        float(found.value("held_out_shift", bound=bound).ravel()[0]) / target
        for bound in ("estimate", "low", "high")
    )
    low, high = sorted((low, high))
    span = f" [{low:.3f}, {high:.3f}]" if low == low else ""  # one prompt has no interval
    return [f"on held-out prompts it moves the readout by {mean:.3f}{span} of that"]


def _largest(found: Stage) -> str:
    push = found.value("push")
    pushed = int((push > 1e-3 * push.max()).sum())
    return (
        f"pushes at {pushed} of {len(push)} layers, the largest "
        f"{percent([float(push.max())])} of the state's norm at layer {push.argmax()}"
    )
