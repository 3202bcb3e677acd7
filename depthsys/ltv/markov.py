"""From records and Markov parameters to a time-invariant system."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.basis import RankError
from depthsys.ltv.gramians import used_values
from depthsys.ltv.matrices import DIMS
from depthsys.ltv.rounding import EPS, certificate, frobenius
from depthsys.ltv.system import STAMP, as_named, check, whole_number

RTOL = 1e-10
OPEN = 1e-6  # of its terms: what an impulse response may miss in a relation that it satisfies
_LARGEST = "the largest value"
_LAGS = ("lag", "output", "input")


def markov_parameters(
    u: ArrayLike | xr.DataArray,
    y: ArrayLike | xr.DataArray,
    count: int,
    *,
    observer: int = 0,
) -> xr.Dataset:
    r"""The responses to an impulse, :math:`M_0 = D`, :math:`M_j = C A^{j-1} B`, from a record.

    Without an observer the record starts from rest and every output is a sum of the last ``count``
    inputs: :math:`y_k = \sum_{j < count} M_j u_{k-j}`, solved for M by least squares. What the
    system still does after so many steps is error.

    With ``observer=p`` (OKID) every output is predicted from the last p inputs *and outputs*,

    :math:`y_k = M_0 u_k + \sum_{j=1}^p (Q_j u_{k-j} + P_j y_{k-j})`,

    which holds without error for every system of at most p times as many states as it has outputs,
    whatever its initial state and however slowly it decays, and
    :math:`M_j = Q_j + \sum_{i=1}^{\min(j, p)} P_i M_{j-i}`.

    Parameters
    ----------
    u
        Inputs (layer, input); may have batch dims.
    y
        Outputs (depth, output), of the same times, or of one more (`simulate` returns one, which
        is not used: it has no input).
    count
        Number of Markov parameters, M_0 included.
    observer
        p, the number of past steps; 0 for none. With noise take several times as many as needed.

    Returns
    -------
    xr.Dataset
        ``markov`` (lag, output, input) in output/input; ``residual`` (output), the root mean square
        of what the least squares leave, in the unit of the output; ``rank`` of their equations,
        with ``resolution``, what rounding explains in a singular value of them (columns scaled to
        unit size), and ``rank_is_certified``, True where all that count are above it; attrs
        ``certified``, and ``unknowns``, how many it would have to be to fix each coefficient by
        itself. With an
        observer and no noise it is often smaller: the coefficients are then not unique, but all of
        them have the same Markov parameters, which is checked. python-control: `markov`, for
        ``observer=0``.

    Raises
    ------
    ValueError
        If the record has other dims, is not finite or is too short for so many unknowns, or
        ``count`` or ``observer`` is no count.
    numpy.linalg.LinAlgError
        If the input does not excite enough to fix the Markov parameters: other ones fit the record
        as well (a constant input or a single sine with an observer, an input that is zero).

    References
    ----------
    .. [1] Juang, Phan, Horta and Longman (1991), doi:10.2514/6.1991-2735; J. Guidance, Control, and
       Dynamics 16(2), 1993.

    Examples
    --------
    >>> import numpy as np
    >>> from depthsys import ltv
    >>> s = ltv.constant([[0.5]], [[1.0]], [[1.0]], [[2.0]], horizon=40)
    >>> u = np.random.default_rng(0).standard_normal((40, 1))
    >>> y = ltv.simulate(s, u, x0=[3.0]).y
    >>> ltv.markov_parameters(u, y, 5, observer=2).markov.values.ravel().round(6)
    array([2.   , 1.   , 0.5  , 0.25 , 0.125])
    """
    count = whole_number(count, "count")
    p = 0 if isinstance(observer, (int, np.integer)) and observer == 0 else observer
    p = p if p == 0 else whole_number(p, "observer")
    u = as_named(u, "u", {"layer": None, "input": None})
    y = as_named(y, "y", {"depth": None, "output": None})
    L = u.sizes["layer"]
    if y.sizes["depth"] not in (L, L + 1):
        raise ValueError(
            f"`y` must have as many depths as `u` has layers, {L}, or one more; got "
            f"{y.sizes['depth']}. Cut both to the same times."
        )
    _check_start(u, y)
    m, q = u.sizes["input"], y.sizes["output"]
    unknowns = m * (p + 1) + q * p if p else m * count
    rows = L - p
    if rows < unknowns:
        raise ValueError(
            f"`u` must have at least {unknowns + p} layers for {unknowns} unknowns per output; got "
            f"{L}. Record longer, or ask for fewer parameters (`count`) or a smaller `observer`."
        )
    core: Callable = _by_observer if p else _from_rest

    def of_records(u: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
        batch = np.broadcast_shapes(u.shape[:-2], y.shape[:-2])
        u, y = (np.broadcast_to(a, (*batch, *a.shape[-2:])) for a in (u, y[..., :L, :]))
        return core(u, y, count, p)

    found = xr.apply_ufunc(
        of_records,
        u.drop_vars("layer", errors="ignore"),
        y.drop_vars("depth", errors="ignore"),
        input_core_dims=[["layer", "input"], ["depth", "output"]],
        output_core_dims=[list(_LAGS), ["output"], [], [], []],
    )
    names = ("markov", "residual", "rank", "resolution", "rank_is_certified")
    named = dict(zip(names, found, strict=True))
    certain, resolution = named["rank_is_certified"], named["resolution"]
    said = certificate(certain, resolution, 1.0, "a column of the equations")
    about = {"observer": p, "unknowns": unknowns, "certified": said}
    return xr.Dataset(named, attrs=about)


def _check_start(u: xr.DataArray, y: xr.DataArray) -> None:
    if "layer" in u.coords and "depth" in y.coords:
        first = u["layer"].values[0], y["depth"].values[0]
        if first[0] != first[1]:
            raise ValueError(
                f"`y` must start at the depth at which `u` starts; got {first[1]} and {first[0]}. "
                "Select the same times of both."
            )


def _from_rest(u: np.ndarray, y: np.ndarray, count: int, p: int) -> tuple[np.ndarray, ...]:
    past = np.concatenate([_delayed(u, j) for j in range(count)], axis=-1)
    X, residual, rank, _, known = _least_squares(past, y)
    m = u.shape[-1]
    _refuse_open(rank < past.shape[-1], rank, past.shape[-1], count)
    return np.swapaxes(X.reshape(*X.shape[:-2], count, m, -1), -1, -2), residual, rank, *known


def _by_observer(u: np.ndarray, y: np.ndarray, count: int, p: int) -> tuple[np.ndarray, ...]:
    parts = [u] + [part for j in range(1, p + 1) for part in (_delayed(u, j), _delayed(y, j))]
    past = np.concatenate(parts, axis=-1)[..., p:, :]
    X, residual, rank, null, known = _least_squares(past, y[..., p:, :])
    m, q = u.shape[-1], y.shape[-1]
    coefficients = np.swapaxes(X, -1, -2)
    found = [coefficients[..., :m]]
    for j in range(1, count):
        at = m + (j - 1) * (m + q)
        M = coefficients[..., at : at + m] if j <= p else np.zeros_like(found[0])
        for i in range(1, min(j, p) + 1):
            start = 2 * m + (i - 1) * (m + q)
            M = M + coefficients[..., start : start + q] @ found[j - i]
        found.append(M)
    markov = np.stack(found, axis=-3)
    if (rank < past.shape[-1]).any():
        _refuse_open(_changes(null, markov, p), rank, past.shape[-1], p + 1)
    return markov, residual, rank, *known


def _changes(null: tuple[np.ndarray, ...], markov: np.ndarray, p: int) -> np.ndarray:
    r"""Whether coefficients that the record leaves open change the Markov parameters.

    A null vector of the regressor is a relation q(z) u + p(z) y = 0 of the record. Adding any
    multiple of it to the coefficients leaves M as it is just where M satisfies the relation, too:
    :math:`q_j + \sum_i p_i M_{j-i} = 0` for all j.
    """
    vectors, size, accuracy = null  # (..., vector, coefficient), each column on its own scale
    count, q, m = markov.shape[-3:]
    column = size[..., 0, :]
    unit = np.maximum(column[..., :m], np.finfo(float).tiny)
    scaled = markov * unit[..., None, None, :]
    blocks = np.zeros((*markov.shape[:-3], column.shape[-1], count, m))
    for j in range(min(p + 1, count)):  # an impulse on every delayed input ...
        at = 0 if j == 0 else m + (j - 1) * (m + q)
        blocks[..., at : at + m, j, :] = np.eye(m) * (unit / column[..., at : at + m])[..., None]
    for i in range(1, min(p, count - 1) + 1):  # ... and what it does to every delayed output
        at = 2 * m + (i - 1) * (m + q)
        late = np.moveaxis(scaled[..., : count - i, :, :], -2, -3)
        blocks[..., at : at + q, i:, :] = late / column[..., at : at + q, None, None]
    flat = blocks.reshape(*blocks.shape[:-2], count * m)
    with np.errstate(over="ignore", invalid="ignore"):
        left = np.linalg.norm(vectors @ flat, axis=-1)
        terms = np.linalg.norm(np.abs(vectors) @ np.abs(flat), axis=-1)
    return (left > OPEN * terms + np.minimum(OPEN, 10 * accuracy)[..., None]).any(-1)


def _refuse_open(is_open: np.ndarray, rank: np.ndarray, unknowns: int, least: int) -> None:
    if is_open.any():
        at = int(np.argmax(is_open.reshape(-1)))
        part = "" if is_open.size == 1 else f" in record {at} of {is_open.size}"
        raise np.linalg.LinAlgError(
            f"`u` must excite the system enough to fix the Markov parameters; got equations of "
            f"rank {int(rank.reshape(-1)[at])} for {unknowns} unknowns{part}, others fit, too. "
            f"Record with a richer input (noise, or sines of at least {-(-least // 2)} frequencies "
            "per input), or lower `observer` or `count`."
        )


def _delayed(signal: np.ndarray, steps: int) -> np.ndarray:
    late = np.zeros_like(signal)
    late[..., steps:, :] = signal[..., : signal.shape[-2] - steps, :]
    return late


def _least_squares(
    past: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple, tuple[np.ndarray, np.ndarray]]:
    """X of least norm with past X = y; root mean square of what is left; rank; the null space.

    The latter as vectors (zero where there are fewer), the scale of the columns, and how accurate
    the vectors are. Last, what rounding explains in a singular value, and whether all that count
    are above it.
    """
    # every column on its own scale, so that the units of the signals decide nothing
    size = np.linalg.norm(past, axis=-2, keepdims=True)
    size = np.where(size > 0, size, 1.0)
    U, s, Zt = np.linalg.svd(past / size, full_matrices=False)
    rounding = np.finfo(float).eps * max(past.shape[-2:])
    known = used_values(s, rounding)
    inverse = known / np.where(known, s, 1.0)
    X = np.swapaxes(Zt, -1, -2) @ (inverse[..., None] * (np.swapaxes(U, -1, -2) @ y))
    X = X / np.swapaxes(size, -1, -2)
    left = np.sqrt(((y - past @ X) ** 2).mean(axis=-2))
    smallest = np.where(known, s, np.inf).min(-1, initial=np.inf)
    null = (Zt * ~known[..., None], size, rounding / np.minimum(smallest, 1.0))
    lost = np.array(EPS * sum(past.shape[-2:]) * np.linalg.norm(s, axis=-1))
    certain = np.array(((s > lost[..., None]) | ~known).all(-1))
    return X, left, known.sum(-1), null, (lost, certain)


def era(
    markov: ArrayLike | xr.DataArray | xr.Dataset,
    order: int | None = None,
    *,
    rows: int | None = None,
    columns: int | None = None,
    rtol: float = RTOL,
) -> xr.Dataset:
    r"""A time-invariant system with given Markov parameters: the eigensystem realization algorithm.

    With :math:`U \Sigma Z^\top` the SVD of the Hankel matrix of the blocks :math:`M_{i+j+1}`, and
    :math:`H'` that of the blocks :math:`M_{i+j+2}`:
    :math:`A = \Sigma^{-1/2} U^\top H' Z \Sigma^{-1/2}`, B the first columns of
    :math:`\Sigma^{1/2} Z^\top`, C the first rows of :math:`U \Sigma^{1/2}`, :math:`D = M_0`.

    Parameters
    ----------
    markov
        :math:`M_0 = D`, :math:`M_j = C A^{j-1} B` (lag, output, input) in output/input; may have
        batch dims. Also what `markov_parameters` or `impulse_response` return, or the ``markov`` or
        ``y`` (depth, output, input) in it: a response counts from the layer of its impulse. Labels
        of ``lag`` say which is which.
    order
        Number of states; by default the rank of the Hankel matrix.
    rows, columns
        Size of the Hankel matrix in blocks, together at most the number of lags after the first; by
        default all of them, half of them rows.
    rtol
        Singular values below ``rtol`` times the largest count as zero. For measured parameters, set
        it to the noise.

    Returns
    -------
    xr.Dataset
        A system as `constant` makes it, over so many layers as there are lags after the first: its
        `impulse_response` are the given parameters. Also ``hankel_singular_values`` (index), with
        ``resolution``, what rounding explains in them, and ``rank_is_certified``, True where all
        that count are above it; attrs ``certified``: "yes", or "not certified" and why. For a
        longer horizon: ``ltv.constant(s.A[0], s.B[0], s.C[0], s.D[0], horizon=L)``. MATLAB: `era`,
        python-control: `eigensys_realization`.

    Raises
    ------
    RankError
        If ``order`` is above the rank.
    ValueError
        If there are fewer than three lags, their labels do not count 0, 1, 2, ..., the response is
        not that to an impulse, the parameters have other dims or are not finite, or the
        Hankel matrix needs more of them.

    References
    ----------
    .. [1] Juang and Pappa (1985), doi:10.2514/3.20031.
    .. [2] Ho and Kalman, Effective construction of linear state-variable models from input/output
       functions, Regelungstechnik 14, 1966.

    Examples
    --------
    The Fibonacci sequence as an impulse response (Katayama, Subspace Methods for System
    Identification, 2005, example 6.1):

    >>> import numpy as np
    >>> from depthsys import ltv
    >>> s = ltv.era(np.array([0, 1, 1, 2, 3, 5, 8, 13, 21, 34.0])[:, None, None])
    >>> s.sizes["state"], np.sort(np.linalg.eigvals(s.A[0]).real).round(6)
    (2, array([-0.618034,  1.618034]))
    """
    if not 0 < rtol < 1:
        raise ValueError(f"`rtol` must be between 0 and 1; got {rtol}. Try {RTOL:.0e}.")
    given = _by_lag(markov)
    last = given.sizes["lag"] - 1
    if last < 2:
        raise ValueError(
            f"`markov` must have at least three lags; got {last + 1}. A Hankel matrix and the one "
            "a step later are made of those after the first."
        )
    rows, columns = _shape(rows, columns, last)
    wanted = None if order is None else whole_number(order, "order")
    found = xr.apply_ufunc(
        lambda M: _realized(M, rows, columns, rtol, wanted),
        given.drop_vars("lag", errors="ignore"),
        input_core_dims=[list(_LAGS)],
        output_core_dims=[*(list(DIMS[name][1:]) for name in "ABC"), ["index"], [], [], []],
    )
    A, B, C, values, rank, resolution, certain = found
    if wanted is not None and (most := int(rank.max())) < wanted:
        raise RankError(
            f"`order` must be at most the rank, {most} (method era, rtol {rtol:.0e}); got {order}. "
            "A larger model would be the same model.",
            most,
        )
    return (
        _over(last, A, B, C, given.isel(lag=0, drop=True), rank)
        .assign(hankel_singular_values=values, resolution=resolution, rank_is_certified=certain)
        .assign_attrs(
            {"method": "era", "order": int(A.sizes["state"]), "rtol": rtol}
            | {"certified": certificate(certain, resolution, values.max("index"), _LARGEST)}
            | {"rows": rows, "columns": columns}
        )
    )


def _by_lag(markov: ArrayLike | xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Markov parameters (..., lag, output, input) in the order of their lags."""
    value: ArrayLike | xr.DataArray
    if isinstance(markov, xr.Dataset):
        known = [name for name in ("markov", "y") if name in markov]
        if not known:
            raise TypeError(
                "`markov` must be an array, or a result of `ltv.markov_parameters` or "
                f"`ltv.impulse_response`; got a Dataset with {list(map(str, markov))}. Take the "
                "array out of it."
            )
        value = markov[known[0]]
    else:
        value = markov
    if isinstance(value, xr.DataArray) and "depth" in value.dims and "lag" not in value.dims:
        value = _since_impulse(value)
    given = as_named(value, "markov", dict.fromkeys(_LAGS))
    if "lag" not in given.coords:
        return given
    lags = given["lag"].values
    at = np.argsort(lags, kind="stable")
    if not np.array_equal(lags[at], np.arange(len(lags))):
        raise ValueError(
            f"`markov` must have the lags 0..{len(lags) - 1}, each once; got {lags}. Start at lag "
            "0, D, and leave none out, or drop the labels, `.drop_vars('lag')`."
        )
    return given.isel(lag=at)


def _since_impulse(response: xr.DataArray) -> xr.DataArray:
    """A response (depth, output, input) by the steps since its impulse."""
    if (kind := response.attrs.get("response", "impulse")) != "impulse":
        raise ValueError(
            f"`markov` must be the response to an impulse; got that to a {kind}. Use "
            "`ltv.impulse_response`."
        )
    if "depth" not in response.coords:
        return response.rename(depth="lag")
    steps = response["depth"].values - response.attrs.get("at", response["depth"].values.min())
    lagged = response.drop_vars("depth").rename(depth="lag").assign_coords(lag=steps)
    return lagged.isel(lag=steps >= 0)


def _shape(rows: int | None, columns: int | None, last: int) -> tuple[int, int]:
    if rows is None:
        rows = last // 2 if columns is None else last - whole_number(columns, "columns")
    columns = last - rows if columns is None else columns
    if whole_number(rows, "rows") + whole_number(columns, "columns") > last:
        raise ValueError(
            f"`rows` and `columns` must be together at most {last}, the lags after the first; got "
            f"{rows} and {columns}. The Hankel matrix a step later needs them all."
        )
    return rows, columns


def _realized(
    M: np.ndarray, rows: int, columns: int, rtol: float, order: int | None
) -> tuple[np.ndarray, ...]:
    p, m = M.shape[-2:]

    def hankel(first: int) -> np.ndarray:
        at = first + np.arange(rows)[:, None] + np.arange(columns)
        blocks = np.moveaxis(M[..., at, :, :], -2, -3)  # (..., row, output, column, input)
        return blocks.reshape(*M.shape[:-3], rows * p, columns * m)

    U, s, Zt = np.linalg.svd(hankel(1), full_matrices=False)
    known = used_values(s, rtol)
    rank = known.sum(-1)
    size = max(1, int(rank.max()) if order is None else min(order, s.shape[-1]))
    known, root = known[..., :size], np.sqrt(np.where(known, s, 1.0))[..., :size]
    left = U[..., :size] * known[..., None, :]
    right = Zt[..., :size, :] * known[..., None]
    inner = np.swapaxes(left, -1, -2) @ hankel(2) @ np.swapaxes(right, -1, -2)
    A = inner / root[..., :, None] / root[..., None, :]
    B = (right * root[..., None])[..., :m]
    C = (left * root[..., None, :])[..., :p, :]
    lost = EPS * sum(s.shape[-1:] + U.shape[-2:-1]) * frobenius(hankel(1))
    certain = np.asarray(((s > lost[..., None]) | ~used_values(s, rtol)).all(-1))
    return A, B, C, s, rank, lost, certain


def _over(
    horizon: int, A: xr.DataArray, B: xr.DataArray, C: xr.DataArray, D: xr.DataArray, rank
) -> xr.Dataset:
    """The same matrices at all layers, as views, for every member of a batch."""

    def repeated(matrix: xr.DataArray, name: str, count: int) -> xr.DataArray:
        return matrix.expand_dims({DIMS[name][0]: count}).transpose(..., *DIMS[name])

    feedthrough = repeated(D.transpose(..., "output", "input"), "D", horizon + 1).copy(deep=True)
    feedthrough[{"depth": -1}] = 0.0
    layers = {"A": repeated(A, "A", horizon), "B": repeated(B, "B", horizon)}
    layers |= {"C": repeated(C, "C", horizon + 1), "D": feedthrough}
    order = np.minimum(rank, A.sizes["state"])
    return check(
        xr.Dataset(layers)
        .assign_coords(layer=np.arange(horizon), depth=np.arange(horizon + 1))
        .assign_coords(order=order.expand_dims(depth=horizon + 1).transpose(..., "depth"))
        .assign_attrs(STAMP)
    )
