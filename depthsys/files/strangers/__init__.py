"""Files of others: what is in them, without what they could do.

HDF5, .mat, Zarr, Parquet and Arrow are read in a process of their own, with limits of time and
memory, after a look at the container: nothing outside the file is opened, and nothing is read that
was not asked for, or is larger than the file can be. The first file costs the start of that process
(a fifth to half of a second), each further one some milliseconds, and large arrays one more copy in
memory.

On systems that cannot copy processes (Windows) files are read in this one, after the same checks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from depthsys.files.strangers import limits
from depthsys.files.strangers.limits import Refused
from depthsys.files.strangers.process import ask

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Group", "Mat", "Refused", "Table", "read_mat", "read_netcdf", "read_table", "read_zarr"
]  # fmt: skip


@dataclass
class Group:
    """What was read of a group; ``others`` are some of the names that were not."""

    dataset: "xr.Dataset"
    others: list[str] = field(default_factory=list)


@dataclass
class Mat:
    """What was read of a .mat file.

    ``kinds`` are names of all its numbers and texts, ``others`` what else there is, in words.
    """

    variables: dict[str, np.ndarray | str]
    kinds: list[str]
    others: dict[str, str]


@dataclass
class Table:
    """Rows of a table, as dictionaries.

    ``columns`` are the names of all its columns, ``classes`` the names behind whole numbers.
    """

    rows: list[dict[str, Any]]
    columns: list[str]
    classes: dict[str, list[str]]


def read_netcdf(
    path: Path, groups: Mapping[str, Iterable[str]], listed: tuple[str, str] = ("", "")
) -> dict[str, Group]:
    """Groups of a netCDF4 file, those that are there, decoded as `xarray.open_dataset` does.

    Parameters
    ----------
    path
        A regular file.
    groups
        The names to read in each; "" is the root. Labels of their dims come with them.
    listed
        A group and an attribute of it in JSON whose keys are names of the root to read, too.

    Raises
    ------
    Refused
        If the file must not be read; the text says why.
    Exception
        Whatever the decoding of damaged attributes trips over.
    """
    import xarray as xr

    found = _asked("hdf5", path, groups, listed)
    for group in found.values():
        group.dataset = xr.decode_cf(group.dataset).load()
    return found


def read_zarr(
    path: Path, groups: Mapping[str, Iterable[str]], listed: tuple[str, str], whole: str
) -> dict[str, Group]:
    """The same of a Zarr store; where it has the group ``whole`` no chunk may be missing."""
    return _asked("zarr_v3", path, groups, listed, whole=whole)


def read_mat(path: Path, names: Iterable[str], description: str, listing: Mapping[str, str]) -> Mat:
    """Variables of a .mat file, in the order of dims that MATLAB shows.

    Parameters
    ----------
    path
        A regular file.
    names
        What to read, of what is there.
    description
        The name of a text in JSON, one of ``names``.
    listing
        Objects in it whose keys are names to read, too, after a prefix.

    Raises
    ------
    Refused
        If the file must not be read; the text says why.
    ValueError
        If it is damaged.
    """
    request = {"path": str(path), "names": sorted(names), "description": description}
    messages = ask("mat", request | {"listing": dict(listing)})
    (first, _), *rest = messages
    variables = {m["name"]: m["text"] if array is None else array for m, array in rest}
    return Mat(variables, first["kinds"], first["others"])


def read_table(path: Path, columns: Iterable[str], kind: str) -> Table:
    """Columns of a Parquet or Arrow file, of those that are there; needs pyarrow.

    Parameters
    ----------
    path
        A regular file.
    columns
        Their names.
    kind
        "parquet" or "arrow".

    Raises
    ------
    Refused
        If the file must not be read; the text says why.
    ValueError
        If it is damaged.
    """
    wanted = sorted(set(columns))
    messages = ask("arrow", {"path": str(path), "columns": wanted, "kind": kind})
    (first, _), *rest = messages
    rows = [dict(zip(first["found"], row, strict=True)) for told, _ in rest for row in told["rows"]]
    return Table(rows, first["columns"], first["classes"])


def _asked(
    reader: str, path: Path, groups: Mapping[str, Iterable[str]], listed: tuple[str, str], **more
) -> dict[str, Group]:
    import xarray as xr

    request = {"path": str(path), "listed": list(listed), **more}
    request["groups"] = {name: sorted(names) for name, names in groups.items()}
    attrs: dict[str, Any] = {}
    others: dict[str, list[str]] = {}
    variables: dict[str, dict[str, xr.Variable]] = {}
    coords: dict[str, list[str]] = {}
    for message, array in ask(reader, request):
        group = message["group"]
        if "name" not in message:
            attrs[group], others[group] = _attributes(message["attrs"]), message["others"]
            continue
        variable = xr.Variable(message["dims"], _values(message, array))
        variable.attrs = _attributes(message["attrs"])
        variables.setdefault(group, {})[message["name"]] = variable
        if message.get("coord"):
            coords.setdefault(group, []).append(message["name"])
    return {
        name: Group(
            xr.Dataset(variables.get(name, {}), attrs=attrs[name]).set_coords(coords.get(name, [])),
            others[name],
        )
        for name in attrs
    }


def _values(message: Mapping[str, Any], array: np.ndarray | None) -> np.ndarray:
    if array is not None:
        return array
    texts: list[str] = message["texts"]
    longest = max(map(len, texts), default=1)
    small = 4 * longest * len(texts) <= limits.FREE  # numpy gives each the room of the longest
    return np.array(texts, str if small else object).reshape(message["of"])


def _attributes(told: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found = {}
    for name, attribute in told.items():
        value = attribute["value"]
        if "dtype" in attribute:
            value = np.array(value, attribute["dtype"])
            value = value[()] if value.ndim == 0 else value
        found[name] = value
    return found
