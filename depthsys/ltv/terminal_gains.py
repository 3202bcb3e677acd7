"""Gains from every layer to the last depth, with what rounding leaves of them."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.sparse.linalg import LinearOperator

from depthsys.ltv.matrix_free import MatrixFree, over_depth, propagated, transposed
from depthsys.ltv.rounding import EPS, SAMPLES, TINY, lengths

System = xr.Dataset | MatrixFree


def state_gains(system: System) -> xr.DataArray:
    """``gain`` (layer, state, input): the shift of x_L per unit input at each layer."""

    def core(A, B):
        columns = B[0]
        for layer in range(1, len(A)):
            columns = propagated(A[layer], columns, B[layer])
        return _by_layer(columns, len(A))

    gain = over_depth(core, system, "AB", [["layer", "state_next", "input"]])
    return gain.rename("gain", state_next="state")


def _by_layer(columns: np.ndarray, count: int) -> np.ndarray:
    blocks = columns.reshape(*columns.shape[:-1], count, -1)
    return np.moveaxis(blocks, -2, -3)


def known_gains(system: System, goal: str) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """The gains (layer, goal, input) of the outputs or states; two sizes of rows (goal).

    First the size below which a row whose products all cancel is rounding of the last products;
    then what rounding on all the way leaves in the row, estimated by carrying random errors along.
    The errors of operators are not carried: that would take more products than the gains do.
    """
    core = _states if goal == "state" else _outputs
    row = "state_next" if goal == "state" else "output"
    letters = "AB" if goal == "state" else "ABC"
    found = over_depth(core, system, letters, [["layer", row, "input"], [row], [row]])
    gain, floor, lost = (x.rename(state_next="state") if goal == "state" else x for x in found)
    return gain.rename("gain"), floor, lost


def _states(A, B) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    columns, noise = B[0], np.zeros((*B[0].shape[:-1], SAMPLES))
    rng = np.random.default_rng(0)
    size = EPS * max(b.shape[-2] for b in B)
    shown = 0.0
    for layer in range(1, len(A)):
        new = propagated(A[layer], columns, B[layer])
        if isinstance(A[layer], LinearOperator):
            shown = np.maximum(shown, lengths(new).max(-1))
        else:
            made = (np.abs(A[layer]) @ lengths(columns)[..., None])[..., 0] + lengths(B[layer])
            signs = rng.standard_normal((made.shape[-1], SAMPLES))
            noise = A[layer] @ noise + size * made[..., None] * signs
        columns = new
    row = lengths(columns)
    floor = np.broadcast_to(16 * size * row.max(-1, keepdims=True), row.shape).copy()
    lost = 3 * lengths(noise) / np.sqrt(SAMPLES) if np.ndim(noise) else 0.0
    if isinstance(A[0], LinearOperator):
        lost = np.zeros(row.shape)
    return _by_layer(columns, len(A)), floor, lost + size * len(A) * np.asarray(shown)[..., None]


def _outputs(A, B, C) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    column, rows, sizes, noises = transposed(C[-1]), [], [], []
    rng = np.random.default_rng(0)
    p, operators = column.shape[-1], isinstance(A[0], LinearOperator)
    size = EPS * B[0].shape[-2]
    noise, vanished = None, np.zeros(column.shape[-1])
    for layer in reversed(range(len(A))):
        row, b = transposed(column), B[layer]
        rows.append(row @ b)
        sizes.append(lengths(np.abs(row) @ np.abs(b)))
        if not sizes[-1].all():
            met = ((row != 0).astype(float) @ (b != 0).astype(float)).any(-1)
            vanished = vanished + TINY * (met & (sizes[-1] == 0))
        if noise is not None:
            seen = (transposed(noise) @ b).reshape(*noise.shape[:-2], p, -1)
            noises.append(lengths(seen))
        if not layer:
            break
        if not operators:
            a = transposed(A[layer])
            made = size * (np.abs(a) @ np.abs(column))
            signs = rng.standard_normal((*made.shape[-2:], SAMPLES))
            new = made[..., None] * signs
            new = new.reshape(*new.shape[:-2], -1)
            noise = new if noise is None else a @ noise + new
        column = transposed(A[layer]) @ column
    gain = np.stack(np.broadcast_arrays(*rows[::-1]), axis=-3)
    terms = np.stack(np.broadcast_arrays(*sizes), axis=-1)
    lost = size * lengths(terms)
    if noises:
        carried = lengths(np.stack(np.broadcast_arrays(*noises), axis=-1))
        lost = lost + 3 * carried / np.sqrt(SAMPLES)
    return gain, 16 * size * terms.max(-1), lost + vanished
