"""This tree against another one, work by work: ratios of CPU seconds.

``python -m tests.benchmarks.against OTHER_TREE [--shape gpt2] [--rounds 5]`` runs both side by side
in processes of one thread, the works in turns, first one tree and then the other, and prints the
median of the ratios. CPU seconds and not those on the wall: other work on the machine disturbs
them less. Random weights, prompts of 16 to 40 tokens.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

SHAPES = ("gpt2", "smollm2")
WORKS = (
    "load", "prefill", "measured gains", "exact linear gains", "identification, ensemble 4",
    "identification, Krylov 32", "mean Jacobians", "Jacobian of each prompt",
)  # fmt: skip


def works(shape: str) -> dict:
    """What is timed, by name; imported here so that each tree imports its own package."""
    import numpy as np
    import torch
    import transformers
    import xarray as xr

    from depthsys import lm

    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    sizes = {"vocab_size": 500, "bos_token_id": 0, "eos_token_id": 0}
    if shape == "gpt2":
        config = transformers.GPT2Config(n_embd=768, n_layer=12, n_head=12, n_positions=80, **sizes)
        hf = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=80, **sizes,
        )  # fmt: skip
        hf = transformers.LlamaForCausalLM(config)
    model = lm.DepthModel(hf)
    rng = np.random.default_rng(0)
    v = rng.standard_normal((model.n_layers + 1, model.n_features))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    ids = [rng.integers(1, 499, size=int(n)).tolist() for n in rng.integers(16, 40, size=12)]
    run, few = model.run(ids), model.run(ids[:2])
    functions = (
        lambda: lm.DepthModel(hf),
        lambda: model.run(ids),
        lambda: lm.measure_gains(run, concept),
        lambda: lm.linear_gains(run, concept),
        lambda: lm.identify(run, concept, lm.Ensemble(4)),
        lambda: lm.identify(run, concept, lm.Krylov(32)),
        lambda: lm.jacobians(few),
        lambda: lm.jacobians(few, per_prompt=True),
    )
    return dict(zip(WORKS, functions, strict=True))


def serve(shape: str) -> None:
    """Do the works whose names come on standard input, and write the CPU seconds of each."""
    import time

    known = works(shape)
    print("ready", flush=True)
    for line in sys.stdin:
        begin = time.process_time()
        known[line.strip()]()
        print(time.process_time() - begin, flush=True)


class Tree:
    """A process that works with the package of one tree."""

    def __init__(self, tree: Path, shape: str):
        paths = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", shape],
            cwd=tree, env=os.environ | paths, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._read("ready")

    def _read(self, expected: str | None = None) -> str:
        line = self._process.stdout.readline().strip()  # pyright: ignore[reportOptionalMemberAccess]
        if not line or (expected and line != expected):
            raise RuntimeError(f"a worker ended with {self._process.wait()}; run it with --serve")
        return line

    def seconds(self, name: str) -> float:
        """CPU seconds of a work."""
        print(name, file=self._process.stdin, flush=True)
        return float(self._read())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def table(here: Path, other: Path, shape: str, rounds: int) -> list[str]:
    """Lines of a Markdown table."""
    trees = Tree(here, shape), Tree(other, shape)
    lines = ["| work | this, CPU s | ratio, median [least, largest] |", "| --- | --- | --- |"]
    try:
        for name in WORKS:
            for tree in trees:
                tree.seconds(name)  # warm
            pairs = []
            for number in range(rounds):
                order = trees if number % 2 == 0 else trees[::-1]
                found = {tree: tree.seconds(name) for tree in order}
                pairs.append([found[tree] for tree in trees])
            ratios = [new / old for new, old in pairs]
            seconds = statistics.median(new for new, _ in pairs)
            told = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            lines.append(f"| {name} | {seconds:.3g} | {told} |")
    finally:
        for tree in trees:
            tree.close()
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Print the table of one shape."""
    if "--serve" in sys.argv[1:2]:
        return serve(sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", type=Path, help="the other tree, for example a git worktree")
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    here = Path(__file__).resolve().parents[2]
    print("\n".join(table(here, given.other.resolve(), given.shape, given.rounds)))
    return None


if __name__ == "__main__":
    main()
