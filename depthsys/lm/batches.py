"""Which prompts run together: batches of one length, or of nearly one length with padding."""

from collections.abc import Callable, Sequence

import numpy as np

# Most padding that a batch may hold, as a share of its tokens.
PADDING = 0.15
# What a batch costs beside its tokens, in tokens: the weights are read and the operations
# dispatched once per batch, however few rows it has (measured on two cores, H from 96 to 1280).
BATCH_COST = 64


def length_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int | Callable[[int], int] = 1024,
    max_prompts: int = 32,
    padded: bool = False,
    most_padding: float = PADDING,
    batch_cost: int = BATCH_COST,
) -> list[np.ndarray]:
    """Row numbers grouped into the batches that cost least.

    A batch costs the tokens it holds, padding included, and ``batch_cost`` more. It has at most
    ``max_prompts`` rows and ``max_tokens`` tokens (one row at least; a function tells it from the
    longest row of a batch), and padding in at most ``most_padding`` of its tokens; none at all
    without ``padded``. So batches of exactly one length are
    made wherever there are enough prompts of that length to fill them, and padded ones elsewhere.

    Rows of rising length are cut where the sum of the costs is least, by dynamic programming.
    """
    array = np.asarray(lengths)
    order = np.argsort(array, kind="stable")
    sizes = array[order]
    total = np.concatenate([[0], np.cumsum(sizes)])
    most = most_padding if padded else 0.0
    limits = {n: max_tokens(n) if callable(max_tokens) else max_tokens for n in set(sizes.tolist())}
    best = np.full(len(sizes) + 1, np.inf)
    best[0] = 0.0
    start_of = np.zeros(len(sizes) + 1, dtype=int)
    for stop in range(1, len(sizes) + 1):
        longest = sizes[stop - 1]
        limit = limits[int(longest)]
        counts = np.arange(1, min(max_prompts, stop) + 1)
        tokens = counts * longest
        padding = tokens - (total[stop] - total[stop - counts])
        fits = ((tokens <= limit) & (padding <= most * tokens)) | (counts == 1)
        costs = np.where(fits, best[stop - counts] + tokens + batch_cost, np.inf)
        # of equal costs the largest batch
        chosen = len(costs) - 1 - int(costs[::-1].argmin())
        best[stop], start_of[stop] = costs[chosen], stop - counts[chosen]
    batches, stop = [], len(sizes)
    while stop > 0:
        batches.append(np.sort(order[start_of[stop] : stop]))
        stop = start_of[stop]
    return batches[::-1]


def writing_batches(
    lengths: Sequence[int], *, padded: bool, max_rows: int = 32, max_tokens: int = 2**14
) -> list[np.ndarray]:
    """Row numbers grouped into batches that write together.

    What counts is how many passes are made, one for each new token, and hardly how many prompts
    are in them: so as few batches as possible, with any padding where ``padded`` allows it.

    Examples
    --------
    >>> [batch.tolist() for batch in writing_batches([9, 2, 9, 4], padded=True)]
    [[0, 1, 2, 3]]
    >>> [batch.tolist() for batch in writing_batches([9, 2, 9], padded=False)]
    [[1], [0, 2]]
    """
    array = np.asarray(lengths)
    if not padded:
        groups = [np.flatnonzero(array == length) for length in np.unique(array)]
    else:
        groups = [np.argsort(array, kind="stable")]
    batches = []
    for group in groups:
        rows = max(1, min(max_rows, max_tokens // int(array[group].max())))
        batches += [np.sort(group[i : i + rows]) for i in range(0, len(group), rows)]
    return batches
