import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr

from depthsys import ltv, plot
from tests.plot.drawing import drawn, labels_of, lines_of, marks_of, styles_of


@pytest.fixture
def system():
    rng = np.random.default_rng(0)
    A = 0.9 * np.eye(4) + 0.1 * rng.standard_normal((6, 4, 4))
    return ltv.system(A, rng.standard_normal((6, 4, 2)), rng.standard_normal((7, 3, 4)))


@pytest.fixture
def graded():
    """Hankel singular values (depth, index) with zeros and one value that is rounding noise."""
    values = [[0.0, 0.0, 0.0], [8.0, 0.0, 0.0], [4.0, 1e-3, 1e-18]]
    return xr.DataArray(values, dims=["depth", "index"], coords={"depth": [3, 4, 5]})


def test_hankel_map_shows_every_value_and_leaves_zeros_blank(system, tmp_path):
    values = ltv.hankel_singular_values(system)
    ax = drawn(tmp_path, plot.hankel_map, values.transpose("index", "depth"))
    (mesh,) = ax.collections
    image = mesh.get_array()
    np.testing.assert_array_equal(image.filled(0), values.T)
    np.testing.assert_array_equal(np.ma.getmaskarray(image), values.T == 0)
    # cells are centred on the depths and on the indices from 1
    corners = mesh.get_coordinates()
    np.testing.assert_allclose(corners[0, :, 0], np.arange(8) - 0.5)
    np.testing.assert_allclose(corners[:, 0, 1], np.arange(values.sizes["index"] + 1) + 0.5)
    assert isinstance(mesh.norm, mpl.colors.LogNorm)
    assert mesh.colorbar.ax.get_ylabel() == "Hankel singular value (output/input)"
    assert labels_of(ax) == ["exactly 0"]


def test_hankel_map_colours_darken_in_greyscale_and_none_is_white(graded, tmp_path):
    ax = drawn(tmp_path, plot.hankel_map, graded)
    (mesh,) = ax.collections
    grey = mesh.get_cmap()(np.linspace(0, 1, 64))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) < 0).all()
    assert grey.max() < 0.85


def test_hankel_map_marks_what_is_below_the_floor(graded, tmp_path):
    ax = drawn(tmp_path, plot.hankel_map, graded)
    assert ax.collections[0].get_array().compressed().tolist() == [8.0, 4.0, 1e-3]
    dots = lines_of(ax)["below 1e-17 of the largest: noise"]
    assert dots.get_xydata().tolist() == [[5.0, 3.0]]
    ax = drawn(tmp_path, plot.hankel_map, graded, floor=1e-20)
    assert ax.collections[0].get_array().compressed().tolist() == [8.0, 4.0, 1e-3, 1e-18]
    assert not ax.lines


@pytest.mark.parametrize("depths", [[0], [1], [0, 1, 2]])
def test_hankel_plots_of_zeros_and_of_one_value(graded, depths, tmp_path):
    values = graded.isel(depth=depths, index=[0])
    some = float(values.max()) > 0
    assert bool(drawn(tmp_path, plot.hankel_map, values).collections) == some
    ax = drawn(tmp_path, plot.hankel_lines, values)
    assert [text.get_text() for text in ax.texts] == ([] if some else ["all zero"])


def test_hankel_lines_are_the_values_and_differ_without_colour(graded, tmp_path):
    ax = drawn(tmp_path, plot.hankel_lines, graded)
    lines = lines_of(ax)
    assert list(lines) == [r"$\sigma_{1}$", r"$\sigma_{2}$"]
    np.testing.assert_array_equal(lines[r"$\sigma_{1}$"].get_ydata(), [np.nan, 8, 4])
    np.testing.assert_array_equal(lines[r"$\sigma_{2}$"].get_ydata(), [np.nan, np.nan, 1e-3])
    np.testing.assert_array_equal(lines[r"$\sigma_{2}$"].get_xdata(), [3, 4, 5])
    assert ax.get_yscale() == "log"
    ax = drawn(tmp_path, plot.hankel_lines, graded, floor=1e-20)
    assert lines_of(ax)[r"$\sigma_{3}$"].get_ydata()[-1] == 1e-18


def test_hankel_lines_label_eight_and_draw_all(tmp_path):
    values = xr.DataArray(np.outer([1, 2, 3], 2.0 ** -np.arange(12)), dims=["depth", "index"])
    ax = drawn(tmp_path, plot.hankel_lines, values)
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines], values.T)
    assert len(styles_of(ax.lines[:8])) == 8
    assert labels_of(ax)[7:] == [r"$\sigma_{8}$", r"$\sigma_{9}$ to $\sigma_{12}$"]


@pytest.mark.parametrize("function", [plot.hankel_map, plot.hankel_lines])
def test_hankel_plots_refuse_what_they_cannot_draw(graded, function):
    _, (ax,) = plot.figure()
    batch = graded.expand_dims("prompt")
    with pytest.raises(ValueError, match=r"`values` must have dims .*got .*isel\(prompt=0\)"):
        function(ax, batch)
    with pytest.raises(ValueError, match=r"`values` must have dims .*Rename or select"):
        function(ax, graded.isel(depth=0))
    with pytest.raises(TypeError, match=r"`values` must be a DataArray .*got ndarray"):
        function(ax, graded.values)
    with pytest.raises(ValueError, match=r"`values` must be >= 0; got -8"):
        function(ax, -graded)
    with pytest.raises(ValueError, match=r"`values` must be finite"):
        function(ax, graded * np.nan)
    with pytest.raises(ValueError, match=r"`floor` must be between 0 and 1; got 2"):
        function(ax, graded, floor=2)


@pytest.mark.parametrize(
    ("factors", "gramian", "unit"),
    [
        (ltv.reachability_factors, ltv.reachability_gramian, "$P_k$ ((state/input)$^2$)"),
        (ltv.observability_factors, ltv.observability_gramian, "$Q_k$ ((output/state)$^2$)"),
    ],
)
def test_gramian_eigenvalues_are_those_of_the_gramian(system, factors, gramian, unit, tmp_path):
    P = gramian(system)
    want = np.linalg.eigvalsh(P.values)[:, ::-1].T
    want = np.where(want > 1e-12, want, np.nan)
    for values in (P, factors(system)):
        ax = drawn(tmp_path, plot.gramian_eigenvalues, values)
        np.testing.assert_allclose([line.get_ydata() for line in ax.lines], want, rtol=1e-10)
        assert len(styles_of(ax.lines)) == 4
        assert ax.get_ylabel() == f"eigenvalue of {unit}"


def test_gramian_eigenvalues_keep_small_ones_from_the_factor_only(tmp_path):
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    R = xr.DataArray((turn * [1.0, 1e-10])[None], dims=["depth", "state", "column"])
    P = xr.dot(R, R.rename(state="state_2"), dim="column")
    ax = drawn(tmp_path, plot.gramian_eigenvalues, R)
    np.testing.assert_allclose([line.get_ydata()[0] for line in ax.lines], [1, 1e-20], rtol=1e-5)
    ax = drawn(tmp_path, plot.gramian_eigenvalues, P)
    np.testing.assert_allclose([line.get_ydata()[0] for line in ax.lines], [1])
    assert ax.get_ylabel() == "eigenvalue of the Gramian (unit squared)"


def test_gramian_eigenvalues_refuse_other_arrays(system):
    _, (ax,) = plot.figure()
    P = ltv.reachability_gramian(system)
    with pytest.raises(ValueError, match=r"`gramian` must have dims .*column.* or .*state_2"):
        plot.gramian_eigenvalues(ax, P.isel(depth=1))
    with pytest.raises(ValueError, match=r"isel\(prompt=0\)"):
        plot.gramian_eigenvalues(ax, P.expand_dims("prompt"))
    with pytest.raises(ValueError, match=r"symmetric and positive semidefinite; got .*-"):
        plot.gramian_eigenvalues(ax, -P)
    skew = P.isel(depth=[6]) + xr.DataArray(np.triu(np.ones((4, 4)), 1), dims=["state", "state_2"])
    with pytest.raises(ValueError, match=r"an asymmetry of 1"):
        plot.gramian_eigenvalues(ax, skew)


@pytest.mark.parametrize("states", [(0, 1), (3, 1)])
def test_energy_ellipsoid_is_that_of_the_block(system, states, tmp_path):
    R = ltv.reachability_factors(system).isel(depth=-1)
    P = ltv.reachability_gramian(system).isel(depth=-1)
    block = P.values[np.ix_(states, states)]
    for gramian in (P, R):
        ax = drawn(tmp_path, plot.energy_ellipsoid, gramian, states=states)
        (ellipse,) = ax.patches
        edge = ellipse.get_patch_transform().transform(ellipse.get_path().vertices[::3])
        np.testing.assert_allclose(
            np.einsum("ki,ij,kj->k", edge, np.linalg.inv(block), edge), 1, rtol=1e-10
        )
        ends = np.concatenate([line.get_xydata() for line in ax.lines[:2]])
        np.testing.assert_allclose(
            np.einsum("ki,ij,kj->k", ends, np.linalg.inv(block), ends), 1, rtol=1e-10
        )
        lengths = np.sqrt(np.linalg.eigvalsh(block))[::-1]
        assert labels_of(ax) == [f"{length:#.3g}" for length in lengths]
        assert ax.get_aspect() == 1
        assert ax.get_xlabel() == f"state {states[0]} (unit of the state)"
        assert ax.get_ylabel() == f"state {states[1]} (unit of the state)"


def test_energy_ellipsoid_holds_what_inputs_of_energy_1_reach(system, tmp_path):
    P = ltv.reachability_gramian(system).isel(depth=-1)
    ax = drawn(tmp_path, plot.energy_ellipsoid, P, states=(1, 2))
    (ellipse,) = ax.patches
    u = np.random.default_rng(1).standard_normal((200, 6, 2))
    u /= np.sqrt((u**2).sum((1, 2), keepdims=True))
    u = xr.DataArray(u, dims=["run", "layer", "input"])
    reached = ltv.simulate(system, u).x.isel(depth=-1, state=[1, 2]).transpose("run", "state")
    path = ellipse.get_path().transformed(ellipse.get_patch_transform())
    assert path.contains_points(reached.values).all()


def test_energy_ellipsoid_of_rank_1_is_a_segment_and_of_rank_0_a_point(tmp_path):
    b = np.array([3.0, -4.0, 0.0])
    R = xr.DataArray(b[:, None], dims=["state", "column"], name="R")
    P = xr.DataArray(np.outer(b, b), dims=["state", "state_2"], name="P")
    for gramian in (R, P):
        ax = drawn(tmp_path, plot.energy_ellipsoid, gramian)
        assert not ax.patches
        ends = lines_of(ax)["5.00"].get_xydata()
        np.testing.assert_allclose(abs(ends), [[3, 4], [3, 4]])
        assert (ends.prod(axis=1) < 0).all()
        ax = drawn(tmp_path, plot.energy_ellipsoid, 0 * gramian.rename("P"))
        assert not ax.patches
        np.testing.assert_array_equal(lines_of(ax)["0 (neither is reached)"].get_xydata(), [[0, 0]])


def test_energy_ellipsoid_refuses_other_arrays_and_states(system):
    _, (ax,) = plot.figure()
    P = ltv.reachability_gramian(system)
    with pytest.raises(ValueError, match=r"`gramian` must have dims .*isel\(depth=0\)"):
        plot.energy_ellipsoid(ax, P)
    P = P.isel(depth=-1)
    with pytest.raises(ValueError, match=r"must be P or R, of reachability; got S"):
        plot.energy_ellipsoid(ax, ltv.observability_factors(system).isel(depth=0))
    with pytest.raises(ValueError, match=r"`gramian` must be symmetric"):
        plot.energy_ellipsoid(ax, -P)
    for states in ((1, 1), (0, 4), (-1, 0), (0, 1, 2)):
        with pytest.raises(ValueError, match=r"`states` must be two different positions in 0..3"):
            plot.energy_ellipsoid(ax, P, states=states)


def test_io_image_is_the_matrix_with_later_inputs_blank(system, tmp_path):
    G = ltv.io_matrix(system)
    ax = drawn(tmp_path, plot.io_image, G.transpose("layer", "input", "depth", "output"))
    (image,) = ax.images
    shown = image.get_array()
    np.testing.assert_array_equal(shown.filled(0), G.values.reshape(7 * 3, 6 * 2))
    blocks = np.ma.getmaskarray(shown).reshape(7, 3, 6, 2)
    np.testing.assert_array_equal(
        blocks, np.broadcast_to(~np.tri(7, 6, dtype=bool)[:, None, :, None], blocks.shape)
    )
    assert image.norm.vmax == -image.norm.vmin == abs(G).max()
    assert image.colorbar.ax.get_ylabel() == "gain (output/input)"
    # labels sit in the middle of their blocks
    np.testing.assert_allclose(ax.get_yticks(), 3 * np.arange(7) + 1)
    np.testing.assert_allclose(ax.get_xticks(), 2 * np.arange(6) + 0.5)
    assert [t.get_text() for t in ax.get_yticklabels()] == list("0123456")
    assert ax.get_xlabel() == "layer of the input (2 inputs each)"


def test_io_image_tells_signs_apart_in_greyscale_and_hides_no_fault(system, tmp_path):
    G = ltv.io_matrix(system)
    G[0, 0, 3, 0] = 1.0
    ax = drawn(tmp_path, plot.io_image, G)
    (image,) = ax.images
    assert image.get_array()[0, 6] == 1
    grey = image.get_cmap()(np.linspace(0, 1, 65))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) > 0).all()
    assert abs(grey[32] - grey[[0, -1]].mean()) < 0.05
    red, green, blue = image.cmap(0.5)[:3]
    assert max(red, green, blue) - min(red, green, blue) < 0.05


@pytest.mark.parametrize(
    ("factor", "extend", "reached"), [(50, "max", "100"), (-50, "min", "-100")]
)
def test_a_layer_that_dwarfs_the_others_leaves_them_their_colours(
    factor, extend, reached, tmp_path
):
    system = ltv.constant([[1.0]], [[2.0]], [[1.0]], horizon=6)
    matrix = ltv.io_matrix(system)
    matrix[{"layer": 2}] *= factor
    ax = drawn(tmp_path, plot.io_image, matrix)
    (image,) = ax.images
    assert image.get_clim() == (-2.0, 2.0)
    assert image.colorbar.extend == extend
    (note,) = ax.texts
    assert note.get_text() == f"layer 2 is off the colour scale:\nit reaches {reached}"
    plain = drawn(tmp_path, plot.io_image, ltv.io_matrix(system))
    assert plain.images[0].colorbar.extend == "neither"
    assert not plain.texts


def test_lines_over_many_depths_have_few_markers(tmp_path):
    values = xr.DataArray(np.ones((90, 8)) * 2.0 ** -np.arange(8), dims=["depth", "index"])
    ax = drawn(tmp_path, plot.hankel_lines, values)
    assert len(ax.lines) == 8
    assert all(5 <= marks_of(line) <= 16 for line in ax.lines)
    first, third = (set(line.get_markevery()) for line in ax.lines[:3:2])
    assert not first & third


def test_io_image_of_many_layers_and_of_zeros(tmp_path):
    G = xr.DataArray(np.zeros((41, 1, 40, 1)), dims=["depth", "output", "layer", "input"])
    G = G.assign_coords(depth=range(5, 46), layer=range(5, 45))
    ax = drawn(tmp_path, plot.io_image, G)
    assert len(ax.get_xticks()) <= 13
    np.testing.assert_array_equal(
        [int(t.get_text()) for t in ax.get_yticklabels()], ax.get_yticks() + 5
    )
    assert ax.images[0].get_clim() == (-1, 1)
    with pytest.raises(ValueError, match=r"`matrix` must have dims .*isel\(prompt=0\)"):
        plot.io_image(ax, G.expand_dims("prompt"))
    with pytest.raises(ValueError, match=r"`matrix` must be finite"):
        plot.io_image(ax, G * np.nan)


@pytest.fixture
def table():
    """As `ltv.compare` gives it, with norm 2."""
    errors = [[1.0, 0.2, 1e-15], [1.6, np.nan, 0.0]]
    return xr.Dataset(
        {
            "error": (("basis", "order"), errors),
            "upper": (("basis", "order"), [[3.0, 0.6, 0.0], [np.nan] * 3]),
            "lower": ("order", [0.8, 0.1, 0.0]),
            "norm": 2.0,
            "resolution": 1e-15,
        },
        coords={"basis": ["balanced", "pod"], "order": [1, 2, 4]},
    )


def test_error_curves_are_relative_and_zero_to_rounding_is_said(table, tmp_path):
    ax = drawn(tmp_path, plot.error_curves, table)
    lines = lines_of(ax)
    np.testing.assert_allclose(lines["balanced"].get_ydata(), [0.5, 0.1, np.nan])
    np.testing.assert_allclose(lines["pod"].get_ydata(), [0.8, np.nan, np.nan])
    np.testing.assert_array_equal(lines["pod"].get_xdata(), [1, 2, 4])
    assert styles_of([lines["balanced"], lines["pod"]]) == {("s", "--"), ("P", "--")}
    zeros = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert [line.get_xdata().tolist() for line in zeros] == [[4], [4]]
    assert [line.get_marker() for line in zeros] == ["s", "P"]
    # the strip of zeros lies under every value on the log axis
    to_axes = (ax.transData + ax.transAxes.inverted()).transform
    assert to_axes((1, 0.05))[1] > 0.15 > max(line.get_ydata()[0] for line in zeros)
    assert min(to_axes((1, tick))[1] for tick in ax.get_yticks()) > 0.15
    assert [text.get_text() for text in ax.texts] == ["0 to rounding"]


def test_error_curves_fill_the_band_between_the_bounds(table, tmp_path):
    ax = drawn(tmp_path, plot.error_curves, table)
    lines = lines_of(ax)
    np.testing.assert_allclose(lines["upper bound, balanced"].get_ydata(), [1.5, 0.3, np.nan])
    np.testing.assert_allclose(lines["lower bound, any model"].get_ydata(), [0.4, 0.05, np.nan])
    (band,) = ax.collections
    corners = {tuple(np.round(v, 12)) for v in band.get_paths()[0].vertices}
    assert corners == {(1, 1.5), (2, 0.3), (2, 0.05), (1, 0.4)}
    assert band.get_label() == "proved range"
    assert not drawn(tmp_path, plot.error_curves, table.sel(basis=["pod"])).collections


@pytest.mark.parametrize("orders", [[0], [2], [0, 1]])
def test_error_curves_of_few_orders(table, orders, tmp_path):
    ax = drawn(tmp_path, plot.error_curves, table.isel(order=orders))
    assert ax.get_xticks().tolist() == table.order.values[orders].tolist()
    assert bool(ax.texts) == (2 in orders)


def test_error_curves_read_what_compare_returns(system, tmp_path):
    methods = [ltv.balanced_basis, ltv.pod_basis, ltv.random_basis]
    table = ltv.compare(system, orders=[1, 2, 4], methods=methods)
    lines = lines_of(drawn(tmp_path, plot.error_curves, table))
    for name in ("balanced", "pod", "random"):
        want = (table.error / table.norm).sel(basis=name)[:2]
        np.testing.assert_allclose(lines[name].get_ydata()[:2], want)


def test_error_curves_refuse_other_tables(table):
    _, (ax,) = plot.figure()
    with pytest.raises(ValueError, match=r"`table` must hold .*Use `ltv.compare`"):
        plot.error_curves(ax, table.drop_vars("upper"))
    with pytest.raises(ValueError, match=r"`table` must have dims .*isel\(prompt=0\)"):
        plot.error_curves(ax, table.expand_dims("prompt"))
    with pytest.raises(ValueError, match=r"`norm` must be positive; got 0"):
        plot.error_curves(ax, table.assign(norm=0.0))


def test_the_legend_says_which_bounds_rounding_explains():
    hidden = ltv.constant([[0.0, 1], [-2, -3]], [[0.0], [1]], [[2.0, 1]], horizon=20)
    table = ltv.compare(hidden, [1], [ltv.balanced_basis])
    for told, wanted in (
        (table, "lower bound not certified: order 1"),
        (table.assign_attrs(certified="not certified: so"), "bounds or errors not certified"),
    ):
        _, (ax,) = plot.figure()
        plot.error_curves(ax, told)
        assert wanted in [text.get_text() for text in ax.get_legend().get_texts()]
