import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from depthsys import ltv
from depthsys.ltv import quadratic_program
from tests.ltv.test_lqr import costs, run_cost, stacked_states
from tests.ltv.test_system import random_arrays
from tests.ltv.test_tracking import joint_costs


def everything(A, B, C, D, x0, drift):
    """All states and outputs as affine functions of all inputs, dense: E u + e, F u + f."""
    L, n, m = len(A), len(x0), B[0].shape[1]
    _, gamma = stacked_states(A, B)
    E, e = np.vstack([np.zeros((n, L * m)), gamma]), [x0]
    for layer in range(L):
        e.append(A[layer] @ e[-1] + drift[layer])
    e = np.concatenate(e)
    big_C = scipy.linalg.block_diag(*C)
    big_D = np.vstack([scipy.linalg.block_diag(*D[:L]), np.zeros((len(C[0]), L * m))])
    return E, e, big_C @ E + big_D, big_C @ e


def kkt(H, h, G, d):
    """min u'Hu + 2h'u with G u = d: the optimality conditions as one linear system."""
    rows = len(G)
    system = np.block([[2 * H, -G.T], [G, np.zeros((rows, rows))]])
    found = np.linalg.solve(system, np.concatenate([-2 * h, d]))
    return found[: len(H)], found[len(H) :]


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 6), st.booleans())
def test_targets_along_the_way_against_the_optimality_conditions(seed, L, ends):
    n, m, p = 3, 2, 2
    A, B, C, D = random_arrays(seed, L, n, m, p)
    rng = np.random.default_rng(seed)
    Q, R, N, last = joint_costs(rng, L, n, m)
    x0, drift = rng.standard_normal(n), rng.standard_normal((L, n))
    x_target, u_target = rng.standard_normal((L + 1, n)), rng.standard_normal((L, m))
    y_target = np.full((L + 1, p), np.nan)
    y_target[1, 0], y_target[2] = rng.standard_normal(), rng.standard_normal(p)
    x_final = rng.standard_normal(n) if ends and L > 4 else [np.nan, 1.0, np.nan]
    plan = ltv.optimal_inputs(
        ltv.system(A, B, C, D),
        x0=x0,
        x_final=x_final,
        y_target=y_target,
        Q=Q,
        R=R,
        N=N,
        terminal=last,
        x_target=x_target,
        u_target=u_target,
        drift=drift,
    )
    E, e, F, f = everything(A, B, C, D, x0, drift)
    W, big_R = scipy.linalg.block_diag(*Q, last), scipy.linalg.block_diag(*R)
    big_N = np.vstack([scipy.linalg.block_diag(*N), np.zeros((n, L * m))])
    off, shift = e - x_target.ravel(), u_target.ravel()
    H = E.T @ W @ E + big_R + E.T @ big_N + big_N.T @ E
    h = E.T @ W @ off - big_R @ shift + big_N.T @ off - E.T @ big_N @ shift
    xs, ys = ~np.isnan(x_final), ~np.isnan(y_target.ravel())
    G = np.vstack([E[-n:][xs], F[ys]])
    d = np.concatenate([(x_final - e[-n:])[xs], (y_target.ravel() - f)[ys]])
    u, multipliers = kkt(H, h, G, d)
    size = np.abs(u).max()
    np.testing.assert_allclose(plan.u.values.ravel(), u, rtol=1e-5, atol=1e-6 * size)
    x, v = E @ u + off, u - shift
    cost = x @ W @ x + v @ big_R @ v + 2 * x @ big_N @ v
    np.testing.assert_allclose(plan.cost, cost, rtol=1e-6)
    got = np.concatenate([plan.x_multipliers.values[xs], plan.y_multipliers.values.ravel()[ys]])
    np.testing.assert_allclose(got, multipliers, rtol=1e-5, atol=1e-5 * abs(multipliers).max())
    assert not plan.x_multipliers.values[~xs].any()
    assert not plan.y_multipliers.values.ravel()[~ys].any()
    np.testing.assert_allclose(plan.x.values.ravel(), E @ plan.u.values.ravel() + e, atol=1e-7)
    np.testing.assert_allclose(plan.y.values.ravel()[ys], y_target.ravel()[ys], atol=1e-7)
    assert float(plan.residual) < 1e-10
    assert int(plan.target_rank) == xs.sum() + ys.sum()
    assert float(plan.stationarity) < 1e-8


def nctpy_inputs(A, T, B, x0, xf, rho, S, xr):
    """nctpy's discrete `get_control_inputs`: states and costates of all steps in one system.

    x(t+1) = A x(t) - B B' p(t+1) / (2 rho) and p(t) = A' p(t+1) + 2 S (x(t) - xr), with p(t+1)
    for t = 0..T-1 and x(1)..x(T-1) unknown. Written from the equations, not from its code.
    """
    n = len(A)
    size = n * (2 * T - 1)
    M, right = np.zeros((size, size)), np.zeros(size)

    def x_at(t):
        return slice((t - 1) * n, t * n)

    def p_at(t):
        return slice((T - 1 + t - 1) * n, (T + t - 1) * n)

    for t in range(T):
        rows = slice(t * n, (t + 1) * n)
        M[rows, p_at(t + 1)] = B @ B.T / (2 * rho)
        if t + 1 < T:
            M[rows, x_at(t + 1)] = np.eye(n)
        else:
            right[rows] -= xf
        if t > 0:
            M[rows, x_at(t)] -= A
        else:
            right[rows] += A @ x0
    for t in range(1, T):
        rows = slice((T + t - 1) * n, (T + t) * n)
        M[rows, p_at(t)] = np.eye(n)
        M[rows, p_at(t + 1)] = -A.T
        M[rows, x_at(t)] = -2 * S
        right[rows] = -2 * S @ xr
    found = np.linalg.solve(M, right)
    p = np.stack([found[p_at(t + 1)] for t in range(T)])
    return -p @ B / (2 * rho)


@pytest.mark.parametrize("rho", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("reference", ["zero", "xf"])
def test_the_discrete_case_of_nctpy(rho, reference):
    rng = np.random.default_rng(0)
    n, T = 5, 7
    A = rng.standard_normal((n, n))
    A = (A + A.T) / (1 + np.abs(np.linalg.eigvalsh(A + A.T)).max())  # its normalisation
    B, S = np.diag([1.0, 1.0, 1.0, 0.2, 0.0]), np.diag([1.0, 0.5, 0.0, 1.0, 1.0])
    x0, xf = rng.standard_normal(n), rng.standard_normal(n)
    xr_ = np.zeros(n) if reference == "zero" else xf
    u = nctpy_inputs(A, T, B, x0, xf, rho, S, xr_)
    Q = np.stack([np.zeros((n, n))] + [S] * (T - 1))
    plan = ltv.optimal_inputs(
        ltv.constant(A, B[:, :4], np.eye(n), horizon=T),
        x0=x0,
        x_final=xf,
        Q=Q,
        R=rho * np.eye(4),
        x_target=xr_,
    )
    np.testing.assert_allclose(plan.u, u[:, :4], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(plan.x[-1], xf, atol=1e-10)
    # Q at layer 0 acts on a state that nothing changes
    whole = ltv.optimal_inputs(
        ltv.constant(A, B[:, :4], np.eye(n), horizon=T),
        x0=x0,
        x_final=xf,
        Q=S,
        R=rho * np.eye(4),
        x_target=xr_,
    )
    np.testing.assert_allclose(whole.u, plan.u, rtol=1e-7, atol=1e-9)


def test_without_a_cost_on_states_it_is_minimum_energy():
    A, B, C, D = random_arrays(0, n_layers=5)
    system = ltv.system(A, B, C, D)
    rng = np.random.default_rng(0)
    x0, y = rng.standard_normal(3), rng.standard_normal(2)
    target = xr.DataArray(y[None], dims=["depth", "output"], coords={"depth": [5]})
    one, other = ltv.optimal_inputs(system, x0=x0, y_target=target), None
    other = ltv.minimum_energy(system, y, x0=x0)
    np.testing.assert_allclose(one.u, other.u, rtol=1e-9)
    np.testing.assert_allclose(one.cost, other.energy, rtol=1e-9)
    np.testing.assert_allclose(one.y_multipliers[-1], other.multipliers, rtol=1e-8)


def test_without_targets_it_is_the_regulator():
    A, B, C, D = random_arrays(1)
    rng = np.random.default_rng(0)
    Q, R, last = costs(rng, 4, 3, 2)
    x0 = rng.standard_normal(3)
    system = ltv.system(A, B, C, D)
    plan = ltv.optimal_inputs(system, x0=x0, Q=Q, R=R, terminal=last)
    law = ltv.lqr(system, Q, R, last)
    np.testing.assert_allclose(plan.u, -np.einsum("lmn,ln->lm", law.K, plan.x[:-1]), rtol=1e-9)
    np.testing.assert_allclose(plan.cost, x0 @ law.P[0].values @ x0, rtol=1e-9)
    np.testing.assert_allclose(plan.cost, run_cost(A, B, Q, R, last, x0, plan.u.values), rtol=1e-9)


def bounded_case(seed, L):
    n, m = 3, 2
    A, B, C, D = random_arrays(seed, L, n, m)
    A = A / np.abs(np.linalg.eigvals(A)).max(-1)[:, None, None]
    rng = np.random.default_rng(seed)
    Q, R, last = costs(rng, L, n, m)
    x0 = rng.standard_normal(n)
    # bounds that the best free input breaks, and a target that some input within them reaches
    inside = rng.uniform(-1, 1, (L, m))
    system = ltv.system(A, B, C, D)
    y = ltv.simulate(system, inside, x0).y.values
    y_target = np.full_like(y, np.nan)
    y_target[L, 0], y_target[L // 2, 1] = y[L, 0], y[L // 2, 1]
    free = ltv.optimal_inputs(system, x0=x0, Q=Q, R=R, terminal=last, y_target=y_target).u.values
    size = 0.7 * np.abs(free)
    lower = np.minimum(inside, -size) - 0.01
    upper = np.maximum(inside, size) + 0.01
    return system, (A, B, C, D), (Q, R, last), x0, y_target, lower, upper


@settings(derandomize=True, max_examples=13, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_bounds_against_the_optimality_conditions(seed, L):
    system, arrays, (Q, R, last), x0, y_target, lower, upper = bounded_case(seed, L)
    plan = ltv.optimal_inputs(
        system,
        x0=x0,
        Q=Q,
        R=R,
        terminal=last,
        y_target=y_target,
        lower=lower,
        upper=upper,
    )
    E, e, F, f = everything(*arrays, x0, np.zeros((L, 3)))
    W = scipy.linalg.block_diag(*Q, last)
    H, h = E.T @ W @ E + scipy.linalg.block_diag(*R), E.T @ W @ e
    where = ~np.isnan(y_target.ravel())
    G, d = F[where], (y_target.ravel() - f)[where]
    u = plan.u.values.ravel()
    size = 1 + np.abs(u).max()
    # feasible
    assert (u >= lower.ravel() - 1e-8 * size).all()
    assert (u <= upper.ravel() + 1e-8 * size).all()
    np.testing.assert_allclose(G @ u, d, atol=1e-8 * size)
    # multipliers: none against a bound, none at one that is not met
    low, high = (plan[f"{side}_multipliers"].values.ravel() for side in ("lower", "upper"))
    assert (low >= 0).all()
    assert (high >= 0).all()
    scale = np.abs(2 * (H @ u + h)).max() + 1e-12
    assert (low * (u - lower.ravel()) < 1e-6 * scale * size).all()
    assert (high * (upper.ravel() - u) < 1e-6 * scale * size).all()
    # and the gradient is theirs
    gradient = 2 * (H @ u + h)
    lagrange = G.T @ plan.y_multipliers.values.ravel()[where] + low - high
    np.testing.assert_allclose(lagrange, gradient, atol=1e-6 * scale)
    assert float(plan.stationarity) < 1e-7
    assert float(plan.bound_violation) < 1e-9 * size
    np.testing.assert_allclose(
        plan.cost, run_cost(*arrays[:2], Q, R, last, x0, plan.u.values), rtol=1e-7
    )


def test_bounds_bind_in_most_of_these_cases_and_another_solver_agrees():
    binding = 0
    for seed in range(8):
        system, arrays, (Q, R, last), x0, y_target, lower, upper = bounded_case(seed, 4)
        plan = ltv.optimal_inputs(
            system,
            x0=x0,
            Q=Q,
            R=R,
            terminal=last,
            y_target=y_target,
            lower=lower,
            upper=upper,
        )
        binding += bool(plan.lower_multipliers.any() or plan.upper_multipliers.any())
        E, e, F, f = everything(*arrays, x0, np.zeros((4, 3)))
        W = scipy.linalg.block_diag(*Q, last)
        H, h = E.T @ W @ E + scipy.linalg.block_diag(*R), E.T @ W @ e
        where = ~np.isnan(y_target.ravel())
        G, d = F[where], (y_target.ravel() - f)[where]
        found = scipy.optimize.minimize(
            lambda u, H=H, h=h: u @ H @ u + 2 * h @ u,
            np.zeros(8),
            jac=lambda u, H=H, h=h: 2 * (H @ u + h),
            bounds=list(zip(lower.ravel(), upper.ravel(), strict=True)),
            constraints={
                "type": "eq",
                "fun": lambda u, G=G, d=d: G @ u - d,
                "jac": lambda u, G=G: G,
            },
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(plan.u.values.ravel(), found.x, atol=1e-4)
        if binding:  # the cost falls by the multiplier where a bound is moved out
            side = plan.upper_multipliers.values
            at = np.unravel_index(side.argmax(), side.shape)
            wider = upper.copy()
            wider[at] += 1e-5
            other = ltv.optimal_inputs(
                system,
                x0=x0,
                Q=Q,
                R=R,
                terminal=last,
                y_target=y_target,
                lower=lower,
                upper=wider,
            )
            slope = float(plan.cost - other.cost) / 1e-5
            np.testing.assert_allclose(slope, float(side[at]), rtol=1e-2, atol=1e-4)
    assert binding >= 5


def test_bounds_that_do_not_bind_change_nothing():
    system, _, (Q, R, last), x0, y_target, _, _ = bounded_case(3, 4)
    about = {"x0": x0, "Q": Q, "R": R, "terminal": last, "y_target": y_target}
    free = ltv.optimal_inputs(system, **about)
    wide = ltv.optimal_inputs(system, lower=-1e6, upper=1e6, **about)
    np.testing.assert_allclose(wide.u, free.u, rtol=1e-9)
    assert not wide.lower_multipliers.any()
    assert not free.upper_multipliers.any()
    one_side = ltv.optimal_inputs(system, upper=[np.inf, 1e6], **about)
    np.testing.assert_allclose(one_side.u, free.u, rtol=1e-9)


def test_bounds_alone_without_any_target():
    system = ltv.constant([[1.0]], [[1.0]], [[1.0]], horizon=3)
    plan = ltv.optimal_inputs(system, lower=[[0.5], [-np.inf], [0.0]])
    np.testing.assert_allclose(plan.u.values.ravel(), [0.5, 0, 0], atol=1e-15)
    np.testing.assert_allclose(plan.lower_multipliers.values.ravel(), [1.0, 0, 0], atol=1e-12)
    fixed = ltv.optimal_inputs(system, lower=0.5, upper=0.5)
    np.testing.assert_allclose(fixed.u, 0.5, rtol=1e-12)


def test_no_unit_of_an_output_or_input_decides():
    A, B, C, _ = random_arrays(5, n_layers=5)
    y = np.full((6, 2), np.nan)
    y[3], y[5] = [1.0, 2.0], [0.5, -1.0]
    right = ltv.optimal_inputs(ltv.system(A, B, C), y_target=y, upper=0.4)
    scale = np.array([1.0, 1e-10])
    found = ltv.optimal_inputs(
        ltv.system(A, B * 1e8, C * scale[:, None]), y_target=y * scale, upper=0.4e-8
    )
    np.testing.assert_allclose(found.u * 1e8, right.u, rtol=1e-6, atol=1e-8)
    assert int(found.target_rank) == 4


def test_batches_of_targets_bounds_and_systems():
    arrays = random_arrays(6, n_layers=4, batch=(2,))
    system = ltv.system(*arrays, batch_dims=["prompt"]).assign_coords(prompt=["a", "b"])
    rng = np.random.default_rng(0)
    y = xr.DataArray(
        rng.standard_normal((3, 1, 2)), dims=["task", "depth", "output"], coords={"depth": [4]}
    )
    upper = xr.DataArray([0.4, 5.0], dims=["case"]) * xr.DataArray(np.ones(2), dims=["input"])
    many = ltv.optimal_inputs(system, y_target=y, upper=upper)
    assert dict(many.u.sizes) == {"prompt": 2, "task": 3, "case": 2, "layer": 4, "input": 2}
    for prompt in range(2):
        for task in range(3):
            for case in range(2):
                one = ltv.optimal_inputs(
                    ltv.system(*(a[prompt] for a in arrays)),
                    y_target=y[task],
                    upper=float(upper[case, 0]),
                )
                member = many.isel(prompt=prompt, task=task, case=case)
                for name in one:
                    np.testing.assert_allclose(member[name], one[name], rtol=1e-6, atol=1e-8)
    assert many.prompt.values.tolist() == ["a", "b"]


def test_labels_of_targets_and_bounds():
    names = {"state": list("pqr"), "state_next": list("pqr"), "output": ["t", "h"]}
    system = ltv.system(*random_arrays(2, n_layers=6)).assign_coords(input=["a", "b"], **names)
    y = np.full((7, 2), np.nan)
    y[3, 1], y[6] = 1.0, [0.5, -0.5]
    right = ltv.optimal_inputs(
        system, x0=[1.0, 2.0, 3.0], y_target=y, x_final=[np.nan, np.nan, 1.0], upper=[0.8, np.inf]
    )
    some = xr.DataArray(
        [[-0.5, 0.5], [1.0, np.nan]],
        dims=["depth", "output"],
        coords={"depth": [6, 3], "output": ["h", "t"]},
    )
    turned = ltv.optimal_inputs(
        system,
        x0=xr.DataArray([3.0, 2.0, 1.0], dims=["state"], coords={"state": list("rqp")}),
        y_target=some,
        x_final=xr.DataArray([1.0, np.nan, np.nan], dims=["state"], coords={"state": list("rqp")}),
        upper=xr.DataArray([np.inf, 0.8], dims=["input"], coords={"input": ["b", "a"]}),
    )
    xr.testing.assert_allclose(turned, right, rtol=1e-9)
    assert right.x.state.values.tolist() == list("pqr")
    assert right.u.input.values.tolist() == ["a", "b"]
    one = ltv.optimal_inputs(system, y_target=some.sel(output=["h"]))
    assert int(one.target_rank) == 2
    with pytest.raises(ValueError, match="`y_target` must have labels of the system along 'depth'"):
        ltv.optimal_inputs(system, y_target=some.assign_coords(depth=[6, 9]))


def test_varying_state_sizes():
    rng = np.random.default_rng(0)
    order = [2, 3, 1, 2]
    A = [rng.standard_normal((order[k + 1], order[k])) for k in range(3)]
    B = [rng.standard_normal((order[k + 1], 1)) for k in range(3)]
    C = [rng.standard_normal((1, n)) for n in order]
    plan = ltv.optimal_inputs(ltv.system(A, B, C), x0=[1.0, 2.0], x_final=[0.5, -1.0])
    np.testing.assert_allclose(plan.x.values[-1], [0.5, -1.0, 0.0], atol=1e-10)
    assert not plan.x_multipliers.values[2:].any()


def test_what_no_input_reaches_is_refused():
    system = ltv.constant(np.diag([0.9, 0.5]), [[1.0], [0.0]], np.eye(2), horizon=5)
    with pytest.raises(np.linalg.LinAlgError, match=r"must be reachable; got .*\(rank 1 of 2 targ"):
        ltv.optimal_inputs(system, x_final=[1.0, 1.0])
    message = r"`lower` and `upper` must let .*; got none: the nearest .* residual of 8\.2e-01"
    with pytest.raises(np.linalg.LinAlgError, match=message):
        ltv.optimal_inputs(system, x_final=[10.0, np.nan], upper=0.44, lower=-0.44)
    one = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=1)  # the target leaves no choice
    with pytest.raises(np.linalg.LinAlgError, match=r"got none: the nearest .* of 5\.0e-01"):
        ltv.optimal_inputs(one, x_final=[1.0], upper=0.5)
    batch = xr.DataArray([1.0, 10.0], dims=["task"]) * xr.DataArray(
        [[1.0, np.nan]], dims=["depth", "output"], coords={"depth": [5]}
    )
    with pytest.raises(np.linalg.LinAlgError, match=r"got none for member \(1,\): the nearest"):
        ltv.optimal_inputs(system, y_target=batch, upper=0.44)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x0": [1.0]}, "`x0` must be a state of size 3"),
        ({"x_final": [1.0]}, "`x_final` must be a state of size 3"),
        ({"x_final": [1.0, np.inf, 0.0]}, "`x_final` must be finite"),
        ({"y_target": [1.0, 2.0]}, r"`y_target` must have dims \{'depth': 5, 'output': 2\}"),
        ({"y_target": xr.DataArray([[1.0, 2.0]], dims=["depth", "output"])}, "must have depth=5"),
        ({"y_target": np.full((5, 2), np.inf)}, "`y_target` must be finite"),
        ({"lower": 1.0, "upper": 0.0}, "`lower` must be at most `upper`"),
        ({"lower": np.nan}, "`lower` must be finite"),
        ({"upper": -np.inf}, "`upper` must be finite"),
        ({"upper": [1.0, 2.0, 3.0]}, r"`upper` must have dims \{'input': 2\} or"),
        ({"Q": -np.eye(3)}, "`Q` must be positive semidefinite"),
        ({"rtol": 2.0}, "`rtol` must be between 0 and 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ltv.optimal_inputs(ltv.system(*random_arrays(0)), **arguments)


def test_members_with_targets_at_other_places_are_refused():
    y = xr.DataArray(np.ones((2, 1, 2)), dims=["task", "depth", "output"], coords={"depth": [4]})
    y[0, 0, 1] = np.nan
    with pytest.raises(ValueError, match="`y_target` must be NaN at the same places in every mem"):
        ltv.optimal_inputs(ltv.system(*random_arrays(0)), y_target=y)


def test_inputs_that_cost_nothing_are_refused():
    with pytest.raises(np.linalg.LinAlgError, match=r"`R` must leave R \+ B' P B .* at layer 3"):
        ltv.optimal_inputs(ltv.system(*random_arrays(0)), R=np.zeros((2, 2)))


def fixed_case():
    """Inputs of which seven have two equal bounds: the columns of the solver are dependent."""
    system, _, (Q, R, last), x0, y_target, lower, upper = bounded_case(144, 6)
    about = {"x0": x0, "Q": Q, "R": R, "terminal": last, "y_target": y_target}
    fixed = np.random.default_rng(144).random(lower.shape) < 0.3
    best = ltv.optimal_inputs(system, lower=lower, upper=upper, **about)
    bounds = [np.where(fixed, best.u.values, side) for side in (lower, upper)]
    return system, about | dict(zip(("lower", "upper"), bounds, strict=True)), best, fixed


def test_inputs_that_are_fixed_at_their_best_values_change_nothing():
    system, about, best, fixed = fixed_case()
    plan = ltv.optimal_inputs(system, **about)
    np.testing.assert_allclose(plan.u, best.u, atol=1e-9)
    np.testing.assert_allclose(plan.cost, best.cost, rtol=1e-10)
    assert fixed.sum() == 7


def test_another_solver_has_the_last_word(monkeypatch):
    system, about, best, _ = fixed_case()

    def gives_up(*_, **__):
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr(scipy.optimize, "nnls", gives_up)
    np.testing.assert_allclose(ltv.optimal_inputs(system, **about).u, best.u, atol=1e-9)


def test_what_is_not_solved_to_rounding_is_refused(monkeypatch):
    system, about, _, _ = fixed_case()
    monkeypatch.setattr(quadratic_program, "_non_negative", lambda stack, _: 0.0 * stack[0])
    with pytest.raises(np.linalg.LinAlgError, match="must leave a problem that can be solved to r"):
        ltv.optimal_inputs(system, **about)


def test_the_solver_is_imported_when_it_is_needed():
    code = "import sys, depthsys.ltv; print('scipy.optimize' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_targets_that_are_met_without_any_input():
    """A target where nothing is to be done, up to rounding, is reached although no input acts."""
    A, B, C, D = random_arrays(8, n_layers=3)
    x0 = np.array([0.1, 0.2, 0.3])
    D[0] = 0.0
    y = np.full((4, 2), np.nan)
    y[0], y[3] = C[0, :, 0] * 0.1 + C[0, :, 1] * 0.2 + C[0, :, 2] * 0.3, [1.0, 2.0]
    plan = ltv.optimal_inputs(ltv.system(A, B, C, D), x0=x0, y_target=y)
    assert int(plan.target_rank) == 2
    np.testing.assert_allclose(plan.y[[0, 3]], y[[0, 3]], atol=1e-10)
    idle = ltv.constant(np.diag([0.9, 0.7]), [[1.0], [0.0]], np.eye(2), horizon=5)
    moved = ltv.minimum_energy(idle, [1.0, 3.0 * 0.7 * 0.7 * 0.7 * 0.7 * 0.7], x0=[0.5, 3.0])
    assert int(moved.gain_rank) == 1
    with pytest.raises(np.linalg.LinAlgError, match="must be reachable"):
        ltv.minimum_energy(idle, [1.0, 3.0 * 0.7**5 + 1e-9], x0=[0.5, 3.0])


UNSTABLE = {"Q": [[1.0]], "terminal": [[1.0]], "x0": [1.0]}


@pytest.mark.parametrize("horizon", [20, 25, 30, 60])
def test_bounds_alone_leave_an_input_however_far_the_state_runs(horizon):
    """x grows by 2 per layer and u can take off less than it gains: the bound is best always."""
    system = ltv.constant([[2.0]], [[1.0]], [[1.0]], horizon=horizon)
    plan = ltv.optimal_inputs(system, lower=-0.5, upper=0.5, **UNSTABLE)
    np.testing.assert_allclose(plan.u, -0.5, rtol=1e-7)
    x = 0.5 + 0.5 * 2.0 ** np.arange(horizon + 1)
    np.testing.assert_allclose(plan.x.values.ravel(), x, rtol=1e-7)
    np.testing.assert_allclose(plan.cost, (x**2).sum() + 0.25 * horizon, rtol=1e-7)
    assert float(plan.stationarity) < 1e-7
    assert float(plan.bound_violation) < 1e-7
    slope = np.array([2 * (x[k + 1 :] * 2.0 ** np.arange(horizon - k)).sum() for k in range(9)])
    np.testing.assert_allclose(plan.lower_multipliers[:9, 0], slope - 1.0, rtol=1e-6)


def test_only_the_members_of_a_batch_that_need_it_are_sought_in_the_inputs():
    system = ltv.constant([[2.0]], [[1.0]], [[1.0]], horizon=40)
    upper = xr.DataArray([0.5, 1e6], dims=["case"]) * xr.DataArray([1.0], dims=["input"])
    both = ltv.optimal_inputs(system, lower=-upper, upper=upper, **UNSTABLE)
    np.testing.assert_allclose(both.u[0], -0.5)
    np.testing.assert_allclose(both.u[1], ltv.optimal_inputs(system, **UNSTABLE).u, rtol=1e-9)
    assert not both.lower_multipliers[1].any()


def test_a_box_of_the_inputs_against_the_dual_problem():
    """The same least distance, sought among the inputs and among the multipliers."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        T = rng.standard_normal((6, 6)) + 3 * np.eye(6)
        low = rng.standard_normal(6)
        high = low + np.where(rng.random(6) < 0.2, 0.0, rng.random(6))
        high[0] = np.inf
        kept = np.isfinite(high)
        lines, least = np.vstack([T, -T[kept]]), np.concatenate([low, -high[kept]])
        dual = quadratic_program.least_distance(np.zeros((0, 6)), np.zeros(6), lines, least, 1e-10)
        found, v = quadratic_program.least_in_box(np.linalg.inv(T), low, high)
        np.testing.assert_allclose(found.w, dual.w, atol=1e-9)
        np.testing.assert_allclose(v, T @ dual.w, atol=1e-9)
        assert found.stationarity < 1e-9
        net = [m[:6] - np.r_[0.0, m[6:]] for m in (found.unequal, dual.unequal)]
        np.testing.assert_allclose(*net, atol=1e-8)


def test_what_costs_little_beside_the_rest_is_still_best():
    inverse = np.diag([1e12, 1.0])
    inverse[1, 0] = 2.0
    found, v = quadratic_program.least_in_box(inverse, np.array([1.0, -5.0]), np.array([2.0, 5.0]))
    np.testing.assert_allclose(v, [1.0, -2.0])
    assert found.stationarity < 1e-15


@pytest.mark.parametrize("weak", [1e-3, 1e-5, 1e-7, 1e-9])
def test_long_inputs_are_found(weak):
    """The third input has to undo the first alone, and hardly acts."""
    system = ltv.constant([[1.0]], [[1.0, -1.0, weak]], [[1.0]], horizon=1)
    inf = np.inf
    plan = ltv.optimal_inputs(system, x_final=[0.0], lower=[1, -inf, -inf], upper=[inf, 0, inf])
    np.testing.assert_allclose(plan.u[0], [1.0, 0.0, -1 / weak], rtol=1e-6, atol=1e-9)


def test_nothing_is_infeasible_that_is_only_hard():
    """Inputs within the bounds reach the target; which of them is best has no digit left."""
    system = ltv.constant([[2.0]], [[1.0]], [[1.0]], horizon=60)
    with pytest.raises(np.linalg.LinAlgError, match="a problem that can be solved to rounding"):
        ltv.optimal_inputs(
            system, x_final=[2.0**59], lower=-0.5, upper=0.5, **UNSTABLE | {"R": [[1e-3]]}
        )


def test_a_target_of_zero_out_of_reach_is_told_in_its_own_unit():
    system = ltv.constant([[1.0]], [[1.0]], [[1.0]], horizon=3)
    message = r"got none: the nearest one has a residual of 8\.7e-01"
    with pytest.raises(np.linalg.LinAlgError, match=message):
        ltv.optimal_inputs(system, x0=[0.0], x_final=[0.0], lower=0.5)


def test_the_residual_is_that_of_the_states_and_outputs_returned():
    system = ltv.constant([[2.0]], [[1.0]], [[1.0]], horizon=60)
    plan = ltv.optimal_inputs(system, x0=[0.3], x_final=[0.0])
    run = ltv.simulate(system, plan.u, [0.3])
    np.testing.assert_array_equal(plan.x, run.x)
    assert abs(float(run.x[-1, 0])) > 1.0  # rounding of u, doubled sixty times
    assert float(plan.residual) > 0.1
    assert plan.attrs["certified"].startswith("not certified: rounding on the way leaves the targ")
    short = ltv.optimal_inputs(system.isel(layer=slice(10), depth=slice(11)), x0=[0.3], x_final=[0])
    assert 0 <= float(short.residual) < 1e-9
    assert short.attrs["certified"] == "yes"


def test_the_residual_of_outputs_along_the_way_and_in_a_batch():
    system = ltv.constant([[2.0]], [[1.0]], [[3.0]], [[1.0]], horizon=60)
    y = np.full((61, 1), np.nan)
    y[59] = 0.0
    start = xr.DataArray([[0.0], [0.3]], dims=["start", "state"])
    plan = ltv.optimal_inputs(system, x0=start, y_target=y)
    assert float(plan.residual[0]) == 0.0
    off = abs(float(plan.y[1, 59, 0]))
    terms = 3 * abs(float(plan.x[1, 59, 0])) + abs(float(plan.u[1, 59, 0]))
    np.testing.assert_allclose(plan.residual[1], off / terms, rtol=1e-12)
    met = ltv.optimal_inputs(system, x0=start * 0, x_final=[1.0])
    assert met.attrs["certified"] == "yes"
    missed = ltv.optimal_inputs(system, x0=start, x_final=[0.0])
    assert missed.attrs["certified"].startswith("not certified in 1 of 2 cases: rounding on the")


def test_a_target_that_only_rounding_reaches_is_refused():
    """0.1 + 0.2 - 0.3 is not zero in doubles, and no input acts on that output."""
    system = ltv.constant(
        np.eye(3), [[0.1], [0.2], [0.3]], [[1.0, 1.0, -1.0]], D=np.zeros((1, 1)), horizon=1
    )
    with pytest.raises(np.linalg.LinAlgError, match=r"must be reachable; got .*\(rank 0 of 1 targ"):
        ltv.optimal_inputs(system, y_target=[[np.nan], [1.0]])


@pytest.mark.parametrize("size", [1e160, 1e-150])
def test_inputs_whose_squares_overflow(size):
    system = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=3)
    other = system.assign(B=system.B * size)
    for call in (
        lambda s: ltv.optimal_inputs(s, x_final=[1.0]),
        lambda s: ltv.minimum_energy(s, [1.0]),
    ):
        np.testing.assert_allclose(call(other).u * size, call(system).u, rtol=1e-12)
    law = [ltv.lqr(s, [[1.0]], [[r]], [[1.0]]).K for s, r in ((system, 0.0), (other, 0.0))]
    np.testing.assert_allclose(law[1] * size, law[0], rtol=1e-12)
