"""The reduction methods of `identify` and their settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from depthsys import ltv
from depthsys.lm.channels import Channels
from depthsys.lm.exact import restricted_each, restricted_mean
from depthsys.lm.frozen import FrozenRun
from depthsys.lm.kinds import short
from depthsys.lm.lockstep import Steps, finished
from depthsys.lm.measure import deviations
from depthsys.lm.orthonormal import Columns, found_with
from depthsys.lm.response import mean_response, response_each
from depthsys.lm.run import Run
from depthsys.lm.shards import of_each
from depthsys.lm.step import Step
from depthsys.ltv.matrix_free import transposed
from depthsys.ltv.system import is_whole

Reduce = Callable[..., xr.Dataset]
DEFAULT_ORDER = 32
# what a restricted system holds in the coordinates of R^H
_IN_FEATURES = ("V", "W", "v")
LARGEST_ORDER = 64  # how many directions are prepared for a tolerance


@dataclass(frozen=True)
class Method:
    """Settings that all methods share.

    Parameters
    ----------
    order
        Largest size of the reduced state; None means 32, or H if that is smaller.
    tolerance
        Instead of ``order``: the smallest order whose exact error ``||G - G_r||`` is at most
        ``tolerance ||G||``, G being the full-order system of the same prompts. With
        ``per_prompt`` prompts that run in one batch share the order that serves all of them.
    rtol
        A direction whose part outside the earlier ones is below ``rtol`` of its length is
        dependent on them and dropped; None means 1e-5 in float32 and 1e-9 in float64, where the
        Jacobian products end.
    """

    order: int | None = None
    tolerance: float | None = None
    rtol: float | None = None

    name: ClassVar[str] = ""
    observable: ClassVar[bool] = False  # needs what the outputs see
    takes_free_inputs: ClassVar[bool] = False
    nested: ClassVar[bool] = True  # a smaller order is part of a larger one
    # the full linear system that is reduced, and the one that an upper bound is proved against
    needs: ClassVar[str] = "mean_system"
    proved_against: ClassVar[str | None] = None

    def size(self, n_features: int) -> int:
        """The largest number of directions that may be asked for; ValueError if not in 1..H."""
        if self.order is not None and self.tolerance is not None:
            raise ValueError(
                f"`order` and `tolerance` must not both be given; got {self.order} and "
                f"{self.tolerance}. Leave one out."
            )
        if self.tolerance is not None:
            if not 0 < self.tolerance < np.inf:
                raise ValueError(
                    f"`tolerance` must be a number > 0; got {self.tolerance}. Try 0.01."
                )
            return min(LARGEST_ORDER, n_features)
        if self.order is None:
            return min(DEFAULT_ORDER, n_features)
        if not is_whole(self.order) or not 1 <= self.order <= n_features:
            raise ValueError(
                f"`order` must be in 1..{n_features}, the width of the model; got {self.order}. "
                "Ask for a whole number in that range."
            )
        return int(self.order)

    def prepared(self, channels: Channels, run: Run, size: int) -> tuple[xr.Dataset, Reduce]:
        """What the method reduces, and the function that reduces it to an order or a tolerance."""
        columns = self.columns(channels, run, size)
        small = restricted_mean(channels, run, observable=self.observable, columns=columns)
        return small, self.reducer(small, columns)

    def prepared_each(
        self, channels: Channels, batch: FrozenRun, size: int
    ) -> Steps[tuple[xr.Dataset, Reduce]]:
        """The same for every prompt of a batch, in steps."""
        columns = yield from self.columns_each(channels, batch, size)
        small = yield from restricted_each(
            channels, batch, observable=self.observable, columns=columns
        )
        return small, self.reducer(small, columns)

    def reducer(
        self, small: xr.Dataset, columns: Columns | None, *, keep_basis: bool = True
    ) -> Reduce:
        """The function that projects a restricted system on the basis of this method.

        Without ``keep_basis`` the reduced system has no bases of R^H: they cost more than the
        reduction does.
        """
        given = self.given(small, columns)
        # none of these is needed beside the coordinates
        spare = [] if keep_basis else [name for name in _IN_FEATURES if name in small]
        bare = small.drop_vars(spare)
        return lambda **wanted: ltv.project(bare, self.basis(bare, given, **wanted))

    def given(self, small: xr.Dataset, columns: Columns | None) -> xr.DataArray | None:
        """The directions (depth, state, column) that the basis is made of, restricted."""
        return None if columns is None else _coordinates(small, columns)

    def n_columns(self, size: int) -> int:
        """How many directions of its own the method brings at most."""
        return 0

    def own_rows(self, n_layers: int, n_inputs: int, size: int) -> tuple[str, int]:
        """What finding them costs per prompt: "products" or "replay", and rows of one state."""
        return "products", 0

    def columns(self, channels: Channels, run: Run, size: int) -> Columns | None:
        """Directions of the task (1, depth, feature, column) that the basis is made of."""
        return None

    def columns_each(
        self, channels: Channels, batch: FrozenRun, size: int
    ) -> Steps[Columns | None]:
        """The same for every prompt of a batch (prompt, depth, feature, column), in steps."""
        yield from ()
        return None

    def basis(self, small: xr.Dataset, given: xr.DataArray | None, **size: Any) -> xr.Dataset:
        """The basis in the coordinates of the restricted system."""
        raise NotImplementedError


@dataclass(frozen=True)
class Krylov(Method):
    """Propagated Krylov basis: concept direction first, then the most recent injections.

    ``V_k = orth[v_k, A_{k-1} v_{k-1}, A_{k-1} A_{k-2} v_{k-2}, ...]``, first ``order`` columns,
    and W = V, dependent columns left out. At depth k at most (k + 1) m directions exist: the
    coordinate ``order(depth)`` of the system says how many there are, so an order above (L + 1) m
    truncates nothing. Below that the error of this one-sided projection need not fall with every
    step of the order. Parameters as for `Method`.
    """

    name: ClassVar[str] = "krylov"

    def given(self, small, columns):
        """The concept directions."""
        return _concept(small)

    def basis(self, small, given, **size):
        """`ltv.krylov_basis` that starts with the concept directions."""
        return ltv.krylov_basis(small, start=given, **size)


@dataclass(frozen=True)
class Arnoldi(Method):
    """Krylov space of each frozen layer: ``V_k = orth[v_k, A_k v_k, A_k^2 v_k, ...]``, W = V.

    With the mean Jacobian of that layer (A_{L-1} at the last depth). Each power is a product with
    the Jacobians of all prompts, which are linearised once if that fits into a gigabyte.
    Parameters as for `Method`.
    """

    name: ClassVar[str] = "arnoldi"

    def n_columns(self, size):
        """One for each power."""
        return size

    def own_rows(self, n_layers, n_inputs, size):
        """A product for each power, at every depth."""
        return "products", size * (n_layers + 1)

    def columns(self, channels, run, size):
        """Orthonormal Krylov columns of the mean Jacobians."""

        def work(kit):
            found = []
            with run.sweep() as sweep:
                for layer in sweep.forward("Arnoldi columns"):
                    total = layer.products(channels.kind)

                    def product(q, total=total):
                        return kit.columns_of(total(kit.rows(q)[0])[None]) / len(run)

                    is_last = layer.layer == channels.model.n_layers - 1
                    for depth in range(layer.layer, layer.layer + 1 + is_last):
                        found.append(kit.powers(depth, product, size))
                    del total, product  # they hold the weights
            return found
            yield  # the sweep itself brings the layers in

        return _stacked(finished(found_with(channels, 1, None, work)))

    def columns_each(self, channels, batch, size):
        """Orthonormal Krylov columns of every prompt's Jacobians."""

        def work(kit):
            found = []
            for depth in range(len(batch.blocks) + 1):
                block = batch.blocks[min(depth, len(batch.blocks) - 1)]
                yield block.layer
                linear = block.linearised(channels.kind)

                def product(q, linear=linear):
                    return kit.columns_of(linear.jvp(kit.rows(q)))

                found.append(kit.powers(depth, product, size))
                del linear, product  # they hold the weights
            return found

        return _stacked((yield from found_with(channels, len(batch.prompts), None, work)))

    def basis(self, small, given, **size):
        """The columns in the restricted coordinates."""
        return ltv.span_basis(small, columns=_needed(given), **size)


@dataclass(frozen=True)
class Pod(Method):
    """Leading left singular vectors of recorded state deviations, W = V.

    Each layer of each prompt is pushed by ``+-s v_l`` on the full nonlinear model; the snapshots
    at depth k are ``[x_k(+) - x_k(-)] / (2 s)`` for all layers before it and all prompts.
    Parameters as for `Method`, and the step's ``eps`` and ``relative``, see `Step`.
    """

    eps: float | None = None
    relative: bool = True
    name: ClassVar[str] = "pod"

    def n_columns(self, size):
        """The leading ones."""
        return size

    def own_rows(self, n_layers, n_inputs, size):
        """Every push of both signs, from its layer on."""
        return "replay", n_inputs * n_layers * (n_layers + 1)

    def columns(self, channels, run, size):
        """Leading left singular vectors, times singular values, over all prompts."""
        kept = max(4 * size, 256)  # exact where H is no larger
        factors = [np.zeros((channels.model.n_features, 0))] * (channels.model.n_layers + 1)
        title = "record injections"
        for parts in of_each(run, _recorded, channels, self, size, kept, title=title):
            for depth, part in enumerate(parts):
                factor = np.hstack([factors[depth], part])
                full = factor.shape[1] > 4 * kept
                factors[depth] = _compressed(factor, kept) if full else factor
        return _stacked([_compressed(factor, size)[None] for factor in factors])

    def columns_each(self, channels, batch, size):
        """The snapshots themselves."""
        return (yield from deviations(batch, channels.v, Step(self.eps, self.relative)))

    def basis(self, small, given, **size):
        """`ltv.pod_basis` of the snapshots."""
        return ltv.pod_basis(small, snapshots=_needed(given).rename(column="sample"), **size)


@dataclass(frozen=True)
class Adjoint(Method):
    """What the outputs see: ``V_k = orth[v_k, leading left singular vectors of S_k]``, W = V.

    Parameters as for `Method`.
    """

    name: ClassVar[str] = "adjoint"
    observable: ClassVar[bool] = True
    takes_free_inputs: ClassVar[bool] = True

    def given(self, small, columns):
        """The concept directions, unless inputs are free."""
        return _concept(small) if "v" in small else None

    def basis(self, small, given, **size):
        """`ltv.adjoint_basis` that starts with the concept directions."""
        return ltv.adjoint_basis(small, start=given, **size)


@dataclass(frozen=True)
class TwoSided(Method):
    """Dominant reachable states for V, dominant observable ones for W; see `ltv.two_sided_basis`.

    Parameters as for `Method`.
    """

    name: ClassVar[str] = "two_sided"
    observable: ClassVar[bool] = True
    nested: ClassVar[bool] = False

    def basis(self, small, given, **size):
        """`ltv.two_sided_basis`."""
        return ltv.two_sided_basis(small, **size)


@dataclass(frozen=True)
class Balanced(Method):
    """Balanced truncation of the mean system, or of each prompt's; see `ltv.balanced_basis`.

    Parameters as for `Method`.
    """

    name: ClassVar[str] = "balanced"
    proved_against: ClassVar[str | None] = "mean_system"
    observable: ClassVar[bool] = True
    takes_free_inputs: ClassVar[bool] = True

    def basis(self, small, given, **size):
        """`ltv.balanced_basis`."""
        return ltv.balanced_basis(small, **size)


@dataclass(frozen=True)
class Random(Method):
    """``V_k = orth[v_k, random directions]``, W = V: the baseline of the ablation.

    Directions are standard normal in R^H, drawn from ``seed`` for every depth and shared by all
    prompts. Parameters as for `Method`, and ``seed``.
    """

    seed: int = 0
    name: ClassVar[str] = "random"
    takes_free_inputs: ClassVar[bool] = True

    def n_columns(self, size):
        """Those that are drawn."""
        return size

    def columns(self, channels, run, size):
        """Concept directions, then random ones."""
        return self._drawn(channels, 1, size)

    def columns_each(self, channels, batch, size):
        """The same for every prompt."""
        yield from ()
        return self._drawn(channels, len(batch.prompts), size)

    def _drawn(self, channels: Channels, n_prompts: int, size: int) -> np.ndarray:
        found = []
        for depth in range(channels.model.n_layers + 1):
            rng = np.random.default_rng([self.seed, depth])
            drawn = rng.standard_normal((size, channels.model.n_features)).T
            start = _start(channels, depth, n_prompts)
            drawn = np.broadcast_to(drawn, (n_prompts, *drawn.shape))
            found.append(np.concatenate([start, drawn], axis=-1))
        return _stacked(found)

    def basis(self, small, given, **size):
        """The columns in the restricted coordinates."""
        return ltv.span_basis(small, columns=_needed(given), **size)


@dataclass(frozen=True)
class Ensemble(Method):
    r"""Balanced truncation of the ensemble of prompts: no averaging error.

    The mean response of N prompts is itself a linear time-varying system (states stacked, inputs
    shared, outputs averaged) with the Hankel blocks :math:`\frac1N \sum_p S_k(p)^\top R_k(p)`. All
    that balancing needs of it, :math:`S_{l+1}^\top A_l R_l` and so on, are entries of its
    input-output map, the mean of the prompts' exact maps: one pass backwards per prompt, then
    `ltv.realization`. Each prompt has its own pair of bases, so the system stores none. With the
    concept readout order 1 has the mean exact gains. Parameters as for `Method`.
    """

    name: ClassVar[str] = "ensemble"
    takes_free_inputs: ClassVar[bool] = True
    needs: ClassVar[str] = "mean_response"
    proved_against: ClassVar[str | None] = "mean_response"

    def prepared(self, channels, run, size):
        """The mean response, and its realisation."""
        response = mean_response(channels, run)
        return response, self.reducer(response, None)

    def prepared_each(self, channels, batch, size):
        """The response of every prompt."""
        response = yield from response_each(channels, batch)
        return response, self.reducer(response, None)

    def reducer(self, small, columns, *, keep_basis=True):
        """`ltv.realization` of a response; it has no bases."""
        return lambda **wanted: ltv.realization(small["io"], **wanted)


METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (Ensemble, Balanced, TwoSided, Krylov, Arnoldi, Pod, Adjoint, Random)
}


def named_methods(methods: Sequence[str] | Mapping[str, Method]) -> dict[str, Method]:
    """Methods by name; ValueError or TypeError for unknown, equal or missing ones."""
    if isinstance(methods, Mapping):
        named = dict(methods)
    elif isinstance(methods, str):
        raise TypeError(
            f"`methods` must be a list of names; got {short(methods)}. Write [{short(methods)}]."
        )
    elif isinstance(methods, Method):
        raise TypeError(
            f"`methods` must be names, or a mapping from names to methods; got {short(methods)}. "
            f"Write {{{methods.name!r}: ...}}."
        )
    else:
        unknown = [m for m in methods if m not in METHODS]
        if unknown or len(set(methods)) < len(methods):
            raise ValueError(
                f"`methods` must be different names among {list(METHODS)}; got {list(methods)}. "
                "Pass a mapping from names to methods for other settings."
            )
        named = {name: METHODS[name]() for name in methods}
    if not named or not all(isinstance(m, Method) for m in named.values()):
        raise TypeError(
            f"`methods` must hold at least one method such as lm.Krylov(); got {short(methods)}. "
            "Make them, for example {'krylov': lm.Krylov()}."
        )
    if any(m.tolerance is not None for m in named.values()):
        raise ValueError(
            f"`methods` must have no `tolerance`; got {short(methods)}. A comparison runs over "
            "`orders`."
        )
    return named


def checked_orders(orders: Sequence[int], n_features: int) -> list[int]:
    """Rising whole numbers in 1..H, or ValueError."""
    sizes = np.atleast_1d(np.asarray(orders))
    whole = sizes.dtype.kind in "iu" and sizes.ndim == 1 and sizes.size > 0
    if not whole or sizes[0] < 1 or (np.diff(sizes) <= 0).any() or sizes[-1] > n_features:
        raise ValueError(
            f"`orders` must be rising whole numbers in 1..{n_features}, the width of the model; "
            f"got {short(orders)}. For example [1, 2, 4, 8]."
        )
    return [int(r) for r in sizes]


# ------------------------------------------------------------------------------- columns


def _concept(small: xr.Dataset) -> xr.DataArray:
    """The concept directions in restricted coordinates (depth, state, column)."""
    return xr.dot(small["V"], small["v"], dim="feature").rename(input="column")


def _needed(given: xr.DataArray | None) -> xr.DataArray:
    if given is None:
        raise RuntimeError("this basis is made of columns")
    return given


def _coordinates(small: xr.Dataset, columns: Columns) -> xr.DataArray:
    """Columns (prompt, depth, feature, column) in restricted coordinates."""
    given = xr.DataArray(columns, dims=("prompt", "depth", "feature", "column"))
    if "prompt" not in small.dims:
        given = given.isel(prompt=0)
    return xr.dot(small["V"].drop_vars(["depth", "prompt"], errors="ignore"), given, dim="feature")


def _start(channels: Channels, depth: int, n_prompts: int) -> np.ndarray:
    v = transposed(channels.v[depth].double().cpu().numpy())
    return np.broadcast_to(v, (n_prompts, *v.shape))


def _recorded(run: Run, channels: Channels, method: Pod, size: int, kept: int) -> list[np.ndarray]:
    """At most ``kept`` columns (feature, column) for every depth, which stand for snapshots."""
    model = channels.model
    factors = [np.zeros((model.n_features, 0)) for _ in range(model.n_layers + 1)]
    work = lambda batch: method.columns_each(channels, batch, size)  # noqa: E731
    n_numbers = (model.n_layers + 1) * model.n_features * model.n_layers * channels.v.shape[1]
    for _, snapshots in run.in_step(work, "record injections", held=8 * n_numbers):
        for depth, factor in enumerate(factors):
            factor = np.hstack([factor, *snapshots[:, depth]])
            full = factor.shape[1] > 4 * kept
            factors[depth] = _compressed(factor, kept) if full else factor
    return [_compressed(f, kept) if f.shape[1] > kept else f for f in factors]


def _compressed(factor: np.ndarray, kept: int) -> np.ndarray:
    """At most ``kept`` columns with the same left singular vectors and values, largest first."""
    U, s, _ = np.linalg.svd(factor, full_matrices=False)
    return (U * s)[:, :kept]


def _stacked(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Columns (prompt, feature, column) of every depth as (prompt, depth, feature, column)."""
    width = max(1, *(c.shape[-1] for c in columns))
    padded = [np.pad(c, [(0, 0), (0, 0), (0, width - c.shape[-1])]) for c in columns]
    return np.stack(padded, axis=1)
