"""Which layers may push, and how much: the options of a plan as arrays beside its system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from depthsys.ltv.labels import aligned
from depthsys.ltv.matrix_free import MatrixFree, labels
from depthsys.ltv.plan import layer_norms
from depthsys.ltv.system import as_named
from depthsys.ltv.targets import bound

System = xr.Dataset | MatrixFree
DIMS = {
    "lower": ["layer", "input"],
    "upper": ["layer", "input"],
    "turn": ["layer", "input", "input_2"],
    "radius": ["layer"],
}


def layer_numbers(layers: Any) -> list[int]:
    """Layers that are named by their numbers, one or several.

    Raises
    ------
    ValueError
        If one is no whole number. A mask would quietly mean layers 0 and 1.
    """
    if isinstance(layers, (np.ndarray, xr.DataArray)):
        layers = np.asarray(layers).tolist()
    try:
        given = [layers] if isinstance(layers, (str, bytes)) else list(layers)
    except TypeError:
        given = [layers]
    if not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in given):
        raise ValueError(
            f"`layers` must be whole numbers, the labels of layers; got {layers!r}. Name those "
            "that may push, as [0, 3]; for a mask write `np.flatnonzero(mask)`."
        )
    return [int(n) for n in given]


def pushing_layers(system: System, layers: int | Sequence[int] | None) -> np.ndarray:
    """Which layers (layer) may push, by their labels; all where ``layers`` is None.

    Raises
    ------
    ValueError
        If a label is no whole number or not one of the system, or none is given.
    """
    known = labels(system, "layer")
    if layers is None:
        return np.ones(len(known), dtype=bool)
    given = layer_numbers(layers)
    if not given or not np.isin(given, known).all():
        raise ValueError(
            f"`layers` must be labels of layers of the system, {known[0]}..{known[-1]}, at least "
            f"one; got {layers!r}. Name those that may push."
        )
    return np.isin(known, given)


def push_limits(
    system: System, lower: Any, upper: Any, max_relative_push: Any, pushes: np.ndarray
) -> dict[str, xr.DataArray] | None:
    """The bounds of a plan by the names of `DIMS`, or None where there is none.

    Parameters
    ----------
    system
        Uses ``state_norm`` and ``v`` for a relative bound.
    lower, upper
        Scalar, (input) or (layer, input); None for no bound.
    max_relative_push
        The largest part of the state's norm that a push may have; a number or (layer).
    pushes
        Which layers (layer) may push; what does not push has no bound.

    Raises
    ------
    ValueError
        If a bound forbids to do nothing, is not a number, or the system does not know what a
        relative push is.
    """
    if lower is None and upper is None and max_relative_push is None:
        return None
    box = bound(system, lower, "lower", -np.inf), bound(system, upper, "upper", np.inf)
    if not (bool((box[0] <= 0).all()) and bool((box[1] >= 0).all())):
        raise ValueError(
            "`lower` must be at most 0 and `upper` at least 0, since a layer may do nothing; got "
            f"lower up to {float(box[0].max()):g}, upper down to {float(box[1].min()):g}. Turn the "
            "sign, or choose which `layers` push."
        )
    sizes = {dim: box[0].sizes[dim] for dim in ("layer", "input")}
    if max_relative_push is None:
        turn = xr.DataArray(np.eye(sizes["input"]), dims=["input", "input_2"])
        turn = turn.expand_dims(layer=sizes["layer"])
        radius = xr.DataArray(np.full(sizes["layer"], np.inf), dims=["layer"])
    else:
        turn, radius = _relative(system, max_relative_push, sizes)
    radius = radius.where(xr.DataArray(pushes, dims=["layer"]), np.inf)
    found = dict(zip(DIMS, (*box, turn, radius), strict=True))
    return {name: each.drop_vars("layer", errors="ignore") for name, each in found.items()}


def _relative(system: System, rho: Any, sizes: dict[str, int]) -> tuple[xr.DataArray, xr.DataArray]:
    """The matrix whose product with u is as long as the push, and how long it may be."""
    if isinstance(system, MatrixFree) or "state_norm" not in system:
        raise ValueError(
            "`max_relative_push` must be left out for a system without 'state_norm' (depth), the "
            f"mean norm of the state; got {rho}. Give `lower` and `upper` in the unit of the input."
        )
    most = as_named(rho, "max_relative_push", {}, {"layer": sizes["layer"]})
    if not bool((most > 0).all()):
        raise ValueError(
            f"`max_relative_push` must be positive; got {float(most.min()):g}. Leave layers out by "
            "`layers`."
        )
    radius = aligned(most, "max_relative_push", system) * layer_norms(system).drop_vars(
        "layer", errors="ignore"
    )
    m = sizes["input"]
    if "v" not in system:
        if m > 1 and system.attrs.get("inputs") != "free":
            raise ValueError(
                "`max_relative_push` must be left out for a system of several inputs without their "
                f"directions 'v' (depth, feature, input); got {rho}. Give `lower` and `upper`, or "
                "identify it with `lm.identify`."
            )
        turn = xr.DataArray(np.eye(m), dims=["input", "input_2"])
        return turn.expand_dims(layer=sizes["layer"]), radius
    v = system["v"].isel(depth=slice(-1)).rename(depth="layer").fillna(0.0)
    v = v.drop_vars(list(v.coords))
    turn = xr.apply_ufunc(
        _triangle,
        v,
        input_core_dims=[["feature", "input"]],
        output_core_dims=[["input", "input_2"]],
        exclude_dims={"input"},
    )
    return turn, radius


def _triangle(v: np.ndarray) -> np.ndarray:
    """R (..., input, input) with |R u| = |v u|, for v (..., feature, input)."""
    found = np.asarray(np.linalg.qr(v, mode="r"))
    missing = v.shape[-1] - found.shape[-2]
    return np.pad(found, [(0, 0)] * (found.ndim - 2) + [(0, missing), (0, 0)])
