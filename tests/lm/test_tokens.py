"""Token ids of texts: what tokenizers add, chat templates, and where long prompts are cut."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from depthsys import lm
from depthsys.lm.hf.messages import TokensWarning, silence
from tests.conftest import tiny_gpt2

WORDS = "<s> </s> <|user|> <|bot|> <|end|> a b c d e f g h i j depth layer of model".split()
ID = {word: number for number, word in enumerate(WORDS)}
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|user|> {{ m.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|bot|> {% endif %}"
)


def tokenizer(*, bos=True, eos=False, template=None):
    """Words apart by spaces; the special ones are single tokens anywhere."""
    made = Tokenizer(models.WordLevel(ID, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around = (["<s>"] if bos else []) + ["$A"] + (["</s>"] if eos else [])
    made.post_processor = processors.TemplateProcessing(
        single=" ".join(around), special_tokens=[(w, ID[w]) for w in ("<s>", "</s>")]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made,
        **special,
        additional_special_tokens=["<|user|>", "<|bot|>", "<|end|>"],
    )
    wrapped.chat_template = template
    return wrapped


def model_with(words, **options):
    return lm.DepthModel(tiny_gpt2(), words, **options)


def words_of(rows):
    return [" ".join(WORDS[token] for token in row) for row in rows]


def rendered(words, content, *, answers=True):
    message = [{"role": "user", "content": content}]
    return words.apply_chat_template(message, tokenize=False, add_generation_prompt=answers)


# ----------------------------------------------------------------------- what is added


def test_a_text_that_begins_with_the_first_token_gets_no_second_one():
    model = model_with(tokenizer())
    with pytest.warns(TokensWarning, match="2 of 3 texts began with '<s>', which the tokenizer"):
        rows, n_cut = model.tokenize(["<s> a b", "a b", "<s>"])
    assert words_of(rows) == ["<s> a b", "<s> a b", "<s>"]
    assert n_cut == 0
    with warnings.catch_warnings():  # it is said once
        warnings.simplefilter("error")
        assert words_of(model.tokenize(["<s> c"])[0]) == ["<s> c"]


def test_the_state_of_a_text_is_the_same_with_its_first_token_written_out():
    model = model_with(tokenizer())
    with pytest.warns(TokensWarning):
        written = model.run(["<s> a b c"]).states
    np.testing.assert_array_equal(written, model.run(["a b c"]).states)


def test_results_say_that_a_token_was_left_out():
    model = model_with(tokenizer())
    with pytest.warns(TokensWarning):
        run = model.run(["<s> a b", "a c"])
    told = lm.jacobians(run).attrs["token_note"]
    assert told == (
        "1 of 2 texts began with '<s>', which the tokenizer adds by itself: the second one was "
        "left out"
    )
    assert "token_note" not in lm.jacobians(model.run(["a b", "a c"])).attrs


def test_the_last_token_is_not_doubled_either():
    model = model_with(tokenizer(bos=False, eos=True))
    with pytest.warns(TokensWarning, match="1 of 2 texts ended with '</s>'"):
        rows, _ = model.tokenize(["a b </s>", "<s> a"])
    assert words_of(rows) == ["a b </s>", "<s> a </s>"]


def test_where_nothing_is_added_nothing_is_taken():
    rows, _ = model_with(tokenizer(bos=False)).tokenize(["<s> <s> a", "a a"])
    assert words_of(rows) == ["<s> <s> a", "a a"]
    assert model_with(tokenizer()).tokenize([[0, 0, 5]])[0] == [[0, 0, 5]]


def test_a_command_line_is_not_warned(recwarn):
    silence()
    model_with(tokenizer()).tokenize(["<s> a"])
    assert not recwarn.list


# ----------------------------------------------------------------------- where prompts are cut


LONG = "a b c d e f g h i j"


@pytest.mark.parametrize(
    ("cut", "kept"),
    [("right", "<s> a b c d"), ("left", "<s> g h i j"), ("middle", "<s> a b i j")],
)
def test_prompts_are_cut_where_it_is_asked_for(cut, kept):
    model = model_with(tokenizer(), max_tokens=5, cut=cut)
    rows, n_cut = model.tokenize([LONG, "a b"])
    assert words_of(rows) == [kept, "<s> a b"]
    assert n_cut == 1
    attrs = lm.jacobians(model, [LONG, "a b"]).attrs
    assert (attrs["cut"], attrs["n_cut"]) == (cut, 1)


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize(
    ("answers", "kept"),
    [
        (True, "<s> <|user|> a b c i j <|end|> <|bot|>"),
        (False, "<s> <|user|> a b c h i j <|end|>"),
    ],
)
def test_what_a_chat_template_puts_around_the_content_stays(answers, written, kept):
    words = tokenizer(template=CHAT)
    model = model_with(words, max_tokens=9, cut="middle")
    text = rendered(words, LONG, answers=answers)
    if not written:
        text = text.removeprefix("<s>")
        rows, n_cut = model.tokenize([text])
    else:
        with pytest.warns(TokensWarning):
            rows, n_cut = model.tokenize([text])
    assert words_of(rows) == [kept]
    assert n_cut == 1
    ids = words(text, add_special_tokens=not written)["input_ids"]
    assert words_of(model.tokenize([ids])[0]) == [kept]


def test_a_system_message_does_not_push_the_answer_out():
    words = tokenizer(template=CHAT)
    model = model_with(words, max_tokens=7, cut="middle")
    text = "<|user|> d d d <|end|> <|user|> " + LONG + " <|end|> <|bot|>"
    kept = words_of(model.tokenize([text])[0])[0]
    assert kept == "<s> <|user|> d d j <|end|> <|bot|>"


def test_cut_on_the_left_the_answer_begins_as_it_did():
    words = tokenizer(template=CHAT)
    rows, _ = model_with(words, max_tokens=5, cut="left").tokenize(
        ["<|user|> a b c <|end|> <|bot|>"]
    )
    assert words_of(rows) == ["<s> b c <|end|> <|bot|>"]


def test_a_template_that_refuses_a_lone_message_is_none():
    words = tokenizer(template="{{ raise_exception('system first') }}")
    rows, _ = model_with(words, max_tokens=5, cut="middle").tokenize([LONG])
    assert words_of(rows) == ["<s> a b i j"]


@pytest.mark.parametrize(
    ("cut", "kept"), [("right", [0, 1, 2]), ("left", [0, 8, 9]), ("middle", [0, 1, 9])]
)
def test_token_ids_without_a_tokenizer_keep_the_first_token_of_the_model(cut, kept):
    """tiny_gpt2 has bos_token_id = 0."""
    model = lm.DepthModel(tiny_gpt2(), max_tokens=3, cut=cut)
    assert model.tokenize([[*range(10)]])[0] == [kept]
    other = [row for row in model.tokenize([[*range(5, 15)]])[0]]
    assert other == [{"right": [5, 6, 7], "left": [12, 13, 14], "middle": [5, 6, 14]}[cut]]


def test_a_limit_of_one_token():
    assert lm.DepthModel(tiny_gpt2(), max_tokens=1, cut="left").tokenize([[0, 1, 2]])[0] == [[2]]


@pytest.mark.parametrize(
    ("max_tokens", "kept"), [(2, "<s> j"), (3, "<s> a j"), (4, "<s> a b j"), (1, None)]
)
def test_of_the_content_a_single_token_is_the_last(max_tokens, kept):
    """The state is read there, as it is of a text that is not cut."""
    model = model_with(tokenizer(), max_tokens=max_tokens, cut="middle")
    if kept is None:
        with pytest.raises(ValueError, match="`max_tokens` must be above the 1 tokens around"):
            model.tokenize([LONG])
        return
    assert words_of(model.tokenize([LONG])[0]) == [kept]
    ids = lm.DepthModel(tiny_gpt2(), max_tokens=1, cut="middle").tokenize([[5, 6, 7]])[0]
    assert ids == [[7]]


def test_inside_a_template_a_single_token_is_the_last_of_the_content():
    words = tokenizer(template=CHAT)
    model = model_with(words, max_tokens=5, cut="middle")
    rows, _ = model.tokenize([rendered(words, LONG)[3:]])
    assert words_of(rows) == ["<s> <|user|> j <|end|> <|bot|>"]


def test_cuts_that_cannot_be_meant():
    with pytest.raises(ValueError, match=r"`cut` must be one of .* got 'top'"):
        lm.DepthModel(tiny_gpt2(), cut="top")
    words = tokenizer(template=CHAT)
    with pytest.raises(ValueError, match="`max_tokens` must be above the 4 tokens around"):
        model_with(words, max_tokens=4, cut="middle").tokenize([rendered(words, LONG)[3:]])


# ----------------------------------------------------------------------- what prompts may be


def test_labelled_token_ids_are_prompts_and_are_checked():
    model = lm.DepthModel(tiny_gpt2().double())
    rows = [([3, 1, 4], 1), ([1, 5], 0), ([9, 2], 1), ([6, 5], 0)]
    texts = lm.read_texts(rows)
    plain = [ids for ids, _ in rows]
    np.testing.assert_array_equal(model.run(texts).states, model.run(plain).states)
    concept = lm.mean_difference(model, texts)
    x = model.run(plain).states.values
    difference = x[:, [0, 2]].mean(1) - x[:, [1, 3]].mean(1)
    expected = difference / np.linalg.norm(difference, axis=1, keepdims=True)
    np.testing.assert_allclose(concept["direction"], expected, atol=1e-12)
    with pytest.raises(ValueError, match=r"token ids in 0..49; number 1 has 7..50"):
        model.run(lm.read_texts([([3], 1), ([7, 50], 0)]))


def test_prompts_of_any_sequence():
    model = model_with(tokenizer())
    expected = model.tokenize(["a b", "c"])
    series = pd.Series(["a b", "c"], index=[7, 8])
    for prompts in (("a b", "c"), np.array(["a b", "c"]), series, (t for t in ["a b", "c"])):
        assert model.tokenize(prompts) == expected
    ids = model.tokenize([[3, 1], [4, 1]])
    assert model.tokenize(torch.tensor([[3, 1], [4, 1]])) == ids


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", [1, 2]], "a text as number 0 and none as number 1"),
        ({"text": ["a"]}, "must be a list of texts; got {"),
        (pd.DataFrame({"text": ["a"]}), "must be a list of texts; got a DataFrame"),
        ([{"text": "a"}], "Use `lm.read_texts` for rows with labels"),
    ],
)
def test_prompts_that_cannot_be_meant(prompts, message):
    with pytest.raises(TypeError, match=message):
        model_with(tokenizer()).tokenize(prompts)


def test_splits_are_no_prompts(demo_texts):
    with pytest.raises(
        TypeError, match=r"texts of one split; got Splits, .* Take splits\.operating"
    ):
        model_with(tokenizer()).run(demo_texts)
