"""docs/dynamics/lens.md: its tables are those of the stored numbers, and its words say them."""

import importlib.util
import json
from pathlib import Path

import numpy as np

from depthsys.report import markdown
from depthsys.report.page import between

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/dynamics/lens.md").read_text("utf-8")
WORDS = " ".join(PAGE.split())
NUMBERS = json.loads((ROOT / "docs/dynamics/lens.json").read_text("utf-8"))
spec = importlib.util.spec_from_file_location("lens_page", ROOT / "examples/lens_page.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
MOVIES, AMAZON = NUMBERS["read"]["movies"], NUMBERS["read"]["amazon"]
LOGIT, J, ABOUT, MEAN = MOVIES["kl"]
LENS, BOTH = NUMBERS["lens"], NUMBERS["definitions"]


def test_the_tables_are_those_of_the_numbers():
    for name, table in {
        "read": script.read_table,
        "definitions": script.definition_table,
        "directions": script.direction_table,
        "paper": script.paper_table,
    }.items():
        assert between(PAGE, *script.MARKERS[name]) == markdown(table(NUMBERS))


def test_what_is_said_of_likeliest_tokens():
    shares = [100 * texts["agreement"][MEAN][0] for texts in (MOVIES, AMAZON)]
    assert "{:.0f} % of the movie prompts and {:.0f} % of the amazon".format(*shares) in WORDS
    assert f"{MOVIES['prompts']} held-out prompts" in WORDS
    right = np.array(MOVIES["agreement"][LOGIT])
    assert (round(100 * right[13:28].min()), round(100 * right[13:28].max())) == (80, 86)
    assert {round(kl) for kl in MOVIES["kl"][LOGIT][13:24]} == {13, 14}
    by_texts = [{n: np.array(t["agreement"][n]) for n in (LOGIT, J, ABOUT)}
                for t in (MOVIES, AMAZON)]  # fmt: skip
    fewer = [np.flatnonzero(t[J] < t[LOGIT]).tolist() for t in by_texts]
    for depths, last in zip(fewer, (24, 27), strict=True):
        assert {1, *range(12, last + 1)} <= {*depths}
        assert last + 1 not in depths
    assert "({:.0f} % against {:.0f} % on movies, {:.0f} % against {:.0f} % on amazon)".format(
        *(100 * t[name][1] for t in by_texts for name in (J, LOGIT))
    ) in WORDS  # fmt: skip
    assert "at depths 12 to 24 (12 to 27 on amazon)" in WORDS


def test_what_is_said_of_the_last_but_one_depth():
    percent = [
        f"{100 * t['agreement'][name][28]:.0f} to {100 * t['agreement'][name][29]:.0f} %"
        for name in (LOGIT, J)
        for t in (MOVIES, AMAZON)
    ]
    said = "lens falls from {} on movies and from {} on amazon, the J-lens from {} and from {},"
    assert said.format(*percent) in WORDS
    kl = [t["kl"][J][depth] for depth in (29, 28) for t in (MOVIES, AMAZON)]
    assert "{:.2f} and {:.2f} nats away where it was {:.2f} and {:.2f}.".format(*kl) in WORDS
    about = [100 * t["agreement"][ABOUT][depth] for depth in (29, 28) for t in (MOVIES, AMAZON)]
    assert "({:.0f} % and {:.0f} %, from {:.0f} % and {:.0f} %)".format(*about) in WORDS
    assert "again at 29 ({:.2f} against {:.2f})".format(
        *(MOVIES["kl"][name][29] for name in (J, MEAN))
    ) in WORDS  # fmt: skip


def test_what_is_said_of_divergences():
    found = [f"{MOVIES['kl'][ABOUT][k]:.2f}" for k in (10, 15, 20, 25)]
    assert found == ["0.38", "0.29", "0.18", "0.07"]
    assert "from depth 10 it is 0.38, from 15 0.29, from 20 0.18, from 25 0.07" in WORDS
    steps = np.diff(MOVIES["kl"][ABOUT][:30])
    assert np.flatnonzero(steps > 0).tolist() == [25]
    end = [MOVIES["kl"][ABOUT][k] for k in (26, 29)]
    assert "from 26 it is {:.2f} again, from 29 {:.2f}.".format(*end) in WORDS
    amazon = np.array(AMAZON["kl"][ABOUT][:30])
    assert int(amazon.argmin()) == 26
    assert np.flatnonzero(np.diff(amazon[:27]) > 0).tolist() == [6]
    assert f"it once is {amazon[7] - amazon[6]:.2f} farther, from depth 6 to 7" in WORDS
    assert (np.diff(amazon[26:]) > 0).all()
    assert f"from depth 26 ({amazon[26]:.2f}; on the way" in WORDS
    assert f"and then farther from depth to depth, {amazon[29]:.2f} from 29." in WORDS
    others = [AMAZON["kl"][MEAN][0], *(AMAZON["kl"][ABOUT][k] for k in (10, 15, 20, 25))]
    assert "{:.2f}, then {:.2f}, {:.2f}, {:.2f} and {:.2f}".format(*others) in WORDS
    for texts, last in ((MOVIES, 26), (AMAZON, 21)):
        kl = {name: np.array(curve) for name, curve in texts["kl"].items()}
        assert (kl[ABOUT] <= kl[MEAN]).all()
        assert (kl[J][:-1] < kl[LOGIT][:-1]).all()
        assert np.flatnonzero(kl[J][:29] > kl[MEAN][:29]).max() == last
    assert f"({MOVIES['kl'][J][20]:.1f} against {MOVIES['kl'][LOGIT][20]:.0f} nats" in WORDS


def test_what_is_said_of_the_mean():
    apart = [100 * LENS["product_of_means"][k] for k in (0, 10, 20)]
    said = "by {:.0f} % of the norm at depth 0, {:.0f} % at depth 10 and {:.0f} % at depth 20"
    assert said.format(*apart) in WORDS
    halves = [100 * value for value in LENS["halves"]["difference"]]
    assert "by {:.0f} % of the norm at depth 10 and {:.0f} % at depth 20".format(*halves) in WORDS
    share = [LENS["share"][k] for k in (0, 10, 20)]
    assert [f"{value:.2f}" for value in share] == ["0.33", "0.68", "0.84"]
    assert f"{LENS['prompts'] ** -0.5:.2f} would be nothing in common" in WORDS
    assert LENS["prompts"] == 30


def test_what_is_said_of_directions():
    words = {t.strip() for k in ("15", "20", "25") for t in NUMBERS["directions"]["J-lens"][k]}
    assert {"complemented", "immerse", "loved", "illuminated"} <= words
    assert set(NUMBERS["directions"]["J-lens"]["0"]) == {""}


def test_what_is_said_of_definitions():
    small = NUMBERS["small"]
    middle = {name: (len(row["difference"]) - 1) // 2 for name, row in small.items()}
    found = {
        key: [100 * row[key][middle[name]] for name, row in small.items()]
        for key in ("difference", "same_token")
    }
    assert "{:.0f} to {:.0f} %".format(*_ends(found["difference"])) == "32 to 77 %"
    assert "of {:.0f} to {:.0f} % of the prompts".format(*_ends(found["same_token"])) in WORDS
    assert [k for k, d in enumerate(BOTH["difference"]) if d > 1] == [*range(18)]
    assert f"cosine {BOTH['cosine'][15]:.2f} at depth 15" in WORDS
    assert np.flatnonzero(BOTH["same_token"])[0] == 19
    assert sum(n - 1 - BOTH["skip"] for n in BOTH["tokens"]) in range(18, 25)
    right = {d: np.array(BOTH["agreement"][d]) for d in ("last token", "published")}
    assert max(each[:26].max() for each in right.values()) < 0.15
    gpt2 = small["gpt2_6x128"]["agreement"]
    ours, theirs = (100 * gpt2[d][3] for d in ("last token", "published"))
    assert f"({ours:.0f} % against {theirs:.0f} %)" in WORDS
    assert small["gpt2_6x128"]["logit_lens"][3] > gpt2["last token"][3]


def _ends(values) -> tuple[float, float]:
    return min(values), max(values)
