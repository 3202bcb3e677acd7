"""The stages of a cell: what each is made of, and which settings it depends on.

Adding a stage touches this list and, where it computes something new, one function of a step.
"""

from collections.abc import Collection
from dataclasses import dataclass

from depthsys.study.measures import MEASURES

_STEP = ("step", "eps")


@dataclass(frozen=True)
class Stage:
    """A stage of a cell of a study.

    Attributes
    ----------
    name
        What its Dataset is called in a store.
    needs
        The stages whose Datasets it takes.
    settings
        What it depends on beside those: names of `Settings`, and ``writing``.
    title
        What is said while it is made.
    """

    name: str
    needs: tuple[str, ...]
    settings: tuple[str, ...]
    title: str


_ALL = (
    Stage("concept", (), ("concept",), "concept direction"),
    Stage("system", ("concept",), ("basis", "order", "tolerance", "readout"), "identify"),
    Stage("gains", ("system",), _STEP, "exact linear and measured gains"),
    Stage(
        "comparison",
        ("concept",),
        ("methods", "orders", "n_each", "readout", "seed", *_STEP),
        "compare methods",
    ),
    Stage("energies", ("system",), ("target", "energy"), "search energies on the full model"),
    Stage(
        "plan",
        ("system",),
        (
            "target",
            "energy",
            "layers",
            "skip_layers",
            "max_relative_push",
            "max_layers",
            "linear",
        ),
        "optimum of the full model",
    ),
    Stage("verified", ("system", "plan"), (), "check the plan beside others"),
    Stage("texts", ("plan",), ("seed", "writing"), "write under the plan"),
    *(
        Stage(each.name, ("concept",) if each.of_concept else (), each.settings, each.title)
        for each in MEASURES.values()
    ),
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in _ALL}
DEFAULT_STAGES = ("concept", "system", "gains", "comparison", "energies")


def with_needed(names: Collection[str]) -> tuple[str, ...]:
    """The stages of these names and those that they need, in order.

    Examples
    --------
    >>> with_needed(["plan", "gains"])
    ('concept', 'system', 'gains', 'plan')
    """
    wanted = set(names)
    for stage in reversed(_ALL):
        if stage.name in wanted:
            wanted.update(stage.needs)
    return tuple(stage.name for stage in _ALL if stage.name in wanted)
