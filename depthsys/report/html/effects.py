"""What steering does to written texts, and what it costs them."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from depthsys.report.html.chart import STYLES, Chart, Style, legend
from depthsys.report.html.facts import Facts
from depthsys.report.html.parts import Section, figure, grid, joined, paragraph, plain
from depthsys.report.html.pick import names_of, number_of, pick
from depthsys.report.html.scales import Scale, linear
from depthsys.report.html.svg import Markup, tag
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
MOST_PROMPTS = 12  # of a cell that are shown side by side


def section(facts: list[Facts]) -> Section | None:
    """Effect against price in all cells where both are known."""
    figures = []
    for each in facts:
        for price in ("kl", "perplexity"):
            drawn = effect_by_price(each, price)
            if drawn is not None:
                title = tag("a", each.name, href=f"#{each.anchor}")
                figures.append(figure(drawn[0], title, key=drawn[1]))
    if not figures:
        return None
    said = paragraph(
        "Every mark is a strength of the plan: upwards what it does to the texts that the model "
        "then writes, to the right what it costs them. Marks are joined in the order of strengths."
    )
    return Section("effects", "Effect against price", joined(said, grid(figures)))


def _written(facts: Facts) -> xr.Dataset | None:
    """The texts with strengths in their order."""
    data = facts.cell.stages.get("texts")
    return data if data is None or "strength" not in data.sizes else data.sortby("strength")


def effect_by_price(facts: Facts, price: str) -> tuple[Markup, Markup] | None:
    """A curve for each plan through its strengths."""
    data = _written(facts)
    effect = next((name for name in EFFECTS if data is not None and name in data.variables), None)
    if data is None or effect is None or f"{price}_mean" not in data.variables:
        return None
    strengths = pick(data, "strength", "strength")
    rows = list(_of_plans(data, effect, f"{price}_mean"))
    shown = [v for _, x, y in rows for v in zip(x, y, strict=True) if np.isfinite(v).all()]
    if strengths is None or len(shown) < 2:
        return None
    chart = Chart(
        linear([x for x, _ in shown], zero=price == "kl"),
        linear([y for _, y in shown], zero=True),
        PRICES[price],
        EFFECTS[effect],
        f"Effect against price, {facts.name}",
    )
    chart.across(0.0, name="zero")
    entries = []
    for place, (name, x, y) in enumerate(rows):
        style = STYLES[(1, 2, 5, 6)[place % 4]]
        said = [
            f"{name}, strength {s:g}: {number(e)} at {number(p)}"
            for s, e, p in zip(strengths, y, x, strict=True)
        ]
        chart.line(x, y, style, said)
        for s, e, p in zip(strengths, y, x, strict=True):
            if np.isfinite([e, p]).all():
                chart.add(_beside(chart, p, e, f"× {s:g}"))
        entries.append((name, style))
    return chart.markup(), legend(*entries)


def _of_plans(
    data: xr.Dataset, effect: str, price: str
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for name in names_of(data, "plan") or [""]:
        at = {"plan": name} if name else {}
        y = pick(data, effect, "strength", bound="estimate", **at)
        x = pick(data, price, "strength", bound="estimate", **at)
        if x is not None and y is not None:
            yield name or "plan", x, y


def _beside(chart: Chart, x: float, y: float, said: str) -> Markup:
    """A word beside a mark, on the side where there is room."""
    right = chart.x(x) > chart.x.end - 40
    return tag(
        "text", said, class_="in end" if right else "in",
        x=chart.x(x) + (-7 if right else 7), y=chart.y(y) - 6,
    )  # fmt: skip


def texts(facts: Facts) -> Markup | None:
    """What was written at every strength, side by side."""
    data = _written(facts)
    if data is None or "text" not in data.variables:
        return None
    strengths, prompts = names_of(data, "strength"), _prompts(data)
    if not strengths or "prompt" not in data.sizes:
        return None
    parts = []
    for plan in names_of(data, "plan") or [""]:
        if plan and len(names_of(data, "plan")) > 1:
            parts.append(tag("h4", f"plan: {plan}"))
        for place in range(min(data.sizes["prompt"], MOST_PROMPTS)):
            parts.append(tag("blockquote", f"“{prompts[place]} …”"))
            parts.append(_side_by_side(data, plan, place))
    if data.sizes["prompt"] > MOST_PROMPTS:
        parts.append(
            paragraph(f"The first {MOST_PROMPTS} of {data.sizes['prompt']} prompts.", class_="note")
        )
    return joined(*parts)


def _prompts(data: xr.Dataset) -> list[str]:
    for name in ("prompt", "prompt_text"):
        if name in data.variables and data.variables[name].dtype.kind in "OU":
            return names_of(data, name)
    return [f"prompt {i}" for i in range(data.sizes.get("prompt", 0))]


def _side_by_side(data: xr.Dataset, plan: str, place: int) -> Markup:
    row = data.isel(prompt=place)
    boxes = []
    for strength in data["strength"].values:
        at = {"strength": strength} | ({"plan": plan} if plan else {})
        written = pick(row, "text", **at)
        told = [
            f"{said} {number(value)}"
            for name, said in WRITTEN.items()
            if np.isfinite(value := number_of(row, name, **at))
        ]
        boxes.append(
            tag(
                "div",
                tag("h4", _strength(float(strength))),
                paragraph("" if written is None else str(written)),
                paragraph(" · ".join(told), class_="note") if told else None,
                class_="base" if strength == 0 else None,
            )
        )
    return tag("div", *boxes, class_="texts")


def _strength(value: float) -> str:
    return "as it is" if value == 0 else f"× {value:g}".replace("-", "\u2212")


def prices(facts: Facts) -> Markup | None:
    """Means over prompts, by strength."""
    data = _written(facts)
    names = [n for n in WRITTEN if data is not None and f"{n}_mean" in data.variables]
    effect = next((name for name in EFFECTS if data is not None and name in data.variables), None)
    if data is None or not names:
        return None
    rows = []
    for plan in names_of(data, "plan") or [""]:
        for strength in data["strength"].values:
            at = {"strength": strength, "bound": "estimate"} | ({"plan": plan} if plan else {})
            shown = [number_of(data, effect, **at)] if effect else []
            shown += [number_of(data, f"{name}_mean", **at) for name in names]
            told = tuple(number(v) if np.isfinite(v) else "–" for v in shown)
            rows.append((f"{plan} × {float(strength):g}".strip(), *told))
    header = ("strength", *(["shift"] if effect else []), *(WRITTEN[name] for name in names))
    return plain(Table(header, rows, title="Means over prompts"))


def vector(facts: Facts) -> Markup | None:
    """Shifts by a control vector, at the last and at every token."""
    data = facts.cell.stages.get("effect")
    tokens, outputs = names_of(data, "tokens"), names_of(data, "output")
    if data is None or not tokens or "response_mean" not in data.variables:
        return None
    rows = [
        (place, f"{output}, {token} token", [number_of(data, "response_mean", output=output, tokens=token, bound=b) for b in ("estimate", "low", "high")])
        for place, (output, token) in enumerate((o, t) for o in outputs for t in tokens)
    ]  # fmt: skip
    values = [v for *_, three in rows for v in three]
    chart = Chart(
        linear(values, zero=True),
        Scale(len(rows) - 0.4, -0.6),
        "shift of the readout",
        title=f"Effect of the control vector, {facts.name}",
        height=30.0 * len(rows) + 58,
        left=130,
        top=6,
        rows=[name for _, name, _ in rows],
        grid="xy",
    )
    chart.across(0.0, along="x", name="zero")
    style = Style(2, -1, "diamond")
    for place, name, (mean, low, high) in rows:
        chart.whisker((low, high), (place, place), style)
        chart.points([mean], [float(place)], style, [f"{name}: {number(mean)}"])
    return chart.markup()
