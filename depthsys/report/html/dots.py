"""A row of marks for each cell, on one scale."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from depthsys.report.html.chart import Chart, Style
from depthsys.report.html.facts import Three
from depthsys.report.html.scales import logarithmic
from depthsys.report.html.scales import rows as from_above
from depthsys.report.html.svg import Markup, tag
from depthsys.wording import percent

LEAST = 1e-5  # what is less is rounding, and drawn there
LONGEST = 38  # letters of a name


def dots(
    rows: Sequence[tuple[str, Mapping[str, Three]]],
    style_of: Callable[[str], Style],
    label: str,
    title: str,
) -> Markup:
    """Marks of every row at the errors of that row, from above; it scrolls where it is narrow.

    Parameters
    ----------
    rows
        A name, and estimates with their intervals by the names of their marks.
    style_of
        The look of a mark by its name.
    label, title
        What the scale shows, and what is told to those who cannot see the figure.
    """
    known = [max(v[0], LEAST) for _, row in rows for v in row.values() if np.isfinite(v[0])]
    longest = min(max(len(name) for name, _ in rows), LONGEST)
    chart = Chart(
        logarithmic([*known, 10 * LEAST] if min(known, default=1) <= LEAST else known, unit="%"),
        from_above(len(rows)),
        label,
        title=title,
        width=680,
        height=25.0 * len(rows) + 60,
        left=24 + 6.6 * longest,
        top=6,
        rows=[_cut(name) for name, _ in rows],
        grid="xy",
    )
    for place, (name, row) in enumerate(rows):
        for mark, value in row.items():
            if np.isfinite(value[0]):
                said = f"{name}, {mark}: {percent(value)}"
                chart.points([max(value[0], LEAST)], [float(place)], style_of(mark), [said])
    return tag("div", chart.markup(), class_="tall")


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
