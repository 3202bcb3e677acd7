"""Open-loop and feedback control of a linear time-varying system."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.gramians import used_values
from depthsys.ltv.matrix_free import MatrixFree, beside, labels, over_depth, state_sizes
from depthsys.ltv.response import as_state, gains
from depthsys.ltv.system import as_named, same_labels


def minimum_energy(
    system: xr.Dataset | MatrixFree,
    target: ArrayLike | xr.DataArray,
    *,
    outputs: int | Sequence[int] | None = None,
    hold: int | Sequence[int] = (),
    weights: ArrayLike | xr.DataArray | None = None,
    rtol: float = 1e-10,
    allow_residual: bool = False,
) -> xr.Dataset:
    r"""The input of least energy that brings the last depth to ``target``.

    Minimises :math:`\sum_l u_l^\top \mathrm{diag}(w_l) u_l` subject to :math:`G u = \Delta y`,
    with G the maps of all layers to the last depth side by side. With one output and unit weights
    :math:`u^* = h\,\Delta y / \|h\|^2`.

    Parameters
    ----------
    system
        A system; extra leading dims are batch dims.
    target
        Wanted shift of y_L: a number (one output) or (output), in the unit of the output, one
        value per steered output. A DataArray with the dim ``state`` asks for that whole state x_L
        instead. From x_0 = 0: to start elsewhere, subtract what x_0 does by itself,
        ``simulate(system, x0=x0).y[-1]``.
    outputs
        Positions of the outputs to steer; by default all that are not held.
    hold
        Positions of outputs that must end where they would end without input. Outputs neither
        steered nor held may end anywhere.
    weights
        Positive cost per layer (layer) or per input (layer, input); 1 by default.
    rtol
        Singular values of G below ``rtol`` times the largest count as zero, and a relative
        residual above ``rtol`` as unreachable. Between 0 and 1; written into attrs.
    allow_residual
        Return the least-squares schedule when the target cannot be reached.

    Returns
    -------
    xr.Dataset
        ``u`` (layer, input), ``energy`` (weighted, input^2), ``predicted`` and ``target``
        (output, of those steered and held; or state), ``residual`` (relative distance of the
        target from what can be reached; rounding of G u is not in it), ``gain_rank`` of G.

    Raises
    ------
    ValueError
        If ``target``, ``outputs``, ``hold`` or ``weights`` is not finite, not positive, not there
        or of the wrong size.
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
    if isinstance(target, xr.DataArray) and "state" in target.dims:
        if outputs is not None or np.size(hold):
            raise ValueError(
                "`outputs` and `hold` must be left out when the target is a whole state; got "
                f"{outputs} and {hold}. Give a target with the dim 'output' to steer outputs."
            )
        gain, goal, size = state_gains(system), "state", int(state_sizes(system)[-1].max())
        wanted = as_state(system, target, "target", -1).drop_vars(goal, errors="ignore")
        wanted = wanted.isel(state=slice(gain.sizes[goal]))
    else:
        gain, goal = gains(system), "output"
        gain, wanted = _outputs(gain, target, outputs, hold)
        size = gain.sizes[goal]
    if not 0 < rtol < 1:
        raise ValueError(f"`rtol` must be between 0 and 1; got {rtol}. Leave it at 1e-10.")
    cost = _weights(weights, gain)
    u, predicted, reached, rank = xr.apply_ufunc(
        _least_energy,
        gain,
        wanted,
        cost,
        kwargs={"rtol": rtol},
        input_core_dims=[["layer", goal, "input"], [goal], ["layer", "input"]],
        output_core_dims=[["layer", "input"], [goal], [goal], []],
    )
    largest = abs(wanted).max(goal)  # squares of tiny or huge targets would vanish or overflow
    scale = largest.where(largest > 0, 1.0)
    norm = np.sqrt(((wanted / scale) ** 2).sum(goal))
    miss = np.sqrt((((reached - wanted) / scale) ** 2).sum(goal))
    residual = (miss / norm).where(norm > 0, miss)
    if not allow_residual and not bool((residual <= rtol).all()):
        worst = residual.argmax(...) if residual.ndim else {}
        depth = int(gain["layer"].values[-1]) + 1
        raise np.linalg.LinAlgError(
            f"`target` must be reachable; got relative residual {float(residual.max()):.1e} at "
            f"depth {depth} (rank {int(rank.isel(worst))} of {size} {goal}s, rtol "
            f"{rtol:.0e}). Add input layers or pass `allow_residual=True`."
        )
    return xr.Dataset(
        {
            "u": u,
            "energy": (cost * u**2).sum(["layer", "input"]),
            "predicted": predicted,
            "residual": residual,
            "target": wanted,
            "gain_rank": rank,
        },
        coords={"layer": gain["layer"]},
        attrs={"method": "minimum_energy", "rtol": rtol},
    )


def state_gains(system: xr.Dataset | MatrixFree) -> xr.DataArray:
    """``gain`` (layer, state, input): the shift of x_L per unit input at each layer."""

    def core(A, B):
        columns = B[0]
        for layer in range(1, len(A)):
            columns = beside(A[layer] @ columns, B[layer])
        blocks = columns.reshape(*columns.shape[:-1], len(A), B[0].shape[-1])
        return np.moveaxis(blocks, -2, -3)

    gain = over_depth(core, system, "AB", [["layer", "state_next", "input"]])
    return gain.rename("gain", state_next="state").assign_coords(layer=labels(system, "layer"))


def _outputs(gain: xr.DataArray, target, outputs, hold) -> tuple[xr.DataArray, xr.DataArray]:
    """The rows of the gains to steer and to hold, and the shift wanted of each."""
    n = gain.sizes["output"]
    held = _positions(hold, "hold", n)
    rest = [i for i in range(n) if i not in held]
    steered = rest if outputs is None else _positions(outputs, "outputs", n)
    if not steered or set(steered) & set(held):
        raise ValueError(
            f"`outputs` must name at least one output that is not held; got {steered} beside "
            f"hold={held}. Steer some and hold others."
        )
    if not isinstance(target, xr.DataArray):
        target = np.atleast_1d(np.asarray(target))
    target = as_named(target, "target", {"output": len(steered)})
    target = target.drop_vars("output", errors="ignore")
    zeros = xr.zeros_like(target.isel(output=[0] * len(held)))
    wanted = xr.concat([target, zeros], dim="output") if held else target
    rows = steered + held
    return gain.isel(output=rows).assign_coords(output=rows), wanted.assign_coords(output=rows)


def _positions(value: int | Sequence[int], name: str, n_outputs: int) -> list[int]:
    positions = np.atleast_1d(np.asarray(value))
    if positions.size == 0:
        return []
    whole = positions.ndim == 1 and positions.dtype.kind in "iu"
    if not whole or (positions < 0).any() or (positions >= n_outputs).any():
        raise ValueError(
            f"`{name}` must be positions of outputs, in 0..{n_outputs - 1}; got {value!r}."
            " Count them in the C of the system."
        )
    if len(set(positions.tolist())) < len(positions):
        raise ValueError(f"`{name}` must name each output once; got {value!r}. Drop the copies.")
    return [int(i) for i in positions]


def _weights(weights: ArrayLike | xr.DataArray | None, gain: xr.DataArray) -> xr.DataArray:
    sizes = {"layer": gain.sizes["layer"], "input": gain.sizes["input"]}
    if weights is None:
        weights = np.ones(sizes["layer"])
    weights = as_named(weights, "weights", sizes, {"layer": sizes["layer"]})
    if not bool((weights > 0).all()):
        raise ValueError(
            f"`weights` must be positive; got {float(weights.min())}. Leave a layer out by a large "
            "weight."
        )
    if "input" not in weights.dims:
        weights = weights.expand_dims(input=sizes["input"], axis=-1)
    return same_labels(weights, gain, "layer", "weights").drop_vars("input", errors="ignore")


def _least_energy(gain, target, cost, *, rtol):
    # z = sqrt(cost) u turns the weighted problem into a plain least-norm one
    scale = 1.0 / np.sqrt(cost)
    n_layers, n_rows, n_inputs = gain.shape[-3:]
    G = np.moveaxis(gain * scale[..., None, :], -3, -2)
    G = G.reshape(*G.shape[:-3], n_rows, n_layers * n_inputs)
    U, s, Zt = np.linalg.svd(G, full_matrices=False)
    used = used_values(s, rtol)
    shares = (np.swapaxes(U, -1, -2) @ target[..., None])[..., 0]
    z = np.swapaxes(Zt, -1, -2) @ (np.where(used, shares, 0.0) / np.where(used, s, 1.0))[..., None]
    predicted = (G @ z)[..., 0]
    reached = (U @ np.where(used, shares, 0.0)[..., None])[..., 0]
    u = z[..., 0].reshape(*z.shape[:-2], n_layers, n_inputs) * scale
    return u, predicted, reached, np.broadcast_to(used.sum(-1), predicted.shape[:-1]).copy()
