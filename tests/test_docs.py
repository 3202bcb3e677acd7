"""What the pages in docs name and show is there. Their examples are collected as doctests."""

import importlib
import re
from pathlib import Path

import pytest

from depthsys import ltv

DOCS = Path(__file__).parents[1] / "docs"
GUIDE = (DOCS / "ltv.md").read_text("utf-8")


def test_the_guide_names_every_public_function():
    assert [name for name in ltv.__all__ if not re.search(rf"\b{name}\b", GUIDE)] == []


def test_one_table_says_what_every_function_is_called_elsewhere():
    assert GUIDE.count("| here |") == 1
    table = GUIDE.split("## What you call it elsewhere")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows[:1] + rows[2:]} == {5}
    named = " ".join(row[0] for row in rows)
    no_functions = {"RankError", "SCHEMA_VERSION"}
    assert {n for n in ltv.__all__ if not re.search(rf"\b{n}\b", named)} == no_functions


ELSEWHERE = {
    "control": (2, ("control", "control.optimal")),
    "nctpy": (3, ("nctpy.energies", "nctpy.metrics")),
    "pymor": (
        4,
        (
            "pymor.models.iosys",
            "pymor.models.iosys:LTIModel",
            "pymor.reductors.bt",
            "pymor.reductors.bt:BTReductor",
            "pymor.reductors.basic",
            "pymor.reductors.era",
            "pymor.algorithms.pod",
            "pymor.algorithms.krylov",
            "pymor.solvers.matrix_equations.equations",
        ),
    ),
}


def names_in_column(column):
    """Functions, classes and methods in backticks in a column of the table."""
    table = GUIDE.split("## What you call it elsewhere")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("|")][2:]
    texts = re.findall(r"`([^`]+)`", " ".join(row[column] for row in rows))
    found = set()
    for text in texts:
        whole = re.fullmatch(r"\.?([A-Za-z_][\w.]*)", text)
        found |= {whole[1]} if whole else set(re.findall(r"([A-Za-z_][\w.]*)\(", text))
        found |= set(re.findall(r"\)\.(\w+)", text))
    return found - {"max"}  # of Python


@pytest.mark.parametrize("package", ELSEWHERE)
def test_names_of_other_packages_are_there(package):
    pytest.importorskip(package)
    column, homes = ELSEWHERE[package]
    places = []
    for home in homes:
        module, _, cls = home.partition(":")
        found = importlib.import_module(module)
        places.append(getattr(found, cls) if cls else found)
    names = names_in_column(column) - {"xr"}  # an argument of nctpy
    assert len(names) >= 5
    last = {name.rsplit(".")[-1] for name in names}
    assert {n for n in last if not any(hasattr(place, n) for place in places)} == set()


def test_names_of_scipy_in_the_guide_are_there():
    names = set(re.findall(r"`(scipy(?:\.\w+)+)", GUIDE))
    names |= set(re.findall(r"from (scipy[\w.]*) import (?:\w+)", GUIDE))
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), name
    assert names


def test_the_guide_is_run_by_this_suite(request):
    """Its numbers are doctests: they need `docs` in testpaths and the glob in addopts."""
    assert "docs" in request.config.getini("testpaths")
    assert "docs/*.md" in request.config.getoption("doctestglob")
    assert GUIDE.count("\n>>> ") > 50


def test_figures_that_pages_show_exist():
    for page in DOCS.glob("*.md"):
        for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text("utf-8")):
            assert (DOCS / path).stat().st_size > 5000, path
