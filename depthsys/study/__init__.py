"""Models x texts x methods: what is asked for, and the steps that make Datasets of it.

A `Cell` is one model with its split texts; `depthsys identify`, `gains`, `control` and `compare`
are studies of one cell. The steps are the functions of `study.steps`: they write, draw and print
nothing. Importing this loads no torch; opening a cell and `study.steps` do.

`read` opens the store of a study, and `scaling` sets its models against each other.
"""

from typing import TYPE_CHECKING, Any

from depthsys.study.cell import Cell, Found, find_model, open_cell, read_splits
from depthsys.study.settings import Settings

__all__ = [
    "Cell",
    "Found",
    "Settings",
    "find_model",
    "open_cell",
    "read",
    "read_splits",
    "scaling",
]


if TYPE_CHECKING:
    from depthsys.study.reading import read, scaling


def __getattr__(name: str) -> Any:
    """What loads xarray is loaded when it is asked for: the command line imports this module."""
    if name in ("read", "scaling"):
        from depthsys.study import reading

        return getattr(reading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
