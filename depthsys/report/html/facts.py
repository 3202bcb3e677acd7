"""The numbers of a cell that the page compares with those of other cells."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from depthsys.report.dynamics import SHOWN
from depthsys.report.html.results import CellResults
from depthsys.report.stage import Stage, Three, names_of, number_of, pick, three
from depthsys.wording import small_order

UNKNOWN: Three = (float("nan"), float("nan"), float("nan"))
_MAIN = {"layers": "all", "injection": "absolute"}


@dataclass(frozen=True)
class Facts:
    """Numbers of a cell, each NaN where its stage is not there."""

    cell: CellResults
    name: str
    anchor: str

    @cached_property
    def n_layers(self) -> int:
        """Blocks of the model; 0 where nothing says so."""
        told = self.cell.any_of("n_layers")
        sizes = [
            stage.sizes["layer"] for stage in self.cell.stages.values() if "layer" in stage.sizes
        ]
        return int(told) if isinstance(told, (int, np.integer)) else sizes[0] if sizes else 0

    @cached_property
    def n_features(self) -> int:
        """Width of the states; 0 where nothing says so."""
        return _whole(self.cell.any_of("n_features"))

    @cached_property
    def n_parameters(self) -> int:
        """Of the model; 0 where nothing says so."""
        return _whole(self.cell.any_of("n_parameters"))

    @cached_property
    def auc(self) -> Three:
        """At the last depth, on held-out texts."""
        return self._auc(-1)

    def _auc(self, depth: int) -> Three:
        rows = [pick(self._separated, n, "depth") for n in ("auc", "auc_low", "auc_high")]
        found = [float("nan") if row is None else float(row[depth]) for row in rows]
        return found[0], found[1], found[2]

    @cached_property
    def separation(self) -> dict[str, np.ndarray]:
        """AUC over depth with its interval; empty where none is known."""
        return {} if self._separated is None else self._separated.separation

    @cached_property
    def _separated(self) -> Stage | None:
        names = ("concept", "system", "comparison", *SHOWN)
        return next(
            (s for n in names if (s := self.cell.stage(n)) is not None and "auc" in s), None
        )

    @cached_property
    def error(self) -> Three:
        """Relative L2 error of the surrogate against gains measured on held-out prompts."""
        return three(self.cell.stage("gains"), "relative_l2", **_MAIN)

    @cached_property
    def error_without_0(self) -> Three:
        """The same without layer 0."""
        asked = _MAIN | {"layers": "without_layer_0"}
        return three(self.cell.stage("gains"), "relative_l2", **asked)

    @cached_property
    def noise_floor(self) -> float:
        """What sampling noise alone would be."""
        return number_of(self.cell.stage("gains"), "noise_floor", **_MAIN)

    @cached_property
    def spearman(self) -> Three:
        """Rank correlation of predicted and measured gains."""
        return three(self.cell.stage("gains"), "spearman", **_MAIN)

    @cached_property
    def budget(self) -> dict[str, Three]:
        """Parts of the error, and the total."""
        gains = self.cell.stage("gains")
        return {
            p: three(gains, "error_budget", part=p, layers="all") for p in names_of(gains, "part")
        }

    @cached_property
    def largest_part(self) -> str:
        """The name of the largest part of the error; empty where none is known."""
        known = {k: v[0] for k, v in self.budget.items() if k != "total" and np.isfinite(v[0])}
        return max(known, key=lambda name: known[name]) if known else ""

    @cached_property
    def step_limit(self) -> float:
        """Push at which the response misses linearity by 5 %."""
        return number_of(self.cell.stage("gains"), "step_limit", layers="all")

    @cached_property
    def order(self) -> int:
        """States of the surrogate at most; -1 where there is none."""
        system = self.cell.stage("system")
        found = pick(system, "order", "depth")
        return -1 if found is None or not found.size else int(found.max())

    @cached_property
    def schedules(self) -> Stage | None:
        """Energies of schedules, of a verified plan where there is one."""
        return self.cell.stage("verified") or self.cell.stage("energies")

    @cached_property
    def uniform(self) -> Three:
        """Energy of the same push everywhere, in multiples of that of the plan."""
        names = ("multiple", "multiple_low", "multiple_high")
        found = [number_of(self.schedules, name, schedule="uniform") for name in names]
        return found[0], found[1], found[2]

    @cached_property
    def energy(self) -> Three:
        """Energy of the plan on the full model."""
        if self.schedules is None:
            return UNKNOWN
        mine = self.schedules.attrs.get("reference")
        names = ("energy", "energy_low", "energy_high")
        found = [number_of(self.schedules, name, schedule=mine) for name in names]
        return found[0], found[1], found[2]

    @cached_property
    def reached(self) -> Three:
        """Share of the target that the plan reaches on held-out prompts, played as it is."""
        plan = self.cell.stage("plan")
        target = number_of(plan, "target")
        found = [value / target for value in three(plan, "held_out_shift")]
        if np.isfinite(found[0]):
            return found[0], min(found[1:]), max(found[1:])
        share = number_of(self.cell.stage("energies"), "progress")
        return share, float("nan"), float("nan")

    @cached_property
    def largest_push(self) -> float:
        """Largest push of the plan over the norm of the state."""
        push = pick(self.cell.stage("plan"), "push", "layer")
        if push is not None and push.size:
            return float(np.nanmax(push))
        mine = None if self.schedules is None else self.schedules.attrs.get("reference")
        return number_of(self.schedules, "largest_push", schedule=mine)

    @cached_property
    def seconds(self) -> float:
        """Time of all stages."""
        found = [stage.attrs.get("stage_seconds") for stage in self.cell.stages.values()]
        known = [float(s) for s in found if isinstance(s, (int, float))]
        return sum(known) if known else float("nan")

    @cached_property
    def methods(self) -> dict[str, dict[int, Three]]:
        """Relative L2 error of every method at every order."""
        table = self.cell.stage("comparison")
        orders = pick(table, "order", "order")
        if orders is None:
            return {}
        return {
            name: {
                int(order): three(table, "relative_l2", basis=name, order=order, **_MAIN)
                for order in orders
            }
            for name in names_of(table, "basis")
        }

    @cached_property
    def small_order(self) -> int:
        """The order that stands for a small surrogate; 0 where methods were not compared."""
        orders = {order for row in self.methods.values() for order in row}
        return small_order(orders) if orders else 0

    @cached_property
    def violations(self) -> tuple[int, int]:
        """Exact errors outside their certificates by more than rounding, of so many."""
        table = self.cell.stage("comparison")
        error = pick(table, "error", "basis", "order", "reference")
        upper = pick(table, "upper", "basis", "order", "reference")
        lower = pick(table, "lower", "order", "reference")
        slack = pick(table, "resolution", "reference")
        if error is None or upper is None or lower is None or slack is None:
            return 0, 0
        outside = (error < lower - slack) | (error > upper + slack)
        return int((outside & np.isfinite(error)).sum()), int(np.isfinite(error).sum())


def _whole(told: object) -> int:
    return int(told) if isinstance(told, (int, float, np.integer)) else 0


def known(facts: list[Facts], number: Callable[[Facts], Any]) -> np.ndarray:
    """The numbers of the cells in which they are known."""
    found = np.array([number(each) for each in facts], dtype=float)
    return found[np.isfinite(found)]
