"""FMI 2.0 units, built by pythonfmu and run by FMPy."""

import io
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from depthsys import ltv
from tests.export.systems import random_system, varying_system
from tests.export.test_control import (
    assert_close,
    cancelling,
    cut,
    first,
    peak,
    pickled,
    random_run,
    roll,
    run_script,
    transpose,
    transposed_after_the_peak,
)

pytest.importorskip("pythonfmu")
pytest.importorskip("fmpy")

import fmpy
from fmpy.fmi1 import FMICallException
from fmpy.fmi2 import FMU2Slave
from fmpy.validation import validate_fmu

from depthsys.export.fmu import replay_fmu, to_fmu
from depthsys.export.receivers import check_fmu, load_control


class Unit:
    """A unit in the loop of its docstring: set, get, do the step."""

    def __init__(self, path):
        self.about = fmpy.read_model_description(path)
        self.folder = fmpy.extract(path)
        self.number = {v.name: v.valueReference for v in self.about.modelVariables}
        self.slave = FMU2Slave(
            guid=self.about.guid,
            unzipDirectory=self.folder,
            modelIdentifier=self.about.coSimulation.modelIdentifier,
            instanceName="unit",
        )
        self.slave.instantiate(loggingOn=True)

    def start(self, x0, time=0.0):
        self.slave.setupExperiment(startTime=time)
        self.set("x0", x0)
        self.slave.enterInitializationMode()
        self.slave.exitInitializationMode()

    def set(self, letter, values):
        names = [self.number[f"{letter}[{i}]"] for i in range(len(values))]
        self.slave.setReal(names, values)

    def get(self, letter):
        return self.slave.getReal([r for v, r in self.number.items() if v.startswith(letter + "[")])

    def step(self, time, size=1):
        self.slave.doStep(currentCommunicationPoint=time, communicationStepSize=size)

    def run(self, u, time=0.0):
        x, y = [], []
        for k, values in enumerate(u):
            self.set("u", values)
            x.append(self.get("x"))
            y.append(self.get("y"))
            self.step(time + k)
        return np.array([*x, self.get("x")]), np.array([*y, self.get("y")])


@pytest.fixture
def unit(tmp_path):
    """A unit of `random_system`, with its feedthrough."""
    to_fmu(random_system(), tmp_path / "a.fmu")
    found = Unit(tmp_path / "a.fmu")
    yield found
    found.slave.freeInstance()


def test_every_unit_is_valid_and_replays(system, tmp_path):
    to_fmu(system, tmp_path / "a.fmu")
    assert validate_fmu(str(tmp_path / "a.fmu")) == []
    assert 0 <= replay_fmu(tmp_path / "a.fmu") < 1e-13


def simulated(system, path, x0, u):
    """FMPy's own loop: states (depth, state) and outputs (depth, output)."""
    L, m = u.shape
    u = np.vstack([u, np.zeros(m)])  # FMPy takes no table of one row
    kind = [("time", float), *((f"u[{j}]", float) for j in range(m))]
    given = np.array([(k, *row) for k, row in enumerate(u)], dtype=kind)
    start = {f"x0[{i}]": value for i, value in enumerate(x0[: first(system)])}
    found = fmpy.simulate_fmu(str(path), input=given, start_values=start)
    np.testing.assert_array_equal(found["time"], np.arange(L + 1))
    return tuple(
        np.stack([found[name] for name in found.dtype.names if name.startswith(letter)], axis=1)
        for letter in ("x[", "y[")
    )


@pytest.mark.parametrize(
    "make", [lambda: random_system(D=False), varying_system, lambda: random_system(1, 1, 1, 1)]
)
def test_simulate_fmu_is_simulate_without_feedthrough(make, tmp_path):
    system = make()
    system["D"] *= 0
    to_fmu(system, tmp_path / "a.fmu")
    x0, u = random_run(system)
    x, y = simulated(system, tmp_path / "a.fmu", x0, u)
    wanted = ltv.simulate(system, u, x0)
    assert_close(x, wanted["x"])
    assert_close(y, wanted["y"])


def test_with_feedthrough_simulate_fmu_has_the_states_only(tmp_path):
    system = random_system()
    to_fmu(system, tmp_path / "a.fmu")
    x0, u = random_run(system)
    x, y = simulated(system, tmp_path / "a.fmu", x0, u)
    wanted = ltv.simulate(system, u, x0)
    assert_close(x, wanted["x"])
    assert_close(y[[0, -1]], wanted["y"][[0, -1]])
    assert not np.allclose(y[1:-1], wanted["y"][1:-1], rtol=1e-3)


@pytest.mark.parametrize("time", [0.0, 12.0])
def test_the_loop_is_simulate_with_feedthrough(unit, time):
    system = random_system()
    x0, u = random_run(system)
    unit.start(x0, time)
    x, y = unit.run(u, time)
    wanted = ltv.simulate(system, u, x0)
    assert_close(x, wanted["x"])
    assert_close(y, wanted["y"])


def test_a_reset_unit_starts_again(unit):
    x0, u = random_run(random_system())
    unit.start(x0)
    once = unit.run(u)
    unit.slave.reset()
    unit.start(x0)
    np.testing.assert_array_equal(np.hstack(unit.run(u)), np.hstack(once))


@pytest.mark.parametrize(
    ("time", "size", "text"),
    [
        (5, 1, "The step must not go past depth 5, the end of the system; got time 5.0"),
        (2, 2, "The step must be one layer, a step size of 1; got time 2.0, step size 2.0"),
        (2, 0.5, "The step must be one layer"),
        (3, 1, "The step must start at time 2.0, the depth reached; got time 3.0"),
    ],
)
def test_a_wrong_step_is_discarded_with_a_message(unit, capsys, time, size, text):
    x0, u = random_run(random_system())
    unit.start(x0)
    unit.run(u[:5] if time == 5 else u[:2])
    before = unit.get("x"), unit.get("y")
    with pytest.raises(FMICallException, match="discard"):
        unit.step(time, size)
    assert text in capsys.readouterr().out
    assert (unit.get("x"), unit.get("y")) == before


@pytest.mark.parametrize(
    ("options", "times", "text"),
    [
        ({"stop_time": 9}, [0, 1, 2, 3, 4, 5, 5], "must not go past depth 5"),
        ({"output_interval": 0.5}, [0, 0], "must be one layer, a step size of 1"),
        ({"output_interval": 2}, [0, 0], "must be one layer, a step size of 1"),
    ],
)
def test_simulate_fmu_stops_without_an_error(tmp_path, capsys, options, times, text):
    """As the docstring of `to_fmu` warns; if FMPy learns to say so, the warning can go."""
    to_fmu(random_system(), tmp_path / "a.fmu")
    found = fmpy.simulate_fmu(str(tmp_path / "a.fmu"), **options)
    assert found["time"].tolist() == times
    assert found[-1].tolist() == found[-2].tolist()
    assert text not in capsys.readouterr().out
    fmpy.simulate_fmu(str(tmp_path / "a.fmu"), **options, debug_logging=True)
    assert text in capsys.readouterr().out


def test_units_of_two_systems_in_one_process(tmp_path):
    """They share the module of the slave, and not the system."""
    for seed in (0, 1):
        to_fmu(random_system(seed=seed), tmp_path / f"{seed}.fmu", name=f"Unit{seed}")
    units = [Unit(tmp_path / f"{seed}.fmu") for seed in (0, 1)]
    x0, u = random_run(random_system())
    for unit in units:
        unit.start(x0)
    for seed, unit in enumerate(units):
        assert_close(unit.run(u)[1], ltv.simulate(random_system(seed=seed), u, x0)["y"])
        unit.slave.freeInstance()


def test_what_the_description_says(tmp_path):
    system = random_system().assign_coords(input_name=("input", ["Maß <1>", "bell\x07"]))
    system["D"][:, 1:, 0] = 0
    system["D"][:, 2, :] = 0
    to_fmu(system, tmp_path / "a.fmu", name="Layers_3")
    about = fmpy.read_model_description(tmp_path / "a.fmu")
    assert validate_fmu(str(tmp_path / "a.fmu")) == []
    assert (about.modelName, about.coSimulation.modelIdentifier) == ("Layers_3", "Layers_3")
    sizes = "Linear time-varying system: 5 layers, 3 states, 2 inputs, 4 outputs"
    assert about.description == f"{sizes}; of the model none"
    assert about.coSimulation.needsExecutionTool
    assert not about.coSimulation.canHandleVariableCommunicationStepSize
    experiment = about.defaultExperiment
    assert [float(t) for t in (experiment.startTime, experiment.stopTime, experiment.stepSize)] == [
        0,
        5,
        1,
    ]
    said = {v.name: (v.causality, v.description) for v in about.modelVariables}
    assert said["u[0]"] == ("input", "Maß <1>")
    assert said["u[1]"] == ("input", r"bell\x07")
    assert said["y[3]"] == ("output", "y3")
    assert said["x0[2]"] == ("parameter", "state 2 at depth 0")
    fed = {u.variable.name: [d.name for d in u.dependencies] for u in about.outputs}
    assert fed["y[0]"] == ["u[0]", "u[1]"]
    assert fed["y[1]"] == ["u[1]"]
    assert fed["y[2]"] == fed["x[0]"] == []


def test_the_description_says_where_the_system_comes_from(tmp_path):
    system = random_system().assign_attrs(model="<a&b\x07>", method="Krylov", n_prompts=12)
    to_fmu(system, tmp_path / "a.fmu")
    assert validate_fmu(str(tmp_path / "a.fmu")) == []
    about = fmpy.read_model_description(tmp_path / "a.fmu")
    said = r"4 outputs; of the model <a&b\x07>; by Krylov; from 12 texts"
    assert about.description.endswith(said)
    to_fmu(varying_system(), tmp_path / "b.fmu")
    assert fmpy.read_model_description(tmp_path / "b.fmu").description.endswith("3 outputs")


def test_states_that_do_not_exist_at_depth_0_have_no_parameter(tmp_path):
    to_fmu(varying_system(), tmp_path / "a.fmu")
    names = [v.name for v in fmpy.read_model_description(tmp_path / "a.fmu").modelVariables]
    assert [name for name in names if name.startswith("x0[")] == ["x0[0]", "x0[1]"]
    assert "x[3]" in names


def test_python_is_left_as_it_was(tmp_path):
    before = list(sys.path)
    to_fmu(random_system(), tmp_path / "a.fmu")
    assert not [
        name for name in sys.modules if name.startswith("depthsys_slave") and before is None
    ]
    replay_fmu(tmp_path / "a.fmu")
    assert sys.path == before


def test_what_it_refuses(tmp_path, monkeypatch):
    system = random_system()
    for name in ("two words", "3rd", "Maß", "", "a" * 65):
        with pytest.raises(ValueError, match=f"`name` must be .* of at most 64 .*; got '{name}'"):
            to_fmu(system, tmp_path / "a.fmu", name=name)
    batch = xr.concat([system, random_system(seed=1)], dim="prompt")
    with pytest.raises(ValueError, match=r"no batch dims for fmu; got {'prompt': 2}"):
        to_fmu(batch, tmp_path / "a.fmu")
    monkeypatch.setitem(sys.modules, "pythonfmu", None)
    monkeypatch.setitem(sys.modules, "fmpy", None)
    cure = r"`pip install 'depthsys\[export\]'` installs it"
    with pytest.raises(ImportError, match=f"`to_fmu` must find pythonfmu; got .*{cure}"):
        to_fmu(system, tmp_path / "a.fmu")
    with pytest.raises(ImportError, match=f"`replay_fmu` must find FMPy; got .*{cure}"):
        replay_fmu(tmp_path / "a.fmu")
    assert not list(tmp_path.iterdir())


def test_the_longest_name(tmp_path):
    to_fmu(random_system(), tmp_path / "a.fmu", name="a" * 64)
    assert replay_fmu(tmp_path / "a.fmu") < 1e-13


def test_an_earlier_unit_is_replaced_by_force_only(tmp_path):
    to_fmu(random_system(), tmp_path / "a.fmu")
    with pytest.raises(FileExistsError, match="must not exist yet"):
        to_fmu(varying_system(), tmp_path / "a.fmu")
    to_fmu(varying_system(), tmp_path / "a.fmu", force=True)
    about = fmpy.read_model_description(tmp_path / "a.fmu")
    assert "4 states" in about.description
    assert [p.name for p in tmp_path.iterdir()] == ["a.fmu"]


def changed(right, wrong, change):
    """The unit again, with another A."""
    with zipfile.ZipFile(right) as old, zipfile.ZipFile(wrong, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "resources/system.npz":
                stored = np.load(io.BytesIO(content))
                arrays = {key: stored[key] for key in stored.files}
                packed = io.BytesIO()
                np.savez(packed, **(arrays | {"A": change(arrays["A"])}))
                content = packed.getvalue()
            new.writestr(name, content)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (transpose, r"a\.fmu` must replay .* It does with every A transposed"),
        (roll, r"a\.fmu` must replay .* in x at depth 1 .* It was changed after its export"),
    ],
)
def test_a_changed_unit_does_not_replay(tmp_path, change, text):
    to_fmu(random_system(), tmp_path / "right.fmu")
    changed(tmp_path / "right.fmu", tmp_path / "a.fmu", change)
    with pytest.raises(ValueError, match=text):
        replay_fmu(tmp_path / "a.fmu")


# The check that travels in the unit


@pytest.fixture
def unpacked(tmp_path):
    """The folder of a unit; the unit lies beside it."""
    to_fmu(random_system(), tmp_path / "a.fmu")
    fmpy.extract(tmp_path / "a.fmu", tmp_path / "unpacked")
    return tmp_path / "unpacked"


def test_the_check_in_the_unit_is_that_of_replay_fmu(unpacked):
    for module in (check_fmu, load_control):
        source = Path(module.__file__)
        assert (unpacked / "documentation" / source.name).read_bytes() == source.read_bytes()
    assert replay_fmu(unpacked) == replay_fmu(unpacked.with_name("a.fmu"))


@pytest.mark.parametrize("arguments", [["../a.fmu"], []])
def test_the_check_passes_without_depthsys(unpacked, arguments):
    check = "assert {'fmpy', 'depthsys', 'control'} & {*sys.modules} == {'fmpy'}"
    done = run_script(unpacked, "documentation/check_fmu.py", check, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "depthsys selfcheck: PASS - L = 5 layers, n = 3 states, m = 2 inputs, p = 4 outputs; "
        f"largest relative error {done.stdout.split()[-1]}\n"
    )
    assert float(done.stdout.split()[-1]) < 1e-13


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (transpose, "It does with every A transposed: a reader has reversed the axes"),
        (roll, "in x at depth 1 (allowed: 1e-09). It was changed after its export"),
    ],
)
def test_the_check_fails_on_another_system(unpacked, change, text):
    changed(unpacked.with_name("a.fmu"), unpacked.with_name("b.fmu"), change)
    done = run_script(unpacked, "documentation/check_fmu.py", "", "../b.fmu")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("depthsys selfcheck: FAIL - `../b.fmu` must replay its golden")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_the_check_runs_the_unit_and_not_its_arrays(unpacked):
    """A slave that goes wrong is noticed, though system.npz is right."""
    (slave,) = (unpacked / "resources").glob("depthsys_slave_*.py")
    source = slave.read_text()
    slave.unlink()
    # FMPy would take the module of the right unit, if one ran in this process
    (unpacked / "resources" / "slavemodule.txt").write_text("another")
    step = "self.x = self.A[self.k] @ self.x"
    assert source.count(step) == 1
    (unpacked / "resources" / "another.py").write_text(
        source.replace(step, "self.x = -self.A[self.k] @ self.x")
    )
    with pytest.raises(ValueError, match=r"unpacked` must replay .* in x at depth 1"):
        replay_fmu(unpacked)


def test_what_the_check_cannot_do_is_said(unpacked):
    done = run_script(unpacked, "documentation/check_fmu.py", "", "none.fmu")
    assert done.returncode == 1
    assert done.stderr == (
        "depthsys selfcheck: FAIL - `path` must be an existing file; got 'none.fmu'. Look for it.\n"
    )
    code = "import sys; sys.path.insert(0, 'documentation'); sys.modules['fmpy'] = None; "
    code += "import check_fmu; check_fmu.main()"
    (unpacked / "run.py").write_text(code)
    done = run_script(unpacked, "run.py", "", "../a.fmu")
    assert done.returncode == 1
    assert done.stderr.startswith("`check_fmu.py` must find FMPy; got ")
    assert done.stderr.endswith("`pip install fmpy` installs it.\n")


def test_what_is_no_unit(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path` must be an existing file"):
        replay_fmu(tmp_path / "a.fmu")
    (tmp_path / "a.fmu").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"must be a unit of `to_fmu`; .* not a zip file"):
        replay_fmu(tmp_path / "a.fmu")
    with zipfile.ZipFile(tmp_path / "a.fmu", "w") as packed:
        packed.writestr("modelDescription.xml", "")
    with pytest.raises(ValueError, match=r"must be a unit of `to_fmu`; .* an existing file"):
        replay_fmu(tmp_path / "a.fmu")


@pytest.mark.parametrize("letter", ["u", "x", "y", "x0"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_unit_without_one_of_its_variables_fails(tmp_path, letter, size):
    """Not even where there is one only, so that arrays without a column would broadcast."""
    to_fmu(random_system(size, size, size), tmp_path / "a.fmu")
    fmpy.extract(tmp_path / "a.fmu", tmp_path / "a")
    about = tmp_path / "a" / "modelDescription.xml"
    text = about.read_text(encoding="utf-8")
    name = f"{letter}[{size - 1}]"
    assert text.count(f'name="{name}"') == 1
    about.write_text(text.replace(f'name="{name}"', 'name="other"'), encoding="utf-8")
    text = (
        rf"must be a unit of `to_fmu`; got .*: it has no variables \['{letter}\[{size - 1}\]'\]\."
    )
    with pytest.raises(ValueError, match=text):
        replay_fmu(tmp_path / "a")


def rewrite_npz(path):
    np.savez(path, A=np.ones(3))


def damage(name, by):
    return lambda unit: by(unit / name)


def another_platform(unit):
    (unit / "binaries").rename(unit / "old")
    (unit / "binaries" / "solaris").mkdir(parents=True)


def broken_library(unit):
    (library,) = (unit / "binaries" / fmpy.platform).glob("DepthSystem.*")
    library.write_bytes(b"no library")


NPZ = "resources/system.npz"
XML = "modelDescription.xml"
HERE = rf"with binaries for {fmpy.platform}, this platform; got 'unpacked' with \[{{}}\]\. Check"
NOT_WHOLE = "to_fmu`; got 'unpacked': `system.npz` must be a whole .npz of plain arrays, without"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (damage(XML, Path.unlink), r"must be a unit of `to_fmu`; got 'unpacked': .*XML"),
        (damage(XML, cut), "must be a unit of `to_fmu`; got 'unpacked': .*modelDesc"),
        (damage(XML, lambda path: path.write_text("<a/>")), "must be a unit of `to_fmu`"),
        (damage("binaries", shutil.rmtree), HERE.format("")),
        (another_platform, HERE.format("'solaris'")),
        (broken_library, "must be a unit of `to_fmu`; got 'unpacked': Failed to load shared"),
        (damage(NPZ, Path.unlink), "unit of `to_fmu`; got 'unpacked': .*must be an existing file"),
        (damage(NPZ, pickled), NOT_WHOLE),
        (damage(NPZ, cut), NOT_WHOLE),
        (damage(NPZ, rewrite_npz), r"`system.npz` must hold \['B', 'C', 'D', 'golden_u'"),
    ],
)
def test_a_damaged_unit_is_named(unpacked, monkeypatch, wrong, text):
    wrong(unpacked)
    monkeypatch.chdir(unpacked.parent)
    with pytest.raises(ValueError, match=text.replace("XML", "modelDescription.xml")):
        replay_fmu("unpacked")
    assert Path.cwd() == unpacked.parent
    done = run_script(unpacked.parent, "unpacked/documentation/check_fmu.py", "", "unpacked")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("depthsys selfcheck: FAIL - `path` must be a unit")
    assert "Traceback" not in done.stderr


def test_a_cut_unit_is_named(tmp_path):
    to_fmu(random_system(), tmp_path / "a.fmu")
    cut(tmp_path / "a.fmu")
    with pytest.raises(ValueError, match=r"must be a unit of `to_fmu`; got .*a.fmu': .*not a zip"):
        replay_fmu(tmp_path / "a.fmu")


def test_a_unit_whose_bytes_changed_is_named(unpacked):
    packed = Path(shutil.make_archive(str(unpacked.with_name("b")), "zip", unpacked))
    with zipfile.ZipFile(packed) as unit:
        place = unit.getinfo("modelDescription.xml")
    assert place.compress_type == zipfile.ZIP_DEFLATED  # unlike pythonfmu
    assert replay_fmu(packed) < 1e-13
    right = packed.read_bytes()
    start = place.header_offset + 30 + len(place.filename)
    packed.write_bytes(right[:start] + b"\xff" * 20 + right[start + 20 :])
    with pytest.raises(ValueError, match=r"of `to_fmu`; got .*b.zip': Error -3 while"):
        replay_fmu(packed)


def test_what_fmpy_lacks_is_no_fault_of_the_unit(unpacked, monkeypatch):
    def lacks(*_):
        raise ModuleNotFoundError("No module named 'lxml'")

    monkeypatch.setattr(fmpy, "read_model_description", lacks)
    with pytest.raises(ModuleNotFoundError, match="lxml"):
        replay_fmu(unpacked)


def test_nothing_hides_behind_a_large_depth_and_what_cancels_passes(tmp_path):
    to_fmu(peak(), tmp_path / "right.fmu")
    changed(tmp_path / "right.fmu", tmp_path / "a.fmu", transposed_after_the_peak)
    with pytest.raises(ValueError, match=r"a\.fmu` must replay .* in x at depth 4 "):
        replay_fmu(tmp_path / "a.fmu")
    to_fmu(cancelling(), tmp_path / "b.fmu")
    replay_fmu(tmp_path / "b.fmu")
