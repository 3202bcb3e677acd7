"""docs/control.md: its tables are the stored numbers, and what it says of them is in them."""

import json
from pathlib import Path

import pytest

from depthsys.report.many_plans import page
from depthsys.report.page import between

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "control.md").read_text(encoding="utf-8")
STORED = json.loads((DOCS / "control.json").read_text(encoding="utf-8"))
REAL = [row for row in STORED["energies"] if row["model"].startswith("SmolLM2")]
DEMOS = [row for row in STORED["energies"] if row not in REAL]
EXAMPLE = STORED["example"]


def test_tables_are_the_stored_numbers():
    for name, table in page(STORED).items():
        markers = f"<!-- {name}: examples/control_study.py -->", f"<!-- end of {name} -->"
        assert between(TEXT, *markers) == table, name
    assert "@@" not in TEXT
    assert {(row["task"], row["target"]) for row in REAL} == {
        (task, target)
        for task in ("movies", "amazon", "tweets", "sst2")
        for target in ("1std", "3std")
    }
    assert {row["split"] for row in STORED["energies"]} == {"400/200/200"}


def test_plans_take_what_they_say_and_nothing_simple_is_cheaper():
    for row in REAL:
        assert row["needed"][0] / row["own"] == pytest.approx(1, abs=0.02)
    for row in STORED["energies"]:
        assert row["needed"][0] / row["own"] == pytest.approx(1, abs=0.1)
        assert row["kkt"] < 1e-2
        assert row["missed"] < 1e-2
        for name, found in row["multiples"].items():
            if found is not None and name != "minimum_energy":
                assert found[1] > 1, (row["model"], row["task"], name)
            elif found is not None:
                assert found[2] >= 1
    uniform = [row["multiples"]["uniform"][0] for row in REAL]
    assert (round(min(uniform), 1), round(max(uniform), 1)) == (1.6, 2.1)
    best = [row["multiples"]["best_single_layer"][0] for row in REAL]
    assert 5 <= min(best) <= max(best) <= 8
    assert max(row["saved"] for row in REAL) < 0.003
    assert round(max(row["saved"] for row in DEMOS), 2) == 0.02
    assert {row["task"] for row in REAL if row["auc"][0] > 0.8} == {"tweets"}


def test_what_is_said_of_the_example():
    few = {row["most"]: row["multiple"] for row in EXAMPLE["few"]}
    assert (few[8], few[16]) == pytest.approx((1.3, 1.04), abs=0.005)
    floor = EXAMPLE["free"]["over_floor"]
    assert (floor["relative"], floor["absolute"]) == pytest.approx((9.2, 71), rel=0.01)
    assert max(c for c in EXAMPLE["free"]["cosine"] if c is not None) == pytest.approx(
        0.44, abs=0.005
    )
    assert EXAMPLE["sharing"]["price"] == pytest.approx([0.98, 0.94, 1.03], abs=0.006)
    assert EXAMPLE["sharing"]["spread"] == pytest.approx(0.09, abs=0.005)
    for row in EXAMPLE["options"]:
        assert row["residual"] < 1e-2
        assert row["kkt_residual"] < 1e-2
    shifts = EXAMPLE["holding"]["shift"]
    assert abs(shifts["optimum, operating"][1]) < 0.001
    assert abs(shifts["optimum"][1]) == pytest.approx(0.005, abs=0.001)
    assert shifts["optimum"][0] == pytest.approx(1, abs=0.05)
    assert abs(shifts["without holding"][1]) == pytest.approx(0.02, abs=0.005)


def test_what_the_readme_says_of_relative_energy_is_on_the_page():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    words = " ".join(readme.split())
    assert "within 2 % of what they say on four sources of texts" in words
    assert "pushes 1.6 to 2.1 times as much, the best single layer 5 to 8 times" in words


def test_what_is_said_of_feedback_and_of_texts():
    assert "its error is 0.49 times" in EXAMPLE["feedback"][4]["verdict"]
    said = EXAMPLE["feedback"][0]["verdict"]
    assert "its error is 0.44 times that of the plan as it is [0.41, 0.48]" in said
    effects = {(row["plan"], row["strength"]): row for row in EXAMPLE["effects"]}
    best, single = effects["optimal plan", 1.0], effects["best single layer (25)", 1.0]
    plain = effects["optimal plan", 0.0]
    assert (plain["log_odds"][0], best["log_odds"][0]) == pytest.approx((1.2, 4.8), abs=0.05)
    assert (plain["perplexity"][0], best["perplexity"][0]) == pytest.approx((3.0, 3.9), abs=0.06)
    assert (best["kl"][0], single["kl"][0]) == pytest.approx((0.29, 0.30), abs=0.006)
    alike = effects["equal relative pushes", 1.0]["kl"]
    assert alike == pytest.approx([0.34, 0.32, 0.36], abs=0.006)
    for (_, strength), row in effects.items():
        assert (row["repetition"][0] > 0.5) == (strength == 4.0)
