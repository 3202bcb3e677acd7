"""What a page is made of: stores, folders and files are found as commands leave them."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from depthsys.files import Resumable
from depthsys.report.html import page
from depthsys.study.reported import WANTED, read_results
from tests.report import stores
from tests.report.stores import CONCEPT, MODEL, TASK

FILES = {
    "system": "system.nc", "gains": "gains.nc", "comparison": "cmp/comparison.nc",
    "energies": "schedule.nc", "plan": "plan.nc", "verified": "check/verified.nc",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(study_stages, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    for name, file in FILES.items():
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        study_stages[name].to_netcdf(path / file, engine="h5netcdf")
    (path / "notes.txt").write_text("mine")
    with (path / "written.csv").open("w", newline="") as file:
        rows = [("The story was", s, f"text {s}") for s in (1.0, 0.0)]
        csv.writer(file).writerows([("prompt", "strength", "text"), *rows])
    with (path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), ("a", 1)])
    return path


def cell_of(results, seed="0", model=MODEL, task=TASK):
    (found,) = [c for c in results.cells if (c.model, c.task, c.seed) == (model, task, seed)]
    return found


def test_a_store_has_all_its_cells(study_store, study_stages):
    results = read_results(study_store)
    assert (results.kind, results.name) == ("study", stores.ABOUT["study_name"])
    assert len(results.cells) == 6
    cell = cell_of(results)
    assert list(cell.stages) == list(study_stages)
    for name, stage in cell.stages.items():
        read = stage.dataset
        assert set(read.data_vars) == WANTED[name] & set(study_stages[name].variables) - set(
            read.coords
        )
        for each in read.variables:
            np.testing.assert_array_equal(read[each].values, study_stages[name][each].values)
    assert "v" not in cell.stages["system"]
    assert cell.stages["system"].attrs["n_features"] == study_stages["system"].sizes["feature"]
    assert cell.state == "complete"


def test_what_lies_beside_a_store_is_told_from_there_however_its_path_is_typed(
    study_store, monkeypatch
):
    monkeypatch.chdir(study_store.parent)
    for typed in (Path(study_store.name), study_store):
        assert Path(read_results(typed).source) == study_store.resolve()


def test_a_running_study_says_what_is_not_there(study_store):
    results = read_results(study_store)
    left = cell_of(results, "2")
    assert left.missing == ("comparison", "energies", "plan", "verified", "texts")
    failed = cell_of(results, "10")
    assert failed.state == "failed"
    assert failed.failed.startswith("gains: `target` must be reachable")
    assert failed.missing == ()


def test_the_stages_of_the_study_are_those_that_it_asks_for(study_store, tmp_path):
    copy = shutil.copytree(study_store, tmp_path / "s.zarr")
    stores.described(copy, study_toml='stages = ["system", "gains"]')
    cells = read_results(copy).cells
    assert {c.seed: c.missing for c in cells if c.task == TASK and c.model == MODEL} == {
        "0": (), "2": (), "10": (),
    }  # fmt: skip
    shutil.rmtree(copy / MODEL / TASK / "seed_2" / CONCEPT / "gains")
    assert cell_of(read_results(copy), "2").missing == ("gains",)


def test_stages_of_a_later_version_are_named(study_store, tmp_path):
    copy = shutil.copytree(study_store, tmp_path / "s.zarr")
    cell = copy / MODEL / TASK / "seed_0" / CONCEPT
    (cell / "gains").rename(cell / "telepathy")
    assert read_results(copy).notes == ("telepathy: not known to this version of depthsys",)


def test_what_is_being_written_is_left_out(study_store, tmp_path):
    copy = shutil.copytree(study_store, tmp_path / "s.zarr")
    cell = copy / MODEL / TASK / "seed_0" / CONCEPT
    (cell / "gains").rename(cell / ".gains.partial")
    assert "gains" in cell_of(read_results(copy)).missing


def test_a_store_of_something_else(tmp_path):
    xr.Dataset({"A": 1.0}).to_zarr(tmp_path / "s.zarr", **stores.HOW)
    with pytest.raises(
        ValueError, match=r"`path` must be the store of a study; got .*without `study_name`"
    ):
        read_results(tmp_path / "s.zarr")


def test_a_store_without_a_finished_stage(tmp_path):
    xr.Dataset(attrs=stores.ABOUT).to_zarr(tmp_path / "s.zarr", **stores.HOW)
    with pytest.raises(ValueError, match="must hold a cell with a finished stage; got"):
        read_results(tmp_path / "s.zarr")


def test_a_store_that_is_half_written(study_store, tmp_path):
    copy = shutil.copytree(study_store, tmp_path / "s.zarr")
    meta = copy / MODEL / TASK / "seed_0" / CONCEPT / "gains/relative_l2/zarr.json"
    meta.write_text(meta.read_text()[:50])
    with pytest.raises(
        ValueError, match=r"that is whole; got .*relative_l2/zarr\.json is not whole"
    ):
        read_results(copy)


def test_a_folder_is_one_cell(folder, study_stages):
    results = read_results(folder)
    (cell,) = results.cells
    assert (results.kind, results.name, results.notes) == ("run", "run", ())
    assert list(cell.stages) == [*FILES, "texts"]
    assert (cell.model, cell.concept, cell.seed) == (MODEL, "mean_difference", "0")
    np.testing.assert_array_equal(
        cell.stages["gains"].variables["relative_l2"][1],
        study_stages["gains"]["relative_l2"].values,
    )
    texts = cell.stages["texts"].dataset["text"]
    assert texts.sel(prompt="The story was", strength=[0.0, 1.0]).values.tolist() == [
        "text 0.0", "text 1.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("partial", "command"),
    [("run/gains.partial", "gains"), ("run/dynamics.partial", "dynamics"),
     ("run.partial", "compare")],
)  # fmt: skip
def test_a_folder_in_which_a_command_was_interrupted_is_not_finished(
    study_stages, tmp_path, partial, command
):
    def one(path):
        (found,) = read_results(path).cells
        return found

    path = tmp_path / "run"
    path.mkdir()
    (path / "others.partial").mkdir()  # of somebody else
    study_stages["gains"].to_netcdf(path / "gains.nc", engine="h5netcdf")
    assert one(path).state == "complete"
    work = Resumable(tmp_path / partial, {"seed": 0})
    with work.locked():
        work.begin()
    results = read_results(path)
    assert one(path).state == "unfinished"
    assert one(path).missing == (f"the rest of depthsys {command}",)
    html = page(results)
    assert f"Missing is the rest of depthsys {command}, which was interrupted" in html
    assert f"Not there yet: the rest of depthsys {command}." in html
    with work.locked():
        work.finish()
    assert one(path).state == "complete"
    assert "Not everything is there" not in page(read_results(path))


def test_a_folder_in_which_nothing_is_found_yet_says_what_began(tmp_path):
    work = Resumable(tmp_path / "dynamics.partial", {"seed": 0})
    with work.locked():
        work.begin()
    with pytest.raises(ValueError, match=r"none yet in .*, where depthsys dynamics was interr"):
        read_results(tmp_path)


def test_results_of_other_texts_are_another_cell(folder, study_stages, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "both")
    other = study_stages["comparison"].assign_attrs(model="/a/b/other", model_fingerprint="other")
    other.to_netcdf(copy / "cmp/comparison.nc", engine="h5netcdf")
    (copy / "again").mkdir()
    shutil.copy(copy / "plan.nc", copy / "again")
    results = read_results(copy)
    assert [(c.model, list(c.stages)) for c in results.cells] == [
        (MODEL, ["system", "gains", "energies", "plan", "verified"]),
        (MODEL, ["plan"]),
        ("other", ["comparison"]),
    ]
    assert results.cells[1].task.endswith("(again)")
    assert results.notes == ("1 table of written texts: not known under which of 2 plans",)


@pytest.mark.parametrize("name", list(FILES))
def test_one_file(folder, name):
    results = read_results(folder / FILES[name])
    (cell,) = results.cells
    assert (results.kind, list(cell.stages)) == ("file", [name])


def test_no_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="which is not there"):
        read_results(tmp_path / "none")
    with pytest.raises(ValueError, match="must hold results of depthsys; found none in"):
        read_results(tmp_path)
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=r"must be a study\.zarr, the folder of a run or a \.nc"):
        read_results(tmp_path / "a.csv")
    xr.Dataset({"x": 1.0}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="which holds none of those that a page shows"):
        read_results(tmp_path / "a.nc")
    (tmp_path / "a.nc").write_bytes(b"\x89HDF\r\n\x1a\n and more")
    with pytest.raises(ValueError, match="a whole netCDF4 file"):
        read_results(tmp_path / "a.nc")


def test_links_and_hidden_files_are_no_results(folder, tmp_path):
    path = tmp_path / "run"
    (path / ".hidden").mkdir(parents=True)
    shutil.copy(folder / "gains.nc", path / ".hidden")
    (path / "plan.nc").symlink_to(folder / "plan.nc")
    shutil.copy(folder / "system.nc", path)
    (cell,) = read_results(path).cells
    assert list(cell.stages) == ["system"]
