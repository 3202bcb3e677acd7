"""Sweeps forwards and back against the nominal run kept in memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from depthsys import lm
from depthsys.lm import contexts
from depthsys.lm.sweep import Sweep
from tests.conftest import TINY
from tests.lm import families
from tests.lm.conftest import counted_block_calls, labelled_ids

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


@pytest.mark.parametrize("place", list(PLACES))
def test_held_blocks_are_linearised_once(tiny, place, monkeypatch):
    run = tiny.run(IDS, budget=PLACES[place])
    calls = counted_block_calls(tiny, monkeypatch)
    with run.sweep() as sweep:
        for layer in sweep.forward():
            linear = layer.linearised()
            count = len(calls)
            for _ in range(3):
                assert sum(len(one.x) for one in linear) == len(IDS)
            assert len(calls) == count
    run = tiny.run(IDS, budget=replace(PLACES[place], linearised=0))
    assert run.place == place
    with run.sweep() as sweep:
        linear = next(sweep.forward()).linearised()
        for number in range(1, 3):
            calls.clear()
            assert sum(len(one.x) for one in linear) == len(IDS), number
            assert len(calls) >= len(run.batches)


def test_a_layer_is_held_up_to_the_byte(tiny):
    with tiny.run(IDS).sweep() as sweep:
        size = sweep.linearised_bytes
    for given, is_held in ((size, True), (size - 1, False), (None, True)):
        with tiny.run(IDS, budget=lm.Budget(linearised=given)).sweep() as sweep:
            assert sweep.holds_layer == is_held
            assert isinstance(next(sweep.forward()).linearised(), list) == is_held


def test_what_may_be_held_where_nothing_is_said(monkeypatch):
    """1 GiB, or a quarter of what is free on the device of the model."""
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    free = {"cpu": 2**40, "cuda": 400}
    monkeypatch.setattr(contexts, "free_on", lambda device: free[device.type])
    monkeypatch.setattr(contexts, "available_memory", lambda: free["cpu"])
    for budget in (lm.Budget(), lm.Budget(0, 0, 0)):
        assert budget.holds(2**30, cpu)
        assert not budget.holds(2**30 + 1, cpu)
        assert budget.holds(100, cuda)
        assert not budget.holds(101, cuda)
    assert lm.Budget(linearised=2**31).holds(2**31, cuda)
    free["cpu"] = None  # unknown
    assert not lm.Budget().holds(1, cpu)


@pytest.mark.parametrize(
    "make",
    [
        TINY["gpt2"],
        TINY["llama"],
        lambda: TINY["gpt2"](n_inner=160),
        lambda: TINY["llama"](intermediate_size=160),
        lambda: families.make("mixtral"),
        lambda: families.make("gemma2"),
    ],
    ids=["gpt2", "llama", "wide gpt2", "wide llama", "mixtral", "gemma2"],
)
def test_a_held_layer_takes_no_more_than_is_said(make):
    """All that autograd keeps of a layer, the weights apart, after products in both directions."""
    model = lm.DepthModel(make())
    weights = {p.untyped_storage().data_ptr() for p in model.hf.parameters()}
    ids = labelled_ids(20, 0).ids
    ones = torch.ones(1, model.n_features)
    with model.run(ids).sweep() as sweep:
        for layer in sweep.forward():
            kept = {}

            def pack(tensor, kept=kept):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in weights:
                    kept[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                held = layer.linearised()
                for linear in held:
                    linear.jvp(ones)
                    linear.vjp(ones)
            assert sum(len(linear.x) for linear in held) == len(ids)
            assert sweep.linearised_bytes / 5 < sum(kept.values()) <= sweep.linearised_bytes


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
