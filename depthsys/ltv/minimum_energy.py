"""The input of least energy that brings the last depth to a target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.labels import (
    aligned,
    beside_each_other,
    in_order_of,
    positions_of,
    with_labels_of,
)
from depthsys.ltv.least_norm import (
    LeastNorm,
    least_norm,
    left_to_reach,
    overflowing,
    rank_in_words,
)
from depthsys.ltv.matrix_free import (
    MatrixFree,
    labels,
    over_depth,
    state_size,
    state_sizes,
)
from depthsys.ltv.response import as_state
from depthsys.ltv.rounding import YES
from depthsys.ltv.system import as_named, plain
from depthsys.ltv.terminal_gains import known_gains

MET = 1e-6  # relative distance below which a target counts as met
Positions = int | str | Sequence[int] | Sequence[str]


def minimum_energy(
    system: xr.Dataset | MatrixFree,
    target: ArrayLike | xr.DataArray,
    *,
    x0: ArrayLike | xr.DataArray | None = None,
    outputs: Positions | None = None,
    hold: Positions = (),
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
        Wanted y_L: a number (one output) or (output), in the unit of the output, one value per
        steered output. A DataArray with the dim ``state`` asks for that whole state x_L instead.
    x0
        Initial state (state); zero by default, and then the target is the wanted shift.
    outputs
        The outputs to steer, positions or labels; by default all that are not held.
    hold
        Outputs that must end where they would end without input. Outputs neither steered nor
        held may end anywhere.
    weights
        Positive cost per layer (layer) or per input (layer, input); 1 by default.
    rtol
        Ranks and reachability are decided with each row of G scaled to unit size, so that they do
        not depend on units of outputs: singular values below ``rtol`` times the largest count as
        zero, and a relative residual above ``rtol`` as unreachable. Between 0 and 1; written
        into attrs.
    allow_residual
        Return the least-squares schedule when the target cannot be reached.

    Returns
    -------
    xr.Dataset
        ``u`` (layer, input), ``energy`` (weighted, input^2), ``predicted`` and ``target``
        (output, of those steered and held; or state), ``residual`` (relative distance of the
        target from what can be reached, in its own units; rounding of G u is not in it),
        ``multipliers`` (like the target): the derivative of the energy with respect to it,
        ``gain_rank`` of G; ``resolution``, what rounding explains in a singular value of G with
        its rows scaled to unit size, and ``gain_rank_is_certified``, False where one is nearer to
        ``rtol`` than that. attrs: ``certified``, "yes", or "not certified" and why: where the rank
        is not, or where u, run through the layers, ends elsewhere, since rounding of u grows with
        the modes that grow.

    Raises
    ------
    ValueError
        If ``target``, ``x0``, ``outputs``, ``hold`` or ``weights`` is not finite, not positive,
        not there, of the wrong size or with other labels than the system.
    numpy.linalg.LinAlgError
        If the target is not reachable and ``allow_residual`` is False, or the energy is beyond the
        largest number.

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
    if not 0 < rtol < 1:
        raise ValueError(f"`rtol` must be between 0 and 1; got {rtol}. Leave it at 1e-10.")
    start = None if x0 is None else as_state(system, x0, "x0", 0)
    if isinstance(target, xr.DataArray) and "state" in target.dims:
        if outputs is not None or np.size(hold):
            raise ValueError(
                "`outputs` and `hold` must be left out when the target is a whole state; got "
                f"{outputs} and {hold}. Give a target with the dim 'output' to steer outputs."
            )
        goal, rows, size = "state", None, int(state_sizes(system)[-1].max())
        gain, floor, lost = known_gains(system, goal)
        wanted, alone = _whole_state(system, target, start, gain.sizes[goal])
    else:
        goal = "output"
        gain, floor, lost = known_gains(system, goal)
        rows, wanted, alone = _outputs(system, target, outputs, hold, start)
        gain, floor, lost = (x.isel(output=rows) for x in (gain, floor, lost))
        size = len(rows)
    cost = _weights(weights, system, gain)
    bare = [a.drop_vars(goal, errors="ignore") for a in (gain, floor, lost)]
    wanted, alone, cost = beside_each_other({"target": wanted, "x0": alone, "weights": cost})
    gap = xr.apply_ufunc(left_to_reach, wanted, alone, kwargs={"n_states": state_size(system)})
    found = xr.apply_ufunc(
        _least_energy,
        bare[0],
        gap,
        cost,
        *bare[1:],
        kwargs={"rtol": rtol},
        input_core_dims=[["layer", goal, "input"], [goal], ["layer", "input"], [goal], [goal]],
        output_core_dims=[["layer", "input"], [goal], [goal], [], [goal], [], [], []],
    )
    u, shift, reached, miss, multipliers, rank, resolution, certain = found
    if not allow_residual and not bool((miss <= rtol).all()):
        worst = miss.argmax(...) if miss.ndim else {}
        raise np.linalg.LinAlgError(
            f"`target` must be reachable; got relative residual {float(miss.max()):.1e} at depth "
            f"{labels(system, 'depth')[-1]} (rank {int(rank.isel(worst))} of {size} {goal}s, rtol "
            f"{rtol:.0e}). Add input layers or pass `allow_residual=True`."
        )
    with np.errstate(over="ignore"):
        energy = (cost * u**2).sum(["layer", "input"])
    if not np.isfinite(energy.values).all():
        raise np.linalg.LinAlgError(overflowing("energy", u.values))
    plan = xr.Dataset(
        {
            "u": u,
            "energy": energy,
            "predicted": shift + alone,
            "residual": _residual(reached, gap, goal),
            "target": wanted,
            "multipliers": multipliers,
            "gain_rank": rank,
            "resolution": resolution,
            "gain_rank_is_certified": certain,
        },
        attrs={"method": "minimum_energy", "rtol": rtol},
    )
    said = _in_words(system, start, plan, goal, rows)
    plan.attrs["certified"] = rank_in_words("gain_rank", certain, resolution, rtol, said)
    return with_labels_of(plan, system) if rows is None else _named_rows(plan, system, rows)


def _in_words(
    system: xr.Dataset | MatrixFree,
    start: xr.DataArray | None,
    plan: xr.Dataset,
    goal: str,
    rows: list[int] | None,
) -> str:
    """Whether the input, run through the layers, ends where the plan says."""
    rest = xr.DataArray(np.zeros(state_size(system)), dims=["state"])
    u = plan["u"].drop_vars(["layer", "input"], errors="ignore")

    def core(A, B, C, u, x0):
        x = x0[..., None]
        parts = x, x
        for k, a in enumerate(A):
            here = x[..., : C[k].shape[-1], :]
            v = u[..., k, :, None]
            parts = a @ here, B[k] @ v
            x = parts[0] + parts[1]
        if goal == "state":
            return x[..., 0], (np.abs(parts[0]) + np.abs(parts[1]))[..., 0]
        return (C[-1] @ x)[..., 0], (np.abs(C[-1]) @ (np.abs(parts[0]) + np.abs(parts[1])))[..., 0]

    ends = over_depth(
        core,
        system,
        "ABC",
        [[goal], [goal]],
        u,
        rest if start is None else start,
        extra_dims=[["layer", "input"], ["state"]],
    )
    part = slice(plan.sizes["state"]) if rows is None else rows
    run, terms = (end.drop_vars(goal, errors="ignore").isel({goal: part}) for end in ends)
    bare = plan.drop_vars(goal, errors="ignore")
    said = bare["target"].where(bare["residual"] <= plan.attrs["rtol"], bare["predicted"])
    size = (abs(said) + terms).max(goal)
    off = abs(run - said).max(goal) / size.where(size > 0, 1.0)
    if bool((off <= MET).all()):
        return YES
    return (
        "not certified: rounding on the way takes the end away by "
        f"{float(off.max()):.1e} of its size"
    )


def _whole_state(
    system: xr.Dataset | MatrixFree, target: xr.DataArray, start: xr.DataArray | None, n: int
) -> tuple[xr.DataArray, xr.DataArray]:
    """Where the state should end, and where it ends alone."""
    wanted = as_state(system, target, "target", -1).isel(state=slice(n))
    alone = 0.0 * wanted if start is None else _alone(system, start, "state")
    return xr.broadcast(wanted, alone.isel(state=slice(n)))


def _residual(reached: xr.DataArray, wanted: xr.DataArray, goal: str) -> xr.DataArray:
    largest = abs(wanted).max(goal)  # squares of tiny or huge targets would vanish or overflow
    scale = largest.where(largest > 0, 1.0)
    norm = ((wanted / scale) ** 2).sum(goal) ** 0.5
    miss = (((reached - wanted) / scale) ** 2).sum(goal) ** 0.5
    return (miss / norm).where(norm > 0, miss)


def _alone(system: xr.Dataset | MatrixFree, start: xr.DataArray, goal: str) -> xr.DataArray:
    """Where the state or the outputs end from an initial state without input."""

    def core(A, C, x0):
        x = x0[..., None]
        for k, a in enumerate(A):
            x = a @ x[..., : C[k].shape[-1], :]
        if goal == "state":
            return x[..., 0]
        return (C[-1] @ x)[..., 0]

    return over_depth(core, system, "AC", [[goal]], start, extra_dims=[["state"]])


def _outputs(
    system: xr.Dataset | MatrixFree, target, outputs, hold, start: xr.DataArray | None
) -> tuple[list[int], xr.DataArray, xr.DataArray]:
    """The outputs to steer and to hold, where they should end, and where they end alone."""
    n = np.shape(system.C[0])[0] if isinstance(system, MatrixFree) else system.sizes["output"]
    held = _positions(hold, "hold", n, system)
    rest = [i for i in range(n) if i not in held]
    steered = rest if outputs is None else _positions(outputs, "outputs", n, system)
    if not steered or set(steered) & set(held):
        raise ValueError(
            f"`outputs` must name at least one output that is not held; got {steered} beside "
            f"hold={held}. Steer some and hold others."
        )
    if not isinstance(target, xr.DataArray):
        target = np.atleast_1d(plain(target, "target"))
    target = as_named(target, "target", {"output": len(steered)})
    part = None if isinstance(system, MatrixFree) else system.isel(output=steered)
    if part is not None and ("output" in part.coords or "output_name" in part.coords):
        target = aligned(target, "target", part)
    else:
        target = in_order_of(target, "target", "output", np.array(steered))
        target = aligned(target, "target", system)
    rows = steered + held
    if start is None:
        alone = xr.DataArray(np.zeros(len(rows)), dims=["output"])
    else:
        alone = _alone(system, start, "output").drop_vars("output", errors="ignore")
        alone = alone.isel(output=rows)
    target, alone = beside_each_other({"target": target, "x0": alone})
    stay = alone.isel(output=slice(len(steered), None))
    wanted = xr.concat(xr.broadcast(target, stay, exclude=["output"]), dim="output")
    return rows, wanted, alone


def _named_rows(plan: xr.Dataset, system: xr.Dataset | MatrixFree, rows: list[int]) -> xr.Dataset:
    """Outputs by their labels in the system, or by their positions where it has none."""
    if isinstance(system, MatrixFree):
        return with_labels_of(plan, system).assign_coords(output=rows)
    plan = with_labels_of(plan, system.isel(output=rows))
    return plan if "output" in plan.coords else plan.assign_coords(output=rows)


def _positions(
    value: Positions, name: str, n_outputs: int, system: xr.Dataset | MatrixFree
) -> list[int]:
    positions = np.atleast_1d(np.asarray(positions_of(value, name, system, "output")))
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


def _weights(
    weights: ArrayLike | xr.DataArray | None,
    system: xr.Dataset | MatrixFree,
    gain: xr.DataArray,
) -> xr.DataArray:
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
    return aligned(weights, "weights", system)


def _least_energy(gain, target, cost, floor, lost, *, rtol):
    # z = sqrt(cost) u turns the weighted problem into a plain least-norm one
    scale = 1.0 / np.sqrt(cost)
    n_layers, n_rows, n_inputs = gain.shape[-3:]
    G = np.moveaxis(gain * scale[..., None, :], -3, -2)
    G = G.reshape(*G.shape[:-3], n_rows, n_layers * n_inputs)
    # the largest weight says by how much a row of rounding may have grown
    most = scale.max((-2, -1))[..., None]
    found: LeastNorm = least_norm(G, target, rtol, floor * most, lost * most)
    shift = (G @ found.z[..., None])[..., 0]
    u = found.z.reshape(*found.z.shape[:-1], n_layers, n_inputs) * scale
    batch = found.miss.shape
    multipliers, reached = (
        np.broadcast_to(x, (*batch, n_rows)).copy() for x in (found.multipliers, found.reached)
    )
    known = found.rank, found.resolution, found.certain
    return u, shift, reached, found.miss, multipliers, *known
