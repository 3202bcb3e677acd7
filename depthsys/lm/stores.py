"""Tensors put away by a key, on their device, in the memory of the host or in a temporary file."""

import tempfile
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import IO

import torch

from depthsys.lm.lane import Ahead, Copy, Key, Lane


def store(place: str) -> "Store":
    """A store in that place: "device", "host" or "file"."""
    return {"device": OnDevice, "host": InMemory, "file": InFile}[place]()


class Store(ABC):
    """Tensors by a key; they come back to the device they came from."""

    @abstractmethod
    def put(self, key: Key, tensors: Sequence[torch.Tensor]) -> None:
        """Put tensors away; they must not be written to afterwards."""

    @abstractmethod
    def get(self, key: Key) -> list[torch.Tensor]:
        """The tensors, on their device."""

    @abstractmethod
    def drop(self, key: Key) -> None:
        """Give back the room of those under a key, if there are some."""

    @abstractmethod
    def close(self) -> None:
        """Give back all of it."""


class OnDevice(Store):
    """Where they are."""

    def __init__(self):
        self._kept: dict[Key, list[torch.Tensor]] = {}

    def put(self, key, tensors):
        """Put tensors away."""
        self._kept[key] = list(tensors)

    def get(self, key):
        """The tensors."""
        return self._kept[key]

    def drop(self, key):
        """Give back their room."""
        self._kept.pop(key, None)

    def close(self):
        """Give back all of it."""
        self._kept.clear()


class _Away(Store):
    """Copied away and back, beside the work where that is possible; see `Lane`."""

    def __init__(self):
        self._lanes: dict[torch.device, Lane] = {}
        self._lane_of: dict[Key, Lane] = {}
        self._ahead = Ahead(self._fetched, self._lane_of)

    def put(self, key, tensors):
        """Put tensors away."""
        device = tensors[0].device
        if device not in self._lanes:
            self._lanes[device] = Lane(device)
        self._lane_of[key] = self._lanes[device]
        self._keep(key, tensors, self._lanes[device])

    def get(self, key):
        """The tensors, on their device."""
        if self._lane_of[key].is_beside:
            return self._ahead.get(key)
        return [copy.here() for copy in self._fetched(key)]

    def drop(self, key):
        """Give back their room."""
        if self._lane_of.pop(key, None) is not None:
            self._leave(key)

    def close(self):
        """Give back all of it."""
        for key in list(self._lane_of):
            self.drop(key)
        self._ahead.forget()

    @abstractmethod
    def _keep(self, key: Key, tensors: Sequence[torch.Tensor], lane: Lane) -> None:
        """Begin to copy these."""

    @abstractmethod
    def _fetched(self, key: Key) -> list[Copy]:
        """Begin to copy them back."""

    @abstractmethod
    def _leave(self, key: Key) -> None:
        """Give back the room of these."""


class InMemory(_Away):
    """In the memory of the host."""

    def __init__(self):
        super().__init__()
        self._kept: dict[Key, list[torch.Tensor]] = {}

    def _keep(self, key, tensors, lane):
        # copies back by the same lane come after those out: nobody need wait for these
        self._kept[key] = [lane.out(tensor).tensor for tensor in tensors]

    def _fetched(self, key):
        return [self._lane_of[key].back(tensor) for tensor in self._kept[key]]

    def _leave(self, key):
        del self._kept[key]


class InFile(_Away):
    """In a temporary file."""

    def __init__(self):
        super().__init__()
        self._spool = Spool()
        self._kept: dict[Key, list[tuple]] = {}
        self._leaving: dict[Key, list[Copy]] = {}
        self._free: dict[int, list[int]] = {}  # places of a size that may be written again

    def close(self):
        """Give the disk back."""
        self._leaving.clear()
        super().close()
        self._spool.close()

    def _keep(self, key, tensors, lane):
        copies = [lane.out(tensor) for tensor in tensors]
        self._write()  # the ones before, which have arrived while these were computed
        self._leaving[key] = copies
        if not lane.is_beside:
            self._write()

    def _write(self) -> None:
        while self._leaving:
            key, copies = self._leaving.popitem()
            self._kept[key] = [self._written(copy.here()) for copy in copies]

    def _written(self, tensor: torch.Tensor) -> tuple:
        free = self._free.get(tensor.nbytes)
        return self._spool.write(tensor, free.pop() if free else None)

    def _fetched(self, key):
        self._write()
        lane, copies = self._lane_of[key], []
        for start, shape, dtype, _ in self._kept[key]:
            host = lane.empty(shape, dtype)
            self._spool.read_into(host, start)
            copies.append(lane.back(host))
        return copies

    def _leave(self, key):
        self._leaving.pop(key, None)
        for start, shape, dtype, _ in self._kept.pop(key, []):
            self._free.setdefault(shape.numel() * dtype.itemsize, []).append(start)


class Spool:
    """Tensors in a temporary file without a name: it goes when the run goes, also after a crash."""

    def __init__(self):
        self._file: IO[bytes] = tempfile.TemporaryFile()
        self._lock = threading.Lock()  # threads share the position in the file
        # closed, not left to the collector: that would be a ResourceWarning
        weakref.finalize(self, self._file.close)

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()

    def write(self, tensor: torch.Tensor, start: int | None = None) -> tuple:
        """Write a tensor at a place, or behind all others; gives what `read` needs."""
        # as bytes: numpy has no bfloat16
        values = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
        with self._lock:
            start = self._file.seek(0, 2) if start is None else self._file.seek(start)
            self._file.write(values)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return start, tensor.shape, tensor.dtype, tensor.device

    def read(self, start, shape, dtype, device) -> torch.Tensor:
        """A tensor, on the device where it was."""
        tensor = torch.empty(shape, dtype=dtype)
        self.read_into(tensor, start)
        return tensor.to(device)

    def read_into(self, tensor: torch.Tensor, start: int) -> None:
        """Fill a tensor of the host with what was written at a place."""
        if not tensor.numel():  # of prompts of one token
            return
        values = tensor.view(-1).view(torch.uint8).numpy()
        with self._lock:
            self._file.seek(start)
            count = self._file.readinto(values)  # pyright: ignore[reportAttributeAccessIssue]
        if count != tensor.nbytes:
            raise OSError(f"a temporary file is cut: {count} of {tensor.nbytes} bytes are there")
