"""The prefill of a model whose layers are brought in: each once, for all batches of prompts."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from depthsys.lm.contexts import Budget, Contexts
from depthsys.lm.frozen import FrozenBlock, FrozenRun
from depthsys.lm.hf.blocks import Calls
from depthsys.lm.lockstep import Steps, driven, together
from depthsys.lm.progress import bar


class Prefilled(Protocol):
    """What a prefill needs of a run."""

    model: Any
    numbers: list[np.ndarray]

    def n_tokens(self, number: int) -> int:
        """Tokens of every prompt of a batch."""
        ...

    def in_step_groups(self, sizes: Sequence[int]) -> Iterator[list[int]]:
        """Which batches go in step."""
        ...

    def prefill_steps(
        self, prompts: np.ndarray, keep: Callable[[FrozenBlock], FrozenBlock] | None = None
    ) -> Steps[tuple[FrozenRun, Calls]]:
        """Prefill some prompts, in steps."""
        ...


@dataclass
class Kept:
    """What a prefill leaves: contexts, and by batch the calls, nominal states and margins."""

    contexts: Contexts | None = None
    nbytes: int = 0
    calls: dict[int, Calls] = field(default_factory=dict)
    states: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = field(default_factory=dict)


def prefilled_in_step(run: Prefilled, budget: Budget) -> Kept | None:
    """Every prompt once through the model, all batches together in each layer.

    None if no place may hold the contexts. Where they go is told by the first layer of the longest
    batch, as if the others were like it. The whole sequences of the batches wait between the
    layers, in the memory of the device: those beyond the budget go in a second turn.
    """
    model, numbers = run.model, run.numbers
    order = sorted(range(len(numbers)), key=lambda b: -run.n_tokens(b))
    width = model.n_features * model.dtype.itemsize
    sizes = [2 * len(numbers[b]) * run.n_tokens(b) * width for b in order]
    kept = Kept()

    def put(number: int, block: FrozenBlock) -> FrozenBlock:
        if kept.contexts is None:
            place = budget.place(_size_from(run, block), model.device)
            if place == "again":
                raise _NoRoomError
            kept.contexts = Contexts(place)
        cache = block.context
        kept.contexts.put(number, block.layer, cache)
        kept.nbytes += cache.key.nbytes + cache.value.nbytes
        return replace(block, _context=_nowhere)

    with bar("prefill", sum(map(len, numbers)), "prompt") as shown:
        for group in run.in_step_groups(sizes):
            chosen = [order[place] for place in group]
            works = [run.prefill_steps(numbers[b], functools.partial(put, b)) for b in chosen]
            try:
                found = driven(model.blocks, together(works))
            except _NoRoomError:
                return None
            for number, (batch, calls) in zip(chosen, found, strict=True):
                kept.states[number] = batch.x, batch.router_margin
                kept.calls[number] = calls.last_token_only()
                shown.update(len(batch.prompts))
    return kept


class _NoRoomError(Exception):
    """No place may hold the contexts."""


def _nowhere() -> Any:
    raise RuntimeError("the context of this block was put away")


def _size_from(run: Prefilled, block: FrozenBlock) -> int:
    """Bytes that contexts and states of all prompts will need, seen from one block of a batch."""
    key, value = block.context.key, block.context.value
    tokens = key.shape[0] * key.shape[-2]
    per_token = run.model.n_layers * (key.nbytes + value.nbytes) / tokens if tokens else 0.0
    n_tokens = sum(len(p) * (run.n_tokens(b) - 1) for b, p in enumerate(run.numbers))
    n_prompts = sum(map(len, run.numbers))
    states = (run.model.n_layers + 1) * n_prompts * block.x.nbytes // len(block.x)
    return int(per_token * n_tokens) + states
