"""NetCDF4, the canonical file of one system or a batch: `xarray.open_dataset` opens it.

The golden trajectory lies in the group ``golden`` beside the system.
"""

import json
import os
from collections.abc import Iterable, Mapping

import xarray as xr

from depthsys.export.golden import golden_trajectory
from depthsys.export.guard import existing_file, guarded, told_of
from depthsys.export.plain import GOLDEN, about_of, digests, storable, with_golden
from depthsys.export.schema import NAMES, migrated
from depthsys.files import whole_file, write_netcdf
from depthsys.files.strangers import Group, read_netcdf
from depthsys.files.strangers.limits import one_line

GROUP = "golden"
WHOLE = "a whole netCDF4 file"
# results that people try to read in place of another one, by variables that only they have
_KINDS = {
    "a system of `depthsys identify`": {"A", "B", "C"},
    "a result of `depthsys compare`": {"error_budget", "h2_error"},
    "a result of `depthsys gains`": {"error_budget", "full_gain"},
    "what `depthsys verify` found of a plan": {"predicted_energy", "achieved"},
    "a schedule of `depthsys control`": {"u", "predicted_energy"},
    "a plan of `depthsys plan`": {"u", "direction", "target", "push"},
}


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


@guarded
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
    place = existing_file(path)
    groups = {"": NAMES, GROUP: GOLDEN}
    with told_of(path, WHOLE):
        read = read_netcdf(place, groups, listed=(GROUP, "digests"))
    return system_of(read, str(path))


def system_of(read: Mapping[str, Group], where: str) -> xr.Dataset:
    """The system in what was read of a file with the group ``golden``, or without."""
    system = read[""].dataset
    check_is_system(read[""], where)
    if GROUP not in read:
        return with_golden(system, {}, {}, where, read[""].others)
    golden = read[GROUP].dataset
    return with_golden(system, golden.variables, told_by(golden, where), where)


def check_is_system(read: Group, where: str) -> None:
    """ValueError for what is none, which says what it is."""
    if "A" not in read.dataset:
        raise ValueError(
            f"`path` must hold a system (A, B, C, D); got {where!r}, {_what(read)}. Give a "
            "system.nc of `depthsys identify`, or what an export wrote."
        )


def _what(read: Group) -> str:
    """What a file that holds these is, and its variables."""
    names = sorted({*map(str, read.dataset.variables), *read.others})
    known = next((kind for kind, marks in _KINDS.items() if marks <= set(names)), None)
    shown = ", ".join(one_line(name, 40) for name in names[:12])
    if known is not None:
        return f"which is {known}, with the variables {shown}"
    return f"which holds {f'the variables {shown}' if names else 'no variables'}"


def read_variables(
    path: str | os.PathLike, names: Iterable[str], needed: str, cure: str = ""
) -> xr.Dataset:
    """Variables of any netCDF4 file, those that are there, with the labels of their dims.

    ``cure`` ends what is said where the ``needed`` variable is not there.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no netCDF4 file, truncated, or not safe to read, or lacks the ``needed`` variable.
    """
    place = existing_file(path)
    with told_of(path, WHOLE):
        read = read_netcdf(place, {"": names})[""]
    if needed not in read.dataset:
        said = f"`path` must hold {needed!r}; got {str(path)!r}, {_what(read)}. {cure}"
        raise ValueError(said.rstrip())
    return read.dataset


def golden_group(system: xr.Dataset) -> xr.Dataset:
    """The golden trajectory, with the digests of all variables in its attrs."""
    return golden_trajectory(system).assign_attrs(digests=json.dumps(digests(system)))


def told_by(golden: xr.Dataset, where: str) -> dict[str, str]:
    """The digests that came with a golden trajectory."""
    told = about_of(str(golden.attrs.get("digests", "{}")), where)
    return told if isinstance(told, dict) else {}
