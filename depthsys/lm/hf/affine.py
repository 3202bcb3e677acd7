"""Products of a detached block with its own inputs and biases: what it gives, if it is linear.

By forward-mode derivatives, one pass each: states, the values of the context and every bias of a
block move along themselves. No bias term is ever found as what is missing.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_mode
from torch import nn

from depthsys.lm.hf.attention import FrozenCache
from depthsys.lm.hf.blocks import Blocks
from depthsys.lm.hf.calls import Calls
from depthsys.lm.hf.checkpoint import find_parts
from depthsys.lm.hf.detach import moved_biases, ready_to_move, tangent_of
from depthsys.lm.precision import Arithmetic, wide
from depthsys.lm.switch import check_graph

# A detached block must give its own value to so many roundings of what it computes in, and to that
# part of it. Random blocks and SmolLM2 are below 5 roundings, but a block may take away most of a
# large state; a factor that is not held is off by a part of the value.
ROUNDINGS, MOST = 1e4, 0.1


@dataclass(frozen=True)
class Moved:
    """What a detached block makes of moving states.

    ``states`` (prompt, token, feature) is the product of its derivative with them. ``parts``
    (prompt) by name: how far the last token's output of the attention and of the MLP, as products
    with the same, are from their values.
    """

    states: torch.Tensor
    parts: dict[str, torch.Tensor]


@torch.no_grad()
def moved(
    blocks: Blocks,
    layer: int,
    calls: Calls,
    hidden: torch.Tensor,
    along: torch.Tensor,
    linear: str,
    *,
    parts: bool = False,
) -> Moved:
    """The product of a detached block at whole sequences with states ``along`` and its biases.

    ``hidden`` and ``along`` are (prompt, token, feature); padding moves as it is.
    """
    check_family(blocks, layer)
    found: dict[str, torch.Tensor] = {}
    with _moving(blocks, layer, linear) as block, contextlib.ExitStack() as stack:
        for name, module in find_parts(block).items() if parts else ():
            stack.enter_context(blocks.watched(module, _noting(found, name, hidden)))
        states = forward_mode.make_dual(hidden.clone(), along.clone())
        with _in_words(blocks, layer):
            after, _, _ = blocks.sequence(layer, calls, states)
        return Moved(tangent_of(after), found)


def pulled_back(
    blocks: Blocks,
    layer: int,
    calls: Calls,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    linear: str,
) -> torch.Tensor:
    """The transposed product of a detached block at whole sequences with rows.

    ``hidden`` and ``rows`` are (prompt, token, feature), the latter behind the block.
    """
    check_family(blocks, layer)
    with blocks.detached(layer, linear), _in_words(blocks, layer), torch.enable_grad():
        states = hidden.detach().clone().requires_grad_()
        after, _, _ = blocks.sequence(layer, calls, states)
        return torch.autograd.grad(after, states, rows.to(after))[0]


def _noting(
    found: dict[str, torch.Tensor], name: str, like: torch.Tensor
) -> Callable[[torch.Tensor], None]:
    def note(output: torch.Tensor) -> None:
        # OPT lets its tokens be rows
        value, made = (t.reshape(like.shape)[:, -1] for t in (output.detach(), tangent_of(output)))
        found[name] = relative_error(made, value)

    return note


def relative_error(found: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Norm of the difference over that of the value (..., feature), float64; 0 where both are 0."""
    found, value = wide(found).double(), wide(value).double()
    apart, size = (found - value).norm(dim=-1), value.norm(dim=-1)
    return torch.where(apart == 0, apart, apart / size)


def check_linear(
    blocks: Blocks,
    layer: int,
    calls: Calls,
    x: torch.Tensor,
    context: Callable[[], FrozenCache],
    linear: str,
) -> None:
    """ValueError unless a detached layer is linear in states (prompt, feature), context and biases.

    Looked at once for each layer.
    """
    if (layer, linear) in blocks.linearity:
        return
    check_family(blocks, layer)
    with torch.no_grad(), _moving(blocks, layer, linear), _in_words(blocks, layer):
        frozen = context()
        values = forward_mode.make_dual(frozen.value.detach(), frozen.value.detach().clone())
        states = x.detach()[:, None]
        after = blocks.last_token_unchecked(
            layer,
            calls,
            forward_mode.make_dual(states.clone(), states.clone()),
            FrozenCache(frozen.key, values),
        )
        error = float(relative_error(tangent_of(after), after.detach()).max())
    most = min(MOST, ROUNDINGS * Arithmetic(x.dtype, blocks.products).eps)
    if not error <= most:
        raise ValueError(
            "`kind` must be 'jacobian' for a block that is not linear with its norms, attention "
            f"weights and gates held; layer {layer} of {type(blocks.hf).__name__} is not: its "
            f"detached map misses its value by {error:.1e}, where {most:.0e} is allowed. It has a "
            "factor that is not known here."
        )
    blocks.linearity[layer, linear] = error


def check_family(blocks: Blocks, layer: int) -> None:
    """ValueError where it is known before that a detached block would not be linear."""
    why = None
    if blocks.has_experts(layer):
        why = "chooses among experts, whose shares depend on the state"
    elif not blocks.can_hold_attention(layer):
        why = "has an attention of its own, whose weights cannot be held from outside"
    if why is not None:
        raise ValueError(
            f"`kind` must be 'jacobian' for {type(blocks.hf).__name__}: layer {layer} {why}, so "
            "it has no detached map."
        )


@contextlib.contextmanager
def _moving(blocks: Blocks, layer: int, linear: str) -> Iterator[nn.Module]:
    """A detached block in a forward-mode derivative in which its biases move along themselves."""
    check_graph()
    blocks.weights.check()  # inside the biases are others
    ready_to_move()
    with blocks.detached(layer, linear), forward_mode.dual_level():
        block = blocks.module(layer)
        with moved_biases(block):
            yield block


@contextlib.contextmanager
def _in_words(blocks: Blocks, layer: int) -> Iterator[None]:
    """Say of what cannot be derived that it is the family's."""
    try:
        yield
    except (NotImplementedError, AttributeError, KeyError) as error:
        raise ValueError(
            f"`kind` must be 'jacobian' for {type(blocks.hf).__name__}: layer {layer} cannot be "
            f"detached ({type(error).__name__}: {error})."
        ) from error
