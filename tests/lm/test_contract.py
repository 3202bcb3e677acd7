"""The contract check must refuse a replay that is wrong: each test breaks one thing."""

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from depthsys import lm
from depthsys.lm import linearize
from depthsys.lm import model as model_module
from depthsys.lm.hf import attention
from depthsys.lm.hf import blocks as replay
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
    right = attention.last_token_attention

    def wrong(module, query, key, value, mask, scaling=None, **kwargs):
        frozen = attention._IN_USE.get()
        other = attention.FrozenCache(frozen.key, frozen.value)
        if kind == "scaling":
            scaling *= 1.02
        if kind == "context" and frozen.key.shape[2] > 0:
            other = attention.FrozenCache(frozen.key[:, :, 1:], frozen.value[:, :, 1:])
            mask = None if mask is None else mask[..., 1:]
        if kind == "own value":
            value = value * 1.05
        frozen.has_served = True
        with other.in_use():
            other.handed = key, value
            return right(module, query, key, value, mask, scaling, **kwargs)

    return wrong


@pytest.mark.parametrize("kind", ["scaling", "context", "own value"])
@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama])
def test_slightly_wrong_attention_is_refused(monkeypatch, kind, family):
    monkeypatch.setitem(
        replay.ALL_ATTENTION_FUNCTIONS._local_mapping,
        replay.LAST_TOKEN_ATTENTION,
        broken_attention(kind),
    )
    with pytest.raises(ValueError, match=r"must be reproduced by replaying .* relative error"):
        lm.DepthModel(family())


def test_copies_that_see_each_other_are_refused(monkeypatch):
    """Eager attention without a mask treats the copies as further context."""
    from transformers.models.gpt2.modeling_gpt2 import eager_attention_forward

    def seeing(module, query, key, value, mask, **kwargs):
        frozen = attention._IN_USE.get()
        frozen.has_served = True
        key, value = torch.cat([frozen.key, key], 2), torch.cat([frozen.value, value], 2)
        return eager_attention_forward(module, query, key, value, None, **kwargs)

    monkeypatch.setitem(
        replay.ALL_ATTENTION_FUNCTIONS._local_mapping, replay.LAST_TOKEN_ATTENTION, seeing
    )
    # as soon as there are three copies, the nominal one is off too
    with pytest.raises(ValueError, match=r"must be reproduced|must respond to an injection"):
        lm.DepthModel(tiny_gpt2())


@pytest.mark.parametrize(
    ("product", "factor", "reason"),
    [
        ("jvp", 1.015, "agree with central differences"),
        ("vjp", 1.001, "Jacobians and transposed Jacobians that agree"),
    ],
)
def test_wrong_derivatives_are_refused(monkeypatch, product, factor, reason):
    right = getattr(linearize.Linearised, product)
    monkeypatch.setattr(linearize.Linearised, product, lambda *args: factor * right(*args))
    with pytest.raises(ValueError, match=reason):
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
