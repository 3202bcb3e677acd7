"""What a study names is looked at before any work: models, devices, texts. Loads no weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from depthsys.study import toml_lines
from depthsys.study.cell import Found, find_model
from depthsys.study.faults import Faults, as_key
from depthsys.study.sources import read_splits_of
from depthsys.study.study_file import CellKey, Study

if TYPE_CHECKING:
    from depthsys.lm import Splits


@dataclass(frozen=True)
class Checked:
    """A study whose models and texts were found.

    Attributes
    ----------
    study
        The study.
    found
        The model of every cell, with the settings of that cell.
    splits
        The texts by task and seed.
    """

    study: Study
    found: Mapping[CellKey, Found]
    splits: "Mapping[tuple[str, int], Splits]"


def checked(study: Study, name: str) -> Checked:
    """Look at all that a study names.

    Parameters
    ----------
    study
        The study.
    name
        Of its file, for messages.

    Raises
    ------
    StudyFaults
        With everything that is wrong, each with the line of the model or the texts.
    """
    from depthsys.lm.hf.messages import silence

    silence()
    faults = Faults(name, study.lines)
    found = _models(study, faults)
    splits = _texts(study, faults)
    faults.check()
    return Checked(study, found, splits)


def _models(study: Study, faults: Faults) -> dict[CellKey, Found]:
    from depthsys.study import steps

    places = {each.name: number for number, each in enumerate(study.models)}
    found: dict[CellKey, Found] = {}
    for key in study.cells:
        if key.model not in places:  # it was refused before
            continue
        path = ("models", places[key.model])
        try:
            found[key] = _found(study, key)
            if {"gains", "comparison"} & set(study.stages):
                steps.check_relative_step(found[key])
        except (ValueError, TypeError, OSError, ImportError) as error:
            faults.add(_place(study, path, error), as_key(str(error)))
    return found


def _place(study: Study, path: toml_lines.Path, error: Exception) -> toml_lines.Path:
    """The key that an error is about: one of the entry's own, or of all; else the entry."""
    named = re.match(r"`([a-z_]+)`", as_key(str(error)))
    keys = [] if named is None else [(*path, named[1]), ("settings", named[1])]
    return next((key for key in keys if key in study.lines), path)


def _found(study: Study, key: CellKey) -> Found:
    settings = study.settings_of(key)
    # a method that needs orders is not asked for one by a study without the stage
    found = find_model(study.model(key.model).source, settings)
    return replace(found, settings=replace(found.settings, seed=key.seed))


def _texts(study: Study, faults: Faults) -> "dict[tuple[str, int], Splits]":
    places = {each.name: number for number, each in enumerate(study.tasks)}
    found: dict[tuple[str, int], Splits] = {}
    looked_at = set()
    for key in study.cells:
        path = ("tasks", places[key.task])
        if (key.texts, key.concept) in looked_at:
            continue
        looked_at.add((key.texts, key.concept))
        try:
            splits = read_splits_of(study.task(key.task).texts, study.settings_of(key))
            found.setdefault(key.texts, splits)
        except (ValueError, TypeError, OSError, ImportError) as error:
            faults.add(_place(study, path, error), as_key(str(error)))
    return found
