"""A file or folder appears whole or not at all, and never over somebody else's.

What is written lies in a hidden folder beside its place, see `leftovers`, and gets its name when it
is whole. A link as target is refused: it is neither followed nor replaced. So is a device.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from depthsys.files import renames
from depthsys.files.contents import mark, marked_foreign
from depthsys.files.leftovers import Workplace, clear_leftovers, workplace

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, force: bool) -> Iterator[Path]:
    """A hidden path to write to, which becomes ``path`` when the block ends without an error.

    Its last part is that of ``path``. Folders above are made, and go again after an error.

    Parameters
    ----------
    path
        The file.
    force
        Replace an existing file. Otherwise nothing is overwritten, also not what appears meanwhile.

    Raises
    ------
    FileExistsError
        If there is a file and ``force`` is False, or something that is no file.
    ValueError
        If the path has no name.
    OSError
        If the disk is full, or a limit on the size of files is reached.
    """
    target = _checked(path, force, "file")
    with made_parents(target), full_disk_told(target), workplace(target) as work:
        yield work.new
        flush_to_disk(work.new)
        if force:
            renames.replace(work.new, target)
            return
        try:
            renames.give_name(work.new, target, work.folder)
        except FileExistsError as error:
            raise FileExistsError(_exists(target)) from error


@contextlib.contextmanager
def whole_folder(
    path: str | os.PathLike,
    force: bool,
    foreign: Callable[[Path], list[str]] = marked_foreign,
) -> Iterator[Path]:
    """A hidden folder to fill, which becomes ``path`` when the block ends without an error.

    Parameters
    ----------
    path
        The folder.
    force
        Replace an earlier export. On Linux the two change places at once; elsewhere, and on disks
        that cannot, there is a moment without either, and a run that is killed just then leaves the
        old one to be put back by the next one, or by `export.read`.
    foreign
        Finds what is no part of an earlier export; then nothing is replaced.

    Raises
    ------
    FileExistsError
        If the folder holds something and ``force`` is False, or holds other files, or is none.
    ValueError
        If the path has no name.
    OSError
        If the disk is full, or a limit on the size of files is reached.
    """
    target = _checked(path, force, "folder")
    _check_ours(target, force, foreign)
    with made_parents(target), full_disk_told(target), workplace(target) as work:
        work.new.mkdir()
        yield work.new
        if foreign is marked_foreign:
            mark(work.new)
        if force and target.is_dir() and os.listdir(target):
            _check_ours(target, force, foreign)
            swap(work, target)
            return
        try:
            renames.move(work.new, target)  # over nothing, or an empty folder
        except OSError as error:
            if not os.path.lexists(target):
                raise
            raise FileExistsError(_exists(target)) from error


def swap(work: Workplace, target: Path) -> None:
    """Let the new folder of a workplace take the place of an old one."""
    if renames.exchange(work.new, target):
        return
    # an error or an interrupt between the two: `Workplace.clear` puts the old one back
    renames.move(target, work.old / target.name)
    renames.move(work.new, target)


@contextlib.contextmanager
def made_parents(target: Path) -> Iterator[None]:
    """Make the folders above a path; after an error those that we made go, where they are empty."""
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


@contextlib.contextmanager
def full_disk_told(target: Path, left: str = "Nothing was written") -> Iterator[None]:
    """OSError that says what to do where the disk is full or a file may not get larger.

    Parameters
    ----------
    target
        What is written.
    left
        What has become of it by then, in words.
    """
    try:
        yield
    except OSError as error:
        cause = _no_room(error)
        if cause is None:
            raise
        told = OSError(
            f"`path` must lie on a disk with room for what is written; got {cause} at "
            f"{str(target)!r}. {left}: make room, or choose another disk."
        )
        told.errno = error.errno or errno.ENOSPC
        raise told from error


def _no_room(error: OSError) -> str | None:
    """In words, if that is the cause."""
    if error.errno is None and " requested and " in str(error):  # numpy keeps the number to itself
        return "a write that was cut short: no space left, or a limit on files (`ulimit -f`)"
    if error.errno not in _FULL:
        return None
    cause = os.strerror(error.errno).lower()
    if error.errno == errno.EFBIG:
        cause += " for the limits of this session (`ulimit -f`) or this disk"
    return cause


def flush_to_disk(path: Path) -> None:
    """Wait until a file is on the disk: some tell only now that there is no room."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        os.fsync(file)
    finally:
        os.close(file)


def check_no_link(target: Path, argument: str = "path") -> None:
    """FileExistsError for a symbolic link: what it leads to was not named."""
    if target.is_symlink():
        raise FileExistsError(
            f"`{argument}` must not be a symbolic link; got {str(target)!r}, which leads to "
            f"{os.readlink(target)!r}. Name that, or remove the link."
        )


def _exists(target: Path) -> str:
    return (
        f"`path` must not exist yet; got {str(target)!r}, which does. Choose another, or replace "
        "it with `force=True` (`--force`)."
    )


def _checked(path: str | os.PathLike, force: bool, kind: str) -> Path:
    """Where the new thing goes, after putting right what a killed run left there."""
    target = Path(path)
    if target.name in ("", ".", ".."):
        raise ValueError(f"`path` must name a {kind}; got {str(target)!r}. Add a name.")
    clear_leftovers(target.parent, target.name)
    check_no_link(target)
    is_kind = stat.S_ISDIR if kind == "folder" else stat.S_ISREG
    if target.exists() and not is_kind(target.stat().st_mode):
        raise FileExistsError(
            f"`path` must be a {kind}; got {str(target)!r}, which is not one. Choose another."
        )
    if not force and (target.is_file() or (target.is_dir() and os.listdir(target))):
        raise FileExistsError(_exists(target))
    return target


def _check_ours(target: Path, force: bool, foreign: Callable[[Path], list[str]]) -> None:
    if not (force and target.is_dir() and os.listdir(target)):
        return
    if strange := foreign(target):
        raise FileExistsError(
            f"`path` must hold nothing but an earlier export to be replaced; found "
            f"{', '.join(strange[:5])} "
            f"in {str(target)!r}. Choose another, or move them away."
        )
