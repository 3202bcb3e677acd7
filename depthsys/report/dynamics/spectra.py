"""Spectra of depth: rotation, normality, effective rank and growth."""

import numpy as np

from depthsys.report.dynamics.shown import Curve, Drawn, Shown
from depthsys.report.stage import Stage
from depthsys.wording import number

_LAYER, _UPDATE = {"of": "layer"}, {"of": "update"}


def verdicts(stage: Stage) -> list[str]:
    """The bottleneck, growth beside what eigenvalues say, and where layers are least normal."""
    rank = stage.value("rank_to_end")
    width = stage.sizes["mode"]
    growth, modal = (stage.value(n)[-1] for n in ("growth_from_start", "modal_growth"))
    departure = stage.value("departure", **_LAYER)
    smaller = (stage.value("modulus", **_LAYER) < 1).mean()
    found = [
        f"the product of all layers has an effective rank of {number(rank[0])} of {width}",
        f"it grows by {number(growth)} at most; the eigenvalues of the layers alone would say "
        f"{number(modal)}",
        f"layer {int(np.argmax(departure))} is farthest from normal ({number(departure.max())}), "
        f"layer {int(np.argmin(departure))} nearest ({number(departure.min())})",
        f"{100 * smaller:.0f} % of the eigenvalues of layers are below 1 in modulus",
    ]
    if "growth_from_start_each" in stage.variables:
        each = stage.value("growth_from_start_each")[..., -1]
        found.append(
            f"the Jacobians of {each.size} prompts by themselves grow by {number(each.min())} to "
            f"{number(each.max())}: a mean of Jacobians is another system than those of prompts"
        )
    return found


SHOWN = Shown(
    called="spectra of depth",
    marks=frozenset({"departure", "modal_growth"}),
    figures=(
        Drawn(
            "Effective rank of products over depth",
            "rank",
            "depth",
            (
                Curve("rank_to_end", "to the end"),
                Curve("rank_from_start", "from the start"),
                Curve("rank_to_end_each", "to the end, prompts", middle="median"),
            ),
            "effective rank",
            note="The exponential of the entropy of singular values.",
        ),
        Drawn(
            "Departure from normality",
            "departure",
            "layer",
            (
                Curve("departure", "layers", _LAYER),
                Curve("departure", "what they add", _UPDATE),
                Curve("departure_each", "layers, prompts", middle="median"),
            ),
            "share",
            note="Henrici's: 0 where eigenvectors are at right angles, 1 where nilpotent.",
        ),
        Drawn(
            "Symmetric share",
            "symmetric",
            "layer",
            (
                Curve("symmetric_share", "layers", _LAYER),
                Curve("symmetric_share", "what they add", _UPDATE),
            ),
            "share",
            note="Of the squared entries.",
        ),
        Drawn(
            "Growth over depth",
            "growth",
            "depth",
            (
                Curve("growth_from_start", "norm of the product"),
                Curve("modal_growth", "product of spectral radii"),
                Curve("growth_from_start_each", "norm, prompts", middle="median"),
            ),
            "growth",
            log=True,
        ),
    ),
    verdicts=verdicts,
    others=("modulus",),
)
