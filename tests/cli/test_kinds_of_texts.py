"""Texts as people have them, on the command line: labels, token ids, long ones."""

import csv
import json

import numpy as np
import pytest
import xarray as xr

from depthsys import lm
from depthsys.demo import grammar

SMALL = ["--split", "12/6/6", "--device", "cpu", "--order", "2"]
ROWS = grammar.labelled(40, seed=5)


def written(path, rows, columns=("text", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def load(path):
    return xr.load_dataset(path, engine="h5netcdf")


def identified(run, folder, texts, *options):
    code, shown, err = run("identify", "demo_48x4", texts, *SMALL, *options, "--out", folder)
    assert code == 0, err
    return load(folder / "system.nc"), shown


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Labels 2 and 10 for 0 and 1."""
    rows = [(text, {"0": 2, "1": 10}[str(label)]) for text, label in ROWS]
    return written(tmp_path_factory.mktemp("texts") / "texts.csv", rows)


def test_the_readout_grows_towards_the_larger_number_or_the_named_class(run, tmp_path, texts):
    larger, shown = identified(run, tmp_path / "a", texts)
    assert json.loads(larger.attrs["classes"]) == ["2", "10"]
    assert "the readout grows from label '2' to '10'" in shown
    named, shown = identified(run, tmp_path / "b", texts, "--positive", "2")
    assert json.loads(named.attrs["classes"]) == ["10", "2"]
    assert "the readout grows from label '10' to '2'" in shown
    for system, positive in ((larger, 10), (named, 2)):
        source = lm.read_texts(texts, positive=positive).split(concept=12, operating=6, held_out=6)
        assert system.attrs["prompts_sha256"] == source.operating.sha256
        assert float(system["auc"][-1]) > 0.5
    # a stored system keeps the direction of its readout
    assert run("gains", tmp_path / "b" / "system.nc", "--out", tmp_path / "c")[0] == 0
    assert json.loads(load(tmp_path / "c" / "gains.nc").attrs["classes"]) == ["10", "2"]


def test_a_system_whose_labels_were_sorted_as_text_can_be_gone_on_with(run, tmp_path, texts):
    """Older files have the classes "10", "2" without anybody having named one of them."""
    old, _ = identified(run, tmp_path / "a", texts, "--positive", "2")
    assert json.loads(old.attrs["classes"]) == sorted(["2", "10"])
    assert run("control", tmp_path / "a" / "system.nc", "--out", tmp_path / "b")[0] == 0


@pytest.mark.parametrize("option", [["--positive", "3"], ["--cut", "top"]])
def test_what_is_none_is_refused_before_the_model_is_loaded(
    run, tmp_path, texts, option, monkeypatch
):
    monkeypatch.setattr(lm.DepthModel, "load", lambda *_, **__: pytest.fail("it was loaded"))
    code, _, err = run("identify", "demo_48x4", texts, *SMALL, *option, "--out", tmp_path / "a")
    assert code == 2
    wanted = "must be one of the labels ['2', '10']" if "3" in option else "`--cut` must be"
    assert wanted in err


def test_long_texts_are_cut_where_it_is_asked_for(run, tmp_path, texts):
    common = ["--max-tokens", "6", "--cut"]
    system, shown = identified(run, tmp_path / "a", texts, *common, "middle")
    assert system.attrs["cut"] == "middle"
    n_cut = [system.attrs[f"n_cut_{name}"] for name in ("concept", "operating", "held_out")]
    assert min(n_cut) > 0
    assert (
        f"- cut in the middle at 6 tokens: {n_cut[0]} concept, {n_cut[1]} operating and {n_cut[2]} "
        "held-out texts"
    ) in shown
    # gone on with, the texts are cut as they were
    assert run("gains", tmp_path / "a" / "system.nc", "--out", tmp_path / "b")[0] == 0
    gains = load(tmp_path / "b" / "gains.nc").attrs
    assert (gains["cut"], gains["max_tokens"]) == ("middle", 6)
    other, _ = identified(run, tmp_path / "c", texts, *common, "left")
    assert other.attrs["tokens_sha256"] != system.attrs["tokens_sha256"]
    code, _, err = run(
        "gains", tmp_path / "a" / "system.nc", "--cut", "left", "--out", tmp_path / "d"
    )
    assert code == 2
    assert "already holds its settings" in err


def test_token_ids_in_a_column_are_the_texts_they_were_made_of(run, tmp_path, texts, demo_model):
    with texts.open() as file:
        rows = list(csv.DictReader(file))
    ids = demo_model.tokenize([row["text"] for row in rows])[0]
    cells = [(" ".join(map(str, i)), row["label"]) for i, row in zip(ids, rows, strict=True)]
    given = written(tmp_path / "ids.csv", cells, ("input_ids", "label"))
    found, _ = identified(run, tmp_path / "a", given)
    expected, _ = identified(run, tmp_path / "b", texts)
    assert found.attrs["tokens_sha256"] == expected.attrs["tokens_sha256"]
    np.testing.assert_array_equal(found["A"], expected["A"])


def test_a_second_first_token_is_left_out_and_that_is_said(run, tmp_path, texts, demo_model):
    if demo_model.tokenize(["good"])[0][0][0] != demo_model.tokenizer.bos_token_id:
        pytest.skip("this tokenizer adds no first token")
    bos = demo_model.tokenizer.bos_token
    with texts.open() as file:
        rows = [(bos + row["text"], row["label"]) for row in csv.DictReader(file)]
    found, shown = identified(run, tmp_path / "a", written(tmp_path / "bos.csv", rows))
    expected, _ = identified(run, tmp_path / "b", texts)
    assert found.attrs["tokens_sha256"] == expected.attrs["tokens_sha256"]
    assert f"- held-out texts: 12 of 12 texts began with {bos!r}" in shown
