"""`depthsys plan`: pushes that move the readout by a target, to be verified and generated with."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from depthsys.cli import results
from depthsys.cli.kept import inside
from depthsys.cli.main_job import check_source, identified
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
from depthsys.cli.piped import Piped, output_folder
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
    check_source(source, texts, model)
    piped = Piped.taken(texts, asked)
    files = results.outputs(source, results.PLAN_FILES)
    folder = output_folder(out, files, force, inside(out, "plan"), piped)
    from depthsys import report
    from depthsys.cli.session import open_source
    from depthsys.study import steps

    session = open_source(source, texts, model, asked, folder, piped)
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
