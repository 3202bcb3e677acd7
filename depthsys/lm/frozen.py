"""The nominal run with frozen context, and its maps: what each block does to the last token.

Free of Hugging Face: `depthsys.lm.hf.blocks` calls the modules.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn.functional import pad

from depthsys.lm.at_once import product_rows, replay_rows
from depthsys.lm.hf.affine import check_linear
from depthsys.lm.hf.attention import FrozenCache
from depthsys.lm.hf.blocks import Blocks
from depthsys.lm.hf.calls import Calls
from depthsys.lm.linearize import PARTS, Linearisation, Linearised, jacobian
from depthsys.lm.precision import Arithmetic, wide

_OTHER = {"attention": "mlp", "mlp": "attention"}


@dataclass(frozen=True)
class FrozenBlock:
    """Block ``layer`` as a map of the last token's state, for prompts of one batch.

    Attributes
    ----------
    layer
        0..L-1.
    prompts
        Row numbers of these prompts among those that were asked for.
    x, x_next
        (prompt, feature): nominal state before and after the block.
    router_margin
        (prompt): how far the choice of experts is from changing, None without experts.
    """

    layer: int
    prompts: np.ndarray
    x: torch.Tensor
    x_next: torch.Tensor
    router_margin: torch.Tensor | None
    _blocks: Blocks
    _calls: Calls
    _context: Callable[[], FrozenCache]

    def __repr__(self) -> str:
        return f"FrozenBlock(layer {self.layer}, {len(self.prompts)} prompts)"

    @property
    def context(self) -> FrozenCache:
        """The frozen keys and values, read from where they lie."""
        return self._context()

    @property
    def arithmetic(self) -> Arithmetic:
        """What it computes in."""
        return Arithmetic(self.x.dtype, self._blocks.products)

    def check_weights(self) -> None:
        """ValueError if the weights are no longer those that the context was made with."""
        self._blocks.weights.check()

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """States (prompt, copy, feature) after the block; the copies are independent.

        ValueError if the weights are no longer those that the context was made with.
        """
        return self._blocks.last_token(self.layer, self._calls, states, self.context)

    def linearised(self, part: str | Linearisation = "block") -> Linearised:
        """The block linearised at ``x``, or a part of it; see `Linearisation`."""
        kind = Linearisation.of(part)
        if kind.part != "block" and self.layer not in self._blocks.arrangements:
            self._blocks.arrangements[self.layer] = self.arrangement
        if kind.is_detached:
            check_linear(self._blocks, self.layer, self._calls, self.x, self._context, kind.linear)
        return self._linearised(kind)

    def _linearised(self, kind: Linearisation) -> Linearised:
        # where the context is repeated for every row, more rows would need much memory
        rows = self._product_rows if self._blocks.copies_are == "tokens" else None
        with self._only(kind.part), self._detached(kind):
            return Linearised(self, self.x, rows, self._blocks.products)

    def _detached(self, kind: Linearisation):
        if not kind.is_detached:
            return contextlib.nullcontext()
        return self._blocks.detached(self.layer, kind.linear)

    def _product_rows(self) -> int | None:
        return product_rows(self._blocks.sizes, self.x, self._calls.n_context[self.layer])

    def replay_rows(self, on_a_cpu: int) -> int:
        """Rows (prompts x copies) that go through at once without derivatives; see `at_once`."""
        return replay_rows(self._blocks.sizes, self.x, self._calls.n_context[self.layer], on_a_cpu)

    @cached_property
    def arrangement(self) -> str:
        """How the parts meet: "sequential" (the MLP reads what the attention wrote) or "parallel".

        Found by comparing products of the parts with those of the whole block; ValueError if
        neither holds, so that the parts of an unknown family are never wrong numbers.
        """
        v = torch.randn(1, self.x.shape[-1], generator=torch.Generator().manual_seed(0))
        v = v.to(self.x)
        whole, attention, mlp = (self._linearised(Linearisation(p)) for p in PARTS)
        expected, through = whole.jvp(v), attention.jvp(v)
        found = {"sequential": mlp.jvp(through), "parallel": through + mlp.jvp(v) - v}
        near = max(1e-4, 8 * self.arithmetic.eps) * float(wide(expected).norm())
        miss = {name: float(wide(p - expected).norm()) for name, p in found.items()}
        nearest = min(miss, key=lambda name: miss[name])
        if miss[nearest] <= near:
            return nearest
        raise ValueError(
            f"`part` must split the block into attention and MLP; those of layer {self.layer} "
            "neither multiply nor add up to it. Use part='block'."
        )

    def without(self, states: torch.Tensor, *parts: str) -> torch.Tensor:
        """States (prompt, copy, feature) after the block if parts of it wrote nothing.

        The parts are "attention" and "mlp". Without the MLP that is the state before the MLP, where
        the arrangement of the block is "sequential"; see `sublayers`.
        """
        with self._blocks.silenced(self.layer, parts):
            return self(states)

    @property
    def sublayers(self) -> str:
        """How the parts write into the state: "sequential" or "parallel"; found by values.

        With f the block, a and m the block without its MLP and without its attention:
        f(x) = m(a(x)) in a sequential block, f(x) = a(x) + m(x) - x in a parallel one, and without
        both the state stays x. Tried on the first prompt and kept with the model. ValueError where
        none of this holds, so that the states of an unknown family are never wrong numbers.
        """
        known = self._blocks.sublayers
        if self.layer not in known:
            known[self.layer] = self._found_sublayers()
        return known[self.layer]

    @torch.no_grad()
    def _found_sublayers(self) -> str:
        one = self.between(0, 1)
        x, after = one.x[:, None], wide(one.x_next)
        kept, attended = one.without(x, "attention", "mlp"), one.without(x, "mlp")
        both = {
            "sequential": wide(one.without(attended, "attention"))[:, 0],
            "parallel": wide(attended + one.without(x, "attention") - x)[:, 0],
        }
        near = max(1e-4, 8 * self.arithmetic.eps) * float(wide(one.x).norm() + after.norm())
        miss = {name: float((found - after).norm()) for name, found in both.items()}
        nearest = min(miss, key=lambda name: miss[name])
        if miss[nearest] <= near and float((wide(kept) - wide(x)).norm()) <= near:
            return nearest
        raise ValueError(
            "`model` must add what its attention and its MLP write to the residual stream, one "
            f"after the other or both at once; layer {self.layer} does neither, so it has no "
            "state between them. Use the states of whole blocks, `run.states`."
        )

    def jvp(self, directions: torch.Tensor, part: str | Linearisation = "block") -> torch.Tensor:
        """See `linearize.jvp`."""
        return self.linearised(part).jvp(directions)

    def vjp(self, directions: torch.Tensor, part: str | Linearisation = "block") -> torch.Tensor:
        """See `linearize.vjp`."""
        return self.linearised(part).vjp(directions)

    def jacobian(
        self, chunk: int | None = None, part: str | Linearisation = "block"
    ) -> torch.Tensor:
        """See `linearize.jacobian`."""
        return jacobian(self.linearised(part), chunk)

    def only(self, prompt: int) -> "FrozenBlock":
        """This block for one of its prompts, by row number."""
        at = np.flatnonzero(self.prompts == prompt)
        rows = torch.as_tensor(at, device=self.x.device)
        return self._rows(at, rows, self._calls.only(rows))

    @property
    def calls(self) -> Calls:
        """How the block is called on these prompts."""
        return self._calls

    def between(self, start: int, stop: int, calls: Calls | None = None) -> "FrozenBlock":
        """This block for its prompts number ``start`` to ``stop`` - 1.

        ``calls`` are those of the same prompts at another layer, where they are known.
        """
        part = slice(start, stop)
        if calls is None:
            calls = self._calls.only(torch.arange(len(self.prompts))[part])
        margin = None if self.router_margin is None else self.router_margin[part]

        def context() -> FrozenCache:
            whole = self.context
            return FrozenCache(whole.key[part], whole.value[part])

        return FrozenBlock(
            self.layer,
            self.prompts[part],
            self.x[part],
            self.x_next[part],
            margin,
            self._blocks,
            calls,
            context,
        )

    def _rows(self, at: np.ndarray, rows: torch.Tensor, calls: Calls) -> "FrozenBlock":
        """The prompts at some places, which ``rows`` holds on the device."""
        margin = None if self.router_margin is None else self.router_margin[rows]
        states = self.x[rows], self.x_next[rows]

        def context() -> FrozenCache:
            whole = self.context
            kept = rows.to(whole.key.device)
            return FrozenCache(whole.key[kept], whole.value[kept])

        return FrozenBlock(
            self.layer, self.prompts[at], *states, margin, self._blocks, calls, context
        )

    def _only(self, part: str):
        if part == "block":
            return contextlib.nullcontext()
        return self._blocks.held(self.layer, _OTHER[part])


@dataclass(frozen=True)
class FrozenRun:
    """The nominal run of the prompts of one batch: one `FrozenBlock` per layer.

    ``x`` is (depth, prompt, feature); ``prompts`` holds row numbers.
    """

    blocks: list[FrozenBlock]
    prompts: np.ndarray
    x: torch.Tensor

    def __repr__(self) -> str:
        return f"FrozenRun({len(self.prompts)} prompts, {len(self.blocks)} layers)"

    @property
    def arithmetic(self) -> Arithmetic:
        """What the blocks compute in."""
        return self.blocks[0].arithmetic

    def only(self, at: np.ndarray) -> "FrozenRun":
        """Some of the prompts, where ``at`` (prompt) is True; this batch if it is everywhere."""
        if at.all():
            return self
        places = np.flatnonzero(at)
        # by number: how many places a mask has would have to be asked of the device
        rows = torch.as_tensor(places, device=self.x.device)
        calls = self.blocks[0]._calls.only(rows)
        blocks = [block._rows(places, rows, calls) for block in self.blocks]
        return FrozenRun(blocks, self.prompts[places], self.x[:, rows])

    @property
    def router_margin(self) -> torch.Tensor | None:
        """Router margin (prompt, layer), infinite in layers without a router; None without any."""
        margins = [block.router_margin for block in self.blocks]
        if all(margin is None for margin in margins):
            return None
        none = torch.full_like(self.x[0, :, 0], torch.inf)
        return torch.stack([none if m is None else m.to(none) for m in margins], dim=1)


def merged(blocks: Sequence[FrozenBlock], calls: Calls) -> FrozenBlock:
    """One layer of several batches as one: contexts padded on the left, as ``calls`` are.

    Products with few directions read the weights once instead of once per batch. Only for models
    whose batches may be padded.
    """
    contexts = [block.context for block in blocks]
    longest = calls.n_context[blocks[0].layer]

    def padded(name: str) -> torch.Tensor:
        tensors = (getattr(context, name) for context in contexts)
        # the longest prompt of a batch may have stayed behind: the others have padding in its place
        kept = [t[..., max(0, t.shape[-2] - longest) :, :] for t in tensors]
        # what lies under the mask is never read, but it must be finite
        return torch.cat([pad(t, (0, 0, longest - t.shape[-2], 0)) for t in kept])

    cache = FrozenCache(padded("key"), padded("value"))
    margins = [block.router_margin for block in blocks]
    return FrozenBlock(
        blocks[0].layer,
        np.concatenate([block.prompts for block in blocks]),
        torch.cat([block.x for block in blocks]),
        torch.cat([block.x_next for block in blocks]),
        None if margins[0] is None else torch.cat([m for m in margins if m is not None]),
        blocks[0]._blocks,
        calls,
        lambda: cache,
    )
