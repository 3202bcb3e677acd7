"""device_map="auto": where the weights of a model lie that is larger than its card."""

import gc
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from depthsys import demo, lm
from depthsys.lm.hf import placing
from depthsys.lm.hf.checkpoint import find_blocks
from depthsys.lm.hf.placing import Placing, checked_placing, refuse_placing
from tests import card

pytest.importorskip("accelerate")
DEVICE = card.setup()
DEMO = demo.model_path("demo_48x4")
IDS = [[3, 1, 4], [1, 5], [9, 2, 6, 5]]
L = 4


@pytest.fixture(scope="module")
def whole():
    return lm.DepthModel.load(DEMO, device="cpu")


@pytest.fixture(scope="module")
def sizes(whole):
    """Bytes of a block, and of all that is in none."""
    block = sum(p.nbytes for p in whole.hf.transformer.h[0].parameters())
    return SimpleNamespace(
        block=block, beside=sum(p.nbytes for p in whole.hf.parameters()) - L * block
    )


def load(device, on_card=None, cpu=None):
    given = {key: size for key, size in ((0, on_card), ("cpu", cpu)) if size is not None}
    return lm.DepthModel.load(DEMO, device=device, device_map="auto", max_memory=given)


def places(model) -> list[str]:
    """Where each block is."""
    return [str(model.hf.hf_device_map[f"transformer.h.{layer}"]) for layer in range(L)]


def assert_same_numbers(model, whole):
    assert model.fingerprint == whole.fingerprint
    a, b = model.run(IDS), whole.run(IDS)
    np.testing.assert_allclose(a.states, b.states, rtol=1e-4, atol=1e-4)
    for layer in range(L):
        near = {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(a.jacobian(layer).cpu(), b.jacobian(layer), **near)
    token = lm.LogitDifference(3, 5)
    v = np.ones((L + 1, 48)) / 48**0.5
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    ours, expected = (lm.linear_gains(run, concept, readout=token) for run in (a, b))
    np.testing.assert_allclose(ours.gain, expected.gain, rtol=1e-3, atol=1e-5)


def test_the_first_blocks_stay_on_the_card_and_the_others_wait_in_memory(whole, sizes):
    # one that stays, and room for one that is used and one that comes
    model = load(DEVICE, on_card=sizes.beside + 4 * sizes.block - 1, cpu=10**9)
    assert places(model) == ["card:0", "cpu", "cpu", "cpu"]
    assert model.device.type == DEVICE
    assert "card:0; 3 layers wait in memory or files; " in repr(model)
    assert "wait" not in repr(whole)
    assert model.hf.lm_head.weight.device.type == DEVICE
    assert [model.blocks.residence.nbytes(layer) for layer in range(L)] == [0, *[sizes.block] * 3]
    assert_same_numbers(model, whole)


def test_what_fits_is_not_moved(whole, sizes):
    model = load(DEVICE, on_card=sizes.beside + L * sizes.block)
    assert not model.blocks.residence.moves
    assert {p.device.type for p in model.hf.parameters()} == {DEVICE}
    assert_same_numbers(model, whole)


def test_by_default_a_share_of_what_is_free_may_be_taken(whole, sizes, monkeypatch):
    needed = sizes.beside + (1 + placing.COMING) * sizes.block
    monkeypatch.setattr(placing, "free_on", lambda device: needed / placing.DEVICE_SHARE + 8)
    assert places(load(DEVICE)) == ["card:0", "cpu", "cpu", "cpu"]


def test_without_a_card_blocks_wait_in_the_files(whole, sizes):
    model = load("cpu", cpu=sizes.beside + 3 * sizes.block)
    assert places(model) == ["cpu", "disk", "disk", "disk"]
    assert_same_numbers(model, whole)
    files = {one.file for one in model.blocks.residence._waiting[1]}
    assert files == {DEMO / "model.safetensors"}  # not copied


def test_card_then_memory_then_files(sizes):
    config = AutoConfig.from_pretrained(DEMO)
    device = sizes.beside + (1 + placing.COMING) * sizes.block
    plan = Placing(torch.device(DEVICE, 0), device, 2 * sizes.block)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    found = plan._places(empty, find_blocks(empty))
    assert [found[f"transformer.h.{layer}"] for layer in range(L)] == [
        *("card:0", "cpu", "cpu", "disk")
    ]
    assert {found[name] for name in ("transformer.wte", "transformer.ln_f", "lm_head")} == {
        "card:0"
    }
    # every weight has a place
    assert all(any(n.startswith(p) for p in found) for n, _ in empty.named_parameters())


def test_the_folder_for_changed_weights_goes_with_the_model(sizes, monkeypatch, tmp_path):
    monkeypatch.setattr(placing.tempfile, "tempdir", str(tmp_path))
    model = load("cpu", cpu=sizes.beside + 3 * sizes.block)
    assert list(tmp_path.glob("depthsys-*"))
    del model
    gc.collect()
    assert not list(tmp_path.glob("depthsys-*"))


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_load_that_fails_leaves_no_folder(sizes, monkeypatch, tmp_path, error):
    monkeypatch.setattr(placing.tempfile, "tempdir", str(tmp_path))
    seen = []

    def failing(*given, offload_folder, **options):
        seen.append(Path(offload_folder).is_dir())
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", failing)
    with pytest.raises((ValueError, KeyboardInterrupt)):
        load("cpu", cpu=sizes.beside + 3 * sizes.block)
    assert seen == [True]
    assert not list(tmp_path.iterdir())


def test_a_card_that_does_not_hold_two_layers_is_refused(sizes):
    said = r"must hold what is never moved, and 2 layers; got \S+ GB for card:0, where \S+ GB more"
    with pytest.raises(ValueError, match=said):
        load(DEVICE, on_card=sizes.beside + sizes.block)


def test_a_card_with_little_room_left_says_so(sizes, monkeypatch):
    monkeypatch.setattr("depthsys.lm.hf.placing.free_on", lambda device: sizes.beside)
    with pytest.raises(ValueError, match=r"GB for card:0 \(70% of what is free\), where"):
        lm.DepthModel.load(DEMO, device=DEVICE, device_map="auto")


def test_sizes_must_be_a_mapping():
    with pytest.raises(TypeError, match="must be a mapping from places to sizes; got '2GiB'"):
        checked_placing("auto", "2GiB", torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device_map", "max_memory", "said"),
    [
        ("balanced", None, "`device_map` must be 'auto' or None; got 'balanced'"),
        (None, {0: 10}, "`max_memory` must come with device_map='auto'"),
        ("auto", {"cpu": "much"}, "must hold bytes >= 0, or texts such as '20GiB'; got 'much'"),
        ("auto", {0: 10, "cpu": 10}, r"must name 'cpu' alone on the device 'cpu', .* got \['0'\]"),
        ("auto", {"cpu": -1}, "got -1. Leave it out"),
    ],
)
def test_bad_maps_are_refused_before_anything_is_read(device_map, max_memory, said):
    with pytest.raises(ValueError, match=said):
        lm.DepthModel.load(
            "no/such/model", device="cpu", device_map=device_map, max_memory=max_memory
        )


def test_another_card_is_refused():
    with pytest.raises(ValueError, match=r"must name the device \(1\) or 'cpu'; got \['0'\]"):
        checked_placing("auto", {0: 10}, torch.device("cuda", 1))


def test_sizes_may_be_texts():
    found = checked_placing("auto", {0: "2GiB", "cpu": 5}, torch.device("cuda"))
    assert found == Placing(torch.device("cuda", 0), 2 * 2**30, 5)


def test_a_missing_package_is_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        placing.importlib.util,
        "find_spec",
        lambda name, *a: None if name == "accelerate" else real(name, *a),
    )
    with pytest.raises(ValueError, match="pip install accelerate"):
        checked_placing("auto", None, torch.device("cpu"))


@pytest.mark.parametrize(
    ("given", "quantised", "said"),
    [
        ({"gguf": Path("m.gguf")}, False, "None for a GGUF file.*save_pretrained"),
        ({"adapter": "LoRA"}, False, "None for an adapter.*save_pretrained"),
        ({}, True, "None for a quantised checkpoint.*wrap it"),
    ],
)
def test_checkpoints_that_are_read_as_a_whole_are_refused(given, quantised, said):
    found = SimpleNamespace(**{"gguf": None, "adapter": None} | given)
    config = AutoConfig.from_pretrained(DEMO)
    if quantised:
        config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(ValueError, match=said):
        refuse_placing(found, config)


SHAPES = {
    "Llama-8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "Llama-70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80},
}
HEADS = {"Llama-8B": 32, "Llama-70B": 64}


@pytest.mark.parametrize(("shape", "card_gb"), [("Llama-8B", 16), ("Llama-70B", 80)])
def test_the_table_of_the_docs_is_what_would_be_placed(shape, card_gb, monkeypatch):
    rows = (Path(__file__).parents[2] / "docs/models.md").read_text().splitlines()
    (row,) = [r for r in rows if r.startswith(f"| {shape}, ") and f"| {card_gb} GB |" in r]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    config = LlamaConfig(
        **SHAPES[shape],
        vocab_size=128256,
        num_attention_heads=HEADS[shape],
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    monkeypatch.setattr(placing, "free_on", lambda device: card_gb * 10**9)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plan = Placing(torch.device(DEVICE, 0), on_host=10**12)
    places = plan._places(empty, find_blocks(empty))
    block = sum(p.nbytes for p in empty.model.layers[0].parameters())
    n_layers = SHAPES[shape]["num_hidden_layers"]
    stay = sum(places[f"model.layers.{layer}"] == "card:0" for layer in range(n_layers))
    wait = (n_layers - stay) * block
    assert cells == [
        f"{shape}, {n_layers} blocks of {block / 1e9:.2f} GB",
        f"{n_layers * block / 1e9:.1f} GB",
        f"{card_gb} GB",
        f"{stay * block / 1e9:.1f} GB",
        f"{wait / 1e9:.1f} GB",
        f"{wait / 25e9:.2g} s",
        f"{wait / 3e9:.{1 if wait < 3e10 else 0}f} s",
    ]
