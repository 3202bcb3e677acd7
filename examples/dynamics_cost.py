"""What measures of depth cost on SmolLM2: the table of "Depth as dynamics" in docs/performance.md.

    depthsys fetch
    OMP_NUM_THREADS=1 python examples/dynamics_cost.py ~/.cache/depthsys/real
    OMP_NUM_THREADS=1 python examples/dynamics_cost.py ~/.cache/depthsys/real --memory

Every call of a block, every product with a Jacobian and every row of logits is counted while a
measure is taken, its prefill included. Of each shape the first call is made once more, alone: that
many of them are the floor. All seconds are of the processor, on one thread. The numbers go to
docs/dynamics_cost.json after each measure, and between the markers of the page; ``--measures``
takes some of them and leaves the others as they are; ``--memory`` measures peaks, for so many
texts and for twice as many.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import Any

import torch

from depthsys import lm
from depthsys.demo import real
from depthsys.lm.hf.attention import RecordingCache
from depthsys.lm.linearize import Linearised
from depthsys.lm.progress import bar
from depthsys.report import Table, markdown
from depthsys.report.page import update
from depthsys.study import Cell, Settings, steps
from depthsys.study.dynamics import measured
from depthsys.study.measures import MEASURES, Sizes

DOCS = Path(__file__).parents[1] / "docs"
PAGE, NUMBERS = DOCS / "performance.md", DOCS / "dynamics_cost.json"
TEXTS = "movies"
STREAMED = ("skip",)  # whose peaks are measured, for so many texts and twice as many
MARKERS = {
    name: (f"<!-- {name}: examples/dynamics_cost.py -->", f"<!-- end of {name} -->")
    for name in ("cost of measures", "memory of measures")
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("real", type=Path, help="folder of `depthsys fetch`")
    parser.add_argument("--texts", type=int, default=200, help="operating texts")
    parser.add_argument("--jacobians", type=int, default=Settings.n_jacobians)
    parser.add_argument("--measures", help="names with commas between them")
    parser.add_argument("--memory", action="store_true", help="peaks of memory alone")
    parser.add_argument("--peak-of", help="peak of one measure, which a process of its own takes")
    parser.add_argument("--out", type=Path, default=NUMBERS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak_of is not None:
        print(json.dumps(peak(args.peak_of, args)))
        return
    numbers = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    if args.memory:
        numbers.setdefault("memory", {}).update(peaks(args))
        store(numbers, args.out)
        return
    cell = cell_of(args)
    wanted = args.measures.split(",") if args.measures else list(MEASURES)
    concept = None
    if any(MEASURES[name].of_concept for name in wanted):
        concept = steps.find_concept(cell)
    with bar("measures", len(wanted), "measure") as shown:
        for name in wanted:
            numbers.setdefault("measures", {})[name] = cost(fresh(cell), name, concept)
            store(numbers, args.out)
            shown.update(1)


def store(numbers: dict, path: Path) -> None:
    """What is known so far, to the file and, of the page's own, to the page."""
    path.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    if path == NUMBERS and {"measures", "memory"} <= {*numbers}:
        tables = zip(MARKERS.values(), (cost_table(numbers), memory_table(numbers)), strict=True)
        update(PAGE, {markers: markdown(table) for markers, table in tables})


def cell_of(args: argparse.Namespace, others: int | None = None) -> Cell:
    """SmolLM2 and rated texts; ``others`` of each class beside the operating ones, or as many."""
    each = args.texts // 2
    beside = each if others is None else others
    split = f"{beside}/{each}/{beside}"
    settings = Settings.checked(split=split, device="cpu", n_jacobians=args.jacobians)
    model = lm.DepthModel.load(args.real / real.MODEL, device="cpu")
    texts = lm.read_texts(args.real / f"{TEXTS}.csv").split(split)
    return Cell(settings, model, texts)


def fresh(cell: Cell) -> Cell:
    """The same without what was run: every measure prefills its own texts."""
    return Cell(cell.settings, cell.model, cell.texts)


# ------------------------------------------------------------------------------------ counts


class Counts:
    """What goes through blocks: how often each kind and shape, and seconds of one of each alone.

    Attributes
    ----------
    calls, seconds
        By kind and shape.
    aside
        Seconds that the repeated calls took.
    """

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self.seconds: dict[tuple[str, tuple[int, ...]], float] = {}
        self.aside = 0.0
        self._inside = False

    def __call__(self, kind: str, shape: tuple[int, ...], function: Callable[[], Any]) -> Any:
        if self._inside:  # a product calls others
            return function()
        self._inside = True
        try:
            found = function()
            key = (kind, shape)
            self.calls[key] += 1
            if key not in self.seconds:
                begin = process_time()
                function()
                self.seconds[key] = process_time() - begin
                self.aside += self.seconds[key]
            return found
        finally:
            self._inside = False

    def rows(self, *kinds: str) -> int:
        """Rows of some kinds: tokens, states of last tokens, directions, rows of logits."""
        return sum(n * _rows(shape) for (kind, shape), n in self.calls.items() if kind in kinds)

    def floor(self, *kinds: str) -> float:
        """Seconds of as many calls alone."""
        return sum(n * self.seconds[key] for key, n in self.calls.items() if key[0] in kinds)


KINDS = ("passes", "last tokens", "products", "back", "logits")
SHOWN = {
    "passes": "tokens of whole texts", "back": "the same back", "last tokens": "last tokens",
    "products": "products", "logits": "logits",
}  # fmt: skip


def _rows(shape: tuple[int, ...]) -> int:
    rows = 1
    for size in shape:
        rows *= size
    return rows


@contextmanager
def counted(model: lm.DepthModel) -> Iterator[Counts]:
    """Count what goes through the blocks and the head of a model meanwhile."""
    counts = Counts()
    call, head, grad, products = (
        model.blocks.call, model.head, torch.autograd.grad, Linearised._products,
    )  # fmt: skip

    def counting_call(layer: int, given: Any, hidden: torch.Tensor, cache: Any) -> torch.Tensor:
        whole = isinstance(cache, RecordingCache)
        again = iter((cache, RecordingCache() if whole else cache))
        kind = "passes" if whole else "last tokens"
        shape = tuple(hidden.shape[:2])
        return counts(kind, shape, lambda: call(layer, given, hidden, next(again)))

    def counting_products(linear: Linearised, output: Any, source: Any, directions: torch.Tensor):
        shape = (len(linear.x), directions.shape[-2])
        return counts("products", shape, lambda: products(linear, output, source, directions))

    def counting_grad(outputs: Any, inputs: Any, *given: Any, **options: Any):
        shape = tuple(outputs.shape[:-1]) if isinstance(outputs, torch.Tensor) else ()
        options["retain_graph"] = True
        return counts("back", shape, lambda: grad(outputs, inputs, *given, **options))

    def counting_head(x: torch.Tensor) -> torch.Tensor:
        return counts("logits", tuple(x.shape[:-1]), lambda: head(x))

    model.blocks.call = counting_call
    model.head = counting_head
    torch.autograd.grad, Linearised._products = counting_grad, counting_products
    try:
        yield counts
    finally:
        del model.blocks.call, model.head
        torch.autograd.grad, Linearised._products = grad, products


def cost(cell: Cell, name: str, concept: Any) -> dict:
    """Rows and seconds of a measure, its prefill included."""
    with counted(cell.model) as counts:
        begin = process_time()
        measured(cell, name, concept)
        seconds = process_time() - begin - counts.aside
    n = Sizes(cell.model.n_layers, cell.model.n_features, len(cell.operating), len(cell.few))
    return {
        "texts": n.n_prompts,
        "n_jacobians": n.n_jacobians,
        "rows": {kind: counts.rows(kind) for kind in KINDS},
        "forecast": MEASURES[name].rows(n),
        "seconds": round(seconds, 2),
        "floor": {kind: round(counts.floor(kind), 2) for kind in KINDS},
    }


# ------------------------------------------------------------------------------------ memory


def peaks(args: argparse.Namespace) -> dict:
    """Peaks of memory of some measures, each in a process of its own."""
    found: dict[str, dict[str, Any]] = {}
    for name in args.measures.split(",") if args.measures else STREAMED:
        for count in (args.texts, 2 * args.texts):
            command = [sys.executable, __file__, str(args.real), "--texts", str(count)]
            said = subprocess.run(
                [*command, "--peak-of", name], check=True, capture_output=True, text=True
            )
            found.setdefault(name, {})[str(count)] = json.loads(said.stdout)
    return found


def peak(name: str, args: argparse.Namespace) -> dict:
    """Bytes in use before a measure, and at most while it is taken; kept contexts among them."""
    cell = cell_of(args, others=4)
    concept = steps.find_concept(cell) if MEASURES[name].of_concept else None
    cell = fresh(cell)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free counts as free
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # forget the peak so far
    measured(cell, name, concept)
    return {"before": before, "peak": _status("VmHWM"), "contexts": cell.operating.nbytes}


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


# ------------------------------------------------------------------------------------ tables


def cost_table(numbers: dict) -> Table:
    order, rows = list(MEASURES), []
    for name, found in sorted(numbers["measures"].items(), key=lambda each: order.index(each[0])):
        floor = sum(found["floor"].values())
        rows.append(
            (
                f"`{name}`",
                *(f"{found['rows'][kind]:,}".replace(",", " ") for kind in SHOWN),
                f"{found['seconds']:.0f}",
                f"{floor:.0f}",
                f"{found['seconds'] / floor:.1f}",
            )
        )
    return Table(("measure", *SHOWN.values(), "seconds", "floor", "ratio"), rows)


def memory_table(numbers: dict) -> Table:
    rows = []
    for name, of_counts in numbers["memory"].items():
        for count, found in of_counts.items():
            sizes = (found["peak"] - found["before"], found["contexts"])
            rows.append((f"`{name}`", count, *(f"{size / 2**20:.0f} MiB" for size in sizes)))
    return Table(("measure", "texts", "most above what was there", "kept contexts"), rows)


if __name__ == "__main__":
    main()
