"""TF32 imitated on the CPU: the factors of every float32 product are rounded to 11 bits.

Only while torch's switch says so, and as a GPU does it: to the nearest number with ten bits after
the point, sums in float32.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::addmv", "aten::mv"}


def rounded(x: torch.Tensor) -> torch.Tensor:
    """The nearest numbers with 11 bits."""
    bits = x.view(torch.int32)
    return ((bits + 2**12) & ~(2**13 - 1)).view(torch.float32)


class Imitated(TorchDispatchMode):
    """Products rounded while the switch says TF32; ``n_rounded`` and ``n_plain`` count them."""

    def __init__(self) -> None:
        super().__init__()
        self.n_rounded = self.n_plain = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in _PRODUCTS and args[-1].dtype == torch.float32:
            if torch.get_float32_matmul_precision() == "highest":
                self.n_plain += 1
            else:
                self.n_rounded += 1
                factors = [rounded(x.contiguous()) for x in args[-2:]]
                args = (*args[:-2], *factors)
        return func(*args, **(kwargs or {}))
