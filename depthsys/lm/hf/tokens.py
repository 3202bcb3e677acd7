"""Texts -> token ids, checked, cut, and up to the token that is read."""

import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from depthsys.lm.hf.reading import (
    Row,
    check_marker_stays,
    check_tokenizer,
    read_row,
    spans_wanted,
    until_index,
)
from depthsys.lm.hf.rendering import rendered, specials_in
from depthsys.lm.hf.template import Ends, added, template_ends, undoubled
from depthsys.lm.kinds import short
from depthsys.lm.prompts import Splits, Texts
from depthsys.prompting import Prompting

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
    prompting: Prompting,
    *,
    n_tokens: int,
    bos: int | None = None,
) -> Tokens:
    """Token ids of texts, or token ids as they are, checked and cut; the last is the state's.

    What follows the token that is read influences nothing that is known of it, so it is left out.

    Parameters
    ----------
    prompts
        Texts, or token ids, to which nothing is added.
    tokenizer
        Only needed for texts.
    prompting
        What is put around texts, which token is read, and where long prompts are cut.
    n_tokens
        Token ids must be below it.
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
        rows, note = _rows_of(given, tokenizer, prompting)
        ends = added(tokenizer)
    else:
        _check_for_ids(prompting)
        rows = [Row(_token_ids(row)) for row in given]
    _check_ids(rows, given, n_tokens)
    long = [number for number, row in enumerate(rows) if len(row.ids) > prompting.max_tokens]
    if long and not prompting.is_plain:
        check_tokenizer(tokenizer, "cutting the texts in a template")
    if long and prompting.cut == "middle":
        ends = template_ends(tokenizer, ends)
    for number in long:
        check_marker_stays(rows[number], number, prompting)
        rows[number] = rows[number].cut(prompting.max_tokens, prompting.cut, ends)
    ids = [row.ids for row in rows]
    if isinstance(prompting.read_at, int):
        ids = [until_index(row, number, prompting.read_at) for number, row in enumerate(ids)]
    return Tokens(ids, len(long), note)


def _rows_of(texts: list[str], tokenizer: Any, prompting: Prompting) -> tuple[list[Row], str]:
    """Rows of texts with what stands around them, and what was done, in words."""
    specials = specials_in(texts, tokenizer, prompting)
    made = rendered(texts, tokenizer, prompting)
    is_located = spans_wanted(tokenizer, prompting)
    # verbose=False: a text above the tokenizer's own limit is cut and counted here. A chat
    # template writes all special tokens by itself
    found: Any = tokenizer(
        made.strings,
        verbose=False,
        add_special_tokens=not prompting.chat,
        **({"return_offsets_mapping": True} if is_located else {}),
    )
    ids = found["input_ids"]
    kept, note = [slice(None)] * len(ids), ""
    if not prompting.chat:
        kept, note = undoubled(ids, added(tokenizer), tokenizer)
    ids = [row[part] for row, part in zip(ids, kept, strict=True)]
    rows = [Row(row) for row in ids]
    if is_located:
        spans = [row[part] for row, part in zip(found["offset_mapping"], kept, strict=True)]
        rows = [read_row(ids[n], spans[n], made, n, prompting) for n in range(len(ids))]
    return rows, "; ".join(filter(None, (made.note, note, specials)))


def _check_for_ids(prompting: Prompting) -> None:
    """ValueError if something is asked for that token ids do not say."""
    for name, asked in (("template", prompting.template), ("chat", prompting.chat)):
        if asked:
            raise ValueError(
                f"`{name}` must be left out for token ids, to which nothing is added; got "
                f"{short(asked)}. Give texts, or put it into the ids."
            )
    if isinstance(prompting.read_at, str) and prompting.read_at != "last":
        raise ValueError(
            "`read_at` must be 'last' or a whole number for token ids, which do not say where a "
            f"text ends; got {short(prompting.read_at)}. Give texts, or an index."
        )


def _check_ids(rows: list[Row], given: list, n_tokens: int) -> None:
    for number, row in enumerate(row.ids for row in rows):
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
