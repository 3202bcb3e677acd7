"""What it costs to skip a layer: by the linear system, and by really skipping it."""

import numpy as np
import torch
import xarray as xr

from depthsys.lm.directions import direction_note
from depthsys.lm.frozen import FrozenRun
from depthsys.lm.gains import squeezed
from depthsys.lm.hf.affine import relative_error
from depthsys.lm.linearize import Linearisation
from depthsys.lm.lockstep import Steps
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import wide
from depthsys.lm.readouts import Readout, ReadoutLike, checked_readout
from depthsys.lm.run import Run
from depthsys.lm.run_model import Model
from depthsys.lm.shards import along, in_shards
from depthsys.lm.stamp import stamp


@of_run(once=True, shards=True)
def layer_skip(run: Run, concept: xr.Dataset, *, readout: ReadoutLike = "concept") -> xr.Dataset:
    r"""What becomes of every prompt when a layer is left out, predicted and real, for all layers.

    To skip layer l is to set :math:`x_{l+1} = x_l` on the last token, the keys and values of the
    earlier tokens frozen as everywhere: a push of :math:`x_l - x_{l+1}` at depth l + 1. To first
    order it shifts the readout by :math:`(\partial y_L / \partial x_{l+1}) (x_l - x_{l+1})`.

    Parameters
    ----------
    run
        The prompts; or a model and texts.
    concept
        ``direction`` (depth, feature), or (depth, input, feature); only the readout looks at it.
    readout
        See `identify`; of a profile the last depth counts.

    Returns
    -------
    xr.Dataset
        ``predicted`` and ``shift`` (prompt, layer): of the readout y_L, by the exact linear system
        of each prompt and on the full model, unit of the readout, with a dim output where there
        are several. ``state_error`` (prompt, layer): :math:`\|x_L' - x_L\| / \|x_L\|` of the full
        model. ``kl`` (prompt, layer): Kullback-Leibler divergence of the next token's distribution
        from that of the whole model, nats. ``update`` (prompt, layer):
        :math:`\|x_{l+1} - x_l\| / \|x_l\|`, how long a push that is; infinite where x_l is zero.

    Raises
    ------
    FloatingPointError
        If a state overflows without the layer.

    Notes
    -----
    Per prompt L - 1 products with a transposed Jacobian, and (L - 1) L / 2 rows through a block:
    the copy without layer l joins at depth l + 1. Leaving a layer out for all tokens of a sequence
    is another experiment, in which the contexts of later layers change, too.
    """
    reader = checked_readout(run.model, readout, concept)
    predicted, update = _predicted(run, concept, readout)
    shift, state_error, kl = _skipped(run, concept, readout)
    if not (np.isfinite(shift).all() and np.isfinite(state_error).all()):
        layers = np.flatnonzero(~np.isfinite(state_error).all(axis=0))
        raise FloatingPointError(
            f"states without a layer must be finite; those without {layers.tolist()} overflow. "
            "Load the model in float32."
        )
    by_layer = ("prompt", "layer")
    return xr.Dataset(
        {
            "predicted": squeezed(predicted, *by_layer, "output"),
            "shift": squeezed(shift, *by_layer, "output"),
            "state_error": (by_layer, state_error),
            "kl": (by_layer, kl),
            "update": (by_layer, update),
        },
        coords={"layer": np.arange(run.n_layers)},
        attrs={
            **stamp(run, "layer_skip"),
            "readout": reader.name,
            **Linearisation().attrs,
            **direction_note(concept),
        },
    )


@in_shards(along(0), "layers skipped, linear")
def _predicted(
    run: Run, concept: xr.Dataset, readout: ReadoutLike
) -> tuple[np.ndarray, np.ndarray]:
    """Shifts (prompt, layer, output) to first order, and lengths of updates (prompt, layer)."""
    model = run.model
    reader = checked_readout(model, readout, concept)
    found = np.empty((len(run), model.n_layers, reader.n_outputs))
    update = np.empty(found.shape[:2])

    def work(batch: FrozenRun) -> Steps[list[torch.Tensor]]:
        steps = (batch.x[:-1] - batch.x[1:]).double()
        row, shifts = reader.rows_at(model, batch.x[-1])[-1], []
        for block in reversed(batch.blocks):
            layer = block.layer
            shifts.append((wide(row).double() @ steps[layer][..., None])[..., 0])
            if layer:
                yield layer
                row = block.vjp(row)
        return shifts[::-1]

    held = reader.n_outputs * (model.n_features + model.n_layers) * 8
    for batch, shifts in run.in_step(work, "layers skipped, linear", held=held):
        found[batch.prompts] = torch.stack(shifts, dim=1).cpu().numpy()
        x = wide(batch.x).double()
        length = (x[1:] - x[:-1]).norm(dim=-1) / x[:-1].norm(dim=-1)
        update[batch.prompts] = length.T.cpu().numpy()
    return found, update


@in_shards(along(0), "layers skipped")
def _skipped(
    run: Run, concept: xr.Dataset, readout: ReadoutLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shifts (prompt, layer, output), errors of x_L and divergences (prompt, layer)."""
    model = run.model
    reader = checked_readout(model, readout, concept)
    shift = np.empty((len(run), model.n_layers, reader.n_outputs))
    state_error, kl = np.empty(shift.shape[:2]), np.empty(shift.shape[:2])
    held = (model.n_layers + 1) * model.n_features * 4
    for batch, x in run.in_step(_without, "layers skipped", held=held):
        at = batch.prompts
        with torch.no_grad():
            shift[at], state_error[at], kl[at] = _cost(model, batch.x[-1], x, reader)
    return shift, state_error, kl


@torch.no_grad()
def _without(batch: FrozenRun) -> Steps[torch.Tensor]:
    """x_L (prompt, layer, feature) without each layer."""
    x = batch.x[0][:, None][:, :0]
    for block in batch.blocks:
        if block.layer:
            x = torch.cat([x, batch.x[block.layer - 1][:, None]], dim=1)
            yield block.layer
            x = block(x)
    return torch.cat([x, batch.x[-2][:, None]], dim=1)


def _cost(
    model: Model, nominal: torch.Tensor, x: torch.Tensor, reader: Readout
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shift of the readout, relative error and divergence of last states against nominal ones."""
    both = torch.cat([nominal[:, None], x], dim=1)
    y = reader.values(model, both)
    state_error = relative_error(x, nominal[:, None].expand_as(x))
    kl = torch.empty(x.shape[:2], dtype=torch.float64)
    for prompt, states in enumerate(both):  # rows of logits are as long as the vocabulary
        log_p = torch.log_softmax(model.head(states).double(), dim=-1)
        kl[prompt] = (log_p[0].exp() * (log_p[0] - log_p[1:])).sum(-1).cpu()
    return (
        (y[:, 1:] - y[:, :1]).cpu().numpy(),
        state_error.cpu().numpy(),
        kl.numpy(),
    )
