"""The full linear systems that several methods reduce, each computed once for all of them."""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from time import perf_counter

import numpy as np
import xarray as xr

from depthsys.lm.channels import Channels
from depthsys.lm.exact import restricted_each, restricted_mean
from depthsys.lm.frozen import FrozenRun
from depthsys.lm.lockstep import driven
from depthsys.lm.methods import Method, Reduce
from depthsys.lm.orthonormal import Columns
from depthsys.lm.response import mean_response, response_each
from depthsys.lm.run import Run


class _Full:
    """What methods share: one restricted system that holds the directions of all of them."""

    def __init__(self, channels: Channels, methods: Mapping[str, Method], size: int):
        self.channels, self.methods, self.size = channels, methods, size
        self.columns: dict[str, Columns | None] = {}
        self.seconds: dict[str, float] = {}

    def rtol_of(self, method: Method) -> float:
        """The method's own tolerance, or that of the comparison."""
        return self.channels.rtol if method.rtol is None else method.rtol

    def _of_own_columns(self, find) -> Columns | None:
        """The directions of all methods side by side."""
        for name, method in self.methods.items():
            begin = perf_counter()
            self.columns[name] = find(method)
            self.seconds[name] = perf_counter() - begin
        found = [columns for columns in self.columns.values() if columns is not None]
        return np.concatenate(found, axis=-1) if found else None

    def _observable(self) -> bool:
        return any(method.observable for method in self.methods.values())

    def _timed(self, kind: str, compute) -> xr.Dataset:
        begin = perf_counter()
        found = compute()
        self.seconds[kind] = perf_counter() - begin
        return found

    def prepared_from(self, name: str, full: Mapping[str, xr.Dataset]):
        """What a method reduces, the function that reduces it, and the seconds of both."""
        method = self.methods[name]
        system = full[method.needs]
        seconds = self.seconds[method.needs] + self.seconds.get(name, 0.0)
        reduce = method.reducer(system, self.columns.get(name), keep_basis=False)
        return system, reduce, seconds


class MeanFull(_Full):
    """The mean system and the mean response of a run of prompts."""

    def __init__(
        self,
        channels: Channels,
        run: Run,
        methods: Mapping[str, Method],
        size: int,
        part: Callable[[str, Callable[[], xr.Dataset]], xr.Dataset],
    ):
        super().__init__(channels, methods, size)
        self.run = run
        self._part = part

    @cached_property
    def mean_system(self) -> xr.Dataset:
        """That of the mean Jacobians, see `exact_system`."""
        whole = self._part("mean system", self._system_and_columns)
        self.seconds |= json.loads(whole.attrs["seconds"])
        for name in self.methods:
            own = whole.get(f"columns_{name}")
            self.columns[name] = None if own is None else own.values[None]
        return whole.drop_vars([f"columns_{name}" for name in self.methods], errors="ignore")

    def _system_and_columns(self) -> xr.Dataset:
        columns = self._of_own_columns(lambda m: m.columns(self.channels, self.run, self.size))
        system = self._timed(
            "mean_system",
            lambda: restricted_mean(
                self.channels, self.run, observable=self._observable(), columns=columns
            ),
        )
        for name, own in self.columns.items():
            if own is not None:
                system[f"columns_{name}"] = (("depth", "feature", f"column_{name}"), own[0])
        return system.assign_attrs(seconds=json.dumps(self.seconds))

    @cached_property
    def mean_response(self) -> xr.Dataset:
        """The mean of the prompts' exact responses."""

        def compute() -> xr.Dataset:
            found = self._timed("mean_response", lambda: mean_response(self.channels, self.run))
            return found.assign_attrs(seconds=json.dumps(self.seconds))

        found = self._part("mean response", compute)
        self.seconds |= json.loads(found.attrs["seconds"])
        return found

    def prepared(self, name: str) -> tuple[xr.Dataset, Reduce, float]:
        """What a method reduces, the function that reduces it, and the seconds of both."""
        full = {"mean_system": self.mean_system, "mean_response": self.mean_response}
        return self.prepared_from(name, full)


class EachFull(_Full):
    """The system and the response of every prompt of a batch."""

    def __init__(
        self, channels: Channels, batch: FrozenRun, methods: Mapping[str, Method], size: int
    ):
        super().__init__(channels, methods, size)
        self.batch = batch

    @cached_property
    def system(self) -> xr.Dataset:
        """That of each prompt's Jacobians."""
        find = lambda m: self._driven(m.columns_each(self.channels, self.batch, self.size))  # noqa: E731
        columns = self._of_own_columns(find)
        return self._timed(
            "mean_system",
            lambda: self._driven(
                restricted_each(
                    self.channels, self.batch, observable=self._observable(), columns=columns
                )
            ),
        )

    def _driven(self, steps):
        return driven(self.channels.model.blocks, steps)

    @cached_property
    def response(self) -> xr.Dataset:
        """Each prompt's exact response."""
        return self._timed(
            "mean_response", lambda: self._driven(response_each(self.channels, self.batch))
        )

    def prepared(self, name: str) -> tuple[xr.Dataset, Reduce, float]:
        """What a method reduces, the function that reduces it, and the seconds of both."""
        needs = self.methods[name].needs
        full = {needs: self.system if needs == "mean_system" else self.response}
        return self.prepared_from(name, full)
