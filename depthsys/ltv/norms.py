"""Norms of a linear time-varying system, and certified bounds on the error of reducing it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from depthsys.ltv.balancing import balanced
from depthsys.ltv.bounds import Rounding, bounds_of
from depthsys.ltv.gramians import (
    System,
    in_rows,
    long_maps,
    observability,
    reachability,
    values_and_resolution,
)
from depthsys.ltv.matrix_free import MatrixFree, checked_sizes, over_depth
from depthsys.ltv.response import known_map, size_of_map
from depthsys.ltv.rounding import (
    CERTIFIABLE,
    EPS,
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
    text = certificate(ok, resolution, norm, "the norm")
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
        R, S = reachability(A, B), observability(A, C, start=False)
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

        attrs: ``certified``, "yes", or what is not certified and why. Where only the model of
        `balanced_basis` is lost in rounding (its ``model_resolution``), ``lower`` still holds, and
        ``error_bounds(io_matrix(system), order)`` bounds the error of `realization`, which needs no
        factors: small where inputs and outputs are few.

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
    values, rounding = rounded_values(system)
    return bounds_of(values, order, rounding)


def rounded_values(system: System | xr.DataArray) -> tuple[xr.DataArray, Rounding]:
    """Hankel values (..., depth, index), and what is not exact in them and in models of them."""
    if isinstance(system, xr.DataArray):
        values, resolution = values_and_resolution(system)
        floor = RTOL * values.max("index") + resolution
        return values, Rounding(resolution, resolution, _existing(system), floor)
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
    return values, Rounding(resolution, model, _existing(system), floor)


def _existing(system: System | xr.DataArray) -> xr.DataArray:
    """How many Hankel values can differ from zero: inputs before, outputs to come, states."""
    if isinstance(system, MatrixFree):
        L, m, p = len(system.A), np.shape(system.B[0])[1], np.shape(system.C[0])[0]
    else:
        L, m, p = (system.sizes[dim] for dim in ("layer", "input", "output"))
    k = np.arange(L + 1)
    count = xr.DataArray(np.minimum(k * m, (L + 1 - k) * p), dims=["depth"])
    if isinstance(system, xr.DataArray):
        return count
    return xr.apply_ufunc(np.minimum, count, checked_sizes(system))
