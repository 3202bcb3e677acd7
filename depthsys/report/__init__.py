"""Datasets -> tables and verdicts, as plain rows and strings; `Screen` shows them on a console.

A report of one result is a function of its Dataset: `gains`, `control`, `comparison`. `study` and
`main_job` make the pages of the docs from many of them.
"""

from depthsys.report.comparison import comparison
from depthsys.report.console import Screen
from depthsys.report.control import control
from depthsys.report.dynamics import dynamics
from depthsys.report.exchange import effect
from depthsys.report.forecast import forecast, kept
from depthsys.report.gains import gains
from depthsys.report.generation import texts
from depthsys.report.heading import heading, notes, text_notes
from depthsys.report.plan import plan
from depthsys.report.study_plan import study_plan
from depthsys.report.table import Report, Table, markdown

__all__ = [
    "Report",
    "Screen",
    "Table",
    "comparison",
    "control",
    "dynamics",
    "effect",
    "forecast",
    "gains",
    "heading",
    "kept",
    "markdown",
    "notes",
    "plan",
    "study_plan",
    "text_notes",
    "texts",
]
