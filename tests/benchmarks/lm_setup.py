"""Random models of the real shapes, prompts and directions for the `depthsys.lm` benchmarks.

Three environment variables choose what is run:

DEPTHSYS_BENCH_SHAPES
    Names from `SHAPES`, separated by commas; by default the three of GPT-2. "tiny" alone also
    makes every other size small: a smoke run, whose times mean nothing.
DEPTHSYS_BENCH_DEVICE
    "cpu" (default), "cuda" or "cuda:1". On a GPU each shape is run in float32 with TF32 off and on,
    and in bfloat16.
OMP_NUM_THREADS
    Threads of torch on the CPU; by default all cores this process may use.
"""

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import transformers
import xarray as xr
from transformers import GPT2Config, GPT2LMHeadModel


@dataclass(frozen=True)
class Shape:
    """A GPT-2 of L layers, H features and so many heads."""

    L: int
    H: int
    heads: int
    vocabulary: int = 50257


SHAPES = {
    "GPT-2": Shape(12, 768, 12),
    "GPT-2-medium": Shape(24, 1024, 16),
    "GPT-2-large": Shape(36, 1280, 20),
    "tiny": Shape(3, 32, 2, vocabulary=100),
}


@dataclass(frozen=True)
class Sizes:
    """Everything else that a full and a smoke run do not share.

    Attributes
    ----------
    tokens, prompts
        T and number of prompts of the speed table.
    budget
        Seconds after which a measurement in turns stops (two rounds are made in any case).
    memory_prompts
        Numbers of prompts of the memory table.
    cost_base, cost_axes
        The cost table varies one of H, L, T and P (prompts) at a time around the base.
    """

    tokens: tuple[int, ...]
    prompts: int
    budget: float
    memory_prompts: tuple[int, ...]
    cost_base: dict[str, int]
    cost_axes: dict[str, tuple[int, ...]]


FULL = Sizes(
    tokens=(64, 256),
    prompts=16,
    budget=40.0,
    memory_prompts=(16, 64, 256),
    cost_base={"H": 512, "L": 12, "T": 64, "P": 16},
    cost_axes={
        "H": (256, 512, 768, 1024, 1280),
        "L": (6, 12, 24, 36),
        "T": (32, 64, 128, 256),
        "P": (4, 16, 32, 64),
    },
)
SMOKE = Sizes(
    tokens=(6,),
    prompts=3,
    budget=0.0,
    memory_prompts=(2, 4),
    cost_base={"H": 16, "L": 2, "T": 4, "P": 2},
    cost_axes={"H": (16, 32, 48), "L": (2, 3, 4), "T": (4, 6, 8), "P": (2, 3, 4)},
)

NAMES = os.environ.get("DEPTHSYS_BENCH_SHAPES", "GPT-2,GPT-2-medium,GPT-2-large").split(",")
DEVICE = torch.device(os.environ.get("DEPTHSYS_BENCH_DEVICE", "cpu"))
SIZES = SMOKE if NAMES == ["tiny"] else FULL
ORDER = 32
PRECISIONS = ("float32", "TF32", "bfloat16") if DEVICE.type == "cuda" else ("float32",)

if unknown := set(NAMES) - set(SHAPES):
    raise ValueError(
        f"DEPTHSYS_BENCH_SHAPES must hold names of {list(SHAPES)}; got {sorted(unknown)}."
    )


def n_threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(os.environ.get("OMP_NUM_THREADS") or cores or 1)


def shape_of(name: str) -> str:
    """Name and sizes for a table row, such as GPT-2 (12 x 768)."""
    return f"{name} ({SHAPES[name].L} x {SHAPES[name].H})"


def random_gpt2(shape: Shape, precision: str = "float32") -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=shape.L,
        n_embd=shape.H,
        n_head=shape.heads,
        vocab_size=shape.vocabulary,
        bos_token_id=0,
        eos_token_id=0,
    )
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    hf = GPT2LMHeadModel(config).to(device=DEVICE, dtype=dtype)
    return hf.eval().requires_grad_(False)


class Ids(list):
    """Rows of token ids where `Texts` are expected."""

    sha256 = "random ids"


def random_ids(count: int, n_tokens: int, vocabulary: int) -> Ids:
    rng = np.random.default_rng(1)
    return Ids(rng.integers(0, vocabulary, size=(count, n_tokens)).tolist())


# a smaller one drowns in rounding, and is refused
LEAST_STEP = {"TF32": 0.1, "bfloat16": 1.0}


def step(n_features: int, precision: str = "float32") -> float:
    """Of central differences: 4 % of the norm of an embedding, whose parts are 0.02 sqrt(2)."""
    least = LEAST_STEP.get("TF32" if precision == "tf32" else precision, 0.0)
    return max(1e-3 * n_features**0.5, least)


def random_concept(n_layers: int, n_features: int) -> xr.Dataset:
    v = np.random.default_rng(0).standard_normal((n_layers + 1, n_features))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return xr.Dataset({"direction": (("depth", "feature"), v)})


def header() -> str:
    """Where, when and with what the numbers were made."""
    place = f"{processor()}, {n_threads()} threads"
    if DEVICE.type == "cuda":
        place = f"{torch.cuda.get_device_name(DEVICE)}, {place}"
    return (
        f"{place}; torch {torch.__version__}, transformers {transformers.__version__}; "
        f"{datetime.now(UTC):%Y-%m-%d}; shapes: {', '.join(NAMES)}; random weights."
    )


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# Largest difference that the two sides of a comparison may show, over the largest value, by what
# is compared: 5 to 10 times what was seen in float32, and with TF32 imitated on a CPU. None:
# bfloat16 has no digits left for a difference of two runs, which is then only printed.
TOLERANCE: dict[str, dict[str, float | None]] = {
    # the same central differences, computed twice
    "measured gains": {"float32": 5e-4, "TF32": 0.2, "bfloat16": None},
    # exact derivatives against central differences, whose steps are finite
    "linear gains": {"float32": 5e-3, "TF32": 0.2, "bfloat16": None},
    # exact derivatives, computed in two ways
    "derivatives": {"float32": 2e-5, "TF32": 0.01, "bfloat16": 0.1},
}


def check_difference(what: str, precision: str, difference: float) -> None:
    """AssertionError if the two sides of a comparison do not give the same numbers."""
    limit = TOLERANCE[what][precision]
    assert limit is None or difference <= limit, f"{what} differ by {difference:.1e}"
