"""Plans verified on the full model: the energy they need beside simple ones, and their amplitude.

Every schedule of a comparison is played in the same passes over the prompts.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from depthsys import ltv
from depthsys.lm.accuracy import mean_bounds, resamples
from depthsys.lm.amplitude_search import FIRST_LOOK, LARGEST, Search
from depthsys.lm.directions import as_concept, defined, direction_note, in_inputs_of
from depthsys.lm.energies import check_target, in_attrs, interval, quantiles, searched
from depthsys.lm.gains import squeezed
from depthsys.lm.kinds import Kind, identified, kinds_checked, short
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import Arithmetic
from depthsys.lm.readouts import ReadoutLike
from depthsys.lm.replay import shifts
from depthsys.lm.run import Run
from depthsys.lm.stamp import stamp
from depthsys.ltv.labels import in_order_of
from depthsys.ltv.plan import (
    ENERGIES,
    layer_weights,
    plan_energy,
    push_sizes,
    schedule,
    simple_schedules,
    to_unit_energy,
)

MINE = "minimum_energy"
# What a table of several splits says of each number.
SPLITS = ("median", "least", "largest")
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_PLANS = Kind(
    "a mapping from names to plans",
    lambda given: (
        given is None or (isinstance(given, Mapping) and not isinstance(given, xr.Dataset))
    ),
    'Write {"mine": plan}.',
)
_TABLES = Kind(
    "tables of `compare_energies`",
    lambda given: not isinstance(given, (str, Mapping)) or isinstance(given, xr.Dataset),
    "Give a list of them, or one Dataset with the dim 'split'.",
)


@of_run(
    once=False,
    shards=True,
    kinds={"system": identified("y_ref", "y_std", "state_norm"), "plans": _PLANS},
)
def compare_energies(
    run: Run,
    concept: xr.Dataset,
    system: xr.Dataset,
    target: float | np.ndarray,
    *,
    energy: str = "relative",
    plans: Mapping[str, xr.Dataset] | None = None,
    reference: str = MINE,
    readout: ReadoutLike = "concept",
    n_bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """The minimum-energy schedule against others, all played on the full model.

    Baselines: ``uniform`` over layers in the terms of the energy, that is the same part of the
    state's norm at all layers where it is relative, and ``uniform_absolute``, the same push at all
    of them (of absolute energy ``uniform`` is that one, and the other is ``uniform_relative``);
    ``first_layer``, ``middle_layer``, ``last_layer``, ``best_single_layer`` (least energy of all,
    chosen on these prompts, which flatters it), ``random_single_layer`` (median over all L layers,
    each equally likely; a layer that does not reach the target counts as infinite). Each pushes
    in the direction in which the system predicts progress, see `ltv.plan.simple_schedules`. A
    layer without a direction is in none of them: the first layer is the first that has one.

    Parameters
    ----------
    run
        The held-out prompts; or a model and texts.
    concept
        The directions.
    system
        From `identify`, one system.
    target
        Wanted mean shift of y_L, in the unit of the readout; (output) for several outputs.
    energy
        "relative": sum of ``u_l^2 / ||x_l||^2``, with the mean norm of the nominal state, so that a
        push counts by how much it changes the state; "absolute": sum of ``u_l^2``. It is what the
        planned schedule minimises, and what ``energy`` and ``multiple`` are in.
    plans
        Further schedules by name: each has ``u`` (layer, input), of which only shape and sign
        matter.
    reference
        The schedule that multiples are of.
    readout
        That of the system, for the full model: see `identify`. Of a profile the last depth counts.
    n_bootstrap, level, seed
        Of the percentile intervals, see `required_energy`; all schedules are resampled together.

    Returns
    -------
    xr.Dataset
        Per schedule: ``energy`` and ``multiple`` (of the reference's; NaN = not reached within
        16384 times the predicted optimum), with ``energy_low``, ``energy_high``, ``multiple_low``,
        ``multiple_high``; ``energy_relative``, ``energy_absolute`` at the amplitude that reaches
        the target and ``multiple_relative``, ``multiple_absolute``; ``planned_energy``, what the
        linear model expects of it; ``largest_push``, over layers, a part of the state's norm;
        ``reached``, ``monotone``, ``saturates``, ``evaluations`` (see `required_energy`),
        ``layer_pushed`` (-1 = several).
        ``progress``, the part of the target that the planned schedule reaches when
        it is played as it is; ``u`` (layer), and input where there are several, the planned
        schedule; ``predicted_energy``; ``single_energy`` (layer); ``random_energy`` and
        ``random_multiple`` (quantile), of one layer drawn at random, NaN where that quantile does
        not reach the target; ``response`` (prompt), of the minimum-energy schedule.

    Raises
    ------
    ValueError
        If an argument does not fit, or the target drowns in the rounding of the readout.
    """
    weights = layer_weights(system, energy)
    check_target(target)
    _check_size(run, system, target)
    wanted = np.atleast_1d(np.asarray(target, dtype=np.float64))
    plan = ltv.minimum_energy(system, target, energy=energy)
    exists = defined(concept)[:-1]
    layers = np.flatnonzero(exists.any(axis=1)).tolist()
    others = {n: in_inputs_of(p, concept, f"plans[{n!r}]") for n, p in (plans or {}).items()}
    schedules = _schedules(system, plan, others, wanted, energy, exists)
    _check_reference(reference, schedules, layers)
    gains = ltv.gains(system)
    predicted = _predicted(gains, schedules, wanted, weights, float(plan["energy"]))
    search = searched(
        run,
        concept,
        schedules,
        wanted if len(wanted) > 1 else float(wanted[0]),
        predicted,
        weights,
        readout,
    )
    counts = resamples(len(run), n_bootstrap, seed)
    found = _found(search, schedules, system, concept, energy, counts)
    table = _chosen(found, layers, run.n_layers, list(plans or {}))
    table = _multiples(table, reference, level, len(run))
    table = _random_range(table, found, layers, run.n_layers, reference, energy)
    u = plan["u"].transpose("layer", "input")
    table["u"] = squeezed(u.values, "layer", "input")
    table["predicted_energy"] = plan["energy"]
    mine = found.sel(schedule=MINE)
    table["progress"] = mine["progress"].drop_vars("schedule")
    table["response"] = squeezed(search.response[0], "prompt", "output")
    table.attrs = {
        **stamp(run, "compare_energies"),
        "target": in_attrs(wanted),
        "energy": energy,
        "reference": reference,
        "best_layer": int(table["layer_pushed"].sel(schedule="best_single_layer")),
        "n_bootstrap": n_bootstrap,
        "level": level,
        "seed": seed,
    }
    return table.assign_attrs(direction_note(concept))


def _check_size(run: Run, system: xr.Dataset, target: float | np.ndarray) -> None:
    model = run.model
    scale = float(abs(system["y_ref"]).max() + system["y_std"].max())
    arithmetic = Arithmetic.of(model)
    least = 100 * arithmetic.eps * scale
    if np.max(np.abs(target)) < least:
        raise ValueError(
            f"`target` must be well above the rounding of the readout; got {target} where "
            f"{least:.1e} is the least in {arithmetic.name}. Ask for more or use "
            f"{arithmetic.finer}."
        )


_OTHER_UNIFORM = {"relative": "uniform_absolute", "absolute": "uniform_relative"}
_SINGLE = ("first_layer", "middle_layer", "last_layer", "best_single_layer")
_RANDOM = "random_single_layer"


def _check_reference(reference: str, schedules: xr.DataArray, layers: list[int]) -> None:
    shared = [n for n in schedules["schedule"].values.tolist() if not n.startswith("layer_")]
    names = [*shared, *_SINGLE, _RANDOM]
    if reference not in names:
        raise ValueError(
            f"`reference` must be a schedule of the table, {names}; got {short(reference)}. Name "
            "one of them."
        )


def _schedules(
    system: xr.Dataset,
    plan: xr.Dataset,
    plans: Mapping[str, xr.Dataset],
    target: np.ndarray,
    energy: str,
    exists: np.ndarray,
) -> xr.DataArray:
    """All that is played (schedule, layer, input): plans, both uniform ones, every layer."""
    gains = ltv.gains(system)
    n_layers, n_inputs = gains.sizes["layer"], gains.sizes["input"]
    taken = {MINE, "uniform", *_OTHER_UNIFORM.values(), *_SINGLE, _RANDOM}
    wrong = [n for n in plans if not isinstance(n, str) or n in taken or n.startswith("layer_")]
    if wrong:
        raise ValueError(
            f"`plans` must be named otherwise than the schedules they are compared with; got "
            f"{wrong[0]!r}. Rename it."
        )
    given = {MINE: plan["u"].drop_vars("layer", errors="ignore")}
    for name, one in plans.items():
        u = schedule(one, n_layers, n_inputs, f"plans[{name!r}]")
        given[name] = u.drop_vars(list(u.coords))
    norm = system["state_norm"].isel(depth=slice(-1)).rename(depth="layer")
    norm = norm.drop_vars(list(norm.coords))
    plain = gains.drop_vars(list(gains.coords))
    directed = xr.DataArray(exists, dims=("layer", "input"))
    # a push of the same part of the state is a push of one in the unit of the state's norm
    alike = simple_schedules(plain * norm, target).sel(schedule="uniform", drop=True) * norm
    simple = simple_schedules(plain, target, layer_weights(system, energy))
    equal = simple.sel(schedule="uniform", drop=True)
    both = [alike, equal] if energy == "relative" else [equal, alike]
    given |= dict(zip(["uniform", _OTHER_UNIFORM[energy]], both, strict=True))
    for layer in np.flatnonzero(exists.any(axis=1)).tolist():
        given[f"layer_{layer}"] = simple.sel(schedule=f"layer_{layer}", drop=True)
    bare = [
        (u.drop_vars(list(u.coords)) * directed).transpose("layer", "input") if name not in plans
        else u.transpose("layer", "input")
        for name, u in given.items()
    ]  # fmt: skip
    return xr.concat(bare, dim="schedule").assign_coords(schedule=list(given))


def _predicted(gains, schedules, target, weights, least: float) -> np.ndarray:
    """Amplitude at which the linear model expects each schedule to reach the target."""
    unit = to_unit_energy(schedules, weights)
    shift = xr.dot(gains.drop_vars("layer", errors="ignore"), unit, dim=["layer", "input"])
    progress = (shift.transpose("schedule", "output").values @ target) / (target @ target)
    # a schedule that the linear model expects nothing of begins far out
    far = LARGEST * np.sqrt(least) / FIRST_LOOK[-1]
    with np.errstate(divide="ignore"):
        return np.where(progress > 0, np.minimum(1 / np.abs(progress), far), far)


def _found(
    search: Search,
    schedules: xr.DataArray,
    system: xr.Dataset,
    concept: xr.Dataset,
    energy: str,
    counts: np.ndarray,
) -> xr.Dataset:
    """What the search says of every schedule that was played."""
    unit = to_unit_energy(schedules, layer_weights(system, energy))
    square = search.alpha**2
    v = as_concept(concept)["direction"]
    v = v if "input" in v.dims else v.expand_dims("input")
    v = v.drop_vars([n for n in v.coords if n != "depth"])
    push = push_sizes(unit, v, system["state_norm"]).max("layer").values
    every = {
        "energy": square,
        "reached": np.isfinite(search.alpha),
        "monotone": search.monotone(),
        "saturates": search.saturates(),
        "evaluations": [len(points) for points in search.points],
        "planned_energy": search.predicted**2,
        "largest_push": search.alpha * push,
        "progress": search.progress_at_predicted(),
    }
    for kind in ENERGIES:
        each = plan_energy(unit, layer_weights(system, kind))
        every[f"energy_{kind}"] = square * each.transpose("schedule").values
    found = xr.Dataset({name: ("schedule", value) for name, value in every.items()})
    found["sample"] = (("schedule", "draw"), search.resampled(counts) ** 2)
    return found.assign_coords(schedule=schedules["schedule"])


def _chosen(found: xr.Dataset, layers: list[int], n_layers: int, plans: list[str]) -> xr.Dataset:
    """The rows of the table; ``layers`` are those that have a direction."""
    single = found.sel(schedule=[f"layer_{layer}" for layer in layers])
    best = layers[int(single["energy"].fillna(np.inf).values.argmin())]
    middle = min(layers, key=lambda layer: abs(layer - n_layers // 2))
    shared = [n for n in found["schedule"].values.tolist() if not n.startswith("layer_")]
    pushed = dict.fromkeys([MINE, *plans], -1)
    pushed |= dict.fromkeys([n for n in shared if n not in pushed], -1)
    pushed |= dict(zip(_SINGLE, [layers[0], middle, layers[-1], best], strict=True))
    rows = [name if layer < 0 else f"layer_{layer}" for name, layer in pushed.items()]
    table = found.sel(schedule=rows).drop_vars("progress").assign_coords(schedule=list(pushed))
    table["layer_pushed"] = ("schedule", list(pushed.values()))
    random = _of_random_layer(single)
    table = xr.concat([table, random], dim="schedule")
    table = table.assign_coords(layer=np.arange(n_layers))
    each = np.full(n_layers, np.nan)
    each[layers] = single["energy"].values
    table["single_energy"] = ("layer", each)
    return table


def _of_random_layer(single: xr.Dataset) -> xr.Dataset:
    """The row of a layer that is drawn at random: medians over all of them."""
    medians = ("energy", "energy_relative", "energy_absolute", "planned_energy", "largest_push")
    row: dict = {name: ("schedule", [_median(single[name].values)]) for name in medians}
    samples = single["sample"].transpose("draw", "schedule").values
    middle = quantiles(np.where(np.isnan(samples), np.inf, samples), [0.5])
    row["sample"] = (("schedule", "draw"), np.where(np.isnan(middle), np.inf, middle))
    row["reached"] = ("schedule", [bool(np.isfinite(row["energy"][1][0]))])
    row["monotone"] = ("schedule", [bool(single["monotone"].all())])
    row["saturates"] = ("schedule", [bool(single["saturates"].any())])
    row["evaluations"] = ("schedule", [int(single["evaluations"].sum())])
    row["layer_pushed"] = ("schedule", [-1])
    return xr.Dataset(row, coords={"schedule": [_RANDOM]})


def _median(values: np.ndarray) -> float:
    """The median where NaN is not reached, the largest of all; NaN if it is one of those."""
    return float(quantiles(np.where(np.isnan(values), np.inf, values), [0.5])[0])


def _multiples(table: xr.Dataset, reference: str, level: float, n_prompts: int) -> xr.Dataset:
    """Intervals of the energies, and the energies as multiples of the reference's."""
    for kind in ("", "_relative", "_absolute"):
        value = table[f"energy{kind}"]
        of = value.sel(schedule=reference, drop=True)
        table[f"multiple{kind}"] = value / of
    samples = table["sample"].transpose("schedule", "draw")
    with np.errstate(invalid="ignore"):
        ratio = samples.values / samples.sel(schedule=reference).values
    for name, values in {"energy": samples.values, "multiple": ratio}.items():
        for end, bound in zip(("low", "high"), interval(values, level, n_prompts), strict=True):
            known = table[name].notnull().values
            table[f"{name}_{end}"] = ("schedule", np.where(known, bound, np.nan))
    return table.drop_vars("sample")


def _random_range(
    table: xr.Dataset,
    found: xr.Dataset,
    layers: list[int],
    n_layers: int,
    reference: str,
    energy: str,
) -> xr.Dataset:
    """Quantiles of what one layer drawn at random needs."""
    single = table["single_energy"].values[layers]
    each = quantiles(np.where(np.isnan(single), np.inf, single), list(QUANTILES))
    table = table.assign_coords(quantile=list(QUANTILES))
    table["random_energy"] = ("quantile", each)
    of = float(table["energy"].sel(schedule=reference))
    table["random_multiple"] = ("quantile", each / of)
    return table


@kinds_checked(tables=_TABLES)
def energies_over_splits(tables: xr.Dataset | Sequence[xr.Dataset]) -> xr.Dataset:
    """Median and range over splits of tables of `compare_energies`.

    Parameters
    ----------
    tables
        Tables of the same schedules, one of each split; or one Dataset with the dim ``split``.

    Returns
    -------
    xr.Dataset
        ``energy``, ``multiple``, both also ``_relative`` and ``_absolute``, and ``largest_push``,
        as (schedule, over_splits: median, least, largest). A split in which a schedule does not
        reach the target counts as infinite, and what is infinite is NaN; ``reached``,
        ``saturates`` and ``not_monotone`` (schedule): in how many splits. ``ratio`` (over_splits):
        energy needed over energy planned, of the minimum-energy schedule. attrs ``n_splits``.

    Raises
    ------
    ValueError
        If there is no table, or they differ in schedules, kind of energy or reference.
    """
    if isinstance(tables, xr.Dataset):
        if "split" not in tables.dims:
            raise ValueError(
                f"`tables` must have the dim 'split'; got {sorted(map(str, tables.dims))}. Give a "
                "list of tables."
            )
        tables = [tables.isel(split=i, drop=True) for i in range(tables.sizes["split"])]
    tables = list(tables)
    if not tables:
        raise ValueError("`tables` must hold a table at least; got none. Add one for each split.")
    first = tables[0]
    names = first["schedule"].values.tolist()
    for i, other in enumerate(tables):
        if sorted(other["schedule"].values.tolist()) != sorted(names):
            raise ValueError(
                f"`tables` must hold the same schedules; got {other['schedule'].values.tolist()} "
                f"in number {i} and {names} in the first. Compare the same plans in every split."
            )
        for key in ("energy", "reference"):
            if other.attrs.get(key) != first.attrs.get(key):
                raise ValueError(
                    f"`tables` must have one {key}; got {other.attrs.get(key)!r} in number {i} and "
                    f"{first.attrs.get(key)!r} in the first. Compare with the same settings."
                )
    every = [other.sel(schedule=names) for other in tables]
    out = xr.Dataset(coords={"schedule": names, "over_splits": list(SPLITS)})
    kinds = [f"{name}{kind}" for name in ("energy", "multiple") for kind in ("", *_KINDS)]
    for name in [*kinds, "largest_push"]:
        values = np.stack([one[name].values for one in every], axis=-1)
        out[name] = (("schedule", "over_splits"), _median_and_range(values))
    for name, counted in _COUNTED.items():
        out[name] = ("schedule", sum(counted(one).values.astype(int) for one in every))
    mine = [float(one["energy"].sel(schedule=MINE) / one["predicted_energy"]) for one in every]
    out["ratio"] = ("over_splits", _median_and_range(np.array(mine)))
    shared = {
        key: value
        for key, value in first.attrs.items()
        if all(key in one.attrs and np.array_equal(one.attrs[key], value) for one in every)
    }
    return out.assign_attrs(shared | {"n_splits": len(every)})


_KINDS = ("_relative", "_absolute")
_COUNTED = {
    "reached": lambda one: one["reached"],
    "saturates": lambda one: one["saturates"],
    "not_monotone": lambda one: ~one["monotone"].astype(bool),
}


def _median_and_range(values: np.ndarray) -> np.ndarray:
    """Median, least and largest (..., over_splits) over the last dim; NaN counts as infinite."""
    infinite = np.where(np.isnan(values), np.inf, values)
    return np.moveaxis(quantiles(infinite, [0.5, 0.0, 1.0]), 0, -1)


@of_run(once=True, shards=True)
def amplitude_response(
    run: Run,
    concept: xr.Dataset,
    system: xr.Dataset,
    schedules: xr.DataArray,
    *,
    amplitudes: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
    readout: ReadoutLike = "concept",
    n_bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Predicted against achieved shift over amplitude, all schedules in one pass over the prompts.

    Parameters
    ----------
    run
        The held-out prompts; or a model and texts.
    concept
        The directions.
    system
        From `identify`, one system: it predicts.
    schedules
        (schedule, layer, input), or (schedule, layer) for one input, as planned.
    amplitudes
        Factors on each whole schedule; 1 is as planned.
    readout
        That of the system, for the full model: see `identify`. Of a profile the last depth counts.
    n_bootstrap, level, seed
        Of the percentile intervals, which resample prompts.

    Returns
    -------
    xr.Dataset
        ``predicted`` (schedule, amplitude) by the system; ``achieved`` (schedule, amplitude,
        bound), mean over prompts with its interval; ``spread`` (schedule, amplitude), standard
        deviation over prompts; each with a dim output where there are several.

    Raises
    ------
    ValueError
        If an argument does not fit.
    FloatingPointError
        If a push is so large that a state overflows.
    """
    factors = np.asarray(amplitudes, dtype=np.float64)
    if factors.ndim != 1 or not len(factors) or not np.isfinite(factors).all():
        raise ValueError(
            f"`amplitudes` must be a list of finite factors; got {short(amplitudes)}. 1 is as "
            "planned."
        )
    if "prompt" in system.dims:
        raise ValueError(
            f"`system` must be one system; got {system.sizes['prompt']} along 'prompt'. Identify "
            "without `per_prompt`, or select one."
        )
    if "input" not in schedules.dims:
        schedules = schedules.expand_dims("input", axis=-1)
    u = schedules.transpose("schedule", "layer", "input").astype(np.float64)
    u = in_order_of(u, "schedules", "layer", np.arange(run.n_layers))
    pushes = u.values[:, None] * factors[:, None, None]
    response = shifts(
        run, concept, pushes.reshape(-1, *pushes.shape[2:]), readout, "amplitudes"
    ).reshape(len(run), len(u), len(factors), -1)
    found = squeezed(response, "prompt", "schedule", "amplitude", "output")
    gains = ltv.gains(system)
    bare = gains.drop_vars(list(gains.coords))
    linear = xr.dot(bare, u.drop_vars(["layer", "input"], errors="ignore"), dim=["layer", "input"])
    linear = linear.transpose("schedule", "output").values[:, None] * factors[:, None]
    return xr.Dataset(
        {
            "predicted": squeezed(linear, "schedule", "amplitude", "output"),
            "achieved": mean_bounds(found, n_bootstrap=n_bootstrap, level=level, seed=seed),
            "spread": found.std("prompt"),
        },
        coords={"schedule": u["schedule"], "amplitude": factors},
        attrs={
            **stamp(run, "amplitude_response"),
            "n_bootstrap": n_bootstrap,
            "level": level,
            **direction_note(concept),
        },
    )
