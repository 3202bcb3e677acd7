"""docs/dynamics/residual.md: its tables and its words are those of the stored numbers."""

import importlib.util
import json
from pathlib import Path

import numpy as np

from depthsys.report import markdown
from depthsys.report.page import between

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/dynamics/residual.md").read_text("utf-8")
WORDS = " ".join(PAGE.split())
NUMBERS = json.loads((ROOT / "docs/dynamics/residual.json").read_text("utf-8"))
spec = importlib.util.spec_from_file_location("residual_page", ROOT / "examples/residual_page.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
WIKI, STORIES = (NUMBERS[name] for name in script.TEXTS)
BOTH = (WIKI, STORIES)


def test_the_tables_are_those_of_the_numbers():
    tables = {
        "side by side": script.side_by_side(NUMBERS),
        "teleportation": script.flights(NUMBERS),
    }
    for name, table in tables.items():
        assert between(PAGE, *script.MARKERS[name]) == markdown(table)


def test_single_numbers_are_those_of_the_curves():
    for one in BOTH:
        curves, summary = one["curves"], one["summary"]
        for name in ("velocity", "density"):
            np.testing.assert_allclose(
                script.thirds(np.array(curves[name])), summary[name], rtol=5e-3
            )
        for first, part in enumerate(script.PARTS):
            for curve, name in (("correlation, 0.5", "correlation"), ("cosine", "cosine"),
                                ("mutual_information", "information")):  # fmt: skip
                here = script.thirds(np.array(curves[curve])[first::2])
                np.testing.assert_allclose(here, summary[f"{name}, {part}"], rtol=5e-3)
