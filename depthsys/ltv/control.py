"""Open-loop and feedback control of a linear time-varying system."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.matrix_free import MatrixFree, beside, over_depth
from depthsys.ltv.response import gains, labels
from depthsys.ltv.system import check


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
        instead. From x_0 = 0; subtract what an initial state does by itself.
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
        gain, goal = state_gains(system), "state"
        wanted = _finite_target(target, goal, gain.sizes[goal])
    else:
        gain, goal = gains(system), "output"
        gain, wanted = _outputs(gain, target, outputs, hold)
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
    norm = np.sqrt((wanted**2).sum(goal))
    miss = np.sqrt(((reached - wanted) ** 2).sum(goal))
    residual = (miss / norm).where(norm > 0, miss)
    if not allow_residual and bool((residual > rtol).any()):
        worst = residual.argmax(...) if residual.ndim else {}
        depth = int(gain["layer"].values[-1]) + 1
        raise np.linalg.LinAlgError(
            f"`target` must be reachable; got relative residual {float(residual.max()):.1e} at "
            f"depth {depth} (rank {int(rank.isel(worst))} of {gain.sizes[goal]} {goal}s, rtol "
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
        values = np.atleast_1d(np.asarray(target, dtype=np.float64))
        if values.ndim > 1:
            raise ValueError(
                f"`target` must be a number or one per output; got shape {values.shape}. Name the "
                "batch dims in a DataArray."
            )
        target = xr.DataArray(values, dims=["output"])
    target = _finite_target(target, "output", len(steered))
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


def _finite_target(target: xr.DataArray, goal: str, size: int) -> xr.DataArray:
    if target.sizes.get(goal) != size:
        raise ValueError(
            f"`target` must hold {size} value(s), one per {goal}; got {dict(target.sizes)}. "
            f"Name the dim {goal!r} if it is a DataArray."
        )
    if not np.isfinite(target).all():
        raise ValueError(f"`target` must be finite; got {target.values}. Give a number.")
    return target.drop_vars(goal, errors="ignore").astype(np.float64)


def _weights(weights: ArrayLike | xr.DataArray | None, gain: xr.DataArray) -> xr.DataArray:
    sizes = {"layer": gain.sizes["layer"], "input": gain.sizes["input"]}
    if weights is None:
        weights = np.ones(sizes["layer"])
    if not isinstance(weights, xr.DataArray):
        array = np.asarray(weights, dtype=np.float64)
        if array.ndim > 2:
            raise ValueError(
                f"`weights` must be (layer) or (layer, input); got shape {array.shape}. Name the "
                "batch dims in a DataArray."
            )
        weights = xr.DataArray(array, dims=["layer", "input"][: array.ndim])
    got = {d: weights.sizes.get(d) for d in sizes}
    fits = got["layer"] == sizes["layer"] and got["input"] in (None, sizes["input"])
    if not fits or not bool((np.isfinite(weights) & (weights > 0)).all()):
        raise ValueError(
            f"`weights` must be {sizes['layer']} positive finite numbers, one per layer, or one "
            f"per layer and input {tuple(sizes.values())}; got {weights.values}. Leave a layer out "
            "by a large weight."
        )
    if "input" not in weights.dims:
        weights = weights.expand_dims(input=sizes["input"], axis=-1)
    return same_labels(weights, gain, "layer", "weights").drop_vars("input", errors="ignore")


def same_labels(array: xr.DataArray, like: xr.DataArray, dim: str, name: str) -> xr.DataArray:
    """The array without labels, after checking that they are those of ``like``."""
    if dim in array.coords and not np.array_equal(array[dim], like[dim]):
        raise ValueError(
            f"`{name}` must have the labels of the system along {dim!r}, {like[dim].values}; got "
            f"{array[dim].values}. Select the same part of both."
        )
    return array.drop_vars(dim, errors="ignore")


def _least_energy(gain, target, cost, *, rtol):
    # z = sqrt(cost) u turns the weighted problem into a plain least-norm one
    scale = 1.0 / np.sqrt(cost)
    n_layers, n_rows, n_inputs = gain.shape[-3:]
    G = np.moveaxis(gain * scale[..., None, :], -3, -2)
    G = G.reshape(*G.shape[:-3], n_rows, n_layers * n_inputs)
    U, s, Zt = np.linalg.svd(G, full_matrices=False)
    used = (s > rtol * s[..., :1]) & (s > 0)
    shares = (np.swapaxes(U, -1, -2) @ target[..., None])[..., 0]
    z = np.swapaxes(Zt, -1, -2) @ (np.where(used, shares, 0.0) / np.where(used, s, 1.0))[..., None]
    predicted = (G @ z)[..., 0]
    reached = (U @ np.where(used, shares, 0.0)[..., None])[..., 0]
    u = z[..., 0].reshape(*z.shape[:-2], n_layers, n_inputs) * scale
    return u, predicted, reached, np.broadcast_to(used.sum(-1), predicted.shape[:-1])


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
        state_2) for one per layer. ``C_k' C_k`` regulates the outputs.
    R
        Cost of the input, symmetric positive definite: (input, input), or (layer, input, input_2).
    terminal
        Cost of the last state (state, state_2); zero by default.

    Returns
    -------
    xr.Dataset
        ``K`` (layer, input, state), ``P`` (depth, state, state_2): the cost-to-go from x at depth
        k is ``x' P_k x``. python-control and MATLAB: `dlqr`, for LTI and an infinite horizon.

    Raises
    ------
    ValueError
        If a cost has the wrong size, is not symmetric, or not (semi)definite.

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
    R = _cost(R, "R", ("input", "input_2"), m, L, definite=True)
    last = np.zeros((n, n)) if terminal is None else terminal
    last = _cost(last, "terminal", ("state", "state_2"), n, 1, definite=False).isel(layer=0)
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
    if not isinstance(value, xr.DataArray):
        array = np.asarray(value, dtype=np.float64)
        if array.ndim not in (2, 3):
            raise ValueError(
                f"`{name}` must be a matrix or one per layer; got shape {array.shape}. Name the "
                "batch dims in a DataArray."
            )
        value = xr.DataArray(array, dims=dims if array.ndim == 2 else ("layer", *dims))
    if "layer" not in value.dims:
        value = value.expand_dims(layer=n_layers)
    wanted = {"layer": n_layers, dims[0]: n, dims[1]: n}
    if {d: value.sizes.get(d) for d in wanted} != wanted:
        raise ValueError(
            f"`{name}` must have dims {wanted} (layer may be left out); got {dict(value.sizes)}. "
            "Name the dims if it is a DataArray."
        )
    value = value.drop_vars(["layer", *dims], errors="ignore").transpose(..., *wanted)
    matrix = value.values
    if not np.isfinite(matrix).all():
        raise ValueError(f"`{name}` must be finite; got nan or inf. Look at where it comes from.")
    scale = float(np.abs(matrix).max())
    asymmetry = float(np.abs(matrix - np.swapaxes(matrix, -1, -2)).max())
    if asymmetry > 1e-10 * scale:
        raise ValueError(
            f"`{name}` must be symmetric; got an asymmetry of {asymmetry:.1e}. Use "
            f"({name} + {name}') / 2."
        )
    least = float(np.linalg.eigvalsh(matrix).min())
    if (definite and least <= 0) or least < -1e-10 * scale:
        rule, why = (
            ("positive definite", "Every direction must cost something")
            if definite
            else ("positive semidefinite", "A reward has no minimum")
        )
        raise ValueError(f"`{name}` must be {rule}; got an eigenvalue of {least:.1e}. {why}.")
    return value


def closed_loop(system: xr.Dataset, K: xr.DataArray) -> xr.Dataset:
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
    got = dict(K.sizes) if isinstance(K, xr.DataArray) else type(K).__name__
    if not isinstance(K, xr.DataArray) or {d: K.sizes.get(d) for d in wanted} != wanted:
        raise ValueError(
            f"`K` must be a DataArray with dims {wanted}; got {got}. Take it from `ltv.lqr`."
        )
    if not np.isfinite(K.values).all():
        raise ValueError("`K` must be finite; got nan or inf. Take it from `ltv.lqr`.")
    K = same_labels(K.transpose(..., *wanted), system["A"], "layer", "K")
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
