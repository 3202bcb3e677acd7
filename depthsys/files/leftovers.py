"""The hidden folder in which a run prepares what will get a name, and what killed runs left.

``.NAME.part-XXXXXXXXXXXXXXXX`` beside NAME holds

=========  ====================================================================================
``lock``   locked as long as the run lives
``new/``   what is being written, under its own name; gone from here once it has its place
``old/``   what is put aside until the new one has its place, under its own name
``claim``  there while an empty file keeps the place of the new one, see `renames`
=========  ====================================================================================

The name is random and the folder is made, so nothing that lies there already is written through,
and nobody but its owner may enter. A run that is killed leaves it; the next one that writes or
misses NAME finds its lock free, puts back what was put aside, and removes it. So NAME is always the
old thing or the new one, whole.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from depthsys.files.locks import LOCK, abandoned, locked
from depthsys.files.renames import CLAIM, move

_OURS = re.compile(r"\.(?P<name>.+)\.part-[0-9a-f]{16}", re.DOTALL)
# of earlier versions: a file or folder beside its target, with the number of the process
_EARLIER = re.compile(r"\.(?P<name>.+)\.(?P<kind>part|old)-(?P<pid>\d+)(-[0-9a-f]{8})?", re.DOTALL)
_LONGEST = 100  # bytes of a name that go into that of the hidden folder: names have at most 255


@dataclass(frozen=True)
class Workplace:
    """The hidden folder of a run, see the module."""

    folder: Path
    name: str

    @property
    def new(self) -> Path:
        """Where to write the new thing."""
        return self.folder / "new" / self.name

    @property
    def old(self) -> Path:
        """The folder for what is put aside."""
        return self.folder / "old"

    def put_back(self) -> None:
        """What was put aside gets its place again where that is free."""
        for path in sorted(self.old.iterdir()) if self.old.is_dir() else []:
            place = self.folder.parent / path.name
            if not os.path.lexists(place):
                move(path, place)

    def clear(self) -> None:
        """Undo what is half done, and go.

        What was put aside is wanted only as long as the new thing has not its place.
        """
        place = self.folder.parent / self.name
        if os.path.lexists(self.new) and not _one_file(self.new, place):
            if (self.folder / CLAIM).exists() and _is_empty_file(place):
                place.unlink()
            self.put_back()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def workplace(target: Path) -> Iterator[Workplace]:
    """A workplace beside ``target``, which goes when the block ends."""
    work, lock = _made(target)
    try:
        (work.folder / "new").mkdir()
        work.old.mkdir()
        yield work
    finally:
        try:
            work.clear()
        finally:
            lock.close()


def _made(target: Path):
    short = os.fsdecode(os.fsencode(target.name)[:_LONGEST])
    for _ in range(100):
        folder = target.parent / f".{short}.part-{secrets.token_hex(8)}"
        try:
            folder.mkdir(mode=0o700)
            lock = locked(folder)
        except (FileExistsError, FileNotFoundError):
            if not target.parent.is_dir():
                raise
            continue  # whoever clears leftovers came between the two
        if lock is not None:
            return Workplace(folder, target.name), lock
    raise OSError(errno.EAGAIN, f"no hidden folder could be made beside {str(target)!r}")


def clear_leftovers(folder: Path, name: str | None = None) -> None:
    """Put right what killed runs left in a folder; what belongs to living ones stays.

    Parameters
    ----------
    folder
        Where they wrote.
    name
        Of what they wrote; None for all.
    """
    with contextlib.suppress(OSError):
        for entry in sorted(os.listdir(folder)):
            path = folder / entry
            if ".part-" in entry or ".old-" in entry:
                with contextlib.suppress(OSError):
                    _clear(path, name)


def _clear(path: Path, name: str | None) -> None:
    short = None if name is None else os.fsdecode(os.fsencode(name)[:_LONGEST])
    if (hit := _OURS.fullmatch(path.name)) and short in (None, hit["name"]):
        _clear_workplace(path)
    elif (hit := _EARLIER.fullmatch(path.name)) and name in (None, hit["name"]):
        _clear_earlier(path, hit["name"], hit["kind"], int(hit["pid"]))


def _clear_workplace(folder: Path) -> None:
    """If it is one, and its run is dead."""
    if not stat.S_ISDIR(folder.lstat().st_mode):
        return
    if not set(os.listdir(folder)) <= {LOCK, CLAIM, "new", "old"}:
        return
    lock = abandoned(folder)
    if lock is None:
        return
    with lock:
        new = folder / "new"
        inside = sorted(os.listdir(new)) if new.is_dir() else []
        # without a new thing in it only what was put aside is left, which is out of date
        Workplace(folder, inside[0] if inside else folder.name).clear()


def _clear_earlier(path: Path, name: str, kind: str, pid: int) -> None:
    """Of a dead process of an earlier version."""
    mode = path.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _lives(pid):
        return
    place = path.with_name(name)
    if kind == "old" and not os.path.lexists(place):
        move(path, place)  # it was killed between its two renames
    elif stat.S_ISDIR(mode):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _lives(pid: int) -> bool:
    if os.name != "posix":  # there the same call ends the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _one_file(path: Path, other: Path) -> bool:
    """Whether a file has two names."""
    try:
        one, two = path.lstat(), other.lstat()
    except OSError:
        return False
    return (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)


def _is_empty_file(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == 0


def found(path: str | os.PathLike) -> Path:
    """The path, once it has been put right what a run left that was killed just there."""
    place = Path(path)
    if place.name and (not os.path.lexists(place) or _is_empty_file(place)):
        clear_leftovers(place.parent, place.name)
    return place
