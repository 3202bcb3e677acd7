"""Hankel singular values over depth: how many states the way from pushes to readout needs."""

import numpy as np

from depthsys import ltv
from depthsys.report.html.chart import STYLES, Chart, legend
from depthsys.report.html.facts import Facts
from depthsys.report.html.scales import counts, logarithmic
from depthsys.report.html.svg import Markup
from depthsys.report.stage import pick
from depthsys.wording import number

LOWERED = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
MOST = 6  # values of a depth that are drawn


def values(facts: Facts) -> tuple[np.ndarray, float] | None:
    """The values (depth, index) and what rounding explains of them."""
    system = facts.cell.stage("system")
    if system is None or not {"A", "B", "C"} <= set(system.variables):
        return None
    stored = pick(system, "hankel_singular_values", "depth", "index")
    if stored is not None:
        return stored, float(system.attrs.get("hankel_resolution", 0.0))
    try:
        found = ltv.hankel_singular_values(_bare(facts))
    except (ValueError, np.linalg.LinAlgError):
        return None
    return found.transpose("depth", "index").values, float(found.attrs["resolution"])


def _bare(facts: Facts):
    """The maps of the system and their labels."""
    system = facts.cell.stages["system"].dataset
    names = ["A", "B", "C", *(n for n in ("D", "order") if n in system.variables)]
    return system[names]


def curves(facts: Facts) -> tuple[Markup, Markup] | None:
    """A line for each value over depth, and their legend."""
    found = values(facts)
    if found is None:
        return None
    sigma, resolution = found
    sigma = sigma[:, :MOST]
    shown = sigma[sigma > max(resolution, 0.0)]
    if not shown.size:
        return None
    depths = np.arange(len(sigma), dtype=float)
    chart = Chart(
        counts(depths, 12),
        logarithmic(shown, decades=9),
        "depth",
        "Hankel singular values, output/input",
        f"Hankel singular values over depth, {facts.name}",
    )
    entries = []
    for index in range(sigma.shape[1]):
        row = np.where(sigma[:, index] > max(resolution, chart.y.low), sigma[:, index], np.nan)
        if not np.isfinite(row).any():
            continue
        style = STYLES[index % len(STYLES)]
        said = [
            f"depth {d:.0f}, value {index + 1}: {number(v)}"
            for d, v in zip(depths, row, strict=True)
        ]
        chart.line(depths, row, style, said)
        entries.append((f"σ{index + 1}".translate(LOWERED), style))
    return chart.markup(), legend(*entries)
