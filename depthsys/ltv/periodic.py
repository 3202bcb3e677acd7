r"""Periodic systems: a system whose layers 0..N-1 are one period.

The state at depth N is the state at depth 0 of the next period. What is read there is read by the
next period, so that y_0..y_{N-1} belong to this one, and the last C must be the first one (or zero:
no readout).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from depthsys.ltv.matrices import DIMS
from depthsys.ltv.matrix_free import over_depth, state_sizes
from depthsys.ltv.response import stacked_names
from depthsys.ltv.system import check, whole_number

ROWS = 512  # of the largest cyclic matrix whose eigenvalues are computed
SAME = 1e-6  # moduli that differ by less may be of one pair
_STACKED = [
    ["state_next", "state"],
    ["state_next", "input"],
    ["output", "state"],
    ["output", "input"],
]


def repeat(system: xr.Dataset, count: int) -> xr.Dataset:
    """A periodic system over ``count`` periods.

    Parameters
    ----------
    system
        One period.
    count
        Number of periods, at least 1.

    Returns
    -------
    xr.Dataset
        A system of ``count`` times as many layers, whose labels count on. At its last depth it
        reads what ``system`` does. Only A, B, C, D, names and ``order`` are kept.

    Raises
    ------
    ValueError
        If the last state or readout is not the first one, or ``count`` is no count.

    Examples
    --------
    >>> from depthsys import ltv
    >>> period = ltv.system([[[0.5]], [[2.0]]], [[[1.0]]] * 2, [[[1.0]]] * 3)
    >>> ltv.gains(ltv.repeat(period, 2)).values.ravel()
    array([2., 1., 2., 1.])
    """
    count = whole_number(count, "count")
    _check_period(system)
    bare = system[list(DIMS)].drop_vars(["layer", "depth"], errors="ignore")
    order = bare.coords.get("order")
    bare = bare.drop_vars("order", errors="ignore")
    head = bare.isel(depth=slice(-1))

    def over(parts: list[xr.DataArray], dim: str) -> xr.DataArray:
        return xr.concat(parts, dim=dim, coords="minimal", compat="override")

    data = {name: over([bare[name]] * count, "layer") for name in "AB"}
    data |= {
        name: over([head[name]] * count + [bare[name].isel(depth=[-1])], "depth") for name in "CD"
    }
    data = {name: array.transpose(..., *DIMS[name]) for name, array in data.items()}
    whole = xr.Dataset(data, attrs=system.attrs)
    if order is not None:
        parts = [order.isel(depth=slice(-1))] * count + [order.isel(depth=[-1])]
        parts = [part.reset_coords(drop=True) for part in parts]
        whole = whole.assign_coords(order=over(parts, "depth").transpose(..., "depth"))
    first = int(system["layer"].values[0])
    return check(
        whole.assign_coords(
            layer=first + np.arange(whole.sizes["layer"]),
            depth=first + np.arange(whole.sizes["depth"]),
        )
    )


def floquet_multipliers(system: xr.Dataset) -> xr.Dataset:
    r"""Eigenvalues of the monodromy matrix :math:`A_{N-1} \cdots A_0` of a periodic system.

    Without input the state of the n-th period is made of terms :math:`\lambda_i^n`: the system is
    stable if and only if all multipliers lie inside the unit circle.

    Parameters
    ----------
    system
        One period: layers 0..N-1.

    Returns
    -------
    xr.Dataset
        ``multiplier`` (mode), complex, ``modulus`` and ``angle`` (mode, radians), by falling
        modulus. attrs: ``period`` (layers), and ``blocks``, see below.

    Raises
    ------
    ValueError
        If the state at the end of the period has another size than at its start.

    Notes
    -----
    The product is not formed, since its small eigenvalues drown in the rounding of the large ones.
    The matrix of the `cyclic` form has their N-th roots for eigenvalues, which differ far less.
    Where it had more than 512 rows, neighbouring layers are multiplied first, into so many
    ``blocks``: with one block the eigenvalues are those of the product.

    References
    ----------
    .. [1] Bittanti and Colaneri, Periodic Systems: Filtering and Control (2009).
    .. [2] Watkins, Product eigenvalue problems, SIAM Review 47(1), 2005.

    Examples
    --------
    >>> from depthsys import ltv
    >>> period = ltv.system([[[0.5]], [[3.0]]], [[[1.0]]] * 2, [[[1.0]]] * 3)
    >>> ltv.floquet_multipliers(period).modulus.values.round(12)
    array([1.5])
    """
    size = _check_state(system)
    N, n = system.sizes["layer"], system.sizes["state"]
    count = max(1, min(N, ROWS // n))

    def core(A: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        blocks = np.stack([_product(list(part)) for part in _split(A, count)], axis=-3)
        found: Any = np.zeros((*blocks.shape[:-3], size), dtype=complex)
        for member in np.ndindex(blocks.shape[:-3]):
            found[member] = _of_cycle(blocks[member])[:size]
        return found.real, found.imag

    real, imaginary = over_depth(core, system, "A", [["mode"], ["mode"]])
    values = real + 1j * imaginary
    return xr.Dataset(
        {
            "multiplier": values,
            "modulus": np.abs(values),
            "angle": xr.apply_ufunc(np.angle, values),
        },
        attrs={"period": N, "blocks": count},
    )


def _split(A: list[np.ndarray], count: int) -> list[list[np.ndarray]]:
    ends = np.linspace(0, len(A), count + 1).round().astype(int)
    return [A[start:stop] for start, stop in pairwise(ends)]


def _product(A: list[np.ndarray]) -> np.ndarray:
    product = A[0]
    for matrix in A[1:]:
        product = matrix @ product
    return product


def _of_cycle(A: np.ndarray) -> np.ndarray:
    """Eigenvalues of A[-1] ... A[0] by falling modulus, from those of the cyclic matrix.

    Each is there N times, as the N-th power of each of its N-th roots.
    """
    N, n = A.shape[:2]
    cycle = np.zeros((N, n, N, n))
    cycle[(np.arange(N) + 1) % N, :, np.arange(N)] = A
    powers = np.linalg.eigvals(cycle.reshape(N * n, N * n)).astype(complex) ** N
    powers = powers[np.argsort(-np.abs(powers), kind="stable")]
    modulus, found, start = np.abs(powers), [], 0
    while start < len(powers):
        stop = start + N
        # those of one modulus, as of a conjugate pair, are told apart by their angles
        while stop < len(powers) and modulus[stop] >= (1 - SAME) * modulus[stop - 1]:
            stop += N
        found += _by_angle(powers[start:stop], N)
        start = stop
    return np.array(found)


def _by_angle(values: np.ndarray, N: int) -> list[complex]:
    """Means of the neighbours, N each, around the circle, from the widest gap on."""
    angles = np.sort(np.angle(values))
    gaps = np.diff(angles, append=angles[0] + 2 * np.pi)
    begin = angles[(np.argmax(gaps) + 1) % len(angles)]
    around = (np.angle(values) - begin + 1e-15) % (2 * np.pi)
    return list(values[np.argsort(around)].reshape(-1, N).mean(axis=1))


def lift(system: xr.Dataset) -> xr.Dataset:
    r"""The lifted form of a periodic system: one time-invariant step per period.

    :math:`x_{(n+1)N} = F x_{nN} + G \bar u_n`, :math:`\bar y_n = H x_{nN} + E \bar u_n`, with the
    inputs and outputs of a period stacked.

    Parameters
    ----------
    system
        One period: layers 0..N-1. Its last readout, y_N, is that of the next period.

    Returns
    -------
    xr.Dataset
        ``A`` = F (state_next, state), ``B`` = G (state_next, input), ``C`` = H (output, state),
        ``D`` = E (output, input), without a dim layer: column ``l m + i`` of the input is input i
        of layer l, row ``k p + i`` of the output is output i at depth k. attrs: ``form``,
        ``period``. The eigenvalues of F are the `floquet_multipliers`. For python-control:
        ``control.ss(e.A, e.B, e.C, e.D, N)``.

    Raises
    ------
    ValueError
        If the last state or readout is not the first one.

    References
    ----------
    .. [1] Meyer and Burrus, IEEE Trans. Circuits and Systems 22(3), 1975.
    .. [2] Bittanti and Colaneri, Periodic Systems: Filtering and Control (2009).
    """
    return _stacked(system, _lifted, "lifted", state=None)


def cyclic(system: xr.Dataset) -> xr.Dataset:
    r"""The cyclic form of a periodic system: one time-invariant system of N times the size.

    The state is N blocks of which one is not zero, that of the present place in the period, and
    so are the input and the output. Row ``k n + i`` of the state is state i at depth k, column
    ``l m + i`` of the input is input i of layer l, row ``k p + i`` of the output output i at depth
    k. The eigenvalues of A are the N-th roots of the `floquet_multipliers`.

    Parameters, results and errors as for `lift`; ``form`` is "cyclic".

    References
    ----------
    .. [1] Flamm, A new shift-invariant representation for periodic linear systems, Systems &
       Control Letters 17, 1991.
    .. [2] Bittanti and Colaneri, Periodic Systems: Filtering and Control (2009).
    """
    return _stacked(system, _cyclic, "cyclic", state=system["depth"].values[:-1])


def _stacked(system: xr.Dataset, core: Callable, form: str, state: np.ndarray | None) -> xr.Dataset:
    size = _check_period(system)
    found = xr.apply_ufunc(
        lambda *matrices: core(*matrices, size),
        *(system[name].drop_vars("order", errors="ignore") for name in "ABCD"),
        input_core_dims=[list(DIMS[name]) for name in "ABCD"],
        output_core_dims=_STACKED,
        exclude_dims={"state_next", "state", "input", "output"},
    )
    big = xr.Dataset(dict(zip("ABCD", found, strict=True)), attrs=dict(system.attrs))
    times = {"output": system["depth"].values[:-1]} | ({} if state is None else {"state": state})
    names = stacked_names(system, **times)
    if state is None and "state_name" in system.coords:
        names["state_name"] = ("state", system["state_name"].values[:size])
    return big.assign_coords(names).assign_attrs(form=form, period=system.sizes["layer"])


def _lifted(A, B, C, D, size: int) -> tuple[np.ndarray, ...]:
    """F, G, H, E by one pass over the period that carries the state per unit of everything."""
    N, n, m, p = A.shape[-3], A.shape[-1], B.shape[-1], C.shape[-2]
    batch = np.broadcast_shapes(*(X.shape[:-3] for X in (A, B, C, D)))
    state = np.zeros((*batch, n, size + N * m))
    state[..., :size, :size] = np.eye(size)
    outputs = []
    for k in range(N):
        own = slice(size + k * m, size + (k + 1) * m)
        y = C[..., k, :, :] @ state
        y[..., own] += D[..., k, :, :]
        outputs.append(y)
        state = A[..., k, :, :] @ state
        state[..., own] += B[..., k, :, :]
    stacked = np.stack(outputs, axis=-3).reshape(*batch, N * p, size + N * m)
    last = state[..., :size, :]
    return last[..., :size], last[..., size:], stacked[..., :size], stacked[..., size:]


def _cyclic(A, B, C, D, size: int) -> tuple[np.ndarray, ...]:
    N, n, m, p = A.shape[-3], A.shape[-1], B.shape[-1], C.shape[-2]
    batch = np.broadcast_shapes(*(X.shape[:-3] for X in (A, B, C, D)))
    shapes = [(N * n, N * n), (N * n, N * m), (N * p, N * n), (N * p, N * m)]
    big = [np.zeros((*batch, *shape)) for shape in shapes]
    for k in range(N):
        after = slice((k + 1) % N * n, ((k + 1) % N + 1) * n)
        x, u, y = (slice(k * size, (k + 1) * size) for size in (n, m, p))
        big[0][..., after, x] = A[..., k, :, :]
        big[1][..., after, u] = B[..., k, :, :]
        big[2][..., y, x] = C[..., k, :, :]
        big[3][..., y, u] = D[..., k, :, :]
    return tuple(big)


def _check_state(system: xr.Dataset) -> int:
    """The size of the state where the period starts, which must be that where it ends."""
    check(system)
    sizes = state_sizes(system)
    first, last = sizes.isel(depth=0).values, sizes.isel(depth=-1).values
    if (first != last).any():
        raise ValueError(
            f"`system` must end a period with as many states as it starts with; got {first} and "
            f"{last}. The state after the last layer is the first one of the next period."
        )
    return int(first.max())


def _check_period(system: xr.Dataset) -> int:
    size = _check_state(system)
    first, last = (system["C"].isel(depth=at).values for at in (0, -1))
    if last.any() and not np.array_equal(first, last):
        raise ValueError(
            "`system` must read its last state as its first one, for the next period starts there; "
            f"got C that differ by {np.abs(first - last).max():.1e}. Set the last C to the first "
            "one, or to zero."
        )
    return size
