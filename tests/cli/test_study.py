"""`depthsys study`: checked, run, gone on with, from the command line."""

import sys

import pytest

from depthsys import study as room
from depthsys.cli import app
from depthsys.cli.watch import ProgressWatch
from depthsys.study import steps, study_reader
from tests.study.conftest import SMALL


@pytest.fixture
def typed(monkeypatch, capsys):
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["depthsys", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            app.main()
        said = capsys.readouterr()
        return int(exit_.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(SMALL)
    return path


def test_a_study_is_checked_and_nothing_is_written(typed, file, tmp_path):
    code, out, _ = typed("study", "check", file)
    assert code == 0
    assert "1 cell of 4 stages: about" in out
    assert "little" in out
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


def test_a_study_is_run_and_run_again(typed, file, tmp_path):
    code, out, err = typed("study", "run", file, "--out", tmp_path / "study.zarr")
    assert code == 0
    assert "small: 4 stages made, 0 were there." in out
    assert "[3/4] little/mood/seed_0/mean_difference gains:" in err
    tree = room.read(tmp_path / "study.zarr")
    assert tree.attrs["command"].startswith("depthsys study run ")
    code, out, _ = typed("study", "run", file, "--out", tmp_path / "study.zarr")
    assert (code, "0 stages made, 4 were there." in out) == (0, True)
    code, out, _ = typed("study", "check", file, "--out", tmp_path / "study.zarr")
    assert "all is there, nothing is to be made" in out


def test_a_failed_cell_is_told_and_the_status_says_so(typed, file, tmp_path, monkeypatch):
    def failing(*args):
        raise ValueError("`eps` is not to be had")

    monkeypatch.setattr(steps, "gains", failing)
    code, out, _ = typed("study", "run", file, "--out", tmp_path / "study.zarr")
    assert code == 1
    assert "3 stages made, 0 were there, 1 failed." in out
    assert "little/mood/seed_0/mean_difference gains: `eps` is not to be had" in out


def test_faults_of_a_file_are_told_before_anything_is_done(typed, file, tmp_path):
    file.write_text(SMALL.replace("device", "devise").replace("8/4/4", "8000/4/4"))
    code, _, err = typed("study", "run", file, "--out", tmp_path / "study.zarr")
    assert code == 2
    assert "did you mean 'device'" in err
    file.write_text(SMALL.replace('device = "cpu"', 'device = "cuda:9"\norder = 99'))
    code, _, err = typed("study", "run", file, "--out", tmp_path / "study.zarr")
    assert code == 2
    assert "line 8, settings.device: `device` must be available" in err
    assert not (tmp_path / "study.zarr").exists()


def test_an_interrupt_says_how_to_go_on(typed, file, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "gains", interrupted)
    code, _, err = typed("study", "run", file, "--out", tmp_path / "study.zarr")
    assert code == 130
    assert "the same command goes on" in err


def test_studies_of_the_package_are_listed_and_shown(typed, tmp_path):
    code, out, _ = typed("study", "show")
    assert code == 0
    assert "embedded" in out
    assert "arXiv 2603.12541" in out
    code, out, _ = typed("study", "show", "embedded")
    path = tmp_path / "mine.toml"
    path.write_text(out)
    assert typed("study", "check", path)[0] == 0
    assert typed("study", "show", "nothing")[0] == 2


def test_what_is_typed_wrongly_is_told(typed, file, tmp_path):
    assert "did you mean 'check'" in typed("study", "chek", file)[2].lower()
    assert "`STUDY` must be given" in typed("study", "check")[2]
    assert "`--out` must be given" in typed("study", "run", file)[2]
    code, _, err = typed("study", "check", file, "--data", tmp_path / "none")
    assert (code, "`--data` must be a folder" in err) == (2, True)
    assert "must be a study file" in typed("study", "check", tmp_path / "none.toml")[2]


def test_a_long_name_of_a_cell_leaves_the_bars_whole_on_80_columns(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(SMALL.replace('"little"', f'"{"long_name" * 7}"'))
    study = study_reader.read_study(path)
    watch = ProgressWatch(study)
    watch.console.width = 80
    watch.begin(study.cells[0], "gains", 10)
    watch._progress.update(watch._whole, advance=1, rate="17 seconds left")
    with watch.console.capture() as shown:
        for line in watch._progress.get_renderables():
            watch.console.print(line, no_wrap=True, overflow="ellipsis")
    first, second = shown.get().splitlines()[:2]
    assert first.startswith("long_name")
    assert "1/4" in second
    assert "17 seconds left" in second


def test_a_missing_folder_is_told_as_it_would_be_found(typed, tmp_path):
    path = tmp_path / "of_mine" / "study.toml"
    path.parent.mkdir()
    path.write_text(SMALL + '\n[[models]]\nsource = "../nowhere"\n')
    code, _, err = typed("study", "check", path)
    assert code == 2
    assert f"got '../nowhere', which would be '{tmp_path / 'nowhere'}'" in err


def test_texts_are_stored_with_their_prompts(typed, tmp_path):
    path, out = tmp_path / "study.toml", tmp_path / "study.zarr"
    asked = '\n[texts]\nprompts = ["the film", "a day"]\nstrengths = [0]\nmax_new_tokens = 2\n'
    path.write_text(SMALL.replace('"gains", "energies"', '"texts"') + asked)
    assert typed("study", "run", path, "--out", out)[0] == 0
    found = room.read(out)["little/mood/seed_0/mean_difference/texts"]
    assert found["prompt"].values.tolist() == ["the film", "a day"]
