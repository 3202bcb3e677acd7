"""All that is known of one cell, opened when asked for."""

from collections.abc import Mapping

from depthsys.report.html import budget, dynamics, effects, gains, hankel, methods, plans, told
from depthsys.report.html.facts import Facts
from depthsys.report.html.parts import (
    Section,
    bullets,
    described,
    figure,
    grid,
    joined,
    opened,
    paragraph,
)
from depthsys.report.html.provenance import origin_of
from depthsys.report.html.results import STAGES
from depthsys.report.html.svg import Markup, tag
from depthsys.report.remarks import Remark
from depthsys.wording import sentence


def section(facts: list[Facts], doubts: Mapping[str, list[Remark]]) -> Section:
    """The cells one below the other; a single one is open."""
    parts = [_cell(each, doubts[each.anchor], alone=len(facts) == 1) for each in facts]
    title = "The cell in detail" if len(facts) == 1 else "Cells in detail"
    return Section("details", title, joined(*parts))


def _cell(facts: Facts, doubts: list[Remark], *, alone: bool) -> Markup:
    state = facts.cell.state
    mark = "" if state == "complete" else f" · {state}"
    summary = joined(facts.name, tag("span", _sizes(facts), mark))
    return opened(summary, *_inside(facts, doubts, alone=alone), anchor=facts.anchor, open_=alone)


def _sizes(facts: Facts) -> str:
    counts = {
        "layers": facts.n_layers,
        "features": facts.n_features,
        "parameters": facts.n_parameters,
    }
    shown = [f"{n:,} {what}".replace(",", "\u202f") for what, n in counts.items() if n]
    return f" · {', '.join(shown)}" if shown else ""


def _inside(facts: Facts, doubts: list[Remark], *, alone: bool) -> list[Markup]:
    """In words, in figures, in texts, and where it comes from."""
    parts = [_alert(facts)]
    if not alone:  # the summary of the page says it
        parts.append(bullets(told.found(facts), "verdicts"))
        if doubts:
            parts += [
                tag("h3", "Against it"),
                bullets([sentence(each.said) for each in doubts], "verdicts"),
            ]
    measured = {"gains", "comparison"} & facts.cell.stages.keys()
    about = "Gains" if measured else "Concept direction"
    parts += [_figures(about, _gains(facts)), _figures("Reduction", _reduction(facts))]
    parts += [_figures("Plan", _plan(facts)), _texts(facts)]
    parts.append(_dynamics(facts))
    parts.append(opened("Where it comes from", described(origin_of(facts.cell))))
    return [part for part in parts if part is not None]


def _dynamics(facts: Facts) -> Markup | None:
    """The measures one after the other, and where to find what a page has no room for."""
    shown = dynamics.measures(facts)
    if not shown:
        return None
    more = paragraph(
        "Larger figures of all measures are beside the results of depthsys dynamics.",
        class_="note",
    )
    return joined(tag("h3", "Depth as dynamics"), *shown, more)


def _alert(facts: Facts) -> Markup | None:
    if facts.cell.failed:
        return tag("div", paragraph(facts.cell.failed), class_="alert")
    if facts.cell.missing:
        names = ", ".join(STAGES.get(name, name) for name in facts.cell.missing)
        return tag("div", paragraph(f"Not there yet: {names}."), class_="alert mild")
    return None


def _figures(title: str, figures: list[Markup]) -> Markup | None:
    return joined(tag("h3", title), grid(figures)) if figures else None


def _gains(facts: Facts) -> list[Markup]:
    found = []
    if (curves := gains.curves(facts)) is not None:
        found.append(
            figure(
                curves, "Gains over layers", "Band: the middle 90 % of held-out prompts.", gains.KEY
            )
        )
    if (bars := budget.bars(facts)) is not None:
        found.append(
            figure(bars, "Error budget", "Parts are distances; they do not add up to the total.")
        )
    if (drawn := gains.separation(facts)) is not None:
        found.append(figure(drawn, "Separation of held-out texts", "Band: 95 % interval."))
    if (drawn := gains.linear_range(facts)) is not None:
        found.append(figure(drawn, "Linearity", "Measured beside exact linear gains, all layers."))
    return found


def _reduction(facts: Facts) -> list[Markup]:
    found = []
    if (drawn := hankel.curves(facts)) is not None:
        note = "Of the identified system; values that rounding explains are left out."
        found.append(figure(drawn[0], "Hankel singular values over depth", note, drawn[1]))
    key = None
    if (drawn := methods.agreement(facts)) is not None:
        key = drawn[1]
        found.append(figure(drawn[0], "Error on held-out prompts by order", key=key))
    for name, chart in methods.certificates(facts):
        note = (
            "Marks: exact errors; lines upwards end at what is proved. Grey: no model of that "
            "order is better."
        )
        found.append(figure(chart, f"Certificates against the {name}", note, key))
    return found


def _plan(facts: Facts) -> list[Markup]:
    found = []
    if (drawn := plans.pushes(facts)) is not None:
        found.append(figure(drawn[0], "Where it pushes", key=drawn[1]))
    if (drawn := plans.schedules(facts)) is not None:
        note = "On the full model, each scaled until it reaches the target; 95 % intervals."
        found.append(figure(drawn, "Beside simple schedules", note))
    if (drawn := plans.single_layers(facts)) is not None:
        found.append(figure(drawn, "Each layer alone", "–: does not reach the target."))
    if (drawn := plans.amplitudes(facts)) is not None:
        found.append(
            figure(
                drawn[0],
                "Achieved and predicted shift",
                "Band: 95 % interval of the mean.",
                drawn[1],
            )
        )
    if (drawn := effects.vector(facts)) is not None:
        found.append(figure(drawn, "Effect of the control vector", "95 % intervals of the mean."))
    return found


def _texts(facts: Facts) -> Markup | None:
    written = effects.texts(facts)
    if written is None:
        return None
    return joined(tag("h3", "Steered texts"), effects.prices(facts), written)
