"""What the stages of a study depend on: by that they are recognised when a study goes on."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import xarray as xr

from depthsys._version import __version__
from depthsys.study.stages import STAGES
from depthsys.study.store import SHA256
from depthsys.study.study_file import Writing

if TYPE_CHECKING:
    from depthsys.lm import Splits
    from depthsys.study.settings import Settings


def texts_identity(splits: "Splits") -> dict[str, Any]:
    """What split texts are: hashes of their contents, and what their classes are called."""
    parts = {name: getattr(splits, name).sha256 for name in ("concept", "operating", "held_out")}
    return parts | {"classes": list(splits.concept.classes)}


def model_identity(files_sha256: str | None, settings: "Settings") -> dict[str, Any]:
    """What a model is, as far as results depend on it: its files, and in what it computes."""
    return {
        "files": files_sha256,
        "dtype": settings.dtype or "float32",
        "products": "tf32" if settings.tf32 else "float32",
        "prompting": asdict(settings.prompting),
    }


def stage_identity(
    stage: str,
    settings: "Settings",
    model: Mapping[str, Any],
    texts: Mapping[str, Any],
    inputs: Mapping[str, xr.Dataset],
    *,
    shard: int,
    writing: Writing,
) -> dict[str, Any]:
    """All that the Dataset of a stage depends on.

    Parameters
    ----------
    stage
        Its name.
    settings
        Of the cell; those count that the stage depends on.
    model, texts
        From `model_identity` and `texts_identity`.
    inputs
        The Datasets of the stages that it needs, as a store reads them: by what they hold.
    shard
        Prompts that are worked on together: sums are rounded accordingly.
    writing
        What is written under a plan.
    """
    chosen = {name: _told(stage, settings, name, writing) for name in STAGES[stage].settings}
    return {
        "depthsys_version": __version__,
        "model": dict(model),
        "texts": dict(texts),
        "shard": shard,
        "settings": chosen,
        "inputs": {name: found.attrs[SHA256] for name, found in inputs.items()},
    }


def readout_of(stage: str, settings: "Settings") -> str:
    """What is read: in a comparison all depths, unless another readout is asked for."""
    return (
        "profile"
        if stage == "comparison" and "readout" not in settings.asked
        else (settings.readout)
    )


def _told(stage: str, settings: "Settings", name: str, writing: Writing) -> Any:
    if name == "writing":
        return asdict(writing)
    value = readout_of(stage, settings) if name == "readout" else getattr(settings, name)
    return str(value) if name == "target" and value is not None else value
