"""A command that is interrupted or killed while it draws goes on: what was computed is kept."""

import csv
import os
import shutil
import signal
import subprocess
import sys

import pytest
import xarray as xr

from depthsys import lm, plot
from depthsys.cli import results
from depthsys.files import Resumable

COMPARE = sys.modules["depthsys.lm.compare"]
SMALL = ["--split", "8/4/4", "--device", "cpu"]
COMPARED = [*SMALL, "--methods", "krylov", "--orders", "1,2", "--each", "1"]


def _raising(error):
    def function(*args, **kwargs):
        raise error

    return function


def nothing_is_computed(monkeypatch):
    """All that takes long is gone."""
    gone = _raising(RuntimeError("this is kept"))
    for name in ("measure_gains_at", "linear_gains", "linear_range", "MeanFull", "each_prompt"):
        monkeypatch.setattr(COMPARE, name, gone)
    for name in ("identify", "measure_gains_at", "linear_range", "compare_energies"):
        monkeypatch.setattr(lm, name, gone)


def fails_at(monkeypatch, number, error):
    """The figure of that number is not drawn; earlier ones are, in a way that is quick.

    That of `identify`, before all others, is not counted.
    """
    drawn = []

    def save(fig, path, kind):
        if path.name.startswith("separation"):
            path.write_text("whole")
            return
        drawn.append(path.name)
        path.write_text("half" if len(drawn) == number else "whole")
        if len(drawn) == number:
            raise error

    monkeypatch.setattr(plot, "save", save)


def killed_at(number, command):
    """The command in a process of its own, killed at that figure, counted as in `fails_at`."""
    killed = f"""
import os, signal
from depthsys import plot
drawn = []
def save(fig, path, kind):
    path.write_text("half")
    drawn.extend([path] if not path.name.startswith("separation") else [])
    if len(drawn) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
plot.save = save
from depthsys.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", killed, *map(str, command)], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def names(folder):
    return {path.name for path in folder.iterdir()}


# command, what is kept, all files
MAIN = {
    "identify": (["--per-prompt"], "identify; identify each"),
    "gains": ([], "gains; identify"),
    "control": ([], "control; identify"),
}
FILES = {
    "identify": {*results.SYSTEM.files, *results.EACH.files, "identify.txt"},
    "gains": {*results.SYSTEM.files, *results.GAIN_FILES},
    "control": {*results.SYSTEM.files, *results.CONTROL_FILES},
}


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        pytest.param(OSError("the figure cannot be drawn"), marks=pytest.mark.slow),
    ],
)
def test_a_comparison_that_is_interrupted_at_its_figures_goes_on(run, texts, tmp_path, error):
    out = tmp_path / "cmp"
    command = ["compare", "demo_48x4", texts, *COMPARED, "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        fails_at(patch, 3, error)
        code, _, err = run(*command)
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert f"What is finished is kept in '{out}.partial' (linear gains" in err
    assert "table of methods): the same command goes on there." in err
    assert len(names(out)) == 3
    before = xr.load_dataset(out / "comparison.nc", engine="h5netcdf")
    with pytest.MonkeyPatch.context() as patch:
        nothing_is_computed(patch)
        fails_at(patch, 0, None)
        code, shown, err = run(*command)
    assert code == 0, err
    assert f"taken from {out}.partial: measured gains; " in shown
    assert names(out) == set(results.COMPARISON_FILES)
    assert names(tmp_path) == {"cmp"}
    again = xr.load_dataset(out / "comparison.nc", engine="h5netcdf")
    xr.testing.assert_identical(again, before)
    code, _, err = run(*command)
    assert code == 2
    assert "must not hold earlier results" in err


@pytest.mark.parametrize(
    "command",
    ["gains", *(pytest.param(c, marks=pytest.mark.slow) for c in ("identify", "control"))],
)
def test_so_do_the_parts_of_the_main_job(run, texts, tmp_path, command, monkeypatch):
    out, (options, kept) = tmp_path / "run", MAIN[command]
    command_line = [command, "demo_48x4", texts, *SMALL, "--order", "2", *options, "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        fails_at(patch, 1, KeyboardInterrupt())
        if command == "identify":  # which draws no other
            patch.setattr("depthsys.cli.session.notes", _raising(KeyboardInterrupt()))
        code, _, err = run(*command_line)
    partial = out / f"{command}.partial"
    assert code == 130
    assert f"Interrupted. What is finished is kept in '{partial}' ({kept})" in err
    before = xr.load_dataset(out / "system.nc", engine="h5netcdf")
    fails_at(monkeypatch, 0, None)
    with pytest.MonkeyPatch.context() as patch:
        nothing_is_computed(patch)
        # other settings are another command, and the weights need not be read to know it
        with pytest.MonkeyPatch.context() as unread:
            unread.setattr(lm.DepthModel, "load", _raising(RuntimeError("the weights are read")))
            code, _, err = run(*command_line, "--seed", "1")
        assert code == 2
        assert f"'{partial}' was begun with seed 0, now 1; another texts of concept" in err
        assert "Go on with those, add --force to drop it, or choose another" in err
        patch.setattr(lm, "mean_difference", _raising(RuntimeError("this is not needed")))
        code, shown, err = run(*command_line)
    assert code == 0, err
    assert f"taken from {partial}: identify" in shown
    assert names(out) == FILES[command]
    again = xr.load_dataset(out / "system.nc", engine="h5netcdf")
    xr.testing.assert_identical(again, before)
    assert run(*command_line)[0] == 2


def test_other_targets_and_energies_are_other_commands(run, texts, tmp_path, monkeypatch):
    out = tmp_path / "run"
    command = ["control", "demo_48x4", texts, *SMALL, "--order", "2", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        fails_at(patch, 1, KeyboardInterrupt())
        assert run(*command, "--target", "0.5")[0] == 130
    nothing_is_computed(monkeypatch)
    code, _, err = run(*command, "--target", "0.6")
    assert code == 2
    assert "was begun with target 0.5, now 0.6. Go on" in err
    code, _, err = run(*command, "--target", "0.5", "--energy", "absolute")
    assert code == 2
    assert "was begun with energy relative, now absolute. Go on" in err


def relabelled(texts, path, names):
    """The same texts in the same order, with labels of other names."""
    with texts.open(newline="") as file:
        head, *rows = csv.reader(file)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *((text, names[int(label)]) for text, label in rows)])


def test_labels_of_other_names_are_another_command(run, texts, tmp_path):
    own, out = tmp_path / "own.csv", tmp_path / "run"
    relabelled(texts, own, ("bad", "good"))
    command = ["gains", "demo_48x4", own, *SMALL, "--order", "2", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        fails_at(patch, 1, KeyboardInterrupt())
        assert run(*command)[0] == 130
    relabelled(texts, own, ("0", "1"))
    code, _, err = run(*command)
    assert code == 2
    assert "was begun with class names bad,good, now 0,1. Go on" in err


@pytest.mark.parametrize("command", ["gains", pytest.param("compare", marks=pytest.mark.slow)])
def test_results_name_model_and_texts_where_they_are_now(
    run, texts, tmp_path, monkeypatch, command
):
    from depthsys.demo import model_path

    first, second = ((tmp_path / f"model{n}", tmp_path / f"{n}.csv") for n in "AB")
    shutil.copytree(model_path("demo_48x4"), first[0])
    shutil.copy(texts, first[1])
    out = tmp_path / "run"
    options = [*(COMPARED if command == "compare" else [*SMALL, "--order", "2"]), "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        fails_at(patch, 1, KeyboardInterrupt())
        assert run(command, *first, *options)[0] == 130
    for old, new in zip(first, second, strict=True):
        old.rename(new)
    nothing_is_computed(monkeypatch)
    fails_at(monkeypatch, 0, None)
    code, shown, err = run(command, *second, *options)
    assert code == 0, err
    assert "taken from" in shown
    for path in out.glob("*.nc"):
        attrs = xr.load_dataset(path, engine="h5netcdf").attrs
        assert (attrs["model"], attrs["texts"]) == tuple(map(str, second)), path


def test_force_drops_what_is_kept_of_other_settings(run, texts, tmp_path):
    out = tmp_path / "run"
    command = ["identify", "demo_48x4", texts, *SMALL, "--basis", "krylov", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthsys.cli.session.notes", _raising(KeyboardInterrupt()))
        assert run(*command, "--order", "2")[0] == 130
    code, shown, err = run(*command, "--order", "3", "--force")
    assert code == 0, err
    told = f"{out}/identify.partial was begun with order 2, now 3: it is dropped, as --force says"
    assert told in shown
    assert names(out) == {*results.SYSTEM.files, "identify.txt"}
    assert xr.load_dataset(out / "system.nc", engine="h5netcdf").sizes["state"] == 3


def test_a_demo_goes_on_where_it_was_interrupted(run, tmp_path, monkeypatch):
    out = tmp_path / "demo"
    command = ["demo", "--model", "demo_48x4", *SMALL, "--order", "2", "--out", out]
    fails_at(monkeypatch, 1, KeyboardInterrupt())
    assert run(*command)[0] == 130
    assert names(out) == {"texts.csv", *results.SYSTEM.files, "gains.nc", "demo.partial"}
    fails_at(monkeypatch, 0, None)
    monkeypatch.setattr(lm, "identify", _raising(RuntimeError("this is kept")))
    monkeypatch.setattr(lm, "measure_gains_at", _raising(RuntimeError("this is kept")))
    code, shown, err = run(*command)
    assert code == 0, err
    assert f"taken from {out}/demo.partial: identify; gains" in shown
    assert "demo.partial" not in names(out)
    assert {"schedule.nc", "energy.csv", "demo.txt"} <= names(out)


def test_gains_of_a_stored_system_are_kept_for_that_system(run, texts, tmp_path, monkeypatch):
    fails_at(monkeypatch, 1, KeyboardInterrupt())
    for order in "12":
        folder = tmp_path / order
        command = ["identify", "demo_48x4", texts, *SMALL, "--order", order, "--out", folder]
        assert run(*command)[0] == 0
    out = tmp_path / "run"
    assert run("gains", tmp_path / "1" / "system.nc", "--out", out)[0] == 130
    with pytest.MonkeyPatch.context() as unread:
        unread.setattr(lm.DepthModel, "load", _raising(RuntimeError("the weights are read")))
        code, _, err = run("gains", tmp_path / "2" / "system.nc", "--out", out)
    assert code == 2
    assert "was begun with another system. " in err
    nothing_is_computed(monkeypatch)
    fails_at(monkeypatch, 0, None)
    assert run("gains", tmp_path / "1" / "system.nc", "--out", out)[0] == 0


@pytest.mark.slow  # interrupted there: above; killed at every step: tests/files/test_kills.py
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_at_its_figures_it_goes_on(run, texts, tmp_path, monkeypatch):
    out = tmp_path / "run"
    command = ["gains", "demo_48x4", texts, *SMALL, "--order", "2", "--out", out]
    killed_at(1, command)
    nothing_is_computed(monkeypatch)
    fails_at(monkeypatch, 0, None)
    code, shown, err = run(*command)
    assert code == 0, err
    assert f"taken from {out}/gains.partial: identify; gains" in shown
    assert names(out) == FILES["gains"]  # and nothing hidden


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_so_does_a_comparison_that_is_killed(run, texts, tmp_path, monkeypatch):
    command = ["compare", "demo_48x4", texts, *COMPARED, "--out", tmp_path / "cmp"]
    with pytest.MonkeyPatch.context() as patch:  # its numbers are there; quicker than another one
        fails_at(patch, 1, KeyboardInterrupt())
        assert run(*command)[0] == 130
    killed_at(3, command)
    nothing_is_computed(monkeypatch)
    fails_at(monkeypatch, 0, None)
    code, _, err = run(*command)
    assert code == 0, err
    assert names(tmp_path / "cmp") == set(results.COMPARISON_FILES)
    assert names(tmp_path) == {"cmp"}


def test_interrupted_after_its_last_file_it_only_draws_again(run, texts, tmp_path, monkeypatch):
    out = tmp_path / "run"
    command = ["identify", "demo_48x4", texts, *SMALL, "--order", "2", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resumable, "finish", _raising(KeyboardInterrupt()))
        assert run(*command)[0] == 130
    assert "identify.txt" in names(out)
    nothing_is_computed(monkeypatch)
    assert run(*command)[0] == 0
    assert names(out) == {*results.SYSTEM.files, "identify.txt"}


def test_two_runs_do_not_share_what_is_kept(run, texts, tmp_path):
    out = tmp_path / "run"
    work = Resumable(out / "identify.partial", {})
    with work.locked():
        command = ["identify", "demo_48x4", texts, *SMALL, "--order", "2", "--out", out]
        code, _, err = run(*command)
    assert code == 2
    assert "`--out` must not be written by two runs at once" in err


def test_a_result_that_was_changed_meanwhile_is_not_overwritten(run, texts, tmp_path):
    out = tmp_path / "run"
    command = ["identify", "demo_48x4", texts, *SMALL, "--order", "2", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthsys.cli.session.notes", _raising(KeyboardInterrupt()))
        assert run(*command)[0] == 130
    (out / "system.nc").write_bytes(b"mine")
    code, _, err = run(*command)
    assert code == 2
    assert "must not hold earlier results; found system.nc in" in err


@pytest.mark.slow
def test_a_comparison_in_the_folder_where_one_is(run, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails_at(monkeypatch, 1, KeyboardInterrupt())
    command = ["compare", "demo_48x4", texts, *COMPARED, "--out", "."]
    assert run(*command)[0] == 130
    assert names(tmp_path) == {"comparison.nc", "compare.partial"}
    fails_at(monkeypatch, 0, None)
    assert run(*command)[0] == 0
    assert names(tmp_path) == set(results.COMPARISON_FILES)
