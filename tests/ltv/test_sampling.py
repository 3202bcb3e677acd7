"""Sampling with a zero-order hold: published numbers, Mathieu's equation, Magnus steps."""

import control
import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import scipy.special
import xarray as xr

from depthsys import ltv


def test_published_double_integrator():
    """As in Åström and Wittenmark, Computer-Controlled Systems: [1 h; 0 1], [h^2/2; h]."""
    h = 0.4
    s = ltv.sample_system([[0, 1], [0, 0]], [[0], [1]], [[1, 0]], times=h * np.arange(4))
    for layer in range(3):
        np.testing.assert_allclose(s.A[layer], [[1, h], [0, 1]], atol=1e-14)
        np.testing.assert_allclose(s.B[layer], [[h**2 / 2], [h]], atol=1e-14)


def test_published_motor():
    """As in Åström and Wittenmark: the normalised motor G(s) = 1 / (s (s + 1))."""
    h = 0.7
    e = np.exp(-h)
    s = ltv.sample_system([[-1, 0], [1, 0]], [[1], [0]], [[0, 1]], times=[0, h, 2 * h])
    np.testing.assert_allclose(s.A[1], [[e, 0], [1 - e, 1]], atol=1e-14)
    np.testing.assert_allclose(s.B[1], [[1 - e], [h - 1 + e]], atol=1e-14)


@pytest.mark.parametrize(
    ("q", "order", "a", "kind", "trace"),
    [
        (5, 0, -5.80004602, "a", 2),
        (5, 1, -5.79008060, "b", -2),
        (5, 2, 7.44910974, "a", 2),
        (25, 0, -40.25677955, "a", 2),
        (5, 10, 100.12636922, "a", 2),
    ],
)
def test_characteristic_values_of_mathieus_equation(q, order, a, kind, trace):
    """Abramowitz and Stegun, table 20.1: there x'' + (a - 2 q cos 2t) x = 0 has period pi or 2 pi.

    So both multipliers over pi are 1, or both are -1: the trace is 2, or -2. The table has eight
    decimals, scipy has the others.
    """
    value = getattr(scipy.special, f"mathieu_{kind}")(order, q)
    assert abs(value - a) < 6e-9

    def A(t):
        return [[0, 1], [-(value - 2 * q * np.cos(2 * t)), 0]]

    times = np.linspace(0, np.pi, 5)
    s = ltv.sample_system(A, [[0], [1]], [[1, 0]], times=times, rtol=1e-13)
    whole = ltv.transition(s, 0, 4).values
    parts = [(ltv.transition(s, 0, k), ltv.transition(s, k, 4)) for k in range(5)]
    size = max(float(abs(a).max() * abs(b).max()) for a, b in parts)  # where rounding comes from
    assert abs(np.trace(whole) - trace) < 1e-8 * size
    assert abs(np.linalg.det(whole) - 1) < 1e-8 * size  # Liouville: no damping
    found = ltv.floquet_multipliers(s)
    np.testing.assert_allclose(found.multiplier.values.sum(), trace, atol=1e-8 * size)


def by_small_steps(A, B, start, stop, count):
    """Fourth-order Magnus steps, the input as a further state: another road to both matrices."""
    n, m = np.shape(B(start))
    whole, h = np.eye(n + m), (stop - start) / count

    def block(t):
        return np.vstack([np.hstack([A(t), B(t)]), np.zeros((m, n + m))])

    for i in range(count):
        middle, off = start + (i + 0.5) * h, np.sqrt(3) / 6 * h
        first, second = block(middle - off), block(middle + off)
        exponent = h / 2 * (first + second) - np.sqrt(3) / 12 * h**2 * (
            first @ second - second @ first
        )
        whole = scipy.linalg.expm(exponent) @ whole
    return whole[:n, :n], whole[:n, n:]


@pytest.mark.parametrize("method", ["DOP853", "Radau"])
def test_varying_systems_against_magnus_steps(method):
    rng = np.random.default_rng(0)
    A0, A1, B0, B1 = (rng.standard_normal((3, k)) for k in (3, 3, 2, 2))

    def A(t):
        return A0 + np.sin(3 * t) * A1

    def B(t):
        return B0 + t**2 * B1

    times = np.array([0.2, 0.5, 1.1])
    rtol = 1e-12 if method == "DOP853" else 1e-7
    s = ltv.sample_system(
        A, B, lambda t: [[t, 1, 0]], lambda t: [[t, -t]], times=times, rtol=rtol, method=method
    )
    for layer in range(2):
        phi, gamma = by_small_steps(A, B, times[layer], times[layer + 1], 400)
        np.testing.assert_allclose(s.A[layer], phi, atol=100 * rtol)
        np.testing.assert_allclose(s.B[layer], gamma, atol=100 * rtol)
    np.testing.assert_allclose(s.C[:, 0, 0], times)
    np.testing.assert_allclose(s.D[:, 0], [[0.2, -0.2], [0.5, -0.5], [0, 0]])
    np.testing.assert_allclose(s.time, times)
    assert s.attrs["sampling"] == "zoh"
    assert s.attrs["rtol"] == rtol


@pytest.mark.parametrize("late", [False, True])
def test_a_jump_at_a_sample_is_exact(late):
    """Whether the function has its new value at the jump already, or only after it."""
    before, after = np.array([[0.0, 1.0], [-1.0, -0.8]]), np.array([[0.0, 1.0], [-1.0, 0.0]])

    def A(t):
        return after if (t > 1 if late else t >= 1) else before

    s = ltv.sample_system(A, [[0.0], [1.0]], [[1.0, 0.0]], times=[0, 1, 2], rtol=1e-12)
    np.testing.assert_allclose(s.A[0], scipy.linalg.expm(before), atol=1e-11)
    np.testing.assert_allclose(s.A[1], scipy.linalg.expm(after), atol=1e-11)


def test_an_input_of_another_unit_is_as_exact():
    """B of 1e-9: errors are in proportion to it."""

    def A(t):
        return np.array([[-1.0, np.cos(t)], [0.0, -0.5]])

    small = ltv.sample_system(A, [[0.0], [1e-9]], [[1.0, 0.0]], times=[0, 1, 2])
    large = ltv.sample_system(A, [[0.0], [1.0]], [[1.0, 0.0]], times=[0, 1, 2])
    np.testing.assert_allclose(small.B * 1e9, large.B, rtol=1e-8)


def test_matrices_as_functions_are_matrices():
    A, B, C = np.array([[-1.0, 2.0], [0.0, -3.0]]), np.array([[1.0], [2.0]]), np.array([[1.0, 1.0]])
    times = [0, 0.5, 1.25]
    exact = ltv.sample_system(A, B, C, times=times)
    found = ltv.sample_system(lambda t: A, lambda t: B, lambda t: C, times=times)
    xr.testing.assert_allclose(found, exact, atol=1e-9)
    assert "rtol" not in exact.attrs


@pytest.mark.parametrize("theirs", ["control", "scipy"])
def test_continuous_state_spaces_as_python_control_and_scipy_sample_them(theirs):
    A, B, C, D = [[0, 1], [-2, -3]], [[0], [1]], [[1, 0]], [[0.5]]
    wanted = control.sample_system(control.ss(A, B, C, D), 0.1)
    given = control.ss(A, B, C, D, inputs=["force"], outputs=["y"], states=["pos", "vel"])
    given = given if theirs == "control" else scipy.signal.StateSpace(A, B, C, D)
    s = ltv.sample_system(given, times=0.1 * np.arange(4))
    for name in "ABCD":
        np.testing.assert_allclose(s[name][0], getattr(wanted, name), atol=1e-13)
    if theirs == "control":
        assert s.input_name.values.tolist() == ["force"]
        assert s.state_name.values.tolist() == ["pos", "vel"]


A, B, C = [[0, 1], [-1, 0]], [[0], [1]], [[1, 0]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ltv.sample_system(A, B, times=[0, 1]), TypeError, "`B` and `C` must be given"),
        (lambda: ltv.sample_system(np.diag, times=[0, 1]), TypeError, "`B` and `C` must be given"),
        (
            lambda: ltv.sample_system(control.ss(A, B, C, 0), B, times=[0, 1]),
            TypeError,
            "`B`, `C`, `D` must be left out",
        ),
        (
            lambda: ltv.sample_system(control.ss(A, B, C, 0, 1), times=[0, 1]),
            ValueError,
            r"must be a continuous-time StateSpace; got a discrete one \(dt = 1\)",
        ),
        (
            lambda: ltv.sample_system(control.tf([1], [1, 1]), times=[0, 1]),
            TypeError,
            "got TransferFunction",
        ),
        (lambda: ltv.sample_system(A, B, C, times=[0]), ValueError, "`times` must be at least two"),
        (lambda: ltv.sample_system(A, B, C, times=[0, 1, 1]), ValueError, "two, and rise"),
        (lambda: ltv.sample_system(A, B, C, times=[0, 1], rtol=0), ValueError, "`rtol` must be"),
        (
            lambda: ltv.sample_system(A, B, [[1, 0, 0]], times=[0, 1]),
            ValueError,
            r"`C` must have shape \(1, 2\)",
        ),
        (
            lambda: ltv.sample_system(lambda t: np.eye(2 if t < 0.5 else 3), B, C, times=[0, 1]),
            ValueError,
            r"`A` must have one shape at all times, \(2, 2\); got \(3, 3\) at t = ",
        ),
        (
            lambda: ltv.sample_system(lambda t: np.eye(2) / (t < 0.5), B, C, times=[0, 1]),
            ValueError,
            "`A` must be a real, finite matrix; .* at t = ",
        ),
        (
            lambda: ltv.sample_system(lambda t: [1.0, 2.0], B, C, times=[0, 1]),
            ValueError,
            r"`A` must be a real, finite matrix; got shape \(2,\)",
        ),
        (
            lambda: ltv.sample_system(
                lambda t: np.eye(2) / abs(0.3 - t), B, C, times=[0, 1], rtol=1e-4
            ),
            np.linalg.LinAlgError,
            "`A` must let the states from t = 0 to 1 be integrated",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value", "ignore:overflow")
def test_what_cannot_be_sampled_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("late", [False, True])
def test_functions_are_asked_inside_the_intervals_alone(late):
    """At a sample a jump may be on either side; a stiff method asks there and would be misled."""

    def A(t):
        return [[-1.0 if t < 1.0 or (late and t == 1.0) else 5.0]]

    for method, rtol in (("Radau", 1e-12), ("RK45", 2e-10)):
        s = ltv.sample_system(A, [[1.0]], [[1.0]], times=[0.0, 1.0, 2.0], method=method)
        np.testing.assert_allclose(s.A.values.ravel(), np.exp([-1.0, 5.0]), rtol=rtol)
