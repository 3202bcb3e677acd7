"""The table of one shape on one device, in one process, within a budget of seconds.

    python -m tests.benchmarks.card_table SHAPE [--device cuda] [--precision float32 tf32]
        [--budget-s 220] [--out FILE]

SHAPE is GPT-2-large, Llama-8B, SmolLM2 (real weights and texts where `depthsys fetch` has put
them), or one of the smoke runs tiny and tiny-llama. The table is Markdown; a row is printed as soon
as it is measured, the most important works first, and FILE is whole at any time. What does not fit
the budget, which counts from the start of this program, says so; a work that fails says why, the
others go on, and the status is 1.
"""

import argparse
import contextlib
import gc
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import torch
import transformers

from depthsys.files import whole_file
from tests import card
from tests.benchmarks import card_models, lm_setup, measure
from tests.benchmarks.card_models import Subject
from tests.benchmarks.card_works import TF32, WORKS, Bench, Row

PRECISIONS = ("float32", "tf32", "bfloat16")


class OutOfTime(BaseException):
    """The budget is spent. No Exception: a work that catches these would go on."""


class Table:
    """Lines that are printed as they come, and a file that is whole after each of them."""

    def __init__(self, out: Path | None):
        self._out, self._lines = out, []

    def add(self, *lines: str) -> None:
        self._lines += lines
        print(*lines, sep="\n", flush=True)
        if self._out is not None:
            with whole_file(self._out, force=True) as new:
                new.write_text("\n".join(self._lines) + "\n", encoding="utf-8")

    def begin(self, heading: str) -> None:
        rule = ["---"] * len(Row.COLUMNS)
        self.add(f"### {heading}", "", _line(Row.COLUMNS), _line(rule))

    def note(self, work: str, precision: str, text: str) -> None:
        """A row without numbers."""
        empty = [""] * (len(Row.COLUMNS) - 5)
        label = TF32 if precision == "tf32" else precision
        self.add(_line([work, "", "", label, text, *empty]))


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """`OutOfTime` in this block once so many seconds are over, as soon as Python is asked."""

    def stop(*_) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measured(
    name: str, device: torch.device, precisions: list[str], until: float, table: Table
) -> bool:
    """Fill the table of a shape; whether nothing has failed."""
    shape = card_models.SHAPES[name]
    budget = until - perf_counter()
    fine = True
    subject: list[Subject] = []

    def prepared() -> Iterator[Row]:
        made = card_models.made(name, device, precisions[0])
        subject.append(made)
        table.begin(made.heading)
        yield wrapping(made, precisions[0])

    fine &= attempted("DepthModel(...)", precisions[0], prepared, until, budget, table)
    if not subject:
        return False
    tried = {precisions[0]}
    works = [(work, precision) for work in shape.works for precision in precisions]
    for work, precision in works:
        if precision not in tried:  # when it is first wanted: the rows before it come first
            tried.add(precision)
            fine &= attempted(
                "DepthModel(...)",
                precision,
                lambda p=precision: iter([wrapping(subject[0], p)]),
                until,
                budget,
                table,
            )
        if precision not in subject[0].models:
            table.note(work, precision, "not begun: there is no model")
            continue
        bench = Bench(subject[0], precision)
        with card_models.products(precision):
            fine &= attempted(
                work, precision, lambda w=work, b=bench: WORKS[w](b), until, budget, table
            )
        gc.collect()
    return fine


def wrapping(subject: Subject, precision: str) -> Row:
    """How long `DepthModel` takes to accept a model that is in memory."""
    bench = Bench(subject, precision)
    timed = bench.once(lambda: subject.wrapped(precision))
    return bench.row("DepthModel(...)", timed, against="the model is in memory")


def attempted(work, precision, rows, until: float, budget: float, table: Table) -> bool:
    """Measure a work within the time that is left; False if it failed."""
    begin = perf_counter()
    if begin >= until:
        table.note(work, precision, f"not begun: the budget of {budget:.0f} s is spent")
        return True
    try:
        with deadline(until - begin):
            for row in rows():
                table.add(_line(row.cells))
    except OutOfTime:
        table.note(work, precision, f"not finished after {perf_counter() - begin:.0f} s")
    except Exception as error:  # whatever it is, the other rows are wanted
        said = " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/")
        table.note(work, precision, f"failed: {said[:300]}")
        return False
    return True


# ------------------------------------------------------------------------------- where and when


def place(device: torch.device) -> str:
    """Card, versions, date and commit."""
    name = lm_setup.processor()
    if device.type == "cuda":
        size = torch.cuda.mem_get_info(device)[1] / 2**30
        name = f"{torch.cuda.get_device_name(device)} ({size:.0f} GiB, driver {_driver()})"
    elif device.type == card.NAME:
        name = "the pretend card of the tests, whose times mean nothing"
    return (
        f"{name}; torch {torch.__version__}, transformers {transformers.__version__}; "
        f"{datetime.now(UTC):%Y-%m-%d}, commit {_commit()}."
    )


def _driver() -> str:
    return _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _commit() -> str:
    changed = _said("git", "status", "--porcelain", "--untracked-files=no") not in ("", "unknown")
    return _said("git", "rev-parse", "--short", "HEAD") + " with changes" * changed


def _said(*command: str) -> str:
    """First line of what a program says, or "unknown"."""
    root = Path(__file__).parents[2]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.partition("\n")[0].strip()


def checked(arguments: list[str]) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=card_models.SHAPES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS)
    parser.add_argument("--budget-s", type=float, default=220.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    on_gpu = given.device.startswith("cuda")
    given.precision = given.precision or (["float32", "tf32"] if on_gpu else ["float32"])
    if "bfloat16" in given.precision and len(given.precision) > 1:
        parser.error("--precision bfloat16 must stand alone: its weights are others")
    return given


def main(arguments: list[str]) -> int:
    begin = perf_counter()
    given = checked(arguments)
    if given.device == card.NAME:
        card.setup()
    device = torch.device(given.device)
    table = Table(given.out)
    table.add(place(device), "")
    until = begin + given.budget_s
    fine = measured(given.shape, device, given.precision, until, table)
    measure.synchronize(device)
    table.add("", f"In all {perf_counter() - begin:.0f} s.")
    return 0 if fine else 1


if __name__ == "__main__":
    torch.set_num_threads(lm_setup.n_threads())
    sys.exit(main(sys.argv[1:]))
