"""What users do to a model beside or after wrapping it must be seen, not give wrong numbers."""

import copy
import threading

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import GemmaConfig, GemmaForCausalLM, GPTJConfig, GPTJForCausalLM

from depthsys import lm
from depthsys.lm import contract, linearize
from depthsys.lm.hf import blocks as replay
from tests.conftest import tiny_gpt2
from tests.lm import families, whole_sequence
from tests.lm.conftest import labelled_ids

IDS = [[3, 1, 4, 1, 5], [9, 2, 6], [5], [8, 9, 7, 9, 3]]


@pytest.fixture
def model():
    return lm.DepthModel(tiny_gpt2(attn_pdrop=0.5, resid_pdrop=0.5).double())


def test_train_mode_is_refused_at_any_time(model):
    run = model.run(IDS)
    model.hf.train()
    with pytest.raises(ValueError, match="must be in eval mode; layer 1 is in train mode"):
        run.jacobian(1)
    model.hf.eval()
    model.hf.transformer.h[2].mlp.train()
    with pytest.raises(ValueError, match="layer 2 is in train mode"):
        model.run(IDS)
    model.hf.eval()
    model.run(IDS)


def test_hooks_put_on_a_block_later_are_refused(model):
    run = model.run(IDS)
    block = model.hf.transformer.h[1]
    handle = block.register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))
    for call in (lambda: run.jacobian(1), lambda: model.run(IDS)):
        with pytest.raises(ValueError, match=r"must keep the hooks .* layer 1"):
            call()
    handle.remove()
    np.testing.assert_array_equal(model.run(IDS).jacobian(1), run.jacobian(1))


def test_recording_by_transformers_itself_is_no_hook(model):
    before = model.run(IDS).jacobian(1)
    model.hf(torch.tensor([[1, 2]]), output_hidden_states=True, output_attentions=True)
    np.testing.assert_array_equal(model.run(IDS).jacobian(1), before)


def test_weights_changed_after_wrapping_are_refused(model, tmp_path):
    with torch.no_grad():
        model.hf.transformer.h[0].mlp.c_fc.weight.mul_(1.5)
    with pytest.raises(ValueError, match="must keep the weights it was wrapped with"):
        model.run(IDS)
    hidden = lm.DepthModel(tiny_gpt2().double())
    hidden.hf.transformer.h[0].mlp.c_fc.weight.data *= 1.5  # torch does not count this
    with pytest.raises(ValueError, match="must keep the weights it was wrapped with"):
        lm.jacobians(hidden, IDS, out=tmp_path / "out")


def test_threads_share_a_model(model):
    expected = model.run(IDS).jacobian(1, part="mlp")
    failures = []

    def work():
        for _ in range(6):
            run = model.run(IDS)
            if not torch.equal(run.jacobian(1, part="mlp"), expected):
                failures.append("other numbers")
            run.jvp(2, np.eye(16))

    def guarded():
        try:
            work()
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=guarded) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert model.hf.config._attn_implementation != "depthsys_last_token"


def test_a_run_can_be_copied(model):
    run = model.run(IDS)
    other = copy.deepcopy(run)
    np.testing.assert_array_equal(other.jacobian(1), run.jacobian(1))


def test_autocast_does_not_lower_the_dtype():
    model = lm.DepthModel(tiny_gpt2())
    expected = model.run(IDS).jacobian(1)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.run(IDS).jacobian(1)
    np.testing.assert_array_equal(found, expected)


def test_inference_mode(model):
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"outside torch.inference_mode"):
        model.run(IDS).jacobian(1)
    with torch.no_grad():
        model.run(IDS).jacobian(1)


@pytest.mark.parametrize("max_tokens", [2, 8])
def test_a_short_limit_does_not_switch_the_check_off(max_tokens):
    config = GemmaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, vocab_size=50, use_bidirectional_attention=True,
    )  # fmt: skip
    with pytest.raises(ValueError, match="must be causal"):
        lm.DepthModel(GemmaForCausalLM(config), max_tokens=max_tokens)


def broken_where(monkeypatch, wrong_for):
    """The replay is 1 % off for batches for which ``wrong_for(calls)`` holds."""
    right = replay.Blocks._last_token

    def wrong(blocks, layer, calls, states, frozen):
        out = right(blocks, layer, calls, states, frozen)
        return out * 1.01 if wrong_for(calls) else out

    monkeypatch.setattr(replay.Blocks, "_last_token", wrong)


def test_the_check_looks_past_the_sliding_window(monkeypatch):
    broken_where(monkeypatch, lambda calls: calls.embedded.shape[1] > 12)
    hf = families.make("mistral", "sdpa", window=12)
    with pytest.raises(ValueError, match="on a prompt of 14 tokens"):
        lm.DepthModel(hf)
    lm.DepthModel(hf, max_tokens=12)


def test_the_check_looks_at_left_padding(monkeypatch):
    broken_where(monkeypatch, lambda calls: calls.real is not None)
    with pytest.raises(ValueError, match="must be reproduced by replaying"):
        lm.DepthModel(tiny_gpt2(), left_padding=True)
    lm.DepthModel(tiny_gpt2())


def test_copies_as_rows_in_parts_are_the_same(monkeypatch):
    config = GPTJConfig(
        n_embd=16, n_layer=2, n_head=2, rotary_dim=4, vocab_size=50, n_positions=32
    )  # fmt: skip
    torch.manual_seed(0)
    model = lm.DepthModel(GPTJForCausalLM(config).double())
    assert model.blocks.copies_are == "rows"
    block = model.run(IDS[:1]).batches[0].blocks[1]
    states = block.x[:, None] + torch.randn(1, 7, 16, dtype=torch.float64)
    whole = block(states)
    sizes, right = [], replay.Blocks._copies_as_rows

    def counted(blocks, layer, calls, part, frozen):
        sizes.append(part.shape[1])
        return right(blocks, layer, calls, part, frozen)

    monkeypatch.setattr(replay.Blocks, "_copies_as_rows", counted)
    monkeypatch.setattr(replay, "REPEATED_CONTEXT", 2 * (4 * 16 * 8 * 2))  # two contexts of 4
    np.testing.assert_allclose(block(states), whole, rtol=1e-12)
    assert max(sizes) == 2
    assert sum(sizes) == 7


def test_padding_that_overflows_does_not_reach_the_next_block():
    """Two masks added make rows without one open place NaN in float64 eager attention."""
    hf = families.make("gpt_neox", "eager")
    original = hf.gpt_neox.layers[0].forward

    def overflowing(hidden_states, attention_mask=None, *args, **kwargs):
        closed = None
        if attention_mask is not None and attention_mask.shape[2] > 1:
            closed = (attention_mask[0, 0] < 0).all(-1)
        out = original(hidden_states, attention_mask, *args, **kwargs)
        if closed is not None:
            out[0, closed] = torch.nan
        return out

    ids = [[1, 2, 3, 4, 5], [3, 1, 4, 1, 5, 9]]
    expected = lm.DepthModel(hf).run(ids).states
    hf.gpt_neox.layers[0].forward = overflowing
    padded = lm.DepthModel(hf, left_padding=True).run(ids)
    assert len(padded.batches) == 1
    np.testing.assert_allclose(padded.states, expected, atol=1e-5)


def test_a_change_of_experts_within_the_step_is_no_refusal(monkeypatch):
    """The differences of most directions and steps cross a jump: the best one counts."""
    right = contract._row_errors

    def crossing(value, reference):
        found = right(value, reference)
        # one row per prompt and direction: only the last direction of each prompt is kept
        of_directions = len(found) == 2 * contract.N_DIRECTIONS
        last = contract.N_DIRECTIONS - 1
        is_last = torch.arange(len(found)) % (last + 1) == last
        kept = torch.where(is_last, found, 1.0)
        return kept if of_directions else found

    monkeypatch.setattr(contract, "_row_errors", crossing)
    report = lm.DepthModel(families.make("mixtral", "sdpa")).contract
    assert 0 < report["jvp"] < 1e-2


@pytest.mark.parametrize("wrong", ["one prompt", "NaN"])
def test_a_wrong_derivative_of_one_prompt_is_refused(monkeypatch, wrong):
    right = linearize.Linearised.jvp

    def spoilt(linear, directions):
        product = right(linear, directions).clone()
        product[-1] = torch.nan if wrong == "NaN" else 1.02 * product[-1]
        return product

    monkeypatch.setattr(linearize.Linearised, "jvp", spoilt)
    monkeypatch.setattr(contract, "REPLAY_LIMIT", dict.fromkeys(contract.REPLAY_LIMIT, 1.0))
    with pytest.raises(ValueError, match=r"must have Jacobians"):
        lm.DepthModel(tiny_gpt2())


def test_directions_that_cannot_be_meant(model):
    run, eye = model.run(IDS), np.eye(16)
    with pytest.raises(TypeError, match="must be real; got complex"):
        run.jvp(1, 1j * eye)
    with pytest.raises(ValueError, match="must be finite"):
        run.vjp(1, eye * np.nan)
    with pytest.raises(ValueError, match=r"Write v\[None\]"):
        run.jvp(1, eye[0])
    with pytest.raises(ValueError, match="`layer` must be in"):
        run.jvp(1.0, eye)
    np.testing.assert_array_equal(run.jvp(1, eye[::-1]), run.jvp(1, eye[::-1].copy()))
    rows = xr.DataArray(eye[:3, None], dims=["layer", "direction", "feature"])
    shuffled = rows.assign_coords(layer=[0, 1, 2])[[2, 0, 1]]
    tokens = labelled_ids(4, 0)
    xr.testing.assert_equal(lm.mean_jvp(model, tokens, shuffled), lm.mean_jvp(model, tokens, rows))


def test_prompts_and_models_that_cannot_be_meant(model):
    for ids in ([1, 2, 3], [[1.0, 2.0]], [[True, False]]):
        with pytest.raises(TypeError, match="must be a list of texts or of lists of token ids"):
            model.run(ids)
    with pytest.raises(TypeError, match=r"use `DepthModel.load"):
        lm.DepthModel("gpt2")
    with pytest.raises(AttributeError):
        model.max_tokens = 10


def test_cut_prompts_are_counted():
    model = lm.DepthModel(tiny_gpt2(), max_tokens=4)
    run = model.run(IDS)
    assert run.n_cut == 2
    assert "2 of them cut" in repr(run)
    assert len(repr(run)) < 200
    assert len(repr(model)) < 200


def test_lists_of_token_ids_go_through_the_whole_job(concept):
    model = lm.DepthModel(tiny_gpt2().double())
    ids = labelled_ids(6, 1).ids
    system = lm.identify(model, ids, concept)
    measured = lm.measure_gains(model, ids, concept)
    linear = lm.linear_gains(model, ids, concept)
    assert measured.attrs["prompts_sha256"] == system.attrs["prompts_sha256"]
    assert linear.attrs["tokens_sha256"] == system.attrs["tokens_sha256"]
    v = concept.direction.values
    chain = [whole_sequence.chain_gains(whole_sequence.jacobians(model.hf, i), v) for i in ids]
    np.testing.assert_allclose(linear.gain, chain, rtol=1e-6, atol=1e-9)


def test_two_runs_on_one_store_are_refused(model, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []
    sweep = lm.Run.sweep

    def second(self, *args, **kwargs):
        if not seen:
            seen.append(True)
            with pytest.raises(ValueError, match="must not be written by two runs at once"):
                lm.jacobians(model, IDS, out=out)
        return sweep(self, *args, **kwargs)

    monkeypatch.setattr(lm.Run, "sweep", second)
    stored = lm.jacobians(model, IDS, out=out)
    assert seen
    np.testing.assert_array_equal(stored.A, lm.jacobians(model, IDS).A)
