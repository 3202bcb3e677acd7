"""The Jacobians of the blocks of a run as maps, for all its prompts at once."""

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator

from depthsys.lm.frozen import FrozenBlock, FrozenRun
from depthsys.lm.linearize import Linearisation, as_directions, check_directions
from depthsys.lm.lockstep import Steps
from depthsys.lm.operators import MeanJacobian


class Mapped(Protocol):
    """What a map needs of a run."""

    model: Any
    numbers: list[np.ndarray]

    def __len__(self) -> int: ...
    @property
    def n_layers(self) -> int:
        """L."""
        ...

    @property
    def batches(self) -> Sequence[FrozenRun]:
        """The batches, each with its blocks."""
        ...

    def in_step(
        self, work: Callable[[FrozenRun], Steps[torch.Tensor]]
    ) -> Iterator[tuple[FrozenRun, torch.Tensor]]:
        """Every batch, with what the steps of work on it find."""
        ...


def of_layer(
    run: Mapped,
    layer: int,
    function: Callable[[FrozenBlock, Any], torch.Tensor],
    directions: Any,
) -> torch.Tensor:
    """A function of block ``layer`` and directions, for every prompt: (prompt, ...)."""
    _check_layer(run, layer)
    layer = operator.index(layer)

    def work(batch: FrozenRun, d: Any) -> Steps[torch.Tensor]:
        yield layer
        return function(batch.blocks[layer], d)

    return _of_batches(run, work, directions)


def transition(
    run: Mapped,
    start: int,
    stop: int,
    directions: Any,
    adjoint: bool,
    part: str | Linearisation,
) -> torch.Tensor:
    """See `Run.transition`."""
    if not 0 <= start <= stop <= run.n_layers:
        raise ValueError(
            f"`start` and `stop` must be depths with 0 <= start <= stop <= {run.n_layers}; "
            f"got {start} and {stop}. Use `adjoint=True` to go back."
        )

    def carry(batch: FrozenRun, d: Any) -> Steps[torch.Tensor]:
        layers = range(start, stop)
        d = d.expand(len(batch.prompts), *d.shape[-2:])
        for layer in reversed(layers) if adjoint else layers:
            yield layer
            linear = batch.blocks[layer].linearised(part)
            d = linear.vjp(d) if adjoint else linear.jvp(d)
        return d

    return _of_batches(run, carry, directions)


def linear_operator(
    run: Mapped, layer: int, prompt: int | None, part: str | Linearisation
) -> LinearOperator:
    """See `Run.linear_operator`."""
    _check_layer(run, layer)
    if prompt is not None and not 0 <= prompt < len(run):
        raise ValueError(f"`prompt` must be in 0..{len(run) - 1}; got {prompt}. None is the mean.")
    numbers = range(len(run.numbers))
    if prompt is None:
        blocks = [run.batches[number].blocks[layer] for number in numbers]
    else:
        (number,) = (n for n in numbers if prompt in run.numbers[n])
        blocks = [run.batches[number].blocks[layer].only(prompt)]
    return MeanJacobian(blocks, part)


def _check_layer(run: Mapped, layer: int) -> None:
    if isinstance(layer, float) or not 0 <= layer < run.n_layers:
        raise ValueError(f"`layer` must be in 0..{run.n_layers - 1}; got {layer}. Layers are maps.")


def _of_batches(
    run: Mapped, work: Callable[[FrozenRun, Any], Steps[torch.Tensor]], directions: Any
) -> torch.Tensor:
    """What work finds for every batch and its directions, in the order of the prompts."""
    like = torch.empty(0, dtype=run.model.dtype, device=run.model.device)
    if directions is not None:
        directions = as_directions(directions, like)
        check_directions(directions, len(run), run.model.n_features)

    def of_batch(batch: FrozenRun) -> Steps[torch.Tensor]:
        mine = directions
        if directions is not None and directions.dim() == 3:
            mine = directions[torch.as_tensor(batch.prompts, device=like.device)]
        return work(batch, mine)

    outputs: Any = None
    for batch, result in run.in_step(of_batch):
        rows = torch.as_tensor(batch.prompts, device=like.device)
        if outputs is None:
            outputs = result.new_empty((len(run), *result.shape[1:]))
        outputs[rows] = result
    return outputs
