"""What a cell says against itself."""

import xarray as xr

from depthsys.report.html.facts import Facts
from depthsys.report.html.results import CellResults
from depthsys.report.html.told import doubts
from depthsys.report.html.trust import MOST_NAMED, remarks
from depthsys.report.remarks import Remark
from depthsys.report.stage import Stage
from depthsys.wording import separation_warning

WARNING = "the direction does not separate held-out texts at the last depth: AUC 0.40 [0.2, 0.6]"


def told(**attrs: dict[str, str]) -> list[str]:
    auc = xr.Dataset({name: ("depth", [0.4, 0.4]) for name in ("auc", "auc_low", "auc_high")})
    stages = {name: Stage.of(auc.assign_attrs(of)) for name, of in attrs.items()}
    cell = CellResults("m", "t", "0", "mean_difference", stages)
    return [remark.said for remark in doubts(Facts(cell, "m", "m"))]


def test_the_warning_of_a_direction_is_told_once():
    (line,) = told(concept={"warning": WARNING}, system={"concept_warning": WARNING})
    assert line == f"{WARNING}; gains are real, but do not call them gains of the concept"
    assert told(concept={"warning": WARNING}) == [WARNING]


def test_a_weak_direction_without_a_warning_is_told():
    (line,) = told(concept={})
    assert line.startswith("the direction hardly separates held-out texts")


def cells_of(*warned: tuple[str, float]) -> tuple[list[Facts], dict[str, list[Remark]]]:
    """Cells of a task each, with the AUC of a direction that fails."""
    facts = []
    for place, (task, auc) in enumerate(warned):
        known = {"auc": [0.4, auc], "auc_low": [0.2, auc - 0.1], "auc_high": [0.6, auc + 0.1]}
        warning = {"concept_warning": separation_warning(auc, auc - 0.1, auc + 0.1)[1]}
        data = xr.Dataset({name: ("depth", row) for name, row in known.items()}, attrs=warning)
        cell = CellResults("m", task, "0", "", {"system": Stage.of(data)})
        facts.append(Facts(cell, f"m · {task}", f"cell-{place}"))
    return facts, {each.anchor: doubts(each) for each in facts}


def test_remarks_that_differ_in_numbers_are_one_sentence_with_the_cells():
    (line,) = remarks(*cells_of(("a", 0.51), ("b", 0.45)))
    assert line == (
        "The direction does not separate held-out texts at the last depth; gains are real, but do "
        "not call them gains of the concept. AUC [95\u00a0%] in 2 cells: "
        '<a href="#cell-0">m · a</a>\u00a00.51 [0.41,\u00a00.61]; '
        '<a href="#cell-1">m · b</a>\u00a00.45 [0.35,\u00a00.55]'
    )


def test_of_many_cells_some_are_named_and_the_rest_is_counted():
    facts, found = cells_of(*((f"t{n}", 0.45 + n / 1000) for n in range(50)))
    (line,) = remarks(facts, found)
    assert "in 50 cells: " in line
    assert line.count("<a ") == MOST_NAMED
    assert line.endswith(" and 44 other cells")


def test_cells_that_say_the_same_are_named_by_what_they_share():
    facts, _ = cells_of(("a", 0.5), ("a", 0.5), ("b", 0.5))
    one = Remark("dropped: 8", "texts were dropped", "duplicates", "8")
    (line,) = remarks(facts, {"cell-0": [one], "cell-1": [one], "cell-2": []})
    assert line == "Texts were dropped. Duplicates in 2 cells: all of a\u00a08"


def test_a_large_push_is_told_once_in_the_words_of_the_plan():
    plan = xr.Dataset({"push": ("layer", [0.1, 2.68])}, attrs={"warning": "pushes of more"})
    stages = {"plan": Stage.of(plan), "verified": Stage.of(plan)}
    (found,) = doubts(Facts(CellResults("m", "t", "0", "", stages), "m", "m"))
    assert (found.said, found.own) == ("pushes of more", "268 %")
    assert found.common.startswith("pushes of more than 30 % of the state's norm")


def test_what_no_stage_can_be_read_for_is_told():
    broken = Stage.of(xr.Dataset(attrs={"n_duplicates": 1}))
    (found,) = doubts(Facts(CellResults("m", "t", "0", "", {"gains": broken}), "m", "m"))
    assert found.said.startswith("not told: the result is not as depthsys writes it (KeyError")
