"""`depthsys real`: the whole job on what `depthsys fetch` brings."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from depthsys import lm
from depthsys.demo import grammar, real
from depthsys.files import file_hash

FIGURES = {"separation", "gain_curves", "error_budget", "schedule", "energy", "single_layers"}
RESULTS = {"system.nc", "gains.nc", "schedule.nc", "energy.csv", "real.txt"} | {
    f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")
}
ASKED = ["--split", "20/10/10", "--basis", "ensemble", "--order", "4", "--device", "cpu"]


def test_what_has_not_been_fetched_is_told(run, tmp_path, monkeypatch):
    monkeypatch.setenv(real.FOLDER, str(tmp_path))
    code, shown, err = run("real", "--out", tmp_path / "run")
    assert (code, shown, err.count("\n")) == (2, "", 1)
    assert "`movies.csv` must have been fetched; got no such file in" in err
    assert "Run `depthsys fetch`" in err
    assert "`amazon.csv` must have been fetched" in run("real", "--texts", "amazon")[2]
    (tmp_path / "movies.csv").touch()
    assert f"`{real.MODEL}` must have been fetched" in run("real")[2]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_model_and_texts_need_nothing_that_is_fetched(run, tmp_path, monkeypatch):
    monkeypatch.setenv(real.FOLDER, str(tmp_path / "none"))
    texts, out = tmp_path / "texts.csv", tmp_path / "run"
    with texts.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *grammar.labelled(40, seed=5)])
    given = ["--model", "demo_48x4", "--texts", texts, "--split", "12/6/6", "--device", "cpu"]
    code, shown, _ = run("real", *given, "--readout", "profile", "--out", out)
    assert code == 0
    assert {path.name for path in out.iterdir()} == RESULTS
    assert f"{out}/\n" in shown
    for name in FIGURES:
        assert str(out / f"{name}.png") in shown.splitlines()[-1]
    for command in ("gains", "control"):  # the same as the commands one by one
        alone = tmp_path / command
        assert run(command, out / "system.nc", "--device", "cpu", "--out", alone)[0] == 0
    for name, folder in (("gains.nc", "gains"), ("schedule.nc", "control")):
        one, other = (read(place / name) for place in (out, tmp_path / folder))
        xr.testing.assert_equal(one, other)
    assert run("real", *given, "--out", out)[0] == 2
    assert run("real", *given, "--out", out, "--force")[0] == 0


def read(path: Path) -> xr.Dataset:
    return xr.load_dataset(path, engine="h5netcdf")


# ------------------------------------------------------------------------------- with the files


@pytest.fixture(scope="module")
def smollm2(real_folder) -> lm.DepthModel:
    return lm.DepthModel.load(str((real_folder / real.MODEL).resolve()), device="cpu")


@pytest.mark.real
def test_the_files_are_the_real_ones(real_folder):
    for each in real.FILES[1:]:
        path = real_folder / each.name
        assert (path.stat().st_size, file_hash(path)) == (each.size, each.sha256)
    counts = {}
    for name in real.TEXTS:
        with (real_folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            labels = [row["label"] for row in csv.DictReader(file)]
        counts[name] = labels.count("1"), labels.count("0")
    assert counts == {
        "movies": (4982, 5054),
        "amazon": (1714, 1210),
        "editorials": (1097, 1684),
        "tweets": (2295, 1060),
    }


@pytest.mark.real
def test_states_of_smollm2_are_as_large_as_seen_elsewhere(smollm2, real_folder):
    """Mean norms at depth 0 and 29, from the source of these files."""
    texts = lm.read_texts(real_folder / "movies.csv").split(concept=10, operating=10, held_out=20)
    states = smollm2.run(texts.held_out, contexts=False).states
    norms = np.linalg.norm(np.asarray(states.values, dtype=np.float64), axis=-1)
    norms = norms.mean(axis=tuple(i for i, d in enumerate(states.dims[:-1]) if d != "depth"))
    assert (smollm2.n_layers, smollm2.n_features) == (30, 576)
    np.testing.assert_allclose(norms[[0, 29]], [2.8, 713], rtol=0.05)


@pytest.mark.real
def test_the_job_says_what_the_model_knows(run, real_folder, tmp_path):
    code, shown, _ = run("real", *ASKED, "--out", tmp_path)
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} == RESULTS
    assert str(tmp_path) in shown
    system, gains = read(tmp_path / "system.nc"), read(tmp_path / "gains.nc")
    auc = system.auc.values.squeeze()
    # most texts end in a full stop, which alone tells nothing; in the depth the concept is there
    assert auc[20:].max() > 0.7
    fit = gains.relative_l2.sel(bound="estimate")
    assert float(fit.sel(layers="all").min()) < 0.3
    assert json.loads(system.attrs["classes"])


@pytest.mark.real
def test_repeated_runs_give_the_same_bits(smollm2, real_folder):
    from depthsys.study import Settings, steps
    from depthsys.study.cell import Cell, read_splits

    asked = Settings.checked(split="20/4/4", basis="ensemble", order=4)
    texts = read_splits(real_folder / "movies.csv", asked)

    def once() -> tuple[xr.Dataset, xr.Dataset]:
        cell = Cell(asked, smollm2, texts)
        system = steps.identify(cell, steps.find_concept(cell))
        return system, steps.gains(cell, system)

    for one, other in zip(once(), once(), strict=True):
        xr.testing.assert_equal(one, other)  # attrs hold the time
