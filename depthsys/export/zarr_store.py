"""Zarr, the canonical store of many systems: `xarray.open_zarr` opens it.

The golden trajectory lies in the group ``golden`` beside the system.
"""

import json
import os
import re
import warnings
from pathlib import Path

import xarray as xr

from depthsys.export.netcdf import GROUP, golden_group, told_by
from depthsys.export.plain import GOLDEN, storable, with_golden
from depthsys.export.schema import migrated
from depthsys.files import check_case, files_below, whole_folder


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
    except (OSError, ValueError, KeyError, TypeError):
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # zarr only warns of parts that it cannot read
            system, golden = _opened(path, None), _opened(path, GROUP)
    except (OSError, KeyError, RuntimeError, ValueError, Warning) as error:
        raise ValueError(
            f"`path` must be a whole Zarr store; got {str(path)!r}: {error}. Write it again."
        ) from error
    return with_golden(system, golden.variables, told_by(golden, str(path)), str(path))


def _opened(path: str | os.PathLike, group: str | None) -> xr.Dataset:
    """A group in memory, empty if it is not there; ValueError if a chunk of ours is lost."""
    import zarr

    if group is not None and not (Path(path) / group).is_dir():
        return xr.Dataset()
    arrays = dict(zarr.open_group(path, mode="r", path=group or "").arrays())
    ours = (Path(path) / GROUP).is_dir()
    lost = [name for name, a in arrays.items() if ours and a.nchunks_initialized < a.nchunks]
    if lost:
        raise ValueError(f"chunks of {lost} are missing")
    return xr.open_zarr(path, group=group, consolidated=False, chunks=None).load()
