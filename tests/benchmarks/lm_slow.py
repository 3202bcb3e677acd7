"""The other side of the comparisons: what a user writes without `depthsys`.

Nothing here imports `depthsys`.
"""

import contextlib
from collections.abc import Callable

import torch


@contextlib.contextmanager
def pushed(block, push: torch.Tensor):
    """Add a vector to the last token at the input of a block."""

    def hook(module, args):
        hidden = args[0].clone()
        hidden[:, -1] += push
        return (hidden, *args[1:])

    handle = block.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def hooked_gains(hf, ids: torch.Tensor, v: torch.Tensor, layer: int, eps: float) -> torch.Tensor:
    """Gain (prompt) of one layer: a forward of the whole batched sequence per sign.

    The language-model head is left out, so nothing is computed that is not needed.
    """
    readouts = []
    blocks = hf.transformer.h
    handle = blocks[-1].register_forward_hook(
        lambda module, args, out: readouts.append(out[:, -1] @ v[-1])
    )
    try:
        for sign in (1, -1):
            with pushed(blocks[layer], sign * eps * v[layer]):
                hf.transformer(ids, use_cache=False)
    finally:
        handle.remove()
    return ((readouts[0] - readouts[1]) / (2 * eps)).double().cpu()


class _Reached(Exception):
    """The forward pass has come to the block that is asked for."""


@torch.no_grad()
def block_inputs(hf, ids: torch.Tensor, layer: int) -> tuple[torch.Tensor, tuple, dict]:
    """The state (prompt, token, feature) and the other arguments a block gets in the model."""
    seen: list = []

    def stop(module, args, kwargs):
        seen.append((args[0].clone(), args[1:], kwargs))
        raise _Reached

    handle = hf.transformer.h[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with contextlib.suppress(_Reached):
            hf.transformer(ids, use_cache=False)
    finally:
        handle.remove()
    return seen[0]


def whole_sequence_map(hf, ids: torch.Tensor, layer: int) -> tuple[Callable, torch.Tensor]:
    """The last token after a block as a function of the whole sequence before it, and its input."""
    hidden, args, kwargs = block_inputs(hf, ids, layer)
    block = hf.transformer.h[layer]
    return lambda x: block(x, *args, **kwargs)[0, -1], hidden


def whole_sequence_jacobian(
    last_token: Callable, hidden: torch.Tensor, *, vectorize: bool
) -> torch.Tensor:
    """Jacobian (state_next, state) of the last token, cut out of that over the whole sequence."""
    J = torch.autograd.functional.jacobian(last_token, hidden, vectorize=vectorize)
    return J[:, 0, -1].clone()  # type: ignore[call-overload]
