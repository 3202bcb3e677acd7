"""What the full nonlinear model does: measured gains, played schedules, energies."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import xarray as xr

from depthsys import ltv
from depthsys.lm.frozen import FrozenRun
from depthsys.lm.linearize import squeezed
from depthsys.lm.model import DepthModel
from depthsys.lm.prompts import Texts
from depthsys.lm.readouts import LogitDifference, Readout, checked_readout

# Copies x prompts that are replayed at once, without derivatives.
ROWS = 4096

ENERGIES = ("absolute", "relative")


def measure_gains(
    model: DepthModel,
    texts: Texts,
    concept: xr.Dataset,
    *,
    eps: float = 0.1,
    relative: bool = False,
    difference: str = "central",
    readout: str | LogitDifference | xr.DataArray = "concept",
) -> xr.Dataset:
    r"""Measured gain of every layer and prompt on the full nonlinear model.

    ``g_l = [y_L(+s v_l) - y_L(-s v_l)] / (2 eps)`` with the injection at the input of block l.
    All layers and signs of a batch of prompts go through the frozen-context replay together; an
    injection joins at its layer.

    Parameters
    ----------
    model, texts
        The model and the prompts.
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
    check_eps(eps)
    if difference not in ("central", "forward"):
        raise ValueError(
            f"`difference` must be 'central' or 'forward'; got {difference!r}. Pick one."
        )
    v = model.directions(concept)
    reader = checked_readout(model, readout, concept)
    one_each = _one_each(model, v)
    # the last copy of a forward difference is never pushed: it is the nominal run
    ends = torch.zeros_like(one_each[:1]) if difference == "forward" else -one_each
    pushes = eps * torch.cat([one_each, ends])
    gain = np.empty((len(texts), model.n_layers, v.shape[1], reader.n_outputs))
    for run in model.stream(texts, "measured gains"):
        _check_step(run, eps, relative)
        size = run.x[:-1].norm(dim=-1).T[:, None, :, None] if relative else 1.0
        y = _readouts(model, run, v, pushes * size, reader)
        width = 2 * eps if difference == "central" else eps
        slope = (y[:, : len(one_each)] - y[:, len(one_each) :]) / width
        gain[run.prompts] = slope.reshape(-1, *gain.shape[1:])
    return xr.Dataset(
        {"gain": squeezed(gain.swapaxes(2, 3), "prompt", "layer", "output", "input")},
        coords={"layer": np.arange(model.n_layers)},
        attrs={
            **model.provenance("measure_gains"),
            "kind": "measured",
            "step": eps,
            "relative": int(relative),
            "difference": difference,
            "readout": reader.name,
            **model.which(texts),
        },
    )


def check_target(target: float) -> None:
    """ValueError unless the wanted shift is finite and not zero."""
    if not (np.isfinite(target) and target != 0):
        raise ValueError(f"`target` must be finite and not zero; got {target}. Give a shift.")


class SmallStepError(ValueError):
    """A step that drowns in the rounding of the states."""


def _check_step(run: FrozenRun, eps: float, relative: bool) -> None:
    """Refuse a step that drowns in the rounding of the states."""
    scale = 1.0 if relative else float(run.x[:-1].norm(dim=-1).max())
    least = 100 * torch.finfo(run.x.dtype).eps * scale
    if eps < least:
        raise SmallStepError(
            f"`eps` must be well above the rounding of the states; got {eps:.1e} where "
            f"{least:.1e} is the least in {str(run.x.dtype).removeprefix('torch.')}. Use a larger "
            "step or float64."
        )


def check_eps(eps: float) -> None:
    """ValueError unless the step is positive and finite."""
    if not (np.isfinite(eps) and eps > 0):
        raise ValueError(f"`eps` must be positive and finite; got {eps}. The default is 0.1.")


def _one_each(model: DepthModel, v: torch.Tensor) -> torch.Tensor:
    """A unit push at every layer and input in turn: (copy, layer, input)."""
    count = model.n_layers * v.shape[1]
    identity = torch.eye(count, dtype=model.dtype, device=model.device)
    return identity.unflatten(1, (model.n_layers, v.shape[1]))


def deviations(run: FrozenRun, v: torch.Tensor, eps: float) -> np.ndarray:
    """How the states answer a push at each layer and input, per unit of the push.

    Central differences with the step ``eps`` on the full nonlinear model: (prompt, depth, feature,
    push), float64; zero up to the layer of the push.
    """
    check_eps(eps)
    _check_step(run, eps, relative=False)
    n_layers, n_inputs, n_features = len(run.blocks), v.shape[1], v.shape[2]
    one_each = torch.eye(n_layers * n_inputs).to(v).unflatten(1, (n_layers, n_inputs))
    shape = (run.x.shape[1], n_layers + 1, n_features, n_layers * n_inputs)
    found = np.zeros(shape)
    with torch.no_grad():
        for depth, copies, x in _replay(run, v, eps * torch.cat([one_each, -one_each])):
            signs = torch.where(copies < len(one_each), 1.0, -1.0).to(x.device, torch.float64)
            # both copies of a push have joined by now; their nominal parts cancel
            half = signs[:, None] * x.double() / (2 * eps)
            at = (copies % len(one_each)).cpu().numpy()
            values = np.moveaxis(half.cpu().numpy(), 1, 2)
            for column, push in enumerate(at):
                found[:, depth, :, push] += values[..., column]
    return found


def _replay(
    run: FrozenRun, v: torch.Tensor, pushes: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """States of copies pushed by ``pushes[..., c, l, i] v_li`` at the input of block l.

    ``pushes`` is (copy, layer, input) or (prompt, copy, layer, input). A copy is nominal until its
    first push, so it joins the batch there. Yields depth 1..L, the numbers of the copies that have
    joined, and their states (prompt, copy, feature).
    """
    n_layers = len(run.blocks)
    pushed = (pushes != 0).any(-1)
    while pushed.dim() > 2:
        pushed = pushed.any(0)
    # a copy that is never pushed (argmax of zeros is 0) goes through the same replay as the others
    first = pushed.int().argmax(-1)
    order = torch.argsort(first, stable=True)
    starts = torch.bincount(first, minlength=n_layers).cumsum(0).tolist()
    x = run.x[0][:, None][:, :0]
    for layer, block in enumerate(run.blocks):
        joining = starts[layer] - x.shape[1]
        x = torch.cat([x, block.x[:, None].expand(-1, joining, -1)], dim=1)
        copies = order[: x.shape[1]]
        if len(copies):
            x = block(x + pushes[..., copies, layer, :] @ v[layer])
            yield layer + 1, copies, x


@torch.no_grad()
def _readouts(model: DepthModel, run: FrozenRun, v, pushes: torch.Tensor, reader: Readout):
    """Readout y_L (prompt, copy, output) when copies are pushed as in `_replay`.

    Raises FloatingPointError if a push is so large that a state overflows.
    """
    n_prompts = run.x.shape[1]
    size = max(1, ROWS // n_prompts)
    if pushes.shape[-3] > size:
        parts = pushes.split(size, dim=-3)
        return np.concatenate([_readouts(model, run, v, part, reader) for part in parts], axis=1)
    *_, (_, copies, x) = _replay(run, v, pushes)
    y = reader.values(model, x)
    if not bool(torch.isfinite(y).all()):
        raise FloatingPointError(
            "the states must stay finite; a push of size "
            f"{float(pushes.abs().max()):.1e} overflows. Use a smaller step or target."
        )
    return y[:, torch.argsort(copies)].cpu().numpy()


def play(
    model: DepthModel,
    texts: Texts,
    concept: xr.Dataset,
    plan: xr.Dataset,
    *,
    scale: Sequence[float] = (1.0,),
    readout: str | LogitDifference | xr.DataArray = "concept",
) -> xr.Dataset:
    """Play a schedule on the full nonlinear model: what the readout really does.

    Parameters
    ----------
    model, texts, concept
        The model, the prompts and the directions (depth, feature).
    plan
        ``u`` (layer, input), from `ltv.minimum_energy` or made by hand.
    scale
        Factors on the whole schedule.
    readout
        See `identify`; of a profile the last depth counts.

    Returns
    -------
    xr.Dataset
        ``response`` (prompt, scale): y_L with the schedule minus y_L without; with a dim output
        where there are several.
    """
    u = plan["u"]
    n_inputs = model.directions(concept).shape[1]
    if dict(u.sizes) != {"layer": model.n_layers, "input": n_inputs}:
        raise ValueError(
            f"`plan` must hold u (layer={model.n_layers}, input={n_inputs}); got "
            f"{dict(u.sizes)}. Select one schedule of a batch first."
        )
    schedule = u.transpose("layer", "input").values[None]
    factors = np.asarray(scale, dtype=np.float64)[None]
    response = _all_shifts(model, texts, concept, schedule, factors, "play", readout)[:, 0]
    return xr.Dataset(
        {"response": squeezed(response, "prompt", "scale", "output")},
        coords={"scale": factors[0]},
        attrs={**model.provenance("play"), **model.which(texts)},
    )


def _shifts(model, texts, concept, schedules, scales, title) -> np.ndarray:
    """Shift of the concept readout (prompt, schedule, scale); schedules (schedule, layer)."""
    pushes = schedules[:, :, None]
    return _all_shifts(model, texts, concept, pushes, scales, title, "concept")[..., 0]


def _all_shifts(model, texts, concept, schedules, scales, title, readout) -> np.ndarray:
    """Shift of y_L (prompt, schedule, scale, output).

    ``schedules`` (schedule, layer, input), ``scales`` (schedule, scale).
    """
    v = model.directions(concept)
    reader = checked_readout(model, readout, concept)
    if schedules.shape[-1] != v.shape[1]:
        raise ValueError(
            f"`schedules` must have the {v.shape[1]} inputs of the concept; got "
            f"{schedules.shape[-1]}. Select one direction: `concept.isel(input=0)`."
        )
    pushes = schedules[:, None] * scales[:, :, None, None]
    pushes = torch.as_tensor(pushes).flatten(0, 1).to(v)
    # the appended copy is not pushed: the nominal run through the same replay
    pushes = torch.cat([pushes, torch.zeros_like(pushes[:1])])
    shift = np.empty((len(texts), *scales.shape, reader.n_outputs))
    for run in model.stream(texts, title):
        y = _readouts(model, run, v, pushes, reader)
        shift[run.prompts] = (y[:, :-1] - y[:, -1:]).reshape(-1, *shift.shape[1:])
    return shift


# Amplitudes of a unit-norm schedule that are tried first, times the predicted optimum: energies
# from 1/16 to 16384 times the predicted one.
SEARCH = 2.0 ** np.arange(-2, 7.01, 0.5)


def required_energy(
    model: DepthModel,
    texts: Texts,
    concept: xr.Dataset,
    schedules: xr.DataArray,
    target: float,
    *,
    amplitude: float,
    weights: np.ndarray | None = None,
) -> xr.Dataset:
    r"""Least energy with which each schedule really reaches the target on the full model.

    For each schedule (scaled to unit energy) finds the smallest :math:`\alpha \ge 0` whose mean
    shift over prompts reaches the target: a scan of :data:`SEARCH` times ``amplitude`` brackets the
    first crossing, then the bracket is cut into eight three times (all schedules in one pass over
    the prompts) and interpolated. A crossing that comes and goes between two points of the scan
    (a factor sqrt(2) apart) is not seen.

    Parameters
    ----------
    model, texts, concept
        The model, the held-out prompts and the directions.
    schedules
        (schedule, layer); only their shapes and signs matter.
    target
        Wanted mean shift of y_L; its sign matters.
    amplitude
        Unit of the scan: square root of the energy that is predicted to be enough.
    weights
        Cost per layer (layer): the energy is ``sum_l weights_l u_l^2``; 1 by default.

    Returns
    -------
    xr.Dataset
        Per schedule: ``energy`` (alpha^2, NaN if not reached), ``alpha``, ``reached``,
        ``monotone`` (no drop of the mean shift on the scan up to the crossing), ``response``
        (schedule, prompt) when played at alpha.
    """
    check_target(target)
    shapes = schedules.transpose("schedule", "layer").values.astype(np.float64)
    cost = np.ones(shapes.shape[1]) if weights is None else np.asarray(weights)
    norms = np.sqrt((cost * shapes**2).sum(axis=1, keepdims=True))
    if not (norms > 0).all():
        raise ValueError("`schedules` must not be zero; got an all-zero row. Drop it.")
    shapes = shapes / norms

    def progress_to_target(alphas: np.ndarray, rows: np.ndarray) -> np.ndarray:
        shift = _shifts(model, texts, concept, shapes[rows], alphas, "search energy")
        return shift.mean(axis=0) / target

    every = np.arange(len(shapes))
    scan = np.broadcast_to(amplitude * SEARCH, (len(shapes), len(SEARCH)))
    reach = np.hstack([np.zeros((len(shapes), 1)), progress_to_target(scan, every)])
    scan = np.hstack([np.zeros((len(shapes), 1)), scan])
    reached = (reach >= 1).any(axis=1)
    crossing = np.where(reached, (reach >= 1).argmax(axis=1), reach.shape[1] - 1)
    monotone = np.array(
        [(np.diff(row[: c + 1]) >= 0).all() for row, c in zip(reach, crossing, strict=True)]
    )
    alpha = np.full(len(shapes), np.nan)
    rows = np.flatnonzero(reached)
    if len(rows):
        ends = np.stack([crossing[rows] - 1, crossing[rows]], axis=1)
        bracket = np.take_along_axis(scan[rows], ends, axis=1)
        values = np.take_along_axis(reach[rows], ends, axis=1)
        for _ in range(3):
            points = np.linspace(bracket[:, 0], bracket[:, 1], 9, axis=1)
            inner = progress_to_target(points[:, 1:-1], rows)
            inner = np.hstack([values[:, :1], inner, values[:, 1:]])
            end = (inner >= 1).argmax(axis=1)[:, None] + np.array([[-1, 0]])
            bracket = np.take_along_axis(points, end, axis=1)
            values = np.take_along_axis(inner, end, axis=1)
        share = (1 - values[:, 0]) / (values[:, 1] - values[:, 0])
        alpha[rows] = bracket[:, 0] + share * (bracket[:, 1] - bracket[:, 0])
    played = np.full((len(shapes), len(texts)), np.nan)
    if len(rows):
        final = _shifts(model, texts, concept, shapes[rows], alpha[rows, None], "play")
        played[rows] = final[:, :, 0].T
    return xr.Dataset(
        {
            "energy": ("schedule", alpha**2),
            "alpha": ("schedule", alpha),
            "reached": ("schedule", reached),
            "monotone": ("schedule", monotone),
            "response": (("schedule", "prompt"), played),
        },
        coords={"schedule": schedules["schedule"]},
        attrs={
            **model.provenance("required_energy"),
            "target": target,
            **model.which(texts),
        },
    )


def compare_energies(
    model: DepthModel,
    texts: Texts,
    concept: xr.Dataset,
    system: xr.Dataset,
    target: float,
    *,
    energy: str = "absolute",
) -> xr.Dataset:
    """The minimum-energy schedule against simple ones, all played on the full model.

    Baselines: ``uniform`` over layers, ``first_layer``, ``middle_layer``, ``last_layer``,
    ``best_single_layer`` (least energy of all), ``random_single_layer`` (median over all L layers,
    each equally likely; a layer that does not reach the target counts as infinite). Each pushes
    in the direction in which the system predicts progress.

    Parameters
    ----------
    model, texts, concept
        The model, the held-out prompts and the directions.
    system
        From `identify`, one system.
    target
        Wanted mean shift of y_L, in the unit of the readout.
    energy
        "absolute": sum of ``u_l^2``; "relative": sum of ``u_l^2 / ||x_l||^2``, with the mean norm
        of the nominal state, so that a push counts by how much it changes the state.

    Returns
    -------
    xr.Dataset
        ``energy``, ``multiple`` (of the minimum-energy schedule's; NaN = not reached within
        16384 times the predicted optimum), ``reached``, ``monotone``, ``layer_pushed`` (schedule;
        -1 = several); ``u`` (layer),
        the planned schedule; ``predicted_energy``; ``single_energy`` (layer); ``response``
        (prompt), of the minimum-energy schedule.
    """
    if energy not in ENERGIES:
        raise ValueError(f"`energy` must be one of {ENERGIES}; got {energy!r}. Pick one.")
    weights = np.ones(model.n_layers)
    if energy == "relative":
        weights = 1 / system["state_norm"].values[:-1] ** 2
    check_target(target)
    least = 100 * torch.finfo(model.dtype).eps * float(abs(system["y_ref"]).max() + system["y_std"])
    if abs(target) < least:
        raise ValueError(
            f"`target` must be well above the rounding of the readout; got {target:.1e} where "
            f"{least:.1e} is the least in {model.dtype_name}. Ask for more or use float64."
        )
    plan = ltv.minimum_energy(system, target, weights=weights)
    u = plan["u"].isel(input=0).values
    h = ltv.gains(system).isel(output=0, input=0).values
    n_layers = len(u)
    toward = np.where(h * target < 0, -1.0, 1.0)
    uniform = np.full(n_layers, -1.0 if h.sum() * target < 0 else 1.0)
    single_names = [f"layer_{layer}" for layer in range(n_layers)]
    schedules = xr.DataArray(
        np.vstack([u, uniform, np.diag(toward)]),
        dims=["schedule", "layer"],
        coords={"schedule": ["minimum_energy", "uniform", *single_names]},
    )
    amplitude = float(np.sqrt(plan["energy"]))
    found = required_energy(
        model, texts, concept, schedules, target, amplitude=amplitude, weights=weights
    )
    single = found.sel(schedule=single_names)
    ranked = single["energy"].fillna(np.inf).values
    chosen = {
        "minimum_energy": "minimum_energy",
        "uniform": "uniform",
        "first_layer": single_names[0],
        "middle_layer": single_names[n_layers // 2],
        "last_layer": single_names[-1],
        "best_single_layer": single_names[int(ranked.argmin())],
    }
    table = found[["energy", "reached", "monotone"]].sel(schedule=list(chosen.values()))
    table = table.assign_coords(schedule=list(chosen))
    pushed = [single_names.index(name) if name in single_names else -1 for name in chosen.values()]
    table["layer_pushed"] = ("schedule", pushed)
    median = float(np.median(ranked))
    random = xr.Dataset(
        {
            "energy": ("schedule", [median if np.isfinite(median) else np.nan]),
            "reached": ("schedule", [bool(np.isfinite(median))]),
            "monotone": ("schedule", [bool(single["monotone"].all())]),
            "layer_pushed": ("schedule", [-1]),
        },
        coords={"schedule": ["random_single_layer"]},
    )
    table = xr.concat([table, random], dim="schedule")
    table["multiple"] = table["energy"] / table["energy"].sel(schedule="minimum_energy")
    table = table.assign_coords(layer=np.arange(n_layers))
    table["u"] = ("layer", u)
    table["predicted_energy"] = plan["energy"]
    table["single_energy"] = ("layer", single["energy"].values)
    table["response"] = found["response"].sel(schedule="minimum_energy", drop=True)
    table.attrs = {
        **model.provenance("compare_energies"),
        "target": target,
        "energy": energy,
        "best_layer": int(ranked.argmin()),
        **model.which(texts),
    }
    return table
