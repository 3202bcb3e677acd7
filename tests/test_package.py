import re
import subprocess
import sys
from pathlib import Path

import pytest

import depthsys

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "module",
    [
        "depthsys",
        "depthsys.files",
        "depthsys.ltv",
        "depthsys.export",
        "depthsys.cli",
        "depthsys.demo",
    ],
)
def test_importing_a_light_wing_loads_no_heavy_library(module):
    heavy = "torch, transformers, sklearn, matplotlib, control, slycot, h5py, h5netcdf, zarr, pymor"
    heavy = f"{heavy}, gguf, fmpy, pythonfmu".split(", ")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_ltv_imports_nothing_beyond_xarray_and_scipy():
    """The cost of `import depthsys.ltv` over its floor, as a count of third-party packages."""
    code = "import sys, {}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    found = [
        set(
            subprocess.run(
                [sys.executable, "-c", code.format(names)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
        )
        for names in ("xarray, scipy.sparse.linalg", "depthsys.ltv")
    ]
    assert found[1] - found[0] <= {"depthsys"}


def test_wings_are_attributes():
    assert depthsys.ltv.system is depthsys.ltv.system
    assert "lm" in dir(depthsys)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        depthsys.nothing  # noqa: B018


def test_imports_run_downwards():
    """The house rules of pyproject.toml: layers, circles, and no torch on the numpy floor."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stdout
    assert re.search(r"[1-9]\d* kept, 0 broken", out.stdout)
