"""Schedules played at every token, and what a control vector does: against plain hooks."""

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import export, lm
from tests.conftest import TINY
from tests.lm.conftest import labelled_ids
from tests.lm.whole_sequence import blocks

N_LAYERS, H = 3, 16


def last_state(hf, ids, pushes, *, tokens, end=0.0):
    """x_L of the last token, with vectors added to the inputs of blocks by plain hooks."""
    where = slice(None) if tokens == "every" else slice(-1, None)
    handles, out = [], []
    for block, push in zip(blocks(hf), pushes, strict=True):

        def hook(module, args, push=push):
            hidden = args[0].clone()
            hidden[:, where] += torch.as_tensor(push)
            return (hidden, *args[1:])

        handles.append(block.register_forward_pre_hook(hook))
    handles.append(
        blocks(hf)[-1].register_forward_hook(
            lambda m, a, o: out.append((o[0] if isinstance(o, tuple) else o)[0, -1])
        )
    )
    try:
        with torch.no_grad():
            hf(torch.tensor([ids]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return out[0].numpy() + end


@pytest.fixture(scope="module")
def prompts():
    return labelled_ids(9, 4)  # of 1 to 6 tokens


@pytest.fixture(scope="module")
def vector():
    rng = np.random.default_rng(2)
    return export.from_control_vector(
        {n: s * rng.standard_normal(H) for n, s in ((0, 0.3), (1, 0.8), (2, 0.5))}
    )


def pushes_of(vector):
    v, u = vector["direction"].fillna(0.0).values, vector["u"].values
    return u[:, None] * v[:-1], float(vector["u_end"]) * v[-1]


def shifts(model, prompts, vector, rows, tokens, factor=1.0):
    """(prompt, output)"""
    pushes, end = pushes_of(vector)
    zero = 0 * pushes
    return np.array(
        [
            rows
            @ (
                last_state(model.hf, row, factor * pushes, tokens=tokens, end=factor * end)
                - last_state(model.hf, row, zero, tokens=tokens)
            )
            for row in prompts.ids
        ]
    )


def close(got, expected, rtol=1e-5):  # norms and rotary tables compute in float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * abs(expected).max())


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", TINY)
def test_both_ways_of_playing_are_what_hooks_say(name, padded, prompts, vector):
    model = lm.DepthModel(TINY[name]().double(), name=name, left_padding=padded)
    rows = xr.DataArray(np.eye(H), dims=("output", "feature"))
    found = {}
    for tokens in ("last", "every"):
        played = lm.play(
            model, prompts, vector, vector, scale=(0.5, -2.0), readout=rows, tokens=tokens
        )
        assert played.attrs["tokens"] == tokens
        found[tokens] = played["response"].transpose("scale", "prompt", "output").values
        for place, factor in enumerate((0.5, -2.0)):
            expected = shifts(model, prompts, vector, np.eye(H), tokens, factor)
            close(found[tokens][place], expected)
    longer = [len(row) > 1 for row in prompts.ids]
    difference = abs(found["every"] - found["last"]).max(axis=(0, 2)) / abs(found["last"]).max()
    assert (difference[longer] > 1e-2).all()
    assert (difference[~np.array(longer)] < 1e-5).all()


def test_several_schedules_and_inputs_at_every_token(tiny, prompts):
    rng = np.random.default_rng(0)
    v = rng.standard_normal((N_LAYERS + 1, 2, H))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    concept = xr.Dataset({"direction": (("depth", "input", "feature"), v)})
    u = 0.5 * rng.standard_normal((2, N_LAYERS, 2))
    plans = xr.Dataset({"u": (("schedule", "layer", "input"), u)})
    found = lm.play(tiny, prompts, concept, plans, tokens="every")["response"]
    assert found.sizes == {"prompt": 9, "schedule": 2, "scale": 1, "output": 2}
    for place in range(2):
        pushes = np.einsum("li,lif->lf", u[place], v[:-1])
        for i, row in enumerate(prompts.ids):
            moved = last_state(tiny.hf, row, pushes, tokens="every")
            expected = v[-1] @ (moved - last_state(tiny.hf, row, 0 * pushes, tokens="every"))
            np.testing.assert_allclose(found[i, place, 0], expected, atol=1e-5, rtol=1e-5)


def test_a_push_behind_the_last_block_moves_logits_by_the_head(tiny, prompts, vector):
    """Where the readout is not linear the push goes through it, not beside it."""
    readout = lm.LogitDifference(3, 7)
    only_end = vector.assign(u=0 * vector["u"])
    for tokens in ("last", "every"):
        found = lm.play(tiny, prompts, vector, only_end, readout=readout, tokens=tokens)
        states = tiny.run(prompts, contexts=False).states.values[-1]
        ends = torch.as_tensor(np.stack([states, states + pushes_of(vector)[1]]))
        logits = torch.stack([tiny.head(end) for end in ends]).numpy()
        difference = logits[..., 3] - logits[..., 7]
        close(found["response"].values[:, 0], difference[1] - difference[0])


def test_many_copies_with_pushes_behind_the_last_block(tiny, prompts, vector, monkeypatch):
    """More than are replayed at once: each keeps its own."""
    factors = np.linspace(-1, 1, 7)
    whole = lm.play(tiny, prompts, vector, vector, scale=factors)
    monkeypatch.setattr("depthsys.lm.replay.ROWS", 2)
    parts = lm.play(tiny, prompts, vector, vector, scale=factors)
    np.testing.assert_allclose(parts["response"], whole["response"], rtol=1e-9, atol=1e-12)
    batch = vector.assign(
        u=vector["u"].expand_dims(schedule=2), u_end=("schedule", [0.0, float(vector["u_end"])])
    )
    found = lm.play(tiny, prompts, vector, batch)["response"]
    assert found.sizes["schedule"] == 2
    np.testing.assert_allclose(found[:, 1, 0], whole["response"][:, -1], rtol=1e-9)
    gap = (found[:, 1, 0] - found[:, 0, 0]).values
    np.testing.assert_allclose(gap, float(vector["u_end"]), rtol=1e-6)


def test_wrong_plays_are_refused(tiny, prompts, vector):
    with pytest.raises(ValueError, match=r"`tokens` must be one of .*; got 'first'"):
        lm.play(tiny, prompts, vector, vector, tokens="first")
    with pytest.raises(ValueError, match=r"`plan.u_end` must be a finite number"):
        lm.play(tiny, prompts, vector, vector.assign(u_end=np.inf))
    nowhere, rows = vector.copy(deep=True), np.ones((1, H))
    nowhere["direction"][-1] = np.nan
    with pytest.raises(ValueError, match=r"`plan.u_end` must be zero where .*; got 1\. "):
        lm.play(tiny, prompts, nowhere, nowhere.assign(u_end=1.0), readout=rows)
    for tokens in ("last", "every"):
        with pytest.raises(FloatingPointError, match="the states must stay finite; a push of"):
            lm.play(tiny, prompts, vector, vector.assign(u_end=1e308), scale=[10], tokens=tokens)


# ------------------------------------------------------------------------- effect


@pytest.fixture(scope="module")
def towards() -> xr.Dataset:
    v = np.random.default_rng(8).standard_normal((N_LAYERS + 1, H))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return xr.Dataset({"direction": (("depth", "feature"), v)})


def test_the_effect_is_what_hooks_say(tiny, prompts, vector, towards):
    found = lm.steering_effect(tiny, prompts, towards, vector, n_bootstrap=200)
    rows = np.stack([towards["direction"].values[-1], vector["direction"].values[-1]])
    for tokens in ("last", "every"):
        expected = shifts(tiny, prompts, vector, rows, tokens)
        close(found["response"].sel(tokens=tokens), expected)
        mean = found["response_mean"].sel(tokens=tokens)
        close(mean.sel(bound="estimate"), expected.mean(axis=0))
        low, high = (mean.sel(bound=bound).values for bound in ("low", "high"))
        # about two standard errors on either side
        error = expected.std(axis=0) / np.sqrt(len(expected))
        assert (low < expected.mean(axis=0)).all()
        np.testing.assert_allclose((high - low) / error, 3.9, rtol=0.25)
    nominal = np.array(
        [last_state(tiny.hf, r, np.zeros((3, H)), tokens="last") for r in prompts.ids]
    )
    close(found["readout_std"], (nominal @ rows.T).std(axis=0))
    close(found["push"][:, -1], float(vector["u_end"]) / np.linalg.norm(nominal, axis=1))
    embedded = tiny.run(prompts, contexts=False).states.sel(depth=1).values
    close(found["push"][:, 1], vector["u"].values[1] / np.linalg.norm(embedded, axis=1))
    assert (found["push"][:, 0] == 0).all()
    close(found["push_mean"], found["push"].mean("prompt"))
    close(found["push_max"], found["push"].max("prompt"))


def test_what_linear_systems_predict_is_the_limit_of_small_pushes(tiny, prompts, vector, towards):
    small = vector.assign(u=1e-3 * vector["u"], u_end=1e-3 * vector["u_end"])
    found = lm.steering_effect(tiny, prompts, towards, small, n_bootstrap=3)
    rows = np.stack([towards["direction"].values[-1], vector["direction"].values[-1]])
    both = [shifts(tiny, prompts, vector, rows, "last", s * 1e-3) for s in (1, -1)]
    np.testing.assert_allclose(
        found["predicted"], (both[0] - both[1]) / 2, rtol=0, atol=1e-3 * abs(both[0]).max()
    )
    mean = found["predicted_mean"].sel(bound="estimate")
    np.testing.assert_allclose(mean, found["predicted"].mean("prompt"), rtol=1e-12)
    full = lm.steering_effect(tiny, prompts, towards, vector, n_bootstrap=3)
    np.testing.assert_allclose(full["predicted"], 1e3 * found["predicted"], rtol=1e-9)


def test_large_pushes_are_warned_of(tiny, prompts, vector, towards):
    size = lm.steering_effect(tiny, prompts, towards, vector, n_bootstrap=3)["push_mean"].max()
    for ratio in (0.29, 0.31):
        factor = ratio / float(size)
        one = vector.assign(u=factor * vector["u"], u_end=factor * vector["u_end"])
        found = lm.steering_effect(tiny, prompts, towards, one, n_bootstrap=3)
        assert ("warning" in found.attrs) == (ratio > 0.3)
    assert "more than 0.3 of the state's norm at depth" in found.attrs["warning"]
    assert "(largest 0.31 at depth" in found.attrs["warning"]


def test_its_own_last_direction_may_end_before_the_last_depth(tiny, prompts, towards):
    rng = np.random.default_rng(3)
    vector = export.from_control_vector({0: rng.standard_normal(H)}, n_layers=N_LAYERS)
    found = lm.steering_effect(tiny, prompts, towards, vector, n_bootstrap=3)
    assert found.attrs["own_depth"] == 1
    rows = vector["direction"].values[[1]]
    expected = shifts(tiny, prompts, vector, rows, "every")[:, 0]
    close(found["response"].sel(tokens="every", output="own"), expected)


def test_a_concept_without_a_last_direction_is_refused(tiny, prompts, vector, towards):
    nowhere = towards.copy(deep=True)
    nowhere["direction"][-1] = np.nan
    with pytest.raises(
        ValueError, match="`concept` must have a direction at the last depth, which"
    ):
        lm.steering_effect(tiny, prompts, nowhere, vector)
    with pytest.raises(TypeError, match="`vector` must be a control vector with"):
        lm.steering_effect(tiny, prompts, towards, towards)


def test_nominal_states_that_are_not_finite_are_not_blamed_on_the_push(
    prompts, vector, monkeypatch
):
    model = lm.DepthModel(TINY["gpt2"]())
    run = model.run(prompts, contexts=False)
    original = type(model.blocks).sequence

    def overflowing(self, layer, calls, hidden):
        after, *others = original(self, layer, calls, hidden)
        return (after * torch.inf if layer == 1 else after), *others

    monkeypatch.setattr(type(model.blocks), "sequence", overflowing)
    with pytest.raises(FloatingPointError, match=r"`model` must have finite states; .* layer 1"):
        lm.play(run, vector, vector, tokens="every")
    monkeypatch.undo()
    with pytest.raises(FloatingPointError, match=r"a push of size \S+ overflows"):
        lm.play(run, vector, vector, scale=(1e30,), tokens="every")
