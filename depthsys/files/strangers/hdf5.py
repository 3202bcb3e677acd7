"""The variables of an HDF5 or netCDF4 file that are asked for, after a look at the container.

Runs in the process of `server`. Nothing outside the file is opened: external links, external
storage and virtual datasets are refused, and so are filters that are not HDF5's own.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from h5py import h5l, h5o  # pyright: ignore[reportAttributeAccessIssue]

from depthsys.files.strangers import limits
from depthsys.files.strangers.limits import Refused, one_line
from depthsys.files.strangers.server import Answer, limit_to

# deflate, shuffle, fletcher32, szip, nbit, scaleoffset; lzf of h5py
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
# of the conventions of netCDF4, no attributes of the user
_HIDDEN = {
    "CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates",
    "_NCProperties", "_nc3_strict", "_NCCOPY", "_Netcdf4",
}  # fmt: skip


def read(request: Mapping[str, Any]) -> Answer:
    """Of a netCDF4 file: first the attributes of each group, then the variables one by one.

    ``request`` has ``path``; ``groups``, a mapping from each group ("" for the root) to the names
    to read, of those that are there; ``listed``, a group and the name of an attribute of it in
    JSON, whose keys are names of the root, too.
    """
    with h5py.File(request["path"], "r") as file:
        check_container(file)
        groups = {name: _group(file, name) for name in request["groups"] if _there(file, name)}
        attrs = {name: _attributes(group) for name, group in groups.items()}
        wanted = {name: set(request["groups"][name]) for name in groups}
        wanted[""] |= _listed(attrs, *request.get("listed", ("", "")))
        found = {name: _with_dims(groups[name], wanted[name]) for name in groups}
        all_of_them = {f"{g}/{n}": d for g, inside in found.items() for n, d in inside.items()}
        check_datasets(file, all_of_them, request["most"])
        for name in groups:
            others = sorted(set(_variables(groups[name])) - found[name].keys())
            yield {"group": name, "attrs": attrs[name], "others": _short(others)}, None
        for group, inside in found.items():
            for name, data in inside.items():
                told = {"group": group, "name": name, "dims": _dims(data)}
                told["attrs"] = _attributes(data)
                yield from contents(told, data)


def contents(told: dict[str, Any], data: h5py.Dataset) -> Answer:
    """A message and an array, or a message with texts."""
    if h5py.check_string_dtype(data.dtype) is None:
        yield told, np.asarray(data[()])
        return
    if data.dtype.kind == "S" and data.dtype.itemsize == 1:  # characters, as old netCDF has them
        yield told, np.asarray(data[()])
        return
    texts = np.asarray(data.asstr(errors="replace")[()], object)
    if any(len(text) > limits.TEXT for text in texts.flat):
        raise Refused(f"{one_line(repr(told['name']), 60)} holds a text that is too long")
    yield told | {"texts": texts.ravel().tolist(), "of": list(texts.shape)}, None


# ------------------------------------------------------------------------- the container


def check_container(file: h5py.File) -> None:
    """Refuse links that lead out of the file, wherever they are."""
    left, groups, seen = limits.OBJECTS, [file.id], set()
    while groups:
        group = groups.pop()
        for name in group:
            left -= 1
            if left < 0:
                raise Refused(f"it holds more than {limits.OBJECTS} variables and groups")
            kind = group.links.get_info(name).type
            if kind not in (h5l.TYPE_HARD, h5l.TYPE_SOFT):
                text = one_line(repr(name.decode("utf-8", "replace")), 60)
                raise Refused(f"{text} is a link to another file")
            if kind == h5l.TYPE_HARD:
                info = h5o.get_info(group, name)
                place = (info.fileno, info.addr)
                if info.type == h5o.TYPE_GROUP and place not in seen:
                    seen.add(place)
                    groups.append(h5py.h5g.open(group, name))


def check_datasets(file: h5py.File, found: Mapping[str, h5py.Dataset], most: int) -> None:
    """Refuse what reads other files, or is too large; from now on the time is limited by sizes."""
    declared = {name: _checked(name, data) for name, data in found.items()}
    stored = sum(data.id.get_storage_size() for data in found.values())
    limit_to(limits.check_sizes(declared, stored, most))


def _checked(name: str, data: h5py.Dataset) -> int:
    """The bytes that a variable declares."""
    shown = one_line(repr(name), 60)
    how = data.id.get_create_plist()
    if how.get_external_count():
        raise Refused(f"{shown} lies in another file (external storage)")
    if how.get_layout() == h5py.h5d.VIRTUAL:
        raise Refused(f"{shown} lies in other files (a virtual dataset)")
    filters = {how.get_filter(i)[0] for i in range(how.get_nfilters())}
    if filters - _FILTERS:
        raise Refused(f"{shown} needs the filters {sorted(filters - _FILTERS)} to be read")
    if data.shape is None:
        raise Refused(f"{shown} holds nothing")
    text = h5py.check_string_dtype(data.dtype) is not None
    if not text and data.dtype.kind not in "fiubc":
        raise Refused(f"{shown} holds neither numbers nor texts")
    size = int(np.prod(data.shape, dtype=object))
    if data.chunks is not None:
        chunk = int(np.prod(data.chunks, dtype=object))
        if chunk * data.dtype.itemsize > limits.FREE + 4 * size * data.dtype.itemsize:
            raise Refused(f"{shown} has chunks larger than itself")
        counts = (-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True))
        if int(np.prod(list(counts), dtype=object)) > limits.CHUNKS:
            raise Refused(f"{shown} has more than {limits.CHUNKS} chunks")
    return size * max(data.dtype.itemsize, 64 if text else 1)


# ------------------------------------------------------------------------- what netCDF4 means


def _variables(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Datasets that are more than the length of a dim."""
    found = {}
    for name in group:
        if group.get(name, getlink=True).__class__ is not h5py.HardLink:
            continue
        if group.get(name, getclass=True) is h5py.Dataset:
            data = group[name]
            label = data.attrs.get("NAME", b"") if "CLASS" in data.attrs else b""
            label = label.decode("latin-1") if isinstance(label, bytes) else str(label)
            if not label.startswith("This is a netCDF dimension but not a netCDF variable"):
                found[name] = data
    return found


def _with_dims(group: h5py.Group, wanted: set[str]) -> dict[str, h5py.Dataset]:
    """The variables of these names, and the labels of their dims, in the order of the file."""
    known = _variables(group)
    dims = {dim for name in wanted & known.keys() for dim in _dims(known[name])}
    return {name: data for name, data in known.items() if name in wanted | dims}


def _dims(data: h5py.Dataset) -> list[str]:
    """Names of dims: those of the scales that are attached; of a scale its own name."""
    own = _last(data)
    dims = []
    for scales in data.dims:
        if len(scales):
            dims.append(_last(scales[0]))
        elif data.is_scale and data.ndim == 1:
            dims.append(own)
        else:
            raise Refused(f"{one_line(repr(own), 60)} has no names of dims, as netCDF4 has them")
    return dims


def _last(data: h5py.Dataset) -> str:
    return str(data.name).rpartition("/")[2]


def _there(file: h5py.File, name: str) -> bool:
    return not name or file.get(name, getclass=True) is h5py.Group


def _group(file: h5py.File, name: str) -> h5py.Group:
    group: Any = file[name or "/"]
    return group


def _listed(attrs: Mapping[str, Mapping[str, Any]], group: str, attribute: str) -> set[str]:
    """The keys of an attribute in JSON."""
    try:
        listed = json.loads(attrs[group][attribute]["value"])
        return set(map(str, listed))
    except (KeyError, TypeError, ValueError, RecursionError):
        return set()


def _short(names: Sequence[str]) -> list[str]:
    return [one_line(name, 60) for name in names[:60]]


def _attributes(holder: h5py.HLObject) -> dict[str, dict[str, Any]]:
    """Attributes as JSON: a text, or numbers with their dtype."""
    attrs = holder.attrs
    if len(attrs) > limits.OBJECTS:
        raise Refused(f"it holds more than {limits.OBJECTS} attributes")
    return {name: _attribute(attrs, name) for name in attrs if name not in _HIDDEN}


def _attribute(attrs: h5py.AttributeManager, name: str) -> dict[str, Any]:
    shown = one_line(repr(name), 60)
    try:
        size = attrs.get_id(name).get_storage_size()
    except RuntimeError:  # of an empty one, as h5py has it
        size = 0
    if len(name) > limits.TEXT or size > limits.TEXT:
        raise Refused(f"its attribute {shown} is too long")
    value = attrs[name]
    if isinstance(value, h5py.Empty):
        value = "" if value.dtype.kind in "SO" else np.zeros(0, value.dtype)
    array = np.asarray(value)
    if array.dtype.kind in "SOU":
        texts = [_text(item, shown) for item in array.ravel().tolist()]
        return {"value": texts[0] if len(texts) == 1 else texts}
    if array.dtype.kind not in "fiub":
        raise Refused(f"its attribute {shown} holds neither numbers nor texts")
    plain = array.ravel()
    # one number is a number, as netCDF4 has no others
    return {"value": plain.item() if plain.size == 1 else plain.tolist(), "dtype": plain.dtype.str}


def _text(item: Any, shown: str) -> str:
    text = item.decode("utf-8", "replace") if isinstance(item, bytes) else item
    if not isinstance(text, str):
        raise Refused(f"its attribute {shown} holds neither numbers nor texts")
    if len(text) > limits.TEXT:
        raise Refused(f"its attribute {shown} is too long")
    return text
