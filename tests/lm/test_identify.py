import json

import numpy as np
import pytest
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm.hf.attention import RecordingCache
from depthsys.lm.linearize import Linearised
from tests.conftest import TINY
from tests.lm import families, one_family, whole_sequence
from tests.lm.conftest import LabelledIds, batches_of_32, counted_block_calls, labelled_ids

tiny = one_family.tiny


@pytest.fixture(scope="module")
def reference(tiny, tokens):
    """Dense Jacobians (prompt, layer, H, H) and states (prompt, depth, H)."""
    A = np.stack([whole_sequence.jacobians(tiny.hf, ids) for ids in tokens.ids])
    x = np.stack([whole_sequence.states(tiny.hf, ids) for ids in tokens.ids])
    return A, x


def projector(V):
    return V @ V.T


@pytest.mark.parametrize("order", [1, 2, 3, None])
def test_mean_system_equals_dense_algebra(tiny, tokens, concept, reference, order):
    A, x = reference
    mean, v = A.mean(0), concept.direction.values
    system = lm.identify(tiny, tokens, concept, lm.Krylov(order=order))
    size = order or 16
    np.testing.assert_array_equal(system.order, np.minimum(np.arange(4) + 1, size))
    for depth in range(4):
        V = whole_sequence.krylov_basis(mean, v, depth, size)
        ours = system.V[depth].values
        np.testing.assert_allclose(projector(ours), projector(V), atol=1e-5)
        np.testing.assert_allclose(ours[:, 0], v[depth], atol=1e-6)
    for layer in range(3):
        lifted = system.V[layer + 1].values @ system.A[layer].values @ system.W[layer].values.T
        dense = projector(system.V[layer + 1].values) @ mean[layer]
        dense = dense @ projector(system.V[layer].values)
        np.testing.assert_allclose(lifted, dense, atol=1e-5 * abs(dense).max())
    expected = whole_sequence.krylov_gains(mean, v, size)
    h = ltv.gains(system).values.ravel()
    np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-5)
    full = whole_sequence.chain_gains(mean, v)
    np.testing.assert_allclose(system.gain_full, full, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(system.y_ref[-1, 0], v[-1] @ x[:, -1].mean(0), rtol=1e-5)
    np.testing.assert_allclose(system.y_std, (x[:, -1] @ v[-1]).std(), rtol=1e-5)
    norms = np.linalg.norm(x, axis=-1).mean(0)
    np.testing.assert_allclose(system.state_norm, norms, rtol=1e-5)


def test_truncation_is_visible_at_low_order_and_gone_at_full_order(tiny, tokens, concept):
    errors = []
    for order in (1, 4):
        system = lm.identify(tiny, tokens, concept, lm.Krylov(order=order))
        errors.append(abs(ltv.gains(system).values.ravel() - system.gain_full.values).max())
    assert errors[0] > 1e-3
    assert errors[1] < 1e-12


def test_bases_are_orthonormal(tiny, tokens, concept):
    system = lm.identify(tiny, tokens, concept, lm.Krylov(order=3))
    for depth, size in enumerate(system.order.values):
        V, W = system.V[depth].values, system.W[depth].values
        gram = np.zeros((3, 3))
        gram[:size, :size] = np.eye(size)
        np.testing.assert_allclose(W.T @ V, gram, atol=1e-12)


def test_more_directions_than_features(tokens):
    """L > H: the basis fills the space and the gains stay exact."""
    model = lm.DepthModel(TINY["gpt2"](n_embd=4, n_layer=7).double())
    v = np.random.default_rng(0).standard_normal((8, 4))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    system = lm.identify(model, tokens, concept, lm.Krylov())
    assert system.order.values.max() == 4
    mean = np.mean([whole_sequence.jacobians(model.hf, ids) for ids in tokens.ids], axis=0)
    h = ltv.gains(system).values.ravel()
    np.testing.assert_allclose(h, whole_sequence.chain_gains(mean, v), rtol=1e-7, atol=1e-9)


def test_per_prompt_systems_reproduce_each_prompts_linear_gains(tiny, tokens, concept):
    systems = lm.identify(tiny, tokens, concept, per_prompt=True)
    assert systems.A.dims == ("prompt", "layer", "state_next", "state")
    linear = lm.linear_gains(tiny, tokens, concept).gain
    gains = ltv.gains(systems).isel(output=0, input=0).transpose("prompt", "layer")
    np.testing.assert_allclose(gains, linear, rtol=1e-4, atol=1e-6)
    one = lm.identify(tiny, tokens, concept, per_prompt=True, keep_basis=False)
    assert "V" not in one
    np.testing.assert_array_equal(one.A, systems.A)
    np.testing.assert_array_equal(systems.prompt, np.arange(len(tokens)))


def test_the_ensemble_is_the_default_and_has_the_mean_exact_gains(tiny, tokens, concept):
    system = lm.identify(tiny, tokens, concept)
    assert system.attrs["method"] == "Ensemble"
    assert system.order.values.max() == 1  # all that one input and one readout need
    exact = lm.linear_gains(tiny, tokens, concept).gain.mean("prompt")
    np.testing.assert_allclose(ltv.gains(system).values.ravel(), exact, rtol=1e-4, atol=1e-6)
    xr.testing.assert_equal(system, lm.identify(tiny, tokens, concept, lm.Ensemble()))


def test_profile_readout_reads_every_depth_but_the_first(tiny, tokens, concept):
    system = lm.identify(tiny, tokens, concept, lm.Krylov(), readout="profile")
    rows = [np.einsum("os,fs->of", system.C[k], system.V[k])[0] for k in range(4)]
    np.testing.assert_allclose(rows[0], 0)
    np.testing.assert_allclose(rows[1:], concept.direction[1:], atol=1e-6)


def test_result_does_not_depend_on_batches(tiny, concept, monkeypatch):
    tokens = labelled_ids(20, 5)
    whole = lm.identify(tiny, tokens, concept)
    monkeypatch.setattr("depthsys.lm.linearize.ROWS", 3)
    monkeypatch.setattr(
        "depthsys.lm.run.length_batches",
        lambda lengths, **_: [np.array([i]) for i in range(20)],
    )
    single = lm.identify(tiny, tokens, concept)
    np.testing.assert_allclose(ltv.gains(single), ltv.gains(whole), rtol=1e-6)


@pytest.mark.parametrize("readout", ["concept", pytest.param("profile", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "method",
    [
        lm.Krylov(),
        lm.Ensemble(order=2),
        *(pytest.param(m, marks=pytest.mark.slow) for m in (lm.Balanced(), lm.Pod(order=2))),
    ],
    ids=lambda m: m.name,
)
def test_live_memory_does_not_grow_with_the_number_of_prompts(
    concept, monkeypatch, method, readout, live_bytes
):
    """Bytes of all tensors alive whenever the last block passes a batch of whole sequences."""
    model = lm.DepthModel(TINY["gpt2"]())
    original = model.blocks.call
    batches_of_32(monkeypatch)
    peaks = []

    def weighing(layer, call, hidden, cache):
        if layer == 2 and isinstance(cache, RecordingCache):
            peaks[-1] = max(peaks[-1], live_bytes())
        return original(layer, call, hidden, cache)

    monkeypatch.setattr(model.blocks, "call", weighing)
    monkeypatch.setattr("depthsys.lm.sweep.CALLS_HELD", 2)  # a number that does not grow either
    for count in (192, 384):  # six and twelve batches of one length
        tokens = LabelledIds([[i % 50, 7, 3, 4, 5, 6] for i in range(count)], np.arange(count) % 2)
        peaks.append(0)
        run = model.run(tokens, budget=lm.Budget(0, 0, 0))
        lm.identify(run, concept, method, readout=readout)
    assert peaks[1] - peaks[0] < 32 * 6 * 16 * 4  # less than one batch of hidden states


def test_identification_costs_one_prefill_and_l_plus_one_directions_per_layer(
    tokens, concept, monkeypatch
):
    """And the nominal map of each block once per prompt, which the directions share."""
    model = lm.DepthModel(TINY["gpt2"](), left_padding=False)
    rows = counted_block_calls(model, monkeypatch)
    original, directions = Linearised.jvp, []

    def counted(linear, v):
        product = original(linear, v)
        directions.append(product.shape[0] * product.shape[1])
        return product

    monkeypatch.setattr(Linearised, "jvp", counted)
    lm.identify(model, tokens, concept, lm.Krylov())
    prefill = sum(len(ids) for ids in tokens.ids)
    for layer in range(3):
        assert sum(n for at, n in rows if at == layer) == prefill + len(tokens)
    assert sum(directions) == len(tokens) * (1 + 2 + 3)


def test_provenance(tiny, tokens, concept):
    attrs = lm.identify(tiny, tokens, concept, lm.Krylov(order=2)).attrs
    assert attrs["method"] == "Krylov"
    assert json.loads(attrs["settings"]) == {"order": 2, "rtol": 1e-9, "tolerance": None}
    assert json.loads(attrs["contract"]) == tiny.contract
    assert attrs["prompts_sha256"] == tokens.sha256
    assert attrs["model_fingerprint"] == tiny.fingerprint
    assert attrs["dtype"] == "float64"
    for key in ("depthsys_version", "schema_version", "model", "device", "readout", "created"):
        assert key in attrs
    assert all(isinstance(value, (int, float, str)) for value in attrs.values())


def test_bad_arguments(tiny, tokens, concept):
    with pytest.raises(ValueError, match=r"`order` must be in 1..16, .* got 17"):
        lm.identify(tiny, tokens, concept, lm.Krylov(order=17))
    with pytest.raises(ValueError, match="`readout` must be one of"):
        lm.identify(tiny, tokens, concept, readout="all")
    with pytest.raises(ValueError, match=r"directions of unit length; got norm 2 at depth 1"):
        lm.identify(tiny, tokens, concept * np.array([1, 2, 1, 1])[:, None])
    with pytest.raises(ValueError, match=r"must hold a finite direction .* got \(3, 16\)"):
        lm.identify(tiny, tokens, concept.isel(depth=slice(3)))
    with pytest.raises(ValueError, match="must hold at least one text"):
        lm.identify(tiny, labelled_ids(0, 0), concept)


def test_dependent_directions_are_left_out(tokens):
    """Two blocks that do nothing: injections there add no direction (theory.md: orth[...])."""
    hf = TINY["gpt2"](n_layer=6).double()
    for layer in (3, 4):
        for linear in (hf.transformer.h[layer].attn.c_proj, hf.transformer.h[layer].mlp.c_proj):
            linear.weight.data.zero_()
            linear.bias.data.zero_()
    model = lm.DepthModel(hf)
    v = np.random.default_rng(0).standard_normal((7, 16))
    v[4] = v[5] = v[3]
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    mean = np.mean([whole_sequence.jacobians(hf, ids) for ids in tokens.ids], axis=0)
    system = lm.identify(model, tokens, concept, lm.Krylov(order=4))
    assert system.order.values.tolist() == [1, 2, 3, 4, 4, 4, 4]
    # four directions at depth 5 are all there are: nothing is lost before the last layer
    h = ltv.gains(lm.identify(model, tokens, concept, lm.Krylov(order=5))).values.ravel()
    np.testing.assert_allclose(h, whole_sequence.chain_gains(mean, v), rtol=1e-8)
    each = lm.identify(model, tokens, concept, lm.Krylov(), per_prompt=True)
    assert each.order.dims == ("prompt", "depth")
    assert (each.order.isel(depth=5) == 4).all()
    linear = lm.linear_gains(model, tokens, concept).gain
    np.testing.assert_allclose(ltv.gains(each)[..., 0, 0].T, linear.T, rtol=1e-6)


def test_router_margin_is_the_least_over_all_prompts():
    model = lm.DepthModel(families.make("mixtral"))
    tokens = LabelledIds([[9, 8], [3, 4], [5, 30, 2], [17], [6, 44]], np.array([0, 1, 0, 1, 0]))
    v = np.random.default_rng(0).standard_normal((model.n_layers + 1, model.n_features))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    margins = np.stack([families.router_margins(model.hf, ids) for ids in tokens.ids])
    assert not set(margins.argmin(0)) & {0, 4}  # neither the first nor the last prompt's
    for method in (lm.Krylov(), lm.Ensemble()):
        system = lm.identify(model, tokens, concept, method)
        np.testing.assert_allclose(system.router_margin, margins.min(0), rtol=1e-4, atol=1e-6)
        each = lm.identify(model, tokens, concept, method, per_prompt=True)
        mine = each.router_margin.transpose("prompt", "layer")
        np.testing.assert_allclose(mine, margins, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("readout", ["concept", "profile"])
def test_concepts_are_steered_and_held_by_name(tiny, tokens, readout):
    rng = np.random.default_rng(3)
    v = rng.standard_normal((2, 4, 16))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    parts = {
        name: xr.Dataset({"direction": (("depth", "feature"), each)})
        for name, each in zip(("movies", "hate"), v, strict=True)
    }
    both = lm.several(parts)
    system = lm.identify(tiny, tokens, both, lm.Ensemble(order=6), readout=readout)
    plan = ltv.minimum_energy(system, 1e-3, outputs="movies", hold="hate")
    assert plan.output_name.values.tolist() == ["movies", "hate"]
    assert plan.attrs["energy"] == "relative"
    assert plan.attrs["model_fingerprint"] == tiny.fingerprint
    free = ltv.minimum_energy(system, 1e-3, outputs="movies")
    np.testing.assert_allclose(plan.hold_price, plan.energy / free.energy)
    moved = lm.play(tiny, tokens, both, plan).response.mean("prompt").squeeze().values
    np.testing.assert_allclose(moved, [1e-3, 0], atol=2e-5)
    aside = lm.play(tiny, tokens, both, free).response.mean("prompt").squeeze().values
    np.testing.assert_allclose(aside[1], plan.side_effect[1], rtol=0.05)
