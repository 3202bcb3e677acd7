"""Systems on which a transposed, shifted or shuffled copy cannot pass for the right one.

Without torch, as processes of their own are started on them.
"""

from itertools import pairwise

import numpy as np
import xarray as xr

from depthsys import ltv

VARYING = [2, 3, 3, 1, 2, 4]  # states per depth


def random_system(n=3, m=2, p=4, L=5, seed=0, D=True) -> xr.Dataset:
    """Non-square and asymmetric, with feedthrough."""
    rng = np.random.default_rng(seed)
    shapes = (L, n, n), (L, n, m), (L + 1, p, n), (L + 1, p, m)
    A, B, C, feed = (rng.standard_normal(shape) for shape in shapes)
    feed[-1] = 0
    return ltv.system(A, B, C, feed if D else None, attrs={"model": "none", "order": n})


def varying_system(seed=1) -> xr.Dataset:
    """The size of the state varies with depth."""
    rng = np.random.default_rng(seed)
    A = [rng.standard_normal((b, a)) for a, b in pairwise(VARYING)]
    B = [rng.standard_normal((n, 2)) for n in VARYING[1:]]
    C = [rng.standard_normal((3, n)) for n in VARYING]
    return ltv.system(A, B, C)


SYSTEMS = {
    "plain": random_system,
    "varying": varying_system,
    "one of each": lambda: random_system(n=1, m=1, p=1, L=1),
    "one layer": lambda: random_system(L=1),
    "one state": lambda: random_system(n=1),
    "sizes alike": lambda: random_system(n=5, m=5, p=5, L=5),
}


def with_companions(system: xr.Dataset) -> xr.Dataset:
    """With what `lm.identify` adds, names that are not ASCII, and attrs of every kind."""
    rng = np.random.default_rng(5)
    sizes = {**system.sizes, "feature": 7}
    dims = {"V": ("depth", "feature", "state"), "v": ("depth", "feature", "input")}
    dims |= {"x_ref": ("depth", "state"), "y_ref": ("depth", "output"), "auc": ("depth",)}
    system = system.assign(
        {n: (d, rng.standard_normal([sizes[k] for k in d])) for n, d in dims.items()}
    )
    system["x_ref"].attrs = {"units": "mm", "scale": 2.5}
    system["y_std"] = 3.25
    names = np.array([f"Maß {i}" for i in range(sizes["output"])])
    system = system.assign_coords(output_name=("output", names), extra=("feature", np.arange(7)))
    return system.assign_attrs(history="line 1\nline 2", n_prompts=12, step=0.1)
