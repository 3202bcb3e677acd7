"""What a plan must meet: states and outputs, free where NaN, and bounds on the inputs."""

from typing import Any

import numpy as np
import xarray as xr

from depthsys.ltv.labels import aligned
from depthsys.ltv.matrices import in_memory
from depthsys.ltv.matrix_free import MatrixFree, state_sizes
from depthsys.ltv.response import as_state
from depthsys.ltv.system import as_named, plain


def final_state(system: xr.Dataset, value: Any) -> xr.DataArray:
    """x_final (state), NaN where it is free."""
    n = system.sizes["state"]
    if value is None:
        return xr.DataArray(np.full(n, np.nan), dims=["state"])
    named = as_named(_without_nan(value, "x_final"), "x_final", {"state": None})
    as_state(system, named, "x_final", -1)  # its size and labels
    free = _free(value, named)
    exists = xr.DataArray(np.arange(n), dims=["state"]) < state_sizes(system).isel(depth=-1)
    found = aligned(named.where(~free), "x_final", system)
    found = found.pad(state=(0, n - found.sizes["state"]), constant_values=np.nan)
    return found.where(exists).transpose(..., "state")


def output_targets(system: xr.Dataset, value: Any) -> xr.DataArray:
    """y_target (depth, output), NaN where it is free."""
    sizes = {d: system.sizes[d] for d in ("depth", "output")}
    if value is None:
        return xr.DataArray(np.full(tuple(sizes.values()), np.nan), dims=list(sizes))
    part = isinstance(value, xr.DataArray)
    named = as_named(
        _without_nan(value, "y_target"), "y_target", dict.fromkeys(sizes) if part else sizes
    )
    named = named.where(~_free(value, named))
    for dim in sizes:
        if dim in named.coords:
            named = _among(named, dim, system)
        elif named.sizes[dim] != sizes[dim]:
            raise ValueError(
                f"`y_target` must have {dim}={sizes[dim]}, or labels along {dim!r}; got "
                f"{named.sizes[dim]}. Label its {dim}s, or fill up with NaN."
            )
    return aligned(named, "y_target", system).transpose(..., *sizes)


def _among(value: xr.DataArray, dim: str, system: xr.Dataset) -> xr.DataArray:
    """Some entries of a dim as all of them, NaN elsewhere."""
    every = system[dim].values if dim in system.coords else np.arange(system.sizes[dim])
    named = f"{dim}_name" in system.coords and dim not in system.coords
    if named and not np.issubdtype(value[dim].dtype, np.integer):
        every = system[f"{dim}_name"].values
    theirs = value[dim].values.tolist()
    if len(set(theirs)) < len(theirs) or not set(theirs) <= set(every.tolist()):
        raise ValueError(
            f"`y_target` must have labels of the system along {dim!r}, {every}, each once; got "
            f"{value[dim].values}. Use those."
        )
    return value.reindex({dim: every})


def _without_nan(value: Any, name: str) -> Any:
    if isinstance(value, xr.DataArray):
        in_memory(value, name)
        return value.fillna(0.0)
    array = plain(value, name)
    return np.nan_to_num(array, posinf=np.inf, neginf=-np.inf) if array.dtype.kind == "f" else array


def _free(value: Any, named: xr.DataArray) -> xr.DataArray:
    if isinstance(value, xr.DataArray):
        return value.isnull()
    array = np.asarray(value)
    return named.copy(data=np.isnan(array) if array.dtype.kind == "f" else array != array)


def bound(system: xr.Dataset | MatrixFree, value: Any, name: str, none: float) -> xr.DataArray:
    """A bound (layer, input); ``none`` (infinite) where there is none."""
    if isinstance(system, MatrixFree):
        sizes = {"layer": len(system.A), "input": np.shape(system.B[0])[1]}
    else:
        sizes = {d: system.sizes[d] for d in ("layer", "input")}
    value = none if value is None else value
    if isinstance(value, xr.DataArray):
        in_memory(value, name)
    else:
        array = plain(value, name)
        value = np.full(sizes["input"], array) if array.ndim == 0 else array
    away = value == none
    finite = (
        value.where(~away, 0.0) if isinstance(value, xr.DataArray) else np.where(away, 0, value)
    )
    named = as_named(finite, name, {"input": sizes["input"]}, sizes)
    away = away if isinstance(away, xr.DataArray) else named.copy(data=away)
    named = named.where(~away, none)
    if "layer" not in named.dims:
        named = named.expand_dims(layer=sizes["layer"])
    return aligned(named, name, system).transpose(..., "layer", "input")


def pattern(value: xr.DataArray, name: str, dims: tuple[str, ...]) -> np.ndarray:
    """Which targets there are, the same in every member of a batch."""
    given = value.notnull()
    batch = [d for d in value.dims if d not in dims]
    every, some = given.all(batch), given.any(batch)
    if bool((every != some).any()):
        raise ValueError(
            f"`{name}` must be NaN at the same places in every member of a batch; got several "
            "patterns. Plan them one by one."
        )
    return every.transpose(*dims).values
