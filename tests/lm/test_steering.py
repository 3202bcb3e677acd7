"""Steering while a model writes: against plain hooks at columns that are counted by hand."""

import threading
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import DynamicCache, GenerationConfig

from depthsys import export, lm
from depthsys.lm.hf.attention import LAST_TOKEN_ATTENTION
from depthsys.lm.hf.writing import new_tokens
from depthsys.lm.positions import checked, pushed, starts
from tests.conftest import TINY, tiny_gpt2, tiny_llama
from tests.lm.test_devices import AROUND
from tests.lm.whole_sequence import blocks

N_LAYERS, H, N_NEW = 3, 16, 6
PROMPTS = [[7, 2, 30, 4], [2, 9], [5, 2, 2, 11]]
MARKED = lm.After([2])
POSITIONS = ("last", "generated", "every", MARKED)


def begins_by_hand(prompt, positions) -> list[bool]:
    """Whether each token of the prompt and each new one is pushed."""
    n = len(prompt)
    if positions == MARKED:
        first = n - prompt[::-1].index(2)
    else:
        first = {"last": n - 1, "generated": n - 1, "every": 0}[positions]
    last = n - 1 if positions == "last" else 10**6
    return [first <= at <= last for at in range(n + N_NEW + 40)]


def logits_by_hooks(hf, row, added, here, law=None) -> torch.Tensor:
    """Logits (token, word) of one row; vectors (depth, feature) where ``here`` says it."""
    handles = []
    mask = torch.tensor(here[: len(row)])[None, :, None]
    for layer, block in enumerate(blocks(hf)):

        def hook(module, args, layer=layer):
            more = torch.as_tensor(added[layer]).to(args[0])
            if law is not None:
                more = more + law(layer, args[0])
            return (args[0] + mask * more, *args[1:])

        handles.append(block.register_forward_pre_hook(hook))

    def behind(module, args, out):
        hidden = out[0] if isinstance(out, tuple) else out
        moved = hidden + mask * torch.as_tensor(added[-1]).to(hidden)
        return (moved, *out[1:]) if isinstance(out, tuple) else moved

    handles.append(blocks(hf)[-1].register_forward_hook(behind))
    try:
        with torch.no_grad():
            return hf(torch.tensor([row]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def written_by_hooks(hf, prompt, added, positions, n_new=N_NEW, law=None) -> list[int]:
    row = list(prompt)
    for _ in range(n_new):
        here = begins_by_hand(prompt, positions)
        row.append(int(logits_by_hooks(hf, row, added, here, law)[-1].argmax()))
    return row[len(prompt) :]


def logits_on_the_way(hf, prompts, added, positions, texts, law=None) -> np.ndarray:
    """Logits (prompt, new token, word) that those texts are read from, by hooks."""
    found = []
    for prompt, text in zip(prompts, texts, strict=True):
        row = [*prompt, *text[:-1]]
        here = begins_by_hand(prompt, positions)
        found.append(logits_by_hooks(hf, row, added, here, law)[len(prompt) - 1 :].numpy())
    return np.array(found)


def with_logits(hf, prompts) -> tuple[list[list[int]], np.ndarray]:
    """The texts of `written`, and the logits that they were read from."""
    out = written(hf, prompts, whole=True, output_logits=True, return_dict_in_generate=True)
    width = max(map(len, prompts))
    return out.sequences[:, width:].tolist(), torch.stack(out.logits, 1).numpy()


def written(hf, prompts, *, whole=False, **options):
    """By the model's own generate, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    options = {"max_new_tokens": N_NEW, "do_sample": False, "eos_token_id": None} | options
    out = hf.generate(ids, attention_mask=mask, pad_token_id=0, **options)
    return out if whole else out[:, width:].tolist()


@pytest.fixture(scope="module", params=list(TINY))
def model(request) -> lm.DepthModel:
    """Of its own, since hooks are put on it."""
    return lm.DepthModel(TINY[request.param]().double(), name=request.param)


@pytest.fixture(scope="module")
def plan() -> xr.Dataset:
    return xr.Dataset({"u": ("layer", [1.5, -2.5, 2.0]), "u_end": -1.0})


@pytest.fixture(scope="module")
def added(plan, concept) -> np.ndarray:
    u = np.append(plan["u"].values, float(plan["u_end"]))
    return u[:, None] * concept["direction"].values


def is_clean(model) -> bool:
    hf, modules = model.hf, [model.hf, *blocks(model.hf)]
    left = [m for m in modules if m._forward_pre_hooks or m._forward_hooks]
    return not left and "generate" not in vars(hf)


def test_positions_are_where_they_say():
    assert pushed("last", range(6), 4).tolist() == [[0, 0, 0, 1, 0, 0]]
    assert pushed("generated", range(6), 4).tolist() == [[0, 0, 0, 1, 1, 1]]
    assert pushed("every", range(2, 4), 4).tolist() == [[1, 1]]
    by_row = pushed(MARKED, range(3, 5), 4, np.array([3, 4])).tolist()
    assert by_row == [[1, 1], [0, 1]]
    assert starts([[2, 1, 2, 5], [2]], MARKED) == [3, 1]
    letters = {1: "ab", 2: "c:", 3: " d"}
    decode = lambda ids: "".join(letters[i] for i in ids)  # noqa: E731
    # within a token, over two tokens, the last of two
    assert starts([[1, 2, 3], [2, 2, 3]], lm.After("c"), decode) == [2, 2]
    assert starts([[1, 2, 3, 1, 2]], lm.After("bc"), decode) == [5]
    for one in (*POSITIONS, lm.After('say "x"\n')):
        assert checked(str(one)) == one


# --------------------------------------------------------------------- while it writes


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_texts_are_those_of_hooks_at_counted_columns(model, concept, plan, added, positions):
    nothing = written(model.hf, PROMPTS)
    expected = [written_by_hooks(model.hf, p, added, positions) for p in PROMPTS]
    assert (
        expected != nothing == [written_by_hooks(model.hf, p, 0 * added, "last") for p in PROMPTS]
    )
    with lm.steering(model, concept, plan, positions=positions) as here:
        hf = here.hf
        assert written(hf, PROMPTS) == expected
        texts, logits = with_logits(hf, PROMPTS)
        assert written(hf, PROMPTS, use_cache=False) == expected
        assert written(hf, PROMPTS, cache_implementation="static") == expected
        assert written(hf, PROMPTS, prefill_chunk_size=2) == expected
        for prompt, alone in zip(PROMPTS, expected, strict=True):
            assert written(hf, [prompt]) == [alone]
            assert written(hf, [prompt], prompt_lookup_num_tokens=2) == [alone]
            assert written(hf, [prompt], num_return_sequences=2, do_sample=True, top_k=1) == [
                alone, alone,
            ]  # fmt: skip
        twice = written(hf, PROMPTS, num_return_sequences=2, do_sample=True, top_k=1)
        assert twice == [row for row in expected for _ in range(2)]
    by_hand = logits_on_the_way(model.hf, PROMPTS, added, positions, texts)
    np.testing.assert_allclose(logits, by_hand, rtol=0, atol=1e-5 * abs(by_hand).max())
    assert written(model.hf, PROMPTS) == nothing
    assert is_clean(model)


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_an_assistant_proposes_and_the_steered_model_decides(
    model, concept, plan, added, positions
):
    helper = TINY[model.name](**{"bos_token_id": 0} if model.name == "llama" else {}).double()
    for config in (helper.generation_config, model.hf.generation_config):
        config.eos_token_id = None
    expected = written_by_hooks(model.hf, PROMPTS[0], added, positions)
    with lm.steering(model, concept, plan, positions=positions) as here:
        found = written(here.hf, PROMPTS[:1], assistant_model=helper)
    assert found == [expected]


@pytest.mark.parametrize("positions", ["generated", MARKED], ids=str)
def test_enough_beams_find_the_best_text_of_all(model, concept, plan, added, positions):
    best = []
    for prompt in PROMPTS:
        here = begins_by_hand(prompt, positions)
        first = logits_by_hooks(model.hf, prompt, added, here)[-1].log_softmax(-1)
        second = [logits_by_hooks(model.hf, [*prompt, w], added, here)[-1] for w in range(50)]
        total = first[:, None] + torch.stack(second).log_softmax(-1)
        best.append(list(divmod(int(total.argmax()), 50)))
    with lm.steering(model, concept, plan, positions=positions) as here:
        for cached in (True, False):
            found = written(here.hf, PROMPTS, num_beams=50, max_new_tokens=2, use_cache=cached)
            assert found == best
        few = [written(here.hf, PROMPTS, num_beams=3, use_cache=cached) for cached in (True, False)]
        assert few[0] == few[1]


def test_a_cache_from_before_goes_on(model, concept, plan, added):
    expected = written_by_hooks(model.hf, PROMPTS[0], added, "last")
    ids = torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        cache = model.hf(ids[:, :2], past_key_values=DynamicCache(config=model.hf.config))
    with lm.steering(model, concept, plan, positions="last") as here:
        out = here.hf.generate(
            ids, past_key_values=cache.past_key_values, max_new_tokens=N_NEW, do_sample=False,
            pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
    assert out[0, ids.shape[1] :].tolist() == expected


def test_embeddings_are_steered_as_their_tokens(model, concept, plan, added):
    ids = torch.tensor(PROMPTS[:1])
    given = {"inputs_embeds": model.hf.get_input_embeddings()(ids)}
    options = {"max_new_tokens": N_NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for positions in ("last", "generated", "every"):
        with lm.steering(model, concept, plan, positions=positions) as here:
            out = here.hf.generate(**given, **options)
        assert out[0].tolist() == written_by_hooks(model.hf, PROMPTS[0], added, positions)
    with lm.steering(model, concept, plan, positions=MARKED) as here:
        with pytest.raises(ValueError, match=r"`positions` must mark a place in prompts whose"):
            here.hf.generate(**given, **options)


def test_sampling_is_repeated_by_its_seed(model, concept, plan):
    def sampled():
        torch.manual_seed(3)
        return written(model.hf, PROMPTS, do_sample=True)

    before = sampled()
    with lm.steering(model, concept, plan, positions="generated"):
        steered = sampled()
        assert steered == sampled()
    assert steered != before == sampled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", TINY)
def test_the_first_new_token_is_that_of_play(family, dtype, concept):
    model = lm.DepthModel(TINY[family]().to(dtype))
    plan = xr.Dataset({"u": ("layer", [1.5, -2.5, 2.0])})
    rows = xr.DataArray(np.eye(H), dims=("output", "feature"))
    shift = lm.play(model, PROMPTS, concept, plan, readout=rows)["response"].values[:, 0]
    states = model.run(PROMPTS).states.values[-1] + shift
    played = model.head(torch.as_tensor(states).to(dtype))
    nominal = model.head(torch.as_tensor(states - shift).to(dtype))
    with lm.steering(model, concept, plan) as here:
        assert here.positions == "last"
        for prompt, mine, plain in zip(PROMPTS, played, nominal, strict=True):
            out = here.hf.generate(
                torch.tensor([prompt]), max_new_tokens=1, do_sample=False, output_logits=True,
                return_dict_in_generate=True, pad_token_id=0,
            )  # fmt: skip
            scale = float(mine.abs().max())
            # generate gives float32; norms and rotary tables compute in it
            assert float((out.logits[0][0] - mine).abs().max()) < 1e-5 * scale
            assert float((out.logits[0][0] - plain).abs().max()) > 1e-2 * scale
            direct = here.hf(torch.tensor([prompt])).logits[0, -1]
            limit = 1e-5 if dtype == torch.float32 or family == "llama" else 1e-10
            assert float((direct - mine).abs().max()) < limit * scale


def test_play_behind_a_marker_is_what_hooks_say(concept, plan, added):
    longer = [[2, 9, 30], [7, 2, 30, 4], [2, 3, 2, 8, 1], [9, 2, 2, 5]]
    for padded in (True, False):
        model = lm.DepthModel(tiny_llama().double(), left_padding=padded)
        readout = lm.LogitDifference(3, 7)
        found = lm.play(model, longer, concept, plan, readout=readout, tokens=MARKED)
        assert found.attrs["tokens"] == "after [2]"
        assert found.attrs["prediction"].startswith("none")
        for value, row in zip(found["response"].values[:, 0], longer, strict=True):
            moved = logits_by_hooks(model.hf, row, added, begins_by_hand(row, MARKED))[-1]
            plain = logits_by_hooks(model.hf, row, 0 * added, begins_by_hand(row, MARKED))[-1]
            expected = float((moved - plain)[3] - (moved - plain)[7])
            np.testing.assert_allclose(value, expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"`tokens` must leave something to push .* number 1 ends"):
        lm.play(model, [[2, 3], [3, 2]], concept, plan, tokens=MARKED)
    last = [lm.play(model, longer, concept, plan, tokens=t) for t in ("last", "generated")]
    np.testing.assert_array_equal(last[0]["response"], last[1]["response"])


def law_of(seed=0, n_states=2):
    rng = np.random.default_rng(seed)
    return {
        "K": (("layer", "input", "state"), rng.standard_normal((N_LAYERS, 1, n_states))),
        "W": (("depth", "feature", "state"), rng.standard_normal((N_LAYERS + 1, H, n_states)) / 4),
        "x_ref": (("depth", "feature"), rng.standard_normal((N_LAYERS + 1, H))),
        "r_ref": (("depth", "state"), rng.standard_normal((N_LAYERS + 1, n_states))),
    }


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_feedback_reads_the_state_that_it_pushes(model, concept, plan, added, positions):
    law = plan.assign(law_of()).assign_attrs(operation="feedback", positions=str(positions))
    v = torch.as_tensor(concept["direction"].values)

    def by_hand(layer, x):
        K, W, x_ref, r_ref = (torch.as_tensor(law_of()[n][1][layer]) for n in law_of())
        reduced = torch.einsum("rtf,fs->rts", x - x_ref, W) - r_ref
        return -torch.einsum("rts,s->rt", reduced, K[0])[..., None] * v[layer] * 0.5

    with lm.steering(model, concept, law, strength=0.5) as here:
        assert here.positions == positions
        texts, logits = with_logits(here.hf, PROMPTS)
    expected = logits_on_the_way(model.hf, PROMPTS, 0.5 * added, positions, texts, by_hand)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * abs(expected).max())
    other = logits_on_the_way(model.hf, PROMPTS, 0.5 * added, positions, texts)
    assert abs(other - expected).max() > 1e-2 * abs(expected).max()


# --------------------------------------------------------------------- one within another


def test_nested_pushes_add_up_and_end_in_any_order(model, concept, plan, added):
    half = plan.assign(u=plan["u"] / 2, u_end=plan["u_end"] / 2)
    every = [written_by_hooks(model.hf, p, added, "every") for p in PROMPTS]
    single = [written_by_hooks(model.hf, p, added / 2, "every") for p in PROMPTS]
    before = written(model.hf, PROMPTS)
    outer = lm.steering(model, concept, half, positions="every")
    inner = lm.steering(model, concept, half, positions="every")
    outer.__enter__()
    inner.__enter__()
    assert written(model.hf, PROMPTS) == every
    outer.__exit__(None, None, None)
    assert written(model.hf, PROMPTS) == single != every
    inner.__exit__(None, None, None)
    assert written(model.hf, PROMPTS) == before
    assert is_clean(model)
    with lm.steering(model, concept, plan, positions="last"):
        with lm.steering(model, concept, plan, positions="last", strength=-1):
            assert written(model.hf, PROMPTS) == before


def test_each_thread_has_prompts_of_its_own(model, concept, plan, added):
    expected = {n: written_by_hooks(model.hf, p, added, MARKED) for n, p in enumerate(PROMPTS)}
    found, errors = {}, []

    def write(number):
        try:
            for _ in range(3):
                found[number] = written(model.hf, [PROMPTS[number]])[0]
        except Exception as error:
            errors.append(error)

    with lm.steering(model, concept, plan, positions=MARKED):
        threads = [threading.Thread(target=write, args=(n,)) for n in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    assert found == expected


# --------------------------------------------------------------------- nothing left


class Interrupted(BaseException):
    """As a KeyboardInterrupt, which pytest would take for itself."""


@pytest.mark.parametrize("kind", [RuntimeError, Interrupted])
@pytest.mark.parametrize("where", ["a block", "the block of code", "a processor"])
def test_nothing_is_left_whatever_happens(model, concept, plan, kind, where):
    ids = torch.tensor(PROMPTS[:1])
    before, logits = written(model.hf, PROMPTS), model.hf(ids).logits

    def fails(*_):
        raise kind("stop")

    handle = None
    if where == "a block":
        handle = blocks(model.hf)[1].register_forward_hook(fails)

    def steered():
        with lm.steering(model, concept, plan, positions="every"):
            if where == "the block of code":
                fails()
            written(model.hf, PROMPTS, logits_processor=[fails])

    with pytest.raises(kind, match="stop"):
        steered()
    if handle is not None:
        handle.remove()
    assert is_clean(model)
    assert written(model.hf, PROMPTS) == before
    assert torch.equal(model.hf(ids).logits, logits)


def test_after_an_interrupt_within_the_block_it_goes_on(model, concept, plan, added):
    def fails(*_):
        raise Interrupted

    with lm.steering(model, concept, plan, positions=MARKED) as here:
        handle = blocks(model.hf)[1].register_forward_hook(fails)
        with pytest.raises(Interrupted):
            written(here.hf, PROMPTS)
        handle.remove()
        found = written(here.hf, PROMPTS)
    assert found == [written_by_hooks(model.hf, p, added, MARKED) for p in PROMPTS]


def test_hooks_and_generate_of_others_stay(model, concept, plan):
    seen = []
    handle = model.hf.register_forward_hook(lambda *_: seen.append(1))
    own = model.hf.generate
    model.hf.generate = lambda *a, **k: own(*a, **k)
    mine = model.hf.generate
    before = written(model.hf, PROMPTS)
    with lm.steering(model, concept, plan, positions="every"):
        assert written(model.hf, PROMPTS) != before
        over = model.hf.generate
        theirs = model.hf.generate = lambda *a, **k: over(*a, **k)
    assert model.hf.generate is theirs  # put over it within the block
    assert written(model.hf, PROMPTS) == before
    model.hf.generate = mine
    with lm.steering(model, concept, plan, positions="every"):
        pass
    assert model.hf.generate is mine
    del model.hf.generate
    handle.remove()
    assert seen
    assert is_clean(model)


def test_runs_of_the_package_are_not_pushed(model, concept, plan):
    def found():
        run = model.run(PROMPTS)
        return [
            run.states.values,
            lm.play(run, concept, plan.drop_vars("u_end"), tokens="every")["response"].values,
            lm.measure_gains(run, concept, readout=lm.LogitDifference(3, 7))["gain"].values,
            lm.DepthModel(model.hf).contract["logits"],
        ]

    run, outside = model.run(PROMPTS), found()
    with lm.steering(model, concept, plan, positions="every"):
        within = found()
        played = lm.play(run, concept, plan)["response"].values
    for one, other in zip(outside, within, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(played, lm.play(run, concept, plan)["response"].values)
    assert lm.play(model, PROMPTS, concept, plan).attrs["tokens"] == "last"


# --------------------------------------------------------------------- other models and calls


@pytest.mark.parametrize("family", AROUND)
def test_a_model_that_accelerate_maps(family, concept, plan, added, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    inner, others = AROUND[family]
    places = dict.fromkeys([*others, "lm_head", f"{inner}.0"], "cpu")
    places |= {f"{inner}.1": "disk", f"{inner}.2": "disk"}
    if family is tiny_gpt2:
        places["transformer.drop"] = "cpu"
    hf = accelerate.dispatch_model(
        family().double().eval(), places, main_device="cpu", offload_dir=tmp_path
    )
    before = written(hf, PROMPTS)
    expected = [written_by_hooks(family().double().eval(), p, added, "generated") for p in PROMPTS]
    with lm.steering(hf, concept, plan, positions="generated"):
        assert written(hf, PROMPTS) == expected
    assert written(hf, PROMPTS) == before != expected


def test_a_model_that_is_not_wrapped(concept, plan, added):
    hf = tiny_llama().double().eval()
    expected = [written_by_hooks(hf, p, added, "every") for p in PROMPTS]
    with lm.steering(hf, concept, plan, positions="every") as here:
        assert here.hf is hf
        assert written(hf, PROMPTS) == expected
    of_it = plan.assign_attrs(model_fingerprint=lm.DepthModel(hf).fingerprint, model="mine")
    for _ in range(2):
        with lm.steering(hf, concept, of_it):
            pass
    hf.lm_head.weight.data += 1
    hf.lm_head.weight = torch.nn.Parameter(hf.lm_head.weight + 1)
    with pytest.raises(ValueError, match=r"`plan` must be made for the weights .* 'mine' with"):
        lm.steering(hf, concept, of_it).__enter__()
    with pytest.raises(ValueError, match=r"`positions` must mark token ids where there is no"):
        with lm.steering(hf, concept, plan, positions=lm.After("a")):
            written(hf, PROMPTS)


def test_calls_outside_of_generate(model, concept, plan, added):
    row = [*PROMPTS[0], 8, 1]
    for positions in POSITIONS:
        whole = logits_by_hooks(model.hf, row, added, begins_by_hand(row, positions))
        apart = logits_by_hooks(model.hf, row, added, begins_by_hand(PROMPTS[0], positions))
        with lm.steering(model, concept, plan, positions=positions) as here, torch.no_grad():
            found = here.hf(torch.tensor([row])).logits[0]
            torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)
            with here.prompts_of(len(PROMPTS[0])):
                found = here.hf(input_ids=torch.tensor([row])).logits[0]
            torch.testing.assert_close(found, apart, rtol=1e-6, atol=1e-6)


def test_calls_that_cannot_be_understood_are_refused(model, concept, plan):
    ids, hf = torch.tensor([[1, 2, 3], [4, 2, 6]]), model.hf
    right = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with lm.steering(model, concept, plan, positions="last") as here:
        for call in (hf, hf.generate):
            with pytest.raises(ValueError, match=r"must end with a token .* number 1 has padding"):
                call(ids, attention_mask=right)
        with pytest.raises(ValueError, match=r"`positions` must be 'every' where the model is"):
            hf(ids, past_key_values=hf(ids).past_key_values)
        with pytest.raises(ValueError, match=r"`attention_mask` must be \(prompt, token\)"):
            hf(ids, attention_mask=torch.zeros(2, 1, 3, 3).double())
        with pytest.raises(ValueError, match=r"one text in each row .* position_ids that begin"):
            hf(ids, position_ids=torch.tensor([[0, 1, 0]]))
        with pytest.raises(ValueError, match=r"must be given `input_ids` or `inputs_embeds`"):
            hf(attention_mask=right)
        with pytest.raises(ValueError, match=r"`past_key_values` must be a Cache .* got a tuple"):
            hf(ids, past_key_values=((1, 2),))
        with pytest.raises(ValueError, match=r"`model` must be called as a whole"):
            hf.base_model(ids)
        with pytest.raises(ValueError, match=r"`n_tokens` must be a whole number >= 1; got 0"):
            here.prompts_of(0).__enter__()
        for name, value in (("guidance_scale", 2.0), ("penalty_alpha", 0.5), ("use_mtp", True)):
            with pytest.raises(ValueError, match=rf"must write greedily.*got {name}"):
                hf.generate(ids, max_new_tokens=2, **{name: value})
        with pytest.raises(ValueError, match=r"`generate` must not be called within itself"):
            hf.generate(ids[:1], assistant_model=hf, max_new_tokens=2)
        if model.name == "llama":
            with pytest.raises(ValueError, match=r"one text in each row .* cu_seq_lens_q"):
                hf(ids, cu_seq_lens_q=torch.tensor([0, 3]))
    assert is_clean(model)


def test_a_model_that_drops_tokens_on_its_way_is_refused(model, concept, plan):
    def cut(module, args):
        return (args[0][:, 1:], *args[1:])

    handle = blocks(model.hf)[1].register_forward_pre_hook(cut)
    try:
        with lm.steering(model, concept, plan) as here:
            with pytest.raises(
                ValueError, match=r"one state for each of its 4 tokens .*\(1, 3, 16\)"
            ):
                here.hf(torch.tensor(PROMPTS[:1]))
    finally:
        handle.remove()


def test_a_cache_that_tells_too_little_is_refused(model, concept, plan):
    class Forgetful(DynamicCache):
        def get_seq_length(self, layer_idx=0):
            return 0

    given = {"past_key_values": Forgetful(config=model.hf.config), "max_new_tokens": 4}
    with lm.steering(model, concept, plan) as here:
        with pytest.raises(ValueError, match=r"must run the model on one stretch .* after 4"):
            here.hf.generate(torch.tensor(PROMPTS[:1]), **given)


def test_a_marker_that_a_prompt_lacks_is_told(model, concept, plan):
    with lm.steering(model, concept, plan, positions=lm.After([2, 9])) as here:
        with pytest.raises(ValueError, match=r"\(2, 9\), which is not in prompt number 0, \[7, 2"):
            written(here.hf, PROMPTS)
    with pytest.raises(ValueError, match=r"`marker` must not be empty"):
        lm.After("")
    with pytest.raises(TypeError, match=r"`marker` must be a text or token ids; got 3"):
        lm.After(3)  # pyright: ignore[reportArgumentType]


def test_wrong_plans_are_refused_before_a_hook_is_set(model, concept, plan):
    def refused(words, kind=ValueError, of=concept, by=plan, **options):
        with pytest.raises(kind, match=words):
            lm.steering(options.pop("model", model), of, by, **options).__enter__()
        assert is_clean(model)

    refused(
        r"`model` must be a DepthModel or a Hugging Face model; got 'gpt2'", TypeError, model="gpt2"
    )
    refused(r"`positions` must be one of .* got 'first'", positions="first")
    refused(r"`positions` must be one of .* got 'after x'", positions="after x")
    for wrong in (np.nan, 1j, np.complex128(1)):
        refused(r"`strength` must be a finite number; got ", strength=wrong)
    refused(
        r"`strength` must leave every push finite in float64; got 1e\+308 for pushes up to 250",
        FloatingPointError,
        by=plan * 100,
        strength=1e308,
    )
    refused(r"`plan` must hold real numbers as u; got complex128", by=plan.assign(u=plan["u"] + 1j))
    refused(r"`plan.u_end` must be one finite number.*; got 1j for", by=plan.assign(u_end=1j))
    refused(r"`plan` must be finite", by=plan.assign(u=("layer", [1, np.nan, 1])))
    refused(r"`plan` must hold u \(layer=3", by=plan.isel(layer=slice(2)))
    refused(r"`plan.u_end` must be one finite number", by=plan.assign(u_end=np.inf))
    refused(r"`plan` must be one of \('add', 'feedback'\)", by=plan.assign_attrs(operation="clamp"))
    refused(r"`plan` must be one of .* feedback", by=plan.assign_attrs(operation="feedback"))
    refused(
        r"`plan` must push at the input of block l", by=plan.assign_attrs(hook="output of block")
    )
    refused(
        r"`plan` must hold u in the unit of the state; got .*'relative'",
        by=plan.assign_attrs(unit="relative"),
    )
    law = plan.assign(law_of()).assign_attrs(operation="feedback")
    refused(r"`plan` must hold a finite W", by=law.assign(W=law["W"] * np.nan))
    refused(r"`plan` must hold a finite K .* of complex128", by=law.assign(K=law["K"] * 1j))
    refused(r"`plan` must be made for the weights", by=plan.assign_attrs(model_fingerprint="x"))
    refused(r"`plan` must be made for", of=concept.assign_attrs(model_fingerprint="x"))
    refused(r"`concept` must hold a finite direction", of=concept.isel(depth=slice(2)))
    nowhere = concept.copy(deep=True)
    nowhere["direction"][1] = np.nan
    refused(r"`plan` must not push at layer 1", of=nowhere)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_push_must_be_finite_in_the_dtype_of_the_model(concept, dtype):
    hf = tiny_gpt2().to(dtype).eval()
    plan = xr.Dataset({"u": ("layer", [0.0, 0.0, 1e6])})
    if dtype == torch.bfloat16:
        with lm.steering(hf, concept, plan):
            return
    with pytest.raises(FloatingPointError, match=r"finite in float16; got 1 for pushes up to 1e"):
        lm.steering(hf, concept, plan).__enter__()


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("kind", ["plan", "law"])
def test_texts_of_logits_that_overflow_are_an_error(model, concept, plan, kind, options):
    before = written(model.hf, PROMPTS)
    huge = plan * 1e307
    if kind == "law":
        huge = plan.assign(law_of()).assign_attrs(operation="feedback")
        huge["K"] = huge["K"] * 1e307
    words = r"`strength` must leave the logits finite; .* at strength -5, 0\.5: a push overflows"
    with (
        lm.steering(model, concept, plan * 0, strength=-5),
        lm.steering(model, concept, huge, positions="generated", strength=0.5) as here,
    ):
        with pytest.raises(FloatingPointError, match=words):
            written(here.hf, PROMPTS, **options)
        with pytest.raises(FloatingPointError, match=words):
            model.new_tokens(PROMPTS, max_new_tokens=2)
        with torch.no_grad():
            assert here.hf(torch.tensor([[1, 2]])).logits.isnan().any()  # as they are
    assert written(model.hf, PROMPTS) == before
    assert is_clean(model)


def test_a_generate_that_another_thread_begins_to_steer_is_told_why(model, concept, plan):
    """Here in one thread: what counts is that hooks come while it runs."""
    stack = ExitStack()

    def begin(ids, scores):
        stack.enter_context(lm.steering(model, concept, plan))
        return scores

    with (
        stack,
        pytest.raises(ValueError, match=r"another one began to steer the model: take turns"),
    ):
        written(model.hf, PROMPTS, logits_processor=[begin])
    assert is_clean(model)


def test_a_call_while_another_thread_works_with_the_model_is_told_why():
    model = lm.DepthModel(tiny_gpt2())
    errors = []

    def call():
        try:
            model.hf(torch.tensor([[1, 2]]))
        except LookupError as error:
            errors.append(str(error))

    with model.blocks.attention(LAST_TOKEN_ATTENTION):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    call()  # afterwards it may
    assert len(errors) == 1
    assert "in one thread while depthsys works with it in another" in errors[0]


def test_nothing_is_compiled_while_it_writes(monkeypatch, concept, plan):
    """A compiled pass would keep the pushes of the first one; the CPU never compiles."""
    model = lm.DepthModel(tiny_gpt2())
    seen, of_model = [], model.hf.generate
    monkeypatch.setattr(
        model.hf, "generate", lambda *a, **k: seen.append(k) or of_model(*a, **k), raising=True
    )
    with lm.steering(model, concept, plan):
        model.new_tokens(PROMPTS[:1], max_new_tokens=2)
    model.new_tokens(PROMPTS[:1], max_new_tokens=2)
    assert [each.get("disable_compile") for each in seen] == [True, None]


def test_a_compiled_model_is_refused(concept, plan):
    hf = tiny_gpt2().eval()
    hf.transformer.h[1]._compiled_call_impl = hf.transformer.h[1]._call_impl  # as compile() sets it
    with pytest.raises(ValueError, match=r"`model` must not be compiled .*transformer.h.1 is"):
        lm.steering(hf, concept, plan).__enter__()


# --------------------------------------------------------------------- equal pushes, texts


def test_equal_pushes(concept):
    norm = xr.DataArray([2.0, 4.0, 6.0, 8.0], dims="depth")
    about = concept.assign_attrs(model="m", model_fingerprint="f")
    found = lm.equal_push_plan(about, relative=0.5, state_norm=norm)
    assert found["u"].values.tolist() == [0, 2, 3]
    assert found.attrs["positions"] == "every"
    assert found.attrs["model_fingerprint"] == "f"
    xr.testing.assert_identical(found["direction"], concept["direction"])
    one = lm.equal_push_plan(concept, size=-3, layers=[0, 2], positions=MARKED)
    assert one["u"].values.tolist() == [-3, 0, -3]
    assert one.attrs["positions"] == "after [2]"
    for options, words in (
        ({}, r"`size` must be given, or `relative` with"),
        ({"size": 1.0, "relative": 1.0, "state_norm": norm}, r"`size` must be given, or"),
        ({"relative": 1.0}, r"`size` must be given, or"),
        ({"size": np.nan}, r"`size` must be finite; got nan"),
        ({"size": 1.0, "layers": [3]}, r"`layers` must be layers in 0\.\.2 with a direction"),
        ({"size": 1.0, "layers": [True, False, True]}, r"`layers` must be layers in 0\.\.2 with"),
        ({"size": 1.0, "layers": [1.0]}, r"`layers` must be layers in 0\.\.2 with a direction"),
        ({"relative": 1.0, "state_norm": norm[:3]}, r"`state_norm` must have the 4 depths"),
    ):
        with pytest.raises(ValueError, match=words):
            lm.equal_push_plan(concept, **options)
    two = xr.concat([concept, concept], "input")
    with pytest.raises(ValueError, match=r"`concept` must hold one direction .* got 2"):
        lm.equal_push_plan(two, size=1.0)


def test_texts_of_a_model_with_a_tokenizer(demo_model, demo_texts):
    model = demo_model
    concept = lm.mean_difference(model, demo_texts.concept)
    texts = list(demo_texts.held_out.texts[:4])
    plain = model.generate(texts, max_new_tokens=5)
    assert [model.generate([text], max_new_tokens=5)[0] for text in texts] == plain
    assert model.generate(texts, max_new_tokens=5, num_beams=2, use_cache=False) == model.generate(
        texts, max_new_tokens=5, num_beams=2
    )
    rows, _ = model.tokenize(texts)
    for row, text in zip(rows, plain, strict=True):
        out = model.hf.generate(
            torch.tensor([row]), max_new_tokens=5, do_sample=False, pad_token_id=0
        )
        assert model.tokenizer.decode(out[0, len(row) :], skip_special_tokens=True) == text
    word = model.tokenizer.decode(rows[0][1:2]).strip()
    plan = lm.equal_push_plan(concept, size=20.0)
    with lm.steering(model, concept, plan, positions=lm.After(word)):
        behind = model.generate(texts[:1], max_new_tokens=5)
    with lm.steering(model, concept, plan, positions=lm.After([rows[0][1]])):
        assert model.generate(texts[:1], max_new_tokens=5) == behind
    assert behind != plain[:1]


def test_texts_that_cannot_be_written(model, demo_model):
    with pytest.raises(ValueError, match=r"`tokenizer` must be given where texts are written"):
        model.generate(PROMPTS)
    for wrong in (0, True, 2.5):
        with pytest.raises(ValueError, match=r"`max_new_tokens` must be a whole number >= 1"):
            model.new_tokens(PROMPTS, max_new_tokens=wrong)
    with pytest.raises(ValueError, match=r"`max_new_tokens` must leave .* the 40 tokens .* of 4\."):
        model.new_tokens(PROMPTS, max_new_tokens=37)
    with pytest.raises(ValueError, match=r"got 1000 behind a prompt of 4\. Write fewer\.$"):
        model.new_tokens(PROMPTS, max_new_tokens=1000)
    assert len(model.new_tokens(PROMPTS, max_new_tokens=36)) == 3
    config = GenerationConfig(num_return_sequences=2, do_sample=True)
    for name, wrong in (
        ("num_return_sequences", {"num_return_sequences": 2}),
        ("num_return_sequences", {"generation_config": config}),
        ("return_dict_in_generate", {"return_dict_in_generate": True}),
        ("attention_mask", {"attention_mask": torch.ones(3, 4)}),
        ("input_ids", {"input_ids": torch.ones(3, 4)}),
        ("past_key_values", {"past_key_values": DynamicCache()}),
    ):
        with pytest.raises(
            ValueError, match=rf"`options` must leave one text .* got {name}\. Call"
        ):
            model.new_tokens(PROMPTS, max_new_tokens=2, **wrong)
    plain = model.new_tokens(PROMPTS, max_new_tokens=2)
    asked = {"return_dict_in_generate": False, "num_return_sequences": 1, "streamer": None}
    assert model.new_tokens(PROMPTS, max_new_tokens=2, **asked) == plain
    model.hf.generation_config.return_dict_in_generate = True
    try:
        assert model.new_tokens(PROMPTS, max_new_tokens=2) == plain
    finally:
        model.hf.generation_config.return_dict_in_generate = False
    with pytest.raises(ValueError, match=r"`model` must have a `generate` to write; .* has none"):
        new_tokens(SimpleNamespace(hf=object()), [], [], max_new_tokens=1, options={})  # pyright: ignore[reportArgumentType]
    elsewhere = lm.DepthModel(demo_model.hf, demo_model.tokenizer, read_at="text")
    with pytest.raises(ValueError, match=r"`read_at` must be 'last' where a model writes"):
        elsewhere.generate(["a"])


def test_control_vectors_of_others_are_concept_and_plan(model):
    rng = np.random.default_rng(3)
    vectors = {n: rng.standard_normal(H) for n in range(N_LAYERS)}
    vector = export.from_control_vector(vectors, strength=0.7, n_layers=N_LAYERS)
    added = np.array([0 * vectors[0], *(0.7 * vectors[n] for n in range(N_LAYERS))])
    with lm.steering(model, vector, vector, positions="every") as here:
        found = written(here.hf, PROMPTS)
    assert found == [written_by_hooks(model.hf, p, added, "every") for p in PROMPTS]


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (
            lambda c, s: lm.clamp(c, 1.0, reads="clean"),
            "with reads live while .*; got reads 'clean'",
        ),
        (lambda c, s: lm.feedback(s, 1.0), "with reference mean or none .*; got reference 'own'"),
    ],
)
def test_laws_that_need_the_unsteered_run_are_refused(demo_model, demo_texts, law, message):
    concept = lm.mean_difference(demo_model, demo_texts.concept)
    system = lm.identify(demo_model, demo_texts.operating, concept, lm.Krylov(order=2))
    with (
        pytest.raises(ValueError, match=message),
        lm.steering(demo_model, concept, law(concept, system)),
    ):
        pass
