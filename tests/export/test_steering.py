import functools
import json
import os
import sys

import gguf
import numpy as np
import pytest
import torch
import xarray as xr
from safetensors import safe_open
from safetensors.numpy import load_file

from depthsys import lm, ltv
from depthsys.export.steering import injections, to_gguf, to_safetensors, unexpressed
from tests.export.conftest import N_LAYERS

# GPT-2 in float64: the files in float32 are what rounds
SINGLE = 1e-5


def directions(n_inputs: int) -> xr.Dataset:
    v = np.random.default_rng(n_inputs).standard_normal((N_LAYERS + 1, n_inputs, 16))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return xr.Dataset({"direction": (("depth", "input", "feature"), v)})


def identified(model, ids, n_inputs):
    concept = directions(n_inputs)
    method = lm.Krylov(order=3)
    return lm.identify(model, ids, concept, method), concept


@pytest.fixture(scope="module")
def one(model, ids):
    return identified(model, ids, 1)


@pytest.fixture(scope="module")
def two(model, ids):
    return identified(model, ids, 2)


def random_plan(n_inputs, first=0, **attrs):
    u = np.random.default_rng(7).standard_normal((N_LAYERS, n_inputs))
    u[:first] = 0.0
    return xr.Dataset({"u": (("layer", "input"), u)}, attrs=attrs)


@pytest.fixture
def system():
    """Made by hand, three layers, one input along a direction in the plane."""
    s = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=3)
    turn = np.linspace(0, 1, 4)
    v = np.stack([np.cos(turn), np.sin(turn)], axis=1)[:, :, None]
    return s.assign(v=(("depth", "feature", "input"), v))


@pytest.fixture
def plan():
    return xr.Dataset({"u": ("layer", [0.0, 0.0, 3.0])})


# The oracle: whole sequences through the Hugging Face model, hooks, nothing from depthsys.


def run(model, row, before=(), after=()) -> torch.Tensor:
    """State of the last token after the last block; hooks as (block, hook) pairs."""
    blocks = model.hf.transformer.h
    out = []

    def read(module, args, hidden):
        out.append((hidden[0] if isinstance(hidden, tuple) else hidden)[0, -1])

    handles = [blocks[i].register_forward_pre_hook(hook) for i, hook in before]
    handles += [blocks[i].register_forward_hook(hook) for i, hook in after]
    handles.append(blocks[-1].register_forward_hook(read))
    try:
        with torch.no_grad():
            model.hf(torch.tensor([row]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return out[0]


def at_input(block, args, push):
    x = args[0].clone()
    x[:, -1] += push
    return (x, *args[1:])


def at_output(block, args, hidden, push, tokens):
    x = (hidden[0] if isinstance(hidden, tuple) else hidden).clone()
    x[:, tokens] += push
    return (x, *hidden[1:]) if isinstance(hidden, tuple) else x


def shifts(model, ids, concept, **hooks) -> np.ndarray:
    """(prompt, output) shift of v_L' x_L; every direction is an output."""
    v = concept.direction.values[-1]
    return np.array([v @ (run(model, row, **hooks) - run(model, row)).numpy() for row in ids.ids])


def steered_at_input(model, ids, concept, pushes):
    hooks = [
        (i, functools.partial(at_input, push=torch.tensor(p).double()))
        for i, p in enumerate(pushes)
    ]
    return shifts(model, ids, concept, before=hooks)


def steered_by_llama_cpp(model, ids, concept, path, tokens):
    """What llama.cpp does with the file, at the given tokens (it does it at all of them)."""
    hooks = []
    for tensor in gguf.GGUFReader(path).tensors:
        push = torch.tensor(np.array(tensor.data)).double()
        block = int(tensor.name.removeprefix("direction."))
        hooks.append((block, functools.partial(at_output, push=push, tokens=tokens)))
    return shifts(model, ids, concept, after=hooks)


def played(model, ids, concept, plan):
    response = lm.play(model, ids, concept, plan).response.isel(scale=0)
    return response.values.reshape(len(ids), -1)


def close(got, expected, rtol):
    np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * abs(expected).max())


# Safetensors


@pytest.mark.parametrize("n_inputs", [1, 2])
def test_hooks_that_add_the_vectors_of_the_file_do_what_play_says(
    model, ids, one, two, n_inputs, tmp_path
):
    system, concept = (one, two)[n_inputs - 1]
    plan = random_plan(n_inputs)
    to_safetensors(system, plan, tmp_path / "plan.safetensors")
    file = load_file(tmp_path / "plan.safetensors")
    expected = played(model, ids, concept, plan)
    close(steered_at_input(model, ids, concept, file["injection"]), expected, SINGLE)
    exact = np.einsum("lfi,li->lf", file["v"], file["u"])
    close(steered_at_input(model, ids, concept, exact), expected, 1e-9)
    close(exact, injections(system, plan).values, 1e-15)


def test_a_plan_of_relative_energy_is_in_the_unit_of_the_state_as_well(model, ids, one, tmp_path):
    """`compare_energies` weighs the layers by the norm of the state, and pushes with u v."""
    system, concept = one
    found = lm.compare_energies(model, ids, concept, system, 0.5, energy="relative")
    assert found.attrs["energy"] == "relative"
    assert found.u.dims == ("layer",)
    factor = float(np.sqrt(found.energy.sel(schedule="minimum_energy") / found.predicted_energy))
    reaching = xr.Dataset({"u": found.u * factor}, attrs=found.attrs)
    to_safetensors(system, reaching, tmp_path / "plan.safetensors")
    vectors = load_file(tmp_path / "plan.safetensors")["injection"]
    close(steered_at_input(model, ids, concept, vectors)[:, 0], found.response.values, SINGLE)
    with safe_open(tmp_path / "plan.safetensors", "numpy") as file:
        assert file.metadata()["energy"] == "relative"
        assert float(file.metadata()["target"]) == 0.5


def test_the_vectors_are_those_of_the_formula(system, plan):
    system = system.isel(input=[0, 0])
    system["v"] = system.v.dims, np.random.default_rng(0).standard_normal((4, 2, 2))
    u = xr.DataArray(np.random.default_rng(1).standard_normal((2, 3)), dims=["input", "layer"])
    found = injections(system, xr.Dataset({"u": u}))
    assert found.dims == ("layer", "feature")
    assert found.dtype == np.float64
    assert "last token" in found.attrs["hook"]
    for layer in range(3):
        expected = sum(u.values[i, layer] * system.v.values[layer, :, i] for i in range(2))
        np.testing.assert_allclose(found[layer], expected, rtol=1e-14)


def test_safetensors_hold_the_plan_and_say_where_it_belongs(model, two, tmp_path):
    system, _ = two
    plan = random_plan(2, energy="absolute", target=2.5, prompts_sha256="held out")
    path = tmp_path / "plan.safetensors"
    to_safetensors(system, plan, path)
    file = load_file(path)
    assert {name: (array.shape, str(array.dtype)) for name, array in file.items()} == {
        "injection": ((N_LAYERS, 16), "float32"),
        "u": ((N_LAYERS, 2), "float64"),
        "v": ((N_LAYERS, 16, 2), "float64"),
    }
    np.testing.assert_array_equal(file["u"], plan.u)
    np.testing.assert_array_equal(file["v"], system.v[:-1])
    np.testing.assert_array_equal(file["injection"], injections(system, plan).astype(np.float32))
    with safe_open(path, "numpy") as opened:
        about = opened.metadata()
    assert about["format"] == "depthsys steering plan"
    assert about["hook"] == "input of block l (= residual stream before it), last token only"
    assert about["layer_origin"] == "0"
    assert about["model"] == "tiny"
    assert about["model_fingerprint"] == model.fingerprint
    assert (about["energy"], about["target"]) == ("absolute", "2.5")
    assert about["prompts_sha256"] == system.attrs["prompts_sha256"]
    assert about["plan_prompts_sha256"] == "held out"
    assert len(json.loads(about["inputs"])) == 2


def test_a_plan_of_a_system_says_in_the_file_what_it_does(one, tmp_path):
    system, _ = one
    plan = ltv.minimum_energy(system.assign_attrs(classes='["sad", "glad"]'), 0.1, layers=[1, 2])
    to_safetensors(system, plan, tmp_path / "plan.safetensors")
    with safe_open(tmp_path / "plan.safetensors", "numpy") as opened:
        about = opened.metadata()
    told = {key: about[key] for key in ("operation", "positions", "energy", "layers", "sign")}
    assert told == {
        "operation": "add",
        "positions": "last",
        "energy": "relative",
        "layers": "[1, 2]",
        "sign": "u > 0 pushes towards 'glad', u < 0 towards 'sad'",
    }
    assert about["unit"].startswith("that of the state")
    assert about["model_fingerprint"] == plan.attrs["model_fingerprint"]
    with pytest.raises(ValueError, match="`plan` must be of the model of the system; got model_f"):
        injections(system, plan.assign_attrs(model_fingerprint="another"))


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        ("every", "every token"),
        ("generated", "last token of the prompt and every new token"),
        ("after 'Answer:'", "tokens: after 'Answer:'"),
    ],
)
def test_a_plan_for_other_tokens_says_which(system, plan, positions, said, tmp_path):
    plan = plan.assign_attrs(positions=positions)
    assert injections(system, plan).attrs["hook"].endswith(f"before it), {said}")
    to_safetensors(system, plan, tmp_path / "plan.safetensors")
    with safe_open(tmp_path / "plan.safetensors", "numpy") as opened:
        assert opened.metadata()["positions"] == positions
    to_gguf(system, plan, tmp_path / "plan.gguf")
    differs = "every token is pushed" in read(tmp_path / "plan.gguf")[1]["general.description"]
    assert differs == (positions != "every")


def test_a_law_is_no_set_of_vectors(system, plan):
    law = plan.assign_attrs(operation="feedback")
    with pytest.raises(ValueError, match="`plan` must add vectors; got operation 'feedback'"):
        injections(system, law)


def test_arrays_that_lie_otherwise_in_memory_are_written_in_their_order(system, plan, tmp_path):
    v = np.asfortranarray(system.v.values)
    to_safetensors(system.assign(v=(system.v.dims, v)), plan, tmp_path / "plan.safetensors")
    np.testing.assert_array_equal(load_file(tmp_path / "plan.safetensors")["v"], v[:-1])


# llama.cpp


def read(path) -> tuple[dict, dict]:
    reader = gguf.GGUFReader(path)
    about = {key: field.contents() for key, field in reader.fields.items()}
    return {tensor.name: np.array(tensor.data) for tensor in reader.tensors}, about


def test_a_control_vector_says_and_holds_what_llama_cpp_wants(two, tmp_path):
    system, _ = two
    plan = random_plan(2, first=2, energy="absolute")
    to_gguf(system, plan, tmp_path / "plan.gguf", model_hint="gpt2")
    tensors, about = read(tmp_path / "plan.gguf")
    assert list(tensors) == [f"direction.{n}" for n in range(1, N_LAYERS)]
    vectors = injections(system, plan).values
    for n in range(1, N_LAYERS):
        tensor = tensors[f"direction.{n}"]
        assert (tensor.shape, tensor.dtype) == ((16,), np.float32)
        expected = vectors[n + 1] if n + 1 < N_LAYERS else np.zeros(16)
        np.testing.assert_array_equal(tensor, expected.astype(np.float32))
    assert about["general.architecture"] == "controlvector"
    assert about["controlvector.model_hint"] == "gpt2"
    assert about["controlvector.layer_count"] == N_LAYERS - 1
    for difference in (
        "every token is pushed (the plan: last token only)",
        "output of block",
        "float32",
        "blocks 0 and 1",
    ):
        assert difference in about["general.description"]
    assert about["depthsys.model"] == "tiny"
    assert about["depthsys.energy"] == "absolute"
    assert "depthsys.dropped" not in about


@pytest.mark.parametrize("n_inputs", [1, 2])
def test_a_control_vector_at_the_last_token_is_the_plan_and_at_all_tokens_another(
    model, ids, one, two, n_inputs, tmp_path
):
    system, concept = (one, two)[n_inputs - 1]
    plan = random_plan(n_inputs, first=2)
    to_gguf(system, plan, tmp_path / "plan.gguf")
    expected = played(model, ids, concept, plan)
    last = steered_by_llama_cpp(model, ids, concept, tmp_path / "plan.gguf", slice(-1, None))
    close(last, expected, SINGLE)
    every = steered_by_llama_cpp(model, ids, concept, tmp_path / "plan.gguf", slice(None))
    differs = np.linalg.norm(every - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert differs[0] < SINGLE  # a prompt of one token has no others
    assert (differs[1:] > 0.05).all()


def test_the_cure_for_pushes_at_layers_0_and_1_cures(model, ids, one, tmp_path):
    system, concept = one
    plan = ltv.minimum_energy(system, 1.0)
    with pytest.raises(
        ValueError, match=r"% at layer 0 and .* % at layer 1 of the energy.*layers=r"
    ):
        to_gguf(system, plan, tmp_path / "plan.gguf")
    again = ltv.minimum_energy(system, 1.0, layers=range(2, N_LAYERS))
    to_gguf(system, again, tmp_path / "plan.gguf")
    last = steered_by_llama_cpp(model, ids, concept, tmp_path / "plan.gguf", slice(-1, None))
    close(last, played(model, ids, concept, again), SINGLE)
    assert json.loads(read(tmp_path / "plan.gguf")[1]["depthsys.target"]) == [1.0]


@pytest.mark.parametrize(
    ("energy", "norm", "said"),
    [
        ("absolute", None, "1 % at layer 0 and 3 % at layer 1 of the energy"),
        ("relative", [0.2, 1.0, 1.0, 7.0], "20.2 % at layer 0 and 2.42 % at layer 1 of the energy"),
    ],
)
def test_dropped_pushes_are_told_with_their_share(system, energy, norm, said, tmp_path):
    plan = xr.Dataset({"u": ("layer", np.sqrt([1.0, 3.0, 96.0]))}, attrs={"energy": energy})
    if norm:
        system["state_norm"] = "depth", norm
    with pytest.raises(ValueError, match=f"must not push at the inputs of blocks 0 and 1.*{said}"):
        to_gguf(system, plan, tmp_path / "plan.gguf")
    with pytest.raises(ValueError, match=r"leave them out with `drop=True` \(`--drop`\)"):
        to_gguf(system, plan, tmp_path / "plan.gguf")
    assert not list(tmp_path.iterdir())
    to_gguf(system, plan, tmp_path / "plan.gguf", drop=True)
    tensors, about = read(tmp_path / "plan.gguf")
    assert about["depthsys.dropped"] == said
    assert "controlvector.model_hint" not in about
    expected = injections(system, plan).values[2].astype(np.float32)
    np.testing.assert_array_equal(tensors["direction.1"], expected)
    assert not tensors["direction.2"].any()


def test_the_share_that_no_control_vector_expresses(system):
    plan = xr.Dataset({"u": ("layer", np.sqrt([1.0, 3.0, 96.0]))})
    found = unexpressed(system, plan)
    assert found.dims == ("layer",)
    assert found["layer"].values.tolist() == [0, 1]
    np.testing.assert_allclose(found, [0.01, 0.03], rtol=1e-12)
    norm = np.array([0.2, 1.0, 1.0, 7.0])
    weighed = unexpressed(
        system.assign(state_norm=("depth", norm)), plan.assign_attrs(energy="relative")
    )
    energy = plan["u"].values ** 2 / norm[:3] ** 2
    np.testing.assert_allclose(weighed, energy[:2] / energy.sum(), rtol=1e-12)


@pytest.mark.parametrize("u", [[0.0, 0.0, 1.0], [1e-9, -1e-9, 1.0], [0.0, 0.0, 0.0]])
def test_nothing_is_left_out_where_nothing_is_pushed(system, u):
    found = unexpressed(system, xr.Dataset({"u": ("layer", u)}))
    assert found.values.tolist() == [0, 0]


def test_a_system_of_one_layer_is_left_out_as_a_whole():
    system = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=1)
    system = system.assign(v=(("depth", "feature", "input"), np.ones((2, 1, 1))))
    found = unexpressed(system, xr.Dataset({"u": ("layer", [2.0])}))
    assert (found["layer"].values.tolist(), found.values.tolist()) == ([0], [1.0])


def test_one_layer_of_the_first_two_is_named_alone(system, tmp_path):
    plan = xr.Dataset({"u": ("layer", [0.0, 1.0, 1.0])})
    with pytest.raises(ValueError, match="got 50 % at layer 1 of the energy"):
        to_gguf(system, plan, tmp_path / "plan.gguf")


def test_relative_shares_need_the_norms_of_the_state(system, tmp_path):
    plan = xr.Dataset({"u": ("layer", [1.0, 1.0, 1.0])}, attrs={"energy": "relative"})
    with pytest.raises(ValueError, match="must hold 'state_norm'"):
        to_gguf(system, plan, tmp_path / "plan.gguf")


@pytest.mark.parametrize("u", [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
def test_a_control_vector_must_push_somewhere(system, u, tmp_path):
    plan = xr.Dataset({"u": ("layer", u)})
    with pytest.raises(ValueError, match="must push at the input of block 2 or a later one"):
        to_gguf(system, plan, tmp_path / "plan.gguf", drop=True)


# What is refused


@pytest.mark.parametrize("write", [to_safetensors, to_gguf])
def test_files_are_not_overwritten_unless_forced(system, plan, write, tmp_path):
    path = tmp_path / "plan"
    write(system, plan, path)
    with pytest.raises(FileExistsError, match="must not exist yet"):
        write(system, plan, path)
    before = path.read_bytes()
    write(system, plan * 2, path, force=True)
    assert path.read_bytes() != before
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan"]


@pytest.mark.parametrize("write", [to_safetensors, to_gguf])
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_says_who_may_read(system, plan, write, mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        write(system, plan, tmp_path / "plan")
    finally:
        os.umask(before)
    assert (tmp_path / "plan").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    ("write", "library"), [(to_safetensors, "safetensors.numpy"), (to_gguf, "gguf")]
)
def test_a_missing_library_is_named(system, plan, write, library, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, library, None)
    package = library.partition(".")[0]
    text = rf"`{write.__name__}` must find {package}; got .*`pip install 'depthsys\[export\]'` inst"
    with pytest.raises(ImportError, match=text):
        write(system, plan, tmp_path / "plan")


@pytest.mark.parametrize("write", [to_safetensors, to_gguf])
def test_pushes_must_fit_in_float32(system, plan, write, tmp_path):
    with pytest.raises(ValueError, match=r"must give pushes that fit in float32.* at layer 2"):
        write(system, plan * 1e39, tmp_path / "plan")


def test_systems_that_are_refused(system, plan):
    with pytest.raises(TypeError, match="`system` must be an xarray Dataset"):
        injections(None, plan)
    free = system.drop_vars("v").assign_attrs(inputs="free")
    with pytest.raises(ValueError, match=r"must hold the directions `v`.*\(inputs: free\)"):
        injections(free, plan)
    batch = system.assign(A=system.A.expand_dims(prompt=2))
    with pytest.raises(ValueError, match="`system` must have no batch dims for steering"):
        injections(batch, plan)
    batch = system.assign(v=system.v.expand_dims(prompt=2))
    with pytest.raises(ValueError, match="`v` must have no batch dims for steering"):
        injections(batch, plan)
    with pytest.raises(ValueError, match="must start at layer 0 for steering; got a window from"):
        injections(ltv.window(system, 1, 3), plan)


def test_plans_that_are_refused(system, plan):
    with pytest.raises(ValueError, match=r"must be a Dataset with the variable 'u'; got \['x'\]"):
        injections(system, plan.rename(u="x"))
    with pytest.raises(ValueError, match="must be a Dataset with the variable 'u'; got DataArray"):
        injections(system, plan.u)
    with pytest.raises(ValueError, match=r"`plan.u` must have dims .*'layer': 3"):
        injections(system, plan.isel(layer=slice(2)))
    with pytest.raises(ValueError, match=r"`plan.u` must be finite"):
        injections(system, plan.where(plan.u == 0))
    with pytest.raises(TypeError, match=r"`plan.u` must be real"):
        injections(system, plan.astype(complex))
    several = plan.expand_dims(schedule=2)
    with pytest.raises(ValueError, match=r"must be one schedule.*plan.isel\(schedule=0\)"):
        injections(system, several)
    with pytest.raises(ValueError, match=r"`plan.u` must have the labels of the system"):
        injections(system, plan.assign_coords(layer=[1, 2, 3]))
    marked = system.assign_attrs(model_fingerprint="a")
    with pytest.raises(ValueError, match="must be of the model of the system; got model_finger"):
        injections(marked, plan.assign_attrs(model_fingerprint="b"))
