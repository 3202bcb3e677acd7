"""Columns of a Parquet file, or of Arrow files as `datasets` writes them, that are asked for.

Runs in the process of `server`. Only texts, numbers and lists of whole numbers are read: no
extension type, and nothing that would be code.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from depthsys.files.strangers import limits
from depthsys.files.strangers.limits import Refused, check_sizes, one_line
from depthsys.files.strangers.server import Answer, limit_to

_AT_ONCE = 1024  # rows of a message
_ROW = 8  # bytes that a value takes at least, once it is read


def read(request: Mapping[str, Any]) -> Answer:
    """First the names of all columns and of their classes, then rows of those that are asked for.

    ``request`` has ``path``, ``kind`` ("parquet" or "arrow") and ``columns``, the names to read, of
    those that are there.
    """
    # no reserve of address space, which is limited here; and no threads, which a fork loses
    pa.set_memory_pool(pa.system_memory_pool())
    pa.set_cpu_count(1)
    stored = Path(request["path"]).stat().st_size
    open_ = _parquet if request["kind"] == "parquet" else _ipc
    with pa.OSFile(request["path"]) as file:
        schema, declared, batches = open_(file, set(request["columns"]))
        found = [field for field in schema if field.name in request["columns"]]
        for field in found:
            _check_type(field)
        limit_to(check_sizes(declared, stored, request["most"]))
        names = [one_line(name, 80) for name in schema.names[: limits.OBJECTS]]
        yield (
            {"columns": names, "found": [f.name for f in found], "classes": _classes(schema)},
            None,
        )
        left = min(limits.FREE + limits.RATIO * stored, request["most"])
        for batch in batches:
            batch.validate(full=True)  # what points outside of it ends here
            for start in range(0, batch.num_rows, _AT_ONCE):
                columns = [_plain(batch[field.name].slice(start, _AT_ONCE)) for field in found]
                left -= sum(column.nbytes for column in columns)
                if left < 0:
                    raise Refused("it holds far more than a file of its size can be meant to hold")
                cells = [column.to_pylist() for column in columns]
                rows = [list(row) for row in zip(*cells, strict=True)]
                yield {"rows": rows or [[]] * min(_AT_ONCE, batch.num_rows - start)}, None


_Opened = tuple[pa.Schema, dict[str, int], Iterator[pa.RecordBatch]]


def _parquet(file: pa.NativeFile, wanted: set[str]) -> _Opened:
    parquet = pq.ParquetFile(file, pre_buffer=False)
    about, schema = parquet.metadata, parquet.schema_arrow
    names = _distinct(schema, wanted)
    declared = {name: _ROW * about.num_rows for name in names}
    for group in range(about.num_row_groups):
        for number in range(about.num_columns):
            column = about.row_group(group).column(number)
            name = column.path_in_schema.split(".")[0]
            if name in declared:
                declared[name] += column.total_uncompressed_size
    return schema, declared, parquet.iter_batches(_AT_ONCE, columns=names, use_threads=False)


def _ipc(file: pa.NativeFile, wanted: set[str]) -> _Opened:
    """A stream, as `datasets` writes it, or a file with an index."""
    start = file.read(6)
    open_ = pa.ipc.open_file if start == b"ARROW1" else pa.ipc.open_stream
    if start != b"ARROW1" and start[:4] != b"\xff\xff\xff\xff":
        raise ValueError("it does not begin as Arrow files do")
    file.seek(0)
    schema = open_(file).schema
    names = _distinct(schema, wanted)
    included = [schema.names.index(name) for name in names]
    options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=included)
    file.seek(0)
    opened = open_(file, options=options)
    if isinstance(opened, pa.ipc.RecordBatchStreamReader):
        return schema, {}, iter(opened)
    numbers = range(opened.num_record_batches)
    return schema, {}, (opened.get_batch(number) for number in numbers)


def _plain(column: pa.Array) -> pa.Array:
    """Without a dictionary, in which one long text stands for many."""
    return column.dictionary_decode() if types.is_dictionary(column.type) else column


def _distinct(schema: pa.Schema, wanted: set[str]) -> list[str]:
    names = [name for name in schema.names if name in wanted]
    if len(set(names)) < len(names):
        raise Refused(f"it has two columns of one name, out of {one_line(names, 80)}")
    return names


def _check_type(field: pa.Field) -> None:
    kind = field.type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        good = types.is_integer(kind.value_type)
    else:
        text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        good = text or any(
            is_kind(kind)
            for is_kind in (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
        )
    if not good:
        raise Refused(
            f"its column {one_line(repr(field.name), 60)} is of type {one_line(field.type, 60)}, "
            "and only texts, numbers and lists of whole numbers are read"
        )


def _classes(schema: pa.Schema) -> dict[str, list[str]]:
    """Names behind whole numbers, which `datasets` writes beside the columns."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    if len(text) > limits.DESCRIPTION:
        return {}
    try:
        return named_classes(json.loads(text)["info"]["features"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def named_classes(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of every ClassLabel among the features of a data set."""
    return {
        column: [str(name) for name in feature["names"]]
        for column, feature in features.items()
        if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel"
    }
