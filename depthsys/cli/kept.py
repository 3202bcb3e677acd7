"""What a command has found stays on disk until all its files are written."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from depthsys.files import Resumable, write_netcdf
from depthsys.study.measures import MEASURES

if TYPE_CHECKING:
    import xarray as xr

    from depthsys.lm import Kept, Splits
    from depthsys.study import Cell, Found

# steps that take long; a direction alone is not worth a refusal of other settings
WORTH = ("identify", "identify_each", "gains", "control", *MEASURES)


def beside(out: Path) -> Path:
    """Where a comparison is kept: OUT.partial, or inside where OUT has no name (``.``)."""
    named = out.name not in ("", "..")
    return out.with_name(f"{out.name}.partial") if named else out / "compare.partial"


def inside(out: Path, command: str) -> Path:
    """Where the main job and its parts are kept, so that other commands may write beside them."""
    return out / f"{command}.partial"


def checked(kept: "Kept", partial: Path) -> "Kept":
    """ValueError for what is kept of another call."""
    if kept.differences:
        raise ValueError(
            f"`--out` must be gone on with as it was begun; {str(partial)!r} was begun with "
            f"{'; '.join(kept.differences)}. Go on with those, add --force to drop it, or choose "
            "another `--out`."
        )
    return kept


@dataclass(frozen=True)
class GoingOn:
    """What a command that keeps its steps must be the same in, to go on with what is kept.

    Attributes
    ----------
    command, force
        Its name, and whether what is kept of another call is dropped.
    about
        What its steps depend on beside model, texts, settings and system.
    """

    command: str
    force: bool
    about: "Mapping[str, Any]" = field(default_factory=dict)

    def check(
        self, out: Path, found: "Found", splits: "Splits", system: Path | None = None
    ) -> None:
        """ValueError before the weights are read, where the call differs already."""
        if self.force:
            return
        from depthsys import lm
        from depthsys.study import steps

        partial = inside(out, self.command)
        identity = steps.identity_before(found, splits, system) | dict(self.about)
        checked(lm.Kept((), tuple(Resumable(partial, identity, "--out").differences())), partial)


@dataclass(frozen=True)
class KeptSteps:
    """The Datasets of the steps of a command, by the names of their functions."""

    work: Resumable

    @property
    def names(self) -> tuple[str, ...]:
        """Those that need not be computed."""
        work = self.work
        return tuple(name for name in WORTH if work.has(name))

    def __call__(
        self, name: str, compute: "Callable[[], xr.Dataset]", cell: "Cell"
    ) -> "xr.Dataset":
        """What the step of that name found, of the model and texts of the cell."""
        if name not in WORTH:
            return compute()
        if self.work.has(name):
            import xarray as xr  # --help loads none

            from depthsys.study.steps import of_this_run

            return of_this_run(xr.load_dataset(self.work.path(name), engine="h5netcdf"), cell)
        found = compute()
        self.work.write(name, lambda path: write_netcdf(path, {None: found}))
        return found


@contextlib.contextmanager
def until_written(work: Resumable | None) -> Iterator[None]:
    """Keep work as long as files are made of it: an error or an interrupt there costs nothing.

    None if somebody has removed it meanwhile.
    """
    if work is None:
        yield
        return
    with work.locked():
        try:
            yield
        except BaseException as error:
            if told := _told(work):
                error.add_note(
                    f"What is finished is kept in {str(work.folder)!r} ({told}): the same command "
                    "goes on there."
                )
            raise
        work.finish()


def _told(work: Resumable) -> str:
    """The parts that are there, in words."""
    names = sorted(path.name for path in work.work_folder.glob("*")) if work.begun else []
    return "; ".join(name.replace("_", " ") for name in names if work.has(name))


@contextlib.contextmanager
def interrupt_told() -> Iterator[None]:
    """Say on stderr what an interrupt leaves."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        for note in getattr(interrupt, "__notes__", []):
            typer.echo(f"Interrupted. {note}", err=True)
        raise
