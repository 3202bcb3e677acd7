"""Measured gains and played schedules against hooked forward passes over whole sequences."""

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm import measure
from tests.conftest import TINY
from tests.lm import whole_sequence
from tests.lm.conftest import counted_block_calls, no_block_runs


@pytest.fixture(scope="module")
def system(tiny, tokens, concept):
    return lm.identify(tiny, tokens, concept)


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


def test_an_injection_joins_at_its_layer(tokens, concept, monkeypatch):
    """Cost as a count: layer l sees 2 (l + 1) copies of each prompt, not 2 L."""
    model = lm.DepthModel(TINY["gpt2"](), left_padding=False)
    rows = counted_block_calls(model, monkeypatch)
    lm.measure_gains(model, tokens, concept)
    prefill = sum(len(ids) for ids in tokens.ids)
    for layer in range(3):
        assert sum(n for at, n in rows if at == layer) == prefill + len(tokens) * 2 * (layer + 1)


def test_copies_in_chunks_give_the_same(tiny, tokens, concept, monkeypatch):
    whole = lm.measure_gains(tiny, tokens, concept).gain
    monkeypatch.setattr(measure, "ROWS", 4)
    np.testing.assert_allclose(lm.measure_gains(tiny, tokens, concept).gain, whole, rtol=1e-6)


def test_play_equals_hooks_at_every_layer_at_once(tiny, tokens, concept, system):
    plan = ltv.minimum_energy(system, target=0.7)
    shift = lm.play(tiny, tokens, concept, plan, scale=[1.0, -0.5, 0.0]).response
    v, u = concept.direction.values, plan.u.values[:, 0]
    for prompt, ids in enumerate(tokens.ids):
        for i, factor in enumerate([1.0, -0.5, 0.0]):
            expected = whole_sequence.played(tiny.hf, ids, v, factor * u)
            np.testing.assert_allclose(shift[prompt, i], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"`plan` must hold u \(layer=3, input=1\)"):
        lm.play(tiny, tokens, concept, plan.isel(layer=slice(2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0}, "`eps` must be positive"),
        ({"eps": np.nan}, "`eps` must be positive"),
        ({"difference": "x"}, "`difference` must be"),
    ],
)
def test_bad_steps(tiny, tokens, concept, options, message):
    with pytest.raises(ValueError, match=message):
        lm.measure_gains(tiny, tokens, concept, **options)


def test_a_step_is_a_hundredth_of_the_state_unless_another_is_asked_for(tiny, tokens, concept):
    assert (lm.Step().eps, lm.Step().relative) == (0.01, True)
    assert lm.Step(relative=False).eps == 0.1
    run = tiny.run(tokens)
    found = lm.measure_gains(run, concept)
    assert (found.attrs["step"], found.attrs["relative"]) == (0.01, 1)
    norm = np.linalg.norm(run.states.values[:-1], axis=-1)
    np.testing.assert_allclose(found.state_norm, norm.T, rtol=1e-12)
    pushed = [lm.measure_gains(run, concept, eps=e, relative=False).gain for e in (1e-3, 1e-2)]
    # per unit of the state, whatever the step
    np.testing.assert_allclose(found.gain, pushed[0], rtol=2e-2, atol=1e-3)


def test_a_step_can_be_judged_before_any_work(single, tokens, monkeypatch):
    run = single.run(tokens)
    no_block_runs(monkeypatch)
    lm.check_step(lm.Step(), single)
    lm.check_step(lm.Step(), single, run)
    with pytest.raises(
        measure.SmallStepError, match=r"1\.2e-05 is the least in float32\. Use a la"
    ):
        lm.check_step(lm.Step(1e-6), single)
    lm.check_step(lm.Step(1e-7, relative=False), single)  # nothing is known of the states
    with pytest.raises(measure.SmallStepError, match=r"states have norms up to .* a relative one"):
        lm.check_step(lm.Step(1e-7, relative=False), single, run)


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


@pytest.fixture(scope="module")
def single():
    """In float32, where a step can be too small or too large."""
    return lm.DepthModel(TINY["gpt2"]())


def test_a_step_that_drowns_or_overflows_stands_in_its_place(single, tokens, concept):
    run = single.run(tokens)
    sizes = [0.1, 1e-7, 3e38, 1e-6, 0.5]
    steps = [lm.Step(eps, relative=eps == 1e-6) for eps in sizes]
    found = measure.measured(run, concept, steps, "concept")
    kinds = [type(one) for one in found]
    small, overflow = measure.SmallStepError, FloatingPointError
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


def test_nothing_is_replayed_for_steps_that_all_drown(single, tokens, concept, monkeypatch):
    run = single.run(tokens)
    no_block_runs(monkeypatch)
    small = [lm.Step(1e-7, relative=False), lm.Step(1e-8)]
    with pytest.raises(measure.SmallStepError):
        lm.measure_gains_at(run, concept, small)
    with pytest.raises(AssertionError, match="a block was run"):
        lm.measure_gains_at(run, concept, [*small, lm.Step(0.1)])


def several_inputs():
    v = np.random.default_rng(4).standard_normal((4, 2, 16))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return xr.Dataset({"direction": (("depth", "input", "feature"), v)})


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


def test_play_with_several_inputs_and_outputs_against_hooks(tiny, tokens):
    concept = several_inputs()
    v, rng = concept.direction.values, np.random.default_rng(6)
    rows, u = rng.standard_normal((3, 16)), rng.standard_normal((3, 2))
    plan = xr.Dataset({"u": (("input", "layer"), u.T)})
    found = lm.play(tiny, tokens, concept, plan, scale=[0.5, 2.0], readout=rows).response
    assert found.dims == ("prompt", "scale", "output")
    for prompt, ids in enumerate(tokens.ids[:3]):
        for place, factor in enumerate((0.5, 2.0)):
            pushes = {layer: torch.tensor(factor * u[layer] @ v[layer]) for layer in range(3)}
            with torch.no_grad():
                ends = [whole_sequence.state_after(tiny.hf, ids, 2, p) for p in (pushes, {})]
            expected = rows @ (ends[0] - ends[1]).numpy()
            np.testing.assert_allclose(found[prompt, place], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"`plan` must hold u \(layer=3, input=2\); got"):
        lm.play(tiny, tokens, concept, plan.isel(input=slice(1)))


def test_a_schedule_that_overflows_is_an_error(single, tokens, concept):
    plan = xr.Dataset({"u": ("layer", [1.0, 0.0, 0.0])})
    with pytest.raises(FloatingPointError, match=r"a push of size 3\.0e\+38 overflows"):
        lm.play(single, tokens, concept, plan, scale=[3e38])
    with pytest.raises(ValueError, match="`plan` must be a Dataset with the variable 'u'"):
        lm.play(single, tokens, concept, plan.rename(u="pushes"))


def test_pushes_must_have_the_inputs_of_the_concept(tiny, tokens, concept):
    schedules = xr.DataArray(np.ones((1, 3, 2)), dims=["schedule", "layer", "input"])
    with pytest.raises(ValueError, match="`schedules` must have the 1 inputs of the concept; got"):
        lm.required_energy(tiny, tokens, concept, schedules, 0.3, amplitude=1.0)


def test_a_state_without_length_has_no_relative_step(concept):
    """Llama's padding token is embedded as zero: the message names it, and not an overflow."""
    model = lm.DepthModel(TINY["llama"]().double())
    pad = model.hf.get_input_embeddings().padding_idx
    ids = [[3, 1, 4], [pad], [5]]
    with pytest.raises(ValueError, match="zero for number 1 at layer 0"):
        lm.measure_gains(model, ids, concept)
    assert np.isfinite(lm.measure_gains(model, ids, concept, relative=False).gain).all()
