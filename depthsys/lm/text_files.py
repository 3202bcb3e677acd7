"""Files of texts: CSV, TSV, JSON, JSON lines; and Parquet, Arrow and folders of `datasets`.

Each becomes records, one for each row, in which no column has a meaning yet.
"""

import csv
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeGuard

from depthsys.files.strangers import Refused, Table, read_table

# what a file is read as, and what its name then ends in
FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "arrow")
_ENDINGS = {f".{name}": name for name in FORMATS} | {".ndjson": "jsonl"}
# A whole document in one cell is no error: the csv module's own limit is 131072 characters.
_LONGEST_CELL = 2**31 - 1
_LARGEST = 2**32  # bytes of a file of texts
_DESCRIPTION = 2**24  # bytes of the description of a data set
_GIVE = "Give a CSV, TSV, JSON, JSONL or Parquet file, or a folder of `datasets`"


@dataclass(frozen=True)
class Records:
    """The rows of a source.

    Attributes
    ----------
    rows
        Mappings from columns to cells, or whatever else there was.
    source
        What it is called in messages.
    classes
        By column: the names behind whole numbers, in their order.
    columns
        Names of all columns, where rows do not have all of them.
    """

    rows: list[Any]
    source: str
    classes: Mapping[str, list[str]] = field(default_factory=dict)
    columns: Sequence[str] = ()


def file_records(
    path: Path, wanted: Iterable[str], *, subset: str | None = None, format: str | None = None
) -> Records:
    """Records of a file, or of a folder that `datasets` has saved.

    Parameters
    ----------
    path
        Where it is.
    wanted
        Columns that may be needed: of a Parquet file or a data set no others are read.
    subset
        Which of several data sets of a folder.
    format
        One of `FORMATS`; by default what the name ends in.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    ImportError
        If it takes pyarrow, which is not there.
    ValueError
        If it is not what it should be.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(
            f"`format` must be one of {', '.join(FORMATS)}; got {format!r:.40}. Leave it out where "
            "the name of the file ends in it."
        )
    if path.is_dir():
        return _folder(path, set(wanted), subset)
    if subset is not None:
        raise ValueError(
            f"`subset` must go with a folder of several data sets; got {subset!r:.40} with "
            f"{path.name!r}, which is none. Leave it out."
        )
    if not path.is_file():
        raise FileNotFoundError(f"`texts` must be an existing file; got {str(path)!r}. {_GIVE}.")
    kind = _ENDINGS.get(path.suffix.lower()) if format is None else format
    if kind is None:
        raise ValueError(
            f"`texts` must be a .csv, .tsv, .json, .jsonl or .parquet file; got {path.name!r}. Say "
            "what it is by `format`, or convert it first."
        )
    if (size := path.stat().st_size) > _LARGEST:
        raise ValueError(
            f"`texts` must be a file of at most {_LARGEST // 2**30} GiB; got {size / 2**30:.1f} "
            f"GiB in {path.name!r}. Keep the rows that are needed."
        )
    if kind in ("parquet", "arrow"):
        table = _arrow(path, set(wanted), kind)
        return _filled(Records(table.rows, repr(path.name), table.classes, table.columns))
    return _filled(Records(_text_file(path, kind), repr(path.name)))


def _filled(records: Records) -> Records:
    if records.rows:
        return records
    raise ValueError(f"`texts` must not be empty; {records.source} has no rows. Add texts.")


# ------------------------------------------------------------------------- text


def _text_file(path: Path, kind: str) -> list[Any]:
    read = {"json": _json, "jsonl": _json_lines}.get(kind)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return read(file) if read else _table(file, kind)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`texts` must be a UTF-8 file; got {path.name!r}: {error}. Save it as UTF-8."
        ) from error


def _json(file: IO[str]) -> list[Any]:
    """An array of objects, or an object of columns; many call JSON lines so, too."""
    text = file.read()
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        if text.lstrip().startswith("{"):
            return _json_lines(text.split("\n"))  # not at U+2028, which JSON may hold
        raise ValueError(
            f"`texts` must hold an array of JSON objects; it does not: {error}. Correct it."
        ) from error
    if isinstance(found, Mapping):
        sizes = {len(cells) if isinstance(cells, list) else None for cells in found.values()}
        if len(sizes) == 1 and None not in sizes:
            return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
        if found and all(_is_numbered(cells) for cells in found.values()):
            raise ValueError(
                "`texts` must hold an array of JSON objects; got columns whose cells are numbered, "
                f"{str(list(found))[:60]}, as `to_json` of pandas writes them by itself. Write it "
                'with `to_json(..., orient="records")`.'
            )
        return [found]  # one line of JSON lines
    if not isinstance(found, list):
        raise ValueError(
            f"`texts` must hold an array of JSON objects; got {type(found).__name__}. Write "
            '[{"text": ..., "label": ...}, ...].'
        )
    return found


def _is_numbered(cells: Any) -> bool:
    return isinstance(cells, Mapping) and bool(cells) and all(key.isdecimal() for key in cells)


def _json_lines(lines: Iterable[str]) -> list[Any]:
    records = []
    for number, line in enumerate(lines, start=1):
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
    if kind == "csv":
        reader = csv.DictReader(file, strict=True)
    else:  # tab-separated values know no quoting: a quotation mark is text
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise ValueError(
                f"`texts` must have distinct column names; got {list(names)}. Rename one."
            )
        if kind == "csv" and len(names) == 1 and (separator := re.search("[;\t|]", names[0])):
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
            f"`texts` must be a well-formed .{kind} file; got an error near line "
            f"{reader.line_num}: {error}. Put fields that hold quotes or delimiters in quotes, and "
            'write " inside them as "".'
        ) from error


# ------------------------------------------------------------------------- Parquet, data sets


def _arrow(path: Path, wanted: set[str], kind: str) -> Table:
    if importlib.util.find_spec("pyarrow") is None:
        raise ImportError(
            f"`texts` must be text where the package pyarrow is missing; got {path.name!r}. "
            "Install it: pip install 'depthsys[parquet]'."
        )
    try:
        return read_table(path, wanted, kind)
    except Refused as error:
        raise ValueError(
            f"`texts` must be a file that can be trusted; {path.name!r} is not read: {error}. "
            "Write a file that holds the columns that are needed, as texts and numbers."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"`texts` must be a sound .{kind} file; {path.name!r} is not: {error}. Write it again."
        ) from error


def _folder(path: Path, wanted: set[str], subset: str | None) -> Records:
    """A data set as `Dataset.save_to_disk` writes it, or one of those of a `DatasetDict`."""
    several = _described(path / "dataset_dict.json", "splits")
    if several is not None:
        names = [name for name in several if _is_name(name)]
        if subset is None or subset not in names:
            got = "none was chosen" if subset is None else f"got {subset!r:.40}"
            raise ValueError(
                f"`subset` must be one of the data sets {names[:8]} in {path.name!r}; {got}. "
                "Choose one."
            )
        return _folder(path / subset, wanted, None)
    if subset is not None:
        raise ValueError(
            f"`subset` must go with a folder of several data sets; got {subset!r:.40} with "
            f"{path.name!r}, which is one. Leave it out."
        )
    files = _described(path / "state.json", "_data_files")
    if files is None:
        raise ValueError(
            f"`texts` must be a file, or a folder that `datasets` has saved; got the folder "
            f"{str(path)!r}, which has no state.json. {_GIVE}."
        )
    listed = [file.get("filename") if isinstance(file, Mapping) else None for file in files]
    names = [name for name in listed if _is_name(name) and (path / name).is_file()]
    if len(names) < len(listed):
        raise ValueError(
            f"`texts` must be a folder that `datasets` has saved; state.json in {path.name!r} "
            f"names {listed!s:.80}, and not all are files there. Save it again."
        )
    tables = [_arrow(path / name, wanted, "arrow") for name in names]
    rows = [row for table in tables for row in table.rows]
    about = tables[0] if tables else Table([], [], {})
    return _filled(Records(rows, repr(path.name), about.classes, about.columns))


def _described(path: Path, key: str) -> list[Any] | None:
    """A list in a description of a data set; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _DESCRIPTION:
            raise ValueError("it is too large")
        found = json.loads(path.read_text("utf-8"))[key]
        if not isinstance(found, list):
            raise TypeError(f"{key} is no list")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"`texts` must be a folder that `datasets` has saved; {path.name} in "
            f"{path.parent.name!r} is none of its descriptions: {error}. Save it again."
        ) from error
    return found


def _is_name(name: object) -> TypeGuard[str]:
    """Whether it names something inside the folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name
