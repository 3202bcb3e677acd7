import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch

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
        (
            "a.txt",
            "text,label\na,1",
            ValueError,
            "must be a .csv, .tsv, .json, .jsonl or",
        ),
        ("a.csv", "", ValueError, "must not be empty"),
        ("a.csv", "text,label\n", ValueError, "must not be empty"),
        ("a.csv", "body,label\na,1", ValueError, r"columns 'text' and 'label'; got \['body'"),
        ("a.csv", "label,text\n1,a\n0", ValueError, "got none of one in row 2 of 'a.csv'"),
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


# ----------------------------------------------------------------------- rows as people have them


class Rows:
    """Like a data set: a length, rows by number, and no end of its own."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, row):
        return self.records[row % len(self.records)]


RECORDS = [{"text": text, "label": label, "idx": 7} for text, label in ROWS]


class Polars:
    def to_dicts(self):
        return RECORDS


class Arrow:
    def to_pylist(self):
        return RECORDS


@pytest.mark.parametrize(
    "source",
    [
        RECORDS,
        iter(RECORDS),
        (dict(record) for record in RECORDS),
        Rows(RECORDS),
        pd.DataFrame(RECORDS),
        Polars(),
        Arrow(),
        {name: [record[name] for record in RECORDS] for name in ("text", "label")},
        {"text": np.array([t for t, _ in ROWS]), "label": np.array([y for _, y in ROWS])},
        [(text, torch.tensor(label)) for text, label in ROWS],
        pd.DataFrame(RECORDS).astype({"label": float}),
    ],
    ids=lambda source: type(source).__name__,
)
def test_rows_of_any_kind_give_the_same_texts(source):
    expected = lm.read_texts(ROWS)
    found = lm.read_texts(source)
    assert (found.texts, found.sha256, found.classes) == (
        expected.texts, expected.sha256, ("0", "1")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ({"train": RECORDS}, ValueError, r"got \['train'\].* give one: source\['train'\]"),
        ({"text": ["a"], "label": [1, 0]}, ValueError, r"columns of one length; got \{'text': 1"),
        ([{"sentence": "a", "label": 1}], ValueError, r"got \['label', 'sentence'\] in row 1 of"),
        ([{"text": None, "label": 1}], ValueError, "got none of one in row 1 of list"),
        ([("a", 0), ([1, 2], 1)], ValueError, "a string in row 1 and token ids in row 2"),
        (3, TypeError, "must be a file, a table, or rows of texts and labels; got int"),
        ([3], ValueError, r"pairs \(text, label\); got 3 in row 1"),
        ([(b"a", 0)], ValueError, "non-empty strings; got b'a' in row 1"),
        ([("a", torch.tensor(0.5))], ValueError, "got tensor"),
        ([([], 0)], ValueError, r"token ids >= 0; got \[\] in row 1"),
        ([([1, -1], 0)], ValueError, r"token ids >= 0; got \[1, -1\] in row 1"),
        ([([1, True], 0)], ValueError, "strings or lists of token ids; got '.1, True.' in row 1"),
        ([([1, 0.5], 0)], ValueError, "strings or lists of token ids"),
        ([{"input_ids": "1 x", "label": 0}], ValueError, "whole numbers; got '1 x' in row 1"),
        (
            [{"input_ids": [1, 2], "attention_mask": [1], "label": 0}],
            ValueError,
            "as long as `input_ids`; got 1 and 2 in row 1",
        ),
    ],
)
def test_rows_that_cannot_be_meant(source, error, message):
    with pytest.raises(error, match=message):
        lm.read_texts(source)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(
        ValueError, match=r"a folder that `datasets` has saved; got .* no state.json"
    ):
        lm.read_texts(tmp_path)


def test_a_long_cell_is_a_text(tmp_path):
    """The csv module's own limit is 131072 characters."""
    long = "a, b " * 40_000
    path = tmp_path / "a.csv"
    path.write_text(f'text,label\n"{long}",0\nshort,1\n')
    limit = csv.field_size_limit()
    assert lm.read_texts(path).texts == (long, "short")
    assert csv.field_size_limit() == limit


# ----------------------------------------------------------------------- token ids

IDS = [([3, 1, 4], "x"), ([1, 5], "y"), ([3, 1, 4], "x"), ([9], "y")]


def test_token_ids_in_rows_and_files_give_the_same_texts(tmp_path):
    (tmp_path / "a.csv").write_text(
        "input_ids,label\n" + "\n".join(f'"{ids}",{label}' for ids, label in IDS)
    )
    (tmp_path / "a.tsv").write_text(
        "label\tinput_ids\n"
        + "\n".join(f"{label}\t{' '.join(map(str, ids))}" for ids, label in IDS)
    )
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"input_ids": ids, "label": label}) for ids, label in IDS)
    )
    sources = [
        IDS,
        [(np.array(ids), label) for ids, label in IDS],
        [(torch.tensor(ids), label) for ids, label in IDS],
        [{"input_ids": ids, "label": label} for ids, label in IDS],
        [
            {"input_ids": [0, *ids], "attention_mask": [0] + [1] * len(ids), "label": label}
            for ids, label in IDS
        ],
        *(tmp_path / f"a.{kind}" for kind in ("csv", "tsv", "jsonl")),
    ]
    for source in sources:
        texts = lm.read_texts(source)
        assert texts.texts == ((3, 1, 4), (1, 5), (9,))
        assert texts.labels.tolist() == [0, 1, 1]
        assert texts.n_duplicates == 1
    assert len({lm.read_texts(source).sha256 for source in sources}) == 1


def test_the_column_text_goes_before_token_ids():
    rows = [{"text": t, "input_ids": [1], "label": y} for t, y in ROWS]
    assert lm.read_texts(rows).texts == lm.read_texts(ROWS).texts


def test_texts_can_be_made_by_hand():
    texts = lm.Texts([[3, 1], np.array([4])], [1, 0])
    assert texts.texts == ((3, 1), (4,))
    assert texts.classes == ("0", "1")
    assert texts.sha256 == lm.read_texts([([3, 1], 1), ([4], 0)]).sha256
    with pytest.raises(ValueError, match=r"one label for each of the 2 texts; got shape \(1,\)"):
        lm.Texts(["a", "b"], [1])
    with pytest.raises(ValueError, match=r"`labels` must be 0 or 1; got \[1, 2\]"):
        lm.Texts(["a", "b"], [1, 2])
    with pytest.raises(ValueError, match=r"strings or lists of token ids; got '\[0.5\]' in text 1"):
        lm.Texts(["a", [0.5]], [1, 0])


# ----------------------------------------------------------------------- labels and their order


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ((2, 10), ("2", "10")),
        ((10, 2), ("2", "10")),
        (("10", "9"), ("9", "10")),
        (("+1", "-1"), ("-1", "+1")),
        (("1e3", "20"), ("20", "1e3")),
        (("-2", "-10"), ("-10", "-2")),
        (("0.5", ".25"), (".25", "0.5")),
        (
            ("12345678901234567891", "12345678901234567890"),
            ("12345678901234567890", "12345678901234567891"),
        ),
        (("2", "10 stars"), ("10 stars", "2")),
        ((True, False), ("False", "True")),
    ],
)
def test_numbers_sort_as_numbers(tmp_path, labels, classes):
    rows = [("a", labels[0]), ("b", labels[1])]
    assert lm.read_texts(rows).classes == classes
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text("\n".join(json.dumps({"text": t, "label": y}) for t, y in rows))
    assert lm.read_texts(jsonl).classes == classes
    found = lm.read_texts(write(tmp_path / "a.csv", rows))
    assert found.classes == classes
    assert found.labels.tolist() == [classes.index(str(y)) for y in labels]


def test_one_number_written_in_two_ways_is_refused():
    with pytest.raises(ValueError, match=r"got '1' and '1.0', which are the same number"):
        lm.read_texts([("a", 1), ("b", "1.0")])


@pytest.mark.parametrize("positive", [2, "2", " 2 ", np.int64(2)])
def test_the_positive_class_can_be_named(positive):
    texts = lm.read_texts([("a", 2), ("b", 10), ("c", 2)], positive=positive)
    assert texts.classes == ("10", "2")
    assert texts.labels.tolist() == [1, 0, 1]


def test_the_positive_class_stays_in_the_splits():
    parts = lm.read_texts(ROWS, positive=0).split(concept=8, operating=5, held_out=4)
    assert parts.held_out.classes == ("1", "0")
    label_of = {t: y for t, y in ROWS}
    found = [label_of[t] for t in parts.held_out.texts]
    assert parts.held_out.labels.tolist() == [1 - y for y in found]


def test_a_positive_class_that_is_none():
    with pytest.raises(ValueError, match=r"`positive` must be one of the labels \['0', '1'\]"):
        lm.read_texts(ROWS, positive="yes")
    with pytest.raises(ValueError, match=r"got 0\.5 as `positive`"):
        lm.read_texts(ROWS, positive=0.5)


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


@pytest.mark.parametrize("separator", [";", "|"])
def test_a_file_with_other_separators_says_so(tmp_path, separator):
    path = tmp_path / "texts.csv"
    path.write_text(f"text{separator}label\ngood, really{separator}1\nbad{separator}0\n")
    with pytest.raises(ValueError, match="must have commas between the cells"):
        lm.read_texts(path)
