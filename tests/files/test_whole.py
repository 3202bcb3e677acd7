"""Files and folders appear whole or not at all, and never over somebody else's."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from depthsys import export
from depthsys.files import (
    OutputFolder,
    Resumable,
    contents,
    files_below,
    renames,
    whole_file,
    whole_folder,
)
from tests.export.systems import random_system, with_companions


def half_written(whole, path, error):
    with whole(path, force=True) as partial:
        (partial / "A.csv" if partial.is_dir() else partial).write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("place", ["new", "old"])
def test_an_interrupted_export_leaves_nothing(error, place, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files/old").write_text("old")
    export.to_csv(random_system(), tmp_path / "folders/old")
    before = (tmp_path / "folders/old/A.csv").read_text()
    for whole, kind in ((whole_file, "files"), (whole_folder, "folders")):
        with pytest.raises(error):
            half_written(whole, tmp_path / kind / place, error)
        assert [p.name for p in (tmp_path / kind).iterdir()] == ["old"]
    assert (tmp_path / "files/old").read_text() == "old"
    assert (tmp_path / "folders/old/A.csv").read_text() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupt_at_a_rename_of_a_swap_leaves_the_old_export(
    error, number, tmp_path, monkeypatch
):
    """Where the two cannot change places at once."""
    export.to_csv(random_system(), tmp_path / "s")
    before = (tmp_path / "s/A.csv").read_text()
    move, calls = renames.move, []

    def interrupted(source, target):
        move(source, target)
        calls.append(target)
        if len(calls) == number:
            raise error

    monkeypatch.setattr(renames, "exchange", lambda *_: False)
    monkeypatch.setattr(renames, "move", interrupted)
    with pytest.raises(error):
        export.to_csv(random_system(seed=1), tmp_path / "s", force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert ((tmp_path / "s/A.csv").read_text() == before) == (number == 1)


def test_what_others_put_beside_or_below_an_export_is_kept(tmp_path):
    """Names like ours, or stores of the user, are not ours."""
    for name in ("precious_a.zarr", "precious_b.zarr"):
        export.to_zarr(random_system(), tmp_path / "data" / name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/README.txt").write_text("mine")
    (tmp_path / "work/A").mkdir(parents=True)
    (tmp_path / "work/A/thesis.tex").write_text("mine")
    export.to_csv(random_system(), tmp_path / "tables")
    (tmp_path / "tables/summary.txt").write_text("mine")
    export.to_zarr(random_system(), tmp_path / "s.zarr")
    (tmp_path / "s.zarr/A/thesis.tex").write_text("mine")
    before = files_below(tmp_path)
    for folder in ("data", "notes", "work", "tables", "s.zarr"):
        for write in (export.to_csv, export.to_zarr, export.to_matlab):
            with pytest.raises(FileExistsError, match="must hold nothing but an earlier export"):
                write(random_system(), tmp_path / folder, force=True)
    assert files_below(tmp_path) == before
    assert (tmp_path / "tables/summary.txt").read_text() == "mine"


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_neither_followed_nor_replaced(exists, tmp_path):
    (tmp_path / "real").mkdir()
    for name, write in (("folder", export.to_csv), ("file.npz", export.to_npz)):
        (tmp_path / name).symlink_to(tmp_path / "real" / name)
        if exists:
            write(random_system(), tmp_path / "real" / name)
        before = files_below(tmp_path)
        for force in (False, True):
            with pytest.raises(FileExistsError, match=rf"symbolic link; .*leads to '.*real/{name}"):
                write(random_system(seed=1), tmp_path / name, force=force)
        assert files_below(tmp_path) == before
        assert (tmp_path / name).is_symlink()


def test_without_hard_links_a_file_is_written_all_the_same(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refused)
    export.to_npz(random_system(), tmp_path / "s.npz")
    export.read(tmp_path / "s.npz")
    with whole_file(tmp_path / "t.npz", force=False) as partial:
        partial.write_text("mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.npz", "t.npz"]


def test_a_folder_that_is_filled_meanwhile_is_not_replaced(tmp_path):
    def write():
        with whole_folder(tmp_path / "s", force=False) as partial:
            (partial / "mine").write_text("mine")
            (tmp_path / "s").mkdir()
            (tmp_path / "s" / "theirs").write_text("theirs")

    with pytest.raises(FileExistsError, match="must not exist yet"):
        write()
    assert files_below(tmp_path) == ["s/theirs"]


def test_threads_do_not_share_a_hidden_file(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(export.to_npz, random_system(seed=i), tmp_path / "s.npz", force=True)
            for i in range(8)
        ]
        for job in jobs:
            job.result()
    export.read(tmp_path / "s.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_somebody_elses_folder_is_never_replaced(tmp_path):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(FileExistsError, match=r"nothing but an earlier export.*letters.txt"):
        export.to_csv(random_system(), tmp_path, force=True)
    with pytest.raises(FileExistsError, match=r"nothing but an earlier export.*letters.txt"):
        export.to_zarr(random_system(), tmp_path, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["letters.txt"]
    with pytest.raises(FileExistsError, match="must be a file"):
        export.to_npz(random_system(), tmp_path, force=True)
    with pytest.raises(FileExistsError, match="must be a folder"):
        export.to_csv(random_system(), tmp_path / "letters.txt", force=True)
    with pytest.raises(ValueError, match="must name a file"):
        export.to_npz(random_system(), tmp_path / "..")


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    def write():
        with whole_file(tmp_path / "s.nc", force=False) as partial:
            partial.write_text("mine")
            (tmp_path / "s.nc").write_text("theirs")

    with pytest.raises(FileExistsError, match="must not exist yet"):
        write()
    assert (tmp_path / "s.nc").read_text() == "theirs"


@pytest.mark.parametrize("write", [export.to_zarr, export.to_csv])
def test_disks_that_ignore_case_are_refused_where_names_collide(write, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "_one_file", lambda folder, name, other: True)
    with pytest.raises(ValueError, match=r"got the variables '[Vv]' and '[Vv]'"):
        write(with_companions(random_system()), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
    write(random_system(), tmp_path / "s")


def test_a_folder_whose_script_was_run_is_replaced(tmp_path):
    export.to_control_files(random_system(), tmp_path / "s")
    (tmp_path / "s" / "__pycache__").mkdir()
    export.to_control_files(random_system(seed=1), tmp_path / "s", force=True)
    assert not (tmp_path / "s" / "__pycache__").exists()


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "s").mkdir()
    export.to_csv(random_system(), tmp_path / "s")
    assert (tmp_path / "s" / "A.csv").is_file()


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """A file alone, a result in a folder, and the progress of resumable work."""
    before = {}  # what was there when a file was flushed last
    monkeypatch.setattr(
        os, "fsync", lambda file: before.update({os.fstat(file).st_ino: [*tmp_path.rglob("*")]})
    )
    with whole_file(tmp_path / "alone", force=False) as partial:
        partial.write_text("all")
    folder = OutputFolder.checked(tmp_path, ["result"], force=False)
    folder.write("result", lambda path: path.write_text("all"))
    work = Resumable.checked(tmp_path / "p.partial", {"text": "all"})
    with work.locked():
        work.begin()
    for path in (tmp_path / "alone", tmp_path / "result", work.folder / "progress.json"):
        assert path not in before[path.stat().st_ino]
