"""Studies of the smallest embedded model on a few texts."""

import csv
import shutil
from pathlib import Path

import pytest

from depthsys.demo import grammar
from depthsys.study.checks import checked
from depthsys.study.runner import Outcome, run_study
from depthsys.study.store import Store
from depthsys.study.study_reader import read_with_faults

SMALL = """
name = "small"
stages = ["gains", "energies"]
shard = 1024

[settings]
split = "8/4/4"
device = "cpu"

[[models]]
name = "little"
source = "demo_48x4"

[[tasks]]
name = "mood"
texts = "demo:sentiment"
"""


class Noted:
    """A watch that remembers what it is told."""

    def __init__(self):
        self.ends: list[tuple[str, str]] = []

    def begin(self, key, stage, n_prompts):
        """Nothing."""

    def end(self, key, stage, how, seconds, said=""):
        self.ends.append((stage, how))

    def of(self, how: str) -> list[str]:
        return [stage for stage, became in self.ends if became == how]


class Runs:
    """Runs a study file in a folder, again and again."""

    def __init__(self, folder: Path):
        self.folder, self.out = folder, folder / "out" / "study.zarr"
        self.watch = Noted()

    def __call__(self, text: str = SMALL, **options) -> Outcome:
        path = self.folder / "study.toml"
        path.write_text(text, encoding="utf-8")
        study, faults = read_with_faults(path)
        self.store = Store.checked(self.out, study)
        self.watch = Noted()
        return run_study(checked(study, faults), self.store, self.watch, **options)

    @property
    def cell(self) -> Path:
        return self.out / "little" / "mood" / "seed_0" / "mean_difference"


def write_texts(path: Path, rows=None) -> None:
    """A file of labelled texts, by default forty of each class."""
    with path.open("w", newline="") as file:
        found = grammar.labelled(40, seed=5) if rows is None else rows
        csv.writer(file).writerows([("text", "label"), *found])


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(tmp_path)


@pytest.fixture(scope="session")
def _small_store(tmp_path_factory) -> Path:
    made = Runs(tmp_path_factory.mktemp("small"))
    made()
    return made.out


@pytest.fixture
def made(runs, _small_store) -> Runs:
    """The small study, made before."""
    shutil.copytree(_small_store, runs.out)
    runs.store = Store(runs.out)
    return runs
