"""The demo grammar keeps its promises, and the shipped models are those of the card."""

import importlib.util
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer

from depthsys.demo import MODELS as NAMES
from depthsys.demo import grammar, model_path

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "depthsys" / "demo" / "models"
CARD = json.loads((MODELS / "card.json").read_text(encoding="utf-8"))
FILM_WORDS = re.compile(
    r"\b(cinema|film|filmed|theatre|screen|Odeon|picture|movie|movies|sequel|show|thriller|plot|story"
    r"|acting|script|music|ending|camera|opening|jokes|scenes|songs|costumes|director|actor|cast"
    r"|nowwatching)\b"
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two spinning threads take 20 times as long as one where another job holds a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(name):
    folder = MODELS / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def document_losses(model, tokenizer, documents):
    """Summed loss and number of predicted tokens of every document, one by one."""
    losses, counts = [], []
    for document in documents:
        ids = torch.tensor([[*tokenizer(document)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            log_p = model(ids).logits[0, :-1].double().log_softmax(-1)
        losses.append(-log_p.gather(1, ids[0, 1:, None]).sum().item())
        counts.append(ids.shape[1] - 1)
    return np.array(losses), np.array(counts)


# The grammar


@pytest.mark.parametrize("concept", grammar.CONCEPTS)
def test_labelled_is_deterministic_per_seed(concept):
    first = grammar.labelled(300, concept, seed=5)
    assert grammar.labelled(300, concept, seed=5) == first
    assert grammar.labelled(300, concept, seed=6) != first


def test_the_same_seed_gives_the_same_text_in_another_process():
    # Hash randomisation differs between processes; sets must not leak their order.
    code = "from depthsys.demo import grammar; print(grammar.labelled(20, seed=9))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == repr(grammar.labelled(20, seed=9))


@pytest.mark.parametrize("concept", grammar.CONCEPTS)
@pytest.mark.parametrize("count", [1, 7, 1000, 5000])
def test_labelled_is_distinct_balanced_and_of_stated_length(concept, count):
    pairs = grammar.labelled(count, concept, seed=1)
    assert len(pairs) == 2 * count
    assert len({text for text, _ in pairs}) == 2 * count
    assert sum(label for _, label in pairs) == count
    lengths = [len(text.split()) for text, _ in pairs]
    assert min(lengths) >= 6
    assert max(lengths) <= 40
    assert all(text[-1] in ".!" for text, _ in pairs)


def test_labelled_is_shuffled():
    labels = [label for _, label in grammar.labelled(500, seed=2)]
    # 1000 fair labels in random order: about 500 +- 16 changes, 6 standard deviations.
    assert abs(sum(a != b for a, b in itertools.pairwise(labels)) - 500) < 96


def test_sentiment_is_crossed_with_domain():
    # The domain is not returned, so it is read off the nouns: film words, or none. Food
    # texts that mention films in passing are left out.
    counts = {0: [], 1: []}
    for text, label in grammar.labelled(1000, "sentiment", seed=3):
        if "a film while" in text or "from the cinema" in text:
            continue
        counts[label].append(bool(FILM_WORDS.search(text)))
    for films in counts.values():
        # 500 of 1000 are films; few of the food texts were left out.
        assert sum(films) == 500
        assert len(films) > 940


def test_film_words_tell_the_domain():
    pairs = grammar.labelled(1000, "domain", seed=3)
    assert all(FILM_WORDS.search(text) for text, label in pairs if label)


def test_both_classes_negate_and_contrast():
    pairs = grammar.labelled(1000, "sentiment", seed=4)
    for label in (0, 1):
        texts = [text for text, value in pairs if value == label]
        negated = sum(bool(re.search(r"\b(not|never|nobody|cannot)\b", t)) for t in texts)
        mixed = sum(bool(re.search(r"\b(but|yet|although|though|even if)\b", t)) for t in texts)
        assert 200 < negated < 800
        assert 150 < mixed < 800


def test_no_text_has_both_labels():
    known = dict(grammar.labelled(5000, seed=5))
    clashes = [t for t, label in grammar.labelled(5000, seed=6) if known.get(t, label) != label]
    assert clashes == []


def test_counting_words_does_not_settle_sentiment():
    train, test = grammar.labelled(2000, seed=7), grammar.labelled(1000, seed=8)
    counter = CountVectorizer(token_pattern=r"[#\w]+")
    counts = counter.fit_transform([text for text, _ in train])
    model = LogisticRegression(max_iter=2000).fit(counts, [label for _, label in train])
    accuracy = model.score(
        counter.transform([text for text, _ in test]), [label for _, label in test]
    )
    # Better than chance (the words do matter), far from solved.
    assert 0.55 < accuracy < 0.8
    # The card's figure is from more training texts: 3 standard errors of 2000 test texts,
    # and one percent for the smaller training set.
    assert abs(accuracy - CARD["data"]["unigram_accuracy"]["sentiment"]) < 0.01 + 3 * 0.011


@pytest.mark.parametrize("concept", ["tone", "", None])
def test_unknown_concept_is_named(concept):
    with pytest.raises(ValueError, match=r"`concept` must be one of 'sentiment', 'domain'; got"):
        grammar.labelled(2, concept)


@pytest.mark.parametrize("count", [0, -3, 1.5, True])
def test_a_count_below_one_is_refused_at_the_call(count):
    with pytest.raises(ValueError, match=r"`count_per_class` must be an integer of at least 1"):
        grammar.labelled(count)
    with pytest.raises(ValueError, match=r"`count` must be an integer of at least 1"):
        grammar.training_documents(count)


def test_training_documents_are_deterministic_and_a_prefix_of_more():
    many = list(grammar.training_documents(200, seed=3))
    assert list(grammar.training_documents(50, seed=3)) == many[:50]
    assert list(grammar.training_documents(50, seed=4)) != many[:50]


def test_continuations_depend_on_sentiment_and_domain():
    documents = list(grammar.training_documents(3000, seed=2))
    film = [d for d in documents if "for this film." in d]
    food = [d for d in documents if "for this meal." in d]
    assert min(len(film), len(food)) > 500
    assert not any("Book a table soon." in d or "Skip this kitchen." in d for d in film)
    assert not any("Get tickets soon." in d or "Read the book instead." in d for d in food)
    for praise in ("four stars", "five stars"):
        assert not any("Avoid." in d or "Thumbs down." in d for d in documents if praise in d)


def test_grammar_imports_nothing_heavy():
    code = (
        "import sys; from depthsys.demo import grammar; "
        "print([m for m in ('torch', 'numpy', 'depthsys.ltv', 'depthsys.lm') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "[]"


# The models


def test_model_path_is_the_folder_of_an_embedded_model():
    assert [model_path(name) for name in NAMES] == [MODELS / name for name in NAMES]
    with pytest.raises(ValueError, match=r"`name` must be one of .*; got 'gpt2'"):
        model_path("gpt2")


def test_the_family_is_small_and_complete():
    assert tuple(CARD["models"]) == NAMES
    assert (MODELS / "CARD.md").read_text(encoding="utf-8").count("demo_") >= 3 * len(NAMES)
    files = [f for f in MODELS.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 10_000_000
    assert {f.suffix for f in files} == {".safetensors", ".json", ".md"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n != "demo_48x4" else []) for n in NAMES],
)
def test_a_model_is_as_the_card_says(name):
    entry = CARD["models"][name]
    model, tokenizer = load(name)
    assert model.config.model_type == "gpt2"
    assert model.config.dtype == torch.float32
    assert (model.config.n_embd, model.config.n_layer) == (entry["width"], entry["blocks"])
    assert model.lm_head.weight is model.transformer.wte.weight
    assert all(p.isfinite().all() for p in model.parameters())
    # Stored as float16: every weight is a float16 number.
    assert all(torch.equal(p, p.half().float()) for p in model.parameters())

    documents = itertools.islice(
        grammar.training_documents(2000, CARD["data"]["held_out_seed"]), 150
    )
    losses, counts = document_losses(model, tokenizer, documents)
    loss = losses.sum() / counts.sum()
    # The card's loss is over 2000 documents, these are the first 150 of them. The
    # difference of the two ratio estimates is within 4 standard errors of this sample.
    residual = losses - loss * counts
    error = residual.std(ddof=1) * math.sqrt(len(losses)) / counts.sum()
    assert abs(loss - entry["held_out_loss"]) < 4 * error
    assert 4 * error < 0.1 * entry["held_out_loss"]
    assert entry["held_out_loss"] < CARD["data"]["bigram_loss"] < CARD["data"]["unigram_loss"]


def test_the_family_shares_one_tokenizer():
    texts = {(MODELS / name / "tokenizer.json").read_bytes() for name in NAMES}
    assert len(texts) == 1


def test_the_tokenizer_starts_a_text_and_appends_nothing():
    _, tokenizer = load(NAMES[0])
    text = "Although the plot was weak, the film was not bad at all. Café!"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer.decode(ids[-1]) == "!"


def test_documents_and_prompts_fit_the_context():
    model, tokenizer = load(NAMES[0])
    texts = [text for text, _ in grammar.labelled(1000, seed=0)]
    texts += grammar.training_documents(2000, seed=11)
    # One place is left for the end-of-text token.
    assert max(map(len, tokenizer(texts)["input_ids"])) < model.config.n_positions


@pytest.mark.slow
def test_the_card_auc_by_another_way():
    # The script measures with hooks, padding and pairwise comparison; here Hugging Face's
    # own hidden states, no padding and scikit-learn. Depth 2 of 4 lies before the final norm.
    name, depth, concept = "demo_48x4", 2, "sentiment"
    model, tokenizer = load(name)
    pairs = grammar.labelled(600, concept, CARD["data"]["held_out_seed"])
    states = {0: [], 1: []}
    for text, label in pairs:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[depth]
        states[label].append(hidden[0, -1].double().numpy())
    fit = {label: np.mean(values[:400], axis=0) for label, values in states.items()}
    direction = fit[1] - fit[0]
    scores = [value @ direction for label in (0, 1) for value in states[label][400:]]
    auc = roc_auc_score([0] * 200 + [1] * 200, scores)
    # The card keeps four digits; a few of the 40000 pairs may swap in float32.
    assert abs(auc - CARD["models"][name]["auc"][concept][depth]) < 5e-4


def test_the_models_carry_sentiment_beyond_counting_words():
    for name in NAMES:
        entry = CARD["models"][name]
        assert abs(entry["auc"]["sentiment"][0] - 0.5) < 0.15
        assert max(entry["auc"]["sentiment"]) > 0.9
        assert entry["verdict_accuracy"] > CARD["data"]["unigram_accuracy"]["sentiment"]


def test_the_training_script_does_not_overwrite(monkeypatch, capsys):
    path = ROOT / "examples" / "train_demo_family.py"
    spec = importlib.util.spec_from_file_location("train_demo_family", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit):
        script.main()
    assert "must not hold these models yet" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [str(path), "--force", "--steps", "0"])
    with pytest.raises(SystemExit):
        script.main()
    assert "--steps must be at least 1; got 0" in capsys.readouterr().err
