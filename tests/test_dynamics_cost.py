"""docs/performance.md on depth as dynamics: tables and words are those of the stored numbers."""

import importlib.util
import json
from pathlib import Path

import torch
import xarray as xr

from depthsys import demo, lm
from depthsys.report import markdown
from depthsys.report.page import between
from depthsys.study import Cell, Settings, steps
from depthsys.study.dynamics import measured
from depthsys.study.measures import MEASURES
from depthsys.study.sources import read_splits_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/performance.md").read_text("utf-8")
WORDS = " ".join(PAGE.split())
NUMBERS = json.loads((ROOT / "docs/dynamics_cost.json").read_text("utf-8"))
spec = importlib.util.spec_from_file_location("dynamics_cost", ROOT / "examples/dynamics_cost.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
COSTS, MEMORY = NUMBERS["measures"], NUMBERS["memory"]
P, J, L, F = 200, 20, 30, 576
RATIO = {name: c["seconds"] / sum(c["floor"].values()) for name, c in COSTS.items()}


def test_the_tables_are_those_of_the_numbers():
    tables = (script.cost_table(NUMBERS), script.memory_table(NUMBERS))
    for markers, table in zip(script.MARKERS.values(), tables, strict=True):
        assert between(PAGE, *markers) == markdown(table)
    assert set(COSTS) == set(MEASURES)
    assert {(c["texts"], c["n_jacobians"]) for c in COSTS.values()} == {(P, J)}


def test_what_is_said_of_memory():
    beside = [(m["peak"] - m["before"] - m["contexts"]) / 2**20 for m in MEMORY["skip"].values()]
    assert "takes {:.0f} MiB with 200 texts and {:.0f} MiB with 400".format(*beside) in WORDS
    few, many = (MEMORY["residual"][count] for count in ("100", "200"))
    grown = (many["peak"] - many["before"] - few["peak"] + few["before"]) / 2**20
    contexts = (many["contexts"] - few["contexts"]) / 2**20
    assert (
        f"by {grown:.0f} MiB from 100 to 200 texts, of which contexts are {contexts:.0f} MiB"
        in WORDS
    )


def test_products_and_last_tokens_are_as_few_as_said():
    rows = {name: cost["rows"] for name, cost in COSTS.items()}
    prefill, pairs = rows["shape"]["passes"], L * (L - 1) // 2
    assert rows["skip"]["passes"] == prefill
    assert rows["skip"]["products"] == P * (L - 1)
    assert rows["skip"]["last tokens"] == P * (L - 1) + P * pairs  # linearised; without each layer
    assert rows["skip"]["logits"] == P * (L + 1)
    assert rows["lens"]["products"] == J * L * F
    assert rows["detached"]["products"] == J * L * F
    assert rows["coupling"]["products"] == J * L * F + J * pairs * 10
    assert rows["spectra"]["products"] == (J + 4) * L * F
    assert rows["tokens"]["passes"] == 2 * prefill
    assert rows["tokens"]["back"] == prefill
    few = rows["coupling"]["passes"]  # the prefill of 20 texts
    assert rows["detached"]["passes"] == 6 * few
    assert prefill < rows["residual"]["passes"] < 1.05 * prefill


def test_what_is_said_of_ratios():
    near = ("skip", "shape", "tokens", "detached_gains")
    ends = [f"{end([RATIO[name] for name in near]):.2f}" for end in (min, max)]
    assert f"are their passes ({ends[0]} to {ends[1]})" in WORDS
    for name in ("residual", "lens", "coupling", "spectra"):
        assert f"`{name}` ({RATIO[name]:.1f})" in WORDS
    assert {name for name, ratio in RATIO.items() if ratio > 3} == {"detached"}
    assert f"`detached` does not ({RATIO['detached']:.1f})" in WORDS
    seconds, floor = COSTS["detached"]["seconds"], sum(COSTS["detached"]["floor"].values())
    decomposed = 2 * J * L * 0.06
    assert f"{2 * J * L} such matrices" in WORDS
    assert f"{decomposed:.0f} of the {seconds:.0f} seconds" in WORDS
    assert f"would be {(seconds - decomposed) / floor:.1f}" in WORDS


def test_what_is_said_of_products():
    def each(name, kind):
        return 1e6 * COSTS[name]["floor"][kind] / COSTS[name]["rows"][kind]

    both = each("lens", "products"), each("detached_gains", "passes")
    assert "({:.0f} and {:.0f} us)".format(*both) in WORDS
    few = sorted(each(name, "products") for name in ("skip", "detached_gains"))
    assert [round(value, -1) for value in few] == [230, 250]


def test_counting_changes_nothing(monkeypatch):
    model = lm.DepthModel.load(demo.model_path("demo_48x4"), device="cpu")
    settings = Settings.checked(split="4/4/4", device="cpu", n_jacobians=2)
    cell = Cell(settings, model, read_splits_of("demo:sentiment", settings))
    concept = steps.find_concept(cell)
    expected = measured(script.fresh(cell), "skip", concept)
    found = []

    def kept(*given):
        found.append(measured(*given))

    monkeypatch.setattr(script, "measured", kept)
    told = script.cost(script.fresh(cell), "skip", concept)
    xr.testing.assert_equal(found[0], expected)
    n_layers, n_prompts = model.n_layers, 8
    pairs = n_layers * (n_layers - 1) // 2
    assert told["rows"] == {
        "passes": told["rows"]["passes"],
        "last tokens": n_prompts * (n_layers - 1 + pairs),
        "products": n_prompts * (n_layers - 1),
        "back": 0,
        "logits": n_prompts * (n_layers + 1),
    }
    tokens = sum(len(row) for row in cell.operating.rows)
    assert tokens * n_layers <= told["rows"]["passes"] <= 1.5 * tokens * n_layers  # padding
    assert {kind for kind, n in told["floor"].items() if n} <= {
        k for k, n in told["rows"].items() if n
    }
    # all is as it was
    assert not {"call"} & vars(model.blocks).keys()
    assert not {"head"} & vars(model).keys()
    assert torch.autograd.grad.__module__ == "torch.autograd"
