"""What a page is made of: the results of cells, and where they come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from depthsys.report.dynamics import SHOWN
from depthsys.report.stage import Stage

# the stages of a cell in the order in which they are made, and what each is called
STAGES = {
    "concept": "concept direction",
    "system": "reduced system",
    "gains": "gains",
    "comparison": "comparison of methods",
    "energies": "energies of schedules",
    "plan": "plan",
    "verified": "plan, verified",
    "effect": "effect of a control vector",
    "texts": "steered texts",
    **{name: shown.called for name, shown in SHOWN.items()},
}


@dataclass(frozen=True)
class CellResults:
    """What was found of one model, task, seed and way to a concept.

    Attributes
    ----------
    model, task, seed, concept
        Names of the cell.
    stages
        What they found, by the names of `STAGES`.
    attrs
        Of the cell: ``failed_stage`` and ``failed_reason`` where something failed.
    missing
        Stages that are not there yet; of the folder of a run, the rest of which commands.
    """

    model: str
    task: str
    seed: str
    concept: str
    stages: Mapping[str, Stage]
    attrs: Mapping[str, object] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def failed(self) -> str:
        """Which stage failed and why; empty where none did."""
        if "failed_stage" not in self.attrs:
            return ""
        stage = str(self.attrs["failed_stage"])
        why = self.attrs.get("failed_reason", "no reason was kept")
        return f"{STAGES.get(stage, stage)}: {why}"

    @property
    def state(self) -> str:
        """One word."""
        return "failed" if self.failed else "unfinished" if self.missing else "complete"

    def stage(self, name: str) -> Stage | None:
        """What a stage found; None where it is not there."""
        return self.stages.get(name)

    def any_of(self, name: str) -> object:
        """An attribute of the first stage that has it; None where none has."""
        found = (stage.attrs[name] for stage in self.stages.values() if name in stage.attrs)
        return next(found, None)


@dataclass(frozen=True)
class Results:
    """All that a page tells.

    Attributes
    ----------
    name
        Of the study, or of the folder.
    cells
        In the order in which they are told.
    attrs
        Of the study: created, command, machine, depthsys_version.
    settings
        The text of study.toml.
    kind
        "study", "run" or "file".
    source
        Where it was read from.
    notes
        What was found and not read, in words.
    """

    name: str
    cells: tuple[CellResults, ...]
    attrs: Mapping[str, object] = field(default_factory=dict)
    settings: str = ""
    kind: str = "study"
    source: str = ""
    notes: tuple[str, ...] = ()

    def named(self, cell: CellResults) -> str:
        """The cell by what tells it from the others."""
        whole = {
            "model": cell.model, "task": cell.task, "seed": f"seed {cell.seed}",
            "concept": cell.concept.replace("_", " "),
        }  # fmt: skip
        told = [
            said
            for part, said in whole.items()
            if part == "model" or len({getattr(each, part) for each in self.cells}) > 1
        ]
        return " · ".join(told)
