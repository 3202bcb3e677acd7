"""The variables of a .mat file, version 4, 5, 7 or 7.3, that are asked for.

Runs in the process of `server`. Version 7.3 is HDF5, whose dims run the other way: they are
reversed on reading. Texts are one row of characters.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
import scipy.io
import scipy.io.matlab

from depthsys.files.strangers import limits
from depthsys.files.strangers.hdf5 import check_container, check_datasets
from depthsys.files.strangers.limits import Refused, one_line
from depthsys.files.strangers.server import Answer, limit_to

_NUMBERS = (
    "double",
    "single",
    "logical",
    *(f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)),
)
_READ = (*_NUMBERS, "char")
_BYTES = {"double": 8, "single": 4, "logical": 1, "char": 4} | {
    f"{u}int{b}": b // 8 for u in ("", "u") for b in (8, 16, 32, 64)
}
_OTHERS = {
    "struct": "a struct",
    "cell": "a cell",
    "function": "a function",
    "function_handle": "a function",
    "sparse": "a sparse matrix",
    "": "no variable of MATLAB",  # HDF5 of another program
}


def read(request: Mapping[str, Any]) -> Answer:
    """First ``kinds``, of all numbers and texts, and ``others``: what else there is, in words.

    Then the variables one by one: those of ``names``, and those that ``lists`` name, which are
    texts in JSON with names as the keys of the objects and the items of the lists in ``listing``.
    """
    path = request["path"]
    file = _V73(path) if h5py.is_hdf5(path) else _V5(path)
    with file:
        kinds = file.kinds()
        if len(kinds) > limits.OBJECTS:
            raise Refused(f"it holds more than {limits.OBJECTS} variables")
        read = sorted(name for name, kind in kinds.items() if kind in _READ)
        others = {n: _OTHERS.get(k, "an object") for n, k in kinds.items() if k not in _READ}
        shown = {one_line(n, 63): told for n, told in list(others.items())[:100]}
        yield {"kinds": [one_line(name, 63) for name in read[:100]], "others": shown}, None
        wanted = set(request["names"]) & set(read)
        described = wanted & {request["description"]}
        texts = dict(file.values(described, request["most"]))
        wanted |= _listed(texts.get(request["description"]), request["listing"]) & set(read)
        file.check(wanted, request["most"])
        for name in sorted(wanted):
            for _, value in file.values({name}, request["most"]):
                if isinstance(value, str):
                    yield {"name": name, "text": value}, None
                else:
                    yield {"name": name}, value


def _listed(text: Any, listing: Mapping[str, str]) -> set[str]:
    """Names that a description gives: keys of the objects ``listing`` with their prefixes."""
    try:
        about = json.loads(text)
        return {f"{prefix}{name}" for part, prefix in listing.items() for name in about[part]}
    except (KeyError, TypeError, ValueError, RecursionError):
        return set()


class _V5:
    """Version 4, 5 or 7, by scipy."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._told: dict[str, tuple[tuple[int, ...], str]] = {}

    def __enter__(self) -> "_V5":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def kinds(self) -> dict[str, str]:
        """The class of every variable."""
        try:
            listed = scipy.io.whosmat(self._path, appendmat=False)
            self._told = {name: (tuple(shape), kind) for name, shape, kind in listed}
        except TypeError:  # scipy lists no objects of classdef, which ss, tf, table, ... are
            self._told = {name: told for name, *told in _one_by_one(self._path)}  # pyright: ignore
        # MATLAB's workspace of functions has no name, and scipy gives it one
        hidden = ("", "__function_workspace__")
        return {n: kind for n, (_, kind) in self._told.items() if n not in hidden}

    def check(self, names: set[str], most: int) -> None:
        """Refuse what is too large."""
        declared = {}
        for name in names:
            shape, kind = self._told[name]
            declared[name] = 2 * int(np.prod(shape, dtype=object)) * _BYTES[kind]  # or complex
        limit_to(limits.check_sizes(declared, os.path.getsize(self._path), most))

    def values(self, names: set[str], most: int) -> Iterator[tuple[str, np.ndarray | str]]:
        """Numbers and texts."""
        if not names:
            return
        self.check(names, most)
        # not mat_dtype=True, which drops the imaginary part of what MATLAB calls double
        found = scipy.io.loadmat(self._path, appendmat=False, variable_names=sorted(names))
        for name in sorted(names):
            value = found[name]
            if value.dtype.kind == "U":
                yield name, "\n".join(value.ravel().tolist())
            else:
                yield name, value


def _one_by_one(path: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    with open(path, "rb") as file:
        parts = scipy.io.matlab.varmats_from_mat(file)
    for name, part in parts:
        try:
            _, shape, kind = scipy.io.whosmat(part)[0]
            yield name, tuple(shape), kind
        except TypeError:  # it has no name where others have theirs
            (content,) = scipy.io.loadmat(part)["None"]
            yield content["s0"].decode("latin1"), (), "opaque"


class _V73:
    """Version 7.3, by h5py."""

    def __init__(self, path: str) -> None:
        self._file = h5py.File(path, "r")

    def __enter__(self) -> "_V73":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def kinds(self) -> dict[str, str]:
        """The class of every variable; ``""`` for what has none."""
        check_container(self._file)
        kinds = {}
        for name, data in self._file.items():
            kind = data.attrs.get("MATLAB_class", b"")
            kind = kind.decode() if isinstance(kind, bytes) else str(kind)
            if isinstance(data, h5py.Group) and "MATLAB_sparse" in data.attrs:
                kind = "sparse"
            elif not isinstance(data, h5py.Dataset) and kind in _READ:
                kind = ""
            if not name.startswith("#"):  # the contents of cells and objects
                kinds[name] = kind
        return kinds

    def check(self, names: set[str], most: int) -> None:
        """Refuse what reads other files, or is too large."""
        check_datasets(self._file, {name: self._file[name] for name in names}, most)  # pyright: ignore

    def values(self, names: set[str], most: int) -> Iterator[tuple[str, np.ndarray | str]]:
        """Numbers and texts."""
        self.check(names, most)
        for name in sorted(names):
            data: Any = self._file[name]
            kind = data.attrs["MATLAB_class"]
            yield name, _value(data, kind if isinstance(kind, str) else kind.decode())


def _value(data: h5py.Dataset, kind: str) -> np.ndarray | str:
    values = np.asarray(data[()])
    if data.attrs.get("MATLAB_empty", 0):  # its values are its sizes
        sizes = values.astype(int).ravel()
        if np.prod(sizes, dtype=object) or len(sizes) > 32:
            raise Refused(f"{one_line(repr(data.name), 60)} is called empty, and is not")
        values = np.zeros(sizes)
    else:
        values = values.T
    if kind == "char":
        return values.astype("<u2").tobytes("F").decode("utf-16-le")
    return values.astype(bool) if kind == "logical" else values
