"""What a comparison will cost, before it is made: passes, rows, seconds, bytes.

A *row* is one state or direction of one prompt through one block. Prefilling costs one row per
token and layer; everything else is counted in rows of the last token, whose number follows from the
sizes alone. A *call* takes the rows of one batch through one block; it costs time of its own.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
import xarray as xr

from depthsys import ltv
from depthsys.lm.accuracy import agreement
from depthsys.lm.methods import Method
from depthsys.lm.parts import WHOLE
from depthsys.lm.run import JOINED, Run
from depthsys.lm.run_model import Model
from depthsys.lm.shards import ShardedRun
from depthsys.lm.sweep import MERGED_ROWS
from depthsys.ltv.norms import spectral_norm

# Steps of `linear_range` that are always tried, and the decade that usually follows.
RANGE_STEPS = 9
ALGEBRA = "reductions, norms, intervals"
_SECONDS = 2.0  # how long the calibration of the model may take
_COPIES = 32  # rows per prompt of a calibration, beside one
# bootstraps of one row of the table, in those of one `agreement`: three of them, the parts of the
# error budget, and the gap to the first method
_BOOTSTRAPS = 5


@dataclass(frozen=True)
class Sizes:
    """What the cost of a comparison follows from, beside the model and the texts.

    Attributes
    ----------
    methods, orders
        What is compared.
    n_inputs, n_outputs
        Of the system.
    n_each
        How many prompts get systems of their own.
    ablate_eps
        Whether `linear_range` is asked for.
    """

    methods: Mapping[str, Method]
    orders: Sequence[int]
    n_inputs: int = 1
    n_outputs: int = 1
    n_each: int = 0
    ablate_eps: bool = True


# which texts the parts need, beside those that say so in their names
_OPERATING = {"mean system", "mean response"}


def forecast(
    model: Model,
    texts: Mapping[str, object],
    sizes: Sizes,
    *,
    finds_concept: bool = True,
    kept: Collection[str] = (),
) -> xr.Dataset:
    """Cost of `compare`, stage by stage.

    Parameters
    ----------
    model
        The model; one batch of the operating texts runs through one of its blocks.
    texts
        "concept", "operating" and "held_out": texts, or runs; those that are prefilled already
        are not prefilled again.
    sizes
        Of the comparison.
    finds_concept
        Whether the direction has to be found, from concept and held-out texts.
    kept
        Parts of `compare` that are on disk already: they cost nothing, and nor do texts of which
        nothing else is wanted.

    Returns
    -------
    xr.Dataset
        Per ``stage``: ``passes``, whole-sequence passes per (prompt, layer) of its texts;
        ``rows``, of the last token, in all; ``seconds``, from a calibration of some seconds
        here and now; ``bytes``, what contexts and states of the runs take; and ``kept``, whether
        it is on disk.
    """
    runs = {
        name: given if isinstance(given, (Run, ShardedRun)) else Run(model, given, contexts=False)
        for name, given in texts.items()
    }
    operating = runs["operating"]
    unit = _calibrated(operating if isinstance(operating, Run) else operating.outlines[0])
    ledger = _Ledger(unit, set(kept))
    _last_token(ledger, model, runs, sizes)
    _algebra(ledger, model, len(runs["held_out"]), sizes)
    used = {_texts_of(stage) for stage in ledger.open if stage != ALGEBRA}
    used |= {"concept", "held_out"} if finds_concept and "concept" not in kept else set()
    prefills = _Ledger(unit, set())
    for name, run in runs.items():
        done = name not in used or (run is texts[name] and not run.waits)
        tokens = 0 if done else run.n_padded_tokens * model.n_layers
        context = unit.bytes_per_token * run.n_padded_tokens if name != "concept" else 0.0
        states = len(run) * (model.n_layers + 1) * model.n_features * model.numpy_dtype.itemsize
        size = context + states if name in used else 0.0
        passes = 0.0 if done else 1.0
        prefills.add(f"prefill {name}", ("tokens", tokens, 0.0), passes=passes, size=size)
    return _table(prefills.stages + ledger.stages)


def _texts_of(stage: str) -> str:
    operating = stage.endswith(", operating") or stage.startswith("directions of ")
    return "operating" if operating or stage in _OPERATING else "held_out"


def _last_token(
    ledger: "_Ledger", model: Model, runs: Mapping[str, Run | ShardedRun], sizes: Sizes
) -> None:
    """All work on the last token: replays and products."""
    L, m, p = model.n_layers, sizes.n_inputs, sizes.n_outputs
    n = {name: len(run) for name, run in runs.items()}
    calls = {name: L * len(run.numbers) for name, run in runs.items()}
    pushes = L * (L + 1) * m  # of both signs, at every layer, each from there on
    for name in ("held_out", "operating"):
        stage = "measured gains" + ", operating" * (name == "operating")
        ledger.add(stage, ("replay", pushes * n[name], calls[name]))
    for name in ("held_out", "operating"):
        stage = "linear gains" + ", operating" * (name == "operating")
        ledger.add(
            stage,
            ("linearise", L * n[name], calls[name]),
            ("vjp", L * p * n[name], calls[name]),
        )
    # a sweep merges the batches of a layer where padding is exact
    sweep = len(runs["operating"].numbers)
    if model.left_padding:
        sweep = -(-n["operating"] // MERGED_ROWS)
    for name, method in sizes.methods.items():
        ledger.add(f"directions of {name}", *_own(method, L, sizes, n["operating"], sweep, calls))
    forward, backward = _system_rows(model, sizes)
    ledger.add(
        "mean system",
        ("linearise", L * n["operating"] * (1 + (backward > 0)), L * sweep),
        ("jvp", forward * n["operating"], L * sweep),
        ("vjp", backward * n["operating"], L * sweep * (backward > 0)),
    )
    response = L * (L + 1) / 2 * p
    ledger.add(
        "mean response",
        ("linearise", L * n["operating"], calls["operating"]),
        ("vjp", response * n["operating"], calls["operating"]),
    )
    if sizes.ablate_eps:
        rows = (RANGE_STEPS - 1) * pushes * n["held_out"]
        ledger.add("linear range", ("replay", rows, 2 * calls["held_out"]))
    if sizes.n_each:
        joined = -(-sizes.n_each // JOINED)
        own = [
            part
            for method in sizes.methods.values()
            for part in _own(method, L, sizes, sizes.n_each, joined, {"operating": L * joined})
        ]
        ledger.add(
            "one system per prompt",
            ("linearise", 2 * L * sizes.n_each, 2 * L * joined),
            ("jvp", forward * sizes.n_each, L * joined),
            ("vjp", (backward + response) * sizes.n_each, 2 * L * joined),
            *own,
        )


def _own(method: Method, L: int, sizes: Sizes, n: int, sweep: int, calls: Mapping[str, int]):
    """What a method does to find directions of its own: kind, rows, calls."""
    kind, rows = method.own_rows(L, sizes.n_inputs, sizes.orders[-1])
    if not rows:
        return []
    if kind == "replay":
        return [("replay", rows * n, calls["operating"])]
    # one direction at a time, each made of the one before
    return [("linearise", L * n, L * sweep), ("jvp", rows * n, rows * sweep)]


def _system_rows(model: Model, sizes: Sizes) -> tuple[float, float]:
    """Products per prompt of a restricted system, forwards and backwards; see `lm.exact`."""
    L, width = model.n_layers, model.n_features
    columns = sum(method.n_columns(sizes.orders[-1]) for method in sizes.methods.values())
    observable = any(method.observable for method in sizes.methods.values())
    reached = [min(width, (k + 1) * sizes.n_inputs) for k in range(L + 1)]
    if not observable:
        return float(sum(min(width, r + columns) for r in reached[:-1])), 0.0
    seen = [(L + 1 - k) * sizes.n_outputs for k in range(L + 1)]
    held = [min(width, r + columns + s) for r, s in zip(reached, seen, strict=True)]
    return float(sum(reached[:-1])), float(sum(held[1:]))


# ------------------------------------------------------------------- dense algebra, in float64


def _algebra(ledger: "_Ledger", model: Model, n_held_out: int, sizes: Sizes) -> None:
    """Reductions, norms and bootstraps, measured on random numbers of the same sizes."""
    methods = sizes.methods.values()
    # above the rank nothing changes, and nothing is computed
    rank = (model.n_layers + 1) * sizes.n_inputs
    orders = min(len(sizes.orders), 1 + sum(order < rank for order in sizes.orders))
    made = sum(1 if method.nested else orders for method in methods)
    rows = len(sizes.methods) * orders
    reduction, norm = _algebra_seconds(model, sizes, 1)
    bootstraps = _BOOTSTRAPS * _bootstrap_seconds(model, n_held_out)
    seconds = made * reduction + rows * (norm + bootstraps)
    ledger.add(ALGEBRA, seconds=seconds)
    if sizes.n_each and "one system per prompt" in ledger.open:
        batch = min(JOINED, sizes.n_each)
        reduction, norm = _algebra_seconds(model, sizes, batch)
        ledger.note(
            "one system per prompt", sizes.n_each / batch * (made * reduction + rows * norm)
        )


def _algebra_seconds(model: Model, sizes: Sizes, n_prompts: int) -> tuple[float, float]:
    """One reduction to the largest order, and one error of it."""
    L, order = model.n_layers, sizes.orders[-1]
    held = max(1, int(_system_rows(model, sizes)[1] / L) or (L + 1) * sizes.n_inputs)
    rng = np.random.default_rng(0)
    batch, dims = ((n_prompts,), ("prompt",)) if n_prompts > 1 else ((), ())

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal((*batch, *shape)) / np.sqrt(held)

    system = ltv.system(
        drawn(L, held, held),
        drawn(L, held, sizes.n_inputs),
        drawn(L + 1, sizes.n_outputs, held),
        batch_dims=dims,
    )
    begin = perf_counter()
    # where one input per layer reaches less than the order the largest that there is
    largest = min(order, held, L * min(sizes.n_inputs, sizes.n_outputs))
    small = ltv.project(system, ltv.krylov_basis(system, order=largest))
    reduced = perf_counter()
    spectral_norm(ltv.io_matrix(small))
    return reduced - begin, perf_counter() - reduced


def _bootstrap_seconds(model: Model, n_prompts: int) -> float:
    gain = np.random.default_rng(0).standard_normal((n_prompts, model.n_layers))
    measured = xr.Dataset({"gain": (("prompt", "layer"), gain)})
    begin = perf_counter()
    agreement(measured["gain"].mean("prompt"), measured)
    return perf_counter() - begin


# --------------------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class _Unit:
    """Seconds per row and per call of each kind of work, and bytes of context per token."""

    per_row: Mapping[str, float]
    per_call: Mapping[str, float]
    bytes_per_token: float


def _calibrated(run: Run) -> _Unit:
    """From one batch and one block."""
    number = len(run.numbers) // 2
    calls = run.calls_of(number)
    prompts = run.numbers[number]
    hidden = calls.embedded
    block, _ = run.block_of(0, prompts, hidden, calls)
    tokens = hidden.shape[0] * hidden.shape[1]
    size = block.context.key.nbytes + block.context.value.nbytes
    linear = block.linearised()
    linear.jvp(block.x[:, None])  # what all products share is made by the first

    def rows(copies: int) -> torch.Tensor:
        return torch.randn(copies, block.x.shape[-1]).to(block.x)

    one, many = rows(1), rows(_COPIES)
    work: dict[tuple[str, int], Callable] = {
        ("tokens", tokens): lambda: run.block_of(0, prompts, hidden, calls),
        ("linearise", len(prompts)): lambda: block.linearised().jvp(one),
    }
    for copies, drawn in ((1, one), (_COPIES, many)):
        states = block.x[:, None].expand(-1, copies, -1).contiguous()
        count = copies * len(prompts)
        work[("replay", count)] = lambda states=states: block(states)
        work[("jvp", count)] = lambda drawn=drawn: linear.jvp(drawn)
        work[("vjp", count)] = lambda drawn=drawn: linear.vjp(drawn)
    with torch.no_grad():
        times = {key: _median(once, _SECONDS / len(work)) for key, once in work.items()}
    per_row, per_call = {}, {}
    for kind in ("tokens", "linearise", "replay", "jvp", "vjp"):
        (first, fast), *others = [(c, t) for (k, c), t in times.items() if k == kind]
        per_row[kind], per_call[kind] = fast / first, 0.0
        for count, slow in others:
            per_row[kind] = max(0.0, slow - fast) / (count - first)
            per_call[kind] = max(0.0, fast - per_row[kind] * first)
    # linearising was measured with a product of one row
    per_row["linearise"] = max(
        0.0, per_row["linearise"] - times["jvp", len(prompts)] / len(prompts)
    )
    return _Unit(per_row, per_call, size * run.n_layers / tokens)


def _median(once: Callable[[], object], seconds: float) -> float:
    once()
    times, start = [], perf_counter()
    while not times or perf_counter() - start < seconds:
        begin = perf_counter()
        once()
        times.append(perf_counter() - begin)
    return float(np.median(times))


# -------------------------------------------------------------------------------------- ledger


@dataclass
class _Ledger:
    """Stages and what they cost, those that are kept nothing."""

    unit: _Unit
    kept: set[str]
    stages: list[dict] = field(default_factory=list)

    def add(
        self,
        stage: str,
        *work: tuple[str, float, float],
        passes: float = 0.0,
        size: float = 0.0,
        seconds: float = 0.0,
    ) -> None:
        """Add a stage of that work: kind, rows, calls. Without any there is no stage."""
        if not work and not seconds:
            return
        part = "mean system" if stage.startswith("directions of ") else stage
        kept = part in self.kept or WHOLE in self.kept
        rows = sum(r for kind, r, _ in work if kind not in ("tokens", "linearise"))
        for kind, r, calls in work:
            seconds += r * self.unit.per_row[kind] + calls * self.unit.per_call[kind]
        self.stages.append(
            {
                "stage": stage,
                "passes": passes,
                "rows": 0.0 if kept else float(rows),
                "seconds": 0.0 if kept else seconds,
                "bytes": size,
                "kept": kept,
            }
        )

    def note(self, stage: str, seconds: float) -> None:
        """More seconds of a stage that is there."""
        found = next(each for each in self.stages if each["stage"] == stage)
        found["seconds"] += 0.0 if found["kept"] else seconds

    @property
    def open(self) -> list[str]:
        """Stages that are to be done."""
        return [each["stage"] for each in self.stages if not each["kept"]]


def _table(stages: Sequence[Mapping]) -> xr.Dataset:
    names = ("passes", "rows", "seconds", "bytes", "kept")
    data = {name: ("stage", np.array([each[name] for each in stages])) for name in names}
    return xr.Dataset(data, {"stage": [each["stage"] for each in stages]})
