"""docs/scaling.md: its tables are the stored numbers, and what it says of them is in them."""

import importlib.util
import json
import tomllib
from pathlib import Path
from statistics import median

import pytest

from depthsys.report.page import between
from depthsys.report.scaling import against_smallest, by_size, over_floor, page
from depthsys.wording import percent_of_page

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
WORDS = " ".join(TEXT.split())
STORED = json.loads((ROOT / "docs/scaling.json").read_text(encoding="utf-8"))
DEMO, TRAINED = STORED["demo family"], STORED["trained models"]
EVERY = [*DEMO, *TRAINED]
spec = importlib.util.spec_from_file_location("scaling_page", ROOT / "examples/scaling_page.py")
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
STUDIES = {
    name: tomllib.loads((ROOT / f"examples/scaling_{name}.toml").read_text("utf-8"))
    for name in ("demo", "real")
}


def said(error, own):
    """Medians of the models, as the page has them."""
    return [percent_of_page([value]) for value in by_size(own, error)]


def errors(own, method, name="relative_l2"):
    return said(lambda row: row["methods"][method][name][0], own)


def parts(own, method, part):
    return said(lambda row: row["methods"][method][part], own)


def test_tables_are_the_stored_numbers():
    for name, table in page(STORED).items():
        assert between(TEXT, *example.markers(name)) == table, name
    assert "@@" not in TEXT


def test_every_cell_of_both_studies_is_there():
    for own, study in zip(STORED.values(), STUDIES.values(), strict=True):
        assert {row["seed"] for row in own} == set(study["seeds"]) == {0, 1, 2}
        assert len(own) == 3 * len(study["models"]) * len(study["tasks"])
        assert {tuple(row["methods"]) for row in own} == {tuple(example.METHODS)}
    demo, real = (study["settings"] for study in STUDIES.values())
    assert demo == real
    assert demo["split"] == "100/50/50"
    assert {basis for basis, _ in example.METHODS.values()} == set(demo["methods"])


def test_no_method_agrees_better_with_larger_models():
    assert "Each of the six methods has 12 comparisons" in WORDS
    assert "in none of them is the larger model's error clearly smaller" in WORDS
    assert len(example.METHODS) == 6
    for method in example.METHODS:
        found = [against_smallest(own, method) for own in (DEMO, TRAINED)]
        assert [len(ratios) for ratios, *_ in found] == [6, 6]
        assert [smaller for _, smaller, _ in found] == [0, 0]
    assert (
        "is 3.5 %, 3.4 %, 3.6 % and 4.2 % with the ensemble, 5.6 %, 6.1 %, 5.6 % and 5.4 %" in WORDS
    )
    assert errors(TRAINED, "ensemble 4") == ["3.5 %", "3.4 %", "3.6 %", "4.2 %"]
    assert errors(TRAINED, "krylov 32") == ["5.6 %", "6.1 %", "5.6 %", "5.4 %"]
    assert "the medians rise, 5.8 % to 14 % and 6.9 % to 19 %, and so does" in WORDS
    assert errors(DEMO, "ensemble 4")[::2] == ["5.8 %", "14 %"]
    assert errors(DEMO, "krylov 32")[::2] == ["6.9 %", "19 %"]
    assert "the noise floor, 8.3 % to 19 %; without layer 0" in WORDS
    assert said(lambda row: row["noise_floor"], DEMO)[::2] == ["8.3 %", "19 %"]
    assert "the ensemble's go from 1.9 % to 3.6 %" in WORDS
    assert errors(DEMO, "ensemble 4", "relative_l2_later")[::2] == ["1.9 %", "3.6 %"]


def test_what_the_ensemble_misses_is_sampling():
    assert "nonlinearity is 0.53 % at most in any cell, its truncation 0.90 %" in WORDS
    largest = max(row["nonlinearity"][0] for row in EVERY)
    own = [row["methods"]["ensemble 4"] for row in EVERY]
    assert (100 * largest, 100 * max(m["truncation"] for m in own)) == pytest.approx(
        (0.53, 0.90), abs=0.005
    )
    assert max(m["averaging"] for m in own) < 1e-6
    for row in EVERY:
        mine, sampling = row["methods"]["ensemble 4"], row["sampling"][0]
        rest = row["nonlinearity"][0] + mine["truncation"]
        assert abs(mine["relative_l2"][0] - sampling) < 1.1 * rest + 1e-6
    assert "is 0.60 to 1.8 times its noise floor" in WORDS
    over = [
        v for own in STORED.values() for v in by_size(own, lambda r: over_floor(r, "ensemble 4"))
    ]
    assert (f"{min(over):.2f}", f"{max(over):.1f}") == ("0.60", "1.8")
    assert "(single cells 0.12 to 4.7 times)" in WORDS
    single = [over_floor(row, "ensemble 4") for row in EVERY]
    assert (f"{min(single):.2f}", f"{max(single):.1f}") == ("0.12", "4.7")
    assert "by a factor of 1.5 to 15 (5.2 in the median of 14)" in WORDS
    spread = [max(v) / min(v) for v in by_pair("ensemble 4").values()]
    assert len(spread) == 14
    assert (min(spread), max(spread), median(spread)) == pytest.approx((1.5, 15, 5.2), abs=0.05)
    assert "the medians of two models of one column by 2.4 at most" in WORDS
    families = [
        by_size(f, lambda r: r["methods"]["ensemble 4"]["relative_l2"][0]) for f in STORED.values()
    ]
    assert max(max(v) / min(v) for v in families) == pytest.approx(2.4, abs=0.05)


def by_pair(method):
    found = {}
    for row in EVERY:
        one = found.setdefault((row["model"], row["task"]), [])
        one.append(row["methods"][method]["relative_l2"][0])
    return found


def test_at_a_fixed_order_depth_counts():
    assert "`krylov 8` has 5.6 %, 6.1 % and 5.6 % on the trained models of 5 and 6 layers" in WORDS
    assert errors(TRAINED, "krylov 8") == ["5.6 %", "6.1 %", "5.6 %", "25 %"]
    assert "25 % on SmolLM2's 30, clearly more in 6 of 6" in WORDS
    assert against_smallest(TRAINED, "krylov 8")[2] == 6
    assert "truncation: 22 % there and none before" in WORDS
    assert parts(TRAINED, "krylov 8", "truncation") == ["< 0.01 %"] * 3 + ["22 %"]
    assert "begins with 12 layers (30 %, truncation 12 %), clearly in 1 of 6" in WORDS
    assert errors(DEMO, "krylov 8")[-1] == "30 %"
    assert parts(DEMO, "krylov 8", "truncation") == ["< 0.01 %"] * 2 + ["12 %"]
    assert against_smallest(DEMO, "krylov 8")[2] == 1
    for row in EVERY:
        assert row["n_layers"] + 1 <= 32
        assert row["methods"]["krylov 32"]["truncation"] < 1e-10
    assert "(5.4 % and 5.4 % on SmolLM2)" in WORDS
    balanced, krylov = (errors(TRAINED, method) for method in ("balanced 4", "krylov 32"))
    assert balanced == krylov
    assert errors(DEMO, "balanced 4") == errors(DEMO, "krylov 32")


def test_averaging_grows_in_the_demo_family():
    assert "costs 1.3 %, 8.6 % and 17 % in the demo family of 4, 8 and 12 layers" in WORDS
    assert parts(DEMO, "krylov 32", "averaging") == ["1.3 %", "8.6 %", "17 %"]
    assert by_size(DEMO, lambda row: row["n_layers"]) == [4, 8, 12]
    assert "2.9 %, 3.5 %, 1.9 % and 3.8 % in the trained models" in WORDS
    assert parts(TRAINED, "krylov 32", "averaging") == ["2.9 %", "3.5 %", "1.9 %", "3.8 %"]


def test_spearman_does_not_say_the_same():
    def both(model, method):
        own = [row["methods"][method] for row in EVERY if row["model"] == model]
        rank = median(found["spearman"][0] for found in own)
        error = median(found["relative_l2"][0] for found in own)
        return f"{rank:.2f} with {percent_of_page([error])}"

    assert "has Spearman 0.77 with an error of 20 % on the 6 layers of gpt2_6x128" in WORDS
    assert both("gpt2_6x128", "arnoldi 32") == "0.77 with 20 %"
    assert "and 0.96 with 24 % on the 30 of SmolLM2" in WORDS
    assert both("SmolLM2-135M-Instruct", "arnoldi 32") == "0.96 with 24 %"
    assert "has 0.90 with 6.9 % on the 4 layers of demo_48x4" in WORDS
    assert both("demo_48x4", "krylov 8") == "0.90 with 6.9 %"
    assert "and 0.94 with 25 % on SmolLM2" in WORDS
    assert both("SmolLM2-135M-Instruct", "krylov 8") == "0.94 with 25 %"
    # two neighbours in the wrong order: 1 - 6 (1 + 1) / (L (L^2 - 1))
    assert "0.20 with 4 layers, 0.10 with 5, 0.007 with 12 and 0.0004 with 30" in WORDS
    lost = [12 / (n * (n**2 - 1)) for n in (4, 5, 12, 30)]
    assert lost == pytest.approx([0.2, 0.1, 0.007, 0.0004], rel=0.15)


def test_what_cannot_be_shown():
    aucs = by_size(TRAINED, lambda row: row["auc"])
    assert "about 0.5 in the small ones and 0.76 to 0.80 in SmolLM2" in WORDS
    assert all(0.45 < auc < 0.6 for auc in aucs[:-1])
    one = [
        median(r["auc"] for r in TRAINED if r["n_layers"] == 30 and r["task"] == t)
        for t in ("amazon", "movies")
    ]
    assert [f"{auc:.2f}" for auc in one] == ["0.76", "0.80"]
    assert "(2.6 % to 4.3 % for trained models, 8.3 % to 19 % in the demo family)" in WORDS
    floors = said(lambda row: row["noise_floor"], TRAINED)
    assert (min(floors), max(floors)) == ("2.6 %", "4.3 %")
