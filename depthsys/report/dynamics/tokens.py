"""Gains of pushes at every token: where in depth they reach the last one, and by what they go."""

import numpy as np

from depthsys.report.dynamics.shown import Cells, Curve, Drawn, Map, Shown, places_along
from depthsys.report.stage import Stage
from depthsys.wording import number


def verdicts(stage: Stage) -> list[str]:
    """What a map over lags explains, and up to where earlier tokens matter."""
    by = {name: float(stage.value("explained_in_all", by=name)) for name in ("lag", "layer")}
    share = stage.value("earlier_share")
    small = np.flatnonzero(share < 0.5)
    found = []
    if np.isfinite(by["lag"]):
        found.append(
            f"{number(by['lag'])} of the mean square gain of pushes at earlier tokens belongs to a "
            f"map over lags that all prompts share, {number(by['layer'])} to one number for each "
            "layer (experimental)"
        )
    if len(small):
        found.append(
            "earlier tokens hold less than half of the readout's squared gradient from layer "
            f"{small[0]} on ({number(float(share[0]))} at the first)"
        )
    return found or ["the prompts have no earlier tokens in common"]


MOST = 64  # lags of a map


def _lags(stage: Stage) -> Cells | None:
    """The gains of lags that half of the prompts have, the nearest ones."""
    rms = stage.value("rms").astype(float)
    counts = stage.value("n_prompts")
    usual = np.flatnonzero(counts * 2 >= counts.max())[:MOST]
    layers, lags = (
        places_along(stage, dim, size)
        for dim, size in zip(("layer", "lag"), rms.shape, strict=True)
    )
    return Cells(rms[:, usual].T, lags[usual], layers) if len(usual) else None


# no curve over lags: a console would get a row for each
SHOWN = Shown(
    called="pushes at every token",
    marks=frozenset({"explained_in_all", "earlier_share", "rms"}),
    figures=(
        Drawn(
            "Where the gradient of the readout lies",
            "share",
            "layer",
            (Curve("earlier_share", "at earlier tokens"),),
            "share of the squared gradient",
            note="What is at earlier tokens must still be moved to the last one. Experimental.",
        ),
        Drawn(
            "What of the gains of earlier tokens all prompts share",
            "explained",
            "layer",
            (
                Curve("explained", "by the lag", {"by": "lag"}),
                Curve("explained", "by the layer alone", {"by": "layer"}),
                Curve("explained", "by the position", {"by": "position"}),
            ),
            "share of the mean square",
            note="1: the same in all prompts, so a Toeplitz map where it is by the lag.",
        ),
    ),
    verdicts=verdicts,
    others=("explained_in_all", "by"),
    maps=(
        Map(
            "Gains of pushes at every token",
            "lag, tokens before the last",
            "layer",
            "root mean square gain",
            frozenset({"rms", "n_prompts"}),
            _lags,
            log=True,
            note=f"Lag 0 is the last token. Lags that half of the prompts have, {MOST} at most. "
            "Empty: no gain, or no direction. Experimental.",
        ),
    ),
)
