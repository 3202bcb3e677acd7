r"""Laws: pushes that depend on the state they act on.

A law is a plan with more in it: ``u`` (layer, input), ``K`` (layer, input, state), ``W`` (depth,
feature, state), ``r_ref`` (depth, state) and, where the state is not compared with the prompt's
own nominal one, ``x_ref`` (depth, feature). At layer l it pushes by

.. math:: u_l - K_l [W_l^\top (x_l - x^{ref}_l) - r^{ref}_l]

along the directions of the concept, with :math:`x_l` the state as it is. `play_law` plays it.
"""

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from depthsys import ltv
from depthsys.lm.directions import as_concept, direction_note
from depthsys.lm.energies import check_target, in_attrs
from depthsys.lm.kinds import kinds_checked, short
from depthsys.ltv.plan import ENERGIES, WHAT_IT_DOES, large_push, layer_weights, push_sizes
from depthsys.ltv.push_limits import layer_numbers

# What the state is compared with: the prompt's own nominal state, the mean nominal state of the
# operating prompts, or the origin.
REFERENCES = ("own", "mean", "none")
# Which state a law reads: the one that it has pushed already, or the nominal one.
READS = ("live", "clean")


@kinds_checked()
def feedback(
    system: xr.Dataset,
    target: float | np.ndarray,
    *,
    effort: float = 1.0,
    stage: float = 0.0,
    trajectory: np.ndarray | xr.DataArray | None = None,
    energy: str = "relative",
    reference: str = "own",
) -> xr.Dataset:
    r"""A plan with feedback: finite-horizon linear-quadratic regulation over depth.

    Around a nominal plan u with the states r of the system under it, the law
    :math:`u_l - K_l (W_l^\top \delta x_l - r_l)` minimises, over all deviations, the squared
    deviation of the readout at the last depth (of the target, as 1), plus ``stage`` times the mean
    one at the depths before, plus ``effort`` times the energy of the correction over that of the
    plan. ``K`` is from `ltv.lqr`.

    Parameters
    ----------
    system
        From `identify`, one system, with a basis that all prompts share (``V``, ``W``).
    target
        Wanted shift of y_L, in the unit of the readout; (output) for several outputs.
    effort
        What a correction costs: as small as 0.01, errors are corrected at almost any energy; as
        large as 100, hardly.
    stage
        What deviations before the last depth cost; needs a system that reads them
        (``readout="profile"``).
    trajectory
        Wanted shift of the readout at every depth (depth), or (depth, output), whose last value
        is the target. Then the nominal plan is the one that tracks it (`ltv.lqry`, with stage
        cost 1 if ``stage`` is 0) in place of the one of minimum energy, and need not end at the
        target exactly.
    energy
        "relative" or "absolute": the energy of both, see `ltv.plan`.
    reference
        "own": the state read is the deviation from the prompt's own nominal state, and what is
        corrected is the error of the system alone; `lm.steering` cannot use it, since a model that
        writes has no run without pushes beside it. "mean": from the mean nominal state of the
        operating prompts; then prompts are brought to one level of the readout, the mean nominal
        one plus the target, wherever they are on their own: a thermostat.

    Returns
    -------
    xr.Dataset
        A law: ``u``, ``K``, ``W``, ``r_ref``, ``weights`` (layer) of its energy; with reference
        "mean" ``x_ref`` and ``level`` (output), the readout that is wanted; ``energy``,
        ``predicted``, ``target`` (output) and ``push`` of the nominal plan. attrs as a plan has
        them, with the operation "feedback", ``reference`` and ``reads``.

    Raises
    ------
    ValueError
        If the system has no shared basis, or an argument does not fit.

    Notes
    -----
    The reference state is stored as far as the basis sees it: :math:`V_l W_l^\top \bar x_l`.
    """
    _check_system(system, reference)
    check_target(target)
    for name, value, least in (("effort", effort, 0.0), ("stage", stage, -1e-300)):
        if not (np.isfinite(value) and value > least):
            rule = "positive" if name == "effort" else ">= 0"
            raise ValueError(f"`{name}` must be {rule} and finite; got {value}. Leave it out.")
    if reference not in REFERENCES[:2]:
        raise ValueError(
            f"`reference` must be one of {REFERENCES[:2]}; got {short(reference)}. Pick one."
        )
    weights = layer_weights(system, energy)
    wanted = np.atleast_1d(np.asarray(target, dtype=np.float64))
    path = None if trajectory is None else _trajectory(system, wanted, trajectory)
    stage = 1.0 if path is not None and not stage else stage
    if stage and not bool((system["C"].isel(depth=slice(1, -1)) != 0).any()):
        raise ValueError(
            "`system` must read the depths before the last for a stage cost or a trajectory; got "
            f"readout {system.attrs.get('readout')!r}. Identify it with `readout='profile'`."
        )
    bare = system.drop_vars([n for n in ("layer", "depth", "state", "input") if n in system.coords])
    plan = ltv.minimum_energy(bare, wanted, weights=weights.values)
    Q, R, terminal = _costs(bare, weights.values, wanted, float(plan["energy"]), effort, stage)
    law = ltv.lqry(bare, Q, R, terminal) if path is None else None
    u = plan["u"]
    if law is None:
        law = ltv.lqry(bare, Q, R, terminal, y_target=path)
        u = _followed(bare, law)
    states = ltv.simulate(bare, u)
    norm = system["state_norm"]
    u = u.transpose("layer", "input").drop_vars(list(u.coords))
    push = push_sizes(u, _bare(system["v"]), _bare(norm))
    shift = states["y"].isel(depth=-1, drop=True)
    found = xr.Dataset(
        {
            "u": u,
            "K": _bare(law["K"]).transpose("layer", "input", "state"),
            "W": _bare(system["W"]).transpose("depth", "feature", "state"),
            "r_ref": _bare(states["x"]).transpose("depth", "state"),
            "weights": _bare(weights),
            "energy": float(((u**2).sum("input") * _bare(weights)).sum()),
            "predicted": ("output", shift.values),
            "target": ("output", wanted),
            "push": push,
        },
        coords={"layer": np.arange(u.sizes["layer"]), "depth": np.arange(u.sizes["layer"] + 1)},
    )
    if reference == "mean":
        found["x_ref"] = xr.dot(_bare(system["V"]), _bare(system["x_ref"]), dim="state")
        found["level"] = _bare(system["y_ref"]).isel(depth=-1, drop=True) + found["target"]
    kept = ("model", "model_fingerprint", "readout", "prompts_sha256", "order", "concept")
    found.attrs = {
        **{key: system.attrs[key] for key in kept if key in system.attrs},
        **_attrs(reference, "live"),
        "energy": energy,
        "effort": float(effort),
        "stage": float(stage),
        "target_asked": json.dumps(in_attrs(wanted)),
        "tracks": "the plan of minimum energy" if path is None else "a given trajectory",
        **large_push(push),
    }
    return found


def _check_system(system: xr.Dataset, reference: str) -> None:
    """ValueError unless one basis is shared by all prompts."""
    if "prompt" in system.dims:
        raise ValueError(
            "`system` must be one system for all prompts; got one for each of "
            f"{system.sizes['prompt']}. Identify it without `per_prompt`."
        )
    needs = ["W", "v", "state_norm", *(["V", "x_ref", "y_ref"] if reference == "mean" else [])]
    missing = [name for name in needs if name not in system]
    if missing:
        method = system.attrs.get("method", "no method")
        raise ValueError(
            f"`system` must have a basis that all prompts share; got one by {method} without "
            f"{', '.join(missing)}. Use a method with a basis, as "
            "`lm.identify(run, concept, lm.Krylov(order=16))`."
        )


def _bare(values: xr.DataArray) -> xr.DataArray:
    return values.drop_vars(list(values.coords))


def _trajectory(system: xr.Dataset, target: np.ndarray, given) -> xr.DataArray:
    """The wanted readout (depth, output)."""
    n_depths, n_outputs = system.sizes["depth"], system.sizes["output"]
    if not isinstance(given, xr.DataArray):
        given = np.asarray(given, dtype=np.float64)
        dims = ("depth", "output")[: given.ndim]
        given = xr.DataArray(given, dims=dims if given.ndim in (1, 2) else None)
    if given.dims == ("depth",):
        given = given.expand_dims(output=n_outputs, axis=-1) if n_outputs == 1 else given
    shape = {"depth": n_depths, "output": n_outputs}
    if dict(given.sizes) != shape or not np.isfinite(given.values).all():
        raise ValueError(
            f"`trajectory` must be finite numbers with {shape}; got {dict(given.sizes)}. Give the "
            "shift of every output at every depth 0..L."
        )
    path = _bare(given).transpose("depth", "output")
    if not np.allclose(path.values[-1], target, rtol=1e-6):
        raise ValueError(
            f"`trajectory` must end at the target; got {path.values[-1]} for {target}. Scale it."
        )
    return path


def _costs(
    system: xr.Dataset,
    weights: np.ndarray,
    target: np.ndarray,
    energy: float,
    effort: float,
    stage: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Q, R and the cost of the end, on outputs: an error of the target's size costs 1."""
    L, m, p = (system.sizes[d] for d in ("layer", "input", "output"))
    end = np.eye(p) / float(target @ target)
    R = (effort * weights / energy)[:, None, None] * np.eye(m)
    return np.broadcast_to(stage / L * end, (L, p, p)), R, end


def _followed(system: xr.Dataset, law: xr.Dataset) -> xr.DataArray:
    """The inputs (layer, input) of the system under a tracking law, from rest."""
    run = ltv.simulate(ltv.closed_loop(system, law["K"]), law["feedforward"])
    x = _bare(run["x"]).isel(depth=slice(-1)).rename(depth="layer")
    return _bare(law["feedforward"]) - xr.dot(_bare(law["K"]), x, dim="state")


# ---------------------------------------------------------------------------- laws made by hand


@kinds_checked()
def clamp(
    concept: xr.Dataset,
    value: float | Sequence[float] | np.ndarray,
    *,
    layers: Sequence[int] | None = None,
    reads: str = "live",
) -> xr.Dataset:
    """The law that sets the concept's coordinate of the state to a value, layer by layer.

    ``x + (value - v'x) v``; of several directions all coordinates together.

    Parameters
    ----------
    concept
        The directions.
    value
        Wanted v_l'x_l, in the unit of the state: one number, or one for each depth.
    layers
        Those that push; by default all.
    reads
        "live": the coordinate is read from the state as it is, after the pushes before; "clean":
        from the nominal run of the same prompt.

    Returns
    -------
    xr.Dataset
        A law for `play_law`; of absolute energy.

    Raises
    ------
    ValueError
        If an argument does not fit.
    """
    return _by_hand(concept, value, 1.0, layers, reads, "clamp")


@kinds_checked()
def reflect(
    concept: xr.Dataset,
    value: float | Sequence[float] | np.ndarray = 0.0,
    *,
    layers: Sequence[int] | None = None,
    reads: str = "live",
) -> xr.Dataset:
    """The law that mirrors the concept's coordinate of the state at a value, layer by layer.

    ``x - 2 (v'x - value) v``: an involution. A band of layers whose blocks hardly change the
    coordinate undoes itself, at every second width, where the coordinate is read "live"; read
    "clean" its pushes add up.

    Parameters
    ----------
    concept, layers, reads
        See `clamp`.
    value
        The mirror, in the unit of the state: one number, or one for each depth.

    Returns
    -------
    xr.Dataset
        A law for `play_law`; of absolute energy.

    Raises
    ------
    ValueError
        If an argument does not fit.
    """
    return _by_hand(concept, value, 2.0, layers, reads, "reflect")


def _by_hand(concept, value, gain: float, layers, reads: str, name: str) -> xr.Dataset:
    if reads not in READS:
        raise ValueError(f"`reads` must be one of {READS}; got {short(reads)}. Pick one.")
    v = as_concept(concept)["direction"]
    v = _bare(v if "input" in v.dims else v.expand_dims("input"))
    v = v.transpose("depth", "feature", "input").values.astype(np.float64)
    n_depths, n_features, m = v.shape
    wanted = np.asarray(value, dtype=np.float64)
    if wanted.shape not in ((), (n_depths,)) or not np.isfinite(wanted).all():
        raise ValueError(
            f"`value` must be a finite number, or one for each of the {n_depths} depths; got "
            f"{short(value)}. Give one."
        )
    chosen = np.array(range(n_depths - 1) if layers is None else layer_numbers(layers), dtype=int)
    if not len(chosen) or chosen.min() < 0 or chosen.max() >= n_depths - 1:
        raise ValueError(
            f"`layers` must be numbers of layers in 0..{n_depths - 2}; got {short(layers)}. Leave "
            "it out for all."
        )
    exists = np.asarray(~np.isnan(v).all(axis=1))
    W = np.where(np.isnan(v), 0.0, v)
    # several directions need not be orthogonal: pushes along one change the coordinates of others
    K = np.zeros((n_depths - 1, m, m))
    K[chosen] = gain * np.linalg.pinv(W.swapaxes(1, 2) @ W, hermitian=True)[chosen]
    r_ref = np.where(exists, np.broadcast_to(wanted, n_depths)[:, None], 0.0)
    attrs = {
        key: concept.attrs[key] for key in ("model", "model_fingerprint") if key in concept.attrs
    }
    return xr.Dataset(
        {
            "u": (("layer", "input"), np.zeros((n_depths - 1, m))),
            "K": (("layer", "input", "state"), K),
            "W": (("depth", "feature", "state"), W),
            "x_ref": (("depth", "feature"), np.zeros((n_depths, n_features))),
            "r_ref": (("depth", "state"), r_ref),
            "weights": ("layer", np.ones(n_depths - 1)),
        },
        coords={"layer": np.arange(n_depths - 1), "depth": np.arange(n_depths)},
        attrs={
            **attrs,
            **direction_note(concept),
            **_attrs("none", reads),
            "law": name,
            "energy": ENERGIES[1],
            "layers": json.dumps(sorted(set(chosen.tolist()))),
        },
    )


def _attrs(reference: str, reads: str) -> dict[str, str]:
    return {**WHAT_IT_DOES, "operation": "feedback", "reference": reference, "reads": reads}
