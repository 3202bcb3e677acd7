"""Sweeps forwards and back against the nominal run kept in memory."""

import numpy as np
import pytest

from depthsys import lm
from depthsys.lm.sweep import Sweep
from tests.lm.conftest import counted_block_calls

IDS = [[1, 2, 3], [4, 5], [6, 7, 8], [9]]


PLACES = {
    "host": lm.Budget(),
    "file": lm.Budget(device=0, host=0),
    "again": lm.Budget(device=0, host=0, file=0),
}


@pytest.fixture(params=list(PLACES))
def run(tiny, request):
    found = tiny.run(IDS, budget=PLACES[request.param])
    assert found.place == request.param
    return found


def states_of(layer, n_features=16):
    """States before and after a layer, by row number."""
    before, after = np.full((2, len(IDS), n_features), np.nan)
    for block in layer:
        before[block.prompts], after[block.prompts] = block.x, block.x_next
    return before, after


@pytest.mark.parametrize("keep", [False, True])
def test_a_layer_may_be_looked_at_again(tiny, run, keep):
    states = tiny.run(IDS).states.values
    with Sweep(run, keep=keep) as sweep:
        for number, layer in enumerate(sweep.forward()):
            for _ in range(3):
                before, after = states_of(layer)
                np.testing.assert_allclose(before, states[number], rtol=1e-12)
                np.testing.assert_allclose(after, states[number + 1], rtol=1e-12)


@pytest.mark.parametrize("look", ["at all", "at some", "at none"])
def test_backwards_after_forwards(tiny, run, look):
    states = tiny.run(IDS).states.values
    with Sweep(run, keep=True) as sweep:
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


def test_held_blocks_are_linearised_once(tiny, run, monkeypatch):
    calls = counted_block_calls(tiny, monkeypatch)
    with run.sweep() as sweep:
        for layer in sweep.forward():
            linear = layer.linearised()
            count = len(calls)
            for _ in range(3):
                assert sum(len(one.x) for one in linear) == len(IDS)
            assert len(calls) == count
    monkeypatch.setattr("depthsys.lm.sweep.HELD_BYTES", 0)
    with run.sweep() as sweep:
        linear = next(sweep.forward()).linearised()
        for number in range(1, 3):
            calls.clear()
            assert sum(len(one.x) for one in linear) == len(IDS), number
            assert len(calls) >= len(run.batches)


def test_misuse(tiny):
    again = tiny.run(IDS, budget=PLACES["again"])
    with again.sweep() as sweep:
        with pytest.raises(RuntimeError, match="backwards only over states that it keeps"):
            next(sweep.backward())
    with again.sweep(keep=True) as sweep:
        with pytest.raises(RuntimeError, match="layer 2 is reached after those before it"):
            next(iter(next(sweep.backward())))
    with again.sweep() as sweep:
        first, *_ = sweep.forward()
        with pytest.raises(RuntimeError, match="layer 0 is past; a sweep that keeps its states"):
            next(iter(first))
