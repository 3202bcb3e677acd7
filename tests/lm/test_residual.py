"""Dynamics of the residual stream, against numpy on all states at once."""

import numpy as np
import pytest
import xarray as xr

from depthsys import lm
from depthsys.lm.frozen import FrozenBlock
from tests.conftest import tiny_gpt2
from tests.lm.conftest import counted_block_calls, labelled_ids

SETTINGS = {"n_units": 3, "n_trajectories": 6, "n_components": 3, "n_shuffles": 40, "seed": 5}


@pytest.fixture(scope="module", params=["whole", "shards"])
def found(request, tiny):
    """Dynamics, and all states (sublayer, prompt, feature)."""
    texts = labelled_ids(14, 2)
    run = texts if request.param == "whole" else lm.ShardedRun(tiny, texts, shard=5)
    x = lm.sublayer_states(tiny, texts).values
    return lm.residual_dynamics(tiny, run, **SETTINGS), x


def test_moments_and_correlations(found):
    dynamics, x = found
    np.testing.assert_allclose(dynamics["mean"], x.mean(1), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dynamics["deviation"], x.std(1, ddof=1), rtol=1e-9)
    for step in range(len(x) - 1):
        for unit in range(x.shape[2]):
            expected = np.corrcoef(x[step, :, unit], x[step + 1, :, unit])[0, 1]
            here = float(dynamics["correlation"][step, unit])
            assert here == pytest.approx(expected, rel=1e-8, abs=1e-10)
    middle = dynamics["correlation_quantile"].sel(quantile=0.5)
    np.testing.assert_allclose(middle, dynamics["correlation"].median("feature"))


def test_measures_of_each_prompt(found):
    dynamics, x = found
    updates = x[1:] - x[:-1]
    for prompt in range(x.shape[1]):
        here = dynamics.isel(prompt=prompt)
        for step in range(len(x) - 1):
            a, b = x[step, prompt], x[step + 1, prompt]
            cosine = a @ b / np.sqrt((a @ a) * (b @ b))
            assert float(here["cosine"][step]) == pytest.approx(cosine, abs=1e-10)
            speed = np.sqrt(((b - a) ** 2).sum())
            assert float(here["velocity"][step]) == pytest.approx(speed, rel=1e-9)
        for pair in range(len(x) - 2):
            a, b = updates[pair, prompt], updates[pair + 1, prompt]
            cosine = a @ b / np.sqrt((a @ a) * (b @ b))
            assert float(here["update_cosine"][pair]) == pytest.approx(cosine, abs=1e-10)
        for sublayer, state in enumerate(x[:, prompt]):
            assert float(here["norm"][sublayer]) == pytest.approx(np.linalg.norm(state))
            dense = np.abs(state).mean() ** 2 / (state**2).mean()
            assert float(here["density"][sublayer]) == pytest.approx(dense)


def test_steps_are_named_after_the_part_that_writes(found):
    written = found[0]["written_by"].values.tolist()
    assert written[:3] == ["attention", "mlp", "attention"]
    assert len(written) == found[0].sizes["sublayer"] - 1


def test_components_are_those_of_a_dense_decomposition(found):
    dynamics, x = found
    kept = dynamics["trajectory"].values
    assert len(kept) == 6
    rows = x[:, kept].reshape(-1, x.shape[2])
    centre = rows.mean(0)
    size, axes = np.linalg.svd(rows - centre, full_matrices=False)[1:]
    np.testing.assert_allclose(dynamics["centre"], centre, atol=1e-10)
    np.testing.assert_allclose(dynamics["explained"], (size**2 / (size**2).sum())[:3], rtol=1e-8)
    np.testing.assert_allclose(np.abs(dynamics["axes"].values @ axes[:3].T), np.eye(3), atol=1e-6)
    scores = (x[:, kept] - centre) @ dynamics["axes"].values.T
    np.testing.assert_allclose(dynamics["score"], scores, atol=1e-9)
    means = (x.mean(1) - centre) @ dynamics["axes"].values.T
    np.testing.assert_allclose(dynamics["mean_score"], means, atol=1e-9)


def test_turns_follow_the_phase_of_the_mean(found):
    """Against angles of complex numbers, followed with numpy's unwrap."""
    dynamics, x = found
    for unit in range(x.shape[2]):
        a = x[:, :, unit].mean(1)
        assert float(dynamics["turns"][unit]) == pytest.approx(phase_turns(a), abs=1e-8)
    own = [
        np.mean([phase_turns(x[:, prompt, unit]) for unit in range(x.shape[2])])
        for prompt in range(x.shape[1])
    ]
    np.testing.assert_allclose(dynamics["prompt_turns"], own, atol=1e-7)
    assert ((dynamics["p_value"] >= 1 / 41) & (dynamics["p_value"] <= 1)).all()
    assert (dynamics["q_value"] >= dynamics["p_value"]).all()


def phase_turns(a: np.ndarray) -> float:
    g = np.gradient(a)
    z = (a - a.mean()) / a.std() + 1j * (g - g.mean()) / g.std()
    return -(np.unwrap(np.angle(z))[-1] - np.angle(z)[0]) / (2 * np.pi)


def test_information_is_what_scikit_learn_says(found):
    from sklearn.feature_selection import mutual_info_regression

    dynamics, x = found
    for unit in dynamics["unit"].values:
        for step in (0, len(x) - 2):
            a, b = x[step, :, unit], x[step + 1, :, unit]
            expected = mutual_info_regression(a[:, None], b, random_state=5)[0]
            here = dynamics["mutual_information"].sel(step=step, unit=unit)
            assert float(here) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert dynamics.attrs["estimator"] == "sklearn.feature_selection.mutual_info_regression"


def test_one_row_per_prompt_and_layer_beside_the_prefill(tiny, monkeypatch):
    texts = labelled_ids(9, 1)
    lm.residual_dynamics(tiny, texts, **SETTINGS)
    calls = counted_block_calls(tiny, monkeypatch)
    rows, call = [], FrozenBlock.__call__
    monkeypatch.setattr(
        FrozenBlock,
        "__call__",
        lambda block, x: (rows.append(x.shape[0] * x.shape[1]), call(block, x))[1],
    )
    lm.residual_dynamics(tiny, texts, **SETTINGS)
    assert sum(rows) == len(texts) * tiny.n_layers
    prefill = sum(n for _, n in calls) - sum(rows)
    run = tiny.run(texts, contexts=False)
    assert prefill == run.n_padded_tokens * tiny.n_layers


def test_the_same_seed_gives_the_same_and_another_does_not(tiny):
    texts = labelled_ids(9, 1)
    first, again = (lm.residual_dynamics(tiny, texts, **SETTINGS) for _ in range(2))
    xr.testing.assert_identical(first.drop_attrs(), again.drop_attrs())
    other = lm.residual_dynamics(tiny, texts, **{**SETTINGS, "seed": 6})
    assert not np.array_equal(first["unit"], other["unit"])


def test_less_is_found_where_less_is_wanted(tiny):
    texts = labelled_ids(9, 1)
    found = lm.residual_dynamics(tiny, texts, **{**SETTINGS, "n_units": 0, "n_shuffles": 0})
    assert found["mutual_information"].shape == (2 * tiny.n_layers - 1, 0)
    assert found["p_value"].isnull().all()
    assert found["turns"].notnull().all()


def test_a_model_of_one_layer_is_refused():
    model = lm.DepthModel(tiny_gpt2(n_layer=1))
    with pytest.raises(ValueError, match="`run` must be of a model of 2 layers at least; got 1"):
        lm.residual_dynamics(model, labelled_ids(9, 1))
