"""python-control: objects, and the folder that loads where depthsys is not installed."""

import json
import pickle
import re
import subprocess
import sys
import zipfile

import control
import numpy as np
import pytest
import scipy.linalg
import xarray as xr

from depthsys import export, ltv
from depthsys.export.control import to_control, to_control_files
from depthsys.export.npz import from_npz
from depthsys.export.receivers import load_control
from tests.export.systems import random_system, varying_system

RTOL = 1e-13


def random_run(system, seed=7):
    """An initial state that exists, and inputs: arrays (state), (layer, input)."""
    rng = np.random.default_rng(seed)
    x0 = rng.standard_normal(system.sizes["state"])
    x0[first(system) :] = 0
    return x0, rng.standard_normal((system.sizes["layer"], system.sizes["input"]))


def first(system):
    """The number of states at depth 0."""
    return int(system["order"].values[0]) if "order" in system.coords else system.sizes["state"]


def assert_close(got, wanted):
    scale = np.abs(wanted).max() or 1.0
    np.testing.assert_allclose(got, wanted, rtol=0, atol=RTOL * scale)


def run_script(folder, script, check="", *arguments):
    """Run it as an engineer would, on a Python that has no depthsys on its path."""
    code = f"import runpy, sys; runpy.run_path({script!r}, run_name='__main__'); {check}"
    command = [sys.executable, "-I", "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def change(folder, **changes):
    """Change arrays of an export behind its back; None deletes one."""
    path = folder / "system.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays |= {name: f if f is None else f(arrays[name]) for name, f in changes.items()}
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})


def transpose(A):
    return A.swapaxes(1, 2)


def roll(A):
    return np.roll(A, 1, axis=0)


# objects


def test_the_nonlinear_system_runs_as_simulate(system):
    x0, u = random_run(system)
    U = np.vstack([u, np.full_like(u[:1], 9.0)]).T  # the last column is not used
    T = np.arange(system.sizes["depth"])
    found = control.input_output_response(to_control(system).nlsys, T, U, x0, squeeze=False)
    wanted = ltv.simulate(system, u, x0)
    assert_close(found.states.T, wanted["x"])
    assert_close(found.outputs.T, wanted["y"])


def test_linearization_at_a_depth_returns_its_layer(system):
    found = to_control(system).nlsys
    for k in range(system.sizes["layer"]):
        at = control.linearize(found, 0, 0, t=k)
        for name in "ABCD":
            np.testing.assert_allclose(getattr(at, name), system[name].values[k], atol=1e-9)
    at = control.linearize(found, 0, 0, t=system.sizes["layer"])  # no layer, but an output
    np.testing.assert_allclose(at.C, system["C"].values[-1], atol=1e-9)
    assert np.isnan(at.A).all()


@pytest.mark.parametrize("t", [6, -1, 1.5])
def test_no_time_beyond_the_horizon(t):
    found = to_control(random_system()).nlsys
    with pytest.raises(ValueError, match=rf"`t` must be a whole number in 0..5.*; got {t}"):
        control.linearize(found, 0, 0, t=t)


def test_simulating_beyond_the_horizon_is_an_error():
    found = to_control(random_system()).nlsys
    with pytest.raises(ValueError, match="got 6"):
        control.input_output_response(found, np.arange(7), 0, 0)


def test_layers(system):
    layers = to_control(system).layers
    assert len(layers) == system.sizes["layer"]
    for k, layer in enumerate(layers):
        assert layer.dt == 1
        for name in "ABCD":
            np.testing.assert_array_equal(getattr(layer, name), system[name].values[k])


def test_layers_are_named_after_their_labels():
    found = to_control(ltv.window(random_system(), 2, 4))
    assert [layer.name for layer in found.layers] == ["layer2", "layer3"]


def test_a_useless_state_stays(monkeypatch):
    """Whatever python-control is set to: layers have one size, and rows the place they had."""
    monkeypatch.setitem(control.config.defaults, "statesp.remove_useless_states", True)
    system = random_system()
    for name, where in (("A", np.s_[:, 1]), ("A", np.s_[:, :, 1]), ("B", np.s_[:, 1])):
        system[name].values[where] = 0
    found = to_control(system)
    assert control.ss(*(system[name].values[2] for name in "ABCD")).nstates == 2
    for k, layer in enumerate(found.layers):
        np.testing.assert_array_equal(layer.A, system["A"].values[k])
    assert found.embedding.nstates == 18


def test_names_reach_all_objects_but_dots():
    system = random_system().assign_coords(
        input_name=("input", ["concept", "block.3"]), output_name=("output", ["a", "b", "a", "c"])
    )
    found = to_control(system)
    for one in (found.nlsys, *found.layers):
        assert one.input_labels == ["concept", "block_3"]
        assert one.output_labels == ["a[0]", "b[1]", "a[2]", "c[3]"]
        assert one.state_labels == ["x0", "x1", "x2"]
    assert found.embedding.input_labels[:3] == ["concept@0", "block_3@0", "concept@1"]
    assert found.embedding.output_labels[-1] == "c[3]@5"
    assert found.embedding.state_labels[4] == "x1@1"


def test_io_matrix_and_embedding_are_those_of_ltv(system):
    found = to_control(system)
    wanted = ltv.io_matrix(system).values
    assert_close(found.io_matrix.reshape(wanted.shape), wanted)
    assert found.io_matrix is found.io_matrix
    for name in "ABCD":
        np.testing.assert_array_equal(getattr(found.embedding, name), ltv.embed(system)[name])
    assert found.embedding.dt == 1


@pytest.mark.parametrize("make", [random_system, varying_system])
def test_gramians_of_the_embedding_by_slycot(make):
    pytest.importorskip("slycot")
    system = make()
    embedding = to_control(system).embedding
    for kind, gramians in (("c", ltv.reachability_gramian), ("o", ltv.observability_gramian)):
        wanted = scipy.linalg.block_diag(*gramians(system).values)
        found = control.gram(embedding, kind)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11 * np.abs(wanted).max())


def test_the_limit_of_the_embedding(monkeypatch):
    found = to_control(random_system())
    monkeypatch.setattr(load_control, "LIMIT", 17 * 18)
    with pytest.raises(ValueError, match=r"`embedding` must have at most 306 .*; got 18 x 18"):
        _ = found.embedding
    monkeypatch.setattr(load_control, "LIMIT", 239)
    with pytest.raises(ValueError, match=r"`io_matrix` must have at most 239 .*; got 24 x 10"):
        _ = found.io_matrix


def test_no_batch_dims(tmp_path):
    batch = xr.concat([random_system(), random_system(seed=1)], dim="prompt")
    with pytest.raises(ValueError, match=r"no batch dims for python-control; got {'prompt': 2}"):
        to_control(batch)
    with pytest.raises(ValueError, match="no batch dims for python-control"):
        to_control_files(batch, tmp_path / "out")
    assert not list(tmp_path.iterdir())


# files


@pytest.fixture
def folder(tmp_path):
    to_control_files(random_system(), tmp_path / "out")
    return tmp_path / "out"


def test_what_the_folder_holds(folder):
    assert sorted(p.name for p in folder.iterdir()) == [
        ".depthsys-export",
        "README.txt",
        "load_control.py",
        "system.npz",
    ]
    xr.testing.assert_equal(from_npz(folder / "system.npz")["A"], random_system()["A"])
    with open(load_control.__file__, "rb") as file:
        assert (folder / "load_control.py").read_bytes() == file.read()
    readme = (folder / "README.txt").read_text(encoding="utf-8")
    assert "PASS - L = 5 layers, n = 3 states, m = 2 inputs, p = 4 outputs; largest" in readme


def test_an_earlier_export_is_replaced_by_force_only(folder):
    with pytest.raises(FileExistsError, match="must not exist yet"):
        to_control_files(random_system(seed=3), folder)
    to_control_files(random_system(seed=3), folder, force=True)
    np.testing.assert_array_equal(load_control.load(folder / "system.npz")["A"], A_of(3))


def A_of(seed):
    return random_system(seed=seed)["A"].values


def test_the_script_passes_without_depthsys(folder):
    check = "assert 'control' in sys.modules and 'depthsys' not in sys.modules"
    done = run_script(folder, "load_control.py", check)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "depthsys selfcheck: PASS - L = 5 layers, n = 3 states, m = 2 inputs, p = 4 outputs; "
        f"largest relative error {done.stdout.split()[-1]}\n"
    )
    assert float(done.stdout.split()[-1]) < RTOL


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"A": transpose}, "It does with every A transposed: a reader has reversed the axes"),
        ({"A": roll}, "in x at depth 1 (allowed: 1e-09). It was changed after its export"),
        ({"C": roll}, "in y at depth 0 (allowed"),
    ],
)
def test_the_script_fails_on_another_system(folder, changes, text):
    change(folder, **changes)
    done = run_script(folder, "load_control.py")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("depthsys selfcheck: FAIL - `system.npz` must replay its golden")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_the_numpy_part_loads_no_control(folder):
    check = "c.selfcheck(c.load()); assert 'control' not in sys.modules"
    code = f"import sys; sys.path.insert(0, '.'); import load_control as c; {check}"
    command = [sys.executable, "-B", "-I", "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("depthsys selfcheck: PASS"), done.stderr


def test_the_selfcheck_prints_one_line_and_returns_the_error(system, tmp_path, capsys):
    to_control_files(system, tmp_path / "out")
    arrays = load_control.load(tmp_path / "out" / "system.npz")
    error = load_control.selfcheck(arrays, (load_control.simulate, load_control.response))
    assert 0 <= error < RTOL
    L, n, m, p = (system.sizes[d] for d in ("layer", "state", "input", "output"))
    assert capsys.readouterr().out == (
        f"depthsys selfcheck: PASS - L = {L} layers, n = {n} states, m = {m} inputs, "
        f"p = {p} outputs; largest relative error {error:.1e}\n"
    )


def test_nan_and_overflow_fail(folder):
    arrays = load_control.load(folder / "system.npz")
    for value in (np.nan, 1e308):
        bad = {**arrays, "A": np.full_like(arrays["A"], value)}
        with pytest.raises(ValueError, match=r"relative error of inf in x at depth 1"):
            load_control.selfcheck(bad)
    for name, place in (("x", "x at depth 2"), ("y", "y at depth 2")):
        bad = {**arrays, f"golden_{name}": arrays[f"golden_{name}"].copy()}
        bad[f"golden_{name}"][2, 0] = np.nan
        with pytest.raises(ValueError, match=f"relative error of inf in {place}"):
            load_control.selfcheck(bad)


# a large depth or output must not hide another


def peak():
    """One layer so large, and the others so small, that all later states are nothing beside it."""
    system = random_system()
    system["A"].values[0] *= 1e6
    system["A"].values[1:3] *= 1e-6
    system["B"].values *= 1e-6
    return system


def loud():
    """The first output is 1e12 times the others."""
    system = random_system()
    system["C"].values[:, 0] *= 1e12
    system["D"].values[:, 0] *= 1e12
    return system


def cancelling():
    """States of 1e8 at depth 1, of which the outputs see nothing."""
    system = random_system()
    system["A"].values[0] *= 1e8
    system["A"].values[1] *= 1e-8
    x = export.golden_trajectory(system)["x"].values[1]
    C = system["C"].values[1]
    system["C"].values[1] = C - np.outer(C @ x, x) / (x @ x)
    system["D"].values[1] = 0
    return system


def transposed_after_the_peak(A):
    return np.concatenate([A[:3], transpose(A[3:])])


def another_second_row(C):
    C = C.copy()
    C[:, 1] = np.arange(1, 4)
    return C


@pytest.mark.parametrize(
    ("make", "changes", "place"),
    [
        (peak, {"A": transposed_after_the_peak}, "in x at depth 4 "),
        (loud, {"C": another_second_row}, "in y at depth 0 "),
        (loud, {"golden_y": lambda y: y * [1, 1, 1, 1 + 1e-6]}, "in y at depth 0 "),
        (random_system, {"golden_x0": lambda x: x * [1, 1, 1 + 1e-8]}, "in x at depth 0 "),
        (random_system, {"golden_u": lambda u: np.vstack([u[:-1], -u[-1]])}, "in y at depth 4 "),
    ],
)
def test_nothing_hides_behind_a_large_depth_or_output(tmp_path, make, changes, place):
    to_control_files(make(), tmp_path / "out")
    load_control.selfcheck(load_control.load(tmp_path / "out" / "system.npz"))
    change(tmp_path / "out", **changes)
    with pytest.raises(ValueError, match=f"{place}.*was changed after its export"):
        load_control.selfcheck(load_control.load(tmp_path / "out" / "system.npz"))
    done = run_script(tmp_path / "out", "load_control.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("depthsys selfcheck: FAIL - `system.npz` must replay its golden")
    assert place in done.stderr


@pytest.mark.slow  # a process with python-control
def test_outputs_that_cancel_pass(tmp_path):
    system = cancelling()
    golden = export.golden_trajectory(system)
    assert np.linalg.norm(golden["x"][1]) > 1e7
    assert np.linalg.norm(golden["y"][1]) < 1e-6
    to_control_files(system, tmp_path / "out")
    arrays = load_control.load(tmp_path / "out" / "system.npz")
    load_control.selfcheck(arrays, (load_control.simulate, load_control.response))
    # as another order of the sums may leave it
    arrays["golden_y"][1] += 1e-8 * np.array([1, -1, 1, -1])
    load_control.selfcheck(arrays, (load_control.simulate, load_control.response))
    np.savez(tmp_path / "out" / "system.npz", **arrays)
    done = run_script(tmp_path / "out", "load_control.py")
    assert done.returncode == 0, done.stderr


def test_a_sum_too_large_for_its_terms_to_be_added_is_wrong(folder):
    """Anything is small beside infinity."""
    arrays = load_control.load(folder / "system.npz")
    arrays["A"][2] = 0
    arrays["A"][2, 0] = 1e308 * np.array([1, -1, 0]) / arrays["golden_x"][2]
    arrays["B"][2] = 0
    assert abs(arrays["A"][2] @ arrays["golden_x"][2] - arrays["golden_x"][3]).max() < 1e300
    with pytest.raises(ValueError, match="relative error of inf in x at depth 3"):
        load_control.check(arrays)


def test_inputs_that_cancel_pass(folder):
    """The size of the terms of a state is that of its inputs, too."""
    arrays = load_control.load(folder / "system.npz")
    u = arrays["golden_u"][2]
    arrays["A"][2] = 0
    arrays["B"][2] = 1e8 * np.array([u[1], -u[0]])
    wanted = arrays["golden_x"].copy()
    arrays["golden_x"][3] = 1e-7
    with pytest.raises(ValueError, match="in y at depth 3 "):  # and not x
        load_control.check(arrays)
    arrays["golden_x"][3] = wanted[3]
    with pytest.raises(ValueError, match="in x at depth 3 "):
        load_control.check(arrays)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_very_small_and_large_states_are_measured(folder, size):
    arrays = load_control.load(folder / "system.npz")
    for name in ("B", "D", "golden_x0", "golden_x", "golden_y"):
        arrays[name] = size * arrays[name]
    x, y = load_control.simulate(arrays, arrays["golden_x0"], arrays["golden_u"])
    assert load_control.selfcheck(arrays, (lambda *_: (x, y),)) < RTOL
    x[3, 0] *= 1 + 1e-6
    with pytest.raises(ValueError, match=r"error of [0-9.]+e-0[67] in x at depth 3 "):
        load_control.check_run(arrays, x, y)
    arrays["golden_x"][3, 0] *= 1 + 1e-6
    with pytest.raises(ValueError, match=r"error of [0-9.]+e-0[67] in x at depth 3 "):
        load_control.check(arrays)


def test_states_that_fade_away_pass():
    """Numbers below 2e-308 have few digits, which depend on the order of the sum."""
    rng = np.random.default_rng(0)
    A = 1e-3 * rng.standard_normal((120, 3, 3))
    zeros = np.zeros((120, 3, 1))
    arrays = {"A": A, "B": zeros, "C": np.ones((121, 1, 3)), "D": np.zeros((121, 1, 1))}
    arrays |= {"golden_x0": np.ones(3), "golden_u": np.ones((120, 1))}
    arrays["golden_x"], arrays["golden_y"] = load_control.simulate(
        arrays, arrays["golden_x0"], arrays["golden_u"]
    )
    assert (arrays["golden_x"][-1] == 0).all()
    faded = (arrays["golden_x"] != 0) & (abs(arrays["golden_x"]) < 1e-318)
    assert faded.any()
    arrays["golden_x"][faded] += 5e-324
    load_control.selfcheck(arrays)


# what runs the arrays


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        (lambda x, y: (x, y[:, :0]), "inf in y at depth 0"),
        (lambda x, y: (x[:1], y), "inf in x at depth 0"),
        (lambda x, y: (x, y[..., None]), "inf in y at depth 0"),
        (lambda x, y: (x, y * np.nan), "inf in y at depth 0"),
        (lambda x, y: (np.vstack([x[:3], -x[3:]]), y), "in x at depth 3"),
        (lambda x, y: (x, np.vstack([y[:2], -y[2:]])), "in y at depth 2"),
        (lambda x, y: (np.vstack([x[:4], -x[4:]]), -y), "in y at depth 0"),
    ],
)
@pytest.mark.parametrize("make", [random_system, lambda: random_system(n=1, p=1, L=5)])
def test_a_run_must_be_the_golden_one(tmp_path, capsys, make, wrong, place):
    to_control_files(make(), tmp_path / "out")
    arrays = load_control.load(tmp_path / "out" / "system.npz")

    def run(*given):
        return wrong(*load_control.simulate(*given))

    with pytest.raises(ValueError, match=rf"`there` must replay .*{place} .*Its arrays do step by"):
        load_control.selfcheck(arrays, (load_control.simulate, run), "there")
    assert capsys.readouterr().out == ""


def test_the_error_of_a_run_is_relative_to_what_was_there_before(folder):
    """A small depth after a large one has the rounding of the large one."""
    arrays = load_control.load(folder / "system.npz")
    x, y = (arrays[f"golden_{name}"].copy() for name in "xy")
    size = abs(x).max(axis=1)
    assert size.argmax() == 5
    x[4, 0] += 1e-10 * size[:5].max()
    error = load_control.check_run(arrays, x, y)
    assert error == pytest.approx(1e-10, rel=1e-6)
    terms = abs(arrays["C"][2]) @ abs(arrays["golden_x"][2])
    terms = (terms + abs(arrays["D"][2]) @ abs(arrays["golden_u"][2])).max()
    y[2, 1] += 5e-10 * terms
    assert error < load_control.check_run(arrays, x, y) <= 5.1e-10
    assert load_control.selfcheck(arrays, (lambda *_: (x, y), load_control.simulate)) > error


def test_a_wrong_nlsys_fails(folder, monkeypatch):
    right = load_control.nlsys
    monkeypatch.setattr(load_control, "nlsys", lambda a: right({**a, "C": -a["C"]}))
    arrays = load_control.load(folder / "system.npz")
    with pytest.raises(ValueError, match=r"in y at depth 0 .* Its arrays do step by step"):
        load_control.selfcheck(arrays, (load_control.response,))


def test_the_script_runs_python_control(folder):
    """Not the numpy part alone."""
    text = (folder / "load_control.py").read_text()
    assert text.count("return A[k] @ x + B[k] @ u") == 1
    wrong = text.replace("return A[k] @ x + B[k] @ u", "return A[k] @ x - B[k] @ u")
    (folder / "load_control.py").write_text(wrong)
    done = run_script(folder, "load_control.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert "in x at depth 1" in done.stderr
    assert "Its arrays do step by step" in done.stderr


# files that are not whole


def cut(path, at=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * at)])


def spoil(path):
    """Other bytes in the middle of a compressed array."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"x" * 40
    path.write_bytes(content)


def pickled(path):
    path.write_bytes(pickle.dumps({"A": 1}))


def one_array(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def objects(path):
    with path.open("wb") as file:
        np.savez(file, A=np.array([{}]))


def inner_cut(path):
    """An array that ends early in a zip that does not."""
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in content.items():
            new.writestr(name, data[:-5] if name == "C.npy" else data)


UNREADABLE = [
    (cut, "`system.npz` must be a whole .npz of plain arrays, without pickles; got"),
    (spoil, "`system.npz` must be a whole .npz of plain arrays"),
    (pickled, "`system.npz` must be a whole .npz of plain arrays"),
    (one_array, "`system.npz` must be a whole .npz of plain arrays"),
    (objects, "`system.npz` must be a whole .npz of plain arrays"),
    (inner_cut, "`system.npz` must be a whole .npz of plain arrays"),
    (lambda path: path.write_bytes(b""), "`system.npz` must be a whole .npz of plain arrays"),
    (lambda path: path.unlink(), "`path` must be an existing file; got"),
    (lambda path: np.savez(path, A=np.ones(3)), "`system.npz` must hold ['B', 'C', 'D', 'golden"),
]


@pytest.mark.parametrize(("damage", "text"), UNREADABLE)
def test_the_script_fails_where_the_file_is_not_whole(folder, damage, text):
    damage(folder / "system.npz")
    done = run_script(folder, "load_control.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"depthsys selfcheck: FAIL - {text}")
    assert "Traceback" not in done.stderr
    assert "trust" not in done.stderr
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(text)):
        load_control.load(folder / "system.npz")


def test_texts_are_no_matrix(folder):
    change(folder, B=lambda B: B.astype(str))
    with pytest.raises(
        ValueError, match=r"`B` of `system.npz` must hold real numbers; got dtype <"
    ):
        load_control.load(folder / "system.npz")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"golden_y": None}, r"`system.npz` must hold \['golden_y'\], too"),
        ({"B": lambda B: B[:, :, 0]}, r"`B` .* must have three axes.*; got shape \(5, 3\)"),
        ({"C": lambda C: C[1:]}, r"`C` .* must have shape \(6, 4, 3\); got \(5, 4, 3\)"),
        ({"A": lambda A: np.moveaxis(A, 0, 2)}, r"`A` .* must have shape \(3, 5, 5\)"),
    ],
)
def test_arrays_of_another_shape_are_refused(folder, changes, text):
    change(folder, **changes)
    with pytest.raises(ValueError, match=text):
        load_control.load(folder / "system.npz")


# the way back


def truncated(arrays, r):
    """What an engineer may do in numpy: keep the first r states."""
    return arrays["A"][:, :r, :r], arrays["B"][:, :r], arrays["C"][:, :, :r], arrays["D"]


def test_a_changed_system_comes_back(system, tmp_path):
    to_control_files(system, tmp_path / "s")
    arrays = load_control.load(tmp_path / "s" / "system.npz")
    r = max(1, system.sizes["state"] - 1)
    A, B, C, D = truncated(arrays, r)
    load_control.save(tmp_path / "back.npz", arrays, 2 * A, B, C, D)
    again = export.read(tmp_path / "back.npz")
    for name, wanted in (("A", 2 * A), ("B", B), ("C", C), ("D", D)):
        np.testing.assert_array_equal(again[name], wanted)
    assert again["order"].values.tolist() == [r] * system.sizes["depth"]
    assert again.attrs["changed_by"] == f"numpy {np.__version__}"
    assert again.attrs.get("order", r) == r
    assert again.attrs["history"] == system.attrs["history"]
    assert "import_note" not in again.attrs
    assert not {"V", "x_ref"} & set(again.variables)
    for name in ("v", "y_ref", "auc", "y_std", "output_name", "extra"):
        xr.testing.assert_equal(again[name].variable, system[name].variable)
    load_control.selfcheck(load_control.load(tmp_path / "back.npz"))
    # once more: what came back can be changed again
    load_control.save(tmp_path / "more.npz", load_control.load(tmp_path / "back.npz"), A, B, C)
    assert not export.read(tmp_path / "more.npz")["D"].any()
    with pytest.raises(FileExistsError):
        load_control.save(tmp_path / "more.npz", arrays, A, B, C)


def test_what_does_not_fit_is_not_saved(tmp_path):
    to_control_files(random_system(), tmp_path / "s")
    arrays = load_control.load(tmp_path / "s" / "system.npz")
    A, B, C, D = truncated(arrays, 2)
    for bad, message in (
        ((A, arrays["B"], C, D), r"`B` must hold finite numbers in the shape \(5, 2, 2\); got"),
        ((A[0], B, C, D), r"`A` must hold finite numbers"),
        ((A, B, C * np.nan, D), r"`C` must hold finite numbers"),
        ((A, B, C, D + 1), r"`D` must be zero at the last depth"),
    ):
        with pytest.raises(ValueError, match=message):
            load_control.save(tmp_path / "back.npz", arrays, *bad)
    assert not (tmp_path / "back.npz").exists()


@pytest.mark.parametrize("with_them", [True, False])
def test_digests_of_what_is_new_are_dropped(system, tmp_path, with_them):
    """So that what is carried over stays checked."""
    to_control_files(system, tmp_path / "s")
    arrays = load_control.load(tmp_path / "s" / "system.npz")
    about = json.loads(str(arrays["about"]))
    about.pop("digests", None)
    if with_them:
        about["digests"] = {name: f"{i:016x}" for i, name in enumerate(about["dims"])}
    arrays["about"] = np.array(json.dumps(about))
    load_control.save(tmp_path / "back.npz", arrays, *(arrays[name] for name in "ABCD"))
    found = json.loads(str(load_control.load(tmp_path / "back.npz")["about"]))
    assert ("digests" in found) == with_them
    state = {name for name, dims in about["dims"].items() if {"state", "state_next"} & {*dims}}
    assert {"V", "x_ref", "A", "B", "C"} <= state
    gone = state | {"D", "order"}
    kept = {name: d for name, d in about.get("digests", {}).items() if name not in gone}
    assert found.get("digests", {}) == kept
    assert not with_them or {"v", "y_ref", "auc", "y_std", "output_name", "layer"} <= kept.keys()
