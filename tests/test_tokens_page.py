"""docs/dynamics/tokens.md: its tables and its words are those of the stored numbers."""

import importlib.util
import json
from pathlib import Path

from depthsys.report import markdown
from depthsys.report.page import between

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/dynamics/tokens.md").read_text("utf-8")
WORDS = " ".join(PAGE.split())
NUMBERS = json.loads((ROOT / "docs/dynamics/tokens.json").read_text("utf-8"))
spec = importlib.util.spec_from_file_location("tokens_page", ROOT / "examples/tokens_page.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
MOVIES, WIKI = (NUMBERS["shares"][f"SmolLM2, {name}"] for name in ("movies", "wikitext"))
LAYER, LAG, POSITION = range(3)


def column(row, by, kind="gain") -> list[float]:
    return [values[by] for values in row["by_layer"][kind]]


def ranged(values, digits=2) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def test_the_tables_are_those_of_the_numbers():
    assert between(PAGE, *script.SHARES) == markdown(script.share_table(NUMBERS["shares"]))
    assert between(PAGE, *script.MEASURED) == markdown(script.measured_table(NUMBERS["measured"]))


def test_a_share_of_nothing_has_no_sign():
    assert [script.two_digits(share) for share in (-0.003, 0.0, -0.0114)] == [
        "0.00", "0.00", "-0.01",
    ]  # fmt: skip
    assert "-0.00" not in PAGE


def test_the_shares_are_drawn_as_they_are_stored(monkeypatch):
    figures = []
    monkeypatch.setattr(script.plot, "save", lambda fig, *_: figures.append(fig))
    script.draw_shares(MOVIES)
    left, middle, right = figures[0].axes
    for ax, kind in ((left, "gain"), (middle, "gain, by the state's norm")):
        for line, by in zip(ax.lines, (LAYER, LAG, POSITION), strict=False):
            assert list(line.get_ydata()[1:]) == column(MOVIES, by, kind)[1:]
    assert list(right.lines[0].get_ydata()) == MOVIES["earlier_share"]


def test_what_is_stored_of_other_models_stays():
    assert script.with_stored({"shares": {"a": 1, "b": 2}}, {"b": 3}) == {"b": 3, "a": 1}


def test_what_is_said_of_movies_and_wikitext():
    totals = [row["explained"]["gain"] for row in (MOVIES, WIKI)]
    lags, layers = ([t[by] for t in totals] for by in (LAG, LAYER))
    assert "holds {:.2f} on movies and {:.2f} on wikitext".format(*lags) in WORDS
    assert "each layer holds {:.2f} and {:.2f}.".format(*layers) in WORDS
    middle = slice(12, 22)
    assert f"mean holds {ranged(column(MOVIES, LAYER)[middle])}, and the lag" in WORDS
    assert f"little ({ranged(column(MOVIES, LAG)[middle])})" in WORDS
    assert max(column(MOVIES, LAG)[1:11] + column(WIKI, LAG)[1:11]) < 0.15
    late = slice(22, 30)
    assert f"layer 22 on: {ranged(column(WIKI, LAG)[late])}, where" in WORDS
    assert f"the layer alone holds {ranged(column(WIKI, LAYER)[late])}." in WORDS
    by_norm = WIKI["explained"]["gain, by the state's norm"][LAG]
    assert f"({by_norm:.2f} by the state's norm)" in WORDS
    power = MOVIES["decay"]["gain"]
    assert f"exponent of {ranged(power['decay_power'][1:])} over the layers" in WORDS
    assert f"at most {max(power['decay_power_r2'][1:]):.2f} of the variance" in WORDS
    power = WIKI["decay"]["gain"]
    early, behind = power["decay_power"][1:24], power["decay_power"][24:]
    assert f"exponents of {ranged(early)} up to layer 23 and of {ranged(behind)} behind" in WORDS
    assert f"which tell at most {max(power['decay_power_r2'][1:]):.2f}." in WORDS


def test_what_is_said_of_the_first_token_and_of_depth():
    place = MOVIES["explained"]["gain, by the state's norm"][POSITION]
    assert f"place explains nearly all of it: {place:.2f}." in WORDS
    first = MOVIES["first"][12:25]
    assert f"{100 * min(first):.0f} to {100 * max(first):.0f} % of the squared gains" in WORDS
    share = MOVIES["earlier_share"]
    assert (
        f"{share[0]:.2f} of the squared gradient of the readout lies at earlier tokens before "
        f"layer 0, {share[5]:.2f} before layer 5, {share[11]:.2f} before layer 11, "
        f"{share[19]:.2f} before layer 19, and {share[24]:.2f} before layer 24"
    ) in WORDS
    later = [WIKI["earlier_share"][layer] for layer in (5, 11, 19, 24)]
    assert "({:.2f}, {:.2f}, {:.2f} and {:.2f})".format(*later) in WORDS


def test_what_is_said_of_small_models_and_of_passages():
    small = [NUMBERS["shares"][name] for name in ("stories260K", "gpt280K_tinystories")]
    sizes = [row["explained"]["gradient"] for row in small]
    assert (
        f"holds {sizes[0][LAG]:.2f} in stories260K and {sizes[1][LAG]:.2f} in "
        f"gpt280K_tinystories, where one number for each layer holds {sizes[0][LAYER]:.2f} and "
        f"{sizes[1][LAYER]:.2f};"
    ) in WORDS
    powers = [row["decay"]["gradient"]["decay_power"] for row in small]
    assert f"exponents of {ranged(powers[0])} and {ranged(powers[1])}." in WORDS
    assert "nothing is shared: {:.2f} and {:.2f}.".format(
        *(row["explained"]["gain"][LAG] for row in small)
    ) in WORDS  # fmt: skip
    gpt2 = NUMBERS["shares"]["gpt2_6x128"]
    assert f"map holds {gpt2['explained']['gain'][LAG]:.2f} of the gains" in WORDS
    behind = column(gpt2, LAG)
    assert f"layer 0 ({behind[0]:.2f}); behind it, {ranged(behind[1:])}." in WORDS
    lengths = NUMBERS["lengths"]
    assert f"the lag holds {lengths['lag']:.2f} (median of" in WORDS
    assert f"one number for each layer {lengths['layer']:.2f}, and the place" in WORDS
    assert f"the very same token, {lengths['position']:.2f}." in WORDS


def test_what_is_said_of_really_pushing():
    found = NUMBERS["measured"]
    assert f"by {100 * found['step']:.0f} % of the state's norm" in WORDS
    layers = ", ".join(map(str, found["layers"][:-1]))
    said = f"{found['prompts']} movie reviews, layers {layers} and {found['layers'][-1]}."
    assert said in WORDS
    assert max(found["relative_l2"]) < 1e-3
