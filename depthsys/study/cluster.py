"""Stages on the workers of a Dask cluster: one process each, which loads a model once.

The process that runs the study decides what is made and writes the store; a stage goes to a worker
as plain data and its Dataset comes back. A worker that dies loses nothing but what it was at: the
scheduler gives that to another one.
"""

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import xarray as xr

from depthsys._version import __version__
from depthsys.study.work import CellWork, Made, computed

if TYPE_CHECKING:
    from distributed import Client

CONNECT_S = 30.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
RETRIES = 3  # of a stage whose worker died


class SchedulerLostError(ConnectionError):
    """The scheduler went away while a study ran."""


class Cluster:
    """A cluster that computes stages; made by `on_workers` or `on_scheduler`.

    Attributes
    ----------
    client
        The connection.
    n_workers
        How many there were at the beginning.
    is_here
        Whether the workers are processes of this machine, with its files.
    """

    def __init__(self, client: "Client", *, is_here: bool):
        self.client, self.is_here = client, is_here
        self.n_workers = len(client.scheduler_info(n_workers=-1)["workers"])

    def __call__(self, work: CellWork, stage: str, inputs: Mapping[str, xr.Dataset]) -> Made:
        """What a stage finds, made by a worker; its errors are raised here as they are.

        Raises
        ------
        SchedulerLostError
            If the scheduler is gone.
        """
        if not self.is_here:  # a place of this machine
            work = replace(work, partial=None)
        try:
            made_by = _computed_quietly if self.is_here else computed
            future = self.client.submit(
                made_by, work, stage, dict(inputs), pure=False, retries=RETRIES
            )
            return future.result()
        except (Exception, CancelledError) as error:
            if self.client.status == "running" and not isinstance(error, CancelledError):
                raise  # of the stage itself
            raise SchedulerLostError(
                "`--scheduler` must stay there while a study runs; it went away. What is finished "
                "is kept: start it, and run the study again."
            ) from error


def _computed_quietly(work: CellWork, stage: str, inputs: Mapping[str, xr.Dataset]) -> Made:
    """`computed` in a process of this machine: why a cell fails is told by the study, once."""
    import logging

    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)
    return computed(work, stage, inputs)


@contextlib.contextmanager
def on_workers(count: int) -> Iterator[Cluster]:
    """So many processes of this machine, with one thread each.

    Sums are rounded in an order that the number of threads has a part in: with one thread each the
    numbers do not depend on how many processes there are.

    Raises
    ------
    ImportError
        If distributed is not installed.
    """
    LocalCluster = _distributed().LocalCluster
    with (
        _quiet(),
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            memory_limit=0,  # batches follow from what is free; nobody is to be killed for using it
            env=dict.fromkeys(_THREADS, "1"),
        ) as local,
        _connected(local, is_here=True) as cluster,
    ):
        yield cluster


@contextlib.contextmanager
def on_scheduler(address: str) -> Iterator[Cluster]:
    """The workers of a scheduler at an address such as ``tcp://host:8786``.

    Raises
    ------
    ImportError
        If distributed is not installed.
    ValueError
        If no scheduler answers there, there are no workers, or their versions differ.
    """
    _distributed()
    with _quiet(), _connected(address, is_here=False) as cluster:
        yield cluster


@contextlib.contextmanager
def _connected(address: Any, *, is_here: bool) -> Iterator[Cluster]:
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ValueError(
            f"`--scheduler` must be the address of a Dask scheduler; none answered at {address!r} "
            f"within {CONNECT_S:.0f} s: {error}. Start one (`dask scheduler`), and write it as in "
            "tcp://host:8786."
        ) from error
    with client:
        _check_workers(client, address)
        yield Cluster(client, is_here=is_here)


def _check_workers(client: "Client", address: Any) -> None:
    """ValueError unless there are workers, all of them with this version of depthsys."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError as error:
        raise ValueError(
            f"`--scheduler` must have workers; that at {address!r} had none within "
            f"{CONNECT_S:.0f} s. Start some (`dask worker {address}`)."
        ) from error
    found: dict[str, str] = client.run(_version)  # pyright: ignore[reportAssignmentType]
    other = {where: version for where, version in found.items() if version != __version__}
    if other:
        where, version = next(iter(other.items()))
        raise ValueError(
            f"`--scheduler` must have workers with depthsys {__version__}, as here; that at "
            f"{where} has {version}. Install the same version everywhere."
        )


def _version() -> str:
    try:
        from depthsys._version import __version__ as here
    except ImportError:
        return "none"
    return here


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What workers that end say is for the log of Dask, not for whoever runs a study."""
    import logging

    loggers = [logging.getLogger(f"distributed.{name}") for name in ("nanny", "worker", "core")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ImportError(
            "`--workers` and `--scheduler` need Dask's distributed, which is not installed. "
            'Install it with `pip install "depthsys[cluster]"`.'
        ) from error
    return distributed
