import sys
from fractions import Fraction

import control
import numpy as np
import pytest
import scipy.linalg
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from depthsys import ltv
from tests.ltv.test_system import random_arrays


def costs(rng, L, n, m):
    """Q (layer), semidefinite and of rank n - 1 at most; R (layer); the terminal cost."""
    q = rng.standard_normal((L, n, max(n - 1, 1)))
    r = rng.standard_normal((L, m, m))
    t = rng.standard_normal((n, n))
    return q @ q.swapaxes(1, 2), r @ r.swapaxes(1, 2) + 0.1 * np.eye(m), t @ t.T


def stacked_states(A, B):
    """x_1..x_L below each other as Phi x_0 + Gamma u, dense."""
    L, m = len(A), B[0].shape[1]
    phi, gamma = [], []
    x, g = np.eye(A[0].shape[1]), np.zeros((A[0].shape[1], L * m))
    for layer in range(L):
        x, g = A[layer] @ x, A[layer] @ g
        g[:, layer * m : (layer + 1) * m] = B[layer]
        phi.append(x)
        gamma.append(g.copy())
    return np.vstack(phi), np.vstack(gamma)


def quadratic_program(A, B, Q, R, last, x0):
    """The best inputs (layer, input) and their cost, from one set of normal equations."""
    phi, gamma = stacked_states(A, B)
    weight = scipy.linalg.block_diag(*Q[1:], last)
    hessian = gamma.T @ weight @ gamma + scipy.linalg.block_diag(*R)
    u = np.linalg.solve(hessian, -gamma.T @ weight @ phi @ x0)
    x = phi @ x0 + gamma @ u
    cost = x0 @ Q[0] @ x0 + x @ weight @ x + u @ scipy.linalg.block_diag(*R) @ u
    return u.reshape(len(A), -1), cost


def run_cost(A, B, Q, R, last, x0, u):
    total, x = 0.0, x0
    for layer in range(len(A)):
        total += x @ Q[layer] @ x + u[layer] @ R[layer] @ u[layer]
        x = A[layer] @ x + B[layer] @ u[layer]
    return total + x @ last @ x


def state(x):
    return xr.DataArray(np.asarray(x, dtype=float), dims=["state"])


def closed_loop_inputs(system, K, x0):
    """The inputs -K_l x_l of the simulated closed loop."""
    loop = ltv.closed_loop(system, K)
    idle = xr.DataArray(np.zeros(system.B.shape[-3::2]), dims=["layer", "input"])
    x = ltv.simulate(loop, idle, state(x0)).x.values
    return -np.einsum("lms,ls->lm", K.values, x[:-1])


@settings(derandomize=True, max_examples=20, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
)
def test_against_one_quadratic_program(seed, L, n, m, ends):
    A, B, C, D = random_arrays(seed, L, n, m)
    rng = np.random.default_rng(seed)
    Q, R, last = costs(rng, L, n, m)
    last = last if ends else np.zeros((n, n))
    system = ltv.system(A, B, C, D)
    law = ltv.lqr(system, Q, R, last) if ends else ltv.lqr(system, Q, R)
    x0 = rng.standard_normal(n)
    u, cost = quadratic_program(A, B, Q, R, last, x0)
    got = closed_loop_inputs(system, law.K, x0)
    np.testing.assert_allclose(got, u, rtol=1e-6, atol=1e-7 * (1 + np.abs(u).max()))
    np.testing.assert_allclose(x0 @ law.P.values[0] @ x0, cost, rtol=1e-8)
    np.testing.assert_allclose(run_cost(A, B, Q, R, last, x0, got), cost, rtol=1e-8)
    # the cost-to-go from any depth is that of the rest of the horizon
    k = int(rng.integers(L))
    _, rest = quadratic_program(A[k:], B[k:], Q[k:], R[k:], last, x0)
    np.testing.assert_allclose(x0 @ law.P.values[k] @ x0, rest, rtol=1e-8)
    np.testing.assert_array_equal(law.P.values[L], last)


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(-1, 1).filter(lambda s: abs(s) > 1e-2))
def test_any_other_input_costs_more(seed, L, size):
    A, B, C, _ = random_arrays(seed, L, n=3, m=2)
    rng = np.random.default_rng(seed)
    Q, R, last = costs(rng, L, 3, 2)
    system = ltv.system(A, B, C)
    law = ltv.lqr(system, Q, R, last)
    x0 = rng.standard_normal(3)
    best = closed_loop_inputs(system, law.K, x0)
    least = x0 @ law.P.values[0] @ x0
    for _ in range(5):
        other = best + size * rng.standard_normal(best.shape)
        assert run_cost(A, B, Q, R, last, x0, other) > least


def test_long_constant_horizon_is_dlqr_also_for_unstable_systems():
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((4, 4)), rng.standard_normal((4, 2))
    assert np.abs(np.linalg.eigvals(A)).max() > 1.2
    Q, R = np.diag([1.0, 2.0, 0.0, 3.0]), np.array([[2.0, 0.5], [0.5, 1.0]])
    system = ltv.constant(A, B, np.eye(4), horizon=120)
    law = ltv.lqr(system, Q, R)
    K, S, poles = control.dlqr(A, B, Q, R)
    np.testing.assert_allclose(law.K[0], K, rtol=1e-8)
    np.testing.assert_allclose(law.P[0], S, rtol=1e-8)
    are = scipy.linalg.solve_discrete_are(A, B, Q, R)
    np.testing.assert_allclose(law.P[0], are, rtol=1e-8)
    loop = ltv.closed_loop(system, law.K).A.values[0]
    np.testing.assert_allclose(
        np.sort_complex(np.linalg.eigvals(loop)), np.sort_complex(poles), rtol=1e-6
    )
    assert np.abs(poles).max() < 1
    # the solution of the Riccati equation is the fixed point of the recursion
    short = ltv.lqr(ltv.constant(A, B, np.eye(4), horizon=3), Q, R, are)
    np.testing.assert_allclose(short.P, np.stack([are] * 4), rtol=1e-8)
    np.testing.assert_allclose(short.K, np.stack([K] * 3), rtol=1e-8)


def test_cost_to_go_stays_symmetric_and_semidefinite():
    A, B, C, _ = random_arrays(5, n_layers=40, n=6, m=1)
    Q = np.zeros((6, 6))
    Q[0, 0] = 1.0
    law = ltv.lqr(ltv.system(A, B, C), Q, [[1e-6]], 1e6 * Q)
    P = law.P.values
    np.testing.assert_array_equal(P, P.swapaxes(1, 2))
    least = np.linalg.eigvalsh(P)
    assert (least[:, 0] >= -1e-13 * least[:, -1]).all()
    assert law.P.dims == ("depth", "state", "state_2")
    assert law.K.dims == ("layer", "input", "state")


def test_cheap_control_keeps_its_digits():
    """A' P A - A' P B K would cancel 16 digits here; exact fractions are the oracle."""
    a, r, last = 3, Fraction(1, 10**8), Fraction(10**8)
    law = ltv.lqr(ltv.constant([[3.0]], [[1.0]], [[1.0]], horizon=3), [[0.0]], [[1e-8]], [[1e8]])
    p = [last]
    for _ in range(3):
        p.insert(0, a**2 * p[0] * r / (r + p[0]))
    np.testing.assert_allclose(law.P.values.ravel(), [float(x) for x in p], rtol=1e-7)


def test_dims_count_not_their_order():
    L = 3
    A, B, C, _ = random_arrays(2, L)
    Q, R, last = costs(np.random.default_rng(0), L, 3, 2)
    system = ltv.system(A, B, C)
    one = ltv.lqr(system, Q, R, last)
    other = ltv.lqr(
        system,
        xr.DataArray(np.moveaxis(Q, 0, -1), dims=["state", "state_2", "layer"]),
        xr.DataArray(np.moveaxis(R, 0, 1), dims=["input", "layer", "input_2"]),
        xr.DataArray(last, dims=["state_2", "state"]),
    )
    xr.testing.assert_identical(one, other)
    constant = ltv.lqr(system, Q[0], R[0], last)
    repeated = ltv.lqr(system, np.stack([Q[0]] * L), np.stack([R[0]] * L), last)
    xr.testing.assert_identical(constant, repeated)


def test_batch_dims_of_system_and_costs():
    arrays = random_arrays(3, batch=(2,))
    rng = np.random.default_rng(0)
    per_task = [costs(rng, 4, 3, 2) for _ in range(3)]
    dims = (["task", "layer", "state", "state_2"], ["task", "layer", "input", "input_2"])
    Q = xr.DataArray([c[0] for c in per_task], dims=dims[0])
    R = xr.DataArray([c[1] for c in per_task], dims=dims[1])
    last = xr.DataArray([c[2] for c in per_task], dims=["task", "state", "state_2"])
    system = ltv.system(*arrays, batch_dims=["prompt"])
    many = ltv.lqr(system, Q, R, last)
    x0 = rng.standard_normal(3)
    for task in range(3):
        for prompt in range(2):
            member = many.isel(task=task, prompt=prompt)
            A, B = arrays[0][prompt], arrays[1][prompt]
            _, cost = quadratic_program(A, B, *per_task[task], x0)
            np.testing.assert_allclose(x0 @ member.P.values[0] @ x0, cost, rtol=1e-8)
            one = ltv.lqr(ltv.system(*(a[prompt] for a in arrays)), *per_task[task])
            np.testing.assert_allclose(member.K, one.K, rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(member.P, one.P, rtol=1e-8, atol=1e-10)
    # a batched law closes a loop per member, and of a system without that dim
    loops = ltv.closed_loop(system, many.K)
    at = {"task": 2, "prompt": 1}
    one = ltv.closed_loop(ltv.system(*(a[1] for a in arrays)), many.K.isel(at))
    for name in "ABCD":
        got = loops[name].isel({d: i for d, i in at.items() if d in loops[name].dims})
        np.testing.assert_allclose(got, one[name], rtol=1e-12)


@pytest.mark.parametrize(
    ("which", "L"),
    [
        ("Q", 1),
        ("R", 1),
        ("terminal", 1),
        ("Q", 3),
        ("R", 3),
        ("terminal", 3),
    ],
)
def test_batch_dims_of_one_cost_alone(which, L):
    A, B, C, _ = random_arrays(3, L)
    rng = np.random.default_rng(0)
    base = dict(zip(("Q", "R", "terminal"), costs(rng, L, 3, 2), strict=True))
    base |= {"Q": base["Q"][0], "R": base["R"][0]}
    members = np.stack([base[which], 2 * base[which]])
    dims = ["task", "input", "input_2"] if which == "R" else ["task", "state", "state_2"]
    system = ltv.system(A, B, C)
    many = ltv.lqr(system, **(base | {which: xr.DataArray(members, dims=dims)}))
    for i in range(2):
        one = ltv.lqr(system, **(base | {which: members[i]}))
        for name in "KP":
            np.testing.assert_allclose(many[name].isel(task=i), one[name], rtol=1e-10, atol=1e-12)


def ragged(rng, order, m):
    L = len(order) - 1
    A = [rng.standard_normal((order[k + 1], order[k])) for k in range(L)]
    B = [rng.standard_normal((order[k + 1], m)) for k in range(L)]
    C = [rng.standard_normal((2, n)) for n in order]
    D = [rng.standard_normal((2, m)) for _ in range(L)] + [np.zeros((2, m))]
    return A, B, C, D


def test_state_sizes_that_vary():
    rng = np.random.default_rng(4)
    order = [3, 2, 4, 1]
    A, B, C, D = ragged(rng, order, m=2)
    system = ltv.system(A, B, C, D)
    Q = [c.T @ c for c in C]
    padded = np.zeros((4, 4, 4))
    for k, q in enumerate(Q):
        padded[k, : len(q), : len(q)] = q
    law = ltv.lqr(system, padded[:3], np.eye(2), padded[3])
    x0 = rng.standard_normal(3)
    u, cost = quadratic_program(A, B, Q[:3], [np.eye(2)] * 3, Q[3], x0)
    start = np.pad(x0, (0, 1))
    np.testing.assert_allclose(start @ law.P.values[0] @ start, cost, rtol=1e-9)
    np.testing.assert_allclose(closed_loop_inputs(system, law.K, start), u, rtol=1e-7, atol=1e-9)
    for k, n in enumerate(order[:-1]):
        np.testing.assert_array_equal(law.K.values[k, :, n:], 0)


def feedback_by_hand(A, B, C, D, K, w, x):
    """Outputs and states under u = -K x + w, written out."""
    xs, ys = [x], []
    for layer in range(len(A)):
        u = w[layer] - K[layer] @ x
        ys.append(C[layer] @ x + D[layer] @ u)
        x = A[layer] @ x + B[layer] @ u
        xs.append(x)
    return np.array(xs), np.array([*ys, C[-1] @ x])


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_closed_loop_is_feedback_written_by_hand(seed, L, n, m):
    A, B, C, D = random_arrays(seed, L, n, m)
    rng = np.random.default_rng(seed)
    K, w, x0 = (rng.standard_normal(s) for s in [(L, m, n), (L, m), n])
    law = xr.DataArray(np.moveaxis(K, 0, 2), dims=["input", "state", "layer"])
    system = ltv.system(A, B, C, D, attrs={"model": "none"})
    loop = ltv.closed_loop(system, law)
    got = ltv.simulate(loop, xr.DataArray(w, dims=["layer", "input"]), state(x0))
    xs, ys = feedback_by_hand(A, B, C, D, K, w, x0)
    np.testing.assert_allclose(got.x, xs, rtol=1e-8, atol=1e-9 * np.abs(xs).max())
    np.testing.assert_allclose(got.y, ys, rtol=1e-8, atol=1e-9 * np.abs(ys).max())
    for name in "BD":
        xr.testing.assert_identical(loop[name], system[name])
    np.testing.assert_array_equal(loop.C[-1], C[-1])
    assert loop.attrs == system.attrs
    assert loop.A.dims == system.A.dims
    assert loop.C.dims == system.C.dims


def test_closed_loop_of_varying_sizes_and_of_a_window():
    rng = np.random.default_rng(6)
    A, B, C, D = ragged(rng, [2, 3, 1, 2], m=1)
    system = ltv.system(A, B, C, D)
    part = ltv.window(system, 1, 3)
    K = rng.standard_normal((2, 1, 3))
    K[1, :, 1:] = 0  # one state at depth 2
    law = xr.DataArray(K, dims=["layer", "input", "state"], coords={"layer": [1, 2]})
    loop = ltv.closed_loop(part, law)
    assert loop.layer.values.tolist() == [1, 2]
    assert loop.depth.values.tolist() == [1, 2, 3]
    assert loop.order.values.tolist() == [3, 1, 2]
    w, x0 = rng.standard_normal((2, 1)), rng.standard_normal(3)
    got = ltv.simulate(loop, xr.DataArray(w, dims=["layer", "input"]), state(x0))
    cut = [K[0], K[1, :, :1]]
    D = [*D[1:3], 0 * D[3]]
    x, ys = x0, []
    for layer in range(2):
        u = w[layer] - cut[layer] @ x
        ys.append(C[layer + 1] @ x + D[layer] @ u)
        x = A[layer + 1] @ x + B[layer + 1] @ u
    np.testing.assert_allclose(got.y, [*ys, C[3] @ x], rtol=1e-10)


def test_labels_of_a_window():
    system = ltv.system(*random_arrays(0, n_layers=6))
    law = ltv.lqr(ltv.window(system, 2, 5), np.eye(3), np.eye(2))
    assert law.layer.values.tolist() == [2, 3, 4]
    assert law.depth.values.tolist() == [2, 3, 4, 5]


EYE, I2 = np.eye(3), np.eye(2)
SKEW = np.array([[1.0, 1e-6, 0], [0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (I2, I2),
            r"`Q` must have dims .*'layer': 4, 'state': 3, 'state_2': 3\}; got shape \(2, 2\)",
        ),
        ((np.stack([EYE] * 3), I2), r"`Q` must have dims .*got shape \(3, 3, 3\)"),
        ((EYE, EYE), r"`R` must have dims \{'input': 2, 'input_2': 2\} or"),
        ((EYE, I2, np.stack([EYE] * 4)), r"`terminal` must have dims .*got shape \(4, 3, 3\)"),
        ((xr.DataArray(EYE, dims=["a", "b"]), I2), "`Q` must have dims"),
        ((SKEW, I2), r"`Q` must be symmetric to 1e-10; got a relative asymmetry of 1\.0e-06"),
        ((EYE * np.nan, I2), "`Q` must be finite; got nan or inf"),
        ((np.ones((2, 4, 3, 3)), I2), r"`Q` must have dims .*got shape \(2, 4"),
        ((EYE, I2, SKEW), "`terminal` must be symmetric to 1e-10"),
        (
            (-EYE, I2),
            r"`Q` must be positive semidefinite to 1e-10; got an eigenvalue of -1\.0e\+00",
        ),
        ((EYE, I2, np.diag([1.0, 1.0, -1e-3])), "`terminal` must be positive semidefinite"),
        ((EYE, np.diag([1.0, -1e-3])), "`R` must be positive semidefinite"),
    ],
)
def test_bad_costs(arguments, message):
    with pytest.raises(ValueError, match=message):
        ltv.lqr(ltv.system(*random_arrays(0)), *arguments)


def test_infinite_cost_is_refused():
    with pytest.raises(ValueError, match="`Q` must be finite; got nan or inf"):
        ltv.lqr(ltv.system(*random_arrays(0)), np.diag([np.inf, 1.0, 1.0]), I2)


WRONG = r"`K` must have dims \{'layer': 4, 'input': 2, 'state': 3\}; got "
LABELLED = xr.DataArray(
    np.ones((4, 2, 3)), dims=["layer", "input", "state"], coords={"layer": range(2, 6)}
)


@pytest.mark.parametrize(
    ("K", "message"),
    [
        (xr.DataArray(np.ones((4, 3, 2)), dims=["layer", "input", "state"]), WRONG),
        (xr.DataArray(np.ones((3, 2, 3)), dims=["layer", "input", "state"]), WRONG),
        (xr.DataArray(np.ones((2, 3)), dims=["input", "state"]), WRONG),
        (np.ones((4, 2)), WRONG + r"shape \(4, 2\)"),
        (LABELLED * np.nan, "`K` must be finite"),
        (LABELLED, r"`K` must have the labels of the system along 'layer', \[0 1 2 3\]; got \[2 3"),
    ],
)
def test_bad_feedback(K, message):
    with pytest.raises(ValueError, match=message):
        ltv.closed_loop(ltv.system(*random_arrays(0)), K)


def test_complex_costs_and_feedback_are_refused():
    system = ltv.system(*random_arrays(0))
    with pytest.raises(TypeError, match="`Q` must be real"):
        ltv.lqr(system, 1j * EYE, I2)
    with pytest.raises(TypeError, match="`K` must be real"):
        ltv.closed_loop(system, 1j * np.ones((4, 2, 3)))


@pytest.mark.parametrize("spoil", [lambda q: -50 * q, lambda q: q + np.eye(3, k=1)])
def test_a_bad_cost_is_found_beside_a_huge_one(spoil):
    Q = np.stack([1e12 * EYE, EYE, EYE, EYE])
    Q[2] = spoil(Q[2])
    with pytest.raises(ValueError, match="`Q` must be"):
        ltv.lqr(ltv.system(*random_arrays(0)), Q, I2)


def test_states_that_do_not_exist_cost_nothing():
    sizes = [1, 3, 2]
    rng = np.random.default_rng(0)
    system = ltv.system(
        [rng.standard_normal((sizes[k + 1], sizes[k])) for k in range(2)],
        [rng.standard_normal((sizes[k + 1], 1)) for k in range(2)],
        [rng.standard_normal((1, n)) for n in sizes],
    )
    P = ltv.lqr(system, EYE, [[1.0]], EYE).P.values
    for k, n in enumerate(sizes):
        assert not P[k, n:].any()
        assert not P[k, :, n:].any()
        assert np.linalg.eigvalsh(P[k, :n, :n]).min() > 0
    labelled = xr.DataArray(np.stack([EYE] * 2), dims=["layer", "state", "state_2"])
    with pytest.raises(ValueError, match="`Q` must have the labels of the system along 'layer'"):
        ltv.lqr(system, labelled.assign_coords(layer=[5, 6]), [[1.0]])


def test_products_and_factors_give_the_same_law(monkeypatch):
    """Where Q keeps P well conditioned products are taken; a QR per layer gives the same."""
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((5, 12, 6, 6)) / 2, rng.standard_normal((5, 12, 6, 2))
    system = ltv.system(A, B, np.zeros((5, 13, 1, 6)), batch_dims=["prompt"])
    costs = [np.diag(10.0 ** rng.uniform(-8, 8, n)) for n in (6, 2, 6)]
    for Q, R, end in (
        costs,
        (np.eye(6), np.zeros((2, 2)), np.eye(6)),
        (np.eye(6), np.eye(2), None),
    ):
        quick = ltv.lqr(system, Q, R, end)
        with monkeypatch.context() as m:
            m.setattr(sys.modules["depthsys.ltv.lqr"], "by_products", lambda *_: None)
            whole = ltv.lqr(system, Q, R, end)
        np.testing.assert_allclose(quick.K, whole.K, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(quick.P, whole.P, rtol=1e-9)


@pytest.mark.parametrize(
    ("Q", "R", "size"), [(np.diag([1.0, 0.0]), 1.0, 1.0), (np.eye(2), 0.0, 1e-160)]
)
def test_products_are_not_taken_where_they_lose_digits(Q, R, size):
    from depthsys.ltv.riccati import by_products

    A, B = [np.array([[0.5, 1.0], [0.0, 0.9]])], [size * np.array([[0.0], [1.0]])]
    least = np.array([np.linalg.eigvalsh(Q)[0]])
    R = np.array([[[R]]])
    assert by_products(A, B, Q[None], R, least, np.array(1.0), np.eye(2)) is None
    good = by_products(A, B, np.eye(2)[None], R + 1.0, np.array([1.0]), np.array(1.0), np.eye(2))
    assert good is not None
