"""Zarr, the canonical store of many systems: `xarray.open_zarr` opens it.

The golden trajectory lies in the group ``golden`` beside the system.
"""

import os
from pathlib import Path

import xarray as xr

from depthsys.export.atomic import whole_folder
from depthsys.export.golden import golden_trajectory
from depthsys.export.netcdf import GROUP
from depthsys.export.plain import check_attrs, with_golden
from depthsys.export.schema import migrated


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
        If an attribute is neither a number nor a text.
    """
    system = migrated(system)
    check_attrs(system)
    golden = golden_trajectory(system)
    with whole_folder(path, force) as partial:
        _bare(system).to_zarr(partial, consolidated=False, zarr_format=3)
        golden.to_zarr(partial, group=GROUP, consolidated=False, zarr_format=3)


def _bare(system: xr.Dataset) -> xr.Dataset:
    """Without the chunks and filters of the file it was read from.

    Texts become strings of any length: Zarr 3 has no specification for those of a fixed one.
    """
    texts = {name: v.astype(object) for name, v in system.variables.items() if v.dtype.kind == "U"}
    return system.drop_encoding().assign(texts)


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
        system = xr.open_zarr(path, consolidated=False, chunks=None).load()
        inside = (Path(path) / GROUP).is_dir()
        golden = xr.Dataset()
        if inside:
            golden = xr.open_zarr(path, group=GROUP, consolidated=False, chunks=None).load()
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"`path` must be a whole Zarr store; got {str(path)!r}: {error}. Write it again."
        ) from error
    return with_golden(system, golden, str(path))
