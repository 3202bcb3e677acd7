"""What is said of a comparison, from tables made by hand."""

import sys

import numpy as np
import pytest
import xarray as xr

from depthsys import report
from depthsys.report.comparison import verdicts
from depthsys.report.heading import comparison_in_words

comparison = sys.modules["depthsys.report.comparison"]

PARTS = ["nonlinearity", "averaging", "sampling", "truncation", "total"]


@pytest.fixture(autouse=True)
def gaps_of_the_intervals(monkeypatch):
    """Tables made by hand have no curves: here one interval must lie below the other."""

    def least_gap(table, name, best, order):
        row = table.relative_l2.sel(order=order, injection="absolute", layers="all")
        best_row = row.sel(basis=best)
        if not np.isfinite(best_row).all():
            return np.nan
        low = row.sel(basis=name, bound=["estimate", "low"]).min()
        return float(low - best_row.sel(bound=["estimate", "high"]).max())

    monkeypatch.setattr(comparison, "_least_gap", least_gap)


def test_two_methods_are_told_apart_by_paired_resampling(table, monkeypatch):
    """Their own intervals overlap, but on every draw of prompts the same one is better."""
    monkeypatch.undo()
    rng = np.random.default_rng(0)
    truth = np.array([3.0, 2.0, 1.0, 1.0])
    gain = truth + rng.standard_normal((30, 1))  # what is drawn shifts all layers together
    shift = np.array([1, 2, -1, -2.0])
    curves = np.stack([truth + 0.1 * shift, truth + 0.5 * shift, truth + 0.1 * shift])
    gaps = table.assign(
        measured_gain=(("prompt", "layer"), gain),
        surrogate_gain=(
            ("basis", "order", "layer"),
            np.broadcast_to(curves[:, None], (3, 3, 4)).copy(),
        ),
    )
    gaps.attrs |= {"n_bootstrap": 500, "seed": 1}
    assert comparison._least_gap(gaps, "b", "a", 4) > 0
    assert comparison._least_gap(gaps, "a", "b", 4) < 0
    assert comparison._least_gap(gaps, "c", "a", 4) == 0


@pytest.fixture
def table():
    """Three methods at orders 1, 4 and 8: a is the best, with an interval to itself."""
    orders, layers = [1, 4, 8], ["all", "without_layer_0"]
    agreement = ("basis", "order", "injection", "layers", "bound")
    estimate = np.array([[0.05, 0.02, 0.02], [0.5, 0.3, 0.02], [0.6, 0.4, 0.2]])
    interval = estimate[..., None] * [1, 0.5, 2]
    fit = np.broadcast_to(interval[:, :, None, None, :], (3, 3, 2, 2, 3)).copy()
    budget = np.broadcast_to([0.001, 0.01, 0.015, 0.0, 0.02], (3, 3, 5))
    budget = np.broadcast_to(budget[..., None, None], (3, 3, 5, 2, 3)).copy()
    error = np.full((3, 3, 2), 2.0)
    upper = np.full((3, 3, 2), np.nan)
    upper[0, :, 1] = 3.0
    return xr.Dataset(
        {
            "relative_l2": (agreement, fit),
            "spearman": (agreement, np.clip(fit, 0, 1)),
            "relative_l2_operating": (("basis", "order", "layers", "bound"), fit[:, :, 0]),
            "noise_floor": (("injection", "layers"), np.full((2, 2), 0.01)),
            "error_budget": (("basis", "order", "part", "layers", "bound"), budget),
            "error": (("basis", "order", "reference"), error),
            "upper": (("basis", "order", "reference"), upper),
            "ratio": (("basis", "order", "reference"), error / 1.0),
            "lower": (("order", "reference"), np.ones((3, 2))),
            "norm": ("reference", [4.0, 5.0]),
            "resolution": ("reference", [1e-6, 1e-6]),
            "seconds": (("basis", "order"), np.ones((3, 3))),
            "bytes": (("basis", "order"), np.full((3, 3), 12_345)),
            "states": (("basis", "order"), np.broadcast_to([1, 4, 8], (3, 3)).copy()),
            "measured_gain": (("prompt", "layer"), np.ones((30, 4))),
            "step_error": (("step", "layers", "bound"), np.full((2, 2, 3), 0.01)),
            "step_limit": ("layers", [0.25, np.nan]),
            "prompt_relative_l2": (
                ("basis_each", "order", "prompt_each"),
                np.linspace(0.01, 0.03, 21) * np.array([1, 1, 3])[:, None, None]
                + np.zeros((3, 3, 21)),
            ),
        },
        coords={
            "basis": ["a", "b", "c"],
            "basis_each": ["a", "b", "c"],
            "order": orders,
            "injection": ["absolute", "relative"],
            "layers": layers,
            "bound": ["estimate", "low", "high"],
            "part": PARTS,
            "reference": ["mean_system", "mean_response"],
            "step": [0.01, 0.1],
        },
    )


def said(table, start):
    (line,) = [line for line in verdicts(table) if line.startswith(start)]
    return line


def test_the_best_method_is_named_at_a_small_and_at_the_largest_order(table):
    assert said(table, "order 4:") == (
        "order 4: a has the smallest relative L2 error, 2.00 % [1.0, 4.0]; on resampled "
        "prompts (paired) it is below all others, next b, 30.0 % [15, 60]"
    )
    # methods with the same curve are named together
    assert said(table, "order 8:").startswith(
        "order 8: a and b have the smallest relative L2 error, 2.00 % [1.0, 4.0]; on resampled"
    )
    assert not [line for line in verdicts(table.sel(order=[4])) if line.startswith("order 8")]


def test_methods_that_the_intervals_cannot_tell_apart_are_named(table):
    wide = table.copy(deep=True)
    wide.relative_l2.loc[{"bound": "low", "basis": ["b", "c"]}] = 0.03
    assert said(wide, "order 4:").endswith(
        "on resampled prompts (paired) it cannot be told from b (30.0 %) and c (40.0 %)"
    )
    wide.relative_l2.loc[{"bound": ["low", "high"]}] = np.nan
    assert said(wide, "order 4:").endswith("without an interval nothing says how sure that is")


def test_an_interval_above_its_own_estimate_is_taken_from_the_estimate_on(table):
    """Percentile intervals of errors near their minimum."""
    high = table.copy(deep=True)
    high.relative_l2.loc[{"basis": "b", "order": 4}] = np.array([0.035, 0.05, 0.1])
    assert "cannot be told from b (3.50 %)" in said(high, "order 4:")


def test_one_method_and_unknown_errors(table):
    alone = table.sel(basis=["a"], basis_each=["a"])
    text = "order 4: a has the smallest relative L2 error, 2.00 % [1.0, 4.0]"
    assert said(alone, "order 4:") == text
    assert comparison_in_words(alone) == "1 method at orders 1, 4, 8"
    unknown = table.copy(deep=True)
    unknown.relative_l2.loc[{"basis": "a"}] = np.nan
    assert said(unknown, "order 4:").startswith("order 4: b has")
    assert "no method has a known relative L2 error at order 4" in verdicts(
        unknown.assign(relative_l2=unknown.relative_l2 * np.nan)
    )


def test_the_error_is_held_against_noise_and_budget(table):
    assert said(table, "that error of a") == (
        "that error of a is 2.0 times the sampling noise of 30 held-out prompts, 1.00 %; its "
        "largest part is sampling, 1.50 %"
    )
    table.noise_floor[:] = 0.03
    assert "is below the sampling noise of 30 held-out prompts, 3.00 %" in said(table, "that error")
    table.error_budget.loc[{"part": "averaging"}] = 0.05
    assert said(table, "that error").endswith(
        "its largest part is averaging, 5.00 %, more than the whole: its parts cancel each other, "
        "which is partly luck"
    )
    table.error_budget.loc[{"part": "averaging"}] = np.nan
    assert "its largest part is sampling" in said(table, "that error")
    table.error_budget[:] = np.nan
    assert said(table, "that error").endswith("3.00 %")


@pytest.mark.parametrize(
    ("limit", "errors", "words"),
    [
        (0.25, [0.01, 0.01], "5 % at pushes of 0.25"),
        (np.nan, [0.01, 0.02], "less than 5 % up to pushes of 0.1"),
        (np.nan, [0.01, np.nan], "less than 5 % up to pushes of 0.01"),
        (np.nan, [0.2, 0.3], "more than 5 % at all pushes from 0.01"),
        (np.nan, [0.2, 0.03], "5 % at a push that is not known"),
        (np.nan, [np.nan, np.nan], "5 % at a push that is not known"),
    ],
)
def test_the_linear_range(table, limit, errors, words):
    table.step_limit[0] = limit
    table.step_error[:] = np.array(errors)[:, None, None]
    start = "exact linear gains (all layers) miss the measured ones by"
    assert said(table, start) == f"{start} {words}"
    if "0.25" in words:
        relative = table.assign_attrs(relative=1)
        assert said(relative, start) == f"{start} 5 % at pushes of 25 % of the state's norm"


def test_certificates_are_checked(table):
    assert said(table, "all 18") == (
        "all 18 exact errors lie above the lower bound, and below the upper bound where one is "
        "proved (a)"
    )
    bare = table.assign(upper=table.upper * np.nan)
    assert said(bare, "all 18") == "all 18 exact errors lie above the lower bound"
    table.error[0, 0] = 0.5  # below what is possible
    table.error[0, 1, 1] = 3.5  # above what is proved
    table.error[1, 0, 0] = 1 - 1e-7  # rounding
    assert said(table, "3 of 18 exact errors lie outside").endswith("do not trust them")


def test_a_lower_bound_below_rounding_is_not_certified(table):
    table["lower"] = table.lower.where(table.order != 8, 0.5 * table.resolution)
    assert said(table, "all 18").endswith(
        "; the lower bound is not certified at order 8: there it is below what rounding explains"
    )
    told = table.assign(lower_is_certified=table.order < 0)
    assert "not certified at orders" in said(told, "all 18")


def test_orders_above_the_rank_are_said_once(table):
    assert not [line for line in verdicts(table) if "rank" in line]
    table.states.loc[{"order": 8, "basis": ["a", "c"]}] = 3
    table.attrs |= {"note_a": "order 8 is above the rank", "note_c": "order 8 is above the rank"}
    assert said(table, "order 8 is") == (
        "order 8 is above the rank of a (3 states) and c (3 states): nothing is truncated there"
    )


def test_systems_of_single_prompts(table):
    start = "one system for each of 21 prompts, order 4:"
    assert said(table, start) == (
        f"{start} a and b have the smallest median relative L2 error, 2.00 %; the middle 90 % lie "
        "from 1.10 % to 2.90 %"
    )
    few = table.isel(prompt_each=[0, 20])
    assert said(few, "one system for each of 2 prompts").endswith(
        "all of them lie from 1.00 % to 3.00 %"
    )
    unknown = table.assign(prompt_relative_l2=table.prompt_relative_l2 * np.nan)
    assert said(unknown, start) == f"{start} no error is known"
    without = table.drop_vars("prompt_relative_l2")
    assert not [line for line in verdicts(without) if line.startswith("one system")]


def test_tables_fit_the_page_however_large_the_numbers(table):
    table = table.assign_coords(basis=["two_sided", "b", "c"])
    table.relative_l2[0] *= 1000
    table.spearman[0] = -0.87
    table.ratio[0] = 2512.3
    table.ratio[1] = np.nan
    screen = report.Screen()
    screen.show(report.comparison(table))
    text = screen.text()
    assert "…" not in text
    assert "2000 % [1000, 4000]" in text
    assert "-0.87 [-0.87, -0.87]" in text
    assert "50.0 % (x 2512)" in text
    assert "12.3 kB" in text
