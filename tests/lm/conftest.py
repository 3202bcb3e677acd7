"""A tiny model has no tokenizer, so its tests use token ids with labels instead of texts."""

import gc
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm
from depthsys.lm.batches import length_batches
from tests.conftest import TINY


def several_inputs() -> xr.Dataset:
    """A concept of two directions."""
    v = np.random.default_rng(4).standard_normal((4, 2, 16))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return xr.Dataset({"direction": (("depth", "input", "feature"), v)})


@dataclass(frozen=True)
class LabelledIds:
    """Stands for `Texts` where a tokenizer is missing."""

    ids: list[list[int]]
    labels: np.ndarray
    classes: tuple[str, str] = ("0", "1")
    sha256: str = "ids"

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row):
        return self.ids[row]


def labelled_ids(count, seed):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, 50, size=rng.integers(1, 7)).tolist() for _ in range(count)]
    return LabelledIds(ids, np.arange(count) % 2, sha256=f"ids {seed}")


def counted_block_calls(model, monkeypatch) -> list[tuple[int, int]]:
    """A list that fills with (layer, rows) of every block call of the model: cost as a count."""
    calls = []
    original = model.blocks.call

    def counting(layer, call, hidden, cache):
        calls.append((layer, hidden.shape[0] * hidden.shape[1]))
        return original(layer, call, hidden, cache)

    monkeypatch.setattr(model.blocks, "call", counting)
    return calls


def no_block_runs(monkeypatch) -> None:
    """Fail the test if the model is run."""

    def run(*_):
        raise AssertionError("a block was run")

    monkeypatch.setattr("depthsys.lm.hf.blocks.Blocks.call", run)


def spoil_states(monkeypatch, layer: int, prompts: tuple[int, ...], value: float = np.inf) -> None:
    """From now on the states of some prompts behind a layer are not finite."""
    original = lm.Run.block_of

    def block_of(self, at, rows, hidden, calls):
        block, after = original(self, at, rows, hidden, calls)
        if at == layer:
            for place in np.flatnonzero(np.isin(rows, prompts)):
                block.x_next[place] = after[place, -1] = value
        return block, after

    monkeypatch.setattr(lm.Run, "block_of", block_of)


def batches_of_32(monkeypatch) -> None:
    """Narrow models run more prompts together; here as many as wide ones do."""
    monkeypatch.setattr(
        "depthsys.lm.run.length_batches", lambda lengths, **_: length_batches(lengths)
    )


@pytest.fixture
def live_bytes():
    """Gives the bytes of the tensors that have come since; to count all would only take time."""
    gc.collect()
    gc.freeze()  # for good: whatever is there would be looked at in every later collection
    return lambda: sum(o.nbytes for o in gc.get_objects() if issubclass(type(o), torch.Tensor))


@pytest.fixture(scope="session")
def tokens() -> LabelledIds:
    return labelled_ids(8, 0)


@pytest.fixture(scope="session")
def concept() -> xr.Dataset:
    v = np.random.default_rng(0).standard_normal((4, 16))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return xr.Dataset({"direction": (("depth", "feature"), v)})


@pytest.fixture(scope="module")
def gpt2() -> lm.DepthModel:
    """Of each module its own, since some put hooks on it."""
    return lm.DepthModel(TINY["gpt2"]().double(), name="gpt2")


@pytest.fixture(scope="session")
def single() -> lm.DepthModel:
    """In float32, where a step can be too small or too large."""
    return lm.DepthModel(TINY["gpt2"]())


@pytest.fixture(scope="module")
def held_out(gpt2) -> lm.Run:
    return gpt2.run(labelled_ids(6, 9))
