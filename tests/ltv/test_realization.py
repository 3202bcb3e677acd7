import control
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from depthsys import ltv
from depthsys.ltv.norms import spectral_norm
from tests.ltv.kinds import KINDS, random_system
from tests.ltv.test_system import random_arrays

MAP = ["depth", "output", "layer", "input"]
every_kind = pytest.mark.parametrize("kind", KINDS)
shapes = given(
    st.integers(0, 10_000),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 3),
)


def systems(kind, seed, L, n, m, p, count=4):
    return ltv.system(*random_system(kind, seed, count, L, n, m, p), batch_dims=["case"])


def ragged(seed, sizes, m=2, p=2):
    """A system whose number of states is another one at every depth."""
    rng = np.random.default_rng(seed)
    L = len(sizes) - 1
    A = [0.7 * rng.standard_normal((sizes[k + 1], sizes[k])) for k in range(L)]
    B = [rng.standard_normal((sizes[k + 1], m)) for k in range(L)]
    C = [rng.standard_normal((p, n)) for n in sizes]
    D = [rng.standard_normal((p, m)) for _ in range(L)] + [np.zeros((p, m))]
    return ltv.system(A, B, C, D)


def random_map(seed, L=5, p=2, m=3, batch=()):
    """Any causal map at all: no state-space model is behind it."""
    G = np.random.default_rng(seed).standard_normal((*batch, L + 1, p, L, m))
    for layer in range(L):
        G[..., :layer, :, layer, :] = 0
    return G


def deviation(left, right):
    """Largest difference of two maps, relative to the norm of the second."""
    return float((abs(left - right).max(MAP) / spectral_norm(right)).max())


def named(G, *batch):
    return xr.DataArray(G, dims=[*batch, *MAP])


def rank_of(io, **options):
    with pytest.raises(ltv.RankError) as caught:
        ltv.realization(io, 10_000, **options)
    assert f"`order` must be at most the rank, {caught.value.rank}" in str(caught.value)
    return caught.value.rank


@every_kind
@settings(derandomize=True, max_examples=6, deadline=None)
@shapes
def test_the_map_comes_back(kind, seed, L, n, m, p):
    system = systems(kind, seed, L, n, m, p)
    io = ltv.io_matrix(system)
    found = ltv.realization(io)
    ltv.check(found)
    assert deviation(ltv.io_matrix(found), io) < 1e-12
    assert found.order.max() == found.attrs["order"] <= n
    assert found.order.transpose("depth", ...)[0].max() == 0


@pytest.mark.parametrize("sizes", [[3, 1, 4, 2, 5], [1, 6, 1], [2, 2], [1, 1, 1, 3, 3, 3, 1]])
def test_the_map_of_a_system_with_varying_sizes_comes_back(sizes):
    system = ragged(0, sizes)
    io = ltv.io_matrix(system)
    found = ltv.realization(io)
    assert deviation(ltv.io_matrix(found), io) < 1e-12
    assert (found.order <= system.order).all()
    reduced = ltv.realization(io, 1)
    expected = ltv.project(system, ltv.balanced_basis(system, 1))
    assert deviation(ltv.io_matrix(reduced), ltv.io_matrix(expected)) < 1e-9


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
def test_any_causal_map_has_a_realization(seed, L, p, m):
    G = random_map(seed, L, p, m)
    found = ltv.realization(G)
    assert deviation(ltv.io_matrix(found), named(G)) < 1e-12
    ranks = [
        np.linalg.matrix_rank(G[k:, :, :k].reshape((L + 1 - k) * p, k * m)) for k in range(1, L + 1)
    ]
    assert found.order.values.tolist() == [0, *ranks]  # no realization has fewer states


@every_kind
@settings(derandomize=True, max_examples=4, deadline=None)
@shapes
def test_with_fewer_states_it_is_balanced_truncation(kind, seed, L, n, m, p):
    system = systems(kind, seed, L, n, m, p)
    io = ltv.io_matrix(system)
    for order in range(1, rank_of(io) + 1):
        found = ltv.realization(io, order)
        expected = ltv.project(system, ltv.balanced_basis(system, order))
        assert deviation(ltv.io_matrix(found), ltv.io_matrix(expected)) < 1e-9
        np.testing.assert_array_equal(found.order, expected.order.transpose(*found.order.dims))
        assert found.attrs["order"] == order == found.sizes["state"]


def padded_to(values, size):
    return values.pad(index=(0, size - values.sizes["index"]), constant_values=0.0)


@every_kind
@settings(derandomize=True, max_examples=4, deadline=None)
@shapes
def test_hankel_values_of_a_map_are_those_of_its_system(kind, seed, L, n, m, p):
    system = systems(kind, seed, L, n, m, p)
    io = ltv.io_matrix(system)
    values = ltv.hankel_singular_values(io)
    assert values.name == "hankel_singular_values"
    expected = padded_to(ltv.hankel_singular_values(system), values.sizes["index"])
    norm = float(ltv.induced_norm(system).max())
    np.testing.assert_allclose(values, expected, atol=1e-13 * norm)
    np.testing.assert_array_equal(ltv.realization(io).depth, values.depth)
    for order in (None, 1):
        stored = ltv.realization(io, order).hankel_singular_values
        np.testing.assert_allclose(stored, values, atol=1e-14 * norm)
    np.testing.assert_allclose(ltv.hankel_norm(io), ltv.hankel_norm(system), rtol=1e-12)


@every_kind
@settings(derandomize=True, max_examples=4, deadline=None)
@shapes
def test_both_gramians_of_the_whole_system_are_the_hankel_values(kind, seed, L, n, m, p):
    io = ltv.io_matrix(systems(kind, seed, L, n, m, p))
    found = ltv.realization(io)
    size = found.sizes["state"]
    values = padded_to(
        found.hankel_singular_values, max(size, found.hankel_singular_values.sizes["index"])
    )
    used = np.arange(size) < found.order.values[..., None]
    expected = (values.values[..., :size] * used)[..., None] * np.eye(size)
    for gramian in (ltv.reachability_gramian(found), ltv.observability_gramian(found)):
        np.testing.assert_allclose(gramian, expected, atol=1e-11 * expected.max())


def test_a_chain_of_delays_by_hand():
    """u_0 comes out at y_2 only, times 6: one state at depths 1 and 2, of Hankel value 6."""
    G = np.zeros((3, 1, 2, 1))
    G[2, 0, 0, 0] = 6.0
    found = ltv.realization(G)
    assert found.order.values.tolist() == [0, 1, 1]
    np.testing.assert_allclose(found.hankel_singular_values, [[0], [6], [6]])
    np.testing.assert_allclose(abs(found.B[:, 0, 0]), [np.sqrt(6), 0])
    np.testing.assert_allclose(abs(found.C[:, 0, 0]), [0, 0, np.sqrt(6)])
    np.testing.assert_allclose(abs(found.A[:, 0, 0]), [0, 1])


def test_an_lti_map_has_the_values_of_python_control():
    """Over a long horizon the middle Hankel block is the infinite one."""
    A, B, C = np.array([[0.5, 0.1], [0.0, -0.3]]), np.array([[1.0], [0.5]]), np.array([[1.0, 2.0]])
    found = ltv.realization(ltv.io_matrix(ltv.constant(A, B, C, horizon=80)))
    markov = np.array([0.0] + [(C @ np.linalg.matrix_power(A, k) @ B).item() for k in range(79)])
    era, values = control.eigensys_realization(markov, r=2, m=39, n=39, dt=1)
    np.testing.assert_allclose(found.hankel_singular_values[40, :2], values[:2], rtol=1e-9)
    poles = np.sort(np.linalg.eigvals(found.A[40]))
    np.testing.assert_allclose(poles, np.sort(era.poles().real), atol=1e-9)
    np.testing.assert_allclose(poles, [-0.3, 0.5], atol=1e-9)


def test_a_terminal_map_of_rank_one_has_order_one():
    rng = np.random.default_rng(0)
    gains = rng.standard_normal((7, 4))
    G = np.zeros((8, 1, 7, 4))
    G[7, 0] = gains
    found = ltv.realization(G)
    assert found.order.values.tolist() == [0] + [1] * 7
    assert found.sizes["state"] == 1
    np.testing.assert_allclose(ltv.io_matrix(found), G, atol=1e-14)
    sums = np.sqrt(np.cumsum((gains**2).sum(1)))
    np.testing.assert_allclose(found.hankel_singular_values[1:, 0], sums, rtol=1e-13)


def test_a_map_without_memory_needs_no_state():
    G = np.zeros((4, 2, 3, 2))
    for k in range(3):
        G[k, :, k] = np.random.default_rng(k).standard_normal((2, 2))
    for found in (ltv.realization(G), ltv.realization(G, tolerance=0.1)):
        assert (found.order == 0).all()
        assert found.attrs["order"] == 0
        np.testing.assert_array_equal(ltv.io_matrix(found), G)
    assert rank_of(G) == 0
    assert (ltv.realization(0 * G).order == 0).all()


def test_a_batch_is_a_loop():
    """More members than one part holds, of different ranks; one of them is zero."""
    batch = systems("independent", 3, 5, 3, 2, 1, count=150)
    few = ltv.project(
        batch.isel(case=slice(70, 75)), ltv.balanced_basis(batch, 2).isel(case=slice(70, 75))
    )
    io = ltv.io_matrix(batch)
    io[70:75] = ltv.io_matrix(few)
    io[3] = 0.0
    for options in ({}, {"order": 2}, {"tolerance": 0.2}):
        found = ltv.realization(io, **options)
        for case in (0, 3, 72, 149):
            one = ltv.realization(
                io.isel(case=case), found.attrs["order"] if case in (0, 149) else None
            )
            n = min(found.sizes["state"], one.sizes["state"])
            assert deviation_of_values(found.isel(case=case), one, n) < 1e-12
        assert found.order.isel(case=3).max() == 0
        assert found.order.isel(case=72).max() == 2


def deviation_of_values(left, right, n):
    """Signs of states are free, so gains of the leading states are compared."""
    pairs = [(s.isel(state=slice(n), state_next=slice(n))) for s in (left, right)]
    pairs = [s.assign_coords(order=np.minimum(s.order, n)) for s in pairs]
    return float(abs(ltv.io_matrix(pairs[0]) - ltv.io_matrix(pairs[1])).max())


def test_batch_dims_and_labels_are_kept_and_dims_go_by_name():
    batch = ltv.system(*random_arrays(0, batch=(2, 3)), batch_dims=["task", "prompt"])
    batch = batch.assign_coords(
        prompt=["a", "b", "c"], layer=batch.layer + 5, depth=batch.depth + 5
    )
    io = ltv.io_matrix(batch)
    found = ltv.realization(io)
    assert found.A.dims == ("task", "prompt", "layer", "state_next", "state")
    assert found.order.dims == ("task", "prompt", "depth")
    assert found.prompt.values.tolist() == ["a", "b", "c"]
    assert found.layer.values.tolist() == [5, 6, 7, 8]
    assert found.depth.values.tolist() == [5, 6, 7, 8, 9]
    other = ltv.realization(io.transpose("input", "prompt", "layer", "depth", "task", "output"))
    xr.testing.assert_allclose(ltv.io_matrix(other).transpose(*io.dims), ltv.io_matrix(found))
    values = ltv.hankel_singular_values(io)
    assert values.dims == ("task", "prompt", "depth", "index")
    assert set(values.coords) == {"prompt", "depth"}  # the order of another system is not kept
    part = ltv.io_matrix(ltv.window(batch, 6, 8))
    assert deviation(ltv.io_matrix(ltv.realization(part)), part) < 1e-12


def test_what_it_says_about_itself():
    io = ltv.io_matrix(systems("independent", 0, 5, 3, 1, 1))
    found = ltv.realization(io, 2, rtol=1e-9)
    assert found.attrs["method"] == "realization"
    assert (found.attrs["order"], found.attrs["rtol"]) == (2, 1e-9)
    assert "tolerance" not in found.attrs
    assert found.attrs["schema_version"] == ltv.SCHEMA_VERSION
    own = {"hankel_singular_values", "resolution", "rank_is_certified"}
    assert set(found.data_vars) == {"A", "B", "C", "D"} | own
    assert all(found[name].dtype == np.float64 for name in "ABCD")
    assert ltv.realization(io.astype(np.float32)).A.dtype == np.float64


def test_many_inputs(monkeypatch):
    """2000 inputs at every layer: no SVD of anything wider than the rows that are left."""
    shapes, svd = [], np.linalg.svd

    def watched(matrix, **options):
        shapes.append(matrix.shape)
        return svd(matrix, **options)

    G = random_map(0, L=12, p=2, m=2000)
    monkeypatch.setattr(np.linalg, "svd", watched)
    found = ltv.realization(G)
    monkeypatch.undo()
    assert max(max(shape) for shape in shapes) <= 26
    assert deviation(ltv.io_matrix(found), named(G)) < 1e-12
    small = ltv.realization(G, 4)
    error = spectral_norm(named(G) - ltv.io_matrix(small))
    bounds = ltv.error_bounds(named(G), 4)
    assert bounds.lower <= error <= bounds.upper


@every_kind
@settings(derandomize=True, max_examples=4, deadline=None)
@shapes
def test_the_certificates_of_a_map_hold_the_exact_error(kind, seed, L, n, m, p):
    """4 kinds x 4 shapes x 10 maps x all orders, from a system; no violation."""
    check_certificates(ltv.io_matrix(systems(kind, seed, L, n, m, p, count=10)))


@settings(derandomize=True, max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 2), st.integers(1, 3))
def test_the_certificates_hold_for_maps_without_a_model(seed, L, p, m):
    check_certificates(named(random_map(seed, L, p, m, batch=(20,)), "case"))


def check_certificates(io):
    rounding = 1e-12 * spectral_norm(io)
    for order in range(1, rank_of(io) + 1):
        found = ltv.realization(io, order)
        error = spectral_norm(io - ltv.io_matrix(found))
        bounds, kept = ltv.error_bounds(io, order), ltv.error_bounds(io, found.order)
        assert (bounds.lower <= error + rounding).all()
        assert (error <= kept.upper_distinct + rounding).all()
        assert (error <= kept.upper_segment + rounding).all()
        assert (error <= bounds.simple + rounding).values[bounds.simple_is_proved.values].all()


def test_certificates_of_a_map_are_those_of_its_system():
    system = systems("oscillating", 1, 8, 4, 2, 2)
    io = ltv.io_matrix(system)
    for order in (0, 1, [1, 3]):
        ours, theirs = ltv.error_bounds(io, order), ltv.error_bounds(system, order)
        assert set(ours) == set(theirs)
        for name in ("lower", "upper_distinct", "upper_segment", "simple"):
            assert ours[name].dims == theirs[name].dims
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-8)  # less resolution
    with pytest.raises(ValueError, match="`order` must be whole numbers >= 0"):
        ltv.error_bounds(io, -1)
    with pytest.raises(ValueError, match=r"`system` must have dims \{'depth'"):
        ltv.error_bounds(io.isel(input=0), 1)


@every_kind
@pytest.mark.parametrize(
    "tolerance", [0.1, 1e-9, *(pytest.param(t, marks=pytest.mark.slow) for t in (0.5, 1e-3))]
)
def test_the_smallest_order_within_the_tolerance(kind, tolerance):
    system = systems(kind, 4, 9, 5, 2, 2)
    io = ltv.io_matrix(system)
    found = ltv.realization(io, tolerance=tolerance)
    error = spectral_norm(io - ltv.io_matrix(found)) / spectral_norm(io)
    order = found.attrs["order"]
    assert (error <= tolerance).all()
    assert found.attrs["tolerance"] == tolerance
    assert (
        order
        == found.sizes["state"]
        == ltv.balanced_basis(system, tolerance=tolerance).attrs["order"]
    )
    for fewer in range(1, order):  # every one of them, in case the error is not monotone
        small = ltv.io_matrix(ltv.realization(io, fewer))
        assert (spectral_norm(io - small) / spectral_norm(io)).max() > tolerance


def test_the_tolerance_holds_for_every_member_and_the_exact_error_decides():
    """Between the lower bound and the error of the worst member an order is not enough."""
    io = ltv.io_matrix(systems("independent", 4, 9, 5, 2, 2, count=6))
    norm = spectral_norm(io)
    error = spectral_norm(io - ltv.io_matrix(ltv.realization(io, 2))) / norm
    lower = (ltv.error_bounds(io, 2).lower / norm).max()
    tolerance = float(max(lower, error.min()) + error.max()) / 2
    assert lower < tolerance < error.max()
    assert (error < tolerance).any()
    assert ltv.realization(io, tolerance=tolerance).attrs["order"] == 3
    assert ltv.realization(io, tolerance=float(error.max()) * (1 + 1e-9)).attrs["order"] == 2


def test_noise_is_left_out_by_rtol():
    system = systems("slowly varying", 0, 8, 3, 2, 2, count=1).isel(case=0)
    io = ltv.io_matrix(system)
    noisy = io + 1e-6 * named(random_map(1, 8, 2, 2))
    assert ltv.realization(io).attrs["order"] == 3
    assert ltv.realization(noisy).attrs["order"] > 3
    found = ltv.realization(noisy, rtol=1e-4)
    assert found.attrs["order"] == 3
    assert deviation(ltv.io_matrix(found), io) < 1e-5
    assert ltv.realization(io, rtol=1e-300).attrs["order"] == 3  # rounding is never realized


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_tiny_and_huge_maps(scale):
    G = random_map(0)
    for options in ({}, {"tolerance": 0.2}):
        found, expected = (ltv.realization(G * factor, **options) for factor in (scale, 1.0))
        assert found.attrs["order"] == expected.attrs["order"]
        np.testing.assert_allclose(
            ltv.io_matrix(found) / scale, ltv.io_matrix(expected), atol=1e-12
        )


def test_orders_above_the_rank_are_refused_with_the_rank():
    io = ltv.io_matrix(systems("independent", 0, 8, 3, 2, 2))
    assert rank_of(io) == 3
    assert rank_of(io, rtol=0.9999) == 1
    with pytest.raises(
        ltv.RankError, match=r"the rank, 3 \(method realization, rtol 1e-12\); got 4"
    ):
        ltv.realization(io, 4)
    assert ltv.realization(io, 3).attrs["order"] == 3


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"order": 1, "tolerance": 0.1}, TypeError, "at most one of `order` and `tolerance`"),
        ({"order": 0}, ValueError, "`order` must be a whole number >= 1; got 0"),
        ({"order": 1.5}, ValueError, "`order` must be a whole number >= 1; got 1.5"),
        ({"tolerance": 0.0}, ValueError, "`tolerance` must be a number > 0; got 0.0"),
        ({"tolerance": True}, ValueError, "`tolerance` must be a number > 0; got True"),
        ({"tolerance": "1"}, ValueError, "`tolerance` must be a number > 0; got '1'"),
        ({"tolerance": np.nan}, ValueError, "`tolerance` must be a number > 0; got nan"),
        ({"rtol": 0.0}, ValueError, "`rtol` must be between 0 and 1; got 0.0"),
        ({"rtol": 1}, ValueError, "`rtol` must be between 0 and 1; got 1"),
        (
            {"tolerance": 1e-9, "rtol": 0.5},
            ValueError,
            r"`tolerance` must be reachable; got 1.0e-09, and .* at full rank \d+ is \d",
        ),
    ],
)
def test_bad_options_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        ltv.realization(random_map(0), **options)


def changed(place, value):
    G = named(random_map(0))
    G[place] = value
    return G


@pytest.mark.parametrize(
    ("io", "error", "match"),
    [
        (random_map(0)[0], ValueError, "`io` must have dims"),
        (named(random_map(0)).rename(input="u"), ValueError, "`io` must have dims"),
        (random_map(0)[:-1], ValueError, r"L \+ 1 depths and nothing empty; got .*'depth': 5"),
        (random_map(0)[:, :0], ValueError, "nothing empty; got .*'output': 0"),
        (np.zeros((1, 1, 0, 1)), ValueError, "L >= 1 layers"),
        (changed({"depth": 3, "layer": 1}, np.nan), ValueError, "`io` must be finite"),
        (random_map(0) + 1j, TypeError, "`io` must be real"),
        (
            changed({"depth": 1, "output": 1, "layer": 3, "input": 2}, 0.5),
            ValueError,
            "`io` must be causal.* got 0.5 at depth=1, output=1, layer=3, input=2. Sort",
        ),
        (changed({"depth": 1, "layer": 2}, 1.0), ValueError, "got 1.0 at depth=1, .* layer=2"),
        (named(random_map(0)).isel(depth=slice(None, None, -1)), ValueError, "must be causal"),
        (
            named(random_map(0)).assign_coords(layer=[0, 1, 3, 4, 5]),
            ValueError,
            "`layer` must count up by one",
        ),
        (
            named(random_map(0)).assign_coords(layer=np.arange(3, 8)),
            ValueError,
            "`depth` must start where `layer` starts; got 0 and 3",
        ),
        (
            named(random_map(0, batch=(2,)), "state"),
            ValueError,
            r"batch dims otherwise than a system does; got \['state'\]",
        ),
        (ltv.system(*random_arrays(0)), TypeError, "must be an input-output map; got a Dataset"),
    ],
)
def test_bad_maps_are_refused(io, error, match):
    with pytest.raises(error, match=match):
        ltv.realization(io)


def test_the_place_of_an_early_entry_is_told_by_labels():
    G = named(random_map(0, batch=(2,)), "prompt").assign_coords(
        prompt=["a", "b"], depth=np.arange(4, 10), layer=np.arange(4, 9)
    )
    G[1, 0, 1, 4, 2] = -2.0
    for function in (ltv.realization, ltv.hankel_singular_values):
        with pytest.raises(ValueError, match=r"got -2.0 at prompt=b, depth=4, output=1, layer=8"):
            function(G)


# ------------------------------------------------------------------------------- parallel


@every_kind
@settings(derandomize=True, max_examples=4, deadline=None)
@shapes
def test_the_map_of_a_sum_is_the_sum_of_maps(kind, seed, L, n, m, p):
    first, second = systems(kind, seed, L, n, m, p), systems(kind, seed + 1, L, n + 2, m, p)
    both = ltv.parallel(first, second)
    assert deviation(ltv.io_matrix(both), ltv.io_matrix(first) + ltv.io_matrix(second)) < 1e-12
    assert both.sizes["state"] == 2 * n + 2
    assert (both.order == 2 * n + 2).all()
    u = np.random.default_rng(seed).standard_normal((L, m))
    y = ltv.simulate(first, u).y + ltv.simulate(second, u).y
    np.testing.assert_allclose(ltv.simulate(both, u).y, y, atol=1e-11 * float(abs(y).max()))


@pytest.mark.parametrize(
    ("sizes", "others"),
    [
        ([3, 1, 4, 2], [1, 5, 1, 2]),
        ([2, 2, 2, 2], [1, 3, 1, 1]),
        ([1, 2, 2, 1], [2, 2, 2, 2]),
        ([20, 1, 25, 2], [1, 30, 9, 20]),
    ],
)
def test_states_that_exist_come_first(sizes, others):
    first, second = ragged(0, sizes), ragged(1, others)
    both = ltv.parallel(first, second)
    assert both.order.values.tolist() == [a + b for a, b in zip(sizes, others, strict=True)]
    assert both.sizes["state"] == both.order.max()
    for k, (a, b) in enumerate(zip(sizes, others, strict=True)):
        np.testing.assert_array_equal(both.C[k, :, :a], first.C[k, :, :a])
        np.testing.assert_array_equal(both.C[k, :, a : a + b], second.C[k, :, :b])
        if k < 3:
            c, d = sizes[k + 1], others[k + 1]
            np.testing.assert_array_equal(both.A[k, :c, :a], first.A[k, :c, :a])
            np.testing.assert_array_equal(both.A[k, c : c + d, a : a + b], second.A[k, :d, :b])
            assert not both.A[k, :c, a:].values.any()
            assert not both.A[k, c:, :a].values.any()
            np.testing.assert_array_equal(both.B[k, :c], first.B[k, :c])
            np.testing.assert_array_equal(both.B[k, c : c + d], second.B[k, :d])
    assert deviation(ltv.io_matrix(both), ltv.io_matrix(first) + ltv.io_matrix(second)) < 1e-14
    x0 = np.arange(1.0, 1 + sizes[0] + others[0])
    y = sum(
        ltv.simulate(system, x0=start).y
        for system, start in ((first, x0[: sizes[0]]), (second, x0[sizes[0] :]))
    )
    np.testing.assert_allclose(ltv.simulate(both, x0=x0).y, y, rtol=1e-12)


def test_batch_dims_of_a_sum_broadcast_by_name():
    first = ltv.system(*random_arrays(0, batch=(2, 3)), batch_dims=["task", "prompt"])
    second = ltv.system(*random_arrays(1, batch=(3,)), batch_dims=["prompt"])
    third = ltv.system(*random_arrays(2))
    for one, other in ((first, second), (second, first), (third, first), (first, third)):
        both = ltv.parallel(one, other)
        expected = ltv.io_matrix(one) + ltv.io_matrix(other)
        assert deviation(ltv.io_matrix(both), expected) < 1e-13
        assert set(both.A.dims[:2]) == {"task", "prompt"}
    # one map for all, another input matrix for each: A stays one
    fan = third.assign(B=third.B.expand_dims(prompt=3))
    assert ltv.parallel(third, fan).A.dims == ("layer", "state_next", "state")


def test_orders_that_vary_over_a_batch_are_packed_for_every_member():
    one = xr.concat([ragged(0, [1, 4, 2, 3]), ragged(1, [4, 1, 3, 2])], dim="case")
    two = xr.concat(
        [ragged(i, s) for i, s in ((2, [2, 1, 3, 3]), (3, [1, 3, 1, 1]), (4, [3, 3, 3, 3]))], "seed"
    )
    single = ragged(5, [2, 1, 1, 2])
    for pair in ((one, two), (two, one), (one, single), (single, two)):
        both = ltv.parallel(*pair)
        expected = sum(ltv.io_matrix(system) for system in pair)
        assert deviation(ltv.io_matrix(both), expected) < 1e-13
        total = sum(system.order for system in pair)
        assert (both.order == total).all()
        assert both.order.dims[-1] == "depth"
        assert both.sizes["state"] == total.max()


def test_hankel_values_of_a_sum_are_those_of_the_sum_of_maps():
    first, second = ragged(0, [2, 1, 3, 2, 2]), ragged(1, [1, 2, 1, 2, 1])
    both = ltv.parallel(first, second)
    io = ltv.io_matrix(first) + ltv.io_matrix(second)
    ours, theirs = ltv.hankel_singular_values(both), ltv.hankel_singular_values(io)
    size = max(ours.sizes["index"], theirs.sizes["index"])
    np.testing.assert_allclose(padded_to(ours, size), padded_to(theirs, size), atol=1e-13)
    embedded = ltv.embed(both)  # the oracle: one nilpotent system, Gramian by brute force
    A, B = embedded.A.values, embedded.B.values
    P = sum(X @ X.T for X in (np.linalg.matrix_power(A, k) @ B for k in range(5)))
    n = both.sizes["state"]
    blocks = np.stack([P[k * n : (k + 1) * n, k * n : (k + 1) * n] for k in range(5)])
    np.testing.assert_allclose(ltv.reachability_gramian(both), blocks, atol=1e-12)


def test_a_system_and_its_negative_cancel():
    system = ragged(0, [2, 3, 1])
    nothing = ltv.parallel(system, system.assign(C=-system.C, D=-system.D))
    assert ltv.induced_norm(nothing) < 1e-15
    assert nothing.order.values.tolist() == [4, 6, 2]


def test_what_a_sum_keeps():
    first = ltv.system(*random_arrays(0), attrs={"model": "a"})
    first = first.assign(x_ref=(("depth", "state"), np.ones((5, 3)))).assign_coords(
        input=["p", "q"], layer=first.layer + 2, depth=first.depth + 2
    )
    second = ltv.system(*random_arrays(1), attrs={"model": "b"})
    second = second.assign_coords(layer=second.layer + 2, depth=second.depth + 2)
    before = first.copy(deep=True)
    both = ltv.parallel(first, second)
    assert both.attrs["model"] == "a"
    assert set(both.data_vars) == {"A", "B", "C", "D"}
    assert both.input.values.tolist() == ["p", "q"]
    assert both.depth.values.tolist() == [2, 3, 4, 5, 6]
    xr.testing.assert_identical(first, before)
    no_order = ltv.parallel(first.drop_vars("order"), second)
    xr.testing.assert_identical(no_order, both)
    labelled = second.assign_coords(state=["a", "b", "c"], state_next=["a", "b", "c"])
    xr.testing.assert_identical(ltv.parallel(first, labelled), both)


@pytest.mark.parametrize(
    ("second", "match"),
    [
        (ltv.system(*random_arrays(1, m=1)), "`second` must have input=2 like `first`; got 1"),
        (ltv.system(*random_arrays(1, p=1)), "`second` must have output=2 like `first`; got 1"),
        (ltv.system(*random_arrays(1, 3)), "`second` must have layer=4 like `first`; got 3"),
        (
            ltv.window(ltv.system(*random_arrays(1, 5)), 1, 5),
            r"labels of `first` along 'layer', \[0 1 2 3\]; got \[1 2 3 4\]",
        ),
        (
            ltv.system(*random_arrays(1)).assign_coords(output=["c", "d"]),
            r"labels of the first along 'output', \['b' 'c'\]; got \['c' 'd'\]",
        ),
        (
            ltv.system(*random_arrays(1, batch=(3,)), batch_dims=["prompt"]),
            "`second` must have prompt=2 like `first`; got 3",
        ),
        (
            ltv.system(*random_arrays(1, batch=(2,)), batch_dims=["prompt"]).assign_coords(
                prompt=[1, 0]
            ),
            r"labels of `first` along 'prompt', \[0 1\]; got \[1 0\]",
        ),
    ],
)
def test_systems_that_do_not_fit_are_refused(second, match):
    first = ltv.system(*random_arrays(0, batch=(2,)), batch_dims=["prompt"])
    first = first.assign_coords(output=["b", "c"], prompt=[0, 1])
    with pytest.raises(ValueError, match=match):
        ltv.parallel(first, second)


def test_layers_without_labels_count_from_zero():
    first = ltv.system(*random_arrays(0)).drop_vars(["layer", "depth"])
    second = ltv.system(*random_arrays(1))
    assert ltv.parallel(first, second).depth.values.tolist() == [0, 1, 2, 3, 4]
    later = second.assign_coords(layer=second.layer + 1, depth=second.depth + 1)
    with pytest.raises(ValueError, match="labels of `first` along 'layer'"):
        ltv.parallel(first, later)


def test_only_systems_are_added():
    system = ltv.system(*random_arrays(0))
    for pair in ((system, 1), (ltv.io_matrix(system), system)):
        with pytest.raises(TypeError, match="`system` must be an xarray Dataset"):
            ltv.parallel(*pair)


def test_parallel_keeps_labels_of_states():
    """They were dropped; a label that both use is marked, as a name is."""
    one = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=2)
    two = ltv.constant(np.diag([0.2, 0.1]), np.ones((2, 1)), np.ones((1, 2)), horizon=2)

    def labelled(system, labels):
        return system.assign_coords(state=labels, state_next=labels)

    both = ltv.parallel(labelled(one, ["p"]), labelled(two, ["q", "r"]))
    assert both.state.values.tolist() == both.state_next.values.tolist() == ["p", "q", "r"]
    assert both.A.sel(layer=0, state="q", state_next="q") == 0.2
    marked = ltv.parallel(labelled(one, ["p"]), labelled(two, ["q", "p"]))
    assert marked.state.values.tolist() == ["p", "q", "p_2"]
    numbers = ltv.parallel(labelled(one, [3]), labelled(two, [7, 5]))
    assert numbers.state.values.tolist() == [3, 7, 5]
    for other in (labelled(two, [3, 5]), two):
        assert "state" not in ltv.parallel(labelled(one, [3]), other).coords
