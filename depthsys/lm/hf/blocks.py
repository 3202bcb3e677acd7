"""The blocks of a Hugging Face model: how they are called, and calls with another last token.

How a block is called (masks, positions, rotary tables) is learnt by a *dry run*: the model's
own forward pass with every block replaced by "note the arguments, pass the state on". It costs
an embedding look-up, and spares this package any knowledge of the family.
"""

import contextlib
import inspect
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from depthsys.lm.at_once import Sizes, too_much
from depthsys.lm.hf.attention import (
    LAST_TOKEN_ATTENTION,
    AlteredKeysError,
    FrozenCache,
    RecordingCache,
    RepeatingCache,
    held_weights,
    last_token_attention,
)
from depthsys.lm.hf.calls import Call, Calls
from depthsys.lm.hf.checkpoint import (
    find_blocks,
    find_parts,
    find_routers,
    first_line,
    has_experts,
    input_device,
)
from depthsys.lm.hf.detach import (
    DETACHED_ATTENTION,
    Switches,
    detached_attention,
    own_attentions,
)
from depthsys.lm.hf.layer_norm import layer_norms, twice_derived
from depthsys.lm.hf.own_work import own_work
from depthsys.lm.hf.residence import Residence
from depthsys.lm.hf.router_margin import router_margin, rules_are_known
from depthsys.lm.hf.weights import Weights
from depthsys.lm.switch import products_in

# Hooks that leave calls of this package alone.
STEERING = "depthsys.lm.hf.steering_hooks"

# Bytes of frozen context that may be repeated at once for a block with attention of its own.
REPEATED_CONTEXT = 256 * 2**20

# Heads of a model that does not say how many it has.
MANY_HEADS = 32

_LOCKS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_CACHE = object()  # marks the place of the cache among recorded arguments


class Blocks:
    """The blocks of one model, callable with the last token's state replaced.

    Attributes
    ----------
    weights
        What the weights were when this was made.
    products
        How products of float32 are made, see `depthsys.lm.switch`.
    residence
        Brings in the weights of blocks that wait elsewhere.
    margins_are_known
        False if a router chooses by a rule that is not known here (tried on random states).
    copies_are
        How a block takes many independent states of the last token: "tokens" if it calls
        Hugging Face's attention interface with the keys its cache returns, which is then
        `last_token_attention`; "rows" of the batch, with repeated context, if it has an attention
        of its own or changes the keys in between.
    """

    def __init__(self, hf: Any, products: str = "float32"):
        self.hf, self.products = hf, products
        self.weights = Weights(hf, self._lock)
        self._list: list[Any] = list(find_blocks(hf))
        self.residence = Residence(self._list)
        self._configs: list[Any] = list(
            {
                id(m.config): m.config
                for m in hf.modules()
                if hasattr(getattr(m, "config", None), "_attn_implementation")
            }.values()
        )
        self._routers = [find_routers(hf, block) for block in self._list]
        self._has_experts = [
            bool(routers) or has_experts(block)
            for routers, block in zip(self._routers, self._list, strict=True)
        ]
        self._width: int = hf.config.get_text_config(decoder=True).hidden_size
        routers = [router for routers in self._routers for router in routers]
        self.margins_are_known = rules_are_known(routers, self._width)
        self.takes_positions = "position_ids" in _parameters(hf.base_model)
        if LAST_TOKEN_ATTENTION not in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS.register(LAST_TOKEN_ATTENTION, last_token_attention)
            eager_mask = ALL_MASK_ATTENTION_FUNCTIONS["eager"]
            ALL_MASK_ATTENTION_FUNCTIONS.register(LAST_TOKEN_ATTENTION, eager_mask)
            ALL_ATTENTION_FUNCTIONS.register(DETACHED_ATTENTION, detached_attention)
        # the grouped kernels have no float64
        if getattr(hf.config.get_text_config(), "_experts_implementation", None):
            hf.set_experts_implementation("eager")
        self.device = input_device(hf)
        self.arrangements: dict[int, str] = {}  # how the parts of a layer meet, where it was asked
        # how far a detached layer is from linear, where it was asked; and what is switched there
        self.linearity: dict[tuple[int, str], float] = {}
        self._switches: dict[int, Switches] = {}
        self.sublayers: dict[int, str] = {}  # the same by values, see `FrozenBlock.sublayers`
        self._hooks = [self._hook_count(layer) for layer in range(len(self))]
        self._own_hooks = 0
        self._tuple_length = self._probe_output()
        self.copies_are = self._probe_attention()

    @property
    def _lock(self) -> Any:
        """Switches and hooks are on modules that threads, and other wrappers, share."""
        return _LOCKS.setdefault(self.hf, threading.RLock())

    @property
    def runs_eager(self) -> bool:
        """Whether the model's own attention is the eager one."""
        return all(config._attn_implementation == "eager" for config in self._configs)

    def __len__(self) -> int:
        return len(self._list)

    @cached_property
    def widest(self) -> int:
        """The most features that a weight of a block takes or gives."""
        weights = (p for block in self._list for p in block.parameters() if p.dim() > 1)
        return max(max(p.shape[-2:]) for p in weights)

    @cached_property
    def sizes(self) -> Sizes:
        """What tells how many rows may go through at once."""
        config = self.hf.config.get_text_config(decoder=True)
        n_heads = getattr(config, "num_attention_heads", MANY_HEADS)
        n_weights = max(sum(p.numel() for p in block.parameters()) for block in self._list)
        return Sizes(self.device, self.widest, int(np.max(n_heads)), n_weights)

    def module(self, layer: int) -> Any:
        """The block itself."""
        return self._list[layer]

    def has_experts(self, layer: int) -> bool:
        """Whether a block chooses among experts, as far as is known."""
        return self._has_experts[layer]

    def has_biases(self, layer: int) -> bool:
        """Whether a block has any bias."""
        return any(name.endswith("bias") for name, _ in self._list[layer].named_parameters())

    def can_hold_attention(self, layer: int) -> bool:
        """Whether its attention gets queries and keys where they can be held."""
        return self.copies_are == "tokens" or bool(own_attentions(self._list[layer]))

    # ------------------------------------------------------------------ calling a block

    def resident(self, layer: int) -> contextlib.AbstractContextManager[None]:
        """A context in which the weights of a block lie where it runs; see `Residence`."""
        return self.residence.resident(layer)

    def call(self, layer: int, call: Call, hidden: torch.Tensor, cache: Any) -> torch.Tensor:
        """Call the original block module with another state and another cache."""
        block = self._list[layer]
        if any(module.training for module in block.modules()):
            raise ValueError(
                f"`model` must be in eval mode; layer {layer} is in train mode, where dropout "
                "changes every run. Call `model.hf.eval()`."
            )
        args, kwargs = call
        args = tuple(cache if a is _CACHE else a for a in args)
        kwargs = {k: cache if a is _CACHE else a for k, a in kwargs.items()}
        # the numbers are in the model's dtype, whatever surrounds the call
        off = torch.autocast(hidden.device.type, enabled=False)
        with own_work(), products_in(self.products), off:
            try:
                if args:
                    out = block(hidden, *args[1:], **kwargs)
                else:
                    out = block(hidden_states=hidden, **kwargs)
            except torch.OutOfMemoryError as error:
                raise too_much(hidden, error) from error
        return out[0] if isinstance(out, tuple) else out

    def sequence(
        self, layer: int, calls: Calls, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, FrozenCache, torch.Tensor | None]:
        """Whole sequences through one block.

        Returns the hidden states (prompt, token, feature), what the last token saw of the
        context, and the router margin (prompt) of the last token: None without experts, NaN where
        the rule of the router is not known.
        """
        recorder, margins = RecordingCache(), []
        with self._lock, contextlib.ExitStack() as stack:
            self._check_hooks(layer)
            for router in self._routers[layer]:
                handle = router.register_forward_hook(
                    lambda m, _, out: margins.append(router_margin(m, out, len(hidden)))
                )
                stack.callback(handle.remove)
            after = self.call(layer, calls.sequence[layer], hidden, recorder)
        if recorder.key is None:
            raise ValueError(
                f"`model` must store keys and values in its cache; layer {layer} of "
                f"{type(self.hf).__name__} did not. Recurrent layers have no frozen context, and "
                "layers that share keys and values are no map of one state."
            )
        # a sliding window keeps only the last tokens of the context
        last = hidden.shape[1] - 1
        keep = slice(last - calls.n_context[layer], last)
        frozen = FrozenCache(
            recorder.key[:, :, keep].contiguous(), recorder.value[:, :, keep].contiguous()
        )
        after = after.to(hidden.device)
        if calls.real is not None:
            # padding has no state: what a mask without a single open place makes of it (NaN, for
            # one) must not reach the keys of the next block
            after = torch.where(calls.real[:, :, None], after, hidden)
        margin = None
        if self._has_experts[layer]:
            margin = hidden.new_full(hidden.shape[:1], torch.nan)
            if margins and self.margins_are_known:
                margin = torch.stack(margins).amin(0).to(margin)
        return after, frozen, margin

    def last_token(
        self, layer: int, calls: Calls, states: torch.Tensor, frozen: FrozenCache
    ) -> torch.Tensor:
        """States (prompt, copy, feature) of the last token through one block, on frozen context.

        ValueError if the weights are no longer those that the context was made with.
        """
        self.weights.check()
        return self.last_token_unchecked(layer, calls, states, frozen)

    def last_token_unchecked(
        self, layer: int, calls: Calls, states: torch.Tensor, frozen: FrozenCache
    ) -> torch.Tensor:
        """`last_token`, where somebody else has looked at the weights."""
        with self._lock:
            self._check_hooks(layer)
            with self._norms_for(layer, states):
                return self._last_token(layer, calls, states, frozen)

    def _norms_for(self, layer: int, states: torch.Tensor):
        """Derivatives of LayerNorm in few operations, where each costs time however small it is."""
        if states.device.type == "cpu" or not (states.requires_grad and torch.is_grad_enabled()):
            return contextlib.nullcontext()
        return twice_derived(layer_norms(self._list[layer]))

    def _last_token(self, layer, calls, states, frozen) -> torch.Tensor:
        if self.copies_are == "tokens":
            # experts view their input as rows, so it must be contiguous
            states = states.contiguous()
            with self.attention(LAST_TOKEN_ATTENTION), frozen.in_use():
                return self.call(layer, calls.step(1)[layer], states, frozen).to(states.device)
        size = frozen.key.nbytes + frozen.value.nbytes
        n_parts = -(-states.shape[1] * size // REPEATED_CONTEXT) or 1
        parts = torch.tensor_split(states, min(n_parts, states.shape[1] or 1), dim=1)
        outputs = [self._copies_as_rows(layer, calls, part, frozen) for part in parts]
        return torch.cat(outputs, dim=1)

    def _copies_as_rows(self, layer, calls, states, frozen) -> torch.Tensor:
        n_copies = states.shape[1]
        rows = states.flatten(0, 1)[:, None]
        with self.attention("eager"):
            cache = RepeatingCache(frozen, n_copies)
            out = self.call(layer, calls.step(n_copies)[layer], rows, cache).to(states.device)
        return out[:, 0].unflatten(0, (-1, n_copies))

    # ------------------------------------------------------------------ learning how

    def _hook_count(self, layer: int) -> int:
        return sum(
            # transformers leaves hooks behind that only record (output_hidden_states=True)
            not str(getattr(hook, "__module__", "")).startswith(("transformers.", STEERING))
            for module in self._list[layer].modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
            for hook in hooks.values()
        )

    def _check_hooks(self, layer: int) -> None:
        """Refuse a hook that was put on a block after the model was wrapped and checked."""
        if self._hook_count(layer) != self._hooks[layer] + self._own_hooks:
            raise ValueError(
                f"`model` must keep the hooks it had when it was wrapped; those of layer {layer} "
                "have changed. Remove the new ones, or wrap the model again to check it with them."
            )

    def calls(self, rows: list[list[int]]) -> Calls:
        """How the model calls its blocks on a batch of prompts, padded on the left."""
        n_tokens = max(map(len, rows))
        gaps = [n_tokens - len(row) for row in rows]
        # a pad token is never read: any id will do
        padded = [[0] * gap + row for gap, row in zip(gaps, rows, strict=True)]
        if not any(gaps):
            return self.dry_run(torch.tensor(padded, device=self.device), None)
        real = [[0] * gap + [1] * (n_tokens - gap) for gap in gaps]
        ids, mask = torch.tensor([padded, real], device=self.device)  # one copy
        return self.dry_run(ids, mask.bool())

    @torch.no_grad()
    def dry_run(self, ids: torch.Tensor, real: torch.Tensor | None) -> Calls:
        """How the model calls its blocks on token ids (prompt, token).

        ``real`` (prompt, token) is False at left padding; None if there is none.
        """
        mask = torch.ones_like(ids) if real is None else real.long()
        nothing = DynamicCache(config=self.hf.config)
        sequence, embedded = self._record(ids, mask, nothing, is_padded=real is not None)
        cache = self._blank_cache(ids.shape[1] - 1)
        n_context = [
            0 if ids.shape[1] == 1 else cache.layers[layer].keys.shape[-2]
            for layer in range(len(self))
        ]
        return Calls(self.step, ids, mask, real, embedded, sequence, n_context)

    def step(self, ids: torch.Tensor, mask: torch.Tensor, *, is_padded: bool) -> list[Call]:
        """How the blocks are called on the last token alone, after the others."""
        name = LAST_TOKEN_ATTENTION if self.copies_are == "tokens" else "eager"
        cache = self._blank_cache(ids.shape[1] - 1)
        with self.attention(name):
            return self._record(ids[:, -1:], mask, cache, is_padded=is_padded)[0]

    def _blank_cache(self, n_tokens: int) -> Any:
        """A cache of which only the length matters: masks and positions are made from it."""
        cache: Any = DynamicCache(config=self.hf.config)
        if n_tokens > 0:
            blank = torch.zeros(1, 1, n_tokens, 1)  # of the host: nobody reads it
            for layer in range(len(self)):
                cache.update(blank, blank, layer)
        return cache

    def _record(self, ids, mask, cache, *, is_padded) -> tuple[list[Call], torch.Tensor]:
        """Run the model with blocks that only note how they are called."""
        calls: list[Call] = []
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

        positions = {}
        if self.takes_positions and is_padded:
            # GPT-2 would count the padding
            all_positions = (mask.cumsum(-1) - 1).clamp_min(0)
            positions["position_ids"] = all_positions[:, -ids.shape[1] :]
        with self.replaced(note):
            self.hf.base_model(
                ids, attention_mask=mask, past_key_values=cache, use_cache=True, **positions
            )
        if len(calls) != len(self) or states[0].dim() != 3:
            raise ValueError(
                f"`model` must call each of its {len(self)} blocks once with one residual "
                f"stream; got {len(calls)} calls with states of shape {tuple(states[0].shape)}. "
                "Multi-stream residuals have no single depth map."
            )
        return calls, states[0]

    @torch.no_grad()
    def _probe_output(self) -> int:
        """0 if blocks return a tensor, else the length of the tuple they return.

        What the model cannot do by itself is not the replay's fault, and is refused here.
        """
        used = {config._attn_implementation for config in self._configs}
        if any(name and "flex" in name for name in used):
            raise ValueError(
                "`model` must have the attention implementation eager or sdpa; got "
                "flex_attention, which is compiled for each shape. Load it with "
                "attn_implementation='sdpa'."
            )
        seen: list[Any] = []
        handle = self._list[0].register_forward_hook(lambda *a: seen.append(a[2]))
        ids = torch.zeros(1, 3, dtype=torch.long, device=self.device)
        try:
            with own_work(), products_in(self.products):
                self.hf(ids, use_cache=False)
        except Exception as error:  # anything a model's code may raise
            raise ValueError(
                f"`model` must run by itself; {type(self.hf).__name__} in {self.hf.dtype} does "
                f"not: {type(error).__name__}: {first_line(error)} Try float32."
            ) from error
        finally:
            handle.remove()
        return len(seen[0]) if isinstance(seen[0], tuple) else 0

    @torch.no_grad()
    def _probe_attention(self) -> str:
        """How copies go through the blocks; see `copies_are`."""
        self.copies_are = "tokens"
        calls = self.dry_run(torch.zeros(1, 1, dtype=torch.long, device=self.device), None)
        for layer in range(len(self)):
            _, frozen, _ = self.sequence(layer, calls, calls.embedded)
            try:
                self.last_token(layer, calls, calls.embedded, frozen)
            except AlteredKeysError:
                return "rows"
            if not frozen.has_served:
                return "rows"
        return "tokens"

    # ------------------------------------------------------------------ switches and hooks

    @contextlib.contextmanager
    def replaced(self, function: Callable):
        """Blocks that call ``function(layer, args, kwargs)`` instead of computing."""
        # a block may carry a forward of its own on the instance (accelerate does that)
        with self._lock, own_work(), products_in(self.products):
            old = [block.__dict__.get("forward") for block in self._list]
            try:
                for layer, block in enumerate(self._list):
                    block.forward = self._replacement(layer, function)
                yield
            finally:
                for block, forward in zip(self._list, old, strict=True):
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

    @contextlib.contextmanager
    def attention(self, name: str):
        """Switch the attention implementation for a while."""
        with self._lock:
            old = [config._attn_implementation for config in self._configs]
            try:
                for config in self._configs:
                    config._attn_implementation = name
                yield
            finally:
                for config, implementation in zip(self._configs, old, strict=True):
                    config._attn_implementation = implementation

    def held(self, layer: int, part: str):
        """Hold the output of the attention or the MLP of a block constant in derivatives."""
        module = find_parts(self._list[layer])[part]
        return self._hooked(module, lambda m, _, out: _detached(out))

    def watched(self, module: Any, note: Callable[[torch.Tensor], None]):
        """Tell of what a module of a block gives meanwhile."""
        return self._hooked(module, lambda m, _, out: note(out[0] if type(out) is tuple else out))

    @contextlib.contextmanager
    def _hooked(self, module: Any, hook: Callable):
        with self._lock:
            handle = module.register_forward_hook(hook)
            self._own_hooks += 1
            try:
                yield
            finally:
                handle.remove()
                self._own_hooks -= 1

    @contextlib.contextmanager
    def detached(self, layer: int, linear: str):
        """Hold the factors of a block that depend on the state, see `depthsys.lm.hf.detach`."""
        with self._lock, contextlib.ExitStack() as stack:
            self._check_hooks(layer)
            if layer not in self._switches:
                self._switches[layer] = Switches.of(self._list[layer], self._width)
            count = stack.enter_context(self._switches[layer].on(linear))
            stack.callback(self._more_own_hooks, -count)
            self._more_own_hooks(count)
            names = {id(config): config._attn_implementation for config in self._configs}
            stack.enter_context(held_weights(names))
            stack.enter_context(self.attention(DETACHED_ATTENTION))
            yield

    def _more_own_hooks(self, count: int) -> None:
        self._own_hooks += count

    @contextlib.contextmanager
    def silenced(self, layer: int, parts: Sequence[str]):
        """Let the attention or the MLP of a block, or both, write zeros."""
        try:
            modules = find_parts(self._list[layer])
        except ValueError as error:
            raise ValueError(
                "`model` must have an attention and an MLP that write to the residual stream each "
                f"by itself; {type(self._list[layer]).__name__} of layer {layer} has not. Use the "
                "states of whole blocks, `run.states`."
            ) from error
        with self._lock, contextlib.ExitStack() as stack:
            for part in parts:
                handle = modules[part].register_forward_hook(lambda m, _, out: _zeros(out))
                stack.callback(handle.remove)
            self._own_hooks += len(parts)
            try:
                yield
            finally:
                self._own_hooks -= len(parts)

    def hooks(self, pre_hooks: dict[int, Any]) -> contextlib.ExitStack:
        """Hook the input of blocks on the whole sequence: the slow way, for checks.

        ``pre_hooks[layer](hidden)`` returns the hidden states (prompt, token, feature) to use;
        the key L sees the output of the last block.
        """
        stack = contextlib.ExitStack()
        stack.enter_context(own_work())
        stack.enter_context(products_in(self.products))
        for layer, function in pre_hooks.items():
            if layer == len(self):
                handle = self._list[-1].register_forward_hook(_output_hook(function))
            else:
                handle = self._list[layer].register_forward_pre_hook(
                    _input_hook(function), with_kwargs=True
                )
            stack.callback(handle.remove)
        return stack


def _parameters(module) -> set[str]:
    return set(inspect.signature(type(module).forward).parameters)


def _detached(output):
    if isinstance(output, tuple):
        return (output[0].detach(), *output[1:])
    return output.detach()


def _zeros(output):
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def _without_cache(argument):
    return _CACHE if isinstance(argument, Cache) else argument


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
