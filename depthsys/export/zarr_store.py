"""Zarr, the canonical store of many systems: `xarray.open_zarr` opens it.

The golden trajectory lies in the group ``golden`` beside the system.
"""

import os
import warnings
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
    # every chunk, also one of zeros: then a missing one is a loss
    how = {"consolidated": False, "zarr_format": 3, "write_empty_chunks": True}
    with whole_folder(path, force) as partial:
        _bare(system).to_zarr(partial, **how)
        golden.to_zarr(partial, group=GROUP, **how)


def _bare(system: xr.Dataset) -> xr.Dataset:
    """Without the chunks and filters of the file it was read from.

    Texts become strings of any length: Zarr 3 has no specification for those of a fixed one.
    """
    texts = {
        name: (v.dims, v.values.astype(object), v.attrs)
        for name, v in system.variables.items()
        if v.dtype.kind == "U"
    }
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
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # zarr only warns of parts that it cannot read
            system, golden = _opened(path, None), _opened(path, GROUP)
    except (OSError, KeyError, RuntimeError, ValueError, Warning) as error:
        raise ValueError(
            f"`path` must be a whole Zarr store; got {str(path)!r}: {error}. Write it again."
        ) from error
    return with_golden(system, golden, str(path))


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
