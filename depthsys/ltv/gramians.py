"""Square-root Gramians and Hankel singular values of a linear time-varying system."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.sparse.linalg import LinearOperator

from depthsys.ltv.labels import aligned
from depthsys.ltv.long_arithmetic import LongMap, affordable, long_map
from depthsys.ltv.matrix_free import (
    MatrixFree,
    beside,
    check_finite,
    in_parts,
    over_depth,
    propagated,
    stacked,
    state_size,
    transposed,
)
from depthsys.ltv.rounding import (
    CERTIFIABLE,
    certificate,
    resolution_of,
    resolution_of_map,
)
from depthsys.ltv.system import as_named

System = xr.Dataset | MatrixFree
MAP_DIMS = ("depth", "output", "layer", "input")
WORSE = 1e-10  # of the largest value: above it long arithmetic is tried


def reachability_factors(
    system: System, initial: ArrayLike | xr.DataArray | None = None
) -> xr.DataArray:
    r"""Square-root reachability Gramian at every depth.

    Returns :math:`R_k` with :math:`P_k = R_k R_k^\top`, where :math:`P_0 = X_0 X_0^\top` and
    :math:`P_{k+1} = A_k P_k A_k^\top + B_k B_k^\top`.

    Parameters
    ----------
    system
        Uses ``A`` (layer, state_next, state) and ``B`` (layer, state_next, input).
    initial
        Square root ``X_0`` (state, column) of the Gramian at depth 0; zero by default.

    Returns
    -------
    xr.DataArray
        ``R`` (depth, state, column), unit state/input; columns beyond the rank are zero.

    Raises
    ------
    ValueError
        If the system is not valid (see `check`), or ``initial`` has other dims.
    numpy.linalg.LinAlgError
        If an operator of a `MatrixFree` system returns nan or inf.

    Notes
    -----
    One QR of ``[A_k R_k, B_k]`` per layer, once there are more columns than states. P is never
    formed: squaring loses the small Hankel singular values.

    References
    ----------
    .. [1] Sandberg and Rantzer (2004), doi:10.1109/TAC.2003.822862.
    """
    extra, extra_dims = [], []
    if initial is not None:
        initial = as_named(initial, "initial", {"state": state_size(system), "column": None})
        extra = [aligned(initial, "initial", system, ("column",))]
        extra_dims = [["state", "column"]]

    def padded(A, B, *initial):
        return _padded(reachability(A, B, *initial))

    factor = over_depth(
        padded,
        system,
        "AB",
        [["depth", "state", "column"]],
        *extra,
        extra_dims=extra_dims,
        exclude=["column"],
    )
    return factor.rename("R")


def observability_factors(system: System) -> xr.DataArray:
    r"""Square-root observability Gramian at every depth.

    Returns :math:`S_k` with :math:`Q_k = S_k S_k^\top`, where :math:`Q_L = C_L^\top C_L` and
    :math:`Q_k = A_k^\top Q_{k+1} A_k + C_k^\top C_k`.

    Parameters
    ----------
    system
        Uses ``A`` (layer, state_next, state) and ``C`` (depth, output, state).

    Returns
    -------
    xr.DataArray
        ``S`` (depth, state, column), unit output/state; columns beyond the rank are zero.

    Raises
    ------
    ValueError
        If the system is not valid (see `check`).
    numpy.linalg.LinAlgError
        If an operator of a `MatrixFree` system returns nan or inf.

    References
    ----------
    .. [1] Sandberg and Rantzer (2004), doi:10.1109/TAC.2003.822862.
    """

    def padded(A, C):
        return _padded(observability(A, C))

    factor = over_depth(padded, system, "AC", [["depth", "state", "column"]])
    return factor.rename("S")


def reachability(A, B, initial: np.ndarray | None = None) -> list[np.ndarray]:
    """R_k (..., state, column) at depths 0..L, with the columns that exist at that depth."""
    size = A[0].shape[-1]
    factors = [np.zeros((*B[0].shape[:-2], size, 0)) if initial is None else compressed(initial)]
    for layer, a in enumerate(A):
        factors.append(compressed(propagated(a, factors[-1], B[layer])))
    _check_factors(factors, "reachability", A)
    return factors


def observability(A, C, *, start: bool = True) -> list[np.ndarray]:
    """S_k (..., state, column) at depths 0..L, with the columns that exist at that depth.

    Without ``start`` S_0 has no columns: no input comes before it.
    """
    factors = [compressed(transposed(C[-1]))]
    for layer in reversed(range(0 if start else 1, len(A))):
        new = transposed(C[layer])
        factors.append(compressed(propagated(transposed(A[layer]), factors[-1], new)))
    _check_factors(factors, "observability", A)
    if not start:
        factors.append(np.zeros((*factors[-1].shape[:-2], C[0].shape[-1], 0)))
    return factors[::-1]


def _check_factors(factors: list[np.ndarray], name: str, A) -> None:
    """LinAlgError at the first factor that is not finite; in products of matrices it stays so."""
    if not any(isinstance(a, LinearOperator) for a in A):
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(factors[-1].sum()):
                return
    for step, factor in enumerate(factors):
        depth = step if name == "reachability" else len(A) - step
        check_finite(factor, f"the {name} factor {depth} steps on")


def compressed(factor: np.ndarray) -> np.ndarray:
    """A square factor with the same product with its transpose, if there are too many columns."""
    if factor.shape[-1] <= factor.shape[-2]:
        return factor
    return transposed(np.linalg.qr(transposed(factor), mode="r"))


def _padded(factors: list[np.ndarray]) -> np.ndarray:
    return stacked(factors, *(max(f.shape[axis] for f in factors) for axis in (-2, -1)))


def reachability_gramian(system: System) -> xr.DataArray:
    """Reachability Gramian ``P`` (depth, state, state_2), unit (state/input)^2.

    For looking at; computations use `reachability_factors`, which lose no small values.
    """
    R = reachability_factors(system)
    return xr.dot(R, R.rename(state="state_2"), dim="column").rename("P")


def observability_gramian(system: System) -> xr.DataArray:
    """Observability Gramian ``Q`` (depth, state, state_2), unit (output/state)^2."""
    S = observability_factors(system)
    return xr.dot(S, S.rename(state="state_2"), dim="column").rename("Q")


def hankel_singular_values(system: System | xr.DataArray) -> xr.DataArray:
    r"""Hankel singular values at every depth, largest first.

    :math:`\sigma_i(k)` are the singular values of :math:`S_k^\top R_k`, that is of the Hankel
    block that maps the inputs before depth k to the outputs from depth k on.

    Parameters
    ----------
    system
        A system, or its input-output map alone: a DataArray (depth, output, layer, input) as
        `io_matrix` returns it.

    Returns
    -------
    xr.DataArray
        ``hankel_singular_values`` (depth, index), unit output/input; zero beyond the number of
        inputs so far or outputs to come. MATLAB: `hsvd`, for LTI. attrs: ``resolution``, what
        rounding explains in a value, output/input (the largest of a batch), and ``certified``:
        "yes", or "not certified" and why, where that is more than 0.1 % of the largest value.

    Raises
    ------
    ValueError
        If the system is not valid (see `check`), or a map has other dims, is not finite or not
        causal.

    Notes
    -----
    Values below ``resolution`` cannot be told from zero, though graded ones are often right far
    below it. Where rounding would explain more than 1e-10 of the largest value (what is easy to
    reach is hard to see, or the reverse) and the system is small, the values are those of its
    input-output map, made in as many digits as it needs.

    References
    ----------
    .. [1] Sandberg and Rantzer (2004), doi:10.1109/TAC.2003.822862.
    """
    values, resolution = values_and_resolution(system)
    worst = float(resolution.max())
    top = values.max(["depth", "index"])
    ok = (resolution <= CERTIFIABLE * top) | (resolution == 0)
    about = {
        "resolution": worst,
        "certified": certificate(ok, resolution, top, "the largest value"),
    }
    return values.rename("hankel_singular_values").assign_attrs(about)


def values_and_resolution(system: System | xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """The Hankel singular values (..., depth, index), and what rounding explains in them (...)."""
    outputs = [["depth", "index"], []]
    if isinstance(system, xr.DataArray):
        io = checked_map(system, "system")
        found = xr.apply_ufunc(
            lambda G: in_parts(values_of_map, (G,), [MAP_DIMS], outputs),
            io,
            input_core_dims=[list(MAP_DIMS)],
            output_core_dims=outputs,
        )
        return found[0], found[1].rename("resolution")
    values, resolution = over_depth(_hankel_values, system, "ABC", outputs)
    return values, resolution.rename("resolution")


def _hankel_values(A, B, C) -> tuple[np.ndarray, np.ndarray]:
    R, S = reachability(A, B), observability(A, C, start=False)
    values = []
    for k, (r, s) in enumerate(zip(R, S, strict=True)):
        product = transposed(s) @ r
        check_finite(product, f"S' R at depth {k}")
        values.append(
            singular_values(product) if r.shape[-1] else np.zeros((*product.shape[:-2], 0))
        )
    found = in_rows(values)
    size = found.max((-2, -1), initial=0.0)
    resolution = resolution_of(A, B, C, R, S)
    for member, exact, _ in long_maps(A, B, C, R, S, resolution, size):
        row, resolution[member] = values_of_map(exact.G, exact.error)
        found[member] = row[:, : found.shape[-1]]
    return found, resolution


def long_maps(
    A, B, C, R, S, resolution: np.ndarray, size: np.ndarray, *, both: bool = False
) -> Iterator[tuple[tuple[int, ...], LongMap, list[list[np.ndarray]]]]:
    """Members of a batch whose rounding is worse than `WORSE` of their size, with their maps.

    With the A, B and C of that member. Nothing for operators, and nothing where it would take too
    long: there rounding stays what it is, and says so.
    """
    bad = np.argwhere(resolution > WORSE * size)
    if not len(bad) or isinstance(A[0], LinearOperator):
        return
    L, n, m, p = len(A), A[0].shape[-1], B[0].shape[-1], C[0].shape[-2]
    if not affordable(L, n, m, p, len(bad), both=both):
        return
    for place in bad:
        member = tuple(int(i) for i in place)
        lists = [_one(part, member, resolution.shape) for part in (A, B, C, R, S)]
        if not all(np.isfinite(x).all() for part in lists for x in part):
            continue
        if (exact := long_map(*lists, both=both)) is not None:
            yield member, exact, lists[:3]


def _one(matrices, member: tuple[int, ...], batch: tuple[int, ...]) -> list[np.ndarray]:
    return [np.broadcast_to(m, (*batch, *m.shape[-2:]))[member] for m in matrices]


def values_of_map(G: np.ndarray, error: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Hankel singular values (..., depth, index) of a map with an error, and their rounding."""
    values = in_rows([np.linalg.svd(f, compute_uv=False) for f in hankel_factors(G)])
    return values, resolution_of_map(G, error)


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Of (..., rows, columns), largest first; LAPACK is faster with a tall matrix."""
    tall = matrix.shape[-2] >= matrix.shape[-1]
    return np.linalg.svd(matrix if tall else transposed(matrix), compute_uv=False)


def in_rows(values: list[np.ndarray]) -> np.ndarray:
    """Vectors (..., index) of varying length as (..., depth, index), padded with zeros."""
    rows = [v[..., None, :] for v in values]
    return stacked(rows, 1, max(v.shape[-1] for v in values))[..., 0, :]


def hankel_factors(G: np.ndarray) -> list[np.ndarray]:
    """F_k (..., row, column) with F_k F_k' = H_k H_k' for the Hankel blocks at depths 0..L.

    H_k has the rows of depth k and later, and the columns of the layers before k: the rows of
    H_{k-1} but the first, and the columns of one more layer. Compressed at every depth, so that the
    number of inputs counts once.
    """
    *batch, n_depths, p, n_layers, m = G.shape
    factors = [np.zeros((*batch, n_depths * p, 0))]
    for k in range(1, n_layers + 1):
        new = G[..., k:, :, k - 1, :].reshape(*batch, (n_depths - k) * p, m)
        factors.append(compressed(beside(factors[-1][..., p:, :], new)))
    return factors


def checked_map(io: Any, name: str = "io") -> xr.DataArray:
    """An input-output map (..., depth, output, layer, input) with labels, in float64.

    TypeError for a system; ValueError unless it is finite and causal, with L layers and L + 1
    depths.
    """
    if isinstance(io, (xr.Dataset, MatrixFree)):
        raise TypeError(
            f"`{name}` must be an input-output map; got a {type(io).__name__}. Take the map of a "
            "system with `ltv.io_matrix(system)`."
        )
    io = as_named(io, name, dict.fromkeys(MAP_DIMS))
    sizes = io.sizes
    if 0 in io.shape or sizes["depth"] != sizes["layer"] + 1:
        raise ValueError(
            f"`{name}` must have L >= 1 layers, L + 1 depths and nothing empty; got {dict(sizes)}. "
            "Inputs act at depths 0..L-1, and the last output is y_L: add it, or drop a layer."
        )
    for dim in ("depth", "layer"):
        if dim in io.coords and np.issubdtype(io[dim].dtype, np.number):
            if (np.diff(io[dim].values) <= 0).any():
                raise ValueError(
                    f"`{name}` must have its {dim}s in order; got {io[dim].values}. Use "
                    f"`.sortby({dim!r})`."
                )
    if taken := {"state", "state_next", "index"} & set(io.dims):
        raise ValueError(
            f"`{name}` must name its batch dims otherwise than a system does; got {sorted(taken)}. "
            "Rename them."
        )
    depth, layer = (xr.DataArray(np.arange(sizes[d]), dims=[d]) for d in ("depth", "layer"))
    early = (io != 0) & (layer > depth)
    if bool(early.any()):
        first = np.argwhere(early.values)[0]
        place = ", ".join(f"{d}={io[d].values[i]}" for d, i in zip(early.dims, first, strict=True))
        raise ValueError(
            f"`{name}` must be causal, zero where the layer is after the depth; got "
            f"{io.values[tuple(first)]} at {place}. Sort layers and depths, or set such entries to "
            "zero."
        )
    io = io.drop_vars("order", errors="ignore")  # of the system that the map comes from
    return io.assign_coords(depth=io["depth"], layer=io["layer"])


def used_values(s: np.ndarray, rtol: float) -> np.ndarray:
    """Which singular values (..., index) count, relative to the first; none where all are zero."""
    return s > rtol * s[..., :1]
