"""Where errors come from: parts side by side with the total. They do not add up to it."""

import numpy as np

from depthsys.report.html.chart import STYLES, Chart, Style, legend
from depthsys.report.html.dots import LEAST, dots
from depthsys.report.html.facts import Facts
from depthsys.report.html.parts import Section, figure, joined, paragraph
from depthsys.report.html.scales import logarithmic
from depthsys.report.html.scales import rows as from_above
from depthsys.report.html.svg import Markup
from depthsys.wording import percent

TOTAL = Style(1, -1, "bar")
PARTS = {
    "nonlinearity": Style(2, -1, "square"),
    "averaging": Style(3, -1, "triangle"),
    "sampling": Style(6, -1, "diamond"),
    "truncation": Style(4, -1, "circle"),
}
WHY = (
    "Each part is a distance between two gain curves, from the measured one through the exact "
    "linear one to the surrogate's. Distances in different directions cancel or overlap, so the "
    "parts do not add up to the total, and one of them may be larger than it."
)


def section(facts: list[Facts]) -> Section | None:
    """The parts of all cells on one scale."""
    rows = [each for each in facts if each.budget]
    if len(rows) < 2:
        return None
    label = "relative L2 error, all layers"
    named = [(each.name, each.budget) for each in rows]
    picture = dots(named, _style, label, "Error budgets of all cells")
    least = [x[0] for each in rows for x in each.budget.values() if np.isfinite(x[0])]
    low = f" Parts below {100 * LEAST:g} % are drawn there." if min(least) < LEAST else ""
    said = paragraph(f"{WHY}{low}")
    return Section(
        "budget", "Where the error comes from", joined(said, figure(picture, key=_key(rows)))
    )


def _key(rows: list[Facts]) -> Markup:
    parts = {part for each in rows for part in each.budget}
    return legend(*((part, _style(part)) for part in PARTS if part in parts), ("total", TOTAL))


def _style(part: str) -> Style:
    return TOTAL if part == "total" else PARTS.get(part, STYLES[6])


def bars(facts: Facts) -> Markup | None:
    """The parts of one cell with their intervals, on a logarithmic scale."""
    budget = {part: value for part, value in facts.budget.items() if np.isfinite(value[0])}
    if not budget:
        return None
    values = [max(x, LEAST) for v in budget.values() for x in v if np.isfinite(x)]
    chart = Chart(
        logarithmic([*values, LEAST * 10], unit="%"),
        from_above(len(budget)),
        "relative L2 error, all layers",
        title=f"Error budget, {facts.name}",
        height=30.0 * len(budget) + 58,
        left=92,
        top=6,
        rows=list(budget),
        grid="xy",
    )
    for place, (part, value) in enumerate(budget.items()):
        style, at = _style(part), float(place)
        low, high = (max(x, LEAST) for x in value[1:])
        chart.whisker((low, high), (at, at), style)
        chart.points([max(value[0], LEAST)], [at], style, [f"{part}: {percent(value)}"])
    return chart.markup()
