"""Singular values and vectors of detached maps, the latter read as tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from depthsys.lm.at_once import whole_jacobians
from depthsys.lm.frozen import FrozenRun
from depthsys.lm.kinds import short
from depthsys.lm.linearize import PARTS, Linearisation
from depthsys.lm.lockstep import Steps
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import wide
from depthsys.lm.readouts import HEAD_ROWS
from depthsys.lm.run import Run
from depthsys.lm.run_model import Model
from depthsys.lm.shards import along, in_shards
from depthsys.lm.stamp import stamp
from depthsys.ltv.system import whole_number

MAPS = ("layer", "from_start")


@of_run(once=True, shards=True)
def detached_spectra(
    run: Run,
    *,
    part: str = "block",
    linear: str = "up",
    n_values: int = 64,
    n_vectors: int = 4,
    n_tokens: int = 5,
) -> xr.Dataset:
    r"""Singular values and vectors of the detached maps of every prompt, the latter as tokens.

    With :math:`A_l` the detached map of block l on the last token (see `Linearisation`), of every
    layer by itself, and of the product :math:`\Phi_l = A_l \cdots A_0` from the start, which for
    part "block" is the map of the last token's embedding to x_{l+1}. A map :math:`U S V^\top` of
    an input x gives :math:`\sum_i u_i\, s_i (v_i^\top x)`, what the last token alone contributes
    to the value; the signs are chosen so that every term adds :math:`+u_i`.

    Parameters
    ----------
    run
        The prompts; or a model and texts.
    part
        "block", "attention" or "mlp".
    linear
        Which factor of a gated MLP stays linear, see `Linearisation`.
    n_values
        The largest singular values that are kept.
    n_vectors
        The leading singular vectors that are read as tokens and projected on.
    n_tokens
        Tokens for each; 0 reads none.

    Returns
    -------
    xr.Dataset
        Over ``map`` ("layer": A_l with input x_l; "from_start": Phi_l with input x_0), ``prompt``
        and ``layer``:

        ``singular_value`` (..., index), largest first; ``stable_rank``,
            :math:`\|A\|_F^2 / \|A\|_2^2`, from 1 to H.
        ``low_rank_error`` (..., kept)
            :math:`\|(A - A_k) x\| / \|A x\|` where the k = ``kept`` leading singular directions
            are kept, 1, 2, 4, ... H; 0 at H but for rounding.
        ``own_share``
            :math:`x_{l+1}^\top A x / \|x_{l+1}\|^2`, what of the value the last token's own way
            makes; earlier tokens and biases make the rest.
        ``projection`` (..., rank)
            :math:`u_i^\top x_{l+1} / \|x_{l+1}\|` with the left vectors u_i of the last layer's
            map.
        ``output_token``, ``input_token`` (..., rank, place)
            Token ids: left vectors through the model's own final norm and unembedding (without
            what these give for a zero state), and right vectors through the embedding, best first;
            ``output_text``, ``input_text`` are their texts. Missing with ``n_tokens=0``.

    Raises
    ------
    ValueError
        If an argument is not of its range, or the family has no detached map.
    FloatingPointError
        If a map is not finite.

    Notes
    -----
    One Jacobian for each prompt and layer, H transposed products; a singular value decomposition
    of both maps, in the dtype of the model. Matrices of one batch at one layer are held at a time.
    Tokens before the last have maps of their own; `token_shares` tells their part.

    References
    ----------
    .. [1] Golden (2025), arXiv:2505.24293: there of the whole model with its final norm, for every
       input token.
    """
    kind = _checked(run, part, linear, n_values, n_vectors, n_tokens)
    width = run.model.n_features
    sizes = _Sizes(min(n_values, width), min(n_vectors, width), n_tokens)
    found = dict(zip(_DIMS, _spectra(run, kind, sizes), strict=True))
    if not np.isfinite(found["singular_value"]).all():
        raise FloatingPointError(
            "detached maps must be finite; got one that is not. Load the model in float32."
        )
    lead = ("prompt", "map", "layer")
    data: dict[str, Any] = {name: ((*lead, *_DIMS[name]), found[name]) for name in _DIMS}
    if n_tokens:
        for name in ("output", "input"):
            texts = _texts(run.model, found[f"{name}_token"])
            data[f"{name}_text"] = ((*lead, *_DIMS["output_token"]), texts)
    else:
        del data["output_token"], data["input_token"]
    made = xr.Dataset(
        data,
        {"map": list(MAPS), "layer": np.arange(run.n_layers), "kept": _kept(width)},
        {**stamp(run, "detached_spectra"), **kind.attrs},
    )
    return made.transpose("map", "prompt", "layer", ...)


_DIMS: dict[str, tuple[str, ...]] = {
    "singular_value": ("index",),
    "stable_rank": (),
    "low_rank_error": ("kept",),
    "own_share": (),
    "projection": ("rank",),
    "output_token": ("rank", "place"),
    "input_token": ("rank", "place"),
}


@dataclass(frozen=True)
class _Sizes:
    n_values: int
    n_vectors: int
    n_tokens: int


def _checked(run: Run, part, linear, n_values, n_vectors, n_tokens) -> Linearisation:
    if not isinstance(part, str):
        raise ValueError(f"`part` must be one of {PARTS}; got {short(part)}. Pick one.")
    kind = Linearisation(part, "detached", linear)
    for name, value in {"n_values": n_values, "n_vectors": n_vectors}.items():
        whole_number(value, name)
    if n_tokens is False or n_tokens != 0:
        whole_number(n_tokens, "n_tokens")
        n_known = run.model.hf.get_output_embeddings().weight.shape[0]
        if n_tokens > n_known:
            raise ValueError(
                f"`n_tokens` must be at most {n_known}, the size of the vocabulary; got "
                f"{n_tokens}. The default is 5."
            )
        embedding = run.model.hf.get_input_embeddings().weight
        if embedding.shape[1] != run.model.n_features:
            raise ValueError(
                f"`n_tokens` must be 0 where embeddings have another width ({embedding.shape[1]}) "
                f"than states ({run.model.n_features}); got {n_tokens}."
            )
    return kind


def _kept(width: int) -> list[int]:
    """1, 2, 4, ... and the width."""
    return [*(2**i for i in range(width.bit_length()) if 2**i < width), width]


@in_shards(along(0), "detached spectra")
def _spectra(run: Run, kind: Linearisation, sizes: _Sizes) -> tuple[np.ndarray, ...]:
    """The variables of `_DIMS`, (prompt, map, layer, ...) each."""
    model = run.model
    length = {"index": sizes.n_values, "rank": sizes.n_vectors, "place": sizes.n_tokens}
    length["kept"] = len(_kept(model.n_features))
    lead = (len(run), len(MAPS), run.n_layers)
    arrays = {
        name: np.zeros(
            (*lead, *(length[dim] for dim in dims)), np.int64 if "token" in name else np.float64
        )
        for name, dims in _DIMS.items()
    }

    def work(batch: FrozenRun) -> Steps[None]:
        most = whole_jacobians(batch.x[0], len(batch.prompts))
        at = np.arange(len(batch.prompts))
        parts = [batch.only((at >= s) & (at < s + most)) for s in range(0, len(at), most)]
        yield from run.several([_of_batch(model, one, kind, sizes, arrays) for one in parts])

    held = model.n_features**2 * max(4, model.dtype.itemsize)
    for _ in run.in_step(work, "detached spectra", held=held):
        pass
    return tuple(arrays.values())


def _of_batch(
    model: Model, batch: FrozenRun, kind: Linearisation, sizes: _Sizes, arrays: dict
) -> Steps[None]:
    """Fill in what is found of some prompts."""
    whole: Any = None
    lefts: list[torch.Tensor] = []
    for block in batch.blocks:
        yield block.layer
        A = wide(block.jacobian(part=kind))
        whole = A if whole is None else A @ whole
        lefts = []
        for at, (matrix, x) in enumerate(((A, block.x), (whole, batch.x[0]))):
            found, left = _of_maps(model, matrix, x, block.x_next, sizes)
            lefts.append(left)
            for name, values in found.items():
                arrays[name][batch.prompts, at, block.layer] = values.cpu().numpy()
    states = wide(batch.x[1:]).double()
    unit = states / states.norm(dim=-1, keepdim=True)
    for at, left in enumerate(lefts):
        shown = torch.einsum("lph,phr->plr", unit, left)
        arrays["projection"][batch.prompts, at] = shown.cpu().numpy()


@torch.no_grad()
def _of_maps(
    model: Model, matrix: torch.Tensor, x: torch.Tensor, value: torch.Tensor, sizes: _Sizes
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What is found of maps (prompt, state_next, state); and their left vectors."""
    # in the dtype of the products that made it: more would resolve their rounding
    U, s, Vh = (t.double() for t in torch.linalg.svd(matrix))
    matrix, x, value = (wide(t).double() for t in (matrix, x, value))
    terms = s * (Vh @ x[..., None])[..., 0]
    sign = torch.where(terms < 0, -1.0, 1.0)
    made = (matrix @ x[..., None])[..., 0]
    # from the smallest on, so that what is left beside the leading ones does not cancel
    left_over = terms.square().flip(-1).cumsum(-1).flip(-1).sqrt()
    left_over = torch.nn.functional.pad(left_over, (0, 1))[:, _kept(matrix.shape[-1])]
    found = {
        "singular_value": s[:, : sizes.n_values],
        "stable_rank": s.square().sum(-1) / s[:, 0].square(),
        # of a value of zero nothing is left over
        "low_rank_error": torch.where(
            left_over == 0, left_over, left_over / made.norm(dim=-1, keepdim=True)
        ),
        "own_share": (value * made).sum(-1) / value.square().sum(-1),
    }
    n = sizes.n_vectors
    U, V = (U * sign[:, None])[..., :n], (Vh.mT * sign[:, None])[..., :n]
    if sizes.n_tokens:
        norm = value.norm(dim=-1)[:, None, None]
        found["output_token"] = _best(_logits(model, U.mT * norm), sizes.n_tokens)
        embedding = model.hf.get_input_embeddings().weight
        found["input_token"] = _best(V.mT.to(embedding) @ embedding.mT, sizes.n_tokens)
    return found, U


def _logits(model: Model, rows: torch.Tensor) -> torch.Tensor:
    """What the head gives of rows (prompt, rank, feature), beside what it gives of nothing."""
    flat = rows.flatten(0, 1).to(device=model.device, dtype=model.dtype)
    nothing = model.head(torch.zeros_like(flat[:1]))
    parts = [model.head(part) - nothing for part in flat.split(HEAD_ROWS)]
    return torch.cat(parts).unflatten(0, rows.shape[:2])


def _best(scores: torch.Tensor, count: int) -> torch.Tensor:
    return scores.topk(min(count, scores.shape[-1]), dim=-1).indices


def _texts(model: Model, ids: np.ndarray) -> np.ndarray:
    """Tokens as texts; their numbers where there is no tokenizer."""
    known, places = np.unique(ids, return_inverse=True)
    if model.tokenizer is None:
        return known.astype(str)[places].reshape(ids.shape)
    texts = [model.tokenizer.decode([int(one)]) for one in known]
    return np.array(texts, dtype=str)[places].reshape(ids.shape)
