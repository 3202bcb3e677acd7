"""Peak memory of an identification against the number of prompts. Run with `make bench`."""

import subprocess
import sys

SCRIPT = """
import sys
from tests.benchmarks.test_gain_curve import Ids, random_concept, random_model
from depthsys import lm
import numpy as np
from pathlib import Path
def status(key):
    rows = Path("/proc/self/status").read_text().splitlines()
    return int(next(row.split()[1] for row in rows if row.startswith(key)))
model = random_model("GPT-2-medium")
ids = Ids(np.random.default_rng(0).integers(0, 50_000, size=(int(sys.argv[1]), 64)).tolist())
lm.identify(model, Ids(ids[:2]), random_concept(model))  # warm up
loaded = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading (Linux)
lm.identify(model, ids, random_concept(model))
print(loaded / 1024, status("VmHWM") / 1024)
"""


def test_peak_memory_is_flat_in_prompts():
    peaks = {}
    for n_prompts in (50, 400):
        command = [sys.executable, "-c", SCRIPT, str(n_prompts)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        loaded, peaks[n_prompts] = map(float, out.split())
        peak = peaks[n_prompts]
        print(f"\n{n_prompts} prompts: before {loaded:.0f} MiB, peak {peak:.0f} MiB")
    # hidden states of 350 prompts alone would be 87 MiB, their keys and values 4.2 GiB
    assert peaks[400] - peaks[50] < 40
