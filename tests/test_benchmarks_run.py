"""The benchmarks must run: once, in another process, at sizes whose times mean nothing."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import measure

ROOT = Path(__file__).parents[1]


def smoke(*files: str) -> str:
    """Output of a smoke run of these benchmarks; they assert that both sides agree."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"tests/benchmarks/{file}" for file in files]
    # addopts leaves slow and gpu out, and no benchmark is marked so
    settings = {"DEPTHSYS_BENCH_SHAPES": "tiny", "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "DEPTHSYS_BENCH_DEVICE"} | settings
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_speed_tables():
    out = smoke(
        *(f"test_lm_{room}.py" for room in ("gains", "jacobians", "identify", "cost", "reduction"))
    )
    for number in ("1", "2a", "3", "4", "5", "7", "8a", "8b", "9"):
        assert f"\n### {number}. " in out
    assert "tiny (3 x 32)" in out


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")
def test_the_memory_tables():
    out = smoke("test_lm_memory.py")
    for number in ("2b", "6"):
        assert f"\n### {number}. " in out


def test_exponent_of_a_power_law():
    sizes = [2, 3, 5]
    slope, misfit = measure.exponent(sizes, [7 * size**1.5 for size in sizes])
    np.testing.assert_allclose([slope, misfit], [1.5, 0], atol=1e-12)
    assert measure.exponent(sizes, [1, 2, 1])[1] > 0.3
