"""Locks that the system frees when a process ends, however it ends."""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

LOCK = "lock"  # the name of the file that is locked, in the folder that it stands for


def locked(folder: Path) -> BinaryIO | None:
    """The open lock file of a folder, locked as long as it is open; None if another one holds it.

    Where there are no locks (Windows, some network disks) everybody gets one.

    Raises
    ------
    OSError
        If the folder is not there, or the file cannot be made. A link is not followed.
    """
    path = folder / LOCK
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    file = os.fdopen(os.open(path, flags, 0o600), "r+b")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # whoever clears leftovers may have removed the file between the two calls
        here = os.stat(path, follow_symlinks=False)
        if (here.st_dev, here.st_ino) == _identity(file):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a disk without locks
        return file
    file.close()
    return None


def abandoned(folder: Path) -> BinaryIO | None:
    """The lock of a folder that no living process holds, or None.

    Where that cannot be known every folder counts as somebody's.
    """
    if fcntl is None:
        return None
    try:
        file = locked(folder)
    except OSError:
        return None
    if file is not None and not _holds(file):
        file.close()
        return None
    return file


def _identity(file: BinaryIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino


def _holds(file: BinaryIO) -> bool:
    with contextlib.suppress(OSError):
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False
