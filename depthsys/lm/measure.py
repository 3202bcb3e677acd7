"""What the full nonlinear model does when it is pushed: measured gains, played schedules.

All pushes that are wanted of a batch of prompts, at all layers, steps and signs, go through one
replay on the frozen context: each is nominal until its layer and joins there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from depthsys.lm.directions import directions
from depthsys.lm.frozen import FrozenRun
from depthsys.lm.gains import squeezed
from depthsys.lm.kinds import short
from depthsys.lm.of_run import of_run
from depthsys.lm.readouts import Readout, ReadoutLike, checked_readout
from depthsys.lm.run import Run
from depthsys.lm.stamp import stamp
from depthsys.ltv.plan import schedule

# Copies x prompts that are replayed at once, without derivatives.
ROWS = 4096


class SmallStepError(ValueError):
    """A step that drowns in the rounding of the states."""


@dataclass(frozen=True)
class Step:
    """How a gain is measured.

    Parameters
    ----------
    eps
        Step, in the unit of the state; with ``relative`` a fraction of its norm.
    relative
        Inject ``s = eps ||x_l||`` of each prompt instead of ``s = eps``.
    difference
        "central", or "forward" for the one-sided ``[y_L(+s v_l) - y_L] / eps``.
    """

    eps: float = 0.1
    relative: bool = False
    difference: str = "central"

    def __post_init__(self):
        check_eps(self.eps)
        if self.difference not in ("central", "forward"):
            raise ValueError(
                "`difference` must be 'central' or 'forward'; got "
                f"{short(self.difference)}. Pick one."
            )


@of_run(once=False)  # it looks at the states before it replays
def measure_gains(
    run: Run,
    concept: xr.Dataset,
    *,
    eps: float = 0.1,
    relative: bool = False,
    difference: str = "central",
    readout: ReadoutLike = "concept",
) -> xr.Dataset:
    r"""Measured gain of every layer and prompt on the full nonlinear model.

    ``g_l = [y_L(+s v_l) - y_L(-s v_l)] / (2 eps)`` with the injection at the input of block l.
    All layers and signs of a batch of prompts go through the frozen-context replay together; an
    injection joins at its layer.

    Parameters
    ----------
    run
        The prompts; or a model and texts.
    concept
        ``direction`` (depth, feature), or (depth, input, feature).
    eps
        Step, in the unit of the state; with ``relative`` a fraction of its norm.
    relative
        Inject ``s = eps ||x_l||`` of each prompt instead of ``s = eps``.
    difference
        "central", or "forward" for the one-sided ``[y_L(+s v_l) - y_L] / eps``.
    readout
        See `identify`; of a profile the last depth counts.

    Returns
    -------
    xr.Dataset
        ``gain`` (prompt, layer): unit of the readout per unit of the state, or per fraction of
        the state's norm with ``relative``; with the further dims output and input where there are
        several.

    Raises
    ------
    ValueError
        If ``eps`` is not positive and finite.

    Notes
    -----
    Hugging Face computes norms, softmax or rotary tables of most families in float32 even in a
    float64 model: keep ``eps`` above 1e-3 of the norm of the states there too.
    """
    return measure_gains_at(run, concept, [Step(eps, relative, difference)], readout=readout)[0]


@of_run(once=False)  # it looks at the states before it replays
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
    v = directions(model, concept)
    reader = checked_readout(model, readout, concept)
    largest = max(float(x[:-1].norm(dim=-1).max()) for _, x in run.states_by_batch())
    found: list = [_small(step, largest, model.dtype) for step in steps]
    chosen = [i for i, error in enumerate(found) if error is None]
    if not chosen:
        return found
    one_each = _one_each(model.n_layers, v)
    count = len(one_each)
    shape = (len(run), len(chosen), model.n_layers, v.shape[1], reader.n_outputs)
    gain = np.empty(shape)
    for batch in run.stream("measured gains"):
        size = batch.x[:-1].norm(dim=-1).T[:, None, :, None]
        pushes = [_pushes_of(steps[i], one_each, size) for i in chosen]
        y = readouts(model, batch, v, torch.cat(pushes, dim=1), reader)
        ends = np.split(y, np.cumsum([p.shape[1] for p in pushes])[:-1], axis=1)
        for place, (i, part) in enumerate(zip(chosen, ends, strict=True)):
            central = steps[i].difference == "central"
            with np.errstate(invalid="ignore"):  # states that overflow are found below
                slope = (part[:, :count] - part[:, count:]) / (1 + central) / steps[i].eps
            gain[batch.prompts, place] = slope.reshape(-1, *shape[2:])
    for place, i in enumerate(chosen):
        values = gain[:, place].swapaxes(2, 3)
        found[i] = _gain_dataset(run, steps[i], reader, values)
        if not np.isfinite(values).all():
            found[i] = FloatingPointError(
                f"the states must stay finite; a push of size {steps[i].eps:.1e} overflows. Use a "
                "smaller step or target."
            )
    return found


def _gain_dataset(run: Run, step: Step, reader: Readout, gain: np.ndarray) -> xr.Dataset:
    return xr.Dataset(
        {"gain": squeezed(gain, "prompt", "layer", "output", "input")},
        coords={"layer": np.arange(run.n_layers)},
        attrs={
            **stamp(run, "measure_gains"),
            "kind": "measured",
            "step": step.eps,
            "relative": int(step.relative),
            "difference": step.difference,
            "readout": reader.name,
        },
    )


def check_step(step: Step, largest_norm: float, dtype: torch.dtype) -> None:
    """Refuse a step that drowns in the rounding of the states."""
    error = _small(step, largest_norm, dtype)
    if error is not None:
        raise error


def _small(step: Step, largest_norm: float, dtype: torch.dtype) -> SmallStepError | None:
    least = 100 * torch.finfo(dtype).eps * (1.0 if step.relative else largest_norm)
    if step.eps >= least:
        return None
    return SmallStepError(
        f"`eps` must be well above the rounding of the states; got {step.eps:.1e} where "
        f"{least:.1e} is the least in {str(dtype).removeprefix('torch.')}. Use a larger "
        "step or float64."
    )


def check_eps(eps: float) -> None:
    """ValueError unless the step is positive and finite."""
    if not (np.isfinite(eps) and eps > 0):
        raise ValueError(f"`eps` must be positive and finite; got {eps}. The default is 0.1.")


def _one_each(n_layers: int, v: torch.Tensor) -> torch.Tensor:
    """A unit push at every layer and input in turn: (copy, layer, input)."""
    return torch.eye(n_layers * v.shape[1]).to(v).unflatten(1, (n_layers, v.shape[1]))


def _pushes_of(step: Step, one_each: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Pushes (prompt, copy, layer, input) of one step."""
    # the last copy of a forward difference is never pushed: it is the nominal run
    ends = torch.zeros_like(one_each[:1]) if step.difference == "forward" else -one_each
    pushes = step.eps * torch.cat([one_each, ends])
    return pushes * size if step.relative else pushes.expand(len(size), -1, -1, -1)


def deviations(batch: FrozenRun, v: torch.Tensor, eps: float) -> np.ndarray:
    """How the states answer a push at each layer and input, per unit of the push.

    Central differences with the step ``eps`` on the full nonlinear model: (prompt, depth, feature,
    push), float64; zero up to the layer of the push.
    """
    check_step(Step(eps), float(batch.x[:-1].norm(dim=-1).max()), batch.x.dtype)
    n_layers, n_features = len(batch.blocks), v.shape[2]
    one_each = _one_each(n_layers, v)
    shape = (batch.x.shape[1], n_layers + 1, n_features, len(one_each))
    found = np.zeros(shape)
    with torch.no_grad():
        for depth, copies, x in _replay(batch, v, eps * torch.cat([one_each, -one_each])):
            signs = torch.where(copies < len(one_each), 1.0, -1.0).to(x.device, torch.float64)
            # both copies of a push have joined by now; their nominal parts cancel
            half = signs[:, None] * x.double() / (2 * eps)
            at = (copies % len(one_each)).cpu().numpy()
            values = np.moveaxis(half.cpu().numpy(), 1, 2)
            for column, push in enumerate(at):
                found[:, depth, :, push] += values[..., column]
    return found


def _replay(
    batch: FrozenRun, v: torch.Tensor, pushes: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """States of copies pushed by ``pushes[..., c, l, i] v_li`` at the input of block l.

    ``pushes`` is (copy, layer, input) or (prompt, copy, layer, input). A copy is nominal until its
    first push, so it joins the batch there. Yields depth 1..L, the numbers of the copies that have
    joined, and their states (prompt, copy, feature).
    """
    n_layers = len(batch.blocks)
    pushed = (pushes != 0).any(-1)
    while pushed.dim() > 2:
        pushed = pushed.any(0)
    # a copy that is never pushed (argmax of zeros is 0) goes through the same replay as the others
    first = pushed.int().argmax(-1)
    order = torch.argsort(first, stable=True)
    starts = torch.bincount(first, minlength=n_layers).cumsum(0).tolist()
    x = batch.x[0][:, None][:, :0]
    for layer, block in enumerate(batch.blocks):
        joining = starts[layer] - x.shape[1]
        x = torch.cat([x, block.x[:, None].expand(-1, joining, -1)], dim=1)
        copies = order[: x.shape[1]]
        if len(copies):
            x = block(x + pushes[..., copies, layer, :] @ v[layer])
            yield layer + 1, copies, x


@torch.no_grad()
def readouts(
    model, batch: FrozenRun, v: torch.Tensor, pushes: torch.Tensor, reader: Readout
) -> np.ndarray:
    """Readout y_L (prompt, copy, output) when copies are pushed as in `_replay`.

    Not finite where a push is so large that a state overflows.
    """
    size = max(1, ROWS // batch.x.shape[1])
    if pushes.shape[-3] > size:
        # copies that join late together: their part begins there
        pushed = (pushes != 0).any(-1)
        first = (pushed.any(0) if pushed.dim() > 2 else pushed).int().argmax(-1)
        order = torch.argsort(first, stable=True)
        parts = pushes[..., order, :, :].split(size, dim=-3)
        y = np.concatenate([readouts(model, batch, v, part, reader) for part in parts], axis=1)
        return y[:, torch.argsort(order).cpu().numpy()]
    *_, (_, copies, x) = _replay(batch, v, pushes)
    return reader.values(model, x)[:, torch.argsort(copies)].cpu().numpy()


@of_run(once=True)
def play(
    run: Run,
    concept: xr.Dataset,
    plan: xr.Dataset,
    *,
    scale: Sequence[float] = (1.0,),
    readout: ReadoutLike = "concept",
) -> xr.Dataset:
    """Play a schedule on the full nonlinear model: what the readout really does.

    Parameters
    ----------
    run
        The prompts; or a model and texts.
    concept
        The directions (depth, feature), or (depth, input, feature).
    plan
        ``u`` (layer, input), or (layer) for one input, from `ltv.minimum_energy` or made by hand.
    scale
        Factors on the whole schedule.
    readout
        See `identify`; of a profile the last depth counts.

    Returns
    -------
    xr.Dataset
        ``response`` (prompt, scale): y_L with the schedule minus y_L without; with a dim output
        where there are several.

    Raises
    ------
    ValueError
        If the plan does not fit the model and the concept.
    FloatingPointError
        If a push is so large that a state overflows.
    """
    n_inputs = directions(run.model, concept).shape[1]
    u = schedule(plan, run.n_layers, n_inputs)
    factors = np.asarray(scale, dtype=np.float64)
    response = shifts(run, concept, u.values * factors[:, None, None], readout, "play")
    return xr.Dataset(
        {"response": squeezed(response, "prompt", "scale", "output")},
        coords={"scale": factors},
        attrs=stamp(run, "play"),
    )


def shifts(
    run: Run, concept: xr.Dataset, pushes: np.ndarray, readout: ReadoutLike, title: str
) -> np.ndarray:
    """Shift of y_L (prompt, copy, output) by pushes (copy, layer, input).

    Raises FloatingPointError if a push is so large that a state overflows.
    """
    model = run.model
    v = directions(model, concept)
    reader = checked_readout(model, readout, concept)
    if pushes.shape[-1] != v.shape[1]:
        raise ValueError(
            f"`schedules` must have the {v.shape[1]} inputs of the concept; got "
            f"{pushes.shape[-1]}. Select one direction: `concept.isel(input=0)`."
        )
    # the appended copy is not pushed: the nominal run through the same replay
    copies = torch.as_tensor(np.concatenate([pushes, np.zeros_like(pushes[:1])])).to(v)
    shift = np.empty((len(run), len(pushes), reader.n_outputs))
    for batch in run.stream(title):
        y = readouts(model, batch, v, copies, reader)
        with np.errstate(invalid="ignore"):  # states that overflow are found below
            shift[batch.prompts] = y[:, :-1] - y[:, -1:]
    if not np.isfinite(shift).all():
        raise FloatingPointError(
            f"the states must stay finite; a push of size {abs(pushes).max():.1e} overflows. Use a "
            "smaller step or target."
        )
    return shift
