"""Agreement of surrogates with the full model, against the size of the model."""

import numpy as np

from depthsys.report.html.chart import STYLES, Chart, Style, legend
from depthsys.report.html.facts import Facts, Three
from depthsys.report.html.methods import style_of
from depthsys.report.html.parts import Section, figure, grid, joined, paragraph
from depthsys.report.html.scales import logarithmic
from depthsys.report.html.svg import Markup
from depthsys.wording import percent

APART = 0.035  # of the axis, between cells of one size


def section(facts: list[Facts]) -> Section | None:
    """Errors by size, a colour for each task; and of each method."""
    sizes = {each.n_parameters for each in facts if each.n_parameters}
    if len(sizes) < 2:
        return None
    figures = []
    own = [(each.cell.task, each, each.error) for each in facts if each.n_parameters]
    if any(np.isfinite(error[0]) for *_, error in own):
        tasks = list(dict.fromkeys(task for task, *_ in own))
        styles = {task: STYLES[i % len(STYLES)] for i, task in enumerate(tasks)}
        chart = _by_size(own, styles, "Error of the identified systems by size of the model")
        figures.append(figure(chart, "The identified systems, by task", key=_key(styles)))
    compared = [
        (name, each, row[each.small_order])
        for each in facts
        if each.n_parameters
        for name, row in each.methods.items()
    ]
    if compared:
        names = list(dict.fromkeys(name for name, *_ in compared))
        styles = {name: style_of(name) for name in names}
        orders = sorted({each.small_order for _, each, _ in compared})
        shown = " and ".join(map(str, orders))
        chart = _by_size(compared, styles, "Error of methods by size of the model")
        figures.append(figure(chart, f"Methods at order {shown}", key=_key(styles)))
    if not figures:
        return None
    said = paragraph(
        "Relative L2 error of predicted gains with its 95 % interval over prompts, by the number "
        "of parameters; the method stays the same. Marks of one size stand side by side."
    )
    return Section(
        "scaling", "Agreement by size of the model", joined(said, grid(figures, "large"))
    )


def _key(styles: dict[str, Style]) -> Markup:
    return legend(*((name, Style(s.color, -1, s.marker)) for name, s in styles.items()))


def _by_size(rows: list[tuple[str, Facts, Three]], styles: dict[str, Style], title: str) -> Markup:
    sizes = sorted({each.n_parameters for _, each, _ in rows})
    values = [v for *_, three in rows for v in three if v > 0]
    chart = Chart(
        logarithmic(
            [sizes[0] / 1.6, sizes[-1] * 1.6], unit="parameters", ticks=tuple(map(float, sizes))
        ),
        logarithmic(values, decades=5, unit="%"),
        "parameters",
        "relative L2 error",
        title,
        width=460,
        height=280,
    )
    names = list(styles)
    wide = (chart.x.high / chart.x.low) ** APART
    for size in sizes:
        here = [row for row in rows if row[1].n_parameters == size]
        here.sort(key=lambda row: names.index(row[0]))
        for place, (name, each, (value, low, high)) in enumerate(here):
            at = size * wide ** ((place - (len(here) - 1) / 2) * min(1.0, 8 / len(here)))
            style = styles[name]
            if low > 0:
                chart.whisker((at, at), (low, high), style)
            if value > 0:
                said = f"{each.name}, {name}: {percent((value, low, high))}"
                chart.points([at], [value], style, [said])
    return chart.markup()
