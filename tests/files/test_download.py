"""Downloads from a server on this machine: whole, gone on with, refused."""

import contextlib
import hashlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from depthsys.files import download as rooms
from depthsys.files.download import Address, download, parts_folder, parts_of
from tests.files.served import served

ROOT = Path(__file__).parents[2]
CONTENT = np.random.default_rng(0).bytes(300_001)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(rooms, "_PAUSE", 0.0)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def got(server, path):
    """Download; the sum of the progress that was told."""
    told = []
    download(Address(server.url + "/f"), path, len(CONTENT), SHA256, told.append)
    return sum(told)


def test_a_file_comes_whole(tmp_path):
    with served(files={"/f": CONTENT}) as server:
        assert got(server, tmp_path / "f") == len(CONTENT)
        assert (tmp_path / "f").read_bytes() == CONTENT
        got(server, tmp_path / "f")  # what is whole is not asked for again
        assert server.asked == [("/f", None)]


def test_a_killed_download_is_gone_on_with(tmp_path):
    path, half = tmp_path / "f", 2**17
    stall = threading.Event()
    with served(files={"/f": CONTENT}, cut=half, stall=stall) as server:
        code = (
            "import pathlib, sys; from depthsys.files.download import *; "
            "download(Address(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), '')"
        )
        given = [f"{server.url}/f", str(path), str(len(CONTENT))]
        child = subprocess.Popen([sys.executable, "-c", code, *given], cwd=ROOT)
        while child.poll() is None and not (path.exists() and path.stat().st_size):
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        stall.set()
        have = path.stat().st_size
        assert 0 < have <= half
        server.cut = None
        server.asked.clear()
        assert got(server, path) == len(CONTENT)
        assert server.asked == [("/f", f"bytes={have}-")]
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("behaviour", [{"ranges": False}, {"shift": -1000}])
def test_a_server_that_does_not_send_the_rest_is_not_believed(tmp_path, behaviour):
    """It sends the whole, or another part than was asked for."""
    (tmp_path / "f").write_bytes(CONTENT[:1000])
    with served(files={"/f": CONTENT}, **behaviour) as server:
        assert got(server, tmp_path / "f") == len(CONTENT)
        assert server.asked[0] == ("/f", "bytes=1000-")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_dropped(tmp_path):
    (tmp_path / "f").write_bytes(CONTENT + b"more")
    with served(files={"/f": CONTENT}) as server:
        assert got(server, tmp_path / "f") == len(CONTENT)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_connection_that_breaks_off_is_opened_again(tmp_path):
    with served(files={"/f": CONTENT}, cut=40_000) as server:
        assert got(server, tmp_path / "f") == len(CONTENT)
        assert [start for _, start in server.asked] == [
            f"bytes={n}-" if n else None for n in range(0, len(CONTENT), 40_000)
        ]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_server_that_sends_nothing_more_is_left_and_what_came_is_kept(tmp_path):
    (tmp_path / "f").write_bytes(CONTENT[:500])
    told = r"it ended early after 500 of 300001 bytes of http://.*/f"
    with served(files={"/f": CONTENT}, cut=0) as server, pytest.raises(ConnectionError, match=told):
        got(server, tmp_path / "f")
    assert len(server.asked) == 4
    assert (tmp_path / "f").read_bytes() == CONTENT[:500]


def test_nobody_listens(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/f"
    with pytest.raises(ConnectionError, match="refused after 0 of 5 bytes"):
        download(Address(url), tmp_path / "f", 5, "")


@pytest.mark.parametrize("status", [403, 404, 503])
def test_an_error_of_the_server_is_told_at_once(tmp_path, status):
    with served(files={"/f": status}) as server:
        with pytest.raises(ConnectionError, match=rf"{status} .* for {server.url}/f"):
            got(server, tmp_path / "f")
        assert len(server.asked) == 1


def test_a_wrong_checksum_is_refused_with_both(tmp_path):
    other = b"x" + CONTENT[1:]
    found = hashlib.sha256(other).hexdigest()
    with (
        served(files={"/f": other}) as server,
        pytest.raises(ValueError, match=f"of the SHA-256 {SHA256}; got {found} from {server.url}"),
    ):
        got(server, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_what_is_kept_of_another_file_is_refused_too(tmp_path):
    (tmp_path / "f").write_bytes(b"y" * 1000)
    with served(files={"/f": CONTENT}) as server:
        with pytest.raises(ValueError, match="It was removed: try again"):
            got(server, tmp_path / "f")
        got(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


@contextlib.contextmanager
def largest_file(n_bytes: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_is_told_and_what_came_is_kept(tmp_path):
    with served(files={"/f": CONTENT}) as server:
        with (
            largest_file(150_000),
            pytest.raises(OSError, match=r"disk with room .* What came so far is kept: make room"),
        ):
            got(server, tmp_path / "f")
        have = (tmp_path / "f").stat().st_size
        assert 0 < have <= 150_000
        got(server, tmp_path / "f")
        assert server.asked == [("/f", None), ("/f", f"bytes={have}-")]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_secret_headers_do_not_follow_a_redirection(tmp_path):
    with served(files={"/g": CONTENT}) as other, served(files={"/f": f"{other.url}/g"}) as server:
        address = Address(f"{server.url}/f", {"Authorization": "Basic secret"})
        assert "secret" not in repr(address)
        (tmp_path / "f").write_bytes(CONTENT[:10])
        download(address, tmp_path / "f", len(CONTENT), SHA256)
        assert server.headers[0]["Authorization"] == "Basic secret"
        assert "Authorization" not in other.headers[0]
        assert other.asked == [("/g", "bytes=10-")]


def test_one_download_at_a_time_into_a_folder(tmp_path):
    with (
        parts_folder(tmp_path / "out") as parts,
        pytest.raises(ValueError, match=r"two downloads at once; .*out' is in use"),
        parts_folder(tmp_path / "out"),
    ):
        pass
    assert parts == parts_of(tmp_path / "out")
    assert not parts.exists()


def test_parts_stay_until_they_are_whole(tmp_path):
    with parts_folder(tmp_path) as parts:
        (parts / "f").write_bytes(b"half")
    with parts_folder(tmp_path) as parts:
        assert (parts / "f").read_bytes() == b"half"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"must be a writable folder; got .*file/x'"),
        parts_folder(tmp_path / "file" / "x"),
    ):
        pass
