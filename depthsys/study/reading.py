"""A study is read back: what is in its store, and what many cells say together."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from depthsys.study.grid import current
from depthsys.study.stages import STAGES
from depthsys.study.store import ASKED, FAILED, KIND, read_group

LEVELS = ("model", "task", "seed", "concept")


def read(path: str | Path) -> xr.DataTree:
    """The store of a study, also of one that is at work: ``model/task/seed_N/concept/stage``.

    Nothing is loaded until it is looked at. Stages that are out of date are left out: those from
    before a change of the study, whose run was interrupted before it came to them.

    Parameters
    ----------
    path
        The folder that `depthsys study run` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it is no store of a study.
    """
    place = Path(path)
    if not place.is_dir():
        found = "which is a file" if place.exists() else "where nothing is"
        raise FileNotFoundError(
            f"`path` must be the store of a study; got {str(place)!r}, {found}. Make one with "
            "`depthsys study run`."
        )
    try:
        tree = xr.open_datatree(place, engine="zarr", consolidated=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"`path` must be the store of a study; got {str(place)!r}, which is no Zarr: {error}"
        ) from error
    if tree.attrs.get("kind") != KIND:
        raise ValueError(
            f"`path` must be the store of a study; got {str(place)!r}, whose attrs say "
            f"{tree.attrs.get('kind')!r}. Make one with `depthsys study run`."
        )
    for _, node in cells_of(tree):
        attrs = {str(name): dict(child.attrs) for name, child in node.children.items()}
        stages = {n: {str(k): v for k, v in a.items()} for n, a in attrs.items() if n in STAGES}
        wanted, failed = (json.loads(node.attrs.get(name, "{}")) for name in (ASKED, FAILED))
        for name in stages.keys() - current(stages, wanted, failed):
            del node[name]
    return tree


def cells_of(tree: xr.DataTree) -> Iterator[tuple[dict[str, Any], xr.DataTree]]:
    """The cells of the study as it is now: their names by `LEVELS`, and their nodes.

    Cells of earlier forms of its file stay in the store, and are left out.
    """
    groups = {group.strip("/") for group in tree.groups}
    for path in json.loads(tree.attrs["study_cells"]):
        model, task, seed, concept = path.split("/")
        if path in groups and isinstance(node := tree[path], xr.DataTree):
            names = {"model": model, "task": task, "concept": concept}
            yield {**names, "seed": int(seed.removeprefix("seed_"))}, node


def stages_of(path: str | Path, stage: str) -> Iterator[tuple[dict[str, Any], xr.Dataset]]:
    """The Datasets of a stage, one after the other, loaded."""
    place = Path(path)
    for names, node in cells_of(read(place)):
        if stage in node.children:
            yield names, read_group(place / node.path.strip("/") / stage)


def scaling(path: str | Path, *, basis: str | None = None, order: int | None = None) -> xr.Dataset:
    """Agreement and its error budget against the size of models, at a fixed method.

    Parameters
    ----------
    path
        The store of a study with the stage ``comparison``.
    basis, order
        The method and its order; by default the first method and its largest order.

    Returns
    -------
    xr.Dataset
        Over ``model`` (in the order of their sizes), ``task``, ``seed`` and ``bound`` (estimate and
        95 % interval over prompts): ``relative_l2``, ``spearman``, ``pearson`` of absolute
        injections at all layers, as in reports, ``relative_l2_later`` without layer 0, ``budget``
        of ``relative_l2`` with the dim ``part``; ``noise_floor``, ``noise_floor_later`` and
        ``auc`` at the last depth (model, task, seed); ``n_parameters``, ``n_layers``,
        ``n_features`` (model). NaN where a cell is not there, and for ``auc`` where no held-out
        texts were given.
        attrs ``basis`` and ``order``. Of several concepts the first one counts.

    Raises
    ------
    ValueError
        If no comparison is there, or none has the method at that order.
    """
    rows: dict[tuple[str, str, int], xr.Dataset] = {}
    for names, table in stages_of(path, "comparison"):
        rows.setdefault((names["model"], names["task"], names["seed"]), table)
    if not rows:
        raise ValueError(
            f"`path` must hold comparisons; got none in {str(path)!r}. Add the stage comparison to "
            "the study and run it."
        )
    first = next(iter(rows.values()))
    basis = str(first["basis"].values[0]) if basis is None else basis
    order = int(first["order"].values[-1]) if order is None else order
    chosen = {key: _chosen(table, basis, order) for key, table in rows.items()}
    known = {key: row for key, row in chosen.items() if row is not None}
    if not known:
        raise ValueError(
            f"`basis` and `order` must be in the comparisons; got {basis!r} and {order}. The first "
            f"holds {', '.join(map(str, first['basis'].values))} at orders "
            f"{', '.join(map(str, first['order'].values))}."
        )
    models = sorted({key[0] for key in known}, key=lambda name: _size(rows, name))
    tasks = list(dict.fromkeys(key[1] for key in rows))
    seeds = sorted({key[2] for key in rows})
    empty = xr.full_like(next(iter(known.values())), np.nan, dtype=float)
    found = xr.combine_nested(
        [[[known.get((m, t, s), empty) for s in seeds] for t in tasks] for m in models],
        ["model", "task", "seed"],
        combine_attrs="drop",
    )
    about = {
        name: ("model", [_attr(rows, model, name) for model in models])
        for name in ("n_parameters", "n_layers", "n_features")
    }
    return (
        found.assign(about)
        .assign_coords(model=models, task=tasks, seed=seeds)
        .assign_attrs(basis=basis, order=order)
    )


def _chosen(table: xr.Dataset, basis: str, order: int) -> xr.Dataset | None:
    if basis not in table["basis"].values or order not in table["order"].values:
        return None
    here = table.sel(basis=basis, order=order, drop=True)
    # the budget is of the error of absolute injections: its total is the error beside it
    gains = here.sel(injection="absolute", drop=True)
    whole, later = (gains.sel(layers=name, drop=True) for name in _layers(table))
    found = {name: whole[name] for name in ("relative_l2", "spearman", "pearson", "noise_floor")}
    budget = here["error_budget"].sel(layers="all", drop=True)
    found |= {f"{name}_later": later[name] for name in ("relative_l2", "noise_floor")}
    auc = table["auc"].isel(depth=-1, drop=True) if "auc" in table else xr.DataArray(np.nan)
    return xr.Dataset({**found, "budget": budget, "auc": auc}).reset_coords(drop=True)


def _layers(table: xr.Dataset) -> tuple[str, str]:
    names = [str(name) for name in table["layers"].values]
    return "all", next((name for name in names if name != "all"), "all")


def _attr(rows: dict[tuple[str, str, int], xr.Dataset], model: str, name: str) -> int:
    return next(int(table.attrs[name]) for key, table in rows.items() if key[0] == model)


def _size(rows: dict[tuple[str, str, int], xr.Dataset], model: str) -> int:
    return _attr(rows, model, "n_parameters")
