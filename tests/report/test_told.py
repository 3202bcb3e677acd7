"""What a cell says against itself."""

import xarray as xr

from depthsys.report.html.facts import Facts
from depthsys.report.html.results import CellResults
from depthsys.report.html.stage import Stage
from depthsys.report.html.told import doubts

WARNING = "the direction does not separate held-out texts at the last depth: AUC 0.40 [0.2, 0.6]"


def told(**attrs: dict[str, str]) -> list[str]:
    auc = xr.Dataset({name: ("depth", [0.4, 0.4]) for name in ("auc", "auc_low", "auc_high")})
    stages = {name: Stage.of(auc.assign_attrs(of)) for name, of in attrs.items()}
    cell = CellResults("m", "t", "0", "mean_difference", stages)
    return doubts(Facts(cell, "m", "m"))


def test_the_warning_of_a_direction_is_told_once():
    (line,) = told(concept={"warning": WARNING}, system={"concept_warning": WARNING})
    assert line == f"{WARNING}; gains are real, but do not call them gains of the concept"
    assert told(concept={"warning": WARNING}) == [WARNING]


def test_a_weak_direction_without_a_warning_is_told():
    (line,) = told(concept={})
    assert line.startswith("the direction hardly separates held-out texts")
