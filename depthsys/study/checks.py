"""What a study names is looked at before any work: models, devices, texts. Loads no weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from depthsys.study import toml_lines
from depthsys.study.cell import Found, find_model
from depthsys.study.faults import Faults, as_key
from depthsys.study.measures import MEASURES, check_enough
from depthsys.study.settings import Settings
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


def checked(study: Study, faults: Faults) -> Checked:
    """Look at all that a study names.

    Parameters
    ----------
    study, faults
        From `study_reader.read_with_faults`. Models and texts are looked at beside faults of the
        file, as far as these have no part in it, so that all is told at once.

    Raises
    ------
    StudyFaults
        With everything that is wrong, each with the line of the model or the texts.
    """
    from depthsys.lm.hf.messages import silence

    silence()
    before = replace(faults, paths=set(faults.paths))
    found = _models(study, faults, before)
    splits = _texts(study, faults, before)
    faults.check()
    return Checked(study, found, splits)


def _models(study: Study, faults: Faults, before: Faults) -> dict[CellKey, Found]:
    from depthsys.study import steps

    if before.found:
        _sources(study, faults, before)
        return {}
    places = {each.name: number for number, each in enumerate(study.models)}
    found: dict[CellKey, Found] = {}
    for key in study.cells:
        path = ("models", places[key.model])
        try:
            found[key] = _found(study, key)
            if {"gains", "comparison"} & set(study.stages):
                steps.check_relative_step(found[key])
        except (ValueError, TypeError, OSError, ImportError) as error:
            faults.add(_place(study, path, error), as_key(str(error)))
    return found


def _sources(study: Study, faults: Faults, before: Faults) -> None:
    """Whether models are there, whatever is to be done with them."""
    for number, model in enumerate(study.models):
        if not before.under("models", number):
            try:
                find_model(model.source, Settings.checked())
            except (ValueError, TypeError, OSError, ImportError) as error:
                faults.add(("models", number), as_key(str(error)))


def _place(study: Study, path: toml_lines.Path, error: Exception) -> toml_lines.Path:
    """The key that an error is about: one of the entry's own, of all, or of the file; or it."""
    named = re.match(r"`([a-z_]+)`", as_key(str(error)))
    keys = [] if named is None else [(*path, named[1]), ("settings", named[1]), (named[1],)]
    return next((key for key in keys if key in study.lines), path)


def _found(study: Study, key: CellKey) -> Found:
    settings = study.settings_of(key)
    # a method that needs orders is not asked for one by a study without the stage
    found = find_model(study.model(key.model).source, settings)
    return replace(found, settings=replace(found.settings, seed=key.seed))


def _texts(study: Study, faults: Faults, before: Faults) -> "dict[tuple[str, int], Splits]":
    places = {each.name: number for number, each in enumerate(study.tasks)}
    found: dict[tuple[str, int], Splits] = {}
    looked_at = set()
    in_all = any(before.under(name) for name in ("settings", "seeds", "concepts"))
    for key in study.cells:
        path = ("tasks", places[key.task])
        if (key.texts, key.concept) in looked_at or in_all or before.under(*path):
            continue  # how they are read, or which they are, is not known
        looked_at.add((key.texts, key.concept))
        try:
            settings = study.settings_of(key)
        except (ValueError, TypeError) as error:
            if not before.found:  # else, without what was wrong, the others may not go together
                faults.add(_place(study, path, error), as_key(str(error)))
            continue
        try:
            splits = read_splits_of(study.task(key.task).texts, settings)
            found.setdefault(key.texts, splits)
            wanted = (MEASURES[name] for name in study.stages if name in MEASURES)
            check_enough(wanted, len(splits.operating), "stages")
        except (ValueError, TypeError, OSError, ImportError) as error:
            faults.add(_place(study, path, error), as_key(str(error)))
    return found
