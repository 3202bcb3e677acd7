"""Measures of depth: one list names what the library has, and a study makes stages of it."""

import inspect
import json

import numpy as np
import pytest

from depthsys import demo, lm
from depthsys.plot import dynamics as sheets
from depthsys.report.dynamics import SHOWN
from depthsys.report.html.results import STAGES as CALLED
from depthsys.report.stage import Stage
from depthsys.study import Cell, Settings, dynamics, steps
from depthsys.study.meanings import MEANINGS
from depthsys.study.measures import MEASURES, Sizes
from depthsys.study.reported import read_results
from depthsys.study.sources import read_splits_of
from depthsys.study.stages import STAGES
from tests.study.conftest import SMALL

NAMES = list(MEASURES)


def test_every_measure_has_a_function_a_report_a_stage_and_its_figures():
    assert list(SHOWN) == NAMES
    for name, measure in MEASURES.items():
        parameters = list(inspect.signature(getattr(dynamics, name)).parameters)
        assert parameters == ["cell", "concept"][: 1 + measure.of_concept]
        assert STAGES[name].needs == (("concept",) if measure.of_concept else ())
        assert CALLED[name] == SHOWN[name].called
        for figure in measure.figures:
            assert callable(getattr(sheets, figure))


def test_a_result_is_known_by_variables_that_no_other_has():
    for name, shown in SHOWN.items():
        others = [other for key, other in SHOWN.items() if key != name]
        assert shown.marks
        for other in others:
            assert not shown.marks <= other.marks | other.variables


def test_rows_grow_with_what_they_are_of():
    small = Sizes(n_layers=4, n_features=48, n_prompts=10, n_jacobians=2)
    for measure in MEASURES.values():
        assert measure.rows(small) >= 0
        assert measure.cubes >= 0
    assert MEASURES["spectra"].rows(small) == 3 * 2 * 4 * 48
    # one row for each layer that follows, and one product for each layer
    assert MEASURES["skip"].rows(small) == 10 * (3 * 4 + (4 + 3 + 2 + 1))


@pytest.fixture(scope="module")
def cell():
    settings = Settings.checked(split="8/4/4", device="cpu", n_jacobians=3)
    model = lm.DepthModel.load(demo.model_path("demo_48x4"), device="cpu")
    return Cell(settings, model, read_splits_of("demo:sentiment", settings))


def test_a_few_prompts_are_the_first_operating_ones(cell):
    assert list(cell.few.texts.texts) == list(cell.texts.operating.texts[:3])
    assert cell.few is cell.few
    assert cell.first(8) is cell.operating
    assert cell.first(100) is cell.operating


@pytest.mark.parametrize("name", NAMES)
def test_a_measure_says_what_it_is_and_where_it_comes_from_and_can_be_told_and_drawn(cell, name):
    found = dynamics.measured(cell, name)
    meant = {one for one in MEANINGS[name] if not one.startswith("given_")}
    separation = {"auc", "auc_low", "auc_high", "log_odds_per_unit"}
    assert set(found.data_vars) == meant | (separation if MEASURES[name].of_concept else set())
    for variable in found.data_vars:
        told = found[variable].attrs
        assert told["long_name"], variable
        assert isinstance(told["units"], str), variable
    assert found.attrs["split"] == "8/4/4"
    assert found.attrs["model_fingerprint"] == cell.model.fingerprint
    report = SHOWN[name].report(Stage.of(found))
    assert report.tables
    assert report.verdicts
    assert SHOWN[name].marks <= set(found.variables)
    for figure in MEASURES[name].figures:
        drawn = getattr(sheets, figure)(found)
        if drawn is not None:
            own = [ax for ax in drawn.axes if ax.has_data() and ax.get_label() != "<colorbar>"]
            assert all(ax.get_xlabel() and ax.get_ylabel() for ax in own)


def test_a_study_makes_what_the_function_makes(runs):
    stages = ", ".join(f'"{name}"' for name in ("spectra", "skip"))
    asked = SMALL.replace('"gains", "energies"', stages)
    outcome = runs(asked.replace('device = "cpu"', 'device = "cpu"\nn_jacobians = 3'))
    assert (outcome.made, outcome.failed) == (3, [])
    (told,) = read_results(runs.out).cells
    assert list(told.stages) == ["concept", "spectra", "skip"]
    assert told.stages["spectra"].attrs["n_jacobians"] == 3
    settings = Settings.checked(split="8/4/4", device="cpu", n_jacobians=3)
    model = lm.DepthModel.load(demo.model_path("demo_48x4"), device="cpu")
    here = Cell(settings, model, read_splits_of("demo:sentiment", settings))
    expected = dynamics.measured(here, "skip", steps.find_concept(here))
    np.testing.assert_allclose(told.stages["skip"].value("kl"), expected["kl"], rtol=1e-4)
    # another number of Jacobians makes spectra anew, and nothing else
    outcome = runs(asked.replace('device = "cpu"', 'device = "cpu"\nn_jacobians = 2'))
    assert (outcome.made, outcome.kept) == (1, 2)


def test_detached_maps_of_a_study_are_what_the_library_finds(runs):
    asked = SMALL.replace('"gains", "energies"', '"detached", "detached_gains"')
    outcome = runs(asked.replace('device = "cpu"', 'device = "cpu"\nn_jacobians = 3'))
    assert (outcome.made, outcome.failed) == (3, [])
    (told,) = read_results(runs.out).cells
    settings = Settings.checked(split="8/4/4", device="cpu", n_jacobians=3)
    model = lm.DepthModel.load(demo.model_path("demo_48x4"), device="cpu")
    here = Cell(settings, model, read_splits_of("demo:sentiment", settings))
    found, maps = told.stages["detached"], lm.detached_spectra(here.few)
    np.testing.assert_allclose(
        found.value("stable_rank", map="layer"), maps["stable_rank"].sel(map="layer"), rtol=1e-3
    )
    assert found.value("output_text").shape == maps["output_text"].shape
    assert float(found.value("error_stack").max()) < 1e-5
    concept = steps.find_concept(here)
    gains = told.stages["detached_gains"]
    kind = lm.Linearisation(kind="detached")
    for name, part in {"exact_gain": "block", "detached_gain": kind}.items():
        expected = lm.linear_gains(here.operating, concept, part=part)["gain"]
        np.testing.assert_allclose(gains.value(name), expected, rtol=1e-3, atol=1e-4)
    exact, detached = (
        gains.value("relative_l2", gains=g, layers="all", bound="estimate")
        for g in ("exact", "detached")
    )
    assert exact < detached
    plan = lm.gains_plan(here.operating, concept, json.loads(gains.attrs["target"]), part=kind)
    schedules = plan["u"].expand_dims(schedule=["detached"])
    needed = lm.required_energy(
        here.held_out, concept, schedules, json.loads(gains.attrs["target"]),
        amplitude=float(plan["energy"]) ** 0.5, weights=plan["weight"],
    )  # fmt: skip
    assert np.isclose(gains.value("energy", schedule="detached"), needed["energy"][0], rtol=1e-2)


def test_layers_are_compared_with_the_others(cell):
    found = dynamics.measured(cell, "coupling")
    m = found["coupling"].values
    for layer in range(cell.model.n_layers):
        others = np.delete(m[:, layer], layer, axis=1)
        np.testing.assert_allclose(found["of_others"][:, layer], others.mean(axis=1))
        np.testing.assert_allclose(found["of_closest"][:, layer], others.min(axis=1))
    assert (found.sizes["prompt"], found.attrs["n_jacobians"]) == (3, 3)


def test_a_lens_reads_texts_that_it_was_not_made_of(cell):
    found = dynamics.measured(cell, "lens")
    made = lm.lens(cell.model, list(cell.texts.operating.texts[:3]))
    expected = lm.lens_agreement(cell.model, cell.texts.held_out, made)
    np.testing.assert_allclose(found["kl"], expected["kl"], rtol=1e-4, atol=1e-6)
    share = np.linalg.norm(made["J"], axis=(1, 2)) / made["prompt_norm"]
    np.testing.assert_allclose(found["share"], share, rtol=1e-5)
    assert found.attrs["own_prompts"] == 0
    # where all parts are the same texts, the others of them
    texts = cell.texts.held_out
    same = Cell(cell.settings, cell.model, lm.Splits(texts, texts, texts, 0))
    others = dynamics.lens(same)
    made = lm.lens(cell.model, list(texts.texts[:3]))
    expected = lm.lens_agreement(cell.model, list(texts.texts[3:]), made)
    np.testing.assert_allclose(others["kl"], expected["kl"], rtol=1e-3, atol=1e-6)
    assert others.attrs["own_prompts"] == 0
    few = texts.first(3)
    own = dynamics.lens(Cell(cell.settings, cell.model, lm.Splits(few, few, few, 0)))
    assert (own.sizes["prompt"], own.attrs["own_prompts"]) == (3, 1)
