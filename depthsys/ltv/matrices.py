"""Matrices as they are given, stacked or in lists whose sizes vary, as stacks of one shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from depthsys.ltv.foreign import discrete_system

DIMS = {
    "A": ("layer", "state_next", "state"),
    "B": ("layer", "state_next", "input"),
    "C": ("depth", "output", "state"),
    "D": ("depth", "output", "input"),
}
OPTIONAL_DIMS = {
    "x_ref": ("depth", "state"),
    "y_ref": ("depth", "output"),
    "V": ("depth", "feature", "state"),
    "W": ("depth", "feature", "state"),
    "v": ("depth", "feature", "input"),
}
OWN_DIMS = {dim for dims in [*DIMS.values(), *OPTIONAL_DIMS.values()] for dim in dims}


def one_matrix(value: Any, name: str) -> np.ndarray:
    """A single matrix, which does not vary with the layer."""
    if name != "A" and not isinstance(value, (np.ndarray, list, tuple)):
        discrete_system(value, name)  # refuses what is no array
    return list_of_matrices([in_order(value, name, DIMS[name][1:])], name)[0]


def in_order(value: Any, name: str, dims: Sequence[str]) -> Any:
    """A DataArray in the order of its dims, which go by name; everything else as it is."""
    unmasked(value, name)
    if not isinstance(value, xr.DataArray):
        return value
    in_memory(value, name)
    if set(dims) <= set(value.dims):
        return value.transpose(..., *dims).values
    if wrong := sorted(OWN_DIMS & set(map(str, value.dims))):
        raise ValueError(
            f"`{name}` must have dims {tuple(dims)}; got {value.dims}. Rename {wrong}, or pass "
            "`.values` to go by position."
        )
    return value.values


def unmasked(value: Any, name: str) -> None:
    """ValueError for numpy's masked arrays and lists of them, whose masks are lost on the way."""
    if count := _masked(value):
        raise ValueError(
            f"`{name}` must have no masked values; got {count}. Fill them: `.filled(0)`, or "
            "`.filled(np.nan)` where NaN stands for what is free or missing."
        )


def _masked(value: Any) -> int:
    """How many values are masked, in lists at any depth."""
    if isinstance(value, np.ma.MaskedArray):
        return int(np.ma.count_masked(value))
    if isinstance(value, (list, tuple)):
        return sum(_masked(part) for part in value if not isinstance(part, (int, float)))
    return 0


def in_memory(value: Any, name: str) -> None:
    """ValueError for an array in chunks (dask), which is not computed here behind the scenes."""
    chunks = getattr(value, "chunks", None)  # of dask a tuple per dim; a file's are whole numbers
    if isinstance(chunks, tuple) and all(isinstance(sizes, tuple) for sizes in chunks):
        raise ValueError(
            f"`{name}` must be in memory; got an array in chunks (dask). Call `.load()` or "
            "`.compute()` first, part by part (`.isel`) where it is large."
        )


def compact(values: np.ndarray) -> np.ndarray:
    """What an array really holds: a matrix that a view repeats along an axis, once."""
    at = tuple(slice(1) if step == 0 else slice(None) for step in values.strides)
    return values[at]


def is_ragged(matrices: Any) -> bool:
    """Whether it is a list of matrices whose sizes vary."""
    return isinstance(matrices, (list, tuple)) and len({np.shape(m) for m in matrices}) > 1


def stacked_arrays(A, B, C, D) -> tuple[list[np.ndarray], np.ndarray]:
    """Matrices that are stacked already, once they fit together; and the order (depth)."""
    A, B, C = (
        _matrices(np.asarray(in_order(value, name, DIMS[name])), name)
        for name, value in zip("ABC", (A, B, C), strict=True)
    )
    shape = (*C.shape[:-1], B.shape[-1])
    D = np.zeros(shape) if D is None else _matrices(np.asarray(in_order(D, "D", DIMS["D"])), "D")
    n_layers, n = A.shape[-3], A.shape[-1]
    wanted = {
        "A": (n_layers, n, n),
        "B": (n_layers, n, B.shape[-1]),
        "C": (n_layers + 1, C.shape[-2], n),
        "D": (n_layers + 1, C.shape[-2], B.shape[-1]),
    }
    for (name, want), value in zip(wanted.items(), (A, B, C, D), strict=True):
        if value.shape[-3:] != want:
            raise ValueError(
                f"`{name}` must have shape {want} = {DIMS[name]}; got {value.shape[-3:]}. A and B "
                "have one matrix per layer 0..L-1, C and D one per depth 0..L."
            )
        if value.shape[:-3] != A.shape[:-3]:
            raise ValueError(
                f"`{name}` must have the batch shape of `A`, {A.shape[:-3]}; got "
                f"{value.shape[:-3]}. Broadcast it first."
            )
    return [A, B, C, D], np.full(C.shape[-3], C.shape[-1])


def _matrices(value: np.ndarray, name: str) -> np.ndarray:
    if value.ndim < 3:
        raise ValueError(
            f"`{name}` must have dims {DIMS[name]}; got shape {value.shape}. "
            "Give one matrix per layer (A, B) or per depth (C, D)."
        )
    refuse_complex(value, name)
    return value.astype(np.float64)


def list_of_matrices(matrices: Any, name: str) -> list[np.ndarray]:
    """Plain matrices of a list, real and in double precision."""
    unmasked(matrices, name)
    arrays = [np.asarray(m) for m in matrices]
    for k, array in enumerate(arrays):
        if array.ndim != 2:
            raise ValueError(
                f"`{name}[{k}]` must be a matrix; got shape {array.shape}. Write a vector as a "
                "matrix with one row or one column."
            )
        refuse_complex(array, f"{name}[{k}]")
    if not arrays:
        raise ValueError(f"`{name}` must hold at least one matrix; got none. One per layer.")
    return [array.astype(np.float64) for array in arrays]


def refuse_complex(value: np.ndarray, name: str) -> None:
    """TypeError for what holds no real numbers."""
    if np.iscomplexobj(value):
        raise TypeError(f"`{name}` must be real; got {value.dtype}. Take the real form first.")
    if not np.issubdtype(value.dtype, np.number) and value.dtype != bool:
        raise TypeError(f"`{name}` must hold numbers; got dtype {value.dtype}. Convert it first.")


def padded_lists(A, B, C, D) -> tuple[list[np.ndarray], np.ndarray]:
    """Lists of matrices of varying size as stacks, once they chain; and the order (depth)."""
    A, B, C = (list_of_matrices(x, name) for x, name in ((A, "A"), (B, "B"), (C, "C")))
    n_layers = len(A)
    if len(B) != n_layers or len(C) != n_layers + 1:
        raise ValueError(
            f"`B` must hold L and `C` L + 1 matrices for the L = {n_layers} of `A`; "
            f"got {len(B)} and {len(C)}. Give C one matrix per depth 0..L."
        )
    order = [a.shape[1] for a in A] + [A[-1].shape[0]]
    n_inputs, n_outputs = B[0].shape[1], C[0].shape[0]
    D = [np.zeros((n_outputs, n_inputs))] * (n_layers + 1) if D is None else D
    D = list_of_matrices(D, "D")
    wanted = {
        "A": [(order[k + 1], order[k]) for k in range(n_layers)],
        "B": [(order[k + 1], n_inputs) for k in range(n_layers)],
        "C": [(n_outputs, n) for n in order],
        "D": [(n_outputs, n_inputs)] * (n_layers + 1),
    }
    stacked = []
    for (name, shapes), matrices in zip(wanted.items(), (A, B, C, D), strict=True):
        check_shapes(name, [m.shape for m in matrices], shapes)
        rows = max(shape[0] for shape in shapes) if name in "CD" else max(order)
        columns = max(order) if name in "AC" else n_inputs
        padded = np.zeros((len(matrices), rows, columns))
        for k, matrix in enumerate(matrices):
            padded[k, : matrix.shape[0], : matrix.shape[1]] = matrix
        stacked.append(padded)
    return stacked, np.array(order)


def check_shapes(name: str, shapes: Sequence[tuple], wanted: Sequence[tuple]) -> None:
    """ValueError where a matrix does not chain with its neighbours."""
    if len(shapes) != len(wanted):
        raise ValueError(
            f"`{name}` must hold {len(wanted)} matrices; got {len(shapes)}. "
            "Give one per layer (A, B) or per depth 0..L (C, D)."
        )
    for k, (shape, want) in enumerate(zip(shapes, wanted, strict=True)):
        if shape != want:
            raise ValueError(
                f"`{name}[{k}]` must have shape {want}; got {shape}. Sizes must "
                "chain: A[k] maps the state at depth k to depth k + 1."
            )
