"""Exact derivatives of one block on the last token, and the gains that follow from them.

A *block map* ``f`` takes states (prompt, copy, feature) to states of the same shape, copy by
copy; ``x`` (prompt, feature) is the nominal input. Derivatives are with respect to one copy.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

if TYPE_CHECKING:
    from depthsys.lm.model import DepthModel
    from depthsys.lm.prompts import Texts

# Rows (prompts x copies) that go through a block at once: large enough for full matrix-product
# speed, small enough that the activations of a GPT-2-large block stay below 0.3 GB.
ROWS = 512

BlockMap = Callable[[torch.Tensor], torch.Tensor]


def jvp(f: BlockMap, x: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    r"""Jacobian-vector products :math:`\partial f/\partial x\; v` for many directions.

    Parameters
    ----------
    f
        A block map.
    x
        (prompt, feature).
    directions
        (direction, feature), shared by all prompts, or (prompt, direction, feature).

    Returns
    -------
    torch.Tensor
        (prompt, direction, feature).
    """
    outputs = []
    for primal, tangent in _chunks(x, directions):
        outputs.append(torch.func.jvp(f, (primal,), (tangent,))[1])
    return torch.cat(outputs, dim=1)


def vjp(f: BlockMap, x: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    r"""Vector-Jacobian products :math:`w^\top \partial f/\partial x` for many directions.

    Same shapes as `jvp`: (prompt, direction, feature) out.
    """
    outputs = []
    for primal, cotangent in _chunks(x, directions):
        with torch.enable_grad():
            primal.requires_grad_()
            outputs.append(torch.autograd.grad(f(primal), primal, cotangent)[0])
    return torch.cat(outputs, dim=1)


def _chunks(
    x: torch.Tensor, directions: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Copies of x beside slices of the directions, at most `ROWS` rows at a time."""
    if directions.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"`directions` must have {x.shape[-1]} features in the last dim; got shape "
            f"{tuple(directions.shape)}. Transpose them: one direction per row."
        )
    if directions.dim() == 2:
        directions = directions.expand(x.shape[0], *directions.shape)
    for part in directions.split(max(1, ROWS // x.shape[0]), dim=1):
        # forward-mode AD refuses an expanded primal: its rows share memory
        yield x[:, None, :].expand_as(part).clone(), part.contiguous()


def jacobian(f: BlockMap, x: torch.Tensor) -> torch.Tensor:
    """Full Jacobian of a block for every prompt: (prompt, state_next, state)."""
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return vjp(f, x, identity)


def mean_jvp(model: "DepthModel", texts: "Texts", directions: xr.DataArray) -> xr.DataArray:
    r"""The mean Jacobian of every layer times given directions: :math:`\bar A_l V_l`.

    Prompts are streamed: memory does not grow with their number, and no H x H matrix is formed.

    Parameters
    ----------
    model, texts
        The model and the prompts that are averaged.
    directions
        (layer, direction, feature): V_l, one direction per row.

    Returns
    -------
    xr.DataArray
        (layer, direction, feature).
    """
    return _mean_product(model, texts, directions, "jvp")


def mean_vjp(model: "DepthModel", texts: "Texts", directions: xr.DataArray) -> xr.DataArray:
    r"""The transposed mean Jacobian of every layer times directions: :math:`\bar A_l^\top W_l`.

    As `mean_jvp`; ``directions`` (layer, direction, feature) live at the output of each layer.
    """
    return _mean_product(model, texts, directions, "vjp")


def _mean_product(model, texts, directions: xr.DataArray, product: str) -> xr.DataArray:
    dims = ("layer", "direction", "feature")
    rows = torch.as_tensor(directions.transpose(*dims).values).to(model.device, model.dtype)
    if rows.shape[0] != model.n_layers:
        raise ValueError(
            f"`directions` must have {model.n_layers} layers; got {rows.shape[0]}. "
            "Give the same ones to every layer by broadcasting."
        )
    total = torch.zeros(rows.shape, dtype=torch.float64, device=model.device)
    for run in model.stream(texts, "mean Jacobian"):
        for block in run.blocks:
            total[block.layer] += getattr(block, product)(rows[block.layer]).double().sum(0)
    return xr.DataArray((total / len(texts)).cpu().numpy(), dims=dims)


def linear_gains(model: "DepthModel", texts: "Texts", concept: xr.Dataset) -> xr.Dataset:
    r"""Exact linear gain of every layer and prompt, by one backward pass per batch.

    :math:`g_l = (\partial y_L/\partial x_l)\, v_l` with :math:`y_L = v_L^\top x_L`: the shift of
    the readout per unit injection at the input of block l, to first order.

    Parameters
    ----------
    model, texts
        The model and the prompts.
    concept
        ``direction`` (depth, feature).

    Returns
    -------
    xr.Dataset
        ``gain`` (prompt, layer), unit of the readout per unit of the state;
        ``state_norm`` (prompt, layer), norm of the nominal x_l; ``readout`` (prompt), nominal y_L.
    """
    v = model.directions(concept)
    gain = np.empty((len(texts), model.n_layers))
    norm = np.empty_like(gain)
    readout = np.empty(len(texts))
    for run in model.stream(texts, "linear gains"):
        gradients = _readout_gradients(run, v[-1])
        rows = run.prompts
        gain[rows] = torch.einsum("lpf,lf->pl", gradients, v[:-1]).double().cpu().numpy()
        norm[rows] = run.x[:-1].norm(dim=-1).T.double().cpu().numpy()
        readout[rows] = (run.x[-1] @ v[-1]).double().cpu().numpy()
    return xr.Dataset(
        {
            "gain": (("prompt", "layer"), gain),
            "state_norm": (("prompt", "layer"), norm),
            "readout": ("prompt", readout),
        },
        coords={"layer": np.arange(model.n_layers)},
        attrs={
            **model.provenance("linear_gains"),
            "kind": "exact linear",
            "prompts_sha256": texts.sha256,
        },
    )


def _readout_gradients(run, v_last: torch.Tensor) -> torch.Tensor:
    """Gradient of y_L with respect to the input of every block: (layer, prompt, feature)."""
    with torch.enable_grad():
        # a zero added to the input of each block collects the gradient at that depth
        taps = [torch.zeros_like(block.x).requires_grad_() for block in run.blocks]
        x = run.x[0]
        for block, tap in zip(run.blocks, taps, strict=True):
            x = block((x + tap)[:, None, :])[:, 0, :]
        gradients = torch.autograd.grad((x @ v_last).sum(), taps)
    return torch.stack(gradients)
