"""A way through a plane: a line from place to place, with a word at some of them."""

import numpy as np

from depthsys.report.html.chart import STYLES, Chart
from depthsys.report.html.labels import Box, beside
from depthsys.report.html.scales import linear
from depthsys.report.html.svg import Markup, tag
from depthsys.wording import number

NAMED = 7  # places with a word, at most


def picture(
    points: np.ndarray, places: np.ndarray, axes: tuple[str, str], along: str, title: str
) -> Markup | None:
    """The figure of (place, 2) numbers; None where fewer than two are finite."""
    known = np.isfinite(points).all(axis=1)
    if known.sum() < 2:
        return None
    points, places = points[known], places[known]
    across, up = axes
    chart = Chart(linear(points[:, 0]), linear(points[:, 1]), across, up, title, grid="xy")
    said = [
        f"{along} {place:g}: {number(x)}, {number(y)}"
        for place, (x, y) in zip(places, points, strict=True)
    ]
    chart.line(points[:, 0], points[:, 1], STYLES[1], said)
    drawn = [(chart.x(x), chart.y(y)) for x, y in points]
    frame = Box(chart.x.start, chart.y.end - 8, chart.x.end, chart.y.start)
    named = [(f"{places[i]:g}", drawn[i]) for i in _spread(drawn)]
    for label in beside(named, [drawn], frame):
        classes = f"in on {label.anchor}".rstrip()
        chart.add(tag("text", label.said, class_=classes, x=label.x, y=label.y))
    return chart.markup()


def _spread(drawn: list[tuple[float, float]]) -> list[int]:
    """The ends, and places about equally far apart on the page: most lie close together."""
    steps = np.hypot(*np.diff(np.array(drawn), axis=0).T)
    gone = np.append(0.0, np.cumsum(steps))
    if not gone[-1]:
        return [0]
    marks = np.linspace(0, gone[-1], min(NAMED, len(drawn)))
    between = {int(np.abs(gone - mark).argmin()) for mark in marks[1:-1]}
    ends = [0, len(drawn) - 1]
    return [*ends, *sorted(between - {*ends})]
