"""The variables of a Zarr store that are asked for, after a look at the folder.

Runs in the process of `server`. Links, devices and codecs that could run code are refused; of a
store that describes chunks elsewhere (references) nothing is found.
"""

import contextlib
import json
import os
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.storage import LocalStore

from depthsys.files.strangers import limits
from depthsys.files.strangers.limits import Refused, one_line
from depthsys.files.strangers.server import Answer, limit_to

# xarray asks it for its locks, if it is there: once here, and not again in every copy of this
with contextlib.suppress(ImportError):
    import dask.multiprocessing  # noqa: F401

_CODECS = {
    "blosc", "bytes", "crc32", "crc32c", "fixedscaleoffset", "gzip", "lz4", "numcodecs.zlib",
    "shuffle", "string", "transpose", "vlen-utf8", "zlib", "zstd",
}  # fmt: skip
_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


def read(request: Mapping[str, Any]) -> Answer:
    """First the attributes of each group, then the variables one by one.

    ``request`` has ``path``; ``groups``, a mapping from each group ("" for the root) to the names
    to read, of those that are there; ``listed``, a group and the name of an attribute of it in
    JSON, whose keys are names of the root, too; ``whole``, a group: where it is there, every chunk
    must be.
    """
    path = Path(request["path"])
    stored = _scanned(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # zarr only warns of parts that it cannot read
        groups = {
            name: zarr.open_group(LocalStore(path, read_only=True), mode="r", path=name)
            for name in request["groups"]
            if not name or (path / name).is_dir()
        }
        attrs = {name: _attributes(group.attrs.asdict()) for name, group in groups.items()}
        arrays = {name: dict(group.arrays()) for name, group in groups.items()}
        wanted = {name: set(request["groups"][name]) for name in groups}
        wanted[""] |= _listed(attrs, *request["listed"])
        for name, inside in arrays.items():
            wanted[name] |= {dim for n in wanted[name] & inside.keys() for dim in _dims(inside[n])}
        found = {
            f"{g}/{n}": a for g, inside in arrays.items() for n, a in inside.items()
            if n in wanted[g]
        }  # fmt: skip
        declared = {name: _checked(name, array) for name, array in found.items()}
        limit_to(limits.check_sizes(declared, stored, request["most"]))
        if request["whole"] in groups:
            lost = [n.strip("/") for n, a in found.items() if a.nchunks_initialized < a.nchunks]
            if lost:
                raise Refused(f"chunks of {lost[:10]} are missing")
        for name, inside in arrays.items():
            others = sorted(inside.keys() - wanted[name])
            shown = [one_line(other, 60) for other in others[:20]]
            yield {"group": name, "attrs": attrs[name], "others": shown}, None
            yield from _variables(path, name, others)


def _variables(path: Path, group: str, others: list[str]) -> Answer:
    """As xarray decodes them."""
    store = LocalStore(path, read_only=True)
    opened = xr.open_zarr(  # pyright: ignore[reportArgumentType]
        store, group=group or None, consolidated=False, chunks=None, drop_variables=others
    )
    for name, variable in opened.variables.items():
        told = {"group": group, "name": str(name), "dims": list(map(str, variable.dims))}
        told |= {"attrs": _attributes(variable.attrs), "coord": name in opened.coords}
        values = np.asarray(variable.values)
        if values.dtype.kind not in "OT":
            yield told, values
            continue
        texts = values.astype(object).ravel().tolist()
        if not all(isinstance(text, str) and len(text) <= limits.TEXT for text in texts):
            raise Refused(f"{one_line(repr(name), 60)} holds neither numbers nor texts")
        yield told | {"texts": texts, "of": list(values.shape)}, None


def _scanned(path: Path) -> int:
    """Bytes of a folder that holds nothing but files and folders."""
    stored, left, folders = 0, limits.FILES, [path]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                left -= 1
                if left < 0:
                    raise Refused(f"it holds more than {limits.FILES} files")
                if stat.S_ISDIR(found.st_mode):
                    folders.append(Path(entry.path))
                elif not stat.S_ISREG(found.st_mode):
                    raise Refused(f"{one_line(repr(entry.name), 60)} is a link or no file")
                elif entry.name in _METADATA and found.st_size > limits.DESCRIPTION:
                    raise Refused(f"{one_line(repr(entry.name), 60)} is too long")
                stored += found.st_size
    return stored


def _dims(array: zarr.Array) -> list[str]:
    names = getattr(array.metadata, "dimension_names", None)
    names = array.attrs.get("_ARRAY_DIMENSIONS", ()) if names is None else names
    return [name for name in names if isinstance(name, str)]  # pyright: ignore


def _checked(name: str, array: zarr.Array) -> int:
    """The bytes that a variable declares."""
    shown = one_line(repr(name), 60)
    strange = _codecs(array) - _CODECS
    if strange:
        raise Refused(f"{shown} needs the codecs {one_line(sorted(strange), 100)} to be read")
    size = int(np.prod(array.shape, dtype=object))
    chunk = int(np.prod(array.chunks, dtype=object))
    text = array.dtype.kind not in "fiubcmMSU"
    item = max(array.dtype.itemsize, 64 if text else 1)
    if 0 in array.chunks or chunk * item > limits.FREE + 4 * size * item:
        raise Refused(f"{shown} has chunks larger than itself, or of no size")
    counts = (-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))
    if int(np.prod(list(counts), dtype=object)) > limits.CHUNKS:
        raise Refused(f"{shown} has more than {limits.CHUNKS} chunks")
    return size * item


def _codecs(array: zarr.Array) -> set[str]:
    """Names of what its chunks are decoded by."""
    told: dict[str, Any] = array.metadata.to_dict()
    if told.get("storage_transformers"):
        return {"storage_transformers"}
    steps = [*(told.get("codecs") or ()), *(told.get("filters") or ()), told.get("compressor")]
    steps = [step if isinstance(step, dict) else _config(step) for step in steps if step]
    return {str(step.get("name", step.get("id"))) for step in steps}


def _config(step: Any) -> dict[str, Any]:
    return step.get_config() if hasattr(step, "get_config") else step.to_dict()


def _listed(attrs: Mapping[str, Mapping[str, Any]], group: str, attribute: str) -> set[str]:
    try:
        return set(map(str, json.loads(attrs[group][attribute]["value"])))
    except (KeyError, TypeError, ValueError, RecursionError):
        return set()


def _attributes(attrs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if len(attrs) > limits.OBJECTS:
        raise Refused(f"it holds more than {limits.OBJECTS} attributes")
    found = {}
    for name, value in attrs.items():
        value = value.item() if isinstance(value, np.generic) else value
        if len(json.dumps(value)) + len(name) > limits.TEXT:
            raise Refused(f"its attribute {one_line(repr(name), 60)} is too long")
        found[name] = {"value": value}
    return found
