"""The page in words: what was asked, what was found, how far to trust it, what failed."""

from collections.abc import Sequence

import numpy as np

from depthsys.report.dynamics import SHOWN
from depthsys.report.html import gains, told
from depthsys.report.html.facts import Facts, known
from depthsys.report.html.parts import Section, bullets, paragraph
from depthsys.report.html.results import Results
from depthsys.report.html.svg import Markup, tag
from depthsys.report.html.trust import Doubts, remarks
from depthsys.wording import counted, fixed, listed, number, percent

SEPARATES, WEAKLY = 0.8, 0.6  # AUC, as the heading of a single result has it
NO_DOUBTS = "The results say nothing against themselves, which is no proof that nothing is."
NEAR = 0.05  # of the target


def section(results: Results, facts: list[Facts], doubts: Doubts) -> Section:
    """The first section."""
    parts = [
        _failures(results, facts),
        _unfinished(results, facts),
        _notes(results),
        _headline(facts),
        tag("h3", "What was asked"),
        paragraph(_asked(results, facts)),
        tag("h3", "What was found"),
        bullets(_found(facts), "verdicts"),
        tag("h3", "How far to trust it"),
        bullets([*_limits(facts), *remarks(facts, doubts)] or [NO_DOUBTS], "verdicts"),
    ]
    return Section("summary", "Summary", tag("div", *parts, class_="summary"))


def _failures(results: Results, facts: list[Facts]) -> Markup | None:
    failed = [each for each in facts if each.cell.failed]
    if not failed:
        return None
    of = f"{len(failed)} of {counted(len(facts), 'cell')} failed"
    rows = [
        tag("li", tag("a", each.name, href=f"#{each.anchor}"), f" · {each.cell.failed}")
        for each in failed
    ]
    return tag("div", tag("h3", of), tag("ul", *rows), class_="alert", role="note")


def _unfinished(results: Results, facts: list[Facts]) -> Markup | None:
    left = [each for each in facts if each.cell.missing]
    if not left:
        return None
    said = (
        f"{counted(len(left), 'cell')} of {len(facts)} {'is' if len(left) == 1 else 'are'} not "
        "finished. The page tells what is there; build it again when the study has gone on."
    )
    if results.kind == "run":
        rest = listed(list(dict.fromkeys(name for each in left for name in each.cell.missing)))
        said = (
            f"Missing is {rest}, which was interrupted or is still at work. The page tells what is "
            "there; the same command goes on where it ended, then build the page again."
        )
    return tag(
        "div",
        tag("h3", "Not everything is there"),
        paragraph(said),
        class_="alert mild",
        role="note",
    )


def _notes(results: Results) -> Markup | None:
    if not results.notes:
        return None
    return tag(
        "div", tag("h3", "Not read"), bullets(results.notes), class_="alert mild", role="note"
    )


# --------------------------------------------------------------------------- large numbers


def _headline(facts: list[Facts]) -> Markup | None:
    entries = [
        ("error of the surrogate (relative L2)", _middle(facts, lambda f: f.error[0], _percent)),
        ("the noise of the prompts alone", _middle(facts, lambda f: f.noise_floor, _percent)),
        (
            "AUC of the direction, held-out",
            _middle(facts, lambda f: f.auc[0], lambda v: fixed([v])),
        ),
        ("of the target reached by the plan", _middle(facts, lambda f: f.reached[0], _percent)),
        ("energy of the same push everywhere", _middle(facts, lambda f: f.uniform[0], _times)),
    ]
    shown = [tag("div", tag("dt", name), tag("dd", *said)) for name, said in entries if said]
    return tag("dl", *shown, class_="facts") if shown else None


def _middle(facts, number_of, said) -> Sequence[object]:
    """The median in large, and between which the cells lie."""
    values = known(facts, number_of)
    if not values.size:
        return ()
    if values.size == 1:
        return (said(float(values[0])),)
    ends = f"median of {values.size}; {said(float(values.min()))} to {said(float(values.max()))}"
    return said(float(np.median(values))), tag("small", ends)


def _percent(value: float) -> str:
    return percent([value], zeros=False)


def _times(value: float) -> str:
    return f"×\u00a0{number(value)}"


# --------------------------------------------------------------------------- words


def _asked(results: Results, facts: list[Facts]) -> str:
    cells = [each.cell for each in facts]
    models, tasks = (list(dict.fromkeys(getattr(c, n) for c in cells)) for n in ("model", "task"))
    seeds, ways = (list(dict.fromkeys(getattr(c, n) for c in cells)) for n in ("seed", "concept"))
    across = f"{_many('model', models)} on {_many('task', tasks)}"
    if len(seeds) > 1:
        across += f", {len(seeds)} seeds"
    ways = [way.replace("_", " ") for way in ways if way]
    found = f" by {listed(ways)}" if ways else ""
    taken = [shown.called for name, shown in SHOWN.items() if any(name in c.stages for c in cells)]
    if taken and not any(c.stages.keys() - {"concept", *SHOWN} for c in cells):
        return f"{across}: depth as a dynamical system, by its {listed(taken)}."
    said = (
        f"{across}: a concept direction is found{found}; how far pushes along it, layer by layer, "
        "move a readout behind the last block is measured on held-out prompts and predicted by a "
        "small linear time-varying system over depth"
    )
    targets = {
        str(d.attrs["target_asked"])
        for c in cells
        for d in c.stages.values()
        if "target_asked" in d.attrs
    }
    if targets:
        shown = listed(sorted(target.replace("std", " std") for target in targets))
        said += f"; and the least pushes are planned that move it by {shown}"
    return f"{said}."


def _many(what: str, names: list[str]) -> str:
    shown = (
        listed(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} others"
    )
    return f"{counted(len(names), what)} ({shown})"


def _found(facts: list[Facts]) -> list[object]:
    if len(facts) == 1:
        return list(told.found(facts[0]))
    lines = [_separates(facts), _errors(facts), _parts(facts), *_methods(facts), *_plans(facts)]
    lines += [_measured(facts)]
    return [line for line in lines if line] or ["nothing yet: no cell has a finished stage"]


def _measured(facts: list[Facts]) -> str:
    """How often each measure of depth was taken; what it found is told of every cell."""
    counts = {
        shown.called: sum(name in each.cell.stages for each in facts)
        for name, shown in SHOWN.items()
    }
    taken = [f"{called} in {counted(n, 'cell')}" for called, n in counts.items() if n]
    return f"Depth as dynamics: {listed(taken)}, told below." if taken else ""


def _separates(facts: list[Facts]) -> str:
    auc = known(facts, lambda f: f.auc[0])
    if not auc.size:
        return ""
    clear, weak = int((auc >= SEPARATES).sum()), int((auc < WEAKLY).sum())
    said = (
        f"The direction separates held-out texts (AUC of at least {SEPARATES}) in {clear} of "
        f"{auc.size} cells"
    )
    return f"{said}, hardly (below {WEAKLY}) in {weak}." if weak else f"{said}."


def _errors(facts: list[Facts]) -> str:
    rows = [each for each in facts if np.isfinite(each.error[0])]
    if not rows:
        return ""
    rows.sort(key=lambda each: each.error[0])
    middle = float(np.median([each.error[0] for each in rows]))
    worst, best = rows[-1], rows[0]
    near = gains.within_noise(rows)
    return (
        f"The surrogate misses measured gains by {percent([middle])} in the median cell "
        f"(relative L2), least on {best.name} ({percent([best.error[0]])}) and most on "
        f"{worst.name} ({percent([worst.error[0]])}); in {near} of {len(rows)} cells that is at "
        "most 1.5 times what the noise of the prompts would show to a perfect prediction."
    )


def _parts(facts: list[Facts]) -> str:
    parts = [each.largest_part for each in facts if each.largest_part]
    if not parts:
        return ""
    shown = sorted(set(parts), key=lambda part: -parts.count(part))
    said = listed([f"{part} in {counted(parts.count(part), 'cell')}" for part in shown])
    return f"The largest part of the error is {said}.{_linear(facts)}"


def _linear(facts: list[Facts]) -> str:
    """Up to which pushes the response is linear, where all were measured in one unit."""
    measured = [each for each in facts if each.cell.stage("gains") is not None]
    limit = known(measured, lambda f: f.step_limit)
    relative = (each.cell.stages["gains"].attrs.get("relative") for each in measured)
    if not limit.size or not all(relative):
        return ""
    middle, least = (percent([float(f(limit))]) for f in (np.median, np.min))
    return (
        f" The response is linear to 5 % up to pushes of {middle} of the state's norm in the "
        f"median cell, {least} in the least linear one."
    )


def _methods(facts: list[Facts]) -> list[str]:
    rows = [each for each in facts if each.methods]
    if not rows:
        return []
    wins: dict[str, int] = {}
    for each in rows:
        errors = {n: row[each.small_order][0] for n, row in each.methods.items()}
        found = [v for v in errors.values() if np.isfinite(v)]
        for name, value in errors.items():
            if found and value <= 1.001 * min(found):
                wins[name] = wins.get(name, 0) + 1
    names = sorted(wins, key=lambda name: -wins[name])
    orders = listed([str(o) for o in sorted({each.small_order for each in rows})])
    said = listed([f"{name} in {wins[name]}" for name in names]) if names else "no method"
    outside, checked = (sum(each.violations[i] for each in rows) for i in (0, 1))
    verdict = "none lies outside" if not outside else f"{outside} lie outside: do not trust them"
    return [
        f"Of the methods at order {orders}, the smallest error of a cell (or one equal to it) is "
        f"that of {said}, of {counted(len(rows), 'cell')}; whether that is more than chance is in "
        "the table of methods.",
        f"Certificates: {checked} exact errors beside their bounds, {verdict}.",
    ]


def _plans(facts: list[Facts]) -> list[str]:
    reached = known(facts, lambda f: f.reached[0])
    if not reached.size:
        return []
    close = int((np.abs(reached - 1) <= NEAR).sum())
    said = (
        f"Played as planned, plans reach {percent([float(np.median(reached))])} of the target on "
        f"held-out prompts in the median cell; within {NEAR * 100:.0f} % of it in {close} of "
        f"{reached.size}."
    )
    uniform, push = known(facts, lambda f: f.uniform[0]), known(facts, lambda f: f.largest_push)
    if uniform.size:
        said += (
            f" The same push everywhere takes {number(float(np.median(uniform)))} times the energy."
        )
    if push.size:
        said += f" The largest push is {percent([float(push.max())])} of the state's norm."
    return [said]


def _limits(facts: list[Facts]) -> list[object]:
    """What holds of all such results."""
    held_out = known(facts, lambda f: _prompts(f))
    said: list[object] = []
    if held_out.size:
        least, most = int(held_out.min()), int(held_out.max())
        count = f"{least}" if least == most else f"{least} to {most}"
        said.append(
            f"Gains are means over {count} held-out prompts; intervals come of drawing these again "
            "and know nothing of other models, texts or directions."
        )
    seeds = {each.cell.seed for each in facts if each.cell.seed}
    if len(seeds) == 1 and held_out.size:
        said.append("One seed: how much another split of the texts would change is not known.")
    return said


def _prompts(facts: Facts) -> float:
    stage = facts.cell.stage("gains") or facts.cell.stage("comparison")
    told_ = None if stage is None else stage.attrs.get("n_held_out", stage.attrs.get("n_prompts"))
    return float(told_) if isinstance(told_, (int, float, np.integer)) else float("nan")
