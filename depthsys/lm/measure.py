"""Measured gains: what the full nonlinear model does when it is pushed a little at each layer."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from depthsys.lm.directions import defined, direction_note, directions
from depthsys.lm.frozen import FrozenRun
from depthsys.lm.gains import squeezed
from depthsys.lm.kinds import short
from depthsys.lm.lockstep import Steps
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import Arithmetic, wide
from depthsys.lm.readouts import Readout, ReadoutLike, checked_readout
from depthsys.lm.replay import held_bytes, readouts, replay
from depthsys.lm.run import Run
from depthsys.lm.shards import along, in_shards
from depthsys.lm.stamp import stamp
from depthsys.lm.step import SmallStepError, Step, least_step, small_step, state_norms


@of_run(once=False, shards=True)  # it looks at the states before it replays
def measure_gains(
    run: Run,
    concept: xr.Dataset,
    *,
    eps: float | None = None,
    relative: bool = True,
    difference: str = "central",
    readout: ReadoutLike = "concept",
) -> xr.Dataset:
    r"""Measured gain of every layer and prompt on the full nonlinear model.

    ``g_l = [y_L(+s v_l) - y_L(-s v_l)] / (2 s)`` with the injection at the input of block l.
    All layers and signs of a batch of prompts go through the frozen-context replay together; an
    injection joins at its layer.

    Parameters
    ----------
    run
        The prompts; or a model and texts.
    concept
        ``direction`` (depth, feature), or (depth, input, feature).
    eps, relative, difference
        See `Step`: by default s is 1 % of the norm of each prompt's state at that layer.
    readout
        See `identify`; of a profile the last depth counts.

    Returns
    -------
    xr.Dataset
        ``gain`` (prompt, layer): unit of the readout per unit of the state; with the further dims
        output and input where there are several; NaN where there is no direction.
        ``state_norm`` (prompt, layer): norm of the nominal x_l, by which a gain is to be multiplied
        for the one per fraction of the state. attrs ``least_step``: below it rounding would show.

    Raises
    ------
    ValueError
        If ``eps`` is not positive and finite, or drowns in the rounding of the states; if a state
        has no length for a relative step.

    Notes
    -----
    Hugging Face computes norms, softmax or rotary tables of most families in float32 even in a
    float64 model: keep ``eps`` above 1e-3 of the norm of the states there too.
    """
    return measure_gains_at(run, concept, [Step(eps, relative, difference)], readout=readout)[0]


@of_run(once=False, shards=True)  # it looks at the states before it replays
def measure_gains_at(
    run: Run, concept: xr.Dataset, steps: Sequence[Step], *, readout: ReadoutLike = "concept"
) -> list[xr.Dataset]:
    """`measure_gains` at several steps, in one replay of the prompts.

    Parameters
    ----------
    run
        The prompts; or a model and texts.
    concept, readout
        See `measure_gains`.
    steps
        The steps.

    Returns
    -------
    list of xr.Dataset
        One for each step, as from `measure_gains`.

    Raises
    ------
    ValueError
        If a step drowns in the rounding of the states; before anything is replayed.
    FloatingPointError
        If a push is so large that a state overflows.
    """
    found = measured(run, concept, steps, readout)
    for one in found:
        if isinstance(one, Exception):
            raise one
    return [one for one in found if isinstance(one, xr.Dataset)]


def measured(
    run: Run, concept: xr.Dataset, steps: Sequence[Step], readout: ReadoutLike
) -> list[xr.Dataset | SmallStepError | FloatingPointError]:
    """`measure_gains_at`, with the error of a step in its place."""
    if not isinstance(steps, Sequence) or not all(isinstance(step, Step) for step in steps):
        raise TypeError(
            f"`steps` must be a list of lm.Step; got {short(steps)}. Write [lm.Step(0.1)]."
        )
    model = run.model
    reader = checked_readout(model, readout, concept)
    known = torch.as_tensor(defined(concept)[:-1]).any(-1)
    norm = state_norms(run)[:, :-1]
    largest = float(norm[:, known.numpy()].max(initial=0.0))
    if any(step.relative for step in steps):
        _check_lengths(norm, known.numpy())
    found: list = [small_step(step, largest, Arithmetic.of(model)) for step in steps]
    chosen = [i for i, error in enumerate(found) if error is None]
    if not chosen:
        return found
    exists = defined(concept)[:-1][..., None]
    gain = _slopes(run, concept, [steps[i] for i in chosen], readout, norm=norm)
    for place, i in enumerate(chosen):
        values = gain[:, place].swapaxes(2, 3)
        found[i] = _gain_dataset(run, steps[i], reader, values, norm)
        found[i].attrs |= direction_note(concept)
        found[i].attrs["least_step"] = least_step(steps[i], largest, Arithmetic.of(model))
        if not np.isfinite(np.where(exists.swapaxes(1, 2), values, 0.0)).all():
            found[i] = FloatingPointError(
                f"the states must stay finite; a push of {steps[i].in_words()} overflows. Use a "
                "smaller step or target."
            )
    return found


@in_shards(along(0), "measured gains")
def _slopes(
    run: Run, concept: xr.Dataset, steps: Sequence[Step], readout: ReadoutLike, *, norm: np.ndarray
) -> np.ndarray:
    """Gains (prompt, step, layer, input, output), the norms of the states being (prompt, layer)."""
    model = run.model
    v = directions(model, concept)
    reader = checked_readout(model, readout, concept)
    one_each = _one_each(model.n_layers, v)
    count = len(one_each)
    gain = np.empty((len(run), len(steps), model.n_layers, v.shape[1], reader.n_outputs))
    exists = defined(concept)[:-1][..., None]

    def work(batch: FrozenRun) -> Steps[list[np.ndarray]]:
        size = wide(batch.x[:-1]).norm(dim=-1).T[:, None, :, None]
        pushes = [_pushes_of(step, one_each, size) for step in steps]
        y = yield from readouts(run, batch, v, torch.cat(pushes, dim=1), reader)
        return np.split(y, np.cumsum([p.shape[1] for p in pushes])[:-1], axis=1)

    held = held_bytes(v, 2 * count * len(steps))
    for batch, ends in run.in_step(work, "measured gains", held=held):
        lengths = norm[batch.prompts][:, :, None, None]
        for place, (step, part) in enumerate(zip(steps, ends, strict=True)):
            central = step.difference == "central"
            with np.errstate(invalid="ignore"):  # the caller finds states that overflow
                slope = (part[:, :count] - part[:, count:]) / (1 + central) / step.size
            slope = slope.reshape(-1, *gain.shape[2:])
            slope = slope / lengths if step.relative else slope
            gain[batch.prompts, place] = np.where(exists, slope, np.nan)
    return gain


def _check_lengths(norm: np.ndarray, known: np.ndarray) -> None:
    """ValueError for a state (prompt, layer) of length zero: no fraction of it is a step."""
    none = np.argwhere((norm == 0) & known)
    if len(none):
        prompt, layer = none[0]
        raise ValueError(
            "`prompts` must have states with a length where a step is relative to it; got zero "
            f"for number {prompt} at layer {layer} (a padding token, for one). Leave that prompt "
            "out, or take an absolute step (`relative=False`)."
        )


def _gain_dataset(
    run: Run, step: Step, reader: Readout, gain: np.ndarray, norm: np.ndarray
) -> xr.Dataset:
    return xr.Dataset(
        {
            "gain": squeezed(gain, "prompt", "layer", "output", "input"),
            "state_norm": (("prompt", "layer"), norm),
        },
        coords={"layer": np.arange(run.n_layers)},
        attrs={
            **stamp(run, "measure_gains"),
            "kind": "measured",
            "step": step.size,
            "relative": int(step.relative),
            "difference": step.difference,
            "readout": reader.name,
        },
    )


def _one_each(n_layers: int, v: torch.Tensor) -> torch.Tensor:
    """A unit push at every layer and input in turn: (copy, layer, input)."""
    return torch.eye(n_layers * v.shape[1]).to(v).unflatten(1, (n_layers, v.shape[1]))


def _pushes_of(step: Step, one_each: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Pushes (prompt, copy, layer, input) of one step."""
    # the last copy of a forward difference is never pushed: it is the nominal run
    ends = torch.zeros_like(one_each[:1]) if step.difference == "forward" else -one_each
    pushes = step.size * torch.cat([one_each, ends])
    return pushes * size if step.relative else pushes.expand(len(size), -1, -1, -1)


@torch.no_grad()
def deviations(batch: FrozenRun, v: torch.Tensor, step: Step) -> Steps[np.ndarray]:
    """How the states answer a push at each layer and input, per unit of the push.

    Central differences on the full nonlinear model: (prompt, depth, feature, push), float64; zero
    up to the layer of the push.
    """
    norm = wide(batch.x[:-1]).norm(dim=-1).T
    error = small_step(step, 0.0 if step.relative else float(norm.max()), batch.arithmetic)
    if error is not None:
        raise error
    n_layers, n_features = len(batch.blocks), v.shape[2]
    one_each = _one_each(n_layers, v)
    pushes = _pushes_of(Step(step.eps, step.relative), one_each, norm[:, None, :, None])
    size = (step.size * (norm if step.relative else torch.ones_like(norm))).double()
    # (prompt, push): the length of each push
    lengths = size.repeat_interleave(v.shape[1], dim=1)
    # of both signs: the nominal parts of the two copies cancel
    scale = torch.cat([0.5 / lengths, -0.5 / lengths], dim=1)[..., None]
    shape = (n_layers + 1, batch.x.shape[1], len(one_each), n_features)
    found = torch.zeros(shape, dtype=torch.float64, device=batch.x.device)

    def note(depth: int, copies: torch.Tensor, x: torch.Tensor) -> None:
        copies = copies.to(x.device)
        found[depth].index_add_(1, copies % len(one_each), scale[:, copies] * x)

    yield from replay(batch, v, pushes, note)
    # one copy to the host for all depths
    return found.permute(1, 0, 3, 2).cpu().numpy()
