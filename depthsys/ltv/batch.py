"""Several systems as one batch, also where the sizes of their states differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from depthsys.ltv.system import STAMP, check

_STATES = ("state", "state_next")
_SHARED = ("layer", "depth", "input", "output", "feature")


def stack(systems: Sequence[xr.Dataset], dim: str | xr.DataArray = "prompt") -> xr.Dataset:
    """Systems side by side along a new batch dim.

    States are padded with zeros to the largest, and ``order`` (dim, depth) says how many of them
    each member has: every function then returns for every member what it returns for it alone.

    Parameters
    ----------
    systems
        Systems with the same layers, depths, inputs and outputs. Their states may differ in number.
    dim
        Name of the batch dim; or a DataArray with one dim and a label per system. Systems
        that were selected from a batch keep their labels along that dim.

    Returns
    -------
    xr.Dataset
        The variables that all of them hold, each with the new dim first, and the attrs on which
        they agree. MATLAB: `stack`, for arrays of LTI models of one order.

    Raises
    ------
    TypeError
        If ``systems`` is no list of systems.
    ValueError
        If there is none, layers, depths, inputs or outputs differ in number, labels or names, or
        ``dim`` is taken.

    Examples
    --------
    >>> from depthsys import ltv
    >>> one = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=3)
    >>> two = ltv.constant([[0.5, 1.0], [0.0, 0.5]], [[0.0], [1.0]], [[1.0, 0.0]], horizon=3)
    >>> both = ltv.stack([one, two], dim="case")
    >>> both.order.values[:, 0], ltv.gains(both).values[..., 0, 0]
    (array([1, 2]), array([[0.25, 0.5 , 1.  ],
           [1.  , 1.  , 0.  ]]))
    """
    if isinstance(systems, xr.Dataset):
        raise TypeError("`systems` must be a list of systems; got one Dataset. Put it in a list.")
    members = [check(one) for one in systems]
    if not members:
        raise ValueError("`systems` must hold at least one system; got none. Pass a list of them.")
    members, labels = _labelled(members, dim)
    for i, one in enumerate(members[1:], start=1):
        _check_alike(members[0], one, i)
    shared = [v for v in members[0].data_vars if all(v in one for one in members)]
    size = max(one.sizes["state"] for one in members)
    told = ("input_name", "output_name", "state_name", *_STATES)
    kept = {n for n in told if n in members[0].coords and _agree(members, n)}
    whole = xr.concat(
        [_padded(one[shared], size, kept) for one in members],
        dim=labels if labels.size else labels.dims[0],
        data_vars="all",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="drop_conflicts",
    )
    orders = [_order(one) for one in members]
    order = xr.concat(orders, dim=labels.dims[0], coords="minimal", compat="override")
    whole = whole.assign_coords(order=order.transpose(..., "depth"))
    return check(whole.assign_attrs(STAMP | whole.attrs))


def _labelled(
    members: list[xr.Dataset], dim: str | xr.DataArray
) -> tuple[list[xr.Dataset], xr.DataArray]:
    """The systems, and labels along the new dim, none if they have none."""
    if isinstance(dim, str) and all(
        dim in one.coords and one[dim].ndim == 0 for one in members
    ):  # selected from a batch one by one
        labels = xr.DataArray([one[dim].item() for one in members], dims=[dim])
        members = [one.drop_vars(dim) for one in members]
    else:
        labels = dim if isinstance(dim, xr.DataArray) else xr.DataArray(np.arange(0), dims=[dim])
    taken = {name for one in members for name in (*one.variables, *one.dims)}
    if labels.ndim != 1 or taken & set(labels.dims):
        raise ValueError(
            f"`dim` must be one new name; got {labels.dims}, which the systems have, or not one. "
            "For example 'case'."
        )
    return members, labels.rename(labels.dims[0])


def _order(system: xr.Dataset) -> xr.DataArray:
    if "order" in system.coords:
        return system["order"].reset_coords(drop=True).drop_vars("depth", errors="ignore")
    return xr.DataArray(np.full(system.sizes["depth"], system.sizes["state"]), dims=["depth"])


def _agree(members: Sequence[xr.Dataset], name: str) -> bool:
    first = members[0][name].values
    return all(name in one.coords and np.array_equal(one[name], first) for one in members)


def _padded(system: xr.Dataset, size: int, kept: set[str]) -> xr.Dataset:
    """The system with ``size`` states, and of its coordinates those of dims and those to keep."""
    gone = [n for n in system.coords if n not in system.dims and n not in kept]
    gone += [d for d in _STATES if d in system.coords and d not in kept]
    system = system.drop_vars(gone)
    if (missing := size - system.sizes["state"]) == 0:
        return system
    return system.pad(dict.fromkeys(_STATES, (0, missing)), constant_values=0.0)


def _check_alike(first: xr.Dataset, other: xr.Dataset, i: int) -> None:
    for dim in _SHARED:
        sizes = [one.sizes.get(dim) for one in (first, other)]
        if dim != "feature" and sizes[0] != sizes[1]:
            raise ValueError(
                f"`systems[{i}]` must have {dim}={sizes[0]} like the first; got {sizes[1]}. Select "
                "the same part of all of them."
            )
        for label in (dim, f"{dim}_name"):
            if label in first.coords and label in other.coords:
                here, there = first[label].values, other[label].values
                if not np.array_equal(here, there):
                    raise ValueError(
                        f"`systems[{i}]` must have the {label} of the first, {here}; got {there}. "
                        "Select the same part of all of them, or drop the labels."
                    )
