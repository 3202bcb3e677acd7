"""Is this unit (FMU) the system that depthsys exported? Needs numpy and FMPy, not depthsys.

    python check_fmu.py unit.fmu        # by default the unpacked unit in which this file lies

runs the unit in FMPy along the run that is stored in its resources/system.npz, and says PASS or
FAIL (exit status 1), with the first depth that is wrong, and whether every A is transposed. This
runs the code inside the unit: check none that you do not trust. load_control.py lies beside this
file; it asks for python-control only when that is used.
"""

import sys
import zipfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np


def _beside(name: str) -> Any:
    """A script of the same folder, by its path: that folder need not be on the path of Python."""
    path = str(Path(__file__).with_name(f"{name}.py"))
    module = ModuleType(name)
    module.__file__ = path
    SourceFileLoader(name, path).exec_module(module)
    return module


plain = _beside("load_control")


def replay(path: Any) -> tuple[dict[str, np.ndarray], float]:
    """Run a unit in FMPy along its golden trajectory.

    Parameters
    ----------
    path
        The .fmu, or the folder to which it was unpacked.

    Returns
    -------
    tuple
        Its arrays, see ``load_control.load``, and the largest relative error.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    ValueError
        If it is no such unit, or the error is above 1e-9.
    """
    unit = Path(path)
    if not unit.exists():
        raise FileNotFoundError(f"`path` must be an existing file; got {str(path)!r}. Look for it.")
    with TemporaryDirectory() as empty:
        try:
            if unit.is_file():
                with zipfile.ZipFile(unit) as packed:
                    packed.extractall(empty)
                unit = Path(empty)
            arrays = plain.load(unit / "resources" / "system.npz")
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(
                f"`path` must be a unit of `to_fmu`; got {str(path)!r}: {error}. Write it again."
            ) from error
        found = _run(str(unit.resolve()), arrays)
    return arrays, plain.check_run(arrays, *found, str(path))


def _run(folder: str, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """States (depth, state) and outputs (depth, output) of an unpacked unit."""
    from fmpy import read_model_description
    from fmpy.fmi2 import FMU2Slave

    about = read_model_description(folder)
    number = {v.name: v.valueReference for v in about.modelVariables}

    def variables(letter: str, size: int) -> list[int]:
        return [number[f"{letter}[{i}]"] for i in range(size) if f"{letter}[{i}]" in number]

    _, n, m, p = plain.sizes(arrays)
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


def main() -> None:
    """Check the unit that is named on the command line."""
    try:
        plain.tell(*replay(sys.argv[1] if sys.argv[1:] else Path(__file__).resolve().parents[1]))
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"`check_fmu.py` must find FMPy; got {str(error)!r}. `pip install fmpy` installs it."
        ) from error
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
