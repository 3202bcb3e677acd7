"""A file from an address, whole and of a known checksum; an interrupted one is gone on with."""

import contextlib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from depthsys.files.locks import LOCK, locked
from depthsys.files.resumable import file_hash
from depthsys.files.whole import flush_to_disk, full_disk_told, made_parents

_BLOCK = 2**16
_TRIES = 4  # in a row that bring no byte
_PAUSE = 1.0  # seconds before a further try
_TIMEOUT = 60.0  # seconds without a byte
_KEPT = "What came so far is kept"
# what a connection breaks off with; a full disk is another OSError
_BROKEN = (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


@dataclass(frozen=True)
class Address:
    """Where a file is.

    Attributes
    ----------
    url
        Its address: ``https:``, ``http:`` or ``file:``.
    headers
        Sent with the request, and not to where it may be redirected.
    certificates
        File of certificates that are trusted beside those of the system.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    certificates: str | None = None

    def open(self, start: int = 0, accept: str | None = None) -> Any:
        """A response, from that byte on where the server can."""
        request = urllib.request.Request(self.url, headers={"Accept-Encoding": "identity"})
        if accept is not None:
            request.add_header("Accept", accept)
        if start:
            request.add_header("Range", f"bytes={start}-")
        for name, value in self.headers.items():
            request.add_unredirected_header(name, value)
        context = ssl.create_default_context()
        if self.certificates is not None:
            context.load_verify_locations(self.certificates)
        return urllib.request.urlopen(request, timeout=_TIMEOUT, context=context)


@contextlib.contextmanager
def parts_folder(folder: Path) -> Iterator[Path]:
    """The hidden folder in which downloads for a folder are kept until they are whole.

    Raises
    ------
    ValueError
        If another process downloads into the same folder, or it cannot be written.
    """
    hidden = parts_of(folder)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(made_parents(hidden))
            hidden.mkdir(exist_ok=True)
            lock = locked(hidden)
        except OSError as error:
            raise ValueError(
                f"`path` must be a writable folder; got {str(folder)!r}: {error.strerror}. "
                "Choose another."
            ) from error
        if lock is None:
            raise ValueError(
                f"`path` must not be written by two downloads at once; {str(folder)!r} is in use. "
                "Wait for the other one, or choose another folder."
            )
        stack.enter_context(lock)
        stack.callback(_clear_if_empty, hidden)
        yield hidden


def _clear_if_empty(hidden: Path) -> None:
    if [entry.name for entry in hidden.iterdir()] == [LOCK]:
        with contextlib.suppress(OSError):
            (hidden / LOCK).unlink()
            hidden.rmdir()


def parts_of(folder: Path) -> Path:
    """Where the parts of interrupted downloads for a folder lie."""
    return folder / ".parts"


def download(
    address: Address,
    path: Path,
    size: int,
    sha256: str,
    progress: Callable[[int], object] = lambda n_bytes: None,
) -> None:
    """Download a file, or what is missing of it.

    Parameters
    ----------
    address
        Where it is.
    path
        In `parts_folder`: after an interruption the next call goes on there.
    size, sha256
        Bytes and checksum of the file. What has another checksum is removed.
    progress
        Called with the number of further bytes that are there.

    Raises
    ------
    ValueError
        If the checksum is another one.
    ConnectionError
        If the connection breaks off, again and again.
    OSError
        If the disk is full, or a limit on the size of files is reached.
    """
    have = path.stat().st_size if path.exists() else 0
    if have > size:
        have = 0
        path.unlink()
    progress(have)
    failed = 0
    while have < size:
        before, said = have, "it ended early"
        try:
            with full_disk_told(path, _KEPT), address.open(have) as response:
                _append(response, path, have, size, progress)
        except urllib.error.HTTPError as error:
            error.close()
            raise ConnectionError(f"{error.code} {error.reason} for {address.url}") from error
        except _BROKEN as error:
            said = reason(error)
        have = path.stat().st_size if path.exists() else 0
        failed = 0 if have > before else failed + 1
        if failed == _TRIES:
            raise ConnectionError(f"{said} after {have} of {size} bytes of {address.url}")
        if have < size:
            time.sleep(_PAUSE)
    flush_to_disk(path)
    check_sum(path, sha256, address.url)


def reason(error: BaseException) -> str:
    """Why a connection failed, in a few words."""
    cause = getattr(error, "reason", None) or error
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def check_sum(path: Path, sha256: str, origin: str) -> None:
    """ValueError, and the file is removed, if it has another checksum."""
    found = file_hash(path)
    if found != sha256:
        path.unlink()
        raise ValueError(
            f"`address` must give a file of the SHA-256 {sha256}; got {found} from {origin}. It "
            "was removed: try again, or choose another."
        )


def _append(
    response: Any, path: Path, have: int, size: int, progress: Callable[[int], object]
) -> None:
    """Write what comes behind what the file has, or anew where the server sends the whole."""
    if have and not _goes_on(response, have):
        progress(-have)
        have = 0
    with path.open("ab" if have else "wb") as file:
        # what is there already: a slow connection may be cut at any moment
        while have < size and (block := response.read1(min(_BLOCK, size - have))):
            file.write(block)
            have += len(block)
            progress(len(block))


def _goes_on(response: Any, start: int) -> bool:
    """Whether the server sends the rest, not the whole."""
    given = (getattr(response, "headers", None) or {}).get("Content-Range") or ""
    return getattr(response, "status", None) == 206 and given.startswith(f"bytes {start}-")
