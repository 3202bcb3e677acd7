"""Comparisons on many models and tasks: the tables of docs/reduction.md.

All read the Dataset of `study.many_comparisons.collected`: a dim ``pair`` of model and task.
"""

from collections.abc import Callable
from functools import partial

import xarray as xr

from depthsys import wording
from depthsys.report.findings import findings, size_effects
from depthsys.report.pairs import (
    ALL,
    RANGE,
    criteria,
    forms,
    how_it_was_made,
    of_real_models,
    of_small_models,
    pairs_of,
    percent,
    range_cells,
)
from depthsys.report.real_models import real_parts
from depthsys.report.table import Table, markdown

ORDERS = (1, 2, 4, 8, 16, 32)
METHODS = ("krylov", "arnoldi", "random", "pod", "adjoint", "two_sided", "balanced", "ensemble")
_PAIR = ("model (L x H)", "texts")
_number = partial(wording.fixed, unknown="-")


def page(study: xr.Dataset) -> dict[str, str]:
    """The parts of the page by the names of their markers, as markdown."""
    small, real = of_small_models(study), of_real_models(study)
    parts = real_parts(real) | size_part(study) if real.sizes["pair"] else {}
    if small.sizes["pair"]:
        told = "\n".join(f"* {line}" for line in findings(small))
        tables = {name: markdown(table(small)) for name, table in TABLES.items()}
        parts |= {"intro": intro(small), "findings": told, **tables}
    return parts


def size_part(study: xr.Dataset) -> dict[str, str]:
    """Whether the error falls with the size of the model, small and real ones together."""
    return {
        "size": f"Rank correlation over {study.sizes['pair']} pairs between the number of "
        f"parameters and the relative L2 error, with bootstrap intervals over pairs: "
        f"{', '.join(size_effects(study))}."
    }


def _pair(row: xr.Dataset) -> tuple[str, str]:
    shape = f"({row.n_layers.item()} x {row.n_features.item()})"
    return f"{row.model.item()} {shape}", str(row.task.item())


def _by_order(orders: tuple[int, ...] = ORDERS) -> tuple[str, ...]:
    return tuple(f"order {order}" for order in orders)


def intro(study: xr.Dataset) -> str:
    """What was run, from what is there."""
    models, tasks = (list(dict.fromkeys(study[k].values.tolist())) for k in ("model", "task"))
    return (
        f"{study.sizes['pair']} pairs of {len(models)} models ({', '.join(models)}) and "
        f"{len(tasks)} tasks ({', '.join(tasks)}), {how_it_was_made(study)} The models have "
        f"{int(study.n_parameters.min()):,} to {int(study.n_parameters.max()):,} parameters and up "
        f"to {int(study.n_layers.max())} layers."
    )


def agreement(study: xr.Dataset) -> Table:
    """Paper's form, product of mean Jacobians and ensemble balancing against measured gains."""
    rows = []
    for row in pairs_of(study):
        spearman, error = forms(row, "spearman"), forms(row, "relative_l2")
        cells = [_number([row.auc.item(), row.auc_low.item(), row.auc_high.item()])]
        for form in ("paper: arnoldi 32", "product of mean Jacobians", "ensemble 4"):
            cells += [_number(spearman[form].values), percent(error[form])]
        cells += [percent(error["mean exact gains"]), percent(row.noise_floor.sel(**ALL))]
        rows.append((*_pair(row), *cells))
    header = [*_PAIR, "AUC"]
    for form in ("Arnoldi 32", "product of mean Jacobians", "ensemble 4"):
        header += [f"{form}: Spearman", "relative L2"]
    return Table((*header, "nonlinearity", "noise floor"), rows)


def methods(study: xr.Dataset) -> Table:
    """Relative L2 of every method against the measured gains, median over pairs and worst pair."""
    rows = []
    for name in METHODS:
        cells = []
        for order in ORDERS:
            error = study.relative_l2.sel(basis=name, order=order, bound="estimate", **ALL)
            worst = int(error.argmax("pair"))
            cells.append(f"{percent(error.median())} (worst {percent(error.isel(pair=worst))})")
        rows.append((name, *cells))
    return Table(("method", *_by_order()), rows)


def certificates(study: xr.Dataset) -> Table:
    """Exact error over norm, against the reference that a method reduces."""
    rows, orders = [], ORDERS[:4]
    for name in METHODS:
        reference = "mean_response" if name == "ensemble" else "mean_system"
        part = study.sel(reference=reference)
        cells = []
        for order in orders:
            error = (part.error / part.norm).sel(basis=name, order=order)
            ratio = part.ratio.sel(basis=name, order=order)
            text = percent(error.median())
            if bool(ratio.notnull().any()):
                text += f" (x {wording.number(float(ratio.median()), zeros=False)})"
            cells.append(text)
        rows.append((name, reference.replace("_", " "), *cells))
    return Table(("method", "reference", *_by_order(orders)), rows)


def criteria_met(study: xr.Dataset) -> Table:
    """What ensemble balancing is asked for, beside the paper's form."""
    found = criteria(study)
    columns = {
        "nonlinearity": "nonlinearity",
        "averaging": "averaging",
        "operating_1": "ensemble 1 (concept readout)",
        "operating_4": "ensemble 4 (profile)",
        "operating_paper": "better of Krylov, Arnoldi 32",
        "held_out_4": "held out: ensemble 4",
        "held_out_paper": "held out: better of Krylov, Arnoldi 32",
        "noise_floor": "noise floor",
    }
    rows = [
        (*_pair(row), *(percent(found[name].isel(pair=i)) for name in columns))
        for i, row in enumerate(pairs_of(study))
    ]
    return Table((*_PAIR, *columns.values()), rows)


def linear_range(study: xr.Dataset) -> Table:
    """Nonlinearity at some steps, and the step where it passes 5 %."""
    rows = [(*_pair(row), *range_cells(row)) for row in pairs_of(study)]
    return Table((*_PAIR, *RANGE), rows)


def directions(study: xr.Dataset) -> Table:
    """Other concept directions, on the tasks where they were tried."""
    compared = (("ensemble", 4), ("krylov", 4), ("arnoldi", 32), ("random", 32))
    rows = []
    for i in range(study.sizes.get("pair_direction", 0)):
        for name in study["direction"].values:
            part = study.isel(pair_direction=i).sel(direction=name)
            error = part.direction_relative_l2.sel(**ALL)
            auc = [part[f"direction_auc{s}"].item() for s in ("", "_low", "_high")]
            cells = [
                percent(error.sel(basis_direction=basis, order_direction=order))
                for basis, order in compared
            ]
            names = part.model_direction.item(), part.task_direction.item(), str(name)
            rows.append((*names, _number(auc), *cells))
    header = ("model", "texts", "direction", "AUC")
    return Table((*header, "ensemble 4", "Krylov 4", "Arnoldi 32", "random 32"), rows)


def reuse(study: xr.Dataset) -> Table:
    """Errors on new prompts: expected from the operating ones, and found."""
    rows = []
    for row in pairs_of(study):
        cells = []
        for q in (0.5, 0.9):
            cells += [percent(row[n].sel(quantile=q)) for n in ("reuse_expected", "reuse_found")]
        rows.append((*_pair(row), *cells))
    header = ("median expected", "median found", "0.9 quantile expected", "0.9 quantile found")
    return Table((*_PAIR, *header), rows)


def cost(study: xr.Dataset) -> Table:
    """Seconds beside Krylov's, and what is stored."""
    rows = []
    for name in METHODS:
        part = study.sel(basis=name)
        seconds = part.seconds.sel(order=32) / study.seconds.sel(basis="krylov", order=32)
        told = f"{float(seconds.median()):.2g} "
        told += f"({float(seconds.min()):.2g} to {float(seconds.max()):.2g})"
        stored = part.bytes.sel(order=[4, 32]).median("pair")
        rows.append((name, told, *(f"{float(b) / 1024:.0f}" for b in stored)))
    timed = "seconds, Krylov = 1: median (range)"
    return Table(("method", timed, "KiB stored, order 4", "order 32"), rows)


def prompts(study: xr.Dataset) -> Table:
    """One system per prompt: median over prompts of each pair, then median and worst pair."""
    rows = []
    for name in METHODS:
        cells = []
        for order in ORDERS:
            values = study.prompt_relative_l2_median.sel(basis_each=name, order=order)
            cells.append(f"{percent(values.median())} (worst {percent(values.max())})")
        rows.append((name, *cells))
    return Table(("method", *_by_order()), rows)


def full(study: xr.Dataset) -> Table:
    """Model x task x method x order: relative L2 with its interval."""
    rows = []
    for row in pairs_of(study):
        for name in METHODS:
            error = row.relative_l2.sel(basis=name, **ALL)
            rows.append((*_pair(row), name, *(percent(error.sel(order=r)) for r in ORDERS)))
    return Table((*_PAIR, "method", *_by_order()), rows)


TABLES: dict[str, Callable[[xr.Dataset], Table]] = {
    "agreement": agreement,
    "methods": methods,
    "certificates": certificates,
    "criteria": criteria_met,
    "eps": linear_range,
    "directions": directions,
    "reuse": reuse,
    "cost": cost,
    "prompts": prompts,
    "full": full,
}
