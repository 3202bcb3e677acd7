"""Plans and calls that are refused, before a hook is set or with the reason."""

import threading
from contextlib import ExitStack

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import DynamicCache

from depthsys import lm
from depthsys.lm.hf.attention import LAST_TOKEN_ATTENTION
from tests.conftest import tiny_gpt2
from tests.lm.steering.by_hooks import (
    PROMPTS,
    is_clean,
    law_of,
    written,
)
from tests.lm.whole_sequence import blocks


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


def test_a_compiled_model_is_refused(concept, plan):
    hf = tiny_gpt2().eval()
    hf.transformer.h[1]._compiled_call_impl = hf.transformer.h[1]._call_impl  # as compile() sets it
    with pytest.raises(ValueError, match=r"`model` must not be compiled .*transformer.h.1 is"):
        lm.steering(hf, concept, plan).__enter__()


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
