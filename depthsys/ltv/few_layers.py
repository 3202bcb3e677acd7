r"""The best few layers to push: by trying all sets, or greedily with a proved bound on the energy.

For every vector :math:`\nu` and every set S of at most s layers, the energy of a plan that reaches
d through S is at least :math:`\nu^\top d - \sum_{l \in S} \varphi_l(\nu)` with
:math:`\varphi_l(\nu) = \max_{z \in Z_l} \nu^\top G_l z - |z|^2 \ge 0` (weak duality), and so at
least :math:`\nu^\top d` less the s largest :math:`\varphi_l`. The best :math:`\nu` are the
multipliers of the perspective relaxation :math:`\min \sum_l |z_l|^2 / \zeta_l`, with
:math:`0 \le \zeta_l \le 1` and :math:`\sum_l \zeta_l \le s`; the bound is evaluated from them by
hand, so that it holds whatever the solver's tolerance.

References
----------
.. [1] Günlük and Linderoth (2010), Perspective reformulations of mixed integer nonlinear programs,
   doi:10.1007/s10107-010-0360-z.
"""

from collections.abc import Sequence
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np

from depthsys.ltv.bounded import Found, Limits, Task, least_push, reach, side_by_side
from depthsys.ltv.convex import quadratic_program
from depthsys.ltv.least_norm import least_norm, scaled_rows

MANY = 20_000  # sets of layers whose least norms are computed at once
MANY_BOUNDED = 1000  # sets that may each need a program to be solved; 12 layers have up to 924
SMALL = 12  # layers of which every set is tried, always
BETTER = 1 - 1e-9  # of an energy: less of an improvement is rounding
ROUNDS = 100


class Chosen(NamedTuple):
    """The best set of layers that was found, its plan, and a proved lower bound on the energy."""

    layers: tuple[int, ...]
    found: Found
    lower_bound: float
    exact: bool


def few_layers(task: Task, most: int) -> Chosen:
    """The plan of least energy (or nearest to the target) that pushes at most ``most`` layers."""
    useful = tuple(np.flatnonzero(task.G.any((1, 2))).tolist())
    if len(useful) <= most or not task.d.any():
        every = useful or tuple(range(len(task.G)))  # none helps
        return _exactly(every, least_push(task.of(every)))
    if task.limits is None and len(task.d) == 1:
        gains = (task.G[list(useful)] ** 2).sum((1, 2))
        best = tuple(sorted(np.array(useful)[np.argsort(-gains, kind="stable")[:most]].tolist()))
        return _exactly(best, least_push(task.of(best)))
    sets = comb(len(useful), most)
    if len(useful) <= SMALL or sets <= (MANY if task.limits is None else MANY_BOUNDED):
        return _exactly(*_best(task, list(combinations(useful, most))))
    shares, bound = _relaxed(task.of(useful), most)
    largest = tuple(sorted(np.array(useful)[np.argsort(-shares, kind="stable")[:most]].tolist()))
    starts = [_forward(task, useful, most), (largest, least_push(task.of(largest)))]
    ends = [_exchanged(task, useful, *start) for start in starts]
    layers, found = min(ends, key=lambda end: _score(end[1]))
    return Chosen(layers, found, bound if found.short == 0 else np.nan, False)


def _exactly(layers: tuple[int, ...], found: Found) -> Chosen:
    return Chosen(layers, found, found.energy if found.short == 0 else np.nan, True)


def _score(found: Found) -> tuple[float, float]:
    """What a plan misses comes first, its energy next."""
    return found.short, found.energy


def _best(task: Task, sets: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], Found]:
    """The set with the best plan; plans are made in the order of what they could be at best."""
    short, energy = _at_best(task, np.array(sets))
    first, *others = np.lexsort((energy, short))
    best = sets[first], least_push(task.of(sets[first]))
    if task.limits is None:
        return best  # nothing was optimistic
    for at in others:
        if not _better((float(short[at]), float(energy[at])), _score(best[1])):
            break
        found = least_push(task.of(sets[at]))
        if _score(found) < _score(best[1]):
            best = sets[at], found
    return best


def _better(score: tuple[float, float], than: tuple[float, float]) -> bool:
    """By more than rounding."""
    if abs(score[0] - than[0]) > 1e-9:
        return score[0] < than[0]
    return score[1] < than[1] * BETTER


def _at_best(task: Task, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every set (set, layer): the least that it can miss, and the least energy it can need.

    Exact without limits. Within them, nothing goes further along the multipliers of the plan
    without limits than all layers pushed as far along them as their limits allow.
    """
    columns = side_by_side(task.G[sets])
    least = least_norm(columns, task.d, task.rtol, task.floor, task.lost)
    short = np.where(least.miss > task.rtol, least.miss, 0.0)
    energy = (least.z**2).sum(-1)
    if task.limits is None:
        return short, energy
    pull = np.einsum("slri,sr->sli", task.G[sets], least.multipliers)
    each = reach(pull, Limits(*(bound[sets] for bound in task.limits)))
    part = np.minimum(1.0, each.sum(-1) / np.where(energy > 0, 2 * energy, 1.0))
    within = 1 - part > 1e-6
    return np.where(within, np.maximum(short, 1 - part), short), np.where(within, 0.0, energy)


def _forward(task: Task, useful: tuple[int, ...], most: int) -> tuple[tuple[int, ...], Found]:
    """One layer more at a time, that which helps most."""
    layers, found = _best(task, [(layer,) for layer in useful])
    while len(layers) < most:
        rest = [layer for layer in useful if layer not in layers]
        layers, found = _best(task, [tuple(sorted((*layers, layer))) for layer in rest])
    return layers, found


def _exchanged(
    task: Task, useful: tuple[int, ...], layers: tuple[int, ...], found: Found
) -> tuple[tuple[int, ...], Found]:
    """One layer for another, as long as that helps."""
    for _ in range(ROUNDS):
        rest = [layer for layer in useful if layer not in layers]
        kept = list(combinations(layers, len(layers) - 1))
        sets = [tuple(sorted((*some, layer))) for some in kept for layer in rest]
        other = _best(task, sets)
        if not _better(_score(other[1]), _score(found)):
            break
        layers, found = other
    return layers, found


def _relaxed(task: Task, most: int) -> tuple[np.ndarray, float]:
    """The perspective relaxation: the share of every layer (layer), and the bound that it proves.

    Infinite where it proves that no set of layers reaches the target.
    """
    n_layers, _, m = task.G.shape
    columns = side_by_side(task.G)
    least = least_norm(columns, task.d, task.rtol, task.floor, task.lost)
    rows = scaled_rows(columns, task.rtol, task.floor)
    basis, size = rows.Vt[rows.used], float(np.linalg.norm(least.z))
    if size == 0:  # nothing of the target is seen
        return np.zeros(n_layers), np.inf
    aim = basis @ least.z / size
    n = n_layers * m
    cost = np.concatenate([np.zeros(n + n_layers), np.ones(n_layers)])
    lower = np.concatenate([np.full(n, -np.inf), np.zeros(n_layers), np.full(n_layers, -np.inf)])
    upper = np.concatenate([np.full(n, np.inf), np.ones(n_layers), np.full(n_layers, np.inf)])
    below, cones = _shared(task.limits, n_layers, m, most, size)
    found = quadratic_program(
        np.zeros((len(cost), len(cost))),
        cost,
        np.pad(basis, ((0, 0), (0, 2 * n_layers))),
        aim,
        lower=lower,
        upper=upper,
        below=below,
        cones=cones,
    )
    if not found.found:
        return np.linalg.norm(least.z.reshape(n_layers, m), axis=-1), np.inf
    pull = (basis.T @ found.equal).reshape(n_layers, m)
    gained = np.sort(_gained(pull, task.limits, size))[::-1]
    return found.z[n : n + n_layers], max(0.0, found.equal @ aim - gained[:most].sum()) * size**2


def _shared(
    limits: Limits | None, n_layers: int, m: int, most: int, size: float
) -> tuple[tuple[np.ndarray, np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    r"""Half-spaces and cones of (z, zeta, tau): |z_l|^2 <= tau_l zeta_l, bounds times zeta_l."""
    z, zeta, tau = (np.zeros((n_layers, k, n_layers * (m + 2))) for k in (m, 1, 1))
    for layer in range(n_layers):
        z[layer, :, layer * m : (layer + 1) * m] = np.eye(m)
        zeta[layer, 0, n_layers * m + layer] = 1.0
        tau[layer, 0, n_layers * (m + 1) + layer] = 1.0
    cones = [
        (np.concatenate([t + s, t - s, 2 * x]), np.zeros(m + 2))
        for x, s, t in zip(z, zeta, tau, strict=True)
    ]
    spaces = [zeta.sum(0)]
    if limits is not None:
        for layer, (x, s) in enumerate(zip(z, zeta, strict=True)):
            for bound, sign in ((limits.upper[layer], 1.0), (limits.lower[layer], -1.0)):
                at = np.isfinite(bound)
                spaces.append(sign * (x[at] - bound[at, None] / size * s))
            if np.isfinite(limits.radius[layer]):
                part = limits.turn[layer] @ x
                cone = np.concatenate([limits.radius[layer] / size * s, part])
                cones.append((cone, np.zeros(m + 1)))
    below = np.concatenate(spaces)
    return (below, np.append(float(most), np.zeros(len(below) - 1))), cones


def _gained(pull: np.ndarray, limits: Limits | None, size: float) -> np.ndarray:
    """An upper bound (layer) of pull' z - |z|^2 within the limits in units of ``size``."""
    free = (pull**2).sum(-1) / 4
    if limits is None:
        return free
    z = np.clip(pull / 2, limits.lower / size, limits.upper / size)
    box = (pull * z - z**2).sum(-1)
    return np.minimum(box, _gained_in_ball(pull, limits.turn, limits.radius / size))


def _gained_in_ball(pull: np.ndarray, turn: np.ndarray, radius: np.ndarray) -> np.ndarray:
    r"""Least over mu >= 0 of pull' (I + mu turn' turn)^-1 pull / 4 + mu radius^2: any mu proves."""
    _, s, Vt = np.linalg.svd(turn)
    parts = np.einsum("lij,lj->li", Vt, pull) ** 2 / 4
    stretch = s**2
    bounded = np.isfinite(radius)
    limit = np.where(bounded, radius, 0.0) ** 2

    def at(mu):
        return (parts / (1 + mu[:, None] * stretch)).sum(-1) + mu * limit

    def slope(mu):
        return limit - (parts * stretch / (1 + mu[:, None] * stretch) ** 2).sum(-1)

    low, high = np.zeros(len(radius)), np.ones(len(radius))
    for _ in range(200):
        high = np.where(slope(high) < 0, 2 * high, high)
    for _ in range(100):
        middle = (low + high) / 2
        falls = slope(middle) < 0
        low, high = np.where(falls, middle, low), np.where(falls, high, middle)
    free = at(np.zeros(len(radius)))
    return np.where(bounded, np.minimum(at(high), free), free)
