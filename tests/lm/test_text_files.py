"""Texts in the files and columns that people have: JSON, Parquet, saved data sets, any names."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depthsys import lm
from depthsys.files.strangers import arrow as arrow_files
from depthsys.files.strangers import limits
from depthsys.lm import text_files
from depthsys.study import names

# as datasets 5.2 has written them: a DatasetDict with the classes sad (0) and glad (1), of which
# "test" has none, and the rows of "train" as Parquet
SAVED = Path(__file__).parent / "saved"
COLUMNS = {"text_column": "review", "label_column": "mood"}
ROWS = [(f"text {i}", i % 2) for i in range(40)]
RECORDS = [{"text": text, "label": label, "idx": 7} for text, label in ROWS]
MOODS = [(f"{mood} {i}", mood) for i in range(4) for mood in ("joy", "anger", "fear")]


def arrow(path, table, *, stream=True):
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return path


def parquet(path, table, **options):
    pq.write_table(table, path, **options)
    return path


def saved(path, *tables, listed=None):
    """A folder as `Dataset.save_to_disk` writes it."""
    path.mkdir()
    for number, table in enumerate(tables):
        arrow(path / f"data-{number}.arrow", table)
    files = [f"data-{number}.arrow" for number in range(len(tables))] if listed is None else listed
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": f} for f in files]}))
    return path


# ------------------------------------------------------------------------- every kind of file


def test_every_kind_of_file_gives_the_same_texts(tmp_path):
    table = pa.Table.from_pylist(RECORDS)
    one_a_line = "\n".join(map(json.dumps, RECORDS))
    (tmp_path / "a.json").write_text(json.dumps(RECORDS))
    (tmp_path / "columns.json").write_text(json.dumps(pd.DataFrame(RECORDS).to_dict("list")))
    (tmp_path / "lines.json").write_text(one_a_line)
    (tmp_path / "a.ndjson").write_text(one_a_line)
    sources = [
        *(tmp_path / name for name in ("a.json", "columns.json", "lines.json", "a.ndjson")),
        parquet(tmp_path / "a.parquet", table, row_group_size=9, compression="zstd"),
        parquet(tmp_path / "old.parquet", table, version="1.0", use_dictionary=False),
        arrow(tmp_path / "a.arrow", table),
        arrow(tmp_path / "b.arrow", table, stream=False),
        saved(tmp_path / "saved", table.slice(0, 15), table.slice(15)),
    ]
    expected = lm.read_texts(ROWS)
    for source in sources:
        found = lm.read_texts(source)
        assert (found.sha256, found.classes) == (expected.sha256, ("0", "1")), source
        assert found.source == str(source)


def test_what_a_file_is_can_be_said(tmp_path):
    path = tmp_path / "texts"
    path.write_text('text\tlabel\n"good\t1\nbad\t0\n')
    assert lm.read_texts(path, format="tsv").texts == ('"good', "bad")
    parquet(path, pa.Table.from_pylist(RECORDS))
    assert len(lm.read_texts(path, format="parquet")) == 40
    assert names.TEXT_FORMATS == text_files.FORMATS


def test_a_table_of_one_column_whose_name_has_a_separator_is_no_table(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text;label\na;1\n")
    with pytest.raises(ValueError, match=r"columns 'text' and 'label'; got \['text;label'\]"):
        lm.read_texts(path)


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary"])
def test_texts_of_every_type_of_arrow(tmp_path, kind):
    types = {"large_string": pa.large_string(), "string_view": pa.string_view()}
    texts = pa.array([text for text, _ in ROWS])
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(types[kind])
    labels = pa.array([float(label) for _, label in ROWS], pa.float32())
    path = arrow(tmp_path / "a.arrow", pa.table({"text": texts, "label": labels}))
    assert lm.read_texts(path).sha256 == lm.read_texts(ROWS).sha256


def test_token_ids_in_parquet(tmp_path):
    ids = [[0, 3, 1], [0, 5], [7]]
    mask = [[0, 1, 1], [0, 1], [1]]
    columns = {"input_ids": ids, "attention_mask": mask, "label": ["a", "b", "a"]}
    found = lm.read_texts(parquet(tmp_path / "a.parquet", pa.table(columns)))
    assert found.texts == ((3, 1), (5,), (7,))


def test_classes_of_a_data_set_have_their_names_in_its_order():
    folder = lm.read_texts(SAVED / "reviews", subset="train", **COLUMNS)
    file = lm.read_texts(SAVED / "reviews.parquet", **COLUMNS)
    assert folder.classes == file.classes == ("sad", "glad")  # as words the other way round
    assert folder.sha256 == file.sha256
    likes = [text.startswith("we like") for text in folder.texts]
    assert folder.labels.tolist() == [int(like) for like in likes]
    assert lm.read_texts(SAVED / "reviews.parquet", positive="sad", **COLUMNS).classes[1] == "sad"


class ClassLabel:
    names = ["sad", "glad"]


class DataSet(list):
    features = {"label": ClassLabel(), "text": object()}


def test_classes_of_a_data_set_in_memory():
    found = lm.read_texts(DataSet({"text": t, "label": y} for t, y in ROWS))
    assert found.classes == ("sad", "glad")
    assert found.labels.tolist() == [y for _, y in ROWS]
    several = {"train": DataSet([{"text": "a", "label": 1}, {"text": "b", "label": 0}])}
    assert lm.read_texts(several, subset="train").classes == ("sad", "glad")


# ------------------------------------------------------------------------- columns and classes


def test_columns_by_any_names(tmp_path):
    records = [{"Review": text, "stars": label, "label": "x"} for text, label in ROWS]
    path = tmp_path / "a.csv"
    pd.DataFrame(records).to_csv(path, index=False)
    named = {"text_column": "Review", "label_column": "stars"}
    for source in (
        path,
        records,
        pd.DataFrame(records),
        {"Review": [r["Review"] for r in records], "stars": [r["stars"] for r in records]},
    ):
        assert lm.read_texts(source, **named).sha256 == lm.read_texts(ROWS).sha256


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        (
            ("Review", "stars"),
            {},
            r"columns 'text' and 'label'; got \['Review', 'stars'\] in row 1 of 'a.csv'. Is "
            r"'Review' the text\? Write `text_column` Review. Is 'stars' the label\? Write "
            r"`label_column` stars",
        ),
        (("text", "a"), {}, r"got \['a', 'text'\] in row 1 of 'a.csv'. Name it by `label_column`."),
        (("a", "label"), {"text_column": "b"}, r"columns 'b' and 'label'; got \['a', 'label'\]"),
        (("text", "label"), {"label_column": "b"}, "columns 'text' and 'b'; got"),
    ],
)
def test_a_missing_column_names_those_that_are_there(tmp_path, columns, named, message):
    path = tmp_path / "a.csv"
    path.write_text(f"{','.join(columns)}\ngood,1\n")
    with pytest.raises(ValueError, match=message):
        lm.read_texts(path, **named)


def test_all_columns_of_a_parquet_file_are_named_though_few_are_read(tmp_path):
    columns = {"sentence": ["a"], "label": [1], "other": [2]}
    with pytest.raises(
        ValueError, match=r"got \['label', 'other', 'sentence'\] in row 1 .* Is 'sentence' the text"
    ):
        lm.read_texts(parquet(tmp_path / "a.parquet", pa.table(columns)))


def test_two_classes_of_several():
    found = lm.read_texts([*MOODS, ("fear 0", "joy")], classes=("joy", "anger"))
    assert found.classes == ("joy", "anger")  # the second is 1, whatever sorts last
    assert len(found) == 9
    assert found.n_other == 4
    assert all(text.split()[0] in found.classes for text in found.texts if text != "fear 0")
    named = lm.read_texts(MOODS, classes=("joy", "anger"), positive="joy")
    assert named.classes == ("anger", "joy")
    assert named.split("2/1/1").n_other == named.split("2/1/1").each(len).n_other == 4
    numbers = [(f"{n} {i}", n) for i in range(3) for n in (1, 5, 10)]
    assert lm.read_texts(numbers, classes=(1, 10)).classes == ("1", "10")


def test_classes_are_the_same_numbers_however_written():
    rows = [(f"{n} {i}", f"{n}.0") for i in range(3) for n in (2, 5, 10)]
    assert lm.read_texts(rows, classes=(2, 10)).classes == ("2.0", "10.0")
    assert lm.read_texts(rows, positive="1e1", against_rest=True).classes == ("not 10.0", "10.0")
    with pytest.raises(ValueError, match=r"two of the labels .*; got \['3', '10.0'\]"):
        lm.read_texts(rows, classes=(3, 10))
    twice = [*rows, ("other", "2.00"), ("word", "x")]  # which one is meant is not known
    with pytest.raises(ValueError, match=r"two of the labels .*; got \['2', '10.0'\]"):
        lm.read_texts(twice, classes=(2, 10))


def test_ordered_categories_of_pandas_keep_their_order():
    table = pd.DataFrame({"text": list("abcd"), "label": ["worse", "better"] * 2})
    for order in (["worse", "better"], ["better", "worse"]):
        table["label"] = pd.Categorical(table["label"], order, ordered=True)
        assert lm.read_texts(table).classes == tuple(order)
    table["label"] = pd.Categorical(
        ["worse", "better"] * 2, ["worse", "better"]
    )  # no order is meant
    assert lm.read_texts(table).classes == ("better", "worse")
    table["label"] = pd.Categorical([1, 0, 1, 0], [1, 0], ordered=True)
    assert lm.read_texts(table).classes == ("0", "1")  # numbers are in their own order


def test_one_class_against_the_rest():
    rows = [*MOODS, ("both", "anger"), ("both", "fear"), ("mixed", "joy"), ("mixed", "fear")]
    found = lm.read_texts(rows, positive="joy", against_rest=True)
    assert found.classes == ("not joy", "joy")
    assert (found.n_other, found.n_duplicates, found.n_conflicts) == (0, 1, 1)
    expected = {text: int(label == "joy") for text, label in MOODS} | {"both": 0}
    assert dict(zip(found.texts, found.labels.tolist(), strict=True)) == expected
    parts = found.split("2/1/1")
    assert [np.bincount(getattr(parts, n).labels).tolist() for n in ("concept", "held_out")] == [
        [2, 2], [1, 1]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got 3: .*Choose two with `classes`, or one against the rest with `positive`"),
        ({"classes": ("joy",)}, r"`classes` must be two labels; got \('joy',\)"),
        ({"classes": "joy,anger"}, "`classes` must be two labels; got 'joy,anger'"),
        ({"classes": ("joy", "calm")}, r"labels \['anger', 'fear', 'joy'\] in list; got \['joy', "),
        ({"classes": ("joy", "joy")}, r"must be two of the labels .* got \['joy', 'joy'\]"),
        (
            {"classes": ("joy", "anger"), "positive": "fear"},
            r"one of the two classes \['joy', 'anger'\]; got 'fear'",
        ),
        ({"against_rest": True}, "must come with `positive`, .* got no label"),
        ({"against_rest": True, "positive": "joy", "classes": ("a", "b")}, "got both"),
        ({"positive": "calm"}, r"one of the labels \['anger', 'fear', 'joy'\]; got 'calm'"),
    ],
)
def test_classes_that_cannot_be_meant(options, message):
    with pytest.raises(ValueError, match=message):
        lm.read_texts(MOODS, **options)


def test_a_rest_of_none():
    with pytest.raises(ValueError, match="must have other labels than 'joy'; got none"):
        lm.read_texts([("a", "joy")], positive="joy", against_rest=True)
    with pytest.raises(ValueError, match=r"exactly two values; got 1: .* Add texts of another cla"):
        lm.read_texts([("a", "joy")])


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        (
            "a.csv",
            "text,label\na,1",
            {"format": "xlsx"},
            "`format` must be one of csv, tsv, .*xlsx",
        ),
        ("a.csv", "text,label\na,1", {"subset": "train"}, "a folder of several data sets; got 'tr"),
        ("a.json", "[1, 2", {}, "array of JSON objects; it does not: Expecting"),
        ("a.json", "3", {}, "array of JSON objects; got int"),
        ("a.json", "[]", {}, "must not be empty; 'a.json' has no rows"),
        ("a.json", "[3]", {}, "columns 'text' and 'label'; got int in row 1 of 'a.json'"),
        ("a.json", '{"text": "a"}\n{"text"', {}, "one JSON object per line; line 2 is none"),
        ("a.json", '{"text": {"a": "a"}}', {}, r"got \['text'\] in row 1 of 'a.json'"),
        ("a.json", '{"text": {"0": "a"}}', {}, r"numbered, \['text'\], as .* orient=.records."),
        ("a.parquet", "no parquet", {}, "a sound .parquet file; 'a.parquet' is not: "),
        ("a.arrow", "no arrow", {}, "a sound .arrow file; .* not begin as Arrow files do"),
    ],
)
def test_files_that_cannot_be_meant(tmp_path, name, content, options, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        lm.read_texts(path, **options)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_line_ends_nowhere_inside_a_string(tmp_path, kind, end):
    rows = [{"text": "a\u2028b\x85c", "label": 1}, {"text": "d", "label": 0}]
    lines = [json.dumps(row, ensure_ascii=False) + end for row in rows]
    (tmp_path / f"a.{kind}").write_bytes("".join(lines).encode())
    assert lm.read_texts(tmp_path / f"a.{kind}").texts == ("a\u2028b\x85c", "d")


def test_rows_that_have_no_format_and_no_subset():
    with pytest.raises(ValueError, match="`format` must go with a file; got 'csv' with list"):
        lm.read_texts(ROWS, format="csv")
    with pytest.raises(ValueError, match=r"several data sets; got 'dev' of \['train'\]"):
        lm.read_texts({"train": RECORDS}, subset="dev")
    with pytest.raises(ValueError, match="several data sets; got 'dev' of list"):
        lm.read_texts(RECORDS, subset="dev")
    with pytest.raises(ValueError, match="columns 'a' and 'label'; got tuple in row 1 of list"):
        lm.read_texts(ROWS, text_column="a")


def test_a_file_above_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_LARGEST", 10)
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,1\n")
    with pytest.raises(ValueError, match=r"a file of at most 0 GiB; got 0.0 GiB in 'a.csv'"):
        lm.read_texts(path)


def test_without_pyarrow_the_cure_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for source, options in ((SAVED / "reviews.parquet", {}), (SAVED / "reviews/train", {})):
        with pytest.raises(ImportError, match=r"pyarrow is missing; .* 'depthsys\[parquet\]'"):
            lm.read_texts(source, **options)


def test_a_folder_of_several_data_sets_needs_a_choice():
    with pytest.raises(ValueError, match=r"\['train', 'test'\] in 'reviews'; none was chosen"):
        lm.read_texts(SAVED / "reviews", **COLUMNS)
    with pytest.raises(ValueError, match=r"\['train', 'test'\] in 'reviews'; got 'dev'"):
        lm.read_texts(SAVED / "reviews", subset="dev", **COLUMNS)
    with pytest.raises(ValueError, match="got 'dev' with 'train', which is one"):
        lm.read_texts(SAVED / "reviews/train", subset="dev", **COLUMNS)


def test_rows_without_a_label_are_told():
    with pytest.raises(ValueError, match=r"of 2 classes, \['sad', 'glad'\]; got -1 in row 1"):
        lm.read_texts(SAVED / "reviews", subset="test", **COLUMNS)


def test_an_empty_data_set(tmp_path):
    with pytest.raises(ValueError, match="must not be empty; 'saved' has no rows"):
        lm.read_texts(saved(tmp_path / "saved"))


@pytest.mark.parametrize("listed", [["../a.arrow"], ["/a.arrow"], ["absent.arrow"], [3], [".."]])
def test_a_folder_names_nothing_outside_of_it(tmp_path, listed):
    arrow(tmp_path / "a.arrow", pa.Table.from_pylist(RECORDS))
    with pytest.raises(ValueError, match=r"state.json in 'saved' names .* not all are files there"):
        lm.read_texts(saved(tmp_path / "saved", listed=listed))


@pytest.mark.parametrize("name", ["../reviews", "/", "..", "train/../train"])
def test_no_subset_leads_outside(tmp_path, name):
    shutil.copytree(SAVED / "reviews", tmp_path / "reviews")
    (tmp_path / "reviews/dataset_dict.json").write_text(json.dumps({"splits": [name, "train"]}))
    with pytest.raises(ValueError, match=r"one of the data sets \['train'\] in 'reviews'"):
        lm.read_texts(tmp_path / "reviews", subset=name, **COLUMNS)


@pytest.mark.parametrize("content", ["{", "[]", '{"_data_files": 3}', "{}", "[" * 100_000])
def test_a_damaged_description(tmp_path, content):
    folder = saved(tmp_path / "saved", pa.Table.from_pylist(RECORDS))
    (folder / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"state.json in 'saved' is none of its descriptions"):
        lm.read_texts(folder)


def test_a_description_above_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_DESCRIPTION", 10)
    with pytest.raises(ValueError, match="descriptions: it is too large"):
        lm.read_texts(saved(tmp_path / "saved", pa.Table.from_pylist(RECORDS)))


# ------------------------------------------------------------------------- strangers


def test_bytes_and_objects_of_others_are_not_read(tmp_path):
    table = pa.table({"text": [b"a"], "label": [1]})
    with pytest.raises(ValueError, match=r"column 'text' is of type binary, and only texts"):
        lm.read_texts(parquet(tmp_path / "a.parquet", table))
    fine = pa.table({"text": ["a", "b"], "label": [1, 0], "blob": [b"x", b"y"]})
    assert len(lm.read_texts(parquet(tmp_path / "b.parquet", fine))) == 2


def test_two_columns_of_one_name(tmp_path):
    table = pa.table([["a"], ["b"], [1]], names=["text", "text", "label"])
    with pytest.raises(ValueError, match="it has two columns of one name"):
        lm.read_texts(arrow(tmp_path / "a.arrow", table))


def test_a_file_that_declares_far_more_than_it_has(tmp_path):
    many = pa.array(np.zeros(12_000_000, np.int8))
    path = parquet(tmp_path / "a.parquet", pa.table({"text": many, "label": many}))
    assert path.stat().st_size < 2e5
    with pytest.raises(ValueError, match=r"not read: it declares 192 MB, .* on the disk"):
        lm.read_texts(path)


def test_a_dictionary_that_stands_for_far_more_than_it_is(tmp_path):
    one = pa.array(["x" * 100_000])
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int8()), one)
    table = pa.table({"text": texts, "label": pa.array([1] * 2000)})
    path = parquet(tmp_path / "a.parquet", table, compression="zstd")
    assert path.stat().st_size < 1e4
    with pytest.raises(ValueError, match=r"not read: it (holds far more|needs more memory)"):
        lm.read_texts(path)


def test_what_is_read_is_counted_too(tmp_path, monkeypatch):
    """Arrow files declare nothing, and a dictionary may be small."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int16()), pa.array(["x" * 100]))
    path = arrow(tmp_path / "a.arrow", pa.table({"text": texts}))
    request = {"path": str(path), "kind": "arrow", "columns": ["text"], "most": 10**9}
    monkeypatch.setattr(arrow_files, "limit_to", lambda most: None)  # of this process
    for name in ("set_memory_pool", "set_cpu_count"):
        monkeypatch.setattr(pa, name, lambda given: None)
    read = [row for answer, _ in arrow_files.read(request) for row in answer.get("rows", [])]
    assert read == [["x" * 100]] * 2000
    with pytest.raises(limits.Refused, match="holds far more than a file of its size can be"):
        list(arrow_files.read(request | {"most": 100_000}))
    monkeypatch.setattr(limits, "FREE", 0)
    monkeypatch.setattr(limits, "RATIO", 1)
    with pytest.raises(limits.Refused, match="holds far more than a file of its size can be"):
        list(arrow_files.read(request))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_damaged_files_are_refused_or_read(tmp_path, kind):
    """Never a crash, whatever a byte becomes."""
    table = pa.Table.from_pylist(RECORDS)
    whole = (parquet if kind == "parquet" else arrow)(tmp_path / f"whole.{kind}", table)
    content, rng = whole.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=3):
            damaged[place] = rng.integers(256)
        path = tmp_path / f"a.{kind}"
        path.write_bytes(damaged)
        try:
            lm.read_texts(path)
        except ValueError:
            refused += 1
    assert refused > 5
