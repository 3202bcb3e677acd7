"""What a comparison will cost, and where most of it goes."""

import xarray as xr

from depthsys.report.table import Report, Table
from depthsys.wording import size as size_of


def forecast(cost: xr.Dataset) -> Report:
    """The stages of `lm.comparison_cost`, none of which has been done."""
    rows = [_row(str(name), cost.sel(stage=name)) for name in cost["stage"].values]
    rows.append(_row("in all", cost.sum("stage")))
    header = ("stage", "passes", "rows", "seconds", "bytes")
    caption = (
        "passes: of whole sequences through every layer; rows: states of the last token through "
        "one block; seconds: from a calibration of two seconds here, without the dense algebra"
    )
    last = frozenset([len(rows) - 2, len(rows) - 1])
    table = Table(header, rows, "What it would take", caption, ("stage",), last)
    seconds = float(cost["seconds"].sum())
    largest = str(cost["stage"].values[cost["seconds"].values.argmax()])
    return Report(
        [table],
        [f"about {duration(seconds)} on this machine as it is now; most of it for {largest}"],
    )


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def _row(name: str, part: xr.Dataset) -> tuple[str, ...]:
    passes, rows, seconds, size = (
        float(part[key]) for key in ("passes", "rows", "seconds", "bytes")
    )
    return (
        name,
        f"{passes:.0f}" if passes else "",
        f"{rows:,.0f}".replace(",", " ") if rows else "",
        f"{seconds:.2g}" if seconds < 100 else f"{seconds:.0f}",
        size_of(size) if size else "",
    )
