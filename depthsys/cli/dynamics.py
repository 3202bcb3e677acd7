"""`depthsys dynamics`: what else is measured of depth as a dynamical system."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from depthsys.cli.clock import CLOCK
from depthsys.cli.kept import GoingOn, inside
from depthsys.cli.options import Force, Layout, Meaning, Model, Out, Shared, settings, spread
from depthsys.cli.piped import Piped, output_folder
from depthsys.cli.results import Result
from depthsys.cli.typed import named as as_typed
from depthsys.study.lines import are_lines, check_lines
from depthsys.study.measures import MEASURES, Measure, check_enough, checked_measures
from depthsys.study.settings import DEFAULT_LINES

if TYPE_CHECKING:
    import xarray as xr

    from depthsys.cli.session import Session
    from depthsys.files import OutputFolder
    from depthsys.lm import Splits
    from depthsys.study import Found, Settings

WORTH_SAYING = 20.0  # seconds that are expected

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
    lens: Annotated[
        Path | None,
        typer.Option(
            help="A lens to set beside the one made here: a file of `lm.save_lens`, or a published "
            ".pt with --pickled-weights."
        ),
    ] = None,
    pickled_weights: Annotated[
        bool,
        typer.Option("--pickled-weights", help="Read a pickled --lens, by torch's safe reader."),
    ] = False,
    force: Force = False,
) -> None:
    """Depth as dynamics: spectra, layers left out, and more; OUT/MEASURE.nc, .txt and figures each.

    Measures are taken of the operating texts of --split, or of the lines of a .txt.

    Example: `depthsys dynamics ./my-model reviews.csv --measures spectra,skip --out dynamics`

    Example: `depthsys dynamics ./my-model stories.txt --lines 200 --out dynamics`
    """
    asked = settings(meaning, layout, shared, n_jacobians=jacobians, n_lines=lines)
    plain = are_lines(texts, asked)
    wanted = checked_measures(measures, labelled=not plain)
    check_lines(asked, lines=plain)
    given = _read_lens(lens, wanted, pickled_weights=pickled_weights)
    becomes = {each.name: _result(each) for each in wanted}
    written = [name for each in becomes.values() for name in each.files]
    written += [f"{name}.txt" for name in becomes]
    piped = Piped.taken(texts, asked)
    folder = output_folder(out, written, force, inside(out, "dynamics"), piped)
    about = {"whole Jacobians": asked.n_jacobians, "measured": "lines" if plain else "texts"}
    going_on = GoingOn("dynamics", force, about)
    session = _opened(
        model, texts, asked, folder, piped, wanted, going_on, given, plain=plain, named=measures
    )
    with session.keeping("dynamics", force, about=about):
        session.screen.text()  # what was shown of loading is of no measure
        told = {
            each: _told(session, each, becomes[each.name], given, named=measures) for each in wanted
        }
        _finish(session, {each: said for each, said in told.items() if said})


def _result(measure: Measure) -> Result:
    """What a measure becomes; a lens also a file of its own."""
    others = (("lens.safetensors", _write_lens),) if measure.name == "lens" else ()
    return Result(
        f"{measure.name}.nc", measure.figures, others, sheets="dynamics", without=measure.large
    )


def _read_lens(
    path: Path | None, wanted: tuple[Measure, ...], *, pickled_weights: bool
) -> "xr.Dataset | None":
    """The lens that is given, before the model is loaded."""
    if path is None:
        if pickled_weights:
            raise ValueError(
                "`--pickled-weights` must come with --lens; got it alone. Leave it out."
            )
        return None
    if "lens" not in {each.name for each in wanted}:
        raise ValueError(
            f"`--lens` must come with the measure lens; got {str(path)!r} without. Add it to "
            "--measures."
        )
    from depthsys import lm

    with as_typed({"path": "--lens", "pickled_weights=True": "--pickled-weights"}):
        return lm.read_lens(path, pickled_weights=pickled_weights)


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
    going_on: GoingOn,
    given: "xr.Dataset | None",
    *,
    plain: bool,
    named: str | None,
) -> "Session":
    from depthsys.cli.session import open_model
    from depthsys.report.forecast import duration
    from depthsys.study import forecast, read_splits
    from depthsys.study.lines import read_lines

    seconds: dict[str, float] = {}

    def check(found: "Found", splits: "Splits") -> None:
        if given is not None and given.sizes["feature"] != found.width:
            raise ValueError(
                f"`--lens` must be of the model, which is {found.width} features wide; got one of "
                f"{given.sizes['feature']}. Give the lens of this model."
            )
        check_enough(() if named is None else wanted, len(splits.operating), "--measures")
        seconds.update(forecast.of_measures(found, splits, [each.name for each in wanted]))

    read = read_lines if plain else read_splits
    session = open_model(
        model, texts, asked, folder, check, piped=piped, read=read, going_on=going_on
    )
    if (expected := sum(seconds.values())) > WORTH_SAYING:
        longest = sorted(seconds, key=lambda name: -seconds[name])[:2]
        most = " and ".join(f"{name} {duration(seconds[name])}" for name in longest)
        session.screen.say(f"about {duration(expected)} to come, from sizes alone: {most}")
    if plain and named is None:
        left_out = ", ".join(each.name for each in MEASURES.values() if each.of_concept)
        session.screen.say(f"left out, for lines have no labels: {left_out}")
    return session


def _told(
    session: "Session",
    measure: Measure,
    result: Result,
    given: "xr.Dataset | None",
    *,
    named: str | None,
) -> list[str]:
    """Take a measure, and write it: what is told of it, as shown and in sentences.

    Of all of them those that cannot be taken are told at the end, and nothing comes back. One that
    was asked for by its name is an error.
    """
    from depthsys import report
    from depthsys.study import dynamics as study

    try:
        with session.screen.step(measure.title):
            found = session.found_once(
                measure.name, lambda: study.measured(session.cell, measure.name)
            )
            if measure.name == "lens" and given is not None:
                found = study.beside_given(session.cell, found, given)
    except ValueError as error:
        if named is not None:
            raise
        session.found.append(f"{measure.name} is left out: {error}")
        session.screen.say(f"{measure.name} is left out: {error}")
        session.screen.text()
        return []
    told = report.dynamics(measure.name, found)
    session.keep(result, found, told)
    return [session.screen.text(), *(f"- {verdict}" for verdict in told.verdicts)]


def _finish(session: "Session", told: dict[Measure, list[str]]) -> None:
    """Say what it was of, and store the summary of each measure in a file of its own.

    So measures can be added to a folder one by one.
    """
    for measure, said in told.items():
        text = "\n".join([*_of(session, [measure]), *said, ""])
        session.folder.write(
            f"{measure.name}.txt", lambda path, text=text: path.write_text(text, encoding="utf-8")
        )
    session.screen.say()
    for line in [*_of(session, list(told)), *(f"- {said}" for said in session.found)]:
        session.screen.say(line)
    folder = session.folder.folder
    session.screen.say(
        f"Results after {CLOCK.seconds:.0f} s, start and imports included: {folder}/"
    )


def _of(session: "Session", measures: list[Measure]) -> list[str]:
    """What measures are of: model, texts, and the concept if one of them is about one."""
    from depthsys.report import notes, text_notes
    from depthsys.report.heading import separation

    cell = session.cell
    head = (
        f"{cell.model.name}: L = {cell.model.n_layers}, H = {cell.model.n_features}, "
        f"{cell.model.dtype_name}; {len(cell.operating)} texts of {cell.texts.operating.source}"
    )
    found: list[str] = []
    if any("n_jacobians" in each.settings for each in measures):
        found.append(f"whole Jacobians of {len(cell.few)} of them")
    for about in [each for each in measures if each.of_concept][:1]:
        result = session.of[about.name]
        found += [separation(result, cell.model.n_layers), *notes(result)]
    return [head, *(f"- {said}" for said in [*found, *text_notes(session.latest.attrs)])]
