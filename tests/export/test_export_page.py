"""docs/export.md shows what examples/octave_round_trip.py prints."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from depthsys import export, ltv

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- round trip: .* -->\n```text\n(.*?)\n```", re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


@pytest.mark.octave
def test_the_round_trip_is_as_the_page_says(tmp_path):
    command = [sys.executable, "examples/octave_round_trip.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = BLOCK.search((ROOT / "docs/export.md").read_text(encoding="utf-8"))
    assert shown is not None
    assert NUMBER.sub("#", done.stdout.strip()) == NUMBER.sub("#", shown[1])
    pairs = zip(NUMBER.findall(done.stdout), NUMBER.findall(shown[1]), strict=True)
    for got, wanted in list(pairs)[1:]:  # the first is the rounding error of the self-check
        assert float(got) == pytest.approx(float(wanted), rel=0.01, abs=0.002)


@pytest.mark.octave
def test_the_self_check_prints_what_the_page_says(tmp_path):
    rng = np.random.default_rng(0)
    A, B, C = (rng.normal(size=size) for size in ((5, 3, 3), (5, 3, 2), (6, 4, 3)))
    export.to_matlab(ltv.system(A, B, C), tmp_path / "rod", name="rod")
    command = ["octave", "--no-gui", "--quiet", "--norc", "--eval", "selfcheck"]
    done = subprocess.run(command, cwd=tmp_path / "rod", capture_output=True, text=True)
    passed, checked = done.stdout.strip().split("\n")
    page = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    assert passed.rsplit(" ", 1)[0] in page
    assert checked == f"checked: {(tmp_path / 'rod/rod.mat').resolve()}"
