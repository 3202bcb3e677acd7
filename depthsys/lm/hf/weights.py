"""Whether a model still has the weights that it was wrapped and checked with."""

import contextlib
from pathlib import Path
from typing import Any

import torch

from depthsys.lm.hf.residence import waiting_in


class Weights:
    """The weights of a model, as they were when this was made.

    Seen are weights that were written to, replaced, moved, added or taken away, and modules that
    were exchanged; not what is written through ``.data`` in place, which torch does not count.
    Weights that are brought in when they are used are watched where they wait: in the memory of
    the host as any others, in files by size and time of change.
    Cheap enough to ask before every use (0.1 ms for thirty blocks): no number is read. ``lock`` is
    held meanwhile: another thread may have put something else in the place of biases.
    """

    def __init__(self, hf: Any, lock: Any = None):
        self._lock = contextlib.nullcontext() if lock is None else lock
        modules = list(hf.modules())
        waiting = waiting_in(hf)
        # the places of these are empty, or hold copies that come and go
        moved = {id(one.held) for one in waiting}
        kept = [
            m._parameters
            for m in modules
            if id(m._parameters) not in moved and not any(map(_is_meta, m._parameters.values()))
        ]
        away = [where for one in waiting if (where := one.in_memory) is not None]
        hosts = list({id(held): held for held, _ in away}.values())
        self._files = sorted({file for one in waiting if (file := one.file) is not None})
        self._watched = [h for h in [*kept, *hosts, *(m._modules for m in modules)] if h]
        self._parameters = [p for held in kept for p in held.values() if p is not None]
        self._parameters += [held[key] for held, key in away]
        self._ids, self._versions = self._ids_now(), self._versions_now()
        self._addresses = self._addresses_now()
        self._changes = [_last_change(file) for file in self._files]

    @property
    def have_changed(self) -> bool:
        """Whether anything is another than it was."""
        with self._lock:
            return self._differ()

    def _differ(self) -> bool:
        return (
            self._versions_now() != self._versions
            or self._addresses_now() != self._addresses
            or self._ids_now() != self._ids
            or [_last_change(file) for file in self._files] != self._changes
        )

    def check(self) -> None:
        """ValueError if they have changed."""
        if self.have_changed:
            raise ValueError(
                "`model` must keep the weights it was wrapped with; they have changed, and its "
                "fingerprint and contract are those of the old ones. Wrap it again."
            )

    def _ids_now(self) -> list[int]:
        return [id(one) for held in self._watched for one in held.values()]

    def _versions_now(self) -> list[int]:
        return [p._version for p in self._parameters]

    def _addresses_now(self) -> list[int]:
        try:
            return [p.data_ptr() for p in self._parameters]
        except RuntimeError:  # tensors that are made of others have none
            return []


def _is_meta(parameter: torch.Tensor | None) -> bool:
    return parameter is not None and parameter.is_meta


def _last_change(file: Path) -> tuple[int, int]:
    """When a file was written, and its size."""
    try:
        about = file.stat()
    except OSError:
        return 0, -1
    return about.st_mtime_ns, about.st_size
