"""A study is read back: agreement against size is what its comparisons say, cell by cell."""

import shutil

import numpy as np
import pytest

from depthsys import study
from depthsys.study.reading import cells_of, stages_of
from depthsys.study.store import read_group
from tests.study.conftest import SMALL, Runs

COMPARED = SMALL.replace('["gains", "energies"]', '["comparison"]').replace(
    "[settings]", '[settings]\nmethods = ["ensemble", "krylov"]\norders = [1, 2]\nn_each = 0'
)


@pytest.fixture(scope="module")
def two_sizes(tmp_path_factory) -> Runs:
    """Two models, two tasks, two seeds, of which one cell is not there."""
    runs = Runs(tmp_path_factory.mktemp("sizes"))
    text = COMPARED.replace("shard = 1024", "seeds = [0, 3]").replace("8/4/4", "6/3/3")
    text = text.replace(
        "[[models]]", '[[models]]\nname = "large"\nsource = "demo_96x8"\n[[models]]'
    )
    outcome = runs(text + '[[tasks]]\nname = "place"\ntexts = "demo:domain"\n')
    assert outcome.failed == []
    shutil.rmtree(runs.out / "large" / "place" / "seed_3" / "mean_difference" / "comparison")
    return runs


@pytest.mark.slow
def test_scaling_is_what_the_comparisons_say(two_sizes):
    found = study.scaling(two_sizes.out, basis="krylov", order=2)
    assert found["model"].values.tolist() == ["little", "large"]  # by size
    assert found["n_parameters"].values.tolist() == sorted(found["n_parameters"].values)
    for names, table in stages_of(two_sizes.out, "comparison"):
        at = {name: names[name] for name in ("model", "task", "seed")}
        here = table.sel(basis="krylov", order=2)
        own = here["relative_l2"].sel(injection="absolute", layers="all")
        np.testing.assert_array_equal(found["relative_l2"].sel(at), own)
        total = found["budget"].sel(at | {"part": "total", "bound": "estimate"})
        np.testing.assert_allclose(total, own.sel(bound="estimate"), rtol=1e-12)
        own = here["error_budget"].sel(layers="all")
        np.testing.assert_array_equal(
            found["budget"].sel(at).transpose("part", "bound"), own.transpose("part", "bound")
        )
        assert found["auc"].sel(at) == table["auc"].values[-1]
        floors = here["noise_floor"].sel(injection="absolute")
        assert found["noise_floor"].sel(at) == floors.sel(layers="all")
        assert found["noise_floor_later"].sel(at) == floors.sel(layers="without_layer_0")
    gone = found.sel(model="large", task="place", seed=3)
    assert np.isnan(gone["relative_l2"]).all()
    assert np.isfinite(found["spearman"]).sum() == 7 * 3


@pytest.mark.slow
def test_the_first_method_at_its_largest_order_by_default(two_sizes):
    found = study.scaling(two_sizes.out)
    assert (found.attrs["basis"], found.attrs["order"]) == ("ensemble", 2)


@pytest.mark.slow
def test_what_is_not_there_is_refused(two_sizes, made, tmp_path):
    with pytest.raises(ValueError, match="must be in the comparisons; got 'pod' and 2"):
        study.scaling(two_sizes.out, basis="pod")
    with pytest.raises(ValueError, match="must hold comparisons; got none"):
        study.scaling(made.out)
    with pytest.raises(FileNotFoundError, match="where nothing is"):
        study.read(tmp_path / "none.zarr")
    (tmp_path / "study.toml").write_text(SMALL)
    with pytest.raises(FileNotFoundError, match=r"study\.toml', which is a file"):
        study.read(tmp_path / "study.toml")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"which is no Zarr|whose attrs say None"):
        study.read(tmp_path / "folder")
    with pytest.raises(ValueError, match="whose attrs say 'measured'"):
        study.read(made.cell / "gains")


@pytest.mark.slow
def test_cells_of_earlier_forms_are_left_out(runs):
    runs(SMALL + '[[tasks]]\nname = "place"\ntexts = "demo:domain"\n')
    assert [names["task"] for names, _ in cells_of(study.read(runs.out))] == ["mood", "place"]
    runs()
    assert [names for names, _ in cells_of(study.read(runs.out))] == [
        {"model": "little", "task": "mood", "seed": 0, "concept": "mean_difference"}
    ]


def test_texts_come_back_as_steps_made_them(made):
    found = read_group(made.cell / "energies")
    kinds = {v.dtype.kind for v in found.variables.values()}
    assert "U" in kinds
    assert not kinds & set("OT")
