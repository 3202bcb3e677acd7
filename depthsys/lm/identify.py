"""A model, prompts and a concept -> a low-order linear time-varying system."""

import json
from dataclasses import asdict, dataclass

import numpy as np
import torch
import xarray as xr

from depthsys import ltv
from depthsys.lm.model import DepthModel
from depthsys.lm.prompts import Texts

DEFAULT_ORDER = 32
READOUTS = ("concept", "profile")


@dataclass(frozen=True)
class Krylov:
    """Propagated Krylov basis: concept direction first, then the most recent injections.

    ``V_k = orth[v_k, A_{k-1} v_{k-1}, A_{k-1} A_{k-2} v_{k-2}, ...]``, first ``order`` columns,
    and W = V. At depth k at most k + 1 directions exist: the coordinate ``order(depth)`` of the
    system says how many there are, so an order above L truncates nothing. Below that the error of
    this one-sided projection need not fall with every step of the order.

    Parameters
    ----------
    order
        Largest size of the reduced state; None means 32, or H if that is smaller.
    """

    order: int | None = None

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
        deviation of the nominal readout y_L over prompts (not with ``per_prompt``); and
        ``gain_full`` (layer), the terminal gains of the same system before truncation. Full
        provenance in attrs.

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
    if readout not in READOUTS:
        raise ValueError(f"`readout` must be one of {READOUTS}; got {readout!r}. Pick one.")
    if len(texts) == 0:
        raise ValueError("`texts` must hold at least one prompt; got none. Split again.")
    v = model.directions(concept)
    _check_unit(v)
    if per_prompt:
        parts, rows = [], []
        for run in model.stream(texts, "identify"):
            parts.append(_systems(_identify_each(run, v), order, readout, keep_basis))
            rows.append(run.prompts)
        system = xr.concat(parts, dim="prompt").isel(prompt=np.argsort(np.concatenate(rows)))
        system = system.assign_coords(prompt=np.arange(len(texts))).drop_vars("y_std")
    else:
        full = _identify_mean(model, texts, v)
        system = _systems(full, order, readout, keep_basis).isel(prompt=0)
    system["v"] = (("depth", "feature", "input"), v.double().cpu().numpy()[:, :, None])
    system.attrs.update(_provenance(model, texts, concept, method, order, readout, per_prompt))
    return ltv.check(system)


def _check_unit(v: torch.Tensor) -> None:
    norms = v.double().norm(dim=-1)
    if not torch.allclose(norms, torch.ones_like(norms), rtol=1e-4):
        worst = int((norms - 1).abs().argmax())
        raise ValueError(
            f"`concept` must hold directions of unit length; got norm {float(norms[worst]):.3g} at "
            f"depth {worst}. Divide by the norm."
        )


@dataclass(frozen=True)
class _FullSystem:
    """What injections reach, before truncation, for a batch of P prompts (P = 1 for the mean).

    Q[k] (P, H, d_k) orthonormal, first column v_k; A[l] (P, d_{l+1}, d_l); x[k] (P, H), the
    nominal state; y (P, prompts behind each system), the nominal readouts.
    """

    Q: list[np.ndarray]
    A: list[np.ndarray]
    x: list[np.ndarray]
    state_norm: np.ndarray
    y: np.ndarray


def _identify_mean(model: DepthModel, texts: Texts, v: torch.Tensor) -> _FullSystem:
    directions = v.double().cpu().numpy()
    Q, A, x, norms = [directions[0][None, :, None]], [], [], []
    y = np.empty(len(texts))
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
        image /= len(texts)
        Q.append(_orthonormal(directions[layer + 1][:, None], image)[None])
        A.append(Q[-1][0].T @ image)
        x.append(sums[0] / len(texts))
        norms.append(norm[0] / len(texts))
        if layer == model.n_layers - 1:
            x.append(sums[1] / len(texts))
            norms.append(norm[1] / len(texts))
    return _FullSystem(
        Q, [a[None] for a in A], [s[None] for s in x], np.array(norms)[None], y[None]
    )


def _identify_each(run, v: torch.Tensor) -> _FullSystem:
    directions = v.double().cpu().numpy()
    n_prompts = len(run.prompts)
    Q, A = [np.broadcast_to(directions[0][:, None], (n_prompts, directions.shape[1], 1))], []
    for block in run.blocks:
        columns = torch.as_tensor(np.swapaxes(Q[-1], 1, 2).copy()).to(v)
        image = np.swapaxes(block.jvp(columns).double().cpu().numpy(), 1, 2)
        first = directions[block.layer + 1][:, None]
        Q.append(np.stack([_orthonormal(first, part) for part in image]))
        A.append(np.swapaxes(Q[-1], 1, 2) @ image)
    x = run.x.double().cpu().numpy()
    norms = np.linalg.norm(x, axis=-1).T
    return _FullSystem(Q, A, list(x), norms, (x[-1] @ directions[-1])[:, None])


def _orthonormal(first: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Orthonormal columns whose leading spans are those of [first, columns]."""
    q, r = np.linalg.qr(np.hstack([first, columns]))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


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
    system = system.assign_coords(order=("depth", sizes))
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
    return system


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
        "n_cut": model.tokenize(texts)[1],
        "prompts_sha256": texts.sha256,
        "step": "exact Jacobian (no step)",
    }
