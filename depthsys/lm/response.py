"""The exact linear input-output maps of prompts, and their mean."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr

from depthsys.lm.channels import Channels
from depthsys.lm.frozen import FrozenRun
from depthsys.lm.gains import io_map, squeezed
from depthsys.lm.lockstep import Steps
from depthsys.lm.nominal import EachNominal, MeanNominal, NominalSums, nominal_run
from depthsys.lm.run import Run
from depthsys.lm.shards import ShardedRun, in_shards


def mean_response(channels: Channels, run: Run) -> xr.Dataset:
    """Mean over prompts of the exact linear input-output maps, streamed.

    ``io`` (depth, output, layer, input), with what `identify` says of the nominal run.
    """
    total, sums = _response_sums(run, channels)
    nominal = MeanNominal(channels, len(run), sums)
    io = _labelled((total / len(run)).cpu().numpy(), "depth", "output", "layer", "input")
    found = xr.Dataset(nominal_run(nominal)).isel(prompt=0)
    found["gain_full"] = terminal(io)
    return found.assign(io=io)


def _all_sums(
    run: ShardedRun, parts: Iterator[tuple[torch.Tensor, NominalSums]]
) -> tuple[torch.Tensor, NominalSums]:
    """The sums of all shards, in their order."""
    total, sums = next(parts)
    total, sums = total.to(run.model.device), sums.on(run.model.device)
    for shard, (more, others) in zip(run.shards[1:], parts, strict=True):
        total = total + more.to(total.device)
        sums.add(others, shard.start)
    return total, sums


@in_shards(_all_sums, "ensemble")
def _response_sums(run: Run, channels: Channels) -> tuple[torch.Tensor, NominalSums]:
    """Sums over prompts of the maps (depth, output, layer, input), and of the nominal run."""
    nominal = NominalSums.of(channels, range(channels.model.n_layers + 1))
    total: Any = 0.0
    works = run.in_step(lambda batch: _io(channels, batch), "ensemble", held=io_bytes(channels))
    for batch, each in works:
        nominal.note_batch(channels, batch)
        total = total + each.sum(0)
    return total, nominal


def io_bytes(channels: Channels) -> int:
    """Bytes per prompt of the map, and of the rows that are carried back for it."""
    model, n_outputs = channels.model, channels.readout.n_outputs
    n_inputs = model.n_features if channels.free else channels.v.shape[1]
    n_depths = model.n_layers + 1
    return 8 * n_depths * n_outputs * (model.n_features + n_depths * n_inputs)


def io_each(channels: Channels, batch: FrozenRun) -> Steps[xr.DataArray]:
    """The exact linear input-output map of every prompt of a batch."""
    values = yield from _io(channels, batch)
    return _labelled(values.cpu().numpy(), "prompt", "depth", "output", "layer", "input")


def _io(channels: Channels, batch: FrozenRun) -> Steps[torch.Tensor]:
    """The same as a tensor (prompt, depth, output, layer, input)."""
    readout = channels.readout
    rows = readout.rows_at(channels.model, batch.x[-1])
    inputs = None if channels.free else channels.v
    return (yield from io_map(batch, inputs, rows, channels.kind, read=readout.depths))


def _labelled(values: np.ndarray, *dims: str) -> xr.DataArray:
    depths = np.arange(values.shape[dims.index("depth")])
    return xr.DataArray(values, dims=dims, coords={"depth": depths, "layer": depths[:-1]})


def terminal(io: xr.DataArray) -> xr.DataArray:
    """The gains at the last depth, without dims of size one."""
    last = io.isel(depth=-1, drop=True).transpose(..., "layer", "output", "input")
    return squeezed(last.values, *map(str, last.dims))


def response_each(channels: Channels, batch: FrozenRun) -> Steps[xr.Dataset]:
    """``io`` of every prompt of a batch, with what `identify` says of the nominal run."""
    io = yield from io_each(channels, batch)
    found = xr.Dataset(nominal_run(EachNominal(channels, batch)))
    found["gain_full"] = terminal(io)
    return found.assign(io=io)
