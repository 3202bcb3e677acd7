"""Nominal states of all tokens of a run: kept where there is room, or computed again by batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
import xarray as xr

from depthsys.lm.kinds import short
from depthsys.lm.lockstep import driven, together
from depthsys.lm.precision import wide
from depthsys.lm.progress import bar
from depthsys.lm.stores import store
from depthsys.ltv.system import whole_number

# Of which tokens a run keeps the states.
TOKENS = ("last", "all")

# Told a depth 0..L and the hidden states (prompt, token, feature) there, in that order.
Note = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True)
class TokenStates:
    """Nominal states of all tokens of one batch of prompts.

    Attributes
    ----------
    prompts
        Row numbers of its prompts.
    x
        (depth, prompt, token, feature), depth 0..L, before the final norm. Prompts end together:
        the last token of each is the last one here. What stands at padding means nothing.
    real
        (prompt, token): False at padding, which is on the left.
    """

    prompts: np.ndarray
    x: torch.Tensor
    real: torch.Tensor

    def __repr__(self) -> str:
        return f"TokenStates({len(self.prompts)} prompts, {self.x.shape[2]} tokens)"


class KeptTokens:
    """Hidden states (prompt, token, feature) by batch and depth, in a place of a `Budget`.

    Attributes
    ----------
    place
        "device", "host" or "file".
    nbytes
        Bytes of all of them, padding included.
    """

    def __init__(self, place: str, nbytes: int):
        self.place, self.nbytes = place, nbytes
        self._store = store(place)

    def put(self, number: int, depth: int, hidden: torch.Tensor) -> None:
        """Keep those of a batch at a depth."""
        self._store.put((number, depth), [hidden])

    def get(self, number: int, depth: int) -> torch.Tensor:
        """Those of a batch at a depth, on the device where they were."""
        return self._store.get((number, depth))[0]


class KeptDepths(Sequence[torch.Tensor]):
    """The states of a batch at all depths, each read when it is asked for."""

    def __init__(self, kept: KeptTokens, number: int, n_depths: int):
        self._kept, self._number, self._n_depths = kept, number, n_depths

    def __len__(self) -> int:
        return self._n_depths

    @overload
    def __getitem__(self, depth: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, depth: slice) -> list[torch.Tensor]: ...
    def __getitem__(self, depth):
        if isinstance(depth, slice):
            return [self._at(d) for d in range(*depth.indices(len(self)))]
        return self._at(range(len(self))[depth])

    def _at(self, depth: int) -> torch.Tensor:
        return self._kept.get(self._number, depth)


def checked_tokens(tokens: str) -> str:
    """ValueError unless it says of which tokens states are kept."""
    if not isinstance(tokens, str) or tokens not in TOKENS:
        raise ValueError(
            f"`tokens` must be one of {TOKENS}; got {short(tokens)}. Write tokens='all' to keep "
            "the states of every token."
        )
    return tokens


def by_batch(run: Any, progress: str | None = None) -> Iterator[TokenStates]:
    """`Run.token_states_by_batch`."""
    check(run)
    return _by_batch(run, progress)


def _by_batch(run: Any, progress: str | None) -> Iterator[TokenStates]:
    run.ready()
    with bar(progress, len(run), "prompt") as shown:
        for number, hidden in hidden_by_batch(run):
            prompts = run.numbers[number]
            yield TokenStates(prompts, torch.stack([*hidden]), run.real_tokens_of(number))
            shown.update(len(prompts))


def hidden_by_batch(run: Any) -> Iterator[tuple[int, Sequence[torch.Tensor]]]:
    """Number of every batch, and its hidden states (prompt, token, feature) by depth.

    Those of a batch are prefilled together where they are not kept.
    """
    sizes = [run.token_bytes(number) for number in range(len(run.numbers))]
    kept = run.tokens_place != "again"
    for group in ([n] for n in range(len(sizes))) if kept else run.in_step_groups(sizes):
        works = [run.hidden_steps(number) for number in group]
        found = driven(run.model.blocks, together(works))
        run.check_finite()
        yield from zip(group, found, strict=True)


def at_depth(run: Any, depth: int) -> xr.DataArray:
    """`Run.token_states`."""
    check(run)
    depth = checked_depth(depth, run.n_layers)
    run.ready()
    longest = max(map(len, run.rows))
    shape = (len(run), longest, run.model.n_features)
    values = np.full(shape, np.nan, dtype=run.model.numpy_dtype)
    for number, hidden in hidden_by_batch(run):
        real = run.real_tokens_of(number)[:, :, None]
        here = torch.where(real, wide(hidden[depth]), torch.nan).cpu().numpy()
        values[run.numbers[number], longest - here.shape[1] :] = here
    return at_lags(values, depth)


def real_tokens(lengths: list[int], device: torch.device) -> torch.Tensor:
    """Which tokens of prompts of these lengths, padded on the left, are no padding.

    Examples
    --------
    >>> real_tokens([1, 2], torch.device("cpu")).tolist()
    [[False, True], [True, True]]
    """
    longest = max(lengths)
    gaps = torch.tensor([longest - length for length in lengths], device=device)
    return torch.arange(longest, device=device) >= gaps[:, None]


def at_lags(values: np.ndarray, depth: int) -> xr.DataArray:
    """States (prompt, token, feature) of prompts that end together, with how far back each is."""
    coords = {"depth": depth, "lag": ("token", np.arange(values.shape[1])[::-1])}
    return xr.DataArray(values, coords, ("prompt", "token", "feature"))


def check(run: Any) -> None:
    """ValueError unless a run is one with the states of all tokens."""
    if run.tokens != "all":
        raise ValueError(
            f"`run` must be one with the states of all tokens; got {short(run)}, which has those "
            "of the last token alone. Make it with model.run(texts, tokens='all')."
        )


def checked_depth(depth: int, n_layers: int) -> int:
    """ValueError unless a run of so many layers has that depth."""
    cure = f"Depth 0 is before the first layer, {n_layers} after the last one."
    return whole_number(depth, "depth", 0, n_layers, cure)
