import json
import shutil

import numpy as np
import pytest
import torch
from transformers import BertConfig, GPT2Config, GPT2LMHeadModel, T5Config

from depthsys import lm
from depthsys.lm import model as model_module
from depthsys.lm.hf import attention, checkpoint
from tests.conftest import TINY, tiny_gpt2, tiny_llama
from tests.lm import whole_sequence

IDS = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5], [8, 9, 7, 9, 3, 2, 3, 8]]


def test_states_are_those_of_whole_sequence_forward_passes(tiny):
    states = tiny.run(IDS).states
    assert states.dims == ("depth", "prompt", "feature")
    for prompt, ids in enumerate(IDS):
        expected = whole_sequence.states(tiny.hf, ids)
        np.testing.assert_allclose(states[:, prompt], expected, rtol=1e-10, atol=1e-12)


def test_last_state_gives_the_models_own_logits(tiny):
    for ids in IDS:
        own = tiny.hf(torch.tensor([ids])).logits[:, -1]
        run = tiny.run([ids]).batches[0]
        replayed = run.x[0]
        for block in run.blocks:
            replayed = block(replayed[:, None])[:, 0]
        for x_last in (run.x[-1], replayed):
            ours = tiny.logits(torch.tensor([ids]), x_last)
            limit = 1e-12 if tiny.name == "gpt2" else 1e-6  # Llama's norms compute in float32
            assert float((ours - own).abs().max()) <= limit * float(own.abs().max())


def test_copies_of_the_last_token_do_not_see_each_other(tiny):
    block = tiny.run(IDS[:2]).batches[0].blocks[1]
    copies = block.x[:, None] + torch.randn(2, 5, 16, dtype=torch.float64)
    together = block(copies)
    apart = torch.cat([block(copies[:, [i]]) for i in range(5)], dim=1)
    np.testing.assert_allclose(together, apart, rtol=1e-6, atol=1e-9)


def test_a_block_can_be_replayed_any_number_of_times(tiny):
    block = tiny.run(IDS[:1]).batches[0].blocks[0]
    first = block(block.x[:, None])
    for _ in range(3):
        np.testing.assert_array_equal(block(block.x[:, None]), first)


def test_sliding_window_context_is_cut_like_the_models_own_cache():
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=50,
        sliding_window=4,
        initializer_range=0.3,
    )
    model = lm.DepthModel(MistralForCausalLM(config).double(), name="mistral")
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    run = model.run([ids]).batches[0]
    assert run.blocks[0].context.key.shape[2] == 3
    for depth, expected in enumerate(whole_sequence.states(model.hf, ids)[1:]):
        replayed = run.blocks[depth](run.x[depth][:, None])[0, 0]
        np.testing.assert_allclose(replayed, expected, rtol=1e-6, atol=1e-8)


def test_model_is_left_as_it_was(tiny):
    before = {k: v.clone() for k, v in tiny.hf.state_dict().items()}
    implementation = tiny.hf.config._attn_implementation
    tiny.run(IDS)
    assert tiny.hf.config._attn_implementation == implementation
    assert all(torch.equal(v, before[k]) for k, v in tiny.hf.state_dict().items())
    blocks = whole_sequence.blocks(tiny.hf)
    assert not any(
        "forward" in b.__dict__ or b._forward_hooks or b._forward_pre_hooks for b in blocks
    )


def test_sweep_visits_every_prompt_at_every_layer_and_agrees_with_run(tiny):
    states = tiny.run(IDS).states.values
    run = tiny.run(IDS, budget=lm.Budget(0, 0, 0))
    for blocks in run.sweep().forward():
        layer = blocks.layer
        seen = []
        for block in blocks:
            seen += block.prompts.tolist()
            np.testing.assert_allclose(block.x, states[layer][block.prompts], rtol=1e-12)
            np.testing.assert_allclose(block.x_next, states[layer + 1][block.prompts], rtol=1e-12)
        assert sorted(seen) == [0, 1, 2, 3]


def test_sweep_goes_on_when_a_layer_is_not_used(tiny):
    states = tiny.run(IDS).states.values
    last = None
    for blocks in tiny.run(IDS, budget=lm.Budget(0, 0, 0)).sweep().forward():
        last = next(iter(blocks))
    np.testing.assert_allclose(last.x_next, states[-1][last.prompts], rtol=1e-12)


def test_maps_of_a_run_keep_the_order_of_the_prompts(tiny):
    run = tiny.run(IDS)
    shared = np.random.default_rng(0).standard_normal((2, 16))
    each = np.random.default_rng(1).standard_normal((4, 3, 16))
    jacobian = run.jacobian(1)
    assert jacobian.shape == (4, 16, 16)
    for prompt, ids in enumerate(IDS):
        J = whole_sequence.jacobians(tiny.hf, ids)[1]
        np.testing.assert_allclose(jacobian[prompt], J, atol=1e-6)
        np.testing.assert_allclose(run.jvp(1, shared)[prompt], shared @ J.T, atol=1e-5)
        np.testing.assert_allclose(run.vjp(1, each)[prompt], each[prompt] @ J, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shared_models_load_and_replay_their_own_logits(shared_model_path, dtype):
    model = lm.DepthModel.load(shared_model_path, dtype=dtype, device="cpu")
    gpt2 = model.hf.config.model_type == "gpt2"
    limit = 1e-5 if dtype == "float32" else 1e-12 if gpt2 else 1e-6
    assert max(model.contract[k] for k in ("states", "logits")) <= limit
    assert model.contract["jvp"] < 1e-3


def test_texts_are_cut_on_the_right_and_counted(demo_model):
    texts = ["the film was good .", "the film was good . I liked it a lot ."]
    whole, n_cut = demo_model.tokenize(texts)
    assert n_cut == 0
    path = model_module.Path(demo_model.name)
    short = lm.DepthModel.load(path, max_tokens=len(whole[0]), device="cpu")
    rows, n_cut = short.tokenize(texts)
    assert n_cut == 1
    assert rows == [whole[0], whole[1][: len(whole[0])]]
    assert lm.DepthModel.load(path, max_tokens=10_000, device="cpu").max_tokens == 128


# ----------------------------------------------------------------------- what is refused


@pytest.fixture
def saved(tmp_path):
    """A saved tiny model with the demo tokenizer."""
    from depthsys.demo import model_path

    tiny_gpt2().save_pretrained(tmp_path)
    for file in model_path("demo_48x4").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    return tmp_path


def test_saved_folder_loads(saved):
    model = lm.DepthModel.load(str(saved), device="cpu")
    assert (model.n_layers, model.n_features) == (3, 16)
    assert model.revision == "local"


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "a/b/c", "no such name", "a--b"])
def test_unknown_path(name):
    with pytest.raises(ValueError, match="must be an existing folder or a Hugging Face name"):
        lm.DepthModel.load(name)


def test_unknown_name(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="local folder or a Hugging Face name; got 'no-such/name'"):
        lm.DepthModel.load("no-such/name")


def test_folder_without_config(tmp_path):
    with pytest.raises(ValueError, match=r"must be a folder with a config\.json"):
        lm.DepthModel.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (T5Config(), "decoder-only language model; got the encoder-decoder 't5'"),
        (BertConfig(), "causal language model; got the encoder-only or unknown type 'bert'"),
    ],
)
def test_encoders_are_refused_before_their_weights_are_read(tmp_path, config, message):
    config.save_pretrained(tmp_path)  # no weights in the folder
    with pytest.raises(ValueError, match=message):
        lm.DepthModel.load(tmp_path)


def test_kv_sharing_and_recurrent_layers_are_refused():
    config = GPT2Config()
    config.num_kv_shared_layers = 2
    with pytest.raises(ValueError, match="must not share keys and values"):
        checkpoint.refuse_config(config)
    config = GPT2Config()
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match=r"attention layers only; got \['linear_attention'\]"):
        checkpoint.refuse_config(config)


def test_non_finite_weights_are_named(saved):
    hf = tiny_gpt2()
    hf.transformer.h[1].mlp.c_fc.weight.data[0, 0] = float("nan")
    hf.save_pretrained(saved)
    with pytest.raises(ValueError, match=r"'transformer.h.1.mlp.c_fc.weight' holds NaN"):
        lm.DepthModel.load(saved)


def test_missing_weights_are_refused_not_filled_with_noise(saved):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    del weights["transformer.h.1.ln_1.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks or misfits \['transformer.h.1.ln_1.weight'\]"):
        lm.DepthModel.load(saved)


def test_truncated_weights_and_pickles_are_refused(saved):
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="must hold safetensors weights"):
        lm.DepthModel.load(saved)
    file.unlink()
    torch.save(tiny_gpt2().state_dict(), saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must hold safetensors weights"):
        lm.DepthModel.load(saved)


def test_device_and_dtype(saved):
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="`device` must be available; got 'cuda'"):
            lm.DepthModel.load(saved, device="cuda")
    with pytest.raises(ValueError, match="`device` must be 'auto'"):
        lm.DepthModel.load(saved, device="no-device")
    with pytest.raises(ValueError, match="`dtype` must be one of"):
        lm.DepthModel.load(saved, dtype="float8_e5m2")
    with pytest.raises(ValueError, match="`max_tokens` must be a whole number >= 1"):
        lm.DepthModel(tiny_gpt2(), max_tokens=0)


def test_a_cache_used_in_an_unknown_way_is_an_error():
    cache = attention.FrozenCache(torch.zeros(1), torch.zeros(1))
    with pytest.raises(AttributeError, match="asks its cache for 'crop'"):
        cache.crop(-1)


def test_overflowing_model_is_refused():
    hf = tiny_gpt2()
    hf.transformer.h[2].mlp.c_proj.weight.data[:] = 3e38
    with pytest.raises(FloatingPointError, match="non-finite one after layer 2"):
        lm.DepthModel(hf)


@pytest.mark.parametrize("prompts", ["text", []])
def test_prompts_must_be_a_list(tiny, prompts):
    with pytest.raises((TypeError, ValueError), match="`prompts` must"):
        tiny.run(prompts)


def test_texts_need_a_tokenizer_and_tokens(tiny):
    with pytest.raises(ValueError, match="`tokenizer` must be given"):
        tiny.run(["text"])
    with pytest.raises(ValueError, match=r"at least one token each; got none for number 1, \[\]"):
        tiny.run([[3], []])


def test_token_ids_are_cut_too(tiny):
    rows, n_cut = tiny.tokenize([[*range(40), 1, 2], [3]])
    assert (rows, n_cut) == ([list(range(40)), [3]], 1)


def test_layer_out_of_range(tiny):
    with pytest.raises(ValueError, match=r"`layer` must be in 0..2; got 3"):
        tiny.run(IDS).jacobian(3)


def test_contract_report_is_plain_numbers(tiny):
    assert json.loads(json.dumps(tiny.contract)) == tiny.contract
    assert set(tiny.contract) == {"causality", "states", "logits", "injection", "jvp", "adjoint"}


@pytest.mark.parametrize("family", list(TINY))
def test_fingerprint_changes_with_a_weight(family):
    hf = TINY[family]()
    first = lm.DepthModel(hf).fingerprint
    assert lm.DepthModel(TINY[family]()).fingerprint == first
    next(hf.parameters()).data[0, 0] += 1
    assert lm.DepthModel(hf).fingerprint != first


def test_llama_with_one_key_per_head():
    lm.DepthModel(tiny_llama(num_key_value_heads=4))


def test_families_that_cannot_be_replayed_are_refused_with_a_reason():
    hf = tiny_gpt2()
    block = hf.transformer.h[1]
    original = block.forward

    def asking(hidden_states, past_key_values=None, *args, **kwargs):
        if past_key_values is not None:
            past_key_values.get_seq_length()
        return original(hidden_states, past_key_values, *args, **kwargs)

    block.forward = asking
    with pytest.raises(ValueError, match=r"must be replayable block by block.*get_seq_length"):
        lm.DepthModel(hf)


def test_softcap_sliding_window_and_relu_are_exact():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, vocab_size=50, sliding_window=4, initializer_range=0.5,
        attn_logit_softcapping=2.0,
    )  # fmt: skip
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    for hf in (Gemma2ForCausalLM(config), tiny_gpt2(activation_function="relu")):
        model = lm.DepthModel(hf.double())
        run = model.run([ids]).batches[0]
        for depth, expected in enumerate(whole_sequence.states(model.hf, ids)[1:]):
            replayed = run.blocks[depth](run.x[depth][:, None])[0, 0]
            np.testing.assert_allclose(replayed, expected, rtol=2e-5, atol=1e-5)


def test_eight_bits_and_empty_models_are_refused():
    with pytest.raises(ValueError, match=r"must compute in .* got torch\.float8_e5m2"):
        lm.DepthModel(tiny_gpt2().to(torch.float8_e5m2))
    with pytest.raises(ValueError, match="`model` must have blocks; got 0"):
        checkpoint.refuse_config(GPT2Config(n_layer=0))


def test_token_ids_outside_the_vocabulary(tiny):
    with pytest.raises(ValueError, match=r"token ids in 0..49; number 1 has 3..50"):
        tiny.run([[1], [3, 50]])


def test_train_mode_is_refused():
    model = lm.DepthModel(tiny_gpt2())
    model.hf.train()
    with pytest.raises(ValueError, match="must be in eval mode"):
        model.run(IDS)


def test_config_with_fewer_blocks_than_the_weights(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"n_layer": 2}))
    with pytest.raises(ValueError, match=r"config.json that uses all its blocks"):
        lm.DepthModel.load(saved)


def test_fingerprint_sees_the_configuration_and_every_weight():
    first = lm.DepthModel(tiny_gpt2()).fingerprint
    assert lm.DepthModel(tiny_gpt2().double()).fingerprint == first
    assert lm.DepthModel(tiny_gpt2(activation_function="relu")).fingerprint != first
    hf = tiny_gpt2()
    hf.transformer.wte.weight.data[17, 3] += 1e-3
    assert lm.DepthModel(hf).fingerprint != first


@pytest.mark.slow
@pytest.mark.parametrize(("width", "layers", "heads"), [(768, 12, 12), (1024, 24, 16)])
def test_random_models_of_the_real_gpt2_shapes_pass(width, layers, heads):
    torch.manual_seed(0)
    config = GPT2Config(n_embd=width, n_layer=layers, n_head=heads)
    model = lm.DepthModel(GPT2LMHeadModel(config))
    assert max(model.contract[k] for k in ("states", "logits")) < 1e-5
    ids = np.random.default_rng(0).integers(0, 50_000, size=64).tolist()
    run = model.run([ids]).batches[0]
    own = model.hf(torch.tensor([ids])).logits[:, -1]
    ours = model.logits(torch.tensor([ids]), run.x[-1])
    assert float((ours - own).abs().max()) < 1e-5 * float(own.abs().max())
