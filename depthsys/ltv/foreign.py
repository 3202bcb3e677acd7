"""Systems of other packages, told by their class.

Attributes alone do not say enough: a sampling time of None means continuous in scipy, and in
python-control that it fits both; 0 means continuous in python-control, pyMOR and MATLAB.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

# names that python-control gives where nobody named anything
_LETTERS = {"state": "x", "input": "u", "output": "y"}
_CURES = {
    "TransferFunction": "Take its state-space form first: `control.ss(...)`, or scipy's `.to_ss()`",
    "ZerosPolesGain": "Take its state-space form first, `.to_ss()`",
    "FrequencyResponseData": "Fit a state-space model first",
    "Dataset": "It is a system already, if `ltv.check` accepts it; else take its matrices",
    "mat_struct": "Pass its A, B, C and D, once you know that its sampling time Ts is not 0",
    "dict": "Pass its A, B, C and D, once you know that its sampling time is not 0",
    "void": "Pass its A, B, C and D, once you know that its sampling time Ts is not 0",
}


@dataclass(frozen=True)
class StateSpace:
    """The matrices of a system of another package, its sampling time, and its names.

    ``dt`` is that of its package. ``names`` maps the dims state, input and output to what they are
    called, where they are.
    """

    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    D: np.ndarray
    dt: float | bool | None
    continuous: bool
    names: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def nstates(self) -> int:
        """Number of states."""
        return self.A.shape[0]


def state_space(value: Any, name: str) -> StateSpace | None:
    """The system of python-control, scipy or pyMOR that ``value`` is; None for an array.

    Raises
    ------
    TypeError
        For any other object that is no array, such as a transfer function.
    ValueError
        If a pyMOR model has a mass matrix.
    """
    if (convert := _known(value)) is not None:
        return convert(value, name)
    array = isinstance(value, (np.ndarray, list, tuple, int, float, np.number, xr.DataArray))
    record = isinstance(value, np.ndarray) and value.dtype.names is not None  # a struct of MATLAB
    if (array or hasattr(value, "__array__")) and not record and not isinstance(value, xr.Dataset):
        if not isinstance(value, np.void):
            return None
    kind = "void" if record else type(value).__name__
    cure = next((_CURES[c.__name__] for c in type(value).__mro__ if c.__name__ in _CURES), None)
    cure = _CURES["void"] if record else cure
    if cure is None and hasattr(value, "toarray"):
        cure = "Pass `.toarray()`, or use `ltv.MatrixFree`"
    raise TypeError(
        f"`{name}` must be a matrix or a StateSpace of python-control or scipy; got {kind}. "
        f"{cure or 'Pass its matrices A, B, C and D'}."
    )


def is_state_space(value: Any) -> bool:
    """Whether `state_space` takes it as a system."""
    return _known(value) is not None


def _known(value: Any) -> Callable[[Any, str], StateSpace] | None:
    for cls in type(value).__mro__:
        convert = _KNOWN.get((cls.__module__.split(".")[0], cls.__name__))
        if convert is not None:
            return convert
    return None


def discrete_system(value: Any, name: str) -> StateSpace | None:
    """`state_space`, after refusing one in continuous time."""
    found = state_space(value, name)
    if found is not None and found.continuous:
        raise ValueError(
            f"`{name}` must be a discrete-time StateSpace; got a continuous one (dt = {found.dt}). "
            "Use `ltv.sample_system` or `control.sample_system` first."
        )
    return found


def _from_control(value: Any, name: str) -> StateSpace:
    given = {
        "state": value.state_labels,
        "input": value.input_labels,
        "output": value.output_labels,
    }
    names = {
        dim: list(labels)
        for dim, labels in given.items()
        if list(labels) != [f"{_LETTERS[dim]}[{i}]" for i in range(len(labels))]
    }
    matrices = (np.asarray(m) for m in (value.A, value.B, value.C, value.D))
    return StateSpace(*matrices, dt=value.dt, continuous=value.dt == 0, names=names)


def _from_scipy(value: Any, name: str) -> StateSpace:
    matrices = (np.asarray(m) for m in (value.A, value.B, value.C, value.D))
    return StateSpace(*matrices, dt=value.dt, continuous=value.dt is None)


def _from_pymor(value: Any, name: str) -> StateSpace:
    A, B, C, D, E = value.to_abcde_matrices()
    A, B, C = (_dense(m) for m in (A, B, C))
    if E is not None and not np.array_equal(_dense(E), np.eye(len(A))):
        raise ValueError(
            f"`{name}` must have no mass matrix E; got one. Multiply A and B by its inverse, or "
            "take `.to_discrete(...)` of a model without E."
        )
    D = np.zeros((len(C), B.shape[1])) if D is None else _dense(D)
    dt = value.sampling_time
    return StateSpace(A, B, C, D, dt=dt, continuous=dt == 0)


def _dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)


_KNOWN = {
    ("control", "StateSpace"): _from_control,
    ("scipy", "StateSpace"): _from_scipy,
    ("pymor", "LTIModel"): _from_pymor,
}
