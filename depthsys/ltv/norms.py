"""Norms of a linear time-varying system, and certified bounds on the error of reducing it."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from depthsys.ltv.gramians import (
    System,
    frobenius,
    hankel_singular_values,
    noise_of,
    observability,
    reachability,
)
from depthsys.ltv.labels import in_order_of
from depthsys.ltv.matrix_free import over_depth
from depthsys.ltv.response import io_matrix


def induced_norm(system: System) -> xr.DataArray:
    """Largest gain from all inputs to all outputs in the l2 sense: ``||T||_2``, output/input.

    T is the dense `io_matrix`; its largest singular value is exact. python-control: `linfnorm`,
    for LTI; MATLAB: `getPeakGain`.
    """
    return spectral_norm(io_matrix(system)).rename("induced_norm")


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

    From the Gramian factors, ``sum_k ||C_k R_k||_F^2 + ||D_k||_F^2``, without forming T.
    python-control: `system_norm(sys, 2)`, for LTI.
    """

    def core(A, B, C, D):
        R = reachability(A, B)
        parts = [frobenius(c @ r) for c, r in zip(C, R, strict=True) if r.shape[-1]]
        parts += [frobenius(d) for d in D]
        return frobenius(np.stack(np.broadcast_arrays(*parts), axis=-1)[..., None])

    return over_depth(core, system, "ABCD", [[]]).rename("h2_norm")


def resolution(system: System) -> xr.DataArray:
    """What rounding explains in norms, Hankel values and errors, output/input.

    eps times the sizes summed over times the larger of ``max_k ||S_k|| ||R_k||`` and ``||D||``.
    """

    def core(A, B, C, D):
        noise = [
            noise_of(r, s) for r, s in zip(reachability(A, B), observability(A, C), strict=True)
        ]
        noise += [np.finfo(float).eps * frobenius(d) for d in D]
        return len(C) * np.stack(np.broadcast_arrays(*noise), axis=-1).max(-1)

    return over_depth(core, system, "ABCD", [[]]).rename("resolution")


def hankel_norm(system: System | xr.DataArray) -> xr.DataArray:
    """Largest Hankel singular value over all depths, output/input. Takes an `io_matrix`, too."""
    return hankel_singular_values(system).max(["depth", "index"]).rename("hankel_norm")


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
        All in output/input:

        ``lower``
            :math:`\max_k \sigma_{r+1}(k)`: no model of that order, however made, is better.
        ``upper_distinct``
            Twice the sum of the distinct truncated values, proved for `balanced_basis` and
            `realization`.
        ``upper_segment``
            Sum over truncated indices i of the cheapest split of the depths into segments, each
            costing :math:`2\sigma_i(a)` times the product of the rises
            :math:`\sigma_i(k+1)/\sigma_i(k) > 1` inside it; proved for `balanced_basis`.
        ``upper``
            The smaller of the two.
        ``simple``
            :math:`2\sum_i \max_k \sigma_i(k)`.
        ``simple_is_proved``
            True where every truncated :math:`\sigma_i` only falls, only rises, or rises and then
            falls along the depths; elsewhere ``simple`` is a heuristic, never a guarantee.

    Raises
    ------
    ValueError
        If ``order`` is negative or not whole, or a map is not valid.

    Notes
    -----
    Values are called distinct when their floating-point numbers differ, which can only enlarge
    the bound. The bounds are theorems about exact values; computed ones carry rounding errors of
    about eps times :math:`\max_k \|S_k\| \|R_k\|` (`compare` reports it as ``resolution``).
    The proofs are written out in docs/ltv.md.

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
    return bounds_of(hankel_singular_values(system), order)


def bounds_of(values: xr.DataArray, order: int | Sequence[int] | xr.DataArray) -> xr.Dataset:
    """`error_bounds` from the Hankel singular values (..., depth, index)."""
    values = values.drop_vars("order", errors="ignore")  # of a batch of systems of several orders
    if isinstance(order, xr.DataArray):
        if order.sizes.get("depth") != values.sizes["depth"]:
            raise ValueError(
                f"`order` must have the dim depth={values.sizes['depth']}; got {dict(order.sizes)}."
                " Take it from a basis of the same system, `basis.order`."
            )
        index = xr.DataArray(np.arange(values.sizes["index"]), dims=["index"])
        order = in_order_of(order, "order", "depth", values["depth"].values)
        kept = order.reset_coords(drop=True)
        cut = values.where(index >= kept, 0.0).transpose(..., "depth", "index")
        return bounds_of(cut, 0)
    orders = np.atleast_1d(np.asarray(order))
    if orders.ndim > 1 or orders.dtype.kind not in "iu" or (orders < 0).any():
        raise ValueError(
            f"`order` must be whole numbers >= 0; got {order!r}. Pass one or a list of them."
        )
    split, unimodal = (
        xr.apply_ufunc(
            function, values, input_core_dims=[["depth", "index"]], output_core_dims=[["index"]]
        )
        for function in (_cheapest_split, _unimodal)
    )
    parts = [_bounds(values, split, unimodal, int(r)) for r in orders]
    if np.ndim(order) == 0:
        return parts[0]
    return xr.concat(parts, dim=xr.Variable("order", orders))


def _bounds(
    values: xr.DataArray, split: xr.DataArray, unimodal: xr.DataArray, r: int
) -> xr.Dataset:
    cut = values.isel(index=slice(r, None))
    if cut.sizes["index"] == 0:
        zero = xr.zeros_like(values.isel(depth=0, index=0, drop=True))
        names = ("lower", "upper_distinct", "upper_segment", "upper", "simple")
        return xr.Dataset({**{name: zero.copy() for name in names}, "simple_is_proved": zero == 0})
    distinct = xr.apply_ufunc(
        lambda v: 2 * _sum_of_distinct(v.reshape(*v.shape[:-2], -1)),
        cut,
        input_core_dims=[["depth", "index"]],
    )
    segment = split.isel(index=slice(r, None)).sum("index")
    return xr.Dataset(
        {
            "lower": cut.max(["depth", "index"]),
            "upper_distinct": distinct,
            "upper_segment": segment,
            "upper": np.minimum(distinct, segment),
            "simple": 2 * cut.max("depth").sum("index"),
            "simple_is_proved": unimodal.isel(index=slice(r, None)).all("index"),
        }
    )


def _sum_of_distinct(values: np.ndarray) -> np.ndarray:
    values = np.sort(values, axis=-1)
    first = np.diff(values, axis=-1, prepend=-1.0) != 0
    return np.where(first, values, 0.0).sum(-1)


def _cheapest_split(values: np.ndarray) -> np.ndarray:
    """Least total cost of segments covering the positive values of (..., depth, index), by DP.

    ``cost[a]`` is the cost of one segment from depth a to the current depth, ``best[b]`` the
    least cost of covering the depths before b. A depth with the value 0 has no such state: it costs
    nothing and no segment passes over it.
    """
    n_depths = values.shape[-2]
    shape = (*values.shape[:-2], values.shape[-1])
    best = np.zeros((n_depths + 1, *shape))
    cost = np.full((n_depths, *shape), np.inf)
    for k in range(n_depths):
        here = values[..., k, :]
        positive = here > 0
        if k:
            before = values[..., k - 1, :]
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
