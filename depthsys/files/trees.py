"""Chosen variables of a Zarr hierarchy, read as they lie on the disk.

A page about fifty cells needs a few small arrays of some hundred groups. Opening each of them as a
Zarr array takes longer than all else together; their files are read here directly, as version 3 of
the format describes them, for the few codecs that results are stored with. Links are not followed,
nothing that a store names can run, and what is not known is refused.
"""

import io
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

METADATA = "zarr.json"
MOST_BYTES = 2**28  # of one variable, decoded
MOST_TEXT = 2**22  # of one chunk of texts, as it is stored
_NUMBERS = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
}
_FILLS = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}


class Unreadable(ValueError):
    """What lies in a store is not what it should be; the text says what, in one line."""


@dataclass
class Node:
    """A group of a hierarchy.

    Attributes
    ----------
    attrs
        Of the group.
    variables
        Dims and values of what was asked for, of what is there, with the labels of their dims.
    sizes
        Of the dims of what was read, and of what was only to be measured.
    """

    attrs: dict[str, Any]
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


def read_tree(
    path: str | os.PathLike,
    wanted: Callable[[str], Iterable[str]],
    sized: Iterable[str] = (),
) -> dict[str, Node]:
    """The groups of a Zarr hierarchy by their path, each with the variables that are wanted.

    Parameters
    ----------
    path
        A folder with ``zarr.json`` in it.
    wanted
        Names to read of the group at a path, as ``model/task/gains``; the root is "". What lies
        below a group of which something is wanted is not looked at. A group that appears, or goes,
        meanwhile may be there or not.
    sized
        Names of which only the sizes are read, in every such group.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it is no Zarr hierarchy of version 3, or a part of it cannot be read.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(
            f"`path` must be an existing folder; got {str(root)!r}. Look for it."
        )
    try:
        if not (root / METADATA).is_file():
            raise Unreadable(f"there is no {METADATA} in it")
        return dict(_nodes(str(root), wanted, frozenset(sized)))
    except (Unreadable, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"`path` must be a Zarr store of version 3 that is whole; got {str(root)!r}, in which "
            f"{_told(error)}. Give the folder that `depthsys study run` writes."
        ) from error


def _told(error: Exception) -> str:
    said = " ".join(str(error).split())
    said = said if isinstance(error, Unreadable) else f"{type(error).__name__}: {said}"
    return said[:300]


def _nodes(
    root: str, wanted: Callable[[str], Iterable[str]], sized: frozenset[str]
) -> Iterator[tuple[str, Node]]:
    """The root and all groups below it, in order of names."""
    left = [("", root)]
    while left:
        name, place = left.pop()
        meta = _described(place)
        if meta.get("node_type") != "group":
            continue
        below = _folders(place)
        names = frozenset(wanted(name))
        yield name, _node(place, meta, names.intersection(below), sized.intersection(below))
        if not names:
            left += [
                (f"{name}/{each}".strip("/"), f"{place}/{each}") for each in sorted(below)[::-1]
            ]


def _folders(place: str) -> set[str]:
    """Names of the parts of a group; a link is none."""
    with os.scandir(place) as entries:
        return {
            entry.name
            for entry in entries
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        }


def _described(place: str) -> dict[str, Any]:
    """What the ``zarr.json`` of a group or array says; nothing where there is none."""
    try:
        said = json.loads(_bytes(f"{place}/{METADATA}"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Unreadable(f"{_name(place)}/{METADATA} is not whole") from error
    if not isinstance(said, dict) or said.get("zarr_format") != 3:
        raise Unreadable(f"{_name(place)}/{METADATA} is not of version 3")
    return said


def _name(place: str) -> str:
    return place.rsplit("/", 1)[-1]


def _bytes(path: str) -> bytes:
    """What a file holds that is none of somewhere else."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with io.FileIO(handle) as file:
        return file.readall()


def _node(
    place: str, meta: Mapping[str, Any], names: frozenset[str], sized: frozenset[str]
) -> Node:
    arrays = {name: _described(f"{place}/{name}") for name in sorted(names | sized)}
    dims = {name: _dims(said) for name, said in arrays.items()}
    sizes = {
        dim: n for name in arrays for dim, n in zip(dims[name], arrays[name]["shape"], strict=True)
    }
    labels = {dim for name in names for dim in dims[name]} - names
    for dim in sorted(labels.intersection(_folders(place)) if labels else ()):
        arrays[dim], dims[dim] = _described(f"{place}/{dim}"), (dim,)
    read = [name for name in arrays if name in names or name in labels]
    variables = {name: (dims[name], _array(f"{place}/{name}", arrays[name])) for name in read}
    return Node(dict(meta.get("attributes", {})), variables, sizes)


def _dims(said: Mapping[str, Any]) -> tuple[str, ...]:
    if said.get("node_type") != "array":
        raise Unreadable("a variable is not whole")
    return tuple(map(str, said.get("dimension_names") or ()))


def _array(place: str, said: Mapping[str, Any]) -> np.ndarray:
    """The values of an array: all its chunks, and what stands for those that were not written."""
    shape = tuple(map(int, said["shape"]))
    if said["chunk_grid"]["name"] != "regular" or said.get("storage_transformers"):
        raise Unreadable(f"{_name(place)} is stored in chunks of an unknown kind")
    chunk = tuple(map(int, said["chunk_grid"]["configuration"]["chunk_shape"]))
    dtype = _dtype(_name(place), said["data_type"])
    size = math.prod(chunk) * max(dtype.itemsize, 1)
    if max(size, math.prod(shape) * dtype.itemsize) > MOST_BYTES or 0 in chunk:
        raise Unreadable(f"{_name(place)} declares more than {MOST_BYTES} bytes, or chunks of none")
    found = _chunks(place, said, dtype, shape, chunk)
    return found.astype(str) if dtype.kind == "O" else found


def _chunks(
    place: str,
    said: Mapping[str, Any],
    dtype: np.dtype,
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
) -> np.ndarray:
    values = np.full(shape, _fill(said["fill_value"]), dtype)
    for index in product(*(range(-(-n // c)) for n, c in zip(shape, chunk, strict=True))):
        try:
            stored = _bytes(f"{place}/{_key(said['chunk_key_encoding'], index)}")
        except FileNotFoundError:
            continue
        part = _decoded(_name(place), stored, said["codecs"], dtype, chunk)
        if chunk == shape:
            return part
        at = tuple(
            slice(i * c, min(n, (i + 1) * c)) for i, c, n in zip(index, chunk, shape, strict=True)
        )
        values[at] = part[tuple(slice(0, s.stop - s.start) for s in at)]
    return values


def _dtype(name: str, said: Any) -> np.dtype:
    if said == "string":
        return np.dtype(object)
    if isinstance(said, str) and said in _NUMBERS:
        return np.dtype(said).newbyteorder("<")
    if isinstance(said, Mapping) and said.get("name") == "fixed_length_utf32":
        return np.dtype(f"<U{int(said['configuration']['length_bytes']) // 4}")
    raise Unreadable(f"{name} is of the unknown kind {str(said)[:60]!r}")


def _fill(said: Any) -> Any:
    return _FILLS.get(said, said) if isinstance(said, str) else said


def _key(encoding: Mapping[str, Any], index: tuple[int, ...]) -> str:
    between = encoding.get("configuration", {}).get("separator", "/")
    if encoding["name"] != "default" or between not in ("/", "."):
        raise Unreadable("chunks have names of an unknown kind")
    return between.join(["c", *map(str, index)])


def _decoded(
    name: str, stored: bytes, codecs: list[Any], dtype: np.dtype, chunk: tuple[int, ...]
) -> np.ndarray:
    """A chunk: the codecs backwards, the last of which makes values of bytes."""
    for codec in reversed(codecs[1:]):
        stored = _unpacked(name, stored, codec, dtype, chunk)
    first, count = codecs[0], math.prod(chunk)
    if first["name"] == "vlen-utf8":
        return np.array(_texts(name, stored, count), dtype=object).reshape(chunk)
    if first["name"] != "bytes":
        raise Unreadable(f"{name} needs the codec {str(first['name'])[:40]!r} to be read")
    if first.get("configuration", {}).get("endian", "little") != "little":
        raise Unreadable(f"{name} is stored in big-endian numbers")
    if len(stored) != count * dtype.itemsize:
        raise Unreadable(f"a chunk of {name} is not whole")
    return np.frombuffer(stored, dtype).reshape(chunk)


def _unpacked(
    name: str, stored: bytes, codec: Mapping[str, Any], dtype: np.dtype, chunk: tuple[int, ...]
) -> bytes:
    kind = codec["name"]
    if kind == "crc32c":
        return stored[:-4]
    if dtype.kind == "O" and len(stored) > MOST_TEXT:
        raise Unreadable(f"a chunk of {name} is too large for texts")
    room = None if dtype.kind == "O" else math.prod(chunk) * dtype.itemsize
    try:
        if kind == "zstd":
            return _zstd(stored, room)
        if kind == "gzip":
            return zlib.decompressobj(31).decompress(
                stored, MOST_BYTES if room is None else room + 1
            )
    except (RuntimeError, zlib.error) as error:
        raise Unreadable(f"a chunk of {name} is not whole ({error})") from error
    raise Unreadable(f"{name} needs the codec {str(kind)[:40]!r} to be read")


def _zstd(stored: bytes, room: int | None) -> bytes:
    from numcodecs.zstd import decompress  # pyright: ignore

    if room is None:
        return bytes(decompress(stored))
    into = np.empty(room, np.uint8)
    decompress(stored, into)
    return into.tobytes()


def _texts(name: str, stored: bytes, count: int) -> list[str]:
    """Texts, each after its length, after their number."""
    view, at, found = memoryview(stored), 4, []
    try:
        for _ in range(count):
            length = int.from_bytes(view[at : at + 4], "little")
            text = bytes(view[at + 4 : at + 4 + length])
            if len(text) < length or at + 4 > len(view):
                raise Unreadable(f"a chunk of {name} is not whole")
            found.append(text.decode("utf-8"))
            at += 4 + length
    except UnicodeDecodeError as error:
        raise Unreadable(f"{name} holds what is no text") from error
    return found
