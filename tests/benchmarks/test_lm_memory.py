"""Peaks of memory, each in a process of its own (resident memory; on a GPU torch's own count)."""

import sys

import pytest

from tests.benchmarks import lm_memory, lm_setup
from tests.benchmarks.test_lm_jacobians import vectorized_fits

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="peaks are read from /proc"
)

ONE = "2b. Full Jacobian of one block, one prompt, memory over the model (wanted: 1/30)"
IDENTIFY = "6. Memory of an identification of order 32 (wanted: weights + 1 GB)"
MIB = 2**20


@pytest.mark.parametrize("n_tokens", lm_setup.SIZES.tokens)
@pytest.mark.parametrize("name", lm_setup.NAMES)
def test_memory_of_one_jacobian(record, name, n_tokens):
    H = lm_setup.SHAPES[name].H
    row = {"shape": lm_setup.shape_of(name), "T": str(n_tokens)}
    extra = {}
    for side in ("depthsys", "autograd", "vectorized"):
        if side == "vectorized" and not vectorized_fits(H, n_tokens):
            row |= {side: "does not fit", f"{side} / depthsys": ""}
            continue
        (found,) = lm_memory.in_child("jacobian", name, "float32", n_tokens, side)
        extra[side] = max(found["peak"] - found["before"], 1)
        row[side] = f"{extra[side] / MIB:.0f} MiB"
        if side != "depthsys":
            row[f"{side} / depthsys"] = f"{extra[side] / extra['depthsys']:.1f}"
    row["the Jacobian itself"] = f"{4 * H**2 / MIB:.1f} MiB"
    record(ONE, row)


def test_memory_of_an_identification(record):
    """The largest shape; 1 GB is the promise of the documentation, so it is asserted."""
    name = max(lm_setup.NAMES, key=lambda n: lm_setup.SHAPES[n].H)
    n_tokens, counts = lm_setup.SIZES.tokens[0], lm_setup.SIZES.memory_prompts
    found = lm_memory.in_child("identify", name, "float32", n_tokens, *counts)
    for count, row in zip(counts, found, strict=True):
        record(
            IDENTIFY,
            {
                "shape": lm_setup.shape_of(name),
                "T": str(n_tokens),
                "prompts": str(count),
                "weights": f"{row['weights'] / MIB:.0f} MiB",
                "in use before": f"{row['before'] / MIB:.0f} MiB",
                "peak": f"{row['peak'] / MIB:.0f} MiB",
                "peak - before": f"{(row['peak'] - row['before']) / MIB:.0f} MiB",
                "peak - weights": f"{(row['peak'] - row['weights']) / MIB:.0f} MiB",
            },
        )
    assert max(row["peak"] - row["weights"] for row in found) < 1e9
