"""`depthsys compare`: reduction methods by order."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from depthsys.cli import results
from depthsys.cli.clock import CLOCK
from depthsys.cli.options import (
    Compared,
    Eps,
    Force,
    Model,
    Out,
    Shared,
    TextsFile,
    settings,
    spread,
)
from depthsys.cli.typed import named
from depthsys.files import OutputFolder
from depthsys.study.names import METHODS

if TYPE_CHECKING:
    from depthsys.lm import Kept


@spread
def compare(
    model: Model,
    texts: TextsFile,
    meaning: Compared,
    shared: Shared,
    out: Out,
    methods: Annotated[
        str | None, typer.Option(help=f"Out of {', '.join(METHODS)}.  [default: all]")
    ] = None,
    orders: Annotated[
        str | None, typer.Option(help="Rising numbers of states.  [default: 1,2,4,8,16,32 up to H]")
    ] = None,
    eps: Eps = 0.1,
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
    asked = settings(
        meaning,
        shared,
        methods=methods,
        orders=orders,
        eps=eps,
        n_each=each,
    )
    folder = OutputFolder.checked(out, results.COMPARISON_FILES, force or dry_run)
    partial = out.with_name(f"{out.name}.partial")
    from depthsys import report
    from depthsys.cli.session import open_model
    from depthsys.study import steps

    strict = not force and not dry_run
    with named({"partial": "--out"}):
        session = open_model(
            model,
            texts,
            asked,
            folder,
            lambda found, splits: _same(steps.kept_for(found, splits, partial), partial, strict),
        )
        kept = _same(steps.kept_parts(session.cell, partial), partial, strict)
        if dry_run:
            begun = CLOCK.seconds
            cost = session.step("calibrate", steps.comparison_cost, partial)
            found = report.forecast(cost, begun)
            session.screen.show(found)
            for verdict in [*found.verdicts, *report.kept(kept, partial, dry_run=True)]:
                session.screen.say(f"- {verdict}")
            return
        concept = session.step("concept direction", steps.find_concept)
        kept = _same(steps.kept_parts(session.cell, partial, concept), partial, strict)
        for line in report.kept(kept, partial):
            session.screen.say(line)
        try:
            table = session.step(
                "compare methods", steps.compare, concept, partial=partial, force=force
            )
        except KeyboardInterrupt as interrupt:
            for note in getattr(interrupt, "__notes__", []):
                typer.echo(f"Interrupted. {note}", err=True)
            raise
    session.keep(results.COMPARISON, table, report.comparison(table))
    session.finish(table, "comparison.txt")


def _same(kept: "Kept", partial: Path, strict: bool) -> "Kept":
    """What is kept; where that matters ValueError if it is of another comparison."""
    if strict and kept.differences:
        raise ValueError(
            f"`--out` must be gone on with as it was begun; {str(partial)!r} was begun with "
            f"{'; '.join(kept.differences)}. Go on with those, add --force to drop it, or choose "
            "another `--out`."
        )
    return kept
