"""Contrast pairs stay paired: read, split, and used for directions and their separation."""

import json
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthsys import lm
from depthsys.lm import pairs as room
from depthsys.lm import separation
from depthsys.splits import SPLITS
from tests.conftest import tiny_llama
from tests.lm import every_function, whole_sequence

TUPLES = [(f"good {i}", f"bad {i}") for i in range(12)]
RECORDS = [{"positive": one, "negative": other, "n": 3} for one, other in TUPLES]
QUESTIONS = [
    {
        "question": f"Is {i} nice?\n\nChoices:\n (A) Yes\n (B) No\n\nAnswer:",
        "answer_matching_behavior": " (A)" if i % 2 else " (B)",
        "answer_not_matching_behavior": " (B)" if i % 2 else " (A)",
    }
    for i in range(6)
]


def pairs_of_ids(count, seed):
    rng = np.random.default_rng(seed)
    rows = [[tuple(rng.integers(50, size=rng.integers(2, 6))) for _ in "+-"] for _ in range(count)]
    return lm.read_pairs(rows)


def states_of(model, texts):
    return np.stack([whole_sequence.states(model.hf, list(ids)) for ids in texts], axis=1)


def differences(model, pairs):
    """(depth, pair, feature), by the obvious way."""
    return states_of(model, pairs.positives) - states_of(model, pairs.negatives)


# ------------------------------------------------------------------------- reading


def test_pairs_in_files_and_rows_are_the_same(tmp_path):
    Entry = namedtuple("Entry", "positive negative")
    samples = [
        SimpleNamespace(positive_str=p, negative_str=n, read_positive_token_index=None)
        for p, n in TUPLES
    ]
    (tmp_path / "a.csv").write_text(
        "n,negative,positive\n" + "\n".join(f"1,{n},{p}" for p, n in TUPLES)
    )
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    chosen = [{"chosen": p, "rejected": n} for p, n in TUPLES]
    (tmp_path / "a.json").write_text(json.dumps(chosen))
    expected = lm.read_pairs(TUPLES)
    assert expected.positives == tuple(p for p, _ in TUPLES)
    assert expected.negatives == tuple(n for _, n in TUPLES)
    assert expected.labels.tolist() == [1, 0] * 12
    assert (len(expected), expected.n_pairs, expected.source) == (24, 12, "list")
    named = {"columns": ("chosen", "rejected")}
    for source, options in (
        (RECORDS, {}),
        ([list(pair) for pair in TUPLES], {}),
        ([Entry(*pair) for pair in TUPLES], {}),
        (samples, {}),
        (tmp_path / "a.csv", {}),
        (tmp_path / "a.jsonl", {}),
        (tmp_path / "a.json", named),
        (chosen, named),
    ):
        found = lm.read_pairs(source, **options)
        assert found.sha256 == expected.sha256
        expected_classes = ("rejected", "chosen") if options else ("negative", "positive")
        assert found.classes == expected_classes


def test_questions_with_two_answers(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(QUESTIONS))
    for source in (QUESTIONS, path):
        found = lm.read_pairs(source)
        assert found.positives[0] == QUESTIONS[0]["question"] + " (B)"
        assert found.negatives[1] == QUESTIONS[1]["question"] + " (B)"
        assert found.classes == ("answer_not_matching_behavior", "answer_matching_behavior")
    tight = [{**row, "answer_matching_behavior": "(C)"} for row in QUESTIONS]
    assert lm.read_pairs(tight).positives[0].endswith("Answer: (C)")


def test_answers_of_one_letter_are_noted():
    assert lm.read_pairs(QUESTIONS).letter_note == ""
    one = lm.read_pairs(QUESTIONS[1::2])  # (A) is positive
    assert one.letter_note.startswith("every positive answer is (A), so that the letter separates")
    assert lm.read_pairs(QUESTIONS[::2]).letter_note.startswith("every positive answer is (B), so")
    assert lm.read_pairs(QUESTIONS[:1]).letter_note == ""  # one pair cannot be balanced
    assert lm.read_pairs(TUPLES).letter_note == ""
    assert pairs_of_ids(4, 0).letter_note == ""


def test_what_stands_before_both_and_which_is_positive():
    rows = [{"q": [1, 2], "a": [3], "b": [4, 5]}]
    found = lm.read_pairs(rows, columns=("a", "b"), text_column="q")
    assert found.texts == ((1, 2, 3), (1, 2, 4, 5))
    turned = lm.read_pairs(rows, columns=("a", "b"), text_column="q", positive="b")
    assert (turned.positives, turned.classes) == (found.negatives, ("a", "b"))


def test_a_pair_comes_once_and_no_text_is_on_both_sides():
    rows = [("a", "b"), ("a", "b"), ("c", "d"), ("d", "e"), ("f", "f"), ("a", "g")]
    found = lm.read_pairs(rows)
    assert found.texts == ("a", "b", "a", "g")  # one text may be in several pairs
    assert (found.n_duplicates, found.n_conflicts) == (1, 3)


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (
            [("a",)],
            {},
            ValueError,
            r"\(positive text, negative text\); got \('a',\) in row 1",
        ),
        (["ab"], {}, ValueError, "got 'ab' in row 1 of list"),
        ([("a", " ")], {}, ValueError, "non-empty strings; got ' ' in row 1 of list"),
        ([("a", [1])], {}, ValueError, "strings or token ids, all of them alike"),
        ([("a", "a")], {}, ValueError, "two different texts each; in list a text of every pair"),
        ([], {}, ValueError, "`pairs` must not be empty; list has no rows"),
        ([{"positive": "a"}], {}, ValueError, r"'positive' and 'negative'; got \['positive'\] in"),
        ([{"positive": "a", "negative": None}], {}, ValueError, "got none of one in row 1"),
        (RECORDS, {"columns": "positive"}, ValueError, "names of two columns, .* got 'positive'"),
        (RECORDS, {"columns": ("n", "n")}, ValueError, "names of two columns"),
        (RECORDS, {"columns": ("chosen", "n")}, ValueError, r"'chosen' and 'n'; got \['n', 'neg"),
        (RECORDS, {"positive": "n"}, ValueError, "columns of the pairs, 'positive' or 'negative'"),
        (TUPLES, {"text_column": "n"}, ValueError, "`text_column` must go with records"),
        (
            [{"q": "a", "positive": [1], "negative": [2]}],
            {"text_column": "q"},
            ValueError,
            r"all of them alike; got 'a' before \(1,\) in row 1",
        ),
        (
            [SimpleNamespace(positive_str="a", negative_str="b", read_negative_token_index=-2)],
            {},
            ValueError,
            "read at one token; got an index of its own in row 1",
        ),
        (3, {}, TypeError, "got int"),
    ],
)
def test_pairs_that_cannot_be_meant(source, options, error, message):
    with pytest.raises(error, match=message):
        lm.read_pairs(source, **options)


def test_texts_of_pairs_are_two_and_two():
    assert lm.Pairs(("a", "b")).labels.tolist() == [1, 0]
    for texts, labels in ((("a", "b", "c"), [1, 0, 1]), (("a", "b"), [0, 1])):
        with pytest.raises(ValueError, match="must be positive, negative, positive, negative"):
            lm.Pairs(texts, np.array(labels))


def test_a_file_of_pairs_is_recognised(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    read = room.read_texts_or_pairs
    assert read(path).sha256 == lm.read_pairs(TUPLES).sha256
    assert read(path, positive="negative").classes == ("positive", "negative")
    assert read(path, pairs=("negative", "positive")).positives == lm.read_pairs(TUPLES).negatives
    labelled = [{**record, "label": n % 2, "text": f"{n}"} for n, record in enumerate(RECORDS)]
    path.write_text("\n".join(map(json.dumps, labelled)))
    assert type(read(path)) is lm.Texts  # labels go before
    assert read(path, pairs=("positive", "negative")).n_pairs == 12
    with pytest.raises(ValueError, match="`classes` must come without `pairs`"):
        read(path, pairs=("positive", "negative"), classes=("0", "1"))
    path.write_text("\n".join(map(json.dumps, QUESTIONS)))
    assert read(path).n_pairs == 6


# ------------------------------------------------------------------------- splits


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), min_size=8, max_size=30),
    st.integers(0, 3),
)
def test_splits_divide_no_pair_and_share_no_text(numbers, seed):
    pairs = lm.read_pairs([(f"good {p}", f"bad {n}") for p, n in numbers])
    together = set(zip(pairs.positives, pairs.negatives, strict=True))
    try:
        splits = pairs.split(concept=3, operating=2, held_out=1, seed=seed)
    except ValueError:  # it may be refused, but not where there are enough pairs that share none
        assert len(set(pairs.texts)) < 12 or len(pairs.texts) > len(set(pairs.texts))
        return
    parts = [getattr(splits, name) for name in SPLITS]
    assert [part.n_pairs for part in parts] == [3, 2, 1]
    assert splits.sizes == "3/2/1"
    found = [set(zip(p.positives, p.negatives, strict=True)) for p in parts]
    assert len(set.union(*found)) == 6
    assert set.union(*found) <= together
    texts = [set(part.texts) for part in parts]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    again = pairs.split(concept=3, operating=2, held_out=1, seed=seed)
    assert again.concept.sha256 == parts[0].sha256


def test_the_seed_chooses_the_pairs():
    pairs = lm.read_pairs(TUPLES)
    chosen = {frozenset(pairs.split("4/2/1", seed=s).concept.texts) for s in range(4)}
    assert len(chosen) == 4
    assert set(pairs.split("6/3/3").concept.texts) < set(pairs.texts)


def test_splits_that_are_too_large():
    with pytest.raises(ValueError, match=r"must hold 13 distinct pairs for .* 6/6/1; got 12 from"):
        lm.read_pairs(TUPLES).split("6/6/1")
    with pytest.raises(ValueError, match=r"`held_out` must be >= 1; got 0. Give a number of pairs"):
        lm.read_pairs(TUPLES).split(held_out=0)
    shared = [(f"good {i}", "bad") for i in range(8)]
    with pytest.raises(ValueError, match=r"8 of which share a text .* \(groups of 8 pairs\)\. Add"):
        lm.read_pairs(shared).split("2/2/2")
    with pytest.raises(ValueError, match=r"hold 9 distinct .*; got 8 from list, 8 of which share"):
        lm.read_pairs(shared).split("3/3/3")
    many = [(f"good {i}", f"bad {i // 2}") for i in range(18)]
    with pytest.raises(
        ValueError, match=r"fill the splits 3/3/3 .*of 2, 2, 2, 2, 2, 2, 2, 2, \.\.\. p"
    ):
        lm.read_pairs(many).split("3/3/3")


@pytest.mark.parametrize("seed", range(12))
def test_whether_pairs_that_share_a_text_can_be_split_depends_on_no_seed(seed):
    shared = [(f"nice {i}", "awful") for i in range(4)] + [(f"fine {i}", "poor") for i in range(2)]
    splits = lm.read_pairs([*shared, *TUPLES[:3]]).split("4/3/2", seed=seed)
    assert [getattr(splits, name).n_pairs for name in SPLITS] == [4, 3, 2]


def test_the_first_texts_are_whole_pairs():
    pairs = lm.read_pairs(TUPLES)
    assert [pairs.first(n).n_pairs for n in (0, 1, 2, 5, 99)] == [0, 0, 1, 2, 12]
    assert pairs.first(4).texts == pairs.texts[:4]


def test_the_fingerprint_knows_who_belongs_to_whom():
    one = lm.read_pairs([("a", "b"), ("c", "d")])
    other = lm.read_pairs([("a", "d"), ("c", "b")])
    assert sorted(one.texts) == sorted(other.texts)
    assert one.sha256 != other.sha256


# ------------------------------------------------------------------------- directions


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_paired_difference_is_the_mean_of_the_differences(tiny):
    pairs = pairs_of_ids(9, 1)
    D = differences(tiny, pairs)
    found = lm.paired_difference(tiny, pairs)
    mean = D.mean(axis=1)
    np.testing.assert_allclose(found.direction, unit(mean), atol=1e-6)
    np.testing.assert_allclose(found.distance, np.linalg.norm(mean, axis=-1), rtol=1e-6)
    rms = np.sqrt((D**2).sum(-1).mean(-1))
    np.testing.assert_allclose(found.consistency, np.linalg.norm(mean, axis=-1) / rms, rtol=1e-6)
    assert found.attrs["n_pairs"] == 9
    plain = lm.Texts(pairs.texts, pairs.labels)
    np.testing.assert_allclose(
        found.direction, lm.mean_difference(tiny, plain).direction, atol=1e-7
    )


def test_consistency_is_one_where_all_pairs_differ_alike():
    """Only the last token of a pair differs, and depth 0 is its embedding."""
    model = lm.DepthModel(tiny_llama().double())
    found = lm.paired_difference(model, lm.read_pairs([((i, 3), (i, 4)) for i in range(5, 11)]))
    assert abs(float(found.consistency[0]) - 1) < 1e-12
    assert 0 < float(found.consistency[-1]) < 1


@pytest.mark.parametrize("centered", [False, True])
def test_pca_of_pairs_does_not_shuffle_them(tiny, centered):
    pairs = pairs_of_ids(9, 2)
    D = differences(tiny, pairs)
    found = lm.pca(tiny, pairs, centered=centered)
    for depth in range(4):
        scatter = np.cov(D[depth].T) if centered else D[depth].T @ D[depth]
        values, vectors = np.linalg.eigh(scatter)
        v = vectors[:, -1] * np.sign(vectors[:, -1] @ D[depth].mean(axis=0))
        np.testing.assert_allclose(found.direction[depth], v, atol=1e-7)
        np.testing.assert_allclose(found.explained[depth], values[-1] / values.sum())
    assert (found.attrs["pairing"], found.attrs["n_pairs"]) == ("given", 9)
    assert "seed" not in found.attrs
    random = lm.pca(tiny, lm.Texts(pairs.texts, pairs.labels), centered=centered)
    assert random.attrs["pairing"] == "random"
    cosines = abs(np.einsum("kf,kf->k", random.direction, found.direction))
    assert cosines.min() < 0.99


def test_paired_difference_of_texts_without_pairs(tiny):
    texts = lm.Texts([(1, 2), (3, 4)], [1, 0])
    with pytest.raises(TypeError, match="contrast pairs, or a run of them; got Texts, 2 of"):
        lm.paired_difference(tiny, texts)


def test_a_run_of_pairs_keeps_them(tiny):
    pairs = pairs_of_ids(5, 3)
    run = tiny.run(pairs)
    same = [
        lm.paired_difference(tiny, pairs),
        lm.paired_difference(run=run),
        lm.paired_difference(model=tiny, texts=pairs),
        lm.paired_difference(tiny, run),
    ]
    for found in same:
        every_function.assert_same(found, lm.paired_difference(run))
    plain = tiny.run(lm.Texts(pairs.texts, pairs.labels))
    for fit in (lm.mean_difference, lm.whitened, lm.logistic):
        np.testing.assert_array_equal(fit(run).direction, fit(plain).direction)


# ------------------------------------------------------------------------- separation


@pytest.mark.parametrize("fit", [lm.paired_difference, lm.pca, lm.mean_difference])
def test_paired_accuracy_is_the_share_of_pairs_in_the_right_order(tiny, fit):
    held_out = pairs_of_ids(7, 5)
    found = fit(tiny, pairs_of_ids(9, 4), held_out=tiny.run(held_out))
    ahead = np.einsum("kpf,kf->kp", differences(tiny, held_out), found.direction.values)
    np.testing.assert_allclose(found.paired_accuracy, (ahead > 0).mean(axis=1))
    assert (found.paired_low <= found.paired_accuracy).all()
    assert (found.paired_high >= found.paired_accuracy).all()
    assert found.attrs["paired_interval"] == "95 %, Wilson"
    plain = fit(tiny, pairs_of_ids(9, 4), held_out=lm.Texts(held_out.texts, held_out.labels))
    assert "paired_accuracy" not in plain
    np.testing.assert_array_equal(plain.auc, found.auc)


def test_the_paired_interval_is_wilsons():
    """Against the roots of (share - t)^2 = z^2 t (1 - t) / n."""
    positive = np.array([[1.0, 1, 1, 1, 0, 2, 0, 0], [1] * 8, [0] * 8, [np.nan] * 8])
    negative = np.array([[0.0, 0, 0, 0, 1, 2, 1, 1], [0] * 8, [1] * 8, [np.nan] * 8])
    share, low, high = separation.paired_accuracy(positive, negative)
    np.testing.assert_allclose(share, [4.5 / 8, 1, 0, np.nan])
    z2 = 1.959963984540054**2
    for p, one, other in zip(share[:3], low, high, strict=False):
        roots = np.sort(np.roots([1 + z2 / 8, -(2 * p + z2 / 8), p**2]).real)
        np.testing.assert_allclose([one, other], roots, atol=1e-12)
    assert np.isnan([low[3], high[3]]).all()


def test_depths_without_a_direction_have_no_accuracy():
    """All texts end in one token: depth 0 of a model without position embeddings."""
    model = lm.DepthModel(tiny_llama().double())
    pairs = lm.read_pairs([((i, 3), (i + 20, 3)) for i in range(5, 15)])
    found = lm.paired_difference(model, pairs, held_out=pairs.first(8))
    assert np.isnan(found.direction[0]).all()
    assert np.isnan([found.paired_accuracy[0], found.paired_low[0], found.consistency[0]]).any()
    assert torch.isfinite(torch.tensor(found.paired_accuracy.values[1:])).all()
