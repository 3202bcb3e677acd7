"""A study that is killed at any moment goes on, and ends as one that was left alone."""

import json
import multiprocessing
import random
import shutil
import signal
from pathlib import Path
from time import monotonic, sleep

import pytest
import xarray as xr

from depthsys.study.checks import checked
from depthsys.study.runner import run_study
from depthsys.study.store import _TIMED, Store, is_time
from depthsys.study.study_reader import read_with_faults
from tests.study.conftest import Noted

KILLS = 20
IMPORTED = [
    "depthsys.lm", "depthsys.study.runner", "depthsys.study.steps", "tests.study.conftest",
    "transformers.models.gpt2.modeling_gpt2",
]  # fmt: skip
STUDY = """
name = "killed"
stages = ["gains", "comparison", "energies", "plan"]
[settings]
split = "6/3/3"
device = "cpu"
methods = ["ensemble", "krylov"]
orders = [1, 2]
n_each = 2
[[models]]
source = "demo_48x4"
[[tasks]]
texts = "demo:sentiment"
[[tasks]]
texts = "demo:domain"
"""


def run(folder: Path) -> None:
    study, faults = read_with_faults(folder / "study.toml")
    store = Store.checked(folder / "study.zarr", study)
    run_study(checked(study, faults), store, Noted())


def contents(store: Path) -> dict[str, object]:
    """Every file of a store: chunks as bytes, metadata without times."""
    found: dict[str, object] = {}
    for path in store.rglob("*"):
        name = str(path.relative_to(store))
        if not path.is_file() or path.parent.name in _TIMED or f"/{_TIMED[0]}/" in name:
            continue
        if any(part in _TIMED for part in path.parts):
            continue
        if path.name == "zarr.json":
            metadata = json.loads(path.read_text())
            attrs = metadata.get("attributes", {})
            told = {k: v for k, v in attrs.items() if not is_time(k)}
            found[name] = {**metadata, "attributes": told}
        else:
            found[name] = path.read_bytes()
    return found


@pytest.mark.slow
def test_a_study_killed_at_random_moments_ends_as_one_left_alone(tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    for folder in (alone, killed):
        folder.mkdir()
        (folder / "study.toml").write_text(STUDY)
    # what is imported need not be again; this process has threads of Zarr, which a fork would lack
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(IMPORTED)
    for _ in range(2):  # the first one waits for the imports, too
        shutil.rmtree(alone / "study.zarr", ignore_errors=True)
        begin = monotonic()
        process = forked.Process(target=run, args=(alone,))
        process.start()
        process.join()
        assert process.exitcode == 0
        whole = monotonic() - begin
    expected = contents(alone / "study.zarr")
    assert len(expected) > 200
    chance, kills, finished = random.Random(0), 0, 0
    while kills < KILLS or not finished:
        process = forked.Process(target=run, args=(killed,))
        process.start()
        if kills < KILLS:
            sleep(chance.uniform(0, 0.7 * whole))
            process.kill()
        process.join()
        if process.exitcode == 0:
            finished += 1
            assert contents(killed / "study.zarr") == expected
            assert not (killed / "study.zarr.partial").exists()
            shutil.rmtree(killed / "study.zarr")
            continue
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        if (killed / "study.zarr" / "zarr.json").exists():  # whatever is there can be read
            xr.open_datatree(killed / "study.zarr", engine="zarr", consolidated=False).load()
    assert kills == KILLS
