"""Dynamics of the residual stream: continuity, speed, rotations, planes and teleportation."""

from functools import partial

import numpy as np

from depthsys.report.dynamics.shown import Cells, Curve, Drawn, Map, Shown, Way
from depthsys.report.stage import Stage
from depthsys.report.table import Table
from depthsys.wording import number

_MEDIAN = {"quantile": 0.5}
_LEVEL = 0.05  # of adjusted p-values
_PLACED = {"flow": "all over the plane", "near": "near their own place"}


def verdicts(stage: Stage) -> list[str]:
    """What holds of what is said of larger models, and what does not."""
    found = [_continuity(stage), _speed(stage)]
    if (said := _rotations(stage)) is not None:
        found.append(said)
    explained = 100 * stage.value("explained")[:2].sum()
    code = {name: 100 * float(stage.value("code_explained", compressor=name))
            for name in ("autoencoder", "pca")}  # fmt: skip
    found.append(
        f"two principal components of all sublayers hold {explained:.0f} % of the variance; of "
        f"texts left out an autoencoder to two numbers gives back {code['autoencoder']:.0f} %, two "
        f"components {code['pca']:.0f} %"
    )
    return [*found, *(_placed(stage, prefix, where) for prefix, where in _PLACED.items())]


def _placed(stage: Stage, prefix: str, where: str) -> str:
    shares, starts = stage.value(f"{prefix}_inward_share"), stage.value("start")
    said = ", ".join(
        f"{100 * share:.0f} % from sublayer {start}"
        for start, share in zip(starts, shares, strict=True)
    )
    return f"put elsewhere, {where}, states end nearer to their own way: {said}"


def _continuity(stage: Stage) -> str:
    middle = stage.value("correlation_quantile", **_MEDIAN)
    writer = stage.value("written_by")
    parts = {w: number(float(np.nanmean(middle[writer == w]))) for w in ("attention", "mlp")}
    return (
        "a unit is correlated with itself one sublayer later: "
        f"{parts['attention']} where attention writes, {parts['mlp']} where the MLP does (median "
        "over units, mean over steps)"
    )


def _speed(stage: Stage) -> str:
    speed = stage.value("velocity").mean(axis=0)
    norm = stage.value("norm").mean(axis=0)[: len(speed)]
    third = max(1, len(speed) // 3)
    absolute, relative = (
        float(v[-third:].mean() / v[third : 2 * third].mean()) for v in (speed, speed / norm)
    )
    return (
        f"in the last third of the steps the state moves {number(absolute)} times as far as in the "
        f"middle third, and {number(relative)} times as far for its size"
    )


def _rotations(stage: Stage) -> str | None:
    turns, shuffled, q = (stage.value(name) for name in ("turns", "turns_shuffled", "q_value"))
    known = np.isfinite(turns) & np.isfinite(q)
    if not known.any():
        return None
    low = 100 * float((q[known] < _LEVEL).mean())
    more = 100 * float(((q < _LEVEL) & (turns > shuffled))[known].mean())
    return (
        f"units turn {number(float(turns[known].mean()))} times in the plane of activation and "
        f"gradient, {number(float(shuffled[known].mean()))} times in shuffled orders of the "
        f"sublayers; {low:.0f} % of units differ from these (q < {_LEVEL:g}), {more:.0f} % by "
        "turning more"
    )


def tables(stage: Stage) -> list[Table]:
    """Rotations of units, and each start of teleportation."""
    return [*_turned(stage), *_flow(stage)]


def _turned(stage: Stage) -> list[Table]:
    """How many units turn otherwise than by chance, and which way they differ."""
    turns, shuffled, q = (stage.value(name) for name in ("turns", "turns_shuffled", "q_value"))
    known = np.isfinite(turns) & np.isfinite(q)
    if not known.any():
        return []
    differ = q[known] < _LEVEL
    more = differ & (turns > shuffled)[known]
    header = ("units", "turns, mean", "in shuffled orders", f"q < {_LEVEL:g}", "more", "fewer")
    row = (
        str(int(known.sum())),
        *(number(float(each[known].mean())) for each in (turns, shuffled)),
        *(f"{100 * each.mean():.0f} %" for each in (differ, more, differ & ~more)),
    )
    return [
        Table(header, [row], "Turns of units in the plane of activation and gradient, over depth")
    ]


def _components(stage: Stage) -> tuple[str, str]:
    """Both axes of the plane, with what they hold."""
    first, second = (f"{100 * share:.0f} % of variance" for share in stage.value("explained")[:2])
    return f"first component ({first})", f"second component ({second})"


def _flow(stage: Stage) -> list[Table]:
    """Of each start of teleportation."""
    names = ("inward_share", "contraction", "basin_radius")
    rows = [
        (
            _PLACED[prefix],
            str(start),
            f"{100 * share:.0f} %",
            number(contraction),
            number(radius) if radius > 0 else "none",
        )
        for prefix in _PLACED
        for start, share, contraction, radius in zip(
            stage.value("start"), *(stage.value(f"{prefix}_{n}") for n in names), strict=True
        )
    ]
    header = ("states are put", "from sublayer", "inward", "contraction, median", "basin radius")
    title = "States put elsewhere: do they end nearer to the prompt's own way (inward)?"
    caption = (
        "contraction: of the distance to it; basin radius: up to which half or more go inward in "
        "every ring"
    )
    return [Table(header, rows, title, caption, ("states are put",))]


def _rings(prefix: str, stage: Stage) -> Cells | None:
    name = f"{prefix}_inward_fraction"
    if name not in stage.variables:
        return None
    values = stage.value(name).astype(float)
    return Cells(values, stage.value("start"), np.arange(values.shape[1]))


SHOWN = Shown(
    called="residual stream",
    marks=frozenset({"velocity", "update_cosine", "turns"}),
    figures=(
        Drawn(
            "How alike a unit is to itself one sublayer later",
            "correlation",
            "step",
            (
                Curve("correlation_quantile", "median unit", _MEDIAN),
                Curve("correlation_quantile", "5 %", {"quantile": 0.05}),
                Curve("correlation_quantile", "95 %", {"quantile": 0.95}),
            ),
            "correlation over prompts",
            note="Even steps are written by attention, odd ones by the MLP.",
        ),
        Drawn(
            "Cosine of successive states",
            "cosine",
            "step",
            (Curve("cosine", "states"),),
            "cosine",
        ),
        Drawn(
            "Velocity",
            "velocity",
            "step",
            (Curve("velocity", "velocity"),),
            "distance of successive states",
            log=True,
        ),
        Drawn(
            "Mutual information of a unit with itself one sublayer later",
            "information, nats",
            "step",
            (
                Curve("mutual_information", "units"),
                Curve("mutual_information_shuffled", "prompts exchanged"),
            ),
            "nats",
        ),
        Drawn(
            "Density of the state",
            "density",
            "sublayer",
            (Curve("density", "density"),),
            "density",
            note="1 where all units are equally large.",
        ),
        Drawn(
            "Variance that two numbers give back",
            "given back",
            "sublayer",
            (
                Curve("code_explained_at", "autoencoder", {"compressor": "autoencoder"}),
                Curve("code_explained_at", "two components", {"compressor": "pca"}),
            ),
            "share, of texts left out",
        ),
    ),
    verdicts=verdicts,
    others=(
        "norm", "written_by", "turns_shuffled", "q_value", "explained", "code_explained", "start",
        "update_cosine", "turns",
        *(f"{p}_{n}" for p in _PLACED for n in ("inward_share", "contraction", "basin_radius")),
    ),
    tables=tables,
    maps=tuple(
        Map(
            f"States put {where}: share that ends nearer to its own way",
            "from sublayer",
            "ring",
            "share",
            frozenset({f"{prefix}_inward_fraction"}),
            partial(_rings, prefix),
            span=(0.0, 1.0),
            note="Rings of equal width about the prompt's own place, the nearest first; over "
            "prompts and points. Empty where no point lies. Arrows are in the figures that "
            "depthsys dynamics writes.",
        )
        for prefix, where in _PLACED.items()
    ),
    ways=(
        Way(
            "The mean state's way from sublayer to sublayer",
            "mean_score",
            "sublayer",
            "component",
            _components,
            frozenset({"explained"}),
            note="Principal components of states of all sublayers; numbers are of sublayers.",
        ),
    ),
)  # fmt: skip
