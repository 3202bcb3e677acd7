"""The step by which gains are measured: relative to the state or not, above its rounding or not."""

from dataclasses import dataclass

import numpy as np

from depthsys.lm.kinds import short
from depthsys.lm.precision import Arithmetic, wide
from depthsys.lm.run import Run
from depthsys.lm.run_model import Model
from depthsys.lm.shards import along, in_shards
from depthsys.wording import step_size

# Steps that are taken where none is asked for: a fraction of the state's norm, and the paper's.
RELATIVE_EPS = 0.01
ABSOLUTE_EPS = 0.1


class SmallStepError(ValueError):
    """A step that drowns in the rounding of the states."""


@dataclass(frozen=True)
class Step:
    """How a gain is measured. The gain is per unit of the state, whatever the step.

    Parameters
    ----------
    eps
        Step: with ``relative`` a fraction of the norm of the state, by default 0.01; without, in
        the unit of the state, by default 0.1.
    relative
        Inject ``s = eps ||x_l||`` of each prompt, or ``s = eps``, the same for all.
    difference
        "central", or "forward" for the one-sided ``[y_L(+s v_l) - y_L] / s``.
    """

    eps: float | None = None
    relative: bool = True
    difference: str = "central"

    def __post_init__(self):
        if self.eps is None:
            object.__setattr__(self, "eps", default_eps(self.relative))
        check_eps(self.size)
        if self.difference not in ("central", "forward"):
            raise ValueError(
                "`difference` must be 'central' or 'forward'; got "
                f"{short(self.difference)}. Pick one."
            )

    @property
    def size(self) -> float:
        """``eps`` with its default."""
        return default_eps(self.relative) if self.eps is None else self.eps

    def in_words(self) -> str:
        """The step as one says it."""
        return step_size(self.size, self.relative)


def default_eps(relative: bool) -> float:
    """The step that is taken where none is asked for."""
    return RELATIVE_EPS if relative else ABSOLUTE_EPS


def check_eps(eps: float) -> None:
    """ValueError unless the step is positive and finite."""
    if not (np.isfinite(eps) and eps > 0):
        raise ValueError(
            f"`eps` must be positive and finite; got {eps}. The default is {RELATIVE_EPS:g} of the "
            f"state's norm, or {ABSOLUTE_EPS:g} if absolute."
        )


def check_step(step: Step, model: Model, states_of: Run | None = None) -> None:
    """Refuse a step that drowns in the rounding of the states, before any long work.

    Parameters
    ----------
    step, model
        The step, and the model that it is for.
    states_of
        A run: by its states alone an absolute step can be judged.

    Raises
    ------
    ValueError
        If the step is too small.
    """
    if step.relative or states_of is None:
        check_relative_step(step, Arithmetic.of(model))
        return
    error = small_step(step, float(state_norms(states_of)[:, :-1].max()), Arithmetic.of(model))
    if error is not None:
        raise error


def check_relative_step(step: Step, arithmetic: Arithmetic) -> None:
    """`check_step` of a relative step, for which no model is needed; any absolute one passes."""
    error = small_step(step, 0.0, arithmetic)
    if error is not None:
        raise error


def least_step(step: Step, largest_norm: float, arithmetic: Arithmetic) -> float:
    """The least step that stands above the rounding of the states."""
    return 100 * arithmetic.eps * (1.0 if step.relative else largest_norm)


def small_step(step: Step, largest_norm: float, arithmetic: Arithmetic) -> SmallStepError | None:
    """The error of a step that drowns, or None."""
    least = least_step(step, largest_norm, arithmetic)
    if step.size >= least:
        return None
    cure = (
        f"a larger step or {arithmetic.finer}"
        if step.relative
        else f"a larger step, a relative one (`lm.Step()`, `--step relative`) or {arithmetic.finer}"
    )
    where = "" if step.relative else f" (states have norms up to {largest_norm:.3g})"
    return SmallStepError(
        f"`eps` must be well above the rounding of the states; got {step.size:.1e} where "
        f"{least:.1e} is the least in {arithmetic.name}{where}. Use {cure}."
    )


@in_shards(along(0), "state norms")
def state_norms(run: Run) -> np.ndarray:
    """Norm of the nominal x_k (prompt, depth)."""
    norm = np.empty((len(run), run.n_layers + 1))
    for prompts, x in run.states_by_batch():
        norm[prompts] = wide(x).norm(dim=-1).T.double().cpu().numpy()
    return norm
