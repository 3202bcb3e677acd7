"""Weights that wait elsewhere than where their block runs, and how they come there and go again.

accelerate's hooks bring the weights of each module in when it is called and forget them afterwards:
once per batch and product. Within `Residence.resident` the weights of a block are brought in once,
used as often as wanted, and forgotten at the end.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Waiting:
    """One tensor of a module that waits elsewhere; its place in the module is empty (meta).

    ``path`` is its name for the hook that brings it in.
    """

    module: Any
    name: str
    hook: Any
    path: str

    @property
    def held(self) -> dict[str, Any]:
        """Where the module keeps it."""
        kept = self.module._parameters
        return kept if self.name in kept else self.module._buffers

    @property
    def place(self) -> tuple[Mapping, str]:
        """The map in which it waits, and its name there."""
        waits, key = self.hook.weights_map, self.path
        while hasattr(waits, "dataset") and hasattr(waits, "prefix"):
            waits, key = waits.dataset, f"{waits.prefix}{key}"
        return waits, key

    @property
    def in_memory(self) -> tuple[dict, str] | None:
        """The dict of the host's memory that holds it, and its name there; None if a file does."""
        waits, key = self.place
        held = getattr(waits, "state_dict", waits)
        return (held, key) if isinstance(held, dict) and key in held else None

    @property
    def file(self) -> Path | None:
        """The file that holds it; None if it is in memory."""
        waits, key = self.place
        if self.in_memory is not None or not hasattr(waits, "index"):
            return None
        about: Any = waits
        own = about.index[key].get("safetensors_file")
        return Path(own) if own else Path(about.save_folder, f"{key}.dat")

    def read(self) -> torch.Tensor:
        """The tensor, from where it waits."""
        return self.hook.weights_map[self.path]


def waiting_in(module: Any) -> list[Waiting]:
    """The tensors of a module, and of those in it, that wait elsewhere."""
    found = []
    for one in module.modules():
        for hook in _hooks_of(one):
            if hook.offload and hook.weights_map is not None:
                found += _of_hook(one, hook)
    return found


def waiting_by_name(module: Any) -> dict[str, Waiting]:
    """The same by their names in the state dict of the module."""
    names = {id(one): name for name, one in module.named_modules()}
    return {f"{names[id(one.module)]}.{one.name}": one for one in waiting_in(module)}


def _hooks_of(module: Any) -> list[Any]:
    """Accelerate's hooks that move weights; one that is made of several holds them in a list."""
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))
    return [one for one in hooks if hasattr(one, "weights_map") and hasattr(one, "offload")]


def _of_hook(module: Any, hook: Any) -> list[Waiting]:
    found = []
    for below, one in module.named_modules() if hook.place_submodules else [("", module)]:
        tensors = {**one._parameters, **(one._buffers if hook.offload_buffers else {})}
        for name, tensor in tensors.items():
            if tensor is not None and tensor.is_meta:
                found.append(Waiting(one, name, hook, f"{below}.{name}" if below else name))
    return found


class Residence:
    """Where the weights of the blocks of a model are, and the bringing of them.

    Parameters
    ----------
    blocks
        The blocks, wrapped by accelerate's hooks or not.

    Attributes
    ----------
    n_moves
        How often each layer was brought in.
    """

    def __init__(self, blocks: list[Any]):
        self._blocks = blocks
        self._waiting = [waiting_in(block) for block in blocks]
        self._depth = [0] * len(blocks)
        self._inside: list[contextlib.ExitStack | None] = [None] * len(blocks)
        self._lock = threading.RLock()
        self.n_moves = [0] * len(blocks)

    def __repr__(self) -> str:
        return f"Residence({self.n_moving} of {len(self._waiting)} layers move)"

    @property
    def n_moving(self) -> int:
        """How many layers wait elsewhere, as a whole or in part."""
        return sum(map(bool, self._waiting))

    @cached_property
    def moves(self) -> bool:
        """Whether the weights of any block must be brought in before it runs."""
        return any(self._waiting)

    def nbytes(self, layer: int) -> int:
        """Bytes that are brought in for a layer; 0 if it is there already."""
        return sum(one.held[one.name].nbytes for one in self._waiting[layer])

    @contextlib.contextmanager
    def resident(self, layer: int) -> Iterator[None]:
        """A context in which the weights of a block lie where it runs.

        They are brought in once and forgotten at its end, also after an exception; what waits
        elsewhere stays there all the time. Nothing happens to a block that is there already, or in
        a context inside another for the same layer.
        """
        if not self._waiting[layer]:
            yield
            return
        with self._lock:
            self._depth[layer] += 1
            if self._depth[layer] == 1:
                try:
                    self._inside[layer] = self._brought_in(layer)
                except BaseException:
                    self._depth[layer] -= 1
                    raise
        try:
            yield
        finally:
            with self._lock:
                self._depth[layer] -= 1
                inside = self._inside[layer]
                if self._depth[layer] == 0 and inside is not None:
                    self._inside[layer] = None
                    inside.close()

    def _brought_in(self, layer: int) -> contextlib.ExitStack:
        """Bring the weights of a layer in; closing what is returned forgets them."""
        self.n_moves[layer] += 1
        with contextlib.ExitStack() as stack:
            if all(_is_plain(one) for one in self._waiting[layer]):
                for one in self._waiting[layer]:
                    stack.callback(one.held.__setitem__, one.name, one.held[one.name])
                    one.held[one.name] = _on_its_device(one)
            else:
                self._by_the_hooks(layer, stack)
            for hook in self._hooks(layer):
                # the hook still moves the states that enter, and no weights
                stack.callback(setattr, hook, "offload", hook.offload)
                hook.offload = False
            kept = stack.pop_all()
        return kept

    def _hooks(self, layer: int) -> list[Any]:
        return [
            hook
            for module in self._blocks[layer].modules()
            for hook in _hooks_of(module)
            if hook.offload
        ]

    def _by_the_hooks(self, layer: int, stack: contextlib.ExitStack) -> None:
        """As the hooks do it, who know kinds of quantised weights."""
        for module in self._blocks[layer].modules():
            for hook in _hooks_of(module):
                if hook.offload:
                    hook.pre_forward(module)
                    stack.callback(hook.post_forward, module, None)


def _is_plain(one: Waiting) -> bool:
    """Whether it is a tensor that a copy to the device is enough for."""
    tensor = one.held[one.name]
    return type(tensor) in (torch.nn.Parameter, torch.Tensor)


def _on_its_device(one: Waiting) -> torch.Tensor:
    empty = one.held[one.name]
    # from pinned memory the copy goes on while the host does
    value = one.read().to(one.hook.execution_device, empty.dtype, non_blocking=True)
    if isinstance(empty, torch.nn.Parameter):
        return torch.nn.Parameter(value, requires_grad=empty.requires_grad)
    return value
