"""Texts -> token ids, checked and cut."""

import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from depthsys.lm.hf.template import Ends, added, cut, template_ends, undoubled
from depthsys.lm.kinds import short
from depthsys.lm.prompts import Splits, Texts

Prompts = Texts | Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Tokens:
    """Token ids of prompts.

    Attributes
    ----------
    rows
        Token ids of every prompt.
    n_cut
        How many prompts were longer than ``max_tokens``.
    note
        What was done to them beside cutting, in words; empty where nothing was.
    """

    rows: list[list[int]] = field(repr=False)
    n_cut: int
    note: str = ""


def tokenized(
    prompts: Prompts,
    tokenizer: Any,
    *,
    n_tokens: int,
    max_tokens: int,
    how: str = "right",
    bos: int | None = None,
) -> Tokens:
    """Token ids of texts, or token ids as they are, checked and cut.

    Parameters
    ----------
    prompts
        Texts, or token ids, to which nothing is added.
    tokenizer
        Only needed for texts.
    n_tokens
        Token ids must be below it.
    max_tokens
        Longer prompts are cut.
    how
        "right", "left" or "middle", see `depthsys.lm.hf.template.cut`.
    bos
        The token that begins a text, where no tokenizer tells it.

    Raises
    ------
    TypeError, ValueError
        If a prompt is not usable; the message has its number.
    """
    given = _as_list(prompts)
    note, ends = "", Ends(() if bos is None else (bos,))
    if isinstance(given[0], str):
        if tokenizer is None:
            raise ValueError("`tokenizer` must be given for texts; got None. Pass token ids.")
        # verbose=False: a text above the tokenizer's own limit is cut and counted here
        ids: Any = tokenizer(given, verbose=False)["input_ids"]
        ends = added(tokenizer)
        ids, note = undoubled(ids, ends, tokenizer)
    else:
        ids = [_token_ids(row) for row in given]
    for number, row in enumerate(ids):
        if not row:
            raise ValueError(
                f"`prompts` must have at least one token each; got none for number {number}, "
                f"{given[number]!r}. Delete it."
            )
        if min(row) < 0 or max(row) >= n_tokens:
            raise ValueError(
                f"`prompts` must have token ids in 0..{n_tokens - 1}; number {number} has "
                f"{min(row)}..{max(row)}. Use the tokenizer of this model."
            )
    long = [number for number, row in enumerate(ids) if len(row) > max_tokens]
    if long and how == "middle":
        ends = template_ends(tokenizer, ends)
    for number in long:
        ids[number] = cut(ids[number], max_tokens, how, ends)
    return Tokens(ids, len(long), note)


def tokens_sha256(rows: list[list[int]]) -> str:
    """Fingerprint of token ids."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _as_list(prompts: Any) -> list:
    """The prompts, all of them strings or none."""
    if isinstance(prompts, (str, bytes)):
        raise TypeError("`prompts` must be a list of texts; got one string. Write [text].")
    if isinstance(prompts, Splits):
        raise TypeError(
            "`prompts` must be the texts of one split; got Splits, which hold three. Take "
            "splits.operating, splits.held_out or splits.concept, or make a run of each: "
            "splits.each(model.run)."
        )
    if isinstance(prompts, Mapping) or hasattr(prompts, "columns"):
        raise TypeError(
            f"`prompts` must be a list of texts; got {short(prompts)}. Give its column of texts; "
            "`lm.read_texts` of it for texts with labels."
        )
    try:
        given = list(prompts.texts if isinstance(prompts, Texts) else prompts)
    except TypeError as error:
        raise TypeError(
            f"`prompts` must be a list of texts or of lists of token ids; got {short(prompts)}. "
            "Write [text] for one text."
        ) from error
    if not given:
        raise ValueError("`prompts` must hold at least one text; got none. Give some.")
    if len({isinstance(one, str) for one in given}) > 1:
        kinds = [isinstance(one, str) for one in given]
        raise TypeError(
            f"`prompts` must be texts or token ids, all of them alike; got a text as number "
            f"{kinds.index(True)} and none as number {kinds.index(False)}. Tokenize the texts."
        )
    return given


def _token_ids(row: Any) -> list[int]:
    try:
        if isinstance(row, str) or any(isinstance(token, (bool, np.bool_)) for token in row):
            raise TypeError
        return [operator.index(token) for token in row]
    except TypeError as error:
        cure = (
            "Use `lm.read_texts` for rows with labels."
            if isinstance(row, Mapping)
            else "Write [[1, 2, 3]] for one prompt."
        )
        raise TypeError(
            f"`prompts` must be a list of texts or of lists of token ids; got {short(row)} among "
            f"the prompts. {cure}"
        ) from error
