import numpy as np
import pytest
import xarray as xr

from depthsys import ltv, plot
from tests.plot.drawing import drawn, labels_of, lines_of, styles_of


@pytest.fixture
def system():
    rng = np.random.default_rng(0)
    A = 0.9 * np.eye(3) + 0.1 * rng.standard_normal((6, 3, 3))
    system = ltv.system(A, rng.standard_normal((6, 3, 4)), rng.standard_normal((7, 3, 3)))
    return system.assign_coords(layer=range(2, 8), depth=range(2, 9))


def test_lines_are_the_responses_and_differ_without_colour(system, tmp_path):
    found = ltv.impulse_response(system.isel(input=[0]), 4)
    ax = drawn(tmp_path, plot.responses, found)
    lines = [lines_of(ax)[f"y{i}"] for i in range(3)]
    for i, line in enumerate(lines):
        np.testing.assert_array_equal(line.get_xdata(), range(2, 9))
        np.testing.assert_array_equal(line.get_ydata(), found.y.values[:, i, 0])
        assert line.get_drawstyle() == "default"
    assert len(styles_of(lines)) == 3
    assert ax.get_title() == "unit impulse at layer 4"
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [4]


def test_steps_are_stairs_with_the_names_of_the_signals(system, tmp_path):
    named = system.isel(input=[0, 1], output=[0]).assign_coords(
        input_name=("input", ["force", "torque"]), output_name=("output", ["speed"])
    )
    ax = drawn(tmp_path, plot.responses, ltv.step_response(named))
    assert labels_of(ax) == ["speed from force", "speed from torque"]
    assert lines_of(ax)["speed from force"].get_drawstyle() == "steps-post"
    assert ax.get_title() == "unit step at layer 2"


def test_eight_are_labelled_and_all_are_drawn(system, tmp_path):
    ax = drawn(tmp_path, plot.responses, ltv.step_response(system))
    assert len(labels_of(ax)) == 9
    assert labels_of(ax)[-1] == "4 more"
    assert sum(len(line.get_xdata()) == 7 for line in ax.lines) == 12


def test_one_line_needs_no_legend_and_labels_of_dims_are_names(system, tmp_path):
    one = system.isel(input=[0], output=[0])
    assert drawn(tmp_path, plot.responses, ltv.step_response(one)).get_legend() is None
    labelled = system.isel(input=[0]).assign_coords(output=["a", "b", "c"])
    ax = drawn(tmp_path, plot.responses, ltv.impulse_response(labelled))
    assert labels_of(ax) == ["a", "b", "c"]


def test_what_is_no_response_is_refused(system, tmp_path):
    run = ltv.simulate(system)
    for wrong in (run, run.y, xr.Dataset(attrs={"response": "step"})):
        with pytest.raises(ValueError, match="`response` must be an impulse or step response"):
            drawn(tmp_path, plot.responses, wrong)
    batch = ltv.stack([system, system])
    with pytest.raises(
        ValueError, match=r"must have dims .* Select one, as in `.isel\(prompt=0\)`"
    ):
        drawn(tmp_path, plot.responses, ltv.step_response(batch))
