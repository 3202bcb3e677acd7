"""Where the frozen keys and values of a run lie, and how much of each place it may take."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from depthsys.lm.hf.attention import FrozenCache
from depthsys.lm.kinds import short
from depthsys.lm.memory import available_memory, free_on
from depthsys.lm.stores import Spool, store

# What a run may take of each place where no budget says more or less.
SHARE = 0.25
PLACES = ("device", "host", "file", "again")
# Most that is held of one linearised layer where no budget says more or less.
LINEARISED = 2**30


@dataclass(frozen=True)
class Budget:
    """Bytes that a run may take, in the order in which places are tried.

    The first place that holds the frozen context and the states of all prompts is taken; if none
    does, the context is computed again, layer by layer, whenever it is needed, from hidden states
    that wait in the first place that holds those, and else in a temporary file: then memory does
    not grow with the prompts. Results do not depend on it, beyond rounding. The states of all
    tokens, of a run that is to have them, go first, into the first place that holds those; the
    context gets what they leave.

    Parameters
    ----------
    device
        Memory of the model's device, where that is not the CPU.
    host
        Memory of this machine.
    file
        A temporary file, in the folder that ``TMPDIR`` names.
    linearised
        No place, but memory that work takes beside the run, on the model's device: where many
        products with one layer are wanted (`Arnoldi`), the layer of all prompts is linearised once
        and held, if that fits; else it is linearised anew, batch by batch, for every product. None
        means 1 GiB, or a quarter of what is free if that is less; 0 never to hold a layer. Of a
        model larger than its device it bounds, too, what waits while batches go through the layers
        in step: those that it cannot hold go in a second turn, for which the layers come again.

    For a place None means a quarter of what is free when the run is made, 0 not to use it.
    """

    device: int | None = None
    host: int | None = None
    file: int | None = None
    linearised: int | None = None

    def __post_init__(self):
        for name in ("device", "host", "file", "linearised"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (int, float, np.integer)):
                raise TypeError(
                    f"`budget` must hold numbers of bytes; got {short(value)} for {name}. Write "
                    "10**9 for a gigabyte."
                )
            if value is not None and not value >= 0:
                raise ValueError(
                    f"`budget` must hold bytes >= 0; got {value} for {name}. None means a quarter "
                    "of what is free, 0 not to use that place."
                )

    def place(self, size: int, device: torch.device) -> str:
        """The first place that may take so many bytes."""
        if device.type != "cpu" and size <= self._allowed(self.device, free_on(device)):
            return "device"
        if size <= self._allowed(self.host, available_memory()):
            return "host"
        if size <= self._allowed(self.file, shutil.disk_usage(tempfile.gettempdir()).free):
            return "file"
        return "again"

    def holds(self, size: int, device: torch.device) -> bool:
        """Whether a linearised layer of so many bytes may be held."""
        if self.linearised is not None:
            return size <= self.linearised
        free = available_memory() if device.type == "cpu" else free_on(device)
        return size <= min(LINEARISED, self._allowed(None, free))

    def left(self, taken: Mapping[str, int], device: torch.device, share: float = 1.0) -> "Budget":
        """What is left of it, in bytes, where so many of each place are taken already.

        Of places for which it names no number there is a quarter of what is free or taken;
        ``share`` is the part of that which is for this process.
        """
        found = {}
        for place, size in _free(device).items():
            here = taken.get(place, 0)
            given = getattr(self, place)
            whole = share * SHARE * ((size or 0) + here) if given is None else given
            found[place] = max(0, int(whole) - here)
        return replace(self, **found)

    def beside(self, place: str, size: int, device: torch.device) -> "Budget":
        """What it leaves where so many bytes of a place are spoken for."""
        whole = self._allowed(getattr(self, place), _free(device)[place])
        return replace(self, **{place: max(0, int(whole) - size)})

    @property
    def is_nothing(self) -> bool:
        """Whether no place may be used."""
        return self.device == self.host == self.file == 0

    def in_memory(self, size: int) -> bool:
        """Whether the host's memory may take so many bytes."""
        return size <= self._allowed(self.host, available_memory())

    @staticmethod
    def _allowed(given: int | None, free: int | None) -> float:
        return SHARE * (free or 0) if given is None else given


def _free(device: torch.device) -> dict[str, int | None]:
    """Bytes that are free of every place; None where nobody says."""
    return {
        "device": 0 if device.type == "cpu" else free_on(device),
        "host": available_memory(),
        "file": shutil.disk_usage(tempfile.gettempdir()).free,
    }


class Contexts:
    """Frozen context by batch and layer, in one of `PLACES`."""

    def __init__(self, place: str):
        self.place = place
        self._store = store(place)

    def put(self, batch: int, layer: int, cache: FrozenCache) -> None:
        """Keep the context of a layer."""
        self._store.put((batch, layer), [cache.key, cache.value])

    def get(self, batch: int, layer: int) -> FrozenCache:
        """The context of a layer, on the device where its block runs."""
        return FrozenCache(*self._store.get((batch, layer)))


class States:
    """Nominal states (depth, prompt, feature) and router margins by batch."""

    def __init__(self, in_memory: bool):
        self._spool = None if in_memory else Spool()
        self._kept: dict[int, tuple[Any, torch.Tensor | None]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, batch: int, x: torch.Tensor, margin: torch.Tensor | None) -> None:
        """Keep those of a batch, once."""
        if batch not in self._kept:
            self._kept[batch] = (x if self._spool is None else self._spool.write(x)), margin

    def get(self, batch: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """States (depth, prompt, feature) and margins (prompt, layer) of a batch."""
        x, margin = self._kept[batch]
        return (x if self._spool is None else self._spool.read(*x)), margin
