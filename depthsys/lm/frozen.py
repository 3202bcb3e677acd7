"""The nominal run with frozen context, and its maps: what each block does to the last token.

Free of Hugging Face: `depthsys.lm.replay` calls the modules.
"""

import contextlib
import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.sparse.linalg import LinearOperator

from depthsys.lm.attention import FrozenCache
from depthsys.lm.linearize import Linearised, as_directions, check_directions, jacobian
from depthsys.lm.replay import Blocks, Calls

PARTS = ("block", "attention", "mlp")
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
    _cache: FrozenCache

    def __repr__(self) -> str:
        return f"FrozenBlock(layer {self.layer}, {len(self.prompts)} prompts)"

    @property
    def context_bytes(self) -> int:
        """Memory of the frozen keys and values."""
        return self._cache.key.nbytes + self._cache.value.nbytes

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """States (prompt, copy, feature) after the block; the copies are independent."""
        return self._blocks.last_token(self.layer, self._calls, states, self._cache)

    def linearised(self, part: str = "block") -> Linearised:
        """The block linearised at ``x``; with ``part`` the other part's output held constant.

        "attention" is the Jacobian of the block when the MLP's output is held at its nominal
        value, "mlp" the one when the attention's is. In a sequential block the two multiply,
        A = A_mlp A_attention; in a parallel one A = A_attention + A_mlp - I.
        """
        if part != "block":
            check_part(part)
            _ = self.arrangement
        return self._part_linearised(part)

    def _part_linearised(self, part: str) -> Linearised:
        with self._only(part):
            return Linearised(self, self.x)

    @cached_property
    def arrangement(self) -> str:
        """How the parts meet: "sequential" (the MLP reads what the attention wrote) or "parallel".

        Found by comparing products of the parts with those of the whole block; ValueError if
        neither holds, so that the parts of an unknown family are never wrong numbers.
        """
        v = torch.randn(1, self.x.shape[-1], generator=torch.Generator().manual_seed(0))
        v = v.to(self.x)
        whole, attention, mlp = (self._part_linearised(p) for p in PARTS)
        expected, through = whole.jvp(v), attention.jvp(v)
        found = {"sequential": mlp.jvp(through), "parallel": through + mlp.jvp(v) - v}
        for name, product in found.items():
            if float((product - expected).norm()) <= 1e-4 * float(expected.norm()):
                return name
        raise ValueError(
            f"`part` must split the block into attention and MLP; those of layer {self.layer} "
            "neither multiply nor add up to it. Use part='block'."
        )

    def jvp(self, directions: torch.Tensor, part: str = "block") -> torch.Tensor:
        """See `linearize.jvp`."""
        return self.linearised(part).jvp(directions)

    def vjp(self, directions: torch.Tensor, part: str = "block") -> torch.Tensor:
        """See `linearize.vjp`."""
        return self.linearised(part).vjp(directions)

    def jacobian(self, chunk: int | None = None, part: str = "block") -> torch.Tensor:
        """See `linearize.jacobian`."""
        return jacobian(self.linearised(part), chunk)

    def only(self, prompt: int) -> "FrozenBlock":
        """This block for one of its prompts, by row number."""
        (row,) = np.flatnonzero(self.prompts == prompt)
        at = slice(row, row + 1)
        margin = None if self.router_margin is None else self.router_margin[at]
        cache = FrozenCache(self._cache.key[at], self._cache.value[at])
        calls = self._calls.only(at)
        states = self.x[at], self.x_next[at]
        return FrozenBlock(
            self.layer, self.prompts[at], *states, margin, self._blocks, calls, cache
        )

    def _only(self, part: str):
        if part == "block":
            return contextlib.nullcontext()
        return self._blocks.held(self.layer, _OTHER[part])


class _MeanJacobian(LinearOperator):
    """Mean over the prompts of some blocks of their Jacobians, as products."""

    def __init__(self, blocks: list[FrozenBlock], part: str):
        x = blocks[0].x
        super().__init__(np.dtype(np.float64), (x.shape[-1], x.shape[-1]))
        self._linear = [block.linearised(part) for block in blocks]
        self._count = sum(len(block.prompts) for block in blocks)
        self._like = x

    def _matmat(self, X):
        return self._product("jvp", X)

    def _rmatmat(self, X):
        return self._product("vjp", X)

    def _matvec(self, x):
        return self._matmat(np.reshape(x, (-1, 1)))[:, 0]

    def _rmatvec(self, x):
        return self._rmatmat(np.reshape(x, (-1, 1)))[:, 0]

    def _product(self, name: str, columns: np.ndarray) -> np.ndarray:
        if np.iscomplexobj(columns):
            raise TypeError("`X` must be real; got complex. Multiply both parts.")
        rows = torch.as_tensor(np.array(np.transpose(columns))).to(self._like)
        total = torch.zeros(rows.shape, dtype=torch.float64, device=rows.device)
        for linear in self._linear:
            total += getattr(linear, name)(rows).double().sum(0)
        return (total / self._count).T.cpu().numpy()


def check_part(part: str) -> None:
    """ValueError unless this names a part of a block."""
    if part not in PARTS:
        raise ValueError(f"`part` must be one of {PARTS}; got {part!r}. Pick one.")


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
    def router_margin(self) -> torch.Tensor | None:
        """Router margin (prompt, layer), infinite in layers without a router; None without any."""
        margins = [block.router_margin for block in self.blocks]
        if all(margin is None for margin in margins):
            return None
        none = torch.full_like(self.x[0, :, 0], torch.inf)
        return torch.stack([none if m is None else m.to(none) for m in margins], dim=1)


@dataclass(frozen=True)
class Run:
    """The nominal run of prompts of any lengths, kept in memory with its frozen context.

    Maps take directions (direction, feature), shared by the prompts, or (prompt, direction,
    feature), and give tensors of the model's dtype on its device. ``part`` is "block",
    "attention" or "mlp"; see `FrozenBlock.linearised`. ``n_cut`` prompts were longer than the
    model's ``max_tokens`` and were cut on the right: their last token is another one.
    """

    batches: list[FrozenRun]
    n_prompts: int
    n_cut: int = 0

    def __repr__(self) -> str:
        x = self.batches[0].x
        dtype = str(x.dtype).removeprefix("torch.")
        return (
            f"Run({self.n_prompts} prompts, {self.n_cut} of them cut; {self.n_layers} layers, "
            f"{x.shape[-1]} features, {len(self.batches)} batches, {dtype}, {x.device})"
        )

    @property
    def n_layers(self) -> int:
        """L."""
        return len(self.batches[0].blocks)

    @property
    def states(self) -> xr.DataArray:
        """Nominal states (depth, prompt, feature), depth 0..L, before the final norm."""
        first = self.batches[0].x
        states = np.empty((first.shape[0], self.n_prompts, first.shape[2]))
        for batch in self.batches:
            states[:, batch.prompts] = batch.x.double().cpu().numpy()
        dims = ("depth", "prompt", "feature")
        return xr.DataArray(states, dims=dims, coords={"depth": np.arange(len(first))})

    @property
    def router_margin(self) -> xr.DataArray | None:
        """How far the choice of experts is from changing (layer, prompt); None without experts.

        The Jacobians hold for the routing of the nominal run. The unit is the router's own: the
        gap in its logits (or corrected scores) between the last expert chosen and the first one
        left out; infinite in layers without experts, NaN where the router's rule is not known.
        """
        margin = np.empty((self.n_layers, self.n_prompts))
        for batch in self.batches:
            margins = batch.router_margin
            if margins is None:
                return None
            margin[:, batch.prompts] = margins.T.double().cpu().numpy()
        coords = {"layer": np.arange(self.n_layers)}
        return xr.DataArray(margin, dims=("layer", "prompt"), coords=coords)

    def jvp(self, layer: int, directions: Any, part: str = "block") -> torch.Tensor:
        """Jacobian of block ``layer`` times directions: (prompt, direction, feature)."""
        return self._each(layer, lambda block, d: block.jvp(d, part), directions)

    def vjp(self, layer: int, directions: Any, part: str = "block") -> torch.Tensor:
        """Transposed Jacobian of block ``layer`` times directions: (prompt, direction, feature)."""
        return self._each(layer, lambda block, d: block.vjp(d, part), directions)

    def jacobian(self, layer: int, chunk: int | None = None, part: str = "block") -> torch.Tensor:
        """Full Jacobian of block ``layer``: (prompt, state_next, state).

        ``chunk`` is the number of its rows that are computed at a time.
        """
        return self._each(layer, lambda block, _: block.jacobian(chunk, part), None)

    def transition(
        self, start: int, stop: int, directions: Any, *, adjoint: bool = False
    ) -> torch.Tensor:
        r"""Directions carried from depth to depth: :math:`A_{stop-1} \cdots A_{start} v`.

        With ``adjoint`` the directions live at depth ``stop`` and are carried back to ``start``
        by the transposed product. Shape (prompt, direction, feature). With start = stop the
        directions come back as they are.
        """
        if not 0 <= start <= stop <= self.n_layers:
            raise ValueError(
                f"`start` and `stop` must be depths with 0 <= start <= stop <= {self.n_layers}; "
                f"got {start} and {stop}. Use `adjoint=True` to go back."
            )

        def carry(batch, d):
            layers = range(start, stop)
            d = d.expand(len(batch.prompts), *d.shape[-2:])
            for layer in reversed(layers) if adjoint else layers:
                linear = batch.blocks[layer].linearised()
                d = linear.vjp(d) if adjoint else linear.jvp(d)
            return d

        return self._each_batch(carry, directions)

    def linear_operator(
        self, layer: int, prompt: int | None = None, part: str = "block"
    ) -> LinearOperator:
        """The Jacobian of block ``layer`` as a scipy LinearOperator (H, H); no H x H matrix.

        ``matvec`` and ``matmat`` are Jacobian-vector products (many columns at once),
        ``rmatvec`` and ``rmatmat`` transposed ones. ``prompt`` chooses one prompt of the run;
        None is the mean over its prompts. It works in the model's dtype on its device, takes and
        gives numpy arrays.
        """
        self._check_layer(layer)
        if prompt is not None and not 0 <= prompt < self.n_prompts:
            raise ValueError(
                f"`prompt` must be in 0..{self.n_prompts - 1}; got {prompt}. None is the mean."
            )
        blocks = [batch.blocks[layer] for batch in self.batches]
        if prompt is not None:
            blocks = [b.only(prompt) for b in blocks if prompt in b.prompts]
        return _MeanJacobian(blocks, part)

    def _check_layer(self, layer: int) -> None:
        if isinstance(layer, float) or not 0 <= layer < self.n_layers:
            raise ValueError(
                f"`layer` must be in 0..{self.n_layers - 1}; got {layer}. Layers are maps."
            )

    def _each(self, layer, function, directions) -> torch.Tensor:
        self._check_layer(layer)
        layer = operator.index(layer)
        return self._each_batch(lambda batch, d: function(batch.blocks[layer], d), directions)

    def _each_batch(self, function, directions) -> torch.Tensor:
        x = self.batches[0].x
        if directions is not None:
            directions = as_directions(directions, x)
            check_directions(directions, self.n_prompts, x.shape[-1])
        outputs: Any = None
        for batch in self.batches:
            rows = torch.as_tensor(batch.prompts, device=x.device)
            part = directions
            if directions is not None and directions.dim() == 3:
                part = directions[rows]
            result = function(batch, part)
            if outputs is None:
                outputs = result.new_empty((self.n_prompts, *result.shape[1:]))
            outputs[rows] = result
        return outputs
