"""Adapters: never left out without a word, merged where that can be done."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from depthsys import lm, report
from depthsys.lm.hf import adapters, checkpoint
from tests.conftest import tiny_llama

RANK, ALPHA = 2, 6
TARGETS = ("q_proj", "v_proj")


def write_adapter(folder, base, like=None, **changes):
    """A LoRA adapter, file by file; gives what it adds to each weight."""
    folder.mkdir(exist_ok=True)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "target_modules": list(TARGETS),
        "bias": "none", "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    generator = torch.Generator().manual_seed(1)
    weights, added = {}, {}
    for name, weight in (like or tiny_llama()).state_dict().items():
        if any(target in name for target in TARGETS):
            n_out, n_in = weight.shape
            a = torch.randn(RANK, n_in, generator=generator)
            b = torch.randn(n_out, RANK, generator=generator)
            module = f"base_model.model.{name.removesuffix('.weight')}"
            weights |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            added[name] = ALPHA / RANK * (b.double() @ a.double())
    save_file(weights, folder / "adapter_model.safetensors")
    return added


def save_base(folder):
    from depthsys.demo import model_path

    tiny_llama().save_pretrained(folder)
    for file in model_path("demo_48x4").glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "base")


@pytest.fixture
def beside(tmp_path):
    """Weights, and an adapter in the same folder."""
    folder = save_base(tmp_path / "beside")
    write_adapter(folder, "somebody/model")
    return folder


@pytest.fixture
def without_peft(monkeypatch):
    monkeypatch.setattr(adapters, "_has_peft", lambda: False)


# ----------------------------------------------------------------------- without peft


def test_the_weights_beside_an_adapter_are_not_loaded_alone(beside, without_peft):
    with pytest.raises(ValueError, match=r"holds a LORA adapter for the weights beside it.*only"):
        lm.DepthModel.load(beside)


def test_an_adapter_alone_says_what_it_is_and_what_to_do(tmp_path, base, without_peft):
    write_adapter(tmp_path / "adapter", str(base))
    with pytest.raises(ValueError, match=r"LORA adapter for '.*base', .* `pip install peft`; or"):
        lm.DepthModel.load(tmp_path / "adapter")


def test_it_is_refused_before_the_texts_are_read(run, tmp_path, beside, without_peft):
    code, _, err = run("identify", beside, tmp_path / "none.csv", "--out", tmp_path / "out")
    assert code == 2
    assert "holds a LORA adapter" in err


# ----------------------------------------------------------------------- with peft


def expected_weights(added, dtype):
    weights = {name: w.double() for name, w in tiny_llama().state_dict().items()}
    return {name: (w + added.get(name, 0)).to(dtype) for name, w in weights.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", ["beside", "alone", "as seen from the adapter"])
def test_an_adapter_is_merged_and_that_is_said(tmp_path, base, beside, dtype, place):
    pytest.importorskip("peft")
    folder, named = {
        "beside": (beside, "somebody/model"),
        "alone": (tmp_path / "adapter", str(base)),
        "as seen from the adapter": (tmp_path / "adapter", "../base"),
    }[place]
    added = write_adapter(folder, named)
    model = lm.DepthModel.load(folder, device="cpu", dtype=dtype)
    for name, weight in expected_weights(added, dtype).items():
        found = model.hf.state_dict()[name]
        torch.testing.assert_close(found, weight, rtol=1e-7, atol=0, msg=name)
    told = "the weights beside it" if place == "beside" else repr(str(folder / named))
    if place == "alone":
        told = repr(str(base))
    assert model.adapter == f"LORA adapter {str(folder)!r}, merged into {told}"
    assert model.adapter in repr(model)
    texts = lm.read_texts([([1, 2, 3], 0), ([4, 5], 1)])
    concept = lm.mean_difference(model, texts)
    system = lm.identify(model, texts, concept, lm.Ensemble(order=1))
    assert system.attrs["adapter"] == model.adapter
    assert f"the model is {model.adapter}" in report.notes(system)
    assert model.contract["states"] < 1e-5
    bare = lm.DepthModel.load(base, device="cpu", dtype=dtype)
    assert bare.adapter is None
    assert "adapter" not in lm.jacobians(bare, [[1, 2, 3]]).attrs
    assert bare.fingerprint != model.fingerprint
    ids = [[3, 1, 4, 1, 5]]
    assert abs(model.run(ids).states - bare.run(ids).states).max() > 0.1


def test_the_fingerprint_is_that_of_the_checkpoint(beside):
    pytest.importorskip("peft")
    prints = {lm.DepthModel.load(beside, dtype=d).fingerprint for d in ("float32", "float64")}
    assert len(prints) == 1


def test_a_tokenizer_beside_the_adapter_is_the_one(tmp_path, base):
    pytest.importorskip("peft")
    folder = tmp_path / "adapter"
    write_adapter(folder, str(base))
    for file in base.glob("tokenizer*"):
        shutil.copy(file, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 77}))
    assert lm.DepthModel.load(folder).tokenizer.model_max_length == 77


def test_an_adapter_that_does_not_fit_is_refused(tmp_path, base):
    pytest.importorskip("peft")
    folder = tmp_path / "adapter"
    write_adapter(folder, str(base))
    weights = load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace(".layers.2.", ".layers.7."): w for name, w in weights.items()}
    less = {name: w for name, w in weights.items() if ".layers.2." not in name}
    wide = {name: torch.cat([w, w]) if "lora_B" in name else w for name, w in weights.items()}
    for broken in (renamed, less, wide):
        save_file(broken, folder / "adapter_model.safetensors")
        with pytest.raises(ValueError, match="must have an adapter that fits and can be merged"):
            lm.DepthModel.load(folder)


def test_an_adapter_that_cannot_be_merged_is_refused(tmp_path, base):
    pytest.importorskip("peft")
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {
        "peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2,
        "base_model_name_or_path": str(base), "token_dim": 16, "num_layers": 3,
        "num_transformer_submodules": 1, "num_attention_heads": 4, "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"prompt_embeddings": torch.zeros(2, 16)}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"can be merged; .*PROMPT_TUNING"):
        lm.DepthModel.load(folder)


# ----------------------------------------------------------------------- what it belongs to


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": None}, "must say what its adapter belongs to"),
        ({"base_model_name_or_path": "./no/such"}, r"LORA adapter for './no/such', and `model` m"),
    ],
)
def test_a_base_that_cannot_be_had_is_named(tmp_path, changes, message):
    write_adapter(tmp_path / "adapter", "x", **changes)
    with pytest.raises(ValueError, match=message):
        lm.DepthModel.load(tmp_path / "adapter")


def test_an_adapter_of_an_adapter_is_refused(tmp_path, beside):
    write_adapter(tmp_path / "second", str(beside))
    with pytest.raises(ValueError, match=r"must have one adapter; .* which has one, too"):
        lm.DepthModel.load(tmp_path / "second")


def test_a_configuration_that_cannot_be_read(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"must have a readable adapter_config\.json, or none"):
        lm.DepthModel.load(tmp_path)


def test_a_pickled_adapter_is_not_read_unless_asked_for(tmp_path, base, monkeypatch):
    monkeypatch.setattr(adapters, "_has_peft", lambda: True)
    write_adapter(tmp_path / "adapter", str(base))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"must hold its adapter as adapter_model\.safetensors"):
        lm.DepthModel.load(tmp_path / "adapter")


def test_an_adapter_of_the_hub_is_found(tmp_path, base, monkeypatch):
    """In the cache, or among the files that the hub tells of."""
    config = tmp_path / "adapter_config.json"
    write_adapter(tmp_path, str(base))
    stored = {}
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda source, name: stored.get((source, name))
    )

    class Info:
        siblings = [type("File", (), {"rfilename": "adapter_config.json"})]

    monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: Info)
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda source, name: stored.setdefault((source, name), str(config)),
    )
    for _ in range(2):
        found = checkpoint.find("somebody/adapter")
        assert (found.source, found.adapter.source) == (str(base), "somebody/adapter")
        monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: pytest.fail("asked"))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for old names
def test_states_of_a_merged_model_are_those_of_peft(tmp_path, base):
    """The oracle is peft's own, unmerged forward pass."""
    peft = pytest.importorskip("peft")
    from tests.lm import whole_sequence

    write_adapter(tmp_path / "adapter", str(base))
    model = lm.DepthModel.load(tmp_path / "adapter", device="cpu")
    unmerged = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter").eval()
    ids = [3, 1, 4, 1, 5]
    own = unmerged(torch.tensor([ids]), output_hidden_states=True).hidden_states
    x = model.run([ids]).states.values[:, 0]
    np.testing.assert_allclose(x[:-1], [h[0, -1].detach() for h in own[:-1]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x, whole_sequence.states(model.hf, ids), rtol=1e-4, atol=1e-5)
