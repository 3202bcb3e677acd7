"""Kill a writer at every step that touches names, and look at what is left.

Run as a program, `python -m tests.files.killed SIGNAL DISK...`, in a process without threads: it
forks for every case, and prints how many there were.
"""

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

from depthsys.files import (
    OutputFolder,
    Resumable,
    clear_leftovers,
    found,
    renames,
    whole_file,
    whole_folder,
)

STEPS = ("rename", "replace", "link", "unlink", "mkdir", "open", "rmdir")
OLD, NEW = "old", "new"


def text_of(place: Path) -> str | None:
    """OLD, NEW, None if there is nothing, or else what is there."""
    if place.is_dir():
        parts = {p.name: p.read_text() for p in place.iterdir() if p.is_file()}
        parts.pop(".depthsys-export", None)
        if set(parts) == {"one", "two"} and len(set(parts.values())) == 1:
            return parts["one"]
        return str(parts)
    return place.read_text() if place.is_file() else None


def fill(folder: Path, text: str) -> None:
    for name in ("one", "two"):
        (folder / name).write_text(text)


# ------------------------------------------------------------------------- what is done


def write_file(place: Path, text: str, force: bool) -> None:
    with whole_file(place / "s", force) as partial:
        partial.write_text(text)


def write_folder(place: Path, text: str, force: bool) -> None:
    with whole_folder(place / "s", force) as partial:
        fill(partial, text)


def write_results(place: Path, text: str, force: bool) -> None:
    """Two results; the second of the old run is out of date as soon as the first new one comes."""
    folder = OutputFolder.checked(place / "s", ["one", "two"], force)
    for name in ("one", "two"):
        folder.write(name, lambda path: path.write_text(text))


def write_first_result(place: Path, text: str, force: bool) -> None:
    folder = OutputFolder.checked(place / "s", ["one", "two"], force)
    folder.write("one", lambda path: path.write_text(text))


def write_kept_results(place: Path, text: str, force: bool) -> None:
    """The same while what they are made of is kept: then the same call goes on without force."""
    kept = place / "s.partial"
    folder = OutputFolder.checked(place / "s", ["one", "two"], force, partial=kept)
    work = Resumable.checked(kept, {"text": text})
    with work.locked():
        if not work.has("part"):
            work.write("part", lambda path: path.write_text(text))
        for name in ("one", "two"):
            folder.write(name, lambda path: path.write_text(work.path("part").read_text()))
        work.finish()


def publish(place: Path, text: str, force: bool) -> None:
    work = Resumable(place / "s.partial", {"text": text})
    work.recover(place / "s")
    work = Resumable.checked(work.folder, {"text": text})
    with work.locked():
        for name in ("one", "two"):
            if not work.has(name):
                work.write(name, lambda path: path.write_text(text))
        work.publish(place / "s")


# ------------------------------------------------------------------------- how it may look


def one_of_both(place: Path, had: bool, at_once: bool) -> None:
    """The old one or the new one, whole; there is one if there was one."""
    found(place / "s")
    Resumable(place / "s.partial", {}).recover(place / "s")
    assert text_of(place / "s") in (NEW, OLD if had else None), text_of(place / "s")


def never_gone(place: Path, had: bool, at_once: bool) -> None:
    """Even without anybody who puts it right."""
    if at_once:
        assert text_of(place / "s") in (NEW, OLD if had else None), text_of(place / "s")
    one_of_both(place, had, at_once)


def not_mixed(place: Path, had: bool, at_once: bool) -> None:
    """All of the old run, or only of the new one."""
    folder = place / "s"
    clear_leftovers(folder)
    left = {p.name: p.read_text() for p in folder.iterdir()} if folder.is_dir() else {}
    old = {"one": OLD, "two": OLD} if had else {}
    assert left in (old, {"one": NEW}, {"one": NEW, "two": NEW}), left


Check = Callable[[Path, bool, bool], None]
CASES: dict[str, tuple[Callable[[Path, str, bool], None], Check]] = {
    "file": (write_file, never_gone),
    "folder": (write_folder, never_gone),
    "results": (write_results, not_mixed),
    "first result": (write_first_result, not_mixed),
    "kept results": (write_kept_results, not_mixed),
    "publish": (publish, never_gone),
}


def limit_disk(disk: str) -> None:
    """What the disk cannot do."""
    if disk != "of linux":
        renames._renameat2 = lambda *_: errno.EINVAL
    if disk == "without links":

        def link(*_args, **_kwargs):
            raise OSError(errno.EPERM, "no links here")

        os.link = link


def kill_at(number: int, after: bool, how: int) -> None:
    """The n-th step ends this process, before or after it is done."""
    count = 0

    def counted(function):
        def step(*args, **kwargs):
            nonlocal count
            count += 1
            mine = count
            if mine == number and not after:
                os.kill(os.getpid(), how)
            try:
                return function(*args, **kwargs)
            finally:
                if mine == number and after:
                    os.kill(os.getpid(), how)

        return step

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    renames._renameat2 = counted(renames._renameat2)


def run_case(case: str, disk: str, had: bool, number: int, after: bool, how: int) -> bool:
    """Whether the writer got to its end, so that there are no further steps."""
    write, check = CASES[case]
    place = Path(mkdtemp())
    if had:
        write_folder(place, OLD, False) if case != "file" else write_file(place, OLD, False)
        (place / "s" / ".depthsys-export").unlink() if "result" in case else None
    if not (child := os.fork()):
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            limit_disk(disk)
            kill_at(number, after, how)
            write(place, NEW, had)
        except KeyboardInterrupt:
            os._exit(3)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    where = f"{case}, {disk}, {had=}, step {number}, {after=}"
    assert status in (0, 3, -how), f"{where}: {status}"
    try:
        check(place, had, disk == "of linux")
        if status == 0:
            assert text_of(place / "s") == NEW or case == "first result"
        elif case == "kept results" and not had:
            finished = text_of(place / "s") == NEW
            try:
                write(place, NEW, False)
            except ValueError:  # killed after its end
                assert finished
        if case == "file" or text_of(place / "s") is not None or case == "publish":
            write(place, NEW, True)
        else:
            write(place, NEW, had)
        check(place, True, False)
        hidden = [p.name for p in [*place.iterdir(), *(place / "s").glob(".*")]]
        assert set(hidden) <= {"s", ".depthsys-export"}, hidden
    except BaseException as error:
        raise AssertionError(f"{where}: {error!r}") from error
    shutil.rmtree(place)
    return status == 0


def main() -> None:
    how = int(signal.Signals[sys.argv[1]])
    os.fsync = lambda _: None  # no power fails here, and a disk takes its time
    cases = 0
    for case in CASES:
        for disk in sys.argv[2:]:
            for had in (True, False):
                # killed after a step is killed before the next one; an interrupt is another thing
                for after in (True,) if how == signal.SIGINT else (False,):
                    number = 1
                    while not run_case(case, disk, had, number, after, how):
                        number += 1
                    assert number > 5, "there are steps"
                    cases += number
    print(cases)


if __name__ == "__main__":
    main()
