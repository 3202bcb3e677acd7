"""Variables of a .mat file, version 5 or 7.3, in the order of dims that MATLAB shows.

Version 7.3 is HDF5, whose dims run the other way: they are reversed on writing and on reading.
Texts are one row of ASCII characters.
"""

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.io

from depthsys.export.guard import told_of
from depthsys.files import hdf5_file
from depthsys.files.strangers import Mat, read_mat

if TYPE_CHECKING:
    import h5py

Variables = dict[str, np.ndarray | str]

USER_BLOCK = 512
_BLOCK = 2**26  # bytes copied at a time
# A, B, C and D of anybody; what `to_matlab` and NAME_save.m add, which also writes bases anew
NAMES = (*"ABCD", "about", "text_variables", "state_variables", "changed_by", *"VW", "order")


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


def read(path: str | os.PathLike) -> Mat:
    """Numbers and texts of a .mat file that a system is made of, and what else is in it.

    Raises
    ------
    ValueError
        If it is truncated, no .mat file of version 4, 5, 7 or 7.3, or not safe to read.
    """
    cure = "Save it again, in Octave with `save('-v7', ...)`."
    with told_of(path, "a whole .mat file", cure):
        return read_mat(Path(path), NAMES, "about", {"dims": "", "golden_dims": "golden_"})
