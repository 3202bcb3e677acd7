"""All cells in one table."""

from depthsys.report.html.facts import Facts
from depthsys.report.html.parts import (
    Section,
    count_entry,
    entry,
    fixed_entry,
    joined,
    number_entry,
    paragraph,
    percent_entry,
    sortable,
)
from depthsys.report.html.svg import tag

HEADER = (
    "cell", "state", "size", "AUC", "error", "noise", "no layer 0", "Spearman",
    "largest part", "order", "seconds",
)  # fmt: skip
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
    rows = [
        (
            entry(tag("a", each.name, href=f"#{each.anchor}"), each.name),
            entry(tag("span", each.cell.state, class_=f"tag {each.cell.state}"), each.cell.state),
            entry(_size(each), each.n_parameters or each.n_layers * each.n_features**2),
            fixed_entry(each.auc),
            percent_entry(each.error),
            percent_entry([each.noise_floor]),
            percent_entry(each.error_without_0),
            fixed_entry(each.spearman),
            entry(each.largest_part or "–"),
            count_entry(each.order),
            number_entry(each.seconds),
        )
        for each in facts
    ]
    table = sortable(HEADER, rows, label="All cells", left=("state", "largest part"), hints=HINTS)
    said = paragraph(
        "Select a column to sort by it; a name leads to all that is known of the cell."
    )
    return Section("cells", "All cells", joined(said, table))


def _size(facts: Facts) -> str:
    return f"{facts.n_layers} × {facts.n_features}" if facts.n_layers else "–"
