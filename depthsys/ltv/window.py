"""Cut a system along depth, and join systems."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from depthsys.ltv.matrices import DIMS, compact
from depthsys.ltv.system import check


def window(system: xr.Dataset, start: int, stop: int) -> xr.Dataset:
    """The part of a system from depth ``start`` to depth ``stop``, with its labels.

    Parameters
    ----------
    system
        A system.
    start, stop
        Labels of depths, ``start < stop``: layers start..stop-1 are kept. The input at depth
        ``stop`` is cut off, so D is zero there.

    Raises
    ------
    ValueError
        If the depths are not in the system or hold no layer between them.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=4)
    >>> ltv.gains(ltv.window(s, 1, 3)).values.ravel()
    array([0.5, 1. ])
    """
    check(system)
    first, last = (int(system["depth"].values[i]) for i in (0, -1))
    if not all(isinstance(label, (int, np.integer)) for label in (start, stop)):
        raise TypeError(f"`start` and `stop` must be whole numbers; got {start!r} and {stop!r}.")
    if not first <= start < stop <= last:
        raise ValueError(
            f"`start` and `stop` must satisfy {first} <= start < stop <= {last}, depths of the "
            f"system; got {start} and {stop}. A window holds at least one layer."
        )
    layers, depths = slice(start - first, stop - first), slice(start - first, stop - first + 1)
    part = system.isel(layer=layers, depth=depths)
    part = part.assign({name: _copied(variable) for name, variable in part.data_vars.items()})
    if bool(part["D"].isel(depth=-1).any()):
        D = part["D"].copy(deep=True)
        D[{"depth": -1}] = 0.0
        part = part.assign(D=D)
    return check(part)


def _copied(variable: xr.DataArray) -> xr.DataArray:
    """A copy, in which what a view repeats is still stored once (see `constant`)."""
    own = compact(variable.values)
    if own.shape == variable.shape:
        return variable.copy(deep=True)
    return variable.copy(data=np.broadcast_to(own.copy(), variable.shape))


def concatenate(systems: Sequence[xr.Dataset]) -> xr.Dataset:
    """Systems one after another in depth: x_L of each is x_0 of the next.

    At a joint there is one state and two readouts C: they must be equal, or one of them zero
    (then the other is used). Labels count on from those of the first system. Only A, B, C, D and
    the coordinate ``order`` are kept, with labels and names of states, inputs and outputs.

    Raises
    ------
    ValueError
        If there is no system, the sizes, labels or names differ, or two readouts disagree at a
        joint.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=4)
    >>> joined = ltv.concatenate([ltv.window(s, 0, 1), ltv.window(s, 1, 4)])
    >>> bool((joined.A == s.A).all() and (joined.C == s.C).all() and (joined.D == s.D).all())
    True
    """
    if isinstance(systems, xr.Dataset):
        raise TypeError("`systems` must be a list of systems; got one Dataset. Put it in a list.")
    if len(systems) == 0:
        raise ValueError("`systems` must hold at least one system; got none. Pass a list of them.")
    joined = _bare(systems[0])
    for i, one in enumerate(systems[1:], start=1):
        joined = _joined(joined, _bare(one), i)
    start = int(systems[0]["depth"].values[0])
    return check(
        joined.set_coords("order").assign_coords(
            layer=start + np.arange(joined.sizes["layer"]),
            depth=start + np.arange(joined.sizes["depth"]),
        )
    )


def _bare(system: xr.Dataset) -> xr.Dataset:
    check(system)
    bare = system[["A", "B", "C", "D"]].drop_vars(["layer", "depth"], errors="ignore")
    if "order" not in bare:
        bare = bare.assign_coords(
            order=("depth", np.full(bare.sizes["depth"], bare.sizes["state"]))
        )
    return bare.reset_coords("order").copy(deep=True)


def _check_label(left: xr.Dataset, right: xr.Dataset, dim: str, label: str, i: int) -> None:
    if label not in left.coords or label not in right.coords:
        return
    here, there = left[label].values, right[label].values
    if not np.array_equal(here, there):
        kind = "labels" if label == dim else "names"
        raise ValueError(
            f"`systems[{i}]` must have the {kind} of the systems before it along {dim!r}, {here}; "
            f"got {there}. Bring them into the same order, or drop the {kind}."
        )


def _same_coords(one: xr.Dataset, other: xr.Dataset) -> xr.Dataset:
    """With the names that the other has and it has not, and without what they do not share."""
    missing = {
        name: (dim, other.coords[name].values)
        for dim in ("state", "input", "output")
        if (name := f"{dim}_name") in other.coords and name not in one.coords
    }
    one = one.assign_coords(missing)
    own = {*one.dims, "state_name", "input_name", "output_name"}
    gone = [
        name
        for name in one.coords
        if name not in own
        and not (name in other.coords and np.array_equal(one[name].values, other[name].values))
    ]
    return one.drop_vars(gone)


def _joined(left: xr.Dataset, right: xr.Dataset, i: int) -> xr.Dataset:
    sizes = [{d: s.sizes[d] for d in ("state", "input", "output")} for s in (left, right)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"`systems[{i}]` must have sizes {sizes[0]}; got {sizes[1]}. Project or pad it first."
        )
    for dim in ("state", "input", "output"):
        for label in (dim, f"{dim}_name"):
            _check_label(left, right, dim, label, i)
    left, right = _same_coords(left, right), _same_coords(right, left)
    before, after = left["C"].isel(depth=-1), right["C"].isel(depth=0)
    if before.values.any() and after.values.any() and not bool((before == after).all()):
        raise ValueError(
            f"`systems[{i}]` must read its first state as the system before it reads its last "
            "one; got two different C. Set one of them to zero."
        )
    joint = xr.Dataset(
        {
            "C": after if after.values.any() else before,
            "D": right["D"].isel(depth=0),
            "order": np.maximum(left["order"].isel(depth=-1), right["order"].isel(depth=0)),
        }
    )
    over_depth = ["C", "D", "order"]
    parts = [
        left[over_depth].isel(depth=slice(-1)),
        joint.expand_dims("depth"),
        right[over_depth].isel(depth=slice(1, None)),
    ]
    out = {}
    for name in over_depth:
        pieces = xr.broadcast(*(part[name] for part in parts), exclude=["depth"])
        out[name] = xr.concat(pieces, dim="depth")
    for name in ("A", "B"):
        pieces = xr.broadcast(left[name], right[name], exclude=["layer"])
        out[name] = xr.concat(pieces, dim="layer")
    ordered = {name: out[name].transpose(..., *dims) for name, dims in DIMS.items()}
    return xr.Dataset({**ordered, "order": out["order"].transpose(..., "depth")}, attrs=left.attrs)
