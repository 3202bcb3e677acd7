"""Gains of pushes at every token of a prompt on its last token: from depth to depth x position."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from depthsys.lm.directions import defined, direction_note, directions
from depthsys.lm.every_token import every_token_shifts
from depthsys.lm.gains import squeezed
from depthsys.lm.hf.blocks import Blocks
from depthsys.lm.hf.calls import Calls
from depthsys.lm.kinds import short
from depthsys.lm.linearize import Linearisation
from depthsys.lm.lockstep import Steps, driven, together
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import Arithmetic, wide
from depthsys.lm.progress import bar
from depthsys.lm.readouts import Readout, ReadoutLike, checked_readout
from depthsys.lm.run import Run
from depthsys.lm.shards import along, in_shards
from depthsys.lm.stamp import stamp
from depthsys.lm.step import Step, small_step
from depthsys.lm.switch import check_graph, products_in
from depthsys.lm.token_states import hidden_by_batch
from depthsys.ltv.system import is_whole, whole_number

# Where really pushing is compared with derivatives unless told otherwise.
LAGS = (0, 1, 2, 4, 8)
_BY_TOKEN = ("prompt", "layer", "lag")
# which prompts of a batch, their first token behind the padding, how blocks are called on them
_Part = tuple[slice | torch.Tensor, int, Calls]


@of_run(once=True, shards=True)
def token_gains(
    run: Run,
    concept: xr.Dataset,
    *,
    readout: ReadoutLike = "concept",
    n_lags: int | None = None,
) -> xr.Dataset:
    r"""Exact linear gain of pushes at every layer and token on the last token's readout.

    Experimental. With the hidden states :math:`h_l` (token, feature) of a whole sequence of T
    tokens, :math:`h_{l+1} = F_l(h_l)`, it is

    .. math:: g_l(\tau) = \frac{\partial y_L}{\partial h_l[T - 1 - \tau]} \, v_l

    where y_L reads the last token and :math:`\tau` is the *lag*: how many tokens before the last
    one the push is. Nothing is frozen: a push at an earlier token reaches the last one through the
    attention of the layers behind it. At lag 0 no token sees it but itself, and the gain is that of
    `linear_gains`.

    Parameters
    ----------
    run
        The prompts; or a model and texts. One with ``tokens="all"`` spares a pass.
    concept
        ``direction`` (depth, feature), or (depth, input, feature); v_l, the same at every token.
    readout
        See `identify`; of a profile the last depth counts.
    n_lags
        How many tokens are looked at, counted from the last one; by default all.

    Returns
    -------
    xr.Dataset
        ``gain`` (prompt, layer, lag), unit of the readout per unit of the state, with the further
        dims output and input where there are several; ``gradient_norm`` (prompt, layer, lag): of
        the derivative of the readout with respect to that state, the gain of the worst direction,
        with a dim output where there are several; ``state_norm`` (prompt, layer, lag), of the
        nominal state there. NaN where a prompt has no such token, and gains where there is no
        direction. ``n_tokens`` (prompt); ``readout`` (prompt), nominal y_L.

    Raises
    ------
    ValueError
        If ``n_lags`` is no whole number >= 1.
    RuntimeError
        Within ``torch.inference_mode()``.
    FloatingPointError
        If a gain is not finite.

    Notes
    -----
    One sweep back over whole sequences: every block is evaluated once more at the kept states, and
    differentiated once for each output. Memory is that of one block's graph for one batch, and the
    carried gradients. Where the states are not kept, a batch is prefilled first, and its states at
    all depths are there meanwhile.
    """
    check_graph()
    reader = checked_readout(run.model, readout, concept)
    longest = max(map(len, run.rows))
    if n_lags is not None:
        n_lags = whole_number(n_lags, "n_lags", cure="None looks at all tokens.")
    n_lags = longest if n_lags is None else min(n_lags, longest)
    gain, gradient, norm, value = _gains_of(run, concept, readout, n_lags)
    exists = _exists(run, n_lags)
    if not all(np.isfinite(a.swapaxes(1, 2)[exists]).all() for a in (gradient, norm)):
        raise FloatingPointError(
            "gains must be finite; got nan or inf, a derivative that overflows. Load the model in "
            "float32 or float64."
        )
    known = np.where(defined(concept)[:-1], 1.0, np.nan)[:, None, None]
    n_tokens = np.array([len(row) for row in run.rows])
    return xr.Dataset(
        {
            "gain": squeezed(gain * known, *_BY_TOKEN, "output", "input"),
            "gradient_norm": squeezed(gradient, *_BY_TOKEN, "output"),
            "state_norm": (_BY_TOKEN, norm),
            "n_tokens": ("prompt", n_tokens),
            "readout": squeezed(value, "prompt", "output"),
        },
        coords={"layer": np.arange(run.n_layers), "lag": np.arange(n_lags)},
        attrs={
            **stamp(run, "token_gains"),
            "kind": "exact linear, whole sequences",
            "readout": reader.name,
            **Linearisation().attrs,
            **direction_note(concept),
        },
    )


def _exists(run: Run, n_lags: int) -> np.ndarray:
    """Whether a prompt has a token (prompt, lag)."""
    return np.arange(n_lags) < np.array([len(row) for row in run.rows])[:, None]


@in_shards(along(0), "token gains")
def _gains_of(
    run: Run, concept: xr.Dataset, readout: ReadoutLike, n_lags: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gains (prompt, layer, lag, output, input), their norms, states' norms, and readouts."""
    model = run.model
    model.check_weights()
    v = directions(model, concept)
    reader = checked_readout(model, readout, concept)
    shape = (len(run), model.n_layers, n_lags, reader.n_outputs)
    gain, gradient = np.full((*shape, v.shape[1]), np.nan), np.full(shape, np.nan)
    norm, value = np.full(shape[:3], np.nan), np.empty((len(run), reader.n_outputs))
    sizes = [run.token_bytes(number) * (1 + reader.n_outputs) for number in range(len(run.numbers))]
    with bar("token gains", len(run), "prompt") as shown:
        for group in run.in_step_groups(sizes):
            works = [_of_batch(run, number, v, reader, n_lags) for number in group]
            found = driven(model.blocks, together(works))
            run.check_finite()
            for number, (gains, norms, states, last) in zip(group, found, strict=True):
                prompts, n_here = run.numbers[number], gains.shape[2]
                gain[prompts, :, :n_here] = gains
                gradient[prompts, :, :n_here] = norms
                norm[prompts, :, :n_here] = states
                with torch.no_grad():
                    value[prompts] = reader.values(model, last)[:, 0].cpu().numpy()
                shown.update(len(prompts))
    missing = np.broadcast_to(~_exists(run, n_lags)[:, None], norm.shape)
    for array in (gain, gradient, norm):
        array[missing] = np.nan
    return gain, gradient, norm, value


def _of_batch(
    run: Run, number: int, v: torch.Tensor, reader: Readout, n_lags: int
) -> Steps[tuple[np.ndarray, np.ndarray, np.ndarray, torch.Tensor]]:
    """Gains, norms of gradients and of states, all by (prompt, layer, lag), and x_L."""
    hidden = yield from run.hidden_steps(number)
    parts = _going_back_together(run, number)
    last = hidden[-1][:, -1:]
    rows = reader.rows_at(run.model, last[:, 0])[-1]
    # (output, prompt, token, feature): only the last token is read
    carried = torch.zeros(rows.shape[1], *hidden[-1].shape, dtype=last.dtype, device=last.device)
    carried[:, :, -1] = rows.transpose(0, 1)
    found = []
    for layer in reversed(range(run.n_layers)):
        yield layer
        here = hidden[layer]
        carried = _pulled_back(run.model.blocks, layer, parts, here, carried)
        seen = wide(carried[:, :, -n_lags:].flip(2))
        gains = (seen @ v[layer].to(seen).mT).double()
        norms, states = seen.norm(dim=-1).double(), wide(here[:, -n_lags:].flip(1)).norm(dim=-1)
        # one copy to the host for all layers
        found.append((gains.movedim(0, 2), norms.movedim(0, 2), states.double()))
    gain, gradient, norm = (
        torch.stack(part[::-1], dim=1).cpu().numpy() for part in zip(*found, strict=True)
    )
    return gain, gradient, norm, last


def _going_back_together(run: Run, number: int) -> list[_Part]:
    """The prompts of a batch: all of them, or those of one length without their padding."""
    blocks, prompts = run.model.blocks, run.numbers[number]
    calls = run.calls_of(number).without_embedding()
    if calls.real is None or not (blocks.runs_eager and run.model.dtype == torch.float64):
        return [(slice(None), 0, calls)]
    # in float64 the mask of a token of padding overflows in eager attention: NaN, which forwards
    # stays where it is, but comes back into the keys that the others see
    lengths = np.array([len(run.rows[i]) for i in prompts])
    parts: list[_Part] = []
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        alone = blocks.calls([run.rows[i] for i in prompts[places]]).without_embedding()
        rows = torch.as_tensor(places, device=run.model.device)
        parts.append((rows, calls.n_tokens - int(length), alone))
    return parts


def _pulled_back(
    blocks: Blocks, layer: int, parts: list[_Part], hidden: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Transposed products of one block on whole sequences: rows (output, prompt, token, feature).

    The graph is that of this block alone and goes when the products are made.
    """
    off = torch.autocast(hidden.device.type, enabled=False)
    found = torch.zeros_like(rows)
    with products_in(blocks.products), torch.enable_grad(), off:
        for prompts, first, calls in parts:
            # a copy: states of a prefill within torch.inference_mode() take no gradient
            x = hidden[prompts, first:].detach().clone().requires_grad_()
            after = blocks.sequence(layer, calls, x)[0]
            for output, row in enumerate(rows[:, prompts, first:]):
                (back,) = torch.autograd.grad(after, x, row, retain_graph=True)
                found[output, prompts, first:] = back
    return found


# ------------------------------------------------------------------------------- really pushing


@of_run(once=True, shards=True)
def measure_token_gains(
    run: Run,
    concept: xr.Dataset,
    *,
    lags: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    step: Step | None = None,
    readout: ReadoutLike = "concept",
) -> xr.Dataset:
    r"""What a push at one token really does to the last token's readout, on the full model.

    Experimental. Central differences of whole sequences, pushed at a single layer and token:
    nothing is frozen and nothing linearised. For a few lags and layers: each costs two passes.

    Parameters
    ----------
    run
        The prompts; or a model and texts. One with ``tokens="all"`` spares a pass.
    concept
        ``direction`` (depth, feature), or (depth, input, feature).
    lags
        How many tokens before the last one the push is; by default those of 0, 1, 2, 4, 8 that the
        longest prompt has.
    layers
        At whose inputs; by default all.
    step
        See `Step`; relative to the state that is pushed, of each prompt, by default. Central.
    readout
        See `identify`; of a profile the last depth counts.

    Returns
    -------
    xr.Dataset
        ``gain`` and ``state_norm`` (prompt, layer, lag), as from `token_gains`.

    Raises
    ------
    ValueError
        If there is no such layer, a lag is no whole number >= 0 or longer than all prompts, a step
        drowns in the rounding of the states or is one-sided, or a state has no length for it.
    FloatingPointError
        If a push is so large that a state overflows.
    """
    step = Step() if step is None else step
    if not isinstance(step, Step):
        raise TypeError(f"`step` must be a Step; got {short(step)}. Write lm.Step(eps).")
    model, reader = run.model, checked_readout(run.model, readout, concept)
    longest = max(map(len, run.rows))
    if step.difference != "central":
        raise ValueError(
            f"`step` must be central here; got {short(step.difference)}. Write lm.Step(eps)."
        )
    cure = f"The longest prompt has {longest} tokens."
    given = [lag for lag in LAGS if lag < longest] if lags is None else _listed(lags)
    lags = [whole_number(lag, "lags", 0, cure=cure) for lag in given]
    if not lags or max(lags) >= longest or len(set(lags)) < len(lags):
        raise ValueError(
            f"`lags` must be different numbers below {longest}, the tokens of the longest prompt; "
            f"got {short(lags)}. Leave the others out."
        )
    chosen = [*range(model.n_layers)] if layers is None else _listed(layers)
    known = all(is_whole(layer) and 0 <= layer < model.n_layers for layer in chosen)
    if not chosen or len(set(chosen)) < len(chosen) or not known:
        raise ValueError(
            f"`layers` must be different numbers in 0..{model.n_layers - 1}; got {short(layers)}. "
            "None takes all."
        )
    norm = _state_norms(run, max(lags) + 1)[:, chosen][:, :, lags]
    _check_step(step, norm, Arithmetic.of(model))
    v = directions(model, concept)
    starts = np.array([len(row) for row in run.rows])
    gain = np.empty((*norm.shape, reader.n_outputs, v.shape[1]))
    pushes = _one_each(chosen, model.n_layers, v)
    for place, lag in enumerate(lags):
        size = np.nan_to_num(norm[:, :, place]) if step.relative else np.ones(norm.shape[:2])
        size = step.size * np.repeat(size, v.shape[1], axis=1)
        factors = np.concatenate([size, -size, np.zeros((len(run), 1))], axis=1)
        # where a prompt has no such token, nothing is pushed
        begins = np.where(lag < starts, starts - 1 - lag, longest)
        y = every_token_shifts(run, v, pushes, reader, None, True, begins=begins, factors=factors)
        count = size.shape[1]
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = (y[:, :count] - y[:, count:]) / (2 * size[:, :, None])
        gain[:, :, place] = slope.reshape(len(run), len(chosen), v.shape[1], -1).swapaxes(2, 3)
    missing = np.broadcast_to(np.isnan(norm), norm.shape)
    if not np.isfinite(gain[~missing]).all():
        raise FloatingPointError(
            f"the states must stay finite; a push of {step.in_words()} overflows. Use a smaller "
            "step."
        )
    gain[missing] = np.nan
    known = np.where(defined(concept)[chosen], 1.0, np.nan)[:, None, None]
    return xr.Dataset(
        {
            "gain": squeezed(gain * known, *_BY_TOKEN, "output", "input"),
            "state_norm": (_BY_TOKEN, norm),
        },
        coords={"layer": chosen, "lag": lags},
        attrs={
            **stamp(run, "measure_token_gains"),
            "kind": "measured, whole sequences",
            "step": step.size,
            "relative": int(step.relative),
            "readout": reader.name,
            **direction_note(concept),
        },
    )


def _listed(given: int | Sequence[int]) -> list[int]:
    return [given] if is_whole(given) else list(given)  # pyright: ignore[reportArgumentType]


@in_shards(along(0), "state norms")
@torch.no_grad()
def _state_norms(run: Run, n_lags: int) -> np.ndarray:
    """Norms of nominal states (prompt, layer, lag), NaN where a prompt has no such token."""
    run.model.check_weights()
    norm = np.full((len(run), run.n_layers, n_lags), np.nan)
    for number, hidden in hidden_by_batch(run):
        layers = (wide(hidden[layer][:, -n_lags:].flip(1)) for layer in range(run.n_layers))
        here = torch.stack([x.norm(dim=-1) for x in layers], dim=1).double().cpu().numpy()
        norm[run.numbers[number], :, : here.shape[2]] = here
    norm[np.broadcast_to(~_exists(run, n_lags)[:, None], norm.shape)] = np.nan
    return norm


def _one_each(layers: Sequence[int], n_layers: int, v: torch.Tensor) -> torch.Tensor:
    """Unit pushes (copy, layer, input) of every layer and input in turn, twice, then none."""
    n_inputs = v.shape[1]
    each = torch.eye(n_layers * n_inputs).to(v).unflatten(1, (n_layers, n_inputs))
    one = each.unflatten(0, (n_layers, n_inputs))[list(layers)].flatten(0, 1)
    return torch.cat([one, one, torch.zeros_like(one[:1])])


def _check_step(step: Step, norm: np.ndarray, arithmetic: Arithmetic) -> None:
    """ValueError for a step that drowns, or a state of no length to which it is relative."""
    error = small_step(step, float(np.nanmax(norm)), arithmetic)
    if error is not None:
        raise error
    none = np.argwhere(norm == 0)
    if step.relative and len(none):
        raise ValueError(
            "`prompts` must have states with a length where a step is relative to it; got zero for "
            f"number {none[0][0]}. Leave that prompt out, or take lm.Step(relative=False)."
        )
