r"""What rounding leaves of norms, Hankel values, bases and ranks: ``resolution``.

One number per system, output/input: eps times the sizes summed over times

.. math:: \sum_l s_{l+1}^\top (|A_l| r_l + b_l) + \sum_k c_k^\top r_k,

where r, s, b and c hold the lengths of the rows of R, S, B and of the columns of C. It bounds (to
first order) what the rounding errors of all products and QRs on the way do to any S' R and to any
entry of the input-output map, since the error made at state i of depth k is seen by the outputs
through row i of S_k. No scaling of states, inputs or outputs changes it. It is far above eps ||G||
when there are states that are easy to reach and hard to see.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.sparse.linalg import LinearOperator

EPS = float(np.finfo(float).eps)
CERTIFIABLE = 1e-3  # of the Hankel norm: above it a first-order estimate of rounding proves nothing
YES = "yes"


def resolution_of(A, B, C, R: Sequence[np.ndarray], S: Sequence[np.ndarray]) -> np.ndarray:
    """What rounding explains in S' R and in the input-output map, (...), inf where it overflows."""
    r, s = [lengths(factor) for factor in R], [lengths(factor) for factor in S]
    parts = []
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for k, c in enumerate(C):
            parts.append((lengths(transposed(c)) * r[k]).sum(-1))
        for layer, a in enumerate(A):
            here, after = slice(layer, layer + 1), slice(layer + 1, layer + 2)
            if isinstance(a, LinearOperator):
                parts.append(_unseen(R[here][0], R[after][0], S[here][0], S[after][0]))
            else:
                # one pass over |A|: the sum of s_i |a_ij| r_j
                reached = (np.abs(a) @ r[layer][..., None])[..., 0]
                parts.append((s[layer + 1] * reached).sum(-1))
            parts.append((s[layer + 1] * lengths(B[layer])).sum(-1))
        total = np.stack(np.broadcast_arrays(*parts), axis=-1).sum(-1)
        sizes = max(f.shape[-2] + f.shape[-1] for f in R) + max(f.shape[-1] for f in S)
        return np.where(np.isnan(total), np.inf, EPS * sizes * total)


def _unseen(R: np.ndarray, R_next: np.ndarray, S: np.ndarray, S_next: np.ndarray) -> np.ndarray:
    """||S_{l+1}|| ||A_l|| ||R_l|| for an operator, whose size its products so far have shown."""
    return np.maximum(frobenius(S_next) * frobenius(R_next), frobenius(S) * frobenius(R))


def resolution_of_map(G: np.ndarray, error: np.ndarray | float = 0.0) -> np.ndarray:
    """What rounding leaves of singular values of blocks of a map with that ``error``, (...).

    ``G`` (..., depth, output, layer, input).
    """
    rows = G.reshape(*G.shape[:-4], G.shape[-4] * G.shape[-3], -1)
    with np.errstate(over="ignore"):
        return np.array(EPS * sum(rows.shape[-2:]) * frobenius(rows) + error)


def local_noise(R: np.ndarray, S: np.ndarray) -> np.ndarray:
    """What the product S' R at one depth loses by itself, (...)."""
    sizes = R.shape[-2] + R.shape[-1] + S.shape[-1]
    with np.errstate(over="ignore", under="ignore"):
        return EPS * sizes * (lengths(R) * lengths(S)).sum(-1)


def lengths(matrix: np.ndarray) -> np.ndarray:
    """The lengths of the rows of (..., rows, columns), without overflow."""
    if matrix.shape[-1] == 0:
        return np.zeros(matrix.shape[:-1])
    squares = np.einsum("...ij,...ij->...i", matrix, matrix)
    if ((squares > 1e-200) & (squares < 1e200)).all():
        return np.sqrt(squares)
    largest = np.abs(matrix).max(-1, keepdims=True)
    scale = np.where(largest > 0, largest, 1.0)
    return scale[..., 0] * np.linalg.norm(matrix / scale, axis=-1)


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
    ok, resolution, claim = xr.broadcast(ok, resolution, xr.DataArray(claim))
    if bool(ok.all()):
        return YES
    at = np.argmax(np.where(ok.values, -np.inf, resolution.values))
    part = "" if ok.size == 1 else f" in {int((~ok).sum())} of {ok.size} cases"
    return (
        f"not certified{part}: rounding explains {resolution.values.flat[at]:.1e} "
        f"(`resolution`), and {what} is {claim.values.flat[at]:.1e}"
    )
