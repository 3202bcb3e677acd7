"""What the fingerprint of a model sees, against sums of Python's own whole numbers."""

import copy
import hashlib

import numpy as np
import pytest
import torch

from depthsys.lm.hf import fingerprint
from depthsys.lm.hf.fingerprint import SUMS, WIDTH, _Look, checked_fingerprint
from tests import card
from tests.conftest import TINY, tiny_gpt2

M = 2**64
KNOWN = ["0x5af82e6dc1562e7c", "0x6a4019431616b69c"]


def mixed(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % M
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % M
    return z ^ (z >> 31)


def slow_sums(values):
    """The definition, in whole numbers of any size."""
    drawn = hashlib.shake_256(b"depthsys fingerprint v2").digest(2 * WIDTH * SUMS)
    constants = [2 * (int.from_bytes(drawn[2 * i : 2 * i + 2], "little") % 2**13) - 2**13 + 1
                 for i in range(WIDTH * SUMS)]  # fmt: skip
    values = np.asarray(values)
    packed = values.dtype.kind in "iu" and values.itemsize >= 4
    whole = values if packed else values.astype(np.float32)
    words = whole.ravel().view(np.int32).tolist()
    found = [0] * SUMS
    for row in range(-(-len(words) // WIDTH)):
        those = words[row * WIDTH : (row + 1) * WIDTH]
        for c in range(SUMS):
            s = sum(w * constants[j * SUMS + c] for j, w in enumerate(those))
            found[c] += mixed((s + (row + 1) * 0x9E3779B97F4A7C15) % M)
    return [f % M for f in found]


def numbers(tensor):
    return numbers_of(tensor)[0]


def numbers_of(*tensors):
    look = _Look(tensors[0].device)
    assert [look.add(tensor) for tensor in tensors] == list(range(len(tensors)))
    return [[int(s) % M for s in row] for row in look.sums]


@pytest.fixture(scope="module")
def weight():
    return torch.randn(7, 300, generator=torch.Generator().manual_seed(1))


def test_the_sums_are_those_of_the_definition(weight):
    assert numbers(weight) == slow_sums(weight)
    # the largest words, all of one sign, are summed exactly
    largest = torch.full((2 * WIDTH,), -(2.0**-126)).view(torch.int32).fill_(-(2**31) + 1)
    assert numbers(largest.view(torch.float32)) == slow_sums(largest.view(torch.float32))
    assert numbers(torch.zeros(0)) == [0] * SUMS


def test_a_known_one():
    """Fingerprints in files must hold for ever."""
    assert [hex(n) for n in numbers(torch.arange(5.0))[:2]] == KNOWN


@pytest.mark.parametrize("size", [WIDTH, 2 * WIDTH, 2**18])
def test_they_do_not_depend_on_what_is_looked_at_together(weight, size, monkeypatch):
    expected = numbers(weight)
    monkeypatch.setitem(fingerprint.CHUNK, "cpu", size)
    assert numbers(weight) == expected


@pytest.mark.parametrize("rows", [0, 5, 2**14])
def test_they_do_not_depend_on_other_tensors(weight, rows, monkeypatch):
    """Rows of many tensors are mixed together."""
    monkeypatch.setattr(fingerprint, "ROWS", rows)
    tensors = [weight, weight[0], torch.zeros(0), weight.double(), torch.arange(9)]
    assert numbers_of(*tensors) == [slow_sums(tensor) for tensor in tensors]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_copies_that_hold_the_same_numbers_have_the_same_sums(weight, dtype):
    kept = weight.to(torch.bfloat16).to(torch.float16).to(dtype)
    assert numbers(kept) == numbers(kept.float())
    assert numbers(weight.T.contiguous().T) == numbers(weight)


def bit(w):
    w.view(torch.int32)[3, 5] ^= 1


def sign_of_zero(w):
    w[0, 0] = -w[0, 0]


def two_signs(w):
    w[1:3, 7] *= -1


def swap(w, i, j):
    w.view(-1)[[i, j]] = w.view(-1)[[j, i]]


CHANGES = {
    "one bit": bit,
    "the sign of a zero": sign_of_zero,
    "two signs": two_signs,
    "neighbours swapped": lambda w: swap(w, 4, 5),
    "the same place in two rows of the hash": lambda w: swap(w, 4, 4 + WIDTH),
    "two rows": lambda w: w.copy_(w[[0, 2, 1, 3, 4, 5, 6]]),
    "turned round": lambda w: w.copy_(w.flip(0)),
    "all by a power of two": lambda w: w.mul_(2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_sum_sees_a_change(weight, change):
    before = weight.clone()
    before[0, 0] = 0.0
    after = before.clone()
    change(after)
    assert all(a != b for a, b in zip(numbers(after), numbers(before), strict=True))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_every_bit_of_packed_weights_counts(dtype):
    """Quantised weights come eight in a number that float32 does not hold."""
    packed = torch.randint(2**30, 2**31, (4, 600), dtype=dtype)
    assert numbers(packed) == slow_sums(packed)
    found = {tuple(numbers(packed))}
    for at in range(torch.iinfo(dtype).bits - 1):
        changed = packed.clone()
        changed[2, 5] ^= 1 << at
        found.add(tuple(numbers(changed)))
    assert len(found) == torch.iinfo(dtype).bits


def test_no_two_of_many_changes_have_a_sum_in_common():
    """Every single bit of two rows of the hash, and every pair of places swapped among some."""
    words = torch.randn(2 * WIDTH, generator=torch.Generator().manual_seed(2))
    found = [numbers(words)]
    for place in range(0, 2 * WIDTH, 37):
        for at in range(32):
            changed = words.clone()
            changed.view(torch.int32)[place] ^= (1 << at) if at < 31 else -(2**31)
            found.append(numbers(changed))
    for column in zip(*found, strict=True):
        assert len(set(column)) == len(found)


def test_two_tensors_of_one_shape_swapped():
    hf = tiny_gpt2()
    first = checked_fingerprint(hf)
    one, other = (hf.transformer.h[i].mlp.c_fc.weight for i in (0, 1))
    with torch.no_grad():
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)
    assert checked_fingerprint(hf) != first
    assert first.startswith("v2:")
    assert len(first) == 3 + 64


def test_a_float64_that_float32_cannot_hold_is_finite():
    hf = tiny_gpt2().double()
    hf.transformer.wte.weight.data[0, 0] = 1e300
    checked_fingerprint(hf)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused_by_name(value, dtype):
    hf = tiny_gpt2().to(dtype)
    hf.transformer.h[1].mlp.c_fc.bias.data[3] = value
    hf.transformer.h[2].mlp.c_fc.bias.data[3] = value
    with pytest.raises(ValueError, match=r"must have finite weights; 'transformer.h.1.mlp.c_fc.b"):
        checked_fingerprint(hf)


def test_tied_weights_are_looked_at_once(monkeypatch):
    looked = []
    own = _Look.add
    monkeypatch.setattr(_Look, "add", lambda self, t: looked.append(t.shape) or own(self, t))
    hf = tiny_gpt2()
    checked_fingerprint(hf)
    assert looked.count(hf.lm_head.weight.shape) == 1
    assert len(looked) == len(hf.state_dict()) - 1


def test_little_memory_beside_the_weights(live_bytes, monkeypatch):
    """No float32 or float64 copy of a tensor: chunks."""
    monkeypatch.setitem(fingerprint.CHUNK, "cpu", WIDTH)
    tensor, most = torch.ones(2**18, dtype=torch.bfloat16), []
    own = torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda x: most.append(live_bytes()) or own(x))
    numbers(tensor)
    # the rows of sums are an eighth of float32 weights; the weights themselves are counted, too
    assert max(most) - tensor.nbytes < tensor.nbytes / 2 + 64 * WIDTH + 2**16


@pytest.mark.parametrize("family", TINY)
def test_on_a_card_it_is_the_same_with_one_copy_to_the_host(family):
    device = card.setup()
    hf = TINY[family]()
    expected = checked_fingerprint(hf)
    there = copy.deepcopy(hf).to(device)
    checked_fingerprint(there)  # the constants go there once
    with card.counted() as counts:
        assert checked_fingerprint(there) == expected
    assert (counts.waits, counts.to_host, counts.to_device) == (1, 1, 0)
    assert counts.n_launches <= 6 * len(hf.state_dict()) + 30
