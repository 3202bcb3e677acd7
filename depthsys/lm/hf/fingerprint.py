r"""Fingerprint of a model: all of its weights, hashed where they lie.

A weight is looked at as float32, and its 32 bits as one whole number; packed weights, whole numbers
of 32 or 64 bits, are looked at as they are. Rows of `WIDTH` such numbers
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
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch

from depthsys.fingerprints import KIND
from depthsys.lm.hf.residence import waiting_by_name

WIDTH = 512
SUMS = 8
# Weights that are looked at together: what stays in the cache of a CPU, what fills a GPU.
CHUNK = {"cpu": 2**18}
CHUNK_OF_DEVICES = 2**23
# Whole numbers that float32 does not hold, several small weights in one: looked at as they are.
_PACKED = (torch.int32, torch.int64, torch.uint32, torch.uint64)
# Rows that are mixed together, of many small tensors or of one large one.
ROWS = 2**14

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
    seen: dict[int, tuple[weakref.ref, _Look, int]] = {}
    looks: dict[torch.device, _Look] = {}
    about: list[tuple[str, tuple, _Look, int]] = []
    for name, tensor in _weights(hf):
        last = seen.get(id(tensor))
        if last is None or last[0]() is not tensor:  # tied weights once
            look = looks.setdefault(tensor.device, _Look(tensor.device))
            last = seen[id(tensor)] = weakref.ref(tensor), look, look.add(tensor.detach())
        about.append((name, tuple(tensor.shape), *last[1:]))
    for name, shape, look, number in about:
        if not look.are_finite[number]:
            raise ValueError(
                f"`model` must have finite weights; {name!r} holds NaN or infinity. "
                "The file is damaged or the training diverged."
            )
        digest.update(f"{name}{shape}".encode())
        digest.update(look.sums[number].astype("<i8").tobytes())
    return KIND + digest.hexdigest()


class _Look:
    """Tensors of one device, looked at one after the other; `sums` and `are_finite` wait for it."""

    def __init__(self, device: torch.device):
        self._device = device
        self._size = CHUNK.get(device.type, CHUNK_OF_DEVICES)
        self._buffer = torch.empty(0, dtype=torch.float64, device=device)
        self._rows: list[torch.Tensor] = []  # not mixed yet
        self._sums: list[torch.Tensor] = []
        self._extremes: dict[torch.dtype, list[torch.Tensor]] = {}
        self._whose: dict[torch.dtype, list[int]] = {}
        self._count = 0

    def add(self, tensor: torch.Tensor) -> int:
        """Look at a tensor, and give its number here."""
        flat = tensor.flatten()
        if flat.dtype in _PACKED:
            flat = flat.view(torch.int32)
        count, self._count = flat.numel(), self._count + 1
        self._buffer_for(count)
        constants = _constants(self._device)
        rows = self._buffer.new_empty(-(-count // WIDTH), SUMS)
        for start in range(0, count, self._size):
            part = flat[start : start + self._size]
            single = part.float()
            # a finite float64 may have no finite float32
            self._note_extremes(part if part.dtype == torch.float64 else single)
            n_rows, first = -(-len(part) // WIDTH), start // WIDTH
            words = part if part.dtype == torch.int32 else single.view(torch.int32)
            self._buffer[: len(part)].copy_(words)
            if len(part) % WIDTH:
                self._buffer[len(part) : n_rows * WIDTH].zero_()
            whole = self._buffer[: n_rows * WIDTH].view(n_rows, WIDTH)
            torch.mm(whole, constants, out=rows[first : first + n_rows])
        self._rows.append(rows)
        if sum(map(len, self._rows)) > ROWS:
            self._mix()
        return self._count - 1

    def _buffer_for(self, count: int) -> None:
        size = min(self._size, -(-count // WIDTH) * WIDTH)
        if size > len(self._buffer):
            self._buffer = self._buffer.new_empty(size)

    def _note_extremes(self, part: torch.Tensor) -> None:
        self._extremes.setdefault(part.dtype, []).extend(torch.aminmax(part))
        self._whose.setdefault(part.dtype, []).append(self._count - 1)

    def _mix(self) -> None:
        """Mix the rows of several tensors together, and add up those of each."""
        sizes = [len(rows) for rows in self._rows]
        places = torch.arange(1, max(sizes) + 1, dtype=torch.int64, device=self._device)
        places = torch.cat([places[:size] for size in sizes])
        mixed = _mixed(torch.cat(self._rows).long(), places)
        self._sums += [part.sum(0) for part in mixed.split(sizes)]
        self._rows = []

    @cached_property
    def _read(self) -> tuple[np.ndarray, dict[torch.dtype, np.ndarray]]:
        """The sums (tensor, `SUMS`) and the extremes of each dtype: all in one copy."""
        if self._rows:
            self._mix()
        extremes = [torch.stack(found).double() for found in self._extremes.values()]
        bits = [found.view(torch.int64) for found in extremes]
        together = torch.cat([torch.stack(self._sums).flatten(), *bits]).cpu().numpy()
        sums, *rest = np.split(together, np.cumsum([self._count * SUMS, *map(len, bits)])[:-1])
        shown = (found.view(np.float64) for found in rest)
        return sums.reshape(-1, SUMS), dict(zip(self._extremes, shown, strict=True))

    @property
    def sums(self) -> np.ndarray:
        """Whole numbers (tensor, `SUMS`) modulo 2^64."""
        return self._read[0]

    @cached_property
    def are_finite(self) -> np.ndarray:
        """Whether all numbers of a tensor are finite (tensor)."""
        found = np.ones(self._count, dtype=bool)
        for dtype, extremes in self._read[1].items():
            good = np.isfinite(extremes.reshape(-1, 2)).all(1)
            np.logical_and.at(found, self._whose[dtype], good)
        return found


def _mixed(rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Whole numbers (row, sum) with their row's place, mixed so that all bits depend on all."""
    z = rows + (places * _signed(0x9E3779B97F4A7C15))[:, None]
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


def _weights(hf: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and plain tensors of all weights: those of quantised ones, and offloaded ones too."""
    weights, waiting = hf.state_dict(keep_vars=True), waiting_by_name(hf)
    for name, value in sorted(weights.items()):
        # read one at a time: all of them may not fit
        yield from _plain_tensors(name, waiting[name].read() if name in waiting else value)


def _plain_tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if hasattr(value, "__tensor_flatten__"):
        for inner in value.__tensor_flatten__()[0]:
            yield from _plain_tensors(f"{name}.{inner}", getattr(value, inner))
    elif isinstance(value, torch.Tensor):
        yield name, value
