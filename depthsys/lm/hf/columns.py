"""Where the columns of a forward pass lie in their prompts, read from how the model is called."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from depthsys.lm.positions import After, starts

Decode = Callable[[Any], str]
# arguments that pack several texts into one row
_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens_q", "block_table", "seq_idx")
# how `generate` may be told to write in a way that runs other prompts, or parts of the model
_OTHER_WAYS = (
    "negative_prompt_ids", "custom_generate", "assistant_early_exit", "use_mtp", "penalty_alpha",
    "dola_layers", "constraints", "force_words_ids",
)  # fmt: skip


@dataclass
class Prompts:
    """The prompts of a batch: its first ``n_columns`` columns, padded on the left.

    Attributes
    ----------
    ids
        Token ids (prompt, column); None where they are not known.
    real
        False at padding (prompt, column); None for no padding.
    """

    n_rows: int
    n_columns: int
    ids: np.ndarray | None = None
    real: np.ndarray | None = None
    _begins: dict[After, np.ndarray] = field(default_factory=dict)

    def begins(self, after: After, decode: Decode | None, n_rows: int) -> np.ndarray:
        """Column of the first token behind the marker, for every row of a batch.

        A batch may hold every prompt several times, one copy after the other, as beams are.
        """
        if after not in self._begins:
            if self.ids is None or self.ids.shape[1] != self.n_columns:
                raise ValueError(
                    "`positions` must mark a place in prompts whose token ids are all given; got "
                    f"{after} and only a part of them. Give whole prompts as `input_ids`."
                )
            real = np.ones(self.ids.shape, bool) if self.real is None else self.real
            rows = [row[here].tolist() for row, here in zip(self.ids, real, strict=True)]
            pads = (~real).sum(axis=1)
            self._begins[after] = pads + np.array(starts(rows, after, decode))
        begins = self._begins[after]
        return np.repeat(begins, n_rows // len(begins))


@dataclass(frozen=True)
class Forward:
    """One call of the model: its columns, from ``first`` on.

    Attributes
    ----------
    ids, mask, position_ids
        As given, where they were given: (row, column).
    """

    n_rows: int
    first: int
    width: int
    ids: torch.Tensor | None
    mask: Any
    position_ids: torch.Tensor | None

    @property
    def columns(self) -> range:
        """Their numbers, padding included."""
        return range(self.first, self.first + self.width)


def forward_of(hf: Any, args: tuple, kwargs: dict) -> Forward:
    """What a call of the model runs; ValueError for a call that cannot be understood."""
    given = dict(inspect.signature(type(hf).forward).bind_partial(hf, *args, **kwargs).arguments)
    for value in [v for v in given.values() if isinstance(v, dict)]:
        given |= value  # **kwargs of its forward
    packed = [name for name in _PACKED if given.get(name) is not None]
    if packed:
        raise _packed(packed[0])
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    tokens = embeds if ids is None else ids
    if tokens is None:
        raise ValueError(
            "`model` must be given `input_ids` or `inputs_embeds` while it is steered; got neither."
        )
    cache = given.get("past_key_values")
    if cache is not None and not hasattr(cache, "get_seq_length"):
        raise ValueError(
            f"`past_key_values` must be a Cache while the model is steered; got a "
            f"{type(cache).__name__}. Use transformers.DynamicCache()."
        )
    return Forward(
        n_rows=tokens.shape[0],
        first=0 if cache is None else int(cache.get_seq_length()),
        width=tokens.shape[1],
        ids=ids,
        mask=given.get("attention_mask"),
        position_ids=given.get("position_ids"),
    )


def lone_prompts(call: Forward, n_columns: int | None, is_free: bool) -> Prompts:
    """The prompts of a call outside of `generate`: all that it is given, or the first columns.

    Parameters
    ----------
    call
        The call.
    n_columns
        Columns of the prompts where the user has said it.
    is_free
        Whether pushes act on every token, so that it does not matter where a prompt ends.
    """
    if call.first and n_columns is None and not is_free:
        raise ValueError(
            "`positions` must be 'every' where the model is called with a filled cache, outside of "
            "`generate`: where the prompt ends is not known. Call `generate`, or say it: "
            "`with steered.prompts_of(n_tokens):`. If it was called by a `generate` that ran in "
            "this thread when another one began to steer the model: take turns."
        )
    real = None
    if isinstance(call.mask, torch.Tensor) and call.mask.dim() == 2:
        real = call.mask.cpu().numpy().astype(bool)
        check_left(real)
    elif call.mask is not None and not is_free:
        raise ValueError(
            "`attention_mask` must be (prompt, token) while the model is steered; got "
            f"{_shape(call.mask)}, which does not say where padding is. Give the 2-D mask."
        )
    _check_not_packed(call, real)
    n_columns = call.width if n_columns is None else n_columns
    ids = None
    if call.ids is not None and not call.first:
        ids = call.ids[:, :n_columns].cpu().numpy()
    return Prompts(call.n_rows, n_columns, ids, None if real is None else real[:, :n_columns])


def _check_not_packed(call: Forward, real: np.ndarray | None) -> None:
    """Several texts in one row have positions that begin again."""
    at = call.position_ids
    if at is None or at.dim() != 2 or at.shape[1] != call.width:
        return
    falls = (at[:, 1:] < at[:, :-1]).cpu().numpy()
    if real is not None:  # behind padding they may begin again
        falls = falls & real[:, -call.width :][:, :-1]
    if falls.any():
        raise _packed("position_ids that begin again")


def _packed(what: str) -> ValueError:
    return ValueError(
        f"`model` must be called with one text in each row while it is steered; got {what}, which "
        "packs several into one. Give them as a batch, padded on the left."
    )


def check_left(real: np.ndarray) -> None:
    """ValueError for padding on the right."""
    if not real[:, -1].all():
        raise ValueError(
            "`attention_mask` must end with a token of every prompt while the model is steered; "
            f"prompt number {int(np.argmin(real[:, -1]))} has padding on the right. Pad on the "
            "left: `tokenizer.padding_side = 'left'`."
        )


def written_prompts(hf: Any, args: tuple, kwargs: dict) -> Prompts:
    """The prompts that `generate` is called with; ValueError for a way that is not supported."""
    _check_way(hf, args, kwargs)
    ids = kwargs.get("input_ids")
    ids = (args[0] if args else kwargs.get("inputs")) if ids is None else ids
    embeds = kwargs.get("inputs_embeds")
    tokens = embeds if embeds is not None else ids
    if tokens is None:
        return Prompts(1, 1)  # transformers begins with the token that begins a text
    mask = kwargs.get("attention_mask")
    known = tokens.cpu().numpy() if embeds is None else None
    if mask is None and known is not None:
        mask = _inferred(hf, kwargs, known)
    real = None if mask is None else torch.as_tensor(mask).cpu().numpy().astype(bool)
    if real is not None:
        check_left(real)
    n_columns = tokens.shape[1] if real is None else real.shape[1]
    return Prompts(tokens.shape[0], n_columns, known, real)


def _inferred(hf: Any, kwargs: dict, ids: np.ndarray) -> np.ndarray | None:
    """The mask that transformers makes where none is given: without padding tokens."""
    pad = _option(hf, kwargs, "pad_token_id")
    ends = _option(hf, kwargs, "eos_token_id")
    ends = [] if ends is None else np.atleast_1d(np.asarray(ends)).tolist()
    if pad is None or pad in ends or not (ids == pad).any():
        return None
    return ids != pad


def _option(hf: Any, kwargs: dict, name: str) -> Any:
    """An option of `generate`: as given, or of the configuration given, or of the model."""
    for held in (kwargs, vars(kwargs.get("generation_config") or object)):
        if held.get(name) is not None:
            return held[name]
    return getattr(getattr(hf, "generation_config", None), name, None)


def _check_way(hf: Any, args: tuple, kwargs: dict) -> None:
    if len(args) > 1 and "generation_config" not in kwargs:
        kwargs = kwargs | {"generation_config": args[1]}
    used = [name for name in _OTHER_WAYS if _option(hf, kwargs, name) not in (None, False, 0)]
    used += [name for name in ("token_healing",) if _option(hf, kwargs, name)]
    used += ["num_beam_groups"] * ((_option(hf, kwargs, "num_beam_groups") or 1) > 1)
    used += ["guidance_scale"] * (_option(hf, kwargs, "guidance_scale") not in (None, 1, 1.0))
    if used:
        raise ValueError(
            f"`generate` must write greedily, by sampling, beams or an assistant while the model "
            f"is steered; got {used[0]}, for which it also runs other prompts, or runs in parts. "
            "Leave it out."
        )


def check_goes_on(call: Forward, prompts: Prompts, end: int) -> None:
    """ValueError unless a call within `generate` goes on where the last one ended, or before.

    Parameters
    ----------
    call
        The call.
    prompts
        What `generate` was given.
    end
        Column behind the last one that was run.
    """
    last = call.first + call.width
    agrees = call.first <= end and call.n_rows % prompts.n_rows == 0
    at = call.position_ids
    if agrees and at is not None and at.dim() == 2 and at.shape[1] == call.width:
        # a cache that tells less than it holds would put every push into the wrong column
        agrees = int(at[:, -1].max()) < last
    if agrees and isinstance(call.mask, torch.Tensor) and call.mask.dim() == 2:
        agrees = call.mask.shape[1] >= last
    if not agrees:
        raise ValueError(
            "`generate` must run the model on one stretch of its prompts after the other while it "
            f"is steered; got {call.n_rows} rows from column {call.first} on, after {end} columns "
            f"of {prompts.n_rows} prompts. Use greedy search, sampling or beams, with a cache of "
            "transformers or none."
        )


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"shape {tuple(shape)}"
