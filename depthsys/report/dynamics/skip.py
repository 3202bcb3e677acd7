"""Layers left out: what the linear system says it costs, and what it really costs."""

import numpy as np

from depthsys.report.dynamics.shown import Curve, Drawn, Shown
from depthsys.report.stage import Stage
from depthsys.wording import number

FIRST = 2  # layers whose updates are often longer than the state


def verdicts(stage: Stage) -> list[str]:
    """How well it is predicted, and which layers matter to the next token."""
    kl = stage.value("kl").mean(axis=0)
    most, least = int(np.argmax(kl)), int(np.argmin(kl))
    found = []
    if "output" not in stage.sizes:
        predicted, real = (stage.value(name).mean(axis=0) for name in ("predicted", "shift"))
        said = f"the linear system misses what leaving a layer out does by {_miss(predicted, real)}"
        if len(real) > FIRST:
            without = _miss(predicted[FIRST:], real[FIRST:])
            said += f" (relative L2 over layers), {without} without the first {FIRST}"
        found.append(said)
    found.append(
        f"the next token minds layer {most} most ({number(kl[most])} nats) and layer {least} least "
        f"({number(kl[least])})"
    )
    return found


def _miss(predicted: np.ndarray, real: np.ndarray) -> str:
    size = np.linalg.norm(real)
    return number(float(np.linalg.norm(predicted - real) / size)) if size else "not known"


SHOWN = Shown(
    called="layers left out",
    marks=frozenset({"shift", "predicted", "update", "kl"}),
    figures=(
        Drawn(
            "What leaving a layer out does to the readout",
            "shift",
            "layer",
            (
                Curve("shift", "really left out"),
                Curve("predicted", "by the linear system"),
            ),
            "shift of the readout",
            note="The last token alone; means over prompts.",
        ),
        Drawn(
            "What it does to the next token",
            "divergence, nats",
            "layer",
            (Curve("kl", "divergence"),),
            "nats",
            log=True,
        ),
        Drawn(
            "How long an update is",
            "relative",
            "layer",
            (Curve("update", "update"), Curve("state_error", "error of the last state")),
            "share of the state's norm",
            log=True,
        ),
    ),
    verdicts=verdicts,
)
