"""Jacobian-vector products of one GPT-2-medium block against the bare matrix product.

Run with `make bench`. Both ways of batching directions give the same numbers, and that is asserted.
"""

import time

import numpy as np
import pytest
import torch

from depthsys.lm import linearize
from tests.benchmarks.test_gain_curve import random_model


def seconds(function) -> float:
    function()
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


@pytest.mark.parametrize("n_prompts", [1, 16])
def test_directions_of_one_block(n_prompts):
    model = random_model("GPT-2-medium")
    ids = np.random.default_rng(0).integers(0, 50_000, size=(n_prompts, 64)).tolist()
    block = model.run(ids).batches[0].blocks[3]
    V = torch.randn(33, 1024)
    rows, weights = torch.randn(n_prompts * 33, 1024), torch.randn(1024, 12 * 1024)

    def one(v):
        x = block.x[:, None].clone()
        return torch.func.jvp(block, (x,), (v.expand_as(x).clone(),))[1]

    ways = {
        "copies": lambda: linearize.jvp(block, block.x, V),
        "vmap": lambda: torch.func.vmap(one)(V)[:, :, 0].transpose(0, 1),
        "bare product": lambda: rows @ weights,
    }
    torch.testing.assert_close(ways["copies"](), ways["vmap"](), rtol=1e-4, atol=1e-4)
    for name, function in ways.items():
        print(f"\n{n_prompts} prompts, {name}: {1e3 * seconds(function):.0f} ms")
