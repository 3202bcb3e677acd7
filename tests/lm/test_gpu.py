"""GPU and CPU give the same numbers, to the tolerances of `TOLERANCE`.

Run with ``python -m pytest -m gpu tests/lm/test_gpu.py``; skipped, with the reason, without a GPU.
"""

import copy
import importlib
import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import demo, lm, ltv
from depthsys.lm import switch
from depthsys.lm.orthonormal import new_columns
from depthsys.study.dask_crew import portable, restored
from tests import card
from tests.conftest import TINY
from tests.lm import families
from tests.lm.conftest import spoil_states

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


def test_blocks_on_two_devices_give_the_same_numbers(device):
    """accelerate's map over a GPU and the CPU: its weights are brought to the GPU."""
    accelerate = pytest.importorskip("accelerate")
    others = ("wte", "wpe", "drop", "ln_f")
    places = {f"transformer.{name}": device for name in others} | {"lm_head": device}
    places |= {"transformer.h.0": device, "transformer.h.1": "cpu", "transformer.h.2": device}
    hf = accelerate.dispatch_model(TINY["gpt2"]().double(), places, main_device=device)
    spread, whole = lm.DepthModel(hf), lm.DepthModel(TINY["gpt2"]().double())
    a, b = spread.run(IDS), whole.run(IDS)
    np.testing.assert_allclose(a.states, b.states, rtol=1e-10, atol=1e-12)
    V = np.eye(16)[:3]
    for layer in range(3):
        assert a.jvp(layer, V).device.type == torch.device(device).type
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


# ------------------------------------------------------- without waiting for the device


METHODS = [lm.Balanced(3), lm.Arnoldi(3), lm.Pod(3), lm.Ensemble(3)]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_methods(pair, tokens, concept, method):
    """Their recursions run on the device there, and in numpy on the CPU."""

    def found(model):
        system = lm.identify(model, tokens, concept, method)
        io = ltv.io_matrix(system)
        return {"io": io} | {name: system[name] for name in ("gain_full", "y_ref", "state_norm")}

    # POD has the directions of measured deviations, near the rounding of small ones
    pair.check("measured" if method.name == "pod" else "derivatives", found)


@pytest.mark.parametrize("place", ["device", "host", "file", "again"])
def test_places_of_the_context(pair, tokens, concept, place):
    """Copies through pinned memory, on a stream of their own, give what was put away."""
    budget = {
        "device": lm.Budget(),
        "host": lm.Budget(device=0),
        "file": lm.Budget(device=0, host=0),
        "again": lm.Budget(device=0, host=0, file=0),
    }[place]
    run, whole = pair.gpu.run(tokens, budget=budget), pair.gpu.run(tokens)
    assert (run.place, whole.place) == (place, "device")
    V = directions(3, 2, 16)
    for _ in range(2):
        for layer in (0, 1, 2, 1):
            ours, expected = (r.jvp(layer, V).double().cpu().numpy() for r in (run, whole))
            np.testing.assert_allclose(ours, expected, atol=1e-6 * abs(expected).max())
    ours, expected = (lm.exact_system(r, concept).gain_full for r in (run, whole))
    limit = 1e-4 * float(abs(expected).max())
    np.testing.assert_allclose(ours, expected, rtol=0, atol=limit)


@pytest.mark.parametrize("place", ["host", "file"])
def test_hidden_states_wait_beside_the_device(pair, tokens, concept, place):
    """Where contexts are computed again, and the device has no room for the states either."""
    budget = lm.Budget(device=0, host=None if place == "host" else 0)
    run = pair.gpu.run(tokens, budget=budget, contexts=False)
    assert run.place_of(1) == place
    ours, expected = (lm.exact_system(r, concept) for r in (run, pair.gpu.run(tokens)))
    limit = 1e-4 * float(abs(expected.gain_full).max())
    np.testing.assert_allclose(ours.gain_full, expected.gain_full, rtol=0, atol=limit)


def test_nothing_waits_between_layers(device, tokens, concept):
    """torch refuses whatever makes the host wait, but for the copies before and after."""
    if torch.device(DEVICE).type != "cuda":
        pytest.skip("torch tells of CUDA only")
    model = lm.DepthModel(TINY["gpt2"]().to(device))
    run = model.run(tokens)
    lm.exact_system(run, concept)
    blocks = run.batches[0].blocks
    torch.cuda.set_sync_debug_mode("error")
    try:
        for block in blocks:
            block.linearised().jvp(block.x[:, None])
            block.linearised().vjp(block.x[:, None])
            columns = block.x.double().mT[None, :, :1].expand(1, -1, 3).contiguous()
            new_columns(columns[..., :0], columns, 1e-9)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_states_that_are_not_finite_are_refused(device, monkeypatch):
    model = lm.DepthModel(TINY["gpt2"]().to(device))
    spoil_states(monkeypatch, 1, (2,))
    with pytest.raises(FloatingPointError, match="after layer 1, of the prompts number 2"):
        model.run(IDS)
    run = model.run(IDS, budget=lm.Budget(device=0, host=0, file=0))
    with pytest.raises(FloatingPointError, match="after layer 1, of the prompts number 2"):
        lm.jacobians(run)


def test_all_prompts_in_one_batch(pair):
    """Of lengths 1 to 8, padded: how many go together is told by the memory that is free."""
    ids = [[1 + (7 * i + 3 * j) % 49 for j in range(1 + i % 8)] for i in range(48)]
    assert len(pair.gpu.run(ids).numbers) == 1 < len(pair.cpu.run(ids).numbers)
    pair.check("states", lambda model: {"states": model.run(ids).states})
    pair.check("derivatives", lambda model: {"A": lm.jacobians(model, ids).A})


def test_jacobians_of_a_few_prompts_at_a_time(pair, tokens, monkeypatch):
    def each(model):
        found = lm.jacobians(model, tokens, per_prompt=True)
        return {"A": found.A, "x_ref": found.x_ref}

    pair.check("derivatives", each)
    # the function hides its module
    module = importlib.import_module("depthsys.lm.jacobians")
    monkeypatch.setattr(module, "whole_jacobians", lambda *_: 3)
    pair.check("derivatives", each)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt", "phi", "bloom", "stablelm"])
@pytest.mark.parametrize("count", [1, 3])
def test_products_through_layer_norms(name, count, device):
    """Their second derivative is our own there, and torch's on the CPU."""
    here = lm.DepthModel(families.make(name)).run(IDS[:2]).batches[0]
    there = lm.DepthModel(families.make(name).to(device)).run(IDS[:2]).batches[0]
    V = torch.randn(2, count, families.N_FEATURES, dtype=torch.float64)
    limit = 1e-5 if families.FAMILIES[name].single else 1e-11
    for block, same in zip(there.blocks, here.blocks, strict=True):
        for which in ("jvp", "vjp"):
            expected = getattr(same, which)(V).numpy()
            found = getattr(block, which)(V.to(device)).cpu().numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=limit * abs(expected).max())


@pytest.fixture(scope="module")
def offloaded(device):
    """A model whose last two blocks wait in the memory of the host, and the same on the CPU."""
    accelerate = pytest.importorskip("accelerate")
    places = dict.fromkeys(
        ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0"],
        device,
    )
    places |= {"model.layers.1": "cpu", "model.layers.2": "cpu"}
    hf = accelerate.dispatch_model(TINY["llama"]().double(), places, main_device=device)
    cpu = lm.DepthModel(TINY["llama"]().double())
    return Pair(cpu, lm.DepthModel(hf), TOLERANCE["llama", "float64"])


def test_offloaded_weights_are_the_models_own(offloaded):
    assert offloaded.gpu.fingerprint == offloaded.cpu.fingerprint
    assert offloaded.gpu.blocks.residence.moves


def test_offloaded_layers_move_once_per_sweep(offloaded, tokens, concept):
    residence = offloaded.gpu.blocks.residence

    def moved(work) -> list[int]:
        before = list(residence.n_moves)
        work()
        return [now - then for now, then in zip(residence.n_moves, before, strict=True)]

    run = offloaded.gpu.run(tokens.ids)
    assert moved(lambda: offloaded.gpu.run(tokens.ids)) == [0, 1, 1]
    assert moved(lambda: lm.measure_gains(run, concept)) == [0, 1, 1]
    assert moved(lambda: lm.linear_gains(run, concept)) == [0, 1, 1]
    assert moved(lambda: lm.identify(run, concept, lm.Krylov(3))) == [0, 1, 1]
    assert moved(lambda: lm.jacobians(run)) == [0, 1, 1]


@pytest.mark.parametrize("place", ["kept", "again"])
def test_offloaded_blocks_give_the_same_numbers(offloaded, tokens, concept, place):
    budget = lm.Budget(device=0, host=0, file=0) if place == "again" else None

    def found(model):
        run = model.run(tokens.ids, budget=budget)
        system = lm.identify(run, concept, lm.Krylov(3))
        return {
            "gain": lm.linear_gains(run, concept).gain,
            "A": system["A"],
            "Jacobians": lm.jacobians(run)["A"],
            "io": lm.identify(run, concept, lm.Ensemble())["gain_full"],
        }

    offloaded.check("derivatives", found)
    played = xr.DataArray(np.full(3, 0.5), dims="layer")
    offloaded.check(
        "measured",
        lambda model: {
            "gain": lm.measure_gains(model.run(tokens.ids, budget=budget), concept).gain,
            "play": lm.play(model.run(tokens.ids, budget=budget), concept, played).response,
        },
    )


def test_offloaded_weights_leave_the_gpu(device):
    """Memory after a sweep is that before it: no graph holds the weights that came."""
    accelerate = pytest.importorskip("accelerate")
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6}
    hf = TINY["llama"](**sizes, num_attention_heads=8, num_key_value_heads=8)
    places = dict.fromkeys(
        ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], device
    )
    places |= {f"model.layers.{layer}": "cpu" for layer in range(6)}
    model = lm.DepthModel(accelerate.dispatch_model(hf, places, main_device=device))
    run = model.run([[1, 2, 3], [4, 5], [6]], budget=lm.Budget(device=0))
    v = np.random.default_rng(0).standard_normal((7, 256))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    layer = model.blocks.residence.nbytes(0)
    has_bytes = torch.device(device).type == "cuda"  # the pretend card counts none
    before = torch.cuda.memory_allocated(device) if has_bytes else 0
    if has_bytes:
        torch.cuda.reset_peak_memory_stats(device)
    lm.linear_gains(run, concept)
    lm.measure_gains(run, concept)
    lm.identify(run, concept, lm.Balanced(2), per_prompt=True)
    assert all(p.is_meta for p in hf.model.layers.parameters())
    if not has_bytes:
        return
    # never all of them together
    assert torch.cuda.max_memory_allocated(device) - before < 4 * layer
    assert torch.cuda.memory_allocated(device) - before < layer


def test_a_model_is_read_to_where_its_weights_are_to_be(device):
    """device_map="auto", with room for a part of it."""
    path = demo.model_path("demo_48x4")
    whole = lm.DepthModel.load(path, device="cpu")
    block = sum(p.nbytes for p in whole.hf.transformer.h[0].parameters())
    room = sum(p.nbytes for p in whole.hf.parameters()) - block
    model = lm.DepthModel.load(path, device=device, device_map="auto", max_memory={0: room})
    assert model.fingerprint == whole.fingerprint
    assert [model.blocks.residence.nbytes(layer) > 0 for layer in range(4)] == [
        *(False, True, True, True)
    ]
    expected = whole.run(IDS).states
    limit = TOLERANCE["gpt2", "float32"]["states"] * float(abs(expected).max())
    np.testing.assert_allclose(model.run(IDS).states, expected, rtol=0, atol=limit)
    if torch.device(device).type == "cuda":
        waiting = model.hf.transformer.h[1].mlp.c_fc._hf_hook.weights_map["weight"]
        assert waiting.is_pinned()


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


class Sent(lm.Here):
    """What goes to other processes and comes back lies in the memory of the host."""

    def each(self, run, function, shards, args, own):
        args = restored(portable(tuple(args), run.model), run.model)
        for found in super().each(run, function, shards, args, own):
            sent = portable(found, run.model)
            assert all(tensor.device.type == "cpu" for tensor in tensors_in(sent))
            yield restored(sent, run.model)


def tensors_in(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inside = list(value) if isinstance(value, (tuple, list)) else []
    inside += list(getattr(value, "__dict__", {}).values())
    return [tensor for one in inside for tensor in tensors_in(one)]


@pytest.mark.parametrize("crew", [lm.Here, Sent])
def test_a_run_in_shards_is_that_of_all_prompts(pair, crew):
    """The batches of the shards are others, so equal to rounding."""
    model = pair.gpu
    whole, sharded = model.run(IDS), lm.ShardedRun(model, IDS, shard=3, crew=crew())
    v = np.random.default_rng(0).standard_normal((model.n_layers + 1, model.n_features))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    limit = pair.limits["derivatives"]
    for method in (lm.Ensemble(order=2), lm.Balanced(order=2), lm.Arnoldi(order=2)):
        found, expected = (lm.identify(run, concept, method) for run in (sharded, whole))
        for name in ("gain_full", "y_ref", "state_norm"):
            scale = float(abs(expected[name]).max())
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=limit * scale)
    found, expected = (lm.linear_gains(run, concept)["gain"] for run in (sharded, whole))
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit * float(abs(expected).max()))
