r"""Fingerprint of a model: all of its weights, hashed where they lie.

A weight is looked at as float32, and its 32 bits as one whole number. Rows of `WIDTH` such numbers
:math:`w_{rj}` are multiplied with `SUMS` columns of fixed odd constants,

.. math:: s_{rc} = \sum_j w_{rj} a_{jc}, \qquad |w| \le 2^{31},\ |a| < 2^{13},

in float64, where every partial sum is a whole number below :math:`2^{53}` and so exact: the result
depends neither on the device nor on the order of the sum. A single changed bit changes every sum.
Two rows that differ in more have the same sums for at most one choice of constants in
:math:`2^{13}` for each column, :math:`2^{104}` together [1]_. What the rows give is mixed with its
position and added up modulo :math:`2^{64}`, `SUMS` times side by side [2]_. The sums of all tensors
come to the host in one copy, and SHA-256 is taken over them, the names, the shapes and the
configuration.

So no two checkpoints share a fingerprint by accident. It is no signature: whoever wants to can make
weights that have a given one.

References
----------
.. [1] Carter and Wegman (1979), Universal classes of hash functions,
   doi:10.1016/0022-0000(79)90044-8.
.. [2] Bellare and Micciancio (1997), A new paradigm for collision-free hashing: incrementality at
   reduced cost, doi:10.1007/3-540-69053-0_13; the mixing is that of SplitMix64, Steele et al.
   (2014), doi:10.1145/2660193.2660195.
"""

import hashlib
import json
import weakref
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch

from depthsys.fingerprints import KIND

WIDTH = 512
SUMS = 8
# Weights that are looked at together: what stays in the cache of a CPU, what fills a GPU.
CHUNK = {"cpu": 2**18}
CHUNK_OF_DEVICES = 2**23

_VOLATILE = (
    "_name_or_path",
    "_model_name_or_path",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "architectures",
)


@torch.no_grad()
def checked_fingerprint(hf: Any) -> str:
    """Digest of configuration and all weights; refuses weights that are not finite.

    The same for float32 and float64 copies of one checkpoint, for 16-bit weights and the float32
    ones they are read into, on every device.

    Raises
    ------
    ValueError
        If a weight is not finite.
    """
    config = {k: v for k, v in hf.config.to_dict().items() if k not in _VOLATILE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    seen: dict[int, tuple[weakref.ref, torch.Tensor]] = {}
    names, looked = [], []
    for name, tensor in _weights(hf):
        last = seen.get(id(tensor))
        if last is None or last[0]() is not tensor:  # tied weights once
            last = seen[id(tensor)] = weakref.ref(tensor), _looked_at(tensor.detach())
        names.append((name, tuple(tensor.shape)))
        looked.append(last[1])
    for (name, shape), numbers in zip(names, _on_the_host(looked), strict=True):
        if not numbers[SUMS]:
            raise ValueError(
                f"`model` must have finite weights; {name!r} holds NaN or infinity. "
                "The file is damaged or the training diverged."
            )
        digest.update(f"{name}{shape}".encode())
        digest.update(numbers[:SUMS].astype("<i8").tobytes())
    return KIND + digest.hexdigest()


def sums(tensor: torch.Tensor) -> torch.Tensor:
    """The sums (`SUMS`) of one tensor, whole numbers modulo 2^64, on its device."""
    return _looked_at(tensor)[:SUMS]


def _looked_at(tensor: torch.Tensor) -> torch.Tensor:
    """The sums, and 1 if all numbers are finite, else 0; nothing waits for them."""
    flat = tensor.flatten()
    device, count = flat.device, flat.numel()
    size = min(CHUNK.get(device.type, CHUNK_OF_DEVICES), -(-count // WIDTH) * WIDTH)
    size -= size % WIDTH
    constants = _constants(device)
    buffer = torch.zeros(size, dtype=torch.float64, device=device)
    rows = torch.empty(-(-count // WIDTH), SUMS, dtype=torch.float64, device=device)
    extremes: list[torch.Tensor] = []
    for start in range(0, count, size or 1):
        part = flat[start : start + size]
        single = part.float()
        buffer[: len(part)].copy_(single.view(torch.int32))
        n_rows = -(-len(part) // WIDTH)
        buffer[len(part) : n_rows * WIDTH].zero_()
        first = start // WIDTH
        whole = buffer[: n_rows * WIDTH].view(n_rows, WIDTH)
        torch.mm(whole, constants, out=rows[first : first + n_rows])
        if tensor.is_floating_point():
            # a finite float64 may have no finite float32
            extremes += torch.aminmax(part if part.dtype == torch.float64 else single)
    found = _mixed(rows).sum(0)
    finite = torch.ones(1, dtype=torch.int64, device=device)
    if extremes:
        finite = torch.isfinite(torch.stack(extremes)).all().long()[None]
    return torch.cat([found, finite])


def _mixed(rows: torch.Tensor) -> torch.Tensor:
    """Whole numbers (row, sum) with their row's number, mixed so that all bits depend on all."""
    place = torch.arange(1, len(rows) + 1, dtype=torch.int64, device=rows.device)
    z = rows.long() + (place * _signed(0x9E3779B97F4A7C15))[:, None]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return z ^ _shifted(z, 31)


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, filled with zeros: torch fills with the sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


@cache
def _table() -> np.ndarray:
    """Odd constants (`WIDTH`, `SUMS`) between -2^13 and 2^13, the same for ever."""
    drawn = hashlib.shake_256(b"depthsys fingerprint v2").digest(2 * WIDTH * SUMS)
    uniform = np.frombuffer(drawn, dtype="<u2").astype(np.int64) % 2**13
    return (2 * uniform - 2**13 + 1).reshape(WIDTH, SUMS)


@cache
def _constants(device: torch.device) -> torch.Tensor:
    return torch.as_tensor(_table().astype(np.float64)).to(device)


def _on_the_host(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    """Short tensors of one length as numpy arrays; one copy per device."""
    by_device: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(i)
    found: list[Any] = [None] * len(tensors)
    for places in by_device.values():
        together = torch.stack([tensors[i] for i in places]).cpu().numpy()
        for i, row in zip(places, together, strict=True):
            found[i] = row
    return found


def _weights(hf: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and plain tensors of all weights: those of quantised ones, and offloaded ones too."""
    weights = hf.state_dict(keep_vars=True)
    if any(isinstance(t, torch.Tensor) and t.is_meta for t in weights.values()):
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        weights = get_state_dict_offloaded_model(hf)
    for name, value in sorted(weights.items()):
        yield from _plain_tensors(name, value)


def _plain_tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if hasattr(value, "__tensor_flatten__"):
        for inner in value.__tensor_flatten__()[0]:
            yield from _plain_tensors(f"{name}.{inner}", getattr(value, inner))
    elif isinstance(value, torch.Tensor):
        yield name, value
