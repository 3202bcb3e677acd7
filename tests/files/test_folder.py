"""An output folder: what is in it is of one run, and it is there only if there is something."""

import os

import pytest
import xarray as xr

from depthsys.files import OutputFolder, Resumable, content_hash


def results(folder):
    return {p.name: p.read_text() for p in folder.iterdir()}


def text(said):
    return lambda path: path.write_text(said)


def test_a_folder_is_made_with_its_first_result(tmp_path):
    folder = OutputFolder.checked(tmp_path / "a" / "b", ["one"], force=False)
    assert list(tmp_path.iterdir()) == []

    def fails(path):
        path.write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        folder.write("one", fails)
    assert list(tmp_path.iterdir()) == []
    folder.write("one", text("1"))
    assert results(tmp_path / "a" / "b") == {"one": "1"}


def test_an_empty_folder_that_was_there_stays(tmp_path):
    OutputFolder.checked(tmp_path, ["one"], force=False)
    assert tmp_path.is_dir()


def test_results_of_an_earlier_run_go_with_the_first_new_one(tmp_path):
    for name in ("one", "two", "mine"):
        (tmp_path / name).write_text("old")
    with pytest.raises(ValueError, match=r"must not hold earlier results; found one, two in"):
        OutputFolder.checked(tmp_path, ["one", "two"], force=False)
    folder = OutputFolder.checked(tmp_path, ["one", "two"], force=True)
    assert len(results(tmp_path)) == 3
    folder.write("three", text("new"))
    assert results(tmp_path) == {"mine": "old", "three": "new"}
    folder.write("one", text("new"))
    assert results(tmp_path) == {"mine": "old", "three": "new", "one": "new"}


def test_results_of_the_same_run_are_no_earlier_ones_while_its_work_is_kept(tmp_path):
    out, kept = tmp_path / "run", tmp_path / "kept"

    def checked():
        return OutputFolder.checked(out, ["one", "two"], force=False, partial=kept)

    work = Resumable(kept, {"seed": 0})
    with work.locked():
        work.write("part", text("numbers"))
        checked().write("one", text("new"))
        again = checked()
        assert again.stale == ["one"]
        again.write("two", text("new"))
        assert results(out) == {"two": "new"}
        checked().write("one", text("drawn again"))
        (out / "one").write_text("mine")
        with pytest.raises(ValueError, match="must not hold earlier results; found one in"):
            checked()
        (out / "one").unlink()
        checked().write("one", text("new"))
        work.finish()
    with pytest.raises(ValueError, match="must not hold earlier results; found one in"):
        checked()


def test_a_link_to_a_result_of_the_same_run_is_none(tmp_path):
    (tmp_path / "mine").write_text("new")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "one").symlink_to(tmp_path / "mine")
    known = [content_hash(b"new")]
    with pytest.raises(ValueError, match="earlier results; found one in"):
        OutputFolder.checked(tmp_path / "run", ["one"], force=False, known=known)
    (tmp_path / "run" / "one").unlink()
    (tmp_path / "run" / "one").write_text("new")
    assert OutputFolder.checked(tmp_path / "run", ["one"], force=False, known=known).stale == [
        "one"
    ]


def test_links_to_results_are_replaced_and_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "one").symlink_to(tmp_path / "victim")
    (tmp_path / "run" / "two").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="earlier results"):
        OutputFolder.checked(tmp_path / "run", ["one", "two"], force=False)
    folder = OutputFolder.checked(tmp_path / "run", ["one", "two"], force=True)
    for name in ("one", "two"):
        folder.write(name, text("new"))
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "run" / "one").is_symlink()
    assert results(tmp_path / "run") == {"one": "new", "two": "new"}


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "scratch")
    OutputFolder.checked(tmp_path / "run", ["one"], force=False).write("one", text("1"))
    assert results(tmp_path / "scratch") == {"one": "1"}


def test_what_is_no_folder_of_files_is_refused(tmp_path):
    (tmp_path / "one").mkdir()
    with pytest.raises(ValueError, match="must hold files where results go; got 'one'"):
        OutputFolder.checked(tmp_path, ["one"], force=True)
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="`--out` must be a writable folder; got"):
            OutputFolder.checked(path, ["one"], force=True)
    assert (tmp_path / "one").is_dir()


def test_a_result_of_another_run_is_kept(tmp_path):
    folder = OutputFolder.checked(tmp_path, ["one"], force=False)
    (tmp_path / "one").write_text("theirs")
    with pytest.raises(ValueError, match="another one wrote 'one' into"):
        folder.write("one", text("mine"))
    assert results(tmp_path) == {"one": "theirs"}


def test_datasets(tmp_path):
    folder = OutputFolder.checked(tmp_path, [], force=False)
    table = xr.Dataset({"a": ("x", [1.0, 2.0])}, attrs={"note": "n"})
    folder.netcdf("table.nc", table)
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "table.nc", engine="h5netcdf"), table)
    assert os.listdir(tmp_path) == ["table.nc"]


def test_a_figure_gets_its_suffix(tmp_path):
    from depthsys import plot

    fig, _ = plot.figure()
    assert plot.save(fig, tmp_path / "io2", "png") == tmp_path / "io2.png"
    assert plot.save(fig, str(tmp_path / "a.b"), "svg") == tmp_path / "a.b.svg"
    assert plot.save(fig, tmp_path / "c.PNG", "png") == tmp_path / "c.PNG"
    assert sorted(os.listdir(tmp_path)) == ["a.b.svg", "c.PNG", "io2.png"]
