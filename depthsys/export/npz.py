"""NumPy: one .npz, every variable an array, readable wherever NumPy is."""

import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from depthsys.export.guard import existing_file, guarded, told_of
from depthsys.export.plain import NO_GOLDEN, about_of, one_system, plain, restored
from depthsys.export.schema import migrated
from depthsys.files import whole_file
from depthsys.files.strangers import limits
from depthsys.files.strangers.limits import Refused
from depthsys.ltv import system as ltv_system

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


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


@guarded
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
    place = existing_file(path)
    with told_of(path, "a whole .npz of plain arrays, without pickles"):
        arrays = _read(place)
    if missing := [name for name in "ABC" if name not in arrays]:
        raise ValueError(
            f"`path` must hold arrays A, B and C; got {str(path)!r} without {missing}. Save them "
            "with layer or depth first: (L,n,n), (L,n,m), (L+1,p,n)."
        )
    if "about" not in arrays:
        return _bare(arrays, str(path))
    return restored(arrays, about_of(str(arrays.pop("about")), str(path)), str(path))


def _read(path: Path) -> dict[str, np.ndarray]:
    """A, B, C and D, and what ``about`` describes, after a look at the archive.

    `zipfile` and `numpy.lib.format` are Python: they crash nowhere, and read no more than they say.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > limits.OBJECTS:
            raise Refused(f"it holds more than {limits.OBJECTS} arrays")
        inside = {m.filename.removesuffix(".npy"): m for m in members}
        if "about" not in inside and any(name.startswith("golden_") for name in inside):
            raise ValueError("its description `about` is missing")
        arrays = _members(archive, inside, ["about"])
        wanted = {*"ABCD", *_described(arrays)} & inside.keys()
        return arrays | _members(archive, inside, [n for n in inside if n in wanted - {"about"}])


def _described(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Names in the description; none if it is none, which `about_of` says later."""
    try:
        about = json.loads(str(arrays["about"]))
        return [*about["dims"], *(f"golden_{name}" for name in about["golden_dims"])]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []


def _members(
    archive: zipfile.ZipFile, inside: Mapping[str, zipfile.ZipInfo], names: Iterable[str]
) -> dict[str, np.ndarray]:
    present = [name for name in names if name in inside]
    declared = {name: _declared(archive, inside[name], name) for name in present}
    stored = sum(info.compress_size for info in inside.values())
    limits.check_sizes(declared, stored, limits.half_of_memory())
    arrays = {}
    for name in present:
        with archive.open(inside[name]) as file:
            arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
            file.read(1)  # its end, where the checksum is looked at
    return arrays


def _declared(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> int:
    """The bytes of an array, by its header; Refused for objects, which would be pickles."""
    shown = limits.one_line(repr(name), 60)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"{shown} is packed in another way than numpy does")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise Refused(f"{shown} has a header of version {version}")
        shape, _, dtype = _HEADERS[version](file)
    if dtype.kind not in "fiubcUSmM":
        raise Refused(f"{shown} holds objects, which numpy keeps as pickles, or records")
    nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if nbytes > info.file_size:
        raise Refused(f"{shown} declares more than it has")
    return nbytes


def _bare(arrays: dict[str, np.ndarray], where: str) -> xr.Dataset:
    """A file of an engineer, without a description: nothing checks its axes but their sizes."""
    matrices = [arrays.get(name) for name in "ABCD"]
    try:
        return migrated(ltv_system(*matrices, attrs={"import_note": NO_GOLDEN}))  # pyright: ignore
    except (ValueError, TypeError) as error:
        raise ValueError(f"`path` must hold a system; got {where!r}: {error}") from error
