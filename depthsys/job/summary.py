"""What a command prints, and stores as a text, about its results: tables, verdicts, notes."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import xarray as xr

    from depthsys.lm import DepthModel, Splits


@contextlib.contextmanager
def step(console: Console, title: str) -> Iterator[None]:
    """Print the title with its duration when it is done."""
    start = time.monotonic()
    yield
    console.print(f"{title} [dim]({time.monotonic() - start:.1f} s)[/dim]", soft_wrap=True)


def text_notes(model: "DepthModel", texts: "Splits") -> list[str]:
    """How many texts were dropped and cut."""
    notes = []
    if texts.n_duplicates or texts.n_conflicts:
        notes.append(
            f"dropped before splitting: {texts.n_duplicates} duplicates, {texts.n_conflicts} texts "
            "that came with both labels"
        )
    cut = [model.tokenize(getattr(texts, s))[1] for s in ("concept", "operating", "held_out")]
    if any(cut):
        notes.append(
            f"cut on the right at {model.max_tokens} tokens: {cut[0]} concept, {cut[1]} operating "
            f"and {cut[2]} held-out texts"
        )
    return notes


def attr_notes(result: "xr.Dataset") -> list[str]:
    """What a result says against itself."""
    notes = []
    if "concept_warning" in result.attrs:
        notes.append(
            f"{result.attrs['concept_warning']}; gains are real, but do not call them gains of "
            "the concept"
        )
    for name in ("note", "step_note", "import_note"):
        if name in result.attrs:
            notes.append(str(result.attrs[name]))
    return notes


def system_heading(system: "xr.Dataset") -> str:
    """Method and order of a system in words."""
    largest, asked = int(system["order"].max()), int(system.attrs["order"])
    tolerance = json.loads(system.attrs.get("settings", "{}")).get("tolerance")
    order = f"order {largest}"
    if tolerance is not None:
        order += f" for tolerance {tolerance:g}"
    elif largest < asked:
        order += f" ({asked} asked for)"
    changed = system.attrs.get("changed_by")
    by = f", changed by {changed}" if changed else ""
    return f"{system.attrs['method']}{by}, {order}"


def print_heading(
    console: Console, model: "DepthModel", texts: "Splits", result: "xr.Dataset", what: str
) -> None:
    """Which model, texts and concept a result is of."""
    attrs = result.attrs
    negative, positive = texts.concept.classes
    console.print(
        f"{model.name}: L = {model.n_layers}, H = {model.n_features}, {attrs['dtype']}, "
        f"{what}, {attrs['readout']} readout",
        soft_wrap=True,
        markup=False,
    )
    console.print(
        f"texts {attrs['texts']}, {attrs['split']} per class, seed {attrs['seed']}; the readout "
        f"grows from label {negative!r} to {positive!r}",
        soft_wrap=True,
        markup=False,
    )
    auc = result["auc"].values
    last = f"{auc[-1]:.2f}"
    if "auc_low" in result:
        low, high = float(result["auc_low"][-1]), float(result["auc_high"][-1])
        last += f" [{low:.2f}, {high:.2f}]"
    direction = f"the concept direction ({attrs['concept']})"
    verdict = "separates" if auc[-1] >= 0.8 else "weakly separates" if auc[-1] >= 0.6 else ""
    if "concept_warning" in attrs:
        text = "see the warning below"
    elif verdict:
        text = f"{direction} {verdict} held-out texts"
    else:
        text = (
            f"{direction} hardly separates held-out texts: its gains are real, but do not call "
            "them gains of the concept"
        )
    console.print(
        f"- AUC on {len(texts.held_out)} held-out texts: {auc[0]:.2f} at depth 0, {last} at depth "
        f"{model.n_layers}; {text}",
        soft_wrap=True,
        markup=False,
    )


def print_gains(console: Console, result: "xr.Dataset") -> list[str]:
    """Print agreement and error budget; gives what was found in words."""
    table = Table("agreement on held-out prompts", box=box.SIMPLE)
    for layers in result["layers"].values:
        table.add_column(str(layers).replace("_", " "))
    for injection in result["injection"].values:
        for name in ("spearman", "pearson", "relative_l2", "max_relative_error"):
            part = result[name].sel(injection=injection)
            row = [_interval(part.sel(layers=x).values) for x in result["layers"].values]
            table.add_row(f"{name} ({injection} injection)", *row)
    console.print(table)
    budget = Table("error budget (relative L2)", box=box.SIMPLE)
    for layers in result["layers"].values:
        budget.add_column(str(layers).replace("_", " "))
    for part in result["part"].values:
        chosen = result["error_budget"].sel(part=part)
        budget.add_row(
            str(part), *[_interval(chosen.sel(layers=x).values) for x in result["layers"].values]
        )
    console.print(budget)
    error = result["error_budget"].sel(layers="all", bound="estimate")
    causes = error.drop_sel(part="total")
    floor = result["noise_floor"].sel(layers="all", injection="absolute")
    worst = str(causes["part"].values[causes.values.argmax()])
    return [
        f"the surrogate misses the measured gains by {float(error.sel(part='total')):.1%} "
        f"(relative L2; {float(floor):.1%} would be sampling noise alone); the largest part is "
        f"{worst} (parts may cancel each other)"
    ]


def _interval(values) -> str:
    estimate, low, high = values
    text = f"{estimate:.4f}"
    return text if low != low else f"{text}  [{low:.4f}, {high:.4f}]"


def print_energies(console: Console, energies: "xr.Dataset") -> list[str]:
    """Print the energies of schedules; gives what was found in words."""
    table = Table("schedule", "energy", "multiple", box=box.SIMPLE)
    for name in energies["schedule"].values:
        row = energies.sel(schedule=name)
        reached = bool(row["reached"])
        remark = "" if bool(row["monotone"]) else "  (not monotone)"
        layer = int(row["layer_pushed"])
        single = f" ({layer})" if layer >= 0 and "random" not in str(name) else ""
        table.add_row(
            str(name).replace("_", " ") + single,
            f"{float(row['energy']):.4g}" if reached else "not reached",
            f"{float(row['multiple']):.3g}{remark}" if reached else f"-{remark}",
        )
    console.print(table)
    target = float(energies.attrs["target"])
    planned, found = float(energies["predicted_energy"]), float(energies["energy"][0])
    if found != found:
        return [f"the planned schedule does not reach a shift of {target:.3g} on the full model"]
    cheaper = energies["schedule"].values[energies["multiple"].values < 1]
    verdict = (
        f"cheaper on the full model: {', '.join(map(str, cheaper)).replace('_', ' ')}"
        if len(cheaper)
        else "no schedule of those compared is cheaper"
    )
    factor = max(found / planned, planned / found)
    linear = "" if factor < 1.5 else f", {factor:.1f} times off: the response is not linear there"
    return [
        f"a shift of {target:.3g} takes {energies.attrs['energy']} energy {found:.4g} on the full "
        f"model, planned {planned:.4g}{linear}; {verdict}"
    ]
