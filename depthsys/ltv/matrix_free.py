"""One way to run a recursion over depth: on a Dataset with its batch dims, or matrix-free."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from depthsys.ltv.matrices import DIMS, check_shapes, unmasked
from depthsys.ltv.system import LAST_D, check, counts

PART = 64  # systems of a batch per part


@dataclass(frozen=True)
class MatrixFree:
    """A system whose A is known only through products ``A_l V`` and ``A_l' W``.

    Accepted wherever a system Dataset is by the factors and Gramians, the Hankel singular values,
    the norms and bounds, the bases, `project` and `compare`, `gains`, `state_gains`, `io_matrix`,
    `minimum_energy`, `controllability`, `reachable_fraction` and `actuator_layers`. The projected
    system is an ordinary Dataset. One system, no batch dims.

    Parameters
    ----------
    A
        L operators; ``A[l]`` maps the state at depth l to depth l + 1 and has a ``matmat`` and,
        for everything that looks at the outputs, an ``rmatmat``.
    B
        L matrices (state at depth l + 1, input).
    C
        L + 1 matrices (output, state at depth k).
    D
        L + 1 matrices (output, input); zero by default.

    Raises
    ------
    TypeError
        If an ``A[l]`` is neither an operator nor a matrix.
    ValueError
        If the sizes do not chain or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse.linalg import aslinearoperator
    >>> from depthsys import ltv
    >>> half = aslinearoperator(0.5 * np.eye(2))
    >>> b, c = np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]])
    >>> system = ltv.MatrixFree(A=[half, half], B=[b, b], C=[0 * c, c, c])
    >>> ltv.gains(system).values.ravel()
    array([0.5, 1. ])
    """

    A: Sequence[Any]
    B: Sequence[ArrayLike]
    C: Sequence[ArrayLike]
    D: Sequence[ArrayLike] = ()

    def __post_init__(self) -> None:
        """Check that the matrices chain, and hold them as float64 arrays."""
        A = [_operator(a, layer) for layer, a in enumerate(self.A)]
        if not A:
            raise ValueError("`A` must hold at least one operator; got none. Give one per layer.")
        B, C = (_arrays(value, name) for name, value in (("B", self.B), ("C", self.C)))
        if len(B) != len(A) or len(C) != len(A) + 1:
            raise ValueError(
                f"`B` must hold L and `C` L + 1 matrices for the L = {len(A)} of `A`; "
                f"got {len(B)} and {len(C)}. Give C one matrix per depth 0..L."
            )
        p, m = C[0].shape[0], B[0].shape[1]
        D = _arrays(self.D, "D") if len(self.D) else [np.zeros((p, m))] * len(C)
        order = [a.shape[1] for a in A] + [A[-1].shape[0]]
        wanted = {
            "A": [(order[k + 1], order[k]) for k in range(len(A))],
            "B": [(n, m) for n in order[1:]],
            "C": [(p, n) for n in order],
            "D": [(p, m)] * len(C),
        }
        for name, matrices in zip("ABCD", (A, B, C, D), strict=True):
            check_shapes(name, [tuple(a.shape) for a in matrices], wanted[name])
        if D[-1].any():
            raise ValueError(LAST_D)
        for name, value in zip("ABCD", (A, B, C, D), strict=True):
            object.__setattr__(self, name, tuple(value))

    @property
    def order(self) -> np.ndarray:
        """Size of the state at every depth 0..L."""
        return np.array([a.shape[1] for a in self.A] + [self.A[-1].shape[0]])


def _operator(value: Any, layer: int) -> LinearOperator:
    if isinstance(value, np.ndarray):
        value = _arrays([value], "A")[0] if value.dtype.kind in "fiub" else value
    try:
        operator = aslinearoperator(value)
    except TypeError as error:
        raise TypeError(
            f"`A[{layer}]` must be a scipy LinearOperator or a matrix; got "
            f"{type(value).__name__}. Wrap your products in `LinearOperator(shape, matvec=...)`."
        ) from error
    if np.issubdtype(operator.dtype or np.float64, np.complexfloating):
        raise TypeError(f"`A[{layer}]` must be real; got {operator.dtype}. Take the real form.")
    return operator


def _arrays(matrices: Sequence[ArrayLike], name: str) -> list[np.ndarray]:
    unmasked(matrices, name)
    arrays = []
    for k, matrix in enumerate(matrices):
        array = np.asarray(matrix)
        if array.ndim != 2 or np.iscomplexobj(array):
            raise ValueError(
                f"`{name}[{k}]` must be a real matrix; got shape {array.shape}, {array.dtype}. "
                "Give one matrix per layer (A, B) or per depth 0..L (C, D)."
            )
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            raise ValueError(f"`{name}[{k}]` must be finite; got nan or inf. Look at that layer.")
        arrays.append(array)
    return arrays


def state_size(system: xr.Dataset | MatrixFree) -> int:
    """Size of the state, the largest where it varies."""
    return int(system.order.max()) if isinstance(system, MatrixFree) else system.sizes["state"]


def state_sizes(system: xr.Dataset | MatrixFree) -> xr.DataArray:
    """The number of states that exist at every depth."""
    if not isinstance(system, MatrixFree):
        check(system)
    return checked_sizes(system)


def checked_sizes(system: xr.Dataset | MatrixFree) -> xr.DataArray:
    """`state_sizes` of a system that has been checked."""
    if isinstance(system, MatrixFree):
        return xr.DataArray(system.order, dims=["depth"])
    order = system.variables.get("order")
    if order is None:
        return xr.DataArray(np.full(system.sizes["depth"], system.sizes["state"]), dims=["depth"])
    batch = {d: system.variables[d] for d in order.dims if d != "depth" and d in system.variables}
    return xr.DataArray(order, coords=batch)


def labels(system: xr.Dataset | MatrixFree, dim: str) -> np.ndarray:
    """The labels of the dim layer or depth."""
    if isinstance(system, MatrixFree):
        return np.arange(len(system.A) + (dim == "depth"))
    return counts(system, dim)


def n_depths(system: xr.Dataset | MatrixFree) -> int:
    """Number of depths, L + 1."""
    return len(system.C) if isinstance(system, MatrixFree) else system.sizes["depth"]


def over_depth(
    core: Callable,
    system: xr.Dataset | MatrixFree,
    names: str,
    output_dims: Sequence[Sequence[str]],
    *extra: xr.DataArray,
    extra_dims: Sequence[Sequence[str]] = (),
    exclude: Sequence[str] = (),
) -> Any:
    """Run ``core`` on lists with one matrix per layer or depth, and label what it returns.

    ``core(*lists, *extra)`` gets one list per letter of ``names``: of stacks (..., rows, columns)
    from a Dataset, of operators and matrices from `MatrixFree`. It may use only ``@`` and
    `transposed`, so one text of every algorithm serves both. Results have the labels and names of
    the system along the dims that they share.
    """
    if isinstance(system, MatrixFree):
        given = [_unbatched(array, dims) for array, dims in zip(extra, extra_dims, strict=True)]
        try:
            found = _finite(core, *(list(getattr(system, name)) for name in names), *given)
        except NotImplementedError as error:
            raise TypeError(
                "`A` must have an rmatmat (or rmatvec) for whatever looks at the outputs; got an "
                "operator without. Give its products with the transpose."
            ) from error
        several = isinstance(found, tuple)
        counted = {dim: (dim, labels(system, dim)) for dim in ("layer", "depth")}
        arrays = [
            xr.DataArray(value, {c: counted[c] for c in dims if c in counted}, list(dims))
            for value, dims in zip(found if several else (found,), output_dims, strict=True)
        ]
        return tuple(arrays) if several else arrays[0]
    check(system)

    core_dims = [*(list(DIMS[name]) for name in names), *(list(dims) for dims in extra_dims)]

    def on_stacks(*arrays: np.ndarray) -> Any:
        stacks = [[a[..., k, :, :] for k in range(a.shape[-3])] for a in arrays[: len(names)]]
        found = _finite(core, *stacks, *arrays[len(names) :])
        # a result that looks at some of the arrays only still has the batch dims of all
        batch = _batch(arrays, core_dims)
        several = found if isinstance(found, tuple) else (found,)
        whole = tuple(
            _whole(value, (*batch, *value.shape[value.ndim - len(dims) :]))
            for value, dims in zip(several, output_dims, strict=True)
        )
        return whole if isinstance(found, tuple) else whole[0]

    of_batch, own = _coordinates(system, exclude)
    found = xr.apply_ufunc(
        lambda *arrays: in_parts(on_stacks, arrays, core_dims, output_dims),
        *(_bare(system.variables[name], of_batch) for name in names),
        *extra,
        input_core_dims=core_dims,
        output_core_dims=[list(dims) for dims in output_dims],
        exclude_dims=set(exclude),
    )
    several = found if isinstance(found, tuple) else (found,)
    labelled = _labelled(several, own)
    return tuple(labelled) if isinstance(found, tuple) else labelled[0]


def _coordinates(
    system: xr.Dataset, exclude: Sequence[str]
) -> tuple[dict[str, xr.Variable], dict[str, xr.Variable]]:
    """Coordinates of the batch dims, and those of a system's own dims, counted where not given.

    The latter are put on the results alone: to align them with themselves takes longer than the
    matrices of a small system.
    """
    dims_of_systems = {dim for dims in DIMS.values() for dim in dims}
    of_batch, own = {}, {}
    for name in system.coords:
        variable = system.variables[name]
        if dims_of_systems.isdisjoint(variable.dims):
            of_batch[name] = variable
        elif not set(variable.dims) & set(exclude):
            own[name] = variable
    for dim in ("layer", "depth"):
        if dim not in own:
            own[dim] = xr.IndexVariable(dim, counts(system, dim))
    return of_batch, own


def _bare(variable: xr.Variable, coords: dict[str, xr.Variable]) -> xr.DataArray:
    here = {c: v for c, v in coords.items() if set(v.dims) <= set(variable.dims)}
    return xr.DataArray(variable.astype(np.float64, copy=False), coords=here)


def _labelled(values: Sequence[xr.DataArray], own: dict[str, xr.Variable]) -> list[xr.DataArray]:
    """The arrays with the coordinates of dims that they have, put on in one Dataset for all."""
    dims = {dim for value in values for dim in value.dims}
    coords = {c: v for c, v in own.items() if dims.issuperset(v.dims)}
    for value in values:
        coords |= {str(c): v.variable for c, v in value.coords.items()}
    whole = xr.Dataset({f"result {i}": v.variable for i, v in enumerate(values)}, coords)
    found = [whole[f"result {i}"] for i in range(len(values))]
    for value in found:
        value.name = None
    return found


def _finite(core: Callable, *arguments: Any) -> Any:
    """What ``core`` returns, unless it has overflowed."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = core(*arguments)
    for value in found if isinstance(found, tuple) else (found,):
        if np.iscomplexobj(value):
            raise TypeError("`A` must return real products; got complex ones. Take the real form.")
        check_finite(value, "a result")
    return found


def check_finite(value: np.ndarray, what: str) -> None:
    """LinAlgError where a product has overflowed or an operator has returned nan."""
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(value.sum()) or np.isfinite(value).all():
            return
    raise np.linalg.LinAlgError(
        f"`A` must keep all products finite; got nan or inf in {what}. Cut the depth with "
        "`ltv.window`, scale the states, or find the operator that overflows."
    )


def in_parts(
    function: Callable,
    arrays: Sequence[np.ndarray],
    core_dims: Sequence[Sequence[str]],
    output_dims: Sequence[Sequence[str]],
) -> Any:
    """Run a large batch in parts that fit a cache, on all cores (numpy releases the lock)."""
    batch = _batch(arrays, core_dims)
    size = max(batch, default=0)
    if size < 2 * PART:
        return function(*arrays)
    longest = batch.index(size)
    from_end = longest - len(batch)  # batch dims are aligned at their end

    def cut(array: np.ndarray, dims: Sequence[str], part: slice) -> np.ndarray:
        axis = array.ndim - len(dims) + from_end
        if axis < 0 or array.shape[axis] == 1:
            return array
        return array[(slice(None),) * axis + (part,)]

    def run(start: int) -> tuple[np.ndarray, ...]:
        part = slice(start, start + PART)
        found: Any = function(*(cut(*item, part) for item in zip(arrays, core_dims, strict=True)))
        return found if isinstance(found, tuple) else (found,)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts: list[Any] = list(pool.map(run, range(0, size, PART)))
    joined = [
        _joined([part[i] for part in parts], from_end - len(dims))
        for i, dims in enumerate(output_dims)
    ]
    return tuple(joined) if len(joined) > 1 else joined[0]


def _batch(arrays: Sequence[np.ndarray], core_dims: Sequence[Sequence[str]]) -> tuple[int, ...]:
    leads = (a.shape[: a.ndim - len(d)] for a, d in zip(arrays, core_dims, strict=True))
    return np.broadcast_shapes(*leads)


def _whole(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return value if value.shape == shape else np.broadcast_to(value, shape).copy()


def _unbatched(array: xr.DataArray, dims: Sequence[str]) -> np.ndarray:
    if set(array.dims) != set(dims):
        raise ValueError(
            f"beside a `MatrixFree` system an argument must have dims {tuple(dims)}; got "
            f"{array.dims}. It has no batch dims: loop over them."
        )
    return array.transpose(*dims).values


def _joined(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Parts of a batch as one array; ranks may differ, so pad to the widest with zeros."""
    shape = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    shape[axis] = sum(part.shape[axis] for part in parts)
    joined, start = np.zeros(shape, dtype=parts[0].dtype), 0
    for part in parts:
        at = [slice(0, size) for size in part.shape]
        at[axis] = slice(start, start + part.shape[axis])
        joined[tuple(at)] = part
        start += part.shape[axis]
    return joined


def transposed(matrix: Any) -> Any:
    """The transpose of a stack of matrices, or of an operator."""
    return matrix.T if isinstance(matrix, LinearOperator) else np.swapaxes(matrix, -1, -2)


def beside(left: np.ndarray | None, right: np.ndarray | None) -> np.ndarray:
    """Two stacks of matrices side by side, one of which may be missing; batch dims broadcast."""
    if left is not None and right is not None and left.shape[:-2] == right.shape[:-2]:
        return np.concatenate((left, right), axis=-1)
    given = [matrix for matrix in (left, right) if matrix is not None]
    batch = np.broadcast_shapes(*(matrix.shape[:-2] for matrix in given))
    parts = [np.broadcast_to(m, (*batch, *m.shape[-2:])) for m in given]
    return np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def propagated(a: Any, columns: np.ndarray, new: np.ndarray, *, first: bool = False) -> np.ndarray:
    """``a @ columns`` with ``new`` columns after it, or before it, multiplied into its place."""
    width = columns.shape[-1]
    if isinstance(a, LinearOperator) or width == 0:
        older: Any = a @ columns if width else None
        return beside(new, older) if first else beside(older, new)
    batch = np.broadcast_shapes(a.shape[:-2], columns.shape[:-2], new.shape[:-2])
    whole = np.empty((*batch, a.shape[-2], width + new.shape[-1]))
    start = new.shape[-1] if first else 0
    np.matmul(a, columns, out=whole[..., start : start + width])
    whole[..., slice(start) if first else slice(width, None)] = new
    return whole


def stacked(matrices: Sequence[np.ndarray], rows: int, columns: int) -> np.ndarray:
    """Matrices of varying size in one array (..., depth, rows, columns), padded with zeros."""
    batch = np.broadcast_shapes(*(m.shape[:-2] for m in matrices))
    array = np.zeros((*batch, len(matrices), rows, columns))
    for k, matrix in enumerate(matrices):
        array[..., k, : matrix.shape[-2], : matrix.shape[-1]] = matrix
    return array
