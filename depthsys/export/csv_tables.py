"""CSV: one table per matrix, for spreadsheets and everything else that reads text."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import xarray as xr

from depthsys.export.control import write_scripts
from depthsys.export.plain import one_system, plain
from depthsys.files import check_case, whole_folder

README = """A discrete linear time-varying system, one table per matrix, written by depthsys.

    x[l+1] = A[l] x[l] + B[l] u[l]      l = 0..L-1
    y[k]   = C[k] x[k] + D[k] u[k]      k = 0..L, no input at depth L

All indices count from 0. The first columns of a table say which row of which matrix this is, the
others hold the row: in A.csv, the line "layer 3, state_next 1" is row 1 of A[3]. Numbers keep all
their digits.

golden_x0.csv, golden_u.csv, golden_x.csv and golden_y.csv are a run of the system: start at x0,
apply u, and you must get x and y. If you do not, axes were transposed or shifted on the way.

`python load_csv.py` reads the tables, replays that run step by step in numpy, and prints

    depthsys selfcheck: PASS - {sizes}; largest relative error ...

or FAIL (exit status 1), with the first depth that is wrong, and whether every A is transposed.
It needs numpy, and not depthsys. Keep load_control.py beside it: it does the replay. In Python:

    import load_csv
    arrays = load_csv.load()    # arrays["A"] is (layer, state_next, state), and so on

depthsys does not read the tables back. A changed or reduced system goes back by
load_csv.save("reduced.npz", arrays, A, B, C, D), and in a shell `depthsys import reduced.npz`.

about.json holds units, provenance, and dims, shape and dtype of every table.
"""


def to_csv(system: xr.Dataset, path: str | os.PathLike, *, force: bool = False) -> None:
    """Write one system as a folder of CSV tables, with scripts and a README.txt.

    The last dim of a variable runs along the columns, the others are written out in front:
    ``A.csv`` has the columns layer, state_next, state_0, state_1, ...

    Where depthsys is not installed, ``python load_csv.py`` in the folder replays the golden
    trajectory and says PASS or FAIL, and ``load_csv.load()`` returns numpy arrays. `read` does not
    take the tables; ``load_csv.save("reduced.npz", arrays, A, B, C, D)`` is the way back.

    Parameters
    ----------
    system
        One system (no batch dims).
    path
        The folder. It appears whole or not at all.
    force
        Replace an earlier export.

    Raises
    ------
    FileExistsError
        If the folder holds something and ``force`` is False, or holds other files.
    ValueError
        If there are batch dims, something is neither numbers nor texts, or the disk ignores case
        and two names differ only by it.
    """
    system = one_system(system, "csv")
    arrays, about = plain(system)
    dims = about["dims"] | {f"golden_{name}": d for name, d in about["golden_dims"].items()}
    for name in arrays:
        if "/" in name or "\x00" in name:
            raise ValueError(
                f"`{name}` must be the name of a file for csv; got a slash. Rename the variable."
            )
    with whole_folder(path, force) as folder:
        check_case(folder, arrays)
        for name, values in arrays.items():
            _write(folder / f"{name}.csv", values, dims[name])
        tables = {name: {"shape": v.shape, "dtype": v.dtype.str} for name, v in arrays.items()}
        text = json.dumps(about | {"tables": tables}, indent=1)
        (folder / "about.json").write_text(text, encoding="utf-8")
        write_scripts(system, folder, ["load_csv.py", "load_control.py"], README)


def _write(path: Path, values: np.ndarray, dims: list[str]) -> None:
    index, columns = dims[:-1], [path.stem]
    if values.ndim > 1:
        columns = [f"{dims[-1]}_{i}" for i in range(values.shape[-1])]
    elif values.ndim == 1:  # a column of its own
        index, values = dims, values[:, None]
    else:
        values = values[None]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*index, *columns])
        for place in np.ndindex(values.shape[:-1]):
            table.writerow([*place[: len(index)], *values[place].tolist()])
