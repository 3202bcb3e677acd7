"""Random systems with hidden modes, and their exact maps in 60 digits."""

import decimal
from dataclasses import dataclass

import numpy as np

DIGITS = 60


@dataclass(frozen=True)
class Hidden:
    """A system as lists of matrices, and the visible part of it alone, with the same map."""

    A: list[np.ndarray]
    B: list[np.ndarray]
    C: list[np.ndarray]
    core: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]] | None


def hidden_system(seed: int, longest: int = 100) -> Hidden:
    """Visible states beside unreachable, unobservable and doubly hidden ones, radius to 2.

    States, inputs and outputs are scaled by 1e-8 to 1e8 and mixed anew at every depth. Two in three
    have few binary digits and powers of two as scales, so that what is hidden is hidden exactly;
    in the others rounding of the stored matrices connects it a little.
    """
    rng = np.random.default_rng(seed)
    exact = bool(rng.random() < 2 / 3)
    L = int(rng.integers(3, longest + 1) if rng.random() < 0.15 else rng.integers(3, 26))
    visible, unreached, unseen, both = (int(rng.integers(a, 3)) for a in (1, 0, 0, 0))
    if rng.random() < 0.4:
        both = 0
    n, m, p = visible + unreached + unseen + both, int(rng.integers(1, 3)), int(rng.integers(1, 3))
    radius = rng.choice([0.5, 1.0, 1.5, 2.0])

    def entries(*shape, size=1.0):
        drawn = size * rng.uniform(-1, 1, shape)
        return np.round(drawn * 16) / 16 if exact else drawn

    def scales(count):
        if rng.random() < 0.4:
            return np.ones(count)
        powers = rng.uniform(-26, 26, count)
        return 2.0 ** (np.round(powers) if exact else powers)

    v = slice(visible)
    x = slice(visible, visible + unreached)  # seen, not reached
    y = slice(visible + unreached, visible + unreached + unseen)  # reached, not seen
    varies = bool(rng.random() < 0.7)
    first = None
    plain = []
    for _ in range(L + 1):
        if first is None or varies:
            a, b, c = np.zeros((n, n)), entries(n, m), entries(p, n)
            a[v, v] = entries(visible, visible, size=0.9)
            for part in (x, y, slice(y.stop, n)):
                size = part.stop - part.start
                a[part, part] = np.triu(entries(size, size), 1)
                signs = rng.choice([-1, 1], size)
                a[part, part] += np.diag(signs * entries(size, size=0.0) + signs * radius)
            a[v, x], a[y, v], a[y, x] = (
                entries(*shape)
                for shape in ((visible, unreached), (unseen, visible), (unseen, unreached))
            )
            b[x] = 0.0
            b[y.stop :] = 0.0
            c[:, y] = 0.0
            c[:, y.stop :] = 0.0
            first = a, b, c
        plain.append(first)
    ins, outs = scales(m), scales(p)
    mixes = [_mix(rng, n, exact, varies) for _ in range(L + 1)]
    sizes = scales(n)
    A, B, C = [], [], []
    for k, (a, b, c) in enumerate(plain):
        back = mixes[k][1] / sizes
        C.append(outs[:, None] * (c @ back))
        if k < L:
            into = sizes[:, None] * mixes[k + 1][0]
            A.append(into @ a @ back)
            B.append((into @ b) * ins)
    core = None
    if exact:
        core = (
            [a[v, v] for a, _, _ in plain[:-1]],
            [b[v] * ins for _, b, _ in plain[:-1]],
            [outs[:, None] * c[:, v] for _, _, c in plain],
        )
    return Hidden(A, B, C, core)


def _mix(rng, n, exact, varies) -> tuple[np.ndarray, np.ndarray]:
    """A matrix and its inverse; of whole numbers and determinant one where ``exact``."""
    if n == 1 or not varies:
        return np.eye(n), np.eye(n)
    if not exact:
        T = rng.standard_normal((n, n))
        return T, np.linalg.inv(T)
    T = inverse = np.eye(n)
    for _ in range(3):
        i, j = rng.choice(n, 2, replace=False)
        step = np.zeros((n, n))
        step[i, j] = rng.integers(-2, 3)
        T, inverse = (np.eye(n) + step) @ T, inverse @ (np.eye(n) - step)
    return T, inverse


def exact_map(A, B, C) -> np.ndarray:
    """The map (depth, output, layer, input) as an array of Decimals with 60 digits."""
    A, B, C = ([_decimals(matrix) for matrix in part] for part in (A, B, C))
    L, m, p = len(A), B[0].shape[1], C[0].shape[0]
    G = np.full((L + 1, p, L, m), decimal.Decimal(0), dtype=object)
    with decimal.localcontext(decimal.Context(prec=DIGITS, Emax=9999, Emin=-9999)):
        x = np.zeros((len(B[0]), 0), dtype=object)
        for k in range(L):
            x = np.hstack([A[k] @ x, B[k]]) if k else B[0]
            G[k + 1, :, : k + 1, :] = (C[k + 1] @ x).reshape(p, k + 1, m)
    return G


def _decimals(matrix) -> np.ndarray:
    return np.frompyfunc(decimal.Decimal, 1, 1)(np.asarray(matrix, dtype=float))


def exact_distance(G: np.ndarray, H: np.ndarray) -> float:
    """The largest singular value of the difference, right to some 1e-14 of itself."""
    with decimal.localcontext(decimal.Context(prec=DIGITS, Emax=9999, Emin=-9999)):
        difference = G - H
    rows = difference.reshape(G.shape[0] * G.shape[1], -1).astype(float)
    return float(np.linalg.norm(rows, 2))
