"""What follows from the dtype in which a model computes: rounding, and what must be wider.

float32 is what weights are read into unless something else is asked for. A model kept in 16 bits
(bfloat16 or float16) computes its blocks, and products with their Jacobians, in 16 bits; what this
package adds up, projects or measures of them is float32 at least.
"""

import torch

# bfloat16 keeps 8 bits of a number, float16 11, float32 24
SIXTEEN_BITS = (torch.bfloat16, torch.float16)


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


def finer(dtype: torch.dtype) -> str:
    """The name of the dtype to take where this one is too coarse."""
    return "float32" if dtype in SIXTEEN_BITS else "float64"


def dtype_name(dtype: torch.dtype) -> str:
    """For example "bfloat16"."""
    return str(dtype).removeprefix("torch.")
