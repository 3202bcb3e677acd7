import json

import numpy as np
import pytest

from depthsys import lm
from depthsys.splits import SPLITS
from depthsys.study.settings import Settings

ROWS = [(f"text {i}", i % 2) for i in range(40)]


def write(path, rows, delimiter=","):
    lines = [delimiter.join(("label", "text"))]
    mark = '"' if delimiter == "," else ""
    lines += [f"{label}{delimiter}{mark}{text}{mark}" for text, label in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_csv_tsv_jsonl_and_lists_give_the_same_texts(tmp_path):
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text("\n".join(json.dumps({"text": t, "label": y}) for t, y in ROWS))
    sources = [
        ROWS,
        write(tmp_path / "a.csv", ROWS),
        write(tmp_path / "a.tsv", ROWS, "\t"),
        str(jsonl),
    ]
    read = [lm.read_texts(source) for source in sources]
    assert {texts.texts for texts in read} == {tuple(t for t, _ in ROWS)}
    assert len({texts.sha256 for texts in read}) == 1
    assert read[0].labels.tolist() == [y for _, y in ROWS]
    assert read[0].classes == ("0", "1")


def test_splits_are_disjoint_stratified_and_seeded():
    texts = lm.read_texts(ROWS)
    a, b, c = (texts.split(concept=8, operating=5, held_out=4, seed=s) for s in (0, 0, 1))
    parts = [a.concept, a.operating, a.held_out]
    chosen = [t for part in parts for t in part.texts]
    assert len(chosen) == len(set(chosen)) == 34
    assert [np.bincount(p.labels).tolist() for p in parts] == [[8, 8], [5, 5], [4, 4]]
    label_of = {t: y for t, y in ROWS}
    assert all(label_of[t] == y for p in parts for t, y in zip(p.texts, p.labels, strict=True))
    assert a.sizes == "8/5/4"
    assert (a.n_duplicates, a.n_conflicts) == (texts.n_duplicates, texts.n_conflicts)
    assert a.concept.sha256 == b.concept.sha256 != c.concept.sha256


def test_duplicates_and_contradictions_are_dropped_and_counted():
    texts = lm.read_texts([("a", 1), ("b", 0), ("a", 1), ("a", 1), ("c", 0), ("c", 1)])
    assert texts.texts == ("a", "b")
    assert (texts.n_duplicates, texts.n_conflicts) == (2, 1)


def test_labels_may_be_any_two_words():
    texts = lm.read_texts([("a", "spam"), ("b", "ham")])
    assert texts.classes == ("ham", "spam")
    assert texts.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("absent.csv", None, FileNotFoundError, "must be an existing file"),
        ("a.txt", "text,label\na,1", ValueError, "must be a .csv, .tsv or .jsonl file"),
        ("a.csv", "", ValueError, "must not be empty"),
        ("a.csv", "text,label\n", ValueError, "must not be empty"),
        ("a.csv", "body,label\na,1", ValueError, r"columns 'text' and 'label'; got \['body'"),
        ("a.csv", "label,text\n1,a\n0", ValueError, "row 2 of 'a.csv' lacks one"),
        ("a.csv", "text,label\na,1\n  ,0", ValueError, "non-empty strings; got '  ' in row 2"),
        ("a.csv", "text,label\na,1\nb,1", ValueError, r"exactly two values; got 1: \['1'\]"),
        ("a.csv", "text,label\na,1\nb,2\nc,3", ValueError, "exactly two values; got 3"),
        ("a.csv", b"text,label\n\xff\xfe,1", ValueError, "must be a UTF-8 file"),
        ("a.csv", "text,label\na,1\nb,", ValueError, "`label` must not be empty; row 2"),
        (
            "a.csv",
            'text,label\na,1\n"b" c,0',
            ValueError,
            "well-formed .csv file; got an error near line",
        ),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "a"', ValueError, "line 2 is none"),
        ("a.jsonl", '{"text": "\\ud83d", "label": 1}', ValueError, "row 1 .* surrogate pair"),
        (
            "a.csv",
            "text,label\nhello, world,1",
            ValueError,
            "2 cells in every row; line 2 has more",
        ),
        ("a.csv", "text,label,text\na,1,b", ValueError, "must have distinct column names"),
        ("a.jsonl", '{"text": "a", "label": 1.5}', ValueError, "got 1.5 in row 1"),
        ("a.jsonl", "[" * 100_000, ValueError, "line 1 is none"),
        ("a.jsonl", '["a", 1]', ValueError, "got list in row 1"),
    ],
)
def test_unusable_files(tmp_path, name, content, error, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=message):
        lm.read_texts(path)


def test_tsv_knows_no_quoting(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n" great" film\t1\nhe said "\t0\n')
    assert lm.read_texts(path).texts == ('" great" film', 'he said "')


def test_pairs_are_checked():
    with pytest.raises(ValueError, match=r"pairs \(text, label\); got \('a',\) in row 1"):
        lm.read_texts([("a",)])
    with pytest.raises(ValueError, match=r"`label` must be text, .* got None in row 2"):
        lm.read_texts([("a", 1), ("b", None)])
    assert lm.read_texts([("a", " x"), ("b", "x "), ("c", "y")]).classes == ("x", "y")


def test_the_seed_chooses_which_texts_not_only_their_order():
    texts = lm.read_texts(ROWS)
    chosen = [
        set(texts.split(concept=8, operating=5, held_out=4, seed=seed).concept.texts)
        for seed in (0, 1)
    ]
    assert chosen[0] != chosen[1]


def test_too_few_texts_says_how_many_are_needed_and_found():
    with pytest.raises(ValueError, match=r"must hold 21 distinct .* got 20 of class '0' and 20"):
        lm.read_texts(ROWS).split(concept=10, operating=6, held_out=5)
    with pytest.raises(ValueError, match="`operating` must be >= 1; got 0"):
        lm.read_texts(ROWS).split(operating=0)


def test_sizes_in_one_text_as_on_the_command_line():
    texts = lm.read_texts(ROWS)
    expected = texts.split(concept=8, operating=5, held_out=4, seed=3)
    found = texts.split("8/5/4", seed=3)
    assert found.sizes == "8/5/4"
    for name in SPLITS:
        assert getattr(found, name).texts == getattr(expected, name).texts


@pytest.mark.parametrize(
    "text", ["4/2", "4/0/2", "4/2/2/2", "", "4/-1/2", "4/two/2", "4/2.0/2", f"{'9' * 5000}/1/1"]
)
def test_sizes_are_checked_as_on_the_command_line(text):
    """The same rule for the same text; only the name of the argument is another."""
    messages = []
    for split, name in (
        (lm.read_texts(ROWS).split, "sizes"),
        (lambda text: Settings.checked(split=text), "--split"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must be three positive numbers") as caught:
            split(text)
        assert len(str(caught.value)) < 200
        messages.append(str(caught.value).replace(f"`{name}`", ""))
    assert messages[0] == messages[1]


def test_sizes_that_cannot_be_meant():
    texts = lm.read_texts(ROWS)
    with pytest.raises(
        TypeError, match=r"`sizes` must be one text such as '400/200/200', .* got 8"
    ):
        texts.split(8)
    with pytest.raises(TypeError, match=r"without sizes by name; got '8/5/4' and {'concept': 8}\."):
        texts.split("8/5/4", concept=8)
    with pytest.raises(
        ValueError, match=r"must hold 21 distinct texts per class for the .* 10/6/5"
    ):
        texts.split("10/6/5")


def test_splits_of_something_else_keep_what_is_known_of_them():
    splits = lm.read_texts([*ROWS, *ROWS[:2]]).split("8/5/4", seed=3)
    sizes = splits.each(len)
    assert (sizes.concept, sizes.operating, sizes.held_out) == (16, 10, 8)
    assert (sizes.seed, sizes.n_duplicates, sizes.n_conflicts) == (3, 2, 0)
