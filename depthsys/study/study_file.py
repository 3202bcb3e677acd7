"""What a study file asks for: models, texts, stages and settings, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

from depthsys.study import toml_lines
from depthsys.study.settings import Settings

SHARD = 1024  # prompts of a shard; less than this is prefilled as one run


@dataclass(frozen=True)
class ModelEntry:
    """A model of a study.

    Attributes
    ----------
    name
        What it is called in the study.
    source
        Folder, GGUF file or name of the hub.
    own
        Settings that are its own.
    """

    name: str
    source: str
    own: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskEntry:
    """Texts of a study: labelled ones, or lines.

    Attributes
    ----------
    name
        What they are called in the study.
    texts
        File, or ``demo:NAME`` or ``fetched:NAME``.
    own
        Settings that are their own.
    """

    name: str
    texts: str
    own: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Writing:
    """What the stage ``texts`` lets a model write.

    Attributes
    ----------
    prompts
        How texts begin.
    strengths
        Factors on the plan.
    max_new_tokens
        Length.
    positions
        Which tokens are pushed: "generated", "every" or "last", see `lm.steering`.
    """

    prompts: tuple[str, ...] = ()
    strengths: tuple[float, ...] = (0.0, 1.0)
    max_new_tokens: int = 40
    positions: str = "generated"


@dataclass(frozen=True)
class Study:
    """What a study file asks for.

    Attributes
    ----------
    name, description
        What it is called, and what it is for.
    text
        The file itself.
    stages
        Names out of `STAGES`, in their order, with what they need.
    seeds, concepts
        Of the splits, and how directions are found.
    shard
        Prompts that are prefilled and worked on together, see `lm.ShardedRun`.
    settings
        Those of all cells.
    models, tasks
        What is crossed.
    writing
        Of the stage ``texts``.
    lines
        Line of every key of the file.
    """

    name: str
    description: str
    text: str = field(repr=False)
    stages: tuple[str, ...]
    seeds: tuple[int, ...]
    concepts: tuple[str, ...]
    shard: int
    settings: Mapping[str, Any]
    models: tuple[ModelEntry, ...]
    tasks: tuple[TaskEntry, ...]
    writing: Writing
    lines: Mapping[toml_lines.Path, int] = field(default_factory=dict, repr=False)

    @cached_property
    def cells(self) -> "tuple[CellKey, ...]":
        """All cells, in the order that shares work: a model is loaded once, texts are run once."""
        crossed = product(self.models, self.tasks, self.seeds, self.concepts)
        return tuple(CellKey(m.name, t.name, seed, concept) for m, t, seed, concept in crossed)

    def model(self, name: str) -> ModelEntry:
        """The model of that name."""
        return next(each for each in self.models if each.name == name)

    def task(self, name: str) -> TaskEntry:
        """The texts of that name."""
        return next(each for each in self.tasks if each.name == name)

    def settings_of(self, key: "CellKey") -> Settings:
        """The settings of a cell: those of the file, of its model and of its task."""
        return self.settings_with(key.model, key.task, seed=key.seed, concept=key.concept)

    def settings_with(self, model: str, task: str | None = None, **others: Any) -> Settings:
        """The settings of a model, on the texts of a task or on any."""
        own = self.task(task).own if task is not None else {}
        return Settings.checked(**{**self.settings, **self.model(model).own, **own, **others})


@dataclass(frozen=True)
class CellKey:
    """One model on one set of texts, split by one seed, with one kind of direction."""

    model: str
    task: str
    seed: int
    concept: str

    def __str__(self) -> str:
        return f"{self.model}/{self.task}/seed_{self.seed}/{self.concept}"

    @property
    def texts(self) -> tuple[str, int]:
        """What its splits are of: task and seed."""
        return self.task, self.seed
