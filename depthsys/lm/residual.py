"""Dynamics of the residual stream: continuity, speed, information, rotations, components."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import xarray as xr

from depthsys.lm import sublayers, trajectories
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import rounding_of, wide
from depthsys.lm.progress import bar
from depthsys.lm.run import Run
from depthsys.lm.shards import ShardedRun, in_shards
from depthsys.lm.stamp import stamp
from depthsys.lm.trajectories import Moments, cosine, density
from depthsys.ltv.system import whole_number

NEIGHBOURS = 3  # of the estimator of mutual information, its own default
QUANTILES = (0.05, 0.5, 0.95)


@of_run(once=True, shards=True)
def residual_dynamics(
    run: Run,
    *,
    seed: int = 0,
    n_units: int = 32,
    n_trajectories: int = 256,
    n_components: int = 10,
    n_shuffles: int = 1000,
) -> xr.Dataset:
    r"""The last token's state from sublayer to sublayer, as neuroscience looks at trajectories.

    Sublayers are those of `sublayer_states`; a step leads from one to the next: what the attention
    of a layer writes, or what its MLP writes.

    Parameters
    ----------
    run
        The prompts, 4 at least; or a model and texts.
    seed
        Of all that is drawn: units, prompts, noise of the estimator, shuffles.
    n_units
        Features whose mutual information is estimated, drawn at random; 0 for none, all where
        there are fewer.
    n_trajectories
        Prompts whose trajectories the principal components are fitted on, drawn at random; all
        where there are fewer.
    n_components
        Principal components.
    n_shuffles
        Random orders of the sublayers, see `turns` below; 0 for none.

    Returns
    -------
    xr.Dataset
        Over prompts: ``mean`` and ``deviation`` (sublayer, feature). ``correlation`` (step,
        feature): Pearson's, over prompts, of a unit with itself one sublayer later; NaN where it
        is constant; ``correlation_quantile`` (quantile, step) over units.

        Of each prompt: ``norm`` and ``density`` (prompt, sublayer), the latter
        :math:`(\sum|x|)^2 / (H \sum x^2)`, 1 where all units are equally large; ``cosine`` and
        ``velocity`` (prompt, step), of :math:`x_s` and :math:`x_{s+1}`, and
        :math:`\|x_{s+1} - x_s\|`; ``update_cosine`` (prompt, pair) of successive updates
        :math:`x_{s+1} - x_s`; ``prompt_turns`` (prompt), the mean over units of the turns of that
        prompt alone.

        ``mutual_information`` (step, unit), nats, of a unit with itself one sublayer later over
        prompts, and ``mutual_information_shuffled`` of the same numbers with prompts exchanged:
        what the estimator says of independent samples. The estimator is in attrs.

        ``turns`` (feature): how often the mean trajectory of a unit goes around in the plane of
        activation and gradient over sublayers, clockwise positive, see `trajectories.turns`;
        ``turns_shuffled`` (feature), the mean where the sublayers are in random order;
        ``p_value`` (feature), two-sided, that turns depend on the order; ``q_value`` (feature),
        adjusted for the number of units by Benjamini and Hochberg.

        ``centre`` (feature), ``axes`` (component, feature) and ``explained`` (component), the
        share of variance, of states of all sublayers together; ``score`` (sublayer, trajectory,
        component) of the prompts they are fitted on, and ``mean_score`` (sublayer, component) of
        the mean over all prompts.

        Coords say of a step which part has written it (``written_by``), of a sublayer its ``layer``
        and what it is ``before``. attrs: ``arrangement``, see `sublayer_states`.

    Raises
    ------
    ValueError
        If there are fewer than 4 prompts, a number is out of its range, or a layer does not add
        what two parts write.

    Notes
    -----
    One row per prompt and layer beside the prefill. Held are 2 L (``n_units`` + 5) numbers of each
    prompt and 2 L H of each of ``n_trajectories``; all else is summed up, by each shard for its
    own. Rotations: with a gradient for an axis every oscillation turns clockwise, that of noise the
    fastest, so turns are compared with those of shuffled orders, and not with none. States are as
    they are: units and components with large activations count more.

    References
    ----------
    .. [1] Fernando and Guitchounts (2025), arXiv:2502.12131. Only its abstract and what its authors
       write elsewhere was available here: definitions that these leave open are ours.
    """
    n_layers = run.n_layers
    _check(run, seed, n_units, n_trajectories, n_components, n_shuffles)
    rng = np.random.default_rng(seed)
    width = run.model.n_features
    units = np.sort(rng.permutation(width)[:n_units])
    kept = np.zeros(len(run), dtype=bool)
    kept[rng.permutation(len(run))[:n_trajectories]] = True
    arrangement = sublayers.checked_arrangement(run.model, run.rows[0])
    found = _measured(run, units, kept=kept)
    moments = found.moments
    correlation = moments.correlation(rounding_of(run.model))
    plane = trajectories.components(found.kept.reshape(-1, width), n_components, rng)
    prompt, by_feature = ("prompt", "sublayer"), ("sublayer", "feature")
    return xr.Dataset(
        {
            "mean": (by_feature, moments.mean),
            "deviation": (by_feature, moments.deviation),
            "correlation": (("step", "feature"), correlation),
            "correlation_quantile": (("quantile", "step"), _quantiles(correlation)),
            "norm": (prompt, found.norm),
            "density": (prompt, found.density),
            "cosine": (("prompt", "step"), found.cosine),
            "velocity": (("prompt", "step"), found.velocity),
            "update_cosine": (("prompt", "pair"), found.update_cosine),
            "prompt_turns": ("prompt", found.turns),
            **_information(found.samples, seed, np.isfinite(correlation[:, units])),
            **_rotations(moments.mean.T, rng, n_shuffles),
            "centre": ("feature", plane.centre),
            "axes": (("component", "feature"), plane.rows),
            "explained": ("component", plane.explained),
            "score": (("sublayer", "trajectory", "component"), plane.scores(found.kept)),
            "mean_score": (("sublayer", "component"), plane.scores(moments.mean)),
        },
        coords={
            **sublayers.coords(n_layers),
            "step": np.arange(2 * n_layers - 1),
            "written_by": ("step", (list(sublayers.PARTS) * n_layers)[:-1]),
            "quantile": list(QUANTILES),
            "unit": units,
            "trajectory": np.flatnonzero(kept),
            "component": np.arange(len(plane.rows)),
        },
        attrs={
            **stamp(run, "residual_dynamics"),
            "arrangement": arrangement,
            "seed": seed,
            "estimator": trajectories.ESTIMATOR,
            "n_neighbours": NEIGHBOURS,
            "n_shuffles": n_shuffles,
            "control": "activations in random orders of the sublayers, gradients of these",
        },
    )


def _check(
    run: Run, seed: int, n_units: int, n_trajectories: int, n_components: int, n_shuffles: int
) -> None:
    width = run.model.n_features
    if len(run) <= NEIGHBOURS:
        raise ValueError(
            f"`run` must have {NEIGHBOURS + 1} prompts at least; got {len(run)}. Correlations over "
            "prompts need more: give some hundred."
        )
    if run.n_layers < 2:
        raise ValueError(
            f"`run` must be of a model of 2 layers at least; got {run.n_layers}. A gradient over "
            "depth needs three sublayers."
        )
    whole_number(seed, "seed", 0, 2**32 - 1, "The default is 0.")
    whole_number(n_units, "n_units", 0, None, "It is a number of features.")
    whole_number(n_trajectories, "n_trajectories", 1, None, "It is a number of prompts.")
    whole_number(n_components, "n_components", 2, width, "The first two make a plane.")
    whole_number(n_shuffles, "n_shuffles", 0, None, "It is a number of random orders.")


# ------------------------------------------------------------------------- what is streamed


@dataclass(frozen=True)
class _Measured:
    """What is known of some prompts. Arrays begin with the prompt but for the last two.

    ``samples`` is (sublayer, prompt, unit), ``kept`` (sublayer, trajectory, feature).
    """

    moments: Moments
    norm: np.ndarray
    density: np.ndarray
    cosine: np.ndarray
    velocity: np.ndarray
    update_cosine: np.ndarray
    turns: np.ndarray
    samples: np.ndarray
    kept: np.ndarray


def _of_all(run: ShardedRun, parts: Iterator[_Measured]) -> _Measured:
    """That of all shards, in their order."""
    return _joined(list(parts))


def _joined(parts: list[_Measured]) -> _Measured:
    moments = parts[0].moments
    for part in parts[1:]:
        moments = moments + part.moments
    arrays = [f.name for f in fields(_Measured) if f.name != "moments"]
    axis = {"samples": 1, "kept": 1}
    return _Measured(
        moments,
        **{n: np.concatenate([getattr(p, n) for p in parts], axis.get(n, 0)) for n in arrays},
    )


@in_shards(_of_all, "residual dynamics")
def _measured(run: Run, units: np.ndarray, *, kept: np.ndarray) -> _Measured:
    """Of all prompts of a run; ``kept`` (prompt) says whose states stay."""
    parts, rows = [], []
    for batch, x in run.in_step(
        sublayers.passed, "residual dynamics", held=sublayers.bytes_of(run.model)
    ):
        # one copy of a whole batch: the host does not wait between layers
        states = wide(x).cpu().numpy()
        parts.append(_of_batch(states, units, kept[batch.prompts]))
        rows.append(batch.prompts)
    found = _joined(parts)
    # batches are of prompts of a length; the order wanted is that of the prompts
    order = np.argsort(np.concatenate(rows))
    order_kept = np.argsort(np.concatenate([r[kept[r]] for r in rows]))
    at_prompt = {
        f.name: getattr(found, f.name)[order]
        for f in fields(_Measured)
        if f.name not in ("moments", "samples", "kept")
    }
    return replace(
        found,
        **at_prompt,
        samples=found.samples[:, order],
        kept=found.kept[:, order_kept],
    )


def _of_batch(states: np.ndarray, units: np.ndarray, kept: np.ndarray) -> _Measured:
    """Of states (sublayer, prompt, feature)."""
    exact = states.astype(np.float64)
    updates = np.diff(exact, axis=0)
    # a unit at a time would be slow, all prompts at once would be much
    turned = [_mean(trajectories.turns(exact[:, p].T)) for p in range(exact.shape[1])]
    return _Measured(
        Moments.of(exact),
        np.linalg.norm(exact, axis=-1).T,
        density(exact).T,
        cosine(exact[:-1], exact[1:]).T,
        np.linalg.norm(updates, axis=-1).T,
        cosine(updates[:-1], updates[1:]).T,
        np.array(turned),
        states[:, :, units],
        states[:, kept],
    )


def _mean(values: np.ndarray) -> float:
    """Of those that are known, or NaN."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


# --------------------------------------------------------------------- what follows from it


def _quantiles(correlation: np.ndarray) -> np.ndarray:
    """Over units (quantile, step); NaN where no unit varies."""
    found = np.full((len(QUANTILES), len(correlation)), np.nan)
    known = np.isfinite(correlation).any(axis=1)
    found[:, known] = np.nanquantile(correlation[known], QUANTILES, axis=1)
    return found


def _information(samples: np.ndarray, seed: int, varies: np.ndarray) -> dict[str, Any]:
    """Mutual information of units with themselves one sublayer later, and of shuffled pairs.

    NaN where a unit does not vary (step, unit).
    """
    n_sublayers, n_prompts, n_units = samples.shape
    other = np.random.default_rng(seed).permutation(n_prompts)
    found = np.full((2, n_sublayers - 1, n_units), np.nan)
    with bar("mutual information", found[0].size, "pair") as shown:
        for step in range(n_sublayers - 1):
            for unit in np.flatnonzero(varies[step]):
                first, second = samples[step : step + 2, :, unit]
                for place, partner in enumerate((second, second[other])):
                    found[place, step, unit] = trajectories.information(
                        first, partner, seed, NEIGHBOURS
                    )
            shown.update(n_units)
    names = ("mutual_information", "mutual_information_shuffled")
    return {name: (("step", "unit"), values) for name, values in zip(names, found, strict=True)}


def _rotations(mean: np.ndarray, rng: np.random.Generator, n_shuffles: int) -> dict[str, Any]:
    """Turns of mean trajectories (feature, sublayer), and what shuffled orders say of them."""
    turned = trajectories.turns(mean)
    shuffled = np.full((max(n_shuffles, 1), len(mean)), np.nan)
    with bar("shuffled orders", n_shuffles, "order") as shown:
        for number, one in enumerate(trajectories.shuffled_turns(mean, rng, n_shuffles)):
            shuffled[number] = one
            shown.update(1)
    p = trajectories.p_values(turned, shuffled) if n_shuffles else np.full(len(mean), np.nan)
    of_feature = {
        "turns": turned,
        "turns_shuffled": shuffled.mean(axis=0),
        "p_value": p,
        "q_value": trajectories.adjusted(p),
    }
    return {name: ("feature", values) for name, values in of_feature.items()}
