"""CSV: the script that reads the tables where depthsys is not installed, and the way back."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from depthsys import export
from depthsys.export.receivers import load_control, load_csv
from depthsys.files import contents
from tests.export.systems import random_system
from tests.export.test_control import (
    another_second_row,
    cancelling,
    cut,
    loud,
    peak,
    roll,
    run_script,
    transpose,
    transposed_after_the_peak,
    truncated,
)

PASS = "depthsys selfcheck: PASS - L = 5 layers, n = 3 states, m = 2 inputs, p = 4 outputs; largest"


@pytest.fixture
def folder(tmp_path):
    export.to_csv(random_system(), tmp_path / "out")
    return tmp_path / "out"


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def rewrite(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def change(folder, name, by):
    """Change the numbers of a table behind its back; the rows keep their places."""
    header, *rows = rows_of(folder / f"{name}.csv")
    values = load_csv.load(folder)[name]
    index = values.ndim - 1
    values = by(values).reshape(-1, values.shape[-1]).tolist()
    rows = [row[:index] + new for row, new in zip(rows, values, strict=True)]
    rewrite(folder / f"{name}.csv", [header, *rows])


def test_the_tables_load_as_the_arrays_of_an_npz(system, tmp_path):
    names = np.array([f'a "b", {i}\n\u00df' for i in range(system.sizes["feature"])])
    system = system.assign_coords(feature_name=("feature", names), empty=("none", np.array([])))
    system = system.assign(
        found=("layer", np.arange(system.sizes["layer"]) % 2 == 0),
        single=("depth", np.linspace(0, 1, system.sizes["depth"], dtype=np.float32)),
        odd=("depth", np.full(system.sizes["depth"], np.nan)),
        label="one text",
        hollow=(("depth", "none"), np.zeros((system.sizes["depth"], 0))),
    )
    export.to_csv(system, tmp_path / "out")
    export.to_npz(system, tmp_path / "system.npz")
    found = load_csv.load(tmp_path / "out")
    wanted = load_control.load(tmp_path / "system.npz")
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    assert load_csv.selfcheck(found, tmp_path / "out") == 0


def test_the_script_passes_without_depthsys(folder):
    assert PASS in (folder / "README.txt").read_text(encoding="utf-8")
    for module in (load_control, load_csv):
        source = Path(module.__file__)
        assert (folder / source.name).read_bytes() == source.read_bytes()
    check = "assert not {'depthsys', 'control'} & {*sys.modules}"
    done = run_script(folder, "load_csv.py", check)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{PASS} relative error 0.0e+00\n"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"A": transpose}, "It does with every A transposed: a reader has reversed the axes"),
        ({"A": roll}, "in x at depth 1 (allowed: 1e-09). It was changed after its export"),
        ({"C": roll}, "in y at depth 0 (allowed"),
    ],
)
def test_the_script_fails_on_another_system(folder, changes, text):
    for name, by in changes.items():
        change(folder, name, by)
    done = run_script(folder, "load_csv.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("depthsys selfcheck: FAIL - `out` must replay its golden")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("make", "changes", "place"),
    [
        (peak, ("A", transposed_after_the_peak), "in x at depth 4 "),
        (loud, ("C", another_second_row), "in y at depth 0 "),
        (cancelling, None, ""),
    ],
)
def test_nothing_hides_behind_a_large_depth_and_what_cancels_passes(tmp_path, make, changes, place):
    export.to_csv(make(), tmp_path / "out")
    if changes:
        change(tmp_path / "out", *changes)
    done = run_script(tmp_path / "out", "load_csv.py")
    assert done.returncode == bool(changes), done.stderr
    assert place in done.stderr


@pytest.mark.parametrize(
    ("file", "damage", "texts"),
    [
        ("B.csv", Path.unlink, ["No such file", "B.csv"]),
        ("about.json", Path.unlink, ["No such file", "about.json"]),
        ("A.csv", cut, ["`A.csv` must have 15 rows of 5 columns below its header; got"]),
        ("A.csv", lambda path: path.write_bytes(b""), ["`A.csv` must have 15 rows of 5"]),
        ("A.csv", lambda path: path.write_bytes(b"\xff\xfe"), ["`A.csv` must be a table in UTF-8"]),
        (
            "A.csv",
            lambda path: path.write_text("x" * 200_000),
            ["table in UTF-8; got field larger"],
        ),
        ("about.json", cut, ["`about.json` must be a JSON text that describes the tables; got"]),
        ("about.json", lambda path: path.write_text("{}"), ["`about.json` must be a JSON text"]),
        ("about.json", lambda path: path.write_text("[]"), ["`about.json` must be a JSON text"]),
        (
            "about.json",
            lambda path: path.write_bytes(b"\xff"),
            ["`about.json` must be a JSON text"],
        ),
        ("about.json", lambda path: path.write_text('{"tables": {}}'), ["`out` must hold ['A', "]),
    ],
)
def test_the_script_fails_where_a_table_is_missing_or_cut(folder, file, damage, texts):
    damage(folder / file)
    done = run_script(folder, "load_csv.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("depthsys selfcheck: FAIL - ")
    for text in texts:
        assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dtype_that_no_table_has_is_refused(folder):
    about = json.loads((folder / "about.json").read_text())
    about["tables"]["B"]["dtype"] = "<M8[s]"
    (folder / "about.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"`B.csv` must hold numbers as it was written \(<M8"):
        load_csv.load(folder)


# names that a disk may take for one


def ignore_case(monkeypatch):
    """As on most disks of Windows and macOS."""
    probes = []

    def one_file(folder, name, other):
        assert list(folder.iterdir()) == []  # before anything is written
        probes.append((name, other))
        return name.lower() == other.lower()

    monkeypatch.setattr(contents, "_one_file", one_file)
    return probes


def test_two_variables_that_would_be_one_file(system, tmp_path, monkeypatch):
    assert {"V", "v"} <= set(system.variables)
    export.to_csv(system, tmp_path / "here")  # this disk tells them apart
    assert (tmp_path / "here" / "V.csv").read_bytes() != (tmp_path / "here" / "v.csv").read_bytes()
    assert ignore_case(monkeypatch) == []
    with pytest.raises(ValueError, match=r"`path` must lie on a disk .* 'V' and 'v', .* Write npz"):
        export.to_csv(system, tmp_path / "there")
    export.to_csv(system.drop_vars("v"), tmp_path / "one")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "one"]


def test_the_disk_is_asked_only_where_names_are_alike(tmp_path, monkeypatch):
    probes = ignore_case(monkeypatch)
    contents.check_case(tmp_path, ["A", "B", "golden_x", "a b"])
    assert probes == []
    with pytest.raises(ValueError, match="'B' and 'b'"):
        contents.check_case(tmp_path, (name for name in ("A", "B", "b", "a")))
    assert probes == [("B", "b")]
    two = "\u00e9", "e\u0301"  # one letter, or one and an accent: macOS takes them for one name
    contents.check_case(tmp_path, two)
    assert probes[1:] == [two]


def test_the_probe_tells_names_apart_and_leaves_nothing(tmp_path):
    assert not contents._one_file(tmp_path, "name", "other")
    assert contents._one_file(tmp_path, "name", "name")
    assert list(tmp_path.iterdir()) == []


def test_a_spreadsheet_may_sort_the_rows_and_mark_the_encoding(folder):
    header, *rows = rows_of(folder / "A.csv")
    rewrite(folder / "A.csv", [header, *reversed(rows), []])
    text = (folder / "A.csv").read_text(encoding="utf-8")
    (folder / "A.csv").write_text(text, encoding="utf-8-sig")
    np.testing.assert_array_equal(load_csv.load(folder)["A"], random_system()["A"])


@pytest.mark.parametrize(
    ("alter", "text"),
    [
        (lambda rows: rows[:-1], r"`A.csv` must have 15 rows of 5 columns .*; got 14 of \[5\]"),
        (lambda rows: [r[:-1] for r in rows], r"got 15 of \[4\]. Columns are parted by commas"),
        (lambda rows: [*rows[:-1], rows[-2]], r"must hold every row once; got none for 4, 2\. "),
        (
            lambda rows: [[*r[:-1], "0,5"] for r in rows],
            r"`A.csv` must hold numbers as it was written \(<f8\); got .*'0,5'. Decimals have",
        ),
    ],
)
def test_a_damaged_table_is_named(folder, alter, text):
    header, *rows = rows_of(folder / "A.csv")
    rewrite(folder / "A.csv", [header, *alter(rows)])
    with pytest.raises(ValueError, match=text):
        load_csv.load(folder)


def test_a_truth_value_is_true_or_false(tmp_path):
    system = random_system().assign(found=("layer", np.arange(5) > 2))
    export.to_csv(system, tmp_path / "out")
    header, *rows = rows_of(tmp_path / "out" / "found.csv")
    rewrite(tmp_path / "out" / "found.csv", [header, *([r[0], "WAHR"] for r in rows)])
    with pytest.raises(ValueError, match=r"`found.csv` must hold numbers .*; got 'WAHR'"):
        load_csv.load(tmp_path / "out")


def test_sizes_that_do_not_fit_are_named(folder):
    about = json.loads((folder / "about.json").read_text())
    about["tables"]["C"] = about["tables"]["D"]
    (folder / "about.json").write_text(json.dumps(about))
    (folder / "C.csv").write_bytes((folder / "D.csv").read_bytes())
    with pytest.raises(ValueError, match=r"`C` of `out` must have shape \(6, 4, 3\)"):
        load_csv.load(folder)


def test_a_changed_system_comes_back(system, tmp_path):
    export.to_csv(system, tmp_path / "out")
    arrays = load_csv.load(tmp_path / "out")
    r = max(1, system.sizes["state"] - 1)
    A, B, C, D = truncated(arrays, r)
    load_csv.save(tmp_path / "back.npz", arrays, 2 * A, B, C, D)
    again = export.read(tmp_path / "back.npz")
    for name, wanted in (("A", 2 * A), ("B", B), ("C", C), ("D", D)):
        np.testing.assert_array_equal(again[name], wanted)
    assert again["order"].values.tolist() == [r] * system.sizes["depth"]
    assert again.attrs["history"] == system.attrs["history"]
    assert again.attrs["changed_by"] == f"numpy {np.__version__}"
    assert "import_note" not in again.attrs
    assert not {"V", "x_ref"} & set(again.variables)
    for name in ("v", "y_ref", "auc", "y_std", "output_name", "extra", "layer", "depth"):
        xr.testing.assert_equal(again[name].variable, system[name].variable)
        assert again[name].dtype.kind == system[name].dtype.kind
        assert (name in again.coords) == (name in system.coords)


def test_depthsys_does_not_read_the_tables(folder):
    readme = " ".join((folder / "README.txt").read_text(encoding="utf-8").split())
    assert "depthsys does not read the tables back" in readme
    assert 'load_csv.save("reduced.npz", arrays, A, B, C, D)' in readme
    with pytest.raises((ValueError, FileNotFoundError)):
        export.read(folder)
