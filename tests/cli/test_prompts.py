"""Templates, chats and where the state is read, on the command line."""

import csv
import shutil

import numpy as np
import pytest
import xarray as xr

from depthsys import lm
from depthsys.cli import typed
from depthsys.demo import grammar, model_path

SMALL = ["--split", "6/3/3", "--device", "cpu", "--order", "2"]
CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}answer:{% endif %}"
)


def load(path):
    return xr.load_dataset(path, engine="h5netcdf")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *grammar.labelled(20, seed=5)])
    return path


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """The smallest embedded model, as if it had been tuned to chat."""
    folder = tmp_path_factory.mktemp("model") / "chat"
    shutil.copytree(model_path("demo_48x4"), folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


def operating(model, texts):
    """Fingerprint of the tokens that a model makes of the texts that a system is of."""
    split = lm.read_texts(texts).split(concept=6, operating=3, held_out=3)
    return model.tokens_sha256(split.operating)


def test_a_template_with_a_marker_is_stored_and_gone_on_with(run, tmp_path, texts):
    options = ["--template", r"Review: {text}\nIs it good", "--read-at", r"\nIs"]
    command = ["identify", "demo_48x4", texts, *SMALL, *options, "--out", tmp_path / "a"]
    code, shown, err = run(*command)
    assert code == 0, err
    told = r"- texts in the template 'Review: {text}\nIs it good', read at the end of '\nIs'"
    assert told in shown
    system = load(tmp_path / "a" / "system.nc")
    asked = {"template": "Review: {text}\nIs it good", "read_at": "\nIs"}
    assert asked == {name: system.attrs[name] for name in asked}
    model = lm.DepthModel.load(model_path("demo_48x4"), device="cpu", **asked)
    assert system.attrs["tokens_sha256"] == operating(model, texts)

    # a stored system brings its prompts along, and takes no others
    stored = tmp_path / "a" / "system.nc"
    code, _, err = run("gains", stored, "--out", tmp_path / "b")
    assert code == 0, err
    gains = load(tmp_path / "b" / "gains.nc").attrs
    assert asked == {name: gains[name] for name in asked}
    other = ["--template", "{text}", "--chat", "--system", "s", "--read-at", "-1"]
    code, _, err = run("gains", stored, *other, "--out", tmp_path / "c")
    assert code == 2
    assert "already holds its settings; got --template, --chat, --system, --read-at" in err


def test_a_chat_with_a_system_message_and_the_beginning_of_the_answer(
    run, tmp_path, texts, chat_model
):
    options = ["--chat", "--system", "be brief", "--answer", r"\tit", "--template", "So: {text}"]
    options += ["--read-at", "-2"]
    command = ["identify", chat_model, texts, *SMALL, *options, "--out", tmp_path / "a"]
    code, shown, err = run(*command)
    assert code == 0, err
    assert "in the tokenizer's chat template, system message 'be brief', answer begun" in shown
    attrs = load(tmp_path / "a" / "system.nc").attrs
    asked = {"chat": True, "system_message": "be brief", "answer": "\tit", "template": "So: {text}"}
    asked |= {"read_at": -2}
    assert asked == {name: attrs[name] for name in asked}
    model = lm.DepthModel.load(chat_model, device="cpu", **asked)
    assert attrs["tokens_sha256"] == operating(model, texts)
    (row,), _ = model.tokenize(["good"])
    whole = model.tokenizer(
        "system: be brief\nuser: So: good\nanswer:\tit", add_special_tokens=False
    )
    assert row == whole["input_ids"][:-1]
    code, _, err = run("control", tmp_path / "a" / "system.nc", "--out", tmp_path / "b")
    assert code == 0, err
    np.testing.assert_array_equal(load(tmp_path / "b" / "schedule.nc").attrs["chat"], 1)


REFUSED = {
    "`--template` must hold {text} once": ["--template", "Review:"],
    "`--system` must come with `--chat`": ["--system", "be brief"],
    "`--answer` must come with `--chat`": ["--answer", "it"],
    "`--read-at` must be 'last', 'text', a whole number, or a marker": ["--read-at", ""],
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_cannot_be_meant_is_refused_before_the_model_is_loaded(
    run, tmp_path, texts, told, monkeypatch
):
    monkeypatch.setattr(lm.DepthModel, "load", lambda *_, **__: pytest.fail("it was loaded"))
    command = ["identify", "demo_48x4", texts, *SMALL, *REFUSED[told], "--out", tmp_path / "a"]
    code, _, err = run(*command)
    assert code == 2
    assert told in err


LATER = {
    "`--chat` must be asked of a tokenizer that has a chat template": ["--chat"],
    "`--read-at` must be a marker that stands in every prompt; 'so:' is not": ["--read-at", "so:"],
    "`--read-at` must be a token of every prompt; got 99 for number 0": ["--read-at", "99"],
    "`--max-tokens` must be above the": ["--template", "a b c {text}", "--max-tokens", "4"],
}


@pytest.mark.parametrize("told", LATER)
def test_what_the_tokenizer_cannot_do_is_told_as_it_was_typed(run, tmp_path, texts, told):
    command = ["identify", "demo_48x4", texts, *SMALL, *LATER[told], "--out", tmp_path / "a"]
    code, _, err = run(*command)
    assert code == 2
    assert told in err


def test_token_ids_are_put_into_no_template(run, tmp_path, texts):
    rows = [("3 4 5", 0), ("5 6", 0), ("7 8", 1), ("9 9 9", 1), ("2 2", 0), ("4 4", 1)]
    path = tmp_path / "ids.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("input_ids", "label"), *rows])
    command = ["identify", "demo_48x4", path, "--split", "1/1/1", "--device", "cpu"]
    code, _, err = run(*command, "--template", "so {text}", "--out", tmp_path / "a")
    assert code == 2
    assert "`--template` must be left out for token ids" in err


@pytest.mark.parametrize(
    ("written", "meant"),
    [(r"a\nb\tc", "a\nb\tc"), (r"a\\nb", r"a\nb"), (r"a\d\\", "a\\d\\"), ("a\nb", "a\nb")],
)
def test_line_breaks_as_they_are_typed(written, meant):
    assert typed.unescaped(written) == meant
