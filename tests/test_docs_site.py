"""The documentation site: what is listed, how pages are read, what a browser would fetch."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "tutorial/my_first_study.ipynb"
WINGS = ("demo", "export", "files", "lm", "ltv", "plot", "report", "study")


# ------------------------------------------------------------------------------ what is listed


@pytest.mark.parametrize("wing", [wing for wing in WINGS if wing != "demo"])
def test_the_reference_lists_every_public_name_once(wing):
    page = (DOCS / f"api/{wing}.md").read_text("utf-8")
    listed = re.findall(r"(?m)^   (\w+)$", page)
    assert len(listed) == len(set(listed))
    public = set(importlib.import_module(f"depthsys.{wing}").__all__)
    # constants have no docstring: they are said in words
    missing = {name for name in public - set(listed) if f"`{name}`" not in page}
    assert (missing, set(listed) - public) == (set(), set()), f"docs/api/{wing}.md"


def listed_pages(page: Path) -> set[Path]:
    """Pages in the tables of contents of a page, without those that only may be there."""
    text = page.read_text("utf-8")
    lines = "\n".join(re.findall(r"(?s)```\{toctree\}\n(.*?)```", text)).splitlines()
    names = [re.sub(r".*<(.*)>", r"\1", line).removesuffix("?") for line in lines]
    found = {(page.parent / name).resolve() for name in names if name and name[0] != ":"}
    return {path for path in found if list(path.parent.glob(f"{path.name}.*"))}


def test_every_page_is_in_a_table_of_contents():
    listed = set().union(*(listed_pages(page) for page in DOCS.rglob("*.md")))
    pages = {page.resolve().with_suffix("") for page in DOCS.rglob("*.md")} | {
        page.resolve().with_suffix("") for page in DOCS.rglob("*.ipynb")
    }
    assert pages - listed == {DOCS.resolve() / "index"}


def test_the_page_of_a_real_study_is_whole_and_of_no_machine():
    text = (DOCS / "reports/real_study.html").read_text("utf-8")
    assert text.count('<details id="cell-') == 12
    assert not re.search(r"/(tmp|home|root|work|check)/", text)
    page = Fetched()
    page.feed(text)
    assert [each for each in page.addresses if each and not each.startswith("data:")] == []


# ------------------------------------------------------------------------------ how pages are read


@pytest.fixture
def extensions(monkeypatch):
    pytest.importorskip("sphinx", reason="needs the extra `docs`")
    monkeypatch.syspath_prepend(str(DOCS / "_extensions"))
    yield lambda name: importlib.import_module(name)
    for name in ("doctest_pages", "mathml", "shared_lines"):
        sys.modules.pop(name, None)


def test_bare_examples_get_fences_and_fenced_ones_stay(extensions):
    pages = extensions("doctest_pages")
    bare = "Words.\n\n>>> 1 + 1\n2\n\nMore.\n"
    fence = "```python\n>>> 1 + 1\n2\n\n```\n"
    assert pages.outside_fences(bare + fence, pages.fenced) == (
        "Words.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nMore.\n" + fence
    )


@pytest.mark.parametrize(
    ("link", "place", "there"),
    [
        ("[it](docs/ltv.md#bases)", "", "[it](ltv.md#bases)"),
        ("![it](docs/figures/a.png)", "", "![it](figures/a.png)"),
        ("[here](figures/a.png)", "docs", "[here](figures/a.png)"),
        ("[README](../README.md)", "docs", "[README](readme.md)"),
        ("[a script](../examples/a.py)", "docs", "a script (`examples/a.py`)"),
        ("[`examples/a.py`](../examples/a.py)", "docs", "`examples/a.py`"),
        ("[far](https://example.org/a)", "docs", "[far](https://example.org/a)"),
        ("[below](#bases)", "docs", "[below](#bases)"),
    ],
)
def test_links_lead_to_pages_of_the_site_or_become_words(extensions, link, place, there):
    assert extensions("doctest_pages").linked(link, place) == there


def test_the_index_of_an_accented_letter_is_beside_it(extensions):
    mathml = extensions("mathml").mathml
    formula = re.sub(r"\s", "", mathml(r"\bar A_l", block=False))
    assert "<munderover>" not in formula
    assert formula.index("<mover") < formula.index("<msub>") < formula.index("<mi>l</mi>")


def test_a_formula_that_has_no_mathml_stops_the_build(extensions):
    with pytest.raises(Exception, match=r"no MathML for '\\\\nothing_like_this"):
        extensions("mathml").mathml(r"\nothing_like_this x", block=True)


def test_attributes_that_share_a_line_keep_all_names(extensions):
    lines = ["A thing.", "", "Parameters", "----------", "a, b", "    Two.", ""]
    lines += ["Attributes", "----------", "n_layers, n_features", "    Sizes, both.", ""]
    extensions("shared_lines").joined(lines)
    assert lines[9] == "n_layers,n_features"
    assert (lines[4], lines[10]) == ("a, b", "    Sizes, both.")


class Fetched(HTMLParser):
    """Addresses that a browser fetches to show a page, and formulas."""

    def __init__(self):
        super().__init__()
        self.addresses, self.formulas = [], 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(given.get("src") or "")
        elif tag == "link":
            self.addresses.append(given.get("href") or "")
        self.formulas += tag == "math"


@pytest.mark.filterwarnings("ignore")  # those of Sphinx and its extensions, of each other
def test_a_page_is_built_that_fetches_nothing(tmp_path):
    """Two pages of the site, with its configuration; `make docs` builds all of them."""
    pytest.importorskip("furo", reason="needs the extra `docs`")
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    shutil.copy(DOCS / "cite.md", source)
    shutil.copy(ROOT / "CITATION.cff", tmp_path)
    (source / "paper.md").write_text("# Papers\n\nA formula: $\\bar A_l = 1$\n\n>>> 1 + 1\n2\n")
    (source / "index.md").write_text("# Index\n\n```{toctree}\ncite\npaper\nabsent?\n```\n")
    command = ["-b", "html", "-n", "-W", "-q", "-c", str(DOCS), str(source), str(site)]
    run_sphinx(command)
    page = (site / "paper.html").read_text("utf-8")
    assert "highlight-pycon" in page
    found = Fetched()
    found.feed(page)
    assert found.formulas == 1
    assert len(found.addresses) > 5
    assert [a for a in found.addresses if re.match(r"(https?:)?//", a)] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text("utf-8")), (
            style
        )


def run_sphinx(command: list[str]) -> None:
    """In a process of its own: it changes sys.path, locale and warnings."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *command],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------ the notebook


def code_cells() -> list[dict]:
    """Cells of code of the notebook, as they are stored."""
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def printed(cells: list[dict]) -> list[str]:
    """What each cell has printed."""
    return [
        "".join("".join(out["text"]) for out in cell["outputs"] if out.get("name") == "stdout")
        for cell in cells
    ]


def test_the_notebook_stores_what_its_cells_printed_and_drew():
    cells = code_cells()
    outputs = [out for cell in cells for out in cell["outputs"]]
    assert all(cell["outputs"] for cell in cells)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(out.get("name") == "stderr" for out in outputs)
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 4
    texts = NOTEBOOK.read_text("utf-8")
    assert not re.search(r'"/(tmp|home|root|work)|object at 0x', texts)


def test_what_the_notebook_says_is_what_it_has_printed():
    shown = "\n".join(printed(code_cells()))
    number = lambda name: float(re.search(rf"{name} +(\S+)", shown)[1])  # noqa: E731
    assert number("relative_l2") <= 1.2 * number("noise floor")  # "of that size"
    assert number("sampling") > 0.9 * number("total")  # "almost all of it"
    assert number("largest push, of the state's norm") < 0.02  # "no push is larger than 2 %"
    assert number("best AUC") > number("at the last depth") + 0.1
    assert 10 < float(re.search(r"at depth (\d+)", shown)[1]) < 25  # "in the middle"
    assert "80 operating and 80 held-out" in shown


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")  # those of Jupyter
def test_the_notebook_runs_and_prints_the_stored_numbers(real_folder, tmp_path):
    client = pytest.importorskip("nbclient", reason="needs the extra `docs`")
    pytest.importorskip("ipykernel", reason="needs the extra `docs`")
    fresh = pytest.importorskip("nbformat").read(NOTEBOOK, 4)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    where = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(fresh, timeout=900, kernel_name="python3", resources=where).execute()
    again = [cell for cell in fresh.cells if cell.cell_type == "code"]
    for then, now in zip(printed(code_cells()), printed(again), strict=True):
        if "I watched it" in then:  # a greedy text may turn elsewhere on another processor
            assert len(now.splitlines()) == len(then.splitlines())
            continue
        decimal = r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?"
        assert re.sub(rf"{decimal}|\s", "", now) == re.sub(rf"{decimal}|\s", "", then)
        values = [np.array(re.findall(decimal, text), float) for text in (now, then)]
        np.testing.assert_allclose(*values, rtol=0.03, atol=5e-4)
