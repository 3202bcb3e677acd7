"""Tiny GGUF files, made tensor by tensor with the package gguf."""

import gguf
import numpy as np

from tests.conftest import tiny_llama

WIDTH, HEADS, KEY_HEADS, LAYERS, INSIDE, VOCABULARY = 32, 4, 2, 2, 64, 50
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
KINDS = ("Q8_0", "Q4_0", "Q4_1", "F16", "BF16", "F32")
WORDS = ["good", "bad", "film", "Ġgood", "Ġbad", "Ġfilm"]


def same_llama():
    """The model that is written."""
    return tiny_llama(
        hidden_size=WIDTH, intermediate_size=INSIDE, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, vocab_size=VOCABULARY,
    )  # fmt: skip


def written(path, kind="Q8_0", architecture="llama", without=(), shapes=()):
    """A tiny Llama; gives its weights as they can be read back."""
    hf = same_llama()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(40)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INSIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCABULARY)
    _write_tokenizer(writer)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for layer in range(LAYERS):
        for ours, theirs in NAMES.items():
            names[f"model.layers.{layer}.{ours}"] = f"blk.{layer}.{theirs}"
    readable = {}
    for name, weight in hf.state_dict().items():
        module = name.removesuffix(".weight")
        if names[module] not in without:
            values = weight.numpy()
            if names[module] in dict(shapes):
                values = np.ones(dict(shapes)[names[module]], values.dtype)
            readable[name] = _write(writer, names[module] + ".weight", module, values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return readable


def _write(writer, stored, module, values, kind):
    if not module.endswith("_proj"):
        writer.add_tensor(stored, values)
        return values
    kind = gguf.GGMLQuantizationType[kind]
    readable = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    heads = {"q_proj": HEADS, "k_proj": KEY_HEADS}.get(module.split(".")[-1])
    if heads:  # llama.cpp pairs the rotated features otherwise
        values = values.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(values.shape)
    writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
    return np.asarray(readable)


def _write_tokenizer(writer):
    """Byte-level pairs, as those of GPT-2, with merges for a few words."""
    letters = sorted({letter for word in WORDS for letter in word})
    tokens, merges = ["<s>", "</s>", *letters], []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    tokens += [f"<unused{i}>" for i in range(VOCABULARY - len(tokens))]
    assert len(tokens) == VOCABULARY
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (VOCABULARY - 2))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
