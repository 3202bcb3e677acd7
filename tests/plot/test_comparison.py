import numpy as np
import pytest
import xarray as xr

from depthsys import plot
from tests.plot.drawing import drawn, labels_of, lines_of, styles_of

BASES = ["ensemble", "balanced", "pod"]
ORDERS = [1, 4, 16]
PARTS = ["nonlinearity", "averaging", "sampling", "truncation", "total"]


def with_interval(values):
    values = np.asarray(values, float)
    return np.stack([values, 0.5 * values, 2 * values], axis=-1)


@pytest.fixture
def table():
    """As `depthsys compare` writes it."""
    rng = np.random.default_rng(0)
    agreement = ("basis", "order", "injection", "layers", "bound")
    error = 0.01 + rng.random((3, 3, 2, 2))
    reduction = ("basis", "order", "reference")
    upper = np.full((3, 3, 2), np.nan)
    upper[1, :, 0] = [8.0, 4.0, 2.0]
    step_error = [[0.001, 0.0005], [0.02, 0.01], [0.4, 0.3]]
    return xr.Dataset(
        {
            "relative_l2": (agreement, with_interval(error)),
            "max_relative_error": (agreement, with_interval(3 * error)),
            "spearman": (agreement, with_interval(error - 0.7)),
            "pearson": (agreement, with_interval(error - 0.5)),
            "noise_floor": (("injection", "layers"), [[0.04, 0.03], [0.02, 0.01]]),
            "error_budget": (
                ("basis", "order", "part", "layers", "bound"),
                with_interval(0.01 + rng.random((3, 3, 5, 2))),
            ),
            "error": (reduction, 1 + rng.random((3, 3, 2))),
            "upper": (reduction, upper),
            "lower": (("order", "reference"), [[0.8, 0.9], [0.4, 0.5], [0.2, 0.3]]),
            "norm": ("reference", [2.0, 4.0]),
            "resolution": ("reference", [1e-15, 1e-15]),
            "step_error": (("step", "layers", "bound"), with_interval(step_error)),
            "step_limit": ("layers", [0.05, np.nan]),
            "prompt_relative_l2": (("basis_each", "order", "prompt"), rng.random((2, 3, 40))),
        },
        coords={
            "basis": BASES,
            "basis_each": ["pod", "ensemble"],
            "order": ORDERS,
            "injection": ["absolute", "relative"],
            "layers": ["all", "without_layer_0"],
            "bound": ["estimate", "low", "high"],
            "part": PARTS,
            "reference": ["mean_system", "mean_response"],
            "step": [0.01, 0.1, 1.0],
        },
    )


@pytest.fixture
def rows():
    """Two forms on three tasks of each of two models."""
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "value": (
                ("pair", "form", "metric", "bound"),
                with_interval(0.1 + 0.4 * rng.random((6, 2, 2))),
            )
        },
        coords={
            "form": ["paper: krylov 32", "ensemble 4"],
            "metric": ["spearman", "relative_l2"],
            "bound": ["estimate", "low", "high"],
            "model": ("pair", list("ababab")),
            "n_parameters": ("pair", [10**7, 10**9] * 3),
        },
    )


def bars_of(ax):
    """Lowest and highest points of the intervals, in the order drawn."""
    return np.array([segment[:, 1] for c in ax.collections for segment in segments_of(c)])


def segments_of(collection):
    return collection.get_segments() if hasattr(collection, "get_segments") else []


def zeros_of(ax):
    return [line for line in ax.lines if line.get_markerfacecolor() == "w"]


@pytest.mark.parametrize("layers", ["all", "without_layer_0"])
@pytest.mark.parametrize("metric", ["relative_l2", "max_relative_error", "spearman", "pearson"])
def test_agreement_by_order_shows_the_metric_and_its_intervals(table, metric, layers, tmp_path):
    shuffled = table.isel(order=[2, 0, 1]).transpose(...)
    ax = drawn(tmp_path, plot.agreement_by_order, shuffled, metric, layers, "relative")
    chosen = table[metric].sel(layers=layers, injection="relative")
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
    error = metric not in ("spearman", "pearson")
    assert ax.get_yscale() == ("log" if error else "linear")
    assert labels_of(ax)[:3] == BASES
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "4", "16"]
    words = "all layers" if layers == "all" else "without layer 0"
    assert ax.get_title() == f"{words}, relative injection"
    assert (
        ax.get_ylabel()
        == {
            "relative_l2": "relative L2 error (fraction)",
            "max_relative_error": "largest relative error (fraction)",
            "spearman": "Spearman correlation of the gains",
            "pearson": "Pearson correlation of the gains",
        }[metric]
    )


def test_agreement_by_order_draws_the_noise_floor(table, tmp_path):
    ax = drawn(tmp_path, plot.agreement_by_order, table, injection="relative")
    (band,) = ax.patches
    assert band.get_y() + band.get_height() == pytest.approx(0.02)
    assert band.get_y() < ax.get_ylim()[0] < 0.02
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
    assert zero.get_marker() == "^"
    assert [text.get_text() for text in ax.texts] == ["0 to rounding"]
    # an interval down to 0 ends where the strip of zeros begins
    bottom = (ax.transAxes + ax.transData.inverted()).transform((0, 0.15))[1]
    low = [segment[0, 1] for segment in segments_of(ax.collections[2]) if len(segment)]
    assert low[1] == pytest.approx(bottom)


def test_agreement_by_order_of_one_basis_and_one_order(table, tmp_path):
    ax = drawn(tmp_path, plot.agreement_by_order, table.isel(basis=[1], order=[1]))
    line = lines_of(ax)["balanced"]
    assert line.get_xydata().tolist() == [[4.0, float(table.relative_l2[1, 1, 0, 0, 0])]]
    assert 4 in ax.get_xticks()
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


@pytest.mark.parametrize("reference", ["mean_system", "mean_response"])
def test_certified_errors_are_relative_to_the_reference(table, reference, tmp_path):
    ax = drawn(tmp_path, plot.certified_errors, table, reference)
    chosen = table.sel(reference=reference)
    lines = lines_of(ax)
    for name in BASES:
        want = chosen.error.sel(basis=name) / chosen.norm
        np.testing.assert_allclose(lines[name].get_ydata(), want)
        np.testing.assert_array_equal(lines[name].get_xdata(), ORDERS)
    assert ("upper bound, balanced" in lines) == (reference == "mean_system")
    if reference == "mean_system":
        np.testing.assert_allclose(lines["upper bound, balanced"].get_ydata(), [4, 2, 1])
        assert lines["upper bound, balanced"].get_linestyle() == "--"
    assert ax.get_title() == f"against the {reference.replace('_', ' ')}"


def test_certified_errors_shade_what_no_model_attains(table, tmp_path):
    ax = drawn(tmp_path, plot.certified_errors, table)
    (region,) = ax.collections
    assert region.get_label() == "no model can be here"
    (path,) = region.get_paths()
    # relative to the norm of 2, up to the bound of the next order that has one
    inside = [(0.9, 0.39), (1.1, 0.19), (3.9, 0.19), (4.1, 0.09), (15.9, 0.09)]
    outside = [(0.9, 0.41), (1.1, 0.21), (3.9, 0.21), (4.1, 0.11), (16.1, 0.09)]
    assert path.contains_points(inside).all()
    assert not path.contains_points(outside).any()
    bottom = ax.get_ylim()[0]
    assert path.contains_point((2, bottom * 1.01))
    np.testing.assert_allclose(lines_of(ax)["_lower bound"].get_ydata()[1:], [0.4, 0.2, 0.1])


def test_certified_errors_of_zero_nan_and_inf(table, tmp_path):
    table["error"][0, 2] = 0.0
    table["error"][1] = np.nan
    table["error"][2, 0] = np.inf
    table["lower"][2] = 0.0
    ax = drawn(tmp_path, plot.certified_errors, table)
    assert labels_of(ax)[-3:] == ["ensemble", "balanced (no value)", "pod"]
    assert [line.get_xdata().tolist() for line in zeros_of(ax)] == [[16]]
    assert not ax.collections[0].get_paths()[0].contains_point((8, 1e-3))
    empty = table.assign(error=table.error * np.nan, lower=table.lower * np.nan)
    assert not drawn(tmp_path, plot.certified_errors, empty, "mean_response").collections
    alone = drawn(tmp_path, plot.certified_errors, table.isel(order=[1], basis=[2]))
    assert alone.collections[0].get_paths()[0].contains_point((3.9, 0.19))


@pytest.mark.parametrize(("order", "layers"), [(1, "all"), (16, "without_layer_0")])
def test_budget_bars_are_stacked_percentages(table, order, layers, tmp_path):
    ax = drawn(tmp_path, plot.budget_bars, table, order, layers)
    budget = 100 * table.error_budget.sel(order=order, layers=layers)
    want = budget.sel(part=PARTS[:4], bound="estimate").transpose("part", "basis").values
    bars = np.array(ax.patches).reshape(4, 3)
    widths = np.vectorize(lambda bar: bar.get_width())(bars)
    np.testing.assert_allclose(widths, want)
    left = np.vectorize(lambda bar: bar.get_x())(bars)
    np.testing.assert_allclose(left, np.cumsum(want, axis=0) - want, atol=1e-12)
    # parts differ without colour
    assert len({bar.get_hatch() for bar in bars[:, 0]}) == 4
    total = budget.sel(part="total")
    marker = lines_of(ax)["total, with interval"]
    np.testing.assert_allclose(marker.get_xdata(), total.sel(bound="estimate"))
    (intervals,) = ax.collections
    ends = [segment[:, 0] for segment in intervals.get_segments()]
    np.testing.assert_allclose(ends, total.sel(bound=["low", "high"]).transpose("basis", "bound"))
    # the totals lie under their bars
    assert all(
        y > bar.get_y() + bar.get_height()
        for y, bar in zip(marker.get_ydata(), bars[0], strict=True)
    )
    assert [label.get_text() for label in ax.get_yticklabels()] == BASES
    assert labels_of(ax) == [*PARTS[:4], "total, with interval"]
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
        "10 % (10 to 10)\nnot known: averaging, sampling",
        "0 (to rounding)",
        "10 %",
        "10 %\ncut: the parts add up to 1260 %",
        "not known\nno part is known",
        "4500 % (4500 to 4500)\ncut: the total lies to the right",
        "total",
    ]
    assert 40 < ax.get_xlim()[1] < 50


def test_budget_bars_of_zeros_alone(table, tmp_path):
    table = table.assign(error_budget=0 * table.error_budget)
    ax = drawn(tmp_path, plot.budget_bars, table, 4)
    assert [text.get_text() for text in ax.texts][:-1] == ["0 (to rounding)"] * 3
    assert ax.get_xlim()[1] > 0


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
    values = table.prompt_relative_l2.sel(order=4)
    dots = [line for line in ax.lines if len(line.get_xdata()) == 40]
    for row, (name, line) in enumerate(zip(["pod", "ensemble"], dots, strict=True)):
        np.testing.assert_array_equal(line.get_ydata(), values.sel(basis_each=name))
        assert (abs(line.get_xdata() - row) < 0.3).all()
    # the marker of a basis is that of the other figures
    assert [line.get_marker() for line in dots] == ["^", "o"]
    medians = [line.get_ydata() for line in ax.lines if line.get_linewidth() == 2]
    np.testing.assert_allclose([m[0] for m in medians], values.median("prompt"))
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
    one = drawn(tmp_path, plot.prompt_spread, table.isel(basis_each=[0], prompt=[7]), 1)
    assert one.get_xlim() == (-1.5, 1.5)


def sized(tmp_path, rows):
    fig, axes = plot.figure(9, 4, columns=rows.sizes["metric"])
    plot.agreement_by_size(axes, rows)
    plot.save(fig, tmp_path / "a.png", "png")
    (legend,) = fig.legends
    return axes, [text.get_text() for text in legend.get_texts()]


def test_agreement_by_size_shows_every_pair_and_joins_the_medians(rows, tmp_path):
    axes, labels = sized(tmp_path, rows)
    assert labels == ["paper: krylov 32", "ensemble 4"]
    for ax, metric in zip(axes, ["spearman", "relative_l2"], strict=True):
        value = rows.value.sel(metric=metric)
        pairs = [line for line in ax.lines if line.get_linestyle() == "None"]
        medians = [line for line in ax.lines if line.get_linestyle() != "None"]
        for form, (points, joined) in enumerate(zip(pairs, medians, strict=True)):
            mine = value.isel(form=form)
            np.testing.assert_array_equal(points.get_ydata(), mine.sel(bound="estimate"))
            np.testing.assert_allclose(points.get_xdata(), rows.n_parameters, rtol=0.5)
            want = mine.sel(bound="estimate").groupby("model").median()
            np.testing.assert_allclose(joined.get_ydata(), want)
            np.testing.assert_array_equal(joined.get_xdata(), points.get_xdata()[:2])
        assert pairs[0].get_xdata()[0] < pairs[1].get_xdata()[0]
        ends = value.sel(bound=["low", "high"]).transpose("form", "pair", "bound")
        np.testing.assert_allclose(bars_of(ax), ends.values.reshape(-1, 2))
        assert ax.get_xscale() == "log"
        assert ax.get_xlabel() == "number of parameters"
    assert [ax.get_yscale() for ax in axes] == ["linear", "log"]


def test_agreement_by_size_says_what_is_missing_or_zero(rows, tmp_path):
    rows["value"][0, 0, 0] = np.nan
    rows["value"][1, 0, 1] = np.nan
    rows["value"][2, 1, 1] = 0.0
    axes, labels = sized(tmp_path, rows)
    assert labels == ["paper: krylov 32 (2 of 6 missing)", "ensemble 4"]
    (zero,) = [line for line in zeros_of(axes[1])]
    assert len(zero.get_xdata()) == 1
    joined = next(line for line in axes[0].lines if line.get_linestyle() == "-")
    assert joined.get_ydata()[0] == pytest.approx(np.median(rows.value[[2, 4], 0, 0, 0]))
    rows["value"][:, 1] = np.nan
    assert sized(tmp_path, rows)[1][1] == "ensemble 4 (no value)"


def test_agreement_by_size_of_one_pair(rows, tmp_path):
    (ax,), _ = sized(tmp_path, rows.isel(pair=[0], metric=[1]))
    low, high = ax.get_xlim()
    assert high / low >= 10
    medians = [line for line in ax.lines if line.get_marker() == "_"]
    np.testing.assert_array_equal([line.get_ydata()[0] for line in medians], rows.value[0, :, 1, 0])


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


def test_a_table_without_bounds_parts_or_with_a_step_of_zero_is_refused(table, rows):
    _, (ax,) = plot.figure()
    with pytest.raises(ValueError, match=r"`bound` must hold \['estimate', 'low', 'high'\]; got"):
        plot.linear_range(ax, table.isel(bound=[0]))
    with pytest.raises(ValueError, match=r"`part` must hold .*'total'\]; got \['nonlinearity'\]"):
        plot.budget_bars(ax, table.isel(part=[0]), 4)
    with pytest.raises(ValueError, match=r"`step` must be positive; got 0"):
        plot.linear_range(ax, table.assign_coords(step=[0.0, 0.1, 1.0]))
    with pytest.raises(ValueError, match=r"`axes` must be one per metric, 2; got 1"):
        plot.agreement_by_size([ax], rows)
    with pytest.raises(ValueError, match=r"`n_parameters` must be positive; got 0"):
        plot.agreement_by_size([ax, ax], rows.assign_coords(n_parameters=0 * rows.n_parameters))
    with pytest.raises(ValueError, match=r"`n_parameters` must be positive; got no pair"):
        plot.agreement_by_size([ax, ax], rows.isel(pair=[]))
    with pytest.raises(ValueError, match=r"`rows` must hold .* without \['model'\]"):
        plot.agreement_by_size([ax, ax], rows.drop_vars("model"))
    with pytest.raises(ValueError, match=r"`rows` must have dims .*isel\(seed=0\)"):
        plot.agreement_by_size([ax, ax], rows.expand_dims("seed"))
    with pytest.raises(TypeError, match=r"`rows` must be a Dataset; got DataArray"):
        plot.agreement_by_size([ax, ax], rows.value)
