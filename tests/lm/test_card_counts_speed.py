"""What derivatives ask of an accelerator, counted on the pretend card per layer and batch.

The bounds are what was counted, with a few operations to spare; a forward pass of the last token
through one block is 27 operations in GPT-2 and 43 in Llama.
"""

import importlib

import numpy as np
import pytest
import torch

from depthsys import lm
from depthsys.lm.linearize import Linearised
from tests import card
from tests.conftest import TINY

CARD = torch.device(card.setup(), 0)
L, H = 3, 16
PROMPTS = [[1 + (3 * i + j) % 49 for j in range(1 + i % 4)] for i in range(8)]
jacobians = importlib.import_module("depthsys.lm.jacobians")  # the function hides its module


@pytest.fixture(scope="module", params=list(TINY))
def run(request):
    run = lm.DepthModel(TINY[request.param]().to(CARD), name=request.param).run(PROMPTS)
    assert len(run.numbers) == 1
    run.jvp(1, np.eye(H)[:1])  # how the blocks are called is learnt once
    return run


@pytest.fixture
def block(run):
    """With its context at hand: where it lies is not counted here."""
    return run.batches[0].blocks[1].between(0, 8)


def counted(function):
    with card.counted() as counts:
        function()
    assert counts.waits == counts.to_host == 0
    return counts.n_launches


# ------------------------------------------------------------------------------ products


@pytest.mark.parametrize(("which", "bounds"), [("vjp", (75, 130)), ("jvp", (120, 195))])
@pytest.mark.parametrize("count", [1, 4, 33])
def test_operations_of_products(run, block, which, bounds, count):
    """As many for 33 directions as for one."""
    directions = torch.randn(8, count, H).to(CARD)
    block.linearised()
    bound = bounds[list(TINY).index(run.model.name)]
    assert counted(lambda: getattr(block.linearised(), which)(directions)) <= bound


def test_one_direction_per_prompt_needs_less_than_two(block):
    one, two = torch.randn(8, 1, H).to(CARD), torch.randn(8, 2, H).to(CARD)
    for which in ("jvp", "vjp"):
        linear = block.linearised()
        getattr(linear, which)(one)
        product = getattr(linear, which)
        assert counted(lambda p=product: p(one)) <= counted(lambda p=product: p(two)) - 3
        np.testing.assert_allclose(
            product(one).cpu(), product(torch.cat([one, two], dim=1))[:, :1].cpu(), atol=1e-4
        )


# ----------------------------------------------------------------------------- jacobians


@pytest.mark.parametrize("per_prompt", [False, True])
def test_all_jacobians(run, per_prompt):
    """The results of a layer are copied and nothing else waits; all H rows in one product."""
    with card.counted() as counts:
        lm.jacobians(run, per_prompt=per_prompt)
    by_the_lane = {p: n for p, n in counts.places.items() if "lane.py" in p}
    assert counts.waits == sum(by_the_lane.values()) == 2 * L
    assert counts.n_launches <= L * {"gpt2": 88, "llama": 140}[run.model.name]


@pytest.mark.parametrize("per_prompt", [False, True])
def test_a_layer_is_written_while_the_next_one_is_computed(run, per_prompt, monkeypatch):
    events = []
    begin, finish = Linearised.__init__, jacobians._check_finite

    def begun(self, block, *others):
        events.append(f"begin {block.layer}")
        begin(self, block, *others)

    def written(A, where):
        finish(A, where)
        events.append("write " + where[len("at layer ") :].partition(",")[0])

    monkeypatch.setattr(Linearised, "__init__", begun)
    monkeypatch.setattr(jacobians, "_check_finite", written)
    lm.jacobians(run, per_prompt=per_prompt)
    once = list(dict.fromkeys(events))
    assert once == ["begin 0", "begin 1", "write 0", "begin 2", "write 1", "write 2"]


def test_jacobians_of_a_few_prompts_at_a_time_where_memory_is_short(run, monkeypatch):
    whole = lm.jacobians(run, per_prompt=True)
    steps = []
    blocks = type(run.model.blocks)
    learn = blocks._record  # behind `step`, which the calls of a run hold already
    monkeypatch.setattr(blocks, "_record", lambda *a, **k: steps.append(a) or learn(*a, **k))
    monkeypatch.setattr(
        type(torch.get_device_module(CARD)), "free", 4 * 3 * 3 * H * H * 4
    )  # three of them
    sizes = []
    original_jacobian = jacobians.whole_jacobians
    monkeypatch.setattr(
        jacobians,
        "whole_jacobians",
        lambda *a: sizes.append(original_jacobian(*a)) or sizes[-1],
    )
    some = lm.jacobians(run, per_prompt=True)
    assert sizes == [3] * L
    for name in ("A", "x_ref"):
        np.testing.assert_allclose(some[name], whole[name], rtol=1e-4, atol=1e-5)
    assert len(steps) == 3  # how the blocks are called on some prompts is learnt at the first layer


# ------------------------------------------------------------------------- linear gains


def test_linear_gains(run, concept):
    with card.counted() as counts:
        lm.linear_gains(run, concept)
    assert counts.n_launches <= L * {"gpt2": 90, "llama": 145}[run.model.name]
