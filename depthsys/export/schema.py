"""Versions of the system Dataset: what older files lack is added when they are read.

======= ======================================================================================
version
======= ======================================================================================
1       ``A``, ``B``, ``C``, ``D`` and their companions; ``order`` (depth) where it varies
2       also the coordinates ``input_name`` (input) and ``output_name`` (output); ``order`` always;
        ``long_name`` and ``units`` in the attrs of known variables; ``state_name`` (state) where
        the states have names
======= ======================================================================================
"""

from collections.abc import Callable

import numpy as np
import xarray as xr

from depthsys.ltv import SCHEMA_VERSION, check

# What a variable is, and its unit in those of the signals: of a language model the state is in
# reduced coordinates, the input in the unit of the residual stream, the output in that of the
# readout.
MEANINGS = {
    "A": ("state at depth l to state at depth l + 1", "1"),
    "B": ("input of layer l to state at depth l + 1", "state/input"),
    "C": ("state to output at each depth", "output/state"),
    "D": ("input to output at each depth", "output/input"),
    "order": ("number of states that exist", "1"),
    "x_ref": ("nominal state", "state"),
    "y_ref": ("nominal output", "output"),
    "V": ("basis: state of the system to state of the model", "1"),
    "W": ("basis: its transpose leads back", "1"),
    "v": ("concept direction of each input", "1"),
    "gain_full": ("gain of each layer on the last output before truncation", "output/input"),
    "state_norm": ("mean norm of the state of the model over prompts", "input"),
    "y_std": ("spread of the nominal last output over prompts", "output"),
    "auc": ("held-out AUC of the concept direction", "1"),
    "auc_low": ("lower end of its 95 % interval", "1"),
    "auc_high": ("upper end of its 95 % interval", "1"),
    "router_margin": ("least distance to another choice of experts", "router logits"),
    "state_name": ("names of the states", ""),
    "input_name": ("names of the inputs", ""),
    "output_name": ("names of the outputs", ""),
}

# what a file of a system is looked through for, beside what it says itself that it holds
NAMES = (*"ABCD", *MEANINGS)


def migrated(system: xr.Dataset) -> xr.Dataset:
    """The system in today's schema, checked.

    Inputs and outputs without names get those of their labels, or u0, u1, ... and y0, y1, ...;
    states those of their labels, if they have any;
    known variables without ``long_name`` and ``units`` in their attrs get them.

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
    if "state" in system.coords and "state_name" not in system.coords:
        names = system["state"].values.astype(str)
        system = system.assign_coords(state_name=("state", np.array(names)))
    if "order" not in system.coords:
        full = np.full(system.sizes["depth"], system.sizes["state"])
        system = system.assign_coords(order=("depth", full))
    known = {name: MEANINGS[name] for name in MEANINGS if name in system.variables}
    return system.assign({name: _explained(system[name], *told) for name, told in known.items()})


def _explained(variable: xr.DataArray, long_name: str, units: str) -> xr.DataArray:
    return variable.assign_attrs({"long_name": long_name, "units": units} | variable.attrs)


def _from_1(system: xr.Dataset) -> xr.Dataset:
    """The names that `lm.identify` gives since version 2 to one direction and what it reads."""
    if "v" in system and system.sizes["input"] == 1:
        system = system.assign_coords(input_name=("input", np.array(["concept"])))
    if system.attrs.get("readout") in ("concept", "profile") and system.sizes["output"] == 1:
        system = system.assign_coords(output_name=("output", np.array(["concept"])))
    return system


_MIGRATIONS: dict[int, Callable[[xr.Dataset], xr.Dataset]] = {1: _from_1}
