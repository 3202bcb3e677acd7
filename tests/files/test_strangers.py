"""Hostile and enormous files: nothing hangs, crashes, runs, or reads what is not in the file."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import xarray as xr
import zarr

from depthsys import export
from depthsys.files import strangers
from depthsys.files.strangers import limits, process
from tests.export.systems import random_system, with_companions
from tests.files.mutants import KINDS, first_number, mutants, original, renamed

SECRET = b"the key of the house: 1234567890" * 64
# 500 files by default, 16 000 more in the slow suite; a few of the readers take 20 ms
COUNTS = {"nc": 60, "mat5": 60, "mat73": 30, "npz": 160, "json": 160, "zarr": 20}
MANY = {"nc": 2700, "mat5": 2400, "mat73": 600, "npz": 4500, "json": 4500, "zarr": 300}


def refused(path: Path, *words: str) -> str:
    """The message, which is one short line."""
    with pytest.raises(ValueError, match=" must ") as caught:
        export.read(path)
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) <= 1500
    for word in words:
        assert word in said
    return said


def read_or_refused(path: Path) -> xr.Dataset | None:
    """Nothing if it is refused, in one short line."""
    try:
        return export.read(path)
    except ValueError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) <= 1500
    return None


@pytest.fixture
def secret(tmp_path) -> Path:
    (tmp_path / "secret").mkdir()
    path = tmp_path / "secret" / "key"
    path.write_bytes(SECRET)
    return path


def hdf5_copy(tmp_path, kind) -> Path:
    """Of a system, as .nc or .mat 7.3, to be changed by h5py."""
    return original({"nc": "nc", "mat": "mat73"}[kind], tmp_path)


hdf5 = pytest.mark.parametrize("kind", ["nc", "mat"])


# ------------------------------------------------------------------------- damaged


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_harmless(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 3.0)
    check_mutants(kind, tmp_path, range(COUNTS[kind]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_more_damaged_files(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 3.0)
    check_mutants(kind, tmp_path, range(10_000, 10_000 + MANY[kind]))


def check_mutants(kind, tmp_path, seeds):
    accepted = 0
    expected = export.read(original(kind, tmp_path)) if seeds else None
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    for _, path in mutants(kind, tmp_path, seeds):
        if (again := read_or_refused(path)) is not None:
            # what digests cover is right; attributes they do not
            accepted += 1
            xr.testing.assert_equal(again[[*"ABCD", "V"]], expected[[*"ABCD", "V"]])
    assert accepted < len(seeds) / 3


@pytest.mark.parametrize("place", ["zarr.json", "A/zarr.json", "golden/zarr.json"])
def test_metadata_of_a_store_that_make_no_sense(place, tmp_path):
    store = original("zarr", tmp_path)
    text = (store / place).read_text()
    for seed in range(5):
        (store / place).write_text(renamed(text, np.random.default_rng(seed)))
        read_or_refused(store)


@pytest.mark.parametrize("number", [184, 344, 456])
def test_a_byte_that_crashes_scipy(number, tmp_path):
    """And the next file is read as if nothing had been."""
    system = random_system(n=2, m=1, p=1, L=3)
    matrices = {name: system[name].values.transpose(1, 2, 0) for name in "ABCD"}
    scipy.io.savemat(tmp_path / "own.mat", matrices)
    content = bytearray((tmp_path / "own.mat").read_bytes())
    content[number] = 0
    (tmp_path / "crash.mat").write_bytes(content)
    refused(tmp_path / "crash.mat", "must be a whole .mat file")
    xr.testing.assert_equal(export.read(tmp_path / "own.mat")["A"].variable, system["A"].variable)


def test_a_reader_that_takes_too_long(tmp_path, monkeypatch):
    """The kernel ends it, and the next file is read."""
    path = original("nc", tmp_path)
    export.read(path)  # so that the time of the start is not counted
    monkeypatch.setattr(limits, "SECONDS", 1e-4)
    refused(path, "reading it took too long")
    monkeypatch.undo()
    export.read(path)


def test_a_reader_that_is_killed_is_replaced(tmp_path):
    path = original("nc", tmp_path)
    export.read(path)
    reader = process._running()
    reader.process.kill()
    reader.process.wait()
    export.read(path)
    assert process._running().process.pid != reader.process.pid
    os.kill(process._running().process.pid, signal.SIGSTOP)
    process._running().process.kill()  # it dies while it is asked
    try:
        export.read(path)
    except ValueError as error:
        assert "its reader ended" in str(error)  # noqa: PT017
    export.read(path)


def test_an_interrupt_while_a_file_is_read(tmp_path, monkeypatch):
    """What the reader still answers is not taken for the answer to the next question."""
    path = original("nc", tmp_path)
    other = tmp_path / "other.npz"
    export.to_npz(random_system(seed=5), other)
    expected = export.read(path)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(process, "_received", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export.read(path)
    xr.testing.assert_identical(export.read(path), expected)


def test_a_relative_path_is_that_of_this_process(tmp_path, monkeypatch):
    """Which may have moved since its reader was started."""
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        for suffix, write in (("nc", export.to_netcdf), ("zarr", export.to_zarr)):
            write(random_system(seed=seed), f"s.{suffix}")
            again = export.read(f"s.{suffix}")
            np.testing.assert_array_equal(again["A"], random_system(seed=seed)["A"])


@pytest.mark.slow  # seconds of many processes
def test_threads_and_copies_of_a_process_read_at_once(tmp_path):
    paths = []
    for seed in range(4):
        paths.append(tmp_path / f"{seed}.nc")
        export.to_netcdf(random_system(seed=seed), paths[-1])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(export.read, paths * 3))
    for seed, system in enumerate(found):
        np.testing.assert_array_equal(system["A"], random_system(seed=seed % 4)["A"])
    if sys.platform == "linux":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(first_number, [paths[2]]) == float(found[2]["A"][0, 0, 0])


# ------------------------------------------------------------------------- other files


@hdf5
def test_external_storage_is_not_read(kind, tmp_path, secret):
    path = hdf5_copy(tmp_path, kind)
    with h5py.File(path, "r+") as file:
        attrs, shape = dict(file["A"].attrs), file["A"].shape
        nbytes = file["A"].size * 8
        del file["A"]
        data = file.create_dataset("A", shape, "f8", external=[(str(secret), 0, nbytes)])
        if kind == "mat":
            data.attrs["MATLAB_class"] = attrs["MATLAB_class"]
        else:
            for i, dim in enumerate(("layer", "state_next", "state")):
                data.dims[i].attach_scale(file[dim])
    said = refused(path, "lies in another file (external storage)")
    assert "1234567890" not in said


@hdf5
def test_links_to_other_files_are_not_followed(kind, tmp_path, secret):
    other = tmp_path / "secret" / "other.nc"
    export.to_netcdf(random_system(), other)
    path = hdf5_copy(tmp_path, kind)
    with h5py.File(path, "r+") as file:
        del file["A"]
        file["A"] = h5py.ExternalLink(str(other), "/A")
    refused(path, "'A' is a link to another file")
    with h5py.File(path, "r+") as file:  # deep inside, where nobody looks
        del file["A"]
        file.create_group("x/y")["z"] = h5py.ExternalLink(str(secret), "/A")
    refused(path, "'z' is a link to another file")


@hdf5
def test_virtual_datasets_are_not_read(kind, tmp_path):
    other = tmp_path / "other.h5"
    path = hdf5_copy(tmp_path, kind)
    with h5py.File(path, "r") as file:
        shape = file["A"].shape
    with h5py.File(other, "w") as file:
        file["A"] = np.ones(shape)
    layout = h5py.VirtualLayout(shape, "f8")
    layout[:] = h5py.VirtualSource(str(other), "A", shape)
    with h5py.File(path, "r+") as file:
        attrs = dict(file["A"].attrs)
        del file["A"]
        data = file.create_virtual_dataset("A", layout)
        if kind == "mat":
            data.attrs["MATLAB_class"] = attrs["MATLAB_class"]
        else:
            for i, dim in enumerate(("layer", "state_next", "state")):
                data.dims[i].attach_scale(file[dim])
    refused(path, "lies in other files (a virtual dataset)")


def test_links_in_a_store_are_not_followed(tmp_path, secret):
    store = original("zarr", tmp_path)
    (store / "A" / "zarr.json").rename(tmp_path / "zarr.json")
    (store / "A" / "zarr.json").symlink_to(tmp_path / "zarr.json")
    refused(store, "'zarr.json' is a link or no file")
    store = tmp_path / "t.zarr"
    export.to_zarr(random_system(), store)
    (store / "B").rename(tmp_path / "B")
    (store / "B").symlink_to(tmp_path / "B")
    refused(store, "'B' is a link or no file")
    (store / "B").unlink()
    os.mkfifo(store / "B")  # would wait for somebody who writes
    refused(store, "'B' is a link or no file")


def test_a_store_of_references_is_no_store(tmp_path, secret):
    references = {"version": 1, "refs": {"zarr.json": [str(secret)], "A/c/0/0/0": [str(secret)]}}
    (tmp_path / "refs.zarr").mkdir()
    (tmp_path / "refs.zarr" / "refs.json").write_text(json.dumps(references))
    refused(tmp_path / "refs.zarr", "must be a whole Zarr store")
    (tmp_path / "refs.json").write_text(json.dumps(references))
    refused(tmp_path / "refs.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("suffix", [".nc", ".mat", ".npz", ".json", ".zarr"])
def test_pipes_and_devices_are_no_files(suffix, tmp_path):
    os.mkfifo(tmp_path / f"s{suffix}")
    (tmp_path / f"t{suffix}").symlink_to("/dev/zero")
    for name in "st":
        with pytest.raises(FileNotFoundError, match="must be an existing"):
            export.read(tmp_path / f"{name}{suffix}")


# ------------------------------------------------------------------------- code


def test_codecs_that_are_pickles_are_not_run(tmp_path):
    store = original("zarr", tmp_path)
    metadata = json.loads((store / "A" / "zarr.json").read_text())
    for codec in ("numcodecs.pickle", "evil"):
        changed = metadata | {"codecs": [metadata["codecs"][0], {"name": codec}]}
        (store / "A" / "zarr.json").write_text(json.dumps(changed))
        refused(store, "must be a whole Zarr store")
    group = zarr.open_group(tmp_path / "two.zarr", mode="w", zarr_format=2)
    group.create_array("A", shape=(2, 2, 2), dtype="f8", filters=None)
    told = json.loads((tmp_path / "two.zarr" / "A" / ".zarray").read_text())
    told["filters"] = [{"id": "pickle", "protocol": 5}]
    (tmp_path / "two.zarr" / "A" / ".zarray").write_text(json.dumps(told))
    refused(tmp_path / "two.zarr", "pickle")
    told["filters"] = [{"id": "delta", "dtype": "<f8"}]
    (tmp_path / "two.zarr" / "A" / ".zarray").write_text(json.dumps(told))
    refused(tmp_path / "two.zarr", "needs the codecs ['delta'] to be read")


def test_filters_of_others_are_not_loaded(tmp_path):
    path = original("nc", tmp_path)
    with h5py.File(path, "r+") as file:
        dims = [file[dim] for dim in ("layer", "state_next", "state")]
        shape = file["A"].shape
        del file["A"]
        space = h5py.h5s.create_simple(shape)
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_chunk(shape)
        how.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())  # zstd, a plugin
        h5py.h5d.create(file.id, b"A", h5py.h5t.NATIVE_DOUBLE, space, how)
        for i, dim in enumerate(dims):
            file["A"].dims[i].attach_scale(dim)
    refused(path, "needs the filters [32015]")


# ------------------------------------------------------------------------- bombs


@hdf5
def test_a_variable_that_is_declared_and_not_there(kind, tmp_path):
    path = hdf5_copy(tmp_path, kind)
    with h5py.File(path, "r+") as file:
        attrs = dict(file["A"].attrs)
        del file["A"]
        data = file.create_dataset("A", (5, 2**14, 2**14), "f8", chunks=(1, 2**8, 2**8))
        if kind == "mat":
            data.attrs["MATLAB_class"] = attrs["MATLAB_class"]
        else:
            data.dims[0].attach_scale(file["layer"])
            for i in (1, 2):
                data.dims[i].attach_scale(file["state"])
    refused(path, "declares 10.7 GB, most of it in", "'")


def test_what_nobody_needs_is_not_read(tmp_path):
    """Two gigabytes that no system has, and packed small: they are left alone."""
    path = original("nc", tmp_path)
    with h5py.File(path, "r+") as file:
        file.create_dataset("bomb", (2**28,), "f8", chunks=(2**20,), compression="gzip")
        file.create_dataset("many", (2**28,), "f8", chunks=(1,))
        file["bomb"].attrs["CLASS"] = np.bytes_("x")
    export.read(path)
    bare = random_system().assign(other=("layer", np.arange(5)))
    bare.to_netcdf(tmp_path / "own.nc", engine="h5netcdf")
    assert (
        "left out, as no parts of a system: other"
        in (export.read(tmp_path / "own.nc").attrs["import_note"])
    )


@pytest.mark.parametrize(
    ("chunks", "message"),
    [((1, 1, 1), "more than 1048576 chunks"), ((1, 1, 2**27), "declares 25.8 GB")],
)
def test_a_store_of_many_chunks(chunks, message, tmp_path):
    store = original("zarr", tmp_path)
    told = json.loads((store / "A" / "zarr.json").read_text())
    told |= {"shape": [6, 4, 2**27]}
    told["chunk_grid"]["configuration"]["chunk_shape"] = list(chunks)
    (store / "A" / "zarr.json").write_text(json.dumps(told))
    refused(store, message)
    told["chunk_grid"]["configuration"]["chunk_shape"] = [6, 4, 2**40]
    told["shape"] = [5, 3, 3]
    (store / "A" / "zarr.json").write_text(json.dumps(told))
    refused(store, "chunks larger than itself")
    told["storage_transformers"] = [{"name": "x"}]
    (store / "A" / "zarr.json").write_text(json.dumps(told))
    refused(store)


def test_a_store_with_too_much_metadata(tmp_path):
    store = original("zarr", tmp_path)
    with (store / "A" / "zarr.json").open("ab") as file:
        file.truncate(limits.DESCRIPTION + 1)
    refused(store, "'zarr.json' is too long")


def test_an_archive_that_unpacks_to_gigabytes(tmp_path):
    arrays = {n: random_system()[n].values for n in "ABCD"}
    np.savez(tmp_path / "s.npz", **arrays)
    head = np.lib.format.header_data_from_array_1_0(np.zeros((2**10, 2**10, 1)))
    with zipfile.ZipFile(tmp_path / "s.npz", "a", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("about.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, head | {"shape": (2**7, 2**20, 1)})
            for _ in range(2**7):
                file.write(bytes(2**20))
    said = refused(tmp_path / "s.npz", "declares more than it has")
    assert "about" in said
    with zipfile.ZipFile(tmp_path / "t.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("A.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, head | {"shape": (2**4, 2**20, 1)})
            for _ in range(2**7):
                file.write(bytes(2**20))
    refused(tmp_path / "t.npz", "declares 134 MB")
    with zipfile.ZipFile(tmp_path / "u.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("A.npy", b"")
    refused(tmp_path / "u.npz", "packed in another way")
    with zipfile.ZipFile(tmp_path / "v.npz", "w") as archive:
        for i in range(limits.OBJECTS + 1):
            archive.writestr(str(i), b"")
    refused(tmp_path / "v.npz", "more than 10000 arrays")
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("A.npy", np.lib.format.magic(3, 0) + bytes(99))
    refused(tmp_path / "w.npz", "a header of version (3, 0)")


def test_a_text_that_is_too_long(tmp_path):
    long = {"A": ["x" * 2**20, *[""] * 2000]}
    (tmp_path / "s.json").write_text(json.dumps(long))
    refused(tmp_path / "s.json", "'A' holds texts that are too long")
    with (tmp_path / "t.json").open("wb") as file:
        file.truncate(2**40)  # nothing of it is on the disk
    refused(tmp_path / "t.json", "it has more than 67 MB")


def test_a_mat_file_that_declares_gigabytes(tmp_path):
    scipy.io.savemat(tmp_path / "own.mat", {"A": np.zeros((4, 4, 4)), "B": 1.0, "C": 1.0})
    content = bytearray((tmp_path / "own.mat").read_bytes())
    sizes = np.array([4, 4, 4], "<i4").tobytes()
    at = content.index(sizes)
    content[at : at + 12] = np.array([2**13, 2**13, 2**5], "<i4").tobytes()
    (tmp_path / "own.mat").write_bytes(content)
    refused(tmp_path / "own.mat", "declares 34.4 GB, most of it in 'A'")


@pytest.mark.parametrize("where", ["root", "variable"])
def test_long_and_many_attributes(where, tmp_path):
    path = original("nc", tmp_path)
    with h5py.File(path, "r+") as file:
        attrs = (file if where == "root" else file["A"]).attrs
        attrs["long"] = "x" * (limits.TEXT + 1)
    refused(path, "its attribute 'long' is too long")
    with h5py.File(path, "r+") as file:
        holder = file if where == "root" else file["A"]
        holder.attrs["long"] = h5py.Empty("f8")
        holder.attrs["odd"] = np.zeros(2, [("a", "f8")])
    refused(path, "its attribute 'odd' holds neither numbers nor texts")
    system = random_system().assign_attrs(long="x" * (limits.TEXT + 1))
    with pytest.raises(ValueError, match="must be a text of at most 1048576 characters"):
        export.to_netcdf(system, tmp_path / "t.nc")


def test_messages_are_short(tmp_path):
    """Whatever names and labels there are in it."""
    name = "x" * 100_000
    (tmp_path / "s.json").write_text(json.dumps({name: 1, "about": {"format": "depthsys system"}}))
    refused(tmp_path / "s.json")
    np.savez(tmp_path / "s.npz", **{name[:60_000]: np.ones(2), "A\n\x1b[31m": np.ones(2)})
    refused(tmp_path / "s.npz")
    scipy.io.savemat(tmp_path / "s.mat", {f"a{i}": 1.0 for i in range(1000)})
    refused(tmp_path / "s.mat", "without ['A', 'B', 'C']")
    with h5py.File(tmp_path / "s.nc", "w") as file:
        file.create_group(name[:60_000])
        for i in range(1000):
            file[f"a{i}"] = 1.0
    refused(tmp_path / "s.nc")


def test_a_file_of_very_many_parts(tmp_path):
    with h5py.File(tmp_path / "s.nc", "w", libver="latest") as file:
        for i in range(limits.OBJECTS + 1):
            file[f"a{i}"] = h5py.SoftLink("/b")
    refused(tmp_path / "s.nc", "holds more than 10000 variables and groups")


# ------------------------------------------------------------------------- what is it, then


def test_another_result_says_what_it_is(tmp_path):
    attrs = {"history": "2026-11-27T00:00:00+00:00 depthsys.lm.compare_energies"}
    plan = xr.Dataset({"u": ("layer", np.ones(3)), "predicted_energy": 1.0}, attrs=attrs)
    plan.to_netcdf(tmp_path / "schedule.nc", engine="h5netcdf")
    said = refused(tmp_path / "schedule.nc", "is a schedule of `depthsys control`")
    assert "predicted_energy, u" in said


def test_plain_netcdf_is_decoded_as_xarray_does(tmp_path):
    """Coordinates, packed numbers, missing values, truth values, times, texts, empty texts."""
    data = xr.Dataset(
        {
            "packed": ("x", np.array([0.5, 1.5, np.nan])),
            "truth": ("x", np.array([True, False, True])),
            "time": ("x", np.array(["2026-01-01", "2026-01-02", "2026-01-03"], "M8[ns]")),
            "text": ("x", np.array(["a", "", "ß"], object)),
            "scalar": 2.5,
            "single": (("x", "y"), np.ones((3, 2), np.float32)),
        },
        coords={"x": [3, 1, 2], "label": ("x", ["p", "q", "r"])},
        attrs={"title": "", "count": 3, "list": [1.5, 2.5]},
    )
    packed = {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1}
    data.to_netcdf(tmp_path / "s.nc", engine="h5netcdf", encoding={"packed": packed})
    names = [*map(str, data.data_vars), "label"]
    found = strangers.read_netcdf(tmp_path / "s.nc", {"": names})[""].dataset
    expected = xr.load_dataset(tmp_path / "s.nc", engine="h5netcdf")
    xr.testing.assert_identical(found, expected)
    for name in expected.variables:
        assert found[name].dtype == expected[name].dtype, name


def test_where_processes_cannot_be_copied_the_checks_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "ISOLATED", False)
    for kind in KINDS:
        export.read(original(kind, tmp_path))
    system = with_companions(random_system())
    export.to_netcdf(system, tmp_path / "t.nc")
    with h5py.File(tmp_path / "t.nc", "r+") as file:
        del file["A"]
        file["A"] = h5py.ExternalLink("other.nc", "/A")
    refused(tmp_path / "t.nc", "'A' is a link to another file")
    (tmp_path / "u.nc").write_bytes(b"nothing")
    refused(tmp_path / "u.nc", "must be a whole netCDF4 file")


@pytest.mark.slow  # seconds of many processes
def test_the_reader_ends_with_its_process(tmp_path):
    path = original("nc", tmp_path)
    code = (
        "import sys; from depthsys import export; from depthsys.files.strangers import process;"
        f"export.read({str(path)!r}); print(process._running().process.pid)"
    )
    import subprocess

    for end in ("", "; import os; sys.stdout.flush(); os._exit(0)"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code + end],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.stderr == ""
        for _ in range(200):
            if not Path(f"/proc/{int(done.stdout)}").exists() or not is_running(int(done.stdout)):
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the reader is still there")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_half_of_the_memory(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 7000 kB\n")
    assert limits.half_of_memory(tmp_path / "meminfo") == 3500 * 1024
    assert limits.half_of_memory(tmp_path / "nowhere") > 0
    assert limits.readable(999) == "999 B"
    assert limits.readable(2e16) == "20 PB"
