"""Concept directions as tensors of a model, checked."""

import numpy as np
import torch
import xarray as xr

from depthsys.lm.run import Model
from depthsys.ltv.labels import in_order_of


def directions(model: Model, concept: xr.Dataset) -> torch.Tensor:
    """Concept directions (depth, input, feature), unit length, as a tensor of this model.

    ``concept`` holds ``direction`` (depth, feature), or (depth, input, feature) for several
    inputs per layer.
    """
    direction = concept["direction"]
    if "input" not in direction.dims:
        direction = direction.expand_dims("input")
    if direction.sizes.get("depth") == model.n_layers + 1:
        direction = in_order_of(direction, "concept", "depth", np.arange(model.n_layers + 1))
    v = direction.transpose("depth", "input", "feature").values
    expected = (model.n_layers + 1, v.shape[1], model.n_features)
    if v.shape != expected or v.shape[1] < 1 or not np.isfinite(v).all():
        raise ValueError(
            "`concept` must hold a finite direction (depth, feature), or (depth, input, "
            f"feature), of shape {(expected[0], expected[2])} per input; "
            f"got {concept['direction'].shape}. Compute it with this model."
        )
    norms = np.linalg.norm(v, axis=-1)
    if abs(norms - 1).max() > 1e-6:
        depth, _ = np.unravel_index(abs(norms - 1).argmax(), norms.shape)
        worst = norms[depth][abs(norms[depth] - 1).argmax()]
        raise ValueError(
            f"`concept` must hold directions of unit length; got norm {worst:.7g} at "
            f"depth {depth}. Divide by the norm; a zero direction is none."
        )
    if v.shape[1] > model.n_features:
        raise ValueError(
            f"`concept` must hold at most {model.n_features} directions per depth, the width of "
            f"the model; got {v.shape[1]}. For all of R^H use `inputs='free'`."
        )
    return torch.as_tensor(v, dtype=model.dtype, device=model.device)


def direction(model: Model, concept: xr.Dataset) -> torch.Tensor:
    """The one direction (depth, feature) of a concept; ValueError for several."""
    v = directions(model, concept)
    if v.shape[1] != 1:
        raise ValueError(
            f"`concept` must hold one direction per depth here; got {v.shape[1]}. Select one: "
            "`concept.isel(input=0)`."
        )
    return v[:, 0]
