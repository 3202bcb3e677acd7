"""What steering does to written texts, and what it costs them."""

import numpy as np

from depthsys.report.html.chart import STYLES, Chart, Style, legend
from depthsys.report.html.facts import Facts
from depthsys.report.html.labels import Box, beside
from depthsys.report.html.parts import Section, figure, grid, joined, paragraph, plain
from depthsys.report.html.scales import linear
from depthsys.report.html.scales import rows as from_above
from depthsys.report.html.svg import Markup, tag, verbatim
from depthsys.report.stage import Stage, names_of, number_of, pick, three
from depthsys.report.table import Table
from depthsys.wording import number

PRICES = {
    "kl": "KL to the unsteered model, nats a token",
    "perplexity": "perplexity under the unsteered model",
    "repetition": "share of repeated words",
}
EFFECTS = {
    "readout_new_shift": "shift of the readout of the new text",
    "readout_shift": "shift of the readout of the new text",
    "log_odds_mean": "log-odds of the words of both classes",
}
WRITTEN = {"log_odds": "log-odds", "kl": "KL", "perplexity": "perplexity", "repetition": "repeated"}
Drawn = tuple[Markup, Markup | None]
MOST_PROMPTS = 12  # of a cell that are shown side by side


def section(facts: list[Facts]) -> Section | None:
    """Effect against price in all cells where both are known."""
    figures = []
    for each in facts:
        drawn = effect_by_price(each, "kl", small=len(facts) > 4)
        if drawn is not None:
            title = tag("a", each.name, href=f"#{each.anchor}")
            figures.append(figure(drawn[0], title, key=drawn[1]))
    if not figures:
        return None
    said = paragraph(
        "Every mark is a strength of the plan: upwards what it does to the texts that the model "
        "then writes, to the right what it costs them. Marks are joined in the order of strengths."
    )
    return Section(
        "effects",
        "Effect against price",
        joined(said, grid(figures, "small" if len(facts) > 4 else "")),
    )


def _strengths(data: Stage | None) -> list[float]:
    """In their order."""
    found = pick(data, "strength", "strength")
    return [] if found is None else sorted(found.tolist())


def effect_by_price(facts: Facts, price: str, *, small: bool = False) -> Drawn | None:
    """A curve for each plan through its strengths, and the legend of several plans."""
    data, effect = facts.cell.stage("texts"), _effect_of(facts)
    if not effect or pick(data, f"{price}_mean", "plan", "strength", bound="estimate") is None:
        return None
    strengths = _strengths(data)
    rows = {name: _curve(data, effect, price, name, strengths) for name in names_of(data, "plan")}
    shown = [point for row in rows.values() for point in row if np.isfinite(point).all()]
    if len(shown) < 2:
        return None
    chart = Chart(
        linear([x for x, _ in shown], zero=price == "kl"),
        linear([y for _, y in shown], zero=True),
        PRICES[price],
        EFFECTS[effect],
        f"Effect against price, {facts.name}",
        width=300 if small else 400,
        height=200 if small else 236,
    )
    chart.across(0.0, name="zero")
    styles = {name: STYLES[(1, 2, 5, 6)[place % 4]] for place, name in enumerate(rows)}
    for name, row in rows.items():
        said = [
            f"{name}, strength {s:g}: {number(y)} at {number(x)}"
            for s, (x, y) in zip(strengths, row, strict=True)
        ]
        chart.line([x for x, _ in row], [y for _, y in row], styles[name], said)
    _name_strengths(chart, strengths, list(rows.values()))
    return chart.markup(), legend(*styles.items()) if len(rows) > 1 else None


def _effect_of(facts: Facts) -> str:
    """The first of the known effects that the texts of the cell have; or nothing."""
    data = facts.cell.stage("texts")
    return next((name for name in EFFECTS if data is not None and name in data), "")


def _curve(
    data: Stage | None, effect: str, price: str, plan: str, strengths: list[float]
) -> list[tuple[float, float]]:
    """Price and effect at every strength."""
    at = [{"plan": plan, "strength": s, "bound": "estimate"} for s in strengths]
    return [(number_of(data, f"{price}_mean", **a), number_of(data, effect, **a)) for a in at]


def _name_strengths(
    chart: Chart, strengths: list[float], rows: list[list[tuple[float, float]]]
) -> None:
    """Strengths beside the marks of the first plan, the largest first."""
    curves = [
        [(chart.x(x), chart.y(y)) for x, y in row if np.isfinite([x, y]).all()] for row in rows
    ]
    zero = chart.y(0.0)
    largest_first = sorted(zip(strengths, rows[0], strict=True), key=lambda each: -abs(each[0]))
    named = [
        (_strength(s), (chart.x(x), chart.y(y)))
        for s, (x, y) in largest_first
        if np.isfinite([x, y]).all()
    ]
    frame = Box(chart.x.start, chart.y.end - 8, chart.width, chart.y.start)
    lines = [*curves, [(chart.x.start, zero), (chart.x.end, zero)]]
    for label in beside(named, lines, frame):
        classes = f"in on {label.anchor}".rstrip()
        chart.add(tag("text", label.said, class_=classes, x=label.x, y=label.y))


def texts(facts: Facts) -> Markup | None:
    """What was written at every strength, side by side."""
    data = facts.cell.stage("texts")
    if data is None or "text" not in data or not _strengths(data) or "prompt" not in data.sizes:
        return None
    parts: list[Markup] = []
    prompts, plans = _prompts(data), names_of(data, "plan")
    for plan in plans or [""]:
        if len(plans) > 1:
            parts.append(tag("h4", f"plan: {plan}"))
        for place, prompt in enumerate(prompts[:MOST_PROMPTS]):
            parts.append(tag("blockquote", f"“{prompt} …”"))
            parts.append(_side_by_side(data, plan, place))
    if len(prompts) > MOST_PROMPTS:
        said = f"The first {MOST_PROMPTS} of {len(prompts)} prompts."
        parts.append(paragraph(said, class_="note"))
    return joined(*parts)


def _prompts(data: Stage) -> list[str]:
    """The prompts, or their numbers where only those are known."""
    for name in ("prompt", "prompt_text"):
        if name in data and data.variables[name][1].dtype.kind in "OUT":
            return names_of(data, name)
    return [f"prompt {i}" for i in range(data.sizes["prompt"])]


def _side_by_side(data: Stage, plan: str, place: int) -> Markup:
    boxes = []
    for strength in _strengths(data):
        at = {"strength": strength} | ({"plan": plan} if plan else {})
        written = pick(data, "text", "prompt", **at)
        measured = {name: pick(data, name, "prompt", **at) for name in WRITTEN}
        told = [
            f"{WRITTEN[name]} {number(float(row[place]))}"
            for name, row in measured.items()
            if row is not None and np.isfinite(row[place])
        ]
        boxes.append(
            tag(
                "div",
                tag("h4", _strength(strength)),
                tag("p", "" if written is None else verbatim(str(written[place]))),
                paragraph(" · ".join(told), class_="note") if told else None,
                class_="base" if strength == 0 else None,
            )
        )
    return tag("div", *boxes, class_="texts")


def _strength(value: float) -> str:
    return "as it is" if value == 0 else f"× {value:g}".replace("-", "\u2212")


def prices(facts: Facts) -> Markup | None:
    """Means over prompts, by strength."""
    data, effect = facts.cell.stage("texts"), _effect_of(facts)
    columns = {"shift": effect} if effect else {}
    columns |= {said: f"{name}_mean" for name, said in WRITTEN.items() if _is_known(data, name)}
    rows = []
    for plan in names_of(data, "plan"):
        for strength in _strengths(data):
            at = {"plan": plan, "strength": strength, "bound": "estimate"}
            shown = [number_of(data, name, **at) for name in columns.values()]
            told = tuple(number(v) if np.isfinite(v) else "–" for v in shown)
            rows.append((f"{plan}, {_strength(strength)}", *told))
    if not rows or not columns:
        return None
    return plain(Table(("strength", *columns), rows, title="Means over prompts"))


def _is_known(data: Stage | None, name: str) -> bool:
    found = None if data is None else data.variables.get(f"{name}_mean")
    return found is not None and bool(np.isfinite(found[1]).any())


def vector(facts: Facts) -> Markup | None:
    """Shifts by a control vector, at the last and at every token."""
    data = facts.cell.stage("effect")
    tokens, outputs = names_of(data, "tokens"), names_of(data, "output")
    if data is None or not tokens or "response_mean" not in data:
        return None
    rows = [
        (f"{output}, {token} token", three(data, "response_mean", output=output, tokens=token))
        for output in outputs
        for token in tokens
    ]
    values = [v for _, bounds in rows for v in bounds]
    chart = Chart(
        linear(values, zero=True),
        from_above(len(rows)),
        "shift of the readout",
        title=f"Effect of the control vector, {facts.name}",
        height=30.0 * len(rows) + 58,
        left=130,
        top=6,
        rows=[name for name, _ in rows],
        grid="xy",
    )
    chart.across(0.0, along="x", name="zero")
    style = Style(2, -1, "diamond")
    for place, (name, (mean, low, high)) in enumerate(rows):
        chart.whisker((low, high), (place, place), style)
        chart.points([mean], [float(place)], style, [f"{name}: {number(mean)}"])
    return chart.markup()
