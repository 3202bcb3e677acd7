"""Steps of measured gains: their defaults, and when they drown in rounding."""

import numpy as np
import pytest

from depthsys import lm
from depthsys.lm.step import SmallStepError
from tests.conftest import TINY
from tests.lm.conftest import no_block_runs


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
    with pytest.raises(SmallStepError, match=r"1\.2e-05 is the least in float32\. Use a la"):
        lm.check_step(lm.Step(1e-6), single)
    lm.check_step(lm.Step(1e-7, relative=False), single)  # nothing is known of the states
    with pytest.raises(SmallStepError, match=r"states have norms up to .* a relative one"):
        lm.check_step(lm.Step(1e-7, relative=False), single, run)


def test_nothing_is_replayed_for_steps_that_all_drown(single, tokens, concept, monkeypatch):
    run = single.run(tokens)
    no_block_runs(monkeypatch)
    small = [lm.Step(1e-7, relative=False), lm.Step(1e-8)]
    with pytest.raises(SmallStepError):
        lm.measure_gains_at(run, concept, small)
    with pytest.raises(AssertionError, match="a block was run"):
        lm.measure_gains_at(run, concept, [*small, lm.Step(0.1)])


def test_a_state_without_length_has_no_relative_step(concept):
    """Llama's padding token is embedded as zero: the message names it, and not an overflow."""
    model = lm.DepthModel(TINY["llama"]().double())
    pad = model.hf.get_input_embeddings().padding_idx
    ids = [[3, 1, 4], [pad], [5]]
    with pytest.raises(ValueError, match="zero for number 1 at layer 0"):
        lm.measure_gains(model, ids, concept)
    assert np.isfinite(lm.measure_gains(model, ids, concept, relative=False).gain).all()
