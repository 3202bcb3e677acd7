"""Statistics of trajectories over depth: numpy alone, no model and no torch.

A trajectory is the states (sublayer, prompt, feature), or one number of them, in order of depth.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.stats
from scipy.sparse.linalg import svds
from sklearn.feature_selection import mutual_info_regression

ROUNDINGS = 10.0
ESTIMATOR = "sklearn.feature_selection.mutual_info_regression"


@dataclass(frozen=True)
class Moments:
    r"""Means and central sums over prompts, of which those of parts make those of the whole.

    Attributes
    ----------
    count
        Prompts.
    mean, square
        (sublayer, feature): the mean, and the sum of squared deviations from it.
    product
        (step, feature): the sum of products of deviations of successive sublayers.

    Notes
    -----
    Sums of raw products would cancel where a unit's mean is far larger than its spread. Parts are
    put together by the pairwise update of [1]_: with :math:`\delta` the difference of two means,
    :math:`C = C_1 + C_2 + \delta\,\delta' n_1 n_2 / (n_1 + n_2)`.

    References
    ----------
    .. [1] Chan, Golub and LeVeque (1983), doi:10.1080/00031305.1983.10483115.
    """

    count: int
    mean: np.ndarray
    square: np.ndarray
    product: np.ndarray

    @classmethod
    def of(cls, states: np.ndarray) -> "Moments":
        """Of states (sublayer, prompt, feature)."""
        mean = states.mean(axis=1)
        apart = states - mean[:, None]
        return cls(
            states.shape[1],
            mean,
            np.einsum("spf,spf->sf", apart, apart),
            np.einsum("spf,spf->sf", apart[:-1], apart[1:]),
        )

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        delta, weight = other.mean - self.mean, self.count * other.count / count
        return Moments(
            count,
            self.mean + delta * other.count / count,
            self.square + other.square + weight * delta**2,
            self.product + other.product + weight * delta[:-1] * delta[1:],
        )

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation over prompts (sublayer, feature); zero of one prompt."""
        return np.sqrt(self.square / max(self.count - 1, 1))

    def correlation(self, rounding: float) -> np.ndarray:
        """Pearson's correlation of a unit with itself one sublayer later (step, feature).

        NaN where a unit does not vary: by no more than `ROUNDINGS` times ``rounding`` of its own
        root mean square, or of that of all units, whose sums have made it.
        """
        total = self.square + self.count * self.mean**2
        total = np.maximum(total, total.mean(axis=1, keepdims=True))
        varies = self.square > (ROUNDINGS * rounding) ** 2 * total
        square = np.where(varies, self.square, np.nan)
        return np.clip(self.product / np.sqrt(square[:-1] * square[1:]), -1, 1)


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of vectors along the last axis; NaN where one is zero.

    Examples
    --------
    >>> float(cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])))
    0.71
    """
    length = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.einsum("...f,...f->...", first, second) / np.where(length > 0, length, np.nan)


def density(states: np.ndarray) -> np.ndarray:
    r"""How evenly the units of a state share its size: :math:`(\sum|x|)^2 / (H \sum x^2)`.

    1 if all are equally large, 1/H if one unit has it all, :math:`2/\pi` of normal numbers; NaN of
    a zero state.

    Examples
    --------
    >>> density(np.array([[1.0, -1.0, 1.0, 1.0], [3.0, 0.0, 0.0, 0.0]]))
    array([1.  , 0.25])
    """
    square = (states**2).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(states).sum(axis=-1) ** 2 / (states.shape[-1] * square)


# ---------------------------------------------------------------------------------- rotations


def turns(activation: np.ndarray) -> np.ndarray:
    r"""Total signed rotation in the plane of activation and gradient over depth, in turns.

    Clockwise is positive. The gradient is numpy's central difference. Both are centred and scaled
    to unit variance over depth; the angle about that centre is followed from sublayer to sublayer
    by the shorter way. An oscillation turns clockwise, once for each period; one with less than two
    points per period is not seen as what it is. Scale and offset of a unit do not matter.

    Parameters
    ----------
    activation
        (..., sublayer), three sublayers at least.

    Returns
    -------
    np.ndarray
        (...); NaN where a unit does not change.

    Examples
    --------
    >>> float(turns(np.cos(2 * np.pi * 3 * np.arange(61) / 60)))
    2.95
    """
    return angles(activation)[..., -1] / (2 * np.pi)


def angles(activation: np.ndarray) -> np.ndarray:
    """The angle turned clockwise since the first sublayer (..., sublayer), radians."""
    plane = (activation, np.gradient(activation, axis=-1))
    x, y = (_standard(values) for values in plane)
    phase = np.arctan2(y, x)
    steps = (np.diff(phase, axis=-1) + np.pi) % (2 * np.pi) - np.pi
    return -np.concatenate([np.zeros_like(phase[..., :1]), np.cumsum(steps, axis=-1)], axis=-1)


def _standard(values: np.ndarray) -> np.ndarray:
    apart = values - values.mean(axis=-1, keepdims=True)
    spread = np.sqrt((apart**2).mean(axis=-1, keepdims=True))
    return apart / np.where(spread > 0, spread, np.nan)


def shuffled_turns(
    activation: np.ndarray, rng: np.random.Generator, count: int
) -> Iterable[np.ndarray]:
    """Turns (...) of the same activations in random orders of the sublayers, drawn per unit."""
    for _ in range(count):
        yield turns(rng.permuted(activation, axis=-1))


def p_values(found: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    r"""Two-sided permutation p-values: how often a shuffle is as far from the shuffles' mean.

    :math:`(1 + \#\{|T_b - \bar T| \ge |T - \bar T|\}) / (1 + B)` with B shuffles, which is never
    zero [1]_.

    Parameters
    ----------
    found
        (unit).
    shuffled
        (shuffle, unit).

    References
    ----------
    .. [1] Phipson and Smyth (2010), doi:10.2202/1544-6115.1585.
    """
    middle = shuffled.mean(axis=0)
    # as far but for rounding counts as as far
    as_far = np.abs(shuffled - middle) >= np.abs(found - middle) * (1 - 1e-9)
    p = (1 + as_far.sum(axis=0)) / (1 + len(shuffled))
    return np.where(np.isfinite(found), p, np.nan)


def adjusted(p: np.ndarray) -> np.ndarray:
    """P-values adjusted for their number (Benjamini and Hochberg); NaN stays."""
    known = np.isfinite(p)
    q = np.full_like(p, np.nan)
    if known.any():
        q[known] = scipy.stats.false_discovery_control(p[known], method="bh")
    return q


# ------------------------------------------------------------------------ mutual information


def information(first: np.ndarray, second: np.ndarray, seed: int, neighbours: int) -> float:
    """Mutual information of two samples, nats, by nearest neighbours; see `ESTIMATOR`.

    The estimator of [1]_, which scikit-learn cuts at zero; before that it is unbiased for
    independent samples, and so a little above zero on average after it.

    References
    ----------
    .. [1] Kraskov, Stoegbauer and Grassberger (2004), doi:10.1103/PhysRevE.69.066138.
    """
    found = mutual_info_regression(
        first[:, None], second, n_neighbors=neighbours, random_state=seed
    )
    return float(found[0])


# ---------------------------------------------------------------------- principal components


@dataclass(frozen=True)
class Components:
    """Principal components of rows.

    Attributes
    ----------
    centre
        (feature): the mean row.
    rows
        (component, feature): orthonormal, the largest variance first; the entry of a row that is
        largest in size is positive.
    explained
        (component): share of the variance.
    """

    centre: np.ndarray
    rows: np.ndarray
    explained: np.ndarray

    def scores(self, states: np.ndarray) -> np.ndarray:
        """Coordinates (..., component) of states (..., feature)."""
        return (states - self.centre) @ self.rows.T

    def states(self, scores: np.ndarray) -> np.ndarray:
        """States (..., feature) with these coordinates and the centre's elsewhere."""
        return self.centre + scores @ self.rows


def components(rows: np.ndarray, count: int, rng: np.random.Generator) -> Components:
    """The first principal components of rows (row, feature), by Lanczos: products alone.

    As many as there are, where ``count`` is more. ValueError if all rows are the same.
    """
    apart = np.array(rows, dtype=np.float64)
    centre = apart.mean(axis=0)
    apart -= centre
    total = float(np.einsum("rf,rf->", apart, apart))
    if total <= 0:
        raise ValueError("`rows` must differ; got the same row everywhere. Take others.")
    if count < min(apart.shape):
        start = rng.standard_normal(min(apart.shape))
        _, *found = svds(apart, k=count, v0=start)
    else:
        _, *found = np.linalg.svd(apart, full_matrices=False)
    size, axes = (np.asarray(one) for one in found)
    order = np.argsort(-size)[:count]
    size, axes = size[order], axes[order]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return Components(centre, axes * np.sign(largest), size**2 / total)
