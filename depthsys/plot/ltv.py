"""Figures of linear time-varying systems: Gramians, Hankel values, maps, errors of reduction."""

from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch
from matplotlib.ticker import MaxNLocator

from depthsys.plot.style import (
    BLACK,
    GREY,
    SKY,
    STYLES,
    basis_styles,
    check_dims,
    colour_bar,
    coordinate,
    depth_axis,
    dwarfing,
    key_above,
    legend_beside,
    log_axis,
    log_axis_with_zeros,
    log_range,
    order_axis,
    thinned,
    zero_markers,
)

_HANKEL = "Hankel singular value (output/input)"
_P_DIMS = ("depth", "state", "state_2")


def hankel_map(ax: Axes, values: xr.DataArray, *, floor: float = 1e-17) -> None:
    """Hankel singular values as a heat map over depth and index, log colours.

    Zeros (no input so far, no output to come, or a lower rank) stay blank. Values below ``floor``
    get a dot in place of a colour: they are rounding noise.

    Parameters
    ----------
    ax
        Axes; a colour bar is put beside it.
    values
        ``ltv.hankel_singular_values`` (depth, index), output/input.
    floor
        Smallest value with a colour, relative to the largest of all depths.

    Raises
    ------
    TypeError
        If ``values`` is not a DataArray.
    ValueError
        If ``values`` has other dims, or is negative or not finite, or ``floor`` is not in (0, 1).
    """
    depths, indices, sigma = _hankel(values, floor)
    shown = (sigma > 0) & (sigma >= floor * sigma.max(initial=0))
    key: list[Patch | Line2D] = [Patch(facecolor="w", edgecolor=GREY, label="exactly 0")]
    if shown.any():
        low, high = sigma[shown].min(), sigma[shown].max()
        # dark is large; the palest tenth is left out, so that no colour looks like a blank cell
        colours = ListedColormap(mpl.colormaps["viridis_r"](np.linspace(0.1, 1, 256)))
        mesh = ax.pcolormesh(
            _edges(depths),
            _edges(indices),
            np.ma.masked_array(sigma, ~shown).T,
            norm=LogNorm(low if low < high else high / 10, high),
            cmap=colours,
            rasterized=True,
        )
        colour_bar(ax, mesh, _HANKEL)
    at, index = np.nonzero((sigma > 0) & ~shown)
    if len(at):
        label = f"below {floor:.0e} of the largest: noise"
        key += ax.plot(depths[at], indices[index], ".", color=GREY, ms=4, label=label)
    ax.set_ylabel("index $i$ (1 is the largest)")
    ax.set_ylim(*_edges(indices)[[0, -1]])
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    depth_axis(ax, depths)
    key_above(ax, handles=key, ncols=2)


def hankel_lines(ax: Axes, values: xr.DataArray, *, floor: float = 1e-17) -> None:
    """Hankel singular values against depth, a line per index, log axis.

    The first eight have a style and a label of their own, the others are thin and grey. Zeros,
    and values below ``floor`` (rounding noise), are not drawn.

    Parameters
    ----------
    ax
        Axes; the legend is put to its right.
    values
        ``ltv.hankel_singular_values`` (depth, index), output/input.
    floor
        Smallest value drawn, relative to the largest of all depths.

    Raises
    ------
    TypeError
        If ``values`` is not a DataArray.
    ValueError
        If ``values`` has other dims, or is negative or not finite, or ``floor`` is not in (0, 1).
    """
    depths, indices, sigma = _hankel(values, floor)
    shown = (sigma > 0) & (sigma >= floor * sigma.max(initial=0))
    _spectrum(ax, depths, np.where(shown, sigma, np.nan), r"\sigma", indices)
    ax.set_ylabel(_HANKEL)


def gramian_eigenvalues(ax: Axes, gramian: xr.DataArray) -> None:
    """Eigenvalues of a Gramian against depth, a line per index, log axis.

    Better from the factor R (or S) than from the Gramian P (or Q): the squared singular values of
    R are known down to about 1e-28 of the largest, the eigenvalues of P only to about 1e-14. What
    is smaller at a depth is rounding noise and, as zeros, not drawn.

    Parameters
    ----------
    ax
        Axes; the legend is put to its right.
    gramian
        ``R`` or ``S`` (depth, state, column), or ``P`` or ``Q`` (depth, state, state_2): the dims
        tell the factor from the Gramian, the name tells the unit.

    Raises
    ------
    TypeError
        If ``gramian`` is not a DataArray.
    ValueError
        If it has other dims, is not finite, or is no Gramian.

    Notes
    -----
    Noise is what lies below 8 n eps of the largest eigenvalue of that depth, n states, for P, and
    below the square of that fraction for R.
    """
    dims = check_dims(gramian, "gramian", ("depth", "state", "column"), _P_DIMS)
    values, _ = _principal(gramian.transpose(*dims).values, dims[-1])
    depths = coordinate(gramian, "depth")
    _spectrum(ax, depths, np.where(values > 0, values, np.nan), r"\lambda")
    units = {"P": "of $P_k$ ((state/input)$^2$)", "Q": "of $Q_k$ ((output/state)$^2$)"}
    units |= {"R": units["P"], "S": units["Q"]}
    ax.set_ylabel(f"eigenvalue {units.get(str(gramian.name), 'of the Gramian (unit squared)')}")


def energy_ellipsoid(ax: Axes, gramian: xr.DataArray, *, states: tuple[int, int] = (0, 1)) -> None:
    r"""The states that inputs of energy 1 reach, seen on two of them.

    That set is :math:`\{x : x^\top P^{+} x \le 1\}` within the range of P. Its projection on two
    states is the ellipse of their 2 x 2 block of P: a segment where the block has rank 1 (to
    rounding), a point where it is zero.

    Parameters
    ----------
    ax
        Axes; gets equal aspect, so that lengths compare. The legend is put to its right.
    gramian
        Reachability Gramian of one depth: ``P`` (state, state_2) or its factor ``R`` (state,
        column), for example ``ltv.reachability_factors(system).sel(depth=8)``.
    states
        Positions of the two states, from 0.

    Raises
    ------
    TypeError
        If ``gramian`` is not a DataArray.
    ValueError
        If it has other dims (select a depth), is an observability Gramian, not finite or no
        Gramian, or ``states`` are not two different positions.
    """
    dims = check_dims(gramian, "gramian", ("state", "column"), _P_DIMS[1:])
    if gramian.name in ("Q", "S"):
        raise ValueError(
            f"`gramian` must be P or R, of reachability; got {gramian.name}, of observability. "
            "Use `ltv.reachability_factors`."
        )
    n = gramian.sizes["state"]
    if len(states) != 2 or len(set(states)) != 2 or not set(states) <= set(range(n)):
        raise ValueError(
            f"`states` must be two different positions in 0..{n - 1}; got {states}. Count from 0."
        )
    block = gramian.transpose(*dims).values[list(states)]
    block = block if dims[-1] == "column" else block[:, list(states)]
    squares, ways = _principal(block, dims[-1])
    lengths = np.sqrt(np.pad(squares, (0, 2 - len(squares))))
    if lengths[1] > 0:
        angle = np.degrees(np.arctan2(ways[1, 0], ways[0, 0]))
        shape = Ellipse((0, 0), *(2 * lengths), angle=angle, fc=(SKY, 0.4), ec=BLACK)
        ax.add_patch(shape)
    for length, way, line in zip(lengths, ways.T, ("-", "--"), strict=True):
        if length > 0:
            ends = np.outer([-length, length], way)
            ax.plot(*ends.T, ls=line, color=BLACK, marker="o", ms=4, label=f"{length:#.3g}")
    if lengths[0] == 0:
        ax.plot(0, 0, "o", color=BLACK, ms=6, label="0 (neither is reached)")
        if ax.dataLim.width == 0:  # nothing else there: any scale will do
            ax.update_datalim([(-1, -1), (1, 1)])
    for line in (ax.axhline, ax.axvline):
        line(0, color=GREY, lw=0.6, zorder=0)
    ax.margins(0.1)
    ax.set_aspect("equal", adjustable="datalim")
    names = coordinate(gramian, "state")[list(states)]
    ax.set_xlabel(f"state {names[0]} (unit of the state)")
    ax.set_ylabel(f"state {names[1]} (unit of the state)")
    ax.set_title("states reached with input energy 1")
    legend_beside(ax, "semi-axes")


def io_image(ax: Axes, matrix: xr.DataArray) -> None:
    """Image of the input-output matrix: what the input of a layer does to the output of a depth.

    A row per depth (and output), a column per layer (and input). Zero is grey, negative gains are
    darker and positive ones lighter, in greyscale too. Inputs later than the output stay blank.

    One layer whose gains are more than four times those of all others would leave these grey: then
    colours end at the largest of the others, and the colour bar and a note say so.

    Parameters
    ----------
    ax
        Axes; a colour bar is put beside it.
    matrix
        ``ltv.io_matrix`` (depth, output, layer, input), output/input.

    Raises
    ------
    TypeError
        If ``matrix`` is not a DataArray.
    ValueError
        If it has other dims or is not finite.
    """
    dims = check_dims(matrix, "matrix", ("depth", "output", "layer", "input"))
    blocks = matrix.transpose(*dims).values
    depths, layers = coordinate(matrix, "depth"), coordinate(matrix, "layer")
    n_rows, p, n_columns, m = blocks.shape
    later = (layers[None, :] > depths[:, None])[:, None, :, None]
    # only zeros are left blank: any other value above the diagonal is an error worth seeing
    image = np.ma.masked_array(blocks, later & (blocks == 0)).reshape(n_rows * p, n_columns * m)
    largest = float(abs(blocks).max(initial=0)) or 1.0
    alone, extend = dwarfing(np.moveaxis(blocks, 2, 0)), "neither"
    if alone is not None:
        extend = _cut_colours(ax, blocks[:, :, alone[0]], str(layers[alone[0]]), alone[1])
        largest = alone[1]
    drawn = ax.imshow(
        image, cmap="cividis", vmin=-largest, vmax=largest, aspect="auto", interpolation="none"
    )
    colour_bar(ax, drawn, "gain (output/input)", extend)
    sides = ((ax.yaxis, depths, p, ax.axhline), (ax.xaxis, layers, m, ax.axvline))
    for axis, labels, size, line in sides:
        shown = np.arange(0, len(labels), -(-len(labels) // 13))
        axis.set_ticks(shown * size + (size - 1) / 2, labels[shown].tolist())
        # lines between blocks, as long as they leave room for the blocks
        for k in range(1, len(labels)) if size > 1 and len(labels) <= 24 else ():
            line(k * size - 0.5, color="w", lw=0.5)
    ax.set_xlabel("layer of the input" + (f" ({m} inputs each)" if m > 1 else ""))
    ax.set_ylabel("depth of the output" + (f" ({p} outputs each)" if p > 1 else ""))


def _cut_colours(ax: Axes, gains: np.ndarray, layer: str, limit: float) -> str:
    """Say how far the gains of that layer leave the colours; which ends of the bar are open."""
    ends = [end for end in (gains.min(), gains.max()) if abs(end) > limit]
    reached = " and ".join(f"{end:.3g}" for end in ends)
    ax.annotate(
        f"layer {layer} is off the colour scale:\nit reaches {reached}",
        (0.98, 0.97),
        xycoords="axes fraction",
        ha="right",
        va="top",
        fontsize="small",
    )
    return "both" if len(ends) == 2 else "max" if ends[0] > 0 else "min"


def error_curves(ax: Axes, table: xr.Dataset) -> None:
    """Relative error of reduced models against order, a line per method, log axis.

    The grey band is what is proved: no model of that order has a smaller error than its lower
    edge, and no balanced one a larger error than its upper edge. Errors that are 0 to rounding
    (at most ten times ``resolution``) have no place on a log axis: they are open markers in a
    strip under it. Where rounding explains a bound, the legend says that it is not certified.

    Parameters
    ----------
    ax
        Axes; the legend is put to its right.
    table
        From ``ltv.compare``: ``error`` and ``upper`` (basis, order), ``lower`` (order), ``norm``
        and ``resolution``, in output/input. NaN is not drawn.

    Raises
    ------
    ValueError
        If a variable is missing, there are batch dims, or the norm is not positive.
    """
    error_lines(ax, table, _proved)
    if (text := _not_certified(table)) is not None:
        ax.plot([], [], " ", label=text)
    legend_beside(ax)


def error_lines(
    ax: Axes, table: xr.Dataset, certificates: Callable[..., None], scale: float = 1.0
) -> None:
    """Lines of `error_curves` over ``certificates(ax, names, orders, lower, upper, bottom)``.

    Errors and bounds are multiplied by the scale: 100 gives percent.
    """
    wanted = ["error", "lower", "norm", "resolution", "upper"]
    if not set(wanted) <= set(table):
        raise ValueError(
            f"`table` must hold {wanted}; got {sorted(map(str, table))}. Use `ltv.compare`."
        )
    dims = check_dims(table["error"], "table", ("basis", "order"), finite=False)
    norm = float(table["norm"])
    if not 0 < norm < np.inf:
        raise ValueError(f"`norm` must be positive; got {norm}. A system without gain has none.")
    orders, names = coordinate(table, "order"), coordinate(table, "basis")
    unit = norm / scale
    errors, upper = (table[name].transpose(*dims).values / unit for name in ("error", "upper"))
    lower, tiny = table["lower"].values / unit, 10 * float(table["resolution"]) / unit
    bottom, top = log_range(errors, upper, lower, tiny=tiny)
    certificates(ax, names, orders, lower, upper, bottom)
    zero = errors <= tiny
    with_zeros = np.flatnonzero(zero.any(axis=1)).tolist()
    styles = basis_styles([str(name) for name in names])
    for row, (name, style) in enumerate(zip(names, styles, strict=True)):
        label = str(name) if np.isfinite(errors[row]).any() else f"{name} (no value)"
        ax.plot(orders, np.where(zero[row], np.nan, errors[row]), label=label, **style)
        if row in with_zeros:
            zero_markers(ax, orders[zero[row]], with_zeros.index(row), len(with_zeros), style)
    log_axis_with_zeros(ax, bottom, top, zeros=bool(zero.any()))
    order_axis(ax, orders)
    ax.set_ylabel("error / norm of the full system")


def _not_certified(table: xr.Dataset) -> str | None:
    """What the legend says of bounds that rounding explains."""
    if str(table.attrs.get("certified", "")).startswith(
        ("not certified", "upper bound not certified")
    ):
        return "bounds or errors not certified"
    if "lower_is_certified" not in table or bool(table["lower_is_certified"].all()):
        return None
    orders = table["order"].values[~table["lower_is_certified"].values]
    return f"lower bound not certified: order {', '.join(map(str, orders))}"


def _proved(ax: Axes, names, orders, lower, upper, bottom: float) -> None:
    """The certified band and its edges, as far as they lie above ``bottom``."""
    upper = np.fmax.reduce(upper, axis=0)
    # an order without neighbours would leave no trace of a line
    tick = "_"
    drawn = upper >= bottom
    if drawn.any():
        low = np.maximum(lower, bottom)
        ax.fill_between(
            orders, low, upper, where=drawn, color=GREY, alpha=0.3, lw=0, label="proved range"
        )
        edge = np.where(upper >= bottom, upper, np.nan)
        ax.plot(orders, edge, ls="--", marker=tick, color=GREY, label="upper bound, balanced")
    edge = np.where(lower >= bottom, lower, np.nan)
    ax.plot(orders, edge, ls="-", marker=tick, color=GREY, label="lower bound, any model")


def _spectrum(ax: Axes, depths, values, symbol: str, indices=None) -> None:
    """Columns of ``values`` (depth, index) as lines; NaN is not drawn."""
    indices = np.arange(1, values.shape[1] + 1) if indices is None else indices
    drawn = [i for i in range(values.shape[1]) if np.isfinite(values[:, i]).any()]
    rest = drawn[len(STYLES) :]
    for row, (i, style) in enumerate(zip(drawn, STYLES, strict=False)):
        marks = thinned(values[:, i], row, min(len(drawn), len(STYLES)))
        label = f"${symbol}_{{{indices[i]}}}$"
        ax.plot(depths, values[:, i], label=label, markevery=marks, **style)
    for i in rest:
        label = f"${symbol}_{{{indices[i]}}}$ to ${symbol}_{{{indices[rest[-1]]}}}$"
        label = label if i == rest[0] else None
        dots: dict = {"marker": ".", "ms": 2, "markevery": thinned(values[:, i], most=200)}
        ax.plot(depths, values[:, i], color=GREY, lw=0.6, label=label, **dots)
    log_axis(ax)
    depth_axis(ax, depths)
    if drawn:
        legend_beside(ax)
    else:
        ax.annotate("all zero", (0.5, 0.5), xycoords="axes fraction", ha="center")


def _hankel(values: xr.DataArray, floor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of depths and indices, and the values (depth, index)."""
    dims = check_dims(values, "values", ("depth", "index"))
    if (values < 0).any():
        raise ValueError(
            f"`values` must be >= 0; got {float(values.min()):.3g}. Use "
            "`ltv.hankel_singular_values`."
        )
    if not 0 < floor < 1:
        raise ValueError(
            f"`floor` must be between 0 and 1; got {floor}. It is relative to the largest value."
        )
    depths, indices = coordinate(values, "depth"), coordinate(values, "index", first=1)
    return depths, indices, values.transpose(*dims).values


def _principal(values: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of a Gramian or of a factor's, largest first, noise as 0; their directions."""
    noise = 8 * values.shape[-2] * np.finfo(float).eps
    if kind == "column":
        padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])
        ways, roots, _ = np.linalg.svd(padded)
        squares, noise = roots**2, noise**2
    else:
        squares, ways = (part[..., ::-1] for part in np.linalg.eigh(values))
        size = abs(values).max(initial=0)
        skew = abs(values - np.swapaxes(values, -1, -2)).max(initial=0)
        if max(skew, -squares.min(initial=0)) > 1e-8 * size:
            raise ValueError(
                f"`gramian` must be symmetric and positive semidefinite; got a smallest eigenvalue "
                f"{squares.min():.3g} and an asymmetry of {skew:.3g}. Use "
                "`ltv.reachability_gramian`."
            )
    return np.where(squares > noise * squares[..., :1], squares, 0.0), ways


def _edges(centres: np.ndarray) -> np.ndarray:
    """Borders of cells around the centres, half way between them."""
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[centres[0] - 0.5], middle, [centres[-1] + 0.5]])
