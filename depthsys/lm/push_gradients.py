"""What a schedule of pushes does on the full nonlinear model, and the derivative of that.

One forward and one backward pass of the last token per prompt, on the frozen context, with all
layers pushed at once.
"""

from typing import NamedTuple

import numpy as np
import torch

from depthsys.lm.frozen import FrozenRun
from depthsys.lm.linearize import Linearised
from depthsys.lm.lockstep import Steps
from depthsys.lm.precision import wide
from depthsys.lm.readouts import Readout
from depthsys.lm.run import Run
from depthsys.lm.run_model import Model
from depthsys.lm.shards import ShardedRun


class Pushed(NamedTuple):
    """``y`` (prompt, output) under the pushes, and ``gradient`` (prompt, output, layer, input).

    float64. Not finite where a push is so large that a state overflows.
    """

    y: np.ndarray
    gradient: np.ndarray


def push_gradients(
    run: Run | ShardedRun,
    v: torch.Tensor,
    pushes: np.ndarray,
    reader: Readout,
    prompts: np.ndarray | None = None,
) -> Pushed:
    r"""Readout y_L of pushed prompts, and its derivative with respect to the pushes.

    Parameters
    ----------
    run
        The prompts.
    v
        Directions (depth, input, feature), see `directions.directions`.
    pushes
        u (layer, input), the same for all prompts, or (row, layer, input): at the input of block l
        the vector :math:`\sum_i u_{l,i} v_{l,i}` is added.
    reader
        What is read.
    prompts
        Row numbers (row) of the prompts that are wanted, rising; all of them by default. Batches
        without any of them are not run.

    Returns
    -------
    Pushed
        Of the wanted prompts, in their order.

    Notes
    -----
    The blocks of one batch are held linearised at the pushed states, so memory does not grow with
    the number of prompts, and several outputs share the forward pass. Blocks whose weights must be
    brought in are linearised on the way back: what is held are the pushed states of all batches.
    """
    rows = np.arange(len(run)) if prompts is None else np.asarray(prompts)
    if isinstance(run, ShardedRun):
        return _of_shards(run, v, pushes, reader, rows)
    each = np.broadcast_to(pushes, (len(rows), *pushes.shape[-2:]))
    y = np.empty((len(rows), reader.n_outputs))
    gradient = np.empty((len(rows), reader.n_outputs, run.n_layers, v.shape[1]))
    # batches without any of them are not prefilled
    numbers = [n for n, members in enumerate(run.numbers) if np.isin(members, rows).any()]
    keep = not run.model.blocks.residence.moves

    def work(batch: FrozenRun) -> Steps[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        chosen = batch.only(np.isin(batch.prompts, rows))
        at = np.searchsorted(rows, chosen.prompts)
        u = torch.as_tensor(each[at]).to(v)
        return at, *(yield from _of_batch(run.model, chosen, v, u, reader, keep=keep))

    held = (run.n_layers + 2) * (run.model.n_features + v.shape[1]) * v.itemsize
    for _, (at, *found) in run.in_step(work, held=held, numbers=numbers):
        y[at], gradient[at] = found
    return Pushed(y, gradient)


def _of_shards(
    run: ShardedRun, v: torch.Tensor, pushes: np.ndarray, reader: Readout, rows: np.ndarray
) -> Pushed:
    """The same shard by shard; those without any of the wanted prompts are not asked."""
    wanted = np.zeros(len(run), dtype=bool)
    wanted[rows] = True
    among = [shard.number for shard in run.shards if wanted[shard.prompts].any()]
    own = {}
    if pushes.ndim > 2:
        own["each"] = np.zeros((len(run), *pushes.shape[1:]))
        own["each"][rows] = pushes
        pushes = pushes[:0]
    found = run.each(_of_shard, v, pushes, reader, among=among, title="push", wanted=wanted, **own)
    y, gradient = zip(*found, strict=True)
    return Pushed(np.concatenate(y), np.concatenate(gradient))


def _of_shard(
    run: Run,
    v: torch.Tensor,
    pushes: np.ndarray,
    reader: Readout,
    *,
    wanted: np.ndarray,
    each: np.ndarray | None = None,
) -> Pushed:
    rows = np.flatnonzero(wanted)
    return push_gradients(run, v, pushes if each is None else each[rows], reader, rows)


def _of_batch(
    model: Model,
    batch: FrozenRun,
    v: torch.Tensor,
    u: torch.Tensor,
    reader: Readout,
    *,
    keep: bool,
) -> Steps[tuple[np.ndarray, np.ndarray]]:
    """The same for one batch and pushes u (prompt, layer, input)."""
    x, way = batch.x[0], []
    for layer, block in enumerate(batch.blocks):
        yield layer
        pushed = (x + u[:, layer] @ v[layer]).to(batch.x.dtype)
        linear = Linearised(block, pushed)
        # what is linearised holds the weights
        way.append(linear if keep else pushed)
        x = linear.y
        del linear
    with torch.no_grad():
        y = reader.values(model, x[:, None])[:, 0]
    carried = reader.rows_at(model, x)[-1]
    shape = (*carried.shape[:2], *u.shape[1:])
    gradient = torch.empty(shape, dtype=torch.float64, device=u.device)
    for layer in reversed(range(len(way))):
        yield layer
        linear = way.pop()
        if not keep:
            linear = Linearised(batch.blocks[layer], linear)
        carried = linear.vjp(carried)
        del linear
        gradient[:, :, layer] = wide(carried) @ v[layer].mT
    return y.cpu().numpy(), gradient.cpu().numpy()
