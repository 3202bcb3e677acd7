"""`depthsys dynamics`: what else is measured of depth as a dynamical system."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from depthsys.cli.clock import CLOCK
from depthsys.cli.kept import inside
from depthsys.cli.options import Force, Layout, Meaning, Model, Out, Shared, settings, spread
from depthsys.cli.piped import Piped, output_folder
from depthsys.cli.results import Result
from depthsys.study.lines import are_lines, check_lines
from depthsys.study.measures import MEASURES, Measure, check_enough, checked_measures
from depthsys.study.settings import DEFAULT_LINES

if TYPE_CHECKING:
    import xarray as xr

    from depthsys.cli.session import Session
    from depthsys.files import OutputFolder
    from depthsys.lm import Splits
    from depthsys.study import Found, Settings

SUMMARY = "dynamics.txt"

Lines = Annotated[
    Path,
    typer.Argument(
        metavar="TEXTS",
        help="Labelled texts as in `identify`; or a .txt, every line of which is a text without a "
        "label.",
    ),
]


@spread
def dynamics(
    model: Model,
    texts: Lines,
    meaning: Meaning,
    layout: Layout,
    shared: Shared,
    out: Out,
    measures: Annotated[
        str | None,
        typer.Option(help=f"Out of {', '.join(MEASURES)}.  [default: all that the texts allow]"),
    ] = None,
    jacobians: Annotated[
        int | None,
        typer.Option(help="Of so many texts whole Jacobians are taken.  [default: 20]"),
    ] = None,
    lines: Annotated[
        int | None,
        typer.Option(help=f"So many lines of a .txt, drawn at random.  [default: {DEFAULT_LINES}]"),
    ] = None,
    force: Force = False,
) -> None:
    """Depth as dynamics: spectra, layers left out, and more; OUT/MEASURE.nc and figures each.

    Measures are taken of the operating texts of --split, or of the lines of a .txt.

    Example: `depthsys dynamics ./my-model reviews.csv --measures spectra,skip --out dynamics`

    Example: `depthsys dynamics ./my-model stories.txt --lines 200 --out dynamics`
    """
    asked = settings(meaning, layout, shared, n_jacobians=jacobians, n_lines=lines)
    plain = are_lines(texts, asked)
    wanted = checked_measures(measures, labelled=not plain)
    check_lines(asked, lines=plain)
    becomes = {each.name: _result(each) for each in wanted}
    written = [*(name for each in becomes.values() for name in each.files), SUMMARY]
    piped = Piped.taken(texts, asked)
    folder = output_folder(out, written, force, inside(out, "dynamics"), piped)
    session = _opened(model, texts, asked, folder, piped, wanted, plain=plain, named=measures)
    about = {"whole Jacobians": asked.n_jacobians, "measured": "lines" if plain else "texts"}
    with session.keeping("dynamics", force, about=about):
        taken = [
            each for each in wanted if _measured(session, each, becomes[each.name], named=measures)
        ]
        _finish(session, tuple(taken))


def _result(measure: Measure) -> Result:
    """What a measure becomes; a lens also a file of its own."""
    others = (("lens.safetensors", _write_lens),) if measure.name == "lens" else ()
    return Result(
        f"{measure.name}.nc", measure.figures, others, sheets="dynamics", without=measure.large
    )


def _write_lens(found: "xr.Dataset", path: Path) -> None:
    from depthsys import lm
    from depthsys.study.dynamics import lens_in

    lm.save_lens(lens_in(found), path, force=True)


def _opened(
    model: str,
    texts: Path,
    asked: "Settings",
    folder: "OutputFolder",
    piped: Piped | None,
    wanted: tuple[Measure, ...],
    *,
    plain: bool,
    named: str | None,
) -> "Session":
    from depthsys.cli.session import open_model
    from depthsys.study import read_splits
    from depthsys.study.lines import read_lines

    def check(found: "Found", splits: "Splits") -> None:
        check_enough(() if named is None else wanted, len(splits.operating), "--measures")

    read = read_lines if plain else read_splits
    return open_model(model, texts, asked, folder, check, piped, read)


def _measured(session: "Session", measure: Measure, result: Result, *, named: str | None) -> bool:
    """Take a measure, and write it. Of all of them those that cannot be taken are told, and False.

    One that was asked for by its name is an error.
    """
    from depthsys import report
    from depthsys.study import dynamics as study

    try:
        with session.screen.step(measure.title):
            found = session.found_once(
                measure.name, lambda: study.measured(session.cell, measure.name)
            )
    except ValueError as error:
        if named is not None:
            raise
        session.found.append(f"{measure.name} is left out: {error}")
        session.screen.say(f"{measure.name} is left out: {error}")
        return False
    session.keep(result, found, report.dynamics(measure.name, found))
    return True


def _finish(session: "Session", measures: tuple[Measure, ...]) -> None:
    """End the summary, and store it."""
    from depthsys.report import text_notes

    cell, screen = session.cell, session.screen
    n = len(cell.operating)
    screen.say()
    screen.say(
        f"{cell.model.name}: L = {cell.model.n_layers}, H = {cell.model.n_features}, "
        f"{cell.model.dtype_name}; {n} texts of {cell.texts.operating.source}"
    )
    if any("n_jacobians" in each.settings for each in measures):
        screen.say(f"- whole Jacobians of {len(cell.few)} of them")
    about_concept = next((each for each in measures if each.of_concept), None)
    for said in [*_of_concept(session, about_concept), *text_notes(session.latest.attrs)]:
        screen.say(f"- {said}")
    for said in session.found:
        screen.say(f"- {said}")
    folder = session.folder.folder
    screen.say(f"Results after {CLOCK.seconds:.0f} s, start and imports included: {folder}/")
    summary = screen.text()
    session.folder.write(SUMMARY, lambda path: path.write_text(summary, encoding="utf-8"))


def _of_concept(session: "Session", measure: Measure | None) -> list[str]:
    """How well the concept separates, where a measure is about one, and what speaks against it."""
    if measure is None:
        return []
    from depthsys.report import notes
    from depthsys.report.heading import separation

    found = session.of[measure.name]
    return [separation(found, session.cell.model.n_layers), *notes(found)]
