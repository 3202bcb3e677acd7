"""A study on workers of a real Dask cluster of processes: the same, whatever happens to them."""

import os
import signal
import threading
from time import monotonic, sleep

import pytest

from depthsys import study as room
from depthsys.study import dask_cluster
from depthsys.study.cluster import SchedulerLostError, on_scheduler, on_workers
from depthsys.study.dask_cluster import ClusterError
from depthsys.study.work import OPENED
from tests.study.conftest import SMALL, Runs
from tests.study.test_killed import contents

pytestmark = [
    pytest.mark.distributed,
    # sockets and tasks of workers that were killed are cleared when Python comes to it
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::RuntimeWarning"),
]

TWO = SMALL.replace('["gains", "energies"]', '["gains", "comparison", "energies", "plan"]')
TWO = TWO.replace("[settings]", '[settings]\nmethods = ["ensemble", "krylov"]\norders = [1, 2]')
TWO = TWO.replace("8/4/4", "6/3/3").replace('device = "cpu"', 'device = "cpu"\nn_each = 2')
TWO += '[[tasks]]\nname = "place"\ntexts = "demo:domain"\n'


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, object]:
    """What the study is in one process."""
    runs = Runs(tmp_path_factory.mktemp("alone"))
    assert runs(TWO).failed == []
    return contents(runs.out)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_study_is_the_same_on_any_number_of_workers(runs, alone, count):
    with on_workers(count) as cluster:
        outcome = runs(TWO, compute=cluster, at_once=cluster.n_workers)
        loads = cluster.client.run(_loads)
    assert (outcome.made, outcome.failed) == (12, [])
    assert contents(runs.out) == alone
    assert max(loads.values()) == 1  # a model is loaded once by each process


def test_a_worker_that_is_killed_in_the_middle_loses_nothing(runs, alone):
    with on_workers(2) as cluster:
        first = cluster.client.run(os.getpid)
        done = threading.Thread(target=runs, args=(TWO,), kwargs={"compute": cluster, "at_once": 2})
        done.start()
        _wait(lambda: (runs.out.parent / "study.zarr.partial").is_dir() and _begun(runs))
        os.kill(next(iter(first.values())), signal.SIGKILL)
        done.join()
        assert set(cluster.client.run(os.getpid).values()) != set(first.values())
    assert contents(runs.out) == alone


def test_an_error_of_a_stage_is_that_of_its_cell(runs, capfd):
    text = TWO.replace('device = "cpu"', 'device = "cpu"\ntarget = "1e30"')
    with on_workers(1) as cluster:
        outcome = runs(text, compute=cluster, at_once=1)
    assert {(key.task, stage) for key, stage, _ in outcome.failed} >= {("mood", "energies")}
    assert all("Traceback" not in reason for *_, reason in outcome.failed)
    assert outcome.made >= 8
    assert "Compute Failed" not in capfd.readouterr().err  # the study tells it, once


def test_a_scheduler_that_goes_away_ends_the_study_and_the_next_goes_on(runs, alone):
    with on_workers(2) as cluster:
        found: list[BaseException] = []

        def run() -> None:
            try:
                runs(TWO, compute=cluster, at_once=2)
            except BaseException as error:
                found.append(error)

        running = threading.Thread(target=run)
        running.start()
        _wait(lambda: _begun(runs))
        cluster.client.close()
        running.join(60)
    (error,) = found
    assert isinstance(error, SchedulerLostError)
    assert "run the study again" in str(error)
    assert runs(TWO).kept > 0
    assert contents(runs.out) == alone


def test_a_scheduler_by_its_address(runs, alone):
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0
    ) as local:
        with on_scheduler(local.scheduler_address) as cluster:
            assert runs(TWO, compute=cluster, at_once=2).failed == []
    assert contents(runs.out) == alone
    assert room.read(runs.out).attrs["study_name"] == "small"


def test_schedulers_that_are_none_are_refused(monkeypatch):
    from distributed import LocalCluster

    with (
        pytest.raises(ClusterError, match=r"got no answer from 'tcp://127.0.0.1:9'"),
        on_scheduler("tcp://127.0.0.1:9", patience=1.0),
    ):
        pass
    with (
        LocalCluster(n_workers=0, dashboard_address=None) as local,
        pytest.raises(ClusterError, match="the scheduler must have workers; got none at"),
        on_scheduler(local.scheduler_address, patience=1.0),
    ):
        pass
    monkeypatch.setattr(dask_cluster, "__version__", "99")
    with pytest.raises(ClusterError, match="must have depthsys 99, as this process has"):
        with on_workers(1):
            pass


def test_a_scheduler_that_is_none_is_one_line_at_the_shell(tmp_path):
    import subprocess
    import sys

    command = ["-m", "depthsys.cli", "study", "run", "embedded", "--out", tmp_path / "s.zarr"]
    command += ["--scheduler", "tcp://no.such.host.invalid:9"]
    found = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120)
    assert found.returncode == 2
    assert "Error: `--scheduler` must be the address of a Dask scheduler; got no" in found.stderr
    assert "Traceback" not in found.stderr


def _loads() -> int:
    return OPENED.loads


def _begun(runs: Runs) -> bool:
    """Whether a stage of a cell is there."""
    return (runs.out / "little" / "mood" / "seed_0" / "mean_difference" / "system").is_dir()


def _wait(ready) -> None:
    begin = monotonic()
    while not ready():
        assert monotonic() - begin < 120
        sleep(0.01)
