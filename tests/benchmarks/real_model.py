"""What a main job and a comparison cost on a real model, in plain prefills of the same texts.

    python -m tests.benchmarks.real_model MODEL TEXTS --split 400/200/200 [--compare]

A plain prefill is the model's own forward pass without cache over all texts of the three splits,
sorted by length, 32 left-padded prompts at a time. Both sides run in this process, on the same
threads; the plain one before and after, and the mean of the two counts. Times are CPU seconds of
this process: on a shared machine the clock on the wall tells of the neighbours. With ``--device
cuda`` they are seconds on the wall, once the device has finished.
"""

import argparse
import resource
from pathlib import Path
from time import perf_counter, process_time

import torch

from depthsys import lm
from depthsys.study import Cell, Settings, steps

JOBS = {"ensemble, order 4": ("ensemble", 4), "krylov, order 32": ("krylov", 32)}


def clock() -> float:
    """CPU seconds, or with a GPU seconds on the wall after all of its work."""
    if not torch.cuda.is_initialized():
        return process_time()
    torch.cuda.synchronize()
    return perf_counter()


def plain_prefill(model: lm.DepthModel, rows: list[list[int]]) -> float:
    """Seconds of the model's own forward pass over all prompts."""
    rows = sorted(rows, key=len)
    begin = clock()
    with torch.no_grad():
        for start in range(0, len(rows), 32):
            batch = rows[start : start + 32]
            longest = max(map(len, batch))
            ids = torch.tensor([[0] * (longest - len(row)) + row for row in batch])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch])
            model.hf(
                ids.to(model.hf.device), attention_mask=mask.to(model.hf.device), use_cache=False
            )
    return clock() - begin


def main_job(cell: Cell) -> dict[str, float]:
    """Seconds of every step of a main job."""
    spent = {}

    def timed(name, function, *given):
        begin = clock()
        found = function(*given)
        spent[name] = clock() - begin
        return found

    timed("prefill", lambda: (cell.concept.states, cell.operating.batches, cell.held_out.batches))
    concept = timed("concept", steps.find_concept, cell)
    system = timed("identify", steps.identify, cell, concept)
    timed("gains", steps.gains, cell, system)
    timed("control", steps.control, cell, system)
    return spent


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--split", default="400/200/200")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compare", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = lm.DepthModel.load(given.model, device=given.device)
    concept, operating, held_out = map(int, given.split.split("/"))
    sizes = {"concept": concept, "operating": operating, "held_out": held_out}
    texts = lm.read_texts(given.texts).split(**sizes)
    parts = (texts.concept, texts.operating, texts.held_out)
    rows = [row for part in parts for row in model.tokenize(part)[0]]
    plain_prefill(model, rows[:64])
    print(f"{len(rows)} texts, {sum(map(len, rows))} tokens, {given.threads} threads")
    for name, (basis, order) in JOBS.items():
        asked = Settings.checked(basis=basis, order=order, split=given.split)
        before = plain_prefill(model, rows)
        spent = main_job(Cell(asked, model, texts))
        plain = (before + plain_prefill(model, rows)) / 2
        whole = sum(spent.values())
        each = ", ".join(f"{step} {seconds / plain:.2f}" for step, seconds in spent.items())
        print(
            f"main job, {name}: {whole / plain:.2f} plain prefills ({whole:.0f} s): {each}",
            flush=True,
        )
    if given.compare:
        before = plain_prefill(model, rows)
        begin = clock()
        lm.compare(model, texts)
        whole = clock() - begin
        plain = (before + plain_prefill(model, rows)) / 2
        print(f"compare with defaults: {whole / plain:.2f} plain prefills ({whole:.0f} s)")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.1f} GiB")


if __name__ == "__main__":
    main()
