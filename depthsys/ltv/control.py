"""Open-loop and feedback control of a linear time-varying system."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.gramians import used_values
from depthsys.ltv.matrix_free import MatrixFree, beside, labels, over_depth, state_sizes
from depthsys.ltv.response import as_state, gains
from depthsys.ltv.system import as_named, check, same_labels


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


def lqr(
    system: xr.Dataset,
    Q: ArrayLike | xr.DataArray,
    R: ArrayLike | xr.DataArray,
    terminal: ArrayLike | xr.DataArray | None = None,
) -> xr.Dataset:
    r"""Finite-horizon linear-quadratic regulator: ``u_l = -K_l x_l``.

    Minimises :math:`\sum_{l<L} (x_l^\top Q_l x_l + u_l^\top R_l u_l) + x_L^\top Q_L x_L` by the
    Riccati recursion from the last depth: :math:`K_l = (R_l + B_l^\top P_{l+1} B_l)^{-1} B_l^\top
    P_{l+1} A_l` and :math:`P_l = Q_l + K_l^\top R_l K_l + (A_l - B_l K_l)^\top P_{l+1} (A_l - B_l
    K_l)`.

    Parameters
    ----------
    system
        A system; extra leading dims are batch dims.
    Q
        Cost of the state, symmetric positive semidefinite: (state, state), or (layer, state,
        state_2) for one per layer 0..L-1. ``C_k' C_k`` regulates the outputs.
    R
        Cost of the input, symmetric positive definite: (input, input), or (layer, input, input_2).
    terminal
        Cost of the last state x_L (state, state_2); zero by default.

    Returns
    -------
    xr.Dataset
        ``K`` (layer, input, state), ``P`` (depth, state, state_2): the cost-to-go from x at depth
        k is ``x' P_k x``. python-control and MATLAB: `dlqr`, for LTI and an infinite horizon.

    Raises
    ------
    ValueError
        If a cost has the wrong size, is not symmetric, or not (semi)definite, to 1e-12 of its own
        largest entry.

    Notes
    -----
    The recursion adds positive terms only (Joseph form), so P stays symmetric and semidefinite.

    References
    ----------
    .. [1] Anderson and Moore, Optimal Control: Linear Quadratic Methods (1990), section 2.4.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.constant([[1.0]], [[1.0]], [[1.0]], horizon=20)
    >>> round(float(ltv.lqr(s, [[1.0]], [[1.0]]).K[0, 0, 0]), 6)  # the golden ratio's inverse
    0.618034
    """
    check(system)
    n, m, L = (system.sizes[d] for d in ("state", "input", "layer"))
    Q = _cost(Q, "Q", ("state", "state_2"), n, L, definite=False)
    Q = same_labels(Q, system["A"], "layer", "Q")
    R = _cost(R, "R", ("input", "input_2"), m, L, definite=True)
    last = np.zeros((n, n)) if terminal is None else terminal
    last = _cost(last, "terminal", ("state", "state_2"), n, 1, definite=False).isel(layer=0)
    R = same_labels(R, system["A"], "layer", "R")
    # a padded state does not exist and costs nothing
    exists = xr.DataArray(np.arange(n), dims=["state"]) < state_sizes(system)
    both = (exists & exists.rename(state="state_2")).astype(float)
    Q = Q * both.isel(depth=slice(-1)).rename(depth="layer")
    last = last * both.isel(depth=-1)
    Q, last = Q.transpose(..., "layer", "state", "state_2"), last.transpose(..., "state", "state_2")
    K, P = over_depth(
        _riccati,
        system,
        "AB",
        [["layer", "input", "state"], ["depth", "state", "state_2"]],
        Q,
        R,
        last,
        extra_dims=[
            ["layer", "state", "state_2"],
            ["layer", "input", "input_2"],
            ["state", "state_2"],
        ],
    )
    return xr.Dataset(
        {"K": K, "P": P},
        coords={"layer": system["layer"], "depth": system["depth"]},
        attrs={"method": "lqr"},
    )


def _riccati(A, B, Q, R, terminal):
    P, K = [terminal], []
    for layer in reversed(range(len(A))):
        a, b, r = A[layer], B[layer], R[..., layer, :, :]
        bt = np.swapaxes(b, -1, -2)
        K.insert(0, np.linalg.solve(r + bt @ P[0] @ b, bt @ P[0] @ a))
        closed, k = a - b @ K[0], K[0]
        p = Q[..., layer, :, :] + np.swapaxes(k, -1, -2) @ r @ k
        p = p + np.swapaxes(closed, -1, -2) @ P[0] @ closed
        P.insert(0, (p + np.swapaxes(p, -1, -2)) / 2)
    return tuple(np.stack(np.broadcast_arrays(*parts), axis=-3) for parts in (K, P))


def _cost(value, name: str, dims: tuple[str, str], n: int, n_layers: int, *, definite: bool):
    """A cost matrix per layer, after checking that it is one."""
    square = {dims[0]: n, dims[1]: n}
    value = as_named(value, name, square, {"layer": n_layers, **square})
    value = value.drop_vars(list(dims), errors="ignore")
    if "layer" not in value.dims:
        value = value.expand_dims(layer=n_layers)
    value = value.transpose(..., "layer", *dims)
    matrix = value.values
    # each matrix on its own scale: rounding makes eigenvalues of a semidefinite one negative
    allowed = 1e-12 * np.abs(matrix).max((-2, -1))
    asymmetry = np.abs(matrix - np.swapaxes(matrix, -1, -2)).max((-2, -1))
    if (asymmetry > allowed).any():
        raise ValueError(
            f"`{name}` must be symmetric to 1e-12; got an asymmetry of {asymmetry.max():.1e}. Use "
            f"({name} + {name}') / 2."
        )
    eigenvalue = np.linalg.eigvalsh(matrix).min(-1)
    least = float(eigenvalue.min())
    if (definite and least <= 0) or (eigenvalue < -n * allowed).any():
        rule, why = (
            ("positive definite", "Every direction must cost something")
            if definite
            else ("positive semidefinite", "A reward has no minimum")
        )
        raise ValueError(f"`{name}` must be {rule}; got an eigenvalue of {least:.1e}. {why}.")
    return value


def closed_loop(system: xr.Dataset, K: ArrayLike | xr.DataArray) -> xr.Dataset:
    """The system under the feedback ``u_l = -K_l x_l + w_l``, with w as its new input.

    Parameters
    ----------
    system
        A system.
    K
        Feedback (layer, input, state), for example of `lqr`.

    Returns
    -------
    xr.Dataset
        A - B K for A and, at depths with an input, C - D K for C; the rest unchanged.

    Raises
    ------
    ValueError
        If ``K`` has other dims or is not finite.
    """
    check(system)
    wanted = {d: system.sizes[d] for d in ("layer", "input", "state")}
    K = as_named(K, "K", wanted)
    K = same_labels(K, system["A"], "layer", "K")
    xr.align(system, K, join="exact", exclude=["layer", "depth", "state", "input"])
    A = system["A"].drop_vars("layer", errors="ignore") - xr.dot(system["B"], K, dim="input")
    last = K.isel(layer=[0]) * 0.0
    at_depth = xr.concat([K, last], dim="layer").rename(layer="depth")
    C = system["C"].drop_vars("depth", errors="ignore") - xr.dot(system["D"], at_depth, dim="input")
    changed = {
        "A": A.transpose(..., "layer", "state_next", "state"),
        "C": C.transpose(..., "depth", "output", "state"),
    }
    bare = {k: v.drop_vars(["layer", "depth"], errors="ignore") for k, v in changed.items()}
    return check(system.assign(bare))
