"""Pushes into a model while it runs or writes: hooks on its blocks, and nothing left behind.

All that steers one model at a time shares one set of hooks (`_Session`), so that `with` blocks may
be left in any order. A hook on the model itself tells where the columns of a forward pass lie;
those on its blocks add the pushes there. Calls that this package makes itself are left alone.
"""

import contextlib
import functools
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from depthsys.lm.hf.checkpoint import find_blocks
from depthsys.lm.hf.columns import (
    Decode,
    Forward,
    check_goes_on,
    forward_of,
    lone_prompts,
    written_prompts,
)
from depthsys.lm.hf.own_work import is_own_work
from depthsys.lm.positions import Positions, pushed

_SESSIONS: weakref.WeakKeyDictionary[Any, "_Session"] = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()


@dataclass(frozen=True, eq=False)
class Law:
    r"""Feedback: :math:`u_l = -K_l [W_l^\top (x_l - x^{ref}_l) - r^{ref}_l]`, beside the plan's u.

    Attributes
    ----------
    K, W, x_ref, r_ref, v
        (layer, input, state), (depth, feature, state), (depth, feature), (depth, state), and the
        directions (depth, input, feature).
    """

    K: torch.Tensor
    W: torch.Tensor
    x_ref: torch.Tensor
    r_ref: torch.Tensor
    v: torch.Tensor

    def vector(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """What the law adds to states (..., feature) at the input of a block."""
        K, W, x_ref, r_ref, v = (
            held[layer].to(x.device) for held in (self.K, self.W, self.x_ref, self.r_ref, self.v)
        )
        return -((x.to(W) - x_ref) @ W - r_ref) @ K.mT @ v


@dataclass(frozen=True, eq=False)
class Push:
    """One plan, as it is added to the states of a model.

    Attributes
    ----------
    added
        (depth, feature): what is added at the input of each block, and behind the last one.
    positions
        At which tokens.
    strength
        Factor on all of it.
    law
        What depends on the state that comes in, before any push of this layer.
    decode
        Token ids -> text, for positions that a text marks.
    """

    added: torch.Tensor
    positions: Positions
    strength: float = 1.0
    law: Law | None = None
    decode: Decode | None = None
    _moved: dict[Any, Any] = field(default_factory=dict, repr=False)

    def acts(self, depth: int) -> bool:
        """Whether it does anything there."""
        if "acts" not in self._moved:
            self._moved["acts"] = (self.strength * self.added != 0).any(-1).tolist()
            if self.law is not None and self.strength:
                live = (self.law.K != 0).flatten(1).any(1).tolist()
                self._moved["acts"][: len(live)] = [
                    a or b for a, b in zip(self._moved["acts"], live, strict=False)
                ]
        return self._moved["acts"][depth]

    def vector(self, depth: int, x: torch.Tensor) -> torch.Tensor:
        """What is added to states (row, column, feature), in their dtype and on their device."""
        if self.law is not None and depth < len(self.law.K):
            law = self.law.vector(depth, x)
            return (self.strength * (self.added[depth].to(law) + law)).to(x)
        key = depth, x.device, x.dtype
        if key not in self._moved:
            self._moved[key] = (self.strength * self.added[depth]).to(x)
        return self._moved[key]


@dataclass
class _Frame:
    """One forward pass on its way through the blocks."""

    width: int
    masks: list[tuple[Push, torch.Tensor]]
    next_layer: int = 0

    def pushed(self, depth: int, hidden: torch.Tensor) -> torch.Tensor:
        """States (row, column, feature) with all that is added to them."""
        out = hidden
        for push, mask in self.masks:
            if not push.acts(depth) or not bool(mask.any()):
                continue
            moved = out + push.vector(depth, hidden)
            if bool(mask.all()):
                out = moved
            else:
                out = torch.where(mask.to(hidden.device)[:, :, None], moved, out)
        return out


class _Session:
    """The hooks on one model, for all that steers it."""

    def __init__(self, hf: Any):
        self._hf = weakref.ref(hf)
        self.pushes: list[Push] = []
        self._undo: contextlib.ExitStack | None = None
        # what a thread is about: `frame`, `written` (the prompts of `generate`), `end`, `n_columns`
        self.here = threading.local()

    # ------------------------------------------------------------------ what acts

    def add(self, push: Push) -> None:
        if self._undo is None:
            self._install()
        self.pushes = [*self.pushes, push]

    def remove(self, push: Push) -> None:
        self.pushes = [one for one in self.pushes if one is not push]
        if not self.pushes and self._undo is not None:
            undo, self._undo = self._undo, None
            undo.close()

    def _install(self) -> None:
        hf: Any = self._hf()
        check_not_compiled(hf)
        blocks = list(find_blocks(hf))
        self._n_layers = len(blocks)
        with contextlib.ExitStack() as undo:
            begin = hf.register_forward_pre_hook(self._on_model(), with_kwargs=True)
            undo.callback(begin.remove)
            undo.callback(hf.register_forward_hook(self._after_model(), always_call=True).remove)
            for layer, block in enumerate(blocks):
                hook = block.register_forward_pre_hook(self._on_block(layer), with_kwargs=True)
                undo.callback(hook.remove)
            undo.callback(blocks[-1].register_forward_hook(self._behind_last()).remove)
            if hasattr(hf, "generate"):
                undo.callback(self._shadow_generate(hf))
            self._undo = undo.pop_all()

    # ------------------------------------------------------------------ hooks
    # closures of this module: `Blocks` knows them by it, and leaves them out of its count

    def _on_model(self):
        def begin(module, args, kwargs):
            if not is_own_work():
                self.here.frame = None
                self.here.frame = self._frame(forward_of(module, args, kwargs))

        return begin

    def _after_model(self):
        def end(module, args, output):
            if not is_own_work():
                self.here.frame = None
                if getattr(self.here, "written", None) is not None:
                    _check_logits(output, [push.strength for push in self.pushes])

        return end

    def _on_block(self, layer: int):
        def before(module, args, kwargs):
            if is_own_work():
                return None
            frame = self._current(layer)
            frame.next_layer = layer + 1
            hidden = args[0] if args else kwargs["hidden_states"]
            _check_states(hidden, frame.width)
            moved = frame.pushed(layer, hidden)
            if moved is hidden:
                return None
            if args:
                return (moved, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": moved}

        return before

    def _behind_last(self):
        def behind(module, args, output):
            if is_own_work():
                return None
            frame = self._current(self._n_layers)
            hidden = output[0] if isinstance(output, tuple) else output
            moved = frame.pushed(self._n_layers, hidden)
            if moved is hidden:
                return None
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return behind

    def _current(self, layer: int) -> _Frame:
        """The pass that this block belongs to, which goes through the blocks in their order."""
        frame = getattr(self.here, "frame", None)
        if frame is None or frame.next_layer != layer:
            raise ValueError(
                "`model` must be called as a whole while it is steered: a block was run that no "
                "call of the model itself had begun, or out of order. Call the model that was "
                "given to `steering`, not its parts nor a wrapper's inner model, and without "
                "gradient checkpointing; begin to steer it when no other thread runs it."
            )
        return frame

    # ------------------------------------------------------------------ where it acts

    def _frame(self, call: Forward) -> _Frame:
        pushes, here = self.pushes, self.here
        prompts = getattr(here, "written", None)
        if prompts is not None:
            check_goes_on(call, prompts, here.end)
            here.end = call.first + call.width
        else:
            is_free = all(push.positions == "every" for push in pushes)
            prompts = lone_prompts(call, getattr(here, "n_columns", None), is_free)
        masks = []
        for push in pushes:
            begins = None
            if not isinstance(push.positions, str):
                begins = prompts.begins(push.positions, push.decode, call.n_rows)
            mask = pushed(push.positions, call.columns, prompts.n_columns, begins)
            masks.append((push, torch.as_tensor(mask)))
        return _Frame(call.width, masks)

    @contextlib.contextmanager
    def prompts_of(self, n_columns: int) -> Iterator[None]:
        before = getattr(self.here, "n_columns", None)
        self.here.n_columns = n_columns
        try:
            yield
        finally:
            self.here.n_columns = before

    def _shadow_generate(self, hf: Any):
        """Put a `generate` over the model's own that tells where prompts end; gives its removal."""
        had = hf.__dict__.get("generate")
        original = hf.generate

        @functools.wraps(original)
        def generate(*args, **kwargs):
            if not self.pushes or is_own_work():
                return original(*args, **kwargs)
            if getattr(self.here, "written", None) is not None:
                raise ValueError(
                    "`generate` must not be called within itself while the model is steered: an "
                    "assistant must be another model than the one that is steered."
                )
            model = self._hf()
            prompts = written_prompts(model, args, kwargs)
            if hasattr(getattr(model, "generation_config", None), "disable_compile"):
                # a compiled pass would keep the pushes of the first one
                kwargs["disable_compile"] = True
            self.here.end = prompts.n_columns
            self.here.written = prompts
            try:
                return original(*args, **kwargs)
            finally:
                self.here.written = self.here.frame = None

        hf.generate = generate

        def remove():
            if hf.__dict__.get("generate") is not generate:
                return  # somebody else's is over it, which may call it: then it only passes on
            if had is None:
                del hf.generate
            else:
                hf.generate = had

        return remove


@contextlib.contextmanager
def steered(hf: Any, push: Push) -> Iterator[_Session]:
    """The model with one more push, as long as this lasts."""
    session = _Session(hf)
    try:
        with _LOCK:
            session = _SESSIONS.setdefault(hf, session)
            session.add(push)
        yield session
    finally:
        with _LOCK:
            session.remove(push)
            if not session.pushes:
                _SESSIONS.pop(hf, None)


def _check_logits(output: Any, strengths: list[float]) -> None:
    """FloatingPointError before a token is chosen by logits that say nothing.

    One look for each call of the model, as `generate` itself has one for each new token.
    """
    logits = getattr(output, "logits", None)
    if logits is None or not bool((logits[:, -1].isnan() | logits[:, -1].isposinf()).any()):
        return
    raise FloatingPointError(
        "`strength` must leave the logits finite; got NaN or infinity in the text that is written, "
        f"at strength {', '.join(f'{each:g}' for each in strengths)}: a push overflows, or "
        "the model by itself. Use a smaller one, or load the model in float32 or float64."
    )


def check_not_compiled(hf: Any) -> None:
    """ValueError for a model that torch has compiled, where hooks may be left out."""
    compiled = [
        name or type(hf).__name__
        for name, module in hf.named_modules()
        if getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
    ]
    if compiled:
        raise ValueError(
            f"`model` must not be compiled to be steered; {compiled[0]} is, and would keep the "
            "pushes of its first call. Load it again, or give the model before `torch.compile`."
        )


def _check_states(hidden: torch.Tensor, width: int) -> None:
    if hidden.dim() != 3 or hidden.shape[1] != width:
        raise ValueError(
            f"`model` must pass one state for each of its {width} tokens from block to block "
            f"while it is steered; got states of shape {tuple(hidden.shape)}. It cannot be steered."
        )
