"""`depthsys compare`: reduction methods by order."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from depthsys.cli import results
from depthsys.cli.clock import CLOCK
from depthsys.cli.kept import beside, checked, interrupt_told, until_written
from depthsys.cli.options import (
    Compared,
    Force,
    Layout,
    Measured,
    Model,
    Out,
    Shared,
    TextsFile,
    settings,
    spread,
)
from depthsys.cli.piped import Piped, output_folder
from depthsys.cli.typed import named
from depthsys.files import Resumable
from depthsys.study.names import METHODS

if TYPE_CHECKING:
    import xarray as xr

    from depthsys.cli.session import Session
    from depthsys.lm import Kept, Splits
    from depthsys.study import Found


@spread
def compare(
    model: Model,
    texts: TextsFile,
    meaning: Compared,
    measured: Measured,
    layout: Layout,
    shared: Shared,
    out: Out,
    methods: Annotated[
        str | None, typer.Option(help=f"Out of {', '.join(METHODS)}.  [default: all]")
    ] = None,
    orders: Annotated[
        str | None, typer.Option(help="Rising numbers of states.  [default: 1,2,4,8,16,32 up to H]")
    ] = None,
    each: Annotated[
        int | None,
        typer.Option(
            help="So many held-out prompts also get a system of their own; 0: none.  [default: 64]"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, and do nothing.")
    ] = False,
    force: Force = False,
) -> None:
    """Compare reduction methods by order, on the full model: OUT/comparison.nc and figures.

    Every method at every order, from the same texts: agreement with the gains measured on held-out
    prompts, where the error comes from, exact errors beside what is proved, and cost. What is
    finished is kept in OUT.partial until all of it is: after an interruption the same command goes
    on there.

    Example: `depthsys compare ./my-model reviews.csv --methods ensemble,pod --orders 1,4 --out cmp`
    """
    asked = settings(meaning, measured, layout, shared, methods=methods, orders=orders, n_each=each)
    partial = beside(out)
    piped = Piped.taken(texts, asked)
    if dry_run and piped is not None:
        raise ValueError(
            "`--dry-run` must come with a file of texts, for it keeps nothing; got -. Write the "
            "texts into a file."
        )
    folder = output_folder(out, results.COMPARISON_FILES, force or dry_run, partial, piped)
    from depthsys.cli.session import open_model
    from depthsys.study import steps

    def same(kept: "Kept") -> "Kept":
        return kept if force or dry_run else checked(kept, partial)

    def before_loading(found: "Found", splits: "Splits") -> "Kept":
        steps.check_relative_step(found)
        return same(steps.kept_for(found, splits, partial))

    with named({"partial": "--out"}), interrupt_told():
        session = open_model(
            model,
            texts,
            asked,
            folder,
            before_loading,
            piped=piped,
        )
        kept = same(steps.kept_parts(session.cell, partial))
        if dry_run:
            _show_forecast(session, partial, kept)
            return
        concept = session.step("concept direction", steps.find_concept)
        kept = same(steps.kept_parts(session.cell, partial, concept))
        _compare(session, concept, partial, kept, force)


def _show_forecast(session: "Session", partial: Path, kept: "Kept") -> None:
    from depthsys import report
    from depthsys.study import steps

    begun = CLOCK.seconds
    found = report.forecast(session.step("calibrate", steps.comparison_cost, partial), begun)
    session.screen.show(found)
    verdicts = [*found.verdicts, *report.kept(kept, partial, dry_run=True)]
    out = session.folder.folder
    if taken := [name for name in results.COMPARISON_FILES if (out / name).exists()]:
        verdicts.append(f"{out} holds {taken[0]} already: the comparison needs --force")
    for verdict in verdicts:
        session.screen.say(f"- {verdict}")


def _compare(
    session: "Session", concept: "xr.Dataset", partial: Path, kept: "Kept", force: bool
) -> None:
    from depthsys import report
    from depthsys.study import steps

    for line in report.kept(kept, partial):
        session.screen.say(line)
    table = session.step("compare methods", steps.compare, concept, partial=partial, force=force)
    with until_written(Resumable.begun_in(partial, argument="partial")):
        session.keep(results.COMPARISON, table, report.comparison(table))
        session.finish(table, "comparison.txt")
