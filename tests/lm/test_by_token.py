"""Gains of pushes at every token: against whole-sequence autograd, central differences, replays."""

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm
from depthsys.lm.every_token import every_token_shifts
from depthsys.lm.readouts import checked_readout
from tests.conftest import TINY, tiny_gpt2
from tests.lm import families
from tests.lm.conftest import (
    counted_block_calls,
    labelled_ids,
    no_block_runs,
    several_inputs,
    spoil_states,
)

H = families.N_FEATURES
# family, attention; the second has a window of 3 tokens
CASES = [("gpt2", "sdpa"), ("mistral", "eager"), ("gpt_neox", "sdpa"), ("llama", "eager")]


def last_state(hf, ids, pushes, seen=None) -> torch.Tensor:
    """x_L of the last token in a plain pass of Hugging Face, pushes (layer, token, feature)."""
    handles, out = [], []
    for layer, block in enumerate(families.blocks(hf)):

        def hook(module, args, kwargs, layer=layer):
            hidden = args[0] if args else kwargs["hidden_states"]
            if seen is not None:
                seen.append(hidden[0].detach().numpy())
            moved = hidden + pushes[layer]
            return (
                ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": moved})
            )

        handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    handles.append(
        families.blocks(hf)[-1].register_forward_hook(
            lambda m, a, o: out.append((o[0] if isinstance(o, tuple) else o)[0, -1])
        )
    )
    try:
        hf(torch.tensor([ids]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return out[0]


def no_pushes(hf, ids) -> torch.Tensor:
    return torch.zeros(len(families.blocks(hf)), len(ids), H, dtype=hf.dtype)


def gradients(hf, ids, row) -> tuple[np.ndarray, np.ndarray]:
    """d(row' x_L)/d(state), and states, both (layer, lag, feature), by autograd of all of it."""
    pushes, seen = no_pushes(hf, ids).requires_grad_(), []
    (torch.as_tensor(row) @ last_state(hf, ids, pushes, seen)).backward()
    return pushes.grad.numpy()[:, ::-1], np.stack(seen)[:, ::-1]


@pytest.fixture(scope="module")
def texts():
    return labelled_ids(9, 4)  # of 1 to 6 tokens


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def made(request, texts):
    """A model whose batches are padded, a run, a concept, and the gains."""
    name, attention = request.param
    window = {"window": 3} if name == "mistral" else {}
    model = lm.DepthModel(families.make(name, attention, **window), left_padding=True)
    run = model.run(texts, tokens="all")
    assert any(not run.real_tokens_of(b).all() for b in range(len(run.numbers)))
    concept = lm.mean_difference(run)
    return model, run, concept, lm.token_gains(run, concept)


def test_gains_are_those_of_autograd_through_hugging_face(made, texts):
    model, _, concept, found = made
    v = concept["direction"].values
    assert found["gain"].dims == ("prompt", "layer", "lag")
    assert found["lag"].values.tolist() == list(range(6))
    for number, ids in enumerate(texts.ids):
        gradient, states = gradients(model.hf, ids, v[-1])
        here = found.isel(prompt=number)
        own = slice(len(ids))
        expected = np.einsum("ltf,lf->lt", gradient, v[:-1])
        near = {"rtol": 0, "atol": 2e-6 * abs(expected).max()}  # norms compute in float32
        np.testing.assert_allclose(here["gain"][:, own], expected, **near)
        norm = np.linalg.norm(gradient, axis=-1)
        np.testing.assert_allclose(here["gradient_norm"][:, own], norm, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            here["state_norm"][:, own], np.linalg.norm(states, axis=-1), rtol=1e-5
        )
        for name in ("gain", "gradient_norm", "state_norm"):
            assert np.isnan(here[name][:, len(ids) :]).all()
        assert here["n_tokens"] == len(ids)
    # they do something: an earlier token moves the last one
    assert abs(found["gain"][:, :, 1:]).max() > 1e-2 * abs(found["gain"]).max()


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_without_float32_inside_they_are_central_differences_and_linear_gains(
    name, attention, texts
):
    """To seven and to ten digits: what the others miss is rounding."""
    window = {"window": 3} if name == "mistral" else {}
    with families.double_inside():
        model = lm.DepthModel(families.make(name, attention, **window), left_padding=True)
        run = model.run(texts, tokens="all")
        concept = lm.mean_difference(run)
        found = lm.token_gains(run, concept)
        expected = lm.linear_gains(run, concept)
        at = found.sel(lag=0)
        np.testing.assert_allclose(at["gain"], expected["gain"], rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(at["state_norm"], expected["state_norm"], rtol=1e-12)
        np.testing.assert_allclose(found["readout"], expected["readout"], rtol=1e-12)
        v, eps = concept["direction"].values, 1e-5
        number = next(n for n, ids in enumerate(texts.ids) if len(ids) == 6)
        slopes = np.empty((model.n_layers, 6))
        for layer, lag in np.ndindex(slopes.shape):
            ends = []
            for sign in (1, -1):
                pushes = no_pushes(model.hf, texts.ids[number])
                pushes[layer, 5 - lag] = sign * eps * torch.as_tensor(v[layer])
                with torch.no_grad():
                    ends.append(v[-1] @ last_state(model.hf, texts.ids[number], pushes).numpy())
            slopes[layer, lag] = (ends[0] - ends[1]) / (2 * eps)
    np.testing.assert_allclose(found["gain"][number], slopes, atol=1e-7 * abs(slopes).max())


def test_at_lag_0_they_are_the_linear_gains(made):
    _, run, concept, found = made
    expected, at = lm.linear_gains(run, concept)["gain"], found["gain"].sel(lag=0)
    np.testing.assert_allclose(at, expected, atol=2e-6 * float(abs(expected).max()))


def test_behind_windows_nothing_is_seen():
    """One layer of a window of 3 tokens: a token two back is seen, one three back is not."""
    model = lm.DepthModel(families.make("mistral", window=3, num_hidden_layers=1))
    texts = labelled_ids(8, 4)
    gain = lm.token_gains(model, texts, lm.mean_difference(model, texts))["gain"]
    reached = np.nanmax(abs(gain[:, 0]), axis=0)
    assert (reached[:3] > 1e-6).all()
    assert (reached[3:] == 0).all()


def test_padding_and_the_place_change_nothing(texts):
    """In eager float64 padded tokens have no derivative; batches are then taken apart by length."""
    hf = families.make("llama", "eager")
    padded = lm.DepthModel(hf, left_padding=True)
    plain = lm.DepthModel(hf, left_padding=False)
    concept = lm.mean_difference(padded, texts)
    expected = lm.token_gains(plain, texts, concept)
    nowhere, files = lm.Budget(device=0, host=0, file=0), lm.Budget(device=0, host=0)
    for budget in (None, files, nowhere):
        run = padded.run(texts, tokens="all", budget=budget)
        found = lm.token_gains(run, concept)
        for name in found.data_vars:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-9)
    for given in (padded.run(texts), lm.ShardedRun(padded, texts, shard=4)):
        found = lm.token_gains(given, concept)
        np.testing.assert_allclose(found["gain"], expected["gain"], rtol=1e-6, atol=1e-9)


def test_several_inputs_outputs_and_a_readout_that_is_not_linear(gpt2, texts):
    concept = several_inputs()
    rows = np.random.default_rng(1).standard_normal((3, 16))
    found = lm.token_gains(gpt2, texts, concept, readout=rows)
    assert found["gain"].dims == ("prompt", "layer", "lag", "output", "input")
    assert found["gradient_norm"].dims == ("prompt", "layer", "lag", "output")
    ids, v = texts.ids[2], concept["direction"].values
    for output, row in enumerate(rows):
        gradient, _ = gradients(gpt2.hf, ids, row)
        expected = np.einsum("ltf,lif->lti", gradient, v[:-1])
        here = found["gain"][2, :, : len(ids), output]
        np.testing.assert_allclose(here, expected, rtol=1e-8, atol=1e-9)
    readout = lm.LogitDifference(3, 7)
    difference = lm.token_gains(gpt2, texts, concept, readout=readout).sel(lag=0)["gain"]
    expected = lm.linear_gains(gpt2, texts, concept, readout=readout)["gain"]
    np.testing.assert_allclose(difference, expected, rtol=1e-8, atol=1e-12)


def test_passes_are_those_that_are_said(gpt2, texts, concept, monkeypatch):
    """One pass of whole sequences from kept states, two without, whatever the inputs and lags."""
    kept, plain = gpt2.run(texts, tokens="all", contexts=False), gpt2.run(texts)
    calls = counted_block_calls(gpt2, monkeypatch)
    one = [(layer, rows) for layer in range(3) for rows in rows_of(kept)]
    for options in ({}, {"n_lags": 2}):
        calls.clear()
        lm.token_gains(kept, concept, **options)
        assert sorted(calls) == sorted(one)
    calls.clear()
    lm.token_gains(plain, concept)
    assert sorted(calls) == sorted(2 * one)
    calls.clear()
    lm.measure_token_gains(kept, concept, lags=[0, 2], layers=[1])
    assert sorted(calls) == sorted(2 * 3 * one)  # two signs and none, for either lag


def rows_of(run) -> list[int]:
    return [len(p) * run.n_tokens(b) for b, p in enumerate(run.numbers)]


def test_a_graph_is_that_of_one_block(texts, concept, monkeypatch, live_bytes):
    """What lives while the last block is evaluated does not grow with those behind it."""
    most = []
    for n_layers in (2, 8):
        model = lm.DepthModel(tiny_gpt2(n_layer=n_layers))
        v = concept["direction"].values[[0] * (n_layers + 1)]
        wide = xr.Dataset({"direction": (("depth", "feature"), v)})
        run = model.run(texts, tokens="all", budget=lm.Budget(host=0))
        before, seen = live_bytes(), []
        original = model.blocks.call

        def weighing(layer, *args, original=original, seen=seen, before=before):
            seen.append(live_bytes() - before)
            return original(layer, *args)

        monkeypatch.setattr(model.blocks, "call", weighing)
        lm.token_gains(run, wide)
        most.append(max(seen))
    gains = 9 * 6 * 3 * 8 * 6  # bytes of what is found of six more layers
    assert most[1] - most[0] < gains + 9 * 6 * H * 4


def test_n_lags_is_the_end_of_all_of_them(made):
    _, run, concept, found = made
    some = lm.token_gains(run, concept, n_lags=3)
    xr.testing.assert_allclose(some.drop_attrs(), found.isel(lag=slice(3)).drop_attrs())
    assert lm.token_gains(run, concept, n_lags=99).sizes["lag"] == 6


def test_no_direction_no_gain(gpt2, texts, concept):
    nowhere = concept.copy(deep=True)
    nowhere["direction"][1] = np.nan
    found = lm.token_gains(gpt2, texts, nowhere)
    assert found["gain"].isel(layer=1).isnull().all()
    assert (found["gradient_norm"].isel(layer=1, lag=0) > 0).all()
    measured = lm.measure_token_gains(gpt2, texts, nowhere, lags=[0, 1], layers=[1, 2])
    assert measured["gain"].sel(layer=1).isnull().all()
    assert measured["gain"].sel(layer=2, lag=0).notnull().all()


# ------------------------------------------------------------------------------- really pushing


def test_measured_gains_are_those_of_small_pushes(made, texts):
    _, run, concept, found = made
    measured = lm.measure_token_gains(run, concept, lags=[4, 0, 1], step=lm.Step(2e-3))
    assert measured["gain"].dims == ("prompt", "layer", "lag")
    assert measured["lag"].values.tolist() == [4, 0, 1]
    near = found.sel(lag=[4, 0, 1])
    scale = float(abs(near["gain"]).max())
    np.testing.assert_allclose(measured["gain"], near["gain"], atol=2e-4 * scale)
    np.testing.assert_allclose(measured["state_norm"], near["state_norm"], rtol=1e-9)
    lengths = np.array([len(ids) for ids in texts.ids])
    assert (measured["gain"].sel(lag=4).isnull().all("layer").values == (lengths < 5)).all()


def test_large_pushes_are_those_of_hooks(made, texts):
    model, run, concept, _ = made
    v, size = concept["direction"].values, 0.7
    steps = {"absolute": lm.Step(size, relative=False), "relative": lm.Step(size)}
    for kind, step in steps.items():
        found = lm.measure_token_gains(run, concept, lags=[2], layers=[1], step=step)["gain"]
        for number, ids in enumerate(texts.ids):
            if len(ids) < 3:
                continue
            seen, ends = [], []
            last_state(model.hf, ids, no_pushes(model.hf, ids), seen)
            length = size * (np.linalg.norm(seen[1][-3]) if kind == "relative" else 1.0)
            for sign in (1, -1):
                pushes = no_pushes(model.hf, ids)
                pushes[1, -3] = sign * length * torch.as_tensor(v[1])
                with torch.no_grad():
                    ends.append(v[-1] @ last_state(model.hf, ids, pushes).numpy())
            slope = (ends[0] - ends[1]) / (2 * length)
            assert float(found[number, 0, 0]) == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_measured_of_several_inputs_and_in_shards(gpt2, texts):
    concept, step = several_inputs(), lm.Step(1e-3)
    exact = lm.token_gains(gpt2, texts, concept)["gain"]
    for run in (gpt2.run(texts), lm.ShardedRun(gpt2, texts, shard=4)):
        found = lm.measure_token_gains(run, concept, lags=[0, 3], layers=[2, 0], step=step)["gain"]
        assert found.dims == ("prompt", "layer", "lag", "output", "input")
        expected = exact.sel(layer=[2, 0], lag=[0, 3])
        scale = float(abs(expected).max())
        np.testing.assert_allclose(found, expected, atol=1e-4 * scale)


@pytest.mark.parametrize("name", TINY)
def test_one_token_is_not_every_token(name, texts, concept):
    """The mechanism that both share: small pushes of either of two tokens add up to one of both."""
    model = lm.DepthModel(TINY[name]().double())
    run, v = model.run(texts), torch.as_tensor(concept["direction"].values)[:, None]
    reader = checked_readout(model, "concept", concept)
    pushes = torch.zeros(2, 3, 1, dtype=torch.float64)
    pushes[0, 1] = 1e-2
    last = np.array([len(row) - 1 for row in texts.ids])
    behind, alone = (
        every_token_shifts(run, v, pushes, reader, None, only, begins=last - (last > 0))
        for only in (False, True)
    )
    at_last = every_token_shifts(run, v, pushes, reader, None, True, begins=last)
    longer = last > 0
    scale = abs(behind).max()
    np.testing.assert_allclose(behind[longer], (alone + at_last)[longer], atol=0.02 * scale)
    assert (abs(alone - behind)[longer] > 1e-3 * scale).all()
    np.testing.assert_allclose(alone[~longer], behind[~longer], rtol=1e-9)
    halved = every_token_shifts(
        run, v, pushes, reader, None, True, begins=last, factors=np.full((9, 2), 0.5)
    )
    np.testing.assert_allclose(halved, at_last / 2, atol=0.02 * scale)


# ------------------------------------------------------------------------------- bad input


@pytest.fixture
def waiting(gpt2, texts, monkeypatch):
    """A run of which no block may run."""
    no_block_runs(monkeypatch)
    return lm.Run.later(gpt2, texts)


def test_wrong_arguments_are_refused_before_any_work(waiting, concept):
    for n_lags in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=r"`n_lags` must be a whole number >= 1; got"):
            lm.token_gains(waiting, concept, n_lags=n_lags)
    for lags in ([-1], [0.5], [True]):
        with pytest.raises(ValueError, match="`lags` must be a whole number >= 0; got"):
            lm.measure_token_gains(waiting, concept, lags=lags)
    for lags in ([], [6], [1, 1]):
        with pytest.raises(ValueError, match=r"`lags` must be different numbers below 6, the tok"):
            lm.measure_token_gains(waiting, concept, lags=lags)
    for layers in ([], [3], [-1], [0, 0], [1.0], [True]):
        with pytest.raises(ValueError, match=r"`layers` must be different numbers in 0\.\.2; got"):
            lm.measure_token_gains(waiting, concept, lags=[0], layers=layers)
    with pytest.raises(TypeError, match=r"`step` must be a Step; got 0\.01. Write lm\.Step"):
        lm.measure_token_gains(waiting, concept, step=0.01)
    step = lm.Step(difference="forward")
    with pytest.raises(ValueError, match="`step` must be central here; got 'forward'"):
        lm.measure_token_gains(waiting, concept, lags=[0], step=step)


def test_within_inference_mode_there_are_no_derivatives(texts, concept):
    model = lm.DepthModel(tiny_gpt2().double())
    with torch.inference_mode():
        run = model.run(texts, tokens="all")
        with pytest.raises(RuntimeError, match=r"outside torch\.inference_mode"):
            lm.token_gains(run, concept)
    expected = lm.token_gains(model.run(texts), concept)
    found = lm.token_gains(run, concept)
    np.testing.assert_allclose(found["gain"], expected["gain"], rtol=1e-12)


def test_steps_that_say_nothing_are_refused(single, texts, concept):
    with pytest.raises(ValueError, match="`eps` must be well above the rounding"):
        lm.measure_token_gains(single, texts, concept, lags=[0], step=lm.Step(1e-7))
    hf = tiny_gpt2().double()
    hf.transformer.wpe.weight.data[:] = 0
    hf.transformer.wte.weight.data[0] = 0
    model = lm.DepthModel(hf)
    with pytest.raises(ValueError, match=r"a length where a step is relative .* number 1\. Leave"):
        lm.measure_token_gains(model, [[3, 4], [0, 5]], concept, lags=[0, 1])
    step = lm.Step(1e30, relative=False)
    with pytest.raises(FloatingPointError, match=r"a push of .* overflows"):
        lm.measure_token_gains(single, texts, concept, lags=[0], step=step)


def test_gains_that_are_not_finite_are_refused(texts, concept, monkeypatch):
    model = lm.DepthModel(tiny_gpt2().double())
    run = model.run(texts, contexts=False)
    with monkeypatch.context() as patch:
        patch.setattr(
            "depthsys.lm.by_token._pulled_back", lambda *args: torch.full_like(args[-1], np.inf)
        )
        with pytest.raises(FloatingPointError, match="gains must be finite; got nan or inf"):
            lm.token_gains(run, concept)
    spoil_states(monkeypatch, 1, (2,))
    with pytest.raises(FloatingPointError, match="non-finite one after layer 1"):
        lm.token_gains(run, concept)


def test_lags_and_layers_may_be_one_and_lags_are_those_there_are(gpt2, texts, concept):
    longest = max(map(len, texts.ids))
    found = lm.measure_token_gains(gpt2, texts, concept, layers=1)
    assert found["lag"].values.tolist() == [lag for lag in (0, 1, 2, 4, 8) if lag < longest]
    assert found["layer"].values.tolist() == [1]
    one = lm.measure_token_gains(gpt2, texts, concept, layers=[1], lags=1)
    np.testing.assert_allclose(one["gain"], found["gain"].sel(lag=[1]), rtol=1e-6)
