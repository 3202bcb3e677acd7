"""Markup from Python: elements whose attributes and texts are escaped, and nothing else."""

import re
from functools import cache, lru_cache
from html import escape

NO_END = frozenset({"br", "col", "hr", "input", "link", "meta"})


class Markup(str):
    """Text that is markup already, and is not escaped again."""

    __slots__ = ()


# control characters, halves of a pair and what is no character: no page may hold them
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def text(said: object) -> Markup:
    """Any text, escaped; a percent sign stays with its number.

    Examples
    --------
    >>> text("<b> & 'c'")
    '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    return said if isinstance(said, Markup) else verbatim(str(said).replace(" %", "\u00a0%"))


def verbatim(said: str) -> Markup:
    """A text escaped and otherwise as it is, as code must be."""
    return Markup(_escaped(said))


def joined(*parts: object) -> Markup:
    """Markup and texts, one after the other; None is left out."""
    return Markup(
        "".join(
            [part if type(part) is Markup else text(part) for part in parts if part is not None]
        )
    )


def tag(name: str, /, *inside: object, **attributes: object) -> Markup:
    """An element.

    Parameters
    ----------
    name
        Of the element.
    *inside
        Markup, and texts, which are escaped; None is left out.
    **attributes
        ``class_`` and ``for_`` stand for class and for, other underscores for dashes; True is an
        attribute without a value, None and False are left out.

    Examples
    --------
    >>> tag("a", "x < y", href="#a&b", class_="wide", hidden=None)
    '<a href="#a&amp;b" class="wide">x &lt; y</a>'
    """
    said = "".join(
        [
            f" {_name(key)}" if value is True else f' {_name(key)}="{_value(value)}"'
            for key, value in attributes.items()
            if value is not None and value is not False
        ]
    )
    if name in NO_END:
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{joined(*inside)}</{name}>")


@cache
def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-") if key != "viewBox" else key


def _value(value: object) -> str:
    if isinstance(value, float):
        return place(value)
    return _escaped(str(value))


@lru_cache(maxsize=4096)  # classes, ticks and names come thousands of times
def _escaped(said: str) -> str:
    return escape(_NO_TEXT.sub("\ufffd", said))


def place(value: float) -> str:
    """A coordinate with one digit after the point at most.

    Examples
    --------
    >>> place(3.0), place(3.14159), place(-0.01)
    ('3', '3.1', '0')
    """
    shown = f"{value:.1f}"
    shown = shown[:-2] if shown.endswith(".0") else shown
    return "0" if shown == "-0" else shown


def line_through(points: list[tuple[float, float]], *, closed: bool = False) -> str:
    """The ``d`` of a path through points.

    Examples
    --------
    >>> line_through([(0, 0), (1, 2.25)], closed=True)
    'M0,0L1,2.2Z'
    """
    joints = "L".join([f"{place(x)},{place(y)}" for x, y in points])
    return f"M{joints}{'Z' if closed else ''}"
