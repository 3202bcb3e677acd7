"""JSON: one text of nested lists, for small systems and web pages."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from depthsys.export.guard import existing_file, guarded, told_of
from depthsys.export.plain import one_system, plain, restored
from depthsys.files import whole_file
from depthsys.files.strangers.limits import Refused, one_line

LIMIT = 10**6  # numbers; about 20 MB of text
BYTES = 2**26  # of a text that is read


def to_json(system: xr.Dataset, path: str | os.PathLike, *, force: bool = False) -> None:
    """Write one small system as JSON: ``{"A": [[[...]]], ..., "about": {...}}``.

    Nested lists in the order of the Dataset: ``A[l][i][j]`` maps state j at depth l to state i at
    depth l + 1. Numbers keep all their digits; NaN, as of a direction that does not exist, is null.

    Parameters
    ----------
    system
        One system (no batch dims), of at most a million numbers.
    path
        The file, usually ``*.json``. It appears whole or not at all.
    force
        Replace an existing file.

    Raises
    ------
    FileExistsError
        If the file exists and ``force`` is False.
    ValueError
        If there are batch dims, too many numbers, or infinity.
    """
    arrays, about = plain(one_system(system, "json"))
    if (count := sum(values.size for values in arrays.values())) > LIMIT:
        bases = [name for name in "VW" if name in arrays]
        drop = f"Drop the bases (`system.drop_vars({bases})`), or use" if bases else "Use"
        raise ValueError(
            f"`system` must hold at most {LIMIT} numbers for json; got {count}. {drop} npz."
        )
    text = {name: _lists(values) for name, values in arrays.items()} | {"about": about}
    try:
        written = json.dumps(text, allow_nan=False)
    except ValueError as error:
        bad = [n for n, v in arrays.items() if v.dtype.kind == "f" and np.isinf(v).any()]
        raise ValueError(
            f"`system` must be finite for json; got infinity in {bad or 'attrs'}. Drop those, or "
            "use npz."
        ) from error
    with whole_file(path, force) as partial:
        partial.write_text(written, encoding="utf-8")


def _lists(values: np.ndarray) -> list:
    if values.dtype.kind == "f" and np.isnan(values).any():
        known = ~np.isnan(values)
        values = values.astype(object)
        values[~known] = None
    return values.tolist()


@guarded
def from_json(path: str | os.PathLike) -> xr.Dataset:
    """Read what `to_json` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is truncated, no such export, no system, or does not replay its golden trajectory.
    """
    place = existing_file(path)
    with told_of(path, "a whole JSON text"):
        content = json.loads(_text(place))
    if not isinstance(content, dict):
        raise ValueError(
            f"`path` must hold a JSON object; got a {type(content).__name__} in {str(path)!r}. "
            "Write it with `export.to_json`."
        )
    about = content.pop("about", None)
    with told_of(path, "a JSON text of rectangular arrays", "Pad with zeros."):
        arrays = {name: _array(values, name) for name, values in content.items()}
    return restored(arrays, about, str(path))


def _text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(BYTES + 1)
    if len(content) > BYTES:
        raise Refused(f"it has more than {BYTES // 10**6} MB")
    return content.decode("utf-8")


def _array(values: Any, name: str) -> np.ndarray:
    """Nested lists as an array, once it is known how large that gets."""
    longest, count, left, unknown = 1, 0, [values], False
    while left:
        item = left.pop()
        if isinstance(item, list):
            left += item
        else:
            count += 1
            unknown = unknown or item is None
            longest = max(longest, len(item) if isinstance(item, str) else 1)
    if 4 * count * longest > 16 * BYTES:  # numpy gives every text the room of the longest
        raise Refused(f"{one_line(repr(name), 60)} holds texts that are too long")
    return np.array(values, dtype=np.float64 if unknown else None)
