"""JSON: one text of nested lists, for small systems and web pages."""

import json
import os
from pathlib import Path

import numpy as np
import xarray as xr

from depthsys.export.plain import one_system, plain, restored
from depthsys.files import whole_file

LIMIT = 10**6  # numbers; about 20 MB of text


def to_json(system: xr.Dataset, path: str | os.PathLike, *, force: bool = False) -> None:
    """Write one small system as JSON: ``{"A": [[[...]]], ..., "about": {...}}``.

    Nested lists in the order of the Dataset: ``A[l][i][j]`` maps state j at depth l to state i at
    depth l + 1. Numbers keep all their digits.

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
        If there are batch dims, too many numbers, or nan.
    """
    arrays, about = plain(one_system(system, "json"))
    if (count := sum(values.size for values in arrays.values())) > LIMIT:
        bases = [name for name in "VW" if name in arrays]
        drop = f"Drop the bases (`system.drop_vars({bases})`), or use" if bases else "Use"
        raise ValueError(
            f"`system` must hold at most {LIMIT} numbers for json; got {count}. {drop} npz."
        )
    text = {name: values.tolist() for name, values in arrays.items()} | {"about": about}
    try:
        written = json.dumps(text, allow_nan=False)
    except ValueError as error:
        bad = [n for n, v in arrays.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
        raise ValueError(
            f"`system` must be finite for json; got nan or inf in {bad or 'attrs'}. Drop those, or "
            "use npz."
        ) from error
    with whole_file(path, force) as partial:
        partial.write_text(written, encoding="utf-8")


def from_json(path: str | os.PathLike) -> xr.Dataset:
    """Read what `to_json` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is truncated, no such export, no system, or does not replay its golden trajectory.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"`path` must be an existing file; got {str(path)!r}. Look for it.")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"`path` must be a whole JSON text; got {str(path)!r}: {error}. Write it again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"`path` must hold a JSON object; got a {type(content).__name__} in {str(path)!r}. "
            "Write it with `export.to_json`."
        )
    about = content.pop("about", None)
    try:
        arrays = {name: np.array(values) for name, values in content.items()}
    except ValueError as error:
        raise ValueError(
            f"`path` must hold rectangular arrays; got {str(path)!r}: {error}. Pad with zeros."
        ) from error
    return restored(arrays, about, str(path))
