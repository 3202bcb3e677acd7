"""`depthsys demo`, `identify`, `gains` and `control`: the main job and its parts."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from depthsys import demo as demo_package
from depthsys.cli import results
from depthsys.cli.begun import begun
from depthsys.cli.kept import GoingOn, inside
from depthsys.cli.options import (
    Force,
    Layout,
    Meaning,
    Measured,
    Model,
    Moved,
    OptionalTexts,
    Out,
    Reduction,
    Shared,
    Source,
    TextsFile,
    Wanted,
    settings,
    spread,
)
from depthsys.cli.piped import Piped, output_folder
from depthsys.demo import grammar
from depthsys.files import OutputFolder, content_hash
from depthsys.study import Found, Settings, find_model

if TYPE_CHECKING:
    import xarray as xr

    from depthsys.cli.session import Session


@spread
def demo(
    reduction: Reduction,
    measured: Measured,
    shared: Shared,
    out: Out = Path("depthsys-demo"),
    model: Annotated[
        str, typer.Option(help=f"One of {', '.join(demo_package.MODELS)}.")
    ] = "demo_128x12",
    concept: Annotated[str, typer.Option(help="sentiment or domain.")] = "sentiment",
    force: Force = False,
) -> None:
    """The whole job on an embedded model: identify, predict and measure gains, steer.

    Synthetic labelled texts are written to OUT/texts.csv, so every later command can go on from
    OUT/system.nc.

    Example: `depthsys demo --out demo`
    """
    for option, got, allowed in (
        ("--model", model, tuple(demo_package.MODELS)),
        ("--concept", concept, grammar.CONCEPTS),
    ):
        if got not in allowed:
            names = ", ".join(allowed)
            raise ValueError(f"`{option}` must be one of {names}; got {got!r}. Pick one.")
    asked = settings(reduction, measured, shared)
    texts = _texts(concept, asked)
    folder = OutputFolder.checked(
        out,
        [results.TEXTS, *results.ALL_FILES],
        force,
        partial=inside(out, "demo"),
        known=[content_hash(texts)],
    )
    found = find_model(model, asked)
    check_relative_step(found)
    folder.write(results.TEXTS, lambda path: path.write_bytes(texts))
    from depthsys.cli.session import open_model

    going_on = GoingOn("demo", force)
    session = open_model(model, out / results.TEXTS, asked, folder, going_on=going_on)
    whole_job(session, "demo", force)


@spread
def identify(
    model: Model,
    texts: TextsFile,
    reduction: Reduction,
    meaning: Meaning,
    layout: Layout,
    shared: Shared,
    out: Out,
    per_prompt: Annotated[
        bool, typer.Option("--per-prompt", help="Also write one system per operating prompt.")
    ] = False,
    force: Force = False,
) -> None:
    """Identify the reduced depth system of a model on labelled texts: OUT/system.nc.

    Example: `depthsys identify ./my-model reviews.csv --order 32 --out run`
    """
    asked = settings(reduction, meaning, layout, shared)
    piped = Piped.taken(texts, asked)
    folder = output_folder(out, results.ALL_FILES, force, inside(out, "identify"), piped)
    from depthsys.cli.session import open_model

    going_on = GoingOn("identify", force)
    session = open_model(model, texts, asked, folder, piped=piped, going_on=going_on)
    with session.keeping("identify", force):
        session.finish(identified(session, per_prompt=per_prompt), "identify.txt")


@spread
def gains(
    source: Source,
    reduction: Reduction,
    meaning: Meaning,
    measured: Measured,
    layout: Layout,
    shared: Shared,
    out: Out,
    texts: OptionalTexts = None,
    model: Moved = None,
    force: Force = False,
) -> None:
    """Predicted against measured steering gain of every layer: OUT/gains.nc and figures.

    Example: `depthsys gains run/system.nc --out run`
    """
    asked = settings(reduction, meaning, measured, layout, shared)
    written = {"out": out, "files": results.GAIN_FILES, "force": force}
    session = begun("gains", asked, source, texts, model, **written, check=check_relative_step)
    _check_step(session)
    with session.keeping("gains", force):
        system = identified(session)
        _gains(session, system)
        session.finish(system, "gains.txt")


@spread
def control(
    source: Source,
    reduction: Reduction,
    meaning: Meaning,
    wanted: Wanted,
    layout: Layout,
    shared: Shared,
    out: Out,
    texts: OptionalTexts = None,
    model: Moved = None,
    force: Force = False,
) -> None:
    """Minimum-energy steering schedule, played on the full model: OUT/energy.csv and figures.

    Example: `depthsys control run/system.nc --target 1std --out run`
    """
    asked = settings(reduction, meaning, wanted, layout, shared)
    written = {"out": out, "files": results.CONTROL_FILES, "force": force}
    session = begun("control", asked, source, texts, model, **written)
    with session.keeping("control", force):
        system = identified(session)
        _control(session, system)
        session.finish(system, "control.txt")


def whole_job(session: "Session", command: str, force: bool) -> None:
    """Identify, gains and control, with one model and one prefill, for the command of that name."""
    _check_step(session)
    with session.keeping(command, force):
        system = identified(session)
        _gains(session, system)
        _control(session, system)
        session.finish(system, f"{command}.txt")


def identified(session: "Session", *, per_prompt: bool = False) -> "xr.Dataset":
    """The stored system, or a new one, written."""
    from depthsys.study import steps

    if session.stored is not None:
        return session.stored
    wanted = {"identify", "identify_each"} if per_prompt else {"identify"}
    # of what is kept none is made of the direction again
    kept = session.kept is not None and wanted <= set(session.kept.names)
    concept = None if kept else session.step("concept direction", steps.find_concept)
    system = session.step("identify", steps.identify, concept)
    session.keep(results.SYSTEM, system)
    if per_prompt:
        each = session.step("identify every prompt", steps.identify_each, concept)
        session.keep(results.EACH, each)
    return system


def check_relative_step(found: Found, _: object = None) -> None:
    """Refuse a step that drowns in the rounding of the dtype before the weights are read."""
    from depthsys.study import steps

    steps.check_relative_step(found)


def _check_step(session: "Session") -> None:
    """Refuse a step that drowns in rounding before it costs an identification."""
    from depthsys.study import steps

    steps.check_step(session.cell)


def _gains(session: "Session", system: "xr.Dataset") -> None:
    from depthsys import report
    from depthsys.study import steps

    found = session.step("exact linear and measured gains", steps.gains, system)
    session.keep(results.GAINS, found, report.gains(found))


def _control(session: "Session", system: "xr.Dataset") -> None:
    from depthsys import report
    from depthsys.study import steps

    found = session.step("search energies on the full model", steps.control, system)
    session.keep(results.CONTROL, found, report.control(found))


def _texts(concept: str, asked: Settings) -> bytes:
    """Labelled texts as a file, the same for the same settings."""
    count = max(1000, sum(asked.split))
    rows = grammar.labelled(count_per_class=count, concept=concept, seed=2603)
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("text", "label"), *rows])
    return file.getvalue().encode()
