"""Detached maps: how they reproduce values, and how few directions of them matter."""

from collections import Counter

import numpy as np

from depthsys.report.dynamics.shown import Curve, Drawn, Shown
from depthsys.report.stage import Stage
from depthsys.report.table import Table
from depthsys.wording import number

_LAYER, _START = {"map": "layer"}, {"map": "from_start"}
VECTORS = 3  # leading directions that are shown
TOKENS = 4  # of each


def verdicts(stage: Stage) -> list[str]:
    """Whether values are reproduced, the rank of the whole map, and whose value it is."""
    errors = [stage.value(f"error_{name}") for name in ("block", "attention", "mlp", "stack")]
    worst = max(float(each.max()) for each in errors)
    rank = np.median(stage.value("stable_rank", **_START)[:, -1])
    kept = stage.variables["kept"][1]
    curve = np.median(stage.value("low_rank_error", **_START)[:, -1], axis=0)
    enough = kept[np.flatnonzero(curve <= 0.1)[0]]
    last = stage.value("share")[:, -1]
    biases = stage.value("bias_share").sum(axis=-1)
    found = [
        f"detached maps reproduce the values of blocks, their parts and the whole stack to "
        f"{number(worst)}",
        f"the map of the last token from the embedding to the end has a stable rank of "
        f"{number(rank)} of {int(kept[-1])} (median of prompts), and needs {int(enough)} of its "
        "singular directions to give its value to 10 %",
        f"the last token's own embedding makes {100 * last.mean():.0f} % of the last state by them "
        "(projected on it: shares of tokens and biases add up to 100 % and may cancel)",
    ]
    if np.abs(biases).max() > 0:
        found.append(f"biases make {100 * biases.mean():.0f} % of the last state")
    return found


def tables(stage: Stage) -> list[Table]:
    """Tokens of the leading directions at the last layer, the most frequent ones of prompts."""
    if "output_text" not in stage.variables:
        return []
    prompts = stage.sizes["prompt"]
    rows = [
        (f"{called}, {rank + 1}", *(_frequent(read[rank]) for read in reads))
        for kind, called in {"from_start": "all layers", "layer": "last layer"}.items()
        if kind in stage.places["map"]
        for reads in [[_at_the_end(stage, f"{n}_text", kind) for n in ("output", "input")]]
        for rank in range(min(VECTORS, len(reads[0])))
    ]
    return [
        Table(
            header := ("direction", "writes (left vector)", "reads (right vector)"),
            rows,
            f"Tokens of the leading directions at the last layer, those of most of {prompts} "
            "prompts first",
            left=header,
        )
    ]


def _at_the_end(stage: Stage, name: str, kind: str) -> np.ndarray:
    """(rank, prompt, place)."""
    return stage.value(name, map=kind)[:, -1].swapaxes(0, 1)


def _frequent(read: np.ndarray) -> str:
    """The tokens that most prompts have, with their count where it is more than one."""
    counts = Counter(str(token) for row in read for token in dict.fromkeys(row.tolist()))
    # of equal counts those first that stand first
    said = [f"{token!r}{f' ×{n}' if n > 1 else ''}" for token, n in counts.most_common(TOKENS)]
    return " ".join(said)


SHOWN = Shown(
    called="detached maps",
    marks=frozenset({"error_block", "own_share", "stable_rank"}),
    figures=(
        Drawn(
            "Stable rank of detached maps",
            "stable rank",
            "layer",
            (
                Curve("stable_rank", "from the start", _START, "median"),
                Curve("stable_rank", "of one layer", _LAYER, "median"),
            ),
            "stable rank",
            log=True,
            note="The squared Frobenius norm over the squared largest singular value.",
        ),
        Drawn(
            "What the last token's own way makes of its state",
            "own share",
            "layer",
            (
                Curve("own_share", "from the start", _START),
                Curve("own_share", "of one layer", _LAYER),
            ),
            "share of the state",
        ),
        Drawn(
            "Error of the value with few singular directions",
            "low-rank error",
            "kept",
            (
                Curve("low_rank_error", "from the start, all layers", _START, "median"),
                Curve("low_rank_error", "of one layer, all layers", _LAYER, "median"),
            ),
            "relative error",
            log_x=True,
        ),
        Drawn(
            "How values are reproduced",
            "error",
            "layer",
            (
                Curve("error_block", "block"),
                Curve("error_attention", "attention"),
                Curve("error_mlp", "MLP"),
            ),
            "relative error",
            log=True,
        ),
    ),
    verdicts=verdicts,
    others=("error_stack", "share", "bias_share", "output_text", "input_text", "kept"),
    tables=tables,
)
