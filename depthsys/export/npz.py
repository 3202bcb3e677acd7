"""NumPy: one .npz, every variable an array, readable wherever NumPy is."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import xarray as xr

from depthsys.export.atomic import whole_file
from depthsys.export.plain import about_of, one_system, plain, restored


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
    """Read what `to_npz` wrote, or what an engineer changed in it.

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
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"`path` must be a whole .npz of plain arrays, without pickles; got {str(path)!r}: "
            f"{error}. Write it again."
        ) from error
    about = arrays.pop("about", np.array("null"))
    return restored(arrays, about_of(str(about), str(path)), str(path))
