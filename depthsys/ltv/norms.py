"""Norms of a linear time-varying system, and certified bounds on the error of reducing it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from depthsys.ltv.balancing import balanced
from depthsys.ltv.gramians import (
    System,
    in_rows,
    long_maps,
    observability,
    reachability,
    values_and_resolution,
)
from depthsys.ltv.matrix_free import MatrixFree, labels, over_depth, state_sizes
from depthsys.ltv.response import known_map, size_of_map
from depthsys.ltv.rounding import (
    CERTIFIABLE,
    EPS,
    YES,
    certificate,
    frobenius,
    resolution_of,
)

RTOL = 1e-12  # below it `balanced_basis` and `realization` leave states out


def induced_norm(system: System) -> xr.DataArray:
    """Largest gain from all inputs to all outputs in the l2 sense: ``||T||_2``, output/input.

    T is the dense `io_matrix`, in long arithmetic where double precision would lose it; its largest
    singular value is exact. attrs: ``resolution``, what rounding explains in it (the largest of a
    batch), and ``certified``. python-control: `linfnorm`, for LTI; MATLAB: `getPeakGain`.
    """
    io, resolution = known_map(system)
    return _with_resolution(spectral_norm(io).rename("induced_norm"), resolution)


def _with_resolution(norm: xr.DataArray, resolution: xr.DataArray) -> xr.DataArray:
    ok = (resolution <= CERTIFIABLE * norm) | (resolution == 0)
    text = certificate(ok.values, resolution.values, norm.values, "the norm")
    return norm.assign_attrs(resolution=float(resolution.max()), certified=text)


def spectral_norm(matrix: xr.DataArray) -> xr.DataArray:
    """The 2-norm of an `io_matrix` (depth, output, layer, input) or of a difference of two."""
    return xr.apply_ufunc(
        lambda T: np.linalg.norm(
            T.reshape(*T.shape[:-4], T.shape[-4] * T.shape[-3], -1), ord=2, axis=(-2, -1)
        ),
        matrix,
        input_core_dims=[["depth", "output", "layer", "input"]],
    )


def h2_norm(system: System) -> xr.DataArray:
    """Root of the summed squares of all gains: ``||T||_F``, output/input.

    For a constant system over L steps it tends to sqrt(L) times the LTI H2 norm.

    From the Gramian factors, ``sum_k ||C_k R_k||_F^2 + ||D_k||_F^2``, without forming T (except in
    long arithmetic, where double precision would lose it). attrs as for `induced_norm`.
    python-control: `system_norm(sys, 2)`, for LTI.
    """

    def core(A, B, C, D):
        R, S = reachability(A, B), observability(A, C)
        direct = [frobenius(d) for d in D]
        parts = [frobenius(c @ r) for c, r in zip(C, R, strict=True) if r.shape[-1]]
        norm = np.array(_root_sum(parts + direct))
        resolution = np.array(resolution_of(A, B, C, R, S) + EPS * len(C) * norm)
        for member, exact, _ in long_maps(A, B, C, R, S, resolution, norm):
            through = _root_sum(direct)
            own = np.broadcast_to(through, norm.shape)[member]
            norm[member] = np.hypot(size_of_map(exact.G), own)
            resolution[member] = exact.error + EPS * exact.G.size * norm[member]
        return norm, resolution

    norm, resolution = over_depth(core, system, "ABCD", [[], []])
    return _with_resolution(norm.rename("h2_norm"), resolution)


def _root_sum(parts: list[np.ndarray]) -> np.ndarray:
    return frobenius(np.stack(np.broadcast_arrays(*parts), axis=-1)[..., None])


def hankel_norm(system: System | xr.DataArray) -> xr.DataArray:
    """Largest Hankel singular value over all depths, output/input. Takes an `io_matrix`, too.

    attrs as for `induced_norm`.
    """
    values, resolution = values_and_resolution(system)
    norm = values.max(["depth", "index"]).rename("hankel_norm")
    return _with_resolution(norm, resolution)


def error_bounds(
    system: System | xr.DataArray, order: int | Sequence[int] | xr.DataArray
) -> xr.Dataset:
    r"""What is proved about the error ``||G - G_r||`` (induced norm) of a model of order ``order``.

    Parameters
    ----------
    system
        The full system, or its input-output map alone (depth, output, layer, input), as
        `io_matrix` returns it: the bounds are then those of `realization`.
    order
        Largest number of states per depth, 0 or more; several give a dim ``order``. A DataArray
        (depth) says how many are kept at every depth, for example ``basis.order``: that counts
        the states, too, that a basis leaves out because of its ``rtol``.

    Returns
    -------
    xr.Dataset
        All in output/input, and true of the system as it is stored, rounding included:

        ``lower``
            :math:`\max_k \sigma_{r+1}(k)` less ``resolution``, at least 0: no model of that order,
            however made, is better.
        ``upper_distinct``
            Twice the sum of the distinct truncated values, proved for `balanced_basis` and
            `realization` (with their own ``rtol``).
        ``upper_segment``
            Sum over truncated indices i of the cheapest split of the depths into segments, each
            costing :math:`2\sigma_i(a)` times the product of the rises
            :math:`\sigma_i(k+1)/\sigma_i(k) > 1` inside it; proved for the same.
        ``upper``
            The smaller of the two; inf where it is not certified.
        ``simple``
            :math:`2\sum_i \max_k \sigma_i(k)`.
        ``simple_is_proved``
            True where every truncated :math:`\sigma_i` only falls, only rises, or rises and then
            falls along the depths; elsewhere ``simple`` is a heuristic, never a guarantee.
        ``resolution``
            What rounding explains in a Hankel value.
        ``lower_is_certified``
            False where the truncated values are below ``resolution``: rounding cannot tell them
            from zero, and ``lower`` is 0.
        ``upper_is_certified``
            False where rounding explains more than 0.1 % of the largest Hankel value, or of the
            model that a basis makes: ``upper`` is inf.

        attrs: ``certified``, "yes", or "not certified" and why.

    Raises
    ------
    ValueError
        If ``order`` is negative or not whole, or a map is not valid.

    Notes
    -----
    Values enter the upper bounds enlarged by ``resolution``, with what `balanced_basis` leaves out
    because of its ``rtol``, and with what rounding changes in its model (``model_resolution``).
    Those of a map are bounds for the map as given. Values are called distinct when their
    floating-point numbers differ. Where the values hide behind states that are easy to reach and
    hard to see, or the reverse, they are taken from the input-output map in long arithmetic, as
    `hankel_singular_values` says. The proofs are written out in docs/ltv.md.

    References
    ----------
    .. [1] Sandberg and Rantzer (2004), doi:10.1109/TAC.2003.822862.
    .. [2] Lall and Beck (2003), doi:10.1109/TAC.2003.812779.

    Examples
    --------
    >>> from depthsys import ltv
    >>> A, B, C = [[0.5, 0.1], [0.0, 0.2]], [[1.0], [0.5]], [[1.0, 0.3]]
    >>> bounds = ltv.error_bounds(ltv.constant(A, B, C, horizon=12), order=1)
    >>> bool(bounds.lower <= bounds.upper)
    True
    """
    if isinstance(system, xr.DataArray):
        values, resolution = values_and_resolution(system)
        return bounds_of(values, order, _Rounding(resolution, resolution, _existing(system)))
    outputs = [["depth", "index"], ["depth"], [], []]

    def core(A, B, C):
        pair = balanced(A, B, C, RTOL, 0)
        return (
            in_rows(pair.values),
            np.stack(np.broadcast_arrays(*pair.floor), axis=-1),
            pair.resolution,
            pair.model,
        )

    values, floor, resolution, model = over_depth(core, system, "ABC", outputs)
    values = values.assign_coords(depth=labels(system, "depth"))
    rounding = _Rounding(resolution, model, _existing(system), floor)
    return bounds_of(values, order, rounding)


@dataclass(frozen=True)
class _Rounding:
    """What is not exact in Hankel values and in the models made of them.

    ``values`` and ``model`` (...) as of `balancing.Balanced`; ``count`` (depth): how many values
    can differ from zero; ``floor`` (depth): values below twice that may be left out by a basis.
    """

    values: xr.DataArray
    model: xr.DataArray
    count: xr.DataArray
    floor: xr.DataArray | None = None


def _existing(system: System | xr.DataArray) -> xr.DataArray:
    """How many Hankel values can differ from zero: inputs before, outputs to come, states."""
    if isinstance(system, MatrixFree):
        L, m, p = len(system.A), system.B[0].shape[1], system.C[0].shape[0]
    else:
        L, m, p = (system.sizes[dim] for dim in ("layer", "input", "output"))
    k = xr.DataArray(np.arange(L + 1), dims=["depth"])
    count = np.minimum(k * m, (L + 1 - k) * p)
    return count if isinstance(system, xr.DataArray) else np.minimum(count, state_sizes(system))


def bounds_of(
    values: xr.DataArray,
    order: int | Sequence[int] | xr.DataArray,
    rounding: _Rounding | None = None,
) -> xr.Dataset:
    """`error_bounds` from the Hankel singular values (..., depth, index); exact ones by default."""
    index = xr.DataArray(np.arange(values.sizes["index"]), dims=["index"])
    if rounding is None:
        zero = xr.zeros_like(values.isel(depth=0, index=0, drop=True))
        count = (values > 0).sum("index").drop_vars("depth", errors="ignore")
        rounding = _Rounding(zero, zero, count)
    if isinstance(order, xr.DataArray):
        if order.sizes.get("depth") != values.sizes["depth"]:
            raise ValueError(
                f"`order` must have the dim depth={values.sizes['depth']}; got {dict(order.sizes)}."
                " Take it from a basis of the same system, `basis.order`."
            )
        kept = order.reset_coords(drop=True).drop_vars("depth", errors="ignore")
        return _described(_bounds(values, index >= kept, rounding), values, rounding)
    orders = np.atleast_1d(np.asarray(order))
    if orders.ndim > 1 or orders.dtype.kind not in "iu" or (orders < 0).any():
        raise ValueError(
            f"`order` must be whole numbers >= 0; got {order!r}. Pass one or a list of them."
        )
    paths = _along_depth(values, index >= 0, rounding)  # the same for all orders
    parts = [_bounds(values, index >= int(r), rounding, paths) for r in orders]
    if np.ndim(order) == 0:
        return _described(parts[0], values, rounding)
    joined = xr.concat(parts, dim=xr.Variable("order", orders))
    return _described(joined, values, rounding)


def _along_depth(
    values: xr.DataArray, left_out: xr.DataArray, rounding: _Rounding
) -> tuple[xr.DataArray, xr.DataArray]:
    """Cost of the cheapest split, and whether the values are unimodal, of every index."""
    dims = ["depth", "index"]
    cut = (xr.DataArray(np.arange(values.sizes["index"]), dims=["index"]) < rounding.count) & (
        left_out
    )
    high = (values + rounding.values).where(cut, 0.0)
    low = (values - rounding.values).clip(min=0.0).where(cut, 0.0)
    split = xr.apply_ufunc(
        _cheapest_split,
        high,
        low,
        input_core_dims=[dims, dims],
        output_core_dims=[["index"]],
    )
    unimodal = xr.apply_ufunc(
        _unimodal, values.where(cut, 0.0), input_core_dims=[dims], output_core_dims=[["index"]]
    )
    return split, unimodal


def _bounds(
    values: xr.DataArray,
    left_out: xr.DataArray,
    rounding: _Rounding,
    paths: tuple[xr.DataArray, xr.DataArray] | None = None,
) -> xr.Dataset:
    """The bounds where the states with ``left_out`` (..., depth, index) are truncated."""
    dims = ["depth", "index"]
    split, unimodal = paths or _along_depth(values, left_out, rounding)
    if paths:
        split, unimodal = split.where(left_out, 0.0), unimodal | ~left_out
    exists = xr.DataArray(np.arange(values.sizes["index"]), dims=["index"]) < rounding.count
    cut = exists & left_out
    named = values.where(cut, 0.0)
    # what a basis leaves out beyond the order, one state after the other
    extra = rounding.model
    if rounding.floor is not None:
        few = exists & ~left_out & (values <= 2 * rounding.floor)
        extra = extra + 2 * (values + rounding.values).where(few, 0.0).sum(dims)
    distinct = xr.apply_ufunc(
        lambda v: 2 * _sum_of_distinct(v.reshape(*v.shape[:-2], -1)), named, input_core_dims=[dims]
    )
    distinct = distinct + 2 * cut.sum(dims) * rounding.values + extra
    segment = split.sum("index") + extra
    largest = (values + rounding.values).where(cut, 0.0).max("depth")
    simple = 2 * largest.sum("index") + extra
    proved = unimodal.all("index") & (segment <= simple * (1 + 1e-6))
    return xr.Dataset(
        {
            "lower": (named.max(dims) - rounding.values).clip(min=0.0),
            "upper_distinct": distinct,
            "upper_segment": segment,
            "upper": np.minimum(distinct, segment),
            # rounding of near-equal values costs the segment bound a little more
            "simple": simple.where(~proved, np.maximum(simple, segment)),
            "simple_is_proved": proved,
            "claim": named.max(dims),
        }
    )


def _described(bounds: xr.Dataset, values: xr.DataArray, rounding: _Rounding) -> xr.Dataset:
    """The bounds with their resolution, and nothing claimed where that is too large."""
    resolution, worst = rounding.values, np.maximum(rounding.values, rounding.model)
    top = values.max(["depth", "index"])
    known = (worst <= CERTIFIABLE * top) | (worst == 0)
    claim = bounds["claim"]
    certain = (resolution <= CERTIFIABLE * top) & (bounds["lower"] > 0)
    certain = certain | ((claim == 0) & (resolution == 0))  # nothing left out, nothing rounded
    text = certificate(
        *(x.values for x in xr.broadcast(known, worst, top)), "the largest Hankel value"
    )
    if text == YES:
        text = certificate(
            *(x.values for x in xr.broadcast(certain, resolution, claim)),
            "the largest truncated Hankel value",
        ).replace("not certified", "lower bound not certified", 1)
    found = bounds.drop_vars("claim").assign(
        lower=bounds["lower"].where(certain, 0.0),
        resolution=rounding.values,
        lower_is_certified=certain,
        upper_is_certified=known & (bounds["upper"] < np.inf),
    )
    for name in ("upper_distinct", "upper_segment", "upper", "simple"):
        found[name] = found[name].where(known, np.inf)
    found["simple_is_proved"] = found["simple_is_proved"] & known
    return found.assign_attrs(certified=text)


def _sum_of_distinct(values: np.ndarray) -> np.ndarray:
    values = np.sort(values, axis=-1)
    first = np.diff(values, axis=-1, prepend=-1.0) != 0
    return np.where(first, values, 0.0).sum(-1)


def _cheapest_split(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Least total cost of segments covering the positive values of (..., depth, index), by DP.

    ``high`` and ``low`` enclose the values. ``cost[a]`` is the cost of one segment from depth a to
    the current depth, ``best[b]`` the least cost of covering the depths before b. A depth whose
    value is surely 0 has no such state: it costs nothing and no segment passes over it, nor over
    one whose value may be 0.
    """
    n_depths = high.shape[-2]
    shape = (*high.shape[:-2], high.shape[-1])
    best = np.zeros((n_depths + 1, *shape))
    cost = np.full((n_depths, *shape), np.inf)
    with np.errstate(over="ignore"):  # a product of rises that overflows is no cheap split
        for k in range(n_depths):
            here = high[..., k, :]
            positive = here > 0
            if k:
                before = low[..., k - 1, :]
                goes_on = positive & (before > 0)
                rise = np.maximum(here / np.where(before > 0, before, 1.0), 1.0)
                cost[:k] = np.where(goes_on, cost[:k] * rise, np.inf)
            cost[k] = 2 * here
            best[k + 1] = np.where(positive, (best[: k + 1] + cost[: k + 1]).min(0), best[k])
    return best[-1]


def _unimodal(values: np.ndarray) -> np.ndarray:
    """Whether each sequence of positive values (..., depth, index) never rises after a fall."""
    step = np.diff(values, axis=-2)
    fell = np.cumsum(step < 0, axis=-2) > 0
    return np.logical_not((fell & (step > 0)).any(-2))
