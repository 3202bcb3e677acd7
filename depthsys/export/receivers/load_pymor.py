"""A system that depthsys exported, for pyMOR. Needs numpy and pymor, not depthsys.

pyMOR knows time-invariant systems only: the nilpotent embedding, which holds the whole horizon, or
one layer. In Python:

    import load_pymor
    arrays = load_pymor.load()              # system.npz beside this file, as numpy arrays
    model = load_pymor.embedding(arrays)    # an LTIModel; or layer(arrays, 3)

`python load_pymor.py` replays the run that came with the system, step by step in numpy and as a
whole with the matrices of the pyMOR model, and says PASS or FAIL. The numpy part is
load_control.py, which lies beside this file; it asks for python-control only when that is used.
"""

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
load, save = plain.load, plain.save
simulate, selfcheck = plain.simulate, plain.selfcheck


def model(A: Any, B: Any, C: Any, D: Any, name: str) -> Any:
    """A discrete-time ``LTIModel`` of four matrices, with sampling time 1."""
    from pymor.models.iosys import LTIModel  # pyright: ignore[reportMissingImports]

    return LTIModel.from_matrices(A, B, C, D, sampling_time=1, name=name)


def embedding(arrays: Any) -> Any:
    """The nilpotent embedding as an ``LTIModel``: one system that holds the whole horizon.

    The states of all depths are stacked, as are all inputs and all outputs: row ``k n + i`` is
    state i at depth k, column ``l m + j`` input j of layer l. Its Gramians are block diagonal,
    with those of the depths; its Hankel singular values are the union of theirs.

    Parameters
    ----------
    arrays
        See `load`.

    Raises
    ------
    ValueError
        If a matrix were larger than 10^8 numbers.
    """
    return model(*plain.embedding_matrices(arrays), name="embedding")


def layer(arrays: Any, index: int) -> Any:
    """Layer ``index``, counted from 0, as an ``LTIModel``; C is read before the layer.

    Raises
    ------
    ValueError
        If there is no such layer.
    """
    L = len(arrays["A"])
    if not 0 <= index < L:
        raise ValueError(f"`index` must be in 0..{L - 1}; got {index}. Layers count from 0.")
    label = arrays.get("layer", np.arange(L))[index]
    return model(*(arrays[name][index] for name in "ABCD"), name=f"layer{label}")


def response(arrays: Any, x0: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same as `simulate` with the matrices that the pyMOR model of the embedding holds."""
    A, B, C, D, _ = embedding(arrays).to_abcde_matrices()
    driven = B @ u.ravel()
    driven[: len(x0)] += x0  # the embedding has no initial state: depth 0 is driven instead
    x = np.zeros(len(A))
    for _ in range(len(u) + 1):  # one depth more is right after each step
        x = A @ x + driven
    y = C @ x + (0 if D is None else D @ u.ravel())
    return x.reshape(len(u) + 1, -1), y.reshape(len(u) + 1, -1)


def main() -> None:
    """Replay in numpy and in pyMOR."""
    plain.report(lambda: selfcheck(load(), (response,)))


if __name__ == "__main__":
    main()
