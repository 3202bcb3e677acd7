"""Exact derivatives of one block on the last token; no model is known here.

A *block map* ``f`` takes states (prompt, copy, feature) to states of the same shape, copy by
copy; ``x`` (prompt, feature) is the nominal input. Derivatives are with respect to one copy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from depthsys.lm.at_once import less, too_much
from depthsys.lm.kinds import short
from depthsys.lm.switch import check_graph, products_in

# Rows (prompts x directions) that go through a block at once on the CPU: large enough for full
# matrix-product speed, small enough that the activations of a GPT-2-large block stay below 0.3 GB.
# An accelerator takes what its free memory allows where there are more; see `at_once`.
ROWS = 1024
# The same for full Jacobians, whose result needs memory too: half costs no time.
JACOBIAN_ROWS = 512

BlockMap = Callable[[torch.Tensor], torch.Tensor]
PARTS = ("block", "attention", "mlp")
KINDS = ("jacobian", "detached")
LINEAR = ("up", "gate")


@dataclass(frozen=True)
class Linearisation:
    r"""Which derivative of a block is meant; the one place where that is said.

    Functions take it, or the name of a part, as ``part``, and results carry it in attrs.

    Parameters
    ----------
    part
        "block"; or "attention" or "mlp", the Jacobian of the block when the other part's output is
        held at its nominal value. In a sequential block the two multiply, A = A_mlp A_attention;
        in a parallel one A = A_attention + A_mlp - I.
    kind
        "jacobian", the derivative; or "detached" [1]_, the derivative with the denominators of
        norms, the weights of attention and the gates of activations held at their values. Then the
        block is linear in what comes in and in its biases, so the detached map reproduces the
        block's value, where the Jacobian gives its change. It is not what a small push does.
    linear
        Of kind "detached", which factor of a gated MLP :math:`act(g) \odot u` stays linear: "up",
        u with act(g) held, or "gate", act(g) as g times its held ratio, with u held. A plain MLP
        has one choice only.

    Raises
    ------
    ValueError
        If there is no such part, kind or factor.

    References
    ----------
    .. [1] Golden (2025), Large Language Models are Locally Linear Mappings, arXiv:2505.24293.
    """

    part: str = "block"
    kind: str = "jacobian"
    linear: str = "up"

    def __post_init__(self):
        for name, known in {"part": PARTS, "kind": KINDS, "linear": LINEAR}.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"`{name}` must be one of {known}; got {short(value)}. Pick one.")

    @classmethod
    def of(cls, part: "str | Linearisation") -> "Linearisation":
        """From the name of a part, or as it is."""
        return part if isinstance(part, cls) else cls(part)  # pyright: ignore[reportArgumentType]

    @property
    def attrs(self) -> dict[str, str]:
        """What results say of it; nothing of the kind if it is the Jacobian."""
        if not self.is_detached:
            return {"part": self.part}
        return {"part": self.part, "linearisation": self.kind, "linear": self.linear}

    @property
    def is_detached(self) -> bool:
        """Whether it is the detached map."""
        return self.kind == "detached"


class Linearised:
    r"""A block map linearised at ``x``: products with its Jacobian for any number of directions.

    The map is evaluated once per prompt, and each product costs one matrix product per weight
    and direction. Transposed products are reverse-mode derivatives; since
    :math:`u \mapsto J^\top u` is linear, its own reverse-mode derivative is
    :math:`v \mapsto J v` (the "double backward" product, J. Townsend, 2017, "A new trick for
    calculating Jacobian vector products"). This needs no forward-mode rule of any operation, and
    the directions share everything that depends on ``x`` alone.

    Parameters
    ----------
    f
        A block map.
    x
        (prompt, feature).
    rows
        Tells how many rows (prompts x directions) go through at once, asked where there are many;
        None, or what it gives, says that the numbers of the CPU hold.
    products
        How products of float32 are made, see `depthsys.lm.switch`.

    Notes
    -----
    Forward mode (`torch.func.jvp` under vmap) spares the transposed map but takes twice as long
    where operations are small, and 1.1 to 1.4 times on the blocks of GPT-2 and SmolLM2 on a CPU:
    every operation passes two more layers of python. One direction per prompt goes without vmap.
    """

    def __init__(
        self,
        f: BlockMap,
        x: torch.Tensor,
        rows: Callable[[], int | None] | None = None,
        products: str = "float32",
    ):
        check_graph()
        self.x, self._rows, self._in = x, rows, products
        with (
            products_in(products),
            torch.enable_grad(),
            torch.autocast(x.device.type, enabled=False),
        ):
            self._x = x.detach()[:, None].clone().requires_grad_()
            self._y = f(self._x)

    @property
    def y(self) -> torch.Tensor:
        """The image of ``x`` (prompt, feature)."""
        return self._y.detach()[:, 0]

    def jvp(self, directions: torch.Tensor) -> torch.Tensor:
        r"""Products :math:`J v` (prompt, direction, feature), as `linearize.jvp`."""
        return self._products(*self._pull_back, directions)

    def vjp(self, directions: torch.Tensor) -> torch.Tensor:
        r"""Products :math:`J^\top w` (prompt, direction, feature), as `linearize.vjp`."""
        return self._products(self._y, self._x, directions)

    @cached_property
    def _pull_back(self) -> tuple[torch.Tensor, torch.Tensor]:
        """J'u and u, whose derivative is J; not needed by transposed products."""
        off = torch.autocast(self.x.device.type, enabled=False)
        with products_in(self._in), torch.enable_grad(), off:
            u = torch.zeros_like(self._y).requires_grad_()
            return torch.autograd.grad(self._y, self._x, u, create_graph=True)[0], u

    def rows_at_once(self, on_a_cpu: int) -> int:
        """How many rows (prompts x directions) go through at once."""
        told = None if self._rows is None else self._rows()
        return less(on_a_cpu) if told is None else told

    def _products(self, output, source, directions: torch.Tensor) -> torch.Tensor:
        n_prompts, _, n_features = self._x.shape
        check_directions(directions, n_prompts, n_features)
        count = directions.shape[-2]
        directions = directions.expand(n_prompts, count, n_features)
        if count == 1:  # nothing to share
            return self._product(output, source, directions.to(output.dtype))
        n_parts = 1
        if n_prompts * count > less(ROWS):
            n_parts = -(-n_prompts * count // self.rows_at_once(ROWS))
        outputs = []
        for part in directions.tensor_split(min(n_parts, count or 1), dim=1):
            seeds = part.transpose(0, 1)[:, :, None].to(output.dtype).contiguous()
            # not is_grads_batched: its older vmap loops over directions in many operations
            product = torch.func.vmap(lambda seed: self._product(output, source, seed))(seeds)
            outputs.append(product[:, :, 0].transpose(0, 1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _product(self, output, source, seed: torch.Tensor) -> torch.Tensor:
        with products_in(self._in), torch.autocast(seed.device.type, enabled=False):
            try:
                return torch.autograd.grad(output, source, seed, retain_graph=True)[0]
            except torch.OutOfMemoryError as error:
                raise too_much(seed, error) from error


def jvp(f: BlockMap, x: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    r"""Jacobian-vector products :math:`\partial f/\partial x\; v` for many directions.

    Parameters
    ----------
    f
        A block map.
    x
        (prompt, feature).
    directions
        (direction, feature), shared by all prompts, or (prompt, direction, feature).

    Returns
    -------
    torch.Tensor
        (prompt, direction, feature).
    """
    return Linearised(f, x).jvp(directions)


def vjp(f: BlockMap, x: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    r"""Vector-Jacobian products :math:`w^\top \partial f/\partial x` for many directions.

    Same shapes as `jvp`: (prompt, direction, feature) out.
    """
    return Linearised(f, x).vjp(directions)


def jacobian(linear: Linearised, chunk: int | None = None) -> torch.Tensor:
    """Full Jacobian of a block for every prompt: (prompt, state_next, state).

    ``chunk`` rows of each Jacobian are computed at a time (None: as many as make
    `JACOBIAN_ROWS` rows over all prompts, or fill an accelerator); fewer need less memory.
    """
    x = linear.x
    n_prompts, n_features = x.shape
    if chunk is not None and chunk < 1:
        raise ValueError(f"`chunk` must be >= 1 rows; got {chunk}. None chooses.")
    if chunk is None:
        chunk = max(1, linear.rows_at_once(JACOBIAN_ROWS) // max(1, n_prompts))
    size = min(chunk, n_features)
    identity = torch.eye(n_features, dtype=x.dtype, device=x.device)
    whole = x.new_empty(n_prompts, n_features, n_features)
    for start in range(0, n_features, size):
        whole[:, start : start + size] = linear.vjp(identity[start : start + size])
    return whole


def as_directions(directions: Any, like: torch.Tensor) -> torch.Tensor:
    """Real, finite directions as a tensor of the dtype and device of ``like``."""
    if not isinstance(directions, torch.Tensor):
        # torch takes no negative strides
        directions = torch.as_tensor(np.ascontiguousarray(directions))
    if directions.is_complex():
        raise TypeError(
            "`directions` must be real; got complex. Multiply the real and imaginary parts."
        )
    directions = directions.to(like)
    if not bool(torch.isfinite(directions).all()):
        raise ValueError("`directions` must be finite; got NaN or infinity. Leave those out.")
    return directions


def check_directions(directions: torch.Tensor, n_prompts: int, n_features: int) -> None:
    """ValueError unless these are (direction, feature) or (prompt, direction, feature)."""
    shape = tuple(directions.shape)
    if directions.dim() == 1:
        raise ValueError(
            f"`directions` must be rows, (direction, feature); got shape {shape}. "
            "Write v[None] for one direction."
        )
    if directions.dim() not in (2, 3) or shape[-1] != n_features:
        raise ValueError(
            f"`directions` must have {n_features} features in the last dim, (direction, feature) "
            f"or (prompt, direction, feature); got shape {shape}. Transpose them: one direction "
            "per row."
        )
    if directions.dim() == 3 and shape[0] != n_prompts:
        raise ValueError(
            f"`directions` must be for {n_prompts} prompts; got shape {shape}. Leave the prompt "
            "dim out to share them."
        )
