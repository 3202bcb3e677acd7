"""What is wrong with a study file: gathered, and told at once with the lines."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from depthsys.study import toml_lines


class StudyFaults(ValueError):
    """What is wrong with a study file, all of it."""


@dataclass
class Faults:
    """Faults that were found so far, by the key that they are of."""

    name: str
    lines: Mapping[toml_lines.Path, int] = field(default_factory=dict)
    found: list[tuple[int, str]] = field(default_factory=list)
    paths: set[toml_lines.Path] = field(default_factory=set)

    def add(self, path: toml_lines.Path, said: object) -> None:
        """A fault of the key, or of the table, at that path."""
        line = toml_lines.line_of(dict(self.lines), path) or 0
        where = f"line {line}, " if line else ""
        fault = (line, f"{where}{_dotted(path)}: {said}")
        self.paths.add(path)
        if fault not in self.found:
            self.found.append(fault)

    def under(self, *path: str | int) -> bool:
        """Whether there are faults of that key or table, or in it."""
        return any(each[: len(path)] == path for each in self.paths)

    def check(self) -> None:
        """StudyFaults if there are any."""
        if self.found:
            count = len(self.found)
            told = "\n".join(f"  {said}" for _, said in sorted(self.found, key=lambda f: f[0]))
            raise StudyFaults(
                f"`STUDY` must be a study that can be run; {self.name} has {count} "
                f"fault{'s' if count > 1 else ''}:\n{told}"
            )


def _dotted(path: toml_lines.Path) -> str:
    """A path as in ``models[0].source``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".") or "the file"


def as_key(said: str) -> str:
    """An error of the command line, with options named as keys of a study file.

    Examples
    --------
    >>> as_key("`--max-tokens` must be >= 1; got 0.")
    '`max_tokens` must be >= 1; got 0.'
    """
    renamed = {
        "system": "system_message", "each": "n_each", "jacobians": "n_jacobians",
        "lines": "n_lines",
    }  # fmt: skip

    def key(option: re.Match[str]) -> str:
        name = option[1].replace("-", "_")
        return renamed.get(name, name)

    return re.sub(r"--([a-z][a-z0-9-]*)", key, said)
