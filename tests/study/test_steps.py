"""Steps are functions of a cell and Datasets: they write and print nothing, and prefill once."""

import json
from dataclasses import replace

import numpy as np
import pytest

from depthsys import demo, lm, ltv, report, study
from depthsys.demo import grammar
from depthsys.lm import measure
from depthsys.study import Settings, steps
from depthsys.study.stored import check_same_model, check_same_texts, lacks, settings_of


@pytest.fixture(scope="module")
def model():
    return lm.DepthModel.load(demo.model_path("demo_48x4"), device="cpu")


def made(model, **options) -> study.Cell:
    settings = Settings.checked(**{"split": "12/6/6", "order": 3} | options)
    texts = lm.read_texts(grammar.labelled(40, seed=5)).split(concept=12, operating=6, held_out=6)
    return study.Cell(settings, model, texts)


@pytest.fixture(scope="module")
def cell(model):
    return made(model)


@pytest.fixture(scope="module")
def system(cell):
    return steps.identify(cell, steps.find_concept(cell))


def test_steps_are_those_of_the_library(cell, system, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, texts = cell.model, cell.texts
    concept = lm.mean_difference(model, texts.concept, held_out=texts.held_out)
    own = lm.identify(model, texts.operating, concept, lm.Ensemble(order=3))
    np.testing.assert_allclose(system["A"], own["A"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(system["auc"], concept["auc"])
    gains = steps.gains(cell, system)
    measured = lm.measure_gains(model, texts.held_out, concept)
    np.testing.assert_allclose(gains["measured_gain"], measured["gain"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(gains["surrogate_gain"], ltv.gains(system).values.ravel())
    energies = steps.control(cell, system)
    assert energies.attrs["target"] == pytest.approx(float(system["y_std"]))
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_results_say_of_which_texts_they_are(cell, system):
    texts = cell.texts
    attrs = steps.gains(cell, system).attrs
    assert json.loads(attrs["classes"]) == ["0", "1"]
    assert attrs["prompts_sha256"] == attrs["held_out_sha256"] == texts.held_out.sha256
    assert (attrs["split"], attrs["seed"], attrs["concept_sha256"]) == (
        "12/6/6",
        0,
        texts.concept.sha256,
    )
    warned = system.assign_attrs(concept_warning="none of it")
    assert steps.gains(cell, warned).attrs["concept_warning"] == "none of it"


def test_one_system_per_prompt(cell):
    each = steps.identify_each(cell, steps.find_concept(cell))
    assert each.sizes["prompt"] == 12
    assert "V" not in each


def test_settings_reach_the_library(model):
    cell = made(model, eps=0.02, target=0.5, energy="relative", readout="profile", concept="pca")
    concept = steps.find_concept(cell)
    assert concept.attrs["method"] == "pca"
    assert steps.find_concept(cell, "whitened").attrs["method"] == "whitened"
    system = steps.identify(cell, concept)
    assert system.attrs["readout"] == "profile"
    found = steps.gains(cell, system)
    assert (found.attrs["step"], found.attrs["relative"]) == (0.02, 1)
    absolute = replace(cell, settings=replace(cell.settings, step="absolute", eps=None))
    found = steps.gains(absolute, system)
    assert (found.attrs["step"], found.attrs["relative"]) == (0.1, 0)
    attrs = steps.control(cell, system).attrs
    assert (attrs["target"], attrs["energy"]) == (0.5, "relative")


def test_a_main_job_passes_every_text_through_the_model_once(model, monkeypatch):
    """Whole sequences: a block call on more than one token per row."""
    cell, sequences = made(model), []
    sequence = model.blocks.sequence

    def counting(layer, calls, hidden):
        sequences.extend([layer] * len(hidden))
        return sequence(layer, calls, hidden)

    monkeypatch.setattr(model.blocks, "sequence", counting)
    system = steps.identify(cell, steps.find_concept(cell))
    steps.gains(cell, system)
    steps.control(cell, system)
    n_texts = 2 * (12 + 6 + 6)
    assert [sequences.count(layer) for layer in range(4)] == [n_texts] * 4


def test_gains_of_all_steps_and_signs_go_through_one_replay(model, monkeypatch):
    cell, calls = made(model), []
    system = steps.identify(cell, steps.find_concept(cell))
    readouts = measure.readouts
    monkeypatch.setattr(measure, "readouts", lambda *a: calls.append(1) or readouts(*a))
    found = steps.gains(cell, system)
    # the step asked for, those that the linear range always tries, and every further decade
    replays = 2 + int(np.ceil((found.sizes["step"] - 6) / 3))
    assert len(calls) == replays * len(cell.held_out.numbers)


def test_a_comparison_uses_the_runs_of_its_cell(model, monkeypatch):
    cell = made(model, methods="ensemble,krylov", orders="1,2", n_each=2, readout="profile")
    made_runs = []
    made_anew = lm.Run.__init__

    def counting(run, model, texts, **options):
        made_runs.append(len(texts))
        made_anew(run, model, texts, **options)

    monkeypatch.setattr(lm.Run, "__init__", counting)
    concept = steps.find_concept(cell)
    table = steps.compare(cell, concept)
    assert sorted(made_runs) == [12, 12, 24]
    assert table["basis"].values.tolist() == ["ensemble", "krylov"]
    assert table.attrs["split"] == "12/6/6"
    # the first prompts, without the longest of their batches, are those of all
    every = replace(cell, settings=replace(cell.settings, n_each=12))
    gain = steps.compare(every, concept)["prompt_gain"].isel(prompt_each=slice(2))
    np.testing.assert_allclose(table["prompt_gain"], gain, rtol=1e-3, atol=1e-4)


def test_going_on_from_a_stored_system(cell, system, tmp_path):
    assert lacks(system) == {"texts"} - system.attrs.keys()
    settings = settings_of(system, Settings.checked(eps=0.5))
    assert (settings.split, settings.seed, settings.eps) == ((12, 6, 6), 0, 0.5)
    assert settings.dtype == "float32"
    assert settings_of(system, Settings.checked(dtype="float64")).dtype == "float64"
    check_same_texts(system, cell.texts, tmp_path)
    check_same_model(system, cell, tmp_path)
    other = replace(cell.texts, held_out=cell.texts.operating)
    with pytest.raises(ValueError, match="with other texts: its held_out_sha256 differs"):
        check_same_texts(system, other, tmp_path)
    changed = system.assign_attrs(model_fingerprint="of another")
    with pytest.raises(ValueError, match=r"with other weights .* its model_fingerprint differs"):
        check_same_model(changed, cell, tmp_path)


def test_a_cell_makes_each_run_once(cell):
    assert cell.operating is cell.operating
    assert cell.concept.place == "again"


def test_the_cause_that_is_named_is_the_cause(data):
    """Three operating prompts per class: the plan misses by a factor of 16, and it is sampling.

    The response is linear there, so that blaming nonlinearity would be wrong.
    """
    settings = Settings.checked(
        basis="ensemble", order=1, split="20/3/10", target=0.001, energy="absolute", device="cpu"
    )
    folder, texts = data / "weights" / "gpt280K_tinystories", data / "tasks" / "tweet_hate.csv"
    cell = study.open_cell(str(folder), texts, settings)
    system = steps.identify(cell, steps.find_concept(cell))
    energies = steps.control(cell, system)
    linear = cell.linear_gains("held_out", steps.concept_of(system)).gain.mean("prompt")
    expected = float((linear.values * energies.u.values).sum())
    assert expected == pytest.approx(6.25e-5, rel=0.01)
    miss = energies.miss
    assert float(miss.sel(cause="sampling")) == pytest.approx(expected / 0.001 - 1, abs=1e-3)
    assert float(abs(miss.sel(cause="nonlinearity"))) < 0.01
    said = report.control(energies).verdicts
    assert said[1].endswith("the largest is sampling")
    assert "not linear" not in " ".join(said)


def test_only_a_plan_that_misses_by_much_is_explained(cell, system, monkeypatch):
    miss = abs(float(steps.control(cell, system).progress) - 1)
    for limit, explained in ((0.9 * miss, True), (1.1 * miss, False)):
        monkeypatch.setattr(steps, "MISSED", limit)
        assert ("miss" in steps.control(cell, system)) == explained
