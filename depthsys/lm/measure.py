"""What the full nonlinear model does when it is pushed: measured gains, played schedules.

All pushes that are wanted of a batch of prompts, at all layers, steps and signs, go through one
replay on the frozen context: each is nominal until its layer and joins there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from depthsys.lm.directions import defined, direction_note, directions, in_inputs_of
from depthsys.lm.every_token import every_token_shifts
from depthsys.lm.frozen import FrozenRun
from depthsys.lm.gains import squeezed
from depthsys.lm.kinds import short
from depthsys.lm.lockstep import Steps
from depthsys.lm.of_run import of_run
from depthsys.lm.positions import After, Positions, checked, decoder, prediction, starts
from depthsys.lm.precision import Arithmetic, wide
from depthsys.lm.readouts import Readout, ReadoutLike, checked_readout
from depthsys.lm.run import Model, Run
from depthsys.lm.shards import along, in_shards
from depthsys.lm.stamp import stamp
from depthsys.ltv.plan import check_pushes_exist, schedule
from depthsys.wording import step_size

# Copies x prompts that are replayed at once, without derivatives.
ROWS = 4096


# Steps that are taken where none is asked for: a fraction of the state's norm, and the paper's.
RELATIVE_EPS = 0.01
ABSOLUTE_EPS = 0.1
# which tokens of a prompt `play` pushes
TOKENS = ("last", "every")


class SmallStepError(ValueError):
    """A step that drowns in the rounding of the states."""


@dataclass(frozen=True)
class Step:
    """How a gain is measured. The gain is per unit of the state, whatever the step.

    Parameters
    ----------
    eps
        Step: with ``relative`` a fraction of the norm of the state, by default 0.01; without, in
        the unit of the state, by default 0.1.
    relative
        Inject ``s = eps ||x_l||`` of each prompt, or ``s = eps``, the same for all.
    difference
        "central", or "forward" for the one-sided ``[y_L(+s v_l) - y_L] / s``.
    """

    eps: float | None = None
    relative: bool = True
    difference: str = "central"

    def __post_init__(self):
        if self.eps is None:
            object.__setattr__(self, "eps", default_eps(self.relative))
        check_eps(self.size)
        if self.difference not in ("central", "forward"):
            raise ValueError(
                "`difference` must be 'central' or 'forward'; got "
                f"{short(self.difference)}. Pick one."
            )

    @property
    def size(self) -> float:
        """``eps`` with its default."""
        return default_eps(self.relative) if self.eps is None else self.eps

    def in_words(self) -> str:
        """The step as one says it."""
        return step_size(self.size, self.relative)


def default_eps(relative: bool) -> float:
    """The step that is taken where none is asked for."""
    return RELATIVE_EPS if relative else ABSOLUTE_EPS


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
    found: list = [_small(step, largest, Arithmetic.of(model)) for step in steps]
    chosen = [i for i, error in enumerate(found) if error is None]
    if not chosen:
        return found
    exists = defined(concept)[:-1][..., None]
    gain = _slopes(run, concept, [steps[i] for i in chosen], readout, norm=norm)
    for place, i in enumerate(chosen):
        values = gain[:, place].swapaxes(2, 3)
        found[i] = _gain_dataset(run, steps[i], reader, values, norm)
        found[i].attrs |= direction_note(concept)
        found[i].attrs["least_step"] = _least(steps[i], largest, Arithmetic.of(model))
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

    held = _held(v, 2 * count * len(steps))
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


@in_shards(along(0), "state norms")
def state_norms(run: Run) -> np.ndarray:
    """Norm of the nominal x_k (prompt, depth)."""
    norm = np.empty((len(run), run.n_layers + 1))
    for prompts, x in run.states_by_batch():
        norm[prompts] = wide(x).norm(dim=-1).T.double().cpu().numpy()
    return norm


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


def check_step(step: Step, model: Model, states_of: Run | None = None) -> None:
    """Refuse a step that drowns in the rounding of the states, before any long work.

    Parameters
    ----------
    step, model
        The step, and the model that it is for.
    states_of
        A run: by its states alone an absolute step can be judged.

    Raises
    ------
    ValueError
        If the step is too small.
    """
    if step.relative or states_of is None:
        check_relative_step(step, Arithmetic.of(model))
        return
    error = _small(step, float(state_norms(states_of)[:, :-1].max()), Arithmetic.of(model))
    if error is not None:
        raise error


def check_relative_step(step: Step, arithmetic: Arithmetic) -> None:
    """`check_step` of a relative step, for which no model is needed; any absolute one passes."""
    error = _small(step, 0.0, arithmetic)
    if error is not None:
        raise error


def _least(step: Step, largest_norm: float, arithmetic: Arithmetic) -> float:
    """The least step that stands above the rounding of the states."""
    return 100 * arithmetic.eps * (1.0 if step.relative else largest_norm)


def _small(step: Step, largest_norm: float, arithmetic: Arithmetic) -> SmallStepError | None:
    least = _least(step, largest_norm, arithmetic)
    if step.size >= least:
        return None
    cure = (
        f"a larger step or {arithmetic.finer}"
        if step.relative
        else f"a larger step, a relative one (`lm.Step()`, `--step relative`) or {arithmetic.finer}"
    )
    where = "" if step.relative else f" (states have norms up to {largest_norm:.3g})"
    return SmallStepError(
        f"`eps` must be well above the rounding of the states; got {step.size:.1e} where "
        f"{least:.1e} is the least in {arithmetic.name}{where}. Use {cure}."
    )


def check_eps(eps: float) -> None:
    """ValueError unless the step is positive and finite."""
    if not (np.isfinite(eps) and eps > 0):
        raise ValueError(
            f"`eps` must be positive and finite; got {eps}. The default is {RELATIVE_EPS:g} of the "
            f"state's norm, or {ABSOLUTE_EPS:g} if absolute."
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


def _held(v: torch.Tensor, n_copies: int) -> int:
    """Bytes per prompt that wait between two layers of a replay: the copies and their pushes."""
    return n_copies * (v.shape[2] + v.shape[0] * v.shape[1]) * v.itemsize


@torch.no_grad()
def deviations(batch: FrozenRun, v: torch.Tensor, step: Step) -> Steps[np.ndarray]:
    """How the states answer a push at each layer and input, per unit of the push.

    Central differences on the full nonlinear model: (prompt, depth, feature, push), float64; zero
    up to the layer of the push.
    """
    norm = wide(batch.x[:-1]).norm(dim=-1).T
    error = _small(step, 0.0 if step.relative else float(norm.max()), batch.arithmetic)
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

    yield from _replay(batch, v, pushes, note)
    # one copy to the host for all depths
    return found.permute(1, 0, 3, 2).cpu().numpy()


def _replay(
    batch: FrozenRun,
    v: torch.Tensor,
    pushes: torch.Tensor,
    note: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
) -> Steps[tuple[torch.Tensor, torch.Tensor]]:
    """States of copies pushed by ``pushes[..., c, l, i] v_li`` at the input of block l.

    ``pushes`` is (copy, layer, input) or (prompt, copy, layer, input). A copy is nominal until its
    first push, so it joins the batch there. ``note`` is told depth 1..L, the numbers of the copies
    that have joined, and their states (prompt, copy, feature); the last ones are found.
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
            yield layer
            x = block((x + pushes[..., copies, layer, :] @ v[layer]).to(x))
            if note is not None:
                note(layer + 1, copies, x)
    return order[: x.shape[1]], x


@torch.no_grad()
def readouts(
    run: Run,
    batch: FrozenRun,
    v: torch.Tensor,
    pushes: torch.Tensor,
    reader: Readout,
    ends: torch.Tensor | None = None,
) -> Steps[np.ndarray]:
    """Readout y_L (prompt, copy, output) when copies are pushed as in `_replay`.

    ``ends`` (copy, input) are pushes behind the last block. Not finite where a push is so large
    that a state overflows.
    """
    size = max(1, batch.blocks[0].replay_rows(ROWS) // batch.x.shape[1])
    if pushes.shape[-3] > size:
        # copies that join late together: their part begins there
        pushed = (pushes != 0).any(-1)
        first = (pushed.any(0) if pushed.dim() > 2 else pushed).int().argmax(-1)
        order = torch.argsort(first, stable=True)
        works = [
            readouts(
                run, batch, v, pushes[..., part, :, :], reader,
                None if ends is None else ends[part],
            )
            for part in order.split(size)
        ]  # fmt: skip
        y = np.concatenate((yield from run.several(works)), axis=1)
        return y[:, torch.argsort(order).cpu().numpy()]
    copies, x = yield from _replay(batch, v, pushes)
    if ends is not None:
        x = x + ends.to(x)[copies.to(x.device)] @ v[-1]
    return reader.values(run.model, x)[:, torch.argsort(copies)].cpu().numpy()


@of_run(once=True, shards=True)
def play(
    run: Run,
    concept: xr.Dataset,
    plan: xr.Dataset | xr.DataArray,
    *,
    scale: Sequence[float] = (1.0,),
    readout: ReadoutLike = "concept",
    tokens: Positions = "last",
) -> xr.Dataset:
    """Play a schedule on the full nonlinear model: what the readout really does.

    Parameters
    ----------
    run
        The prompts; or a model and texts.
    concept
        The directions (depth, feature), or (depth, input, feature).
    plan
        ``u`` (layer, input), or (layer) for one input, from `ltv.minimum_energy` or made by hand;
        alone or in a Dataset. With further dims it holds several schedules, and each is played on
        every prompt. ``u_end`` beside it, as control vectors have it (see
        `export.read_control_vector`), is the push behind the last block.
    scale
        Factors on the whole schedule.
    readout
        See `identify`; of a profile the last depth counts.
    tokens
        Which tokens are pushed: "last", as a plan says; "every" one of the prompt, as llama.cpp,
        repeng and steering-vectors do; or those `After` a marker. For the latter two whole
        sequences run, once for each schedule and factor. "generated" (see `steering`) is "last"
        here: a prompt has no new tokens yet.

    Returns
    -------
    xr.Dataset
        ``response`` (prompt, scale): y_L with the schedule minus y_L without; with a dim output
        where there are several, and the further dims of ``u`` after prompt. attrs ``prediction``:
        whether linear systems predict it.

    Raises
    ------
    ValueError
        If a prompt has no such marker, or ends with it; if the plan does not fit the model and the
        concept.
    FloatingPointError
        If a push is so large that a state overflows.
    """
    tokens = checked(tokens, "tokens")
    n_inputs = directions(run.model, concept).shape[1]
    if isinstance(plan, xr.DataArray):
        plan = plan.to_dataset(name="u")
    if "K" in plan:
        raise ValueError(
            "`plan` must be a schedule here; got a feedback law (`K`), whose pushes depend on the "
            "states. Play it with `lm.play_law`, or its open loop with plan[['u']]."
        )
    plan = in_inputs_of(plan, concept, "plan")
    batch, u = _schedules(plan, run.n_layers, n_inputs)
    exists = defined(concept)[:-1]
    check_pushes_exist(xr.DataArray(u, dims=("schedule", "layer", "input")), exists)
    factors = np.asarray(scale, dtype=np.float64)
    pushes = u[:, None] * factors[:, None, None]
    ends = _ends(plan, batch, n_inputs)
    if ends is not None:
        with np.errstate(over="ignore"):  # an end that overflows is found with the states
            ends = (ends[:, None] * factors[:, None]).reshape(-1, 1)
    given = pushes.reshape(-1, *u.shape[1:])
    response = shifts(run, concept, given, readout, "play", ends, tokens=tokens)
    shape = (len(run), *batch.shape, len(factors), response.shape[-1])
    told = prediction("last" if tokens == "generated" else tokens)
    found = squeezed(response.reshape(shape), "prompt", *map(str, batch.dims), "scale", "output")
    return xr.Dataset(
        {"response": found},
        coords={"scale": factors, **batch.coords},
        attrs=stamp(run, "play") | direction_note(concept) | told | {"tokens": str(tokens)},
    )


def _ends(plan: xr.Dataset, batch: xr.DataArray, n_inputs: int) -> np.ndarray | None:
    """Pushes behind the last block (place, 1), where a plan has them."""
    if "u_end" not in plan:
        return None
    end = plan["u_end"]
    if n_inputs != 1 or not set(end.dims) <= set(batch.dims) or not np.isfinite(end).all():
        raise ValueError(
            "`plan.u_end` must be a finite number for each schedule of one input; got "
            f"{dict(end.sizes)} and {n_inputs} inputs. Leave it out with `plan.drop_vars('u_end')`."
        )
    return end.broadcast_like(batch).transpose(*batch.dims).values.reshape(-1, 1)


def _schedules(plan: xr.Dataset, n_layers: int, n_inputs: int) -> tuple[xr.DataArray, np.ndarray]:
    """The further dims of ``u``, as an array of places, and the schedules (place, layer, input)."""
    whole = plan["u"] if "u" in plan else xr.DataArray(0.0)  # `schedule` refuses it
    inner = {"layer", "input"} & set(whole.dims)
    if "prompt" in whole.dims:
        raise ValueError(
            "`plan` must name its schedules otherwise than the prompts they are played on; got "
            f"{dict(whole.sizes)}. Write plan.rename(prompt='schedule') to play each of them on "
            "every prompt, or select one."
        )
    first = whole.isel(dict.fromkeys(inner, 0), drop=True)
    batch = first.copy(data=np.arange(first.size).reshape(first.shape))
    members = [dict(zip(map(str, batch.dims), at, strict=True)) for at in np.ndindex(batch.shape)]
    chosen = [plan.isel(member, drop=True) for member in members]
    return batch, np.stack([schedule(one, n_layers, n_inputs).values for one in chosen])


def shifts(
    run: Run,
    concept: xr.Dataset,
    pushes: np.ndarray,
    readout: ReadoutLike,
    title: str,
    ends: np.ndarray | None = None,
    *,
    tokens: Positions = "last",
) -> np.ndarray:
    """Shift of y_L (prompt, copy, output) by pushes (copy, layer, input).

    ``ends`` (copy, input) are pushes behind the last block.

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
    last = None
    if ends is not None:
        last = torch.as_tensor(np.append(ends, np.zeros_like(ends[:1]), 0)).to(v)
    if ends is not None and ends.any() and not bool((v[-1] != 0).any()):
        raise ValueError(
            "`plan.u_end` must be zero where the concept has no direction at the last depth; got "
            f"{abs(ends).max():.3g}. Leave it out with `plan.drop_vars('u_end')`."
        )
    if tokens not in ("last", "generated"):
        begins = None if isinstance(tokens, str) else _begins(run, tokens)
        whole = every_token_shifts(run, v, copies, reader, last, begins=begins)
        return _checked(whole, pushes)
    return _checked(_last_token_shifts(run, v, copies, reader, last, title), pushes)


@in_shards(along(0), "play")
def _last_token_shifts(
    run: Run,
    v: torch.Tensor,
    copies: torch.Tensor,
    reader: Readout,
    last: torch.Tensor | None,
    title: str,
) -> np.ndarray:
    """Shift of y_L (prompt, copy, output) of all copies but the last, counted from that one."""
    shift = np.empty((len(run), len(copies) - 1, reader.n_outputs))
    work = lambda batch: readouts(run, batch, v, copies, reader, last)  # noqa: E731
    for batch, y in run.in_step(work, title, held=_held(v, len(copies))):
        with np.errstate(invalid="ignore"):  # the caller finds states that overflow
            shift[batch.prompts] = y[:, :-1] - y[:, -1:]
    return shift


def _begins(run: Run, after: After) -> list[int]:
    """Index of the first pushed token of every prompt; ValueError where none would be pushed."""
    begins = starts(run.rows, after, decoder(run.model.tokenizer))
    for number, (begin, row) in enumerate(zip(begins, run.rows, strict=True)):
        if begin >= len(row):
            raise ValueError(
                f"`tokens` must leave something to push behind the marker; prompt number {number} "
                f"ends with {after.marker!r:.60}. Use 'last', or `generate` within `steering`."
            )
    return begins


def _checked(shift: np.ndarray, pushes: np.ndarray) -> np.ndarray:
    if not np.isfinite(shift).all():
        raise FloatingPointError(
            f"the states must stay finite; a push of size {abs(pushes).max():.1e} overflows. Use a "
            "smaller step or target."
        )
    return shift
