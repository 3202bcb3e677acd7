"""Records -> rows of texts with labels, or of pairs of texts: which column means what.

A text is a string, or a tuple of token ids; a label is a string.
"""

import contextlib
import operator
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np

from depthsys.lm.records import Records, some

Text = str | tuple[int, ...]
Row = tuple[Any, str]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
# what columns are called elsewhere
_LIKELY = {
    "text": "sentence review content body document tweet message comment snippet prompt".split(),
    "label": "labels class category target sentiment emotion mood rating stars score y".split(),
}
PAIR = ("positive", "negative")
# questions with two answers, as those of contrastive activation addition
ANSWERS = ("answer_matching_behavior", "answer_not_matching_behavior")
QUESTION = "question"


def labelled_rows(
    records: Records, text_column: str | None = None, label_column: str | None = None
) -> list[Row]:
    """Rows (text, label) of records.

    Raises
    ------
    ValueError
        If a column is missing, or a cell is not usable; the message names the row.
    """
    named = {"text": text_column, "label": label_column}
    return [
        _row(record, f"in row {number} of {records.source}", named, records)
        for number, record in enumerate(records.rows, start=1)
    ]


def label_order(records: Records, label_column: str | None) -> list[str]:
    """The names of the labels in the order of the numbers behind them, where there are some."""
    return list(records.classes.get(label_column or "label", ()))


def label_name(label: object, where: str) -> str:
    """A label as text; ValueError unless it is text, a whole number or a boolean."""
    if isinstance(label, (float, np.floating)) and float(label).is_integer():
        label = int(label)  # what pandas makes of whole numbers beside a gap
    if not isinstance(label, (str, int, np.bool_)):
        with contextlib.suppress(TypeError):  # numbers of numpy and torch, if whole
            label = operator.index(label)  # pyright: ignore[reportArgumentType]
    if not isinstance(label, (str, int, np.bool_)):
        raise ValueError(
            f"`label` must be text, a whole number or a boolean; got {label!r} {where}. Convert "
            "the labels."
        )
    return str(label).strip()


def as_written(label: str, labels: Iterable[str]) -> str:
    """The one of some labels that is meant: the same text, or the same number ("2.0" for "2")."""
    found = list(labels)
    if label in found or not _NUMBER.fullmatch(label):
        return label
    same = [s for s in found if _NUMBER.fullmatch(s) and Decimal(s) == Decimal(label)]
    return same[0] if len(same) == 1 else label


def in_order(labels: Iterable[str]) -> list[str]:
    """Different labels in order: as numbers where all of them are numbers, else as text.

    Raises
    ------
    ValueError
        If two of them are the same number.
    """
    found = set(labels)
    if not all(_NUMBER.fullmatch(label) for label in found):
        return sorted(found)
    ordered = sorted(found, key=lambda label: (Decimal(label), label))
    for one, other in pairwise(ordered):
        if Decimal(one) == Decimal(other):
            raise ValueError(
                f"`label` must be written in one way; got {one!r} and {other!r}, which are the "
                "same number. Write both alike."
            )
    return ordered


# ------------------------------------------------------------------------- one row


def _row(record: Any, where: str, named: Mapping[str, str | None], records: Records) -> Row:
    if isinstance(record, Mapping):
        text, label = _text_of(record, where, named, records), record[named["label"] or "label"]
        label = _of_class(label, records.classes.get(named["label"] or "label"), where)
    elif records.source != "list" or any(named.values()):
        wanted = " and ".join(repr(name or kind) for kind, name in named.items())
        raise ValueError(
            f"`texts` must have the columns {wanted}; got {type(record).__name__} "
            f"{where}. Write an object with both in every line."
        )
    else:
        if isinstance(record, str) or not hasattr(record, "__len__") or len(record) != 2:
            raise ValueError(
                f"`source` must hold pairs (text, label); got {_shown(record)} {where}. Zip texts "
                "and labels."
            )
        text, label = record
    return checked_text(text, where), label_name(label, where)


def _text_of(record: Mapping, where: str, named: Mapping[str, str | None], records: Records) -> Any:
    """The text of a row, or the token ids in its column ``input_ids``."""
    name = named["text"] or ("text" if "text" in record else "input_ids")
    label = named["label"] or "label"
    if not {name, label} <= record.keys():
        raise ValueError(_missing(record, where, named, records))
    if record[name] is None or record[label] is None:
        raise ValueError(
            f"`texts` must have a text and a label in every row; got none of one {where}. Fill it "
            "in or delete the row."
        )
    if name != "input_ids":
        return record[name]
    ids, mask = _ids(record[name], where), record.get("attention_mask")
    if mask is None:
        return ids
    kept = _ids(mask, where)
    if len(kept) != len(ids):
        raise ValueError(
            f"`attention_mask` must be as long as `input_ids`; got {len(kept)} and {len(ids)} "
            f"{where}. Leave the column out where nothing is padded."
        )
    return tuple(token for token, keep in zip(ids, kept, strict=True) if keep)


def _missing(record: Mapping, where: str, named: Mapping[str, str | None], records: Records) -> str:
    """What to say where a column is missing: which there are, and which are likely meant."""
    there = list(map(str, records.columns or record))
    wanted = {kind: name or kind for kind, name in named.items()}
    cures = []
    for kind, name in wanted.items():
        if name in there or (name == "text" and "input_ids" in there):
            continue
        likely = [column for column in there if column.lower() in _LIKELY[kind]]
        likely = [column for column in likely if column not in wanted.values()]
        is_meant = f"Is {likely[0]!r} the {kind}? Write " if likely else "Name it by "
        cures.append(f"{is_meant}`{kind}_column`{f' {likely[0]}' if likely else ''}.")
    if not any(named.values()):
        cures.append("Token ids are 'input_ids'.")
    return (
        f"`texts` must have the columns {' and '.join(map(repr, wanted.values()))}; got "
        f"{some(there)} {where}. {' '.join(cures)}"
    )


def _of_class(label: Any, names: list[str] | None, where: str) -> Any:
    """The name of a class that is a whole number in a data set."""
    if names is None or isinstance(label, (str, bool)) or not hasattr(label, "__index__"):
        return label
    number = operator.index(label)
    if not 0 <= number < len(names):
        raise ValueError(
            f"`label` must be the number of one of {len(names)} classes, {names[:8]}; got "
            f"{number} {where}. Such rows have no label: leave them out, or choose another part."
        )
    return names[number]


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


# ------------------------------------------------------------------------- pairs


def has_pairs(records: Records) -> bool:
    """Whether the columns are those of pairs, and not of labelled texts."""
    first = next(iter(records.rows), None)
    there = set(records.columns) or (set(first) if isinstance(first, Mapping) else set())
    return "label" not in there and (set(PAIR) <= there or {QUESTION, *ANSWERS} <= there)


def pair_rows(
    records: Records, columns: tuple[str, str] | None, text_column: str | None
) -> tuple[list[tuple[Any, Any]], tuple[str, str]]:
    """Rows (positive text, negative text) of records, and what the two are called.

    Parameters
    ----------
    records
        Mappings, pairs, or objects of other packages.
    columns
        Those of the positive and of the negative text; by default `PAIR`, or `ANSWERS`.
    text_column
        What stands before both; by default `QUESTION` for `ANSWERS`, and nothing otherwise.

    Raises
    ------
    ValueError
        If a column is missing, or a cell is not usable; the message names the row.
    """
    first = next(iter(records.rows), None)
    if columns is None:
        there = first.keys() if isinstance(first, Mapping) else set()
        columns = ANSWERS if set(ANSWERS) <= there and not set(PAIR) <= there else PAIR
    if columns == ANSWERS and text_column is None:
        text_column = QUESTION
    rows = [
        _pair(record, columns, text_column, f"in row {number} of {records.source}", records)
        for number, record in enumerate(records.rows, start=1)
    ]
    return rows, columns


def _pair(
    record: Any, columns: tuple[str, str], text_column: str | None, where: str, records: Records
) -> tuple[Any, Any]:
    if not isinstance(record, Mapping):
        pair = _of_others(record, where)
        if text_column is not None:
            raise ValueError(
                f"`text_column` must go with records; got {_shown(record)} {where}. Write what "
                "stands before both into both."
            )
        return checked_text(pair[0], where), checked_text(pair[1], where)
    wanted = [*columns, *([] if text_column is None else [text_column])]
    if not set(wanted) <= record.keys():
        raise ValueError(
            f"`pairs` must have the columns {' and '.join(map(repr, wanted))}; got "
            f"{some(records.columns or record)} {where}. Name those of the positive and of the "
            "negative text, in this order."
        )
    if any(record[name] is None for name in wanted):
        raise ValueError(
            f"`pairs` must have both texts in every row; got none of one {where}. Fill it in or "
            "delete the row."
        )
    texts = [checked_text(record[name], where) for name in columns]
    if text_column is not None:
        texts = [_joined(record[text_column], text, where) for text in texts]
    return texts[0], texts[1]


def _joined(before: Any, text: Any, where: str) -> Any:
    """What stands before, and the text, with one space between them where there is none."""
    before = checked_text(before, where)
    if isinstance(before, tuple) and isinstance(text, tuple):
        return before + text
    if not (isinstance(before, str) and isinstance(text, str)):
        raise ValueError(
            f"`pairs` must be strings or token ids, all of them alike; got {_shown(before)} before "
            f"{_shown(text)} {where}. Tokenize the strings."
        )
    gap = "" if not before or before[-1].isspace() or text[:1].isspace() else " "
    return before + gap + text


def _of_others(record: Any, where: str) -> tuple[Any, Any]:
    """A tuple of two; or a pair of repeng, or of steering-vectors."""
    for names in (PAIR, ("positive_str", "negative_str")):
        if all(hasattr(record, name) for name in names):
            indices = ("read_positive_token_index", "read_negative_token_index")
            if any(getattr(record, name, None) is not None for name in indices):
                raise ValueError(
                    f"`pairs` must be read at one token; got an index of its own {where}. Leave it "
                    "out, and say where all texts are read."
                )
            return getattr(record, names[0]), getattr(record, names[1])
    if isinstance(record, (str, bytes)) or not hasattr(record, "__len__") or len(record) != 2:
        raise ValueError(
            f"`pairs` must hold pairs (positive text, negative text); got {_shown(record)} "
            f"{where}. Zip the two."
        )
    return record[0], record[1]


# ------------------------------------------------------------------------- one text


def checked_text(text: Any, where: str) -> Any:
    """A string as it is, token ids as a tuple; what is neither is left to the check of texts."""
    if isinstance(text, (str, bytes)) or not hasattr(text, "__len__"):
        return text
    return _ids(text, where)


def _ids(cell: Any, where: str) -> tuple[int, ...]:
    """Token ids from a list, an array, or a cell like "1 2 3" or "[1, 2, 3]"."""
    if isinstance(cell, str):
        parts = cell.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
        if not all(part.isascii() and part.isdecimal() for part in parts):
            raise ValueError(
                f"`input_ids` must be whole numbers; got {cell[:40]!r} {where}. Write 1 2 3, or "
                "call the column text."
            )
        return tuple(map(int, parts))
    try:
        if any(isinstance(token, (bool, np.bool_)) for token in cell):
            raise TypeError
        return tuple(operator.index(token) for token in cell)
    except TypeError as error:
        raise ValueError(
            f"`texts` must be strings or lists of token ids; got {str(cell)[:40]!r} {where}. "
            "Give one of both."
        ) from error
