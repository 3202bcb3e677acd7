"""Cross terms, singular input costs, targets, drifts, costs of outputs and of input rates."""

import control
import numpy as np
import pytest
import scipy.linalg
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from depthsys import ltv
from tests.ltv.test_lqr import costs, ragged, stacked_states, state
from tests.ltv.test_system import random_arrays


def joint_costs(rng, L, n, m):
    """Q, R, N (layer) of semidefinite [Q N; N' R] of rank n + m, and a terminal cost."""
    F = rng.standard_normal((L, n + m, n + m))
    J = F.swapaxes(1, 2) @ F + 0.05 * np.eye(n + m)
    t = rng.standard_normal((n, n))
    return J[:, :n, :n], J[:, n:, n:], J[:, :n, n:], t @ t.T


def stacked_problem(A, B, Q, R, N, last, x0, *, x_target, u_target, drift):
    """The best inputs (layer, input) and their cost: one least-squares cost over everything.

    All states x_0..x_L as one affine function of all inputs, and the gradient set to zero.
    """
    L, n, m = len(A), len(x0), B[0].shape[1]
    _, gamma = stacked_states(A, B)
    x_free, x = [], x0
    for layer in range(L):
        x = A[layer] @ x + drift[layer]
        x_free.append(x)
    free = np.concatenate([x0, *x_free]) - np.concatenate(x_target)
    E = np.vstack([np.zeros((n, L * m)), gamma])
    W = scipy.linalg.block_diag(*Q, last)
    big_R = scipy.linalg.block_diag(*R)
    big_N = np.vstack([scipy.linalg.block_diag(*N), np.zeros((n, L * m))])
    shift = np.concatenate(u_target)
    # cost(u) = (Eu + free)' W (Eu + free) + (u - s)' R (u - s) + 2 (Eu + free)' N (u - s)
    hessian = E.T @ W @ E + big_R + E.T @ big_N + big_N.T @ E
    gradient = E.T @ W @ free - big_R @ shift + big_N.T @ free - E.T @ big_N @ shift
    u = np.linalg.solve(hessian, -gradient)
    x, v = E @ u + free, u - shift
    return u.reshape(L, m), x @ W @ x + v @ big_R @ v + 2 * x @ big_N @ v


def run_law(A, B, law, drift, x):
    inputs = []
    for layer in range(len(A)):
        u = -law.K.values[layer] @ x
        if "feedforward" in law:
            u = u + law.feedforward.values[layer]
        inputs.append(u)
        x = A[layer] @ x + B[layer] @ u + drift[layer]
    return np.array(inputs)


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
def test_targets_drifts_and_cross_terms_against_the_stacked_problem(seed, L, n, m):
    A, B, C, D = random_arrays(seed, L, n, m)
    rng = np.random.default_rng(seed)
    Q, R, N, last = joint_costs(rng, L, n, m)
    about = {
        "x_target": rng.standard_normal((L + 1, n)),
        "u_target": rng.standard_normal((L, m)),
        "drift": rng.standard_normal((L, n)),
    }
    x0 = rng.standard_normal(n)
    law = ltv.lqr(ltv.system(A, B, C, D), Q, R, last, N=N, **about)
    u, cost = stacked_problem(A, B, Q, R, N, last, x0, **about)
    got = run_law(A, B, law, about["drift"], x0)
    np.testing.assert_allclose(got, u, rtol=1e-6, atol=1e-7 * (1 + np.abs(u).max()))
    value = x0 @ law.P.values[0] @ x0 + 2 * law.p.values[0] @ x0 + float(law.offset[0])
    np.testing.assert_allclose(value, cost, rtol=1e-7)
    # what is left to pay at the end
    off = x0 - about["x_target"][-1]
    end = x0 @ law.P.values[-1] @ x0 + 2 * law.p.values[-1] @ x0 + float(law.offset[-1])
    np.testing.assert_allclose(end, off @ last @ off, rtol=1e-9)


def test_without_targets_there_is_no_linear_part():
    law = ltv.lqr(ltv.system(*random_arrays(0)), np.eye(3), np.eye(2))
    assert set(law) == {"K", "P"}
    assert law.attrs == {"method": "lqr", "rtol": 1e-10}


def test_constant_targets_stand_for_every_depth():
    A, B, C, _ = random_arrays(1)
    system, rng = ltv.system(A, B, C), np.random.default_rng(0)
    x, u, c = rng.standard_normal(3), rng.standard_normal(2), rng.standard_normal(3)
    one = ltv.lqr(system, np.eye(3), np.eye(2), np.eye(3), x_target=x, u_target=u, drift=c)
    many = ltv.lqr(
        system,
        np.eye(3),
        np.eye(2),
        np.eye(3),
        x_target=np.stack([x] * 5),
        u_target=np.stack([u] * 4),
        drift=np.stack([c] * 4),
    )
    xr.testing.assert_identical(one, many)


def test_a_target_that_a_steady_input_keeps_is_tracked_without_error():
    """drake's use: a reference that satisfies the dynamics costs nothing along the whole way."""
    A, B, C, _ = random_arrays(2)
    rng = np.random.default_rng(0)
    u = rng.standard_normal((4, 2))
    system = ltv.system(A, B, C)
    x = ltv.simulate(system, u, [1.0, 2.0, 3.0]).x.values
    law = ltv.lqr(system, np.eye(3), np.eye(2), np.eye(3), x_target=x, u_target=u)
    loop = ltv.simulate(ltv.closed_loop(system, law.K), law.feedforward, [1.0, 2.0, 3.0])
    np.testing.assert_allclose(loop.x, x, atol=1e-12)
    np.testing.assert_allclose(law.feedforward, u + np.einsum("lmn,ln->lm", law.K, x[:-1]))


def test_a_cross_term_over_a_long_horizon_is_that_of_dlqr():
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((4, 4)), rng.standard_normal((4, 2))
    Q, R, N, _ = (x[0] for x in joint_costs(rng, 1, 4, 2))
    law = ltv.lqr(ltv.constant(A, B, np.eye(4), horizon=120), Q, R, N=N)
    K, S, _ = control.dlqr(A, B, Q, R, N)
    np.testing.assert_allclose(law.K[0], K, rtol=1e-8)
    np.testing.assert_allclose(law.P[0], S, rtol=1e-8)


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 4))
def test_inputs_that_cost_nothing_by_themselves(seed, L, n):
    """R = 0: the last state is brought to its target, if the inputs can move all of it."""
    A, B, C, _ = random_arrays(seed, L, n, m=n)
    rng = np.random.default_rng(seed)
    Q, R = np.eye(n), np.zeros((n, n))
    law = ltv.lqr(ltv.system(A, B, C), Q, R, Q)
    for layer in range(L):  # every next state can be made zero, and so it is
        np.testing.assert_allclose(law.K[layer], np.linalg.solve(B[layer], A[layer]), atol=1e-8)
        np.testing.assert_allclose(law.P[layer], np.eye(n), atol=1e-8)
    # one input: brute force over the stacked problem
    b = B[:, :, :1]
    law = ltv.lqr(ltv.system(A, b, C), Q, [[0.0]], Q)
    x0, nothing = rng.standard_normal(n), np.zeros((L + 1, n))
    _, cost = stacked_problem(
        A,
        b,
        [Q] * L,
        np.zeros((L, 1, 1)),
        np.zeros((L, n, 1)),
        Q,
        x0,
        x_target=nothing,
        u_target=np.zeros((L, 1)),
        drift=nothing[:-1],
    )
    np.testing.assert_allclose(x0 @ law.P.values[0] @ x0, cost, rtol=1e-7)


@pytest.mark.parametrize("unit", [1.0, 1e-7, 1e7])
def test_an_input_that_costs_nothing_ever_is_refused(unit):
    A, B, C, _ = random_arrays(0)
    B = B * [1.0, unit]
    with pytest.raises(np.linalg.LinAlgError, match=r"`R` must leave R \+ B' P B .* at layer 3, "):
        ltv.lqr(ltv.system(A, B, C), np.eye(3), np.diag([1.0, 0.0]))  # x_3 to x_L: no cost of x_L
    law = ltv.lqr(ltv.system(A, B, C), np.eye(3), np.diag([1.0, 0.0]), np.eye(3))
    same = ltv.lqr(ltv.system(A, B / [1, unit], C), np.eye(3), np.diag([1.0, 0.0]), np.eye(3))
    np.testing.assert_allclose(law.K * np.array([[1.0], [unit]]), same.K, rtol=1e-7)
    np.testing.assert_allclose(law.P, same.P, rtol=1e-7)
    twice = np.concatenate([B[..., :1], unit * B[..., :1]], axis=-1)
    with pytest.raises(np.linalg.LinAlgError, match="positive definite; got a singular one at"):
        ltv.lqr(ltv.system(A, twice, C), np.eye(3), np.zeros((2, 2)), np.eye(3))


def test_a_singular_cost_of_a_window_names_the_label_of_its_layer():
    part = ltv.window(ltv.system(*random_arrays(0, n_layers=6)), 2, 5)
    with pytest.raises(np.linalg.LinAlgError, match="at layer 4, where"):
        ltv.lqr(part, np.eye(3), np.zeros((2, 2)))


def test_cheap_inputs_along_one_direction_keep_their_digits():
    """Two parallel inputs share the work by their costs; R + B'PB in one matrix would lose them."""
    R = np.diag([1e-12, 3e-12])
    law = ltv.lqr(ltv.constant([[3.0]], [[1.0, 1.0]], [[1.0]], horizon=3), [[1e8]], R, [[1e8]])
    np.testing.assert_allclose(law.K.values[:, 0] / law.K.values[:, 1], 3.0, rtol=1e-5)
    np.testing.assert_allclose(law.K.values.sum(1), 3.0, rtol=1e-12)


def test_costs_that_are_zero_up_to_rounding():
    """Q - N R^-1 N' of an output cost with a square D is zero; most such were refused."""
    tried = 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        A, B, C, D = (rng.standard_normal((3, 3)) for _ in range(4))
        N, R = C.T @ D, D.T @ D
        system = ltv.constant(A, B, C, D, horizon=6)
        law = ltv.lqr(system, C.T @ C - N @ np.linalg.solve(R, N.T), R)
        if np.linalg.cond(R) > 1e4:  # rounding, then, is no longer small
            continue
        assert abs(law.K).max() < 1e-4
        # with the cross term: the input that makes every output zero, at no cost
        law = ltv.lqr(system, C.T @ C, R, N=N)
        np.testing.assert_allclose(law.K[2], np.linalg.solve(D, C), rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(law.P[:-1], 0.0, atol=1e-16)
        tried += 1
    assert tried > 18


@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_what_is_rounding_does_not_depend_on_units(unit):
    A, B, C, _ = random_arrays(0)
    system = ltv.system(A / unit * unit, B * unit, C / unit)  # states in other units
    tiny = -1e-17 * np.eye(3) / unit**2
    ltv.lqr(system, tiny, np.eye(2))
    with pytest.raises(ValueError, match="`Q` must be positive semidefinite"):
        ltv.lqr(system, 1e10 * tiny, np.eye(2))
    mixed = np.diag(
        [1.0, 1.0, np.clip(unit, 1e-3, 1e3)]
    )  # one state in other units, and a reward on it
    reward = np.linalg.inv(mixed) @ np.diag([1e3, 1.0, -1e-3]) @ np.linalg.inv(mixed)
    with pytest.raises(ValueError, match="`Q` must be positive semidefinite"):
        ltv.lqr(ltv.system(A, mixed @ B, C), reward, np.eye(2))


@pytest.mark.parametrize(
    ("N", "message"),
    [
        (2 * np.ones((3, 2)), r"`N` must keep \[Q N; N' R\] positive semidefinite; got .*-3"),
        (np.ones((2, 3)), r"`N` must have dims \{'state': 3, 'input': 2\} or"),
        (np.full((3, 2), np.nan), "`N` must be finite"),
    ],
)
def test_bad_cross_terms(N, message):
    with pytest.raises(ValueError, match=message):
        ltv.lqr(ltv.system(*random_arrays(0)), np.eye(3), np.eye(2), N=N)


@pytest.mark.parametrize("rtol", [0.0, 1.0, -1e-3])
def test_bad_tolerance(rtol):
    with pytest.raises(ValueError, match="`rtol` must be between 0 and 1"):
        ltv.lqr(ltv.system(*random_arrays(0)), np.eye(3), np.eye(2), rtol=rtol)


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.booleans())
def test_costs_of_outputs_against_costs_written_out(seed, L, with_n):
    n, m, p = 3, 2, 2
    A, B, C, D = random_arrays(seed, L, n, m, p)
    rng = np.random.default_rng(seed)
    Qy, R, Ny, last = joint_costs(rng, L, p, m)
    Ny = Ny if with_n else 0 * Ny
    y_target, u_target = rng.standard_normal((L + 1, p)), rng.standard_normal((L, m))
    drift, x0 = rng.standard_normal((L, n)), rng.standard_normal(n)
    law = ltv.lqry(
        ltv.system(A, B, C, D),
        Qy,
        R,
        last,
        N=Ny if with_n else None,
        y_target=y_target,
        u_target=u_target,
        drift=drift,
    )

    def cost(u):
        total, x = 0.0, x0
        for k in range(L):
            y, v = C[k] @ x + D[k] @ u[k] - y_target[k], u[k] - u_target[k]
            total += y @ Qy[k] @ y + v @ R[k] @ v + 2 * y @ Ny[k] @ v
            x = A[k] @ x + B[k] @ u[k] + drift[k]
        y = C[L] @ x - y_target[L]
        return total + y @ last @ y

    best = run_law(A, B, law, drift, x0)
    value = x0 @ law.P.values[0] @ x0 + 2 * law.p.values[0] @ x0 + float(law.offset[0])
    np.testing.assert_allclose(cost(best), value, rtol=1e-7)
    for _ in range(5):
        other = best + 0.3 * rng.standard_normal(best.shape)
        assert cost(other) > cost(best)


def test_costs_of_outputs_without_targets_and_their_checks():
    A, B, C, D = random_arrays(4)
    system = ltv.system(A, B, C, D)
    law = ltv.lqry(system, np.eye(2), np.eye(2), np.eye(2))
    assert set(law) == {"K", "P"}
    assert law.attrs["method"] == "lqry"
    np.testing.assert_allclose(law.P[-1], C[-1].T @ C[-1], rtol=1e-12)
    with pytest.raises(ValueError, match=r"`Q` must have dims \{'output': 2, 'output_2': 2\}"):
        ltv.lqry(system, np.eye(3), np.eye(2))
    with pytest.raises(ValueError, match="`terminal` must be positive semidefinite"):
        ltv.lqry(system, np.eye(2), np.eye(2), -np.eye(2))


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3), st.integers(1, 2))
def test_the_rate_of_the_input_is_penalised(seed, L, n, m):
    A, B, C, D = random_arrays(seed, L, n, m)
    rng = np.random.default_rng(seed)
    Q, S, last = costs(rng, L, n, m)
    rate = np.diag(rng.uniform(0.5, 2.0, m))
    system = ltv.input_increments(ltv.system(A, B, C, D))
    big_Q = np.stack([scipy.linalg.block_diag(S[k], Q[k]) for k in range(L)])
    N = np.concatenate([S, np.zeros((L, n, m))], axis=1)
    end = scipy.linalg.block_diag(np.zeros((m, m)), last)
    law = ltv.lqr(system, big_Q, S + rate, end, N=N)
    x0, before = rng.standard_normal(n), rng.standard_normal(m)
    z = np.concatenate([before, x0])
    d = run_law(system.A.values, system.B.values, law, np.zeros((L, n + m)), z)
    u = before + np.cumsum(d, axis=0)
    # brute force: the same cost as a function of the inputs themselves, dense
    phi, gamma = stacked_states(A, B)
    W, big_S = scipy.linalg.block_diag(*Q[1:], last), scipy.linalg.block_diag(*S)
    change = np.eye(L * m) - np.eye(L * m, k=-m)
    big_rate = np.kron(np.eye(L), rate)
    offset = np.concatenate([before, np.zeros((L - 1) * m)])
    hessian = gamma.T @ W @ gamma + big_S + change.T @ big_rate @ change
    gradient = gamma.T @ W @ phi @ x0 - change.T @ big_rate @ offset
    expected = np.linalg.solve(hessian, -gradient)
    np.testing.assert_allclose(u.ravel(), expected, rtol=1e-6, atol=1e-7 * abs(expected).max())


def test_increments_of_the_input_drive_the_same_system():
    A, B, C, D = random_arrays(3, batch=(2,))
    system = ltv.system(A, B, C, D, batch_dims=["prompt"]).assign_coords(prompt=["a", "b"])
    names = {"state": ["p", "v", "w"], "state_next": ["p", "v", "w"], "input": ["f", "g"]}
    system = system.assign_coords(names)
    u = np.random.default_rng(0).standard_normal((4, 2))
    steps = np.diff(u, axis=0, prepend=0)
    augmented = ltv.input_increments(system)
    got, expected = ltv.simulate(augmented, steps), ltv.simulate(system, u)
    np.testing.assert_allclose(got.y, expected.y, rtol=1e-10)
    np.testing.assert_allclose(got.x[..., 2:], expected.x, rtol=1e-10)
    assert augmented.state.values.tolist() == ["previous f", "previous g", "p", "v", "w"]
    assert augmented.prompt.values.tolist() == ["a", "b"]
    assert augmented.input.values.tolist() == ["f", "g"]
    assert augmented.order.values.tolist() == [5] * 5
    varying = ltv.system(*ragged(np.random.default_rng(1), [2, 3, 1, 2], m=1))
    got = ltv.input_increments(varying)
    assert got.order.values.tolist() == [3, 4, 2, 3]
    w = np.array([[1.0], [3.0], [-1.0]])
    np.testing.assert_allclose(
        ltv.simulate(got, np.diff(w, axis=0, prepend=0)).y, ltv.simulate(varying, w).y, rtol=1e-10
    )


def test_batches_of_targets_and_systems():
    arrays = random_arrays(3, batch=(2,))
    system = ltv.system(*arrays, batch_dims=["prompt"])
    rng = np.random.default_rng(0)
    targets = xr.DataArray(rng.standard_normal((3, 5, 3)), dims=["task", "depth", "state"])
    many = ltv.lqr(system, np.eye(3), np.eye(2), np.eye(3), x_target=targets)
    for task in range(3):
        for prompt in range(2):
            one = ltv.lqr(
                ltv.system(*(a[prompt] for a in arrays)),
                np.eye(3),
                np.eye(2),
                np.eye(3),
                x_target=targets[task].values,
            )
            member = many.isel(task=task, prompt=prompt)
            for name in one:
                np.testing.assert_allclose(member[name], one[name], rtol=1e-8, atol=1e-10)


def test_targets_of_another_size_are_refused():
    system = ltv.system(*random_arrays(0))
    with pytest.raises(ValueError, match=r"`x_target` must have dims \{'state': 3\} or"):
        ltv.lqr(system, np.eye(3), np.eye(2), x_target=[1.0])
    with pytest.raises(ValueError, match=r"`drift` must have dims \{'state_next': 3\} or"):
        ltv.lqr(system, np.eye(3), np.eye(2), drift=np.ones((5, 3)))
    with pytest.raises(ValueError, match=r"`u_target` must be finite"):
        ltv.lqr(system, np.eye(3), np.eye(2), u_target=state([np.nan, 1]).rename(state="input"))


def test_members_that_are_alike_are_checked_and_costed_like_any_other():
    A, B, C, _ = random_arrays(3)
    two = ltv.system(*(np.stack([x, x]) for x in (A, B, C)), batch_dims=["prompt"])
    one = ltv.lqr(ltv.system(A, B, C), np.eye(3), np.eye(2))
    many = ltv.lqr(two, np.eye(3), np.eye(2))
    assert many.K.dims == ("prompt", "layer", "input", "state")
    for i in range(2):
        np.testing.assert_allclose(many.K[i], one.K, rtol=1e-12)
