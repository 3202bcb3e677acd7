"""Plans of equal pushes, texts, and what cannot be written."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import DynamicCache, GenerationConfig

from depthsys import export, lm
from depthsys.lm.hf.writing import new_tokens
from tests.lm.steering.by_hooks import MARKED, N_LAYERS, PROMPTS, H, written, written_by_hooks


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
