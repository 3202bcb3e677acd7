"""A study that was changed and interrupted: what is from before is told from what is of now."""

import pytest

from depthsys import study
from depthsys.study import steps
from depthsys.study.checks import checked
from depthsys.study.forecast import forecast
from depthsys.study.grid import asked
from depthsys.study.reading import stages_of
from depthsys.study.reported import read_results
from depthsys.study.store import Store
from depthsys.study.study_reader import read_with_faults
from tests.study.conftest import SMALL

CELL = "little/mood/seed_0/mean_difference"
FINER = SMALL.replace('device = "cpu"', 'device = "cpu"\neps = 0.02')


@pytest.fixture
def changed(made, monkeypatch):
    """Gains are from before the change of their step."""
    monkeypatch.setattr(steps, "gains", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(FINER)
    assert (made.cell / "gains").is_dir()
    return made


def test_it_is_not_read(made, changed):
    assert set(study.read(changed.out)[CELL].children) == {"concept", "system", "energies"}
    assert list(stages_of(changed.out, "gains")) == []
    (cell,) = read_results(changed.out).cells
    assert (cell.missing, list(cell.stages)) == (("gains",), ["concept", "system", "energies"])


def test_it_is_to_be_made(changed):
    found = checked(*read_with_faults(changed.folder / "study.toml"))
    done = forecast(found, Store(changed.out))["done"].isel(cell=0)
    assert [str(n) for n in done["stage"].values[~done.values]] == ["gains"]


def test_what_was_not_changed_is_there(made):
    assert set(study.read(made.out)[CELL].children) == {"concept", "system", "gains", "energies"}


def test_a_stage_that_is_not_asked_for_is_not_read_with_other_settings(made):
    fewer = SMALL.replace('"gains", "energies"', '"gains"')
    made(fewer)
    (cell,) = read_results(made.out).cells
    assert "energies" in cell.stages
    made(fewer.replace('device = "cpu"', 'device = "cpu"\ntarget = "2std"'))
    (cell,) = read_results(made.out).cells
    assert (list(cell.stages), cell.state) == (["concept", "system", "gains"], "complete")


def test_what_is_asked_is_remembered_beside_failures(runs, monkeypatch):
    monkeypatch.setattr(steps, "gains", _failing)
    runs()
    found = checked(*read_with_faults(runs.folder / "study.toml"))
    (key,) = found.study.cells
    told = Store(runs.out).attrs_of(key)
    assert set(told) == {"asked", "failed"}
    wanted = asked(found.study, found.found[key], found.splits[key.texts])
    assert all(value in told["asked"] for value in wanted.values())


def _interrupted(*args, **options):
    raise KeyboardInterrupt


def _failing(*args, **options):
    raise ValueError("no gains today")
