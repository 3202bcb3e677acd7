"""A figure in SVG: axes, and marks on them that say their numbers when pointed at."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from depthsys.report.html.scales import Scale
from depthsys.report.html.svg import Markup, joined, line_through, place, tag

MARKERS = ("circle", "square", "triangle", "diamond", "cross", "down", "plus", "bar")


@dataclass(frozen=True)
class Style:
    """How a series looks, by classes of the style sheet: its colour, its dashes, its marker."""

    color: int
    dash: int = 0
    marker: str = "circle"

    @property
    def classes(self) -> str:
        """For the group of its marks."""
        return f"c{self.color} d{self.dash}"


MEASURED, LINEAR, SURROGATE = Style(1), Style(2, 2, "square"), Style(3, 3, "triangle")
STYLES = tuple(
    Style(i + 1, dash, marker)
    for i, (dash, marker) in enumerate(zip((0, 2, 3, 1, 4, 0, 2, 4), MARKERS, strict=True))
)


def marker(kind: str, x: float, y: float, said: str = "", size: float = 3.4) -> Markup:
    """A mark at a place, which says something when pointed at."""
    title = tag("title", said) if said else None
    if kind == "circle":
        return tag("circle", title, class_="m", cx=x, cy=y, r=size)
    shape = [(x + dx * size, y + dy * size) for dx, dy in _SHAPES[kind]]
    if kind in _ARMS:
        arms = "".join(
            line_through(list(pair)) for pair in zip(shape[::2], shape[1::2], strict=True)
        )
        return tag("path", title, class_="m arms", d=arms)
    return tag("path", title, class_="m", d=line_through(shape, closed=True))


_ARMS = ("cross", "plus", "bar", "dash")
_SHAPES = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
    "down": ((0, 1.2), (1.15, -0.9), (-1.15, -0.9)),
    "diamond": ((0, -1.35), (1.2, 0), (0, 1.35), (-1.2, 0)),
    "cross": ((-1, -1), (1, 1), (-1, 1), (1, -1)),
    "plus": ((-1.25, 0), (1.25, 0), (0, -1.25), (0, 1.25)),
    "bar": ((0, -1.7), (0, 1.7)),
    "dash": ((-1.7, 0), (1.7, 0)),
}


@dataclass
class Chart:
    """Axes, to which marks are added in the order in which they are painted.

    Attributes
    ----------
    x, y
        The axes; their places are set here.
    x_label, y_label
        What they show.
    title
        Told to those who cannot see the figure.
    width, height
        In units of the text, which is 12 of them high.
    left, bottom, right, top
        Margins.
    rows
        Names of rows along y, in place of numbers, from above.
    grid
        Axes along which ticks have lines across the figure: "x", "y" or both.
    """

    x: Scale
    y: Scale
    x_label: str = ""
    y_label: str = ""
    title: str = ""
    width: float = 400
    height: float = 236
    left: float = 52
    bottom: float = 40
    right: float = 18
    top: float = 22
    rows: Sequence[str] = ()
    grid: str = "y"
    _marks: list[Markup] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x = self.x.over(self.left, self.width - self.right)
        self.y = self.y.over(self.height - self.bottom, self.top)

    def add(self, *marks: Markup) -> None:
        """Marks as they are."""
        self._marks += marks

    def line(
        self,
        x: Iterable[float],
        y: Iterable[float],
        style: Style,
        said: Sequence[str] = (),
        *,
        wide: bool = False,
    ) -> None:
        """A curve through points, broken where one is not known, with a mark at each.

        A ``wide`` one is still seen where others are painted over it.
        """
        points = list(zip(map(float, x), map(float, y), strict=True))
        inside = [tag("path", class_="l", d=d) for d in self._pieces(points)]
        told = list(said) or [""] * len(points)
        for (px, py), each in zip(points, told, strict=True):
            if np.isfinite(py):
                inside.append(self._point(px, py, style.marker, each))
        self.add(tag("g", *inside, class_=f"{style.classes}{' halo' * wide}"))

    def _pieces(self, points: list[tuple[float, float]]) -> list[str]:
        pieces: list[list[tuple[float, float]]] = [[]]
        for x, y in points:
            if np.isfinite(y):
                pieces[-1].append((self.x(x), self.y(y)))
            elif pieces[-1]:
                pieces.append([])
        return [line_through(piece) for piece in pieces if len(piece) > 1]

    def _point(self, x: float, y: float, kind: str, said: str) -> Markup:
        """A mark; beyond the end of the axis an arrow at it."""
        if not self.y.within(y) and not self.y.log:
            kind = "triangle" if y > self.y.high else "down"
            said = f"{said} (beyond the axis)"
        return marker(kind, self.x(x), self.y(y), said)

    def points(
        self, x: Iterable[float], y: Iterable[float], style: Style, said: Sequence[str]
    ) -> None:
        """Marks alone."""
        inside = [
            marker(style.marker, self.x(px), self.y(py), each, 4.0)
            for px, py, each in zip(x, y, said, strict=True)
            if np.isfinite(px) and np.isfinite(py)
        ]
        self.add(tag("g", *inside, class_=style.classes))

    def band(
        self, x: Iterable[float], low: Iterable[float], high: Iterable[float], style: Style
    ) -> None:
        """The room between two curves."""
        rows = [
            (self.x(a), self.y(b), self.y(c))
            for a, b, c in zip(x, low, high, strict=True)
            if np.isfinite(b) and np.isfinite(c)
        ]
        if len(rows) > 1:
            outline = [(a, b) for a, b, _ in rows] + [(a, c) for a, _, c in reversed(rows)]
            d = line_through(outline, closed=True)
            self.add(tag("path", class_=f"band {style.classes}", d=d))

    def whisker(self, x: tuple[float, float], y: tuple[float, float], style: Style) -> None:
        """An interval: between two places along x, or along y."""
        if np.isfinite([*x, *y]).all():
            d = line_through([(self.x(x[0]), self.y(y[0])), (self.x(x[1]), self.y(y[1]))])
            self.add(tag("path", class_=f"w {style.classes}", d=d))

    def bar(
        self, at: float, value: float, width: float, style: Style, said: str, shift: float = 0.0
    ) -> None:
        """A bar upwards, or downwards, from zero; ``width`` and ``shift`` in units of x."""
        if not np.isfinite(value):
            return
        left, right = self.x(at + shift - width / 2), self.x(at + shift + width / 2)
        zero, end = self.y(0.0), self.y(value)
        self.add(
            tag(
                "rect", tag("title", said), class_=f"bar {style.classes}",
                x=left, y=min(zero, end), width=right - left, height=max(abs(end - zero), 0.8),
            )
        )  # fmt: skip

    def across(self, value: float, said: str = "", *, along: str = "y", name: str = "ref") -> None:
        """A line through the whole figure at a number, with a word at its end."""
        if along == "y":
            y = self.y(value)
            ends = [(self.x.start, y), (self.x.end, y)]
            words = tag("text", said, class_="in end", x=self.x.end - 2, y=y - 4) if said else None
        else:
            x = self.x(value)
            ends = [(x, self.y.start), (x, self.y.end)]
            words = tag("text", said, class_="in", x=x + 3, y=self.y.end + 9) if said else None
        self.add(joined(tag("path", class_=name, d=line_through(ends)), words))

    def words(self, said: str, x: float, y: float, classes: str = "in") -> None:
        """A text at a place of the axes."""
        self.add(tag("text", said, class_=classes, x=self.x(x), y=self.y(y)))

    def markup(self) -> Markup:
        """The figure."""
        inside = [tag("title", self.title), self._x_axis(), self._y_axis(), *self._marks]
        box = f"0 0 {place(self.width)} {place(self.height)}"
        return tag("svg", *inside, viewBox=box, role="img", aria_label=self.title, class_="chart")

    def _x_axis(self) -> Markup:
        floor = self.y.start
        parts = [
            tag("path", class_="axis", d=line_through([(self.x.start, floor), (self.x.end, floor)]))
        ]
        for tick, said in self.x.labels(_most(self.x, 54)):
            x = self.x(tick)
            if "x" in self.grid:
                parts.append(
                    tag("path", class_="grid", d=line_through([(x, floor), (x, self.y.end)]))
                )
            parts.append(tag("text", said, class_="mid", x=x, y=floor + 15))
        if self.x_label:
            middle = (self.x.start + self.x.end) / 2
            said = _named(self.x_label, self.x)
            parts.append(tag("text", said, class_="mid name", x=middle, y=floor + 32))
        return tag("g", *parts, class_="axes")

    def _y_axis(self) -> Markup:
        named = [(float(i), name) for i, name in enumerate(self.rows)]
        ticks = named or self.y.labels(_most(self.y, 34))
        parts = []
        for tick, said in ticks:
            y = self.y(tick)
            if "y" in self.grid:
                ends = [(self.x.start, y), (self.x.end, y)]
                parts.append(tag("path", class_="grid", d=line_through(ends)))
            parts.append(tag("text", said, class_="end", x=self.x.start - 7, y=y + 4))
        if self.y_label:
            said = _named(self.y_label, self.y)
            parts.append(tag("text", said, class_="name", x=2.0, y=11.0))
        return tag("g", *parts, class_="axes")


def _named(label: str, scale: Scale) -> str:
    """What an axis shows, and how where that is not as a ruler does."""
    return f"{label}, log scale" if scale.log else label


def _most(scale: Scale, room: float) -> int:
    """How many ticks there is room for."""
    return max(2, int(abs(scale.end - scale.start) / room))


def legend(*entries: tuple[str, Style | str]) -> Markup:
    """Names beside marks: a style, or the class of a band ("band c1") or a line ("ref")."""
    return tag("ul", *(_entry(name, how) for name, how in entries), class_="legend")


def _entry(name: str, how: "Style | str") -> Markup:
    if isinstance(how, Style):
        swatch = tag(
            "g",
            tag("path", class_="l", d="M1,7L27,7") if how.dash >= 0 else None,
            marker(how.marker, 14.0, 7.0),
            class_=how.classes,
        )
    elif how.startswith("band"):
        swatch = tag("rect", class_=how, x=1, y=2, width=26, height=10)
    elif how.startswith("bar"):
        swatch = tag("rect", class_=how, x=8, y=1, width=12, height=12)
    else:
        swatch = tag("path", class_=how, d="M1,7L27,7")
    picture = tag("svg", swatch, viewBox="0 0 28 14", class_="swatch", aria_hidden="true")
    return tag("li", picture, tag("span", name))
