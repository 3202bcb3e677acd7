"""One steering within another, and that nothing of any is left, whatever happens."""

import threading

import numpy as np
import pytest
import torch

from depthsys import lm
from tests.lm.steering.by_hooks import (
    MARKED,
    PROMPTS,
    is_clean,
    written,
    written_by_hooks,
)
from tests.lm.whole_sequence import blocks


def test_nested_pushes_add_up_and_end_in_any_order(model, concept, plan, added):
    half = plan.assign(u=plan["u"] / 2, u_end=plan["u_end"] / 2)
    every = [written_by_hooks(model.hf, p, added, "every") for p in PROMPTS]
    single = [written_by_hooks(model.hf, p, added / 2, "every") for p in PROMPTS]
    before = written(model.hf, PROMPTS)
    outer = lm.steering(model, concept, half, positions="every")
    inner = lm.steering(model, concept, half, positions="every")
    outer.__enter__()
    inner.__enter__()
    assert written(model.hf, PROMPTS) == every
    outer.__exit__(None, None, None)
    assert written(model.hf, PROMPTS) == single != every
    inner.__exit__(None, None, None)
    assert written(model.hf, PROMPTS) == before
    assert is_clean(model)
    with lm.steering(model, concept, plan, positions="last"):
        with lm.steering(model, concept, plan, positions="last", strength=-1):
            assert written(model.hf, PROMPTS) == before


def test_each_thread_has_prompts_of_its_own(model, concept, plan, added):
    expected = {n: written_by_hooks(model.hf, p, added, MARKED) for n, p in enumerate(PROMPTS)}
    found, errors = {}, []

    def write(number):
        try:
            for _ in range(3):
                found[number] = written(model.hf, [PROMPTS[number]])[0]
        except Exception as error:
            errors.append(error)

    with lm.steering(model, concept, plan, positions=MARKED):
        threads = [threading.Thread(target=write, args=(n,)) for n in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    assert found == expected


class Interrupted(BaseException):
    """As a KeyboardInterrupt, which pytest would take for itself."""


@pytest.mark.parametrize("kind", [RuntimeError, Interrupted])
@pytest.mark.parametrize("where", ["a block", "the block of code", "a processor"])
def test_nothing_is_left_whatever_happens(model, concept, plan, kind, where):
    ids = torch.tensor(PROMPTS[:1])
    before, logits = written(model.hf, PROMPTS), model.hf(ids).logits

    def fails(*_):
        raise kind("stop")

    handle = None
    if where == "a block":
        handle = blocks(model.hf)[1].register_forward_hook(fails)

    def steered():
        with lm.steering(model, concept, plan, positions="every"):
            if where == "the block of code":
                fails()
            written(model.hf, PROMPTS, logits_processor=[fails])

    with pytest.raises(kind, match="stop"):
        steered()
    if handle is not None:
        handle.remove()
    assert is_clean(model)
    assert written(model.hf, PROMPTS) == before
    assert torch.equal(model.hf(ids).logits, logits)


def test_after_an_interrupt_within_the_block_it_goes_on(model, concept, plan, added):
    def fails(*_):
        raise Interrupted

    with lm.steering(model, concept, plan, positions=MARKED) as here:
        handle = blocks(model.hf)[1].register_forward_hook(fails)
        with pytest.raises(Interrupted):
            written(here.hf, PROMPTS)
        handle.remove()
        found = written(here.hf, PROMPTS)
    assert found == [written_by_hooks(model.hf, p, added, MARKED) for p in PROMPTS]


def test_hooks_and_generate_of_others_stay(model, concept, plan):
    seen = []
    handle = model.hf.register_forward_hook(lambda *_: seen.append(1))
    own = model.hf.generate
    model.hf.generate = lambda *a, **k: own(*a, **k)
    mine = model.hf.generate
    before = written(model.hf, PROMPTS)
    with lm.steering(model, concept, plan, positions="every"):
        assert written(model.hf, PROMPTS) != before
        over = model.hf.generate
        theirs = model.hf.generate = lambda *a, **k: over(*a, **k)
    assert model.hf.generate is theirs  # put over it within the block
    assert written(model.hf, PROMPTS) == before
    model.hf.generate = mine
    with lm.steering(model, concept, plan, positions="every"):
        pass
    assert model.hf.generate is mine
    del model.hf.generate
    handle.remove()
    assert seen
    assert is_clean(model)


def test_runs_of_the_package_are_not_pushed(model, concept, plan):
    def found():
        run = model.run(PROMPTS)
        return [
            run.states.values,
            lm.play(run, concept, plan.drop_vars("u_end"), tokens="every")["response"].values,
            lm.measure_gains(run, concept, readout=lm.LogitDifference(3, 7))["gain"].values,
            lm.DepthModel(model.hf).contract["logits"],
        ]

    run, outside = model.run(PROMPTS), found()
    with lm.steering(model, concept, plan, positions="every"):
        within = found()
        played = lm.play(run, concept, plan)["response"].values
    for one, other in zip(outside, within, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(played, lm.play(run, concept, plan)["response"].values)
    assert lm.play(model, PROMPTS, concept, plan).attrs["tokens"] == "last"
