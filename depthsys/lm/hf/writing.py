"""New text by a model's own `generate`, in batches padded on the left."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from depthsys.lm.hf.blocks import Blocks
from depthsys.lm.switch import products_in

# what several answers per prompt, or more than token ids, would be asked for with, and what the
# prompts say already
_NOT_HERE = (
    "return_dict_in_generate", "streamer", "max_length", "inputs", "input_ids", "inputs_embeds",
    "attention_mask", "position_ids", "past_key_values",
)  # fmt: skip
# whatever the configuration of a model says
_AS_IDS = {"return_dict_in_generate": False, "num_return_sequences": 1}


def new_tokens(
    blocks: Blocks,
    rows: Sequence[Sequence[int]],
    batches: Sequence[np.ndarray],
    *,
    max_new_tokens: int,
    options: dict[str, Any],
) -> list[list[int]]:
    """Token ids that the model writes behind each prompt, with the one that ends a text, if any.

    Raises
    ------
    ValueError
        If there is nothing to write, a prompt leaves no room for it, or an option asks for more
        than one text per prompt.
    """
    hf = blocks.hf
    if not hasattr(hf, "generate"):
        raise ValueError(
            f"`model` must have a `generate` to write; {type(hf).__name__} has none. Load it as a "
            "causal language model."
        )
    _check_options(options)
    check_room(hf, rows, max_new_tokens)
    ends = end_tokens(hf)
    greedy = {} if options.get("do_sample") else {"do_sample": False, **_without_sampling(hf)}
    written: list[list[int]] = [[] for _ in rows]
    for numbers in batches:
        ids, mask = padded([rows[i] for i in numbers], blocks.device)
        with torch.no_grad(), products_in(blocks.products):
            out: Any = hf.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                **{"pad_token_id": _pad_token(hf, ends), **greedy, **options, **_AS_IDS},
            )
        for i, row in zip(numbers, out[:, ids.shape[1] :].tolist(), strict=True):
            written[i] = until_end(row, ends)
    return written


def _check_options(options: dict[str, Any]) -> None:
    """ValueError for what makes other things than one text of each prompt."""
    # by identity: tensors are among them
    wrong = [n for n in _NOT_HERE if options.get(n) is not None and options[n] is not False]
    config = options.get("generation_config")
    several = [options.get("num_return_sequences"), getattr(config, "num_return_sequences", None)]
    wrong += ["num_return_sequences"] * any(each not in (None, 1) for each in several)
    if wrong:
        raise ValueError(
            f"`options` must leave one text for each prompt as it is; got {', '.join(wrong)}. Call "
            "`model.hf.generate`, which `steering` pushes too."
        )


def check_room(hf: Any, rows: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """ValueError unless so many tokens may be written behind every prompt."""
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int):
        max_new_tokens = 0
    if max_new_tokens < 1:
        raise ValueError(
            f"`max_new_tokens` must be a whole number >= 1; got {max_new_tokens}. The default is "
            "40."
        )
    context = getattr(hf.config.get_text_config(decoder=True), "max_position_embeddings", None) or 0
    longest = max(map(len, rows))
    if 0 < context < longest + max_new_tokens:
        cure = "Write fewer"
        if max_new_tokens < context:
            cure += f", or cut prompts by max_tokens={context - max_new_tokens}"
        raise ValueError(
            f"`max_new_tokens` must leave the text within the {context} tokens of the model; got "
            f"{max_new_tokens} behind a prompt of {longest}. {cure}."
        )


def padded(
    rows: Sequence[Sequence[int]], device: torch.device, pad: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (prompt, token) and their mask, padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(width, device=device) >= width - lengths[:, None]
    return ids, mask.long()


def end_tokens(hf: Any) -> list[int]:
    """The tokens at which `generate` ends a text."""
    end = getattr(hf.generation_config, "eos_token_id", None)
    return [] if end is None else [int(one) for one in np.atleast_1d(np.asarray(end))]


def until_end(row: list[int], ends: Sequence[int]) -> list[int]:
    """New tokens without what fills a batch behind the one that ends the text."""
    at = next((n for n, token in enumerate(row) if token in ends), len(row) - 1)
    return row[: at + 1]


def _pad_token(hf: Any, ends: Sequence[int]) -> int:
    pad = hf.generation_config.pad_token_id
    if pad is not None:
        return int(pad)
    return ends[0] if ends else 0


def _without_sampling(hf: Any) -> dict[str, None]:
    """Settings of sampling that a model comes with, which say nothing when it writes greedily."""
    names = ("temperature", "top_p", "top_k", "min_p", "typical_p")
    return {n: None for n in names if getattr(hf.generation_config, n, None) is not None}


def read_steered(
    blocks: Blocks, ids: torch.Tensor, mask: torch.Tensor, n_last: int
) -> torch.Tensor:
    """Logits (prompt, token, word) at the last tokens, of one pass of the model as it is steered.

    Whole texts in one pass give what writing them token by token has given. What follows the end
    of a text may be any tokens, which no earlier one sees.
    """
    hf, more = blocks.hf, {}
    if blocks.takes_positions and not bool(mask.all()):
        more["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    if "logits_to_keep" in inspect.signature(type(hf).forward).parameters:
        more["logits_to_keep"] = n_last
    with torch.no_grad(), products_in(blocks.products):
        return hf(ids, attention_mask=mask, use_cache=False, **more).logits[:, -n_last:]


def read_plainly(
    blocks: Blocks, ids: torch.Tensor, mask: torch.Tensor, n_last: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same without steering, and the states (prompt, token, feature) behind the last block."""
    states: list[torch.Tensor] = []

    def seen(hidden: torch.Tensor) -> torch.Tensor:
        states.append(hidden[:, -n_last:])
        return hidden

    with blocks.hooks({len(blocks): seen}):
        logits = read_steered(blocks, ids, mask, n_last)
    return logits, states[0]
