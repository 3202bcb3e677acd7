"""Datasets -> matplotlib Axes, for every wing. Imports none of them.

Each function draws into given Axes and returns nothing; `save` writes a figure as PNG and SVG.
Curves differ in marker and line style as well as in colour, so that they survive greyscale.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator

# Okabe and Ito's palette: distinct for colour-blind readers, and in lightness.
BLACK, BLUE, ORANGE, GREY, SKY = "#000000", "#0072B2", "#E69F00", "#8C8C8C", "#56B4E9"
GREEN, RED, PURPLE = "#009E73", "#D55E00", "#CC79A7"
_STYLES: list[dict] = [
    {"color": color, "marker": marker, "ls": line, "ms": 5, "lw": 1.3}
    for color, marker, line in (
        (BLACK, "o", "-"),
        (BLUE, "s", "--"),
        (ORANGE, "^", "-."),
        (RED, "x", "-"),
        (SKY, "D", ":"),
        (GREEN, "+", "--"),
        (PURPLE, "v", "-"),
        (BLACK, "*", ":"),
    )
]
_HANKEL = "Hankel singular value (output/input)"


def gain_curves(axes: tuple[Axes, Axes], gains: xr.Dataset) -> None:
    """Measured, exact linear and surrogate gain per layer: all layers, and without layer 0.

    Parameters
    ----------
    axes
        Two Axes. The second leaves out layer 0, whose gain often dwarfs the others (the
        embedding is short, so a unit injection is a large change).
    gains
        ``measured_gain`` and ``linear_gain`` (prompt, layer), ``surrogate_gain`` (layer). The band
        holds the middle 80 % of prompts.
    """
    for skip, ax in enumerate(axes):
        part = gains.isel(layer=slice(skip, None))
        layers = part["layer"].values
        measured = part["measured_gain"]
        low, high = measured.quantile([0.1, 0.9], dim="prompt").values
        ax.fill_between(layers, low, high, color=GREY, alpha=0.3, lw=0, label="80 % of prompts")
        mean = measured.mean("prompt")
        ax.plot(layers, mean, "o-", color=BLACK, ms=7, label="measured, mean")
        linear = part["linear_gain"].mean("prompt")
        ax.plot(layers, linear, "x--", color=ORANGE, ms=7, mew=2, label="exact linear, mean")
        ax.plot(layers, part["surrogate_gain"], "s:", color=BLUE, ms=5, mfc="w", label="surrogate")
        ax.axhline(0, color=GREY, lw=0.8)
        _layer_axis(ax)
        ax.set_ylabel("gain: readout per unit injection")
        ax.set_title("all layers" if skip == 0 else "without layer 0")
    axes[0].legend(frameon=False, fontsize="small")


def error_budget(ax: Axes, gains: xr.Dataset) -> None:
    """Where the error of the surrogate comes from: ``error_budget`` (part, layers, bound)."""
    budget = 100 * gains["error_budget"]
    parts = list(budget["part"].values)
    offset = {"all": -0.2, "without_layer_0": 0.2}
    styles: dict[str, dict] = {
        "all": {"color": BLUE},
        "without_layer_0": {"facecolor": "w", "edgecolor": BLUE, "hatch": "///"},
    }
    rows = np.arange(len(parts))
    top = float(budget.max())
    for layers, shift in offset.items():
        table = budget.sel(layers=layers)
        value = table.sel(bound="estimate").values
        low, high = (table.sel(bound=b).values for b in ("low", "high"))
        ax.barh(rows + shift, value, height=0.38, label=layers.replace("_", " "), **styles[layers])
        known = np.isfinite(low)
        error = np.clip([value - low, high - value], 0, None)[:, known]
        ax.errorbar(
            value[known], rows[known] + shift, xerr=error, fmt="none", ecolor="k", capsize=2
        )
        for row, number, end in zip(rows, value, np.where(known, high, value), strict=True):
            text = "0 (to rounding)" if number < 1e-8 else f"{number:.2g} %"
            at = (max(number, end), row + shift)
            ax.annotate(text, at, (4, 0), textcoords="offset points", va="center", fontsize="small")
    ax.set_yticks(rows, parts)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.2 * max(top, 1e-3))
    ax.set_xlabel("relative L2 error over layers (%)")
    # above the bars: inside, it would cover one of them for some data
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def schedule(ax: Axes, energies: xr.Dataset) -> None:
    """The minimum-energy injection per layer: ``u`` (layer) or (layer, input)."""
    u = energies["u"]
    if "input" not in u.dims:
        u = u.expand_dims(input=1)
    n_inputs = u.sizes["input"]
    hatches = ["", "///", "...", "xxx"]
    for i in range(n_inputs):
        shift = 0.7 * ((i + 0.5) / n_inputs - 0.5)
        style: dict = {"color": BLUE} if i == 0 else {"facecolor": "w", "edgecolor": BLUE}
        values = u.isel(input=i)
        hatch = hatches[i % len(hatches)]
        label = f"input {i}"
        ax.bar(u["layer"] + shift, values, width=0.7 / n_inputs, hatch=hatch, label=label, **style)
    if n_inputs > 1:
        ax.legend(frameon=False, fontsize="small")
    ax.axhline(0, color=BLACK, lw=0.8)
    _layer_axis(ax)
    ax.set_ylabel("injection $u_l$ (unit of the state)")
    if "target" in energies.attrs:
        shift = float(energies.attrs["target"])
        ax.set_title(f"minimum-energy schedule for a shift of {shift:.3g}")


def energies(ax: Axes, energies: xr.Dataset) -> None:
    """Energy of every schedule as a multiple of the minimum-energy schedule's, log scale.

    Uses ``multiple``, ``monotone``, ``layer_pushed`` (schedule) and attrs ``target``, ``energy``.
    """
    multiple = energies["multiple"].values
    names = [
        str(name).replace("_", " ") + (f" ({layer})" if layer >= 0 else "")
        for name, layer in zip(
            energies["schedule"].values, energies["layer_pushed"].values, strict=True
        )
    ]
    rows = np.arange(len(names))
    finite = np.isfinite(multiple)
    # bars on a log axis start at 1: shorter than the reference points left, longer points right
    known = multiple[finite]
    ax.barh(rows[finite], known - 1, left=1, color=BLUE, height=0.6)
    ax.plot(known, rows[finite], "o", color=BLACK, ms=5)
    ax.set_xscale("log")
    low, high = (known.min(), known.max()) if len(known) else (1.0, 1.0)
    ax.set_xlim(min(0.5, low / 3), max(10.0, high * 30))
    for row, value, smooth in zip(rows, multiple, energies["monotone"].values, strict=True):
        text = f"{value:.3g} x" if np.isfinite(value) else "not reached"
        text += "" if smooth else " (not monotone)"
        at = max(value, 1.0) if np.isfinite(value) else 1.0
        ax.annotate(text, (at, row), (6, 0), textcoords="offset points", va="center", fontsize=9)
    ax.axvline(1, color=BLACK, lw=1)
    ax.set_yticks(rows, names)
    ax.invert_yaxis()
    ax.set_xlabel("energy on the full model / that of the minimum-energy schedule")
    ax.set_title(f"shift of {energies.attrs['target']:.3g}, {energies.attrs['energy']} energy")


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
        ax.figure.colorbar(mesh, ax=ax, label=_HANKEL)
    at, index = np.nonzero((sigma > 0) & ~shown)
    if len(at):
        label = f"below {floor:.0e} of the largest: noise"
        key += ax.plot(depths[at], indices[index], ".", color=GREY, ms=4, label=label)
    ax.set_ylabel("index $i$ (1 is the largest)")
    ax.set_ylim(*_edges(indices)[[0, -1]])
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _depth_axis(ax, depths)
    ax.legend(
        handles=key,
        frameon=False,
        fontsize="small",
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
    )


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
    dims = _check_dims(gramian, "gramian", ("depth", "state", "column"), _P_DIMS)
    values, _ = _principal(gramian.transpose(*dims).values, dims[-1])
    depths = _labels(gramian, "depth")
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
    dims = _check_dims(gramian, "gramian", ("state", "column"), _P_DIMS[1:])
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
    names = _labels(gramian, "state")[list(states)]
    ax.set_xlabel(f"state {names[0]} (unit of the state)")
    ax.set_ylabel(f"state {names[1]} (unit of the state)")
    ax.set_title("states reached with input energy 1")
    _legend_beside(ax, "semi-axes")


def io_image(ax: Axes, matrix: xr.DataArray) -> None:
    """Image of the input-output matrix: what the input of a layer does to the output of a depth.

    A row per depth (and output), a column per layer (and input). Zero is grey, negative gains are
    darker and positive ones lighter, in greyscale too. Inputs later than the output stay blank.

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
    dims = _check_dims(matrix, "matrix", ("depth", "output", "layer", "input"))
    blocks = matrix.transpose(*dims).values
    depths, layers = _labels(matrix, "depth"), _labels(matrix, "layer")
    n_rows, p, n_columns, m = blocks.shape
    later = (layers[None, :] > depths[:, None])[:, None, :, None]
    # only zeros are left blank: any other value above the diagonal is an error worth seeing
    image = np.ma.masked_array(blocks, later & (blocks == 0)).reshape(n_rows * p, n_columns * m)
    largest = float(abs(blocks).max(initial=0)) or 1.0
    drawn = ax.imshow(
        image, cmap="cividis", vmin=-largest, vmax=largest, aspect="auto", interpolation="none"
    )
    ax.figure.colorbar(drawn, ax=ax, label="gain (output/input)")
    sides = ((ax.yaxis, depths, p, ax.axhline), (ax.xaxis, layers, m, ax.axvline))
    for axis, labels, size, line in sides:
        shown = np.arange(0, len(labels), -(-len(labels) // 13))
        axis.set_ticks(shown * size + (size - 1) / 2, labels[shown].tolist())
        # lines between blocks, as long as they leave room for the blocks
        for k in range(1, len(labels)) if size > 1 and len(labels) <= 24 else ():
            line(k * size - 0.5, color="w", lw=0.5)
    ax.set_xlabel("layer of the input" + (f" ({m} inputs each)" if m > 1 else ""))
    ax.set_ylabel("depth of the output" + (f" ({p} outputs each)" if p > 1 else ""))


def error_curves(ax: Axes, table: xr.Dataset) -> None:
    """Relative error of reduced models against order, a line per method, log axis.

    The grey band is what is proved: no model of that order has a smaller error than its lower
    edge, and no balanced one a larger error than its upper edge. Errors that are 0 to rounding
    (at most ten times ``resolution``) have no place on a log axis: they are open markers in a
    strip under it.

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
    wanted = ["error", "lower", "norm", "resolution", "upper"]
    if not set(wanted) <= set(table):
        raise ValueError(
            f"`table` must hold {wanted}; got {sorted(map(str, table))}. Use `ltv.compare`."
        )
    dims = _check_dims(table["error"], "table", ("basis", "order"), finite=False)
    norm = float(table["norm"])
    if not 0 < norm < np.inf:
        raise ValueError(f"`norm` must be positive; got {norm}. A system without gain has none.")
    orders, names = _labels(table, "order"), _labels(table, "basis")
    errors, upper = (table[name].transpose(*dims).values / norm for name in ("error", "upper"))
    upper = np.fmax.reduce(upper, axis=0)
    lower, resolution = table["lower"].values / norm, float(table["resolution"]) / norm
    tiny = 10 * resolution
    known = [part[part > tiny] for part in (errors, upper, lower)]
    drawn = np.concatenate([*known, [1.0] if not any(map(len, known)) else []])
    bottom, top = drawn.min() / 2, drawn.max() * 2
    _proved(ax, orders, lower, upper, bottom)
    noise = errors <= tiny
    for row, name in enumerate(names):
        style = _STYLES[row % len(_STYLES)]
        ax.plot(orders, np.where(noise[row], np.nan, errors[row]), label=str(name), **style)
        if noise[row].any():
            at = orders[noise[row]]
            # each method has its own height in the strip, so that none hides another
            height = np.full(len(at), _STRIP * (row + 0.5) / len(names))
            style = {**style, "ls": "none", "mfc": "w"}
            ax.plot(at, height, transform=ax.get_xaxis_transform(), **style)
    _log_axis(ax)
    ax.set_ylim(bottom, top)
    if noise.any():
        _strip_of_zeros(ax, bottom, top)
    ax.set_xlabel("order (number of states)")
    _count_axis(ax, orders)
    ax.set_ylabel("error / norm of the full system")
    _legend_beside(ax)


_P_DIMS = ("depth", "state", "state_2")
_STRIP = 0.15  # height of the strip for errors of 0, in heights of the Axes


def _proved(ax: Axes, orders, lower, upper, bottom: float) -> None:
    """The certified band and its edges, as far as they lie above ``bottom``."""
    tick = "_" if len(orders) == 1 else ""
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


def _strip_of_zeros(ax: Axes, bottom: float, top: float) -> None:
    shift = (bottom / top) ** (_STRIP / (1 - _STRIP))
    for minor in (False, True):
        ticks = [tick for tick in ax.get_yticks(minor=minor) if bottom <= tick <= top]
        ax.set_yticks(ticks, minor=minor)
    ax.set_ylim(bottom * shift, top)
    ax.plot([0, 1], [_STRIP, _STRIP], color=GREY, lw=0.8, transform=ax.transAxes)
    ax.annotate(
        "0 to rounding",
        (1, _STRIP / 2),
        (6, 0),
        xycoords="axes fraction",
        textcoords="offset points",
        va="center",
        fontsize="small",
    )


def _spectrum(ax: Axes, depths, values, symbol: str, indices=None) -> None:
    """Columns of ``values`` (depth, index) as lines; NaN is not drawn."""
    indices = np.arange(1, values.shape[1] + 1) if indices is None else indices
    drawn = [i for i in range(values.shape[1]) if np.isfinite(values[:, i]).any()]
    rest = drawn[len(_STYLES) :]
    for i, style in zip(drawn, _STYLES, strict=False):
        ax.plot(depths, values[:, i], label=f"${symbol}_{{{indices[i]}}}$", **style)
    for i in rest:
        label = f"${symbol}_{{{indices[i]}}}$ to ${symbol}_{{{indices[rest[-1]]}}}$"
        label = label if i == rest[0] else None
        ax.plot(depths, values[:, i], color=GREY, lw=0.6, marker=".", ms=2, label=label)
    _log_axis(ax)
    _depth_axis(ax, depths)
    if drawn:
        _legend_beside(ax)
    else:
        ax.annotate("all zero", (0.5, 0.5), xycoords="axes fraction", ha="center")


def _hankel(values: xr.DataArray, floor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of depths and indices, and the values (depth, index)."""
    dims = _check_dims(values, "values", ("depth", "index"))
    if (values < 0).any():
        raise ValueError(
            f"`values` must be >= 0; got {float(values.min()):.3g}. Use "
            "`ltv.hankel_singular_values`."
        )
    if not 0 < floor < 1:
        raise ValueError(
            f"`floor` must be between 0 and 1; got {floor}. It is relative to the largest value."
        )
    depths, indices = _labels(values, "depth"), _labels(values, "index", first=1)
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


def _check_dims(
    values: xr.DataArray, name: str, *allowed: tuple[str, ...], finite: bool = True
) -> tuple[str, ...]:
    """The one of the allowed dims that the array has, in that order."""
    if not isinstance(values, xr.DataArray):
        raise TypeError(
            f"`{name}` must be a DataArray with dims {' or '.join(map(str, allowed))}; got "
            f"{type(values).__name__}. Plots read dims by name."
        )
    for dims in allowed:
        if set(dims) == set(values.dims):
            if finite and not np.isfinite(values.values).all():
                raise ValueError(
                    f"`{name}` must be finite; got nan or inf. Look at where it comes from."
                )
            return dims
    extra = [d for d in values.dims if not any(d in dims for dims in allowed)]
    cure = f"Select one, as in `.isel({extra[0]}=0)`." if extra else "Rename or select dims."
    raise ValueError(
        f"`{name}` must have dims {' or '.join(map(str, allowed))}; got {values.dims}. {cure}"
    )


def _labels(values: xr.DataArray | xr.Dataset, dim: str, first: int = 0) -> np.ndarray:
    known = dim in values.coords
    return values[dim].values if known else np.arange(first, first + values.sizes[dim])


def _edges(centres: np.ndarray) -> np.ndarray:
    """Borders of cells around the centres, half way between them."""
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[centres[0] - 0.5], middle, [centres[-1] + 0.5]])


def _depth_axis(ax: Axes, depths: np.ndarray) -> None:
    ax.set_xlabel("depth $k$ (layers passed)")
    _count_axis(ax, depths)


def _log_axis(ax: Axes) -> None:
    ax.set_yscale("log")
    # less than two decades hold one power of ten or none: label steps between them too
    ax.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(2, 0.5)))


def _count_axis(ax: Axes, counts: np.ndarray) -> None:
    ax.set_xlim(counts[0] - 0.5, counts[-1] + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _legend_beside(ax: Axes, title: str | None = None) -> None:
    """A legend that hides no data: to the right of the Axes."""
    ax.legend(frameon=False, fontsize="small", title=title, loc="upper left", bbox_to_anchor=(1, 1))


def _layer_axis(ax: Axes) -> None:
    ax.set_xlabel("layer of the injection")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def figure(
    width: float = 6.4, height: float = 3.8, columns: int = 1, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of Axes, row by row, outside pyplot's global state."""
    fig = Figure(figsize=(width, height), layout="constrained")
    axes = list(np.asarray(fig.subplots(rows, columns, squeeze=False)).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes


def save(fig: Figure, path: Path, kind: str) -> None:
    """Write a figure; ``kind`` is "png" or "svg" (text stays text, and runs are reproducible)."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "depthsys"}):
        metadata = {"Date": None} if kind == "svg" else None
        fig.savefig(path, format=kind, dpi=150, metadata=metadata)
