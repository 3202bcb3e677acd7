"""Metadata and tensors of a GGUF file, after a look at its sizes.

No library of others decodes anything: every length that the file tells is compared with what is
left of the file before a byte is read, and counts are limited.
"""

import math
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from depthsys.files.strangers import limits
from depthsys.files.strangers.limits import Refused, one_line

ARCHITECTURE = "general.architecture"
_VERSIONS = (2, 3)
_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
_BOOL, _TEXT, _ARRAY = 7, 8, 9
# kinds of tensors that are plain numbers; all others are quantised
_PLAIN = {0: "<f4", 1: "<f2", 28: "<f8", 30: "<u2"}
_BFLOAT16 = 30
_DIMS = 4


@dataclass
class Gguf:
    """What was read.

    Attributes
    ----------
    metadata
        Numbers and texts; an array as a list.
    tensors
        By name, in the order of the file; float32 where they were float32 or less.
    """

    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """What the file says that it is; "" if nothing."""
        return str(self.metadata.get(ARCHITECTURE, ""))


def read_gguf(path: Path, architecture: str) -> Gguf:
    """Read a file of that architecture; of any other one nothing but that it is.

    Parameters
    ----------
    path
        A regular file.
    architecture
        As in its ``general.architecture``. Tensors of others are not read.

    Raises
    ------
    Refused
        If it must not be read; the text says why.
    ValueError
        If it is damaged, or no GGUF.
    """
    with path.open("rb") as file:
        content = _Content(file)
        if content.take(4) != b"GGUF":
            raise ValueError("it does not begin as a GGUF file does")
        version = content.integer("<I")
        if version not in _VERSIONS:
            raise ValueError(
                f"it is of version {version}; read are {_VERSIONS[0]} and {_VERSIONS[1]}, with the "
                "small end of numbers first"
            )
        n_tensors, n_keys = content.count("tensors"), content.count("entries of metadata")
        found = Gguf(_metadata(content, n_keys, architecture))
        if found.architecture == architecture:
            found.tensors = _tensors(content, n_tensors, found.metadata)
        return found


class _Content:
    """A file of known size, from which no more is taken than there is."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self.at = 0

    def take(self, n_bytes: int) -> bytes:
        if n_bytes > self.size - self.at:
            raise ValueError(f"it ends too early: {n_bytes} bytes should follow byte {self.at}")
        found = self._file.read(n_bytes)
        if len(found) != n_bytes:
            raise ValueError("it became shorter while it was read")
        self.at += n_bytes
        return found

    def seek(self, at: int) -> None:
        self._file.seek(at)
        self.at = at

    def integer(self, kind: str) -> int:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def count(self, what: str, most: int = limits.OBJECTS) -> int:
        found = self.integer("<Q")
        if found > most:
            raise Refused(f"it declares {found} {what}, and {most} are allowed")
        return found

    def text(self) -> str:
        length = self.integer("<Q")
        if length > limits.TEXT:
            raise Refused(f"it holds a text of {length} bytes, and {limits.TEXT} are allowed")
        return self.take(length).decode("utf-8", "replace")


def _metadata(content: _Content, count: int, architecture: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(count):
        key = content.text()
        if key in found:
            raise ValueError(f"it says {one_line(repr(key), 60)} twice")
        found[key] = _value(content, content.integer("<I"))
        if key == ARCHITECTURE and found[key] != architecture:
            break  # of a model, say: what follows is of no use here, and may be large
    return found


def _value(content: _Content, kind: int, *, inside: bool = False) -> Any:
    if kind == _TEXT:
        return content.text()
    if kind == _ARRAY and not inside:
        each = content.integer("<I")
        count = content.count("values in one entry")
        return [_value(content, each, inside=True) for _ in range(count)]
    if kind not in _NUMBERS:
        raise ValueError(f"it holds a value of the unknown kind {kind}")
    number = np.frombuffer(content.take(np.dtype(_NUMBERS[kind]).itemsize), _NUMBERS[kind])[0]
    return bool(number) if kind == _BOOL else number.item()


def _tensors(content: _Content, count: int, metadata: dict[str, Any]) -> dict[str, np.ndarray]:
    told = [_described(content) for _ in range(count)]
    names = [name for name, *_ in told]
    if len(set(names)) != len(names):
        raise ValueError("two of its tensors have one name")
    step = metadata.get("general.alignment", 32)
    if not isinstance(step, int) or not 1 <= step <= 2**16:
        raise ValueError(f"its alignment is {one_line(step, 40)}")
    start = -(-content.at // step) * step
    items = {kind: np.dtype(name).itemsize for kind, name in _PLAIN.items()}
    sizes = {name: math.prod(shape) * items[kind] for name, shape, kind, _ in told}
    if sum(sizes.values()) > content.size:
        raise Refused(
            f"its tensors declare {limits.readable(sum(sizes.values()))}, and the file has "
            f"{limits.readable(content.size)}"
        )
    found = {}
    for name, shape, kind, offset in told:
        if start + offset + sizes[name] > content.size:
            raise ValueError(f"it ends before the end of the tensor {one_line(repr(name), 60)}")
        content.seek(start + offset)
        values = np.frombuffer(content.take(sizes[name]), _PLAIN[kind])
        found[name] = _widened(values, kind).reshape(shape)
    return found


def _described(content: _Content) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape with the slowest dim first, kind and offset of a tensor."""
    name = content.text()
    n_dims = content.integer("<I")
    if n_dims > _DIMS:
        raise ValueError(f"its tensor {one_line(repr(name), 60)} has {n_dims} dims")
    shape = tuple(content.integer("<Q") for _ in range(n_dims))[::-1]
    kind = content.integer("<I")
    if kind not in _PLAIN:
        raise ValueError(
            f"its tensor {one_line(repr(name), 60)} is quantised, or of an unknown kind ({kind})"
        )
    return name, shape, kind, content.integer("<Q")


def _widened(values: np.ndarray, kind: int) -> np.ndarray:
    """Numbers of 16 bits as float32, which holds them exactly."""
    if kind == _BFLOAT16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32) if values.dtype.itemsize < 4 else values.copy()
