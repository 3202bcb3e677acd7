"""Commands write many figures, which take longer than their numbers."""

from pathlib import Path

import pytest

from depthsys import plot


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
