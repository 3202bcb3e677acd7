"""Reduction methods by order: their errors on the full model, and their certificates."""

import numpy as np

from depthsys.report.html.chart import STYLES, Chart, Style, legend
from depthsys.report.html.dots import dots
from depthsys.report.html.facts import Facts
from depthsys.report.html.parts import (
    Entry,
    Section,
    count_entry,
    entry,
    figure,
    fixed_entry,
    in_parts,
    joined,
    opened,
    paragraph,
    percent_entry,
    sortable,
)
from depthsys.report.html.scales import Scale, logarithmic
from depthsys.report.html.svg import Markup
from depthsys.report.stage import names_of, number_of, pick
from depthsys.wording import listed, percent

_MAIN = {"layers": "all", "injection": "absolute"}
_ORDER = ("ensemble", "balanced", "krylov", "arnoldi", "two_sided", "pod", "adjoint", "random")
_REFERENCES = {"mean_system": "mean system", "mean_response": "mean response"}


def style_of(name: str) -> Style:
    """The look of a method, the same in all figures."""
    place = _ORDER.index(name) if name in _ORDER else sum(map(ord, name))
    return STYLES[place % len(STYLES)]


def section(facts: list[Facts]) -> Section | None:
    """Every method over all cells, and in every cell, at a small order."""
    compared = [each for each in facts if each.methods]
    if not compared:
        return None
    said = paragraph(
        "Every method reduces the same model to so many states; its error is the relative L2 "
        "distance of predicted from measured gains on held-out prompts. Better and worse count the "
        "cells in which prompts drawn again (paired, 95 %) tell a method from the first one."
    )
    header = ("cell", "method", "order", "states", "error", "operating", "Spearman", "beside")
    hints = {
        "operating": "error on the prompts that the system is made of",
        "beside": "what the paired interval of the difference of errors says",
    }
    every = sortable(
        header,
        (row for each in compared for row in _rows(each)),
        label="Methods by cell",
        left=("method", "beside"),
        hints=hints,
    )
    parts = [said]
    if len(compared) > 1:
        label = "relative L2 error, all layers (logarithmic)"
        rows = [
            (each.name, {n: row[each.small_order] for n, row in each.methods.items()})
            for each in compared
        ]
        names = dict.fromkeys(name for _, row in rows for name in row)
        key = legend(*((n, _mark(n)) for n in names))
        picture = dots(rows, _mark, label, "Errors of methods in all cells")
        orders = listed(sorted({str(each.small_order) for each in compared}))
        parts += [_over_cells(compared, list(names))]
        parts += [figure(picture, f"Errors at order {orders}, cell by cell", key=key)]
        every = opened("All methods in all cells", every)
    return Section("methods", "Reduction methods", joined(*parts, every))


def _mark(name: str) -> Style:
    style = style_of(name)
    return Style(style.color, -1, style.marker)


def _over_cells(facts: list[Facts], names: list[str]) -> Markup:
    """One row for each method."""
    rows = []
    for name in names:
        here = [each for each in facts if name in each.methods]
        errors = np.array([each.methods[name][each.small_order][0] for each in here])
        known = errors[np.isfinite(errors)]
        beside = [beside_first(each, name, each.small_order) for each in here]
        middle, most = (
            float(f(known)) if known.size else float("nan") for f in (np.median, np.max)
        )
        best = sum(_is_best(each, name) for each in here)
        rows.append(
            (
                entry(name),
                percent_entry([middle]),
                percent_entry([most]),
                Entry(f"{best} of {len(here)}", best / len(here)),
                Entry(*[sum(said.startswith("better") for said in beside)] * 2),
                Entry(*[sum(said.startswith("worse") for said in beside)] * 2),
            )
        )
    header = ("method", "median error", "largest", "smallest of its cell", "better", "worse")
    hints = {"smallest of its cell": "or equal to it but for rounding"}
    return sortable(header, rows, label="Methods over all cells", hints=hints)


def _is_best(facts: Facts, name: str) -> bool:
    errors = [row[facts.small_order][0] for row in facts.methods.values()]
    known = [error for error in errors if np.isfinite(error)]
    return bool(known) and facts.methods[name][facts.small_order][0] <= 1.001 * min(known)


def _rows(facts: Facts):
    table, order = facts.cell.stage("comparison"), facts.small_order
    for name, errors in facts.methods.items():
        at = {"basis": name, "order": order}
        own = {**at, "layers": "all", "bound": "estimate"}
        rank = [
            number_of(table, "spearman", **at, **_MAIN, bound=b)
            for b in ("estimate", "low", "high")
        ]
        yield (
            entry(in_parts(facts.name), facts.name),
            entry(name),
            count_entry(order),
            count_entry(number_of(table, "states", **at)),
            percent_entry(errors[order]),
            percent_entry([number_of(table, "relative_l2_operating", **own)]),
            fixed_entry(rank),
            entry(beside_first(facts, name, order)),
        )


def beside_first(facts: Facts, name: str, order: int) -> str:
    """Whether the paired interval tells a method from the first of its comparison."""
    table = facts.cell.stage("comparison")
    first = next(iter(facts.methods))
    if name == first:
        return "the first"
    at = {"basis": name, "order": order, "layers": "all"}
    low, high = (number_of(table, "relative_l2_gap", **at, bound=b) for b in ("low", "high"))
    if not np.isfinite([low, high]).all():
        return "not known"
    if low > 0:
        return f"worse than {first}"
    return f"better than {first}" if high < 0 else f"not told from {first}"


def verdict(facts: Facts) -> str:
    """Which method is best at a small order, and how sure that is."""
    order = facts.small_order
    errors = {name: row[order] for name, row in facts.methods.items() if np.isfinite(row[order][0])}
    if not errors:
        return f"no method has a known relative L2 error at order {order}"
    least = min(value[0] for value in errors.values())
    same = [name for name, value in errors.items() if value[0] <= 1.001 * least]
    said = (
        f"order {order}: {listed(same)} {'has' if len(same) == 1 else 'have'} the smallest "
        f"relative L2 error, {percent(errors[same[0]])}"
    )
    first = next(iter(facts.methods))
    told = {name: beside_first(facts, name, order).split(" than ")[0] for name in errors}
    for how in ("better", "worse"):
        names = [name for name, each in told.items() if each == how]
        if names:
            said += f"; {how} than {first} by more than chance: {listed(names)}"
    unsure = [name for name, each in told.items() if each.startswith("not told")]
    if unsure:
        said += f"; on resampled prompts (paired) not told from {first}: {listed(unsure)}"
    return said


def agreement(facts: Facts) -> tuple[Markup, Markup] | None:
    """Errors over order, a line for each method, and their legend."""
    methods = facts.methods
    values = [v[0] for row in methods.values() for v in row.values() if v[0] > 0]
    if not values:
        return None
    floor = number_of(facts.cell.stage("comparison"), "noise_floor", **_MAIN)
    orders = sorted({order for row in methods.values() for order in row})
    chart = Chart(
        _orders(orders),
        logarithmic([*values, floor], decades=5, unit="%"),
        "order",
        "relative L2 error",
        f"Error by order, {facts.name}",
    )
    if np.isfinite(floor):
        chart.across(floor, "noise of the prompts")
    for name, row in methods.items():
        errors = [row[order][0] for order in orders]
        said = [f"{name}, order {o}: {percent(row[o])}" for o in orders]
        chart.line(orders, errors, style_of(name), said)
    return chart.markup(), legend(*((name, style_of(name)) for name in methods))


def _orders(orders: list[int]) -> Scale:
    """Orders double; each has a tick."""
    low, high = min(orders), max(orders)
    return Scale(low / 1.15, high * 1.15, log=True, ticks=tuple(map(float, orders)))


def certificates(facts: Facts) -> list[tuple[str, Markup]]:
    """Exact errors over order, above the least possible and below what is proved."""
    table = facts.cell.stage("comparison")
    drawn = []
    for reference in names_of(table, "reference"):
        found = _certificate(facts, reference)
        if found is not None:
            drawn.append((_REFERENCES.get(reference, reference), found))
    return drawn


def _certificate(facts: Facts, reference: str) -> Markup | None:
    table = facts.cell.stage("comparison")
    orders = pick(table, "order", "order")
    norm = number_of(table, "norm", reference=reference)
    error = pick(table, "error", "basis", "order", reference=reference)
    upper = pick(table, "upper", "basis", "order", reference=reference)
    lower = pick(table, "lower", "order", reference=reference)
    slack = number_of(table, "resolution", reference=reference) / norm
    if orders is None or error is None or upper is None or lower is None or not norm > 0:
        return None
    error, upper, lower = error / norm, upper / norm, lower / norm
    # what is below rounding is drawn at it: it cannot be told from zero
    floor = slack if slack > 0 else 1e-12
    shown = np.maximum([*error.ravel(), *upper.ravel(), *lower, floor], floor)
    scale = logarithmic(shown, decades=12, unit="%")
    chart = Chart(
        _orders([int(o) for o in orders]),
        scale,
        "order",
        "exact error / norm",
        f"Certificates, {_REFERENCES.get(reference, reference)}, {facts.name}",
    )
    chart.across(floor, "what rounding explains")
    known = np.where(lower > floor, lower, np.nan)
    chart.line(
        orders,
        known,
        Style(8, 1, "bar"),
        [
            f"no model of order {o:.0f} is below {percent([v])}"
            for o, v in zip(orders, lower, strict=True)
        ],
    )
    for name, row, top in zip(names_of(table, "basis"), error, upper, strict=True):
        style = style_of(name)
        for order, value, most in zip(orders, row, top, strict=True):
            if np.isfinite(most) and np.isfinite(value):
                ends = max(value, floor), max(most, floor)
                chart.whisker((order, order), ends, style)
        said = [
            f"{name}, order {o:.0f}: {percent([v])}"
            + (f", proved to be below {percent([m])}" if np.isfinite(m) else "")
            for o, v, m in zip(orders, row, top, strict=True)
        ]
        chart.line(orders, np.where(np.isfinite(row), np.maximum(row, floor), np.nan), style, said)
    return chart.markup()
