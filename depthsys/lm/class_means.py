"""The mean states of both classes, and depths at which they make no direction."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from depthsys.lm.precision import rounding_of, wide
from depthsys.lm.run import Run
from depthsys.lm.shards import ShardedRun, in_shards

SHARED = 0.9  # where more of the texts are in one state, a direction would rest on the others


def class_difference(run: Run, keep: np.ndarray | None = None) -> tuple[np.ndarray, dict[int, str]]:
    """Mean of class 1 minus mean of class 0 (depth, feature), and depths that have none, and why.

    Fills ``keep`` with all states.
    """
    labels = run.texts.labels
    found = _class_sums(run, labels=labels)
    if keep is not None:
        for prompts, states in run.states_by_batch():
            keep[:, prompts] = wide(states).cpu().numpy()
    counts = np.bincount(labels, minlength=2)
    difference = found.sums[1] / counts[1] - found.sums[0] / counts[0]
    norm = found.norms / len(run)
    coincide = np.linalg.norm(difference, axis=-1) <= 10 * rounding_of(run.model) * norm
    undefined = {}
    for depth, states in enumerate(found.same):
        ((_, same),) = states.most_common(1)
        if same > SHARED * len(run):
            whose = "all" if same == len(run) else f"{same} of {len(run)}"
            undefined[depth] = f"{whose} texts are in the same state there"
        elif coincide[depth]:
            undefined[depth] = "the class means coincide"
    return difference, undefined


@dataclass(frozen=True)
class _ClassSums:
    """Of the states of both classes: sums (class, depth, feature), and sums of norms (depth).

    ``same`` counts, for every depth, how often each state comes, by a hash of it.
    """

    sums: np.ndarray
    norms: np.ndarray
    same: list[Counter]


def _all_class_sums(run: ShardedRun, parts: Iterator[_ClassSums]) -> _ClassSums:
    """The sums of all shards, in their order."""
    found = next(parts)
    for more in parts:
        same = [one + other for one, other in zip(found.same, more.same, strict=True)]
        found = _ClassSums(found.sums + more.sums, found.norms + more.norms, same)
    return found


@in_shards(_all_class_sums, "concept direction")
def _class_sums(run: Run, *, labels: np.ndarray) -> _ClassSums:
    """Of texts with these labels."""
    same: list[Counter] = [Counter() for _ in range(run.n_layers + 1)]
    sums = np.zeros((2, run.n_layers + 1, run.model.n_features))
    norms = np.zeros(run.n_layers + 1)
    for prompts, found in run.states_by_batch("concept direction"):
        states = wide(found).cpu().numpy()
        for depth, rows in enumerate(states):
            same[depth].update(_hash(row) for row in rows)
        x = states.astype(np.float64)
        norms += np.linalg.norm(x, axis=-1).sum(axis=1)
        for label in (0, 1):
            sums[label] += x[:, labels[prompts] == label].sum(axis=1)
    return _ClassSums(sums, norms, same)


def _hash(state: np.ndarray) -> bytes:
    # of eight bytes: a few million states are told apart
    return hashlib.blake2b(state.tobytes(), digest_size=8).digest()
