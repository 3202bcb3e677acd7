"""Giving files and folders their names: never over somebody else's, and never a moment of none.

All renames of `depthsys.files` are here. What the disk cannot do is done in smaller steps, which
`depthsys.files.leftovers` undoes where a run is killed between them.
"""

import ctypes
import errno
import os
from functools import cache
from pathlib import Path

_NOREPLACE, _EXCHANGE = 1, 2  # of renameat2 of Linux
_AT_FDCWD = -100
CLAIM = "claim"  # in the folder of a run: it has made an empty file at the place of the new one


def move(source: Path, target: Path) -> None:
    """Rename a file or folder to a name that is free, or to that of an empty folder."""
    os.rename(source, target)


def replace(source: Path, target: Path) -> None:
    """Rename a file over another one; of a link the link itself is replaced."""
    os.replace(source, target)


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places at once; False where the disk or the system cannot."""
    return _renameat2(one, other, _EXCHANGE) is None


def give_name(source: Path, target: Path, journal: Path) -> None:
    """Give a file its name unless that is taken: unlike a rename, this never overwrites.

    Parameters
    ----------
    source
        A whole file, in a folder that goes: it may keep this name as well.
    target
        The name, in a folder of the same disk.
    journal
        A folder in which to note an empty file at ``target`` while there is one. That is needed
        where the disk knows neither hard links nor renames that keep what is there.

    Raises
    ------
    FileExistsError
        If the name is taken, be it by a link that leads nowhere.
    """
    problem = _renameat2(source, target, _NOREPLACE)
    if problem is None:
        return
    if problem == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # a disk without hard links
        _claim(source, target, journal)


def _claim(source: Path, target: Path, journal: Path) -> None:
    """By an empty file that only we can have made; what fails here `Workplace.clear` undoes."""
    note = journal / CLAIM
    note.touch()
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        note.unlink()
        raise
    replace(source, target)


@cache
def _function():
    """``renameat2`` of Linux; None elsewhere."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return None
    kinds = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    function.argtypes = kinds
    return function


def _renameat2(source: Path, target: Path, flag: int) -> int | None:
    """The number of the error, None if it worked."""
    function = _function()
    if function is None:
        return errno.ENOSYS
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return None
    return ctypes.get_errno()
