"""Peak memory of an identification against the number of prompts. Run with `make bench`."""

import subprocess
import sys

SCRIPT = """
import resource, sys
from tests.benchmarks.test_gain_curve import Ids, random_concept, random_model
from depthsys import lm
import numpy as np
model = random_model("GPT-2-medium")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids = Ids(np.random.default_rng(0).integers(0, 50_000, size=(int(sys.argv[1]), 64)).tolist())
lm.identify(model, ids, random_concept(model))
print(before / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_peak_memory_is_flat_in_prompts():
    peaks = {}
    for n_prompts in (50, 400):
        command = [sys.executable, "-c", SCRIPT, str(n_prompts)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        loaded, peaks[n_prompts] = map(float, out.split())
        print(f"\n{n_prompts} prompts: loaded {loaded:.0f} MiB, peak {peaks[n_prompts]:.0f} MiB")
    # hidden states of 350 prompts alone would be 87 MiB, their keys and values 4.2 GiB
    assert peaks[400] - peaks[50] < 40
