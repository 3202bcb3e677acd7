"""Concept directions as tensors of a model, checked.

A depth may have no direction: where all texts are in one state, as at depth 0 where they end in
the same token. It is NaN in Datasets, and zero in tensors, so that a push along it does nothing.
"""

import numpy as np
import torch
import xarray as xr

from depthsys.lm.precision import wide_dtype
from depthsys.lm.run_model import Model
from depthsys.ltv.labels import in_order_of

_LABELS = ("input_name", "input")


def as_concept(concept: xr.Dataset | xr.DataArray) -> xr.Dataset:
    """A concept as a Dataset with ``direction``; that variable alone is enough.

    TypeError for anything else.
    """
    if isinstance(concept, xr.DataArray):
        return concept.to_dataset(name="direction")
    if not isinstance(concept, xr.Dataset) or "direction" not in concept:
        got = sorted(map(str, concept))[:8] if isinstance(concept, xr.Dataset) else ""
        raise TypeError(
            f"`concept` must be a Dataset with `direction`, or that array; got a "
            f"{type(concept).__name__}{f' with {got}' if got else ''}. Find one with "
            "`lm.mean_difference`."
        )
    return concept


def directions(model: Model, concept: xr.Dataset | xr.DataArray) -> torch.Tensor:
    """Concept directions (depth, input, feature) as a tensor of this model.

    ``concept`` holds ``direction`` (depth, feature), or (depth, input, feature) for several
    inputs per layer. Each is of unit length, or zero where it is undefined (NaN). They are float32
    at least: only what is pushed into a state, or carried by a Jacobian, is rounded to 16 bits.
    """
    given = as_concept(concept)["direction"]
    v = _directions(concept, model.n_layers + 1)
    expected = (model.n_layers + 1, v.shape[1], model.n_features)
    known = ~np.isnan(v).all(-1)
    if v.shape != expected or v.shape[1] < 1 or not np.isfinite(v[known]).all():
        raise ValueError(
            "`concept` must hold a finite direction (depth, feature), or (depth, input, "
            f"feature), of shape {(expected[0], expected[2])} per input; "
            f"got {given.shape}. Compute it with this model."
        )
    if not known.any(0).all():
        raise ValueError("`concept` must have a direction at some depth; got none at any.")
    v[~known] = 0
    norms = np.where(known, np.linalg.norm(v, axis=-1), 1.0)
    if abs(norms - 1).max() > 1e-6:
        depth, _ = np.unravel_index(abs(norms - 1).argmax(), norms.shape)
        worst = norms[depth][abs(norms[depth] - 1).argmax()]
        raise ValueError(
            f"`concept` must hold directions of unit length; got norm {worst:.7g} at "
            f"depth {depth}. Divide by the norm; a zero direction is none (write NaN)."
        )
    if v.shape[1] > model.n_features:
        raise ValueError(
            f"`concept` must hold at most {model.n_features} directions per depth, the width of "
            f"the model; got {v.shape[1]}. For all of R^H use `inputs='free'`."
        )
    return torch.as_tensor(v, dtype=wide_dtype(model.dtype), device=model.device)


def direction(model: Model, concept: xr.Dataset) -> torch.Tensor:
    """The one direction (depth, feature) of a concept; ValueError for several."""
    v = directions(model, concept)
    if v.shape[1] != 1:
        raise ValueError(
            f"`concept` must hold one direction per depth here; got {v.shape[1]}. Select one: "
            "`concept.isel(input=0)`."
        )
    return v[:, 0]


def defined(concept: xr.Dataset | xr.DataArray) -> np.ndarray:
    """Which directions exist (depth, input)."""
    return np.asarray(~np.isnan(_directions(concept)).all(-1))


def input_names(concept: xr.Dataset | xr.DataArray) -> list[str]:
    """What the inputs of a concept are called: by its labels, or counted; one is "concept"."""
    given = as_concept(concept)["direction"]
    count = given.sizes.get("input", 1)
    if count == 1:
        return ["concept"]
    for label in _LABELS:
        if label in given.coords:
            return [str(name) for name in given[label].values]
    return [f"concept{i}" for i in range(count)]


def in_inputs_of(plan: xr.Dataset, concept: xr.Dataset | xr.DataArray, name: str) -> xr.Dataset:
    """A plan or law with its inputs in the order of the concept's, without their labels.

    What has no labels goes by position, and so does a concept that has none where the plan's are
    other than those that it would be given.

    Raises
    ------
    ValueError
        If both have labels, and not the same.
    """
    if not isinstance(plan, xr.Dataset):
        return plan  # `schedule` refuses it
    told = [c for c in _LABELS if c in plan.coords and plan[c].dims == ("input",)]
    if not told:
        return plan
    bare = plan.drop_vars(told)
    ours, theirs = input_names(concept), [str(label) for label in plan[told[0]].values]
    if len(ours) != len(theirs) or len(ours) == 1:
        return bare  # of sizes that do not fit others tell
    held = as_concept(concept)["direction"].coords
    has_labels = any(label in held for label in _LABELS)
    kinds = {held[c].dtype.kind for c in _LABELS if c in held} | {plan[told[0]].dtype.kind}
    if not has_labels and set(theirs) == set(map(str, range(len(ours)))):
        ours = list(map(str, range(len(ours))))
    if set(ours) != set(theirs) or len(set(ours)) < len(ours):
        if not has_labels or ours == theirs or kinds & {"i", "u"}:
            return bare  # a number is no name
        raise ValueError(
            f"`{name}` must have the inputs of the concept, {ours}; got {theirs}. Make it for this "
            f"concept; if they are meant by position, drop the labels: `.drop_vars({told})`."
        )
    return bare.isel(input=[theirs.index(label) for label in ours])


def direction_note(concept: xr.Dataset | xr.DataArray) -> dict[str, str]:
    """The attr that says where there is no direction and why; or none."""
    note = concept.attrs.get("direction_note")
    return {} if note is None else {"direction_note": note}


def _directions(concept: xr.Dataset | xr.DataArray, n_depths: int | None = None) -> np.ndarray:
    direction = as_concept(concept)["direction"]
    if "input" not in direction.dims:
        direction = direction.expand_dims("input")
    if n_depths is None or direction.sizes.get("depth") == n_depths:
        depths = np.arange(direction.sizes["depth"])
        direction = in_order_of(direction, "concept", "depth", depths)
    return direction.transpose("depth", "input", "feature").values.astype(np.float64)
