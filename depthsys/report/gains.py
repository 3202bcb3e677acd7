"""Predicted and measured gains: agreement, error budget, and what they say."""

import xarray as xr

from depthsys.report.table import Report, Table
from depthsys.wording import fixed, percent

_METRICS = ("spearman", "pearson", "relative_l2", "max_relative_error")


def gains(result: xr.Dataset) -> Report:
    """What `study.gains` found."""
    return Report([_agreement(result), _budget(result)], [_verdict(result)])


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


def _verdict(result: xr.Dataset) -> str:
    error = result["error_budget"].sel(layers="all", bound="estimate")
    causes = error.drop_sel(part="total")
    floor = result["noise_floor"].sel(layers="all", injection="absolute")
    worst = str(causes["part"].values[causes.values.argmax()])
    return (
        f"the surrogate misses the measured gains by {percent([error.sel(part='total')])} "
        f"(relative L2; {percent([floor])} would be sampling noise alone); the largest part is "
        f"{worst} (parts may cancel each other)"
    )
