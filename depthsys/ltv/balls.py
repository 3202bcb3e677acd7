"""Bounds on parts of a vector, and what is known of them without solving anything."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A matrix M and a radius: the vectors z with |M z| <= radius.
Ball = tuple[np.ndarray, float]

# A bound counts as active within this part of it.
ACTIVE = 1e-5


def inside(u: np.ndarray, bounds: Sequence[Ball]) -> np.ndarray:
    """A point whose parts beyond their bounds are scaled back onto them."""
    u = u.copy()
    for matrix, radius in bounds:
        size = np.linalg.norm(matrix @ u)
        if size > radius:
            u[np.abs(matrix).any(axis=0)] *= radius / size
    return u


@dataclass(frozen=True)
class Balls:
    """Sets |M z| <= radius, those of a single variable as boxes."""

    box: np.ndarray
    balls: list[Ball]

    @classmethod
    def of(cls, balls: Sequence[Ball], n: int) -> "Balls":
        """Of n variables: matrices with one column that is not zero become parts of the box."""
        box, rest = np.full(n, np.inf), []
        for matrix, radius in balls:
            at = np.flatnonzero(np.abs(matrix).any(axis=0))
            if len(at) == 1:
                box[at] = np.minimum(box[at], radius / np.linalg.norm(matrix[:, at]))
            elif len(at):
                rest.append((np.asarray(matrix), radius))
        return cls(box, rest)

    def size(self, d: np.ndarray) -> float:
        """The radius that just holds d."""
        each = [np.linalg.norm(matrix @ d) / radius for matrix, radius in self.balls]
        return float(max([*(np.abs(d) / self.box), *each]))

    def reach(self, rows: np.ndarray) -> np.ndarray:
        """The largest |r z| (row) of z within them; infinite where they leave r free."""
        found = np.zeros(len(rows))
        left = rows.copy()
        for matrix, radius in self.balls:
            at = np.abs(matrix).any(axis=0)
            part, rank = np.linalg.lstsq(matrix[:, at].T, rows[:, at].T, rcond=1e-12)[::2]
            if rank == at.sum():
                found += radius * np.linalg.norm(part, axis=0)
                left[:, at] = 0
        size = np.abs(left)
        box = np.where(np.isfinite(self.box), self.box, 0.0)
        free = (size[:, ~np.isfinite(self.box)] > 0).any(axis=1)
        return np.where(free, np.inf, found + size @ box)

    def normals(self, z: np.ndarray) -> np.ndarray:
        """Outer normals (bound, variable) of those that z lies on."""
        at = np.flatnonzero(np.abs(z) >= (1 - ACTIVE) * self.box)
        rows = [np.sign(z[j]) * np.eye(len(z))[j] for j in at]
        for matrix, radius in self.balls:
            image = matrix @ z
            if np.linalg.norm(image) >= (1 - ACTIVE) * radius:
                normal = matrix.T @ image
                rows.append(normal / np.linalg.norm(normal))
        return np.array(rows).reshape(-1, len(z))
