"""The contract check must refuse a replay that is wrong: each test breaks one thing."""

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from depthsys import lm
from depthsys.lm import frozen
from depthsys.lm import model as model_module
from tests.conftest import tiny_gpt2, tiny_llama


def test_a_block_that_looks_back_through_the_last_token_is_refused():
    """Not causal: an earlier token reads the mean of the sequence."""
    hf = tiny_gpt2()
    block = hf.transformer.h[1]
    original = block.forward

    def leaking(hidden_states, *args, **kwargs):
        return original(hidden_states + hidden_states.mean(1, keepdim=True), *args, **kwargs)

    block.forward = leaking
    with pytest.raises(ValueError, match="must be causal"):
        lm.DepthModel(hf)


def test_bidirectional_attention_is_refused(monkeypatch):
    """A BERT that slipped through the check of its configuration."""
    monkeypatch.setattr(model_module, "refuse_config", lambda config: None)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    with pytest.raises(ValueError, match=r"must be causal|must store keys and values"):
        lm.DepthModel(BertLMHeadModel(config))


def broken_attention(kind):
    right = frozen.last_token_attention

    def wrong(module, query, key, value, mask, scaling=None, **kwargs):
        if kind == "scaling":
            scaling *= 1.02
        if kind == "context" and key.shape[2] > query.shape[2]:
            key, value = key[:, :, 1:], value[:, :, 1:]
            mask = None if mask is None else mask[..., 1:]
        if kind == "own value":
            value = torch.cat([value[:, :, :-1], value[:, :, -1:] * 1.05], dim=2)
        return right(module, query, key, value, mask, scaling, **kwargs)

    return wrong


@pytest.mark.parametrize("kind", ["scaling", "context", "own value"])
@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama])
def test_slightly_wrong_attention_is_refused(monkeypatch, kind, family):
    monkeypatch.setitem(
        model_module.ALL_ATTENTION_FUNCTIONS._local_mapping,
        model_module.LAST_TOKEN_ATTENTION,
        broken_attention(kind),
    )
    with pytest.raises(ValueError, match=r"must be reproduced by replaying .* relative error"):
        lm.DepthModel(family())


def test_copies_that_see_each_other_are_refused(monkeypatch):
    """The model's own eager attention treats the copies as further context."""
    from transformers.models.gpt2.modeling_gpt2 import eager_attention_forward

    monkeypatch.setitem(
        model_module.ALL_ATTENTION_FUNCTIONS._local_mapping,
        model_module.LAST_TOKEN_ATTENTION,
        lambda m, q, k, v, mask, **kwargs: eager_attention_forward(m, q, k, v, None, **kwargs),
    )
    with pytest.raises(ValueError, match="must respond to an injection"):
        lm.DepthModel(tiny_gpt2())


def test_wrong_derivatives_are_refused(monkeypatch):
    monkeypatch.setattr(frozen, "jvp", lambda f, x, d: 1.015 * lm.linearize.jvp(f, x, d))
    with pytest.raises(ValueError, match="agree with central differences"):
        lm.DepthModel(tiny_gpt2())
    monkeypatch.undo()
    monkeypatch.setattr(frozen, "vjp", lambda f, x, d: 1.001 * lm.linearize.vjp(f, x, d))
    with pytest.raises(ValueError, match="Jacobians and transposed Jacobians that agree"):
        lm.DepthModel(tiny_gpt2())


def test_wrong_logits_are_refused(monkeypatch):
    right = lm.DepthModel.logits
    monkeypatch.setattr(lm.DepthModel, "logits", lambda *args: 1.001 * right(*args))
    with pytest.raises(ValueError, match="must give its own logits"):
        lm.DepthModel(tiny_gpt2())


def test_frozen_gates_are_caught_by_central_differences():
    """A block whose derivative is detached reproduces values but not sensitivities."""
    hf = tiny_gpt2()
    mlp = hf.transformer.h[0].mlp
    original = mlp.forward
    mlp.forward = lambda x: original(x).detach()
    with pytest.raises(ValueError, match="agree with central differences"):
        lm.DepthModel(hf)


def test_all_families_here_pass_far_below_the_limits():
    for family in (tiny_gpt2, tiny_llama):
        report = lm.DepthModel(family()).contract
        assert report["causality"] == 0
        assert max(report[k] for k in ("states", "logits", "injection", "adjoint")) < 1e-5
        assert report["jvp"] < 2e-3
