"""What a study will take: rows against those that really go through blocks."""

import numpy as np
import pytest

from depthsys import report
from depthsys.lm.hf.sizes import model_sizes
from depthsys.study import forecast as room
from depthsys.study.checks import checked
from depthsys.study.store import Store
from depthsys.study.study_reader import read_study, read_with_faults
from tests.study.conftest import SMALL


def cost_of(tmp_path, text=SMALL, store=None):
    (tmp_path / "study.toml").write_text(text)
    return room.forecast(checked(*read_with_faults(tmp_path / "study.toml")), store)


@pytest.fixture(autouse=True)
def speed_is_known(monkeypatch):
    monkeypatch.setattr(room, "_rate", lambda device: 1e9)


def test_sizes_are_those_of_the_loaded_model():
    from depthsys import demo, lm

    found = model_sizes(str(demo.model_path("demo_48x4")))
    model = lm.DepthModel.load(demo.model_path("demo_48x4"), device="cpu")
    assert (found.n_layers, found.n_features) == (model.n_layers, model.n_features)
    assert found.n_parameters == sum(p.numel() for p in model.hf.parameters())
    run = model.run(["one text of some words"] * 3)
    n_tokens = len(run.rows[0])
    assert run.nbytes == pytest.approx(
        4 * found.n_keys * 3 * (n_tokens - 1) * found.n_layers, rel=0.3
    )


def test_every_cell_and_stage_is_counted(tmp_path):
    text = SMALL + '[[tasks]]\nname = "place"\ntexts = "demo:domain"\n'
    text = text.replace("shard = 1024", 'concepts = ["mean_difference", "pca"]')
    cost = cost_of(tmp_path, text)
    assert cost.sizes == {"cell": 4, "stage": 4}
    # texts are run once for both concepts
    np.testing.assert_array_equal(cost["passes"], [1, 0, 1, 0])
    L, n_operating, n_held_out = 4, 8, 8
    triangle = L * (L + 1) / 2
    rows = cost["rows"].isel(cell=0)
    assert rows.sel(stage="system") == 3 * n_operating * L
    expected = 3 * (n_operating + n_held_out) * L + 2 * room.STEPS * n_held_out * triangle
    assert rows.sel(stage="gains") == expected
    block = model_sizes(str(_embedded())).n_block
    seconds = float(cost["seconds"].isel(cell=1).sel(stage="system"))
    assert seconds == pytest.approx(2 * block * 3 * n_operating * L / 1e9 + room.ALGEBRA["system"])


def test_the_rows_of_measured_gains_are_those_that_go_through_blocks(tmp_path, monkeypatch):
    """All of the stage, counted where they go through: within a factor of two."""
    from depthsys import demo, lm
    from depthsys.lm.frozen import FrozenBlock
    from depthsys.study import Cell, steps
    from depthsys.study.sources import read_splits_of

    (tmp_path / "study.toml").write_text(SMALL)
    study = read_study(tmp_path / "study.toml")
    settings = study.settings_of(study.cells[0])
    model = lm.DepthModel.load(demo.model_path("demo_48x4"), device="cpu")
    cell = Cell(settings, model, read_splits_of("demo:sentiment", settings))
    system = steps.identify(cell, steps.find_concept(cell))
    rows = []
    replay, product = FrozenBlock.__call__, FrozenBlock.vjp

    def counted(block, x, *given):
        rows.append(x.shape[:-1].numel())
        return replay(block, x, *given)

    def multiplied(block, carried, *given):
        rows.append(room.PRODUCT * carried.shape[:-1].numel())
        before = len(rows)
        found = product(block, carried, *given)
        del rows[before:]  # a product replays the block once, which is part of it
        return found

    monkeypatch.setattr(FrozenBlock, "__call__", counted)
    monkeypatch.setattr(FrozenBlock, "vjp", multiplied)
    steps.gains(cell, system)
    told = float(cost_of(tmp_path)["rows"].sel(stage="gains").sum())
    assert sum(rows) / 2 < told < 2 * sum(rows)


def test_what_is_there_is_not_counted(tmp_path, made):
    cost = cost_of(tmp_path, SMALL, Store(made.out))
    assert bool(cost["done"].all())
    found = report.study_plan(cost)
    assert found.tables[1].rows[0][1] == "0 of 1"
    assert found.verdicts == ["1 cell of 4 stages: all is there, nothing is to be made"]
    cost = cost_of(tmp_path, SMALL)
    assert not bool(cost["done"].any())


def _embedded():
    from depthsys import demo

    return demo.model_path("demo_48x4")


def test_measures_of_a_command_are_forecast_as_those_of_a_study(tmp_path):
    text = SMALL.replace('"gains", "energies"', '"spectra", "skip"')
    cost = cost_of(tmp_path, text).isel(cell=0)
    study = checked(*read_with_faults(tmp_path / "study.toml"))
    (key,) = study.study.cells
    told = room.of_measures(study.found[key], study.splits[key.texts], ["spectra", "skip"])
    for name in ("spectra", "skip"):
        assert told[name] == pytest.approx(float(cost["seconds"].sel(stage=name)))
        assert told[name] > room.ALGEBRA["measures"]
    first = float(cost["seconds"].isel(stage=0)) - room.ALGEBRA["concept"]
    assert told["prefill"] == pytest.approx(first)
