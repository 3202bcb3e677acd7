"""What a page is told of a store as the runner leaves it: failures, cells, what is out of date."""

import pytest

from depthsys.report.html import page
from depthsys.study import steps
from depthsys.study.reported import read_results
from tests.study.conftest import SMALL

PLACE = '[[tasks]]\nname = "place"\ntexts = "demo:domain"\n'


def _raising(error):
    def raising(*args, **options):
        raise error

    return raising


def test_failures_of_a_run_are_on_the_page(runs, monkeypatch):
    monkeypatch.setattr(steps, "gains", _raising(ValueError("no <b>gains</b> today")))
    monkeypatch.setattr(steps, "control", _raising(ValueError("no energy")))
    runs()
    (cell,) = read_results(runs.out).cells
    assert cell.state == "failed"
    assert cell.failed == ("gains: no <b>gains</b> today; energies of schedules: no energy")
    assert "no &lt;b&gt;gains&lt;/b&gt; today" in page(read_results(runs.out))


def test_a_study_of_failures_only_has_a_page(runs, monkeypatch):
    monkeypatch.setattr(steps, "find_concept", _raising(ValueError("no direction")))
    runs()
    (cell,) = read_results(runs.out).cells
    assert (cell.failed, cell.stages) == ("concept direction: no direction", {})
    assert "no direction" in page(read_results(runs.out))


def test_what_was_found_before_a_failure_is_not_shown_as_of_now(made, monkeypatch):
    monkeypatch.setattr(steps, "identify", _raising(ValueError("not of this order")))
    made(SMALL.replace('device = "cpu"', 'device = "cpu"\norder = 2'))
    (cell,) = read_results(made.out).cells
    assert (cell.state, list(cell.stages)) == ("failed", ["concept"])


def test_stages_of_another_system_are_missing(made, monkeypatch):
    monkeypatch.setattr(steps, "gains", _raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        made(SMALL.replace('device = "cpu"', 'device = "cpu"\norder = 2'))
    (cell,) = read_results(made.out).cells
    assert list(cell.stages) == ["concept", "system"]
    assert cell.missing == ("gains", "energies")


def test_cells_are_those_that_the_study_asks_for(made, monkeypatch):
    monkeypatch.setattr(steps, "find_concept", _raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        made(SMALL + PLACE)
    cells = read_results(made.out).cells
    assert [(cell.task, cell.state) for cell in cells] == [
        ("mood", "complete"), ("place", "unfinished"),
    ]  # fmt: skip
    assert cells[1].missing == ("concept", "system", "gains", "energies")
    assert "place" in page(read_results(made.out))
    with pytest.raises(KeyboardInterrupt):
        made(SMALL.replace('name = "mood"', 'name = "other"'))
    with pytest.raises(ValueError, match="must hold a cell with a finished stage"):
        read_results(made.out)
    monkeypatch.undo()
    made(SMALL.replace('name = "mood"', 'name = "other"'))
    found = read_results(made.out)
    assert [cell.task for cell in found.cells] == ["other"]
    assert found.notes == ("1 cell that the file of the study does not ask for",)
