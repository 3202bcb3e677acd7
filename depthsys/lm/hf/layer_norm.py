r"""LayerNorm with a derivative that is cheap to derive again.

Products :math:`J v` are derivatives of :math:`u \mapsto J^\top u` (see `Linearised`), so every
operation is derived twice. torch writes the derivative of LayerNorm's derivative out in fifty
small operations, which an accelerator begins one by one. Both are one operation here: with
:math:`\hat x` the normalised row and :math:`w` the weights,

.. math:: J = \operatorname{diag}(w)\, S, \qquad
    S = \frac{1}{\sigma}\Bigl(I - \tfrac1H \mathbf 1 \mathbf 1^\top
    - \tfrac1H \hat x \hat x^\top\Bigr) = S^\top,

and torch's own derivative is :math:`S \operatorname{diag}(w)\, u`, or :math:`S u` without weights.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn


def layer_norms(block: nn.Module) -> list[nn.LayerNorm]:
    """Those of a block that compute what torch does, and nothing around it."""
    return [m for m in block.modules() if type(m) is nn.LayerNorm and "forward" not in vars(m)]


@contextlib.contextmanager
def twice_derived(norms: Sequence[nn.LayerNorm]) -> Iterator[None]:
    """Let them compute with `_Norm` meanwhile; the values are the same bits."""
    try:
        for norm in norms:
            vars(norm)["forward"] = _forward(norm)
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)


def _forward(norm: nn.LayerNorm):
    def forward(x: torch.Tensor) -> torch.Tensor:
        shape = list(norm.normalized_shape)
        return _Norm.apply(x, shape, norm.weight, norm.bias, norm.eps)[0]  # pyright: ignore

    return forward


def _derived(g, x, shape, mean, rstd, weight, bias) -> torch.Tensor:
    """S diag(w) g."""
    only_states = [True, False, False]
    return torch.ops.aten.native_layer_norm_backward(
        g, x, shape, mean, rstd, weight, bias, only_states
    )[0]


class _Norm(torch.autograd.Function):
    """LayerNorm of rows, with derivatives for the states alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, shape, weight, bias, eps):
        return torch.native_layer_norm(x, shape, weight, bias, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs, output):
        x, ctx.shape, weight, bias, _ = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, mean, rstd, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs):
        held = (t if t is None else t.detach() for t in ctx.saved_tensors)
        return _Transposed.apply(grad_outputs[0], *held, ctx.shape), None, None, None, None


class _Transposed(torch.autograd.Function):
    """J' g, whose derivative with respect to g is J; x is where J was taken, and held."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g, x, mean, rstd, weight, bias, shape):
        return _derived(g, x, shape, mean, rstd, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs, output):
        _, x, mean, rstd, weight, _, ctx.shape = inputs
        ctx.save_for_backward(x, mean, rstd, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs):
        x, mean, rstd, weight = ctx.saved_tensors
        product = _derived(grad_outputs[0], x, ctx.shape, mean, rstd, None, None)
        if weight is not None:
            product = product * weight
        return product, None, None, None, None, None, None
