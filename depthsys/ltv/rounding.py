r"""What rounding leaves of norms, Hankel values, bases and ranks: ``resolution``.

One number per system, output/input: eps times the sizes summed over times

.. math:: \sum_l s_{l+1}^\top (|A_l| r_l + b_l) + \sum_k c_k^\top r_k,

where r, s, b and c hold the lengths of the rows of R, S, B and of the columns of C. It bounds (to
first order) what the rounding errors of all products and QRs on the way do to any S' R and to any
entry of the input-output map, since the error made at state i of depth k is seen by the outputs
through row i of S_k. No scaling of states, inputs or outputs changes it. It is far above eps ||G||
when there are states that are easy to reach and hard to see. Near the smallest numbers it is
widened by what products lose in underflow.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.sparse.linalg import LinearOperator

EPS = float(np.finfo(float).eps)
TINY = float(np.finfo(float).smallest_subnormal)  # what a product loses at most below 1e-308
CERTIFIABLE = 1e-3  # of the Hankel norm: above it a first-order estimate of rounding proves nothing
YES = "yes"
BLOCK = 2**18  # numbers that fit a cache
FEW = 2**14  # numbers for which a call costs more than the work
SAMPLES = 8


def resolution_of(
    A,
    B,
    C,
    R: Sequence[np.ndarray],
    S: Sequence[np.ndarray],
    rows: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """What rounding explains in S' R and in the input-output map, (...), inf where it overflows.

    ``rows`` are the `row_lengths` of R and of S, if they are known.
    """
    rows = (row_lengths(R), row_lengths(S)) if rows is None else rows
    sizes = max(f.shape[-2] + f.shape[-1] for f in R) + max(f.shape[-1] for f in S)
    total = _terms(A, B, C, R, S, rows)
    with np.errstate(over="ignore", under="ignore"):
        lost = EPS * sizes * total
        r, s = rows
        parts = (r.max((-2, -1)), s.max((-2, -1)), 1.0)
        below = TINY * sizes * sum(f.shape[-2] for f in R) * sum(parts)
        if (near := below > 1e-3 * lost).any():
            lost = np.where(near, lost + below * _meet(A, B, r, s), lost)
    return np.where(np.isnan(total), np.inf, lost)


def _meet(A, B, r: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Whether anything that is reached is seen, by which entries are not zero, (...).

    Where nothing is, the map is zero and no product can have vanished in underflow.
    """
    seen = s > 0
    found = (seen & (r > 0)).any((-2, -1))
    for k, a in enumerate(A):
        made = (B[k] != 0).any(-1)
        found = found | (seen[..., k + 1, : made.shape[-1]] & made).any(-1)
        if isinstance(a, LinearOperator):
            continue
        moved = ((a != 0) & (r[..., k, None, : a.shape[-1]] > 0)).any(-1)
        found = found | (seen[..., k + 1, : moved.shape[-1]] & moved).any(-1)
    return np.asarray(found)


def _terms(A, B, C, R, S, rows: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The sizes of all terms, seen by the outputs, summed over times (...)."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        r, s = rows
        total = (s[..., 1:, :] * row_lengths(B)).sum((-2, -1))
        total = total + (row_lengths([transposed(c) for c in C]) * r).sum((-2, -1))
        if isinstance(A[0], LinearOperator):
            total = total + sum(_unseen(R[k : k + 2], S[k : k + 2]) for k in range(len(A)))
            return total
        if sum(a.size for a in A) <= FEW and len({a.shape for a in A}) == 1:
            reached = _reached(np.stack(A, axis=-3), r[..., :-1, :])
            return total + (s[..., 1:, :] * reached).sum((-2, -1))
        parts = [_through(a, r[..., k, :], s[..., k + 1, :]) for k, a in enumerate(A)]
        return total + sum(parts)


def _through(a: np.ndarray, r: np.ndarray, s: np.ndarray) -> np.ndarray:
    """The sum of s_i |a_ij| r_j."""
    if max(a.ndim - 1, r.ndim, s.ndim) > 1 or a.size <= BLOCK:
        return (s * (np.abs(a) @ r[..., None])[..., 0]).sum(-1)
    rows = max(1, BLOCK // a.shape[-1])  # at a time, so that |a| stays in the cache
    parts = (s[..., i : i + rows] * _reached(a[i : i + rows], r) for i in range(0, len(a), rows))
    return np.concatenate(list(parts), axis=-1).sum(-1)


def _reached(a: np.ndarray, r: np.ndarray) -> np.ndarray:
    return (np.abs(a) @ r[..., None])[..., 0]


def _unseen(R: Sequence[np.ndarray], S: Sequence[np.ndarray]) -> np.ndarray:
    """||S_{l+1}|| ||A_l|| ||R_l|| for an operator, whose size its products so far have shown."""
    return np.maximum(frobenius(S[1]) * frobenius(R[1]), frobenius(S[0]) * frobenius(R[0]))


def noise_of_factors(
    A, B, R: Sequence[np.ndarray], rows: np.ndarray | None = None
) -> list[np.ndarray]:
    """Random samples (..., state, sample) of what rounding leaves in the factors R_k.

    ``rows`` are the `row_lengths` of R, if they are known.

    The rounding errors made at every depth, with random signs, are carried on by A: a length of the
    samples estimates that of the error, where a bound by norms would grow with ||A||^k.
    """
    rng = np.random.default_rng(0)
    sizes = max(f.shape[-2] + f.shape[-1] for f in R)
    noise = [np.zeros((*R[0].shape[:-1], SAMPLES))]
    rows = row_lengths(R) if rows is None else rows
    new = row_lengths(B)
    for layer, a in enumerate(A):
        r = rows[..., layer, : R[layer].shape[-2]]
        made = new[..., layer, : B[layer].shape[-2]]
        if isinstance(a, LinearOperator):
            made = made + rows[..., layer + 1, : R[layer + 1].shape[-2]]
        else:
            made = made + _reached(a, r)
        signs = rng.standard_normal((made.shape[-1], SAMPLES))
        noise.append(a @ noise[-1] + EPS * sizes * made[..., None] * signs)
    return noise


def size_of_noise(noise: np.ndarray) -> np.ndarray:
    """An estimate, three times on the safe side, of the Frobenius norm behind samples."""
    return 3 * frobenius(noise) / np.sqrt(noise.shape[-1])


def resolution_of_map(G: np.ndarray, error: np.ndarray | float = 0.0) -> np.ndarray:
    """What rounding leaves of singular values of blocks of a map with that ``error``, (...).

    ``G`` (..., depth, output, layer, input).
    """
    rows = G.reshape(*G.shape[:-4], G.shape[-4] * G.shape[-3], -1)
    with np.errstate(over="ignore"):
        size = frobenius(rows)
        return np.array(sum(rows.shape[-2:]) * (EPS * size + TINY * (size > 0)) + error)


def local_noises(
    R: Sequence[np.ndarray], S: Sequence[np.ndarray], rows: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """What the product S' R loses at every depth, (..., depth), from the `row_lengths` of both."""
    sizes = [r.shape[-2] + r.shape[-1] + s.shape[-1] for r, s in zip(R, S, strict=True)]
    with np.errstate(over="ignore", under="ignore"):
        meet = ((rows[0] > 0) & (rows[1] > 0)).any(-1)
        return np.array(sizes) * (EPS * (rows[0] * rows[1]).sum(-1) + TINY * meet)


def lengths(matrix: np.ndarray) -> np.ndarray:
    """The lengths of the rows of (..., rows, columns), without overflow."""
    return row_lengths([matrix])[..., 0, :]


def row_lengths(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """The lengths of the rows of some matrices, (..., matrix, row), padded with zeros."""
    if sum(x.size for x in matrices) <= FEW and len({x.shape for x in matrices}) == 1:
        whole = np.stack(matrices, axis=-3)  # one call in place of many
        found = np.einsum("...ij,...ij->...i", whole, whole)
    else:
        squares = [np.einsum("...ij,...ij->...i", x, x) for x in matrices]
        batch = np.broadcast_shapes(*(x.shape[:-1] for x in squares))
        found = np.zeros((*batch, len(squares), max(x.shape[-1] for x in squares)))
        for k, x in enumerate(squares):
            found[..., k, : x.shape[-1]] = x
    safe = ((found > 1e-200) & (found < 1e200)).all(-1)
    safe = safe.reshape(-1, len(matrices)).all(0)
    found = np.sqrt(found)
    for k in np.flatnonzero(~safe).tolist():
        matrix = matrices[k]
        if matrix.any():
            largest = np.abs(matrix).max(-1, keepdims=True)
            scale = np.where(largest > 0, largest, 1.0)
            exact = scale[..., 0] * np.linalg.norm(matrix / scale, axis=-1)
            found[..., k, : exact.shape[-1]] = exact
    return found


def frobenius(matrix: np.ndarray) -> np.ndarray:
    """Root of the summed squares of (..., rows, columns), without overflow or underflow."""
    if 0 in matrix.shape[-2:]:
        return np.zeros(matrix.shape[:-2])
    with np.errstate(over="ignore"):
        squares = np.einsum("...ij,...ij->...", matrix, matrix)
    if ((squares > 1e-200) & (squares < 1e200)).all():
        return np.sqrt(squares)
    largest = np.abs(matrix).max((-2, -1))
    scale = np.where(largest > 0, largest, 1.0)
    return scale * np.linalg.norm(matrix / scale[..., None, None], axis=(-2, -1))


def transposed(matrix: Any) -> Any:
    """The transpose of a stack of matrices."""
    return np.swapaxes(matrix, -1, -2)


def certificate(
    ok: xr.DataArray, resolution: xr.DataArray, claim: xr.DataArray | float, what: str
) -> str:
    """The text of ``attrs["certified"]``: "yes", or "not certified" with the reason."""
    if ok.values.all():
        return YES
    ok, resolution, claim = xr.broadcast(ok, resolution, xr.DataArray(claim))
    at = np.argmax(np.where(ok.values, -np.inf, resolution.values))
    part = "" if ok.size == 1 else f" in {int((~ok).sum())} of {ok.size} cases"
    return (
        f"not certified{part}: rounding explains {resolution.values.flat[at]:.1e} "
        f"(`resolution`), and {what} is {claim.values.flat[at]:.1e}"
    )
