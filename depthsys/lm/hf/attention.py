"""The last token's attention and the caches a block sees in its place. Free of Hugging Face."""

import contextlib
from contextvars import ContextVar
from typing import Any

import torch

LAST_TOKEN_ATTENTION = "depthsys_last_token"


def last_token_attention(
    module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None, **_
):
    """Attention of many copies of the last token: each sees the frozen context and itself.

    ``query`` is (prompt, head, copy, channel); ``key`` and ``value`` hold one row per copy, the
    context comes from the `FrozenCache` in use. The copies do not see each other, so one call
    evaluates a block at many states of the last token, with one set of frozen keys and values
    and no repetition of them. ``s_aux`` (head) are attention sinks: logits without a value.
    """
    context = _IN_USE.get()
    if context is None:
        raise LookupError(
            "the model must not be called in one thread while depthsys works with it in another, "
            "which switches its attention meanwhile; it was. Take turns, or load it twice."
        )
    if key is not context.handed[0] or value is not context.handed[1]:
        # DeepSeek expands latents that come from the cache: the context would need it too
        raise AlteredKeysError("the block changes keys or values between its cache and attention")
    context.has_served = True
    n_prompts, n_heads, n_copies, n_channels = query.shape
    n_groups = key.shape[1]
    scaling = n_channels**-0.5 if scaling is None else scaling
    # the heads that share a key go side by side: (prompt, group, copy, head in group, channel)
    query = query.unflatten(1, (n_groups, -1)).transpose(2, 3)
    product: Any = _SharedProduct.apply
    if functions_with_held_weights() is not None:
        # then what comes from the context has no derivative that directions could share
        product, query, key = torch.matmul, query.detach(), key.detach()
    scores = product(query.flatten(2, 3), context.key.mT).unflatten(2, (n_copies, -1))
    own = (query * key[:, :, :, None]).sum(-1, keepdim=True)
    scores = torch.cat([scores, own], dim=-1) * scaling
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, :, None, :]
    if s_aux is not None:
        sinks = s_aux.view(1, n_groups, 1, -1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = torch.softmax(scores, dim=-1)
    n_context = context.key.shape[2]
    mixed = product(weights[..., :n_context].flatten(2, 3), context.value)
    mixed = mixed.unflatten(2, (n_copies, -1))
    mixed = mixed + weights[..., n_context : n_context + 1] * value[:, :, :, None]
    output = mixed.permute(0, 2, 1, 3, 4).reshape(n_prompts, n_copies, n_heads, -1)
    return output, None


class _SharedProduct(torch.autograd.Function):
    """``rows @ matrix`` with a constant matrix that many directions of a derivative share.

    Under vmap a plain product would repeat the matrix for every direction; here the directions
    become further rows of one product.
    """

    @staticmethod
    def forward(rows, matrix):
        return rows @ matrix

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, *grads):
        (matrix,) = ctx.saved_tensors
        return _SharedProduct.apply(grads[0], matrix.mT), None

    @staticmethod
    def vmap(info, in_dims, *args):
        rows, matrix = args
        if in_dims[1] is not None:
            raise NotImplementedError("the frozen context does not depend on the direction")
        rows = rows.movedim(in_dims[0], -2)
        product = (rows.flatten(-3, -2) @ matrix).unflatten(-2, rows.shape[-3:-1])
        return product, product.dim() - 2


class AlteredKeysError(NotImplementedError):
    """The attention got other keys or values than the cache returned."""


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
        if self.key is not None:
            raise NotImplementedError("the block stores keys and values more than once")
        self.key, self.value = key_states, value_states
        return key_states, value_states


class FrozenCache(_StandInCache):
    """Frozen keys and values (prompt, group, token, channel) of the context; stores nothing."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor):
        self.key, self.value = key, value
        self.handed: tuple[Any, Any] = (None, None)
        self.has_served = False

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """The new rows alone: `last_token_attention` adds the context."""
        self.handed = key_states, value_states
        return key_states, value_states

    @contextlib.contextmanager
    def in_use(self):
        """Serve `last_token_attention` meanwhile."""
        token = _IN_USE.set(self)
        try:
            yield self
        finally:
            _IN_USE.reset(token)
            self.handed = (None, None)


class RepeatingCache(_StandInCache):
    """Frozen context followed by the new row, for blocks with an attention of their own.

    Each prompt's context is repeated for its ``n_copies`` copies, which are rows of the batch.
    """

    def __init__(self, frozen: FrozenCache, n_copies: int):
        self.frozen, self.n_copies = frozen, n_copies

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Context followed by the new row."""
        key, value = self.frozen.key, self.frozen.value
        if self.n_copies > 1:
            key = key.repeat_interleave(self.n_copies, dim=0)
            value = value.repeat_interleave(self.n_copies, dim=0)
        return torch.cat([key, key_states], dim=-2), torch.cat([value, value_states], dim=-2)


_IN_USE: ContextVar[FrozenCache | None] = ContextVar("frozen context in use", default=None)
# by configuration, the attention functions whose weights are held at their values; else None
_HELD: ContextVar[dict[int, str] | None] = ContextVar("attention weights held", default=None)


def functions_with_held_weights() -> dict[int, str] | None:
    """Names by configuration where the weights of attention are held at their values here."""
    return _HELD.get()


@contextlib.contextmanager
def held_weights(names: dict[int, str]):
    """Hold the weights of attention meanwhile; ``names`` are those of the functions in use."""
    token = _HELD.set(names)
    try:
        yield
    finally:
        _HELD.reset(token)
