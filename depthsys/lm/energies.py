"""How much energy schedules of pushes really need on the full nonlinear model."""

import numpy as np
import xarray as xr

from depthsys.lm.accuracy import gain_curve, resamples
from depthsys.lm.amplitude_search import Search
from depthsys.lm.directions import defined
from depthsys.lm.gains import squeezed
from depthsys.lm.of_run import of_run
from depthsys.lm.readouts import ReadoutLike, checked_readout
from depthsys.lm.replay import shifts
from depthsys.lm.run import Run
from depthsys.lm.stamp import stamp
from depthsys.ltv.labels import in_order_of
from depthsys.ltv.plan import check_pushes_exist, to_unit_energy
from depthsys.ltv.system import as_named

# Why a plan misses its target, see `miss_of_plan`.
CAUSES = ("truncation", "averaging", "sampling", "nonlinearity", "total")


def check_target(target: float | np.ndarray) -> None:
    """ValueError unless the wanted shift is finite and not zero."""
    if not (np.isfinite(target).all() and np.any(target)):
        raise ValueError(f"`target` must be finite and not zero; got {target}. Give a shift.")


@of_run(once=False, shards=True)
def required_energy(
    run: Run,
    concept: xr.Dataset,
    schedules: xr.DataArray,
    target: float | np.ndarray,
    *,
    amplitude: float | np.ndarray,
    weights: np.ndarray | xr.DataArray | None = None,
    readout: ReadoutLike = "concept",
    n_bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    r"""Least energy with which each schedule really reaches the target on the full model.

    For each schedule (scaled to unit energy) finds the smallest :math:`\alpha \ge 0` whose mean
    shift over prompts reaches the target. Three evaluations around the predicted amplitude and,
    where they do not reach it, amplitudes that grow by `GROWTH` up to `LARGEST` times the smallest
    one bracket the first crossing; inverse interpolation, kept inside the bracket, then finds it
    to `TOLERANCE`. A response that turns back beyond `NEARLY` of the target is looked at more
    closely around its largest value. All schedules share each pass over the prompts, and a typical
    one takes 4 to 6 evaluations. A crossing that comes and goes between two points of the search
    is not seen.

    Parameters
    ----------
    run
        The held-out prompts; or a model and texts.
    concept
        The directions.
    schedules
        (schedule, layer, input), or (schedule, layer) for one input; only their shapes and signs
        matter.
    target
        Wanted mean shift of y_L, its sign matters; (output) for several outputs. Then progress is
        the component of the shift along the target.
    amplitude
        Square root of the energy that is predicted to be enough, for all schedules or (schedule).
    weights
        Cost per layer (layer): the energy is ``sum_l weights_l sum_i u_li^2``; 1 by default.
    readout
        See `identify`; of a profile the last depth counts.
    n_bootstrap, level, seed
        Of the percentile intervals, which resample prompts. Nothing is played for them: the shift
        of every prompt is known at the amplitudes of the search, and the crossing of the mean of
        resampled prompts is found by monotone cubic interpolation between them.

    Returns
    -------
    xr.Dataset
        Per schedule: ``energy`` (alpha^2, NaN if not reached) with ``energy_low`` and
        ``energy_high`` (NaN where that share of the samples reaches it at no amplitude that was
        played, and of a single prompt), ``alpha``, ``reached``,
        ``progress``, the part of the target that it reaches at the predicted amplitude,
        ``monotone`` (no drop of the mean shift at the points up to the crossing), ``saturates``
        (it flattens or turns before the target: between two points it rises by less than a
        quarter of its steepest mean rise from zero),
        ``evaluations``, ``response`` (schedule, prompt; and output where there are several) when
        played at alpha.

    Raises
    ------
    ValueError
        If the target is zero or not finite, or a schedule is zero.
    FloatingPointError
        If a push is so large that a state overflows.
    """
    search = searched(run, concept, schedules, target, amplitude, weights, readout)
    samples = search.resampled(resamples(len(run), n_bootstrap, seed)) ** 2
    low, high = interval(samples, level, len(run))
    found = np.isfinite(search.alpha)
    return xr.Dataset(
        {
            "energy": ("schedule", search.alpha**2),
            "energy_low": ("schedule", np.where(found, low, np.nan)),
            "energy_high": ("schedule", np.where(found, high, np.nan)),
            "alpha": ("schedule", search.alpha),
            "reached": ("schedule", found),
            "progress": ("schedule", search.progress_at_predicted()),
            "monotone": ("schedule", search.monotone()),
            "saturates": ("schedule", search.saturates()),
            "evaluations": ("schedule", [len(points) for points in search.points]),
            "response": squeezed(search.response, "schedule", "prompt", "output"),
        },
        coords={"schedule": schedules["schedule"]},
        attrs={
            **stamp(run, "required_energy"),
            "target": in_attrs(search.target),
            "n_bootstrap": n_bootstrap,
            "level": level,
        },
    )


def in_attrs(target: np.ndarray) -> float | list[float]:
    """A target (output) as attrs hold it."""
    return target.tolist() if len(target) > 1 else float(target[0])


def searched(
    run: Run,
    concept: xr.Dataset,
    schedules: xr.DataArray,
    target: float | np.ndarray,
    amplitude: float | np.ndarray,
    weights: np.ndarray | xr.DataArray | None,
    readout: ReadoutLike,
) -> Search:
    """The search behind `required_energy`, finished, with all that it has played."""
    check_target(target)
    wanted = np.atleast_1d(np.asarray(target, dtype=np.float64))
    n_outputs = checked_readout(run.model, readout, concept).n_outputs
    if wanted.shape != (n_outputs,):
        raise ValueError(
            f"`target` must have one value for each of the {n_outputs} outputs; got {target}. "
            "Choose another readout, or give them all."
        )
    if "input" not in schedules.dims:
        schedules = schedules.expand_dims("input", axis=-1)
    shapes = schedules.transpose("schedule", "layer", "input").astype(np.float64)
    shapes = in_order_of(shapes, "schedules", "layer", np.arange(shapes.sizes["layer"]))
    check_pushes_exist(shapes, defined(concept)[:-1], "schedules")
    cost = None
    if weights is not None:
        cost = as_named(weights, "weights", {"layer": shapes.sizes["layer"]})
        cost = in_order_of(cost, "weights", "layer", np.arange(shapes.sizes["layer"]))
    shapes = to_unit_energy(shapes, cost).values

    def play(rows: np.ndarray, alphas: np.ndarray) -> np.ndarray:
        pushes = shapes[rows] * alphas[:, None, None]
        return shifts(run, concept, pushes, readout, "search energy")

    predicted = np.broadcast_to(np.asarray(amplitude, dtype=np.float64), len(shapes))
    if not (np.isfinite(predicted) & (predicted > 0)).all():
        raise ValueError(
            f"`amplitude` must be positive and finite; got {amplitude}. Give the square root of "
            "the energy that a linear model predicts."
        )
    search = Search(play, wanted, predicted)
    search.bracket()
    search.refine()
    search.look_beyond()
    return search


def interval(samples: np.ndarray, level: float, n_prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of samples (..., sample), infinite ones counted; NaN where infinite.

    NaN of a single prompt, of which nothing can be resampled. Samples that are NaN are left out.
    """
    if n_prompts == 1:
        none = np.full(samples.shape[:-1], np.nan)
        return none, none
    tail = (1 - level) / 2
    low, high = quantiles(samples, [tail, 1 - tail])
    return low, high


def quantiles(values: np.ndarray, wanted: list[float]) -> np.ndarray:
    """Quantiles (quantile, ...) over the last dim; a value that is infinite is one of the largest.

    NaN where a quantile is infinite, or where all values are NaN.
    """
    huge = np.where(np.isinf(values), 1e300, values)
    known = ~np.isnan(huge).all(axis=-1)
    found = np.full((len(wanted), *known.shape), np.nan)
    found[:, known] = np.nanquantile(huge[known], wanted, axis=-1)
    return np.where(found > 1e200, np.nan, found)


def miss_of_plan(
    system: xr.Dataset,
    energies: xr.Dataset,
    linear_operating: xr.Dataset,
    linear_held_out: xr.Dataset,
) -> xr.DataArray:
    """Why the planned schedule misses its target on held-out prompts, when it is played as it is.

    Parts of the target, which add up to the whole miss. With the part of the target that the plan
    reaches by the surrogate (1, as planned), the product of mean Jacobians before truncation, the
    mean exact linear response of the operating prompts, that of the held-out prompts, and the full
    model: the differences of neighbours are truncation, averaging, sampling and nonlinearity.

    Parameters
    ----------
    system
        From `identify`, one system.
    energies
        From `compare_energies`, with one output.
    linear_operating, linear_held_out
        `linear_gains` of both kinds of prompts.

    Returns
    -------
    xr.DataArray
        ``miss`` (cause: truncation, averaging, sampling, nonlinearity, total).
    """
    u, target = energies["u"].drop_vars("layer"), float(energies.attrs["target"])

    def reached(gain: xr.DataArray) -> float:
        gain = gain.drop_vars("layer", errors="ignore").fillna(0.0)
        return float((gain * u).sum()) / target

    way = [
        reached(gain_curve(system)),
        reached(system["gain_full"]),
        reached(linear_operating["gain"].mean("prompt")),
        reached(linear_held_out["gain"].mean("prompt")),
        float(energies["progress"]),
    ]
    parts = [*np.diff(way), way[-1] - way[0]]
    return xr.DataArray(parts, {"cause": list(CAUSES)}, ["cause"], name="miss")
