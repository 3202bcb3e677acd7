"""LayerNorm whose second derivative is one operation, against torch's own and by its definition."""

import numpy as np
import pytest
import torch
from torch import nn

from depthsys import lm
from depthsys.lm.hf.layer_norm import layer_norms, twice_derived
from tests import card
from tests.lm import families

CARD = torch.device(card.setup(), 0)
SHARED = [
    name
    for name in ("gpt2", "gpt_neo", "gptj", "gpt_neox", "opt", "falcon", "bloom", "phi", "stablelm")
    if name in families.FAMILIES
]


def norm(affine):
    torch.manual_seed(0)
    made = nn.LayerNorm(6, elementwise_affine=affine).double()
    if affine:
        made.weight.data.normal_()
        made.bias.data.normal_()
    return made


def dense(x, weight):
    """diag(w) S by its formula: (row, next, state)."""
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    unit = (centred / deviation)[:, :, None]
    H = x.shape[-1]
    S = (torch.eye(H, dtype=x.dtype) - 1 / H - unit * unit.mT / H) / deviation[:, None]
    return S if weight is None else weight[:, None] * S


@pytest.mark.parametrize("vmapped", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_derivatives_are_those_of_the_formula(affine, vmapped):
    layer, x = norm(affine), torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    u = torch.zeros(5, 6, dtype=torch.float64, requires_grad=True)
    expected = dense(x.detach(), layer.weight)
    with twice_derived([layer]):
        y = layer(x)
    torch.testing.assert_close(y, layer(x), rtol=0, atol=0)
    V = torch.randn(7, 5, 6, dtype=torch.float64)
    (transposed,) = torch.autograd.grad(y, x, u, create_graph=True)

    def products(output, source):
        def one(v):
            return torch.autograd.grad(output, source, v, retain_graph=True)[0]

        return torch.func.vmap(one)(V) if vmapped else torch.stack([one(v) for v in V])

    forward = torch.einsum("rij,vrj->vri", expected, V)
    backward = torch.einsum("rij,vri->vrj", expected, V)
    torch.testing.assert_close(products(transposed, u), forward, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(products(y, x), backward, rtol=1e-12, atol=1e-12)


def test_the_module_is_as_before_afterwards_also_after_an_error():
    layer = norm(True)
    with twice_derived([layer]):
        assert "forward" in vars(layer)
    assert "forward" not in vars(layer)
    with pytest.raises(RuntimeError, match="normalized_shape"), twice_derived([layer]):
        layer(torch.zeros(3, dtype=torch.float64))
    assert "forward" not in vars(layer)


def test_norms_that_compute_something_else_are_left_alone():
    class Scaled(nn.LayerNorm):
        def forward(self, x):
            return 2 * super().forward(x)

    plain, moved = nn.LayerNorm(4), nn.LayerNorm(4)
    moved.forward = lambda x: x.cpu()  # as accelerate does
    assert layer_norms(nn.ModuleList([plain, moved, Scaled(4), nn.RMSNorm(4)])) == [plain]


@pytest.mark.parametrize("name", SHARED)
def test_products_on_an_accelerator_are_those_of_the_cpu(name):
    prompts = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]
    hf = families.make(name)
    block = lm.DepthModel(hf).run(prompts).batches[0].blocks[1]
    there = lm.DepthModel(families.make(name).to(CARD)).run(prompts).batches[0].blocks[1]
    assert layer_norms(there._blocks._list[1])
    V = torch.randn(2, 3, families.N_FEATURES, dtype=torch.float64)
    limit = 1e-11 if not families.FAMILIES[name].single else 1e-5
    for which in ("jvp", "vjp"):
        expected = getattr(block, which)(V).numpy()
        found = getattr(there, which)(V.to(CARD)).cpu().numpy()
        np.testing.assert_allclose(found, expected, atol=limit * abs(expected).max())


@pytest.mark.parametrize(("name", "bound"), [("gpt2", 85), ("gpt_neox", 115)])
def test_second_derivatives_are_few_operations(name, bound):
    """With torch's own LayerNorm there are a hundred more."""
    run = lm.DepthModel(families.make(name).to(CARD)).run([[3, 1, 4, 1, 5]])
    linear = run.batches[0].blocks[1].linearised()
    V = torch.eye(families.N_FEATURES, dtype=torch.float64)[:3].to(CARD)
    with card.counted() as counts:
        linear.jvp(V)
    assert counts.n_launches <= bound
