"""What a comparison will cost, before it is made: passes, rows, seconds, bytes.

A *row* is one state of one prompt through one block. Prefilling costs one row per token and layer;
everything else is counted in rows of the last token, whose number follows from the sizes alone.
"""

from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np
import torch
import xarray as xr

from depthsys.lm.methods import Method
from depthsys.lm.run import Model, Run

# Steps of `linear_range` that are always tried, and the decade that usually follows.
RANGE_STEPS = 9
_SECONDS = 2.0  # how long the calibration may take
_COPIES = 32  # rows per prompt of a calibration


def forecast(
    model: Model,
    texts: Mapping[str, object],
    methods: Mapping[str, Method],
    order: int,
    *,
    n_outputs: int = 1,
    n_inputs: int = 1,
    n_each: int = 0,
    ablate_eps: bool = True,
) -> xr.Dataset:
    """Cost of `compare`, stage by stage.

    Parameters
    ----------
    model
        The model; one batch of the operating texts runs through one of its blocks.
    texts
        "concept", "operating" and "held_out": texts, or runs, which are not prefilled again.
    methods, order
        What is compared, and the largest order.
    n_outputs, n_inputs
        Of the system.
    n_each
        How many prompts get systems of their own.
    ablate_eps
        Whether `linear_range` is asked for.

    Returns
    -------
    xr.Dataset
        Per ``stage``: ``passes``, whole-sequence passes per (prompt, layer) of its texts;
        ``rows``, of the last token, in all; ``seconds``, from a calibration of about two seconds
        here and now, without the dense algebra of the reductions (small beside it); and
        ``bytes``, what contexts and states of the runs take.
    """
    L, width = model.n_layers, model.n_features
    runs = {
        name: given if isinstance(given, Run) else Run(model, given, contexts=False)
        for name, given in texts.items()
    }
    n = {name: len(run) for name, run in runs.items()}
    unit = _calibrated(runs["operating"])
    per_token = unit.pop("bytes")
    stages: list[tuple[str, float, float, float, float]] = []

    def add(stage: str, kind: str, rows: float, passes: float = 0.0, size: float = 0.0) -> None:
        stages.append((stage, passes, rows if kind != "tokens" else 0.0, rows * unit[kind], size))

    for name, run in runs.items():
        done = run is texts[name]
        tokens = 0 if done else run.n_padded_tokens * L
        kept = per_token * run.n_padded_tokens if name != "concept" else 0.0
        size = kept + n[name] * (L + 1) * width * model.numpy_dtype.itemsize
        add(f"prefill {name}", "tokens", tokens, 0.0 if done else 1.0, size)
    triangle = L * (L + 1) * n_inputs
    add("measured gains", "replay", triangle * (n["held_out"] + n["operating"]))
    add("linear gains", "products", 2 * L * n_outputs * (n["held_out"] + n["operating"]))
    for name, method in methods.items():
        kind, own = method.own_rows(L, n_inputs, order)
        if own:
            add(f"directions of {name}", kind, own * n["operating"])
    columns = sum(m.n_columns(order) for m in methods.values())
    held = min(width, L + 1 + columns) * L
    forward = triangle / 2 + (held if any(m.observable for m in methods.values()) else columns * L)
    response = triangle / 2 * n_outputs
    add("mean system", "products", forward * n["operating"])
    add("mean response", "products", response * n["operating"])
    if ablate_eps:
        add("linear range", "replay", (RANGE_STEPS - 1) * triangle * n["held_out"])
    if n_each:
        own = sum(m.own_rows(L, n_inputs, order)[1] for m in methods.values())
        add("one system per prompt", "products", (forward + response + own) * n_each)
    columns_of = zip(*stages, strict=True)
    names = ("stage", "passes", "rows", "seconds", "bytes")
    data = {k: ("stage", np.array(v)) for k, v in zip(names, columns_of, strict=True)}
    return xr.Dataset({k: v for k, v in data.items() if k != "stage"}, {"stage": data["stage"]})


def _calibrated(run: Run) -> dict[str, float]:
    """Seconds per row of each kind of work, and bytes of context per token, of one batch."""
    number = len(run.numbers) // 2
    calls = run.calls_of(number)
    prompts = run.numbers[number]
    hidden = calls.embedded
    begin = perf_counter()
    block, _ = run.block_of(0, prompts, hidden, calls)
    tokens = hidden.shape[0] * hidden.shape[1]
    size = block.context.key.nbytes + block.context.value.nbytes
    copies = block.x[:, None].expand(-1, _COPIES, -1).contiguous()
    rows = torch.randn(_COPIES, block.x.shape[-1]).to(block.x)
    linear = block.linearised()
    work: dict[str, tuple[Callable, int]] = {
        "tokens": (lambda: run.block_of(0, prompts, hidden, calls), tokens),
        "replay": (lambda: block(copies), len(prompts) * _COPIES),
        "products": (lambda: linear.vjp(rows), len(prompts) * _COPIES),
    }
    found: dict[str, float] = {}
    share = max(0.1, _SECONDS - (perf_counter() - begin)) / len(work)
    with torch.no_grad():
        for kind, (once, count) in work.items():
            once()
            times, start = [], perf_counter()
            while not times or perf_counter() - start < share:
                begin = perf_counter()
                once()
                times.append(perf_counter() - begin)
            found[kind] = float(np.median(times)) / count
    return found | {"bytes": size * run.n_layers / tokens}
