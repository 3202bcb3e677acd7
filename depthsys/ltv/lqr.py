"""Finite-horizon linear-quadratic regulation and tracking, and systems under feedback."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.costs import INPUTS, RTOL, STATES, Costs, as_costs, from_outputs
from depthsys.ltv.labels import aligned, with_labels_of
from depthsys.ltv.matrices import DIMS
from depthsys.ltv.matrix_free import labels, over_depth, state_sizes, transposed
from depthsys.ltv.riccati import by_products, lists, riccati, squares, stacked_up
from depthsys.ltv.system import as_named, check

Array = ArrayLike | xr.DataArray


def lqr(
    system: xr.Dataset,
    Q: Array,
    R: Array,
    terminal: Array | None = None,
    *,
    N: Array | None = None,
    x_target: Array | None = None,
    u_target: Array | None = None,
    drift: Array | None = None,
    rtol: float = RTOL,
) -> xr.Dataset:
    r"""Finite-horizon linear-quadratic regulator: ``u_l = -K_l x_l``, or tracking of targets.

    Minimises :math:`\sum_{l<L} (x_l^\top Q_l x_l + u_l^\top R_l u_l + 2 x_l^\top N_l u_l) +
    x_L^\top Q_L x_L` by the Riccati recursion from the last depth: :math:`K_l = (R_l + B_l^\top
    P_{l+1} B_l)^{-1} (N_l^\top + B_l^\top P_{l+1} A_l)`, and :math:`P_l` is what the layer and the
    next state cost under :math:`K_l`.

    With targets, x and u in the cost are the distances from them; with a drift the next state is
    :math:`A_l x_l + B_l u_l + c_l`. Then :math:`u_l = \text{feedforward}_l - K_l x_l`.

    Parameters
    ----------
    system
        A system; extra leading dims are batch dims.
    Q
        Cost of the state, symmetric positive semidefinite: (state, state), or (layer, state,
        state_2) for one per layer 0..L-1. ``C_k' C_k`` regulates the outputs (see `lqry`).
    R
        Cost of the input, symmetric positive semidefinite: (input, input), or (layer, input,
        input_2). It may be singular, even zero, where R + B' P B is positive definite.
    terminal
        Cost of the last state x_L (state, state_2); zero by default.
    N
        Cross term (state, input) or (layer, state, input), with [Q N; N' R] semidefinite.
    x_target
        Where the state should be: (state), or (depth, state) with the last depth.
    u_target
        Input that costs nothing: (input) or (layer, input).
    drift
        c, what is added to the next state: (state_next) or (layer, state_next).
    rtol
        How far from symmetric and semidefinite rounding may leave a cost, relative to its own
        diagonal or, where that is larger, to what it costs to make a unit of the state (for Q), or
        what a unit of the input makes (for R). Negative eigenvalues within it count as zero.

    Returns
    -------
    xr.Dataset
        ``K`` (layer, input, state), ``P`` (depth, state, state_2): the cost-to-go from x at depth
        k is ``x' P_k x``. With a target or a drift also ``feedforward`` (layer, input), ``p``
        (depth, state) and ``offset`` (depth): the cost-to-go is ``x' P x + 2 p' x + offset``.
        python-control and MATLAB: `dlqr`, for LTI and an infinite horizon.

    Raises
    ------
    ValueError
        If a cost has the wrong size or labels, or is not symmetric and semidefinite to ``rtol``.
    numpy.linalg.LinAlgError
        If R + B' P B is singular at a layer: some input costs nothing there.

    Notes
    -----
    The recursion is run on factors of the costs, by one QR per layer, so P stays symmetric and
    semidefinite and cheap inputs keep their digits. Where Q keeps P so well conditioned that
    plain products lose nothing, they are taken instead, since they are faster.

    References
    ----------
    .. [1] Anderson and Moore, Optimal Control: Linear Quadratic Methods (1990), sections 2.4, 4.1.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.constant([[1.0]], [[1.0]], [[1.0]], horizon=20)
    >>> round(float(ltv.lqr(s, [[1.0]], [[1.0]]).K[0, 0, 0]), 6)  # the golden ratio's inverse
    0.618034
    """
    check(system)
    costs = as_costs(
        system, Q, R, N, terminal, x_target=x_target, u_target=u_target, drift=drift, rtol=rtol
    )
    return regulator(system, costs).drop_vars("U").assign_attrs(method="lqr", rtol=rtol)


def lqry(
    system: xr.Dataset,
    Q: Array,
    R: Array,
    terminal: Array | None = None,
    *,
    N: Array | None = None,
    y_target: Array | None = None,
    u_target: Array | None = None,
    drift: Array | None = None,
    rtol: float = RTOL,
) -> xr.Dataset:
    r"""`lqr` with costs on the outputs :math:`y_k = C_k x_k + D_k u_k` in place of the states.

    Minimises :math:`\sum_{l<L} (y_l^\top Q_l y_l + u_l^\top R_l u_l + 2 y_l^\top N_l u_l) +
    y_L^\top Q_L y_L`, with y and u taken as distances from targets, if there are any.

    Parameters
    ----------
    system
        A system; extra leading dims are batch dims.
    Q, R, terminal, N
        Costs (output, output_2), (input, input_2), (output, output_2) and (output, input), the
        first two and N also with a dim layer.
    y_target
        Where the outputs should be: (output), or (depth, output).
    u_target, drift, rtol
        As for `lqr`.

    Returns
    -------
    xr.Dataset
        As `lqr`. MATLAB: `lqry`, for LTI and an infinite horizon.

    Raises
    ------
    ValueError, numpy.linalg.LinAlgError
        As `lqr`.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.constant([[1.0]], [[1.0]], [[2.0]], horizon=9)
    >>> law = ltv.lqry(s, [[1.0]], [[1.0]], [[1.0]], y_target=[6.0])
    >>> y = ltv.simulate(ltv.closed_loop(s, law.K), law.feedforward).y
    >>> y.values.ravel().round(2)[:5]
    array([0.  , 4.97, 5.82, 5.97, 5.99])
    """
    check(system)
    costs = from_outputs(
        system, Q, R, N, terminal, y_target=y_target, u_target=u_target, drift=drift, rtol=rtol
    )
    return regulator(system, costs).drop_vars("U").assign_attrs(method="lqry", rtol=rtol)


def regulator(system: xr.Dataset, costs: Costs) -> xr.Dataset:
    """The law of checked costs.

    ``U`` (layer, input, input_2) is upper triangular: an input other than the best one costs
    ``|U (u - best)|^2`` more.
    """
    extra = [costs.on_state, costs.on_input, costs.end, costs.terminal]
    extra += [*(costs.affine or ()), *(costs.squares or ())]
    dims = [*Costs.DIMS, STATES, *(Costs.AFFINE_DIMS if costs.affine else ())]
    dims += Costs.SQUARES_DIMS if costs.squares else ()
    names = {"K": ["layer", "input", "state"], "P": ["depth", *STATES], "U": ["layer", *INPUTS]}
    if costs.affine:
        names |= {"feedforward": ["layer", "input"], "p": ["depth", "state"], "offset": ["depth"]}
    layers = labels(system, "layer")

    def refused(layer: int) -> Exception:
        return np.linalg.LinAlgError(
            "`R` must leave R + B' P B positive definite; got a singular one at layer "
            f"{layers[layer]}, where some input costs nothing, now or later. Give it a cost in R, "
            "or the states that it moves a cost in Q or `terminal`."
        )

    def core(A, B, on_state, on_input, end, terminal, *rest):
        if costs.squares:
            Q, R, least, least_at_end = rest[-4:]
            quick = by_products(A, B, Q, R, least, least_at_end, terminal)
            if quick is not None:
                return tuple(stacked_up(part) for part in quick)
        affine = rest[:3] if costs.affine else ()
        if affine:
            f, drift, g = (value[..., None] for value in affine)
            given = (lists(f), lists(drift), g)
        else:
            given = None
        law = riccati(A, B, lists(on_state), lists(on_input), end, given, refused)
        P = squares(law.S[:-1])  # the last one is as it was given
        results = [stacked_up(law.K), stacked_up([*P, terminal]), stacked_up(law.U)]
        if affine:
            p = [-transposed(s) @ x for s, x in zip(law.S, law.g, strict=True)]
            offset = [
                rest + (x**2).sum((-2, -1), keepdims=True)
                for rest, x in zip(law.rest, law.g, strict=True)
            ]
            results += [-stacked_up(law.k)[..., 0], stacked_up(p)[..., 0]]
            results += [stacked_up(offset)[..., 0, 0]]
        return tuple(results)

    found = over_depth(
        core,
        system,
        "AB",
        list(names.values()),
        *extra,
        extra_dims=dims,
        exclude=("row", "last_row"),
    )
    return with_labels_of(xr.Dataset(dict(zip(names, found, strict=True))), system)


def closed_loop(system: xr.Dataset, K: ArrayLike | xr.DataArray) -> xr.Dataset:
    """The system under the feedback ``u_l = -K_l x_l + w_l``, with w as its new input.

    Parameters
    ----------
    system
        A system.
    K
        Feedback (layer, input, state), for example of `lqr`. A ``feedforward`` of `lqr` is an
        input of the closed loop: ``simulate(closed_loop(system, law.K), law.feedforward, x0)``.

    Returns
    -------
    xr.Dataset
        A - B K for A and, at depths with an input, C - D K for C; the rest unchanged.

    Raises
    ------
    ValueError
        If ``K`` has other dims or labels, or is not finite.
    """
    check(system)
    wanted = {d: system.sizes[d] for d in ("layer", "input", "state")}
    K = aligned(as_named(K, "K", wanted), "K", system)
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


def input_increments(system: xr.Dataset) -> xr.Dataset:
    r"""The system driven by the change of its input, whose last input is part of its state.

    The state is :math:`z_l = (u_{l-1}, x_l)` and the input :math:`d_l = u_l - u_{l-1}`:

    :math:`z_{l+1} = \begin{bmatrix} I & 0 \\ B_l & A_l \end{bmatrix} z_l + \begin{bmatrix} I \\ B_l
    \end{bmatrix} d_l`, :math:`y_l = [D_l\ C_l] z_l + D_l d_l`.

    Parameters
    ----------
    system
        A system of n states and m inputs; extra leading dims are batch dims.

    Returns
    -------
    xr.Dataset
        A system of m + n states: the inputs before come first. Its labels of states, if the
        system has some, are ``"previous <input>"`` and those of the system.

    Notes
    -----
    This is how `lqr` penalises the rate of the input: in ``lqr(input_increments(system), Q, R,
    terminal, N=N)`` R is the cost of a change, and the cost of the input itself, u'Su with
    :math:`u_l = u_{l-1} + d_l`, goes to the first m states and to N: Q = blkdiag(S, Q of x), the
    cost of the change becomes R + S, N = [S; 0]. MATLAB's Model Predictive Control Toolbox has
    `ManipulatedVariablesRate`.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=3)
    >>> steps = ltv.simulate(ltv.input_increments(s), [[1.0], [0.0], [0.0]])  # one step up
    >>> steps.y.values.ravel()
    array([0.  , 1.  , 1.5 , 1.75])
    """
    check(system)
    dims = [list(DIMS[name]) for name in "ABCD"]
    found = xr.apply_ufunc(
        _with_last_input,
        *(system[name] for name in "ABCD"),
        input_core_dims=dims,
        output_core_dims=dims,
        exclude_dims={"state", "state_next"},
    )
    out = xr.Dataset(dict(zip("ABCD", found, strict=True)), attrs=system.attrs)
    out = out.drop_vars("order", errors="ignore")
    m = system.sizes["input"]
    coords: dict = {"order": state_sizes(system) + m}
    coords |= {d: system[d] for d in ("layer", "depth")}
    own = next((system[d].values for d in ("state", "state_next") if d in system.coords), None)
    if own is not None:
        inputs = system["input"].values if "input" in system.coords else range(m)
        names = np.array([*(f"previous {u}" for u in inputs), *map(str, own)])
        coords |= {"state": names, "state_next": names}
    if "state_name" in system.coords:
        named = "input_name" in system.coords
        inputs = system["input_name"].values if named else range(m)
        names = [*(f"previous {u}" for u in inputs), *map(str, system["state_name"].values)]
        coords["state_name"] = ("state", np.array(names))
    return check(out.assign_coords(coords))


def _with_last_input(A, B, C, D):
    L, n, m, p = A.shape[-3], A.shape[-1], B.shape[-1], C.shape[-2]
    batch = np.broadcast_shapes(*(X.shape[:-3] for X in (A, B, C, D)))
    A_new, B_new = np.zeros((*batch, L, m + n, m + n)), np.zeros((*batch, L, m + n, m))
    C_new = np.zeros((*batch, L + 1, p, m + n))
    A_new[..., :m, :m] = B_new[..., :m, :] = np.eye(m)
    A_new[..., m:, :m] = B_new[..., m:, :] = B
    A_new[..., m:, m:] = A
    C_new[..., :m], C_new[..., m:] = D, C
    return A_new, B_new, C_new, np.broadcast_to(D, (*batch, *D.shape[-3:])).copy()
