"""The last token with frozen context: its attention, its caches, and the maps of a run.

Free of Hugging Face: `depthsys.lm.model` hands in the modules and their arguments.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from depthsys.lm.linearize import jacobian, jvp, vjp

if TYPE_CHECKING:
    from depthsys.lm.model import DepthModel

LAST_TOKEN_ATTENTION = "depthsys_last_token"


def last_token_attention(
    module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None, **_
):
    """Attention of many copies of the last token: each sees the context and itself.

    ``query`` is (prompt, head, copy, channel); ``key`` and ``value`` hold the context followed
    by one row per copy. The copies do not see each other, so one call evaluates a block at many
    states of the last token, with one set of frozen keys and values and no repetition of them.
    """
    if s_aux is not None:
        raise NotImplementedError("attention sinks are not supported yet")
    n_prompts, n_heads, n_copies, n_channels = query.shape
    n_groups = key.shape[1]
    scaling = n_channels**-0.5 if scaling is None else scaling
    context, own = key[:, :, :-n_copies], key[:, :, -n_copies:, None]
    # the heads that share a key go side by side: (prompt, group, copy, head in group, channel)
    query = query.unflatten(1, (n_groups, -1)).transpose(2, 3)
    rows = query.flatten(2, 3)
    scores = rows @ context.transpose(-1, -2)
    scores = scores.unflatten(2, (n_copies, -1))
    scores = torch.cat([scores, (query * own).sum(-1, keepdim=True)], dim=-1) * scaling
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, :, None, :]
    weights = torch.softmax(scores, dim=-1)
    mixed = weights[..., :-1].flatten(2, 3) @ value[:, :, :-n_copies]
    mixed = mixed.unflatten(2, (n_copies, -1))
    mixed = mixed + weights[..., -1:] * value[:, :, -n_copies:, None]
    output = mixed.permute(0, 2, 1, 3, 4).reshape(n_prompts, n_copies, n_heads, -1)
    return output, None


class _StandInCache:
    """What a block sees instead of a cache; anything but ``update`` is a family we do not know."""

    is_compileable = False

    def __getattr__(self, name: str):
        raise AttributeError(
            f"the block asks its cache for {name!r}, which a replay with frozen context does not "
            "have (recurrent layers, keys and values shared between layers, ...)"
        )


class RecordingCache(_StandInCache):
    """Keeps the keys and values of a whole-sequence pass through one block."""

    def __init__(self) -> None:
        self.key: Any = None
        self.value: Any = None

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Note the keys and values of the sequence."""
        self.key, self.value = key_states, value_states
        return key_states, value_states


class FrozenCache(_StandInCache):
    """Serves frozen keys and values, and stores nothing: safe to call any number of times."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor):
        self.key, self.value = key, value

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Context followed by the new rows."""
        key = torch.cat([self.key, key_states], dim=-2)
        return key, torch.cat([self.value, value_states], dim=-2)


@dataclass(frozen=True)
class FrozenBlock:
    """Block ``layer`` as a map of the last token's state, for prompts of one length.

    Attributes
    ----------
    layer
        0..L-1.
    prompts
        Row numbers of these prompts among those that were asked for.
    x, x_next
        (prompt, feature): nominal state before and after the block.
    """

    layer: int
    prompts: np.ndarray
    x: torch.Tensor
    x_next: torch.Tensor
    _model: "DepthModel"
    _call: tuple[tuple, dict]
    _cache: FrozenCache

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """States (prompt, copy, feature) after the block; the copies are independent."""
        with self._model.attention(LAST_TOKEN_ATTENTION):
            return self._model.call_block(self.layer, self._call, states, self._cache)

    def jvp(self, directions: torch.Tensor) -> torch.Tensor:
        """See `linearize.jvp`."""
        return jvp(self, self.x, directions)

    def vjp(self, directions: torch.Tensor) -> torch.Tensor:
        """See `linearize.vjp`."""
        return vjp(self, self.x, directions)

    def jacobian(self) -> torch.Tensor:
        """See `linearize.jacobian`."""
        return jacobian(self, self.x)


@dataclass(frozen=True)
class FrozenRun:
    """The nominal run of prompts of one length: one `FrozenBlock` per layer.

    ``x`` is (depth, prompt, feature); ``prompts`` holds row numbers.
    """

    blocks: list[FrozenBlock]
    prompts: np.ndarray
    x: torch.Tensor


@dataclass(frozen=True)
class Run:
    """The nominal run of prompts of any lengths, kept in memory with its frozen context.

    Maps take directions (direction, feature), shared by the prompts, or (prompt, direction,
    feature), and give float tensors on the model's device.
    """

    batches: list[FrozenRun]
    n_prompts: int

    @property
    def states(self) -> xr.DataArray:
        """Nominal states (depth, prompt, feature), depth 0..L, before the final norm."""
        first = self.batches[0].x
        states = np.empty((first.shape[0], self.n_prompts, first.shape[2]))
        for batch in self.batches:
            states[:, batch.prompts] = batch.x.double().cpu().numpy()
        dims = ("depth", "prompt", "feature")
        return xr.DataArray(states, dims=dims, coords={"depth": np.arange(len(first))})

    def jvp(self, layer: int, directions: Any) -> torch.Tensor:
        """Jacobian of block ``layer`` times directions: (prompt, direction, feature)."""
        return self._each(layer, lambda block, d: block.jvp(d), directions)

    def vjp(self, layer: int, directions: Any) -> torch.Tensor:
        """Transposed Jacobian of block ``layer`` times directions: (prompt, direction, feature)."""
        return self._each(layer, lambda block, d: block.vjp(d), directions)

    def jacobian(self, layer: int) -> torch.Tensor:
        """Full Jacobian of block ``layer``: (prompt, state_next, state)."""
        return self._each(layer, lambda block, _: block.jacobian(), None)

    def _each(self, layer, function, directions) -> torch.Tensor:
        n_layers = len(self.batches[0].blocks)
        if not 0 <= layer < n_layers:
            raise ValueError(f"`layer` must be in 0..{n_layers - 1}; got {layer}. Layers are maps.")
        x = self.batches[0].x
        if directions is not None:
            directions = torch.as_tensor(directions, dtype=x.dtype, device=x.device)
        outputs: Any = None
        for batch in self.batches:
            rows = torch.as_tensor(batch.prompts, device=x.device)
            part = directions
            if directions is not None and directions.dim() == 3:
                part = directions[rows]
            result = function(batch.blocks[layer], part)
            if outputs is None:
                outputs = result.new_empty((self.n_prompts, *result.shape[1:]))
            outputs[rows] = result
        return outputs
