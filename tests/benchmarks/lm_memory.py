"""One measurement of memory in a process of its own. Prints JSON.

python -m tests.benchmarks.lm_memory jacobian NAME PRECISION T {depthsys,autograd,vectorized}
python -m tests.benchmarks.lm_memory identify NAME PRECISION T COUNT [COUNT ...]
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from depthsys import lm
from tests.benchmarks import lm_setup, lm_slow, measure


def in_child(*arguments: str | int) -> list[dict[str, int]]:
    """Run this file in another process."""
    command = [sys.executable, "-m", "tests.benchmarks.lm_memory", *map(str, arguments)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def jacobian(name: str, precision: str, n_tokens: str, side: str) -> None:
    """Peak of one Jacobian. The model has one block: the others would only wait."""
    shape = lm_setup.SHAPES[name]
    shape = lm_setup.Shape(1, shape.H, shape.heads, vocabulary=100)
    hf = lm_setup.random_gpt2(shape, precision)
    ids = lm_setup.random_ids(1, int(n_tokens), shape.vocabulary)
    function = _replayed(hf, ids) if side == "depthsys" else _whole(hf, ids, side)
    report(function)


def _replayed(hf, ids) -> Callable:
    block = lm.DepthModel(hf, max_tokens=len(ids[0])).run(ids).batches[0].blocks[0]
    # libraries set themselves up at the first product
    block.vjp(torch.ones(2, block.x.shape[-1]).to(block.x))
    return block.jacobian


def _whole(hf, ids, side: str) -> Callable:
    tensor = torch.tensor(ids, device=lm_setup.DEVICE)
    last_token, hidden = lm_slow.whole_sequence_map(hf, tensor, 0)
    torch.autograd.functional.vjp(last_token, hidden, torch.ones_like(hidden[0, -1]))
    return lambda: lm_slow.whole_sequence_jacobian(
        last_token, hidden, vectorize=side == "vectorized"
    )


def identify(name: str, precision: str, n_tokens: str, *counts: str) -> None:
    """Peaks of identifications of several numbers of prompts, after a small one."""
    shape = lm_setup.SHAPES[name]
    hf = lm_setup.random_gpt2(shape, precision)
    weights = sum(p.numel() * p.element_size() for p in hf.parameters())
    model = lm.DepthModel(hf, max_tokens=int(n_tokens))
    concept = lm_setup.random_concept(model.n_layers, model.n_features)
    method = lm.Krylov(min(lm_setup.ORDER, shape.H))
    lm.identify(model, lm_setup.random_ids(1, int(n_tokens), shape.vocabulary), concept, method)
    for count in map(int, counts):
        ids = lm_setup.random_ids(count, int(n_tokens), shape.vocabulary)
        report(lambda ids=ids: lm.identify(model, ids, concept, method), weights=weights)


def report(function: Callable, **more: int) -> None:
    before, peak = measure.peak_over_start(function, lm_setup.DEVICE)
    print(json.dumps({"before": before, "peak": peak, **more}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(lm_setup.n_threads())
    {"jacobian": jacobian, "identify": identify}[sys.argv[1]](*sys.argv[2:])
