"""Ensemble balancing on trained models in float32, against autograd through all blocks at once."""

import numpy as np
import pytest
import torch

from depthsys import demo, lm, ltv
from depthsys.demo import grammar


def mean_exact_gains(model, texts, concept):
    """One backward pass through the chain of all blocks, with a tap at each of their inputs."""
    v = direction(model, concept)
    total = np.zeros(model.n_layers)
    for run in model.stream(texts):
        taps = [torch.zeros_like(block.x).requires_grad_() for block in run.blocks]
        x = run.x[0]
        for block, tap in zip(run.blocks, taps, strict=True):
            x = block((x + tap)[:, None])[:, 0]
        gradients = torch.autograd.grad((x @ v[-1]).sum(), taps)
        total += [
            float((g.double() @ d.double()).sum()) for g, d in zip(gradients, v[:-1], strict=True)
        ]
    return total / len(texts)


def check(model, texts):
    concept = lm.mean_difference(model, texts.concept)
    system = lm.identify(model, texts.operating, concept, lm.Ensemble(order=1))
    exact = mean_exact_gains(model, texts.operating, concept)
    off = np.linalg.norm(ltv.gains(system).values.ravel() - exact) / np.linalg.norm(exact)
    assert off < 1e-6
    # averaging Jacobians instead would be seen
    mean = lm.identify(model, texts.operating, concept, lm.Krylov(order=32))
    product = np.linalg.norm(mean.gain_full.values - exact) / np.linalg.norm(exact)
    assert product > 1e-4
    assert not set(system.data_vars) & {"V", "W"}
    ltv.check(system)


@pytest.mark.parametrize("task", ["sst2", pytest.param("tweet_hate", marks=pytest.mark.slow)])
def test_order_one_has_the_mean_exact_gains_of_shared_models(shared_model_path, data, task):
    model = lm.DepthModel.load(shared_model_path, device="cpu", left_padding=True)
    texts = lm.read_texts(data / "tasks" / f"{task}.csv")
    check(model, texts.split(concept=40, operating=30, held_out=10))


@pytest.mark.parametrize("name", list(demo.MODELS))
def test_order_one_has_the_mean_exact_gains_of_demo_models(name):
    model = lm.DepthModel.load(demo.model_path(name), device="cpu", left_padding=True)
    check(
        model,
        lm.read_texts(grammar.labelled(100, seed=3)).split(concept=40, operating=30, held_out=10),
    )
