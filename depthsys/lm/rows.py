"""Rows of labelled texts as people have them: files, tables, data sets, pairs.

Every source becomes rows (text, label): a text is a string, or a tuple of token ids; a label is a
string.
"""

import contextlib
import csv
import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

Text = str | tuple[int, ...]
Row = tuple[Any, str]

# A whole document in one cell is no error: the csv module's own limit is 131072 characters.
_LONGEST_CELL = 2**31 - 1
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
# how tables of other packages give their rows as dictionaries: polars, pyarrow
_TO_ROWS = ("to_dicts", "to_pylist")


def labelled_rows(source: Any) -> tuple[list[Row], str]:
    """Rows of a file, of a table or data set, or of pairs; and what the source is called.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the format, the columns or a label is not usable; the message names the row.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        return [_row(record, n, repr(path.name)) for n, record in _numbered(path)], str(path)
    return [_row(record, n, "list") for n, record in enumerate(_records(source), 1)], "list"


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


# ------------------------------------------------------------------------- files


def _numbered(path: Path) -> Iterator[tuple[int, Any]]:
    if path.is_dir():
        raise ValueError(
            f"`texts` must be a file; got the folder {str(path)!r}. Give a CSV, TSV or JSONL file "
            "with the columns text and label."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"`texts` must be an existing file; got {str(path)!r}. "
            "Give a CSV, TSV or JSONL file with the columns text and label."
        )
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise ValueError(
            f"`texts` must be a .csv, .tsv or .jsonl file; got {path.name!r}. Convert it first."
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = _json_lines(file) if kind == ".jsonl" else _table(file, kind)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`texts` must be a UTF-8 file; got {path.name!r}: {error}. Save it as UTF-8."
        ) from error
    if not records:
        raise ValueError(f"`texts` must not be empty; {path.name!r} has no rows. Add texts.")
    return enumerate(records, start=1)


def _json_lines(file: IO[str]) -> list:
    records = []
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(
                    f"`texts` must hold one JSON object per line; line {number} is none: "
                    f"{error}. Correct the line."
                ) from error
    return records


def _table(file: IO[str], kind: str) -> list[dict]:
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        return _cells(file, kind)
    finally:
        csv.field_size_limit(limit)


def _cells(file: IO[str], kind: str) -> list[dict]:
    if kind == ".csv":
        reader = csv.DictReader(file, strict=True)
    else:  # tab-separated values know no quoting: a quotation mark is text
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise ValueError(
                f"`texts` must have distinct column names; got {list(names)}. Rename one."
            )
        if len(names) == 1 and (separator := re.search("[;\t|]", names[0])):
            raise ValueError(
                f"`texts` must have commas between the cells of a .csv file; got {names[0]!r} as "
                f"its header, with {separator[0]!r} between them. Save it with commas, or as .tsv."
            )
        rows = []
        for row in reader:
            if None in row:
                raise ValueError(
                    f"`texts` must have {len(names)} cells in every row; line {reader.line_num} "
                    "has more. Put texts that hold the delimiter in quotes."
                )
            rows.append(row)
        return rows
    except csv.Error as error:
        raise ValueError(
            f"`texts` must be a well-formed {kind} file; got an error near line "
            f"{reader.line_num}: {error}. Put fields that hold quotes or delimiters in quotes, and "
            'write " inside them as "".'
        ) from error


# ------------------------------------------------------------------------- tables and data sets


def _records(source: Any) -> Iterable[Any]:
    """The rows of what is no file."""
    if hasattr(source, "columns") and hasattr(source, "itertuples"):  # pandas
        return source.to_dict("records")
    for name in _TO_ROWS:
        if hasattr(source, name):
            return getattr(source, name)()
    if isinstance(source, Mapping):
        return _of_columns(source)
    if hasattr(source, "__iter__"):
        return source
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return (source[row] for row in range(len(source)))
    raise TypeError(
        f"`source` must be a file, a table, or rows of texts and labels; got "
        f"{type(source).__name__}. Zip texts and labels."
    )


def _of_columns(columns: Mapping) -> list[dict]:
    """Rows of a mapping from names to columns; refuses a mapping of data sets."""
    if "label" not in columns:
        raise ValueError(
            f"`source` must hold the columns 'text' and 'label'; got {_some(columns)}. Rename the "
            "columns; of a dictionary of data sets give one: source['train']."
        )
    chosen = {name: columns[name] for name in _COLUMNS if name in columns}
    sizes = {name: len(column) for name, column in chosen.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"`source` must have columns of one length; got {sizes}. Give a label for every text."
        )
    return [dict(zip(chosen, cells, strict=True)) for cells in zip(*chosen.values(), strict=True)]


_COLUMNS = ("text", "input_ids", "attention_mask", "label")


# ------------------------------------------------------------------------- one row


def _row(record: Any, number: int, source: str) -> Row:
    where = f"in row {number} of {source}"
    if isinstance(record, Mapping):
        text, label = _text_of(record, where), record["label"]
    elif source == "list":
        if isinstance(record, str) or not hasattr(record, "__len__") or len(record) != 2:
            raise ValueError(
                f"`source` must hold pairs (text, label); got {record!r} in row {number}. "
                "Zip texts and labels."
            )
        text, label = record
    else:
        raise ValueError(
            f"`texts` must have the columns 'text' and 'label'; got {type(record).__name__} "
            f"{where}. Write an object with both in every line."
        )
    return checked_text(text, where), label_name(label, where)


def _text_of(record: Mapping, where: str) -> Any:
    """The text of a row, or the token ids in its column ``input_ids``."""
    name = "text" if "text" in record else "input_ids"
    if not {name, "label"} <= record.keys():
        raise ValueError(
            f"`texts` must have the columns 'text' and 'label'; got {_some(record)} {where}. "
            "Rename the columns; token ids are 'input_ids'."
        )
    if record[name] is None or record["label"] is None:
        raise ValueError(
            f"`texts` must have a text and a label in every row; got none of one {where}. Fill it "
            "in or delete the row."
        )
    if name == "text":
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


def _some(names: Iterable) -> list[str]:
    found = sorted(map(str, names))
    return found if len(found) <= 8 else [*found[:8], "..."]
