"""docs/reduction.md shows the numbers of docs/reduction.nc, and the study that makes them runs."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

from depthsys.report.page import between

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/reduction.md").read_text(encoding="utf-8")
spec = importlib.util.spec_from_file_location("study", ROOT / "examples/reduction_study.py")
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return xr.load_dataset(ROOT / "docs/reduction.nc", engine="h5netcdf")


def test_tables_are_the_stored_numbers(stored):
    for name, part in study.parts_of(stored).items():
        assert between(PAGE, *study.markers(name)) == part, name


def test_the_study_covers_what_the_page_says(stored):
    pairs = set(zip(stored.model.values, stored.task.values, strict=True))
    assert {(m, t) for m in study.SHARED for t in study.TASKS} <= pairs
    assert {(m, t) for m in study.DEMOS for t in study.SYNTHETIC} <= pairs
    assert len(study.TASKS) >= 6
    real = {(study.REAL, t) for t in (*study.REAL_TASKS, *study.HARDER_TASKS)}
    assert real <= pairs
    assert len(real) == 7
    assert (stored.n_operating == 400).all()
    assert (stored.n_held_out == 400).all()
    assert stored.attrs["split"] == "400/200/200"


def test_exact_errors_lie_between_their_certificates(stored):
    for reference, basis in (("mean_system", "balanced"), ("mean_response", "ensemble")):
        part = stored.sel(reference=reference)
        slack = part.resolution + 1e-6 * part.norm  # the file is float32
        assert bool((part.error >= part.lower - slack).all())
        own = part.sel(basis=basis)
        assert bool((own.error <= own.upper + slack).all())


@pytest.mark.slow
def test_the_study_runs_and_goes_on_where_it_stopped(tmp_path):
    def run() -> str:
        command = [sys.executable, "examples/reduction_study.py", "--out", str(tmp_path)]
        command += ["--split", "10/6/6", "--each", "2", "--only", "demo_48x4"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run()
    assert "... demo_48x4 synthetic domain" in first
    assert "2 pairs of 1 models (demo_48x4)" in first
    again = run()
    assert "..." not in again.split("## intro")[0]
    assert again.split("## intro")[1] == first.split("## intro")[1]
    assert xr.load_dataset(tmp_path / "study.nc", engine="h5netcdf").sizes["pair"] == 2
