"""What is shown and said of predicted and measured gains."""

import numpy as np
import pytest
import xarray as xr

from depthsys import report

PARTS = ["nonlinearity", "averaging", "sampling", "truncation", "total"]


@pytest.fixture
def result():
    metric = np.zeros((2, 2, 3))
    metric[:] = [0.5, 0.25, 0.75]
    metric[1, 1, 1:] = np.nan
    budget = np.zeros((5, 2, 3))
    budget[..., 0] = np.array([0.01, 0.04, 0.03, 0.0, 0.05])[:, None]
    budget[:, :, 1:] = np.nan
    dims = ("injection", "layers", "bound")
    names = ("spearman", "pearson", "relative_l2", "max_relative_error")
    return xr.Dataset(
        {name: (dims, metric) for name in names}
        | {
            "noise_floor": (("injection", "layers"), [[0.002, 0.003], [0.004, 0.005]]),
            "error_budget": (("part", "layers", "bound"), budget),
            "step_error": (("step", "layers", "bound"), np.full((2, 2, 3), 0.02)),
            "step_limit": ("layers", [0.25, 0.3]),
        },
        coords={
            "injection": ["absolute", "relative"],
            "layers": ["all", "without_layer_0"],
            "bound": ["estimate", "low", "high"],
            "part": PARTS,
            "step": [0.01, 0.5],
        },
        attrs={"step": 0.01, "least_step": 1.2e-5, "relative": 1},
    )


def test_tables_have_a_row_per_metric_and_per_cause(result):
    agreement, budget = report.gains(result).tables
    assert agreement.header == ("agreement on held-out prompts", "all", "without layer 0")
    assert len(agreement.rows) == 8
    assert agreement.rows[0] == (
        "spearman (absolute injection)",
        "0.5000 [0.2500, 0.7500]",
        "0.5000 [0.2500, 0.7500]",
    )
    assert agreement.rows[-1] == (
        "max_relative_error (relative injection)",
        "0.5000 [0.2500, 0.7500]",
        "0.5000",
    )
    assert [row[0] for row in budget.rows] == PARTS
    assert budget.rows[1][1:] == ("0.0400", "0.0400")


def test_the_verdict_names_the_error_its_noise_and_the_largest_cause(result):
    assert report.gains(result).verdicts[0] == (
        "the surrogate misses the measured gains by 5.00 % (relative L2; 0.200 % would be sampling "
        "noise alone); the largest part is averaging (parts may cancel each other)"
    )


@pytest.mark.parametrize(
    ("limit", "errors", "words"),
    [
        (0.25, [0.01, 0.1], "is linear to 5 % up to 25 % of the state's norm"),
        (np.nan, [0.01, 0.02], "is linear to 5 % up to 50 % of the state's norm, the largest trie"),
        (np.nan, [0.1, 0.2], "is not linear to 5 % even at 1 % of the state's norm"),
        (np.nan, [np.nan, np.nan], "could not be judged"),
    ],
)
def test_both_limits_of_the_step_are_told(result, limit, errors, words):
    result["step_limit"][0] = limit
    result["step_error"][:] = np.array(errors)[:, None, None]
    verdicts = report.gains(result).verdicts
    assert len(verdicts) == 2
    assert verdicts[1].startswith(
        "gains were measured with pushes of 1 % of the state's norm; rounding allows them from "
        "0.0012 % of the state's norm on, and the response (all layers) " + words
    )
    result.attrs |= {"relative": 0, "step": 0.1}
    assert (
        "with pushes of 0.1; rounding allows them from 1.2e-05" in report.gains(result).verdicts[1]
    )


def test_an_estimate_outside_its_interval_is_explained(result):
    result = result.copy(deep=True)  # no two metrics in one array
    result["relative_l2"][0, 0] = [0.01, 0.02, 0.05]
    assert "near the noise of the prompts" in report.gains(result).verdicts[2]
    result["relative_l2"][0, 0] = [0.06, 0.02, 0.05]
    assert "rests on a measured gain near zero" in report.gains(result).verdicts[2]
    result["relative_l2"][0, 0] = [0.03, 0.02, 0.05]
    result["pearson"][0, 0] = [0.99, 0.8, 0.98]
    (noise,) = report.gains(result).verdicts[2:]
    assert "a correlation above it" in noise


# ------------------------------------------------------------------------------- energies


@pytest.fixture
def energies():
    return xr.Dataset(
        {
            "energy": ("schedule", [4.0, 8.0, np.nan, 2.0]),
            "energy_low": ("schedule", [3.5, 7.0, np.nan, 1.5]),
            "energy_high": ("schedule", [4.5, np.inf, np.nan, 2.5]),
            "multiple": ("schedule", [1.0, 2.0, np.nan, 0.5]),
            "multiple_low": ("schedule", [1.0, 1.5, np.nan, 0.4]),
            "multiple_high": ("schedule", [1.0, 2.5, np.nan, 0.7]),
            "largest_push": ("schedule", [0.25, 0.125, np.nan, 2.0]),
            "reached": ("schedule", [True, True, False, True]),
            "monotone": ("schedule", [True, False, False, True]),
            "layer_pushed": ("schedule", [-1, -1, 0, 3]),
            "predicted_energy": 3.9,
        },
        coords={"schedule": ["minimum_energy", "uniform", "first_layer", "best_single_layer"]},
        attrs={"target": 2.5, "energy": "absolute", "reference": "minimum_energy"},
    )


def test_schedules_that_fail_or_turn_back_are_marked(energies):
    (table,) = report.control(energies).tables
    assert table.rows == [
        ("minimum energy", "4 [3.5, 4.5]", "1", "25.0 %"),
        ("uniform", "8", "2 [1.5, 2.5]  (not monotone)", "12.5 %"),
        ("first layer (0)", "not reached", "-  (not monotone)", "-"),
        ("best single layer (3)", "2 [1.5, 2.5]", "0.5 [0.4, 0.7]", "200 %"),
    ]


def test_the_verdict_on_energies(energies):
    assert report.control(energies).verdicts == [
        "a shift of 2.5 takes absolute energy 4 [3.5, 4.5] on the full model, planned 3.9; cheaper "
        "on the full model: best single layer (3)"
    ]
    energies["multiple_high"][3] = 1.2
    (verdict,) = report.control(energies).verdicts
    assert verdict.endswith("; cheaper by less than its interval: best single layer (3)")
    energies["multiple"][3] = 3.0
    energies["predicted_energy"] = xr.DataArray(1.0)
    (verdict,) = report.control(energies).verdicts
    assert "planned 1 (4 times that); no schedule of" in verdict
    energies["energy"][0] = np.nan
    assert report.control(energies).verdicts == [
        "the planned schedule does not reach a shift of 2.5 on the full model"
    ]


def test_a_miss_is_split_before_anything_is_blamed(energies):
    causes = ["truncation", "averaging", "sampling", "nonlinearity", "total"]
    energies["progress"] = xr.DataArray(0.0625)
    energies["miss"] = xr.DataArray(
        [0.01, -0.002, -0.95, 0.0045, -0.9375], {"cause": causes}, ["cause"]
    )
    assert report.control(energies).verdicts[1] == (
        "played as planned it reaches 0.0625 of the target on held-out prompts; of the miss, in "
        "parts of the target: truncation +0.01, averaging -0.002, sampling -0.95, nonlinearity "
        "+0.0045; the largest is sampling"
    )
