"""The directions of steering-vectors and repeng on the same contrast pairs.

The environment is made by tests/tools_of_others.py.
"""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from depthsys import lm
from tests.conftest import tiny_gpt2, tiny_llama
from tests.tools_of_others import called

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "theirs" / "train_on_pairs.py"
WORDS = [f"word{i}" for i in range(48)]
MODELS = {"gpt2": tiny_gpt2, "llama": tiny_llama}
N_LAYERS = 5


def pairs_of_words(count):
    """Of unlike lengths, so that batches are padded; the last words are from two halves."""
    rng = np.random.default_rng(3)

    def text(last):
        words = [*rng.choice(WORDS, rng.integers(1, 6)), rng.choice(last)]
        return " ".join(words)

    return [(text(WORDS[:24]), text(WORDS[24:])) for _ in range(count)]


@pytest.fixture(scope="module", params=list(MODELS))
def trained(request, tools, tmp_path_factory):
    """A model here, pairs, and what the two packages find on them."""
    folder = tmp_path_factory.mktemp(request.param)
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    sizes = {"n_layer": N_LAYERS} if request.param == "gpt2" else {"num_hidden_layers": N_LAYERS}
    MODELS[request.param](**sizes).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    pairs = pairs_of_words(20)
    asked = {"model": str(folder), "pairs": pairs, "out": str(folder / "theirs.npz")}
    called(tools, SCRIPT, asked, folder)
    with np.load(folder / "theirs.npz") as found:
        theirs = dict(found)
    return lm.DepthModel.load(folder, device="cpu"), lm.read_pairs(pairs), theirs


def cosines(theirs, mine, prefix):
    """By layer: of their direction at a layer with mine at the depth after it."""
    found = {}
    for name, direction in theirs.items():
        if name.startswith(prefix):
            layer = int(name.rsplit(", ", 1)[1])
            v = mine.direction.sel(depth=layer + 1).values
            found[layer] = float(v @ direction / np.linalg.norm(direction))
    return found


def test_steering_vectors_mean_is_the_paired_difference(trained):
    model, pairs, theirs = trained
    mine = lm.paired_difference(model, pairs)
    found = cosines(theirs, mine, "steering-vectors, mean,")
    assert sorted(found) == list(range(N_LAYERS))
    np.testing.assert_allclose(list(found.values()), 1, atol=1e-5)  # with its sign
    for layer in found:
        length = np.linalg.norm(theirs[f"steering-vectors, mean, {layer}"])
        np.testing.assert_allclose(length, mine.distance.sel(depth=layer + 1), rtol=1e-4)


def test_steering_vectors_pca_is_that_of_the_pairs(trained):
    model, pairs, theirs = trained
    found = cosines(theirs, lm.pca(model, pairs), "steering-vectors, pca,")
    assert sorted(found) == list(range(N_LAYERS))
    np.testing.assert_allclose(list(found.values()), 1, atol=1e-5)


@pytest.mark.parametrize(("method", "centered"), [("pca_diff", True), ("pca_center", False)])
def test_repeng_is_the_pca_of_the_pairs(trained, method, centered):
    """Its last layer reads the state after the final norm, which is no depth here."""
    model, pairs, theirs = trained
    mine = lm.pca(model, pairs, centered=centered)
    found = cosines(theirs, mine, f"repeng, {method},")
    assert sorted(found) == list(range(1, N_LAYERS))  # it leaves the first layer out
    last = abs(found.pop(N_LAYERS - 1))
    np.testing.assert_allclose(np.abs(list(found.values())), 1, atol=1e-5)
    assert last < 1 - 1e-3


def test_pairing_at_random_is_another_direction(trained):
    """Why pairs are kept."""
    model, pairs, theirs = trained
    mine = lm.pca(model, lm.Texts(pairs.texts, pairs.labels), centered=True)
    found = cosines(theirs, mine, "repeng, pca_diff,")
    assert np.abs(list(found.values())).min() < 0.9


def test_the_token_before_the_last_one(trained):
    """steering-vectors with ``read_token_index=-2``: the texts without their last token."""
    model, pairs, theirs = trained
    ids = [row[:-1] for row in model.tokenize(pairs)[0]]
    mine = lm.paired_difference(model, lm.Pairs(tuple(map(tuple, ids))))
    found = cosines(theirs, mine, "steering-vectors, mean at -2,")
    np.testing.assert_allclose(list(found.values()), 1, atol=1e-5)
