import numpy as np
import pytest
import xarray as xr

from depthsys import plot
from depthsys.plot import sheets


@pytest.fixture
def concept():
    auc = np.array([np.nan, 0.6, 0.9, 0.7])
    names = {"auc": auc, "auc_low": auc - 0.1, "auc_high": auc + 0.05}
    return xr.Dataset({name: ("depth", values) for name, values in names.items()})


def test_auc_by_depth_rings_the_best_and_leaves_out_what_is_undefined(concept):
    _, (ax,) = plot.figure()
    plot.auc_by_depth(ax, {"here": concept, "there": concept - 0.1})
    here, there = (line for line in ax.lines if line.get_label() in ("here", "there"))
    np.testing.assert_array_equal(here.get_ydata(), concept.auc)
    np.testing.assert_allclose(there.get_ydata(), concept.auc - 0.1)
    rings = [line for line in ax.lines if line.get_label() == "_best"]
    assert [ring.get_xdata()[0] for ring in rings] == [2, 2]
    assert len(ax.collections) == 2  # bands
    assert here.get_marker() != there.get_marker()
    assert ax.get_xlabel()
    assert "AUC" in ax.get_ylabel()


def test_no_direction_at_all_draws_no_ring(concept):
    _, (ax,) = plot.figure()
    plot.auc_by_depth(ax, {"here": concept * np.nan}, bands=False)
    assert not [line for line in ax.lines if line.get_label() == "_best"]
    assert not ax.collections


def test_a_concept_without_held_out_texts_is_refused(concept):
    _, (ax,) = plot.figure()
    with pytest.raises(ValueError, match=r"`concepts` must hold .*auc_low.* Give `held_out` texts"):
        plot.auc_by_depth(ax, {"here": concept[["auc"]]})
    assert sheets.separation(concept[["auc"]]) is None


def test_figures_of_tasks(concept):
    rng = np.random.default_rng(0)
    dims = ("basis", "order", "layer")
    table = concept.assign(
        measured_gain=(("prompt", "layer"), rng.random((5, 3))),
        surrogate_gain=(dims, rng.random((3, 2, 3))),
    ).assign_coords(basis=["ensemble", "krylov", "arnoldi"], order=[4, 32], layer=range(3))
    tables = {name: table for name in ("a", "b", "c", "d", "e")}
    assert [ax.get_visible() for ax in sheets.gains_of_tasks(tables).axes] == 5 * [True] + 3 * [
        False
    ]
    (ax,) = sheets.gains_of_tasks({"a": table}).axes
    assert ax.get_title() == "a"
    lines = {line.get_label(): line for line in ax.lines}
    # layer 0 is left out
    np.testing.assert_allclose(
        lines["measured, mean"].get_ydata(), table.measured_gain.mean("prompt")[1:]
    )
    drawn = table.surrogate_gain.sel(basis="arnoldi", order=32)[1:]
    np.testing.assert_allclose(lines["arnoldi 32"].get_ydata(), drawn)
    assert len(sheets.separation_of_tasks(tables).axes[0].lines) == 11
