"""What studies of many prompts cost on a cluster: computed from rates that were measured elsewhere.

    python -m tests.benchmarks.cluster_cost

Prints the last section of docs/scale.md. Times follow from what one H100 took for 32 prompts of the
8B shape (docs/performance.md) and from how the work grows with layers and weights; sizes and what
goes over the network follow from the shapes alone. Nothing was run on these numbers of prompts.
"""

from collections.abc import Iterator

from tests.benchmarks.what_fits import BUS, BYTES, SHAPES, Shape

GIB = 2**30
PROMPTS, TOKENS = 10**6, 128
SMALL, LARGE = 256, 4096  # prompts of a shard
GPUS = (8, 64)

# Seconds on one H100 for 32 prompts of 128 tokens through Llama-8B, and what they grow with: all
# weights of the blocks once per prompt, or once per prompt and pair of layers.
MEASURED_PROMPTS = 32
WORKS = {
    "prefill": ({"float32": 1.19, "TF32": 0.22}, "layers"),
    "measured gains": ({"float32": 1.87, "TF32": 0.81}, "pairs"),
    "exact linear gains": ({"float32": 2.15, "TF32": 1.28}, "layers"),
    "ensemble, order 4, profile": ({"float32": 2.4, "TF32": 1.6}, "pairs"),
    "Krylov, order 32": ({"float32": 7.3, "TF32": 6.8}, "pairs"),
}
# Seconds of a scheduler per task, as Dask's own documentation says.
TASK_S = 1e-3


def seconds(shape: Shape, precision: str, work: str, n_prompts: int = PROMPTS) -> float:
    """GPU seconds of a work, at the rate of the shape that was measured."""
    measured = next(each for each in SHAPES if each.name == "Llama-3.1-8B")
    times, grows = WORKS[work]
    growth = shape.block * shape.L / (measured.block * measured.L)
    if grows == "pairs":
        growth *= (shape.L + 1) / (measured.L + 1)
    return times[precision] * growth * n_prompts / MEASURED_PROMPTS


def moving(shape: Shape, precision: str, n_prompts: int = PROMPTS, shard: int = LARGE) -> float:
    """GPU seconds in which layers come from the host: once per prefill, work and shard."""
    shards = -(-n_prompts // shard)
    passes = 2 * (len(WORKS) - 1)
    return passes * shards * shape.L * shape.block * BYTES[precision] / BUS


def krylov_bytes(L: int, H: int, itemsize: int) -> tuple[int, int]:
    """What goes to a worker and what comes back from a shard, in one identification.

    With one input and one output. At layer l the l + 1 directions that are reached go there, and
    what is driven and read at all depths, in the dtype of the model. Products come back in float64;
    so do the sums of the nominal states, of their norms and margins and of the rows that are read.
    """
    depths = L + 1
    reached = L * (L + 1) // 2
    there = (reached * H + L * 2 * depths * H) * itemsize
    # one depth with every layer, and two with the last one
    back = 8 * (reached * H + depths * (H + 2) + L * H)
    return there, back


def ensemble_bytes(L: int, H: int, itemsize: int) -> tuple[int, int]:
    """The same of the mean response: what is driven and read, and one map with nominal sums."""
    depths = L + 1
    return 2 * depths * H * itemsize, 8 * (depths * L + depths * (H + 2) + H)


def waiting(shape: Shape, itemsize: int = 4) -> int:
    """Bytes that wait during a sweep, for each prompt: whole sequences at two depths."""
    return 2 * TOKENS * shape.H * itemsize


def sizes() -> Iterator[str]:
    """Markdown: what a worker holds."""
    columns = ["shape, float32", "weights", f"contexts of a shard of {SMALL}", "its states"]
    columns += ["contexts of all", f"of which {GPUS[0]} workers each", "waiting, in a sweep, each"]
    yield _line(columns)
    yield _line(["---"] * len(columns))
    for shape in SHAPES:
        contexts = 4 * shape.context(PROMPTS, TOKENS)
        cells = [4 * shape.parameters, 4 * shape.context(SMALL, TOKENS), 4 * shape.states(SMALL)]
        cells += [contexts, contexts // GPUS[0], waiting(shape) * PROMPTS // GPUS[0]]
        yield _line([shape.name, *map(_size, cells)])


def traffic() -> Iterator[str]:
    """Markdown: what goes over the network."""
    columns = ["shape, float32", "Krylov: to a worker", "back, per shard", "rounds"]
    columns += ["ensemble: to a worker", "back, per shard", "rounds", "gains: back, per prompt"]
    yield _line(columns)
    yield _line(["---"] * len(columns))
    for shape in SHAPES:
        krylov = map(_size, krylov_bytes(shape.L, shape.H, 4))
        ensemble = map(_size, ensemble_bytes(shape.L, shape.H, 4))
        gains = _size(8 * (2 * shape.L + 1))
        yield _line([shape.name, *krylov, str(shape.L + 1), *ensemble, "1", gains])


def times() -> Iterator[str]:
    """Markdown: GPU hours of each work."""
    columns = ["shape", "precision", *WORKS, "moving layers", "sum"]
    columns += [f"on {count} GPUs" for count in GPUS]
    yield _line([*columns, "of the scheduler"])
    yield _line(["---"] * (len(columns) + 1))
    for shape in SHAPES:
        for precision in ("float32", "TF32"):
            each = [seconds(shape, precision, work) for work in WORKS]
            is_large = shape.name == SHAPES[-1].name
            moves = moving(shape, precision) if is_large else 0.0
            # without room for the contexts of all, every work prefills again
            whole = each[0] * (len(WORKS) - 1) + sum(each[1:]) + moves
            shards = -(-PROMPTS // (LARGE if is_large else SMALL))
            tasks = shards * (shape.L + 1 + len(WORKS) - 2)
            hours = [*each, moves, whole, *(whole / count for count in GPUS)]
            cells = [_hours(one) if one else "" for one in hours]
            yield _line([shape.name, precision, *cells, f"{tasks * TASK_S:.0f} s"])


def _size(count: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _hours(spent: float) -> str:
    hours = spent / 3600
    return f"{hours:.0f} h" if hours >= 100 else f"{hours:.2g} h"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


TEXT = """## Cost: computed, not measured

Made by `python -m tests.benchmarks.cluster_cost`. **No number of this section was measured on a
cluster**, or with that many prompts: {prompts} of {tokens} tokens, one input, one output.

What a worker holds. Contexts that find no room are computed again, so that every work prefills once
more. A method that reduces the mean system (all but the ensemble) goes layer by layer over all
shards, and where contexts are computed again the whole sequences wait between two layers (methods
that look back from the outputs keep those of all depths: {layers} times as much in the 8B shape).
So for so many prompts the ensemble is the method: it goes shard by shard, and holds one at a time.

{sizes}

What goes over the network. To a worker it goes once for all of its shards. A round is a task for
each shard, and the next one begins when all of them have ended.

{traffic}

GPU hours of each work on runs that are there, and of the prefill, which is in the sum once for each
of the {works} works. Rates are those of one H100 on 32 prompts of the 8B shape, at commit 9582bad
(docs/performance.md); they grow with the weights of the blocks, and where the pushes of all layers
go through all later ones with the number of layers once more. Larger batches than 32 prompts may
well be faster; nobody has tried. The 70B shape is larger than a card in float32: there shards have
{large} prompts, for each of which the layers come from the host's memory once per prefill and work,
at {bus:.0f} GB/s, which is *assumed*; the others have {small}. Hours on many GPUs are the sum
divided by their number. *Of the scheduler*: {task:.0f} ms for each task, which is *assumed* after
Dask's own documentation; other work goes on meanwhile.

{times}
"""


def section() -> str:
    """The section of docs/scale.md."""
    return TEXT.format(
        tokens=TOKENS,
        prompts=f"{PROMPTS:,}".replace(",", " "),
        layers=SHAPES[1].L // 2,
        works=len(WORKS) - 1,
        large=LARGE,
        small=SMALL,
        bus=BUS / 1e9,
        task=TASK_S * 1e3,
        sizes="\n".join(sizes()),
        traffic="\n".join(traffic()),
        times="\n".join(times()),
    )


if __name__ == "__main__":
    print(section(), end="")
