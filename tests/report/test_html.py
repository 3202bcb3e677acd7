"""The page: its numbers are those of the results, its markup is valid, and it asks for nothing."""

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import html5lib
import numpy as np
import pytest

from depthsys.report.html import Results, Stage, page
from depthsys.study.reported import read_results
from depthsys.wording import percent
from tests.report import stores

SVG = "{http://www.w3.org/2000/svg}"
MAIN = {"layers": "all", "injection": "absolute", "bound": "estimate"}


@pytest.fixture(scope="module")
def results(study_store) -> Results:
    return read_results(study_store)


@pytest.fixture(scope="module")
def made(results) -> str:
    return page(results)


@pytest.fixture(scope="module")
def tree(made):
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return parser.parse(made)  # an error raises


def words(element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def section(tree, name):
    found = tree.find(f".//section[@id='{name}']")
    assert found is not None, name
    return found


def rows(table):
    return [[words(cell) for cell in row] for row in table.findall(".//tbody/tr")]


def by_column(table):
    """Rows of a table by the names of its columns."""
    header = [words(head) for head in table.findall(".//thead//th")]
    return [dict(zip(header, row, strict=True)) for row in rows(table)]


def test_it_is_valid_and_has_all_sections(tree):
    names = [each.get("id") for each in tree.iter("section")]
    assert names == [
        "summary", "cells", "gains", "budget", "methods", "plans", "effects", "scaling", "details",
        "provenance",
    ]  # fmt: skip
    links = {a.get("href") for a in tree.iter("a")}
    ids = [each.get("id") for each in tree.iter() if each.get("id")]
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert len(ids) == len(set(ids))


def test_it_asks_for_nothing_and_lets_nothing_else_run(made, tree):
    policy = tree.find(".//meta[@http-equiv='Content-Security-Policy']").get("content")
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert allowed["default-src"] == allowed["base-uri"] == allowed["form-action"] == "'none'"
    for name in ("style", "script"):
        (element,) = tree.iter(name)
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert allowed[f"{name}-src"] == f"'sha256-{digest}'"
    assert "://" not in re.sub(r'xmlns="[^"]*"', "", made)
    asking = {"src", "style", "onclick", "action", "srcset", "poster", "data"}
    assert not [e.tag for e in tree.iter() if isinstance(e.tag, str) and asking & set(e.attrib)]
    assert not list(tree.iter("link")) + list(tree.iter("img")) + list(tree.iter("iframe"))


def test_texts_and_labels_are_told_as_they_are(made, tree):
    title = stores.ABOUT["study_name"]
    assert words(tree.find(".//h1")) == title
    assert tree.find(".//title").text == title
    assert any(stores.PROMPTS[1] in words(quote) for quote in tree.iter("blockquote"))
    assert "got <i>nothing</i>" in words(section(tree, "summary"))
    assert stores.TOML in [code.text for code in section(tree, "provenance").iter("code")]
    assert "<script>alert" not in made
    assert "<b>this" not in made


def test_control_characters_do_not_reach_the_page(results):
    odd = Results("a\x00b\ud800c\x1b[1m", results.cells[:1])
    assert "<h1>a\ufffdb\ufffdc\ufffd[1m</h1>" in page(odd)
    page(odd).encode("utf-8")


def test_every_cell_has_its_row_and_its_part(tree, study_stages):
    (table,) = section(tree, "cells").iter("table")
    found = by_column(table)
    assert [row["cell"] for row in found] == [
        "demo_48x4 · domain · seed 0",
        "demo_48x4 · sentiment · seed 0",
        "demo_48x4 · sentiment · seed 2",
        "demo_48x4 · sentiment · seed 10",
        "larger · domain · seed 0",
        "larger · sentiment · seed 0",
    ]
    assert [row["state"] for row in found] == [
        "complete", "complete", "unfinished", "failed", "complete", "complete",
    ]  # fmt: skip
    error = study_stages["gains"]["relative_l2"].sel(layers="all", injection="absolute").values
    assert found[0]["error"] == percent(error).replace(" %", "\u00a0%").replace("\u00a0", " ")
    assert found[3]["error"] == "–"
    assert [part.get("id") for part in section(tree, "details") if part.tag == "details"] == [
        f"cell-{n}" for n in range(1, 7)
    ]


def test_what_all_cells_share_is_no_column(tree, results):
    (table,) = section(tree, "cells").iter("table")
    shown = set(by_column(table)[0])
    assert {"state", "largest part"} <= shown
    assert {"size", "order"}.isdisjoint(shown)
    assert "The same in all: size 4 × 48, order" in words(section(tree, "cells").find("p"))
    whole = tuple(cell for cell in results.cells if cell.state == "complete")
    of_whole = html5lib.parse(page(Results("whole", whole)), namespaceHTMLElements=False)
    (table,) = section(of_whole, "cells").iter("table")
    assert {"state", "largest part"}.isdisjoint(by_column(table)[0])
    said = words(section(of_whole, "cells").find("p"))
    assert "All cells are complete. The same in all: size 4 × 48, largest part" in said


def test_numbers_to_sort_by_are_those_of_the_results(tree, study_stages):
    (table,) = section(tree, "cells").iter("table")
    row = table.find(".//tbody/tr")
    at = [words(head) for head in table.findall(".//thead//th")].index("error")
    sorted_by = [cell.get("data-sort") for cell in row]
    error = float(study_stages["gains"]["relative_l2"].sel(MAIN))
    assert float(sorted_by[at]) == pytest.approx(error, rel=1e-9)
    failed = table.findall(".//tbody/tr")[3]
    assert [cell.get("data-sort") for cell in failed][at] == ""
    assert all(len(row) == len(table.findall(".//thead//th")) for row in table.iter("tr"))


def test_what_failed_and_what_is_not_there_is_said_first(tree):
    summary = section(tree, "summary")
    alerts = [words(each) for each in summary.iter("div") if "alert" in (each.get("class") or "")]
    assert alerts[0].startswith(
        "1 of 6 cells failed demo_48x4 · sentiment · seed 10 · gains: `target`"
    )
    assert "1 cell of 6 is not finished" in alerts[1]
    text = words(summary)
    assert text.index("failed") < text.index("What was asked") < text.index("What was found")
    assert "Not there yet: comparison of methods, energies of schedules, plan" in words(
        tree.find(".//details[@id='cell-3']")
    )


def places_to_numbers(axis: list[tuple[float, float]], at: np.ndarray) -> np.ndarray:
    """Numbers at places, read off two ticks of a linear axis."""
    (p, a), (q, b) = axis[0], axis[-1]
    return a + (at - p) * (b - a) / (q - p)


def ticks(svg, end: str) -> list[tuple[float, float]]:
    """Places and numbers of an axis: texts that end at it, or are below its middle."""
    axes = svg.findall(f"{SVG}g[@class='axes']")[1 if end == "end" else 0]
    found = [t for t in axes.iter(f"{SVG}text") if t.get("class") == end]
    where = "y" if end == "end" else "x"
    shift = 4 if end == "end" else 0
    return [(float(t.get(where)) - shift, float(t.text.replace("\u2212", "-"))) for t in found]


def points(path: str) -> np.ndarray:
    return np.array([[float(n) for n in pair.split(",")] for pair in re.split("[ML]", path)[1:]])


def test_a_curve_lies_where_its_numbers_are(tree, study_stages):
    """Read back with the ticks alone, as a reader does."""
    details = tree.find(".//details[@id='cell-1']")
    figures = {words(f.find("figcaption")): f for f in details.iter("figure")}
    found = figures["Gains over layers"].iter(f"{SVG}svg")
    svg = next(each for each in found if each.get("class") == "chart")
    measured = next(g for g in svg.iter(f"{SVG}g") if (g.get("class") or "").endswith("halo"))
    drawn = points(measured.find(f"{SVG}path").get("d"))
    mean = study_stages["gains"]["measured_gain"].mean("prompt").values
    inside = np.isfinite(mean)
    found = places_to_numbers(ticks(svg, "end"), drawn[:, 1])
    high, low = max(n for _, n in ticks(svg, "end")), min(n for _, n in ticks(svg, "end"))
    assert inside.all()
    np.testing.assert_allclose(found, mean, atol=0.01 * (high - low) + 0.01)
    np.testing.assert_allclose(
        places_to_numbers(ticks(svg, "mid"), drawn[:, 0]), np.arange(4), atol=0.01
    )


def test_marks_say_their_numbers(tree, study_stages):
    details = tree.find(".//details[@id='cell-1']")
    said = {t.text for t in details.iter(f"{SVG}title")}
    budget = study_stages["gains"]["error_budget"].sel(layers="all")
    for part in budget["part"].values:
        shown = percent(budget.sel(part=part).values).replace(" %", "\u00a0%")
        assert f"{part}: {shown}" in said
    push = study_stages["plan"]["push"].values
    assert f"layer 3: {percent([push[3]])}".replace(" %", "\u00a0%") in said
    error = float(
        study_stages["comparison"]["relative_l2"].sel(MAIN | {"basis": "pod", "order": 4})
    )
    low_high = study_stages["comparison"]["relative_l2"].sel(
        layers="all", injection="absolute", basis="pod", order=4
    )
    assert low_high.sel(bound="estimate") == error
    assert f"pod, order 4: {percent(low_high.values)}".replace(" %", "\u00a0%") in said


def test_texts_stand_side_by_side_in_the_order_of_strengths(tree, study_stages):
    details = tree.find(".//details[@id='cell-1']")
    boxes = [each for each in details.iter("div") if each.get("class") == "texts"]
    assert len(boxes) == len(stores.PROMPTS)
    shown = [(words(box.find("h4")), box.find("p").text) for box in boxes[0]]
    text = study_stages["texts"]["text"].isel(plan=0, prompt=0)
    assert shown == [
        ("× −1", str(text.sel(strength=-1.0).item())),
        ("as it is", str(text.sel(strength=0.0).item())),
        ("× 1", str(text.sel(strength=1.0).item())),
    ]


def test_parts_of_a_budget_do_not_pretend_to_add_up(tree):
    assert "do not add up to the total" in words(section(tree, "budget"))
    (svg,) = [s for s in section(tree, "budget").iter(f"{SVG}svg") if s.get("class") == "chart"]
    assert not list(svg.iter(f"{SVG}rect"))


def test_methods_are_told_apart_by_the_paired_interval(tree, study_stages):
    tables = list(section(tree, "methods").iter("table"))
    overall, every = (rows(table) for table in tables)
    assert [row[0] for row in overall] == ["ensemble", "krylov", "pod"]
    gap = study_stages["comparison"]["relative_l2_gap"].sel(order=4, layers="all", basis="pod")
    low, high = (float(gap.sel(bound=b)) for b in ("low", "high"))
    said = "worse than" if low > 0 else "better than" if high < 0 else "not told from"
    assert every[2][1:3] + every[2][-1:] == ["pod", "4", f"{said} ensemble"]
    assert every[0][-1] == "the first"


def test_sizes_are_set_against_agreement_only_where_there_are_several(tree, results):
    texts = {t.text for t in section(tree, "scaling").iter(f"{SVG}text")}
    assert {"168 k", "1 M"} <= texts
    same = [cell for cell in results.cells if cell.model != "larger"]
    assert 'id="scaling"' not in page(Results("one size", tuple(same)))


def test_provenance_holds_fingerprints_and_commands(tree, study_stages):
    text = words(section(tree, "provenance"))
    assert study_stages["system"].attrs["model_fingerprint"] in text
    assert study_stages["system"].attrs["concept_sha256"] in text
    assert stores.ABOUT["command"] in text
    cell = words(tree.find(".//details[@id='cell-1']"))
    assert study_stages["concept"].attrs["prompts_sha256"] in cell


def test_the_page_of_one_cell_is_open_and_repeats_nothing(results):
    alone = page(Results("alone", results.cells[:1], kind="run"))
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(alone)
    assert [each.get("id") for each in tree.iter("section")] == [
        "summary", "methods", "plans", "effects", "details", "provenance",
    ]  # fmt: skip
    assert tree.find(".//details[@id='cell-1']").get("open") is not None
    titles = [s.get("aria-label") for s in tree.iter(f"{SVG}svg") if s.get("class") == "chart"]
    assert len(titles) == len(set(titles))


def test_it_is_the_same_each_time(results, made):
    assert page(results) == made


def test_a_result_that_lacks_something_says_so_and_the_rest_is_told(results):
    cell = results.cells[0]
    plan = cell.stages["plan"]
    less = Stage({k: v for k, v in plan.variables.items() if k != "energy"}, plan.attrs)
    told = page(Results("less", (replace(cell, stages={**cell.stages, "plan": less}),)))
    assert "Not told: the result is not as depthsys writes it (KeyError" in told
    assert "Where it pushes" in told


def test_fifty_cells_are_a_file_of_a_few_megabytes(results):
    cells = tuple(replace(results.cells[0], seed=str(seed)) for seed in range(50))
    many = page(Results("many", cells))
    assert many.count('<details id="cell-') == 50
    assert len(many.encode()) < 4e6


def test_assets_are_in_the_package():
    import depthsys.report.html as package

    folder = Path(package.__file__).parent
    assert {each.name for each in folder.iterdir()} >= {"page.css", "page.js"}
