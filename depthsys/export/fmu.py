"""FMI 2.0: a system as a co-simulation unit (FMU), which simulation tools couple with others."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import xarray as xr

from depthsys.export.control import library, receiver
from depthsys.export.npz import to_npz
from depthsys.export.plain import one_system
from depthsys.export.receivers import check_fmu
from depthsys.files import whole_file


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
        The model identifier: at most 64 ASCII letters, digits and underscores.
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
    So at each communication point set u, get y, do the step, as `replay_fmu` does.

    FMPy's ``simulate_fmu`` samples y before it sets the input of the step: its states are exact,
    its outputs only where D = 0. A discarded step ends it without an error: with a ``stop_time``
    past depth L the last row comes twice, with an ``output_interval`` other than 1 it returns two
    rows, both of time 0. The message is shown with ``debug_logging=True`` only (in other hosts:
    with logging on).

    The host needs Python with numpy (FMI: needsExecutionTool); pythonfmu brings binaries for
    64-bit Windows and Linux and goes into the unit. ``resources/system.npz`` in the unit (a zip)
    holds the matrices and the golden trajectory, ``golden_x0``, ``golden_u``, ``golden_x``,
    ``golden_y``, which a run of it must give. To check that without depthsys, unzip the unit and
    run ``python documentation/check_fmu.py unit.fmu``; it needs numpy and FMPy, and says PASS or
    FAIL (exit status 1). Model, method and number of texts stand in the model description.
    """
    library("pythonfmu", "pythonfmu", "to_fmu")
    if not (name.isascii() and name.isidentifier() and len(name) <= 64):
        raise ValueError(
            "`name` must be an identifier of at most 64 ASCII letters, digits and underscores; got "
            f"{name!r}. For example 'DepthSystem'."
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
    unit = {"name": name, "description": _description(system)}
    (folder / "unit.json").write_text(json.dumps(unit), encoding="utf-8")
    documentation = folder / "documentation"
    documentation.mkdir()
    for tool in ("check_fmu.py", "load_control.py"):
        (documentation / tool).write_bytes(receiver(tool))
    with _clean_imports(module):
        return FmuBuilder.build_FMU(
            script,
            dest=folder / "unit.fmu",
            project_files=[folder / "system.npz", folder / "unit.json"],
            documentation_folder=documentation,
            canHandleVariableCommunicationStepSize=False,
        )


def _description(system: xr.Dataset) -> str:
    L, n, m, p = (system.sizes[dim] for dim in ("layer", "state", "input", "output"))
    text = f"Linear time-varying system: {L} layers, {n} states, {m} inputs, {p} outputs"
    if "model" in system.attrs:
        text += f"; of the model {system.attrs['model']}"
    if "method" in system.attrs:
        text += f"; by {system.attrs['method']}"
    if "n_prompts" in system.attrs:
        text += f"; from {system.attrs['n_prompts']} texts"
    return text


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

    The check is that of ``documentation/check_fmu.py``, as this depthsys has it. It runs the code
    inside the unit: replay none that you do not trust.

    Parameters
    ----------
    path
        What `to_fmu` wrote, or the folder to which it was unpacked.

    Returns
    -------
    float
        The largest relative error, of the golden trajectory step by step, and of ``x`` and ``y``
        of the unit.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If FMPy is not installed.
    ValueError
        If it is no unit of `to_fmu`, lacks a variable or binaries for this platform, does not
        run, or the error is above 1e-9.
    """
    library("fmpy", "FMPy", "replay_fmu")
    with _clean_imports():
        return check_fmu.replay(path)[1]
