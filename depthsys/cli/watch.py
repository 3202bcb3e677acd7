"""What a study does, on the terminal: rich bars where there is one, else a line for each stage."""

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from depthsys.report.forecast import duration

if TYPE_CHECKING:
    from depthsys.study.runner import Outcome
    from depthsys.study.store import Store
    from depthsys.study.study_file import CellKey, Study


class ProgressWatch:
    """The bars of a study: overall with what is left, the cell and stage, prompts per second."""

    def __init__(self, study: "Study"):
        self.study = study
        self.console = Console(stderr=True, highlight=False)
        self.total = len(study.cells) * len(study.stages)
        self._spent: dict[str, list[float]] = defaultdict(list)
        self._open = [(key, stage) for key in study.cells for stage in study.stages]
        self._progress = _Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._whole = self._progress.add_task("stages", total=self.total, rate="")
        self._bars: Any = None

    def __enter__(self) -> "ProgressWatch":
        from depthsys.lm.progress import shown_by

        self._progress.start()
        self._bars = shown_by(self._bar)
        self._bars.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bars.__exit__(*error)
        self._progress.stop()

    def begin(self, key: "CellKey", stage: str, n_prompts: int) -> None:
        """Say which stage is at work."""
        from depthsys.study.stages import STAGES

        self._progress.now = f"{key}: {STAGES[stage].title}"
        self._progress.refresh()

    def end(self, key: "CellKey", stage: str, how: str, seconds: float, said: str = "") -> None:
        """Count a stage, and say what became of it."""
        self._open.remove((key, stage))
        if how == "made":
            self._spent[stage].append(seconds)
        self._progress.update(self._whole, advance=1, rate=self._left())
        if how in ("made", "failed"):
            spent = f"{seconds:.1f} s" if how == "made" else "FAILED"
            line = f"{key} {stage}: {spent}{f'; {said}' if said else ''}"
            if not self.console.is_terminal:  # there are no bars that say how far it is
                line = f"[{self.total - len(self._open)}/{self.total}] {line}"
            self.console.print(line, markup=False, soft_wrap=True)

    def _left(self) -> str:
        """What is left, by what stages of the same kind have taken so far."""
        known = {stage: sum(spent) / len(spent) for stage, spent in self._spent.items()}
        if not known:
            return ""
        mean = sum(known.values()) / len(known)
        left = sum(known.get(stage, mean) for _, stage in self._open)
        return f"{duration(left)} left"

    def _bar(self, title: str, total: int, unit: str) -> "_Bar":
        return _Bar(self._progress, title, total, unit)

    def summary(self, outcome: "Outcome", store: "Store") -> list[str]:
        """What became of the study, in two or three lines."""
        parts = [f"{outcome.made} stages made", f"{outcome.kept} were there"]
        if outcome.failed:
            parts.append(f"{len(outcome.failed)} failed")
        if outcome.left_out:
            parts.append(f"{len(outcome.left_out)} left out, which need them")
        lines = [f"{self.study.name}: {', '.join(parts)}."]
        lines += [f"- {key} {stage}: {reason}" for key, stage, reason in outcome.failed]
        lines.append(
            f"Results: {store.path} (xarray.open_datatree); log: {store.log}; a page of them: "
            f"depthsys report {store.path} --out report.html"
        )
        return lines


class _Bars(Progress):
    """Bars under a line of its own for the cell, whose name would push them off 80 columns."""

    now = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The line and the bars."""
        if self.now:
            yield Text(self.now, no_wrap=True, overflow="ellipsis")
        yield from super().get_renderables()


class _Bar:
    """A bar of the package, shown with those of the study."""

    def __init__(self, progress: Progress, title: str, total: int, unit: str):
        self._progress, self._unit = progress, unit
        self._begun, self._done = time.monotonic(), 0
        self._task = progress.add_task(f"  {title}", total=total, rate="")

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, count: float = 1) -> None:
        """Go on by so many."""
        self._done += count
        spent = time.monotonic() - self._begun
        rate = f"{self._done / spent:.3g} {self._unit}s/s" if spent > 0.2 else ""
        self._progress.update(self._task, advance=count, rate=rate)

    def close(self) -> None:
        """Go away."""
        self._progress.remove_task(self._task)
