"""Whole figures, as they are written: nothing writes over anything, whatever the data."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from depthsys import ltv, plot
from depthsys.plot import sheets
from depthsys.plot.style import STYLES
from tests.plot.drawing import written_over
from tests.plot.tables import PARTS, with_interval

BASES = ["ensemble", "balanced", "two_sided", "krylov", "arnoldi", "pod", "adjoint", "random"]


def gains_of(n_layers, first):
    rng = np.random.default_rng(0)
    gain = (1 + np.sin(np.arange(n_layers))) * np.where(np.arange(n_layers) == 0, first, 1)
    measured = gain * (1 + 0.2 * rng.standard_normal((9, n_layers)))
    error = with_interval(np.array([[0.3, 0.01], [0.2, 0.0], [1.0, 0.5], [0.0, 0.1], [0.4, 0.2]]))
    return xr.Dataset(
        {
            "measured_gain": (("prompt", "layer"), measured),
            "linear_gain": (("prompt", "layer"), measured),
            "surrogate_gain": ("layer", gain),
            "error_budget": (("part", "layers", "bound"), error),
        },
        coords={
            "layer": range(n_layers),
            "part": PARTS,
            "layers": ["all", "without_layer_0"],
            "bound": ["estimate", "low", "high"],
        },
    )


@pytest.mark.parametrize(("n_layers", "first"), [(1, 1.0), (12, -30.0), (80, 1e5), (80, np.nan)])
def test_gains_write_over_nothing(n_layers, first):
    gains = gains_of(n_layers, first)
    assert not written_over(sheets.gain_curves(gains))
    assert not written_over(sheets.error_budget(gains))


@pytest.mark.parametrize(("n_bases", "factor"), [(1, 1e4), (8, 1.0), (8, 1e4)])
def test_budgets_of_one_and_of_eight_methods_write_over_nothing(table, n_bases, factor):
    budget = 0.01 + np.random.default_rng(0).random((n_bases, 2, 5, 2))
    budget[-1] *= factor
    dims = ("basis", "order", "part", "layers", "bound")
    labels = {name: table[name].values for name in ("part", "layers", "bound")}
    wide = xr.Dataset(
        {"error_budget": (dims, with_interval(budget))},
        coords={"basis": BASES[:n_bases], "order": [4, 32], **labels},
    )
    assert not written_over(sheets.budget_bars(wide))
    wide = wide.merge(table[["step_error", "step_limit"]])
    assert not written_over(sheets.budget_and_range(wide))


def test_comparisons_write_over_nothing(table):
    for draw in (sheets.agreement_by_order, sheets.certified_errors, sheets.prompt_spread):
        assert not written_over(draw(table))


@pytest.mark.parametrize("multiple", [[1.0, 0.314, 1e-4], [1.0, 1.01, 1.2], [1.0, 3e8, np.nan]])
def test_energies_and_schedules_write_over_nothing(energies, multiple):
    values = np.array([*multiple, 40.0])
    low, high = 0.5 * values, 4 * values
    found = energies.assign(
        multiple=("schedule", values),
        multiple_low=("schedule", low),
        multiple_high=("schedule", high),
        single_energy=("layer", [np.nan, 0.05, 3.0]),
        energy=("schedule", 0.04 * values),
    )
    for draw in (sheets.energy, sheets.schedule, sheets.single_layers):
        assert not written_over(draw(found))


@pytest.mark.parametrize(("n_layers", "n_inputs"), [(1, 1), (12, 8), (80, 2)])
def test_plans_write_over_nothing(n_layers, n_inputs):
    u = np.random.default_rng(0).standard_normal((n_layers, n_inputs))
    plan = xr.Dataset(
        {
            "u": (("layer", "input"), u),
            "linear_u": (("layer", "input"), u),
            "push": ("layer", abs(u).sum(1)),
            "linear_push": ("layer", abs(u).sum(1)),
            "target": ("output", [2.0]),
        },
        coords={"layer": range(n_layers)},
        attrs={"energy": "absolute"},
    )
    for draw in (sheets.pushes, sheets.push_energy, sheets.schedule):
        assert not written_over(draw(plan))


@pytest.mark.parametrize("n_layers", [1, 80])
def test_maps_write_over_nothing(n_layers):
    rng = np.random.default_rng(0)
    system = ltv.system(
        0.4 * rng.standard_normal((n_layers, 3, 3)),
        rng.standard_normal((n_layers, 3, 1)),
        rng.standard_normal((n_layers + 1, 2, 3)),
    )
    fig, axes = plot.figure(11, 4, columns=2)
    plot.hankel_map(axes[0], ltv.hankel_singular_values(system))
    plot.io_image(axes[1], ltv.io_matrix(system))
    for ax in axes:
        ax.set_title("a title")
    assert not written_over(fig)


def test_styles_of_neighbours_differ_in_lightness_and_all_in_marker():
    import matplotlib.colors as colours

    grey = np.array(
        [np.dot(colours.to_rgb(style["color"]), [0.299, 0.587, 0.114]) for style in STYLES]
    )
    assert (abs(np.diff(grey)) > 0.03).all()
    assert len({style["marker"] for style in STYLES}) == len(STYLES)


def test_sheets_come_with_the_plots():
    code = "from depthsys import plot; plot.sheets.scaling"
    subprocess.run([sys.executable, "-c", code], check=True)
