"""Models whose weights are quantised, or wait elsewhere than the states.

One machine without a GPU has one real device: what is tested is accelerate's dispatch with blocks
on disk and in memory (its hooks move weights and states as they do between GPUs), and int8
weights. A map over two devices is tested on a GPU (tests/lm/test_gpu.py).
"""

import numpy as np
import pytest
import torch

from depthsys import lm
from tests.conftest import tiny_gpt2, tiny_llama
from tests.lm import whole_sequence

IDS = [[3, 1, 4, 1, 5], [9], [8, 9, 7]]
AROUND = {
    tiny_gpt2: ("transformer.h", ["transformer.wte", "transformer.wpe", "transformer.ln_f"]),
    tiny_llama: ("model.layers", ["model.embed_tokens", "model.norm", "model.rotary_emb"]),
}


@pytest.mark.parametrize("family", AROUND)
@pytest.mark.parametrize("embedding_on_disk", [False, True])
def test_blocks_on_disk_give_the_same_numbers(family, embedding_on_disk, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    blocks, others = AROUND[family]
    places = dict.fromkeys([*others, "lm_head"], "cpu")
    places |= {f"{blocks}.0": "cpu", f"{blocks}.1": "disk", f"{blocks}.2": "disk"}
    if family is tiny_gpt2:
        places["transformer.drop"] = "cpu"
    if embedding_on_disk:
        places[others[0]] = places["lm_head"] = "disk"
    whole = lm.DepthModel(family().double())
    hf = accelerate.dispatch_model(
        family().double(), places, main_device="cpu", offload_dir=tmp_path
    )
    assert next(hf.get_submodule(f"{blocks}.1").parameters()).is_meta
    spread = lm.DepthModel(hf)
    assert spread.fingerprint == whole.fingerprint
    a, b = spread.run(IDS), whole.run(IDS)
    np.testing.assert_array_equal(a.states, b.states)
    V = np.random.default_rng(0).standard_normal((3, 16))
    for layer in range(3):
        torch.testing.assert_close(a.jvp(layer, V), b.jvp(layer, V), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a.vjp(layer, V), b.vjp(layer, V), rtol=1e-12, atol=1e-12)


def test_int8_weights():
    """Quanto's int8 weights, computed in float32: exact for the quantised model."""
    quanto = pytest.importorskip("optimum.quanto")
    hf = tiny_llama(hidden_size=32, intermediate_size=32)
    plain = lm.DepthModel(tiny_llama(hidden_size=32, intermediate_size=32)).run(IDS[:1])
    quanto.quantize(hf, weights=quanto.qint8)
    quanto.freeze(hf)
    model = lm.DepthModel(hf)
    run = model.run(IDS[:1])
    expected = whole_sequence.jacobians(hf, IDS[0], dtype=torch.float32)
    for layer, J in enumerate(expected):
        assert abs(run.jacobian(layer)[0].numpy() - J).max() < 1e-5 * abs(J).max()
        # the quantisation shows, so the quantised weights were used
        assert abs(plain.jacobian(layer)[0].numpy() - J).max() > 1e-3 * abs(J).max()


def test_the_fingerprint_sees_quantised_weights():
    quanto = pytest.importorskip("optimum.quanto")
    prints = set()
    for change in (0.0, 1.0):
        hf = tiny_llama()
        hf.model.layers[1].mlp.up_proj.weight.data[0, 0] += change
        quanto.quantize(hf, weights=quanto.qint8)
        quanto.freeze(hf)
        prints.add(lm.DepthModel(hf).fingerprint)
    assert len(prints) == 2
