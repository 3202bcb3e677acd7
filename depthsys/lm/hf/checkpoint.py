"""What can be said about a Hugging Face checkpoint before it is run: refusals with a reason.

And how it is loaded. Where it is, says `depthsys.lm.hf.source`.
"""

import copy
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import HTTPError  # of connections: no OSError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from depthsys.lm.hf.adapters import NOT_BY_ITSELF, check_adapter, merged
from depthsys.lm.hf.causes import (
    check_quantisation,
    first_line,
    hub_refusal,
    memory_error,
    missing_package,
    out_of_memory,
    quantisation_of,
    quantised_error,
)
from depthsys.lm.hf.gguf_file import (
    check_blocks,
    forget,
    misfitting,
    reading_whole,
    unreadable,
)
from depthsys.lm.hf.placing import Placing, abandoned, refuse_placing, settled
from depthsys.lm.hf.source import TOKENIZER_CONFIG, Found, find

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def read_config(name_or_path: str | Path, *, trust_remote_code: bool = False):
    """Configuration of a supported model, read before its weights.

    Code that comes with the model is run only with ``trust_remote_code``.

    Raises
    ------
    ValueError
        If there is no such model, its architecture has no depth map of the last token, or a
        package is missing that it needs.
    """
    return _config_of(find(name_or_path), trust_remote_code, pickled_weights=True)


def _config_of(found: Found, trust_remote_code: bool, *, pickled_weights: bool) -> Any:
    if found.adapter is not None:
        check_adapter(found.adapter, pickled_weights=pickled_weights)
    source = str(found)
    try:
        if found.gguf is not None:
            config = _gguf_config(found.gguf)
        else:
            config = AutoConfig.from_pretrained(
                found.source, trust_remote_code=trust_remote_code, **found.at
            )
    except Exception as error:  # code that comes with it, and the hub, raise many unrelated types
        if found.gguf is not None:
            raise unreadable(found.gguf, error) from error
        if "custom code" in str(error):
            raise ValueError(
                f"`model` must not need code of its own; got {source!r}: {first_line(error)} If "
                "you have read that code, pass `trust_remote_code=True` to `DepthModel.load`."
            ) from error
        if refusal := hub_refusal(source, error):
            raise refusal from error
        raise ValueError(
            f"`model` must have a config.json that transformers {transformers.__version__} can "
            f"read; got {source!r}: {first_line(error)} Correct it, or update transformers."
        ) from error
    refuse_config(config)
    check_quantisation(config, source)
    return config


def _gguf_config(path: Path) -> Any:
    """The configuration in a GGUF file; read once, since reading it takes seconds."""
    about = path.stat()
    return copy.deepcopy(_read_gguf_config(path.resolve(), about.st_mtime_ns, about.st_size))


@functools.lru_cache(maxsize=4)
def _read_gguf_config(path: Path, *_: int) -> Any:
    config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    forget(config)
    return config


def checked_dtype(dtype: Any) -> torch.dtype:
    """The dtype of that name, or torch's or numpy's own; ValueError if there is none such here."""
    plain = np.dtype(dtype) if isinstance(dtype, type) else dtype
    name = str(plain).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(
            f"`dtype` must be one of {sorted(DTYPES)}; got {dtype!r}. The default is 'float32', "
            "into which weights of any precision are read."
        )
    return DTYPES[name]


def checked_device(device: str | torch.device) -> torch.device:
    """The device that "auto", "cpu", "cuda:1", ... stands for; ValueError if it is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"`device` must be 'auto', 'cpu' or 'cuda[:N]'; got {device!r}. Use 'auto'."
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`device` must be available; got {device!r} and no GPU. Use 'cpu'.")
    try:
        torch.zeros(1, device=chosen).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"`device` must be usable; got {device!r}: {first_line(error)} Use 'cpu'."
        ) from error
    return chosen


def refuse_config(config: Any) -> None:
    """ValueError if this architecture has no depth map of the last token, with the reason."""
    kind = getattr(config, "model_type", type(config).__name__)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"`model` must be a decoder-only language model; got the encoder-decoder {kind!r}. "
            "Its states depend on a second stream: use a causal model."
        )
    masked_only = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        config, "is_decoder", False
    )
    brings_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or brings_code
    if not known or masked_only:
        raise ValueError(
            f"`model` must be a causal language model; got the encoder-only or unknown type "
            f"{kind!r}. With bidirectional attention the context is not frozen: use a causal model."
        )
    text = config.get_text_config(decoder=True)
    if text.num_hidden_layers < 1:
        raise ValueError(
            f"`model` must have blocks; got {text.num_hidden_layers}. Use a deeper one."
        )
    if getattr(text, "num_kv_shared_layers", 0):
        raise ValueError(
            f"`model` must not share keys and values between layers; got {kind!r} with "
            f"{text.num_kv_shared_layers} such layers. x_{{l+1}} is then no function of x_l alone."
        )
    types = set(getattr(text, "layer_types", None) or [])
    recurrent = {t for t in types if "attention" not in t or "linear" in t}
    if recurrent:
        raise ValueError(
            f"`model` must have attention layers only; got {sorted(recurrent)} in {kind!r}. "
            "Recurrent layers keep a state that is not a key-value cache."
        )


def find_blocks(hf: Any) -> nn.ModuleList:
    """The outermost ModuleList of num_hidden_layers modules that take ``hidden_states``."""
    n_layers = hf.config.get_text_config(decoder=True).num_hidden_layers
    found = [
        (name.count("."), module)
        for name, module in hf.base_model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and "hidden_states" in inspect.signature(type(module[0]).forward).parameters
    ]
    if not found:
        raise ValueError(
            f"`model` must hold a list of {n_layers} blocks; {type(hf).__name__} has none. "
            "It cannot be used."
        )
    return min(found, key=lambda item: item[0])[1]


_PART_NAMES = {
    "attention": ("self_attn", "attn", "attention", "self_attention"),
    "mlp": ("mlp", "block_sparse_moe", "feed_forward", "ffn", "fc2"),
}


def find_parts(block: nn.Module) -> dict[str, nn.Module]:
    """The attention and the MLP of a block, whose outputs are added to the residual stream."""
    children = dict(block.named_children())
    found = {}
    for part, names in _PART_NAMES.items():
        present = [name for name in names if name in children]
        if not present:
            raise ValueError(
                f"`part` must exist in {type(block).__name__}, which has no child named one of "
                f"{names}. Use part='block'."
            )
        found[part] = children[present[0]]
        if "residual" in inspect.signature(type(found[part]).forward).parameters:
            raise ValueError(
                f"`part` must not hold the residual stream; {type(found[part]).__name__} adds it "
                "inside, so it has no output of its own. Use part='block'."
            )
    return found


def find_routers(hf: Any, block: nn.Module) -> list[nn.Module]:
    """The routers of a block with experts, as the family declares them."""
    recorders = getattr(hf.base_model, "_can_record_outputs", None) or {}
    declared = recorders.get("router_logits", [])
    declared = declared if isinstance(declared, (list, tuple)) else [declared]
    classes = tuple(getattr(one, "target_class", one) for one in declared)
    return [module for module in block.modules() if isinstance(module, classes)]


def has_experts(block: nn.Module) -> bool:
    """Whether a block chooses among experts, as far as names tell."""
    return any("expert" in type(module).__name__.lower() for module in block.modules())


def fitting(max_tokens: int, text_config: Any) -> int:
    """Tokens that a prompt may have: no more than the context, which is 0 or -1 for no limit."""
    context = getattr(text_config, "max_position_embeddings", None) or 0
    return min(max_tokens, context) if context > 0 else max_tokens


def check_padding(config: Any, max_tokens: int) -> None:
    """ValueError if a padded batch may change the positions of its shorter prompts."""
    text = config.get_text_config(decoder=True)
    for rope in _rope_settings(getattr(text, "rope_parameters", None)):
        limit = rope.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None
        )
        if rope.get("rope_type") == "longrope" and limit and max_tokens > limit:
            raise ValueError(
                f"`left_padding` must not mix prompts below and above {limit} tokens in a model "
                f"with longrope, which chooses one set of frequencies per batch; got "
                f"max_tokens={max_tokens}. Use left_padding=False, or max_tokens={limit}."
            )


def _rope_settings(found: Any) -> Iterator[dict]:
    """The rotary settings in a configuration: one, or one per layer type."""
    if isinstance(found, dict):
        if "rope_type" in found:
            yield found
        for value in found.values():
            yield from _rope_settings(value)


def input_device(hf: Any) -> torch.device:
    """Where token ids go, also when the embedding waits on disk (accelerate's hook knows)."""
    embedding = hf.get_input_embeddings()
    if embedding.weight.is_meta:
        return torch.device(embedding._hf_hook.execution_device)
    return embedding.weight.device


def begin_backward(device: torch.device) -> None:
    """Let the thread of backward passes open its CUDA context, or cuBLAS would warn there."""
    if device.type != "cuda":
        return
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in
        (2 * torch.ones(1, device=device, requires_grad=True)).sum().backward()


@dataclass(frozen=True)
class Loaded:
    """A model as it was loaded, its tokenizer, and where both were found."""

    hf: Any
    tokenizer: Any
    found: Found


def load_checkpoint(
    source: str,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool,
    pickled_weights: bool,
    placing: Placing | None = None,
) -> Loaded:
    """Model with merged adapter, and tokenizer; ValueError where a weight would be a guess.

    With ``placing`` the weights are read to where they are to be; without, to the host's memory.
    """
    found = find(source)
    config = _config_of(found, trust_remote_code, pickled_weights=pickled_weights)
    places: dict[str, Any] = {}
    if placing is not None:
        refuse_placing(found, config)
        places = placing.arguments(config, dtype, find_blocks, trust_remote_code=trust_remote_code)
    try:
        hf = _weighted(found, config, dtype, trust_remote_code, pickled_weights, places)
        if found.adapter is not None:
            hf = merged(hf, found.adapter)
    except BaseException as error:
        abandoned(places)  # an interrupt, too, leaves no folder
        if isinstance(error, MemoryError | RuntimeError | OSError) and out_of_memory(error):
            raise memory_error(found.source, error) from error
        raise
    return Loaded(hf, _tokenizer(found, config, trust_remote_code), found)


# what reading weights raises, the hub's own errors of connections among it
_UNREADABLE = (
    ImportError,
    OSError,
    ValueError,
    RuntimeError,
    HTTPError,
    SafetensorError,
    UnpicklingError,
)


def _weighted(
    found: Found,
    config: Any,
    dtype: torch.dtype,
    trust_remote_code: bool,
    pickled_weights: bool,
    places: Mapping[str, Any],
) -> Any:
    """The model with all of its weights, and no others."""
    source = str(found)
    try:
        if found.gguf is not None:
            hf, info = _from_gguf(found.gguf, config, dtype)
        else:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                found.source,
                config=config,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                # None: safetensors first, then others
                use_safetensors=None if pickled_weights else True,
                output_loading_info=True,
                **found.at,
                **places,
                **({} if found.adapter is None else {"adapter_kwargs": dict(NOT_BY_ITSELF)}),
            )
            hf, info = loaded
    except _UNREADABLE as e:
        if out_of_memory(e):
            raise
        raise _not_weighted(found, config, e) from e
    if info["missing_keys"] or info["mismatched_keys"]:
        bad = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise ValueError(
            f"`model` must hold every weight of {type(hf).__name__}; {source!r} lacks or "
            f"misfits {bad[:3]} ({len(bad)} in all). They would be random: save it again."
        )
    surplus = [key for key in info["unexpected_keys"] if re.search(r"\.\d+\.", str(key))]
    if surplus:
        raise ValueError(
            f"`model` must have a config.json that uses all its blocks; {source!r} holds "
            f"{sorted(surplus)[:2]} ({len(surplus)} such weights) that it does not. "
            "Correct the configuration."
        )
    return settled(hf, places)


def _from_gguf(path: Path, config: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The model in a GGUF file, its weights read back, as if it had never been quantised."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path.parent),
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **reading_whole(path),
        )
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # transformers and gguf raise many unrelated types
        if out_of_memory(error):
            raise
        raise unreadable(path, error) from error
    hf, info = loaded
    if info["mismatched_keys"]:
        raise misfitting(path, info["mismatched_keys"])
    # transformers passes over the weights that its model has no place for
    check_blocks(path, hf.config.get_text_config().num_hidden_layers)
    forget(hf.config)
    return hf, info


def _not_weighted(found: Found, config: Any, error: Exception) -> Exception:
    """Why there are no weights: the cause is named where it is known."""
    source = str(found)
    if found.gguf is not None and isinstance(error, ValueError):
        return error
    if method := quantisation_of(config):
        return quantised_error(source, method, error)
    if isinstance(error, ImportError):
        return missing_package(source, error)
    if refusal := hub_refusal(source, error):
        return refusal
    return ValueError(
        f"`model` must hold safetensors weights; got {source!r}: "
        f"{first_line(error)} Save it again with `save_pretrained`, or see "
        "`trust_remote_code` and `pickled_weights`."
    )


def _tokenizer(found: Found, config: Any, trust_remote_code: bool) -> Any:
    """The tokenizer that lies with the adapter, if there is one, or with the model."""
    adapter, source = found.adapter, found.source
    at: dict[str, Any] = dict(found.at)
    if adapter is not None and adapter.file(TOKENIZER_CONFIG) is not None:
        source, at = adapter.source, {**adapter.at, "config": config}  # it has none of its own
    elif found.gguf is not None:
        source, at = str(found.gguf.parent), {"gguf_file": found.gguf.name}
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **at)
    except ImportError as error:
        raise missing_package(source, error) from error
    except Exception as error:
        unknown = not isinstance(error, (OSError, ValueError, RuntimeError, HTTPError))
        if unknown and "gguf_file" not in at:
            raise
        if refusal := hub_refusal(str(found), error):
            raise refusal from error
        raise ValueError(
            f"`model` must come with a tokenizer; got {str(found)!r}: {first_line(error)} Save one "
            "with it; for token ids alone, load it yourself and use `DepthModel(hf)`."
        ) from error
