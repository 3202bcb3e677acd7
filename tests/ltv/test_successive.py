"""Least energy for nonlinear targets, against scipy's SLSQP and optima known by hand."""

import numpy as np
import pytest
from scipy.optimize import brentq, minimize

from depthsys.ltv.successive import Optimum, Problem, least_energies, least_energy, search

N = 8
TIGHT = {"target_rtol": 1e-9, "kkt": 1e-6, "max_steps": 100}


def curved(seed: int, n_outputs: int, curvature: float = 1.0):
    """A sum of saturating units, as a network is one, and its derivative."""
    rng = np.random.default_rng(seed)
    A = curvature * rng.standard_normal((n_outputs, 20, N)) / 4
    B = rng.standard_normal((n_outputs, 20))

    def evaluate(u):
        h = np.tanh(A @ u)
        return (B * h).sum(1), np.einsum("ok,okn->on", B * (1 - h**2), A)

    return evaluate


def weights(seed: int) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).standard_normal(N))


def slsqp(evaluate, cost, target, bounds=None, inequalities=()) -> np.ndarray:
    found = minimize(
        lambda u: cost @ u**2,
        np.full(N, 0.01),
        jac=lambda u: 2 * cost * u,
        bounds=bounds,
        constraints=[
            {
                "type": "eq",
                "fun": lambda u: evaluate(u)[0] - target,
                "jac": lambda u: evaluate(u)[1],
            },
            *({"type": "ineq", "fun": one} for one in inequalities),
        ],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-13},
    )
    assert found.success, found.message
    return found.x


def boxes(size: float) -> list:
    return [(row[None], size) for row in np.eye(N)]


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agrees_with_a_general_purpose_optimiser(seed, n_outputs):
    evaluate, cost = curved(seed, n_outputs), weights(seed)
    target = np.array([1.2, 0.0, 0.5])[:n_outputs]
    found = least_energy(Problem(cost, target), evaluate, **TIGHT)
    expected = slsqp(evaluate, cost, target)
    assert found.met
    assert found.ended == "met"
    np.testing.assert_allclose(found.energy, cost @ expected**2, rtol=1e-6)
    np.testing.assert_allclose(found.u, expected, atol=1e-5 * abs(expected).max())
    np.testing.assert_allclose(found.y, target, atol=1e-8)
    y, gradient = evaluate(found.u)
    np.testing.assert_array_equal(found.y, y)
    # the condition of an optimum, worked out again
    gap = 2 * cost * found.u - gradient.T @ found.multipliers
    size = np.linalg.norm(2 * np.sqrt(cost) * found.u)
    np.testing.assert_allclose(
        np.linalg.norm(gap / np.sqrt(cost)) / size, found.kkt_residual, rtol=1e-4, atol=1e-9
    )
    assert found.evaluations == found.steps + 1 < 12


def test_boxes_agree_with_a_general_purpose_optimiser():
    for seed in (0, 1, 2):
        evaluate, cost = curved(seed, 1), weights(seed)
        target = np.array([1.2])
        free = least_energy(Problem(cost, target), evaluate, **TIGHT)
        bound = 0.75 * abs(free.u).max()
        found = least_energy(Problem(cost, target, boxes(bound)), evaluate, **TIGHT)
        expected = slsqp(evaluate, cost, target, bounds=[(-bound, bound)] * N)
        assert found.met
        assert abs(found.u).max() <= bound * (1 + 1e-12)
        assert found.energy > free.energy
        np.testing.assert_allclose(found.energy, cost @ expected**2, rtol=1e-6)
        np.testing.assert_allclose(found.u, expected, atol=1e-4 * bound)


def test_balls_agree_with_a_general_purpose_optimiser():
    evaluate, cost, target = curved(1, 2), weights(1), np.array([1.2, 0.0])
    rng = np.random.default_rng(3)
    matrices = [rng.standard_normal((2, 2)) @ np.eye(N)[i : i + 2] for i in range(0, N, 2)]
    free = least_energy(Problem(cost, target), evaluate, **TIGHT)
    radius = 0.7 * max(np.linalg.norm(matrix @ free.u) for matrix in matrices)
    balls = [(matrix, radius) for matrix in matrices]
    found = least_energy(Problem(cost, target, balls), evaluate, **TIGHT)
    inside = [lambda u, m=matrix: radius**2 - np.sum((m @ u) ** 2) for matrix in matrices]
    expected = slsqp(evaluate, cost, target, inequalities=inside)
    assert found.met
    np.testing.assert_allclose(found.energy, cost @ expected**2, rtol=1e-6)
    sizes = [np.linalg.norm(matrix @ found.u) for matrix in matrices]
    np.testing.assert_allclose(max(sizes), radius, rtol=1e-6)  # one of them binds


def test_no_unit_matters():
    evaluate, cost, target = curved(2, 2), weights(2), np.array([1.2, -0.4])
    balls, sizes = boxes(0.5), [(row[None], 1.0) for row in np.eye(N)]
    expected = least_energy(Problem(cost, target, balls, sizes), evaluate, **TIGHT)
    rng = np.random.default_rng(0)
    for of_u, of_y in ((1e-9, 1e8), (1e10, 1e-12), (np.exp(3 * rng.standard_normal(N)), 1.0)):

        def scaled(u, of_u=of_u, of_y=of_y):
            y, gradient = evaluate(u / of_u)
            return y * of_y, gradient * of_y / of_u

        problem = Problem(
            cost / of_u**2,
            target * of_y,
            [(matrix / of_u, radius) for matrix, radius in balls],
            [(matrix / of_u, radius) for matrix, radius in sizes],
        )
        found = least_energy(problem, scaled, **TIGHT)
        assert found.steps == expected.steps
        np.testing.assert_allclose(found.u / of_u, expected.u, rtol=1e-6)
        np.testing.assert_allclose(found.energy, expected.energy, rtol=1e-9)
        np.testing.assert_allclose(found.kkt_residual, expected.kkt_residual, atol=1e-8)
        np.testing.assert_allclose(found.multipliers * of_y, expected.multipliers, rtol=1e-6)


def test_multipliers_are_the_price_of_a_target():
    evaluate, cost, target = curved(1, 2), weights(1), np.array([1.2, 0.0])
    bounds = boxes(0.4)
    found = least_energy(Problem(cost, target, bounds), evaluate, **TIGHT)
    for output in range(2):
        step = np.zeros(2)
        step[output] = 1e-4
        scale = np.ones(2)
        ends = [
            least_energy(
                Problem(cost, target + s * step, bounds, scale=scale), evaluate, **TIGHT
            ).energy
            for s in (1, -1)
        ]
        np.testing.assert_allclose(
            found.multipliers[output], (ends[0] - ends[1]) / 2e-4, rtol=1e-3, atol=1e-5
        )


def saturating(u):
    return np.array([np.tanh(u).sum()]), (1 - np.tanh(u) ** 2)[None]


def test_a_target_beyond_what_saturates():
    found = least_energy(Problem(np.ones(3), np.array([3.5])), saturating)
    assert (found.met, found.ended) == (False, "no way on")
    assert 2.99 < found.y[0] < 3
    np.testing.assert_allclose(found.residual, 1 - found.y[0] / 3.5)
    near = least_energy(Problem(np.ones(3), np.array([2.9])), saturating)
    assert near.met
    np.testing.assert_allclose(near.u, np.arctanh(2.9 / 3), rtol=2e-2)


def test_a_target_beyond_bounds_is_reached_as_far_as_they_allow():
    found = least_energy(Problem(np.ones(3), np.array([2.0]), [(np.eye(3), 1.0)]), saturating)
    assert (found.met, found.ended) == (False, "no way on")
    np.testing.assert_allclose(found.u, np.full(3, 3**-0.5), rtol=1e-4)
    np.testing.assert_allclose(found.y[0], 3 * np.tanh(3**-0.5), rtol=1e-6)
    # what no push moves: nothing is pushed
    still = least_energy(Problem(np.ones(2), np.ones(1)), lambda u: (np.zeros(1), np.zeros((1, 2))))
    assert (still.met, still.ended, still.residual) == (False, "no way on", 1.0)
    assert not still.u.any()


@pytest.mark.parametrize("far", [1e2, 1e4, 1e8, 1e14])
@pytest.mark.parametrize("bound", [1.0, 1e-5])
def test_however_far_a_target_is_the_search_goes_as_near_as_bounds_allow(far, bound):
    gain = np.array([[1.0, -2.0, 0.5], [0.3, 0.1, 1.0]])
    balls = [(row[None], bound) for row in np.eye(3)]
    sizes = [(row[None], 2.0) for row in np.eye(3)]
    for target, best in ((far, [1, -1, 1]), (-far, [-1, 1, -1])):
        problem = Problem(np.ones(3), np.array([target]), balls, sizes)
        found = least_energy(problem, lambda u: (gain[:1] @ u, gain[:1]), rounding=1e-15 / far)
        assert found.ended == "no way on"
        np.testing.assert_allclose(found.u, bound * np.array(best), rtol=1e-5)
        np.testing.assert_allclose(found.y, np.sign(target) * 3.5 * bound, rtol=1e-5)
        assert found.kkt_residual < 1e-6
        assert found.steps < 6
    # a ball, and an output that is held: along the part of the gain that does not move it
    ball = [(np.eye(3), bound)]
    problem = Problem(np.ones(3), np.array([far, 0.0]), ball, [(np.eye(3), 2.0)])
    found = least_energy(problem, lambda u: (gain @ u, gain), rounding=1e-15 / far)
    free = gain[0] - gain[1] * (gain[0] @ gain[1]) / (gain[1] @ gain[1])
    np.testing.assert_allclose(
        found.u, bound * free / np.linalg.norm(free), atol=2e-3 * bound, rtol=0
    )


def test_a_far_target_is_reached_where_the_readout_goes_on():
    """The first region moves a millionth of it; the oracle is the equation along the gain."""

    def evaluate(u):
        s = u @ [0.6, 0.8]
        return np.array([s + np.sin(s)]), (1 + np.cos(s)) * np.array([[0.6, 0.8]])

    sizes = [(row[None], 1.0) for row in np.eye(2)]
    found = least_energy(Problem(np.ones(2), np.array([1e6]), sizes=sizes), evaluate)
    assert found.met
    s = brentq(lambda s: s + np.sin(s) - 1e6, 9e5, 1.1e6)
    np.testing.assert_allclose(found.u, s * np.array([0.6, 0.8]), rtol=1.1e-3)


def test_what_is_below_rounding_is_no_way():
    noise = np.array([[1e-17, -1e-17]])
    sizes = [(row[None], 1.0) for row in np.eye(2)]
    problem = Problem(np.ones(2), np.ones(1), sizes=sizes)
    found = least_energy(problem, lambda u: (noise @ u, noise))
    assert (found.ended, found.steps) == ("no way on", 0)


def wandering(u):
    """The first layer is cheap and promises most, but what it does turns back: it is a norm."""
    s, c = np.sin(3 * u[0]), np.cos(3 * u[0])
    return np.array([s + u[1] / 2]), np.array([[3 * c, 0.5]])


def test_it_converges_where_plain_linearisation_wanders():
    target = np.array([1.6])
    u, path = np.zeros(2), []
    for _ in range(30):  # each time the whole plan of the linearised problem
        y, gradient = wandering(u)
        u = gradient[0] * (target - y + gradient @ u) / (gradient @ gradient.T)[0, 0]
        path.append(abs(wandering(u)[0] - target)[0])
    assert min(path) > 0.1
    found = least_energy(Problem(np.ones(2), target), wandering, **TIGHT)
    assert found.met
    # the oracle: u1 follows from u0
    grid = np.linspace(0, np.pi / 6, 200_001)
    energy = grid**2 + (2 * (1.6 - np.sin(3 * grid))) ** 2
    np.testing.assert_allclose(found.energy, energy.min(), rtol=1e-8)


def test_it_leaves_a_saddle():
    """At (1, 0) the condition of an optimum holds, but a bend makes other points cheaper."""

    def evaluate(u):
        return np.array([u[0] + 3 * u[1] ** 2]), np.array([[1.0, 6 * u[1]]])

    problem = Problem(np.ones(2), np.ones(1))
    found = least_energy(problem, evaluate, start=np.array([0.9, 0.02]), **TIGHT)
    assert found.met
    np.testing.assert_allclose(found.u, [1 / 6, (5 / 18) ** 0.5], rtol=1e-5)
    assert found.steps < 20
    # from the axis itself nothing says so: an optimum is a local one
    still = least_energy(problem, evaluate)
    np.testing.assert_allclose(still.u, [1, 0], atol=1e-6)


def test_steps_are_as_long_as_the_region():
    seen = []

    def evaluate(u):
        seen.append(u)
        return np.array([u.sum() / 10]), np.full((1, 3), 0.1)

    sizes = [(row[None], 2.0) for row in np.eye(3)]
    found = least_energy(Problem(np.ones(3), np.ones(1), sizes=sizes), evaluate)
    assert found.met
    steps = abs(np.diff(seen, axis=0)).max(axis=1)
    # 0.3 of a size at first; the model is right, so the region grows
    np.testing.assert_allclose(steps[0], 0.6, rtol=1e-6)
    assert steps[1] > 1.2
    np.testing.assert_allclose(found.u, 10 / 3, rtol=1e-3)
    assert found.history["taken"].all()
    assert (np.diff(found.history["residual"]) < 0).all()
    assert len(found.history["energy"]) == found.steps + 1


def test_a_step_that_overflows_is_too_long():
    def evaluate(u):
        with np.errstate(over="ignore"):
            y = np.where(abs(u) > 1.5, np.nan, u - u**3 / 9)
        return y, (1 - u**2 / 3)[None]

    found = least_energy(Problem(np.ones(1), np.ones(1)), evaluate, start=np.array([-1.2]))
    assert found.met
    with pytest.raises(FloatingPointError, match="`start` must give finite values; got nan or inf"):
        least_energy(Problem(np.ones(1), np.ones(1)), evaluate, start=np.array([2.0]))


def test_a_start_at_the_optimum_is_one_evaluation_and_one_beyond_the_bounds_is_scaled():
    evaluate, cost, target = curved(0, 1), weights(0), np.array([1.2])
    first = least_energy(Problem(cost, target), evaluate)
    again = least_energy(Problem(cost, target), evaluate, start=first.u)
    assert (again.met, again.steps, again.evaluations) == (True, 0, 1)
    np.testing.assert_allclose(again.u, first.u, rtol=1e-12)
    bounds = boxes(0.2)
    found = search(Problem(cost, target, bounds), start=np.linspace(-1, 1, N))
    assert abs(next(found)).max() <= 0.2 * (1 + 1e-12)


def test_searches_go_on_side_by_side():
    targets = [0.5, 1.2, -0.8]
    evaluate = curved(1, 1)
    problems = [Problem(weights(1), np.array([t])) for t in targets]
    rounds = []

    def together(rows, u):
        rounds.append(rows.tolist())
        y, gradient = zip(*(evaluate(one) for one in u), strict=True)
        return np.stack(y), np.stack(gradient)

    found = least_energies([search(one) for one in problems], together)
    alone = [least_energy(one, evaluate) for one in problems]
    for row, (one, other) in enumerate(zip(found, alone, strict=True)):
        assert isinstance(one, Optimum)
        np.testing.assert_array_equal(one.u, other.u)
        assert one.evaluations == sum(row in rows for rows in rounds)
    assert len(rounds) == max(one.evaluations for one in alone)


def test_no_more_steps_than_allowed():
    evaluate = curved(1, 1, curvature=3)
    found = least_energy(Problem(weights(1), np.array([6.0])), evaluate, max_steps=2)
    assert (found.met, found.ended, found.steps) == (False, "steps", 2)
    assert found.residual > 1e-3


def test_noise_of_rounding_decides_nothing():
    """Near the optimum the energy changes by less than the noise of y times its price."""
    cost = weights(0)
    for seed in range(8):
        rng, exact = np.random.default_rng(seed), curved(seed, 1)

        def evaluate(u, rng=rng, exact=exact):
            y, gradient = exact(u)
            return y + 1e-4 * rng.standard_normal(1), gradient

        found = least_energy(
            Problem(cost, np.array([1.2])), evaluate, rounding=5e-4, target_rtol=2e-3, kkt=1e-4
        )
        assert found.met
        assert found.history["taken"].all()
        assert found.steps < 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.array([1.0, 0.0])}, "`weights` must be positive and finite"),
        ({"target": np.zeros(1)}, "`target` must be finite and not zero"),
        ({"target": np.array([np.nan])}, "`target` must be finite and not zero"),
        ({"bounds": [(np.eye(2), 0.0)]}, "`bounds` and `sizes` must have positive, finite radii"),
        ({"sizes": [(np.eye(2), np.inf)]}, "`bounds` and `sizes` must have positive, finite radii"),
    ],
)
def test_bad_problems(change, message):
    with pytest.raises(ValueError, match=message):
        Problem(**{"weights": np.ones(2), "target": np.ones(1), **change})


def test_a_derivative_that_is_none_stalls():
    def wrong(u):
        return np.array([u.sum() / 2]), np.full((1, 2), -0.5)

    found = least_energy(Problem(np.ones(2), np.ones(1)), wrong)
    assert (found.met, found.ended) == (False, "stalled")
    assert not found.history["taken"][1:].any()
