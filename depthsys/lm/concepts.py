"""Concept directions, and how well they separate texts they were not fitted on."""

import json

import numpy as np
import torch
import xarray as xr
from sklearn.metrics import roc_auc_score

from depthsys.lm.model import DepthModel
from depthsys.lm.prompts import Texts


def mean_difference(
    model: DepthModel, concept: Texts, *, held_out: Texts | None = None
) -> xr.Dataset:
    r"""Unit mean-difference direction at every depth.

    :math:`v_k \propto \operatorname{mean}_{class 1} x_k - \operatorname{mean}_{class 0} x_k`,
    normalised; x_k is the residual stream of the last token.

    Parameters
    ----------
    model
        The model.
    concept
        The texts that define the direction.
    held_out
        Other texts, on which the separation is measured.

    Returns
    -------
    xr.Dataset
        ``direction`` (depth, feature), unit length; ``distance`` (depth), norm of the mean
        difference, in the unit of the state; with ``held_out`` also ``auc`` (depth), the area
        under the ROC curve of ``v_k' x_k`` there (0.5 = no separation).

    Raises
    ------
    ValueError
        If the two class means coincide at some depth: there is no direction.

    References
    ----------
    .. [1] arXiv 2603.12541 (low-order linear depth dynamics), concept directions.
    """
    sums = np.zeros((2, model.n_layers + 1, model.n_features))
    norm = np.zeros(model.n_layers + 1)
    for run in model.stream(concept, "concept direction"):
        labels = concept.labels[run.prompts]
        x = run.x.double().cpu().numpy()
        norm += np.linalg.norm(x, axis=-1).sum(axis=1) / len(concept)
        for label in (0, 1):
            sums[label] += x[:, labels == label].sum(axis=1)
    counts = np.bincount(concept.labels, minlength=2)
    if counts.min() == 0:
        raise ValueError(
            f"`concept` must hold texts of both classes; got {counts.tolist()}. Split again."
        )
    difference = sums[1] / counts[1] - sums[0] / counts[0]
    distance = np.linalg.norm(difference, axis=-1)
    rounding = 10 * torch.finfo(model.dtype).eps * norm
    if (distance <= rounding).any():
        raise ValueError(
            "`concept` must have different class means at every depth; they coincide at depth "
            f"{int((distance <= rounding).argmax())}. Do all texts end in the same token? Without "
            "position embeddings they then start in the same state: vary the endings."
        )
    direction = difference / distance[:, None]
    result = xr.Dataset(
        {"direction": (("depth", "feature"), direction), "distance": ("depth", distance)},
        coords={"depth": np.arange(model.n_layers + 1)},
        attrs={
            **model.provenance("mean_difference"),
            "method": "mean_difference",
            "classes": json.dumps(list(concept.classes)),
            "prompts_sha256": concept.sha256,
        },
    )
    if held_out is not None:
        result["auc"] = ("depth", _auc(model, held_out, direction))
        result.attrs["auc_prompts_sha256"] = held_out.sha256
    return result


def _auc(model: DepthModel, texts: Texts, direction: np.ndarray) -> list[float]:
    scores = np.empty((model.n_layers + 1, len(texts)))
    for run in model.stream(texts, "separation"):
        x = run.x.double().cpu().numpy()
        scores[:, run.prompts] = np.einsum("kpf,kf->kp", x, direction)
    return [float(roc_auc_score(texts.labels, row)) for row in scores]
