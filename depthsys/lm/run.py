"""A run of many prompts: prefilled once, used many times."""

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

import numpy as np
import torch
import xarray as xr
from scipy.sparse.linalg import LinearOperator

from depthsys.lm import cards, maps, token_states
from depthsys.lm.at_once import sequences
from depthsys.lm.batches import length_batches
from depthsys.lm.contexts import Budget, Contexts, States
from depthsys.lm.finite import FiniteStates
from depthsys.lm.frozen import FrozenBlock, FrozenRun, merged
from depthsys.lm.hf.blocks import Calls
from depthsys.lm.hf.tokens import Tokens
from depthsys.lm.kinds import short
from depthsys.lm.linearize import Linearisation
from depthsys.lm.lockstep import Steps, driven, groups, one_by_one, together
from depthsys.lm.of_prompts import OfPrompts
from depthsys.lm.prefill import prefilled, without_context
from depthsys.lm.progress import bar
from depthsys.lm.run_model import Model
from depthsys.lm.sweep import Sweep
from depthsys.lm.token_states import KeptDepths, KeptTokens, Note, TokenStates

# Prompts of several batches that are joined for work on a few of them.
JOINED = 16

R = TypeVar("R")


class Run(OfPrompts):
    """The nominal run of prompts of any lengths, with its frozen context.

    Made by `DepthModel.run`. Every function of `depthsys.lm` that takes a model and texts takes a
    run in their place and does not prefill again.

    Maps take directions (direction, feature), shared by the prompts, or (prompt, direction,
    feature), and give tensors of the model's dtype on its device. ``part`` says which derivative
    is meant, see `Linearisation`. ``n_cut`` prompts were longer than the model's ``max_tokens``
    and were cut: cut on the right, their last token is another one.

    Attributes
    ----------
    model, texts
        What it was made of.
    place
        Where the contexts lie: on the "device", in the memory of the "host", in a "file", or
        nowhere: then they are computed "again". See `Budget`.
    numbers
        Row numbers of the prompts of every batch.
    n_cut
        How many prompts were cut.
    token_note
        What else was done to their tokens, in words.
    tokens, tokens_place
        Of which tokens it has the states: the "last" ones, or "all"; and where those lie, as
        ``place`` says it of contexts.
    first_number
        What its first prompt is called in messages: 0, unless it is a part of more prompts.
    """

    first_number = 0

    def __init__(
        self,
        model: Model,
        texts: Any,
        *,
        budget: Budget | None = None,
        contexts: bool = True,
        tokens: str = "last",
    ):
        if isinstance(texts, Run):
            raise TypeError(f"`prompts` must be texts; got {short(texts)}. Use it as it is.")
        self.model, self.texts = model, texts
        self.tokens = token_states.checked_tokens(tokens)
        given = texts if isinstance(texts, Tokens) else model.tokens(texts)
        self._rows, self.n_cut, self.token_note = given.rows, given.n_cut, given.note
        at_once = sequences(model.blocks.sizes, model.n_features, model.dtype)
        self.numbers = length_batches(
            [len(row) for row in self._rows], padded=model.left_padding, **vars(at_once)
        )
        self.place = "again"
        self.nbytes = 0
        self._contexts: Contexts | None = None
        self._token_states: KeptTokens | None = None
        budget = Budget() if budget is None else budget
        if not isinstance(budget, Budget):
            raise TypeError(
                f"`budget` must be an lm.Budget; got {short(budget)}. Write lm.Budget(host=10**9)."
            )
        width = model.n_features * torch.finfo(model.dtype).bits // 8
        self._states = States(budget.in_memory(len(self) * (model.n_layers + 1) * width))
        self._finite = FiniteStates(self.first_number)
        self._calls: dict[int, Calls] = {}
        self._budget = budget
        self._later = False
        if contexts or tokens == "all":
            self.prefill(contexts=contexts)

    @classmethod
    def later(cls, model: Model, texts: Any) -> "Run":
        """A run that is prefilled when a block is asked for: after arguments have been checked."""
        run = cls(model, texts, contexts=False)
        run._later = True
        return run

    def __deepcopy__(self, memo) -> "Run":
        return self  # nothing of it changes, and a copy of the model would be another model

    @property
    def _card(self) -> cards.Card:
        return cards.of_run(self)

    def __repr__(self) -> str:
        return self._card.text()

    def _repr_html_(self) -> str:
        return self._card.html()

    # ------------------------------------------------------------------ what it is of

    @property
    def waits(self) -> bool:
        """Whether the prompts will be prefilled when a block is asked for, and not before."""
        return self._later

    @property
    def n_padded_tokens(self) -> int:
        """Tokens that go through a block in one pass of all prompts, padding included."""
        lengths = (max(len(self._rows[i]) for i in prompts) for prompts in self.numbers)
        return sum(len(p) * n for p, n in zip(self.numbers, lengths, strict=True))

    # ------------------------------------------------------------------ the nominal run

    @property
    def batches(self) -> "Batches":
        """The batches, each with its blocks; prefilled again where no context is kept."""
        self.ready()
        return Batches(self)

    def stream(self, progress: str | None = None) -> Iterator[FrozenRun]:
        """The batches one after the other, with a progress bar."""
        with bar(progress, len(self), "prompt") as shown:
            for batch in self.batches:
                yield batch
                shown.update(len(batch.prompts))

    def in_step(
        self,
        work: Callable[[FrozenRun], Steps[R]],
        progress: str | None = None,
        *,
        held: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> Iterator[tuple[FrozenRun, R]]:
        """Every batch, with what the steps of work on it find; see `depthsys.lm.lockstep`.

        One batch after the other; but where the weights of layers must be brought in, all batches
        go through a layer while it is there, as far as the budget lets them wait in between.

        Parameters
        ----------
        work
            Steps for a batch.
        progress
            What the bar says.
        held
            Bytes for each prompt that wait between two layers.
        numbers
            The batches that are wanted; all by default.
        """
        self.ready()
        wanted = range(len(self.numbers)) if numbers is None else numbers
        blocks = self.model.blocks
        sizes = [self._in_step_bytes(number, held) for number in wanted]
        with bar(progress, sum(len(self.numbers[n]) for n in wanted), "prompt") as shown:
            for group in self.in_step_groups(sizes):
                batches = self._together([wanted[place] for place in group])
                found = driven(blocks, together([work(batch) for batch in batches]))
                for batch, one in zip(batches, found, strict=True):
                    yield batch, one
                    shown.update(len(batch.prompts))

    def in_step_groups(self, sizes: Sequence[int]) -> Iterator[list[int]]:
        """Which batches go in step, if each makes so many bytes wait between two layers."""
        moves = self.model.blocks.residence.moves
        return groups(sizes, self.may_hold if moves else _nothing)

    @property
    def several(self) -> Callable[[Sequence[Steps[R]]], Steps[list[R]]]:
        """How several works on one batch go: one after the other, or together."""
        return together if self.model.blocks.residence.moves else one_by_one

    def _in_step_bytes(self, number: int, held: int) -> int:
        """What waits between two layers for a batch; contexts, too, where none are kept."""
        width = self.model.n_features * self.model.dtype.itemsize
        again = 0 if self._contexts is not None else 2 * self.n_layers * self.n_tokens(number)
        return len(self.numbers[number]) * (held + again * width)

    def _together(self, numbers: Sequence[int]) -> list[FrozenRun]:
        """These batches; where no context is kept they are prefilled, in step."""
        if self._contexts is not None or len(numbers) == 1:
            return [self.batch(number) for number in numbers]
        works = [self.prefill_steps(self.numbers[number]) for number in numbers]
        found = [batch for batch, _ in driven(self.model.blocks, together(works))]
        self._finite.check()
        for number, batch in zip(numbers, found, strict=True):
            self.put_states(number, batch)
        return found

    def first(self, count: int) -> Iterator[FrozenRun]:
        """The first ``count`` prompts in batches without the others, joined where that is exact.

        Where no context is kept, no other prompt is prefilled.
        """
        self.ready()
        group: list[FrozenRun] = []
        with bar("one system per prompt", count, "prompt") as shown:
            for number, prompts in enumerate(self.numbers):
                chosen = prompts < count
                if chosen.any():
                    group.append(self._only(number, chosen))
                size = sum(len(batch.prompts) for batch in group)
                last = number + 1 == len(self.numbers)
                if size and (size >= JOINED or last or not self.model.left_padding):
                    yield group[0] if len(group) == 1 else self._joined(group)
                    shown.update(size)
                    group = []

    def _only(self, number: int, chosen: np.ndarray) -> FrozenRun:
        """Some prompts of a batch, where ``chosen`` (prompt) is True."""
        if self._contexts is not None or chosen.all():
            return self.batch(number).only(chosen)
        found, _ = self._prefilled(self.numbers[number][chosen])
        self._finite.check()
        return found

    def _joined(self, batches: Sequence[FrozenRun]) -> FrozenRun:
        prompts = np.concatenate([batch.prompts for batch in batches])
        rows = [self._rows[i] for i in prompts]
        calls = self.model.blocks.calls(rows).last_token_only()
        layers = zip(*(batch.blocks for batch in batches), strict=True)
        blocks = [merged(layer, calls) for layer in layers]
        return FrozenRun(blocks, prompts, torch.cat([batch.x for batch in batches], dim=1))

    def may_hold(self, size: int) -> bool:
        """Whether the budget allows to hold so many bytes of a linearised layer."""
        return self._budget.holds(size, self.model.device)

    def place_of(self, size: int) -> str:
        """Where so many bytes of hidden states wait during a sweep: a file if nowhere else."""
        place = self._budget.place(size, self.model.device)
        return "file" if place == "again" else place

    def sweep(self, *, keep: bool = False) -> Sweep:
        """Layer by layer, all prompts of a layer before the next layer; see `Sweep`."""
        self.ready()
        return Sweep(self, keep=keep)

    def ready(self) -> None:
        """Check the weights, and prefill now if that was to wait until a block is asked for."""
        self.model.check_weights()
        if self._later:
            self._later = False
            self.prefill()

    def states_by_batch(
        self, progress: str | None = None
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Row numbers and nominal states (depth, prompt, feature) of every batch."""
        self.ready()
        if len(self._states) < len(self.numbers):
            for _ in self.in_step(_looked_at, progress):
                pass
        self._finite.check()
        for number, prompts in enumerate(self.numbers):
            yield prompts, self._states.get(number)[0]

    @property
    def states(self) -> xr.DataArray:
        """Nominal states (depth, prompt, feature), depth 0..L, before the final norm."""
        states = np.empty((self.n_layers + 1, len(self), self.model.n_features))
        for prompts, x in self.states_by_batch():
            states[:, prompts] = x.double().cpu().numpy()
        dims = ("depth", "prompt", "feature")
        return xr.DataArray(states, dims=dims, coords={"depth": np.arange(len(states))})

    @property
    def router_margin(self) -> xr.DataArray | None:
        """How far the choice of experts is from changing (layer, prompt); None without experts.

        The Jacobians hold for the routing of the nominal run. The unit is the router's own: the
        gap in its logits (or corrected scores) between the last expert chosen and the first one
        left out; infinite in layers without experts, NaN where the router's rule is not known.
        """
        margin = np.empty((self.n_layers, len(self)))
        for batch in self.batches:
            margins = batch.router_margin
            if margins is None:
                return None
            margin[:, batch.prompts] = margins.T.double().cpu().numpy()
        coords = {"layer": np.arange(self.n_layers)}
        return xr.DataArray(margin, dims=("layer", "prompt"), coords=coords)

    # ------------------------------------------------------------------ states of all tokens

    @property
    def tokens_place(self) -> str:
        """Where the states of all tokens lie; "again": nowhere, they are computed when wanted."""
        return "again" if self._token_states is None else self._token_states.place

    @property
    def tokens_nbytes(self) -> int:
        """Bytes that the states of all tokens take, padding included; 0 if they are not kept."""
        return 0 if self._token_states is None else self._token_states.nbytes

    def token_states_by_batch(self, progress: str | None = None) -> Iterator[TokenStates]:
        """Nominal states of all tokens, batch by batch; see `TokenStates`.

        From where they lie; where there was no room, each batch is prefilled again. No more than
        one batch is in memory (of a model whose layers are brought in, those that go in step).

        Raises
        ------
        ValueError
            If the run is not one with the states of all tokens: ``model.run(texts,
            tokens="all")``.
        """
        return token_states.by_batch(self, progress)

    def token_states(self, depth: int) -> xr.DataArray:
        """Nominal states of all tokens of all prompts at one depth, in memory.

        Parameters
        ----------
        depth
            0..L, before the final norm.

        Returns
        -------
        xr.DataArray
            (prompt, token, feature). Prompts end together: the coordinate ``lag`` (token) counts
            from the last token, which is 0, back. NaN where a prompt has no such token.

        Raises
        ------
        ValueError
            If there is no such depth, or the run is not one with the states of all tokens.
        """
        return token_states.at_depth(self, depth)

    def check_finite(self) -> None:
        """FloatingPointError if a nominal state that was computed is not finite."""
        self._finite.check()

    def real_tokens_of(self, number: int) -> torch.Tensor:
        """Which tokens of a batch are no padding (prompt, token)."""
        lengths = [len(self._rows[i]) for i in self.numbers[number]]
        return token_states.real_tokens(lengths, self.model.device)

    @torch.no_grad()
    def hidden_steps(self, number: int) -> Steps[Sequence[torch.Tensor]]:
        """Hidden states (prompt, token, feature) of a batch at depth 0..L, in steps.

        Read when they are asked for where they are kept, whatever ``tokens`` says; else prefilled.
        """
        if self._token_states is not None:
            return KeptDepths(self._token_states, number, self.n_layers + 1)
        hidden: list[torch.Tensor] = []
        steps = self.prefill_steps(
            self.numbers[number], without_context, lambda _, h: hidden.append(h)
        )
        yield from steps
        return hidden

    def token_bytes(self, number: int) -> int:
        """Bytes of the states of all tokens of a batch, padding included."""
        width = self.model.n_features * self.model.dtype.itemsize
        return (self.n_layers + 1) * len(self.numbers[number]) * self.n_tokens(number) * width

    def _room_for_tokens(self) -> KeptTokens | None:
        """Where the states of all tokens may go; None if they are not wanted, or nowhere."""
        if self.tokens != "all":
            return None
        size = sum(self.token_bytes(number) for number in range(len(self.numbers)))
        place = self._budget.place(size, self.model.device)
        return None if place == "again" else KeptTokens(place, size)

    # ------------------------------------------------------------------ prefilling

    def prefill(self, *, contexts: bool = True) -> None:
        """Every prompt through the model once, unless what is wanted of it is kept already.

        Contexts, and the states of all tokens if the run is to have them, go where the budget lets
        them; the latter first, as their size is known. Without ``contexts`` no context is kept.
        """
        contexts = contexts and self._contexts is None
        begun = None if self._token_states is not None else self._room_for_tokens()
        if self._budget.is_nothing or not (contexts or begun):
            return
        self.model.check_weights()
        tokens = begun or self._token_states
        budget = self._budget
        if tokens is not None:
            budget = budget.beside(tokens.place, tokens.nbytes, self.model.device)
        found = prefilled(self, budget if contexts else None, begun)
        self._finite.check()
        # all of it or nothing: an interrupted prefill leaves a run that computes again
        if begun is not None:
            self._token_states = begun
        if found.contexts is not None:
            self.place, self.nbytes, self._calls = found.contexts.place, found.nbytes, found.calls
            self._contexts = found.contexts

    def n_tokens(self, number: int) -> int:
        """Tokens of every prompt of a batch, padding included."""
        return max(len(self._rows[i]) for i in self.numbers[number])

    def _prefilled(self, prompts: np.ndarray) -> tuple[FrozenRun, Calls]:
        return driven(self.model.blocks, self.prefill_steps(prompts))

    @torch.no_grad()
    def prefill_steps(
        self,
        prompts: np.ndarray,
        keep: Callable[[FrozenBlock], FrozenBlock] | None = None,
        note: Note | None = None,
    ) -> Steps[tuple[FrozenRun, Calls]]:
        """Prefill some prompts, in steps.

        ``keep`` puts the context of a block away; ``note`` is told the states of all tokens.
        """
        calls = self._calls_of(prompts)
        hidden, blocks = calls.embedded, []
        if note is not None:
            note(0, hidden)
        for layer in range(self.n_layers):
            yield layer
            block, hidden = self.block_of(layer, prompts, hidden, calls)
            blocks.append(block if keep is None else keep(block))
            if note is not None:
                note(layer + 1, hidden)
        x = torch.stack([block.x for block in blocks] + [blocks[-1].x_next])
        self._finite.note(0, prompts, x[1:])
        return FrozenRun(blocks, prompts, x), calls

    def put_states(self, number: int, batch: FrozenRun) -> None:
        """Keep the nominal states of a batch, once."""
        self._states.put(number, batch.x, batch.router_margin)

    def calls_of(self, number: int) -> Calls:
        """The arguments with which the model calls its blocks on the prompts of a batch."""
        return self._calls_of(self.numbers[number])

    def _calls_of(self, prompts: np.ndarray) -> Calls:
        return self.model.blocks.calls([self._rows[i] for i in prompts])

    def merged_calls(self, numbers: Sequence[int]) -> Calls:
        """The calls of the last token for the prompts of several batches together."""
        rows = [self._rows[i] for number in numbers for i in self.numbers[number]]
        return self.model.blocks.calls(rows).last_token_only()

    @torch.no_grad()
    def block_of(
        self, layer: int, prompts: np.ndarray, hidden: torch.Tensor, calls: Calls
    ) -> tuple[FrozenBlock, torch.Tensor]:
        """Pass whole sequences through one block and keep what the last token saw.

        Whether the states are finite is for the caller to find out, see `FiniteStates`.
        """
        blocks = self.model.blocks
        after, frozen, margin = blocks.sequence(layer, calls, hidden)
        # in the strides that kept states have: torch multiplies a single row of others otherwise
        x, x_next = (h[:, -1].clone(memory_format=torch.contiguous_format) for h in (hidden, after))
        block = FrozenBlock(layer, prompts, x, x_next, margin, blocks, calls, lambda: frozen)
        return block, after

    def batch(self, number: int) -> FrozenRun:
        """One batch: from where its context lies, or prefilled again."""
        contexts = self._contexts
        if contexts is None:
            found, _ = self._prefilled(self.numbers[number])
            self._finite.check()
            self.put_states(number, found)
            return found
        x, margin = self._states.get(number)
        blocks = [
            FrozenBlock(
                layer,
                self.numbers[number],
                x[layer],
                x[layer + 1],
                None if margin is None else margin[:, layer],
                self.model.blocks,
                self._calls[number],
                functools.partial(contexts.get, number, layer),
            )
            for layer in range(self.n_layers)
        ]
        return FrozenRun(blocks, self.numbers[number], x)

    # ------------------------------------------------------------------ maps

    def jvp(self, layer: int, directions: Any, part: str | Linearisation = "block") -> torch.Tensor:
        """Jacobian of block ``layer`` times directions: (prompt, direction, feature)."""
        return maps.of_layer(self, layer, lambda block, d: block.jvp(d, part), directions)

    def vjp(self, layer: int, directions: Any, part: str | Linearisation = "block") -> torch.Tensor:
        """Transposed Jacobian of block ``layer`` times directions: (prompt, direction, feature)."""
        return maps.of_layer(self, layer, lambda block, d: block.vjp(d, part), directions)

    def jacobian(
        self, layer: int, chunk: int | None = None, part: str | Linearisation = "block"
    ) -> torch.Tensor:
        """Full Jacobian of block ``layer``: (prompt, state_next, state).

        ``chunk`` is the number of its rows that are computed at a time.
        """
        return maps.of_layer(self, layer, lambda block, _: block.jacobian(chunk, part), None)

    def transition(
        self,
        start: int,
        stop: int,
        directions: Any,
        *,
        adjoint: bool = False,
        part: str | Linearisation = "block",
    ) -> torch.Tensor:
        r"""Directions carried from depth to depth: :math:`A_{stop-1} \cdots A_{start} v`.

        With ``adjoint`` the directions live at depth ``stop`` and are carried back to ``start``
        by the transposed product. Shape (prompt, direction, feature). With start = stop the
        directions come back as they are.
        """
        return maps.transition(self, start, stop, directions, adjoint, part)

    def linear_operator(
        self, layer: int, prompt: int | None = None, part: str | Linearisation = "block"
    ) -> LinearOperator:
        """The Jacobian of block ``layer`` as a scipy LinearOperator (H, H); no H x H matrix.

        ``matvec`` and ``matmat`` are Jacobian-vector products (many columns at once),
        ``rmatvec`` and ``rmatmat`` transposed ones. ``prompt`` chooses one prompt of the run;
        None is the mean over its prompts. It works in the model's dtype on its device, takes and
        gives numpy arrays.
        """
        return maps.linear_operator(self, layer, prompt, part)


def _looked_at(batch: FrozenRun) -> Steps[None]:
    """No work: a batch that is there has its states."""
    return
    yield  # steps, but none


def _nothing(size: int) -> bool:
    return False


class Batches(Sequence[FrozenRun]):
    """The batches of a run, made ready when they are asked for."""

    def __init__(self, run: Run):
        self._run = run

    def __len__(self) -> int:
        return len(self._run.numbers)

    @overload
    def __getitem__(self, number: int) -> FrozenRun: ...
    @overload
    def __getitem__(self, number: slice) -> list[FrozenRun]: ...
    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        return self._run.batch(range(len(self))[operator.index(number)])

    def __repr__(self) -> str:
        return f"Batches({len(self)} of {self._run!r})"


@short.register
def _(value: Run) -> str:
    return f"a Run of {len(value)} prompts"
