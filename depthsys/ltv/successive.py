r"""The least energy with which a nonlinear readout reaches a target, by successive linearisation.

Minimises :math:`u^\top W u` subject to :math:`y(u) = t` and bounds on parts of u, given a function
u -> (y, dy/du). Sequential quadratic programming with a trust region and an exact penalty [1]_:
every step solves the problem with y linearised, the curvature of y kept in a quasi-Newton matrix
[2]_, and steps no longer than the region in which that model was right before. Where the linearised
target is not within that region, the step goes as near to it as it may.

No step is evaluated here: a search is a generator that yields u and is sent (y, dy/du), so many
searches can go on side by side and share their evaluations, see `least_energies`.

References
----------
.. [1] Fletcher, Practical Methods of Optimization, 2nd ed. (1987), section 14.4; Nocedal and
   Wright, Numerical Optimization, 2nd ed. (2006), algorithm 18.4 and section 18.5.
.. [2] Conn, Gould and Toint (1991), doi:10.1007/BF01594934: the symmetric rank-one update.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.optimize import lsq_linear

from depthsys.ltv.balls import Ball, Balls, inside
from depthsys.ltv.convex import quadratic_program

Search = Generator[np.ndarray, tuple[np.ndarray, np.ndarray], "Optimum"]

# Longest first step, in the unit of `Problem.sizes`.
FIRST_RADIUS = 0.3
# A region below this part of the first one has shrunk to nothing.
SMALLEST_RADIUS = 1e-7
# A step is taken where the penalty falls by this part of what the model promised; the region
# shrinks below the second part and grows above the third.
TAKEN, POOR, GOOD = 1e-4, 0.25, 0.75
# No way on: a whole first region brings the target nearer by less than this part of what is left,
# and of what was reached so far (of a far target, what is left says nothing).
NO_WAY_ON = 1e-3
# Curvature of the model; that of the energy alone is 2.
LEAST_CURVED, MOST_CURVED = 0.1, 1e4


@dataclass(frozen=True)
class Problem:
    r"""What is wanted of u (variable).

    Parameters
    ----------
    weights
        Diagonal of W (variable), positive.
    target
        t (output), finite and not all zero.
    bounds
        Pairs :math:`(M, \rho)`: :math:`\|M u\| \le \rho`; M is (row, variable). No two of them
        are of the same part of u.
    sizes
        Pairs :math:`(M, \rho)`: a step d has the size :math:`\max \|M d\| / \rho`, and the first
        one has at most the size `FIRST_RADIUS`. Without, steps are measured in energy, and the
        first one may be the whole linear plan.
    scale
        Unit (output) in which a miss of the target is counted; by default :math:`|t_i|`, or the
        largest of them where :math:`t_i = 0`.
    """

    weights: np.ndarray
    target: np.ndarray
    bounds: Sequence[Ball] = ()
    sizes: Sequence[Ball] = ()
    scale: np.ndarray | None = None

    def __post_init__(self):
        if not (np.isfinite(self.weights).all() and (np.asarray(self.weights) > 0).all()):
            raise ValueError(
                f"`weights` must be positive and finite; got {self.weights}. Leave out what may "
                "not push."
            )
        if not (np.isfinite(self.target).all() and np.any(self.target)):
            raise ValueError(
                f"`target` must be finite and not zero; got {self.target}. Give a shift."
            )
        radii = [radius for _, radius in (*self.bounds, *self.sizes)]
        if not (np.isfinite(radii).all() and np.greater(radii, 0).all()):
            raise ValueError(
                f"`bounds` and `sizes` must have positive, finite radii; got {radii}. Leave out "
                "what may not push, and what is free."
            )

    @property
    def miss_unit(self) -> np.ndarray:
        """``scale`` with its default."""
        if self.scale is not None:
            return np.asarray(self.scale, dtype=np.float64)
        size = np.abs(np.asarray(self.target, dtype=np.float64))
        return np.where(size > 0, size, size.max())


class Optimum(NamedTuple):
    r"""What a search has found.

    Attributes
    ----------
    u, y, gradient
        (variable), (output) and dy/du (output, variable) there.
    energy
        :math:`u^\top W u`.
    residual
        :math:`\max_i |y_i - t_i| / \text{scale}_i`.
    kkt_residual
        What is left of the condition of an optimum,
        :math:`\|2Wu - J^\top \lambda + \sum_b \mu_b n_b\| / \|2Wu\|`, both in the metric
        :math:`W^{-1/2}` (the one in which no unit of u matters): J is dy/du, n_b the outer normal
        of a bound that u lies on, and :math:`\lambda` and :math:`\mu \ge 0` are those that make it
        least.
    multipliers
        :math:`\lambda` (output): what the least energy rises by per unit of a target.
    met
        Whether both residuals are within what was asked for.
    ended
        Why it ended: "met", "steps" (no more were allowed), "no way on" (no step from there
        within the bounds brings the target nearer: no u at all does only where there is a single
        valley, as where the readout saturates), "stalled" (no step improves what rounding lets one
        see).
        Then u is the point that came nearest to the target.
    steps, evaluations
        Points tried after the first; values and gradients that were asked for.
    history
        One row for the start and for each step: ``energy``, ``residual``, ``kkt_residual`` of
        where the search stood, ``radius`` of the region, ``taken``.
    """

    u: np.ndarray
    y: np.ndarray
    gradient: np.ndarray
    energy: float
    residual: float
    kkt_residual: float
    multipliers: np.ndarray
    met: bool
    ended: str
    steps: int
    evaluations: int
    history: dict[str, np.ndarray]


def least_energy(
    problem: Problem,
    evaluate: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    **options,
) -> Optimum:
    """One search to its end; ``options`` are those of `search`.

    Examples
    --------
    The point of the circle ``u1^2 + (u2 + 1)^2 = 4`` that is nearest to zero:

    >>> found = least_energy(
    ...     Problem(np.ones(2), np.array([4.0])),
    ...     lambda u: (np.array([u[0]**2 + (u[1] + 1)**2]), np.array([[2*u[0], 2*(u[1] + 1)]])),
    ...     start=np.array([0.3, 0.5]),
    ... )
    >>> found.met, found.u.round(3) + 0.0
    (True, array([0., 1.]))
    """
    (found,) = least_energies(
        [search(problem, **options)],
        lambda _, u: tuple(part[None] for part in evaluate(u[0])),  # pyright: ignore
    )
    return found


def least_energies(
    searches: Sequence[Search],
    evaluate: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> list[Optimum]:
    """Many searches side by side: every round evaluates those that still go on, together.

    Parameters
    ----------
    searches
        From `search`.
    evaluate
        Numbers of the searches (row) and u (row, variable) -> y (row, output) and dy/du
        (row, output, variable).
    """
    asked = {number: next(one) for number, one in enumerate(searches)}
    found: dict[int, Optimum] = {}
    while asked:
        rows = np.array(sorted(asked))
        y, gradient = evaluate(rows, np.stack([asked[row] for row in rows]))
        for place, row in enumerate(rows.tolist()):
            try:
                asked[row] = searches[row].send((y[place], gradient[place]))
            except StopIteration as end:
                found[row] = end.value
                del asked[row]
    return [found[number] for number in range(len(searches))]


def search(
    problem: Problem,
    *,
    start: np.ndarray | None = None,
    target_rtol: float = 1e-3,
    kkt: float = 1e-3,
    max_steps: int = 50,
    rounding: float = 1e-12,
) -> Search:
    """A search for the optimum, as a generator: yields u, is sent (y, dy/du), returns `Optimum`.

    Parameters
    ----------
    problem
        What is wanted.
    start
        Where to begin (variable); zero by default. It is scaled into the bounds.
    target_rtol, kkt
        Where to stop: largest ``residual`` and ``kkt_residual`` of `Optimum`.
    max_steps
        Most steps.
    rounding
        What rounding leaves in y, in units of ``scale``: differences below it decide nothing.

    Notes
    -----
    A y that is not finite is a step too long. The start must have finite values.
    """
    weights = np.asarray(problem.weights, dtype=np.float64)
    u = np.zeros(len(weights)) if start is None else np.asarray(start, dtype=np.float64)
    u = inside(u, problem.bounds)
    y, gradient = yield u
    if not (np.isfinite(y).all() and np.isfinite(gradient).all()):
        raise FloatingPointError(
            "`start` must give finite values; got nan or inf there. Begin with smaller pushes."
        )
    units = _Units.of(problem, u, y, gradient)
    here = units.point(u, y, gradient)
    state = _State(units, here, problem.bounds, target_rtol, kkt, rounding)
    while state.ended is None:
        if state.steps >= max_steps:
            state.ended = "steps"
            break
        step = state.propose()
        if step is None:
            break
        y, gradient = yield units.u(step.z)
        state.judge(step, units.point(units.u(step.z), y, gradient))
    return state.optimum()


@dataclass(frozen=True)
class _Point:
    """A point in units of the search: z, c = (y - t) / scale, J = dc/dz; energy |z|^2.

    ``reached``: the sum of |y| / scale.
    """

    z: np.ndarray
    c: np.ndarray
    J: np.ndarray
    y: np.ndarray
    gradient: np.ndarray
    reached: float

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.c).all() and np.isfinite(self.J).all())

    @property
    def energy(self) -> float:
        return float(self.z @ self.z)

    @property
    def off(self) -> float:
        return float(np.abs(self.c).sum())

    @property
    def residual(self) -> float:
        return float(np.abs(self.c).max())

    def nearer(self, change: np.ndarray) -> float:
        """By how much `off` falls where c changes so.

        Of a far target, a difference of two sums would be rounding.
        """
        size = np.abs(self.c)
        within = np.abs(change) <= size
        gain = np.where(within, -np.sign(self.c) * change, size - np.abs(self.c + change))
        return float(gain.sum())


@dataclass(frozen=True)
class _Units:
    """z = sqrt(W) u / size, so that no unit of u or y matters and the linear plan has length 1."""

    per_z: np.ndarray
    energy_unit: float
    target: np.ndarray
    scale: np.ndarray
    bounds: Balls
    sizes: Balls
    radius: float

    @classmethod
    def of(cls, problem: Problem, u: np.ndarray, y: np.ndarray, gradient: np.ndarray) -> "_Units":
        root = np.sqrt(np.asarray(problem.weights, dtype=np.float64))
        scale, target = problem.miss_unit, np.asarray(problem.target, dtype=np.float64)
        jacobian = gradient / root / scale[:, None]
        linear = np.linalg.lstsq(jacobian, (target - y) / scale, rcond=1e-12)[0]
        size = max(np.linalg.norm(root * u), np.linalg.norm(linear)) or 1.0
        per_z = size / root
        sizes = [(matrix * per_z, radius) for matrix, radius in problem.sizes]
        return cls(
            per_z,
            float(size) ** 2,
            target,
            scale,
            Balls.of([(matrix * per_z, radius) for matrix, radius in problem.bounds], len(u)),
            Balls.of(sizes or [(np.eye(len(u)), 1.0)], len(u)),
            FIRST_RADIUS if sizes else 1.0,
        )

    def u(self, z: np.ndarray) -> np.ndarray:
        return self.per_z * z

    def point(self, u: np.ndarray, y: np.ndarray, gradient: np.ndarray) -> _Point:
        c, J = (y - self.target) / self.scale, gradient * self.per_z / self.scale[:, None]
        reached = float(np.abs(y / self.scale).sum())
        return _Point(u / self.per_z, c, J, y, gradient, reached)


class _Step(NamedTuple):
    z: np.ndarray
    d: np.ndarray
    promised: float


@dataclass
class _State:
    """Where a search stands: its point, the curvature, the region and the price of a miss."""

    units: _Units
    here: _Point
    bounds: Sequence[Ball]
    target_rtol: float
    kkt: float
    rounding: float
    steps: int = 0
    evaluations: int = 1
    ended: str | None = None
    price: float = 0.0
    rows: list[tuple[float, float, float, float, bool]] = field(default_factory=list)

    def __post_init__(self):
        self.H = self.bent = 2 * np.eye(len(self.here.z))
        self.radius = self.units.radius
        self.nearest = self.here
        self._settle()

    # ------------------------------------------------------------------ a step

    def propose(self) -> _Step | None:
        """The next point; None where there is nowhere to go, and then ``ended`` says why."""
        here = self.here
        found = self._solved(self.radius, None)
        if found is not None:
            d, _, duals = found
            # above the multipliers, and a step that the model likes is worth its energy
            self.price = max(self.price, 1.2 * float(np.abs(duals).max()))
            return self._step(d)
        nearest = self._solved(self.radius, np.inf)
        if nearest is None and here.J.any():
            self.ended = "stalled"
            return None
        d, gain = (np.zeros(len(here.z)), 0.0) if nearest is None else nearest[:2]
        if self._no_way_on(gain):
            self.ended = "no way on"
            return None
        # what nearer costs at the least, since the energy is convex in it
        price = max(self.price, 1.0, 0.9 * self._model(d) / gain)
        for _ in range(12):
            found = self._solved(self.radius, price)
            if found is not None and found[1] >= 0.9 * gain:
                break
            price *= 4
        d = d if found is None else found[0]
        self.price = max(self.price, price)
        return self._step(d)

    def _step(self, d: np.ndarray) -> _Step:
        units, here = self.units, self.here
        z = inside(units.u(here.z + d), self.bounds) / units.per_z
        d = z - here.z
        promised = self.price * here.nearer(here.J @ d) - self._model(d)
        return _Step(z, d, max(promised, 0.0))

    def _model(self, d: np.ndarray) -> float:
        """Change of the energy that the model expects, curvature of the constraint included."""
        return float(2 * self.here.z @ d + 0.5 * d @ self.H @ d)

    def _no_way_on(self, gain: float) -> bool:
        """Whether even the whole first region brings nothing; a small one always brings little."""
        units, here = self.units, self.here
        if (units.radius * units.sizes.reach(here.J) <= self.rounding).all():
            return True
        least = NO_WAY_ON * min(here.off, here.reached)
        if gain <= least and self.radius < units.radius:
            wide = self._solved(units.radius, np.inf)
            gain = 0.0 if wide is None else wide[1]
        return gain <= least

    def _most(self, rows: np.ndarray, radius: float) -> np.ndarray:
        """The most that a step can change rows (row, variable) @ z by."""
        by_step = radius * self.units.sizes.reach(rows)
        return np.minimum(by_step, self.units.bounds.reach(rows) + np.abs(rows @ self.here.z))

    def _solved(
        self, radius: float, price: float | None
    ) -> tuple[np.ndarray, float, np.ndarray] | None:
        """The model's best step, what that is nearer by, and multipliers; None if there is none.

        ``price`` of what may be left of c; None: nothing may, infinity: as little as possible.
        """
        c, J, n, m = self.here.c, self.here.J, len(self.here.z), len(self.here.c)
        most, unit, unit_c = self._most(J, radius), 1.0, 1.0
        if price is None:
            if (np.abs(c) > (1 + 1e-9) * most).any():
                return None
        elif not most.any():
            return None
        else:
            # Beyond what a step can do, a target may be at any distance: at twice that, and in
            # units of the step, the solver sees a problem of size one.
            c = np.clip(c, -2 * most, 2 * most)
            unit, unit_c = float(self._most(np.eye(n), radius).max()), float(np.abs(c).max())
        wide, here, J = self.units.bounds, self.here.z / unit, J * (unit / unit_c)
        copies, slack = n if wide.balls else 0, 0 if price is None else 2 * m
        size = n + copies + slack
        P, q = np.zeros((size, size)), np.zeros(size)
        only_near = price == np.inf
        cost = unit**2 / (1.0 if price is None else price * unit_c)
        P[:n, :n] = self.H * (1e-6 if only_near else cost)
        q[:n] = 2 * here * (0.0 if only_near else cost)
        A = np.zeros((m + copies, size))
        A[:m, :n] = J
        b = np.concatenate([-c / unit_c, here[:copies]])
        lower, upper = np.full(size, -np.inf), np.full(size, np.inf)
        step, box = radius / unit * self.units.sizes.box, wide.box / unit
        lower[:n], upper[:n] = np.maximum(-box - here, -step), np.minimum(box - here, step)
        # on a bound, rounding may have crossed it
        lower[:n], upper[:n] = np.minimum(lower[:n], 0), np.maximum(upper[:n], 0)
        if slack:
            A[:m, n + copies :] = np.concatenate([np.eye(m), -np.eye(m)], axis=1)
            q[n + copies :] = 1.0
            lower[n + copies :] = 0.0
        at_d, at_z = np.eye(n, size), np.eye(n, size, k=n)
        balls = [(matrix @ at_d, radius * r) for matrix, r in self.units.sizes.balls]
        if copies:
            A[m:] = at_z - at_d
            balls += [(matrix @ at_z, r) for matrix, r in wide.balls]
        if slack:
            balls = [(matrix * (unit / r), 1.0) for matrix, r in balls]
        try:
            found = quadratic_program(P, q, A, b, lower=lower, upper=upper, balls=balls)
        except np.linalg.LinAlgError:
            return None
        if not found.found:
            return None
        d = found.z[:n] * unit
        return d, self.here.nearer(self.here.J @ d), found.equal[:m]

    # ------------------------------------------------------------------ what came of it

    def judge(self, step: _Step, there: _Point) -> None:
        """Take the step or leave it; the region, the curvature and the records follow."""
        self.steps += 1
        self.evaluations += 1
        share = self._share(step, there) if there.is_finite else -np.inf
        if there.is_finite:
            self._bend(there)
            if self.nearest.nearer((there.y - self.nearest.y) / self.units.scale) > 0:
                self.nearest = there
        size = self.units.sizes.size(step.d)
        if share < TAKEN:
            self._record(False)
            self.radius = 0.3 * min(self.radius, size)
            if self.radius < SMALLEST_RADIUS * self.units.radius:
                self.ended = "stalled"
            return
        self.here = there
        if share < POOR:
            self.radius = max(0.5 * size, 0.25 * self.radius)
        elif share > GOOD and size > 0.8 * self.radius:
            self.radius *= 2.5
        self._settle()

    def _share(self, step: _Step, there: _Point) -> float:
        """How much of what the model promised came true."""
        here = self.here
        nearer = here.nearer((there.y - here.y) / self.units.scale)
        got = here.energy - there.energy + self.price * nearer
        # differences that rounding explains decide nothing
        doubt = self.price * self.rounding + 1e-14 * here.energy
        return (got + doubt) / (step.promised + doubt) if step.promised + doubt > 0 else -np.inf

    def _bend(self, there: _Point) -> None:
        """Symmetric rank-one update with the change of the Lagrangian's gradient.

        It learns negative curvature, which damped BFGS turns into a matrix that is nearly singular;
        the steps are those of its convex part, within the region.
        """
        s = there.z - self.here.z
        left = 2 * s - (there.J - self.here.J).T @ self.multipliers - self.bent @ s
        along = float(left @ s)
        if abs(along) <= 1e-8 * np.linalg.norm(left) * np.linalg.norm(s):
            return
        self.bent = self.bent + np.outer(left, left) / along
        values, vectors = np.linalg.eigh(self.bent)
        self.H = (vectors * np.clip(values, LEAST_CURVED, MOST_CURVED)) @ vectors.T

    def _settle(self) -> None:
        self.kkt_residual, self.multipliers = _stationarity(self.here, self.units.bounds)
        self._record(True)
        if self.here.residual <= self.target_rtol and self.kkt_residual <= self.kkt:
            self.ended = "met"

    def _record(self, taken: bool) -> None:
        here = self.here
        row = (here.energy, here.residual, self.kkt_residual, self.radius, taken)
        self.rows.append(row)

    def optimum(self) -> Optimum:
        """What has been found, in the units of the problem."""
        met = self.ended == "met"
        # a plan that reaches its target is kept even where it is not yet the cheapest
        keep = met or self.here.residual <= self.target_rtol
        best = self.here if keep else self.nearest
        left, multipliers = _stationarity(best, self.units.bounds)
        names = ("energy", "residual", "kkt_residual", "radius", "taken")
        table = np.array(self.rows)
        history = {name: table[:, place] for place, name in enumerate(names)}
        unit = self.units
        # |z|^2 is the energy in units of the linear plan's
        factor = unit.energy_unit
        history["energy"] = history["energy"] * factor
        return Optimum(
            unit.u(best.z),
            best.y,
            best.gradient,
            best.energy * factor,
            best.residual,
            left,
            multipliers * factor / unit.scale,
            met,
            self.ended or "steps",
            self.steps,
            self.evaluations,
            history,
        )


def _stationarity(point: _Point, bounds: Balls) -> tuple[float, np.ndarray]:
    """What is left of the condition of an optimum, and the multipliers (output) that make it so."""
    normals, m = bounds.normals(point.z), len(point.c)
    columns = np.concatenate([point.J, -normals]).T
    size = 2 * np.linalg.norm(point.z)
    if size == 0:
        return np.inf, np.zeros(m)
    if not len(normals):
        found = np.linalg.lstsq(columns, 2 * point.z, rcond=1e-12)[0]
    else:
        least = np.append(np.full(m, -np.inf), np.zeros(len(normals)))
        # it stops by absolute tolerances
        length = np.linalg.norm(columns, axis=0)
        length[length == 0] = 1.0
        scaled = columns / length, 2 * point.z / size
        found = lsq_linear(*scaled, (least, np.inf), method="bvls").x * size / length
    left = np.linalg.norm(2 * point.z - columns @ found) / size
    return float(left), found[:m]
