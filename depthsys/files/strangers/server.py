"""The process that reads files of others: each in a copy of itself, with limits.

It starts once, imports what it needs, and forks for every file: a file that crashes, hangs or
overfills a reader takes nothing with it, and the next one finds a clean process.

Requests come over a socket: a length, a JSON text, and with it the socket to answer on. Answers are
lengths and JSON texts; one with ``nbytes`` is followed by the bytes of an array. The last says
``done`` or ``error``. When the copy has ended, its status goes back the way that requests come.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np

try:
    import resource
except ImportError:  # Windows, where nothing is served
    resource: Any = None

from depthsys.files.strangers.limits import RATE, Refused, one_line

Answer = Iterator[tuple[dict[str, Any], np.ndarray | None]]  # of the ``read`` of a reader
READERS = ("hdf5", "mat", "zarr_v3", "arrow")
LENGTH = struct.Struct("<Q")
STATUS = struct.Struct("<i")
_ROOM = 2**29  # bytes of address space beside what is read: libraries, stacks of threads


def serve(control: socket.socket) -> None:
    """Answer requests until the other side is gone."""
    while (found := _request(control)) is not None:
        request, answer = found
        name = READERS[READERS.index(request["reader"])]
        reader = import_module(f"depthsys.files.strangers.{name}")
        if not (child := os.fork()):
            control.close()
            _answer(reader, request, answer)
        answer.close()
        _, status = os.waitpid(child, 0)
        control.sendall(STATUS.pack(os.waitstatus_to_exitcode(status)))


def _request(control: socket.socket) -> tuple[dict[str, Any], socket.socket] | None:
    start, fds, _, _ = socket.recv_fds(control, LENGTH.size, 1)
    if len(start) < LENGTH.size or not fds:
        return None
    (length,) = LENGTH.unpack(start)
    text = b""
    while len(text) < length:
        part = control.recv(length - len(text))
        if not part:
            return None
        text += part
    return json.loads(text), socket.socket(fileno=fds[0])


def _answer(reader: Any, request: dict[str, Any], answer: socket.socket) -> None:
    """In the copy, which ends here."""
    try:
        _seconds.append(request["seconds"])
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        limit_to(0)
        for message, array in reader.read(request):
            send(answer, message, array)
        send(answer, {"done": True}, None)
    except Refused as error:
        _say(answer, {"error": str(error), "refused": True})
    except MemoryError:
        _say(answer, {"error": "it needs more memory than the sizes it declares", "refused": True})
    except BaseException as error:
        _say(answer, {"error": one_line(error) or type(error).__name__})
    finally:
        os._exit(0)


def _say(answer: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        send(answer, message, None)


def send(answer: socket.socket, message: dict[str, Any], array: np.ndarray | None) -> None:
    """One message, and the array that belongs to it."""
    if array is not None:
        shape = list(array.shape)
        array = np.ascontiguousarray(array)  # of one number a row of one
        message |= {"dtype": array.dtype.str, "shape": shape, "nbytes": array.nbytes}
    text = json.dumps(message).encode()
    answer.sendall(LENGTH.pack(len(text)) + text)
    if array is not None and array.nbytes:
        answer.sendall(array.reshape(-1).view(np.uint8).data)


def limit_to(total: int) -> None:
    """The kernel ends this process when reading so many bytes takes too long, or too much memory.

    Does nothing in the process of a user.
    """
    if not _seconds:
        return
    signal.setitimer(signal.ITIMER_REAL, _seconds[-1] + total / RATE)
    with open("/proc/self/statm" if sys.platform == "linux" else os.devnull) as file:
        pages = file.read().split()
    if pages:  # elsewhere the address space says little about memory
        most = int(pages[0]) * resource.getpagesize() + 4 * total + _ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


_seconds: list[float] = []  # for a small file


def main() -> None:
    """Serve on standard input, which is a socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the other side decides
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with socket.socket(fileno=os.dup(0)) as control:
        serve(control)
