"""Depth as dynamics: curves, maps and tables of its measures, of one cell and of all."""

import numpy as np

from depthsys.report.dynamics import SHOWN
from depthsys.report.dynamics.shown import Drawn, Shown, places_along
from depthsys.report.html import heat, ways
from depthsys.report.html.chart import STYLES, Chart, Style, legend
from depthsys.report.html.facts import Facts
from depthsys.report.html.parts import Section, figure, grid, joined, paragraph, plain
from depthsys.report.html.scales import Scale, linear, logarithmic
from depthsys.report.html.scales import counts as whole_numbers
from depthsys.report.html.svg import Markup, tag
from depthsys.report.stage import Stage
from depthsys.wording import number

MOST = len(STYLES)  # cells that one figure can tell apart
Line = tuple[str, np.ndarray, np.ndarray, Style]  # name, places, values


def section(facts: list[Facts]) -> Section | None:
    """The first figure of every measure that several cells have, a line for each cell."""
    figures = [f for name in SHOWN for f in _across(name, facts)]
    if not figures:
        return None
    said = paragraph(
        "What else is measured of depth as a dynamical system. Layers are told by their place in "
        "the model, from 0 at the first to 1 at the last. Further curves are with each cell."
    )
    return Section("dynamics", "Depth as dynamics", joined(said, grid(figures, "large")))


def _across(name: str, facts: list[Facts]) -> list[Markup]:
    drawn = SHOWN[name].figures[0]
    first = drawn.curves[0]
    lines: list[Line] = []
    known = [(each, stage) for each in facts if (stage := each.cell.stage(name)) is not None]
    for place, (each, stage) in enumerate(known[:MOST]):
        values = first.values(stage, drawn.dim)
        if values is not None:
            along = np.linspace(0, 1, len(values)) if len(values) > 1 else np.zeros(1)
            lines.append((each.name, along, values, STYLES[place]))
    if len(lines) < 2:
        return []
    title = f"{drawn.title}: {first.label}"
    note = drawn.note
    if len(known) > MOST:
        note = f"{note} The first {MOST} of {len(known)} cells.".strip()
    chart = _chart(lines, drawn, title, f"{drawn.dim}, share of the model", linear([0.0, 1.0]))
    return [figure(chart, title, note, _key(lines))] if chart is not None else []


def measures(facts: Facts) -> list[Markup]:
    """What each measure of a cell shows, under its name."""
    found = []
    for name, shown in SHOWN.items():
        if (stage := facts.cell.stage(name)) is None:
            continue
        drawn = [*_curves(shown, stage, facts), *_maps(shown, stage, facts)]
        drawn += _ways(shown, stage, facts)
        tables = [plain(each) for each in shown.tables(stage)]
        if drawn or tables:
            heading = tag("h4", shown.called[0].upper() + shown.called[1:])
            found.append(joined(heading, grid(drawn) if drawn else None, *tables))
    return found


def _curves(shown: Shown, stage: Stage, facts: Facts) -> list[Markup]:
    found = []
    for drawn in shown.figures:
        if not (lines := _lines(stage, drawn)):
            continue
        x = logarithmic(lines[0][1]) if drawn.log_x else whole_numbers(lines[0][1], 12)
        title = f"{drawn.title}, {facts.name}"
        chart = _chart(lines, drawn, title, drawn.dim.replace("_", " "), x)
        if chart is not None:
            found.append(figure(chart, drawn.title, drawn.note, _key(lines)))
    return found


def _maps(shown: Shown, stage: Stage, facts: Facts) -> list[Markup]:
    found = []
    for drawn in shown.maps:
        cells = drawn.cells(stage) if drawn.variables <= stage.variables.keys() else None
        title = f"{drawn.title}, {facts.name}"
        made = None if cells is None else heat.picture(cells, drawn, title)
        if made is not None:
            picture, said = made
            found.append(figure(picture, drawn.title, f"{drawn.note} {said}".strip()))
    return found


def _ways(shown: Shown, stage: Stage, facts: Facts) -> list[Markup]:
    found = []
    for drawn in shown.ways:
        if (points := drawn.points(stage)) is None:
            continue
        places = places_along(stage, drawn.along, len(points))
        title = f"{drawn.title}, {facts.name}"
        picture = ways.picture(points, places, drawn.axes(stage), drawn.along, title)
        if picture is not None:
            found.append(figure(picture, drawn.title, drawn.note))
    return found


def _lines(stage: Stage, drawn: Drawn) -> list[Line]:
    found: list[Line] = []
    for place, curve in enumerate(drawn.curves):
        values = curve.values(stage, drawn.dim)
        if values is None:
            continue
        along = places_along(stage, drawn.dim, len(values))
        if drawn.left_out is not None:
            kept = ~drawn.left_out(stage)
            along, values = along[kept], values[kept]
        if np.isfinite(values).any():
            found.append((curve.label, along, values, STYLES[place]))
    return found


def _chart(lines: list[Line], drawn: Drawn, title: str, x_label: str, x: Scale) -> Markup | None:
    every = np.concatenate([values for _, _, values, _ in lines])
    every = every[np.isfinite(every)]
    if drawn.log:
        every = every[every > 0]
    if not every.size:
        return None
    y = logarithmic(every, decades=9) if drawn.log else linear(every)
    chart = Chart(x, y, x_label, drawn.unit, title)
    if not drawn.log and y.low < 0 < y.high:
        chart.across(0.0, name="zero")
    if drawn.reference is not None and y.within(drawn.reference):
        chart.across(drawn.reference)
    for name, along, values, style in lines:
        row = np.where(values > 0, values, np.nan) if drawn.log else values
        said = [f"{name}, {place:.3g}: {number(v)}" for place, v in zip(along, values, strict=True)]
        chart.line(along, row, style, said)
    return chart.markup()


def _key(lines: list[Line]) -> Markup:
    return legend(*((name, style) for name, _, _, style in lines))
