r"""The full-order system in few coordinates: what inputs reach and outputs see, exactly.

A system with m inputs per layer reaches at most ``(k + 1) m`` directions at depth k, and p outputs
see at most ``(L + 1 - k) p``. With orthonormal ``E_k`` that hold the one or the other, the system
``E_{k+1}' A_k E_k, E_{k+1}' B_k, C_k E_k`` has exactly the input-output map of the full one, so all
of `depthsys.ltv` can be done on it. Only Jacobian products with E are made, never an H x H matrix.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from depthsys import ltv
from depthsys.lm.frozen import FrozenBlock, FrozenRun
from depthsys.lm.linearize import squeezed
from depthsys.lm.model import DepthModel
from depthsys.lm.nominal import EachNominal, MeanNominal, Setting, nominal_run
from depthsys.lm.prompts import Texts
from depthsys.lm.readouts import LogitDifference
from depthsys.lm.sweep import Sweep
from depthsys.ltv.basis import extended, orthonormal, packing
from depthsys.ltv.matrix_free import beside, stacked, transposed

# (prompt, depth, feature, column): directions that E must hold too; one prompt for a mean system
Columns = np.ndarray
Product = Callable[[Any, np.ndarray], np.ndarray]


def exact_system(
    model: DepthModel,
    texts: Texts,
    concept: xr.Dataset,
    *,
    inputs: str = "concept",
    readout: str | LogitDifference | xr.DataArray = "concept",
    observable: bool = True,
    rtol: float | None = None,
) -> xr.Dataset:
    """The full-order system of the mean Jacobians in the few coordinates that matter, exactly.

    Nothing is truncated: the input-output map is that of the H-dimensional system, so every
    function of `depthsys.ltv` (Hankel singular values, bounds, bases, `compare`) can be used.

    Parameters
    ----------
    model, texts, concept, inputs, readout
        See `identify`.
    observable
        Hold what the outputs see beside what the inputs reach. The map is exact without it; with
        it the observability Gramian and the bases made of it are those of R^H, too.
    rtol
        Directions whose part outside the earlier ones is below ``rtol`` of their length count as
        dependent; None means 1e-5 in float32 and 1e-9 in float64.

    Returns
    -------
    xr.Dataset
        A system with the orthonormal ``V`` = ``W`` (depth, feature, state) and what `identify`
        says of the nominal run.

    Notes
    -----
    One prefill and, per layer, a product for each reached direction; with ``observable`` a second
    pass and a transposed product for each coordinate. Memory does not grow with the prompts.
    """
    setting = Setting.checked(model, concept, inputs, readout, rtol)
    system = restricted_mean(setting, texts, observable=observable)
    return system.assign_attrs(setting.attrs("exact_system", texts, concept))


# ------------------------------------------------------------------- the mean of many prompts


def restricted_mean(
    setting: Setting, texts: Texts, *, observable: bool, columns: Columns | None = None
) -> xr.Dataset:
    """`exact_system`, with further directions (1, depth, feature, column) held by E."""
    model = setting.model
    nominal = MeanNominal(setting, len(texts))
    backward = observable or setting.free

    def jvp(layer, Q: np.ndarray) -> np.ndarray:
        return _mean_product(nominal.watched(layer), "jvp", Q, model, len(texts))

    def vjp(layer, Q: np.ndarray) -> np.ndarray:
        return _mean_product(layer, "vjp", Q, model, len(texts))

    with Sweep(model, texts, keep=backward) as sweep:
        layers = sweep.forward("identify")
        small = _forward(setting, 1, layers, jvp, None if backward else columns)
        if backward:
            layers = sweep.backward("identify, backwards")
            small = _backward(setting, small, layers, vjp, nominal.all_rows, columns)
    return _dataset(setting, small, nominal)


def _mean_product(blocks: Iterable[FrozenBlock], name: str, Q: np.ndarray, model, count):
    """Mean over prompts of products with (1, feature, column)."""
    columns = torch.as_tensor(Q[0].T.copy()).to(model.device, model.dtype)
    total = np.zeros(Q[0].shape)
    for block in blocks:
        if columns.shape[0]:
            total += getattr(block, name)(columns).double().sum(0).T.cpu().numpy()
    return total[None] / count


# ------------------------------------------------------------------------- prompt by prompt


def restricted_each(
    setting: Setting, run: FrozenRun, *, observable: bool, columns: Columns | None = None
) -> xr.Dataset:
    """`exact_system` of every prompt of a batch, along the batch dim ``prompt``."""
    nominal = EachNominal(setting, run)
    linear = [block.linearised() for block in run.blocks]

    def product(name: str) -> Product:
        def apply(block: FrozenBlock, Q: np.ndarray) -> np.ndarray:
            if Q.shape[-1] == 0:
                return Q
            rows = torch.as_tensor(transposed(Q).copy()).to(block.x)
            found = getattr(linear[block.layer], name)(rows)
            return transposed(found.double().cpu().numpy())

        return apply

    backward = observable or setting.free
    early = None if backward else columns
    small = _forward(setting, len(run.prompts), run.blocks, product("jvp"), early)
    if backward:
        blocks = reversed(run.blocks)
        small = _backward(setting, small, blocks, product("vjp"), nominal.all_rows, columns)
    return _dataset(setting, small, nominal)


# ---------------------------------------------------------------------------- the recursion


@dataclass(frozen=True)
class _Small:
    """E[k] (prompt, feature, q_k) orthonormal, A[l] (prompt, q_{l+1}, q_l), B[l] likewise."""

    E: list[np.ndarray]
    A: list[np.ndarray]
    B: list[np.ndarray]


def _forward(setting, n_prompts: int, layers, jvp: Product, columns=None) -> _Small:
    """E_k = orth[v_k, A_{k-1} E_{k-1} as far as it is reached, columns_k], layer by layer."""
    v, width = setting.inputs, setting.model.n_features
    E, A, image = [], [], np.empty(0)
    reached = np.zeros((n_prompts, width, 0))
    for k in range(setting.model.n_layers + 1):
        driven = (
            reached
            if v is None
            else beside(np.broadcast_to(v[k], (n_prompts, *v[k].shape)), reached)
        )
        reached = orthonormal(driven, width, setting.rtol)
        E.append(reached if columns is None else extended(reached, columns[:, k], setting.rtol))
        if k > 0:
            A.append(transposed(E[k]) @ image)
        if k < setting.model.n_layers:
            image = jvp(_next(layers, k), E[k])
            reached = image[..., : reached.shape[-1]]
    return _Small(E, A, [])


def _backward(setting, small: _Small, layers, vjp: Product, rows, columns) -> _Small:
    """Extend E_k by ``columns_k`` and by what the outputs see, ``[A_k' S_{k+1}, C_k']``."""
    width, rtol = setting.model.n_features, setting.rtol
    L = setting.model.n_layers
    E: list[np.ndarray] = [np.empty(0)] * (L + 1)
    A, B, seen, pulled = [], [], None, np.empty(0)
    for k in reversed(range(L + 1)):
        read = transposed(rows[k])
        seen = orthonormal(beside(read, seen), width, rtol)
        held = small.E[k]
        if columns is not None:
            held = extended(held, columns[:, k], rtol)
        E[k] = extended(held, seen, rtol)
        if k < L:
            A.insert(0, transposed(pulled) @ E[k])
        if k > 0:
            pulled = vjp(_next(layers, k - 1), E[k])
            seen = pulled @ (transposed(E[k]) @ seen)
            if setting.free:
                B.insert(0, transposed(pulled))
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
    orders = [packing(E) for E in small.E]
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


def _dataset(setting: Setting, small: _Small, nominal: Any) -> xr.Dataset:
    """The restricted system with the batch dim prompt, or without it for a mean."""
    small = _packed(small, setting.inputs)
    rows, x = nominal.all_rows, nominal.x
    size = max(1, *(e.shape[-1] for e in small.E))
    C = stacked([r @ e for r, e in zip(rows, small.E, strict=True)], rows.shape[2], size)
    V = stacked(small.E, setting.model.n_features, size)
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
    if setting.inputs is not None:
        system["v"] = (("depth", "feature", "input"), np.stack(setting.inputs))
    about = nominal_run(nominal)
    about["gain_full"] = squeezed(
        ltv.gains(system).transpose("prompt", "layer", "output", "input").values,
        *("prompt", "layer", "output", "input"),
    )
    system = system.assign(about)
    if isinstance(nominal, MeanNominal):
        return system.isel(prompt=0)
    return system
