"""The comparison of reduction methods on many models and tasks: docs/reduction.md."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import xarray as xr

from depthsys import lm
from depthsys.study import steps
from depthsys.study.cell import Cell
from depthsys.study.names import CONCEPTS

# what the ablation of the concept direction compares
_DIRECTIONS = tuple(name for name in CONCEPTS if name != "paired_difference")  # texts are no pairs
_ABLATED = ("ensemble", "krylov", "arnoldi", "random")
_GONE = ("layer", "depth", "step", "prompt", "prompt_operating", "prompt_each")
_KEPT_ATTRS = ("n_parameters", "n_layers", "n_features", "n_held_out", "n_operating")


def pair(cell: Cell, task: str, *, directions: bool = False) -> xr.Dataset:
    """All that the page shows of one model and task.

    Parameters
    ----------
    cell
        Of the model and the texts of the task; its settings say what is compared.
    task
        What to call the texts.
    directions
        Whether other concept directions are tried too.

    Returns
    -------
    xr.Dataset
        The table of `steps.compare`, with the agreement ``terminal_*`` and ``reuse_expected``,
        ``reuse_found`` of ensemble balancing where only the last depth is read, and the variables
        ``direction_*`` of the ablation.
    """
    concept = steps.find_concept(cell)
    table = steps.compare(cell, concept)
    table = table.assign(_terminal_readout(cell, concept, table))
    if directions:
        table = table.assign(_directions(cell))
    del table.attrs["texts"]  # a place on this machine
    return table.assign_attrs(model=cell.model.name, task=task)


def _terminal_readout(cell: Cell, concept: xr.Dataset, table: xr.Dataset) -> dict:
    """Ensemble of order 1 where only the last depth is read, and its use on single prompts."""
    system = lm.identify(cell.operating, concept, lm.Ensemble(order=1))
    measured, operating = _measured(table), _measured_operating(table)
    linear = xr.Dataset({"gain": _over_prompts(table["linear_gain_operating"])})
    linear.attrs = dict(system.attrs)
    expected = lm.expected_error(system, linear)["expected"]
    fixed = lm.corrected(system, cell.held_out, concept)  # pyright: ignore[reportArgumentType]
    fit = lm.agreement(system, measured)
    return {
        **{f"terminal_{name}": fit[name] for name in ("relative_l2", "spearman", "pearson")},
        "terminal_relative_l2_operating": lm.agreement(system, operating)["relative_l2"],
        "reuse_expected": expected,
        "reuse_found": fixed["error_before"].quantile(expected["quantile"].values, dim="prompt"),
    }


def _directions(cell: Cell) -> dict[str, xr.DataArray]:
    """Ablation of the concept direction: the same comparison with other directions."""
    orders = [order for order in (4, 32) if order in cell.settings.orders]
    rows = []
    for name in _DIRECTIONS:
        concept = steps.find_concept(cell, name)
        compared = lm.compare(
            cell.model,
            replace(cell.texts, operating=cell.operating, held_out=cell.held_out),
            _ABLATED,
            orders,
            concept=concept,
            n_each=0,
            ablate_eps=False,
        )
        rows.append(compared[["relative_l2", "spearman", "auc", "auc_low", "auc_high"]])
    table = xr.concat(rows, dim=xr.Variable("direction", list(_DIRECTIONS)))
    table = table.rename(basis="basis_direction", order="order_direction")
    return {f"direction_{name}": table[name] for name in table.data_vars}


def _measured(table: xr.Dataset) -> xr.Dataset:
    return table[["measured_gain"]].rename(measured_gain="gain")


def _measured_operating(table: xr.Dataset) -> xr.Dataset:
    return xr.Dataset({"gain": _over_prompts(table["measured_gain_operating"])}, attrs=table.attrs)


def _over_prompts(gain: xr.DataArray) -> xr.DataArray:
    return gain.rename(prompt_operating="prompt")


# ---------------------------------------------------------------------------- collecting


def collected(pairs: Iterable[xr.Dataset]) -> xr.Dataset:
    """All pairs along the dim ``pair``, without the curves of single layers and prompts.

    The ablation of the direction, made on some tasks only, has a dim ``pair_direction`` of its own.
    """
    rows, ablations = [], []
    for table in pairs:
        tried = [name for name in table.data_vars if str(name).startswith("direction_")]
        if tried:
            ablation = table[tried].drop_dims("depth")
            last = {n: table[n].isel(depth=-1, drop=True) for n in tried if "auc" in str(n)}
            ablations.append(_labelled(ablation.assign(last), table, "_direction"))
        rows.append(_labelled(_summary(table.drop_vars(tried)), table))
    options: dict[str, Any] = {
        "join": "outer",
        "data_vars": "all",
        "coords": "minimal",
        "compat": "override",
    }
    study = xr.concat(rows, dim="pair", combine_attrs="drop_conflicts", **options)
    study.attrs = {k: v for k, v in study.attrs.items() if not k.startswith("note_")}
    if ablations:
        study = study.merge(xr.concat(ablations, dim="pair_direction", **options), join="outer")
    return study


def _labelled(row: xr.Dataset, table: xr.Dataset, suffix: str = "") -> xr.Dataset:
    """The row with the names of its model and task along the dim ``pair``."""
    dim = f"pair{suffix}"
    names = {f"{k}{suffix}": (dim, [table.attrs[k]]) for k in ("model", "task")}
    if not suffix:
        names |= {k: (dim, [table.attrs[k]]) for k in _KEPT_ATTRS}
    return row.reset_coords(drop=True).expand_dims(dim).assign_coords(names)


def _summary(table: xr.Dataset) -> xr.Dataset:
    """What has no dim layer, depth, step or prompt, and what is made of those."""
    medians = {
        f"{name}_median": table[name].median("prompt_each")
        for name in ("prompt_relative_l2", "prompt_error_ratio")
        if name in table
    }
    names = ["auc", "auc_low", "auc_high"]
    auc = {name: table[name].isel(depth=-1, drop=True) for name in names}
    # auc itself is kept at the last depth only
    by_depth = xr.concat([table[name] for name in names], dim=table["bound"]).rename("auc_by_depth")
    # a search that overflow ended early has fewer steps
    chosen = table["step_error"].reindex(step=[0.01, 0.1, 0.5]).sel(bound="estimate")
    eps = {"nonlinearity_at": chosen.rename(step="eps").reset_coords(drop=True)}
    bare = table.drop_dims([d for d in _GONE if d in table.dims])
    curves = _mean_curves(table)
    return bare.assign(medians | auc | {"auc_by_depth": by_depth} | eps | curves | _gaps(table))


def _gaps(table: xr.Dataset) -> dict[str, xr.DataArray]:
    """Paired differences of the errors at order 32 to that of ensemble balancing of order 4."""
    measured = _measured(table)
    mine = table.surrogate_gain.sel(basis="ensemble", order=4, drop=True)
    rows = [
        lm.error_gap(table.surrogate_gain.sel(basis=name, order=32, drop=True), mine, measured)
        for name in table.basis.values
    ]
    gap = xr.concat(rows, dim=table["basis"], coords="minimal", compat="override")
    return {"gap_to_ensemble_4": gap}


def _mean_curves(table: xr.Dataset) -> dict[str, xr.DataArray]:
    """Agreement of the full-order curves: the product of mean Jacobians, the mean exact gains."""
    measured = _measured(table)
    measured.attrs = {"relative": 0}
    exact = table["linear_gain_operating"].mean("prompt_operating")
    curves = {
        "product of mean Jacobians": table["mean_system_gain"],
        "mean exact gains, operating": exact,
        "mean exact gains, held out": table["linear_gain"].mean("prompt"),
    }
    fits = [lm.agreement(curve, measured) for curve in curves.values()]
    whole = xr.concat(fits, dim=xr.Variable("curve", list(curves)))
    found = {f"curve_{n}": whole[n] for n in ("relative_l2", "spearman", "pearson")}
    operating = lm.agreement(exact, _measured_operating(table))
    return found | {"curve_operating": operating["relative_l2"]}
