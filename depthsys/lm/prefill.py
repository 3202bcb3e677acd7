"""The prefill: every prompt once through the model, and where what it leaves goes."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from depthsys.lm.contexts import Budget, Contexts
from depthsys.lm.frozen import FrozenBlock, FrozenRun
from depthsys.lm.hf.blocks import Calls
from depthsys.lm.lockstep import Steps, driven, together
from depthsys.lm.progress import bar
from depthsys.lm.token_states import KeptTokens, Note


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
        self,
        prompts: np.ndarray,
        keep: Callable[[FrozenBlock], FrozenBlock] | None = None,
        note: Note | None = None,
    ) -> Steps[tuple[FrozenRun, Calls]]:
        """Prefill some prompts, in steps."""
        ...

    def put_states(self, number: int, batch: FrozenRun) -> None:
        """Keep the nominal states of a batch."""
        ...


@dataclass
class Kept:
    """What a prefill leaves beside states: contexts, and the calls of every batch."""

    contexts: Contexts | None = None
    nbytes: int = 0
    calls: dict[int, Calls] = field(default_factory=dict)

    def put(self, number: int, block: FrozenBlock) -> None:
        """Put the context of a block of a batch away."""
        cache = block.context
        if self.contexts is not None:
            self.contexts.put(number, block.layer, cache)
            self.nbytes += cache.key.nbytes + cache.value.nbytes


def prefilled(run: Prefilled, budget: Budget | None, tokens: KeptTokens | None) -> Kept:
    """Every prompt once through the model, the longest batch first.

    Where no place may hold the contexts, nothing more is computed, unless ``tokens`` wants it.

    Parameters
    ----------
    run
        The prompts.
    budget
        For contexts; None not to keep them.
    tokens
        Gets the states of all tokens; None not to keep them.
    """
    order = sorted(range(len(run.numbers)), key=lambda b: -run.n_tokens(b))
    with bar("prefill", sum(map(len, run.numbers)), "prompt") as shown:
        if run.model.blocks.residence.moves:
            return _in_step(run, order, budget, tokens, shown.update)
        return _one_by_one(run, order, budget, tokens, shown.update)


def _one_by_one(
    run: Prefilled,
    order: Sequence[int],
    budget: Budget | None,
    tokens: KeptTokens | None,
    shown: Callable[[int], object],
) -> Kept:
    """One batch after the other; the first one tells what the others will need."""
    kept = Kept()
    keep = None if budget is not None else without_context
    for number in order:
        work = run.prefill_steps(run.numbers[number], keep, _noted(tokens, number))
        batch, calls = driven(run.model.blocks, work)
        run.put_states(number, batch)
        if budget is not None and kept.contexts is None:
            place = budget.place(_size_like(run, batch.blocks), run.model.device)
            if place != "again":
                kept.contexts = Contexts(place)
            elif tokens is None:
                return kept
            else:
                budget, keep = None, without_context
        if kept.contexts is not None:
            for block in batch.blocks:
                kept.put(number, block)
            kept.calls[number] = calls.last_token_only()
        shown(len(batch.prompts))
    return kept


def _in_step(
    run: Prefilled,
    order: Sequence[int],
    budget: Budget | None,
    tokens: KeptTokens | None,
    shown: Callable[[int], object],
) -> Kept:
    """All batches together in each layer, which is brought in once for them.

    Where contexts go is told by the first layer of the longest batch, as if the others were like
    it. The whole sequences of the batches wait between the layers, in the memory of the device:
    those beyond the budget go in a second turn.
    """
    model, numbers, kept = run.model, run.numbers, Kept()
    width = model.n_features * model.dtype.itemsize
    sizes = [2 * len(numbers[b]) * run.n_tokens(b) * width for b in order]

    def put(number: int, block: FrozenBlock) -> FrozenBlock:
        nonlocal budget
        if budget is not None and kept.contexts is None:
            place = budget.place(_size_like(run, [block] * model.n_layers), model.device)
            if place != "again":
                kept.contexts = Contexts(place)
            elif tokens is None:
                raise _NoRoomError
            else:
                budget = None
        kept.put(number, block)
        return without_context(block)

    for group in run.in_step_groups(sizes):
        chosen = [order[place] for place in group]
        works = [
            run.prefill_steps(numbers[b], functools.partial(put, b), _noted(tokens, b))
            for b in chosen
        ]
        try:
            found = driven(model.blocks, together(works))
        except _NoRoomError:
            return Kept()
        for number, (batch, calls) in zip(chosen, found, strict=True):
            run.put_states(number, batch)
            if kept.contexts is not None:
                kept.calls[number] = calls.last_token_only()
            shown(len(batch.prompts))
    return kept


def _noted(tokens: KeptTokens | None, number: int) -> Note | None:
    return None if tokens is None else functools.partial(tokens.put, number)


class _NoRoomError(Exception):
    """No place may hold the contexts."""


def without_context(block: FrozenBlock) -> FrozenBlock:
    """The block without its context, whose memory may go."""
    return replace(block, _context=_nowhere)


def _nowhere() -> Any:
    raise RuntimeError("the context of this block was put away")


def _size_like(run: Prefilled, blocks: Sequence[FrozenBlock]) -> int:
    """Bytes that contexts and states of all prompts will need, seen from the blocks of a batch."""
    per_token = 0.0
    for block in blocks:
        key, value = block.context.key, block.context.value
        tokens = key.shape[0] * key.shape[-2]
        per_token += (key.nbytes + value.nbytes) / tokens if tokens else 0.0
    n_tokens = sum(len(p) * (run.n_tokens(b) - 1) for b, p in enumerate(run.numbers))
    x, n_prompts = blocks[0].x, sum(map(len, run.numbers))
    return int(per_token * n_tokens) + (len(blocks) + 1) * n_prompts * x.nbytes // len(x)
