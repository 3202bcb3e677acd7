"""A study at work: its stages in the order that shares work, each kept as soon as it is found."""

import contextlib
import errno
import logging
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import xarray as xr

from depthsys.files import content_hash
from depthsys.study.cell import files_sha256
from depthsys.study.checks import Checked
from depthsys.study.cluster import SchedulerLostError
from depthsys.study.grid import asked, model_identity, stage_identity, texts_identity
from depthsys.study.sources import read_splits_of
from depthsys.study.stages import STAGES
from depthsys.study.store import Store
from depthsys.study.study_file import CellKey
from depthsys.study.work import CellWork, Made, computed, nothing_kept

if TYPE_CHECKING:
    from depthsys.lm import Splits

LOG = logging.getLogger("depthsys.study")
_FULL = (errno.ENOSPC, errno.EDQUOT)

Compute = Callable[[CellWork, str, dict[str, xr.Dataset]], Made]


class Watch(Protocol):
    """Who is told what happens."""

    def begin(self, key: CellKey, stage: str, n_prompts: int) -> None:
        """A stage begins."""
        ...

    def end(self, key: CellKey, stage: str, how: str, seconds: float, said: str = "") -> None:
        """A stage is over: "made", "kept", "failed" or "left out"."""
        ...


@dataclass
class Outcome:
    """What became of the stages of a study.

    Attributes
    ----------
    made, kept
        How many were made now, and how many were there.
    failed
        Cell, stage and reason of those that failed.
    left_out
        Cell and stage of those that need one that failed.
    """

    made: int = 0
    kept: int = 0
    failed: list[tuple[CellKey, str, str]] = field(default_factory=list)
    left_out: list[tuple[CellKey, str]] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        """Count what became of others, too."""
        self.made += other.made
        self.kept += other.kept
        self.failed += other.failed
        self.left_out += other.left_out


def run_study(
    checked: Checked,
    store: Store,
    watch: Watch,
    *,
    command: str = "",
    compute: Compute = computed,
    at_once: int = 1,
) -> Outcome:
    """Make what is not there yet of a study, cell by cell.

    Parameters
    ----------
    checked
        The study.
    store
        Where it goes; locked meanwhile.
    watch
        Is told what happens.
    command
        What was typed, for the store.
    compute
        Who makes a stage: this process (`work.computed`), or a `Cluster`.
    at_once
        Cells that are on their way at once; all of one model.

    Raises
    ------
    ValueError
        If another run is at work in the store.
    OSError
        If the disk is full.
    """
    outcome = Outcome()
    with store.locked(), _logged(store), nothing_kept():
        store.begin(checked.study, command)
        LOG.info("study %s: %d cells", checked.study.name, len(checked.study.cells))
        cells = [CellRun(checked, store, watch, compute, key) for key in checked.study.cells]
        for cell in cells:
            cell.ask()
        for _, group in groupby(cells, key=lambda cell: cell.key.model):
            for found in _side_by_side(list(group), at_once):
                outcome.add(found)
        _finish(checked, store, outcome)
    return outcome


def _side_by_side(cells: "list[CellRun]", at_once: int) -> Iterator[Outcome]:
    """What becomes of cells, in their order."""
    if at_once == 1:
        for cell in cells:
            yield cell.run()
        return
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="cell")
    try:
        yield from pool.map(CellRun.run, cells)
    except BaseException:  # an interrupt: those that wait for a worker wait no longer
        for cell in cells:
            cell.stopped = True
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _finish(checked: Checked, store: Store, outcome: Outcome) -> None:
    if not outcome.failed:  # else parts of what failed may be of use to the next run
        store.finish()
    LOG.info(
        "study %s: %d stages made, %d kept, %d failed, %d left out",
        checked.study.name, outcome.made, outcome.kept, len(outcome.failed), len(outcome.left_out),
    )  # fmt: skip


class CellRun:
    """One cell of a study on its way through its stages."""

    def __init__(
        self, checked: Checked, store: Store, watch: Watch, compute: Compute, key: CellKey
    ):
        self.study, self.store, self.watch = checked.study, store, watch
        self.compute, self.key = compute, key
        self.found = checked.found[key]
        self.splits = checked.splits[key.texts]
        self.outcome = Outcome()
        self.datasets: dict[str, xr.Dataset] = {}
        self.stopped = False

    def ask(self) -> None:
        """Say in the store what the cell is to be of."""
        try:
            self.store.ask(self.key, asked(self.study, self.found, self.splits))
        except (OSError, ValueError) as error:  # of a model that went away: told in its turn
            LOG.warning("%s: not known what it is to be of: %s", self.key, error)

    def run(self) -> Outcome:
        """Make what is not there yet."""
        for stage in self.store.failures(self.key).keys() - set(self.study.stages):
            self.store.passed(self.key, stage)  # which is not asked for any more
        try:
            known = self._known()
        except Exception as error:  # of any kind: tokenizers raise bare ones
            self._fail(self.study.stages[0], error)
            known = None
        for stage in self.study.stages:
            if self.stopped:
                break
            if known is None or any(need not in self.datasets for need in STAGES[stage].needs):
                self._leave_out(stage)
                continue
            self._stage(stage, known)
        return self.outcome

    def _known(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What model and texts are, by what they hold now."""
        task, settings = self.study.task(self.key.task), self.found.settings
        now = texts_identity(read_splits_of(task.texts, settings))
        if now != texts_identity(self.splits):
            raise ValueError(
                f"`texts` must stay as they are while a study runs; {task.texts!r} has changed "
                "since it was checked. Run the study again."
            )
        return model_identity(files_sha256(self.found.source), settings), now

    def _stage(self, stage: str, known: tuple[dict[str, Any], dict[str, Any]]) -> None:
        inputs = {need: self.datasets[need] for need in STAGES[stage].needs}
        identity = stage_identity(
            stage,
            self.found.settings,
            *known,
            inputs,
            shard=self.study.shard,
            writing=self.study.writing,
        )
        there = self.store.finished(self.key, stage, identity)
        if there is not None:
            self.datasets[stage] = there
            self.store.passed(self.key, stage)  # it may have failed as something else meanwhile
            self.outcome.kept += 1
            self.watch.end(self.key, stage, "kept", 0.0)
            return
        work = self._work(stage, identity)
        self.watch.begin(self.key, stage, _n_prompts(self.splits))
        try:
            made = self.compute(work, stage, inputs)
        except Exception as error:  # the cell's affair, whatever it is: the others go on
            if isinstance(error, SchedulerLostError):
                raise
            if isinstance(error, OSError) and error.errno in _FULL:
                raise
            self._fail(stage, error)
            return
        self.datasets[stage] = self.store.write(
            self.key, stage, made.dataset, identity, seconds=made.seconds, notes=made.notes
        )
        self.store.passed(self.key, stage)
        self.outcome.made += 1
        for note in made.notes:
            LOG.warning("%s %s: %s", self.key, stage, note)
        LOG.info("%s %s: made in %.1f s", self.key, stage, made.seconds)
        self.watch.end(self.key, stage, "made", made.seconds, "; ".join(made.notes))

    def _work(self, stage: str, identity: dict[str, Any]) -> CellWork:
        partial = None
        if stage == "comparison":
            partial = self.store.work / f"comparison-{content_hash(identity)[:24]}"
        return CellWork(
            self.found,
            self.splits,
            self.study.writing,
            self.study.shard,
            partial,
            identity["model"]["files"],
        )

    def _fail(self, stage: str, error: BaseException) -> None:
        said = str(error) or type(error).__name__
        LOG.error("%s %s: failed: %s\n%s", self.key, stage, said, _traceback(error))
        self.store.fail(self.key, stage, said)
        self.outcome.failed.append((self.key, stage, said))
        self.watch.end(self.key, stage, "failed", 0.0, said)

    def _leave_out(self, stage: str) -> None:
        if any(failed == stage for _, failed, _ in self.outcome.failed):
            return
        self.outcome.left_out.append((self.key, stage))
        self.watch.end(self.key, stage, "left out", 0.0)


def _n_prompts(splits: "Splits") -> int:
    return sum(len(part) for part in (splits.concept, splits.operating, splits.held_out))


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@contextlib.contextmanager
def _logged(store: Store) -> Iterator[None]:
    """Write the log beside the store, after what earlier runs wrote there."""
    handler = logging.FileHandler(store.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        LOG.error("ended by %s", type(error).__name__)
        raise
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
        handler.close()
