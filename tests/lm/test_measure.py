"""Measured gains against hooked forward passes over whole sequences."""

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm
from depthsys.lm import measure
from depthsys.lm.step import SmallStepError
from tests.lm import whole_sequence
from tests.lm.conftest import several_inputs


@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_measured_gains_equal_one_hooked_forward_per_layer_and_sign(tiny, tokens, concept, eps):
    ours = lm.measure_gains(tiny, tokens, concept, eps=eps, relative=False).gain
    v = concept.direction.values
    for prompt, ids in enumerate(tokens.ids):
        expected = whole_sequence.measured_gains(tiny.hf, ids, v, eps)
        np.testing.assert_allclose(ours[prompt], expected, rtol=1e-5, atol=1e-6)


def test_relative_and_forward_gains(tiny, tokens, concept):
    v = concept.direction.values
    relative = lm.measure_gains(tiny, tokens, concept, eps=0.05, relative=True).gain
    forward = lm.measure_gains(
        tiny, tokens, concept, eps=0.2, relative=False, difference="forward"
    ).gain
    for prompt in (0, 3):
        ids = tokens.ids[prompt]
        norm = np.linalg.norm(whole_sequence.states(tiny.hf, ids)[:-1], axis=1)
        for layer in range(3):
            step = np.zeros(3)
            step[layer] = 0.05 * norm[layer]
            ends = [whole_sequence.played(tiny.hf, ids, v, s * step) for s in (1, -1)]
            expected = (ends[0] - ends[1]) / (0.1 * norm[layer])
            np.testing.assert_allclose(relative[prompt, layer], expected, rtol=1e-5, atol=1e-6)
            step[layer] = 0.2
            expected = whole_sequence.played(tiny.hf, ids, v, step) / 0.2
            np.testing.assert_allclose(forward[prompt, layer], expected, rtol=1e-5, atol=1e-6)


def test_measured_gains_tend_to_linear_gains(tiny, tokens, concept):
    linear = lm.linear_gains(tiny, tokens, concept).gain
    errors = [
        float(
            abs(lm.measure_gains(tiny, tokens, concept, eps=e, relative=False).gain - linear).max()
        )
        for e in (0.02, 0.01)
    ]
    # central differences: the error falls with the square of the step
    assert errors[1] < 0.35 * errors[0] < 0.1


STEPS = [
    lm.Step(0.1, relative=False),
    lm.Step(0.3, relative=False),
    lm.Step(0.05),
    lm.Step(0.2, relative=False, difference="forward"),
    lm.Step(0.02, difference="forward"),
]


def test_gains_at_several_steps_equal_gains_at_each(tiny, tokens, concept):
    together = lm.measure_gains_at(tiny, tokens, concept, STEPS)
    assert len(together) == len(STEPS)
    # Llama's norms are float32: another number of copies rounds otherwise
    rtol = 1e-9 if tiny.name == "gpt2" else 1e-4
    for step, found in zip(STEPS, together, strict=True):
        alone = lm.measure_gains(
            tiny,
            tokens,
            concept,
            eps=step.eps,
            relative=step.relative,
            difference=step.difference,
        )
        np.testing.assert_allclose(found.gain, alone.gain, rtol=rtol, atol=rtol)
        clock = {"created", "history"}
        assert {k: v for k, v in found.attrs.items() if k not in clock} == {
            k: v for k, v in alone.attrs.items() if k not in clock
        }
        assert (found.attrs["step"], found.attrs["relative"]) == (step.eps, int(step.relative))
        assert found.attrs["difference"] == step.difference
    assert lm.measure_gains_at(tiny, tokens, concept, []) == []


def test_every_step_of_several_is_what_the_hooks_say(tiny, tokens, concept):
    v = concept.direction.values
    together = lm.measure_gains_at(tiny, tokens, concept, STEPS)
    for prompt in (0, 5):
        ids = tokens.ids[prompt]
        norm = np.linalg.norm(whole_sequence.states(tiny.hf, ids)[:-1], axis=1)
        for step, found in zip(STEPS, together, strict=True):
            ends = (1, -1) if step.difference == "central" else (1, 0)
            for layer in range(3):
                push = np.zeros(3)
                size = step.eps * (norm[layer] if step.relative else 1)
                push[layer] = size
                y = [whole_sequence.played(tiny.hf, ids, v, sign * push) for sign in ends]
                expected = (y[0] - y[1]) / ((ends[0] - ends[1]) * size)
                np.testing.assert_allclose(
                    found.gain[prompt, layer], expected, rtol=1e-5, atol=1e-6
                )


def test_a_step_that_drowns_or_overflows_stands_in_its_place(single, tokens, concept):
    run = single.run(tokens)
    sizes = [0.1, 1e-7, 3e38, 1e-6, 0.5]
    steps = [lm.Step(eps, relative=eps == 1e-6) for eps in sizes]
    found = measure.measured(run, concept, steps, "concept")
    kinds = [type(one) for one in found]
    small, overflow = SmallStepError, FloatingPointError
    assert kinds == [xr.Dataset, small, overflow, small, xr.Dataset]
    # the others are not disturbed
    for place in (0, 4):
        alone = lm.measure_gains(run, concept, eps=steps[place].eps, relative=False)
        np.testing.assert_allclose(found[place].gain, alone.gain, rtol=1e-4, atol=1e-5)
    largest = max(np.linalg.norm(run.states.values[:-1], axis=-1).ravel())
    least = 100 * np.finfo(np.float32).eps * largest
    message = rf"well above the rounding of .*; got 1\.0e-07 where {least:.1e} is the least in flo"
    with pytest.raises(ValueError, match=message):
        lm.measure_gains_at(run, concept, steps[:2])
    with pytest.raises(ValueError, match=r"got 1\.0e-06 where 1\.2e-05 is the least in float32"):
        lm.measure_gains_at(run, concept, steps[3:])
    with pytest.raises(FloatingPointError, match=r"a push of 3e\+38 overflows"):
        lm.measure_gains_at(run, concept, [steps[0], steps[2]])


@pytest.mark.parametrize("relative", [False, True])
def test_several_inputs_and_outputs_against_hooks(tiny, tokens, relative):
    concept = several_inputs()
    v, rows = concept.direction.values, np.random.default_rng(5).standard_normal((3, 16))
    steps = [lm.Step(0.2, relative), lm.Step(0.1, relative, "forward")]
    found = lm.measure_gains_at(tiny, tokens, concept, steps, readout=rows)
    for step, one in zip(steps, found, strict=True):
        assert one.gain.dims == ("prompt", "layer", "output", "input")
        assert one.gain.shape == (len(tokens), 3, 3, 2)
        ends = (1, -1) if step.difference == "central" else (1, 0)
        for prompt in (1, 6):
            ids = tokens.ids[prompt]
            norm = np.linalg.norm(whole_sequence.states(tiny.hf, ids), axis=1)
            for layer in range(3):
                for i in range(2):
                    size = step.eps * (norm[layer] if relative else 1)
                    pushes = [{layer: torch.tensor(s * size * v[layer, i])} for s in ends]
                    with torch.no_grad():
                        x = [whole_sequence.state_after(tiny.hf, ids, 2, p) for p in pushes]
                    expected = rows @ (x[0] - x[1]).numpy() / ((ends[0] - ends[1]) * size)
                    np.testing.assert_allclose(
                        one.gain[prompt, layer, :, i], expected, rtol=1e-4, atol=1e-5
                    )
