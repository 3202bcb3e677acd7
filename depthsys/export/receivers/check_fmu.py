"""Is this unit (FMU) the system that depthsys exported? Needs numpy and FMPy, not depthsys.

    python check_fmu.py unit.fmu        # by default the unpacked unit in which this file lies

runs the unit in FMPy along the run that is stored in its resources/system.npz, and says PASS or
FAIL (exit status 1), with the first depth that is wrong, and whether every A is transposed. This
runs the code inside the unit: check none that you do not trust. load_control.py lies beside this
file; it asks for python-control only when that is used.
"""

import os
import sys
import zipfile
import zlib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NoReturn

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
        If it is no such unit, has no binaries for this platform, or the error is above 1e-9.
    """
    import fmpy  # noqa: F401  # what is missing is no fault of the unit

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
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
            _refuse(path, error)
        except ValueError as error:
            raise ValueError(
                f"`path` must be a unit of `to_fmu`; got {str(path)!r}: {error}"
            ) from error
        worst = plain.check(arrays, str(path))
        found = _run_whole(unit.resolve(), arrays, path)
    return arrays, max(worst, plain.check_run(arrays, *found, str(path)))


def _refuse(path: Any, error: Exception) -> NoReturn:
    raise ValueError(
        f"`path` must be a unit of `to_fmu`; got {str(path)!r}: {str(error).rstrip('.')}. Write it "
        "again."
    ) from error


def _run_whole(
    folder: Path, arrays: dict[str, np.ndarray], path: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The same as `_run`; ValueError if the unit does not run."""
    from fmpy import platform

    binaries = folder / "binaries"
    here = sorted(entry.name for entry in binaries.iterdir()) if binaries.is_dir() else []
    if platform not in here:
        raise ValueError(
            f"`path` must be a unit with binaries for {platform}, this platform; got {str(path)!r} "
            f"with {here}. Check it on one of those, or write it again."
        )
    work = os.getcwd()
    try:
        return _run(str(folder), arrays)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # FMPy raises nothing finer
        _refuse(path, error)
    finally:
        os.chdir(work)  # FMPy stays in the folder of a library that does not load


def _run(folder: str, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """States (depth, state) and outputs (depth, output) of an unpacked unit."""
    from fmpy import read_model_description
    from fmpy.fmi2 import FMU2Slave

    about = read_model_description(folder)
    number = {v.name: v.valueReference for v in about.modelVariables}

    def variables(letter: str, size: int) -> list[int]:
        names = [f"{letter}[{i}]" for i in range(size)]
        if missing := [name for name in names if name not in number]:
            raise ValueError(f"it has no variables {missing}")
        return [number[name] for name in names]

    _, n, m, p = plain.sizes(arrays)
    first = int(arrays["order"][0])  # states that do not exist at depth 0 have no x0
    x0, u, x, y = (variables(*kind) for kind in (("x0", first), ("u", m), ("x", n), ("y", p)))
    unit = FMU2Slave(
        guid=about.guid,
        unzipDirectory=folder,
        modelIdentifier=about.modelName,  # `to_fmu` gives both the same name
        instanceName="replay",
    )
    unit.instantiate()
    try:
        unit.setupExperiment(startTime=0.0)
        unit.setReal(x0, arrays["golden_x0"][:first])
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
    unit = sys.argv[1] if sys.argv[1:] else Path(__file__).resolve().parents[1]
    try:
        plain.report(lambda: plain.tell(*replay(unit)))
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"`check_fmu.py` must find FMPy; got {str(error)!r}. `pip install fmpy` installs it."
        ) from error


if __name__ == "__main__":
    main()
