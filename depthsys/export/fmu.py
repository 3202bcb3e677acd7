"""FMI 2.0: a system as a co-simulation unit (FMU), which simulation tools couple with others."""

import hashlib
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import xarray as xr

from depthsys.export.atomic import whole_file
from depthsys.export.control import receiver
from depthsys.export.npz import to_npz
from depthsys.export.plain import one_system
from depthsys.export.receivers.load_control import check_run, load


def to_fmu(
    system: xr.Dataset,
    path: str | os.PathLike,
    *,
    name: str = "DepthSystem",
    force: bool = False,
) -> None:
    """Write one system as an FMI 2.0 co-simulation unit in which one step is one layer.

    Time is the depth as a position 0..L. Inputs ``u[i]`` and outputs ``y[i]`` carry the names of
    the system as descriptions; ``x[i]`` is the state, padded with zeros where its size varies;
    the parameters ``x0[i]`` set it at depth 0 (zero by default). A step past depth L, by another
    size than 1, or from another time is discarded with a message.

    Parameters
    ----------
    system
        One system (no batch dims).
    path
        The file, usually ``*.fmu``. It appears whole or not at all.
    name
        The model identifier: ASCII letters, digits and underscores.
    force
        Replace an existing file.

    Raises
    ------
    FileExistsError
        If the file exists and ``force`` is False.
    ImportError
        If pythonfmu is not installed.
    ValueError
        If there are batch dims, ``name`` is no identifier, or something is neither numbers nor
        texts.

    Notes
    -----
    Feedthrough: ``y[k] = C[k] x[k] + D[k] u[k]`` is there as soon as u[k] is set, before the step.
    So at each communication point set u, get y, do the step, as `replay_fmu` does. FMPy's
    ``simulate_fmu`` samples y before it sets the input of the step: its states are exact, its
    outputs only where D = 0. Past depth L it stops without an error, with the rows it has.

    The host needs Python with numpy (FMI: needsExecutionTool); pythonfmu brings binaries for
    64-bit Windows and Linux and goes into the unit. ``resources/system.npz`` in the unit (a zip)
    holds the matrices and the golden trajectory, ``golden_x0``, ``golden_u``, ``golden_x``,
    ``golden_y``, which a run of it must give: without depthsys, set x0, then at each k set u[k],
    compare y[k] and do the step.
    """
    if find_spec("pythonfmu") is None:
        raise ImportError(
            "`to_fmu` must find pythonfmu; got none. `pip install depthsys[export]` installs it."
        )
    if not (name.isascii() and name.isidentifier()):
        raise ValueError(
            f"`name` must be an identifier of ASCII letters, digits and underscores; got {name!r}. "
            "For example 'DepthSystem'."
        )
    system = one_system(system, "fmu")
    with whole_file(path, force) as partial, TemporaryDirectory() as folder:
        shutil.copyfile(_build(system, Path(folder), name), partial)


def _build(system: xr.Dataset, folder: Path, name: str) -> Path:
    from pythonfmu.builder import FmuBuilder

    source = receiver("fmu_slave.py")
    # Units in one process share modules by name: another text of the slave needs another name.
    module = f"depthsys_slave_{hashlib.sha256(source).hexdigest()[:12]}"
    script = folder / f"{module}.py"
    script.write_bytes(source)
    to_npz(system, folder / "system.npz")
    L, n, m, p = (system.sizes[dim] for dim in ("layer", "state", "input", "output"))
    text = f"Linear time-varying system: {L} layers, {n} states, {m} inputs, {p} outputs"
    unit = {"name": name, "description": text}
    (folder / "unit.json").write_text(json.dumps(unit), encoding="utf-8")
    with _clean_imports(module):
        return FmuBuilder.build_FMU(
            script,
            dest=folder / "unit.fmu",
            project_files=[folder / "system.npz", folder / "unit.json"],
            canHandleVariableCommunicationStepSize=False,
        )


@contextmanager
def _clean_imports(module: str = "") -> Iterator[None]:
    """Undo what pythonfmu does to ``sys``: it imports the slave from a folder that goes away."""
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        sys.modules.pop(module, None)


def replay_fmu(path: str | os.PathLike) -> float:
    """Run a unit in FMPy along its golden trajectory.

    This runs the code inside the unit: replay none that you do not trust.

    Parameters
    ----------
    path
        What `to_fmu` wrote.

    Returns
    -------
    float
        The largest error of ``x`` and ``y`` at a depth, relative to their largest norm up to
        there.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If FMPy is not installed.
    ValueError
        If it is no unit of `to_fmu`, or the error is above 1e-9.
    """
    if find_spec("fmpy") is None:
        raise ImportError(
            "`replay_fmu` must find FMPy; got none. `pip install depthsys[export]` installs it."
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"`path` must be an existing file; got {str(path)!r}. Look for it.")
    with TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(path) as packed:
                packed.extractall(folder)
            arrays = load(Path(folder) / "resources" / "system.npz")
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(
                f"`path` must be a unit of `to_fmu`; got {str(path)!r}: {error}. Write it again."
            ) from error
        with _clean_imports():
            found = _run(folder, arrays)
    return check_run(arrays, *found, str(path))


def _run(folder: str, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """States (depth, state) and outputs (depth, output) of an unpacked unit."""
    from fmpy import read_model_description
    from fmpy.fmi2 import FMU2Slave

    about = read_model_description(folder)
    number = {v.name: v.valueReference for v in about.modelVariables}

    def variables(letter: str, size: int) -> list[int]:
        return [number[f"{letter}[{i}]"] for i in range(size) if f"{letter}[{i}]" in number]

    (n, m), p = arrays["B"].shape[1:], arrays["C"].shape[1]
    x0, u, x, y = (variables(*kind) for kind in (("x0", n), ("u", m), ("x", n), ("y", p)))
    unit = FMU2Slave(
        guid=about.guid,
        unzipDirectory=folder,
        modelIdentifier=about.modelName,  # `to_fmu` gives both the same name
        instanceName="replay",
    )
    unit.instantiate()
    try:
        unit.setupExperiment(startTime=0.0)
        unit.setReal(x0, arrays["golden_x0"][: len(x0)])
        unit.enterInitializationMode()
        unit.exitInitializationMode()
        states, outputs = [], []
        for k, values in enumerate(arrays["golden_u"]):
            unit.setReal(u, values)
            states.append(unit.getReal(x))
            outputs.append(unit.getReal(y))
            unit.doStep(currentCommunicationPoint=k, communicationStepSize=1)
        found = np.array([*states, unit.getReal(x)]), np.array([*outputs, unit.getReal(y)])
        unit.terminate()
    finally:
        unit.freeInstance()
    return found
