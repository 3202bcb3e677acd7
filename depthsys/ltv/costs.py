"""Quadratic costs along a system: what they may be, and their factors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from depthsys.ltv.labels import aligned, beside_each_other
from depthsys.ltv.matrix_free import checked_sizes, transposed
from depthsys.ltv.system import as_named

RTOL = 1e-10
EPS = np.finfo(float).eps
STATES, INPUTS, OUTPUTS = ("state", "state_2"), ("input", "input_2"), ("output", "output_2")
_TARGETS = {
    "x_target": ("depth", "state"),
    "y_target": ("depth", "output"),
    "u_target": ("layer", "input"),
    "drift": ("layer", "state_next"),
}


@dataclass(frozen=True)
class Costs:
    """``|F x + E u - f|^2`` per layer and ``|S x - g|^2`` at the last depth, as factors.

    F is ``on_state`` (layer, row, state), E ``on_input`` (layer, row, input), S ``end`` (last_row,
    state); ``f`` (layer, row), ``g`` (last_row) and ``drift`` (layer, state), which is added to
    the next state, are None without targets and drift. ``terminal`` is S'S as it was given.

    ``squares`` are Q, R and the least eigenvalues of Q (layer) and of ``terminal``, relative to
    their own diagonals; None where there is more to a cost than Q and R.
    """

    on_state: xr.DataArray
    on_input: xr.DataArray
    end: xr.DataArray
    terminal: xr.DataArray
    affine: tuple[xr.DataArray, ...] | None  # f, drift, g
    squares: tuple[xr.DataArray, ...] | None = None

    DIMS = (
        ("layer", "row", "state"),
        ("layer", "row", "input"),
        ("last_row", "state"),
    )
    AFFINE_DIMS = (("layer", "row"), ("layer", "state"), ("last_row",))
    SQUARES_DIMS = (("layer", *STATES), ("layer", *INPUTS), ("layer",), ())


def as_costs(
    system: xr.Dataset,
    Q: Any,
    R: Any,
    N: Any = None,
    terminal: Any = None,
    *,
    x_target: Any = None,
    u_target: Any = None,
    drift: Any = None,
    rtol: float = RTOL,
) -> Costs:
    """Costs on states and inputs, checked and aligned with the system."""
    targets = {"x_target": x_target, "u_target": u_target, "drift": drift}
    given = _given(system, "state", Q, R, N, terminal, targets)
    sizes = checked_sizes(system)
    if (sizes.values < system.sizes["state"]).any():
        here, end = _existing(system.sizes["state"], sizes)
        given["Q"] = _ordered(given["Q"] * here * here.rename(state="state_2"))
        given["terminal"] = _ordered(given["terminal"] * end * end.rename(state="state_2"))
        if "N" in given:
            given["N"] = _ordered(given["N"] * here)
    least = _least(system, given, "state", rtol)
    on_state, on_input, last = _factors(given, "state")
    affine = _affine(system, given, "x_target", on_state, on_input, last)
    alone = affine is None and "N" not in given
    squares = (given["Q"], given["R"], least["Q"], least["terminal"]) if alone else None
    return Costs(on_state, on_input, last, given["terminal"], affine, squares)


def from_outputs(
    system: xr.Dataset,
    Q: Any,
    R: Any,
    N: Any = None,
    terminal: Any = None,
    *,
    y_target: Any = None,
    u_target: Any = None,
    drift: Any = None,
    rtol: float = RTOL,
) -> Costs:
    """Costs on outputs and inputs as costs on states and inputs, with ``y = Cx + Du``."""
    targets = {"y_target": y_target, "u_target": u_target, "drift": drift}
    given = _given(system, "output", Q, R, N, terminal, targets)
    _least(system, given, "output", rtol)
    on_output, on_input, last = _factors(given, "output")
    C, D = (bare(system[name]) for name in "CD")
    end = xr.dot(last, C.isel(depth=-1), dim="output")
    return Costs(
        _ordered(xr.dot(on_output, at_layers(C), dim="output")),
        _ordered(xr.dot(on_output, at_layers(D), dim="output") + on_input),
        _ordered(end),
        _ordered(xr.dot(end, end.rename(state="state_2"), dim="last_row")),
        _affine(system, given, "y_target", on_output, on_input, last),
    )


def _given(
    system: xr.Dataset, on: str, Q: Any, R: Any, N: Any, terminal: Any, targets: dict[str, Any]
) -> dict[str, xr.DataArray]:
    """All that is given, as float arrays with named dims in the order of the system's labels."""
    n, m, L = (system.sizes[d] for d in (on, "input", "layer"))
    pair = (on, f"{on}_2")
    last = np.zeros((n, n)) if terminal is None else terminal
    found = {
        "Q": per_layer(Q, "Q", dict.fromkeys(pair, n), L),
        "R": per_layer(R, "R", dict.fromkeys(INPUTS, m), L),
        "terminal": as_named(last, "terminal", dict.fromkeys(pair, n)),
    }
    if N is not None:
        found["N"] = per_layer(N, "N", {on: n, "input": m}, L)
    for name, value in targets.items():
        if value is not None:
            along, of = _TARGETS[name]
            found[name] = per_layer(value, name, {of: system.sizes[of]}, system.sizes[along], along)
    found = {name: aligned(value, name, system) for name, value in found.items()}
    found = dict(zip(found, beside_each_other(found), strict=True))
    if "drift" in found:
        found["drift"] = found["drift"].rename(state_next="state")
    return {name: _ordered(value) for name, value in found.items()}


def per_layer(
    value: Any, name: str, each: dict[str, int], count: int, along: str = "layer"
) -> xr.DataArray:
    """An argument with one matrix or vector per layer or depth, from one for all or one each."""
    value = as_named(value, name, each, {along: count, **each})
    return value if along in value.dims else value.expand_dims({along: count})


def _existing(n: int, sizes: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """1 for states that exist and 0 for padding, (layer, state) and of the last depth (state).

    A padded state does not exist and costs nothing.
    """
    exists = (xr.DataArray(np.arange(n), dims=["state"]) < sizes).astype(float)
    return at_layers(exists), exists.isel(depth=-1)


def _affine(
    system: xr.Dataset,
    given: dict[str, xr.DataArray],
    target: str,
    on: xr.DataArray,
    on_input: xr.DataArray,
    last: xr.DataArray,
) -> tuple[xr.DataArray, ...] | None:
    """f, drift and g of a cost of distances from targets, or None where there are none."""
    if not {target, "u_target", "drift"} & set(given):
        return None
    dim = "state" if target == "x_target" else "output"

    def zeros(*dims: str) -> xr.DataArray:
        return xr.DataArray(np.zeros([system.sizes[d] for d in dims]), dims=dims)

    where = given.get(target, zeros("depth", dim))
    f = xr.dot(on, at_layers(where), dim=dim)
    f = f + xr.dot(on_input, given.get("u_target", zeros("layer", "input")), dim="input")
    g = xr.dot(last, where.isel(depth=-1), dim=dim)
    drift = given.get("drift", zeros("layer", "state"))
    return tuple(_ordered(value) for value in (f, drift, g))


def _least(
    system: xr.Dataset, given: dict[str, xr.DataArray], on: str, rtol: float
) -> dict[str, xr.DataArray]:
    """The least eigenvalue of each cost relative to its own diagonal, after checking them."""
    checked_rtol(rtol)
    scales: dict[str, xr.DataArray] = {}
    found = {}
    for name, dim in (("Q", on), ("terminal", on), ("R", "input")):
        matrix = given[name]
        asymmetry, least = _deviations(matrix.values, np.zeros(matrix.shape[:-1]))
        found[name] = xr.DataArray(least, dims=matrix.dims[:-2])
        if not ((asymmetry <= rtol).all() and (least >= -rtol * matrix.sizes[dim]).all()):
            scales = scales or _other_scales(system, given, on)
            refuse_indefinite(given[name], name, dim, scales[dim], rtol)
    if "N" in given:
        scales = scales or _other_scales(system, given, on)
        _refuse_joint(given, on, scales[on], scales["input"], rtol)
    return found


def _factors(
    given: dict[str, xr.DataArray], on: str
) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Factors of [Q N; N' R] per layer and of the terminal cost."""
    joint = joined(given["Q"], given.get("N"), given["R"], on)
    factor = factored(joint, "both")
    n = given["Q"].sizes[on]
    return (
        _ordered(factor.isel(both=slice(n)).rename(both=on)),
        _ordered(factor.isel(both=slice(n, None)).rename(both="input")),
        _ordered(factored(given["terminal"], on).rename(row="last_row")),
    )


def checked_rtol(rtol: float) -> None:
    """ValueError unless it is between 0 and 1."""
    if not 0 < rtol < 1:
        raise ValueError(f"`rtol` must be between 0 and 1; got {rtol}. Leave it at {RTOL:.0e}.")


def joined(
    Q: xr.DataArray, N: xr.DataArray | None, R: xr.DataArray, on: str, dim: str = "input"
) -> xr.DataArray:
    """[Q N; N' R] with the dims both, both_2."""

    def blocks(Q: np.ndarray, R: np.ndarray, *cross: np.ndarray) -> np.ndarray:
        batch = np.broadcast_shapes(*(X.shape[:-2] for X in (Q, R, *cross)))
        n, size = Q.shape[-1], Q.shape[-1] + R.shape[-1]
        whole = np.zeros((*batch, size, size))
        whole[..., :n, :n], whole[..., n:, n:] = Q, R
        for N in cross:
            whole[..., :n, n:], whole[..., n:, :n] = N, transposed(N)
        return whole

    arrays = [Q, R] if N is None else [Q, R, N]
    dims = [[on, f"{on}_2"], [dim, f"{dim}_2"], [on, dim]]
    return xr.apply_ufunc(
        blocks,
        *arrays,
        input_core_dims=dims[: len(arrays)],
        output_core_dims=[["both", "both_2"]],
    )


def factored(matrix: xr.DataArray, dim: str) -> xr.DataArray:
    """F (row, dim) with F'F = the semidefinite matrix (dim, dim_2), up to rounding."""
    return xr.apply_ufunc(
        _factor,
        matrix,
        input_core_dims=[[dim, f"{dim}_2"]],
        output_core_dims=[["row", dim]],
    )


def _factor(matrix: np.ndarray) -> np.ndarray:
    """From the eigenvalues of the matrix with rows and columns scaled to a unit diagonal.

    In its own units a cost of inputs that is far below that of states would be lost. What
    rounding explains is zero, and so is what is negative: `refuse_indefinite` has let it pass.
    """
    if _one_for_all(matrix):
        return np.broadcast_to(_factor(matrix[..., :1, :, :]), matrix.shape)
    scale = np.sqrt(np.abs(np.diagonal(matrix, axis1=-2, axis2=-1)))
    scale = np.where(scale > 0, scale, scale.max(-1, keepdims=True))
    scale = np.where(scale > 0, scale, 1.0)
    scaled = matrix / scale[..., None] / scale[..., None, :]
    values, vectors = np.linalg.eigh((scaled + transposed(scaled)) / 2)
    known = values > 8 * EPS * matrix.shape[-1] * values[..., -1:]
    root = np.sqrt(np.where(known, values, 0.0))
    return root[..., None] * transposed(vectors) * scale[..., None, :]


def _one_for_all(matrices: np.ndarray) -> bool:
    """Whether matrices (..., layer, n, n) are one, given once for all layers."""
    if matrices.ndim < 3 or matrices.shape[-3] < 2:
        return False
    return matrices.strides[-3] == 0 or bool((matrices == matrices[..., :1, :, :]).all())


def _own_scale(matrix: np.ndarray) -> np.ndarray:
    """Root of the diagonal (..., n), at least a millionth of the largest.

    That is how far below the largest entry rounding leaves entries that mean nothing.
    """
    diagonal = np.sqrt(np.abs(np.diagonal(matrix, axis1=-2, axis2=-1)))
    return np.maximum(diagonal, 1e-6 * diagonal.max(-1, keepdims=True))


def _other_scales(
    system: xr.Dataset, given: dict[str, xr.DataArray], on: str
) -> dict[str, xr.DataArray]:
    """What it costs in inputs to make a unit of each state, and what a unit of input makes.

    A cost that is zero up to rounding has no scale of its own: these are the scales of its place.
    """
    reach = _reach(system, on)
    most = reach.max("input")
    make = (abs(given["R"]).max(list(INPUTS)) / most.where(most > 0)).min("layer")
    make = make.fillna(make.min(on)).fillna(0.0)
    sizes = [_diagonal(given["Q"], on).max("layer"), _diagonal(given["terminal"], on)]
    return {on: make, "input": (reach * _larger(*sizes)).sum(on)}


def _reach(system: xr.Dataset, on: str) -> xr.DataArray:
    """Squares of what one unit of each input makes of each state or output, (layer, on, input)."""
    B = bare(system["B"]).rename(state_next="state")
    if on == "state":
        return B**2
    after = bare(system["C"]).isel(depth=slice(1, None)).rename(depth="layer")
    seen = xr.dot(after, B, dim="state")
    return _larger(seen**2, at_layers(bare(system["D"])) ** 2)


def _larger(one: xr.DataArray, other: xr.DataArray) -> xr.DataArray:
    return xr.apply_ufunc(np.maximum, one, other)


def _diagonal(matrix: xr.DataArray, dim: str) -> xr.DataArray:
    return xr.apply_ufunc(
        lambda M: np.abs(np.diagonal(M, axis1=-2, axis2=-1)),
        matrix,
        input_core_dims=[[dim, f"{dim}_2"]],
        output_core_dims=[[dim]],
    )


def refuse_indefinite(
    matrix: xr.DataArray, name: str, dim: str, other: xr.DataArray | float, rtol: float
) -> None:
    """ValueError unless a matrix (dim, dim_2) is symmetric and semidefinite.

    To ``rtol`` of its own diagonal or of ``other`` (dim), whichever is larger.
    """
    asymmetry, least = xr.apply_ufunc(
        _deviations,
        matrix,
        _diagonal(matrix, dim) * 0.0 + other,
        input_core_dims=[[dim, f"{dim}_2"], [dim]],
        output_core_dims=[[], []],
    )
    if bool((asymmetry > rtol).any()):
        raise ValueError(
            f"`{name}` must be symmetric to {rtol:.0e}; got a relative asymmetry of "
            f"{float(asymmetry.max()):.1e}. Use ({name} + {name}') / 2."
        )
    if bool((least < -rtol * matrix.sizes[dim]).any()):
        raise ValueError(
            f"`{name}` must be positive semidefinite to {rtol:.0e}; got an eigenvalue of "
            f"{float(least.min()):.1e} (each {dim} in units of its own diagonal). A reward has no "
            "minimum."
        )


def _deviations(matrix: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest asymmetry and least eigenvalue, with rows and columns in units of their scale."""
    if _one_for_all(matrix) and _one_for_all(other[..., None]):
        whole = np.broadcast_shapes(matrix.shape[:-2], other.shape[:-1])
        found = _deviations(matrix[..., :1, :, :], other[..., :1, :])
        return np.broadcast_to(found[0], whole), np.broadcast_to(found[1], whole)
    scale = np.maximum(_own_scale(matrix), np.sqrt(other))
    scale = np.where(scale > 0, scale, 1.0)
    scaled = matrix / scale[..., None] / scale[..., None, :]
    flipped = transposed(scaled)
    empty = np.asarray(~(matrix.any(-1) | matrix.any(-2)))  # a state without a cost is no direction
    own = np.eye(matrix.shape[-1]) * empty[..., None]
    least = np.linalg.eigvalsh((scaled + flipped) / 2 + own).min(-1)
    return np.abs(scaled - flipped).max((-2, -1)), least


def _refuse_joint(
    given: dict[str, xr.DataArray], on: str, make: xr.DataArray, made: xr.DataArray, rtol: float
) -> None:
    joint = joined(given["Q"], given["N"], given["R"], on)
    other = xr.apply_ufunc(
        _beside,
        make,
        made,
        input_core_dims=[[on], ["input"]],
        output_core_dims=[["both"]],
    )
    _, least = xr.apply_ufunc(
        _deviations,
        joint,
        other,
        input_core_dims=[["both", "both_2"], ["both"]],
        output_core_dims=[[], []],
    )
    if bool((least < -rtol * joint.sizes["both"]).any()):
        raise ValueError(
            "`N` must keep [Q N; N' R] positive semidefinite; got an eigenvalue of "
            f"{float(least.min()):.1e} (each {on} and input in units of its own cost). A reward "
            "has no minimum: make N smaller, or Q or R larger."
        )


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    batch = np.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    parts = [np.broadcast_to(x, (*batch, x.shape[-1])) for x in (left, right)]
    return np.concatenate(parts, axis=-1)


def _ordered(value: xr.DataArray) -> xr.DataArray:
    own = ("depth", "layer", "row", "last_row", *OUTPUTS, *STATES, *INPUTS)
    return value.transpose(..., *(d for d in own if d in value.dims))


def bare(value: xr.DataArray) -> xr.DataArray:
    """A variable of a system without the labels of the system's own dims."""
    own = {"layer", "depth", "state", "state_next", "input", "output"}
    drop = [c for c, a in value.coords.items() if c == "order" or not a.dims or own & set(a.dims)]
    return value.drop_vars(drop)


def at_layers(value: xr.DataArray) -> xr.DataArray:
    """What holds at all depths but the last, as of the layers that start there."""
    return value.isel(depth=slice(-1)).rename(depth="layer")
