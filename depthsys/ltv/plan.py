r"""A schedule of pushes as data, and its algebra: energy, scaling, simple schedules.

A schedule holds ``u`` (layer, input), in the unit of the state: at the input of layer l, which is
the state at depth l, the vector :math:`\sum_i u_{l,i} v_{l,i}` is added. Its energy is
:math:`\sum_l w_l \sum_i u_{l,i}^2`; with :math:`w_l = 1 / \|x_l\|^2` it is relative: a push counts
by how much it changes the state.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from depthsys.ltv.labels import in_order_of
from depthsys.ltv.matrix_free import MatrixFree
from depthsys.ltv.system import as_named, plain

ENERGIES = ("relative", "absolute")
# A push above this part of the state's norm is no small push: at 0.1 gains of two real models are
# off by 1 to 4 %, at 0.3 by 7 to 21 %.
LARGE_PUSH = 0.3
# What a plan does, in the file that holds it: how a vector acts on the state, where, on which
# tokens, and in which unit its ``u`` is.
WHAT_IT_DOES = {
    "operation": "add",
    "hook": "input of block l, the state at depth l",
    "positions": "last",
    "unit": "state",
}
# what a plan keeps of the system that it was made with
OF_SYSTEM = (
    "model",
    "revision",
    "model_fingerprint",
    "concept",
    "concept_sha256",
    "readout",
    "prompts_sha256",
)


def schedule(plan: xr.Dataset, n_layers: int, n_inputs: int, name: str = "plan") -> xr.DataArray:
    """``u`` (layer, input) of one schedule, with a dim for a single input.

    Raises
    ------
    ValueError
        If the plan has no ``u``, other sizes or layers, holds several schedules, or is not real.
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
    if u.dtype.kind not in "biuf":
        raise ValueError(
            f"`{name}` must hold real numbers as u; got {u.dtype}. Take the real part, if that is "
            "what is meant."
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


def chosen_energy(system: xr.Dataset | MatrixFree, energy: str | None) -> str:
    """The energy that is asked for; by default "relative" where the system can say what that is.

    Raises
    ------
    ValueError
        If ``energy`` is unknown, or relative without ``state_norm``.
    """
    known = not isinstance(system, MatrixFree) and "state_norm" in system
    if energy is None:
        return "relative" if known else "absolute"
    if energy not in ENERGIES:
        raise ValueError(f"`energy` must be one of {ENERGIES}; got {energy!r}. Pick one.")
    if energy == "relative" and not known:
        raise ValueError(
            "`energy` must be 'absolute' for a system without 'state_norm' (depth), the mean norm "
            "of the state; got 'relative'. Identify it with `lm.identify`, or assign 'state_norm'."
        )
    return energy


def layer_weights(system: xr.Dataset, energy: str) -> xr.DataArray:
    """Cost of a push (layer): 1 for "absolute" energy, 1 / norm² of the state for "relative"."""
    if chosen_energy(system, energy) == "absolute":
        return xr.DataArray(np.ones(system.sizes["layer"]), dims="layer")
    return 1 / layer_norms(system) ** 2


def layer_norms(system: xr.Dataset) -> xr.DataArray:
    """Mean norm of the state at the input of every layer (layer).

    Raises
    ------
    ValueError
        If one is not a positive number.
    """
    norm = system["state_norm"].isel(depth=slice(-1)).rename(depth="layer")
    if not bool(((norm > 0) & np.isfinite(norm)).all()):
        raise ValueError(
            "`system` must have a positive 'state_norm' at the input of every layer; got "
            f"{float(norm.min()):g} for the least. Identify it again, or ask for absolute energy."
        )
    return norm.drop_vars([n for n in norm.coords if n != "layer"])


def push_sizes(u: xr.DataArray, v: xr.DataArray, state_norm: xr.DataArray) -> xr.DataArray:
    r"""How large the pushes of a schedule are: :math:`|\sum_i u_{l,i} v_{l,i}| / \|x_l\|`.

    Parameters
    ----------
    u
        (..., layer, input), unit of the state.
    v
        Directions (depth, feature, input); NaN where there is none.
    state_norm
        Mean norm of the nominal state (depth).

    Returns
    -------
    xr.DataArray
        ``push`` (..., layer), a fraction of the state's norm.
    """
    first = v.isel(depth=slice(u.sizes["layer"])).rename(depth="layer").fillna(0.0)
    norm = state_norm.isel(depth=slice(u.sizes["layer"])).rename(depth="layer")
    bare = [each.drop_vars(["layer", "input"], errors="ignore") for each in (u, first, norm)]
    vector = xr.dot(bare[0], bare[1], dim="input")
    size = (vector**2).sum("feature") ** 0.5 / bare[2].reset_coords(drop=True)
    at = u["layer"].values if "layer" in u.coords else np.arange(u.sizes["layer"])
    return size.assign_coords(layer=at).rename("push")


def large_push(push: xr.DataArray) -> dict[str, str]:
    """The attr ``warning`` where pushes (..., layer) are above `LARGE_PUSH`; or none."""
    values = push.transpose(..., "layer").values.reshape(-1, push.sizes["layer"]).max(axis=0)
    # a plan that was bounded there lies on the bound, to rounding
    where = np.flatnonzero(values > LARGE_PUSH * (1 + 1e-6))
    if not len(where):
        return {}
    names = push["layer"].values if "layer" in push.coords else np.arange(len(values))
    layers = ", ".join(str(names[at]) for at in where)
    return {
        "warning": f"pushes of more than {LARGE_PUSH:g} of the state's norm at layer"
        f"{'s' * (len(where) > 1)} {layers} (largest {values.max():.2f} at layer "
        f"{names[values.argmax()]}): linear predictions do not hold there"
    }


def about_plan(
    system: xr.Dataset | MatrixFree, u: xr.DataArray, layers: Sequence[int], energy: str
) -> tuple[xr.DataArray | None, dict[str, str]]:
    """What a schedule does to the states of the model of its system.

    Parameters
    ----------
    system
        The system that it was made with.
    u
        (..., layer, input).
    layers
        Labels of the layers that might push.
    energy
        How its energy counts: "relative", "absolute" or "weights".

    Returns
    -------
    tuple
        ``push`` (..., layer), see `push_sizes`, or None where the system knows no ``state_norm`` or
        no directions; and attrs: how the energy counts, which layers might push, and, of a system
        of a language model, `WHAT_IT_DOES`, ``sign``, ``target_unit``, which model it is, and a
        ``warning`` where a push is large.
    """
    attrs = {"energy": energy, "layers": json.dumps([int(layer) for layer in layers])}
    if isinstance(system, MatrixFree) or "state_norm" not in system:
        return None, attrs
    if "v" in system:
        push = push_sizes(u, system["v"], system["state_norm"])
    elif system.attrs.get("inputs") == "free" or u.sizes["input"] == 1:
        size = (u.drop_vars("layer", errors="ignore") ** 2).sum("input") ** 0.5
        push = (size / layer_norms(system)).rename("push")
    else:
        return None, attrs
    attrs |= WHAT_IT_DOES | {"target_unit": "readout"}
    attrs |= {key: str(system.attrs[key]) for key in OF_SYSTEM if key in system.attrs}
    return push, attrs | sign_in_words(system.attrs, u.sizes["input"]) | large_push(push)


def sign_in_words(attrs: Mapping[Any, Any], n_inputs: int) -> dict[str, str]:
    """The attr ``sign``: what a push of positive ``u`` pushes towards; or none.

    Parameters
    ----------
    attrs
        Of a concept or a system: ``classes`` says the two of a single concept,
        ``classes_of_inputs`` or ``concepts`` (of `lm.several`) those of several by name.
    n_inputs
        How many inputs there are; those of unknown classes are left out.
    """
    if n_inputs == 1 and (pair := _pair(attrs.get("classes"))):
        return {"sign": f"u > 0 pushes towards {pair[1]!r}, u < 0 towards {pair[0]!r}"}
    each = classes_of_inputs(attrs)
    if not each or len(each) > n_inputs:
        return {}
    words = (
        f"u > 0 of {name!r} pushes towards {up!r}, u < 0 towards {down!r}"
        for name, (down, up) in each.items()
    )
    return {"sign": "; ".join(words)}


def classes_of_inputs(attrs: Mapping[Any, Any]) -> dict[str, list]:
    """The two classes of every input of which they are known, by name, of several concepts."""
    if isinstance(known := _read(attrs.get("classes_of_inputs")), dict):
        found = known
    elif isinstance(each := _read(attrs.get("concepts")), dict):
        found = {k: v.get("classes") for k, v in each.items() if isinstance(v, dict)}
    else:
        return {}
    return {str(name): pair for name, two in found.items() if (pair := _pair(two))}


def _read(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:  # of somebody else
        return None


def _pair(classes: Any) -> list | None:
    two = _read(classes)
    return two if isinstance(two, list) and len(two) == 2 else None


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
