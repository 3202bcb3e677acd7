"""docs/dynamics/lens.md: its tables and its words are those of the stored numbers."""

import importlib.util
import json
from pathlib import Path

from depthsys.report import markdown
from depthsys.report.page import between

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/dynamics/lens.md").read_text("utf-8")
WORDS = " ".join(PAGE.split())
NUMBERS = json.loads((ROOT / "docs/dynamics/lens.json").read_text("utf-8"))
spec = importlib.util.spec_from_file_location("lens_page", ROOT / "examples/lens_page.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
MOVIES, AMAZON = (NUMBERS["read"][name] for name in ("movies", "amazon"))


def test_the_tables_are_those_of_the_numbers():
    tables = {
        "read": script.read_table(NUMBERS),
        "definitions": script.definition_table(NUMBERS),
        "directions": script.direction_table(NUMBERS),
    }
    for name, table in tables.items():
        assert between(PAGE, *script.MARKERS[name]) == markdown(table)


def test_what_is_said_of_readers():
    share = [100 * each["agreement"]["mean state"][0] for each in (MOVIES, AMAZON)]
    assert "in {:.0f} % of the movie reviews and {:.0f} % of the amazon ones".format(*share) in (
        WORDS
    )
    about = [each["kl"]["J-lens about the mean"] for each in (MOVIES, AMAZON)]
    state = [each["kl"]["mean state"] for each in (MOVIES, AMAZON)]
    for one, other in zip(about, state, strict=True):
        assert all(a < b for a, b in zip(one, other, strict=True))
    assert "({:.2f} and {:.2f} nats)".format(*(each[0] for each in state)) in WORDS
    for depth in (10, 20):
        assert f"{about[0][depth]:.2f} and {about[1][depth]:.2f} at depth {depth}" in WORDS
    plain, logit = (MOVIES["kl"][name][20] for name in ("J-lens", "logit lens"))
    assert f"its divergence is {plain:.1f} nats against {logit:.1f} (movies)" in WORDS
    of = [100 * MOVIES["agreement"][name][20] for name in ("J-lens", "logit lens", "mean state")]
    assert "token in {:.0f} % of prompts and the logit lens in {:.0f} %".format(*of) in WORDS
    assert of[1] < of[2]


def test_what_is_said_of_the_lens_and_its_definitions():
    lens = NUMBERS["lens"]
    share = (lens["share"][depth] for depth in (0, 10, 20))
    assert "{:.2f} of their root mean square norm at depth 0, {:.2f} at depth 10, {:.2f}".format(
        *share
    ) in WORDS  # fmt: skip
    off = (100 * lens["product_of_means"][depth] for depth in (0, 20))
    assert "{:.0f} % off at depth 0, {:.0f} % at depth 20".format(*off) in WORDS
    halves = (100 * value for value in lens["halves"]["difference"])
    assert "differ by {:.0f} % at depth 10 and {:.0f} % at depth 20".format(*halves) in WORDS
    assert f"With {lens['prompts']} prompts" in WORDS
    small = NUMBERS["small"]
    middle = {name: len(found["difference"]) // 2 - (name != "gpt2_6x128") for name, found in
              small.items()}  # fmt: skip
    stories, gpt, wide = (small[name] for name in script.SMALL)
    m = [middle[name] for name in script.SMALL]
    assert m == [2, 2, 3]
    both = [100 * stories["difference"][2], 100 * gpt["difference"][2]]
    assert "by {:.0f} and {:.0f} % in the middle".format(*both) in WORDS
    assert f"(cosine {stories['cosine'][2]:.2f} and {gpt['cosine'][2]:.2f})" in WORDS
    assert {f"{100 * each['same_token'][2]:.0f}" for each in (stories, gpt)} == {"38"}
    assert f"by {100 * wide['difference'][3]:.0f} % (cosine {wide['cosine'][3]:.2f})" in WORDS
    ours, theirs = (
        [100 * found["agreement"][d][at] for found, at in zip((stories, gpt, wide), m, strict=True)]
        for d in ("last token", "published")
    )
    said = "ours has {:.0f} %, {:.0f} % and {:.0f} %, theirs {:.0f} %, {:.0f} % and {:.0f} %"
    assert said.format(*ours, *theirs) in WORDS
