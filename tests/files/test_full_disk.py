"""A disk that is full, or a limit on the size of files: one line, and nothing left."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from depthsys import export, plot
from depthsys.files import OutputFolder, hdf5_file, whole_folder, write_netcdf
from tests.export.systems import random_system

ROOT = Path(__file__).parents[2]
# under a limit Python itself would leave halves of its compiled modules
QUIET = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")


def large_system() -> xr.Dataset:
    """Above 200 kB in every format, also where only its directions are written."""
    system = random_system(n=40, L=20)
    v = np.random.default_rng(0).standard_normal((21, 4000, 2))
    return system.assign(v=(("depth", "feature", "input"), v))


def plan() -> xr.Dataset:
    u = np.ones((20, 2))
    u[:2] = 0
    return xr.Dataset({"u": (("layer", "input"), u)})


def writers() -> dict:
    """Every format, and what an output folder takes."""
    system = large_system()
    fig, axes = plot.figure()
    axes[0].imshow(np.random.default_rng(0).random((300, 300)))

    def folder(path: Path) -> OutputFolder:
        return OutputFolder.checked(path, [], force=False)

    def steering(write):
        return lambda path: write(system, plan(), path)

    found = {
        "safetensors": steering(export.to_safetensors),
        "gguf": steering(export.to_gguf),
        "matlab 7.3": lambda path: export.to_matlab(system, path, version="7.3"),
        "result": lambda path: folder(path).netcdf("system.nc", system),
        "png": lambda path: folder(path).write("a.png", lambda p: plot.save(fig, p, "png")),
        "svg": lambda path: folder(path).write("a.svg", lambda p: plot.save(fig, p, "svg")),
        "text": lambda path: folder(path).write("a.txt", lambda p: p.write_text("x" * 10**6)),
    }
    for name in ("netcdf", "zarr", "matlab", "julia", "control_files", "pymor_files", "fmu", "npz",
                 "json", "csv"):  # fmt: skip
        found[name] = lambda path, name=name: getattr(export, f"to_{name}")(system, path)
    return found


WRITERS = writers()


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """200 kB; where nothing can be mounted the tests are skipped."""
    place = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"nothing can be mounted: {error}")
    if done.returncode:
        pytest.skip(f"nothing can be mounted: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(name, small_disk):
    with pytest.raises(
        OSError, match=r"must lie on a disk with room for .*no space left"
    ) as caught:
        WRITERS[name](small_disk / "new")
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value).isprintable()
    assert list(small_disk.iterdir()) == []


def test_a_full_disk_loses_no_earlier_result(small_disk):
    """Also with --force."""
    target = OutputFolder.checked(small_disk / "run", ["a", "b"], force=False)
    target.write("a", lambda path: path.write_text("old a"))
    target.write("b", lambda path: path.write_text("old b"))
    export.to_npz(random_system(), small_disk / "s.npz")
    export.to_csv(random_system(), small_disk / "tables")
    before = {p: p.read_bytes() for p in small_disk.rglob("*") if p.is_file()}
    again = OutputFolder.checked(small_disk / "run", ["a", "b"], force=True)
    with pytest.raises(OSError, match="must lie on a disk with room"):
        again.write("a", lambda path: path.write_text("x" * 10**6))
    for write, name in ((export.to_npz, "s.npz"), (export.to_csv, "tables")):
        with pytest.raises(OSError, match="must lie on a disk with room"):
            write(large_system(), small_disk / name, force=True)
    assert {p: p.read_bytes() for p in small_disk.rglob("*") if p.is_file()} == before
    for path in small_disk.iterdir():
        subprocess.run(["rm", "-r", str(path)], check=True)


def test_every_size_at_which_a_disk_may_be_full(small_disk):
    """Of an HDF5 file each of whose writes fails once: as netCDF and as .mat 7.3."""
    system = random_system(n=12, L=6)
    ballast = small_disk / "ballast"
    for free in range(4, 120, 16):
        ballast.write_bytes(bytes((200 - free) * 1000))
        for write, name in ((export.to_netcdf, "s.nc"), (to_mat, "m")):
            try:
                write(system, small_disk / name)
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
                assert not (small_disk / name).exists()
            else:
                export.read(small_disk / name)
                subprocess.run(["rm", "-r", str(small_disk / name)], check=True)
            assert list(small_disk.iterdir()) == [ballast]
    ballast.unlink()


def to_mat(system, path):
    export.to_matlab(system, path, version="7.3")


# ------------------------------------------------------------------------- limits of a session

LIMITED = """
import json, resource, sys
from pathlib import Path
from tests.files.test_full_disk import WRITERS
found = {}
for name, write in WRITERS.items():
    for limit in json.loads(sys.argv[2]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write(Path(sys.argv[1]) / f"{name} {limit}")
        except OSError as error:
            found.setdefault(name, []).append([error.errno, str(error)])
print(json.dumps(found))
"""


@pytest.mark.slow  # a full disk, which is told alike: above
def test_a_limit_on_the_size_of_files(tmp_path):
    """As `ulimit -f 16` sets it; nothing ends by a signal."""
    limits = [100, 16 * 1024, 50_000]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIMITED, str(tmp_path), json.dumps(limits)],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env=QUIET,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == WRITERS.keys()
    folders = {"csv", "zarr"}  # of many small files
    for name, errors in found.items():
        assert len(errors) >= (1 if name in folders else 3), name
        for number, said in errors:
            assert number == errno.EFBIG or name == "gguf", (name, said)
            assert "(`ulimit -f`)" in said
    # the files of csv and zarr may fit
    assert all(p.name.split()[0] in folders for p in tmp_path.iterdir())


def test_the_command_line_says_it_in_one_line(tmp_path):
    export.to_netcdf(large_system(), tmp_path / "s.nc")
    command = f"ulimit -f 16; '{sys.executable}' -m depthsys.cli export s.nc --to netcdf --out t.nc"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=False,
        env=QUIET | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: `--out` must lie on a disk with room")
    assert done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["s.nc"]


# ------------------------------------------------------------------------- the patient file


def test_an_error_of_the_library_itself_is_told(tmp_path):
    """Not hidden by what the file pretends."""
    with pytest.raises(TypeError, match="Object dtype"), hdf5_file(tmp_path / "a.h5") as file:
        file["a"] = np.array([{}], object)
    with pytest.raises(FileExistsError), hdf5_file(tmp_path / "a.h5"):  # never over another file
        pass


def test_an_interrupt_inside_the_library_is_kept_for_later(tmp_path, monkeypatch):
    from depthsys.files import hdf5

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hdf5.os, "pwrite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_netcdf(tmp_path / "s.nc", {None: random_system()})


def test_other_errors_of_the_disk_are_not_called_a_full_one(tmp_path):
    with (
        pytest.raises(OSError, match="Input/output error") as caught,
        whole_folder(tmp_path / "s", force=False),
    ):
        raise OSError(errno.EIO, "Input/output error")
    assert caught.value.errno == errno.EIO
    assert list(tmp_path.iterdir()) == []
