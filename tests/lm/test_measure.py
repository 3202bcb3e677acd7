"""Measured gains and played schedules against hooked forward passes over whole sequences."""

import numpy as np
import pytest

from depthsys import lm, ltv
from depthsys.lm import measure
from tests.conftest import TINY
from tests.lm import whole_sequence
from tests.lm.conftest import counted_block_calls


@pytest.fixture(scope="module")
def system(tiny, tokens, concept):
    return lm.identify(tiny, tokens, concept)


@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_measured_gains_equal_one_hooked_forward_per_layer_and_sign(tiny, tokens, concept, eps):
    ours = lm.measure_gains(tiny, tokens, concept, eps=eps).gain
    v = concept.direction.values
    for prompt, ids in enumerate(tokens.ids):
        expected = whole_sequence.measured_gains(tiny.hf, ids, v, eps)
        np.testing.assert_allclose(ours[prompt], expected, rtol=1e-5, atol=1e-6)


def test_relative_and_forward_gains(tiny, tokens, concept):
    v = concept.direction.values
    relative = lm.measure_gains(tiny, tokens, concept, eps=0.05, relative=True).gain
    forward = lm.measure_gains(tiny, tokens, concept, eps=0.2, difference="forward").gain
    for prompt in (0, 3):
        ids = tokens.ids[prompt]
        norm = np.linalg.norm(whole_sequence.states(tiny.hf, ids)[:-1], axis=1)
        for layer in range(3):
            step = np.zeros(3)
            step[layer] = 0.05 * norm[layer]
            ends = [whole_sequence.played(tiny.hf, ids, v, s * step) for s in (1, -1)]
            expected = (ends[0] - ends[1]) / 0.1
            np.testing.assert_allclose(relative[prompt, layer], expected, rtol=1e-5, atol=1e-6)
            step[layer] = 0.2
            expected = whole_sequence.played(tiny.hf, ids, v, step) / 0.2
            np.testing.assert_allclose(forward[prompt, layer], expected, rtol=1e-5, atol=1e-6)


def test_measured_gains_tend_to_linear_gains(tiny, tokens, concept):
    linear = lm.linear_gains(tiny, tokens, concept).gain
    errors = [
        float(abs(lm.measure_gains(tiny, tokens, concept, eps=e).gain - linear).max())
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
