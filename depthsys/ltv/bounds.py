"""Bounds on the error of truncation, from Hankel values and what rounding leaves of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from depthsys.ltv.labels import in_order_of
from depthsys.ltv.rounding import CERTIFIABLE, YES, certificate

_TWO = ["depth", "index"]
_NAMES = ("lower", "upper_distinct", "upper_segment", "upper", "simple", "simple_is_proved")


@dataclass(frozen=True)
class Rounding:
    """What is not exact in Hankel values and in the models made of them.

    ``values`` and ``model`` (...), output/input: what rounding explains in a value, and in the map
    of a model; ``count`` (depth): how many values can differ from zero; ``floor`` (depth): values
    up to twice that may be left out by a basis.
    """

    values: xr.DataArray
    model: xr.DataArray
    count: xr.DataArray
    floor: xr.DataArray


def bounds_of(
    values: xr.DataArray,
    order: int | Sequence[int] | xr.DataArray,
    rounding: Rounding | None = None,
) -> xr.Dataset:
    """`error_bounds` from the Hankel singular values (..., depth, index); exact ones by default."""
    if rounding is None:
        zero = xr.zeros_like(values.isel(depth=0, index=0, drop=True))
        count = (values > 0).sum("index")
        rounding = Rounding(zero, zero, count, xr.zeros_like(count))
    if isinstance(order, xr.DataArray):
        if order.sizes.get("depth") != values.sizes["depth"]:
            raise ValueError(
                f"`order` must have the dim depth={values.sizes['depth']}; got {dict(order.sizes)}."
                " Take it from a basis of the same system, `basis.order`."
            )
        order = in_order_of(order, "order", "depth", values["depth"].values)
        return _bounds(values, order, rounding).isel(order_=0)
    orders = np.atleast_1d(np.asarray(order))
    if orders.ndim > 1 or orders.dtype.kind not in "iu" or (orders < 0).any():
        raise ValueError(
            f"`order` must be whole numbers >= 0; got {order!r}. Pass one or a list of them."
        )
    found = _bounds(values, orders, rounding)
    if np.ndim(order) == 0:
        return found.isel(order_=0)
    return found.rename(order_="order").assign_coords(order=orders).transpose("order", ...)


def _bounds(
    values: xr.DataArray, order: np.ndarray | xr.DataArray, rounding: Rounding
) -> xr.Dataset:
    """The bounds with a dim ``order_``; one of size 1 where ``order`` varies with the depth."""
    several = isinstance(order, np.ndarray)
    kept = xr.DataArray(np.zeros(values.sizes["depth"]), dims=["depth"]) if several else order
    given = (values, rounding.values, rounding.model, rounding.count, rounding.floor, kept)
    bare = [_of_batch(x) for x in given]

    def core(values, lost, model, count, floor, kept):
        cuts = [_Cut(values, lost, model, count, floor)]
        orders = [np.full(kept.shape, r) for r in order] if several else [kept]
        if several:  # the same paths along the depth for all orders
            cuts[0].paths = cuts[0].along_depth(np.zeros(kept.shape))
        found = [cuts[0].bounds(kept) for kept in orders]
        return tuple(np.stack(np.broadcast_arrays(*x), axis=-1) for x in zip(*found, strict=True))

    names = (*_NAMES, "lower_is_certified", "upper_is_certified", "claim")
    parts = xr.apply_ufunc(
        core,
        *bare,
        input_core_dims=[_TWO, [], [], ["depth"], ["depth"], ["depth"]],
        output_core_dims=[["order_"]] * len(names),
    )
    *parts, claim = parts
    found = xr.Dataset(dict(zip(names, parts, strict=False)) | {"resolution": bare[1]})
    found.attrs["certified"] = _in_words(found, claim, *bare[:3])
    return found


def _of_batch(value: xr.DataArray) -> xr.DataArray:
    """The array with labels of batch dims only."""
    coords = {c: v.variable for c, v in value.coords.items() if c in value.dims and c not in _TWO}
    return xr.DataArray(value.variable, coords=coords)


class _Cut:
    """Truncation of Hankel values (..., depth, index), for any numbers of kept states."""

    def __init__(self, values, lost, model, count, floor) -> None:
        self.values, self.lost, self.model, self.floor = values, lost, model, floor
        self.high = values + lost[..., None, None]
        self.low = np.maximum(values - lost[..., None, None], 0.0)
        self.exists = np.arange(values.shape[-1]) < count[..., None]
        top = values.max((-2, -1), initial=0.0)
        self.enough = (lost <= CERTIFIABLE * top) | (lost == 0)
        worst = np.maximum(lost, model)
        self.known = (worst <= CERTIFIABLE * top) | (worst == 0)
        self.paths: tuple[np.ndarray, np.ndarray] | None = None

    def along_depth(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cost of the cheapest split, and whether the values are unimodal, of every index."""
        cut = self.exists & (np.arange(self.values.shape[-1]) >= kept[..., None])
        split = cheapest_split(*(np.where(cut, x, 0.0) for x in (self.high, self.low)))
        return split, unimodal(np.where(cut, self.values, 0.0))

    def bounds(self, kept: np.ndarray) -> tuple[np.ndarray, ...]:
        """The variables of `error_bounds`, and the largest value that is cut."""
        index = np.arange(self.values.shape[-1])
        cut = self.exists & (index >= kept[..., None])
        if self.paths is None:
            split, single = self.along_depth(kept)
        else:
            out = index >= kept[..., :1].max(initial=0)
            split, single = np.where(out, self.paths[0], 0.0), self.paths[1] | ~out
        named, high = np.where(cut, self.values, 0.0), np.where(cut, self.high, 0.0)
        # what a basis leaves out beyond the order, one state after the other
        few = self.exists & ~cut & (self.values <= 2 * self.floor[..., None])
        extra = self.model + 2 * np.where(few, self.high, 0.0).sum((-2, -1))
        flat = named.reshape(*named.shape[:-2], -1)
        distinct = 2 * sum_of_distinct(flat) + 2 * cut.sum((-2, -1)) * self.lost + extra
        segment = split.sum(-1) + extra
        simple = 2 * high.max(-2).sum(-1) + extra
        proved = single.all(-1) & (segment <= simple * (1 + 1e-6)) & self.known
        # rounding of near-equal values costs the segment bound a little more
        simple = np.where(proved, np.maximum(simple, segment), simple)
        claim = named.max((-2, -1))
        lower = np.maximum(claim - self.lost, 0.0)
        nothing = (claim == 0) & (self.lost == 0)  # nothing left out, nothing rounded
        certain = (self.enough & (lower > 0)) | nothing
        uppers = [distinct, segment, np.minimum(distinct, segment), simple]
        uppers = [np.where(self.known, upper, np.inf) for upper in uppers]
        lower = np.where(certain, lower, 0.0)
        return lower, *uppers, proved, certain, np.isfinite(uppers[2]), claim


def _in_words(
    found: xr.Dataset,
    claim: xr.DataArray,
    values: xr.DataArray,
    lost: xr.DataArray,
    model: xr.DataArray,
) -> str:
    """What is not certified, and why: everything, or one of the bounds, or each for its reason."""
    if all(found[f"{bound}_is_certified"].values.all() for bound in ("lower", "upper")):
        return YES
    top = values.max(_TWO)
    every = xr.zeros_like(found["upper_is_certified"])
    enough = every | (lost <= CERTIFIABLE * top) | (lost == 0)
    text = certificate(enough, lost, top, "the largest Hankel value")
    if text != YES:
        return text
    upper = certificate(found["upper_is_certified"], model, top, "the largest Hankel value")
    upper = upper.replace("not certified", "upper bound not certified", 1)
    upper = upper.replace("(`resolution`)", "(`model_resolution` of `balanced_basis`)", 1)
    lower = certificate(
        found["lower_is_certified"],
        found["resolution"],
        claim,
        "the largest truncated Hankel value",
    )
    lower = lower.replace("not certified", "lower bound not certified", 1)
    if upper != YES:
        upper += (
            ". Where inputs and outputs are few, `realization` of `io_matrix(system)` avoids that: "
            "`error_bounds(io_matrix(system), order)`"
        )
    return "; ".join(part for part in (upper, lower) if part != YES) or YES


def sum_of_distinct(values: np.ndarray) -> np.ndarray:
    """Sum of (..., value), each number counted once."""
    values = np.sort(values, axis=-1)
    first = np.diff(values, axis=-1, prepend=-1.0) != 0
    return np.where(first, values, 0.0).sum(-1)


def cheapest_split(high: np.ndarray, low: np.ndarray) -> np.ndarray:
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


def unimodal(values: np.ndarray) -> np.ndarray:
    """Whether each sequence of positive values (..., depth, index) never rises after a fall."""
    step = np.diff(values, axis=-2)
    fell = np.cumsum(step < 0, axis=-2) > 0
    return np.logical_not((fell & (step > 0)).any(-2))
