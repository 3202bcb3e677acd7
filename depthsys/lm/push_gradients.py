"""What a schedule of pushes does on the full nonlinear model, and the derivative of that.

One forward and one backward pass of the last token per prompt, on the frozen context, with all
layers pushed at once.
"""

from typing import NamedTuple

import numpy as np
import torch

from depthsys.lm.frozen import FrozenRun
from depthsys.lm.linearize import Linearised
from depthsys.lm.precision import wide
from depthsys.lm.readouts import Readout
from depthsys.lm.run import Model, Run


class Pushed(NamedTuple):
    """``y`` (prompt, output) under the pushes, and ``gradient`` (prompt, output, layer, input).

    float64. Not finite where a push is so large that a state overflows.
    """

    y: np.ndarray
    gradient: np.ndarray


def push_gradients(
    run: Run,
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
    the number of prompts, and several outputs share the forward pass.
    """
    rows = np.arange(len(run)) if prompts is None else np.asarray(prompts)
    each = np.broadcast_to(pushes, (len(rows), *pushes.shape[-2:]))
    y = np.empty((len(rows), reader.n_outputs))
    gradient = np.empty((len(rows), reader.n_outputs, run.n_layers, v.shape[1]))
    # where no context is kept a batch is prefilled when it is asked for: not before that
    batches = run.batches
    for number, members in enumerate(run.numbers):
        wanted = np.isin(members, rows)
        if not wanted.any():
            continue
        batch = batches[number].only(wanted)
        at = np.searchsorted(rows, batch.prompts)
        u = torch.as_tensor(each[at]).to(v)
        y[at], gradient[at] = _of_batch(run.model, batch, v, u, reader)
    return Pushed(y, gradient)


def _of_batch(
    model: Model, batch: FrozenRun, v: torch.Tensor, u: torch.Tensor, reader: Readout
) -> tuple[np.ndarray, np.ndarray]:
    """The same for one batch and pushes u (prompt, layer, input)."""
    x, linear = batch.x[0], []
    for layer, block in enumerate(batch.blocks):
        linear.append(Linearised(block, (x + u[:, layer] @ v[layer]).to(batch.x.dtype)))
        x = linear[-1].y
    with torch.no_grad():
        y = reader.values(model, x[:, None])[:, 0]
    carried = reader.rows_at(model, x)[-1]
    shape = (*carried.shape[:2], *u.shape[1:])
    gradient = torch.empty(shape, dtype=torch.float64, device=u.device)
    for layer in reversed(range(len(linear))):
        carried = linear.pop().vjp(carried)
        gradient[:, :, layer] = wide(carried) @ v[layer].mT
    return y.cpu().numpy(), gradient.cpu().numpy()
