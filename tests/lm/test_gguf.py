"""GGUF files: the weights are those that transformers and gguf read back, to the bit."""

import shutil

import gguf
import numpy as np
import pytest
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

from depthsys import lm, plot
from depthsys.demo import real as fetched
from depthsys.lm.hf import gguf_file, source
from depthsys.lm.hf.messages import silence
from tests.lm import whole_sequence
from tests.lm.gguf_files import KINDS, LAYERS, written


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    written(path)
    return path


# ------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_of_the_file_to_the_bit(tmp_path, kind):
    """Against gguf's own numbers, and against transformers by itself."""
    readable = written(tmp_path / "tiny.gguf", kind)
    model = lm.DepthModel.load(tmp_path / "tiny.gguf", device="cpu")
    own = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="tiny.gguf", dtype=torch.float32
    ).state_dict()
    found = model.hf.state_dict()
    assert set(found) == set(own) == set(readable)
    for name, values in readable.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
        assert torch.equal(found[name], own[name])
    assert model.dtype_name == "float32"
    assert model.n_layers == LAYERS


def test_it_is_a_model_like_any_other(file):
    model = lm.DepthModel.load(file, device="cpu")
    rows, _ = model.tokenize(["good film", "bad film"])
    own = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    assert rows == own(["good film", "bad film"])["input_ids"]
    assert len(set(map(tuple, rows))) == 2
    x = model.run(rows).states.values
    for i, ids in enumerate(rows):
        np.testing.assert_allclose(
            x[:, i], whole_sequence.states(model.hf, ids), rtol=1e-4, atol=1e-5
        )
    assert model.contract["jvp"] < 1e-3
    attrs = lm.jacobians(model, rows).attrs
    assert (attrs["model"], attrs["source"], attrs["revision"]) == (str(file), "GGUF file", "local")


def test_the_fingerprint_is_that_of_the_weights_read_back(file, tmp_path):
    """The same as of a folder that holds them as safetensors; the name of the file says nothing."""
    model = lm.DepthModel.load(file, device="cpu")
    model.hf.save_pretrained(tmp_path / "folder")
    model.tokenizer.save_pretrained(tmp_path / "folder")
    shutil.copy(file, tmp_path / "other.gguf")
    for where, dtype in (
        (tmp_path / "folder", "float32"),
        (tmp_path / "other.gguf", "float32"),
        (file, "float64"),
    ):
        same = lm.DepthModel.load(where, device="cpu", dtype=dtype)
        assert same.fingerprint == model.fingerprint
    assert lm.DepthModel.load(tmp_path / "folder", device="cpu").source == "folder"
    written(tmp_path / "coarse.gguf", "Q4_0")
    coarse = lm.DepthModel.load(tmp_path / "coarse.gguf", device="cpu")
    assert coarse.fingerprint != model.fingerprint


def test_no_bar_is_printed_once_they_are_silenced(file, capfd, monkeypatch):
    monkeypatch.setattr(modeling_gguf_pytorch_utils, "tqdm", tqdm)
    lm.DepthModel.load(file, device="cpu")
    assert "GGUF" in capfd.readouterr().err
    silence()
    lm.DepthModel.load(file, device="cpu")
    assert "GGUF" not in capfd.readouterr().err


def test_it_may_be_kept_in_16_bits(file):
    wide, model = (
        lm.DepthModel.load(file, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    for name, weight in model.hf.state_dict().items():
        assert torch.equal(weight, wide.hf.state_dict()[name].bfloat16())


@pytest.mark.parametrize("config_beside", [False, True])
def test_a_folder_with_one_such_file_is_that_file(file, tmp_path, config_beside):
    shutil.copy(file, tmp_path)
    if config_beside:  # of another model; there are no weights for it
        (tmp_path / "config.json").write_text("{}")
    found = source.find(tmp_path)
    assert (found.gguf, found.kind) == (tmp_path / "tiny.gguf", "GGUF file")


def test_of_several_one_is_to_be_named(file, tmp_path):
    for name in ("a.gguf", "b.GGUF"):
        shutil.copy(file, tmp_path / name)
    with pytest.raises(ValueError, match=r"one of the GGUF files.*a\.gguf, b\.GGUF. Name one of"):
        lm.DepthModel.load(tmp_path)
    assert source.find(tmp_path / "b.GGUF").kind == "GGUF file"


def test_the_weights_of_a_folder_come_first(file, tmp_path):
    """What `save_pretrained` wrote is the model; a conversion may lie beside it."""
    model = lm.DepthModel.load(file, device="cpu")
    model.hf.save_pretrained(tmp_path)
    written(tmp_path / "coarse.gguf", "Q4_0")
    assert source.find(tmp_path).kind == "folder"


def test_its_configuration_is_read_once(file, monkeypatch):
    from depthsys.lm.hf import checkpoint

    checkpoint._read_gguf_config.cache_clear()
    config = checkpoint.read_config(file)
    read = lambda *_, **__: pytest.fail("read again")  # noqa: E731
    monkeypatch.setattr(checkpoint.AutoConfig, "from_pretrained", read)
    again = checkpoint.read_config(file)
    assert again.to_dict() == config.to_dict()
    assert again is not config


@pytest.mark.slow  # what it loads is tested above
def test_at_the_shell(run, file, tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "save", lambda fig, path, kind: path.write_text("a figure"))
    texts = tmp_path / "texts.csv"
    lines = [f"{w} film{' film' * n},{w}" for n in range(9) for w in ("good", "bad")]
    texts.write_text("\n".join(["text,label", *lines]))
    code, _, err = run(
        "identify", file, texts, "--split", "4/3/2", "--out", tmp_path / "out", "--order", "2",
    )  # fmt: skip
    assert code == 0, err
    import xarray as xr

    with xr.open_dataset(tmp_path / "out" / "system.nc") as system:
        assert system.attrs["source"] == "GGUF file"
    # again, from the system that knows its model; and with the file itself
    for first in ([tmp_path / "out" / "system.nc"], [file, texts, "--split", "4/3/2"]):
        code, _, err = run("gains", *first, "--out", tmp_path / f"{len(first)}")
        assert code == 0, err


# ------------------------------------------------------------------------------- refusals


def cut(file, size, path):
    path.write_bytes(file.read_bytes()[:size])
    return path


def test_a_file_that_is_cut_off_says_so(file, tmp_path):
    size = file.stat().st_size
    for part in (8, 100, 1500, size // 2, size - 1):
        torn = cut(file, part, tmp_path / f"torn{part}.gguf")
        with pytest.raises(ValueError, match=rf"\({part} bytes\), which is cut off or damaged: "):
            lm.DepthModel.load(torn)


def test_a_file_that_is_no_gguf_says_what_it_is(tmp_path):
    (tmp_path / "page.gguf").write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"which begins with b'<!DOCTYP'. Download it again"):
        lm.DepthModel.load(tmp_path / "page.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ValueError, match=r"which is empty\. Download it again"):
        lm.DepthModel.load(tmp_path / "empty.gguf")
    (tmp_path / "pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid ...")
    with pytest.raises(ValueError, match=r"the pointer of Git LFS to it\. Run `git lfs pull`"):
        lm.DepthModel.load(tmp_path / "pointer.gguf")
    with pytest.raises(ValueError, match=r"none\.gguf', which does not exist. Check the path"):
        lm.DepthModel.load(tmp_path / "none.gguf")


def test_a_part_of_a_file_is_refused(file, tmp_path):
    part = shutil.copy(file, tmp_path / "big-00001-of-00003.gguf")
    with pytest.raises(ValueError, match=r"one part of several\. Join them .*llama-gguf-split"):
        lm.DepthModel.load(part)


def test_a_missing_package_is_named(file, monkeypatch):
    monkeypatch.setattr(gguf_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"without gguf and accelerate\. Run `pip install gguf"):
        lm.DepthModel.load(file)


def test_an_architecture_that_transformers_does_not_know_is_named(tmp_path):
    written(tmp_path / "other.gguf", architecture="controlvector")
    with pytest.raises(ValueError, match=r"that transformers .* can read; .*controlvector"):
        lm.DepthModel.load(tmp_path / "other.gguf")


def test_a_file_that_lacks_a_weight_is_refused(tmp_path):
    written(tmp_path / "less.gguf", without=("blk.1.ffn_up",))
    with pytest.raises(ValueError, match=r"must hold every weight .* lacks or misfits .*up_proj"):
        lm.DepthModel.load(tmp_path / "less.gguf")


def test_blocks_that_the_file_does_not_count_are_refused(tmp_path, monkeypatch):
    count = gguf.GGUFWriter.add_block_count
    monkeypatch.setattr(gguf.GGUFWriter, "add_block_count", lambda self, _: count(self, 1))
    written(tmp_path / "more.gguf")
    with pytest.raises(
        ValueError, match=r"block_count .* says 1, and holds \['blk\.1\..* \(9 such weights\)"
    ):
        lm.DepthModel.load(tmp_path / "more.gguf", device="cpu")


def test_weights_that_do_not_fit_the_header_are_named(tmp_path):
    written(tmp_path / "wide.gguf", shapes={"blk.1.ffn_up": (64, 64)})
    message = (
        r"fit its own header; .*layers\.1\.mlp\.up_proj\.weight is \(64, 64\) and not \(64, 32\)"
    )
    with pytest.raises(ValueError, match=message + r" \(1 in all\)\. Convert"):
        lm.DepthModel.load(tmp_path / "wide.gguf")


def test_weights_that_cannot_be_read_back_are_named(file, monkeypatch):
    def no_such(*_):
        raise NotImplementedError("Dequantization for IQ9_Z is not yet implemented")

    monkeypatch.setattr(gguf, "dequantize", no_such)
    with pytest.raises(ValueError, match=r"that the package gguf can read back; .*IQ9_Z .*Q8_0"):
        lm.DepthModel.load(file)


def test_short_memory_is_no_broken_file(file, monkeypatch):
    def short(*_):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(gguf, "dequantize", short)
    with pytest.raises(ValueError, match=r"must fit into the memory .*whose weights are \S+ GB"):
        lm.DepthModel.load(file)


# ------------------------------------------------------------------------------- the real one


@pytest.mark.real
def test_the_real_file_is_read_to_the_bit(real_folder):
    """Every tensor against gguf by itself, name by name; the tokens are those of its vocabulary."""
    found = (real_folder / fetched.MODEL).resolve()
    model = lm.DepthModel.load(found, device="cpu")
    weights = model.hf.state_dict()
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    inside = {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
              "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
              "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}  # fmt: skip
    config, checked = model.hf.config, 0
    for tensor in gguf.GGUFReader(found).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, layer, part = name.split(".")
            ours = inside.get(part, f"self_attn.{part.removeprefix('attn_')}_proj")
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
            if part in heads:
                paired = values.reshape(heads[part], -1, 2, values.shape[-1])
                values = paired.swapaxes(1, 2).reshape(values.shape)
            name = f"model.layers.{layer}.{ours}"
        else:
            name = names[name]
        np.testing.assert_array_equal(weights[f"{name}.weight"], values, err_msg=name)
        checked += 1
    assert checked == 2 + 9 * model.n_layers
    rows, _ = model.tokenize(["The film was wonderful."])
    assert model.tokenizer.decode(rows[0]) == "The film was wonderful."
    assert model.contract["states"] < 1e-4
