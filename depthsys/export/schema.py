"""Versions of the system Dataset: what older files lack is added when they are read.

======= ======================================================================================
version
======= ======================================================================================
1       ``A``, ``B``, ``C``, ``D`` and their companions; ``order`` (depth) where it varies
2       also the coordinates ``input_name`` (input) and ``output_name`` (output); ``order`` always;
        ``units`` of the matrices in their attrs
======= ======================================================================================
"""

from collections.abc import Callable

import numpy as np
import xarray as xr

from depthsys.ltv import SCHEMA_VERSION, check

# in those of the signals: the state of a language model is in reduced coordinates, its input in the
# unit of the residual stream, its output in that of the readout
UNITS = {
    "A": "1",
    "B": "state/input",
    "C": "output/state",
    "D": "output/input",
    "x_ref": "state",
    "y_ref": "output",
}


def migrated(system: xr.Dataset) -> xr.Dataset:
    """The system in today's schema, checked.

    Inputs and outputs without names get those of their labels, or u0, u1, ... and y0, y1, ...;
    matrices without ``units`` in their attrs get them.

    Raises
    ------
    ValueError
        If it is no system, or was written by a newer depthsys.
    """
    check(system)
    version = int(system.attrs.get("schema_version", SCHEMA_VERSION))
    for old in range(version, SCHEMA_VERSION):
        system = _MIGRATIONS[old](system)
    return check(_complete(system).assign_attrs(schema_version=SCHEMA_VERSION))


def _complete(system: xr.Dataset) -> xr.Dataset:
    for dim, letter in (("input", "u"), ("output", "y")):
        if f"{dim}_name" not in system.coords:
            labels = [f"{letter}{i}" for i in range(system.sizes[dim])]
            names = system[dim].values.astype(str) if dim in system.coords else labels
            system = system.assign_coords({f"{dim}_name": (dim, np.array(names))})
    if "order" not in system.coords:
        full = np.full(system.sizes["depth"], system.sizes["state"])
        system = system.assign_coords(order=("depth", full))
    bare = [n for n in UNITS if n in system.data_vars and "units" not in system[n].attrs]
    return system.assign({n: system[n].assign_attrs(units=UNITS[n]) for n in bare})


def _from_1(system: xr.Dataset) -> xr.Dataset:
    """The names that `lm.identify` gives since version 2 to one direction and what it reads."""
    if "v" in system and system.sizes["input"] == 1:
        system = system.assign_coords(input_name=("input", np.array(["concept"])))
    if system.attrs.get("readout") in ("concept", "profile") and system.sizes["output"] == 1:
        system = system.assign_coords(output_name=("output", np.array(["concept"])))
    return system


_MIGRATIONS: dict[int, Callable[[xr.Dataset], xr.Dataset]] = {1: _from_1}
