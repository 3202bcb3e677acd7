"""Systems that know states of a model: norms, directions, and what the model is."""

import numpy as np

from depthsys import ltv
from tests.ltv.test_system import random_arrays


def model_system(seed, n_layers=6, m=1, p=1, spread=5.0):
    """Random, with ``state_norm`` up to ``spread``, and unit directions ``v`` that are oblique."""
    rng = np.random.default_rng(seed)
    A, B, C, D = random_arrays(seed, n_layers, n=5, m=m, p=p)
    A = np.eye(5) + 0.2 * A
    v = rng.standard_normal((n_layers + 1, 7, m))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    attrs = {"model": "tiny", "model_fingerprint": "abc", "classes": '["sad", "glad"]'}
    return ltv.system(A, B, C, D, attrs=attrs).assign(
        v=(("depth", "feature", "input"), v),
        state_norm=("depth", rng.uniform(1.0, spread, n_layers + 1)),
    )


def stacked_gains(system):
    """G (output, layer and input) by simulating one unit push after the other."""
    sizes = system.sizes["layer"], system.sizes["input"]
    units = np.eye(int(np.prod(sizes))).reshape(-1, *sizes)
    return np.stack([ltv.simulate(system, unit).y[-1].values for unit in units], axis=1)


def push_lengths(system, u):
    """|V_l u_l| / |x_l| of a schedule (layer, input), one layer after the other."""
    v, norm = system.v.values, system.state_norm.values
    return np.array([np.linalg.norm(v[k] @ each) / norm[k] for k, each in enumerate(u)])
