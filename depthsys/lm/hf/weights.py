"""Whether a model still has the weights that it was wrapped and checked with."""

from typing import Any

import torch


class Weights:
    """The weights of a model, as they were when this was made.

    Seen are weights that were written to, replaced, moved, added or taken away, and modules that
    were exchanged; not what is written through ``.data`` in place, which torch does not count.
    Cheap enough to ask before every use (0.1 ms for thirty blocks): no number is read.
    """

    def __init__(self, hf: Any):
        modules = list(hf.modules())
        # where weights are loaded when they are used (meta until then), each time is another tensor
        kept = [m._parameters for m in modules if not any(map(_is_meta, m._parameters.values()))]
        self._watched = [held for held in [*kept, *(m._modules for m in modules)] if held]
        self._parameters = [p for held in kept for p in held.values() if p is not None]
        self._ids, self._versions = self._ids_now(), self._versions_now()
        self._addresses = self._addresses_now()

    @property
    def have_changed(self) -> bool:
        """Whether anything is another than it was."""
        return (
            self._versions_now() != self._versions
            or self._addresses_now() != self._addresses
            or self._ids_now() != self._ids
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
