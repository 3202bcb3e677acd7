"""docs/reduction.md shows the numbers of docs/reduction.nc, and the study that makes them runs."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from depthsys.report.page import between
from depthsys.report.pairs import of_real_models, pairs_of
from depthsys.report.real_models import agreement_of, over_tasks

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/reduction.md").read_text(encoding="utf-8")
KRYLOV = "Krylov 32 (propagated)"
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


def test_what_the_page_says_of_real_models_is_in_the_stored_numbers(stored):
    """The sentences between the tables, which no command writes."""
    text = " ".join(PAGE.split())
    real = of_real_models(stored)

    def mean(form, metric):
        return f"{over_tasks(real, form, metric)[0]:.2f}"

    told = (
        "from Spearman 0.91 and Pearson 0.82 with a literal Arnoldi basis of order 32 to 0.99 and"
    )
    assert told in text
    assert [mean("Arnoldi 32", m) for m in ("spearman", "pearson")] == ["0.91", "0.82"]
    for form in ("ensemble 1 (concept readout)", "ensemble 4"):
        assert [mean(form, m) for m in ("spearman", "pearson")] == ["0.99", "0.99"]
    rows = {row.task.item(): row for row in pairs_of(real)}

    def of(task, form, metric="spearman"):
        return float(agreement_of(rows[task], form, metric)[0])

    rise = {task: of(task, "ensemble 4") - of(task, "Arnoldi 32") for task in rows}
    assert "CoLA alone (0.77 to 1.00), 0.14 on offensive tweets, and below 0.1" in text
    assert f"{of('cola', 'Arnoldi 32'):.2f} to {of('cola', 'ensemble 4'):.2f}" == "0.77 to 1.00"
    assert abs(rise["tweet_offensive"] - 0.14) < 0.01
    feeling = set(rows) - {"cola", "tweet_offensive"}
    assert len(feeling) == 5
    assert all(rise[task] < 0.1 for task in feeling)
    assert "where a literal Arnoldi basis has Spearman 0.92 and more" in text
    assert min(of(task, "Arnoldi 32") for task in feeling) >= 0.92
    assert "(AUC 0.57 to 0.59 at the last depth)" in text
    last = sorted(float(rows[task].auc) for task in ("cola", "tweet_offensive"))
    assert [f"{auc:.2f}" for auc in last] == ["0.57", "0.59"]
    assert "Pearson is 0.28 on CoLA and 0.99 on tweets" in text
    found = [of(task, "Arnoldi 32", "pearson") for task in ("cola", "tweets")]
    np.testing.assert_allclose(found, [0.28, 0.99], atol=0.006)
    assert "0.98 and 0.99 with Arnoldi" in text
    found = [of("sst2", "Arnoldi 32", metric) for metric in ("spearman", "pearson")]
    np.testing.assert_allclose(found, [0.98, 0.99], atol=0.006)
    # Krylov 32 is the product of the mean Jacobians: 31 directions are all there are
    for row in rows.values():
        both = (
            agreement_of(row, f, "relative_l2")[0] for f in (KRYLOV, "product of mean Jacobians")
        )
        np.testing.assert_allclose(*both, rtol=1e-4)


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
