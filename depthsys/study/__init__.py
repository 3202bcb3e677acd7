"""Models x texts x methods: what is asked for, and the steps that make Datasets of it.

A `Cell` is one model with its split texts; `depthsys identify`, `gains`, `control` and `compare`
are studies of one cell. The steps are the functions of `study.steps`: they write, draw and print
nothing. Importing this loads no torch; opening a cell and `study.steps` do.
"""

from depthsys.study.cell import Cell, Found, find_model, open_cell, read_splits
from depthsys.study.settings import Settings

__all__ = [
    "Cell",
    "Found",
    "Settings",
    "find_model",
    "open_cell",
    "read_splits",
]
