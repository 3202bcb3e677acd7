"""The chapter on real models: what its tables read off the stored study."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from depthsys.report import real_models
from depthsys.report.pairs import of_real_models, of_small_models


@pytest.fixture(scope="module")
def whole():
    return xr.load_dataset(Path(__file__).parents[2] / "docs/reduction.nc", engine="h5netcdf")


@pytest.fixture(scope="module")
def study(whole):
    return of_real_models(whole)


def test_small_and_real_models_are_told_apart(whole, study):
    assert set(study.model.values) == {"SmolLM2-135M-Instruct"}
    assert of_small_models(whole).sizes["pair"] + study.sizes["pair"] == whole.sizes["pair"]


def test_every_form_is_where_its_name_says(study):
    row = study.isel(pair=0)
    found = real_models.agreement_of(row, "Arnoldi 32", "pearson", "without_layer_0")
    chosen = {"basis": "arnoldi", "order": 32, "injection": "absolute", "layers": "without_layer_0"}
    xr.testing.assert_identical(found, row.pearson.sel(chosen))
    found = real_models.agreement_of(row, "mean exact gains", "spearman")
    assert float(found.sel(bound="estimate")) > 0.999
    found = real_models.agreement_of(row, "ensemble 1 (concept readout)", "relative_l2")
    xr.testing.assert_identical(found, row.terminal_relative_l2.sel(layers="all"))


def test_means_over_tasks_have_an_interval_over_tasks(study):
    mean, low, high = real_models.over_tasks(study, "Krylov 32 (propagated)", "relative_l2")
    values = study.relative_l2.sel(
        basis="krylov", order=32, injection="absolute", layers="all", bound="estimate"
    ).values
    assert mean == pytest.approx(values.mean())
    assert values.min() < low < mean < high < values.max()
    # about what the normal theory of a mean of so few tasks says
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / len(values) ** 0.5, rel=0.15)
    one = real_models.over_tasks(study.isel(pair=[0]), "Arnoldi 32", "spearman")
    assert np.ptp(one) == 0


def test_the_best_depth_is_the_largest_auc_of_the_task(study):
    table = real_models.separation(study)
    for row, cells in zip(range(study.sizes["pair"]), table.rows, strict=True):
        auc = study.auc_by_depth.isel(pair=row).sel(bound="estimate").values
        assert cells[0] == study.task.values[row]
        assert int(cells[2]) == np.nanargmax(auc)
        assert cells[3].startswith(f"{np.nanmax(auc):.2f} [")
        assert (cells[1] == "no direction") == np.isnan(auc[0])
    assert "no direction" in {cells[1] for cells in table.rows}


def test_the_share_that_a_form_takes_away_is_a_ratio_of_what_is_missing(study):
    chosen = {"order": 32, "injection": "absolute", "layers": "all", "bound": "estimate"}
    missing = 1 - study.spearman.sel(chosen).mean("pair")
    share = 1 - missing.sel(basis="krylov") / missing.sel(basis="arnoldi")
    found = real_models.share_taken(study, "Krylov 32 (propagated)", "Arnoldi 32")
    assert found[0] == pytest.approx(float(share))
    assert found[1] < found[0] < found[2] < 1
    assert real_models.share_taken(study, "Arnoldi 32", "Arnoldi 32") == pytest.approx(0)
