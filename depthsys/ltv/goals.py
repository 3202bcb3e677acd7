"""Where a plan should take the last depth: which outputs or states, and where they end alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from depthsys.ltv.labels import (
    aligned,
    beside_each_other,
    in_order_of,
    positions_of,
    with_labels_of,
)
from depthsys.ltv.matrix_free import MatrixFree, over_depth
from depthsys.ltv.response import as_state
from depthsys.ltv.system import as_named, plain
from depthsys.ltv.terminal_gains import known_gains

Positions = int | str | Sequence[int] | Sequence[str]


class Aim(NamedTuple):
    """Which rows (``goal``) of the maps should end where; ``rows`` is None for a whole state."""

    goal: str
    gain: xr.DataArray
    floor: xr.DataArray
    lost: xr.DataArray
    rows: list[int] | None
    held: int
    wanted: xr.DataArray
    alone: xr.DataArray

    def without_held(self) -> Aim:
        """Where the rows that are held may end anywhere."""
        steered = {self.goal: slice(len(self.rows or ()) - self.held)}
        parts = ("gain", "floor", "lost", "wanted", "alone")
        return self._replace(**{name: getattr(self, name).isel(steered) for name in parts})


def aim_of(system: xr.Dataset | MatrixFree, target, outputs, hold, start) -> Aim:
    """The goal of `minimum_energy`, from its arguments; ``start`` is the initial state, or None."""
    if isinstance(target, xr.DataArray) and "state" in target.dims:
        if outputs is not None or np.size(hold):
            raise ValueError(
                "`outputs` and `hold` must be left out when the target is a whole state; got "
                f"{outputs} and {hold}. Give a target with the dim 'output' to steer outputs."
            )
        goal, rows, held = "state", None, 0
        maps = known_gains(system, goal)
        wanted, alone = _whole_state(system, target, start, maps[0].sizes[goal])
    else:
        goal = "output"
        maps = known_gains(system, goal)
        rows, wanted, alone = _outputs(system, target, outputs, hold, start)
        maps = tuple(x.isel(output=rows) for x in maps)
        held = len(np.atleast_1d(np.asarray(hold, dtype=object)))
    gain, floor, lost = (a.drop_vars(goal, errors="ignore") for a in maps)
    return Aim(goal, gain, floor, lost, rows, held, wanted, alone)


def _whole_state(
    system: xr.Dataset | MatrixFree, target: xr.DataArray, start: xr.DataArray | None, n: int
) -> tuple[xr.DataArray, xr.DataArray]:
    """Where the state should end, and where it ends alone."""
    wanted = as_state(system, target, "target", -1).isel(state=slice(n))
    alone = 0.0 * wanted if start is None else _alone(system, start, "state")
    return xr.broadcast(wanted, alone.isel(state=slice(n)))


def _alone(system: xr.Dataset | MatrixFree, start: xr.DataArray, goal: str) -> xr.DataArray:
    """Where the state or the outputs end from an initial state without input."""

    def core(A, C, x0):
        x = x0[..., None]
        for k, a in enumerate(A):
            x = a @ x[..., : C[k].shape[-1], :]
        if goal == "state":
            return x[..., 0]
        return (C[-1] @ x)[..., 0]

    return over_depth(core, system, "AC", [[goal]], start, extra_dims=[["state"]])


def _outputs(
    system: xr.Dataset | MatrixFree, target, outputs, hold, start: xr.DataArray | None
) -> tuple[list[int], xr.DataArray, xr.DataArray]:
    """The outputs to steer and to hold, where they should end, and where they end alone."""
    n = np.shape(system.C[0])[0] if isinstance(system, MatrixFree) else system.sizes["output"]
    held = _positions(hold, "hold", n, system)
    rest = [i for i in range(n) if i not in held]
    steered = rest if outputs is None else _positions(outputs, "outputs", n, system)
    if not steered or set(steered) & set(held):
        raise ValueError(
            f"`outputs` must name at least one output that is not held; got {steered} beside "
            f"hold={held}. Steer some and hold others."
        )
    if not isinstance(target, xr.DataArray):
        target = np.atleast_1d(plain(target, "target"))
    target = as_named(target, "target", {"output": len(steered)})
    part = None if isinstance(system, MatrixFree) else system.isel(output=steered)
    if part is not None and ("output" in part.coords or "output_name" in part.coords):
        target = aligned(target, "target", part)
    else:
        target = in_order_of(target, "target", "output", np.array(steered))
        target = aligned(target, "target", system)
    rows = steered + held
    if start is None:
        alone = xr.DataArray(np.zeros(len(rows)), dims=["output"])
    else:
        alone = _alone(system, start, "output").drop_vars("output", errors="ignore")
        alone = alone.isel(output=rows)
    target, alone = beside_each_other({"target": target, "x0": alone})
    stay = alone.isel(output=slice(len(steered), None))
    wanted = xr.concat(xr.broadcast(target, stay, exclude=["output"]), dim="output")
    return rows, wanted, alone


def named_rows(plan: xr.Dataset, system: xr.Dataset | MatrixFree, rows: list[int]) -> xr.Dataset:
    """Outputs by their labels in the system, or by their positions where it has none."""
    if isinstance(system, MatrixFree):
        return with_labels_of(plan, system).assign_coords(output=rows)
    plan = with_labels_of(plan, system.isel(output=rows))
    return plan if "output" in plan.coords else plan.assign_coords(output=rows)


def _positions(
    value: Positions, name: str, n_outputs: int, system: xr.Dataset | MatrixFree
) -> list[int]:
    positions = np.atleast_1d(np.asarray(positions_of(value, name, system, "output")))
    if positions.size == 0:
        return []
    whole = positions.ndim == 1 and positions.dtype.kind in "iu"
    if not whole or (positions < 0).any() or (positions >= n_outputs).any():
        raise ValueError(
            f"`{name}` must be positions of outputs, in 0..{n_outputs - 1}; got {value!r}."
            " Count them in the C of the system."
        )
    if len(set(positions.tolist())) < len(positions):
        raise ValueError(f"`{name}` must name each output once; got {value!r}. Drop the copies.")
    return [int(i) for i in positions]
