"""Steering while a model writes: against plain hooks at columns that are counted by hand."""

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import DynamicCache

from depthsys import lm
from depthsys.lm.positions import checked, pushed, starts
from tests.conftest import TINY, tiny_gpt2, tiny_llama
from tests.lm.steering.by_hooks import (
    MARKED,
    N_NEW,
    POSITIONS,
    PROMPTS,
    H,
    begins_by_hand,
    is_clean,
    law_of,
    logits_by_hooks,
    logits_on_the_way,
    with_logits,
    written,
    written_by_hooks,
)
from tests.lm.test_devices import AROUND


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
