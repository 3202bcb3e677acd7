"""What one cell says in words, from the reports of its results."""

from collections.abc import Callable, Iterable

from depthsys.report.control import verdicts as of_energies
from depthsys.report.dynamics import SHOWN
from depthsys.report.exchange import effect
from depthsys.report.gains import verdicts as of_gains
from depthsys.report.heading import heading
from depthsys.report.html import methods
from depthsys.report.html.facts import Facts
from depthsys.report.html.results import STAGES
from depthsys.report.plan import verdicts as of_plan
from depthsys.report.remarks import Remark, better_depth, of_attrs, of_direction, of_texts
from depthsys.report.stage import Stage
from depthsys.wording import counted, fixed, percent, sentence

LARGE_PUSH = 0.3  # of the norm of the state, above which nothing linear can be expected
WEAK = 0.6  # an AUC of a direction that hardly separates
FEW = 10  # prompts that say little of others
LOUD = 0.2  # relative noise of prompts that leaves little to be seen


def lines(function: Callable[..., Iterable[str]], *given: object) -> list[str]:
    """What a function tells of a result; where that lacks something, that it does."""
    try:
        return [line.removeprefix("- ") for line in function(*given)]
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError) as error:
        return [_untold(error)]


def _untold(error: Exception) -> str:
    return f"not told: the result is not as depthsys writes it ({type(error).__name__}: {error})"


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
    said = []
    if "gains" in stages:
        said += lines(of_gains, stages["gains"])
    if facts.methods:
        said.append(methods.verdict(facts))
        outside, checked = facts.violations
        if checked:
            how = (
                "none lies outside" if not outside else f"{outside} lie outside: do not trust them"
            )
            said.append(f"certificates: {checked} exact errors beside their bounds, {how}")
    if "plan" in stages:
        said += lines(of_plan, stages["plan"])
    if facts.schedules is not None:
        said += lines(of_energies, facts.schedules)
    for name in SHOWN:
        if name in stages:
            said += lines(SHOWN[name].verdicts, stages[name])
    if "effect" in stages:
        said += lines(lambda data: effect(data).verdicts, stages["effect"].dataset)
    said = [*origin(facts), *map(sentence, said)]
    return said or ["Nothing yet: no stage is finished"]


def doubts(facts: Facts) -> list[Remark]:
    """What the results say against themselves."""
    said = [*_of_direction(facts)]
    for name, stage in facts.cell.stages.items():
        try:
            said += _against(facts, name, stage)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            said.append(Remark(_untold(error)))
    said += _of_numbers(facts)
    # some are told by every stage that follows from what they are about
    return list({remark.said: remark for remark in said}.values())


def _of_direction(facts: Facts) -> list[Remark]:
    """Whether the direction separates, once; gains are told of where there are any."""
    stages = facts.cell.stages.values()
    after = next((s.attrs["concept_warning"] for s in stages if "concept_warning" in s.attrs), None)
    concept = facts.cell.stage("concept")
    own = None if concept is None else concept.attrs.get("warning")
    if after is not None or own is not None:
        said = str(own if after is None else after)
        return [of_direction(said, facts.separation, gains=after is not None)]
    if not facts.auc[0] < WEAK:
        return []
    said = (
        "the direction hardly separates held-out texts: its gains are real, but do not call "
        "them gains of the concept"
    )
    return [Remark(said, said, "AUC", fixed(facts.auc))]


def _of_numbers(facts: Facts) -> list[Remark]:
    """What the numbers of a cell say against it."""
    found = []
    if facts.noise_floor > LOUD:
        said = (
            f"the noise of the held-out prompts alone is above {LOUD * 100:.0f} %: more prompts "
            "would say more"
        )
        found.append(Remark(said, said, "noise", percent([facts.noise_floor])))
    few = {
        int(s.attrs["n_jacobians"]) for s in facts.cell.stages.values() if "n_jacobians" in s.attrs
    }
    if few and min(few) < FEW:
        said = f"whole Jacobians are of {counted(min(few), 'prompt')} alone: others may have others"
        found.append(Remark(said, "whole Jacobians of few prompts: others may have others",
                            "prompts", str(min(few))))  # fmt: skip
    if facts.largest_push > LARGE_PUSH:
        found.append(_of_push(facts))
    if facts.violations[0]:
        said = "exact errors lie outside their certificates: do not trust these"
        found.append(Remark(said, said, "errors", "{} of {}".format(*facts.violations)))
    return found


def _of_push(facts: Facts) -> Remark:
    """A large push, as the plan itself warns of it, or by its size."""
    common = (
        f"pushes of more than {LARGE_PUSH * 100:.0f} % of the state's norm: linear predictions do "
        "not hold there"
    )
    largest = percent([facts.largest_push])
    plan = facts.cell.stage("plan")
    said = common if plan is None else str(plan.attrs.get("warning", common))
    return Remark(said, common, "largest push", largest)


def _against(facts: Facts, name: str, stage: Stage) -> list[Remark]:
    """What a stage says of itself; of the direction and of large pushes the cell does."""
    attrs = {key: value for key, value in stage.attrs.items() if key != "concept_warning"}
    separation = stage.separation
    said = of_attrs(attrs, separation or facts.separation)
    if "auc_low" in separation:
        said += better_depth(separation)
    if "n_duplicates" in attrs:
        said += of_texts(attrs)
    if "warning" in attrs and name not in ("concept", "plan", "verified", "texts"):
        said.append(Remark(str(attrs["warning"])))
    if "not_met" in attrs:
        common = "the search for a plan ended before its conditions were met"
        said.append(Remark(str(attrs["not_met"]), common))
    certified = str(attrs.get("certified", "yes"))
    if certified.startswith("not certified"):
        common = "rounding leaves something uncertified"
        said.append(Remark(certified, common, "of", STAGES.get(name, name)))
    return said
