"""Laws played on the full nonlinear model, and compared with plans without feedback."""

from typing import Any

import numpy as np
import torch
import xarray as xr

from depthsys.lm.accuracy import mean_bounds, resamples
from depthsys.lm.directions import directions, in_inputs_of
from depthsys.lm.feedback import READS, REFERENCES
from depthsys.lm.frozen import FrozenRun
from depthsys.lm.gains import squeezed
from depthsys.lm.kinds import Kind, short
from depthsys.lm.lockstep import Steps
from depthsys.lm.of_run import as_run, of_run
from depthsys.lm.readouts import Readout, ReadoutLike, checked_readout
from depthsys.lm.replay import play
from depthsys.lm.run import Run
from depthsys.lm.shards import along, in_shards
from depthsys.lm.stamp import stamp
from depthsys.ltv.labels import in_order_of
from depthsys.ltv.plan import schedule

_NEEDED = ("u", "K", "W", "r_ref", "weights")
_LAW = Kind(
    "a law with `u`, `K`, `W`, `r_ref` and `weights`",
    lambda given: isinstance(given, xr.Dataset) and all(name in given for name in _NEEDED),
    "`lm.feedback`, `lm.clamp` and `lm.reflect` give one.",
)
_DIMS = {
    "u": ("layer", "input"),
    "K": ("layer", "input", "state"),
    "W": ("depth", "feature", "state"),
    "r_ref": ("depth", "state"),
    "weights": ("layer",),
    "x_ref": ("depth", "feature"),
}
POLICIES = ("open_loop", "open_loop_same_energy", "feedback")
_AS = {POLICIES[0]: "as it is", POLICIES[1]: "at the same mean energy"}


@of_run(once=True, shards=True, kinds={"law": _LAW})
def play_law(
    run: Run, concept: xr.Dataset, law: xr.Dataset, *, readout: ReadoutLike = "concept"
) -> xr.Dataset:
    r"""Play a law on the full nonlinear model: pushes that answer the state as it is.

    The last token passes layer by layer through the frozen context, pushed and not pushed side by
    side, and each push is computed from the state at that layer, on the device.

    Parameters
    ----------
    run
        The prompts; or a model and texts.
    concept
        The directions along which the law pushes.
    law
        From `feedback`, `clamp` or `reflect`, or made by hand: see `depthsys.lm.feedback`.
    readout
        See `identify`; of a profile the last depth counts.

    Returns
    -------
    xr.Dataset
        ``response`` (prompt), y_L with the law minus y_L without, and ``readout`` (prompt), y_L
        with it; with a dim output where there are several. ``u`` (prompt, layer, input), the
        pushes; ``energy`` (prompt), as the law counts it; ``trajectory`` (prompt, depth), and
        input where there are several: shift of v_k'x_k.

    Raises
    ------
    ValueError
        If the law does not fit the model and the concept.
    FloatingPointError
        If a push is so large that a state overflows.
    """
    model = run.model
    v = directions(model, concept)
    reader = checked_readout(model, readout, concept)
    parts = _parts(in_inputs_of(law, concept, "law"), v)
    n_layers = run.n_layers
    y, u, way = _all_played(run, v, parts, reader)
    if not (np.isfinite(y).all() and np.isfinite(u).all()):
        raise FloatingPointError(
            "the states must stay finite; a push of the law overflows. Use a smaller target or "
            "more effort."
        )
    energy = np.einsum("pli,l->p", u**2, law["weights"].values)
    return xr.Dataset(
        {
            "response": squeezed(y[:, 0] - y[:, 1], "prompt", "output"),
            "readout": squeezed(y[:, 0], "prompt", "output"),
            "u": (("prompt", "layer", "input"), u),
            "energy": ("prompt", energy),
            "trajectory": squeezed(way, "prompt", "depth", "input"),
        },
        coords={"layer": np.arange(n_layers), "depth": np.arange(n_layers + 1)},
        attrs={
            **stamp(run, "play_law"),
            **{k: law.attrs[k] for k in ("energy", "reference", "reads") if k in law.attrs},
        },
    )


@in_shards(along(0), "play law")
def _all_played(
    run: Run, v: torch.Tensor, law: dict[str, Any], reader: Readout
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_played` of every prompt."""
    model, n_layers, m = run.model, run.n_layers, v.shape[1]
    y = np.empty((len(run), 2, reader.n_outputs))
    u = np.empty((len(run), n_layers, m))
    way = np.empty((len(run), n_layers + 1, m))
    work = lambda batch: _played(model, batch, v, law, reader)  # noqa: E731
    for batch, found in run.in_step(work, "play law", held=2 * model.n_features * v.itemsize):
        y[batch.prompts], u[batch.prompts], way[batch.prompts] = found
    return y, u, way


@torch.no_grad()
def _played(
    model: Any, batch: FrozenRun, v: torch.Tensor, law: dict[str, Any], reader: Readout
) -> Steps[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Readouts (prompt, pushed or not, output), pushes, and the way of the coordinates."""
    u, K, W, r_ref, x_ref = (law[name] for name in ("u", "K", "W", "r_ref", "x_ref"))
    x = batch.blocks[0].x[:, None].expand(-1, 2, -1)
    pushes, way = [], []
    for layer, block in enumerate(batch.blocks):
        mine, nominal = x[:, 0].to(v), x[:, 1].to(v)
        way.append((mine - nominal) @ v[layer].mT)
        read = nominal if law["clean"] else mine
        deviation = read - (nominal if x_ref is None else x_ref[layer])
        push = u[layer] - (deviation @ W[layer] - r_ref[layer]) @ K[layer].mT
        pushes.append(push)
        pushed = (mine + push @ v[layer]).to(x)
        yield layer
        x = block(torch.stack([pushed, x[:, 1]], dim=1))
    way.append((x[:, 0].to(v) - x[:, 1].to(v)) @ v[-1].mT)
    u_all, way_all = (torch.stack(part, dim=1).double().cpu().numpy() for part in (pushes, way))
    return reader.values(model, x).cpu().numpy(), u_all, way_all


def _parts(law: xr.Dataset, v: torch.Tensor) -> dict[str, Any]:
    """The arrays of a law as tensors beside the directions (depth, input, feature), checked."""
    n_depths, m, n_features = v.shape
    reference, reads = law.attrs.get("reference"), law.attrs.get("reads", READS[0])
    if reference not in REFERENCES or reads not in READS:
        raise ValueError(
            f"`law` must say its reference, one of {REFERENCES}, and what it reads, one of "
            f"{READS}; got {short(reference)} and {short(reads)}. Set law.attrs."
        )
    if (reference == "own") == ("x_ref" in law):
        raise ValueError(
            "`law` must hold x_ref where its reference is not the prompt's own state, and there "
            f"alone; got {reference!r} {'with' if 'x_ref' in law else 'without'} it. Mend one."
        )
    sizes = {"layer": n_depths - 1, "depth": n_depths, "input": m, "feature": n_features}
    sizes["state"] = law["W"].sizes.get("state", 0)
    found: dict[str, Any] = {"x_ref": None, "clean": reads == "clean"}
    for name in (*_NEEDED, *(["x_ref"] if "x_ref" in law else [])):
        array, dims = law[name], _DIMS[name]
        if dict(array.sizes) != {d: sizes[d] for d in dims}:
            raise ValueError(
                f"`law` must hold {name} {dict((d, sizes[d]) for d in dims)}; got "
                f"{dict(array.sizes)}. Make it with this model and concept."
            )
        if array.dtype.kind not in "biuf" or not np.isfinite(array.values).all():
            raise ValueError(
                f"`law` must be finite real numbers; got NaN, infinity or others in {name}, of "
                f"{array.dtype}. Mend it."
            )
        array = in_order_of(array, f"law.{name}", dims[0], np.arange(sizes[dims[0]]))
        found[name] = torch.as_tensor(array.transpose(*dims).values.copy()).to(v)
    return found


@of_run(once=False, shards=True, kinds={"law": _LAW})
def compare_feedback(
    run: Run,
    concept: xr.Dataset,
    law: xr.Dataset,
    *,
    plan: xr.Dataset | None = None,
    off: Any = None,
    readout: ReadoutLike = "concept",
    n_bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Open loop against feedback, on held-out prompts and on those of another source.

    The error of a prompt is how far it ends from what the law wants: its shift from the target,
    or, under a law of reference "mean", its readout from the level.

    Parameters
    ----------
    run
        The held-out prompts; or a model and texts.
    concept
        The directions.
    law
        From `feedback`.
    plan
        The open loop; by default the law's own ``u``.
    off
        Prompts from another source, or a run of them.
    readout
        That of the system behind the law.
    n_bootstrap, level, seed
        Of the percentile intervals, which resample prompts, the same for all policies.

    Returns
    -------
    xr.Dataset
        ``error`` and ``shift_error`` (texts, policy, bound): mean over prompts of the distance
        from what is wanted, and of that of the shift from the target; ``bias`` (texts, policy,
        bound), mean shift along the target minus it; ``energy`` (texts, policy, bound); the policy
        "open_loop" is the plan as it is, "open_loop_same_energy" the plan scaled to the mean
        energy of the feedback on the same prompts, "feedback" the law. ``ratio`` (texts, against,
        bound): error of the feedback over that of an open loop. attrs ``verdict``, by how much
        feedback pays against the better of both open loops, or that it does not; and ``target``.

    Raises
    ------
    ValueError
        If an argument does not fit.
    """
    if "target" not in law:
        raise ValueError(
            "`law` must know its target; got one without. `lm.feedback` gives one that does."
        )
    runs = {"held_out": run}
    if off is not None:
        runs["off"] = as_run(run.model, off)
    n_layers, m = run.n_layers, law.sizes["input"]
    law = in_inputs_of(law, concept, "law")
    u = law["u"] if plan is None else schedule(in_inputs_of(plan, concept, "plan"), n_layers, m)
    u = u.drop_vars(list(u.coords)).transpose("layer", "input")
    bounds = {"n_bootstrap": n_bootstrap, "level": level, "seed": seed}
    parts = []
    for each in runs.values():
        of = _errors(each, concept, law, u, readout)
        counts = resamples(len(each), n_bootstrap, seed)
        part = xr.Dataset(
            {name: mean_bounds(of[name], **bounds) for name in ("error", "shift_error", "bias")}
        )
        part["energy"] = mean_bounds(of["energy"], **bounds)
        part["ratio"] = _ratio(of["error"], counts, level)
        parts.append(part)
    table = xr.concat(parts, dim="texts").assign_coords(texts=list(runs), policy=list(POLICIES))
    table.attrs = {
        **stamp(run, "compare_feedback"),
        **bounds,
        **{k: law.attrs[k] for k in ("reference", "effort") if k in law.attrs},
        "energy": law.attrs.get("energy", "absolute"),
        "target": law["target"].values.tolist(),
        "n_prompts": [len(each) for each in runs.values()],
    }
    return table.assign_attrs(verdict=_verdict(table))


def _errors(
    run: Run, concept: xr.Dataset, law: xr.Dataset, u: xr.DataArray, readout: ReadoutLike
) -> xr.Dataset:
    """What every prompt (prompt, policy) is off by under each policy, and what it takes."""
    closed = play_law(run, concept, law, readout=readout)
    spent = float(((u**2).sum("input") * law["weights"].drop_vars("layer", errors="ignore")).sum())
    used = closed["energy"].values
    scales = [1.0, float(np.sqrt(used.mean() / spent))]
    opened = play(run, concept, xr.Dataset({"u": u}), scale=scales, readout=readout)
    target = np.atleast_1d(law["target"].values)
    size = len(target)
    shifts = [opened["response"].isel(scale=i).values.reshape(-1, size) for i in (0, 1)]
    mine = closed["response"].values.reshape(-1, size)
    shift = np.stack([*shifts, mine], axis=1)
    # the readout without any push, from the run that the law was played beside
    alone = closed["readout"].values.reshape(-1, size) - mine
    off = shift - target
    missed = np.linalg.norm(off, axis=-1)
    error = missed
    if law.attrs.get("reference") == "mean":
        error = np.linalg.norm(shift + alone[:, None] - law["level"].values, axis=-1)
    energy = np.stack([np.full(len(run), s**2 * spent) for s in scales] + [used], axis=1)
    dims = ("prompt", "policy")
    values = {"error": error, "shift_error": missed, "energy": energy}
    values["bias"] = off @ target / np.linalg.norm(target)
    return xr.Dataset(
        {name: (dims, value) for name, value in values.items()}, {"policy": list(POLICIES)}
    )


def _ratio(error: xr.DataArray, counts: np.ndarray, level: float) -> xr.DataArray:
    """Error of the feedback over that of the open loops (against, bound), on the same samples."""
    each = error.transpose("prompt", "policy").values
    means = np.vstack([each.mean(axis=0), counts @ each / len(each)])
    ratio = means[:, 2:] / means[:, :2]
    tail = (1 - level) / 2
    ends = np.quantile(ratio[1:], [tail, 1 - tail], axis=0)
    if len(each) == 1:  # nothing can be resampled
        ends = np.full_like(ends, np.nan)
    return xr.DataArray(
        np.stack([ratio[0], *ends], axis=-1),
        {"against": list(POLICIES[:2]), "bound": ["estimate", "low", "high"]},
        ("against", "bound"),
    )


def _verdict(table: xr.Dataset) -> str:
    """By how much feedback pays, or that it does not, from the intervals."""
    said = []
    for texts in table["texts"].values:
        one = table.sel(texts=texts)
        # the better open loop: one that is scaled to more energy may only overshoot
        best = POLICIES[int(one["ratio"].sel(bound="estimate").values.argmax())]
        ratio = one["ratio"].sel(against=best)
        estimate, low, high = (float(ratio.sel(bound=b)) for b in ("estimate", "low", "high"))
        energy = one["energy"].sel(bound="estimate")
        more = float(energy.sel(policy="feedback") / energy.sel(policy="open_loop"))
        if np.isnan(high):
            does = (
                f"nothing can be said of one prompt: the error of feedback is {estimate:.2g} times"
            )
        elif high < 1:
            does = f"feedback pays: its error is {estimate:.2g} times"
        elif low > 1:
            does = f"feedback harms: its error is {estimate:.2g} times"
        else:
            does = f"feedback does not pay: its error is {estimate:.2g} times"
        name = {"held_out": "held-out prompts", "off": "prompts of another source"}[str(texts)]
        said.append(
            f"on {name} {does} that of the plan {_AS[best]} [{low:.2g}, {high:.2g}], with "
            f"{more:.3g} times the energy of the plan as it is"
        )
    return "; ".join(said)
