"""What is said of the origin of a result."""

import json

import numpy as np
import pytest
import xarray as xr

from depthsys import report
from depthsys.report import remarks


@pytest.fixture
def system():
    return xr.Dataset(
        {
            "A": (("layer", "state_next", "state"), np.zeros((4, 2, 2))),
            "v": (("depth", "feature", "input"), np.zeros((5, 16, 1))),
            "auc": ("depth", [0.5, 0.6, 0.7, 0.8, 0.9]),
            "auc_low": ("depth", [0.4, 0.5, 0.6, 0.7, 0.8]),
            "auc_high": ("depth", [0.6, 0.7, 0.8, 0.9, 1.0]),
        },
        coords={"order": ("depth", [1, 2, 2, 2, 2])},
        attrs={
            "model": "here", "dtype": "float32", "readout": "concept", "method": "Krylov",
            "order": 2, "texts": "t.csv", "split": "40/20/10", "seed": 3, "max_tokens": 9,
            "classes": json.dumps(["bad", "good"]), "concept": "whitened", "n_duplicates": 0,
            "n_conflicts": 0, "n_cut_concept": 0, "n_cut_operating": 0, "n_cut_held_out": 0,
        },
    )  # fmt: skip


def test_a_heading_names_model_texts_and_separation(system):
    assert report.heading(system) == [
        "here: L = 4, H = 16, float32, Krylov, order 2, concept readout",
        "texts t.csv, 40/20/10 per class, seed 3; the readout grows from label 'bad' to 'good'",
        "- AUC on 20 held-out texts: 0.50 at depth 0, 0.90 [0.80, 1.00] at depth 4; the concept "
        "direction (whitened) separates held-out texts there",
    ]


def test_a_model_that_has_moved_is_named_where_it_is(system):
    assert report.heading(system, {"model": "there"})[0].startswith("there: L = 4")


@pytest.mark.parametrize(
    ("auc", "words"),
    [
        (0.8, "(whitened) separates held-out texts there"),
        (0.7, "(whitened) weakly separates held-out texts there"),
        (0.5, "(whitened) hardly separates held-out texts there: its gains are real, but do not"),
    ],
)
def test_separation_in_words(system, auc, words):
    system["auc"][-1] = auc
    assert words in report.heading(system)[-1]
    warned = system.assign_attrs(concept_warning="w")
    assert report.heading(warned)[-1].endswith("; see the warning below")
    assert "[" not in report.heading(system.drop_vars(["auc_low", "auc_high"]))[-1]


def test_the_best_depth_is_named(system):
    system["auc"][2] = 0.95
    system["auc_low"][2], system["auc_high"][2] = 0.91, 0.99
    assert "0.50 at depth 0, best 0.95 [0.91, 0.99] at depth 2, 0.90" in report.heading(system)[-1]
    assert report.notes(system) == []  # the intervals overlap
    system["auc_high"][-1] = 0.905
    assert report.notes(system) == [
        "the concept is seen better at depth 2 (AUC 0.95 [0.91, 0.99]) than at the last depth "
        "(AUC 0.90 [0.80, 0.91]), where gains are read"
    ]
    assert report.notes(system.drop_vars("auc_low")) == []


def test_no_depth_is_best_by_chance(system):
    system["auc"][:] = [0.3, 0.1, 0.5, 0.2, 0.0]
    system["auc_low"][2], system["auc_high"][2] = 0.4, 0.6
    system["auc_low"][-1], system["auc_high"][-1] = 0.0, 0.1
    text = report.heading(system)[-1]
    assert "0.30 at depth 0, 0.00 [0.00, 0.10] at depth 4" in text
    assert report.notes(system) == []
    system["auc"][2] = 0.51
    assert "best 0.51 [0.40, 0.60] at depth 2" in report.heading(system)[-1]


def test_without_any_direction_no_depth_is_best(system):
    for name in ("auc", "auc_low", "auc_high"):
        system[name][:] = np.nan
    text = report.heading(system.assign_attrs(concept_warning="w"))[-1]
    assert "no direction at depth 0, not known at depth 4" in text
    assert len(report.notes(system)) == 0


@pytest.mark.parametrize(
    ("attrs", "words"),
    [
        ({"order": 5}, "Krylov, order 2 (5 asked for),"),
        ({"settings": '{"order": 4}', "order": 4}, "Krylov, order 2 (4 asked for),"),
        ({"settings": '{"order": null}', "order": 32}, "Krylov, order 2,"),
        ({"settings": '{"tolerance": 0.1}', "order": 5}, "Krylov, order 2 for tolerance 0.1,"),
        ({"changed_by": "an engineer"}, "Krylov, changed by an engineer, order 2,"),
    ],
)
def test_the_system_in_words(system, attrs, words):
    assert words in report.heading(system.assign_attrs(attrs))[0]


def test_notes(system):
    assert report.notes(system) == []
    merged = system.assign_attrs(adapter="LORA adapter 'a', merged into 'b'")
    assert report.notes(merged) == ["the model is LORA adapter 'a', merged into 'b'"]
    noted = system.assign_attrs(step_note="steps", note="rank", concept_warning="no concept")
    assert report.notes(noted) == [
        "no concept; gains are real, but do not call them gains of the concept",
        "rank",
        "steps left out of the range of linearity: steps",
    ]


def test_dropped_and_cut_texts(system):
    assert report.text_notes(system.attrs) == []
    changed = system.attrs | {"n_duplicates": 2, "n_conflicts": 1, "n_cut_operating": 4}
    assert report.text_notes(changed) == [
        "dropped before splitting: 2 duplicates, 1 texts that came with both labels",
        "cut on the right at 9 tokens: 0 concept, 4 operating and 0 held-out texts",
    ]
    middle = report.text_notes(changed | {"cut": "middle"})
    assert middle[1].startswith("cut in the middle at 9 tokens")
    noted = system.attrs | {"token_notes": '{"held_out": "2 of 3 texts began with x"}'}
    assert report.text_notes(noted) == ["held-out texts: 2 of 3 texts began with x"]


def test_remarks_have_what_is_said_once_and_what_is_of_each(system):
    known = {"auc": np.array([np.nan, 0.4]), "auc_low": np.array([np.nan, 0.3])}
    known["auc_high"] = np.array([np.nan, 0.5])
    of = {"direction_note": "no direction at depth 0: why", "step_note": "0.3: overflow"}
    note, steps = remarks.of_attrs(of, known)
    assert (note.said, note.own) == ("no direction at depth 0: why", "depth 0")
    assert (steps.measured, steps.own) == ("why", "0.3: overflow")
    assert remarks.of_attrs(of)[0].kind == "no direction at depth 0: why"
    changed = system.attrs | {"n_duplicates": 2, "n_conflicts": 1, "n_other": 3, "n_cut_concept": 4}
    assert [(each.measured, each.own) for each in remarks.of_texts(changed)] == [
        ("duplicates and texts that came with both labels", "2 and 1"),
        ("rows", "3"),
        ("concept/operating/held-out texts", "4/0/0"),
    ]
