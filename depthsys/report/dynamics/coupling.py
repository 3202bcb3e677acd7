"""Coupling of layers: whether their leading directions are the same."""

import numpy as np

from depthsys.report.dynamics.shown import Curve, Drawn, Shown
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
    others=("coupling",),
)
