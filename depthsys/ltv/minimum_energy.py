"""The input of least energy that brings the last depth to a target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.bounded import Limits, Task, least_push, side_by_side
from depthsys.ltv.few_layers import few_layers
from depthsys.ltv.goals import Aim, Positions, aim_of, named_rows
from depthsys.ltv.labels import aligned, beside_each_other, with_labels_of
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
from depthsys.ltv.plan import about_plan, chosen_energy, layer_weights
from depthsys.ltv.push_limits import DIMS, push_limits, pushing_layers
from depthsys.ltv.response import as_state
from depthsys.ltv.rounding import YES
from depthsys.ltv.system import as_named, whole_number

MET = 1e-6  # relative distance below which a target counts as met


def minimum_energy(
    system: xr.Dataset | MatrixFree,
    target: ArrayLike | xr.DataArray,
    *,
    x0: ArrayLike | xr.DataArray | None = None,
    outputs: Positions | None = None,
    hold: Positions = (),
    energy: str | None = None,
    weights: ArrayLike | xr.DataArray | None = None,
    layers: int | Sequence[int] | None = None,
    max_layers: int | None = None,
    max_relative_push: ArrayLike | xr.DataArray | None = None,
    lower: ArrayLike | xr.DataArray | None = None,
    upper: ArrayLike | xr.DataArray | None = None,
    rtol: float = 1e-10,
    allow_residual: bool = False,
) -> xr.Dataset:
    r"""The input of least energy that brings the last depth to ``target``.

    Minimises :math:`\sum_l u_l^\top \mathrm{diag}(w_l) u_l` subject to :math:`G u = \Delta y`,
    with G the maps of all layers to the last depth side by side, and to the bounds that are given.
    With one output and neither weights nor bounds :math:`u^* = h\,\Delta y / \|h\|^2`.

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
    energy
        "relative": :math:`w_l = 1 / \|x_l\|^2`, with the ``state_norm`` of the system, so that a
        push counts by how much it changes the state; "absolute": w = 1. By default relative where
        the system has ``state_norm`` (a language model), absolute elsewhere.
    weights
        Positive cost per layer (layer) or per input (layer, input), instead of ``energy``.
    layers
        Labels of the layers that may push; all by default.
    max_layers
        Push at most so many layers, the best ones: all sets of layers are tried where there are few
        (always up to 12 layers; of any number with one output and no bounds), otherwise they are
        found greedily, and ``optimality_gap`` says how far from the best that can be.
    max_relative_push
        Largest part of the state's norm that a push may have, :math:`|V_l u_l| \le \rho \|x_l\|`; a
        number or (layer). Needs ``state_norm``, and the directions ``v`` for several inputs.
    lower, upper
        Bounds on u in its unit: a number, (input) or (layer, input), infinite where there is none.
        Doing nothing must stay allowed.
    rtol
        Ranks and reachability are decided with each row of G scaled to unit size, so that they do
        not depend on units of outputs: singular values below ``rtol`` times the largest count as
        zero, and a relative residual above ``rtol`` as unreachable. Between 0 and 1; written
        into attrs.
    allow_residual
        Return the least-squares schedule when the target cannot be reached; within bounds, the
        one that goes as far towards it as they allow.

    Returns
    -------
    xr.Dataset
        ``u`` (layer, input), ``energy`` (weighted, input^2), ``predicted`` and ``target``
        (output, of those steered and held; or state), ``residual`` (relative distance of the
        target from what can be reached, in its own units; rounding of G u is not in it),
        ``multipliers`` (like the target): the derivative of the energy with respect to it,
        ``gain_rank`` of G; ``resolution``, what rounding explains in a singular value of G with
        its rows scaled to unit size, and ``gain_rank_is_certified``, False where one is nearer to
        ``rtol`` than that.

        With outputs held, ``hold_price``, the energy over that of the same plan without holding
        (1 is free; NaN where the target is not reached), and ``side_effect`` (output), where that
        plan takes the held outputs (NaN for those steered). With bounds, ``at_limit`` (layer),
        which pushes lie on one, and ``kkt_residual``, what is left of the optimality conditions
        relative to the gradient of the energy and to the energy. With ``max_layers``, ``chosen``
        (layer), ``lower_bound``, a proved lower bound on the energy of every plan with so few
        layers, and ``optimality_gap``, energy / lower bound - 1 (0 where the choice is exact);
        both NaN where the target is not reached. Of a system with ``state_norm`` and ``v``,
        ``push`` (layer), the size of the push over the state's norm.

        attrs: ``certified``, "yes", or "not certified" and why: where the rank is not, or where u,
        run through the layers, ends elsewhere, since rounding of u grows with the modes that grow;
        ``energy``, "relative", "absolute" or "weights"; ``layers``, a JSON list of those that might
        push; ``search`` of the layers, "exact" or "greedy"; and of a language model what the plan
        does (``operation``, ``hook``, ``positions``, ``unit``; ``sign``, of the inputs whose two
        classes are known), of which model it is, and
        a ``warning`` where a push is no small one.

    Raises
    ------
    ValueError
        If ``target``, ``x0``, ``outputs``, ``hold``, ``weights``, ``layers`` or a bound is not
        finite, not positive, not there, of the wrong size or with other labels than the system; if
        ``energy`` or a bound is relative to states of which the system knows no norm.
    numpy.linalg.LinAlgError
        If the target is not reachable, or not within the bounds, and ``allow_residual`` is False,
        or the energy is beyond the largest number.

    Notes
    -----
    Without bounds and ``max_layers`` the solution is exact linear algebra, otherwise (where the
    bounds bind) that of an interior-point solver, one member of a batch after the other. Of a
    system whose inputs are all features (``lm.identify(..., inputs="free")``), the energy is the
    least that any direction needs.

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
    >>> ltv.minimum_energy(s, 1.0, upper=0.75).u.values.ravel().round(6)
    array([0.5 , 0.75])
    >>> ltv.minimum_energy(s, 1.0, max_layers=1).u.values.ravel()
    array([0., 1.])
    """
    if not 0 < rtol < 1:
        raise ValueError(f"`rtol` must be between 0 and 1; got {rtol}. Leave it at 1e-10.")
    if max_layers is not None:
        whole_number(max_layers, "max_layers")
    pushes = pushing_layers(system, layers)
    limits = push_limits(system, lower, upper, max_relative_push, pushes)
    start = None if x0 is None else as_state(system, x0, "x0", 0)
    aim = aim_of(system, target, outputs, hold, start)
    cost, counted = _cost(weights, energy, system, aim.gain)
    wanted, alone, cost = beside_each_other(
        {"target": aim.wanted, "x0": aim.alone, "weights": cost}
    )
    gap = xr.apply_ufunc(left_to_reach, wanted, alone, kwargs={"n_states": state_size(system)})
    gain = aim.gain.drop_vars("layer", errors="ignore") * xr.DataArray(pushes, dims=["layer"])
    aim = aim._replace(gain=gain, wanted=gap)
    found = _solved(aim, cost, limits, max_layers, rtol)
    if not allow_residual and not bool((found["short"] <= rtol).all()):
        options = {"layers": layers is not None, "max_layers": max_layers is not None}
        raise np.linalg.LinAlgError(_unreachable(system, found, aim, rtol, options))
    if not np.isfinite(found["energy"].values).all():
        raise np.linalg.LinAlgError(overflowing("energy", found["u"].values))
    plan = xr.Dataset(
        {
            "u": found["u"],
            "energy": found["energy"],
            "predicted": found["shift"] + alone,
            "residual": _residual(found["reached"], gap, aim.goal),
            "target": wanted,
            "multipliers": found["multipliers"],
            "gain_rank": found["gain_rank"],
            "resolution": found["resolution"],
            "gain_rank_is_certified": found["certain"],
        },
        attrs={"method": "minimum_energy", "rtol": rtol},
    )
    plan = plan.assign(_of_limits(found, limits, max_layers))
    if aim.held:
        plan = plan.assign(_price(aim, alone, cost, limits, max_layers, rtol, found))
    plan = plan.assign_coords(layer=labels(system, "layer"))
    if max_layers is not None:
        plan.attrs |= {"max_layers": max_layers}
        plan.attrs |= {"search": "exact" if bool(found["exact"].all()) else "greedy"}
    push, about = about_plan(system, plan["u"], plan["layer"].values[pushes].tolist(), counted)
    if push is not None:
        plan["push"] = push
    said = _in_words(system, start, plan, aim.goal, aim.rows)
    certain, resolution = found["certain"], found["resolution"]
    plan.attrs["certified"] = rank_in_words("gain_rank", certain, resolution, rtol, said)
    plan.attrs |= about
    if aim.rows is None:
        return with_labels_of(plan, system)
    return named_rows(plan, system, aim.rows)


def _cost(
    weights, energy: str | None, system: xr.Dataset | MatrixFree, gain: xr.DataArray
) -> tuple[xr.DataArray, str]:
    """Cost (layer, input), and how the energy counts."""
    if weights is None:
        counted = chosen_energy(system, energy)
        if counted == "relative" and isinstance(system, xr.Dataset):
            weights = layer_weights(system, counted)
    elif energy is None:
        counted = "weights"
    else:
        raise ValueError(
            f"`energy` must be left out beside `weights`; got {energy!r}. Give one of them."
        )
    return _weights(weights, system, gain), counted


OUTCOMES = {
    "u": ["layer", "input"],
    "shift": ["goal"],
    "reached": ["goal"],
    "short": [],
    "multipliers": ["goal"],
    "gain_rank": [],
    "resolution": [],
    "certain": [],
}
LIMITED = {
    "least_miss": [],
    "kkt_residual": [],
    "at_limit": ["layer"],
    "chosen": ["layer"],
    "lower_bound": [],
    "exact": [],
}


def _solved(
    aim: Aim,
    cost: xr.DataArray,
    limits: dict[str, xr.DataArray] | None,
    most: int | None,
    rtol: float,
) -> dict[str, xr.DataArray]:
    """The plan and what is known of it, by the names of `OUTCOMES` and `LIMITED`; its energy."""
    goal, given = aim.goal, [aim.gain, aim.wanted, cost, aim.floor, aim.lost]
    dims = [["layer", goal, "input"], [goal], ["layer", "input"], [goal], [goal]]
    names = OUTCOMES
    options = {"rtol": rtol}
    core = _least_energy
    if limits is not None or most is not None:
        names = OUTCOMES | LIMITED
        core, options = _limited, {"rtol": rtol, "most": most}
        for name, bounds in (limits or {}).items():
            given.append(bounds)
            dims.append(DIMS[name])
    returned = xr.apply_ufunc(
        core,
        *given,
        kwargs=options,
        input_core_dims=dims,
        output_core_dims=[[goal if d == "goal" else d for d in own] for own in names.values()],
        vectorize=core is _limited,
    )
    found = dict(zip(names, returned, strict=True))
    with np.errstate(over="ignore"):
        found["energy"] = (cost * found["u"] ** 2).sum(["layer", "input"])
    return found


def _unreachable(
    system: xr.Dataset | MatrixFree,
    found: dict[str, xr.DataArray],
    aim: Aim,
    rtol: float,
    options: dict[str, bool],
) -> str:
    """Why the target cannot be reached, of the worst member of a batch, and the cure."""
    short = found["short"]
    at = short.argmax(...) if short.ndim else {}
    miss, rank = float(short.max()), int(found["gain_rank"].isel(at, missing_dims="ignore"))
    end = labels(system, "depth")[-1]
    size = len(aim.rows) if aim.rows else int(state_sizes(system)[-1].max())
    more = ["let more `layers` push"] * options["layers"]
    more += ["raise `max_layers`"] * options["max_layers"]
    start = f"`target` must be reachable; got relative residual {miss:.1e} at depth {end} "
    whole = found.get("least_miss")
    if whole is None or float(whole.isel(at, missing_dims="ignore")) > rtol:
        cure = ", ".join(["Add input layers", *more])
        counted = f"(rank {rank} of {size} {aim.goal}s, rtol {rtol:.0e})"
        return f"{start}{counted}. {cure} or pass `allow_residual=True`."
    way = np.floor(1000 * (1 - miss) + 1e-3) / 10  # "100 %" would be a lie
    cure = ", ".join(["Widen the bounds", *more, "ask for that part"])
    return (
        f"{start}(within the bounds {way:.3g} % of the way at most). {cure} or pass "
        "`allow_residual=True`."
    )


def _of_limits(
    found: dict[str, xr.DataArray], limits: dict[str, xr.DataArray] | None, most: int | None
) -> dict[str, xr.DataArray]:
    """What a plan says of its bounds and of the choice of its layers."""
    names = ["at_limit", "kkt_residual"] if limits is not None else []
    more = {name: found[name] for name in names}
    if most is not None:
        # a bound above the energy is one by rounding
        bound = xr.where(found["exact"].astype(bool), found["energy"], found["lower_bound"])
        bound = xr.where(found["short"] > 0, np.nan, np.minimum(bound, found["energy"]))
        gap = (found["energy"] / bound - 1).where(found["energy"] > 0, bound)
        more |= {"chosen": found["chosen"], "lower_bound": bound, "optimality_gap": gap}
    return more


def _price(
    aim: Aim,
    alone: xr.DataArray,
    cost: xr.DataArray,
    limits: dict[str, xr.DataArray] | None,
    most: int | None,
    rtol: float,
    found: dict[str, xr.DataArray],
) -> dict[str, xr.DataArray]:
    """What holding costs, and where what is held would go."""
    free = _solved(aim.without_held(), cost, limits, most, rtol)
    price = (found["energy"] / free["energy"]).where(free["energy"] > 0, 1.0)
    price = price.where((found["short"] <= rtol) & (free["short"] <= rtol))
    ends = alone + (aim.gain * free["u"]).sum(["layer", "input"])
    held = np.arange(len(aim.rows or ())) >= len(aim.rows or ()) - aim.held
    ends = ends.where(xr.DataArray(held, dims=[aim.goal]))
    return {"hold_price": price, "side_effect": ends}


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


def _residual(reached: xr.DataArray, wanted: xr.DataArray, goal: str) -> xr.DataArray:
    largest = abs(wanted).max(goal)  # squares of tiny or huge targets would vanish or overflow
    scale = largest.where(largest > 0, 1.0)
    norm = ((wanted / scale) ** 2).sum(goal) ** 0.5
    miss = (((reached - wanted) / scale) ** 2).sum(goal) ** 0.5
    return (miss / norm).where(norm > 0, miss)


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
    G = side_by_side(gain * scale[..., None, :])
    # the largest weight says by how much a row of rounding may have grown
    most = scale.max((-2, -1))[..., None]
    found: LeastNorm = least_norm(G, target, rtol, floor * most, lost * most)
    shift = (G @ found.z[..., None])[..., 0]
    u = found.z.reshape(*found.z.shape[:-1], n_layers, n_inputs) * scale
    u = np.where(gain.any(-2), u, 0.0)  # nor a trace of rounding where nothing is pushed
    batch = found.miss.shape
    multipliers, reached = (
        np.broadcast_to(x, (*batch, n_rows)).copy() for x in (found.multipliers, found.reached)
    )
    known = found.rank, found.resolution, found.certain
    return u, shift, reached, found.miss, multipliers, *known


def _limited(gain, target, cost, floor, lost, *bounds, rtol, most):
    """One plan within bounds, or with few layers."""
    scale = 1.0 / np.sqrt(cost)
    G, grown = gain * scale[:, None, :], scale.max()
    limits = None
    if bounds:
        lower, upper, turn, radius = bounds
        limits = Limits(lower / scale, upper / scale, turn * scale[:, None, :], radius)
    task = Task(G, target, floor * grown, lost * grown, rtol, limits)
    if most is None:
        layers, bound, exact, found = tuple(range(len(G))), np.nan, True, least_push(task)
    else:
        layers, found, bound, exact = few_layers(task, most)
    z = np.zeros(scale.shape)
    z[list(layers)] = found.z
    z[~gain.any(1)] = 0.0
    chosen = np.zeros(len(G), dtype=bool)
    chosen[list(layers)] = z[list(layers)].any(-1)
    at_limit = np.zeros(len(G), dtype=bool) if limits is None else limits.touched(z)
    shift = np.einsum("lri,li->r", G, z)
    known = found.least.rank, found.least.resolution, found.least.certain
    result = z * scale, shift, found.reached, found.short, found.multipliers, *known
    return *result, found.least.miss, found.kkt, at_limit, chosen, bound, exact
