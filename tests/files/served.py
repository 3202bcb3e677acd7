"""A server of files on this machine, which can be told to behave badly."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What a server gives, how, and what it was asked for.

    Attributes
    ----------
    files
        Content by path; a pair is content and its type, a number an error, a text a redirection.
    cut
        Bytes after which a response breaks off; None for never.
    ranges
        Whether parts of files are sent.
    stall
        Where it is set a response that is cut waits there instead.
    shift
        Added to where a part begins.
    """

    files: dict[str, bytes | tuple[bytes, str] | int | str] = field(default_factory=dict)
    cut: int | None = None
    ranges: bool = True
    stall: threading.Event | None = None
    shift: int = 0
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def served(**options) -> Iterator[Served]:
    what = Served(**options)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            what.asked.append((self.path, wanted))
            what.headers.append(dict(self.headers))
            content = what.files.get(self.path, 404)
            if isinstance(content, int):
                self.send_error(content)
                return
            if isinstance(content, str):
                self.send_response(302)
                self.send_header("Location", content)
                self.end_headers()
                return
            content, kind = content if isinstance(content, tuple) else (content, "application/zip")
            start = 0
            if wanted and what.ranges:
                start = int(wanted.removeprefix("bytes=").rstrip("-")) + what.shift
                self.send_response(206)
                end = f"{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", f"bytes {start}-{end}")
            else:
                self.send_response(200)
            rest = content[start:]
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: what.cut])
            self.wfile.flush()
            if what.cut is not None and what.cut < len(rest) and what.stall is not None:
                what.stall.wait(60)

        def log_message(self, *_args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    what.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield what
    finally:
        server.shutdown()
        server.server_close()
