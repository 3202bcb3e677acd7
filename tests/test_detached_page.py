"""docs/dynamics/detached.md: its tables are those of the stored numbers, and so are its words."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from depthsys.report import markdown
from depthsys.report.page import between
from tests.lm import families
from tests.lm.test_detached import REFUSED

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/dynamics/detached.md").read_text("utf-8")
WORDS = " ".join(PAGE.split())
NUMBERS = json.loads((ROOT / "docs/dynamics/detached.json").read_text("utf-8"))
spec = importlib.util.spec_from_file_location("detached_page", ROOT / "examples/detached_page.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
MODELS = NUMBERS["models"]
MOVIES = MODELS["SmolLM2-135M, movies"]
OTHERS = [found for name, found in MODELS.items() if not name.startswith("SmolLM2")]


@pytest.mark.parametrize("name", script.TABLES)
def test_the_tables_are_those_of_the_numbers(name):
    table = script.TABLES[name](NUMBERS)
    assert between(PAGE, *script.markers(name)) == markdown(table)


def test_the_families_that_are_refused_are_named():
    assert f"The other {len(families.FAMILIES) - len(REFUSED)} [families" in WORDS
    spelled = {"mixtral": "Mixtral", "qwen3_moe": "Qwen3-MoE", "gpt_oss": "GPT-OSS",
               "falcon": "Falcon", "bloom": "Bloom", "deepseek_v3": "DeepSeek-V3"}  # fmt: skip
    assert spelled.keys() == REFUSED.keys()
    assert all(each in WORDS for each in spelled.values())


def test_what_is_said_of_gains():
    agreed = [found["agreement"] for found in MODELS.values()]
    exact = [each["exact"]["relative_l2"]["all"][0] for each in agreed]
    assert max(exact) < 5e-4
    errors, ranks = (
        [
            each[kind][quantity]["all"][0]
            for each in agreed
            for kind in ("detached, up", "detached, gate")
        ]
        for quantity in ("relative_l2", "spearman")
    )
    assert f"relative L2 {min(errors):.2f} to {max(errors):.2f}, and rank correlations from " in (
        WORDS
    )
    assert f"from {max(ranks):.2f} down to {min(ranks):.2f}" in WORDS
    gains = {name: np.array(values) for name, values in MOVIES["gains"].items()}
    ratio = (gains["detached_gain"] / gains["exact_gain"])[12:18]
    assert f"they are {ratio.min():.2f} to {ratio.max():.2f} of the measured ones" in WORDS


def test_what_is_said_of_plans():
    energies = NUMBERS["steering"]["movies"]["energies"]
    more = sorted(100 * (energies[n]["multiple"] - 1) for n in energies if n.startswith("detached"))
    assert "costs {:.0f} to {:.0f} % more".format(*more) in WORDS
    before = NUMBERS["steering"]["movies"]["perplexity_before"][0]
    assert f"perplexity without a plan is {before:.1f}" in WORDS
    prices = NUMBERS["steering"]["movies"]["prices"]
    shifts = [prices[name]["readout_new_shift"] for name in prices]
    assert max(low for _, low, _ in shifts) < min(high for *_, high in shifts)
    of = ("perplexity_mean", "kl_mean")
    linear, *detached = ([prices[n][q][0] for q in of] for n in prices if "Jacobians" not in n)
    assert all(a > b for each in detached for a, b in zip(each, linear, strict=True))


def test_what_is_said_of_ranks_and_shares():
    start = MOVIES["stable_rank"]["from_start"]
    assert f"stable rank of {start[-1]:.1f} of {MOVIES['width']}" in WORDS
    assert f"from {start[0]:.1f} behind layer 0 to {start[-1]:.1f}" in WORDS
    assert f"stable rank {np.median(MOVIES['stable_rank']['layer']):.0f} (median)" in WORDS
    one = MOVIES["low_rank_error"]["from_start"][-1][0]
    assert f"last token's contribution to {100 * one:.0f} %" in WORDS
    ranks = [found["stable_rank"]["from_start"][-1] for found in OTHERS]
    ones = [100 * found["low_rank_error"]["from_start"][-1][0] for found in OTHERS]
    assert f"stable rank {min(ranks):.1f} to {max(ranks):.1f}" in WORDS
    assert f"of {min(ones):.0f} to {max(ones):.0f} %" in WORDS
    assert f"It makes {100 * MOVIES['shares']['last']:.0f} % of the last state" in WORDS
    assert f"embedding makes {100 * MOVIES['shares']['first']:.0f} %" in WORDS
    last = [100 * found["shares"]["last"] for found in OTHERS]
    assert len(OTHERS) == 4
    assert f"last token makes {min(last):.0f} to {max(last):.0f} %" in WORDS
    p = 100 * np.array(MOVIES["projection"])
    assert f"hold {p[0]:.0f} % of the length of the state behind layer 0, {p[15]:.0f} %" in WORDS
    assert f"{p[24]:.0f} % behind layer 24 and {p[-1]:.0f} % at the end" in WORDS
