"""Read a system back from whatever an engineer sends: one function for all formats."""

import os
from collections.abc import Callable
from pathlib import Path

import xarray as xr

from depthsys.export.json_text import from_json
from depthsys.export.matlab import from_matlab
from depthsys.export.netcdf import from_netcdf
from depthsys.export.npz import from_npz
from depthsys.export.zarr_store import from_zarr
from depthsys.files import found

READERS: dict[str, Callable[[Path], xr.Dataset]] = {
    ".nc": from_netcdf,
    ".zarr": from_zarr,
    ".mat": from_matlab,
    ".npz": from_npz,
    ".json": from_json,
}
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".npy", ".joblib")


def read(path: str | os.PathLike) -> xr.Dataset:
    """Read a system from a .nc, .zarr, .mat, .npz or .json.

    Parameters
    ----------
    path
        The file, or the folder of a Zarr store or of an export for MATLAB, Julia or Python.

    Returns
    -------
    xr.Dataset
        The system, in today's schema, in memory. It has replayed its golden trajectory; where none
        came with it, ``import_note`` in attrs says so.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the format is none of these, the file is truncated or foreign, or the system is not the
        one that was exported.
    """
    place = found(path)
    if not place.exists():
        raise FileNotFoundError(f"`path` must be an existing file; got {str(path)!r}. Look for it.")
    kind = place.suffix.lower()
    if place.is_dir() and kind not in READERS:
        if (place / "system.npz").is_file():  # of to_control_files and to_pymor_files
            return from_npz(place / "system.npz")
        if (place / "A.csv").is_file():
            raise ValueError(
                f"`path` must be one of {', '.join(READERS)}; got CSV tables in {str(path)!r}. CSV "
                "is not read back: save them with `save` of the scripts beside them."
            )
        kind = ".zarr" if (place / "zarr.json").is_file() else ".mat"
    if kind not in READERS:
        why = "Pickles are refused: they can run any code. " if kind in PICKLES else ""
        raise ValueError(
            f"`path` must be one of {', '.join(READERS)}; got {str(path)!r}. {why}Save it as "
            "one of these."
        )
    return READERS[kind](place)
