"""From records to Markov parameters to systems: published examples and python-control."""

import control
import numpy as np
import pytest
import xarray as xr

from depthsys import ltv
from tests.ltv.test_system import random_arrays


def labelled(values, dims, labels):
    return xr.DataArray(values, dims=dims, coords={dims[0]: labels})


def powers(A, B, C, D, count):
    """D, C B, C A B, ... by powers of A."""
    return np.stack([D] + [C @ np.linalg.matrix_power(A, j) @ B for j in range(count - 1)])


@pytest.fixture
def vibration():
    """Two masses between three springs and dampers, sampled every 0.1 s: python-control's example.

    Gross et al., Mechanical Vibrations: Theory and Application, example 6.7.
    """
    A = [[0, 0, 1, 0], [0, 0, 0, 1], [-6, 2, -2, 1], [1, -4, 0.5, -1.5]]
    B = [[0, 0], [0, 0], [1, 0], [0, 0.5]]
    C = [[1, 0, 0, 0], [0, 1, 0, 0]]
    return ltv.sample_system(A, B, C, times=0.1 * np.arange(201))


def first(system):
    return [system[name].values[0] for name in "ABCD"]


def eigenvalues(system):
    return np.sort_complex(np.linalg.eigvals(system.A.values[0]))


# Markov parameters from records


@pytest.mark.parametrize("observer", [2, 5, 20])
def test_an_observer_finds_them_from_any_initial_state(vibration, observer):
    u = np.random.default_rng(0).standard_normal((200, 2))
    y = ltv.simulate(vibration, u, [1.0, -2.0, 3.0, 0.5]).y
    found = ltv.markov_parameters(u, y, 50, observer=observer)
    np.testing.assert_allclose(found.markov, powers(*first(vibration), 50), atol=1e-10)
    assert (found.residual < 1e-12).all()
    # no noise: as many equations as states and past inputs
    assert int(found["rank"]) == 4 + 2 * (observer + 1)
    assert found.attrs["unknowns"] == 2 * (observer + 1) + 2 * observer


def test_a_record_of_full_length_from_rest_is_exact(vibration):
    u = np.random.default_rng(1).standard_normal((30, 1)) + 2
    part = ltv.window(vibration.isel(input=[0]), 0, 30)
    y = ltv.simulate(part, u).y
    found = ltv.markov_parameters(u, y, 30)
    np.testing.assert_allclose(found.markov, powers(*first(part), 30), atol=1e-8)


@pytest.mark.parametrize("count", [5, 20])
def test_without_an_observer_it_is_python_controls(vibration, count):
    u = np.random.default_rng(2).standard_normal((200, 1))
    one = vibration.isel(input=[0], output=[1])
    y = ltv.simulate(one, u).y.values[:200]
    theirs = control.markov(y.T, u.T, count, dt=True)
    ours = ltv.markov_parameters(u, y, count)
    np.testing.assert_allclose(ours.markov[:, 0, 0], theirs, atol=1e-12)
    past = np.array([[u[k - j, 0] if k >= j else 0 for j in range(count)] for k in range(200)])
    left = y[:, 0] - past @ theirs
    assert ours.residual.item() == pytest.approx(np.sqrt((left**2).mean()), rel=1e-9)


def test_feedthrough_and_units_and_noise():
    """Outputs in units of 1e-6 and 1e6; noise of 1 % averages out over a long record."""
    A, B, C, D = (x[0] for x in random_arrays(2))
    A = 0.6 * A / np.abs(np.linalg.eigvals(A)).max()
    C, D = (np.array([[1e-6], [1e6]]) * x for x in (C, D))
    rng = np.random.default_rng(3)
    u = rng.standard_normal((4000, 2))
    y = ltv.simulate(ltv.constant(A, B, C, D, horizon=4000), u).y.values[:4000]
    exact, unit = powers(A, B, C, D, 10), np.array([1e-6, 1e6])[:, None]
    found = ltv.markov_parameters(u, y, 10, observer=6).markov
    np.testing.assert_allclose(found / unit, exact / unit, atol=1e-9)
    noisy = y + 0.01 * y.std(axis=0) * rng.standard_normal(y.shape)
    found = ltv.markov_parameters(u, noisy, 10, observer=12)
    np.testing.assert_allclose(found.markov / unit, exact / unit, atol=0.01)
    np.testing.assert_allclose(found.residual / y.std(axis=0), 0.01, atol=0.005)


def test_batches_of_records():
    systems = [ltv.constant(*(x[0] for x in random_arrays(seed)), horizon=60) for seed in range(2)]
    systems = [s.assign(A=0.3 * s.A) for s in systems]
    both = ltv.stack(systems, "case")
    u = np.random.default_rng(0).standard_normal((60, 2))
    found = ltv.markov_parameters(u, ltv.simulate(both, u).y, 6, observer=4)
    for i, system in enumerate(systems):
        np.testing.assert_allclose(found.markov[i], powers(*first(system), 6), atol=1e-9)
    realized = ltv.era(found.markov)
    assert realized.A.dims[0] == "case"
    np.testing.assert_allclose(ltv.io_matrix(realized)[:, :, :, 0], found.markov, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "`count` must be a whole number >= 1"),
        ({"observer": -1}, "`observer` must be a whole number >= 1"),
        ({"observer": 1.5}, "`observer` must be a whole number >= 1"),
        ({"y": np.ones((18, 2))}, "`y` must have as many depths as `u` has layers, 20"),
        ({"u": np.ones(20)}, "`u` must have dims"),
        ({"y": np.full((20, 2), np.nan)}, "`y` must be finite"),
        ({"observer": 9}, r"`u` must have at least 37 layers for 28 unknowns .* got 20"),
        ({"count": 30}, "`u` must have at least 30 layers"),
        (
            {
                "u": labelled(np.ones((20, 1)), ["layer", "input"], range(20)),
                "y": labelled(np.ones((20, 2)), ["depth", "output"], range(1, 21)),
            },
            "`y` must start at the depth at which `u` starts; got 1 and 0",
        ),
    ],
)  # fmt: skip
def test_records_that_do_not_do_are_refused(change, message):
    given = {"u": np.ones((20, 1)), "y": np.ones((20, 2)), "count": 3} | change
    with pytest.raises(ValueError, match=message):
        ltv.markov_parameters(given.pop("u"), given.pop("y"), given.pop("count"), **given)


# Records that leave the Markov parameters open

TIMES = np.arange(200)
POOR = {
    "constant": np.ones(200),
    "one sine": np.sin(0.3 * TIMES),
    "impulse at the start": np.eye(200)[0],
    "nothing": np.zeros(200),
}
RICH = {
    "noise": np.random.default_rng(7).standard_normal(200),
    "two sines": np.sin(0.3 * TIMES) + np.cos(1.1 * TIMES),
    "impulse later": np.eye(200)[10],
}


def oscillator(horizon=200):
    A = [[0.6, 0.5], [-0.5, 0.6]]
    return ltv.constant(A, [[1.0], [0.5]], [[1.0, 0.3]], [[0.2]], horizon=horizon)


@pytest.mark.parametrize("name", POOR)
@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize("unit", [1e-7, 1.0, 1e7])
def test_a_poor_input_is_refused(name, noise, unit):
    u = unit * POOR[name][:, None]
    y = ltv.simulate(oscillator(), u, [0.3, -1.0]).y.values[:200]
    y = y + noise * np.random.default_rng(0).standard_normal(y.shape)
    with pytest.raises(np.linalg.LinAlgError, match=r"`u` must excite .* of rank \d for 7 unk"):
        ltv.markov_parameters(u, y, 8, observer=3)


@pytest.mark.parametrize("name", RICH)
@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("observer", [2, 3])
def test_a_rich_input_is_enough_where_coefficients_are_not_unique(name, unit, observer):
    u = unit * RICH[name][:, None]
    y = ltv.simulate(oscillator(), u, [0.3, -1.0]).y
    found = ltv.markov_parameters(u, y, 30, observer=observer)
    assert int(found["rank"]) == observer + 3
    np.testing.assert_allclose(found.markov, powers(*first(oscillator()), 30), atol=1e-7)


def test_an_input_that_does_nothing_has_markov_parameters_zero():
    system = oscillator()
    system = system.assign(B=0 * system.B, D=0 * system.D)
    u = RICH["noise"][:, None]
    for x0 in ([0.0, 0.0], [1.0, 0.0]):
        found = ltv.markov_parameters(u, ltv.simulate(system, u, x0).y, 10, observer=3)
        np.testing.assert_allclose(found.markov, 0.0, atol=1e-12)


def test_two_inputs_that_move_together_are_refused(vibration):
    u = np.repeat(RICH["noise"][:, None], 2, axis=1)
    y = ltv.simulate(vibration, u).y
    for observer in (0, 4):
        with pytest.raises(np.linalg.LinAlgError, match="`u` must excite the system enough"):
            ltv.markov_parameters(u, y, 10, observer=observer)


def test_a_poor_record_in_a_batch_is_named():
    u = xr.DataArray(
        np.stack([RICH["noise"], POOR["constant"]])[..., None], dims=["run", "layer", "input"]
    )
    y = ltv.simulate(oscillator(), u).y
    with pytest.raises(np.linalg.LinAlgError, match="in record 1 of 2, others fit, too"):
        ltv.markov_parameters(u, y, 8, observer=3)


def test_without_an_observer_every_parameter_must_be_fixed():
    y = ltv.simulate(oscillator(), np.zeros((200, 1)), [1.0, 0.0]).y
    with pytest.raises(np.linalg.LinAlgError, match="of rank 0 for 5 unknowns"):
        ltv.markov_parameters(np.zeros((200, 1)), y, 5)


# ERA


def test_the_fibonacci_sequence():
    """Katayama, Subspace Methods for System Identification (2005), example 6.1."""
    numbers = np.array([0, 1, 1, 2, 3, 5, 8, 13, 21, 34.0])
    found = ltv.era(numbers[:, None, None])
    assert found.sizes["state"] == 2
    golden = (1 + np.sqrt(5)) / 2
    np.testing.assert_allclose(eigenvalues(found), [1 - golden, golden], rtol=1e-9)
    np.testing.assert_allclose(ltv.impulse_response(found).y[:, 0, 0], numbers, atol=1e-9)
    assert found.attrs["method"] == "era"
    longer = ltv.constant(*first(found), horizon=14)
    np.testing.assert_allclose(ltv.impulse_response(longer).y[10:, 0, 0], [55, 89, 144, 233, 377])


@pytest.mark.parametrize("size", [(50, 50), (40, 60)])
def test_a_vibrating_system_as_in_python_control(vibration, size):
    """Same matrices up to signs of states, and the Hankel values of a map of that many inputs."""
    rows, columns = size
    M = powers(*first(vibration), 101)
    ours = ltv.era(M, 4, rows=rows, columns=columns)
    theirs, values = control.eigensys_realization(np.moveaxis(M, 0, -1), 4, m=rows, n=columns)
    np.testing.assert_allclose(ours.hankel_singular_values[:4], values[:4], rtol=1e-10)
    a, b, c, _ = first(ours)
    for got, want in ((a, theirs.A), (b, theirs.B), (c, theirs.C)):
        np.testing.assert_allclose(np.abs(got), np.abs(want), atol=1e-8)
    np.testing.assert_allclose(eigenvalues(ours), eigenvalues(vibration), atol=1e-9)
    np.testing.assert_allclose(ltv.impulse_response(ours).y, M, atol=1e-10)


def test_records_to_a_system_of_the_right_order(vibration):
    u = np.random.default_rng(4).standard_normal((200, 2))
    y = ltv.simulate(vibration, u, [1.0, 0, 0, 0]).y
    found = ltv.era(ltv.markov_parameters(u, y, 60, observer=4).markov, rtol=1e-8)
    assert found.order.values.tolist() == [4] * 60
    np.testing.assert_allclose(eigenvalues(found), eigenvalues(vibration), atol=1e-7)


def test_fewer_states_than_the_rank_are_balanced(vibration):
    """Both Gramians of the truncated realization are the kept singular values, to the last step."""
    M = powers(*first(vibration), 401)
    small = ltv.era(M, 2)
    full = ltv.lti_balanced_truncation(ltv.mean_lti(vibration), 2)
    np.testing.assert_allclose(
        eigenvalues(small), np.sort_complex(np.linalg.eigvals(full.A)), atol=1e-6
    )


def test_it_agrees_with_the_realization_of_the_map(vibration):
    """The time-varying algorithm on the map of the constant system has the same map."""
    part = ltv.window(vibration, 0, 20)
    M = powers(*first(part), 21)
    np.testing.assert_allclose(
        ltv.io_matrix(ltv.era(M)), ltv.io_matrix(ltv.realization(ltv.io_matrix(part))), atol=1e-9
    )


def test_names_of_signals_are_kept(vibration):
    named = vibration.assign_coords(input_name=("input", ["f", "g"]))
    M = ltv.io_matrix(named).isel(layer=0, drop=True).rename(depth="lag")
    assert ltv.era(M).input_name.values.tolist() == ["f", "g"]


@pytest.mark.parametrize("at", [None, 0, 5])
def test_a_response_is_taken_as_it_comes(at):
    """Whole, as `y` alone, or cut out of a window: the impulse is lag 0."""
    system = oscillator(30)
    expected = powers(*first(system), 31 - (at or 0))
    whole = ltv.impulse_response(system, at)
    later = ltv.impulse_response(ltv.window(system, 3, 30), (at or 0) + 3)
    for given in (whole, whole.y, whole.y.isel(depth=slice(None, None, -1))):
        found = ltv.era(given)
        assert found.sizes["state"] == 2
        np.testing.assert_allclose(ltv.impulse_response(found).y, expected, atol=1e-10)
    np.testing.assert_allclose(
        ltv.impulse_response(ltv.era(later)).y,
        expected[: later.sizes["depth"] - (at or 0)],
        atol=1e-10,
    )


def test_what_markov_parameters_return_is_taken_as_it_comes():
    u = RICH["noise"][:, None]
    found = ltv.markov_parameters(u, ltv.simulate(oscillator(), u).y, 20, observer=2)
    np.testing.assert_allclose(eigenvalues(ltv.era(found, 2)), eigenvalues(oscillator()))


def test_labels_of_lags_are_honoured():
    numbers = np.array([0, 1, 1, 2, 3, 5, 8, 13, 21, 34.0])[:, None, None]
    turned = labelled(numbers[::-1], ["lag", "output", "input"], range(9, -1, -1))
    np.testing.assert_allclose(ltv.impulse_response(ltv.era(turned)).y, numbers, atol=1e-9)


def test_a_system_that_does_nothing_has_no_state():
    found = ltv.era(np.zeros((6, 1, 1)))
    assert found.order.values.tolist() == [0] * 6
    np.testing.assert_array_equal(ltv.io_matrix(found), 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"order": 5}, ltv.RankError, r"`order` must be at most the rank, 2 \(method era"),
        ({"order": 0}, ValueError, "`order` must be a whole number >= 1"),
        ({"rtol": 2.0}, ValueError, "`rtol` must be between 0 and 1"),
        ({"rows": 6, "columns": 4}, ValueError, "`rows` and `columns` must be together at most 9"),
        ({"rows": 9}, ValueError, "`columns` must be a whole number >= 1; got 0"),
        ({"columns": 0}, ValueError, "`columns` must be a whole number >= 1"),
        ({"markov": np.ones((2, 1, 1))}, ValueError, "must have at least three lags; got 2"),
        ({"markov": np.ones(10)}, ValueError, "`markov` must have dims"),
        ({"markov": xr.Dataset({"z": 1})}, TypeError, r"must be an array, or .* with \['z'\]"),
        (
            {"markov": ltv.step_response(oscillator(9))},
            ValueError,
            "`markov` must be the response to an impulse; got that to a step",
        ),
        (
            {"markov": labelled(np.ones((4, 1, 1)), ["lag", "output", "input"], range(1, 5))},
            ValueError,
            r"`markov` must have the lags 0..3, each once; got \[1 2 3 4\]",
        ),
        (
            {"markov": labelled(np.ones((4, 1, 1)), ["lag", "output", "input"], [0, 1, 2, 4])},
            ValueError,
            "`markov` must have the lags 0..3",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_realized_is_refused(change, error, message):
    given = {"markov": np.array([0, 1, 1, 2, 3, 5, 8, 13, 21, 34.0])[:, None, None]} | change
    with pytest.raises(error, match=message):
        ltv.era(given.pop("markov"), **given)
