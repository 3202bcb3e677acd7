"""Gain curves: measured with the scatter of prompts, exact linear, and the surrogate's."""

import numpy as np

from depthsys.report.html.chart import LINEAR, MEASURED, SURROGATE, Chart, Style, legend
from depthsys.report.html.facts import Facts, known
from depthsys.report.html.parts import Section, figure, grid, joined, paragraph
from depthsys.report.html.scales import counts, linear, logarithmic
from depthsys.report.html.svg import Markup, tag
from depthsys.report.stage import pick
from depthsys.wording import number, percent

KEY = legend(
    ("measured, mean over held-out prompts", MEASURED),
    ("middle 90 % of prompts", "band c1"),
    ("exact linear", LINEAR),
    ("surrogate", SURROGATE),
)
BAND = 0.6  # of the height of the curves, which bands may add on each side
FAR = 3.0  # times the largest gain of all other layers, and layer 0 is off the scale


def section(facts: list[Facts]) -> Section | None:
    """Small multiples of all cells."""
    drawn = [(each, curves(each, small=True)) for each in facts]
    figures = [
        figure(chart, tag("a", each.name, href=f"#{each.anchor}"), _read_off(each))
        for each, chart in drawn
        if chart is not None
    ]
    if len(figures) < 2:  # a single one is among the figures of its cell
        return None
    said = paragraph(
        "The gain of a layer is how far the readout moves when the state that enters its block is "
        "pushed by one unit along the concept direction. Where the surrogate lies on the measured "
        "curve it predicts what steering at that layer does."
    )
    size = "small" if len(figures) > 2 else "large"
    return Section("gains", "Gains over depth", joined(said, KEY, grid(figures, size)))


def _read_off(facts: Facts) -> str:
    error = percent([facts.error[0]])
    noise = percent([facts.noise_floor])
    return f"error {error}; noise of the prompts alone {noise}"


def curves(facts: Facts, *, small: bool = False) -> Markup | None:
    """Measured, exact linear and surrogate gains over layers."""
    gains = facts.cell.stage("gains")
    measured = pick(gains, "measured_gain", "prompt", "layer")
    if measured is None or not measured.size:
        return None
    layers = pick(gains, "layer", "layer")
    layers = np.arange(measured.shape[1], dtype=float) if layers is None else layers
    mean = measured.mean(axis=0)
    low, high = _spread(measured)
    linear_mean = pick(gains, "linear_gain", "prompt", "layer")
    others = [(LINEAR, "exact linear", None if linear_mean is None else linear_mean.mean(axis=0))]
    others.append((SURROGATE, "surrogate", pick(gains, "surrogate_gain", "layer")))
    shown = [mean, *(c for *_, c in others if c is not None)]
    chart = Chart(
        counts(layers, 6 if small else 12),
        linear(_on_scale(shown, low, high), zero=True),
        "layer",
        "gain",
        f"Gains over layers, {facts.name}",
        width=290 if small else 400,
        height=176 if small else 236,
        left=40,
    )
    chart.across(0.0, name="zero")
    chart.band(layers, low, high, MEASURED)
    chart.line(layers, mean, MEASURED, _told("measured", layers, mean), wide=True)
    for style, name, curve in others:
        if curve is not None:
            chart.line(layers, curve, style, _told(name, layers, curve))
    for layer in layers[~np.isfinite(mean)]:
        chart.words("no direction", float(layer), chart.y.high, "in mid")
    return chart.markup()


def _told(name: str, layers: np.ndarray, values: np.ndarray) -> list[str]:
    return [
        f"layer {layer:.0f}, {name}: {number(value)}"
        for layer, value in zip(layers, values, strict=True)
    ]


def _spread(measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between which gains the middle 90 % of prompts lie."""
    ordered = np.sort(measured, axis=0)
    n = len(ordered) - 1
    return ordered[round(0.05 * n)], ordered[round(0.95 * n)]


def _on_scale(curves: list[np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """What the scale is made for: without layer 0, and without wide bands, that would take it."""
    rows = np.stack(curves)
    most, least = np.nanmax(rows), np.nanmin([np.nanmin(rows), 0.0])
    room = BAND * (max(most, 0.0) - least)
    rows = np.stack([*curves, np.maximum(low, least - room), np.minimum(high, most + room)])
    with np.errstate(invalid="ignore"):
        first = np.nanmax(np.abs(rows[:, 0]), initial=0.0)
        rest = np.nanmax(np.abs(rows[:, 1:]), initial=0.0)
    return rows[:, 1:] if rows.shape[1] > 1 and first > FAR * rest > 0 else rows


def linear_range(facts: Facts) -> Markup | None:
    """How far exact linear gains miss the measured ones, by the size of the push."""
    gains = facts.cell.stage("gains")
    if gains is None:
        gains = facts.cell.stage("comparison")
    steps = pick(gains, "step", "step")
    rows = {
        bound: pick(gains, "step_error", "step", layers="all", bound=bound)
        for bound in ("estimate", "low", "high")
    }
    estimate, low, high = rows["estimate"], rows["low"], rows["high"]
    if gains is None or steps is None or estimate is None or low is None or high is None:
        return None
    if not (estimate > 0).any():
        return None
    relative = bool(gains.attrs.get("relative", 0))
    unit = "%" if relative else ""
    chart = Chart(
        logarithmic(steps, unit=unit),
        logarithmic([*estimate, *low, *high, 0.05], unit="%"),
        "size of the push" + (" / norm of the state" if relative else ""),
        "error of linear gains",
        f"Linearity, {facts.name}",
    )
    chart.across(0.05, "5 %")
    style = Style(2, 0, "square")
    chart.band(steps, np.where(low > 0, low, np.nan), high, style)
    said = [
        f"push {chart.x.label(s)}: {percent([e])}" for s, e in zip(steps, estimate, strict=True)
    ]
    chart.line(steps, np.where(estimate > 0, estimate, np.nan), style, said)
    return chart.markup()


def separation(facts: Facts) -> Markup | None:
    """AUC on held-out texts over depth."""
    names = ("auc", "auc_low", "auc_high")
    for stage in facts.cell.stages.values():
        auc, low, high = (pick(stage, name, "depth") for name in names)
        if auc is None:
            continue
        depths = np.arange(len(auc), dtype=float)
        chart = Chart(
            counts(depths, 12),
            linear([0.4, 1.0, *known_low(low)], ticks=(0.0, 0.25, 0.5, 0.75, 1.0)),
            "depth",
            "AUC",
            f"Separation of held-out texts over depth, {facts.name}",
        )
        chart.across(0.5, "chance")
        if low is not None and high is not None:
            chart.band(depths, low, high, MEASURED)
        said = [f"depth {d:.0f}: AUC {number(a)}" for d, a in zip(depths, auc, strict=True)]
        chart.line(depths, auc, MEASURED, said)
        return chart.markup()
    return None


def known_low(low: np.ndarray | None) -> np.ndarray:
    """The finite ones of the lower ends, if there are any."""
    return np.empty(0) if low is None else low[np.isfinite(low)]


def within_noise(facts: list[Facts]) -> int:
    """Cells whose error is at most half as large again as the noise of their prompts."""
    return int((known(facts, lambda f: f.error[0] / f.noise_floor) <= 1.5).sum())
