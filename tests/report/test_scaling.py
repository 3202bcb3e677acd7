"""Tables of agreement against size: what they read off the cells of every family."""

import numpy as np
import pytest
import xarray as xr

from depthsys.report import scaling

BOUNDS = ["estimate", "low", "high"]
PARTS = ["nonlinearity", "averaging", "sampling", "truncation", "total"]
DIMS = ("model", "task", "seed")
METHODS = ("ensemble 4", "krylov 4", "krylov 8", "krylov 32", "arnoldi 32")
# (model, task, seed), of the smaller model first
ERRORS = np.array([[[0.04, 0.02, 0.03]], [[0.01, 0.03, 0.30]]])


def family_table(errors=ERRORS):
    """As `study.scaling` makes it; intervals are 20 % wide, floors 1 %."""
    wide = errors[..., None] * np.array([1.0, 0.9, 1.1])
    share = np.array([0.01, 0.25, 0.5, 0.125, 1.0])
    return xr.Dataset(
        {
            "relative_l2": ((*DIMS, "bound"), wide),
            "relative_l2_later": ((*DIMS, "bound"), wide / 2),
            "spearman": ((*DIMS, "bound"), 1 - wide),
            "pearson": ((*DIMS, "bound"), 1 - wide / 3),
            "budget": ((*DIMS, "part", "bound"), wide[..., None, :] * share[:, None]),
            "noise_floor": (DIMS, np.where(np.isnan(errors), np.nan, 0.01)),
            "noise_floor_later": (DIMS, np.full(errors.shape, 0.002)),
            "auc": (DIMS, np.full(errors.shape, 0.75)),
            "n_parameters": ("model", [1000, 2_500_000]),
            "n_layers": ("model", [4, 12]),
            "n_features": ("model", [8, 64]),
        },
        coords={
            "model": ["small", "large"],
            "task": ["movies"],
            "seed": [0, 1, 2],
            "part": PARTS,
            "bound": BOUNDS,
        },
    )


@pytest.fixture
def stored():
    return {"a family": scaling.rows({name: family_table() for name in METHODS})}


def test_rows_are_the_cells_with_five_digits(stored):
    own = stored["a family"]
    assert [(row["model"], row["seed"]) for row in own] == [
        (model, seed) for model in ("small", "large") for seed in (0, 1, 2)
    ]
    row = own[5]
    assert row["methods"]["ensemble 4"]["relative_l2"] == pytest.approx([0.3, 0.27, 0.33])
    assert row["methods"]["krylov 8"]["truncation"] == pytest.approx(0.0375)
    assert row["sampling"] == pytest.approx([0.15, 0.135, 0.165])
    assert (row["n_layers"], row["n_features"], row["auc"]) == (12, 64, 0.75)
    exact = family_table(ERRORS / 7)
    (first, *_) = scaling.rows({"ensemble 4": exact})
    assert first["methods"]["ensemble 4"]["relative_l2"][0] == 0.0057143


def test_cells_that_are_not_there_are_left_out(stored):
    errors = ERRORS.copy()
    errors[0, 0, 1] = np.nan
    own = scaling.rows({name: family_table(errors) for name in METHODS})
    assert len(own) == 5
    ratios, smaller, larger = scaling.against_smallest(own, "krylov 32")
    assert ratios == pytest.approx([0.25, 10])
    assert (smaller, larger) == (1, 1)


def test_the_largest_model_is_set_against_the_smallest_on_the_same_seed(stored):
    ratios, smaller, larger = scaling.against_smallest(stored["a family"], "ensemble 4")
    assert ratios == pytest.approx([0.25, 1.5, 10])
    # 0.27 to 0.33 lies above 0.027 to 0.033, 0.009 to 0.011 below 0.036 to 0.044
    assert (smaller, larger) == (1, 2)
    wide = family_table(np.array([[[0.03] * 3], [[0.035] * 3]]))
    own = scaling.rows({"ensemble 4": wide})  # 0.027 to 0.033 and 0.0315 to 0.0385 overlap
    assert scaling.against_smallest(own, "ensemble 4")[1:] == (0, 0)


def test_the_trend_has_medians_by_size_whatever_the_order_of_models(stored):
    backwards = family_table().isel(model=[1, 0])
    other = {"a family": scaling.rows({name: backwards for name in METHODS})}
    table = scaling.trend_table(stored)
    assert scaling.trend_table(other).rows == table.rows
    assert table.rows[0] == (
        "a family",
        "ensemble 4",
        "3 %, 3 %",
        "3.0, 3.0",
        "0.97, 0.97",
        "1.5 %, 1.5 %",
        "1.5 (0.25 to 10)",
        "1 of 3",
        "2 of 3",
    )
    assert table.rows[-1][:3] == ("a family", "*noise floor*", "1 %, 1 %")
    assert table.rows[-1][5] == "0.2 %, 0.2 %"


def test_agreement_has_the_seed_in_the_middle_with_its_interval(stored):
    table = scaling.agreement_table(stored)
    assert [row[0] for row in table.rows] == ["small (4 x 8, 1,000)", "large (12 x 64, 2,500,000)"]
    assert table.rows[1][1:6] == (
        "movies",
        "0.75",
        "1 %",
        "3 % [2.7, 3.3] (1 % to 30 %)",
        "0.97 (0.70 to 0.99)",
    )
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_the_budget_has_medians_over_seeds(stored):
    table = scaling.budget_table(stored)
    assert table.header[5] == "truncation, ensemble 4"
    assert table.rows[0][1:6] == ("movies", "0.03 %", "1.5 %", "0.75 %", "0.38 %")
    assert {len(row) for row in table.rows} == {len(table.header)}
    parts = scaling.page(stored)
    assert list(parts) == ["trend", "agreement", "budget"]
    assert parts["budget"].count("\n") == 1 + len(table.rows)
