"""The plan of least energy of the full nonlinear model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from depthsys.lm.accuracy import mean_bounds
from depthsys.lm.directions import as_concept, defined, direction_note, directions
from depthsys.lm.energies import required_energy
from depthsys.lm.kinds import short
from depthsys.lm.of_run import as_run, of_run
from depthsys.lm.precision import Arithmetic
from depthsys.lm.progress import bar
from depthsys.lm.push_gradients import push_gradients
from depthsys.lm.readouts import Readout, ReadoutLike, checked_readout
from depthsys.lm.replay import shifts
from depthsys.lm.run import Run
from depthsys.lm.stamp import stamp
from depthsys.lm.step import state_norms
from depthsys.ltv.plan import (
    ENERGIES,
    WHAT_IT_DOES,
    large_push,
    layer_weights,
    push_sizes,
    schedule,
    sign_in_words,
)
from depthsys.ltv.push_limits import layer_numbers
from depthsys.ltv.successive import Ball, Optimum, Problem, least_energies, least_energy, search
from depthsys.ltv.system import whole_number

# Of intervals over prompts.
N_BOOTSTRAP, LEVEL, SEED = 1000, 0.95, 0
# Roundings of the readout below which nothing is decided.
ROUNDINGS = 8
# A target counts as reached within this part of it, whatever the condition of an optimum says.
RESIDUAL_REACHED = 0.01


@of_run(once=False, shards=True)
def optimal_plan(
    run: Run,
    concept: xr.Dataset,
    target: float | np.ndarray,
    *,
    start: xr.Dataset | xr.DataArray | None = None,
    readout: ReadoutLike = "concept",
    hold: str | int | Sequence[str | int] = (),
    energy: str = "relative",
    max_relative_push: float | None = None,
    layers: Sequence[int] | None = None,
    held_out: Any = None,
    per_prompt: bool = False,
    target_rtol: float = 1e-3,
    kkt: float = 1e-3,
    max_steps: int = 50,
) -> xr.Dataset:
    r"""The pushes of least energy with which the full model really shifts its readout by a target.

    Minimises :math:`\sum_l w_l \sum_i u_{l,i}^2` subject to
    :math:`\tfrac1N \sum_p [y_L(p; u) - y_L(p; 0)] = t`, by successive linearisation with a trust
    region (`ltv.successive`): a step costs one forward and one backward pass of the last token
    per prompt.

    Parameters
    ----------
    run
        The operating prompts; or a model and texts.
    concept
        The directions that are pushed along; where there is none, nothing is pushed.
    target
        Wanted mean shift of y_L in the unit of the readout, its sign matters; for several outputs
        one number for each that is not held, in their order.
    start
        A schedule to begin with, as from `ltv.minimum_energy`; what it pushes at layers that may
        not push is left out. By default nothing is pushed at first.
    readout
        See `identify`; of a profile the last depth counts.
    hold
        Outputs, by name or position, whose mean shift must be zero. All others are steered.
    energy
        "relative": :math:`w_l = 1 / \|x_l\|^2`, with the mean norm of the nominal state, so that
        energy counts how much a push changes the state; "absolute": 1.
    max_relative_push
        Bound on :math:`\|\sum_i u_{l,i} v_{l,i}\| / \|x_l\|` at every layer.
    layers
        Layers that may push; all by default.
    held_out
        Prompts (texts or a run of the same model) on which the plan is played as well.
    per_prompt
        A plan of its own for every prompt, each with the same target.
    target_rtol, kkt, max_steps
        When to stop: the largest miss of a target (a part of it; of a held output, a part of the
        largest target), the largest KKT residual, the most steps of a search.

    Returns
    -------
    xr.Dataset
        A plan, with ``met`` (whether target and KKT residual are within what was asked for),
        ``reached`` (whether the target is missed by 1 % at most) and, in attrs, ``ended`` (why the
        search ended, see `ltv.successive.Optimum`), ``not_met``, what is missing and the cure, and
        ``sign``, of the inputs whose two classes are known. A plan that does not reach its target
        is the one that was found to come nearest to it.

        * ``u`` (layer, input), ``energy``, ``predicted``, the mean shift that it reaches on these
          prompts, ``target`` (output), ``residual``, ``kkt_residual``, ``multipliers`` (output;
          what the energy rises by per unit of each target), ``push`` (layer), a fraction of the
          state's norm. See `ltv.successive.Optimum` for the definitions.
        * ``steps``, ``evaluations`` (passes forward and backward), ``history`` (step, quantity):
          where it searched twice, see the notes, of the search that found the plan; evaluations
          are those of both.
        * ``response`` (prompt, output), the shift of every prompt.
        * ``linear_u``, ``linear_energy``, ``linear_shift``: ``start``, or the plan of the model
          linearised where nothing is pushed, what it costs and what it really does.
          ``linear_energy_needed``: what that schedule needs, scaled until it reaches the target
          (bounds disregarded; of several outputs the component along the target); NaN if it never
          does. ``saved`` = 1 - energy / linear_energy_needed,
          NaN where the optimal plan does not reach the target either.
        * with ``held_out``: ``held_out_response`` (prompt_held_out, output), ``held_out_shift``
          (output, bound), its mean with a 95 % bootstrap interval over those prompts.

        With ``per_prompt`` the variables have the dim prompt, and there is no history,
        ``linear_energy_needed`` and ``saved``.

    Raises
    ------
    ValueError
        If an argument does not fit, or the target drowns in the rounding of the readout.
    FloatingPointError
        If ``start`` makes a state overflow.

    Notes
    -----
    An optimum is a local one: the condition that is checked holds for it, and the search begins
    at no push, where for a small target it is the only one. A search that ends short of its target
    although the linear plan reaches it when it is scaled, within the bounds, begins again from
    there (not ``per_prompt``).
    """
    goal = _Goal.of(run, concept, target, readout, hold)
    _check_options(energy, max_relative_push, target_rtol, kkt, max_steps)
    allowed = _allowed(run, concept, layers)
    if per_prompt and held_out is not None:
        raise ValueError(
            "`held_out` must be left out where every prompt has its own plan; got prompts. "
            "Leave out `per_prompt`, or play one of the plans."
        )
    beside = None if held_out is None else as_run(run.model, held_out)
    first = None
    if start is not None:
        given = start.to_dataset(name="u") if isinstance(start, xr.DataArray) else start
        first = schedule(given, run.n_layers, goal.v.shape[1], "start").values[allowed]
        _check_finite(first)
    norm = state_norms(run).mean(axis=0)
    weights = _weights(energy, norm, allowed)
    limits = _balls(goal.v, norm, allowed, 1.0)
    bounds = [] if max_relative_push is None else _balls(goal.v, norm, allowed, max_relative_push)
    problem = Problem(weights, goal.target, bounds, limits)
    options = {"target_rtol": target_rtol, "kkt": kkt, "max_steps": max_steps}
    with bar("optimal plan", max_steps + 1, "step") as shown:
        replay = _Replay(run, goal, allowed, each=per_prompt, done=shown.update)
        options["rounding"] = _rounding(run, goal, replay.nominal)
        n = len(run) if per_prompt else 1
        linear = [_linear(problem, *replay.at_zero(p), first) for p in range(n)]
        searches = [search(problem, start=first, **options) for _ in range(n)]
        found = least_energies(searches, replay)
        cost, needed = weights_of(energy, norm), np.nan
        if not per_prompt:
            needed = _needed_by(linear[0], goal, allowed, run, concept, readout, cost)
            again = _along(linear[0], needed, problem)
            if found[0].residual > RESIDUAL_REACHED and again is not None:
                second = least_energies([search(problem, start=again, **options)], replay)
                found = [_better(*found, *second)]
    plan = _as_plan(found, linear, goal, allowed, norm, concept, per_prompt)
    plan["evaluations"] = plan["evaluations"] + (first is not None)
    if not per_prompt:
        plan["linear_energy_needed"] = needed
    plan.attrs = {
        **stamp(run, "optimal_plan"),
        **WHAT_IT_DOES,
        "energy": energy,
        "target_unit": "readout",
        "readout": goal.reader.name,
        "layers": json.dumps(np.flatnonzero(allowed.any(axis=1)).tolist()),
        "hold": json.dumps([goal.names[i] for i in goal.held]),
        "max_relative_push": np.inf if max_relative_push is None else float(max_relative_push),
        "target_rtol": target_rtol,
        "kkt": kkt,
        "ended": json.dumps([one.ended for one in found]) if per_prompt else found[0].ended,
        **_not_met(found, per_prompt, bounded=max_relative_push is not None),
        **sign_in_words(concept.attrs, goal.v.shape[1]),
        **large_push(plan["push"]),
        **direction_note(concept),
    }
    return _played(plan, run, concept, readout, beside, cost)


def weights_of(energy: str, norm: np.ndarray) -> np.ndarray:
    """Cost of a push (layer), from the mean norm of the state (depth)."""
    states = xr.Dataset({"state_norm": ("depth", norm)}, coords={"layer": np.arange(len(norm) - 1)})
    return layer_weights(states, energy).values


# ------------------------------------------------------------------ what is wanted


class _Goal(NamedTuple):
    v: torch.Tensor
    reader: Readout
    target: np.ndarray
    names: list
    held: list[int]
    inputs: list

    @classmethod
    def of(cls, run: Run, concept: xr.Dataset, target, readout: ReadoutLike, hold) -> "_Goal":
        v = directions(run.model, concept)
        reader = checked_readout(run.model, readout, concept)
        direction = as_concept(concept)["direction"]
        inputs = _names(direction, "input", v.shape[1])
        names = list(range(reader.n_outputs))
        if reader.name in ("concept", "profile"):
            names = inputs
        elif isinstance(readout, xr.DataArray):
            names = _names(readout, "output", reader.n_outputs)
        held = _positions(hold, names)
        wanted = np.atleast_1d(np.asarray(target, dtype=np.float64))
        n_steered = len(names) - len(held)
        if wanted.shape != (n_steered,):
            raise ValueError(
                f"`target` must have one value for each of the {n_steered} outputs that are "
                f"steered; got {target}. Give them all, or hold the others."
            )
        if not (np.isfinite(wanted).all() and wanted.any()):
            raise ValueError(f"`target` must be finite and not zero; got {target}. Give a shift.")
        whole = np.zeros(len(names))
        whole[[i for i in range(len(names)) if i not in held]] = wanted
        return cls(v, reader, whole, names, held, inputs)


def _names(array: xr.DataArray, dim: str, count: int) -> list:
    return array[dim].values.tolist() if dim in array.coords else list(range(count))


def _positions(hold, names: list) -> list[int]:
    """Positions of outputs that are given by name or position."""
    given: list[Any] = list(hold) if isinstance(hold, (Sequence, np.ndarray, set)) else [hold]
    given = [hold] if isinstance(hold, str) else given
    found = []
    for one in given:
        by_name = [i for i, name in enumerate(names) if isinstance(one, str) and name == one]
        if by_name:
            found.append(by_name[0])
        elif (
            isinstance(one, (int, np.integer))
            and not isinstance(one, bool)
            and -len(names) <= one < len(names)
        ):
            found.append(int(one) % len(names))
        else:
            raise ValueError(
                f"`hold` must name outputs, or their positions; got {short(one)}, and the outputs "
                f"are {short(names)}. Pick some of them."
            )
    if len(set(found)) == len(names):
        raise ValueError(
            f"`hold` must leave an output to steer; got all of {short(names)}. Hold fewer."
        )
    return sorted(set(found))


def _check_options(energy, max_relative_push, target_rtol, kkt, max_steps) -> None:
    if energy not in ENERGIES:
        raise ValueError(f"`energy` must be one of {ENERGIES}; got {short(energy)}. Pick one.")
    bound = 1.0 if max_relative_push is None else max_relative_push
    if not (_is_number(bound) and np.isfinite(bound) and bound > 0):
        raise ValueError(
            "`max_relative_push` must be positive and finite, one number for all layers; got "
            f"{short(max_relative_push)}. Write 0.3, or leave it out."
        )
    for name, value in {"target_rtol": target_rtol, "kkt": kkt}.items():
        if not (_is_number(value) and 0 < value < 1):
            raise ValueError(f"`{name}` must be between 0 and 1; got {short(value)}. Write 1e-3.")
    whole_number(max_steps, "max_steps")


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float, np.integer, np.floating))
    return number and not isinstance(value, bool)


def _check_finite(first: np.ndarray) -> None:
    if not np.isfinite(first).all():
        raise ValueError("`start.u` must be finite; got nan or inf. Write 0 where nothing is.")


def _allowed(run: Run, concept: xr.Dataset, layers: Sequence[int] | None) -> np.ndarray:
    """Which pushes there may be (layer, input)."""
    exists = defined(concept)[:-1].copy()
    if layers is not None:
        chosen = layer_numbers(layers)
        wrong = [layer for layer in chosen if not 0 <= layer < run.n_layers]
        if wrong or not chosen:
            raise ValueError(
                f"`layers` must be some of 0..{run.n_layers - 1}; got {short(layers)}. Leave it "
                "out for all."
            )
        exists[[layer for layer in range(run.n_layers) if layer not in chosen]] = False
    if not exists.any():
        raise ValueError(
            f"`layers` must have a direction somewhere; got {short(layers)}, where the concept has "
            "none. Take others."
        )
    return exists


def _weights(energy: str, norm: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    each = weights_of(energy, norm)
    return np.broadcast_to(each[:, None], allowed.shape)[allowed]


def _balls(v: torch.Tensor, norm: np.ndarray, allowed: np.ndarray, part: float) -> list[Ball]:
    """``|sum_i u_li v_li| <= part |x_l|`` for every layer that may push, over the variables."""
    place = np.full(allowed.shape, -1)
    place[allowed] = np.arange(allowed.sum())
    found = []
    for layer in np.flatnonzero(allowed.any(axis=1)):
        inputs = np.flatnonzero(allowed[layer])
        vectors = v[layer, inputs].double().cpu().numpy()
        matrix = np.zeros((len(inputs), allowed.sum()))
        matrix[:, place[layer, inputs]] = np.linalg.qr(vectors.T, mode="r")
        found.append((matrix, part * float(norm[layer])))
    return found


def _rounding(run: Run, goal: _Goal, nominal: np.ndarray) -> float:
    """What rounding leaves in the mean shift, as a part of the target; ValueError if too much."""
    size = np.sqrt((nominal**2).mean(axis=0))
    arithmetic = Arithmetic.of(run.model)
    least = 100 * arithmetic.eps * size
    steered = goal.target != 0
    small = steered & (np.abs(goal.target) < least)
    if small.any():
        at = int(np.flatnonzero(small)[0])
        raise ValueError(
            f"`target` must be well above the rounding of the readout; got {goal.target[at]:.3g} "
            f"where {least[at]:.1e} is the least in {arithmetic.name}. Ask for more or use "
            f"{arithmetic.finer}."
        )
    unit = np.where(steered, np.abs(goal.target), np.abs(goal.target).max())
    return float((ROUNDINGS * arithmetic.eps * size / unit).max())


# ------------------------------------------------------------------ the search


class _Replay:
    """Evaluates the searches of a plan: rows (search) and pushes -> mean shifts and derivatives.

    ``each``: search p is that of prompt p alone.
    """

    def __init__(
        self, run: Run, goal: _Goal, allowed: np.ndarray, *, each: bool, done: Callable[[int], Any]
    ):
        self.run, self.goal, self.allowed = run, goal, allowed
        self.each, self.done = each, done
        self._zero = self._pushed(np.zeros((1, allowed.sum())), None)
        self.nominal = self._zero[0]

    def at_zero(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Shift, which is zero, and derivative where nothing is pushed."""
        gradient = self._zero[1]
        return np.zeros(self.nominal.shape[1]), gradient[row] if self.each else gradient.mean(0)

    def __call__(self, rows: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not u.any():  # every search begins there: no need to run it again
            found = [self.at_zero(int(row)) for row in rows]
            return np.stack([y for y, _ in found]), np.stack([g for _, g in found])
        y, gradient = self._pushed(u, rows if self.each else None)
        with np.errstate(invalid="ignore"):  # states that overflow are a step too long
            if self.each:
                return y - self.nominal[rows], gradient
            return (y - self.nominal).mean(0)[None], gradient.mean(0)[None]

    def _pushed(self, u: np.ndarray, prompts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        pushes = np.zeros((len(u), *self.allowed.shape))
        pushes[:, self.allowed] = u
        pushes = pushes[0] if prompts is None else pushes
        y, gradient = push_gradients(self.run, self.goal.v, pushes, self.goal.reader, prompts)
        self.done(1)
        return y, gradient[..., self.allowed]


def _linear(problem: Problem, _, gradient: np.ndarray, first: np.ndarray | None) -> np.ndarray:
    """The plan that the linear gains make, within the bounds; or the one that was given."""
    if first is not None:
        return first
    tight = {"target_rtol": 1e-8, "kkt": 1e-6}
    # of a linear readout every step is right, however long
    whole = replace(problem, sizes=())
    return least_energy(whole, lambda u: (gradient @ u, gradient), **tight).u


def _along(linear: np.ndarray, needed: float, problem: Problem) -> np.ndarray | None:
    """The linear plan, scaled to the energy that reaches the target; None if none in the bounds."""
    energy = float(problem.weights @ linear**2)
    if not (energy > 0 and np.isfinite(needed)):
        return None
    u = linear * np.sqrt(needed / energy)
    inside = all(np.linalg.norm(matrix @ u) <= radius for matrix, radius in problem.bounds)
    return u if inside else None


def _better(first: Optimum, second: Optimum) -> Optimum:
    """The second where it is nearer, with what both have cost."""
    best = second if second.residual < first.residual else first
    return best._replace(evaluations=first.evaluations + second.evaluations)


# ------------------------------------------------------------------ the result


def _as_plan(
    found: list[Optimum],
    linear: list[np.ndarray],
    goal: _Goal,
    allowed: np.ndarray,
    norm: np.ndarray,
    concept: xr.Dataset,
    per_prompt: bool,
) -> xr.Dataset:
    def whole(rows) -> np.ndarray:
        u = np.zeros((len(found), *allowed.shape))
        u[:, allowed] = np.stack(rows)
        return u

    n_layers = len(allowed)
    columns: dict[str, tuple[tuple[str, ...], Any]] = {
        "u": (("layer", "input"), whole([one.u for one in found])),
        "energy": ((), [one.energy for one in found]),
        "predicted": (("output",), [one.y for one in found]),
        "residual": ((), [one.residual for one in found]),
        "kkt_residual": ((), [one.kkt_residual for one in found]),
        "multipliers": (("output",), [one.multipliers for one in found]),
        "met": ((), [one.met for one in found]),
        "reached": ((), [one.residual <= RESIDUAL_REACHED for one in found]),
        "steps": ((), [one.steps for one in found]),
        "evaluations": ((), [one.evaluations for one in found]),
        "linear_u": (("layer", "input"), whole(linear)),
    }
    named = {
        name: (("prompt", *dims) if per_prompt else dims, np.asarray(v) if per_prompt else v[0])
        for name, (dims, v) in columns.items()
    }
    plan = xr.Dataset(
        named,
        coords={"layer": np.arange(n_layers), "input": goal.inputs, "output": goal.names},
    )
    plan["target"] = ("output", goal.target)
    direction = as_concept(concept)["direction"]
    if "input" not in direction.dims:
        direction = direction.expand_dims("input")
    direction = direction.drop_vars([n for n in direction.coords if n in ("depth", "input")])
    direction = direction.transpose("depth", "feature", "input").reset_coords(drop=True)
    plan["push"] = push_sizes(plan["u"], direction, xr.DataArray(norm, dims="depth"))
    if not per_prompt:
        history = np.stack(list(found[0].history.values()), axis=1)
        plan["history"] = (("step", "quantity"), history)
        plan = plan.assign_coords(quantity=list(found[0].history))
    return plan


def _not_met(found: list[Optimum], per_prompt: bool, *, bounded: bool) -> dict[str, str]:
    """The attr that says what is missing and the cure; or none."""
    missing = [one for one in found if not one.met]
    if not missing:
        return {}
    worst = max(missing, key=lambda one: one.residual)
    cures = {
        "steps": "Allow more `max_steps`",
        "no way on": "Ask for less, allow more `layers`"
        + ", a larger `max_relative_push`" * bounded
        + " or begin from another `start`",
        "stalled": "Ask for less, or use a finer dtype",
    }
    what = "the target" if worst.residual > RESIDUAL_REACHED else "the condition of least energy"
    who = f"{len(missing)} of {len(found)} prompts miss theirs, the worst" if per_prompt else "it"
    return {
        "not_met": f"{what} is not met: {who} ended with {worst.ended!r} "
        f"after {worst.steps} steps, a target missed by {worst.residual:.1%} and a KKT residual of "
        f"{worst.kkt_residual:.1e}. {cures.get(worst.ended, 'Ask for less')}."
    }


def _played(
    plan: xr.Dataset,
    run: Run,
    concept: xr.Dataset,
    readout: ReadoutLike,
    beside: Run | None,
    weights: np.ndarray,
) -> xr.Dataset:
    """What this plan and the linear one do, on these prompts and others."""
    cost = xr.DataArray(weights, dims="layer")
    plan["linear_energy"] = (plan["linear_u"] ** 2 * cost).sum(["layer", "input"])
    both = np.stack([plan[name].values for name in ("u", "linear_u")])
    if "prompt" in plan["u"].dims:
        v = directions(run.model, concept)
        reader = checked_readout(run.model, readout, concept)
        y = push_gradients(run, v, both[1], reader).y
        still = push_gradients(run, v, np.zeros_like(both[1]), reader).y
        plan["linear_shift"] = (("prompt", "output"), y - still)
        return plan
    response = shifts(run, concept, both, readout, "plans played")
    plan["response"] = (("prompt", "output"), response[:, 0])
    plan["linear_shift"] = ("output", response[:, 1].mean(axis=0))
    plan["saved"] = (1 - plan["energy"] / plan["linear_energy_needed"]).where(plan["reached"])
    if beside is not None:
        other = shifts(beside, concept, both[:1], readout, "held-out prompts")[:, 0]
        plan["held_out_response"] = (("prompt_held_out", "output"), other)
        plan["held_out_shift"] = mean_bounds(
            plan["held_out_response"].rename(prompt_held_out="prompt"),
            n_bootstrap=N_BOOTSTRAP,
            level=LEVEL,
            seed=SEED,
        )
    return plan


def _needed_by(
    linear: np.ndarray, goal: _Goal, allowed: np.ndarray, run: Run, concept, readout, weights
) -> float:
    """Energy that the linear plan needs when it is scaled until it reaches the target."""
    u = np.zeros((1, *allowed.shape))
    u[:, allowed] = linear
    energy = float(weights @ (u[0] ** 2).sum(axis=1))
    if energy == 0:
        return np.nan
    try:
        found = required_energy(
            run,
            concept,
            xr.DataArray(u, dims=("schedule", "layer", "input"), coords={"schedule": ["linear"]}),
            goal.target if len(goal.target) > 1 else float(goal.target[0]),
            amplitude=float(np.sqrt(energy)),
            weights=xr.DataArray(weights, dims="layer"),
            readout=readout,
        )
    except FloatingPointError:  # it overflows before it reaches anything
        return np.nan
    return float(found["energy"][0])
