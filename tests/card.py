"""A pretend card: tensors that say they are on a device, computed by the CPU, and counted.

Nothing of a GPU's speed can be seen without one, but its rules can: a tensor of the card and one of
the host do not meet in an operation, numbers come back only by a copy, and the host waits for them.
`setup` registers the device "card" for this process; with `counted` a test sees how many operations
were launched, how many copies were made, and where the host waited.

Built on torch's python backends (test/test_privateuseone_python_backend.py of torch).
"""

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._device import _device_constructors

NAME = "card"
# what a GPU does not launch anything for
_VIEWS = {
    f"aten::{name}"
    for name in (
        "view _unsafe_view expand transpose permute t slice select unsqueeze squeeze as_strided "
        "detach alias split split_with_sizes unbind unflatten _reshape_alias diagonal unfold "
        "empty empty_strided empty_like new_empty new_empty_strided lift_fresh"
    ).split()
}
# what a GPU must finish before the host can go on, because the host needs a number or a shape
_WAITS = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense item is_nonzero nonzero masked_select equal _unique2 unique_dim "
        "bincount linalg_svd _linalg_svd linalg_eigh _linalg_eigh linalg_cholesky linalg_solve "
        "_linalg_solve_ex linalg_inv linalg_lstsq linalg_eig _linalg_eigvals geqrf"
    ).split()
}
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


@dataclass
class Counts:
    """What the card was asked for.

    Attributes
    ----------
    launches
        Operations on the card that compute something, by name.
    to_host, to_device
        Copies.
    waits
        How often the host needed a number or a shape, copies to the host included.
    places
        The lines of this package where the host waited or copied.
    """

    launches: Counter[str] = field(default_factory=Counter)
    to_host: int = 0
    to_device: int = 0
    waits: int = 0
    places: Counter[str] = field(default_factory=Counter)

    @property
    def n_launches(self) -> int:
        """All operations."""
        return self.launches.total()


_COUNTING: list[Counts] = []


@contextlib.contextmanager
def counted() -> Iterator[Counts]:
    """Count what the card is asked for meanwhile, also by other threads."""
    counts = Counts()
    _COUNTING.append(counts)
    try:
        yield counts
    finally:
        _COUNTING.remove(counts)


def _note(kind: str, name: str = "") -> None:
    for counts in _COUNTING:
        if kind == "launch":
            counts.launches[name] += 1
            continue
        if kind == "to_device":
            counts.to_device += 1
        else:
            counts.waits += 1
            counts.to_host += kind == "to_host"
        counts.places[f"{kind} {_place()}"] += 1


def _place() -> str:
    """The innermost line of the package on the stack."""
    for frame in reversed(traceback.extract_stack(limit=60)):
        if "/depthsys/" in frame.filename:
            return f"{frame.filename.rpartition('/depthsys/')[2]}:{frame.lineno}"
    return "elsewhere"


class CardTensor(torch.Tensor):
    """A tensor of the card; ``inner`` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner, requires_grad=None):
        if requires_grad is not None:
            # accelerate makes a parameter of the class of the old one, wherever the new one lies
            return torch.nn.Parameter(inner, requires_grad=requires_grad)
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
            requires_grad=False,
        )
        made.inner = inner
        return made

    def __init__(self, inner, requires_grad=None):
        pass

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], _index(args[1]), *args[2:])
        if func is torch.Tensor.data_ptr:
            return args[0].inner.data_ptr()
        if func is torch.Tensor.tolist:
            _note("to_host")
            return args[0].detach().inner.tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _index(index: Any) -> Any:
    """Lists as tensors: torch would make them on the device by a way that python does not see."""
    one = lambda i: torch.tensor(i) if isinstance(i, list) else i  # noqa: E731
    return tuple(map(one, index)) if isinstance(index, tuple) else one(index)


def _is_card(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Those among arguments, also in lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _inner(value: Any) -> Any:
    """Arguments or results as the CPU knows them; torch's own pytree takes half of all the time."""
    if isinstance(value, CardTensor):
        return value.inner
    if type(value) in (list, tuple):
        return type(value)([_inner(one) for one in value])
    return value


def _wrapped(value: Any) -> Any:
    """Results of the card."""
    if isinstance(value, torch.Tensor):
        return CardTensor(value)
    if type(value) in (list, tuple):
        return type(value)([_wrapped(one) for one in value])
    assert not isinstance(value, (list, tuple)), type(value)
    return value


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    """One operation, by the CPU."""
    name = func._schema.name
    tensors = [*_tensors(args), *_tensors(kwargs.values())]
    of_card = any(isinstance(t, CardTensor) for t in tensors)
    to_card = _is_card(kwargs.get("device"))
    is_copy = name in ("aten::_to_copy", "aten::copy_")
    if is_copy:
        target = args[0] if name == "aten::copy_" else None
        source = args[1] if name == "aten::copy_" else args[0]
        stays = kwargs.get("device") is None
        goes_to_card = isinstance(target, CardTensor) if target is not None else (
            to_card or (stays and of_card)
        )  # fmt: skip
        from_card = isinstance(source, CardTensor)
        kinds = {(True, True): "launch", (False, True): "to_device", (True, False): "to_host"}
        _note(kinds.get((from_card, goes_to_card), "launch"), name)
        on_card = goes_to_card
    else:
        _check_devices(name, tensors)
        on_card = of_card or to_card
        if on_card and name not in _VIEWS:
            _note("launch", name)
        if name in _WAITS or (name in _INDEXED and _is_masked(args)):
            _note("wait", name)
        if name in _INDEXED:
            for t in tensors:
                if not isinstance(t, CardTensor) and t.dim() > 0:
                    _note("to_device")
    plain, named = _inner(args), {key: _inner(value) for key, value in kwargs.items()}
    if "device" in named and _is_card(named["device"]):
        named["device"] = torch.device("cpu")
    if name == "aten::_to_copy" and set(named) <= {"device", "non_blocking"}:
        result = plain[0].clone()  # on the CPU nothing would move
    else:
        result = func(*plain, **named)
    if func._schema.is_mutable and isinstance(result, torch.Tensor):
        for value in tensors:
            if isinstance(value, CardTensor) and value.inner is result:
                return value
    return _wrapped(result) if on_card else result


def _check_devices(name: str, tensors: list[torch.Tensor]) -> None:
    """As a GPU does: only numbers (tensors without dims) may come from the host."""
    if not any(isinstance(t, CardTensor) for t in tensors) or name in _INDEXED:
        return
    if any(not isinstance(t, CardTensor) and t.dim() > 0 for t in tensors):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, card and cpu")


def _is_masked(args: tuple) -> bool:
    """Whether an index is a mask, whose number of places must be known."""
    indices = args[1] if len(args) > 1 else ()
    return any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices)


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of a device's module."""

    free, total = 8 * 2**30, 16 * 2**30

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]

    def mem_get_info(self, device=None):
        return self.free, self.total

    def memory_reserved(self, device=None):
        return 0

    def memory_allocated(self, device=None):
        return 0


@cache
def setup() -> str:
    """Register the device, once for this process; gives its name."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
    _KEPT.append(library)
    # what `with torch.device("meta")` acts on is looked up once: by the names of torch's own
    _device_constructors()
    for name in ("tensor", "as_tensor"):
        _make_on_the_host(name)
    return NAME


_KEPT: list[Any] = []


def _make_on_the_host(name: str) -> None:
    """Data becomes a tensor on the host and is copied, by an operation that python sees."""
    original = getattr(torch, name)

    def made(data, *args, device=None, **kwargs):
        if _is_card(device):
            return original(data, *args, **kwargs).to(device)
        return original(data, *args, device=device, **kwargs)

    setattr(torch, name, made)
