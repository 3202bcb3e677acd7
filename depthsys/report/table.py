"""A table as plain rows of strings: what it is shown on is decided elsewhere."""

from dataclasses import dataclass, field


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
