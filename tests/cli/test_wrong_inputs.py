"""What people get wrong at the shell: one line names the cause and the cure, before any work."""

import csv
import json

import pytest
import xarray as xr

from depthsys.demo import grammar
from depthsys.demo import real as fetched

MODEL = "demo_48x4"
ROWS = grammar.labelled(60, seed=5)


def _table(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _config(folder, name="config.json", **content):
    folder.mkdir()
    (folder / name).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of files as people have them."""
    here = tmp_path_factory.mktemp("wrong")
    _table(here / "texts.csv", ("text", "label"), ROWS)
    _table(here / "other.csv", ("review", "stars"), ROWS)
    three = [(text, i % 3) for i, (text, _) in enumerate(ROWS)]
    _table(here / "three.csv", ("text", "label"), three)
    _table(here / "one.csv", ("text", "label"), [(text, 1) for text, _ in ROWS])
    _table(here / "blank.csv", ("text", "label"), [("", 1), *ROWS])
    _table(here / "nolabel.csv", ("text", "label"), [(text, "") for text, _ in ROWS])
    _table(here / "pairs.csv", ("positive", "negative"), [("yes", "no"), ("yes", "yes")])
    (here / "empty.csv").write_text("")
    (here / "latin.csv").write_bytes("text,label\ncaf\xe9,1\n".encode("latin-1"))
    (here / "torn.json").write_text('[{"text": "a", "label": 1}')
    (here / "torn.jsonl").write_text('{"text": "a", "label": 1}\n{"text": \n')
    (here / "texts.xlsx").write_bytes(b"PK\x03\x04")
    (here / "torn.parquet").write_bytes(b"PAR1xx")
    (here / "torn.gguf").write_bytes(b"GGUF\x03\0\0\0")
    (here / "no.gguf").write_bytes(b"this is no model")
    (here / "old.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    matrices = {name: ((f"{name}_row", f"{name}_column"), [[1.0]]) for name in "ABC"}
    xr.Dataset(matrices).to_netcdf(here / "system.nc", engine="h5netcdf")
    (here / "folder").mkdir()
    _config(here / "bare", model_type="gpt2")
    _config(here / "t5", model_type="t5")
    peft = {"base_model_name_or_path": "/nowhere", "peft_type": "LORA"}
    _config(here / "adapter", "adapter_config.json", **peft)
    quantised = {"quant_method": "gptq", "bits": 4}
    _config(here / "gptq", model_type="llama", quantization_config=quantised)
    return here


T = "texts.csv"


def _identify(texts, *options):
    return ["identify", MODEL, texts, *options]


# what is typed, the cause, and the cure; without --split, --device and --out
WRONG = [
    # models
    (["identify", "demo_48x5", T], "no folder here and not in the cache", "give the folder"),
    (["identify", "./my-modle", T], "or a Hugging Face name", "Check the path"),
    (["identify", "folder", T], "with a config.json, or a GGUF", "`save_pretrained`"),
    (["identify", "bare", T], "no file named model.safetensors", "Save it again"),
    (["identify", "t5", T], "got the encoder-decoder 't5'", "use a causal model"),
    (["identify", "adapter", T], "holds a LORA adapter for '/nowhere'", "Check the path"),
    (["identify", "gptq", T], "quantised with gptq, which needs", "Run `pip install"),
    (["identify", "torn.gguf", T], "(8 bytes), which is cut off", "Download it again"),
    (["identify", "no.gguf", T], "which begins with b'this is '", "Download it again"),
    (["identify", "gone.gguf", T], "which does not exist", "Check the path"),
    (["identify", T, T], "got the file", "Give the folder"),
    (["identify", "https://huggingface.co/a/b", T], "which is neither", "Write 'a/b'"),
    (["identify", "folder@main", T], "and 'folder' is here", "Give it without '@main'"),
    (["identify", "a/b@", T], "a tag or a commit after the @", "Write NAME@main"),
    (_identify(T, "--dtype", "int8"), "`--dtype` must be float32", "Pick one"),
    (["gains", MODEL, T, "--dtype", "float16"], "above the rounding", "or float32"),
    # files of texts
    (_identify("gone.csv"), "must be an existing file", "Give a CSV, TSV"),
    (_identify("empty.csv"), "'empty.csv' has no rows", "Add texts"),
    (_identify("latin.csv"), "must be a UTF-8 file", "Save it as UTF-8"),
    (_identify("torn.json"), "must hold an array of JSON objects", "Correct it"),
    (_identify("torn.jsonl"), "line 2 is none", "Correct the line"),
    (_identify("texts.xlsx"), "got 'texts.xlsx'", "convert it first"),
    (_identify("torn.parquet"), "must be a sound .parquet file", "Write it again"),
    (_identify("folder"), "which has no state.json", "Give a CSV, TSV"),
    (_identify(T, "--format", "xml"), "`--format` must be one of csv", "Pick one"),
    (_identify(T, "--subset", "train"), "a folder of several data sets", "Leave it out"),
    # columns and classes
    (_identify("other.csv"), "got ['review', 'stars']", "Write `--text-column` review"),
    (_identify("other.csv", "--text-column", "reveiw"), "'reveiw' and 'label'", "-column` review"),
    (_identify("blank.csv"), "got '' in row 1", "Delete the row"),
    (_identify("nolabel.csv"), "row 1 of", "Fill it in or delete the row"),
    (_identify("one.csv"), "two values; got 1: ['1']", "Add texts of another class"),
    (_identify("three.csv"), "two values; got 3", "Choose two with `--classes`"),
    (_identify("three.csv", "--classes", "0,7"), "two of the labels ['0', '1', '2']", "Choose two"),
    (_identify("three.csv", "--classes", "0"), "two names; got '0'", "Write them as in"),
    (_identify("three.csv", "--against-rest"), "must come with `--positive`", "Name the label"),
    (_identify(T, "--positive", "7"), "['0', '1']; got '7'", "grows towards"),
    (_identify(T, "--split", "90/9/9"), "distinct texts per class", ""),
    # pairs
    (_identify(T, "--pairs", "good,bad"), "the columns 'good' and 'bad'", "Name those of"),
    (_identify("pairs.csv", "--pairs", "positive,negative"), "also on the other side", "Correct"),
    (_identify(T, "--concept", "paired_difference"), "which holds no pairs", "`--pairs`"),
    # prompts
    (_identify(T, "--template", "Review:"), "{text} once", "'Review: {text}'"),
    (_identify(T, "--template", "{text} {text}"), "with 2 of them", "'Review: {text}'"),
    (_identify(T, "--chat"), "that of this model has none", "Write a `--template`"),
    (_identify(T, "--system", "be kind"), "must come with `--chat`", "Add `--chat`"),
    (_identify(T, "--read-at", "Mood:"), "'Mood:' is not in number 0", "Put it into"),
    (_identify(T, "--read-at", "999"), "got 999 for number 0", "Use an index from -"),
    (
        _identify(T, "--template", "{text}" + 40 * " word", "--max-tokens", "8"),
        "tokens around the content of a prompt; got 8", "Raise it",
    ),
    (_identify(T, "--cut", "centre"), "must be right, left or middle", "Pick one"),
    # others' results, and what has to be fetched
    (["verify", T, MODEL, T], "a whole netCDF4 file; got 'texts.csv'", "again"),
    (
        ["verify", "system.nc", MODEL, T],
        "must hold 'u'; got 'system.nc'",
        "Give a control vector: `depthsys import vec.gguf",
    ),
    (["real", "--texts", "movies"], "must have been fetched", "Run `depthsys fetch`"),
    (
        ["real", "--texts", "movie"],
        "`--texts` must be one of movies, amazon, editorials, tweets, or an existing file; got",
        "or one of these names",
    ),
    (["real", "--model", MODEL, "--texts", "gone.csv"], "an existing file", "Give a CSV"),
]  # fmt: skip
SMALL = {"--split": "6/3/3", "--device": "cpu", "--out": "out"}


@pytest.mark.parametrize(("typed", "cause", "cure"), WRONG, ids=lambda part: None)
def test_the_line_names_cause_and_cure(run, place, monkeypatch, typed, cause, cure):
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv(fetched.FOLDER, str(place / "nothing"))
    options = [part for name in SMALL.items() if name[0] not in typed for part in name]
    code, shown, err = run(*typed, *options)
    assert (code, err.count("\n")) == (2, 1), err
    assert shown.count("\n") <= 1  # "load ...": what only the tokenizer can tell
    assert cause in err
    assert cure in err
    assert len(err) < 600
    assert not (place / "out").exists()  # nothing is left behind


def test_control_vectors_that_are_none(run, place, monkeypatch):
    monkeypatch.chdir(place)
    for name, cause in (("old.gguf", "it is of version 0"), ("gone.gguf", "an existing file")):
        code, _, err = run("import", name, "--out", "vector.nc")
        assert (code, err.count("\n")) == (2, 1)
        assert cause in err
    assert not (place / "vector.nc").exists()


def test_there_are_many():
    assert len(WRONG) >= 50
