"""A command at work: its cell of a study, its folder, and what was shown and found so far."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from depthsys.cli.clock import CLOCK
from depthsys.cli.kept import GoingOn, KeptSteps, checked, inside, interrupt_told, until_written
from depthsys.cli.piped import Piped
from depthsys.cli.results import Result, is_system, write_data, write_shown
from depthsys.cli.typed import named
from depthsys.files import OutputFolder, Resumable, file_hash
from depthsys.report import Report, Screen, heading, notes, text_notes
from depthsys.study import Cell, Found, Settings, find_model, open_cell, read_splits
from depthsys.study.stored import (
    check_same_model,
    check_same_texts,
    read_system,
    settings_of,
    texts_of,
)

if TYPE_CHECKING:
    from depthsys.lm import Splits


@dataclass
class Session:
    """What the steps of one command share.

    Attributes
    ----------
    screen, folder, cell
        Where it is shown, where it is written, and what is studied.
    stored, source
        The system that is gone on from, and its file.
    found
        Verdicts so far.
    latest, of
        The Dataset that was computed last, and all by the names of their files.
    kept
        What the steps found, on disk.
    """

    screen: Screen
    folder: OutputFolder
    cell: Cell
    stored: xr.Dataset | None = None
    source: Path | None = None
    found: list[str] = field(default_factory=list)
    latest: xr.Dataset = field(default_factory=xr.Dataset)
    of: dict[str, xr.Dataset] = field(default_factory=dict)
    kept: KeptSteps | None = None

    def step(self, title: str, function: Callable[..., xr.Dataset], *given: Any, **options: Any):
        """Run a step of the study, with its title and duration."""

        def found() -> xr.Dataset:
            return function(self.cell, *given, **options)

        with self.screen.step(title):
            return self.found_once(function.__name__, found)

    def found_once(self, name: str, find: Callable[[], xr.Dataset]) -> xr.Dataset:
        """What the step of that name found before it was interrupted, or finds now."""
        return find() if self.kept is None else self.kept(name, find, self.cell)

    @contextlib.contextmanager
    def keeping(
        self, command: str, force: bool, *, about: Mapping[str, Any] | None = None, **files: Path
    ) -> Iterator[None]:
        """Keep on disk what the steps find until all that is made of it is written.

        Interrupted or killed on the way, the same command goes on with what is kept. ``files`` are
        what it is about beside model, texts and system, by their names in messages; ``about`` what
        else it depends on.

        Raises
        ------
        ValueError
            If something is kept of this command with other settings, texts or weights, which goes
            with ``force``; or if another run is at work there.
        """
        from depthsys import lm, report
        from depthsys.study import steps

        partial = inside(self.folder.folder, command)
        identity = steps.identity(self.cell, self.source)
        identity |= {name: file_hash(path) for name, path in files.items()} | dict(about or {})
        work = Resumable(partial, identity, "--out")
        kept = lm.Kept(KeptSteps(work).names, tuple(work.differences()))
        if not force:
            checked(kept, partial)
        for line in report.kept(kept, partial):
            self.screen.say(line)
        with interrupt_told(), until_written(work):
            if kept.differences:
                work.begin()
            self.kept = KeptSteps(work)
            yield

    def keep(self, result: Result, dataset: xr.Dataset, report: Report | None = None) -> None:
        """Write what a step found, and show its report."""
        write_data(self.folder, result, dataset)
        write_shown(self.folder, result, dataset)
        self.latest = self.of[result.data.removesuffix(".nc")] = dataset
        if report is not None:
            self.screen.show(report)
            self.found += report.verdicts

    def finish(self, result: xr.Dataset, name: str) -> None:
        """End the summary, which is about that Dataset, and store it under the name."""
        self.screen.say()
        made = self.latest.attrs
        for line in heading(result, made):
            self.screen.say(line)
        for note in [*notes(result), *text_notes(made), *self.found]:
            self.screen.say(f"- {note}")
        spent = f"{CLOCK.seconds:.0f} s, start and imports included"
        self.screen.say(f"Results after {spent}: {self.folder.folder}/")
        summary = self.screen.text()
        self.folder.write(name, lambda path: path.write_text(summary, encoding="utf-8"))


def open_model(
    model: str,
    texts: Path,
    asked: Settings,
    folder: OutputFolder,
    check: Callable[[Found, "Splits"], object] = lambda found, splits: None,
    piped: Piped | None = None,
    going_on: GoingOn | None = None,
    system: Path | None = None,
    read: Callable[[Path, Settings], "Splits"] = read_splits,
) -> Session:
    """A session on a model and texts, which are checked before the weights are read.

    Texts from standard input are first written beside the results. What an interrupted command has
    kept must be of the same call, as far as is known then.
    """

    def all_checked(found: Found, splits: "Splits") -> None:
        check(found, splits)
        if going_on is not None:
            going_on.check(folder.folder, found, splits, system)

    screen = Screen()
    with screen.step(f"load {model}"):
        if piped is not None:
            find_model(model, asked)
            piped.checked_by(asked)
            texts = piped.kept_in(folder)
        cell = open_cell(model, texts, asked, all_checked, read)
    return Session(screen, folder, cell)


def open_source(
    source: str,
    texts: Path | None,
    moved: str | None,
    asked: Settings,
    folder: OutputFolder,
    piped: Piped | None = None,
    check: Callable[[Found, "Splits"], object] = lambda found, splits: None,
    going_on: GoingOn | None = None,
) -> Session:
    """A session on a model and texts, or on a stored system that knows both.

    With a system, ``texts`` and ``moved`` say where its texts and its model are now.
    """
    if texts is not None and not is_system(source):
        with named({"model": "MODEL"}):
            return open_model(source, texts, asked, folder, check, piped, going_on)
    path = Path(source)
    with named({"path": "SYSTEM.nc"}):
        system = read_system(path, asked)
    if piped is not None:
        raise ValueError(
            f"`TEXTS` must be a file where they have moved; got - beside {source!r}, which knows "
            "its texts. Leave it out, or write where they are."
        )

    def all_checked(found: Found, splits: "Splits") -> None:
        check_same_texts(system, splits, path)
        check(found, splits)

    session = open_model(
        moved or system.attrs["model"],
        texts_of(system, path, texts),
        settings_of(system, asked),
        folder,
        all_checked,
        going_on=going_on,
        system=path,
    )
    check_same_model(system, session.cell, path)
    session.stored = session.latest = system
    session.source = path
    return session
