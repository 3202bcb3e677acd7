"""Effects and prices of steered texts: against losses of transformers, plain loops and counts."""

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm
from depthsys.lm.accuracy import BOUNDS
from depthsys.lm.hf.writing import read_steered
from depthsys.lm.prices import repetition
from tests.conftest import TINY
from tests.lm import one_family
from tests.lm.steering.by_hooks import MARKED, begins_by_hand, logits_by_hooks

N_LAYERS, H, N_NEW = 3, 16, 5
PROMPTS = [[7, 2, 30, 4], [2, 9], [5, 2, 2, 11], [8, 2]]
WORDS = ([3, 7], [9, 11, 12])
STRENGTHS = (0.0, -1.0, 1.5)


@pytest.fixture(scope="module", params=one_family.FAMILIES)
def model(request) -> lm.DepthModel:
    hf = TINY[request.param]().double()
    model = lm.DepthModel(hf, name=request.param)
    first, *_ = model.new_tokens(PROMPTS, max_new_tokens=N_NEW, eos_token_id=None)
    hf.generation_config.eos_token_id = first[2]  # some texts end
    return model


@pytest.fixture(scope="module")
def plans(concept):
    plan = xr.Dataset({"u": ("layer", [1.5, -2.5, 2.0])})
    own = np.random.default_rng(4).standard_normal((N_LAYERS + 1, H))
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    vector = plan.assign(direction=(("depth", "feature"), own)).assign_attrs(positions="every")
    return {
        "plan": plan,
        "while writing": (plan, "generated"),
        "a vector": vector,
        "marker": (plan, MARKED),
    }


@pytest.fixture(scope="module")
def found(model, concept, plans):
    return lm.generation_effects(
        model, PROMPTS, concept, plans, strengths=STRENGTHS, max_new_tokens=N_NEW, words=WORDS
    )


def new_ids(found, **at) -> list[list[int]]:
    return [[int(token) for token in text.split()] for text in found["text"].sel(at).values]


def test_texts_are_those_of_generate(model, concept, plans, found):
    plain = model.new_tokens(PROMPTS, max_new_tokens=N_NEW)
    for name, plan in plans.items():
        assert new_ids(found, plan=name, strength=0.0) == plain
        plan, positions = plan if isinstance(plan, tuple) else (plan, None)
        of = plan if "direction" in plan else concept
        with lm.steering(model, of, plan, positions=positions, strength=1.5):
            written = model.new_tokens(PROMPTS, max_new_tokens=N_NEW)
        assert new_ids(found, plan=name, strength=1.5) == written
    assert found["positions"].values.tolist() == ["last", "generated", "every", "after [2]"]
    lengths = [len(row) for row in plain]
    assert found["n_new"].sel(plan="plan", strength=0.0).values.tolist() == lengths
    assert set(lengths) != {N_NEW}  # some end before


def test_numbers_are_those_of_plain_loops(model, concept, plans, found):
    """Loss of transformers, KL and log-odds by hooks, states by hooks, repetition by hand."""
    ends = model.hf.generation_config.eos_token_id
    v_last = concept["direction"].values[-1]
    for name, positions in (
        ("plan", "last"),
        ("while writing", "generated"),
        ("a vector", "every"),
        ("marker", MARKED),
    ):
        direction = plans[name]["direction"] if name == "a vector" else concept["direction"]
        for strength in STRENGTHS:
            u = np.append(strength * np.array([1.5, -2.5, 2.0]), 0.0)
            added = u[:, None] * direction.values
            at = found.sel(plan=name, strength=strength)
            for i, (prompt, new) in enumerate(zip(PROMPTS, new_ids(at), strict=True)):
                row, n = [*prompt, *new], len(prompt)
                ids, here = torch.tensor([row]), begins_by_hand(prompt, positions)
                labels = torch.tensor([[-100] * n + new])
                with torch.no_grad():
                    out = model.hf(ids, labels=labels)
                    states = model.run([row[:k] for k in range(n, len(row) + 1)]).states
                np.testing.assert_allclose(at["perplexity"][i], float(out.loss.exp()), rtol=1e-5)
                steered = logits_by_hooks(model.hf, row, added, here).log_softmax(-1)
                plain = out.logits[0].log_softmax(-1)
                kl = torch.nn.functional.kl_div(
                    plain[n - 1 : -1], steered[n - 1 : -1], log_target=True, reduction="sum"
                )
                np.testing.assert_allclose(at["kl"][i], float(kl) / len(new), rtol=1e-5, atol=1e-9)
                p = steered[n - 1].exp()
                odds = np.log(float(p[WORDS[0]].sum() / p[WORDS[1]].sum()))
                np.testing.assert_allclose(at["log_odds"][i], odds, rtol=1e-5)
                y = states.values[-1] @ v_last
                y = y[: len(new)] if new[-1] == ends else y
                np.testing.assert_allclose(at["readout"][i], y[-1], rtol=1e-5)
                mean = y[1:].mean() if len(y) > 1 else y[0]
                np.testing.assert_allclose(at["readout_new"][i], mean, rtol=1e-5)
                assert at["repetition"][i] == repetition(new)
    assert float(found["kl"].sel(strength=0.0).max()) == 0
    pushed = found["kl"].sel(strength=1.5).drop_sel(plan="marker")  # which may end a prompt
    assert float(pushed.min()) > 1e-3


def test_means_and_changes_have_intervals(found):
    at = found.sel(plan="plan", strength=1.5)
    base = found.sel(plan="plan", strength=0.0)
    for name in ("readout", "readout_new", "kl", "log_odds", "repetition", "n_new"):
        mean, low, high = (float(at[f"{name}_mean"].sel(bound=b)) for b in BOUNDS)
        np.testing.assert_allclose(mean, at[name].mean())
        assert low <= mean <= high
    change = at["readout_shift"].sel(bound=BOUNDS[0])
    np.testing.assert_allclose(change, (at["readout"] - base["readout"]).mean())
    assert (found["readout_shift"].sel(strength=0.0) == 0).all()
    mean = np.exp(np.log(at["perplexity"]).mean())
    np.testing.assert_allclose(at["perplexity_mean"].sel(bound=BOUNDS[0]), mean)
    assert found.attrs["prediction"].startswith("none")


def test_one_prompt_has_no_interval(model, concept, plans):
    one = lm.generation_effects(
        model, PROMPTS[:1], concept, {"p": plans["plan"]}, strengths=(1.0,), max_new_tokens=2
    )
    for name in ("readout_mean", "readout_shift", "kl_mean", "perplexity_mean"):
        assert np.isfinite(one[name].sel(bound="estimate")).all()
        assert np.isnan(one[name].sel(bound=["low", "high"])).all()


def test_repetition_by_hand():
    assert repetition([1, 2, 3, 4, 1, 2, 3]) == pytest.approx(1 / 5)
    assert repetition([5, 5, 5, 5, 5]) == pytest.approx(2 / 3)
    assert repetition([1, 2]) == repetition([]) == 0


def test_few_rows_at_a_time_are_the_same(model, concept, plans, found, monkeypatch):
    monkeypatch.setattr("depthsys.lm.prices.LOGITS", 1)
    again = lm.generation_effects(
        model, PROMPTS, concept, plans, strengths=STRENGTHS, max_new_tokens=N_NEW, words=WORDS
    )
    xr.testing.assert_allclose(again, found, rtol=1e-5, atol=1e-9)


def test_every_text_is_written_once_and_sampling_by_its_seed(model, concept, plans, monkeypatch):
    calls = []
    original = model.new_tokens

    def counted(*args, **options):
        calls.append(options)
        return original(*args, **options)

    monkeypatch.setattr(model, "new_tokens", counted)
    options = {"strengths": (0, 0.5, 1), "max_new_tokens": 3, "do_sample": True, "n_bootstrap": 3}
    state = torch.get_rng_state()
    one = lm.generation_effects(model, PROMPTS, concept, plans, **options)
    assert len(calls) == 1 + 2 * len(plans)
    assert torch.equal(torch.get_rng_state(), state)
    same = lm.generation_effects(model, PROMPTS, concept, plans, **options)
    other = lm.generation_effects(model, PROMPTS, concept, plans, seed=1, **options)
    assert (one["text"] == same["text"]).all()
    assert (one["text"] != other["text"]).any()
    assert np.isnan(one["log_odds"]).all()


def test_other_readouts(model, concept, plans):
    options = {"strengths": (1,), "max_new_tokens": 3, "n_bootstrap": 3}
    readout = lm.LogitDifference(3, 7)
    found = lm.generation_effects(model, PROMPTS, concept, plans, readout=readout, **options)
    text = new_ids(found, plan="plan", strength=1.0)[1]
    if text[-1] == model.hf.generation_config.eos_token_id:
        text = text[:-1]
    with torch.no_grad():
        logits = model.hf(torch.tensor([[*PROMPTS[1], *text]])).logits[0, -1]
    expected = float(logits[3] - logits[7])
    np.testing.assert_allclose(found["readout"].sel(plan="plan")[0, 1], expected, rtol=1e-5)


def test_texts_are_put_into_the_template(demo_model):
    """As their own token ids are judged and gone on from by a model without one."""
    from depthsys import demo

    path = demo.model_path("demo_48x4")
    templated = lm.DepthModel.load(path, device="cpu", template="the {text} was")
    axes = np.eye(templated.n_layers + 1, templated.n_features)
    plan = lm.equal_push_plan(xr.DataArray(axes, dims=("depth", "feature")), size=1.0)
    options = {"strengths": (0, 1), "max_new_tokens": 4, "n_bootstrap": 3}
    found = lm.generation_effects(templated, ["film", "place"], plan, {"p": plan}, **options)
    rows, _ = templated.tokenize(["film", "place"])
    same = lm.generation_effects(demo_model, rows, plan, {"p": plan}, **options)
    assert (found["text"].values == same["text"].values).all()
    np.testing.assert_allclose(found["kl"], same["kl"], rtol=1e-5, atol=1e-7)
    assert found["text"].sel(strength=0.0, plan="p").values.tolist() == templated.generate(
        ["film", "place"], max_new_tokens=4
    )


def test_wrong_asks_are_refused(model, concept, plans, demo_model, monkeypatch):
    def refused(said, kind=ValueError, of=concept, by=plans, **options):
        with pytest.raises(kind, match=said):
            lm.generation_effects(model, PROMPTS, of, by, **{"max_new_tokens": 2, **options})

    plan = plans["plan"]
    refused(r"`plans` must be plans by name; got a Dataset", TypeError, by=plans["plan"])
    refused(r"`strengths` must be finite numbers, each once; got \[1, 1\]", strengths=[1, 1])
    refused(r"`strengths` must be finite numbers", strengths=[np.nan])
    refused(r"`words` must be the words of two classes; got 'good'", TypeError, words="good")
    refused(r"`plans` must have names that differ .*; got \[1, '1'\]", by={1: plan, "1": plan})
    for level in (2, 0.0, "a"):
        refused(r"`level` must be between 0 and 1; got ", level=level)
    refused(r"`words` must be single tokens; got 50, which is \[50\]", words=([50], [1]))
    refused(r"`words` must be single tokens; got 5\.5, which is", words=([5.5], [6]))
    refused(r"`words` must be token ids where the model has no", words=([" good"], [1]))
    refused(r"`words` must be at least one of each class, and none of both", words=([1], [1, 2]))
    refused(r"`max_new_tokens` must leave the text within", max_new_tokens=40)
    refused(r"`concept` must be concept directions; got 3", TypeError, of=3)
    two = xr.concat([concept, concept], "input")
    refused(r"`readout` must be one number here; got 2 outputs", of=two)
    huge = {"huge": plans["plan"] * 1e307}
    with pytest.raises(FloatingPointError, match=r"at strength 0\.5: a push overflows") as error:
        lm.generation_effects(model, PROMPTS, concept, huge, max_new_tokens=2)
    assert error.value.__notes__ == ["This is about the plan 'huge'."]
    with monkeypatch.context() as patch:
        patch.setattr(lm.prices, "read_steered", lambda *given: read_steered(*given) * np.nan)
        with pytest.raises(FloatingPointError, match="the states must stay finite"):
            lm.generation_effects(model, PROMPTS, concept, plans, max_new_tokens=2)
    wrong = {"good": plans["plan"], "short": plans["plan"].isel(layer=slice(2))}
    with pytest.raises(ValueError, match=r"`plan` must hold u") as error:
        lm.generation_effects(model, PROMPTS, concept, wrong, max_new_tokens=2)
    assert error.value.__notes__ == ["This is about the plan 'short'."]
    axes = np.eye(demo_model.n_layers + 1, demo_model.n_features)
    plan = lm.equal_push_plan(xr.DataArray(axes, dims=("depth", "feature")), size=1.0)
    for words in ((["xyzzy plugh"], [1]), ([True], [2])):
        with pytest.raises(ValueError, match=r"`words` must be single tokens; got ('xyzzy|True)"):
            lm.generation_effects(demo_model, ["a"], plan, {"p": plan}, words=words)
