r"""Orthonormal columns that grow with depth: on the host, or on an accelerator without waiting.

The host leaves dependent directions out, so a shape depends on numbers. An accelerator works behind
the host, which would have to wait for it at every layer to learn such a shape. There dependent
directions become columns of zeros instead, and shapes depend on nothing: the new part of a block of
columns is found by projection and Householder QR, which reads no number back, and what is dependent
by the diagonal of R. A dependent column between independent ones spoils those behind it; that it
happened is noted on the device and read with the results, and the work is then done on the host.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from depthsys.lm.channels import Channels
from depthsys.lm.lockstep import Steps
from depthsys.lm.to_host import to_host
from depthsys.ltv.basis import extended, orthonormal, packing
from depthsys.ltv.matrix_free import beside, transposed

# Shorter columns are none.
TINY = 1e-140
# (prompt, depth, feature, column): directions of a task; one prompt for a mean system
Columns = np.ndarray


def found_with(
    channels: Channels,
    n_prompts: int,
    columns: Columns | None,
    work: Callable[[Any], Steps[Sequence[Any]]],
) -> Steps[Sequence[np.ndarray]]:
    """What steps make with `OnDevice` or `OnHost`: with the latter on a CPU or in trouble."""
    if channels.model.device.type != "cpu":
        kit = OnDevice(channels, n_prompts, columns)
        *found, trouble = to_host([*(yield from work(kit)), kit.trouble])
        if not trouble.any():
            return found
    return (yield from work(OnHost(channels, n_prompts, columns)))


class OnHost:
    """Columns as arrays (prompt, feature, column); a dependent one is left out."""

    def __init__(self, channels: Channels, n_prompts: int, columns: Columns | None):
        self._channels, self._n_prompts, self._columns = channels, n_prompts, columns
        self._width, self._rtol = channels.model.n_features, channels.rtol

    def nothing(self) -> np.ndarray:
        """No columns."""
        return np.zeros((self._n_prompts, self._width, 0))

    def rows(self, Q: np.ndarray) -> torch.Tensor:
        """Columns as rows (prompt, column, feature) for products."""
        model = self._channels.model
        return torch.as_tensor(transposed(Q).copy()).to(model.device, model.dtype)

    def columns_of(self, products: torch.Tensor) -> np.ndarray:
        """Products (prompt, column, feature) as columns."""
        return transposed(products.double().cpu().numpy())

    def rows_read(self, nominal: Any) -> np.ndarray:
        """C_k (depth, prompt, output, feature)."""
        return nominal.all_rows

    def driven(self, depth: int, reached: np.ndarray) -> np.ndarray:
        """orth[v_k, reached], as far as there are inputs."""
        v = self._channels.inputs
        if v is not None:
            start = np.broadcast_to(v[depth], (self._n_prompts, *v[depth].shape))
            reached = beside(start, reached)
        return orthonormal(reached, self._width, self._rtol)

    def seen(self, depth: int, read: np.ndarray, seen: np.ndarray | None) -> np.ndarray:
        """orth[C_k', seen]."""
        return orthonormal(beside(read, seen), self._width, self._rtol)

    def extended(self, Q: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Q and what is new in the columns."""
        return extended(Q, columns, self._rtol)

    def with_task(self, depth: int, Q: np.ndarray) -> np.ndarray:
        """Q and what is new in the columns of the task at that depth."""
        return Q if self._columns is None else self.extended(Q, self._columns[:, depth])

    def powers(self, depth: int, product: Callable, size: int) -> np.ndarray:
        """orth[v, A v, A^2 v, ...] up to ``size`` columns, v being the directions at a depth."""
        v = transposed(self._channels.v[depth].double().cpu().numpy())
        start = np.broadcast_to(v, (self._n_prompts, *v.shape))
        basis = orthonormal(start, size, self._rtol)
        done = 0
        while done < basis.shape[-1] and (basis != 0).any(-2).sum(-1).min() < size:
            basis = self.extended(basis, product(basis[..., done : done + 1]))
            done += 1
        return np.take_along_axis(basis, packing(basis)[..., None, :], axis=-1)[..., :size]


class OnDevice:
    """Columns as float64 tensors (prompt, feature, column); a dependent one is zero."""

    def __init__(self, channels: Channels, n_prompts: int, columns: Columns | None):
        self._channels, self._n_prompts = channels, n_prompts
        self._model, self._rtol = channels.model, channels.rtol
        self._trouble: list[torch.Tensor] = []
        v = channels.v.double().cpu().numpy().swapaxes(1, 2)
        # which directions there are, and which of them are dependent, is known here
        self._v = self._on_device([orthonormal(each, len(each), self._rtol) for each in v])
        self._columns = None
        if columns is not None:
            each = columns.swapaxes(0, 1)
            exists = [np.flatnonzero((c != 0).any((0, 1))) for c in each]
            kept = [c[..., : at.max(initial=-1) + 1] for c, at in zip(each, exists, strict=True)]
            self._columns = self._on_device(kept)

    def _on_device(self, arrays: list[np.ndarray]) -> list[torch.Tensor]:
        """Columns of every depth, in one copy; without a dim prompt they are for all prompts."""
        flat = np.concatenate([array.ravel() for array in arrays])
        moved = torch.as_tensor(flat, device=self._model.device)
        parts = moved.split([array.size for array in arrays])
        views = [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
        return [view.expand(self._n_prompts, *view.shape[-2:]) for view in views]

    @property
    def trouble(self) -> torch.Tensor:
        """Whether a dependent column came before an independent one, on the device."""
        if not self._trouble:
            return torch.zeros(1, device=self._model.device)
        return torch.stack(self._trouble).any()

    def nothing(self) -> torch.Tensor:
        """No columns."""
        shape = (self._n_prompts, self._model.n_features, 0)
        return torch.zeros(shape, dtype=torch.float64, device=self._model.device)

    def rows(self, Q: torch.Tensor) -> torch.Tensor:
        """Columns as rows (prompt, column, feature) for products."""
        return Q.mT.to(self._model.dtype)

    def columns_of(self, products: torch.Tensor) -> torch.Tensor:
        """Products (prompt, column, feature) as columns."""
        return products.double().mT

    def rows_read(self, nominal: Any) -> torch.Tensor:
        """C_k (depth, prompt, output, feature)."""
        return nominal.rows

    def driven(self, depth: int, reached: torch.Tensor) -> torch.Tensor:
        """orth[v_k, reached], as far as there are inputs."""
        start = self.nothing() if self._channels.free else self._v[depth]
        # no more than that can be new, and what is new comes first
        room = self._model.n_features - start.shape[-1]
        new = self._new(start, reached, is_whole=True)[..., :room]
        return torch.cat([start, new], dim=-1)

    def seen(self, depth: int, read: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """orth[C_k', seen]."""
        first = self.nothing()
        if depth in self._channels.readout.depths:
            first = self._new(first, read)
        return first if seen is None else self.extended(first, seen)

    def extended(self, Q: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Q and what is new in the columns."""
        return torch.cat([Q, self._new(Q, columns)], dim=-1)

    def with_task(self, depth: int, Q: torch.Tensor) -> torch.Tensor:
        """Q and what is new in the columns of the task at that depth."""
        return Q if self._columns is None else self.extended(Q, self._columns[depth])

    def powers(self, depth: int, product: Callable, size: int) -> torch.Tensor:
        """orth[v, A v, A^2 v, ...] up to ``size`` columns, v being the directions at a depth."""
        basis = self._v[depth][..., :size]
        n_inputs = basis.shape[-1]
        for done in range(size - n_inputs if n_inputs else 0):
            basis = self.extended(basis, product(basis[..., done : done + 1]))
            if n_inputs > 1:  # the powers of the others would have gone on in its place
                self._trouble.append((basis[..., -1] == 0).all(-1).any())
        return basis

    def _new(
        self, Q: torch.Tensor, columns: torch.Tensor, *, is_whole: bool = False
    ) -> torch.Tensor:
        """Orthonormal columns for what is outside Q, dependent ones zero and last."""
        n_features, count = columns.shape[-2:]
        if count > n_features:
            first = self._new(Q, columns[..., :n_features])
            both = torch.cat([Q, first], dim=-1)
            return torch.cat([first, self._new(both, columns[..., n_features:])], dim=-1)
        if count == 0:
            return columns
        new, trouble = new_columns(Q, columns, self._rtol, is_whole=is_whole)
        if trouble is not None:
            self._trouble.append(trouble)
        return new


def new_columns(
    Q: torch.Tensor, columns: torch.Tensor, rtol: float, *, is_whole: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Orthonormal columns for what is outside of Q, without a wait.

    Parameters
    ----------
    Q
        (prompt, feature, column), orthonormal columns and zero ones.
    columns
        Likewise; not more of them than features.
    rtol
        A column is dependent on Q and the columns before it if what is outside of their span is
        below ``rtol`` of its length.
    is_whole
        Q has no zero columns, so that one QR of all columns does.

    Returns
    -------
    tuple
        As many columns, dependent ones zero and moved to the end; and whether a column that is
        dependent only together with others came before an independent one: then those behind it
        are not to be trusted.
    """
    unit = normalize(columns, dim=-2, eps=TINY)
    rest = _outside(Q, unit)
    if columns.shape[-1] == 1:
        rest = _outside(Q, rest)
        size = torch.linalg.vector_norm(rest, dim=-2, keepdim=True)
        return torch.where(size > rtol, rest / size, 0.0), None
    # what Q holds already goes to the end, where what QR makes of it spoils nothing
    is_old = torch.linalg.vector_norm(rest, dim=-2) <= rtol
    order = torch.argsort(is_old.to(torch.int8), dim=-1, stable=True)
    order = order[..., None, :].expand_as(rest)
    held, room = Q.shape[-1], Q.shape[-2] - columns.shape[-1]
    if held == 0 or (is_whole and held <= room):
        new, R = torch.linalg.qr(torch.cat([Q, unit.gather(-1, order)], dim=-1))
        new, part = new[..., held:], R.diagonal(dim1=-2, dim2=-1)[..., held:]
    else:
        new, R = torch.linalg.qr(rest.gather(-1, order))
        part = R.diagonal(dim1=-2, dim2=-1)
        # what rounding has left of Q in it
        new, R = torch.linalg.qr(_outside(Q, new))
        part = part * R.diagonal(dim1=-2, dim2=-1)
    found = part.abs() > rtol
    trouble = (found[..., 1:] > found[..., :-1]).any()
    # along the columns, not against them
    return new * torch.where(found, part.sign(), 0.0)[..., None, :], trouble


def _outside(Q: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """What is outside of the span of Q."""
    if not Q.shape[-1]:
        return columns
    return torch.baddbmm(columns, Q, Q.mT @ columns, alpha=-1)
