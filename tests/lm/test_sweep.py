"""Sweeps forwards and back against the nominal run kept in memory."""

import numpy as np
import pytest

from depthsys.lm.sweep import Sweep
from tests.lm.conftest import counted_block_calls

IDS = [[1, 2, 3], [4, 5], [6, 7, 8], [9]]


def states_of(layer, n_features=16):
    """States before and after a layer, by row number."""
    before, after = np.full((2, len(IDS), n_features), np.nan)
    for block in layer:
        before[block.prompts], after[block.prompts] = block.x, block.x_next
    return before, after


@pytest.mark.parametrize("keep", [False, True])
def test_a_layer_may_be_looked_at_again(tiny, keep):
    states = tiny.run(IDS).states.values
    with Sweep(tiny, IDS, keep=keep) as sweep:
        for number, layer in enumerate(sweep.forward()):
            for _ in range(3):
                before, after = states_of(layer)
                np.testing.assert_allclose(before, states[number], rtol=1e-12)
                np.testing.assert_allclose(after, states[number + 1], rtol=1e-12)


@pytest.mark.parametrize("look", ["at all", "at some", "at none"])
def test_backwards_after_forwards(tiny, look):
    states = tiny.run(IDS).states.values
    with Sweep(tiny, IDS, keep=True) as sweep:
        for layer in sweep.forward():
            if look == "at all":
                states_of(layer)
            elif look == "at some":
                next(iter(layer))  # stopped early: the states must still advance
        found = []
        for layer in sweep.backward():
            found.append(layer.layer)
            before, after = states_of(layer)
            np.testing.assert_allclose(before, states[layer.layer], rtol=1e-12)
            np.testing.assert_allclose(after, states[layer.layer + 1], rtol=1e-12)
        assert found == [2, 1, 0]


def test_held_blocks_are_computed_once(tiny, monkeypatch):
    calls = counted_block_calls(tiny, monkeypatch)
    with Sweep(tiny, IDS) as sweep:
        for layer in sweep.forward():
            blocks = layer.held()
            assert isinstance(blocks, list)
            count = len(calls)
            for _ in range(3):
                assert sum(len(block.prompts) for block in blocks) == len(IDS)
            assert len(calls) == count
    monkeypatch.setattr("depthsys.lm.sweep.HELD_BYTES", 0)
    with Sweep(tiny, IDS) as sweep:
        layer = next(sweep.forward())
        assert layer.held() is layer


def test_misuse(tiny):
    with Sweep(tiny, IDS) as sweep:
        with pytest.raises(RuntimeError, match="backwards only over states that it keeps"):
            next(sweep.backward())
    with Sweep(tiny, IDS, keep=True) as sweep:
        with pytest.raises(RuntimeError, match="layer 2 is reached after those before it"):
            next(iter(next(sweep.backward())))
