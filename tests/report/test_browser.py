"""The page in a real browser: nothing goes wrong, nothing is asked for, and it can be used.

Screenshots of every width and colour are left in the folder of `DEPTHSYS_SCREENSHOTS`.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from depthsys.report.html import Stage, page
from depthsys.study.reported import read_results

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZES = {"wide": (1280, 900), "middle": (768, 1024), "phone": (400, 800), "narrow": (375, 812)}


@pytest.fixture(scope="module")
def browser():
    """Chromium: that of the machine, or the one that playwright has fetched."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as started:
        try:
            found = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture(scope="module")
def file(study_store, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(read_results(study_store)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def long_names(study_store, tmp_path_factory) -> Path:
    """A page whose cells have long names, and no two of the same size."""
    found = read_results(study_store)
    cells = []
    for n, cell in enumerate(found.cells):
        stages = {
            name: Stage(stage.variables, {**stage.attrs, "n_features": 48 + 1000 * n})
            for name, stage in cell.stages.items()
        }
        model, task = f"{cell.model}-organisation_SmolLM2-135M-Instruct", f"{cell.task}_of_products"
        stages = {n: s for n, s in stages.items() if cell.model != "larger" or n != "comparison"}
        cells.append(replace(cell, model=model, task=task, stages=stages))
    path = tmp_path_factory.mktemp("names") / "report.html"
    path.write_text(page(replace(found, cells=tuple(cells))), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, file):
    """Opens the page; at the end there was no error and no request beside its own."""
    contexts, errors, asked = [], [], []

    def open_(size="wide", file=file, **options):
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        shown = context.new_page()
        shown.on("console", lambda said: errors.append(said.text))
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto(file.as_uri())
        return shown

    yield open_
    for context in contexts:
        context.close()
    assert errors == []
    assert {url.rsplit("/", 1)[-1] for url in asked} == {"report.html"}
    assert all(url.startswith("file:") for url in asked)


def place(shown, name: str) -> int:
    """Which column has that name."""
    names = shown.locator("#cells thead button").all_inner_texts()
    return 1 + names.index(name)


def column(shown, number: int) -> list[str]:
    return shown.locator(f"#cells tbody tr > :nth-child({number})").all_inner_texts()


def head(shown, number: int):
    return shown.locator(f"#cells thead th:nth-child({number})")


def test_a_click_sorts_and_another_one_turns_it_round(opened):
    shown = opened()
    first = column(shown, 1)
    head(shown, 1).locator("button").click()
    assert head(shown, 1).get_attribute("aria-sort") == "ascending"
    head(shown, 1).locator("button").click()
    assert head(shown, 1).get_attribute("aria-sort") == "descending"
    assert column(shown, 1) == sorted(first, key=first.index, reverse=True)
    assert shown.locator("#cells th[aria-sort]").count() == 1


def test_the_keyboard_sorts_and_what_is_not_known_stays_last(opened):
    shown = opened()
    error = place(shown, "error")
    button = head(shown, error).locator("button")
    button.focus()
    for key, order in (("Enter", "ascending"), ("Space", "descending")):
        shown.keyboard.press(key)
        assert head(shown, error).get_attribute("aria-sort") == order
        said = column(shown, error)
        assert said[-1] == "–"
        numbers = [float(each.split()[0]) for each in said[:-1]]
        assert numbers == sorted(numbers, reverse=order == "descending")


def test_numbers_are_sorted_as_numbers(opened):
    shown = opened()
    seconds = place(shown, "seconds")  # 3, 4.5, 12, ...
    head(shown, seconds).locator("button").click()
    numbers = [float(each) for each in column(shown, seconds)]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 1


def colour(shown) -> str:
    return shown.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize(("scheme", "first"), [("light", "Dark"), ("dark", "Light")])
def test_the_page_begins_in_the_colours_of_the_system_and_changes_them(opened, scheme, first):
    shown = opened(color_scheme=scheme)
    button = shown.locator("#theme")
    assert button.inner_text() == first
    before = colour(shown)
    button.click()
    after = colour(shown)
    assert before != after
    assert button.inner_text() == ({"Dark", "Light"} - {first}).pop()
    button.click()
    assert colour(shown) == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(opened, scheme):
    """4.5 to 1, as WCAG AA asks of small text, also of the colours of curves: 3 to 1."""
    shown = opened(color_scheme=scheme)
    script = """names => {
        const style = getComputedStyle(document.documentElement);
        return names.map(name => style.getPropertyValue(name).trim());
    }"""
    names = ["--paper", "--ink", "--soft", "--accent", "--bad", *(f"--c{n}" for n in range(1, 9))]
    paper, *others = map(luminance, shown.evaluate(script, names))
    ratios = [(max(paper, o) + 0.05) / (min(paper, o) + 0.05) for o in others]
    assert min(ratios[:4]) >= 4.5
    assert min(ratios[4:]) >= 3 if scheme == "light" else 4.5


def luminance(hexa: str) -> float:
    parts = [int(hexa[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_name_opens_its_cell(opened):
    shown = opened()
    part = shown.locator("#cell-2")
    assert part.get_attribute("open") is None
    head(shown, 1)
    shown.locator("#cells a[href='#cell-2']").click()
    part.locator("figure").first.wait_for(state="visible")
    assert part.get_attribute("open") is not None
    assert part.locator("svg.chart").count() > 8


@pytest.mark.parametrize("names", ["short", "long"])
@pytest.mark.parametrize("size", list(SIZES))
def test_nothing_is_wider_than_the_screen(opened, file, long_names, size, names):
    shown = opened(size, file=file if names == "short" else long_names)
    shown.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    width = SIZES[size][0]
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    over = """width => [...document.querySelectorAll('main *')].filter(e => {
        const box = e.getBoundingClientRect();
        return box.right > width + 1 && !e.closest('.scroll, .tall, pre, svg');
    }).map(e => e.outerHTML.slice(0, 80))"""
    assert shown.evaluate(over, width) == []


@pytest.mark.parametrize(("size", "fits"), [("wide", True), ("phone", False)])
def test_all_columns_of_the_cells_fit_on_a_wide_screen(opened, long_names, size, fits):
    """Also where cells differ in all that would otherwise be said above; else it scrolls."""
    shown = opened(size, file=long_names)
    box = shown.locator("#cells .scroll")
    assert {"state", "size", "largest part"} <= set(
        shown.locator("#cells thead button").all_inner_texts()
    )
    assert box.evaluate("e => e.scrollWidth <= e.clientWidth") is fits


def test_on_paper_everything_has_a_stable_anchor_and_nothing_is_cut(opened, long_names):
    shown = opened(file=long_names)
    sections = shown.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
    assert sections[:2] == ["summary", "cells"]
    assert all(sections)
    shown.emulate_media(media="print")
    assert shown.locator("nav.contents").is_hidden()
    cut = """() => [...document.querySelectorAll('#cells .scroll, #methods .scroll')].filter(
        e => getComputedStyle(e).overflowX !== 'visible').length"""
    assert shown.evaluate(cut) == 0


def test_the_first_column_stays_where_a_table_is_scrolled(opened):
    shown = opened("narrow")
    table = shown.locator("#cells .scroll")
    first = shown.locator("#cells tbody th").first
    before = first.bounding_box()
    table.evaluate("element => element.scrollLeft = 200")
    assert table.evaluate("element => element.scrollLeft") > 100
    assert first.bounding_box()["x"] == pytest.approx(before["x"], abs=1)


def test_texts_of_figures_can_be_read_on_a_phone(opened):
    shown = opened("narrow")
    shown.locator("#cells a[href='#cell-2']").evaluate("a => location.hash = a.hash")
    shown.locator("#cell-2 figure").first.wait_for(state="visible")
    heights = shown.evaluate("""() => [...document.querySelectorAll('#cell-2 svg.chart text')]
        .filter(t => t.textContent.trim()).map(t => t.getBoundingClientRect().height)""")
    assert min(heights) >= 10


def test_labels_do_not_overprint(opened):
    """Neither ticks nor words in figures lie on one another."""
    shown = opened()
    shown.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    clashes = shown.evaluate("""() => {
        const found = [];
        for (const svg of document.querySelectorAll('svg.chart')) {
            const texts = [...svg.querySelectorAll('text')];
            const boxes = texts.map(t => [t, t.getBoundingClientRect()]);
            boxes.forEach(([t, a], i) => boxes.slice(i + 1).forEach(([u, b]) => {
                const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                if (wide > 1 && high > 3)
                    found.push([svg.getAttribute('aria-label'), t.textContent, u.textContent]);
            }));
        }
        return found;
    }""")
    assert clashes == []


def test_strengths_beside_their_marks_have_a_halo_of_the_ground(opened):
    label = opened(color_scheme="dark").locator("#effects svg text.on").first
    style = "e => { const s = getComputedStyle(e); return [s.paintOrder.split(' ')[0], s.stroke]; }"
    first, stroke = label.evaluate(style)
    assert first == "stroke"
    assert stroke == "rgb(21, 24, 28)"


def test_without_script_all_is_there(opened):
    shown = opened(java_script_enabled=False)
    assert shown.locator("#theme").is_hidden()
    assert shown.locator("nav.contents a").first.is_visible()
    shown.locator("#cell-1 > summary").click()
    assert shown.locator("#cell-1 figure").first.is_visible()


def test_a_script_in_a_text_does_not_run(browser, study_store, tmp_path):
    """Where the escaping failed, the policy would still stop it."""
    made = page(read_results(study_store))
    path = tmp_path / "spoiled.html"
    attack = "<script>document.title = 'run'</script><img src='x' onerror=\"document.title='run'\">"
    path.write_text(made.replace("<main>", f"<main>{attack}"), encoding="utf-8")
    context = browser.new_context()
    shown = context.new_page()
    shown.goto(path.as_uri())
    assert shown.title() != "run"
    context.close()


def test_paper_shows_black_on_white(opened):
    shown = opened(color_scheme="dark")
    shown.emulate_media(media="print", color_scheme="dark")
    assert colour(shown) == "rgb(255, 255, 255)"
    assert shown.locator("nav.contents").is_hidden()


def test_screenshots_for_people(opened, tmp_path):
    folder = Path(os.environ.get("DEPTHSYS_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    for size in SIZES:
        for scheme in ("light", "dark"):
            shown = opened(size, color_scheme=scheme)
            shown.screenshot(path=folder / f"{size}_{scheme}.png", full_page=True)
            assert (folder / f"{size}_{scheme}.png").stat().st_size > 50_000
