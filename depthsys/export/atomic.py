"""Files and folders that appear whole or not at all, and never over somebody else's."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unicodedata import normalize
from uuid import uuid4

MARKER = ".depthsys-export"  # in a folder: the files that belong to the export, a line each
_BY_RUNNING = "__pycache__"  # of a script that was run in the folder


@contextmanager
def whole_file(path: str | os.PathLike, force: bool) -> Iterator[Path]:
    """A hidden path to write to, which becomes ``path`` when the block ends without an error.

    Of a symbolic link the file that it points to is written.
    """
    target = _checked(path, force, "file")
    partial = _hidden(target, "part")
    try:
        yield partial
        if force:
            os.replace(partial, target)
        else:
            _place(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def marked_foreign(folder: Path) -> list[str]:
    """What no export has written in a folder, by the list that exports leave there."""
    marker = folder / MARKER
    if not marker.is_file():
        return files_below(folder) or [folder.name]
    ours = {MARKER, *marker.read_text(encoding="utf-8").split("\n")}
    return [
        name
        for name in files_below(folder)
        if name not in ours and _BY_RUNNING not in Path(name).parts
    ]


@contextmanager
def whole_folder(
    path: str | os.PathLike,
    force: bool,
    foreign: Callable[[Path], list[str]] = marked_foreign,
) -> Iterator[Path]:
    """A hidden folder to fill, which becomes ``path`` when the block ends without an error.

    With ``force`` an earlier export is replaced, if ``foreign`` finds nothing else in the folder.
    """
    target = _checked(path, force, "folder")
    _check_ours(target, force, foreign)
    partial = _hidden(target, "part")
    partial.mkdir()
    try:
        yield partial
        if foreign is marked_foreign:
            (partial / MARKER).write_text("\n".join(files_below(partial)), encoding="utf-8")
        if force and target.is_dir() and os.listdir(target):
            _check_ours(target, force, foreign)
            _swap(partial, target)
        else:
            try:
                os.rename(partial, target)  # over nothing, or an empty folder
            except OSError as error:
                if not target.exists():
                    raise
                raise FileExistsError(_exists(target)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _hidden(target: Path, kind: str) -> Path:
    return target.parent / f".{target.name}.{kind}-{os.getpid()}-{uuid4().hex[:8]}"


def _place(partial: Path, target: Path) -> None:
    """Give a file its name, unless that is taken: unlike a rename, this never overwrites."""
    try:
        os.link(partial, target)
    except FileExistsError as error:
        raise FileExistsError(_exists(target)) from error
    except OSError:  # a file system without hard links
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL))
        except FileExistsError as error:
            raise FileExistsError(_exists(target)) from error
        os.replace(partial, target)


def _exists(target: Path) -> str:
    return (
        f"`path` must not exist yet; got {str(target)!r}, which does. Choose another, or replace "
        "it with `force=True` (`--force`)."
    )


def _checked(path: str | os.PathLike, force: bool, kind: str) -> Path:
    """Where the export goes; its parents are made."""
    target = Path(path)
    if target.name in ("", ".", ".."):
        raise ValueError(f"`path` must name a {kind}; got {str(target)!r}. Add a name.")
    if target.is_symlink():
        target = target.resolve()
    if target.exists() and target.is_dir() != (kind == "folder"):
        raise FileExistsError(
            f"`path` must be a {kind}; got {str(target)!r}, which is not one. Choose another."
        )
    if not force and (target.is_file() or (target.is_dir() and os.listdir(target))):
        raise FileExistsError(_exists(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def check_case(folder: Path, names: Iterable[str]) -> None:
    """ValueError where two names differ only by case and would be one file.

    Parameters
    ----------
    folder
        An existing folder, in which no file has one of the names.
    names
        Of variables, each to be a file or folder of its own.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(normalize("NFC", name).casefold(), name)
        if other != name and _one_file(folder, other, name):
            raise ValueError(
                "`path` must lie on a disk that tells upper from lower case where names differ by "
                f"nothing else; got the variables {other!r} and {name!r}, which would be one file "
                "there. Write npz, or rename one."
            )


def _one_file(folder: Path, name: str, other: str) -> bool:
    """Whether two names mean the same file in a folder."""
    (folder / name).touch()
    found = (folder / other).exists()
    (folder / name).unlink()
    return found


def files_below(folder: Path) -> list[str]:
    """All files below a folder, links among them, relative to it."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in files + links]
    return sorted(found)


def _check_ours(target: Path, force: bool, foreign: Callable[[Path], list[str]]) -> None:
    if not (force and target.is_dir() and os.listdir(target)):
        return
    if strange := foreign(target):
        raise FileExistsError(
            f"`path` must hold nothing but an earlier export to be replaced; found {strange[:5]} "
            f"in {str(target)!r}. Choose another, or move them away."
        )


def _swap(partial: Path, target: Path) -> None:
    old = _hidden(target, "old")
    os.rename(target, old)
    try:
        os.rename(partial, target)
    except BaseException:  # also an interrupt: the old one goes back
        os.rename(old, target)
        raise
    shutil.rmtree(old)
