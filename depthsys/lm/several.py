"""Several concepts of one model in one Dataset."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
import xarray as xr

from depthsys._version import __version__
from depthsys.fingerprints import why_another
from depthsys.lm.directions import as_concept


def several(concepts: Mapping[str, xr.Dataset], *, rtol: float = 1e-6) -> xr.Dataset:
    """Several concepts of one model in one Dataset.

    Parameters
    ----------
    concepts
        Name -> concept with ``direction`` (depth, feature) of unit length, for example from
        `mean_difference`. They may differ in texts and method.
    rtol
        At every depth the smallest singular value of the matrix of all directions must exceed
        this part of the largest (for two directions: half the angle between them, in radians).

    Returns
    -------
    xr.Dataset
        ``direction`` (depth, input, feature), the coordinate ``input`` holds the names in the
        given order; and every other variable (depth) that all concepts have, such as ``auc``, as
        (depth, input). Attrs that all concepts share; ``concepts``, the attrs of each as JSON;
        ``warning`` and ``direction_note`` if a concept has one.

    Raises
    ------
    TypeError
        If ``concepts`` is not a mapping from names to Datasets with ``direction``.
    ValueError
        If it is empty; if models or sizes differ, a direction is not finite or not of unit length,
        there are more directions than features, or they are linearly dependent at some depth.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> def unit(feature):  # the same direction at depths 0..2 of a model with 4 features
    ...     return xr.Dataset({"direction": (("depth", "feature"), np.eye(4)[[feature] * 3])})
    >>> dict(several({"mood": unit(0), "topic": unit(2)}).sizes)
    {'depth': 3, 'input': 2, 'feature': 4}
    >>> several({"mood": unit(0), "same": unit(0)})
    Traceback (most recent call last):
    ...
    ValueError: `concepts` must have linearly independent directions; those of ['mood', 'same'] ...
    """
    # a Dataset is a mapping, too: one concept, given in place of several
    if isinstance(concepts, Mapping) and not isinstance(concepts, xr.Dataset):
        arrays = {n: as_concept(c) for n, c in concepts.items() if isinstance(c, xr.DataArray)}
        concepts = {**concepts, **arrays}
    _check_concepts(concepts)
    names, found = list(concepts), list(concepts.values())
    direction = np.stack([_direction(concept) for concept in found], axis=1)
    _check_directions(direction, names, rtol)
    depth = np.arange(len(direction))
    result = xr.Dataset(coords={"depth": depth, "input": names})
    result["direction"] = (("depth", "input", "feature"), direction)
    for name in found[0].data_vars:
        if all(name in concept and concept[name].dims == ("depth",) for concept in found):
            columns = [concept[name].values for concept in found]
            result[name] = (("depth", "input"), np.stack(columns, axis=1))
    result.attrs = _joint_attrs(concepts)
    return result


def _check_concepts(concepts: Mapping[str, xr.Dataset]) -> None:
    if not isinstance(concepts, Mapping):
        raise TypeError(
            f"`concepts` must be a mapping from names to concepts; got a "
            f'{type(concepts).__name__}. Write {{"mood": concept}}.'
        )
    if not concepts:
        raise ValueError("`concepts` must hold at least one concept; got none. Add one.")
    for name, concept in concepts.items():
        dims = concept["direction"].dims if _has_direction(concept) else None
        if not isinstance(name, str) or dims is None or set(dims) != {"depth", "feature"}:
            raise TypeError(
                "`concepts` must map names to Datasets with `direction` (depth, feature); got "
                f"{type(concept).__name__} with dims {dims} for {name!r}. "
                "Compute it with `mean_difference`."
            )
    shapes = {name: _direction(concept).shape for name, concept in concepts.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"`concepts` must be of one size (depth, feature); got {shapes}. Compute them with "
            "one model."
        )
    models = {name: concept.attrs.get("model_fingerprint") for name, concept in concepts.items()}
    if len(set(models.values())) > 1:
        raise ValueError(
            f"`concepts` must be of one model; got the fingerprints {models}. Compute them with "
            "one model; a direction of your own needs attrs['model_fingerprint'] beside others."
            f"{why_another(*models.values())}"
        )


def _has_direction(concept: object) -> bool:
    return isinstance(concept, xr.Dataset) and "direction" in concept


def _direction(concept: xr.Dataset) -> np.ndarray:
    return concept["direction"].transpose("depth", "feature").values.astype(np.float64)


def _check_directions(direction: np.ndarray, names: list[str], rtol: float) -> None:
    """ValueError unless (depth, input, feature) has independent unit rows at every depth."""
    length = np.linalg.norm(direction, axis=-1)
    known = np.asarray(~np.isnan(direction).all(axis=-1))
    wrong = known & ~(abs(length - 1) <= 1e-5)  # also where it is not a number
    if wrong.any():
        depth, which = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"`concepts` must have finite directions of length 1; got length "
            f"{length[depth, which]:.6g} at depth {depth} of {names[which]!r}. Divide by it."
        )
    n_features = direction.shape[-1]
    if len(names) > n_features:
        raise ValueError(
            f"`concepts` must hold at most as many directions as the model has features, "
            f"{n_features}; got {len(names)}. Leave some out."
        )
    ratio = np.array([_independence(rows[at]) for rows, at in zip(direction, known, strict=True)])
    if (ratio < rtol).any():
        raise ValueError(
            f"`concepts` must have linearly independent directions; those of {names} have "
            f"singular values with ratio {ratio.min():.1e} < {rtol:g} at depth "
            f"{int(ratio.argmin())}. Leave out one that the others hold already."
        )


def _independence(rows: np.ndarray) -> float:
    """Smallest singular value over the largest, of rows (input, feature)."""
    if len(rows) == 0:
        return 1.0
    singular = np.linalg.svd(rows, compute_uv=False)
    return float(singular[-1] / singular[0])


def _joint_attrs(concepts: Mapping[str, xr.Dataset]) -> dict[str, str | int | float]:
    # through JSON, because attrs that come from a file hold numpy scalars
    text = json.dumps(
        {name: concept.attrs for name, concept in concepts.items()},
        default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value),
    )
    each = json.loads(text)
    first, *others = each.values()
    shared = {
        key: value
        for key, value in first.items()
        if all(attrs.get(key) == value for attrs in others)
    }
    notes = {
        key: "; ".join(f"{name}: {attrs[key]}" for name, attrs in each.items() if key in attrs)
        for key in ("warning", "direction_note")
    }
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        **shared,
        "depthsys_version": __version__,
        "created": created,
        "history": f"{created} depthsys.lm.several",
        "concepts": text,
        **{key: text for key, text in notes.items() if text},
    }
