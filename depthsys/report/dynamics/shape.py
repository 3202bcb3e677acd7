"""The shape of trajectories: straightness, and exponential spacing."""

import numpy as np

from depthsys.report.dynamics.shown import Curve, Drawn, Shown
from depthsys.report.stage import Stage
from depthsys.wording import number


def verdicts(stage: Stage) -> list[str]:
    """How straight, and how the steps grow."""
    middle = {
        name: float(np.median(stage.value(name)))
        for name in ("line_shape", "length_ratio", "spacing_rate", "spacing_r2", "growth_r2")
    }
    crooked = np.sqrt(stage.sizes["layer"])
    found = [
        f"the line-shape score is {number(middle['line_shape'])} (1: a straight line, "
        f"{number(crooked)}: steps at right angles); ways are {number(middle['length_ratio'])} "
        "times as long as the distance of their ends",
    ]
    if np.isfinite(middle["spacing_rate"]):
        found.append(
            f"each step is {number(np.exp(middle['spacing_rate']))} times as long as the one "
            f"before it, which explains {100 * middle['spacing_r2']:.0f} % of how their logarithms "
            f"vary; exponential growth of the norm explains {100 * middle['growth_r2']:.0f} % "
            "(medians of prompts)"
        )
    return found


SHOWN = Shown(
    called="shape of trajectories",
    marks=frozenset({"line_shape", "spacing_rate"}),
    figures=(
        Drawn(
            "How long the steps are",
            "step",
            "layer",
            (Curve("step", "step"),),
            "unit of the state",
            log=True,
        ),
        Drawn(
            "How long the states are",
            "norm",
            "depth",
            (Curve("norm", "norm"),),
            "unit of the state",
            log=True,
        ),
    ),
    verdicts=verdicts,
    others=("length_ratio", "spacing_r2", "growth_r2"),
)
