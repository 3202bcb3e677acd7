import numpy as np
import pytest
import xarray as xr

from depthsys import plot
from tests.plot.drawing import drawn, labels_of
from tests.plot.tables import BASES, PARTS


@pytest.mark.parametrize(("order", "layers"), [(1, "all"), (16, "without_layer_0")])
def test_budget_bars_stand_side_by_side_beside_the_total(table, order, layers, tmp_path):
    ax = drawn(tmp_path, plot.budget_bars, table, order, layers)
    budget = 100 * table.error_budget.sel(order=order, layers=layers)
    names = ["total", *PARTS[:4]]
    want = budget.sel(part=names, bound="estimate").transpose("part", "basis").values
    bars = np.array(ax.patches).reshape(5, 3)
    get = np.vectorize(lambda bar: (bar.get_x(), bar.get_width(), bar.get_y(), bar.get_height()))
    left, width, bottom, height = get(bars)
    # nothing is stacked: every bar starts at 0, is as long as its part, and covers no other
    np.testing.assert_array_equal(left, 0)
    np.testing.assert_allclose(width, want)
    order_down = np.sort((bottom + height).T.ravel())
    assert (order_down[:-1] <= np.sort(bottom.T.ravel())[1:] + 1e-9).all()
    assert width.max() <= ax.get_xlim()[1]
    # parts differ without colour
    looks = {(bar.get_hatch(), bar.get_facecolor()) for bar in bars[:, 0]}
    assert len(looks) == 5
    assert len({bar.get_hatch() for bar in bars[1:, 0]}) == 4
    # the interval lies on the bar of the total
    total = budget.sel(part="total")
    intervals = next(c for c in ax.collections)
    ends = np.array(intervals.get_segments())
    np.testing.assert_allclose(
        ends[:, :, 0], total.sel(bound=["low", "high"]).transpose("basis", "bound")
    )
    middle = bottom[0] + height[0] / 2
    np.testing.assert_allclose(ends[:, 0, 1], middle)
    # and so does its number
    texts = [text for text in ax.texts if text.get_text() != "total"]
    for text, y in zip(texts, middle, strict=True):
        assert text.get_va() == "top"
        assert abs(text.xy[1] - y) < 0.15
    assert [label.get_text() for label in ax.get_yticklabels()] == BASES
    assert labels_of(ax) == ["total, with interval", *PARTS[:4]]
    assert ax.get_legend().get_title().get_text().startswith("parts may cancel")
    assert f"order {order}" in ax.get_xlabel()
    assert "(%)" in ax.get_xlabel()


def test_budget_bars_say_what_is_unknown_zero_or_cut(table, tmp_path):
    budget = table["error_budget"]
    budget[:] = 0.1
    budget.loc[{"basis": "ensemble", "part": ["averaging", "sampling"]}] = np.nan
    budget.loc[{"basis": "balanced"}] = 0.0
    budget.loc[{"basis": "pod", "part": "total", "bound": ["low", "high"]}] = np.nan
    far = budget.isel(basis=[2]).assign_coords(basis=["two_sided"])
    far = far.where(far.part != "truncation", 12.3)
    lost = (far * np.nan).assign_coords(basis=["random"])
    near = budget.isel(basis=[2]).assign_coords(basis=["krylov"])
    near = near.where(near.part != "total", 45.0)
    budget = xr.concat([budget, far, lost, near], "basis")
    ax = drawn(tmp_path, plot.budget_bars, xr.Dataset({"error_budget": budget}), 4)
    assert [text.get_text() for text in ax.texts] == [
        "10 % [10, 10]\nnot known: averaging, sampling",
        "0 (to rounding)",
        "10 %",
        "10 %\ncut: truncation 1230 %",
        "not known\nno part is known",
        "4500 % [4500, 4500]\ncut: the total",
        "total",
    ]
    assert ax.get_xlim()[1] == pytest.approx(10.5)


def test_a_row_that_is_not_much_longer_than_the_next_is_not_cut(table):
    budget = 0 * table["error_budget"]
    budget.loc[{"basis": "balanced"}] = 0.28
    budget.loc[{"basis": "pod"}] = 0.33
    assert plot.budget_limit(xr.Dataset({"error_budget": budget}), [4]) == pytest.approx(33)


def test_budget_bars_of_zeros_alone(table, tmp_path):
    table = table.assign(error_budget=0 * table.error_budget)
    ax = drawn(tmp_path, plot.budget_bars, table, 4)
    assert [text.get_text() for text in ax.texts][:-1] == ["0 (to rounding)"] * 3
    assert ax.get_xlim()[1] > 0


def test_budget_bars_of_two_orders_have_one_scale_and_one_legend(table, tmp_path):
    table["error_budget"][{"order": 1}] *= 3
    limit = plot.budget_limit(table, [1, 4])
    assert limit == pytest.approx(plot.budget_limit(table, [4]))
    assert limit > plot.budget_limit(table, [1])
    fig, axes = plot.figure(8, 8, rows=2)
    for order, ax in zip([1, 4], axes, strict=True):
        plot.budget_bars(ax, table, order, limit=limit, legend=order == 1)
    plot.save(fig, tmp_path / "a.png", "png")
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert labels_of(axes[0])
    assert axes[1].get_legend() is None
    assert axes[1].get_xlabel() == "relative L2 error of the gains (%) at order 4, all layers"
    cut = drawn(tmp_path, plot.budget_bars, table, 4, limit=1)
    assert all("cut: " in text.get_text() for text in cut.texts[:3])


@pytest.mark.parametrize("limit", [0.0, -1.0, np.nan])
def test_budget_bars_refuse_a_limit_that_is_not_positive(table, limit):
    _, (ax,) = plot.figure()
    with pytest.raises(ValueError, match=r"`limit` must be positive; got .*`plot.budget_limit`"):
        plot.budget_bars(ax, table, 4, limit=limit)
