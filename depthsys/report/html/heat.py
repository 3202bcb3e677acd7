"""A map in SVG: the numbers of rows and columns as colours, with a bar that says which.

Cells of one colour are one path, so that a map of a thousand cells takes some tens of kB.
"""

from itertools import groupby

import numpy as np

from depthsys.report.dynamics.shown import Cells, Map
from depthsys.report.html.chart import Chart
from depthsys.report.html.scales import Scale, counts, linear, logarithmic
from depthsys.report.html.svg import Markup, place, tag
from depthsys.wording import number

LEVELS = 40  # colours, which the eye can hardly tell from more
# viridis: its steps are as even to the eye in grey as in colour, on paper and on a dark screen
_VIRIDIS = (
    "440154", "48186a", "472d7b", "424086", "3b528b", "33638d", "2c728e", "26828e", "21918c",
    "1fa088", "28ae80", "3fbc73", "5ec962", "84d44b", "addc30", "d8e219", "fde725",
)  # fmt: skip
_RIGHT, _GAP, _WIDE = 66.0, 12.0, 11.0  # room for the bar, before it, and of itself
HEIGHT, TALL = 252.0, 340.0


def picture(cells: Cells, drawn: Map, title: str) -> tuple[Markup, str] | None:
    """The figure, and its smallest, middle and largest numbers in words.

    None where no number can be shown.
    """
    values = np.where(np.isfinite(cells.values), cells.values, np.nan)
    if drawn.log:
        values = np.where(values > 0, values, np.nan)
    known = values[np.isfinite(values)]
    if not known.size:
        return None
    said = _extremes(values, cells, drawn)
    colours = _colours(known, drawn)
    x, y = _edges(cells.columns), _edges(cells.rows)
    across = Scale(x[0], x[-1], ticks=counts(cells.columns, 8).ticks)
    low, high = (y[-1], y[0]) if drawn.matrix else (y[0], y[-1])
    ticks = drawn.ticks or counts(cells.rows, 8).ticks
    chart = Chart(
        across,
        Scale(low, high, ticks=ticks),
        drawn.across,
        drawn.down,
        f"{title}. {said}",
        height=TALL if drawn.matrix else HEIGHT,
        right=_RIGHT,
        grid="",
    )
    chart.add(*_painted(values, x, y, colours, chart))
    chart.add(*_bar(colours, drawn, chart))
    return chart.markup(), said


def colour(level: int, levels: int = LEVELS) -> str:
    """A step of the colours, from the darkest.

    Examples
    --------
    >>> colour(0), colour(LEVELS - 1)
    ('#440154', '#fde725')
    """
    at = level / (levels - 1) * (len(_VIRIDIS) - 1)
    first = min(int(at), len(_VIRIDIS) - 2)
    low, high = (
        [int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in _VIRIDIS[first : first + 2]
    )
    mixed = (round(a + (at - first) * (b - a)) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{each:02x}" for each in mixed)


def _colours(known: np.ndarray, drawn: Map) -> Scale:
    """From numbers to shares of the bar."""
    if drawn.span is not None:
        return Scale(*drawn.span, log=drawn.log)
    return logarithmic(known) if drawn.log else linear(known)


def _edges(places: np.ndarray) -> np.ndarray:
    """Where cells end: half-way between places."""
    if len(places) == 1:
        return np.array([places[0] - 0.5, places[0] + 0.5])
    between = (places[1:] + places[:-1]) / 2
    return np.array([2 * places[0] - between[0], *between, 2 * places[-1] - between[-1]])


def _painted(
    values: np.ndarray, x: np.ndarray, y: np.ndarray, colours: Scale, chart: Chart
) -> list[Markup]:
    """A path for each colour, of the cells that have it; those side by side are one piece."""
    pieces: dict[int, list[str]] = {}
    for row, numbers in enumerate(values):
        levels = [_level(value, colours) for value in numbers]
        upper, lower = (place(chart.y(end)) for end in y[row : row + 2])
        column = 0
        for level, same in groupby(levels):
            count = len(list(same))
            left, right = place(chart.x(x[column])), place(chart.x(x[column + count]))
            column += count
            if level is not None:
                pieces.setdefault(level, []).append(f"M{left},{upper}H{right}V{lower}H{left}Z")
    painted = [
        tag("path", tag("title", _interval(level, colours)), fill=colour(level), d="".join(found))
        for level, found in sorted(pieces.items())
    ]
    return [tag("g", *painted, class_="map")]


def _level(value: float, colours: Scale) -> int | None:
    return min(int(colours(value) * LEVELS), LEVELS - 1) if np.isfinite(value) else None


def _interval(level: int, colours: Scale) -> str:
    """Which numbers a colour stands for; the ends of a bar also for those beyond it."""
    low, high = (_number_at(share / LEVELS, colours) for share in (level, level + 1))
    if level == 0:
        return f"{number(high)} or less"
    return f"{number(low)} or more" if level == LEVELS - 1 else f"{number(low)} to {number(high)}"


def _number_at(share: float, colours: Scale) -> float:
    if colours.log:
        return colours.low * (colours.high / colours.low) ** share
    return colours.low + share * (colours.high - colours.low)


def _bar(colours: Scale, drawn: Map, chart: Chart) -> list[Markup]:
    """The colours from below, with numbers beside them."""
    bottom, top = chart.y.start, chart.y.end
    left = chart.x.end + _GAP
    along = colours.over(bottom, top)
    high = (bottom - top) / LEVELS
    steps = [
        tag("rect", tag("title", _interval(level, colours)), fill=colour(level),
            x=left, y=bottom - (level + 1) * high, width=_WIDE, height=high + 0.2)
        for level in range(LEVELS)
    ]  # fmt: skip
    numbers = [
        tag("text", said, x=left + _WIDE + 5, y=along(tick) + 4)
        for tick, said in along.labels(max(2, int((bottom - top) / 34)))
    ]
    unit = f"{drawn.unit}, log scale" if drawn.log else drawn.unit
    name = tag("text", unit, class_="name end", x=chart.width - 2, y=11.0)
    return [tag("g", *steps, class_="map"), *numbers, name]


def _extremes(values: np.ndarray, cells: Cells, drawn: Map) -> str:
    """What the map shows to those who cannot see it."""

    def at(place: int) -> str:
        row, column = np.unravel_index(place, values.shape)
        value = number(float(values[row, column]))
        down, across = (name.split(",")[0] for name in (drawn.down, drawn.across))
        return f"{value} ({down} {cells.rows[row]:g}, {across} {cells.columns[column]:g})"

    least, most = at(int(np.nanargmin(values))), at(int(np.nanargmax(values)))
    return f"From {least} to {most}; median {number(float(np.nanmedian(values)))}."
