"""Measured gain curve: batched replay against one hooked forward per layer and sign.

Run with `make bench`. Ratios are printed, not asserted: the machine is shared.
Both ways give the same numbers to 1e-4 of the largest gain, and that is asserted.
"""

import time

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import GPT2Config, GPT2LMHeadModel

from depthsys import lm
from tests.lm import whole_sequence

SHAPES = {"GPT-2": (768, 12, 12), "GPT-2-medium": (1024, 24, 16)}
N_TOKENS, EPS = 64, 0.1


def random_model(shape: str) -> lm.DepthModel:
    torch.manual_seed(0)
    width, layers, heads = SHAPES[shape]
    config = GPT2Config(n_embd=width, n_layer=layers, n_head=heads)
    return lm.DepthModel(GPT2LMHeadModel(config), name=f"random {shape}")


def random_concept(model: lm.DepthModel) -> xr.Dataset:
    v = np.random.default_rng(0).standard_normal((model.n_layers + 1, model.n_features))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return xr.Dataset({"direction": (("depth", "feature"), v)})


class Ids(list):
    sha256 = "random ids"


def hooked_gains(hf, ids: torch.Tensor, v: torch.Tensor) -> np.ndarray:
    """The usual way: the whole sequence, once per layer and sign."""
    blocks = whole_sequence.blocks(hf)
    n_layers, out = len(blocks), []
    handle = blocks[-1].register_forward_hook(lambda m, a, o: out.append(o[:, -1] @ v[-1]))
    gains = []
    with torch.no_grad():
        for layer in range(n_layers):
            for sign in (1, -1):
                with whole_sequence.pushed(hf, {layer: sign * EPS * v[layer]}):
                    hf.transformer(ids, use_cache=False)
            gains.append((out[-2] - out[-1]) / (2 * EPS))
    handle.remove()
    return torch.stack(gains, dim=1).double().numpy()


@pytest.mark.parametrize(
    ("shape", "n_prompts"), [("GPT-2", 4), ("GPT-2-medium", 1), ("GPT-2-medium", 4)]
)
def test_measured_gain_curve(shape, n_prompts):
    model = random_model(shape)
    concept = random_concept(model)
    v = model.directions(concept)
    rng = np.random.default_rng(1)
    ids = Ids(rng.integers(0, 50_000, size=(n_prompts, N_TOKENS)).tolist())
    lm.measure_gains(model, ids, concept, eps=EPS)  # warm up
    ours_s, theirs_s = [], []
    for _ in range(3):
        start = time.perf_counter()
        ours = lm.measure_gains(model, ids, concept, eps=EPS).gain.values
        ours_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        theirs = hooked_gains(model.hf, torch.tensor(ids), v)
        theirs_s.append(time.perf_counter() - start)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * abs(theirs).max())
    L = model.n_layers
    print(
        f"\n{shape}, T={N_TOKENS}, {n_prompts} prompts: replay {min(ours_s):.2f} s, "
        f"hooked {min(theirs_s):.2f} s, ratio {min(theirs_s) / min(ours_s):.1f} "
        f"(token counts: {2 * L * N_TOKENS / (N_TOKENS + L):.1f}); "
        f"largest difference {abs(ours - theirs).max() / abs(theirs).max():.1e}"
    )
