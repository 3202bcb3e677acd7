r"""A schedule of pushes as data, and its algebra: energy, scaling, simple schedules.

A schedule holds ``u`` (layer, input), in the unit of the state: at the input of layer l, which is
the state at depth l, the vector :math:`\sum_i u_{l,i} v_{l,i}` is added. Its energy is
:math:`\sum_l w_l \sum_i u_{l,i}^2`; with :math:`w_l = 1 / \|x_l\|^2` it is relative: a push counts
by how much it changes the state.
"""

import numpy as np
import xarray as xr

from depthsys.ltv.labels import in_order_of
from depthsys.ltv.system import as_named, plain

ENERGIES = ("absolute", "relative")


def schedule(plan: xr.Dataset, n_layers: int, n_inputs: int, name: str = "plan") -> xr.DataArray:
    """``u`` (layer, input) of one schedule, with a dim for a single input.

    Raises
    ------
    ValueError
        If the plan has no ``u``, other sizes or layers, or holds several schedules.
    """
    if not isinstance(plan, xr.Dataset) or "u" not in plan:
        got = sorted(map(str, plan)) if isinstance(plan, xr.Dataset) else type(plan).__name__
        raise ValueError(
            f"`{name}` must be a Dataset with the variable 'u'; got {got}. Make one with "
            "`ltv.minimum_energy`, or `xr.Dataset({'u': u})`."
        )
    sizes = {"layer": n_layers, "input": n_inputs}
    u = plan["u"]
    single = n_inputs == 1 and "input" not in u.dims
    if dict(u.sizes) != ({"layer": n_layers} if single else sizes):
        raise ValueError(
            f"`{name}` must hold u (layer={n_layers}, input={n_inputs}); got "
            f"{dict(u.sizes)}. Select one schedule of a batch first."
        )
    u = in_order_of(u, f"{name}.u", "layer", np.arange(n_layers))
    return (u.expand_dims("input") if single else u).transpose("layer", "input")


def check_pushes_exist(u: xr.DataArray, exists: np.ndarray, name: str = "plan") -> None:
    """ValueError where u (layer, input) pushes along a direction that does not exist.

    ``exists`` (layer, input). What is below the rounding of the largest push is none.
    """
    size = abs(u.transpose(..., "layer", "input").values)
    wrong = (size > 1e-9 * size.max(initial=0.0)) & ~exists
    if wrong.any():
        layer = int(np.argwhere(wrong)[0][-2])
        raise ValueError(
            f"`{name}` must not push at layer {layer}, which has no direction there (NaN in the "
            f"concept); got {size[..., layer, :].max():.3g}. Set `u` to zero there."
        )


def layer_weights(system: xr.Dataset, energy: str) -> xr.DataArray:
    """Cost of a push (layer): 1 for "absolute" energy, 1 / norm² of the state for "relative"."""
    if energy not in ENERGIES:
        raise ValueError(f"`energy` must be one of {ENERGIES}; got {energy!r}. Pick one.")
    if energy == "absolute":
        return xr.DataArray(np.ones(system.sizes["layer"]), dims="layer")
    norm = system["state_norm"].isel(depth=slice(-1)).rename(depth="layer")
    return 1 / norm.drop_vars([n for n in norm.coords if n != "layer"]) ** 2


def plan_energy(u: xr.DataArray, weights: xr.DataArray | None = None) -> xr.DataArray:
    """Energy of schedules (..., layer, input)."""
    cost = 1.0
    if weights is not None:
        if "layer" in u.coords:
            weights = in_order_of(weights, "weights", "layer", u["layer"].values)
        cost = weights.drop_vars("layer", errors="ignore")
    square = (u.drop_vars("layer", errors="ignore") ** 2) * cost
    return square.sum([d for d in ("layer", "input") if d in u.dims])


def to_unit_energy(u: xr.DataArray, weights: xr.DataArray | None = None) -> xr.DataArray:
    """Schedules (schedule, layer, input) scaled to energy 1.

    Raises
    ------
    ValueError
        If a schedule is zero or not finite.
    """
    energy = plan_energy(u, weights)
    if not bool(np.isfinite(u).all()):  # a sum would leave NaN out
        raise ValueError("`schedules` must be finite; got NaN or infinity. Drop those rows.")
    if not bool((energy > 0).all()):
        raise ValueError("`schedules` must not be zero; got an all-zero row. Drop it.")
    return u / np.sqrt(energy)


def simple_schedules(
    gains: xr.DataArray, target: np.ndarray, weights: xr.DataArray | None = None
) -> xr.DataArray:
    r"""The schedules that a plan is compared with: uniform, and every single layer.

    Each pushes where the linear model expects progress towards the target: a layer along
    :math:`w_l^{-1} G_l^\top d`, for one input its sign; the uniform one with the same size at all
    layers and inputs, each input with the sign that helps over all layers.

    Parameters
    ----------
    gains
        G_l (layer, output, input), terminal gains.
    target
        d (output), the wanted shift.
    weights
        Cost (layer).

    Returns
    -------
    xr.DataArray
        (schedule, layer, input); ``schedule`` is "uniform", "layer_0", "layer_1", ...
    """
    G = gains.transpose("layer", "output", "input").values
    n_layers, _, n_inputs = G.shape
    along = np.einsum("loi,o->li", G, np.atleast_1d(plain(target, "target")))
    if weights is None:
        cost = np.ones(n_layers)
    else:
        weights = as_named(weights, "weights", {"layer": n_layers})
        if "layer" in gains.coords:
            weights = in_order_of(weights, "weights", "layer", gains["layer"].values)
        cost = weights.values
    single = np.zeros((n_layers, n_layers, n_inputs))
    for layer in range(n_layers):
        push = along[layer] / cost[layer]
        size = np.linalg.norm(push)
        # a layer that the model expects nothing of is pushed along its first input
        single[layer, layer] = push / size if size > 0 else np.eye(n_inputs)[0]
    signs = np.where(along.sum(axis=0) < 0, -1.0, 1.0)
    uniform = np.broadcast_to(signs, (1, n_layers, n_inputs))
    names = ["uniform", *(f"layer_{layer}" for layer in range(n_layers))]
    return xr.DataArray(
        np.concatenate([uniform, single]),
        dims=("schedule", "layer", "input"),
        coords={"schedule": names},
    )
