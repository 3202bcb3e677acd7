"""`depthsys export` and `depthsys import`: the round trip of an engineer, and what is refused."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import xarray as xr

from depthsys import cli, export, ltv
from depthsys.export.formats import FORMATS
from depthsys.export.receivers import load_control

FILES = {  # format -> one file that must be there
    "netcdf": "",
    "zarr": "zarr.json",
    "matlab": "selfcheck.m",
    "julia": "load_depth_system.jl",
    "python-control": "load_control.py",
    "pymor": "load_pymor.py",
    "fmu": "",
    "npz": "",
    "json": "",
    "csv": "A.csv",
    "safetensors": "",
    "gguf": "",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with system.nc and schedule.nc of the smallest embedded model."""
    from depthsys.demo import grammar

    folder = tmp_path_factory.mktemp("run")
    with (folder / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *grammar.labelled(40, seed=5)])
    settings = ["--split", "12/6/6", "--device", "cpu", "--readout", "profile"]
    settings += ["--basis", "krylov", "--order", "3"]
    command = ["depthsys", "control", "demo_48x4", str(folder / "texts.csv"), *settings]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*command, "--out", str(folder / "run")])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    assert not exit_.value.code
    return folder / "run"


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_written(kind, run, finished, tmp_path):
    out = tmp_path / f"out{FORMATS[kind].suffix}"
    extra = ["--drop"] if kind == "gguf" else []
    command = ["export", finished / "system.nc", "--to", kind, "--out", out, *extra]
    code, shown, err = run(*command)
    assert code == 0, err
    assert "4 layers, up to 3 states, 1 input (concept), 1 output (concept)" in shown
    assert "demo_48x4" in shown
    assert f"Written as {kind}: {out}" in shown
    assert (out / FILES[kind]).is_file()
    code, _, err = run(*command)
    assert code == 2
    assert "must not exist yet" in err
    assert run(*command, "--force")[0] == 0
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("kind", ["netcdf", "zarr", "npz", "json", "matlab"])
def test_what_was_exported_comes_back_and_is_used(kind, run, finished, tmp_path):
    """The whole way: export, import, and the gains of the full model by the imported system."""
    out, back = tmp_path / f"out{FORMATS[kind].suffix}", tmp_path / "back.nc"
    assert run("export", finished / "system.nc", "--to", kind, "--out", out)[0] == 0
    command = ["import", out, "--original", finished / "system.nc", "--out", back]
    code, shown, err = run(*command)
    assert code == 0, err
    assert "it replayed the golden trajectory that came with it" in shown
    assert "differs by 0 (induced norm) and 0 (H2)" in shown
    original, again = export.read(finished / "system.nc"), export.read(back)
    before, last = again.attrs.pop("history").rsplit("\n", 1)
    assert before == original.attrs.pop("history")
    assert last.endswith(f"+00:00 depthsys import {out.name}")
    xr.testing.assert_identical(again, original)
    assert run(*command)[0] == 2
    if kind == "matlab":
        code, shown, err = run("gains", back, "--out", tmp_path / "check")
        assert code == 0, err
        assert (tmp_path / "check" / "gains.nc").is_file()


def test_a_system_reduced_in_numpy_is_verified_on_the_model(run, finished, tmp_path):
    """The engineer has python-control's folder, and no depthsys."""
    assert (
        run("export", finished / "system.nc", "--to", "python-control", "--out", tmp_path / "c")[0]
        == 0
    )
    system = export.read(finished / "system.nc")
    small = ltv.project(system, ltv.balanced_basis(system, order=1))
    arrays = load_control.load(tmp_path / "c" / "system.npz")
    load_control.save(tmp_path / "small.npz", arrays, *(small[name].values for name in "ABC"))
    code, shown, err = run(
        "import", tmp_path / "small.npz", "--original", finished / "system.nc",
        "--out", tmp_path / "small.nc",
    )  # fmt: skip
    assert code == 0, err
    assert "states: 3 -> 1" in shown
    code, shown, err = run("gains", tmp_path / "small.nc", "--out", tmp_path / "check")
    assert code == 0, err
    assert f"Krylov, changed by numpy {np.__version__}, order 1" in shown
    found = xr.load_dataset(tmp_path / "check" / "gains.nc", engine="h5netcdf")
    np.testing.assert_allclose(found["surrogate_gain"], ltv.gains(small).squeeze(), rtol=1e-12)


def test_a_truncated_system_of_an_engineer_is_compared(run, finished, tmp_path):
    """A .mat of their own, without a description."""
    system = export.read(finished / "system.nc")
    small = ltv.project(system, ltv.balanced_basis(system, order=1))
    matrices = {name: np.moveaxis(small[name].values, 0, -1) for name in "ABCD"}
    scipy.io.savemat(tmp_path / "own.mat", matrices)
    code, shown, err = run(
        "import", tmp_path / "own.mat", "--original", finished / "system.nc",
        "--out", tmp_path / "own.nc",
    )  # fmt: skip
    assert code == 0, err
    assert "came without a golden trajectory" in shown
    error = ltv.compare(system, orders=[1], methods=[ltv.balanced_basis])
    relative = float((error.error / error.norm).squeeze())
    assert f"differs by {relative:.3g} (induced norm)" in shown
    assert "states: 3 -> 1" in shown
    assert "without provenance, which is taken from" in shown
    assert "Check it on the language model: `depthsys gains" in shown
    own = export.read(tmp_path / "own.nc")
    assert own.attrs["changed_by"] == "an engineer"
    assert own.attrs["model_fingerprint"] == system.attrs["model_fingerprint"]
    assert own["order"].max() == 1
    code, shown, err = run("gains", tmp_path / "own.nc", "--out", tmp_path / "check")
    assert code == 0, err
    found = xr.load_dataset(tmp_path / "check" / "gains.nc", engine="h5netcdf")
    np.testing.assert_allclose(found["surrogate_gain"], ltv.gains(small).squeeze(), rtol=1e-12)


def test_without_the_original_a_bare_system_cannot_be_checked_and_that_is_said(run, tmp_path):
    from tests.export.systems import random_system

    matrices = {name: np.moveaxis(random_system()[name].values, 0, -1) for name in "ABCD"}
    scipy.io.savemat(tmp_path / "own.mat", matrices)
    code, shown, _ = run("import", tmp_path / "own.mat", "--out", tmp_path / "own.nc")
    assert code == 0
    assert "does not say of which model and texts it is. Give the system that was sent" in shown
    assert "depthsys gains" not in shown


def test_systems_of_single_prompts_are_compared_member_by_member(run, finished, tmp_path):
    system = export.read(finished / "system.nc").drop_vars("y_std")
    members = [system, system.assign(A=2 * system["A"])]
    batch = xr.concat(members, dim="prompt").assign_coords(prompt=[0, 1], order=system["order"])
    other = batch.assign(A=batch["A"] * xr.DataArray([1.0, 1.1], dims="prompt"))
    export.to_netcdf(batch, tmp_path / "sent.nc")
    export.to_zarr(other, tmp_path / "back.zarr")
    command = ["import", tmp_path / "back.zarr", "--out", tmp_path / "back.nc"]
    code, shown, err = run(*command, "--original", tmp_path / "sent.nc")
    assert code == 0, err
    one, two = (ltv.io_matrix(s.isel(prompt=1)).values.reshape(5, 4) for s in (batch, other))
    relative = np.linalg.norm(two - one, 2) / np.linalg.norm(one, 2)
    h2 = np.linalg.norm(two - one) / np.linalg.norm(one)
    assert f"differs by {relative:.3g} (induced norm) and {h2:.3g} (H2)" in shown
    assert "It is of single prompts" in shown
    code, _, err = run(*command, "--force", "--original", finished / "system.nc")
    assert code == 2
    assert "`--original` must have the layers, inputs, outputs and batch dims" in err


def test_a_control_vector_says_what_it_leaves_out(run, finished, tmp_path):
    command = ["export", finished / "system.nc", "--to", "gguf", "--out", tmp_path / "v.gguf"]
    code, shown, _ = run(*command, "--drop")
    assert code == 0
    schedule, system = (
        xr.load_dataset(finished / f"{name}.nc", engine="h5netcdf")
        for name in ("schedule", "system")
    )
    u = schedule["u"].values / system["state_norm"].values[:-1]  # relative energy
    share = 100 * (u[:2] ** 2).sum() / (u**2).sum()
    assert f"LEFT OUT: {share:#.3g} % of its energy" in shown


def test_what_was_written_is_read_back(run, finished, tmp_path, monkeypatch):
    def turned(system, path, *, force):
        export.to_npz(system, path, force=force)
        with np.load(path) as stored:
            arrays = dict(stored)
        with path.open("wb") as file:
            np.savez(file, **arrays | {"A": arrays["A"].swapaxes(1, 2)})

    monkeypatch.setattr(export, "to_json", turned)
    monkeypatch.setitem(export.READERS, ".json", export.from_npz)
    command = ["export", finished / "system.nc", "--to", "json", "--out", tmp_path / "s.json"]
    code, _, err = run(*command)
    assert code == 2
    assert "with every A transposed" in err


def test_names_and_layers_are_compared_too(run, tmp_path):
    from tests.export.systems import random_system

    system = random_system().assign_coords(output_name=("output", list("abcd")))
    export.to_npz(system, tmp_path / "one.npz")
    export.to_npz(system.assign_coords(output_name=("output", list("bacd"))), tmp_path / "two.npz")
    command = ["import", tmp_path / "two.npz", "--out", tmp_path / "s.nc"]
    code, shown, _ = run(*command, "--original", tmp_path / "one.npz")
    assert code == 0
    assert "differs by 0 (induced norm)" in shown
    assert "the names of its outputs differ" in shown
    for name, (start, stop) in {"head": (0, 2), "tail": (2, 4)}.items():
        export.to_npz(ltv.window(system, start, stop), tmp_path / f"{name}.npz")
    command = ["import", tmp_path / "tail.npz", "--out", tmp_path / "t.nc"]
    code, _, err = run(*command, "--original", tmp_path / "head.npz")
    assert code == 2
    assert "`--original` must start at layer 2 like the file; got 0" in err
    zero = system.assign(C=0 * system["C"], D=0 * system["D"])
    export.to_npz(zero, tmp_path / "zero.npz")
    command = ["import", tmp_path / "one.npz", "--out", tmp_path / "z.nc"]
    code, shown, _ = run(*command, "--original", tmp_path / "zero.npz")
    assert code == 0
    assert "nothing to compare with" in shown


def test_a_missing_package_is_one_line(run, finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    command = ["export", finished / "system.nc", "--to", "gguf", "--out", tmp_path / "v.gguf"]
    code, _, err = run(*command, "--drop")
    assert code == 2
    assert "pip install 'depthsys[export]'" in err


def test_import_checks_the_place_first(run, finished, tmp_path):
    (tmp_path / "there.nc").write_text("theirs")
    for out, message in (("there.nc", "must not exist yet"), ("new.mat", "must end in .nc")):
        code, shown, err = run("import", finished / "system.nc", "--out", tmp_path / out)
        assert code == 2
        assert message in err
        assert shown == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--to": "simulink"}, "`--to` must be one of netcdf, zarr, matlab"),
        ({"--out": "s.mat"}, "`--out` must end in .nc for netcdf"),
        ({"--to": "matlab", "--out": "s.mat"}, "`--out` must name a folder for matlab"),
        ({"SYSTEM": "nowhere.nc"}, "nowhere.nc"),
        ({"SYSTEM": "texts.csv"}, "must be one of .nc, .zarr, .mat"),
        ({"--select": "prompt"}, "`--select` must be positions along batch dims"),
        ({"--select": "a=0,a=1"}, "`--select` must name each dim once"),
        ({"--select": "prompt=0"}, "`--select` must name a position along a batch dim"),
        ({"--name": "x"}, "`--name` must be left out for netcdf; got 'x'. It is for matlab"),
        ({"--schedule": "x.nc"}, "`--schedule` must be left out for netcdf"),
        ({"--model-hint": "x"}, "`--model-hint` must be left out for netcdf"),
        ({"--to": "matlab", "--out": "s", "--name": "2nd"}, "must be a MATLAB name"),
        (
            {"--to": "gguf", "--out": "s.gguf", "--schedule": "no.nc"},
            "`--schedule` must be an exist",
        ),
        ({"--to": "gguf", "--out": "s.gguf"}, "must not push at the inputs of blocks 0 and 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(changes, message, run, finished, tmp_path):
    given = {"SYSTEM": "system.nc", "--to": "netcdf", "--out": "s.nc"} | changes
    out = tmp_path / given.pop("--out")
    place = finished / given.pop("SYSTEM")
    if not place.exists() and place.name == "texts.csv":
        place = finished.parent / place.name
    options = [word for pair in given.items() for word in pair]
    code, shown, err = run("export", place, "--out", out, *options)
    assert code == 2, shown
    assert message in err
    assert err.startswith("Error: ")
    assert list(tmp_path.iterdir()) == []


def test_an_original_of_other_sizes_is_refused(run, finished, tmp_path):
    from tests.export.systems import random_system

    export.to_npz(random_system(), tmp_path / "other.npz")
    code, _, err = run(
        "import", tmp_path / "other.npz", "--original", finished / "system.nc",
        "--out", tmp_path / "s.nc",
    )  # fmt: skip
    assert code == 2
    assert "`--original` must have the layers, inputs, outputs and batch dims" in err


def test_a_schedule_that_is_none_is_refused(run, finished, tmp_path):
    (tmp_path / "bad.nc").write_bytes(b"nothing")
    command = ["export", finished / "system.nc", "--to", "safetensors"]
    command += ["--out", tmp_path / "s.safetensors", "--schedule", tmp_path / "bad.nc"]
    code, _, err = run(*command)
    assert code == 2
    assert "`--schedule` must be a schedule.nc" in err


def test_one_member_of_a_batch_is_selected(run, tmp_path):
    from tests.export.systems import random_system

    members = [random_system(seed=i) for i in range(3)]
    export.to_netcdf(xr.concat(members, dim="prompt"), tmp_path / "batch.nc")
    command = ["export", tmp_path / "batch.nc", "--to", "npz", "--out", tmp_path / "one.npz"]
    code, _, err = run(*command)
    assert code == 2
    assert "--select prompt=0" in err
    assert run(*command, "--select", "prompt=2")[0] == 0
    one = export.read(tmp_path / "one.npz")
    np.testing.assert_array_equal(one["A"], members[2]["A"])
    assert run(*command, "--select", "prompt=3", "--force")[0] == 2


@pytest.mark.parametrize("command", ["export", "import"])
def test_help_has_an_example(command, run):
    code, shown, _ = run(command, "--help")
    assert code == 0
    assert f"depthsys {command}" in " ".join(shown.split())
    assert "Example" in shown


def test_a_file_that_crashes_a_library_or_reads_another_one_is_one_line(run, tmp_path):
    import h5py

    from tests.export.systems import random_system

    (tmp_path / "secret").write_bytes(b"the key of the house" * 100)
    matrices = {name: np.moveaxis(random_system()[name].values, 0, -1) for name in "ABCD"}
    scipy.io.savemat(tmp_path / "own.mat", matrices)
    content = bytearray((tmp_path / "own.mat").read_bytes())
    content[184] = 0
    (tmp_path / "own.mat").write_bytes(content)
    export.to_netcdf(random_system(), tmp_path / "own.nc")
    with h5py.File(tmp_path / "own.nc", "r+") as file:
        del file["D"]
        file["D"] = h5py.ExternalLink(str(tmp_path / "secret"), "/D")
    before = sorted(p.name for p in tmp_path.iterdir())
    for name in ("own.mat", "own.nc"):
        for command in (["import"], ["export", "--to", "netcdf"]):
            where = ["--out", tmp_path / "out" / "s.nc"]
            code, shown, err = run(command[0], tmp_path / name, *command[1:], *where)
            assert (code, shown, err.count("\n")) == (2, "", 1)
            typed = {"import": "FILE", "export": "SYSTEM"}[command[0]]
            assert err.startswith(f"Error: `{typed}` must be a whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_what_is_no_system_says_what_it_is(run, finished, tmp_path):
    code, _, err = run(
        "export", finished / "schedule.nc", "--to", "npz", "--out", tmp_path / "s.npz"
    )
    assert code == 2
    assert "which is a schedule of `depthsys control`, with the variables " in err
    assert "Give a system.nc of `depthsys identify`" in err


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("gains.nc", "which is a result of `depthsys gains`, with the variables"),
        ("schedule.nc", "which is a schedule of `depthsys control`, with the variables"),
        ("comparison.nc", "which is a result of `depthsys compare`, with the variables"),
        ("other.nc", "which holds the variables x, y"),
        ("empty.nc", "which holds no variables"),
    ],
)
def test_every_command_says_what_a_file_is_and_what_is_wanted(file, kind, run, finished, tmp_path):
    names = {
        "gains.nc": ["surrogate_gain", "error_budget", "full_gain"],
        "comparison.nc": ["error", "error_budget", "h2_error"],
        "other.nc": ["x", "y"],
        "empty.nc": [],
    }
    place = finished / file
    if file != "schedule.nc":  # that is a real one
        place = tmp_path / file
        made = xr.Dataset({name: ("layer", [1.0, 2.0]) for name in names[file]})
        made.to_netcdf(place, engine="h5netcdf")
    out = tmp_path / "out"
    for command, typed in (
        (["gains", place, "--out", out], "SYSTEM.nc"),
        (["control", place, "--out", out], "SYSTEM.nc"),
        (["export", place, "--to", "npz", "--out", out / "s.npz"], "SYSTEM"),
        (["import", place, "--out", out / "s.nc"], "FILE"),
        (["import", finished / "system.nc", "--original", place, "--out", out / "s.nc"],
         "--original"),
    ):  # fmt: skip
        code, shown, err = run(*command)
        assert (code, shown, err.count("\n")) == (2, "", 1)
        told = f"Error: `{typed}` must hold a system (A, B, C, D); got {str(place)!r}, {kind}"
        assert err.startswith(told)
        assert err.endswith("Give a system.nc of `depthsys identify`, or what an export wrote.\n")
    assert not out.exists()
    with pytest.raises(ValueError, match=r"`path` must hold a system \(A, B, C, D\); got") as found:
        export.read(place)
    assert kind in str(found.value)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("system.nc", ", which is a system of `depthsys identify`, with the variables A, B, C, D"),
        ("bare.nc", ", which holds the variables x. Make one with `depthsys control`."),
        ("schedule.txt", ": Unable to synchronously open file"),
    ],
)
def test_what_is_no_schedule_says_what_it_is(file, told, run, finished, tmp_path):
    xr.Dataset({"x": 1.0}).to_netcdf(tmp_path / "bare.nc", engine="h5netcdf")
    (tmp_path / "schedule.txt").write_text("no netCDF" * 100)
    place = finished / file if file == "system.nc" else tmp_path / file
    command = ["export", finished / "system.nc", "--to", "safetensors", "--schedule", place]
    code, _, err = run(*command, "--out", tmp_path / "s.safetensors")
    assert code == 2
    assert f"Error: `--schedule` must be a schedule.nc; got {str(place)!r}{told}" in err
    assert "`path`" not in err


def test_messages_name_what_was_typed(run, finished, tmp_path):
    place, there = finished / "system.nc", tmp_path / "there.npz"
    there.touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / "link.npz").symlink_to(there)
    to_npz = ["export", place, "--to", "npz", "--out"]
    to_matlab = ["export", place, "--to", "matlab", "--out", tmp_path / "mine"]
    absent = tmp_path / "absent.nc"
    for command, told in (
        ([*to_npz, there], "`--out` must not exist yet; got"),
        ([*to_npz, there], "Choose another, or replace it with --force."),
        ([*to_npz, tmp_path / "link.npz", "--force"], "`--out` must not be a symbolic link"),
        (to_matlab, "`--out` must not exist yet"),
        ([*to_matlab, "--force"], "`--out` must hold nothing but an earlier export to be replaced; "
         "found thesis.tex in"),
        (["export", absent, "--to", "npz", "--out", tmp_path / "s.npz"],
         "`SYSTEM` must be an existing file"),
        (["import", absent, "--out", tmp_path / "s.nc"], "`FILE` must be an existing file"),
        (["import", place, "--original", absent, "--out", tmp_path / "s.nc"],
         "`--original` must be an existing file"),
        (["export", place, "--to", "gguf", "--out", tmp_path / "v.gguf"],
         "`--schedule` must not push at the inputs of blocks 0 and 1"),
        (["export", place, "--to", "gguf", "--out", tmp_path / "v.gguf"],
         "or leave them out with --drop."),
        (["export", place, "--to", "matlab", "--name", "2nd", "--out", tmp_path / "m"],
         "`--name` must be"),
    ):  # fmt: skip
        code, _, err = run(*command)
        assert code == 2
        assert told in err
        assert "force=True" not in err
        assert "`path`" not in err


def test_an_imported_system_says_what_it_lacks(run, finished, tmp_path):
    """Neither that it is of single prompts, nor that it is of no model."""
    system = export.read(finished / "system.nc")
    del system.attrs["split"]
    export.to_netcdf(system, tmp_path / "sent.nc")
    code, shown, _ = run("import", tmp_path / "sent.nc", "--out", tmp_path / "back.nc")
    assert code == 0
    assert "It lacks what `depthsys gains` needs: split. Give the system that was sent" in shown


def test_a_system_that_got_its_golden_trajectory_later_says_so(run, tmp_path):
    from tests.export.systems import random_system

    np.savez(tmp_path / "own.npz", **{name: random_system()[name].values for name in "ABCD"})
    for source, out in (("own.npz", "one.nc"), ("one.nc", "two.nc")):
        code, shown, _ = run("import", tmp_path / source, "--out", tmp_path / out)
        assert code == 0
    assert "- it replayed its golden trajectory, which was made after it had come without" in shown
