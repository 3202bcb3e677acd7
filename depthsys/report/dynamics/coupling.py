"""Coupling of layers: whether their leading directions are the same."""

import numpy as np

from depthsys.report.dynamics.shown import Cells, Curve, Drawn, Map, Shown, places_along
from depthsys.report.stage import Stage
from depthsys.wording import number


def verdicts(stage: Stage) -> list[str]:
    """How coupled layers are on the whole, and which pair is most."""
    m = stage.value("coupling").mean(axis=0)
    layers = len(m)
    apart = ~np.eye(layers, dtype=bool)
    near = np.abs(np.subtract.outer(np.arange(layers), np.arange(layers))) == 1
    one, two = np.unravel_index(np.argmin(np.where(apart, m, np.inf)), m.shape)
    top = stage.attrs.get("top", "its")
    return [
        f"with {top} leading directions, layers miss each other by {number(m[apart].mean())} on "
        f"average (0: coupled, 1: nothing in common), neighbours by {number(m[near].mean())}",
        f"the directions of layer {two} diagonalise layer {one} best ({number(m[one, two])})",
    ]


SPAN = 0.5, 1.1  # of the colours, the same in every map, so that maps can be compared


def _pairs(stage: Stage) -> Cells | None:
    """The mean over prompts; without pairs of a layer and itself, 0 by definition."""
    values = stage.value("coupling").astype(float).mean(axis=0)
    rows, columns = (
        places_along(stage, dim, size)
        for dim, size in zip(("layer", "layer_2"), values.shape, strict=True)
    )
    values[rows[:, None] == columns] = np.nan
    return Cells(values, rows, columns)


SHOWN = Shown(
    called="coupling of layers",
    marks=frozenset({"coupling", "singular_value"}),
    figures=(
        Drawn(
            "How far other layers' directions are from diagonalising a layer",
            "coupling",
            "layer",
            (Curve("of_others", "mean of the others"), Curve("of_closest", "the closest")),
            "mismatch",
            note="0 where the leading directions are the same, 1 where they see nothing of it.",
        ),
    ),
    verdicts=verdicts,
    maps=(
        Map(
            "Coupling of all pairs of layers",
            "layer",
            "directions of layer",
            "mismatch",
            frozenset({"coupling"}),
            _pairs,
            span=SPAN,
            matrix=True,
            note="Dark: the directions of the one layer diagonalise the other. Mean over prompts; "
            "a layer and itself are left empty.",
        ),
    ),
)
