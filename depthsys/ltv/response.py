"""What a system does to its inputs: simulation, gains, the input-output matrix, embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.gramians import System, long_maps, observability, reachability
from depthsys.ltv.labels import aligned, beside_each_other
from depthsys.ltv.long_arithmetic import affordable
from depthsys.ltv.matrices import DIMS
from depthsys.ltv.matrix_free import (
    MatrixFree,
    labels,
    over_depth,
    propagated,
    stacked,
    state_size,
    state_sizes,
    transposed,
)
from depthsys.ltv.rounding import frobenius, resolution_of, resolution_of_map
from depthsys.ltv.system import as_named, batch_sizes, check


def simulate(
    system: xr.Dataset,
    u: ArrayLike | xr.DataArray | None = None,
    x0: ArrayLike | xr.DataArray | None = None,
) -> xr.Dataset:
    """Run the recursion: states ``x`` (depth, state) and outputs ``y`` (depth, output).

    Parameters
    ----------
    system
        A system; extra leading dims are batch dims.
    u
        Inputs (layer, input), in the unit of the input; zero by default. A DataArray may have
        batch dims too.
    x0
        Initial state (state); zero by default. Where the size of the state varies, it has the size
        at depth 0 or is padded with zeros.

    Returns
    -------
    xr.Dataset
        ``x`` (depth, state), ``y`` (depth, output). MATLAB calls this `lsim`, python-control
        `forced_response`.

    Raises
    ------
    TypeError
        If ``u`` or ``x0`` is complex.
    ValueError
        If ``u`` has other dims than (..., layer, input), ``x0`` other than (..., state), or a
        value is not finite.
    """
    check(system)
    sizes = {d: system.sizes[d] for d in ("layer", "input")}
    u = as_named(np.zeros(tuple(sizes.values())) if u is None else u, "u", sizes)
    u = aligned(u, "u", system)
    x0 = as_state(system, np.zeros(system.sizes["state"]) if x0 is None else x0, "x0", 0)
    u, x0 = beside_each_other({"u": u, "x0": x0})
    x, y = over_depth(
        _simulate,
        system,
        "ABCD",
        [["depth", "state"], ["depth", "output"]],
        u,
        x0,
        extra_dims=[["layer", "input"], ["state"]],
    )
    return xr.Dataset({"x": x, "y": y})


def as_state(system: xr.Dataset | MatrixFree, value: Any, name: str, at: int) -> xr.DataArray:
    """A state at depth ``at`` (a position), padded with zeros if the size of the state varies."""
    sizes = state_sizes(system).isel(depth=at)
    own, size = int(sizes.max()), state_size(system)
    value = aligned(as_named(value, name, {"state": None}), name, system)
    got = value.sizes["state"]
    if got == own:
        value = value.pad(state=(0, size - own), constant_values=0.0)
    missing = xr.DataArray(np.arange(size), dims=["state"]) >= sizes
    if value.sizes["state"] != size:
        padded = f", or {size} with the padding" if size != own else ""
        raise ValueError(
            f"`{name}` must be a state of size {own}{padded}; got {got} values. Give one per state."
        )
    if bool(((value != 0) & missing).any()):
        orders = np.unique(sizes.values).tolist()
        several = f"{orders} over the batch" if len(orders) > 1 else f"{own}"
        raise ValueError(
            f"`{name}` must be zero in the states that do not exist; got other values, where the "
            f"order is {several}. Give each member its own state, (..., state), padded with zeros."
        )
    return value


def _simulate(A, B, C, D, u, x0):
    x, states, outputs = x0[..., None], [], []
    for k, c in enumerate(C):
        y = c @ x
        states.append(x)
        if k < len(A):
            v = u[..., k, :, None]
            y = y + D[k] @ v
            x = A[k] @ x + B[k] @ v
        outputs.append(y)
    return tuple(
        np.stack(np.broadcast_arrays(*parts), axis=-3)[..., 0] for parts in (states, outputs)
    )


def impulse_response(system: xr.Dataset | MatrixFree, at: int | None = None) -> xr.Dataset:
    """The response from rest to a unit impulse at one layer, of every input by itself.

    Parameters
    ----------
    system
        A system. Its response depends on where the impulse comes: `io_matrix` holds them all.
    at
        Label of the layer; the first by default.

    Returns
    -------
    xr.Dataset
        ``x`` (depth, state, input) in state/input and ``y`` (depth, output, input) in output/input:
        what input i alone does. attrs: ``response``, ``at``. MATLAB calls this `impulse`,
        python-control `impulse_response`; neither divides or multiplies by a sampling time here.

    Raises
    ------
    ValueError
        If there is no such layer.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=4)
    >>> ltv.impulse_response(s).y.values.ravel()
    array([0.   , 1.   , 0.5  , 0.25 , 0.125])
    """
    first, position = _layer(system, at)
    return _told(_response(system, position, position + 1), "impulse", first + position)


def step_response(system: xr.Dataset | MatrixFree, at: int | None = None) -> xr.Dataset:
    """The response from rest to a unit step, of every input by itself.

    Parameters
    ----------
    system
        A system.
    at
        Label of the layer from which on the input is one; the first by default.

    Returns
    -------
    xr.Dataset
        ``x`` and ``y`` as for `impulse_response`. MATLAB calls this `step`, python-control
        `step_response`.

    Raises
    ------
    ValueError
        If there is no such layer.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=4)
    >>> ltv.step_response(s).y.values.ravel()
    array([0.   , 1.   , 1.5  , 1.75 , 1.875])
    """
    first, position = _layer(system, at)
    last = len(labels(system, "layer"))
    return _told(_response(system, position, last), "step", first + position)


def _told(found: xr.Dataset, response: str, at: int) -> xr.Dataset:
    """With attrs that `y` keeps when it is taken alone: `era` reads them."""
    about = {"response": response, "at": at}
    return found.assign(y=found["y"].assign_attrs(about)).assign_attrs(about)


def _layer(system: xr.Dataset | MatrixFree, at: int | None) -> tuple[int, int]:
    """The first label of the layers, and the position of ``at``."""
    names = labels(system, "layer")
    first, last = int(names[0]), int(names[-1])
    at = first if at is None else at
    if isinstance(at, bool) or not isinstance(at, (int, np.integer)) or not first <= at <= last:
        raise ValueError(
            f"`at` must be in {first}..{last}, the layers; got {at!r}. Use a label of the dim "
            "'layer'."
        )
    return first, int(at) - first


def _response(system: xr.Dataset | MatrixFree, start: int, stop: int) -> xr.Dataset:
    """All responses to an input of one at the positions start..stop-1 of the layers."""
    size = state_size(system)

    def core(A, B, C, D):
        states, outputs = [], []
        x = np.zeros((*B[0].shape[:-2], A[0].shape[-1], B[0].shape[-1]))
        for k, c in enumerate(C):
            on = start <= k < stop
            states.append(x)
            outputs.append(c @ x + D[k] if on else c @ x)
            if k < len(A):
                x = A[k] @ x + B[k] if on else A[k] @ x
        p, m = outputs[0].shape[-2:]
        return stacked(states, size, m), stacked(outputs, p, m)

    x, y = over_depth(
        core, system, "ABCD", [["depth", "state", "input"], ["depth", "output", "input"]]
    )
    return xr.Dataset({"x": x, "y": y})


def transition(system: xr.Dataset, start: int, stop: int) -> xr.DataArray:
    r"""The transition matrix :math:`A_{stop-1} \cdots A_{start}` between two depths.

    Parameters
    ----------
    system
        A system.
    start, stop
        Labels of depths, ``start <= stop``; the identity when they are equal.

    Returns
    -------
    xr.DataArray
        ``transition`` (state_next, state).

    Raises
    ------
    ValueError
        If the depths are not in the system or run backwards.
    """
    check(system)
    first, last = (int(system["depth"].values[i]) for i in (0, -1))
    if not first <= start <= stop <= last:
        raise ValueError(
            f"`start` and `stop` must satisfy {first} <= start <= stop <= {last}, depths of the "
            f"system; got {start} and {stop}. No inverse is taken: depth runs forwards."
        )

    def product(A: np.ndarray) -> np.ndarray:
        phi = np.broadcast_to(np.eye(A.shape[-1]), (*A.shape[:-3], *A.shape[-2:])).copy()
        for layer in range(start - first, stop - first):
            phi = A[..., layer, :, :] @ phi
        return phi

    phi = xr.apply_ufunc(
        product,
        system["A"],
        input_core_dims=[list(DIMS["A"])],
        output_core_dims=[["state_next", "state"]],
    )
    return phi.rename("transition")


def gains(system: xr.Dataset | MatrixFree) -> xr.DataArray:
    r"""Terminal gains of every layer, :math:`h_l = C_L A_{L-1} \cdots A_{l+1} B_l`.

    Returns
    -------
    xr.DataArray
        ``gain`` (layer, output, input), output/input: the shift of y_L per unit input at
        layer l. One row of products from the output side: no L x L matrix is formed.
    """
    gain = over_depth(_gains, system, "ABC", [["layer", "output", "input"]])
    return gain.rename("gain")


def _gains(A, B, C):
    column, rows = transposed(C[-1]), []
    for layer in reversed(range(len(A))):
        rows.append(transposed(column) @ B[layer])
        if layer:
            column = transposed(A[layer]) @ column
    return np.stack(np.broadcast_arrays(*rows[::-1]), axis=-3)


def io_matrix(system: xr.Dataset | MatrixFree) -> xr.DataArray:
    """The input-output map: ``y_k = sum_l G[k, l] u_l``, block lower-triangular.

    Returns
    -------
    xr.DataArray
        ``io_matrix`` (depth, output, layer, input), output/input.

    Notes
    -----
    Inputs are propagated forwards or outputs backwards, whichever is fewer columns. A small system
    whose map is lost in double precision (modes that grow unseen) is run in long arithmetic;
    `induced_norm` says for every system what rounding explains.
    """
    if not isinstance(system, MatrixFree):
        check(system)
        L, n, m, p = (system.sizes[dim] for dim in ("layer", "state", "input", "output"))
        if affordable(L, n, m, p, int(np.prod([1, *batch_sizes(system).values()]))):
            return known_map(system)[0]
    matrix = over_depth(map_of, system, "ABCD", [["depth", "output", "layer", "input"]])
    return matrix.rename("io_matrix")


def known_map(system: System) -> tuple[xr.DataArray, xr.DataArray]:
    """The `io_matrix`, in long arithmetic where it is needed and possible; its rounding (...)."""

    def core(A, B, C, D):
        R, S = reachability(A, B), observability(A, C, start=False)
        G = map_of(A, B, C, D, R, S)
        size = size_of_map(G)
        lost = resolution_of(A, B, C, R, S)
        resolution = resolution_of_map(G, lost)
        for member, exact, _ in long_maps(A, B, C, R, S, lost, size):
            direct = [np.broadcast_to(d, (*G.shape[:-4], *d.shape[-2:]))[member] for d in D]
            G[member] = exact.G
            for k, d in enumerate(direct[:-1]):
                G[member][k, :, k, :] = d
            resolution[member] = resolution_of_map(G[member], exact.error)
        return G, resolution

    outputs = [["depth", "output", "layer", "input"], []]
    io, resolution = over_depth(core, system, "ABCD", outputs)
    return io.rename("io_matrix"), resolution.rename("resolution")


def size_of_map(G: np.ndarray) -> np.ndarray:
    """The Frobenius norm of maps (..., depth, output, layer, input)."""
    return frobenius(G.reshape(*G.shape[:-4], G.shape[-4] * G.shape[-3], -1))


def map_of(A, B, C, D, R=None, S=None) -> np.ndarray:
    """The input-output map (..., depth, output, layer, input) of lists of matrices.

    ``R`` and ``S`` are `reachability` and `observability`, if they are known: while they have a
    column per input or output, the map can be read off.
    """
    L, m, p = len(A), B[0].shape[-1], C[0].shape[-2]
    batch = np.broadcast_shapes(*(x.shape[:-2] for x in (A[0], B[0], C[0], D[0])))
    G = np.zeros((*batch, L + 1, p, L, m))
    for k in range(L):
        G[..., k, :, k, :] = D[k]
    if R is not None and R[-1].shape[-1] == L * m:
        for k in range(1, L + 1):
            y = C[k] @ R[k]
            G[..., k, :, :k, :] = y.reshape(*y.shape[:-1], k, m)
    elif S is not None and S[1].shape[-1] == L * p:
        for layer in range(L):
            y = transposed(S[layer + 1]) @ B[layer]
            y = y.reshape(*y.shape[:-2], L - layer, p, m)[..., ::-1, :, :]  # the last depth first
            G[..., layer + 1 :, :, layer, :] = y
    elif L * m <= (L + 1) * p:
        states = None  # responses at the current depth to a unit input at every earlier layer
        for k in range(L + 1):
            if states is not None:
                y = C[k] @ states
                G[..., k, :, :k, :] = y.reshape(*y.shape[:-1], k, m)
            if k < L:
                states = B[k] if states is None else propagated(A[k], states, B[k])
    else:
        readouts = None  # the transposed rows by which later outputs read the current state
        for layer in reversed(range(L)):
            new = transposed(C[layer + 1])
            older = None if readouts is None else (transposed(A[layer + 1]), readouts)
            readouts = new if older is None else propagated(*older, new, first=True)
            y = transposed(readouts) @ B[layer]
            G[..., layer + 1 :, :, layer, :] = y.reshape(*y.shape[:-2], L - layer, p, m)
    return G


def embed(system: xr.Dataset) -> xr.Dataset:
    r"""The nilpotent embedding: one time-invariant system that contains the whole horizon.

    The states of all depths are stacked, as are all inputs and all outputs. Its A is strictly
    block lower-triangular (spectral radius 0), so any LTI tool gives answers about the LTV system:
    its Gramians are ``blkdiag(P_0, ..., P_L)`` and ``blkdiag(Q_0, ..., Q_L)``, its Hankel singular
    values the union of :math:`\sigma_i(k)`, its L-infinity norm the induced norm and its H2 norm
    the H2 norm.

    Returns
    -------
    xr.Dataset
        ``A`` (state_next, state), ``B`` (state_next, input), ``C`` (output, state), ``D`` (output,
        input), dense, without a dim layer. Row ``k n + i`` of the state is state i at depth k; the
        column ``l m + i`` of the input is input i of layer l. For python-control:
        ``control.ss(e.A, e.B, e.C, e.D, 1)``.

    Notes
    -----
    An oracle for small systems: it stores ((L + 1) n)^2 numbers.
    """
    check(system)
    A, B, C, D = xr.apply_ufunc(
        _embed,
        *(system[name] for name in "ABCD"),
        input_core_dims=[list(DIMS[name]) for name in "ABCD"],
        output_core_dims=[
            ["state_next", "state"],
            ["state_next", "input"],
            ["output", "state"],
            ["output", "input"],
        ],
        exclude_dims={"state_next", "state", "input", "output"},
    )
    attrs = {**system.attrs, "embedding": "nilpotent", "horizon": system.sizes["layer"]}
    big = xr.Dataset({"A": A, "B": B, "C": C, "D": D}, attrs=attrs)
    return big.assign_coords(stacked_names(system, state=system["depth"].values))


def stacked_names(system: xr.Dataset, **times: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    """Names of stacked signals, ``name@layer`` or ``name@depth``, where the system has names.

    ``times`` are the labels to repeat them over, by dim, where they are not the layers (input) or
    the depths (output).
    """
    over = {"input": system["layer"].values, "output": system["depth"].values, **times}
    return {
        f"{dim}_name": (
            dim,
            np.array([f"{n}@{k}" for k in at for n in system[f"{dim}_name"].values]),
        )
        for dim, at in over.items()
        if f"{dim}_name" in system.coords
    }


def _embed(A, B, C, D):
    L, n, m, p = A.shape[-3], A.shape[-1], B.shape[-1], C.shape[-2]
    batch = np.broadcast_shapes(*(X.shape[:-3] for X in (A, B, C, D)))
    states, inputs, outputs = (L + 1) * n, L * m, (L + 1) * p
    shapes = [(states, states), (states, inputs), (outputs, states), (outputs, inputs)]
    big = [np.zeros((*batch, *shape)) for shape in shapes]
    for k in range(L + 1):
        here = slice(k * n, (k + 1) * n)
        y = slice(k * p, (k + 1) * p)
        big[2][..., y, here] = C[..., k, :, :]
        if k < L:
            after, u = slice((k + 1) * n, (k + 2) * n), slice(k * m, (k + 1) * m)
            big[0][..., after, here] = A[..., k, :, :]
            big[1][..., after, u] = B[..., k, :, :]
            big[3][..., y, u] = D[..., k, :, :]
    return tuple(big)
