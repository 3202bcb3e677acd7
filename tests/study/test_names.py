"""What the command line knows without loading the library is what the library has."""

import inspect
import subprocess
import sys

import pytest

from depthsys import export, lm
from depthsys.export.formats import FORMATS, READABLE
from depthsys.lm import concepts, methods, readouts
from depthsys.lm.hf import checkpoint
from depthsys.ltv import plan
from depthsys.study import names


def test_names_are_those_of_the_library():
    assert names.METHODS == tuple(methods.METHODS)
    assert names.READOUTS == readouts.READOUTS
    assert names.ENERGIES == plan.ENERGIES
    assert names.DTYPES == tuple(checkpoint.DTYPES)
    assert names.FORMATS == tuple(FORMATS)
    assert names.READABLE == READABLE


def test_the_directions_are_the_functions_of_the_library_that_find_one():
    found = {
        name
        for name in lm.__all__
        if getattr(getattr(lm, name), "__module__", "") == concepts.__name__
        and "held_out" in inspect.signature(getattr(lm, name)).parameters
    }
    assert set(names.CONCEPTS) == found


def test_a_format_has_a_writer_that_takes_its_options_and_a_reader():
    assert set(READABLE) == set(export.READERS)
    written = {name for name in export.__all__ if name.startswith("to_")}
    objects = {"to_control", "to_pymor"}  # no files
    assert {form.writer for form in FORMATS.values()} == written - objects
    for form in FORMATS.values():
        taken = inspect.signature(getattr(export, form.writer)).parameters
        assert {"force", *form.options} <= set(taken)
        assert ("plan" in taken) == form.plan


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["export", "--help"]])
def test_help_loads_neither_the_library_nor_xarray(arguments):
    heavy = ("torch", "xarray", "scipy", "matplotlib", "depthsys.ltv", "depthsys.lm")
    code = (
        f"import sys, depthsys.cli; sys.argv[1:] = {arguments!r}\n"
        "try: depthsys.cli.main()\n"
        f"except SystemExit: print([m for m in {heavy!r} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().endswith("[]")


@pytest.mark.parametrize(
    "arguments",
    [
        ["identify", "model", "texts.csv", "--out", "run", "--basis", "svd"],
        ["gains", "system.nc", "--out", "run", "--eps", "0"],
        ["control", "system.nc", "--out", "run", "--energy", "none"],
        ["compare", "model", "texts.csv", "--out", "run", "--orders", "2,1"],
        ["export", "system.nc", "--out", "run", "--to", "simulink"],
    ],
)
def test_bad_input_is_refused_without_torch(arguments, tmp_path):
    code = (
        f"import sys, depthsys.cli; sys.argv[1:] = {arguments!r}\n"
        "try: depthsys.cli.main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert out.stdout.strip() == "2 False"
    assert out.stderr.startswith("Error: `--")
    assert list(tmp_path.iterdir()) == []
