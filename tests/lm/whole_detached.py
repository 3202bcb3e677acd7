"""The detached model by explicit formulas, on whole sequences: written without depthsys.

Modules are replaced, not hooked: every norm by its formula with the denominator detached, every
activation by a module that detaches its gate, attention by a function of its own. Then
`tests.lm.families` takes dense Jacobians of the whole model by autograd.
"""

import contextlib
import types

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "tests_detached"
ONE_PLUS = ("Gemma", "Gemma2", "Gemma3")  # w stands for 1 + w
ACTIVATIONS = ("act_fn", "activation_fn", "act")


def attention(module, query, key, value, mask, scaling=None, softcap=None, **_):
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = query.detach() @ key.detach().mT
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    weights = torch.softmax(scores + mask, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _rms(self, x):
    eps = getattr(self, "variance_epsilon", getattr(self, "eps", None))
    factor = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps).detach()
    kind = type(self).__name__
    weight = self.weight + 1 if kind.removesuffix("RMSNorm") in ONE_PLUS else self.weight
    return x * factor * weight


def _centred(self, x):
    eps = getattr(self, "variance_epsilon", getattr(self, "eps", None))
    x = x - x.mean(-1, keepdim=True)
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps).detach() * self.weight
    bias = getattr(self, "bias", None)
    return y if bias is None else y + bias


class Plain(nn.Module):
    """act(x) as x times its ratio, which is detached."""

    def __init__(self, act):
        super().__init__()
        self.inner = act

    def forward(self, x):
        return x * (self.inner(x) / x).detach()


class Gate(Plain):
    """act(gate), detached."""

    def forward(self, x):
        return self.inner(x).detach()


def gated_mlp(self, x):
    """down(act(gate) * up) with up detached."""
    if hasattr(self, "gate_up_proj"):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
    else:
        gate, up = self.gate_proj(x), self.up_proj(x)
    act = getattr(self, "act_fn", None) or self.activation_fn
    return self.down_proj(gate * (act(gate) / gate).detach() * up.detach())


@contextlib.contextmanager
def detached(hf, linear="up"):
    """The model with its derivative of that kind."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    undo = []

    def put(holder, name, value):
        undo.append((holder, name, vars(holder).get(name), holder._modules.get(name)))
        setattr(holder, name, value)

    old = hf.config._attn_implementation
    hf.config._attn_implementation = NAME
    for module in list(hf.modules()):
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            put(module, "forward", types.MethodType(_rms, module))
        elif kind.endswith("LayerNorm"):
            put(module, "forward", types.MethodType(_centred, module))
        names = [name for name in ACTIVATIONS if isinstance(getattr(module, name, None), nn.Module)]
        is_gated = hasattr(module, "up_proj") or hasattr(module, "gate_up_proj")
        if names and is_gated and linear == "gate":
            put(module, "forward", types.MethodType(gated_mlp, module))
        elif names:
            put(module, names[0], (Gate if is_gated else Plain)(getattr(module, names[0])))
    try:
        yield
    finally:
        hf.config._attn_implementation = old
        for holder, name, own, child in reversed(undo):
            if child is not None:
                holder._modules[name] = child
            elif own is None:
                delattr(holder, name)


def last_state(hf, ids, layers, dtype=torch.float64):
    """The last token's state behind the last block as a function of all embeddings.

    Returns it and the embeddings (token, feature) that enter block 0.
    """
    seen = []

    def first(module, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        seen.append(hidden)
        return (
            ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})
        )

    handles = [
        layers[0].register_forward_pre_hook(first, with_kwargs=True),
        layers[-1].register_forward_hook(
            lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)
        ),
    ]
    try:
        hf(torch.tensor([ids]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen[1][0, -1], seen[0]
