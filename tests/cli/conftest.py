"""What the tests of commands share. Figures take longer than their numbers."""

import csv
from pathlib import Path

import pytest

from depthsys import plot


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """A file of forty labelled texts per class."""
    from depthsys.demo import grammar

    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *grammar.labelled(40, seed=5)])
    return path


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
