"""States and directions in the words of the model: by the logit lens, or by a Jacobian lens."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from depthsys.fingerprints import why_another
from depthsys.lm.directions import as_concept
from depthsys.lm.kinds import LENS, LENS_OR_NONE, MODEL, check_kinds, short
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import wide
from depthsys.lm.run import Run
from depthsys.lm.run_model import Model
from depthsys.lm.shards import along, in_shards
from depthsys.lm.stamp import provenance, stamp
from depthsys.ltv.system import whole_number

ROWS = 128  # through the head at once: a row of logits is as long as the vocabulary
READERS = ("logit lens", "J-lens", "J-lens about the mean", "mean state")


def decode(
    model: Any,
    states: xr.DataArray | xr.Dataset,
    *,
    lens: xr.Dataset | None = None,
    top: int = 10,
    about_mean: bool = False,
    directions: bool = False,
) -> xr.Dataset:
    r"""The tokens that states, or directions, at any depth stand for.

    A state x_l is carried to the last depth, :math:`J_l x_l` (by the identity without a lens: the
    logit lens), and read by the model's own final norm and unembedding. A direction has no norm of
    its own to be divided by: it is read as half the difference of what :math:`J_l v` and
    :math:`-J_l v` are read as, so that biases of norm and unembedding cancel; only the order of
    its tokens means something, not the size of the logits.

    Parameters
    ----------
    model
        A `DepthModel`.
    states
        (depth, ..., feature) with the coordinate ``depth``, such as ``run.states``; or a concept,
        or its ``direction`` with ``directions``.
    lens
        From `depthsys.lm.lens` or `read_lens`, with all depths of ``states``; None is the logit
        lens.
    top
        How many tokens of each.
    about_mean
        Carry what the state differs from the mean, :math:`\bar x_L + J_l (x_l - \bar x_l)`: what
        the linear system predicts of x_L. Needs a lens with ``x_ref``.
    directions
        These are directions. A Dataset with ``direction`` needs no telling.

    Returns
    -------
    xr.Dataset
        ``token_id``, ``logit`` and, where the model has a tokenizer, ``token`` (text); of states
        also ``probability``, of the next token: (depth, ..., rank), by falling logit. Where there
        is no direction: -1, NaN and "".

    Raises
    ------
    TypeError
        If the model, the states or the lens are something else.
    ValueError
        If dims or depths do not fit, a state is not finite, the lens is of another model, or
        ``top`` is no count of tokens.

    Notes
    -----
    Of a state the J-lens is no prediction: a Jacobian carries small differences, and x_l is none.
    It is how the published lens is read. ``about_mean`` is.

    Examples
    --------
    >>> from depthsys import lm
    >>> from depthsys.demo import model_path
    >>> model = lm.DepthModel.load(model_path("demo_48x4"), device="cpu")
    >>> run = model.run(["the food was"])
    >>> read = lm.decode(model, run.states, top=2)
    >>> dict(read.sizes)
    {'depth': 5, 'prompt': 1, 'rank': 2}
    """
    check_kinds("decode", {"model": model, "lens": lens}, {"model": MODEL, "lens": LENS_OR_NONE})
    if isinstance(states, xr.Dataset):
        states, directions = as_concept(states)["direction"], True
    given = _checked_states(model, states, allow_nan=directions)
    n_tokens = model.hf.get_output_embeddings().weight.shape[0]
    whole_number(top, "top", 1, n_tokens, "The default is 10.")
    depths = given["depth"].values
    carry = _Carry(model, lens, depths, about_mean=about_mean)
    if about_mean and directions:
        raise ValueError(
            "`about_mean` must be False for directions, which are differences already; got True. "
            "Leave it out."
        )
    flat = given.values.reshape(len(depths), -1, model.n_features)
    shape = (*flat.shape[:2], top)
    ids, logits = np.full(shape, -1), np.full(shape, np.nan)
    shares = np.full(shape, np.nan)
    known = np.asarray(np.isfinite(flat).all(axis=-1))
    x = [
        carry(place, torch.as_tensor(rows[known[place]], device=model.device))
        for place, rows in enumerate(flat)
    ]
    at = np.argwhere(known)
    # rows of all depths together: the unembedding is read once for many
    for part, found in _top(model, torch.cat(x), top, odd=directions):
        here = tuple(at[part].T)
        logits[here], ids[here], shares[here] = found
    dims = (*given.dims[:-1], "rank")
    whole = (*given.shape[:-1], top)
    data: dict[str, Any] = {
        "token_id": (dims, ids.reshape(whole)),
        "logit": (dims, logits.reshape(whole)),
    }
    if not directions:
        data["probability"] = (dims, shares.reshape(whole))
    if model.tokenizer is not None:
        texts = [model.tokenizer.decode([token]) if token >= 0 else "" for token in ids.ravel()]
        data["token"] = (dims, np.array(texts, dtype=str).reshape(whole))
    return xr.Dataset(
        data,
        coords={**{k: v for k, v in given.coords.items() if "feature" not in v.dims},
                "rank": np.arange(top)},
        attrs={
            **provenance(model, "decode"),
            "reader": carry.reader,
            "of": "directions" if directions else "states",
            **carry.about,
        },
    )  # fmt: skip


@of_run(once=True, shards=True, kinds={"lens": LENS})
def lens_agreement(run: Run, lens: xr.Dataset) -> xr.Dataset:
    """How well each depth's state is read as what the model says in the end, by every lens.

    Parameters
    ----------
    run
        The prompts, best others than those of the lens; or a model and texts.
    lens
        From `depthsys.lm.lens` or `read_lens`; its depths are looked at.

    Returns
    -------
    xr.Dataset
        ``agreement`` (reader, depth, prompt): 1 where the likeliest next token is that of the
        model, else 0. ``kl`` (reader, depth, prompt): Kullback-Leibler divergence of the model's
        distribution from the reader's, nats. Coordinate ``reader``: "logit lens", "J-lens", and
        "J-lens about the mean" and, as what that must be better than, "mean state" (of x_L,
        whatever the prompt) where the lens has ``x_ref``; see `decode`.

    Raises
    ------
    ValueError
        If the lens is of another model, or has other depths.

    Notes
    -----
    No pass beside that of the run: readers times depths rows through the head per prompt.
    """
    depths = lens["depth"].values
    about = _Carry(run.model, lens, depths, about_mean=False).about
    same, kl = _read(run, lens)
    dims = ("reader", "depth", "prompt")
    return xr.Dataset(
        {"agreement": (dims, same.transpose(1, 2, 0)), "kl": (dims, kl.transpose(1, 2, 0))},
        coords={"reader": list(_readers(lens)), "depth": depths},
        attrs={**stamp(run, "lens_agreement"), **about},
    )


def _readers(lens: xr.Dataset) -> tuple[str, ...]:
    return READERS if "x_ref" in lens else READERS[:2]


@in_shards(along(0), "lens")
def _read(run: Run, lens: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Whether the likeliest token is the model's, and divergences (prompt, reader, depth)."""
    model, depths = run.model, [int(depth) for depth in lens["depth"].values]
    carries: list[Any] = [_Carry(model, None, depths, about_mean=False)]
    carries.append(_Carry(model, lens, depths, about_mean=False))
    if len(_readers(lens)) == len(READERS):
        carries.append(_Carry(model, lens, depths, about_mean=True))
        carries.append(carries[-1].end)
    shape = (len(run), len(carries), len(depths))
    same, kl = np.empty(shape), np.empty(shape)
    for prompts, x in run.states_by_batch("lens"):
        own = torch.cat([log_p for _, log_p in _log_p(model, x[-1])])
        best = own.argmax(-1)
        rows = torch.stack(
            [carry(place, x[depth]) for carry in carries for place, depth in enumerate(depths)],
            dim=1,
        )
        # all of a prompt's rows together: the unembedding is read once for many
        of = torch.arange(len(rows), device=rows.device).repeat_interleave(rows.shape[1])
        found = []
        for part, log_p in _log_p(model, rows.flatten(0, 1)):
            q = own[of[part]]
            right = log_p.argmax(-1) == best[of[part]]
            found.append(torch.stack([right.double(), (q.exp() * (q - log_p)).sum(-1)]))
        of_batch = torch.cat(found, dim=1).reshape(2, len(rows), *shape[1:]).cpu().numpy()
        same[prompts], kl[prompts] = of_batch
    return same, kl


class _Carry:
    """Rows at a depth of a list -> rows at the last depth."""

    def __init__(self, model: Model, lens: xr.Dataset | None, depths: Any, *, about_mean: bool):
        self.reader = READERS[0]
        self.about: dict[str, Any] = {}
        self._model, self._J = model, None
        self._from = self._to = None
        if lens is None:
            if about_mean:
                raise ValueError(
                    "`about_mean` must be False without a lens; got True. Give `lens`."
                )
            return
        _check_lens(model, lens, depths)
        wanted = lens.sel(depth=depths)
        self._J = wanted["J"].transpose("depth", "feature_out", "feature").values
        self.reader = READERS[2] if about_mean else READERS[1]
        self.about = {
            f"lens_{key}": lens.attrs[key]
            for key in ("definition", "n_prompts", "prompts_sha256")
            if key in lens.attrs
        }
        if about_mean:
            if not {"x_ref", "x_end"} <= {*lens}:
                raise ValueError(
                    "`about_mean` must be False for a lens without `x_ref`; got True. Make it by "
                    "`lm.lens`, with definition='last token'."
                )
            self._from = wanted["x_ref"].transpose("depth", "feature").values
            self._to = lens["x_end"].values

    def __call__(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """States or directions (row, feature) of the depth at that place, carried to the end."""
        x = wide(x)
        if self._J is None:
            return x.to(self._model.dtype)
        # sums of products of a mean with a state in float64: both are known to more than float32
        x, J = x.double(), self._as(self._J[place], x)
        if self._from is None or self._to is None:
            return (x @ J.mT).to(self._model.dtype)
        start, end = self._as(self._from[place], x), self._as(self._to, x)
        return (end + (x - start) @ J.mT).to(self._model.dtype)

    def end(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """The mean of last states for every row."""
        return self._as(self._to, x).to(self._model.dtype).expand_as(x)

    @staticmethod
    def _as(array: Any, like: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(array, dtype=torch.float64, device=like.device)


def _check_lens(model: Model, lens: xr.Dataset, depths: Sequence[int] | np.ndarray) -> None:
    mark = lens.attrs.get("model_fingerprint")
    own = getattr(model, "fingerprint", None)
    if mark is not None and mark != own:
        raise ValueError(
            f"`lens` must be of `model`; got model_fingerprint {mark!r} instead of {own!r}. Make "
            f"it with this model.{why_another(mark, own)}"
        )
    if lens.sizes["feature"] != model.n_features or int(lens["depth"].max()) > model.n_layers:
        raise ValueError(
            f"`lens` must have {model.n_features} features and depths in 0..{model.n_layers}; got "
            f"{lens.sizes['feature']} and depths up to {int(lens['depth'].max())}. It is of "
            "another model."
        )
    if not np.isfinite(lens["J"]).all():
        raise ValueError("`lens` must be finite; got NaN or infinity in J. Make it again.")
    if missing := sorted({*map(int, depths)} - {*map(int, lens["depth"].values)}):
        raise ValueError(
            f"`lens` must have the depths of `states`; got none at {missing[:8]}. Select others "
            "by `.sel(depth=...)`."
        )


def _checked_states(model: Model, states: Any, *, allow_nan: bool) -> xr.DataArray:
    """States with depth first and feature last, labelled, in float64."""
    if not isinstance(states, xr.DataArray):
        raise TypeError(
            f"`states` must be a DataArray (depth, ..., feature), or a concept; got "
            f"{short(states)}. `run.states` is one."
        )
    sizes = dict(states.sizes)
    if "depth" not in sizes and "depth" in states.coords:  # one depth, by .sel
        states = states.expand_dims("depth")
    if sizes.get("feature") != model.n_features or "depth" not in states.dims:
        raise ValueError(
            f"`states` must be (depth, ..., feature) with {model.n_features} features; got "
            f"{sizes}. Name its dims so."
        )
    if "rank" in sizes or not states.size:
        raise ValueError(
            f"`states` must have some states, and no dim `rank`; got {sizes}. Select some, or "
            "rename that dim: the tokens of a state lie along it."
        )
    if "depth" not in states.coords:
        if states.sizes["depth"] != model.n_layers + 1:
            raise ValueError(
                f"`states` must say of which depths they are; got {states.sizes['depth']} without "
                "a coordinate `depth`. Give it by `.assign_coords(depth=...)`."
            )
        states = states.assign_coords(depth=np.arange(model.n_layers + 1))
    depths = states["depth"].values
    if depths.dtype.kind not in "iu" or depths.min() < 0 or depths.max() > model.n_layers:
        raise ValueError(
            f"`states` must have depths in 0..{model.n_layers}; got {short(depths.tolist())}. "
            "Select those."
        )
    states = states.transpose("depth", ..., "feature").astype(np.float64)
    finite = np.isfinite(states.values).all(axis=-1)
    if not finite.all() and not allow_nan:
        raise ValueError("`states` must be finite; got NaN or infinity. Leave those out.")
    return states


@torch.no_grad()
def _top(
    model: Model, x: torch.Tensor, top: int, *, odd: bool
) -> Iterator[tuple[slice, tuple[np.ndarray, ...]]]:
    """Logits, numbers and shares of the first tokens, of some rows (row, feature) at a time."""
    for start in range(0, len(x), ROWS):
        part = slice(start, start + ROWS)
        logits = wide(model.head(x[part])).double()
        if odd:
            logits = (logits - wide(model.head(-x[part])).double()) / 2
        values, ids = logits.topk(top, dim=-1)
        shares = (values - logits.logsumexp(-1, keepdim=True)).exp()
        yield part, tuple(one.cpu().numpy() for one in (values, ids, shares))


@torch.no_grad()
def _log_p(model: Model, x: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Log-probabilities (row, token) of the next token, float64, of some rows at a time."""
    for start in range(0, len(x), ROWS):
        part = slice(start, start + ROWS)
        yield part, torch.log_softmax(model.head(x[part]).double(), dim=-1)
