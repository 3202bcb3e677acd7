"""Gains of detached maps: why they are no gains."""

import numpy as np

from depthsys.report.dynamics.shown import Curve, Drawn, Shown
from depthsys.report.stage import Stage
from depthsys.report.table import Table
from depthsys.wording import number

_KINDS = ("exact", "detached")


def verdicts(stage: Stage) -> list[str]:
    """Both kinds of gains against measured ones, and the energy of both plans."""
    said = [f"{_agreed(stage, 'relative_l2', kind)} by {kind} gains" for kind in _KINDS]
    ranks = [f"{_agreed(stage, 'spearman', kind)} ({kind})" for kind in _KINDS]
    multiple = float(stage.value("multiple", schedule="detached"))
    needs = (
        f"needs {number(multiple)} times the energy of that by exact gains"
        if np.isfinite(multiple)
        else "does not reach the target"
    )
    return [
        f"measured gains are missed by {' and '.join(said)} (relative L2 over all layers); rank "
        f"correlations are {' and '.join(ranks)}",
        f"the schedule of least energy by detached gains {needs}, on held-out prompts",
    ]


def _agreed(stage: Stage, name: str, kind: str) -> str:
    return number(float(stage.value(name, gains=kind, layers="all", bound="estimate")))


def tables(stage: Stage) -> list[Table]:
    """Energies that the two schedules really need."""
    rows = [
        (kind, *(_energy(stage, name, kind) for name in ("energy", "energy_low", "energy_high")))
        for kind in _KINDS
    ]
    return [Table(("planned with gains", "energy", "low", "high"), rows)]


def _energy(stage: Stage, name: str, kind: str) -> str:
    value = float(stage.value(name, schedule=kind))
    return number(value) if np.isfinite(value) else "not reached"


SHOWN = Shown(
    called="gains of detached maps",
    marks=frozenset({"detached_gain", "exact_gain"}),
    figures=(
        Drawn(
            "Gains of detached maps beside measured ones",
            "gain",
            "layer",
            (
                Curve("detached_gain", "by detached maps"),
                Curve("measured_gain", "measured"),
                Curve("exact_gain", "by Jacobians"),
            ),
            "readout per unit injection",
            note="Detached maps give values, not changes: they are never used for gains here.",
        ),
    ),
    verdicts=verdicts,
    others=("relative_l2", "spearman", "multiple", "energy", "energy_low", "energy_high"),
    tables=tables,
)
