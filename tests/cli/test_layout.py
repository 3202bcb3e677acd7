"""Texts in other files, columns and classes, and contrast pairs, on the command line."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr

from depthsys import lm
from depthsys.cli.piped import NAMES, Piped
from depthsys.demo import grammar
from depthsys.study import Settings

SMALL = ["--split", "12/6/6", "--device", "cpu", "--order", "2"]
ROWS = grammar.labelled(40, seed=5)
NAMED = ["--text-column", "review", "--label-column", "mood"]
MOODS = {"0": "sad", "1": "glad"}
RECORDS = [{"review": text, "mood": MOODS[str(label)], "n": 1} for text, label in ROWS]
FEATURES = {"review": {"_type": "Value"}, "mood": {"_type": "ClassLabel", "names": ["sad", "glad"]}}


def with_classes():
    """A table as `datasets` writes it: numbers, and the names of the classes beside them."""
    columns = {"review": [text for text, _ in ROWS], "mood": [int(label) for _, label in ROWS]}
    about = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    return pa.table(columns).replace_schema_metadata(about)


def texts_in(kind, path):
    """The same texts in a file or folder of that kind, and further options."""
    frame, options = pd.DataFrame(RECORDS), [*NAMED, "--positive", "glad"]
    if kind in ("csv", "tsv"):
        frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
    elif kind in ("json", "jsonl"):
        frame.to_json(path, orient="records", lines=kind == "jsonl")
    elif kind == "parquet":
        pq.write_table(with_classes(), path)
        options = NAMED
    else:
        folder = path / "train"
        folder.mkdir(parents=True)
        table = with_classes()
        with pa.OSFile(str(folder / "data-0.arrow"), "wb") as file:
            with pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
        files = {"_data_files": [{"filename": "data-0.arrow"}]}
        (folder / "state.json").write_text(json.dumps(files))
        (path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
        options = [*NAMED, "--subset", "train"]
    return options


def load(path):
    return xr.load_dataset(path, engine="h5netcdf")


def identified(run, texts, folder, *options):
    code, shown, err = run("identify", "demo_48x4", texts, *SMALL, *options, "--out", folder)
    assert code == 0, err
    return load(folder / "system.nc"), shown


def typed_in(monkeypatch, content):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))


@pytest.fixture(scope="module")
def expected():
    texts = lm.read_texts([(text, MOODS[str(label)]) for text, label in ROWS], positive="glad")
    return texts.split("12/6/6").operating.sha256


# how every kind is read is tested in tests/lm/test_text_files.py
SOME = [
    pytest.param(kind, marks=[] if kind in ("csv", "parquet") else [pytest.mark.slow])
    for kind in ("csv", "tsv", "json", "jsonl", "parquet", "folder")
]


@pytest.mark.parametrize("kind", SOME)
def test_every_kind_of_file_and_going_on_from_it(run, tmp_path, kind, expected):
    path = tmp_path / f"reviews.{kind}"
    options = texts_in(kind, path)
    system, shown = identified(run, path, tmp_path / "a", *options)
    assert system.attrs["prompts_sha256"] == expected
    assert json.loads(system.attrs["classes"]) == ["sad", "glad"]
    assert "the readout grows from label 'sad' to 'glad'" in shown
    said = json.loads(system.attrs["texts_layout"])
    assert said["text_column"] == "review"
    assert said.get("subset") == ("train" if kind == "folder" else None)
    code, _, err = run("gains", tmp_path / "a/system.nc", "--out", tmp_path / "b")
    assert code == 0, err
    gains = load(tmp_path / "b/gains.nc").attrs
    assert gains["texts_layout"] == system.attrs["texts_layout"]
    assert gains["held_out_sha256"] == system.attrs["held_out_sha256"]


@pytest.mark.slow  # runs the main job twice
def test_two_of_three_classes_and_one_against_the_rest(run, tmp_path):
    path = tmp_path / "a.csv"
    kinds = [mood if n % 4 else f"very {mood}" for n, mood in enumerate(r["mood"] for r in RECORDS)]
    frame = pd.DataFrame(RECORDS).assign(mood=kinds)
    frame.to_csv(path, index=False)
    some = ["--split", "8/4/4", *NAMED]
    chosen, shown = identified(run, path, tmp_path / "a", *some, "--classes", "sad, glad")
    n_other = sum(kind.startswith("very") for kind in kinds)
    assert chosen.attrs["n_other"] == n_other
    assert f"- left out: {n_other} rows of other classes" in shown
    assert json.loads(chosen.attrs["classes"]) == ["sad", "glad"]
    rest = ["--positive", "glad", "--against-rest"]
    one, shown = identified(run, path, tmp_path / "b", *some, *rest)
    assert "grows from label 'not glad' to 'glad'" in shown
    assert "left out" not in shown
    source = [(r["review"], kind) for r, kind in zip(RECORDS, kinds, strict=True)]
    texts = lm.read_texts(source, positive="glad", against_rest=True).split("8/4/4")
    assert one.attrs["prompts_sha256"] == texts.operating.sha256
    for folder in ("a", "b"):  # each is read again in the same way
        code, _, err = run("control", tmp_path / folder / "system.nc", "--out", tmp_path / folder)
        assert code == 0, err


@pytest.mark.parametrize("balanced", [False, True])
def test_answers_of_one_letter_are_told(run, tmp_path, balanced):
    path = tmp_path / "ab.jsonl"
    with path.open("w") as file:
        for i in range(24):
            good, bad = ("(B)", "(A)") if balanced and i % 2 else ("(A)", "(B)")
            row = {"question": f"the film number {i} was", "positive": good, "negative": bad}
            texts = {key: f"{row['question']} {row[key]}" for key in ("positive", "negative")}
            file.write(json.dumps(texts) + "\n")
    code, shown, err = run("identify", "demo_48x4", path, *SMALL, "--out", tmp_path / "a")
    assert code == 0, err
    for part in ("concept", "operating", "held-out"):
        said = f"- {part} texts: every positive answer is (A), so that the letter separates"
        assert (said in shown) != balanced


def test_contrast_pairs(run, tmp_path):
    one, other = ([t for t, y in ROWS if str(y) == label] for label in ("1", "0"))
    rows = [{"positive": p, "negative": n} for p, n in zip(one, other, strict=True)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    system, shown = identified(run, path, tmp_path / "a", "--concept", "paired_difference")
    pairs = lm.read_pairs(rows).split("12/6/6")
    assert system.attrs["prompts_sha256"] == pairs.operating.sha256
    assert (system.attrs["paired"], system.attrs["concept"]) == (1, "paired_difference")
    share = float(system["paired_accuracy"][-1])
    assert f"(of 6 pairs, {share:.2f} [" in shown
    assert "from label 'negative' to 'positive'" in shown
    code, _, err = run("gains", tmp_path / "a/system.nc", "--out", tmp_path / "a")
    assert code == 0, err
    named = ["--pairs", "negative,positive", "--concept", "pca"]
    turned, shown = identified(run, path, tmp_path / "b", *named)
    assert json.loads(turned.attrs["classes"]) == ["positive", "negative"]
    assert run("control", tmp_path / "b/system.nc", "--out", tmp_path / "b")[0] == 0


# ------------------------------------------------------------------------- standard input


@pytest.mark.parametrize("kind", SOME[:4])
def test_standard_input_is_kept_beside_the_results(run, tmp_path, monkeypatch, kind, expected):
    path = tmp_path / f"a.{kind}"
    options = texts_in(kind, path)
    typed_in(monkeypatch, path.read_bytes())
    system, _ = identified(run, "-", tmp_path / "a", *options)
    kept = tmp_path / "a" / f"texts.{kind}"
    assert kept.read_bytes() == path.read_bytes()
    assert system.attrs["texts"] == str(kept)
    assert system.attrs["prompts_sha256"] == expected
    code, _, err = run("control", tmp_path / "a/system.nc", "--out", tmp_path / "b")
    assert code == 0, err


@pytest.mark.slow  # runs the main job twice
def test_standard_input_again(run, tmp_path, monkeypatch):
    """The same texts are no earlier result; others need --force."""
    path = tmp_path / "a.csv"
    options = [*texts_in("csv", path), *SMALL, "--out", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/texts.csv").write_bytes(path.read_bytes())
    few = ["--methods", "pod", "--orders", "1", "--each", "0"]
    typed_in(monkeypatch, path.read_bytes())
    code, _, err = run("compare", "demo_48x4", "-", *options[:-4], *few, *options[-2:])
    assert code == 0, err
    typed_in(monkeypatch, path.read_bytes())
    code, _, err = run("gains", "demo_48x4", "-", *options)
    assert code == 0, err
    typed_in(monkeypatch, path.read_bytes() + b"more,glad,1\n")
    code, _, err = run("identify", "demo_48x4", "-", *options)
    assert code == 2
    assert "must not hold earlier results; found texts.csv" in err


def test_texts_that_cannot_be_read_leave_nothing(run, tmp_path, monkeypatch):
    typed_in(monkeypatch, b"text,label\na,1\n")
    code, _, err = run("identify", "demo_48x4", "-", *SMALL, "--out", tmp_path / "a")
    assert code == 2
    assert "must take exactly two values" in err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("command", "content", "options", "message"),
    [
        ("identify", b" \n", [], "got nothing on standard input. Pipe texts into the command"),
        (
            "identify",
            b"x",
            ["--format", "parquet"],
            "csv, tsv, json, jsonl for texts from",
        ),
        ("compare", b"text,label\n", ["--dry-run"], "`--dry-run` must come with a file of texts"),
    ],
)
def test_standard_input_that_cannot_be_meant(
    run, tmp_path, monkeypatch, command, content, options, message
):
    typed_in(monkeypatch, content)
    code, _, err = run(command, "demo_48x4", "-", *options, "--out", tmp_path / "a")
    assert code == 2
    assert message in err


def test_a_stored_system_takes_no_standard_input(run, tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    identified(run, path, tmp_path / "a", *texts_in("csv", path))
    typed_in(monkeypatch, path.read_bytes())
    code, _, err = run("gains", tmp_path / "a/system.nc", "-", "--out", tmp_path / "b")
    assert code == 2
    assert "`TEXTS` must be a file where they have moved; got - beside" in err


def test_more_than_may_be_on_standard_input(monkeypatch):
    monkeypatch.setattr("depthsys.cli.piped._LARGEST", 3)
    typed_in(monkeypatch, b"abcd")
    with pytest.raises(ValueError, match="on standard input; got more"):
        Piped.taken(Path("-"), Settings())


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\xef\xbb\xbftext,label\n", "texts.csv"),
        (b"text\tlabel\na, b\t1\n", "texts.tsv"),
        (b'\n[{"text": "a"}]', "texts.json"),
        (b'{"text": "a"}\n{"text": "b"}', "texts.jsonl"),
        (b'{\n "text": ["a"]}', "texts.json"),
        (b'{"text": ["a"], "label": [1]}\n \n', "texts.json"),
    ],
)
def test_what_standard_input_looks_like(monkeypatch, content, name):
    typed_in(monkeypatch, content)
    assert Piped.taken(Path("-"), Settings()).name == name
    assert name in NAMES


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Is 'review' the text? Write `--text-column` review. Is 'mood' the label? Write"),
        (["--classes", "sad"], "`--classes` must be two names; got 'sad'. Write them as in anger"),
        (["--pairs", "a,a"], "`--pairs` must be two names; got 'a,a'. Write them as in positive"),
        (["--pairs", "good,bad"], "must have the columns 'good' and 'bad'; got ['mood', 'n'"),
        (["--format", "xls"], "`--format` must be one of csv, tsv, json, jsonl, parquet, arrow;"),
        ([*NAMED, "--against-rest"], "`--against-rest` must come with `--positive`"),
        ([*NAMED, "--subset", "train"], "`--subset` must go with a folder of several data sets"),
        ([*NAMED, "--concept", "paired_difference"], "which holds no pairs. Name their columns by"),
        ([*NAMED, "--classes", "sad,angry"], "`--classes` must be two of the labels ['glad', 'sad"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_model(
    run, tmp_path, options, message, monkeypatch
):
    monkeypatch.setattr(lm.DepthModel, "load", lambda *_, **__: pytest.fail("it was loaded"))
    path = tmp_path / "a.csv"
    texts_in("csv", path)
    code, _, err = run("identify", "demo_48x4", path, *SMALL, *options, "--out", tmp_path / "out")
    assert code == 2
    assert message in err


def test_a_stored_system_knows_its_layout(run, tmp_path):
    path = tmp_path / "a.csv"
    identified(run, path, tmp_path / "a", *texts_in("csv", path))
    code, _, err = run(
        "gains", tmp_path / "a/system.nc", "--text-column", "n", "--out", tmp_path / "b"
    )
    assert code == 2
    assert "already holds its settings; got --text-column" in err
