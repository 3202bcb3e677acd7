"""Where words stand beside marks: clear of lines, of other marks and of one another."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

LETTER, HIGH = 5.9, 10.0  # of words in figures, in their units
Point = tuple[float, float]

# from a mark to where its words begin, by how they are anchored; the first ones are preferred
_PLACES = (
    ("", 7.0, -5.0), ("", 7.0, 13.0), ("end", -7.0, -5.0), ("end", -7.0, 13.0),
    ("mid", 0.0, -9.0), ("mid", 0.0, 18.0), ("", 8.0, 4.0), ("end", -8.0, 4.0),
)  # fmt: skip
ON_A_MARK = 20.0  # as bad as so much of a line under the words


@dataclass(frozen=True)
class Box:
    """A part of a figure; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        """Whether they share a part."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def inside(self, other: "Box") -> bool:
        """Whether all of it lies in the other one."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.top <= self.top and self.bottom <= other.bottom

    def length_of(self, start: Point, end: Point) -> float:
        """How much of a straight line lies in it."""
        first, last = 0.0, 1.0
        sides = zip(start, end, (self.left, self.top), (self.right, self.bottom), strict=True)
        for a, b, low, high in sides:
            if a == b:
                if not low < a < high:
                    return 0.0
                continue
            enters, leaves = sorted(((low - a) / (b - a), (high - a) / (b - a)))
            first, last = max(first, enters), min(last, leaves)
        whole = ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5
        return max(last - first, 0.0) * whole


@dataclass(frozen=True)
class Label:
    """Words at a place; ``anchor`` is "", "mid" or "end"."""

    said: str
    x: float
    y: float
    anchor: str

    @property
    def box(self) -> Box:
        """What the words cover."""
        width = LETTER * len(self.said)
        left = self.x - {"": 0.0, "mid": width / 2, "end": width}[self.anchor]
        return Box(left, self.y - HIGH, left + width, self.y + 2)


def beside(
    marks: Iterable[tuple[str, Point]], curves: Sequence[Sequence[Point]], frame: Box
) -> list[Label]:
    """Words for marks, the first ones first; those for which there is no room are left out.

    Parameters
    ----------
    marks
        Words, and the place that they are about.
    curves
        Lines through marks, which words should not lie on.
    frame
        What they do not leave.
    """
    lines = [pair for curve in curves for pair in pairwise(curve)]
    dots = [Box(x - 4, y - 4, x + 4, y + 4) for curve in curves for x, y in curve]
    found: list[Label] = []
    for said, (x, y) in marks:
        choices = [Label(said, x + dx, y + dy, anchor) for anchor, dx, dy in _PLACES]
        free = [
            c
            for c in choices
            if c.box.inside(frame) and not any(c.box.meets(other.box) for other in found)
        ]
        if free:
            found.append(min(free, key=lambda label: _cost(label.box, lines, dots)))
    return found


def _cost(box: Box, lines: Sequence[tuple[Point, Point]], dots: Sequence[Box]) -> float:
    on_lines = sum(box.length_of(*line) for line in lines)
    return on_lines + ON_A_MARK * sum(box.meets(dot) for dot in dots)
