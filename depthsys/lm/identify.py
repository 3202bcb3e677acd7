"""A model, prompts and a concept -> a low-order linear time-varying system."""

import json
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import xarray as xr

from depthsys import ltv
from depthsys.lm.model import DepthModel
from depthsys.lm.prompts import Texts
from depthsys.ltv.basis import orthonormal
from depthsys.ltv.matrix_free import beside

DEFAULT_ORDER = 32
RTOL = {"float32": 1e-5, "float64": 1e-9}
READOUTS = ("concept", "profile")


@dataclass(frozen=True)
class Krylov:
    """Propagated Krylov basis: concept direction first, then the most recent injections.

    ``V_k = orth[v_k, A_{k-1} v_{k-1}, A_{k-1} A_{k-2} v_{k-2}, ...]``, first ``order`` columns,
    and W = V, dependent columns left out. At depth k at most k + 1 directions exist: the
    coordinate ``order(depth)`` of the system says how many there are, so an order above L
    truncates nothing. Below that the error of this one-sided projection need not fall with every
    step of the order.

    Parameters
    ----------
    order
        Largest size of the reduced state; None means 32, or H if that is smaller.
    rtol
        A direction whose part outside the earlier ones is below ``rtol`` of its length is
        dependent on them and dropped; None means 1e-5 in float32 and 1e-9 in float64, where the
        Jacobian products end.
    """

    order: int | None = None
    rtol: float | None = None

    def checked_order(self, n_features: int) -> int:
        """The order for states in R^H; ValueError if it is not in 1..H."""
        if self.order is None:
            return min(DEFAULT_ORDER, n_features)
        if not 1 <= self.order <= n_features:
            raise ValueError(
                f"`order` must be in 1..{n_features}, the width of the model; got {self.order}. "
                "Ask for a smaller one."
            )
        return self.order


def identify(
    model: DepthModel,
    texts: Texts,
    concept: xr.Dataset,
    method: Krylov | None = None,
    *,
    readout: str = "concept",
    per_prompt: bool = False,
    keep_basis: bool = True,
) -> xr.Dataset:
    r"""Reduced system of the mean (or of each prompt's) frozen-context Jacobians.

    With :math:`\bar A_l` the mean over prompts of :math:`\partial f_l/\partial x` at the nominal
    state: :math:`\hat A_l = V_{l+1}^\top \bar A_l V_l`,
    :math:`\hat B_l = V_{l+1}^\top \bar A_l v_l`, :math:`\hat C_k = C_k V_k`.

    Parameters
    ----------
    model
        The model.
    texts
        The operating prompts.
    concept
        ``direction`` (depth, feature), unit length: injected at the input of each block, and
        read at the end.
    method
        The basis; `Krylov()` by default.
    readout
        "concept": ``y_L = v_L' x_L`` only; "profile": ``y_k = v_k' x_k`` for k = 1..L (the
        terminal gains are the same).
    per_prompt
        One system per prompt, with its own basis, along the batch dim ``prompt``.
    keep_basis
        Store ``V`` and ``W`` (depth, feature, state); for many prompts they are large.

    Returns
    -------
    xr.Dataset
        A system (see `ltv.system`) with ``V``, ``W``, ``v``; ``x_ref``, ``y_ref``, the nominal run
        in reduced coordinates; ``state_norm`` (depth), mean of ``||x_k||``; ``y_std``, standard
        deviation of the nominal readout y_L over prompts (not with ``per_prompt``);
        ``router_margin`` (layer) for models with experts, least over the prompts, see
        `Run.router_margin`; and ``gain_full`` (layer), the terminal gains of the same system
        before truncation. Full provenance in attrs.

    Notes
    -----
    One prefill of the prompts plus, at layer l, l + 1 Jacobian-vector products per prompt. No
    H x H matrix is formed and memory does not grow with the number of prompts (the output of
    ``per_prompt`` does).

    The full mean system restricted to what the injections can reach has at most L + 1 states per
    depth, so it is propagated whole, and truncation to ``order`` is a slice of it: this is why the
    exact gains before truncation cost nothing extra.
    """
    method = Krylov() if method is None else method
    order = method.checked_order(model.n_features)
    rtol = RTOL[model.dtype_name] if method.rtol is None else method.rtol
    method = replace(method, rtol=rtol)
    if readout not in READOUTS:
        raise ValueError(f"`readout` must be one of {READOUTS}; got {readout!r}. Pick one.")
    if len(texts) == 0:
        raise ValueError("`texts` must hold at least one prompt; got none. Split again.")
    v = model.directions(concept)
    if per_prompt:
        parts: list[xr.Dataset] = []
        rows: list[np.ndarray] = []
        for run in model.stream(texts, "identify"):
            parts.append(_systems(_identify_each(run, v, rtol), order, readout, keep_basis))
            rows.append(run.prompts)
        parts = _same_size(parts)
        system = xr.concat(parts, dim="prompt").isel(prompt=np.argsort(np.concatenate(rows)))
        system = system.assign_coords(prompt=np.arange(len(texts))).drop_vars("y_std")
    else:
        full = _identify_mean(model, texts, v, rtol)
        system = _systems(full, order, readout, keep_basis).isel(prompt=0)
    exact = concept["direction"].transpose("depth", "feature").values.astype(np.float64)
    system["v"] = (("depth", "feature", "input"), exact[:, :, None])
    system.attrs.update(_provenance(model, texts, concept, method, order, readout, per_prompt))
    return ltv.check(system)


@dataclass(frozen=True)
class _FullSystem:
    """What injections reach, before truncation, for a batch of P prompts (P = 1 for the mean).

    Q[k] (P, H, d_k) orthonormal, first column v_k, prompts with fewer directions padded with
    zero columns; A[l] (P, d_{l+1}, d_l); x[k] (P, H), the
    nominal state; y (P, prompts behind each system), the nominal readouts.
    """

    Q: list[np.ndarray]
    A: list[np.ndarray]
    x: list[np.ndarray]
    state_norm: np.ndarray
    y: np.ndarray
    router_margin: np.ndarray | None


def _identify_mean(model: DepthModel, texts: Texts, v: torch.Tensor, rtol: float) -> _FullSystem:
    directions = v.double().cpu().numpy()
    Q, A, x, norms = [directions[0][None, :, None]], [], [], []
    y = np.empty(len(texts))
    margin = np.full(model.n_layers, np.inf)
    for layer, blocks in model.sweep(texts, "identify"):
        columns = torch.as_tensor(Q[-1][0].T.copy()).to(v)
        image = np.zeros((model.n_features, columns.shape[0]))
        sums, norm = np.zeros((2, model.n_features)), np.zeros(2)
        for block in blocks:
            image += block.jvp(columns).double().sum(0).T.cpu().numpy()
            for i, state in enumerate((block.x, block.x_next)):
                sums[i] += state.double().sum(0).cpu().numpy()
                norm[i] += float(state.double().norm(dim=-1).sum())
            y[block.prompts] = (block.x_next.double() @ v[-1].double()).cpu().numpy()
            if block.router_margin is not None:
                margin[layer] = min(margin[layer], float(block.router_margin.min()))
        image /= len(texts)
        columns = beside(directions[layer + 1][:, None], image)
        Q.append(orthonormal(columns, model.n_features, rtol)[None])
        A.append(Q[-1][0].T @ image)
        x.append(sums[0] / len(texts))
        norms.append(norm[0] / len(texts))
        if layer == model.n_layers - 1:
            x.append(sums[1] / len(texts))
            norms.append(norm[1] / len(texts))
    return _FullSystem(
        Q,
        [a[None] for a in A],
        [s[None] for s in x],
        np.array(norms)[None],
        y[None],
        margin[None] if np.isfinite(margin).any() else None,
    )


def _identify_each(run, v: torch.Tensor, rtol: float) -> _FullSystem:
    directions = v.double().cpu().numpy()
    n_prompts = len(run.prompts)
    Q, A = [np.broadcast_to(directions[0][:, None], (n_prompts, directions.shape[1], 1))], []
    for block in run.blocks:
        columns = torch.as_tensor(np.swapaxes(Q[-1], 1, 2).copy()).to(v)
        image = np.swapaxes(block.jvp(columns).double().cpu().numpy(), 1, 2)
        first = directions[block.layer + 1][:, None]
        Q.append(orthonormal(beside(first, image), len(first), rtol))
        A.append(np.swapaxes(Q[-1], 1, 2) @ image)
    x = run.x.double().cpu().numpy()
    norms = np.linalg.norm(x, axis=-1).T
    margin = run.router_margin
    margin = None if margin is None else margin.double().cpu().numpy()
    return _FullSystem(Q, A, list(x), norms, (x[-1] @ directions[-1])[:, None], margin)


def _systems(full: _FullSystem, order: int, readout: str, keep_basis: bool) -> xr.Dataset:
    """Truncate to the first columns of Q and store as a Dataset with the batch dim prompt."""
    n_layers = len(full.A)
    sizes = np.array([min(order, q.shape[2]) for q in full.Q])
    n_prompts, size = full.Q[0].shape[0], int(sizes.max())
    A = np.zeros((n_prompts, n_layers, size, size))
    C = np.zeros((n_prompts, n_layers + 1, 1, size))
    for layer, a in enumerate(full.A):
        rows, columns = sizes[layer + 1], sizes[layer]
        A[:, layer, :rows, :columns] = a[:, :rows, :columns]
    # v_k is the first column of Q_k, so it is the first reduced coordinate
    B = A[:, :, :, :1].copy()
    C[:, (1 if readout == "profile" else n_layers) :, 0, 0] = 1.0
    system = ltv.system(A, B, C, batch_dims=["prompt"])
    found = [np.abs(q).max(axis=1).astype(bool).sum(axis=1) for q in full.Q]
    order_of = np.minimum(np.stack(found, axis=1), order)
    system = system.assign_coords(order=(("prompt", "depth"), order_of))
    V = np.zeros((n_prompts, n_layers + 1, full.Q[0].shape[1], size))
    for depth, q in enumerate(full.Q):
        V[:, depth, :, : sizes[depth]] = q[:, :, : sizes[depth]]
    x_ref = np.stack([np.einsum("pfr,pf->pr", V[:, k], x) for k, x in enumerate(full.x)], axis=1)
    system["x_ref"] = (("prompt", "depth", "state"), x_ref)
    system["y_ref"] = (("prompt", "depth", "output"), np.einsum("pkor,pkr->pko", C, x_ref))
    if keep_basis:
        system["V"] = (("prompt", "depth", "feature", "state"), V)
        system["W"] = system["V"].copy()
    system["gain_full"] = (("prompt", "layer"), _full_gains(full))
    system["state_norm"] = (("prompt", "depth"), full.state_norm)
    system["y_std"] = ("prompt", full.y.std(axis=1))
    if full.router_margin is not None:
        system["router_margin"] = (("prompt", "layer"), full.router_margin)
    return system


def _same_size(systems: list[xr.Dataset]) -> list[xr.Dataset]:
    """Pad the reduced states of several batches with zeros to one size."""
    size = max(s.sizes["state"] for s in systems)
    pads = [(0, size - s.sizes["state"]) for s in systems]
    return [
        s.pad(state=pad, state_next=pad, constant_values=0.0)
        for s, pad in zip(systems, pads, strict=True)
    ]


def _full_gains(full: _FullSystem) -> np.ndarray:
    n_layers = len(full.A)
    row = np.zeros((full.A[-1].shape[0], 1, full.A[-1].shape[1]))
    row[:, :, 0] = 1.0
    gains = np.empty((row.shape[0], n_layers))
    for layer in reversed(range(n_layers)):
        row = row @ full.A[layer]
        gains[:, layer] = row[:, 0, 0]  # B_l is the first column of A_l
    return gains


def _provenance(model, texts, concept, method, order, readout, per_prompt) -> dict:
    return {
        **model.provenance("identify"),
        "readout": readout,
        "concept": concept.attrs.get("method", "given"),
        "classes": concept.attrs.get("classes", "[]"),
        "method": type(method).__name__,
        "settings": json.dumps(asdict(method)),
        "order": order,
        "per_prompt": int(per_prompt),
        "n_prompts": len(texts),
        **model.which(texts),
        "step": "exact Jacobian (no step)",
    }
