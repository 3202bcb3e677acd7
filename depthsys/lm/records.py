"""Rows of texts as people have them: files, tables, data sets, lists."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from depthsys.lm.text_files import FORMATS, Records, file_records

__all__ = ["FORMATS", "Records", "known_columns", "records_of", "some"]

# how tables of other packages give their rows as dictionaries: polars, pyarrow
_TO_ROWS = ("to_dicts", "to_pylist")
# columns with a meaning of their own where none is named
_KNOWN = (
    "text", "input_ids", "attention_mask", "label",
    "positive", "negative",
    "question", "answer_matching_behavior", "answer_not_matching_behavior",
)  # fmt: skip


def known_columns(*named: str | None) -> list[str]:
    """Columns that may be needed."""
    return [*_KNOWN, *(name for name in named if name is not None and name not in _KNOWN)]


def records_of(
    source: Any,
    wanted: Iterable[str],
    *,
    subset: str | None = None,
    format: str | None = None,
) -> tuple[Records, str]:
    """The records of a source, and what results call it.

    Parameters
    ----------
    source
        A file or folder; a table of pandas, polars or pyarrow; a data set; a mapping of columns;
        rows.
    wanted
        Columns that may be needed, see `known_columns`.
    subset
        Which of several data sets.
    format
        Of a file.

    Raises
    ------
    TypeError, ValueError, OSError, ImportError
        If it cannot be read.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        return file_records(path, wanted, subset=subset, format=format), str(path)
    if format is not None:
        raise ValueError(
            f"`format` must go with a file; got {format!r:.40} with {type(source).__name__}. Leave "
            "it out."
        )
    if subset is not None:
        if not (isinstance(source, Mapping) and subset in source):
            names = some(source) if isinstance(source, Mapping) else type(source).__name__
            raise ValueError(
                f"`subset` must be one of several data sets; got {subset!r:.40} of {names}. Name "
                "one, or leave it out."
            )
        source = source[subset]
    classes = _classes(source)
    return Records(list(_rows(source, wanted)), "list", classes), "list"


def _rows(source: Any, wanted: Iterable[str]) -> Iterable[Any]:
    """The rows of what is no file."""
    if hasattr(source, "columns") and hasattr(source, "itertuples"):  # pandas
        return source.to_dict("records")
    for name in _TO_ROWS:
        if hasattr(source, name):
            return getattr(source, name)()
    if isinstance(source, Mapping):
        return _of_columns(source, wanted)
    if hasattr(source, "__iter__"):
        return source
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return (source[row] for row in range(len(source)))
    raise TypeError(
        f"`source` must be a file, a table, or rows of texts and labels; got "
        f"{type(source).__name__}. Zip texts and labels."
    )


def _classes(source: Any) -> dict[str, list[str]]:
    """The names behind whole numbers, as data sets have them, or ordered classes of pandas."""
    if hasattr(source, "itertuples"):
        return _ordered(source)
    features = getattr(source, "features", None)
    if not isinstance(features, Mapping):
        return {}
    named = {column: getattr(feature, "names", None) for column, feature in features.items()}
    return {column: list(names) for column, names in named.items() if isinstance(names, list)}


def _ordered(table: Any) -> dict[str, list[str]]:
    """The categories of the columns of pandas that have an order, where they are words."""
    kinds = {name: kind for name, kind in table.dtypes.items() if getattr(kind, "ordered", False)}
    found = {name: list(kind.categories) for name, kind in kinds.items()}
    return {name: all_ for name, all_ in found.items() if all(isinstance(c, str) for c in all_)}


def _of_columns(columns: Mapping, wanted: Iterable[str]) -> list[dict]:
    """Rows of a mapping from names to columns; refuses a mapping of data sets."""
    chosen = {name: columns[name] for name in wanted if name in columns}
    if not chosen:
        raise ValueError(
            f"`source` must hold the columns 'text' and 'label'; got {some(columns)}. Name the "
            "columns with `text_column` and `label_column`; of a dictionary of data sets give one: "
            "source['train'], or subset='train'."
        )
    sizes = {name: len(column) for name, column in chosen.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"`source` must have columns of one length; got {sizes}. Give a label for every text."
        )
    return [dict(zip(chosen, cells, strict=True)) for cells in zip(*chosen.values(), strict=True)]


def some(names: Iterable) -> list[str]:
    """A few of some names, each of bounded length."""
    found = sorted(name if len(name) <= 40 else f"{name[:37]}..." for name in map(str, names))
    return found if len(found) <= 8 else [*found[:8], "..."]
