"""Schedules played at every token, or behind a marker: whole sequences through the full model.

So do llama.cpp, repeng and steering-vectors. The tokens before the last one change as well, so no
frozen context can be used: each schedule is a forward pass of its own.
"""

from collections.abc import Sequence

import numpy as np
import torch

from depthsys.lm.hf.blocks import Blocks
from depthsys.lm.hf.calls import Calls
from depthsys.lm.lockstep import Steps, driven, together
from depthsys.lm.progress import bar
from depthsys.lm.readouts import Readout
from depthsys.lm.run import Run
from depthsys.lm.shards import along, in_shards


@in_shards(along(0), "play at every token")
@torch.no_grad()
def every_token_shifts(
    run: Run,
    v: torch.Tensor,
    pushes: torch.Tensor,
    reader: Readout,
    ends: torch.Tensor | None = None,
    alone: bool = False,
    *,
    begins: Sequence[int] | np.ndarray | None = None,
    factors: np.ndarray | None = None,
) -> np.ndarray:
    """Shift of the last token's y_L (prompt, copy, output) when every token is pushed.

    Not finite where a push is so large that a state overflows.

    Parameters
    ----------
    run
        The prompts.
    v
        Directions (depth, input, feature).
    pushes
        (copy, layer, input), at the input of each block; from the last copy shifts are counted.
    reader
        What is read of the last token.
    ends
        Pushes behind the last block (copy, input).
    alone
        Whether that token alone is pushed, or those behind it, too.
    begins
        Index of the first token that is pushed, in every prompt; by default 0.
    factors
        By which the pushes of every prompt are multiplied (prompt, copy); by default 1.
    """
    model = run.model
    model.check_weights()
    added = torch.einsum("cli,lif->clf", pushes, v[:-1])
    # (copy, layer), on the host: between layers nothing is to wait for the device
    moves = (added != 0).any(-1).tolist()
    behind = torch.zeros_like(added[:, 0]) if ends is None else ends @ v[-1]
    shift = np.empty((len(run), len(pushes) - 1, reader.n_outputs))
    blocks, width = model.blocks, model.n_features * model.dtype.itemsize
    # whole sequences wait between two layers, where layers are brought in for all of them
    sizes = [len(pushes) * run.n_tokens(b) * len(p) * width for b, p in enumerate(run.numbers)]
    with bar("play at every token", len(run), "prompt") as shown:
        for group in run.in_step_groups(sizes):
            works = [
                _of_batch(run, number, added, moves, behind, alone, begins, factors)
                for number in group
            ]
            found = driven(blocks, together(works))
            for number, last in zip(group, found, strict=True):
                prompts = run.numbers[number]
                y = reader.values(model, last).cpu().numpy()
                with np.errstate(invalid="ignore"):  # states that overflow are found by the caller
                    shift[prompts] = y[:, :-1] - y[:, -1:]
                shown.update(len(prompts))
    return shift


def _of_batch(
    run: Run,
    number: int,
    added: torch.Tensor,
    moves: list[list[bool]],
    behind: torch.Tensor,
    alone: bool,
    begins: Sequence[int] | np.ndarray | None,
    factors: np.ndarray | None,
) -> Steps[torch.Tensor]:
    """The last token's states (prompt, copy, feature) of a batch behind every schedule."""
    calls, prompts = run.calls_of(number), run.numbers[number]
    where = (
        None if begins is None else _tokens_from(calls, [int(begins[i]) for i in prompts], alone)
    )
    sizes = [None] * len(added)
    if factors is not None:  # (copy, prompt, 1, 1)
        sizes = torch.as_tensor(factors[prompts].T).to(added)[:, :, None, None]
    works = [
        _last_states(run.model.blocks, calls, push, moved, end, where, size)
        for push, moved, end, size in zip(added, moves, behind, sizes, strict=True)
    ]
    return torch.stack((yield from run.several(works)), dim=1)


@torch.no_grad()
def _last_states(
    blocks: Blocks,
    calls: Calls,
    push: torch.Tensor,
    moves: list[bool],
    end: torch.Tensor,
    where: torch.Tensor | None,
    size: torch.Tensor | None,
) -> Steps[torch.Tensor]:
    """The last token's states (prompt, feature) behind one schedule (layer, feature)."""
    hidden = calls.embedded
    for layer, vector in enumerate(push):
        yield layer
        if moves[layer]:
            moved = hidden + (vector if size is None else size * vector).to(hidden)
            hidden = moved if where is None else torch.where(where, moved, hidden)
        hidden = blocks.sequence(layer, calls, hidden)[0]
    return hidden[:, -1] + end.to(hidden)


def _tokens_from(calls: Calls, begins: Sequence[int], alone: bool) -> torch.Tensor:
    """Which tokens are those, or behind them unless ``alone`` (prompt, token, 1)."""
    n_tokens = calls.n_tokens
    device = calls.embedded.device
    at = torch.arange(n_tokens, device=device).expand(len(begins), -1)
    if calls.real is not None:
        at = at - (~calls.real.to(device)).sum(-1, keepdim=True)
    first = torch.tensor(begins, device=device)[:, None]
    return (at == first if alone else at >= first)[:, :, None]
