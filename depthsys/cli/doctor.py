"""`depthsys doctor`: what is installed here, what is missing, and whether it works."""

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator
from typing import Annotated

import typer

from depthsys.cli.clock import CLOCK
from depthsys.study.doctor import everything
from depthsys.study.findings import FAILED, Finding, as_json


def doctor(
    as_json_: Annotated[
        bool, typer.Option("--json", help="As JSON, to send with a report of a fault.")
    ] = False,
) -> None:
    """Versions, devices, optional parts with their install line, and a self-test of seconds.

    What is marked FAILED comes with the reason and the cure, and makes the exit status 1. What is
    absent is not needed until you use it.

    Example: `depthsys doctor`, or `depthsys doctor --json > doctor.json`
    """
    if as_json_:
        with contextlib.redirect_stdout(sys.stderr):  # whatever packages say as they are imported
            found = list(_quiet(everything()))
    else:
        found = list(_told(_quiet(everything())))
    failed = [each for each in found if each.state == FAILED]
    if as_json_:
        typer.echo(json.dumps(as_json(found) | {"seconds": round(CLOCK.seconds, 1)}, indent=1))
    else:
        names = ", ".join(f"{each.name} ({each.section})" for each in failed)
        verdict = f"FAILED: {names}" if failed else "All is well"
        typer.echo(f"{verdict}. {CLOCK.seconds:.0f} s, start and imports included.")
    if failed:
        raise typer.Exit(1)


def _told(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Each is shown as soon as it is there."""
    section = ""
    for each in findings:
        if each.section != section:
            section = each.section
            typer.echo(section.capitalize())
        typer.echo(each.line())
        yield each


def _quiet(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Without the warnings of packages that are looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from findings
