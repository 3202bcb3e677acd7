"""What is told of a measure of depth: which of its curves, and in which words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from depthsys.report.stage import Stage
from depthsys.report.table import Report, Table
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
        "mean" or "median".
    """

    variable: str
    label: str
    at: Mapping[str, object] = field(default_factory=dict)
    middle: str = "mean"

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
        return {"mean": np.mean, "median": np.median}[self.middle](rows, axis=1)


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
    """

    title: str
    short: str
    dim: str
    curves: tuple[Curve, ...]
    unit: str
    log: bool = False
    note: str = ""


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
    """

    called: str
    marks: frozenset[str]
    figures: tuple[Drawn, ...]
    verdicts: Callable[[Stage], list[str]]
    others: tuple[str, ...] = ()
    tables: Callable[[Stage], list[Table]] = lambda stage: []

    @property
    def variables(self) -> set[str]:
        """All that is read of the result."""
        return {curve.variable for drawn in self.figures for curve in drawn.curves} | {*self.others}

    def report(self, stage: Stage) -> Report:
        """A table for each dim, of all curves over it, and what they say."""
        dims = list(dict.fromkeys(drawn.dim for drawn in self.figures))
        tables = [table for dim in dims if (table := self._table(stage, dim)) is not None]
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
