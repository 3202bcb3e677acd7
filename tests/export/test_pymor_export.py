"""pyMOR: models of the embedding and of a layer, and the folder that loads without depthsys."""

import sys

import numpy as np
import pytest
import xarray as xr

from depthsys import ltv
from tests.export.systems import random_system, varying_system
from tests.export.test_control import (
    UNREADABLE,
    cancelling,
    change,
    peak,
    roll,
    run_script,
    transpose,
    transposed_after_the_peak,
)

pytest.importorskip("pymor")

from pymor.core.logger import log_levels

from depthsys.export.pymor_models import to_pymor, to_pymor_files
from depthsys.export.receivers import load_pymor

PASS = "depthsys selfcheck: PASS - L = 5 layers, n = 3 states, m = 2 inputs, p = 4 outputs; largest"


@pytest.fixture(autouse=True)
def quiet():
    """Progress of pyMOR is not shown; its warnings are."""
    with log_levels({"pymor": "WARNING"}):
        yield


def matrices(model):
    """A, B, C, D of a model, which has no E."""
    A, B, C, D, E = model.to_abcde_matrices()
    assert E is None
    return {"A": A, "B": B, "C": C, "D": np.zeros((len(C), B.shape[1])) if D is None else D}


def test_the_embedding_is_that_of_ltv(system):
    model = to_pymor(system)
    assert model.sampling_time == 1
    for name, found in matrices(model).items():
        np.testing.assert_array_equal(found, ltv.embed(system)[name])


def test_its_transfer_function_at_one_is_the_io_matrix():
    system = random_system()
    found = to_pymor(system).transfer_function.eval_tf(1.0)
    wanted = ltv.io_matrix(system).values.reshape(found.shape)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize("make", [random_system, varying_system])
def test_its_hankel_values_are_the_union_over_depths(make):
    system = make()
    found = to_pymor(system).hsv()
    wanted = np.sort(ltv.hankel_singular_values(system).values.ravel())[::-1]
    size = min(len(found), len(wanted))
    np.testing.assert_allclose(found[:size], wanted[:size], rtol=1e-9, atol=1e-7 * wanted[0])
    assert (wanted > 1e-3 * wanted[0]).sum() >= 5


def test_one_layer_by_its_label():
    system = ltv.window(random_system(), 1, 4)
    model = to_pymor(system, layer=2)
    assert model.name == "layer2"
    assert model.sampling_time == 1
    for name, found in matrices(model).items():
        np.testing.assert_array_equal(found, random_system()[name].values[2])


@pytest.mark.parametrize("layer", range(5))
def test_a_layer_of_a_system_whose_order_varies_is_padded_with_zeros(layer):
    system = varying_system()
    found = matrices(to_pymor(system, layer=layer))
    arrays = {name: system[name].values for name in "ABCD"}
    for name, wanted in matrices(load_pymor.layer(arrays, layer)).items():
        np.testing.assert_array_equal(found[name], system[name].values[layer])
        np.testing.assert_array_equal(found[name], wanted)
    before, after = system["order"].values[[layer, layer + 1]]
    assert found["A"][:after, :before].all()
    assert not found["A"][after:].any()
    assert not found["A"][:, before:].any()


def test_a_part_of_a_system_keeps_its_labels():
    part = ltv.window(varying_system(), 2, 5)
    found = matrices(to_pymor(part, layer=3, readout=5))
    np.testing.assert_array_equal(found["A"], varying_system()["A"].values[3])
    np.testing.assert_array_equal(found["C"], varying_system()["C"].values[5])
    with pytest.raises(ValueError, match=r"`layer` must be in 2..4; got 1"):
        to_pymor(part, layer=1)


@pytest.mark.parametrize("label", [5, -1, "3", "x", 3.5, True, [3]])
def test_labels_that_do_not_exist(label):
    with pytest.raises(ValueError, match=r"`layer` must be in 0\.\.4; got .*whole number") as found:
        to_pymor(varying_system(), layer=label)
    assert f"got {label!r}. Use a label of the dim 'layer'" in str(found.value)
    label = 6 if label == 5 else label
    with pytest.raises(ValueError, match=r"`readout` must be in 0\.\.5; got .*dim 'depth'"):
        to_pymor(varying_system(), layer=0, readout=label)


def test_the_embedding_has_no_readout():
    with pytest.raises(ValueError, match="`readout` must be left out for the embedding; got 5"):
        to_pymor(random_system(), readout=5)


def test_a_layer_may_be_read_at_another_depth():
    system = random_system()
    C = to_pymor(system, layer=2, readout=5).C.matrix
    np.testing.assert_array_equal(C, system["C"][5])
    arrays = {name: random_system()[name].values for name in "ABCD"}
    assert load_pymor.layer(arrays, 4).name == "layer4"
    with pytest.raises(ValueError, match=r"`index` must be in 0..4; got -1"):
        load_pymor.layer(arrays, -1)


def test_what_it_refuses(monkeypatch):
    batch = xr.concat([random_system(), random_system(seed=1)], dim="prompt")
    with pytest.raises(ValueError, match=r"no batch dims for pyMOR; got {'prompt': 2}"):
        to_pymor(batch)
    monkeypatch.setattr(load_pymor.plain, "LIMIT", 17 * 18)
    with pytest.raises(ValueError, match=r"`embedding` must have at most 306 .*; got 18 x 18"):
        to_pymor(random_system())
    monkeypatch.setitem(sys.modules, "pymor", None)
    text = r"`to_pymor` must find pyMOR; got .*`pip install 'depthsys\[pymor\]'` installs it"
    with pytest.raises(ImportError, match=text):
        to_pymor(random_system())


@pytest.fixture
def folder(tmp_path):
    to_pymor_files(random_system(), tmp_path / "out")
    return tmp_path / "out"


def test_the_script_passes_without_depthsys_and_control(folder):
    assert PASS in (folder / "README.txt").read_text(encoding="utf-8")
    check = "assert {'pymor', 'depthsys', 'control'} & {*sys.modules} == {'pymor'}"
    done = run_script(folder, "load_pymor.py", check)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(PASS)
    assert float(done.stdout.split()[-1]) < 1e-13


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"A": transpose}, "It does with every A transposed: a reader has reversed the axes"),
        ({"A": roll, "B": roll}, "in x at depth 1 (allowed: 1e-09). It was changed after its"),
    ],
)
def test_the_script_fails_on_another_system(folder, changes, text):
    change(folder, **changes)
    done = run_script(folder, "load_pymor.py")
    assert done.returncode == 1
    assert done.stderr.startswith("depthsys selfcheck: FAIL - `system.npz` must replay its golden")
    assert text in done.stderr


@pytest.mark.parametrize(("damage", "text"), [UNREADABLE[0], UNREADABLE[-2]])
def test_the_script_fails_where_the_file_is_not_whole(folder, damage, text):
    damage(folder / "system.npz")
    done = run_script(folder, "load_pymor.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"depthsys selfcheck: FAIL - {text}")
    assert "Traceback" not in done.stderr


def test_the_script_runs_pymor(folder):
    """Not the numpy part alone."""
    text = (folder / "load_pymor.py").read_text()
    assert text.count("LTIModel.from_matrices(A,") == 1
    wrong = text.replace("LTIModel.from_matrices(A,", "LTIModel.from_matrices(-A,")
    (folder / "load_pymor.py").write_text(wrong)
    done = run_script(folder, "load_pymor.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert "in x at depth 1" in done.stderr
    assert "Its arrays do step by step" in done.stderr


def test_nothing_hides_behind_a_large_depth_and_what_cancels_passes(tmp_path):
    to_pymor_files(peak(), tmp_path / "peak")
    change(tmp_path / "peak", A=transposed_after_the_peak)
    done = run_script(tmp_path / "peak", "load_pymor.py")
    assert done.returncode == 1
    assert "in x at depth 4 " in done.stderr
    to_pymor_files(cancelling(), tmp_path / "cancelling")
    done = run_script(tmp_path / "cancelling", "load_pymor.py")
    assert done.returncode == 0, done.stderr


def test_pymor_replays_every_golden_run(system, tmp_path):
    to_pymor_files(system, tmp_path / "out")
    arrays = load_pymor.load(tmp_path / "out" / "system.npz")
    assert load_pymor.selfcheck(arrays, (load_pymor.response,)) < 1e-13


def test_a_wrong_model_fails(folder, monkeypatch):
    """The check goes through pyMOR's matrices, not past them."""
    right = load_pymor.model
    monkeypatch.setattr(load_pymor, "model", lambda A, *others, name: right(-A, *others, name=name))
    arrays = load_pymor.load(folder / "system.npz")
    with pytest.raises(ValueError, match="in x at depth 1"):
        load_pymor.selfcheck(arrays, (load_pymor.response,))


def test_an_earlier_export_is_replaced_by_force_only(folder):
    with pytest.raises(FileExistsError, match="must not exist yet"):
        to_pymor_files(random_system(seed=3), folder)
    to_pymor_files(random_system(seed=3), folder, force=True)
    found = load_pymor.load(folder / "system.npz")["A"]
    np.testing.assert_array_equal(found, random_system(seed=3)["A"])
