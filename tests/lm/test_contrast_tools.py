"""The directions of steering-vectors and repeng on the same contrast pairs.

They run in an environment of their own, whose versions of numpy and transformers they pin; torch is
the one that runs this. Making it takes a minute and needs a package index; it is kept in pytest's
cache. DEPTHSYS_TEST_TOOLS names the interpreter of another one.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from depthsys import lm
from tests.conftest import tiny_gpt2, tiny_llama

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "theirs" / "train_on_pairs.py"
TOOLS = ["numpy<2", "transformers>=4.50,<5", "repeng==0.4.0", "steering-vectors==0.12.2"]
WORDS = [f"word{i}" for i in range(48)]
MODELS = {"gpt2": tiny_gpt2, "llama": tiny_llama}
N_LAYERS = 5


@pytest.fixture(scope="module")
def tools(request) -> Path:
    """The interpreter of an environment with both."""
    if given := os.environ.get("DEPTHSYS_TEST_TOOLS"):
        return Path(given)
    folder = request.config.cache.mkdir("repeng-and-steering-vectors")
    python = folder / "bin" / "python"
    if (folder / "made").exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    find = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True).stdout
    # packages of this environment come after its own
    (Path(site.strip()) / "zz_outer.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    done = subprocess.run([python, "-m", "pip", "install", "-q", *TOOLS], capture_output=True)
    if done.returncode:
        pytest.skip(f"the tools could not be installed: {done.stderr.decode()[-300:]}")
    (folder / "made").touch()
    return python


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
    (folder / "request.json").write_text(json.dumps(asked))
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [tools, SCRIPT, folder / "request.json"],
        env=env | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
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
