"""Plans on many models and tasks, and what docs/control.md tells of one of them: its tables.

The numbers are kept as plain dicts, which go into a JSON file as they are.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from depthsys.report.table import Table, markdown
from depthsys.wording import percent_of_page

HEURISTICS = (
    "minimum_energy", "uniform", "uniform_absolute", "first_layer", "middle_layer", "last_layer",
    "best_single_layer", "random_single_layer",
)  # fmt: skip


def energy_row(
    model: str, task: str, system: xr.Dataset, plan: xr.Dataset, verified: xr.Dataset
) -> dict:
    """The numbers of one plan: estimates and intervals, nothing chosen."""
    mine = verified.sel(schedule="planned")
    multiples = {}
    for name in HEURISTICS:
        row = verified.sel(schedule=name)
        multiples[name] = _triple(row, "multiple") if bool(row["reached"]) else None
    return {
        "model": model,
        "task": task,
        "auc": [_short(system[n][-1]) for n in ("auc", "auc_low", "auc_high")],
        "target": plan.attrs["target_asked"],
        "own": _short(plan["energy"]),
        "needed": _triple(mine, "energy") if bool(mine["reached"]) else None,
        "largest_push": _short(plan["push"].max()),
        "kkt": _short(plan["kkt_residual"]),
        "missed": _short(abs(plan["predicted"][0] / plan["target"][0] - 1)),
        "saved": _short(plan["saved"]),
        "steps": int(plan["steps"]),
        "held_out_shift": [_short(x / plan["target"][0]) for x in plan["held_out_shift"][0]],
        "multiples": multiples,
        "best_layer": int(verified["layer_pushed"].sel(schedule="best_single_layer")),
        "random_range": [_short(x) for x in verified["random_multiple"]],
        "not_monotone": [
            str(n) for n in verified["schedule"].values[~verified["monotone"].values.astype(bool)]
        ],
        "split": str(verified.attrs["split"]),
    }


def _triple(row: xr.Dataset, name: str) -> list[float | None]:
    return [_short(row[n]) for n in (name, f"{name}_low", f"{name}_high")]


def _short(value) -> float | None:
    """A number of four digits, which JSON can hold; None for no number."""
    number = float(value)
    return float(f"{number:.4g}") if np.isfinite(number) else None


def energies(rows: list[dict]) -> Table:
    """What plans need on held-out prompts, and simple schedules as multiples of that."""
    cells = []
    for row in rows:
        own, needed = row["own"], row["needed"]
        ratio = "-" if needed is None else f"{needed[0] / own:.3f}"
        stars = row["not_monotone"]
        cells.append(
            (
                row["model"],
                row["task"],
                _fixed(row["auc"]),
                row["target"],
                f"{own:.3g}",
                _interval(needed),
                ratio,
                *(_multiple(row, name, stars) for name in HEURISTICS[:-1]),
                _random(row, stars),
            )
        )
    names = [name.replace("_", " ") for name in HEURISTICS[1:-1]]
    header = (
        "model", "texts", "AUC [95 %]", "target", "own energy", "needed [95 %]", "needed / own",
        "linear plan", *names, "random single layer: median (range)",
    )  # fmt: skip
    return Table(header, cells)


def splits_row(found: xr.Dataset) -> dict:
    """Multiples over splits, median and range, from `lm.energies_over_splits`."""
    multiples = {
        name: [_short(x) for x in found["multiple"].sel(schedule=name)] for name in HEURISTICS
    }
    return {"n_splits": int(found.attrs["n_splits"]), "multiples": multiples}


def splits_table(rows: dict[str, dict]) -> Table:
    """Multiples of every model over splits."""
    cells = [
        (model, str(row["n_splits"]), *(_range(row["multiples"][name]) for name in HEURISTICS))
        for model, row in rows.items()
    ]
    names = [name.replace("_", " ") for name in HEURISTICS[1:]]
    return Table(("model", "splits", "linear plan", *names), cells)


def _range(found: list) -> str:
    middle, least, most = ("not reached" if x is None else f"{x:.3g}" for x in found)
    return middle if least == most == middle else f"{middle} ({least} to {most})"


def _multiple(row: dict, name: str, stars: list[str]) -> str:
    found = row["multiples"][name]
    layer = f" (layer {row['best_layer']})" if name == "best_single_layer" else ""
    return _interval(found) + layer + " *" * (name in stars)


def _random(row: dict, stars: list[str]) -> str:
    found, ends = row["multiples"]["random_single_layer"], row["random_range"]
    least, most = ("not reached" if end is None else f"{end:.3g}" for end in (ends[0], ends[-1]))
    middle = "not reached" if found is None else f"{found[0]:.3g}"
    return f"{middle} ({least} to {most})" + " *" * ("random_single_layer" in stars)


def _interval(found: list | None) -> str:
    if found is None:
        return "not reached"
    value, low, high = found
    if low is None or high is None or low == high:
        return f"{value:.3g}"
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _fixed(found: list) -> str:
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


# ------------------------------------------------------------------ of one model and task


def example(stages: Mapping[str, xr.Dataset]) -> dict:
    """The numbers of the worked example, from its stages by name."""
    return {name: _NUMBERS[name](found) for name, found in stages.items()}


def _options(found: xr.Dataset) -> list[dict]:
    rows = []
    for i in range(found.sizes["row"]):
        row = found.isel(row=i)
        names = {"asked": str(row["asked"].values), "of": str(row["of"].values)}
        numbers = (
            "limit", "energy", "linear_energy", "linear_needed", "linear_largest_push",
            "linear_shift", "largest_push", "saved", "residual", "kkt_residual", "steps",
            "evaluations",
        )  # fmt: skip
        held_out = [_short(x) for x in row["held_out_shift"]]
        rows.append(names | {n: _short(row[n]) for n in numbers} | {"held_out": held_out})
    return rows


def _free(found: xr.Dataset) -> dict:
    return {
        "over_floor": {str(e): _short(found["over_floor"].sel(energy=e)) for e in _ENERGIES},
        "cosine": [_short(x) for x in found["cosine"].values.ravel()],
    }


_ENERGIES = ("relative", "absolute")


def _few(found: xr.Dataset) -> list[dict]:
    whole = float(found["energy"][-1])
    return [
        {
            "most": int(most),
            "multiple": _short(found["energy"].sel(most=most) / whole),
            "layers": np.flatnonzero(found["u"].sel(most=most).values.ravel()).tolist(),
        }
        for most in found["most"].values
    ]


def _sharing(found: xr.Dataset) -> dict:
    return {
        "price": [_short(x) for x in found["price"].values.ravel()],
        "spread": _short(found["spread"].values.ravel()[0]),
        "n_reached": int(found["n_reached"]),
        "n_prompts": int(found["n_prompts"]),
    }


def _holding(found: xr.Dataset) -> dict:
    shifts = {
        str(plan): [_short(x) for x in found["shift"].sel(plan=plan)]
        for plan in found["plan"].values
    }
    numbers = ("energy", "price", "hold_price", "kkt_residual")
    return {"shift": shifts} | {name: _short(found[name].values.ravel()[0]) for name in numbers}


def _feedback(found: xr.Dataset) -> list[dict]:
    rows = []
    for i in range(found.sizes["row"]):
        row = found.isel(row=i)
        names = {n: str(row[n].values) for n in ("asked", "reference", "verdict")}
        for texts in map(str, found["texts"].values):
            of = row.sel(texts=texts)
            std = float(found.attrs["y_std"])
            errors = {
                str(p): [_short(x / std) for x in of["error"].sel(policy=p)]
                for p in found["policy"].values
            }
            energy = of["energy"].sel(bound="estimate")
            cost = _short(energy.sel(policy="feedback") / energy.sel(policy="open_loop"))
            rows.append(names | {"texts": texts, "errors": errors, "cost": cost})
    return rows


def _effects(found: xr.Dataset) -> list[dict]:
    rows = []
    for plan in map(str, found["plan"].values):
        for strength in found["strength"].values.tolist():
            of = found.sel(plan=plan, strength=strength)
            means = {
                name: [_short(x) for x in of[f"{name}_mean"]]
                for name in ("log_odds", "perplexity", "kl", "repetition")
            }
            shift = [_short(x) for x in of["readout_new_shift"]]
            rows.append({"plan": plan, "strength": strength, "readout_new_shift": shift} | means)
    return rows


_NUMBERS = {
    "options": _options, "free": _free, "few": _few, "sharing": _sharing, "holding": _holding,
    "feedback": _feedback, "effects": _effects,
}  # fmt: skip


def options_table(rows: list[dict]) -> Table:
    """The optimum with both energies, bounded and not."""
    cells = [
        (
            row["asked"],
            row["of"],
            "none" if row["limit"] is None else percent_of_page([row["limit"]]),
            percent_of_page([row["linear_largest_push"]]),
            f"{row['linear_shift']:.3g}",
            percent_of_page([row["largest_push"]]),
            f"{row['energy']:.3g}",
            "-" if row["saved"] is None else percent_of_page([row["saved"]]),
            f"{row['residual']:.1e}",
            f"{row['kkt_residual']:.1e}",
            f"{row['steps']:.0f} ({row['evaluations']:.0f})",
            "{:.3g} [{:.3g}, {:.3g}]".format(*row["held_out"]),
        )
        for row in rows
    ]
    header = (
        "target", "energy", "bound on a push", "largest push of the linear plan",
        "which reaches, of the target", "largest push", "least energy",
        "saved against the linear plan", "target missed by", "KKT residual", "steps (passes)",
        "held-out shift, of the target [95 %]",
    )  # fmt: skip
    return Table(header, cells)


def few_table(rows: list[dict]) -> Table:
    """Least energy at few layers."""
    cells = [
        (str(row["most"]), f"{row['multiple']:.3g}", ", ".join(map(str, row["layers"])))
        for row in rows
    ]
    return Table(("layers at most", "energy, multiple of all layers", "which"), cells)


def holding_table(found: dict) -> Table:
    """How far the steered and the held concept move."""
    cells = [
        (plan, *(f"{shift:+.3f}" for shift in shifts)) for plan, shifts in found["shift"].items()
    ]
    return Table(("plan", "steered, of the target", "held, of the target"), cells)


def feedback_table(rows: list[dict]) -> Table:
    """Errors of open loop and feedback."""
    words = {"held_out": "held out", "off": "other source"}
    cells = [
        (
            row["asked"],
            row["reference"],
            words[row["texts"]],
            *(
                _interval(row["errors"][p])
                for p in ("open_loop", "open_loop_same_energy", "feedback")
            ),
            f"{row['cost']:.3g}",
        )
        for row in rows
    ]
    header = (
        "target", "reference", "texts", "error of the open loop (std)", "of it, at equal energy",
        "of the feedback", "energy / that of the open loop",
    )  # fmt: skip
    return Table(header, cells)


def effects_table(rows: list[dict]) -> Table:
    """Effect against price by strength."""
    cells = [
        (
            row["plan"],
            f"{row['strength']:g}",
            *(_interval(row[n]) for n in ("log_odds", "readout_new_shift", "perplexity", "kl")),
            f"{row['repetition'][0]:.2f}",
        )
        for row in rows
    ]
    header = (
        "plan", "strength", "log-odds of good / bad words", "shift of the new text's readout",
        "perplexity, unsteered", "KL per token (nats)", "repetition",
    )  # fmt: skip
    return Table(header, cells)


def page(stored: dict) -> dict[str, str]:
    """The parts of docs/control.md by the names of their markers."""
    found = stored["example"]
    tables = {
        "energies": energies(stored["energies"]),
        "splits": splits_table(stored["splits"]),
        "options": options_table(found["options"]),
        "few": few_table(found["few"]),
        "holding": holding_table(found["holding"]),
        "feedback": feedback_table(found["feedback"]),
        "effects": effects_table(found["effects"]),
    }
    return {name: markdown(table) for name, table in tables.items()}
