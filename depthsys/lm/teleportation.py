"""Teleportation: the state is put elsewhere in a plane, and the layers carry it from there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from depthsys.fingerprints import why_another
from depthsys.lm import sublayers
from depthsys.lm.frozen import FrozenBlock, FrozenRun
from depthsys.lm.kinds import Kind, short
from depthsys.lm.lockstep import Steps
from depthsys.lm.of_run import of_run
from depthsys.lm.run import Run
from depthsys.lm.shards import along, in_shards
from depthsys.lm.stamp import stamp
from depthsys.ltv.system import is_whole, whole_number

ROWS = 4096  # copies x prompts that go through a block at once, without derivatives
OUTSIDE = ("mean", "own")
WHOLE = "trajectory"
# of the distance from the centre: spreads up to the first are rounding, the second stands for them
SAME, ALIKE = 1e-5, 0.01
_PLANE = Kind(
    "residual dynamics, with `centre`, `axes` and `score`",
    lambda given: (
        isinstance(given, xr.Dataset) and all(n in given for n in ("centre", "axes", "score"))
    ),
    "`lm.residual_dynamics` gives them.",
)


@of_run(once=True, shards=True, kinds={"dynamics": _PLANE})
def teleport(
    run: Run,
    dynamics: xr.Dataset,
    *,
    starts: Sequence[int] | None = None,
    n_sublayers: int | None = None,
    grid: int = 10,
    span: float | str = WHOLE,
    outside: str = "mean",
    n_radii: int = 8,
) -> xr.Dataset:
    r"""Where states that are put on a grid of the first two components are carried.

    At sublayer s the last token's state is replaced by one with chosen coordinates p in the plane
    of the first two principal components; then it flows through the next sublayers, on the frozen
    context of the prompt. A point is *inward* if it ends nearer to where the prompt's own state
    ends than it has begun, in the plane: :math:`\|e - e^*\| < \|p - p^*\|`.

    Parameters
    ----------
    run
        The prompts, some few; or a model and texts.
    dynamics
        From `residual_dynamics` of the same model, of many prompts: ``centre``, ``axes`` and
        ``score``.
    starts
        Sublayers at which states are replaced; five by default, evenly over those from which
        ``n_sublayers`` follow.
    n_sublayers
        How many follow; None are 12, six layers, or half of those there are if that is fewer.
    grid
        Points along each component.
    span
        "trajectory": one grid for all starts, over all trajectories of ``dynamics`` in the plane;
        or a number: a grid for each start about the mean score there, so many times the root mean
        square distance of the scores from it to each side; where all prompts are in one place, as
        at an embedding that they share, of a hundredth of its distance from the centre.
    outside
        What the state is outside the plane: the "mean" of ``dynamics``, so that the state is the
        inverse of the projection, or the prompt's "own".
    n_radii
        Rings of equal width, about the prompt's own place, in which points are counted.

    Returns
    -------
    xr.Dataset
        In the plane, in the unit of the state: ``begin`` (start, row, column, component), the grid;
        ``end`` (start, prompt, row, column, component); ``own_begin`` and ``own_end`` (start,
        prompt, component) of the prompt's own state. ``inward`` (start, prompt, row, column).
        ``inward_fraction`` and ``points`` (start, ring) over prompts and points, by the distance
        :math:`\|p - p^*\|`, up to ``radius`` (start, ring), the outer edge; NaN without points.
        ``inward_share`` (start) over all points. ``contraction`` (start): the median of
        :math:`\|e - e^*\| / \|p - p^*\|`. ``basin_radius`` (start): the outer edge of the last ring
        up to which half of the points or more are inward in every ring that has points; 0 if that
        fails in the first.

    Raises
    ------
    ValueError
        If ``dynamics`` is of another width, a start leaves no room, an argument is out of its
        range, or the state is to be replaced before the MLP of a parallel block.
    FloatingPointError
        If a state overflows.

    Notes
    -----
    Of each prompt, start and point one row goes through six layers (twelve sublayers), and one more
    where it starts or ends between the parts of a layer. Distances are not relative: where states
    grow with depth, a distance may grow that is small beside them in the end.

    References
    ----------
    .. [1] Fernando and Guitchounts (2025), arXiv:2502.12131, teleport states in a plane of
       principal components; a grid of about 10 x 10 and the inverse of the projection are as others
       report it. The criterion, the rings and the radius are ours.
    """
    arrangement = sublayers.checked_arrangement(run.model, run.rows[0])
    if n_sublayers is None:
        n_sublayers = min(12, max(1, run.n_layers // 2) * 2)
    begins = _starts(starts, run.n_layers, n_sublayers, arrangement)
    _check_dynamics(run, dynamics)
    plane = _plane(dynamics)
    if not isinstance(outside, str) or outside not in OUTSIDE:
        raise ValueError(f"`outside` must be one of {OUTSIDE}; got {short(outside)}. Pick one.")
    whole_number(grid, "grid", 2, cure="Leave it out.")
    whole_number(n_radii, "n_radii", cure="Leave it out.")
    points = _grid(dynamics, begins, grid, span)
    spots = torch.as_tensor(points.reshape(len(begins), -1, 2))
    flight = Flight(plane, tuple(begins), n_sublayers, spots, outside == "own")
    own, end = _flown(run, flight)
    if not (np.isfinite(end).all() and np.isfinite(own).all()):
        raise FloatingPointError(
            "states must stay finite; those that were put on the grid overflow. Use a smaller "
            "`span`, or load the model in float32."
        )
    return _table(
        points,
        own.transpose(2, 1, 0, 3),
        end.swapaxes(0, 1),
        begins,
        n_radii,
        {
            **stamp(run, "teleport"),
            "arrangement": arrangement,
            "n_sublayers": n_sublayers,
            "outside": outside,
            "span": span,
        },
    )


def _starts(
    starts: Sequence[int] | None, n_layers: int, n_sublayers: int, arrangement: str
) -> list[int]:
    last = 2 * n_layers - n_sublayers if is_whole(n_sublayers) else -1
    if last < 0 or n_sublayers < 1:
        raise ValueError(
            f"`n_sublayers` must be a whole number >= 1 and <= {2 * n_layers}; got "
            f"{short(n_sublayers)}. That many sublayers are there."
        )
    if starts is None:
        found = np.unique(np.linspace(0, last, 5).round().astype(int) // 2 * 2).tolist()
    else:
        found = list(np.atleast_1d(np.asarray(starts, dtype=object)).ravel())
    wrong = [s for s in found if not is_whole(s) or not 0 <= s <= last]
    if wrong or not found or len(set(found)) < len(found):
        raise ValueError(
            f"`starts` must be different sublayers from 0 to {last}; got {short(starts)}. "
            f"{n_sublayers} sublayers must follow."
        )
    if arrangement != "sequential" and any(s % 2 for s in found):
        raise ValueError(
            f"`starts` must be even in a model whose parts are {arrangement}; got {short(starts)}. "
            "Nothing reads a state between attention and MLP there."
        )
    return [int(s) for s in found]


def _check_dynamics(run: Run, dynamics: xr.Dataset) -> None:
    """ValueError unless they are of this model, and have a plane."""
    sizes, width = dict(dynamics["axes"].sizes), run.model.n_features
    if sizes.get("feature") != width or dynamics.sizes.get("sublayer") != 2 * run.n_layers:
        raise ValueError(
            f"`dynamics` must have the {width} features and {2 * run.n_layers} sublayers of the "
            f"model; got {dict(dynamics.sizes)}. Make them with this model."
        )
    if sizes.get("component", 0) < 2:
        raise ValueError(
            f"`dynamics` must have two components, which make a plane; got {sizes}. Keep the first "
            "two."
        )
    for name in ("centre", "axes", "score"):
        if not np.isfinite(dynamics[name]).all():
            raise ValueError(
                f"`dynamics` must be finite; got NaN or infinity in {name}. Make them again."
            )
    mark, own = dynamics.attrs.get("model_fingerprint"), run.model.fingerprint
    if mark is not None and mark != own:
        raise ValueError(
            f"`dynamics` must be of the model; got model_fingerprint {mark!r} instead of {own!r}. "
            f"Make them with this model.{why_another(mark, own)}"
        )


def _plane(dynamics: xr.Dataset) -> "Plane":
    axes = dynamics["axes"].transpose("component", "feature").values[:2]
    return Plane(torch.as_tensor(dynamics["centre"].values), torch.as_tensor(axes))


def _grid(dynamics: xr.Dataset, begins: list[int], grid: int, span: float | str) -> np.ndarray:
    """Points (start, row, column, component)."""
    score = dynamics["score"].isel(component=slice(2))
    score = score.transpose("sublayer", "trajectory", "component").values
    if isinstance(span, str):
        if span != WHOLE:
            raise ValueError(f"`span` must be {WHOLE!r} or a number; got {span!r}. Leave it out.")
        edges = np.stack([score.min(axis=(0, 1)), score.max(axis=(0, 1))])
        bounds = np.repeat(edges[None], len(begins), axis=0)
    else:
        number = isinstance(span, (int, float, np.number)) and not isinstance(span, bool)
        if not number or not np.isfinite(span) or span <= 0:
            raise ValueError(
                f"`span` must be {WHOLE!r} or a number > 0; got {short(span)}. It is in root mean "
                "square distances of the prompts from their mean."
            )
        here = score[begins]
        middle = here.mean(axis=1)
        reach = np.sqrt(((here - middle[:, None]) ** 2).sum(axis=-1).mean(axis=1))
        length = np.linalg.norm(middle, axis=-1)
        reach = np.where(reach > SAME * length, reach, ALIKE * length)
        bounds = np.stack([middle - span * reach[:, None], middle + span * reach[:, None]], axis=1)
    found = []
    for low, high in bounds:
        x, y = (np.linspace(low[i], high[i], grid) for i in (0, 1))
        found.append(np.stack(np.meshgrid(x, y), axis=-1))
    return np.array(found)


# ----------------------------------------------------------------------------- the flow


@dataclass(frozen=True)
class Plane:
    """A plane in the space of states: ``centre`` (feature), ``axes`` (component, feature)."""

    centre: torch.Tensor
    axes: torch.Tensor

    def like(self, x: torch.Tensor) -> "Plane":
        """The same where ``x`` is, in float64."""
        return Plane(*(t.to(x.device, torch.float64) for t in (self.centre, self.axes)))

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Coordinates (..., component) of states."""
        return (x.double() - self.centre) @ self.axes.T

    def put(self, x: torch.Tensor, spots: torch.Tensor, *, own: bool) -> torch.Tensor:
        """States (prompt, copy, feature) with coordinates ``spots`` (copy, component).

        ``x`` (prompt, feature) are the prompts' own.
        """
        beside = self.centre.expand(len(x), -1)
        if own:
            beside = x.double() - self.scores(x) @ self.axes
        return (beside[:, None] + spots.to(beside) @ self.axes).to(x.dtype)


@dataclass(frozen=True)
class Flight:
    """What is wanted of each prompt: ``spots`` (start, copy, component) at sublayers ``starts``."""

    plane: Plane
    starts: tuple[int, ...]
    n_sublayers: int
    spots: torch.Tensor
    own: bool

    def part(self, copies: slice) -> "Flight":
        """Some of the copies."""
        return Flight(self.plane, self.starts, self.n_sublayers, self.spots[:, copies], self.own)


@in_shards(along(0), "teleportation")
def _flown(run: Run, flight: Flight) -> tuple[np.ndarray, np.ndarray]:
    """Own coordinates (prompt, begin or end, start, component), ends (prompt, start, copy, ...)."""
    n_starts, n_copies = flight.spots.shape[:2]
    own = np.empty((len(run), 2, n_starts, 2))
    end = np.empty((len(run), n_starts, n_copies, 2))

    def work(batch: FrozenRun) -> Steps[tuple[torch.Tensor, torch.Tensor]]:
        rows = batch.blocks[0].replay_rows(ROWS) // (len(batch.prompts) * n_starts)
        size = max(1, rows)
        parts = [slice(at, at + size) for at in range(0, n_copies, size)]
        works = [_flow(batch, flight.part(part)) for part in parts]
        own_places = yield from _own_places(batch, flight)
        return own_places, torch.cat((yield from run.several(works)), dim=2)

    held = n_starts * n_copies * run.model.n_features * run.model.dtype.itemsize
    for batch, (mine, ends) in run.in_step(work, "teleportation", held=held):
        own[batch.prompts] = mine.permute(2, 0, 1, 3).cpu().numpy()
        end[batch.prompts] = ends.transpose(0, 1).cpu().numpy()
    return own, end


@torch.no_grad()
def _own_places(batch: FrozenRun, flight: Flight) -> Steps[torch.Tensor]:
    """Coordinates (begin or end, start, prompt, component) of the nominal states."""
    plane = flight.plane.like(batch.x)
    wanted = {s for start in flight.starts for s in (start, start + flight.n_sublayers)}
    found = {}
    for sublayer in sorted(wanted):
        layer, between = divmod(sublayer, 2)
        x = batch.x[layer]
        if between:
            yield layer
            x = batch.blocks[layer].without(x[:, None], "mlp")[:, 0]
        found[sublayer] = plane.scores(x)
    both = ([found[s + shift] for s in flight.starts] for shift in (0, flight.n_sublayers))
    return torch.stack([torch.stack(one) for one in both])


@torch.no_grad()
def _flow(batch: FrozenRun, flight: Flight) -> Steps[torch.Tensor]:
    """Coordinates (start, prompt, copy, component) after the sublayers."""
    plane = flight.plane.like(batch.x)
    flying: dict[int, torch.Tensor] = {}  # states (prompt, copy, feature) by number of the start
    found: dict[int, torch.Tensor] = {}

    def land(sublayer: int, states: dict[int, torch.Tensor]) -> None:
        """Those whose way ends at a sublayer have arrived."""
        for number in list(states):
            if flight.starts[number] + flight.n_sublayers == sublayer:
                found[number] = plane.scores(states[number])
                flying.pop(number)

    def joining(sublayer: int, x: torch.Tensor) -> dict[int, torch.Tensor]:
        return {
            number: plane.put(x, flight.spots[number], own=flight.own)
            for number, start in enumerate(flight.starts)
            if start == sublayer
        }

    for block in batch.blocks:
        layer = block.layer
        land(2 * layer, flying)
        flying |= joining(2 * layer, block.x)
        begun = any(start == 2 * layer + 1 for start in flight.starts)
        if not flying and not begun:
            continue
        yield layer
        last = [n for n in flying if flight.starts[n] + flight.n_sublayers == 2 * layer + 1]
        if last:
            land(2 * layer + 1, _through(block, {n: flying[n] for n in last}, "mlp"))
        after = _through(block, flying) if flying else {}
        if begun:
            middle = block.without(block.x[:, None], "mlp")[:, 0]
            after |= _through(block, joining(2 * layer + 1, middle), "attention")
        flying = after
    land(2 * len(batch.blocks), flying)
    return torch.stack([found[number] for number in range(len(flight.starts))])


def _through(
    block: FrozenBlock, states: dict[int, torch.Tensor], *without: str
) -> dict[int, torch.Tensor]:
    """All states through a block, or through it without a part, in one call."""
    both = torch.cat(list(states.values()), dim=1)
    after = block.without(both, *without) if without else block(both)
    size = after.shape[1] // len(states)
    return dict(zip(states, after.split(size, dim=1), strict=True))


# ----------------------------------------------------------------------- what is made of it


def _table(
    points: np.ndarray,
    own: np.ndarray,
    end: np.ndarray,
    begins: list[int],
    n_radii: int,
    attrs: dict[str, Any],
) -> xr.Dataset:
    """``points`` (start, row, column, 2), ``own`` (start, begin or end, prompt, 2)."""
    n_starts, n_prompts = end.shape[:2]
    grid = points.shape[1]
    end = end.reshape(n_starts, n_prompts, grid, grid, 2)
    before = np.linalg.norm(points[:, None] - own[:, 0, :, None, None], axis=-1)
    after = np.linalg.norm(end - own[:, 1, :, None, None], axis=-1)
    inward = after < before
    edges = before.max(axis=(1, 2, 3))[:, None] * np.arange(1, n_radii + 1) / n_radii
    counts, shares = _by_ring(before, inward, edges)
    with np.errstate(divide="ignore", invalid="ignore"):
        contraction = np.nanmedian((after / before).reshape(n_starts, -1), axis=1)
    place = ("start", "prompt", "row", "column")
    return xr.Dataset(
        {
            "begin": (("start", "row", "column", "component"), points),
            "end": ((*place, "component"), end),
            "own_begin": (("start", "prompt", "component"), own[:, 0]),
            "own_end": (("start", "prompt", "component"), own[:, 1]),
            "inward": (place, inward),
            "radius": (("start", "ring"), edges),
            "points": (("start", "ring"), counts),
            "inward_fraction": (("start", "ring"), shares),
            "inward_share": ("start", inward.reshape(n_starts, -1).mean(axis=1)),
            "contraction": ("start", contraction),
            "basin_radius": ("start", basin_radius(edges, shares)),
        },
        coords={"start": begins, "component": [0, 1], "ring": np.arange(n_radii)},
        attrs=attrs,
    )


def _by_ring(
    distance: np.ndarray, inward: np.ndarray, edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many points lie in each ring (start, ring), and the share that goes inward."""
    counts = np.zeros(edges.shape, dtype=int)
    shares = np.full(edges.shape, np.nan)
    for start, outer in enumerate(edges):
        ring = np.searchsorted(outer, distance[start].ravel() * (1 - 1e-12))
        counts[start] = np.bincount(ring, minlength=len(outer))
        good = np.bincount(ring, inward[start].ravel(), minlength=len(outer))
        known = counts[start] > 0
        shares[start, known] = good[known] / counts[start, known]
    return counts, shares


def basin_radius(edges: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Outer edge (start) of the last ring up to which half or more are inward in every ring.

    Examples
    --------
    >>> basin_radius(np.array([[1.0, 2.0, 3.0]]), np.array([[0.9, 0.5, 0.4]]))
    array([2.])
    """
    found = np.zeros(len(edges))
    for start, row in enumerate(shares):
        for edge, share in zip(edges[start], row, strict=True):
            if share < 0.5:  # a ring without points says nothing
                break
            if np.isfinite(share):
                found[start] = edge
    return found
