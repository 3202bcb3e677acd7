"""Texts -> token ids, checked and cut."""

import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from depthsys.lm.kinds import short
from depthsys.lm.prompts import Splits, Texts

Prompts = Texts | Sequence[str] | Sequence[Sequence[int]]


def tokenized(
    prompts: Prompts, tokenizer: Any, *, n_tokens: int, max_tokens: int
) -> tuple[list[list[int]], int]:
    """Token ids of every text, cut on the right, and how many were cut.

    Takes token ids as well as texts; they are only checked and cut.
    """
    if isinstance(prompts, (str, bytes)):
        raise TypeError("`prompts` must be a list of texts; got one string. Write [text].")
    if isinstance(prompts, Splits):
        raise TypeError(
            "`prompts` must be the texts of one split; got Splits, which hold three. Take "
            "splits.operating, splits.held_out or splits.concept, or make a run of each: "
            "splits.each(model.run)."
        )
    strings: Any = prompts.texts if isinstance(prompts, Texts) else prompts
    if isinstance(prompts, Mapping) or not hasattr(strings, "__getitem__"):
        raise TypeError(
            f"`prompts` must be a list of texts or of lists of token ids; got {short(prompts)}. "
            "Write [text] for one text, list(texts) for an iterator."
        )
    if len(prompts) == 0:
        raise ValueError("`prompts` must hold at least one text; got none. Give some.")
    if isinstance(strings[0], str):
        if tokenizer is None:
            raise ValueError("`tokenizer` must be given for texts; got None. Pass token ids.")
        # verbose=False: a text above the tokenizer's own limit is cut and counted here
        ids: Any = tokenizer(list(strings), verbose=False)["input_ids"]
    else:
        ids = [_token_ids(row) for row in strings]
    for number, row in enumerate(ids):
        if not row:
            raise ValueError(
                f"`prompts` must have at least one token each; got none for number {number}, "
                f"{strings[number]!r}. Delete it."
            )
        if min(row) < 0 or max(row) >= n_tokens:
            raise ValueError(
                f"`prompts` must have token ids in 0..{n_tokens - 1}; number {number} has "
                f"{min(row)}..{max(row)}. Use the tokenizer of this model."
            )
    n_cut = sum(len(row) > max_tokens for row in ids)
    return [row[:max_tokens] for row in ids], n_cut


def tokens_sha256(rows: list[list[int]]) -> str:
    """Fingerprint of token ids."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _token_ids(row: Any) -> list[int]:
    try:
        if isinstance(row, str) or any(isinstance(token, (bool, np.bool_)) for token in row):
            raise TypeError
        return [operator.index(token) for token in row]
    except TypeError as error:
        raise TypeError(
            f"`prompts` must be a list of texts or of lists of token ids; got {short(row)} among "
            "the prompts. Write [[1, 2, 3]] for one prompt."
        ) from error
