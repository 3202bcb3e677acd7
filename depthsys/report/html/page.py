"""The page: one HTML file that needs nothing else and sends nothing anywhere."""

import base64
import hashlib
from collections.abc import Callable
from functools import cache
from importlib.resources import files

from depthsys._version import __version__
from depthsys.report.html import (
    budget,
    cells,
    detail,
    dynamics,
    effects,
    gains,
    methods,
    plans,
    provenance,
    scaling,
    summary,
    told,
)
from depthsys.report.html.facts import Facts
from depthsys.report.html.parts import Section, paragraph
from depthsys.report.html.places import portable
from depthsys.report.html.results import Results
from depthsys.report.html.svg import Markup, joined, tag
from depthsys.wording import counted

# Sections that look at all cells; each is left out where it has nothing to say.
ACROSS: tuple[Callable[[list[Facts]], Section | None], ...] = (
    cells.section, gains.section, budget.section, methods.section, plans.section,
    effects.section, scaling.section, dynamics.section,
)  # fmt: skip
OF_ONE = (
    methods.section,
    plans.section,
    effects.section,
)  # of a single cell, whose figures are below


def page(results: Results) -> str:
    """The results as one HTML document.

    Everything is inside: styles, script, figures. A policy in its head forbids all that is not: no
    other script runs, and nothing is loaded or sent. Absolute paths are left out of it.
    """
    results = portable(results)
    facts = [
        Facts(cell, results.named(cell), f"cell-{place}")
        for place, cell in enumerate(results.cells, start=1)
    ]
    doubts = {each.anchor: told.doubts(each) for each in facts}
    across = ACROSS if len(facts) > 1 else OF_ONE
    found = [summary.section(results, facts, doubts), *(make(facts) for make in across)]
    found += [detail.section(facts, doubts), provenance.section(results, facts)]
    sections = [each for each in found if each is not None]
    body = tag(
        "div",
        _top(results),
        _contents(sections),
        tag("main", *(each.markup() for each in sections)),
        tag(
            "footer",
            f"Made by depthsys {__version__} from stored results; nothing was computed on a model.",
        ),
        class_="frame",
    )
    script = Markup(_asset("page.js"))
    return joined(
        Markup("<!DOCTYPE html>\n"),
        tag("html", _head(results), tag("body", body, tag("script", script)), lang="en"),
    )


def _head(results: Results) -> Markup:
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="generator", content=f"depthsys {__version__}"),
        tag("title", results.name),
        tag("style", Markup(style)),
    )


@cache
def _asset(name: str) -> str:
    return (files("depthsys.report.html") / name).read_text(encoding="utf-8")


def _hash(said: str) -> str:
    digest = hashlib.sha256(said.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _top(results: Results) -> Markup:
    kinds = {"study": "depthsys study", "run": "depthsys run", "file": "depthsys result"}
    models = {cell.model for cell in results.cells}
    tasks = {cell.task for cell in results.cells}
    about = [
        counted(len(results.cells), "cell"),
        counted(len(models), "model"),
        counted(len(tasks), "task"),
    ]
    when = str(results.attrs.get("created", ""))[:10] or _latest(results)
    return tag(
        "header",
        paragraph(kinds.get(results.kind, "depthsys"), class_="kicker"),
        tag("h1", results.name),
        paragraph(" · ".join([*about, *([when] if when else [])])),
        tag("button", "Dark", id="theme", type="button"),
        class_="top",
    )


def _latest(results: Results) -> str:
    dates = [
        str(s.attrs["created"])
        for c in results.cells
        for s in c.stages.values()
        if "created" in s.attrs
    ]
    return max(dates)[:10] if dates else ""


def _contents(sections: list[Section]) -> Markup:
    links = [tag("li", tag("a", each.title, href=f"#{each.anchor}")) for each in sections]
    inside = tag("details", tag("summary", "Contents"), tag("ol", *links), open=True)
    return tag("nav", inside, class_="contents", aria_label="Contents")
