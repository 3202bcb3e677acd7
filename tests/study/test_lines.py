"""Studies of the lines of a text file, which have no labels."""

import re

import numpy as np
import pytest
import xarray as xr

from depthsys.cli import app
from depthsys.lm import DepthModel
from depthsys.lm.hf.sizes import model_sizes
from depthsys.report.html import page
from depthsys.study import forecast
from depthsys.study.checks import checked
from depthsys.study.faults import StudyFaults
from depthsys.study.reading import stages_of
from depthsys.study.reported import read_results
from depthsys.study.study_reader import read_study, read_with_faults
from tests.study.conftest import SMALL

STAGES = ("spectra", "residual", "coupling", "shape", "lens")
LINES = """
name = "small"
stages = ["spectra", "residual", "coupling", "shape", "lens"]
shard = 1024

[settings]
device = "cpu"
n_jacobians = 2

[[models]]
name = "little"
source = "demo_48x4"

[[tasks]]
name = "tales"
texts = "stories.txt"
n_lines = 6
"""
MOOD = '[[tasks]]\nname = "mood"\ntexts = "demo:sentiment"\n'


def write_stories(folder, first="once"):
    ends = ("good", "bad", "cold", "warm", "great", "poor", "nice", "awful", "clean")
    lines = [f"{first} upon a time the food we had there was very {end}" for end in ends]
    (folder / "stories.txt").write_text("= A title =\n\n" + "\n".join(lines))


@pytest.fixture(autouse=True)
def stories(tmp_path):
    write_stories(tmp_path)


def faults(tmp_path, text):
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(StudyFaults) as error:
        checked(*read_with_faults(tmp_path / "study.toml"))
    return [line.strip() for line in str(error.value).split("\n")[1:]]


@pytest.mark.slow  # both open lines in one way: below, and tests/cli/test_dynamics.py
def test_a_study_finds_what_the_command_finds(runs, tmp_path, monkeypatch):
    assert runs(LINES).failed == []
    asked = ["demo_48x4", tmp_path / "stories.txt", "--device", "cpu", "--jacobians", 2,
             "--lines", 6, "--measures", ",".join(STAGES), "--out", tmp_path / "dyn"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["depthsys", "dynamics", *map(str, asked)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert not ended.value.code
    for name in STAGES:
        ((_, found),) = stages_of(runs.out, name)
        with xr.open_dataset(tmp_path / "dyn" / f"{name}.nc", engine="h5netcdf") as command:
            command = command.load()
        assert set(found.data_vars) == set(command.data_vars), name
        for variable in found.data_vars:
            np.testing.assert_array_equal(found[variable], command[variable], variable)
        for of in (found, command):
            assert (of.attrs["n_lines"], of.attrs["n_cut_operating"]) == (6, 0)
            assert not {"classes", "split", "concept_sha256", "paired"} & of.attrs.keys()
        assert found.attrs["lines_sha256"] == command.attrs["lines_sha256"]


def test_what_is_there_is_known_by_the_lines(runs, tmp_path):
    text = LINES.replace('"residual", "coupling", "shape", "lens"', '"shape"')
    assert (runs(text).made, runs(text).kept) == (2, 2)
    # nothing of labels, and no Jacobians, in what `shape` depends on
    assert (runs(text.replace("n_jacobians = 2", "n_jacobians = 3")).made) == 1
    assert runs(text.replace("n_lines = 6", "n_lines = 5")).made == 2
    write_stories(tmp_path, first="twice")
    assert runs(text.replace("n_lines = 6", "n_lines = 5")).made == 2
    seeded = text.replace("shard = 1024", "shard = 1024\nseeds = [0, 1]")
    study, _ = read_with_faults(_written(tmp_path, seeded))
    drawn = [splits.operating.texts for splits in checked(study, _).splits.values()]
    assert drawn[0] != drawn[1]


def _written(tmp_path, text):
    (tmp_path / "study.toml").write_text(text)
    return tmp_path / "study.toml"


def test_lines_are_prefilled_once_and_counted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "_rate", lambda device: 1e9)
    study = checked(*read_with_faults(_written(tmp_path, LINES)))
    (splits,) = study.splits.values()
    cost = forecast.forecast(study)
    assert int(cost["tokens"][0]) == sum(int(len(t) / 4) + 1 for t in splits.operating.texts)
    size = model_sizes(next(iter(study.found.values())).source)
    kept = size.n_keys * int(cost["tokens"][0]) * size.n_layers
    states = 6 * size.n_features * (size.n_layers + 1)
    assert int(cost["context_bytes"][0]) == 4 * (kept + states)
    cell = next(iter(study.found.values())).load(splits)
    assert cell.held_out is cell.operating


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"shape"', '"shape", "skip", "gains"',
         "line 3, stages: `stages` must need no labels for lines of text, as those of tasks[0]; "
         "got skip, gains, about a concept. Write some of spectra, detached, residual"),
        (re.search(r"stages = .*\n", LINES)[0], "",
         "line 15, tasks[0].texts: `stages` must need no labels for lines of text, as those of "
         "tasks[0]; got concept, system, gains"),
        ("shard = 1024", 'shard = 1024\nconcepts = ["pca"]',
         "concepts: `concepts` must be left out for lines of text"),
        ("n_jacobians = 2", 'n_jacobians = 2\nsplit = "8/4/4"',
         "line 6, settings: `split` must be left out for lines of text, which have no labels"),
        ("n_lines = 6", 'n_lines = 6\nlabel_column = "mood"',
         "tasks[0]: `label_column` must be left out for lines of text"),
        ("n_lines = 6", "n_lines = 0", "`n_lines` must be >= 1; got 0. The default is 1000."),
        ("n_lines = 6", "n_lines = 4",
         "line 3, stages: `stages` must fit the texts; got 'residual' with 4, which needs 5"),
        ('name = "little"', 'name = "little"\nn_lines = 3', "there is no 'n_lines'"),
        ("n_lines = 6", f"n_lines = 6\n{MOOD}n_lines = 6",
         "tasks[1]: `n_lines` must come with a .txt; got 6 with labelled texts. Use `split`"),
    ],
)  # fmt: skip
def test_what_needs_labels_is_refused_before_a_model_is_loaded(
    tmp_path, monkeypatch, before, after, said
):
    def refuse(*given, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(DepthModel, "load", refuse)
    told = faults(tmp_path, LINES.replace(before, after, 1))
    assert any(said in line for line in told), told


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"short\nlines\n", "lines of 8 words or more; got none"), (b"\xff\xfe" * 9, "UTF-8")],
)
def test_a_file_without_texts_is_a_fault_of_its_line(tmp_path, content, said):
    (tmp_path / "stories.txt").write_bytes(content)
    (told,) = faults(tmp_path, LINES)
    assert told.startswith("line 16, tasks[0].texts: `texts` must")
    assert said in told


def test_labelled_texts_beside_lines_have_their_own_settings(tmp_path):
    text = f'{LINES}{MOOD}split = "8/6/4"\n'.replace('"spectra", ', "")
    study, left = read_with_faults(_written(tmp_path, text))
    found = checked(study, left).splits
    assert [len(splits.operating) for splits in found.values()] == [6, 12]
    assert read_study(_written(tmp_path, SMALL)).stages[0] == "concept"
    # said to be of another format it is no file of lines
    (told, *_) = faults(tmp_path, LINES.replace("n_lines = 6", 'format = "csv"'))
    assert "lines of text" not in told


def test_the_page_tells_lines_and_the_study_s_command(runs):
    runs(LINES.replace('"residual", "coupling", "shape", "lens"', '"shape"'))
    told = page(read_results(runs.out))
    assert "<dt>lines</dt><dd>6</dd>" in told
    assert "texts per class" not in told
