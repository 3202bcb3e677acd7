"""Played schedules, and copies that are replayed, against hooked forward passes."""

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm import replay
from tests.conftest import TINY
from tests.lm import whole_sequence
from tests.lm.conftest import counted_block_calls, several_inputs


@pytest.fixture(scope="module")
def system(tiny, tokens, concept):
    return lm.identify(tiny, tokens, concept)


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
    monkeypatch.setattr(replay, "ROWS", 4)
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


def test_a_factor_alone_is_one_of_several(single, tokens, concept):
    plan = xr.Dataset({"u": ("layer", [0.1, 0.0, 0.2])})
    alone = lm.play(single, tokens, concept, plan, scale=0.5)
    xr.testing.assert_equal(alone, lm.play(single, tokens, concept, plan, scale=[0.5]))
    for wrong in ([], [[1.0]], np.nan):
        with pytest.raises(ValueError, match="`scale` must be finite numbers; got"):
            lm.play(single, tokens, concept, plan, scale=wrong)


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
