"""The shape of states' ways through the model: how straight, and how the steps grow."""

from typing import Any

import numpy as np
import torch
import xarray as xr

from depthsys.lm.kinds import short
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import wide
from depthsys.lm.run import Run
from depthsys.lm.stamp import stamp
from depthsys.ltv.system import is_whole


@of_run(once=True, shards=True)
def trajectory_shape(run: Run, *, start: int = 0) -> xr.Dataset:
    r"""How straight the last token's states go through depth, and how their steps grow.

    With the steps :math:`d_l = x_{l+1} - x_l` for l from ``start`` on, n of them.

    Parameters
    ----------
    run
        The prompts; or a model and texts.
    start
        The depth at which the way begins. In some models the first steps are many times as long as
        the state that they are added to, and everything else is measured against them.

    Returns
    -------
    xr.Dataset
        Of every prompt:

        ``line_shape`` (prompt)
            The line-shape score [1]_: n over the length of the sum of the steps, each made of unit
            length. 1 for a straight line, :math:`\sqrt n` for steps at right angles to each other.
        ``length_ratio`` (prompt)
            :math:`\sum_l \|d_l\| / \|x_L - x_{start}\|`, of the steps as they are.
        ``step`` (prompt, layer), ``norm`` (prompt, depth)
            :math:`\|d_l\|` and :math:`\|x_k\|`, in the unit of the state.
        ``spacing_rate``, ``spacing_r2`` (prompt)
            Slope of the least-squares line through :math:`\log \|d_l\|` over l, and the share of
            the variance that the line explains: exponential spacing where that is near 1.
        ``growth_rate``, ``growth_r2`` (prompt)
            The same of :math:`\log \|x_k\|` over k.
        ``growth_variation`` (prompt)
            Variance of :math:`\log(\|x_{k+1}\| / \|x_k\|)` over k, over its squared mean: 0 where
            the state grows by the same factor at every layer.

        NaN where a step or state is zero, or does not vary.

    Raises
    ------
    ValueError
        If ``start`` leaves fewer than two steps.

    Notes
    -----
    No pass beside that of the run.

    References
    ----------
    .. [1] Gai and Zhang (2021), arXiv:2102.09235; used of language models by Aubry et al. (2025),
       arXiv:2407.07810.

    Examples
    --------
    >>> from depthsys import lm
    >>> from depthsys.demo import model_path
    >>> model = lm.DepthModel.load(model_path("demo_48x4"), device="cpu")
    >>> found = lm.trajectory_shape(model, ["the food was good", "the room was cold"])
    >>> bool((found.line_shape >= 1).all())
    True
    """
    L = run.n_layers
    if L < 2:
        raise ValueError(
            f"`run` must be of a model of 2 layers at least; got {L}. One step has no shape."
        )
    if not is_whole(start) or not 0 <= start <= L - 2:
        raise ValueError(
            f"`start` must be a depth in 0..{L - 2}, so that there are two steps; got "
            f"{short(start)}. The default is 0."
        )
    start = int(start)
    step, norm = np.empty((len(run), L - start)), np.empty((len(run), L - start + 1))
    straight, ends = np.empty(len(run)), np.empty(len(run))
    for prompts, x in run.states_by_batch("states"):
        numbers = _lengths(x[start:])
        step[prompts], norm[prompts], straight[prompts], ends[prompts] = (
            one.cpu().numpy() for one in numbers
        )
    moving = (step > 0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        spacing, spacing_r2 = _line(np.log(step))
        growth, growth_r2 = _line(np.log(norm))
        factor = np.diff(np.log(norm), axis=1)
        found: dict[str, Any] = {
            "line_shape": ("prompt", moving / straight),
            "length_ratio": ("prompt", step.sum(axis=1) / ends),
            "step": (("prompt", "layer"), step),
            "norm": (("prompt", "depth"), norm),
            "spacing_rate": ("prompt", spacing),
            "spacing_r2": ("prompt", spacing_r2),
            "growth_rate": ("prompt", growth),
            "growth_r2": ("prompt", growth_r2),
            "growth_variation": ("prompt", factor.var(axis=1) / factor.mean(axis=1) ** 2),
        }
    return xr.Dataset(
        found,
        coords={"layer": np.arange(start, L), "depth": np.arange(start, L + 1)},
        attrs={**stamp(run, "trajectory_shape"), "start": start},
    )


@torch.no_grad()
def _lengths(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of states (depth, prompt, feature), prompt first: steps, norms, and two ends.

    Those are the length of the sum of unit steps, and that of the whole way as the crow flies.
    """
    x = wide(x).double()
    steps = x.diff(dim=0)
    length = steps.norm(dim=-1)
    unit = steps / torch.where(length > 0, length, 1.0)[..., None]
    return length.T, x.norm(dim=-1).T, unit.sum(0).norm(dim=-1), (x[-1] - x[0]).norm(dim=-1)


def _line(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope of the least-squares line of every row over its index, and its share of variance."""
    at = np.arange(y.shape[1]) - (y.shape[1] - 1) / 2
    rest = y - y.mean(axis=1, keepdims=True)
    slope = rest @ at / (at @ at)
    total = (rest**2).sum(axis=1)
    return np.where(np.isfinite(slope), slope, np.nan), slope**2 * (at @ at) / total
