"""The side that asks: one reading process for as long as this one lives."""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from depthsys.files.strangers import limits
from depthsys.files.strangers.limits import Refused, half_of_memory, one_line
from depthsys.files.strangers.server import LENGTH, STATUS

# where processes cannot be copied, files are read in this one, after the same checks
ISOLATED = hasattr(os, "fork") and hasattr(socket, "send_fds") and bool(sys.executable)
_START = (
    "import sys; sys.path[:] = {path!r}; from depthsys.files.strangers.server import main; main()"
)
_PATIENCE = 900  # seconds without a byte: the reader ends itself long before
_LONGEST = 2**28  # bytes of a message: labels and attributes


@dataclass(frozen=True)
class _Reader:
    process: subprocess.Popen
    control: socket.socket
    owner: int  # a copy of this process must not share it

    @classmethod
    def started(cls) -> "_Reader":
        here, there = socket.socketpair()
        # no settings of libraries: a file must be read the same everywhere, without plugins
        env: dict[str, str] = {
            k: v for k, v in os.environ.items() if not k.startswith(("HDF5_", "PYTHON"))
        }
        env |= {"HDF5_PLUGIN_PRELOAD": "::", "HDF5_USE_FILE_LOCKING": "FALSE"}
        env |= {"MALLOC_ARENA_MAX": "1"}  # address space is limited there
        env |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "BLOSC")}
        code = _START.format(path=[os.path.abspath(p) for p in sys.path])
        with there:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", code],
                stdin=there.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=env,
                cwd=os.sep,  # it keeps no disk busy
                start_new_session=True,  # an interrupt of the terminal is for this process
            )
        return cls(process, here, os.getpid())

    @property
    def usable(self) -> bool:
        return self.owner == os.getpid() and self.process.poll() is None

    def close(self) -> None:
        self.control.close()  # it ends by itself, when what it reads has ended
        if self.owner == os.getpid():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
                return
            self.process.kill()
            self.process.wait()


_lock = threading.Lock()
_reader: _Reader | None = None


def _running() -> _Reader:
    global _reader
    if _reader is None or not _reader.usable:
        _stop()
        _reader = _Reader.started()
    return _reader


def _stop() -> None:
    global _reader
    if _reader is not None:
        _reader.close()
    _reader = None


def _forget() -> None:
    """In a copy of this process: another thread may have held the lock."""
    global _lock
    _lock = threading.Lock()


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


Message = tuple[dict[str, Any], np.ndarray | None]


def ask(reader: str, request: dict[str, Any]) -> list[Message]:
    """What a reader finds in a file: messages, each with an array or None.

    Parameters
    ----------
    reader
        One of ``server.READERS``.
    request
        What its ``read`` takes.

    Raises
    ------
    Refused
        If the file must not be read, or reading it ended the reader.
    ValueError
        If it is damaged.
    MemoryError
        If what it holds does not fit.
    """
    # absolute, for this process may have moved since the reader was started
    request = request | {"reader": reader, "path": os.path.abspath(request["path"])}
    request |= {"most": half_of_memory(), "seconds": limits.SECONDS}
    if not ISOLATED:
        return _here(reader, request)
    with _lock:
        try:
            messages, problem = _asked(_running(), request)
        except (OSError, EOFError) as error:
            _stop()
            raise Refused(f"its reader ended ({one_line(error)})") from error
        except BaseException:  # an interrupt: what still comes is of no use
            _stop()
            raise
    if problem is not None:
        raise problem
    return messages


def _here(reader: str, request: dict[str, Any]) -> list[Message]:
    module = import_module(f"depthsys.files.strangers.{reader}")
    try:
        return list(module.read(request))
    except (Refused, MemoryError):
        raise
    except Exception as error:  # whatever the libraries trip over
        raise ValueError(one_line(error) or type(error).__name__) from error


def _asked(
    reader: _Reader, request: dict[str, Any]
) -> tuple[list[Message], Refused | ValueError | None]:
    """What came, and why not all of it did."""
    here, there = socket.socketpair()
    with here:
        with there:
            text = json.dumps(request).encode()
            socket.send_fds(reader.control, [LENGTH.pack(len(text))], [there.fileno()])
            reader.control.sendall(text)
        here.settimeout(_PATIENCE)
        messages, last = _received(here, request["most"])
    (status,) = STATUS.unpack(_exactly(reader.control, STATUS.size))
    if "error" in last:
        told = one_line(last["error"])
        return messages, Refused(told) if last.get("refused") else ValueError(told)
    return messages, None if "done" in last else Refused(_ended(status))


def _received(here: socket.socket, left: int) -> tuple[list[Message], dict[str, Any]]:
    """All messages, and the last one; that is no end if the reader crashed."""
    messages: list[Message] = []
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            message = _message(here)
            if "done" in message or "error" in message:
                return messages, message
            array = _array(here, message, left) if "nbytes" in message else None
            left -= 0 if array is None else array.nbytes
            messages.append((message, array))
    return messages, {}


def _ended(status: int) -> str:
    """Why a reader ended without a word."""
    if status == -signal.SIGALRM:
        return "reading it took too long"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else str(status)
    return f"it made the library that reads it crash ({name})"


def _message(here: socket.socket) -> dict[str, Any]:
    (length,) = LENGTH.unpack(_exactly(here, LENGTH.size))
    if length > _LONGEST:
        raise EOFError
    return json.loads(_exactly(here, length))


def _array(here: socket.socket, message: dict[str, Any], left: int) -> np.ndarray:
    dtype = np.dtype(message["dtype"])
    nbytes = int(np.prod(message["shape"], dtype=object)) * dtype.itemsize
    if dtype.hasobject or nbytes != message["nbytes"] or nbytes > left:
        raise EOFError("it gave a wrong answer")
    array = np.empty(message["shape"], dtype)
    if nbytes:
        _fill(here, array.reshape(-1).view(np.uint8).data)
    return array


def _exactly(here: socket.socket, count: int) -> bytes:
    found = bytearray(count)
    _fill(here, memoryview(found))
    return bytes(found)


def _fill(here: socket.socket, room: memoryview) -> None:
    while len(room):
        count = here.recv_into(room)
        if not count:
            raise EOFError("it stopped in the middle")
        room = room[count:]
