"""A table as plain rows of strings: what it is shown on is decided elsewhere."""

import math
from dataclasses import dataclass, field, replace

WIDTH = 100  # of a console
BETWEEN, EDGE = 2, 1  # what a console has between columns, and beside the first


@dataclass(frozen=True)
class Table:
    """Rows of strings under a header.

    Attributes
    ----------
    header
        Names of the columns.
    rows
        As many cells each as there are columns, or fewer: the rest is empty.
    title, caption
        What stands above and below.
    left
        Columns whose cells begin at the left; those of numbers end at the right.
    last
        Numbers of the rows that end a group.
    """

    header: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    title: str = ""
    caption: str = ""
    left: tuple[str, ...] = ()
    last: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Report:
    """What is shown of one result: its tables, and what they say in words."""

    tables: list[Table]
    verdicts: list[str]


def least_widths(table: Table) -> list[int]:
    """What the columns take whose headings and cells are broken between words.

    Examples
    --------
    >>> least_widths(Table(("rank, to the end", "layer"), [("84.1", "0")]))
    [5, 5]
    """
    return [max(map(len, " ".join(column).split()), default=0) for column in columns(table)]


def columns(table: Table) -> list[tuple[str, ...]]:
    """Each column with its heading."""
    filled = (row + ("",) * (len(table.header) - len(row)) for row in table.rows)
    return list(zip(table.header, *filled, strict=True))


def narrow(table: Table, width: int = WIDTH) -> list[Table]:
    """The table in parts that fit a console, each with its first column.

    Examples
    --------
    >>> table = Table(("layer", "one", "other"), [("0", "1.00", "2.00")])
    >>> [part.header for part in narrow(table, 15)]
    [('layer', 'one'), ('layer', 'other')]
    """
    takes = [least + BETWEEN for least in least_widths(table)]
    count = len(takes)
    parts = _filled(takes, width, count)
    # as many columns in each as can be: none is left alone
    even = _filled(takes, width, math.ceil((count - 1) / len(parts)))
    parts = even if len(even) == len(parts) else parts
    return [
        replace(
            table,
            header=tuple(table.header[i] for i in part),
            rows=[tuple(row[i] for i in part if i < len(row)) for row in table.rows],
        )
        for part in parts
    ]


def _filled(takes: list[int], width: int, most: int) -> list[list[int]]:
    """Columns after the first in turn, so many at most and as wide as there is room."""
    parts: list[list[int]] = [[0]]
    for place in range(1, len(takes)):
        taken = sum(takes[i] for i in [*parts[-1], place]) + EDGE
        if len(parts[-1]) > 1 and (taken > width or len(parts[-1]) > most):
            parts.append([0])
        parts[-1].append(place)
    return parts


def markdown(table: Table) -> str:
    """The table as a page of the docs has it, without title and caption.

    Examples
    --------
    >>> print(markdown(Table(("model", "AUC"), [("a", "0.98")])))
    | model | AUC |
    | --- | --- |
    | a | 0.98 |
    """
    lines = [table.header, ("---",) * len(table.header), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
