"""Least-norm solutions of linear constraints, with rank decisions that no unit changes."""

from typing import NamedTuple

import numpy as np
import xarray as xr

from depthsys.ltv.gramians import used_values
from depthsys.ltv.matrix_free import transposed
from depthsys.ltv.rounding import YES, certificate, lengths

EPS = np.finfo(float).eps
SMALLEST = np.finfo(float).tiny  # the inverse of what is below it may be no number


class LeastNorm(NamedTuple):
    """The least z with G z = d, and what is known about it.

    ``reached`` (..., row) is what of d can be reached, without the rounding of G z; ``miss`` (...)
    its relative distance from d with rows in units of their own size, ``multipliers`` (..., row)
    the derivative of ``|z|^2`` with respect to d, ``rank`` (...) with ``resolution`` (...), what
    rounding explains in a singular value of the scaled rows, and whether it is ``certain`` (...).
    """

    z: np.ndarray
    reached: np.ndarray
    miss: np.ndarray
    multipliers: np.ndarray
    rank: np.ndarray
    resolution: np.ndarray
    certain: np.ndarray


class ScaledRows(NamedTuple):
    """Rows (..., row, column) in units of their own size, by their singular values.

    ``size`` (..., row); ``alive``, which are more than rounding; ``scale``, one over the size, or
    zero; ``U``, ``s``, ``Vt`` of the scaled rows; ``used``, which singular values count.
    """

    size: np.ndarray
    alive: np.ndarray
    scale: np.ndarray
    U: np.ndarray
    s: np.ndarray
    Vt: np.ndarray
    used: np.ndarray

    @property
    def inverse(self) -> np.ndarray:
        """One over the singular values that count, zero for the others."""
        return np.where(self.used, 1.0 / np.where(self.used, self.s, 1.0), 0.0)


def scaled_rows(G: np.ndarray, rtol: float, floor: np.ndarray) -> ScaledRows:
    """See `ScaledRows`; ``rtol`` and ``floor`` as in `least_norm`."""
    size = lengths(G)
    alive = (size > floor) & (size >= SMALLEST)
    scale = np.where(alive, 1.0 / np.where(alive, size, 1.0), 0.0)
    U, s, Vt = np.linalg.svd(G * scale[..., None], full_matrices=False)
    return ScaledRows(size, alive, scale, U, s, Vt, used_values(s, rtol))


def least_norm(
    G: np.ndarray, d: np.ndarray, rtol: float, floor: np.ndarray, lost: np.ndarray
) -> LeastNorm:
    """Of rows (..., row, column), each scaled to unit size before ranks are decided.

    Parameters
    ----------
    G, d
        Constraints (..., row, column) and what they should give (..., row).
    rtol
        Singular values of the scaled rows below ``rtol`` of the largest count as zero.
    floor
        Sizes (..., row) below which a row is rounding and counts as zero.
    lost
        Sizes (..., row) of what rounding leaves in a row.

    Notes
    -----
    Where d cannot be reached, z is the least-squares solution in the units of d.
    """
    G, d, floor, lost = (np.asarray(x) for x in (G, d, floor, lost))
    if G.shape[-2] == 0:
        batch = np.broadcast_shapes(G.shape[:-2], d.shape[:-1])
        nothing, none = np.zeros(batch), np.zeros((*batch, 0))
        z = np.zeros((*batch, G.shape[-1]))
        return LeastNorm(z, none, nothing, none, nothing.astype(int), nothing, nothing == 0)
    seen_rows = scaled_rows(G, rtol, floor)
    size, alive, scale, U, s, Vt, used = seen_rows
    inverse = seen_rows.inverse
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
    with np.errstate(over="ignore"):  # as does the square of z, which is what is refused
        multipliers = 2 * scale * _times(U, inverse * _times(Vt, z))
    resolution = np.linalg.norm(lost * scale, axis=-1) + EPS * sum(G.shape[-2:])
    limit, doubt = rtol * s[..., :1], resolution[..., None]
    certain = ((s > limit + doubt) == (s > limit - doubt)).all(-1) & (alive | (size == 0)).all(-1)
    is_nothing = (size == 0).all(-1) & (lost == 0).all(-1)  # nor did anything vanish: rank 0
    certain = certain | is_nothing
    known = (np.broadcast_to(x, miss.shape).copy() for x in (used.sum(-1), resolution, certain))
    return LeastNorm(z, reached, miss, multipliers, *known)


def rank_in_words(
    name: str, certain: xr.DataArray, resolution: xr.DataArray, rtol: float, also: str
) -> str:
    """The text of ``attrs["certified"]`` for a rank, and ``also`` for the rest."""
    text = certificate(certain, resolution, rtol, "`rtol`")
    parts = [f"{name} is {text}"] if text != YES else []
    return "; ".join([*parts, *([also] if also != YES else [])]) or YES


def overflowing(what: str, u: np.ndarray) -> str:
    """The message about a cost of inputs u that is beyond the largest number."""
    return (
        f"`{what}` must be a finite number; got inf, since the targets ask for inputs of "
        f"{np.abs(u).max():.1e}. Give the inputs a larger unit (multiply B by it), or the targets."
    )


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
