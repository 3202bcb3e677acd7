"""What the stages of a study depend on: by that they are recognised when a study goes on."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import xarray as xr

from depthsys._version import __version__
from depthsys.files import content_hash
from depthsys.study.cell import files_sha256
from depthsys.study.stages import STAGES
from depthsys.study.store import IDENTITY, SHA256
from depthsys.study.study_file import Study, Writing

if TYPE_CHECKING:
    from depthsys.lm import Splits
    from depthsys.study.cell import Found
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


def asked(study: Study, found: "Found", splits: "Splits") -> dict[str, str]:
    """A hash of what every stage of a cell is to be of, but for the Datasets that it takes.

    Also of those that the study does not ask for (any more), which may be there from before.
    """
    model = model_identity(files_sha256(found.source), found.settings)
    texts = texts_identity(splits)
    of_stage = {
        stage: stage_identity(
            stage, found.settings, model, texts, {}, shard=study.shard, writing=study.writing
        )
        for stage in STAGES
    }
    return {stage: _without_inputs(identity) for stage, identity in of_stage.items()}


def current(
    stages: Mapping[str, Mapping[str, Any]],
    asked: Mapping[str, str],
    failed: Collection[str] = (),
) -> set[str]:
    """The stages that are of a study as it is now.

    Others are there from before a setting, a text or a weight was changed, before one that they
    need was made anew, or before it failed.

    Parameters
    ----------
    stages
        The attrs of the Datasets that are there, by stage.
    asked
        From `asked`; a stage that is not in it is not judged by its settings.
    failed
        Stages that failed since.
    """
    found: set[str] = set()
    for name in sorted(stages, key=list(STAGES).index):
        needs = STAGES[name].needs
        identity = json.loads(str(stages[name].get(IDENTITY, "{}")))
        lost = name in failed or any(need not in found and need in stages for need in needs)
        lost = lost or not _all_needs(name).isdisjoint(failed)
        wanted = identity and name in asked and asked[name] != _without_inputs(identity)
        if not lost and not wanted and all(_takes(identity, n, stages.get(n)) for n in needs):
            found.add(name)
    return found


def _takes(identity: Mapping[str, Any], need: str, attrs: Mapping[str, Any] | None) -> bool:
    """Whether a stage was made of what is there now of one that it needs."""
    if not identity or attrs is None or SHA256 not in attrs:
        return True
    return identity.get("inputs", {}).get(need) == attrs[SHA256]


def _all_needs(name: str) -> set[str]:
    needs = set(STAGES[name].needs)
    return needs.union(*(_all_needs(need) for need in needs))


def _without_inputs(identity: Mapping[str, Any]) -> str:
    return content_hash({name: said for name, said in identity.items() if name != "inputs"})


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
