"""States of the residual stream before the attention and before the MLP of every layer."""

from typing import Any

import numpy as np
import torch
import xarray as xr

from depthsys.lm.frozen import FrozenRun
from depthsys.lm.hf.tokens import Tokens
from depthsys.lm.lockstep import Steps, driven
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import wide
from depthsys.lm.run import Run
from depthsys.lm.run_model import Model
from depthsys.lm.shards import along, in_shards
from depthsys.lm.stamp import stamp

PARTS = ("attention", "mlp")
TRIED = 4  # tokens of the prompt on which the parts of all layers are tried


@of_run(once=True, shards=True)
def sublayer_states(run: Run) -> xr.DataArray:
    r"""States of the last token before the attention and before the MLP of every layer.

    Sublayer 2l is the state :math:`x_l` that enters block l; sublayer 2l + 1 is
    :math:`x_l + a_l(x_l)`, with what the attention has written. In a sequential block that is what
    the MLP reads. In a parallel one (GPT-NeoX, Phi, Falcon) both read :math:`x_l`, and the sum is a
    state that nothing reads; attrs ``arrangement`` says which it is.

    Parameters
    ----------
    run
        The prompts; or a model and texts.

    Returns
    -------
    xr.DataArray
        (sublayer, prompt, feature), 2L sublayers; what the last MLP writes comes after them. Coords
        ``layer`` and ``before`` (sublayer), the latter "attention" or "mlp".

    Raises
    ------
    ValueError
        If a layer does not add what two parts write.

    Notes
    -----
    One row per prompt and layer through a block whose MLP writes zeros, beside the prefill. All
    states are held: 2 L H numbers per prompt. `residual_dynamics` does without.

    References
    ----------
    .. [1] Fernando and Guitchounts (2025), arXiv:2502.12131: the residual stream before attention
       and before MLP.
    """
    arrangement = checked_arrangement(run.model, run.rows[0])
    return xr.DataArray(
        _states(run),
        dims=("sublayer", "prompt", "feature"),
        coords=coords(run.n_layers),
        attrs={**stamp(run, "sublayer_states"), "arrangement": arrangement},
    )


@in_shards(along(1), "sublayers")
def _states(run: Run) -> np.ndarray:
    """(sublayer, prompt, feature)."""
    shape = (2 * run.n_layers, len(run), run.model.n_features)
    states = np.empty(shape, dtype=run.model.numpy_dtype)
    for batch, x in run.in_step(passed, "sublayers", held=bytes_of(run.model)):
        states[:, batch.prompts] = wide(x).cpu().numpy()
    return states


@torch.no_grad()
def passed(batch: FrozenRun) -> Steps[torch.Tensor]:
    """States (sublayer, prompt, feature) of a batch."""
    middle = []
    for block in batch.blocks:
        yield block.layer
        middle.append(block.without(block.x[:, None], "mlp")[:, 0])
    return torch.stack([batch.x[:-1], torch.stack(middle)], dim=1).flatten(0, 1)


def bytes_of(model: Model) -> int:
    """Bytes of a prompt's states that wait between two layers."""
    return model.n_layers * model.n_features * model.dtype.itemsize


def coords(n_layers: int) -> dict[str, Any]:
    """What sublayers are called."""
    return {
        "sublayer": np.arange(2 * n_layers),
        "layer": ("sublayer", np.repeat(np.arange(n_layers), 2)),
        "before": ("sublayer", list(PARTS) * n_layers),
    }


def checked_arrangement(model: Model, row: list[int]) -> str:
    """How the parts of the layers write into the state, tried on a few tokens of one prompt.

    "sequential", "parallel", or "mixed" where layers differ; ValueError where a layer does
    neither, before the prompts are prefilled.
    """
    known = model.blocks.sublayers
    if len(known) < model.n_layers:
        tried = Run(model, Tokens([row[:TRIED]], 0), contexts=False)
        driven(model.blocks, _tried(tried))
    found = {known[layer] for layer in range(model.n_layers)}
    return found.pop() if len(found) == 1 else "mixed"


def _tried(run: Run) -> Steps[None]:
    for block in run.batch(0).blocks:
        yield block.layer
        block.sublayers  # noqa: B018 (kept with the model)
