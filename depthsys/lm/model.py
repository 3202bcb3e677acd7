"""A Hugging Face causal language model as a sequence of maps of the last token's state.

With `depthsys.lm.checkpoint` the only file that knows Hugging Face names. The model is wrapped,
never rewritten: its own block modules are called with the last token's state replaced and the keys
and values of the earlier tokens frozen. That is exact for a causal model, because the last token
influences no earlier one.

How a block is called (masks, positions, rotary tables) is learnt by a *dry run*: the model's
own forward pass with every block replaced by "note the arguments, pass the state on". It costs
an embedding look-up, and spares this package any knowledge of the family.
"""

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.cache_utils import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from depthsys._version import __version__
from depthsys.lm import contract
from depthsys.lm.checkpoint import (
    DTYPES,
    checked_device,
    checked_fingerprint,
    find_blocks,
    first_line,
    read_config,
    refuse_config,
)
from depthsys.lm.frozen import (
    LAST_TOKEN_ATTENTION,
    FrozenBlock,
    FrozenCache,
    FrozenRun,
    RecordingCache,
    Run,
    last_token_attention,
)
from depthsys.lm.prompts import Texts, length_batches

_UNSUPPORTED = (RuntimeError, AttributeError, NotImplementedError, LookupError, TypeError)


@dataclass(frozen=True)
class _Calls:
    """How the model calls its blocks for one batch, without the state and the cache."""

    embedded: torch.Tensor
    sequence: list[tuple[tuple, dict]]
    step: list[tuple[tuple, dict]]
    n_context: list[int]


class DepthModel:
    """A causal language model, wrapped so that its blocks act on the last token's state.

    Parameters
    ----------
    hf
        A Hugging Face causal language model. It is put in eval mode and its parameters are
        frozen; nothing else is changed.
    tokenizer
        Its tokenizer; needed only for texts, not for token ids.
    name
        What to call it in results.
    max_tokens
        Longer texts are cut on the right; never above the model's context.

    Attributes
    ----------
    n_layers, n_features
        L blocks, states in R^H.
    contract
        Report of the check made at load: largest relative errors of the replay against the
        model's own forward pass, of Jacobians against central differences, and so on.
    fingerprint, revision
        SHA-256 over configuration and weights; commit on the Hugging Face hub, or "local".

    Raises
    ------
    ValueError
        If the model breaks the contract (see `depthsys.lm.contract`), with the reason.
    """

    def __init__(self, hf: Any, tokenizer: Any = None, *, name: str = "model", max_tokens=128):
        if max_tokens < 1:
            raise ValueError(f"`max_tokens` must be >= 1; got {max_tokens}. The default is 128.")
        refuse_config(hf.config)
        parameter = next(hf.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        if self.dtype not in DTYPES.values():
            raise ValueError(
                f"`model` must compute in {sorted(DTYPES)}; got {self.dtype}. Call `.float()`."
            )
        self.hf: Any = hf.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self._text_config: Any = hf.config.get_text_config(decoder=True)
        self._blocks: list[Any] = list(find_blocks(hf))
        self._configs: list[Any] = list(
            {
                id(m.config): m.config
                for m in hf.modules()
                if hasattr(getattr(m, "config", None), "_attn_implementation")
            }.values()
        )
        if LAST_TOKEN_ATTENTION not in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS.register(LAST_TOKEN_ATTENTION, last_token_attention)
            eager_mask = ALL_MASK_ATTENTION_FUNCTIONS["eager"]
            ALL_MASK_ATTENTION_FUNCTIONS.register(LAST_TOKEN_ATTENTION, eager_mask)
        self.n_layers = len(self._blocks)
        self.n_features = self._text_config.hidden_size
        context = getattr(self._text_config, "max_position_embeddings", None)
        self.max_tokens = max_tokens if context is None else min(max_tokens, context)
        self.fingerprint = checked_fingerprint(hf)
        self.revision = getattr(hf.config, "_commit_hash", None) or "local"
        try:
            self._tuple_length = self._probe_output()
            self.contract = contract.check(self)
        except _UNSUPPORTED as error:
            # whatever a family does that a replay cannot follow ends here, as a refusal
            raise ValueError(
                f"`model` must be replayable block by block; {name!r} ({type(hf).__name__}) is "
                f"not: {type(error).__name__}: {first_line(error)} This family is not supported."
            ) from error

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        max_tokens: int = 128,
    ) -> "DepthModel":
        """Load a model and its tokenizer with the Auto classes and check the contract.

        Parameters
        ----------
        name_or_path
            A local folder, or a Hugging Face name.
        device
            "auto" (the first GPU if there is one), "cpu", "cuda", "cuda:1", ...
        dtype
            "float32" or "float64".
        max_tokens
            Longer texts are cut on the right.

        Raises
        ------
        ValueError
            If the path, the architecture, the weights, the device or the dtype is not usable.
            Remote code is never run and pickled weights are never read.
        """
        torch_device = checked_device(device)
        if dtype not in DTYPES:
            raise ValueError(
                f"`dtype` must be one of {sorted(DTYPES)}; got {dtype!r}. Central differences need "
                "float32 at least."
            )
        source = str(name_or_path)
        config = read_config(source)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=DTYPES[dtype],
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            hf, info = loaded
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"`model` must hold safetensors weights and a tokenizer; got {source!r}: "
                f"{first_line(error)} Save it again with `save_pretrained`."
            ) from error
        if info["missing_keys"] or info["mismatched_keys"]:
            bad = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
            raise ValueError(
                f"`model` must hold every weight of {type(hf).__name__}; {source!r} lacks or "
                f"misfits {bad[:3]} ({len(bad)} in all). They would be random: save it again."
            )
        surplus = [key for key in info["unexpected_keys"] if re.search(r"\.\d+\.", str(key))]
        if surplus:
            raise ValueError(
                f"`model` must have a config.json that uses all its blocks; {source!r} holds "
                f"{sorted(surplus)[:2]} ({len(surplus)} such weights) that it does not. "
                "Correct the configuration."
            )
        return cls(hf.to(torch_device), tokenizer, name=source, max_tokens=max_tokens)

    def provenance(self, action: str) -> dict[str, str | int]:
        """Attrs of a result computed with this model; ``action`` goes into its history."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return {
            "depthsys_version": __version__,
            "model": self.name,
            "revision": self.revision,
            "model_fingerprint": self.fingerprint,
            "contract": json.dumps(self.contract),
            "dtype": self.dtype_name,
            "device": str(self.device),
            "max_tokens": self.max_tokens,
            "created": created,
            "history": f"{created} depthsys.lm.{action}",
        }

    @property
    def dtype_name(self) -> str:
        """Name of the dtype: float32 or float64."""
        return str(self.dtype).removeprefix("torch.")

    # ---------------------------------------------------------------- texts and directions

    def tokenize(
        self, prompts: Texts | Sequence[str] | Sequence[Sequence[int]]
    ) -> tuple[list[list[int]], int]:
        """Token ids of every text, cut on the right, and how many were cut.

        Takes token ids as well as texts; they are only checked and cut.
        """
        if isinstance(prompts, (str, bytes)):
            raise TypeError("`prompts` must be a list of texts; got one string. Write [text].")
        if len(prompts) == 0:
            raise ValueError("`prompts` must hold at least one text; got none. Give some.")
        strings: Sequence[Any] = prompts.texts if isinstance(prompts, Texts) else prompts
        if isinstance(strings[0], str):
            if self.tokenizer is None:
                raise ValueError("`tokenizer` must be given for texts; got None. Pass token ids.")
            # verbose=False: a text above the tokenizer's own limit is cut and counted here
            ids: Any = self.tokenizer(list(strings), verbose=False)["input_ids"]
        else:
            ids = [list(row) for row in strings]
        for number, row in enumerate(ids):
            if not row:
                raise ValueError(
                    f"`prompts` must have at least one token each; got none for number {number}, "
                    f"{strings[number]!r}. Delete it."
                )
        n_tokens = self.hf.get_input_embeddings().num_embeddings
        for number, row in enumerate(ids):
            if min(row) < 0 or max(row) >= n_tokens:
                raise ValueError(
                    f"`prompts` must have token ids in 0..{n_tokens - 1}; number {number} has "
                    f"{min(row)}..{max(row)}. Use the tokenizer of this model."
                )
        n_cut = sum(len(row) > self.max_tokens for row in ids)
        return [row[: self.max_tokens] for row in ids], n_cut

    def tokens_sha256(self, prompts) -> str:
        """Fingerprint of the token ids of these prompts."""
        return hashlib.sha256(json.dumps(self.tokenize(prompts)[0]).encode()).hexdigest()

    def directions(self, concept: xr.Dataset) -> torch.Tensor:
        """Concept directions (depth, feature), unit length, as a tensor of this model."""
        v = concept["direction"].transpose("depth", "feature").values
        expected = (self.n_layers + 1, self.n_features)
        if v.shape != expected or not np.isfinite(v).all():
            raise ValueError(
                f"`concept` must hold a finite direction (depth, feature) of shape {expected}; "
                f"got {v.shape}. Compute it with this model."
            )
        norms = np.linalg.norm(v, axis=1)
        if abs(norms - 1).max() > 1e-6:
            worst = int(abs(norms - 1).argmax())
            raise ValueError(
                f"`concept` must hold directions of unit length; got norm {norms[worst]:.7g} at "
                f"depth {worst}. Divide by the norm."
            )
        return torch.as_tensor(v, dtype=self.dtype, device=self.device)

    # ---------------------------------------------------------------- runs

    def run(self, prompts: Texts | Sequence[str] | Sequence[Sequence[int]]) -> Run:
        """Nominal run of texts or token ids, all kept in memory (see `stream` for many)."""
        return Run(list(self.stream(prompts)), len(prompts))

    def stream(self, prompts, progress: str | None = None) -> Iterator[FrozenRun]:
        """Nominal runs, one length batch at a time: memory does not grow with the prompts."""
        rows, _ = self.tokenize(prompts)
        with _progress(progress, len(rows), "prompt") as bar:
            for batch in length_batches([len(row) for row in rows]):
                yield self._frozen_run(self._ids(rows, batch), batch)
                bar.update(len(batch))

    def sweep(
        self, prompts, progress: str | None = None
    ) -> Iterator[tuple[int, Iterator[FrozenBlock]]]:
        """Layer by layer, all prompts of a layer before the next layer.

        Yields (layer, blocks), where ``blocks`` iterates over length batches. A direction at
        depth l + 1 may thus depend on an average over all prompts at layer l, at the price of
        one prefill in all. The hidden states of the prompts wait in a temporary file (tokens x H
        numbers), so memory does not grow with the number of prompts.
        """
        rows, _ = self.tokenize(prompts)
        with (
            tempfile.TemporaryFile() as spool,
            _progress(progress, len(rows) * self.n_layers, "block") as bar,
        ):
            for layer in range(self.n_layers):
                blocks = self._blocks_of(layer, rows, spool, bar)
                yield layer, blocks
                for _ in blocks:  # a caller may stop early; the states must still advance
                    pass

    def _blocks_of(self, layer, rows, spool, bar) -> Iterator[FrozenBlock]:
        spool.seek(0)
        for prompts in length_batches([len(row) for row in rows]):
            calls = self._dry_run(self._ids(rows, prompts))
            hidden, start = calls.embedded, spool.tell()
            if layer > 0:
                count = hidden.numel()
                values = np.fromfile(spool, dtype=_numpy_dtype(self.dtype), count=count)
                hidden = torch.from_numpy(values).view(hidden.shape).to(self.device)
            block, hidden = self._frozen_block(layer, prompts, hidden, calls)
            spool.seek(start)
            hidden.cpu().numpy().tofile(spool)
            yield block
            bar.update(len(prompts))

    def _ids(self, rows: list[list[int]], batch: np.ndarray) -> torch.Tensor:
        return torch.tensor([rows[i] for i in batch], device=self.device)

    @torch.no_grad()
    def _frozen_run(self, ids: torch.Tensor, prompts: np.ndarray) -> FrozenRun:
        calls = self._dry_run(ids)
        hidden, blocks = calls.embedded, []
        for layer in range(self.n_layers):
            block, hidden = self._frozen_block(layer, prompts, hidden, calls)
            blocks.append(block)
        x = torch.stack([block.x for block in blocks] + [blocks[-1].x_next])
        return FrozenRun(blocks, prompts, x)

    @torch.no_grad()
    def _frozen_block(
        self, layer: int, prompts: np.ndarray, hidden: torch.Tensor, calls: _Calls
    ) -> tuple[FrozenBlock, torch.Tensor]:
        """Pass whole sequences through one block and keep what the last token saw."""
        recorder = RecordingCache()
        after = self.call_block(layer, calls.sequence[layer], hidden, recorder)
        x, x_next = hidden[:, -1].clone(), after[:, -1].clone()
        if not bool(torch.isfinite(x_next).all()):
            raise FloatingPointError(
                f"`model` must have finite states; got a non-finite one after layer {layer}. "
                "Use float32 or float64 weights that do not overflow."
            )
        if recorder.key is None:
            raise ValueError(
                f"`model` must store keys and values in its cache; layer {layer} of "
                f"{type(self.hf).__name__} did not. Recurrent layers have no frozen context."
            )
        # a sliding window keeps only the last tokens of the context
        keep = slice(hidden.shape[1] - 1 - calls.n_context[layer], hidden.shape[1] - 1)
        frozen = FrozenCache(
            recorder.key[:, :, keep].contiguous(), recorder.value[:, :, keep].contiguous()
        )
        block = FrozenBlock(layer, prompts, x, x_next, self, calls.step[layer], frozen)
        return block, after

    @torch.no_grad()
    def _dry_run(self, ids: torch.Tensor) -> _Calls:
        if self.hf.training:
            raise ValueError(
                "`model` must be in eval mode; got train mode, where dropout changes every run. "
                "Call `model.hf.eval()`."
            )
        n_tokens = ids.shape[1]
        ones = torch.ones_like(ids)
        sequence, embedded = self._record_calls(ids, ones, DynamicCache(config=self.hf.config))
        cache: Any = DynamicCache(config=self.hf.config)
        if n_tokens > 1:
            # only its length matters: the masks of the one-token step are made from it
            blank = torch.zeros(1, 1, n_tokens - 1, 1, dtype=self.dtype, device=self.device)
            for layer in range(self.n_layers):
                cache.update(blank, blank, layer)
            n_context = [cache.layers[layer].keys.shape[-2] for layer in range(self.n_layers)]
        else:
            n_context = [0] * self.n_layers
        with self.attention(LAST_TOKEN_ATTENTION):
            step, _ = self._record_calls(ids[:, -1:], ones, cache)
        return _Calls(embedded, sequence, step, n_context)

    def _record_calls(self, ids, mask, cache) -> tuple[list[tuple[tuple, dict]], torch.Tensor]:
        """Run the model with blocks that only note how they are called."""
        calls: list[tuple[tuple, dict]] = []
        states: list[torch.Tensor] = []

        def note(layer, args, kwargs):
            states.append(args[0] if args else kwargs["hidden_states"])
            calls.append(
                (
                    tuple(_without_cache(a) for a in (None, *args[1:])) if args else (),
                    {k: _without_cache(a) for k, a in kwargs.items() if k != "hidden_states"},
                )
            )
            return states[-1]

        with self._blocks_replaced(note):
            self.hf.base_model(ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        if len(calls) != self.n_layers or states[0].dim() != 3:
            raise ValueError(
                f"`model` must call each of its {self.n_layers} blocks once with one residual "
                f"stream; got {len(calls)} calls with states of shape {tuple(states[0].shape)}. "
                "Multi-stream residuals have no single depth map."
            )
        return calls, states[0]

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, x_last: torch.Tensor) -> torch.Tensor:
        """Logits (prompt, token) that the model's own head gives for last states x_L."""
        with self._blocks_replaced(lambda *_: x_last[:, None, :]):
            return self.hf(ids[:, -1:]).logits[:, -1]

    @contextlib.contextmanager
    def _blocks_replaced(self, function):
        """Blocks that call ``function(layer, args, kwargs)`` instead of computing."""
        # a block may carry a forward of its own on the instance (accelerate does that)
        old = [block.__dict__.get("forward") for block in self._blocks]
        try:
            for layer, block in enumerate(self._blocks):
                block.forward = self._replacement(layer, function)
            yield
        finally:
            for block, forward in zip(self._blocks, old, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward

    def _replacement(self, layer, function):
        def forward(*args, **kwargs):
            state = function(layer, args, kwargs)
            if self._tuple_length:
                return (state, *[None] * (self._tuple_length - 1))
            return state

        return forward

    def _probe_output(self) -> int:
        """0 if blocks return a tensor, else the length of the tuple they return."""
        seen: list[Any] = []
        handle = self._blocks[0].register_forward_hook(lambda *a: seen.append(a[2]))
        try:
            with torch.no_grad():
                self.hf.base_model(torch.zeros(1, 1, dtype=torch.long, device=self.device))
        finally:
            handle.remove()
        return len(seen[0]) if isinstance(seen[0], tuple) else 0

    def call_block(self, layer: int, call, hidden: torch.Tensor, cache) -> torch.Tensor:
        """Call the original block module with another state and another cache."""
        args, kwargs = call
        args = tuple(cache if a is _CACHE else a for a in args)
        kwargs = {k: cache if a is _CACHE else a for k, a in kwargs.items()}
        if args:
            out = self._blocks[layer](hidden, *args[1:], **kwargs)
        else:
            out = self._blocks[layer](hidden_states=hidden, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    @contextlib.contextmanager
    def attention(self, name: str):
        """Switch the attention implementation for a while."""
        old = [config._attn_implementation for config in self._configs]
        try:
            for config in self._configs:
                config._attn_implementation = name
            yield
        finally:
            for config, implementation in zip(self._configs, old, strict=True):
                config._attn_implementation = implementation

    def block_hooks(self, pre_hooks: dict[int, Any]) -> contextlib.ExitStack:
        """Hook the input of blocks on the whole sequence: the slow way, for checks.

        ``pre_hooks[layer](hidden)`` returns the hidden states (prompt, token, feature) to use;
        the key L sees the output of the last block.
        """
        stack = contextlib.ExitStack()
        for layer, function in pre_hooks.items():
            if layer == self.n_layers:
                handle = self._blocks[-1].register_forward_hook(_output_hook(function))
            else:
                handle = self._blocks[layer].register_forward_pre_hook(
                    _input_hook(function), with_kwargs=True
                )
            stack.callback(handle.remove)
        return stack


def _input_hook(function):
    def hook(module, args, kwargs):
        if args:
            return (function(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": function(kwargs["hidden_states"])}

    return hook


def _output_hook(function):
    def hook(module, args, output):
        if isinstance(output, tuple):
            return (function(output[0]), *output[1:])
        return function(output)

    return hook


_CACHE = object()  # marks the place of the cache among recorded arguments


def _without_cache(argument):
    return _CACHE if isinstance(argument, Cache) else argument


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    return np.dtype(str(dtype).removeprefix("torch."))


def _progress(title: str | None, total: int, unit: str):
    """A bar for work over two seconds, on a terminal only."""
    disable = True if title is None else None
    return tqdm(total=total, desc=title, unit=unit, delay=1, leave=False, disable=disable)
