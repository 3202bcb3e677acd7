"""The README's example is run and its tables are those of the stored numbers."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

from depthsys.report.page import between

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
spec = importlib.util.spec_from_file_location("readme_table", ROOT / "examples/readme_table.py")
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)
SMALL_MODELS = (ROOT / "docs/small_models.md").read_text(encoding="utf-8")
ROWS = json.loads((ROOT / "docs/main_job.json").read_text())
STORED = ROWS["small"]


def numbers(text: str) -> np.ndarray:
    return np.array([float(x) for x in re.findall(r"-?\d+\.\d*|-?\d+", text)])


EXAMPLES = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", README, re.S)


def test_every_python_example_shows_its_output():
    assert len(EXAMPLES) == README.count("```python") == 4


@pytest.mark.parametrize(
    ("code", "shown"), EXAMPLES, ids=["language model", "steering", "ltv", "export"]
)
def test_python_example_prints_what_the_readme_shows(code, shown, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.sub(r"[-\d.\[\]\s]", "", printed) == re.sub(r"[-\d.\[\]\s]", "", shown)
    # the last printed digit may differ between processors
    np.testing.assert_allclose(numbers(printed), numbers(shown), atol=0.011)


def test_tables_are_the_stored_numbers():
    assert between(README, *table.MARKERS) == table.render(ROWS["real"])
    assert between(SMALL_MODELS, *table.MARKERS) == table.render(STORED)
    assert [row["task"] for row in ROWS["real"]] == ["movies", "amazon"]
    assert {row["shape"] for row in ROWS["real"]} == {"30 x 576"}
    models = {(row["model"], row["task"]) for row in STORED}
    assert {(m, t) for m in ("gpt2_6x128", "stories260K") for t in table.TASKS} <= models


def test_what_the_readme_says_about_its_tables_is_in_them():
    multiples = []
    for row in ROWS["real"]:
        (energy,) = row["energies"]
        multiples.append(energy["multiples"])
        assert energy["shift"] == 2
        assert abs(1 - energy["needed"] / energy["planned"]) < 0.02
        assert energy["multiples"]["first_layer"] is None
        assert min(value for value in energy["multiples"].values() if value is not None) > 1
        assert row["budget"]["truncation"][0] == row["budget"]["averaging"][0] == 0
    for name, word in (
        ("uniform", "1.6 and 1.8 times as much"),
        ("best_single_layer", "the best single layer 7.9 and 7.6 times"),
        ("last_layer", "the last one 9.7 and 9.8 times"),
    ):
        assert word in README
        assert [f"{each[name]:.1f}" for each in multiples] == re.findall(r"\d+\.\d", word)


def test_what_is_said_about_the_tables_of_small_models_is_in_them():
    row = {(r["model"], r["task"]): r for r in STORED}
    low, q10, q90, high = row["demo_128x12", "synthetic sentiment"]["layer_0"]
    assert f"from {low:.0f} to {high:.0f} there" in SMALL_MODELS
    assert f"from\n  {q10:.0f} to {q90:.0f}" in SMALL_MODELS
    worst = row["gpt280K_tinystories", "sst2"]
    assert (round(worst["budget"]["averaging"][0], 2), round(worst["budget"]["total"][0], 2)) == (
        0.41,
        0.30,
    )
    assert worst["agreement"]["all"]["spearman"][:2] == [1.0, 0.5]
    cheapest = {0.1: [], 1.0: []}
    for r in STORED:
        for e in r["energies"]:
            best = min(v for v in e["multiples"].values() if v is not None)
            cheapest[e["shift"]] += [best] if best < 1 else []
    assert [round(x, 3) for x in cheapest[0.1]] == [0.997]
    assert len(cheapest[1.0]) == 3
    assert round(min(cheapest[1.0]), 2) == 0.56
    assert all(r["budget"]["truncation"][0] < 1e-6 for r in STORED)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stories260K"])
def test_stored_numbers_are_reproduced(name, data, tmp_path):
    """One of the rows, from the command line with the full split."""
    stored = next(r for r in STORED if (r["model"], r["task"]) == (name, "sst2"))
    source = (data / "weights" / name, data / "tasks" / "sst2.csv")
    again = table.job_row(name, "sst2", source, tmp_path / "run")
    assert again["auc"] == pytest.approx(stored["auc"], abs=0.002)
    for part, triple in stored["budget"].items():
        np.testing.assert_allclose(again["budget"][part], triple, rtol=0.05, atol=2e-4)
    for layers, metrics in stored["agreement"].items():
        for metric, triple in metrics.items():
            np.testing.assert_allclose(
                again["agreement"][layers][metric], triple, rtol=0.02, atol=2e-3
            )
    for new, old in zip(again["energies"], stored["energies"], strict=True):
        for name, value in {"needed": old["needed"], **old["multiples"]}.items():
            found = new["needed"] if name == "needed" else new["multiples"][name]
            assert (found is None) == (value is None), name
            assert value is None or found == pytest.approx(value, rel=0.05), name
