"""Estimation of the state from noisy outputs: time-varying gains by duality, and the filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.costs import (
    RTOL,
    STATES,
    at_layers,
    checked_rtol,
    factored,
    joined,
    per_layer,
    refuse_indefinite,
)
from depthsys.ltv.labels import aligned, beside_each_other, in_order_of, with_labels_of
from depthsys.ltv.matrix_free import labels, over_depth, state_sizes, transposed
from depthsys.ltv.response import as_state
from depthsys.ltv.riccati import lists, riccati, squares, stacked_up
from depthsys.ltv.system import as_named, check

Array = ArrayLike | xr.DataArray
OUTPUTS, NOISES = ("output", "output_2"), ("noise", "noise_2")


def lqe(
    system: xr.Dataset,
    QN: Array,
    RN: Array,
    P0: Array | None = None,
    *,
    G: Array | None = None,
    NN: Array | None = None,
    rtol: float = RTOL,
) -> xr.Dataset:
    r"""Time-varying Kalman gains and error covariances: the dual of `lqr`.

    For :math:`x_{l+1} = A_l x_l + B_l u_l + G_l w_l` and :math:`y_k = C_k x_k + D_k u_k + v_k` with
    white noises of covariance :math:`E w w^\top = QN`, :math:`E v v^\top = RN`,
    :math:`E w v^\top = NN`:

    :math:`L_l = (A_l P_l C_l^\top + G_l NN_l) (C_l P_l C_l^\top + RN_l)^{-1}`,
    :math:`M_k = P_k C_k^\top (C_k P_k C_k^\top + RN_k)^{-1}`,
    :math:`P_{l+1} = A_l P_l A_l^\top + G_l QN_l G_l^\top - L_l (A_l P_l C_l^\top + G_l NN_l)^\top`.

    Parameters
    ----------
    system
        Uses ``A`` and ``C``; extra leading dims are batch dims.
    QN
        Covariance of the process noise (noise, noise_2), of the states (state, state_2) where
        ``G`` is left out; one for all layers, or with a dim layer.
    RN
        Covariance of the output noise (output, output_2), or with a dim depth. May be singular
        where C P C' + RN is not.
    P0
        Covariance of the initial state (state, state_2); zero, a known state, by default.
    G
        How the noise enters, (state_next, noise) or (layer, state_next, noise); the identity by
        default. ``G=system.B`` for noise on the inputs: then QN is (input, input_2).
    NN
        Covariance of both noises at a layer (noise, output); zero by default.
    rtol
        How far from symmetric and semidefinite rounding may leave a covariance.

    Returns
    -------
    xr.Dataset
        ``L`` (layer, state_next, output), the predictor gain; ``M`` (depth, state, output), the
        filter gain; ``P`` (depth, state, state_2), the covariance of the error of x_k predicted
        from the outputs before k; ``P_filtered``, with the output at k, too. python-control:
        `dlqe` (L, P), MATLAB: `kalman` (L, P, Mx, Z), both for LTI and an infinite horizon.

    Raises
    ------
    ValueError
        If a covariance has the wrong size or labels, or is not symmetric and semidefinite.
    numpy.linalg.LinAlgError
        If C P C' + RN is singular at a depth: some output is known exactly beforehand.

    Notes
    -----
    The square-root recursion of `lqr` on transposed matrices, from the first depth to the last.

    References
    ----------
    .. [1] Anderson and Moore, Optimal Filtering (1979), sections 3.1 and 5.4.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.constant([[1.0]], [[1.0]], [[1.0]], horizon=20)
    >>> round(float(ltv.lqe(s, [[1.0]], [[1.0]]).L[-1, 0, 0]), 6)  # the golden ratio's inverse
    0.618034
    """
    check(system)
    checked_rtol(rtol)
    given = _given(system, QN, RN, P0, G, NN, rtol)
    both = joined(given["QN"], given.get("NN"), given["RN_now"], "noise", "output")
    factor = factored(both, "both")
    n = given["QN"].sizes["noise"]
    by_noise = factor.isel(both=slice(n)).rename(both="noise")
    extra = [
        xr.dot(by_noise, given["G"], dim="noise"),  # a factor of G QN G'
        factor.isel(both=slice(n, None)).rename(both="output"),
        factored(given["RN"], "output").rename(row="out_row"),
        factored(given["P0"], "state").rename(row="start_row"),
        given["P0"],
    ]
    found = over_depth(
        _Recursion(labels(system, "depth")),
        system,
        "AC",
        list(_RESULTS.values()),
        *(value.transpose(..., *dims) for value, dims in zip(extra, _FACTORS, strict=True)),
        extra_dims=_FACTORS,
        exclude=("row", "out_row", "start_row"),
    )
    gains = with_labels_of(xr.Dataset(dict(zip(_RESULTS, found, strict=True))), system)
    return gains.assign_attrs(method="lqe", rtol=rtol)


_RESULTS = {
    "L": ["layer", "state_next", "output"],
    "M": ["depth", "state", "output"],
    "P": ["depth", *STATES],
    "P_filtered": ["depth", *STATES],
}
_FACTORS = (
    ("layer", "row", "state"),
    ("layer", "row", "output"),
    ("depth", "out_row", "output"),
    ("start_row", "state"),
    STATES,
)


@dataclass(frozen=True)
class _Recursion:
    """L, M, P and P_filtered of arrays (..., core dims), see `lqe`."""

    depths: np.ndarray

    def __call__(self, A, C, driven, noise, each, start, first):
        n_layers = len(A)
        law = riccati(
            [transposed(a) for a in A[::-1]],
            [transposed(c) for c in C[-2::-1]],
            lists(driven)[::-1],
            lists(noise)[::-1],
            start,
            None,
            lambda layer: self._refused(n_layers - 1 - layer),
        )
        factors = law.S[::-1]
        P = [first, *squares(factors[1:])]  # the first one is as it was given
        gains, filtered = [], []
        for k, (c, s, r) in enumerate(zip(C, factors, lists(each), strict=True)):
            M, left = self._read(k, c, s, r)
            gains.append(M)
            filtered.append(left)
        L = [transposed(k) for k in law.K[::-1]]
        return tuple(stacked_up(x) for x in (L, gains, P, squares(filtered)))

    def _read(self, depth: int, c: np.ndarray, s: np.ndarray, r: np.ndarray):
        """The filter gain, and a factor of what it leaves: a layer at which nothing moves."""
        size = c.shape[-1]
        still, nothing = [np.eye(size)], [np.zeros((r.shape[-2], size))]
        law = riccati(still, [transposed(c)], nothing, [r], s, None, lambda _: self._refused(depth))
        return transposed(law.K[0]), law.S[0]

    def _refused(self, depth: int) -> Exception:
        return np.linalg.LinAlgError(
            "`RN` must leave C P C' + RN positive definite; got a singular one at depth "
            f"{self.depths[depth]}, where some output is known before it is read. Give it noise in "
            "RN, or the states that it reads in QN or P0."
        )


def _given(
    system: xr.Dataset, QN: Any, RN: Any, P0: Any, G: Any, NN: Any, rtol: float
) -> dict[str, xr.DataArray]:
    """The covariances and G (layer, noise, state), checked and aligned with the system."""
    n, p, L = (system.sizes[d] for d in ("state", "output", "layer"))
    exists = xr.DataArray(np.arange(n), dims=["state"]) < state_sizes(system)
    if G is None:
        after = exists.isel(depth=slice(1, None)).rename(depth="layer", state="noise")
        eye = xr.DataArray(np.eye(n), dims=["noise", "state"]) * after
        found = {"G": eye, "QN": per_layer(_by_noise(QN, "state"), "QN", _square(NOISES, n), L)}
        system_noise = {"noise": "state", "noise_2": "state"}
    else:
        enters = _by_noise(G, "input")
        sizes = {"state_next": n, "noise": None}
        enters = as_named(enters, "G", sizes, {"layer": L, **sizes})
        enters = enters if "layer" in enters.dims else enters.expand_dims(layer=L)
        m = enters.sizes["noise"]
        QN = per_layer(_by_noise(QN, "input"), "QN", _square(NOISES, m), L)
        if "noise" in enters.coords:
            for dim in NOISES:
                if dim in QN.coords:
                    QN = in_order_of(QN, "QN", dim, enters["noise"].values)
        found, system_noise = {"G": enters, "QN": QN}, {}
    found["RN"] = per_layer(RN, "RN", _square(OUTPUTS, p), L + 1, "depth")
    start = np.zeros((n, n)) if P0 is None else P0
    found["P0"] = as_named(start, "P0", _square(STATES, n))
    if NN is not None:
        size = {"noise": found["QN"].sizes["noise"], "output": p}
        NN = per_layer(_by_noise(NN, "state" if G is None else "input"), "NN", size, L)
        if G is not None and "noise" in NN.coords and "noise" in found["G"].coords:
            NN = in_order_of(NN, "NN", "noise", found["G"]["noise"].values)
        found["NN"] = NN
    found = {k: aligned(v, k, system, NOISES, **system_noise) for k, v in found.items()}
    found = dict(zip(found, beside_each_other(found), strict=True))
    if "state_next" in found["G"].dims:
        found["G"] = found["G"].rename(state_next="state")
    there = exists.isel(depth=0).astype(float)
    found["P0"] = (found["P0"] * there * there.rename(state="state_2")).transpose(..., *STATES)
    for name, dim in (("QN", "noise"), ("RN", "output"), ("P0", "state")):
        refuse_indefinite(found[name], name, dim, 0.0, rtol)
    found["RN_now"] = at_layers(found["RN"])
    if "NN" in found:
        joint = joined(found["QN"], found["NN"], found["RN_now"], "noise", "output")
        refuse_indefinite(joint, "[QN NN; NN' RN]", "both", 0.0, rtol)
    return found


def _square(dims: tuple[str, str], n: int) -> dict[str, int]:
    return dict.fromkeys(dims, n)


def _by_noise(value: Any, dim: str) -> Any:
    """An argument whose noise is that of the states or inputs, with the dims of a noise."""
    if not isinstance(value, xr.DataArray):
        return value
    names = {dim: "noise", f"{dim}_2": "noise_2"}
    return value.rename({old: new for old, new in names.items() if old in value.dims})


def kalman_filter(
    system: xr.Dataset,
    gains: xr.Dataset,
    y: Array,
    u: Array | None = None,
    x0: Array | None = None,
) -> xr.Dataset:
    r"""The states that measured outputs speak for, before and after each output is read.

    :math:`\hat x_{k|k} = \hat x_k + M_k e_k` and :math:`\hat x_{k+1} = A_k \hat x_k + B_k u_k + L_k
    e_k` with the innovation :math:`e_k = y_k - C_k \hat x_k - D_k u_k`.

    Parameters
    ----------
    system
        A system; extra leading dims are batch dims.
    gains
        ``L`` and ``M`` of `lqe`.
    y
        Measured outputs (depth, output).
    u
        Known inputs (layer, input); zero by default.
    x0
        Expected initial state (state); zero by default.

    Returns
    -------
    xr.Dataset
        ``x_predicted``, ``x_filtered`` (depth, state), ``innovation`` (depth, output).
        python-control: `create_estimator_iosystem`; MATLAB: `kalman`, then `lsim`.

    Raises
    ------
    ValueError
        If an argument has the wrong size or labels, or is not finite.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.constant([[1.0]], [[0.0]], [[1.0]], horizon=3)  # a constant, read four times
    >>> gains = ltv.lqe(s, [[0.0]], [[1.0]], P0=[[1e6]])
    >>> seen = ltv.kalman_filter(s, gains, [[1.0], [2.0], [3.0], [6.0]])
    >>> seen.x_filtered.values.ravel().round(3)  # the means so far
    array([1. , 1.5, 2. , 3. ])
    """
    check(system)
    if not isinstance(gains, xr.Dataset) or not {"L", "M"} <= set(gains):
        got = sorted(map(str, gains)) if isinstance(gains, xr.Dataset) else type(gains).__name__
        raise ValueError(f"`gains` must hold L and M; got {got}. Make them with `ltv.lqe`.")
    sizes = dict(system.sizes)
    dims = {
        "gains.L": ("layer", "state_next", "output"),
        "gains.M": ("depth", "state", "output"),
        "y": ("depth", "output"),
        "u": ("layer", "input"),
    }
    u = np.zeros((sizes["layer"], sizes["input"])) if u is None else u
    values = dict(zip(dims, (gains["L"], gains["M"], y, u), strict=True))
    given = {
        k: aligned(as_named(v, k, {d: sizes[d] for d in dims[k]}), k, system).transpose(
            ..., *dims[k]
        )
        for k, v in values.items()
    }
    given["x0"] = as_state(system, np.zeros(sizes["state"]) if x0 is None else x0, "x0", 0)
    found = over_depth(
        _filtered,
        system,
        "ABCD",
        [["depth", "state"], ["depth", "state"], ["depth", "output"]],
        *beside_each_other(given),
        extra_dims=[*map(list, dims.values()), ["state"]],
    )
    names = ("x_predicted", "x_filtered", "innovation")
    return with_labels_of(xr.Dataset(dict(zip(names, found, strict=True))), system)


def _filtered(A, B, C, D, L, M, y, u, x0):
    x, predicted, filtered, innovations = x0[..., None], [], [], []
    for k, read in enumerate(C):
        v = u[..., min(k, len(A) - 1), :, None]
        error = y[..., k, :, None] - read @ x - D[k] @ v  # D is zero at the last depth
        predicted.append(x)
        filtered.append(x + M[..., k, :, :] @ error)
        innovations.append(error)
        if k < len(A):
            x = A[k] @ x + B[k] @ v + L[..., k, :, :] @ error
    return tuple(
        np.stack(np.broadcast_arrays(*parts), axis=-3)[..., 0]
        for parts in (predicted, filtered, innovations)
    )
