"""What killed runs left is put right; what living ones are at, and what others planted, is not."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from depthsys.files import (
    OutputFolder,
    clear_leftovers,
    found,
    leftovers,
    locks,
    renames,
    whole_file,
    whole_folder,
)

DEAD = 2**22 + 7  # above the largest number of a process on Linux


def write(path, text="new", force=True):
    with whole_file(path, force) as partial:
        partial.write_text(text)


def abandoned_workplace(folder: Path, name: str, new: str | None, old: str | None) -> Path:
    work = folder / f".{name}.part-0123456789abcdef"
    for part in ("new", "old"):
        (work / part).mkdir(parents=True)
    (work / "lock").touch()
    for part, text in (("new", new), ("old", old)):
        if text is not None:
            (work / part / name).write_text(text)
    return work


def test_what_was_put_aside_comes_back(tmp_path):
    abandoned_workplace(tmp_path, "s", "half", "old")
    assert found(tmp_path / "s").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_what_was_put_aside_goes_once_the_new_one_has_its_place(tmp_path):
    abandoned_workplace(tmp_path, "s", None, "old")
    write(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_an_empty_file_goes_only_if_a_dead_run_made_it(tmp_path):
    abandoned_workplace(tmp_path, "s", "new", None)
    (tmp_path / "s").touch()
    found(tmp_path / "s")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    work = abandoned_workplace(tmp_path, "t", "new", None)
    (work / "claim").touch()
    (tmp_path / "t").touch()
    write(tmp_path / "t", force=False)
    assert (tmp_path / "t").read_text() == "new"


def test_other_names_are_left_alone(tmp_path):
    work = abandoned_workplace(tmp_path, "other", "half", "old")
    write(tmp_path / "s")
    assert work.is_dir()
    clear_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "s"]


LIVING = """
import sys
from pathlib import Path
from depthsys.files import whole_file
with whole_file(Path(sys.argv[1]), force=True) as partial:
    partial.write_text("theirs")
    print(partial, flush=True)
    sys.stdin.readline()
"""


def test_a_living_run_is_left_alone_and_a_killed_one_is_not(tmp_path):
    command = [sys.executable, "-c", LIVING, str(tmp_path / "s")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes) as living:
        partial = Path(living.stdout.readline().strip())
        write(tmp_path / "s", "mine")
        assert partial.read_text() == "theirs"
        assert stat.S_IMODE(partial.parents[1].stat().st_mode) == 0o700
        living.terminate()
        living.wait()
    assert partial.exists()
    write(tmp_path / "s", "again")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_folder_that_only_looks_like_ours_is_left_alone(tmp_path):
    work = abandoned_workplace(tmp_path, "s", "half", "old")
    (work / "thesis.tex").write_text("mine")
    link = tmp_path / ".s.part-fedcba9876543210"
    (tmp_path / "real").mkdir()
    link.symlink_to(tmp_path / "real")
    write(tmp_path / "s")
    assert (work / "thesis.tex").exists()
    assert link.is_symlink()
    assert (tmp_path / "real").is_dir()


def test_where_locks_cannot_be_told_nothing_is_cleared(tmp_path, monkeypatch):
    work = abandoned_workplace(tmp_path, "s", "half", None)

    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    with monkeypatch.context() as patch:
        patch.setattr(locks.fcntl, "flock", flock)
        write(tmp_path / "s")
        assert work.is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(locks, "fcntl", None)
        write(tmp_path / "s")
        assert work.is_dir()
    write(tmp_path / "s")
    assert not work.exists()


def test_files_of_earlier_versions(tmp_path):
    """Of dead processes, beside those of living ones."""
    for name in (f".s.part-{DEAD}", f".s.part-{DEAD}-01234567", f".s.part-{os.getpid()}"):
        (tmp_path / name).write_text("half")
    (tmp_path / f".t.part-{DEAD}-01234567").mkdir()
    (tmp_path / f".t.old-{DEAD}-01234567").mkdir()
    (tmp_path / f".t.old-{DEAD}-01234567" / "one").write_text("old")
    (tmp_path / f".u.old-{DEAD}-01234567").mkdir()
    (tmp_path / "u").mkdir()
    clear_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".s.part-{os.getpid()}", "t", "u"]
    assert (tmp_path / "t" / "one").read_text() == "old"


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_was_planted_is_not_written_through(kind, tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "out").mkdir()
    for number in (os.getpid(), DEAD):
        planted = tmp_path / "out" / f".identify.txt.part-{number}"
        if kind == "link":
            planted.symlink_to(tmp_path / "victim")
        else:
            os.mkfifo(planted)
    folder = OutputFolder.checked(tmp_path / "out", ["identify.txt"], force=False)
    folder.write("identify.txt", lambda path: path.write_text("new"))
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "out" / "identify.txt").read_text() == "new"


def test_a_device_is_neither_written_nor_replaced(tmp_path):
    for force in (False, True):
        with pytest.raises(FileExistsError, match="must be a file; got '/dev/null', which is not"):
            write(Path("/dev/null"), force=force)
    os.mkfifo(tmp_path / "s")
    with pytest.raises(FileExistsError, match="must be a file"):
        write(tmp_path / "s")
    with (
        pytest.raises(FileExistsError, match="must be a folder"),
        whole_folder(tmp_path / "s", force=True),
    ):
        pass
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_names_that_are_guessed_are_tried_again(tmp_path, monkeypatch):
    tokens = ["0" * 16, "0" * 16, "1" * 16]
    (tmp_path / f".s.part-{'0' * 16}").mkdir()
    (tmp_path / f".s.part-{'0' * 16}" / "mine").touch()
    monkeypatch.setattr(leftovers.secrets, "token_hex", lambda _: tokens.pop(0))
    write(tmp_path / "s")
    assert tokens == []
    monkeypatch.setattr(leftovers.secrets, "token_hex", lambda _: "0" * 16)
    with pytest.raises(OSError, match="no hidden folder could be made beside"):
        write(tmp_path / "s")


def test_a_long_name(tmp_path):
    name = "ä" * 120 + ".nc"  # 243 bytes
    write(tmp_path / name)
    write(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]


# ------------------------------------------------------------------------- disks without links

CODES = ["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EACCES", "EMLINK", "EXDEV", "EINVAL"]


@pytest.mark.parametrize("code", CODES)
def test_a_disk_without_hard_links(code, tmp_path, monkeypatch):
    """Nor renames that keep what is there."""

    def link(*_args, **_kwargs):
        raise OSError(getattr(errno, code), "no links here")

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(renames, "_renameat2", lambda *_: getattr(errno, code))
    write(tmp_path / "s", force=False)
    with pytest.raises(FileExistsError, match="must not exist yet"):
        write(tmp_path / "s", force=False)
    old = OutputFolder.checked(tmp_path / "run", ["a", "b"], force=False)
    for name in "ab":
        old.write(name, lambda path: path.write_text("old"))
    with pytest.raises(ValueError, match="another one wrote 'a'"):
        old.write("a", lambda path: path.write_text("new"))
    new = OutputFolder.checked(tmp_path / "run", ["a", "b"], force=True)
    new.write("b", lambda path: path.write_text("new"))
    assert {p.name: p.read_text() for p in (tmp_path / "run").iterdir()} == {"b": "new"}
    for text in ("one", "two"):
        with whole_folder(tmp_path / "t", force=True) as partial:
            (partial / "x").write_text(text)
    assert (tmp_path / "t" / "x").read_text() == "two"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "s", "t"]


def test_results_are_not_lost_where_the_new_one_cannot_be_placed(tmp_path, monkeypatch):
    """Where not even an empty file can be made."""
    names = [f"r{i}" for i in range(7)]
    old = OutputFolder.checked(tmp_path, names, force=False)
    for name in names:
        old.write(name, lambda path: path.write_text("old"))

    def refused(*_args, **_kwargs):
        raise OSError(errno.EPERM, "not here")

    with monkeypatch.context() as patch:
        patch.setattr(renames, "give_name", refused)
        new = OutputFolder.checked(tmp_path, names, force=True)
        with pytest.raises(OSError, match="not here"):
            new.write("r3", lambda path: path.write_text("new"))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(names, "old")


def test_without_the_call_of_linux_links_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(renames, "_function", lambda: None)
    write(tmp_path / "s", force=False)
    with pytest.raises(FileExistsError):
        write(tmp_path / "s", force=False)
    assert not renames.exchange(tmp_path / "s", tmp_path / "t")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_real_disk_without_links(tmp_path):
    """FAT on a file, where the system has it."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    image.write_bytes(bytes(2**22))
    for command in (["mkfs.vfat", str(image)], ["mount", "-o", "loop", str(image), str(place)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            pytest.skip(f"no FAT here: {error}")
        if done.returncode:
            pytest.skip(f"no FAT here: {done.stderr.strip()}")
    try:
        with pytest.raises(OSError, match=r".*"):
            os.link(image, place / "link")
        write(place / "s", force=False)
        with pytest.raises(FileExistsError, match="must not exist yet"):
            write(place / "s", force=False)
        write(place / "s")
    finally:
        subprocess.run(["umount", str(place)], check=True)
