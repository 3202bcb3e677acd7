"""The command that a page tells makes the same numbers again."""

import shlex

import numpy as np
import pytest
import xarray as xr

from depthsys.cli import app
from depthsys.report.html import CellResults
from depthsys.report.html.commands import dynamics_commands
from depthsys.report.stage import Stage
from depthsys.study.reported import read_results


@pytest.fixture
def run(monkeypatch, capsys):
    def run(command: str) -> None:
        monkeypatch.setattr("sys.argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert not ended.value.code, capsys.readouterr().err

    return run


@pytest.fixture
def stories(tmp_path):
    path = tmp_path / "stories.txt"
    ends = ("good", "bad", "cold", "warm", "great", "poor", "nice", "awful", "clean")
    path.write_text("\n".join(f"once upon a time the food there was very {end}" for end in ends))
    return path


def commands(folder):
    (cell,) = read_results(folder).cells
    return dynamics_commands(cell)


def assert_the_same(one, other, names):
    for name in names:
        found, again = (xr.load_dataset(f / f"{name}.nc", engine="h5netcdf") for f in (one, other))
        for variable in found.data_vars:
            np.testing.assert_array_equal(found[variable], again[variable], variable)


def test_of_labelled_texts(run, texts, tmp_path):
    options = ["--split 8/4/4", "--seed 1", "--positive 0", "--max-tokens 14", "--cut left",
               r"--template 'So: {text}\nIt is'", "--dtype float64", "--concept pca",
               "--readout profile", "--jacobians 2"]  # fmt: skip
    asked = f"depthsys dynamics demo_48x4 {texts} --device cpu {' '.join(options)}"
    run(f"{asked} --measures skip,shape,spectra --out {tmp_path / 'one'}")
    (told,) = commands(tmp_path / "one")
    assert told.endswith("--out dynamics")
    assert "--measures spectra,skip,shape" in told
    for option in options:
        assert option in told
    run(told.replace("--out dynamics", f"--device cpu --out {tmp_path / 'two'}"))
    assert_the_same(tmp_path / "one", tmp_path / "two", ("skip", "shape", "spectra"))


def test_of_lines(run, stories, tmp_path):
    asked = f"depthsys dynamics demo_48x4 {stories} --device cpu --lines 6 --seed 3 --max-tokens 9"
    run(f"{asked} --measures shape,coupling --jacobians 2 --out {tmp_path / 'one'}")
    (told,) = commands(tmp_path / "one")
    assert "--lines 6 --seed 3 --max-tokens 9 --jacobians 2 --out" in told
    for of_labels in ("--split", "--positive", "--concept", "--readout"):
        assert of_labels not in told
    run(told.replace("--out dynamics", f"--device cpu --out {tmp_path / 'two'}"))
    assert_the_same(tmp_path / "one", tmp_path / "two", ("shape", "coupling"))


def test_lines_that_were_cut_are_told_once(run, stories, tmp_path):
    asked = f"depthsys dynamics demo_48x4 {stories} --device cpu --lines 6 --max-tokens 4"
    run(f"{asked} --measures shape --out {tmp_path / 'one'}")
    (said,) = (path.read_text() for path in (tmp_path / "one").glob("*.txt"))
    assert "cut on the right at 4 tokens: 6 of 6 texts" in said
    assert "held-out" not in said


def told_of(**of_stages):
    stages = {name: Stage({}, {"texts": "a.csv", **attrs}) for name, attrs in of_stages.items()}
    return dynamics_commands(CellResults("m", "a", "0", "", stages))


def test_a_command_for_each_where_settings_differ():
    shared = {"split": "4/4/4", "seed": 0, "max_tokens": 128, "classes": '["0", "1"]'}
    one = told_of(spectra={**shared, "n_jacobians": 3}, shape=shared)
    two = told_of(spectra={**shared, "n_jacobians": 3}, coupling={**shared, "n_jacobians": 4})
    assert [len(one), len(two)] == [1, 2]
    assert "--jacobians 4" in two[1]
    beside = {**shared, "n_jacobians": 3, "given_definition": "published"}
    assert "--jacobians 3 --lens LENS" in told_of(lens=beside, shape=shared)[0]
    assert len(told_of(spectra=shared, shape={**shared, "split": "5/4/4"})) == 2
    assert "--positive" not in one[0]


def test_layouts_of_texts_are_typed():
    shared = {"split": "4/4/4", "seed": 0, "max_tokens": 128}
    layout = '{"classes": ["so, so", "a"], "text_column": "the body"}'
    of_file = {"texts": "~/my texts.csv", "classes": '["so, so", "a"]', "texts_layout": layout}
    (told,) = told_of(shape=shared | of_file)
    assert "~/'my texts.csv'" in told
    assert """--classes '"so, so",a' --text-column 'the body'""" in told
    assert "--positive" not in told
    (told,) = told_of(shape={**shared, "classes": '["not joy", "joy"]',
                             "texts_layout": '{"against_rest": true}'})  # fmt: skip
    assert "--against-rest --positive joy" in told
    (told,) = told_of(shape={**shared, "classes": '["2", "10"]', "products": "tf32"})
    assert "--positive" not in told
    assert "--tf32" in told
