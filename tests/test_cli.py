"""The command line on the smallest embedded model: what it writes, and what it refuses."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from depthsys import cli, ltv
from depthsys.job import OutputFolder

SMALL = ["--split", "12/6/6", "--device", "cpu"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command; gives (exit status, stdout, stderr)."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["depthsys", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out = capsys.readouterr()
        return exit_.value.code or 0, out.out, out.err

    return call


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    from depthsys.demo import grammar

    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *grammar.labelled(40, seed=5)])
    return path


def load(path):
    return xr.load_dataset(path, engine="h5netcdf")


def test_demo_does_the_whole_job_and_later_commands_go_on_from_it(run, tmp_path):
    out = tmp_path / "demo"
    command = ["demo", "--model", "demo_48x4", "--out", out, *SMALL]
    code, shown, _ = run(*command)
    assert code == 0
    names = {path.name for path in out.iterdir()}
    figures = ["gain_curves", "error_budget", "schedule", "energy"]
    expected = {"texts.csv", "system.nc", "gains.nc", "schedule.nc", "energy.csv", "demo.txt"}
    assert names == expected | {f"{name}.{kind}" for name in figures for kind in ("png", "svg")}
    system = ltv.check(load(out / "system.nc"))
    assert system.attrs["split"] == "12/6/6"
    gains = load(out / "gains.nc")
    assert dict(gains.sizes) | {"prompt": 12, "layer": 4, "prompt_operating": 12} == gains.sizes
    np.testing.assert_array_equal(gains.surrogate_gain, ltv.gains(system).values.ravel())
    assert float(gains.relative_l2.sel(bound="estimate", layers="all")[0]) < 0.5
    with (out / "energy.csv").open() as file:
        rows = {row["schedule"]: row for row in csv.DictReader(file)}
    assert float(rows["minimum_energy"]["multiple"]) == 1
    assert "random_single_layer" in rows
    assert str(out) in shown
    assert "held-out AUC" in (out / "demo.txt").read_text()

    # the same gains from the stored system, bit for bit
    again = tmp_path / "again"
    assert run("gains", out / "system.nc", "--out", again, "--device", "cpu")[0] == 0
    np.testing.assert_array_equal(load(again / "gains.nc").measured_gain, gains.measured_gain)
    assert {path.name for path in again.iterdir()} >= {"gains.nc", "gains.txt"}
    code, shown, _ = run("control", out / "system.nc", "--target", "0.5", "--out", again)
    assert code == 0
    assert load(again / "schedule.nc").attrs["target"] == 0.5

    # nothing is overwritten without being asked
    code, _, err = run(*command)
    assert code == 2
    assert "must not hold earlier results" in err
    assert run(*command, "--force")[0] == 0

    # other texts than those that were identified are noticed
    lines = (out / "texts.csv").read_text().splitlines()
    (out / "texts.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    code, _, err = run("gains", out / "system.nc", "--out", tmp_path / "third")
    assert code == 2
    assert "identified with other texts or weights: its prompts_sha256 differs" in err


def test_identify_gains_and_control_from_a_model(run, tmp_path, texts):
    common = ["demo_48x4", texts, *SMALL, "--order", "3", "--seed", "7", "--max-tokens", "9"]
    code, shown, _ = run("identify", *common, "--per-prompt", "--out", tmp_path / "a")
    assert code == 0
    assert "cut on the right" in shown
    system = load(tmp_path / "a" / "system.nc")
    assert (system.sizes["state"], system.attrs["seed"], system.attrs["max_tokens"]) == (3, 7, 9)
    each = ltv.check(load(tmp_path / "a" / "systems_per_prompt.nc"))
    assert each.sizes["prompt"] == 12
    assert run("gains", *common, "--eps", "0.05", "--out", tmp_path / "b")[0] == 0
    assert load(tmp_path / "b" / "gains.nc").attrs["step"] == 0.05
    xr.testing.assert_equal(load(tmp_path / "b" / "system.nc"), system)
    relative = ["--energy", "relative", "--readout", "profile"]
    assert run("control", *common, *relative, "--out", tmp_path / "c")[0] == 0
    assert load(tmp_path / "c" / "system.nc").attrs["readout"] == "profile"
    assert load(tmp_path / "c" / "schedule.nc").attrs["energy"] == "relative"


FILES = {
    "EMPTY.csv": "",
    "THREE.csv": "text,label\na,0\nb,1\nc,2\n",
    "COLUMN.csv": "sentence,label\na,0\n",
}
OK = ["demo_48x4", "TEXTS"]
BAD = {
    "`texts` must be an existing file": ["demo_48x4", "absent.csv"],
    "must not be empty": ["demo_48x4", "EMPTY.csv"],
    "must have the columns 'text' and 'label'": ["demo_48x4", "COLUMN.csv"],
    "must take exactly two values; got 3": ["demo_48x4", "THREE.csv"],
    "must hold 800 distinct texts per class": OK,
    "neither. Check the path": ["./no-model", "TEXTS", *SMALL],
    "`order` must be in 1..48": [*OK, *SMALL, "--order", "49"],
    "`--order` must be >= 1": [*OK, *SMALL, "--order", "0"],
    "`--split` must be three positive numbers": [*OK, "--split", "400/200"],
    "`--seed` must be >= 0": [*OK, *SMALL, "--seed", "-1"],
    "`--max-tokens` must be >= 1": [*OK, *SMALL, "--max-tokens", "0"],
    "`--readout` must be": [*OK, *SMALL, "--readout", "all"],
    "`dtype` must be": [*OK, *SMALL, "--dtype", "float16"],
    "`device` must be": [*OK, "--split", "12/6/6", "--device", "quantum"],
    "`--out` must be a writable folder": [*OK, *SMALL, "--out", "EMPTY.csv/run"],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_clear_line_before_any_work(run, tmp_path, texts, message, monkeypatch):
    from depthsys import lm

    monkeypatch.setattr(lm, "mean_difference", lambda *a, **k: pytest.fail("work was started"))
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    args = [texts if arg == "TEXTS" else arg for arg in BAD[message]]
    code, _, err = run("identify", *args, *([] if "--out" in args else ["--out", "run"]))
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gains", "MODEL", "TEXTS", "--eps", "0"], "`--eps` must be positive"),
        (["gains", "MODEL", "TEXTS", "--eps", "nan"], "`--eps` must be positive"),
        (["control", "MODEL", "TEXTS", "--target", "0"], "`--target` must be finite"),
        (["control", "MODEL", "TEXTS", "--energy", "none"], "`--energy` must be"),
        (["gains", "MODEL"], "`TEXTS` must be given with a model"),
        (["gains", "absent.nc"], "`SYSTEM.nc` must be an existing file"),
        (["gains", "absent.nc", "TEXTS"], "already holds a model, texts and settings"),
        (["gains", "absent.nc", "--order", "3"], "already holds a model, texts and settings"),
        (["demo", "--model", "other"], "`name` must be one of"),
        (["demo", "--model", "demo_48x4", "--concept", "other"], "`concept` must be one of"),
    ],
)
def test_bad_options(run, tmp_path, texts, args, message):
    named = {"MODEL": "demo_48x4", "TEXTS": str(texts)}
    code, _, err = run(*(named.get(a, a) for a in args), "--out", tmp_path / "run")
    assert code == 2
    assert message in err


def test_cuda_asked_for_and_absent(run, tmp_path, texts):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = ["identify", "demo_48x4", texts, "--split", "12/6/6", "--device", "cuda"]
    code, _, err = run(*command, "--out", tmp_path / "run")
    assert code == 2
    assert "got 'cuda' and no GPU" in err


def test_a_system_of_somebody_else_is_refused(run, tmp_path):
    system = ltv.system(np.ones((2, 1, 1)), np.ones((2, 1, 1)), np.ones((3, 1, 1)))
    system.to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    code, _, err = run("gains", tmp_path / "other.nc", "--out", tmp_path / "run")
    assert code == 2
    assert "must be a system.nc written by `depthsys identify`" in err
    (tmp_path / "broken.nc").write_bytes(b"no netCDF")
    code, _, err = run("gains", tmp_path / "broken.nc", "--out", tmp_path / "run")
    assert code == 2
    assert "must be a readable netCDF file" in err


def test_a_write_that_fails_leaves_nothing_that_looks_whole(tmp_path):
    target = OutputFolder(tmp_path)

    def interrupted(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        target.write("system.nc", interrupted)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_run_leaves_nothing_that_looks_whole(tmp_path):
    command = [sys.executable, "-m", "depthsys.cli", "demo", "--model", "demo_48x4"]
    process = subprocess.Popen([*command, "--out", tmp_path / "out"], stdout=subprocess.DEVNULL)
    while not (tmp_path / "out" / "texts.csv").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in (tmp_path / "out").iterdir():
        if path.suffix == ".nc" and not path.name.startswith("."):
            load(path)  # what has its final name can be read
    assert not (tmp_path / "out" / "demo.txt").exists()


@pytest.mark.parametrize("command", ["demo", "identify", "gains", "control"])
def test_help_shows_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: depthsys {command}" in out


def test_version(run):
    code, out, _ = run("--version")
    assert (code, out.split()[0]) == (0, "depthsys")
