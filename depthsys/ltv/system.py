"""Build, check and run a linear time-varying system stored as an xarray Dataset."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys._version import __version__

SCHEMA_VERSION = 1

_DIMS = {
    "A": ("layer", "state_next", "state"),
    "B": ("layer", "state_next", "input"),
    "C": ("depth", "output", "state"),
    "D": ("depth", "output", "input"),
}
_OPTIONAL_DIMS = {
    "x_ref": ("depth", "state"),
    "y_ref": ("depth", "output"),
    "V": ("depth", "feature", "state"),
    "W": ("depth", "feature", "state"),
    "v": ("depth", "feature", "input"),
}


def system(
    A: ArrayLike | Sequence[ArrayLike],
    B: ArrayLike | Sequence[ArrayLike],
    C: ArrayLike | Sequence[ArrayLike],
    D: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    batch_dims: Sequence[str] = (),
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    r"""A system ``x_{l+1} = A_l x_l + B_l u_l``, ``y_k = C_k x_k + D_k u_k`` as a Dataset.

    Parameters
    ----------
    A
        Arrays (layer, state_next, state), or a list of L matrices whose sizes may vary with
        depth as long as they chain.
    B
        (layer, state_next, input), or a list of L matrices.
    C
        (depth, output, state), or a list of L + 1 matrices: the last one reads x_L.
    D
        (depth, output, input), or a list of L + 1 matrices; zero by default. The last
        one must be zero: there is no input at depth L.
    batch_dims
        Names of leading dims that all four arrays share, for example ``("prompt",)``.
    attrs
        Provenance to store beside the library and schema version.

    Returns
    -------
    xr.Dataset
        ``A``, ``B``, ``C``, ``D`` in float64; the coordinate ``order`` (depth) holds the size
        of the state. Lists of varying sizes are padded with zeros to the largest order.

    Raises
    ------
    ValueError
        If the sizes do not chain or a value is not finite; the message says where.

    Examples
    --------
    Two layers, one input, read at the end: the input of layer 0 is halved by layer 1.

    >>> from depthsys import ltv
    >>> s = ltv.system(A=[[[0.5]], [[0.5]]], B=[[[1.0]], [[1.0]]], C=[[[0.0]], [[0.0]], [[1.0]]])
    >>> ltv.gains(s).values.ravel()
    array([0.5, 1. ])
    """
    if any(_is_ragged(x) for x in (A, B, C, D)):
        if batch_dims:
            raise ValueError(
                f"`batch_dims` must be empty for lists of matrices; got {tuple(batch_dims)}. "
                "Pad the matrices to one size and pass arrays."
            )
        arrays, order = _padded(A, B, C, D)
    else:
        arrays, order = _stacked(A, B, C, D)
    data = {
        name: ((*batch_dims, *_DIMS[name]), value)
        for name, value in zip("ABCD", arrays, strict=True)
    }
    ds = xr.Dataset(
        data,
        coords={
            "layer": np.arange(arrays[0].shape[-3]),
            "depth": np.arange(arrays[2].shape[-3]),
            "order": ("depth", order),
        },
        attrs={
            "depthsys_version": __version__,
            "schema_version": SCHEMA_VERSION,
            **(attrs or {}),
        },
    )
    return check(ds)


def _is_ragged(matrices: Any) -> bool:
    return isinstance(matrices, (list, tuple)) and len({np.shape(m) for m in matrices}) > 1


def _stacked(A, B, C, D) -> tuple[list[np.ndarray], np.ndarray]:
    A, B, C = (
        _matrices(np.asarray(value), name) for name, value in zip("ABC", (A, B, C), strict=True)
    )
    shape = (*C.shape[:-1], B.shape[-1])
    D = np.zeros(shape) if D is None else _matrices(np.asarray(D), "D")
    return [A, B, C, D], np.full(C.shape[-3], C.shape[-1])


def _matrices(value: np.ndarray, name: str) -> np.ndarray:
    if value.ndim < 3:
        raise ValueError(
            f"`{name}` must have dims {_DIMS[name]}; got shape {value.shape}. "
            "Give one matrix per layer (A, B) or per depth (C, D)."
        )
    if np.iscomplexobj(value):
        raise TypeError(f"`{name}` must be real; got {value.dtype}. Take the real form first.")
    return value.astype(np.float64)


def _padded(A, B, C, D) -> tuple[list[np.ndarray], np.ndarray]:
    """Stack matrices of varying size, after checking that they chain."""
    A, B, C = ([np.asarray(m, dtype=np.float64) for m in x] for x in (A, B, C))
    n_layers = len(A)
    if len(B) != n_layers or len(C) != n_layers + 1:
        raise ValueError(
            f"`B` must hold L and `C` L + 1 matrices for the L = {n_layers} of `A`; "
            f"got {len(B)} and {len(C)}. Give C one matrix per depth 0..L."
        )
    order = [a.shape[1] for a in A] + [A[-1].shape[0]]
    n_inputs, n_outputs = B[0].shape[1], C[0].shape[0]
    D = [np.zeros((n_outputs, n_inputs))] * (n_layers + 1) if D is None else D
    D = [np.asarray(m, dtype=np.float64) for m in D]
    wanted = {
        "A": [(order[k + 1], order[k]) for k in range(n_layers)],
        "B": [(order[k + 1], n_inputs) for k in range(n_layers)],
        "C": [(n_outputs, n) for n in order],
        "D": [(n_outputs, n_inputs)] * (n_layers + 1),
    }
    stacked = []
    for (name, shapes), matrices in zip(wanted.items(), (A, B, C, D), strict=True):
        for k, (matrix, shape) in enumerate(zip(matrices, shapes, strict=True)):
            if matrix.shape != shape:
                raise ValueError(
                    f"`{name}[{k}]` must have shape {shape}; got {matrix.shape}. Sizes must "
                    "chain: A[k] maps the state at depth k to depth k + 1."
                )
        rows = max(s[0] for s in shapes) if name in "CD" else max(order)
        columns = max(order) if name in "AC" else n_inputs
        padded = np.zeros((len(matrices), rows, columns))
        for k, matrix in enumerate(matrices):
            padded[k, : matrix.shape[0], : matrix.shape[1]] = matrix
        stacked.append(padded)
    return stacked, np.array(order)


def check(system: xr.Dataset) -> xr.Dataset:
    """Validate a system and return it unchanged.

    Raises
    ------
    TypeError
        If it is not an xarray Dataset.
    ValueError
        If a variable or dim is missing, sizes do not chain, a value is not finite, or the
        schema is newer than this library.
    """
    if not isinstance(system, xr.Dataset):
        raise TypeError(
            f"`system` must be an xarray Dataset; got {type(system).__name__}. "
            "Build one with `depthsys.ltv.system(A, B, C)`."
        )
    schema = int(system.attrs.get("schema_version", SCHEMA_VERSION))
    if schema > SCHEMA_VERSION:
        raise ValueError(
            f"`system` must have schema_version <= {SCHEMA_VERSION}; got {schema}. "
            "It was written by a newer depthsys: upgrade this one."
        )
    for name, dims in _DIMS.items():
        if name not in system:
            raise ValueError(
                f"`system` must hold the variable {name!r}; got {sorted(map(str, system))}. "
                "Build it with `depthsys.ltv.system(A, B, C)`."
            )
        _check_variable(system, name, dims)
    for name, dims in _OPTIONAL_DIMS.items():
        if name in system:
            _check_variable(system, name, dims)
    sizes = system.sizes
    if sizes["layer"] < 1 or sizes["depth"] != sizes["layer"] + 1:
        raise ValueError(
            f"`system` must have L >= 1 layers and L + 1 depths; got layer={sizes['layer']}, "
            f"depth={sizes['depth']}. C and D have one matrix per depth 0..L."
        )
    if sizes["state_next"] != sizes["state"]:
        raise ValueError(
            f"`system` must store square A; got state_next={sizes['state_next']}, "
            f"state={sizes['state']}. Pad varying sizes with zeros (`ltv.system` does)."
        )
    if np.any(system["D"].isel(depth=-1).values):
        raise ValueError(
            "`D` must be zero at the last depth; got non-zero values. There is no input at depth L."
        )
    return system


def _check_variable(system: xr.Dataset, name: str, dims: tuple[str, ...]) -> None:
    variable = system[name]
    if variable.dims[-len(dims) :] != dims:
        raise ValueError(
            f"`{name}` must end in dims {dims}; got {variable.dims}. "
            f"Use `.transpose(..., {', '.join(map(repr, dims))})` after renaming."
        )
    finite = np.isfinite(variable.values)
    if not finite.all():
        where = np.argwhere(~finite)[0]
        place = ", ".join(f"{d}={i}" for d, i in zip(variable.dims, where, strict=True))
        raise ValueError(
            f"`{name}` must be finite; got {variable.values[tuple(where)]} at {place}. "
            "Find the layer that overflowed before building the system."
        )


def simulate(system: xr.Dataset, u: xr.DataArray, x0: xr.DataArray | None = None) -> xr.Dataset:
    """Run the recursion: states ``x`` (depth, state) and outputs ``y`` (depth, output).

    Parameters
    ----------
    system
        A system; extra leading dims are batch dims.
    u
        Inputs (layer, input), in the unit of the input; may have batch dims too.
    x0
        Initial state (state); zero by default.

    Returns
    -------
    xr.Dataset
        ``x`` (depth, state), ``y`` (depth, output). MATLAB calls this `lsim`, python-control
        `forced_response`.

    Raises
    ------
    ValueError
        If ``u`` has other dims than (..., layer, input).
    """
    check(system)
    _check_input(system, u)
    if x0 is None:
        x0 = xr.zeros_like(system["A"].isel(layer=0, state_next=0, drop=True))
    x, y = xr.apply_ufunc(
        _simulate,
        *(system[name] for name in "ABCD"),
        u,
        x0,
        input_core_dims=[*(list(_DIMS[name]) for name in "ABCD"), ["layer", "input"], ["state"]],
        output_core_dims=[["depth", "state"], ["depth", "output"]],
    )
    return xr.Dataset({"x": x, "y": y})


def _check_input(system: xr.Dataset, u: xr.DataArray) -> None:
    expected: dict[Hashable, int] = {d: system.sizes[d] for d in ("layer", "input")}
    if {d: u.sizes.get(d) for d in expected} != expected:
        raise ValueError(f"`u` must have dims {expected}; got {dict(u.sizes)}. One row per layer.")


def _simulate(A, B, C, D, u, x0):
    n_layers = A.shape[-3]
    u = np.concatenate([u, np.zeros_like(u[..., :1, :])], axis=-2)
    x, states = x0, [x0]
    for layer in range(n_layers):
        x = np.einsum("...ij,...j->...i", A[..., layer, :, :], x) + np.einsum(
            "...ij,...j->...i", B[..., layer, :, :], u[..., layer, :]
        )
        states.append(x)
    x = np.stack(np.broadcast_arrays(*states), axis=-2)
    y = np.einsum("...kij,...kj->...ki", C, x) + np.einsum("...kij,...kj->...ki", D, u)
    return x, y


def gains(system: xr.Dataset) -> xr.DataArray:
    r"""Terminal gains ``h_l = C_L A_{L-1} ... A_{l+1} B_l`` of every layer.

    Returns
    -------
    xr.DataArray
        ``gain`` (layer, output, input), output/input: the shift of y_L per unit input at
        layer l. One row of products from the output side: no L x L matrix is formed.
    """
    check(system)
    gain = xr.apply_ufunc(
        _gains,
        *(system[name] for name in "ABC"),
        input_core_dims=[list(_DIMS[name]) for name in "ABC"],
        output_core_dims=[["layer", "output", "input"]],
    )
    return gain.rename("gain")


def _gains(A, B, C):
    row, rows = C[..., -1, :, :], []
    for layer in reversed(range(A.shape[-3])):
        rows.append(row @ B[..., layer, :, :])
        row = row @ A[..., layer, :, :]
    return np.stack(np.broadcast_arrays(*rows[::-1]), axis=-3)


def io_matrix(system: xr.Dataset) -> xr.DataArray:
    """The input-output map: ``y_k = sum_l G[k, l] u_l``, block lower-triangular.

    Returns
    -------
    xr.DataArray
        ``io_matrix`` (depth, output, layer, input), output/input.
    """
    check(system)
    matrix = xr.apply_ufunc(
        _io_matrix,
        *(system[name] for name in "ABCD"),
        input_core_dims=[list(_DIMS[name]) for name in "ABCD"],
        output_core_dims=[["depth", "output", "layer", "input"]],
    )
    return matrix.rename("io_matrix")


def _io_matrix(A, B, C, D):
    n_layers, n_inputs = A.shape[-3], B.shape[-1]
    batch = np.broadcast_shapes(*(m.shape[:-3] for m in (A, B, C, D)))
    G = np.zeros((*batch, n_layers + 1, C.shape[-2], n_layers, n_inputs))
    # response holds the states at the current depth to a unit input at every earlier layer
    response = np.zeros((*batch, A.shape[-1], n_layers, n_inputs))
    for k in range(n_layers + 1):
        G[..., k, :, :, :] = np.einsum("...pn,...nlm->...plm", C[..., k, :, :], response)
        if k < n_layers:
            G[..., k, :, k, :] += D[..., k, :, :]
            response = np.einsum("...ij,...jlm->...ilm", A[..., k, :, :], response)
            response[..., :, k, :] += B[..., k, :, :]
    return G
