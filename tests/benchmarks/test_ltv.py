"""Hankel values and balanced reduction: batches, full order, and the dense embedding.

Run with `make bench`. Ratios are printed, not asserted: the machine is shared. That both sides of
a ratio give the same numbers is asserted.
"""

import time

import numpy as np
import scipy.linalg

from depthsys import ltv


def random_system(count, L, n, m=1, p=1, seed=0):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((count, L, n, n)) / np.sqrt(n)
    B, C = rng.standard_normal((count, L, n, m)), rng.standard_normal((count, L + 1, p, n))
    return A, B, C


def seconds(function, tries=3):
    """The best of some tries, and what came out."""
    best = np.inf
    for _ in range(tries):
        begin = time.perf_counter()
        out = function()
        best = min(best, time.perf_counter() - begin)
    return best, out


def plain_hankel(A, B, C):
    """The same recursion for one system, bare numpy."""
    L = len(A)
    R, S = [np.zeros((A.shape[1], 0))], [C[L].T]
    for k in range(L):
        factor = np.hstack([A[k] @ R[-1], B[k]])
        if factor.shape[1] > factor.shape[0]:
            factor = np.linalg.qr(factor.T, mode="r").T
        R.append(factor)
    for k in reversed(range(L)):
        factor = np.hstack([A[k].T @ S[0], C[k].T])
        if factor.shape[1] > factor.shape[0]:
            factor = np.linalg.qr(factor.T, mode="r").T
        S.insert(0, factor)
    return R, S


def plain_values(A, B, C):
    R, S = plain_hankel(A, B, C)
    return [np.linalg.svd(s.T @ r, compute_uv=False) for r, s in zip(R[1:], S[1:], strict=True)]


def plain_balanced(A, B, C, order):
    V, W = [np.zeros((A.shape[1], 0))], [np.zeros((A.shape[1], 0))]
    for r, s in list(zip(*plain_hankel(A, B, C), strict=True))[1:]:
        U, sigma, Zt = np.linalg.svd(s.T @ r, full_matrices=False)
        scale = sigma[:order] ** -0.5
        V.append(r @ (Zt[:order].T * scale))
        W.append(s @ (U[:, :order] * scale))
    return [
        (W[k + 1].T @ A[k] @ V[k], W[k + 1].T @ B[k], C[k + 1] @ V[k + 1]) for k in range(len(A))
    ]


def test_batch_against_a_python_loop():
    """1000 systems, L = 36, n = 32, m = p = 1: labels and batches against bare numpy, in turns."""
    A, B, C = random_system(1000, 36, 32)
    system = ltv.system(A, B, C, batch_dims=["prompt"])
    rows = []
    for name, loop, batch in (
        (
            "Hankel values",
            lambda: [plain_values(*one) for one in zip(A, B, C, strict=True)],
            lambda: ltv.hankel_singular_values(system),
        ),
        (
            "balanced to order 8",
            lambda: [plain_balanced(*one, 8) for one in zip(A, B, C, strict=True)],
            lambda: ltv.project(system, ltv.balanced_basis(system, order=8)),
        ),
    ):
        times = {"loop": np.inf, "batch": np.inf}
        for _ in range(6):
            spent, plain = seconds(loop, 1)
            times["loop"] = min(times["loop"], spent)
            spent, ours = seconds(batch, 1)
            times["batch"] = min(times["batch"], spent)
        rows.append((name, times["loop"], times["batch"]))
        if name == "Hankel values":
            size = len(plain[7][17])
            np.testing.assert_allclose(ours[7, 18, :size], plain[7][17], rtol=1e-6, atol=1e-10)
        else:
            _, b, c = plain[7][20]
            np.testing.assert_allclose(ours.C[7, 21].values @ ours.B[7, 20].values, c @ b)
    print("\n| work | Python loop | batch | loop / batch |\n|---|---|---|---|")
    for name, loop, batch in rows:
        print(f"| {name} | {loop:.2f} s | {batch:.2f} s | {loop / batch:.2f} |")


def test_batch_against_dense_solvers_on_the_embedding():
    """The same Hankel values from scipy's Lyapunov solver on the embedding of one system."""
    A, B, C = random_system(200, 36, 32)
    system = ltv.system(A, B, C, batch_dims=["prompt"])
    ours, values = seconds(lambda: ltv.hankel_singular_values(system))
    big = ltv.embed(system.isel(prompt=0))

    def dense():
        a, b, c = (big[name].values for name in "ABC")
        P = scipy.linalg.solve_discrete_lyapunov(a, b @ b.T)
        Q = scipy.linalg.solve_discrete_lyapunov(a.T, c.T @ c)
        U, s, _ = np.linalg.svd(P)
        root = U * np.sqrt(s)
        return np.sqrt(np.linalg.svd(root.T @ Q @ root, compute_uv=False))

    scipys, union = seconds(dense, 1)
    np.testing.assert_allclose(union[0], values[0].max(), rtol=1e-6)
    size = big.sizes["state"]
    print(f"\n| scipy dense, embedding of size {size}, one system | batch, per system | ratio |")
    print("|---|---|---|")
    print(f"| {scipys:.1f} s | {1e3 * ours / 200:.2f} ms | {scipys / (ours / 200):.0f} |")


def test_full_order_against_its_products():
    """n = 1280, L = 36, m = 1, profile readout: balanced to order 8, never a Gramian."""
    L, n = 36, 1280
    rng = np.random.default_rng(0)
    A = np.eye(n) + 0.3 * rng.standard_normal((L, n, n)) / np.sqrt(n)
    B, C = rng.standard_normal((L, n, 1)), rng.standard_normal((L + 1, 1, n))
    system = ltv.system(A, B, C)

    def products():
        """A R_k, A' S_k, and W' A V: what any method of this kind has to multiply."""
        X, Y = B[0], C[L].T
        for k in range(1, L):
            X = np.hstack([A[k] @ X, B[k]])
        for k in reversed(range(1, L)):
            Y = np.hstack([A[k].T @ Y, C[k].T])
        V = rng.standard_normal((n, 8))
        return X, Y, [V.T @ (A[k] @ V) for k in range(L)]

    times = {"products": np.inf, "ours": np.inf}
    for _ in range(5):
        times["products"] = min(times["products"], seconds(products, 1)[0])
        spent, small = seconds(lambda: ltv.project(system, ltv.balanced_basis(system, order=8)), 1)
        times["ours"] = min(times["ours"], spent)
    exact = ltv.io_matrix(system)
    E = (exact - ltv.io_matrix(small)).values.reshape(L + 1, L)
    bounds = ltv.error_bounds(system, 8)
    assert bounds.lower <= np.linalg.norm(E, 2) <= bounds.upper
    error = float(ltv.induced_norm(system)), float(bounds.lower)
    print(
        f"\n| products alone | balanced and projected | ratio |\n|---|---|---|\n"
        f"| {times['products']:.2f} s | {times['ours']:.2f} s "
        f"| {times['ours'] / times['products']:.2f} |\n"
        f"norm {error[0]:.3g}, lower bound at order 8 {error[1]:.3g}, order {small.sizes['state']}"
    )


def test_cost_against_depth_and_size():
    """Seconds of Hankel values and of reduction to order 4, with the fitted exponents."""
    print("\n| L | n | Hankel values | balanced to order 4 |\n|---|---|---|---|")
    table = {}
    sizes = [(L, 64) for L in (16, 32, 64, 128, 256)] + [(64, n) for n in (16, 32, 128, 256, 512)]
    for L, n in sizes:
        A, B, C = random_system(1, L, n)
        system = ltv.system(A[0], B[0], C[0])
        values, _ = seconds(lambda s=system: ltv.hankel_singular_values(s))
        reduced, _ = seconds(lambda s=system: ltv.project(s, ltv.balanced_basis(s, order=4)))
        table[L, n] = values, reduced
        print(f"| {L} | {n} | {1e3 * values:.1f} ms | {1e3 * reduced:.1f} ms |")
    for name, pick in (("L (n = 64)", 0), ("n (L = 64)", 1)):
        rows = [key for key in table if key[1 - pick] == 64]
        x = np.log([key[pick] for key in rows])
        slopes = [np.polyfit(x, np.log([table[key][i] for key in rows]), 1)[0] for i in (0, 1)]
        print(f"exponent in {name}: {slopes[0]:.2f} (values), {slopes[1]:.2f} (reduction)")
