"""The rows of a comparison that are about single prompts: one system for each of them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from time import perf_counter

import numpy as np
import xarray as xr

from depthsys import ltv
from depthsys.lm.channels import Channels
from depthsys.lm.full import EachFull
from depthsys.lm.identify import NothingReachedError, reduced_to_each
from depthsys.lm.methods import Method
from depthsys.lm.references import RESOLUTION
from depthsys.lm.run import Run
from depthsys.lm.shards import ShardedRun
from depthsys.ltv.bounds import Rounding
from depthsys.ltv.norms import bounds_of, rounded_values, spectral_norm

_TITLE = "one system per prompt"


def each_prompt(
    channels: Channels,
    run: Run,
    count: int,
    named: Mapping[str, Method],
    orders: list[int],
    measured: xr.Dataset,
) -> xr.Dataset:
    """Systems of the first ``count`` prompts: gains, and errors against that prompt's own map."""
    truth = measured["gain"].isel(prompt=slice(count)).rename(prompt="prompt_each")
    truth = truth.transpose("prompt_each", "layer", ...)
    found = list(_systems_of_shards(channels, run, count, named, orders))
    parts = [part for parts, _, _ in found for part in parts]
    rows = [row for _, rows, _ in found for row in rows]
    seconds = {name: sum(each[name] for _, _, each in found) for name in named}
    whole = xr.concat(parts, dim="prompt", data_vars="all").isel(
        prompt=np.argsort(np.concatenate(rows))
    )
    whole = whole.rename(prompt="prompt_each")
    resolution = RESOLUTION * whole["prompt_norm"]
    ratio = whole["prompt_error"] / whole["prompt_lower"]
    whole["prompt_error_ratio"] = ratio.where(whole["prompt_lower"] > resolution)
    summed = [d for d in truth.dims if d != "prompt_each"]
    # where there is no direction it is NaN, and left out of both sums
    whole["prompt_gain"] = whole["prompt_gain"].where(truth.notnull().drop_vars("layer"))
    miss = ((whole["prompt_gain"] - truth.drop_vars("layer")) ** 2).sum(summed) ** 0.5
    whole["prompt_relative_l2"] = miss / (truth**2).sum(summed) ** 0.5
    whole["prompt_seconds"] = ("basis_each", list(seconds.values()))
    return whole


_Found = tuple[list[xr.Dataset], list[np.ndarray], dict[str, float]]


def _systems_of_shards(
    channels: Channels,
    run: Run | ShardedRun,
    count: int,
    named: Mapping[str, Method],
    orders: list[int],
) -> Iterator[_Found]:
    """What is found of the first prompts of a run, or of those of every shard that has some."""
    if isinstance(run, Run):
        yield _systems(run, channels, count, named, orders)
        return
    wanted = [shard for shard in run.shards if shard.start < count]
    full, cut = (
        [s.number for s in wanted if (s.prompts.stop <= count) is whole] for whole in (True, False)
    )
    found = run.each(_systems, channels, run.shard_size, named, orders, among=full, title=_TITLE)
    rest = run.each(
        _systems, channels, count % run.shard_size, named, orders, among=cut, title=_TITLE
    )
    for shard, (parts, rows, seconds) in zip(wanted, chain(found, rest), strict=True):
        yield parts, [shard.start + row for row in rows], seconds


def _systems(
    run: Run,
    channels: Channels,
    count: int,
    named: Mapping[str, Method],
    orders: list[int],
) -> _Found:
    """The rows of batches of the first prompts, their row numbers, and seconds by method."""
    parts, rows = [], []
    seconds = dict.fromkeys(named, 0.0)
    for batch in run.first(min(count, len(run))):
        full = EachFull(channels, batch, named, orders[-1])
        exact = full.response["io"]
        values = rounded_values(exact)
        bounds = bounds_of(values[0], orders, values[1])
        tables = []
        for name, method in named.items():
            _, reduce, shared = full.prepared(name)
            begin = perf_counter()
            systems = reduced_to_each(reduce, orders, full.rtol_of(method), nested=method.nested)
            seconds[name] += shared + perf_counter() - begin
            proved = method.proved_against is not None
            rows_each = [
                _prompt_row(s, exact, values if proved else None)
                if isinstance(s, xr.Dataset)
                else None
                for s in systems
            ]
            lost = all(row is None for row in rows_each)
            tables.append(None if lost else filled(rows_each, xr.Variable("order", orders)))
        table = filled(tables, xr.Variable("basis_each", list(named)))
        table["prompt_lower"] = bounds["lower"]
        table["prompt_norm"] = spectral_norm(exact)
        parts.append(table)
        rows.append(batch.prompts)
    return parts, rows, seconds


def _prompt_row(
    system: xr.Dataset, exact: xr.DataArray, values: tuple[xr.DataArray, Rounding] | None
):
    error = spectral_norm(exact - ltv.io_matrix(system))
    gain = ltv.gains(system).transpose("prompt", "layer", "output", "input")
    single = [d for d in ("output", "input") if gain.sizes[d] == 1]
    upper = error * np.nan
    if values is not None:
        upper = bounds_of(values[0], system["order"], values[1])["upper"]
    return xr.Dataset(
        {
            "prompt_gain": gain.squeeze(single, drop=True).drop_vars("layer"),
            "prompt_error": error,
            "prompt_upper": upper,
        }
    ).drop_vars(["order", "depth"], errors="ignore")


def filled(parts: Sequence[xr.Dataset | None], dim: xr.Variable) -> xr.Dataset:
    """Parts along a new dim, NaN where a method found nothing; an error if none found anything."""
    known = [part for part in parts if part is not None]
    if not known:
        raise NothingReachedError(
            "`concept` must reach the readout; no method at no order has a system. Choose another "
            "readout or direction."
        )
    empty = xr.full_like(known[0], np.nan, dtype=float)
    empty.attrs = {}
    whole = [empty if part is None else part for part in parts]
    return xr.concat(whole, dim=dim, combine_attrs="drop_conflicts")
