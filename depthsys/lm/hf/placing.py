"""Where the weights of a model larger than its card wait, found before they are read.

Embeddings, the last norm and the head stay on the device, then as many blocks as fit, the first
ones; the next ones wait in the memory of the host, the rest in the files of the checkpoint.
"""

import importlib.util
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from depthsys.lm.hf.causes import quantisation_of
from depthsys.lm.hf.residence import waiting_in
from depthsys.lm.hf.source import Found
from depthsys.lm.kinds import short
from depthsys.lm.memory import available_memory, free_on

# Shares of what is free that weights may take; the rest is left for the work.
DEVICE_SHARE, HOST_SHARE = 0.7, 0.7
# Layers that are on the device beside those that stay: the one that is used, and while it goes
# another that comes.
COMING = 2
MAPS = ("auto",)
MaxMemory = Mapping[int | str, int | str]


@dataclass(frozen=True)
class Placing:
    """How much of which place weights may take, in bytes; None for a share of what is free."""

    device: torch.device
    on_device: int | None = None
    on_host: int | None = None

    def arguments(
        self,
        config: Any,
        dtype: torch.dtype,
        find_blocks: Callable[[Any], nn.ModuleList],
        *,
        trust_remote_code: bool,
    ) -> dict[str, Any]:
        """What transformers is told of it when it loads the model."""
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code
            )
        places = self._places(empty, find_blocks(empty))
        folder: dict[str, Any] = {}
        if "disk" in places.values():
            # for the few weights that are changed when they are read; the others stay in place
            folder["offload_folder"] = tempfile.mkdtemp(prefix="depthsys-")
        return {"device_map": places, **folder}

    def _places(self, empty: nn.Module, blocks: nn.ModuleList) -> dict[str, str]:
        path = next(name for name, module in empty.named_modules() if module is blocks)
        sizes = [_nbytes(block) for block in blocks]
        others = dict.fromkeys(_beside(empty, path), str(self.device))
        left = self._left_on_device() - (_nbytes(empty) - sum(sizes))
        if sum(sizes) <= left:
            return {"": str(self.device)}
        left -= COMING * max(sizes)
        if left < 0 and self.device.type != "cpu":
            raise ValueError(
                f"`max_memory` must hold what is never moved, and {COMING} layers; got "
                f"{self._left_on_device() / 1e9:.2g} GB for {self.device}{self._whence}, where "
                f"{-left / 1e9:.2g} GB more are needed. Give more, use a smaller dtype, or "
                "device='cpu'."
            )
        host = 0.0 if self.device.type == "cpu" else self._left_on_host()
        for layer, size in enumerate(sizes):
            if size <= left:
                place, left = str(self.device), left - size
            elif size <= host:
                place, host = "cpu", host - size
                left = 0.0  # the blocks that stay are the first ones
            else:
                place, left, host = "disk", 0.0, 0.0
            others[f"{path}.{layer}"] = place
        return others

    @property
    def _whence(self) -> str:
        return "" if self.on_device is not None else f" ({DEVICE_SHARE:.0%} of what is free)"

    def _left_on_device(self) -> float:
        if self.device.type == "cpu":
            return self._left_on_host()
        if self.on_device is not None:
            return self.on_device
        return DEVICE_SHARE * (free_on(self.device) or 0)

    def _left_on_host(self) -> float:
        if self.on_host is not None:
            return self.on_host
        return HOST_SHARE * (available_memory() or 0)


def checked_placing(
    device_map: str | None, max_memory: MaxMemory | None, device: torch.device
) -> Placing | None:
    """How a model is to be placed; None if it goes as a whole to the device."""
    if device_map is None:
        if max_memory is not None:
            raise ValueError(
                f"`max_memory` must come with device_map='auto'; got {short(max_memory)} without "
                "it. Give both."
            )
        return None
    if device_map not in MAPS:
        raise ValueError(
            f"`device_map` must be 'auto' or None; got {short(device_map)}. For a map of your own "
            "load the model with transformers and wrap it: `DepthModel(hf, tokenizer)`."
        )
    if importlib.util.find_spec("accelerate") is None:
        raise ValueError(
            "`device_map` must be None where the package accelerate is missing; got 'auto'. "
            "Install it: pip install accelerate."
        )
    if not isinstance(max_memory, Mapping | None):
        raise TypeError(
            f"`max_memory` must be a mapping from places to sizes; got {short(max_memory)}. Write "
            "{0: '20GiB', 'cpu': '100GiB'}."
        )
    given = {} if max_memory is None else dict(max_memory)
    if device.type == "cpu" and (cards := sorted(map(str, given.keys() - {"cpu"}))):
        raise ValueError(
            f"`max_memory` must name 'cpu' alone on the device 'cpu', where no card holds weights; "
            f"got {cards}. Leave them out, or use device='cuda'."
        )
    index = device.index or 0
    if device.type != "cpu":
        device = torch.device(device.type, index)
    if unknown := sorted(map(str, given.keys() - {index, "cpu"})):
        raise ValueError(
            f"`max_memory` must name the device ({index}) or 'cpu'; got {unknown}. A model larger "
            "than one card is spread over that card, the host's memory and files."
        )
    return Placing(device, _bytes(given.get(index)), _bytes(given.get("cpu")))


def _bytes(size: int | str | None) -> int | None:
    """A size as accelerate reads it: bytes, or a text as "20GiB"."""
    if size is None:
        return None
    from accelerate.utils import convert_file_size_to_int

    try:
        return int(convert_file_size_to_int(size))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`max_memory` must hold bytes >= 0, or texts such as '20GiB'; got {short(size)}. "
            "Leave it out for a share of what is free."
        ) from error


def refuse_placing(found: Found, config: Any) -> None:
    """ValueError for a checkpoint that cannot be read to several places."""
    why, cure = None, "Load it as a whole (device_map=None) and save it with `save_pretrained`."
    if found.gguf is not None:
        why = "a GGUF file, which is read as a whole"
    elif found.adapter is not None:
        why = "an adapter, which is merged into weights that are there"
    elif quantisation_of(config):
        why = "a quantised checkpoint"
        cure = "Load it with transformers and its `device_map`, and wrap it: `DepthModel(hf)`."
    if why is not None:
        raise ValueError(f"`device_map` must be None for {why}; got 'auto' for {found}. {cure}")


def abandoned(arguments: Mapping[str, Any]) -> None:
    """Take back what was made for a model that could not be loaded."""
    if folder := arguments.get("offload_folder"):
        shutil.rmtree(folder, ignore_errors=True)


def settled(hf: Any, arguments: Mapping[str, Any]) -> Any:
    """The model, with what waits in the host's memory pinned, so that copies need no waiting."""
    if folder := arguments.get("offload_folder"):
        weakref.finalize(hf, shutil.rmtree, folder, ignore_errors=True)
    if torch.cuda.is_available():
        for one in waiting_in(hf):
            where = one.in_memory
            if where is not None and not where[0][where[1]].is_pinned():
                try:
                    where[0][where[1]] = where[0][where[1]].pin_memory()
                except RuntimeError:  # more than the system lets be pinned: the rest stays as it is
                    break
    return hf


def _nbytes(module: nn.Module) -> int:
    """Bytes of weights, those that have two names once."""
    return sum(p.nbytes for p in [*module.parameters(), *module.buffers()])


def _beside(module: nn.Module, path: str, prefix: str = "") -> Iterator[str]:
    """Names of all weights and modules that are not in the list of blocks."""
    for name in [*module._parameters, *module._buffers]:
        yield f"{prefix}{name}"
    for name, child in module.named_children():
        full = f"{prefix}{name}"
        if path.startswith(f"{full}."):
            yield from _beside(child, path, f"{full}.")
        elif full != path:
            yield full
