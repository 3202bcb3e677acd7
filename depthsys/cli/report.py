"""`depthsys report`: results as one page."""

from pathlib import Path
from typing import Annotated

import typer

from depthsys.cli.typed import named


def report(
    results: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS",
            help="A study.zarr, also while it is written; the folder of a run; or a .nc of it.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The .html to write.")] = Path("report.html"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Results as one HTML page that needs no network: words, figures, tables, texts, provenance.

    Example: `depthsys report study.zarr --out report.html`
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"`--out` must end in .html; got {str(out)!r}. Name a page.")
    if out.exists() and not force:
        raise FileExistsError(
            f"`--out` must not exist yet; got {str(out)!r}. Overwrite it with --force."
        )
    from depthsys.files import whole_file
    from depthsys.report import Screen
    from depthsys.report.html import page
    from depthsys.study.reported import read_results
    from depthsys.wording import counted, size

    with named({"path": "RESULTS"}):
        found = read_results(results)
    written = page(found).encode("utf-8")
    with named({"path": "--out"}), whole_file(out, force) as partial:
        partial.write_bytes(written)
    screen = Screen()
    states = [cell.state for cell in found.cells]
    for state in ("failed", "unfinished"):
        if count := states.count(state):
            screen.say(f"- {counted(count, 'cell')} {state}: the page says which")
    screen.say(f"Report of {counted(len(states), 'cell')} ({size(len(written))}): {out}")
