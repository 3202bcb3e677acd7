"""GPU and CPU give the same numbers, to the tolerances of `TOLERANCE`.

Run with ``python -m pytest -m gpu tests/lm/test_gpu.py``; skipped, with the reason, without a GPU.
"""

import copy
import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm
from depthsys.lm import switch
from tests import card
from tests.conftest import TINY

pytestmark = pytest.mark.gpu

# "card" is a pretend one, see tests/card.py
DEVICE = os.environ.get("DEPTHSYS_TEST_DEVICE", "cuda")
if DEVICE == card.NAME:
    card.setup()
IDS = [[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8], [7], [1, 2]]

# Largest difference between GPU and CPU over the largest value, per quantity. float64 is limited
# by the norms and rotary tables of Llama, which Hugging Face computes in float32. TF32 rounds the
# factors of every product to 11 bits; its limits are 4 to 10 times what the same rounding, imitated
# on a CPU, gives for these models.
TOLERANCE = {
    ("gpt2", "float64"): {"states": 1e-12, "derivatives": 1e-11, "measured": 1e-9},
    ("llama", "float64"): {"states": 1e-6, "derivatives": 1e-5, "measured": 1e-4},
    ("gpt2", "float32"): {"states": 1e-5, "derivatives": 2e-5, "measured": 1e-4},
    ("llama", "float32"): {"states": 1e-5, "derivatives": 2e-5, "measured": 1e-4},
    ("gpt2", "TF32"): {"states": 1e-2, "derivatives": 0.02, "measured": 0.05},
    ("llama", "TF32"): {"states": 1e-2, "derivatives": 0.1, "measured": 0.05},
}


@dataclass(frozen=True)
class Pair:
    """The same random model on the CPU and on the GPU."""

    cpu: lm.DepthModel
    gpu: lm.DepthModel
    limits: dict[str, float]

    def check(self, kind: str, function) -> None:
        """``function(model)`` must give the same arrays on both."""
        for name, (ours, expected) in _common(function(self.gpu), function(self.cpu)).items():
            assert ours.shape == expected.shape, name
            assert np.isfinite(ours).all(), name
            limit = self.limits[kind] * abs(expected).max()
            np.testing.assert_allclose(ours, expected, rtol=0, atol=limit, err_msg=name)


def _common(ours: dict, expected: dict) -> dict:
    assert ours.keys() == expected.keys()
    return {name: (_array(ours[name]), _array(expected[name])) for name in expected}


def _array(values: torch.Tensor | xr.DataArray) -> np.ndarray:
    return values.double().cpu().numpy() if isinstance(values, torch.Tensor) else values.values


@pytest.fixture(scope="module")
def device() -> str:
    if torch.device(DEVICE).type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch.cuda.is_available() is False")
    return DEVICE


@pytest.fixture(scope="module", params=list(TOLERANCE), ids="-".join)
def pair(request, device):
    family, precision = request.param
    hf = TINY[family]()
    hf = hf.double() if precision == "float64" else hf
    products = "float32"
    if precision == "TF32":
        if not switch.has_tf32(torch.device(device)):
            pytest.skip(f"{device} has no TF32")
        products = "tf32"
    there = lm.DepthModel(copy.deepcopy(hf).to(device), products=products)
    return Pair(lm.DepthModel(hf), there, TOLERANCE[request.param])


def directions(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_states(pair):
    pair.check("states", lambda model: {"states": model.run(IDS).states})


@pytest.mark.parametrize("layer", [0, 2])
def test_maps_of_a_block(pair, layer):
    shared, own = directions(0, 3, 16), directions(1, len(IDS), 3, 16)

    def maps(model):
        run = model.run(IDS)
        return {
            "jvp": run.jvp(layer, shared),
            "jvp, a direction per prompt": run.jvp(layer, own),
            "vjp": run.vjp(layer, shared),
            "jacobian": run.jacobian(layer),
        }

    pair.check("derivatives", maps)


def test_maps_stay_on_the_gpu(pair):
    assert pair.gpu.run(IDS).jacobian(1).device.type == torch.device(DEVICE).type


def test_mean_products(pair, tokens):
    V = xr.DataArray(directions(2, 3, 2, 16), dims=("layer", "direction", "feature"))
    pair.check("derivatives", lambda model: {"forward": lm.mean_jvp(model, tokens, V)})
    pair.check("derivatives", lambda model: {"back": lm.mean_vjp(model, tokens, V)})


def test_linear_gains(pair, tokens, concept):
    def gains(model):
        found = lm.linear_gains(model, tokens, concept)
        return {name: found[name] for name in ("gain", "state_norm", "readout")}

    pair.check("derivatives", gains)


@pytest.mark.parametrize("relative", [False, True])
def test_measured_gains(pair, tokens, concept, relative):
    step = {"relative": relative}
    if pair.gpu.products == "tf32":
        if not relative:
            pytest.skip("the same with an absolute step, which must be large here")
        step["eps"] = 0.2  # a smaller one is refused
    pair.check(
        "measured", lambda model: {"gain": lm.measure_gains(model, tokens, concept, **step).gain}
    )


@pytest.mark.parametrize("per_prompt", [False, True])
def test_identification(pair, tokens, concept, per_prompt):
    def system(model):
        found = lm.identify(model, tokens, concept, lm.Krylov(3), per_prompt=per_prompt)
        names = ("A", "B", "C", "x_ref", "y_ref", "state_norm", "gain_full")
        # a basis vector is fixed up to rounding over the length of its new part, so V is not
        # compared but what it spans
        basis = found["V"].rename(feature="other", state="s")
        projector = xr.dot(basis, found["V"].rename(state="s"), dim="s")
        return {name: found[name] for name in names} | {"V V'": projector}

    pair.check("derivatives", system)


def test_results_name_the_device(pair, tokens, concept):
    found = lm.linear_gains(pair.gpu, tokens, concept)
    assert found.attrs["device"].startswith(DEVICE)
    assert lm.linear_gains(pair.cpu, tokens, concept).attrs["device"] == "cpu"


def test_blocks_on_two_devices_give_the_same_numbers():
    """accelerate's map over a GPU and the CPU: each block is replayed where its weights are."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    accelerate = pytest.importorskip("accelerate")
    others = ("wte", "wpe", "drop", "ln_f")
    places = {f"transformer.{name}": 0 for name in others} | {"lm_head": 0}
    places |= {"transformer.h.0": 0, "transformer.h.1": "cpu", "transformer.h.2": 0}
    hf = accelerate.dispatch_model(TINY["gpt2"]().double(), places, main_device=0)
    spread, whole = lm.DepthModel(hf), lm.DepthModel(TINY["gpt2"]().double())
    a, b = spread.run(IDS), whole.run(IDS)
    np.testing.assert_allclose(a.states, b.states, rtol=1e-10, atol=1e-12)
    V = np.eye(16)[:3]
    for layer in range(3):
        assert a.jvp(layer, V).is_cuda
        np.testing.assert_allclose(a.jvp(layer, V).cpu(), b.jvp(layer, V), atol=1e-10)
        np.testing.assert_allclose(a.vjp(layer, V).cpu(), b.vjp(layer, V), atol=1e-10)


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("positions", ["last", "generated", "every", lm.After([1])], ids=str)
def test_steered_texts(family, positions, device, concept):
    """A static cache would be compiled on a GPU, with the pushes of the first pass."""
    hf = TINY[family]().double()
    hf.generation_config.eos_token_id = None
    models = lm.DepthModel(hf), lm.DepthModel(copy.deepcopy(hf).to(device))
    plan = xr.Dataset({"u": ("layer", [1.5, -2.5, 2.0])})
    prompts = [[3, 1, 4, 7], [1, 6, 5]]
    for cache in (None, "static"):
        options = {"max_new_tokens": 6, "cache_implementation": cache}
        found = []
        for model in models:
            with lm.steering(model, concept, plan, positions=positions):
                found.append(model.new_tokens(prompts, **options))
        assert found[0] == found[1]


# ------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("family", TINY)
def test_the_fingerprint_is_that_of_the_cpu(family, dtype, device):
    hf = TINY[family]().to(getattr(torch, dtype))
    there = lm.DepthModel(copy.deepcopy(hf).to(device))
    assert there.fingerprint == lm.DepthModel(hf).fingerprint
    hf.get_output_embeddings().weight.data[0, 0] = np.nan
    with pytest.raises(ValueError, match="must have finite weights"):
        lm.DepthModel(hf.to(device))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", TINY)
def test_sixteen_bits(family, dtype, device, tokens, concept):
    """Everything that is allowed in them; what it gives is that of the same weights in float32."""
    rounded = TINY[family]().to(getattr(torch, dtype))
    model = lm.DepthModel(copy.deepcopy(rounded).to(device))
    exact = lm.DepthModel(rounded.float())
    plan = xr.DataArray(np.ones(3), dims="layer")

    def results(m):
        run = m.run(tokens.ids)
        return {
            "states": run.states,
            "linear gains": lm.linear_gains(run, concept).gain,
            "identified": lm.identify(run, concept, lm.Ensemble(order=1)).B,
            "Krylov": lm.identify(run, concept, lm.Krylov(2)).gain_full,
            "jacobians": lm.jacobians(run).A,
            "played": lm.play(run, concept, plan).response,
        }

    eps = torch.finfo(getattr(torch, dtype)).eps
    for name, (ours, expected) in _common(results(model), results(exact)).items():
        error = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
        assert error < 60 * eps, name
    with pytest.raises(ValueError, match="Use a larger step or float32"):
        lm.measure_gains(model, tokens.ids, concept)
    with lm.steering(model, concept, plan.to_dataset(name="u"), positions="generated"):
        assert len(model.new_tokens([[3, 1, 4]], max_new_tokens=3)[0]) > 0


def test_tf32_is_a_choice(device, tokens, concept):
    """A GPU without it refuses; with it, results say so and are those of float32 but for it."""
    hf = TINY["llama"]()
    if not switch.has_tf32(torch.device(device)):
        with pytest.raises(ValueError, match="which has no TF32"):
            lm.DepthModel(hf.to(device), products="tf32")
        return
    exact = lm.DepthModel(copy.deepcopy(hf))
    model = lm.DepthModel(hf.to(device), products="tf32")
    found, wanted = (lm.linear_gains(m, tokens.ids, concept) for m in (model, exact))
    assert found.attrs["products"] == "tf32"
    error = abs(found.gain - wanted.gain).max() / abs(wanted.gain).max()
    assert 1e-6 < error < TOLERANCE["llama", "TF32"]["derivatives"]


def test_the_switch_of_the_process_changes_nothing(device, tokens, concept):
    model = lm.DepthModel(TINY["llama"]().to(device))
    expected = lm.linear_gains(model, tokens.ids, concept).gain
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = lm.linear_gains(model, tokens.ids, concept).gain
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(abs(expected).max()))
