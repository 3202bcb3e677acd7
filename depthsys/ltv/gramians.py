"""Square-root Gramians and Hankel singular values of a linear time-varying system."""

import numpy as np
import xarray as xr

from depthsys.ltv.system import check

_A = ["layer", "state_next", "state"]
_B = ["layer", "state_next", "input"]
_C = ["depth", "output", "state"]


def reachability_factors(system: xr.Dataset) -> xr.DataArray:
    r"""Square-root reachability Gramian at every depth.

    Returns :math:`R_k` with :math:`P_k = R_k R_k^\top`, where :math:`P_0 = 0` and
    :math:`P_{k+1} = A_k P_k A_k^\top + B_k B_k^\top`.

    Parameters
    ----------
    system
        Uses ``A`` (layer, state_next, state) and ``B`` (layer, state_next, input).

    Returns
    -------
    xr.DataArray
        ``R`` (depth, state, column), unit state/input; columns beyond the rank are zero.

    Raises
    ------
    ValueError
        If the system is not valid (see `check`).

    Notes
    -----
    One QR of ``[A_k R_k, B_k]`` per layer, once there are more columns than states. P is never
    formed: squaring loses the small Hankel singular values.

    References
    ----------
    .. [1] Sandberg and Rantzer (2004), doi:10.1109/TAC.2003.822862.
    """
    check(system)
    factor = xr.apply_ufunc(
        _reachability,
        system["A"],
        system["B"],
        input_core_dims=[_A, _B],
        output_core_dims=[["depth", "state", "column"]],
    )
    return factor.rename("R").assign_coords(depth=system["depth"])


def observability_factors(system: xr.Dataset) -> xr.DataArray:
    r"""Square-root observability Gramian at every depth.

    Returns :math:`S_k` with :math:`Q_k = S_k S_k^\top`, where :math:`Q_L = C_L^\top C_L` and
    :math:`Q_k = A_k^\top Q_{k+1} A_k + C_k^\top C_k`.

    Parameters
    ----------
    system
        Uses ``A`` (layer, state_next, state) and ``C`` (depth, output, state).

    Returns
    -------
    xr.DataArray
        ``S`` (depth, state, column), unit output/state; columns beyond the rank are zero.

    References
    ----------
    .. [1] Sandberg and Rantzer (2004), doi:10.1109/TAC.2003.822862.
    """
    check(system)
    factor = xr.apply_ufunc(
        _observability,
        system["A"],
        system["C"],
        input_core_dims=[_A, _C],
        output_core_dims=[["depth", "state", "column"]],
    )
    return factor.rename("S").assign_coords(depth=system["depth"])


def _reachability(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    n_layers, size, n_inputs = A.shape[-3], A.shape[-1], B.shape[-1]
    batch = np.broadcast_shapes(A.shape[:-3], B.shape[:-3])
    width = min(size, n_layers * n_inputs)
    factors = np.zeros((*batch, n_layers + 1, size, width))
    factor = np.zeros((*batch, size, 0))
    for layer in range(n_layers):
        block = np.broadcast_to(B[..., layer, :, :], (*batch, size, n_inputs))
        factor = _compressed(np.concatenate([A[..., layer, :, :] @ factor, block], axis=-1))
        factors[..., layer + 1, :, : factor.shape[-1]] = factor
    return factors


def _observability(A: np.ndarray, C: np.ndarray) -> np.ndarray:
    n_layers, size, n_outputs = A.shape[-3], A.shape[-1], C.shape[-2]
    batch = np.broadcast_shapes(A.shape[:-3], C.shape[:-3])
    width = min(size, (n_layers + 1) * n_outputs)
    factors = np.zeros((*batch, n_layers + 1, size, width))
    factor = np.zeros((*batch, size, 0))
    for depth in reversed(range(n_layers + 1)):
        if depth < n_layers:
            factor = np.swapaxes(A[..., depth, :, :], -1, -2) @ factor
        block = np.swapaxes(C[..., depth, :, :], -1, -2)
        block = np.broadcast_to(block, (*batch, size, n_outputs))
        factor = _compressed(np.concatenate([factor, block], axis=-1))
        factors[..., depth, :, : factor.shape[-1]] = factor
    return factors


def _compressed(factor: np.ndarray) -> np.ndarray:
    """A square factor with the same product with its transpose, if there are too many columns."""
    if factor.shape[-1] <= factor.shape[-2]:
        return factor
    return np.swapaxes(np.linalg.qr(np.swapaxes(factor, -1, -2), mode="r"), -1, -2)


def reachability_gramian(system: xr.Dataset) -> xr.DataArray:
    """Reachability Gramian ``P`` (depth, state, state_2), unit (state/input)^2.

    For looking at; computations use `reachability_factors`, which lose no small values.
    """
    R = reachability_factors(system)
    return xr.dot(R, R.rename(state="state_2"), dim="column").rename("P")


def observability_gramian(system: xr.Dataset) -> xr.DataArray:
    """Observability Gramian ``Q`` (depth, state, state_2), unit (output/state)^2."""
    S = observability_factors(system)
    return xr.dot(S, S.rename(state="state_2"), dim="column").rename("Q")


def hankel_singular_values(system: xr.Dataset) -> xr.DataArray:
    r"""Hankel singular values at every depth, largest first.

    :math:`\sigma_i(k)` are the singular values of :math:`S_k^\top R_k`, that is of the Hankel
    block that maps the inputs before depth k to the outputs from depth k on.

    Returns
    -------
    xr.DataArray
        ``hankel_singular_values`` (depth, index), unit output/input. MATLAB: `hsvd`, for LTI.

    References
    ----------
    .. [1] Sandberg and Rantzer (2004), doi:10.1109/TAC.2003.822862.
    """
    values = xr.apply_ufunc(
        lambda R, S: np.linalg.svd(np.swapaxes(S, -1, -2) @ R, compute_uv=False),
        reachability_factors(system),
        observability_factors(system),
        input_core_dims=[["state", "column"], ["state", "column"]],
        output_core_dims=[["index"]],
        exclude_dims={"column"},
    )
    return values.rename("hankel_singular_values")
