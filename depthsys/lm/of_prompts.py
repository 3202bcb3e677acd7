"""What a run is of: the same whether its prompts are in one place or in shards."""

from functools import cached_property
from typing import Any

from depthsys.lm.hf.tokens import tokens_sha256
from depthsys.lm.run_model import Model


class OfPrompts:
    """Prompts of a model, as token ids in ``_rows``."""

    model: Model
    texts: Any
    _rows: list[list[int]]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return len(self)

    @property
    def n_layers(self) -> int:
        """L."""
        return self.model.n_layers

    @property
    def rows(self) -> list[list[int]]:
        """Token ids of every prompt, up to the one that is read."""
        return self._rows

    @cached_property
    def tokens_sha256(self) -> str:
        """Fingerprint of the token ids."""
        return tokens_sha256(self._rows)

    @property
    def sha256(self) -> str:
        """Fingerprint of the texts; of their tokens where they came as token ids or a list."""
        return getattr(self.texts, "sha256", self.tokens_sha256)

    @property
    def all_the_same(self) -> bool:
        """Whether all prompts are the same tokens."""
        return all(row == self._rows[0] for row in self._rows)
