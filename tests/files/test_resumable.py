"""Work on disk goes on where it stopped, with what it was begun with, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from depthsys.files import Resumable, content_hash, file_hash, locks, renames

IDENTITY = {"model": "m", "order": 4, "sizes": (1, 2)}


def begun(folder, **more) -> Resumable:
    return Resumable.checked(folder, IDENTITY, **more)


def square(work: Resumable, key: str, computed: list) -> int:
    """A part, computed unless it is there."""
    if not work.has(key):
        computed.append(key)
        work.write(key, lambda path: path.write_text(str(int(key) ** 2)))
    return int(work.path(key).read_text())


def test_parts_are_computed_once(tmp_path):
    computed = []
    for stop in (2, 5):
        work = begun(tmp_path / "w")
        with work.locked():
            assert [square(work, str(i), computed) for i in range(stop)] == [
                i**2 for i in range(stop)
            ]
    assert computed == list("01234")
    work = begun(tmp_path / "w")
    with work.locked():
        work.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_fails_or_is_damaged_is_computed_again(tmp_path):
    work = begun(tmp_path / "w")

    def half(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with work.locked():
        with pytest.raises(KeyboardInterrupt):
            work.write("3", half)
        assert not work.has("3")
        assert square(work, "3", []) == 9
        work.path("3").write_text("8")
        assert not work.has("3")
        assert square(work, "3", []) == 9
        work.path("3").unlink()
        assert not work.has("3")


def test_other_work_is_refused(tmp_path):
    work = begun(tmp_path / "w")
    with work.locked():
        square(work, "1", [])
    assert begun(tmp_path / "w").has("1")
    with pytest.raises(
        ValueError,
        match=r"`run` must be resumed with the texts that it was .* order 4, now 5\. Go on with",
    ):
        Resumable.checked(
            tmp_path / "w", IDENTITY | {"order": 5}, argument="run", begun_with="texts"
        )


def test_what_is_noted(tmp_path):
    work = begun(tmp_path / "w")
    assert work.noted() == {}
    with work.locked():
        work.begin()
        work.note(done=1)
        square(work, "1", [])
        work.note(left=2)
    again = begun(tmp_path / "w")
    assert again.noted() == {"done": 1, "left": 2}
    with again.locked():
        again.begin()
    assert again.noted() == {}
    assert not again.has("1")


def test_keys_are_names_of_files(tmp_path):
    work = begun(tmp_path / "w")
    for key in ("", ".hidden", "a/b", "../a", "a\n", "x" * 101, "lock\0"):
        with pytest.raises(ValueError, match="`key` must be at most 100 letters"):
            work.path(key)
    assert work.path("method=pod_4.nc").parent == work.work_folder


def test_another_run_waits(tmp_path):
    work = begun(tmp_path / "w")
    code = (
        "import sys; from depthsys.files import Resumable\n"
        "with Resumable.checked(sys.argv[1], {}).locked(): pass"
    )
    with work.locked():
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "w")], cwd=Path(__file__).parents[2],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "`out` must not be written by two runs at once" in done.stderr
    with begun(tmp_path / "w").locked():
        pass


def test_folders_of_others_are_refused(tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"must leave .* to this function; found thesis.tex there"):
        begun(tmp_path / "w")
    (tmp_path / "w" / "parts").mkdir()
    for text in (None, "{", "[]", '{"identity": 3}'):
        if text is not None:
            (tmp_path / "w" / "progress.json").write_text(text)
        with pytest.raises(ValueError, match="must have readable progress; got"):
            begun(tmp_path / "w")
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match="must lie in a writable folder; got"),
        Resumable(tmp_path / "file" / "w", {}).locked(),
    ):
        pass


def test_work_that_keeps_nothing_leaves_no_folder(tmp_path):
    work = Resumable(tmp_path / "new" / "w", IDENTITY)

    def interrupted(*kept):
        with work.locked():
            for key in kept:
                square(work, key, [])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        interrupted("1")
    assert begun(work.folder).has("1")


def test_differences_are_told_as_people_write_them(tmp_path):
    begun_with = {"orders": [1, 2], "methods": {"pod": 1}, "hash": "a" * 64, "eps": 0.1, "n": 1}
    work = Resumable(tmp_path / "w", begun_with)
    assert work.differences() == []
    with work.locked():
        work.begin()
    assert work.differences() == []
    now = {"orders": (1, 4), "methods": {"pod": 2}, "hash": "b" * 64, "eps": 0.2, "n": 1}
    assert Resumable(tmp_path / "w", now).differences() == [
        "orders 1,2, now 1,4", "another methods", "another hash", "eps 0.1, now 0.2",
    ]  # fmt: skip
    # what is not known yet is not compared
    assert Resumable(tmp_path / "w", {"n": 1}).differences() == []


def test_a_planted_link_is_not_written_through(tmp_path):
    (tmp_path / "victim").write_text("precious")
    work = begun(tmp_path / "w")
    with work.locked():
        work.begin()
        (tmp_path / "w" / "progress.json.new").symlink_to(tmp_path / "victim")
        work.note(done=1)
    (tmp_path / "w" / "lock").unlink()
    (tmp_path / "w" / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="must lie in a writable folder"), work.locked():
        pass
    assert (tmp_path / "victim").read_text() == "precious"
    assert locks.abandoned(tmp_path / "w") is None


@pytest.mark.parametrize("at_once", [True, False])
def test_the_whole_takes_the_place_of_an_old_one(at_once, tmp_path, monkeypatch):
    if not at_once:
        monkeypatch.setattr(renames, "exchange", lambda *_: False)
    for text in ("old", "new"):
        work = begun(tmp_path / "w.partial")
        with work.locked():
            work.write("a", lambda path, text=text: path.write_text(text))
            work.publish(tmp_path / "w")
    assert (tmp_path / "w" / "a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_hashes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert file_hash(tmp_path / "a") == content_hash(b"abc") == known
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
    with pytest.raises(TypeError):
        content_hash({"a": object()})


def test_the_progress_can_be_read_by_people(tmp_path):
    work = begun(tmp_path / "w")
    with work.locked():
        square(work, "1", [])
        work.note(done=1)
    told = json.loads((tmp_path / "w" / "progress.json").read_text())
    assert told["identity"] == {"model": "m", "order": 4, "sizes": [1, 2]}
    assert told["done"] == 1


def test_work_that_was_begun_is_found_whatever_it_is_of(tmp_path):
    assert Resumable.begun_in(tmp_path / "none") is None
    (tmp_path / "theirs" / "parts").mkdir(parents=True)
    assert Resumable.begun_in(tmp_path / "theirs") is None
    work = Resumable(tmp_path / "mine", {"seed": 3})
    with work.locked():
        work.write("a", lambda path: path.write_text("1"))
    found = Resumable.begun_in(tmp_path / "mine", argument="partial")
    assert found is not None
    assert (found.identity, found.argument) == ({"seed": 3}, "partial")
    found.note(drawn=1)
    assert work.noted() == {"drawn": 1}
    assert work.differences() == []
