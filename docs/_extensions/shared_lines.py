"""Attributes that share a line of a docstring, as numpydoc allows, for napoleon.

Napoleon takes the names before the last one for a type; without spaces between them it does not.
"""

import re

from sphinx.application import Sphinx

_NAMES = re.compile(r"^\w+(, \w+)+$")


def joined(lines: list[str]) -> None:
    """Take the spaces out of lists of names in sections of attributes, in place."""
    inside = False
    for i, line in enumerate(lines):
        if re.fullmatch(r"-{3,}", line):
            inside = lines[i - 1] == "Attributes"
        elif inside and _NAMES.match(line):
            lines[i] = line.replace(", ", ",")


def setup(app: Sphinx) -> dict:
    """Go before napoleon, which has priority 500."""
    app.connect(
        "autodoc-process-docstring",
        lambda app, what, name, obj, options, lines: joined(lines),
        priority=400,
    )
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
