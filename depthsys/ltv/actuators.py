"""Which layers to act on: greedy choice beside the proven optimum."""

from dataclasses import dataclass, replace
from itertools import combinations, islice
from math import comb
from typing import Protocol

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.controllability import RTOL
from depthsys.ltv.gramians import System, used_values
from depthsys.ltv.labels import aligned
from depthsys.ltv.matrix_free import labels, transposed
from depthsys.ltv.rounding import CERTIFIABLE, SAMPLES, certificate
from depthsys.ltv.system import as_named, plain
from depthsys.ltv.terminal_gains import known_gains

COORDINATES = (
    "the objective is of the state and depends on its coordinates: another basis of the same "
    "system may choose other layers; Trace(of='output') and Energy(target=...) do not"
)


class Objective(Protocol):
    """A value of a set of layers, larger for better, from their maps to the last depth."""

    @property
    def of(self) -> str:
        """What is measured: "state" or "output"."""
        ...

    def guarantee(self, n_rows: int) -> str:
        """What is proved about the greedy choice."""
        ...

    def value(self, blocks: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Of sets ``chosen`` (..., set, layer), from ``blocks`` (..., layer, row, input)."""
        ...


def _check_of(of: str) -> None:
    if of not in ("state", "output"):
        raise ValueError(
            f"`of` must be 'state' or 'output'; got {of!r}. Outputs depend on no coordinates."
        )


@dataclass(frozen=True)
class Trace:
    """Average controllability ``tr P_L``: a sum over layers, so the greedy choice is optimal.

    It measures states, and so depends on their coordinates: another basis of the same system may
    choose other layers. ``Trace(of="output")`` is ``tr C_L P_L C_L'``, the energy of the last
    output per white unit input, which depends on no basis.
    """

    of: str = "state"

    def __post_init__(self) -> None:
        """Check what is measured."""
        _check_of(self.of)

    def __repr__(self) -> str:
        return "Trace()" if self.of == "state" else f"Trace(of={self.of!r})"

    def guarantee(self, n_rows: int) -> str:
        """Modular."""
        return "optimal: the trace is a sum over layers"

    def value(self, blocks: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Sum of squared gains."""
        return (chosen @ (blocks**2).sum((-2, -1))[..., None])[..., 0]


@dataclass(frozen=True)
class Volume:
    """``log det(I + P_L / floor^2)``: directions reached well above ``floor`` (state/input) count.

    Monotone and submodular in the layers, so the greedy choice has at least 1 - 1/e of the best
    value (Nemhauser, Wolsey and Fisher 1978; for Gramians: Summers, Cortesi and Lygeros 2016,
    doi:10.1109/TCNS.2015.2453711). It measures states, in their coordinates;
    ``Volume(floor, of="output")`` measures the last output instead, in output/input.
    """

    floor: float
    of: str = "state"

    def __post_init__(self) -> None:
        """Check the floor, and what is measured."""
        _check_of(self.of)
        if not 0 < self.floor < np.inf:
            raise ValueError(
                f"`floor` must be a number > 0; got {self.floor}. Try 0.01 times ||R||."
            )

    def __repr__(self) -> str:
        of = "" if self.of == "state" else f", of={self.of!r}"
        return f"Volume(floor={self.floor!r}{of})"

    def guarantee(self, n_rows: int) -> str:
        """Submodular."""
        return "at least 1 - 1/e of the optimum: monotone and submodular"

    def value(self, blocks: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Log determinant on the smaller side."""
        *_, n_layers, n_rows, n_inputs = blocks.shape
        scaled = blocks / self.floor
        if n_rows <= n_layers * n_inputs:
            each = scaled @ transposed(scaled)
            flat = each.reshape(*each.shape[:-2], n_rows * n_rows)
            gram = (chosen.astype(float) @ flat).reshape(*chosen.shape[:-1], n_rows, n_rows)
        else:
            columns = np.moveaxis(scaled, -3, -2)
            columns = columns.reshape(*columns.shape[:-2], n_layers * n_inputs)
            mask = np.repeat(chosen, n_inputs, axis=-1)
            full = (transposed(columns) @ columns)[..., None, :, :]
            gram = full * mask[..., :, None] * mask[..., None, :]
        return np.linalg.slogdet(gram + np.eye(gram.shape[-1]))[1]


@dataclass(frozen=True)
class Energy:
    """``1 / energy`` of the least-energy input that shifts y_L by ``target``.

    Where the chosen layers cannot reach it, minus the relative residual in the unit of the target:
    any set that reaches the target is better than any that does not. Whether it does is decided
    with each output in units of what all layers together can do. With one output the value is a
    sum over layers.
    """

    target: ArrayLike
    rtol: float = RTOL

    @property
    def of(self) -> str:
        """Outputs are measured."""
        return "output"

    def guarantee(self, n_rows: int) -> str:
        """Modular with one output."""
        return "optimal: with one output the gains add up" if n_rows == 1 else "none is proved"

    def beside(self, system: System) -> "Energy":
        """The same with the target in the order of the system's outputs, if it has labels."""
        if not isinstance(self.target, xr.DataArray):
            return self
        target = as_named(self.target, "target", {"output": None})
        return replace(self, target=aligned(target, "target", system).values)

    def value(self, blocks: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Inverse least energy, or minus the residual."""
        n_rows, n_inputs = blocks.shape[-2:]
        target = np.atleast_1d(plain(self.target, "target").astype(np.float64))
        if target.shape != (n_rows,) or not np.isfinite(target).all() or not target.any():
            raise ValueError(
                f"`target` must be {n_rows} finite numbers, one per output, not all zero; got "
                f"{self.target!r}. Give the wanted shift of y_L."
            )
        columns = np.moveaxis(blocks, -3, -2).reshape(*blocks.shape[:-3], n_rows, -1)
        # outputs in units of what all layers together can do: no unit of theirs decides a rank
        size = np.linalg.norm(columns, axis=-1)
        scale = 1 / np.where(size > 0, size, 1.0)
        hopeless = ((size == 0) & (target != 0)).any(-1)[..., None]
        mask = np.repeat(chosen, n_inputs, axis=-1)[..., None, :]
        wanted = np.broadcast_to(target * scale, scale.shape)[..., None, :]
        energy, miss = self._least((columns * scale[..., None])[..., None, :, :] * mask, wanted)
        reached = (miss <= self.rtol) & ~hopeless
        if not reached.all():
            miss = self._least(columns[..., None, :, :] * mask, target)[1]
        return np.where(reached, 1.0 / np.where(reached, energy, 1.0), -miss)

    def _least(self, columns: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The least energy and the relative residual of maps (..., row, column)."""
        U, s, _ = np.linalg.svd(columns, full_matrices=False)
        used = used_values(s, self.rtol)
        share = (transposed(U) @ target[..., None])[..., 0] * used
        energy = ((share / np.where(used, s, 1.0)) ** 2).sum(-1)
        inside = (U @ share[..., None])[..., 0]
        return energy, np.linalg.norm(inside - target, axis=-1) / np.linalg.norm(target, axis=-1)


def actuator_layers(
    system: System, count: int, objective: Objective, *, max_subsets: int = 20_000
) -> xr.Dataset:
    """Which layers to act on: the greedy choice, beside the proven optimum where it is countable.

    Parameters
    ----------
    system
        A system.
    count
        How many layers, 1..L.
    objective
        `Trace()`, `Volume(floor=...)` or `Energy(target=...)`.
    max_subsets
        All subsets of that size are tried if there are at most so many; else the optimum is left
        out and attrs say so.

    Returns
    -------
    xr.Dataset
        ``layers`` (pick), adding the best layer at each step, and ``value`` (pick) after each;
        ``kept_layers`` (pick) and ``kept_value``, removing the least useful layer from all until
        ``count`` are left, which is often far better for an `Energy` of several outputs;
        ``optimal_layers`` (pick) and ``optimum`` where all subsets were tried; ``resolution``, what
        rounding of the gains explains in these values of ``count`` layers (the largest of them, in
        their unit), estimated with random errors. attrs: ``guarantee`` (of ``layers``),
        ``subsets``, ``certified``, "yes", or "not certified" and why, where that is more than
        0.1 % of a value, and ``note`` where the objective depends on the coordinates of the state.

    Raises
    ------
    ValueError
        If ``count`` is not in 1..L.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=5)
    >>> ltv.actuator_layers(s, 2, ltv.Trace()).layers.values
    array([4, 3])
    """
    names = labels(system, "layer")
    n_layers = len(names)
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
        raise ValueError(f"`count` must be a whole number; got {count!r}. How many layers?")
    if not 1 <= count <= n_layers:
        raise ValueError(f"`count` must be in 1..{n_layers}, the layers; got {count}. Take fewer.")
    if isinstance(objective, type) or not hasattr(objective, "value"):
        raise TypeError(
            f"`objective` must be `Trace()`, `Volume(floor=...)` or `Energy(target=...)`; got "
            f"{objective!r}. Make one of these."
        )
    aim: Objective = objective
    if isinstance(objective, Energy):
        aim = objective.beside(system)
    blocks, _, lost = known_gains(system, aim.of)
    dims = ["layer", aim.of, "input"]
    picks, value = xr.apply_ufunc(
        lambda b: _greedy(b, int(count), aim),
        blocks,
        input_core_dims=[dims],
        output_core_dims=[["pick"], ["pick"]],
    )
    kept, kept_value = xr.apply_ufunc(
        lambda b: _eliminate(b, int(count), aim),
        blocks,
        input_core_dims=[dims],
        output_core_dims=[["pick"], []],
    )
    out = xr.Dataset({"layers": picks + names[0], "value": value})
    out = out.assign(kept_layers=kept + names[0], kept_value=kept_value)
    sets = {"value": picks, "kept_value": kept}
    n_subsets = comb(n_layers, int(count))
    if n_subsets <= max_subsets:
        best, optimum = xr.apply_ufunc(
            lambda b: _exhaustive(b, int(count), aim),
            blocks,
            input_core_dims=[dims],
            output_core_dims=[["pick"], []],
        )
        out = out.assign(optimal_layers=best + names[0], optimum=optimum)
        sets["optimum"] = best
    tried = "all tried" if n_subsets <= max_subsets else f"not tried: more than {max_subsets}"
    resolution, said = _rounding(blocks, lost, aim, sets, out)
    out = out.assign(resolution=resolution)
    out.attrs["certified"] = said
    if objective.of == "state":
        out.attrs["note"] = COORDINATES
    return out.assign_attrs(
        objective=repr(objective),
        guarantee=objective.guarantee(blocks.sizes[objective.of]),
        subsets=f"{n_subsets}, {tried}",
    )


def _rounding(
    blocks: xr.DataArray,
    lost: xr.DataArray,
    objective: Objective,
    sets: dict[str, xr.DataArray],
    found: xr.Dataset,
) -> tuple[xr.DataArray, str]:
    """What the values of sets of layers change by when the gains do by their rounding; in words."""

    def core(b: np.ndarray, lost: np.ndarray, *picks: np.ndarray) -> np.ndarray:
        chosen = np.zeros((*b.shape[:-3], len(picks), b.shape[-3]), dtype=bool)
        for i, pick in enumerate(picks):
            np.put_along_axis(chosen[..., i, :], pick, True, axis=-1)
        rng = np.random.default_rng(0)
        each = lost[..., None, :, None] / np.sqrt(b.shape[-3] * b.shape[-1])
        near = b + each * rng.standard_normal((SAMPLES, *[1] * (b.ndim - 3), *b.shape[-3:]))
        values = objective.value(near, np.broadcast_to(chosen, (SAMPLES, *chosen.shape)))
        off = values - objective.value(b, chosen)
        return np.array(3 * np.sqrt((off**2).mean(0)))

    dims = ["layer", objective.of, "input"]
    change = xr.apply_ufunc(
        core,
        blocks,
        lost,
        *sets.values(),
        input_core_dims=[dims, dims[1:2], *[["pick"]] * len(sets)],
        output_core_dims=[["column"]],
    )
    at = [abs(found[name].isel(pick=-1) if name == "value" else found[name]) for name in sets]
    size = xr.concat(at, dim="column", coords="minimal", compat="override")
    ok = (change <= CERTIFIABLE * size) | (change == 0)
    return change.max("column"), certificate(ok, change, size, "the value")


def _greedy(blocks: np.ndarray, count: int, objective: Objective):
    n_layers = blocks.shape[-3]
    chosen = np.zeros((*blocks.shape[:-3], n_layers), dtype=bool)
    picks, values = [], []
    for _ in range(count):
        candidates = chosen[..., None, :] | np.eye(n_layers, dtype=bool)
        value = np.where(chosen, -np.inf, objective.value(blocks, candidates))
        pick = value.argmax(-1)
        np.put_along_axis(chosen, pick[..., None], True, axis=-1)
        picks.append(pick)
        values.append(value.max(-1))
    return np.stack(picks, axis=-1), np.stack(values, axis=-1)


def _eliminate(blocks: np.ndarray, count: int, objective: Objective):
    n_layers = blocks.shape[-3]
    chosen = np.ones((*blocks.shape[:-3], n_layers), dtype=bool)
    for _ in range(n_layers - count):
        candidates = chosen[..., None, :] & ~np.eye(n_layers, dtype=bool)
        value = np.where(chosen, objective.value(blocks, candidates), -np.inf)
        np.put_along_axis(chosen, value.argmax(-1)[..., None], False, axis=-1)
    layers = np.argsort(~chosen, axis=-1, kind="stable")[..., :count]
    return layers, objective.value(blocks, chosen[..., None, :])[..., 0]


def _exhaustive(blocks: np.ndarray, count: int, objective: Objective):
    n_layers, batch = blocks.shape[-3], blocks.shape[:-3]
    subsets = combinations(range(n_layers), count)
    best = np.full(batch, -np.inf)
    layers = np.zeros((*batch, count), dtype=int)
    while part := list(islice(subsets, 500)):  # in parts, to bound memory
        part = np.array(part)
        chosen = np.zeros((len(part), n_layers), dtype=bool)
        np.put_along_axis(chosen, part, True, axis=-1)
        value = objective.value(blocks, np.broadcast_to(chosen, (*batch, *chosen.shape)))
        here = value.argmax(-1)
        top = value.max(-1)
        layers = np.where((top > best)[..., None], part[here], layers)
        best = np.maximum(best, top)
    return layers, best
