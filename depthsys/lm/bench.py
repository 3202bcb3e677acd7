"""The runs of shards that a process keeps, with the sweeps that are under way over them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from depthsys.lm.contexts import Budget
from depthsys.lm.frozen import FrozenRun
from depthsys.lm.hf.tokens import Tokens
from depthsys.lm.linearize import Linearisation
from depthsys.lm.run import Run
from depthsys.lm.run_model import Model
from depthsys.lm.sweep import Layer, Sweep


@dataclass(frozen=True)
class Shard:
    """Prompts that are computed together, as a run of them alone.

    Attributes
    ----------
    number, start
        Which shard it is, and the row number of its first prompt among all of them.
    rows
        Token ids of its prompts.
    """

    number: int
    start: int
    rows: list[list[int]]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def prompts(self) -> slice:
        """Row numbers of its prompts among all of them."""
        return slice(self.start, self.start + len(self))


@dataclass(frozen=True)
class Sharding:
    """What the runs of all shards share, whoever makes them.

    Attributes
    ----------
    key
        Tells the runs of some prompts from those of others.
    budget
        What all of them together may take in one process.
    contexts
        Whether contexts are kept.
    tokens
        Of which tokens states are kept, see `DepthModel.run`.
    """

    key: str
    budget: Budget
    contexts: bool
    tokens: str = "last"


class RunOfShard(Run):
    """The run of one shard, with the sweep that is under way over it."""

    def __init__(
        self, model: Model, shard: Shard, *, budget: Budget, contexts: bool, tokens: str = "last"
    ):
        self.first_number = shard.start
        self._wants_contexts = contexts
        self._swept: tuple[str, bool, Sweep] | None = None
        self._products: tuple[int, Linearisation, Callable] | None = None
        given = Tokens(shard.rows, 0)
        super().__init__(model, given, budget=budget, contexts=contexts, tokens=tokens)

    @property
    def taken(self) -> dict[str, int]:
        """Bytes that it has taken of each place."""
        width = self.model.n_features * self.model.dtype.itemsize
        states = len(self) * (self.n_layers + 1) * width
        home = "host" if self.model.device.type == "cpu" else "device"
        found = {home: states}
        if self.place != "again":
            found[self.place] = found.get(self.place, 0) + self.nbytes
        if self.tokens_place != "again":
            found[self.tokens_place] = found.get(self.tokens_place, 0) + self.tokens_nbytes
        return found

    @property
    def lacks_room(self) -> bool:
        """Whether something that is to be kept is not."""
        tokens = self.tokens == "all" and self.tokens_place == "again"
        return tokens or (self._wants_contexts and self.place == "again")

    def prefill_within(self, budget: Budget) -> None:
        """Try again to keep what is to be kept, where there is more room now."""
        self._budget = budget
        self.prefill(contexts=self._wants_contexts)

    def _only(self, number: int, chosen: np.ndarray) -> FrozenRun:
        # the same numbers to the last bit, whether or not there was room for contexts
        return self.batch(number).only(chosen)

    def layer_of(self, token: str, keep: bool, layer: int) -> Layer:
        """A layer of the sweep of that name, which is begun anew where it is not there."""
        if self._swept is None or self._swept[:2] != (token, keep) or not self._reaches(layer):
            self.end_sweep()
            self._swept = (token, keep, self.sweep(keep=keep))
        if self._products is not None and self._products[0] != layer:
            self._products = None
        return self._swept[2].at(layer)

    def _reaches(self, layer: int) -> bool:
        return self._swept is not None and self._swept[2].reaches(layer)

    def products(self, layer: Layer, kind: Linearisation) -> Callable[[torch.Tensor], torch.Tensor]:
        """`Layer.products`, held as long as nothing else is wanted."""
        if self._products is None or self._products[:2] != (layer.layer, kind):
            self._products = (layer.layer, kind, layer.products(kind))
        found = self._products[2]
        if self.model.blocks.residence.moves:  # what is linearised holds the weights
            self._products = None
        return found

    def end_sweep(self) -> None:
        """Give back what waits for the sweep; FloatingPointError if a state was not finite."""
        self._products = None
        if self._swept is not None:
            sweep, self._swept = self._swept[2], None
            sweep.__exit__(None, None, None)


class Bench:
    """The runs of shards that are kept in this process, within a budget for all of them.

    Where there is no room for the contexts of one more, those of other prompts go, which were not
    used for longest; never those of the same prompts, all of which are wanted again in turn.
    """

    def __init__(self, share: float = 1.0):
        self._share = share
        self._runs: dict[str, dict[int, RunOfShard]] = {}  # what was used last comes last

    def run(self, model: Model, sharding: Sharding, shard: Shard) -> RunOfShard:
        """The run of a shard, prefilled when it is first asked for."""
        kept = self._runs.pop(sharding.key, {})
        self._runs[sharding.key] = kept
        if shard.number in kept:
            return kept[shard.number]
        # made before it is known: an error leaves nothing
        room = self._room(model, sharding.budget)
        made = RunOfShard(
            model, shard, budget=room, contexts=sharding.contexts, tokens=sharding.tokens
        )
        while made.lacks_room and not sharding.budget.is_nothing and len(self._runs) > 1:
            del self._runs[next(iter(self._runs))]
            made.prefill_within(self._room(model, sharding.budget))
        kept[shard.number] = made
        return made

    def _room(self, model: Model, budget: Budget) -> Budget:
        """What the others leave of a budget."""
        taken: dict[str, int] = {}
        for run in (run for kept in self._runs.values() for run in kept.values()):
            for place, size in run.taken.items():
                taken[place] = taken.get(place, 0) + size
        return budget.left(taken, model.device, self._share)
