"""How well predicted gains agree with measured ones, and where the error comes from.

Datasets in, Datasets out: no model is run here.
"""

from functools import lru_cache

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from depthsys import ltv
from depthsys.lm.kinds import MEASURED, PREDICTED_OR_GAINS, identified, kinds_checked, short

LAYER_SETS = ("all", "without_layer_0")
BOUNDS = ("estimate", "low", "high")
INJECTIONS = ("absolute", "relative")
BUDGET = ("nonlinearity", "averaging", "sampling", "truncation", "total")


@kinds_checked(predicted=PREDICTED_OR_GAINS)
def agreement(
    predicted: xr.Dataset | xr.DataArray,
    measured: xr.Dataset,
    *,
    injection: str = "absolute",
    paired: bool = False,
    n_bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """How well one predicted gain curve agrees with measured gains, with bootstrap intervals.

    With several inputs or outputs the curve holds all of them, layer by layer.

    Parameters
    ----------
    predicted
        A system (its terminal gains are used; a ``prompt`` batch is averaged), or a curve (layer).
    measured
        ``gain`` (prompt, layer) from `measure_gains` or `linear_gains`; compared is its mean over
        prompts, and the percentile intervals resample these prompts alone (not those behind
        ``predicted``; an error near its minimum can lie below its own interval). Layers without a
        direction (NaN) are left out.
    injection
        "absolute": gains per unit of the state; "relative": per fraction of its norm, those of each
        prompt times its own ``state_norm``, those of a system times the one it stores.
    paired
        ``predicted`` are gains (prompt, layer) of the very prompts of ``measured``: intervals
        resample both together, so that what prompts differ by does not widen them.
    n_bootstrap, level, seed
        Number of resamples, coverage of the percentile intervals, seed.

    Returns
    -------
    xr.Dataset
        ``spearman``, ``pearson``, ``relative_l2`` (norm of the difference over norm of the measured
        curve) and ``max_relative_error`` (largest ``|h_l - g_l| / |g_l|``, infinite where a
        measured gain is 0), each with dims (layers: all or without layer 0; bound: estimate, low,
        high). A correlation over fewer than two
        layers, or of a constant curve, is NaN. ``noise_floor`` (layers) is the relative L2 error
        that a perfect prediction would show on so many prompts: below it, ``relative_l2`` is
        sampling noise and its interval, a percentile one, lies too high.
    """
    each = None
    if not paired and isinstance(predicted, xr.Dataset) and "gain" in predicted:
        raise TypeError(
            f"`predicted` must be a system or a curve (layer); got {short(predicted)}. Write "
            "paired=True if they are of the prompts of `measured`, else take their mean."
        )
    if paired:
        each = injected(_paired_with(measured, predicted), injection)
        each = each.transpose("prompt", "layer", ...)
    curve = gain_curve(predicted, injection=injection) if each is None else each.mean("prompt")
    gain = injected(measured, injection).transpose("prompt", "layer", ...)
    if dict(curve.sizes) != {d: n for d, n in gain.sizes.items() if d != "prompt"}:
        raise ValueError(
            f"`predicted` must have the layers, outputs and inputs of `measured`, "
            f"{dict(gain.sizes)}; got {dict(curve.sizes)}. Use the same model, and "
            "`readout=`, for both."
        )
    sets = _layer_sets(gain)
    curve, gain = curve.values.ravel(), _flat(gain)
    means = _bootstrap_means(gain, n_bootstrap, seed)
    if each is not None:
        curve = _bootstrap_means(_flat(each), n_bootstrap, seed)
    result = xr.Dataset(coords={"layers": list(LAYER_SETS), "bound": list(BOUNDS)})
    for name, metric in _METRICS.items():
        table = [_bounds(metric(curve[..., at], means[:, at]), level) for at in sets]
        result[name] = (("layers", "bound"), np.array(table))
    # what a perfect prediction would show: the standard error of the measured mean
    spread = gain.std(axis=0) / np.sqrt(len(gain)) if len(gain) > 1 else np.nan * gain[0]
    floor = [_relative_norm(spread[at], means[0, at]) for at in sets]
    result["noise_floor"] = ("layers", np.array(floor))
    statistics = {"n_bootstrap": n_bootstrap, "level": level, "n_prompts": len(gain)}
    result.attrs = {**measured.attrs, **statistics}
    return result


@kinds_checked()
def error_gap(
    first: xr.Dataset | xr.DataArray,
    second: xr.Dataset | xr.DataArray,
    measured: xr.Dataset,
    *,
    n_bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.DataArray:
    """Relative L2 error of one prediction minus that of another, on the same resampled prompts.

    Paired: two predictions whose own intervals overlap may still be told apart, because an
    unlucky draw of prompts harms both.

    Parameters
    ----------
    first, second, measured, n_bootstrap, level, seed
        See `agreement`.

    Returns
    -------
    xr.DataArray
        ``gap`` (layers, bound); above zero the second prediction is better.
    """
    a, b = (gain_curve(curve).values.ravel() for curve in (first, second))
    means = _bootstrap_means(_flat(measured["gain"]), n_bootstrap, seed)
    table = [
        _bounds(_relative_l2(a[at], means[:, at]) - _relative_l2(b[at], means[:, at]), level)
        for at in _layer_sets(measured["gain"])
    ]
    coords = {"layers": list(LAYER_SETS), "bound": list(BOUNDS)}
    return xr.DataArray(np.array(table), coords, ("layers", "bound"), name="gap")


def injected(measured: xr.Dataset, injection: str) -> xr.DataArray:
    """Gains of every prompt per unit of the state ("absolute"), or per fraction of its norm."""
    _check_injection(injection)
    gain = measured["gain"]
    return gain * measured["state_norm"] if injection == "relative" else gain


def _check_injection(injection: str) -> None:
    if injection not in INJECTIONS:
        raise ValueError(f"`injection` must be one of {INJECTIONS}; got {injection!r}. Pick one.")


def gain_curve(
    predicted: xr.Dataset | xr.DataArray, *, injection: str = "absolute"
) -> xr.DataArray:
    """Terminal gains (layer) of a system, mean over its batch; output and input if several.

    "relative" multiplies by ``state_norm``: per fraction of the state instead of per unit. NaN
    where the system has no direction.
    """
    _check_injection(injection)
    channels = ("layer", "output", "input")
    if isinstance(predicted, xr.DataArray):
        gain = predicted
    else:
        gain = where_defined(ltv.gains(predicted), predicted)
        if injection == "relative" and "state_norm" not in predicted:
            raise ValueError(
                "`predicted` must know `state_norm` (depth) for relative injections; got a system "
                "without. Identify it, or use absolute ones."
            )
        if injection == "relative":
            norm = predicted["state_norm"].isel(depth=slice(-1)).rename(depth="layer")
            gain = gain * norm.drop_vars(["layer", "order"], errors="ignore")
        gain = gain.mean(_batch(gain))
    single = [d for d in gain.dims if d != "layer" and gain.sizes[d] == 1]
    return gain.squeeze(single, drop=True).transpose(
        *(d for d in channels if d in gain.dims and d not in single)
    )


def where_defined(gain: xr.DataArray, system: xr.Dataset) -> xr.DataArray:
    """Gains, NaN at the layers at which the inputs of the system have no direction."""
    if "v" not in system:
        return gain
    exists = system["v"].notnull().any("feature").isel(depth=slice(-1)).rename(depth="layer")
    exists = exists.drop_vars(list(exists.coords))
    if "input" not in gain.dims:
        exists = exists.squeeze("input")
    return gain.where(exists)


def _layer_sets(gain: xr.DataArray) -> list[np.ndarray]:
    """Which values of flat gains count, for `LAYER_SETS`: those with a direction."""
    gain = gain.transpose("prompt", "layer", ...)
    known = np.asarray(~np.isnan(_flat(gain)).any(axis=0))
    later = np.arange(len(known)) >= gain[0, 0].size
    return [known, known & later]


def _bootstrap_means(gain: np.ndarray, n_bootstrap: int, seed: int) -> np.ndarray:
    """Mean over prompts (first row), then of resampled prompts: (1 + n_bootstrap, layer)."""
    n = len(gain)
    return np.vstack([gain.mean(axis=0), resamples(n, n_bootstrap, seed) @ gain / n])


@lru_cache(maxsize=4)
def resamples(n: int, n_bootstrap: int, seed: int) -> np.ndarray:
    """How often each of n prompts is drawn: (resample, prompt). A comparison asks many times."""
    if n_bootstrap < 1:
        raise ValueError(f"`n_bootstrap` must be >= 1; got {n_bootstrap}. The default is 1000.")
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=n_bootstrap).astype(np.float64)


def _relative_norm(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a) / np.linalg.norm(b)) if len(b) else np.nan


def _bounds(values: np.ndarray, level: float) -> np.ndarray:
    tail = (1 - level) / 2
    if len(values) == 1 or not np.isfinite(values).all():
        return np.array([values[0], np.nan, np.nan])
    return np.array([values[0], *np.quantile(values[1:], [tail, 1 - tail])])


def _pearson(curve: np.ndarray, means: np.ndarray) -> np.ndarray:
    if curve.shape[-1] < 2:
        return np.full(len(means), np.nan)
    a = curve - curve.mean(axis=-1, keepdims=True)
    b = means - means.mean(axis=-1, keepdims=True)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    flat = norms == 0
    return np.where(flat, np.nan, (a * b).sum(axis=-1) / np.where(flat, 1.0, norms))


def _spearman(curve: np.ndarray, means: np.ndarray) -> np.ndarray:
    return _pearson(rankdata(curve, axis=-1), rankdata(means, axis=-1))


def _relative_l2(curve: np.ndarray, means: np.ndarray) -> np.ndarray:
    if means.shape[-1] == 0:
        return np.full(len(means), np.nan)
    return np.linalg.norm(curve - means, axis=-1) / np.linalg.norm(means, axis=-1)


def _max_relative_error(curve: np.ndarray, means: np.ndarray) -> np.ndarray:
    if means.shape[-1] == 0:
        return np.full(len(means), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):  # infinite where a measured gain is 0
        return np.max(np.abs(curve - means) / np.abs(means), axis=-1)


_METRICS = {
    "spearman": _spearman,
    "pearson": _pearson,
    "relative_l2": _relative_l2,
    "max_relative_error": _max_relative_error,
}


@kinds_checked(system=identified("gain_full"), measured=MEASURED)
def error_budget(
    system: xr.Dataset,
    measured: xr.Dataset,
    linear_held_out: xr.Dataset,
    linear_operating: xr.Dataset,
    *,
    n_bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Where the error of a surrogate shared by many prompts comes from.

    Each part is a relative L2 distance over layers, the second curve being the reference:
    nonlinearity (mean linear, mean measured gains on held-out prompts), averaging (gain of the
    product of mean Jacobians, mean of per-prompt linear gains on operating prompts), sampling
    (mean linear gains on operating, on held-out prompts), truncation (reduced, full mean system),
    total (reduced system, measured). The parts need not add up: errors may cancel.

    Parameters
    ----------
    system
        From `identify`.
    measured, linear_held_out
        `measure_gains` and `linear_gains` on the held-out prompts.
    linear_operating
        `linear_gains` on the operating prompts.
    n_bootstrap, level, seed
        Intervals resample prompts; averaging and truncation would need a new identification per
        resample and have none (NaN).

    Returns
    -------
    xr.Dataset
        ``error`` (part, layers, bound).

    Raises
    ------
    ValueError
        If the inputs come from different prompts than their roles say.
    """
    _check_same_prompts("linear_held_out", linear_held_out, "measured", measured)
    _check_same_prompts("linear_operating", linear_operating, "system", system)
    truth, linear, operating = (
        _flat(d["gain"]) for d in (measured, linear_held_out, linear_operating)
    )
    sets = _layer_sets(measured["gain"])
    # one seed: the same prompts are resampled in both held-out curves
    truth, linear = (_bootstrap_means(g, n_bootstrap, seed) for g in (truth, linear))
    operating = _bootstrap_means(operating, n_bootstrap, seed + 1)
    full = gain_curve(system["gain_full"].mean(_batch(system["gain_full"]))).values.ravel()
    reduced = gain_curve(system).values.ravel()
    pairs = {
        "nonlinearity": (linear, truth),
        "averaging": (full, operating[:1]),
        "sampling": (operating, linear),
        "truncation": (reduced, full[None]),
        "total": (reduced, truth),
    }
    error = [
        [_bounds(_relative_l2(a[..., at], b[..., at]), level) for at in sets]
        for a, b in (pairs[part] for part in BUDGET)
    ]
    return xr.Dataset(
        {"error": (("part", "layers", "bound"), np.array(error))},
        coords={"part": list(BUDGET), "layers": list(LAYER_SETS), "bound": list(BOUNDS)},
        attrs={**measured.attrs, "n_bootstrap": n_bootstrap, "level": level},
    )


def relative_l2_bounds(
    linear: xr.Dataset, measured: xr.Dataset, n_bootstrap: int, seed: int, level: float = 0.95
) -> np.ndarray:
    """Relative L2 distance of mean linear from mean measured gains: (layers, bound)."""
    means = (_bootstrap_means(_flat(d["gain"]), n_bootstrap, seed) for d in (linear, measured))
    a, b = means
    sets = _layer_sets(measured["gain"])
    return np.array([_bounds(_relative_l2(a[:, at], b[:, at]), level) for at in sets])


def mean_bounds(values: xr.DataArray, *, n_bootstrap: int, level: float, seed: int) -> xr.DataArray:
    """Mean over ``prompt`` with its percentile interval: (..., bound); NaN of a single prompt."""
    others = [dim for dim in values.dims if dim != "prompt"]
    flat = values.transpose("prompt", *others)
    means = _bootstrap_means(flat.values.reshape(len(flat), -1), n_bootstrap, seed)
    if len(flat) == 1:
        means = means[:1]  # nothing can be resampled
    table = np.array([_bounds(column, level) for column in means.T])
    shape = [values.sizes[dim] for dim in others]
    return xr.DataArray(
        table.reshape(*shape, len(BOUNDS)),
        dims=[*others, "bound"],
        coords={"bound": list(BOUNDS)},
    )


def _flat(gain: xr.DataArray) -> np.ndarray:
    """Gains (prompt, layer x output x input)."""
    gain = gain.transpose("prompt", "layer", *(d for d in ("output", "input") if d in gain.dims))
    return gain.values.reshape(len(gain), -1)


def _batch(gain: xr.DataArray) -> list:
    return [d for d in gain.dims if d not in ("layer", "output", "input")]


def _check_same_prompts(name: str, data: xr.Dataset, other_name: str, other: xr.Dataset) -> None:
    if data.attrs.get("prompts_sha256") != other.attrs.get("prompts_sha256"):
        raise ValueError(
            f"`{name}` must come from the prompts of `{other_name}`; got another fingerprint. "
            "Compute both from the same split."
        )


def _paired_with(measured: xr.Dataset, predicted: object) -> xr.Dataset:
    """Gains of the same prompts, or ValueError."""
    wanted = dict(measured["gain"].sizes)
    if (
        not isinstance(predicted, xr.Dataset)
        or "gain" not in predicted
        or dict(predicted["gain"].sizes) != wanted
    ):
        raise ValueError(
            "`paired` must be False unless `predicted` are gains of the prompts of `measured`, as "
            f"`linear_gains` gives them; got {short(predicted)}. Leave it out."
        )
    _check_same_prompts("predicted", predicted, "measured", measured)
    return predicted


_SYSTEM_ATTRS = (
    "readout", "concept", "classes", "method", "settings", "order", "dtype", "n_prompts",
    "prompts_sha256", "created",
)  # fmt: skip


@kinds_checked(system=identified("gain_full", "state_norm"), measured=MEASURED)
def gain_report(
    system: xr.Dataset,
    measured: xr.Dataset,
    linear_held_out: xr.Dataset,
    linear_operating: xr.Dataset,
    *,
    seed: int = 0,
) -> xr.Dataset:
    """All gain curves, their agreement and the error budget in one Dataset.

    Parameters
    ----------
    system
        From `identify`, one system.
    measured
        `measure_gains` on held-out prompts.
    linear_held_out, linear_operating
        `linear_gains` on held-out and operating prompts.
    seed
        Of the bootstrap.

    Returns
    -------
    xr.Dataset
        ``measured_gain``, ``measured_gain_relative`` (times the norm of the state), ``linear_gain``
        (prompt, layer), ``linear_gain_operating`` (prompt_operating, layer), ``surrogate_gain``,
        ``full_gain`` (layer); the metrics of `agreement` with the extra dim injection (absolute,
        relative); ``error_budget`` (part, layers, bound).
    """
    fits = [agreement(system, measured, injection=kind, seed=seed) for kind in INJECTIONS]
    report = xr.concat(fits, dim="injection").assign_coords(injection=list(INJECTIONS))
    budget = error_budget(system, measured, linear_held_out, linear_operating, seed=seed)
    report["error_budget"] = budget["error"]
    report["measured_gain"] = measured["gain"]
    report["measured_gain_relative"] = injected(measured, "relative")
    report["linear_gain"] = linear_held_out["gain"]
    report["linear_gain_operating"] = linear_operating["gain"].rename(prompt="prompt_operating")
    report["surrogate_gain"] = ("layer", gain_curve(system).values)
    full = system["gain_full"].mean(_batch(system["gain_full"]))
    report["full_gain"] = ("layer", gain_curve(where_defined(full, system)).values)
    # how the gains were measured, and beside it how the system was made
    made = {f"system_{key}": system.attrs[key] for key in _SYSTEM_ATTRS if key in system.attrs}
    report.attrs = {**report.attrs, **measured.attrs, **made}
    return report
