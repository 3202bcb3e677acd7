"""How a model calls its blocks: what they get beside the state, of one batch."""

from collections.abc import Callable

import torch

Call = tuple[tuple, dict]  # positional and named arguments of a block
Step = Callable[..., list[Call]]  # `Blocks.step`


class Calls:
    """How the model calls its blocks for one batch, without the state and the cache."""

    def __init__(self, step: Step, ids, mask, real, embedded, sequence, n_context):
        self.embedded: torch.Tensor = embedded
        self.sequence: list[Call] = sequence
        self.n_context: list[int] = n_context
        self.real: torch.Tensor | None = real
        self._step, self._ids, self._mask = step, ids, mask
        self._steps: dict[int, list[Call]] = {}

    @property
    def n_tokens(self) -> int:
        """Tokens of every prompt, padding included."""
        return self._ids.shape[1]

    def step(self, n_copies: int) -> list[Call]:
        """Calls of every block on the last token alone, each prompt ``n_copies`` times."""
        if n_copies not in self._steps:
            if len(self._steps) > 1:
                self._steps.popitem()
            ids, mask = (
                t.repeat_interleave(n_copies, dim=0) if n_copies > 1 else t
                for t in (self._ids, self._mask)
            )
            padded = self.real is not None
            self._steps[n_copies] = self._step(ids, mask, is_padded=padded)
        return self._steps[n_copies]

    def last_token_only(self) -> "Calls":
        """The same without what only whole sequences need (embeddings, masks)."""
        nothing = self.embedded.new_empty(0)  # a slice would hold the memory
        return Calls(self._step, self._ids, self._mask, self.real, nothing, [], self.n_context)

    def without_embedding(self) -> "Calls":
        """The same without the states that enter the first block."""
        nothing, sequence = self.embedded.new_empty(0), self.sequence
        return Calls(
            self._step, self._ids, self._mask, self.real, nothing, sequence, self.n_context
        )

    def only(self, rows: torch.Tensor) -> "Calls":
        """The calls of the last token for some of these prompts."""
        rows = rows.to(self._ids.device)
        real = None if self.real is None else self.real[rows]
        ids, mask, nothing = self._ids[rows], self._mask[rows], self.embedded.new_empty(0)
        return Calls(self._step, ids, mask, real, nothing, [], self.n_context)
