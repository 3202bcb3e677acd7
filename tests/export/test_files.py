"""netCDF, Zarr, npz, JSON, CSV: what is written comes back, and nothing else is accepted."""

import csv
import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import xarray as xr

from depthsys import export, ltv
from depthsys.export import json_text
from depthsys.export.schema import MEANINGS
from tests.export.systems import SYSTEMS, random_system, varying_system, with_companions

PAIRS = {
    "nc": (export.to_netcdf, export.from_netcdf),
    "zarr": (export.to_zarr, export.from_zarr),
    "npz": (export.to_npz, export.from_npz),
    "json": (export.to_json, export.from_json),
}
ONE = ("npz", "json")
HARDEST = ("plain", "varying")  # by default of what takes longer to write
SCHEMA_1 = Path(__file__).with_name("schema1.nc")


def with_meanings(system: xr.Dataset) -> xr.Dataset:
    for name in [name for name in MEANINGS if name in system.variables]:
        said = dict(zip(("long_name", "units"), MEANINGS[name], strict=True))
        named = system[name].assign_attrs(said | system[name].attrs)
        system = system.assign_coords({name: named} if name in system.coords else {}).assign(
            {} if name in system.coords else {name: named}
        )
    return system


def complete(system: xr.Dataset) -> xr.Dataset:
    """What a round trip adds: names for inputs and outputs that have none, meanings, units."""
    if "input_name" not in system.coords:
        names = np.array([f"u{i}" for i in range(system.sizes["input"])])
        system = system.assign_coords(input_name=("input", names))
    if "output_name" not in system.coords:
        names = np.array([f"y{i}" for i in range(system.sizes["output"])])
        system = system.assign_coords(output_name=("output", names))
    return with_meanings(system)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=[] if kind in ONE or name in HARDEST else [pytest.mark.slow])
        for kind in PAIRS
        for name in SYSTEMS
    ],
)
def test_nothing_is_lost(kind, name, tmp_path):
    write, read = PAIRS[kind]
    system = with_companions(SYSTEMS[name]())
    before = system.copy(deep=True)
    write(system, tmp_path / f"s.{kind}")
    again = read(tmp_path / f"s.{kind}")
    xr.testing.assert_identical(again, complete(system))
    xr.testing.assert_identical(system, before)
    for name, variable in again.variables.items():
        assert variable.dtype.kind == complete(system)[name].dtype.kind, name
    write(again, tmp_path / f"t.{kind}")  # and again, from what was read
    xr.testing.assert_identical(read(tmp_path / f"t.{kind}"), again)


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_batches_are_kept(kind, tmp_path):
    write, read = PAIRS[kind]
    members = [
        [with_companions(random_system(seed=10 * i + j)) for j in range(3)] for i in range(2)
    ]
    batch = xr.concat([xr.concat(row, dim="prompt") for row in members], dim="task")
    batch = batch.assign_coords(task=["sst2", "imdb"], prompt=[4, 5, 9])
    write(batch, tmp_path / f"s.{kind}")
    xr.testing.assert_identical(read(tmp_path / f"s.{kind}"), complete(batch))


@pytest.mark.parametrize("kind", ["npz", "json", "csv"])
def test_formats_for_one_system_say_which_to_select(kind, tmp_path):
    batch = xr.concat([random_system(seed=i) for i in range(3)], dim="prompt")
    with pytest.raises(ValueError, match=r"no batch dims.*'prompt': 3.*isel\(prompt=0\)"):
        getattr(export, f"to_{kind}")(batch, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
    getattr(export, f"to_{kind}")(batch.isel(prompt=1), tmp_path / "s")


@pytest.mark.parametrize("kind", [*PAIRS, "csv"])
def test_nothing_is_overwritten_unless_asked_for(kind, tmp_path):
    write = PAIRS[kind][0] if kind in PAIRS else export.to_csv
    path = tmp_path / "deep" / f"s.{kind}"
    write(random_system(seed=0), path)
    with pytest.raises(FileExistsError, match=r"must not exist yet.*--force"):
        write(random_system(seed=1), path)
    write(random_system(seed=2), path, force=True)
    if kind in PAIRS:
        assert (PAIRS[kind][1](path)["A"].values == random_system(seed=2)["A"].values).all()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", PAIRS)
def test_a_transposed_file_is_refused(kind, padded, tmp_path):
    """Sizes agree everywhere, or states are padded, and still every A arrives transposed."""
    write, read = PAIRS[kind]
    path = tmp_path / f"s.{kind}"
    system = varying_system() if padded else random_system(n=5, m=5, p=5, L=5)
    write(system, path)
    turned = system["A"].values.swapaxes(1, 2)
    if kind == "nc":
        with h5py.File(path, "r+") as file:
            file["A"][...] = turned
    elif kind == "zarr":
        import zarr

        zarr.open_group(path)["A"][...] = turned
    elif kind == "npz":
        arrays = dict(np.load(path)) | {"A": turned}
        np.savez(path, **arrays)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"A": turned.tolist()}))
    with pytest.raises(ValueError, match="with every A transposed"):
        read(path)


@pytest.mark.parametrize("kind", ["nc", "npz", "json"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_refused(kind, part, tmp_path):
    write, read = PAIRS[kind]
    path = tmp_path / f"s.{kind}"
    write(with_companions(random_system()), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match=r"`path` must|must hold|must be an export"):
        read(path)


def test_a_zarr_store_with_a_missing_part_is_refused(tmp_path):
    path = tmp_path / "s.zarr"
    for lost in ("zarr.json", "A/zarr.json", "A/c"):
        export.to_zarr(random_system(), path, force=True)
        victim = path / lost
        if victim.is_dir():
            for chunk in [p for p in victim.rglob("*") if p.is_file()]:
                chunk.unlink()
        else:
            victim.unlink()
        with pytest.raises(ValueError, match=r"must"):
            export.from_zarr(path)


@pytest.mark.parametrize("lost", ["V", "v", "order", "output_name", "layer", "y_std"])
def test_a_zarr_store_without_a_variable_is_refused(lost, tmp_path):
    export.to_zarr(with_companions(random_system()), tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr" / lost)
    with pytest.raises(ValueError, match=rf"must hold \['{lost}'\], too|must"):
        export.read(tmp_path / "s.zarr")


@pytest.mark.parametrize("kind", ["npz", "nc"])
def test_what_the_golden_trajectory_does_not_reach_has_a_digest(kind, tmp_path):
    """V of a square basis, transposed: no run of the system can tell."""
    system = with_companions(random_system(n=7))
    path = tmp_path / f"s.{kind}"
    PAIRS[kind][0](system, path)
    turned = system["V"].values.swapaxes(1, 2)
    if kind == "npz":
        np.savez(path, **dict(np.load(path)) | {"V": turned})
    else:
        with h5py.File(path, "r+") as file:
            file["V"][...] = turned
    with pytest.raises(ValueError, match=r"must hold what was exported; got .* in \['V'\]"):
        PAIRS[kind][1](path)


@pytest.mark.parametrize(
    "seed", [pytest.param(i, marks=[pytest.mark.slow] if i >= 10 else []) for i in range(40)]
)
@pytest.mark.parametrize("kind", ["npz", "json", "nc"])
def test_damaged_bytes_are_refused_or_harmless(kind, seed, tmp_path):
    path = tmp_path / f"s.{kind}"
    system = with_companions(random_system())
    PAIRS[kind][0](system, path)
    content = bytearray(path.read_bytes())
    place = np.random.default_rng(seed).integers(len(content))
    content[place] ^= 1 << int(seed % 8)
    path.write_bytes(content)
    try:
        again = PAIRS[kind][1](path)
    except ValueError:  # anything else is a traceback
        return
    xr.testing.assert_equal(again[[*"ABCD", "V"]], complete(system)[[*"ABCD", "V"]])


@pytest.mark.parametrize("text", ["[" * 100_000, "NaN", '{"A": 1' + "0" * 5000 + "}"])
def test_strange_json_is_refused(text, tmp_path):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ValueError, match="must"):
        export.read(tmp_path / "s.json")


@pytest.mark.parametrize("kind", PAIRS)
def test_signs_of_zeros_and_of_what_is_no_number_do_not_count(kind, tmp_path):
    if kind == "json":
        pytest.skip("JSON has no nan")
    odd = np.array([-np.nan, -0.0, 0.0, np.nan, 1.0])
    system = random_system().assign(odd=("layer", odd))
    PAIRS[kind][0](system, tmp_path / f"s.{kind}")
    again = PAIRS[kind][1](tmp_path / f"s.{kind}")
    np.testing.assert_array_equal(again["odd"], odd)


@pytest.mark.parametrize("kind", PAIRS)
def test_a_missing_file_is_named(kind, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PAIRS[kind][1](tmp_path / f"nowhere.{kind}")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        export.read(tmp_path / f"nowhere.{kind}")


def test_read_knows_every_format_and_refuses_pickles(tmp_path):
    system = random_system()
    for kind, (write, _) in PAIRS.items():
        write(system, tmp_path / f"s.{kind}")
        xr.testing.assert_identical(export.read(tmp_path / f"s.{kind}"), complete(system))
    (tmp_path / "s.zarr").rename(tmp_path / "store")
    xr.testing.assert_identical(export.read(tmp_path / "store"), complete(system))
    for name in ("s.pkl", "s.pt"):
        (tmp_path / name).write_bytes(pickle.dumps({"A": 1}))
        with pytest.raises(ValueError, match="Pickles are refused"):
            export.read(tmp_path / name)
    (tmp_path / "s.txt").write_text("A")
    with pytest.raises(ValueError, match=r"must be one of \.nc, \.zarr, \.mat"):
        export.read(tmp_path / "s.txt")


def test_a_pickle_inside_an_npz_is_refused_and_does_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    arrays = {"about": np.array(json.dumps({"format": "depthsys system"}))}
    np.savez(tmp_path / "s.npz", A=np.array([Bomb()], dtype=object), **arrays)
    with pytest.raises(ValueError, match="without pickles"):
        export.from_npz(tmp_path / "s.npz")
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="without pickles"):
        export.from_npz(tmp_path / "p.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(ValueError, match=r"whole \.npz"):
        export.from_npz(tmp_path / "one.npz")
    assert not (tmp_path / "exploded").exists()


def test_an_npz_of_an_engineer_with_nothing_but_matrices(tmp_path):
    system = random_system()
    matrices = {name: system[name].values for name in "ABCD"}
    np.savez(tmp_path / "own.npz", **matrices)
    again = export.read(tmp_path / "own.npz")
    assert "without a golden trajectory" in again.attrs["import_note"]
    for name, values in matrices.items():
        np.testing.assert_array_equal(again[name], values)
    matrices.pop("D")
    np.savez(tmp_path / "own.npz", **matrices)
    assert not export.read(tmp_path / "own.npz")["D"].any()
    np.savez(tmp_path / "own.npz", **matrices | {"A": matrices["A"][:4]})
    with pytest.raises(ValueError, match=r"must hold a system.*must have shape \(4, 3, 2\)"):
        export.read(tmp_path / "own.npz")
    matrices.pop("B")
    np.savez(tmp_path / "own.npz", **matrices)
    with pytest.raises(ValueError, match=r"must hold arrays A, B and C; got .* without \['B'\]"):
        export.read(tmp_path / "own.npz")


def test_a_part_of_a_golden_trajectory_is_refused(tmp_path):
    export.to_npz(random_system(), tmp_path / "s.npz")
    arrays = dict(np.load(tmp_path / "s.npz"))
    arrays.pop("golden_y")
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(ValueError, match=r"must hold \['golden_y'\], too"):
        export.read(tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"golden_x": np.zeros((6, 2))}, "a golden trajectory of one size per dim"),
        ({"golden_y": np.array([["1"] * 4] * 6)}, "a golden y of numbers with"),
        ({"golden_u": 1j * np.ones((5, 2))}, "a golden u of numbers with"),
        ({"about": np.array("[" * 100_000)}, "a description in JSON"),
        ({"order": np.array(["3"] * 6)}, r"must hold what was exported; got .* in \['order'\]"),
    ],
)
def test_arrays_that_make_no_sense_are_refused(change, message, tmp_path):
    export.to_npz(random_system(), tmp_path / "s.npz")
    np.savez(tmp_path / "s.npz", **dict(np.load(tmp_path / "s.npz")) | change)
    with pytest.raises(ValueError, match=message):
        export.read(tmp_path / "s.npz")


def test_a_folder_of_a_python_export_is_read(tmp_path):
    for write in (export.to_control_files, export.to_pymor_files):
        write(random_system(), tmp_path / "s", force=True)
        assert (export.read(tmp_path / "s")["A"].values == random_system()["A"].values).all()
    export.to_csv(random_system(), tmp_path / "tables")
    with pytest.raises(ValueError, match="CSV is not read back"):
        export.read(tmp_path / "tables")


def test_foreign_files_are_refused(tmp_path):
    np.savez(tmp_path / "f.npz", A=np.ones(3))
    with pytest.raises(ValueError, match="must hold arrays A, B and C"):
        export.from_npz(tmp_path / "f.npz")
    for text in ("[1, 2]", '{"A": 1}', "{", '{"A": [[1], [1, 2]], "about": {}}', "\xff"):
        (tmp_path / "f.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match="must"):
            export.from_json(tmp_path / "f.json")
    xr.Dataset({"A": 1}).to_netcdf(tmp_path / "f.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"must hold the variable 'B'|must end in dims"):
        export.from_netcdf(tmp_path / "f.nc")


def test_parts_that_do_not_fit_each_other_are_named(tmp_path):
    path = tmp_path / "s.npz"
    export.to_npz(random_system(), path)
    arrays = dict(np.load(path))
    for change, message in (
        ({"A": arrays["A"][..., :2]}, "one size per dim"),
        ({"A": arrays["A"][0]}, r"`A` of .* must have dims \['layer', 'state_next', 'state'\]"),
        ({"layer": None}, r"must hold \['layer'\], too"),
        ({"about": np.array("{")}, "description in JSON"),
    ):
        np.savez(path, **{k: v for k, v in (arrays | change).items() if v is not None})
        with pytest.raises(ValueError, match=message):
            export.from_npz(path)


@pytest.mark.parametrize(
    "change",
    [
        {"dims": None},
        {"dims": {"A": "layer"}},
        {"dims": {"A": [1, 2, 3]}},
        {"coords": ["nothing"]},
        {"coords": "layer"},
        {"attrs": None},
        {"attrs": {"odd": [1]}},
        {"variable_attrs": None},
        {"variable_attrs": {"A": 3}},
        {"variable_attrs": {"A": {"odd": {}}}},
        {"golden_dims": None},
        {"golden_dims": {"z": ["state"]}},
        {"golden_dims": {"x0": ["state", "output"]}},
        {"format": "other"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["npz", "json", "mat"])
def test_a_description_that_was_tampered_with_is_refused(kind, change, tmp_path):
    if kind == "mat":
        export.to_matlab(random_system(), tmp_path / "s")
        path = tmp_path / "s" / "depth_system.mat"
        stored = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}
        about = json.loads(stored["about"].item()) | change
        scipy.io.savemat(path, stored | {"about": json.dumps(about)})
    else:
        path = tmp_path / f"s.{kind}"
        PAIRS[kind][0](random_system(), path)
        if kind == "npz":
            arrays = dict(np.load(path))
            arrays["about"] = np.array(json.dumps(json.loads(str(arrays["about"])) | change))
            np.savez(path, **arrays)
        else:
            content = json.loads(path.read_text())
            content["about"] |= change
            path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"must"):
        export.read(path)


def test_a_file_without_a_golden_trajectory_says_so(tmp_path):
    system = complete(random_system())
    system.to_netcdf(tmp_path / "s.nc", engine="h5netcdf")
    again = export.from_netcdf(tmp_path / "s.nc")
    assert "without a golden trajectory" in again.attrs["import_note"]
    export.to_netcdf(again, tmp_path / "t.nc")  # now it has one, made of what nobody has checked
    note = "which was made after it had come without one"
    later = export.from_netcdf(tmp_path / "t.nc")
    assert note in later.attrs["import_note"]
    export.to_npz(later, tmp_path / "u.npz")
    assert export.read(tmp_path / "u.npz").attrs["import_note"] == later.attrs["import_note"]


def test_older_schemas_are_migrated_and_newer_refused(tmp_path):
    """A file that `lm.identify` of the last schema wrote."""
    stored = xr.load_dataset(SCHEMA_1, engine="h5netcdf")
    assert stored.attrs["schema_version"] == 1
    system = export.from_netcdf(SCHEMA_1)
    assert system.attrs["schema_version"] == ltv.SCHEMA_VERSION == 2
    assert system["input_name"].values.tolist() == ["concept"]
    assert system["output_name"].values.tolist() == ["concept"]
    assert system["B"].attrs["units"] == "state/input"
    assert system["v"].attrs["long_name"] == "concept direction of each input"
    for name in stored.variables:
        np.testing.assert_array_equal(system[name], stored[name])
    bare = random_system().drop_vars("order").assign_attrs(schema_version=1)
    export.to_npz(bare, tmp_path / "s.npz")
    again = export.from_npz(tmp_path / "s.npz")
    assert again["order"].values.tolist() == [3] * 6
    assert again["input_name"].values.tolist() == ["u0", "u1"]
    stored.attrs["schema_version"] = 3
    stored.to_netcdf(tmp_path / "new.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="schema_version <= 2; got 3"):
        export.from_netcdf(tmp_path / "new.nc")


def test_labels_of_inputs_become_names(tmp_path):
    system = random_system().assign_coords(input=["mood", "topic"])
    export.to_netcdf(system, tmp_path / "s.nc")
    assert export.read(tmp_path / "s.nc")["input_name"].values.tolist() == ["mood", "topic"]


@pytest.mark.parametrize("kind", [*PAIRS, "csv"])
def test_attributes_that_no_file_holds_are_named(kind, tmp_path):
    write = PAIRS[kind][0] if kind in PAIRS else export.to_csv
    for value in ([1, 2], None, True, {"a": 1}):
        with pytest.raises(ValueError, match=r"`system.attrs\['odd'\]` must be a number or a text"):
            write(random_system().assign_attrs(odd=value), tmp_path / "s")
    system = random_system()
    system["A"].attrs["odd"] = [1]
    with pytest.raises(ValueError, match=r"`A.attrs\['odd'\]` must be"):
        write(system, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [*PAIRS, "csv"])
def test_names_and_attributes_that_change_what_is_read_are_refused(kind, tmp_path):
    write = PAIRS[kind][0] if kind in PAIRS else export.to_csv
    for name in ("a/b", "file", "golden", "about", "golden_x", ""):
        with pytest.raises(ValueError, match="Rename it"):
            write(random_system().assign({name: 1.0}), tmp_path / "s")
    for key, value in (
        ("scale_factor", 2.0),
        ("_FillValue", 0.0),
        ("coordinates", "A"),
        ("dtype", "bool"),
        ("units", "days since 2000-01-01"),
    ):
        system = random_system()
        system["A"].attrs[key] = value
        with pytest.raises(ValueError, match="by which netCDF says how numbers are stored"):
            write(system, tmp_path / "s")
    for value in (2**64, "a\0b"):
        with pytest.raises(ValueError, match="must fit into 64 bits, or be a text without NUL"):
            write(random_system().assign_attrs(odd=value), tmp_path / "s")
    with pytest.raises(ValueError, match="must be a number or a text"):
        write(random_system().assign_attrs({3: "odd"}), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", PAIRS)
def test_texts_numbers_and_encodings_of_every_kind(kind, tmp_path):
    system = random_system().assign_attrs(
        text=np.str_("a"), count=np.int32(3), part=np.float32(0.5)
    )
    labels = np.array(["a", "bcd"], np.dtypes.StringDType())
    system = system.assign_coords(input_name=("input", labels), flag=("layer", np.arange(5) > 2))
    system["A"].encoding = {"dtype": "float32", "scale_factor": 0.5}
    PAIRS[kind][0](system, tmp_path / f"s.{kind}")
    again = PAIRS[kind][1](tmp_path / f"s.{kind}")
    np.testing.assert_array_equal(again["A"], system["A"])
    assert again["input_name"].values.tolist() == ["a", "bcd"]
    assert again["flag"].dtype == bool
    assert (again.attrs["text"], again.attrs["count"], again.attrs["part"]) == ("a", 3, 0.5)


def test_variables_that_no_array_holds_are_named(tmp_path):
    odd = random_system().assign(odd=("layer", np.array([1, None, "a", {}, []], dtype=object)))
    with pytest.raises(ValueError, match=r"`odd` must hold numbers or texts; got dtype object"):
        export.to_npz(odd, tmp_path / "s.npz")
    with pytest.raises(ValueError, match="names that files can have; got 'a/b'"):
        export.to_csv(random_system().assign({"a/b": 1.0}), tmp_path / "s")


def test_json_is_for_small_and_finite_systems(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"finite for json; got infinity in \['auc'\]"):
        export.to_json(random_system().assign(auc=np.inf), tmp_path / "s.json")
    unknown = random_system().assign(auc=("x", [0.5, np.nan]))
    export.to_json(unknown, tmp_path / "unknown.json")
    text = (tmp_path / "unknown.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["auc"] == [0.5, None]  # no NaN in JSON
    np.testing.assert_array_equal(export.read(tmp_path / "unknown.json")["auc"], [0.5, np.nan])
    monkeypatch.setattr(json_text, "LIMIT", 100)
    with pytest.raises(ValueError, match=r"at most 100 numbers for json; got \d+"):
        export.to_json(random_system(), tmp_path / "s.json")


def test_json_is_nested_lists_by_layer(tmp_path):
    system = random_system()
    export.to_json(system, tmp_path / "s.json")
    A = json.loads((tmp_path / "s.json").read_text())["A"]
    assert A[4][2][1] == float(system["A"][4, 2, 1])


def test_csv_holds_every_number_in_its_place(tmp_path, system):
    export.to_csv(system, tmp_path / "s")
    for name in ("A", "B", "C", "D", "V", "x_ref", "order", "auc", "y_std", "output_name"):
        with (tmp_path / "s" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        variable = system[name]
        if variable.ndim > 1:
            names = [f"{variable.dims[-1]}_{i}" for i in range(variable.shape[-1])]
            assert header == [*variable.dims[:-1], *names]
        else:
            assert header == [*variable.dims, name]
        index = len(header) - (variable.shape[-1] if variable.ndim > 1 else 1)
        assert len(rows) == int(
            np.prod(variable.shape[:-1] if variable.ndim > 1 else variable.shape)
        )
        for row in rows:
            place = tuple(int(i) for i in row[:index])
            wanted = variable.values[place]
            got = row[index:] if variable.dtype.kind == "U" else [float(v) for v in row[index:]]
            assert got == np.atleast_1d(wanted).tolist()
    assert {p.name for p in (tmp_path / "s").glob("golden_*")} == {
        f"golden_{n}.csv" for n in ("x0", "u", "x", "y")
    }
    assert "count from 0" in (tmp_path / "s" / "README.txt").read_text()
