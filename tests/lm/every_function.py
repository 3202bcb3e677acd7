"""Every function of `lm` that takes a run, with arguments that do for a tiny model."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import xarray as xr

from depthsys import lm, ltv


@dataclass(frozen=True)
class Work:
    """One call: arguments before the run, after it, and by keyword."""

    function: Callable
    before: dict = field(default_factory=dict)
    after: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)

    def __call__(self, *run, **named):
        """Of a run, or of a model and texts."""
        return self.function(*self.before.values(), *run, *self.after.values(), **self.options)

    def by_name(self, **run):
        """The same with everything by keyword."""
        return self.function(**self.before, **run, **self.after, **self.options)


def functions_of_a_run() -> set[str]:
    """What the public names say for themselves."""
    return {
        name
        for name in lm.__all__
        if inspect.isfunction(getattr(lm, name))
        and "run" in inspect.signature(getattr(lm, name)).parameters
    }


def works(concept: xr.Dataset, system: xr.Dataset) -> dict[str, Work]:
    """The calls by name; those with settings of their own have several names."""
    named = {"concept": concept}
    v = concept["direction"].isel(depth=slice(-1)).rename(depth="layer")
    directions = {"directions": v.expand_dims("direction", axis=1)}
    steps = [lm.Step(0.1), lm.Step(0.05, relative=True), lm.Step(0.2, difference="forward")]
    plan = ltv.minimum_energy(system, target=0.3)
    schedules = plan["u"].expand_dims(schedule=["plan"]).drop_vars("layer", errors="ignore")
    vector = concept.assign(u=("layer", plan["u"].values.ravel()), u_end=0.1)
    amplitude = float(np.sqrt(plan["energy"]))
    plane = _plane(concept)
    J = np.random.default_rng(1).standard_normal((v.sizes["layer"] + 1, *[v.sizes["feature"]] * 2))
    lens = xr.Dataset({"J": (("depth", "feature_out", "feature"), J)})
    lens = lens.assign_coords(depth=range(len(J)))
    clamped = lm.clamp(concept, 0.1).assign(target=("output", [0.3]))
    found = {
        "amplitude_response": Work(
            lm.amplitude_response,
            after={**named, "system": system, "schedules": schedules},
            options={"n_bootstrap": 3},
        ),
        "compare_energies": Work(
            lm.compare_energies, after={**named, "system": system, "target": 0.3}
        ),
        "compare_feedback": Work(
            lm.compare_feedback,
            after={**named, "law": clamped},
            options={"plan": plan, "n_bootstrap": 3},
        ),
        "play_law": Work(lm.play_law, after={**named, "law": clamped}),
        "coupling": Work(lm.coupling, options={"top": 3}),
        "corrected": Work(lm.corrected, before={"system": system}, after=named),
        "gains_plan": Work(lm.gains_plan, after={**named, "target": 0.3}),
        "detached_spectra": Work(lm.detached_spectra, options={"n_vectors": 2, "n_tokens": 2}),
        "exact_system": Work(lm.exact_system, after=named, options={"readout": "profile"}),
        "free_directions": Work(lm.free_directions, after=named),
        "jacobians": Work(lm.jacobians),
        "jacobians, each": Work(lm.jacobians, options={"per_prompt": True}),
        "layer_skip": Work(lm.layer_skip, after=named),
        "lens": Work(lm.lens),
        "lens_agreement": Work(lm.lens_agreement, after={"lens": lens}),
        "linear_gains": Work(lm.linear_gains, after=named),
        "linear_range": Work(lm.linear_range, after=named, options={"n_bootstrap": 3}),
        "logistic": Work(lm.logistic),
        "mean_difference": Work(lm.mean_difference),
        "pca": Work(lm.pca),
        "whitened": Work(lm.whitened),
        "mean_jvp": Work(lm.mean_jvp, after=directions),
        "mean_vjp": Work(lm.mean_vjp, after=directions),
        "measure_gains": Work(lm.measure_gains, after=named),
        "measure_gains_at": Work(lm.measure_gains_at, after={**named, "steps": steps}),
        "measure_token_gains": Work(lm.measure_token_gains, after=named, options={"lags": [0, 1]}),
        "token_gains": Work(lm.token_gains, after=named),
        "optimal_plan": Work(lm.optimal_plan, after={**named, "target": 0.3}),
        "play": Work(lm.play, after={**named, "plan": plan}),
        "play, every token": Work(
            lm.play, after={**named, "plan": plan}, options={"tokens": "every"}
        ),
        "reconstruction": Work(lm.reconstruction),
        "token_shares": Work(lm.token_shares),
        "trajectory_shape": Work(lm.trajectory_shape),
        "steering_effect": Work(
            lm.steering_effect, after={**named, "vector": vector}, options={"n_bootstrap": 3}
        ),
        "residual_dynamics": Work(
            lm.residual_dynamics,
            options={"n_units": 2, "n_trajectories": 5, "n_components": 2, "n_shuffles": 5},
        ),
        "sublayer_states": Work(lm.sublayer_states),
        "teleport": Work(
            lm.teleport,
            after={"dynamics": plane},
            options={"starts": [0, 1], "n_sublayers": 3, "grid": 3, "span": 2.0},
        ),
        "required_energy": Work(
            lm.required_energy,
            after={**named, "schedules": schedules, "target": 0.3},
            options={"amplitude": amplitude},
        ),
    }
    for name, method in METHODS.items():
        wanted = {**named, "method": method(order=2)}
        found[f"identify, {name}"] = Work(lm.identify, after=wanted)
        each = {"per_prompt": True, "readout": "profile"}
        found[f"identify, {name}, each"] = Work(lm.identify, after=wanted, options=each)
    return found


def _plane(concept: xr.Dataset) -> xr.Dataset:
    """What `teleport` needs of residual dynamics."""
    direction = concept["direction"]
    n_layers, width = direction.sizes["depth"] - 1, direction.sizes["feature"]
    score = np.random.default_rng(5).standard_normal((2 * n_layers, 4, 2))
    return xr.Dataset(
        {
            "centre": ("feature", np.full(width, 0.1)),
            "axes": (("component", "feature"), np.eye(2, width)),
            "score": (("sublayer", "trajectory", "component"), score),
        }
    )


METHODS = {
    "ensemble": lm.Ensemble,
    "balanced": lm.Balanced,
    "two_sided": lm.TwoSided,
    "krylov": lm.Krylov,
    "arnoldi": lm.Arnoldi,
    "pod": lm.Pod,
    "adjoint": lm.Adjoint,
    "random": lm.Random,
}
NAMES = [
    *(
        "amplitude_response compare_energies compare_feedback corrected coupling detached_spectra "
        "exact_system free_directions gains_plan jacobians layer_skip lens lens_agreement "
        "linear_gains linear_range logistic mean_difference mean_jvp mean_vjp measure_gains "
        "measure_gains_at measure_token_gains optimal_plan pca play play_law reconstruction "
        "required_energy residual_dynamics steering_effect sublayer_states teleport token_gains "
        "token_shares trajectory_shape whitened"
    ).split(),
    "play, every token",
    "jacobians, each",
    *(f"identify, {name}" for name in METHODS),
    *(f"identify, {name}, each" for name in METHODS),
]


# searches, which ask the same sweeps many times
SEARCHES = (
    "optimal_plan", "compare_energies", "required_energy", "corrected", "compare_feedback",
    "steering_effect",
)  # fmt: skip


def slow_unless(quick: Callable[[str], bool]) -> list:
    """The names as parameters of a test; of the methods of identification the others are slow.

    So are searches, but for one.
    """

    def is_slow(name: str) -> bool:
        is_method = name.startswith("identify") and not quick(name)
        return is_method or (name in SEARCHES and name != "required_energy")

    return [pytest.param(name, marks=[pytest.mark.slow] if is_slow(name) else []) for name in NAMES]


# who takes a run, by the same way in for all methods; and every method at least once
ONE_METHOD = slow_unless(lambda name: "ensemble" in name or name == "identify, krylov, each")
EACH_ONCE = slow_unless(lambda name: "each" not in name or "ensemble" in name)


def assert_same(found, expected, rtol: float = 0.0) -> None:
    """The same numbers (to the bit without ``rtol``) and the same attrs but for the clock."""
    if isinstance(found, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, rtol)
        return
    clock = {"created", "history"}
    mine, theirs = ({k: v for k, v in d.attrs.items() if k not in clock} for d in (found, expected))
    assert mine == theirs
    if rtol:
        if isinstance(found, xr.Dataset):  # words are the same or not
            words = [str(n) for n in found.data_vars if found[n].dtype.kind == "U"]
            xr.testing.assert_identical(found[words].drop_attrs(), expected[words].drop_attrs())
            found, expected = found.drop_vars(words), expected.drop_vars(words)
        xr.testing.assert_allclose(found.drop_attrs(), expected.drop_attrs(), rtol=rtol, atol=rtol)
    else:
        xr.testing.assert_identical(found.drop_attrs(), expected.drop_attrs())
