"""What a study will cost, from sizes alone: no weights are read.

Work is counted in rows: one state of one prompt through one block. A product with a Jacobian counts
as `PRODUCT` of them. Seconds come from the speed of matrix products here and now, and from what
reductions and intervals were seen to take; they say whether a study is for a coffee or a weekend.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from depthsys import demo
from depthsys.study.checks import Checked
from depthsys.study.grid import asked, current
from depthsys.study.lines import have_labels
from depthsys.study.measures import MEASURES, PRODUCT, Sizes
from depthsys.study.store import Store
from depthsys.study.study_file import CellKey

if TYPE_CHECKING:
    from depthsys.lm import Splits
    from depthsys.lm.hf.sizes import ModelSizes
    from depthsys.study.cell import Found

STEPS = 10  # nine that the linear range always tries, and some more where it looks further
SEARCH = 12  # amplitudes until a schedule reaches its target
SCHEDULES = 5  # beside one for each layer
PLAN_STEPS = 6
# Seconds of reductions, norms, intervals and files, where two cores of 2026 were timed on models of
# 48 to 576 features: of a stage, and of a comparison for each method and order.
ALGEBRA = {"concept": 0.1, "system": 0.2, "gains": 0.6, "energies": 0.3, "plan": 0.4,
           "verified": 0.4, "texts": 0.1, "comparison": 1.0, "measures": 0.2}  # fmt: skip
MEASURED = "measures"  # of depth as dynamics, each of them
ALGEBRA_PER_ROW = 0.25
CHARACTERS = 4.0  # per token, where there is no tokenizer yet


@dataclass(frozen=True)
class _Counts:
    """Prompts of the splits, and tokens of all their texts."""

    concept: int
    operating: int
    held_out: int
    tokens: int


def forecast(checked: Checked, store: Store | None = None) -> xr.Dataset:
    """What the stages of a study will take, cell by cell.

    Parameters
    ----------
    checked
        The study.
    store
        Where it was begun: stages of it that are there, and up to date, count as done.

    Returns
    -------
    xr.Dataset
        Over ``cell`` (its path) and ``stage``: ``rows``, of the last token through a block;
        ``seconds``; ``done``. Over ``cell``: ``passes``, whole-sequence passes over its texts
        (0 where an earlier cell has run them); ``tokens`` of these; ``weights_bytes``;
        ``context_bytes``, what the runs keep. attrs ``rate``: multiplications and additions per
        second of float32 products here, and ``device``.
    """
    keys, stages = checked.study.cells, checked.study.stages
    sizes = _sizes(checked)
    speeds = {device: _rate(device) for device in {_device(f) for f in checked.found.values()}}
    shape = (len(keys), len(stages))
    rows, seconds, done = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=bool)
    of_cell = {name: np.zeros(len(keys)) for name in ("passes", "tokens", "weights", "context")}
    run_before: set[tuple[str, tuple[str, int]]] = set()
    for i, key in enumerate(keys):
        found, size = checked.found[key], sizes[key.model]
        counts = _counts(found, checked.splits[key.texts])
        rate = speeds[_device(found)]
        first = (key.model, key.texts) not in run_before
        run_before.add((key.model, key.texts))
        of_cell["passes"][i], of_cell["tokens"][i] = float(first), counts.tokens * first
        itemsize = 2 if "16" in (found.settings.dtype or "") else 4
        of_cell["weights"][i] = size.n_parameters * itemsize
        states = (counts.concept + counts.operating + counts.held_out) * size.n_features
        kept = size.n_keys * counts.tokens * size.n_layers + states * (size.n_layers + 1)
        of_cell["context"][i] = kept * itemsize
        there = _there(checked, key, store)
        for j, stage in enumerate(stages):
            rows[i, j] = _rows(stage, found, size, counts, len(checked.study.writing.prompts))
            if stage == "texts":
                writing = checked.study.writing
                rows[i, j] *= writing.max_new_tokens * len(writing.strengths)
            seconds[i, j] = _seconds(stage, found, size, rows[i, j], rate)
            done[i, j] = stage in there
        seconds[i, 0] += 2 * size.n_block * size.n_layers * of_cell["tokens"][i] / rate
    return xr.Dataset(
        {
            "rows": (("cell", "stage"), rows),
            "seconds": (("cell", "stage"), seconds),
            "done": (("cell", "stage"), done),
            "passes": ("cell", of_cell["passes"]),
            "tokens": ("cell", of_cell["tokens"]),
            "weights_bytes": ("cell", of_cell["weights"]),
            "context_bytes": ("cell", of_cell["context"]),
        },
        coords={"cell": list(map(str, keys)), "stage": list(stages)},
        attrs={"rate": min(speeds.values()), "device": ", ".join(sorted(speeds))},
    )


def of_measures(found: "Found", splits: "Splits", names: Iterable[str]) -> dict[str, float]:
    """Seconds that measures will take of a model and texts, by their names; "prefill" among them.

    From sizes alone, as `forecast`; what a run keeps or has kept is not known.
    """
    size, counts = _size_of(found.source), _counts(found, splits)
    rate = _rate(_device(found))
    told = {"prefill": 2 * size.n_block * size.n_layers * counts.tokens / rate}
    rows = {name: _rows(name, found, size, counts, 0) for name in names}
    return told | {name: _seconds(name, found, size, rows[name], rate) for name in rows}


def _there(checked: Checked, key: CellKey, store: Store | None) -> set[str]:
    """The stages that need not be made."""
    if store is None:
        return set()
    wanted = asked(checked.study, checked.found[key], checked.splits[key.texts])
    return current(store.stages(key), wanted, store.failures(key))


def _rows(stage: str, found: "Found", size: "ModelSizes", n: _Counts, n_written: int) -> float:
    """Rows of the last token, products counted as several."""
    L, settings = size.n_layers, found.settings
    triangle = L * (L + 1) / 2
    product = PRODUCT * triangle if settings.readout == "profile" else PRODUCT * L
    exact = PRODUCT * (triangle + L * L)  # what is reached, and what is seen, at every depth
    both = n.operating + n.held_out
    if stage == "system":
        return n.operating * (product if settings.basis == "ensemble" else exact)
    if stage == "gains":
        return both * PRODUCT * L + 2 * STEPS * n.held_out * triangle
    if stage == "comparison":
        shared = both * PRODUCT * L + 2 * (STEPS * n.held_out + n.operating) * triangle
        prompts = n.operating + settings.n_each
        return shared + prompts * (exact + PRODUCT * triangle)
    if stage in ("energies", "verified"):
        return n.held_out * (L + SCHEDULES) * SEARCH * L / 2
    if stage == "plan":
        return (1 + PRODUCT) * PLAN_STEPS * n.operating * L
    if stage in MEASURES:
        sizes = Sizes(L, size.n_features, n.operating, min(settings.n_jacobians, n.operating))
        return MEASURES[stage].rows(sizes)
    return float(n_written * L) if stage == "texts" else 0.0


def _seconds(stage: str, found: "Found", size: "ModelSizes", rows: float, rate: float) -> float:
    return 2 * size.n_block * rows / rate + _algebra(stage, found, size, rate)


def _algebra(stage: str, found: "Found", size: "ModelSizes", rate: float) -> float:
    if stage in MEASURES:
        cube = 2 * size.n_layers * float(size.n_features) ** 3
        return ALGEBRA[MEASURED] + MEASURES[stage].cubes * cube / rate
    table = len(found.settings.methods) * len(found.settings.orders)
    return ALGEBRA[stage] + (ALGEBRA_PER_ROW * table if stage == "comparison" else 0.0)


def _sizes(checked: Checked) -> "Mapping[str, ModelSizes]":
    sources: dict[str, str] = {}
    for key, found in checked.found.items():
        sources.setdefault(key.model, found.source)
    known = {source: _size_of(source) for source in set(sources.values())}
    return {name: known[source] for name, source in sources.items()}


def _size_of(source: str) -> "ModelSizes":
    from depthsys.lm.hf.sizes import model_sizes

    return model_sizes(str(demo.model_path(source)) if source in demo.MODELS else source)


def _counts(found: "Found", splits: "Splits") -> _Counts:
    """Tokens are counted by their characters: a tokenizer may not be there yet."""
    parts = (splits.concept, splits.operating, splits.held_out)
    if not have_labels(splits.operating):  # each part is all of the lines
        parts = (parts[0].first(0), parts[1], parts[2].first(0))
    most = found.max_tokens
    tokens = sum(
        min(most, len(text) if not isinstance(text, str) else int(len(text) / CHARACTERS) + 1)
        for part in parts
        for text in part.texts
    )
    return _Counts(len(parts[0]), len(parts[1]), len(parts[2]), tokens)


def _device(found: "Found") -> str:
    from depthsys.lm.hf.checkpoint import checked_device

    return str(checked_device(found.settings.device))


def _rate(device: str) -> float:
    """Multiplications and additions per second of a float32 product of middle size."""
    import torch

    one = torch.randn(256, 1024, device=device)
    other = torch.randn(1024, 1024, device=device)
    best, begun = np.inf, perf_counter()
    while perf_counter() - begun < 0.3:
        begin = perf_counter()
        float((one @ other).sum())  # also waits for it
        best = min(best, perf_counter() - begin)
    return 2 * 256 * 1024 * 1024 / best
