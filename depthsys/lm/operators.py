"""Jacobians as scipy operators: products, never an H x H matrix."""

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator

from depthsys.lm.frozen import FrozenBlock
from depthsys.lm.linearize import Linearisation


class MeanJacobian(LinearOperator):
    """Mean over the prompts of some blocks of their Jacobians, as products."""

    def __init__(self, blocks: list[FrozenBlock], part: str | Linearisation):
        x = blocks[0].x
        super().__init__(np.dtype(np.float64), (x.shape[-1], x.shape[-1]))
        self._blocks = blocks
        self._linear = [block.linearised(part) for block in blocks]
        self._count = sum(len(block.prompts) for block in blocks)
        self._like = x

    def _matmat(self, X):
        return self._product("jvp", X)

    def _rmatmat(self, X):
        return self._product("vjp", X)

    def _matvec(self, x):
        return self._matmat(np.reshape(x, (-1, 1)))[:, 0]

    def _rmatvec(self, x):
        return self._rmatmat(np.reshape(x, (-1, 1)))[:, 0]

    def _product(self, name: str, columns: np.ndarray) -> np.ndarray:
        if np.iscomplexobj(columns):
            raise TypeError("`X` must be real; got complex. Multiply both parts.")
        self._blocks[0].check_weights()
        rows = torch.as_tensor(np.array(np.transpose(columns))).to(self._like)
        total = torch.zeros(rows.shape, dtype=torch.float64, device=rows.device)
        for linear in self._linear:
            total += getattr(linear, name)(rows).double().sum(0)
        return (total / self._count).T.cpu().numpy()
