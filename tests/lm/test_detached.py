"""Detached maps: against explicit formulas on whole sequences, and against values themselves."""

import functools
import importlib
import shutil
import threading

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from depthsys import lm, ltv
from depthsys.lm.hf.layer_norm import layer_norms, twice_derived
from depthsys.lm.linearize import PARTS
from tests.conftest import tiny_gpt2, tiny_llama
from tests.lm import families, whole_detached
from tests.lm.conftest import counted_block_calls, labelled_ids, several_inputs
from tests.lm.test_families import PROMPTS, worst

LINEAR = ("up", "gate")
REFUSED = {
    "falcon": "an attention of its own",
    "bloom": "an attention of its own",
    "mixtral": "experts",
    "qwen3_moe": "experts",
    "gpt_oss": "experts",
    "deepseek_v3": "an attention of its own",
}
LINEAR_FAMILIES = [name for name in families.FAMILIES if name not in REFUSED]
PLAIN = ("gpt2", "gpt_neo", "gptj", "gpt_neox", "opt", "phi")  # no gate: both choices are one
# both norms, with biases and without, before and behind; gates in one matrix, softcaps, tokens as
# rows, an attention of its own; the others are slow
QUICK = ("gpt2", "llama", "gemma2", "phi3", "cohere", "opt", "gptj")
# explicit formulas are written for these
EXPLICIT = ("gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "phi3", "cohere", "glm4", "stablelm")


def kind(part="block", linear="up"):
    return lm.Linearisation(part, "detached", linear)


@functools.cache
def run_of(name, attention="eager"):
    return lm.DepthModel(families.make(name, attention), name=name).run(PROMPTS)


def both_choices(names):
    return [
        pytest.param(name, linear, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in names
        for linear in LINEAR
        if linear == "up" or name not in PLAIN
    ]


# ------------------------------------------------------------------------------- which maps


@pytest.mark.parametrize(("name", "linear"), both_choices(EXPLICIT))
def test_maps_are_those_of_explicit_formulas(name, linear):
    run, hf = run_of(name), run_of(name).model.hf
    with whole_detached.detached(hf, linear):
        expected = np.stack([families.jacobians(hf, ids) for ids in PROMPTS], axis=1)
    for layer in range(run.n_layers):
        found = run.jacobian(layer, part=kind(linear=linear))
        assert worst(found, expected[layer]) < 5e-6  # Hugging Face's norms are of float32
        assert worst(found, run.jacobian(layer)) > 1e-2  # and they are not the Jacobians


@pytest.mark.parametrize("linear", LINEAR)
def test_maps_are_those_of_explicit_formulas_to_the_rounding_of_float64(linear):
    with families.double_inside():
        hf = families.make("llama")
        run = lm.DepthModel(hf).run(PROMPTS[:1])
        with whole_detached.detached(hf, linear):
            expected = families.jacobians(hf, PROMPTS[0])
        for layer in range(run.n_layers):
            found = run.jacobian(layer, part=kind(linear=linear))
            assert worst(found[0], expected[layer]) < 1e-13


def test_the_two_choices_are_two_maps_of_a_gated_block_and_one_of_a_plain_one():
    for name, differ in {"llama": True, "phi3": True, "gpt2": False}.items():
        up, gate = (run_of(name).jacobian(1, part=kind(linear=linear)) for linear in LINEAR)
        assert (worst(up, gate) > 1e-2) == differ


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj"])
def test_every_function_of_a_part_takes_it(name):
    run = run_of(name)
    V = np.random.default_rng(0).standard_normal((len(run), 3, 16))
    for part in PARTS:
        A = [run.jacobian(layer, part=kind(part)).numpy() for layer in range(run.n_layers)]
        assert worst(run.jvp(0, V, kind(part)), V @ A[0].swapaxes(1, 2)) < 1e-12
        assert worst(run.vjp(0, V, kind(part)), V @ A[0]) < 1e-12
        through = run.transition(0, 2, V, part=kind(part))
        assert worst(through, V @ (A[1] @ A[0]).swapaxes(1, 2)) < 1e-12
        mean = lm.jacobians(run, part=kind(part))
        assert worst(mean.A, np.mean(A, axis=1)) < 1e-12
        assert {k: mean.attrs[k] for k in ("part", "linearisation", "linear")} == {
            "part": part, "linearisation": "detached", "linear": "up",
        }  # fmt: skip
        operator = run.linear_operator(1, part=kind(part))
        np.testing.assert_allclose(operator @ V[0].T, A[1].mean(0) @ V[0].T, atol=1e-12)
    A = {part: run.jacobian(1, part=kind(part)) for part in PARTS}
    both = (
        A["mlp"] @ A["attention"] if name != "gptj" else A["mlp"] + A["attention"] - torch.eye(16)
    )
    assert worst(both, A["block"]) < 1e-6


def test_prompts_may_be_padded():
    model = lm.DepthModel(families.make("llama", "sdpa"), left_padding=True)
    padded = families.run_in_one_batch(model, PROMPTS)
    alone = model.run(PROMPTS[3:4])
    found = padded.jacobian(1, part=kind())[3]
    assert worst(found[None], alone.jacobian(1, part=kind())) < 1e-12
    errors = lm.reconstruction(padded)
    assert float(errors["stack"].max()) < 1e-12


# ------------------------------------------------------------------------------- values


@pytest.mark.parametrize(("name", "linear"), both_choices(LINEAR_FAMILIES))
def test_values_are_reproduced(name, linear):
    for attention in families.FAMILIES[name].attention[-1 if name in QUICK else 0 :]:
        found = lm.reconstruction(run_of(name, attention), linear=linear)
        for each in ("block", "attention", "mlp", "stack"):
            assert float(found[each].max()) < 1e-12
        has_biases = float(found["without_biases"].max()) > 0
        named = families.blocks(run_of(name).model.hf).named_parameters()
        assert has_biases == any("bias" in each for each, _ in named)


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 5e-6), (torch.bfloat16, 0.1), (torch.float16, 0.02)]
)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_values_are_reproduced_in_less_precise_numbers(name, dtype, most):
    run = lm.DepthModel(families.make(name, dtype=dtype)).run(PROMPTS)
    found = lm.reconstruction(run)
    for each in ("block", "stack"):
        assert 0 < float(found[each].max()) < most
    assert torch.isfinite(run.jacobian(1, part=kind())).all()


def test_a_block_with_an_unknown_factor_is_refused_in_16_bits_too():
    hf = tiny_llama()
    for layer in hf.model.layers:
        del layer.mlp.act_fn
        layer.mlp.act_fn = nn.functional.silu
        layer.mlp.down_proj.weight.data *= 20
    run = lm.DepthModel(hf.bfloat16()).run(PROMPTS)
    with pytest.raises(ValueError, match=r"where 1e-01 is allowed"):
        run.jacobian(0, part=kind())


def test_biases_matter():
    """Without them most of GPT-2's values are missed; the term is not what is left over."""
    found = lm.reconstruction(run_of("gpt2"))
    assert float(found["without_biases"].min()) > 0.05
    assert float(found["stack_without_biases"].max()) > 0.3
    hf = families.make("gpt2")
    for name, parameter in hf.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    without = lm.reconstruction(lm.DepthModel(hf), PROMPTS)
    assert float(without["stack"].max()) < 1e-12
    assert float(without["stack_without_biases"].max()) < 1e-12


def test_what_is_missing_of_the_stack_without_biases_is_that_of_the_dense_map_of_all_tokens():
    run, hf = run_of("gpt2"), run_of("gpt2").model.hf
    found = lm.reconstruction(run)["stack_without_biases"]
    blocks, ids = families.blocks(hf), PROMPTS[0]

    def last(embedded):
        ends = []
        first = blocks[0].register_forward_pre_hook(lambda m, a: (embedded, *a[1:]))
        end = blocks[-1].register_forward_hook(
            lambda m, a, o: ends.append((o[0] if isinstance(o, tuple) else o)[0, -1])
        )
        try:
            hf(torch.tensor([ids]), use_cache=False)
        finally:
            first.remove()
            end.remove()
        return ends[0]

    seen = []
    with blocks[0].register_forward_pre_hook(lambda m, a: seen.append(a[0])), torch.no_grad():
        hf(torch.tensor([ids]), use_cache=False)
    embedded = seen[0]
    with whole_detached.detached(hf, "up"):
        D = torch.autograd.functional.jacobian(last, embedded)[:, 0]  # (feature, token, feature)
        value = last(embedded).detach()
    missed = value - torch.einsum("itj,tj->i", D, embedded[0])
    assert float(found[0]) == pytest.approx(float(missed.norm() / value.norm()), rel=1e-5)


def test_values_of_zero_are_no_unknown_factors():
    """An embedding of zero, and blocks that write nothing: what is reproduced is exact."""
    hf = tiny_llama().double()
    hf.get_input_embeddings().weight.data[3] = 0
    for block in hf.model.layers:
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    model, prompts = lm.DepthModel(hf), [[5, 3], [7, 8, 3]]
    found = lm.reconstruction(model, prompts)
    for each in ("block", "attention", "mlp", "stack"):
        np.testing.assert_array_equal(found[each], 0)
    spectra = lm.detached_spectra(model, prompts, n_tokens=0)
    np.testing.assert_allclose(spectra["singular_value"], 1)
    np.testing.assert_array_equal(spectra["low_rank_error"], 0)
    texts = labelled_ids(5, 3)
    skipped = lm.layer_skip(model, prompts, lm.mean_difference(lm.DepthModel(tiny_llama()), texts)
                            .drop_attrs())  # fmt: skip
    np.testing.assert_array_equal(skipped["state_error"], 0)
    np.testing.assert_allclose(skipped["kl"], 0, atol=1e-12)


def test_a_wrong_map_is_seen(monkeypatch):
    """The errors are not zero by construction."""
    model = lm.DepthModel(tiny_llama().double())
    norm = model.hf.model.layers[1].mlp
    run = model.run(PROMPTS)
    original = type(norm).forward
    monkeypatch.setattr(type(norm), "forward", lambda self, x: original(self, x) + 0.1)
    errors = lm.reconstruction(run)
    assert float(errors["block"].min()) > 1e-3
    assert float(errors["mlp"].min()) > 1e-3
    assert float(errors["attention"].max()) < 1e-12


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "opt"])
def test_shares_are_those_of_dense_maps_of_every_token(name):
    run, hf = run_of(name), run_of(name).model.hf
    found = lm.token_shares(run)
    whole = found["share"].sum("token") + found["bias_share"].sum("layer")
    np.testing.assert_allclose(whole, 1, rtol=1e-12)
    if name == "opt":
        return
    for prompt in (0, 2):
        ids = PROMPTS[prompt]
        with whole_detached.detached(hf):
            end, embedded = whole_detached.last_state(hf, ids, families.blocks(hf))
            (rows,) = torch.autograd.grad(end, embedded, (end / (end @ end)).detach())
        expected = (rows * embedded).sum(-1)[0].detach().numpy()
        mine = found["share"][prompt].values
        np.testing.assert_allclose(mine[-len(ids) :], expected, atol=5e-6)
        assert np.isnan(mine[: -len(ids)]).all()
    assert list(found["token"].values) == list(range(1 - max(map(len, PROMPTS)), 1))


@pytest.mark.parametrize(("make", "passes"), [(tiny_llama, 3), (tiny_gpt2, 5)])
def test_passes_are_those_that_are_said(make, passes, monkeypatch):
    model = lm.DepthModel(make().double())
    run = model.run(labelled_ids(5, 3))
    calls = counted_block_calls(model, monkeypatch)
    lm.reconstruction(run)
    n_tokens = run.n_padded_tokens
    assert sum(rows for _, rows in calls) == passes * n_tokens * model.n_layers


# ------------------------------------------------------------------------------- the model


def facts(hf):
    """All that could be left behind, and the logits."""
    with torch.no_grad():
        logits = hf(torch.tensor(PROMPTS[:1])).logits
    held = [
        (dict(vars(m)).keys(), len(m._forward_hooks), len(m._forward_pre_hooks), list(m._modules))
        for m in hf.modules()
    ]
    parameters = [(id(p), p.requires_grad, p._version) for p in hf.parameters()]
    return logits, held, parameters, hf.config._attn_implementation


def assert_unchanged(hf, before):
    logits, *rest = facts(hf)
    assert torch.equal(logits, before[0])
    assert tuple(rest) == tuple(before[1:])


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3", "gptj", "cohere"])
@pytest.mark.parametrize("linear", LINEAR)
def test_the_model_is_as_before_and_values_are_its_own(name, linear):
    run = run_of(name, families.FAMILIES[name].attention[-1])
    hf = run.model.hf
    before = facts(hf)
    for block in run.batches[0].blocks:
        detached = block.linearised(kind(linear=linear))
        assert torch.equal(detached.y, block.linearised().y)
        assert torch.equal(detached.y, block.x_next) or worst(detached.y, block.x_next) < 1e-6
    lm.reconstruction(run, linear=linear)
    lm.token_shares(run, linear=linear)
    assert_unchanged(hf, before)


def test_the_model_is_as_before_after_an_error(monkeypatch):
    model = lm.DepthModel(tiny_gpt2().double())
    run, before = model.run(PROMPTS), facts(model.hf)

    def fails(*_):
        raise KeyboardInterrupt

    act = type(model.hf.transformer.h[0].mlp.act)
    with monkeypatch.context() as patch:
        patch.setattr(act, "forward", fails)
        for work in (lambda: run.jacobian(0, part=kind()), lambda: lm.reconstruction(run)):
            with pytest.raises(KeyboardInterrupt):
                work()
    assert_unchanged(model.hf, before)
    assert float(lm.reconstruction(run)["stack"].max()) < 1e-12


def test_threads_take_turns():
    run = lm.DepthModel(tiny_llama().double()).run(PROMPTS)
    kinds = [kind(), kind(linear="gate"), lm.Linearisation(), kind("mlp")]
    expected = [run.jacobian(1, part=one).numpy() for one in kinds]
    found: list = [None] * len(kinds)

    def work(number):
        for _ in range(5):
            found[number] = run.jacobian(1, part=kinds[number]).numpy()

    threads = [threading.Thread(target=work, args=[n]) for n in range(len(kinds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_biases_that_move_in_one_thread_are_no_change_of_weights_in_another():
    run = run_of("gpt2")
    lm.reconstruction(run)
    trouble: list[Exception] = []

    def look():
        for _ in range(40):
            try:
                list(run.states_by_batch())
                run.jvp(1, np.ones((1, run.model.n_features)))
            except ValueError as error:
                trouble.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    while thread.is_alive():
        lm.reconstruction(run)
    thread.join()
    assert trouble == []


@pytest.mark.parametrize("function", [lm.reconstruction, lm.token_shares, lm.lens])
def test_without_a_graph_it_is_refused(function):
    run = run_of("llama")
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match=r"outside torch\.inference_mode"),
    ):
        function(run)


def test_no_more_tokens_than_there_are():
    run = run_of("llama")
    with pytest.raises(ValueError, match="`n_tokens` must be at most 50, the size of the vocab"):
        lm.detached_spectra(run, n_tokens=51)


@pytest.mark.parametrize("outside", [True, False])
def test_norms_in_few_operations_do_not_undo_it(outside, monkeypatch):
    """What accelerators use for the derivatives of LayerNorm."""
    run = run_of("gpt2")
    expected = run.jacobian(1, part=kind())
    blocks = run.model.blocks
    norms = layer_norms(blocks.module(1))
    assert norms
    if outside:
        with twice_derived(norms):
            found = run.jacobian(1, part=kind())
    else:
        monkeypatch.setattr(blocks, "_norms_for", lambda *_: twice_derived(norms))
        found = run.jacobian(1, part=kind())
    assert worst(found, expected) < 1e-13
    assert not any("forward" in vars(norm) for norm in norms)


def test_zeros_have_factors_too():
    """A component of the state that is zero is multiplied as the others are."""
    hf = tiny_llama().double()
    model = lm.DepthModel(hf)
    hf.model.embed_tokens.weight.data[:, 3] = 0.0
    model = lm.DepthModel(hf)
    run = model.run([[1, 2, 3]])
    assert float(run.batches[0].x[0][0, 3]) == 0
    before = run.jacobian(0, part=kind())
    hf.model.embed_tokens.weight.data[:, 3] = 1e-9
    after = lm.DepthModel(hf).run([[1, 2, 3]]).jacobian(0, part=kind())
    assert float(before[0, :, 3].abs().max()) > 0.1
    assert worst(before, after) < 1e-5
    assert float(lm.reconstruction(run)["block"].max()) < 1e-12


# ------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", REFUSED)
def test_families_without_a_detached_map_are_refused_by_name(name):
    model = lm.DepthModel(families.make(name))
    said = rf"`kind` must be 'jacobian' for {type(model.hf).__name__}: layer \d .*{REFUSED[name]}"
    layer = 1 if name == "qwen3_moe" else 0  # whose first layer is dense
    run = model.run(PROMPTS)
    with pytest.raises(ValueError, match=said):
        run.jacobian(layer, part=kind())
    for function in (lm.reconstruction, lm.token_shares, lm.detached_spectra):
        with pytest.raises(ValueError, match=said):
            function(run)
    run.jacobian(layer)  # this it has


def test_a_block_with_an_unknown_factor_is_refused():
    hf = tiny_llama().double()
    for layer in hf.model.layers:
        del layer.mlp.act_fn
        layer.mlp.act_fn = nn.functional.silu  # not a module: it cannot be hooked
    model = lm.DepthModel(hf)
    with pytest.raises(ValueError, match=r"not linear.*layer 0 of LlamaForCausalLM is not: its"):
        lm.mean_jvp(
            model, PROMPTS,
            xr.DataArray(np.ones((3, 1, 16)), dims=("layer", "direction", "feature")), part=kind(),
        )  # fmt: skip


def test_what_cannot_be_derived_is_refused():
    hf = tiny_llama().double()

    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, *grads):
            return 2 * grads[0]

    original = type(hf.model.layers[0].mlp).forward
    for layer in hf.model.layers:
        layer.mlp.forward = lambda x, mlp=layer.mlp: Odd.apply(original(mlp, x))
    run = lm.DepthModel(hf).run(PROMPTS)
    for work in (lambda: run.jacobian(0, part=kind()), lambda: lm.reconstruction(run)):
        with pytest.raises(ValueError, match=r"for LlamaForCausalLM: layer 0 cannot be detached"):
            work()


def test_unknown_kinds_and_factors_are_refused():
    with pytest.raises(ValueError, match=r"`kind` must be one of \('jacobian', .* got 'frozen'"):
        lm.Linearisation(kind="frozen")
    for act in (
        lambda: lm.Linearisation(kind="detached", linear="down"),
        lambda: lm.reconstruction(run_of("gpt2"), linear="down"),
        lambda: lm.token_shares(run_of("gpt2"), linear="down"),
        lambda: lm.detached_spectra(run_of("gpt2"), linear="down"),
    ):
        with pytest.raises(ValueError, match=r"`linear` must be one of \('up', .* got 'down'"):
            act()


def test_a_model_called_meanwhile_by_another_thread_is_told():
    model = lm.DepthModel(tiny_llama())
    said = []

    def call():
        try:
            model.hf(torch.tensor([[1, 2]]))
        except LookupError as error:
            said.append(str(error))

    with model.blocks.detached(0, "up"):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert "must not be called in one thread" in said[0]


def test_a_store_of_jacobians_is_not_resumed_with_detached_ones(tmp_path, monkeypatch):
    jacobians = importlib.import_module("depthsys.lm.jacobians")
    run, out = run_of("llama"), tmp_path / "maps"

    def stop(*_):
        raise KeyboardInterrupt

    for first, second in ((kind(), "block"), ("block", kind()), (kind(), kind(linear="gate"))):
        with monkeypatch.context() as patch:
            patch.setattr(jacobians, "_check_finite", stop)
            with pytest.raises(KeyboardInterrupt):
                lm.jacobians(run, part=first, out=out)
        with pytest.raises(ValueError, match=r"must be resumed with .* part block"):
            lm.jacobians(run, part=second, out=out)
        stored = lm.jacobians(run, part=first, out=out)
        np.testing.assert_array_equal(stored.A, lm.jacobians(run, part=first).A)
        shutil.rmtree(out)


# ------------------------------------------------------------------------------- spectra


@pytest.mark.parametrize("part", PARTS)
def test_spectra_are_those_of_dense_matrices(part):
    run = run_of("llama")
    found = lm.detached_spectra(run, part=part, n_vectors=2, n_tokens=3)
    E = run.model.hf.get_input_embeddings().weight.detach().numpy()
    x = run.states.transpose("prompt", "depth", "feature").values
    maps = [run.jacobian(layer, part=kind(part)).numpy() for layer in range(run.n_layers)]
    for prompt in range(len(run)):
        product, last = np.eye(16), {}
        for layer, A in enumerate(maps):
            product = A[prompt] @ product
            for name, matrix, state in (
                ("layer", A[prompt], x[prompt, layer]), ("from_start", product, x[prompt, 0]),
            ):  # fmt: skip
                here = found.sel(map=name).isel(prompt=prompt, layer=layer)
                U, s, Vh = np.linalg.svd(matrix)
                np.testing.assert_allclose(here["singular_value"], s, atol=1e-10)
                stable = (matrix**2).sum() / s[0] ** 2
                assert float(here["stable_rank"]) == pytest.approx(stable)
                made = matrix @ state
                for k, error in zip(
                    found["kept"].values, here["low_rank_error"].values, strict=True
                ):
                    low = (U[:, :k] * s[:k]) @ (Vh[:k] @ state)
                    expected = np.linalg.norm(made - low) / np.linalg.norm(made)
                    assert error == pytest.approx(expected, abs=1e-9)
                value = x[prompt, layer + 1]
                assert float(here["own_share"]) == pytest.approx(made @ value / (value @ value))
                sign = np.sign(Vh @ state)
                U, V = U * sign, Vh.T * sign
                last[name] = U[:, :2]
                best = np.argsort(-(E @ V[:, 1]))[:3]
                np.testing.assert_array_equal(here["input_token"][1], best)
                head = run.model.hf.lm_head.weight.detach().numpy()
                weight = run.model.hf.model.norm.weight.detach().numpy()
                best = np.argsort(-(head @ (weight * U[:, 0])))[:3]
                np.testing.assert_array_equal(here["output_token"][0], best)
        for name, U in last.items():
            unit = x[prompt, 1:] / np.linalg.norm(x[prompt, 1:], axis=-1, keepdims=True)
            np.testing.assert_allclose(
                found.sel(map=name).isel(prompt=prompt)["projection"], unit @ U, atol=1e-6
            )
    assert found.attrs["part"] == part
    assert found["output_text"].values.ravel()[0] == str(found["output_token"].values.ravel()[0])


def test_biases_of_the_last_norm_are_not_read_as_tokens():
    """GPT-2's final norm has a bias that would be added to every vector alike."""
    hf = tiny_gpt2().double()
    hf.transformer.ln_f.bias.data = 100 * torch.randn(16, dtype=torch.float64)
    run = lm.DepthModel(hf).run(PROMPTS)
    found = lm.detached_spectra(run, n_tokens=1)["output_token"]
    assert len(np.unique(found)) > 5


def test_maps_of_few_prompts_at_a_time_are_the_same(monkeypatch):
    run = run_of("gpt2")
    whole = lm.detached_spectra(run)
    monkeypatch.setattr("depthsys.lm.detached.whole_jacobians", lambda x, n: 1)
    xr.testing.assert_allclose(whole, lm.detached_spectra(run))


def test_no_tokens_are_read_where_none_are_asked_for():
    found = lm.detached_spectra(run_of("llama"), n_tokens=0, n_values=3)
    assert "output_token" not in found
    assert "input_text" not in found
    assert found.sizes["index"] == 3


def test_arguments_of_spectra():
    run = run_of("llama")
    for name, value in {"n_values": 0, "n_vectors": -1, "n_tokens": -1}.items():
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            lm.detached_spectra(run, **{name: value})
    with pytest.raises(ValueError, match="`part` must be one of"):
        lm.detached_spectra(run, part="head")


def test_embeddings_of_another_width_are_not_read(monkeypatch):
    run = run_of("llama")
    narrow = nn.Embedding(50, 8)
    monkeypatch.setattr(run.model.hf, "get_input_embeddings", lambda: narrow)
    with pytest.raises(ValueError, match="`n_tokens` must be 0 where embeddings have another"):
        lm.detached_spectra(run)


def test_maps_that_are_not_finite_are_told(monkeypatch):
    run = run_of("gpt2")
    monkeypatch.setattr(
        "depthsys.lm.detached.torch.linalg.svd",
        lambda A: (A, torch.full_like(A[..., 0], torch.nan), A),
    )
    with pytest.raises(FloatingPointError, match="detached maps must be finite"):
        lm.detached_spectra(run, n_tokens=0)


# ------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("energy", ["relative", "absolute"])
def test_the_plan_is_the_least_energy_by_detached_gains(gpt2, concept, energy):
    run = gpt2.run(labelled_ids(6, 4))
    plan = lm.gains_plan(run, concept, -0.4, energy=energy, part=kind())
    v = concept["direction"].values
    A = np.stack([run.jacobian(layer, part=kind()) for layer in range(3)], axis=1)
    gains = []
    for one in A:
        row, found = v[-1], []
        for layer in (2, 1, 0):
            row = row @ one[layer]
            found.append(row @ v[layer])
        gains.append(found[::-1])
    g = np.mean(gains, axis=0)
    norm = np.linalg.norm(run.states.values[:-1], axis=-1).mean(axis=1)
    w = 1 / norm**2 if energy == "relative" else np.ones(3)
    u = -0.4 * (g / w) / np.sum(g**2 / w)
    np.testing.assert_allclose(plan["u"].values[:, 0], u, rtol=1e-9)
    np.testing.assert_allclose(plan["gain"].values.ravel(), g, rtol=1e-9)
    assert float(plan["energy"]) == pytest.approx(np.sum(w * u**2))
    np.testing.assert_allclose(plan["push"], abs(u) / norm, rtol=1e-9)
    exact = lm.linear_gains(run, concept)["gain"].mean("prompt").values
    assert np.linalg.norm(g - exact) > 0.05 * np.linalg.norm(exact)


def test_by_exact_gains_it_is_the_plan_of_a_linear_system(gpt2, concept):
    """That of one prompt, whose mean Jacobians are its own."""
    run = gpt2.run([[3, 1, 4, 1, 5]])
    system = lm.identify(run, concept, lm.Ensemble())
    plan = lm.gains_plan(run, concept, 0.3)
    other = ltv.minimum_energy(system, 0.3, energy="relative")
    np.testing.assert_allclose(plan["u"].values, other["u"].values, rtol=1e-6)
    assert float(plan["energy"]) == pytest.approx(float(other["energy"]))


def test_the_plan_goes_where_plans_go(gpt2, concept, held_out):
    system = lm.identify(gpt2, labelled_ids(6, 4), concept)
    plan = lm.gains_plan(gpt2, labelled_ids(6, 4), concept, 0.05, part=kind())
    table = lm.compare_energies(held_out, concept, system, 0.05, plans={"detached": plan})
    assert "detached" in table["schedule"].values
    assert float(table["energy"].sel(schedule="detached")) > 0
    played = lm.play(held_out, concept, plan)
    assert np.isfinite(played["response"]).all()
    assert plan.attrs["linearisation"] == "detached"


def test_a_plan_for_several_outputs(gpt2):
    plan = lm.gains_plan(gpt2, labelled_ids(6, 4), several_inputs(), [0.3, -0.2], part=kind())
    reached = (plan["gain"] * plan["u"]).sum(("layer", "input"))
    np.testing.assert_allclose(reached, [0.3, -0.2], rtol=1e-9)


def test_arguments_of_plans(gpt2, concept):
    texts = labelled_ids(4, 4)
    for options, said in (
        ({"target": 0.3, "energy": "heat"}, "`energy` must be one of"),
        ({"target": 0.0}, "`target` must be finite and not zero"),
        ({"target": [0.3, 0.1]}, "`target` must have one value for each of the 1 outputs"),
        ({"target": 0.3, "part": "head"}, "`part` must be one of"),
    ):
        with pytest.raises(ValueError, match=said):
            lm.gains_plan(gpt2, texts, concept, **options)
    rows = np.stack([concept["direction"].values[-1]] * 2)
    with pytest.raises(ValueError, match="`target` must be reachable by the mean gains"):
        lm.gains_plan(gpt2, texts, concept, [0.3, -0.3], readout=rows)


def test_detached_gains_say_so(gpt2, concept):
    exact = lm.linear_gains(gpt2, PROMPTS, concept)
    detached = lm.linear_gains(gpt2, PROMPTS, concept, part=kind())
    assert exact.attrs["kind"] == "exact linear"
    assert detached.attrs["kind"] == "of the detached map"
    assert "linearisation" not in exact.attrs
    system = lm.identify(gpt2, PROMPTS, concept, part=kind())
    assert system.attrs["linearisation"] == "detached"
    assert ltv.gains(system).shape == (3, 1, 1)


# ------------------------------------------------------------------------------- a real model


@pytest.mark.real
@pytest.mark.parametrize("linear", LINEAR)
def test_values_of_a_real_model(real_folder, linear):
    from depthsys.demo import real

    model = lm.DepthModel.load(real_folder / real.MODEL, device="cpu")
    texts = lm.read_texts(real_folder / "movies.csv").texts[:4]
    found = lm.reconstruction(model, list(texts), linear=linear)
    for each in ("block", "attention", "mlp", "stack"):
        assert float(found[each].max()) < 1e-5
