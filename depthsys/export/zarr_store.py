"""Zarr, the canonical store of many systems: `xarray.open_zarr` opens it.

The golden trajectory lies in the group ``golden`` beside the system.
"""

import json
import os
import re
from pathlib import Path

import xarray as xr

from depthsys.export.guard import guarded, told_of
from depthsys.export.netcdf import GROUP, golden_group, system_of
from depthsys.export.plain import GOLDEN, storable
from depthsys.export.schema import NAMES, migrated
from depthsys.files import check_case, files_below, whole_folder
from depthsys.files.strangers import read_zarr


def to_zarr(system: xr.Dataset, path: str | os.PathLike, *, force: bool = False) -> None:
    """Write a system, with all variables, coordinates, attrs and batch dims, as a Zarr store.

    Parameters
    ----------
    system
        A system; extra leading dims are batch dims.
    path
        The folder, usually ``*.zarr``. It appears whole or not at all.
    force
        Replace an earlier store.

    Raises
    ------
    FileExistsError
        If the folder holds something and ``force`` is False, or holds anything but Zarr.
    ValueError
        If a name or an attribute is none for Zarr: attributes are numbers and texts.
    """
    system = storable(migrated(system))
    golden = golden_group(system)
    # every chunk, also one of zeros: then a missing one is a loss
    how = {"consolidated": False, "zarr_format": 3, "write_empty_chunks": True}
    with whole_folder(path, force, _foreign) as partial:
        check_case(partial, map(str, system.variables))
        _bare(system).to_zarr(partial, **how)
        golden.to_zarr(partial, group=GROUP, **how)


def _foreign(folder: Path) -> list[str]:
    """What `to_zarr` has not written in a folder. (Zarr warns of a file that lists the others.)"""
    try:
        golden = json.loads((folder / GROUP / "zarr.json").read_text(encoding="utf-8"))
        names = json.loads(golden["attributes"]["digests"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return files_below(folder) or [folder.name]
    arrays = [*map(re.escape, names), *(f"{GROUP}/{name}" for name in GOLDEN)]
    ours = re.compile(rf"({GROUP}/)?zarr\.json|({'|'.join(arrays)})/(zarr\.json|c(/\d+)*)")
    return [name for name in files_below(folder) if not ours.fullmatch(name)]


def _bare(system: xr.Dataset) -> xr.Dataset:
    """With texts as strings of any length: Zarr 3 has no specification for those of a fixed one."""
    texts = {
        name: (v.dims, v.values.astype(object), v.attrs)
        for name, v in system.variables.items()
        if v.dtype.kind == "U"
    }
    return system.assign(texts)


@guarded
def from_zarr(path: str | os.PathLike) -> xr.Dataset:
    """Read a system; older schemas are brought up to date.

    Returns
    -------
    xr.Dataset
        The system, in memory. Without a golden trajectory ``import_note`` in attrs says so.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it is incomplete, no Zarr store, no system, of a newer schema, or does not replay its
        golden trajectory.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(
            f"`path` must be an existing folder; got {str(path)!r}. Look for it."
        )
    groups = {"": NAMES, GROUP: GOLDEN}
    with told_of(path, "a whole Zarr store"):
        read = read_zarr(Path(path), groups, listed=(GROUP, "digests"), whole=GROUP)
    return system_of(read, str(path))
