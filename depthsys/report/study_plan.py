"""What a study will do and take, before it is begun."""

import xarray as xr

from depthsys.report.forecast import duration
from depthsys.report.table import Report, Table
from depthsys.wording import counted
from depthsys.wording import size as size_of


def study_plan(cost: xr.Dataset) -> Report:
    """The cells and stages of `study.forecast`, none of which has been done."""
    open_seconds = cost["seconds"].where(~cost["done"], 0.0)
    crossed = [str(cell).split("/") for cell in cost["cell"].values]
    told = [place for place in range(4) if place < 2 or len({c[place] for c in crossed}) > 1]
    rows = [
        (
            *(str(cell).split("/")[place] for place in told),
            f"{float(cost['passes'].sel(cell=cell)):.0f}",
            _thousands(float(cost["tokens"].sel(cell=cell))),
            _thousands(float(cost["rows"].sel(cell=cell).sum())),
            duration(float(open_seconds.sel(cell=cell).sum())),
            size_of(float(cost["weights_bytes"].sel(cell=cell))),
            size_of(float(cost["context_bytes"].sel(cell=cell))),
        )
        for cell in cost["cell"].values
    ]
    names = tuple(("model", "task", "seed", "concept")[place] for place in told)
    header = (*names, "passes", "tokens", "rows", "time", "weights", "contexts")
    caption = (
        "passes: of its texts through the whole model (0: run by an earlier cell); tokens: of "
        "these, by their characters; rows: states of the last token through one block, a product "
        "with a Jacobian counted as three; contexts: what the runs keep, see lm.Budget"
    )
    cells = Table(header, rows, "Cells", caption, names)
    stages = [
        (
            str(stage),
            f"{int((~cost['done'].sel(stage=stage)).sum())} of {cost.sizes['cell']}",
            _thousands(float(cost["rows"].sel(stage=stage).sum())),
            duration(float(open_seconds.sel(stage=stage).sum())),
        )
        for stage in cost["stage"].values
    ]
    by_stage = Table(("stage", "to be made", "rows", "time"), stages, "Stages", "", ("stage",))
    total = float(open_seconds.sum())
    largest = str(open_seconds.sum("cell").idxmax().values)
    memory = float((cost["weights_bytes"] + cost["context_bytes"]).max())
    counts = f"{counted(cost.sizes['cell'], 'cell')} of {cost.sizes['stage']} stages"
    if bool(cost["done"].all()):
        return Report([cells, by_stage], [f"{counts}: all is there, nothing is to be made"])
    return Report(
        [cells, by_stage],
        [
            f"{counts}: about {duration(total)} on {cost.attrs['device']} here, most of it for "
            f"{largest}; computed from sizes and from {cost.attrs['rate'] / 1e9:.0f} GFLOP/s "
            "measured now, so good for a factor of three; loading is not counted",
            f"at most {size_of(memory)} of weights and contexts at a time; contexts that do not "
            "fit wait in a file",
        ],
    )


def _thousands(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")
