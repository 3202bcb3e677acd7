"""Many tensors to the host in one copy: the host waits once."""

from collections.abc import Sequence

import numpy as np
import torch


def to_host(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """The tensors as float64 arrays of their shapes.

    Of tensors of an accelerator all numbers go in one copy, so that the host waits once and not
    for each; those of the CPU are shared where they are float64 already.
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [tensor.detach().double().numpy() for tensor in tensors]
    flat = torch.cat([tensor.detach().double().flatten() for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(t.shape).numpy() for part, t in zip(parts, tensors, strict=True)]
