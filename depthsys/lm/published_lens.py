"""The Jacobian lens as Anthropic publishes it: over all positions, by whole sequences.

A slow reference beside `depthsys.lm.jacobian_lens`. The definition is that of ``jlens/fitting.py``
of github.com/anthropics/jacobian-lens (2026), read in copies of it; the code is not.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from depthsys.lm.progress import bar
from depthsys.lm.run import Run
from depthsys.lm.shards import in_shards
from depthsys.lm.sums import added
from depthsys.ltv.system import whole_number

SKIP = 16  # early positions, which are attention sinks
TOKENS = 1024  # of sequences that are differentiated together


def check_skip(skip: Any) -> None:
    """ValueError unless it is a number of positions."""
    cure = f"It is how many first positions are left out; the default is {SKIP}."
    whole_number(skip, "skip", 0, cure=cure)


def check_lengths(run: Any, skip: int) -> None:
    """ValueError unless ``skip`` leaves positions of every prompt, and the weights stay.

    The last position is left out, too: so a prompt has more than ``skip`` + 1 tokens.
    """
    lengths = [len(row) for row in run.rows]
    if n_short := sum(length < skip + 2 for length in lengths):
        raise ValueError(
            f"`skip` must leave positions of every prompt; got {skip}, where {n_short} of "
            f"{len(lengths)} prompts have fewer than {skip + 2} tokens. Leave those out, or skip "
            "fewer."
        )
    if run.model.blocks.residence.moves:
        raise ValueError(
            "`definition` must be 'last token' for a model whose weights come and go; got "
            "'published', which differentiates through all layers at once. Load it without "
            "device_map."
        )


@in_shards(added, "published lens")
def published_sums(
    run: Run, wanted: tuple[int, ...], skip: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over prompts of Jacobians (depth, feature_out, feature), and of their squared norms."""
    model = run.model
    model.check_weights()
    like = {"dtype": torch.float64, "device": model.device}
    total = torch.zeros(len(wanted), model.n_features, model.n_features, **like)
    squares = torch.zeros(len(wanted), **like)
    with bar("published lens", len(run), "prompt") as shown:
        for rows in _of_one_length(run.rows):
            hidden = _hidden(model, rows)
            for feature in range(model.n_features):
                for place, row in enumerate(_rows_of(hidden, wanted, skip, feature)):
                    total[place, feature] += row.sum(0)
                    squares[place] += row.square().sum()
            shown.update(len(rows))
    return total, squares


def _of_one_length(rows: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Prompts of the same length together: none is padded."""
    lengths: dict[int, list[list[int]]] = {}
    for row in rows:
        lengths.setdefault(len(row), []).append(row)
    for length, found in sorted(lengths.items()):
        size = max(1, TOKENS // length)
        yield from (found[start : start + size] for start in range(0, len(found), size))


@torch.enable_grad()
def _hidden(model: Any, rows: list[list[int]]) -> list[torch.Tensor]:
    """States (prompt, token, feature) at all depths, each with its way back to the first."""
    calls = model.blocks.calls(rows)
    hidden = [calls.embedded.detach().requires_grad_()]
    for layer in range(model.n_layers):
        hidden.append(model.blocks.sequence(layer, calls, hidden[-1])[0])
    return hidden


def _rows_of(
    hidden: list[torch.Tensor], wanted: tuple[int, ...], skip: int, feature: int
) -> list[torch.Tensor]:
    """One row of every prompt's Jacobian at each depth (prompt, feature), float64."""
    end = hidden[-1]
    positions = slice(skip, end.shape[1] - 1)
    seed = torch.zeros_like(end)
    seed[:, positions, feature] = 1
    sources = [hidden[depth] for depth in wanted]
    found = torch.autograd.grad(end, sources, seed, retain_graph=True)
    return [one[:, positions].double().mean(1) for one in found]
