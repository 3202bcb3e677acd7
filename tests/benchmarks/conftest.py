"""Models and tables of the benchmarks. The tables are printed as Markdown after the run."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from depthsys import lm
from tests.benchmarks import lm_setup

TABLES = pytest.StashKey[dict[str, list[dict[str, str]]]]()


@dataclass(frozen=True)
class Subject:
    """A random model of one shape in one precision, and how long `DepthModel` took to accept it."""

    name: str
    precision: str
    model: lm.DepthModel
    load_seconds: float

    @property
    def columns(self) -> dict[str, str]:
        """First columns of every table row."""
        columns = {"shape": lm_setup.shape_of(self.name)}
        return columns | ({"precision": self.precision} if lm_setup.PRECISIONS[1:] else {})

    def ids(self, count: int, n_tokens: int) -> lm_setup.Ids:
        return lm_setup.random_ids(count, n_tokens, lm_setup.SHAPES[self.name].vocabulary)

    def tensor(self, ids: lm_setup.Ids) -> torch.Tensor:
        return torch.tensor(ids, device=lm_setup.DEVICE)


@pytest.fixture(scope="session")
def threads():
    """The test suite runs torch on one thread; benchmarks use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(lm_setup.n_threads())
    yield
    torch.set_num_threads(before)


@pytest.fixture(
    scope="session",
    params=[(name, precision) for name in lm_setup.NAMES for precision in lm_setup.PRECISIONS],
    ids="-".join,
)
def subject(request, threads, record):
    """One model at a time: pytest runs all benchmarks of a shape before the next shape."""
    name, precision = request.param
    hf = lm_setup.random_gpt2(lm_setup.SHAPES[name], precision)
    start = time.perf_counter()
    try:
        model = lm.DepthModel(
            hf,
            name=f"random {name}",
            max_tokens=max(lm_setup.SIZES.tokens),
            products="tf32" if precision == "TF32" else "float32",
        )
    except ValueError as error:
        record("Refused", {"shape": name, "precision": precision, "reason": str(error)})
        pytest.skip(f"{precision} is refused: {error}")
    spent = time.perf_counter() - start
    # for what is compared with: the model has its own choice
    torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
    yield Subject(name, precision, model, spent)
    torch.set_float32_matmul_precision("highest")
    del model, hf
    gc.collect()


@pytest.fixture(scope="session")
def record(request) -> Callable[[str, dict[str, str]], None]:
    """Add a row to a table, and print it at once (with -s)."""
    tables = request.config.stash.setdefault(TABLES, {})

    def add(title: str, row: dict[str, str]) -> None:
        tables.setdefault(title, []).append(row)
        print(f"\n{title}: " + "; ".join(f"{key} {value}" for key, value in row.items()))

    return add


def pytest_terminal_summary(terminalreporter, config) -> None:
    tables = config.stash.get(TABLES, {})
    if not tables:
        return
    terminalreporter.section("tables for docs/performance.md")
    terminalreporter.write_line(lm_setup.header())
    for title, rows in sorted(tables.items()):
        columns = list(rows[0])
        lines = ["", f"### {title}", "", _line(columns), _line(["---"] * len(columns))]
        lines += [_line([row[column] for column in columns]) for row in rows]
        for line in lines:
            terminalreporter.write_line(line)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
