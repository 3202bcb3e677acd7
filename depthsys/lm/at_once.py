"""How much goes through a block at once: fixed numbers on the CPU, what is free on an accelerator.

A CPU has full speed with few rows, and fewer keep its caches warm. An accelerator is slow until
thousands of rows go through together, since every operation costs it some microseconds however
small it is; there the free memory tells how many may.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from depthsys.lm.batches import BATCH_COST, PADDING
from depthsys.lm.memory import free_on

# What goes through a block at once may take this share of the memory that is free.
SHARE = 0.25
# More rows than this gain nothing: the operations of a block then take milliseconds each.
MOST = 2**16
MOST_PROMPTS = 4096
# Bytes of whole Jacobians that are kept together, with those they are made of.
WHOLE = 6 * 2**30
# Operations that a batch costs per layer from prefill to identification, and seconds of each
# before it begins; both counted or measured on models of these families, see docs/performance.md.
OPERATIONS, SECONDS = 400, 5e-6
# Products and sums per second that accelerators reach in float32; in 16 bits some ten times more.
RATE = 4e13
# Most padding on an accelerator: contexts hold it, too, so it is not left to the costs alone.
MOST_PADDING = 0.6
# Vectors that a row needs, of the state's width and of the MLP's: what a block computes from them,
# the old with the new; with derivatives what autograd keeps, and a few directions more of it.
_STATES, _WIDE = 10, 5
_KEPT_STATES, _KEPT_WIDE = 30, 12
# Scores of a row, before and after softmax, in the dtype and in float32, with their mask.
_SCORES = 5
_part: ContextVar[float] = ContextVar("part of what goes through a block at once", default=1.0)


@contextmanager
def share_of(part: float) -> Iterator[None]:
    """Let only a part, 0 to 1, of what may go through a block at once do so, here and on the CPU.

    For whoever tries again after memory was short.
    """
    before = _part.set(part)
    try:
        yield
    finally:
        _part.reset(before)


def share() -> float:
    """The part that `share_of` lets through here."""
    return _part.get()


@dataclass(frozen=True)
class Sizes:
    """What of a model's blocks tells how much memory and time a row takes.

    Attributes
    ----------
    device
        Where they are.
    widest
        The most features that a weight takes or gives.
    n_heads
        Heads of the attention.
    n_weights
        Numbers in the largest block.
    """

    device: torch.device
    widest: int
    n_heads: int
    n_weights: int


@dataclass(frozen=True)
class Sequences:
    """How whole sequences are put into batches; the arguments of `length_batches`.

    Attributes
    ----------
    max_tokens
        Most tokens of a batch; on an accelerator told by the longest sequence of the batch.
    max_prompts
        Most prompts of a batch.
    most_padding
        Most padding, as a share of its tokens.
    batch_cost
        What a batch costs beside its tokens, in tokens.
    """

    max_tokens: int | Callable[[int], int]
    max_prompts: int
    most_padding: float = PADDING
    batch_cost: int = BATCH_COST


def sequences(sizes: Sizes, width: int, dtype: torch.dtype) -> Sequences:
    """How whole sequences of states of a width are put into batches."""
    # more prompts together in narrow models
    on_a_cpu = Sequences(less(max(1024, 2**19 // width)), less(max(32, 2**14 // width)))
    free = _share(sizes.device)
    if free is None:
        return on_a_cpu

    def most_tokens(length: int) -> int:
        numbers = _STATES * width + _WIDE * sizes.widest + _SCORES * sizes.n_heads * length
        return _between(free / (numbers * dtype.itemsize))

    # the last tokens of a batch go through derivatives together
    kept = _KEPT_STATES * width + _KEPT_WIDE * sizes.widest
    most_prompts = _between(free / (kept * dtype.itemsize), MOST_PROMPTS)
    operations_per_token = 2 * sizes.n_weights
    rate = RATE * 4 / dtype.itemsize
    cost = OPERATIONS * SECONDS * rate / operations_per_token
    return Sequences(most_tokens, most_prompts, MOST_PADDING, max(BATCH_COST, int(cost)))


def replay_rows(sizes: Sizes, states: torch.Tensor, n_context: int, on_a_cpu: int) -> int:
    """Rows (prompts x copies) of the last token that are replayed at once, without derivatives."""
    free = _share(states.device)
    if free is None:
        return less(on_a_cpu)
    return _rows(free, sizes, states, n_context, (_STATES, _WIDE))


def product_rows(sizes: Sizes, states: torch.Tensor, n_context: int) -> int | None:
    """Rows (prompts x directions) of products with the Jacobian of a block that are made at once.

    None where nothing tells more than the numbers of the CPU.
    """
    free = _share(states.device)
    if free is None:
        return None
    return _rows(free, sizes, states, n_context, (_KEPT_STATES, _KEPT_WIDE))


def whole_jacobians(states: torch.Tensor, n_prompts: int) -> int:
    """Prompts out of so many whose Jacobians lie beside each other on the device."""
    free = _share(states.device)
    if free is None:
        return less(n_prompts)
    # the matrix, the rows that are stacked into it, and its copy in the dtype of the result
    one = 3 * states.shape[-1] ** 2 * max(4, states.itemsize)
    # what they take of the host counts, too
    return _between(min(free, WHOLE) / one, max(1, n_prompts))


def too_much(states: torch.Tensor, error: BaseException) -> MemoryError:
    """What to say if the memory of an accelerator was not enough all the same.

    Nothing is tried again with less here: a run that becomes slow without a word is worse than one
    that says what to do. A study does, and says so, see `share_of`.
    """
    line = str(error).strip().split("\n")[0]
    return MemoryError(
        f"`prompts` must leave room on {states.device} for what goes through a block at once; got "
        f"states of shape {tuple(states.shape)} in {states.dtype}: {line} Close what else uses its "
        "memory, keep contexts off it with budget=lm.Budget(device=0), give fewer prompts at a "
        "time, or load the model in 16 bits."
    )


def _share(device: torch.device) -> float | None:
    """Bytes that a block may take at once; None on the CPU, and where nobody says what is free."""
    if device.type == "cpu":
        return None
    free = free_on(device)
    return None if free is None else SHARE * _part.get() * free


def less(on_a_cpu: int) -> int:
    """The part of so many rows that `share_of` allows, where no free memory tells how many."""
    return max(1, int(on_a_cpu * _part.get()))


def _rows(
    free: float, sizes: Sizes, states: torch.Tensor, n_context: int, vectors: tuple[int, int]
) -> int:
    numbers = vectors[0] * states.shape[-1] + vectors[1] * sizes.widest
    numbers += _SCORES * sizes.n_heads * (n_context + 1)
    return _between(free / (numbers * states.itemsize))


def _between(wanted: float, most: int = MOST) -> int:
    return int(min(max(1, wanted), most))
