"""All prompts through one layer after the other, forwards and back, in flat memory."""

import tempfile
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import numpy as np
import torch

from depthsys.lm.frozen import FrozenBlock

if TYPE_CHECKING:
    from depthsys.lm.model import DepthModel

# What `Layer.held` keeps of one layer instead of computing it again.
HELD_BYTES = 2**29


class Layer:
    """The blocks of one layer, one per batch of prompts; iterating again computes them again.

    Attributes
    ----------
    layer
        0..L-1.
    """

    def __init__(self, sweep: "Sweep", layer: int):
        self.layer = layer
        self._sweep = sweep

    def __iter__(self) -> Iterator[FrozenBlock]:
        yield from self._sweep._blocks(self.layer)

    def held(self) -> "Layer | list[FrozenBlock]":
        """The blocks themselves if they fit in `HELD_BYTES`, linearised, else this layer."""
        blocks, size = [], 0
        for block in self:
            blocks.append(block)
            # besides the context a linearised block keeps some 60 vectors of the size of a state
            size += block.context_bytes + 60 * block.x.nbytes
            if size > HELD_BYTES:
                return self
        return blocks


class Sweep:
    """Layer by layer, all prompts of a layer before the next one.

    A direction at depth l + 1 may thus depend on an average over all prompts at layer l. The
    hidden states that enter a layer (tokens x H numbers) wait in a temporary file, so memory does
    not grow with the number of prompts. Each visit of a layer costs one pass of all prompts
    through that block.

    Parameters
    ----------
    model, prompts
        The model and texts or token ids.
    keep
        Keep the states of all depths on disk, so that after `forward` the layers can be visited
        backwards.
    """

    def __init__(self, model: "DepthModel", prompts, *, keep: bool = False):
        self._model = model
        self._keep = keep
        self._rows, _ = model.tokenize(prompts)
        self._batches = model.batches(self._rows)
        self._spool: IO[bytes] = tempfile.TemporaryFile()
        self._ready = 0  # hidden states before this layer are known

    def __enter__(self) -> "Sweep":
        return self

    def __exit__(self, *_) -> None:
        self._spool.close()

    def forward(self, progress: str | None = None) -> Iterator[Layer]:
        """Layers 0..L-1."""
        yield from self._visit(range(self._model.n_layers), progress)

    def backward(self, progress: str | None = None) -> Iterator[Layer]:
        """Layers L-1..0, after `forward` has come to its end; needs ``keep``."""
        if not self._keep:
            raise RuntimeError("a sweep goes backwards only over states that it keeps")
        yield from self._visit(reversed(range(self._model.n_layers)), progress)

    def _visit(self, layers, progress: str | None) -> Iterator[Layer]:
        total = len(self._rows) * self._model.n_layers
        with self._model.progress(progress, total, "block") as bar:
            for layer in layers:
                yield Layer(self, layer)
                if layer + 1 < self._model.n_layers and self._ready == layer:
                    for _ in self._blocks(layer):  # nobody looked; the states must still advance
                        pass
                bar.update(len(self._rows))

    def _blocks(self, layer: int) -> Iterator[FrozenBlock]:
        if layer > self._ready:
            raise RuntimeError(f"layer {layer} is reached after those before it")
        model = self._model
        width = model.n_features * torch.finfo(model.dtype).bits // 8
        start = 0
        for prompts in self._batches:
            calls = model.calls(self._rows, prompts)
            hidden = calls.embedded
            if layer > 0:
                self._spool.seek((self._region(layer) + start) * width)
                values = np.fromfile(self._spool, model.numpy_dtype, hidden.numel())
                hidden = torch.from_numpy(values).view(hidden.shape).to(model.device)
            block, after = model.frozen_block(layer, prompts, hidden, calls)
            if layer == self._ready and layer + 1 < model.n_layers:
                self._spool.seek((self._region(layer + 1) + start) * width)
                after.cpu().numpy().tofile(self._spool)
            start += len(prompts) * self._n_tokens(prompts)
            del hidden, after
            yield block
        self._ready = max(self._ready, min(layer + 1, model.n_layers - 1))

    def _region(self, depth: int) -> int:
        """Where the states at this depth begin, in tokens: of two places in turn, or of L."""
        n_tokens = sum(len(prompts) * self._n_tokens(prompts) for prompts in self._batches)
        return n_tokens * (depth if self._keep else depth % 2)

    def _n_tokens(self, prompts: np.ndarray) -> int:
        return max(len(self._rows[i]) for i in prompts)
