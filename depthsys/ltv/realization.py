"""Systems from an input-output map alone, and the sum of two systems."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.basis import RTOL, RankError
from depthsys.ltv.gramians import MAP_DIMS, checked_map, hankel_factors, in_rows, used_values
from depthsys.ltv.labels import in_order_like
from depthsys.ltv.matrices import DIMS
from depthsys.ltv.matrix_free import in_parts, stacked, transposed
from depthsys.ltv.norms import spectral_norm
from depthsys.ltv.response import io_matrix
from depthsys.ltv.rounding import certificate, resolution_of_map
from depthsys.ltv.system import STAMP, check, whole_number

_STATES = ("state", "state_next")
_OUTPUTS = {
    **DIMS,
    "hankel_singular_values": ("depth", "index"),
    "rank": ("depth",),
    "resolution": (),
    "rank_is_certified": ("depth",),
}


def realization(
    io: ArrayLike | xr.DataArray,
    order: int | None = None,
    *,
    tolerance: float | None = None,
    rtol: float = RTOL,
) -> xr.Dataset:
    r"""A balanced system with a given input-output map: the time-varying Ho-Kalman algorithm.

    The Hankel block :math:`H_k = U_k \Sigma_k Z_k^\top` maps the inputs before depth k to the
    outputs from depth k on. With :math:`O_k = U_k \Sigma_k^{1/2}`, whose first rows belong to the
    outputs at depth k:

    :math:`C_k` = first rows of :math:`O_k`,
    :math:`A_l = \Sigma_{l+1}^{-1/2} U_{l+1}^\top` [the other rows of :math:`O_l`],
    :math:`B_l = \Sigma_{l+1}^{-1/2} U_{l+1}^\top` [the map from the inputs at layer l to the
    outputs from depth l + 1 on], and :math:`D_k` is read off.

    At full rank the map of the system is the given one, and both its Gramians are
    :math:`\Sigma_k`. With fewer states it is what balanced truncation of any system with this map
    gives, up to signs: `error_bounds` certifies its error.

    Parameters
    ----------
    io
        The map (depth, output, layer, input) in output/input, as `io_matrix` returns it, with L
        layers and L + 1 depths; a DataArray may have batch dims.
    order
        Largest number of states per depth; by default the rank.
    tolerance
        Instead of ``order``: the wanted exact error relative to ``||G||``. The smallest order
        (at least 1 where the rank is) that meets it in every member of a batch is used.
    rtol
        Hankel singular values below ``rtol`` times the largest at that depth count as zero, and
        so do those that rounding explains. For a measured map, set it to the noise.

    Returns
    -------
    xr.Dataset
        A system with the coordinate ``order`` (depth), the number of states in use, and
        ``hankel_singular_values`` (depth, index) of the map, in output/input. There is no state
        at depth 0. ``resolution``, output/input: what rounding explains in these values;
        ``rank_is_certified`` (depth): True where all values that count are above it, so that fewer
        states do not do. attrs ``certified``: "yes", or "not certified" and why.

    Raises
    ------
    TypeError
        If both ``order`` and ``tolerance`` are given, or ``io`` is a system.
    RankError
        If ``order`` is above the rank, the largest number of states at any depth.
    ValueError
        If the map has other dims or sizes, is not finite or not causal, ``order`` is not a whole
        number >= 1, or ``tolerance`` cannot be reached.

    Notes
    -----
    The blocks are compressed by QR along the depth and only U is kept, so that the cost is linear
    in the number of inputs. python-control: `eigensys_realization`, MATLAB: `era`, pyMOR:
    `ERAReductor`, all for LTI.

    References
    ----------
    .. [1] Shokoohi and Silverman (1987), Identification and model reduction of time-varying
       discrete-time systems, Automatica 23(4).
    .. [2] Majji, Juang and Junkins (2010), doi:10.2514/1.45722.

    Examples
    --------
    A map of which nobody knows the states: every output is the sum of all inputs so far.

    >>> import numpy as np
    >>> from depthsys import ltv
    >>> io = np.zeros((5, 1, 4, 1))
    >>> for depth in range(5):
    ...     io[depth, 0, :depth, 0] = 1.0
    >>> s = ltv.realization(io)
    >>> s.order.values
    array([0, 1, 1, 1, 1])
    >>> bool(abs(ltv.io_matrix(s) - io).max() < 1e-12)
    True
    """
    if order is not None and tolerance is not None:
        raise TypeError(
            f"at most one of `order` and `tolerance` must be given; got order={order}, "
            f"tolerance={tolerance}. Pass `order=4` or `tolerance=0.01`, or neither."
        )
    if not 0 < rtol < 1:
        raise ValueError(f"`rtol` must be between 0 and 1; got {rtol}. Try {RTOL:.0e}.")
    io = checked_map(io)
    if tolerance is not None:
        return _smallest(io, _realized(io, rtol, None), tolerance)
    system = _realized(io, rtol, None if order is None else whole_number(order, "order"))
    if order is not None and (rank := int(system["rank"].max())) < order:
        raise RankError(
            f"`order` must be at most the rank, {rank} (method realization, rtol {rtol:.0e}); "
            f"got {order}. A larger model would be the same model.",
            rank,
        )
    return _finished(system)


def _realized(io: xr.DataArray, rtol: float, order: int | None) -> xr.Dataset:
    """The balanced system, not yet checked, with ``rank`` (depth), which may be above ``order``."""

    def core(G: np.ndarray) -> tuple[np.ndarray, ...]:
        return _balanced(G, rtol, order)

    found = xr.apply_ufunc(
        lambda G: in_parts(core, (G,), [MAP_DIMS], list(_OUTPUTS.values())),
        io,
        input_core_dims=[list(MAP_DIMS)],
        output_core_dims=[list(dims) for dims in _OUTPUTS.values()],
    )
    system = xr.Dataset({n: x.rename(None) for n, x in zip(_OUTPUTS, found, strict=True)})
    most = int(system["rank"].max())
    about = {"method": "realization", "order": most if order is None else order, "rtol": rtol}
    system = system.assign_coords(layer=io["layer"], depth=io["depth"])
    return system.assign_attrs(STAMP | about | {"certified": _in_words(system)})


def _in_words(system: xr.Dataset) -> str:
    values, lost = system["hankel_singular_values"], system["resolution"]
    ok = system["rank_is_certified"].all("depth")
    return certificate(ok, lost, values.max(["depth", "index"]), "the largest value")


def _balanced(G: np.ndarray, rtol: float, order: int | None) -> tuple[np.ndarray, ...]:
    """A, B, C, D, all Hankel singular values and the ranks of a stack of maps, and rounding."""
    n_layers, (p, m) = G.shape[-2], G.shape[-3::2]
    readouts, inverses, values, ranks, certain = [], [], [], [], []
    resolution = resolution_of_map(G)
    for factor in hankel_factors(G):
        U, s, _ = np.linalg.svd(factor, full_matrices=False)
        known = used_values(s, max(rtol, np.finfo(float).eps * sum(factor.shape[-2:])))
        rank = known.sum(-1)
        kept = slice(rank.max() if order is None else min(order, rank.max()))
        root = np.where(known, s, 1.0)[..., None, kept] ** 0.5
        used = U[..., kept] * known[..., None, kept]
        readouts.append(used * root)
        inverses.append(transposed(used / root))
        values.append(s)
        ranks.append(rank)
        certain.append(((s > resolution[..., None]) | ~known).all(-1))
    A = [inverses[k + 1] @ readouts[k][..., p:, :] for k in range(n_layers)]
    B = [
        inverses[k + 1] @ G[..., k + 1 :, :, k, :].reshape(*G.shape[:-4], -1, m)
        for k in range(n_layers)
    ]
    C = [readout[..., :p, :] for readout in readouts]
    D = [G[..., k, :, k, :] for k in range(n_layers)]
    n = max(1, *(readout.shape[-1] for readout in readouts))
    return (
        stacked(A, n, n),
        stacked(B, n, m),
        stacked(C, p, n),
        stacked([*D, np.zeros_like(D[0])], p, m),
        in_rows(values),
        np.stack(ranks, axis=-1),
        resolution,
        np.stack(certain, axis=-1),
    )


def _smallest(io: xr.DataArray, whole: xr.Dataset, tolerance: float) -> xr.Dataset:
    """The system of the smallest order whose exact error is within the tolerance."""
    number = isinstance(tolerance, (int, float, np.number)) and not isinstance(tolerance, bool)
    if not number or not 0 < tolerance < np.inf:
        raise ValueError(f"`tolerance` must be a number > 0; got {tolerance!r}. Try 0.01.")
    rank, norm = whole.attrs["order"], spectral_norm(io)
    error = norm
    for order in range(_first(whole["hankel_singular_values"], tolerance * norm, rank), rank + 1):
        size = slice(max(order, 1))
        system = _finished(
            whole.isel(state=size, state_next=size).assign_attrs(order=order, tolerance=tolerance)
        )
        error = spectral_norm(io - io_matrix(system))
        if bool((error <= tolerance * norm).all()):
            return system
    raise ValueError(
        f"`tolerance` must be reachable; got {tolerance:.1e}, and the relative error at full rank "
        f"{rank} is {float((error / norm).max()):.1e} (method realization). Raise the "
        "tolerance above that, or lower `rtol`."
    )


def _first(values: xr.DataArray, goal: xr.DataArray, rank: int) -> int:
    """The smallest order that `error_bounds` does not rule out: its lower bound is proved."""
    possible = (values.max("depth") <= goal * (1 + 1e-9)).all([d for d in goal.dims])
    order = int(possible.argmax("index")) if bool(possible.any()) else rank
    return min(max(order, 1), rank)


def _finished(system: xr.Dataset) -> xr.Dataset:
    order = np.minimum(system["rank"], system.attrs["order"])
    return check(system.drop_vars("rank").assign_coords(order=order))


def parallel(first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    r"""The sum of two systems: both get the inputs, and their outputs are added.

    :math:`A = \mathrm{diag}(A_1, A_2)`, :math:`B = [B_1; B_2]`, :math:`C = [C_1, C_2]`,
    :math:`D = D_1 + D_2`. At every depth the states of ``first`` come before those of ``second``.

    Parameters
    ----------
    first, second
        Systems with the same layers, depths, inputs and outputs. Inputs and outputs that have
        names (``input_name``, ``output_name``) or labels in both systems are matched by them, in
        the order of ``first``; others by position. Batch dims broadcast by name.

    Returns
    -------
    xr.Dataset
        ``A``, ``B``, ``C``, ``D`` and the coordinate ``order`` (depth), the sum of both orders;
        attrs of ``first``, names of inputs and outputs, and ``state_name`` and labels of ``state``
        where both have them and ``order`` is constant (a name that both use ends in ``_2`` for
        ``second``; labels that are no strings are dropped where both use one). Other variables
        are dropped. MATLAB and python-control: `parallel`.

    Raises
    ------
    TypeError
        If one of them is not a Dataset.
    ValueError
        If layers, depths or the members of a common batch dim differ, or inputs or outputs do in
        number or names.

    Examples
    --------
    The error of a reduced model as a system, by a sum with its negative:

    >>> from depthsys import ltv
    >>> A, B, C = [[0.5, 0.1], [0.0, 0.2]], [[1.0], [0.5]], [[1.0, 0.3]]
    >>> s = ltv.constant(A, B, C, horizon=12)
    >>> small = ltv.project(s, ltv.balanced_basis(s, order=1))
    >>> error = ltv.parallel(s, small.assign(C=-small.C, D=-small.D))
    >>> bool(ltv.induced_norm(error) <= ltv.error_bounds(s, order=1).upper)
    True
    """
    check(first)
    check(second)
    for dim in dict.fromkeys(d for name in DIMS for d in second[name].dims):
        if dim not in _STATES:
            _check_same(first, second, str(dim))
    for dim in ("input", "output"):
        second = in_order_like(second, "second", first, dim)
    bare = [_bare(first), _bare(second)]
    sizes = [system.sizes["state"] for system in bare]
    joined = xr.Dataset({name: _beside(bare[0][name], bare[1][name]) for name in DIMS})
    orders = [system["order"] for system in bare]
    varying = any(bool((order < n).any()) for order, n in zip(orders, sizes, strict=True))
    if varying:
        joined = _packed(joined, orders, sizes)
    total = orders[0] + orders[1]
    joined = joined.isel(dict.fromkeys(_STATES, slice(max(1, int(total.max())))))
    system = xr.Dataset({name: joined[name].transpose(..., *dims) for name, dims in DIMS.items()})
    if not varying:  # the state of a packed system is not the same at all depths
        system = system.assign_coords(_state_names(first, second))
    return check(
        system.assign_coords(
            layer=first["layer"].values,
            depth=first["depth"].values,
            order=total.transpose(..., "depth"),
        ).assign_attrs(STAMP | first.attrs)
    )


def _check_same(first: xr.Dataset, second: xr.Dataset, dim: str) -> None:
    if dim not in first.dims:
        return  # a batch dim of the second system
    sizes = [system.sizes[dim] for system in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"`second` must have {dim}={sizes[0]} like `first`; got {sizes[1]}. Select the same "
            "part of both."
        )
    here, there = (system[dim].values for system in (first, second))
    if dim in ("input", "output"):
        return  # these are put in order
    both = dim in ("layer", "depth") or (dim in first.coords and dim in second.coords)
    if both and not np.array_equal(here, there):
        raise ValueError(
            f"`second` must have the labels of `first` along {dim!r}, {here}; got {there}. Select "
            "the same part of both, in the same order."
        )


def _state_names(first: xr.Dataset, second: xr.Dataset) -> dict:
    found = {}
    if all("state_name" in system.coords for system in (first, second)):
        found["state_name"] = ("state", _different(first["state_name"], second["state_name"]))
    labelled = [one[dim] for one in (first, second) for dim in _STATES if dim in one.coords]
    if all(set(_STATES) & set(one.coords) for one in (first, second)):
        labels = _different(labelled[0], labelled[-1])
        if len(set(labels.tolist())) == len(labels):
            found |= {dim: (dim, labels) for dim in _STATES}
    return found


def _different(first: xr.DataArray, second: xr.DataArray) -> np.ndarray:
    """The labels of both, those of the second marked where the first has the same string."""
    names = first.values.tolist()
    for name in second.values.tolist():
        while isinstance(name, str) and name in names:
            name = f"{name}_2"
        names.append(name)
    return np.array(names)


def _bare(system: xr.Dataset) -> xr.Dataset:
    """A, B, C, D and ``order`` (depth) as variables, without labels along depth and state."""
    bare = system[list(DIMS)]
    if "order" not in bare.coords:
        every = np.full(bare.sizes["depth"], bare.sizes["state"])
        bare = bare.assign_coords(order=("depth", every))
    bare = bare.reset_coords("order")
    return bare.drop_vars(["layer", "depth", "state_name", *_STATES], errors="ignore")


def _beside(left: xr.DataArray, right: xr.DataArray) -> xr.DataArray:
    """Two matrices as one, the states of the left one first, zero where they do not meet."""
    dims = [dim for dim in _STATES if dim in left.dims]
    after = {dim: (0, right.sizes[dim]) for dim in dims}
    before = {dim: (left.sizes[dim], 0) for dim in dims}
    return left.pad(after, constant_values=0.0) + right.pad(before, constant_values=0.0)


def _packed(joined: xr.Dataset, orders: Sequence[xr.DataArray], sizes: Sequence[int]) -> xr.Dataset:
    missing = xr.concat(
        xr.broadcast(
            *(
                xr.DataArray(np.arange(n), dims=["state"]) >= order
                for order, n in zip(orders, sizes, strict=True)
            ),
            exclude=["state"],
        ),
        dim="state",
    )
    at = xr.apply_ufunc(
        lambda beyond: np.argsort(beyond, axis=-1, kind="stable"),
        missing,
        input_core_dims=[["state"]],
        output_core_dims=[["state"]],
    )
    here = at.isel(depth=slice(-1)).rename(depth="layer")
    after = at.isel(depth=slice(1, None)).rename(depth="layer", state="state_next")
    A = _taken(_taken(joined["A"], here, "state"), after, "state_next")
    B = _taken(joined["B"], after, "state_next")
    return xr.Dataset({"A": A, "B": B, "C": _taken(joined["C"], at, "state"), "D": joined["D"]})


def _taken(array: xr.DataArray, at: xr.DataArray, dim: str) -> xr.DataArray:
    """``array[..., at]`` along ``dim``, with other places at every depth and batch member."""
    array, at = xr.broadcast(array, at, exclude=[dim])
    return xr.apply_ufunc(
        lambda values, places: np.take_along_axis(values, places, axis=-1),
        array,
        at,
        input_core_dims=[[dim], [dim]],
        output_core_dims=[[dim]],
    )
