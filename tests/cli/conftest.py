"""What the tests of commands share. Figures take longer than their numbers."""

import copy
import csv
from pathlib import Path

import pytest

from depthsys import lm, plot
from depthsys.demo import model_path

EMBEDDED = model_path("demo_48x4").parent
LOADED: dict[str, lm.DepthModel] = {}


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """A file of forty labelled texts per class."""
    from depthsys.demo import grammar

    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *grammar.labelled(40, seed=5)])
    return path


@pytest.fixture(autouse=True)
def embedded_models_are_loaded_once(monkeypatch):
    """Their files do not change. Others, and copies of them, are loaded as ever."""
    load = lm.DepthModel.load

    def once(name_or_path, **options):
        if Path(name_or_path).parent != EMBEDDED:
            return load(name_or_path, **options)
        key = f"{name_or_path} {sorted(options.items())}"
        if key not in LOADED:
            LOADED[key] = load(name_or_path, **options)
        return copy.copy(LOADED[key])  # a command may name its own

    monkeypatch.setattr(lm.DepthModel, "load", once)


@pytest.fixture
def drawn() -> None:
    """The figures of this test are drawn."""


@pytest.fixture(autouse=True)
def figures_have_names_only(request, monkeypatch):
    """Unless a test asks for `drawn`: what is in them is for tests/plot."""

    def save(fig, path, kind) -> Path:
        place = Path(path)
        assert place.suffix == f".{kind}"
        place.write_text("a figure")
        return place

    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(plot, "save", save)
