"""Layers left out, against whole sequences with a hook and dense Jacobians."""

import numpy as np
import pytest
import torch

from depthsys import lm
from tests.conftest import tiny_gpt2, tiny_llama
from tests.lm import whole_sequence
from tests.lm.conftest import labelled_ids


@pytest.fixture(scope="module", params=[tiny_gpt2, tiny_llama])
def model(request):
    return lm.DepthModel(request.param().double())


@pytest.fixture(scope="module")
def found(model):
    texts = labelled_ids(5, 3)
    concept = lm.mean_difference(model, texts)
    return lm.layer_skip(model, texts, concept), concept, list(texts.ids)


def test_what_is_lost_is_what_whole_sequences_lose(model, found):
    costs, concept, prompts = found
    v = concept["direction"].values[-1]
    for number, ids in enumerate(prompts):
        x = whole_sequence.states(model.hf, ids)
        with torch.no_grad():
            own = torch.log_softmax(model.hf(torch.tensor([ids])).logits[0, -1], -1).numpy()
        for layer in range(model.n_layers):
            end, log_p = whole_sequence.skipped(model.hf, ids, layer)
            here = costs.isel(prompt=number, layer=layer)
            assert float(here["shift"]) == pytest.approx(v @ (end - x[-1]), rel=1e-9, abs=1e-11)
            error = np.linalg.norm(end - x[-1]) / np.linalg.norm(x[-1])
            assert float(here["state_error"]) == pytest.approx(error, rel=1e-9)
            kl = np.sum(np.exp(own) * (own - log_p))
            assert float(here["kl"]) == pytest.approx(kl, rel=1e-7, abs=1e-12)
            update = np.linalg.norm(x[layer + 1] - x[layer]) / np.linalg.norm(x[layer])
            assert float(here["update"]) == pytest.approx(update, rel=1e-9)


def test_the_prediction_is_that_of_dense_jacobians(model, found):
    costs, concept, prompts = found
    v = concept["direction"].values[-1]
    for number, ids in enumerate(prompts[:2]):
        x, A = whole_sequence.states(model.hf, ids), whole_sequence.jacobians(model.hf, ids)
        for layer in range(model.n_layers):
            step = x[layer] - x[layer + 1]
            for later in range(layer + 1, model.n_layers):
                step = A[later] @ step
            predicted = float(costs["predicted"][number, layer])
            # Llama's norms round to float32
            assert predicted == pytest.approx(v @ step, rel=1e-5, abs=1e-7)


def test_without_the_last_layer_the_prediction_is_exact(found):
    last = found[0].isel(layer=-1)
    np.testing.assert_allclose(last["predicted"], last["shift"], rtol=1e-9)


def test_a_layer_that_does_nothing_costs_nothing():
    hf = tiny_gpt2().double()
    for name, parameter in hf.transformer.h[1].named_parameters():
        if "c_proj" in name:
            parameter.data.zero_()
    model = lm.DepthModel(hf)
    texts = labelled_ids(4, 3)
    costs = lm.layer_skip(model, texts, lm.mean_difference(model, texts)).sel(layer=1)
    for name in ("predicted", "shift", "state_error", "kl", "update"):
        np.testing.assert_allclose(costs[name], 0, atol=1e-12)


def test_several_readouts(model, found):
    costs, concept, _ = found
    rows = np.stack([concept["direction"].values[-1], np.eye(model.n_features)[0]])
    several = lm.layer_skip(model, labelled_ids(5, 3), concept, readout=rows)
    assert several["shift"].dims == ("prompt", "layer", "output")
    np.testing.assert_allclose(several["shift"][..., 0], costs["shift"], rtol=1e-9)
    np.testing.assert_allclose(several["predicted"][..., 0], costs["predicted"], rtol=1e-9)


def test_rows_and_products_are_those_that_are_said(model, monkeypatch):
    """(L - 1) L / 2 rows through a block, and L - 1 transposed products, per prompt.

    A product evaluates the block once.
    """
    from depthsys.lm.frozen import FrozenBlock

    texts, rows = labelled_ids(5, 3), {"block": 0, "product": 0}
    run = model.run(texts)
    concept = lm.mean_difference(model, texts)
    call, vjp = FrozenBlock.__call__, FrozenBlock.vjp

    def counted(block, x):
        rows["block"] += x.shape[0] * x.shape[1]
        return call(block, x)

    def multiplied(block, directions, part="block"):
        rows["product"] += directions.shape[0] * directions.shape[1]
        return vjp(block, directions, part)

    monkeypatch.setattr(FrozenBlock, "__call__", counted)
    monkeypatch.setattr(FrozenBlock, "vjp", multiplied)
    lm.layer_skip(run, concept)
    L, P = model.n_layers, len(run)
    products = P * (L - 1)
    assert rows == {"block": P * L * (L - 1) // 2 + products, "product": products}
