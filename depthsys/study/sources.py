"""Where the models and texts of a study are: paths seen from its file, and what the package has."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from depthsys import demo
from depthsys.demo import grammar, real

if TYPE_CHECKING:
    from depthsys.lm import Splits
    from depthsys.study.settings import Settings

DEMO, FETCHED = "demo:", "fetched:"
FETCHED_MODEL = "SmolLM2-135M-Instruct"
_TEXTS_SEED = 2603


def model_source(source: str, home: Path) -> str:
    """What `DepthModel.load` takes: a path, or the name of an embedded or hub model.

    Parameters
    ----------
    source
        As in the file; ``fetched:SmolLM2-135M-Instruct`` is what `depthsys fetch` brings.
    home
        The folder that paths are seen from.

    Raises
    ------
    FileNotFoundError
        If a path is not there, or nothing was fetched.
    """
    if source in demo.MODELS:
        return source
    if source.startswith(FETCHED):
        if source != FETCHED + FETCHED_MODEL:
            raise FileNotFoundError(
                f"`source` must be {FETCHED}{FETCHED_MODEL} where it is fetched; got {source!r}. "
                "That is the model there is."
            )
        return str(real.path_of(real.MODEL))
    path = _seen_from(home, source)
    if path.exists():
        return str(path.resolve())
    if source.startswith(("/", "~", ".")) or source.endswith(".gguf"):
        raise FileNotFoundError(
            f"`source` must be an existing folder or GGUF file; got {source!r}"
            f"{_where(source, path)}. Paths are seen from the study's file."
        )
    return source  # a name of the hub, which is looked up when models are checked


def texts_source(texts: str, data: Path) -> str:
    """What `read_splits_of` takes: a path, or ``demo:NAME``.

    Raises
    ------
    FileNotFoundError, ValueError
        If there are no such texts.
    """
    if texts.startswith(DEMO):
        name = texts.removeprefix(DEMO)
        if name not in grammar.CONCEPTS:
            raise ValueError(
                f"`texts` must be one of {', '.join(DEMO + each for each in grammar.CONCEPTS)}; "
                f"got {texts!r}. Pick one."
            )
        return texts
    if texts.startswith(FETCHED):
        name = texts.removeprefix(FETCHED)
        if name not in real.TEXTS:
            raise ValueError(
                f"`texts` must be one of {', '.join(FETCHED + each for each in real.TEXTS)}; got "
                f"{texts!r}. Pick one."
            )
        return str(real.texts_path(name).resolve())
    path = _seen_from(data, texts)
    if not path.exists():
        raise FileNotFoundError(
            f"`texts` must exist; got {texts!r}{_where(texts, path)}. Paths are seen from the "
            "study's file, or from the folder of --data."
        )
    return str(path.resolve())


def _seen_from(folder: Path, given: str) -> Path:
    """A path seen from a folder; the ``~`` of a user whom nobody knows stays as it is."""
    try:
        return folder / Path(given).expanduser()
    except RuntimeError:
        return folder / given


def _where(given: str, path: Path) -> str:
    """Where a path leads to, if it does not say so itself."""
    return "" if str(path) == given else f", which would be {os.path.abspath(path)!r}"


def read_splits_of(texts: str, settings: "Settings") -> "Splits":
    """The texts of a study: labelled ones, split as asked for, or lines."""
    from dataclasses import replace

    from depthsys import lm
    from depthsys.study.cell import check_pairs, read_splits, split_as_asked
    from depthsys.study.lines import are_lines, read_lines

    if are_lines(texts, settings):
        return read_lines(Path(texts), settings)
    if not texts.startswith(DEMO):
        return read_splits(Path(texts), settings)
    check_pairs(settings, is_pairs=False, name=texts)
    name = texts.removeprefix(DEMO)
    count = max(1000, sum(settings.split))
    rows = grammar.labelled(count_per_class=count, concept=name, seed=_TEXTS_SEED)
    found = lm.read_texts(rows, positive=settings.positive)
    return split_as_asked(replace(found, source=texts), settings)
