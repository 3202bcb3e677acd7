"""A Hugging Face causal language model as a sequence of maps of the last token's state.

The model is wrapped, never rewritten: its own block modules are called with the last token's state
replaced and the keys and values of the earlier tokens frozen. That is exact for a causal model,
because the last token influences no earlier one. What knows Hugging Face lies in `depthsys.lm.hf`.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from depthsys.lm import cards, contract
from depthsys.lm.batches import writing_batches
from depthsys.lm.contexts import Budget
from depthsys.lm.hf.blocks import Blocks
from depthsys.lm.hf.causes import first_line, memory_error, out_of_memory
from depthsys.lm.hf.checkpoint import (
    DTYPES,
    begin_backward,
    check_padding,
    checked_device,
    checked_dtype,
    fitting,
    input_device,
    load_checkpoint,
    refuse_config,
)
from depthsys.lm.hf.fingerprint import checked_fingerprint
from depthsys.lm.hf.messages import TokensWarning
from depthsys.lm.hf.placing import MaxMemory, checked_placing
from depthsys.lm.hf.rendering import around
from depthsys.lm.hf.tokens import Prompts, Tokens, tokenized, tokens_sha256
from depthsys.lm.hf.writing import new_tokens
from depthsys.lm.kinds import short
from depthsys.lm.precision import dtype_name, wide_dtype
from depthsys.lm.run import Run
from depthsys.lm.switch import checked_products
from depthsys.prompting import Prompting

_UNSUPPORTED = (RuntimeError, AttributeError, NotImplementedError, LookupError, TypeError)


class DepthModel:
    r"""A causal language model, wrapped so that its blocks act on the last token's state.

    Parameters
    ----------
    hf
        A Hugging Face causal language model. It is put in eval mode, its parameters are frozen,
        and experts run in their eager implementation; nothing else is changed.
    tokenizer
        Its tokenizer; needed only for texts, not for token ids.
    name
        What to call it in results.
    template
        What stands around every text, for example ``"Review: {text}\nSentiment:"``; with ``chat``,
        around the text in the user's message.
    chat
        Put every text into the tokenizer's chat template: as the message of a user, followed by
        the header of the answer.
    system_message, answer
        With ``chat``: what the system says before, and how the answer begins.
    read_at
        Whose state is meant: that of the "last" token of the prompt; of the last token of the
        "text"; of the token with that index, counted from the end if it is negative; or of the
        token where a marker ends, any other string. Later tokens are not fed: they do not
        influence it.
    max_tokens
        Longer prompts are cut; never above the model's context.
    cut
        How: "right" keeps the first tokens. "left" keeps the last ones, and a token that begins
        every text. "middle" leaves out the middle of the content and keeps what a chat template
        puts around it: its header, and the beginning of the answer, whose last token is the state.
        What ``template`` and ``chat`` put around a text is never cut, nor counted as text.
    left_padding
        Run prompts of unlike length in one batch, padded on the left by at most 15 %, instead of
        one batch per length: fewer and larger batches for short texts. Exact either way. None
        (the default) does so where the family passes the contract with padding.
    products
        How blocks, the head and derivatives multiply float32 numbers: in "float32", or in "tf32",
        on a GPU that has it, where the factors are rounded to 11 bits; two runs are then told apart
        only by steps as large as in float16 (`check_step`). What the process has chosen
        (``torch.set_float32_matmul_precision``) does not matter.

    Attributes
    ----------
    n_layers, n_features
        L blocks, states in R^H.
    contract
        Report of the check made at load: largest relative errors of the replay against the
        model's own forward pass, of Jacobians against central differences, and so on.
    fingerprint, revision
        Digest of configuration and all weights when the model was wrapped (wrap it again after you
        edit them), see `depthsys.lm.hf.fingerprint`; commit on the Hugging Face hub, or "local".
    adapter
        What was merged into the weights when they were loaded, in words; None for nothing.
    source
        What they were loaded from: "folder", "hub", "GGUF file"; "given" where it is not known.

    Raises
    ------
    ValueError
        If the model breaks the contract (see `depthsys.lm.contract`), with the reason.
    """

    adapter: str | None = None
    source: str = "given"

    def __init__(
        self,
        hf: Any,
        tokenizer: Any = None,
        *,
        name: str = "model",
        template: str | None = None,
        chat: bool = False,
        system_message: str | None = None,
        answer: str | None = None,
        read_at: str | int = "last",
        max_tokens: int = 128,
        cut: str = "right",
        left_padding: bool | None = None,
        products: str = "float32",
    ):
        if not hasattr(hf, "config"):
            raise TypeError(
                f"`hf` must be a Hugging Face model; got {short(hf)}. To load one, use "
                "`DepthModel.load(name_or_folder)`."
            )
        prompting = Prompting(template, chat, system_message, answer, read_at, cut, max_tokens)
        if not prompting.is_plain and tokenizer is not None:
            around(tokenizer, prompting)  # before any work
        refuse_config(hf.config)
        # weights may be spread over devices or quantised; the embedding sets where states live
        self.device, self.dtype = input_device(hf), hf.get_input_embeddings().weight.dtype
        begin_backward(self.device)
        if self.dtype not in DTYPES.values():
            raise ValueError(
                f"`model` must compute in {sorted(DTYPES)}; got {self.dtype}. Call `.float()`."
            )
        self.products = checked_products(products, self.dtype, self.device)
        self.hf: Any = hf.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self._has_said_note = False
        self.left_padding = bool(left_padding)
        text_config: Any = hf.config.get_text_config(decoder=True)
        self.n_layers = text_config.num_hidden_layers
        self.n_features = text_config.hidden_size
        fits = fitting(prompting.max_tokens, text_config)
        # as they are, while the check runs prompts of its own
        self._prompting = Prompting(max_tokens=fits)
        if left_padding:
            check_padding(hf.config, self.max_tokens)
        self.revision = getattr(hf.config, "_commit_hash", None) or "local"
        try:
            self.fingerprint = checked_fingerprint(hf)
            self.blocks = Blocks(hf, self.products)
            self.contract = contract.check(self)
            if left_padding is None:
                self.left_padding = contract.allows_padding(self)
        except (*_UNSUPPORTED, MemoryError) as error:
            if out_of_memory(error):
                raise memory_error(name, error) from error
            # whatever a family does that a replay cannot follow ends here, as a refusal
            raise ValueError(
                f"`model` must be replayable block by block; {name!r} ({type(hf).__name__}) is "
                f"not: {type(error).__name__}: {first_line(error)} It cannot be used."
            ) from error
        self._prompting = replace(prompting, max_tokens=fits)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device = "auto",
        device_map: str | None = None,
        max_memory: MaxMemory | None = None,
        dtype: str | torch.dtype = "float32",
        template: str | None = None,
        chat: bool = False,
        system_message: str | None = None,
        answer: str | None = None,
        read_at: str | int = "last",
        max_tokens: int = 128,
        cut: str = "right",
        left_padding: bool | None = None,
        products: str = "float32",
        trust_remote_code: bool = False,
        pickled_weights: bool = False,
    ) -> "DepthModel":
        """Load a model and its tokenizer with the Auto classes and check the contract.

        Parameters
        ----------
        name_or_path
            A local folder; a ``.gguf`` file, or a folder with one; a Hugging Face name, or
            ``name@revision`` (a branch, tag or commit). An adapter (LoRA and the like) is merged
            into the weights beside it, or those that it names; see ``adapter``.
        device
            "auto" (the first GPU if there is one), "cpu", "cuda", "cuda:1", ...
        device_map
            "auto" for a model larger than the memory of the device: embeddings, head and the first
            blocks lie there, as many as fit into 70 % of what is free beside two that come and
            go; the next ones wait in the memory of the host, as many as fit into 70 % of it, and
            the rest in the files of the checkpoint. It is read to these places, never as a whole
            to one of them; each sweep brings every waiting layer in once. None puts it all on the
            device.
        max_memory
            With ``device_map``, how much weights may take of the device and of the host, as in
            ``{0: "20GiB", "cpu": "100GiB"}``.
        dtype
            "float32" or "float64", or torch's and numpy's own: weights of any precision are read
            into it. "bfloat16" or "float16" keep the model in 16 bits, see `depthsys.lm.precision`:
            for states, Jacobian products and playing; two runs are told apart only by steps well
            above its rounding (`check_step`).
        template, chat, system_message, answer, read_at, max_tokens, cut, left_padding, products
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
        torch_dtype = checked_dtype(dtype)
        placing = checked_placing(device_map, max_memory, torch_device)
        checked_products(products, torch_dtype, torch_device)  # before any work
        source = str(name_or_path)
        loaded = load_checkpoint(
            source,
            torch_dtype,
            trust_remote_code=trust_remote_code,
            pickled_weights=pickled_weights,
            placing=placing,
        )
        try:
            hf = loaded.hf if placing is not None else loaded.hf.to(torch_device)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise memory_error(source, error) from error
        made = cls(
            hf,
            loaded.tokenizer,
            name=source,
            template=template,
            chat=chat,
            system_message=system_message,
            answer=answer,
            read_at=read_at,
            max_tokens=max_tokens,
            cut=cut,
            left_padding=left_padding,
            products=products,
        )
        made.adapter = loaded.found.adapter and str(loaded.found.adapter)
        made.source = loaded.found.kind
        made.revision = loaded.found.commit or made.revision
        return made

    @property
    def max_tokens(self) -> int:
        """Longer prompts are cut; never above the model's context."""
        return self._prompting.max_tokens

    @property
    def prompting(self) -> Prompting:
        """How texts become prompts: template, the token that is read, where long ones are cut."""
        return self._prompting

    def __repr__(self) -> str:
        return cards.of_model(self).text()

    def _repr_html_(self) -> str:
        return cards.of_model(self).html()

    @property
    def numpy_dtype(self) -> np.dtype:
        """A dtype of numpy that holds the states: the model's own, or float32 for 16 bits."""
        return np.dtype(dtype_name(wide_dtype(self.dtype)))

    @property
    def dtype_name(self) -> str:
        """Name of the dtype, for example "float32" or "bfloat16"."""
        return dtype_name(self.dtype)

    # ---------------------------------------------------------------- texts and runs

    def tokenize(self, prompts: Prompts) -> tuple[list[list[int]], int]:
        """Token ids of every text up to the one that is read, cut, and how many were cut.

        Takes token ids as well as texts; they are only checked and cut.
        """
        found = self.tokens(prompts)
        return found.rows, found.n_cut

    def tokens(self, prompts: Prompts) -> Tokens:
        """`tokenize`, with a note on what else was done; said once, too, as a warning."""
        found = tokenized(
            prompts,
            self.tokenizer,
            self.prompting,
            n_tokens=self.hf.get_input_embeddings().num_embeddings,
            bos=getattr(self.hf.config, "bos_token_id", None),
        )
        if found.note and not self._has_said_note:
            self._has_said_note = True
            warnings.warn(f"`prompts`: {found.note}.", TokensWarning, stacklevel=2)
        return found

    def tokens_sha256(self, prompts: Prompts) -> str:
        """Fingerprint of the token ids of these prompts."""
        return tokens_sha256(self.tokenize(prompts)[0])

    def run(
        self,
        prompts: Prompts,
        *,
        budget: Budget | None = None,
        contexts: bool = True,
        tokens: str = "last",
    ) -> Run:
        """Nominal run of texts or token ids: prefilled once, used by all of `depthsys.lm`.

        Parameters
        ----------
        prompts
            Texts, or token ids.
        budget
            How much of which memory the frozen contexts may take; by default a quarter of what is
            free. See `Budget`.
        contexts
            False if only states are wanted, for a concept direction for example: then no context
            is kept, and one that is needed after all is computed again.
        tokens
            Of which tokens the nominal states are kept: the "last" one of each prompt, or "all"
            (see `Run.token_states_by_batch`), which takes (L + 1) states per token of the budget.

        Raises
        ------
        FloatingPointError
            If a state is not finite.
        """
        return Run(self, prompts, budget=budget, contexts=contexts, tokens=tokens)

    @overload
    def generate(  # pyright: ignore[reportOverlappingOverload]: a text is a sequence of texts
        self, prompts: str, *, max_new_tokens: int = 40, **options: Any
    ) -> str: ...
    @overload
    def generate(
        self, prompts: Prompts, *, max_new_tokens: int = 40, **options: Any
    ) -> list[str]: ...
    def generate(
        self, prompts: str | Prompts, *, max_new_tokens: int = 40, **options: Any
    ) -> str | list[str]:
        """New texts that the model writes behind the prompts, greedily unless asked otherwise.

        Within `steering` it writes them as it is pushed.

        Parameters
        ----------
        prompts
            Texts, put into the model's template, or token ids; or one text.
        max_new_tokens
            The longest new text.
        **options
            Of the model's own ``generate``, for example ``do_sample=True``, ``num_beams=3``.

        Returns
        -------
        list of str
            What follows each prompt, without the prompt and without special tokens; of one text a
            str.

        Raises
        ------
        ValueError
            If there is no tokenizer or no room for the text, or if the state is read before the
            prompt ends, so that what would go on is not the prompt, or if an option asks for more
            than one text per prompt (call ``model.hf.generate`` for that).
        FloatingPointError
            If the logits overflow within `steering`.
        """
        if self.tokenizer is None:
            raise ValueError(
                "`tokenizer` must be given where texts are written; got None. Call "
                "`model.hf.generate`, which gives token ids."
            )
        if isinstance(prompts, str):
            return self.generate([prompts], max_new_tokens=max_new_tokens, **options)[0]
        written = self.new_tokens(prompts, max_new_tokens=max_new_tokens, **options)
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in written]

    def new_tokens(
        self, prompts: Prompts, *, max_new_tokens: int = 40, **options: Any
    ) -> list[list[int]]:
        """`generate` as token ids, with the one that ends a text where the model wrote it."""
        if self.prompting.read_at != "last":
            raise ValueError(
                "`read_at` must be 'last' where a model writes: later tokens of a prompt are not "
                f"fed; got {short(self.prompting.read_at)}. Load the model without it."
            )
        rows, _ = self.tokenize(prompts)
        batches = writing_batches([len(row) for row in rows], padded=self.left_padding)
        return new_tokens(
            self.blocks, rows, batches, max_new_tokens=max_new_tokens, options=options
        )

    def check_weights(self) -> None:
        """ValueError if the weights are no longer those that were wrapped and checked."""
        self.blocks.weights.check()

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


@short.register
def _(value: DepthModel) -> str:
    return f"a DepthModel ({value.name[-40:]!r})"
