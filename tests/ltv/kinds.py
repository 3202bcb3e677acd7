"""Random systems of the four kinds on which the certificates are tested, a batch at a time."""

import numpy as np

KINDS = ("independent", "slowly varying", "oscillating", "identity plus small")


def random_system(kind, seed, count, L=8, n=4, m=1, p=1):
    """A (count, L, n, n), B, C, D of one kind."""
    rng = np.random.default_rng(seed)

    def draw(steps, *shape):
        return rng.standard_normal((count, steps, *shape))

    if kind == "independent":
        A, B, C = 0.8 * draw(L, n, n) / np.sqrt(n), draw(L, n, m), draw(L + 1, p, n)
    elif kind == "slowly varying":
        t = np.linspace(0, 1, L + 1)[:, None, None]
        A, B, C = (
            (1 - t[:steps]) * draw(1, *shape) + t[:steps] * draw(1, *shape)
            for steps, shape in ((L, (n, n)), (L, (n, m)), (L + 1, (p, n)))
        )
        A = 0.8 * A / np.sqrt(n)
    elif kind == "oscillating":
        # gains go up and down along the depth, so that the Hankel values are not unimodal
        swing = np.exp(1.5 * np.cos(np.pi * np.arange(L + 1)))[:, None, None]
        A = 0.8 * draw(1, n, n) / np.sqrt(n) + 0.1 * draw(L, n, n)
        B, C = draw(L, n, m) * swing[:L], draw(L + 1, p, n) / swing
    elif kind == "identity plus small":
        A = np.eye(n) + 0.1 * draw(L, n, n)
        B, C = draw(L, n, m), draw(L + 1, p, n)
    else:
        raise ValueError(kind)
    D = draw(L + 1, p, m)
    D[:, -1] = 0
    return A, B, C, D
