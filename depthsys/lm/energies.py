"""How much energy schedules of pushes really need on the full nonlinear model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import xarray as xr

from depthsys import ltv
from depthsys.lm.accuracy import gain_curve
from depthsys.lm.directions import defined, direction_note
from depthsys.lm.gains import squeezed
from depthsys.lm.kinds import identified
from depthsys.lm.measure import shifts
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import eps, finer
from depthsys.lm.readouts import ReadoutLike, checked_readout
from depthsys.lm.run import Run
from depthsys.lm.stamp import stamp
from depthsys.ltv.labels import in_order_of
from depthsys.ltv.plan import (
    check_pushes_exist,
    layer_weights,
    simple_schedules,
    to_unit_energy,
)
from depthsys.ltv.system import as_named

# Why a plan misses its target, see `miss_of_plan`.
CAUSES = ("truncation", "averaging", "sampling", "nonlinearity", "total")
# Where the search begins, times the amplitude that is predicted for a schedule, and how it goes on
# where the target is not reached there.
FIRST_LOOK = (0.5, 1.0, 2.0)
GROWTH = 4.0
# Largest amplitude that is tried, times the predicted optimum: 16384 times its energy.
LARGEST = 128.0
# A crossing counts as found when the mean shift is within this part of the target.
TOLERANCE = 1e-4
# A response that turns back just before the target may pass it between two points of the search:
# where it comes as near as that, it is looked at more closely around its largest value.
NEARLY = 0.8
LOOKS_NEAR_MAXIMUM = 3
# or when the bracket around it is as narrow as that part of it.
NARROW = 1e-4
MOST_STEPS = 60


def check_target(target: float | np.ndarray) -> None:
    """ValueError unless the wanted shift is finite and not zero."""
    if not (np.isfinite(target).all() and np.any(target)):
        raise ValueError(f"`target` must be finite and not zero; got {target}. Give a shift.")


@of_run(once=False)
def required_energy(
    run: Run,
    concept: xr.Dataset,
    schedules: xr.DataArray,
    target: float | np.ndarray,
    *,
    amplitude: float | np.ndarray,
    weights: np.ndarray | xr.DataArray | None = None,
    readout: ReadoutLike = "concept",
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

    Returns
    -------
    xr.Dataset
        Per schedule: ``energy`` (alpha^2, NaN if not reached), ``alpha``, ``reached``,
        ``progress``, the part of the target that it reaches at the predicted amplitude,
        ``monotone`` (no drop of the mean shift at the points up to the crossing),
        ``evaluations``, ``response`` (schedule, prompt; and output where there are several) when
        played at alpha.

    Raises
    ------
    ValueError
        If the target is zero or not finite, or a schedule is zero.
    FloatingPointError
        If a push is so large that a state overflows.
    """
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
    search = _Search(play, wanted, predicted)
    search.bracket()
    search.refine()
    response = squeezed(search.response, "schedule", "prompt", "output")
    return xr.Dataset(
        {
            "energy": ("schedule", search.alpha**2),
            "alpha": ("schedule", search.alpha),
            "reached": ("schedule", np.isfinite(search.alpha)),
            "progress": ("schedule", search.progress_at_predicted()),
            "monotone": ("schedule", search.monotone()),
            "evaluations": ("schedule", [len(points) for points in search.points]),
            "response": response,
        },
        coords={"schedule": schedules["schedule"]},
        attrs={
            **stamp(run, "required_energy"),
            "target": wanted.tolist() if n_outputs > 1 else float(wanted[0]),
        },
    )


@dataclass
class _Search:
    """The first crossing of every schedule, all of them searched together.

    ``points`` holds, per schedule, the amplitudes tried and the progress made: 1 is the target.
    """

    play: Callable[[np.ndarray, np.ndarray], np.ndarray]
    target: np.ndarray
    predicted: np.ndarray
    points: list[dict[float, float]] = field(init=False)

    def __post_init__(self):
        self.points = [{} for _ in self.predicted]
        self._shifts: list[dict[float, np.ndarray]] = [{} for _ in self.predicted]
        self._limit = LARGEST * self.predicted.min()

    def evaluate(self, rows: list[int], alphas: list[float]) -> None:
        """Play schedules at amplitudes, all in one pass, and note what they reach."""
        if not rows:
            return
        shift = self.play(np.array(rows), np.array(alphas))
        progress = shift.mean(axis=0) @ self.target / (self.target @ self.target)
        for place, (row, alpha) in enumerate(zip(rows, alphas, strict=True)):
            self.points[row][alpha] = float(progress[place])
            self._shifts[row][alpha] = shift[:, place]

    def crossing(self, row: int) -> tuple[float, float] | None:
        """The first bracket of a schedule: the last amplitude that misses, the first that reaches.

        None if none reaches. What is within `TOLERANCE` of the target has reached it.
        """
        before = 0.0
        for alpha in sorted(self.points[row]):
            if self.points[row][alpha] >= 1 - TOLERANCE:
                return before, alpha
            before = alpha
        return None

    @property
    def alpha(self) -> np.ndarray:
        """The least amplitude known to reach the target, NaN where none does."""
        found = [self.crossing(row) for row in range(len(self.points))]
        return np.array([np.nan if one is None else one[1] for one in found])

    @property
    def response(self) -> np.ndarray:
        """Shifts (schedule, prompt, output) at `alpha`."""
        like = next(iter(self._shifts[0].values()))
        none = np.full_like(like, np.nan)
        kept = zip(self._shifts, self.alpha, strict=True)
        return np.stack([shifts.get(float(alpha), none) for shifts, alpha in kept])

    def bracket(self) -> None:
        """Look around the prediction, then further away where the target is not reached."""
        rows, alphas = [], []
        for row, predicted in enumerate(self.predicted):
            for alpha in dict.fromkeys(min(f * predicted, self._limit) for f in FIRST_LOOK):
                rows.append(row)
                alphas.append(alpha)
        self.evaluate(rows, alphas)
        while True:
            rows, alphas = [], []
            for row, points in enumerate(self.points):
                last = max(points)
                if self.crossing(row) is None and last < self._limit:
                    rows.append(row)
                    alphas.append(min(GROWTH * last, self._limit))
            if not rows:
                break
            self.evaluate(rows, alphas)
        for _ in range(LOOKS_NEAR_MAXIMUM):
            rows, alphas = [], []
            for row, points in enumerate(self.points):
                if self.crossing(row) is None and max(points.values()) >= NEARLY:
                    near = _beside_maximum(points)
                    rows += [row] * len(near)
                    alphas += near
            self.evaluate(rows, alphas)

    def refine(self) -> None:
        """Shrink every bracket until its upper end is the target, or until it is narrow."""
        for step in range(MOST_STEPS):
            rows, alphas = [], []
            for row, points in enumerate(self.points):
                ends = self.crossing(row)
                if ends is None or abs(points[ends[1]] - 1) <= TOLERANCE:
                    continue
                if ends[1] - ends[0] > NARROW * ends[1]:
                    rows.append(row)
                    alphas.append(_between(points, *ends, halve=step % 3 == 2))
            if not rows:
                return
            self.evaluate(rows, alphas)

    def progress_at_predicted(self) -> list[float]:
        """The part of the target that is reached at the predicted amplitude; NaN if not played."""
        pairs = zip(self.points, self.predicted.tolist(), strict=True)
        return [points.get(predicted, np.nan) for points, predicted in pairs]

    def monotone(self) -> list[bool]:
        """Whether the mean shift never fell on the way to the crossing, per schedule."""
        found = []
        for row, points in enumerate(self.points):
            end = self.alpha[row] if np.isfinite(self.alpha[row]) else np.inf
            way = [0.0] + [points[a] for a in sorted(points) if a <= end]
            # a fall below the tolerance of the search is rounding
            found.append(bool((np.diff(way) >= -TOLERANCE).all()))
        return found


def _beside_maximum(points: dict[float, float]) -> list[float]:
    """Amplitudes between the one that reaches furthest and its neighbours."""
    alphas = sorted(points)
    best = alphas.index(max(points, key=points.__getitem__))
    ends = alphas[max(0, best - 1) : best + 2]
    return [float(np.sqrt(a * b)) for a, b in pairwise(ends)]


def _between(points: dict[float, float], low: float, high: float, *, halve: bool) -> float:
    """An amplitude inside a bracket, by inverse interpolation of the points nearest to it.

    ``halve`` takes the middle instead (that of the logarithms, where there are some): where
    interpolation crawls, bisection does not.
    """
    if halve:
        return float(np.sqrt(low * high)) if low > 0.01 * high else (low + high) / 2
    known = {0.0: 0.0} | points
    alphas = sorted(known)
    end = alphas.index(high)
    near = [end - 1, end, end + 1 if end + 1 < len(alphas) else end - 2]
    x = np.array([alphas[i] for i in sorted(near) if i >= 0])
    y = np.array([known[alpha] for alpha in x.tolist()])
    if (np.diff(y) > 0).all():
        weights = [np.prod([(1 - q) / (p - q) for q in y if q != p]) for p in y]
        guess = float(np.dot(weights, x))
        if low < guess < high:
            return guess
    share = (1 - known[low]) / (known[high] - known[low])
    return float(low + np.clip(share, 0.05, 0.95) * (high - low))


@of_run(once=False, kinds={"system": identified("y_ref", "y_std")})
def compare_energies(
    run: Run,
    concept: xr.Dataset,
    system: xr.Dataset,
    target: float | np.ndarray,
    *,
    energy: str = "absolute",
    readout: ReadoutLike = "concept",
) -> xr.Dataset:
    """The minimum-energy schedule against simple ones, all played on the full model.

    Baselines: ``uniform`` over layers, ``first_layer``, ``middle_layer``, ``last_layer``,
    ``best_single_layer`` (least energy of all), ``random_single_layer`` (median over all L layers,
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
        "absolute": sum of ``u_l^2``; "relative": sum of ``u_l^2 / ||x_l||^2``, with the mean norm
        of the nominal state, so that a push counts by how much it changes the state.
    readout
        That of the system, for the full model: see `identify`. Of a profile the last depth counts.

    Returns
    -------
    xr.Dataset
        ``energy``, ``multiple`` (of the minimum-energy schedule's; NaN = not reached within
        16384 times the predicted optimum), ``reached``, ``monotone``, ``layer_pushed`` (schedule;
        -1 = several); ``progress``, the part of the target that the planned schedule reaches when
        it is played as it is; ``u`` (layer), and input where there are several, the planned
        schedule; ``predicted_energy``; ``single_energy`` (layer); ``response`` (prompt), of the
        minimum-energy schedule.

    Raises
    ------
    ValueError
        If an argument does not fit, or the target drowns in the rounding of the readout.
    """
    weights = layer_weights(system, energy)
    check_target(target)
    _check_size(run, system, target)
    wanted = np.atleast_1d(np.asarray(target, dtype=np.float64))
    plan = ltv.minimum_energy(system, target, weights=weights.values)
    gains = ltv.gains(system)
    exists = defined(concept)[:-1]
    simple = simple_schedules(gains, wanted, weights) * xr.DataArray(
        exists, dims=("layer", "input")
    )
    schedules = xr.concat(
        [
            plan["u"].expand_dims(schedule=["minimum_energy"]).drop_vars("layer", errors="ignore"),
            simple.isel(schedule=np.flatnonzero(simple.any(["layer", "input"]))),
        ],
        dim="schedule",
    )
    found = required_energy(
        run,
        concept,
        schedules,
        wanted if len(wanted) > 1 else float(wanted[0]),
        amplitude=_predicted(gains, schedules, wanted, weights, float(plan["energy"])),
        weights=weights,
        readout=readout,
    )
    layers = np.flatnonzero(exists.any(axis=1)).tolist()
    return _energy_table(run, plan, found, energy, layers).assign_attrs(direction_note(concept))


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


def _check_size(run: Run, system: xr.Dataset, target: float | np.ndarray) -> None:
    model = run.model
    scale = float(abs(system["y_ref"]).max() + system["y_std"].max())
    least = 100 * eps(model.dtype) * scale
    if np.max(np.abs(target)) < least:
        raise ValueError(
            f"`target` must be well above the rounding of the readout; got {target} where "
            f"{least:.1e} is the least in {model.dtype_name}. Ask for more or use "
            f"{finer(model.dtype)}."
        )


def _predicted(gains, schedules, target, weights, least: float) -> np.ndarray:
    """Amplitude at which the linear model expects each schedule to reach the target."""
    unit = to_unit_energy(schedules, weights)
    shift = xr.dot(gains.drop_vars("layer", errors="ignore"), unit, dim=["layer", "input"])
    progress = (shift.transpose("schedule", "output").values @ target) / (target @ target)
    # a schedule that the linear model expects nothing of begins far out
    far = LARGEST * np.sqrt(least) / FIRST_LOOK[-1]
    with np.errstate(divide="ignore"):
        return np.where(progress > 0, np.minimum(1 / np.abs(progress), far), far)


def _energy_table(
    run: Run, plan: xr.Dataset, found: xr.Dataset, energy: str, layers: list[int]
) -> xr.Dataset:
    """The table of schedules; ``layers`` are those that have a direction."""
    n_layers = run.n_layers
    single = found.sel(schedule=[f"layer_{layer}" for layer in layers])
    ranked = single["energy"].fillna(np.inf).values
    best = layers[int(ranked.argmin())]
    chosen = {
        "minimum_energy": -1,
        "uniform": -1,
        "first_layer": layers[0],
        "middle_layer": min(layers, key=lambda layer: abs(layer - n_layers // 2)),
        "last_layer": layers[-1],
        "best_single_layer": best,
    }
    rows = [name if layer < 0 else f"layer_{layer}" for name, layer in chosen.items()]
    table = found[["energy", "reached", "monotone", "evaluations"]].sel(schedule=rows)
    table = table.assign_coords(schedule=list(chosen))
    table["layer_pushed"] = ("schedule", list(chosen.values()))
    median = float(np.median(ranked))
    random = xr.Dataset(
        {
            "energy": ("schedule", [median if np.isfinite(median) else np.nan]),
            "reached": ("schedule", [bool(np.isfinite(median))]),
            "monotone": ("schedule", [bool(single["monotone"].all())]),
            "evaluations": ("schedule", [int(single["evaluations"].sum())]),
            "layer_pushed": ("schedule", [-1]),
        },
        coords={"schedule": ["random_single_layer"]},
    )
    table = xr.concat([table, random], dim="schedule")
    table["multiple"] = table["energy"] / table["energy"].sel(schedule="minimum_energy")
    u = plan["u"].transpose("layer", "input")
    table = table.assign_coords(layer=np.arange(n_layers))
    table["u"] = squeezed(u.values, "layer", "input")
    table["predicted_energy"] = plan["energy"]
    each = np.full(n_layers, np.nan)
    each[layers] = single["energy"].values
    table["single_energy"] = ("layer", each)
    table["progress"] = found["progress"].sel(schedule="minimum_energy", drop=True)
    table["response"] = found["response"].sel(schedule="minimum_energy", drop=True)
    table.attrs = {
        **stamp(run, "compare_energies"),
        "target": found.attrs["target"],
        "energy": energy,
        "best_layer": best,
    }
    return table
