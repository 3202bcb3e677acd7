"""Spectra of depth: rotation, normality, effective rank and growth."""

import numpy as np

from depthsys.report.dynamics.shown import Cells, Curve, Drawn, Map, Shown, places_along
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
        f"a small change of the first state is {number(growth)} times as long at the end, at most "
        "(norm of that product); the largest eigenvalues of the layers, multiplied, would say "
        f"{number(modal)}",
        f"layer {int(np.argmax(departure))} is farthest from normal ({number(departure.max())}), "
        f"layer {int(np.argmin(departure))} nearest ({number(departure.min())})",
        f"{100 * smaller:.0f} % of the eigenvalues of layers are below 1 in modulus",
    ]
    if "growth_from_start_each" in stage.variables:
        each = stage.value("growth_from_start_each")[..., -1]
        found.append(
            f"by the Jacobians of {each.size} prompts, each by itself, it grows by "
            f"{number(each.min())} to {number(each.max())}: a mean of Jacobians is another system "
            "than those of prompts"
        )
    return found


BINS = 18  # of 10 degrees


def _angles(stage: Stage) -> Cells | None:
    """Which share of a layer's eigenvalues turns by which angle, without sign."""
    if "layer" not in stage.places.get("of", {}):
        return None
    degrees = np.degrees(np.abs(stage.value("angle", **_LAYER)))
    edges = np.linspace(0, 180, BINS + 1)
    share = np.array([np.histogram(row, edges)[0] / row.size for row in degrees])
    layers = places_along(stage, "layer", len(share))
    return Cells(share.T, (edges[1:] + edges[:-1]) / 2, layers)


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
        Drawn(
            "How long eigenvalues of layers are",
            "modulus",
            "layer",
            (
                Curve("modulus", "largest", _LAYER, "largest"),
                Curve("modulus", "90 %", _LAYER, 0.9),
                Curve("modulus", "median", _LAYER, "median"),
                Curve("modulus", "10 %", _LAYER, 0.1),
            ),
            "modulus",
            log=True,
            note="Quantiles over the eigenvalues of a layer: below 1 they shrink.",
            reference=1.0,
        ),
    ),
    verdicts=verdicts,
    maps=(
        Map(
            "How eigenvalues of layers turn",
            "angle, degrees",
            "layer",
            "share of eigenvalues",
            frozenset({"angle"}),
            _angles,
            log=True,
            ticks=(0.0, 45.0, 90.0, 135.0, 180.0),
            note="0: no rotation, 180: a reflection; without sign. Empty: none.",
        ),
    ),
)
