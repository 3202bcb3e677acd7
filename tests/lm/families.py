"""Tiny random models of every supported family, and the slow, obvious truth about them.

The truth is the model's own forward pass over one whole, unpadded prompt, with hooks that push the
last token and read its state, and dense Jacobians by `torch.autograd.functional.jacobian`. Nothing
here comes from depthsys. Models are built from configurations: no download.
"""

import contextlib
import operator
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

WINDOW = 4
N_FEATURES = 16

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BASE = IDS | {
    "vocab_size": 50,
    "hidden_size": N_FEATURES,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = BASE | {"num_key_value_heads": 2}
HEAD_DIM = GROUPED | {"head_dim": 4}
OLD = IDS | {"vocab_size": 50, "n_embd": N_FEATURES, "n_layer": 3, "n_positions": 64}
MIXED = ["sliding_attention", "full_attention"]
EXPERTS = {"num_experts_per_tok": 2}


@dataclass(frozen=True)
class Family:
    """A tiny configuration and what a test has to know about it.

    Attributes
    ----------
    config
        Keyword arguments of the configuration class.
    attention
        Attention implementations that Hugging Face offers for it.
    window
        Name of the option that holds the sliding window, if it has one.
    single
        Attention implementations under which it computes norms, softmax or rotations in float32
        even in a float64 model.
    parts
        The modules of a block whose outputs are added to the residual stream.
    parallel
        True if attention and MLP both read the input of the block.
    experts
        True for a mixture of experts.
    note
        What a reader of docs/models.md should know.
    """

    config: dict
    attention: tuple[str, ...] = ("eager", "sdpa")
    window: str | None = None
    single: tuple[str, ...] = ("eager", "sdpa")
    parts: tuple[str, str] = ("self_attn", "mlp")
    parallel: bool = False
    experts: bool = False
    note: str = ""


_EAGER = ("eager",)
FAMILIES = {
    "gpt2": Family(
        OLD | {"n_head": 4},
        parts=("attn", "mlp"), single=(),
    ),
    "gpt_neo": Family(
        IDS | {
            "vocab_size": 50, "hidden_size": N_FEATURES, "num_layers": 2, "num_heads": 4,
            "attention_types": [[["global", "local"], 1]], "window_size": WINDOW,
            "max_position_embeddings": 64,
        },
        _EAGER, window="window_size", parts=("attn", "mlp"),
        note="local layers have a window",
    ),
    "gptj": Family(
        OLD | {"n_head": 2, "rotary_dim": 4},
        _EAGER, parts=("attn", "mlp"), parallel=True,
    ),
    "gpt_neox": Family(
        BASE, single=("eager",), parts=("attention", "mlp"), parallel=True,
    ),
    "opt": Family(
        IDS | {
            "vocab_size": 50, "hidden_size": N_FEATURES, "ffn_dim": 24, "num_hidden_layers": 3,
            "num_attention_heads": 4, "max_position_embeddings": 64,
            "word_embed_proj_dim": N_FEATURES,
        },
        single=("eager",), parts=("self_attn", "fc2"),
    ),
    "falcon": Family(
        IDS | {
            "vocab_size": 50, "hidden_size": N_FEATURES, "num_hidden_layers": 3,
            "num_attention_heads": 4, "max_position_embeddings": 64,
        },
        single=(), parts=("self_attention", "mlp"), parallel=True,
    ),
    "bloom": Family(
        IDS | {"vocab_size": 50, "hidden_size": N_FEATURES, "n_layer": 3, "n_head": 4},
        _EAGER, parts=("self_attention.dense", "mlp.dense_4h_to_h"),
        note="positions by ALiBi",
    ),
    "llama": Family(GROUPED),
    "mistral": Family(GROUPED | {"sliding_window": WINDOW}, window="sliding_window"),
    "ministral": Family(
        HEAD_DIM | {"sliding_window": WINDOW, "layer_types": MIXED}, window="sliding_window"
    ),
    "qwen2": Family(
        GROUPED | {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED},
        window="sliding_window",
    ),
    "qwen3": Family(
        HEAD_DIM | {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED},
        window="sliding_window",
    ),
    "gemma": Family(HEAD_DIM),
    "gemma2": Family(
        HEAD_DIM | {
            "sliding_window": WINDOW, "layer_types": MIXED, "attn_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 5,
        },
        _EAGER, window="sliding_window", note="softcap of the attention scores",
    ),
    "gemma3_text": Family(
        HEAD_DIM | {
            "sliding_window": WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 5,
        },
        window="sliding_window", note="text only",
    ),
    "phi": Family(
        BASE, single=("eager",), parallel=True, note="rotates a part of each head",
    ),
    "phi3": Family(GROUPED | {"sliding_window": WINDOW}, window="sliding_window"),
    "olmo2": Family(GROUPED),
    "olmo3": Family(
        GROUPED | {"sliding_window": WINDOW, "layer_types": MIXED}, window="sliding_window"
    ),
    "granite": Family(
        GROUPED | {
            "residual_multiplier": 0.7, "attention_multiplier": 0.4, "embedding_multiplier": 1.5,
        },
    ),
    "cohere": Family(GROUPED | {"use_qk_norm": True}, parallel=True),
    "cohere2": Family(
        GROUPED | {"sliding_window": WINDOW, "layer_types": MIXED},
        window="sliding_window", parallel=True,
    ),
    "stablelm": Family(
        GROUPED | {"use_qkv_bias": True}, single=("eager",), note="rotates a part of each head",
    ),
    "smollm3": Family(
        GROUPED | {
            "use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED,
            "no_rope_layers": [1, 0],
        },
        window="sliding_window", note="layers without positions",
    ),
    "glm4": Family(HEAD_DIM, note="rotates a part of each head"),
    "mixtral": Family(
        GROUPED | EXPERTS | {"num_local_experts": 4, "sliding_window": WINDOW},
        window="sliding_window", experts=True,
    ),
    "qwen3_moe": Family(
        HEAD_DIM | EXPERTS | {
            "num_experts": 4, "moe_intermediate_size": 8, "use_sliding_window": True,
            "sliding_window": WINDOW, "mlp_only_layers": [0],
        },
        window="sliding_window", experts=True,
    ),
    "gpt_oss": Family(
        HEAD_DIM | EXPERTS | {
            "num_local_experts": 4, "sliding_window": WINDOW, "layer_types": MIXED,
        },
        _EAGER, window="sliding_window", experts=True, note="attention sinks",
    ),
    "deepseek_v3": Family(
        BASE | EXPERTS | {
            "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
            "n_shared_experts": 1, "moe_intermediate_size": 8, "first_k_dense_replace": 1,
            "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
            "v_head_dim": 6,
        },
        experts=True, note="latent attention; keys and values of unlike width",
    ),
}  # fmt: skip


def make(name, attention="eager", dtype=torch.float64, *, window=None, seed=0, **overrides):
    """A random model of a family in which nothing is at its default of 0 or 1."""
    family = FAMILIES[name]
    if window is not None:
        overrides[family.window] = window
    return build(CONFIG_MAPPING[name](**(family.config | overrides)), attention, dtype, seed)


def build(config, attention="eager", dtype=torch.float64, seed=0):
    """A random model of any configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    if hf._can_set_experts_implementation():
        # grouped matrix products have no float64 and no forward-mode derivative
        hf.set_experts_implementation("eager")
    randomise(hf, seed)
    return hf.to(dtype).eval()


@torch.no_grad()
def randomise(hf, seed: int) -> None:
    """Matrices of spread 0.3; norms, biases, sinks and router corrections moved by 0.3."""
    generator = torch.Generator().manual_seed(seed)
    corrections = [b for n, b in hf.named_buffers() if "correction_bias" in n]
    for tensor in [*hf.parameters(), *corrections]:
        noise = 0.3 * torch.randn(tensor.shape, generator=generator)
        tensor.copy_(noise if tensor.dim() > 1 else tensor + noise)


# ------------------------------------------------------------------------------- the truth

_PATHS = (
    "transformer.h", "model.layers", "model.decoder.layers", "gpt_neox.layers", "biogpt.layers",
    "gpt_neox_japanese.layers", "bert.encoder.layer", "model.language_model.layers",
)  # fmt: skip


def blocks(hf):
    """The blocks of a model, found by name."""
    for path in _PATHS:
        with contextlib.suppress(AttributeError):
            return operator.attrgetter(path)(hf)
    raise LookupError(f"no blocks in {type(hf).__name__}")


def _first(output):
    return output[0] if isinstance(output, tuple) else output


def _held_constant(module, args, output):
    """A hook that cuts the derivative of a module but not its value."""
    if isinstance(output, tuple):
        return (output[0].detach().clone(), *output[1:])
    return output.detach().clone()


@contextlib.contextmanager
def _hooks(hf, pushes, seen, constant):
    """Push the last token before every block, note it there, and hold parts constant."""
    handles = []

    def push(layer):
        def hook(module, args, kwargs):
            hidden = (args[0] if args else kwargs["hidden_states"]).clone()
            if layer == 0:
                seen.append(hidden[0, -1])
            hidden[:, -1] += pushes[layer]
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        return hook

    for layer, block in enumerate(blocks(hf)):
        handles += [
            block.register_forward_pre_hook(push(layer), with_kwargs=True),
            block.register_forward_hook(lambda m, a, out: seen.append(_first(out)[0, -1])),
        ]
        if constant is not None:
            part = operator.attrgetter(constant)(block)
            handles.append(part.register_forward_hook(_held_constant))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pushed_states(hf, ids: list[int], pushes, constant: str | None = None) -> torch.Tensor:
    """States (depth, feature) of the last token when ``pushes`` (layer, feature) are added.

    One forward pass over the whole prompt, without padding and without a cache. The state at
    depth l is noted before its own push. ``constant`` names a module of every block whose output
    has no derivative.
    """
    seen: list[torch.Tensor] = []
    with _hooks(hf, pushes, seen, constant):
        hf(torch.tensor([ids]), use_cache=False)
    return torch.stack(seen)


def states(hf, ids: list[int]) -> np.ndarray:
    """(depth, feature), before the final norm."""
    with torch.no_grad():
        return pushed_states(hf, ids, _no_push(hf)).numpy()


def responses(hf, ids: list[int], pushes) -> np.ndarray:
    """(copy, feature): last states when finite ``pushes`` (copy, layer, feature) are added."""
    with torch.no_grad():
        ends = [pushed_states(hf, ids, push)[-1] for push in torch.as_tensor(pushes)]
    return torch.stack(ends).numpy()


def jacobians(hf, ids: list[int], constant: str | None = None) -> np.ndarray:
    """(layer, state_next, state): dense Jacobians of every block on the last token."""
    chain = torch.autograd.functional.jacobian(
        lambda *pushes: tuple(pushed_states(hf, ids, pushes, constant)[1:]),
        tuple(_no_push(hf)),
        vectorize=True,
    )
    return np.stack([row[layer].numpy() for layer, row in enumerate(chain)])


def router_margins(hf, ids: list[int]) -> np.ndarray:
    """(layer): least change of a router's scores that changes its choice for the last token.

    The scores are logits, or corrected sigmoids where the router has a correction bias. Infinite
    in layers without a router.
    """
    margins = np.full(len(blocks(hf)), np.inf)
    with contextlib.ExitStack() as stack:
        for layer, block in enumerate(blocks(hf)):
            router = next((m for n, m in block.named_modules() if n in _ROUTERS), None)
            if router is None:
                continue

            def hook(module, args, output, layer=layer):
                margins[layer] = _margin(module, output[0].reshape(-1, output[0].shape[-1])[-1])

            stack.callback(router.register_forward_hook(hook).remove)
        states(hf, ids)
    return margins


_ROUTERS = ("mlp.gate", "mlp.router")


def _margin(router, logits) -> float:
    bias = getattr(router, "e_score_correction_bias", None)
    top_k = router.top_k
    if bias is None:
        ranked = np.sort(logits.numpy())[::-1]
        return ranked[top_k - 1] - ranked[top_k]
    scores = (logits.sigmoid() + bias).numpy().reshape(router.num_group, -1)
    order = np.argsort(-np.sort(scores, axis=1)[:, -2:].sum(1))
    groups = np.sort(scores, axis=1)[order, -2:].sum(1)
    ranked = np.sort(scores[order[: router.topk_group]].ravel())[::-1]
    margin = ranked[top_k - 1] - ranked[top_k] if len(ranked) > top_k else np.inf
    if router.topk_group < router.num_group:
        margin = min(margin, groups[router.topk_group - 1] - groups[router.topk_group])
    return margin


def _no_push(hf) -> torch.Tensor:
    return torch.zeros(len(blocks(hf)), hf.config.hidden_size, dtype=next(hf.parameters()).dtype)


@contextlib.contextmanager
def double_inside():
    """`DoubleInside` without fingerprints, which are of bits of float32: none is left there."""
    with (
        mock.patch("depthsys.lm.model.checked_fingerprint", return_value="none"),
        DoubleInside(),
    ):
        yield


class DoubleInside(TorchFunctionMode):
    """Within it, a float64 model never steps down to float32.

    Hugging Face computes norms, softmax and router weights in float32 whatever the dtype of the
    model, which hides everything below 1e-7. Here such casts are left out.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)


# ---------------------------------------------------------------- the same asked of a run


def composed(run, pushes) -> np.ndarray:
    """(prompt, copy, feature): last states under ``pushes`` (prompt, copy, layer, feature).

    The blocks of a `depthsys.lm.Run` one after the other, all copies at once.
    """
    pushes = torch.as_tensor(pushes).to(run.batches[0].x)
    ends = torch.full((run.n_prompts, pushes.shape[1], pushes.shape[3]), torch.nan).to(pushes)
    with torch.no_grad():
        for batch in run.batches:
            at = torch.as_tensor(batch.prompts)
            x = batch.x[0][:, None].expand(-1, pushes.shape[1], -1)
            for layer, block in enumerate(batch.blocks):
                x = block(x + pushes[at, :, layer])
            ends[at] = x
    return ends.numpy()


def run_in_one_batch(model, prompts):
    """The most left padding there can be, also where depthsys would rather make two batches."""
    with mock.patch(
        "depthsys.lm.run.length_batches", lambda lengths, **_: [np.arange(len(lengths))]
    ):
        return model.run(prompts)
