"""What the refusal of a GGUF file says can be done, can be done."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from depthsys import lm
from depthsys.lm.hf import causes
from tests.conftest import tiny_llama

WIDTH, HEADS, KEY_HEADS, LAYERS, INSIDE = 32, 4, 2, 2, 64
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def written(path):
    """A tiny Llama in eight bits; gives its weights as they can be read back."""
    hf = tiny_llama(
        hidden_size=WIDTH, intermediate_size=INSIDE, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS,
    )  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(40)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INSIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(50)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(50)])
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for layer in range(LAYERS):
        for ours, theirs in NAMES.items():
            names[f"model.layers.{layer}.{ours}"] = f"blk.{layer}.{theirs}"
    kind, readable = gguf.GGMLQuantizationType.Q8_0, {}
    for name, weight in hf.state_dict().items():
        module, values = name.removesuffix(".weight"), weight.numpy()
        stored, heads = names[module] + ".weight", {"q_proj": HEADS, "k_proj": KEY_HEADS}
        if not module.endswith("_proj"):
            writer.add_tensor(stored, values)
            readable[name] = values
            continue
        packed = gguf.quants.quantize(values, kind)
        readable[name] = gguf.quants.dequantize(packed, kind)
        if module.split(".")[-1] in heads:  # llama.cpp pairs the rotated features otherwise
            paired = values.reshape(heads[module.split(".")[-1]], 2, -1, WIDTH)
            packed = gguf.quants.quantize(paired.swapaxes(1, 2).reshape(values.shape), kind)
        writer.add_tensor(stored, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return readable


def test_the_weights_in_a_gguf_file_can_be_used_as_its_refusal_says(tmp_path):
    readable = written(tmp_path / "tiny.gguf")
    with pytest.raises(ValueError, match="got the GGUF file") as caught:
        lm.DepthModel.load(tmp_path / "tiny.gguf")
    call = str(caught.value).split("`hf = ")[1].split("`, the same")[0]
    assert caught.value.args == causes.gguf_error(tmp_path / "tiny.gguf").args
    hf = eval(call, {"AutoModelForCausalLM": AutoModelForCausalLM, "torch": torch})
    for name, values in readable.items():
        np.testing.assert_array_equal(hf.state_dict()[name], values)
    model = lm.DepthModel(hf)
    assert model.contract["logits"] < 1e-5
    assert model.contract["jvp"] < 1e-3
