"""One table of reduction methods against orders, with the certificates beside the exact errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import numpy as np
import xarray as xr

from depthsys.ltv.basis import RankError, balanced_basis
from depthsys.ltv.bounds import Rounding
from depthsys.ltv.gramians import System
from depthsys.ltv.norms import bounds_of, rounded_values, spectral_norm
from depthsys.ltv.project import project
from depthsys.ltv.response import known_map
from depthsys.ltv.rounding import CERTIFIABLE, YES, certificate, frobenius

Basis = Callable[..., xr.Dataset]
_MAP = ["depth", "output", "layer", "input"]


def compare(
    system: System,
    orders: Sequence[int],
    methods: Sequence[Basis] | Mapping[str, Basis],
) -> xr.Dataset:
    r"""Exact errors of every method at every order, beside what is proved about them.

    Parameters
    ----------
    system
        The full system.
    orders
        Numbers of states, each at least 1, rising.
    methods
        Functions ``basis(system, order=r)`` such as `balanced_basis`, or a mapping from names to
        them (for one with settings: ``{"pod": functools.partial(pod_basis, snapshots=x)}``).

    Returns
    -------
    xr.Dataset
        Dims ``basis`` and ``order`` after the batch dims of the system; errors in output/input:

        ``error``
            Exact :math:`\|G - \hat G\|` (induced norm).
        ``ratio``
            ``error / lower``: at 1 no model of that order can be better. NaN where ``lower`` is
            not certified.
        ``h2_error``, ``terminal_error``
            Root of the summed squares over all gains, and over the `gains` to the last depth.
        ``upper``
            Proved bound for `balanced_basis` (or a ``functools.partial`` of it), that of
            `error_bounds` for the states it keeps; NaN for all others, and where it is not
            certified.
        ``resolution_of_error``
            What rounding explains in ``error``: of the map of the full system, and of that of the
            reduced one as it is stored, which may be far worse (a Galerkin basis in coordinates of
            very different size). Both are taken in long arithmetic where double precision would
            lose them and they are small.
        ``error_is_certified``
            False where that is more than 0.1 % of ``error`` and above ``resolution``.
        ``seconds``
            Wall time of basis and projection, for the whole batch: informative, not a benchmark.
        ``states``
            The largest number of states at any depth: ``order``, or the rank of the method if
            that is smaller. Above it ``order`` changes nothing, and the row is that of the rank.
        ``lower``, ``lower_is_certified``, ``simple``, ``simple_is_proved`` (order)
            See `error_bounds`.
        ``norm``, ``h2_norm``, ``terminal_norm``
            Of the full system: divide by them for relative errors.
        ``resolution``
            What rounding explains in the map of the full system and in its Hankel values.

        attrs: ``certified``, "yes", or "not certified" and why.

    Raises
    ------
    TypeError
        If a method is not a function, or ``methods`` is empty.
    ValueError
        If an order is not a whole number >= 1, they do not rise, or two methods share a name.

    Examples
    --------
    >>> from depthsys import ltv
    >>> A, B, C = [[0.5, 0.1], [0.0, 0.2]], [[1.0], [0.5]], [[1.0, 0.3]]
    >>> s = ltv.constant(A, B, C, horizon=12)
    >>> table = ltv.compare(s, orders=[1], methods=[ltv.balanced_basis, ltv.random_basis])
    >>> bool((table.error >= table.lower).all())
    True
    """
    named = _named(methods)
    sizes = _checked(orders)
    exact, floor = known_map(system)
    known_values = rounded_values(system)
    bounds = bounds_of(known_values[0], sizes, known_values[1])
    rows = [
        xr.concat(
            [_row(system, exact, floor, known_values, method, r) for r in sizes],
            dim=xr.Variable("order", sizes),
        )
        for method in named.values()
    ]
    table = xr.concat(rows, dim=xr.Variable("basis", list(named)))
    norm, lower = spectral_norm(exact), bounds["lower"]
    # an error that is zero to rounding is as certain as the map it is the difference of
    least = np.maximum(CERTIFIABLE * table["error"], 10 * floor.where(floor < CERTIFIABLE * norm))
    known = table["resolution_of_error"] <= least
    text = certificate(known, table["resolution_of_error"], table["error"], "the error")
    table = table.assign(
        ratio=(table["error"] / lower).where(bounds["lower_is_certified"]),
        lower=lower,
        simple=bounds["simple"],
        simple_is_proved=bounds["simple_is_proved"],
        lower_is_certified=bounds["lower_is_certified"],
        error_is_certified=known,
        norm=norm,
        h2_norm=_root_of_squares(exact),
        terminal_norm=_root_of_squares(exact.isel(depth=[-1])),
        resolution=np.maximum(floor, bounds["resolution"]),
    )
    table.attrs = {
        "unit": "output/input",
        "norm": "induced l2 (largest singular value of T)",
        "certified": bounds.attrs["certified"] if text == YES else text,
    }
    return table.transpose(..., "basis", "order")


def _row(
    system: System,
    exact: xr.DataArray,
    floor: xr.DataArray,
    known_values: tuple[xr.DataArray, Rounding],
    method: Basis,
    order: int,
) -> xr.Dataset:
    begin = perf_counter()
    basis, rank = _at_most(method, system, order)
    reduced = project(system, basis)
    seconds = perf_counter() - begin
    small, lost = known_map(reduced)
    difference = exact - small
    error = spectral_norm(difference)
    # the function itself is asked, not the label of the basis: it balanced this very system
    balanced = getattr(method, "func", method) is balanced_basis
    upper = error * np.nan
    if balanced:
        upper = bounds_of(known_values[0], basis["order"], known_values[1])["upper"]
        upper = upper.where(upper < np.inf)
    return xr.Dataset(
        {
            "error": error,
            "upper": upper,
            "h2_error": _root_of_squares(difference),
            "terminal_error": _root_of_squares(difference.isel(depth=[-1])),
            "resolution_of_error": floor + lost,
            "seconds": seconds,
            "states": rank,
        }
    )


def _at_most(method: Basis, system: System, order: int) -> tuple[xr.Dataset, int]:
    """The basis of that order, or of the rank if there is no more."""
    try:
        basis = method(system, order=order)
    except RankError as error:
        if error.rank == 0:
            raise ValueError(
                "`system` must connect some input to some output; got rank 0. There is nothing to "
                "reduce: the model of order 0 is exact."
            ) from error
        basis = method(system, order=error.rank)
    return basis, int(basis["order"].max())


def _root_of_squares(matrix: xr.DataArray) -> xr.DataArray:
    return xr.apply_ufunc(
        lambda T: frobenius(T.reshape(*T.shape[:-4], T.shape[-4] * T.shape[-3], -1)),
        matrix,
        input_core_dims=[_MAP],
    )


def _named(methods: Sequence[Basis] | Mapping[str, Basis]) -> dict[str, Basis]:
    if callable(methods) or isinstance(methods, str):
        raise TypeError(
            f"`methods` must be a list of functions or a mapping; got {methods!r}. Make it a list."
        )
    if isinstance(methods, Mapping):
        named = {str(name): method for name, method in methods.items()}
    else:
        names = [getattr(m, "__name__", type(m).__name__).removesuffix("_basis") for m in methods]
        if len(set(names)) < len(names):
            raise ValueError(
                f"`methods` must have different names; got {names}. Pass a mapping from names of "
                "your own to the functions."
            )
        named = dict(zip(names, methods, strict=True))
    if not named or not all(callable(method) for method in named.values()):
        raise TypeError(
            f"`methods` must hold functions such as `ltv.balanced_basis`; got {methods!r}. Pass "
            "the functions themselves, without calling them."
        )
    return named


def _checked(orders: Sequence[int]) -> list[int]:
    sizes = np.atleast_1d(np.asarray(orders))
    whole = sizes.dtype.kind in "iu" and sizes.ndim == 1 and sizes.size > 0
    if not whole or (sizes < 1).any() or (np.diff(sizes) <= 0).any():
        raise ValueError(
            f"`orders` must be rising whole numbers >= 1; got {orders!r}. For example [1, 2, 4, 8]."
        )
    return [int(r) for r in sizes]
