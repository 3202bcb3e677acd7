"""A system that depthsys exported as CSV tables. Needs numpy, not depthsys.

    x[l+1] = A[l] x[l] + B[l] u[l]      l = 0..L-1
    y[k]   = C[k] x[k] + D[k] u[k]      k = 0..L, no input at depth L

In Python:

    import load_csv
    arrays = load_csv.load()            # the tables beside this file, as numpy arrays

`python load_csv.py` replays the run that came with the system, and says PASS or FAIL. A changed or
reduced system goes back by `save`. Reading apart, all is done by load_control.py, which lies beside
this file; it asks for python-control only when that is used.
"""

import csv
import json
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def _beside(name: str) -> Any:
    """A script of the same folder, by its path: that folder need not be on the path of Python."""
    path = str(Path(__file__).with_name(f"{name}.py"))
    module = ModuleType(name)
    module.__file__ = path
    SourceFileLoader(name, path).exec_module(module)
    return module


plain = _beside("load_control")
save, simulate = plain.save, plain.simulate

NUMBERS = {"f": float, "i": int, "u": int, "b": {"True": True, "False": False}.__getitem__}


def load(folder: Any = None) -> dict[str, np.ndarray]:
    """The tables as arrays, checked for their shapes.

    Rows may have been sorted: their first columns say where they belong.

    Parameters
    ----------
    folder
        That of the tables; by default the one of this file.

    Returns
    -------
    dict
        ``A`` (layer, state_next, state), ``B`` (layer, state_next, input), ``C`` (depth, output,
        state), ``D`` (depth, output, input), all indices from 0; ``golden_x0``, ``golden_u``,
        ``golden_x``, ``golden_y``; names and whatever else was exported; ``about``, a JSON text.

    Raises
    ------
    FileNotFoundError
        If a table is missing.
    ValueError
        If a table has other rows than were written, or holds something else.
    """
    folder = _folder(folder)
    text = (folder / "about.json").read_bytes()
    try:
        about = json.loads(text)
        tables = {
            name: (tuple(map(int, kind["shape"])), np.dtype(kind["dtype"]))
            for name, kind in about.pop("tables").items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`about.json` must be a JSON text that describes the tables; got {text[:40]!r}: "
            f"{error!r}. Export again."
        ) from error
    arrays = {name: _read(folder / f"{name}.csv", *kind) for name, kind in tables.items()}
    return plain.checked(arrays | {"about": np.array(json.dumps(about))}, folder.name)


def _folder(folder: Any) -> Path:
    return (Path(__file__).parent if folder is None else Path(folder)).resolve()


def _read(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """One table: the place of a row in its first columns, its values in the others."""
    index = len(shape) - (len(shape) > 1)
    width = shape[-1] if len(shape) > 1 else 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row][1:]
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"`{path.name}` must be a table in UTF-8; got {error}. Export again."
        ) from error
    found = {tuple(row[:index]): row[index:] for row in rows}
    places = [tuple(map(str, place)) for place in np.ndindex(*shape[:index])]
    if len(rows) != len(places) or {len(row) for row in rows} - {index + width}:
        widths = sorted({len(row) for row in rows})
        raise ValueError(
            f"`{path.name}` must have {len(places)} rows of {index + width} columns below its "
            f"header; got {len(rows)} of {widths}. Columns are parted by commas; export again."
        )
    if missing := [place for place in places if place not in found]:
        raise ValueError(
            f"`{path.name}` must hold every row once; got none for {', '.join(missing[0])}. Its "
            "first columns count from 0; export again."
        )
    return _values(path, [found[place] for place in places], dtype).reshape(shape)


def _values(path: Path, rows: list[list[str]], dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "U":  # as long as they are now
        return np.array(rows, dtype=str)
    try:
        number = NUMBERS[dtype.kind]
        return np.array([[number(text) for text in row] for row in rows], dtype)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"`{path.name}` must hold numbers as it was written ({dtype.str}); got {error}. "
            "Decimals have points; export again."
        ) from error


def selfcheck(arrays: Mapping[str, np.ndarray], folder: Any = None) -> float:
    """Check the golden trajectory, print one line, and return the largest relative error.

    Raises
    ------
    ValueError
        If it does not replay.
    """
    return plain.selfcheck(arrays, where=_folder(folder).name)


def main() -> None:
    """Replay in numpy."""
    plain.report(lambda: selfcheck(load()))


if __name__ == "__main__":
    main()
