"""Tables and verdicts on a console, which remembers them for the stored summary."""

import contextlib
import time
from collections.abc import Iterator

from rich import box, table
from rich.cells import cell_len
from rich.console import Console

from depthsys.report.table import BETWEEN, EDGE, WIDTH, Report, Table, columns, least_widths


class Screen:
    """A console of fixed width; `text` is all that was shown on it."""

    def __init__(self) -> None:
        self._console = Console(record=True, width=WIDTH, highlight=False)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show the title with its duration when it is done."""
        start = time.monotonic()
        yield
        spent = f"[dim]({time.monotonic() - start:.1f} s)[/dim]"
        self._console.print(f"{title} {spent}", soft_wrap=True)

    def say(self, line: str = "") -> None:
        """Show one line, however long."""
        self._console.print(line, soft_wrap=True, markup=False)

    def show(self, report: Report) -> None:
        """Show the tables of a report."""
        for each in report.tables:
            if each.title:
                self._console.print()
            self._console.print(_drawn(each))

    def text(self) -> str:
        """What was shown so far; it is told once."""
        return self._console.export_text()


def _drawn(given: Table) -> table.Table:
    drawn = table.Table(
        title=given.title or None,
        caption=given.caption or None,
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    for name, width in zip(given.header, _widths(given), strict=True):
        drawn.add_column(name, justify="left" if name in given.left else "right", width=width)
    for row, cells in enumerate(given.rows):
        drawn.add_row(*cells, end_section=row in given.last)
    return drawn


def _widths(given: Table) -> list[int] | list[None]:
    """Of columns that fit with no word cut: the widest ones give way; None if words are too long.

    Left to itself, rich makes all columns of a wide table alike, and cuts the longest words.
    """
    widths = [max(map(cell_len, column)) for column in columns(given)]
    least = least_widths(given)
    room = WIDTH - EDGE - BETWEEN * len(widths)
    if sum(least) > room:
        return [None] * len(widths)
    while sum(widths) > room:
        widest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
        widths[widest] -= 1
    return widths
