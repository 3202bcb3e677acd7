"""Which prompts run together, against every way to put them together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthsys import lm
from depthsys.lm.batches import BATCH_COST, PADDING, length_batches

LIMITS = {"max_tokens": 1024, "max_prompts": 32}


def partitions(rows):
    """All ways to put rows into batches."""
    if not rows:
        yield []
        return
    first, rest = rows[0], rows[1:]
    for others in partitions(rest):
        yield [[first], *others]
        for i, batch in enumerate(others):
            yield [*others[:i], [first, *batch], *others[i + 1 :]]


def tokens(lengths, batch):
    return len(batch) * max(lengths[i] for i in batch)


def may_run(lengths, batch, *, max_tokens, max_prompts, padded):
    """The rules of a batch; a single prompt always runs."""
    size = tokens(lengths, batch)
    padding = size - sum(lengths[i] for i in batch)
    fits = len(batch) <= max_prompts and size <= max_tokens
    return len(batch) == 1 or (fits and padding <= (PADDING if padded else 0) * size)


def cost(lengths, batches):
    return sum(tokens(lengths, batch) + BATCH_COST for batch in batches)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_no_other_partition_costs_less(seed, padded):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, rng.choice([4, 20, 120]), size=rng.integers(1, 8)).tolist()
    rules = {
        "max_tokens": int(rng.choice([30, 100, 1024])),
        "max_prompts": int(rng.choice([2, 3, 32])),
        "padded": padded,
    }
    found = length_batches(lengths, **rules)
    assert all(may_run(lengths, batch, **rules) for batch in found)
    allowed = (
        cost(lengths, batches)
        for batches in partitions(list(range(len(lengths))))
        if all(may_run(lengths, batch, **rules) for batch in batches)
    )
    assert cost(lengths, found) == min(allowed)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=120),
    max_tokens=st.integers(1, 600),
    max_prompts=st.integers(1, 40),
    padded=st.booleans(),
)
def test_every_row_is_in_one_batch_that_keeps_the_rules(lengths, max_tokens, max_prompts, padded):
    rules = {"max_tokens": max_tokens, "max_prompts": max_prompts, "padded": padded}
    found = length_batches(lengths, **rules)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    for batch in found:
        assert batch.tolist() == sorted(batch.tolist())
        assert may_run(lengths, batch, **rules)


def test_400_short_texts_make_half_as_many_batches(data):
    from transformers import AutoTokenizer

    texts = lm.read_texts(data / "tasks" / "sst2.csv").texts[:400]
    tokenizer = AutoTokenizer.from_pretrained(data / "weights" / "gpt2_6x128")
    lengths = np.array([len(row) for row in tokenizer(list(texts))["input_ids"]])
    exact, padded = (length_batches(lengths, padded=p, **LIMITS) for p in (False, True))
    kept, spent = lengths.sum(), sum(tokens(lengths, batch) for batch in padded)
    assert len(exact) >= len(set(lengths.tolist()))
    assert len(padded) <= 18
    assert len(exact) >= 2 * len(padded)
    assert 0 < spent - kept < 0.15 * spent
    for batch in padded:
        assert tokens(lengths, batch) - lengths[batch].sum() <= 0.15 * tokens(lengths, batch)


def test_batches_of_one_length_where_there_are_enough_prompts_of_it():
    """Padding never pays where both batches are full."""
    full = np.repeat([20, 21, 22], 32)
    found = length_batches(full, padded=True, **LIMITS)
    assert [set(full[batch].tolist()) for batch in found] == [{20}, {21}, {22}]
    few = np.repeat([20, 21, 22], 5)
    assert [len(batch) for batch in length_batches(few, padded=True, **LIMITS)] == [15]
    assert [len(batch) for batch in length_batches(few, **LIMITS)] == [5, 5, 5]


def test_two_batches_join_while_the_padding_is_less_than_a_batch_costs():
    # n prompts of 100 tokens join 1 of 101 for n tokens of padding instead of one batch more
    for n, together in ((BATCH_COST - 1, True), (BATCH_COST + 1, False)):
        lengths = [100] * n + [101]
        found = length_batches(lengths, max_tokens=10**6, max_prompts=10**6, padded=True)
        assert len(found) == (1 if together else 2)


def test_at_most_15_percent_of_padding_however_cheap():
    assert len(length_batches([7, 10], padded=True)) == 1  # 3 of 20
    assert len(length_batches([6, 10], padded=True)) == 2  # 4 of 20


def test_length_batches_hold_every_row_once_in_batches_of_one_length():
    lengths = np.random.default_rng(0).integers(1, 9, size=100)
    batches = length_batches(lengths, max_tokens=20, max_prompts=6)
    assert sorted(np.concatenate(batches).tolist()) == list(range(100))
    for batch in batches:
        assert len(set(lengths[batch])) == 1
        assert len(batch) <= 6
        assert len(batch) * lengths[batch[0]] <= 20
    assert [b.tolist() for b in length_batches([50], max_tokens=20)] == [[0]]


def test_padded_batches_hold_every_row_once_and_little_padding():
    lengths = np.random.default_rng(0).integers(1, 60, size=200)
    batches = length_batches(lengths, max_tokens=400, max_prompts=16, padded=True)
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    for batch in batches:
        tokens = len(batch) * lengths[batch].max()
        assert len(batch) == 1 or (tokens <= 400 and lengths[batch].sum() >= 0.85 * tokens)
    assert len(batches) < len(length_batches(lengths, max_tokens=400, max_prompts=16))
