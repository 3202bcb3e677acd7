"""A run of many prompts in shards: each of them a run of its own, wherever it is computed.

What is known of each prompt is put together in the order of the prompts; what is summed over
prompts is summed in each shard and then over the shards, in float64 and in their order. So a result
follows from the model, the texts and the size of a shard, and not from who has computed which.
"""

import contextlib
import functools
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import xarray as xr

from depthsys.files import content_hash
from depthsys.lm import token_states
from depthsys.lm.bench import Bench, RunOfShard, Shard, Sharding
from depthsys.lm.contexts import LINEARISED, Budget
from depthsys.lm.hf.tokens import Tokens
from depthsys.lm.kinds import short
from depthsys.lm.linearize import Linearisation
from depthsys.lm.of_prompts import OfPrompts
from depthsys.lm.progress import bar, quiet
from depthsys.lm.run import Run
from depthsys.lm.run_model import Model
from depthsys.lm.token_states import TokenStates
from depthsys.ltv.system import whole_number

# Prompts of a shard where nobody says more or less.
SHARD = 256

F = TypeVar("F", bound=Callable[..., Any])


class Crew(Protocol):
    """Who computes: this process (`Here`), or others."""

    is_here: bool

    def each(
        self,
        run: "ShardedRun",
        function: Callable[..., Any],
        shards: Sequence[Shard],
        args: Sequence[Any],
        own: Sequence[dict[str, Any]],
    ) -> Iterator[Any]:
        """What a function finds of the run of every shard, in their order.

        It is called with the run, the arguments that all shards share, and by name those that are
        the shard's own.
        """
        ...


class Here:
    """This process computes all shards, one after the other; their runs are kept."""

    is_here = True

    def __init__(self):
        self._bench = Bench()

    def each(self, run, function, shards, args, own):
        """What a function finds of the run of every shard, in their order."""
        for shard, mine in zip(shards, own, strict=True):
            with quiet():
                one = self._bench.run(run.model, run.sharding, shard)
                found = function(one, *args, **mine)
            yield found


class ShardedRun(OfPrompts):
    """The nominal run of many prompts, in shards of a fixed number of prompts.

    It stands where a `Run` does in most functions of `depthsys.lm`; those that need all prompts in
    one place say so. Nothing is prefilled before it is needed.

    Parameters
    ----------
    model
        The model.
    texts
        The prompts, see `DepthModel.run`.
    shard
        Prompts of a shard. Results depend on it as they depend on which prompts share a batch:
        within rounding.
    crew
        Who computes the shards; by default this process.
    budget
        How much of which memory the contexts of all shards may take in one process, see `Budget`.
        Within it the first shards take the fastest place.
    contexts
        False if only states are wanted, see `DepthModel.run`.
    tokens
        Of which tokens states are kept, see `DepthModel.run`.

    Attributes
    ----------
    model, texts
        What it was made of.
    shards
        The shards, in the order of the prompts.
    n_cut, token_note
        See `Run`.

    Notes
    -----
    The prompts of a shard are put into batches as if there were no others. On CPUs with the same
    number of threads a result is therefore the same to the last bit whoever computes which shard;
    on accelerators, where free memory tells how much goes through a block at once, to rounding.
    """

    def __init__(
        self,
        model: Model,
        texts: Any,
        *,
        shard: int = SHARD,
        crew: Crew | None = None,
        budget: Budget | None = None,
        contexts: bool = True,
        tokens: str = "last",
    ):
        if isinstance(texts, (Run, ShardedRun)):
            raise TypeError(
                f"`texts` must be texts or token ids; got {short(texts)}. Give the texts it was "
                "made of."
            )
        cure = f"It is how many prompts are computed together; the default is {SHARD}."
        whole_number(shard, "shard", cure=cure)
        if budget is not None and not isinstance(budget, Budget):
            raise TypeError(
                f"`budget` must be an lm.Budget; got {short(budget)}. Write lm.Budget(host=10**9)."
            )
        self.model, self.texts, self.shard_size = model, texts, int(shard)
        self.tokens = token_states.checked_tokens(tokens)
        given = model.tokens(texts)
        self.n_cut, self.token_note = given.n_cut, given.note
        self._rows = given.rows
        self.crew: Crew = Here() if crew is None else crew
        self.shards = [
            Shard(number, start, self._rows[start : start + self.shard_size])
            for number, start in enumerate(range(0, len(self._rows), self.shard_size))
        ]
        budget = Budget() if budget is None else budget
        if budget.linearised is None:
            # not what is free now: whether a layer is held must not depend on the machine
            budget = replace(budget, linearised=LINEARISED)
        about = [self.tokens_sha256, self.shard_size, bool(contexts), vars(budget), tokens]
        key = content_hash(json.dumps(about).encode())
        self.sharding = Sharding(key, budget, bool(contexts), tokens)
        self._waits = True

    def __deepcopy__(self, memo) -> "ShardedRun":
        return self

    def __repr__(self) -> str:
        tokens = "; states of all tokens" if self.tokens == "all" else ""
        return (
            f"ShardedRun({len(self)} prompts, {self.n_cut} of them cut, in {len(self.shards)} "
            f"shards of up to {self.shard_size}; {self.n_layers} layers, "
            f"{self.model.n_features} features, {self.model.dtype_name}{tokens}; computed by "
            f"{type(self.crew).__name__})"
        )

    # ------------------------------------------------------------------ what it is of

    @property
    def waits(self) -> bool:
        """Whether nothing was asked of the shards yet, so that none is prefilled."""
        return self._waits

    @cached_property
    def outlines(self) -> list[Run]:
        """The runs of the shards, without contexts: which batches there will be."""
        return [Run(self.model, Tokens(s.rows, 0), contexts=False) for s in self.shards]

    @property
    def numbers(self) -> list[np.ndarray]:
        """Row numbers of the prompts of every batch."""
        return [
            shard.start + members
            for shard, run in zip(self.shards, self.outlines, strict=True)
            for members in run.numbers
        ]

    @property
    def n_padded_tokens(self) -> int:
        """Tokens that go through a block in one pass of all prompts, padding included."""
        return sum(run.n_padded_tokens for run in self.outlines)

    # ------------------------------------------------------------------ the work

    def each(
        self,
        function: Callable[..., Any],
        *args: Any,
        title: str | None = None,
        among: Sequence[int] | None = None,
        **own: Any,
    ) -> Iterator[Any]:
        """What a function finds of the run of every shard, in their order.

        Parameters
        ----------
        function
            A function of a module: others may have to find it by its name.
        args
            The same for all shards.
        title
            What the bar says.
        among
            The shards that are wanted; all by default.
        own
            Arguments with one value for each prompt, of which a shard gets those of its prompts;
            or None.
        """
        self._waits = False
        shards = self.shards if among is None else [self.shards[number] for number in among]
        mine = [
            {name: None if v is None else v[shard.prompts] for name, v in own.items()}
            for shard in shards
        ]
        found = self.crew.each(self, function, shards, args, mine)
        with bar(title, sum(map(len, shards)), "prompt") as shown:
            for shard, one in zip(shards, found, strict=True):
                yield one
                shown.update(len(shard))

    def sweep(self, *, keep: bool = False) -> "ShardedSweep":
        """Layer by layer, all shards of a layer before the next layer; see `Sweep`."""
        return ShardedSweep(self, keep)

    def states_by_batch(
        self, progress: str | None = None
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Row numbers and nominal states (depth, prompt, feature) of every shard."""
        rows = np.arange(len(self))
        found = self.each(_states, title=progress)
        for shard, states in zip(self.shards, found, strict=True):
            yield rows[shard.prompts], states

    @property
    def states(self) -> xr.DataArray:
        """Nominal states (depth, prompt, feature), depth 0..L, before the final norm."""
        parts = [x.double().cpu().numpy() for _, x in self.states_by_batch("states")]
        dims = ("depth", "prompt", "feature")
        return xr.DataArray(np.concatenate(parts, 1), {"depth": np.arange(self.n_layers + 1)}, dims)

    def token_states_by_batch(self, progress: str | None = None) -> Iterator[TokenStates]:
        """Nominal states of all tokens, batch by batch; see `Run.token_states_by_batch`.

        The batches of one shard come together.
        """
        token_states.check(self)
        found = self.each(_token_states, title=progress)
        return (
            replace(batch, prompts=shard.start + batch.prompts)
            for shard, batches in zip(self.shards, found, strict=True)
            for batch in batches
        )

    def token_states(self, depth: int) -> xr.DataArray:
        """Nominal states of all tokens at one depth, in memory; see `Run.token_states`."""
        token_states.check(self)
        depth = token_states.checked_depth(depth, self.n_layers)
        found = list(self.each(_token_states_at, depth, title="states of all tokens"))
        longest = max(one.sizes["token"] for one in found)
        shape = (len(self), longest, self.model.n_features)
        values = np.full(shape, np.nan, dtype=self.model.numpy_dtype)
        for shard, one in zip(self.shards, found, strict=True):
            values[shard.prompts, longest - one.sizes["token"] :] = one.values
        return token_states.at_lags(values, depth)

    @property
    def router_margin(self) -> xr.DataArray | None:
        """How far the choice of experts is from changing (layer, prompt); see `Run`."""
        found = list(self.each(_router_margin, title="router margins"))
        known = [one for one in found if isinstance(one, xr.DataArray)]
        return xr.concat(known, "prompt") if known else None


class ShardedSweep:
    """Layer by layer, all shards of a layer before the next layer."""

    def __init__(self, run: ShardedRun, keep: bool):
        self._run, self._keep = run, keep
        self._token = uuid.uuid4().hex

    def __enter__(self) -> "ShardedSweep":
        return self

    def __exit__(self, kind, error, _) -> None:
        # also where numbers made of states that are not finite were refused: those are the cause
        if kind is None or issubclass(kind, ArithmeticError):
            for _ in self._run.each(_end_sweep):
                pass

    def forward(self, progress: str | None = None) -> Iterator["ShardedLayer"]:
        """Layers 0..L-1."""
        yield from self._visit(range(self._run.n_layers), progress)

    def backward(self, progress: str | None = None) -> Iterator["ShardedLayer"]:
        """Layers L-1..0, after `forward` has come to its end; needs ``keep``."""
        if not self._keep:
            raise RuntimeError("a sweep goes backwards only over states that it keeps")
        yield from self._visit(reversed(range(self._run.n_layers)), progress)

    def _visit(self, layers, progress: str | None) -> Iterator["ShardedLayer"]:
        run = self._run
        with bar(progress, len(run) * run.n_layers, "block") as shown:
            for layer in layers:
                with contextlib.ExitStack() as visit:
                    if run.crew.is_here:  # its weights stay for all shards
                        visit.enter_context(run.model.blocks.resident(layer))
                    yield ShardedLayer(run, self._token, self._keep, layer)
                shown.update(len(run))


@dataclass(frozen=True)
class ShardedLayer:
    """One layer of all shards; it may be looked at again until the next one is."""

    run: ShardedRun
    token: str
    keep: bool
    layer: int

    def each(self, function: Callable[..., Any], *args: Any) -> Iterator[Any]:
        """What a function finds of the `Layer` of every shard, in their order."""
        return self.run.each(_at_layer, self.token, self.keep, self.layer, function, *args)

    def products(
        self, part: str | Linearisation = "block"
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Sums over prompts of products with the Jacobians; see `Layer.products`."""
        kind = Linearisation.of(part)

        def total(rows: torch.Tensor) -> torch.Tensor:
            place = self.token, self.keep, self.layer
            return summed(self.run, self.run.each(_products_at, *place, kind, rows))

        return total


# ------------------------------------------------------------------- what is asked of a shard


def _states(run: Run) -> torch.Tensor:
    """Nominal states (depth, prompt, feature)."""
    found: Any = None
    for prompts, x in run.states_by_batch():
        if found is None:
            found = x.new_empty((len(x), len(run), x.shape[-1]))
        found[:, torch.as_tensor(prompts, device=x.device)] = x
    return found


def _token_states(run: Run) -> list[TokenStates]:
    return list(run.token_states_by_batch())


def _token_states_at(run: Run, depth: int) -> xr.DataArray:
    return run.token_states(depth)


def _router_margin(run: Run) -> xr.DataArray | None:
    return run.router_margin


def _at_layer(
    run: RunOfShard, token: str, keep: bool, layer: int, function: Callable[..., Any], *args: Any
) -> Any:
    """What a function finds of a layer of a sweep, the weights of the layer being there."""
    with run.model.blocks.resident(layer):
        return function(run.layer_of(token, keep, layer), *args)


def _products_at(
    run: RunOfShard, token: str, keep: bool, layer: int, kind: Linearisation, rows: torch.Tensor
) -> torch.Tensor:
    with run.model.blocks.resident(layer):
        return run.products(run.layer_of(token, keep, layer), kind)(rows)


def _end_sweep(run: RunOfShard) -> None:
    run.end_sweep()


# ------------------------------------------------------------------- and how it is put together


def in_shards(joined: Callable[..., Any], title: str | None = None) -> Callable[[F], F]:
    """Let a function of a run be computed shard by shard where it is given a `ShardedRun`.

    The function must have its name in its module. Arguments by position are the same for all
    shards; those by name have one value for each prompt, or are None.

    Parameters
    ----------
    joined
        What is made of a `ShardedRun` and the results of its shards, which come in their order.
    title
        What the bar says.
    """

    def decorated(function: F) -> F:
        @functools.wraps(function)
        def call(run, *args, **own):
            if not isinstance(run, ShardedRun):
                return function(run, *args, **own)
            return joined(run, run.each(call, *args, title=title, **own))

        return call  # pyright: ignore[reportReturnType]

    return decorated


def of_each(
    run: Run | ShardedRun, function: Callable[..., Any], *args: Any, title: str | None = None
) -> Iterator[Any]:
    """What a function finds of a run, or of every shard in their order."""
    if isinstance(run, ShardedRun):
        yield from run.each(function, *args, title=title)
    else:
        yield function(run, *args)


def along(axis: int) -> Callable[[ShardedRun, Iterator[Any]], Any]:
    """Arrays of prompts, or tuples of them, behind each other along an axis."""

    def joined(run: ShardedRun, parts: Iterator[Any]) -> Any:
        found = list(parts)
        if isinstance(found[0], tuple):
            return tuple(np.concatenate(each, axis) for each in zip(*found, strict=True))
        return np.concatenate(found, axis)

    return joined


def summed(run: ShardedRun, parts: Iterator[torch.Tensor]) -> torch.Tensor:
    """The sum of tensors, in their order, on the device of the model."""
    total = next(parts).to(run.model.device)
    for part in parts:
        total = total + part.to(total.device)
    return total


@short.register
def _(value: ShardedRun) -> str:
    return f"a ShardedRun of {len(value)} prompts"
