"""A Hugging Face causal language model as a sequence of maps of the last token's state.

With `depthsys.lm.checkpoint` and `depthsys.lm.replay` the only file that knows Hugging Face names.
The model is wrapped, never rewritten: its own block modules are called with the last token's state
replaced and the keys and values of the earlier tokens frozen. That is exact for a causal model,
because the last token influences no earlier one.
"""

import hashlib
import json
import operator
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import xarray as xr
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from depthsys._version import __version__
from depthsys.lm import contract
from depthsys.lm.checkpoint import (
    DTYPES,
    check_padding,
    checked_device,
    checked_fingerprint,
    first_line,
    input_device,
    read_config,
    refuse_config,
)
from depthsys.lm.frozen import FrozenBlock, FrozenRun, Run
from depthsys.lm.prompts import Texts, length_batches
from depthsys.lm.replay import Blocks, Calls
from depthsys.lm.sweep import Layer, Sweep

_UNSUPPORTED = (RuntimeError, AttributeError, NotImplementedError, LookupError, TypeError)


class DepthModel:
    """A causal language model, wrapped so that its blocks act on the last token's state.

    Parameters
    ----------
    hf
        A Hugging Face causal language model. It is put in eval mode, its parameters are frozen,
        and experts run in their eager implementation; nothing else is changed.
    tokenizer
        Its tokenizer; needed only for texts, not for token ids.
    name
        What to call it in results.
    max_tokens
        Longer texts are cut on the right; never above the model's context.

    left_padding
        Run prompts of unlike length in one batch, padded on the left, instead of one batch per
        length: fewer and larger batches for short texts. Exact either way.

    Attributes
    ----------
    n_layers, n_features
        L blocks, states in R^H.
    contract
        Report of the check made at load: largest relative errors of the replay against the
        model's own forward pass, of Jacobians against central differences, and so on.
    fingerprint, revision
        SHA-256 over configuration and weights when the model was wrapped (wrap it again after you
        edit them); commit on the Hugging Face hub, or "local".

    Raises
    ------
    ValueError
        If the model breaks the contract (see `depthsys.lm.contract`), with the reason.
    """

    def __init__(
        self,
        hf: Any,
        tokenizer: Any = None,
        *,
        name: str = "model",
        max_tokens: int = 128,
        left_padding: bool = False,
    ):
        if not hasattr(hf, "config"):
            raise TypeError(
                f"`hf` must be a Hugging Face model; got {hf!r}. To load one, use "
                "`DepthModel.load(name_or_folder)`."
            )
        if max_tokens < 1:
            raise ValueError(f"`max_tokens` must be >= 1; got {max_tokens}. The default is 128.")
        refuse_config(hf.config)
        # weights may be spread over devices or quantised; the embedding sets where states live
        self.device, self.dtype = input_device(hf), hf.get_input_embeddings().weight.dtype
        if self.dtype not in DTYPES.values():
            raise ValueError(
                f"`model` must compute in {sorted(DTYPES)}; got {self.dtype}. Call `.float()`."
            )
        self.hf: Any = hf.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.left_padding = left_padding
        text_config: Any = hf.config.get_text_config(decoder=True)
        self.n_layers = text_config.num_hidden_layers
        self.n_features = text_config.hidden_size
        context = getattr(text_config, "max_position_embeddings", None)
        self._max_tokens = max_tokens if context is None else min(max_tokens, context)
        if left_padding:
            check_padding(hf.config, self.max_tokens)
        self._versions = _versions(hf)
        self.revision = getattr(hf.config, "_commit_hash", None) or "local"
        try:
            self.fingerprint = checked_fingerprint(hf)
            self.blocks = Blocks(hf)
            self.contract = contract.check(self)
        except _UNSUPPORTED as error:
            # whatever a family does that a replay cannot follow ends here, as a refusal
            raise ValueError(
                f"`model` must be replayable block by block; {name!r} ({type(hf).__name__}) is "
                f"not: {type(error).__name__}: {first_line(error)} It cannot be used."
            ) from error

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        max_tokens: int = 128,
        left_padding: bool = False,
        trust_remote_code: bool = False,
        pickled_weights: bool = False,
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
        left_padding
            See the class.
        trust_remote_code
            Run Python code that comes with the model. Never done unless asked for here: it can do
            anything you can.
        pickled_weights
            Read ``pytorch_model.bin`` (by torch's restricted unpickler) where there are no
            safetensors weights.

        Raises
        ------
        ValueError
            If the path, the architecture, the weights, the device or the dtype is not usable.
        """
        torch_device = checked_device(device)
        if dtype not in DTYPES:
            raise ValueError(
                f"`dtype` must be one of {sorted(DTYPES)}; got {dtype!r}. Central differences need "
                "float32 at least."
            )
        source = str(name_or_path)
        config = read_config(source, trust_remote_code=trust_remote_code)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=DTYPES[dtype],
                trust_remote_code=trust_remote_code,
                # None: safetensors first, then others
                use_safetensors=None if pickled_weights else True,
                output_loading_info=True,
            )
            hf, info = loaded
        except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
            raise ValueError(
                f"`model` must hold safetensors weights; got {source!r}: "
                f"{first_line(error)} Save it again with `save_pretrained`, or see "
                "`trust_remote_code` and `pickled_weights`."
            ) from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise ValueError(
                f"`model` must come with a tokenizer; got {source!r}: {first_line(error)} Save one "
                "with it; for token ids alone, load it yourself and use `DepthModel(hf)`."
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
        return cls(
            hf.to(torch_device),
            tokenizer,
            name=source,
            max_tokens=max_tokens,
            left_padding=left_padding,
        )

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
            "left_padding": int(self.left_padding),
            "created": created,
            "history": f"{created} depthsys.lm.{action}",
        }

    @property
    def max_tokens(self) -> int:
        """Longer texts are cut on the right; never above the model's context."""
        return self._max_tokens

    def which(self, prompts) -> dict[str, str | int]:
        """Attrs that say which prompts a result is of, and how many of them were cut."""
        rows, n_cut = self.tokenize(prompts)
        tokens = self.tokens_sha256(rows)
        # token ids and plain lists have no fingerprint but that of their tokens
        sha256 = getattr(prompts, "sha256", tokens)
        return {"prompts_sha256": sha256, "tokens_sha256": tokens, "n_cut": n_cut}

    def __repr__(self) -> str:
        return (
            f"DepthModel({self.name!r}, {type(self.hf).__name__}, L={self.n_layers}, "
            f"H={self.n_features}, {self.dtype_name}, {self.device})"
        )

    @property
    def numpy_dtype(self) -> np.dtype:
        """The dtype as numpy's."""
        return np.dtype(self.dtype_name)

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
            ids = [_token_ids(row) for row in strings]
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
        """Concept directions (depth, input, feature), unit length, as a tensor of this model.

        ``concept`` holds ``direction`` (depth, feature), or (depth, input, feature) for several
        inputs per layer.
        """
        direction = concept["direction"]
        if "input" not in direction.dims:
            direction = direction.expand_dims("input")
        v = direction.transpose("depth", "input", "feature").values
        expected = (self.n_layers + 1, v.shape[1], self.n_features)
        if v.shape != expected or v.shape[1] < 1 or not np.isfinite(v).all():
            raise ValueError(
                "`concept` must hold a finite direction (depth, feature), or (depth, input, "
                f"feature), of shape {(expected[0], expected[2])} per input; "
                f"got {concept['direction'].shape}. Compute it with this model."
            )
        norms = np.linalg.norm(v, axis=-1)
        if abs(norms - 1).max() > 1e-6:
            depth, _ = np.unravel_index(abs(norms - 1).argmax(), norms.shape)
            worst = norms[depth][abs(norms[depth] - 1).argmax()]
            raise ValueError(
                f"`concept` must hold directions of unit length; got norm {worst:.7g} at "
                f"depth {depth}. Divide by the norm; a zero direction is none."
            )
        if v.shape[1] > self.n_features:
            raise ValueError(
                f"`concept` must hold at most {self.n_features} directions per depth, the width of "
                f"the model; got {v.shape[1]}. For all of R^H use `inputs='free'`."
            )
        return torch.as_tensor(v, dtype=self.dtype, device=self.device)

    def direction(self, concept: xr.Dataset) -> torch.Tensor:
        """The one direction (depth, feature) of a concept; ValueError for several."""
        v = self.directions(concept)
        if v.shape[1] != 1:
            raise ValueError(
                f"`concept` must hold one direction per depth here; got {v.shape[1]}. Select one: "
                "`concept.isel(input=0)`."
            )
        return v[:, 0]

    # ---------------------------------------------------------------- runs

    def run(self, prompts: Texts | Sequence[str] | Sequence[Sequence[int]]) -> Run:
        """Nominal run of texts or token ids, all kept in memory (see `stream` for many)."""
        return Run(list(self.stream(prompts)), len(prompts), self.tokenize(prompts)[1])

    def stream(self, prompts, progress: str | None = None) -> Iterator[FrozenRun]:
        """Nominal runs, one length batch at a time: memory does not grow with the prompts."""
        rows, _ = self.tokenize(prompts)
        with self.progress(progress, len(rows), "prompt") as bar:
            for prompts in self.batches(rows):
                yield self._frozen_run(rows, prompts)
                bar.update(len(prompts))

    def sweep(self, prompts, progress: str | None = None) -> Iterator[Layer]:
        """Layer by layer, all prompts of a layer before the next layer; see `Sweep`.

        Each `Layer` iterates over the `FrozenBlock` of every batch.
        """
        with Sweep(self, prompts) as sweep:
            yield from sweep.forward(progress)

    def progress(self, title: str | None, total: int, unit: str):
        """A bar for work over two seconds, on a terminal only."""
        disable = True if title is None else None
        return tqdm(total=total, desc=title, unit=unit, delay=1, leave=False, disable=disable)

    def batches(self, rows: list[list[int]]) -> list[np.ndarray]:
        """Row numbers of prompts that run together: more of them in narrow models."""
        return length_batches(
            [len(row) for row in rows],
            max_tokens=max(1024, 2**19 // self.n_features),
            max_prompts=max(32, 2**14 // self.n_features),
            padded=self.left_padding,
        )

    def calls(self, rows: list[list[int]], prompts: np.ndarray) -> Calls:
        """The arguments with which the model calls its blocks on these prompts."""
        if self._versions != _versions(self.hf):
            raise ValueError(
                "`model` must keep the weights it was wrapped with; they have changed, and its "
                "fingerprint and contract are those of the old ones. Wrap it again."
            )
        n_tokens = max(len(rows[i]) for i in prompts)
        # a pad token is never read: any id will do
        padded = [[0] * (n_tokens - len(rows[i])) + rows[i] for i in prompts]
        lengths = torch.tensor([len(rows[i]) for i in prompts], device=self.device)
        real = torch.arange(n_tokens, device=self.device) >= n_tokens - lengths[:, None]
        ids = torch.tensor(padded, device=self.device)
        return self.blocks.dry_run(ids, None if bool(real.all()) else real)

    @torch.no_grad()
    def _frozen_run(self, rows: list[list[int]], prompts: np.ndarray) -> FrozenRun:
        calls = self.calls(rows, prompts)
        hidden, blocks = calls.embedded, []
        for layer in range(self.n_layers):
            block, hidden = self.frozen_block(layer, prompts, hidden, calls)
            blocks.append(block)
        x = torch.stack([block.x for block in blocks] + [blocks[-1].x_next])
        return FrozenRun(blocks, prompts, x)

    @torch.no_grad()
    def frozen_block(
        self, layer: int, prompts: np.ndarray, hidden: torch.Tensor, calls: Calls
    ) -> tuple[FrozenBlock, torch.Tensor]:
        """Pass whole sequences through one block and keep what the last token saw."""
        after, frozen, margin = self.blocks.sequence(layer, calls, hidden)
        x, x_next = hidden[:, -1].clone(), after[:, -1].clone()
        if not bool(torch.isfinite(x_next).all()):
            raise FloatingPointError(
                f"`model` must have finite states; got a non-finite one after layer {layer}. "
                "Use float32 or float64 weights that do not overflow."
            )
        block = FrozenBlock(layer, prompts, x, x_next, margin, self.blocks, calls, frozen)
        return block, after

    def head(self, x_last: torch.Tensor) -> torch.Tensor:
        """Logits (row, token) of the model's own final norm and unembedding, for x_L (row, H)."""
        ids = torch.zeros(len(x_last), 1, dtype=torch.long, device=self.device)
        with self.blocks.replaced(lambda *_: x_last[:, None, :]):
            return self.hf(ids).logits[:, -1]

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, x_last: torch.Tensor) -> torch.Tensor:
        """Logits (prompt, token) that the model's own head gives for last states x_L."""
        with self.blocks.replaced(lambda *_: x_last[:, None, :]):
            return self.hf(ids[:, -1:]).logits[:, -1]


def _token_ids(row: Any) -> list[int]:
    try:
        if isinstance(row, str) or any(isinstance(token, (bool, np.bool_)) for token in row):
            raise TypeError
        return [operator.index(token) for token in row]
    except TypeError as error:
        raise TypeError(
            f"`prompts` must be a list of texts or of lists of token ids; got {row!r} among the "
            "prompts. Write [[1, 2, 3]] for one prompt."
        ) from error


def _versions(hf: Any) -> list[tuple[int, int]]:
    """What changes when weights are replaced or written to (but not through ``.data``)."""
    return [(id(p), p._version) for p in hf.parameters() if not p.is_meta]
