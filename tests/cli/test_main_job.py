"""The command line on the smallest embedded model: what it writes, and what it refuses."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from depthsys import lm, ltv
from depthsys.files import OutputFolder

SMALL = ["--split", "12/6/6", "--device", "cpu"]


def load(path):
    return xr.load_dataset(path, engine="h5netcdf")


def save(system, path):
    system.to_netcdf(path, engine="h5netcdf")
    return path


def test_demo_does_the_whole_job_and_later_commands_go_on_from_it(run, tmp_path):
    out = tmp_path / "demo"
    command = ["demo", "--model", "demo_48x4", "--out", out, *SMALL]
    code, shown, _ = run(*command)
    assert code == 0
    names = {path.name for path in out.iterdir()}
    figures = ["separation", "gain_curves", "error_budget", "schedule", "energy", "single_layers"]
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
    assert "AUC on 12 held-out texts" in (out / "demo.txt").read_text()
    assert rows["last_layer"]["layer_pushed"] == "3"
    assert rows["uniform"]["energy_kind"] == "relative"

    source = lm.read_texts(out / "texts.csv").split(concept=12, operating=6, held_out=6)
    assert gains.attrs["prompts_sha256"] == source.held_out.sha256
    assert load(out / "schedule.nc").attrs["prompts_sha256"] == source.held_out.sha256
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
    assert "identified with other texts: its prompts_sha256 differs" in err


@pytest.mark.slow  # runs the main job three times
def test_a_stored_system_finds_moved_texts_and_model_and_keeps_its_dtype(run, tmp_path, texts):
    from depthsys.demo import model_path

    model, moved = tmp_path / "model", tmp_path / "elsewhere"
    shutil.copytree(model_path("demo_48x4"), model)
    mine = shutil.copy(texts, tmp_path / "mine.csv")
    common = ["--split", "12/6/6", "--dtype", "float64", "--device", "cpu"]
    assert run("identify", model, mine, *common, "--out", tmp_path / "a")[0] == 0
    model.rename(moved)
    Path(mine).rename(tmp_path / "yours.csv")
    command = ["gains", tmp_path / "a" / "system.nc", "--out", tmp_path / "b"]
    code, _, err = run(*command)
    assert code == 2
    assert "is not there any more. Say where it is" in err
    code, _, err = run(*command, tmp_path / "yours.csv")
    assert code == 2
    assert "neither. Check the path" in err
    assert run(*command, tmp_path / "yours.csv", "--model", moved)[0] == 0
    attrs = load(tmp_path / "b" / "gains.nc").attrs
    assert (attrs["dtype"], attrs["system_dtype"]) == ("float64", "float64")
    assert run(*command, tmp_path / "yours.csv", "--model", moved, "--dtype", "float32", "--force")
    attrs = load(tmp_path / "b" / "gains.nc").attrs
    assert (attrs["dtype"], attrs["system_dtype"]) == ("float32", "float64")
    # the same weights and other texts, or the same texts and other weights, are noticed
    code, _, err = run(*command, tmp_path / "yours.csv", "--model", "demo_96x8", "--force")
    assert code == 2
    assert "its model_fingerprint differs" in err


@pytest.mark.slow  # runs the main job three times
def test_force_never_mixes_an_old_and_a_new_run(run, tmp_path, texts, monkeypatch):
    common = ["demo_48x4", texts, *SMALL, "--out", tmp_path]
    assert run("gains", *common)[0] == 0
    (tmp_path / "mine.txt").write_text("not a result")
    old = {path.name for path in tmp_path.iterdir()}
    # a run that fails before its first result loses nothing
    assert run("identify", "./no-model", *common[1:], "--force")[0] == 2
    assert {path.name for path in tmp_path.iterdir()} == old
    code, _, err = run("identify", *common)
    assert code == 2
    assert "gains.nc" in err
    assert run("identify", *common, "--force")[0] == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"system.nc", "separation.png", "separation.svg", "identify.txt", "mine.txt"}


def test_dropped_and_cut_texts_are_reported(run, tmp_path, texts):
    rows = texts.read_text().splitlines()
    double = tmp_path / "double.csv"
    conflict = rows[1][:-1] + ("0" if rows[1].endswith("1") else "1")
    double.write_text("\n".join([*rows, *rows[2:9], conflict]))
    small = [*SMALL, "--max-tokens", "8"]
    code, shown, _ = run("identify", "demo_48x4", double, *small, "--out", tmp_path / "a")
    assert code == 0
    assert "7 duplicates, 1 texts that came with both labels" in shown
    attrs = load(tmp_path / "a" / "system.nc").attrs
    assert (attrs["n_duplicates"], attrs["n_conflicts"]) == (7, 1)
    assert min(attrs["n_cut_concept"], attrs["n_cut_operating"], attrs["n_cut_held_out"]) > 0
    assert attrs["n_cut_concept"] <= 24


def test_identify_gains_and_control_from_a_model(run, tmp_path, texts, drawn):
    common = ["demo_48x4", texts, *SMALL, "--order", "3", "--seed", "7", "--max-tokens", "9"]
    common += ["--basis", "krylov"]
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
    absolute = ["--energy", "absolute", "--readout", "profile"]
    assert run("control", *common, *absolute, "--out", tmp_path / "c")[0] == 0
    assert load(tmp_path / "c" / "system.nc").attrs["readout"] == "profile"
    assert load(tmp_path / "c" / "schedule.nc").attrs["energy"] == "absolute"
    for figure in ("b/gain_curves", "b/error_budget", "c/schedule", "c/energy"):
        assert (tmp_path / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{figure}.svg").read_text().strip().endswith("</svg>")


@pytest.mark.slow
def test_basis_tolerance_and_concept_reach_the_stored_system(run, tmp_path, texts):
    common = ["demo_48x4", texts, *SMALL]
    options = ["--basis", "ensemble", "--order", "2", "--concept", "whitened"]
    code, shown, err = run("identify", *common, *options, "--out", tmp_path / "a")
    assert code == 0, err
    system = ltv.check(load(tmp_path / "a" / "system.nc"))
    attrs = system.attrs
    assert (attrs["method"], attrs["order"], attrs["concept"]) == ("Ensemble", 2, "whitened")
    assert (system.auc_low <= system.auc).all()
    assert (system.auc <= system.auc_high).all()
    assert "V" not in system
    # the concept readout has rank 1: that is said, in the file and in the summary
    assert "order 2 is above the rank" in attrs["note"]
    assert f"- {attrs['note']}" in shown
    assert "Ensemble, order 1 (2 asked for), concept readout" in shown
    low, high = float(system.auc_low[-1]), float(system.auc_high[-1])
    assert f"{float(system.auc[-1]):.2f} [{low:.2f}, {high:.2f}] at depth 4" in shown

    # gains and control go on from a system without bases, and say the same of it
    stored = tmp_path / "a" / "system.nc"
    code, shown, err = run("gains", stored, "--out", tmp_path / "b", "--device", "cpu")
    assert code == 0, err
    gains = load(tmp_path / "b" / "gains.nc")
    np.testing.assert_array_equal(gains.surrogate_gain, ltv.gains(system).values.ravel())
    assert gains.attrs["system_method"] == "Ensemble"
    assert f"- {attrs['note']}" in shown
    code, _, err = run("control", stored, "--target", "0.3", "--out", tmp_path / "b")
    assert code == 0, err

    code, shown, err = run(
        "identify", *common, "--basis", "balanced", "--tolerance", "0.2", "--readout", "profile",
        "--out", tmp_path / "c",
    )  # fmt: skip
    assert code == 0, err
    system = load(tmp_path / "c" / "system.nc")
    assert json.loads(system.attrs["settings"])["tolerance"] == 0.2
    assert system.attrs["method"] == "Balanced"
    assert f"Balanced, order {int(system.order.max())} for tolerance 0.2" in shown
    assert "note" not in system.attrs


def test_a_direction_without_separation_is_said_in_every_result(run, tmp_path, texts):
    rng = np.random.default_rng(0)
    with texts.open() as file:
        rows = list(csv.reader(file))[1:]
    shuffled = tmp_path / "shuffled.csv"
    labels = rng.permutation([label for _, label in rows])
    with shuffled.open("w", newline="") as file:
        given = [(text, label) for (text, _), label in zip(rows, labels, strict=True)]
        csv.writer(file).writerows([("text", "label"), *given])
    code, shown, err = run("gains", "demo_48x4", shuffled, *SMALL, "--out", tmp_path / "a")
    assert code == 0, err
    warning = load(tmp_path / "a" / "system.nc").attrs["concept_warning"]
    assert "at the last depth: AUC" in warning
    said = f"- {warning}; gains are real, but do not call them gains of the concept"
    assert said in shown
    assert load(tmp_path / "a" / "gains.nc").attrs["concept_warning"] == warning
    code, shown, _ = run("control", tmp_path / "a" / "system.nc", "--out", tmp_path / "a")
    assert code == 0
    assert said in shown
    assert load(tmp_path / "a" / "schedule.nc").attrs["concept_warning"] == warning


FILES = {
    "EMPTY.csv": "",
    "THREE.csv": "text,label\na,0\nb,1\nc,2\n",
    "COLUMN.csv": "sentence,label\na,0\n",
}
OK = ["demo_48x4", "TEXTS"]
BAD = {
    "`TEXTS` must be an existing file": ["demo_48x4", "absent.csv"],
    "must not be empty": ["demo_48x4", "EMPTY.csv"],
    "must have the columns 'text' and 'label'": ["demo_48x4", "COLUMN.csv"],
    "must take exactly two values; got 3": ["demo_48x4", "THREE.csv"],
    "must hold 800 distinct texts per class": OK,
    "neither. Check the path": ["./no-model", "TEXTS", *SMALL],
    "`--order` must be in 1..48": [*OK, *SMALL, "--order", "49"],
    "`--order` must be >= 1": [*OK, *SMALL, "--order", "0"],
    "`--basis` must be one of ensemble, balanced": [*OK, *SMALL, "--basis", "svd"],
    "`--tolerance` must be a fraction between 0 and 1": [*OK, *SMALL, "--tolerance", "0"],
    "`--order` and `--tolerance` must not both be given; got 3 and 0.1": [
        *OK, *SMALL, "--order", "3", "--tolerance", "0.1"
    ],
    "`--concept` must be one of mean_difference, whitened": [*OK, *SMALL, "--concept", "svm"],
    "`--split` must be three positive numbers": [*OK, "--split", "400/200"],
    "`--seed` must be >= 0": [*OK, *SMALL, "--seed", "-1"],
    "`--max-tokens` must be >= 1": [*OK, *SMALL, "--max-tokens", "0"],
    "`--readout` must be": [*OK, *SMALL, "--readout", "all"],
    "`--dtype` must be": [*OK, *SMALL, "--dtype", "float8"],
    "`--device` must be": [*OK, "--split", "12/6/6", "--device", "quantum"],
    "`--device-map` must be auto; got 'balanced'": [*OK, *SMALL, "--device-map", "balanced"],
    "`--out` must be a writable folder": [*OK, *SMALL, "--out", "EMPTY.csv/run"],
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_clear_line_before_any_work(run, tmp_path, texts, message, monkeypatch):
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
        (["gains", "absent.nc", "--order", "3"], "already holds its settings"),
        (["gains", "absent.nc", "--basis", "pod"], "already holds its settings"),
        (["control", "absent.nc", "--concept", "pca"], "already holds its settings"),
        (["control", "absent.nc", "--tolerance", "0.1"], "already holds its settings"),
        (["gains", "MODEL", "TEXTS", "--model", "x"], "`--model` must be left out"),
        (["demo", "--model", "other"], "`--model` must be one of"),
        (["demo", "--model", "demo_48x4", "--concept", "other"], "`--concept` must be one of"),
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


def test_a_model_that_is_read_to_several_places(run, tmp_path, texts, monkeypatch):
    """Here there is room for all of it."""
    seen = []
    original = lm.DepthModel.load

    def load(*args, **options):
        seen.append(options["device_map"])
        return original(*args, **options)

    monkeypatch.setattr(lm.DepthModel, "load", load)
    command = ["identify", "demo_48x4", texts, *SMALL, "--device-map", "auto"]
    code, _, err = run(*command, "--out", tmp_path / "run")
    assert code == 0, err
    assert seen == ["auto"]


def test_a_system_of_somebody_else_is_refused(run, tmp_path):
    system = ltv.system(np.ones((2, 1, 1)), np.ones((2, 1, 1)), np.ones((3, 1, 1)))
    system.to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    code, _, err = run("gains", tmp_path / "other.nc", "--out", tmp_path / "run")
    assert code == 2
    assert "must be a system.nc written by `depthsys identify`" in err
    (tmp_path / "broken.nc").write_bytes(b"no netCDF")
    code, _, err = run("gains", tmp_path / "broken.nc", "--out", tmp_path / "run")
    assert code == 2
    assert "must be a whole netCDF4 file" in err


def test_a_write_that_fails_leaves_nothing_that_looks_whole(tmp_path):
    target = OutputFolder(tmp_path, [])

    def interrupted(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        target.write("system.nc", interrupted)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_file_of_another_run_is_not_overwritten(tmp_path):
    mine = OutputFolder.checked(tmp_path, ["a"], force=False)
    (tmp_path / "a").write_text("theirs")
    with pytest.raises(ValueError, match="another one wrote 'a'"):
        mine.write("a", lambda path: path.write_text("mine"))
    assert (tmp_path / "a").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_demo_that_is_refused_leaves_no_folder(run, tmp_path):
    command = ["demo", "--model", "demo_48x4", *SMALL, "--out", tmp_path / "out"]
    assert run(*command, "--order", "99")[0] == 2
    assert not (tmp_path / "out").exists()


def test_other_texts_of_a_stored_system_cost_no_model(run, tmp_path, texts, monkeypatch):
    small = ["--split", "4/2/2", "--device", "cpu", "--order", "2"]
    assert run("identify", "demo_48x4", texts, *small, "--per-prompt", "--out", tmp_path)[0] == 0
    system, batch = tmp_path / "system.nc", tmp_path / "systems_per_prompt.nc"
    other = tmp_path / "other.csv"
    other.write_text(texts.read_text().replace(" the ", " a "))
    monkeypatch.setattr(lm.DepthModel, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    for command, told in (
        ([system, other], "was identified with other texts: its prompts_sha256 differs"),
        ([system, tmp_path / "no.csv"], "`TEXTS` of"),
        ([system, "--model", "no/such/model"], "`--model` must be an existing folder or a Hugging"),
        (
            [system, "--order", "3", "--seed", "1"],
            "already holds its settings; got --order, --seed",
        ),
        ([batch], "`SYSTEM.nc` must be the system of all prompts together; got"),
    ):
        code, _, err = run("gains", *command, "--out", tmp_path / "out")
        assert (code, err.count("\n")) == (2, 1)
        assert told in err
    assert not (tmp_path / "out").exists()


def test_a_changed_concept_split_or_configuration_is_noticed(run, tmp_path, texts):
    from depthsys.demo import model_path

    model, mine = tmp_path / "model", tmp_path / "mine.csv"
    shutil.copytree(model_path("demo_48x4"), model)
    shutil.copy(texts, mine)
    system = tmp_path / "a" / "system.nc"
    assert run("identify", model, mine, *SMALL, "--out", system.parent)[0] == 0
    operating = lm.read_texts(mine).split(concept=12, operating=6, held_out=6).operating
    lines = mine.read_text().splitlines()
    other = [line if line[1:-3] in operating.texts or line[:-2] in operating.texts else
             f"nonsense {i},{line[-1]}" for i, line in enumerate(lines)]  # fmt: skip
    mine.write_text("\n".join([lines[0], *other[1:]]))
    code, _, err = run("gains", system, "--out", tmp_path / "b")
    assert code == 2
    assert "identified with other texts" in err
    shutil.copy(texts, mine)
    config = model / "config.json"
    config.write_text(config.read_text().replace('"n_head": 4', '"n_head": 2'))
    code, _, err = run("gains", system, "--out", tmp_path / "b")
    assert code == 2
    assert "its model_fingerprint differs" in err
    assert '"n_head": 2' in config.read_text()


@pytest.mark.slow  # what is refused is tested in tests/lm/test_step.py
def test_extreme_steps_and_targets_are_refused(run, tmp_path, texts):
    common = ["demo_48x4", texts, *SMALL, "--force", "--out", tmp_path / "run"]
    for command, option, value, message in (
        ("gains", "--eps", "1e-20", "well above the rounding of the states"),
        ("gains", "--eps", "1e38", "must be below 1, the whole norm of the state"),
        ("control", "--target", "1e-9", "well above the rounding of the readout"),
        ("control", "--target", "1e37", "must stay finite"),
    ):
        code, _, err = run(command, *common, option, value)
        assert (code, message in err) == (2, True), err
    for eps, message in (("1e-20", "a relative one"), ("1e38", "must stay finite")):
        code, _, err = run("gains", *common, "--step", "absolute", "--eps", eps)
        assert (code, message in err) == (2, True), err


def test_a_step_that_rounding_spoils_costs_no_identification(run, tmp_path, texts, monkeypatch):
    monkeypatch.setattr(lm, "identify", lambda *a, **k: pytest.fail("identified before the check"))
    for options in (["--eps", "1e-9"], ["--eps", "1e-9", "--step", "absolute"]):
        code, _, err = run(
            "gains", "demo_48x4", texts, *SMALL, *options, "--out", tmp_path / "spoilt"
        )
        assert code == 2
        assert "well above the rounding" in err
        assert not (tmp_path / "spoilt").exists()


def test_a_step_too_small_for_the_dtype_costs_no_model(run, tmp_path, texts, monkeypatch):
    coarse = ["--dtype", "bfloat16", "--split", "4/2/2", "--device", "cpu", "--order", "2"]
    assert run("identify", "demo_48x4", texts, *coarse, "--out", tmp_path / "run")[0] == 0
    monkeypatch.setattr(lm.DepthModel, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    out = tmp_path / "out"
    for command in (
        ["gains", "demo_48x4", texts, *coarse],
        ["gains", tmp_path / "run/system.nc", "--device", "cpu"],  # its dtype is stored
        ["demo", "--model", "demo_48x4", *coarse],
        ["real", "--model", "demo_48x4", "--texts", texts, *coarse],
    ):
        code, _, err = run(*command, "--out", out)
        assert (code, err.count("\n")) == (2, 1), err
        assert "got 1.0e-02 where 7.8e-01 is the least in bfloat16. Use a larger step" in err
        assert not out.exists()


def test_where_a_model_cannot_run_it_is_not_loaded(run, tmp_path, texts, monkeypatch):
    common = ["--split", "4/2/2", "--device", "cpu", "--order", "2"]
    assert run("identify", "demo_48x4", texts, *common, "--out", tmp_path / "run")[0] == 0
    stored = load(tmp_path / "run/system.nc")
    coarse = save(stored.assign_attrs(products="tf32"), tmp_path / "tf32.nc")
    old = save(stored.assign_attrs(model_fingerprint="0" * 64), tmp_path / "old.nc")
    monkeypatch.setattr(lm.DepthModel, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    fits = ["gains", "demo_48x4", texts, *common]
    placed = [*fits, "--device-map", "auto", "--max-memory"]
    for command, words in (
        ([*fits, "--tf32"], "`--tf32` must be off on 'cpu', which has no TF32 .*; got it. Pass"),
        ([*fits, "--tf32", "--dtype", "bfloat16"], "`--tf32` must be off for a model in bfloat16"),
        (["gains", coarse, "--device", "cpu"], "got that of what is gone on from. Pass --no-tf32"),
        ([*fits, "--max-memory", "cpu=1GB"], "`--max-memory` must come with device_map='auto'"),
        ([*placed, "0=1GB"], "`--max-memory` must name 'cpu' alone on the device 'cpu'"),
        ([*placed, "20"], "`--max-memory` must be sizes by place, .* got '20'. Write"),
        (["gains", old], "`SYSTEM.nc` must know its weights by .* got that of another version"),
        (["plan", old], "cannot be compared. Identify again"),
    ):
        code, _, err = run(*command, "--out", tmp_path / "out")
        assert code == 2
        assert re.search(words, " ".join(err.split())), err


def test_memory_is_as_it_was_asked_for(run, tmp_path, texts, monkeypatch):
    seen = {}
    plain = lm.DepthModel.load

    def recorded(source, *, max_memory, device_map, **options):
        seen.update(max_memory=max_memory, device_map=device_map)
        return plain(source, **options)

    monkeypatch.setattr(lm.DepthModel, "load", recorded)
    command = ["identify", "demo_48x4", texts, "--split", "4/2/2", "--device", "cpu"]
    options = ["--device-map", "auto", "--max-memory", "cpu=2GiB", "--out", tmp_path / "run"]
    code, _, err = run(*command, *options)
    assert code == 0, err
    assert seen == {"max_memory": {"cpu": "2GiB"}, "device_map": "auto"}


@pytest.mark.slow  # killed at every step: tests/files/test_kills.py
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


@pytest.mark.parametrize(
    "command", ["demo", "identify", "gains", "control", "compare", "fetch", "real"]
)
def test_help_shows_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: depthsys {command}" in out


def test_version(run):
    code, out, _ = run("--version")
    assert (code, out.split()[0]) == (0, "depthsys")
