"""Shards of prompts computed on the workers of a Dask cluster.

A worker is a process that has loaded the model once and keeps the runs of the shards it was given.
A task is a function of depthsys, by its name, and a shard; the results come back in the order of
the shards, so that it does not matter who computes which, nor when. A worker that dies loses
nothing but time: Dask gives its tasks to another one, which prefills those shards anew.

What one task says to another goes through Dask, which pickles it; nothing is kept in files.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from depthsys.study.dask_cluster import (
    DEATHS,
    LOOK,
    addresses_of,
    check_versions,
    died,
    is_somewhere,
    large,
    result_of,
    told,
)

if TYPE_CHECKING:
    from distributed import Client

    from depthsys.lm import DepthModel
    from depthsys.lm.bench import Bench, Shard, Sharding
    from depthsys.lm.shards import ShardedRun


class LoadsModel(Hashable, Protocol):
    """How a worker gets the model: equal ones give the same model."""

    def load_model(self) -> "DepthModel":
        """The model, from where this process finds it."""
        ...


@dataclass(frozen=True)
class Loading:
    """The arguments of `lm.DepthModel.load`, for every process that needs the model.

    Attributes
    ----------
    source
        A folder or file that all workers see under that name, or a name of the hub.
    options
        The others, as pairs of name and value; ``Loading.of("gpt2", dtype="float64")`` sorts them.
    """

    source: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, source: Any, **options: Any) -> "Loading":
        """From the arguments as one would write them."""
        return cls(str(source), tuple(sorted(options.items())))

    def load_model(self) -> "DepthModel":
        """The model."""
        from depthsys import lm

        return lm.DepthModel.load(self.source, **dict(self.options))


class OnDask:
    """Who computes the shards of a `lm.ShardedRun`: the workers of a Dask cluster.

    Parameters
    ----------
    loading
        How the workers get the model: a `Loading`, or anything hashable with ``load_model()``.
    client
        The cluster; None within a task on one of its workers.

    Notes
    -----
    Shards are dealt to the workers in turn, and a worker gets those again whose runs it keeps. For
    this to stay so, the scheduler should not move tasks to idle workers
    (``distributed.scheduler.work-stealing: false``): results are the same, but a shard that is
    moved is prefilled again.
    """

    is_here = False

    def __init__(self, loading: LoadsModel, client: "Client | None" = None):
        self.loading = loading
        self._client, self._within = client, client is None
        # futures that hold shards, as long as their run is there
        self._shards: weakref.WeakKeyDictionary[ShardedRun, dict[int, Any]]
        self._shards = weakref.WeakKeyDictionary()
        self._workers: dict[tuple[str, int], str] = {}  # who has computed a shard last
        self._checked = False

    def each(
        self,
        run: "ShardedRun",
        function: Callable[..., Any],
        shards: "Sequence[Shard]",
        args: Sequence[Any],
        own: Sequence[dict[str, Any]],
    ) -> Iterator[Any]:
        """What a function finds of the run of every shard, in their order."""
        from depthsys.lm import at_once

        client = self._ready()
        work = Work(
            function,
            self.loading,
            str(run.model.fingerprint),  # pyright: ignore[reportAttributeAccessIssue]
            run.sharding,
            portable(tuple(args), run.model),
            at_once.share(),
        )
        with told(client):
            alive = addresses_of(client)
            with large():
                shared = client.submit(_itself, work, pure=False)
                tasks = [_Task(shard, mine) for shard, mine in zip(shards, own, strict=True)]
                for task in tasks:
                    self._begin(client, run, task, shared, alive)
            try:
                for number, task in enumerate(tasks):
                    where, found = self._found(client, run, tasks[number:], shared)
                    task.future = None  # the worker forgets it
                    self._workers[run.sharding.key, task.shard.number] = where
                    yield restored(found, run.model)
            finally:
                if left := [task.future for task in tasks if task.future is not None]:
                    with contextlib.suppress(Exception):  # of the cluster, if that is the trouble
                        client.cancel(left)

    def _ready(self) -> "Client":
        """The client; within a task its thread first makes room for the tasks it will wait for."""
        if self._within:
            from distributed import get_client, secede

            try:
                self._client = get_client()
            except ValueError as error:
                raise ValueError(
                    "`client` must be given outside of a Dask task; got None. Write "
                    "OnDask(loading, connected('tcp://...'))."
                ) from error
            if not getattr(_HERE, "seceded", False):  # once in a thread, which ends with its task
                secede()
                _HERE.seceded = True
        client: Any = self._client
        if not self._checked:
            with told(client):
                check_versions(client)
            self._checked = True
        return client

    def _begin(
        self, client: "Client", run: "ShardedRun", task: "_Task", shared: Any, alive: list[str]
    ) -> None:
        """Submit a task, to the worker that has its shard, or to one in turn."""
        key, number = run.sharding.key, task.shard.number
        kept = self._shards.setdefault(run, {})
        if self._workers.get((key, number)) not in alive:
            # neighbours together: each worker gets one part of the prompts
            self._workers[key, number] = alive[number * len(alive) // len(run.shards)]
            kept.pop(number, None)
        task.where = self._workers[key, number]
        here: dict[str, Any] = {"workers": [task.where], "allow_other_workers": True}
        if number not in kept:
            kept[number] = client.submit(_itself, task.shard, pure=False, **here)
        task.future = client.submit(
            done_on_a_worker, shared, kept[number], dict(task.own), pure=False, retries=0, **here
        )

    def _found(
        self, client: "Client", run: "ShardedRun", tasks: "Sequence[_Task]", shared: Any
    ) -> Any:
        """What the first of these tasks has found."""
        first, patience = tasks[0], LOOK
        while True:
            is_here, found = result_of(client, first.future, patience)
            if is_here:
                return found
            patience *= 2  # large results take their time
            # Dask gives the tasks of a worker that died to those that are left; where none is left
            # they wait for that one, even when another one comes
            alive = addresses_of(client)
            lost = [task for task in tasks if task.where not in alive]
            for task in lost if first in lost else []:
                if is_somewhere(client, task.future):
                    continue
                task.deaths += 1
                if task.deaths > DEATHS:
                    raise died(task.where, task.deaths)
                client.cancel(task.future)
                self._begin(client, run, task, shared, alive)


@dataclass(eq=False)
class _Task:
    shard: "Shard"
    own: Mapping[str, Any]
    where: str = ""
    future: Any = None
    deaths: int = 0


# ------------------------------------------------------------------------------- on a worker


@dataclass(frozen=True)
class Work:
    """What the tasks of all shards share; ``share`` of what may go through a block at once does."""

    function: Callable[..., Any]
    loading: LoadsModel
    fingerprint: str
    sharding: "Sharding"
    args: tuple[Any, ...]
    share: float = 1.0


@dataclass(frozen=True)
class _Kept:
    model: "DepthModel"
    bench: "Bench"


_LOCK = threading.RLock()
_HERE = threading.local()
_KEPT: dict[LoadsModel, _Kept] = {}
# How often this process has loaded a model.
LOADED: list[LoadsModel] = []


def loaded(loading: LoadsModel) -> "DepthModel":
    """The model of this process, which keeps one: it is loaded when it is first asked for."""
    return _kept(loading).model


def _kept(loading: LoadsModel) -> _Kept:
    from depthsys.lm.bench import Bench

    with _LOCK:
        if loading not in _KEPT:
            _KEPT.clear()  # before the next one comes: there may be room for one only
            LOADED.append(loading)
            _KEPT[loading] = _Kept(loading.load_model(), Bench(share=1 / _neighbours()))
        return _KEPT[loading]


def _neighbours() -> int:
    """Workers on the machine of this one, which share its memory."""
    from distributed import get_client, get_worker

    try:
        me = get_worker()
        workers = get_client().scheduler_info(n_workers=-1)["workers"].values()
    except ValueError:  # no worker
        return 1
    return max(1, sum(worker["host"] == me.ip for worker in workers))


def done_on_a_worker(work: Work, shard: "Shard", own: Mapping[str, Any]) -> tuple[str, Any]:
    """The address of this worker, and what the function finds of a shard."""
    from distributed import get_worker

    from depthsys.lm import at_once
    from depthsys.lm.switch import products_in

    with _LOCK:  # a model does one thing at a time
        kept = _kept(work.loading)
        model, me = kept.model, get_worker().address
        if model.fingerprint != work.fingerprint:
            raise ValueError(
                "`loading` must give all processes the same weights; got others on the worker "
                f"{me} ({model.name!r}). Let them read the same files, and start the workers again."
            )
        args = restored(work.args, model)
        with products_in("float32"), at_once.share_of(work.share):
            run = kept.bench.run(model, work.sharding, shard)
            found = work.function(run, *args, **own)
        return me, portable(found, model)


def _itself(value: Any) -> Any:
    return value


# ------------------------------------------------------------------ what goes over the network


class _TheModel:
    """Stands for the model, which every process has."""


def portable(value: Any, model: Any) -> Any:
    """A value without its model, its tensors in the memory of the host."""
    import torch

    return _replaced(
        value,
        lambda one: (
            _TheModel() if one is model
            else one.detach().cpu() if isinstance(one, torch.Tensor)
            else one
        ),
    )  # fmt: skip


def restored(value: Any, model: "DepthModel | Any") -> Any:
    """The same with this model, its tensors on the device of the model."""
    import torch

    device = model.device
    return _replaced(
        value,
        lambda one: (
            model if isinstance(one, _TheModel)
            else one.to(device) if isinstance(one, torch.Tensor)
            else one
        ),
    )  # fmt: skip


def _replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """What lies in tuples, lists, dictionaries and dataclasses is changed."""
    if type(value) is dict:  # a Counter, for one, has no tensors
        return {key: _replaced(one, change) for key, one in value.items()}
    if isinstance(value, tuple):
        inner = [_replaced(one, change) for one in value]
        return type(value)(*inner) if hasattr(value, "_fields") else tuple(inner)
    if isinstance(value, list):
        return [_replaced(one, change) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        before = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        after = {name: _replaced(one, change) for name, one in before.items()}
        changed = {n: one for n, one in after.items() if one is not before[n]}
        return replace(value, **changed) if changed else value
    return change(value)
