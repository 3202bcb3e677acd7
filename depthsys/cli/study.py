"""`depthsys study`: many models, texts and methods from one file."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthsys.cli.options import spread

if TYPE_CHECKING:
    from depthsys.study.checks import Checked

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Models x texts x methods from one file: `check` it, `run` it anywhere, go on after "
    "anything.\n\nExample: `depthsys study check embedded`, then "
    "`depthsys study run embedded --out study.zarr`",
)

StudyFile = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY", help="A study.toml, or the name of one in the package (`study show`)."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Folder that the paths of texts are seen from.  [default: STUDY's own]"
    ),
]


@spread
def check(
    study: StudyFile,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="A store that was begun: what is there is not counted.")
    ] = None,
) -> None:
    """Say what a study would do: its cells, passes, time and memory here. Nothing is loaded.

    All that is wrong with the file is said at once, with the lines.

    Example: `depthsys study check study.toml`
    """
    from depthsys import report
    from depthsys.report import Screen
    from depthsys.study.forecast import forecast
    from depthsys.study.store import Store

    checked = _checked(study, data)
    store = None if out is None else Store.checked(out, checked.study)
    found = report.study_plan(forecast(checked, store))
    screen = Screen()
    screen.say(f"{checked.study.name}: {checked.study.description}".rstrip(": "))
    screen.show(found)
    for verdict in found.verdicts:
        screen.say(f"- {verdict}")


@spread
def run(
    study: StudyFile,
    out: Annotated[Path, typer.Option(help="The store, a Zarr folder; made if absent.")],
    data: Data = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Spread it over so many processes of this machine, with Dask."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Or over the workers of a Dask scheduler, as in tcp://host:8786."),
    ] = None,
) -> None:
    """Make what is not there yet of a study: OUT is a Zarr store that can be read meanwhile.

    After Ctrl-C, a kill or a power failure the same command goes on; what is finished is recognised
    by its settings, texts and weights, and a changed setting makes anew only what depends on it.
    What went wrong in a cell is said in OUT.log and in the store, the others go on, and the exit
    status is 1.

    Example: `depthsys study run study.toml --out study.zarr --workers 2`
    """
    _check_cluster(workers, scheduler)
    from depthsys.cli.watch import ProgressWatch
    from depthsys.study.runner import run_study
    from depthsys.study.store import Store

    checked = _checked(study, data)
    store = Store.checked(out, checked.study)
    with (
        _told_how_to_go_on(out),
        ProgressWatch(checked.study) as watch,
        _computing(workers, scheduler, checked) as computing,
    ):
        outcome = run_study(checked, store, watch, command=_command(), **computing)
    for line in watch.summary(outcome, store):
        typer.echo(line)
    if outcome.failed:
        raise typer.Exit(1)


@spread
def show(
    study: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One of the package's studies.")
    ] = None,
) -> None:
    """Print a study of the package, to begin one's own with; without a name, list them.

    Example: `depthsys study show embedded > study.toml`
    """
    from depthsys.study.study_reader import found_study, packaged, read_heading

    if study is None:
        for name in packaged():
            typer.echo(f"{name:16s} {read_heading(name)}")
        return
    typer.echo(found_study(Path(study)).read_text(encoding="utf-8"), nl=False)


for _name, _function in {"check": check, "run": run, "show": show}.items():
    app.command(_name)(_function)


def _checked(path: Path, data: Path | None) -> "Checked":
    from depthsys.study.checks import checked
    from depthsys.study.study_reader import read_with_faults

    if data is not None and not data.is_dir():
        raise ValueError(f"`--data` must be a folder; got {str(data)!r}. Make it, or leave it out.")
    return checked(*read_with_faults(path, data))


def _check_cluster(workers: int | None, scheduler: str | None) -> None:
    if workers is not None and scheduler is not None:
        raise ValueError(
            f"`--workers` and `--scheduler` must not both be given; got {workers} and "
            f"{scheduler!r}. A scheduler has workers of its own."
        )
    if workers is not None and workers < 1:
        raise ValueError(f"`--workers` must be >= 1; got {workers}. Leave it out for none.")


@contextlib.contextmanager
def _computing(
    workers: int | None, scheduler: str | None, checked: "Checked"
) -> "Iterator[dict[str, Any]]":
    """Who makes the stages, and how many at once."""
    if workers is None and scheduler is None:
        yield {}
        return
    from depthsys.study.cluster import at_once, on_scheduler, on_workers
    from depthsys.study.dask_cluster import ClusterError

    made = on_workers(workers or 1) if scheduler is None else on_scheduler(scheduler)
    try:
        with made as cluster:
            cells = at_once(cluster, iter(checked.splits.values()), checked.study.shard)
            yield {"compute": cluster, "at_once": cells}
    except ClusterError as error:  # told in one line, as all that is typed wrongly
        raise ValueError(str(error)) from error


def _command() -> str:
    import shlex

    return shlex.join(["depthsys", *sys.argv[1:]])


@contextlib.contextmanager
def _told_how_to_go_on(out: Path):
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(
            f"Interrupted. What is finished is in {out}: the same command goes on.", err=True
        )
        raise
