"""All prompts through one layer after the other, forwards and back.

Where the contexts of a run are kept, a layer is there to be looked at. Where they are not, it is
computed again from the hidden states that enter it. Those wait where the budget of the run has room
for them, and else in a temporary file: then memory stays flat in the number of prompts.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from depthsys.lm.finite import FiniteStates
from depthsys.lm.frozen import FrozenBlock, FrozenRun, merged
from depthsys.lm.hf.blocks import Calls
from depthsys.lm.linearize import Linearisation, Linearised
from depthsys.lm.progress import bar
from depthsys.lm.stores import store

# Batches whose calls (masks, rotary tables) are remembered during a sweep.
CALLS_HELD = 64
# Prompts that are linearised together for products with single directions.
MERGED_ROWS = 256


class Visited(Protocol):
    """What a sweep needs of a run."""

    place: str
    model: Any
    numbers: list[np.ndarray]
    first_number: int

    def __len__(self) -> int: ...
    @property
    def n_layers(self) -> int:
        """L."""
        ...

    @property
    def n_padded_tokens(self) -> int:
        """Tokens of one pass."""
        ...

    @property
    def batches(self) -> Sequence[FrozenRun]:
        """The batches, from where their context lies."""
        ...

    def may_hold(self, size: int) -> bool:
        """Whether so many bytes of a linearised layer may be held."""
        ...

    def place_of(self, size: int) -> str:
        """Where so many bytes of hidden states wait."""
        ...

    def calls_of(self, number: int) -> Calls:
        """How the blocks are called on a batch."""
        ...

    def merged_calls(self, numbers: Sequence[int]) -> Calls:
        """The same of the last token, for several batches."""
        ...

    def block_of(
        self, layer: int, prompts: np.ndarray, hidden: torch.Tensor, calls: Calls
    ) -> tuple[FrozenBlock, torch.Tensor]:
        """Pass whole sequences through one block."""
        ...


class Layer:
    """The blocks of one layer, one per batch of prompts; it may be looked at again.

    Attributes
    ----------
    layer
        0..L-1.
    """

    def __init__(self, sweep: "Sweep", layer: int):
        self.layer = layer
        self._sweep = sweep

    def __iter__(self) -> Iterator[FrozenBlock]:
        yield from self._sweep.blocks(self.layer)

    def linearised(self, part: str | Linearisation = "block") -> Iterable[Linearised]:
        """Every block linearised: held if the budget allows it, else made anew each time."""
        if self._sweep.holds_layer:
            return [block.linearised(part) for block in self._sweep.few_blocks(self.layer)]
        return _Anew(self, part)

    def products(
        self, part: str | Linearisation = "block"
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Sums over prompts of products of the Jacobians with rows (direction, feature), float64.

        The layer is linearised once for all products if the budget allows it.
        """
        linear = self.linearised(part)

        def total(rows: torch.Tensor) -> torch.Tensor:
            parts = [one.jvp(rows).sum(0, dtype=torch.float64) for one in linear]
            return torch.stack(parts).sum(0)

        return total


class _Anew:
    def __init__(self, layer: Layer, part: str | Linearisation):
        self._layer, self._part = layer, part

    def __iter__(self) -> Iterator[Linearised]:
        return (block.linearised(self._part) for block in self._layer)


class Sweep:
    """Layer by layer, all prompts of a layer before the next one.

    A direction at depth l + 1 may thus depend on an average over all prompts at layer l.

    Parameters
    ----------
    run
        The prompts.
    keep
        After `forward` the layers can be visited backwards. Matters only where contexts are
        computed again: then hidden states of all depths wait, instead of two.
    """

    def __init__(self, run: Visited, *, keep: bool = False):
        self._run = run
        self._keep = keep
        self._again = _Again(run, keep) if run.place == "again" else None
        self._merged: dict[int, Calls] = {}
        self._visit_of_now = contextlib.ExitStack()

    def __enter__(self) -> "Sweep":
        return self

    def __exit__(self, kind, error, _) -> None:
        self._visit_of_now.close()
        if self._again is None:
            return
        self._again.close()
        # also where numbers made of states that are not finite were refused: those are the cause
        if kind is None or issubclass(kind, ArithmeticError):
            self._again.finite.check()

    @property
    def state_bytes(self) -> int:
        """Bytes of one state of every prompt."""
        width = self._run.model.n_features * self._run.model.dtype.itemsize
        return len(self._run) * width

    @property
    def holds_layer(self) -> bool:
        """Whether a linearised layer may be held."""
        return self._run.may_hold(self.linearised_bytes)

    @property
    def linearised_bytes(self) -> int:
        """An upper bound of what one linearised layer takes, with its contexts."""
        n_prompts = max(1, len(self._run))
        model = self._run.model
        # vectors of the size of a state, the wider ones of the MLP, and keys and values twice:
        # apart, then merged
        vectors = 30 + 12 * model.blocks.widest / model.n_features
        per_prompt = vectors + 4 * self._run.n_padded_tokens / n_prompts
        return int(per_prompt * self.state_bytes)

    def forward(self, progress: str | None = None) -> Iterator[Layer]:
        """Layers 0..L-1."""
        yield from self._visit(range(self._run.n_layers), progress)

    def backward(self, progress: str | None = None) -> Iterator[Layer]:
        """Layers L-1..0, after `forward` has come to its end; needs ``keep``."""
        if not self._keep:
            raise RuntimeError("a sweep goes backwards only over states that it keeps")
        yield from self._visit(reversed(range(self._run.n_layers)), progress)

    def at(self, layer: int) -> Layer:
        """A layer by its number, outside of `forward` and `backward`; see `reaches`."""
        if self._again is not None:
            self._again.come_to(layer)
        return Layer(self, layer)

    def reaches(self, layer: int) -> bool:
        """Whether that layer may be looked at now: without ``keep`` those behind us are gone."""
        return self._again is None or self._keep or not self._again.is_past(layer)

    def blocks(self, layer: int) -> Iterator[FrozenBlock]:
        """The blocks of one layer."""
        if self._again is not None:
            yield from self._again.blocks(layer)
        else:
            for batch in self._run.batches:
                yield batch.blocks[layer]

    def few_blocks(self, layer: int) -> Iterator[FrozenBlock]:
        """The blocks of one layer, batches merged to `MERGED_ROWS` prompts where that is exact."""
        if not self._run.model.left_padding:
            yield from self.blocks(layer)
            return
        group: list[FrozenBlock] = []
        start, blocks = 0, list(self.blocks(layer))
        for number, block in enumerate(blocks):
            group.append(block)
            if sum(len(b.prompts) for b in group) >= MERGED_ROWS or number + 1 == len(blocks):
                if start not in self._merged:
                    self._merged[start] = self._run.merged_calls(range(start, number + 1))
                yield merged(group, self._merged[start])
                group, start = [], number + 1

    def _visit(self, layers, progress: str | None) -> Iterator[Layer]:
        with bar(progress, len(self._run) * self._run.n_layers, "block") as shown:
            for layer in layers:
                # its weights stay for all batches, and as often as it is looked at
                with self._visit_of_now as visit:
                    visit.enter_context(self._run.model.blocks.resident(layer))
                    yield Layer(self, layer)
                    if self._again is not None:
                        self._again.advance(layer)
                shown.update(len(self._run))


class _Again:
    """Blocks computed again from hidden states (tokens x H numbers) that wait meanwhile."""

    def __init__(self, run: Visited, keep: bool):
        self._run, self._keep = run, keep
        width = run.model.n_features * run.model.dtype.itemsize
        n_depths = run.n_layers if keep else min(2, run.n_layers)
        # (batch, depth): hidden states before a layer
        self.waiting = store(run.place_of(run.n_padded_tokens * width * n_depths))
        self.finite = FiniteStates(run.first_number)
        self._ready = 0  # hidden states before this layer are known
        self._calls: dict[int, Calls] = {}
        self._embedded: set[int] = set()  # batches whose embeddings wait
        self._passed: set[int] = set()  # batches that have passed the layer that is reached

    def close(self) -> None:
        """Give the memory or the disk back."""
        self.waiting.close()

    def advance(self, layer: int) -> None:
        """Pass the prompts through this layer if nobody looked at all of it."""
        if layer + 1 < self._run.n_layers and self._ready == layer:
            for _ in self.blocks(layer):
                pass

    def come_to(self, layer: int) -> None:
        """Pass the prompts through the layers before that one."""
        for before in range(self._ready, layer):
            with self._run.model.blocks.resident(before):
                self.advance(before)

    def is_past(self, layer: int) -> bool:
        """Whether the states before a layer are gone, if they are not kept."""
        return layer + 1 < self._ready

    def blocks(self, layer: int) -> Iterator[FrozenBlock]:
        """The blocks of a layer that is reached, and the states before the next one."""
        if layer > self._ready:
            raise RuntimeError(f"layer {layer} is reached after those before it")
        if not self._keep and 0 < layer < self._ready - 1:
            raise RuntimeError(
                f"layer {layer} is gone: a sweep that computes contexts again keeps the states of "
                "two depths"
            )
        if self.is_past(layer) and not self._keep:
            raise RuntimeError(f"layer {layer} is past; a sweep that keeps its states goes back")
        for number, prompts in enumerate(self._run.numbers):
            calls, hidden = self._entering(layer, number)
            block, after = self._run.block_of(layer, prompts, hidden, calls)
            if layer == self._ready:
                self._note(number, block, after)
            del hidden, after
            yield block
        if layer == self._ready and layer + 1 < self._run.n_layers:
            self._ready += 1
            self._passed.clear()

    def _entering(self, layer: int, number: int) -> tuple[Calls, torch.Tensor]:
        """How the blocks are called on a batch, and the states that enter a layer."""
        first = layer == 0 and number not in self._embedded
        calls = self._calls_of(number, embedded=first)
        if not first:
            return calls, self.waiting.get((number, layer))[0]
        hidden = calls.embedded
        self.waiting.put((number, 0), [hidden])
        self._embedded.add(number)
        return calls.without_embedding(), hidden

    def _note(self, number: int, block: FrozenBlock, after: torch.Tensor) -> None:
        """Keep the states behind the layer that is reached, once."""
        if number in self._passed:
            return
        self._passed.add(number)
        self.finite.note(block.layer, block.prompts, block.x_next[None])
        if not self._keep:
            self.waiting.drop((number, block.layer - 1))
        if block.layer + 1 < self._run.n_layers:
            self.waiting.put((number, block.layer + 1), [after])

    def _calls_of(self, number: int, *, embedded: bool) -> Calls:
        if number in self._calls and not embedded:
            return self._calls[number]
        calls = self._run.calls_of(number)
        if len(self._calls) < CALLS_HELD:
            self._calls[number] = calls.without_embedding()
        return calls
