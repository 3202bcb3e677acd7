"""Agreement of surrogates with the full model, against the size of the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from depthsys.report.html.chart import STYLES, Chart, Style, legend
from depthsys.report.html.facts import Facts, Three
from depthsys.report.html.methods import style_of
from depthsys.report.html.parts import Section, figure, grid, joined, paragraph
from depthsys.report.html.scales import Scale, logarithmic
from depthsys.report.html.svg import Markup, tag
from depthsys.wording import counted, listed, percent

WIDTH, LEFT, RIGHT = 460.0, 52.0, 18.0
APART = 9.0  # between marks of one model, and half of that to those of the next
LABEL = 58.0  # room that the size of a model takes


@dataclass(frozen=True)
class Mark:
    """An error with its line, of one model."""

    model: str
    size: int
    series: str
    error: Three
    said: str


def section(facts: list[Facts]) -> Section | None:
    """Errors by size, a colour for each task; and of each method."""
    sized = [each for each in facts if each.n_parameters]
    if len({each.n_parameters for each in sized}) < 2:
        return None
    own, compared = (_of_sizes(marks) for marks in (_systems(sized), _methods(sized)))
    figures = []
    if own:
        styles = {t: _seen_on_lines(STYLES[i % len(STYLES)]) for i, t in enumerate(_series(own))}
        chart = _by_size(own, styles, "Error of the identified systems by size of the model")
        title = _title("The identified systems, by task", "95 % intervals over prompts")
        figures.append(figure(chart, title, key=_key(styles)))
    if compared:
        styles = {name: _seen_on_lines(style_of(name)) for name in _series(compared)}
        chart = _by_size(compared, styles, "Error of methods by size of the model")
        orders = listed([str(o) for o in sorted({f.small_order for f in sized if f.methods})])
        said = f"the median over {_over(sized)}; lines from the least to the largest"
        title = _title(f"Methods at order {orders}", said)
        figures.append(figure(chart, title, key=_key(styles)))
    if not figures:
        return None
    said = paragraph(
        "Relative L2 error of predicted gains by the number of parameters; the method stays the "
        f"same. Marks of one model stand side by side: {_models(sized)}."
    )
    return Section(
        "scaling", "Agreement by size of the model", joined(said, grid(figures, "large"))
    )


def _title(what: str, said: str) -> Markup:
    return joined(f"{what}: ", tag("span", said))


def _seen_on_lines(style: Style) -> Style:
    """A bar could not be seen on a line upwards."""
    return replace(style, marker="dash") if style.marker == "bar" else style


def _systems(facts: list[Facts]) -> list[Mark]:
    """Each cell."""
    return [
        Mark(f.cell.model, f.n_parameters, f.cell.task, f.error, f"{f.name}: {percent(f.error)}")
        for f in facts
        if f.error[0] > 0
    ]


def _methods(facts: list[Facts]) -> list[Mark]:
    """Each method on each model: the median of its cells, the least and the largest of them."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for each in facts:
        for name, row in each.methods.items():
            error = row[each.small_order][0]
            if error > 0:
                key = (each.cell.model, each.n_parameters, name)
                found.setdefault(key, []).append(error)
    marks = []
    for (model, size, name), errors in found.items():
        middle, least, most = (float(f(errors)) for f in (np.median, min, max))
        many = counted(len(errors), "cell")
        said = f"{model}, {name}: {percent([middle])}, {percent([least])} to {percent([most])}"
        marks.append(Mark(model, size, name, (middle, least, most), f"{said} in {many}"))
    return marks


def _of_sizes(marks: list[Mark]) -> list[Mark]:
    """The marks where they are of more than one size."""
    return marks if len({mark.size for mark in marks}) > 1 else []


def _over(facts: list[Facts]) -> str:
    seeds = {each.cell.seed for each in facts}
    return "tasks and seeds" if len(seeds) > 1 else "tasks"


def _series(marks: list[Mark]) -> list[str]:
    return list(dict.fromkeys(mark.series for mark in marks))


def _models(facts: list[Facts]) -> str:
    """Names behind sizes, the smallest first."""
    sizes = {each.cell.model: each.n_parameters for each in facts}
    label = Scale(0, 1, unit="parameters").label
    return listed([f"{label(sizes[m])} is {m}" for m in sorted(sizes, key=lambda m: sizes[m])])


def _key(styles: dict[str, Style]) -> Markup:
    return legend(*((name, Style(s.color, -1, s.marker)) for name, s in styles.items()))


def _by_size(marks: list[Mark], styles: dict[str, Style], title: str) -> Markup:
    marks = sorted(marks, key=lambda mark: mark.size)
    models = {mark.model: mark.size for mark in marks}
    most = max(sum(mark.model == model for mark in marks) for model in models)
    axis, at, in_order = sizes_along(list(models.values()), most)
    chart = Chart(
        axis,
        logarithmic([v for mark in marks for v in mark.error if v > 0], decades=5, unit="%"),
        "parameters, models in the order of size" if in_order else "parameters",
        "relative L2 error",
        title,
        width=WIDTH,
        height=280,
        left=LEFT,
        right=RIGHT,
    )
    names = list(styles)
    unit = (axis.high - axis.low) / _room()
    for place, model in enumerate(models):
        here = [mark for mark in marks if mark.model == model]
        here.sort(key=lambda mark: names.index(mark.series))
        step = unit * min(APART, _room() / len(models) * 0.8 / len(here))
        for number, mark in enumerate(here):
            x, style = at[place] + step * (number - (len(here) - 1) / 2), styles[mark.series]
            value, low, high = mark.error
            if low > 0:
                chart.whisker((x, x), (low, high), style)
            chart.points([x], [value], style, [mark.said])
    return chart.markup()


def _room() -> float:
    return WIDTH - LEFT - RIGHT


def sizes_along(sizes: Sequence[int], most: int) -> tuple[Scale, list[float], bool]:
    """An axis, places of models in the order of size, and whether the order alone is shown.

    By the logarithm where models with so many marks at ``most`` keep clear of each other; else one
    after the other, each with its size written.
    """
    label = Scale(0, 1, unit="parameters").label
    names = tuple(label(size) for size in sizes)
    at = np.log(np.asarray(sizes, dtype=float))
    margin = 0.14 * (at[-1] - at[0])
    need = max(LABEL, APART * (most + 0.5)) / _room() * (at[-1] - at[0] + 2 * margin)
    in_order = bool((np.diff(at) < need).any())
    if in_order:
        at, margin = np.arange(len(sizes), dtype=float), 0.6
    places = tuple(map(float, at))
    axis = Scale(places[0] - margin, places[-1] + margin, ticks=places, names=names)
    return axis, list(places), in_order
