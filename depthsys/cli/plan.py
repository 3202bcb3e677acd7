"""`depthsys plan`: pushes that move the readout by a target, to be verified and generated with."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from depthsys.cli import results
from depthsys.cli.begun import begun
from depthsys.cli.main_job import identified
from depthsys.cli.options import (
    Force,
    Layout,
    Meaning,
    Moved,
    OptionalTexts,
    Out,
    Planned,
    Reduction,
    Shared,
    Source,
    settings,
    spread,
)
from depthsys.files import file_hash

if TYPE_CHECKING:
    from depthsys.cli.session import Session


@spread
def plan(
    source: Source,
    reduction: Reduction,
    meaning: Meaning,
    planned: Planned,
    layout: Layout,
    shared: Shared,
    out: Out,
    texts: OptionalTexts = None,
    model: Moved = None,
    force: Force = False,
) -> None:
    """Least pushes that shift the readout by the target, at the full model's optimum: OUT/plan.nc.

    The plan of the linear system comes first and is then improved on the operating prompts until
    the model itself reaches the target at least energy. `verify` and `generate` go on from it.

    Example: `depthsys plan run/system.nc --target 1std --out run`
    """
    asked = settings(reduction, meaning, planned, layout, shared)
    written = {"out": out, "files": results.PLAN_FILES, "force": force}
    session = begun("plan", asked, source, texts, model, **written)
    from depthsys import report
    from depthsys.study import steps

    with session.keeping("plan", force):
        system = identified(session)
        found = session.step("plan, and the optimum of the full model", steps.plan, system)
        found = found.assign_attrs(_of_system(session))
        session.keep(results.PLAN, found, report.plan(found))
        session.finish(system, "plan.txt")


def _of_system(session: "Session") -> dict[str, str]:
    """Where the system of the plan is, seen from the plan, and which file it was."""
    written: Path = session.folder.folder / results.SYSTEM.data
    path = session.source or written
    place = os.path.relpath(path.resolve(), session.folder.folder.resolve())
    return {"system": place, "system_sha256": file_hash(path)}
