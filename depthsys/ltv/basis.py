r"""Bases for Petrov-Galerkin reduction; `project` uses them all.

A basis is a Dataset with ``V`` and ``W`` (depth, feature, state) and the coordinate ``order``
(depth): the state is ``x_k ≈ V_k r_k`` with ``r_k = W_k' x_k`` and ``W_k' V_k = I``. Near both ends
fewer directions exist than asked for: there ``order`` is smaller and the columns beyond are zero.

Every function takes either ``order``, the largest number of columns per depth, or ``tolerance``:
then the smallest order is used whose exact error ``||G - G_r||`` is at most ``tolerance ||G||``, in
every member of a batch.

Every basis carries ``resolution``, what rounding leaves uncertain of ``W_k' V_k = I`` (no unit): a
few eps where W = V, and large where a pair is oblique and its columns long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.balancing import balanced, biorthogonal
from depthsys.ltv.gramians import System, in_rows, observability, reachability, used_values
from depthsys.ltv.labels import aligned
from depthsys.ltv.matrix_free import (
    beside,
    n_depths,
    over_depth,
    stacked,
    state_size,
    state_sizes,
    transposed,
)
from depthsys.ltv.norms import spectral_norm
from depthsys.ltv.project import project
from depthsys.ltv.response import io_matrix, known_map
from depthsys.ltv.rounding import CERTIFIABLE, EPS, certificate
from depthsys.ltv.system import as_named, whole_number

RTOL = 1e-12
SEEN = 1e-12  # cosines nearer to zero are rounding


class RankError(ValueError):
    """An order above the ``rank``, the number of directions that a method finds."""

    def __init__(self, message: str, rank: int) -> None:
        super().__init__(message)
        self.rank = rank


def balanced_basis(
    system: System,
    order: int | None = None,
    *,
    tolerance: float | None = None,
    rtol: float = RTOL,
) -> xr.Dataset:
    r"""Balanced truncation: the states that are both easy to reach and easy to see.

    With :math:`U \Sigma Z^\top` the SVD of :math:`S_k^\top R_k`:
    :math:`V_k = R_k Z \Sigma^{-1/2}`, :math:`W_k = S_k U \Sigma^{-1/2}`, leading columns. Its
    error is certified by `error_bounds`.

    Parameters
    ----------
    system
        A system.
    order
        Largest number of states per depth.
    tolerance
        Instead of ``order``: the wanted exact error relative to ``||G||``.
    rtol
        Hankel singular values below ``rtol`` times the largest at that depth, or below ten times
        what rounding leaves of the product :math:`S_k^\top R_k`, count as zero.

    Returns
    -------
    xr.Dataset
        ``V``, ``W`` (depth, feature, state), coordinate ``order`` (depth); ``resolution``, see
        the head of this module; and ``model_resolution``, output/input: what rounding changes in
        the input-output map of the projected system, beyond what `error_bounds` says of it. attrs
        ``certified``: "yes", or "not certified" and why, where that is more than 0.1 % of the
        largest Hankel value.

    Raises
    ------
    TypeError
        If not exactly one of ``order`` and ``tolerance`` is given.
    RankError
        If ``order`` is above the rank, the largest number of directions at any depth.
    ValueError
        If ``order`` is not a whole number >= 1, or ``tolerance`` cannot be reached.

    Notes
    -----
    At full order only products with A are made, never a Gramian: R_k has k m columns and S_k has
    (L + 1 - k) p.

    References
    ----------
    .. [1] Sandberg and Rantzer (2004), doi:10.1109/TAC.2003.822862.
    .. [2] Laub, Heath, Paige and Ward (1987), doi:10.1109/TAC.1987.1104549: the square-root method.
    """
    return _basis(system, _balanced(rtol), order, tolerance)


def _balanced(rtol: float) -> _Method:
    def core(A, B, C, *, order):
        pair = balanced(A, B, C, rtol, order)
        top = in_rows(pair.values).max((-2, -1), initial=0.0)
        return pair.V, pair.W, pair.model, top

    return _Method("balanced", core, "ABC", rtol, models=True)


def balanced_basis_of_full_rank(system: System, rtol: float) -> xr.Dataset:
    """`balanced_basis` with all states that count, of which there may be none."""
    if not 0 < rtol < 1:
        raise ValueError(f"`rtol` must be between 0 and 1; got {rtol}. Try {RTOL:.0e}.")
    return _built(system, _balanced(rtol), state_size(system))


def krylov_basis(
    system: System,
    order: int | None = None,
    *,
    tolerance: float | None = None,
    start: ArrayLike | xr.DataArray | None = None,
    rtol: float = RTOL,
) -> xr.Dataset:
    """Propagated Krylov: the start, then what the inputs become from layer to layer, W = V.

    ``V_k = orth[start_k, B_{k-1}, A_{k-1} B_{k-2}, ...]``: the reachable space at depth k, most
    recent injections first. ``start`` (depth, state) or (depth, state, column) comes before them,
    for example the concept directions of a model.

    Other parameters, results and errors as for `balanced_basis`; a column whose part outside the
    earlier ones is below ``rtol`` of its length is left out.

    References
    ----------
    .. [1] arXiv 2603.12541: the reachability recursion of the concept direction.
    """

    def core(A, B, *start, order):
        reached = [np.zeros((*B[0].shape[:-2], A[0].shape[-1], 0))]
        for a, b in zip(A, B, strict=True):
            older = a @ reached[-1] if reached[-1].shape[-1] else None
            reached.append(orthonormal(beside(b, older), order, rtol))
        if not start:
            return reached, reached
        Q = [
            orthonormal(beside(_at(start, k, columns.shape[-2]), columns), order, rtol)
            for k, columns in enumerate(reached)
        ]
        return Q, Q

    method = _Method("krylov", core, "AB", rtol, _start(start, system))
    return _basis(system, method, order, tolerance)


def arnoldi_basis(
    system: System,
    order: int | None = None,
    *,
    tolerance: float | None = None,
    start: ArrayLike | xr.DataArray | None = None,
    rtol: float = RTOL,
) -> xr.Dataset:
    """Krylov space of each frozen layer: the start and its powers under A_k, W = V.

    ``V_k = orth[start_k, A_k start_k, A_k^2 start_k, ...]``, with A_{L-1} at the last depth.
    ``start`` is ``B_{k-1}`` by default (and nothing at depth 0). The state must have one size at
    all depths, since A_k is raised to powers.

    Other parameters, results and errors as for `balanced_basis`.

    References
    ----------
    .. [1] Arnoldi (1951), doi:10.1090/qam/42792.
    """
    sizes = state_sizes(system).values
    if (sizes != sizes.flat[0]).any():
        raise ValueError(
            f"`system` must have one state size to take powers of A; got orders {sizes}. Use "
            "`krylov_basis`, which follows the depth."
        )

    def core(A, B, *start, order):
        nothing = np.zeros((*B[0].shape[:-2], A[0].shape[-1], 0))
        Q = []
        for k, last_input in enumerate([nothing, *B]):
            basis = orthonormal(start[0][..., k, :, :] if start else last_input, order, rtol)
            a, done = A[min(k, len(A) - 1)], 0
            while done < basis.shape[-1] and _count(basis).min() < order:
                basis = extended(basis, a @ basis[..., done : done + 1], rtol)
                done += 1
            Q.append(_packed(basis)[..., :order])
        return Q, Q

    method = _Method("arnoldi", core, "AB", rtol, _start(start, system))
    return _basis(system, method, order, tolerance)


def pod_basis(
    system: System,
    order: int | None = None,
    *,
    tolerance: float | None = None,
    snapshots: ArrayLike | xr.DataArray | None = None,
    rtol: float = RTOL,
) -> xr.Dataset:
    """Proper orthogonal decomposition: leading left singular vectors of states, W = V.

    ``snapshots`` (depth, state, sample) are simulated or recorded states (further dims are batch
    dims, with a basis each); by default the responses to a unit impulse at every input of every
    layer, whose POD is that of the reachability Gramian.

    Other parameters, results and errors as for `balanced_basis`.

    References
    ----------
    .. [1] Sirovich (1987), doi:10.1090/qam/910462.
    """

    def from_impulses(A, B, *, order):
        V = [_leading(R, order, rtol) for R in reachability(A, B)]
        return V, V

    def from_snapshots(A, snapshots, *, order):
        sizes = [a.shape[-1] for a in A] + [A[-1].shape[-2]]
        V = [_leading(snapshots[..., k, :n, :], order, rtol) for k, n in enumerate(sizes)]
        return V, V

    if snapshots is None:
        method = _Method("pod", from_impulses, "AB", rtol)
    else:
        given = {"snapshots": _columns(snapshots, system, "snapshots", "sample")}
        method = _Method("pod", from_snapshots, "A", rtol, given)
    return _basis(system, method, order, tolerance)


def adjoint_basis(
    system: System,
    order: int | None = None,
    *,
    tolerance: float | None = None,
    start: ArrayLike | xr.DataArray | None = None,
    rtol: float = RTOL,
) -> xr.Dataset:
    """What the outputs see: ``orth[start_k, leading left singular vectors of S_k]``, W = V.

    Other parameters, results and errors as for `krylov_basis`.
    """

    def core(A, C, *start, order):
        Q = []
        for k, S in enumerate(observability(A, C)):
            columns = beside(_at(start, k, S.shape[-2]), _leading(S, order, rtol))
            Q.append(orthonormal(columns, order, rtol))
        return Q, Q

    method = _Method("adjoint", core, "AC", rtol, _start(start, system))
    return _basis(system, method, order, tolerance)


def two_sided_basis(
    system: System,
    order: int | None = None,
    *,
    tolerance: float | None = None,
    rtol: float = RTOL,
) -> xr.Dataset:
    """Dominant reachable states for V, dominant observable ones for W, made biorthogonal.

    V and W span the leading left singular vectors of R_k and of S_k. Unlike balancing, each side
    is truncated before the two meet: directions of V that W cannot see (cosine below ``rtol``
    or 1e-12) are left out.

    Other parameters, results and errors as for `balanced_basis`.
    """

    def core(A, B, C, *, order):
        V, W = [], []
        for R, S in zip(reachability(A, B), observability(A, C), strict=True):
            left, right = _leading(R, order, rtol), _leading(S, order, rtol)
            if left.shape[-1] == 0:
                V.append(np.zeros((*right.shape[:-1], 0)))
                W.append(V[-1])
                continue
            U, cosine, Zt = np.linalg.svd(transposed(right) @ left, full_matrices=False)
            seen = cosine > max(rtol, SEEN)
            scale = (seen * np.where(seen, cosine, 1.0) ** -0.5)[..., None, :]
            V.append(left @ (transposed(Zt) * scale))
            W.append(biorthogonal(right @ (U * scale), V[-1]))
        return V, W

    method = _Method("two_sided", core, "ABC", rtol, nested=False)
    return _basis(system, method, order, tolerance)


def random_basis(
    system: System,
    order: int | None = None,
    *,
    tolerance: float | None = None,
    start: ArrayLike | xr.DataArray | None = None,
    seed: int = 0,
    rtol: float = RTOL,
) -> xr.Dataset:
    """Random directions after the start, W = V: the baseline every method must beat.

    Directions are standard normal, drawn from ``seed`` for every depth and shared by all members
    of a batch; a larger order adds columns to those of a smaller one.

    Other parameters, results and errors as for `krylov_basis`.
    """

    def core(A, sizes, *start, order):
        Q, largest = [], max(max(a.shape[-2:]) for a in A)
        for k in range(len(A) + 1):
            rng = np.random.default_rng([seed, k])
            size = A[k].shape[-1] if k < len(A) else A[-1].shape[-2]
            draws = np.broadcast_to(
                rng.standard_normal((order, largest)).T[:size], (*A[0].shape[:-2], size, order)
            )
            # states beyond the order of a padded system do not exist
            exists = np.arange(size) < sizes[..., k, None]
            columns = beside(_at(start, k, size), draws * exists[..., None])
            Q.append(orthonormal(columns, order, rtol))
        return Q, Q

    method = _Method(
        "random", core, "A", rtol, {"sizes": state_sizes(system), **_start(start, system)}
    )
    return _basis(system, method, order, tolerance).assign_attrs(seed=seed)


def span_basis(
    system: System,
    order: int | None = None,
    *,
    columns: ArrayLike | xr.DataArray,
    tolerance: float | None = None,
    rtol: float = RTOL,
) -> xr.Dataset:
    """Galerkin projection onto directions of your own, made orthonormal, W = V.

    ``columns`` (depth, state) or (depth, state, column), the most important first.

    Other parameters, results and errors as for `krylov_basis`.
    """

    def core(A, columns, *, order):
        sizes = [a.shape[-1] for a in A] + [A[-1].shape[-2]]
        Q = [orthonormal(columns[..., k, :n, :], order, rtol) for k, n in enumerate(sizes)]
        return Q, Q

    given = {"columns": _columns(columns, system, "columns", "column")}
    return _basis(system, _Method("span", core, "A", rtol, given), order, tolerance)


@dataclass(frozen=True)
class _Method:
    """``core(*lists, *given, order=)`` returns V and W as lists of (..., feature, state)."""

    name: str
    core: Callable
    matrices: str
    rtol: float
    given: dict[str, xr.DataArray] = field(default_factory=dict)
    nested: bool = True  # a smaller order is a slice of a larger one
    models: bool = False  # core also returns the rounding of the model, and the size it is of


def _basis(
    system: System, method: _Method, order: int | None, tolerance: float | None
) -> xr.Dataset:
    """Run a method at the order asked for, or at the smallest one that meets the tolerance."""
    if (order is None) == (tolerance is None):
        raise TypeError(
            f"exactly one of `order` and `tolerance` must be given; got order={order}, "
            f"tolerance={tolerance}. Pass `order=4` or `tolerance=0.01`."
        )
    if not 0 < method.rtol < 1:
        raise ValueError(f"`rtol` must be between 0 and 1; got {method.rtol}. Try {RTOL:.0e}.")
    if order is None:
        return _smallest(system, method, tolerance)
    basis = _built(system, method, whole_number(order, "order"))
    if (rank := int(basis["order"].max())) < order:
        raise RankError(
            f"`order` must be at most the rank, {rank} (method {method.name}, rtol "
            f"{method.rtol:.0e}); got {order}. A larger model would be the same model.",
            rank,
        )
    return basis


def _built(system: System, method: _Method, order: int) -> xr.Dataset:
    def padded(*arrays: Any) -> tuple[np.ndarray, ...]:
        V, W, *model = method.core(*arrays, order=order)
        shape = (max(v.shape[-2] for v in V), max(1, *(v.shape[-1] for v in V)))
        lost = [EPS * v.shape[-2] * _condition(v, w) for v, w in zip(V, W, strict=True)]
        resolution = np.stack(np.broadcast_arrays(*lost), axis=-1).max(-1)
        whole = stacked(V, *shape)
        count = (whole != 0).any(-2).sum(-1)
        return whole, stacked(W, *shape), count, resolution, *model

    dims = [[d for d in g.dims if d in ("depth", "state", "column")] for g in method.given.values()]
    V, W, count, resolution, *model = over_depth(
        padded,
        system,
        method.matrices,
        [["depth", "feature", "column_out"]] * 2 + [["depth"]] + [[]] * (3 if method.models else 1),
        *method.given.values(),
        extra_dims=dims,
        exclude=["column"] if any("column" in d for d in dims) else [],
    )
    basis = {"V": V, "W": W, "order": count.drop_vars("order", errors="ignore")}
    basis["resolution"] = resolution
    ok, lost, claim, what = resolution <= CERTIFIABLE, resolution, xr.DataArray(1.0), "W' V = I"
    if model:
        lost, claim = model
        basis["model_resolution"] = lost
        ok, what = (lost <= CERTIFIABLE * claim) | (lost == 0), "the largest Hankel value"
    certified = certificate(ok, lost, claim, what)
    about = {"method": method.name, "rtol": method.rtol, "order": order, "certified": certified}
    for name in "VW":
        basis[name] = basis[name].drop_vars("order", errors="ignore")
    return xr.Dataset(basis, attrs=about).rename(column_out="state").set_coords("order")


def _condition(V: np.ndarray, W: np.ndarray) -> np.ndarray:
    """The largest sum of |w_i| |v_i| over states, of two columns: what W' V can lose, over eps."""
    if V.shape[-1] == 0:
        return np.zeros(V.shape[:-2])
    with np.errstate(over="ignore", invalid="ignore"):
        return (np.abs(transposed(W)) @ np.abs(V)).max((-2, -1))


def _smallest(system: System, method: _Method, tolerance: float | None) -> xr.Dataset:
    """The basis of the smallest order whose exact error is within the tolerance."""
    number = isinstance(tolerance, (int, float, np.number)) and not isinstance(tolerance, bool)
    if tolerance is None or not number or not 0 < tolerance < np.inf:
        raise ValueError(f"`tolerance` must be a number > 0; got {tolerance!r}. Try 0.01.")
    exact, _ = known_map(system)
    goal = tolerance * spectral_norm(exact)
    order, found, error = 0, 0, spectral_norm(exact)
    while True:  # bases are built in doubling sizes, since a small order is often enough
        size = max(8, 2 * found)
        largest = _built(system, method, size)
        found = min(size, int(largest["order"].max()))
        small = project(system, largest) if method.nested else None
        while order < found:
            order += 1
            basis = truncated(largest, order) if method.nested else _built(system, method, order)
            if small is None:
                reduced = project(system, basis)
            else:
                reduced = small.isel(state=slice(order), state_next=slice(order))
                reduced = reduced.assign_coords(order=np.minimum(reduced["order"], order))
            error = spectral_norm(exact - io_matrix(reduced))
            if bool((error <= goal).all()):
                return basis.assign_attrs(tolerance=tolerance)
        if found == 0:
            raise ValueError(
                "`system` must connect some input to some output; got rank 0 (method "
                f"{method.name}). There is nothing to reduce."
            )
        if found < size:
            raise ValueError(
                f"`tolerance` must be reachable; got {tolerance:.1e}, and the relative error at "
                f"full rank {found} is {float((error / goal).max()) * tolerance:.1e} (method "
                f"{method.name}). Raise the tolerance above that, or take another basis."
            )


def truncated(basis: xr.Dataset, order: int) -> xr.Dataset:
    """The first ``order`` columns of a basis."""
    part = basis.isel(state=slice(order))
    return part.assign_coords(order=np.minimum(part["order"], order)).assign_attrs(order=order)


def _start(start: Any, system: System) -> dict[str, xr.DataArray]:
    return {} if start is None else {"start": _columns(start, system, "start", "column")}


def _columns(value: Any, system: System, name: str, column: str) -> xr.DataArray:
    """Given states as (..., depth, state, column)."""
    sizes = {"depth": n_depths(system), "state": state_size(system)}
    options = [{**sizes, column: None}] + ([sizes] if column == "column" else [])
    value = as_named(value, name, *options)
    if column not in value.dims:
        value = value.expand_dims(column, axis=-1)
    value = aligned(value, name, system, (column,))
    value = value.rename({column: "column"}) if column != "column" else value
    return value.drop_vars(["depth", "column"], errors="ignore").transpose(
        ..., "depth", "state", "column"
    )


def _at(start: tuple[np.ndarray, ...], k: int, size: int) -> np.ndarray | None:
    """The given first columns at depth k, if any were given."""
    return start[0][..., k, :size, :] if start else None


def _leading(columns: np.ndarray, order: int, rtol: float) -> np.ndarray:
    """Leading left singular vectors; those with a value below ``rtol`` of the first are zero."""
    if columns.shape[-1] == 0:
        return columns
    U, s, _ = np.linalg.svd(columns, full_matrices=False)
    return (U * used_values(s, rtol)[..., None, :])[..., :order]


def orthonormal(columns: np.ndarray, order: int, rtol: float) -> np.ndarray:
    """Orthonormal columns with the leading spans of ``columns``, dependent ones left out."""
    columns = _in_range(columns)
    wide = columns[..., : columns.shape[-2]]
    if wide.shape[-1] == 0:
        return wide
    Q, R = np.linalg.qr(wide)
    part = np.diagonal(R, axis1=-2, axis2=-1)
    if (np.abs(part) > rtol * np.linalg.norm(wide, axis=-2)).all():
        return (Q * np.sign(part)[..., None, :])[..., :order]  # along the columns, not against
    empty = np.zeros((*columns.shape[:-1], 0))
    return _packed(extended(empty, columns, rtol))[..., :order]


def _in_range(columns: np.ndarray) -> np.ndarray:
    """The same directions, with lengths whose squares neither vanish nor overflow."""
    size = np.abs(columns).max(-2, initial=0.0)
    if (((size > 1e-140) & (size < 1e140)) | (size == 0)).all():
        return columns
    return columns / np.where(size > 0, size, 1.0)[..., None, :]


def extended(Q: np.ndarray, columns: np.ndarray, rtol: float) -> np.ndarray:
    """Q and what is new in the columns; a member of a batch with nothing new gets a zero column."""
    for j in range(columns.shape[-1]):
        if (_count(Q) == Q.shape[-2]).all():
            break  # Q spans everything
        column = columns[..., j : j + 1]
        rest = column
        for _ in range(2):  # twice is enough (Giraud, Langou and Rozloznik 2005)
            rest = rest - Q @ (transposed(Q) @ rest)
        size = np.linalg.norm(rest, axis=-2, keepdims=True)
        new = size > rtol * np.linalg.norm(column, axis=-2, keepdims=True)
        if new.any():
            Q = beside(Q, np.where(new, rest / np.where(new, size, 1.0), 0.0))
    return Q


def _count(Q: np.ndarray) -> np.ndarray:
    return (Q != 0).any(-2).sum(-1)


def packing(Q: np.ndarray) -> np.ndarray:
    """The order of the columns that moves zero ones to the end, for every member of a batch."""
    return np.argsort(~(Q != 0).any(-2), axis=-1, kind="stable")


def _packed(Q: np.ndarray) -> np.ndarray:
    return np.take_along_axis(Q, packing(Q)[..., None, :], axis=-1)
