"""Least distance under linear equalities and inequalities, by scipy's non-negative least squares.

The problems here have the identity for a Hessian (`optimal_inputs` sees to that), and for these an
active-set solver is exact: Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23.
"""

from typing import NamedTuple

import numpy as np

from depthsys.ltv.gramians import used_values

EPS = np.finfo(float).eps
SWEEPS = 100


class Solution(NamedTuple):
    """The point, multipliers of equalities and inequalities, and how far it is from optimal.

    ``stationarity`` is ``|2 w - G' equal - T' unequal| / |2 w|`` and ``violation`` the largest one
    of an inequality, in units of the variables. ``found`` is False where nothing satisfies all.
    """

    w: np.ndarray
    equal: np.ndarray
    unequal: np.ndarray
    stationarity: float
    violation: float
    found: bool


def least_distance(
    G: np.ndarray, w: np.ndarray, T: np.ndarray, least: np.ndarray, rtol: float
) -> Solution:
    """The shortest w' with G w' = G w and T w' >= least.

    Parameters
    ----------
    G
        Equalities (row, column), each of unit size, or zero.
    w
        The shortest vector that satisfies the equalities alone (column).
    T, least
        Inequalities (inequality, column), (inequality).
    rtol
        Singular values of G below ``rtol`` of the largest count as zero.
    """
    Z = _null_space(G, rtol)
    A, b = T @ Z, least - T @ w
    size = np.linalg.norm(A, axis=1)
    free = size > 64 * EPS * np.linalg.norm(T, axis=1)
    tolerance = 1e3 * EPS * (np.abs(T) @ np.abs(w) + np.abs(least))
    if (b[~free] > tolerance[~free]).any():
        return _nothing(G, w, T, b)
    A, b = A[free] / size[free, None], b[free] / size[free]
    v, active = np.zeros(Z.shape[1]), np.zeros(len(b))
    if (b > 0).any():
        shortest = _shortest(A, b)
        if shortest is None:
            return _nothing(G, w, T, b)
        v, active = _polished(A, b, *shortest)
    unequal = np.zeros(len(T))
    unequal[free] = 2 * active / size[free]
    point = w + Z @ v
    equal = np.linalg.lstsq(G.T, 2 * point - T.T @ unequal, rcond=rtol)[0]
    off = 2 * point - G.T @ equal - T.T @ unequal
    length = np.linalg.norm(2 * point)
    violation = max((least - T @ point).max(initial=0.0), 0.0)
    if violation > 1e-7 * (np.abs(T @ point).max(initial=0.0) + np.abs(least).max(initial=0.0)):
        raise np.linalg.LinAlgError(
            "`lower` and `upper` must leave a problem that can be solved to rounding; got inputs "
            f"that pass a bound by {violation:.1e}. Widen the bounds, or free some targets."
        )
    return Solution(
        point,
        equal,
        unequal,
        float(np.linalg.norm(off) / (length if length > 0 else 1.0)),
        float(violation),
        True,
    )


def least_in_box(
    inverse: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[Solution, np.ndarray]:
    """The shortest w = ``inverse`` v (square) with low <= v <= high, and v.

    There always is one. It is sought as v, which keeps its digits where w is very long.
    """
    size = np.linalg.norm(inverse, axis=0)
    v = _in_box(inverse, size, low, high)
    for _ in range(SWEEPS):  # what costs little beside the rest is lost on a solver of all
        before = v.copy()
        point = inverse @ v
        for i in reversed(range(len(v))):
            best = min(max(v[i] - inverse[:, i] @ point / size[i] ** 2, low[i]), high[i])
            point += inverse[:, i] * (best - v[i])
            v[i] = best
        if (np.abs(v - before) <= 4 * EPS * np.abs(v)).all():
            break
    point = inverse @ v
    slope = 2 * inverse.T @ point
    # an input on its bound is held there by the slope, any other one has none
    held = np.array([np.where(v == low, slope, 0.0), np.where(v == high, -slope, 0.0)]).clip(0.0)
    left = np.abs(slope - held[0] + held[1])
    terms = 2 * np.abs(inverse).T @ np.abs(point)
    off = float((left / np.where(terms > 0, terms, 1.0)).max(initial=0.0))
    kept = np.concatenate([np.isfinite(low), np.isfinite(high)])
    return Solution(point, np.zeros(0), held.ravel()[kept], off, 0.0, True), v


def _in_box(inverse: np.ndarray, size: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    from scipy.optimize import lsq_linear

    v, free = np.where(low == high, low, 0.0), low < high
    if free.any():
        options = {"method": "bvls", "tol": 1e-15, "max_iter": 50 * len(low)}
        box = (low[free] * size[free], high[free] * size[free])
        columns = inverse[:, free] / size[free]
        found = lsq_linear(columns, -inverse @ v, box, **options)
        v[free] = found.x / size[free]
        sides = np.zeros(len(v))
        sides[free] = found.active_mask
        v = np.where(sides < 0, low, np.where(sides > 0, high, v))
    return np.clip(v, low, high)


def _shortest(A: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The shortest v with A v >= b (rows of unit size) and its multipliers; None if there is none.

    That there is none is proved by multipliers y >= 0 with A' y = 0 and b' y > 0 (Farkas). A long
    v leaves a small remainder too, in the unit of length that was tried: then a longer one is.
    """
    scale = b.max()  # no v is shorter than that
    v, active = np.zeros(A.shape[1]), np.zeros(len(b))
    for _ in range(8):
        stack = np.vstack([A.T, b[None] / scale])
        goal = np.append(np.zeros(len(stack) - 1), 1.0)
        found = _non_negative(stack, goal)
        rest = goal - stack @ found
        if np.linalg.norm(rest[:-1]) <= 16 * EPS * len(goal) * found.sum() and rest[-1] < 0.5:
            return None
        if not found.any():  # the bounds are lost beside so long a v
            break
        if rest[-1] > 0:
            v, active = -scale * rest[:-1] / rest[-1], found * scale / rest[-1]
        if rest[-1] > 1e-4:
            break
        scale /= np.sqrt(max(rest[-1], 1e-8))
    return v, active


def _non_negative(stack: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The non-negative least-squares solution, verified.

    `scipy.optimize.nnls` can stop early where columns depend on each other, as those of an input
    do whose two bounds are one; then its slower neighbour has the last word.
    """
    from scipy.optimize import lsq_linear, nnls  # half of the time that scipy takes to import

    allowed = 1e-11 * np.linalg.norm(stack, axis=0).max()
    try:
        found, _ = nnls(stack, goal, maxiter=50 * stack.shape[1])
    except RuntimeError:
        found = np.zeros(stack.shape[1])
    if (stack.T @ (goal - stack @ found)).max() > allowed:
        options = {"method": "bvls", "tol": 1e-15, "max_iter": 50 * stack.shape[1]}
        found = np.maximum(lsq_linear(stack, goal, (0, np.inf), **options).x, 0.0)
    return found


def _polished(
    A: np.ndarray, b: np.ndarray, v: np.ndarray, active: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The point that lies exactly on the active inequalities, if it is as good."""
    on = active > 0
    point, *_ = np.linalg.lstsq(A[on], b[on], rcond=None)
    multipliers = np.zeros(len(b))
    multipliers[on] = np.linalg.lstsq(A[on].T, point, rcond=None)[0]
    allowed = 1e-9 * (1 + np.abs(b).max())
    worse = (b - A @ point).max() > max(allowed, (b - A @ v).max())
    if worse or multipliers.min() < -1e-9 * np.abs(multipliers).max(initial=0.0):
        return v, active
    return point, np.maximum(multipliers, 0.0)


def _null_space(G: np.ndarray, rtol: float) -> np.ndarray:
    if len(G) == 0:
        return np.eye(G.shape[1])
    _, s, Vt = np.linalg.svd(G)
    rank = int(used_values(s, rtol).sum())
    return Vt[rank:].T


def _nothing(G: np.ndarray, w: np.ndarray, T: np.ndarray, b: np.ndarray) -> Solution:
    zero = np.zeros
    return Solution(w, zero(len(G)), zero(len(T)), np.inf, float(b.max(initial=0.0)), False)
