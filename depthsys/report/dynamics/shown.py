"""What is told of a measure of depth: which of its curves and maps, and in which words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from depthsys.report.stage import Stage
from depthsys.report.table import Report, Table, narrow
from depthsys.wording import number


@dataclass(frozen=True)
class Curve:
    """A curve over layers, depths or steps: a variable, averaged over all other dims.

    Attributes
    ----------
    variable
        Its name.
    label
        In words.
    at
        Labels of dims that are not averaged.
    middle
        "mean", "median" or "largest"; a number between 0 and 1 is a quantile.
    """

    variable: str
    label: str
    at: Mapping[str, object] = field(default_factory=dict)
    middle: str | float = "mean"

    def values(self, stage: Stage, dim: str) -> np.ndarray | None:
        """(dim); None where the variable, or a label, is not there."""
        if self.variable not in stage.variables:
            return None
        if any(label not in stage.places.get(d, {}) for d, label in self.at.items()):
            return None
        dims = [d for d in stage.variables[self.variable][0] if d not in self.at]
        if dim not in dims:
            return None
        values = np.moveaxis(stage.value(self.variable, **self.at), dims.index(dim), 0)
        rows = values.reshape(len(values), -1).astype(float)
        found = np.full(len(rows), np.nan)
        known = np.isfinite(rows).any(axis=1)  # what is not known of some is that of the others
        if isinstance(self.middle, str):
            named = {"mean": np.nanmean, "median": np.nanmedian, "largest": np.nanmax}
            found[known] = named[self.middle](rows[known], axis=1)
        else:
            found[known] = np.nanquantile(rows[known], self.middle, axis=1)
        return found


@dataclass(frozen=True)
class Drawn:
    """A figure of a page: curves over one dim.

    Attributes
    ----------
    title, short
        What it shows, also in a word or two.
    dim
        Along x: "layer", "depth" or another one.
    curves
        What is drawn; across cells the first of them alone.
    unit
        Of y.
    log
        Whether y is logarithmic.
    note
        What is to be said below it.
    reference
        A number of y that a line marks, where it lies on the axis.
    log_x
        Whether x is logarithmic.
    left_out
        Which places along x are not drawn; tables have them all.
    """

    title: str
    short: str
    dim: str
    curves: tuple[Curve, ...]
    unit: str
    log: bool = False
    note: str = ""
    reference: float | None = None
    log_x: bool = False
    left_out: Callable[[Stage], np.ndarray] | None = None


@dataclass(frozen=True)
class Cells:
    """The numbers of a map, and where its rows and columns are.

    Attributes
    ----------
    values
        (row, column); NaN is left empty.
    rows, columns
        Their places, in rising order.
    """

    values: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True)
class Map:
    """A map of a page: numbers of rows and columns as colours.

    Attributes
    ----------
    title
        What it shows.
    down, across
        What its rows and its columns are.
    unit
        What the colours are of.
    variables
        What is read of the result.
    cells
        Its numbers; None where they are not there.
    log
        Whether the colours are logarithmic.
    span
        Between which numbers they lie; by default all that there are.
    matrix
        Whether the first row is above, as in a matrix, and cells are square.
    ticks
        Places of rows that are named; by default whole numbers.
    note
        What is to be said below it.
    """

    title: str
    down: str
    across: str
    unit: str
    variables: frozenset[str]
    cells: Callable[[Stage], Cells | None]
    log: bool = False
    span: tuple[float, float] | None = None
    matrix: bool = False
    ticks: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Way:
    """A way through a plane: the first two numbers of a variable, from place to place.

    Attributes
    ----------
    title
        What it shows.
    variable
        (``along``, ``dim``); further dims are none.
    along, dim
        Of the places, and of the numbers.
    axes
        What both numbers are, on a result.
    variables
        What else is read.
    note
        What is to be said below it.
    """

    title: str
    variable: str
    along: str
    dim: str
    axes: Callable[[Stage], tuple[str, str]]
    variables: frozenset[str] = frozenset()
    note: str = ""

    def points(self, stage: Stage) -> np.ndarray | None:
        """(place, 2); None where there is no plane."""
        if self.variable not in stage.variables:
            return None
        dims, values = stage.variables[self.variable]
        if set(dims) != {self.along, self.dim} or stage.sizes[self.dim] < 2:
            return None
        values = values if dims == (self.along, self.dim) else values.T
        return values[:, :2].astype(float)


@dataclass(frozen=True)
class Shown:
    """What is told of a measure.

    Attributes
    ----------
    called
        What its result is called.
    marks
        Variables by which its result is known.
    figures
        Of a page; the first one also across cells.
    verdicts
        What the result says, in words.
    others
        Further variables that the verdicts look at.
    tables
        Further tables of a report, beside that of the curves.
    maps, ways
        Of a page.
    """

    called: str
    marks: frozenset[str]
    figures: tuple[Drawn, ...]
    verdicts: Callable[[Stage], list[str]]
    others: tuple[str, ...] = ()
    tables: Callable[[Stage], list[Table]] = lambda stage: []
    maps: tuple[Map, ...] = ()
    ways: tuple[Way, ...] = ()

    @property
    def variables(self) -> set[str]:
        """All that is read of the result."""
        curves = {curve.variable for drawn in self.figures for curve in drawn.curves}
        ways = {way.variable for way in self.ways}
        return curves.union(
            ways, self.others, *(each.variables for each in (*self.maps, *self.ways))
        )

    def report(self, stage: Stage) -> Report:
        """Tables for each dim, of all curves over it, and what they say."""
        dims = list(dict.fromkeys(drawn.dim for drawn in self.figures))
        tables = [
            part
            for dim in dims
            if (table := self._table(stage, dim)) is not None
            for part in narrow(table)
        ]
        return Report([*tables, *self.tables(stage)], self.verdicts(stage))

    def _table(self, stage: Stage, dim: str) -> Table | None:
        curves = {
            f"{drawn.short}, {curve.label}" if len(drawn.curves) > 1 else drawn.short: row
            for drawn in self.figures
            if drawn.dim == dim
            for curve in drawn.curves
            if (row := curve.values(stage, dim)) is not None
        }
        if not curves:
            return None
        places = places_along(stage, dim, len(next(iter(curves.values()))))
        rows = [
            (f"{place:g}", *(number(values[i]) for values in curves.values()))
            for i, place in enumerate(places)
        ]
        return Table((dim.replace("_", " "), *curves), rows)


def places_along(stage: Stage, dim: str, count: int) -> np.ndarray:
    """The labels of a dim, as numbers; its places where it has none."""
    if dim in stage.variables and stage.variables[dim][1].dtype.kind in "iuf":
        return stage.variables[dim][1].astype(float)
    return np.arange(count, dtype=float)
