"""A run: router margins, provenance, batches, and that every function takes it."""

import inspect
import json

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import MixtralConfig, MixtralForCausalLM

from depthsys import lm
from depthsys.lm.stamp import provenance
from tests.conftest import tiny_gpt2
from tests.lm import every_function
from tests.lm.conftest import labelled_ids, no_block_runs

IDS = [[3, 1, 4, 1, 5], [9, 2, 6], [5], [8, 9, 7, 9, 3]]


@pytest.fixture(scope="module")
def model():
    return lm.DepthModel(tiny_gpt2().double())


@pytest.fixture(scope="module")
def run(model):
    return model.run(IDS)


def tiny_mixtral(**changes):
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    settings |= {"num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.3}
    return MixtralForCausalLM(MixtralConfig(**(settings | changes)))


def test_router_margin_is_the_gap_in_the_logits_of_the_last_token():
    hf = tiny_mixtral()
    model = lm.DepthModel(hf)
    margin = model.run(IDS).router_margin
    assert margin.dims == ("layer", "prompt")
    for prompt, ids in enumerate(IDS):
        logits = hf(torch.tensor([ids]), output_router_logits=True).router_logits
        for layer in range(2):
            ranked = np.sort(logits[layer][-1].detach().numpy())[::-1]
            gap = ranked[1] - ranked[2]
            np.testing.assert_allclose(margin[layer, prompt], gap, rtol=1e-4)
    assert 0 < model.contract["router_margin"] < np.inf
    assert model.run(IDS).router_margin.min() > 0


def test_the_routing_changes_beyond_the_margin_and_not_before():
    """Push one router logit by hand: the margin is where the experts change."""
    hf = tiny_mixtral(num_hidden_layers=1).double()
    model = lm.DepthModel(hf)
    ids = IDS[0]
    margin = float(model.run([ids]).router_margin[0, 0])
    router, chosen = hf.model.layers[0].mlp.gate, []
    original = router.forward

    def pushed(hidden, size):
        logits = torch.nn.functional.linear(hidden, router.weight)
        third = logits[-1].argsort(descending=True)[2]
        logits[-1, third] += size
        return set(logits[-1].topk(2).indices.tolist())

    router.forward = lambda hidden: (
        chosen.append([pushed(hidden, size) for size in (0.0, 0.99 * margin, 1.01 * margin)])
        or original(hidden)
    )
    hf(torch.tensor([ids]))
    at_rest, before, beyond = chosen[0]
    assert at_rest == before != beyond


def test_router_margin_goes_with_an_identification(concept):
    from tests.lm.conftest import labelled_ids

    model = lm.DepthModel(tiny_mixtral(num_hidden_layers=3))
    tokens = labelled_ids(8, 0)
    expected = model.run(tokens.ids).router_margin
    system = lm.identify(model, tokens, concept)
    np.testing.assert_allclose(system.router_margin, expected.min("prompt"), rtol=1e-5)
    each = lm.identify(model, tokens, concept, per_prompt=True)
    each_margin = each.router_margin.transpose("layer", "prompt")
    np.testing.assert_allclose(each_margin, expected, rtol=1e-5)
    assert model.run([[1, 2]]).router_margin is not None
    assert lm.DepthModel(tiny_gpt2()).run([[1, 2]]).router_margin is None
    assert "router_margin" not in lm.identify(lm.DepthModel(tiny_gpt2()), tokens, concept)


def test_every_result_carries_the_contract(model, concept):
    from tests.lm.conftest import labelled_ids

    tokens = labelled_ids(8, 0)
    directions = concept.direction[:3].expand_dims(direction=1).rename(depth="layer")
    measured = lm.measure_gains(model, tokens, concept)
    system = lm.identify(model, tokens, concept)
    results = [
        measured,
        system,
        lm.linear_gains(model, tokens, concept),
        lm.mean_jvp(model, tokens, directions),
        lm.mean_vjp(model, tokens, directions),
        lm.jacobians(model, tokens.ids),
        lm.agreement(system, measured),
    ]
    for result in results:
        assert json.loads(result.attrs["contract"]) == model.contract, result.attrs


def test_left_padding_gives_fewer_batches_and_the_same_numbers():
    ids = [[i % 50] * n for i, n in enumerate([9, 10, 11, 12, 9, 12, 3])]
    padded = lm.DepthModel(tiny_gpt2().double(), left_padding=True)
    model = lm.DepthModel(tiny_gpt2().double(), left_padding=False)
    a, b = model.run(ids), padded.run(ids)
    assert (len(a.batches), len(b.batches)) == (5, 2)
    np.testing.assert_allclose(a.states, b.states, atol=1e-12)
    V = np.random.default_rng(0).standard_normal((7, 2, 16))
    for layer in range(3):
        np.testing.assert_allclose(a.jvp(layer, V), b.jvp(layer, V), atol=1e-10)
        np.testing.assert_allclose(a.vjp(layer, V), b.vjp(layer, V), atol=1e-10)
        operators = (r.linear_operator(layer, 4) @ V[4].T for r in (a, b))
        np.testing.assert_allclose(*operators, atol=1e-10)
    assert b.batches[0].blocks[0]._calls.real is None  # the short prompt is alone
    assert provenance(padded, "x")["left_padding"] == 1


# ------------------------------------------------------------------------- texts or a run


@pytest.fixture(scope="module")
def small():
    """A model, a run, and a call of every function of `lm` that takes a run."""
    model = lm.DepthModel(tiny_gpt2().double(), name="gpt2")
    texts = labelled_ids(6, 2)
    v = np.random.default_rng(0).standard_normal((4, 16))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    run = model.run(texts)
    return model, texts, run, every_function.works(concept, lm.identify(run, concept))


@pytest.fixture(scope="module")
def stranger():
    return lm.DepthModel(tiny_gpt2(n_inner=20).double())


def test_every_function_that_takes_a_run_is_called_here(small):
    *_, works = small
    assert {
        work.function.__name__ for work in works.values()
    } == every_function.functions_of_a_run() - {"paired_difference"}  # of pairs: test_pairs
    assert set(works) == set(every_function.NAMES)
    # the others that take texts take one run for each split
    takes_texts = {
        name
        for name in lm.__all__
        if inspect.isfunction(getattr(lm, name))
        and "texts" in inspect.signature(getattr(lm, name)).parameters
    }
    assert takes_texts == {"compare", "comparison_cost", "kept_parts"}


@pytest.mark.parametrize("name", every_function.ONE_METHOD)
def test_a_run_or_a_model_and_texts_by_position_and_by_keyword(small, name):
    model, texts, run, works = small
    work = works[name]
    expected = work(run)
    every_function.assert_same(work(model, texts), expected)
    every_function.assert_same(work.by_name(run=run), expected)
    every_function.assert_same(work.by_name(model=model, texts=texts), expected)


@pytest.mark.parametrize("name", every_function.NAMES)
def test_what_is_neither_a_run_nor_a_model_with_texts_is_refused(small, name, stranger):
    model, texts, run, works = small
    work = works[name]
    called = work.function.__name__
    for wrong, kind in ((texts, "a LabelledIds of 6"), ("gpt2", "'gpt2'"), (None, "None")):
        with pytest.raises(
            TypeError, match=rf"`{called}` must get a run, or a model and texts; got {kind}\. Wri"
        ):
            work.by_name(run=wrong)
    with pytest.raises(TypeError, match=f"`{called}` must get texts with a model; got none"):
        work.by_name(model=model)
    with pytest.raises(ValueError, match=r"`texts` must be a run of `model`; got one of another"):
        work(stranger, run)


def test_a_positional_argument_that_is_no_texts_is_refused(small, concept):
    model, texts, *_ = small
    with pytest.raises(TypeError, match="`linear_gains` must get a run, or a model and texts; got"):
        lm.linear_gains(texts, concept)
    with pytest.raises(TypeError, match="must get texts with a model; got none"):
        lm.linear_gains(model)


def test_arguments_are_checked_before_the_texts_are_run(small, concept, monkeypatch):
    model, texts, _, works = small
    system = works["compare_energies"].after["system"]
    schedules = works["required_energy"].after["schedules"]
    no_block_runs(monkeypatch)
    bad = concept * 2
    with pytest.raises(ValueError, match=r"`order` must be in 1\.\.16"):
        lm.identify(model, texts, concept, lm.Krylov(order=17))
    for call in (
        lambda: lm.identify(model, texts, bad),
        lambda: lm.exact_system(model, texts, bad),
        lambda: lm.linear_gains(model, texts, bad),
        lambda: lm.measure_gains(model, texts, bad),
        lambda: lm.linear_range(model, texts, bad),
        lambda: lm.play(model, texts, bad, works["play"].after["plan"]),
        lambda: lm.required_energy(model, texts, bad, schedules, 0.3, amplitude=1.0),
        lambda: lm.compare_energies(model, texts, bad, system, 0.3),
    ):
        with pytest.raises(ValueError, match="must hold directions of unit length"):
            call()
    with pytest.raises(ValueError, match="`limit` must be a number > 0"):
        lm.linear_range(model, texts, concept, limit=0)
    with pytest.raises(AssertionError, match="a block was run"):  # this check would see it
        lm.identify(model, texts, concept)


def test_held_out_texts_may_be_a_run_too(small, stranger):
    model, _, run, _ = small
    other = labelled_ids(8, 3)
    expected = lm.mean_difference(run, held_out=other)
    assert expected.attrs["auc_prompts_sha256"] == other.sha256
    every_function.assert_same(lm.mean_difference(run, held_out=model.run(other)), expected)
    every_function.assert_same(lm.mean_difference(model, run, held_out=other), expected)
    with pytest.raises(ValueError, match="must be a run of `model`"):
        lm.mean_difference(run, held_out=stranger.run(other))


def test_a_run_says_what_it_is(small):
    model, texts, run, _ = small
    assert (len(run), run.n_prompts, run.n_layers) == (6, 6, 3)
    assert run.place == "host"
    assert run.sha256 == texts.sha256
    assert run.tokens_sha256 == model.tokens_sha256(texts.ids)
    assert "6 prompts, 0 of them cut; 3 layers, 16 features" in repr(run)
    assert "context: host" in repr(run)
    assert model.run(texts.ids).sha256 == run.tokens_sha256
    assert not run.all_the_same
    assert model.run([[1, 2]] * 3).all_the_same
    assert len(run.batches[1:]) == len(run.batches) - 1
    assert repr(run.batches).startswith(f"Batches({len(run.numbers)} of Run(")
    with pytest.raises(IndexError):
        run.batches[len(run.numbers)]
    shape = [max(map(len, (texts.ids[i] for i in b))) * len(b) for b in run.numbers]
    assert run.n_padded_tokens == sum(shape)


def test_the_first_prompts_alone(small):
    _, _, run, _ = small
    for count in (1, 4, 6):
        batches = list(run.first(count))
        rows = np.concatenate([batch.prompts for batch in batches])
        assert sorted(rows.tolist()) == list(range(count))
        for batch in batches:
            for layer, block in enumerate(batch.blocks):
                expected = run.jacobian(layer)[torch.as_tensor(batch.prompts)]
                np.testing.assert_allclose(block.jacobian(), expected, atol=1e-12)


def test_runs_of_splits(small):
    """Splits of runs are taken where splits of texts are, and know their sizes."""
    model, *_ = small
    parts = [labelled_ids(2 * n, n) for n in (5, 4, 3)]
    splits = lm.Splits(*parts, seed=1)
    runs = splits.each(model.run)
    assert [run.texts for run in (runs.concept, runs.operating, runs.held_out)] == parts
    assert runs.sizes == splits.sizes == "5/4/3"
    tables = [
        lm.compare(model, s, ["ensemble"], [1], n_each=0, ablate_eps=False, n_bootstrap=3)
        for s in (splits, runs)
    ]
    every_function.assert_same(*(table.drop_vars("seconds") for table in tables))


def test_splits_are_no_prompts(small):
    model, texts, *_ = small
    splits = lm.Splits(texts, texts, texts)
    for work in (model.run, model.tokenize, lambda s: lm.jacobians(model, s)):
        with pytest.raises(
            TypeError, match=r"of one split; got Splits.*splits\.operating, splits"
        ) as e:
            work(splits)
        assert "splits.each(model.run)" in str(e.value)
