r"""The full-order system in few coordinates: what inputs reach and outputs see, exactly.

A system with m inputs per layer reaches at most ``(k + 1) m`` directions at depth k, and p outputs
see at most ``(L + 1 - k) p``. With orthonormal ``E_k`` that hold the one or the other, the system
``E_{k+1}' A_k E_k, E_{k+1}' B_k, C_k E_k`` has exactly the input-output map of the full one, so all
of `depthsys.ltv` can be done on it. Only Jacobian products with E are made, never an H x H matrix.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from depthsys import ltv
from depthsys.lm.channels import Channels
from depthsys.lm.frozen import FrozenBlock, FrozenRun
from depthsys.lm.gains import squeezed
from depthsys.lm.linearize import Linearisation
from depthsys.lm.lockstep import Steps, finished
from depthsys.lm.nominal import EachNominal, MeanNominal, NominalSums, nominal_run
from depthsys.lm.of_run import of_run
from depthsys.lm.orthonormal import Columns, found_with
from depthsys.lm.readouts import ReadoutLike
from depthsys.lm.run import Run
from depthsys.lm.shards import ShardedLayer, summed
from depthsys.lm.sweep import Layer
from depthsys.ltv.basis import packing
from depthsys.ltv.matrix_free import stacked, transposed

# arrays of numpy with the one, tensors of torch with the other
Kit = Any  # OnHost or OnDevice
Product = Callable[[Any, Any], Any]


@of_run(once=False, shards=True)
def exact_system(
    run: Run,
    concept: xr.Dataset,
    *,
    inputs: str = "concept",
    readout: ReadoutLike = "concept",
    observable: bool = True,
    rtol: float | None = None,
    part: str | Linearisation = "block",
) -> xr.Dataset:
    """The full-order system of the mean Jacobians in the few coordinates that matter, exactly.

    Nothing is truncated: the input-output map is that of the H-dimensional system, so every
    function of `depthsys.ltv` (Hankel singular values, bounds, bases, `compare`) can be used.

    Parameters
    ----------
    run, concept, inputs, readout, part
        See `identify`.
    observable
        Hold what the outputs see beside what the inputs reach. The map is exact without it; with
        it the observability Gramian and the bases made of it are those of R^H, too.
    rtol
        Directions whose part outside the earlier ones is below ``rtol`` of their length count as
        dependent; None means 1e-5 in float32, 1e-9 in float64, and the rounding of 16 bits.

    Returns
    -------
    xr.Dataset
        A system with the orthonormal ``V`` = ``W`` (depth, feature, state) and what `identify`
        says of the nominal run.

    Notes
    -----
    Per layer a product for each reached direction; with ``observable`` also a transposed product
    for each coordinate.
    """
    channels = Channels.checked(run.model, concept, inputs, readout, rtol, part)
    system = restricted_mean(channels, run, observable=observable)
    return system.assign_attrs(channels.attrs("exact_system", run, concept))


# ------------------------------------------------------------------- the mean of many prompts


def restricted_mean(
    channels: Channels, run: Run, *, observable: bool, columns: Columns | None = None
) -> xr.Dataset:
    """`exact_system`, with further directions (1, depth, feature, column) held by E."""
    backward = observable or channels.free
    nominal = MeanNominal(channels, len(run))

    def work(kit: Kit) -> Steps[list[Any]]:
        nonlocal nominal
        nominal = MeanNominal(channels, len(run))

        def jvp(layer, Q):
            return _mean_product(layer, "jvp", Q, channels, kit, len(run), nominal)

        def vjp(layer, Q):
            return _mean_product(layer, "vjp", Q, channels, kit, len(run))

        with run.sweep(keep=backward) as sweep:
            layers = sweep.forward("identify")
            small = finished(_forward(channels, kit, layers, jvp, with_task=not backward))
            if backward:
                layers, rows = sweep.backward("identify, backwards"), kit.rows_read(nominal)
                small = finished(_backward(channels, kit, small, layers, vjp, rows))
        return small.matrices
        yield  # the sweep itself brings the layers in

    found = finished(found_with(channels, 1, columns, work))
    return _dataset(channels, _Small.of(found, channels.model.n_layers), nominal)


def _mean_product(
    layer: Layer | ShardedLayer,
    name: str,
    Q: Any,
    channels: Channels,
    kit: Kit,
    count: int,
    nominal: MeanNominal | None = None,
) -> Any:
    """Mean over prompts of products with (1, feature, column); notes the nominal states."""
    rows = kit.rows(Q)[0]
    if isinstance(layer, ShardedLayer):
        total = _all_products(layer, name, rows, channels, nominal)
    else:
        blocks = layer if nominal is None else nominal.watched(layer)
        total = _products(blocks, name, rows, channels)
    return kit.columns_of(total[None]) / count


def _all_products(
    layer: ShardedLayer,
    name: str,
    rows: torch.Tensor,
    channels: Channels,
    nominal: MeanNominal | None,
) -> torch.Tensor:
    """Sum over the prompts of all shards, in their order."""
    totals = []
    found = layer.each(_of_shard, name, rows, channels, nominal is not None)
    for shard, (total, sums) in zip(layer.run.shards, found, strict=True):
        totals.append(total)
        if nominal is not None:
            nominal.sums.add(sums, shard.start)
    return summed(layer.run, iter(totals))


def _of_shard(
    layer: Layer, name: str, rows: torch.Tensor, channels: Channels, watch: bool
) -> tuple[torch.Tensor, NominalSums | None]:
    """Sum over the prompts of one shard of products, and of its nominal states."""
    if not watch:
        return _products(layer, name, rows, channels), None
    sums = NominalSums.at_layer(channels, layer.layer)
    return _products(sums.watched(channels, layer), name, rows, channels), sums


def _products(
    blocks: Iterable[FrozenBlock], name: str, rows: torch.Tensor, channels: Channels
) -> torch.Tensor:
    """Sum over prompts of products with rows (direction, feature)."""
    total = torch.zeros(rows.shape, dtype=torch.float64, device=rows.device)
    for block in blocks:
        if len(rows):
            product = getattr(block.linearised(channels.kind), name)(rows)
            total += product.sum(0, dtype=torch.float64)
    return total


# ------------------------------------------------------------------------- prompt by prompt


def restricted_each(
    channels: Channels, batch: FrozenRun, *, observable: bool, columns: Columns | None = None
) -> Steps[xr.Dataset]:
    """`exact_system` of every prompt of a batch, along the batch dim ``prompt``, in steps."""
    nominal = EachNominal(channels, batch)
    moves = channels.model.blocks.residence.moves
    # what is linearised holds the weights: where they come and go it is made anew on the way back
    linear = [] if moves else [block.linearised(channels.kind) for block in batch.blocks]
    backward = observable or channels.free

    def work(kit: Kit) -> Steps[list[Any]]:
        def product(name: str) -> Product:
            def apply(block: FrozenBlock, Q: Any) -> Any:
                if Q.shape[-1] == 0:
                    return Q
                here = block.linearised(channels.kind) if moves else linear[block.layer]
                return kit.columns_of(getattr(here, name)(kit.rows(Q)))

            return apply

        jvp, vjp = product("jvp"), product("vjp")
        small = yield from _forward(channels, kit, batch.blocks, jvp, with_task=not backward)
        if backward:
            blocks, rows = reversed(batch.blocks), kit.rows_read(nominal)
            small = yield from _backward(channels, kit, small, blocks, vjp, rows)
        return small.matrices

    found = yield from found_with(channels, len(batch.prompts), columns, work)
    return _dataset(channels, _Small.of(found, channels.model.n_layers), nominal)


# ---------------------------------------------------------------------------- the recursion


@dataclass(frozen=True)
class _Small:
    """E[k] (prompt, feature, q_k) orthonormal, A[l] (prompt, q_{l+1}, q_l), B[l] likewise."""

    E: list[Any]
    A: list[Any]
    B: list[Any]

    @property
    def matrices(self) -> list[Any]:
        """All of them in one list."""
        return [*self.E, *self.A, *self.B]

    @classmethod
    def of(cls, matrices: Sequence[np.ndarray], n_layers: int) -> "_Small":
        """From `matrices`."""
        first, second = n_layers + 1, 2 * n_layers + 1
        given = list(matrices)
        return cls(given[:first], given[first:second], given[second:])


def _forward(channels, kit: Kit, layers, jvp: Product, *, with_task: bool) -> Steps[_Small]:
    """E_k = orth[v_k, A_{k-1} E_{k-1} as far as it is reached, columns_k], layer by layer."""
    E, A, image = [], [], kit.nothing()
    reached = kit.nothing()
    for k in range(channels.model.n_layers + 1):
        reached = kit.driven(k, reached)
        E.append(kit.with_task(k, reached) if with_task else reached)
        if k > 0:
            A.append(E[k].mT @ image)
        if k < channels.model.n_layers:
            yield k
            image = jvp(_next(layers, k), E[k])
            reached = image[..., : reached.shape[-1]]
    return _Small(E, A, [])


def _backward(channels, kit: Kit, small: _Small, layers, vjp: Product, rows) -> Steps[_Small]:
    """Extend E_k by ``columns_k`` and by what the outputs see, ``[A_k' S_{k+1}, C_k']``."""
    L = channels.model.n_layers
    E: list[Any] = [None] * (L + 1)
    A, B, seen, pulled = [], [], None, kit.nothing()
    for k in reversed(range(L + 1)):
        seen = kit.seen(k, rows[k].mT, seen)
        E[k] = kit.extended(kit.with_task(k, small.E[k]), seen)
        if k < L:
            A.insert(0, pulled.mT @ E[k])
        if k > 0:
            yield k - 1
            pulled = vjp(_next(layers, k - 1), E[k])
            seen = pulled @ (E[k].mT @ seen)
            if channels.free:
                B.insert(0, pulled.mT)
    return _Small(E, A, B)


def _next(layers, index: int):
    """The layer with that number, from a list of blocks or a sweep that comes to it now."""
    if isinstance(layers, list):
        return layers[index]
    layer = next(layers)
    if layer.layer != index:
        raise RuntimeError(f"layer {index} was expected, {layer.layer} came")
    return layer


def _packed(small: _Small, v: list[np.ndarray] | None) -> _Small:
    """Columns that exist first, for every prompt of a batch; and B_l = A_l (E_l' v_l)."""
    orders = []
    for e in small.E:
        most = (e != 0).any(-2).sum(-1).max(initial=0)
        orders.append(packing(e)[:, :most])
    E = [np.take_along_axis(e, o[:, None], axis=-1) for e, o in zip(small.E, orders, strict=True)]
    A = []
    for layer, a in enumerate(small.A):
        a = np.take_along_axis(a, orders[layer][:, None], axis=-1)
        A.append(np.take_along_axis(a, orders[layer + 1][..., None], axis=-2))
    if v is not None:
        B = [a @ (transposed(e) @ w) for a, e, w in zip(A, E, v, strict=False)]
    else:
        B = [
            np.take_along_axis(b, orders[layer + 1][..., None], axis=-2)
            for layer, b in enumerate(small.B)
        ]
    return _Small(E, A, B)


def _dataset(channels: Channels, small: _Small, nominal: Any) -> xr.Dataset:
    """The restricted system with the batch dim prompt, or without it for a mean."""
    small = _packed(small, channels.inputs)
    rows, x = nominal.all_rows, nominal.x
    size = max(1, *(e.shape[-1] for e in small.E))
    C = stacked([r @ e for r, e in zip(rows, small.E, strict=True)], rows.shape[2], size)
    V = stacked(small.E, channels.model.n_features, size)
    system = ltv.system(
        stacked(small.A, size, size),
        stacked(small.B, size, small.B[0].shape[-1]),
        C,
        batch_dims=["prompt"],
    )
    order = (V != 0).any(axis=-2).sum(axis=-1)
    system = system.assign_coords(order=(("prompt", "depth"), order))
    system["V"] = (("prompt", "depth", "feature", "state"), V)
    system["W"] = system["V"].copy()
    x_ref = np.stack(
        [np.einsum("pfr,pf->pr", e, s) for e, s in zip(V.swapaxes(0, 1), x, strict=True)], axis=1
    )
    system["x_ref"] = (("prompt", "depth", "state"), x_ref)
    if channels.inputs is not None:
        system["v"] = (("depth", "feature", "input"), np.stack(channels.inputs))
    about = nominal_run(nominal)
    about["gain_full"] = squeezed(
        ltv.gains(system).transpose("prompt", "layer", "output", "input").values,
        *("prompt", "layer", "output", "input"),
    )
    system = system.assign(about)
    if isinstance(nominal, MeanNominal):
        return system.isel(prompt=0)
    return system
