"""Exact derivatives of one block on the last token, and the gains that follow from them.

A *block map* ``f`` takes states (prompt, copy, feature) to states of the same shape, copy by
copy; ``x`` (prompt, feature) is the nominal input. Derivatives are with respect to one copy.
"""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from depthsys.lm.readouts import LogitDifference, checked_readout

if TYPE_CHECKING:
    from depthsys.lm.frozen import FrozenRun
    from depthsys.lm.model import DepthModel
    from depthsys.lm.prompts import Texts

# Rows (prompts x directions) that go through a block at once: large enough for full
# matrix-product speed, small enough that the activations of a GPT-2-large block stay below 0.3 GB.
ROWS = 1024
# The same for full Jacobians, whose result needs memory too: half costs no time.
JACOBIAN_ROWS = 512

BlockMap = Callable[[torch.Tensor], torch.Tensor]


class Linearised:
    r"""A block map linearised at ``x``: products with its Jacobian for any number of directions.

    The map is evaluated once per prompt, and each product costs one matrix product per weight
    and direction. Transposed products are reverse-mode derivatives; since
    :math:`u \mapsto J^\top u` is linear, its own reverse-mode derivative is
    :math:`v \mapsto J v` (the "double backward" product, J. Townsend, 2017, "A new trick for
    calculating Jacobian vector products"). This needs no forward-mode rule of any operation, and
    the directions share everything that depends on ``x`` alone.

    Parameters
    ----------
    f
        A block map.
    x
        (prompt, feature).
    """

    def __init__(self, f: BlockMap, x: torch.Tensor):
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "derivatives must be taken outside torch.inference_mode(); it keeps no graph. "
                "Use torch.no_grad(), or neither."
            )
        self.x = x
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            self._x = x.detach()[:, None].clone().requires_grad_()
            self._y = f(self._x)

    def jvp(self, directions: torch.Tensor) -> torch.Tensor:
        r"""Products :math:`J v` (prompt, direction, feature), as `linearize.jvp`."""
        return self._products(*self._pull_back, directions)

    def vjp(self, directions: torch.Tensor) -> torch.Tensor:
        r"""Products :math:`J^\top w` (prompt, direction, feature), as `linearize.vjp`."""
        return self._products(self._y, self._x, directions)

    @cached_property
    def _pull_back(self) -> tuple[torch.Tensor, torch.Tensor]:
        """J'u and u, whose derivative is J; not needed by transposed products."""
        with torch.enable_grad(), torch.autocast(self.x.device.type, enabled=False):
            u = torch.zeros_like(self._y).requires_grad_()
            return torch.autograd.grad(self._y, self._x, u, create_graph=True)[0], u

    def _products(self, output, source, directions: torch.Tensor) -> torch.Tensor:
        n_prompts, _, n_features = self._x.shape
        check_directions(directions, n_prompts, n_features)
        directions = directions.expand(n_prompts, *directions.shape[-2:])
        n_parts = max(1, -(-n_prompts * directions.shape[1] // ROWS))
        outputs = []
        for part in directions.tensor_split(min(n_parts, directions.shape[1] or 1), dim=1):
            seeds = part.transpose(0, 1)[:, :, None].contiguous()
            # not is_grads_batched: its older vmap loops over directions in many operations
            with torch.autocast(seeds.device.type, enabled=False):
                product = torch.func.vmap(
                    lambda seed: torch.autograd.grad(output, source, seed, retain_graph=True)[0]
                )(seeds)
            outputs.append(product[:, :, 0].transpose(0, 1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


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
    return Linearised(f, x).jvp(directions)


def vjp(f: BlockMap, x: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    r"""Vector-Jacobian products :math:`w^\top \partial f/\partial x` for many directions.

    Same shapes as `jvp`: (prompt, direction, feature) out.
    """
    return Linearised(f, x).vjp(directions)


def jacobian(linear: Linearised, chunk: int | None = None) -> torch.Tensor:
    """Full Jacobian of a block for every prompt: (prompt, state_next, state).

    ``chunk`` rows of each Jacobian are computed at a time (None: as many as make
    `JACOBIAN_ROWS` rows over all prompts); fewer need less memory.
    """
    x = linear.x
    n_prompts, n_features = x.shape
    if chunk is not None and chunk < 1:
        raise ValueError(f"`chunk` must be >= 1 rows; got {chunk}. None chooses.")
    size = max(1, JACOBIAN_ROWS // max(1, n_prompts)) if chunk is None else min(chunk, n_features)
    identity = torch.eye(n_features, dtype=x.dtype, device=x.device)
    whole = x.new_empty(n_prompts, n_features, n_features)
    for start in range(0, n_features, size):
        whole[:, start : start + size] = linear.vjp(identity[start : start + size])
    return whole


def as_directions(directions: Any, like: torch.Tensor) -> torch.Tensor:
    """Real, finite directions as a tensor of the dtype and device of ``like``."""
    if not isinstance(directions, torch.Tensor):
        # torch takes no negative strides
        directions = torch.as_tensor(np.ascontiguousarray(directions))
    if directions.is_complex():
        raise TypeError(
            "`directions` must be real; got complex. Multiply the real and imaginary parts."
        )
    directions = directions.to(like)
    if not bool(torch.isfinite(directions).all()):
        raise ValueError("`directions` must be finite; got NaN or infinity. Leave those out.")
    return directions


def check_directions(directions: torch.Tensor, n_prompts: int, n_features: int) -> None:
    """ValueError unless these are (direction, feature) or (prompt, direction, feature)."""
    shape = tuple(directions.shape)
    if directions.dim() == 1:
        raise ValueError(
            f"`directions` must be rows, (direction, feature); got shape {shape}. "
            "Write v[None] for one direction."
        )
    if directions.dim() not in (2, 3) or shape[-1] != n_features:
        raise ValueError(
            f"`directions` must have {n_features} features in the last dim, (direction, feature) "
            f"or (prompt, direction, feature); got shape {shape}. Transpose them: one direction "
            "per row."
        )
    if directions.dim() == 3 and shape[0] != n_prompts:
        raise ValueError(
            f"`directions` must be for {n_prompts} prompts; got shape {shape}. Leave the prompt "
            "dim out to share them."
        )


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
    like = torch.empty(0, device=model.device, dtype=model.dtype)
    if "layer" in directions.coords:
        directions = directions.sortby("layer")
    rows = as_directions(directions.transpose(*dims).values, like)
    if rows.shape[0] != model.n_layers:
        raise ValueError(
            f"`directions` must have {model.n_layers} layers; got {rows.shape[0]}. "
            "Give the same ones to every layer by broadcasting."
        )
    total = torch.zeros(rows.shape, dtype=torch.float64, device=model.device)
    for run in model.stream(texts, "mean Jacobian"):
        for block in run.blocks:
            total[block.layer] += getattr(block, product)(rows[block.layer]).double().sum(0)
    attrs = {**model.provenance(f"mean_{product}"), **model.which(texts)}
    mean = (total / len(texts)).cpu().numpy()
    return xr.DataArray(mean, dims=dims, coords={"layer": np.arange(len(mean))}, attrs=attrs)


def io_map(run: "FrozenRun", inputs: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
    r"""The exact linear input-output map of every prompt, from the outputs backwards.

    Rows :math:`s \leftarrow A_l^\top s` are carried from every depth that is read to layer 0, all
    in one pass: :math:`G[k, l] = C_k A_{k-1} \cdots A_l V_l`.

    Parameters
    ----------
    run
        A batch of prompts.
    inputs
        V_l as rows (depth, input, feature); None for free inputs, V_l = I.
    rows
        C_k (depth, prompt, output, feature).

    Returns
    -------
    torch.Tensor
        (prompt, depth, output, layer, input), float64.
    """
    n_depths, n_prompts, n_outputs, n_features = rows.shape
    n_inputs = n_features if inputs is None else inputs.shape[1]
    shape = (n_prompts, n_depths, n_outputs, n_depths - 1, n_inputs)
    whole = torch.zeros(shape, dtype=torch.float64, device=rows.device)
    carried, depths = rows[0][:, :0], []  # one block of n_outputs rows per depth
    for block in reversed(run.blocks):
        layer = block.layer
        if bool((rows[layer + 1] != 0).any()):
            carried = torch.cat([rows[layer + 1], carried], dim=1)
            depths.insert(0, layer + 1)
        if depths:
            carried = block.vjp(carried)
            here = carried if inputs is None else carried @ inputs[layer].mT
            whole[:, depths, :, layer] = here.double().unflatten(1, (len(depths), n_outputs))
    return whole


def linear_gains(
    model: "DepthModel",
    texts: "Texts",
    concept: xr.Dataset,
    *,
    readout: "str | LogitDifference | xr.DataArray" = "concept",
) -> xr.Dataset:
    r"""Exact linear gain of every layer and prompt, by one backward pass per batch.

    :math:`g_l = (\partial y_L/\partial x_l)\, v_l`: the shift of the readout at the last depth per
    unit injection at the input of block l, to first order.

    Parameters
    ----------
    model, texts
        The model and the prompts.
    concept
        ``direction`` (depth, feature), or (depth, input, feature).
    readout
        See `identify`; of a profile the last depth counts.

    Returns
    -------
    xr.Dataset
        ``gain`` (prompt, layer), unit of the readout per unit of the state, with the further dims
        output and input where there are several; ``state_norm`` (prompt, layer), norm of the
        nominal x_l; ``readout`` (prompt), nominal y_L, with a dim output where there are several.
    """
    v = model.directions(concept)
    reader = checked_readout(model, readout, concept)
    gain = np.empty((len(texts), model.n_layers, reader.n_outputs, v.shape[1]))
    norm = np.empty(gain.shape[:2])
    value = np.empty((len(texts), reader.n_outputs))
    for run in model.stream(texts, "linear gains"):
        rows = reader.rows_at(model, run.x[-1]).clone()
        rows[:-1] = 0
        whole = io_map(run, v, rows)[:, -1].transpose(1, 2)
        gain[run.prompts] = whole.cpu().numpy()
        norm[run.prompts] = run.x[:-1].norm(dim=-1).T.double().cpu().numpy()
        with torch.no_grad():
            value[run.prompts] = reader.values(model, run.x[-1][:, None])[:, 0].cpu().numpy()
    return xr.Dataset(
        {
            "gain": squeezed(gain, "prompt", "layer", "output", "input"),
            "state_norm": (("prompt", "layer"), norm),
            "readout": squeezed(value, "prompt", "output"),
        },
        coords={"layer": np.arange(model.n_layers)},
        attrs={
            **model.provenance("linear_gains"),
            "kind": "exact linear",
            "readout": reader.name,
            **model.which(texts),
        },
    )


def squeezed(values: np.ndarray, *dims: str) -> xr.DataArray:
    """The values without the dims output and input where there is only one."""
    array = xr.DataArray(values, dims=dims)
    single = [d for d in ("output", "input") if array.sizes.get(d) == 1]
    return array.squeeze(single)
