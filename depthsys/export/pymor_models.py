"""pyMOR: the nilpotent embedding of a system, or one of its layers, as a discrete LTIModel."""

import os
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from depthsys.export.control import library, write_receiver
from depthsys.export.plain import one_system
from depthsys.export.receivers import load_pymor
from depthsys.files import whole_folder

if TYPE_CHECKING:
    from pymor.models.iosys import LTIModel  # pyright: ignore[reportMissingImports]

README = """A discrete linear time-varying system for pyMOR, written by depthsys.

    import load_pymor
    arrays = load_pymor.load()
    model = load_pymor.embedding(arrays)    # or layer(arrays, 3)

    x[k+1] = A[k] x[k] + B[k] u[k]      k = 0..L-1
    y[k]   = C[k] x[k] + D[k] u[k]      k = 0..L, no input at depth L

All indices count from 0. pyMOR knows time-invariant systems only: the embedding stacks the states,
the inputs and the outputs of all depths (row k n + i is state i at depth k), so that its Gramians
and Hankel singular values are those of the time-varying system.

system.npz holds A (layer, state_next, state), B (layer, state_next, input), C (depth, output,
state), D (depth, output, input), input_name and output_name, and a run of the system: start at
golden_x0 (state), apply golden_u (layer, input), and you must get golden_x (depth, state) and
golden_y (depth, output).

`python load_pymor.py` replays that run, step by step in numpy and as a whole in pyMOR, and prints

    depthsys selfcheck: PASS - {sizes}; largest relative error ...

or FAIL (exit status 1), with the first depth that is wrong, and whether every A is transposed.
It needs numpy and pymor, and not depthsys. Keep load_control.py beside it: the numpy part.

A changed or reduced system goes back by load_pymor.save("reduced.npz", arrays, A, B, C, D),
and in a shell `depthsys import reduced.npz`.
"""


def to_pymor(
    system: xr.Dataset, layer: int | None = None, *, readout: int | None = None
) -> "LTIModel":
    """A system as a discrete-time pyMOR model.

    Parameters
    ----------
    system
        One system (no batch dims). States that do not exist at a depth stay as rows and columns of
        zeros, in the embedding and in a layer (unlike `ltv.layer_lti`, which wants one size): a
        layer has n states, and its A is square also where the size changes.
    layer
        By default the nilpotent embedding (`ltv.embed`): its Hankel singular values are the
        union of those of the depths. Or the label of one layer.
    readout
        Of one layer: the label of the depth whose C is used; its own by default.

    Returns
    -------
    pymor.models.iosys.LTIModel
        With ``sampling_time=1``. pyMOR has no names for single signals: those of the system stay in
        the file (``system.npz`` of `to_pymor_files`).

    Raises
    ------
    ImportError
        If pyMOR is not installed.
    ValueError
        If there are batch dims, a matrix of the embedding were larger than 10^8 numbers, there is
        no such layer or depth, or ``readout`` is given without a layer.
    """
    library("pymor", "pyMOR", "to_pymor", "pymor")
    system = one_system(system, "pyMOR")
    if layer is None:
        if readout is not None:
            raise ValueError(
                f"`readout` must be left out for the embedding; got {readout!r}. It reads all "
                "depths."
            )
        return load_pymor.embedding({name: system[name].values for name in "ABCD"})
    at = _position(system, "layer", layer, "layer")
    k = at if readout is None else _position(system, "depth", readout, "readout")
    A, B, C, D = (system[name].values[k if name == "C" else at] for name in "ABCD")
    return load_pymor.model(A, B, C, D, name=f"layer{layer}")


def _position(system: xr.Dataset, dim: str, label: object, argument: str) -> int:
    """The position of a label along a dim, which counts layers or depths one by one."""
    labels = system[dim].values
    whole = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
    if not whole or label not in labels:
        raise ValueError(
            f"`{argument}` must be in {labels[0]}..{labels[-1]}; got {label!r}. Use a label of the "
            f"dim {dim!r}, a whole number."
        )
    return int(np.flatnonzero(labels == label)[0])


def to_pymor_files(system: xr.Dataset, path: str | os.PathLike, *, force: bool = False) -> None:
    """Write a folder from which pyMOR loads a system where depthsys is not installed.

    It holds ``system.npz`` (as `to_npz` writes it), ``load_pymor.py``, ``load_control.py`` (which
    the former uses) and ``README.txt``. ``python load_pymor.py`` replays the golden trajectory and
    says PASS or FAIL. pyMOR itself is not needed to write.

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
    system = one_system(system, "pyMOR")
    with whole_folder(path, force) as folder:
        write_receiver(system, folder, ["load_pymor.py", "load_control.py"], README)
