"""Templates, chat templates and where the state is read, against tokenizers used by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizer

from depthsys import lm
from depthsys.demo import model_path
from depthsys.demo import real as fetched
from depthsys.lm.hf.messages import TokensWarning
from depthsys.lm.hf.tokens import tokenized
from depthsys.prompting import Prompting
from tests.conftest import DATA, TINY, tiny_gpt2
from tests.lm.test_tokens import CHAT, tokenizer, words_of

TEXTS = [
    "It was good",
    "a long   film,\n\nand  a bad one ",
    " so-so: été 😀 {text}",
    "no",
    "Sentiment: none",
]
TEMPLATES = [
    "Review: {text}\nSentiment:",
    "Review:{text}.",
    "{text} This is",
    "Said:\n\n{text}",
    "{text}",
]
# as those of many models: the message without spaces at its ends, the first token written out
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>\n{{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
# one that knows no system, as Gemma's
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + TRIMMING
)


def _gpt2():
    return GPT2TokenizerFast.from_pretrained(_there(DATA / "tokenizers" / "gpt2"))


def _there(path):
    if not path.is_dir():
        pytest.skip(f"not found: {path}")
    return path


def _stories():
    return AutoTokenizer.from_pretrained(_there(DATA / "weights" / "stories260K"))


def _demo():
    return AutoTokenizer.from_pretrained(model_path("demo_48x4"))


MAKE = {"gpt2": _gpt2, "stories": _stories, "demo": _demo}
_MADE = {}


def real(name):
    if name not in _MADE:
        _MADE[name] = MAKE[name]()
    return _MADE[name]


@pytest.fixture(scope="module")
def smollm2(request):
    """That of the fetched model, with its own chat template."""
    folder = request.getfixturevalue("real_folder").resolve()
    return AutoTokenizer.from_pretrained(folder, gguf_file=fetched.MODEL)


@pytest.fixture(params=[*MAKE, pytest.param("smollm2", marks=pytest.mark.real)])
def tok(request):
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2")
    made = real(request.param)
    made.chat_template = TRIMMING
    return made


def rows_of(tok, texts, **options):
    return tokenized(texts, tok, Prompting(**{"max_tokens": 999} | options), n_tokens=10**6).rows


def by_hand(tok, text, *, system=None, answer=None, template="{text}"):
    """The ids of a chat by the tokenizer's own function."""
    said = [] if system is None else [{"role": "system", "content": system}]
    said.append({"role": "user", "content": template.replace("{text}", text)})
    if answer is None:
        return tok.apply_chat_template(
            said, tokenize=True, add_generation_prompt=True, return_dict=False
        )
    string = tok.apply_chat_template(said, tokenize=False, add_generation_prompt=True) + answer
    return tok(string, add_special_tokens=False)["input_ids"]


# ----------------------------------------------------------------------- what is put around


@pytest.mark.parametrize("read_at", ["last", -1])
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_in_a_template_has_the_ids_of_the_whole_string(tok, template, read_at):
    first, last = template.split("{text}")
    expected = [tok(first + text + last)["input_ids"] for text in TEXTS]
    assert rows_of(tok, TEXTS, template=template, read_at=read_at) == expected


@pytest.mark.parametrize("system", [None, "Be brief.", ""])
def test_a_chat_has_the_ids_of_the_tokenizers_own_template(tok, system):
    expected = [by_hand(tok, text, system=system) for text in TEXTS]
    assert rows_of(tok, TEXTS, chat=True, system_message=system) == expected


def test_a_chat_with_a_template_of_the_message_and_the_beginning_of_the_answer(tok):
    options = {"template": "Is this good?\n{text}", "answer": "I think"}
    expected = [by_hand(tok, t, **options) for t in TEXTS]
    assert rows_of(tok, TEXTS, chat=True, **options) == expected
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I think"}]
    own = tok.apply_chat_template(
        said, tokenize=True, continue_final_message=True, return_dict=False
    )
    assert rows_of(tok, ["hi"], chat=True, answer="I think") == [own]


@pytest.mark.parametrize("written", ["{text}", "<s> {text}", "d {text}"])
def test_one_first_token_whoever_writes_it(written):
    model = lm.DepthModel(tiny_gpt2(), tokenizer(), template=written)
    with pytest.warns(TokensWarning, match="of 2 texts began with '<s>'"):
        rows = words_of(model.tokenize(["<s> a b", "<s> <s> a"])[0])
    start = "<s> d " if "d" in written else "<s> "
    assert rows == [start + "a b", start + "a"]


def test_a_text_that_begins_with_the_first_token_is_the_same_in_a_chat():
    words = tokenizer(template=CHAT)
    found = tokenized(["<s> a", "b"], words, Prompting(chat=True), n_tokens=99)
    assert words_of(found.rows) == [
        "<s> <|user|> a <|end|> <|bot|>",
        "<s> <|user|> b <|end|> <|bot|>",
    ]
    assert found.note.startswith("1 of 2 texts began with '<s>', which begins a prompt and not")


@pytest.mark.parametrize("chat", [False, True])
def test_special_tokens_inside_texts_are_told(chat):
    words = tokenizer(eos=True, template=CHAT)
    texts = ["a <|end|> b <s> c", "<s> a </s> b", "<s> a", "b"]
    found = tokenized(texts, words, Prompting(chat=chat), n_tokens=99)
    assert found.note.endswith(
        "2 of 4 texts hold special tokens of the tokenizer ('</s>', '<s>', '<|end|>'), which were "
        "taken as such and not as words"
    )
    row = words_of(found.rows)[0]
    assert "a <|end|> b <s> c" in row
    clean = tokenized(["a", "<s> b", "<s> <s> b"], words, Prompting(chat=chat), n_tokens=99)
    assert "hold special" not in clean.note
    words.split_special_tokens = True
    assert not tokenized(["a <|end|> b"], words, Prompting(chat=chat), n_tokens=99).note


def test_special_tokens_in_a_template_and_in_whole_prompts_are_meant():
    words = tokenizer(template=CHAT)
    whole = ["<s> <|user|> a <|end|> <|bot|>"]
    assert "hold special" not in tokenized(whole, words, Prompting(), n_tokens=99).note
    assert "'<|user|>'" in tokenized(whole, words, Prompting(chat=True), n_tokens=99).note
    assert not tokenized(["a"], words, Prompting(template="<|user|> {text}"), n_tokens=99).note


@pytest.mark.parametrize("options", [{"template": "b {text}"}, {"chat": True}])
@pytest.mark.parametrize("text", ["<s>", " <s> <s> "])
def test_a_text_that_is_nothing_but_the_first_token_is_empty(options, text):
    message = "`prompts` must have words; number 1 is nothing but '<s>', which begins a prompt"
    with pytest.raises(ValueError, match=message):
        rows_of(tokenizer(template=CHAT), ["a", text], **options)


def test_no_last_token_is_added_to_a_chat():
    words = tokenizer(eos=True, template=CHAT)
    assert words_of(rows_of(words, ["a"], chat=True)) == ["<s> <|user|> a <|end|> <|bot|>"]
    assert words_of(rows_of(words, ["a"], template="b {text}")) == ["<s> b a </s>"]


# ----------------------------------------------------------------------- what is read


@pytest.mark.parametrize("template", ["Review: {text}\nSentiment:", "{text}\n\nThis is", "{text}"])
def test_the_last_token_of_the_text(tok, template):
    texts = ["It was good", "no", "Sentiment: none"]  # whose ends are ends of tokens
    whole = rows_of(tok, texts, template=template)
    for text, ids, row in zip(
        texts, whole, rows_of(tok, texts, template=template, read_at="text"), strict=True
    ):
        assert row == ids[: len(row)]
        assert tok.decode(row).endswith(text)
        assert tok.decode(ids[len(row) :]).lstrip(" ") == template.split("{text}")[1]


def test_the_last_token_of_the_text_in_a_chat(tok):
    text = "It was good"
    (ids,), (row,) = (rows_of(tok, [text], chat=True, read_at=at) for at in ("last", "text"))
    assert row == ids[: len(row)]
    assert len(row) < len(ids)
    assert tok.decode(row).endswith(text)


def test_the_last_token_of_a_text_is_not_the_one_that_the_tokenizer_adds():
    words = tokenizer(eos=True)
    assert words_of(rows_of(words, ["a b", "c"], read_at="text")) == ["<s> a b", "<s> c"]


def test_a_token_across_the_end_of_a_text_belongs_to_the_template():
    """In GPT-2's vocabulary the first two of three line breaks are one token."""
    tok = real("gpt2")
    text, template = "good\n", "{text}\n\nSo"
    ids = tok("good\n\n\nSo")["input_ids"]
    assert tok.convert_ids_to_tokens(ids) == ["good", "ĊĊ", "Ċ", "So"]
    assert rows_of(tok, [text], template=template, read_at="text") == [ids[:1]]
    assert rows_of(tok, [text], template=template) == [ids]


def test_the_token_where_a_marker_ends(tok):
    template = "Review: {text}\nSentiment: so"
    whole = rows_of(tok, TEXTS, template=template)
    for ids, row in zip(
        whole, rows_of(tok, TEXTS, template=template, read_at="Sentiment:"), strict=True
    ):
        assert row == ids[: len(row)]
        assert tok.decode(ids[len(row) :]).strip() == "so"  # the last one where there are several
    # one that ends inside a token, in a prompt without a template
    (row,) = rows_of(tok, ["It was good indeed"], read_at="It wa")
    assert tok.decode(row[-1:]).strip() in ("was", "a")


@pytest.mark.parametrize(("index", "length"), [(0, 1), (2, 3), (-1, 5), (-5, 1)])
def test_an_index_counts_the_tokens_of_the_prompt(index, length):
    words = tokenizer(template=CHAT)
    ids = [0, 2, 5, 4, 3]
    assert rows_of(words, ["a"], chat=True, read_at=index) == [ids[:length]]
    assert rows_of(None, [ids], read_at=index) == [ids[:length]]


def test_an_index_counts_after_cutting():
    words = tokenizer()
    (row,) = rows_of(words, ["a b c d e f"], template="{text} j", read_at=-2, max_tokens=4)
    assert words_of([row]) == ["<s> a b"]


READ = ["last", "text", "c d", 2, -2]


@pytest.mark.parametrize("read_at", READ)
@pytest.mark.parametrize("family", list(TINY))
def test_the_state_is_that_of_a_run_over_the_whole_prompt(family, read_at):
    """With all that follows the token that is read: it influences nothing before it."""
    words = tokenizer(template=CHAT)
    hf = TINY[family]().double()
    options = {"chat": True, "template": "c d {text} e", "answer": "f g"}
    model = lm.DepthModel(hf, words, read_at=read_at, **options)
    texts = ["a b", "h", "i j h a b"]
    states = model.run(texts).states.values
    at = {
        "last": lambda n: n + 9 - 1,
        "text": lambda n: 4 + n - 1,
        "c d": lambda n: 3,
        2: lambda n: 2,
        -2: lambda n: n + 9 - 2,
    }[read_at]
    for number, text in enumerate(texts):
        n = len(text.split())
        string = f"<s> <|user|> c d {text} e <|end|> <|bot|> f g"
        ids = words(string, add_special_tokens=False)["input_ids"]
        assert len(ids) == n + 9
        with torch.no_grad():
            hidden = hf(torch.tensor([ids]), output_hidden_states=True).hidden_states
        # the last one is behind the final norm
        for depth in range(model.n_layers):
            expected = hidden[depth][0, at(n)].numpy()
            np.testing.assert_allclose(states[depth, number], expected, rtol=1e-6, atol=1e-9)


def test_results_say_how_prompts_were_made():
    words = tokenizer(template=CHAT)
    given = {"template": "d {text}", "chat": True, "system_message": "c", "answer": "e"}
    given |= {"read_at": "text", "cut": "left", "max_tokens": 30}
    model = lm.DepthModel(tiny_gpt2(), words, **given)
    attrs = lm.jacobians(model, ["a b", "a c"]).attrs
    assert {name: attrs[name] for name in given} == given
    assert Prompting.stored(attrs) == model.prompting == Prompting(**given)
    plain = lm.jacobians(lm.DepthModel(tiny_gpt2(), words), ["a b", "a c"]).attrs
    assert attrs["tokens_sha256"] != plain["tokens_sha256"]
    assert not {"template", "chat", "system_message", "answer"} & plain.keys()
    assert plain["read_at"] == "last"


def test_the_context_of_the_model_is_the_longest_prompt():
    model = lm.DepthModel(tiny_gpt2(), tokenizer(), template="b {text}", max_tokens=999)
    assert model.prompting.max_tokens == model.max_tokens == 40


# ----------------------------------------------------------------------- what is cut


@pytest.mark.parametrize(
    ("cut", "kept"), [("right", "a b c"), ("left", "h i j"), ("middle", "a b j")]
)
@pytest.mark.parametrize("eos", [False, True])
def test_only_the_text_is_cut(cut, kept, eos):
    words = tokenizer(eos=eos, template=CHAT)
    long = "a b c d e f g h i j"
    found = tokenized(
        [long, "a"],
        words,
        Prompting(template="d e {text} f", cut=cut, max_tokens=7 + eos),
        n_tokens=99,
    )
    end = " </s>" if eos else ""
    assert words_of(found.rows) == [f"<s> d e {kept} f{end}", f"<s> d e a f{end}"]
    assert found.n_cut == 1
    chat = rows_of(words, [long], chat=True, answer="d", cut=cut, max_tokens=8)
    assert words_of(chat) == [f"<s> <|user|> {kept} <|end|> <|bot|> d"]


def test_the_space_before_a_text_goes_with_its_first_word():
    tok = real("gpt2")
    (row,) = rows_of(tok, ["good bad"], template="So: {text}.", cut="left", max_tokens=4)
    assert tok.convert_ids_to_tokens(row) == ["So", ":", "Ġbad", "."]
    # a line break is no such space
    (row,) = rows_of(tok, ["\ngood bad"], template="{text}.", cut="left", max_tokens=2)
    assert tok.convert_ids_to_tokens(row) == ["Ġbad", "."]
    options = {"template": "So\n{text}.", "cut": "left", "max_tokens": 4}
    assert tok.convert_ids_to_tokens(tok("So\n\n\ngood bad.")["input_ids"])[1:3] == ["ĊĊ", "Ċ"]
    (row,) = rows_of(tok, ["\n\ngood bad"], **options)
    assert tok.convert_ids_to_tokens(row) == ["So", "ĊĊ", "Ġbad", "."]


def test_what_is_not_fed_takes_no_room():
    words = tokenizer()
    long = "a b c d e f g h i j"
    for cut, kept in (("right", "a b c"), ("left", "h i j"), ("middle", "a b j")):
        options = {"template": "d {text} e f g", "cut": cut, "max_tokens": 5}
        assert words_of(rows_of(words, [long], read_at="text", **options)) == [f"<s> d {kept}"]
    options = {"template": "d {text} e f g", "read_at": "j e", "max_tokens": 5}
    assert words_of(rows_of(words, [long], **options)) == ["<s> d a b e"]
    options = {"read_at": "d e", "max_tokens": 4, "cut": "left"}
    assert words_of(rows_of(words, [long], **options)) == ["<s> c d e"]


WORDS = st.sampled_from(["good", " bad", "  ", "\n", "x", ":", ".", " the", "é", "😀", "ing", "1"])


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    name=st.sampled_from(["gpt2", "stories", "demo"]),
    text=st.lists(WORDS, min_size=1, max_size=30).map("".join).filter(str.strip),
    template=st.sampled_from(TEMPLATES[:4]),
    max_tokens=st.integers(1, 60),
    cut=st.sampled_from(["right", "left", "middle"]),
)
def test_no_cut_takes_anything_of_the_template(name, text, template, max_tokens, cut):
    tok = real(name)
    if name == "stories":  # which decodes bytes of one character and those before it together
        text = text.replace("😀", "!")
    options = {"template": template, "cut": cut}
    (whole,) = rows_of(tok, [text], **options)
    alone = len(tok(template.replace("{text}", ""))["input_ids"])
    if max_tokens <= alone + 2 and len(whole) > max_tokens:
        try:
            rows_of(tok, [text], **options, max_tokens=max_tokens)
        except ValueError as error:
            told = str(error)
        else:  # words that join across an end are one token less
            told = "tokens around the content" if max_tokens > alone - 3 else ""
        assert "tokens around the content" in told
        return
    (row,) = rows_of(tok, [text], **options, max_tokens=max_tokens)
    if len(whole) <= max_tokens:
        assert row == whole
        return
    assert len(row) == max_tokens
    assert any(row == whole[:n] + whole[len(whole) - len(row) + n :] for n in range(len(row) + 1))
    first, last = template.split("{text}")
    said = tok.decode(row, skip_special_tokens=True)
    # the space before a word is part of the word
    assert said.startswith(first.rstrip(" "))
    assert said.endswith(last)
    assert row[0] == whole[0] or not first


# ----------------------------------------------------------------------- what is refused


class Slow(PreTrainedTokenizer):
    """One token per character, in Python."""

    vocab_size = 128

    def get_vocab(self):
        return {chr(n): n for n in range(128)}

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token)

    def _convert_id_to_token(self, index):
        return chr(index)


def test_a_slow_tokenizer_is_good_enough_until_tokens_must_be_found():
    slow = Slow()
    assert rows_of(slow, ["ab"], template="c{text}d") == [[99, 97, 98, 100]]
    with pytest.raises(ValueError, match=r"must be a fast one for read_at='text': .* a Slow"):
        rows_of(slow, ["ab"], read_at="text")
    with pytest.raises(ValueError, match="must be a fast one for read_at='b'"):
        rows_of(slow, ["ab"], read_at="b")
    with pytest.raises(ValueError, match=r"fast one for cutting the texts in a template: .* ids"):
        rows_of(slow, ["abcdef"], template="c{text}d", max_tokens=4)


IDS, LONG = [[1, 2]], ["a b c d e f"]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (IDS, {"template": "{text}"}, r"`template` must be left out for token ids, .* '\{text\}'"),
        (IDS, {"chat": True}, "`chat` must be left out for token ids, .* Give texts, or put it"),
        (IDS, {"read_at": "text"}, "`read_at` must be 'last' or a whole number for token ids, whi"),
        (IDS, {"read_at": "a"}, "must be 'last' or a whole number for token ids, .* got 'a'"),
        (IDS, {"read_at": 2}, "be a token of every prompt; got 2 for number 0, which has 2 tokens"),
        (["a b", "a"], {"read_at": -3}, "got -3 for number 1, which has 2 tokens. Use .* -2 to 1"),
        (["a b", "a"], {"read_at": "b"}, "`read_at` must be a marker .*; 'b' is not in number 1"),
        (["a", " "], {"read_at": "text"}, "text number 1, ' ', has none of its own. Delete it"),
        (["a b"], {"read_at": "a "}, "whose end is part of a token; .* that of 'a ' in number 0"),
        (LONG, {"read_at": "f", "max_tokens": 4}, "not cut away; 'f' in text number 0 ends at tok"),
        (LONG, {"read_at": "f", "max_tokens": 4}, "to 7, or use cut='left' or 'middle'"),
        (LONG, {"template": "a b {text}", "read_at": "f", "max_tokens": 3}, r"tokens` to 9\.$"),
        (LONG, {"template": "h i j {text}", "read_at": "j", "max_tokens": 3}, r"before .* to 4\.$"),
        (LONG, {"template": "h i j {text}", "read_at": "j", "max_tokens": 3, "cut": "left"},
         r"before the text\. Raise `max_tokens` to 4\.$"),
        (LONG, {"template": "a b {text}", "max_tokens": 3}, "must be above the 3 tokens around"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_made(prompts, options, message):
    with pytest.raises(ValueError, match=message):
        rows_of(tokenizer(template=CHAT), prompts, **options)


CHATS = {
    None: "`chat` must be asked of a tokenizer that has a chat template; that of this model has no",
    NO_SYSTEM: r"`chat` must be what .* can write; it says: System role not .* `system_message` in",
    "{{ messages[-1].content }}": "`system_message` must have a place in .* chat template; 'S!' is",
    "{{ bos_token }}": "`chat` must put the text into the prompt once; .* writes it 0 times",
    "S! {{ messages[-1].content.missing.again }}": "it says: .* has no attribute",
    "{% for m in messages %}{{ m.content }} {{ m.content | length }}{% endfor %}": "writes others",
}


@pytest.mark.parametrize("template", CHATS)
def test_chat_templates_that_cannot_be_used(template):
    words = tokenizer(template=template)
    with pytest.raises(ValueError, match=CHATS[template]):
        rows_of(words, ["a", "b b b"], chat=True, system_message="S!")


HEADED = "{% for m in messages if m.role == 'user' %}user says: {{ m.content }}{% endfor %}"


@pytest.mark.parametrize("said", ["user", "says:"])
def test_a_system_that_is_left_out_though_its_words_are_there(said):
    words = tokenizer(template=HEADED)
    with pytest.raises(ValueError, match="`system_message` must have a place in the tokenizer's"):
        rows_of(words, ["a"], chat=True, system_message=said)


def test_a_system_that_says_what_the_template_says_by_default():
    default = "{% if messages[0].role != 'system' %}be kind: {% endif %}"
    words = tokenizer(template=default + "{% for m in messages %}{{ m.content }} {% endfor %}")
    rows_of(words, ["a"], chat=True, system_message="be kind:")


CHANGED = {
    "{{ m.content | upper }}": "makes 'A B C D' of number 1, 'a b c d'",
    "{{ m.content[:5] }}": "makes 'a b c' of number 1, 'a b c d'",
    "{{ m.content.split('b')[-1] }}": "makes ' c d' of number 1, 'a b c d'",
}


@pytest.mark.parametrize("written", CHANGED)
def test_a_chat_template_that_changes_a_text_is_refused(written):
    words = tokenizer(template="{% for m in messages %}e " + written + " e{% endfor %}")
    with pytest.raises(ValueError, match=CHANGED[written]):
        rows_of(words, ["1 2", "a b c d"], chat=True)


def test_a_chat_template_that_fails_without_a_system_message_names_no_such():
    words = tokenizer(template="{{ raise_exception('not now') }}")
    with pytest.raises(ValueError, match=r"it says: not now\. Write a `template` instead\."):
        rows_of(words, ["a"], chat=True)


def test_a_model_that_cannot_chat_is_refused_when_it_is_wrapped(monkeypatch):
    monkeypatch.setattr("depthsys.lm.contract.check", lambda *_: pytest.fail("it was run"))
    with pytest.raises(ValueError, match="`chat` must be asked of a tokenizer that has a chat te"):
        lm.DepthModel(tiny_gpt2(), tokenizer(), chat=True)
    with pytest.raises(ValueError, match="`template` must hold"):
        lm.DepthModel(tiny_gpt2(), tokenizer(), template="text")


def test_labelled_token_ids_are_read_at_an_index():
    texts = lm.read_texts([([3, 1, 4], 1), ([1, 5], 0)])
    model = lm.DepthModel(tiny_gpt2().double(), read_at=0)
    expected = lm.DepthModel(tiny_gpt2().double()).run([[3], [1]])
    np.testing.assert_array_equal(model.run(texts).states, expected.states)
