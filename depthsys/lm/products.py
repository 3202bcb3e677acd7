"""Products of the mean Jacobian of every layer with given directions."""

import numpy as np
import torch
import xarray as xr

from depthsys.lm.frozen import FrozenRun
from depthsys.lm.linearize import Linearisation, as_directions
from depthsys.lm.lockstep import Steps
from depthsys.lm.of_run import of_run
from depthsys.lm.run import Run
from depthsys.lm.shards import in_shards, summed
from depthsys.lm.stamp import stamp


@of_run(once=True, shards=True)
def mean_jvp(
    run: Run, directions: xr.DataArray, *, part: str | Linearisation = "block"
) -> xr.DataArray:
    r"""The mean Jacobian of every layer times given directions: :math:`\bar A_l V_l`.

    Prompts are streamed: memory does not grow with their number, and no H x H matrix is formed.

    Parameters
    ----------
    run
        The prompts that are averaged; or a model and texts.
    directions
        (layer, direction, feature): V_l, one direction per row.
    part
        Which derivative, see `Linearisation`.

    Returns
    -------
    xr.DataArray
        (layer, direction, feature).
    """
    return _mean_product(run, directions, "jvp", Linearisation.of(part))


@of_run(once=True, shards=True)
def mean_vjp(
    run: Run, directions: xr.DataArray, *, part: str | Linearisation = "block"
) -> xr.DataArray:
    r"""The transposed mean Jacobian of every layer times directions: :math:`\bar A_l^\top W_l`.

    As `mean_jvp`; ``directions`` (layer, direction, feature) live at the output of each layer.
    """
    return _mean_product(run, directions, "vjp", Linearisation.of(part))


def _mean_product(run: Run, directions: xr.DataArray, name: str, kind: Linearisation):
    dims, model = ("layer", "direction", "feature"), run.model
    like = torch.empty(0, device=model.device, dtype=model.dtype)
    if "layer" in directions.coords:
        directions = directions.sortby("layer")
    rows = as_directions(directions.transpose(*dims).values, like)
    if rows.shape[0] != model.n_layers:
        raise ValueError(
            f"`directions` must have {model.n_layers} layers; got {rows.shape[0]}. "
            "Give the same ones to every layer by broadcasting."
        )
    total = _product_sums(run, rows, name, kind)
    attrs = {**stamp(run, f"mean_{name}"), **kind.attrs}
    mean = (total / len(run)).cpu().numpy()
    return xr.DataArray(mean, dims=dims, coords={"layer": np.arange(len(mean))}, attrs=attrs)


@in_shards(summed, "mean Jacobian")
def _product_sums(run: Run, rows: torch.Tensor, name: str, kind: Linearisation) -> torch.Tensor:
    """Sums over prompts of products (layer, direction, feature)."""
    total = torch.zeros(rows.shape, dtype=torch.float64, device=run.model.device)

    def work(batch: FrozenRun) -> Steps[None]:
        for block in batch.blocks:
            yield block.layer
            product = getattr(block.linearised(kind), name)(rows[block.layer])
            total[block.layer] += product.double().sum(0)

    for _ in run.in_step(work, "mean Jacobian"):
        pass
    return total
