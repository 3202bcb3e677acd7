"""Stages on the workers of a Dask cluster: one process each, which loads a model once.

The process that runs the study decides what is made and writes the store; a stage goes to a worker
as plain data and its Dataset comes back. The worker spreads the shards of many prompts over all
workers. A worker that dies loses nothing but what it was at: the scheduler gives that to another.
"""

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import xarray as xr

from depthsys.study.dask_cluster import (
    PATIENCE,
    addresses_of,
    check_versions,
    connected,
    large,
    local_workers,
    told,
)
from depthsys.study.work import CellWork, Made, computed

if TYPE_CHECKING:
    from distributed import Client


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
        check_versions(client)
        self.n_workers = len(addresses_of(client))

    def __call__(self, work: CellWork, stage: str, inputs: Mapping[str, xr.Dataset]) -> Made:
        """What a stage finds, made by a worker; its errors are raised here as they are.

        Raises
        ------
        SchedulerLostError
            If the scheduler is gone.
        """
        work = replace(work, spread=True, partial=work.partial if self.is_here else None)
        try:
            made_by = _computed_quietly if self.is_here else computed
            with told(self.client), large():
                future = self.client.submit(made_by, work, stage, dict(inputs), pure=False)
                return future.result()
        except (Exception, CancelledError) as error:
            if self.client.status == "running" and not isinstance(error.__cause__, _LOST):
                raise  # of the stage itself, or workers that died of it again and again
            raise SchedulerLostError(
                "`--scheduler` must stay there while a study runs; it went away. What is finished "
                "is kept: start it, and run the study again."
            ) from error


_LOST = (CancelledError, OSError)


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
    with local_workers(count) as client:
        yield Cluster(client, is_here=True)


@contextlib.contextmanager
def on_scheduler(address: str, *, patience: float = PATIENCE) -> Iterator[Cluster]:
    """The workers of a scheduler at an address such as ``tcp://host:8786``.

    ``patience`` are the seconds in which it must answer, and have a worker.

    Raises
    ------
    ImportError
        If distributed is not installed.
    ClusterError
        If no scheduler answers there, there are no workers, or their versions differ.
    """
    with connected(address, patience=patience) as client:
        yield Cluster(client, is_here=False)


def at_once(cluster: Cluster, splits: "Iterator[Any]", shard: int) -> int:
    """How many cells are on their way at once.

    One, where shards of its prompts keep all workers busy: a worker that waits for shards would
    else be given another cell, with the same model.
    """
    parts = (part for each in splits for part in (each.concept, each.operating, each.held_out))
    return 1 if any(len(part) > shard for part in parts) else cluster.n_workers
