"""NetCDF4, the canonical file of one system or a batch: `xarray.open_dataset` opens it.

The golden trajectory lies in the group ``golden`` beside the system.
"""

import json
import os
from pathlib import Path

import xarray as xr

from depthsys.export.golden import golden_trajectory
from depthsys.export.plain import about_of, digests, storable, with_golden
from depthsys.export.schema import migrated
from depthsys.files import whole_file, write_netcdf

GROUP = "golden"


def to_netcdf(system: xr.Dataset, path: str | os.PathLike, *, force: bool = False) -> None:
    """Write a system, with all variables, coordinates, attrs and batch dims, as netCDF4.

    Parameters
    ----------
    system
        A system; extra leading dims are batch dims.
    path
        The file, usually ``*.nc``. It appears whole or not at all.
    force
        Replace an existing file.

    Raises
    ------
    FileExistsError
        If the file exists and ``force`` is False.
    ValueError
        If a name or an attribute is none for netCDF: attributes are numbers and texts.
    """
    system = storable(migrated(system))
    golden = golden_group(system)
    with whole_file(path, force) as partial:
        write_netcdf(partial, {None: system, GROUP: golden})


def from_netcdf(path: str | os.PathLike) -> xr.Dataset:
    """Read a system; older schemas are brought up to date.

    Returns
    -------
    xr.Dataset
        The system, in memory. Without a golden trajectory ``import_note`` in attrs says so.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is truncated, no netCDF, no system, of a newer schema, or does not replay its golden
        trajectory.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"`path` must be an existing file; got {str(path)!r}. Look for it.")
    try:
        system = xr.load_dataset(path, engine="h5netcdf")
        golden = _group(path)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"`path` must be a whole netCDF4 file; got {str(path)!r}: {error}. Write it again."
        ) from error
    return with_golden(system, golden.variables, told_by(golden, str(path)), str(path))


def golden_group(system: xr.Dataset) -> xr.Dataset:
    """The golden trajectory, with the digests of all variables in its attrs."""
    return golden_trajectory(system).assign_attrs(digests=json.dumps(digests(system)))


def told_by(golden: xr.Dataset, where: str) -> dict[str, str]:
    """The digests that came with a golden trajectory."""
    told = about_of(str(golden.attrs.get("digests", "{}")), where)
    return told if isinstance(told, dict) else {}


def _group(path: str | os.PathLike) -> xr.Dataset:
    import h5netcdf

    with h5netcdf.File(path, "r") as file:
        if GROUP not in file.groups:
            return xr.Dataset()
    return xr.load_dataset(path, engine="h5netcdf", group=GROUP)
