"""Julia: the .mat of `to_matlab` and a script for MAT.jl and ControlSystemsBase."""

import os

import xarray as xr

from depthsys.export.matlab import write_folder

_FILES = {"julia_load.jl": "load_{}.jl", "julia_readme.txt": "README.txt"}


def to_julia(
    system: xr.Dataset,
    path: str | os.PathLike,
    *,
    name: str = "depth_system",
    force: bool = False,
) -> None:
    """Write one system as a folder for Julia: ``NAME.mat``, ``load_NAME.jl``, ``README.txt``.

    ``load_NAME.jl`` defines the module ``DepthSystem``: ``load()`` reads the arrays with MAT.jl and
    replays the golden trajectory, ``models(S)`` makes a vector of ``ss(A, B, C, D, 1)``, one per
    layer, with ControlSystemsBase. The .mat is that of `to_matlab`; a changed one comes back
    through `from_matlab`.

    Parameters
    ----------
    system
        One system (no batch dims).
    path
        The folder. It appears whole or not at all.
    name
        What the files are named for: a MATLAB name of at most 54 characters.
    force
        Replace an earlier export of that name.

    Raises
    ------
    FileExistsError
        If the folder holds something and ``force`` is False, or holds other files.
    ValueError
        If there are batch dims, ``name`` or the name of a variable is none for MATLAB, or something
        is neither numbers nor texts.

    Notes
    -----
    The script was not run: no Julia was at hand. It raises an error if the golden trajectory does
    not fit. The same .mat is read by GNU Octave in the tests.
    """
    write_folder(system, path, name, force, None, _FILES)
