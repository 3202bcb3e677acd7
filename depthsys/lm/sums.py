"""Sums over prompts that come from shards."""

from collections.abc import Iterator

import torch

from depthsys.lm.shards import ShardedRun


def added(run: ShardedRun, parts: Iterator[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """The sums of several tensors, shard by shard in their order, on the device of the model.

    One shard's tensors are held beside the sums, however many shards there are.
    """
    total = tuple(one.to(run.model.device) for one in next(parts))
    for part in parts:
        total = tuple(a + b.to(a.device) for a, b in zip(total, part, strict=True))
    return total
