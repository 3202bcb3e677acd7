"""How well directions separate texts they were not fitted on: AUC with intervals, and a warning."""

import numpy as np
from scipy.stats import rankdata

from depthsys.lm.run import Run
from depthsys.lm.shards import along, in_shards
from depthsys.wording import separation_warning

_NORMAL_975 = 1.959963984540054  # 97.5 % quantile of the standard normal


def warning(auc: float, low: float, high: float) -> dict[str, str]:
    """An attr for a direction that does not separate the classes as it should; or none."""
    return {} if low > 0.5 else {"warning": separation_warning(auc, low, high)[1]}


@in_shards(along(1), "separation")
def scores(run: Run, direction: np.ndarray) -> np.ndarray:
    """Readout v_k' x_k (depth, prompt)."""
    scores = np.empty((run.n_layers + 1, len(run)))
    for prompts, states in run.states_by_batch("separation"):
        x = states.double().cpu().numpy()
        scores[:, prompts] = np.einsum("kpf,kf->kp", x, direction)
    return scores


def separation(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC of scores (depth, prompt) from the rank sum of class 1, and its 95 % interval."""
    n0, n1 = np.bincount(labels, minlength=2).tolist()
    ranks = rankdata(scores, axis=-1)[:, labels == 1].sum(axis=-1)
    auc = (ranks - n1 * (n1 + 1) / 2) / (n0 * n1)
    return auc, auc_limit(auc, n0, n1, 0.0), auc_limit(auc, n0, n1, 1.0)


def auc_limit(auc: np.ndarray, n0: int, n1: int, end: float) -> np.ndarray:
    r"""Limit towards ``end`` of the 95 % interval of an AUC, Newcombe's method 5.

    The interval holds every :math:`\theta` with :math:`|AUC - \theta| \le z \sqrt{V(\theta)}`,
    :math:`V = \theta (1 - \theta) [1 + (\bar n - 1)((1 - \theta) / (2 - \theta) + \theta / (1 +
    \theta))] / (n_0 n_1)`, :math:`\bar n = (n_0 + n_1) / 2`. Found by bisection.
    """
    inside, outside = auc, np.full_like(auc, end)
    for _ in range(50):
        t = (inside + outside) / 2
        spread = 1 + ((n0 + n1) / 2 - 1) * ((1 - t) / (2 - t) + t / (1 + t))
        variance = t * (1 - t) * spread / (n0 * n1)
        holds = abs(auc - t) <= _NORMAL_975 * np.sqrt(variance)
        inside, outside = np.where(holds, t, inside), np.where(holds, outside, t)
    return inside


def log_odds_per_unit(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""By how much the log-odds of class 1 grow per unit of a score (depth, prompt).

    That of Fisher's linear discriminant, :math:`(\mu_1 - \mu_0) / \sigma^2` with the pooled
    variance of both classes: exact where scores are normal with one variance. Unlike the slope of
    a logistic regression it is finite where the classes do not overlap. NaN where all scores of a
    class are the same.
    """
    parts = [scores[:, labels == c] for c in (0, 1)]
    apart = parts[1].mean(axis=-1) - parts[0].mean(axis=-1)
    squares = sum(((p - p.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1) for p in parts)
    variance = squares / max(scores.shape[-1] - 2, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variance > 0, apart / variance, np.nan)


def paired_accuracy(
    positive: np.ndarray, negative: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of pairs that scores (depth, pair) order rightly, and its 95 % interval by Wilson.

    Ties count one half; NaN where there are no scores.
    """
    n = positive.shape[-1]
    right = ((positive > negative) + 0.5 * (positive == negative)).mean(axis=-1)
    share = np.where(np.isnan(positive).any(axis=-1), np.nan, right)
    z2 = _NORMAL_975**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return share, np.maximum(middle - half, 0), np.minimum(middle + half, 1)
