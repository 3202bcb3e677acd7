"""What texts, splits, runs and models show of themselves: in a line, and as HTML."""

import re
from html.parser import HTMLParser

import pytest

from depthsys import lm
from depthsys.demo import grammar
from tests.conftest import TINY
from tests.lm.conftest import no_block_runs

HOSTILE = '</td></table><script>alert("1")</script>\u202e&amp;\n'
VOID = {"br", "hr", "img", "input", "meta", "link"}


class Reader(HTMLParser):
    """Tags, texts of cells, and whether all that is opened is closed."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def read(thing) -> Reader:
    """Its HTML, which is checked as far as all of it is alike."""
    text = thing._repr_html_()
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert {tag for tag, _ in reader.tags} <= {
        "style", "div", "strong", "table", "tr", "td", "details", "summary",
    }  # fmt: skip
    assert {name for _, attrs in reader.tags for name in attrs} == {"class"}  # nothing is open
    # whole in itself, and without a colour that one of two themes would swallow
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert not re.search(r"url|@import|http|#[0-9a-f]{3}", style)
    colours = set(re.findall(r"(?:color|background|solid) ?:?([^;}]+)", style))
    assert colours == {"inherit", "none", "rgba(128,128,128,.45)"} or colours == {
        ":inherit", ":none", "rgba(128,128,128,.45)",
    }  # fmt: skip
    return reader


@pytest.fixture(scope="module")
def splits():
    return lm.read_texts(grammar.labelled(20, seed=5)).split("6/4/2")


@pytest.fixture(scope="module")
def model():
    return lm.DepthModel(TINY["gpt2"](), name="mine")


def ids(*rows):
    return lm.read_texts([(list(row), i % 2) for i, row in enumerate(rows)])


def test_texts_tell_what_they_are_and_never_all_of_them():
    rows = [(f"text number {i} {'long ' * 99}", "pos" if i % 3 else "neg") for i in range(3000)]
    rows += [rows[0], ("both", "pos"), ("both", "neg"), ("other", "none")]
    texts = lm.read_texts(rows, classes=("neg", "pos"))
    dropped = "without 1 duplicate, 1 with both labels, 1 of other classes"
    assert repr(texts) == f"Texts(3000: 1000 of 'neg', 2000 of 'pos'; from 'list'; {dropped})"
    shown = read(texts).texts
    assert sum("text number" in each for each in shown) == 6
    assert {"text number 0", "text number 3", "text number 6", "text number 1"} <= {
        each[:13] for each in shown
    }
    assert "1 duplicate, 1 with both labels, 1 of other classes" in shown
    assert len(texts._repr_html_()) < 5000


def test_where_nothing_was_dropped_nothing_is_said_of_it():
    texts = lm.read_texts([("a", 0), ("b", 1)])
    assert repr(texts) == "Texts(2: 1 of '0', 1 of '1'; from 'list')"
    assert "dropped" not in read(texts).texts


def test_what_comes_from_data_is_escaped():
    texts = lm.read_texts([(f"{HOSTILE}x", HOSTILE), ("fine", "a")], positive="a")
    shown = read(texts).texts
    assert any('<script>alert("1")</script>\\u202e&amp;\\nx' in each for each in shown)
    assert "\u202e" not in "".join(each for each in shown if each.endswith("x"))
    assert "\n" not in repr(texts)
    model = lm.DepthModel(TINY["gpt2"](), name=HOSTILE, max_tokens=3)
    model.adapter = HOSTILE
    assert HOSTILE in read(model).texts
    run = model.run(ids([3, 1], [1, 5, 2, 7]))
    assert HOSTILE in read(run).texts
    assert len(read(lm.DepthModel(TINY["gpt2"](), name="<b>" * 9999)).texts) < 99


def test_long_names_are_cut():
    long = "<" * 10_000
    texts = lm.Texts(("a", "b"), [0, 1], (long, "1"), long)  # type: ignore[arg-type]
    assert len(repr(texts)) < 200
    assert len(texts._repr_html_()) < 10_000


def test_texts_that_are_token_ids():
    shown = read(ids(range(3), range(40, 140))).texts
    assert "0, 1, 2" in shown
    (other,) = [each for each in shown if each.startswith("40, ")]
    assert other.endswith("58, 59, ...")


def test_pairs():
    pairs = lm.read_pairs([("good a", "bad a"), ("good b", "bad b"), ("good a", "bad a")])
    assert repr(pairs) == (
        "Pairs(2 pairs: 'positive' against 'negative'; from 'list'; without 1 duplicate)"
    )
    shown = read(pairs).texts
    at = shown.index("1, positive")
    assert shown[at : at + 4] == ["1, positive", "good b", "1, negative", "bad b"]


def test_splits_of_texts_of_runs_and_of_what_was_made_of_them(splits, model):
    names = "concept/operating/held_out; seed 0"
    assert repr(splits) == f"Splits(6/4/2 per class, texts: {names})"
    shown = read(splits).texts
    assert "12: 6 of '0', 6 of '1'; from 'list'" in shown
    assert shown.count("depthsys Texts") == 3
    of_ids = lm.Splits(*(ids([3, i], [1, i, 2]) for i in (4, 5, 6)), seed=7, n_conflicts=2)
    runs = of_ids.each(model.run)
    named = "concept/operating/held_out; seed 7; without 2 with both labels"
    assert repr(runs) == f"Splits(1/1/1 per class, runs: {named})"
    shown = read(runs).texts
    assert shown.count("depthsys Run") == 3
    counts = splits.each(len)
    assert repr(counts) == "Splits(concept: 12, operating: 8, held_out: 4; seed 0)"
    assert "12" in read(counts).texts
    two = lm.read_pairs([(f"g{i}", f"b{i}") for i in range(6)]).split("3/2/1")
    assert repr(two) == f"Splits(3/2/1 per class, texts in pairs: {names})"


def test_a_run_tells_its_prompts_and_its_place_without_running(model, monkeypatch):
    no_block_runs(monkeypatch)
    run = lm.Run.later(model, ids([3, 1], [1, 5, 2, 7]))
    assert "context: again)" in repr(run)
    shown = read(run).texts
    assert {"2, of 2 to 4 tokens", "computed again when needed", "depthsys DepthModel"} <= {*shown}
    assert f"{run.tokens_sha256} of the tokens" in shown
    monkeypatch.undo()
    cut = lm.DepthModel(TINY["gpt2"](), max_tokens=3, cut="left")
    run = cut.run([[3, 1], [1, 5, 2, 7]], budget=lm.Budget(device=0))
    shown = read(run).texts
    assert "1, left, at 3 tokens" in shown
    assert any(re.fullmatch(r"host, \d+ B", each) or "kB" in each for each in shown)
    assert "depthsys Texts" not in shown


def test_a_model_tells_family_size_arithmetic_and_fingerprint(model):
    mark = model.fingerprint
    assert repr(model) == (
        f"DepthModel('mine', GPT2LMHeadModel, L=3, H=16, float32, cpu; {mark[:11]})"
    )
    shown = read(model).texts
    at = shown.index("fingerprint")
    assert shown[at + 1] == mark
    assert {"L x H = 3 x 16", "float32, on cpu", "given, revision local"} <= {*shown}
    for name, value in model.contract.items():
        assert shown[shown.index(name) + 1] == f"{value:.1e}"
    other = lm.DepthModel(TINY["gpt2"]().double(), left_padding=False)
    assert {"float64, on cpu", "by length"} <= {*read(other).texts}


def test_a_model_that_has_broken_its_contract_can_be_shown(model):
    import copy

    broken = copy.copy(model)
    del broken.contract
    assert repr(broken) == repr(model)
    read(broken)
