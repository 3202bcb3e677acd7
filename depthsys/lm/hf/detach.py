r"""A block whose norms, attention weights and gates are held at their values: then it is linear.

A transformer block is made of linear maps, and of factors that depend on the state: denominators
of norms, weights of attention, gates of activations. Where the factors are held the block is linear
in the states that come in and in its biases together, so that products of its derivative with
these are its own output. Only derivatives change: what a switched module gives is, to the bit, what
it gives without,

.. math:: y + r \odot (x - x), \qquad r \odot x = y,

with y and r held. r is the ratio of what the module itself gives and gets, so that this holds to
the rounding of float64 although Hugging Face computes norms in float32. No module is replaced and
no file of transformers touched: forward hooks, and an attention function that calls the one in use.
"""

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from depthsys.lm.hf.attention import functions_with_held_weights

DETACHED_ATTENTION = "depthsys_detached"

# attributes in which modules of a block keep an activation, beside those made of a class of
# activations
_ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation_func", "activation", "gelu_impl")
_MODULES_OF_ACTIVATIONS = ("transformers.activations", "torch.nn.modules.activation")
# of a gated MLP: the child that is the factor beside the gate, or both in one, the gate first
_UP, _BOTH = ("up_proj", "w3"), "gate_up_proj"
# the method of attentions without Hugging Face's interface that gets queries, keys and values
_OWN_ATTENTION = "_attn"
# Numbers below are moved to it before a ratio is taken: a square of it is still one of float32.
_SMALLEST = torch.finfo(torch.float32).tiny ** 0.5


@dataclass(frozen=True)
class Switches:
    """What is switched in one block, found once.

    Attributes
    ----------
    hooks
        Modules, and what each gives in place of its output, by the choice of `Linearisation.linear`
        for which it is switched; None for both.
    attentions
        Modules with an attention of their own.
    """

    hooks: list[tuple[nn.Module, Callable, str | None]]
    attentions: list[Any]

    @classmethod
    def of(cls, block: nn.Module, width: int) -> "Switches":
        """Those of a block of states of that width, whose weights are there."""
        hooks: list[tuple[nn.Module, Callable, str | None]] = []
        for module in block.modules():
            if _is_norm(module):
                hooks.append((module, _norm_hook(module, width), None))
            hooks += _activation_hooks(module)
        return cls(hooks, own_attentions(block))

    @contextlib.contextmanager
    def on(self, linear: str) -> Iterator[int]:
        """Switched meanwhile; gives the number of hooks."""
        with contextlib.ExitStack() as stack:
            wanted = [(m, hook) for m, hook, choice in self.hooks if choice in (None, linear)]
            for module, hook in wanted:
                stack.callback(module.register_forward_hook(hook).remove)
            for module in self.attentions:
                stack.callback(vars(module).pop, _OWN_ATTENTION, None)
                vars(module)[_OWN_ATTENTION] = partial(
                    _with_held_weights, getattr(module, _OWN_ATTENTION)
                )
            yield len(wanted)


# ------------------------------------------------------------------------------- factors


def _with_derivative(y: torch.Tensor, ratio: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The value y to the bit, with the derivative of ratio * x."""
    return y.detach() + ratio.detach() * (x - x.detach())


def _not_zero(x: torch.Tensor) -> torch.Tensor:
    """The same, with numbers that are zero or nearly so moved away from it."""
    least = max(_SMALLEST, torch.finfo(x.dtype).smallest_normal)
    x = x.detach()
    return torch.where(x.abs() < least, torch.where(x < 0, -least, least).to(x), x)


def _ratio_hook(module: Any, args: tuple, y: torch.Tensor) -> torch.Tensor:
    """Every component times a held factor: RMSNorm of any form, activations."""
    (x,) = args
    with torch.no_grad():
        moved = _not_zero(x)
        ratio = module.forward(moved) / moved
    return _with_derivative(y, ratio, x)


def _centred_hook(module: Any, args: tuple, y: torch.Tensor) -> torch.Tensor:
    """What deviates from the mean times a held factor: LayerNorm of other classes than torch's."""
    (x,) = args
    centred = x - x.mean(-1, keepdim=True)
    bias = getattr(module, "bias", None)
    with torch.no_grad():
        moved = _not_zero(centred)
        ratio = (y.detach() if bias is None else y.detach() - bias.detach()) / moved
    return _plus_bias(_with_derivative(y, ratio, centred), bias)


def _layer_norm_hook(module: nn.LayerNorm, args: tuple, y: torch.Tensor) -> torch.Tensor:
    (x,) = args
    dims = tuple(range(-len(module.normalized_shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    with torch.no_grad():
        held = centred.detach()
        ratio = torch.rsqrt(held.square().mean(dims, keepdim=True) + module.eps)
        if module.weight is not None:
            ratio = ratio * module.weight
    return _plus_bias(_with_derivative(y, ratio, centred), module.bias)


def _plus_bias(y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The value y to the bit, with the derivative of y + bias."""
    return y if bias is None else y + (bias - bias.detach())


def _held(module: Any, args: tuple, y: torch.Tensor) -> torch.Tensor:
    return y.detach()


def _second_half_held(module: Any, args: tuple, y: torch.Tensor) -> torch.Tensor:
    gate, up = y.chunk(2, dim=-1)
    return torch.cat([gate, up.detach()], dim=-1)


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a norm itself, and not something that holds norms."""
    return "Norm" in type(module).__name__ and next(module.children(), None) is None


def _norm_hook(module: Any, width: int) -> Callable:
    if isinstance(module, nn.LayerNorm):
        return _layer_norm_hook
    return _centred_hook if _centres(module, width) else _ratio_hook


@torch.no_grad()
def _centres(module: Any, width: int) -> bool:
    """Whether a norm takes the mean away: then it does not see a shift of all components."""
    weight = getattr(module, "weight", None)
    shape = (3, width) if weight is None else (3, *weight.shape)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if weight is not None:
        x = x.to(weight)
    y, shifted = module.forward(x), module.forward(x + 1)
    return bool((y - shifted).float().norm() < 0.1 * y.float().norm())


def _activation_hooks(module: Any) -> list[tuple[nn.Module, Callable, str | None]]:
    """Of a module that holds activations."""
    found: list[tuple[nn.Module, Callable, str | None]] = []
    children = dict(module.named_children())
    up = [children[name] for name in _UP if name in children]
    is_gated = bool(up) or _BOTH in children
    for name, child in children.items():
        if name not in _ACTIVATIONS and type(child).__module__ not in _MODULES_OF_ACTIVATIONS:
            continue
        if next(child.children(), None) is not None:
            continue
        if not is_gated:
            found.append((child, _ratio_hook, None))
            continue
        found += [(child, _held, "up"), (child, _ratio_hook, "gate")]
        found += [(one, _held, "gate") for one in up]
        if not up:
            found.append((children[_BOTH], _second_half_held, "gate"))
    return found


# ------------------------------------------------------------------------------- attention


def own_attentions(block: nn.Module) -> list[Any]:
    """Modules of a block with an attention of their own that can be given held queries and keys."""
    return [m for m in block.modules() if callable(getattr(m, _OWN_ATTENTION, None))]


def _with_held_weights(function: Callable, query, key, value, attention_mask=None, *args, **named):
    """An attention whose weights, made of queries and keys alone, have no derivative."""
    mask = _with_open_rows(attention_mask)
    return function(query.detach(), key.detach(), value, mask, *args, **named)


def _with_open_rows(mask: torch.Tensor | None) -> torch.Tensor | None:
    """The mask, open where it has no open place at all: at padding, which nobody reads.

    There weights are not numbers, and would stay so times a derivative of zero.
    """
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        return mask | ~mask.any(-1, keepdim=True)
    closed = mask.amax(-1, keepdim=True) <= torch.finfo(mask.dtype).min / 2
    return torch.where(closed, torch.zeros_like(mask), mask)


def detached_attention(module, query, key, value, attention_mask, **kwargs):
    """The attention that would be called here, its weights held."""
    names = functions_with_held_weights()
    if names is None:
        raise LookupError(
            "the model must not be called in one thread while depthsys works with it in another, "
            "which switches its attention meanwhile; it was. Take turns, or load it twice."
        )
    # of eager attention a family has its own, which its attention takes from its own file
    own = inspect.unwrap(type(module).forward).__globals__.get("eager_attention_forward")
    name = names[id(module.config)]
    if name == "eager" and own is None:
        raise NotImplementedError(f"{type(module).__name__} has no eager attention to be called")
    function: Any = own if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    with sdpa_kernel(SDPBackend.MATH):  # the others have no derivative forwards
        return _with_held_weights(
            partial(function, module), query, key, value, attention_mask, **kwargs
        )


# ------------------------------------------------------------------------------- biases


@functools.cache
def ready_to_move() -> None:
    """The first forward-mode derivative of a process loads what torch itself calls outdated."""
    with warnings.catch_warnings(), forward_mode.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        one = torch.ones(1)
        forward_mode.make_dual(one, one.clone())


@contextlib.contextmanager
def moved_biases(block: nn.Module) -> Iterator[None]:
    """Let every bias of a block move along itself, in a forward-mode derivative."""
    places = [
        (module._parameters, name, bias)
        for module in block.modules()
        for name, bias in module._parameters.items()
        if bias is not None and name.endswith("bias")
    ]
    try:
        for held, name, bias in places:
            moving: Any = forward_mode.make_dual(bias.detach(), bias.detach().clone())
            held[name] = moving
        yield
    finally:
        for held, name, bias in places:
            held[name] = bias


def tangent_of(x: torch.Tensor) -> torch.Tensor:
    """How it moves in a forward-mode derivative; zero where it does not."""
    primal, tangent = forward_mode.unpack_dual(x)
    return torch.zeros_like(primal) if tangent is None else tangent
