"""Bands of neighbouring layers that are pushed alike: what they do together, and to each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.labels import aligned
from depthsys.ltv.matrix_free import MatrixFree, labels
from depthsys.ltv.plan import WHAT_IT_DOES, chosen_energy, layer_norms
from depthsys.ltv.response import gains, io_matrix
from depthsys.ltv.system import as_named, whole_number

OPERATIONS = ("add", "reflect", "clamp", "swap")


def bands(
    system: xr.Dataset | MatrixFree,
    *,
    width: int | Sequence[int] | None = None,
    operation: str = "add",
    value: ArrayLike | xr.DataArray | None = None,
    nominal: ArrayLike | xr.DataArray | None = None,
    strength: float = 1.0,
    energy: str | None = None,
) -> xr.Dataset:
    r"""What every band of neighbouring layers does to the last depth when all of it is pushed.

    A band holds the layers first, ..., first + width - 1. With "add" all of them are pushed equally
    hard along their directions, :math:`u_l = \|x_l\|`. The other operations move a readout to where
    it should be, at every layer of the band, and can be played in two ways:

    * live: at layer k they read :math:`c_k = \bar c_k + \sum_{l<k} G_{kl} u_l`, which the pushes
      before have moved already;
    * clean: they read :math:`\bar c_k`, of the run without pushes.

    "reflect" pushes :math:`u_k = 2 s (m_k - c_k)`, "clamp" :math:`u_k = s (m_k - c_k)`, with m the
    ``value`` and s the ``strength``; "swap" exchanges two coordinates, :math:`u_k = s (P c_k -
    c_k)`. A reflection and a swap are involutions: where coordinates persist from layer to layer,
    the live one undoes itself at every second layer of a band, so that a wide band does nothing, or
    the opposite of what was wanted; at s = 2 what it moves grows by -3 per layer. Live and clean
    agree for a band of one layer.

    Parameters
    ----------
    system
        A system; extra leading dims are batch dims. What reads needs as many outputs as inputs,
        output i being the readout along the direction of input i: the readout "profile" of
        ``lm.identify``.
    width
        Widths of bands; all of them, 1..L, by default.
    operation
        "add", "reflect", "clamp" or "swap" (two inputs).
    value
        Where "clamp" puts the readouts, and about which "reflect" reflects them: (output), or
        (depth, output).
    nominal
        Readouts (depth, output) of the run without pushes; ``y_ref`` of the system by default.
    strength
        1 for the whole operation.
    energy
        "relative": equally hard for "add" means the same part of the state's norm; "absolute": the
        same u. See `minimum_energy`.

    Returns
    -------
    xr.Dataset
        (first, width, ...), NaN for bands that reach beyond the last layer. For "add": ``gain``
        (output, input) of y_L per unit push of that input, relative or absolute; ``cancelled``
        (output, input), :math:`1 - |\sum_l G_l u_l| / \sum_l |G_l u_l|`, the part of the pushes
        that others of the band undo; ``energy`` (output), the least that shifts the output by one
        unit from within the band, infinite where nothing does. For the others ``live`` and
        ``clean`` (output), the shift of y_L; and ``undone``, 1 - live / clean. Bands in which a
        depth is not read are NaN: a profile does not read depth 0.

    Raises
    ------
    ValueError
        If an argument does not fit, or nothing says what is read without pushes.

    References
    ----------
    .. [1] TransformerLens, issue 1746: swaps that re-read live coordinates cancel over bands of
       even width.

    Examples
    --------
    A coordinate that persists, at 3 and reflected about 1, is at -1 after one layer, back at 3
    after two:

    >>> from depthsys import ltv
    >>> s = ltv.constant([[1.0]], [[1.0]], [[1.0]], horizon=4)
    >>> found = ltv.bands(s, operation="reflect", value=1.0, nominal=[[3.0]] * 5)
    >>> found.live.sel(first=0, output=0).values, found.clean.sel(first=0, output=0).values
    (array([-4.,  0., -4.,  0.]), array([ -4.,  -8., -12., -16.]))
    """
    if operation not in OPERATIONS:
        raise ValueError(f"`operation` must be one of {OPERATIONS}; got {operation!r}. Pick one.")
    first = labels(system, "layer")
    widths = _widths(width, len(first))
    if operation == "add":
        for name, given in (("value", value), ("nominal", nominal)):
            if given is not None:
                raise ValueError(
                    f"`{name}` must be left out for the operation 'add', which reads nothing; got "
                    f"{given}. Name another operation."
                )
        found = _added(system, chosen_energy(system, energy), strength)
    else:
        found = _moved(system, operation, value, nominal, strength)
    found = found.isel(width=widths - 1).assign_coords(first=first, width=widths)
    if "output" not in found.coords:
        found = found.assign_coords(output=np.arange(found.sizes["output"]))
    attrs = {"method": "bands", "operation": operation, "strength": float(strength)}
    attrs |= {name: WHAT_IT_DOES[name] for name in ("hook", "positions")}
    return found.assign_attrs(attrs | found.attrs)


def _widths(width: int | Sequence[int] | None, n_layers: int) -> np.ndarray:
    if width is None:
        return np.arange(1, n_layers + 1)
    given = [whole_number(one, "width") for one in np.atleast_1d(np.asarray(width)).tolist()]
    if not given or max(given) > n_layers:
        raise ValueError(
            f"`width` must be widths of bands of {n_layers} layers, at least one; got {width}. "
            "Leave it out for all."
        )
    return np.array(given)


def _added(system: xr.Dataset | MatrixFree, energy: str, strength: float) -> xr.Dataset:
    """Sums over bands of what equally hard pushes do."""
    gain = gains(system)
    norm = xr.DataArray(np.ones(gain.sizes["layer"]), dims=["layer"])
    if energy == "relative" and isinstance(system, xr.Dataset):
        norm = layer_norms(system)
    bare = [each.drop_vars("layer", errors="ignore") for each in (gain, norm)]
    part = strength * bare[0] * bare[1]
    total, sizes, power = (_banded(x) for x in (part, abs(part), (part**2).sum("input")))
    with np.errstate(divide="ignore"):
        least = strength**2 / power
    cancelled = (1 - abs(total) / sizes).where(sizes > 0, sizes)
    found = {"gain": total, "cancelled": cancelled, "energy": least}
    return xr.Dataset(found, attrs={"energy": energy})


def _banded(part: xr.DataArray) -> xr.DataArray:
    """Sums (..., first, width) over bands of (..., layer); NaN beyond the last layer."""
    dims = [dim for dim in part.dims if dim != "layer"]
    values = part.transpose(*dims, "layer").values
    n = values.shape[-1]
    found = np.full((*values.shape, n), np.nan)
    total = np.zeros(values.shape)
    for width in range(1, n + 1):
        ends = n - width + 1
        total = total[..., :ends] + values[..., width - 1 :]
        found[..., :ends, width - 1] = total
    coords = {name: c for name, c in part.coords.items() if "layer" not in c.dims}
    banded = xr.DataArray(found, dims=[*dims, "first", "width"], coords=coords)
    return banded.transpose("first", "width", ...)


def _moved(
    system: xr.Dataset | MatrixFree,
    operation: str,
    value: ArrayLike | xr.DataArray | None,
    nominal: ArrayLike | xr.DataArray | None,
    strength: float,
) -> xr.Dataset:
    """What is read and moved at every layer of a band, live and clean."""
    maps = io_matrix(system)
    sizes = {"depth": maps.sizes["depth"], "output": maps.sizes["output"]}
    m = maps.sizes["input"]
    if sizes["output"] != m or (operation == "swap" and m != 2):
        wanted = "two inputs and outputs" if operation == "swap" else "as many outputs as inputs"
        raise ValueError(
            f"`system` must have {wanted} for {operation!r}; got {m} inputs and "
            f"{sizes['output']} outputs. Identify it with the readout 'profile'."
        )
    read = _nominal(system, nominal, sizes)
    if (value is None) != (operation == "swap"):
        cure = "Leave it out" if operation == "swap" else "Say where the readout should be"
        raise ValueError(
            f"`value` must be {'left out' if operation == 'swap' else 'given'} for {operation!r}; "
            f"got {value}. {cure}."
        )
    wanted = as_named(0.0 if value is None else value, "value", {}, {"output": m}, sizes)
    wanted = aligned(wanted, "value", system)
    wanted = wanted.broadcast_like(xr.DataArray(np.empty(tuple(sizes.values())), dims=[*sizes]))
    bare = [each.drop_vars(["depth", "layer"], errors="ignore") for each in (maps, read, wanted)]
    names = {"live": True, "clean": False}
    found = {
        name: xr.apply_ufunc(
            _played,
            *bare,
            _inverse_gram(system, sizes),
            kwargs={"operation": operation, "strength": strength, "live": live},
            input_core_dims=[
                ["depth", "output", "layer", "input"],
                ["depth", "output"],
                ["depth", "output"],
                ["depth", "output", "input"],
            ],
            output_core_dims=[["first", "width", "output"]],
            vectorize=True,
        )
        for name, live in names.items()
    }
    clean = found["clean"]
    undone = (1 - found["live"] / clean.where(clean != 0)).where(clean.notnull())
    return xr.Dataset(found | {"undone": undone}).transpose("first", "width", "output", ...)


def _nominal(
    system: xr.Dataset | MatrixFree,
    nominal: ArrayLike | xr.DataArray | None,
    sizes: dict[str, int],
) -> xr.DataArray:
    """The readouts (depth, output) without pushes, NaN where a depth is not read."""
    given = nominal is not None
    if not given and (isinstance(system, MatrixFree) or "y_ref" not in system):
        raise ValueError(
            "`nominal` must be given for a system without 'y_ref', the readouts without pushes; "
            "got None. Give them, (depth, output)."
        )
    told = nominal if given or isinstance(system, MatrixFree) else system["y_ref"]
    read = as_named(told, "nominal", sizes)
    read = aligned(read, "nominal", system).drop_vars("depth", errors="ignore")
    if isinstance(system, MatrixFree):
        rows = np.array([np.any(c, axis=1) for c in system.C])
        seen = xr.DataArray(rows, dims=["depth", "output"])
    else:
        C = system["C"]
        seen = (C != 0).any("state").drop_vars(list(C.coords), errors="ignore")
    # nothing has moved at the first depth: what is told of it can be used though it is not read
    first = xr.DataArray(np.arange(sizes["depth"]) == 0, dims=["depth"])
    return read.where(seen | first if given else seen)


def _inverse_gram(system: xr.Dataset | MatrixFree, sizes: dict[str, int]) -> xr.DataArray:
    """Which u moves the readouts (depth, output, input) by one: (V'V)^-1, as V u moves V'x."""
    dims = ("depth", "output", "input")
    m = sizes["output"]
    if isinstance(system, MatrixFree) or "v" not in system:
        return xr.DataArray(np.broadcast_to(np.eye(m), (sizes["depth"], m, m)), dims=dims)
    v = system["v"].fillna(0.0).transpose("depth", "feature", "input").values
    return xr.DataArray(np.linalg.pinv(v.swapaxes(1, 2) @ v), dims=dims)


def _played(
    maps: np.ndarray,
    nominal: np.ndarray,
    value: np.ndarray,
    inverse: np.ndarray,
    *,
    operation: str,
    strength: float,
    live: bool,
) -> np.ndarray:
    """Shift (first, width, output) of the last output; a band is the start of every wider one."""
    n, m = maps.shape[-2:]
    found = np.full((n, n, maps.shape[1]), np.nan)
    for first in range(n):
        u = np.zeros((n, m))
        for layer in range(first, n):
            read = nominal[layer]
            if live:
                read = read + np.einsum("oli,li->o", maps[layer, :, first:layer], u[first:layer])
            if operation == "swap":
                coordinates = inverse[layer] @ read
                u[layer] = strength * (coordinates[::-1] - coordinates)
            else:
                way = 2.0 if operation == "reflect" else 1.0
                u[layer] = strength * way * (inverse[layer] @ (value[layer] - read))
            found[first, layer - first] = np.einsum("oli,li->o", maps[-1], u)
    return found
