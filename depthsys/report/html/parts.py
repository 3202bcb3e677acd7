"""What sections are built of: figures, tables that can be sorted, parts that open."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from depthsys.report.html.svg import Markup, joined, tag, text
from depthsys.report.table import Table
from depthsys.wording import fixed, number, percent


@dataclass(frozen=True)
class Section:
    """A part of the page with a place in its table of contents."""

    anchor: str
    title: str
    body: Markup

    def markup(self) -> Markup:
        """With its heading."""
        heading = tag("h2", self.title, id=f"{self.anchor}-title")
        return tag(
            "section", heading, self.body, id=self.anchor, aria_labelledby=f"{self.anchor}-title"
        )


def paragraph(*said: object, class_: str | None = None) -> Markup:
    """A paragraph."""
    return tag("p", *said, class_=class_)


def bullets(lines: Iterable[object], class_: str | None = None) -> Markup:
    """A list."""
    return tag("ul", *(tag("li", line) for line in lines), class_=class_)


def figure(
    picture: Markup, title: object = None, note: object = None, key: object = None
) -> Markup:
    """A picture under its title, with a legend and a note."""
    head = tag("figcaption", title) if title else None
    foot = tag("p", note, class_="note") if note else None
    return tag("figure", head, key, picture, foot)


def grid(figures: Iterable[Markup], size: str = "") -> Markup:
    """Figures side by side where there is room; ``size``: "small" or "large"."""
    return tag("div", *figures, class_=f"grid {size}".strip())


def opened(
    summary: object, *inside: object, anchor: str | None = None, open_: bool = False
) -> Markup:
    """What is shown when asked for."""
    return tag("details", tag("summary", summary), *inside, id=anchor, open=open_)


def in_parts(name: str) -> Markup:
    """The name of a cell, which is broken between its parts where it is too long for a line."""
    between = " \u00b7 "
    first, *others = (tag("span", part, class_="part") for part in name.split(between))
    return joined(first, *(joined(between, part) for part in others))


# --------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Entry:
    """What a cell of a table shows, and what it is sorted by."""

    said: object
    key: float | str = ""


def entry(said: object, key: float | str | None = None) -> Entry:
    """A text sorted by itself, or by something else."""
    return Entry(said, str(said) if key is None else key)


def number_entry(value: float, digits: int = 3) -> Entry:
    """A number."""
    return Entry(number(value, digits) if np.isfinite(value) else "–", float(value))


def count_entry(value: float) -> Entry:
    """A whole number; zero or less is not known."""
    return Entry(f"{value:.0f}" if value > 0 else "–", float(value) if value > 0 else float("nan"))


def percent_entry(values: Sequence[float]) -> Entry:
    """A fraction with its interval, in percent."""
    return _with_interval(percent(values, unknown="–"), values[0])


def fixed_entry(values: Sequence[float]) -> Entry:
    """A number of two places with its interval."""
    return _with_interval(fixed(values, unknown="–"), values[0])


def times_entry(values: Sequence[float]) -> Entry:
    """A factor with its interval."""
    if not np.isfinite(values[0]):
        return Entry("–", float("nan"))
    low, high = values[1:] if len(values) == 3 else (np.nan, np.nan)
    told = f" [{number(low)}, {number(high)}]" if np.isfinite([low, high]).all() else ""
    return _with_interval(f"×\u00a0{number(values[0])}{told}", values[0])


def _with_interval(said: str, key: float) -> Entry:
    """The interval on a line of its own."""
    estimate, bracket, rest = said.partition(" [")
    shown = tag("span", f"[{rest}", class_="interval") if bracket else None
    return Entry(joined(estimate, " " if shown else None, shown), float(key))


def sortable(
    header: Sequence[str],
    rows: Iterable[Sequence[Entry]],
    *,
    label: str,
    left: Sequence[str] = (),
    wide: Sequence[str] = (),
    hints: dict[str, str] | None = None,
) -> Markup:
    """A table whose columns are buttons that sort it; the first column stays in view.

    ``left`` are columns of texts, ``wide`` those of long ones; ``hints`` explain columns.
    """
    hints = hints or {}
    heads = [
        tag(
            "th",
            tag("button", name, type="button", title=hints.get(name)),
            scope="col",
            class_=_side(name, left, wide),
        )
        for name in header
    ]
    body = []
    for row in rows:
        first, *others = row
        cells = [tag("th", first.said, scope="row", data_sort=_key(first.key))]
        cells += [
            tag("td", each.said, data_sort=_key(each.key), class_=_side(name, left, wide))
            for name, each in zip(header[1:], others, strict=True)
        ]
        body.append(tag("tr", *cells))
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), class_="sortable")
    return tag("div", table, class_="scroll", role="region", aria_label=label, tabindex="0")


def _side(name: str, left: Sequence[str], wide: Sequence[str]) -> str | None:
    return " ".join(["left"] * (name in left or name in wide) + ["wide"] * (name in wide)) or None


def _key(key: float | str) -> str:
    if isinstance(key, str):
        return key
    return f"{key:.12g}" if np.isfinite(key) else ""


def plain(table: Table) -> Markup:
    """A table of the console."""
    heads = [
        tag("th", n, scope="col", class_="left" if n in table.left else None) for n in table.header
    ]
    body = []
    for row in table.rows:
        cells = [*row, *[""] * (len(table.header) - len(row))]
        first, *others = cells
        body.append(
            tag(
                "tr",
                tag("th", first, scope="row"),
                *(
                    tag("td", said, class_="left" if name in table.left else None)
                    for name, said in zip(table.header[1:], others, strict=True)
                ),
            )
        )
    said = f"{table.title} ({table.caption})" if table.title and table.caption else ""
    said = said or table.title or table.caption
    caption = tag("caption", said) if said else None
    drawn = tag("table", caption, tag("thead", tag("tr", *heads)), tag("tbody", *body))
    return tag(
        "div",
        drawn,
        class_="scroll",
        role="region",
        aria_label=table.title or "table",
        tabindex="0",
    )


def described(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Names and what they are, for those that are known."""
    rows = [
        tag("div", tag("dt", name), tag("dd", text(said)))
        for name, said in pairs
        if said not in (None, "")
    ]
    return tag("dl", *rows)
