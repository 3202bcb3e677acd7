"""A system as plain arrays and one JSON text, for the formats that know no named dims.

``about`` says what xarray would: dims, coordinates and attrs. The arrays come back as the same
Dataset.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from depthsys.export.golden import check_golden, golden_trajectory
from depthsys.export.schema import migrated
from depthsys.ltv import check
from depthsys.ltv.system import DIMS

FORMAT = "depthsys system"
GOLDEN = ("x0", "u", "x", "y")
NO_GOLDEN = "it came without a golden trajectory: nothing tells whether its axes are right"


def one_system(system: xr.Dataset, kind: str) -> xr.Dataset:
    """The system with names for its inputs and outputs; ValueError if it has batch dims.

    Parameters
    ----------
    system
        A system.
    kind
        The format that holds one system only.
    """
    check(system)
    own = {d for dims in DIMS.values() for d in dims}
    if extra := {str(d): n for v in "ABCD" for d, n in system[v].sizes.items() if d not in own}:
        first = next(iter(extra))
        raise ValueError(
            f"`system` must have no batch dims for {kind}; got {extra}. Select one member with "
            f"`system.isel({first}=0)` (`--select {first}=0`), or use netcdf or zarr."
        )
    return migrated(system)


def plain(system: xr.Dataset) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays, the golden trajectory (``golden_x0``, ...) among them; and ``about``.

    Raises
    ------
    ValueError
        If a variable holds Python objects or an attribute is neither a number nor a text.
    """
    check_attrs(system)
    arrays = {}
    for name, variable in system.variables.items():
        values = np.asarray(variable.values)
        if values.dtype.kind == "O" and all(isinstance(v, str) for v in values.flat):
            values = values.astype(str)
        if values.dtype.kind not in "fiubU":
            raise ValueError(
                f"`{name}` must hold numbers or texts; got dtype {values.dtype}. Drop it with "
                f"`system.drop_vars({name!r})`, or convert it."
            )
        if str(name).startswith("golden_") or name == "about":
            raise ValueError(
                f"`system` must not hold a variable of the name {name!r}, which every export uses. "
                "Rename it."
            )
        arrays[str(name)] = values
    golden = golden_trajectory(system)
    about = {
        "format": FORMAT,
        "dims": {str(name): list(map(str, system[name].dims)) for name in system.variables},
        "coords": sorted(map(str, system.coords)),
        "attrs": {str(key): _scalar(value) for key, value in system.attrs.items()},
        "variable_attrs": {
            str(name): {str(k): _scalar(v) for k, v in system[name].attrs.items()}
            for name in system.variables
            if system[name].attrs
        },
        "golden_dims": {name: list(map(str, golden[name].dims)) for name in GOLDEN},
    }
    return arrays | {f"golden_{name}": golden[name].values for name in GOLDEN}, about


def restored(arrays: Mapping[str, np.ndarray], about: Any, where: str) -> xr.Dataset:
    """The Dataset again, migrated to today's schema, after replaying the golden trajectory.

    Raises
    ------
    ValueError
        If ``about`` is not what `plain` wrote, an array is missing or has another shape, or the
        golden trajectory does not fit.
    """
    check_about(about, where)
    dims = about["dims"]
    if missing := sorted(dims.keys() - arrays.keys()):
        raise ValueError(f"`{where}` must hold {missing}, too; got {sorted(arrays)}. Export again.")
    variables = {
        name: _variable(arrays[name], d, about["variable_attrs"].get(name), name, where)
        for name, d in dims.items()
    }
    coords = {name: variables.pop(name) for name in about["coords"]}
    try:
        system = xr.Dataset(variables, coords, about["attrs"])
    except ValueError as error:
        raise ValueError(
            f"`{where}` must hold variables of one size per dim; got {error}. Change all of them "
            "together."
        ) from error
    golden = {
        name: _variable(arrays[f"golden_{name}"], d, None, f"golden_{name}", where)
        for name, d in about["golden_dims"].items()
        if f"golden_{name}" in arrays
    }
    return with_golden(system, xr.Dataset(golden), where)


def check_about(about: Any, where: str) -> None:
    """ValueError unless ``about`` is a description as `plain` writes it."""
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(
            f"`{where}` must be an export of depthsys; got a file without its description. Export "
            "it again, or build the system with `ltv.system(A, B, C, D)`."
        )
    dims = (about.get("dims"), about.get("golden_dims"))
    attrs = [about.get("attrs"), *_values(about.get("variable_attrs"))]
    whole = (
        all(isinstance(d, dict) and all(map(_texts, d.values())) for d in dims)
        and all(isinstance(a, dict) for a in attrs)
        and _texts(about.get("coords"))
        and set(about["coords"]) <= set(about["dims"])
        and set(about["golden_dims"]) <= set(GOLDEN)
    )
    if not whole:
        raise ValueError(
            f"`{where}` must describe itself as `depthsys.export` does; got an `about` in which "
            "dims, coords, attrs, variable_attrs or golden_dims is not. Export it again."
        )
    for values in attrs:
        for key, value in (values or {}).items():
            _scalar(value, f"attrs[{key!r}] of {where}")


def _values(mapping: Any) -> list:
    return list(mapping.values()) if isinstance(mapping, dict) else [None]


def _texts(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def with_golden(system: xr.Dataset, golden: xr.Dataset, where: str) -> xr.Dataset:
    """What was read, in today's schema, after replaying the golden trajectory that came with it.

    Without one, ``import_note`` in attrs says so.
    """
    # netCDF and Zarr give texts back as objects and strings of any length
    odd = {n: v for n, v in system.variables.items() if v.dtype.kind in "OT"}
    system = system.assign({n: v.astype(object).astype(str) for n, v in odd.items()})
    found = set(GOLDEN) & set(golden.variables)
    if found == set(GOLDEN):
        # before anything is said of padding zeros, which are not zero in a transposed system
        check_golden(system.drop_vars("order", errors="ignore"), golden, where)
        system.attrs.pop("import_note", None)
    elif found:
        raise ValueError(
            f"`{where}` must hold a whole golden trajectory or none; got {sorted(found)} of "
            f"{list(GOLDEN)}. Export it again, or remove those too."
        )
    else:
        system.attrs["import_note"] = NO_GOLDEN
    return migrated(system)


def check_attrs(system: xr.Dataset) -> None:
    """ValueError for attributes that no file holds: they are numbers and texts."""
    owners: list[tuple[str, Mapping]] = [("system", system.attrs)]
    owners += [(str(name), system[name].attrs) for name in system.variables]
    for owner, attrs in owners:
        for key, value in attrs.items():
            _scalar(value, f"{owner}.attrs[{key!r}]")


def _scalar(value: Any, name: str = "attrs") -> str | int | float:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(
            f"`{name}` must be a number or a text; got {type(value).__name__}. Store anything "
            "else as JSON: `json.dumps(value)`."
        )
    return value


def _variable(values: np.ndarray, dims: list[str], attrs, name: str, where: str) -> xr.Variable:
    if values.ndim != len(dims):
        raise ValueError(
            f"`{name}` of `{where}` must have dims {dims}; got shape {values.shape}. Keep dims of "
            "size 1."
        )
    # the same order in memory gives the same rounding as before the export
    return xr.Variable(dims, np.ascontiguousarray(values).reshape(values.shape), attrs)


def about_of(text: str, where: str) -> Any:
    """The description from its JSON text; ValueError if it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`{where}` must hold a description in JSON; got {text[:40]!r}: {error}. Export again."
        ) from error
