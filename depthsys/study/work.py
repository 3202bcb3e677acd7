"""The work of a study: one stage of one cell, wherever it is done.

What a stage needs is a `CellWork` and Datasets: plain data, which may go to another process. Each
process keeps the model that it loaded last, and the runs of the texts that it worked on last.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import xarray as xr

from depthsys.study.cell import Cell, Found, files_sha256
from depthsys.study.grid import readout_of
from depthsys.study.measures import MEASURES
from depthsys.study.settings import Settings
from depthsys.study.study_file import Writing

if TYPE_CHECKING:
    from depthsys.lm import DepthModel, Splits, Texts

HALVINGS = 6  # a batch of which 1/64 does not fit will not fit either
NAME = "plan"  # what the plan of a cell is called among those that write


@dataclass(frozen=True)
class CellWork:
    """What is worked on: a model that can be loaded, split texts, settings.

    Attributes
    ----------
    found
        The model, with the settings of the cell.
    splits
        The texts.
    writing
        What is written under a plan.
    shard
        Prompts that are worked on together.
    partial
        Folder for parts of a comparison, which goes on there after an interruption.
    files_sha256
        Of the files of the model, wherever it is loaded.
    spread
        Whether shards go to all workers of the cluster that this one belongs to.
    """

    found: Found
    splits: "Splits"
    writing: Writing
    shard: int
    partial: Path | None = None
    files_sha256: str | None = None
    spread: bool = False

    @property
    def settings(self) -> Settings:
        """Those of the cell."""
        return self.found.settings

    @property
    def model_key(self) -> tuple[Any, ...]:
        """What a loaded model depends on: where it is, how it is loaded, and its files."""
        asked = self.settings
        chosen = (asked.device, asked.device_map, asked.max_memory, asked.dtype, asked.tf32)
        prompting = tuple(vars(asked.prompting).items())
        # a model whose files changed since it was loaded is another one
        return (self.files_sha256, self.found.source, *map(str, chosen), prompting)


@dataclass(frozen=True)
class Made:
    """What a stage found.

    Attributes
    ----------
    dataset
        The Dataset.
    seconds
        What it took, without loading the model.
    notes
        What happened on the way, in words.
    """

    dataset: xr.Dataset
    seconds: float
    notes: tuple[str, ...] = ()


class Opened:
    """The model that was loaded last, and the cells of the texts that were worked on last."""

    def __init__(self) -> None:
        self.loads = 0
        self._refused: dict[Any, Exception] = {}
        self._model: tuple[Any, DepthModel] | None = None
        self._cell: tuple[Any, Cell] | None = None

    def model(self, work: CellWork) -> "DepthModel":
        """The model of the work, loaded if it is another one than the last."""
        key = work.model_key
        if self._model is None or self._model[0] != key:
            self.clear()  # two models may be more than the memory holds
            from depthsys.lm.hf.messages import silence

            silence()
            if key in self._refused:  # every cell of that model fails for the same reason, at once
                raise self._refused[key]
            try:
                self._model = key, _loaded(ModelOfStudy(key, work), spread=work.spread)
            except Exception as error:
                self._refused[key] = error.with_traceback(None)
                raise
            self.loads += 1
        return self._model[1]

    def cell(self, work: CellWork) -> Cell:
        """The cell of the work; its texts are run once for all stages, concepts and settings."""
        model = self.model(work)
        texts = work.splits
        parts = (texts.concept, texts.operating, texts.held_out)
        # the hashes know labels, not what these are called nor where the texts are
        told = (texts.concept.source, *texts.concept.classes, texts.n_duplicates, texts.n_other)
        key = (id(model), *(part.sha256 for part in parts), *told)
        if self._cell is None or self._cell[0] != key:
            self._cell = None
            self._cell = key, Cell(work.settings, model, texts, runs_of(work))
        return self._cell[1].with_settings(work.settings)

    def forget_runs(self) -> None:
        """Drop the runs: their contexts take memory."""
        self._cell = None
        gc.collect()

    def clear(self) -> None:
        """Drop the model and all that was made with it."""
        self._model = self._cell = None
        gc.collect()

    def forget_refusals(self) -> None:
        """Try again to load what could not be loaded before."""
        self._refused.clear()


OPENED = Opened()


@dataclass(frozen=True)
class ModelOfStudy:
    """How a process gets the model of some work; equal ones give the same.

    Attributes
    ----------
    key
        What a loaded model depends on.
    work
        The work that it is for.
    """

    key: tuple[Any, ...]
    work: CellWork = field(compare=False)

    def load_model(self) -> "DepthModel":
        """The model, from where this process finds it."""
        _check_files(self.work)
        model = self.work.found.load_model()
        _check_files(self.work)  # of a model of the hub that was not here yet
        return model


def _loaded(model: ModelOfStudy, *, spread: bool) -> "DepthModel":
    if not spread:
        return model.load_model()
    from depthsys.study.dask_crew import loaded  # which keeps it for shards of others, too

    return loaded(model)


def runs_of(work: CellWork) -> "Callable[..., Any]":
    """How runs of texts are made: whole, or in shards where there are more prompts than in one."""

    def run(model: "DepthModel", texts: "Texts", *, contexts: bool = True) -> Any:
        from depthsys import lm

        if len(texts) <= work.shard:
            return lm.Run.later(model, texts) if contexts else model.run(texts, contexts=False)
        crew = None
        if work.spread:
            from depthsys.study.dask_crew import OnDask

            crew = OnDask(ModelOfStudy(work.model_key, work))
        return lm.ShardedRun(model, texts, shard=work.shard, crew=crew, contexts=contexts)

    return run


def _check_files(work: CellWork) -> None:
    """ValueError where the model lies here with other files than those that the study is of."""
    here = files_sha256(work.found.source)
    if None not in (here, work.files_sha256) and here != work.files_sha256:
        raise ValueError(
            f"`source` must hold the same files wherever the study runs, and as long as it does; "
            f"{work.found.source!r} holds others here and now. Copy the model there, or run the "
            "study again."
        )


def computed(work: CellWork, stage: str, inputs: Mapping[str, xr.Dataset]) -> Made:
    """What a stage finds, from the Datasets of the stages that it needs.

    Where a batch does not fit into the memory it is tried again with half of it, which is noted.
    """
    from depthsys.lm import at_once
    from depthsys.lm.hf.causes import out_of_memory

    OPENED.model(work)
    begin = perf_counter()
    notes: list[str] = []
    while True:
        try:
            with at_once.share_of(0.5 ** len(notes)):
                found = _STEPS[stage](work, OPENED.cell(work), inputs)
            return Made(found, perf_counter() - begin, tuple(notes))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or len(notes) == HALVINGS:
                raise
            first = str(error).strip().split("\n")[0]
            notes.append(f"out of memory, tried again with half of each batch: {first[:200]}")
        OPENED.forget_runs()  # outside of the handler, whose error holds what filled the memory


def _concept(work: CellWork, cell: Cell, inputs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    from depthsys.study import steps

    return steps.find_concept(cell)


def _system(work: CellWork, cell: Cell, inputs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    from depthsys.study import steps

    return steps.identify(cell, inputs["concept"])


def _gains(work: CellWork, cell: Cell, inputs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    from depthsys.study import steps

    return steps.gains(cell, inputs["system"])


def _comparison(work: CellWork, cell: Cell, inputs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """In the profile of all depths, unless another readout is asked for, as `depthsys compare`."""
    from depthsys.study import steps

    settings = replace(work.settings, readout=readout_of("comparison", work.settings))
    table = steps.compare(cell.with_settings(settings), inputs["concept"], work.partial, force=True)
    if work.partial is not None:
        from depthsys.files import Resumable

        if (kept := Resumable.begun_in(work.partial)) is not None:
            kept.finish()
    return table


def _energies(work: CellWork, cell: Cell, inputs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    from depthsys.study import steps

    return steps.control(cell, inputs["system"])


def _plan(work: CellWork, cell: Cell, inputs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    from depthsys.study import steps

    return steps.plan(cell, inputs["system"])


def _verified(work: CellWork, cell: Cell, inputs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    from depthsys.study import steps

    return steps.verify_plan(cell, inputs["system"], inputs["plan"])


def _texts(work: CellWork, cell: Cell, inputs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    from depthsys import lm
    from depthsys.study import steps

    writing, plan = work.writing, inputs["plan"]
    concept = plan[["direction"]].isel(input=0)
    found = lm.generation_effects(
        cell.model,
        list(writing.prompts),
        concept,
        {NAME: (plan, writing.positions)},
        strengths=writing.strengths,
        max_new_tokens=writing.max_new_tokens,
        seed=cell.settings.seed,
        do_sample=False,
    ).assign_coords(prompt=list(writing.prompts))
    return steps.of_this_run(found, cell)


def _measured(name: str) -> "Callable[[CellWork, Cell, Mapping[str, xr.Dataset]], xr.Dataset]":
    def measure(work: CellWork, cell: Cell, inputs: Mapping[str, xr.Dataset]) -> xr.Dataset:
        from depthsys.study import dynamics

        found = dynamics.measured(cell, name, inputs.get("concept"))
        return found.drop_vars(MEASURES[name].large)

    return measure


_STEPS: dict[str, Callable[[CellWork, Cell, Mapping[str, xr.Dataset]], xr.Dataset]] = {
    "concept": _concept,
    "system": _system,
    "gains": _gains,
    "comparison": _comparison,
    "energies": _energies,
    "plan": _plan,
    "verified": _verified,
    "texts": _texts,
    **{name: _measured(name) for name in MEASURES},
}


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Drop the model and the runs of this process at the end."""
    OPENED.forget_refusals()
    try:
        yield
    finally:
        OPENED.clear()
