"""Predicted and measured gains: agreement, error budget, and what they say."""

import numpy as np
import xarray as xr

from depthsys.report.stage import Stage, names_of
from depthsys.report.table import Report, Table
from depthsys.wording import fixed, outside, percent, step_size

NOISE = (
    "an error below its own interval, or a correlation above it, is near the noise of the prompts: "
    "drawing prompts again adds their scatter, so that the whole (percentile) interval lies too "
    "far on the side of disagreement"
)
NOT_SMOOTH = (
    "an error above its own interval, or a correlation below it, rests on a measured gain near "
    "zero or a near tie of ranks, which most draws of prompts do not share: read neither alone"
)
_METRICS = ("spearman", "pearson", "relative_l2", "max_relative_error")


def gains(result: xr.Dataset) -> Report:
    """What `study.gains` found."""
    return Report([_agreement(result), _budget(result)], verdicts(Stage.of(result)))


def verdicts(result: Stage) -> list[str]:
    """What the gains say, and what is to be minded."""
    return [_verdict(result), step_limits(result), *_outside(result)]


def step_limits(result: Stage) -> str:
    """The step of measured gains, beside what rounding and linearity allow."""
    relative = bool(result.attrs["relative"])
    step, least = (step_size(result.attrs[name], relative) for name in ("step", "least_step"))
    limit = float(result.value("step_limit", layers="all"))
    error = result.value("step_error", layers="all", bound="estimate")
    steps, error = (each[np.isfinite(error)] for each in (result.value("step"), error))
    if np.isfinite(limit):
        linear = f"is linear to 5 % up to {step_size(limit, relative)}"
    elif error.size and (error <= 0.05).all():
        linear = f"is linear to 5 % up to {step_size(float(steps.max()), relative)}, the "
        linear += "largest tried"
    elif error.size:
        smallest = step_size(float(steps.min()), relative)
        linear = f"is not linear to 5 % even at {smallest}"
    else:
        linear = "could not be judged"
    return (
        f"gains were measured with pushes of {step}; rounding allows them from {least} on, and "
        f"the response (all layers) {linear}"
    )


def _outside(result: Stage) -> list[str]:
    """What is to be said of estimates outside their own intervals, by the side."""
    sides = set()
    for name in ("error_budget", *_METRICS):
        towards_noise = 1 if name in ("spearman", "pearson") else -1
        dims, values = result.variables[name]
        rows = np.moveaxis(values, dims.index("bound"), -1).reshape(-1, 3)
        sides |= {towards_noise * outside(row) for row in rows}
    return [text for side, text in ((1, NOISE), (-1, NOT_SMOOTH)) if side in sides]


def _agreement(result: xr.Dataset) -> Table:
    rows = [
        (f"{name} ({injection} injection)", *_by_layers(result[name].sel(injection=injection)))
        for injection in result["injection"].values
        for name in _METRICS
    ]
    return _table("agreement on held-out prompts", result, rows)


def _budget(result: xr.Dataset) -> Table:
    rows = [
        (str(part), *_by_layers(result["error_budget"].sel(part=part)))
        for part in result["part"].values
    ]
    return _table("error budget (relative L2)", result, rows)


def _table(what: str, result: xr.Dataset, rows: list[tuple[str, ...]]) -> Table:
    header = (what, *(str(layers).replace("_", " ") for layers in result["layers"].values))
    return Table(header, rows, left=header)


def _by_layers(values: xr.DataArray) -> list[str]:
    return [fixed(values.sel(layers=x).values, 4) for x in values["layers"].values]


def _verdict(result: Stage) -> str:
    error = result.value("error_budget", layers="all", bound="estimate")
    parts = dict(zip(names_of(result, "part"), error.tolist(), strict=True))
    total = parts.pop("total")
    floor = percent([float(result.value("noise_floor", layers="all", injection="absolute"))])
    worst = max(parts, key=lambda part: parts[part])
    return (
        f"the surrogate misses the measured gains by {percent([total])} "
        f"(relative L2; {floor} would be sampling noise alone); the largest part is "
        f"{worst} (parts may cancel each other)"
    )
