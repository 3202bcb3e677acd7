"""What a comparison will cost, and where most of it goes."""

from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from depthsys.report.table import Report, Table
from depthsys.wording import size as size_of

if TYPE_CHECKING:
    from depthsys.lm import Kept


def forecast(cost: xr.Dataset, begun: float = 0.0) -> Report:
    """The stages of `lm.comparison_cost`, none of which has been done.

    ``begun`` seconds went by until the model was loaded, and will again.
    """
    rows = [("start and load", "", "", _seconds(begun), "")] if begun else []
    rows += [_row(str(name), cost.sel(stage=name)) for name in cost["stage"].values]
    total = cost.drop_vars("kept").sum("stage")
    total["seconds"] = total["seconds"] + begun
    rows.append(_row("in all", total))
    header = ("stage", "passes", "rows", "seconds", "bytes")
    caption = (
        "passes: of whole sequences through every layer; rows: states or directions of the last "
        "token through one block; seconds: from a calibration of some seconds here"
    )
    last = frozenset([len(rows) - 2, len(rows) - 1])
    table = Table(header, rows, "What it would take", caption, ("stage",), last)
    spent = {"start and load": begun} | dict(
        zip(map(str, cost["stage"].values), cost["seconds"].values.tolist(), strict=True)
    )
    largest = max(spent, key=lambda stage: spent[stage])
    left_out = (
        "steps of the linear range beyond the first decade, figures and files are not counted"
    )
    return Report(
        [table],
        [
            f"at least {duration(float(total['seconds']))} on this machine as it is now; most of "
            f"it for {largest}; {left_out}"
        ],
    )


def kept(parts: "Kept", partial: Path, *, dry_run: bool = False) -> list[str]:
    """What an interrupted comparison has left in ``partial``, and what becomes of it."""
    if parts.differences:
        begun = f"{partial} was begun with {'; '.join(parts.differences)}"
        if dry_run:
            return [f"{begun}: it is not counted here, and --force would drop it"]
        return [f"{begun}: it is dropped, as --force says"]
    if not parts.parts:
        return []
    return [f"taken from {partial}: {'; '.join(parts.parts)}"]


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
        "kept" if "kept" in part and bool(part["kept"]) else _seconds(seconds),
        size_of(size) if size else "",
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g}" if seconds < 100 else f"{seconds:.0f}"
