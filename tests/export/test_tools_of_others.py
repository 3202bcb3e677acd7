"""The tools themselves, in an environment of their own: llama.cpp, repeng, steering-vectors.

Each adds one vector by its own code to a tiny model, and what it does to the states is what the
imported vector does here. So every row of the table of conventions in docs/export.md is run.

The environment is made by tests/tools_of_others.py.
"""

import platform
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
import xarray as xr
from transformers import Qwen2Config, Qwen2ForCausalLM

from depthsys import export, lm, ltv
from tests.conftest import tiny_gpt2, tiny_llama
from tests.export.test_control_vectors import H, tensors_of, written
from tests.tools_of_others import called

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parent / "theirs"
N_LAYERS, VOCABULARY = 4, 50
MODELS = {"gpt2": tiny_gpt2, "llama": tiny_llama}
STRENGTH = -0.7
EVERY_FEATURE = xr.DataArray(np.eye(H), dims=("output", "feature"))


def random_vector(blocks, seed=0) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: (0.8 * rng.standard_normal(H)).astype(np.float32) for n in blocks}


def random_prompts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(1, VOCABULARY, size=n).tolist() for n in (1, 3, 6)]


def moved(model, prompts, vector) -> np.ndarray:
    """Shift of x_L (prompt, feature) when the vector is played at every token."""
    found = lm.play(model, prompts, vector, vector, readout=EVERY_FEATURE, tokens="every")
    return found["response"].isel(scale=0).values


def off(got: np.ndarray, expected: np.ndarray) -> float:
    return float(abs(got - expected).max() / abs(expected).max())


# ------------------------------------------------------------------------- repeng, steering-vectors


@pytest.fixture(scope="module", params=MODELS)
def in_python(request, tools, tmp_path_factory):
    """A model, and what both tools did to it: blocks 0 to 3, of which repeng controls three."""
    hf = MODELS[request.param](
        **({"n_layer": N_LAYERS} if request.param == "gpt2" else {"num_hidden_layers": N_LAYERS})
    )
    folder = tmp_path_factory.mktemp(request.param)
    hf.save_pretrained(folder / "model")
    vector = random_vector((3, 2, 1, 0))
    asked = {
        "model": str(folder / "model"),
        "prompts": random_prompts(),
        "vector": {n: v.tolist() for n, v in vector.items()},
        "strength": STRENGTH,
        "layer_ids": [-1, -2, 1],  # 3, 2 and 1
        "out": str(folder),
    }
    called(tools, SCRIPTS / "run_in_python.py", asked, folder)
    model = lm.DepthModel(hf, name=request.param)
    return model, vector, folder, dict(np.load(folder / "states.npz"))


def test_repeng_does_what_the_imported_file_does(in_python):
    """Row repeng: directions[i] goes to the output of block i, the input of block i + 1."""
    model, vector, folder, states = in_python
    assert off(model.run(random_prompts()).states.values[-1], states["nominal"]) < 1e-4
    expected = states["repeng"] - states["nominal"]
    options = {"strength": STRENGTH, "n_layers": N_LAYERS, "n_features": H}
    found = export.read_control_vector(folder / "repeng.gguf", layer_range=(1, 3), **options)
    assert off(moved(model, random_prompts(), found), expected) < 1e-4
    # other readings of the same file are told apart
    earlier = {n - 1: v for n, v in vector.items() if n > 0}
    for wrong in (
        export.read_control_vector(folder / "repeng.gguf", **options),  # block 0, too
        export.from_control_vector(earlier, strength=STRENGTH, n_layers=N_LAYERS),
        found.assign(u=-found["u"], u_end=-found["u_end"]),
        found.assign(u_end=0.0),
    ):
        assert off(moved(model, random_prompts(), wrong), expected) > 0.05


def test_a_vector_that_repeng_trained_makes_the_round_trip(in_python, tmp_path):
    model, _, folder, states = in_python
    found = export.read_control_vector(
        folder / "trained.gguf", strength=STRENGTH, n_layers=N_LAYERS, n_features=H
    )
    assert found.attrs["model_hint"] == model.name
    expected = states["repeng_trained"] - states["nominal"]
    assert off(moved(model, random_prompts(), found), expected) < 1e-4
    again = tmp_path / "again.gguf"
    export.write_control_vector(export.read_control_vector(folder / "trained.gguf"), again)
    trained = np.load(folder / "trained.npz")
    assert list(trained) == ["3", "2", "1"]
    assert tensors_of(again) == tensors_of(folder / "trained.gguf")
    assert tensors_of(again) == {f"direction.{n}": trained[n].tobytes() for n in trained}


def test_steering_vectors_does_what_the_imported_object_does(in_python):
    """Row steering-vectors: layer_activations[i] goes to the output of decoder block i."""
    model, vector, _, states = in_python
    tensors = {n: torch.tensor(v) for n, v in vector.items()}
    held = SimpleNamespace(layer_activations=tensors, layer_type="decoder_block")
    found = export.from_control_vector(held, strength=STRENGTH, n_layers=N_LAYERS)
    expected = states["steering_vectors"] - states["nominal"]
    assert off(moved(model, random_prompts(), found), expected) < 1e-4


# ------------------------------------------------------------------------- llama.cpp

_TENSORS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "embed_tokens": "token_embd", "norm": "output_norm",
    "lm_head": "output",
}  # fmt: skip


def tiny_qwen2() -> Qwen2ForCausalLM:
    """Of the families that llama.cpp takes without changing weights."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=H, intermediate_size=40, num_hidden_layers=N_LAYERS, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=64,
        initializer_range=0.3, tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def written_for_llama_cpp(hf, path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(64)
    writer.add_embedding_length(H)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(40)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(hf.config.rms_norm_eps)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    for name, values in hf.state_dict().items():
        module, kind = name.removeprefix("model.").rsplit(".", 1)
        block = ""
        if module.startswith("layers."):
            _, number, module = module.split(".", 2)
            block = f"blk.{number}."
        writer.add_tensor(f"{block}{_TENSORS[module]}.{kind}", values.numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.skipif(platform.machine() != "x86_64", reason="called by its binary interface")
def test_llama_cpp_does_what_the_imported_file_does(tools, tmp_path):
    """Row llama.cpp: direction.N goes to the output of block N; strength, range, no block 0.

    It keeps keys and values in 16 bits, so logits agree to some thousandths.
    """
    hf = tiny_qwen2()
    path = written(tmp_path / "v.gguf", random_vector((1, 2, 3)), hint="qwen2")
    with_0 = written(tmp_path / "zero.gguf", random_vector((0, 1)))
    runs = [
        {"vector": None},
        {"vector": str(path), "strength": 1.0, "first": 1, "last": N_LAYERS},  # as by default
        {"vector": str(path), "strength": STRENGTH, "first": 1, "last": N_LAYERS},
        {"vector": str(path), "strength": 1.0, "first": 2, "last": 2},
        {"vector": str(path), "strength": 1.0, "first": 3, "last": 9},
        {"vector": str(with_0), "strength": 1.0, "first": 0, "last": 9},
    ]
    prompts = random_prompts()
    asked = {
        "model": str(written_for_llama_cpp(hf, tmp_path / "model.gguf")),
        "prompts": prompts, "n_tokens": VOCABULARY, "runs": runs, "out": str(tmp_path / "out.npy"),
    }  # fmt: skip
    called(tools, SCRIPTS / "run_llama_cpp.py", asked, tmp_path)
    nominal, *steered, refused = np.load(tmp_path / "out.npy")
    model = lm.DepthModel(hf, name="qwen2")
    final = model.run(prompts).states.values[-1]

    def logits(shift) -> np.ndarray:
        with torch.no_grad():
            return model.head(torch.as_tensor(final + shift).float()).numpy()

    size = min(abs(one - nominal).max() for one in steered)
    assert abs(logits(0 * final) - nominal).max() < 0.01 * size
    for run, theirs in zip(runs[1:], steered, strict=False):
        for shift in (0, 1, -1):
            vectors = {n + shift: v for n, v in random_vector((1, 2, 3)).items()}
            kept = (run["first"] + shift, min(run["last"], 3) + shift)
            if kept[0] >= N_LAYERS:  # refused: there is no such block
                continue
            mine = export.from_control_vector(
                {n: v for n, v in vectors.items() if n < N_LAYERS},
                strength=run["strength"], layer_range=kept, n_layers=N_LAYERS,
            )  # fmt: skip
            error = abs(logits(moved(model, prompts, mine)) - theirs).max()
            assert (error < 0.01 * size) == (shift == 0)
        told = export.read_control_vector(
            path, strength=run["strength"], layer_range=(run["first"], min(run["last"], N_LAYERS)),
            n_layers=N_LAYERS,
        )  # fmt: skip
        assert abs(logits(moved(model, prompts, told)) - theirs).max() < 0.01 * size
    assert np.isnan(refused).all()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="called by its binary interface")
def test_llama_cpp_plays_the_plans_that_we_export(tools, tmp_path):
    """`to_gguf` of a plan: llama.cpp's own loader and forward pass, beside ours at every token."""
    hf = tiny_qwen2()
    model = lm.DepthModel(hf, name="qwen2")
    rng = np.random.default_rng(2)
    v = rng.standard_normal((N_LAYERS + 1, H, 1))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    system = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=N_LAYERS)
    system = system.assign(v=(("depth", "feature", "input"), v))
    plan = xr.Dataset({"u": ("layer", [0.0, 0.0, 2.0, -1.5])})
    export.to_gguf(system, plan, tmp_path / "plan.gguf")
    prompts = random_prompts()
    whole = {"vector": str(tmp_path / "plan.gguf"), "strength": 1.0, "first": 1, "last": N_LAYERS}
    asked = {
        "model": str(written_for_llama_cpp(hf, tmp_path / "model.gguf")), "prompts": prompts,
        "n_tokens": VOCABULARY, "runs": [{"vector": None}, whole], "out": str(tmp_path / "out.npy"),
    }  # fmt: skip
    called(tools, SCRIPTS / "run_llama_cpp.py", asked, tmp_path)
    nominal, theirs = np.load(tmp_path / "out.npy")
    concept = xr.Dataset({"direction": (("depth", "feature"), v[..., 0])})
    found = lm.play(model, prompts, concept, plan, readout=EVERY_FEATURE, tokens="every")
    shift = found["response"].isel(scale=0).values
    with torch.no_grad():
        final = model.run(prompts).states.values[-1] + shift
        mine = model.head(torch.as_tensor(final).float()).numpy()
    assert abs(mine - theirs).max() < 0.01 * abs(theirs - nominal).max()
