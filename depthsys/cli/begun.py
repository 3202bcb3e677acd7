"""How a command begins that goes on from a system.nc, or identifies one of a model and texts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from depthsys.cli import results
from depthsys.cli.kept import GoingOn, inside
from depthsys.cli.piped import Piped, output_folder
from depthsys.study import Found, Settings

if TYPE_CHECKING:
    from depthsys.cli.session import Session
    from depthsys.lm import Splits


def begun(
    command: str,
    asked: Settings,
    source: str,
    texts: Path | None,
    moved: str | None,
    *,
    out: Path,
    files: Sequence[str],
    force: bool,
    check: "Callable[[Found, Splits], object]" = lambda found, splits: None,
) -> "Session":
    """All that can be checked, checked; then the model, loaded.

    Parameters
    ----------
    command
        Its name.
    asked
        Its settings.
    source, texts, moved
        A model, or a system.nc; texts; and where the model of a system.nc has moved to.
    out, files, force
        The folder of its results, their names, and whether earlier ones are overwritten.
    check
        Called before the weights are read.
    """
    _check_source(source, texts, moved)
    piped = Piped.taken(texts, asked)
    written = results.outputs(source, list(files))
    folder = output_folder(out, written, force, inside(out, command), piped)
    from depthsys.cli.session import open_source

    going_on = GoingOn(command, force)
    return open_source(source, texts, moved, asked, folder, piped, check, going_on)


def _check_source(source: str, texts: Path | None, moved: str | None) -> None:
    """ValueError unless the arguments of such a command go together."""
    if results.is_system(source):
        return
    if Path(source).is_file() and not source.lower().endswith(".gguf"):
        raise ValueError(
            f"`MODEL|SYSTEM.nc` must be a model, or a system.nc; got the file {source!r}. If it is "
            f"a system, `depthsys import {source} --out system.nc` makes a system.nc of it."
        )
    if texts is None:
        raise ValueError(
            "`TEXTS` must be given with a model; got none. Add a file of labelled texts, "
            "or pass a system.nc instead of the model."
        )
    if moved is not None:
        raise ValueError(
            "`--model` must be left out when the first argument is a model; got "
            f"{moved!r}. It says where the model of a system.nc has moved to."
        )
