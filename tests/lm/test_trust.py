"""Code and pickles that come with a model are used only when asked for by name."""

import json

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from depthsys import lm
from tests.conftest import tiny_gpt2

CODE = """
from pathlib import Path
Path({marker!r}).write_text("was run")
from transformers import GPT2Config, GPT2LMHeadModel
class OwnConfig(GPT2Config):
    model_type = "own_gpt2"
class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
"""


@pytest.fixture
def saved(tmp_path):
    """A tiny model with a tokenizer of single letters."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    folder = tmp_path / "model"
    tiny_gpt2().save_pretrained(folder)
    words = Tokenizer(WordLevel({chr(97 + i): i for i in range(26)}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


@pytest.fixture
def with_code(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "c"))
    monkeypatch.syspath_prepend(str(tmp_path / "c"))
    (saved / "own.py").write_text(CODE.format(marker=str(tmp_path / "marker")))
    config = json.loads((saved / "config.json").read_text())
    config["model_type"] = "own_gpt2"
    config["auto_map"] = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnModel",
    }
    (saved / "config.json").write_text(json.dumps(config))
    return saved, tmp_path / "marker"


def test_code_that_comes_with_a_model_is_not_run(with_code):
    folder, marker = with_code
    with pytest.raises(ValueError, match="trust_remote_code"):
        lm.DepthModel.load(folder, device="cpu")
    assert not marker.exists()


def test_code_is_not_run_where_the_library_knows_the_family(with_code):
    folder, marker = with_code
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    lm.DepthModel.load(folder, device="cpu")
    assert not marker.exists()


def test_code_is_run_when_asked_for(with_code):
    folder, marker = with_code
    model = lm.DepthModel.load(folder, device="cpu", trust_remote_code=True)
    assert marker.exists()
    plain = lm.DepthModel(tiny_gpt2())
    torch.testing.assert_close(
        model.run([[1, 2, 3]]).jacobian(1), plain.run([[1, 2, 3]]).jacobian(1)
    )


def test_pickled_weights_are_read_only_when_asked_for(saved):
    (saved / "model.safetensors").unlink()
    weights = tiny_gpt2().state_dict()
    torch.save(weights, saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must hold safetensors weights"):
        lm.DepthModel.load(saved, device="cpu")
    model = lm.DepthModel.load(saved, device="cpu", pickled_weights=True)
    assert model.fingerprint == lm.DepthModel(tiny_gpt2()).fingerprint


class Harmful:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


def test_pickled_code_is_not_run_even_then(saved, tmp_path):
    (saved / "model.safetensors").unlink()
    marker = tmp_path / "marker"
    torch.save({"transformer.wte.weight": Harmful(str(marker))}, saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must hold safetensors weights"):
        lm.DepthModel.load(saved, device="cpu", pickled_weights=True)
    assert not marker.exists()
