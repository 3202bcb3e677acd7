"""What one cell says in words, from the reports of its results."""

from collections.abc import Callable, Iterable

import xarray as xr

from depthsys.report.control import verdicts as of_energies
from depthsys.report.exchange import effect
from depthsys.report.gains import verdicts as of_gains
from depthsys.report.heading import attr_notes, better_depth, heading, text_notes
from depthsys.report.html import methods
from depthsys.report.html.facts import Facts
from depthsys.report.html.stage import Stage
from depthsys.report.plan import verdicts as of_plan

LARGE_PUSH = 0.3  # of the norm of the state, above which nothing linear can be expected


def lines(function: Callable[..., Iterable[str]], *given: object) -> list[str]:
    """What a function tells of a result; where that lacks something, that it does."""
    try:
        return [line.removeprefix("- ") for line in function(*given)]
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError) as error:
        return [
            f"not told: the result is not as depthsys writes it ({type(error).__name__}: {error})"
        ]


def origin(facts: Facts) -> list[str]:
    """Model, texts, direction: of the first result that says so."""
    for name in ("system", "comparison"):
        stage = facts.cell.stage(name)
        if stage is not None and "classes" in stage.attrs:
            return lines(heading, stage.dataset)
    return []


def found(facts: Facts) -> list[str]:
    """What every stage of the cell found."""
    stages = facts.cell.stages
    said = [*origin(facts)]
    if "gains" in stages:
        said += lines(of_gains, stages["gains"].dataset)
    if facts.methods:
        said.append(methods.verdict(facts))
        outside, checked = facts.violations
        if checked:
            how = (
                "none lies outside" if not outside else f"{outside} lie outside: do not trust them"
            )
            said.append(f"certificates: {checked} exact errors beside their bounds, {how}")
    if "plan" in stages:
        said += lines(of_plan, stages["plan"].dataset)
    if facts.schedules is not None:
        said += lines(of_energies, facts.schedules.dataset)
    if "effect" in stages:
        said += lines(lambda data: effect(data).verdicts, stages["effect"].dataset)
    return said or ["nothing yet: no stage is finished"]


def doubts(facts: Facts) -> list[str]:
    """What the results say against themselves."""
    stages, said = facts.cell.stages, []
    for stage in stages.values():
        said += lines(_against, stage)
    warned = any(
        "concept_warning" in stage.attrs or (name == "concept" and "warning" in stage.attrs)
        for name, stage in stages.items()
    )
    if facts.auc[0] < 0.6 and not warned:
        said.append(
            "the direction hardly separates held-out texts: its gains are real, but do not call "
            "them gains of the concept"
        )
    if facts.noise_floor > 0.2:
        said.append(
            "the noise of the held-out prompts alone is above 20 %: more prompts would say more"
        )
    if facts.largest_push > LARGE_PUSH:
        said.append(
            f"a push is more than {LARGE_PUSH * 100:.0f} % of the state's norm: nothing linear can "
            "be expected of it"
        )
    if facts.violations[0]:
        said.append("exact errors lie outside their certificates: do not trust these")
    said = list(dict.fromkeys(said))
    # the warning of a direction also comes at the head of what follows for its gains
    return [line for line in said if not any(o != line and o.startswith(line) for o in said)]


def _against(stage: Stage) -> list[str]:
    attrs = stage.attrs
    said = attr_notes(attrs)
    if "auc_low" in stage:
        names = ("auc", "auc_low", "auc_high")
        said += better_depth(xr.Dataset({name: stage.variables[name] for name in names}))
    if "n_duplicates" in attrs:
        said += text_notes(attrs)
    said += [str(attrs[name]) for name in ("warning", "not_met") if name in attrs]
    certified = str(attrs.get("certified", "yes"))
    return said + ([certified] if certified.startswith("not certified") else [])
