"""Comparisons on real models, many tasks each: the chapter of docs/reduction.md on them.

All read the pairs of real models of `study.many_comparisons.collected`.
"""

from collections.abc import Callable

import numpy as np
import xarray as xr

from depthsys import wording
from depthsys.report.pairs import (
    ALL,
    RANGE,
    how_it_was_made,
    pairs_of,
    percent,
    range_cells,
)
from depthsys.report.table import Table, markdown

# name of a form -> where its agreement stands: a basis and order, a curve, or the readout at the
# last depth alone
FORMS: dict[str, dict] = {
    "ensemble 1 (concept readout)": {"terminal": True},
    "ensemble 1": {"basis": "ensemble", "order": 1},
    "ensemble 4": {"basis": "ensemble", "order": 4},
    "product of mean Jacobians": {"curve": "product of mean Jacobians"},
    "Krylov 32 (propagated)": {"basis": "krylov", "order": 32},
    "balanced 4": {"basis": "balanced", "order": 4},
    "Arnoldi 32": {"basis": "arnoldi", "order": 32},
    "random 32": {"basis": "random", "order": 32},
    "mean exact gains": {"curve": "mean exact gains, held out"},
}
METRICS = ("spearman", "pearson", "relative_l2")
_PARTS = ("nonlinearity", "averaging", "sampling", "truncation")


def real_parts(study: xr.Dataset) -> dict[str, str]:
    """The parts of the chapter by the names of their markers, as markdown."""
    told = "\n".join(f"* {line}" for line in findings(study))
    tables = {name: markdown(table(study)) for name, table in TABLES.items()}
    return {"real_intro": intro(study), "real_findings": told, **tables}


def agreement_of(row: xr.Dataset, form: str, metric: str, layers: str = "all") -> xr.DataArray:
    """Agreement (bound) of a form with the measured gains, of one pair."""
    where = FORMS[form]
    if "terminal" in where:
        return row[f"terminal_{metric}"].sel(layers=layers)
    if "curve" in where:
        return row[f"curve_{metric}"].sel(layers=layers, **where)
    return row[metric].sel(injection="absolute", layers=layers, **where)


def over_tasks(study: xr.Dataset, form: str, metric: str, layers: str = "all") -> np.ndarray:
    """Mean over the tasks, and its 95 % percentile interval over draws of tasks."""
    rows = pairs_of(study)
    values = np.array([float(agreement_of(r, form, metric, layers)[0]) for r in rows])
    draws = np.random.default_rng(0).integers(len(rows), size=(10_000, len(rows)))
    return np.array([values.mean(), *np.quantile(values[draws].mean(axis=1), [0.025, 0.975])])


def share_taken(study: xr.Dataset, form: str, of: str) -> np.ndarray:
    """What share of the Spearman correlation that a form lacks to 1 another one does not lack.

    Ratio of means over the tasks, and its 95 % percentile interval over draws of tasks.
    """
    rows = pairs_of(study)
    mine, other = (
        np.array([1 - float(agreement_of(r, name, "spearman")[0]) for r in rows])
        for name in (form, of)
    )
    draws = np.random.default_rng(0).integers(len(rows), size=(10_000, len(rows)))
    samples = 1 - mine[draws].sum(axis=1) / other[draws].sum(axis=1)
    return np.array([1 - mine.sum() / other.sum(), *np.quantile(samples, [0.025, 0.975])])


def intro(study: xr.Dataset) -> str:
    """What was run, from what is there."""
    shapes = []
    for name in dict.fromkeys(study.model.values.tolist()):
        own = study.isel(pair=study.model.values.tolist().index(name))
        shape = f"{int(own.n_layers)} x {int(own.n_features)}"
        shapes.append(f"{name} ({shape}, {int(own.n_parameters):,} parameters)")
    return (
        f"{wording.listed(shapes)} on {study.sizes['pair']} tasks: "
        f"{wording.listed(study.task.values.tolist())}; {how_it_was_made(study)}"
    )


def forms_over_tasks(study: xr.Dataset) -> Table:
    """Every form: agreement with the measured gains, mean over the tasks."""
    rows = []
    for form in FORMS:
        cells = []
        for layers in ("all", "without_layer_0"):
            spearman, pearson, error = (over_tasks(study, form, m, layers) for m in METRICS)
            cells += [wording.fixed(spearman, 3), wording.fixed(pearson, 3), percent(error)]
        rows.append((form, *cells))
    names = ("Spearman", "Pearson", "relative L2")
    return Table(("form", *names, *(f"{name} without layer 0" for name in names)), rows)


def agreement(study: xr.Dataset) -> Table:
    """Every form on every task, with intervals over the held-out prompts."""
    rows = []
    for row in pairs_of(study):
        for form in FORMS:
            cells = [
                wording.fixed(agreement_of(row, form, "spearman").values),
                wording.fixed(agreement_of(row, form, "pearson").values),
                percent(agreement_of(row, form, "relative_l2")),
                percent(agreement_of(row, form, "relative_l2", "without_layer_0")),
            ]
            rows.append((str(row.task.item()), form, *cells))
        floors = [row.noise_floor.sel({**ALL, "layers": s}) for s in ("all", "without_layer_0")]
        rows.append((str(row.task.item()), "*noise floor*", "", "", *map(percent, floors)))
    header = ("texts", "form", "Spearman", "Pearson", "relative L2", "without layer 0")
    return Table(header, rows)


def budget(study: xr.Dataset) -> Table:
    """Where the error of Krylov, Arnoldi and ensemble comes from, per task."""
    rows = []
    for row in pairs_of(study):
        own = row.error_budget.sel(layers="all")
        shared = [own.sel(basis="krylov", order=32, part=p) for p in _PARTS[:3]]
        truncated = [
            own.sel(basis=b, order=o, part="truncation")
            for b, o in (("krylov", 32), ("arnoldi", 32))
        ]
        rows.append((str(row.task.item()), *map(percent, [*shared, *truncated])))
    header = (*_PARTS[:3], "truncation: Krylov 32", "truncation: Arnoldi 32")
    return Table(("texts", *header), rows)


def linear_range(study: xr.Dataset) -> Table:
    """Nonlinearity at some steps, and the step where it passes 5 %."""
    rows = [(str(row.task.item()), *range_cells(row)) for row in pairs_of(study)]
    return Table(("texts", *RANGE), rows)


def separation(study: xr.Dataset) -> Table:
    """How well the concept direction separates held-out texts, per depth."""
    rows = []
    for row in pairs_of(study):
        auc = row.auc_by_depth.isel(depth=slice(int(row.n_layers) + 1))
        best = int(auc.sel(bound="estimate").argmax("depth"))
        cells = [
            wording.fixed(auc.isel(depth=k).values, unknown="no direction") for k in (0, best, -1)
        ]
        rows.append((str(row.task.item()), cells[0], str(best), *cells[1:]))
    return Table(("texts", "AUC at depth 0", "best depth", "AUC there", "at the last depth"), rows)


TABLES: dict[str, Callable[[xr.Dataset], Table]] = {
    "real_forms": forms_over_tasks,
    "real_agreement": agreement,
    "real_budget": budget,
    "real_range": linear_range,
    "real_separation": separation,
}


def findings(study: xr.Dataset) -> list[str]:
    """What the tables say: means over tasks, with intervals over tasks and over prompts."""
    n = study.sizes["pair"]
    arnoldi, krylov, ensemble = (
        over_tasks(study, form, "spearman")
        for form in ("Arnoldi 32", "Krylov 32 (propagated)", "ensemble 4")
    )
    gap = study.gap_to_ensemble_4.sel(layers="all")
    worse = {b: int((gap.sel(basis=b, bound="low") > 0).sum()) for b in ("krylov", "arnoldi")}
    better = {b: int((gap.sel(basis=b, bound="high") < 0).sum()) for b in ("krylov", "arnoldi")}
    reversed_ = [
        str(row.task.item())
        for row in pairs_of(study)
        if agreement_of(row, "Krylov 32 (propagated)", "relative_l2")[0]
        > agreement_of(row, "Arnoldi 32", "relative_l2")[0]
    ]
    lost = study.error_budget.sel(layers="all", bound="estimate", part="averaging")
    lost = lost.sel(basis="krylov", order=32)
    worst = int(lost.argmax("pair"))
    exact = study.curve_relative_l2.sel(
        curve="mean exact gains, held out", layers="all", bound="estimate"
    )
    return [
        f"Spearman of the same measured gains, mean over {n} tasks [95 % over draws of tasks]: "
        f"Arnoldi 32 {wording.fixed(arnoldi, 3)}, Krylov 32 {wording.fixed(krylov, 3)}, ensemble 4 "
        f"{wording.fixed(ensemble, 3)}. Of what Arnoldi lacks to 1, the ensemble takes away "
        f"{percent(share_taken(study, 'ensemble 4', 'Arnoldi 32'))}, Krylov "
        f"{percent(share_taken(study, 'Krylov 32 (propagated)', 'Arnoldi 32'))}.",
        f"Task by task, Spearman of Arnoldi 32 and of ensemble 4: {_task_by_task(study)}.",
        f"Krylov 32 has a larger relative L2 error than Arnoldi 32 in {len(reversed_)} of {n} tasks"
        f"{': ' + ', '.join(reversed_) if reversed_ else ''}.",
        f"In relative L2, by paired intervals over prompts, ensemble 4 is clearly better than "
        f"Arnoldi 32 in {worse['arnoldi']} of {n} tasks and clearly worse in {better['arnoldi']}; "
        f"than Krylov 32, {worse['krylov']} and {better['krylov']}.",
        f"Averaging the Jacobians costs {percent(lost.median())} in the median task and "
        f"{percent(lost[worst])} on {study.task.values[worst]}; the nonlinearity at this step is "
        f"{percent(exact.median())} in the median task, {percent(exact.max())} at worst.",
    ]


def _task_by_task(study: xr.Dataset) -> str:
    told = []
    for row in pairs_of(study):
        two = (float(agreement_of(row, f, "spearman")[0]) for f in ("Arnoldi 32", "ensemble 4"))
        told.append(f"{row.task.item()} {' and '.join(f'{value:.2f}' for value in two)}")
    return ", ".join(told)
