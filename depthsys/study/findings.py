"""What `depthsys doctor` says of one thing after the other, in a line or as JSON."""

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from depthsys._version import __version__

OK, FAILED, ABSENT, NOTE = "ok", "FAILED", "absent", "note"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    section, name
        What it is.
    state
        `OK`; `FAILED`; `ABSENT`, where it is not needed; or `NOTE`, where neither is meant.
    said
        What was found, or the reason.
    cure
        What to do about it; empty where there is nothing to do.
    """

    section: str
    name: str
    state: str
    said: str
    cure: str = ""

    def line(self) -> str:
        """In one line, the cure included."""
        cure = f" -> {self.cure}" if self.cure else ""
        return f"  {self.state:<7} {self.name}: {self.said}{cure}"


def as_json(findings: Iterable[Finding]) -> dict[str, Any]:
    """For reports of faults: plain values, with ~ in place of the user's folder."""
    rows = [asdict(each) for each in findings]
    failed = [f"{row['section']}: {row['name']}" for row in rows if row["state"] == FAILED]
    return {"depthsys": __version__, "ok": not failed, "failed": failed, "findings": rows}


def tried(section: str, name: str, find: Callable[[], str], cure: str = "") -> Finding:
    """What a function says of it; the reason where it fails."""
    try:
        return Finding(section, name, OK, find())
    except Exception as error:  # whatever is broken is a finding, and the next thing is looked at
        return Finding(section, name, FAILED, reason(error), cure or _REPORT)


_REPORT = "Send the output of `depthsys doctor --json` with a report of the fault."


def reason(error: BaseException) -> str:
    """Kind and first line of an error."""
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def shown(path: str | os.PathLike) -> str:
    """A path, without the name of the user."""
    told, home = str(path), str(Path.home())
    return f"~{told[len(home) :]}" if told == home or told.startswith(home + os.sep) else told
