"""How float32 matrix products are computed: torch's process-wide switch, held while we work.

torch lets a process round the factors of every float32 product: to 11 bits on a GPU (TF32), to 8 or
11 on some CPUs. Here that is a choice of a model (`DepthModel(products="tf32")`), never one that
somebody else made: `products_in` sets the switch and puts it back. It holds for the whole process
meanwhile, also for what other threads multiply.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

from depthsys.lm.kinds import short
from depthsys.lm.precision import dtype_name

PRODUCTS = ("float32", "tf32")

_LEGACY = {"float32": "highest", "tf32": "high"}
_PLACES = (("cuda", "matmul"), ("mkldnn", "matmul"))
# what torch's older names stand for at those places
_MEANS = {"highest": ("ieee", "ieee"), "high": ("tf32", "tf32"), "medium": ("tf32", "bf16")}
# torch 2.8 knows the older names alone
_GET: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
_SET: Any = getattr(torch._C, "_set_fp32_precision_setter", None)


def check_graph() -> None:
    """RuntimeError where torch keeps no graph: a derivative would fail, or silently be zero."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "derivatives must be taken outside torch.inference_mode(); it keeps no graph. "
            "Use torch.no_grad(), or neither."
        )


def has_tf32(device: torch.device) -> bool:
    """Whether products on that device can be rounded to TF32: NVIDIA's, from Ampere on."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def checked_products(products: object, dtype: torch.dtype, device: torch.device) -> str:
    """The choice, if there is one for numbers of that dtype on that device.

    Raises
    ------
    ValueError
        If it is none, or would have no effect.
    """
    if not isinstance(products, str) or products not in PRODUCTS:
        raise ValueError(
            f"`products` must be one of {PRODUCTS}; got {short(products)}. The default is "
            "'float32'."
        )
    if products == "tf32" and dtype != torch.float32:
        raise ValueError(
            f"`products` must be 'float32' for a model in {dtype_name(dtype)}; got 'tf32', which "
            "rounds products of float32 numbers alone. Leave it out, or load it in float32."
        )
    if products == "tf32" and not has_tf32(device):
        raise ValueError(
            f"`products` must be 'float32' on {str(device)!r}, which has no TF32 (NVIDIA GPUs from "
            "Ampere on have it); got 'tf32'. Leave it out."
        )
    return products


class _Switch:
    """Who holds the switch, and how it stood before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, list[str]] = {}  # of each thread, the innermost last
        self._before: Any = None  # read when it is first turned

    def enter(self, wanted: str) -> None:
        me = threading.get_ident()
        with self._lock:
            if any(held[-1] != wanted for who, held in self._held.items() if who != me):
                raise RuntimeError(
                    "models with TF32 products must not work while another thread works in "
                    f"float32, or the other way round: torch has one switch; got {wanted!r} in a "
                    "second thread. Take turns, or use processes."
                )
            # only what has been turned is held: else a failure would lock out other threads
            self._turn(wanted)
            self._held.setdefault(me, []).append(wanted)

    def leave(self) -> None:
        me = threading.get_ident()
        with self._lock:
            held = self._held[me]
            held.pop()
            if held:
                self._turn(held[-1])
                return
            del self._held[me]
            if not self._held and self._before is not None:
                _restore(self._before)
                self._before = None

    def _turn(self, wanted: str) -> None:
        now = _now()
        # "none" is what torch does by itself: no rounding
        is_so = now[0] == "tf32" if wanted == "tf32" else all(n in ("none", "ieee") for n in now)
        if is_so:
            return
        if self._before is None:
            self._before = _read()
        # the older name sets the newer ones too, so that torch never finds the two at odds
        torch.set_float32_matmul_precision(_LEGACY[wanted])


_SWITCH = _Switch()


@contextlib.contextmanager
def products_in(products: str) -> Iterator[None]:
    """Compute float32 products in "float32" or "tf32" meanwhile.

    It may be nested; the innermost one counts.

    Raises
    ------
    RuntimeError
        If another thread holds the switch the other way.
    """
    _SWITCH.enter(products)
    try:
        yield
    finally:
        _SWITCH.leave()


def _now() -> tuple[str, ...]:
    if _GET is None:
        return _MEANS[torch.get_float32_matmul_precision()]
    return tuple(_GET(*place) for place in _PLACES)


def _read() -> tuple[str, tuple[str, ...]]:
    """The older name, and what the newer ones say."""
    now = _now()
    try:
        return torch.get_float32_matmul_precision(), now
    except RuntimeError:  # the newer ones were set to something else, so torch does not say
        for name, means in _MEANS.items():
            _set(means)
            try:
                found = torch.get_float32_matmul_precision()
            except RuntimeError:
                continue
            if found == name:
                _set(now)
                return name, now
        _set(now)
        return "highest", now


def _restore(before: tuple[str, tuple[str, ...]]) -> None:
    torch.set_float32_matmul_precision(before[0])
    if _GET is not None:
        _set(before[1])


def _set(values: tuple[str, ...]) -> None:
    for (backend, operation), value in zip(_PLACES, values, strict=True):
        # what follows the setting above it goes on following it
        follows = value != "none" and _GET(backend, "all") == value
        _SET(backend, operation, "none" if follows else value)
