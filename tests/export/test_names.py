"""Names of states, inputs and outputs: from python-control, and through every format."""

import control
import numpy as np
import pytest
import scipy.io

from depthsys import export, ltv
from depthsys.export.control import to_control, to_control_files
from depthsys.export.formats import FORMATS
from depthsys.export.receivers import load_control

NAMES = {"state": ["pos", "vel"], "input": ["force"], "output": ["p", "v", "sum"]}


@pytest.fixture
def plant():
    """A discrete python-control system whose signals all have names."""
    return control.ss(
        [[0.5, 0.1], [0.0, 0.3]], [[1.0], [0.5]], [[1.0, 0], [0, 1.0], [1, 1]], 0, 0.1,
        states=NAMES["state"], inputs=NAMES["input"], outputs=NAMES["output"],
    )  # fmt: skip


@pytest.fixture
def system(plant):
    return ltv.constant(plant, horizon=4)


def names_of(system):
    return {dim: system[f"{dim}_name"].values.tolist() for dim in NAMES}


def labels_of(lti):
    return {
        "state": list(lti.state_labels),
        "input": list(lti.input_labels),
        "output": list(lti.output_labels),
    }


def test_names_come_from_python_control_and_go_back(plant, system):
    assert names_of(system) == NAMES
    assert labels_of(ltv.mean_lti(system)) == NAMES
    assert labels_of(ltv.layer_lti(system, 2)) == NAMES
    found = to_control(system)
    assert [labels_of(layer) for layer in found.layers] == [NAMES] * 4
    assert labels_of(found.nlsys) == NAMES
    assert list(found.embedding.state_labels)[:3] == ["pos@0", "vel@0", "pos@1"]
    again = ltv.constant(ltv.mean_lti(system), horizon=4)
    assert names_of(again) == NAMES


def test_names_that_nobody_gave_are_none():
    plain = ltv.constant(control.ss([[0.5]], [[1.0]], [[1.0]], 0, 1), horizon=2)
    assert not [name for name in plain.coords if "name" in str(name)]
    assert labels_of(ltv.mean_lti(plain)) == {
        "state": ["x[0]"],
        "input": ["u[0]"],
        "output": ["y[0]"],
    }


def test_names_that_python_control_refuses_are_changed():
    system = ltv.constant([[0.5]], [[1.0]], [[1.0], [2.0]], horizon=2)
    system = system.assign_coords(output_name=("output", ["a.b", "a.b"]))
    assert labels_of(ltv.mean_lti(system))["output"] == ["a_b[0]", "a_b[1]"]


def test_truncation_keeps_the_names_of_the_signals(plant):
    small = ltv.lti_balanced_truncation(plant, 1)
    assert labels_of(small) == {**NAMES, "state": ["x[0]"]}


@pytest.mark.parametrize("kind", [name for name, form in FORMATS.items() if form.reads])
def test_names_survive_every_format_that_is_read_back(kind, system, tmp_path):
    form = FORMATS[kind]
    getattr(export, form.writer)(system, tmp_path / f"out{form.suffix}")
    again = export.read(tmp_path / f"out{form.suffix}")
    assert names_of(again) == NAMES
    assert again["state_name"].dims == ("state",)


def test_labels_of_states_become_names(system, tmp_path):
    labelled = system.drop_vars("state_name").assign_coords(state=NAMES["state"])
    export.to_npz(labelled, tmp_path / "a.npz")
    assert names_of(export.read(tmp_path / "a.npz")) == NAMES


def test_a_changed_number_of_states_has_no_names(system, tmp_path):
    to_control_files(system, tmp_path / "out")
    arrays = load_control.load(tmp_path / "out/system.npz")
    assert load_control.names(arrays)["states"] == NAMES["state"]
    one = [arrays[k][..., :1, :1] if k == "A" else arrays[k] for k in "ABC"]
    load_control.save(tmp_path / "small.npz", arrays, one[0], one[1][:, :1], one[2][..., :1])
    small = export.read(tmp_path / "small.npz")
    assert "state_name" not in small.coords
    assert small["output_name"].values.tolist() == NAMES["output"]


@pytest.mark.octave
def test_octave_shows_the_names(system, tmp_path):
    from tests.export.test_octave import octave

    export.to_matlab(system, tmp_path / "plant", name="plant")
    octave(
        f"pkg load control\ncd('{tmp_path / 'plant'}'); sys = plant_load();\n"
        f"stname = get(sys{{1}}, 'stname'); save('-v7', '{tmp_path / 'out.mat'}', 'stname');",
        tmp_path,
    )
    found = scipy.io.loadmat(tmp_path / "out.mat")["stname"]
    assert [str(c.item()) for c in found.ravel()] == NAMES["state"]


def test_stacked_names_say_the_layer(system):
    assert ltv.embed(system)["input_name"].values.tolist() == [f"force@{k}" for k in range(4)]
    assert ltv.embed(system)["output_name"].values.tolist()[3:5] == ["p@1", "v@1"]
    np.testing.assert_array_equal(ltv.lift(system)["state_name"], NAMES["state"])
    assert ltv.cyclic(system)["state_name"].values.tolist()[2:4] == ["pos@1", "vel@1"]
