"""What follows from the dtype in which a model computes: rounding, and what must be wider.

float32 is what weights are read into unless something else is asked for. A model kept in 16 bits
(bfloat16 or float16) computes its blocks, and products with their Jacobians, in 16 bits; what this
package adds up, projects or measures of them is float32 at least.
"""

from dataclasses import dataclass
from typing import Any

import torch

# bfloat16 keeps 8 bits of a number, float16 11, float32 24
SIXTEEN_BITS = (torch.bfloat16, torch.float16)
# TF32 keeps as many bits of a factor as float16 does
TF32_EPS = 2.0**-10


def eps(dtype: torch.dtype) -> float:
    """Distance of 1 and the next number of that dtype."""
    return float(torch.finfo(dtype).eps)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or that dtype if it holds more."""
    return torch.promote_types(dtype, torch.float32)


def wide(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in float32 at least: torch rounds norms and sums to the dtype it is given.

    Nothing is copied where that is so already.
    """
    return x.to(wide_dtype(x.dtype))


@dataclass(frozen=True)
class Arithmetic:
    """What a model computes in: the dtype of its numbers, and how its products are made.

    ``products`` is "float32", or "tf32": the factors of every product of float32 numbers are
    rounded to 11 bits first.
    """

    dtype: torch.dtype
    products: str = "float32"

    @classmethod
    def of(cls, model: Any) -> "Arithmetic":
        """That of a model, a block, or a dtype."""
        if isinstance(model, torch.dtype):
            return cls(model)
        return cls(model.dtype, getattr(model, "products", "float32"))

    @property
    def eps(self) -> float:
        """The rounding of what it computes."""
        return TF32_EPS if self.products == "tf32" else eps(self.dtype)

    @property
    def is_coarse(self) -> bool:
        """Whether it keeps no more of a number than 16 bits do."""
        return self.products == "tf32" or self.dtype in SIXTEEN_BITS

    @property
    def name(self) -> str:
        """For example "bfloat16", or "float32 with TF32 products"."""
        return f"{dtype_name(self.dtype)}{' with TF32 products' * (self.products == 'tf32')}"

    @property
    def finer(self) -> str:
        """What to take where this is too coarse."""
        if self.products == "tf32":
            return "products in float32"
        return "float32" if self.dtype in SIXTEEN_BITS else "float64"


def rounding_of(model: Any) -> float:
    """The rounding of what a model computes: that of its dtype, or of its products."""
    return Arithmetic.of(model).eps


def dtype_name(dtype: torch.dtype) -> str:
    """For example "bfloat16"."""
    return str(dtype).removeprefix("torch.")
