"""A continuous-time system, varying or not, at the times at which it is sampled."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isroutine
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.linalg import expm

from depthsys.ltv.foreign import is_state_space, state_space
from depthsys.ltv.system import as_named, check, system

RTOL = 1e-10
Matrix = ArrayLike | Callable[[float], ArrayLike]


def sample_system(
    A: Any,
    B: Matrix | None = None,
    C: Matrix | None = None,
    D: Matrix | None = None,
    *,
    times: ArrayLike | xr.DataArray,
    rtol: float = RTOL,
    method: str = "DOP853",
) -> xr.Dataset:
    r"""A continuous system :math:`\dot x = A(t) x + B(t) u` with its input held between samples.

    With a zero-order hold, u constant from :math:`t_l` to :math:`t_{l+1}`, the states at the times
    obey :math:`x_{l+1} = A_l x_l + B_l u_l` exactly, where

    :math:`A_l = \Phi(t_{l+1}, t_l)`,
    :math:`B_l = \int_{t_l}^{t_{l+1}} \Phi(t_{l+1}, s) B(s)\,ds`,
    :math:`C_k = C(t_k)`, :math:`D_k = D(t_k)`.

    Parameters
    ----------
    A
        (state_next, state) in 1/time: a matrix, or a function of the time; or a continuous-time
        ``StateSpace`` of python-control or scipy, or ``LTIModel`` of pyMOR, whose B, C, D and names
        are taken.
    B, C, D
        Matrices or functions of the time; D is zero by default, and always zero at the last time,
        where there is no input.
    times
        (depth), rising, L + 1 of them; their distances may vary.
    rtol
        Relative tolerance of the integration, of every element in proportion to the largest of
        its matrix. Not used where A and B are matrices: then the matrix exponential is taken.
    method
        Of `scipy.integrate.solve_ivp`: for stiff systems "Radau" or "LSODA".

    Returns
    -------
    xr.Dataset
        A system with the coordinate ``time`` (depth); attrs ``sampling`` ("zoh") and, where it was
        integrated, ``rtol``. MATLAB: `c2d`, python-control: `sample_system`, pyMOR:
        ``.to_discrete``, all for LTI.

    Raises
    ------
    TypeError
        If B or C is missing, or given beside a ``StateSpace``.
    ValueError
        If the times do not rise, the ``StateSpace`` is discrete, or a matrix has another shape than
        at the first time or is not finite.
    numpy.linalg.LinAlgError
        If the integration fails.

    Notes
    -----
    The steps of the integration start anew at every sample, and nowhere else: put a sample where
    A or B jumps (on which side of it the function has the new value does not matter), and enough of
    them that no short pulse lies between the steps.

    References
    ----------
    .. [1] Van Loan, Computing integrals involving the matrix exponential, IEEE TAC 23(3), 1978.
    .. [2] Åström and Wittenmark, Computer-Controlled Systems (1997), chapter 2.

    Examples
    --------
    A double integrator sampled every second, and at the times 0, 1 and 3:

    >>> from depthsys import ltv
    >>> s = ltv.sample_system([[0, 1], [0, 0]], [[0], [1]], [[1, 0]], times=[0, 1, 3])
    >>> s.B.values[..., 0]
    array([[0.5, 1. ],
           [2. , 2. ]])
    """
    A, B, C, D, names = _matrices(A, B, C, D)
    if B is None or C is None:
        raise TypeError("`B` and `C` must be given beside A; got None. Pass both.")
    at = as_named(times, "times", {"depth": None}).values
    if at.ndim != 1 or len(at) < 2 or (np.diff(at) <= 0).any():
        raise ValueError(
            f"`times` must be at least two, and rise; got {np.asarray(times)!r:.80}. The inputs "
            "act between them."
        )
    if not 0 < rtol < 1:
        raise ValueError(f"`rtol` must be between 0 and 1; got {rtol}. Leave it at {RTOL:.0e}.")
    constant = not (callable(A) or callable(B))
    A_of, B_of, C_of = (_Checked(M, name, at[0]) for M, name in ((A, "A"), (B, "B"), (C, "C")))
    (n, m), p = B_of.shape, C_of.shape[0]
    D_of = _Checked(np.zeros((p, m)) if D is None else D, "D", at[0])
    for checked, want in ((A_of, (n, n)), (C_of, (p, n)), (D_of, (p, m))):
        if checked.shape != want:
            raise ValueError(
                f"`{checked.name}` must have shape {want}, as B is {(n, m)}; got {checked.shape}. "
                "Rows are states at the next step (A, B) or outputs (C, D)."
            )
    if constant:
        pairs = _exponentials(A_of(at[0]), B_of(at[0]), np.diff(at))
    else:
        pairs = [_integrated(A_of, B_of, start, stop, rtol, method) for start, stop in pairwise(at)]
    outputs = np.stack([D_of(t) for t in at])
    outputs[-1] = 0.0
    about = {"sampling": "zoh"} | ({} if constant else {"rtol": float(rtol)})
    sampled = system(
        np.stack([phi for phi, _ in pairs]),
        np.stack([gamma for _, gamma in pairs]),
        np.stack([C_of(t) for t in at]),
        outputs,
        attrs=about,
    )
    coords: dict[str, Any] = {f"{d}_name": (d, np.array(told)) for d, told in names.items()}
    return check(sampled.assign_coords(coords | {"time": ("depth", at)}))


def _matrices(A: Any, B: Any, C: Any, D: Any) -> tuple[Any, Any, Any, Any, dict[str, list[str]]]:
    """The matrices, those of a continuous-time StateSpace if that is what A is; and its names."""
    # a StateSpace and a transfer function can be called, too; they come alone
    alone = B is None and C is None and not isroutine(A)
    if not (is_state_space(A) or alone or not callable(A)):
        return A, B, C, D, {}
    if (given := state_space(A, "A")) is None:
        return A, B, C, D, {}
    if not (B is None and C is None and D is None):
        raise TypeError("`B`, `C`, `D` must be left out beside a StateSpace; got some of them.")
    if not given.continuous:
        raise ValueError(
            f"`A` must be a continuous-time StateSpace; got a discrete one (dt = {given.dt}). "
            "`ltv.constant` takes it as it is."
        )
    return given.A, given.B, given.C, given.D, dict(given.names)


class _Checked:
    """A matrix as a function of the time, whose shape and values are looked at on every call."""

    def __init__(self, value: Any, name: str, start: float) -> None:
        self.name = name
        self._of = value
        self._first = self._matrix(value(start) if callable(value) else value, start)
        self.shape = self._first.shape

    def __call__(self, t: float) -> np.ndarray:
        if not callable(self._of):
            return self._first
        matrix = self._matrix(self._of(t), t)
        if matrix.shape != self.shape:
            raise ValueError(
                f"`{self.name}` must have one shape at all times, {self.shape}; got {matrix.shape} "
                f"at t = {t:.6g}. Pad it with zeros."
            )
        return matrix

    def _matrix(self, value: Any, t: float) -> np.ndarray:
        matrix = np.asarray(value)
        if matrix.ndim != 2 or matrix.dtype.kind not in "fiub" or not np.isfinite(matrix).all():
            raise ValueError(
                f"`{self.name}` must be a real, finite matrix; got shape {matrix.shape}, "
                f"{matrix.dtype}, at t = {t:.6g}. Write a vector as a matrix."
            )
        return matrix.astype(np.float64)


def _exponentials(A: np.ndarray, B: np.ndarray, steps: np.ndarray) -> list[tuple]:
    """The exponential of [[A, B], [0, 0]] times the step holds both matrices."""
    n, m = B.shape
    block = np.zeros((n + m, n + m))
    block[:n] = np.hstack([A, B])
    known = {}
    for step in np.unique(steps):
        whole = expm(block * step)
        known[step] = whole[:n, :n], whole[:n, n:]
    return [known[step] for step in steps]


def _integrated(
    A: _Checked, B: _Checked, start: float, stop: float, rtol: float, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Both matrices of one interval, as the solution of X' = A X + [0 B] from X = [I 0]."""
    from scipy.integrate import solve_ivp  # takes longer to import than all the rest

    n, m = B.shape
    # inside the interval: at its ends a jump may already, or still, be on the other side
    ends = np.nextafter(start, stop), np.nextafter(stop, start)

    def rate(t: float, flat: np.ndarray) -> np.ndarray:
        t = min(max(t, ends[0]), ends[1])
        X = A(t) @ flat.reshape(n, n + m)
        X[:, n:] += B(t)
        return X.ravel()

    first = np.hstack([np.eye(n), np.zeros((n, m))])
    # in proportion to what an element can grow to: B may be far smaller or larger than one
    size = np.concatenate([np.ones(n), np.full(m, (stop - start) * np.abs(B(start)).max())])
    scale = np.broadcast_to(np.where(size > 0, size, 1.0), first.shape).ravel()
    found = solve_ivp(
        rate,
        (start, stop),
        first.ravel(),
        method=method,
        rtol=max(rtol, 100 * np.finfo(float).eps),
        atol=rtol * scale,
    )
    if not found.success or not np.isfinite(found.y[:, -1]).all():
        raise np.linalg.LinAlgError(
            f"`A` must let the states from t = {start:.6g} to {stop:.6g} be integrated; got "
            f"{found.message!r}. Sample more often, or take method='Radau' for a stiff system."
        )
    last = found.y[:, -1].reshape(n, n + m)
    return last[:, :n], last[:, n:]
