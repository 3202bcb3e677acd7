"""Plans: how hard they push where, what that takes beside simple schedules, and what it reaches."""

import numpy as np

from depthsys.report.html.chart import LINEAR, MEASURED, Chart, Style, legend
from depthsys.report.html.facts import Facts
from depthsys.report.html.parts import (
    Entry,
    Section,
    entry,
    in_parts,
    joined,
    number_entry,
    paragraph,
    percent_entry,
    sortable,
    times_entry,
)
from depthsys.report.html.scales import counts, linear, logarithmic
from depthsys.report.html.scales import rows as from_above
from depthsys.report.html.svg import Markup
from depthsys.report.stage import names_of, number_of, pick
from depthsys.wording import number, percent

PUSH, START = Style(2, -1, "square"), Style(1, -1, "square")


def section(facts: list[Facts]) -> Section | None:
    """Every plan beside the same push everywhere."""
    rows = [row for each in facts if (row := _row(each)) is not None]
    if not rows:
        return None
    said = paragraph(
        "The least energy that moves the readout by the target, beside simple schedules, each "
        "scaled on the full model until it reaches the same target on held-out prompts. Energy is "
        "the sum of squared pushes, each over the norm of the state where it is relative; "
        "“× 2” means twice the energy of the plan."
    )
    header = (
        "cell",
        "target",
        "reached",
        "largest push",
        "energy",
        "uniform",
        "best layer alone",
        "linear up to",
    )
    hints = {
        "reached": "share of the target on held-out prompts, played as planned",
        "largest push": "over the norm of the state it is added to",
        "uniform": "energy of the same push at every layer",
        "linear up to": "push at which exact linear gains miss measured ones by 5 %",
    }
    table = sortable(header, rows, label="Plans by cell", left=("target",), hints=hints)
    return Section("plans", "Plans and energies", joined(said, table))


def _row(facts: Facts) -> list[Entry] | None:
    about = facts.cell.stage("plan") or facts.schedules
    if about is None:
        return None
    asked = str(about.attrs.get("target_asked", about.attrs.get("target", "")))
    return [
        entry(in_parts(facts.name), facts.name),
        entry(asked.replace("std", " std")),
        percent_entry(facts.reached),
        percent_entry([facts.largest_push]),
        number_entry(facts.energy[0]),
        times_entry(facts.uniform),
        times_entry([number_of(facts.schedules, "multiple", schedule="best_single_layer")]),
        percent_entry([facts.step_limit]),
    ]


def pushes(facts: Facts) -> tuple[Markup, Markup | None] | None:
    """Push over the norm of the state at every layer, in bars, with the linear plan in outline."""
    plan = facts.cell.stage("plan")
    push, u = pick(plan, "push", "layer"), pick(plan, "u", "layer")
    if push is None or u is None:
        push, u = _of_schedule(facts)
    if push is None:
        return None
    layers = np.arange(len(push), dtype=float)
    signed = push if u is None else np.where(u < 0, -push, push)
    linear_push, linear_u = pick(plan, "linear_push", "layer"), pick(plan, "linear_u", "layer")
    other = None
    if linear_push is not None and linear_u is not None:
        other = np.where(linear_u < 0, -linear_push, linear_push)
    shown = np.concatenate([signed, [] if other is None else other])
    unit = "%" if plan is not None else ""
    name = "push / norm of the state" if plan is not None else "push, in units of the state"
    chart = Chart(
        counts(layers, 12),
        linear(shown, zero=True, unit=unit),
        "layer",
        name,
        f"Pushes, {facts.name}",
    )
    for layer, value in zip(layers, signed, strict=True):
        said = f"layer {layer:.0f}: {_size(value, unit)}"
        chart.bar(layer, value, 0.62, PUSH, said)
    if other is not None:
        for layer, value in zip(layers, other, strict=True):
            ends = (layer - 0.36, layer + 0.36)
            chart.whisker(ends, (value, value), START)
    chart.across(0.0, name="zero")
    if other is None:
        return chart.markup(), None
    return chart.markup(), legend(
        ("optimum of the full model", "bar c2"), ("plan of the linear system", "l c1")
    )


def _of_schedule(facts: Facts) -> tuple[np.ndarray | None, np.ndarray | None]:
    found = pick(facts.schedules, "u", "layer")
    return (None, None) if found is None else (np.abs(found), found)


def _size(value: float, unit: str) -> str:
    return percent([value]) if unit == "%" else number(value)


def schedules(facts: Facts) -> Markup | None:
    """Energies of schedules in multiples of that of the plan."""
    data = facts.schedules
    names = names_of(data, "schedule")
    if data is None or not names or "multiple" not in data:
        return None
    rows = [(name, *_multiple(facts, name)) for name in names]
    known = [value for _, *three in rows for value in three if np.isfinite(value)]
    if not known:
        return None
    chart = Chart(
        logarithmic([*known, 1.0], unit=" ×"),
        from_above(len(rows)),
        f"{data.attrs.get('energy', '')} energy / that of the plan".strip(),
        title=f"Energies of schedules, {facts.name}",
        height=25.0 * len(rows) + 56,
        left=136,
        top=6,
        rows=[_named(facts, name) for name in names],
        grid="xy",
    )
    chart.across(1.0, along="x")
    for place, (name, value, low, high) in enumerate(rows):
        mine = name == data.attrs.get("reference")
        style = Style(2 if mine else 1, -1, "diamond" if mine else "circle")
        at = float(place)
        if not np.isfinite(value):
            chart.words("target not reached", chart.x.low * 1.03, at, "in row")
            continue
        chart.whisker((low, high), (at, at), style)
        chart.points([value], [at], style, [f"{name.replace('_', ' ')}: × {number(value)}"])
    return chart.markup()


def _multiple(facts: Facts, name: str) -> tuple[float, float, float]:
    found = [
        number_of(facts.schedules, n, schedule=name)
        for n in ("multiple", "multiple_low", "multiple_high")
    ]
    return found[0], found[1], found[2]


def _named(facts: Facts, name: str) -> str:
    layer = number_of(facts.schedules, "layer_pushed", schedule=name)
    single = f" ({layer:.0f})" if layer >= 0 and "random" not in name else ""
    return name.replace("_", " ") + single


def single_layers(facts: Facts) -> Markup | None:
    """Energy that each layer alone would take."""
    energy = pick(facts.schedules, "single_energy", "layer")
    if energy is None or not np.isfinite(energy).any():
        return None
    layers = np.arange(len(energy), dtype=float)
    mine = facts.energy[0]
    chart = Chart(
        counts(layers, 12),
        logarithmic([*energy, mine]),
        "layer pushed alone",
        "energy for the target",
        f"Energy of single layers, {facts.name}",
    )
    if np.isfinite(mine):
        chart.across(mine, "all layers, planned")
    said = [f"layer {n:.0f} alone: {number(e)}" for n, e in zip(layers, energy, strict=True)]
    chart.line(layers, energy, MEASURED, said)
    for layer in layers[~np.isfinite(energy)]:
        chart.words("–", float(layer), chart.y.low * 1.05, "in mid")
    return chart.markup()


def amplitudes(facts: Facts) -> tuple[Markup, Markup] | None:
    """Shift of the readout over how many times the plan is played, and what linearity predicts."""
    data = facts.cell.stage("verified")
    played = next(iter(names_of(data, "played")), None)
    at = pick(data, "amplitude", "amplitude")
    predicted = pick(data, "predicted", "amplitude", played=played)
    achieved = [
        pick(data, "achieved", "amplitude", played=played, bound=b)
        for b in ("estimate", "low", "high")
    ]
    if data is None or at is None or predicted is None or any(a is None for a in achieved):
        return None
    target = float(data.attrs.get("target", "nan"))
    mean, low, high = (np.asarray(a) for a in achieved)
    chart = Chart(
        linear(at, zero=True),
        linear([*mean, *predicted, *low, *high], zero=True),
        "times the plan",
        "shift of the readout",
        f"Achieved shift, {facts.name}",
    )
    if np.isfinite(target):
        chart.across(target, "target")
    chart.band(at, low, high, MEASURED)
    chart.line(
        at,
        predicted,
        LINEAR,
        [
            f"× {number(a, zeros=False)}, predicted: {number(p)}"
            for a, p in zip(at, predicted, strict=True)
        ],
    )
    chart.line(
        at,
        mean,
        MEASURED,
        [
            f"× {number(a, zeros=False)}, achieved: {number(m)}"
            for a, m in zip(at, mean, strict=True)
        ],
    )
    return chart.markup(), legend(("achieved on held-out prompts", MEASURED), ("predicted", LINEAR))
