"""Balanced coordinates at every depth, with what rounding leaves of the model they make."""

from dataclasses import dataclass

import numpy as np

from depthsys.ltv.gramians import in_rows, long_maps, observability, reachability, singular_values
from depthsys.ltv.long_arithmetic import LongMap
from depthsys.ltv.matrix_free import check_finite, transposed
from depthsys.ltv.rounding import (
    EPS,
    TINY,
    lengths,
    local_noises,
    resolution_of,
    resolution_of_map,
    row_lengths,
)

FAINT = 1e-200  # of the largest Hankel value: below it products would underflow
HELD = 1e-9  # of W' V = I, where `project` asks for 1e-7


@dataclass(frozen=True)
class Balanced:
    """``V``, ``W`` and ``values`` by depth; zero columns where a value counts as zero.

    ``resolution`` (...) is what rounding explains in the values, ``floor`` (depth) the value below
    which a state is left out, and ``model`` (...) what rounding changes in the input-output map of
    the projection, output/input.
    """

    V: list[np.ndarray]
    W: list[np.ndarray]
    values: list[np.ndarray]
    floor: list[np.ndarray]
    resolution: np.ndarray
    model: np.ndarray


def balanced(A, B, C, rtol: float, order: int | None = None) -> Balanced:
    """The square-root method, in long arithmetic for the members of a batch that need it.

    ``order`` cuts V and W; at 0 only the numbers are made.
    """
    R, S = reachability(A, B), observability(A, C, start=False)
    V, W, values, floors = [], [], [], []
    rows = row_lengths(R), row_lengths(S)
    noise = 10 * local_noises(R, S, rows)
    for k, (r, s) in enumerate(zip(R, S, strict=True)):
        product = transposed(s) @ r
        check_finite(product, f"S' R at depth {k}")
        if r.shape[-1] == 0 or order == 0:
            V.append(np.zeros((*product.shape[:-2], r.shape[-2], 0)))
            W.append(V[-1])
        if r.shape[-1] == 0:
            values.append(np.zeros((*product.shape[:-2], 0)))
            floors.append(np.zeros(product.shape[:-2]))
            continue
        floor = noise[..., k]
        if order == 0:
            sigma = singular_values(product)
            floor = np.maximum(rtol * sigma[..., 0], floor)
        else:
            U, sigma, Zt = np.linalg.svd(product, full_matrices=False)
            floor = np.maximum(rtol * sigma[..., 0], floor)
            known = sigma > floor[..., None]
            scale = (np.where(known, sigma, 1.0) ** -0.5 * known)[..., None, :order]
            V.append(r @ (transposed(Zt)[..., :order] * scale))
            W.append(biorthogonal(s @ (U[..., :order] * scale), V[-1]))
        values.append(sigma)
        floors.append(floor)
    size = in_rows(values).max((-2, -1), initial=0.0)
    resolution = resolution_of(A, B, C, R, S, rows)
    model, found = resolution.copy(), np.array(size)
    for member, exact, lists in long_maps(A, B, C, R, S, resolution, size, both=True):
        one = _balanced_long(lists[0], lists[1], lists[2], exact, rtol)
        resolution[member], model[member] = one.resolution, one.model
        found[member] = max((x.max(initial=0.0) for x in one.values), default=0.0)
        for whole, part in ((V, one.V), (W, one.W), (values, one.values), (floors, one.floor)):
            for k, new in enumerate(part):
                whole[k] = _with(whole[k], resolution.shape, member, new)
    if (np.minimum(size, found) < FAINT).any():
        units = [_power_of_four(row_lengths(part).max((-2, -1))) for part in (B, C)]
        if (units[0] * units[1] < FAINT).any():
            return _balanced_faint(A, B, C, rtol, order, *units)
    return Balanced(V, W, values, floors, resolution, model)


def _power_of_four(size: np.ndarray) -> np.ndarray:
    """The one next to a size, which has an exact root; 1 for zero."""
    known = size > 0
    half = np.round(np.log2(np.where(known, size, 1.0)) / 2)
    return np.where(known, 4.0**half, 1.0)


def _balanced_faint(A, B, C, rtol, order, reach: np.ndarray, seen: np.ndarray) -> Balanced:
    """`balanced` of inputs and outputs in such units (...), then in their own: none underflows."""
    r, s = reach[..., None, None], seen[..., None, None]
    found = balanced(A, [b / r for b in B], [c / s for c in C], rtol, order)
    root, size = np.sqrt(r) / np.sqrt(s), reach * seen

    def back(value: np.ndarray) -> np.ndarray:
        return np.asarray(np.where(value > 0, reach * (seen * value) + 8 * TINY, value))

    states = len(C) * max(v.shape[-2] for v in found.V)
    terms = 8 * TINY * states * (size > 0)
    return Balanced(
        [v * root for v in found.V],
        [w / root for w in found.W],
        [reach[..., None] * (seen[..., None] * value) for value in found.values],
        [back(floor) for floor in found.floor],
        back(found.resolution),
        back(found.model) + np.where(found.model > 0, terms, 0.0),
    )


def _with(whole: np.ndarray, batch: tuple[int, ...], member: tuple[int, ...], new: np.ndarray):
    """The stack with one member replaced by the leading columns of another."""
    inner = whole.shape[whole.ndim - new.ndim :]
    whole = np.broadcast_to(whole, (*batch, *inner)).copy()
    if new.ndim:
        columns = min(inner[-1], new.shape[-1])
        whole[member] = 0.0
        whole[member][..., :columns] = new[..., :columns]
    else:
        whole[member] = new
    return whole


def _balanced_long(A, B, C, exact: LongMap, rtol: float) -> Balanced:
    """Balanced coordinates of one system from its exact map.

    V only has to satisfy ``O_k V_k = U_k Sigma_k^1/2`` for the rows O_k by which later outputs read
    the state, and W the like with the reachable states: among four pairs that do, or nearly, the
    one whose projection loses least is taken. What is reached and not seen makes R_k Z large, what
    is seen and not reached S_k U.
    """
    L, p = len(A), C[0].shape[-2]
    resolution = float(resolution_of_map(exact.G, exact.error))
    svds, floor = [], []
    for k in range(L + 1):
        H = exact.G[k:, :, :k, :].reshape((L + 1 - k) * p, -1)
        U, sigma, Zt = np.linalg.svd(H, full_matrices=False)
        floor.append(max(rtol * sigma[0], resolution) if sigma.size else 0.0)
        known = sigma > floor[-1]
        svds.append((U[:, known], sigma[known], Zt[known].T, sigma))
    candidates = []
    for minimal in ("", "V", "W", "VW"):
        pairs = [_pair(exact, k, u, s, z, minimal) for k, (u, s, z, _) in enumerate(svds)]
        lost = _lost(A, B, C, exact, svds, pairs)
        left_out = sum(svds[k][1][v.shape[-1] :].sum() for k, (v, _) in enumerate(pairs))
        candidates.append((lost + 2 * left_out, lost, pairs))
    _, lost, pairs = min(candidates, key=lambda candidate: candidate[0])
    for k, (v, _) in enumerate(pairs):
        floor[k] = max(floor[k], *svds[k][1][v.shape[-1] :], 0.0)
    return Balanced(
        [v for v, _ in pairs],
        [w for _, w in pairs],
        [sigma for *_, sigma in svds],
        [np.array(value) for value in floor],
        np.array(resolution),
        np.array(resolution + lost),
    )


def _pair(exact: LongMap, k: int, U, sigma, Z, minimal: str) -> tuple[np.ndarray, np.ndarray]:
    """V_k and W_k, of as many states as double precision holds with W' V = I.

    Those that are named in ``minimal`` are the shortest that do.
    """
    R, S = exact.reached[k], exact.seen[k]
    root = np.sqrt(sigma)
    V, W = R @ (Z / root), S @ (U / root)
    if sigma.size and minimal:
        r, s = lengths(R), lengths(S)
        # coordinates in which reaching and seeing a state are equally long
        d = (np.sqrt(np.where(r > 0, r, 1.0)) / np.sqrt(np.where(s > 0, s, 1.0)))[:, None]
        if "V" in minimal:
            V = d * (np.linalg.pinv((S * d).T, rcond=1e-13) @ (U * root))
        if "W" in minimal:
            W = (np.linalg.pinv((R / d).T, rcond=1e-13) @ (Z * root)) / d
    for count in range(sigma.size, 0, -1):
        own = biorthogonal(W[:, :count], V[:, :count])
        if np.abs(own.T @ V[:, :count] - np.eye(count)).max() < HELD:
            return V[:, :count], own
    return V[:, :0], W[:, :0]


def _lost(A, B, C, exact: LongMap, svds, pairs) -> float:
    """How far the map of the projection onto V and W is from that of balanced truncation.

    The balanced matrices are known from the map alone, as in `realization`; a difference at one
    layer is seen through balanced states, whose Gramians are the singular values.
    """
    p, m = C[0].shape[-2], B[0].shape[-1]
    counts = [v.shape[-1] for v, _ in pairs]
    root = [np.sqrt(sigma[:j]) for j, (_, sigma, _, _) in zip(counts, svds, strict=True)]
    sizes, total = 2 * len(pairs[0][0]) + max(counts), 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for k, c in enumerate(C):
            V = pairs[k][0]
            U = svds[k][0][:, : counts[k]] * root[k]
            wide = np.abs(V) @ root[k]
            total += (np.abs(c @ V - U[:p]) @ root[k]).sum()
            total += EPS * sizes * (np.abs(c) @ wide).sum()
            if k == len(A):
                break
            W, after = pairs[k + 1][1], root[k + 1]
            inverse = (svds[k + 1][0][:, : counts[k + 1]] / after).T
            new = exact.G[k + 1 :, :, k, :].reshape(-1, m)
            high = after @ np.abs(W).T
            total += after @ np.abs(W.T @ (A[k] @ V) - inverse @ U[p:]) @ root[k]
            total += (after @ np.abs(W.T @ B[k] - inverse @ new)).sum()
            total += EPS * sizes * (high @ (np.abs(A[k]) @ wide + np.abs(B[k]).sum(-1)))
    return float(total) if np.isfinite(total) else np.inf


def biorthogonal(W: np.ndarray, V: np.ndarray) -> np.ndarray:
    """W with W' V = I to rounding, from one where it is nearly so (Newton's iteration).

    A small singular value carries an error of eps ||S|| ||R||, which its inverse root magnifies.
    """
    used = (V != 0).any(-2)
    identity = np.eye(V.shape[-1]) * (used[..., None, :] & used[..., None])
    for _ in range(3):
        off = identity - transposed(W) @ V
        if np.abs(off).max(initial=0.0) < 1e-13:
            break
        W = W + W @ transposed(off)
    return W
