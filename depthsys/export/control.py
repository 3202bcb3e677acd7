"""python-control: a time-varying system, its layers, and the whole horizon as one LTI system."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module, resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from depthsys.export.npz import to_npz
from depthsys.export.plain import one_system
from depthsys.export.receivers import load_control
from depthsys.files import whole_folder

if TYPE_CHECKING:
    from control import NonlinearIOSystem, StateSpace

USED = ("A", "B", "C", "D", "state_name", "input_name", "output_name", "layer")

README = """A discrete linear time-varying system for python-control, written by depthsys.

    import load_control
    arrays = load_control.load()
    system = load_control.nlsys(arrays)     # or layers(arrays), embedding(arrays)

    x[k+1] = A[k] x[k] + B[k] u[k]      k = 0..L-1
    y[k]   = C[k] x[k] + D[k] u[k]      k = 0..L, no input at depth L

All indices count from 0; time t of python-control is the depth k.

system.npz holds A (layer, state_next, state), B (layer, state_next, input), C (depth, output,
state), D (depth, output, input), input_name and output_name, and a run of the system: start at
golden_x0 (state), apply golden_u (layer, input), and you must get golden_x (depth, state) and
golden_y (depth, output).

`python load_control.py` replays that run, step by step in numpy and as a whole in python-control,
and prints

    depthsys selfcheck: PASS - {sizes}; largest relative error ...

or FAIL (exit status 1), with the first depth that is wrong, and whether every A is transposed.
It needs numpy and control, and not depthsys.

A changed or reduced system goes back by load_control.save("reduced.npz", arrays, A, B, C, D),
and in a shell `depthsys import reduced.npz`.
"""


@dataclass(frozen=True, eq=False)
class ControlSystems:
    """One system in the forms that python-control has; see `to_control`.

    Attributes
    ----------
    nlsys
        Time-varying, ``dt=1``; time is the depth as a position 0..L.
    layers
        L frozen layers, each a ``StateSpace`` with ``dt=1``.
    arrays
        The matrices, as numpy arrays with the first axis over layers or depths.
    """

    nlsys: "NonlinearIOSystem"
    layers: "list[StateSpace]" = field(repr=False)
    arrays: Mapping[str, np.ndarray] = field(repr=False)

    @cached_property
    def io_matrix(self) -> np.ndarray:
        """All outputs per unit of all inputs, output/input, computed on first use.

        ((L + 1) p, L m): row ``k p + i`` is output i at depth k, column ``l m + j`` input j of
        layer l. `ltv.io_matrix` with its dims flattened.

        Raises
        ------
        ValueError
            If it were larger than 10^8 numbers.
        """
        return load_control.io_matrix(self.arrays)

    @cached_property
    def embedding(self) -> "StateSpace":
        """The nilpotent embedding (`ltv.embed`) with ``dt=1``, computed on first use.

        Signals are named after those of the system and the position: ``u0@3`` is u0 of layer 3.

        Raises
        ------
        ValueError
            If a matrix were larger than 10^8 numbers.
        """
        return load_control.embedding(self.arrays)


def to_control(system: xr.Dataset) -> ControlSystems:
    """A system as python-control objects.

    Parameters
    ----------
    system
        One system (no batch dims). Where the size of the state varies it stays padded with zeros:
        all objects have n states at all depths.

    Returns
    -------
    ControlSystems
        ``nlsys``, ``layers``, ``io_matrix`` and ``embedding``. Signals carry the names of the
        system (``state_name``, ``input_name``, ``output_name``; python-control allows no dots: they
        become underscores, and repeated names get their index); states without names are x0, x1,
        ...

    Raises
    ------
    ValueError
        If there are batch dims. ``nlsys`` raises one at any time that is not a depth 0..L.

    Notes
    -----
    python-control puts time last: ``control.input_output_response(found.nlsys, np.arange(L + 1),
    U, x0)`` takes U as (input, L + 1), whose last column is not used, and returns y as (output,
    L + 1). ``control.linearize(found.nlsys, 0, 0, t=3)`` returns layer 3. Its `balred` and `hsvd`
    are wrong or missing in discrete time: use `ltv.balanced_basis`.

    Examples
    --------
    >>> import control
    >>> import numpy as np
    >>> from depthsys import export, ltv
    >>> from depthsys.export.control import to_control
    >>> system = ltv.system([[[0.5]], [[3.0]]], [[[1.0]], [[1.0]]], [[[1.0]], [[1.0]], [[1.0]]])
    >>> found = to_control(system)
    >>> control.input_output_response(found.nlsys, np.arange(3), 0, 1.0).outputs.tolist()
    [1.0, 0.5, 1.5]
    >>> float(control.linearize(found.nlsys, 0, 0, t=1).A[0, 0])
    3.0
    """
    system = one_system(system, "python-control")
    arrays = {name: system[name].values for name in USED if name in system.variables}
    return ControlSystems(load_control.nlsys(arrays), load_control.layers(arrays), arrays)


def to_control_files(system: xr.Dataset, path: str | os.PathLike, *, force: bool = False) -> None:
    """Write a folder from which python-control loads a system where depthsys is not installed.

    It holds ``system.npz`` (as `to_npz` writes it), ``load_control.py`` and ``README.txt``.
    ``python load_control.py`` replays the golden trajectory and says PASS or FAIL.

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
        If there are batch dims, or something is neither numbers nor texts.
    """
    system = one_system(system, "python-control")
    with whole_folder(path, force) as folder:
        write_receiver(system, folder, ["load_control.py"], README)


def write_receiver(system: xr.Dataset, folder: Path, scripts: list[str], readme: str) -> None:
    """Fill a folder with ``system.npz``, scripts of `depthsys.export.receivers` and a README.txt.

    Parameters
    ----------
    system
        One system with names.
    folder
        An existing folder.
    scripts
        Names of files, which are copied as they are.
    readme
        Its text, with ``{sizes}`` for the sizes of the system.
    """
    to_npz(system, folder / "system.npz")
    write_scripts(system, folder, scripts, readme)


def write_scripts(system: xr.Dataset, folder: Path, scripts: list[str], readme: str) -> None:
    """The same without ``system.npz``, for a folder that holds the system in another form."""
    for script in scripts:
        (folder / script).write_bytes(receiver(script))
    L, n, m, p = (system.sizes[dim] for dim in ("layer", "state", "input", "output"))
    sizes = f"L = {L} layers, n = {n} states, m = {m} inputs, p = {p} outputs"
    (folder / "README.txt").write_text(readme.format(sizes=sizes), encoding="utf-8")


def receiver(script: str) -> bytes:
    """The text of a file that travels with exports, as it is in the package."""
    return resources.files("depthsys.export.receivers").joinpath(script).read_bytes()


def library(module: str, name: str, caller: str, extra: str = "export") -> ModuleType:
    """An optional package.

    Parameters
    ----------
    module, name
        What to import, and what people call it.
    caller
        The function that needs it.
    extra
        The extra of depthsys that brings it.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"`{caller}` must find {name}; got {str(error)!r}. `pip install 'depthsys[{extra}]'` "
            "installs it."
        ) from error
