"""The least push through chosen layers, within bounds: one member of a batch, in numpy.

Everything is in the coordinates z of a layer in which the energy is |z|^2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from depthsys.ltv.convex import quadratic_program
from depthsys.ltv.least_norm import LeastNorm, least_norm, scaled_rows

# Of the way to what bounds allow at most: a target on the very edge leaves a solver no room.
EDGE = 1e-8
INSIDE = 1e-12  # relative: a push this near to its bound is within it


class Limits(NamedTuple):
    """Bounds on the pushes of every layer.

    ``lower`` and ``upper`` (layer, input), infinite where there is none; ``|turn_l z_l|`` is at
    most ``radius_l``, for ``turn`` (layer, input, input) and ``radius`` (layer).
    """

    lower: np.ndarray
    upper: np.ndarray
    turn: np.ndarray
    radius: np.ndarray

    def of(self, layers: Sequence[int] | np.ndarray) -> "Limits":
        """Those of some layers."""
        at = np.asarray(layers, dtype=int)
        return Limits(*(each[at] for each in self))

    def allow(self, z: np.ndarray) -> bool:
        """Whether z (layer, input) is within them."""
        room = 1 + INSIDE
        box = (z <= self.upper * room) & (z >= self.lower * room)
        return bool(box.all() and (self.lengths(z) <= self.radius * room).all())

    def lengths(self, z: np.ndarray) -> np.ndarray:
        """What a radius bounds (layer)."""
        return np.linalg.norm(np.einsum("lij,lj->li", self.turn, z), axis=-1)

    def nearest(self, z: np.ndarray) -> np.ndarray:
        """Within them: what a solver left outside by its tolerance is taken back."""
        z = np.clip(z, self.lower, self.upper)
        size = self.lengths(z)
        over = size > self.radius
        return z * np.where(over, self.radius / np.where(over, size, 1.0), 1.0)[:, None]

    def touched(self, z: np.ndarray) -> np.ndarray:
        """Which layers (layer) lie on one of them."""
        near = 1 - 1e-6
        box = (z >= self.upper * near) & (z > 0) | (z <= self.lower * near) & (z < 0)
        ball = (self.lengths(z) >= self.radius * near) & z.any(-1)
        return np.asarray(box.any(-1) | ball)


class Task(NamedTuple):
    """What is to be reached: ``G`` (layer, row, input), ``d`` (row); see `least_norm` for the rest.

    ``limits`` is None where a push may be of any size.
    """

    G: np.ndarray
    d: np.ndarray
    floor: np.ndarray
    lost: np.ndarray
    rtol: float
    limits: Limits | None = None

    def of(self, layers: Sequence[int] | np.ndarray) -> "Task":
        """Where only some layers push."""
        at = np.asarray(layers, dtype=int)
        limits = None if self.limits is None else self.limits.of(at)
        return self._replace(G=self.G[at], limits=limits)


class Found(NamedTuple):
    """A plan: ``z`` (layer, input), and what is known about it.

    ``short`` is the part of the target that is not reached, as a relative distance; ``kkt``, what
    is left of the optimality conditions, relative to the gradient of the energy and the energy.
    """

    z: np.ndarray
    reached: np.ndarray
    short: float
    multipliers: np.ndarray
    kkt: float
    least: LeastNorm

    @property
    def energy(self) -> float:
        """Sum of squares of z."""
        return float((self.z**2).sum())


def side_by_side(G: np.ndarray) -> np.ndarray:
    """(..., layer, row, input) as (..., row, layer and input)."""
    moved = np.moveaxis(G, -3, -2)
    return moved.reshape(*moved.shape[:-2], -1)


def least_push(task: Task) -> Found:
    """The least z within the limits; as far towards the target as they allow where it is beyond."""
    columns = side_by_side(task.G)
    least = least_norm(columns, task.d, task.rtol, task.floor, task.lost)
    z = least.z.reshape(len(task.G), -1)
    short = float(least.miss) if least.miss > task.rtol else 0.0
    if task.limits is None or not z.any() or task.limits.allow(z):
        return Found(z, least.reached, short, least.multipliers, _left(columns, z, least), least)
    rows = scaled_rows(columns, task.rtol, task.floor)
    seen = np.flatnonzero(task.G.any((1, 2)))  # what nothing sees would float in the solver
    limits = task.limits.of(seen)
    m = task.G.shape[-1]
    basis = rows.Vt[rows.used].reshape(-1, *z.shape)[:, seen].reshape(-1, len(seen) * m)
    size = float(np.linalg.norm(z))
    aim = basis @ z[seen].ravel() / size
    part = min(1.0, _largest_part(basis, aim, size, limits) * (1 - EDGE))
    if part <= 0.0:
        nothing = np.zeros_like(z)
        return Found(nothing, 0 * least.reached, 1.0, np.full(len(task.d), np.nan), 0.0, least)
    found = np.zeros_like(z)
    found[seen], kkt, slope = _within(basis, aim, part * size, limits)
    # of basis @ z per d: the chain rule through the scaled rows
    slope = rows.scale * (rows.U[:, rows.used] @ (slope / rows.s[rows.used]))
    if 1 - part > 10 * EDGE:
        short = max(short, 1 - part)
    return Found(found, part * least.reached, short, slope, kkt, least)


def _left(columns: np.ndarray, z: np.ndarray, least: LeastNorm) -> float:
    """What G' multipliers leaves of the gradient 2 z of the energy, relative to it."""
    gradient = 2 * z.ravel()
    size = np.linalg.norm(gradient)
    if size == 0:
        return 0.0
    return float(np.linalg.norm(gradient - columns.T @ least.multipliers) / size)


def _largest_part(basis: np.ndarray, aim: np.ndarray, size: float, limits: Limits) -> float:
    """The largest t <= 2 for which t aim can be reached within the limits, in units of ``size``."""
    # nothing goes further along the aim than every push as far along it as its bound allows
    far = float(reach((basis.T @ aim).reshape(limits.lower.shape), limits).sum())
    if far <= 0:
        return 0.0
    unit = min(size, far)
    n = basis.shape[1]
    box, balls = _bounds(limits, unit)
    lower, upper = np.append(box[0], 0.0), np.append(box[1], 2.0)
    balls = [(np.pad(matrix, ((0, 0), (0, 1))), radius) for matrix, radius in balls]
    found = quadratic_program(
        np.zeros((n + 1, n + 1)),
        -np.eye(n + 1)[n],
        np.column_stack([basis, -aim]),
        np.zeros(len(basis)),
        lower=lower,
        upper=upper,
        balls=balls,
    )
    return float(found.z[n]) * unit / size


def _within(
    basis: np.ndarray, aim: np.ndarray, size: float, limits: Limits
) -> tuple[np.ndarray, float, np.ndarray]:
    """The least z with basis z = size aim, its KKT residual and the derivative by basis z."""
    (lower, upper), balls = _bounds(limits, size)
    n = basis.shape[1]
    found = quadratic_program(
        2 * np.eye(n), np.zeros(n), basis, aim, lower=lower, upper=upper, balls=balls
    )
    if not found.found:
        raise np.linalg.LinAlgError(
            "the bounded problem must be solvable; got no solution where one was found before. "
            "Scale the bounds and the target to sizes that do not differ by many decades."
        )
    z = limits.nearest(found.z.reshape(limits.lower.shape) * size)
    return z, max(found.stationarity, found.gap), found.equal * size


def reach(pull: np.ndarray, limits: Limits) -> np.ndarray:
    """An upper bound (..., layer) of pull' z (..., layer, input) within the limits.

    Exact where a layer has a box or a ball, not both.
    """
    some = pull != 0
    bound = np.where(some, np.where(pull > 0, limits.upper, limits.lower), 0.0)
    box = (pull * bound).sum(-1)
    stretch = np.linalg.svd(limits.turn, compute_uv=False)
    full = stretch[..., -1] > 1e-12 * stretch[..., 0]
    identity = np.eye(pull.shape[-1])
    inverse = np.linalg.inv(np.where(full[..., None, None], limits.turn, identity))
    length = np.linalg.norm((pull[..., None, :] @ inverse)[..., 0, :], axis=-1)
    seen = full & (length > 0)  # infinity times zero is no number
    ball = np.where(seen, np.where(seen, length, 1.0) * limits.radius, np.inf)
    return np.where(some.any(-1), np.minimum(box, ball), 0.0)


def _bounds(
    limits: Limits, unit: float
) -> tuple[tuple[np.ndarray, np.ndarray], list[tuple[np.ndarray, float]]]:
    """The limits of z / unit as a box and balls; a ball of one input is a box."""
    lower, upper = limits.lower / unit, limits.upper / unit
    n_layers, m = lower.shape
    stretch = np.linalg.norm(limits.turn, axis=(-2, -1))
    bounded = np.isfinite(limits.radius) & (stretch > 0)
    if m == 1:
        most = np.where(bounded, limits.radius / np.where(bounded, stretch, 1.0), np.inf) / unit
        lower, upper = np.maximum(lower, -most[:, None]), np.minimum(upper, most[:, None])
        return (lower.ravel(), upper.ravel()), []
    balls = []
    for layer in np.flatnonzero(bounded):
        matrix = np.zeros((m, n_layers, m))
        matrix[:, layer] = limits.turn[layer] / stretch[layer]
        balls.append((matrix.reshape(m, -1), limits.radius[layer] / stretch[layer] / unit))
    return (lower.ravel(), upper.ravel()), balls
