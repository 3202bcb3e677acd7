"""All cells in one table."""

from collections.abc import Mapping

from depthsys.report.html.facts import Facts
from depthsys.report.html.parts import (
    Entry,
    Section,
    count_entry,
    entry,
    fixed_entry,
    in_parts,
    joined,
    number_entry,
    paragraph,
    percent_entry,
    sortable,
)
from depthsys.report.html.svg import tag

FOLDED = ("state", "size", "largest part", "order")  # not columns where they are all the same
UNKNOWN = "–"
HINTS = {
    "size": "layers × width",
    "AUC": "of the concept direction on held-out texts, at the last depth",
    "error": "relative L2 distance of predicted gains from those measured on held-out prompts",
    "noise": "the error that a perfect prediction would show on so many prompts",
    "no layer 0": "the same error without layer 0",
    "Spearman": "rank correlation of predicted and measured gains",
    "largest part": "of the error budget",
    "order": "states of the identified system",
    "seconds": "of all stages",
}


def section(facts: list[Facts]) -> Section | None:
    """One row for each cell; not for a page of one."""
    if len(facts) < 2:
        return None
    rows = [_row(each) for each in facts]
    same = [name for name in FOLDED if len({row[name].said for row in rows}) == 1]
    nowhere = [name for name in rows[0] if all(row[name].said == UNKNOWN for row in rows)]
    header = [name for name in rows[0] if name not in {*same, *nowhere}]
    table = sortable(
        header,
        ([row[name] for name in header] for row in rows),
        label="All cells",
        left=("state", "largest part"),
        hints=HINTS,
    )
    said = "Select a column to sort by it; a name leads to all that is known of the cell."
    if told := _told([name for name in same if name not in nowhere], rows[0]):
        said += f" {told}"
    return Section("cells", "All cells", joined(paragraph(said), table))


def _row(facts: Facts) -> dict[str, Entry]:
    """The columns of a cell."""
    state, part = facts.cell.state, facts.largest_part or UNKNOWN
    link = tag("a", in_parts(facts.name), href=f"#{facts.anchor}")
    size = facts.n_parameters or facts.n_layers * facts.n_features**2
    return {
        "cell": entry(link, facts.name),
        "state": entry(tag("span", state, class_=f"tag {state}"), state),
        "size": entry(_size(facts), size),
        "AUC": fixed_entry(facts.auc),
        "error": percent_entry(facts.error),
        "noise": percent_entry([facts.noise_floor]),
        "no layer 0": percent_entry(facts.error_without_0),
        "Spearman": fixed_entry(facts.spearman),
        "largest part": entry(part),
        "order": count_entry(facts.order),
        "seconds": number_entry(facts.seconds),
    }


def _told(same: list[str], row: Mapping[str, Entry]) -> str:
    """What holds of all cells, in words."""
    said = [f"{name} {row[name].said}" for name in same if name != "state"]
    told = f"The same in all: {', '.join(said)}." if said else ""
    return f"All cells are {row['state'].key}. {told}".rstrip() if "state" in same else told


def _size(facts: Facts) -> str:
    return f"{facts.n_layers} × {facts.n_features}" if facts.n_layers else UNKNOWN
