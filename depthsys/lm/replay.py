"""Pushes on the frozen context, replayed with the full nonlinear model; schedules that are played.

All pushes that are wanted of a batch of prompts, at all layers, steps and signs, go through one
replay on the frozen context: each is nominal until its layer and joins there.
"""

from collections.abc import Callable, Sequence

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
from depthsys.lm.readouts import Readout, ReadoutLike, checked_readout
from depthsys.lm.run import Run
from depthsys.lm.shards import along, in_shards
from depthsys.lm.stamp import stamp
from depthsys.ltv.plan import check_pushes_exist, schedule

# Copies x prompts that are replayed at once, without derivatives.
ROWS = 4096
# which tokens of a prompt `play` pushes
TOKENS = ("last", "every")


def held_bytes(v: torch.Tensor, n_copies: int) -> int:
    """Bytes per prompt that wait between two layers of a replay: the copies and their pushes."""
    return n_copies * (v.shape[2] + v.shape[0] * v.shape[1]) * v.itemsize


def replay(
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
    """Readout y_L (prompt, copy, output) when copies are pushed as in `replay`.

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
    copies, x = yield from replay(batch, v, pushes)
    if ends is not None:
        x = x + ends.to(x)[copies.to(x.device)] @ v[-1]
    return reader.values(run.model, x)[:, torch.argsort(copies)].cpu().numpy()


@of_run(once=True, shards=True)
def play(
    run: Run,
    concept: xr.Dataset,
    plan: xr.Dataset | xr.DataArray,
    *,
    scale: float | Sequence[float] = (1.0,),
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
    factors = np.atleast_1d(np.asarray(scale, dtype=np.float64))
    if factors.ndim != 1 or not factors.size or not np.isfinite(factors).all():
        raise ValueError(
            f"`scale` must be finite numbers; got {short(scale)}. Write scale=[0.5, 1.0]."
        )
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
        found = every_token_shifts(run, v, copies, reader, last, begins=begins)
        if not np.isfinite(found).all():
            list(run.states_by_batch())  # refuses nominal states, which nothing has looked at yet
        return _checked(found, pushes)
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
    for batch, y in run.in_step(work, title, held=held_bytes(v, len(copies))):
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
