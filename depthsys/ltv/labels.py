"""Labels mean something: an array beside a system is put in the system's order, or refused.

Two labelled arrays are never matched by position. What has no labels goes by position, as numpy
arrays do. A system may carry labels of its states, inputs and outputs as coordinates of these dims
(``state`` and ``state_next``, ``input``, ``output``), or as names (``input_name``, ...).
"""

from typing import Any

import numpy as np
import xarray as xr

from depthsys.ltv.matrices import in_memory
from depthsys.ltv.matrix_free import MatrixFree, labels
from depthsys.ltv.system import batch_sizes

System = xr.Dataset | MatrixFree
# dims of an array, and the dim of the system that each of them stands for
_OF_SYSTEM = {
    "layer": "layer",
    "depth": "depth",
    "state": "state",
    "state_2": "state",
    "state_next": "state",
    "input": "input",
    "input_2": "input",
    "output": "output",
    "output_2": "output",
}


def aligned(
    value: xr.DataArray, name: str, system: System, own: tuple[str, ...] = (), **stand_for: str
) -> xr.DataArray:
    """The array in the order of the system's labels, without labels of the system's own dims.

    Parameters
    ----------
    value
        An array with named dims.
    name
        What it is called in errors.
    system
        The system it goes beside.
    own
        Dims of the array that mean nothing to the system: their labels are dropped.
    stand_for
        Which dim of the system another dim of the array stands for, as ``feature="state"``; ""
        for none.

    Raises
    ------
    ValueError
        If the labels along a dim are not those of the system, or the sizes of a batch dim differ.
    """
    in_memory(value, name)
    partner = _OF_SYSTEM | stand_for
    if len(value.coords):
        for dim in map(str, value.dims):
            if partner.get(dim):
                value = _in_order(value, name, dim, _labels_of(system, partner[dim]))
        value = _bare(value, {*partner, *own})
    batch = set(map(str, value.dims)) - {*partner, *own}
    if batch and not isinstance(system, MatrixFree):
        sizes = batch_sizes(system)
        for dim in batch & set(sizes):
            value = _same_batch(value, name, dim, system[dim], sizes[dim], "system")
    return value


def in_order_of(value: xr.DataArray, name: str, dim: str, wanted: np.ndarray) -> xr.DataArray:
    """The array in the order of ``wanted`` labels along one dim, without them; or ValueError."""
    in_memory(value, name)
    return _bare(_in_order(value, name, dim, (wanted, None)), {dim})


def in_order_like(other: xr.Dataset, name: str, first: xr.Dataset, dim: str) -> xr.Dataset:
    """A system with its inputs or outputs (``dim``) in the order of those of the first.

    Matched by names where both have them, by labels otherwise; what has neither goes by position.
    ValueError where they are called differently.
    """
    ours, theirs = (_labels_of(one, dim)[::-1] for one in (first, other))
    pairs = [*zip(ours, theirs, strict=True), (ours[0], theirs[1]), (ours[1], theirs[0])]
    told = [(a, b) for a, b in pairs if a is not None and b is not None and _comparable(a, b)]
    if not told:
        return other
    wanted, given = told[0]
    same = np.array_equal(given, wanted)
    at = np.arange(len(wanted)) if same else np.array(_order(given, wanted, name, dim, "first"))
    if ours[1] is not None and theirs[1] is not None:
        _check_equal(theirs[1][at], ours[1], name, dim)
    return other if same else other.isel({dim: at})


def _check_equal(given: np.ndarray, wanted: np.ndarray, name: str, dim: str) -> None:
    if not np.array_equal(given, wanted):
        raise ValueError(
            f"`{name}` must have the labels of the first along {dim!r}, {wanted}, in the order of "
            f"its names; got {given}. Drop the labels or the names of one of them."
        )


def _comparable(left: np.ndarray, right: np.ndarray) -> bool:
    return _whole(left) == _whole(right)


def beside_each_other(arrays: dict[str, xr.DataArray]) -> list[xr.DataArray]:
    """Arrays in the same order along the batch dims that they share; ValueError if they cannot."""
    first: dict[str, tuple[str, xr.DataArray]] = {}
    found = []
    for name, value in arrays.items():
        for dim in map(str, value.dims):
            if dim in _OF_SYSTEM:
                continue
            if dim in first:
                like_name, like = first[dim]
                value = _same_batch(value, name, dim, like[dim], like.sizes[dim], like_name)
            elif dim in value.coords:
                first[dim] = (name, value)
        found.append(value)
    return found


def positions_of(wanted: Any, name: str, system: System, dim: str) -> Any:
    """Positions along a dim from the labels or names of its entries; positions stay as they are."""
    if isinstance(wanted, str):
        wanted = [wanted]
    values = list(np.atleast_1d(np.asarray(wanted, dtype=object)))
    if not values or not all(isinstance(value, str) for value in values):
        return wanted
    index, names = _labels_of(system, dim)
    chosen = names if index is None or (names is not None and _whole(index)) else index
    known = [] if chosen is None else [str(label) for label in chosen]
    if missing := [value for value in values if known.count(value) != 1]:
        raise ValueError(
            f"`{name}` must name {dim}s of the system, {known}; got {missing}. Use these names, or "
            "positions."
        )
    return [known.index(value) for value in values]


def with_labels_of(found: xr.Dataset, system: System, **stand_for: str) -> xr.Dataset:
    """A result with the labels and names that the system has along the dims they share."""
    if isinstance(system, MatrixFree):
        return found.assign_coords(
            {dim: labels(system, dim) for dim in ("layer", "depth") if dim in found.dims}
        )
    coords: dict[str, Any] = {}
    for dim in map(str, found.dims):
        of = (_OF_SYSTEM | stand_for).get(dim)
        if of is None:
            continue
        index, names = _labels_of(system, of)
        if index is not None:
            coords[dim] = (dim, index)
        if names is not None and dim == of:
            coords[f"{dim}_name"] = (dim, names)
    return found.drop_vars([c for c in coords if c in found.coords]).assign_coords(coords)


def _labels_of(system: System, dim: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The labels of a dim of a system and the names beside them, where there are any."""
    if isinstance(system, MatrixFree):
        return (labels(system, dim) if dim in ("layer", "depth") else None), None
    if dim in ("layer", "depth"):
        known = dim in system.variables
        return (system.variables[dim].values if known else np.arange(system.sizes[dim])), None
    dims = (dim, "state_next") if dim == "state" else (dim,)
    index = next((system.variables[d].values for d in dims if d in system.coords), None)
    return index, _names(system, dim)


def _names(array: xr.Dataset | xr.DataArray, dim: str) -> np.ndarray | None:
    name = f"{dim}_name"
    if name in array.coords and array.coords[name].dims == (dim,):
        return array.coords[name].values
    return None


def _whole(index: np.ndarray) -> bool:
    return np.issubdtype(index.dtype, np.integer)


def _in_order(
    value: xr.DataArray, name: str, dim: str, of_system: tuple[np.ndarray | None, ...]
) -> xr.DataArray:
    index, names = of_system
    if dim in value.coords:
        theirs = value[dim].values
        if index is not None:
            ours = index
        else:  # without labels of its own, the system counts its entries
            ours = np.arange(value.sizes[dim]) if _whole(theirs) else names
    else:
        theirs = _names(value, dim)
        ours = names if names is not None or index is None or _whole(index) else index
        if ours is None:
            return value
    if theirs is None:
        return value
    if ours is None:
        raise ValueError(
            f"`{name}` must have no labels along {dim!r}, since the system has none there; got "
            f"{theirs}. Label the system, `system.assign_coords(...)`, or drop them."
        )
    ours = ours[: value.sizes[dim]]  # of a state without its padding
    if np.array_equal(theirs, ours):
        return value
    return value.isel({dim: _order(theirs, ours, name, dim, "system")})


def _same_batch(
    value: xr.DataArray, name: str, dim: str, like: xr.DataArray, size: int, whose: str
) -> xr.DataArray:
    if value.sizes[dim] != size:
        raise ValueError(
            f"`{name}` must have as many {dim}s as the {whose}, {size}; got {value.sizes[dim]}. "
            "Select the same part of both."
        )
    if dim not in value.coords or dim not in like.coords:
        return value
    theirs, ours = value[dim].values, like[dim].values
    if np.array_equal(theirs, ours):
        return value
    return value.isel({dim: _order(theirs, ours, name, dim, whose)})


def _order(theirs: np.ndarray, ours: np.ndarray, name: str, dim: str, whose: str) -> list[int]:
    """Where each of our labels stands among theirs."""
    place = {label: i for i, label in enumerate(theirs.tolist())}
    wanted = ours.tolist()
    if len(place) < len(theirs) or len(set(wanted)) < len(wanted) or set(place) != set(wanted):
        raise ValueError(
            f"`{name}` must have the labels of the {whose} along {dim!r}, {ours}; got {theirs}. "
            "Select the same part of both."
        )
    return [place[label] for label in wanted]


def _bare(value: xr.DataArray, dims: set[str]) -> xr.DataArray:
    """Without all coordinates but those of batch dims."""
    drop = [
        str(c)
        for c, array in value.coords.items()
        if c == "order" or not array.dims or set(map(str, array.dims)) & dims
    ]
    return value.drop_vars(drop)
