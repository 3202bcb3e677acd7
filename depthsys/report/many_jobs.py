"""Main jobs on many models and tasks: the tables of the README.

The numbers of each are kept as a plain dict, which goes into a JSON file as it is.
"""

from collections.abc import Mapping
from functools import partial

import xarray as xr

from depthsys import wording
from depthsys.report.table import Table
from depthsys.wording import fixed

BASELINES = ("uniform", "first_layer", "last_layer", "best_single_layer", "random_single_layer")
_METRICS = ("spearman", "pearson", "relative_l2", "max_relative_error")
_PARTS = ("nonlinearity", "averaging", "sampling", "truncation")
_percent = partial(wording.percent, digits=2, zeros=False, least=5e-5, small="0")


def row(
    model: str,
    task: str,
    system: xr.Dataset,
    gains: xr.Dataset,
    energies: Mapping[float, xr.Dataset],
) -> dict:
    """The numbers of one main job: estimates and intervals, nothing chosen.

    Parameters
    ----------
    model, task
        What to call them.
    system, gains
        Of `study.steps.identify` and `gains`.
    energies
        Of `study.steps.control`, by the wanted shift in standard deviations of the readout.
    """
    absolute = gains.sel(injection="absolute")
    first = gains["measured_gain"].isel(layer=0)
    return {
        "model": model,
        "task": task,
        "shape": f"{system.sizes['layer']} x {system.sizes['feature']}",
        "auc": round(float(system["auc"][-1]), 4),
        "agreement": {
            layers: {name: _triple(absolute[name].sel(layers=layers)) for name in _METRICS}
            for layers in ("all", "without_layer_0")
        },
        "budget": {
            str(part): _triple(gains["error_budget"].sel(part=part, layers="all"))
            for part in gains["part"].values
        },
        "noise_floor": [round(float(x), 6) for x in absolute["noise_floor"]],
        "layer_0": _quantiles(first),
        "energies": [_energy_row(shift, found) for shift, found in energies.items()],
    }


def _quantiles(gain: xr.DataArray) -> list[float]:
    """Smallest, 0.1, 0.9 and largest; none where there is no direction."""
    if not bool(gain.notnull().any()):
        return []
    return [round(float(gain.quantile(q)), 2) for q in (0, 0.1, 0.9, 1)]


def _triple(array: xr.DataArray) -> list[float]:
    return [round(float(x), 6) for x in array.sel(bound=["estimate", "low", "high"])]


def _energy_row(shift: float, energies: xr.Dataset) -> dict:
    """Energies for one target; None = not reached on the full model."""

    def value(variable: str, name: str) -> float | None:
        chosen = energies.sel(schedule=name)
        return float(f"{float(chosen[variable]):.5g}") if bool(chosen["reached"]) else None

    names = [str(name) for name in energies["schedule"].values]
    return {
        "shift": shift,
        "planned": float(f"{float(energies['predicted_energy']):.5g}"),
        "needed": value("energy", "minimum_energy"),
        "multiples": {name: value("multiple", name) for name in BASELINES},
        "not_monotone": [n for n in names if not bool(energies["monotone"].sel(schedule=n))],
    }


def gains_table(rows: list[dict]) -> Table:
    """Agreement and error budget of every job."""
    cells = []
    for r in rows:
        every, rest = (r["agreement"][k] for k in ("all", "without_layer_0"))
        cells.append(
            (
                f"{r['model']} ({r['shape']})",
                r["task"],
                fixed([r["auc"]]),
                fixed(every["spearman"]),
                fixed(every["pearson"]),
                _percent(every["relative_l2"]),
                _percent(r["noise_floor"][:1]),
                fixed(rest["spearman"]),
                _percent(rest["relative_l2"]),
                *(_percent(r["budget"][part][:1]) for part in _PARTS),
            )
        )
    header = (
        "model (L x H)", "texts", "AUC", "Spearman [95 %]", "Pearson", "relative L2",
        "its noise floor", "Spearman without layer 0", "relative L2 without layer 0", *_PARTS,
    )  # fmt: skip
    return Table(header, cells)


def energies_table(rows: list[dict]) -> Table:
    """Energies of every job, as multiples of that of the planned schedule."""
    cells = []
    for r in rows:
        for e in r["energies"]:
            values = {"planned": e["planned"], "minimum_energy": e["needed"]}
            values |= {name: e["multiples"][name] for name in BASELINES}
            shown = (_cell(value, name in e["not_monotone"]) for name, value in values.items())
            cells.append((r["model"], r["task"], f"{e['shift']:g}", *shown))
    names = (name.replace("_", " ") for name in BASELINES)
    header = ("model", "texts", "shift (std)", "energy planned", "energy needed", *names)
    return Table(header, cells)


def _cell(value: float | None, not_monotone: bool) -> str:
    text = "not reached" if value is None else f"{value:.3g}"
    return text + (" *" if not_monotone else "")
