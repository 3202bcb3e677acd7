"""Exact linear gains and input-output maps: what a small push at a layer does, by derivatives."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from depthsys.lm.directions import defined, direction_note, directions
from depthsys.lm.frozen import FrozenRun
from depthsys.lm.linearize import Linearisation
from depthsys.lm.lockstep import Steps
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import wide
from depthsys.lm.readouts import ReadoutLike, checked_readout
from depthsys.lm.run import Run
from depthsys.lm.shards import along, in_shards
from depthsys.lm.stamp import stamp


def io_map(
    batch: FrozenRun,
    inputs: torch.Tensor | None,
    rows: torch.Tensor,
    part: str | Linearisation = "block",
    *,
    read: Sequence[int],
) -> Steps[torch.Tensor]:
    r"""The exact linear input-output map of every prompt, from the outputs backwards, in steps.

    Rows :math:`s \leftarrow A_l^\top s` are carried from every depth that is read to layer 0, all
    in one pass: :math:`G[k, l] = C_k A_{k-1} \cdots A_l V_l`.

    Parameters
    ----------
    batch
        A batch of prompts.
    inputs
        V_l as rows (depth, input, feature); None for free inputs, V_l = I.
    rows
        C_k (depth, prompt, output, feature).
    part
        Which derivative, see `Linearisation`.
    read
        The depths at which something is read.

    Returns
    -------
    torch.Tensor
        (prompt, depth, output, layer, input), float64.
    """
    n_depths, n_prompts, n_outputs, n_features = rows.shape
    n_inputs = n_features if inputs is None else inputs.shape[1]
    shape = (n_prompts, n_depths, n_outputs, n_depths - 1, n_inputs)
    whole = torch.zeros(shape, dtype=torch.float64, device=rows.device)
    carried = rows[0][:, :0]  # one block of n_outputs rows per depth
    depths = torch.tensor([depth for depth in read if depth > 0], device=rows.device)
    known = 0
    for block in reversed(batch.blocks):
        layer = block.layer
        if layer + 1 in read:
            carried = torch.cat([rows[layer + 1], carried], dim=1)
            known += 1
        if known:
            yield layer
            carried = block.vjp(carried, part)
            here = carried if inputs is None else wide(carried) @ inputs[layer].mT
            here = here.double().unflatten(1, (known, n_outputs))
            whole[:, :, :, layer].index_copy_(1, depths[-known:], here)
    return whole


@of_run(once=True, shards=True)
def linear_gains(
    run: Run,
    concept: xr.Dataset,
    *,
    readout: ReadoutLike = "concept",
    part: str | Linearisation = "block",
) -> xr.Dataset:
    r"""Exact linear gain of every layer and prompt, by one backward pass per batch.

    :math:`g_l = (\partial y_L/\partial x_l)\, v_l`: the shift of the readout at the last depth per
    unit injection at the input of block l, to first order.

    Parameters
    ----------
    run
        The prompts; or a model and texts.
    concept
        ``direction`` (depth, feature), or (depth, input, feature).
    readout
        See `identify`; of a profile the last depth counts.
    part
        Which derivative, see `Linearisation`.

    Returns
    -------
    xr.Dataset
        ``gain`` (prompt, layer), unit of the readout per unit of the state, with the further dims
        output and input where there are several, NaN where there is no direction; ``state_norm``
        (prompt, layer), norm of the nominal x_l; ``readout`` (prompt), nominal y_L, with a dim
        output where there are several.
    """
    kind = Linearisation.of(part)
    reader = checked_readout(run.model, readout, concept)
    gain, norm, value = _gains_of(run, concept, readout, kind)
    return xr.Dataset(
        {
            "gain": squeezed(gain, "prompt", "layer", "output", "input"),
            "state_norm": (("prompt", "layer"), norm),
            "readout": squeezed(value, "prompt", "output"),
        },
        coords={"layer": np.arange(run.n_layers)},
        attrs={
            **stamp(run, "linear_gains"),
            "kind": "of the detached map" if kind.is_detached else "exact linear",
            "readout": reader.name,
            **kind.attrs,
            **direction_note(concept),
        },
    )


@in_shards(along(0), "linear gains")
def _gains_of(
    run: Run, concept: xr.Dataset, readout: ReadoutLike, kind: Linearisation
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gains (prompt, layer, output, input), norms (prompt, layer), readouts (prompt, output)."""
    model = run.model
    v = directions(model, concept)
    reader = checked_readout(model, readout, concept)
    gain = np.empty((len(run), model.n_layers, reader.n_outputs, v.shape[1]))
    exists = defined(concept)[:-1][:, None]
    norm = np.empty(gain.shape[:2])
    value = np.empty((len(run), reader.n_outputs))

    def work(batch: FrozenRun) -> Steps[torch.Tensor]:
        rows = reader.rows_at(model, batch.x[-1]).clone()
        rows[:-1] = 0
        whole = yield from io_map(batch, v, rows, kind, read=[model.n_layers])
        return whole[:, -1].transpose(1, 2)

    held = reader.n_outputs * (model.n_features + (model.n_layers + 1) ** 2 * v.shape[1]) * 8
    for batch, whole in run.in_step(work, "linear gains", held=held):
        gain[batch.prompts] = np.where(exists, whole.cpu().numpy(), np.nan)
        norm[batch.prompts] = wide(batch.x[:-1]).norm(dim=-1).T.double().cpu().numpy()
        with torch.no_grad():
            value[batch.prompts] = reader.values(model, batch.x[-1][:, None])[:, 0].cpu().numpy()
    return gain, norm, value


def squeezed(values: np.ndarray, *dims: str) -> xr.DataArray:
    """The values without the dims output and input where there is only one."""
    array = xr.DataArray(values, dims=dims)
    single = [d for d in ("output", "input") if array.sizes.get(d) == 1]
    return array.squeeze(single)
