"""Files and folders appear whole or not at all, and never over somebody else's."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from depthsys import export
from depthsys.export import atomic
from depthsys.export.atomic import files_below, whole_file, whole_folder
from tests.export.conftest import random_system, with_companions


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
def test_an_interrupt_between_two_renames_leaves_the_old_export(error, tmp_path, monkeypatch):
    export.to_csv(random_system(), tmp_path / "s")
    before = (tmp_path / "s/A.csv").read_text()
    rename = os.rename

    def interrupted(source, target):
        if Path(source).name.startswith(".s.part") and not Path(target).exists():
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(error):
        export.to_csv(random_system(seed=1), tmp_path / "s", force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert (tmp_path / "s/A.csv").read_text() == before


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


def test_links_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "real" / "folder")
    (tmp_path / "file.npz").symlink_to(tmp_path / "real" / "file.npz")
    for force in (False, True):
        export.to_csv(random_system(), tmp_path / "folder", force=force)
        export.to_npz(random_system(), tmp_path / "file.npz", force=force)
    assert (tmp_path / "folder").is_symlink()
    assert (tmp_path / "file.npz").is_symlink()
    assert sorted(p.name for p in (tmp_path / "real").iterdir()) == ["file.npz", "folder"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.npz", "folder", "real"]


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
    monkeypatch.setattr(atomic, "_one_file", lambda folder, name, other: True)
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
