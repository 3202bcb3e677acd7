"""What is read off comparisons on many pairs of model and task, before it is told or drawn."""

from typing import Any

import numpy as np
import xarray as xr

from depthsys import wording

ALL = {"layers": "all", "injection": "absolute"}
# models of more parameters are called real: trained on a web's worth of texts
REAL_SIZE = 10_000_000


def of_small_models(study: xr.Dataset) -> xr.Dataset:
    """The pairs of models that were made to be small."""
    return study.isel(pair=np.flatnonzero(study.n_parameters.values < REAL_SIZE))


def of_real_models(study: xr.Dataset) -> xr.Dataset:
    """The pairs of real models."""
    return study.isel(pair=np.flatnonzero(study.n_parameters.values >= REAL_SIZE))


def pairs_of(study: xr.Dataset) -> list[xr.Dataset]:
    """One Dataset per pair of model and task."""
    return [study.isel(pair=i) for i in range(study.sizes["pair"])]


def percent(values: Any) -> str:
    """A fraction in percent, or estimate, low and high, as the pages have it."""
    return wording.percent_of_page(np.atleast_1d(np.asarray(values, dtype=float)))


RANGE = ("at a step of 1 %", "of 10 %", "of 50 %", "step where it passes 5 %", "without layer 0")


def range_cells(row: xr.Dataset) -> list[str]:
    """Nonlinearity at some steps, and the step where it passes 5 %: cells under `RANGE`."""
    errors = [row.nonlinearity_at.sel(eps=e, layers="all") for e in (0.01, 0.1, 0.5)]
    limits = [float(row.step_limit.sel(layers=s)) for s in ("all", "without_layer_0")]
    passed = ["not passed" if np.isnan(limit) else f"{limit:.2g}" for limit in limits]
    return [*map(percent, errors), *passed]


def how_it_was_made(study: xr.Dataset) -> str:
    """Splits, steps and cuts of a study, in words."""
    n_operating, n_held_out = (int(study[k].min()) for k in ("n_operating", "n_held_out"))
    return (
        f"split {study.attrs['split']} per class ({n_operating} operating, {n_held_out} held-out "
        f"prompts), seed 0, steps of "
        f"{wording.step_size(study.attrs['eps'], bool(study.attrs['relative']))}, float32, texts "
        f"cut at {study.attrs['max_tokens']} tokens."
    )


def forms(row: xr.Dataset, metric: str, layers: str = "all") -> dict[str, xr.DataArray]:
    """The forms that are set against model size, each (bound)."""
    surrogate = row[metric].sel(injection="absolute", layers=layers)
    curve = row[f"curve_{metric}"].sel(layers=layers)
    return {
        "paper: krylov 32": surrogate.sel(basis="krylov", order=32),
        "paper: arnoldi 32": surrogate.sel(basis="arnoldi", order=32),
        "product of mean Jacobians": curve.sel(curve="product of mean Jacobians"),
        "ensemble 4": surrogate.sel(basis="ensemble", order=4),
        "mean exact gains": curve.sel(curve="mean exact gains, held out"),
    }


def by_size(study: xr.Dataset) -> xr.Dataset:
    """The forms of all pairs: ``value`` (pair, form, metric, bound), as `plot` draws them."""
    metrics = ["spearman", "relative_l2"]
    options: dict[str, Any] = {"coords": "minimal", "compat": "override"}
    values = [
        xr.concat(
            [xr.concat(list(forms(row, m).values()), dim="form", **options) for m in metrics],
            dim=xr.Variable("metric", metrics),
        ).reset_coords(drop=True)
        for row in pairs_of(study)
    ]
    names = list(forms(study.isel(pair=0), metrics[0]))
    rows = xr.Dataset({"value": xr.concat(values, dim="pair").assign_coords(form=names)})
    about = ("model", "task", "n_features", "n_layers", "n_parameters")
    return rows.assign_coords({name: study[name] for name in about})


def criteria(study: xr.Dataset) -> xr.Dataset:
    """What ensemble balancing is asked for, beside the paper's form, per pair.

    ``operating``: error against the gains measured on the operating prompts themselves;
    ``allowed``: 2 % plus the nonlinearity of those prompts. ``held_out``: the same errors on
    held-out prompts.
    """
    chosen = {"layers": "all", "bound": "estimate"}
    own = study.relative_l2_operating.sel(**chosen)
    terminal = study.terminal_relative_l2_operating.sel(**chosen)
    total = study.relative_l2.sel(bound="estimate", **ALL)
    paper = {"basis": ["krylov", "arnoldi"], "order": 32}
    parts = {
        "operating_1": terminal,
        "operating_4": own.sel(basis="ensemble", order=4),
        "operating_paper": own.sel(**paper).min("basis"),
        "nonlinearity": study.curve_operating.sel(**chosen),
        "held_out_4": total.sel(basis="ensemble", order=4),
        "held_out_paper": total.sel(**paper).min("basis"),
        "averaging": study.error_budget.sel(basis="krylov", order=4, part="averaging", **chosen),
        "noise_floor": study.noise_floor.sel(**ALL),
        "held_out_nonlinearity": study.curve_relative_l2.sel(
            curve="mean exact gains, held out", **chosen
        ),
    }
    found = xr.Dataset({name: part.reset_coords(drop=True) for name, part in parts.items()})
    return found.assign(allowed=0.02 + found.nonlinearity)
