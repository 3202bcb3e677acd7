"""A page goes to others: paths of the machine that made its results stay behind."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from depthsys.report.html.results import CellResults, Results
from depthsys.report.stage import Stage

_END = r"[^\s'\"`<>:,;()\[\]{}|*?/]"
# from a root to a name at least one folder below it; not what follows a name, as in "10/4/4"
_PATH = re.compile(
    # in quotes with spaces, as in errors, commands and study.toml
    r"(?<=(?P<quote>['\"]))/(?:[^'\"\n/]+/)+[^'\"\n/]*(?=(?P=quote))|"
    rf"(?:file://|(?<![\w.~/+-]))/(?:{_END}+/)+{_END}*|\b[A-Za-z]:\\[^\s'\"`<>,;]+"
)
_HOME = re.compile(r"/(?:home|Users)/[^/]+(?:/|$)|/root(?:/|$)")
# texts of prompts and of classes, which are not ours to change
_KEPT = {"template", "system_message", "answer", "read_at", "classes"}


@dataclass
class Places:
    """Paths as those see them who do not have the machine.

    Attributes
    ----------
    below
        A folder; what lies in it is told from there.
    """

    below: str
    _known: dict[str, str] = field(default_factory=dict)

    def inside(self, said: str) -> str:
        """A text, in which absolute paths are told by their ends."""
        if "/" not in said and "\\" not in said:
            return said
        if said not in self._known:
            self._known[said] = _PATH.sub(lambda found: self._told(found[0], "…/"), said)
        return self._known[said]

    def attrs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes; one that is a path is told by its name."""
        return {
            name: self._value(value) if isinstance(value, str) and name not in _KEPT else value
            for name, value in given.items()
        }

    def _value(self, said: str) -> str:
        is_path = said.startswith("/") and "\n" not in said and not said.startswith("//")
        return self._told(said, "") if is_path else self.inside(said)

    def _told(self, path: str, before: str) -> str:
        path = path.removeprefix("file://").replace("\\", "/")
        if self.below and path.startswith(f"{self.below}/"):
            return path.removeprefix(f"{self.below}/") or before
        if home := _HOME.match(path):
            return f"~/{path[home.end() :]}"
        return before + PurePosixPath(path).name


def portable(results: Results) -> Results:
    """The same results without absolute paths, in all that a page could show of them.

    A path is told from the folder of the results where it lies there, from ``~`` in a home, and by
    its name elsewhere.
    """
    source = PurePosixPath(results.source.replace("\\", "/"))
    places = Places(str(source.parent) if source.is_absolute() else "")
    return replace(
        results,
        cells=tuple(_cell(cell, places) for cell in results.cells),
        attrs=places.attrs(results.attrs),
        settings=places.inside(results.settings),
        source=source.name,
        notes=tuple(map(places.inside, results.notes)),
    )


def _cell(cell: CellResults, places: Places) -> CellResults:
    stages = {
        name: Stage(stage.variables, places.attrs(stage.attrs))
        for name, stage in cell.stages.items()
    }
    attrs = {name: places.inside(str(value)) for name, value in cell.attrs.items()}
    names = {name: places.attrs({"": getattr(cell, name)})[""] for name in ("model", "task")}
    return replace(cell, stages=stages, attrs=attrs, **names)
