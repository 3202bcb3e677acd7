"""Work that is begun, goes on after an interruption, and is finished, in a folder of its own."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from depthsys.files import renames
from depthsys.files.locks import LOCK, abandoned, locked
from depthsys.files.whole import made_parents, whole_file

PROGRESS = "progress.json"
REPLACED, DROPPED = "replaced", "dropped"
_NEW = f"{PROGRESS}.new"
_DIGESTS, _PUBLISHING = "digests", "publishing"  # what is noted for ourselves
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]{0,99}")
# with the kind of a fingerprint before it, where there is one
_HASH = re.compile("([a-z0-9]+:)?[0-9a-f]{64}")
_BLOCK = 2**20


def content_hash(content: Mapping[str, Any] | bytes) -> str:
    """64 hexadecimal digits that change with the content.

    Parameters
    ----------
    content
        Bytes; or what JSON can hold: names and their values, whatever the order of the names.

    Raises
    ------
    TypeError
        If JSON cannot hold it.

    Examples
    --------
    >>> content_hash({"seed": 0, "order": 4}) == content_hash({"order": 4, "seed": 0})
    True
    """
    if not isinstance(content, bytes):
        content = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(content).hexdigest()


def file_hash(path: str | os.PathLike) -> str:
    """The `content_hash` of the bytes of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


@dataclass(frozen=True)
class Resumable:
    """A folder in which work is kept until it is finished; make it with `checked`.

    Parts have names (keys), appear whole, and count as there only if they hold what was written::

        work = Resumable.checked(folder, {"model": fingerprint, "texts": sha256, "order": 4})
        with work.locked():
            for key in keys:
                if not work.has(key):
                    work.write(key, lambda path: write_netcdf(path, {None: compute(key)}))
            result = join(work.path(key) for key in keys)
            ...  # write the result
            work.finish()

    A program that is interrupted or killed anywhere goes on when it is called again: it computes
    the parts that `has` does not know. Called with another identity it is refused.

    Work that is no set of files (a Zarr store that grows layer by layer) lies in ``work_folder``;
    `note` says how far it is, `noted` tells it again, and `publish` gives the whole its name.

    Attributes
    ----------
    folder
        Where the work lies; made by `locked`, removed by `finish` and `publish`.
    identity
        What the work is of: all that its result depends on, as JSON can hold it; of large things a
        `content_hash`.
    argument
        What the caller's argument for the place is called, in messages.
    begun_with
        What ``identity`` holds, in messages.
    work
        The name of ``work_folder``.
    """

    folder: Path
    identity: Mapping[str, Any]
    argument: str = "out"
    begun_with: str = "settings"
    work: str = "parts"

    @classmethod
    def checked(
        cls,
        folder: str | os.PathLike,
        identity: Mapping[str, Any],
        *,
        argument: str = "out",
        begun_with: str = "settings",
        work: str = "parts",
    ) -> "Resumable":
        """The work of this identity, which may have begun before. Nothing is written.

        Raises
        ------
        ValueError
            If the folder holds other things, the progress cannot be read, or the work was begun
            with another identity.
        """
        found = cls(Path(folder), identity, argument, begun_with, work)
        found.check_same()
        return found

    @classmethod
    def begun_in(cls, folder: str | os.PathLike, *, argument: str = "out") -> "Resumable | None":
        """The work that was begun in a folder, whatever it is of; None if there is none.

        Nothing is written, and a folder of somebody else's is none.
        """
        found = cls(Path(folder), {}, argument)
        with contextlib.suppress(ValueError):
            if found.begun:
                return replace(found, identity=found._begun_with())
        return None

    def check_same(self) -> None:
        """ValueError unless work that was begun may be gone on with, see `checked`."""
        if other := self.differences():
            raise ValueError(
                f"`{self.argument}` must be resumed with the {self.begun_with} that it was begun "
                f"with; {str(self.folder)!r} was begun with {'; '.join(other)}. Go on with those, "
                f"delete that folder, or choose another `{self.argument}`."
            )

    def differences(self) -> list[str]:
        """In words, what of ``identity`` the work was begun with and is another thing now.

        Raises
        ------
        ValueError
            If the folder holds other things, or the progress cannot be read.
        """
        if not self.begun:
            self._check_ours()
            return []
        begun = self._begun_with()
        now = json.loads(json.dumps(dict(self.identity)))  # tuples are lists there
        return [
            _told(key, begun.get(key), value)
            for key, value in now.items()
            if begun.get(key) != value
        ]

    @property
    def work_folder(self) -> Path:
        """Where the work lies."""
        return self.folder / self.work

    @property
    def begun(self) -> bool:
        """Whether there is any."""
        return self.work_folder.is_dir()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs from the same folder; the system frees the lock when a process ends.

        Raises
        ------
        ValueError
            If another run has it, or it cannot be made.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(made_parents(self.folder))
                self.folder.mkdir(exist_ok=True)
                lock = locked(self.folder)
            except OSError as error:
                raise ValueError(
                    f"`{self.argument}` must lie in a writable folder; got "
                    f"{str(self._result)!r}: {error.strerror}. Choose another."
                ) from error
            if lock is None:
                raise ValueError(
                    f"`{self.argument}` must not be written by two runs at once; "
                    f"{str(self.folder)!r} is in use. Wait for the other run, or choose another "
                    f"`{self.argument}`."
                )
            stack.enter_context(lock)
            stack.callback(self._clear_if_empty)
            yield

    def _clear_if_empty(self) -> None:
        """A run that failed before it kept anything leaves no folder."""
        with contextlib.suppress(FileNotFoundError):
            if set(os.listdir(self.folder)) == {LOCK}:
                shutil.rmtree(self.folder)

    def begin(self) -> None:
        """Begin anew: what is there goes."""
        self._drop()
        self._store({})
        self.work_folder.mkdir()

    # ------------------------------------------------------------------------- parts

    def path(self, key: str) -> Path:
        """Where the part of that name is.

        Raises
        ------
        ValueError
            If the key is none: letters, digits, and ``. _ = -``.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(
                f"`key` must be at most 100 letters, digits and . _ = -, a letter or digit first; "
                f"got {key!r:.120}. Rename it, or use a `content_hash`."
            )
        return self.work_folder / key

    def has(self, key: str) -> bool:
        """Whether the part is there, and holds what was written."""
        path, told = self.path(key), self._read().get(_DIGESTS, {}).get(key)
        try:
            return told is not None and file_hash(path) == told
        except OSError:
            return False

    def write(self, key: str, writer: Callable[[Path], Any]) -> None:
        """Write a part; ``writer`` makes a file at the path it is given.

        Raises
        ------
        ValueError
            If the key is none, see `path`.
        OSError
            If the disk is full, or a limit on the size of files is reached.
        """
        path = self.path(key)
        if not self.begun:
            self.begin()
        with whole_file(path, force=True) as partial:
            writer(partial)
            told = file_hash(partial)
        progress = self._read()
        self._store(progress | {_DIGESTS: progress.get(_DIGESTS, {}) | {key: told}})

    # ------------------------------------------------------------------------- progress

    def note(self, **progress: Any) -> None:
        """Remember how far the work is, all or nothing; what was noted before stays."""
        self._store(self._read() | progress)

    def noted(self) -> dict[str, Any]:
        """What was noted; nothing before the work is begun."""
        if not self.begun:
            return {}
        return {k: v for k, v in self._read().items() if k not in (_DIGESTS, _PUBLISHING)}

    def _read(self) -> dict[str, Any]:
        try:
            progress = json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))
            return {key: progress[key] for key in progress if key != "identity"}
        except (OSError, ValueError, TypeError):
            return {}

    def _store(self, progress: Mapping[str, Any]) -> None:
        new = self.folder / _NEW
        new.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        with open(os.open(new, flags, 0o666), "w", encoding="utf-8") as file:
            json.dump({"identity": dict(self.identity), **progress}, file)
            file.flush()
            os.fsync(file.fileno())
        renames.replace(new, self.folder / PROGRESS)

    # ------------------------------------------------------------------------- the end

    def publish(self, target: Path) -> None:
        """Give ``work_folder`` its name, in place of a folder that has it, and remove the rest.

        On Linux the two change places at once. Elsewhere, and on disks that cannot, there is a
        moment without either; a run that is killed just then leaves the old one in ``replaced``,
        and `recover` gives it its name again.
        """
        if not os.path.lexists(target):
            renames.move(self.work_folder, target)
        else:
            self._store(self._read() | {_PUBLISHING: _number(self.work_folder)})
            if not renames.exchange(self.work_folder, target):
                try:
                    renames.move(target, self.folder / REPLACED)
                    renames.move(self.work_folder, target)
                except BaseException:
                    self._put_back(target)
                    raise
        self.finish()

    def recover(self, target: Path) -> None:
        """Put right what a run left that was killed while it published: see `publish`.

        To be called before `checked`. Does nothing while another run has the folder.
        """
        if (self.folder / PROGRESS).is_file() and (lock := abandoned(self.folder)):
            with lock:
                self._put_back(target)

    def _put_back(self, target: Path) -> None:
        replaced, told = self.folder / REPLACED, self._read().get(_PUBLISHING)
        if replaced.is_dir() and not os.path.lexists(target):
            renames.move(replaced, target)
        if self.begun and told is not None and told != _number(self.work_folder):
            self._drop()  # this is the old one, which has changed places

    def finish(self) -> None:
        """Remove the folder: its work is done."""
        self._drop()
        shutil.rmtree(self.folder)

    def _drop(self) -> None:
        """Remove the work; killed in the middle of that it counts as gone, not as half there."""
        dropped = self.folder / DROPPED
        shutil.rmtree(dropped, ignore_errors=True)
        if self.begun:
            renames.move(self.work_folder, dropped)
            shutil.rmtree(dropped)
        shutil.rmtree(self.folder / REPLACED, ignore_errors=True)

    # ------------------------------------------------------------------------- refusals

    @property
    def _result(self) -> Path:
        """What the caller named, where the folder is called after it."""
        return self.folder.with_name(self.folder.name.removesuffix(".partial"))

    def _check_ours(self) -> None:
        """Nothing computed yet, or killed between the last two steps of `publish`."""
        ours = {PROGRESS, _NEW, REPLACED, DROPPED, LOCK}
        if strange := {p.name for p in self.folder.glob("*")} - ours:
            raise ValueError(
                f"`{self.argument}` must leave {str(self.folder)!r} to this function; found "
                f"{', '.join(sorted(strange)[:3])} there. Choose another name."
            )

    def _begun_with(self) -> dict[str, Any]:
        try:
            text = (self.folder / PROGRESS).read_text(encoding="utf-8")
            return dict(json.loads(text)["identity"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"`{self.argument}` must have readable progress; got {type(error).__name__} in "
                f"{str(self.folder / PROGRESS)!r}. Choose another name, or delete that "
                "folder if it holds nothing you need."
            ) from error


def _told(key: str, begun: Any, now: Any) -> str:
    hashed = any(isinstance(value, str) and _HASH.fullmatch(value) for value in (begun, now))
    if hashed or _in_words(begun) == _in_words(now):
        return f"another {key}"
    return f"{key} {_in_words(begun)}, now {_in_words(now)}"


def _in_words(value: Any) -> str:
    """A value without the brackets of a program."""
    if isinstance(value, dict):
        value = list(value)
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(folder: Path) -> int:
    """By which the disk knows a folder, whatever its name."""
    return folder.stat().st_ino
