"""Open-loop control of a linear time-varying system."""

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.system import gains


def minimum_energy(
    system: xr.Dataset,
    target: ArrayLike | xr.DataArray,
    *,
    weights: ArrayLike | xr.DataArray | None = None,
    rtol: float = 1e-10,
    allow_residual: bool = False,
) -> xr.Dataset:
    r"""The input of least energy that shifts the terminal output by ``target``.

    Minimises :math:`\sum_l w_l \|u_l\|^2` subject to :math:`G u = \Delta y`, with G the terminal
    gains of all layers side by side. With one output and unit weights
    :math:`u^* = h\,\Delta y / \|h\|^2`.

    Parameters
    ----------
    system
        A system; extra leading dims are batch dims.
    target
        Wanted shift of y_L: a number (one output) or (output), in the unit of the output.
    weights
        Positive cost per layer (layer); 1 by default.
    rtol
        Singular values of G below ``rtol`` times the largest count as zero, and a relative
        residual above ``rtol`` as unreachable. Written into attrs.
    allow_residual
        Return the least-squares schedule when the target cannot be reached.

    Returns
    -------
    xr.Dataset
        ``u`` (layer, input), ``energy`` (weighted, input^2), ``predicted`` (output),
        ``residual`` (relative norm of predicted - target).

    Raises
    ------
    ValueError
        If ``target`` or ``weights`` is not finite, not positive or of the wrong size.
    numpy.linalg.LinAlgError
        If the target is not reachable and ``allow_residual`` is False.

    References
    ----------
    .. [1] Kailath, Linear Systems (1980), section 9.2: minimum-energy control.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.system(A=[[[0.5]], [[0.5]]], B=[[[1.0]], [[1.0]]], C=[[[0.0]], [[0.0]], [[1.0]]])
    >>> plan = ltv.minimum_energy(s, target=1.0)
    >>> plan.u.values.ravel(), round(float(plan.energy), 6)
    (array([0.4, 0.8]), 0.8)
    """
    gain = gains(system)
    n_layers, n_outputs = gain.sizes["layer"], gain.sizes["output"]
    wanted = _target(target, n_outputs)
    if weights is None:
        weights = np.ones(n_layers)
    cost = xr.DataArray(np.asarray(weights, dtype=np.float64), dims=["layer"])
    if cost.sizes["layer"] != n_layers or not (np.isfinite(cost) & (cost > 0)).all():
        raise ValueError(
            f"`weights` must be {n_layers} positive finite numbers, one per layer; "
            f"got {cost.values}. Leave a layer out by a large weight."
        )
    u, predicted = xr.apply_ufunc(
        _least_energy,
        gain,
        wanted,
        cost,
        kwargs={"rtol": rtol},
        input_core_dims=[["layer", "output", "input"], ["output"], ["layer"]],
        output_core_dims=[["layer", "input"], ["output"]],
    )
    norm = np.sqrt((wanted**2).sum("output"))
    miss = np.sqrt(((predicted - wanted) ** 2).sum("output"))
    residual = (miss / norm).where(norm > 0, miss)
    if not allow_residual and bool((residual > rtol).any()):
        raise np.linalg.LinAlgError(
            f"`target` must be reachable; got relative residual {float(residual.max()):.1e} at "
            f"depth {n_layers} ({n_outputs} outputs, rtol {rtol:.0e}). Add input layers or pass "
            "`allow_residual=True`."
        )
    return xr.Dataset(
        {
            "u": u,
            "energy": (cost * u**2).sum(["layer", "input"]),
            "predicted": predicted,
            "residual": residual,
            "target": wanted,
        },
        coords={"layer": gain["layer"]},
        attrs={"method": "minimum_energy", "rtol": rtol},
    )


def _target(target: ArrayLike | xr.DataArray, n_outputs: int) -> xr.DataArray:
    if not isinstance(target, xr.DataArray):
        value = np.asarray(target, dtype=np.float64)
        target = xr.DataArray(np.atleast_1d(value), dims=["output"])
    if target.sizes.get("output") != n_outputs:
        raise ValueError(
            f"`target` must hold {n_outputs} value(s), one per output; got {dict(target.sizes)}. "
            "Name the dim 'output' if it is a DataArray."
        )
    if not np.isfinite(target).all():
        raise ValueError(f"`target` must be finite; got {target.values}. Give a number.")
    return target


def _least_energy(gain, target, cost, *, rtol):
    # z = sqrt(cost) u turns the weighted problem into a plain least-norm one
    scale = 1.0 / np.sqrt(cost)[:, None]
    n_layers, n_outputs, n_inputs = gain.shape[-3:]
    G = np.moveaxis(gain * scale[:, None, :], -3, -2)
    G = G.reshape(*gain.shape[:-3], n_outputs, n_layers * n_inputs)
    z = np.einsum("...kp,...p->...k", np.linalg.pinv(G, rcond=rtol), target)
    predicted = np.einsum("...pk,...k->...p", G, z)
    return z.reshape(*z.shape[:-1], n_layers, n_inputs) * scale, predicted
