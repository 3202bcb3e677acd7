"""What is said of a plan."""

import numpy as np
import pytest
import xarray as xr

from depthsys import report


@pytest.fixture
def plan():
    return xr.Dataset(
        {
            "u": (("layer", "input"), [[1.0], [-2.0], [0.0]]),
            "push": ("layer", [0.1, 0.25, 0.0]),
            "linear_u": (("layer", "input"), [[1.0], [2.0], [0.5]]),
            "linear_push": ("layer", [0.1, 0.2, 0.05]),
            "energy": 0.5,
            "target": ("output", [3.0]),
            "predicted": ("output", [3.03]),
            "steps": 4,
            "kkt_residual": 2e-4,
            "saved": 0.125,
            "held_out_shift": (("output", "bound"), [[2.7, 2.4, 3.3]]),
        },
        coords={"bound": ["estimate", "low", "high"]},
        attrs={"energy": "relative", "target_asked": "2std"},
    )


def test_every_layer_shows_its_push_with_its_sign(plan):
    (table,) = report.plan(plan).tables
    assert table.rows == [
        ("0", "10.0 %", "10.0 %"),
        ("1", "-25.0 %", "20.0 %"),
        ("2", "-", "5.00 %"),
    ]


def test_what_a_plan_reaches_and_takes(plan):
    plan.attrs["warning"] = "pushes are large"
    assert report.plan(plan).verdicts == [
        "a shift of 3 (2std) is planned at relative energy 0.5",
        "the full model reaches it on the operating prompts within 1.00 % after 4 steps (KKT "
        "residual 2.0e-04); 12.5 % less energy than the plan of the linear system needs there",
        "on held-out prompts it moves the readout by 0.900 [0.800, 1.100] of that",
        "pushes at 2 of 3 layers, the largest 25.0 % of the state's norm at layer 1",
        "WARNING: pushes are large",
    ]


def test_what_is_not_met_is_not_called_reached(plan):
    plan.attrs["not_met"], plan["predicted"] = "out of steps", 0.1 * plan["predicted"]
    assert report.plan(plan).verdicts[1:3] == [
        "on the operating prompts it moves the readout by 0.101 of that",
        "NOT MET: out of steps",
    ]


def test_a_plan_of_the_linear_system_alone(plan):
    linear = plan[["u", "push", "energy", "target"]]
    linear.attrs["target_asked"] = "3"
    found = report.plan(linear)
    assert found.tables[0].header == ("layer", "push")
    assert found.verdicts[0] == "a shift of 3 is planned at relative energy 0.5"
    assert len(found.verdicts) == 2


def test_a_negative_shift_keeps_the_order_of_its_interval(plan):
    plan["target"], plan["predicted"] = -plan["target"], -plan["predicted"]
    plan["held_out_shift"] = (
        -plan["held_out_shift"].isel(bound=[0, 2, 1]).assign_coords(bound=plan["bound"])
    )
    assert "by 0.900 [0.800, 1.100] of that" in report.plan(plan).verdicts[2]


def test_one_prompt_has_no_interval(plan):
    plan["held_out_shift"][:, 1:] = np.nan
    said = "on held-out prompts it moves the readout by 0.900 of that"
    assert said in report.plan(plan).verdicts
