"""The exact linear input-output maps of prompts, and their mean."""

from typing import Any

import numpy as np
import xarray as xr

from depthsys.lm.channels import Channels
from depthsys.lm.frozen import FrozenRun
from depthsys.lm.gains import io_map, squeezed
from depthsys.lm.nominal import EachNominal, MeanNominal, nominal_run
from depthsys.lm.run import Run


def mean_response(channels: Channels, run: Run) -> xr.Dataset:
    """Mean over prompts of the exact linear input-output maps, streamed.

    ``io`` (depth, output, layer, input), with what `identify` says of the nominal run.
    """
    nominal = MeanNominal(channels, len(run))
    total: Any = 0.0
    for batch in run.stream("ensemble"):
        nominal.note_batch(batch)
        total = total + io_each(channels, batch).sum("prompt")
    io = total / len(run)
    found = xr.Dataset(nominal_run(nominal)).isel(prompt=0)
    found["gain_full"] = terminal(io)
    return found.assign(io=io)


def io_each(channels: Channels, batch: FrozenRun) -> xr.DataArray:
    """The exact linear input-output map of every prompt of a batch."""
    rows = channels.readout.rows_at(channels.model, batch.x[-1])
    inputs = None if channels.free else channels.v
    values = io_map(batch, inputs, rows, channels.kind).cpu().numpy()
    depths = np.arange(values.shape[1])
    return xr.DataArray(
        values,
        dims=("prompt", "depth", "output", "layer", "input"),
        coords={"depth": depths, "layer": depths[:-1]},
    )


def terminal(io: xr.DataArray) -> xr.DataArray:
    """The gains at the last depth, without dims of size one."""
    last = io.isel(depth=-1, drop=True).transpose(..., "layer", "output", "input")
    return squeezed(last.values, *map(str, last.dims))


def response_each(channels: Channels, batch: FrozenRun) -> xr.Dataset:
    """``io`` of every prompt of a batch, with what `identify` says of the nominal run."""
    io = io_each(channels, batch)
    found = xr.Dataset(nominal_run(EachNominal(channels, batch)))
    found["gain_full"] = terminal(io)
    return found.assign(io=io)
