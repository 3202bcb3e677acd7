"""How well the layers control the states and the outputs.

A Gramian is singular whenever there are fewer inputs so far than states. So every measure is taken
on the reachable part, and its rank is reported beside it.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.gramians import System, reachability, singular_values, used_values
from depthsys.ltv.labels import aligned
from depthsys.ltv.matrix_free import (
    MatrixFree,
    labels,
    over_depth,
    state_size,
    state_sizes,
    transposed,
)
from depthsys.ltv.response import gains
from depthsys.ltv.rounding import (
    YES,
    certificate,
    local_noises,
    noise_of_factors,
    row_lengths,
    size_of_noise,
)
from depthsys.ltv.system import as_named, check
from depthsys.ltv.terminal_gains import state_gains

RTOL = 1e-10
COORDINATES = (
    "average, worst_case_energy, log_volume, residual and average_from_layer are of states: they "
    "depend on the coordinates of the state; ranks and what is of outputs does not"
)


def controllability(system: System, *, rtol: float = RTOL) -> xr.Dataset:
    r"""Controllability measures per depth and per input layer.

    Parameters
    ----------
    system
        A system.
    rtol
        Singular values of the factor R_k below ``rtol`` times the largest count as unreachable.

    Returns
    -------
    xr.Dataset
        Per depth, with :math:`\lambda_i` the positive eigenvalues of :math:`P_k`:

        ``state_rank``
            Number of reachable directions.
        ``average``
            :math:`\mathrm{tr} P_k`, (state/input)^2: energy in the states per white unit input.
        ``worst_case_energy``
            :math:`1/\min \lambda_i`, (input/state)^2: to reach the hardest reachable unit state.
        ``residual``
            Root of the share of :math:`\mathrm{tr} P_k` in directions that count as unreachable.
        ``log_volume``
            :math:`\sum \log \lambda_i`: twice the log volume of what unit energy reaches, up to
            the volume of the unit ball of that rank.
        ``output_rank``, ``output_worst_case_energy``
            The same for the outputs, from :math:`C_k P_k C_k^\top`; what is below ``rtol`` of
            :math:`\|C_k\| \|R_k\|` counts as zero.
        ``resolution``, ``output_resolution``
            What rounding explains in a singular value of R_k (state/input) and of C_k R_k
            (output/input), estimated by carrying random rounding errors along the depth.
        ``state_rank_is_certified``, ``output_rank_is_certified``
            False where a singular value is nearer to what counts as zero than that: the rank may
            be another.

        ``output_average``
            :math:`\mathrm{tr}\, C_k P_k C_k^\top`, (output/input)^2: energy in the outputs per
            white unit input.

        Per input layer, used alone:

        ``average_from_layer``
            :math:`\mathrm{tr} P_L` from that layer.
        ``output_average_from_layer``
            The same for the outputs, :math:`\mathrm{tr}\, C_L P_L C_L^\top`.
        ``energy_from_layer`` (layer, output)
            Least energy to shift that output of y_L by one; inf where the layer does not reach
            it (a gain below ``rtol`` of its row of :math:`C_L` times the largest state gain).

        Where nothing is reachable (depth 0) the energies are inf and the log volume is 0.
        ``note`` in attrs says which depend on the coordinates of the state.

    Notes
    -----
    ``average``, ``worst_case_energy``, ``log_volume``, ``residual`` and ``average_from_layer``
    measure states, in the coordinates that the system has: another basis of the same system has
    others, and may rank the layers differently. Ranks do not change, and neither does what measures
    outputs. Compare layers or systems by ``output_average``, ``output_average_from_layer``,
    ``output_worst_case_energy`` and ``energy_from_layer``, unless the coordinates mean something
    (the residual stream of a model, metres and seconds).

    References
    ----------
    .. [1] Müller and Weber (1972), doi:10.1016/0005-1098(72)90044-1: trace, determinant, minimum.
    .. [2] Pasqualetti, Zampieri and Bullo (2014), doi:10.1109/TCNS.2014.2310254.
    """
    rtol = _checked_rtol(rtol)

    def core(A, B, C):
        rows, factors = [], reachability(A, B)
        reached, read = row_lengths(factors), row_lengths([transposed(c) for c in C])
        lost = local_noises(factors, [transposed(c) for c in C], (reached, read))
        noises = noise_of_factors(A, B, factors, reached)
        for k, (c, R, noise) in enumerate(zip(C, factors, noises, strict=True)):
            seen = c @ R if R.shape[-1] else R
            scale = np.linalg.norm(c, axis=(-2, -1)) * np.linalg.norm(R, axis=(-2, -1))
            state, output = size_of_noise(noise), size_of_noise(c @ noise)
            output = output + lost[..., k]
            rows.append(
                [
                    *_measures(R, rtol, None, state),
                    *_measures(seen, rtol, scale, output),
                    state,
                    output,
                ]
            )
        return tuple(
            np.stack(np.broadcast_arrays(*parts), axis=-1) for parts in zip(*rows, strict=True)
        )

    found = over_depth(core, system, "ABC", [["depth"]] * 14)
    rank, average, least, volume, residual, certain, *rest = found
    output_rank, seen, output_least, _, _, output_certain, resolution, output_resolution = rest
    gain, output = state_gains(system), gains(system)
    squares = (gain**2).sum(["state", "input"])
    reach = (output**2).sum("input")
    floor = rtol**2 * _readout(system) * squares.max("layer")
    return xr.Dataset(
        {
            "state_rank": rank,
            "average": average,
            "worst_case_energy": _inverse(least),
            "log_volume": volume,
            "residual": residual,
            "output_rank": output_rank,
            "output_average": seen,
            "output_worst_case_energy": _inverse(output_least),
            "resolution": resolution,
            "output_resolution": output_resolution,
            "state_rank_is_certified": certain,
            "output_rank_is_certified": output_certain,
            "average_from_layer": squares,
            "output_average_from_layer": reach.sum("output"),
            "energy_from_layer": _inverse(reach.where(reach > floor, 0.0)),
        },
        coords={"depth": labels(system, "depth"), "layer": labels(system, "layer")},
        attrs={
            "rtol": rtol,
            "note": COORDINATES,
            "certified": _in_words(certain, output_certain, found),
        },
    )


def _in_words(certain: xr.DataArray, output_certain: xr.DataArray, found: tuple) -> str:
    """The text of ``attrs["certified"]``."""
    parts = (
        ("a state rank", certain, found[12], "sqrt(average)", found[1] ** 0.5),
        ("an output rank", output_certain, found[13], "the length of C R", found[7] ** 0.5),
    )
    for name, ok, lost, what, size in parts:
        if (text := certificate(ok, lost, size, what)) != YES:
            return f"{name} is {text}"
    return YES


def _inverse(value: xr.DataArray) -> xr.DataArray:
    """1 / value, and inf where it is zero."""
    return (1.0 / value.where(value > 0)).fillna(np.inf)


def _readout(system: System) -> xr.DataArray:
    """Summed squares of each row of C_L."""
    if isinstance(system, MatrixFree):
        return xr.DataArray((np.asarray(system.C[-1]) ** 2).sum(1), dims=["output"])
    last = system["C"].isel(depth=-1, drop=True).drop_vars("order", errors="ignore")
    return (last**2).sum("state")


def _measures(
    factor: np.ndarray, rtol: float, scale: np.ndarray | None, lost: np.ndarray
) -> list[np.ndarray]:
    """Rank, trace, least positive eigenvalue (or 0), log volume, residual of factor factor'.

    And whether the rank is the same for all values that differ from these by ``lost``.
    """
    if factor.shape[-1] == 0:
        zero = np.zeros(factor.shape[:-2])
        return [zero.astype(int), zero, zero, zero, zero, zero == 0]
    s = singular_values(factor)
    used, limit = used_values(s, rtol), rtol * s[..., :1]
    if scale is not None:
        used &= s > rtol * scale[..., None]
        limit = np.maximum(limit, rtol * scale[..., None])
    doubt = np.asarray(lost)[..., None]
    certain = ((s > limit + doubt) == (s > limit - doubt)).all(-1)
    least = np.where(used.any(-1), np.where(used, s, np.inf).min(-1), 0.0)
    volume = 2 * np.log(np.where(used, s, 1.0)).sum(-1)
    ignored = np.linalg.norm(np.where(used, 0.0, s), axis=-1)
    total = np.linalg.norm(s, axis=-1)
    residual = ignored / np.where(total > 0, total, 1.0)
    return [used.sum(-1), total**2, least**2, volume, residual, certain]


def reachable_fraction(
    system: System, target: ArrayLike | xr.DataArray, *, rtol: float = RTOL
) -> xr.DataArray:
    r"""The part of a target state that can be reached, :math:`\|P P^+ d\| / \|d\|`, per depth.

    Parameters
    ----------
    system
        A system.
    target
        d, (state) or (depth, state); may have batch dims.
    rtol
        As for `controllability`.

    Returns
    -------
    xr.DataArray
        ``reachable_fraction`` (depth), 1 where the whole target is reachable from x_0 = 0.

    Raises
    ------
    ValueError
        If the target has other sizes, is not finite, or is zero.
    """
    rtol = _checked_rtol(rtol)
    size, depths = state_size(system), labels(system, "depth")
    wanted = {"depth": len(depths), "state": size}
    target = aligned(as_named(target, "target", {"state": size}, wanted), "target", system)
    if "depth" not in target.dims:
        target = target.expand_dims(depth=len(depths))
    target = target.transpose(..., "depth", "state")
    length = np.sqrt((target**2).sum("state"))
    if bool((length == 0).any()):
        raise ValueError("`target` must not be zero; got a zero one. Give a direction.")

    def core(A, B, target):
        parts = []
        for k, R in enumerate(reachability(A, B)):
            if R.shape[-1] == 0:
                parts.append(np.zeros(np.broadcast_shapes(R.shape[:-2], target.shape[:-2])))
                continue
            U, s, _ = np.linalg.svd(R, full_matrices=False)
            inside = (
                transposed(U * used_values(s, rtol)[..., None, :])
                @ target[..., k, : R.shape[-2], None]
            )
            parts.append(np.linalg.norm(inside[..., 0], axis=-1))
        return np.stack(np.broadcast_arrays(*parts), axis=-1)

    part = over_depth(core, system, "AB", [["depth"]], target, extra_dims=[["depth", "state"]])
    fraction = np.minimum(part / length, 1.0)  # rounding can pass 1 by an eps
    return fraction.rename("reachable_fraction").assign_coords(depth=depths)


def modal_controllability(system: xr.Dataset) -> xr.Dataset:
    r"""How far each mode of each frozen layer is from being unreachable by each input.

    :math:`|w^\top b| / (\|w\| \|b\|)` for left eigenvectors w of A_l and columns b of B_l: 0 where
    the Popov-Belevitch-Hautus test fails, 1 where the input points along the mode. A repeated
    eigenvalue has no eigenvectors of its own: then a test of one vector says nothing.

    Parameters
    ----------
    system
        A system with one state size at all depths, since a frozen layer maps a state to itself.

    Returns
    -------
    xr.Dataset
        ``cosine`` (layer, mode, input), ``modulus`` and ``angle`` (layer, mode) of the eigenvalue
        in radians; modes by falling modulus.

    Raises
    ------
    ValueError
        If the state size varies.

    References
    ----------
    .. [1] Hamdan and Nayfeh (1989), doi:10.2514/3.20424.
    """
    check(system)
    sizes = state_sizes(system).values
    if (sizes != sizes.flat[0]).any():
        raise ValueError(
            f"`system` must have one state size to freeze a layer; got orders {sizes}. Use "
            "`controllability`, which follows the depth."
        )

    def core(layers_of_A, layers_of_B):
        A, B = np.stack(layers_of_A, axis=-3), np.stack(layers_of_B, axis=-3)
        values, W = np.linalg.eig(transposed(A))
        order = np.argsort(-np.abs(values), axis=-1, kind="stable")
        values = np.take_along_axis(values, order, axis=-1)
        W = np.take_along_axis(W, order[..., None, :], axis=-1)
        length = np.linalg.norm(B, axis=-2)[..., None, :]
        cosine = np.abs(transposed(W) @ B) / np.where(length > 0, length, 1.0)
        return cosine, np.abs(values), np.angle(values)

    cosine, modulus, angle = over_depth(
        core, system, "AB", [["layer", "mode", "input"], ["layer", "mode"], ["layer", "mode"]]
    )
    data = {"cosine": cosine, "modulus": modulus, "angle": angle}
    return xr.Dataset(data, coords={"layer": system["layer"]})


def _checked_rtol(rtol: float) -> float:
    if not 0 < rtol < 1:
        raise ValueError(f"`rtol` must be between 0 and 1; got {rtol}. Leave it at {RTOL:.0e}.")
    return float(rtol)
