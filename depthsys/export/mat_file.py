"""Variables of a .mat file, version 5 or 7.3, in the order of dims that MATLAB shows.

Version 7.3 is HDF5, whose dims run the other way: they are reversed on writing and on reading.
Texts are one row of ASCII characters.
"""

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.io
import scipy.io.matlab

from depthsys.files import hdf5_file

if TYPE_CHECKING:
    import h5py

Variables = dict[str, np.ndarray | str]

USER_BLOCK = 512
_BLOCK = 2**26  # bytes copied at a time
_NUMBERS = (
    "double",
    "single",
    "logical",
    *(f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)),
)
_READ = (*_NUMBERS, "char")
_OTHERS = {
    "struct": "a struct",
    "cell": "a cell",
    "function": "a function",
    "function_handle": "a function",
    "sparse": "a sparse matrix",
    "": "no variable of MATLAB",  # HDF5 of another program
}


def write_v5(path: Path, variables: Mapping[str, np.ndarray | str]) -> None:
    """Write a .mat of version 5, in which every variable is smaller than 2 GB."""
    scipy.io.savemat(path, dict(variables), appendmat=False, long_field_names=True)


def write_v73(path: Path, variables: Mapping[str, np.ndarray | str]) -> None:
    """Write a .mat of version 7.3, variable by variable and block by block."""
    with hdf5_file(path, userblock_size=USER_BLOCK) as file:
        for name, value in variables.items():
            if isinstance(value, str):
                _write_text(file, name, value)
            else:
                _write_numbers(file, name, value)
    with path.open("r+b") as file:
        file.write(_header())


def _header() -> bytes:
    """124 characters of text, then version 2.0 and the byte order, little-endian."""
    now = datetime.now().strftime("%a %b %d %H:%M:%S %Y")
    text = f"MATLAB 7.3 MAT-file, Platform: depthsys, Created on: {now} HDF5 schema 1.00 ."
    return text.encode("ascii").ljust(116) + bytes(8) + b"\x00\x02IM"


def _write_text(file: "h5py.File", name: str, text: str) -> None:
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.uint16)
    # an empty text is 0 x 0 in MATLAB
    data = _dataset(file, name, codes.reshape(len(text), 1 if text else 0), "char")
    data.attrs["MATLAB_int_decode"] = np.int32(2)


def _write_numbers(file: "h5py.File", name: str, values: np.ndarray) -> None:
    kinds = {"float64": "double", "float32": "single", "bool": "logical"}
    matlab_class = kinds.get(str(values.dtype), str(values.dtype))
    if matlab_class == "logical":
        values = values.view(np.uint8)
    data = _dataset(file, name, values.T, matlab_class)
    if matlab_class == "logical":
        data.attrs["MATLAB_int_decode"] = np.int32(1)


def _dataset(file: "h5py.File", name: str, values: np.ndarray, matlab_class: str) -> "h5py.Dataset":
    """A dataset with its class; MATLAB stores the sizes of an empty array instead of its values."""
    empty = values.size == 0
    if empty:
        values = np.array(values.shape[::-1], np.uint64)
    data = file.create_dataset(name, values.shape, values.dtype)
    step = max(1, _BLOCK // max(1, values[:1].nbytes))
    for start in range(0, len(values), step):  # a block of the transposed view is copied at a time
        data[start : start + step] = values[start : start + step]
    data.attrs["MATLAB_class"] = np.bytes_(matlab_class)
    if empty:
        data.attrs["MATLAB_empty"] = np.int32(1)
    return data


def read(path: str | os.PathLike) -> Variables:
    """Numbers and texts of a .mat file; for what is left out see `left_out`.

    Raises
    ------
    ValueError
        If it is truncated, or no .mat file of version 4, 5, 7 or 7.3.
    """
    import h5py

    try:
        return _read_v73(path) if h5py.is_hdf5(path) else _read_v5(path)
    except MemoryError:
        raise
    except Exception as error:  # whatever the parsers trip over in a damaged file
        raise ValueError(
            f"`path` must be a whole .mat file; got {str(path)!r}: {error}. Save it again, in "
            "Octave with `save('-v7', ...)`."
        ) from error


def left_out(path: str | os.PathLike) -> dict[str, str]:
    """What `read` leaves out, by name: ``"an object"``, ``"a struct"``, ``"a sparse matrix"``, ...

    Parameters
    ----------
    path
        A .mat file that `read` reads.
    """
    import h5py

    kinds = _kinds_v73(path) if h5py.is_hdf5(path) else _kinds_v5(path)
    return {n: _OTHERS.get(kind, "an object") for n, kind in kinds.items() if kind not in _READ}


def _kinds_v5(path: str | os.PathLike) -> dict[str, str]:
    """The class of every variable."""
    try:
        kinds = {name: kind for name, _, kind in scipy.io.whosmat(path, appendmat=False)}
    except TypeError:  # scipy lists no objects of classdef, which ss, tf, table, ... are
        kinds = dict(_kinds_one_by_one(path))
    # MATLAB's workspace of functions has no name, and scipy gives it one
    return {n: kind for n, kind in kinds.items() if n not in ("", "__function_workspace__")}


def _kinds_one_by_one(path: str | os.PathLike) -> Iterator[tuple[str, str]]:
    with open(path, "rb") as file:
        parts = scipy.io.matlab.varmats_from_mat(file)
    for name, part in parts:
        try:
            yield name, scipy.io.whosmat(part)[0][2]
        except TypeError:  # it has no name where others have theirs
            (content,) = scipy.io.loadmat(part)["None"]
            yield content["s0"].decode("latin1"), "opaque"


def _read_v5(path: str | os.PathLike) -> Variables:
    names = [name for name, kind in _kinds_v5(path).items() if kind in _READ]
    # not mat_dtype=True, which drops the imaginary part of what MATLAB calls double
    found = scipy.io.loadmat(path, appendmat=False, variable_names=names)
    return {n: _text_v5(v) if v.dtype.kind == "U" else v for n in names for v in [found[n]]}


def _text_v5(rows: np.ndarray) -> str:
    return "\n".join(rows.ravel().tolist())


def _read_v73(path: str | os.PathLike) -> Variables:
    import h5py

    variables: Variables = {}
    with h5py.File(path, "r") as file:
        for name, kind in _kinds_v73(path).items():
            data = file[name]
            if kind in _READ and isinstance(data, h5py.Dataset):
                variables[name] = _value_v73(data, kind)
    return variables


def _kinds_v73(path: str | os.PathLike) -> dict[str, str]:
    """The class of every variable; ``""`` for what has none."""
    import h5py

    kinds = {}
    with h5py.File(path, "r") as file:
        for name, data in file.items():
            kind = data.attrs.get("MATLAB_class", b"")
            kind = kind.decode() if isinstance(kind, bytes) else str(kind)
            if isinstance(data, h5py.Group) and "MATLAB_sparse" in data.attrs:
                kind = "sparse"
            if not name.startswith("#"):  # the contents of cells and objects
                kinds[name] = kind
    return kinds


def _value_v73(data: "h5py.Dataset", kind: str) -> np.ndarray | str:
    values = np.asarray(data[()])
    values = np.zeros(values.astype(int)) if data.attrs.get("MATLAB_empty", 0) else values.T
    if kind == "char":
        return values.astype("<u2").tobytes("F").decode("utf-16-le")
    return values.astype(bool) if kind == "logical" else values
