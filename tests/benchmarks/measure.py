"""Times in turns, rates, peaks of memory, exponents: numbers only, nothing of `depthsys`."""

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D


@dataclass
class Side:
    """One side of a comparison: its best time in seconds and what it gave in each round."""

    seconds: float
    outputs: list


def in_turns(
    sides: dict[str, Callable[[int], Any]],
    device: torch.device,
    *,
    budget: float,
    max_rounds: int = 5,
) -> dict[str, Side]:
    """Run the sides A B A B ... and keep the best time of each.

    Each side is called with the number of the round. There are at least two rounds (the first
    also warms up), then more until ``budget`` seconds are spent or ``max_rounds`` rounds are made.
    A side that took more than half the budget is not run again.
    """
    results = {name: Side(np.inf, []) for name in sides}
    begin = time.perf_counter()
    for number in range(max_rounds):
        if number >= 2 and time.perf_counter() - begin > budget:
            break
        for name, function in sides.items():
            if budget / 2 < results[name].seconds < np.inf:
                continue
            spent, output = seconds(lambda f=function, n=number: f(n), device)
            results[name].seconds = min(results[name].seconds, spent)
            results[name].outputs.append(output)
    return results


def seconds(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Wall time of one call, and what it gave; waits for a GPU at both ends."""
    synchronize(device)
    start = time.perf_counter()
    output = function()
    synchronize(device)
    return time.perf_counter() - start, output


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def relative_difference(a: Any, b: Any) -> float:
    """Largest difference over the largest reference value."""
    a, b = (np.asarray(torch.as_tensor(x).double().cpu()) for x in (a, b))
    return float(abs(a - b).max() / abs(b).max())


# ---------------------------------------------------------------- floors


def block_matrices(hf) -> list[torch.Tensor]:
    """The matrices of all blocks of a GPT-2 or a Llama, each (in, out); 12 H^2 numbers in GPT-2."""
    blocks = hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers
    modules = list(blocks.modules())
    # GPT-2 stores its matrices as (in, out), torch.nn as (out, in)
    stored = [m.weight for m in modules if isinstance(m, Conv1D)]
    return stored + [m.weight.mT for m in modules if isinstance(m, torch.nn.Linear)]


def product_flops(hf, n_rows: int) -> float:
    """Of one pass of so many rows through all block matrices; in GPT-2 24 H^2 per row and layer."""
    return 2.0 * n_rows * sum(m.numel() for m in block_matrices(hf))


@torch.no_grad()
def products(hf, n_rows: int) -> Callable[[], None]:
    """Bare products of so many rows with all block matrices: nothing but ``torch.mm(out=)``."""
    matrices = block_matrices(hf)
    like = {"dtype": matrices[0].dtype, "device": matrices[0].device}
    rows = {m.shape[0]: torch.randn(n_rows, m.shape[0], **like) for m in matrices}
    out = {m.shape[1]: torch.empty(n_rows, m.shape[1], **like) for m in matrices}

    @torch.no_grad()
    def run() -> None:
        for matrix in matrices:
            torch.mm(rows[matrix.shape[0]], matrix, out=out[matrix.shape[1]])

    return run


def attention_flops(n_layers: int, n_features: int, n_rows: float, n_keys: float) -> float:
    """Scores and mixing of so many queries, each with so many keys."""
    return 4.0 * n_layers * n_features * n_rows * n_keys


def reading_rate(device: torch.device, n_bytes: int) -> float:
    """Bytes per second of reading a large tensor: the best of a matrix-vector product and a sum."""
    matrix = torch.ones(n_bytes // (4 * 4096) or 1, 4096, device=device)
    vector = torch.ones(4096, device=device)
    ways = (lambda: torch.mv(matrix, vector), lambda: matrix.sum())
    best = min(seconds(way, device)[0] for _ in range(5) for way in ways)
    return matrix.numel() * 4 / best


# ---------------------------------------------------------------- memory


def peak_over_start(function: Callable[[], Any], device: torch.device) -> tuple[int, int]:
    """Bytes in use before a call, and the peak during it.

    On the CPU: resident memory of this process (Linux), after what malloc kept was given back.
    On a GPU: torch's own count of allocated bytes.
    """
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        synchronize(device)
        return before, torch.cuda.max_memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status_bytes("VmRSS")
    function()
    return before, _status_bytes("VmHWM")


def _status_bytes(key: str) -> int:
    rows = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(row.split()[1]) for row in rows if row.startswith(key + ":"))


def available_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    rows = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(row.split()[1]) for row in rows if row.startswith("MemAvailable:"))


# ---------------------------------------------------------------- exponents


def exponent(sizes: list[int], times: list[float]) -> tuple[float, float]:
    """Slope of log time over log size by least squares, and the largest misfit as a fraction."""
    x, y = np.log(sizes), np.log(times)
    slope, offset = np.polyfit(x, y, 1)
    misfit = np.exp(abs(y - slope * x - offset).max()) - 1
    return float(slope), float(misfit)
