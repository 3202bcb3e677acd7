"""Shards on the workers of a real Dask cluster of processes, which may die."""

import functools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from depthsys import lm
from depthsys.lm import at_once
from depthsys.lm.channels import Channels
from depthsys.lm.hf.blocks import Blocks
from depthsys.study import dask_cluster, dask_crew
from depthsys.study.dask_cluster import ClusterError, connected, local_workers
from depthsys.study.dask_crew import Loading, OnDask, loaded, portable, restored
from tests.conftest import tiny_gpt2
from tests.lm import every_function
from tests.lm.conftest import labelled_ids

SHARD = 4
METHODS = [lm.Ensemble(order=3), lm.Balanced(order=3), lm.Arnoldi(order=3), lm.Pod(order=3)]
# nothing is kept of contexts: they are computed again, layer by layer
NOTHING = lm.Budget(device=0, host=0, file=0)


@pytest.fixture(scope="module")
def loading(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_gpt2().double().save_pretrained(folder)
    return Loading.of(folder, dtype="float64", device="cpu")


@pytest.fixture(scope="module")
def model(loading):
    return loading.load_model()


@pytest.fixture(scope="module")
def texts():
    return labelled_ids(11, 3)


@pytest.fixture(scope="module")
def concept(model, texts):
    return lm.mean_difference(model.run(texts))


@pytest.fixture(scope="module")
def two():
    with local_workers(2) as client:
        yield client


def everything(run, concept, options=()):
    """All kinds of leaves: what is summed, what is known of each prompt, and sweeps."""
    held_out = lm.ShardedRun(
        run.model, labelled_ids(7, 9), shard=SHARD, crew=run.crew, **dict(options)
    )
    found = [lm.identify(run, concept, method) for method in METHODS]
    splits = lm.Splits(run, run, held_out)
    table = lm.compare(run.model, splits, ["ensemble", "krylov"], [1, 2], n_each=5, n_bootstrap=5)
    plan = lm.optimal_plan(run, concept, 0.3, max_steps=2)
    each = lm.identify(run, concept, per_prompt=True)
    return [*found, table.drop_vars(["seconds", "prompt_seconds"]), plan, each]


@pytest.fixture(scope="module")
def expected(model, texts, concept):
    return everything(lm.ShardedRun(model, texts, shard=SHARD), concept)


# ------------------------------------------------------------------------- without a cluster


def test_values_go_without_their_model_and_come_back_with_another(model, loading, concept):
    channels = Channels.checked(model, concept, "concept", "profile", None)
    value = {"a": [channels, torch.ones(2)], "b": (lm.Step(0.1), "text", np.arange(3))}
    sent = portable(value, model)
    assert sent["a"][0].model is not model
    other = loading.load_model()
    back = restored(sent, other)
    assert back["a"][0].model is other
    assert torch.equal(back["a"][0].v, channels.v)
    assert torch.equal(back["a"][0].readout.rows, channels.readout.rows)
    assert back["b"][0] == lm.Step(0.1)
    np.testing.assert_array_equal(back["b"][2], np.arange(3))


def test_equal_arguments_are_the_same_loading():
    one, other = Loading.of("gpt2", dtype="float64", device="cpu"), None
    other = Loading.of("gpt2", device="cpu", dtype="float64")
    assert (one, hash(one)) == (other, hash(other))
    assert one != Loading.of("gpt2", device="cpu")


def test_a_process_keeps_one_model(loading, monkeypatch):
    monkeypatch.setattr(dask_crew, "_KEPT", {})
    monkeypatch.setattr(dask_crew, "LOADED", [])
    other = Loading.of(loading.source, dtype="float32", device="cpu")
    first = loaded(loading)
    assert loaded(loading) is first
    assert loaded(other) is not first
    assert list(dask_crew._KEPT) == [other]
    assert dask_crew.LOADED == [loading, other]


def test_nobody_at_the_address():
    message = r"must be the address of a Dask scheduler; got no answer from 'tcp://127.0.0.1:9' wi"
    with pytest.raises(ClusterError, match=message):
        connected("tcp://127.0.0.1:9", patience=0.3)
    with pytest.raises(ClusterError, match="got no answer from 'nowhere://x'"):
        connected("nowhere://x", patience=0.3)


def test_outside_of_a_task_there_must_be_a_client(model, texts, loading):
    run = lm.ShardedRun(model, texts, crew=OnDask(loading))
    with pytest.raises(ValueError, match="`client` must be given outside of a Dask task; got None"):
        run.states  # noqa: B018


@pytest.mark.parametrize("count", [0, True, 1.5])
def test_numbers_of_workers_and_threads_that_are_none(count):
    with pytest.raises(ValueError, match="`workers` must be a whole number >= 1; got"):
        local_workers(count).__enter__()
    with pytest.raises(ValueError, match="`threads` must be a whole number >= 1; got"):
        local_workers(1, threads=count).__enter__()


def test_without_the_optional_part(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"Run pip install 'depthsys\[cluster\]'"):
        connected("tcp://127.0.0.1:9")


# ------------------------------------------------------------------------------ with workers


def _count_blocks() -> None:
    """On a worker: count what goes through blocks from now on."""
    original = Blocks.call
    counted: list[int] = []

    @functools.wraps(original)
    def call(self, layer, calls, hidden, cache):
        counted.append(hidden.shape[0] * hidden.shape[1])
        return original(self, layer, calls, hidden, cache)

    Blocks.call, Blocks.counted = call, counted


def _counted() -> list[int]:
    return Blocks.counted


@pytest.mark.distributed
def test_a_model_is_loaded_and_a_prompt_prefilled_once(model, texts, concept, loading, two):
    def work(run):
        lm.identify(run, concept, lm.Arnoldi(order=3))
        lm.linear_gains(run, concept)

    original = Blocks.call
    try:
        _count_blocks()
        work(lm.ShardedRun(model, texts, shard=SHARD))
        here = sorted(_counted())
    finally:
        Blocks.call = original
    crew = OnDask(loading, two)
    run = lm.ShardedRun(model, texts, shard=SHARD, crew=crew)
    list(run.each(len))  # the contract of the model is checked where it is loaded
    before = two.run(_loads)
    assert sorted(before.values()) == [1, 1]
    two.run(_count_blocks)
    # of other texts, so that all of it is counted
    work(lm.ShardedRun(model, texts, shard=SHARD, crew=crew, budget=lm.Budget(host=10**9)))
    there = sorted(size for sizes in two.run(_counted).values() for size in sizes)
    assert there == here
    assert two.run(_loads) == before


def _loads() -> int:
    return len(dask_crew.LOADED)


@pytest.mark.distributed
def test_the_same_bits_for_two_workers(model, texts, concept, loading, two, expected):
    run = lm.ShardedRun(model, texts, shard=SHARD, crew=OnDask(loading, two))
    assert "computed by OnDask" in repr(run)
    every_function.assert_same(everything(run, concept), expected)


@pytest.mark.distributed
def test_the_same_bits_where_nothing_is_kept(model, texts, concept, loading, two, expected):
    run = lm.ShardedRun(model, texts, shard=SHARD, crew=OnDask(loading, two), budget=NOTHING)
    found = everything(run, concept, [("budget", NOTHING)])
    every_function.assert_same(found, expected)


@pytest.mark.distributed
@pytest.mark.parametrize("count", [1, 3])
def test_the_same_bits_for_other_numbers_of_workers(
    model, texts, concept, loading, expected, count
):
    with local_workers(count) as client:
        run = lm.ShardedRun(model, texts, shard=SHARD, crew=OnDask(loading, client))
        every_function.assert_same(everything(run, concept), expected)


@pytest.mark.distributed
def test_workers_leave_the_interrupt_of_a_terminal_to_the_caller():
    with local_workers(2) as client:
        before = client.run(os.getpid)
        for pid in before.values():
            os.kill(pid, signal.SIGINT)
        assert client.submit(sum, [1, 2]).result() == 3
        assert client.run(os.getpid) == before


class Killing(OnDask):
    """Kills a process when so many results have come back."""

    def __init__(self, *args, pid: int, after: int):
        super().__init__(*args)
        self.pid, self.left = pid, after

    def each(self, *args):
        for found in super().each(*args):
            self.left -= 1
            if self.left == 0:
                os.kill(self.pid, signal.SIGKILL)
            yield found


@pytest.mark.distributed
@pytest.mark.parametrize("after", [1, 8, 30, 60])
@pytest.mark.parametrize("budget", [None, NOTHING])
def test_a_worker_that_is_killed_loses_nothing(
    model, texts, concept, loading, two, expected, after, budget
):
    two.wait_for_workers(2)
    pid = list(two.run(os.getpid).values())[after % 2]
    crew = Killing(loading, two, pid=pid, after=after)
    run = lm.ShardedRun(model, texts, shard=SHARD, crew=crew, budget=budget)
    found = everything(run, concept, [("budget", budget)])
    every_function.assert_same(found, expected)
    assert crew.left < 0
    assert pid not in two.run(os.getpid).values()


@pytest.mark.distributed
def test_the_only_worker_is_killed_and_another_one_comes(model, texts, concept, loading, expected):
    with local_workers(1) as client:
        (pid,) = client.run(os.getpid).values()
        crew = Killing(loading, client, pid=pid, after=5)
        run = lm.ShardedRun(model, texts, shard=SHARD, crew=crew)
        every_function.assert_same(lm.identify(run, concept, METHODS[1]), expected[1])
        assert crew.left < 0


def _stage(loading, ids, concept):
    """A task that has its shards computed on all workers, while it waits."""
    model = loaded(loading)
    run = lm.ShardedRun(model, ids, shard=SHARD, crew=OnDask(loading))
    return lm.identify(run, concept, lm.Balanced(order=3)), len(dask_crew.LOADED)


@pytest.mark.distributed
def test_a_task_may_spread_its_own_work(texts, concept, loading, two, expected):
    two.wait_for_workers(2)
    stages = [two.submit(_stage, loading, texts, concept, pure=False) for _ in range(2)]
    for stage in stages:
        found, loads = stage.result()
        every_function.assert_same(found, expected[1])
        assert loads == 1


def _refuses(run, number):
    if run.first_number == SHARD:
        raise FileNotFoundError(f"no file {number}")
    return run.first_number


def _dies(run):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.distributed
def test_errors_of_the_work_come_as_they_are_and_once(model, texts, loading, two):
    two.wait_for_workers(2)
    run = lm.ShardedRun(model, texts, shard=SHARD, crew=OnDask(loading, two))
    with pytest.raises(FileNotFoundError, match="no file 5"):
        list(run.each(_refuses, 5))
    with pytest.raises(TypeError, match="`jacobians` must get a run with all prompts in one place"):
        lm.jacobians(run)
    elsewhere = Loading.of("no/such/folder", device="cpu")
    missing = lm.ShardedRun(model, texts, shard=SHARD, crew=OnDask(elsewhere, two))
    with pytest.raises(ValueError, match="no/such/folder"):
        list(missing.each(len))


def _share(run):
    return at_once.share()


@pytest.mark.distributed
def test_smaller_batches_reach_the_workers(model, texts, loading, two):
    run = lm.ShardedRun(model, texts, shard=SHARD, crew=OnDask(loading, two))
    with at_once.share_of(0.25):
        assert set(run.each(_share)) == {0.25}
    assert set(run.each(_share)) == {1.0}


@pytest.mark.distributed
def test_other_weights_on_a_worker(model, texts, loading, two, tmp_path):
    tiny_gpt2(n_inner=24).double().save_pretrained(tmp_path)
    other = Loading.of(tmp_path, dtype="float64", device="cpu")
    run = lm.ShardedRun(model, texts, shard=SHARD, crew=OnDask(other, two))
    message = "`loading` must give all processes the same weights; got others on the worker tcp"
    with pytest.raises(ValueError, match=message):
        list(run.each(len))


@pytest.mark.distributed
def test_another_version_on_a_worker(model, texts, loading, two, monkeypatch):
    monkeypatch.setattr(dask_cluster, "__version__", "99.9")
    run = lm.ShardedRun(model, texts, shard=SHARD, crew=OnDask(loading, two))
    with pytest.raises(
        ClusterError, match=r"workers must have depthsys 99\.9, .* \(2 of 2 workers"
    ):
        list(run.each(len))


@pytest.mark.distributed
def test_work_that_kills_every_worker(model, texts, loading):
    with local_workers(1) as client:
        run = lm.ShardedRun(model, texts[:2], crew=OnDask(loading, client))
        with pytest.raises(ClusterError, match="workers must survive their work; got 4 that died"):
            list(run.each(_dies))


def _started(*command: str) -> subprocess.Popen:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", *command, "--no-dashboard"], **quiet)


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler as other people start it: the process, its address, the file that tells it."""
    file = tmp_path / "scheduler.json"
    where = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
    process = _started("distributed.cli.dask_scheduler", *where)
    while not file.exists():
        time.sleep(0.1)
    yield process, json.loads(file.read_text())["address"], file
    process.kill()
    process.wait()


@pytest.mark.distributed
def test_a_scheduler_without_workers(scheduler):
    _, address, _ = scheduler
    with pytest.raises(ClusterError, match=f"must have workers; got none at {address} within 1 s"):
        connected(address, patience=1)


@pytest.mark.distributed
@pytest.mark.parametrize("after", [1, 3, 4, 10])
def test_a_scheduler_that_is_lost(model, texts, concept, loading, scheduler, after):
    process, address, file = scheduler
    options = ("--nthreads", "1", "--death-timeout", "60", "--no-nanny")
    worker = _started("distributed.cli.dask_worker", "--scheduler-file", str(file), *options)
    client = connected(address)
    try:
        crew = Killing(loading, client, pid=process.pid, after=after)
        run = lm.ShardedRun(model, texts, shard=SHARD, crew=crew)
        message = f"the scheduler must stay there; got no more answers from {address} "
        with pytest.raises(ClusterError, match=message):
            lm.identify(run, concept, lm.Balanced(order=3))
        with pytest.raises(ClusterError, match=message):
            list(run.each(len))
    finally:
        client.close()
        worker.kill()
        worker.wait()
