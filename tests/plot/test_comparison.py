import numpy as np
import pytest
import xarray as xr
from matplotlib.markers import CARETUP

from depthsys import plot
from depthsys.plot.style import basis_styles
from tests.plot.drawing import (
    bars_of,
    drawn,
    labels_of,
    lines_of,
    segments_of,
    styles_of,
    zeros_of,
)
from tests.plot.tables import BASES, ORDERS, with_interval


@pytest.mark.parametrize("layers", ["all", "without_layer_0"])
@pytest.mark.parametrize("metric", ["relative_l2", "max_relative_error", "spearman", "pearson"])
def test_agreement_by_order_shows_the_metric_and_its_intervals(table, metric, layers, tmp_path):
    shuffled = table.isel(order=[2, 0, 1]).transpose(...)
    ax = drawn(tmp_path, plot.agreement_by_order, shuffled, metric, layers, "relative")
    error = metric not in ("spearman", "pearson")
    chosen = (100 if error else 1) * table[metric].sel(layers=layers, injection="relative")
    lines = lines_of(ax)
    for name in BASES:
        want = chosen.sel(basis=name)
        np.testing.assert_array_equal(lines[name].get_ydata(), want.sel(bound="estimate"))
        # moved sideways by less than a quarter of the way to the next order
        shift = np.log(lines[name].get_xdata() / ORDERS) / np.log(4)
        np.testing.assert_allclose(shift, shift[0])
        assert abs(shift[0]) < 0.25
    assert len({tuple(lines[name].get_xdata()) for name in BASES}) == 3
    ends = chosen.sel(bound=["low", "high"]).transpose("basis", "order", "bound")
    np.testing.assert_allclose(bars_of(ax), ends.values.reshape(-1, 2))
    assert ax.get_yscale() == ("log" if error else "linear")
    assert labels_of(ax)[:3] == BASES
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "4", "16"]
    words = "all layers" if layers == "all" else "without layer 0"
    assert ax.get_title() == f"{words}, relative injection"
    assert (
        ax.get_ylabel()
        == {
            "relative_l2": "relative L2 error (%)",
            "max_relative_error": "largest relative error (%)",
            "spearman": "Spearman correlation of the gains",
            "pearson": "Pearson correlation of the gains",
        }[metric]
    )


def test_agreement_by_order_draws_the_noise_floor(table, tmp_path):
    ax = drawn(tmp_path, plot.agreement_by_order, table, injection="relative")
    (band,) = ax.patches
    assert band.get_y() + band.get_height() == pytest.approx(2)
    assert band.get_y() < ax.get_ylim()[0] < 2
    assert labels_of(ax)[-1] == "sampling noise alone"
    for floor, words in ((0.0, "0 to rounding"), (np.nan, "not known")):
        ax = drawn(
            tmp_path, plot.agreement_by_order, table.assign(noise_floor=table.noise_floor * floor)
        )
        assert not ax.patches
        assert labels_of(ax)[-1] == f"sampling noise: {words}"
    ax = drawn(tmp_path, plot.agreement_by_order, table, "spearman")
    assert not ax.patches


def test_agreement_by_order_says_what_is_missing_or_zero(table, tmp_path):
    table["relative_l2"][{"basis": 0}] = np.nan
    table["relative_l2"][{"basis": 1, "order": 0}] = np.nan
    table["relative_l2"][{"basis": 2, "order": 2}] = 0.0
    table["relative_l2"][{"basis": 2, "order": 1, "bound": 1}] = 0.0
    ax = drawn(tmp_path, plot.agreement_by_order, table)
    assert labels_of(ax)[:3] == ["ensemble (no value)", "balanced (1 of 3 missing)", "pod"]
    (zero,) = zeros_of(ax)
    assert zero.get_xdata().tolist() == lines_of(ax)["pod"].get_xdata()[[2]].tolist()
    assert zero.get_marker() == "P"
    assert [text.get_text() for text in ax.texts] == ["0 to rounding"]
    # an interval down to 0 ends where the strip of zeros begins
    bottom = (ax.transAxes + ax.transData.inverted()).transform((0, 0.15))[1]
    low = [segment[0, 1] for segment in segments_of(ax.collections[2]) if len(segment)]
    assert low[1] == pytest.approx(bottom)


def test_agreement_by_order_of_one_basis_and_one_order(table, tmp_path):
    ax = drawn(tmp_path, plot.agreement_by_order, table.isel(basis=[1], order=[1]))
    line = lines_of(ax)["balanced"]
    assert line.get_xydata().tolist() == [[4.0, 100 * float(table.relative_l2[1, 1, 0, 0, 0])]]
    assert ax.get_xticks().tolist() == [4]
    ax = drawn(tmp_path, plot.agreement_by_order, table.isel(order=[1]), "pearson")
    at = [lines_of(ax)[name].get_xdata()[0] for name in BASES]
    np.testing.assert_allclose(np.diff(at), at[1] - at[0])
    assert at[1] == 4


def test_agreement_by_order_keeps_eight_bases_apart_without_colour(table, tmp_path):
    names = list("abcdefgh")
    table = table.isel(basis=[0] * 8).assign_coords(basis=names)
    lines = lines_of(drawn(tmp_path, plot.agreement_by_order, table))
    assert len(styles_of([lines[name] for name in names])) == 8
    ends = np.array([lines[name].get_xdata() for name in names])
    assert (ends[-1][:-1] < ends[0][1:]).all()


def test_agreement_by_order_of_many_orders_labels_some_and_the_last(table, tmp_path):
    table = table.isel(order=np.zeros(64, int)).assign_coords(order=range(1, 65))
    ax = drawn(tmp_path, plot.agreement_by_order, table)
    texts = [tick.get_text() for tick in ax.get_xticklabels()]
    assert {"1", "2", "64"} <= set(texts)
    assert len(texts) < 21


def test_agreement_by_order_cuts_what_is_far_above_the_rest_and_says_it(table, tmp_path):
    values = with_interval(np.full((3, 3), 0.1))
    values[0, 0] = [14, 13, 15]
    values[1, 0] = [7, 6, 8]
    values[1, 2, 2] = 30
    values[2, 2] = [14, 13, 15]
    table["relative_l2"][:] = values[:, :, None, None]
    ax = drawn(tmp_path, plot.agreement_by_order, table)
    assert 20 < ax.get_ylim()[1] < 100
    assert [text.get_text() for text in ax.texts] == ["1400 %", "700 %", "1400 %"]
    first, second, last = ax.texts
    at = [lines_of(ax)[name].get_xdata() for name in BASES]
    assert [text.xy[0] for text in ax.texts] == [at[0][0], at[1][0], at[2][2]]
    # those of an order one under the other, the last inside the Axes
    assert first.xy[1] > second.xy[1]
    assert (first.get_ha(), last.get_ha()) == ("left", "right")
    small = [line for line in ax.lines if line.get_marker() == CARETUP]
    assert [line.get_xdata().tolist() for line in small] == [[at[1][2]]]
    # 100 % is what predicting 0 costs: never cut
    table["relative_l2"][{"basis": 0}] = 1.0
    assert not drawn(tmp_path, plot.agreement_by_order, table.isel(order=[1])).texts


def test_a_basis_looks_the_same_in_figures_of_different_subsets(table, tmp_path):
    names = ["random", "ensemble", "mine"]
    for chosen in (names, names[::-1], names[1:]):
        part = table.isel(basis=slice(len(chosen))).assign_coords(basis=chosen)
        for figure in (plot.agreement_by_order, plot.certified_errors):
            lines = lines_of(drawn(tmp_path, figure, part))
            looks = [(lines[name].get_color(), lines[name].get_marker()) for name in chosen]
            assert looks == [(style["color"], style["marker"]) for style in basis_styles(chosen)]
            assert looks[chosen.index("ensemble")] == ("#000000", "o")
            assert len(set(looks)) == len(chosen)


def test_figures_side_by_side_share_a_legend(table, tmp_path):
    fig, (left, right) = plot.figure(12, 4, columns=2)
    plot.agreement_by_order(left, table, legend=False)
    plot.certified_errors(right, table, legend=False)
    plot.shared_legend([left, right])
    plot.save(fig, tmp_path / "a.png", "png")
    assert left.get_legend() is right.get_legend() is None
    (legend,) = fig.legends
    texts = [text.get_text() for text in legend.get_texts()]
    more = ["sampling noise alone", "no model can be here", "upper bound, balanced"]
    assert texts == [*BASES, *more]


@pytest.mark.parametrize("reference", ["mean_system", "mean_response"])
def test_certified_errors_are_relative_to_the_reference(table, reference, tmp_path):
    ax = drawn(tmp_path, plot.certified_errors, table, reference)
    chosen = table.sel(reference=reference)
    lines = lines_of(ax)
    for name in BASES:
        want = 100 * chosen.error.sel(basis=name) / chosen.norm
        np.testing.assert_allclose(lines[name].get_ydata(), want)
        np.testing.assert_array_equal(lines[name].get_xdata(), ORDERS)
    assert ("upper bound, balanced" in lines) == (reference == "mean_system")
    if reference == "mean_system":
        np.testing.assert_allclose(lines["upper bound, balanced"].get_ydata(), [400, 200, 100])
        bound = lines["upper bound, balanced"]
        assert bound.get_color() == lines["balanced"].get_color()
        # a bound at a single order has a mark too
        assert (bound.get_linestyle(), bound.get_marker()) == ("--", "_")
    assert ax.get_ylabel() == "error / norm of the full system (%)"
    assert ax.get_title() == f"against the {reference.replace('_', ' ')}"


def test_certified_errors_shade_what_no_model_attains(table, tmp_path):
    ax = drawn(tmp_path, plot.certified_errors, table)
    (region,) = ax.collections
    assert region.get_label() == "no model can be here"
    (path,) = region.get_paths()
    # relative to the norm of 2, up to the bound of the next order that has one
    inside = [(0.9, 39), (1.1, 19), (3.9, 19), (4.1, 9), (15.9, 9)]
    outside = [(0.9, 41), (1.1, 21), (3.9, 21), (4.1, 11), (16.1, 9)]
    assert path.contains_points(inside).all()
    assert not path.contains_points(outside).any()
    bottom = ax.get_ylim()[0]
    assert path.contains_point((2, bottom * 1.01))
    np.testing.assert_allclose(lines_of(ax)["_lower bound"].get_ydata()[1:], [40, 20, 10])


def test_certified_errors_of_zero_nan_and_inf(table, tmp_path):
    table["error"][0, 2] = 0.0
    table["error"][1] = np.nan
    table["error"][2, 0] = np.inf
    table["lower"][2] = 0.0
    ax = drawn(tmp_path, plot.certified_errors, table)
    assert labels_of(ax)[-3:] == ["ensemble", "balanced (no value)", "pod"]
    assert [line.get_xdata().tolist() for line in zeros_of(ax)] == [[16]]
    assert not ax.collections[0].get_paths()[0].contains_point((8, 0.1))
    empty = table.assign(error=table.error * np.nan, lower=table.lower * np.nan)
    assert not drawn(tmp_path, plot.certified_errors, empty, "mean_response").collections
    alone = drawn(tmp_path, plot.certified_errors, table.isel(order=[1], basis=[2]))
    assert alone.collections[0].get_paths()[0].contains_point((3.9, 19))


def test_linear_range_shows_both_layer_sets_and_where_5_percent_is_passed(table, tmp_path):
    ax = drawn(tmp_path, plot.linear_range, table)
    label = r"all layers: 5 % at $\epsilon$ = 0.05"
    assert labels_of(ax) == ["5 %", label, "without layer 0: limit not known"]
    lines = lines_of(ax)
    want = 100 * table.step_error.sel(bound="estimate", layers="all")
    np.testing.assert_allclose(lines[label].get_ydata(), want)
    np.testing.assert_allclose(lines[label].get_xdata(), table.step, rtol=0.2)
    np.testing.assert_array_equal(lines["5 %"].get_ydata(), [5, 5])
    marks = [line.get_xydata().tolist() for line in ax.lines if line.get_markersize() == 11]
    assert marks == [[[0.05, 5.0]]]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    ends = 100 * table.step_error.sel(bound=["low", "high"], layers="without_layer_0")
    np.testing.assert_allclose(bars_of(ax)[-3:], ends)


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1e-3, "below 5 % throughout"), (1e3, "above 5 % throughout"), (np.nan, "limit not known")],
)
def test_linear_range_that_5_percent_does_not_end(table, factor, words, tmp_path):
    table = table.assign(step_error=factor * table.step_error, step_limit=np.nan * table.step_limit)
    labels = labels_of(drawn(tmp_path, plot.linear_range, table))
    missing = " (no value)" if np.isnan(factor) else ""
    assert labels[1] == f"all layers{missing}: {words}"


def test_linear_range_of_zeros_and_of_one_step(table, tmp_path):
    table["step_error"][0, 1] = 0.0
    (zero,) = zeros_of(drawn(tmp_path, plot.linear_range, table))
    assert zero.get_xdata()[0] == pytest.approx(0.01, rel=0.2)
    ax = drawn(tmp_path, plot.linear_range, table.isel(step=[1]))
    low, high = ax.get_xlim()
    assert low < 0.05 < 0.1 < high
    assert sum(low <= tick <= high for tick in ax.get_xticks()) >= 2


def test_prompt_spread_shows_every_prompt_and_the_quartiles(table, tmp_path):
    ax = drawn(tmp_path, plot.prompt_spread, table, 4)
    values = 100 * table.prompt_relative_l2.sel(order=4)
    dots = [line for line in ax.lines if len(line.get_xdata()) == 40]
    for row, (name, line) in enumerate(zip(["pod", "ensemble"], dots, strict=True)):
        np.testing.assert_array_equal(line.get_ydata(), values.sel(basis_each=name))
        assert (abs(line.get_xdata() - row) < 0.3).all()
    # the marker of a basis is that of the other figures
    assert [line.get_marker() for line in dots] == ["P", "o"]
    medians = [line.get_ydata() for line in ax.lines if line.get_linewidth() == 2]
    np.testing.assert_allclose([m[0] for m in medians], values.median("prompt_each"))
    assert ax.get_yscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["pod", "ensemble"]
    assert "40 prompts" in ax.get_xlabel()
    assert "order 4" in ax.get_xlabel()


def test_prompt_spread_of_zeros_and_missing_prompts(table, tmp_path):
    values = table["prompt_relative_l2"]
    values[0, :, :3] = 0.0
    values[1, :, :5] = np.nan
    lost = (values.isel(basis_each=[0]) * np.nan).assign_coords(basis_each=["krylov"])
    none = (values.isel(basis_each=[0]) * 0).assign_coords(basis_each=["balanced"])
    table = xr.Dataset({"prompt_relative_l2": xr.concat([values, lost, none], "basis_each")})
    ax = drawn(tmp_path, plot.prompt_spread, table, 1)
    texts = [label.get_text().replace("\n", " ") for label in ax.get_xticklabels()]
    assert texts == ["pod", "ensemble (5 missing)", "krylov (no value)", "balanced"]
    assert [len(line.get_xdata()) for line in zeros_of(ax)] == [3, 40]
    one = drawn(tmp_path, plot.prompt_spread, table.isel(basis_each=[0], prompt_each=[7]), 1)
    assert one.get_xlim() == (-1.5, 1.5)


@pytest.mark.parametrize(
    ("function", "arguments", "variable"),
    [
        (plot.agreement_by_order, (), "relative_l2"),
        (plot.agreement_by_order, (), "noise_floor"),
        (plot.agreement_by_order, ("pearson",), "pearson"),
        (plot.certified_errors, (), "upper"),
        (plot.budget_bars, (4,), "error_budget"),
        (plot.linear_range, (), "step_limit"),
        (plot.prompt_spread, (4,), "prompt_relative_l2"),
    ],
)
def test_a_missing_variable_a_batch_and_another_type_are_refused(
    table, function, arguments, variable
):
    _, (ax,) = plot.figure()
    want = rf"`table` must hold .* without \['{variable}'\].*Make it with `depthsys compare`"
    with pytest.raises(ValueError, match=want):
        function(ax, table.drop_vars(variable), *arguments)
    with pytest.raises(ValueError, match=r"must have dims .*got .*isel\(model=0\)"):
        function(ax, table.expand_dims("model"), *arguments)
    with pytest.raises(TypeError, match="`table` must be a Dataset; got DataArray"):
        function(ax, table["error"], *arguments)


@pytest.mark.parametrize(
    ("function", "arguments", "text"),
    [
        (plot.budget_bars, {"order": 3}, r"`order` must be one of \[1, 4, 16\]; got 3. Pick one"),
        (plot.prompt_spread, {"order": 3}, r"`order` must be one of \[1, 4, 16\]; got 3"),
        (plot.budget_bars, {"order": 4, "layers": "some"}, r"`layers` must be one of .*'some'"),
        (plot.agreement_by_order, {"metric": "r2"}, r"`metric` must be one of \['spearman'"),
        (plot.agreement_by_order, {"injection": "big"}, r"`injection` must be one of .*'big'"),
        (plot.certified_errors, {"reference": "x"}, r"`reference` must be one of \['mean_system'"),
    ],
)
def test_an_unknown_label_is_refused(table, function, arguments, text):
    _, (ax,) = plot.figure()
    with pytest.raises(ValueError, match=text):
        function(ax, table, **arguments)


def test_a_table_without_bounds_parts_or_with_a_step_of_zero_is_refused(table):
    _, (ax,) = plot.figure()
    with pytest.raises(ValueError, match=r"`bound` must hold \['estimate', 'low', 'high'\]; got"):
        plot.linear_range(ax, table.isel(bound=[0]))
    with pytest.raises(ValueError, match=r"`part` must hold .*'total'\]; got \['nonlinearity'\]"):
        plot.budget_bars(ax, table.isel(part=[0]), 4)
    with pytest.raises(ValueError, match=r"`step` must be positive; got 0"):
        plot.linear_range(ax, table.assign_coords(step=[0.0, 0.1, 1.0]))
