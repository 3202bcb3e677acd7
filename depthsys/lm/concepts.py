"""Concept directions, and how well they separate texts they were not fitted on.

Every function takes a model and labelled texts, or contrast pairs, and gives one direction per
depth, of unit length and pointing towards class 1. Fits are made depth by depth, in float64.

Where a depth has no direction, as depth 0 of texts that end in the same token, the direction there
is NaN, the attr ``direction_note`` says why, and everything goes on at the other depths.
"""

import json
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from numbers import Real

import numpy as np
import scipy.linalg
import xarray as xr
from sklearn.covariance import LedoitWolf
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from depthsys.lm.class_means import class_difference
from depthsys.lm.kinds import short
from depthsys.lm.of_run import as_run, of_run
from depthsys.lm.pairs import Pairs
from depthsys.lm.precision import rounding_of
from depthsys.lm.prompts import Texts
from depthsys.lm.run import Run
from depthsys.lm.separation import (
    log_odds_per_unit,
    paired_accuracy,
    scores,
    separation,
    warning,
)
from depthsys.lm.shards import ShardedRun
from depthsys.lm.stamp import provenance

_IN_MEMORY = 2**28  # bytes of states; more than that wait in a temporary file


@of_run(once=True, shards=True)
def mean_difference(run: Run, *, held_out: Texts | Run | None = None) -> xr.Dataset:
    r"""Unit mean-difference direction at every depth.

    :math:`v_k \propto \operatorname{mean}_{class 1} x_k - \operatorname{mean}_{class 0} x_k`,
    normalised; x_k is the residual stream of the last token.

    Parameters
    ----------
    run
        A run of the texts that define the direction. Only its
        states are used. Or a model and texts.
    held_out
        Other texts, or a run of them, on which the separation is measured.

    Returns
    -------
    xr.Dataset
        ``direction`` (depth, feature), unit length; ``distance`` (depth), norm of the mean
        difference, in the unit of the state. With ``held_out`` also ``auc`` (depth), the area
        under the ROC curve of ``v_k' x_k`` there (0.5 = no separation, ties count one half), and
        ``auc_low``, ``auc_high`` (depth), its 95 % interval over texts: Newcombe's method 5 [2]_,
        the score interval with Hanley and McNeil's variance. Unlike DeLong's it keeps a width
        where the AUC is 1. It says nothing of the texts that the direction was fitted on, and is
        too narrow where one class has far fewer texts and far more spread than the other. Where
        the interval at the last depth does not lie above 0.5, attrs hold a ``warning``.
        ``log_odds_per_unit`` (depth): by how much the log-odds of class 1 grow with ``v_k' x_k``,
        as a linear discriminant reads it off the held-out texts. With held-out contrast pairs
        also ``paired_accuracy``, ``paired_low``, ``paired_high`` (depth):
        the share of pairs whose positive text has the larger ``v_k' x_k`` (ties count one half),
        and its 95 % score interval (Wilson) over pairs, taken as independent.

    Raises
    ------
    ValueError
        If a class has no text, if all texts are the same, or if no depth has a direction.

    Notes
    -----
    A depth has no direction (NaN) where the two class means coincide, and where more than nine
    texts of ten are in one and the same state, so that it would rest on the few others. Both happen
    at depth 0 of models without position embeddings, whose state there is that of the last token.

    References
    ----------
    .. [1] arXiv 2603.12541 (low-order linear depth dynamics), concept directions.
    .. [2] Newcombe (2006), Statistics in Medicine 25, 559-573, doi:10.1002/sim.2324.
    """
    _check_texts(run, held_out, least=1)
    difference, undefined = class_difference(run)
    distance = {"distance": np.linalg.norm(difference, axis=-1)}
    return _result(run, held_out, "mean_difference", difference, distance, undefined)


@of_run(once=True, shards=True)
def paired_difference(run: Run, *, held_out: Texts | Run | None = None) -> xr.Dataset:
    r"""Unit mean of the differences of contrast pairs at every depth.

    :math:`v_k \propto \operatorname{mean}_i (x_k^{+,i} - x_k^{-,i})`, normalised, over the pairs i
    of a positive and a negative text: the direction of contrastive activation addition [1]_. It
    equals `mean_difference` of the same texts; what pairs add is told by ``consistency`` and by
    ``paired_accuracy``.

    Parameters
    ----------
    run
        A run of contrast pairs, see `read_pairs`. Only its states are used. Or a model and pairs.
    held_out
        Other pairs or texts, or a run of them, on which the separation is measured.

    Returns
    -------
    xr.Dataset
        ``direction`` (depth, feature), unit length; ``distance`` (depth), norm of the mean of the
        differences, in the unit of the state; ``consistency`` (depth), that norm divided by the
        root mean square of the norms of the differences: 1 if all pairs differ alike, about
        1/sqrt(number of pairs) if they differ at random. With ``held_out`` also ``auc``, and of
        pairs ``paired_accuracy``, with their intervals, see `mean_difference`.

    Raises
    ------
    TypeError
        If the texts are no pairs.
    ValueError
        As `mean_difference`.

    References
    ----------
    .. [1] Rimsky et al. (2024), Steering Llama 2 via Contrastive Activation Addition,
       arXiv 2312.06681.
    """
    _check_texts(run, held_out, least=1)
    pairs = _checked_pairs(run)
    square = np.zeros(run.n_layers + 1)
    x = _empty_states(run)
    _, undefined = class_difference(run, keep=x)
    v = np.empty((run.n_layers + 1, run.model.n_features))
    for depth, states in enumerate(x):
        differences = states[::2].astype(np.float64) - states[1::2]
        v[depth] = differences.mean(axis=0)
        square[depth] = (differences**2).sum(axis=-1).mean()
    distance = np.linalg.norm(v, axis=-1)
    with np.errstate(invalid="ignore"):  # no pair differs there
        extra = {"distance": distance, "consistency": distance / np.sqrt(square)}
    about = {"n_pairs": pairs.n_pairs}
    return _result(run, held_out, "paired_difference", v, extra, undefined, about)


@of_run(once=True, shards=True)
def whitened(run: Run, *, held_out: Texts | Run | None = None) -> xr.Dataset:
    r"""Linear discriminant (LDA) direction at every depth.

    :math:`v_k \propto \Sigma_k^{-1} (\operatorname{mean}_{class 1} x_k -
    \operatorname{mean}_{class 0} x_k)`, normalised, where :math:`\Sigma_k = (1 - s_k) S_k + s_k
    \operatorname{tr}(S_k) / H \cdot I`, S_k is the covariance of the states about the mean of
    their own class, pooled over both classes (divided by the number of texts), and s_k the
    shrinkage of Ledoit and Wolf [1]_.

    Parameters
    ----------
    run
        A run of the texts that define the direction, two or more per class. Only its
        states are used. Or a model and texts.
    held_out
        Other texts, or a run of them, on which the separation is measured.

    Returns
    -------
    xr.Dataset
        ``direction`` (depth, feature), unit length; ``shrinkage`` (depth), s_k from 0 to 1. With
        ``held_out`` also ``auc``, ``auc_low``, ``auc_high`` (depth), see `mean_difference`.

    Raises
    ------
    ValueError
        As `mean_difference`; if a class has fewer than two texts.

    Notes
    -----
    A depth also has no direction where the states do not vary inside the classes, or where their
    covariance is singular in spite of the shrinkage.

    All states are kept, in a temporary file above 256 MB, and one dense H x H covariance.

    References
    ----------
    .. [1] Ledoit and Wolf (2004), doi:10.1016/S0047-259X(03)00096-4.
    """
    _check_texts(run, held_out, least=2)
    x = _empty_states(run)
    difference, undefined = class_difference(run, keep=x)
    w, shrinkage = np.empty_like(difference), np.full(len(x), np.nan)

    def fit(depth: int, states: np.ndarray) -> None:
        inside = _inside_classes(states, run.texts.labels)
        _check_spread(run, states, inside)
        found = LedoitWolf(assume_centered=True, store_precision=False).fit(inside)
        shrinkage[depth] = found.shrinkage_
        w[depth] = _solve(found.covariance_, difference[depth])

    _at_every_depth(fit, x, undefined)
    return _result(run, held_out, "whitened", w, {"shrinkage": shrinkage}, undefined)


@of_run(once=True, shards=True)
def logistic(
    run: Run,
    *,
    held_out: Texts | Run | None = None,
    C: float = 1.0,
    max_iterations: int = 1000,
) -> xr.Dataset:
    r"""Weight of an L2-regularised logistic regression at every depth.

    :math:`v_k \propto w`, normalised, where w and the intercept b minimise :math:`\tfrac12
    \|w\|^2 + C \sum_i \log(1 + e^{-t_i (w^\top z_i + b)})` over the texts i with t_i = 1 for class
    1 and -1 for class 0. States are centred and divided by ONE number per depth, :math:`z_i =
    (x_i - \bar x) / s`, s² = mean square over texts and features of the centred states. So the
    penalty is the same in all directions of the state space (scaling feature by feature would
    change the geometry), and C means what it does after scikit-learn's ``StandardScaler`` on
    average over features.

    Parameters
    ----------
    run
        A run of the texts that define the direction, two or more per class.
        Classes are not reweighted. Only its states are used. Or a model and texts.
    held_out
        Other texts, or a run of them, on which the separation is measured.
    C
        Inverse strength of the penalty, above 0. For C -> 0 the direction is the mean difference.
    max_iterations
        Most L-BFGS iterations at one depth. A fit has converged when the largest entry of the
        gradient has fallen by 1e-6.

    Returns
    -------
    xr.Dataset
        ``direction`` (depth, feature), unit length; ``scale`` (depth), s, in the unit of the
        state. With ``held_out`` also ``auc``, ``auc_low``, ``auc_high`` (depth), see
        `mean_difference`.

    Raises
    ------
    ValueError
        As `mean_difference`; if a class has fewer than two texts, if an option is out of range,
        or if the fit does not converge at some depth.

    Notes
    -----
    All states are kept, in a temporary file above 256 MB.

    References
    ----------
    .. [1] scikit-learn, ``sklearn.linear_model.LogisticRegression``, solver "lbfgs".
    """
    if not (isinstance(C, Real) and 0 < C < math.inf):
        raise ValueError(f"`C` must be a number above 0; got {short(C)}. The default is 1.")
    if max_iterations < 1:
        raise ValueError(
            f"`max_iterations` must be >= 1; got {max_iterations}. The default is 1000."
        )
    _check_texts(run, held_out, least=2)
    x = _empty_states(run)
    difference, undefined = class_difference(run, keep=x)
    w, scale = np.empty_like(difference), np.full(len(x), np.nan)

    def fit(depth: int, states: np.ndarray) -> None:
        centred = states.astype(np.float64) - states.mean(axis=0, dtype=np.float64)
        scale[depth] = np.sqrt((centred**2).mean())
        z = centred / scale[depth]
        w[depth] = _logistic_weight(z, run.texts.labels, C, max_iterations, depth)

    _at_every_depth(fit, x, undefined)
    settings = {"C": float(C), "max_iterations": max_iterations}
    return _result(run, held_out, "logistic", w, {"scale": scale}, undefined, settings)


@of_run(once=True, shards=True)
def pca(
    run: Run,
    *,
    held_out: Texts | Run | None = None,
    centered: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """First principal component of paired differences at every depth.

    v_k is the first right singular vector of the differences D (pair, feature) of the states of
    contrast pairs, positive minus negative. Texts that are no pairs are paired at random: each
    class is shuffled and the i-th text of class 1 paired with the i-th of class 0 (the same pairs
    at all depths; surplus texts of the larger class stay without a pair). The sign of v_k is such
    that class 1 scores higher than class 0 on average over the concept texts.

    Parameters
    ----------
    run
        A run of the texts that define the direction, two or more per class. Only its
        states are used. Or a model and texts.
    held_out
        Other texts, or a run of them, on which the separation is measured.
    centered
        Subtract the mean difference from D first. Then v_k is where pairs differ most from one
        another, not from zero, and need not separate the classes.
    seed
        Of the pairing of texts that are no pairs.

    Returns
    -------
    xr.Dataset
        ``direction`` (depth, feature), unit length; ``explained`` (depth), the share of the sum of
        squares of D along it, 0 to 1. With ``held_out`` also ``auc``, and of pairs
        ``paired_accuracy``, with their intervals, see `mean_difference`. The attr ``pairing`` is
        "given" or "random".

    Raises
    ------
    ValueError
        As `mean_difference`; if a class has fewer than two texts or ``seed`` is negative.

    Notes
    -----
    A depth also has no direction where the first component is not unique or has no sign.

    Texts paired at random also differ in all but the concept: where that is most of the
    difference, v_k shows it and not the concept. ``auc`` tells.

    All states are kept, in a temporary file above 256 MB.

    References
    ----------
    .. [1] Zou et al. (2023), Representation Engineering, arXiv 2310.01405: linear artificial
       tomography. There differences are centred, and pairs are of random texts or of one text
       under two instructions.
    """
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(
            f"`seed` must be a whole number >= 0; got {short(seed)}. The default is 0."
        )
    _check_texts(run, held_out, least=2)
    x = _empty_states(run)
    difference, undefined = class_difference(run, keep=x)
    given = isinstance(run.texts, Pairs)
    ones, zeros = slice(0, None, 2), slice(1, None, 2)
    if not given:
        zeros, ones = _pairs(run.texts.labels, seed)
    v, explained = np.empty_like(difference), np.full(len(x), np.nan)

    def fit(depth: int, states: np.ndarray) -> None:
        pairs = states[ones].astype(np.float64) - states[zeros]
        if centered:
            pairs -= pairs.mean(axis=0)
        v[depth], explained[depth] = _first_component(pairs, difference[depth])

    _at_every_depth(fit, x, undefined)
    settings: dict[str, str | int] = {"centered": int(centered), "n_pairs": len(x[0, ones])}
    settings |= {"pairing": "given"} if given else {"pairing": "random", "seed": int(seed)}
    return _result(run, held_out, "pca", v, {"explained": explained}, undefined, settings)


# -------------------------------------------------------------------------------- fits


def _empty_states(run: Run) -> np.ndarray:
    """Room for the states (depth, prompt, feature) of all texts."""
    shape = (run.n_layers + 1, len(run), run.model.n_features)
    dtype = run.model.numpy_dtype
    if math.prod(shape) * dtype.itemsize <= _IN_MEMORY:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:  # the map keeps the file alive
        return np.asarray(np.memmap(file, dtype, "w+", shape=shape))


class _UndefinedError(ValueError):
    """A depth has no direction of this kind."""


def _at_every_depth(fit: Callable, x: np.ndarray, undefined: dict[int, str]) -> None:
    """Fit where a direction may exist, and note in ``undefined`` where the fit finds none."""
    for depth, states in enumerate(x):
        if depth in undefined:
            continue
        try:
            fit(depth, states)
        except _UndefinedError as error:
            undefined[depth] = str(error)


def _inside_classes(states: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """States (prompt, feature) minus the mean of their own class."""
    inside = states.astype(np.float64)
    for label in (0, 1):
        inside[labels == label] -= inside[labels == label].mean(axis=0)
    return inside


def _check_spread(run: Run, states: np.ndarray, inside: np.ndarray) -> None:
    rounding = 10 * rounding_of(run.model) * np.linalg.norm(states)
    if np.linalg.norm(inside) <= rounding:
        raise _UndefinedError("the states do not vary inside the classes")


def _solve(covariance: np.ndarray, difference: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error", scipy.linalg.LinAlgWarning)
        try:
            return scipy.linalg.solve(covariance, difference, assume_a="pos")
        except (np.linalg.LinAlgError, scipy.linalg.LinAlgWarning) as error:
            raise _UndefinedError(
                "the covariance inside the classes is singular in spite of the shrinkage"
            ) from error


def _logistic_weight(
    z: np.ndarray, labels: np.ndarray, C: float, max_iterations: int, depth: int
) -> np.ndarray:
    # the gradient at w = 0: a fixed tolerance would stop there where classes hardly differ
    gradient = (labels - labels.mean()) @ z / len(z)
    fit = LogisticRegression(C=C, max_iter=max_iterations, tol=1e-6 * abs(gradient).max())
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return fit.fit(z, labels).coef_[0]
        except ConvergenceWarning as error:
            raise ValueError(
                f"`max_iterations` must suffice for the fit at depth {depth}; got "
                f"{max_iterations} with C = {C:g}. Raise it or lower `C`."
            ) from error


def _pairs(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of class 0 and of class 1, paired at random."""
    rng = np.random.default_rng(seed)
    zeros, ones = (rng.permutation(np.flatnonzero(labels == label)) for label in (0, 1))
    count = min(len(zeros), len(ones))
    return zeros[:count], ones[:count]


def _first_component(pairs: np.ndarray, difference: np.ndarray) -> tuple[np.ndarray, float]:
    """First right singular vector, signed along ``difference``, and its share of the squares."""
    _, singular, rows = np.linalg.svd(pairs, full_matrices=False)
    if singular[0] - singular[1:2].sum() <= 1e-6 * singular[0]:
        values = " and ".join(f"{value:.4g}" for value in singular[:2])
        raise _UndefinedError(
            f"the differences of pairs have no single first component (singular values {values})"
        )
    along = float(rows[0] @ difference)
    if abs(along) <= 1e-6 * np.linalg.norm(difference):
        raise _UndefinedError(
            "the class means do not differ along the first component, which gives it its sign"
        )
    return math.copysign(1, along) * rows[0], float(singular[0] ** 2 / (singular**2).sum())


# -------------------------------------------------------------------------------- results


def _check_texts(run: Run, held_out: Texts | Run | None, least: int) -> None:
    """What can be refused before any fit."""
    for name, given, number in (("concept", run, least), ("held_out", held_out, 1)):
        if given is None:
            continue
        texts = given.texts if isinstance(given, (Run, ShardedRun)) else given
        if not hasattr(texts, "labels"):
            raise TypeError(
                f"`{name}` must be labelled texts, or a run of them; got {short(given)}. "
                "Use `lm.read_texts`."
            )
        counts = np.bincount(texts.labels, minlength=2)
        if counts.min() == 0:
            raise ValueError(
                f"`{name}` must hold texts of both classes; got {counts.tolist()}. Split again."
            )
        if counts.min() < number:
            raise ValueError(
                f"`{name}` must hold at least {number} texts per class; got {counts.tolist()}. "
                "Add texts, or use `mean_difference`."
            )
    if run.all_the_same:
        raise ValueError(
            f"`concept` must hold different texts; got the same tokens {len(run)} times "
            f"({run.n_cut} texts were cut). Vary them or raise `max_tokens`."
        )


def _checked_pairs(run: Run) -> Pairs:
    """The pairs that a run is of."""
    if not isinstance(run.texts, Pairs):
        raise TypeError(
            f"`concept` must be contrast pairs, or a run of them; got {short(run.texts)}. Use "
            "`lm.read_pairs`, or `mean_difference`, which is the same direction."
        )
    return run.texts


def _result(
    run: Run,
    held_out: Texts | Run | None,
    method: str,
    w: np.ndarray,
    extra: dict[str, np.ndarray],
    undefined: dict[int, str],
    settings: Mapping[str, str | int | float] = {},
) -> xr.Dataset:
    """A Dataset of the normalised ``w`` (depth, feature), with its separation of held-out texts."""
    w[list(undefined)] = np.nan
    length = np.linalg.norm(w, axis=-1)
    for depth in set(np.flatnonzero(~(np.isfinite(length) & (length > 0))).tolist()):
        undefined.setdefault(depth, f"{method} gives one of length {length[depth]}")
        w[depth] = length[depth] = np.nan
    if len(undefined) == len(w):
        raise ValueError(
            f"`concept` must have a direction by {method} at some depth; got none at depths 0 to "
            f"{len(w) - 1}: {_reasons(undefined)}. Use other texts, or another way."
        )
    direction = w / length[:, None]
    result = xr.Dataset(
        {"direction": (("depth", "feature"), direction)}
        | {name: ("depth", values) for name, values in extra.items()},
        coords={"depth": np.arange(run.n_layers + 1)},
        attrs={
            **provenance(run.model, method),
            "method": method,
            "classes": json.dumps(list(run.texts.classes)),
            "prompts_sha256": run.sha256,
            **settings,
        },
    )
    if undefined:
        result.attrs["direction_note"] = f"no direction at {_reasons(undefined)}"
    if held_out is not None:
        other = as_run(run.model, held_out, contexts=False)
        found = scores(other, direction)
        auc, low, high = separation(found, other.texts.labels)
        result["auc"], result["auc_low"], result["auc_high"] = (
            ("depth", values) for values in (auc, low, high)
        )
        result["log_odds_per_unit"] = ("depth", log_odds_per_unit(found, other.texts.labels))
        if isinstance(other.texts, Pairs):
            share = paired_accuracy(found[:, ::2], found[:, 1::2])
            names = ("paired_accuracy", "paired_low", "paired_high")
            result = result.assign({n: ("depth", s) for n, s in zip(names, share, strict=True)})
            result.attrs["paired_interval"] = "95 %, Wilson"
        result.attrs["auc_prompts_sha256"] = other.sha256
        result.attrs["auc_interval"] = "95 %, Newcombe (2006) method 5"
        if len(direction) - 1 not in undefined:
            result.attrs |= warning(auc[-1], low[-1], high[-1])
    return result


def _reasons(undefined: Mapping[int, str]) -> str:
    """Depths by the reason why they have no direction, as "depth 0: ...; depths 2, 3: ..."."""
    depths: dict[str, list[int]] = {}
    for depth in sorted(undefined):
        depths.setdefault(undefined[depth], []).append(depth)
    return "; ".join(
        f"depth{'s' * (len(found) > 1)} {', '.join(map(str, found))}: {reason}"
        for reason, found in depths.items()
    )
