"""A system as plain arrays and one JSON text, for the formats that know no named dims.

``about`` says what xarray would: dims, coordinates and attrs. The arrays come back as the same
Dataset.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from depthsys.export.golden import DIMS as golden_dims
from depthsys.export.golden import check_golden, golden_trajectory
from depthsys.export.schema import migrated
from depthsys.ltv import check
from depthsys.ltv.system import batch_sizes

FORMAT = "depthsys system"
GOLDEN = tuple(golden_dims)
# names that some format needs for itself
_TAKEN = ("about", "file", "golden")
# attrs by which netCDF and Zarr say how numbers are stored: of ours they would change what is read
_STORAGE = {
    "_FillValue", "missing_value", "scale_factor", "add_offset", "dtype", "coordinates", "calendar",
    "grid_mapping", "_Unsigned", "_NCProperties", "compress",
}  # fmt: skip
NO_GOLDEN = "it came without a golden trajectory: nothing tells whether its axes are right"

GOLDEN_SINCE = (
    "it replayed its golden trajectory, which was made after it had come without one: nothing "
    "tells whether its axes were right before that"
)
TEXT = 2**20  # characters of an attribute


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
    if extra := batch_sizes(system):
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
    system = storable(system)
    arrays = {}
    for name, variable in system.variables.items():
        values = np.asarray(variable.values)
        if values.dtype.kind not in "fiubU":
            raise ValueError(
                f"`{name}` must hold numbers or texts; got dtype {values.dtype}. Drop it with "
                f"`system.drop_vars({name!r})`, or convert it."
            )
        arrays[str(name)] = values
    golden = golden_trajectory(system)
    about = {
        "format": FORMAT,
        "dims": {str(name): list(map(str, system[name].dims)) for name in system.variables},
        "coords": sorted(map(str, system.coords)),
        "attrs": dict(system.attrs),
        "variable_attrs": {str(n): dict(v.attrs) for n, v in system.variables.items() if v.attrs},
        "digests": digests(system),
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
    wanted = dims.keys() | {f"golden_{name}" for name in GOLDEN}
    if missing := sorted(wanted - arrays.keys()):
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
    }
    return with_golden(system, golden, about.get("digests", {}), where)


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
    for i, values in enumerate(attrs):
        for key, value in (values or {}).items():
            _scalar(value, f"attrs[{key!r}] of {where}", key, i == 0)
    told = about.get("digests", {})
    if not isinstance(told, dict) or not _texts(list(told.values())):
        raise ValueError(
            f"`{where}` must describe itself as `depthsys.export` does; got other `digests`. "
            "Export it again."
        )


def _values(mapping: Any) -> list:
    return list(mapping.values()) if isinstance(mapping, dict) else [None]


def _texts(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def with_golden(
    system: xr.Dataset,
    golden: Mapping[Any, xr.Variable],
    told: Mapping[str, str],
    where: str,
    others: Sequence[str] = (),
) -> xr.Dataset:
    """What was read, in today's schema, after replaying the golden trajectory that came with it.

    ``told`` are `digests`, which what was read must have. Without a golden trajectory
    ``import_note`` in attrs says so, and which variables of the file, ``others``, were left out.
    """
    # netCDF and Zarr give texts back as objects and strings of any length
    odd = {n: v for n, v in system.variables.items() if v.dtype.kind in "OT"}
    system = system.assign({n: v.astype(object).astype(str) for n, v in odd.items()})
    found = set(GOLDEN) & set(golden)
    if found and found != set(GOLDEN):
        raise ValueError(
            f"`{where}` must hold a whole golden trajectory or none; got {sorted(found)} of "
            f"{list(GOLDEN)}. Export it again, or remove those too."
        )
    if not found:
        left_out = f"; left out, as no parts of a system: {', '.join(others)}" if others else ""
        return migrated(system).assign_attrs(import_note=NO_GOLDEN + left_out)
    try:
        run = xr.Dataset({name: golden[name] for name in GOLDEN})
    except ValueError as error:
        raise ValueError(
            f"`{where}` must hold a golden trajectory of one size per dim; got {error}. Export it "
            "again."
        ) from error
    # before anything is said of padding zeros, which are not zero in a transposed system
    check_golden(system, run, where)
    _check_digests(system, told, where)
    if str(system.attrs.get("import_note", "")).startswith(NO_GOLDEN):
        system = system.assign_attrs(import_note=GOLDEN_SINCE)
    return migrated(system)


def digests(system: xr.Dataset) -> dict[str, str]:
    """What each variable holds, as 16 hexadecimal digits: nothing may get lost or be turned.

    Not a protection against forgery. Of the values in the order of dims of the Dataset, numbers as
    float64, so that formats with fewer kinds of numbers agree.
    """
    found = {}
    for name, variable in system.variables.items():
        values = np.asarray(variable.values)
        if values.dtype.kind in "fiub":
            # not every format keeps the sign of a zero or of a nan
            numbers = np.ascontiguousarray(values, np.float64) + 0.0
            content = np.where(np.isnan(numbers), np.nan, numbers).tobytes()
        elif values.dtype.kind == "U":
            content = "\0".join(values.ravel().tolist()).encode("utf-8", "surrogatepass")
        else:
            found[str(name)] = ""  # times, complex numbers: kept, but not looked into
            continue
        shape = str([[str(d), n] for d, n in variable.sizes.items()])
        found[str(name)] = hashlib.sha256(shape.encode() + content).hexdigest()[:16]
    return found


def _check_digests(system: xr.Dataset, told: Mapping[str, str], where: str) -> None:
    if missing := sorted(told.keys() - set(map(str, system.variables))):
        raise ValueError(
            f"`{where}` must hold {missing}, too; got {sorted(map(str, system.variables))}. Parts "
            "of it were lost; export it again."
        )
    now = digests(system)
    if other := sorted(n for n in told if told[n] and now.get(n) != told[n]):
        raise ValueError(
            f"`{where}` must hold what was exported; got other values, or axes, in {other}. It was "
            "damaged or changed; export it again."
        )


def storable(system: xr.Dataset) -> xr.Dataset:
    """The system without encoding, texts of fixed length, and attrs as plain numbers and texts.

    Raises
    ------
    ValueError
        For names and attributes that no file holds.
    """
    for name in system.variables:
        text = str(name)
        if not isinstance(name, str) or text in _TAKEN or text.startswith("golden_"):
            raise ValueError(
                f"`system` must not hold a variable of the name {name!r}, which exports use for "
                f"themselves. Rename it: `system.rename({{{name!r}: 'other'}})`."
            )
        if not text or "/" in text or "\0" in text:
            raise ValueError(
                f"`system` must hold variables with names that files can have; got {name!r}. "
                "Rename it."
            )
    system = system.drop_encoding()
    texts = {
        name: (v.dims, v.values.astype(object).astype(str), v.attrs)
        for name, v in system.variables.items()
        if v.dtype.kind in "OT" and all(isinstance(t, str) for t in v.values.flat)
    }
    system = system.assign(texts)
    owners: list[tuple[str, Any]] = [("system", system)]
    owners += [(str(name), variable) for name, variable in system.variables.items()]
    for owner, holder in owners:
        holder.attrs = {
            key: _scalar(value, f"{owner}.attrs[{key!r}]", key, holder is system)
            for key, value in holder.attrs.items()
        }
    return system


def _scalar(value: Any, name: str, key: Any, of_system: bool) -> str | int | float:
    if isinstance(value, np.generic):
        value = value.item()
    known = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if not isinstance(key, str) or not known:
        raise ValueError(
            f"`{name}` must be a number or a text; got {type(value).__name__}. Store anything "
            "else as JSON: `json.dumps(value)`."
        )
    date = key == "units" and isinstance(value, str) and " since " in value
    if not of_system and (key in _STORAGE or date):
        raise ValueError(
            f"`{name}` must not be an attribute by which netCDF says how numbers are stored; got "
            f"{value!r}. Rename or remove it."
        )
    too_long = isinstance(value, int) and not -(2**63) <= value < 2**63
    if too_long or (isinstance(value, str) and "\0" in value):
        raise ValueError(
            f"`{name}` must fit into 64 bits, or be a text without NUL; got {value!r:.40}. Store "
            "it as a text."
        )
    if isinstance(value, str) and len(value) > TEXT:
        raise ValueError(
            f"`{name}` must be a text of at most {TEXT} characters; got {len(value)}. Store it as "
            "a variable, or in a file of its own."
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
    except (ValueError, RecursionError) as error:  # a long number or many brackets, too
        raise ValueError(
            f"`{where}` must hold a description in JSON; got {text[:40]!r}: {error}. Export again."
        ) from error
