import sys

import control
import mpmath
import numpy as np
import pytest
import scipy.linalg
import xarray as xr

from depthsys import ltv
from depthsys.ltv.gramians import compressed
from tests.ltv.test_system import random_arrays

EPS = np.finfo(float).eps


def scaled(A, radius):
    return A * radius / np.abs(np.linalg.eigvals(A)).max()


def random_lti(seed, n, m, p, radius):
    rng = np.random.default_rng(seed)
    A = scaled(rng.standard_normal((n, n)), radius)
    shapes = (n, m), (p, n), (p, m)
    return control.ss(A, *(rng.standard_normal(shape) for shape in shapes), 1)


def jordan(n, eigenvalue, coupling):
    """Non-normal: the norm of A^j grows far above 1 before it decays."""
    rng = np.random.default_rng(n)
    T = np.linalg.qr(rng.standard_normal((n, n)))[0]
    A = T @ (eigenvalue * np.eye(n) + coupling * np.eye(n, k=1)) @ T.T
    return control.ss(
        A, rng.standard_normal((n, 1)), rng.standard_normal((2, n)), np.ones((2, 1)), 1
    )


def deficient(which):
    """B or C of rank 1 written with three columns or rows, one of them zero."""
    lti = random_lti(11, 5, 3, 3, 0.8)
    B, C = lti.B.copy(), lti.C.copy()
    if which == "B":
        B[:, 1], B[:, 2] = 2 * B[:, 0], 0
    else:
        C[1], C[2] = 2 * C[0], 0
    return control.ss(lti.A, B, C, lti.D, 1)


MINIMAL = {
    "order 1": lambda: random_lti(0, 1, 1, 1, 0.5),
    "order 1, slow, wide": lambda: random_lti(1, 1, 3, 2, 0.999),
    "more inputs than states": lambda: random_lti(2, 3, 5, 2, 0.7),
    "more outputs than states": lambda: random_lti(3, 3, 1, 6, 0.7),
    "medium": lambda: random_lti(4, 8, 2, 3, 0.9),
    "slow decay": lambda: random_lti(5, 8, 2, 2, 0.999),
    "twenty states": lambda: random_lti(6, 20, 2, 2, 0.95),
    "non-normal": lambda: jordan(5, 0.5, 2.0),
    "B of rank 1": lambda: deficient("B"),
    "C of rank 1": lambda: deficient("C"),
}


@pytest.fixture(params=MINIMAL)
def lti(request):
    return MINIMAL[request.param]()


def accuracy(lti):
    """Rounding, magnified by the condition of the discrete Lyapunov equation."""
    operator = np.eye(lti.nstates**2) - np.kron(lti.A, lti.A)
    separation = np.linalg.norm(operator, -2)
    return 100 * EPS * max(1, np.linalg.norm(lti.A, 2) ** 2) / separation


FREQUENCIES = np.exp(
    1j * np.concatenate([np.geomspace(1e-5, 0.1, 100), np.linspace(0.1, np.pi, 900)])
)


def response(lti):
    """Frequency response (frequency, output, input) on a dense grid of the unit circle."""
    resolvent = np.linalg.solve(
        FREQUENCIES[:, None, None] * np.eye(lti.nstates) - lti.A, lti.B[None].astype(complex)
    )
    return lti.C @ resolvent + lti.D


def peak_gain(responses):
    return np.linalg.norm(responses, 2, axis=(-2, -1)).max()


def markov(lti, count):
    """C A^j B for j = 0..count-1."""
    found, x = [], lti.B
    for _ in range(count):
        found.append(lti.C @ x)
        x = lti.A @ x
    return np.array(found)


def eigen_truncation(lti, P, Q, order):
    """Balanced truncation by the eigenvectors of P Q: another road to the same function."""
    values, vectors = np.linalg.eig(P @ Q)
    first = np.argsort(values.real)[::-1]
    T = vectors[:, first]
    V, W = T[:, :order].real, np.linalg.inv(T)[:order].real
    return control.ss(W @ lti.A @ V, W @ lti.B, lti.C @ V, lti.D, lti.dt)


# Gramians and Hankel values over an infinite horizon


def test_gramians_solve_their_lyapunov_equations(lti, use_slycot):
    found = ltv.lti_gramians(lti, use_slycot=use_slycot)
    A = lti.A
    rounding = 1000 * EPS * max(1, np.linalg.norm(A, 2) ** 2)
    for name, F, G in (("P", A, lti.B @ lti.B.T), ("Q", A.T, lti.C.T @ lti.C)):
        X = found[name].values
        assert found[name].dims == ("state", "state_2")
        np.testing.assert_allclose(F @ X @ F.T - X + G, 0, atol=rounding * np.abs(X).max())
        np.testing.assert_allclose(X, X.T, rtol=1e-14, atol=0)
        np.testing.assert_array_less(-100 * EPS * np.abs(X).max(), np.linalg.eigvalsh(X))


def test_gramians_are_those_of_python_control(lti, use_slycot):
    pytest.importorskip("slycot")
    found = ltv.lti_gramians(lti, use_slycot=use_slycot)
    for name, kind in (("P", "c"), ("Q", "o")):
        expected = control.gram(lti, kind)
        atol = accuracy(lti) * np.abs(expected).max()
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=atol)


def test_both_paths_agree(lti):
    pytest.importorskip("slycot")
    tolerance = accuracy(lti)
    with_slycot, own = (ltv.lti_gramians(lti, use_slycot=use) for use in (True, False))
    for name in "PQ":
        atol = tolerance * float(abs(own[name]).max())
        np.testing.assert_allclose(with_slycot[name], own[name], rtol=0, atol=atol)
    with_slycot, own = (
        ltv.lti_hankel_singular_values(lti, use_slycot=use) for use in (True, False)
    )
    assert len(own) == len(with_slycot) == lti.nstates
    np.testing.assert_allclose(with_slycot, own, rtol=tolerance, atol=tolerance * float(own[0]))
    values = own.values
    for order in {1, (lti.nstates + 1) // 2, lti.nstates}:
        if order < lti.nstates and values[order] > 0.99 * values[order - 1]:
            continue  # the two directions are not distinct
        with_slycot, own = (
            ltv.lti_balanced_truncation(lti, order, use_slycot=use) for use in (True, False)
        )
        gap = values[0] / (values[order - 1] - (values[order] if order < lti.nstates else 0))
        atol = tolerance * gap * peak_gain(response(lti))
        np.testing.assert_allclose(response(with_slycot), response(own), rtol=0, atol=atol)


def test_hankel_values_are_the_roots_of_the_eigenvalues_of_the_product(lti, use_slycot):
    gramians = ltv.lti_gramians(lti, use_slycot=use_slycot)
    squares = np.linalg.eigvals(gramians.P.values @ gramians.Q.values).real
    values = ltv.lti_hankel_singular_values(lti, use_slycot=use_slycot)
    assert values.dims == ("index",)
    atol = accuracy(lti) * float(values[0]) ** 2
    np.testing.assert_allclose(values**2, np.sort(squares)[::-1], rtol=0, atol=atol)
    assert (np.diff(values) <= 0).all()


def test_small_hankel_values_survive(use_slycot):
    """Down to 1e-9 of the first; dense Gramians and `eig(PQ)` have none of those digits."""
    lti = random_lti(0, 20, 2, 2, 0.5)
    values = ltv.lti_hankel_singular_values(lti, use_slycot=use_slycot).values
    # the Hankel matrix of 60 inputs and 60 outputs: 0.5^60 is 1e-18
    blocks = markov(lti, 119)
    hankel = np.block([[blocks[i + j] for j in range(60)] for i in range(60)])
    exact = np.linalg.svd(hankel, compute_uv=False)[:20]
    assert exact[-1] < 1e-8 * exact[0]
    np.testing.assert_allclose(values, exact, rtol=1e-5)
    gramians = ltv.lti_gramians(lti, use_slycot=use_slycot)
    lost = np.sqrt(np.abs(np.linalg.eigvals(gramians.P.values @ gramians.Q.values)))
    assert (abs(np.sort(lost)[::-1] / exact - 1) > 0.1).any()


# A state that no input reaches, or no output sees


def hidden(kind):
    A = np.diag([0.5, 0.3, 0.2, -0.4, 0.1])
    B, C = np.ones((5, 1)), np.ones((2, 5))
    if kind == "unreachable":
        B[[1, 3]] = 0
    elif kind == "unobservable":
        C[:, 2:4] = 0
    elif kind == "no input":
        B[:] = 0
    elif kind == "no output":
        C[:] = 0
    else:
        A[:] = 0
    return control.ss(A, B, C, np.ones((2, 1)), 1)


RANKS = {"unreachable": 3, "unobservable": 3, "no input": 0, "no output": 0, "no memory": 1}


@pytest.mark.parametrize("kind", RANKS)
def test_hankel_values_of_a_system_that_is_not_minimal(kind, use_slycot):
    """AB09AD warns when it is asked for more states than a minimal realization has."""
    lti = hidden(kind)
    values = ltv.lti_hankel_singular_values(lti, use_slycot=use_slycot).values
    assert values.shape == (5,)
    blocks = markov(lti, 119)
    exact = np.linalg.svd(
        np.block([[blocks[i + j] for j in range(60)] for i in range(60)]), compute_uv=False
    )[:5]
    np.testing.assert_allclose(values, exact, atol=100 * EPS * max(exact[0], 1))
    assert (exact > 1e-9).sum() == RANKS[kind]
    rank = RANKS[kind]
    if rank:
        minimal = ltv.lti_balanced_truncation(lti, rank, use_slycot=use_slycot)
        np.testing.assert_allclose(response(minimal), response(lti), rtol=1e-10)
    with pytest.raises(ValueError, match=f"`order` must be at most the rank, {rank} "):
        ltv.lti_balanced_truncation(lti, rank + 1, use_slycot=use_slycot)


def test_gramians_of_a_system_that_is_not_minimal(use_slycot):
    for kind in RANKS:
        lti = hidden(kind)
        found = ltv.lti_gramians(lti, use_slycot=use_slycot)
        a = np.diag(lti.A)
        series = 1 / (1 - np.multiply.outer(a, a))
        np.testing.assert_allclose(found.P, lti.B @ lti.B.T * series, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(found.Q, lti.C.T @ lti.C * series, rtol=1e-12, atol=1e-14)


def test_a_system_without_states_is_refused(use_slycot):
    lti = control.ss([], [], [], [[1.0, 2.0]], 1)
    for function in (ltv.lti_gramians, ltv.lti_hankel_singular_values):
        with pytest.raises(ValueError, match="`lti` must have at least one state"):
            function(lti, use_slycot=use_slycot)
    with pytest.raises(ValueError, match="`lti` must have at least one state"):
        ltv.lti_balanced_truncation(lti, 1, use_slycot=use_slycot)


# Balanced truncation


@pytest.mark.parametrize("name", ["medium", "slow decay", "twenty states", "non-normal"])
def test_the_error_of_truncation_is_within_its_bounds(name, use_slycot):
    """sigma_{r+1} <= error <= 2 sum of the tail, in the H-infinity norm, at every order."""
    lti = MINIMAL[name]()
    values = ltv.lti_hankel_singular_values(lti, use_slycot=use_slycot).values
    full = response(lti)
    floor = 10 * accuracy(lti) * peak_gain(full)
    for order in range(1, lti.nstates):
        reduced = ltv.lti_balanced_truncation(lti, order, use_slycot=use_slycot)
        assert reduced.nstates == order
        error = peak_gain(full - response(reduced))
        assert error >= 0.999 * values[order] - floor
        assert error <= 2 * values[order:].sum() * (1 + 1e-10) + floor


@pytest.mark.parametrize("name", ["medium", "more outputs than states", "C of rank 1"])
def test_truncation_is_that_of_the_eigenvectors_of_the_product(name, use_slycot):
    lti = MINIMAL[name]()
    P = scipy.linalg.solve_discrete_lyapunov(lti.A, lti.B @ lti.B.T)
    Q = scipy.linalg.solve_discrete_lyapunov(lti.A.T, lti.C.T @ lti.C)
    for order in range(1, lti.nstates):
        expected = response(eigen_truncation(lti, P, Q, order))
        reduced = ltv.lti_balanced_truncation(lti, order, use_slycot=use_slycot)
        np.testing.assert_allclose(response(reduced), expected, atol=1e-9 * peak_gain(expected))


def test_truncation_to_all_states_only_balances(lti, use_slycot):
    """The same transfer function, and both Gramians are diag(sigma)."""
    values = ltv.lti_hankel_singular_values(lti, use_slycot=use_slycot).values
    balanced = ltv.lti_balanced_truncation(lti, lti.nstates, use_slycot=use_slycot)
    tolerance = accuracy(lti) * values[0] / values[-1]
    full = response(lti)
    np.testing.assert_allclose(response(balanced), full, atol=tolerance * peak_gain(full))
    gramians = ltv.lti_gramians(balanced, use_slycot=use_slycot)
    for X in (gramians.P, gramians.Q):
        np.testing.assert_allclose(X, np.diag(values), atol=tolerance * values[0])


@pytest.mark.parametrize("dt", [1, 0.25, True, None])
@pytest.mark.parametrize("horizon", [None, 30])
def test_dt_and_D_are_kept(dt, horizon, use_slycot):
    lti = random_lti(4, 4, 2, 3, 0.9)
    lti = control.ss(lti.A, lti.B, lti.C, lti.D, dt)
    reduced = ltv.lti_balanced_truncation(lti, np.int64(2), horizon, use_slycot=use_slycot)
    assert reduced.dt is lti.dt or reduced.dt == lti.dt
    np.testing.assert_array_equal(reduced.D, lti.D)
    assert np.abs(lti.D).min() > 0
    assert (reduced.nstates, reduced.ninputs, reduced.noutputs) == (2, 2, 3)
    assert np.abs(np.linalg.eigvals(reduced.A)).max() < 1


def test_the_system_is_not_changed(use_slycot):
    """Not even where it is stored by columns, as SLICOT takes it."""
    lti = random_lti(4, 4, 4, 4, 0.9)
    lti.A, lti.B, lti.C = (np.asfortranarray(matrix) for matrix in (lti.A, lti.B, lti.C))
    before = [np.array(getattr(lti, name)) for name in "ABCD"]
    ltv.lti_gramians(lti, use_slycot=use_slycot)
    ltv.lti_hankel_singular_values(lti, use_slycot=use_slycot)
    ltv.lti_balanced_truncation(lti, 2, use_slycot=use_slycot)
    for name, matrix in zip("ABCD", before, strict=True):
        np.testing.assert_array_equal(getattr(lti, name), matrix)


# Finite horizon


@pytest.mark.parametrize("horizon", [1, 2, 5, 12])
@pytest.mark.parametrize("radius", [0.6, 1.0, 1.7])
def test_finite_gramians_are_sums_of_so_many_terms(horizon, radius):
    lti = random_lti(7, 4, 2, 3, radius)
    found = ltv.lti_gramians(lti, horizon)
    P, Q = np.zeros((4, 4)), np.zeros((4, 4))
    for j in range(horizon):
        power = np.linalg.matrix_power(lti.A, j)
        P += power @ lti.B @ lti.B.T @ power.T
        Q += power.T @ lti.C.T @ lti.C @ power
    tolerance = 1e4 * EPS
    np.testing.assert_allclose(found.P, P, rtol=0, atol=tolerance * np.abs(P).max())
    np.testing.assert_allclose(found.Q, Q, rtol=0, atol=tolerance * np.abs(Q).max())
    assert found.attrs["horizon"] == horizon
    assert found.attrs["solver"] == "finite sum"
    np.testing.assert_allclose(found.attrs["spectral_radius"], radius)


@pytest.mark.parametrize("horizon", [1, 3, 10])
def test_finite_hankel_values_are_those_of_the_hankel_matrix(horizon):
    """h inputs to the h outputs after them, A unstable; and the middle of 2 h - 1 layers."""
    lti = random_lti(8, 4, 1, 2, 1.3)
    blocks = markov(lti, 2 * horizon - 1)
    hankel = np.block([[blocks[i + j] for j in range(horizon)] for i in range(horizon)])
    singular = np.linalg.svd(hankel, compute_uv=False)[:4]
    expected = np.zeros(4)
    expected[: len(singular)] = singular
    values = ltv.lti_hankel_singular_values(lti, horizon)
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-13 * expected[0])
    assert values.attrs["horizon"] == horizon
    layers = ltv.constant(lti, horizon=2 * horizon - 1)
    middle = ltv.hankel_singular_values(layers).sel(depth=horizon)
    np.testing.assert_allclose(values[: len(middle)], middle, rtol=1e-9, atol=1e-13 * expected[0])


def test_finite_truncation_is_that_of_the_eigenvectors_of_the_product():
    lti = random_lti(9, 5, 2, 2, 1.2)
    gramians = ltv.lti_gramians(lti, 8)
    for order in (1, 2, 3, 5):
        expected = markov(eigen_truncation(lti, gramians.P.values, gramians.Q.values, order), 10)
        reduced = ltv.lti_balanced_truncation(lti, order, 8)
        np.testing.assert_allclose(
            markov(reduced, 10), expected, rtol=0, atol=1e-9 * np.abs(expected).max()
        )
    np.testing.assert_allclose(expected, markov(lti, 10), atol=1e-9 * np.abs(expected).max())


def test_a_long_horizon_is_an_infinite_one(use_slycot):
    lti = random_lti(4, 6, 2, 3, 0.8)
    for function in (ltv.lti_gramians, ltv.lti_hankel_singular_values):
        finite, infinite = function(lti, 200), function(lti, use_slycot=use_slycot)
        assert infinite.attrs["horizon"] == "infinite"
        assert infinite.attrs["solver"] == ("slycot" if use_slycot else "scipy")
        xr.testing.assert_allclose(finite, infinite, rtol=1e-11, atol=1e-11)


# From a system to one time-invariant system


def test_mean_lti_averages_over_layers():
    A, B, C, D = random_arrays(0, n_layers=5, n=3, m=2, p=4)
    lti = ltv.mean_lti(ltv.system(A, B, C, D))
    np.testing.assert_allclose(lti.A, A.mean(0), rtol=1e-14)
    np.testing.assert_allclose(lti.B, B.mean(0), rtol=1e-14)
    np.testing.assert_allclose(lti.C, C.mean(0), rtol=1e-14)
    np.testing.assert_allclose(lti.D, D[:5].mean(0), rtol=1e-14)  # none at the last depth
    assert lti.dt == 1
    assert lti.isdtime(strict=True)


def test_mean_lti_reads_where_something_is_read():
    A, B, C, D = random_arrays(1, n_layers=5)
    C[[0, 2, 3]] = 0
    np.testing.assert_allclose(
        ltv.mean_lti(ltv.system(A, B, C, D)).C, C[[1, 4, 5]].mean(0), rtol=1e-14
    )
    np.testing.assert_array_equal(ltv.mean_lti(ltv.system(A, B, 0 * C, D)).C, 0 * C[0])


def test_mean_lti_of_a_constant_system_is_the_system():
    lti = random_lti(3, 3, 2, 2, 1.2)
    mean = ltv.mean_lti(ltv.constant(lti, horizon=4))
    for name in "ABCD":
        np.testing.assert_allclose(getattr(mean, name), getattr(lti, name), rtol=1e-14)


def test_layer_lti_is_one_layer():
    A, B, C, D = random_arrays(2, n_layers=5, n=3, m=2, p=4)
    system = ltv.system(A, B, C, D)
    for layer in range(5):
        lti = ltv.layer_lti(system, layer)
        for name, array in zip("ABCD", (A, B, C, D), strict=True):
            np.testing.assert_array_equal(getattr(lti, name), array[layer])
        assert lti.dt == 1
    read_at_the_end = ltv.layer_lti(system, 1, readout=5)
    np.testing.assert_array_equal(read_at_the_end.C, C[5])
    np.testing.assert_array_equal(read_at_the_end.D, D[1])
    np.testing.assert_array_equal(ltv.layer_lti(system, 1, readout=0).C, C[0])


def test_layer_lti_takes_labels():
    A, B, C, D = random_arrays(3, n_layers=6)
    part = ltv.window(ltv.system(A, B, C, D), 2, 5)
    lti = ltv.layer_lti(part, 4, readout=5)
    for name, matrix in zip("ABCD", (A[4], B[4], C[5], D[4]), strict=True):
        np.testing.assert_array_equal(getattr(lti, name), matrix)
    with pytest.raises(ValueError, match=r"`layer` must be in 2\.\.4; got 1\. Use a label"):
        ltv.layer_lti(part, 1)
    with pytest.raises(ValueError, match=r"`layer` must be in 2\.\.4; got 5\. Use a label"):
        ltv.layer_lti(part, 5)
    with pytest.raises(ValueError, match=r"`readout` must be in 2\.\.5; got 6\. Use a label"):
        ltv.layer_lti(part, 4, readout=6)


@pytest.mark.parametrize("function", [ltv.mean_lti, lambda system: ltv.layer_lti(system, 0)])
def test_states_that_do_not_exist_are_left_out(function):
    """A window with two states cut out of a system that has three later on."""
    A = [np.eye(2)] * 2 + [np.ones((3, 2))]
    B = [np.ones((2, 1))] * 2 + [np.ones((3, 1))]
    C = [np.ones((1, 2))] * 3 + [np.ones((1, 3))]
    part = ltv.window(ltv.system(A, B, C), 0, 2)
    assert part.order.values.tolist() == [2, 2, 2]
    lti = function(part)
    assert lti.nstates == 2
    np.testing.assert_array_equal(lti.A, np.eye(2))


@pytest.mark.parametrize("function", [ltv.mean_lti, lambda system: ltv.layer_lti(system, 0)])
def test_what_is_not_one_time_invariant_system_is_refused(function):
    batch = ltv.system(*random_arrays(0, batch=(2,)), batch_dims=["prompt"])
    with pytest.raises(ValueError, match=r"must have no batch dims; got \['prompt'\]"):
        function(batch)
    one, two = np.eye(1), np.eye(2)
    ragged = ltv.system([one, two[:, :1]], [one, two[:, :1]], [one, one, two[:1]])
    with pytest.raises(ValueError, match=r"must have one state size .* got orders \[1 1 2\]"):
        function(ragged)
    with pytest.raises(TypeError, match="must be an xarray Dataset"):
        function(np.eye(2))


# Who computes, and what is refused


FUNCTIONS = {
    "gramians": ltv.lti_gramians,
    "hankel": ltv.lti_hankel_singular_values,
    "truncation": lambda lti, *args, **kwargs: ltv.lti_balanced_truncation(lti, 1, *args, **kwargs),
}


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return FUNCTIONS[request.param]


@pytest.fixture
def without_slycot(monkeypatch):
    monkeypatch.setattr("depthsys.ltv.lti.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "slycot", None)  # importing it is an error now


def test_slycot_is_used_where_it_is_installed():
    pytest.importorskip("slycot")
    lti = random_lti(4, 4, 2, 3, 0.9)
    assert ltv.lti_gramians(lti).attrs["solver"] == "slycot"
    assert ltv.lti_hankel_singular_values(lti).attrs["solver"] == "slycot"
    chosen = ltv.lti_balanced_truncation(lti, 2)
    slycot = ltv.lti_balanced_truncation(lti, 2, use_slycot=True)
    np.testing.assert_array_equal(chosen.A, slycot.A)
    assert not np.array_equal(chosen.A, ltv.lti_balanced_truncation(lti, 2, use_slycot=False).A)


def test_the_own_path_never_imports_slycot(monkeypatch):
    monkeypatch.setitem(sys.modules, "slycot", None)
    lti = random_lti(4, 4, 2, 3, 0.9)
    for function in FUNCTIONS.values():
        function(lti, use_slycot=False)
        function(lti, 5, use_slycot=False)


@pytest.mark.usefixtures("without_slycot")
def test_without_slycot_the_own_path_is_taken():
    lti = random_lti(4, 4, 2, 3, 0.9)
    for function in (ltv.lti_gramians, ltv.lti_hankel_singular_values):
        chosen, own = function(lti), function(lti, use_slycot=False)
        xr.testing.assert_identical(chosen, own)
        assert chosen.attrs["solver"] == "scipy"
    chosen = ltv.lti_balanced_truncation(lti, 2)
    own = ltv.lti_balanced_truncation(lti, 2, use_slycot=False)
    np.testing.assert_array_equal(chosen.A, own.A)


@pytest.mark.usefixtures("without_slycot")
def test_without_slycot_it_cannot_be_asked_for(function):
    with pytest.raises(ImportError, match=r"`use_slycot` must be left out .* depthsys\[control\]"):
        function(random_lti(4, 4, 2, 3, 0.9), use_slycot=True)


@pytest.mark.parametrize("radius", [1.0 + 1e-9, 1.5])
def test_unstable_systems_need_a_horizon(function, radius, use_slycot):
    lti = random_lti(4, 4, 2, 3, radius)
    with pytest.raises(ValueError, match=r"got spectral radius 1.* Pass `horizon="):
        function(lti, use_slycot=use_slycot)
    function(lti, 3, use_slycot=use_slycot)


def test_an_integrator_is_not_stable(function):
    with pytest.raises(ValueError, match=r"must be stable .* got spectral radius 1\. Pass"):
        function(control.ss([[1.0]], [[1.0]], [[1.0]], [[0.0]], 1))


def test_continuous_systems_are_refused(function):
    lti = control.ss([[-0.5]], [[1.0]], [[1.0]], [[0.0]])
    for horizon in (None, 3):
        with pytest.raises(ValueError, match="`lti` must be in discrete time; got dt = 0"):
            function(lti, horizon)


def test_only_state_spaces_are_taken(function):
    transfer = control.tf([1.0], [1.0, 0.5], 1)
    with pytest.raises(
        TypeError, match="must be a python-control StateSpace; got TransferFunction"
    ):
        function(transfer)
    with pytest.raises(TypeError, match="must be a python-control StateSpace; got Dataset"):
        function(ltv.system(*random_arrays(0)))


@pytest.mark.parametrize("horizon", [0, -1, 2.5, True])
def test_horizons_that_are_no_counts_are_refused(function, horizon):
    with pytest.raises(ValueError, match=f"`horizon` must be a whole number >= 1; got {horizon}"):
        function(random_lti(4, 4, 2, 3, 0.9), horizon)


@pytest.mark.parametrize("order", [0, -1, 1.0, True, None])
def test_orders_that_are_no_counts_are_refused(order, use_slycot):
    lti = random_lti(4, 4, 2, 3, 0.9)
    with pytest.raises(ValueError, match=f"`order` must be a whole number >= 1; got {order}"):
        ltv.lti_balanced_truncation(lti, order, use_slycot=use_slycot)


def test_orders_above_the_rank_are_refused(use_slycot):
    lti = random_lti(4, 4, 2, 3, 0.9)
    with pytest.raises(ValueError, match=r"at most the rank, 4 \(rtol 1e-12\); got 5"):
        ltv.lti_balanced_truncation(lti, 5, use_slycot=use_slycot)
    siso = random_lti(4, 4, 1, 1, 0.9)
    with pytest.raises(ValueError, match=r"at most the rank, 3 .* got 4"):
        ltv.lti_balanced_truncation(siso, 4, 3, use_slycot=use_slycot)  # three inputs: rank 3


def test_small_states_count_as_long_as_they_are_known(use_slycot):
    """Hankel values that span eight orders of magnitude are all kept."""
    lti = control.ss(np.diag([0.5, 0.4]), [[1.0], [1e-4]], [[1.0, 1e-4]], 0, 1)
    values = ltv.lti_hankel_singular_values(lti, use_slycot=use_slycot)
    assert 1e-10 < values[1] / values[0] < 1e-7
    assert ltv.lti_balanced_truncation(lti, 2, use_slycot=use_slycot).nstates == 2


# finite horizons by doubling


def products_of(A, B, steps):
    """[B, A B, ..., A^(steps-1) B] in 60 digits, as P = the product with its transpose."""
    with mpmath.workdps(60):
        a, x = mpmath.matrix(A.tolist()), mpmath.matrix(B.tolist())
        P = mpmath.zeros(len(A))
        for _ in range(steps):
            P, x = P + x * x.T, a * x
        return P


def hankel_values_exactly(A, B, C, steps):
    with mpmath.workdps(60):
        P, Q = products_of(A, B, steps), products_of(A.T, C.T, steps)
        values = mpmath.eig(P * Q, left=False, right=False)
        return np.sort([float(mpmath.sqrt(abs(v))) for v in values])[::-1]


@pytest.mark.parametrize("horizon", [1, 2, 3, 7, 64, 100])
@pytest.mark.parametrize("kind", ["stable", "unstable", "non-normal", "nilpotent"])
def test_hankel_values_of_a_horizon_keep_their_digits(kind, horizon):
    """Also those 1e-24 below the largest, which squaring a growing power would lose."""
    rng = np.random.default_rng(0)
    A = {
        "stable": scaled(rng.standard_normal((5, 5)), 0.9),
        "unstable": scaled(rng.standard_normal((5, 5)), 1.3),
        "non-normal": jordan(5, 0.5, 2.0).A,
        "nilpotent": 10.0 * np.eye(5, k=1),
    }[kind]
    B, C = rng.standard_normal((5, 1)), rng.standard_normal((1, 5))
    found = ltv.lti_hankel_singular_values(control.ss(A, B, C, 0, 1), horizon).values
    exact = hankel_values_exactly(A, B, C, horizon)
    known = slice(min(5, horizon))
    np.testing.assert_allclose(found[known], exact[known], rtol=1e-9)


def test_the_work_grows_with_the_logarithm_of_the_horizon(monkeypatch):
    """Counted in compressions: 1000 steps of a stable system take 2 times 10 doublings and odds."""
    calls = []
    monkeypatch.setattr("depthsys.ltv.lti.compressed", lambda f: calls.append(1) or compressed(f))
    lti = random_lti(4, 8, 2, 3, 0.9)
    ltv.lti_gramians(lti, 1000)
    assert len(calls) <= 2 * (1 + 2 * 9)
    calls.clear()
    ltv.lti_gramians(random_lti(4, 8, 2, 3, 1.2), 100)
    assert len(calls) > 100  # its powers grow: step by step


def test_gramians_that_overflow_are_an_error():
    with pytest.raises(np.linalg.LinAlgError, match="`A` must keep all products finite"):
        ltv.lti_gramians(control.ss([[1e200]], [[1.0]], [[1.0]], 0, 1), 3)
