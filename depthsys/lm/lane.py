"""Copies between a device and the host that go on beside the device's work.

A copy of ordinary memory makes the host wait for the device, and the device for the host. Where a
device has streams, copies go through pinned memory on a stream of their own: what leaves it is
written while the next layer is computed, and what is likely asked for next comes while this one is.
Elsewhere, and on the CPU, copies are plain ones. Both give the same numbers.
"""

import threading
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import torch

# A batch and a layer, or a batch and a depth.
Key = tuple[int, int]
# Pinned memory is taken in pieces of that size, since torch rounds each up to a power of two.
PINNED = 2**28
_ALIGNED = 256
_NEEDED = ("Stream", "Event", "stream", "current_stream")


@dataclass(frozen=True)
class Copy:
    """A copy that is under way."""

    tensor: torch.Tensor
    arrive: Callable[[], None] | None = None

    def here(self) -> torch.Tensor:
        """The copy, to be used from now on: by the host, or by work that the device does next."""
        if self.arrive is not None:
            self.arrive()
        return self.tensor


class Lane:
    """Copies from and to one device.

    Parameters
    ----------
    device
        The device.
    module
        What torch asks of it, as ``torch.cuda``; None finds it.
    """

    def __init__(self, device: torch.device, module: Any = None):
        self.device = device
        if module is None and device.type != "cpu":
            module = torch.get_device_module(device)
        self._module = module if all(hasattr(module, name) for name in _NEEDED) else None
        self._stream = None if self._module is None else self._module.Stream(device=device)
        self._piece = torch.empty(0, dtype=torch.uint8)

    @property
    def is_beside(self) -> bool:
        """Whether copies go on beside the work."""
        return self._stream is not None

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """Memory of the host, pinned where copies go on beside the work."""
        if not self.is_beside:
            return torch.empty(shape, dtype=dtype)
        size = shape.numel() * dtype.itemsize
        if size > PINNED // 4:
            return _pinned(size).view(dtype).view(shape)
        taken = -(-size // _ALIGNED) * _ALIGNED
        if len(self._piece) < taken:
            self._piece = _pinned(PINNED)
        found, self._piece = self._piece[:size], self._piece[taken:]
        return found.view(dtype).view(shape)

    def out(self, tensor: torch.Tensor) -> Copy:
        """A copy in the memory of the host."""
        if self._module is None or self._stream is None:
            return Copy(tensor.cpu())
        host = self.empty(tensor.shape, tensor.dtype)
        # after the work that makes the tensor, and before its memory is used for other things
        self._stream.wait_stream(self._module.current_stream(self.device))
        with self._module.stream(self._stream):
            host.copy_(tensor, non_blocking=True)
            event = self._module.Event()
            event.record(self._stream)
        tensor.record_stream(self._stream)
        return Copy(host, event.synchronize)

    def back(self, host: torch.Tensor) -> Copy:
        """A copy on the device; what left by this lane need not have arrived."""
        module = self._module
        if module is None or self._stream is None:
            return Copy(host.to(self.device))
        with module.stream(self._stream):
            there = host.to(self.device, non_blocking=True)
            event = module.Event()
            event.record(self._stream)

        def arrive() -> None:
            current = module.current_stream(self.device)
            current.wait_event(event)
            there.record_stream(current)

        return Copy(there, arrive)


def _pinned(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


class Ahead:
    """Gives what is asked for, and begins to fetch what is likely asked for next.

    What was given last and what is fetched ahead lie on the device; nothing else.

    Parameters
    ----------
    fetch
        Begins to fetch what a key stands for.
    keys
        What there is.
    """

    def __init__(self, fetch: Callable[[Key], list[Copy]], keys: Container[Key]):
        self._fetch, self._keys = fetch, keys
        self._lock = threading.Lock()
        self._given: tuple[Key, list[torch.Tensor]] | None = None
        self._ahead: tuple[Key, list[Copy]] | None = None
        self._step = (0, 0)
        self._turn = 1  # to the next or the previous row

    def get(self, key: Key) -> list[torch.Tensor]:
        """What a key stands for."""
        with self._lock:
            if self._given is not None and self._given[0] == key:
                return self._given[1]
            if self._ahead is not None and self._ahead[0] == key:
                copies = self._ahead[1]
            else:
                copies = self._fetch(key)
            tensors = [copy.here() for copy in copies]
            following = self._following(key)
            self._given = key, tensors
            self._ahead = None if following is None else (following, self._fetch(following))
            return tensors

    def forget(self) -> None:
        """Give back what was given last and what was fetched ahead."""
        with self._lock:
            self._given = self._ahead = None

    def _following(self, key: Key) -> Key | None:
        """The key in the direction of the last step; behind the last batch that of a new layer."""
        if self._given is None:
            return None
        step = key[0] - self._given[0][0], key[1] - self._given[0][1]
        if step[1]:
            self._turn = 1 if step[1] > 0 else -1
        if step[0] and step[1]:  # a new row, which goes on as the one before
            step = self._step
        self._step = step
        along, around = (key[0] + step[0], key[1] + step[1]), (0, key[1] + self._turn)
        if along in self._keys:
            return along
        return around if step[0] and around in self._keys else None
