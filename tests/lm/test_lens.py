"""Mean transition Jacobians and what they say, against dense products and whole sequences."""

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm
from depthsys.lm.linearize import Linearised
from tests.conftest import tiny_gpt2, tiny_llama
from tests.lm import whole_sequence
from tests.lm.conftest import counted_block_calls, labelled_ids, no_block_runs

IDS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7], [9, 3, 2]]


@pytest.fixture(scope="module", params=[tiny_gpt2, tiny_llama])
def model(request):
    return lm.DepthModel(request.param().double())


@pytest.fixture(scope="module")
def run(model):
    return model.run(IDS)


@pytest.fixture(scope="module")
def found(run):
    return lm.lens(run)


@pytest.fixture(scope="module")
def products(model):
    """Dense products (prompt, depth, H, H) of whole-sequence Jacobians."""
    every = []
    for ids in IDS:
        A = whole_sequence.jacobians(model.hf, ids)
        J = [np.eye(model.n_features)]
        for layer in reversed(range(model.n_layers)):
            J.insert(0, J[0] @ A[layer])
        every.append(J)
    return np.array(every)


def close(model, found, expected):
    # Llama's norms round to float32
    rtol = 1e-9 if model.hf.config.model_type == "gpt2" else 2e-5
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * abs(expected).max())


def test_it_is_the_mean_of_dense_products(model, found, products):
    close(model, found["J"].values, products.mean(axis=0))
    np.testing.assert_array_equal(found["depth"], range(model.n_layers + 1))
    np.testing.assert_array_equal(found["J"][-1], np.eye(model.n_features))
    norms = np.sqrt((products**2).sum(axis=(2, 3)).mean(axis=0))
    close(model, found["prompt_norm"].values, norms)
    states = np.array([whole_sequence.states(model.hf, ids) for ids in IDS]).mean(axis=0)
    close(model, found["x_ref"].values, states)
    close(model, found["x_end"].values, states[-1])


def test_it_is_not_the_product_of_means(model, run, found):
    A = lm.jacobians(run)["A"].values
    product = np.linalg.multi_dot(list(A[::-1]))
    J = found["J"].values[0]
    assert np.linalg.norm(product - J) > 0.05 * np.linalg.norm(J)


def test_of_one_prompt_it_is_the_product(model, products):
    one = lm.lens(model, IDS[:1])
    close(model, one["J"].values, products[0])
    np.testing.assert_allclose(
        one["prompt_norm"], np.linalg.norm(one["J"], axis=(1, 2)), rtol=1e-12
    )


def test_some_depths_are_those_of_all(run, found):
    some = lm.lens(run, depths=[3, 1])
    np.testing.assert_array_equal(some["depth"], [1, 3])
    for name in ("J", "prompt_norm", "x_ref", "x_end"):
        expected = found[name].sel(depth=[1, 3]) if "depth" in found[name].dims else found[name]
        np.testing.assert_array_equal(some[name], expected)
    np.testing.assert_array_equal(lm.lens(run, depths=[3])["J"][0], np.eye(16))


def test_prompts_in_parts_give_the_same(run, found, monkeypatch):
    """As on an accelerator without room for the Jacobians of a whole batch."""
    monkeypatch.setattr("depthsys.lm.jacobian_lens.whole_jacobians", lambda *_: 1)
    parts = lm.lens(run)
    for name in ("J", "prompt_norm"):
        np.testing.assert_allclose(parts[name], found[name], rtol=1e-9, atol=1e-12)


def test_rows_are_those_that_are_said(model, run, monkeypatch):
    """One evaluation of a block, and H transposed products, per prompt and layer that is passed."""
    rows = {"products": 0}
    vjp = Linearised.vjp

    def counted(linear, directions):
        rows["products"] += len(linear.x) * directions.shape[-2]
        return vjp(linear, directions)

    monkeypatch.setattr(Linearised, "vjp", counted)
    calls = counted_block_calls(model, monkeypatch)
    lm.lens(run, depths=[1])
    P, H, L = len(run), model.n_features, model.n_layers
    assert rows["products"] == P * H * (L - 1)
    assert sum(n for _, n in calls) == P * (L - 1)
    assert {layer for layer, _ in calls} == {1, 2}


# ------------------------------------------------------------------------------ published


@pytest.mark.parametrize("skip", [0, 1])
def test_the_published_definition_is_that_of_every_pair_of_positions(model, skip):
    prompts = IDS[:2]
    found = lm.lens(model, prompts, definition="published", skip=skip)
    for depth in range(model.n_layers):
        means, squares = [], []
        for ids in prompts:
            D = whole_sequence.all_positions(model.hf, ids, depth)
            positions = range(skip, len(ids) - 1)
            total = np.zeros(D.shape[1::2])
            for t in positions:
                for later in positions:
                    if later >= t:
                        total += D[later, :, t]
            means.append(total / len(positions))
            squares.append((means[-1] ** 2).sum())
        close(model, found["J"].values[depth], np.mean(means, axis=0))
        close(model, found["prompt_norm"].values[depth], np.sqrt(np.mean(squares)))
    np.testing.assert_allclose(found["J"].values[-1], np.eye(model.n_features), atol=1e-12)
    assert (found.attrs["definition"], found.attrs["skip"]) == ("published", skip)
    assert "x_ref" not in found


def test_the_two_definitions_differ(model, found):
    other = lm.lens(model, IDS, definition="published", skip=0)
    for depth in range(model.n_layers):
        J, theirs = found["J"].values[depth], other["J"].values[depth]
        assert np.linalg.norm(theirs - J) > 0.1 * np.linalg.norm(J)


def test_shards_add_up(model, found):
    sharded = lm.ShardedRun(model, IDS, shard=3)
    np.testing.assert_allclose(lm.lens(sharded)["J"], found["J"], rtol=1e-9, atol=1e-11)
    one = lm.lens(sharded, definition="published", skip=0, depths=[1])
    other = lm.lens(model, IDS, definition="published", skip=0, depths=[1])
    np.testing.assert_allclose(one["J"], other["J"], rtol=1e-9, atol=1e-11)


def test_what_cannot_be_is_refused_before_any_work(model, monkeypatch):
    run = model.run(IDS)
    no_block_runs(monkeypatch)
    for depths in ([4], [-1], [0.5], [True], [], "all", 3):
        with pytest.raises(ValueError, match=r"`depths` must be whole numbers in 0..3; got"):
            lm.lens(run, depths=depths)
    with pytest.raises(ValueError, match=r"`definition` must be one of .*'published'.*; got 'j'"):
        lm.lens(run, definition="j")
    with pytest.raises(ValueError, match=r"got 2, where 2 of 4 prompts have fewer than 4 tokens"):
        lm.lens(run, definition="published", skip=2)
    with pytest.raises(ValueError, match=r"`skip` must be a whole number >= 0; got -1"):
        lm.lens(run, definition="published", skip=-1)
    with pytest.raises(ValueError, match=r"`skip` must be a whole number >= 0; got 'x'"):
        lm.lens(run, skip="x")
    monkeypatch.setattr("depthsys.lm.jacobian_lens.available_memory", lambda: 10_000)
    with pytest.raises(ValueError, match=r"`depths` must be few enough for the memory; got 4"):
        lm.lens(run)


def test_weights_that_come_and_go_are_refused(model, monkeypatch):
    run = model.run(IDS)
    monkeypatch.setattr(model.blocks.residence, "moves", True)
    with pytest.raises(ValueError, match="'last token' for a model whose weights come and go"):
        lm.lens(run, definition="published", skip=0)


def test_a_jacobian_that_is_not_finite_is_told(model, monkeypatch):
    run = model.run(IDS)
    vjp = Linearised.vjp
    monkeypatch.setattr(Linearised, "vjp", lambda linear, d: vjp(linear, d) * torch.nan)
    with pytest.raises(FloatingPointError, match=r"not at depths \[0, 1, 2\]"):
        lm.lens(run)


# ------------------------------------------------------------------------------ decoded


def own_head(model, x):
    hf = model.hf
    norm = hf.transformer.ln_f if hasattr(hf, "transformer") else hf.model.norm
    with torch.no_grad():
        return hf.lm_head(norm(torch.as_tensor(x))).numpy()


def test_states_are_read_by_norm_and_unembedding(model, run, found):
    states = run.states
    logit = lm.decode(model, states, top=50)
    through = lm.decode(model, states, lens=found, top=50)
    about = lm.decode(model, states, lens=found, top=50, about_mean=True)
    x, J = states.values, found["J"].values
    start, end = found["x_ref"].values[:, None], found["x_end"].values
    carried = np.einsum("dij,dpj->dpi", J, x)
    predicted = end + np.einsum("dij,dpj->dpi", J, x - start)
    for read, expected in ((logit, x), (through, carried), (about, predicted)):
        logits = own_head(model, expected)
        np.testing.assert_allclose(read["logit"], -np.sort(-logits, axis=-1), rtol=1e-5, atol=1e-6)
        ids = np.argsort(-logits, axis=-1, kind="stable")
        assert (read["token_id"].values == ids).mean() > 0.99
        np.testing.assert_allclose(read["probability"].sum("rank"), 1)
    assert (logit.attrs["reader"], about.attrs["reader"]) == ("logit lens", "J-lens about the mean")
    assert through.attrs["lens_n_prompts"] == len(IDS)
    np.testing.assert_array_equal(through["logit"][-1], logit["logit"][-1])


def test_a_direction_is_read_without_biases():
    hf = tiny_gpt2().double()
    with torch.no_grad():
        hf.transformer.ln_f.bias.normal_()
        hf.transformer.ln_f.weight.uniform_(0.5, 2)
    model = lm.DepthModel(hf)
    v = np.random.default_rng(1).standard_normal((4, 16))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    v[0] = np.nan
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    found = lm.lens(model, IDS)
    for lens in (None, found):
        read = lm.decode(model, concept, lens=lens, top=3)
        for depth in range(1, 4):
            w = v[depth] if lens is None else found["J"].values[depth] @ v[depth]
            w = w - w.mean()
            w = w / np.sqrt((w**2).mean() + hf.config.layer_norm_epsilon)
            W = hf.lm_head.weight.detach().numpy() * hf.transformer.ln_f.weight.detach().numpy()
            order = np.argsort(-(W @ w))
            np.testing.assert_array_equal(read["token_id"][depth], order[:3])
            np.testing.assert_allclose(read["logit"][depth], (W @ w)[order[:3]])
    assert (read["token_id"][0] == -1).all()
    assert read["logit"][0].isnull().all()
    assert "probability" not in read
    alone = lm.decode(model, concept["direction"], directions=True, lens=found, top=3)
    xr.testing.assert_identical(alone.drop_attrs(), read.drop_attrs())


def test_one_depth_and_more_dims(model, run, found):
    one = lm.decode(model, run.states.sel(depth=2), lens=found, top=2)
    whole = lm.decode(model, run.states, lens=found, top=2)
    np.testing.assert_array_equal(one["token_id"][0], whole["token_id"].sel(depth=2))
    twice = run.states.expand_dims(copy=2).transpose("copy", "depth", "prompt", "feature")
    both = lm.decode(model, twice, lens=found, top=2)
    assert both["token_id"].dims == ("depth", "copy", "prompt", "rank")
    np.testing.assert_array_equal(both["token_id"][:, 1], whole["token_id"])


def test_tokens_are_texts(demo_model):
    run = demo_model.run(["the food was"])
    read = lm.decode(demo_model, run.states, top=3)
    last = read.isel(depth=-1, prompt=0)
    ids = last["token_id"].values
    assert [demo_model.tokenizer.decode([i]) for i in ids] == last["token"].values.tolist()
    logits = demo_model.hf(torch.tensor([run.rows[0]])).logits[0, -1]
    assert int(logits.argmax()) == ids[0]
    share = float(torch.softmax(logits, -1)[ids[0]])
    assert float(last["probability"][0]) == pytest.approx(share, rel=1e-4)


def test_what_cannot_be_read_is_refused(model, run, found):
    states = run.states
    with pytest.raises(TypeError, match=r"`states` must be a DataArray .*; got an array"):
        lm.decode(model, states.values)
    with pytest.raises(TypeError, match="`model` must be a DepthModel; got"):
        lm.decode(states, model)
    with pytest.raises(TypeError, match="`lens` must be a lens with `J`"):
        lm.decode(model, states, lens=states)
    with pytest.raises(ValueError, match=r"with 16 features; got .*'feature': 8"):
        lm.decode(model, states.isel(feature=slice(8)))
    with pytest.raises(ValueError, match="got 2 without a coordinate `depth`"):
        lm.decode(model, states.isel(depth=slice(2)).drop_vars("depth"))
    with pytest.raises(ValueError, match=r"depths in 0..3; got \[5\]"):
        lm.decode(model, states.isel(depth=[1]).assign_coords(depth=[5]))
    with pytest.raises(ValueError, match="`states` must be finite"):
        lm.decode(model, states * np.nan)
    for odd in (states.rename(prompt="rank"), states.isel(depth=slice(0)), states[:, :0]):
        with pytest.raises(ValueError, match="must have some states, and no dim `rank`; got"):
            lm.decode(model, odd)
    with pytest.raises(ValueError, match=r"`top` must be a whole number in 1..50; got 51"):
        lm.decode(model, states, top=51)
    with pytest.raises(ValueError, match="must be False without a lens"):
        lm.decode(model, states, about_mean=True)
    with pytest.raises(ValueError, match="must be False for directions"):
        lm.decode(model, states, lens=found, about_mean=True, directions=True)
    with pytest.raises(ValueError, match="must be False for a lens without `x_ref`"):
        lm.decode(model, states, lens=found.drop_vars("x_ref"), about_mean=True)
    with pytest.raises(ValueError, match=r"must have the depths of `states`; got none at \[0, 3\]"):
        lm.decode(model, states, lens=found.isel(depth=[1, 2]))
    with pytest.raises(ValueError, match="`lens` must be of `model`; got model_fingerprint 'x'"):
        lm.decode(model, states, lens=found.assign_attrs(model_fingerprint="x"))
    small = found.drop_attrs().isel(feature=slice(8), feature_out=slice(8))
    with pytest.raises(ValueError, match=r"must have 16 features and depths in 0..3; got 8 and"):
        lm.decode(model, states, lens=small)


# ------------------------------------------------------------------------------ agreement


def test_agreement_is_that_of_whole_sequences(model, run, found):
    others = labelled_ids(5, 8).ids
    read = lm.lens_agreement(model, others, found)
    J, start, end = (found[name].values for name in ("J", "x_ref", "x_end"))
    for prompt, ids in enumerate(others):
        with torch.no_grad():
            final = torch.log_softmax(model.hf(torch.tensor([ids])).logits[0, -1], -1).numpy()
        x = whole_sequence.states(model.hf, ids)
        for depth in range(model.n_layers + 1):
            carried = {
                "logit lens": x[depth],
                "J-lens": J[depth] @ x[depth],
                "J-lens about the mean": end + J[depth] @ (x[depth] - start[depth]),
                "mean state": end,
            }
            assert list(carried) == list(read["reader"].values)
            for reader, w in carried.items():
                logits = own_head(model, w)
                log_q = logits - np.log(np.exp(logits).sum())
                here = read.sel(reader=reader, depth=depth).isel(prompt=prompt)
                kl = np.sum(np.exp(final) * (final - log_q))
                assert float(here["kl"]) == pytest.approx(kl, rel=1e-5, abs=1e-6)
                assert float(here["agreement"]) == float(final.argmax() == logits.argmax())
    for reader in ("logit lens", "J-lens", "J-lens about the mean"):
        last = read.sel(reader=reader).isel(depth=-1)
        np.testing.assert_allclose(last["kl"], 0, atol=1e-12)
        assert (last["agreement"] == 1).all()
    plain = lm.lens_agreement(model, others, found.drop_vars(["x_ref", "x_end"]))
    xr.testing.assert_identical(plain.drop_attrs(), read.isel(reader=[0, 1]).drop_attrs())


def test_agreement_of_another_models_lens_is_refused(run, found):
    with pytest.raises(ValueError, match="`lens` must be of `model`"):
        lm.lens_agreement(run, found.assign_attrs(model_fingerprint="x"))
    with pytest.raises(TypeError, match="`lens` must be a lens with `J`"):
        lm.lens_agreement(run, xr.Dataset())
