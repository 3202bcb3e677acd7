"""The .mat and its receivers without Octave: what is written comes back, layer last."""

import io
import json
import re
import shlex
import struct
import zlib

import h5py
import numpy as np
import pytest
import scipy.io
import typer
import xarray as xr

from depthsys import ltv
from depthsys.cli.app import app
from depthsys.export import mat_file, matlab
from depthsys.export.julia import to_julia
from depthsys.export.matlab import from_matlab, to_matlab
from depthsys.export.plain import NO_GOLDEN
from depthsys.export.schema import migrated
from depthsys.files import MARKER
from depthsys.files.strangers import process
from tests.export.systems import random_system, varying_system, with_companions

VERSIONS = ("5", "7.3")


def exported(system, tmp_path, **options):
    to_matlab(system, tmp_path / "out", **options)
    return tmp_path / "out" / f"{options.get('name', 'depth_system')}.mat"


def stored(path):
    """What a v5 file holds, to change and write again."""
    return {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}


def assert_same(found, system):
    wanted = migrated(system)
    xr.testing.assert_identical(found, wanted)
    kinds = {n: found[n].dtype for n in wanted.variables if wanted[n].dtype.kind != "U"}
    assert kinds == {n: wanted[n].dtype for n in kinds}


# -- there and back


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_written_comes_back(system, tmp_path, version):
    file = exported(system, tmp_path, version=version)
    assert h5py.is_hdf5(file) == (version == "7.3")
    assert_same(from_matlab(file), system)
    assert_same(from_matlab(file.parent), system)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_dtype_and_rank_comes_back(tmp_path, version):
    system = random_system()
    system["io"] = (
        ("depth", "output", "layer", "input"),
        np.random.default_rng(0).random((6, 4, 5, 2)),
    )
    system["flag"] = ("layer",), np.arange(5) % 2 == 0
    system["half"] = ("depth",), np.array([0, 0.25, np.nan, 1, 1.5, -2], dtype=np.float16)
    system["extended"] = ("depth",), np.linspace(0, 0.1, 6).astype(np.longdouble)
    system["count"] = ("thing",), np.array([2**63 + 1, 3], dtype=np.uint64)
    system["small"] = ("thing", "layer"), np.arange(10, dtype=np.int8).reshape(2, 5)
    system["missing"] = ("layer",), np.array([1.0, np.nan, np.inf, -np.inf, 0.0])
    system["words"] = ("layer", "thing"), np.array([[f"{i}{j}" for j in "ab"] for i in range(5)])
    system["nothing"] = ("none", "layer"), np.zeros((0, 5))
    system["title"] = (), "one text"
    assert_same(from_matlab(exported(system, tmp_path, version=version)), system)


@pytest.mark.parametrize("version", VERSIONS)
def test_labels_of_every_kind_come_back(tmp_path, version):
    labels = ["Maß π", r"\theta", r"\x41\u0041", "two\nlines", "", " \U0001f600 "]
    system = random_system(p=6).assign_coords(output_name=("output", np.array(labels)))
    file = exported(system, tmp_path, version=version)
    assert from_matlab(file)["output_name"].values.tolist() == labels
    text = str(mat_file.read(file).variables["output_name"])
    assert text.isascii()
    assert text.split("\n")[1] == r"\theta"


def test_layer_comes_last_and_vectors_are_rows_or_columns(tmp_path):
    system = with_companions(random_system())
    shapes = {n: v.shape for n, v in stored(exported(system, tmp_path)).items()}
    wanted = {"A": (3, 3, 5), "B": (3, 2, 5), "C": (4, 3, 6), "D": (4, 2, 6), "order": (1, 6)}
    wanted |= {"V": (7, 3, 6), "x_ref": (3, 6), "auc": (1, 6), "extra": (7, 1), "y_std": (1, 1)}
    wanted |= {"golden_x0": (3, 1), "golden_u": (2, 5), "golden_x": (3, 6), "golden_y": (4, 6)}
    assert {n: shapes[n] for n in wanted} == wanted


@pytest.mark.parametrize("version", VERSIONS)
def test_the_matrices_are_not_transposed(tmp_path, version):
    system = random_system()
    found = mat_file.read(exported(system, tmp_path, version=version)).variables
    for name in "ABCD":
        np.testing.assert_array_equal(found[name][:, :, 2], system[name].values[2])


def test_about_says_dims_and_units(tmp_path):
    about = json.loads(stored(exported(with_companions(random_system()), tmp_path))["about"].item())
    assert about["matlab_dims"]["V"] == ["feature", "state", "depth"]
    assert about["matlab_dims"]["golden_u"] == ["input", "layer"]
    assert about["variable_attrs"]["x_ref"]["units"] == "mm"
    assert about["variable_attrs"]["B"]["units"] == "state/input"
    assert about["attrs"]["model"] == "none"


def test_version_73_has_the_header_and_classes_of_matlab(tmp_path):
    system = random_system().assign(flag=("layer", np.arange(5) > 2))
    file = exported(system, tmp_path, version="7.3")
    head = file.read_bytes()[:512]
    assert head.startswith(b"MATLAB 7.3 MAT-file, Platform: ")
    assert head[124:128] == b"\x00\x02IM"
    with h5py.File(file) as content:
        assert content.userblock_size == 512
        kinds = {n: content[n].attrs["MATLAB_class"] for n in ("A", "about", "order", "flag")}
        assert kinds == {"A": b"double", "about": b"char", "order": b"int64", "flag": b"logical"}
        assert content["about"].attrs["MATLAB_int_decode"] == 2
        assert content["about"].dtype == np.uint16
        assert content["B"].shape == (5, 2, 3)  # reversed


def test_large_variables_are_written_as_version_73_in_blocks(tmp_path, monkeypatch):
    system = random_system(L=9)
    monkeypatch.setattr(matlab, "LIMIT", system["C"].nbytes)
    monkeypatch.setattr(mat_file, "_BLOCK", 100)
    file = exported(system, tmp_path)
    assert h5py.is_hdf5(file)
    assert_same(from_matlab(file), system)
    with pytest.raises(
        ValueError, match=r"`version` must be '7\.3' for variables of .* got '5' for"
    ):
        to_matlab(system, tmp_path / "other", version="5")


def test_version_73_begins_at_two_gb():
    """Which MATLAB cannot read from version 5; the values here have no memory of their own."""
    for size, write in ((2**31 - 8, mat_file.write_v5), (2**31, mat_file.write_v73)):
        values = np.broadcast_to(np.zeros(1), (size // 8,))
        assert matlab._writer({"A": values}, None) is write


def test_a_text_counts_two_bytes_a_character(monkeypatch):
    monkeypatch.setattr(matlab, "LIMIT", 20)
    for size, write in ((9, mat_file.write_v5), (10, mat_file.write_v73)):
        assert matlab._writer({"about": size * "a"}, None) is write


# -- the folder


def test_the_folder_holds_the_receivers(tmp_path):
    system = with_companions(random_system())
    system["y_std"].attrs["long_name"] = "spread\nof the outputs"
    exported(system, tmp_path, name="plant")
    parts = ("arrays", "data", "load", "simulate", "save")
    names = {"plant.mat", "selfcheck.m", "README.txt", MARKER} | {
        f"plant_{part}.m" for part in parts
    }
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    for path in (tmp_path / "out").glob("*.[mt][!a]*"):
        assert "DEPTH_SYSTEM" not in path.read_text(encoding="utf-8"), path
    readme = (tmp_path / "out" / "README.txt").read_text(encoding="utf-8")
    for part in ("L = 5 layers, n = 3 states, m = 2 inputs, p = 4 outputs", "A(:,:,1)"):
        assert part in readme
    assert re.search(r" x_ref +3 x 6 +\(state, depth\) \[mm\]", readme)
    assert re.search(r" C +4 x 3 x 6 +\(output, state, depth\) \[output/state\]", readme)
    assert re.search(r" output_name +4 x 1 +\(output\) texts", readme)
    assert re.search(r" y_std +1 x 1 +\(\).* spread of the outputs\n", readme)
    assert not re.search(r" \n", readme)
    assert "@" not in readme.replace("(@plant_data", "")


def test_the_readme_says_in_plain_words_first_where_the_system_comes_from(tmp_path):
    given = {"prompts_sha256": "b307", "model": "demo", "n_prompts": 40, "method": "Krylov"}
    given |= {"readout": "profile", "concept": "mean_difference", "created": "2026-11-21"}
    given |= {"note": "order 9 is above the rank", "contract": '{"jvp": 1e-7}', "history": "a\nb"}
    system = random_system(m=1, L=1).assign_attrs(given)
    for write in (to_matlab, to_julia):
        write(system, tmp_path / write.__name__)
        readme = (tmp_path / write.__name__ / "README.txt").read_text(encoding="utf-8")
        first, details = readme.split("\nPROVENANCE\n")[1].split("\n\nDETAILS\n")
        assert first.splitlines() == [
            "model: demo",
            "texts: 40 prompts",
            "method: Krylov (how the states were chosen)",
            "order: 3 (most states at a depth)",
            "readout: profile (what y is)",
            "concept: mean_difference (how the direction was found)",
            "created: 2026-11-21",
            "note: order 9 is above the rank",
        ]
        assert {"prompts_sha256: b307", 'contract: {"jvp": 1e-7}'} <= set(details.splitlines())
        assert "history: a\n    b\n" in details
        assert "model" not in details
        assert "L = 1 layer, n = 3 states, m = 1 input, p = 4 outputs." in readme
    to_matlab(random_system().drop_attrs(deep=False), tmp_path / "bare")
    bare = (tmp_path / "bare" / "README.txt").read_text(encoding="utf-8")
    assert "PROVENANCE\nnot recorded\n\nDETAILS\n" in bare


def test_the_way_back_that_the_folders_show_is_a_command_of_ours(tmp_path):
    """With all it needs, and a file beside the folder: inside, it would make it ambiguous."""
    to_matlab(random_system(), tmp_path / "m", name="plant")
    to_julia(random_system(), tmp_path / "jl", name="plant")
    command = typer.main.get_command(app).commands["import"]
    for file in ("m/README.txt", "m/plant_save.m", "jl/README.txt"):
        text = (tmp_path / file).read_text(encoding="utf-8")
        (line,) = re.findall(r"^[% ]+depthsys import (.*)$", text, re.MULTILINE)
        options = command.make_context("import", shlex.split(line)).params
        assert [str(options[k]) for k in ("file", "original", "out")] == [
            "reduced.mat",
            "system.nc",
            "reduced.nc",
        ]
        assert re.search(r"""(plant_save\('|matwrite\(")\.\./reduced\.mat""", text)


def test_the_functions_are_written_for_matlab_too(tmp_path):
    """No syntax that only Octave knows."""
    exported(random_system(), tmp_path)
    for path in (tmp_path / "out").glob("*.m"):
        for line in path.read_text(encoding="ascii").splitlines():
            code = re.sub(r"'(?:[^'\n]|'')*'", "''", line).split("%")[0]
            assert not re.search(r'["#!]|\+=|\bend(?:if|for|function|while)\b|\bprintf\b', code), (
                line
            )


def test_julia_gets_the_same_mat_and_a_script(tmp_path):
    system = with_companions(random_system())
    to_julia(system, tmp_path / "jl", name="plant")
    names = {"plant.mat", "load_plant.jl", "README.txt", MARKER}
    assert {p.name for p in (tmp_path / "jl").iterdir()} == names
    assert_same(from_matlab(tmp_path / "jl"), system)
    script = (tmp_path / "jl" / "load_plant.jl").read_text()
    assert '"plant.mat"' in script
    assert "NOT RUN" in (tmp_path / "jl" / "README.txt").read_text(encoding="utf-8")


def test_an_earlier_export_is_replaced_with_force_only(tmp_path):
    to_matlab(random_system(), tmp_path / "out")
    with pytest.raises(FileExistsError, match="`path` must not exist yet"):
        to_matlab(random_system(n=2), tmp_path / "out")
    to_matlab(random_system(n=2), tmp_path / "out", force=True)
    assert from_matlab(tmp_path / "out").sizes["state"] == 2


# -- what cannot be written


@pytest.mark.parametrize("name", ["", "1a", "a-b", "end", "endfunction", "x" * 55, "a b", "ä"])
def test_names_must_be_names_of_matlab(tmp_path, name):
    with pytest.raises(
        ValueError, match=r"`name` must be a MATLAB name .* of at most 54 characters"
    ):
        to_matlab(random_system(), tmp_path / "out", name=name)
    assert not (tmp_path / "out").exists()


def test_the_longest_name_is_taken(tmp_path):
    assert exported(random_system(), tmp_path, name="x" * 54).exists()


@pytest.mark.parametrize(
    "name", ["gain full", "for", "changed_by", "x" * 64, "_a", "text_variables"]
)
def test_variables_must_have_names_of_matlab(tmp_path, name):
    system = random_system().assign({name: 1.0})
    with pytest.raises(ValueError, match=f"`{name}` must be a MATLAB name .* Rename it"):
        to_matlab(system, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_batches_and_odd_versions_are_refused(tmp_path):
    batch = random_system().expand_dims(prompt=2)
    with pytest.raises(ValueError, match="`system` must have no batch dims for matlab"):
        to_matlab(batch, tmp_path / "out")
    with pytest.raises(ValueError, match=r"`version` must be '5', '7\.3' or None; got '6'"):
        to_matlab(random_system(), tmp_path / "out", version="6")


# -- files of engineers


@pytest.mark.parametrize("sizes", [{}, {"n": 1, "m": 1, "p": 1, "L": 1}, {"m": 1}, {"L": 1}])
@pytest.mark.parametrize("with_D", [True, False])
def test_a_file_of_four_arrays_is_read(tmp_path, sizes, with_D):
    system = random_system(**sizes, D=with_D)
    names = "ABCD" if with_D else "ABC"
    arrays = {n: system[n].values.transpose(1, 2, 0) for n in names}
    shapes = {n: v.shape[:2] if v.shape[2] == 1 else v.shape for n, v in arrays.items()}
    own = {n: v.reshape(shapes[n]) for n, v in arrays.items()}  # MATLAB drops a last dim of size 1
    scipy.io.savemat(
        tmp_path / "own.mat", own | {"notes": {"a": 1}, "cells": np.array([1.0, "a"], dtype=object)}
    )
    found = from_matlab(tmp_path / "own.mat")
    xr.testing.assert_equal(found[list("ABCD")], migrated(system)[list("ABCD")])
    assert found.attrs["import_note"] == NO_GOLDEN
    assert "model" not in found.attrs


def test_whole_numbers_and_logicals_are_numbers(tmp_path):
    A = np.array([[True, False], [True, True]])
    own = {"A": A, "B": np.ones((2, 1), np.uint8), "C": np.ones((1, 2, 2), np.float32)}
    scipy.io.savemat(tmp_path / "own.mat", own)
    found = from_matlab(tmp_path / "own.mat")
    assert found["A"].dtype == np.float64
    np.testing.assert_array_equal(found["A"].values[0], A)


def changed(tmp_path, system=None, **changes):
    """A v5 export with variables changed; None removes one."""
    file = exported(random_system() if system is None else system, tmp_path)
    content = stored(file) | changes
    content = {n: v for n, v in content.items() if v is not None}
    scipy.io.savemat(tmp_path / "changed.mat", content, long_field_names=True)
    return tmp_path / "changed.mat"


def test_transposed_matrices_are_noticed(tmp_path):
    A = random_system()["A"].values.transpose(2, 1, 0)
    with pytest.raises(ValueError, match=r"changed\.mat.* with every A transposed"):
        from_matlab(changed(tmp_path, A=A))


def test_shifted_layers_are_noticed(tmp_path):
    A = np.roll(random_system()["A"].values.transpose(1, 2, 0), 1, axis=2)
    with pytest.raises(
        ValueError, match=r"must replay its golden trajectory; got .* in x at depth 1"
    ):
        from_matlab(changed(tmp_path, A=A))


@pytest.mark.parametrize("names", [["u"], ["x0"], ["u", "x", "x0", "y"]])
def test_a_file_of_ours_must_hold_its_golden_trajectory(tmp_path, names):
    gone = {f"golden_{name}": None for name in names}
    with pytest.raises(ValueError, match=re.escape(f"must hold {sorted(gone)}, too; got")):
        from_matlab(changed(tmp_path, **gone))


def test_rows_and_columns_are_both_vectors(tmp_path):
    system = random_system()
    found = from_matlab(changed(tmp_path, order=np.full((6, 1), 3.0), layer=np.arange(5.0)))
    assert_same(found, system)


def without_digests(path):
    """As exports were before they had them."""
    content = stored(path)
    about = json.loads(content["about"].item())
    del about["digests"]
    scipy.io.savemat(path, content | {"about": json.dumps(about)}, long_field_names=True)
    return path


def test_companions_must_be_those_that_were_exported(tmp_path):
    system = with_companions(random_system())
    file = changed(tmp_path, system, y_ref=system["y_ref"].values.T + 1e-15)
    with pytest.raises(
        ValueError, match=r"changed\.mat.* got other values, or axes, in \['y_ref'\]"
    ):
        from_matlab(file)
    found = from_matlab(without_digests(file))
    np.testing.assert_array_equal(found["y_ref"], system["y_ref"] + 1e-15)


def test_numbers_that_no_longer_fit_their_dtype_are_kept(tmp_path):
    system = random_system().assign(count=("layer", np.arange(5)))
    file = changed(tmp_path, system, count=np.arange(5) + 0.5)
    found = from_matlab(without_digests(file))
    np.testing.assert_array_equal(found["count"], np.arange(5) + 0.5)


def test_a_changed_state_drops_what_belonged_to_the_old_one(tmp_path):
    """As NAME_save.m leaves it; run in Octave by test_octave."""
    small = with_companions(random_system(n=2, seed=3))
    to_matlab(small, tmp_path / "small")
    new = {n: v for n, v in stored(tmp_path / "small" / "depth_system.mat").items() if n in "ABCDW"}
    golden = stored(tmp_path / "small" / "depth_system.mat")
    new |= {n: v for n, v in golden.items() if n.startswith("golden")}
    full = with_companions(random_system())
    gone = {"x_ref": None, "V": None, "W": None, "order": np.full((1, 6), 2.0)}
    bases = {"V": np.ones((9, 2, 6)), "W": np.ones((9, 2, 6))}
    file = changed(tmp_path, full, **gone | new, changed_by="Octave")
    found = from_matlab(file)
    assert found.sizes["state"] == 2
    assert "V" not in found
    assert "x_ref" not in found
    xr.testing.assert_equal(found["A"], migrated(small)["A"])
    xr.testing.assert_equal(found["y_ref"], full["y_ref"].assign_coords(found["y_ref"].coords))
    assert found.attrs["changed_by"] == "Octave"
    assert found.attrs["order"] == 2
    assert found.attrs["model"] == "none"
    assert from_matlab(without_digests(file)).identical(found)
    (tmp_path / "damaged").mkdir()
    damaged = changed(tmp_path / "damaged", full, **gone | new, changed_by="Octave", auc=np.ones(6))
    with pytest.raises(ValueError, match=r"got other values, or axes, in \['auc'\]"):
        from_matlab(damaged)
    (tmp_path / "again").mkdir()
    plain = random_system()
    file = changed(tmp_path / "again", plain, **gone | new | bases, changed_by="Octave")
    assert dict(from_matlab(file)["V"].sizes) == {"depth": 6, "feature": 9, "state": 2}


# -- what is refused


def test_missing_files_and_crowded_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` must be an existing file"):
        from_matlab(tmp_path / "none.mat")
    with pytest.raises(ValueError, match=r"a folder with one; got .* with none"):
        from_matlab(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.mat").touch()
    with pytest.raises(ValueError, match=r"a folder with one; got .* with \['a.mat', 'b.mat'\]"):
        from_matlab(tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path, version, share):
    file = exported(with_companions(random_system(n=9, L=9)), tmp_path, version=version)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"must (be a whole \.mat|hold).*depth_system\.mat"):
        from_matlab(file)


def cuts(content):
    """Every 64th byte, and the ends of the variables of a file of version 5 or 7."""
    ends, at = [], 128
    while at < len(content):
        ends.append(at)
        _, size = struct.unpack_from("<II", content, at)
        at += 8 + size
    assert at == len(content)
    return sorted({*ends, *range(0, len(content), 64), len(content) - 1})


def assert_refused_when_cut(file, one_of=1):
    """At the ends of all parts, and every 64 bytes of HDF5; or at one of so many of these."""
    content = file.read_bytes()
    places = range(0, len(content), 64) if h5py.is_hdf5(file) else sorted(cuts(content))
    for cut in places[::one_of]:
        file.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"must (be a whole \.mat|hold)"):
            from_matlab(file)
    file.write_bytes(content)
    from_matlab(file)


@pytest.mark.parametrize("one_of", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_of_ours_is_refused_wherever_it_is_cut(tmp_path, version, one_of):
    """Also where a variable ends: it is not taken for somebody's A, B and C."""
    file = exported(with_companions(random_system()), tmp_path, version=version)
    assert_refused_when_cut(file, one_of)


@pytest.mark.parametrize("version", VERSIONS)
def test_too_little_memory_is_no_damaged_file(tmp_path, monkeypatch, version):
    to_matlab(random_system(), tmp_path / "a", version=version)
    monkeypatch.setattr(process, "half_of_memory", lambda: 100)
    with pytest.raises(ValueError, match=r"declares .* and half of the memory that is free is 100"):
        from_matlab(tmp_path / "a")


def test_foreign_files_are_refused(tmp_path):
    text = tmp_path / "text.mat"
    text.write_text("# Created by Octave 7.3.0\n# name: A\n# type: scalar\n1\n")
    with pytest.raises(ValueError, match=r"whole \.mat file; got '.*text\.mat'.*'-v7'"):
        from_matlab(text)
    with h5py.File(tmp_path / "other.mat", "w") as file:
        file["A"] = np.ones(3)
        file.create_group("B")
    with pytest.raises(
        ValueError, match=r"must hold arrays A, B and C; got '.*other\.mat' without"
    ):
        from_matlab(tmp_path / "other.mat")
    scipy.io.savemat(tmp_path / "cells.mat", {"A": {"a": 1}, "B": np.ones(3)})
    with pytest.raises(
        ValueError, match=r"without \['A', 'C'\], with \['B'\]\. `A` is a struct; save its arrays"
    ):
        from_matlab(tmp_path / "cells.mat")


def element(kind, content):
    """Of a .mat of version 5."""
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def v5(**arrays):
    file = io.BytesIO()
    scipy.io.savemat(file, arrays)
    return file.getvalue()


def matlab_object(name, kind=b"ss"):
    """As MATLAB saves objects of its newer classes, ss among them: they have no size."""
    flags = element(6, struct.pack("<II", 17, 0))
    texts = b"".join(element(1, text) for text in (name, b"MCOS", kind))
    return element(
        14, flags + texts + v5(x=np.array([[0xDD000000, 2, 1, 1, 1, 1]], np.uint32))[128:]
    )


def function_workspace():
    """What MATLAB appends to a file with objects: numbers without a name."""
    named = struct.pack("<HHI", 1, 1, ord("x"))
    return v5(x=np.zeros(16, np.uint8))[128:].replace(named, struct.pack("<II", 1, 0))


@pytest.mark.parametrize("compressed", [True, False])
def test_objects_of_matlab_are_named_and_other_arrays_read(tmp_path, compressed):
    objects = [matlab_object(b"sys"), matlab_object(b"results", b"table")]
    if compressed:
        packed = [zlib.compress(o) for o in objects]
        objects = [struct.pack("<II", 15, len(o)) + o for o in packed]
    tail = b"".join(objects) + function_workspace()
    (tmp_path / "lost.mat").write_bytes(v5(t=1.0) + tail)
    with pytest.raises(
        ValueError,
        match=r"without \['A', 'B', 'C'\], with \['t'\]\. `sys` is an object; save its arrays\. "
        r"`results` is an object",
    ):
        from_matlab(tmp_path / "lost.mat")
    system = random_system()
    arrays = {n: system[n].values.transpose(1, 2, 0) for n in "ABCD"}
    (tmp_path / "own.mat").write_bytes(v5(**arrays) + tail)
    xr.testing.assert_equal(from_matlab(tmp_path / "own.mat")["A"], migrated(system)["A"])


def test_what_is_no_array_is_named_in_version_73(tmp_path):
    file = exported(random_system(), tmp_path, version="7.3")
    with h5py.File(file, "r+") as content:
        content["A"].attrs["MATLAB_class"] = np.bytes_("ss")
        for name, kind in (("B", "struct"), ("C", "double")):
            del content[name]
            content.create_group(name).attrs["MATLAB_class"] = np.bytes_(kind)
        content["C"].attrs["MATLAB_sparse"] = np.uint64(4)
        content.create_group("#refs#")
    assert mat_file.read(file).others == {
        "A": "an object",
        "B": "a struct",
        "C": "a sparse matrix",
    }
    with pytest.raises(
        ValueError, match=r"`A` is an object; .* `B` is a struct; .* sparse matrix; save full\(C\)"
    ):
        from_matlab(file)


def test_a_feedthrough_that_cannot_be_read_is_not_taken_for_zero(tmp_path):
    system = random_system(L=1)
    own = {n: system[n].values.transpose(1, 2, 0) for n in "ABC"} | {"D": scipy.sparse.eye(4, 2)}
    scipy.io.savemat(tmp_path / "own.mat", own)
    with pytest.raises(ValueError, match=r"without \['D'\].* a sparse matrix; save full\(D\)"):
        from_matlab(tmp_path / "own.mat")


@pytest.mark.parametrize(
    "sizes", [{}, {"n": 1, "m": 1, "p": 1}, {"L": 1}, {"n": 5, "m": 5, "p": 5}]
)
@pytest.mark.parametrize("names", ["ABC", "ABCD"])
def test_layer_first_is_noticed(tmp_path, sizes, names):
    system = random_system(**sizes)
    own = {n: system[n].values for n in names}
    kept = {n: v.reshape(v.shape[: max(2, v.ndim - (v.shape[2] == 1))]) for n, v in own.items()}
    for given in (own, kept):  # MATLAB drops a last dim of size 1
        scipy.io.savemat(tmp_path / "own.mat", given)
        with pytest.raises(
            ValueError,
            match=r"layer or depth last; got .*own\.mat' with A \(.*: layer comes first here\. "
            r"Save permute\(A, \[2 3 1\]\)",
        ):
            from_matlab(tmp_path / "own.mat")


def own_file(tmp_path, **changes):
    system = random_system()
    arrays = {n: system[n].values.transpose(1, 2, 0) for n in "ABCD"} | changes
    scipy.io.savemat(tmp_path / "own.mat", arrays)
    return tmp_path / "own.mat"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"A": np.ones((3, 3, 6))}, r"`A` of .* must have shape \(3, 3, 5\) .*got \(3, 3, 6\)"),
        ({"A": np.ones((5, 3, 3))}, r"`A` of .*own\.mat.* must have shape"),
        ({"B": np.ones((2, 3, 5))}, r"`B` of .* must have shape \(3, 3, 5\)"),
        ({"D": np.ones((4, 2))}, r"`D` of .* must have shape \(4, 2, 6\)"),
        ({"C": np.ones((4, 3))}, r"`C` of .* must have dims \(output, state, depth\)"),
        ({"C": "text"}, r"`C` of .* must have dims"),
        ({"A": "text"}, r"`A` of .* must have shape .* got \(\)"),
        ({"A": np.ones((3, 3, 5)) * 1j}, r"`A` of .* must hold real numbers; got complex128"),
        ({"A": np.full((3, 3, 5), np.nan)}, r"must hold a system; got .*own\.mat.*finite"),
        (
            {"D": np.ones((4, 2, 6))},
            r"must hold a system; got .*`D` must be zero at the last depth",
        ),
        ({"about": "mine"}, r"must hold a description in JSON; got 'mine'"),
        ({"about": "{}"}, r"must be an export of depthsys; got a file without its description"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        from_matlab(own_file(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": None}, r"must hold \['order'\], too"),
        ({"input_name": "one"}, "`input_name` of .* must hold 2 texts, a line each; got 1"),
        ({"input_name": np.ones((1, 2))}, "must hold 2 texts, a line each; got numbers"),
        ({"golden_u": np.ones((5, 2))}, r"`golden_u` of .* must have shape \(2, 5\)"),
        ({"golden_x0": np.ones((1, 4))}, r"`golden_x0` of .* must have shape \(3,\)"),
    ],
)
def test_wrong_variables_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        from_matlab(changed(tmp_path, **changes))


@pytest.mark.parametrize("part", ["sizes", "dtypes", "one size"])
def test_the_description_of_another_format_is_refused(tmp_path, part):
    file = exported(random_system(), tmp_path)
    content = stored(file)
    about = json.loads(content["about"].item())
    if part == "one size":
        del about["sizes"]["layer"]
    else:
        del about[part]
    scipy.io.savemat(file, content | {"about": json.dumps(about)}, long_field_names=True)
    with pytest.raises(ValueError, match=r"must be an export of `to_matlab`; got .* another"):
        from_matlab(file)


def test_a_varying_order_comes_back(tmp_path):
    found = from_matlab(exported(varying_system(), tmp_path))
    np.testing.assert_array_equal(found["order"], [2, 3, 3, 1, 2, 4])
    np.testing.assert_allclose(ltv.gains(found), ltv.gains(varying_system()))


def test_a_golden_trajectory_without_its_description_is_refused(tmp_path):
    """Not taken for a file of somebody's own."""
    with pytest.raises(ValueError, match=r"must hold \['about'\], too; got .* without its descr"):
        from_matlab(changed(tmp_path, about=None))
