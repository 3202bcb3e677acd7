"""Least-norm solutions of linear constraints, with rank decisions that no unit changes."""

from typing import NamedTuple

import numpy as np

from depthsys.ltv.gramians import used_values
from depthsys.ltv.matrix_free import transposed
from depthsys.ltv.rounding import lengths

EPS = np.finfo(float).eps


class LeastNorm(NamedTuple):
    """The least z with G z = d, and what is known about it.

    ``reached`` (..., row) is what of d can be reached, without the rounding of G z; ``miss`` (...)
    its relative distance from d with rows in units of their own size, ``multipliers`` (..., row)
    the derivative of ``|z|^2`` with respect to d, ``rank`` (...).
    """

    z: np.ndarray
    reached: np.ndarray
    miss: np.ndarray
    multipliers: np.ndarray
    rank: np.ndarray


def least_norm(G: np.ndarray, d: np.ndarray, rtol: float, floor: np.ndarray) -> LeastNorm:
    """Of rows (..., row, column), each scaled to unit size before ranks are decided.

    Parameters
    ----------
    G, d
        Constraints (..., row, column) and what they should give (..., row).
    rtol
        Singular values of the scaled rows below ``rtol`` of the largest count as zero.
    floor
        Sizes (..., row) below which a row is rounding and counts as zero.

    Notes
    -----
    Where d cannot be reached, z is the least-squares solution in the units of d.
    """
    G, d, floor = np.asarray(G), np.asarray(d), np.asarray(floor)
    if G.shape[-2] == 0:
        batch = np.broadcast_shapes(G.shape[:-2], d.shape[:-1])
        nothing, none = np.zeros(batch), np.zeros((*batch, 0))
        return LeastNorm(np.zeros((*batch, G.shape[-1])), none, nothing, none, nothing.astype(int))
    size = lengths(G)
    alive = size > floor
    scale = np.where(alive, 1.0 / np.where(alive, size, 1.0), 0.0)
    U, s, Vt = np.linalg.svd(G * scale[..., None], full_matrices=False)
    used = used_values(s, rtol)
    inverse = np.where(used, 1.0 / np.where(used, s, 1.0), 0.0)
    wanted = d * scale
    shares = np.where(used, _times(transposed(U), wanted), 0.0)
    inside = _times(U, shares)
    miss = _relative(inside - wanted, wanted)
    miss = np.where(((d != 0) & ~alive).any(-1), 1.0, miss)
    z = _times(transposed(Vt), shares * inverse)
    reached = np.where(alive, inside / np.where(alive, scale, 1.0), 0.0)
    far = miss > rtol
    if far.any():
        seen = G @ (transposed(Vt) * used[..., None, :])  # columns that some row sees
        share = _times(np.linalg.pinv(seen, rcond=EPS * max(G.shape[-2:])), d)
        z = np.where(far[..., None], _times(transposed(Vt), share * used), z)
        reached = np.where(far[..., None], _times(seen, share), reached)
    multipliers = 2 * scale * _times(U, inverse * _times(Vt, z))
    rank = np.broadcast_to(used.sum(-1), miss.shape).copy()
    return LeastNorm(z, reached, miss, multipliers, rank)


def left_to_reach(wanted: np.ndarray, alone: np.ndarray, n_states: int) -> np.ndarray:
    """Wanted - alone, zero where that is rounding of the two."""
    gap = wanted - alone
    rounding = 64 * EPS * n_states * (np.abs(wanted) + np.abs(alone))
    return np.where(np.abs(gap) > rounding, gap, 0.0)


def _times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return (matrix @ vector[..., None])[..., 0]


def _relative(miss: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """|miss| / |wanted| without overflow or underflow; |miss| where nothing is wanted."""
    largest = np.abs(wanted).max(-1, keepdims=True)
    scale = np.where(largest > 0, largest, 1.0)
    norm = np.linalg.norm(wanted / scale, axis=-1)
    return np.linalg.norm(miss / scale, axis=-1) / np.where(norm > 0, norm, 1.0)
