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
    up, gate = (gains[name] / gains["measured_gain"] for name in ("detached_gain", "gate_gain"))
    assert np.flatnonzero(up < 0).tolist() == [4, 5]
    assert "the wrong sign at layers 4 and 5" in WORDS
    assert f"are {up[6:12].min():.2f} to {up[6:12].max():.2f} of the measured ones at" in WORDS
    assert (np.diff(up[14:]) > 0).all()
    assert f"rise from there to {up[-1]:.2f} at the last layer" in WORDS
    assert "layers 1 to 3 they are {:.2f}, {:.2f} and {:.2f}".format(*up[1:4]) in WORDS
    assert np.flatnonzero(gate < 0).tolist() == [*range(4, 12)]
    assert f"the ratio {gate[12:].min():.2f} to {gate[12:].max():.2f} behind them" in WORDS
    assert max(up[6:].max(), gate[6:].max()) < 1


def test_what_is_said_of_plans():
    energies = NUMBERS["steering"]["movies"]["energies"]
    more = sorted(100 * (energies[n]["multiple"] - 1) for n in energies if n.startswith("detached"))
    assert "costs {:.0f} to {:.0f} % more".format(*more) in WORDS
    before = NUMBERS["steering"]["movies"]["perplexity_before"][0]
    assert f"perplexity without a plan is {before:.1f}" in WORDS
    prices = NUMBERS["steering"]["movies"]["prices"]
    shifts = [prices[name]["readout_new_shift"] for name in prices]
    assert max(low for _, low, _ in shifts) < min(high for *_, high in shifts)
    of = ("energy", "perplexity_mean", "kl_mean")
    linear, *detached = (
        [np.ravel(prices[n][q])[0] for q in of]
        for n in ("linear system", "detached, up", "detached, gate")
    )
    assert all(a > b for each in detached for a, b in zip(each, linear, strict=True))
    more = [each[0] / linear[0] for each in detached]
    assert "push with {:.1f} and {:.1f} times the energy".format(*more) in WORDS
    target = NUMBERS["steering"]["movies"]["target"]
    assert f"{target:.1f} is one standard deviation" in WORDS
    alike = [each for each in prices.values() if each["energy"] == linear[0]]
    assert len(alike) == 4
    shifts, kl = ([each[q][0] for each in alike] for q in ("readout_new_shift", "kl_mean"))
    assert f"a shift of {min(shifts):.1f} to {max(shifts):.1f} with" in WORDS
    assert f"a divergence of {min(kl):.2f} to {max(kl):.2f} nats" in WORDS
    assert all(low < min(shifts) and high > max(shifts)
               for _, low, high in (each["readout_new_shift"] for each in alike))  # fmt: skip
    shares = [each["readout_new_shift"][0] / target for each in prices.values()]
    assert f"new tokens show {min(shares):.1f} to {max(shares):.1f}." in WORDS


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
    assert (
        f"hold {p[0]:.0f} % of the length of SmolLM2's state behind layer 0, {p[15]:.0f} %" in WORDS
    )
    assert f"{p[24]:.0f} % behind layer 24 and {p[-1]:.0f} % at the end" in WORDS
    first = [100 * found["projection"][0] for found in OTHERS]
    assert f"{min(first):.0f} to {max(first):.0f} % from the beginning" in WORDS


def test_the_page_of_control_points_to_the_plans_made_with_detached_maps():
    control = " ".join((ROOT / "docs/control.md").read_text("utf-8").split())
    assert "(dynamics/detached.md#steering-with-them-all-the-same)" in control


def test_what_is_stored_of_other_models_stays():
    assert script.with_stored({"models": {"a": 1, "b": 2}}, {"b": 3}) == {"b": 3, "a": 1}
