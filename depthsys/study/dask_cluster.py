"""Dask clusters: one that runs, or workers on this machine; and what goes wrong there."""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from depthsys._version import __version__

if TYPE_CHECKING:
    from distributed import Client

# Seconds in which a scheduler answers, and has a worker.
PATIENCE = 30.0
# How many workers may die over one task before it is given up, as Dask has it.
DEATHS = 3
# Seconds after which one who waits for a result looks whether there still is a scheduler.
LOOK = 2.0
INSTALL = "pip install 'depthsys[cluster]'"


class ClusterError(RuntimeError):
    """The cluster could not do the work: what is wrong is not in the work itself."""


def connected(address: str, *, patience: float = PATIENCE) -> "Client":
    """A client of the scheduler at an address, once it has a worker.

    Parameters
    ----------
    address
        As ``dask scheduler`` prints it: tcp://host:8786.
    patience
        Seconds in which it must answer, and have a worker.

    Raises
    ------
    ImportError
        If `distributed` is not installed.
    ClusterError
        If nobody answers, or there is no worker.
    """
    client_class = _distributed().Client
    try:
        client = client_class(address, timeout=patience, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ClusterError(
            f"`scheduler` must be the address of a Dask scheduler; got no answer from {address!r} "
            f"within {patience:g} s ({type(error).__name__}). Start `dask scheduler` there, or "
            "see whether a firewall is between."
        ) from error
    try:
        addresses_of(client, patience)
    except ClusterError:
        client.close()
        raise
    return client


def addresses_of(client: "Client", patience: float = PATIENCE) -> list[str]:
    """The workers, which may be starting just now; ClusterError if none comes."""
    _check_running(client)
    try:
        client.wait_for_workers(1, timeout=patience)
    except TimeoutError as error:
        raise ClusterError(
            f"the scheduler must have workers; got none at {address_of(client)} within "
            f"{patience:g} s. Start some: `dask worker {address_of(client)} --nthreads 1`."
        ) from error
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def result_of(client: "Client", future: Any, patience: float) -> tuple[bool, Any]:
    """Whether a task has ended, after some seconds at most, and its result.

    ClusterError if there is no scheduler any more.
    """
    _check_running(client)
    try:
        return True, future.result(timeout=patience)
    except TimeoutError:
        if future.status == "error":  # it is one of the work
            raise
        return False, None


def is_somewhere(client: "Client", future: Any) -> bool:
    """Whether a worker works on a task, or has its result."""
    at_work: Any = client.processing()
    results: Any = client.who_has([future])
    return any(future.key in keys for keys in at_work.values()) or any(results.values())


def died(address: str, count: int) -> ClusterError:
    """The error of a task that kills its workers."""
    return ClusterError(
        f"workers must survive their work; got {count} that died over the same shard, the last at "
        f"{address}. Out of memory is the usual cause: give smaller shards, a smaller budget, or "
        "more memory."
    )


def _check_running(client: "Client") -> None:
    # one that comes back knows nothing of what it was asked for
    if client.status != "running":
        raise _lost(client, f"the client is {client.status}")


def _lost(client: "Client", why: str) -> ClusterError:
    return ClusterError(
        f"the scheduler must stay there; got no more answers from {address_of(client)} ({why}). "
        "What was finished is kept: start the cluster again, then the same command."
    )


@contextlib.contextmanager
def local_workers(count: int, *, threads: int = 1) -> "Iterator[Client]":
    """Workers on this machine, each a process; on GPUs, one after the other is given to each.

    Parameters
    ----------
    count
        How many.
    threads
        Threads with which each multiplies. Results are the same to the last bit for any number of
        workers, but not of threads.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"`workers` must be a whole number >= 1; got {count!r}. Write 2.")
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"`threads` must be a whole number >= 1; got {threads!r}. Write 1.")
    import dask

    distributed = _distributed()
    scheduler = {"dashboard": False, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    spec = {
        number: {
            "cls": distributed.Nanny,
            "options": {
                "nthreads": 1,  # tasks at a time
                "memory_limit": 0,  # budgets of runs see to it
                "host": "127.0.0.1",
                "dashboard": False,
                "env": _environment(number, threads),
                "silence_logs": "CRITICAL",
                "preload": ["depthsys.study.dask_preload"],
            },
        }
        for number in range(count)
    }
    quiet = {
        "distributed.scheduler.work-stealing": False,
        "distributed.comm.timeouts.connect": "30s",
    }
    with (
        dask.config.set(quiet),
        distributed.SpecCluster(
            workers=spec,
            scheduler={"cls": distributed.Scheduler, "options": scheduler},
            silence_logs="CRITICAL",
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _environment(number: int, threads: int) -> dict[str, str]:
    """Variables of the process of a worker: its threads, and its GPU where there are some."""
    import torch

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    found = {name: str(threads) for name in names}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if torch.cuda.is_available():
        devices = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
        devices = list(devices)
        found["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return found


def check_versions(client: "Client") -> None:
    """ClusterError unless all workers have this version of depthsys."""

    # a function in a function goes by value: workers without depthsys can say so
    def version() -> str:
        try:
            from depthsys._version import __version__ as found
        except ImportError as error:
            return f"none ({error})"
        return found

    found: Any = client.run(version)
    other = {address: one for address, one in found.items() if one != __version__}
    if other:
        address, one = next(iter(other.items()))
        raise ClusterError(
            f"workers must have depthsys {__version__}, as this process has; got {one} on "
            f"{address} ({len(other)} of {len(found)} workers differ). Install the same there."
        )


@contextlib.contextmanager
def told(client: "Client") -> Iterator[None]:
    """Errors of the cluster in our words; those of the work as they are."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm import CommClosedError

    try:
        yield
    except KilledWorker as error:
        raise died(error.last_worker.address, error.allowed_failures + 1) from error
    except (CancelledError, CommClosedError) as error:
        raise _lost(client, type(error).__name__) from error


def large() -> Any:
    """Arguments of some megabytes, of which Dask would warn, are what goes to workers once."""
    import dask

    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "10GB"})


def address_of(client: "Client") -> str:
    """Where the scheduler of a client is, or was."""
    scheduler = getattr(client, "scheduler", None)
    return getattr(scheduler, "address", None) or str(getattr(client, "_start_arg", "?"))


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ImportError(
            f"`distributed` must be installed for workers of Dask; {error}. Run {INSTALL}."
        ) from error
    return distributed
