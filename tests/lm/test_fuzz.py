"""Random configurations of every family: exact, or refused with a reason, never wrong.

`FUZZ` lists, per family, groups of options of which each example draws one. Hugging Face's own
steps down to float32 are left out (`families.double_inside`), so that the limit is that of float64.
Examples are the same in every run (``derandomize``).
"""

import collections

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from depthsys import lm
from tests.lm import families
from tests.lm.families import FAMILIES, N_FEATURES

pytestmark = pytest.mark.slow

EXAMPLES = 20  # per family
LIMIT = 1e-11
# Largest share of refused examples. Falcon with ALiBi under sdpa: Hugging Face's eager attention
# adds ALiBi twice and is another model. Phi-3 with frequencies that depend on the length, padded.
REFUSED = {"falcon": 0.3, "phi3": 0.5}

_FULL, _SLIDING = "full_attention", "sliding_attention"


def options(name, *values):
    """Examples of one option."""
    return [{name: value} for value in values]


def heads(*pairs, **fixed):
    """Numbers of query heads and of key heads."""
    return [{"num_attention_heads": n, "num_key_value_heads": k} | fixed for n, k in pairs]


def rope(*kinds):
    return options("rope_parameters", *kinds)


def partial(*factors):
    return rope(*({"rope_type": "default", "partial_rotary_factor": f} for f in factors))


_GROUPS = heads((1, 1), (2, 1), (4, 1), (4, 2), (4, 4), (8, 2))
_EVEN = heads((2, 1), (4, 1), (4, 2), (4, 4))
_ACTIVATION = options("hidden_act", "silu", "gelu", "relu", "gelu_pytorch_tanh")
_HEAD_DIM = options("head_dim", 4, 6, 8)
_TIED = options("tie_word_embeddings", True, False)
_BIAS = options("attention_bias", True, False)
_MLP_BIAS = options("mlp_bias", True, False)
_WINDOW = options("sliding_window", 2, 3, 4, 7, 12, 40)
_EPS = options("rms_norm_eps", 1e-6, 1e-2)
_NORM_EPS = options("layer_norm_eps", 1e-5, 1e-2)
_LAYERS = [
    {"num_hidden_layers": len(types), "layer_types": types}
    for types in ([_SLIDING], [_FULL, _SLIDING], [_SLIDING, _SLIDING], [_SLIDING, _FULL, _FULL])
]
_ROPE = rope(
    {"rope_type": "default", "rope_theta": 100.0},
    {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0},
    {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 50.0,
     "original_max_position_embeddings": 6},
    {"rope_type": "yarn", "factor": 4.0, "rope_theta": 50.0,
     "original_max_position_embeddings": 16},
    {"rope_type": "llama3", "factor": 4.0, "rope_theta": 50.0, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
)  # fmt: skip
_LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [3.0, 5.0, 7.0, 9.0],
}
_SOFTCAP = options("attn_logit_softcapping", None, 0.5, 30.0)
_TOP = options("num_experts_per_tok", 1, 2, 3)

FUZZ = {
    "gpt2": [
        options("n_head", 1, 2, 4, 8), options("n_inner", None, 24), options("n_layer", 1, 3),
        options("activation_function", "gelu_new", "relu", "silu", "tanh"),
        options("scale_attn_weights", True, False),
        options("scale_attn_by_inverse_layer_idx", True, False),
        _TIED,
    ],
    "gpt_neo": [
        options("num_heads", 1, 2, 4), options("window_size", 2, 3, 4, 7, 12, 40),
        options("intermediate_size", None, 24), options("activation_function", "gelu_new", "relu"),
        options("attention_types", [[["global", "local"], 1]], [[["local"], 2]],
                [[["local", "global"], 1]]), _TIED,
    ],
    "gptj": [
        [{"n_head": 1, "rotary_dim": 16}, {"n_head": 2, "rotary_dim": 2},
         {"n_head": 2, "rotary_dim": 8}, {"n_head": 4, "rotary_dim": 4}],
        options("n_inner", None, 24), options("activation_function", "gelu_new", "relu"), _TIED,
    ],
    "gpt_neox": [
        options("num_attention_heads", 1, 2, 4), partial(0.25, 0.5, 1.0), _BIAS, _ACTIVATION,
        options("use_parallel_residual", True, False), _NORM_EPS, _TIED,
    ],
    "opt": [
        options("num_attention_heads", 1, 2, 4), options("do_layer_norm_before", True, False),
        options("enable_bias", True, False), options("layer_norm_elementwise_affine", True, False),
        options("word_embed_proj_dim", 16, 8), options("activation_function", "relu", "gelu"),
    ],
    "falcon": [
        [{"num_attention_heads": 1}, {"num_attention_heads": 4, "multi_query": True},
         {"num_attention_heads": 4, "multi_query": False},
         {"num_attention_heads": 4, "new_decoder_architecture": True, "num_kv_heads": 2},
         {"num_attention_heads": 4, "new_decoder_architecture": True, "num_kv_heads": 4,
          "num_ln_in_parallel_attn": 1},
         {"num_attention_heads": 4, "parallel_attn": False}],
        options("alibi", False, False, True), options("bias", True, False),
        options("activation", "gelu", "silu"), options("ffn_hidden_size", None, 24), _TIED,
    ],
    "bloom": [
        options("n_head", 1, 2, 4), options("n_layer", 1, 3), _TIED,
        options("apply_residual_connection_post_layernorm", True, False),
        options("slow_but_exact", False, True), options("pretraining_tp", 1, 2),
    ],
    "llama": [
        _EVEN, options("head_dim", None, 4, 6), _ROPE, _BIAS, _MLP_BIAS, _ACTIVATION, _TIED, _EPS,
    ],
    "mistral": [_EVEN, options("head_dim", None, 6), _WINDOW, _ROPE, _ACTIVATION, _TIED, _EPS],
    "ministral": [_GROUPS, _HEAD_DIM, _WINDOW, _LAYERS, _ACTIVATION, _TIED],
    "qwen2": [_EVEN, _WINDOW, _LAYERS, _ROPE, _ACTIVATION, _TIED, _EPS],
    "qwen3": [_GROUPS, _HEAD_DIM, _WINDOW, _LAYERS, _BIAS, _ROPE, _TIED],
    "gemma": [_GROUPS, _HEAD_DIM, _BIAS, _ACTIVATION, _ROPE, _TIED],
    "gemma2": [
        _GROUPS, _HEAD_DIM, _WINDOW, _LAYERS, _SOFTCAP, _BIAS,
        options("query_pre_attn_scalar", 1, 7), options("hidden_activation", "relu", "silu"),
    ],
    "gemma3_text": [
        _GROUPS, _HEAD_DIM, _WINDOW, _LAYERS, _SOFTCAP, _BIAS,
        options("query_pre_attn_scalar", 1, 7), _TIED,
    ],
    "phi": [
        _EVEN, partial(0.5, 1.0), options("qk_layernorm", True, False), _ACTIVATION, _NORM_EPS,
    ],
    "phi3": [
        heads((2, 1), (2, 2)), _WINDOW, _TIED, _EPS,
        rope(
            {"rope_type": "default", "partial_rotary_factor": 0.5},
            _LONG | {"original_max_position_embeddings": 6},
            _LONG | {"original_max_position_embeddings": 10},
        ),
    ],
    "olmo2": [_EVEN, options("head_dim", 4, 6), _ROPE, _BIAS, _ACTIVATION, _TIED],
    "olmo3": [_EVEN, _WINDOW, _LAYERS, _BIAS, _ROPE, _TIED],
    "granite": [
        _EVEN, options("residual_multiplier", 0.3, 1.0), _BIAS, _MLP_BIAS, _ROPE, _ACTIVATION,
        options("attention_multiplier", 0.1, 1.0), options("embedding_multiplier", 1.0, 12.0),
    ],
    "cohere": [_EVEN, options("use_qk_norm", True, False), _BIAS, _ROPE, _NORM_EPS, _TIED],
    "cohere2": [_EVEN, options("head_dim", 4, 6), _WINDOW, _LAYERS, _BIAS, _NORM_EPS],
    "stablelm": [
        _EVEN, partial(0.5, 1.0), options("use_qkv_bias", True, False),
        options("qk_layernorm", True, False), options("use_parallel_residual", True, False),
    ],
    "smollm3": [
        _EVEN, _WINDOW, _BIAS, _MLP_BIAS, _TIED,
        [layers | {"no_rope_layers": rotated[: len(layers["layer_types"])]}
         for layers in _LAYERS for rotated in ([1, 0, 1], [0, 1, 1])],
    ],
    "glm4": [_GROUPS, options("head_dim", 4, 8), partial(0.5, 1.0), _BIAS, _ACTIVATION, _EPS],
    "mixtral": [
        _EVEN, options("head_dim", None, 6), _WINDOW, _TOP, options("num_local_experts", 3, 4),
        _ACTIVATION, _TIED,
    ],
    "qwen3_moe": [
        _GROUPS, _HEAD_DIM, _WINDOW, _TOP, options("use_sliding_window", True, False), _BIAS,
        options("norm_topk_prob", True, False), options("mlp_only_layers", [], [0], [1]),
    ],
    "gpt_oss": [
        _GROUPS, _HEAD_DIM, _WINDOW, _LAYERS, _TOP, _BIAS,
        options("num_local_experts", 3, 4), options("swiglu_limit", 0.5, 7.0),
    ],
    "deepseek_v3": [
        heads((1, 1), (4, 4)), options("q_lora_rank", None, 8), options("kv_lora_rank", 4, 10),
        options("qk_rope_head_dim", 2, 4), options("qk_nope_head_dim", 2, 6),
        options("v_head_dim", 4, 7), _BIAS, options("rope_interleave", True, False),
        options("norm_topk_prob", True, False), options("first_k_dense_replace", 0, 1, 2),
        options("n_shared_experts", 1, 2), options("routed_scaling_factor", 1.0, 2.5),
        [{"n_group": 1, "topk_group": 1}, {"n_group": 2, "topk_group": 1},
         {"n_group": 4, "topk_group": 2}],
    ],
}  # fmt: skip


@st.composite
def examples(draw, name):
    """A configuration, an attention implementation, prompts and whether to pad them."""
    config = {}
    for group in FUZZ[name]:
        config |= draw(st.sampled_from(group))
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    return {
        "config": config,
        "attention": draw(st.sampled_from(FAMILIES[name].attention)),
        "lengths": lengths,
        "left_padding": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


def token_ids(lengths, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 50, size=length).tolist() for length in lengths]


def check(name, example) -> str | None:
    """Build, run and compare; the reason if the model is refused."""
    hf = families.make(name, example["attention"], seed=example["seed"], **example["config"])
    try:
        model = lm.DepthModel(hf, left_padding=example["left_padding"])
    except ValueError as error:
        return str(error)
    compare(model, token_ids(example["lengths"], example["seed"]), example["seed"])
    return None


def compare(model, prompts, seed) -> None:
    """States, derivatives and responses of a run against the truth."""
    hf, run = model.hf, run_prompts(model, prompts)
    rng = np.random.default_rng(seed)
    V = rng.normal(size=(run.n_layers, 3, N_FEATURES))
    W = rng.normal(size=V.shape)
    forward = np.stack([run.jvp(layer, V[layer]) for layer in range(run.n_layers)], axis=1)
    back = np.stack([run.vjp(layer, W[layer]) for layer in range(run.n_layers)], axis=1)
    states = run.states.transpose("prompt", "depth", "feature").values
    pushes = rng.normal(size=(len(prompts), 2, run.n_layers, N_FEATURES))
    ends = families.composed(run, pushes)
    for prompt, ids in enumerate(prompts):
        A = families.jacobians(hf, ids)
        close(states[prompt], families.states(hf, ids), "states")
        close(forward[prompt], V @ A.swapaxes(1, 2), "jvp")
        close(back[prompt], W @ A, "vjp")
        close(ends[prompt], families.responses(hf, ids, pushes[prompt]), "injections")


def run_prompts(model, prompts):
    """A run with as much left padding as there can be."""
    kind = (getattr(model.hf.config, "rope_parameters", None) or {}).get("rope_type")
    if model.left_padding and kind != "longrope":
        return families.run_in_one_batch(model, prompts)
    return model.run(prompts)  # these frequencies depend on the batch: depthsys chooses it


def close(value, reference, what) -> None:
    error = abs(value - reference).max() / abs(reference).max()
    assert error <= LIMIT, f"{what}: relative error {error:.1e}"


@pytest.mark.parametrize("name", FUZZ)
def test_random_configurations_are_exact_or_refused(name):
    reasons = []

    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    @given(examples(name))
    def run(example):
        with families.double_inside():
            reasons.append(check(name, example))

    run()
    refused = [reason for reason in reasons if reason is not None]
    assert len(reasons) >= EXAMPLES
    assert [reason for reason in refused if not reason.startswith("`model` must")] == []
    assert len(refused) <= REFUSED.get(name, 0) * len(reasons), refused


def test_every_family_is_drawn():
    assert list(FUZZ) == list(FAMILIES)
    assert EXAMPLES * len(FUZZ) >= 300


# --------------------------------------------------------------- families that nobody promised

OTHERS = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(FAMILIES))
SMALL = families.HEAD_DIM | {
    "intermediate_size": 24, "num_hidden_layers": 2, "sliding_window": 4, "attention_chunk_size": 4,
    "n_embd": 16, "d_model": 16, "dim": 16, "n_layer": 2, "num_layers": 2, "n_layers": 2,
    "n_head": 4, "num_heads": 4, "n_heads": 4, "ffn_dim": 24, "n_positions": 64, "n_ctx": 64,
    "moe_intermediate_size": 8, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "shared_expert_intermediate_size": 8,
    "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 4, "rotary_dim": 4, "vocab_size_per_layer_input": 50,
    "hidden_size_per_layer_input": 4,
}  # fmt: skip


def small_config(name):
    """A tiny configuration made without any knowledge of the type; None where that fails."""
    try:
        default = CONFIG_MAPPING[name]()
        known = {
            key: value
            for key, value in SMALL.items()
            if isinstance(getattr(default, key, ""), (int, type(None)))
        }
        if getattr(default, "layer_types", None):
            types = list(dict.fromkeys(default.layer_types))
            known |= {"layer_types": types, "num_hidden_layers": len(types)}
        config = CONFIG_MAPPING[name](**known)
        with torch.device("meta"):
            hf = AutoModelForCausalLM.from_config(config)
    except Exception:  # any reason why a generic configuration does not fit
        return None
    return config if sum(parameter.numel() for parameter in hf.parameters()) < 1e6 else None


def verdict(config) -> str:
    """exact or refused; raises what goes wrong."""
    with families.double_inside():
        hf = families.build(config, "eager")
        try:
            model = lm.DepthModel(hf, left_padding=True)
        except ValueError as error:
            return "refused" if str(error).startswith("`model` must") else "no reason"
        compare(model, token_ids([9, 12, 5, 1], 0), 0)
    return "exact"


def test_any_other_causal_language_model_is_exact_or_refused():
    verdicts = collections.defaultdict(list)
    for name in OTHERS:
        config = small_config(name)
        try:
            verdicts["no tiny configuration" if config is None else verdict(config)].append(name)
        except Exception as error:  # reported together
            verdicts[f"{type(error).__name__}: {error}"].append(name)
    print({key: len(names) for key, names in verdicts.items()}, dict(verdicts))
    assert set(verdicts) == {"exact", "refused", "no tiny configuration"}
    assert len(verdicts["exact"]) > 50
    assert len(verdicts["no tiny configuration"]) < len(OTHERS) / 2
