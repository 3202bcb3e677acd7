"""NumPy: one .npz, every variable an array, readable wherever NumPy is."""

import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import xarray as xr

from depthsys.export.plain import NO_GOLDEN, about_of, one_system, plain, restored
from depthsys.export.schema import migrated
from depthsys.files import whole_file
from depthsys.ltv import system as ltv_system

# what numpy and zipfile trip over in a damaged file
_DAMAGED = (
    ValueError,
    OSError,
    EOFError,
    AttributeError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


def to_npz(system: xr.Dataset, path: str | os.PathLike, *, force: bool = False) -> None:
    """Write one system as a compressed .npz, without pickles.

    ``np.load(path)["A"]`` is (layer, state_next, state), and so on in the order of the Dataset;
    ``about`` is a JSON text with dims and attrs; ``golden_x0``, ``golden_u``, ``golden_x`` and
    ``golden_y`` are a run to replay.

    Parameters
    ----------
    system
        One system (no batch dims).
    path
        The file, usually ``*.npz``. It appears whole or not at all.
    force
        Replace an existing file.

    Raises
    ------
    FileExistsError
        If the file exists and ``force`` is False.
    ValueError
        If there are batch dims, or something is neither numbers nor texts.
    """
    arrays, about = plain(one_system(system, "npz"))
    with whole_file(path, force) as partial, partial.open("wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)  # pyright: ignore


def from_npz(path: str | os.PathLike) -> xr.Dataset:
    """Read what `to_npz` wrote, or an engineer with `load_control.save`, or A, B, C and D alone.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is truncated, no such export, holds pickles, is no system, or does not replay its
        golden trajectory.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"`path` must be an existing file; got {str(path)!r}. Look for it.")
    try:
        with Path(path).open("rb") as file:  # numpy leaves a broken one open
            stored = np.load(file, allow_pickle=False)
            arrays = {name: stored[name] for name in stored.files}
    except _DAMAGED as error:
        # numpy goes on with how to load pickles all the same
        why = str(error).split(" If you trust")[0].rstrip(".")
        raise ValueError(
            f"`path` must be a whole .npz of plain arrays, without pickles; got {str(path)!r}: "
            f"{why}. Write it again."
        ) from error
    if missing := [name for name in "ABC" if name not in arrays]:
        raise ValueError(
            f"`path` must hold arrays A, B and C; got {str(path)!r} without {missing}. Save them "
            "with layer or depth first: (L,n,n), (L,n,m), (L+1,p,n)."
        )
    if "about" not in arrays:
        return _bare(arrays, str(path))
    return restored(arrays, about_of(str(arrays.pop("about")), str(path)), str(path))


def _bare(arrays: dict[str, np.ndarray], where: str) -> xr.Dataset:
    """A file of an engineer, without a description: nothing checks its axes but their sizes."""
    matrices = [arrays.get(name) for name in "ABCD"]
    try:
        return migrated(ltv_system(*matrices, attrs={"import_note": NO_GOLDEN}))  # pyright: ignore
    except (ValueError, TypeError) as error:
        raise ValueError(f"`path` must hold a system; got {where!r}: {error}") from error
