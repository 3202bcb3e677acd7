"""What the pages in docs name and show is there. Their examples are collected as doctests."""

import re
from pathlib import Path

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


def test_the_guide_is_run_by_this_suite(request):
    """Its numbers are doctests: they need `docs` in testpaths and the glob in addopts."""
    assert "docs" in request.config.getini("testpaths")
    assert "docs/*.md" in request.config.getoption("doctestglob")
    assert GUIDE.count("\n>>> ") > 50


def test_figures_that_pages_show_exist():
    for page in DOCS.glob("*.md"):
        for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text("utf-8")):
            assert (DOCS / path).stat().st_size > 5000, path
