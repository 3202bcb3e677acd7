import itertools

import numpy as np
import pytest
import xarray as xr

from depthsys import ltv
from tests.ltv.test_system import random_arrays


def test_a_window_is_the_recursion_between_two_depths():
    A, B, C, D = random_arrays(0, 6)
    system = ltv.system(A, B, C, D)
    part = ltv.window(system, 2, 5)
    assert part.layer.values.tolist() == [2, 3, 4]
    assert part.depth.values.tolist() == [2, 3, 4, 5]
    assert system.D.isel(depth=5).values.any()  # the system itself is not changed
    u = np.random.default_rng(0).standard_normal((6, 2))
    u[:2] = u[5:] = 0
    whole = ltv.simulate(system, xr.DataArray(u, dims=["layer", "input"]))
    piece = ltv.simulate(part, xr.DataArray(u[2:5], dims=["layer", "input"]))
    np.testing.assert_allclose(piece.x, whole.x.sel(depth=slice(2, 5)))
    np.testing.assert_allclose(piece.y, whole.y.sel(depth=slice(2, 5)))
    # labels of a window of a window are still those of the first system
    again = ltv.window(part, 3, 5)
    xr.testing.assert_identical(again, ltv.window(system, 3, 5))


def test_joined_windows_are_the_system():
    arrays = random_arrays(1, 6, batch=(2,))
    system = ltv.system(*arrays, batch_dims=["prompt"], attrs={"model": "none"})
    cuts = [0, 2, 3, 6]
    parts = [ltv.window(system, a, b) for a, b in itertools.pairwise(cuts)]
    xr.testing.assert_identical(ltv.concatenate(parts), system)
    one = ltv.window(system, 2, 5)
    xr.testing.assert_identical(ltv.concatenate([one])[["A", "B", "C", "D"]], one)


def test_states_flow_across_a_joint():
    A, B, C, D = random_arrays(2, 3)
    E, F, G, H = random_arrays(3, 2)
    C[-1] = 0  # the second system reads the state at the joint
    joined = ltv.concatenate([ltv.system(A, B, C, D), ltv.system(E, F, G, H)])
    assert joined.layer.values.tolist() == [0, 1, 2, 3, 4]
    x0 = xr.DataArray([1.0, -1.0, 2.0], dims=["state"])
    u = np.random.default_rng(0).standard_normal((5, 2))
    found = ltv.simulate(joined, xr.DataArray(u, dims=["layer", "input"]), x0)
    first = ltv.simulate(ltv.system(A, B, C, D), xr.DataArray(u[:3], dims=["layer", "input"]), x0)
    second = ltv.simulate(
        ltv.system(E, F, G, H), xr.DataArray(u[3:], dims=["layer", "input"]), first.x[-1]
    )
    np.testing.assert_allclose(found.x, np.concatenate([first.x[:-1], second.x]))
    np.testing.assert_allclose(found.y, np.concatenate([first.y[:-1], second.y]))


def test_a_readout_at_the_joint_may_come_from_either_side():
    A, B, C, D = random_arrays(2, 3)
    left = ltv.system(A, B, C, D)
    E, F, G, H = random_arrays(3, 2)
    G[0] = 0
    joined = ltv.concatenate([left, ltv.system(E, F, G, H)])
    np.testing.assert_array_equal(joined.C[3], C[3])
    G[0] = 1
    with pytest.raises(ValueError, match=r"`systems\[1\]` must read its first state"):
        ltv.concatenate([left, ltv.system(E, F, G, H)])


def test_orders_that_vary_are_kept():
    sizes = [1, 3, 2, 1]
    rng = np.random.default_rng(0)
    system = ltv.system(
        [rng.standard_normal((sizes[k + 1], sizes[k])) for k in range(3)],
        [rng.standard_normal((sizes[k + 1], 2)) for k in range(3)],
        [rng.standard_normal((2, n)) for n in sizes],
    )
    joined = ltv.concatenate([ltv.window(system, 0, 1), ltv.window(system, 1, 3)])
    assert joined.order.values.tolist() == sizes
    xr.testing.assert_identical(joined, system)


def test_bad_windows_and_joins_are_refused():
    system = ltv.system(*random_arrays(0))
    for start, stop in ((-1, 2), (2, 2), (3, 2), (0, 5)):
        with pytest.raises(ValueError, match="0 <= start < stop <= 4, depths of the system"):
            ltv.window(system, start, stop)
    with pytest.raises(ValueError, match="`systems` must hold at least one"):
        ltv.concatenate([])
    other = ltv.system(*random_arrays(0, n=2))
    with pytest.raises(ValueError, match=r"`systems\[1\]` must have sizes .*'state': 3"):
        ltv.concatenate([system, other])
    with pytest.raises(TypeError, match="must be an xarray Dataset"):
        ltv.concatenate([system, 3])


def test_transition_is_the_product_of_the_maps_between():
    A, B, C, D = random_arrays(0, 5, batch=(2,))
    system = ltv.system(A, B, C, D, batch_dims=["prompt"])
    phi = ltv.transition(system, 1, 4)
    assert phi.dims == ("prompt", "state_next", "state")
    np.testing.assert_allclose(phi[1], A[1, 3] @ A[1, 2] @ A[1, 1])
    np.testing.assert_array_equal(ltv.transition(system, 2, 2)[0], np.eye(3))
    cut = ltv.window(system, 1, 4)
    np.testing.assert_allclose(ltv.transition(cut, 2, 3), A[:, 2])
    for start, stop in ((3, 2), (-1, 1), (0, 6)):
        with pytest.raises(ValueError, match="0 <= start <= stop <= 5"):
            ltv.transition(system, start, stop)


def test_whole_labels_and_lists_are_wanted():
    system = ltv.system(*random_arrays(0))
    with pytest.raises(TypeError, match="`start` and `stop` must be whole numbers"):
        ltv.window(system, 0.5, 2.7)
    with pytest.raises(TypeError, match="`systems` must be a list of systems"):
        ltv.concatenate(system)


def test_the_larger_order_holds_at_a_joint():
    """Two states leave the first system, the second one looks at one of them."""
    ones = np.ones
    left = ltv.system([ones((2, 3))], [ones((2, 1))], [ones((1, 3)), np.zeros((1, 2))])
    right = ltv.system([ones((3, 1))], [ones((3, 1))], [ones((1, 1)), ones((1, 3))])
    joined = ltv.concatenate([left, right])
    assert joined.order.values.tolist() == [3, 2, 3]
    np.testing.assert_array_equal(ltv.gains(joined).values.ravel(), [3, 3])


@pytest.mark.parametrize("dim", ["state", "input", "output"])
def test_joints_of_systems_with_other_names_are_refused(dim):
    left, right = (ltv.system(*random_arrays(0)) for _ in range(2))
    right = right.assign(C=right.C.copy(data=np.zeros(right.C.shape)))
    names, coord = [f"s{i}" for i in range(left.sizes[dim])], f"{dim}_name"
    named = left.assign_coords({coord: (dim, names)})
    other = right.assign_coords({coord: (dim, names[::-1])})
    with pytest.raises(ValueError, match=rf"`systems\[1\]` must have the names .* along '{dim}'"):
        ltv.concatenate([named, other])
    same = right.assign_coords({coord: (dim, names)})
    for pair in ((named, same), (named, right), (left, same), (named, same, same)):
        joined = ltv.concatenate(pair)
        assert joined[coord].values.tolist() == names
        np.testing.assert_array_equal(joined.B[4:8], left.B)


@pytest.mark.parametrize("extra", [{"prompt": 1}, {"site": ("output", [1, 2])}])
def test_other_coordinates_do_not_stop_a_joint(extra):
    system = ltv.system(*random_arrays(0))
    left, right = ltv.window(system, 0, 2), ltv.window(system, 2, 4)
    kept = ltv.concatenate([left.assign_coords(extra), right.assign_coords(extra)])
    assert set(extra) <= set(kept.coords)
    other = {name: ("output", [3, 4]) if isinstance(v, tuple) else 5 for name, v in extra.items()}
    for theirs in (other, {}):
        joined = ltv.concatenate([left.assign_coords(extra), right.assign_coords(theirs)])
        np.testing.assert_array_equal(joined.A, system.A)
        assert not set(extra) & set(joined.coords)


def test_labels_on_one_side_of_a_joint():
    system = ltv.system(*random_arrays(0))
    left, right = ltv.window(system, 0, 2), ltv.window(system, 2, 4)
    labelled = left.assign_coords(output=["p", "q"])
    for pair in ((labelled, right), (left, right.assign_coords(output=["p", "q"]))):
        joined = ltv.concatenate(pair)
        assert joined.output.values.tolist() == ["p", "q"]
        np.testing.assert_array_equal(joined.C, system.C)
