"""The shape of trajectories: hand cases on states that are given, loops on those of a model."""

import itertools

import numpy as np
import pytest
import torch

from depthsys import lm
from depthsys.lm.run import Run
from tests.conftest import tiny_llama
from tests.lm import whole_sequence
from tests.lm.conftest import no_block_runs

IDS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7]]


@pytest.fixture(scope="module")
def model():
    return lm.DepthModel(tiny_llama().double())


def of(model, monkeypatch, states):
    """Of given states (depth, feature) of one prompt."""
    x = torch.as_tensor(np.asarray(states, dtype=float))[:, None]
    monkeypatch.setattr(Run, "states_by_batch", lambda *_: iter([(np.arange(1), x)]))
    return lm.trajectory_shape(model.run([[1, 2]], contexts=False)).isel(prompt=0)


def test_a_straight_line_of_growing_steps(model, monkeypatch):
    found = of(model, monkeypatch, [[0, 1.0], [0, 2.0], [0, 4.0], [0, 8.0]])
    assert float(found["line_shape"]) == pytest.approx(1)
    assert float(found["length_ratio"]) == pytest.approx(1)
    np.testing.assert_allclose(found["step"], [1, 2, 4])
    assert float(found["spacing_rate"]) == pytest.approx(np.log(2))
    assert float(found["spacing_r2"]) == pytest.approx(1)
    assert float(found["growth_rate"]) == pytest.approx(np.log(2))
    assert float(found["growth_variation"]) == pytest.approx(0, abs=1e-20)


def test_steps_at_right_angles(model, monkeypatch):
    """Three unit steps along three axes: 3 / sqrt(3); the lengths 1, 2, 2 end 3 away: 5 / 3."""
    found = of(model, monkeypatch, [[1, 0, 0], [2, 0, 0], [2, 2, 0], [2, 2, 2.0]])
    assert float(found["line_shape"]) == pytest.approx(np.sqrt(3))
    assert float(found["length_ratio"]) == pytest.approx(5 / 3)
    # log steps 0, log 2, log 2: slope log(2) / 2, and 3/4 of the variance
    assert float(found["spacing_rate"]) == pytest.approx(np.log(2) / 2)
    assert float(found["spacing_r2"]) == pytest.approx(0.75)


def test_a_layer_that_does_nothing_is_no_step(model, monkeypatch):
    found = of(model, monkeypatch, [[1, 0.0], [2, 0.0], [2, 0.0], [3, 0.0]])
    assert float(found["line_shape"]) == pytest.approx(1)
    assert np.isnan(found["spacing_rate"])
    assert np.isfinite(found["growth_rate"])


def test_there_and_back(model, monkeypatch):
    found = of(model, monkeypatch, [[1, 0.0], [2, 0.0], [1, 0.0], [2, 0.0]])
    assert float(found["line_shape"]) == pytest.approx(3)
    assert float(found["length_ratio"]) == pytest.approx(3)


@pytest.mark.parametrize("start", [0, 1])
def test_of_a_model_it_is_that_of_its_states(model, start):
    found = lm.trajectory_shape(model, IDS, start=start)
    for prompt, ids in enumerate(IDS):
        x = whole_sequence.states(model.hf, ids)[start:]
        here = found.isel(prompt=prompt)
        # the published recursion: the same way with steps of unit length
        walked, length = x[0].copy(), 0.0
        for one, two in itertools.pairwise(x):
            walked = walked + (two - one) / np.linalg.norm(two - one)
            length += np.linalg.norm(two - one)
        n = len(x) - 1
        assert float(here["line_shape"]) == pytest.approx(n / np.linalg.norm(walked - x[0]))
        assert float(here["length_ratio"]) == pytest.approx(length / np.linalg.norm(x[-1] - x[0]))
        for name, values in {
            "spacing": np.linalg.norm(np.diff(x, axis=0), axis=1),
            "growth": np.linalg.norm(x, axis=1),
        }.items():
            at = np.arange(len(values))
            slope, _ = np.polyfit(at, np.log(values), 1)
            r2 = np.corrcoef(at, np.log(values))[0, 1] ** 2
            assert float(here[f"{name}_rate"]) == pytest.approx(slope)
            assert float(here[f"{name}_r2"]) == pytest.approx(r2)
        rates = np.log(np.linalg.norm(x[1:], axis=1) / np.linalg.norm(x[:-1], axis=1))
        assert float(here["growth_variation"]) == pytest.approx(rates.var() / rates.mean() ** 2)
    np.testing.assert_array_equal(found["layer"], range(start, model.n_layers))
    np.testing.assert_array_equal(found["depth"], range(start, model.n_layers + 1))
    assert (found["line_shape"] >= 1).all()


def test_no_pass_beside_that_of_the_run(model, monkeypatch):
    run = model.run(IDS)
    no_block_runs(monkeypatch)
    lm.trajectory_shape(run)


def test_a_way_of_one_step_has_no_shape(model):
    for start in (2, -1, 0.5, True):
        with pytest.raises(ValueError, match=r"`start` must be a depth in 0..1, .*; got"):
            lm.trajectory_shape(model, IDS, start=start)
