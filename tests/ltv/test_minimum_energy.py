from functools import reduce

import numpy as np
import pytest
import scipy.linalg
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

from depthsys import ltv
from tests.ltv.test_system import random_arrays

# apply_ufunc wants every result to have all batch dims, and the rank lacks those of the target
RESULTS = ("u", "energy", "predicted", "residual", "target", "multipliers", "gain_rank")


def state_map(A, B):
    """All inputs side by side to x_L, one product of matrices per layer."""
    L = len(A)
    return np.hstack([reduce(lambda x, a: a @ x, A[layer + 1 :], B[layer]) for layer in range(L)])


def kkt(G, target, cost):
    """Least u'diag(cost)u with G u = target, from the optimality conditions."""
    rows, columns = G.shape
    system = np.block([[2 * np.diag(cost), G.T], [G, np.zeros((rows, rows))]])
    return np.linalg.solve(system, np.concatenate([np.zeros(columns), target]))[:columns]


def signal(u):
    return xr.DataArray(np.asarray(u), dims=["layer", "input"])


def state(x):
    return xr.DataArray(np.asarray(x, dtype=float), dims=["state"])


def simulated_output(system, u):
    return ltv.simulate(system, u).y.isel(depth=-1).values


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 2))
def test_plan_reaches_the_target_with_the_least_energy(seed, L, p):
    system = ltv.system(*random_arrays(seed, L, n=4, m=2, p=p))
    target = np.random.default_rng(seed).standard_normal(p)
    plan = ltv.minimum_energy(system, target)
    np.testing.assert_allclose(simulated_output(system, plan.u), target, atol=1e-8)
    # lstsq on the simulated (not the computed) map is the oracle
    units = np.eye(2 * L).reshape(-1, L, 2)
    G = np.stack([simulated_output(system, signal(e)) for e in units], 1)
    best = np.linalg.lstsq(G, target, rcond=None)[0]
    np.testing.assert_allclose(plan.u.values.ravel(), best, atol=1e-7)
    np.testing.assert_allclose(plan.energy, best @ best, rtol=1e-6)
    # anything added in the null space reaches the same target with more energy
    null = np.linalg.svd(G)[2][p:]
    other = plan.u.values.ravel() + 0.1 * null[0]
    assert (other**2).sum() > float(plan.energy)


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 6))
def test_held_outputs_stay_and_free_ones_do_not_bind(seed, L):
    A, B, C, D = random_arrays(seed, L, n=5, m=2, p=4)
    system = ltv.system(A, B, C, D)
    rng = np.random.default_rng(seed)
    target, cost = rng.standard_normal(2), rng.uniform(0.5, 2.0, (L, 2))
    plan = ltv.minimum_energy(system, target, outputs=[3, 1], hold=0, weights=cost)
    assert plan.output.values.tolist() == [3, 1, 0]
    np.testing.assert_array_equal(plan.target, [*target, 0.0])
    # steered: the target; held: where they end without input; both beside an initial state
    x0 = state(rng.standard_normal(5))
    idle = ltv.simulate(system, signal(np.zeros((L, 2))), x0).y[-1].values
    moved = ltv.simulate(system, plan.u, x0).y[-1].values - idle
    np.testing.assert_allclose(moved[[3, 1, 0]], [*target, 0.0], atol=1e-8)
    np.testing.assert_allclose(moved[[3, 1, 0]], plan.predicted, atol=1e-8)
    full = C[L] @ state_map(A, B)
    expected = kkt(full[[3, 1, 0]], plan.target.values, cost.ravel())
    np.testing.assert_allclose(plan.u.values.ravel(), expected, atol=1e-7, rtol=1e-6)
    # every direction that keeps the three outputs costs more
    for direction in scipy.linalg.null_space(full[[3, 1, 0]]).T:
        for sign in (-0.1, 0.1):
            other = plan.u.values.ravel() + sign * direction
            assert cost.ravel() @ other**2 > float(plan.energy)
    # output 2 is free: it moves, and holding it too costs more
    assert abs(moved[2]) > 1e-6
    both = ltv.minimum_energy(system, target, outputs=[3, 1], hold=[0, 2], weights=cost)
    assert float(both.energy) > float(plan.energy)
    np.testing.assert_allclose(simulated_output(system, both.u)[[0, 2]], 0, atol=1e-8)


def test_all_outputs_that_are_not_held_are_steered_by_default():
    system = ltv.system(*random_arrays(1, n_layers=5, n=4, p=3))
    plan = ltv.minimum_energy(system, [1.0, -2.0], hold=[1])
    assert plan.output.values.tolist() == [0, 2, 1]
    np.testing.assert_allclose(simulated_output(system, plan.u), [1.0, 0.0, -2.0], atol=1e-10)
    one = ltv.minimum_energy(system, 2.0, outputs=1)
    assert one.output.values.tolist() == [1]
    assert one.predicted.sizes == {"output": 1}
    h = (random_arrays(1, n_layers=5, n=4, p=3)[2][-1] @ state_map(*system_arrays(system)))[1]
    np.testing.assert_allclose(one.u.values.ravel(), 2.0 * h / (h @ h), rtol=1e-10)


def system_arrays(system):
    return system.A.values, system.B.values


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5), st.booleans())
def test_whole_state_targets_against_the_pseudoinverse(seed, L, n, weighted):
    A, B, C, _ = random_arrays(seed, L, n, m=2)
    system = ltv.system(A, B, C)
    rng = np.random.default_rng(seed)
    R = state_map(A, B)
    cost = rng.uniform(0.5, 2.0, 2 * L) if weighted else np.ones(2 * L)
    d = R @ rng.standard_normal(2 * L)  # reachable
    plan = ltv.minimum_energy(system, state(d), weights=cost.reshape(L, 2), rtol=1e-8)
    W = np.diag(1 / cost)
    u = W @ R.T @ np.linalg.pinv(R @ W @ R.T, rcond=1e-12, hermitian=True) @ d
    np.testing.assert_allclose(plan.u.values.ravel(), u, atol=1e-5 * np.abs(u).max())
    np.testing.assert_allclose(plan.energy, cost @ u**2, rtol=1e-5)
    np.testing.assert_allclose(ltv.simulate(system, plan.u).x[-1], d, atol=1e-7)
    assert int(plan["gain_rank"]) == min(n, 2 * L)
    assert "output" not in plan.dims


def test_state_that_is_only_partly_reachable():
    A, B, C, _ = random_arrays(7, n_layers=2, n=5, m=1)
    d = np.arange(1.0, 6.0)
    system = ltv.system(A, B, C)
    with pytest.raises(np.linalg.LinAlgError, match=r"\(rank 2 of 5 states, rtol 1e-10\)"):
        ltv.minimum_energy(system, state(d))
    plan = ltv.minimum_energy(system, state(d), allow_residual=True)
    R = state_map(A, B)
    u, _, rank, _ = np.linalg.lstsq(R, d, rcond=None)
    np.testing.assert_allclose(plan.u.values.ravel(), u, rtol=1e-9)
    np.testing.assert_allclose(plan.predicted, R @ u, rtol=1e-9)
    miss = np.linalg.norm(R @ u - d) / np.linalg.norm(d)
    np.testing.assert_allclose(plan.residual, miss, rtol=1e-9)
    assert miss > 0.1
    assert int(plan["gain_rank"]) == rank == 2
    np.testing.assert_array_equal(plan.target, d)


def test_weights_make_a_layer_expensive():
    system = ltv.system(*random_arrays(3, p=1))
    weights = np.array([1.0, 100.0, 1.0, 4.0])
    plan = ltv.minimum_energy(system, 1.0, weights=weights)
    h = (system.C.values[-1] @ state_map(*system_arrays(system))).reshape(4, 2)
    # Lagrange: w_l u_l is proportional to h_l
    expected = h / weights[:, None]
    np.testing.assert_allclose(plan.u, expected / (h * expected).sum(), rtol=1e-9)
    np.testing.assert_allclose(plan.energy, (weights[:, None] * plan.u**2).sum())


def test_weights_per_layer_and_input():
    A, B, C, _ = random_arrays(4, p=2)
    system = ltv.system(A, B, C)
    weights = np.random.default_rng(0).uniform(0.1, 10, (4, 2))
    plan = ltv.minimum_energy(system, [1.0, -1.0], weights=weights)
    expected = kkt(C[-1] @ state_map(A, B), [1.0, -1.0], weights.ravel())
    np.testing.assert_allclose(plan.u.values.ravel(), expected, rtol=1e-8)
    np.testing.assert_allclose(plan.energy, weights.ravel() @ expected**2, rtol=1e-8)
    # dims count, not their order
    named = xr.DataArray(weights.T, dims=["input", "layer"])
    np.testing.assert_array_equal(
        ltv.minimum_energy(system, [1.0, -1.0], weights=named).u.transpose("layer", "input"), plan.u
    )
    # one cost for all inputs of a layer is that cost for each
    each = ltv.minimum_energy(system, [1.0, -1.0], weights=weights[:, 0])
    repeated = ltv.minimum_energy(system, [1.0, -1.0], weights=weights[:, [0, 0]])
    np.testing.assert_array_equal(each.u, repeated.u)


def test_a_large_weight_leaves_a_layer_out():
    A, B, C, _ = random_arrays(5, p=1)
    plan = ltv.minimum_energy(ltv.system(A, B, C), 1.0, weights=[1.0, 1e20, 1.0, 1.0])
    np.testing.assert_allclose(plan.u[1], 0, atol=1e-15)
    B[1] = 0
    without = ltv.minimum_energy(ltv.system(A, B, C), 1.0)
    np.testing.assert_allclose(plan.u[[0, 2, 3]], without.u[[0, 2, 3]], rtol=1e-10)


def assert_members_agree(many, calls):
    """Every variable of a batched plan against the plan of one member, ``calls[index]()``."""
    for index, call in calls.items():
        one = call()
        for name in RESULTS:
            got = many[name].isel({d: i for d, i in index if d in many[name].dims})
            got = got.transpose(*one[name].dims)
            np.testing.assert_allclose(got, one[name], rtol=1e-8, atol=1e-12, err_msg=name)


def test_batch_dims_of_system_and_weights():
    arrays = random_arrays(6, p=2, batch=(3,))
    system = ltv.system(*arrays, batch_dims=["prompt"])
    rng = np.random.default_rng(0)
    targets = xr.DataArray(rng.standard_normal((2, 3)), dims=["output", "prompt"])
    weights = xr.DataArray(rng.uniform(0.5, 5, (2, 3, 4)), dims=["cost", "prompt", "layer"])
    many = ltv.minimum_energy(system, targets, weights=weights)
    assert dict(many.u.sizes) == {"layer": 4, "cost": 2, "prompt": 3, "input": 2}
    assert_members_agree(
        many,
        {
            (("cost", c), ("prompt", i)): lambda c=c, i=i: ltv.minimum_energy(
                ltv.system(*(a[i] for a in arrays)),
                targets[:, i].values,
                weights=weights[c, i].values,
            )
            for c in range(2)
            for i in range(3)
        },
    )


def test_batch_dims_of_weights_alone():
    arrays = random_arrays(6, p=2)
    system = ltv.system(*arrays)
    weights = np.random.default_rng(0).uniform(0.5, 5, (3, 4, 2))
    many = ltv.minimum_energy(
        system, [1.0, 2.0], weights=xr.DataArray(weights, dims=["cost", "layer", "input"])
    )
    calls = {
        (("cost", i),): lambda w=w: ltv.minimum_energy(system, [1.0, 2.0], weights=w)
        for i, w in enumerate(weights)
    }
    assert_members_agree(many, calls)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("dim", ["output", "state"])
def test_batch_dims_that_only_the_target_has(dim, batch):
    system = ltv.system(
        *random_arrays(6, n=3, p=3, batch=batch), batch_dims=["prompt"][: len(batch)]
    )
    targets = np.random.default_rng(0).standard_normal((5, 3))
    many = ltv.minimum_energy(system, xr.DataArray(targets, dims=["task", dim]))
    calls = {
        (("task", i),): lambda d=d: ltv.minimum_energy(system, xr.DataArray(d, dims=[dim]))
        for i, d in enumerate(targets)
    }
    assert_members_agree(many, calls)


def test_batched_state_targets_over_a_batched_system():
    arrays = random_arrays(8, n=3, batch=(2,))
    targets = xr.DataArray(
        np.random.default_rng(1).standard_normal((2, 3)), dims=["prompt", "state"]
    )
    many = ltv.minimum_energy(ltv.system(*arrays, batch_dims=["prompt"]), targets)
    for i in range(2):
        A, B = arrays[0][i], arrays[1][i]
        u = np.linalg.lstsq(state_map(A, B), targets[i].values, rcond=None)[0]
        np.testing.assert_allclose(many.u.isel(prompt=i).values.ravel(), u, rtol=1e-8)


@pytest.mark.parametrize("ragged", [False, True])
def test_matrix_free_systems_give_the_same_plan(ragged):
    rng = np.random.default_rng(9)
    order = [3, 2, 4, 3, 2] if ragged else [3] * 5
    A = [rng.standard_normal((order[k + 1], order[k])) for k in range(4)]
    B = [rng.standard_normal((order[k + 1], 2)) for k in range(4)]
    C = [rng.standard_normal((2, n)) for n in order]
    dense = ltv.system(A, B, C)
    free = ltv.MatrixFree([aslinearoperator(a) for a in A], B, C)
    options = {"hold": [1], "weights": [1.0, 2.0, 3.0, 4.0]}
    one, other = (ltv.minimum_energy(s, 1.5, **options) for s in (dense, free))
    for name in RESULTS:
        np.testing.assert_allclose(other[name], one[name], rtol=1e-9, atol=1e-12, err_msg=name)
    np.testing.assert_array_equal(other.layer, one.layer)
    d = rng.standard_normal(order[-1])
    u = np.linalg.lstsq(state_map(A, B), d, rcond=None)[0]
    np.testing.assert_allclose(
        ltv.minimum_energy(free, state(d)).u.values.ravel(), u, rtol=1e-8, atol=1e-12
    )
    padded = state(np.pad(d, (0, max(order) - order[-1])))
    plan = ltv.minimum_energy(dense, padded)
    np.testing.assert_allclose(plan.u.values.ravel(), u, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(ltv.simulate(dense, plan.u).x[-1], padded, atol=1e-10)


def test_state_gains_are_products_of_matrices():
    A, B, C, _ = random_arrays(10, n_layers=5, n=3, m=2)
    gain = ltv.state_gains(ltv.system(A, B, C))
    assert gain.dims == ("layer", "state", "input")
    np.testing.assert_allclose(np.hstack(list(gain.values)), state_map(A, B), rtol=1e-12)


def test_plan_of_a_window_keeps_the_labels_of_the_layers():
    A, B, C, D = random_arrays(11, n_layers=6, p=1)
    part = ltv.window(ltv.system(A, B, C, D), 2, 5)
    weights = xr.DataArray([1.0, 2.0, 3.0], dims=["layer"], coords={"layer": [2, 3, 4]})
    plan = ltv.minimum_energy(part, 1.0, weights=weights)
    assert plan.layer.values.tolist() == [2, 3, 4]
    expected = kkt(C[5] @ state_map(A[2:5], B[2:5]), [1.0], np.repeat(weights.values, 2))
    np.testing.assert_allclose(plan.u.values.ravel(), expected, rtol=1e-8)


def test_unreachable_target():
    A, B, C, _ = random_arrays(0, p=1)
    doubled = ltv.system(A, B, np.concatenate([C, C], axis=1))
    message = (
        r"`target` must be reachable; got relative residual 1\.0e\+00 at depth 4 \(rank 1 of 2 "
        r"outputs, rtol 1e-10\)\. Add input layers or pass `allow_residual=True`"
    )
    with pytest.raises(np.linalg.LinAlgError, match=message):
        ltv.minimum_energy(doubled, [1.0, -1.0])
    plan = ltv.minimum_energy(doubled, [1.0, 0.0], allow_residual=True)
    np.testing.assert_allclose(plan.residual, np.sqrt(0.5))
    np.testing.assert_allclose(plan.predicted, [0.5, 0.5])
    assert int(plan["gain_rank"]) == 1


@pytest.mark.parametrize("bad", [0, 1])
def test_error_names_the_rank_of_the_worst_member(bad):
    A, B, C, _ = random_arrays(0, p=2, batch=(2,))
    C[bad, :, 1] = C[bad, :, 0]
    system = ltv.system(A, B, C, batch_dims=["prompt"])
    with pytest.raises(np.linalg.LinAlgError, match=r"residual 1\.0e\+00 .*\(rank 1 of 2 outputs"):
        ltv.minimum_energy(system, [1.0, -1.0])
    plan = ltv.minimum_energy(system, [1.0, -1.0], allow_residual=True)
    assert plan["gain_rank"].values.tolist() == [1 + (i != bad) for i in range(2)]
    np.testing.assert_allclose(plan.residual[bad], 1.0)
    np.testing.assert_allclose(plan.residual[1 - bad], 0.0, atol=1e-12)


def test_rtol_decides_which_directions_count():
    C = np.array([[1.0, 0.0], [1.0, 1e-4]])  # two outputs that are nearly one
    system = ltv.constant(np.eye(2), np.eye(2), C, horizon=3)
    fine = ltv.minimum_energy(system, [1.0, 2.0])
    assert int(fine["gain_rank"]) == 2
    assert fine.attrs["rtol"] == 1e-10
    np.testing.assert_allclose(fine.u, [[1 / 3, 1e4 / 3]] * 3, rtol=1e-7)
    with pytest.raises(np.linalg.LinAlgError, match=r"residual 3\.2e-01 .*\(rank 1 .*rtol 1e-03"):
        ltv.minimum_energy(system, [1.0, 2.0], rtol=1e-3)
    coarse = ltv.minimum_energy(system, [1.0, 2.0], rtol=1e-3, allow_residual=True)
    assert int(coarse["gain_rank"]) == 1
    np.testing.assert_allclose(coarse.u, [[0.5, 0.0]] * 3, atol=1e-4)
    said = {"method": "minimum_energy", "rtol": 1e-3, "certified": "yes"}
    assert coarse.attrs == said | {"energy": "absolute", "layers": "[0, 1, 2]"}


ONES = np.ones((2, 2))
APART = np.diag([1.0, 0.0])


@pytest.mark.parametrize(("B", "C"), [(ONES, 0 * ONES), (0 * ONES, ONES), (APART, np.eye(2)[1:])])
def test_a_map_that_is_zero_has_rank_zero_for_certain(B, C):
    system = ltv.constant(np.diag([0.9, 0.5]), B, C, horizon=5)
    plan = ltv.minimum_energy(system, np.ones(len(C)), allow_residual=True)
    assert int(plan["gain_rank"]) == 0
    assert bool(plan["gain_rank_is_certified"])
    assert plan.attrs["certified"] == "yes"


@pytest.mark.parametrize("unit", [1e-160, 1e-200])  # products below the normal numbers; none left
def test_a_map_that_vanishes_in_rounding_is_not_certified(unit):
    system = ltv.constant(np.diag([0.9, 0.5]), unit * np.eye(2), unit * np.eye(2), horizon=5)
    plan = ltv.minimum_energy(system, np.ones(2), allow_residual=True)
    assert int(plan["gain_rank"]) == 0
    assert not plan["gain_rank_is_certified"]
    assert plan.attrs["certified"].startswith("gain_rank is not certified")


@pytest.mark.parametrize("unit", [1e-10, 1e-5, 1.0, 1e10])
def test_no_unit_of_an_output_decides(unit):
    system = ltv.constant(np.diag([0.9, 0.5]), [[1.0], [unit]], np.eye(2), horizon=10)
    plan = ltv.minimum_energy(system, 1.0, outputs=0, hold=1)
    np.testing.assert_allclose(plan.energy, 0.4661, rtol=1e-4)
    np.testing.assert_allclose(ltv.simulate(system, plan.u).y[-1, 1] / unit, 0.0, atol=1e-9)
    # and the energy rises by the multiplier where the target does
    more = ltv.minimum_energy(system, 1.0 + 1e-6, outputs=0, hold=1)
    slope = (more.energy - plan.energy) / 1e-6
    np.testing.assert_allclose(plan.multipliers[0], slope, rtol=1e-5)


def test_a_row_of_rounding_binds_nothing():
    """An output whose products cancel is not there: it must not take part as if it were."""
    rng = np.random.default_rng(0)
    T = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    A, B = T @ np.diag([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]) @ T.T, T[:, :2] @ rng.standard_normal((2, 1))
    C = np.stack([T[:, 0] + T[:, 1], T[:, 4]])  # the second output sees what no input reaches
    system = ltv.constant(A, B, C, horizon=8)
    assert 0 < abs(ltv.gains(system)[:, 1]).max() < 1e-14
    plan = ltv.minimum_energy(system, 1.0, outputs=0, hold=1)
    free = ltv.minimum_energy(system, 1.0, outputs=0)
    assert int(plan["gain_rank"]) == 1
    np.testing.assert_allclose(plan.energy, free.energy, rtol=1e-10)
    with pytest.raises(np.linalg.LinAlgError, match=r"relative residual 1\.0e\+00"):
        ltv.minimum_energy(system, [1.0, 1.0])


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_from_an_initial_state(seed, L):
    A, B, C, D = random_arrays(seed, L, n=4, m=2, p=3)
    system = ltv.system(A, B, C, D)
    rng = np.random.default_rng(seed)
    x0, target = rng.standard_normal(4), rng.standard_normal(2)
    plan = ltv.minimum_energy(system, target, x0=x0, outputs=[2, 0], hold=1)
    alone = ltv.simulate(system, x0=x0).y[-1].values
    y = ltv.simulate(system, plan.u, x0).y[-1].values
    np.testing.assert_allclose(y, [target[1], alone[1], target[0]], atol=1e-7)
    np.testing.assert_allclose(plan.predicted, [*target, alone[1]], atol=1e-7)
    np.testing.assert_allclose(plan.target, [*target, alone[1]], rtol=1e-10)
    moved = ltv.minimum_energy(system, target - alone[[2, 0]], outputs=[2, 0], hold=1)
    np.testing.assert_allclose(plan.u, moved.u, rtol=1e-6, atol=1e-9)
    G = (C[-1] @ state_map(A, B))[[2, 0, 1]]
    expected = np.linalg.solve(G @ G.T, 2 * (plan.target.values - alone[[2, 0, 1]]))
    np.testing.assert_allclose(plan.multipliers, expected, rtol=1e-5)
    d = state_map(A, B) @ rng.standard_normal(2 * L)
    whole = ltv.minimum_energy(system, state(d + reduce(lambda x, a: a @ x, A, x0)), x0=x0)
    np.testing.assert_allclose(ltv.simulate(system, whole.u, x0).x[-1], whole.target, atol=1e-6)
    free = ltv.MatrixFree([aslinearoperator(a) for a in A], B, C, D)
    other = ltv.minimum_energy(free, target, x0=x0, outputs=[2, 0], hold=1)
    np.testing.assert_allclose(other.u, plan.u, rtol=1e-7, atol=1e-9)


def test_system_without_any_input_reaches_nothing():
    A, B, C, _ = random_arrays(0, p=1)
    plan = ltv.minimum_energy(ltv.system(A, 0 * B, C), 1.0, allow_residual=True)
    assert int(plan["gain_rank"]) == 0
    assert float(plan.residual) == 1
    np.testing.assert_array_equal(plan.u, 0)


def test_target_in_a_weak_direction_of_full_rank_is_reachable():
    A, B, C, _ = random_arrays(0, p=2)
    C[-1, 1] = C[-1, 0] + 1e-8 * C[-1, 1]
    plan = ltv.minimum_energy(ltv.system(A, B, C), [1.0, -1.0])
    assert int(plan["gain_rank"]) == 2


def test_error_of_a_window_names_the_label_of_its_last_depth():
    part = ltv.window(ltv.system(*random_arrays(0, n_layers=6, n=5, m=1)), 1, 3)
    with pytest.raises(np.linalg.LinAlgError, match="at depth 3 "):
        ltv.minimum_energy(part, state([1.0, 2.0, 3.0, 4.0, 5.0]))


def test_zero_target_needs_no_energy():
    plan = ltv.minimum_energy(ltv.system(*random_arrays(0, p=1)), 0.0)
    assert float(plan.energy) == float(plan.residual) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": [1.0, 2.0, 3.0]}, r"`target` must have dims {'output': 2}; got shape \(3,\)"),
        ({"target": state([1.0, 2.0])}, "`target` must be a state of size 3; got 2 values"),
        ({"target": [np.nan, 1.0]}, "`target` must be finite"),
        ({"target": state([1, np.inf, 0])}, "`target` must be finite"),
        ({"target": state([1, 2, 3]), "hold": 0}, "`outputs` and `hold` must be left out"),
        ({"target": state([1, 2, 3]), "outputs": 0}, "`outputs` and `hold` must be left out"),
        ({"target": 1.0, "outputs": []}, "`outputs` must name at least one output that is not"),
        ({"target": 1.0, "hold": [0, 1]}, "`outputs` must name at least one output that is not"),
        ({"target": 1.0, "outputs": 1, "hold": 1}, r"not held; got \[1\] beside hold=\[1\]"),
        ({"target": 1.0, "outputs": 2}, r"`outputs` must be positions of outputs, in 0\.\.1; got"),
        ({"target": 1.0, "outputs": 0.0}, "`outputs` must be positions of outputs"),
        ({"target": 1.0, "hold": -1}, r"`hold` must be positions of outputs, in 0\.\.1; got -1"),
        ({"target": 1.0, "hold": True}, "`hold` must be positions of outputs"),
        ({"target": [1.0, 1.0], "outputs": [0, 0]}, "`outputs` must name each output once"),
        ({"target": [1.0, 1.0], "weights": [1, 1, 1, 0]}, r"`weights` must be positive; got 0\.0"),
        ({"target": [1.0, 1.0], "weights": [1, 1, 1, np.inf]}, "`weights` must be finite"),
        (
            {"target": [1.0, 1.0], "weights": [1, 1]},
            r"`weights` must have dims .*{'layer': 4}; got shape \(2,\)",
        ),
        ({"target": [1.0, 1.0], "weights": 2.0}, "`weights` must have dims"),
        (
            {"target": [1.0, 1.0], "weights": np.ones((4, 3))},
            r"`weights` must have dims {'layer': 4, 'input': 2}",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ltv.minimum_energy(ltv.system(*random_arrays(0)), **arguments)


def test_arrays_with_unnamed_batch_dims_and_other_labels_are_refused():
    system = ltv.system(*random_arrays(0))
    with pytest.raises(
        ValueError, match=r"`target` must have dims {'output': 2}; got shape \(5, 2\)"
    ):
        ltv.minimum_energy(system, np.ones((5, 2)))
    with pytest.raises(ValueError, match=r"`weights` must have dims .*; got shape \(5, 4, 2\)"):
        ltv.minimum_energy(system, [1.0, 0.0], weights=np.ones((5, 4, 2)))
    later = xr.DataArray(np.ones(4), dims=["layer"], coords={"layer": range(1, 5)})
    with pytest.raises(ValueError, match=r"`weights` must have the labels of the system along"):
        ltv.minimum_energy(system, [1.0, 0.0], weights=later)
    for rtol in (0.0, 1.0, -1e-3):
        with pytest.raises(ValueError, match="`rtol` must be between 0 and 1"):
            ltv.minimum_energy(system, [1.0, 0.0], rtol=rtol)


@pytest.mark.parametrize("whole", [False, True])
def test_what_rounding_takes_away_from_the_target_is_said(whole):
    goal = xr.DataArray([0.0], dims=["state"]) if whole else 0.0
    for horizon, start in ((60, "not certified: rounding on the way takes the end"), (9, "yes")):
        system = ltv.constant([[2.0]], [[1.0]], [[1.0]], horizon=horizon)
        plan = ltv.minimum_energy(system, goal, x0=[0.3])
        assert plan.attrs["certified"].startswith(start)
        end = abs(float(ltv.simulate(system, plan.u, [0.3]).x[-1, 0]))
        assert (end > 1.0) == (horizon == 60)
