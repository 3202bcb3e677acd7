"""Models and texts shared by the tests. Tiny models are built from configs: no download."""

import gc
import os
import sys
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from depthsys import cli, lm
from tests import tools_of_others

# programs that run in environments of other tools
collect_ignore_glob = ["*/theirs/*"]

# Tiny models gain nothing from threads, and two of them on a busy machine wait for each other.
torch.set_num_threads(1)
if "PYTEST_XDIST_WORKER" in os.environ:  # see tests/__init__.py; pytest loads numpy before that
    threadpool_limits(1)

DATA = Path(os.environ.get("DEPTHSYS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
SHARED_MODELS = ("gpt2_6x128", "stories260K", "gpt280K_tinystories")


def pytest_addoption(parser):
    parser.addoption(
        "--write-models-table",
        action="store_true",
        help="rewrite the table of docs/models.md from what tests/lm/test_families.py measures",
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported and collected stays: the garbage collector need not look at it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def tiny_gpt2(**changes) -> GPT2LMHeadModel:
    """Random GPT-2, 3 blocks, H = 16, weights large enough to be clearly nonlinear."""
    torch.manual_seed(0)
    settings = {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 50, "n_positions": 40}
    config = GPT2Config(**(settings | changes), initializer_range=0.3, bos_token_id=0)
    return GPT2LMHeadModel(config)


def tiny_llama(**changes) -> LlamaForCausalLM:
    """Random Llama, 3 blocks, H = 16, two heads per key."""
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 3}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    config = LlamaConfig(
        **(settings | changes), max_position_embeddings=40, initializer_range=0.3, pad_token_id=0
    )
    return LlamaForCausalLM(config)


TINY = {"gpt2": tiny_gpt2, "llama": tiny_llama}


@pytest.fixture(scope="session", autouse=True)
def nobody_waits():
    """No power fails, and a forecast of seconds may be rough.

    A busy disk takes 20 ms to say that a file is on it; that it is asked before a file gets its
    name is shown in tests/files/test_whole.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr("depthsys.lm.forecast._SECONDS", 0.05)
        yield


@pytest.fixture(scope="session", params=list(TINY))
def tiny(request) -> lm.DepthModel:
    """A tiny random model in float64."""
    return lm.DepthModel(TINY[request.param]().double(), name=request.param)


@pytest.fixture(scope="session")
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"test data not found at {DATA}; set DEPTHSYS_TEST_DATA")
    return DATA


@pytest.fixture(scope="session")
def real_folder() -> Path:
    """Where `depthsys fetch` has put a real model and real texts; for tests marked `real`."""
    from depthsys.demo import real

    folder = real.default_folder()
    missing = [each.name for each in real.FILES if not (folder / each.name).exists()]
    if missing:
        pytest.skip(f"no {missing[0]} in {folder}: run `depthsys fetch`")
    return folder


@pytest.fixture(scope="session")
def tools(request) -> Path:
    """The interpreter of an environment with repeng, steering-vectors and llama.cpp."""
    return tools_of_others.interpreter(request.config.cache.mkdir("tools-of-others"))


@pytest.fixture(scope="session", params=SHARED_MODELS)
def shared_model_path(request, data) -> Path:
    return data / "weights" / request.param


@pytest.fixture(scope="session")
def demo_model() -> lm.DepthModel:
    from depthsys.demo import model_path

    return lm.DepthModel.load(model_path("demo_48x4"), device="cpu")


@pytest.fixture(scope="session")
def demo_texts():
    from depthsys.demo import grammar

    rows = grammar.labelled(count_per_class=60, seed=1)
    return lm.read_texts(rows).split(concept=30, operating=12, held_out=10)


@pytest.fixture(scope="session")
def study_stages():
    """All stages of a cell of a study on an embedded model."""
    from tests.report import stores

    return stores.results()


@pytest.fixture(scope="session")
def study_store(study_stages, tmp_path_factory) -> Path:
    """The store of a small study, to be read only."""
    from tests.report import stores

    return stores.write_study(tmp_path_factory.mktemp("study") / "study.zarr", study_stages)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command; gives (exit status, stdout, stderr)."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["depthsys", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out = capsys.readouterr()
        return exit_.value.code or 0, out.out, out.err

    return call
